//! PLaMo 2 and 3: the sequence of tokens for a text with the highest sum of scores.
//!
//! ```text
//! suffixes   all suffixes of tokens, themselves included
//! rows       of a suffix: its prefixes that are suffixes too, longest first
//! backwards over the text: from the suffix at a character to the longest one at the preceding
//!                          character, by the rows; then the best of its rows
//! ```
//!
//! A character without a token is encoded in bytes, with the score [`UNKNOWN`]. O(n m) for n
//! characters and tokens of up to m characters.

use super::Error;
use super::vocab::{self, BYTE, Vocab};
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Unit of the integer scores.
const UNIT: f64 = 1e4;
/// Score of a suffix that is not a token.
const INVALID: i32 = -20_000_000;
/// Score of a character in bytes. As in the reference, a row with this score is the last one used.
const UNKNOWN: i32 = -10_000_000;
/// Initial cost of a position.
const UNWRITTEN: i64 = 1 << 60;
/// The empty suffix.
const EMPTY: u32 = 0;
/// Maximum total length of all suffixes in characters; real vocabularies have about three million.
const MAX_CHARS: usize = 1 << 24;

/// A prefix of a suffix.
#[derive(Clone, Copy)]
struct Row {
    /// Length in characters.
    len: u32,
    token: Option<u32>,
    score: i32,
    /// Its index as a suffix.
    suffix: u32,
}

/// The row at the end of each suffix: a character in bytes.
const LAST: Row = Row {
    len: 1,
    token: None,
    score: UNKNOWN,
    suffix: EMPTY,
};

/// Tables of a vocabulary.
pub(crate) struct Plamo {
    /// Index of the suffix that prepends a character to a suffix.
    longer: HashMap<(char, u32), u32, RandomState>,
    /// Index of the first row of each suffix; rows end at the next suffix's.
    starts: Vec<usize>,
    rows: Vec<Row>,
    /// Tokens of single bytes.
    bytes: [u32; 256],
}

/// The best encoding of the rest of a text from a character on.
#[derive(Clone, Copy)]
struct Best {
    cost: i64,
    len: u32,
    token: Option<u32>,
}

impl Plamo {
    /// Prepares a vocabulary.
    pub(crate) fn of(vocab: &Vocab) -> Result<Plamo, Error> {
        let mut bytes = [None; 256];
        // Scores of all suffixes; `None` for those that are not tokens.
        let mut scores: HashMap<Vec<char>, Option<f32>, RandomState> = HashMap::default();
        let mut chars = 0;
        for (token, id) in vocab.tokens.iter().zip(0..) {
            if token.role & BYTE != 0 {
                if let Some(byte) = byte_of(&token.text) {
                    bytes[byte as usize] = Some(id).filter(|&id| id != 0);
                }
                continue;
            }
            let text: Vec<char> = String::from_utf8_lossy(&token.text).chars().collect();
            chars += text.len() * (text.len() + 1) / 2;
            if chars > MAX_CHARS {
                return Err(Error(format!(
                    "'{}' has tokens so long that their ends have more than {MAX_CHARS} characters",
                    vocab::TOKENS
                )));
            }
            for at in 1..text.len() {
                scores.entry(text[at..].to_vec()).or_insert(None);
            }
            scores.insert(text, Some(token.score));
        }
        let mut all = [0; 256];
        for (byte, id) in bytes.iter().enumerate() {
            all[byte] = id.ok_or_else(|| {
                Error(format!(
                    "'{}' has no token <0x{byte:02X}> of the type of bytes",
                    vocab::TOKENS
                ))
            })?;
        }
        Ok(Plamo::with(vocab, &scores, all))
    }

    fn with(
        vocab: &Vocab,
        scores: &HashMap<Vec<char>, Option<f32>, RandomState>,
        bytes: [u32; 256],
    ) -> Plamo {
        // The rest of a suffix after its first character precedes it in the order.
        let mut suffixes: Vec<&[char]> = scores.keys().map(Vec::as_slice).collect();
        suffixes.push(&[]);
        suffixes.sort_unstable_by_key(|suffix| (suffix.len(), *suffix));
        suffixes.dedup();
        let ids: HashMap<&[char], u32, RandomState> = suffixes.iter().copied().zip(0..).collect();
        let mut longer = HashMap::with_capacity_and_hasher(suffixes.len(), RandomState::default());
        let (mut starts, mut rows) = (Vec::with_capacity(suffixes.len() + 1), Vec::new());
        for suffix in &suffixes {
            starts.push(rows.len());
            if let Some((&first, rest)) = suffix.split_first() {
                longer.insert((first, ids[rest]), ids[suffix]);
            }
            for len in (1..=suffix.len()).rev() {
                let beginning = &suffix[..len];
                let Some(score) = scores.get(beginning) else {
                    continue;
                };
                let finite = score.filter(|score| score.is_finite());
                rows.push(Row {
                    len: len as u32,
                    token: vocab.id(&beginning.iter().collect::<String>()),
                    score: finite.map_or(INVALID, |s| (f64::from(s) * UNIT).round() as i32),
                    suffix: ids[beginning],
                });
            }
            rows.push(LAST);
        }
        starts.push(rows.len());
        Plamo {
            longer,
            starts,
            rows,
            bytes,
        }
    }

    fn rows(&self, suffix: u32) -> &[Row] {
        &self.rows[self.starts[suffix as usize]..self.starts[suffix as usize + 1]]
    }

    /// The longest suffix that begins with a character followed by a prefix of a suffix.
    fn before(&self, c: char, suffix: u32) -> u32 {
        for row in self.rows(suffix) {
            if let Some(&longer) = self.longer.get(&(c, row.suffix)) {
                return longer;
            }
            if row.score == UNKNOWN {
                break;
            }
        }
        EMPTY
    }

    /// Appends the tokens of a text, without a byte order mark at its beginning.
    pub(crate) fn text(&self, text: &str, out: &mut Vec<u32>) {
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        let chars: Vec<char> = text.chars().collect();
        let unwritten = Best {
            cost: UNWRITTEN,
            len: 1,
            token: None,
        };
        let mut best = vec![unwritten; chars.len() + 1];
        best[chars.len()].cost = 0;
        let mut suffix = EMPTY;
        for (at, &c) in chars.iter().enumerate().rev() {
            suffix = self.before(c, suffix);
            for row in self.rows(suffix) {
                if row.score > INVALID {
                    let cost = best[at + row.len as usize].cost - i64::from(row.score);
                    if cost < best[at].cost {
                        best[at] = Best {
                            cost,
                            len: row.len,
                            token: row.token,
                        };
                    }
                }
                if row.score == UNKNOWN {
                    break;
                }
            }
        }
        let mut at = 0;
        while at < chars.len() {
            match best[at].token {
                Some(id) => out.push(id),
                None => {
                    let mut buffer = [0; 4];
                    let spelled = chars[at].encode_utf8(&mut buffer).bytes();
                    out.extend(spelled.map(|byte| self.bytes[byte as usize]));
                }
            }
            at += best[at].len as usize;
        }
    }

    /// Text of a token: verbatim, or the byte of a token such as `<0x0A>`.
    pub(crate) fn piece(vocab: &Vocab, id: u32) -> Vec<u8> {
        let Some(token) = vocab.tokens.get(id as usize) else {
            return Vec::new();
        };
        let byte = (token.role & BYTE != 0).then(|| byte_of(&token.text));
        match byte.flatten() {
            Some(byte) => vec![byte],
            None => token.text.to_vec(),
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let is_byte = digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = is_byte
        .then(|| std::str::from_utf8(digits).ok())
        .flatten()?;
    u8::from_str_radix(digits, 16).ok()
}
