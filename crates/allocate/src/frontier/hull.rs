//! From costs to the frontier: the lower convex hull of each item, and the steps of all items by
//! nats per byte.
//!
//! A choice that another beats in both bytes and nats is never optimal. Of the rest, those on the
//! lower convex hull of (bytes, nats) are optimal for some Lagrange multiplier (Everett,
//! "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources",
//! 1963). A step leads from one vertex of a hull to the next; its nats per byte fall along an item,
//! so a sort of the steps of all items keeps the order of each. The recipe after any number of steps
//! is the best of its size.
//!
//! Nats are summed as whole multiples of a unit, a power of two of at most 2^-59 of the sum of every
//! item's greatest nats. So sums do not depend on the order of the items, and comparisons are exact.

use super::problem::{Invalid, Problem, Solution};
use std::cmp::Ordering;

/// A step from one hull vertex of an item to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Index of the item in the problem.
    pub item: usize,
    /// Index of the item's choice before.
    pub from: usize,
    /// Index of the item's choice after.
    pub to: usize,
    /// Bytes added.
    pub bytes: u64,
    /// Predicted nats removed.
    pub nats: f64,
    pub(super) ladder: usize,
    pub(super) units: i64,
}

impl Step {
    /// Nats removed per byte; never greater than that of the step before.
    #[cfg(test)]
    pub(crate) fn slope(&self) -> f64 {
        self.nats / self.bytes as f64
    }
}

/// A point of the frontier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Predicted nats per token.
    pub nats: f64,
}

/// An undominated choice of an item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rung {
    pub bytes: i64,
    /// Nats in the frontier's unit.
    pub units: i64,
    /// Index among the item's choices.
    pub choice: usize,
}

/// The undominated choices of an item, by rising bytes and falling nats.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    /// Index of the item in the problem.
    pub item: usize,
    pub rungs: Vec<Rung>,
}

/// Sums over a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    pub bytes: u64,
    pub units: i64,
}

/// The whole frontier of a problem.
#[derive(Clone, Debug)]
pub struct Frontier {
    /// By name of the item, which makes the result independent of the order of the items.
    pub(super) ladders: Vec<Ladder>,
    steps: Vec<Step>,
    /// Sums of the recipe after each number of steps, from 0 on.
    pub(super) sums: Vec<Sums>,
    /// Units in a nat; a power of two.
    scale: f64,
}

impl Frontier {
    /// The frontier of a problem.
    ///
    /// # Errors
    /// A duplicate name, an item without choices, nats that are negative or not finite, sums out of
    /// range.
    pub fn of(problem: &Problem) -> Result<Frontier, Invalid> {
        problem.check()?;
        let mut order: Vec<usize> = (0..problem.items.len()).collect();
        order.sort_by(|&a, &b| problem.items[a].name.cmp(&problem.items[b].name));
        let worst = |i: usize| {
            problem.items[i]
                .choices
                .iter()
                .map(|c| c.nats)
                .fold(0.0, f64::max)
        };
        let scale = units_per_nat(order.iter().map(|&i| worst(i)).sum());
        let ladders: Vec<Ladder> = order
            .iter()
            .map(|&i| Ladder::of(problem, i, scale))
            .collect();
        let mut steps: Vec<Step> = ladders
            .iter()
            .enumerate()
            .flat_map(|(l, ladder)| ladder.steps(l, scale))
            .collect();
        // A stable sort: equal slopes are in the order of names, then of the item's own steps.
        steps.sort_by(by_falling_slope);

        let lowest = ladders.iter().map(|ladder| ladder.rungs[0]);
        let start = lowest.fold(
            Sums {
                bytes: problem.fixed_bytes,
                units: 0,
            },
            |sums, rung| Sums {
                bytes: sums.bytes + rung.bytes as u64,
                units: sums.units + rung.units,
            },
        );
        let mut sums = vec![start];
        for step in &steps {
            let before = sums[sums.len() - 1];
            sums.push(Sums {
                bytes: before.bytes + step.bytes,
                units: before.units - step.units,
            });
        }
        Ok(Frontier {
            ladders,
            steps,
            sums,
            scale,
        })
    }

    /// All steps, by falling nats per byte. The recipe after any number of them is the best of its
    /// size.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The points of the frontier, from the smallest recipe to the largest useful one: one before
    /// the first step, and one after each.
    pub fn points(&self) -> Vec<Point> {
        self.sums
            .iter()
            .map(|sums| Point {
                bytes: sums.bytes,
                nats: self.nats(sums.units),
            })
            .collect()
    }

    /// The smallest recipe.
    pub fn smallest(&self) -> Point {
        let first = self.sums[0];
        Point {
            bytes: first.bytes,
            nats: self.nats(first.units),
        }
    }

    /// The smallest recipe with the fewest nats: the largest useful one.
    pub fn largest(&self) -> Point {
        let last = self.sums[self.sums.len() - 1];
        Point {
            bytes: last.bytes,
            nats: self.nats(last.units),
        }
    }

    /// A lower bound on the nats of all recipes within `bytes`; `None` below the smallest size.
    #[cfg(test)]
    pub(crate) fn bound(&self, bytes: u64) -> Option<f64> {
        let before = self.steps_within(bytes)?;
        let nats = self.nats(self.sums[before].units);
        let over = (bytes - self.sums[before].bytes) as f64;
        Some(
            self.steps
                .get(before)
                .map_or(nats, |step| nats - over * step.slope()),
        )
    }

    /// The recipe after the first `steps` steps, the best of its size.
    ///
    /// # Panics
    /// If there are fewer steps.
    pub fn after(&self, steps: usize) -> Solution {
        self.solution(&self.rungs_after(steps), self.sums[steps])
    }

    /// Number of steps within `bytes`; `None` below the smallest recipe.
    pub(super) fn steps_within(&self, bytes: u64) -> Option<usize> {
        self.sums
            .partition_point(|sums| sums.bytes <= bytes)
            .checked_sub(1)
    }

    /// Rung of each ladder after `steps` steps.
    pub(super) fn rungs_after(&self, steps: usize) -> Vec<usize> {
        let mut rungs = vec![0; self.ladders.len()];
        for step in &self.steps[..steps] {
            let ladder = &self.ladders[step.ladder].rungs;
            rungs[step.ladder] += ladder[rungs[step.ladder]..]
                .iter()
                .take_while(|r| r.choice != step.to)
                .count();
        }
        rungs
    }

    pub(super) fn nats(&self, units: i64) -> f64 {
        units as f64 / self.scale
    }

    /// From a rung per ladder to a choice per item.
    pub(super) fn solution(&self, rungs: &[usize], sums: Sums) -> Solution {
        let mut choices = vec![0; self.ladders.len()];
        for (ladder, &rung) in self.ladders.iter().zip(rungs) {
            choices[ladder.item] = ladder.rungs[rung].choice;
        }
        Solution {
            choices,
            bytes: sums.bytes,
            nats: self.nats(sums.units),
        }
    }
}

/// The power of two that scales a sum of nats to between 2^59 and 2^60.
fn units_per_nat(sum: f64) -> f64 {
    // The exponent field of an IEEE double, 11 bits above 52 of mantissa, is biased by 1022 against
    // the next power of two.
    let above = (sum.to_bits() >> 52) as i32 - 1022;
    // A factor beyond 2^1000 would not be finite; such nats count as 0.
    if sum > 0.0 {
        f64::from((60 - above).min(1000)).exp2()
    } else {
        1.0
    }
}

/// Of a list by rising bytes, drops the entries without fewer units than all before them.
pub(super) fn keep_unbeaten<T>(list: &mut Vec<T>, units: impl Fn(&T) -> i64) {
    let mut fewest = i64::MAX;
    list.retain(|one| {
        let is_fewer = units(one) < fewest;
        fewest = fewest.min(units(one));
        is_fewer
    });
}

fn by_falling_slope(a: &Step, b: &Step) -> Ordering {
    let (left, right) = (
        b.units as i128 * a.bytes as i128,
        a.units as i128 * b.bytes as i128,
    );
    left.cmp(&right)
}

impl Ladder {
    fn of(problem: &Problem, item: usize, scale: f64) -> Ladder {
        let choices = &problem.items[item].choices;
        let mut rungs: Vec<Rung> = choices
            .iter()
            .enumerate()
            .map(|(choice, c)| Rung {
                bytes: c.bytes as i64,
                units: (c.nats * scale).round() as i64,
                choice,
            })
            .collect();
        rungs.sort_by_key(|r| (r.bytes, r.units, choices[r.choice].ggml_type));
        keep_unbeaten(&mut rungs, |r| r.units);
        Ladder { item, rungs }
    }

    /// Positions of the rungs on the lower convex hull; those on a straight line between others
    /// count, since more steps fill bytes better.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for next in 0..self.rungs.len() {
            while let [.., a, b] = hull[..] {
                if !self.is_above(a, b, next) {
                    break;
                }
                hull.pop();
            }
            hull.push(next);
        }
        hull
    }

    /// True if rung `b` lies above the line from `a` to `c`.
    fn is_above(&self, a: usize, b: usize, c: usize) -> bool {
        let [a, b, c] = [a, b, c].map(|i| self.rungs[i]);
        let fall = |from: Rung, to: Rung| {
            (
                (from.units - to.units) as i128,
                (to.bytes - from.bytes) as i128,
            )
        };
        let ((fall_b, run_b), (fall_c, run_c)) = (fall(a, b), fall(a, c));
        fall_b * run_c < fall_c * run_b
    }

    fn steps(&self, ladder: usize, scale: f64) -> Vec<Step> {
        let vertices = self.hull();
        let step = |pair: &[usize]| {
            let (from, to) = (self.rungs[pair[0]], self.rungs[pair[1]]);
            let units = from.units - to.units;
            let bytes = (to.bytes - from.bytes) as u64;
            let nats = units as f64 / scale;
            Step {
                item: self.item,
                from: from.choice,
                to: to.choice,
                bytes,
                nats,
                ladder,
                units,
            }
        };
        vertices.windows(2).map(step).collect()
    }
}
