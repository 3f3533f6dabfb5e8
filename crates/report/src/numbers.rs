//! Formatting of numbers and names.

pub use quantier_core::words::{Unit, size};

/// Number of weights: `6.84 M`, `8.03 B`.
pub fn weights(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// Count with thousands separators: `6,843,392`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Decimals needed for `significant` digits of `x`, at most 7; none if more are needed or x is not
/// finite.
fn decimals(x: f64, significant: i32) -> Option<usize> {
    if x == 0.0 {
        return Some(significant as usize);
    }
    let wanted = significant - 1 - x.abs().log10().floor() as i32;
    (x.is_finite() && wanted <= 7).then_some(wanted.max(0) as usize)
}

/// Nats with three significant digits: `0.0180`, `2.1e-7`.
pub fn nats(x: f64) -> String {
    match decimals(x, 3) {
        Some(digits) => format!("{x:.digits$}"),
        None => format!("{x:.1e}"),
    }
}

/// A value and its standard error, which has two significant digits: `0.01803` and `0.00018`.
/// Without an error, three significant digits.
pub fn figure(value: f64, uncertainty: Option<f64>) -> (String, Option<String>) {
    match uncertainty
        .filter(|u| *u > 0.0)
        .and_then(|u| Some((u, decimals(u, 2)?)))
    {
        Some((u, digits)) => (format!("{value:.digits$}"), Some(format!("{u:.digits$}"))),
        None => (nats(value), None),
    }
}

/// Fraction as a percentage: `88.93%`.
pub fn percent(fraction: f64) -> String {
    format!("{:.2}%", fraction * 100.0)
}

/// A sentence on how often the most probable token changes: `At 3 of 100 positions, the most probable next token
/// differs.`
pub fn top_changes(same_top: f64) -> String {
    let differs = (1.0 - same_top).clamp(0.0, 1.0);
    match differs {
        0.0 => "The most probable next token is the same everywhere.".into(),
        _ if differs < 0.0005 => format!(
            "The most probable next token differs at {} of the positions.",
            percent(differs)
        ),
        _ => {
            let (count, of) = match differs < 0.01 {
                true => ((differs * 1000.0).round(), 1000),
                false => ((differs * 100.0).round(), 100),
            };
            format!("At {count} of {of} positions, the most probable next token differs.")
        }
    }
}

/// A sentence on how many of the nearest neighbours of a text's embedding change: `4.20% of the nearest neighbours of
/// a text are others than the original's.`
pub fn neighbour_changes(shared: f64) -> String {
    match (1.0 - shared).clamp(0.0, 1.0) {
        0.0 => "The nearest neighbours of every text are the same.".into(),
        differs => format!(
            "{} of the nearest neighbours of a text are others than the original's.",
            percent(differs)
        ),
    }
}

/// A phrase that begins with a capital letter.
pub fn capital(phrase: &str) -> String {
    let mut letters = phrase.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// Relative change as a percentage with sign: `−48%`, `+2.1%`.
pub fn change(fraction: f64) -> String {
    let per_cent = fraction * 100.0;
    let digits = usize::from(per_cent.abs() < 10.0);
    format!("{per_cent:+.digits$}%").replace('-', "−")
}

/// Duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1} s", seconds.max(0.0)),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// Conventional name of a ggml type: `Q4_K`, `IQ2_XXS`.
pub fn type_name(ggml_type: &str) -> String {
    shorten(ggml_type, 12).to_uppercase()
}

/// True for characters that affect the display of their neighbours or are forbidden in XML.
fn disturbs(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// Text that is safe to display: control and direction characters become `\u{fffd}`.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if disturbs(c) { '\u{fffd}' } else { c })
        .collect()
}

/// The same, shortened in the middle to at most `most` characters.
pub fn shorten(text: &str, most: usize) -> String {
    let text = clean(text);
    let length = text.chars().count();
    if length <= most {
        return text;
    }
    let tail = (most - 1) / 2;
    let head = most - 1 - tail;
    text.chars()
        .take(head)
        .chain(['…'])
        .chain(text.chars().skip(length - tail))
        .collect()
}

/// Quotes a word for a shell command line.
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(4_650_000_000), "4.33 GiB");
        assert_eq!(size(u64::MAX), "16384.00 PiB");
        assert_eq!(weights(6_843_392), "6.84 M");
        assert_eq!(count(6_843_392), "6,843,392");
        assert_eq!(count(92), "92");
        assert_eq!(nats(0.368868), "0.369");
        assert_eq!(nats(0.0000124), "0.0000124");
        assert_eq!(nats(2.1e-7), "2.1e-7");
        assert_eq!(nats(0.0), "0.000");
        assert_eq!(
            figure(0.018611, Some(0.00019)),
            ("0.01861".into(), Some("0.00019".into()))
        );
        assert_eq!(figure(0.018611, None), ("0.0186".into(), None));
        assert_eq!(figure(0.018611, Some(0.0)), ("0.0186".into(), None));
        assert_eq!(change(-0.482), "−48%");
        assert_eq!(change(0.0213), "+2.1%");
        assert_eq!(duration(0.42), "0.4 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 05 min");
        assert_eq!(type_name("iq2_xxs"), "IQ2_XXS");
    }

    #[test]
    fn names_are_cleaned_and_shortened() {
        assert_eq!(
            clean("a\u{1b}[31m\u{202e}b\n"),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}"
        );
        assert_eq!(shorten("abcdefghij", 10), "abcdefghij");
        assert_eq!(shorten("abcdefghijk", 10), "abcde…hijk");
        assert_eq!(shorten("ééééééé", 3), "é…é");
    }

    #[test]
    fn changes_are_plain_sentences() {
        for (same_top, sentence) in [
            (1.0, "The most probable next token is the same everywhere."),
            (
                0.9701,
                "At 3 of 100 positions, the most probable next token differs.",
            ),
            (
                0.988,
                "At 1 of 100 positions, the most probable next token differs.",
            ),
            (
                0.9942,
                "At 6 of 1000 positions, the most probable next token differs.",
            ),
            (
                0.9999,
                "The most probable next token differs at 0.01% of the positions.",
            ),
        ] {
            assert_eq!(top_changes(same_top), sentence);
        }
    }
}
