//! Rotary position embeddings (Su et al. 2021).

use crate::model::rows::Rows;
use quantier_arch::Rope;

/// Cosines and sines by position, `[positions, pairs]`.
#[derive(Debug)]
pub(crate) struct Angles {
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
    /// Number of rotated pairs per head.
    pub pairs: usize,
}

/// Direction of rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    /// The derivative of [`Direction::Forward`].
    Back,
}

impl Angles {
    /// Rotates the first `2 * pairs` numbers of heads `[heads, positions, length]`, as rows of `length`. The table
    /// may have more positions.
    pub(crate) fn rotate(&self, x: &mut Rows, positions: usize, rope: Rope, direction: Direction) {
        debug_assert!(positions * self.pairs <= self.cosines.len());
        if self.pairs == 0 || positions == 0 {
            return;
        }
        let length = x.columns();
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Back => -1.0,
        };
        for head in x.numbers_mut().chunks_exact_mut(positions * length) {
            let angles = self
                .cosines
                .chunks_exact(self.pairs)
                .zip(self.sines.chunks_exact(self.pairs));
            for (x, (cosines, sines)) in head.chunks_exact_mut(length).zip(angles) {
                for (pair, (cos, sin)) in cosines.iter().zip(sines).enumerate() {
                    let (first, second) = match rope {
                        Rope::Pairs => (2 * pair, 2 * pair + 1),
                        Rope::Halves => (pair, pair + self.pairs),
                        Rope::None => return,
                    };
                    let (a, b, sin) = (x[first], x[second], sign * sin);
                    x[first] = a * cos - b * sin;
                    x[second] = a * sin + b * cos;
                }
            }
        }
    }
}
