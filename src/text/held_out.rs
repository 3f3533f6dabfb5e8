//! The division of a text into a part for calibration and a part that is held out.

use serde::Serialize;

/// A named text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    /// Name of the text.
    pub name: String,
    /// The whole text.
    pub content: String,
    /// Its kind.
    #[serde(skip_serializing_if = "Kind::is_plain")]
    pub kind: Kind,
}

/// The kind of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Plain text.
    #[default]
    Plain,
    /// Conversations in JSONL, to be rendered by the model's chat template.
    Conversations,
}

impl Kind {
    fn is_plain(&self) -> bool {
        *self == Kind::Plain
    }
}

/// Suffix of the name of a held-out part.
pub(crate) const HELD_OUT: &str = " (held out)";

/// Number of parts of a divided text; one in five is held out.
const PARTS: usize = 40;
const HELD_OUT_EVERY: usize = 5;

impl Text {
    /// A plain text.
    pub fn plain(name: &str, content: String) -> Text {
        Text {
            name: name.into(),
            content,
            kind: Kind::Plain,
        }
    }

    /// The text without about a fifth of it, and that fifth, spread over the text, without a common
    /// paragraph.
    pub fn hold_out(&self) -> (Text, Text) {
        let (kept, held_out) = split(&self.content);
        let kept = Text {
            name: self.name.clone(),
            content: kept,
            kind: self.kind,
        };
        let held_out = Text {
            name: format!("{}{HELD_OUT}", self.name),
            content: held_out,
            kind: self.kind,
        };
        (kept, held_out)
    }
}

/// Divides a text into two without a common paragraph. The second has about a fifth, spread over
/// the text. Parts end at form feeds if there are enough, otherwise at empty lines, otherwise at
/// the ends of lines.
fn split(text: &str) -> (String, String) {
    let mut pieces = ["\n\x0c\n", "\n\n", "\n"]
        .iter()
        .map(|end| text.split_inclusive(end).collect::<Vec<_>>());
    let pieces = pieces
        .clone()
        .find(|p| p.len() >= PARTS)
        .or_else(|| pieces.next_back())
        .unwrap_or_default();
    let (mut kept, mut held_out) = (String::new(), String::new());
    let mut before = 0;
    for piece in pieces {
        let part = before * PARTS / text.len().max(1);
        before += piece.len();
        let to = if part % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 {
            &mut held_out
        } else {
            &mut kept
        };
        to.push_str(piece);
    }
    (kept, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint() {
        for end in ["\n\x0c\n", "\n\n", "\n"] {
            let pieces: Vec<String> = (0..500)
                .map(|i| format!("piece {i} of the text{end}"))
                .collect();
            let (kept, held_out) = split(&pieces.concat());
            assert_eq!(kept.len() + held_out.len(), pieces.concat().len());
            let share = held_out.len() as f64 / (kept.len() + held_out.len()) as f64;
            assert!((0.15..0.25).contains(&share), "{share}");
            for piece in &pieces {
                assert!(
                    kept.contains(piece.as_str()) != held_out.contains(piece.as_str()),
                    "{piece}"
                );
            }
        }
        assert_eq!(
            split("one line without an end"),
            ("one line without an end".into(), String::new())
        );
        assert_eq!(split(""), (String::new(), String::new()));
    }
}
