//! The model card: the YAML between the first two `---` lines of `README.md`.

use crate::format::Result;
use crate::tokenizer::files::{bad, read_text};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// The most nodes that a card may have when its aliases are written out. Cards have hundreds.
const MAX_NODES: usize = 100_000;
/// The largest depth of nested lists and maps.
const MAX_DEPTH: usize = 64;

/// Reads the card of a checkpoint; empty if there is none.
pub(super) fn read(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("README.md");
    let Some(text) = read_text(&path)? else {
        return Ok(Map::new());
    };
    match front_matter(&text) {
        None => Ok(Map::new()),
        Some(yaml) => match parse(&yaml) {
            Ok(Value::Object(card)) => Ok(card),
            // A card that is no map says nothing.
            Ok(_) => Ok(Map::new()),
            Err((line, what)) => Err(bad(
                &path,
                format!("the metadata at its start is not valid YAML: line {line}: {what}"),
            )),
        },
    }
}

/// Where Python's `splitlines` ends a line.
const LINE_ENDS: [char; 9] = [
    '\n', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
];

/// The YAML of a card, with the two corrections that the reference makes: Norwegian (`no`) in a
/// list is no truth value, and a tab is two spaces.
fn front_matter(text: &str) -> Option<String> {
    let mut lines = text.split(LINE_ENDS);
    if lines.next() != Some("---") {
        return None;
    }
    let mut yaml = String::new();
    for line in lines.take_while(|line| *line != "---") {
        yaml += line;
        yaml.push('\n');
    }
    Some(yaml.replace("- no\n", "- \"no\"\n").replace('\t', "  "))
}

/// Line (in the file, where one line precedes) and what is wrong.
type Wrong = (usize, String);

/// Parses YAML as PyYAML's safe loader does, as far as JSON has the values; dates and numbers in
/// other bases stay text.
fn parse(yaml: &str) -> std::result::Result<Value, Wrong> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(yaml) {
        let (event, span) = event.map_err(|e| (e.marker().line() + 1, e.info().to_owned()))?;
        builder
            .take(event)
            .map_err(|what| (span.start.line() + 1, what))?;
    }
    Ok(builder.root.unwrap_or(Value::Null))
}

/// A list or map that is not closed yet.
enum Open {
    List(Vec<Value>),
    /// The entries, and the key whose value comes next.
    Map(Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Builder {
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Value>,
    nodes: usize,
    root: Option<Value>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) -> std::result::Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text =
                    style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str");
                let value = if is_text {
                    Value::from(text.as_ref())
                } else {
                    resolve(&text)
                };
                self.close(value, anchor)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => self.begin(Open::Map(Map::new(), None), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(list), anchor)) => self.close(Value::Array(list), anchor),
                Some((Open::Map(map, _), anchor)) => self.close(Value::Object(map), anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let value = self
                    .anchors
                    .get(&anchor)
                    .cloned()
                    .ok_or("an alias of a node that is not complete")?;
                self.nodes += size(&value);
                self.close(value, 0)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, anchor: usize) -> std::result::Result<(), String> {
        if self.open.len() == MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} levels"));
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn close(&mut self, value: Value, anchor: usize) -> std::result::Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values"));
        }
        if anchor > 0 {
            self.nodes += size(&value);
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.root = self.root.take().or(Some(value)),
            Some((Open::List(list), _)) => list.push(value),
            Some((Open::Map(map, key), _)) => match key.take() {
                None => {
                    *key = Some(
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned),
                    )
                }
                Some(key) if key == "<<" => merge(map, value),
                Some(key) => {
                    map.insert(key, value);
                }
            },
        }
        Ok(())
    }
}

/// Adds the entries of a merge key: those of a map, or of maps in a list, that are not there.
fn merge(map: &mut Map<String, Value>, merged: Value) {
    match merged {
        Value::Object(entries) => {
            for (key, value) in entries {
                map.entry(key).or_insert(value);
            }
        }
        Value::Array(list) => list.into_iter().for_each(|entries| merge(map, entries)),
        _ => {}
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// The value of a plain scalar in YAML 1.1.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(text).unwrap_or_else(|| Value::from(text)),
    }
}

/// A decimal number in YAML 1.1: digits may be parted by `_`, a fraction needs its point, an
/// exponent its sign.
fn number(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let begins = unsigned.starts_with(|c: char| c.is_ascii_digit());
    let plain = text.replace('_', "");
    match unsigned.split_once('.') {
        None if begins && digits(unsigned) && (unsigned == "0" || !unsigned.starts_with('0')) => {
            plain
                .trim_start_matches('+')
                .parse::<i64>()
                .ok()
                .map(Value::from)
        }
        Some((whole, fraction))
            if digits(whole) && (begins || (text == unsigned && !fraction.starts_with('_'))) =>
        {
            let (fraction, exponent) =
                fraction.split_at(fraction.find(['e', 'E']).unwrap_or(fraction.len()));
            let signed = exponent.get(1..).and_then(|e| e.strip_prefix(['-', '+']));
            let right = exponent.is_empty()
                || signed.is_some_and(|e| !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit()));
            let has_digits = begins || !fraction.is_empty();
            (digits(fraction) && right && has_digits)
                .then(|| plain.parse::<f64>().ok().map(Value::from))?
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_are_those_of_yaml_1_1() {
        for (text, value) in [
            ("yes", json!(true)),
            ("off", json!(false)),
            ("~", json!(null)),
            ("12", json!(12)),
            ("1_000", json!(1000)),
            ("1.0", json!(1.0)),
            ("1.5e+3", json!(1500.0)),
            ("1.5e3", json!("1.5e3")),
            ("1e5", json!("1e5")),
            (".5", json!(0.5)),
            (".", json!(".")),
            ("v1.0", json!("v1.0")),
            ("1.2.3", json!("1.2.3")),
            ("mit", json!("mit")),
            ("2024-01-01", json!("2024-01-01")),
            ("012", json!("012")),
        ] {
            assert_eq!(resolve(text), value, "{text}");
        }
    }

    #[test]
    fn a_card_is_read_between_its_lines() {
        let yaml = front_matter(
            "---\nlicense: mit\nlanguage:\n- en\n- no\ntags: [a, 'yes', \"1\"]\n\tx: 1\n---\n# y: z\n",
        );
        assert!(yaml.is_some());
        let card = parse("license: mit\nlanguage:\n- en\n- \"no\"\ntags: [a, 'yes', \"1\"]\ntext: |\n  two\n  lines\n")
            .unwrap();
        assert_eq!(
            card,
            json!({"license": "mit", "language": ["en", "no"], "tags": ["a", "yes", "1"], "text": "two\nlines\n"})
        );
        assert_eq!(front_matter("# no card\n---\n"), None);
        assert_eq!(
            parse("a: &x {b: 1}\nc: {<<: *x, d: 2}\n").unwrap()["c"],
            json!({"b": 1, "d": 2})
        );
    }

    #[test]
    fn bad_cards_say_where() {
        let (line, _) = parse("a: 1\nb: [1, 2\nc: }\n").unwrap_err();
        assert!((2..=5).contains(&line), "{line}");
        // Nine levels of nine aliases are 9^9 nodes.
        let mut bomb = "a0: &a0 x\n".to_owned();
        for i in 1..10 {
            bomb += &format!(
                "a{i}: &a{i} [{}]\n",
                vec![format!("*a{}", i - 1); 9].join(", ")
            );
        }
        assert!(parse(&bomb).unwrap_err().1.contains("more than"));
        assert!(parse(&"[".repeat(10_000)).is_err());
    }
}
