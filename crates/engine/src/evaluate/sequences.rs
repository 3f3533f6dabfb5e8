//! Sequences of tokens with their scored positions: chunks of a text, conversations, answers of a task.

use super::windows::Windows;
use std::ops::Range;

/// A scored position: the model's distribution there predicts the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The position of the last visible token.
    pub position: u32,
    /// The next token.
    pub label: u32,
}

/// Tokens that are run together, separately from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    tokens: Vec<u32>,
    /// Ascending by position.
    targets: Vec<Target>,
}

impl Sequence {
    /// Scores each token of the ranges by its predecessors. The first token of a sequence has none and is not
    /// scored.
    ///
    /// # Panics
    /// If a range exceeds the tokens, or the ranges are not ascending.
    pub fn new(tokens: Vec<u32>, scored: &[Range<usize>]) -> Sequence {
        let in_order = scored.windows(2).all(|pair| pair[0].end <= pair[1].start);
        assert!(in_order, "ranges in ascending order");
        let labels = scored.iter().cloned().flatten().filter(|label| *label > 0);
        let target = |label: usize| Target {
            position: (label - 1) as u32,
            label: tokens[label],
        };
        Sequence {
            targets: labels.map(target).collect(),
            tokens,
        }
    }

    /// The input of the model.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The scored positions, ascending.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Positions from the first to the last scored one.
    pub(crate) fn span(&self) -> Range<usize> {
        match (self.targets.first(), self.targets.last()) {
            (Some(first), Some(last)) => first.position as usize..last.position as usize + 1,
            _ => 0..0,
        }
    }
}

/// Sequences in order. Scored positions are numbered as rows through all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequences {
    all: Vec<Sequence>,
    /// The end of each sequence's rows.
    ends: Vec<usize>,
}

/// The place of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The sequence.
    pub sequence: usize,
    /// The scored position in it.
    pub target: Target,
}

impl FromIterator<Sequence> for Sequences {
    fn from_iter<I: IntoIterator<Item = Sequence>>(all: I) -> Sequences {
        let all: Vec<Sequence> = all.into_iter().collect();
        let ends = all.iter().scan(0, |end, sequence| {
            *end += sequence.targets.len();
            Some(*end)
        });
        Sequences {
            ends: ends.collect(),
            all,
        }
    }
}

impl From<&Windows<'_>> for Sequences {
    /// The chunks of a text; their second halves are scored.
    fn from(windows: &Windows<'_>) -> Sequences {
        let chunk = |chunk: usize| {
            let positions = windows.first_scored() as u32..;
            let labels = positions.zip(windows.labels(chunk));
            let targets = labels.map(|(position, &label)| Target { position, label });
            Sequence {
                tokens: windows.input(chunk),
                targets: targets.collect(),
            }
        };
        (0..windows.chunks()).map(chunk).collect()
    }
}

impl Sequences {
    /// The sequences.
    pub fn all(&self) -> &[Sequence] {
        &self.all
    }

    /// Number of rows of all sequences.
    pub fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The rows of some sequences.
    ///
    /// # Panics
    /// If a sequence does not exist.
    pub fn rows_of(&self, sequences: Range<usize>) -> Range<usize> {
        let before = |sequence: usize| sequence.checked_sub(1).map_or(0, |last| self.ends[last]);
        before(sequences.start)..before(sequences.end)
    }

    /// The place of a row.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn place(&self, row: usize) -> Place {
        let sequence = self.ends.partition_point(|end| *end <= row);
        let first = self.rows_of(sequence..sequence).start;
        Place {
            sequence,
            target: self.all[sequence].targets[row - first],
        }
    }

    /// Number of tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        let lengths = self.all.iter().map(|sequence| sequence.tokens.len());
        lengths.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(position: u32, label: u32) -> Target {
        Target { position, label }
    }

    #[test]
    fn scored_tokens_are_predicted_by_their_predecessors() {
        let sequence = Sequence::new(vec![5, 6, 7, 8, 9], &[0..2, 3..5]);
        assert_eq!(
            sequence.targets(),
            [target(0, 6), target(2, 8), target(3, 9)]
        );
        assert_eq!(sequence.span(), 0..4);
        let first = 0..1;
        let nothing = Sequence::new(vec![5], std::slice::from_ref(&first));
        assert_eq!(nothing.span(), 0..0);
    }

    #[test]
    fn rows_are_numbered_through_all_sequences() {
        let sequences: Sequences = [
            Sequence::new(vec![1, 2, 3], std::slice::from_ref(&(1..3))),
            Sequence::new(vec![4, 5], &[]),
            Sequence::new(vec![6, 7], std::slice::from_ref(&(1..2))),
        ]
        .into_iter()
        .collect();
        assert_eq!((sequences.rows(), sequences.longest()), (3, 3));
        assert_eq!(sequences.rows_of(0..1), 0..2);
        assert_eq!(sequences.rows_of(1..3), 2..3);
        let places = [0, 1, 2].map(|row| sequences.place(row));
        assert_eq!(places.map(|place| place.sequence), [0, 0, 2]);
        assert_eq!(places[2].target, target(0, 7));
    }

    #[test]
    fn windows_keep_their_scored_halves() {
        let tokens: Vec<u32> = (10..26).collect();
        let windows = Windows::of_text(&tokens, 8, None, Some(1)).unwrap();
        let sequences = Sequences::from(&windows);
        let chunk = &sequences.all()[1];
        assert_eq!(chunk.tokens(), [1, 19, 20, 21, 22, 23, 24, 25]);
        assert_eq!(
            chunk.targets(),
            [target(4, 23), target(5, 24), target(6, 25)]
        );
        assert_eq!(chunk.span(), 4..7);
    }
}
