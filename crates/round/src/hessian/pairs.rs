//! Inputs of a linear in the original and in the rounded model: sums for the linear prediction of
//! one from the other.

use super::sample::Sample;
use super::store::symmetric;
use super::sums::{Kind, Rows, Work, panel_numbers, rows};
use super::{SAMPLE, TOGETHER, is_held_out};
use quantier_core::turns::Turns;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Sums over pairs of activations, while chunks run through both models: from several threads,
/// added in chunk order.
pub struct PairSums {
    columns: usize,
    chunks: usize,
    turn: Mutex<Turn>,
    work: Work,
    /// Panels of the squares, then of the products of the differences.
    panels: [Range<usize>; 2],
    /// Panels of the squares of the differences, if wanted.
    differences: Option<Range<usize>>,
}

struct Turn {
    turns: Turns<[Vec<f32>; 2]>,
    /// Differences waiting for a product, and their activations of the rounded model.
    waiting: [Vec<f32>; 2],
    rows: u64,
    /// Held-out rows of both, concatenated.
    sample: Sample,
}

/// Means over pairs of activations: `x` of the original model, `z` of the rounded one.
#[derive(Clone, Debug, PartialEq)]
pub struct PairMeans {
    /// The length `n` of an input row.
    pub columns: usize,
    /// Number of rows summed.
    pub rows: u64,
    /// The mean of `z z^T`: `[n, n]`.
    pub mean: Vec<f32>,
    /// The mean of `(x - z) z^T`: `[n, n]`.
    pub cross: Vec<f32>,
    /// The mean of `(x - z) (x - z)^T`: `[n, n]`; `None` if not summed.
    pub differences: Option<Vec<f32>>,
    /// `x` and `z` of held-out rows: `[k, n]` each; `k` is 0 for a single chunk.
    pub samples: [Vec<f32>; 2],
}

impl PairSums {
    /// Sums for activations of `columns` channels in `chunks` chunks; with `differences` also their
    /// squares.
    pub fn new(columns: usize, chunks: usize, differences: bool) -> PairSums {
        let work = Work::default();
        let panels = [Kind::Square, Kind::Cross].map(|kind| work.begin(columns, kind));
        let differences = differences.then(|| work.begin(columns, Kind::Square));
        let turn = Turn {
            turns: Turns::default(),
            waiting: [Vec::new(), Vec::new()],
            rows: 0,
            sample: Sample::new(SAMPLE),
        };
        PairSums {
            columns,
            chunks,
            turn: Mutex::new(turn),
            work,
            panels,
            differences,
        }
    }

    /// Bytes of the sums and means of `columns` channels.
    pub(crate) fn bytes(columns: usize) -> u64 {
        4 * (2 * panel_numbers(columns) + 4 * columns * columns) as u64
    }

    /// Adds the inputs of a chunk in the original and in the rounded model, both `[positions,
    /// columns]`.
    pub fn add(&self, chunk: usize, original: Vec<f32>, rounded: Vec<f32>) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = &mut *turn;
        turn.turns.put(chunk, [original, rounded]);
        while let Some((chunk, [mut x, z])) = turn.turns.pop() {
            if is_held_out(chunk, self.chunks) {
                for (x, z) in x
                    .chunks_exact(self.columns)
                    .zip(z.chunks_exact(self.columns))
                {
                    turn.sample.offer(&[x, z].concat(), 2 * self.columns);
                }
                continue;
            }
            x.iter_mut().zip(&z).for_each(|(x, z)| *x -= z);
            turn.rows += (z.len() / self.columns) as u64;
            for (waiting, new) in turn.waiting.iter_mut().zip([x, z]) {
                if waiting.is_empty() {
                    *waiting = new
                } else {
                    waiting.extend(new)
                }
            }
            if turn.waiting[1].len() >= TOGETHER * self.columns {
                self.flush(turn);
            }
        }
    }

    /// Processes queued sums on the calling thread.
    pub fn help(&self) {
        self.work.help();
    }

    fn flush(&self, turn: &mut Turn) {
        let [differences, z] = turn
            .waiting
            .each_mut()
            .map(|rows| Rows::new(std::mem::take(rows)));
        if !z.is_empty() {
            self.work.add(self.panels[0].clone(), [&z; 2]);
            self.work.add(self.panels[1].clone(), [&differences, &z]);
            if let Some(panels) = &self.differences {
                self.work.add(panels.clone(), [&differences; 2]);
            }
        }
    }

    /// Computes the means on all threads of the current pool.
    pub fn finish(self) -> PairMeans {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.flush(&mut turn);
        let panels = self.work.finish();
        let count = turn.rows.max(1) as f64;
        let mean = |of: &Range<usize>| -> Vec<f32> {
            let sums = rows(&panels[of.clone()]).flatten();
            sums.map(|sum| (f64::from(*sum) / count) as f32).collect()
        };
        let [squares, cross] = self.panels.each_ref().map(mean);
        let differences = self.differences.as_ref().map(mean);
        let n = self.columns;
        let (kept, both) = std::mem::replace(&mut turn.sample, Sample::new(0)).finish();
        debug_assert_eq!(both.len(), 2 * kept * n);
        let half = |first: usize| {
            both.chunks_exact(2 * n)
                .flat_map(|row| row[first..first + n].iter().copied())
                .collect()
        };
        PairMeans {
            columns: n,
            rows: turn.rows,
            mean: symmetric(&squares, n),
            cross,
            differences: differences.map(|upper| symmetric(&upper, n)),
            samples: [half(0), half(n)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::HELD_OUT;
    use quantier_core::rng::Rng;

    #[test]
    fn pairs_are_summed_in_order_without_held_out_chunks() {
        const N: usize = 100;
        const ROWS: usize = 40;
        let mut rng = Rng::new(5);
        let mut number = || rng.centered();
        let chunks = HELD_OUT + 1;
        let mut piece = || (0..ROWS * N).map(|_| number()).collect::<Vec<f32>>();
        let all: Vec<[Vec<f32>; 2]> = (0..chunks).map(|_| [piece(), piece()]).collect();
        let paired = |order: &mut dyn Iterator<Item = usize>| {
            let pairs = PairSums::new(N, chunks, true);
            order.for_each(|chunk| pairs.add(chunk, all[chunk][0].clone(), all[chunk][1].clone()));
            pairs.finish()
        };
        let found = paired(&mut (0..chunks));
        assert_eq!(found, paired(&mut (0..chunks).rev()));
        let held = HELD_OUT - 1;
        assert_eq!(
            (found.rows, &found.samples),
            (((chunks - 1) * ROWS) as u64, &all[held])
        );
        let summed = || {
            (0..chunks)
                .filter(|c| *c != held)
                .flat_map(|c| all[c][0].chunks(N).zip(all[c][1].chunks(N)))
        };
        for (i, j) in [(0, 0), (3, 97), (97, 3), (N - 1, N - 2)] {
            let mean = |of: &dyn Fn(&[f32], &[f32]) -> f64| {
                summed().map(|(x, z)| of(x, z)).sum::<f64>() / ((chunks - 1) * ROWS) as f64
            };
            let square = mean(&|_, z| f64::from(z[i]) * f64::from(z[j]));
            let cross = mean(&|x, z| f64::from(x[i] - z[i]) * f64::from(z[j]));
            let both = mean(&|x, z| f64::from(x[i] - z[i]) * f64::from(x[j] - z[j]));
            assert!(
                (f64::from(found.mean[i * N + j]) - square).abs() < 1e-6,
                "{i} {j}"
            );
            assert!(
                (f64::from(found.cross[i * N + j]) - cross).abs() < 1e-6,
                "{i} {j}"
            );
            let differences = found.differences.as_ref().unwrap();
            assert!(
                (f64::from(differences[i * N + j]) - both).abs() < 1e-6,
                "{i} {j}"
            );
        }
    }

    #[test]
    fn a_single_chunk_is_summed() {
        let pairs = PairSums::new(2, 1, false);
        pairs.add(0, vec![1.0, 2.0], vec![1.0, 1.0]);
        let found = pairs.finish();
        assert_eq!(
            (found.mean, found.cross, found.rows),
            (vec![1.0; 4], vec![0.0, 0.0, 1.0, 1.0], 1)
        );
        assert!(found.samples.iter().all(Vec::is_empty));
    }
}
