//! What fills the bytes between two optima of the frontier.
//!
//! Let a recipe of the frontier and the one after its next step be D bytes and U nats apart, and
//! look at changes of the first, in any number of items. A change that adds b bytes and n nats
//! *strays* by n + b U/D from the straight line between the two. None strays below it, and strays
//! of items add up: a change of an item that strays by much is in no good recipe. So:
//!
//! ```text
//! states = {no change}; found = {no change}
//! for each item, those that stray least first:
//!     stop if the item strays by more than the widest gap between `found` and the line
//!     states = every state, combined with every change of the item that strays by less than the gap
//!     drop states that another beats in bytes and nats, or that stray by the gap, or that cannot come back below D
//!     found  = the best recipes at every size from 0 to D, with those of the states
//! ```
//!
//! This is the dynamic programme over a growing core of Pisinger, "A minimal algorithm for the
//! multiple-choice knapsack problem" (1995), for all sizes between two optima at once. Two
//! departures bound the work: a gap below a ten-thousandth of the nats counts as none, and where
//! states grow too many, of every band of nats one stays, the one with the fewest bytes.
//!
//! More bytes never predict more nats: the recipes between two optima depend on those two, not on
//! the budget, and an optimum is no worse than anything smaller.

use super::hull::{Frontier, Rung, Sums, keep_unbeaten};
use super::problem::Solution;

/// A gap between the best recipe found and the bound counts as none if it is the nats divided by
/// this, or less.
const TOLERANCE: i128 = 10_000;

/// About how many combinations are looked at between two optima.
const WORK: usize = 1 << 20;

impl Frontier {
    /// The best recipe found within so many bytes, those of the fixed tensors included; `None`
    /// below the smallest.
    ///
    /// A recipe of the frontier, the optimum, where one is that large; otherwise as a rule within
    /// 0.01% of the fewest nats possible. More bytes never predict more nats.
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

    /// The smallest recipe found with at most so many predicted nats; `None` if none has so few.
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
    /// Bytes that it adds.
    bytes: i64,
    /// Units of nats that it adds.
    units: i64,
    /// Where it came from: an index into `Filling::changes`, 0 for no change at all.
    change: usize,
    /// What the last item changes to, while the item is being combined.
    rung: usize,
}

/// The last of the changes that lead to a state.
#[derive(Clone, Copy)]
struct Change {
    before: usize,
    ladder: usize,
    rung: usize,
}

/// An item of the core.
struct Member {
    ladder: usize,
    /// Changes (bytes and units added, rung), those that stray least first.
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

/// From one optimum to the next: D and U.
#[derive(Clone, Copy)]
struct Line {
    bytes: i64,
    units: i64,
}

impl Line {
    /// By how much a change strays, in units times D.
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
        // How many bytes the items from each on can give back.
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

    /// The items that stray by less than the gap.
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

    /// The greatest distance of what is found from the line, in units times D: just below the size
    /// of each recipe, the one before is still the best. Gaps within the tolerance are none.
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

    /// Takes over the states that are the best recipes of their size, and thins the states to a
    /// number.
    fn keep_found(&mut self, states: &mut Vec<State>, ladder: usize, most: usize) {
        let Line { bytes, units } = self.line;
        let is_between = |state: &State| {
            (1..bytes).contains(&state.bytes) && (-units + 1..0).contains(&state.units)
        };
        // Marked by their place, so that those found are not lost to thinning.
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

/// Sorts by rising bytes and drops what another beats; of equals the first found stays.
fn sort_unbeaten(states: &mut Vec<State>) {
    states.sort_unstable();
    keep_unbeaten(states, |state| state.units);
}

/// Which of the states, by rising bytes and falling nats, stay if there may be only `most`: the
/// smallest of every band of nats.
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
