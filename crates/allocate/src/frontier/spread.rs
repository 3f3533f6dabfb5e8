//! A series of recipes along the frontier.

use super::{Frontier, Problem, Solution};

/// Nats of the smallest recipe: about those of a model all in 2.1 bits, which is of little use.
const MOST: f64 = 0.35;
/// Nats of the largest: smaller divergences are not noticeable.
const LEAST: f64 = 0.001;
/// Nats of a single recipe.
const ONLY: f64 = 0.02;
/// Bits per weight of smallest and largest, if costs are not in nats.
const BITS: (f64, f64) = (2.5, 6.6);
/// Minimum ratio of the bytes of two recipes.
const STEP: f64 = 1.02;

/// At most `n` recipes, by rising size: in even steps of log nats, within the frontier and within
/// the useful range of 0.001 to 0.35 nats. If costs are not in nats, in even steps of the size.
/// Recipes of nearly equal size are left out.
pub fn spread(problem: &Problem, frontier: &Frontier, n: usize, in_nats: bool) -> Vec<Solution> {
    let (smallest, largest) = (frontier.smallest(), frontier.largest());
    let part = |i: usize| {
        if n > 1 {
            i as f64 / (n - 1) as f64
        } else {
            0.5
        }
    };
    let wanted = |i: usize| match in_nats {
        true => {
            let most = MOST.min(smallest.nats).max(largest.nats);
            let least = LEAST.max(largest.nats).min(most);
            let nats = if n > 1 {
                most * (least / most).powf(part(i))
            } else {
                ONLY.clamp(least, most)
            };
            frontier.for_nats(nats)
        }
        false => {
            let bytes = |bits: f64| {
                (bits / 8.0 * problem.weights() as f64)
                    .clamp(smallest.bytes as f64, largest.bytes as f64)
            };
            let (low, high) = (bytes(BITS.0), bytes(BITS.1));
            frontier.at_most((low + part(i) * (high - low)) as u64)
        }
    };
    let mut all: Vec<Solution> = Vec::new();
    for solution in (0..n).filter_map(wanted) {
        if all
            .last()
            .is_none_or(|last| solution.bytes as f64 >= STEP * last.bytes as f64)
        {
            all.push(solution);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::generator::{KINDS, Kind, problem};
    use super::*;
    use quantier_core::rng::Rng;

    #[test]
    fn steps_are_even_and_worth_it() {
        let model = problem(Kind::Model, 60, &mut Rng::new(1));
        let frontier = Frontier::of(&model).unwrap();
        let all = spread(&model, &frontier, 6, true);
        assert_eq!(all.len(), 6);
        let nats: Vec<f64> = all.iter().map(|s| s.nats).collect();
        let steps: Vec<f64> = nats.windows(2).map(|w| w[0] / w[1]).collect();
        let mean = (nats[0] / nats[5]).powf(0.2);
        assert!(
            steps
                .iter()
                .all(|step| (0.8..1.25).contains(&(step / mean))),
            "{nats:?}"
        );
        assert!(
            all.windows(2)
                .all(|w| w[1].bytes as f64 >= STEP * w[0].bytes as f64)
        );
        assert!(
            spread(&model, &frontier, 500, true).len() < 200,
            "steps of next to nothing are no files"
        );
        assert_eq!(spread(&model, &frontier, 1, true).len(), 1);
        let even = spread(&model, &frontier, 4, false);
        assert!(even.len() >= 2 && even.windows(2).all(|w| w[0].bytes < w[1].bytes));
    }

    #[test]
    fn every_kind_of_frontier_has_some() {
        for kind in KINDS {
            for seed in 0..5 {
                let problem = problem(kind, 8, &mut Rng::new(seed));
                let frontier = Frontier::of(&problem).unwrap();
                for (n, in_nats) in [(1, true), (5, true), (1, false), (5, false)] {
                    let all = spread(&problem, &frontier, n, in_nats);
                    assert!(!all.is_empty() && all.len() <= n, "{kind:?} {seed} {n}");
                }
            }
        }
    }
}
