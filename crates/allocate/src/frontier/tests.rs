//! The solver against simpler ones, and invariants of its answers.

use super::generator::{KINDS, Kind, brute_force, by_bytes, problem};
use super::{Choice, Frontier, Item, Problem, Solution};
use proptest::prelude::*;
use quantier_arch::Role;
use quantier_blocks::types::GgmlType;
use quantier_core::rng::Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Maximum relative gap between an answer and the optimum.
const GAP: f64 = 0.005;

/// Relative tolerance for sums of floats.
const ROUNDING: f64 = 1e-9;

fn frontier(problem: &Problem) -> Frontier {
    Frontier::of(problem).unwrap()
}

/// Maximum difference between the frontier's units and sums of floats.
fn units(problem: &Problem) -> f64 {
    let worst: f64 = problem
        .items
        .iter()
        .map(|item| item.choices.iter().map(|c| c.nats).fold(0.0, f64::max))
        .sum();
    problem.items.len() as f64 * worst * 0.5f64.powi(59)
}

/// The answer is consistent and within its budget.
fn check(problem: &Problem, solution: &Solution, bytes: u64) {
    let chosen = || {
        problem
            .items
            .iter()
            .zip(&solution.choices)
            .map(|(item, &c)| item.choices[c])
    };
    assert_eq!(
        solution.bytes,
        problem.fixed_bytes + chosen().map(|c| c.bytes).sum::<u64>()
    );
    let nats: f64 = chosen().map(|c| c.nats).sum();
    assert!(
        (solution.nats - nats).abs() <= ROUNDING * nats + units(problem),
        "{} is not {nats}",
        solution.nats
    );
    assert!(solution.bytes <= bytes);
}

fn any_problem() -> impl Strategy<Value = Problem> {
    (prop::sample::select(&KINDS[..]), 2usize..14, any::<u64>())
        .prop_map(|(kind, items, seed)| problem(kind, items, &mut Rng::new(seed)))
}

/// A budget from just below the smallest recipe to just above the largest.
fn budget(frontier: &Frontier, part: f64) -> u64 {
    let (from, to) = (frontier.smallest().bytes, frontier.largest().bytes);
    from - 4 + (part * (to - from + 8) as f64) as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn budgets_are_kept_and_more_never_predicts_more(problem in any_problem(), mut parts in prop::collection::vec(0.0..1.0, 12)) {
        parts.sort_by(f64::total_cmp);
        let frontier = frontier(&problem);
        let mut fewest = f64::INFINITY;
        for part in parts {
            let bytes = budget(&frontier, part);
            let Some(solution) = frontier.at_most(bytes) else {
                prop_assert!(bytes < frontier.smallest().bytes);
                continue;
            };
            check(&problem, &solution, bytes);
            prop_assert!(solution.nats <= fewest);
            prop_assert!(solution.nats >= frontier.bound(bytes).unwrap() * (1.0 - ROUNDING) - units(&problem));
            fewest = solution.nats;
        }
    }

    #[test]
    fn a_bound_on_nats_is_met_by_the_smallest_that_a_budget_of_bytes_would_find(problem in any_problem(), part in 0.0..1.0) {
        let frontier = frontier(&problem);
        let bytes = budget(&frontier, part).max(frontier.smallest().bytes);
        let by_bytes = frontier.at_most(bytes).unwrap();
        let by_nats = frontier.for_nats(by_bytes.nats).unwrap();
        check(&problem, &by_nats, bytes);
        prop_assert_eq!(by_nats.nats, by_bytes.nats);
        if by_nats.bytes > frontier.smallest().bytes {
            prop_assert!(frontier.at_most(by_nats.bytes - 1).unwrap().nats > by_nats.nats);
        }
        prop_assert_eq!(frontier.for_nats(frontier.largest().nats * 0.99), None);
    }

    #[test]
    fn the_order_of_items_and_choices_does_not_matter(problem in any_problem(), part in 0.0..1.0, seed: u64) {
        let mut random = Rng::new(seed);
        let mut shuffled = problem.clone();
        random.shuffle(&mut shuffled.items);
        shuffled.items.iter_mut().for_each(|item| random.shuffle(&mut item.choices));
        let bytes = budget(&frontier(&problem), part);
        let named = |problem: &Problem| -> Option<(BTreeMap<String, GgmlType>, u64, f64)> {
            let solution = frontier(problem).at_most(bytes)?;
            let recipe = problem.recipe(&solution).map(|(name, t)| (name.to_owned(), t)).collect();
            Some((recipe, solution.bytes, solution.nats))
        };
        prop_assert_eq!(named(&problem), named(&shuffled));
    }

    #[test]
    fn units_do_not_matter(problem in any_problem(), part in 0.0..1.0) {
        let original = frontier(&problem);
        let bytes = budget(&original, part);
        let scaled = |by_bytes: u64, by_nats: f64| {
            let mut scaled = problem.clone();
            scaled.fixed_bytes *= by_bytes;
            for choice in scaled.items.iter_mut().flat_map(|item| &mut item.choices) {
                choice.bytes *= by_bytes;
                choice.nats *= by_nats;
            }
            frontier(&scaled).at_most(bytes * by_bytes)
        };
        let choices = |solution: &Option<Solution>| solution.as_ref().map(|s| s.choices.clone());
        let expected = original.at_most(bytes);
        prop_assert_eq!(choices(&scaled(1, 0.125)), choices(&expected));
        // Other factors round differently, and another answer within the tolerance is possible.
        for scaled in [scaled(7, 1.0), scaled(1, 3.7e-9)] {
            prop_assert_eq!(scaled.is_some(), expected.is_some());
        }
        if let (Some(a), Some(b)) = (scaled(7, 1.0), &expected) {
            prop_assert!((a.nats / b.nats - 1.0).abs() < 1e-3);
        }
        if let (Some(a), Some(b)) = (scaled(1, 3.7e-9), &expected) {
            prop_assert!((a.nats / 3.7e-9 / b.nats - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn prefixes_are_optima_in_order_of_worth(problem in any_problem()) {
        let frontier = frontier(&problem);
        let optimum = by_bytes(&problem, frontier.largest().bytes + 2);
        prop_assert!(frontier.steps().windows(2).all(|pair| pair[0].slope() >= pair[1].slope() * (1.0 - ROUNDING)));
        prop_assert!(frontier.steps().iter().all(|step| step.bytes > 0 && step.nats > 0.0));
        for (k, point) in frontier.points().iter().enumerate() {
            let recipe = frontier.after(k);
            check(&problem, &recipe, point.bytes);
            prop_assert_eq!((recipe.bytes, recipe.nats), (point.bytes, point.nats));
            let fewest = optimum[(point.bytes / 2) as usize];
            prop_assert!((point.nats - fewest).abs() <= ROUNDING * fewest + units(&problem), "{} of {fewest}", point.nats);
            let step = k.checked_sub(1).map(|before| frontier.steps()[before]);
            prop_assert!(step.is_none_or(|step| recipe.choices[step.item] == step.to));
        }
    }
}

/// The largest gap to the optimum over many budgets, of the solver and of plain prefixes.
fn gaps(problem: &Problem, budgets: u64) -> (f64, f64) {
    let frontier = frontier(problem);
    let (from, to) = (frontier.smallest().bytes, frontier.largest().bytes);
    let optimum = by_bytes(problem, to);
    let mut widest = (0.0f64, 0.0f64);
    for i in 0..budgets {
        let bytes = from + (to - from) * i / budgets;
        let fewest = optimum[(bytes / 2) as usize];
        let solution = frontier.at_most(bytes).unwrap();
        check(problem, &solution, bytes);
        assert!(
            solution.nats >= fewest * (1.0 - ROUNDING) - units(problem),
            "better than the best"
        );
        let prefix = frontier
            .points()
            .iter()
            .take_while(|p| p.bytes <= bytes)
            .last()
            .unwrap()
            .nats;
        widest = (
            widest.0.max(solution.nats / fewest - 1.0),
            widest.1.max(prefix / fewest - 1.0),
        );
    }
    widest
}

#[test]
fn answers_are_near_the_optimum_also_where_prefixes_are_not() {
    for kind in KINDS {
        let (mut widest, mut hard, problems) = (0.0f64, 0, 45);
        for seed in 0..problems {
            // Mostly few items, since those are hard; some more, since states then have to be
            // thinned.
            let items = if seed % 15 == 14 {
                30 + seed as usize
            } else {
                3 + seed as usize % 15
            };
            let problem = problem(kind, items, &mut Rng::new(seed));
            let (ours, prefix) = gaps(&problem, 20);
            assert!(ours <= GAP, "{kind:?} {seed}: {ours}");
            widest = widest.max(ours);
            hard += u64::from(prefix > 0.05);
        }
        let percent = 100.0 * widest;
        println!(
            "{kind:?}: at most {percent:.4}% above the optimum; prefixes over 5% off in {hard} of {problems}"
        );
        assert!(
            hard * 2 > problems,
            "{kind:?}: the generator should make hard problems"
        );
    }
}

#[test]
fn both_oracles_agree() {
    for kind in KINDS {
        let problem = problem(kind, 4, &mut Rng::new(7));
        let frontier = frontier(&problem);
        let bytes = budget(&frontier, 0.4) & !1;
        let (a, b) = (
            brute_force(&problem, bytes),
            by_bytes(&problem, bytes)[(bytes / 2) as usize],
        );
        assert!((a / b - 1.0).abs() < ROUNDING, "{kind:?}: {a} {b}");
    }
}

#[test]
fn large_problems_are_solved_near_the_bound_and_at_once() {
    for kind in [Kind::Model, Kind::EqualSlopes, Kind::NonConvex] {
        let problem = problem(kind, 1000, &mut Rng::new(3));
        let start = Instant::now();
        let frontier = frontier(&problem);
        let built = start.elapsed();
        let (mut slowest, mut widest) = (Duration::ZERO, 0.0f64);
        for i in 1..20 {
            let bytes = budget(&frontier, f64::from(i) / 20.0);
            let start = Instant::now();
            let solution = frontier.at_most(bytes).unwrap();
            slowest = slowest.max(start.elapsed());
            check(&problem, &solution, bytes);
            widest = widest.max(solution.nats / frontier.bound(bytes).unwrap() - 1.0);
        }
        let (types, percent) = (problem.items[0].choices.len(), 100.0 * widest);
        println!(
            "{kind:?}, {types} types: frontier {built:?}, a budget {slowest:?}, {percent:.4}% above the bound"
        );
        assert!(widest <= GAP, "{kind:?}: {widest}");
        // Far more than it takes, for the sake of busy machines.
        assert!(
            built + slowest < Duration::from_secs(3),
            "{kind:?}: {built:?} and {slowest:?}"
        );
    }
}

fn item(name: &str, choices: &[(GgmlType, u64, f64)]) -> Item {
    let choices = choices
        .iter()
        .map(|&(ggml_type, bytes, nats)| Choice {
            ggml_type,
            bytes,
            nats,
        })
        .collect();
    Item {
        name: name.into(),
        role: Role::Other,
        row_len: 256,
        weights: 256,
        choices,
    }
}

#[test]
fn dominated_and_non_convex_choices_make_no_steps() {
    use GgmlType as T;
    let choices = [
        (T::Q8_0, 272, 1.0),
        (T::Q4_0, 144, 5.0),
        (T::Q4_1, 160, 6.0),   // more bytes and more nats than Q4_0
        (T::IQ4_NL, 144, 4.0), // fewer nats in the same bytes
        (T::Q5_0, 176, 3.9),   // above the line from IQ4_NL to Q6_K
        (T::Q6_K, 210, 2.0),
        (T::Q5_1, 192, 2.0 + 18.0 / 33.0), // on that line
    ];
    let problem = Problem {
        items: vec![item("a", &choices)],
        ..Problem::default()
    };
    let frontier = frontier(&problem);
    let hull: Vec<_> = frontier
        .steps()
        .iter()
        .map(|s| (choices[s.from].0, choices[s.to].0, s.bytes))
        .collect();
    assert_eq!(
        hull,
        [
            (T::IQ4_NL, T::Q5_1, 48),
            (T::Q5_1, T::Q6_K, 18),
            (T::Q6_K, T::Q8_0, 62)
        ]
    );
    // Choices on no hull can still fill bytes.
    assert_eq!(frontier.at_most(180).unwrap().choices, [4]);
}

#[test]
fn ties_are_broken_by_name() {
    let choices = [(GgmlType::Q4_0, 100, 2.0), (GgmlType::Q8_0, 200, 1.0)];
    let items = ["c", "a", "b"].map(|name| item(name, &choices));
    let problem = Problem {
        items: items.to_vec(),
        ..Problem::default()
    };
    assert_eq!(frontier(&problem).at_most(450).unwrap().choices, [0, 1, 0]);
    assert_eq!(
        frontier(&problem)
            .steps()
            .iter()
            .map(|s| s.item)
            .collect::<Vec<_>>(),
        [1, 2, 0]
    );
}

#[test]
fn odd_problems_have_answers_too() {
    let nothing = Problem {
        fixed_bytes: 10,
        ..Problem::default()
    };
    assert_eq!(frontier(&nothing).at_most(9), None);
    assert_eq!(frontier(&nothing).at_most(10).unwrap().bytes, 10);

    let free = Problem {
        items: vec![item(
            "a",
            &[(GgmlType::Q4_0, 100, 0.0), (GgmlType::Q8_0, 200, 0.0)],
        )],
        ..nothing
    };
    assert_eq!(
        frontier(&free).for_nats(0.0).unwrap().bytes,
        110,
        "bytes that buy nothing are not spent"
    );

    let tiny = [(GgmlType::Q4_0, 100, 3e-310), (GgmlType::Q8_0, 200, 1e-310)];
    let tiny = Problem {
        items: vec![item("a", &tiny)],
        ..Problem::default()
    };
    assert!(frontier(&tiny).at_most(150).is_some());

    let huge = [(GgmlType::Q4_0, 1, 1e300), (GgmlType::Q8_0, 1 << 59, 1.0)];
    let huge = Problem {
        items: vec![item("a", &huge)],
        ..Problem::default()
    };
    assert_eq!(frontier(&huge).at_most(u64::MAX).unwrap().choices, [1]);
}

#[test]
fn malformed_problems_name_the_tensor() {
    let good = item("good", &[(GgmlType::Q4_0, 100, 1.0)]);
    for (bad, word) in [
        (item("bad", &[]), "no types"),
        (item("bad", &[(GgmlType::Q4_0, 100, f64::NAN)]), "NaN"),
        (item("bad", &[(GgmlType::Q4_0, 100, -1e-9)]), "at least 0"),
        (item("bad", &[(GgmlType::Q4_0, u64::MAX, 1.0)]), "beyond"),
        (item("good", &[(GgmlType::Q4_0, 100, 1.0)]), "twice"),
    ] {
        let name = bad.name.clone();
        let error = Frontier::of(&Problem {
            items: vec![good.clone(), bad],
            ..Problem::default()
        })
        .unwrap_err();
        assert!(error.item == name && error.reason.contains(word), "{error}");
    }
}
