//! A model's chat template, rendered as in Transformers: Jinja with trimmed blocks and Python's
//! methods and notation of values.

use super::python;
use crate::format::gguf::{Metadata, Value as Stored};
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
    /// True if it reads the arguments of function calls as objects rather than as JSON text.
    pub(super) takes_objects: bool,
    /// True if it renders system messages.
    pub(super) takes_system: bool,
    /// True if it marks the assistant's text (`{% generation %}`), which is not standard Jinja.
    pub marks_generation: bool,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

/// Variables of a rendering, beside the tokens.
#[derive(Serialize)]
pub(super) struct Variables<'v, M: Serialize> {
    pub(super) messages: &'v [M],
    /// Function descriptions in OpenAI's format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tools: Option<&'v serde_json::Value>,
    /// True for the prompt of a further answer.
    #[serde(rename = "add_generation_prompt")]
    pub(super) generate: bool,
    /// Further variables of the template's own.
    #[serde(flatten)]
    pub(super) own: Option<&'v serde_json::Map<String, serde_json::Value>>,
}

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
        python::extend(&mut environment);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| one_line(&error))?;
        let mut template = ChatTemplate {
            environment,
            takes_objects: false,
            takes_system: false,
            marks_generation,
            bos: bos.into(),
            eos: eos.into(),
        };
        template.takes_objects = template.reads_arguments();
        template.takes_system = template.reads_system();
        Ok(template)
    }

    /// True if a system message renders with its text.
    fn reads_system(&self) -> bool {
        /// A text that no template contains.
        const SYSTEM: &str = "QzSysQ";
        let messages = [Message::new("system", SYSTEM), Message::new("user", "a")];
        let text = self.render(&messages, false);
        text.is_ok_and(|text| text.contains(SYSTEM))
    }

    /// True if a function call with an argument in an object renders with that argument.
    fn reads_arguments(&self) -> bool {
        /// A value that no template contains.
        const ARGUMENT: &str = "QzArgQ";
        let function = serde_json::json!({ "name": "f", "arguments": { "x": ARGUMENT } });
        let call =
            serde_json::json!({ "id": "call00001", "type": "function", "function": function });
        let messages = [
            serde_json::json!({ "role": "user", "content": "a" }),
            serde_json::json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
            serde_json::json!({ "role": "tool", "content": "b", "name": "f", "tool_call_id": "call00001" }),
            serde_json::json!({ "role": "assistant", "content": "c" }),
            serde_json::json!({ "role": "user", "content": "d" }),
        ];
        let parameters =
            serde_json::json!({ "type": "object", "properties": { "x": { "type": "string" } } });
        let function =
            serde_json::json!({ "name": "f", "description": "f", "parameters": parameters });
        let tools = serde_json::json!([{ "type": "function", "function": function }]);
        let variables = Variables {
            messages: &messages,
            tools: Some(&tools),
            generate: false,
            own: None,
        };
        self.text(&variables)
            .is_ok_and(|text| text.contains(ARGUMENT))
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
        self.text(&Variables {
            messages,
            tools,
            generate,
            own: None,
        })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// A conversation that the template rejects or cannot render, with the template's line.
    pub(super) fn text<M: Serialize>(
        &self,
        variables: &Variables<'_, M>,
    ) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| one_line(&error))?;
        // The tokens come first, so that a conversation's own variables replace them.
        let tokens = minijinja::context! {
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let values = minijinja::context! { ..Value::from_serialize(variables), ..tokens };
        template.render(values).map_err(|error| one_line(&error))
    }

    /// The BOS and EOS tokens as text.
    pub(super) fn ends(&self) -> [&str; 2] {
        [&self.bos, &self.eos]
    }
}

/// Text of the token that a key refers to.
pub(crate) fn token(metadata: &Metadata<'_>, key: &str) -> Option<String> {
    let id = metadata.get(key).and_then(Stored::as_u64)?;
    let tokens = metadata
        .get("tokenizer.ggml.tokens")
        .and_then(Stored::as_array)?;
    let bytes = tokens.strings().nth(usize::try_from(id).ok()?)?;
    String::from_utf8(bytes.to_vec()).ok()
}

/// The parsed chat template of a model; `None` if it has none.
///
/// # Errors
/// A template that is too long or malformed, as the inner result.
pub fn chat_template(metadata: &Metadata<'_>) -> Option<Result<ChatTemplate, String>> {
    let source = metadata
        .get("tokenizer.chat_template")
        .and_then(Stored::as_str)?;
    let text = |key: &str| token(metadata, key).unwrap_or_default();
    Some(ChatTemplate::parse(
        source,
        &text("tokenizer.ggml.bos_token_id"),
        &text("tokenizer.ggml.eos_token_id"),
    ))
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
