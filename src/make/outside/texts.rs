//! The texts of a run with an outside engine. Its programs cut a text into chunks themselves; here
//! it is only divided into parts.

use super::super::options::{Options, Texts};
use super::super::texts::{Used, check_context, too_short};
use super::super::{Error, Result};
use crate::evaluate::windows;
use crate::input::Input;
use crate::text::{Kind, Text};
use crate::tokenizer::Tokenizer;

/// Maximum number of parts of the calibration text: each loads the model anew.
const MOST_PARTS: usize = 8;
/// Minimum size of a part in bytes, and in chunks of [`BYTES_PER_TOKEN`].
const LEAST_BYTES: usize = 64 << 10;
const LEAST_CHUNKS: usize = 16;
/// Upper estimate of the bytes of a token, for parts that surely hold enough.
const BYTES_PER_TOKEN: usize = 6;
/// Bytes of a token in English text, if the vocabulary is unknown here.
const USUAL_BYTES_PER_TOKEN: usize = 4;
/// Separator of joined texts.
const BETWEEN: &str = "\n\n";

/// The texts of a run.
pub(in super::super) struct Prepared {
    /// Parts of the calibration text.
    pub(super) calibration: Vec<String>,
    /// Pieces of the calibration text, for measurements that guide the allocation.
    pub(super) probing: Measured,
    /// The evaluation text.
    pub(super) evaluation: Measured,
    /// Names of the calibration texts.
    pub(super) calibration_names: Vec<String>,
    /// Tokens of the calibration text.
    pub(in super::super) calibration_tokens: u64,
    /// True if the numbers of tokens are estimates: the vocabulary is unknown here.
    pub(in super::super) are_estimates: bool,
}

/// A text to measure divergences on.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) content: String,
    /// Maximum number of chunks.
    pub(super) most_chunks: Option<usize>,
    /// Names of the texts.
    pub(super) names: Vec<String>,
    /// Number of tokens, limited to those chunks.
    pub(super) tokens: u64,
}

impl Prepared {
    /// Divides the texts.
    ///
    /// # Errors
    /// Texts and contexts that are too short, as far as the vocabulary is known here.
    pub(super) fn new(input: &Input<'_>, options: &Options, texts: &Texts) -> Result<Prepared> {
        let context = texts.context;
        check_context(context)?;
        let all = || texts.calibration.iter().chain(&texts.evaluation);
        if let Some(text) = all().find(|text| text.kind == Kind::Conversations) {
            return Err(Error::Conversations {
                name: text.name.clone(),
                what: "llama.cpp's programs take plain text only; leave out --chat and --eval-chat"
                    .into(),
            });
        }
        let tokenizer = Tokenizer::from_gguf(input.metadata()).ok();
        let tokens = |text: &str| match &tokenizer {
            Some(tokenizer) => tokenizer.encode(text, true, false).len(),
            None => text.len() / USUAL_BYTES_PER_TOKEN,
        };
        let measured = |name: &str, of: &[Text], content: String, most_chunks: Option<usize>| {
            let found = tokens(&content);
            if tokenizer.is_some() && found < windows::MIN_CHUNKS * context {
                return Err(too_short(name, of, found, context));
            }
            let chunks = most_chunks.map_or(usize::MAX, |chunks| chunks.max(1));
            Ok(Measured {
                content,
                most_chunks,
                names: names(of),
                tokens: (chunks.min(found / context) * context) as u64,
            })
        };
        let all = joined(&texts.calibration);
        let whole = measured("calibration", &texts.calibration, all, None)?;
        let chunks = options.scoring.chunks.max(windows::MIN_CHUNKS);
        let probing = spread(&whole.content, chunks * context * BYTES_PER_TOKEN);
        let evaluation = joined(&texts.evaluation);
        let most = texts.evaluation_chunks;
        let least = LEAST_BYTES.max(LEAST_CHUNKS * context * BYTES_PER_TOKEN);
        let calibration = parts(&whole.content, least);
        // Each part ends with its last whole chunk.
        let of_part = |part: &String| tokens(part) / context * context;
        Ok(Prepared {
            calibration_tokens: calibration.iter().map(of_part).sum::<usize>() as u64,
            calibration,
            probing: measured("calibration", &texts.calibration, probing, Some(chunks))?,
            evaluation: measured("evaluation", &texts.evaluation, evaluation, most)?,
            calibration_names: whole.names,
            are_estimates: tokenizer.is_none(),
        })
    }
}

impl Prepared {
    /// Number of tokens for measurements that guide the allocation.
    pub(in super::super) fn probing_tokens(&self) -> u64 {
        self.probing.tokens
    }

    /// Number of tokens of the evaluation text.
    pub(in super::super) fn evaluation_tokens(&self) -> u64 {
        self.evaluation.tokens
    }

    /// For reports: the calibration texts as one, with their tokens.
    pub(in super::super) fn calibration_used(&self) -> Used {
        vec![(self.calibration_names.join(", "), self.calibration_tokens)]
    }
}

impl Measured {
    /// For reports: the texts as one, with their tokens.
    pub(super) fn used(&self, tokens: u64) -> Used {
        vec![(self.names.join(", "), tokens)]
    }
}

fn names(texts: &[Text]) -> Vec<String> {
    texts.iter().map(|text| text.name.clone()).collect()
}

fn joined(texts: &[Text]) -> String {
    let contents: Vec<&str> = texts.iter().map(|text| &*text.content).collect();
    contents.join(BETWEEN)
}

/// The text's pieces: paragraphs if there are `least`, otherwise lines.
fn pieces(text: &str, least: usize) -> Vec<&str> {
    let paragraphs: Vec<&str> = text.split_inclusive("\n\n").collect();
    match paragraphs.len() >= least {
        true => paragraphs,
        false => text.split_inclusive('\n').collect(),
    }
}

/// Divides a text at the ends of paragraphs or lines into parts of equal size, of at least `least`
/// bytes.
fn parts(text: &str, least: usize) -> Vec<String> {
    let count = (text.len() / least).clamp(1, MOST_PARTS);
    let mut parts = vec![String::new(); count];
    let mut before = 0;
    for piece in pieces(text, 4 * count) {
        let middle = before + piece.len() / 2;
        parts[(middle * count / text.len().max(1)).min(count - 1)].push_str(piece);
        before += piece.len();
    }
    // Long lines leave small parts, which join their neighbours.
    let mut whole: Vec<String> = Vec::new();
    for part in parts {
        match whole.last_mut() {
            Some(last) if last.len().min(part.len()) < least.div_ceil(2) => last.push_str(&part),
            _ => whole.push(part),
        }
    }
    whole
}

/// About `bytes` bytes of a text, in paragraphs or lines spread evenly over it.
fn spread(text: &str, bytes: usize) -> String {
    /// Number of regions that each give their first pieces.
    const REGIONS: usize = 24;
    if text.len() <= bytes {
        return text.to_owned();
    }
    let (mut kept, mut before) = (String::new(), 0);
    let mut taken = [0; REGIONS];
    for piece in pieces(text, 4 * REGIONS) {
        let region = (before * REGIONS / text.len()).min(REGIONS - 1);
        before += piece.len();
        if taken[region] < bytes / REGIONS {
            taken[region] += piece.len();
            kept.push_str(piece);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: usize) -> String {
        (0..pieces)
            .map(|i| format!("piece {i:05} of it\n\n"))
            .collect()
    }

    #[test]
    fn parts_hold_all_of_the_text() {
        let text = text(1000);
        for (least, count) in [
            (usize::MAX / 2, 1),
            (9_000, 2),
            (3_000, 6),
            (100, MOST_PARTS),
        ] {
            let parts = parts(&text, least);
            assert_eq!(parts.len(), count, "{least}");
            assert_eq!(parts.concat(), text);
            let sizes: Vec<_> = parts.iter().map(String::len).collect();
            let most = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            assert!(most < 100, "{sizes:?}");
        }
        assert_eq!(parts("one line", 1), ["one line"]);
    }

    #[test]
    fn spread_pieces_come_from_all_regions() {
        let text = text(1000);
        let some = spread(&text, 4_800);
        assert!((4_000..7_000).contains(&some.len()), "{}", some.len());
        assert!(
            some.starts_with("piece 00000") && some.contains("piece 00960"),
            "{some}"
        );
        assert_eq!(spread(&text, 1 << 20), text);
    }
}
