//! Recipes between two optima of the frontier.
//!
//! Let a recipe of the frontier and the one after its next step be D bytes and U nats apart, and
//! consider changes of the first, in any number of items. A change by b bytes and n nats *strays* by
//! n + b U/D from the straight line between the two. No change strays below the line, and the strays
//! of items add up: a change of one item with a large stray is in no good recipe. So:
//!
//! ```text
//! states = {no change}; found = {no change}
//! for each item, by rising stray:
//!     stop if it strays by more than the widest gap between `found` and the line
//!     states = every state, combined with every change of the item below the gap
//!     drop states that are dominated, or stray by the gap, or cannot return below D bytes
//!     found  = the best recipes at every size from 0 to D, those of the states included
//! ```
//!
//! This is the dynamic program over an expanding core of Pisinger, "A minimal algorithm for the
//! multiple-choice knapsack problem" (1995), for all sizes between two optima at once. Two
//! departures bound the work: a gap below a ten-thousandth of the nats counts as none, and of too
//! many states, only the one with the fewest bytes in every band of nats is kept.
//!
//! More bytes never predict more nats: the recipes between two optima depend on these optima, not on
//! the budget, and an optimum is no worse than any smaller recipe.

use super::hull::{Frontier, Rung, Sums, keep_unbeaten};
use super::problem::Solution;

/// A gap of at most the nats divided by this counts as none.
const TOLERANCE: i128 = 10_000;

/// Approximate limit on the combinations between two optima.
const WORK: usize = 1 << 20;

impl Frontier {
    /// The best recipe within `bytes`, those of the fixed tensors included; `None` below the
    /// smallest.
    ///
    /// It is the optimum if a recipe of the frontier has that size, else usually within 0.01% of the
    /// fewest nats possible. More bytes never predict more nats.
    pub fn at_most(&self, bytes: u64) -> Option<Solution> {
        let steps = self.steps_within(bytes)?;
        if self.sums[steps].bytes == bytes || steps == self.steps().len() {
            return Some(self.after(steps));
        }
        let filling = Filling::after(self, steps);
        let over = (bytes - self.sums[steps].bytes) as i64;
        let fits = filling.found.partition_point(|state| state.bytes <= over);
        Some(filling.solution(filling.found[fits - 1]))
    }

    /// The smallest recipe with at most `nats` predicted nats; `None` below the fewest.
    pub fn for_nats(&self, nats: f64) -> Option<Solution> {
        let enough = |units: i64| self.nats(units) <= nats;
        let steps = self.sums.iter().position(|sums| enough(sums.units))?;
        let Some(before) = steps.checked_sub(1) else {
            return Some(self.after(0));
        };
        let filling = Filling::after(self, before);
        let units = self.sums[before].units;
        let smaller = filling
            .found
            .iter()
            .find(|state| enough(units + state.units));
        Some(smaller.map_or_else(|| self.after(steps), |state| filling.solution(*state)))
    }
}

/// A change of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// Bytes added.
    bytes: i64,
    /// Units of nats added.
    units: i64,
    /// Its last change, an index into `Filling::changes`; 0 for no change.
    change: usize,
    /// Rung of the current item, while it is combined.
    rung: usize,
}

/// The last change of a state; `before` leads to the others.
#[derive(Clone, Copy)]
struct Change {
    before: usize,
    ladder: usize,
    rung: usize,
}

/// An item of the core.
struct Member {
    ladder: usize,
    /// Changes (bytes and units added, rung), by rising stray.
    options: Vec<State>,
}

/// The best recipes between one optimum and the next.
struct Filling<'a> {
    frontier: &'a Frontier,
    /// The first optimum: a rung per ladder, and its sums.
    rungs: Vec<usize>,
    sums: Sums,
    line: Line,
    changes: Vec<Change>,
    /// By rising bytes and falling nats; the first is no change.
    found: Vec<State>,
}

/// The line from one optimum to the next: D and U.
#[derive(Clone, Copy)]
struct Line {
    bytes: i64,
    units: i64,
}

impl Line {
    /// Stray of a change, in units times D.
    fn stray(self, bytes: i64, units: i64) -> i128 {
        units as i128 * self.bytes as i128 + bytes as i128 * self.units as i128
    }
}

impl<'a> Filling<'a> {
    fn after(frontier: &'a Frontier, steps: usize) -> Filling<'a> {
        let step = &frontier.steps()[steps];
        let nothing = State {
            bytes: 0,
            units: 0,
            change: 0,
            rung: 0,
        };
        let mut filling = Filling {
            frontier,
            rungs: frontier.rungs_after(steps),
            sums: frontier.sums[steps],
            line: Line {
                bytes: step.bytes as i64,
                units: step.units,
            },
            changes: vec![Change {
                before: 0,
                ladder: 0,
                rung: 0,
            }],
            found: vec![nothing],
        };
        filling.search(nothing);
        filling
    }

    fn search(&mut self, nothing: State) {
        let mut gap = self.widest_gap();
        let core = self.core(gap);
        let options: usize = core.iter().map(|member| 1 + member.options.len()).sum();
        let most_states = (WORK / options.max(1)).max(64);
        // The most bytes that each item and its successors can save.
        let mut back = vec![0; core.len() + 1];
        for (i, member) in core.iter().enumerate().rev() {
            back[i] = back[i + 1]
                + member
                    .options
                    .iter()
                    .map(|o| o.bytes)
                    .min()
                    .unwrap_or(0)
                    .min(0);
        }

        let mut states = vec![nothing];
        let mut combined = Vec::new();
        for (i, member) in core.iter().enumerate() {
            if self.stray(member.options[0]) >= gap {
                break;
            }
            combined.clear();
            for &state in &states {
                combined.push(State {
                    rung: usize::MAX,
                    ..state
                });
                let left = gap - self.stray(state);
                let few = member
                    .options
                    .iter()
                    .take_while(|&&option| self.stray(option) < left);
                combined.extend(few.map(|option| State {
                    bytes: state.bytes + option.bytes,
                    units: state.units + option.units,
                    ..State {
                        change: state.change,
                        ..*option
                    }
                }));
            }
            combined.retain(|state| state.bytes + back[i + 1] < self.line.bytes);
            sort_unbeaten(&mut combined);
            self.keep_found(&mut combined, member.ladder, most_states);
            std::mem::swap(&mut states, &mut combined);
            gap = self.widest_gap();
            states.retain(|&state| self.stray(state) < gap);
        }
    }

    /// The items with changes below the gap.
    fn core(&self, gap: i128) -> Vec<Member> {
        let member = |(ladder, &at): (usize, &usize)| {
            let rungs = &self.frontier.ladders[ladder].rungs;
            let now: Rung = rungs[at];
            let change = |(rung, to): (usize, &Rung)| State {
                bytes: to.bytes - now.bytes,
                units: to.units - now.units,
                change: 0,
                rung,
            };
            let mut options: Vec<State> = rungs
                .iter()
                .enumerate()
                .map(change)
                .filter(|o| o.rung != at)
                .collect();
            options.retain(|&option| self.stray(option) < gap);
            options.sort_by_key(|&option| (self.stray(option), option.rung));
            (!options.is_empty()).then_some(Member { ladder, options })
        };
        let mut core: Vec<Member> = self.rungs.iter().enumerate().filter_map(member).collect();
        core.sort_by_key(|member| self.stray(member.options[0]));
        core
    }

    fn stray(&self, state: State) -> i128 {
        self.line.stray(state.bytes, state.units)
    }

    /// The greatest distance of `found` from the line, in units times D. It occurs just below the size
    /// of a recipe, where the one before is still the best. Gaps within the tolerance count as none.
    fn widest_gap(&self) -> i128 {
        let next = State {
            bytes: self.line.bytes,
            units: -self.line.units,
            change: 0,
            rung: 0,
        };
        let sizes = self.found[1..]
            .iter()
            .chain([&next])
            .map(|state| state.bytes - 1);
        let gap = |(state, size): (&State, i64)| {
            let gap = self.line.stray(size, state.units);
            let bound = self.line.stray(0, self.sums.units) - self.line.stray(size, 0);
            if gap > bound / TOLERANCE { gap } else { 0 }
        };
        self.found.iter().zip(sizes).map(gap).max().unwrap_or(0)
    }

    /// Adds the best states of their size to `found`, and thins the states to `most`.
    fn keep_found(&mut self, states: &mut Vec<State>, ladder: usize, most: usize) {
        let Line { bytes, units } = self.line;
        let is_between = |state: &State| {
            (1..bytes).contains(&state.bytes) && (-units + 1..0).contains(&state.units)
        };
        // Marks instead of removal: thinning must not lose a state that improves `found`.
        let stays = bands(states, most);
        let mut kept = Vec::with_capacity(most.min(states.len()));
        for (state, stays) in states.iter().zip(stays) {
            let improves = is_between(state) && {
                let smaller = self.found.partition_point(|f| f.bytes <= state.bytes);
                self.found[smaller - 1].units > state.units
            };
            if !stays && !improves {
                continue;
            }
            let change = if state.rung == usize::MAX {
                state.change
            } else {
                self.changes.push(Change {
                    before: state.change,
                    ladder,
                    rung: state.rung,
                });
                self.changes.len() - 1
            };
            let state = State {
                change,
                rung: 0,
                ..*state
            };
            if improves {
                kept.push((state, true));
            }
            if stays {
                kept.push((state, false));
            }
        }
        self.found.extend(
            kept.iter()
                .filter(|(_, improves)| *improves)
                .map(|(state, _)| *state),
        );
        sort_unbeaten(&mut self.found);
        states.clear();
        states.extend(
            kept.iter()
                .filter(|(_, improves)| !*improves)
                .map(|(state, _)| *state),
        );
    }

    fn solution(&self, state: State) -> Solution {
        let mut rungs = self.rungs.clone();
        let mut at = state.change;
        while at != 0 {
            let change = self.changes[at];
            rungs[change.ladder] = change.rung;
            at = change.before;
        }
        let sums = Sums {
            bytes: self.sums.bytes.saturating_add_signed(state.bytes),
            units: self.sums.units + state.units,
        };
        self.frontier.solution(&rungs, sums)
    }
}

/// Sorts by rising bytes and drops dominated states; the first of equals stays.
fn sort_unbeaten(states: &mut Vec<State>) {
    states.sort_unstable();
    keep_unbeaten(states, |state| state.units);
}

/// Marks the states to keep of a list by rising bytes and falling nats: the smallest in each of
/// `most` bands of nats.
fn bands(states: &[State], most: usize) -> Vec<bool> {
    let (Some(first), Some(last)) = (states.first(), states.last()) else {
        return Vec::new();
    };
    if states.len() <= most {
        return vec![true; states.len()];
    }
    let width = (first.units as i128 - last.units as i128) / most as i128 + 1;
    let band = |state: &State| (first.units as i128 - state.units as i128) / width;
    let mut before = -1;
    states
        .iter()
        .map(|state| std::mem::replace(&mut before, band(state)) != band(state))
        .collect()
}
