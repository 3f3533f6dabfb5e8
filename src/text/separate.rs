//! The texts of a file for embedding models, each of which is embedded by itself.

/// The texts of a file: separated by empty lines or form feeds; in a file with neither, one for each line. White space
/// around a text does not count, and a text without anything else is none.
pub(crate) fn separate(content: &str) -> Vec<&str> {
    let mut texts: Vec<&str> = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in content.split_inclusive('\n') {
        if line.trim().is_empty() {
            texts.push(&content[start..at]);
            start = at + line.len();
        }
        at += line.len();
    }
    texts.push(&content[start..]);
    texts.retain(|text| !text.trim().is_empty());
    let trimmed = content.trim();
    let is_divided = trimmed.split('\n').any(|line| line.trim().is_empty());
    match is_divided {
        true => texts.into_iter().map(str::trim).collect(),
        false => trimmed
            .split('\n')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_or_lines_separate_texts() {
        assert_eq!(separate("one\ntwo\r\nthree\n"), ["one", "two", "three"]);
        assert_eq!(
            separate("one\nline\n\n \ntwo\n\x0c\nthree"),
            ["one\nline", "two", "three"]
        );
        assert_eq!(separate("\n\none\n\n"), ["one"]);
        assert_eq!(separate("\none\ntwo\n\n"), ["one", "two"]);
        assert!(separate(" \n\n").is_empty() && separate("").is_empty());
    }
}
