//! General categories of code points as in the reference: Unicode 15.1.
//!
//! They come from `regex-syntax`, restricted to the code points of Unicode 15.1. A test compares the
//! checksum of the table with the reference's, against a newer Unicode in that crate.

use regex_syntax::hir::{Class, HirKind};
use std::sync::OnceLock;
use tokenizers::NormalizedString;

/// Categories of a code point as a bit set; at most one of the first five.
pub(crate) type Kind = u8;
/// `\p{L}`
pub(crate) const LETTER: Kind = 1;
/// `\p{N}`
pub(crate) const NUMBER: Kind = 2;
/// `\p{M}`
pub(crate) const MARK: Kind = 4;
/// `\p{P}`
pub(crate) const PUNCTUATION: Kind = 8;
/// `\p{S}`
pub(crate) const SYMBOL: Kind = 16;
/// `\s`: the `White_Space` property.
pub(crate) const SPACE: Kind = 32;
/// Set for every code point: distinguishes those without a category from the end of the text, which
/// is 0.
pub(crate) const SOME: Kind = 64;

const CODE_POINTS: usize = 0x110000;

/// The kinds of all code points.
pub(crate) struct Kinds(Box<[Kind]>);

impl Kinds {
    /// The table, built on first use.
    pub(crate) fn get() -> &'static Kinds {
        static KINDS: OnceLock<Kinds> = OnceLock::new();
        KINDS.get_or_init(|| {
            let mut kinds = vec![SOME; CODE_POINTS];
            let classes = [
                ("L", LETTER),
                ("N", NUMBER),
                ("M", MARK),
                ("P", PUNCTUATION),
                ("S", SYMBOL),
                ("White_Space", SPACE),
            ];
            for (class, kind) in classes {
                for (first, last) in ranges(&format!(r"[\p{{{class}}}&&\p{{age=15.1}}]")) {
                    kinds[first as usize..=last as usize]
                        .iter_mut()
                        .for_each(|k| *k |= kind);
                }
            }
            Kinds(kinds.into_boxed_slice())
        })
    }

    /// The kind of a character.
    #[inline]
    pub(crate) fn of(&self, c: char) -> Kind {
        self.0[c as usize]
    }

    /// Kind and length in bytes of the character that starts at a byte of a text; `(0, 0)` beyond
    /// its end.
    #[inline]
    pub(crate) fn at(&self, text: &str, at: usize) -> (Kind, usize) {
        match text.as_bytes().get(at) {
            None => (0, 0),
            Some(&b) if b < 0x80 => (self.0[b as usize], 1),
            Some(_) => text[at..]
                .chars()
                .next()
                .map_or((0, 0), |c| (self.of(c), c.len_utf8())),
        }
    }
}

/// True for control characters, format characters and those of private use.
pub(crate) fn is_control(c: char) -> bool {
    static CONTROL: OnceLock<Vec<(char, char)>> = OnceLock::new();
    let control = CONTROL.get_or_init(|| ranges(r"[[\p{Cc}\p{Cf}\p{Co}]&&\p{age=15.1}]"));
    let after = control.partition_point(|(first, _)| *first <= c);
    after > 0 && c <= control[after - 1].1
}

/// The character in lower case; of several characters, the first.
pub(crate) fn lower(c: char) -> char {
    let is_known = c.is_ascii() || Kinds::get().of(c) != SOME;
    match c.to_lowercase().next() {
        Some(lower) if is_known => lower,
        _ => c,
    }
}

/// The first character of a canonical decomposition.
pub(crate) fn first_of_nfd(c: char) -> char {
    // Of Unicode 13, later than the library's tables.
    if c == '\u{11938}' {
        return '\u{11935}';
    }
    let mut decomposed = NormalizedString::from(c.to_string());
    decomposed.nfd();
    decomposed.get().chars().next().unwrap_or(c)
}

/// The code points of a class.
fn ranges(class: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(class).expect("a class that regex-syntax knows");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => class
            .ranges()
            .iter()
            .map(|r| (r.start(), r.end()))
            .collect(),
        _ => Vec::new(),
    }
}

/// True for characters that the reference treats as Chinese.
pub(crate) fn is_han(c: char) -> bool {
    matches!(c as u32,
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2EBEF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksum of the reference's table, one byte of kinds per code point, in order, without
    /// surrogates. Renewed by `scripts/unicode-kinds.sh` from the reference.
    const REFERENCE: u64 = 0x7715_41bb_2bde_31f5;

    #[test]
    fn kinds_of_code_points_match_the_reference() {
        let kinds = Kinds::get();
        let fnv = (0..CODE_POINTS as u32)
            .filter_map(char::from_u32)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, c| {
                (hash ^ u64::from(kinds.of(c) & !SOME)).wrapping_mul(0x0100_0000_01b3)
            });
        assert_eq!(
            fnv, REFERENCE,
            "the kinds differ from the reference's: {fnv:#018x}"
        );
    }

    #[test]
    fn letters_match_the_reference() {
        /// Checksums of the reference's tables, one number per code point without surrogates: of lower
        /// case, of the first characters of decompositions, and of 1 for control characters.
        const TABLES: [u64; 3] = [
            0x6cb4_860d_cb97_926d,
            0x0f4b_f9ff_9626_9845,
            0xec9b_77fa_6804_3750,
        ];
        let tables: [fn(char) -> u32; 3] = [
            |c| lower(c) as u32,
            |c| first_of_nfd(c) as u32,
            |c| is_control(c).into(),
        ];
        let checksum = |number: fn(char) -> u32| {
            let numbers = (0..CODE_POINTS as u32)
                .filter_map(char::from_u32)
                .map(number);
            numbers.fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
                (hash ^ u64::from(number)).wrapping_mul(0x0100_0000_01b3)
            })
        };
        assert_eq!(tables.map(checksum), TABLES);
    }

    #[test]
    fn positions_beyond_the_end_have_no_kind() {
        let kinds = Kinds::get();
        assert_eq!(kinds.at("é", 0), (LETTER | SOME, 2));
        assert_eq!(kinds.at("é", 2), (0, 0));
        assert_eq!(kinds.at("\u{85}", 0), (SPACE | SOME, 2));
    }
}
