//! Files for Ollama: a Modelfile for each GGUF, and `template` and `params`, which it reads from a
//! repository on the Hub.

use super::go_template::{PLAIN, go_template};
use super::turns::{System, Turns};
use serde_json::{Map, Value};
use std::fmt::Write;

/// Context length set for Ollama in tokens, at most the model's: its own default is lower, and the
/// KV cache of a model's full context exceeds the memory of most machines.
const CONTEXT: u64 = 8192;

/// Result of analysing the chat template.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// None is needed: an embedding model or a reranker.
    Unused,
    /// No chat template.
    Missing,
    /// Split into pieces.
    Derived(Box<Turns>),
    /// Unsupported, with the reason.
    Unknown(String),
}

/// Settings for Ollama.
#[derive(Clone, Debug, PartialEq)]
pub struct Ollama {
    /// Chat template.
    pub template: Template,
    /// Stop words, which end an answer.
    pub stops: Vec<String>,
    /// Context length of the model in tokens.
    pub context: Option<u64>,
    /// Recommended sampling parameters, by Ollama's names.
    pub sampling: Vec<(&'static str, Value)>,
}

impl Ollama {
    /// Go template; `None` if Ollama has to choose one.
    pub(crate) fn go(&self) -> Option<String> {
        match &self.template {
            Template::Derived(turns) => Some(go_template(turns)),
            Template::Missing => Some(PLAIN.into()),
            Template::Unknown(_) | Template::Unused => None,
        }
    }

    /// Remarks on the template for readers, in sentences.
    pub(crate) fn remarks(&self) -> Vec<String> {
        match &self.template {
            Template::Unused => Vec::new(),
            Template::Missing => {
                vec!["The model has no chat template: it only continues text.".into()]
            }
            Template::Unknown(why) => vec![
                format!("The model's chat template could not be converted for Ollama: {why}."),
                "Ollama searches its own templates for a match; add a TEMPLATE if there is none."
                    .into(),
            ],
            Template::Derived(turns) => {
                let family = turns.family().name();
                let mut remarks = vec![format!(
                    "The template was derived from the model's own ({family}) and renders test conversations identically."
                )];
                if turns.system == System::None {
                    remarks
                        .push("The model's own template has no system prompt: it is put before the first question.".into());
                }
                if turns.trims {
                    remarks.push(
                        "The model's own template trims blanks around messages; this one cannot."
                            .into(),
                    );
                }
                remarks.push("It does not support tool calls.".into());
                remarks
            }
        }
    }

    /// Parameters: names and values.
    fn parameters(&self) -> Vec<(&str, Value)> {
        let mut all: Vec<_> = self
            .stops
            .iter()
            .map(|stop| ("stop", Value::from(stop.as_str())))
            .collect();
        all.extend(
            self.context
                .map(|context| ("num_ctx", Value::from(context.min(CONTEXT)))),
        );
        all.extend(
            self.sampling
                .iter()
                .map(|(name, value)| (*name, value.clone())),
        );
        all
    }

    /// Modelfile for a GGUF in the same directory, with the projector beside it.
    pub(crate) fn modelfile(&self, gguf: &str, projector: Option<&str>) -> String {
        let mut out = format!("# ollama create NAME -f THIS_FILE\nFROM ./{gguf}\n");
        if let Some(projector) = projector {
            let _ = writeln!(out, "FROM ./{projector}");
        }
        if self.template != Template::Unused {
            out.push('\n');
        }
        for remark in self.remarks() {
            let _ = writeln!(out, "# {}", remark.replace(['\n', '\r'], " "));
        }
        if let Some(template) = self.go() {
            let _ = writeln!(out, "TEMPLATE \"\"\"{template}\"\"\"");
        }
        out.push('\n');
        if let Some(context) = self.context.filter(|context| *context > CONTEXT) {
            let _ = writeln!(
                out,
                "# The model supports up to {context} tokens of context; more need more memory."
            );
        }
        for (name, value) in self.parameters() {
            let _ = writeln!(out, "PARAMETER {name} {value}");
        }
        out
    }

    /// The file `params`: the parameters as JSON.
    pub(crate) fn params(&self) -> String {
        let mut params = Map::new();
        if !self.stops.is_empty() {
            params.insert("stop".into(), self.stops.clone().into());
        }
        let others = self
            .parameters()
            .into_iter()
            .filter(|(name, _)| *name != "stop");
        params.extend(others.map(|(name, value)| (name.to_owned(), value)));
        let mut text = serde_json::to_string_pretty(&params).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modelfiles_state_their_limitations() {
        let ollama = Ollama {
            template: Template::Unknown("the first\nline".into()),
            stops: vec!["</s>".into(), "a \"b\"".into()],
            context: Some(131_072),
            sampling: vec![("temperature", 0.6.into())],
        };
        let file = ollama.modelfile("a.gguf", None);
        assert!(
            file.contains("FROM ./a.gguf\n\n")
                && !file.contains("TEMPLATE \"")
                && file.contains("the first line.")
        );
        assert!(file.contains(
            "PARAMETER stop \"a \\\"b\\\"\"\nPARAMETER num_ctx 8192\nPARAMETER temperature 0.6\n"
        ));
        assert!(file.contains("up to 131072 tokens"));
        let params: Value = serde_json::from_str(&ollama.params()).unwrap();
        assert_eq!(
            params,
            serde_json::json!({"stop": ["</s>", "a \"b\""], "num_ctx": 8192, "temperature": 0.6})
        );
        let base = Ollama {
            template: Template::Missing,
            stops: vec![],
            context: None,
            sampling: vec![],
        };
        assert!(
            base.modelfile("a.gguf", None)
                .contains("TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n")
        );
        assert!(
            base.modelfile("a.gguf", Some("mmproj-a.gguf"))
                .contains("FROM ./a.gguf\nFROM ./mmproj-a.gguf\n\n")
        );
    }
}
