//! YAML front matter of a model card, which the Hub displays and indexes.

use super::facts::Facts;
use std::fmt::Write;

/// The front matter with its `---` lines.
pub(crate) fn front_matter(facts: &Facts) -> String {
    let mut out = String::from("---\n");
    let mut pair = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = writeln!(out, "{key}: {}", scalar(value));
        }
    };
    pair("base_model", facts.base_model.as_deref());
    pair(
        "base_model_relation",
        facts.base_model.as_ref().map(|_| "quantized"),
    );
    pair("quantized_by", facts.quantized_by.as_deref());
    pair("library_name", Some("gguf"));
    pair("pipeline_tag", Some(&facts.pipeline_tag));
    if let Some(license) = &facts.license {
        pair("license", Some(&license.id));
        pair("license_name", license.name.as_deref());
        pair("license_link", license.link.as_deref());
    }
    for (key, list) in [("language", &facts.languages), ("tags", &facts.tags)] {
        if !list.is_empty() {
            let _ = writeln!(out, "{key}:");
        }
        for value in list {
            let _ = writeln!(out, "- {}", scalar(value));
        }
    }
    out.push_str("---\n");
    out
}

/// A YAML scalar with this exact text: plain if unambiguous in all YAML versions (Norwegian, `no`,
/// is false in some), otherwise quoted as in JSON.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let words = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    match starts && text.chars().all(plain) && !words.contains(&&*text.to_lowercase()) {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_text() {
        assert_eq!(scalar("apache-2.0"), "apache-2.0");
        assert_eq!(scalar("no"), "\"no\"");
        assert_eq!(scalar("1.0"), "\"1.0\"");
        assert_eq!(scalar("a: \"b\" # c\n"), "\"a: \\\"b\\\" # c\\n\"");
    }
}
