//! Conversations in JSONL, as fine-tuning data has them, and their tokens.
//!
//! ```json
//! {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
//! ```
//!
//! `messages` may have `tool_calls`, `reasoning_content` and whatever else the template reads; beside them,
//! `tools` has function descriptions in OpenAI's format and `chat_template_kwargs` further variables of the
//! template.
//!
//! The assistant's tokens are those that it generates: after the prompt for its turn, up to the end of that turn.
//! They are found by rendering the conversation up to there, so that every template works. Templates may render
//! earlier turns differently from the last one (Qwen 3 drops their reasoning): a turn whose rendering does not
//! continue that of the earlier ones becomes a sequence of its own, as it is at run time.

use super::template::{ChatTemplate, Variables};
use quantier_tokenizer::Tokenizer;
use serde_json::{Map, Value};
use std::ops::Range;

/// Errors of a file of conversations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Error {
    /// The line, counted from 1.
    pub line: usize,
    /// The error.
    pub what: String,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Its line, counted from 1.
    pub line: usize,
    messages: Vec<Value>,
    tools: Option<Value>,
    variables: Map<String, Value>,
}

/// Reads conversations, one per line; blank lines are skipped.
///
/// # Errors
/// A line that is no JSON object, has no messages, or messages without a role; no conversations.
pub fn read(text: &str) -> Result<Vec<Conversation>, Error> {
    let mut all = Vec::new();
    for (i, text) in text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let line = i + 1;
        all.push(conversation(line, text).map_err(|what| Error { line, what })?);
    }
    match all.is_empty() {
        true => Err(Error {
            line: 1,
            what: "no conversations; each line is an object such as {\"messages\": [...]}".into(),
        }),
        false => Ok(all),
    }
}

fn conversation(line: usize, text: &str) -> Result<Conversation, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut object) = value else {
        return Err("not an object such as {\"messages\": [...]}".into());
    };
    let Some(Value::Array(messages)) = object.remove("messages") else {
        return Err("no array \"messages\"".into());
    };
    if messages.is_empty() {
        return Err("\"messages\" is empty".into());
    }
    for (i, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str);
        let role = role.ok_or_else(|| format!("message {}: no \"role\"", i + 1))?;
        let has_content = message
            .get("content")
            .is_some_and(|content| !content.is_null());
        let calls = role == "assistant" && message.get("tool_calls").is_some();
        if !(has_content || calls) {
            return Err(format!("message {} ({role}): no \"content\"", i + 1));
        }
    }
    let tools = match object.remove("tools") {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) if tools.is_empty() => None,
        Some(Value::Array(tools)) => Some(Value::Array(tools)),
        Some(_) => return Err("\"tools\" is not an array".into()),
    };
    let variables = match object.remove("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(_) => return Err("\"chat_template_kwargs\" is not an object".into()),
    };
    Ok(Conversation {
        line,
        messages,
        tools,
        variables,
    })
}

/// Tokens of a rendered conversation, or of a part of it that the template renders by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// All tokens, with BOS if the vocabulary adds it.
    pub tokens: Vec<u32>,
    /// Ranges of the assistant's tokens, ascending.
    pub assistant: Vec<Range<usize>>,
}

/// Renders conversations for a model.
pub struct Renderer<'a> {
    /// Its template.
    pub template: &'a ChatTemplate,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl Renderer<'_> {
    /// The tokens of a whole conversation.
    ///
    /// # Errors
    /// A conversation that the template rejects or cannot render, with its line and the template's.
    pub fn tokens(&self, conversation: &Conversation) -> Result<Vec<u32>, Error> {
        self.rendered(conversation, conversation.messages.len(), false)
    }

    /// True if a line is a conversation that the template renders.
    pub fn takes(&self, line: &str) -> bool {
        let read = read(line);
        read.is_ok_and(|all| all.iter().all(|one| self.tokens(one).is_ok()))
    }

    /// The sequences of a conversation that have its assistant's turns, each turn once. The first turns of a
    /// sequence are those of an earlier one where the template renders them differently by then.
    ///
    /// # Errors
    /// As [`Renderer::tokens`]; a conversation without an assistant's message, or a template that leaves one out.
    pub fn turns(&self, conversation: &Conversation) -> Result<Vec<Rendered>, Error> {
        let mut all: Vec<Rendered> = Vec::new();
        for (turn, message) in conversation.messages.iter().enumerate() {
            if message.get("role").and_then(Value::as_str) != Some("assistant") {
                continue;
            }
            let prompt = self.rendered(conversation, turn, true)?;
            let tokens = self.rendered(conversation, turn + 1, false)?;
            let same = prompt.iter().zip(&tokens).take_while(|(a, b)| a == b);
            let scored = same.count()..tokens.len();
            if scored.is_empty() {
                let what = format!("the template leaves out message {}", turn + 1);
                return Err(conversation.error(what));
            }
            match all
                .last_mut()
                .filter(|last| tokens.starts_with(&last.tokens))
            {
                Some(last) => {
                    last.tokens = tokens;
                    last.assistant.push(scored);
                }
                None => all.push(Rendered {
                    tokens,
                    assistant: vec![scored],
                }),
            }
        }
        match all.is_empty() {
            true => Err(conversation.error("no message of the assistant to score".into())),
            false => Ok(all),
        }
    }

    /// Tokens of the first messages; with `generate`, up to the beginning of the assistant's turn.
    fn rendered(
        &self,
        conversation: &Conversation,
        messages: usize,
        generate: bool,
    ) -> Result<Vec<u32>, Error> {
        let messages = &conversation.messages[..messages];
        let messages = messages.iter().map(|message| self.adapted(message));
        let mut messages: Vec<Value> = messages.collect();
        if !self.template.takes_system {
            merge_system(&mut messages);
        }
        // As llama.cpp's server does, but for the day: that of `strftime_now`.
        let mut own = Map::from_iter([
            ("enable_thinking".to_owned(), Value::Bool(true)),
            ("date_string".to_owned(), "26 Jul 2024".into()),
            ("datetime".to_owned(), "Jul 26 2024".into()),
        ]);
        own.extend(conversation.variables.clone());
        let text = self.template.text(&Variables {
            messages: &messages,
            tools: conversation.tools.as_ref(),
            generate,
            own: Some(&own),
        });
        let text = text.map_err(|what| conversation.error(format!("the chat template: {what}")))?;
        let [bos, eos] = self.template.ends();
        // The tokenizer adds these by itself.
        let mut text = &*text;
        if self.tokenizer.adds_bos() && !bos.is_empty() {
            text = text.strip_prefix(bos).unwrap_or(text);
        }
        if self.tokenizer.adds_eos() && !eos.is_empty() {
            text = text.strip_suffix(eos).unwrap_or(text);
        }
        Ok(self.tokenizer.encode(text, true, true))
    }

    /// A message as the template reads it: arguments of function calls as objects if it takes these, text in place
    /// of the missing content of function calls.
    fn adapted(&self, message: &Value) -> Value {
        let mut message = message.clone();
        let Some(object) = message.as_object_mut() else {
            return message;
        };
        let Some(calls) = object.get_mut("tool_calls").and_then(Value::as_array_mut) else {
            return message;
        };
        if self.template.takes_objects {
            let functions = calls.iter_mut().filter_map(|call| call.get_mut("function"));
            for arguments in functions.filter_map(|function| function.get_mut("arguments")) {
                let parsed = arguments
                    .as_str()
                    .and_then(|text| serde_json::from_str(text).ok());
                if let Some(parsed @ Value::Object(_)) = parsed {
                    *arguments = parsed;
                }
            }
        }
        let content = object.entry("content").or_insert(Value::Null);
        if content.is_null() {
            *content = Value::String(String::new());
        }
        message
    }
}

/// Puts the text of a leading system message before that of the next message, as llama.cpp does for templates
/// without a system role.
fn merge_system(messages: &mut Vec<Value>) {
    let text = |message: Option<&Value>| -> Option<String> {
        Some(message?.get("content")?.as_str()?.to_owned())
    };
    let role = messages.first().and_then(|message| message.get("role"));
    let is_system = role.and_then(Value::as_str) == Some("system");
    let both = (text(messages.first()), text(messages.get(1)));
    if let (true, (Some(system), Some(next))) = (is_system, both) {
        messages.remove(0);
        messages[0]["content"] = Value::String(format!("{system}\n{next}"));
    }
}

impl Conversation {
    fn error(&self, what: String) -> Error {
        Error {
            line: self.line,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_in_errors() {
        for (text, part) in [
            ("\n{", "line 2: not JSON"),
            ("[]", "line 1: not an object"),
            ("{\"messages\": []}", "\"messages\" is empty"),
            ("{\"text\": \"a\"}", "no array \"messages\""),
            (
                "{\"messages\": [{\"content\": \"a\"}]}",
                "message 1: no \"role\"",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": null}]}",
                "message 1 (user): no \"content\"",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": {}}",
                "\"tools\" is not an array",
            ),
            ("\n\n", "no conversations"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let calls = "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": []}]}\n\n";
        assert_eq!(read(calls).unwrap().len(), 1);
    }
}
