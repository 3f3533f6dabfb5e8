//! Passages that two texts have in common, found by their tokens.

use std::collections::{HashMap, HashSet};
use std::fmt;

/// Tokens of a passage.
const LENGTH: usize = 24;
/// Least number of different tokens in a passage: tables, rules and indentation repeat a few.
const DIFFERENT: usize = 12;
/// A passage that a text repeats so often is boilerplate: the system prompt of a chat template, a licence's header.
const BOILERPLATE: usize = 3;
/// One chunk in this many may have passages of another text: standard phrases, such as licences, recur in texts of
/// different origin.
const MOST_SHARED: usize = 20;

/// The passages of some chunks of tokens, without boilerplate.
pub(crate) struct Passages<'a>(HashSet<&'a [u32]>);

/// Chunks of a text with passages of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Name of the text.
    pub text: String,
    /// Number of its chunks that have passages of the other one.
    pub shared: usize,
    /// Number of all its chunks.
    pub chunks: usize,
}

impl<'a> Passages<'a> {
    pub(crate) fn of(chunks: impl Iterator<Item = &'a [u32]>) -> Passages<'a> {
        let mut counts = HashMap::new();
        for tokens in chunks
            .flat_map(|chunk| chunk.windows(LENGTH))
            .filter(is_passage)
        {
            *counts.entry(tokens).or_insert(0_usize) += 1;
        }
        let passages = counts.into_iter().filter(|&(_, count)| count < BOILERPLATE);
        Passages(passages.map(|(tokens, _)| tokens).collect())
    }

    /// True if a chunk has one of these passages.
    pub(crate) fn are_in(&self, chunk: &[u32]) -> bool {
        chunk.windows(LENGTH).any(|tokens| self.0.contains(tokens))
    }
}

/// True for enough different tokens.
fn is_passage(tokens: &&[u32]) -> bool {
    let mut tokens = tokens.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    tokens.len() >= DIFFERENT
}

impl Shared {
    /// True if these are more chunks than standard phrases explain.
    pub(crate) fn is_much(&self) -> bool {
        self.shared * MOST_SHARED > self.chunks
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared {
            text,
            shared,
            chunks,
        } = self;
        write!(f, "{text} has {shared} of its {chunks} chunks in common")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passage_is_found_wherever_it_begins() {
        let calibration: Vec<u32> = (0..200).collect();
        let passages = Passages::of(calibration.chunks(100));
        let with = |first: u32, tokens: u32| {
            let mut chunk = vec![1000; 70];
            chunk.splice(31..31, first..first + tokens);
            passages.are_in(&chunk)
        };
        assert!(with(0, 24) && with(57, 24) && with(120, 80));
        // Too short, and across two chunks.
        assert!(!with(0, 23) && !with(88, 24) && !passages.are_in(&[]));
    }

    #[test]
    fn boilerplate_is_no_passage() {
        // Conversations with the same system prompt.
        let prompt = 0..40;
        let conversation = |of: u32| {
            prompt
                .clone()
                .chain(100 * of..100 * of + 60)
                .collect::<Vec<u32>>()
        };
        let chunks: Vec<Vec<u32>> = (1..=3).map(conversation).collect();
        let found = |chunks: &[Vec<u32>], of| {
            Passages::of(chunks.iter().map(Vec::as_slice)).are_in(&conversation(of))
        };
        assert!(!found(&chunks, 9) && found(&chunks, 2) && found(&chunks[..2], 9));
    }

    #[test]
    fn tables_are_no_passages() {
        let rule: Vec<u32> = (0..30).map(|i| i % 11).collect();
        let row: Vec<u32> = (0..30).map(|i| i % 12).collect();
        let found = |chunk: &[u32]| Passages::of([chunk].into_iter()).are_in(chunk);
        assert!(found(&row) && !found(&rule));
    }

    #[test]
    fn standard_phrases_are_not_much() {
        let shared = |shared| Shared {
            text: "wiki.txt".into(),
            shared,
            chunks: 100,
        };
        assert!(!shared(5).is_much() && shared(6).is_much());
    }
}
