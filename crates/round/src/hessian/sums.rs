//! Sums of column products, computed by any available thread.
//!
//! A sum is split into panels: rows of the upper triangle, from the diagonal block to the right.
//! Each panel has a queue of activations; one thread at a time takes a panel and empties its queue.
//! Additions therefore keep the order of the queue regardless of threads, and no thread waits for
//! another.
//!
//! A sum over several units of a text (see [`super::unit_chunks`]) starts anew in each unit; the units'
//! sums are added in order, in f32. The total of a sum of one unit is that sum.

use crate::matrix::add_columns_times_columns;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows per panel. More compute more below the diagonal, fewer make products less efficient: with
/// 96, both 256 and 4096 columns are within a few percent of the optimum.
const PANEL: usize = 96;

/// Size of a matrix's panels, in numbers.
pub fn panel_numbers(columns: usize) -> usize {
    (0..columns)
        .step_by(PANEL)
        .map(|first| PANEL.min(columns - first) * (columns - first))
        .sum()
}

/// Activations `[n, columns]`, shared by the queues of panels.
pub type Rows = Arc<Vec<f32>>;

/// Kind of product summed over pairs of activations `x` and `y`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// `x x^T`, upper triangle only; `y` is `x`.
    #[default]
    Square,
    /// `x y^T`, in full.
    Cross,
}

/// Some rows of a sum: `[some.len(), columns]`; for a square without the columns before `some`.
#[derive(Default)]
pub struct Panel {
    columns: usize,
    some: Range<usize>,
    kind: Kind,
    sums: Vec<f32>,
    /// Sum of the ended units; empty before the first one ends.
    ended: Vec<f32>,
    queue: VecDeque<Step>,
    /// True if a thread holds it or it is in the ready queue.
    taken: bool,
}

/// A step of a panel's sum.
enum Step {
    /// Adds the products of these activations.
    Add([Rows; 2]),
    /// Ends the unit.
    EndUnit,
}

/// Adds the sum of a unit to that of the units before it; `sums` is 0 afterwards.
pub fn end_unit(ended: &mut Vec<f32>, sums: &mut Vec<f32>) {
    if ended.is_empty() {
        *ended = vec![0.0; sums.len()];
        std::mem::swap(ended, sums);
        return;
    }
    let pairs = ended.iter_mut().zip(sums);
    pairs.for_each(|(ended, sum)| *ended += std::mem::take(sum));
}

impl Panel {
    /// First stored column.
    fn from(&self) -> usize {
        if self.kind == Kind::Square {
            self.some.start
        } else {
            0
        }
    }

    /// The numbers of row `i`; for a square from the diagonal on.
    fn row(&self, i: usize) -> &[f32] {
        let (below, width) = (i - self.some.start, self.columns - self.from());
        let row = &self.sums[below * width..][..width];
        if self.kind == Kind::Square {
            &row[below..]
        } else {
            row
        }
    }
}

/// Rows of a finished sum; for a square those of its upper triangle, from the diagonal on.
pub fn rows(panels: &[Panel]) -> impl Iterator<Item = &[f32]> {
    panels
        .iter()
        .flat_map(|panel| panel.some.clone().map(|i| panel.row(i)))
}

/// All panels of a layer.
#[derive(Default)]
pub struct Work(Mutex<State>);

#[derive(Default)]
struct State {
    panels: Vec<Panel>,
    /// Panels with queued activations that no thread holds.
    ready: VecDeque<usize>,
}

impl Work {
    /// Allocates a sum of `columns` columns; returns the indices of its panels.
    pub fn begin(&self, columns: usize, kind: Kind) -> Range<usize> {
        let mut state = self.state();
        let start = state.panels.len();
        for first in (0..columns).step_by(PANEL) {
            let some = first..(first + PANEL).min(columns);
            let mut panel = Panel {
                columns,
                some,
                kind,
                ..Panel::default()
            };
            panel.sums = vec![0.0; panel.some.len() * (columns - panel.from())];
            state.panels.push(panel);
        }
        start..state.panels.len()
    }

    /// Queues pairs of activations for a sum.
    pub fn add(&self, panels: Range<usize>, rows: [&Rows; 2]) {
        self.queue(panels, || Step::Add(rows.map(Arc::clone)));
    }

    /// Queues the end of a unit for a sum.
    pub fn end_unit(&self, panels: Range<usize>) {
        self.queue(panels, || Step::EndUnit);
    }

    fn queue(&self, panels: Range<usize>, step: impl Fn() -> Step) {
        let mut state = self.state();
        for i in panels {
            state.panels[i].queue.push_back(step());
            if !std::mem::replace(&mut state.panels[i].taken, true) {
                state.ready.push_back(i);
            }
        }
    }

    /// Processes ready panels until none is left; other threads may still be busy with theirs.
    pub fn help(&self) {
        let mut state = self.state();
        while let Some(i) = state.ready.pop_front() {
            let panel = &mut state.panels[i];
            let (columns, some, from) = (panel.columns, panel.some.clone(), panel.from());
            let (mut sums, mut ended, queue) = (
                std::mem::take(&mut panel.sums),
                std::mem::take(&mut panel.ended),
                std::mem::take(&mut panel.queue),
            );
            drop(state);
            for step in queue {
                match step {
                    Step::Add([left, right]) => add_columns_times_columns(
                        [&left, &right],
                        columns,
                        some.clone(),
                        from,
                        &mut sums,
                    ),
                    Step::EndUnit => end_unit(&mut ended, &mut sums),
                }
            }
            state = self.state();
            let panel = &mut state.panels[i];
            (panel.sums, panel.ended) = (sums, ended);
            panel.taken = !panel.queue.is_empty();
            if panel.taken {
                state.ready.push_back(i);
            }
        }
    }

    /// Processes all queued activations on all threads of the current pool, and returns the panels.
    pub fn finish(&self) -> Vec<Panel> {
        rayon::broadcast(|_| self.help());
        let mut panels = std::mem::take(&mut self.state().panels);
        for panel in panels.iter_mut().filter(|panel| !panel.ended.is_empty()) {
            end_unit(&mut panel.ended, &mut panel.sums);
            panel.sums = std::mem::take(&mut panel.ended);
        }
        panels
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    #[test]
    fn units_are_summed_apart_and_added_in_order() {
        const COLUMNS: usize = PANEL + 3;
        let mut rng = Rng::new(2);
        let mut piece = || Arc::new((0..5 * COLUMNS).map(|_| rng.centered()).collect::<Vec<_>>());
        let units = [[piece(), piece()], [piece(), piece()], [piece(), piece()]];
        let sums = |units: &[[Rows; 2]]| -> Vec<f32> {
            let work = Work::default();
            let sum = work.begin(COLUMNS, Kind::Square);
            for (number, unit) in units.iter().enumerate() {
                unit.iter()
                    .for_each(|rows| work.add(sum.clone(), [rows; 2]));
                if number + 1 < units.len() {
                    work.end_unit(sum.clone());
                }
            }
            let panels = work.finish();
            rows(&panels).flatten().copied().collect()
        };
        let mut total = Vec::new();
        for unit in &units {
            end_unit(&mut total, &mut sums(std::slice::from_ref(unit)));
        }
        assert_eq!(sums(&units), total);
    }

    #[test]
    fn upper_triangles_match_a_plain_sum() {
        let mut rng = Rng::new(1);
        let mut number = || rng.centered();
        for columns in [1, 5, PANEL, PANEL + 1, 2 * PANEL + 37] {
            let pieces: Vec<Vec<f32>> = [3, 1, 70]
                .map(|n| (0..n * columns).map(|_| number()).collect())
                .into();
            let sums = |threads: usize| {
                let work = Work::default();
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let sum = work.begin(columns, Kind::Square);
                pieces
                    .iter()
                    .map(|rows| Arc::new(rows.clone()))
                    .for_each(|rows| work.add(sum.clone(), [&rows; 2]));
                pool.install(|| work.finish())
            };
            let (found, again) = (sums(1), sums(3));
            assert_eq!(
                found.iter().map(|panel| panel.sums.len()).sum::<usize>(),
                panel_numbers(columns)
            );
            assert!(rows(&found).eq(rows(&again)));
            for (i, row) in rows(&found).enumerate() {
                assert_eq!(row.len(), columns - i);
                for (j, x) in row.iter().enumerate() {
                    let product = |rows: &[f32]| f64::from(rows[i]) * f64::from(rows[i + j]);
                    let want: f64 = pieces
                        .iter()
                        .flat_map(|rows| rows.chunks(columns))
                        .map(product)
                        .sum();
                    assert!(
                        (f64::from(*x) - want).abs() < 1e-5,
                        "{columns}: {i} {j}: {x} {want}"
                    );
                }
            }
        }
    }
}
