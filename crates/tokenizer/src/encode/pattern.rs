//! The subset of regular expressions in pre-tokenizers, with the reference's semantics.
//!
//! The reference has two modes. An expression with a category (`\p{L}`) sees a text with each
//! non-ASCII character replaced by one of six: letter, number, mark, punctuation, symbol, other.
//! Any other expression sees the code points. In both, a non-ASCII space becomes a vertical tab,
//! which both `\s` and `[^\r\n]` match. So a [`Set`] has one bit per ASCII character, and either
//! kinds or code points for the others.
//!
//! Alternatives are tried in order and repetitions are greedy with backtracking, as in ECMAScript.
//! Backtracking stays within one alternative, and every repetition is of a single set, so the depth
//! is bounded by the length of the pattern.
//!
//! ```text
//! pattern     = sequence { "|" sequence }
//! sequence    = { set [ "?" | "*" | "+" | "{n}" | "{n,m}" ] } [ "(?!\S)" | "(?:" pattern ")?" ]
//! set         = "[" [ "^" ] { escape | char | char "-" char } "]" | escape | char
//! escape      = \s \S \d \r \n \t \p{L} \p{N} \p{M} \p{P} \p{S} \p{Lx} (letters beyond ASCII) | "\" char
//! ```

use super::unicode::{self, Kind, Kinds};

const ALL_KINDS: Kind =
    unicode::LETTER | unicode::NUMBER | unicode::MARK | unicode::PUNCTUATION | unicode::SYMBOL;
/// In sets: non-ASCII characters without a kind.
const OTHER: Kind = unicode::SPACE;
const VERTICAL_TAB: u32 = 0x0B;
const ASCII_SPACES: u128 = 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 32;

/// A set of characters.
#[derive(Clone, Debug, Default, PartialEq)]
struct Set {
    ascii: u128,
    /// Kinds of non-ASCII characters.
    kinds: Kind,
    /// Non-ASCII code points.
    ranges: Vec<(u32, u32)>,
    /// True if the code points are the complement of `ranges`.
    beyond: bool,
}

impl Set {
    fn add(&mut self, first: u32, last: u32) {
        (first..=last.min(127)).for_each(|c| self.ascii |= 1 << c);
        if last > 127 {
            self.ranges.push((first.max(128), last));
        }
    }

    /// Adds the characters of a kind, including ASCII ones.
    fn add_kind(&mut self, kind: Kind) {
        let kinds = Kinds::get();
        (0..128u8)
            .filter(|&c| kinds.of(c.into()) & kind != 0)
            .for_each(|c| self.ascii |= 1 << c);
        self.kinds |= kind;
    }

    fn negated(self) -> Set {
        Set {
            ascii: !self.ascii,
            kinds: !self.kinds & (ALL_KINDS | OTHER),
            ranges: self.ranges,
            beyond: !self.beyond,
        }
    }

    #[inline]
    fn has(&self, c: char, by_kind: bool) -> bool {
        if c.is_ascii() {
            return self.ascii >> c as u32 & 1 != 0;
        }
        let kind = Kinds::get().of(c);
        if kind & unicode::SPACE != 0 {
            return self.ascii >> VERTICAL_TAB & 1 != 0;
        }
        if by_kind {
            let kind = kind & ALL_KINDS;
            return self.kinds & if kind == 0 { OTHER } else { kind } != 0;
        }
        self.beyond
            != self
                .ranges
                .iter()
                .any(|&(first, last)| (first..=last).contains(&(c as u32)))
    }
}

/// A repetition of a set.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    set: Set,
    min: usize,
    max: usize,
}

/// End of a sequence.
#[derive(Clone, Debug, PartialEq)]
enum Tail {
    None,
    /// `(?!\S)`
    BeforeSpaceOrEnd,
    /// `(?: ... )?`
    Optional(Vec<Sequence>),
}

#[derive(Clone, Debug, PartialEq)]
struct Sequence {
    items: Vec<Item>,
    tail: Tail,
}

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    alternatives: Vec<Sequence>,
    /// True if it contains a category: it sees kinds instead of code points.
    by_kind: bool,
}

impl Pattern {
    /// Compiles a pattern from this program's own tables.
    ///
    /// # Panics
    /// If the pattern does not match the grammar above.
    pub(crate) fn new(pattern: &str) -> Pattern {
        let mut parser = Parser { rest: pattern };
        let alternatives = parser.alternatives();
        assert!(
            parser.rest.is_empty(),
            "{pattern}: not understood from {:?}",
            parser.rest
        );
        Pattern {
            alternatives,
            by_kind: pattern.contains(r"\p{"),
        }
    }

    /// End of a match that starts at a byte.
    fn match_at(&self, text: &str, at: usize) -> Option<usize> {
        self.alternatives
            .iter()
            .find_map(|s| self.sequence(&s.items, &s.tail, text, at))
    }

    fn sequence(&self, items: &[Item], tail: &Tail, text: &str, at: usize) -> Option<usize> {
        let Some((item, rest)) = items.split_first() else {
            return self.tail(tail, text, at);
        };
        let (mut end, mut count) = (at, 0);
        for c in text[at..].chars().take(item.max) {
            if !item.set.has(c, self.by_kind) {
                break;
            }
            end += c.len_utf8();
            count += 1;
        }
        loop {
            if count < item.min {
                return None;
            }
            if let Some(matched) = self.sequence(rest, tail, text, end) {
                return Some(matched);
            }
            if count == 0 {
                return None;
            }
            count -= 1;
            end -= text[..end].chars().next_back().map_or(0, char::len_utf8);
        }
    }

    fn tail(&self, tail: &Tail, text: &str, at: usize) -> Option<usize> {
        match tail {
            Tail::None => Some(at),
            Tail::BeforeSpaceOrEnd => {
                let kind = Kinds::get().at(text, at).0;
                (kind == 0 || kind & unicode::SPACE != 0).then_some(at)
            }
            Tail::Optional(alternatives) => {
                let matched = alternatives
                    .iter()
                    .find_map(|s| self.sequence(&s.items, &s.tail, text, at));
                Some(matched.unwrap_or(at))
            }
        }
    }

    /// Appends the ends of the pieces of `text[start..end]`: the matches and the text between them.
    pub(crate) fn split(&self, text: &str, start: usize, end: usize, ends: &mut Vec<usize>) {
        let part = &text[..end];
        let (mut at, mut piece) = (start, start);
        while at < end {
            match self.match_at(part, at) {
                Some(matched) if matched > at => {
                    if at > piece {
                        ends.push(at);
                    }
                    ends.push(matched);
                    (at, piece) = (matched, matched);
                }
                _ => at += part[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if end > piece {
            ends.push(end);
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn char(&mut self) -> char {
        let c = self.rest.chars().next().expect("a character");
        self.rest = &self.rest[c.len_utf8()..];
        c
    }

    fn alternatives(&mut self) -> Vec<Sequence> {
        let mut all = vec![self.sequence()];
        while self.eat("|") {
            all.push(self.sequence());
        }
        all
    }

    fn sequence(&mut self) -> Sequence {
        let mut items = Vec::new();
        while !self.rest.is_empty() && !self.rest.starts_with(['|', ')']) {
            if self.eat(r"(?!\S)") {
                return Sequence {
                    items,
                    tail: Tail::BeforeSpaceOrEnd,
                };
            }
            if self.eat("(?:") {
                let tail = Tail::Optional(self.alternatives());
                assert!(self.eat(")?"), "a group that is not optional");
                return Sequence { items, tail };
            }
            let set = self.set();
            let (min, max) = self.quantifier();
            items.push(Item { set, min, max });
        }
        Sequence {
            items,
            tail: Tail::None,
        }
    }

    fn quantifier(&mut self) -> (usize, usize) {
        if self.eat("?") {
            (0, 1)
        } else if self.eat("*") {
            (0, usize::MAX)
        } else if self.eat("+") {
            (1, usize::MAX)
        } else if self.eat("{") {
            let (inside, rest) = self.rest.split_once('}').expect("a closed quantifier");
            self.rest = rest;
            let (min, max) = inside.split_once(',').unwrap_or((inside, inside));
            (
                min.parse().expect("a number"),
                max.parse().expect("a number"),
            )
        } else {
            (1, 1)
        }
    }

    fn set(&mut self) -> Set {
        let mut set = Set::default();
        if !self.eat("[") {
            self.member(&mut set);
            return set;
        }
        let negated = self.eat("^");
        while !self.eat("]") {
            self.member(&mut set);
        }
        if negated { set.negated() } else { set }
    }

    /// Parses one escape, character or range.
    fn member(&mut self, set: &mut Set) {
        let mut first = self.char();
        if first == '\\' {
            first = match self.char() {
                's' => return set.ascii |= ASCII_SPACES,
                'S' => {
                    *set = Set {
                        ascii: !ASCII_SPACES,
                        beyond: true,
                        kinds: ALL_KINDS | OTHER,
                        ranges: Vec::new(),
                    };
                    return;
                }
                'd' => return set.add(u32::from('0'), u32::from('9')),
                'p' => return self.category(set),
                'r' => '\r',
                'n' => '\n',
                't' => '\t',
                other => other,
            };
        }
        let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
        let last = if is_range {
            self.eat("-");
            self.char()
        } else {
            first
        };
        set.add(first.into(), last.into());
    }

    fn category(&mut self, set: &mut Set) {
        let kinds = [
            ("{L}", unicode::LETTER),
            ("{N}", unicode::NUMBER),
            ("{M}", unicode::MARK),
            ("{P}", unicode::PUNCTUATION),
            ("{S}", unicode::SYMBOL),
        ];
        if self.eat("{Lx}") {
            set.kinds |= unicode::LETTER;
            return;
        }
        let (_, kind) = kinds
            .into_iter()
            .find(|(name, _)| self.eat(name))
            .expect("a category");
        set.add_kind(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
        let mut ends = Vec::new();
        Pattern::new(pattern).split(text, 0, text.len(), &mut ends);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts
            .zip(&ends)
            .map(|(start, &end)| &text[start..end])
            .collect()
    }

    #[test]
    fn repetitions_backtrack_and_alternatives_keep_their_order() {
        assert_eq!(
            pieces(r"\s+(?!\S)|\s+", "a   b  "),
            ["a", "  ", " ", "b", "  "]
        );
        assert_eq!(
            pieces(r"[A-Z\p{Lx}]*[a-z\p{Lx}]+|[A-Z]+", "ÉTÉété HELLOworld ABC"),
            ["ÉTÉété", " ", "HELLOworld", " ", "ABC"]
        );
        assert_eq!(pieces(r"\p{N}{1,3}", "a12345b"), ["a", "123", "45", "b"]);
        assert_eq!(
            pieces(r"\p{L}+(?:'[sS]|'[lL][lL])?", "it's we'LL o'k"),
            ["it's", " ", "we'LL", " ", "o", "'", "k"]
        );
        assert_eq!(pieces("x", ""), [""; 0]);
    }

    #[test]
    fn patterns_with_categories_see_kinds_others_see_code_points() {
        assert_eq!(pieces("[一-龥]+", "a漢字b"), ["a", "漢字", "b"]);
        assert_eq!(pieces(r"\p{P}+", "a。！b"), ["a", "。！", "b"]);
        // Both see a non-ASCII space as a vertical tab.
        assert_eq!(
            pieces(r"[^\s\p{L}]+", "a\u{3000}1b"),
            ["a\u{3000}", "1", "b"]
        );
        assert_eq!(
            pieces("[\u{3000}-\u{3002}]", "a\u{3000}\u{3001}"),
            ["a\u{3000}", "\u{3001}"]
        );
    }
}
