//! A model's chat template, rendered as in Transformers: Jinja with trimmed blocks and Python's
//! methods.

use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;

/// Instruction limit of a rendering: far above the need of templates, to stop endless loops.
const FUEL: u64 = 2_000_000;
/// Size limit of a template in bytes. Real ones have up to some ten thousand.
const MAX_TEMPLATE: usize = 1 << 20;

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text of the turn.
    pub content: String,
    /// Function calls, in OpenAI's format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
}

impl Message {
    /// A turn without function calls.
    pub fn new(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
            tool_calls: None,
        }
    }
}

/// A parsed chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// True if it marks the assistant's text (`{% generation %}`), which is not standard Jinja.
    pub marks_generation: bool,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Parses a template. `{% generation %}` and `{% endgeneration %}` are removed, as they do not
    /// affect the text. `bos` and `eos` are its `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// A template that is too long or malformed.
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, String> {
        if source.len() > MAX_TEMPLATE {
            return Err(format!(
                "it has {} bytes; the limit is {MAX_TEMPLATE}",
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
            .map_err(|error| one_line(&error))?;
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
    /// A conversation that the template rejects or cannot render.
    pub(crate) fn render(&self, messages: &[Message], generate: bool) -> Result<String, String> {
        self.render_with(messages, None, generate)
    }

    /// The same without the BOS token, which the runtime adds.
    ///
    /// # Errors
    /// A conversation that the template rejects or cannot render.
    pub fn prompt(&self, messages: &[Message], generate: bool) -> Result<String, String> {
        let text = self.render(messages, generate)?;
        match text.strip_prefix(&*self.bos) {
            Some(rest) => Ok(rest.to_owned()),
            None => Ok(text),
        }
    }

    /// [`ChatTemplate::render`] with function descriptions in OpenAI's format.
    ///
    /// # Errors
    /// A conversation that the template rejects or cannot render.
    pub(crate) fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        generate: bool,
    ) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| one_line(&error))?;
        let values = minijinja::context! {
            messages => messages,
            bos_token => self.bos,
            eos_token => self.eos,
            add_generation_prompt => generate,
            ..tools.map_or_else(|| minijinja::context! {}, |tools| minijinja::context! { tools => tools })
        };
        template.render(values).map_err(|error| one_line(&error))
    }
}

/// The error on one line.
fn one_line(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// Removes the tags around the assistant's text; the second value is true if there were any.
fn without_generation(source: &str) -> (String, bool) {
    let tag =
        regex::Regex::new(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}").expect("it is tested");
    // A tag without effect preserves the whitespace control of the dashes and of the line end.
    match tag.replace_all(source, "{%$1 set _ = 0 $2%}") {
        std::borrow::Cow::Borrowed(_) => (source.to_owned(), false),
        std::borrow::Cow::Owned(without) => (without, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_render_as_in_transformers() {
        let source = "{%- for m in messages %}\n    {%- if m['role'] == 'user' %}\n<u>{{ m.content.strip() }}\n    \
                      {%- else %}\n        {% generation %}\n[{{ m.content | trim }}]{% endgeneration %}\n    {% endif %}\n\
                      {%- endfor %}\n{{ eos_token }}";
        let template = ChatTemplate::parse(source, "<s>", "</s>").unwrap();
        assert!(template.marks_generation);
        let rendered = template.render(
            &[Message::new("user", " a "), Message::new("assistant", "b")],
            false,
        );
        assert_eq!(rendered.unwrap(), "<u>a[b]</s>");
    }

    #[test]
    fn errors_are_single_lines() {
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
