//! A model's own chat template, rendered as Transformers renders it: Jinja with trimmed blocks and
//! Python's methods.

use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;

/// Instructions that one rendering may take: far more than templates need, and an end for those
/// that never come to one.
const FUEL: u64 = 2_000_000;
/// The longest template that is rendered, bytes. Real ones have up to some ten thousand.
const MAX_TEMPLATE: usize = 1 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Calls of functions, in OpenAI's layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
}

impl Message {
    /// A turn without calls.
    pub fn new(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
            tool_calls: None,
        }
    }
}

/// A chat template that has been parsed.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it marks what the assistant wrote (`{% generation %}`), which is no Jinja.
    pub marks_generation: bool,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Parses a template. `{% generation %}` and `{% endgeneration %}` are removed, as they change no
    /// text. `bos` and `eos` are its `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// A template that is too long or malformed.
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, String> {
        if source.len() > MAX_TEMPLATE {
            return Err(format!(
                "it has {} bytes; no more than {MAX_TEMPLATE} are rendered",
                source.len()
            ));
        }
        let (source, marks_generation) = without_generation(source);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |what: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, what))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| told(&error))?;
        Ok(ChatTemplate {
            environment,
            marks_generation,
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// The prompt of a conversation; with `generate`, up to the beginning of the assistant's turn.
    ///
    /// # Errors
    /// A conversation that the template refuses or cannot render.
    pub(crate) fn render(&self, messages: &[Message], generate: bool) -> Result<String, String> {
        self.render_with(messages, None, generate)
    }

    /// The same without the BOS token, which the runtime adds.
    ///
    /// # Errors
    /// A conversation that the template refuses or cannot render.
    pub fn prompt(&self, messages: &[Message], generate: bool) -> Result<String, String> {
        let text = self.render(messages, generate)?;
        match text.strip_prefix(&*self.bos) {
            Some(rest) => Ok(rest.to_owned()),
            None => Ok(text),
        }
    }

    /// [`ChatTemplate::render`] with descriptions of functions, in OpenAI's layout.
    ///
    /// # Errors
    /// A conversation that the template refuses or cannot render.
    pub(crate) fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        generate: bool,
    ) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| told(&error))?;
        let values = minijinja::context! {
            messages => messages,
            bos_token => self.bos,
            eos_token => self.eos,
            add_generation_prompt => generate,
            ..tools.map_or_else(|| minijinja::context! {}, |tools| minijinja::context! { tools => tools })
        };
        template.render(values).map_err(|error| told(&error))
    }
}

/// An error in one line.
fn told(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// The template without the tags around what the assistant wrote, and whether there were any.
fn without_generation(source: &str) -> (String, bool) {
    let tag =
        regex::Regex::new(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}").expect("it is tested");
    // A tag that does nothing keeps what its dashes and the end of its line do to the text around
    // it.
    match tag.replace_all(source, "{%$1 set _ = 0 $2%}") {
        std::borrow::Cow::Borrowed(_) => (source.to_owned(), false),
        std::borrow::Cow::Owned(without) => (without, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_rendered_as_transformers_does() {
        let source = "{%- for m in messages %}\n    {%- if m['role'] == 'user' %}\n<u>{{ m.content.strip() }}\n    \
                      {%- else %}\n        {% generation %}\n[{{ m.content | trim }}]{% endgeneration %}\n    {% endif %}\n\
                      {%- endfor %}\n{{ eos_token }}";
        let template = ChatTemplate::parse(source, "<s>", "</s>").unwrap();
        assert!(template.marks_generation);
        let told = template.render(
            &[Message::new("user", " a "), Message::new("assistant", "b")],
            false,
        );
        assert_eq!(told.unwrap(), "<u>a[b]</s>");
    }

    #[test]
    fn what_goes_wrong_is_told_in_a_line() {
        let fails = |source: &str| match ChatTemplate::parse(source, "", "") {
            Ok(template) => template
                .render(&[Message::new("user", "a")], false)
                .unwrap_err(),
            Err(what) => what,
        };
        assert!(fails("\n{% if %}").starts_with("line 2: "));
        assert_eq!(
            fails("{{ raise_exception('no users here') }}"),
            "line 1: no users here"
        );
        assert!(
            fails(
                "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
            )
            .contains("fuel")
        );
        assert!(fails(&" ".repeat(MAX_TEMPLATE + 1)).contains("bytes"));
    }
}
