//! Metadata values as text and JSON.

use quantier_gguf::gguf::{Array, Value, ValueType};
use serde_json::json;

/// A value on one line, shortened.
pub fn shortened(value: &Value<'_>) -> String {
    const SHOWN: usize = 100;
    let text = match value {
        Value::Array(array) => {
            let first: Vec<String> = array
                .strings()
                .map(|s| format!("{:?}", String::from_utf8_lossy(s)))
                .chain(array.values().map(|v| v.to_string()))
                .take(4)
                .collect();
            format!(
                "{value}: {}{}",
                first.join(", "),
                if array.len() > 4 { ", ..." } else { "" }
            )
        }
        other => other.to_string().replace('\n', "\\n"),
    };
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// A value, arrays in full.
pub fn value_json(value: &Value<'_>) -> serde_json::Value {
    match value {
        Value::Bool(v) => json!(v),
        // The shortest decimal number that reads back as this f32.
        Value::F32(v) => json!(v.to_string().parse::<f64>().unwrap_or(f64::NAN)),
        Value::F64(v) => json!(v),
        Value::String(v) => json!(String::from_utf8_lossy(v)),
        Value::Array(array) => array_json(array),
        Value::I8(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::I64(v) => json!(v),
        unsigned => json!(unsigned.as_u64()),
    }
}

fn array_json(array: &Array<'_>) -> serde_json::Value {
    array.elements().map(|value| value_json(&value)).collect()
}

/// Parses `TYPE:VALUE`. The types are GGUF's; `TYPE[]` is an array with its value in JSON.
pub fn typed(text: &str) -> Result<Value<'static>, String> {
    let (kind, value) = text.split_once(':').ok_or("expected TYPE:VALUE")?;
    match kind.strip_suffix("[]") {
        None => scalar(scalar_type(kind)?, value),
        Some(element) => array(scalar_type(element)?, value),
    }
}

fn scalar_type(name: &str) -> Result<ValueType, String> {
    let scalars = || {
        (0..)
            .map_while(ValueType::from_id)
            .filter(|t| *t != ValueType::Array)
    };
    scalars().find(|t| t.name() == name).ok_or_else(|| {
        let names: Vec<_> = scalars().map(ValueType::name).collect();
        format!(
            "'{name}' is not a type; the types are {}, and TYPE[] for arrays",
            names.join(", ")
        )
    })
}

fn scalar(kind: ValueType, text: &str) -> Result<Value<'static>, String> {
    fn number<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
        text.parse().map_err(|e| format!("'{text}': {e}"))
    }
    Ok(match kind {
        ValueType::U8 => Value::U8(number(text)?),
        ValueType::I8 => Value::I8(number(text)?),
        ValueType::U16 => Value::U16(number(text)?),
        ValueType::I16 => Value::I16(number(text)?),
        ValueType::U32 => Value::U32(number(text)?),
        ValueType::I32 => Value::I32(number(text)?),
        ValueType::U64 => Value::U64(number(text)?),
        ValueType::I64 => Value::I64(number(text)?),
        ValueType::F32 => Value::F32(number(text)?),
        ValueType::F64 => Value::F64(number(text)?),
        ValueType::Bool => Value::Bool(
            text.parse()
                .map_err(|_| format!("'{text}' is neither true nor false"))?,
        ),
        ValueType::String => Value::str(text.to_owned()),
        ValueType::Array => return Err("arrays of arrays are not supported".into()),
    })
}

fn array(kind: ValueType, text: &str) -> Result<Value<'static>, String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_str(text).map_err(|e| format!("'{text}' is not a JSON array: {e}"))?;
    let element = |one: &serde_json::Value| match (kind, one) {
        (ValueType::String, serde_json::Value::String(s)) => Ok(Value::str(s.clone())),
        (ValueType::String, other) => Err(format!("{other} is not a string")),
        (_, serde_json::Value::String(s)) => Err(format!("{s:?} is not of type {}", kind.name())),
        (_, other) => scalar(kind, &other.to_string()),
    };
    let values = list.iter().map(element).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::Array(match kind {
        ValueType::String => Array::of_strings(list.iter().filter_map(|s| s.as_str())),
        _ => Array::of_values(kind, values),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_by_type() {
        assert_eq!(typed("u32:7"), Ok(Value::U32(7)));
        assert_eq!(typed("i8:-128"), Ok(Value::I8(-128)));
        assert_eq!(typed("f32:0.1"), Ok(Value::F32(0.1)));
        assert_eq!(typed("str:a:b"), Ok(Value::str("a:b")));
        assert_eq!(typed("str:"), Ok(Value::str("")));
        assert_eq!(
            typed("i32[]:[1, -2]"),
            Ok(Value::Array(Array::of_values(
                ValueType::I32,
                [1, -2].map(Value::I32)
            )))
        );
        assert_eq!(
            typed(r#"str[]:["a", ""]"#),
            Ok(Value::Array(Array::of_strings(["a", ""])))
        );
        for wrong in [
            "7",
            "int:7",
            "u8:256",
            "u32:-1",
            "bool:1",
            "arr:1",
            "arr[]:[]",
            "u32[]:1",
            "u32[]:[\"1\"]",
            "str[]:[1]",
        ] {
            assert!(typed(wrong).is_err(), "{wrong}");
        }
    }
}
