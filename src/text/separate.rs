//! The texts of a file for embedding models, each of which is embedded by itself.

/// The texts of a file: separated by empty lines or form feeds; in a file with neither, one for each line. White space
/// around a text does not count, and a text without anything else is none.
pub(crate) fn separate(content: &str) -> Vec<&str> {
    let content = content.trim();
    let is_blank = |line: &str| line.trim().is_empty();
    if !content.split('\n').any(is_blank) {
        return content.split('\n').map(str::trim).collect();
    }
    let mut texts: Vec<&str> = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in content.split_inclusive('\n') {
        if is_blank(line) {
            texts.push(&content[start..at]);
            start = at + line.len();
        }
        at += line.len();
    }
    texts.push(&content[start..]);
    let texts = texts.into_iter().map(str::trim);
    texts.filter(|text| !text.is_empty()).collect()
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
