//! What Ollama is told of a model: a Modelfile for each GGUF, and the files `template` and `params`
//! that it reads from a repository of the Hub.

use super::go_template::{PLAIN, go_template};
use super::turns::{System, Turns};
use serde_json::{Map, Value};
use std::fmt::Write;

/// Tokens of context that Ollama is told to keep, if the model has as many: its own default is
/// less, and the KV cache of all that a model could take is more than most machines have.
const CONTEXT: u64 = 8192;

/// What the chat template came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// There is none.
    Missing,
    /// It was taken apart.
    Derived(Box<Turns>),
    /// It was not; the reason.
    Unknown(String),
}

/// What Ollama is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Ollama {
    /// The chat template.
    pub template: Template,
    /// Words that end an answer.
    pub stops: Vec<String>,
    /// Tokens of context that the model was made for.
    pub context: Option<u64>,
    /// How the model wants to be sampled, under Ollama's names.
    pub sampling: Vec<(&'static str, Value)>,
}

impl Ollama {
    /// Go's template; None where Ollama has to find one by itself.
    pub(crate) fn go(&self) -> Option<String> {
        match &self.template {
            Template::Derived(turns) => Some(go_template(turns)),
            Template::Missing => Some(PLAIN.into()),
            Template::Unknown(_) => None,
        }
    }

    /// What a reader should know of the template, in sentences.
    pub(crate) fn remarks(&self) -> Vec<String> {
        match &self.template {
            Template::Missing => vec!["The model has no chat template: it continues texts.".into()],
            Template::Unknown(why) => vec![
                format!(
                    "The model's chat template could not be turned into one of Ollama's: {why}."
                ),
                "Ollama looks for one that it knows by itself; add a TEMPLATE if it finds none."
                    .into(),
            ],
            Template::Derived(turns) => {
                let family = turns.family().name();
                let mut remarks = vec![format!(
                    "The template was derived from the model's own ({family}), and renders the same conversations alike."
                )];
                if turns.system == System::None {
                    remarks
                        .push("The model's own takes no system prompt: one is put before the first question.".into());
                }
                if turns.trims {
                    remarks.push("The model's own cuts blanks around messages away, which this one cannot do.".into());
                }
                remarks.push("Calls of tools are not in it.".into());
                remarks
            }
        }
    }

    /// The parameters: name and value.
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

    /// The Modelfile for a GGUF in the same directory.
    pub(crate) fn modelfile(&self, gguf: &str) -> String {
        let mut out = format!("# ollama create NAME -f THIS_FILE\nFROM ./{gguf}\n\n");
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
                "# The model can have up to {context} tokens of context; more take more memory."
            );
        }
        for (name, value) in self.parameters() {
            let _ = writeln!(out, "PARAMETER {name} {value}");
        }
        out
    }

    /// The file `params`: the same as JSON.
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
    fn a_modelfile_says_what_it_could_not_do() {
        let ollama = Ollama {
            template: Template::Unknown("the first\nline".into()),
            stops: vec!["</s>".into(), "a \"b\"".into()],
            context: Some(131_072),
            sampling: vec![("temperature", 0.6.into())],
        };
        let file = ollama.modelfile("a.gguf");
        assert!(
            file.contains("FROM ./a.gguf\n")
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
            base.modelfile("a.gguf")
                .contains("TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n")
        );
    }
}
