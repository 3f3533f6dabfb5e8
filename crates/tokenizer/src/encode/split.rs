//! The steps of pre-tokenizers, and the reference's hand-written pre-tokenizers.
//!
//! Each step splits a range of a text into pieces and appends their ends; text after the range is
//! not visible. The reference's hand-written splits differ from the regular expressions they
//! replace, and these follow them.

use super::pattern::Pattern;
use super::unicode::{Kinds, LETTER, MARK, NUMBER, SPACE, is_han};

/// One step of a pre-tokenizer: it splits the pieces of the previous one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// GPT-2: a contraction; letters, digits or other characters after at most one space; spaces.
    Gpt2,
    /// Llama 3 and Qwen: letters after at most one other character, groups of digits, punctuation
    /// with the line breaks after it, spaces.
    Words { digits: usize, marks: bool },
    /// EXAONE MoE: like Qwen, with words separated by single spaces in one piece, and marks.
    Phrases,
    /// Kimi K2: like Llama 3, with runs of Chinese, and contractions at the end of words.
    Kimi,
    /// Runs of digits in groups of three from the right.
    DigitsFromRight,
    /// Runs of line breaks.
    Lines,
    /// SuperBPE: splits before each group of three ASCII digits, counted from the right.
    BeforeThreeDigits,
    /// Trailing spaces.
    TrailingSpaces,
    /// A regular expression.
    Pattern(Pattern),
}

impl Step {
    /// Appends the ends of the pieces of `text[start..end]`.
    pub(crate) fn split(&self, text: &str, start: usize, end: usize, ends: &mut Vec<usize>) {
        let mut part = Part {
            text: &text[..end],
            kinds: Kinds::get(),
            ends,
        };
        match self {
            Step::Gpt2 => part.gpt2(start),
            Step::Words { digits, marks } => {
                part.words(start, *digits, if *marks { LETTER | MARK } else { LETTER })
            }
            Step::Phrases => part.phrases(start),
            Step::Kimi => part.kimi(start),
            Step::DigitsFromRight => part.digits_from_right(start),
            Step::Lines => part.lines(start),
            Step::BeforeThreeDigits => part.before_three_digits(start),
            Step::TrailingSpaces => part.trailing_spaces(start),
            Step::Pattern(pattern) => pattern.split(text, start, end, part.ends),
        }
    }
}

/// A text up to the end of the range, and the ends of pieces.
struct Part<'a> {
    text: &'a str,
    kinds: &'static Kinds,
    ends: &'a mut Vec<usize>,
}

impl Part<'_> {
    /// Kind and length of the character at a byte.
    #[inline]
    fn at(&self, at: usize) -> (u8, usize) {
        self.kinds.at(self.text, at)
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// End of the run of characters from `at` on with kinds that satisfy `is`.
    #[inline]
    fn run(&self, mut at: usize, is: impl Fn(u8) -> bool) -> usize {
        loop {
            let (kind, len) = self.at(at);
            if len == 0 || !is(kind) {
                return at;
            }
            at += len;
        }
    }

    /// End of an English contraction at `at`. `fold` maps upper to lower case.
    fn contraction(&self, at: usize, fold: impl Fn(u8) -> u8) -> Option<usize> {
        if self.byte(at) != b'\'' {
            return None;
        }
        match (fold(self.byte(at + 1)), fold(self.byte(at + 2))) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
            _ => None,
        }
    }

    fn line_breaks(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), b'\r' | b'\n') {
            at += 1;
        }
        at
    }

    /// End of the spaces at `at`, without the last of several if text follows.
    fn spaces(&self, at: usize) -> usize {
        let (mut end, mut last) = (at, 0);
        loop {
            let (kind, len) = self.at(end);
            if kind & SPACE == 0 {
                break;
            }
            last = len;
            end += len;
        }
        if end - at > last && end < self.text.len() {
            end - last
        } else {
            end
        }
    }

    /// End of the last line break among the spaces at `at`.
    fn to_last_line_break(&self, at: usize) -> Option<usize> {
        let spaces = &self.text[at..self.run(at, |k| k & SPACE != 0)];
        spaces.rfind(['\r', '\n']).map(|found| at + found + 1)
    }

    fn gpt2(&mut self, start: usize) {
        let mut at = start;
        while at < self.text.len() {
            at = self.gpt2_piece(at);
            self.ends.push(at);
        }
    }

    fn gpt2_piece(&self, at: usize) -> usize {
        if let Some(end) = self.contraction(at, |b| b) {
            return end;
        }
        let after_space = at + usize::from(self.byte(at) == b' ');
        let (kind, len) = self.at(after_space);
        if kind & LETTER != 0 {
            return self.run(after_space, |k| k & LETTER != 0);
        }
        if kind & NUMBER != 0 {
            return self.run(after_space, |k| k & NUMBER != 0);
        }
        if len > 0 && kind & SPACE == 0 {
            return self.run(after_space, |k| k & (SPACE | LETTER | NUMBER) == 0);
        }
        self.spaces(at)
    }

    fn words(&mut self, start: usize, digits: usize, letters: u8) {
        let mut at = start;
        while at < self.text.len() {
            at = self.words_piece(at, digits, letters);
            self.ends.push(at);
        }
    }

    fn words_piece(&self, at: usize, digits: usize, letters: u8) -> usize {
        if let Some(end) = self.contraction(at, |b| b.to_ascii_lowercase()) {
            return end;
        }
        let (kind, len) = self.at(at);
        let is_break = matches!(self.byte(at), b'\r' | b'\n');
        if !is_break && kind & NUMBER == 0 && (kind | self.at(at + len).0) & letters != 0 {
            return self.run(at + len, |k| k & letters != 0);
        }
        if kind & NUMBER != 0 {
            return self.group(at, digits);
        }
        self.signs(at, letters)
            .or_else(|| self.to_last_line_break(at))
            .unwrap_or_else(|| self.spaces(at))
    }

    fn phrases(&mut self, start: usize) {
        let mut at = start;
        while at < self.text.len() {
            at = self.phrases_piece(at);
            self.ends.push(at);
        }
    }

    fn phrases_piece(&self, at: usize) -> usize {
        if let Some(end) = self.contraction(at, |b| b.to_ascii_lowercase()) {
            return end;
        }
        let (kind, len) = self.at(at);
        let is_break = matches!(self.byte(at), b'\r' | b'\n');
        if kind & LETTER != 0 {
            return self.phrase(at);
        }
        if !is_break && kind & NUMBER == 0 && self.at(at + len).0 & LETTER != 0 {
            return self.phrase(at + len);
        }
        if kind & NUMBER != 0 {
            return at + len;
        }
        let after_space = at + usize::from(self.byte(at) == b' ');
        let end = self.run(after_space, |k| k & (SPACE | LETTER | NUMBER) == 0);
        if end > after_space {
            return end + usize::from(matches!(self.byte(end), b'\r' | b'\n'));
        }
        self.to_last_line_break(at)
            .unwrap_or_else(|| self.spaces(at))
    }

    /// End of the words from a letter on: letters, each with marks, and single spaces before
    /// letters.
    fn phrase(&self, mut at: usize) -> usize {
        loop {
            let end = self.run(at, |k| k & (LETTER | MARK) != 0);
            if self.byte(end) != b' ' || self.at(end + 1).0 & LETTER == 0 {
                return end;
            }
            at = end + 1;
        }
    }

    /// End of a group of at most `digits` digits.
    fn group(&self, at: usize, digits: usize) -> usize {
        let mut end = at;
        for _ in 0..digits {
            let (kind, len) = self.at(end);
            if kind & NUMBER == 0 {
                break;
            }
            end += len;
        }
        end
    }

    /// End of the punctuation at `at`, after at most one space, with all following line breaks.
    fn signs(&self, at: usize, letters: u8) -> Option<usize> {
        let not_signs = SPACE | NUMBER | letters;
        let after_space = at + usize::from(self.byte(at) == b' ');
        let (kind, len) = self.at(after_space);
        let end = self.run(after_space, |k| k & not_signs == 0);
        (len > 0 && kind & not_signs == 0).then(|| self.line_breaks(end))
    }

    fn kimi(&mut self, start: usize) {
        let mut at = start;
        while at < self.text.len() {
            at = self.kimi_piece(at);
            self.ends.push(at);
        }
    }

    fn kimi_piece(&self, at: usize) -> usize {
        let is_word = |c: char| self.kinds.of(c) & LETTER != 0 && !is_han(c);
        let rest = &self.text[at..];
        let end_of = |from: usize, is: &dyn Fn(char) -> bool| {
            self.text[from..]
                .find(|c| !is(c))
                .map_or(self.text.len(), |n| from + n)
        };
        let mut chars = rest.chars();
        let (Some(first), second) = (chars.next(), chars.next()) else {
            return self.text.len();
        };
        if is_han(first) {
            return end_of(at, &is_han);
        }
        let kind = self.kinds.of(first);
        let may_lead = !matches!(first, '\r' | '\n') && kind & (LETTER | NUMBER) == 0;
        if is_word(first) || may_lead && second.is_some_and(is_word) {
            let end = end_of(at + first.len_utf8(), &is_word);
            return self
                .contraction(end, |b| b.to_ascii_lowercase())
                .unwrap_or(end);
        }
        if kind & NUMBER != 0 {
            return self.group(at, 3);
        }
        self.signs(at, LETTER)
            .or_else(|| self.to_last_line_break(at))
            .unwrap_or_else(|| self.spaces(at))
    }

    fn digits_from_right(&mut self, start: usize) {
        let (mut at, mut piece) = (start, start);
        while at < self.text.len() {
            let (kind, len) = self.at(at);
            if kind & NUMBER == 0 {
                at += len;
                continue;
            }
            let end = self.run(at, |k| k & NUMBER != 0);
            let mut left = self.text[at..end].chars().count();
            // Text before the digits joins the first group.
            while left > 0 {
                let group = if left.is_multiple_of(3) { 3 } else { left % 3 };
                at = self.group(at, group);
                self.ends.push(at);
                left -= group;
            }
            piece = at;
        }
        if at > piece {
            self.ends.push(at);
        }
    }

    fn lines(&mut self, start: usize) {
        let mut at = start;
        while at < self.text.len() {
            let is_break = self.byte(at) == b'\n';
            let rest = &self.text.as_bytes()[at..];
            at += rest
                .iter()
                .position(|&b| (b == b'\n') != is_break)
                .unwrap_or(rest.len());
            self.ends.push(at);
        }
    }

    fn before_three_digits(&mut self, start: usize) {
        let bytes = self.text.as_bytes();
        let mut at = start;
        while at < bytes.len() {
            let digits = bytes[at..]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .count();
            let (end, first) = (at + digits, at + digits % 3);
            self.ends
                .extend((first..end).step_by(3).filter(|&n| n > start));
            at = end.max(at + 1);
        }
        if bytes.len() > start {
            self.ends.push(bytes.len());
        }
    }

    fn trailing_spaces(&mut self, start: usize) {
        let text = &self.text[start..];
        let kept = text
            .trim_end_matches(|c| self.kinds.of(c) & SPACE != 0)
            .len();
        if kept > 0 {
            self.ends.push(start + kept);
        }
        if kept < text.len() {
            self.ends.push(self.text.len());
        }
    }
}
