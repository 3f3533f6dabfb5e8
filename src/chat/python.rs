//! Python's notation of values in templates, which are written for Jinja in Python: `tojson` as `json.dumps`
//! writes, `str()` of values, and `strftime_now`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::fmt::Write as _;
use std::io;

/// The date in renderings: a Friday. A fixed one, so that results do not depend on the day; the templates of
/// Llama 3 have it as their default.
const TODAY: [(char, &str); 14] = [
    ('Y', "2024"),
    ('y', "24"),
    ('m', "07"),
    ('d', "26"),
    ('e', "26"),
    ('j', "208"),
    ('B', "July"),
    ('b', "Jul"),
    ('A', "Friday"),
    ('a', "Fri"),
    ('H', "12"),
    ('M', "00"),
    ('S', "00"),
    ('%', "%"),
];

/// Most spaces of an indentation.
const MOST_INDENT: usize = 16;

/// Adds the filters, functions and the notation of output to an environment.
pub(super) fn extend(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: Value| text(&value));
    environment.add_function("strftime_now", strftime_now);
    environment.set_formatter(|output: &mut Output, _: &State, value: &Value| {
        output.write_str(&text(value))?;
        Ok(())
    });
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = rest.next();
        let part = TODAY.iter().find(|(key, _)| Some(*key) == code);
        let part = part.ok_or_else(|| {
            let what = format!("strftime_now does not know the format {format:?}");
            Error::new(ErrorKind::InvalidOperation, what)
        })?;
        out.push_str(part.1);
    }
    Ok(out)
}

/// `json.dumps(value, ensure_ascii=False)`.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Text is not changed for HTML anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let part = |at: usize| -> Result<Option<String>, Error> {
        let Some(both) = &separators else {
            return Ok(None);
        };
        let part = both.get_item_by_index(at)?;
        Ok(part.as_str().map(str::to_owned))
    };
    let json = match indent {
        Some(indent) if indent <= MOST_INDENT => {
            let indent = " ".repeat(indent);
            written(value, PrettyFormatter::with_indent(indent.as_bytes()))?
        }
        Some(indent) => {
            let what = format!("an indentation of {indent} spaces");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        None => {
            let item = part(0)?.unwrap_or_else(|| ", ".into());
            let key = part(1)?.unwrap_or_else(|| ": ".into());
            written(value, Spaced { item, key })?
        }
    };
    Ok(Value::from_safe_string(json))
}

fn written(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, formatter);
    let bad = |what: String| Error::new(ErrorKind::BadSerialization, what);
    value
        .serialize(&mut serializer)
        .map_err(|error| bad(error.to_string()))?;
    String::from_utf8(out).map_err(|error| bad(error.to_string()))
}

/// JSON on one line with these separators.
struct Spaced {
    item: String,
    key: String,
}

impl Spaced {
    fn between<W: io::Write + ?Sized>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        match first {
            true => Ok(()),
            false => writer.write_all(self.item.as_bytes()),
        }
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.between(writer, first)
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.between(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// `str(value)`.
fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => match value.is_true() {
            true => "True".into(),
            false => "False".into(),
        },
        ValueKind::Seq | ValueKind::Map => {
            let mut out = String::new();
            represent(value, &mut out);
            out
        }
        _ => value.to_string(),
    }
}

/// Appends `repr(value)`.
fn represent(value: &Value, out: &mut String) {
    let items = || value.try_iter().into_iter().flatten().enumerate();
    match value.kind() {
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in items() {
                out.push_str(if i == 0 { "" } else { ", " });
                represent(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in items() {
                out.push_str(if i == 0 { "" } else { ", " });
                represent(&key, out);
                out.push_str(": ");
                represent(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => out.push_str(&text(value)),
    }
}

/// Appends a string literal: with single quotes, unless it contains these and no double ones.
fn quoted(text: &str, out: &mut String) {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        extend(&mut environment);
        let value = serde_json::json!({
            "b": 1, "a": ["x'y", "\"", true, null, 1.5, {}], "c": { "é\n": "<&>" },
        });
        environment.render_str(source, minijinja::context! { v => value })
    }

    /// As Python writes them: json.dumps(v, ensure_ascii=False), and with indent=2.
    #[test]
    fn json_is_that_of_python() {
        assert_eq!(
            rendered("{{ v | tojson }}").unwrap(),
            r#"{"b": 1, "a": ["x'y", "\"", true, null, 1.5, {}], "c": {"é\n": "<&>"}}"#
        );
        assert_eq!(
            rendered("{{ v.c | tojson(indent=2) }}").unwrap(),
            "{\n  \"é\\n\": \"<&>\"\n}"
        );
        assert_eq!(
            rendered("{{ [1, 2] | tojson(separators=(',', ':')) }}").unwrap(),
            "[1,2]"
        );
        assert!(rendered("{{ v | tojson(indent=999) }}").is_err());
    }

    #[test]
    fn values_print_as_in_python() {
        assert_eq!(
            rendered("{{ v }} {{ none }} {{ true }} {{ v.a[0] }}").unwrap(),
            r#"{'b': 1, 'a': ["x'y", '"', True, None, 1.5, {}], 'c': {'é\n': '<&>'}} None True x'y"#
        );
    }

    #[test]
    fn dates_are_fixed() {
        assert_eq!(
            rendered("{{ strftime_now('%d %b %Y, %A') }}").unwrap(),
            "26 Jul 2024, Friday"
        );
        assert!(rendered("{{ strftime_now('%Q') }}").is_err());
    }
}
