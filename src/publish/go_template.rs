//! Ollama's template of a model: Go's text/template over `.Messages`, built from the pieces of
//! [`Turns`].
//!
//! Every piece is a quoted string, so that Go's whitespace rules keep all blanks.

use super::turns::{System, Turns, Within};
use std::fmt::Write;

/// Template of a model without a chat template: the bare prompt.
pub(crate) const PLAIN: &str = "{{ .Prompt }}";

/// Builds the template.
///
/// A final assistant message is continued, as in Ollama. If the model's template has no place for a
/// system text, it precedes the first user text, separated by an empty line.
pub fn go_template(turns: &Turns) -> String {
    let mut out = String::new();
    let is = |role: &str| format!("if eq .Role {}", quoted(role));
    let without = Within {
        open: String::new(),
        close: "\n\n".into(),
    };
    let within = match &turns.system {
        System::Turn { .. } => None,
        System::First(within) => Some((within, true)),
        System::Last(within) => Some((within, false)),
        System::None => Some((&without, true)),
    };
    let user = match within {
        Some((_, true)) => "if and (eq .Role \"user\") (lt $user 0)",
        _ => "if eq .Role \"user\"",
    };
    // The system text is needed before its turn, if it has one.
    if within.is_some() || !turns.default_system.is_empty() {
        line(&mut out, &["$system := \"\"".into()]);
        if within.is_some() {
            line(&mut out, &["$user := -1".into()]);
        }
        line(&mut out, &["range $i, $m := .Messages".into()]);
        line(
            &mut out,
            &[is("system"), "$system = .Content".into(), "end".into()],
        );
        if within.is_some() {
            line(&mut out, &[user.into(), "$user = $i".into(), "end".into()]);
        }
        line(&mut out, &["end".into()]);
    }
    line(&mut out, &[piece(&turns.start)]);
    if !turns.default_system.is_empty() {
        line(
            &mut out,
            &[
                "if not $system".into(),
                piece(&turns.default_system),
                "end".into(),
            ],
        );
    }
    line(&mut out, &["range $i, $m := .Messages".into()]);
    line(
        &mut out,
        &["$last := eq (len (slice $.Messages $i)) 1".into()],
    );
    let mut first = "if";
    if let System::Turn { open, close } = &turns.system {
        line(
            &mut out,
            &[is("system"), piece(open), ".Content".into(), piece(close)],
        );
        first = "else if";
    }
    let mut said = vec![format!("{first} eq .Role \"user\""), piece(&turns.user.0)];
    if let Some((within, _)) = within {
        said.push("if and $system (eq $i $user)".into());
        said.extend([
            piece(&within.open),
            "$system".into(),
            piece(&within.close),
            "end".into(),
        ]);
    }
    said.extend([".Content".into(), piece(&turns.user.1)]);
    line(&mut out, &said);
    let (open, close) = &turns.assistant;
    let ended = if close.is_empty() {
        vec![]
    } else {
        vec!["if not $last".into(), piece(close), "end".into()]
    };
    let answer = [
        format!("else {}", is("assistant")),
        piece(open),
        ".Content".into(),
    ];
    line(&mut out, &[answer.to_vec(), ended].concat());
    line(&mut out, &["end".into()]);
    if !turns.generation.is_empty() {
        line(
            &mut out,
            &[
                "if and $last (ne .Role \"assistant\")".into(),
                piece(&turns.generation),
                "end".into(),
            ],
        );
    }
    out += "{{- end }}";
    out
}

/// Actions on one line; empty ones are omitted.
fn line(out: &mut String, actions: &[String]) {
    let mut trimmed = "{{- ";
    let mut any = false;
    for action in actions.iter().filter(|action| !action.is_empty()) {
        let _ = write!(out, "{trimmed}{action} }}}}");
        (trimmed, any) = ("{{ ", true);
    }
    if any {
        out.push('\n');
    }
}

/// Action that writes a piece; empty for an empty piece.
fn piece(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        quoted(text)
    }
}

/// A Go string literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            '\t' => out += "\\t",
            '\r' => out += "\\r",
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_for_go() {
        assert_eq!(quoted("a\"b\\\n\u{1}ü"), r#""a\"b\\\n\u0001ü""#);
    }

    #[test]
    fn generated_templates_are_readable() {
        let turns = Turns {
            start: String::new(),
            default_system: String::new(),
            system: System::Turn {
                open: "<|im_start|>system\n".into(),
                close: "<|im_end|>\n".into(),
            },
            user: ("<|im_start|>user\n".into(), "<|im_end|>\n".into()),
            assistant: ("<|im_start|>assistant\n".into(), "<|im_end|>\n".into()),
            generation: "<|im_start|>assistant\n".into(),
            trims: false,
        };
        let expected = r#"{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "system" }}{{ "<|im_start|>system\n" }}{{ .Content }}{{ "<|im_end|>\n" }}
{{- else if eq .Role "user" }}{{ "<|im_start|>user\n" }}{{ .Content }}{{ "<|im_end|>\n" }}
{{- else if eq .Role "assistant" }}{{ "<|im_start|>assistant\n" }}{{ .Content }}{{ if not $last }}{{ "<|im_end|>\n" }}{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}{{ "<|im_start|>assistant\n" }}{{ end }}
{{- end }}"#;
        assert_eq!(go_template(&turns), expected);
    }
}
