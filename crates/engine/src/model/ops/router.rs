//! Expert routing: the choice of experts per token, and their weights.
//!
//! ```text
//! probabilities  = gating(scores)
//! chosen         = top experts by probability (or score) + selection bias, within the top groups
//! weights        = probabilities of the chosen, or softmax of their scores (depends on the gating)
//!                  / max(their sum, 2^-14) if normalized
//!                  * scale
//! ```
//!
//! The derivative covers the weights; the choice has none.

use super::elementwise::{sigmoid, sigmoid_slope, softplus};
use super::order::largest;
use quantier_arch::hyper::{ExpertGroups, Routing};
use quantier_arch::{Gating, Ranking};

/// Lower bound of the sum that normalizes weights: the smallest normal f16 number, as in llama.cpp.
const LEAST_SUM: f32 = 6.103_515_6e-5;

/// Routes one token.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    pub routing: Routing,
    /// Bias of the choice, added to the probabilities: `[experts]`.
    pub selection_bias: Option<Vec<f32>>,
    /// Number of scored experts that stand for one of the routed ones; 1 except for adjugate
    /// experts, which may be chosen several times.
    pub sharing: usize,
}

impl Router {
    /// Turns a token's scores `[experts]` into weights and returns the chosen experts, best first.
    /// Weights of other experts are meaningless.
    pub(crate) fn route(&self, row: &mut [f32]) -> Vec<usize> {
        let by_scores = match self.routing.ranking {
            Ranking::Probabilities => None,
            Ranking::Scores => Some(self.choose(row)),
            Ranking::Sigmoid => {
                let ranks: Vec<f32> = row.iter().copied().map(sigmoid).collect();
                Some(self.choose(&ranks))
            }
        };
        self.probabilities(row);
        let chosen = by_scores.unwrap_or_else(|| self.choose(row));
        let chosen = self.shared(chosen);
        self.gate_chosen(row, &chosen);
        self.weigh(row, &chosen);
        chosen
    }

    /// Derivative of [`Router::route`] for given scores and chosen experts: turns `g`, which is 0
    /// except for the chosen, into the gradient of the scores.
    pub(crate) fn derivative(&self, scores: &[f32], chosen: &[usize], g: &mut [f32]) {
        let mut probabilities = scores.to_vec();
        self.probabilities(&mut probabilities);
        let mut values = probabilities.clone();
        self.gate_chosen(&mut values, chosen);
        self.weigh_derivative(&values, chosen, g);
        let each = g.iter_mut().zip(scores.iter().zip(&probabilities));
        match self.routing.gating {
            Gating::Softmax => softmax_derivative(scores, g),
            Gating::Sigmoid => each.for_each(|(g, (_, value))| *g *= sigmoid_slope(*value)),
            Gating::ChosenSoftmax => {
                let mut of_chosen = selected(g, chosen);
                softmax_derivative(&selected(scores, chosen), &mut of_chosen);
                place(g, chosen, &of_chosen);
            }
            // Where the root underflows to 0, the derivative tends to 0 as well.
            Gating::RootSoftplus => each
                .filter(|(_, (_, root))| **root > 0.0)
                .for_each(|(g, (score, root))| *g *= sigmoid(*score) / (2.0 * root)),
        }
    }

    /// Turns scores into the probabilities that rank the experts.
    fn probabilities(&self, row: &mut [f32]) {
        match self.routing.gating {
            Gating::Softmax => softmax(row),
            Gating::Sigmoid => row.iter_mut().for_each(|x| *x = sigmoid(*x)),
            Gating::ChosenSoftmax => {}
            Gating::RootSoftplus => row.iter_mut().for_each(|x| *x = softplus(*x).sqrt()),
        }
    }

    /// Chosen experts for these probabilities, best first.
    fn choose(&self, probabilities: &[f32]) -> Vec<usize> {
        let mut values = probabilities.to_vec();
        if let Some(bias) = &self.selection_bias {
            values.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        if let Some(groups) = self.routing.groups {
            leave_best_groups(&mut values, groups);
        }
        largest(&values, self.routing.used.max(1))
    }

    /// The experts that the chosen ones stand for, by a product in f32 as in llama.cpp.
    fn shared(&self, chosen: Vec<usize>) -> Vec<usize> {
        if self.sharing == 1 {
            return chosen;
        }
        let factor = 1.0 / self.sharing as f32;
        let each = chosen.into_iter();
        each.map(|expert| (expert as f32 * factor) as usize)
            .collect()
    }

    /// Computes the probabilities of gatings that depend on the choice.
    fn gate_chosen(&self, row: &mut [f32], chosen: &[usize]) {
        if self.routing.gating == Gating::ChosenSoftmax {
            let mut scores = selected(row, chosen);
            softmax(&mut scores);
            place(row, chosen, &scores);
        }
    }

    /// Turns probabilities into weights.
    fn weigh(&self, row: &mut [f32], chosen: &[usize]) {
        if self.routing.normalized {
            let sum = chosen_sum(row, chosen).max(LEAST_SUM);
            row.iter_mut().for_each(|x| *x /= sum);
        }
        row.iter_mut().for_each(|x| *x *= self.routing.scale);
    }

    /// Derivative of [`Router::weigh`]: turns `g` into the gradient of the probabilities.
    fn weigh_derivative(&self, probabilities: &[f32], chosen: &[usize], g: &mut [f32]) {
        g.iter_mut().for_each(|g| *g *= self.routing.scale);
        if !self.routing.normalized {
            return;
        }
        let sum = chosen_sum(probabilities, chosen);
        let divisor = sum.max(LEAST_SUM);
        let of_divisor = g.iter().zip(probabilities);
        let of_divisor: Vec<f32> = of_divisor
            .map(|(g, p)| g * p / (divisor * divisor))
            .collect();
        let of_sum = match sum >= LEAST_SUM {
            true => folded_sum(&of_divisor),
            false => 0.0,
        };
        g.iter_mut().for_each(|g| *g /= divisor);
        chosen.iter().for_each(|expert| g[*expert] -= of_sum);
    }
}

/// The sum in 32 lanes, folded by halves; then the remainder sequentially.
fn folded_sum(xs: &[f32]) -> f32 {
    let (chunks, rest) = xs.as_chunks::<32>();
    let mut lanes = [0.0f32; 32];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    let eight: [f32; 8] =
        std::array::from_fn(|i| (lanes[i] + lanes[i + 8]) + (lanes[i + 16] + lanes[i + 24]));
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    let sum = (four[0] + four[1]) + (four[2] + four[3]);
    rest.iter().fold(sum, |sum, x| sum + x)
}

/// Exponentials of a row minus its maximum, and their sum.
fn exponentials(row: &mut [f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    folded_sum(row)
}

/// Softmax of the scores.
fn softmax(row: &mut [f32]) {
    let sum = exponentials(row);
    row.iter_mut().for_each(|x| *x /= sum);
}

/// Derivative of [`softmax`]: turns `g` into the gradient of the scores.
///
/// As a quotient `e / s` of exponentials: `e (g / s - sum(g e / s^2))`, minus its sum at the
/// maximum, which is 0 up to rounding.
fn softmax_derivative(scores: &[f32], g: &mut [f32]) {
    let mut e = scores.to_vec();
    let s = exponentials(&mut e);
    let of_sum: Vec<f32> = g.iter().zip(&e).map(|(g, e)| g * e / (s * s)).collect();
    let of_sum = folded_sum(&of_sum);
    g.iter_mut()
        .zip(&e)
        .for_each(|(g, e)| *g = (*g / s - of_sum) * e);
    let of_max = folded_sum(g);
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    g.iter_mut()
        .zip(scores)
        .filter(|(_, score)| **score == max)
        .for_each(|(g, _)| *g -= of_max);
}

/// Sets all experts outside the top groups to minus infinity.
fn leave_best_groups(values: &mut [f32], groups: ExpertGroups) {
    let size = (values.len() / groups.count).max(1);
    let best_two = |group: &[f32]| largest(group, 2).iter().map(|place| group[*place]).sum();
    let sums: Vec<f32> = values.chunks_exact(size).map(best_two).collect();
    let best = largest(&sums, groups.used);
    for (number, group) in values.chunks_exact_mut(size).enumerate() {
        if !best.contains(&number) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The sum of the probabilities of the chosen, each as often as it is chosen.
fn chosen_sum(probabilities: &[f32], chosen: &[usize]) -> f32 {
    let mut masked = vec![0.0; probabilities.len()];
    chosen
        .iter()
        .for_each(|expert| masked[*expert] += probabilities[*expert]);
    folded_sum(&masked)
}

/// The numbers at these indices.
fn selected(row: &[f32], places: &[usize]) -> Vec<f32> {
    places.iter().map(|place| row[*place]).collect()
}

/// Writes numbers at these indices.
fn place(row: &mut [f32], places: &[usize], numbers: &[f32]) {
    let both = places.iter().zip(numbers);
    both.for_each(|(place, number)| row[*place] = *number);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(gating: Gating, groups: Option<ExpertGroups>) -> Router {
        Router {
            routing: Routing {
                used: 2,
                gating,
                groups,
                normalized: false,
                scale: 1.0,
                ranking: Ranking::Probabilities,
                weighs_inputs: false,
            },
            selection_bias: None,
            sharing: 1,
        }
    }

    const GATINGS: [Gating; 4] = [
        Gating::Softmax,
        Gating::Sigmoid,
        Gating::ChosenSoftmax,
        Gating::RootSoftplus,
    ];

    #[test]
    fn selection_bias_affects_the_choice_only() {
        let scores = [0.5, 2.0, -1.0, 1.0];
        for gating in GATINGS {
            let plain = router(gating, None);
            let biased = Router {
                selection_bias: Some(vec![0.0, 0.0, 9.0, 0.0]),
                ..plain.clone()
            };
            let (mut expected, mut row) = (scores, scores);
            assert_eq!(plain.route(&mut expected), [1, 3]);
            assert_eq!(biased.route(&mut row), [2, 1]);
            if gating != Gating::ChosenSoftmax {
                assert_eq!(row, expected, "{gating:?}");
            }
        }
    }

    #[test]
    fn scores_choose_between_equal_probabilities() {
        let mut router = router(Gating::Sigmoid, None);
        router.routing.ranking = Ranking::Scores;
        // Sigmoid saturates at 1 for all.
        let mut row = [40.0, 60.0, 50.0];
        assert_eq!(router.route(&mut row), [1, 2]);
        assert_eq!(row, [1.0; 3]);
    }

    #[test]
    fn equal_scores_choose_experts_as_llama_cpp_does() {
        let chosen = |scores: &[f32]| {
            let mut row = scores.to_vec();
            router(Gating::Softmax, None).route(&mut row)
        };
        // Up to 16 experts, the first of equal ones; of more, those that a partition leaves first.
        assert_eq!(chosen(&[0.5; 8]), [0, 1]);
        assert_eq!(chosen(&[0.0, -0.0, 1.0, 1.0, -1.0]), [2, 3]);
        assert_eq!(chosen(&[0.5; 40]), [30, 21]);
    }

    #[test]
    fn sigmoids_rank_experts_whose_probabilities_differ() {
        let mut router = router(Gating::Softmax, None);
        router.routing.ranking = Ranking::Sigmoid;
        // Sigmoid saturates at 1 for all, and their order decides.
        assert_eq!(router.route(&mut [40.0, 60.0, 50.0]), [0, 1]);
        assert_eq!(router.route(&mut [1.0, 3.0, 2.0]), [1, 2]);
    }

    #[test]
    fn shared_experts_are_chosen_as_often_as_their_groups() {
        let mut router = router(Gating::Softmax, None);
        (router.sharing, router.routing.normalized) = (2, true);
        let scores = [0.0, 0.3, 5.0, 4.0, -1.0, 0.1];
        let softmax = |scores: &[f32]| {
            let sum: f32 = scores.iter().map(|x| x.exp()).sum();
            scores.iter().map(|x| x.exp() / sum).collect::<Vec<_>>()
        };
        let mut row = scores;
        assert_eq!(router.route(&mut row), [1, 1]);
        // Half of the weight each, by the probability of expert 1.
        assert!((row[1] - 0.5).abs() < 1e-6, "{row:?}");
        let mut row = [5.0, 0.3, 0.0, 4.0, -1.0, 0.1];
        let probabilities = softmax(&row);
        assert_eq!(router.route(&mut row), [0, 1]);
        let expected = probabilities[0] / (probabilities[0] + probabilities[1]);
        assert!((row[0] - expected).abs() < 1e-6, "{row:?}");
    }

    #[test]
    fn weights_match_their_formulas() {
        let scores = [0.5f32, 2.0, -1.0, 1.0];
        let exp = |x: f32| x.exp();
        let all: f32 = scores.iter().copied().map(exp).sum();
        for (gating, expected) in [
            (Gating::Softmax, [exp(2.0) / all, exp(1.0) / all]),
            (
                Gating::Sigmoid,
                [1.0 / (1.0 + exp(-2.0)), 1.0 / (1.0 + exp(-1.0))],
            ),
            (
                Gating::ChosenSoftmax,
                [exp(2.0), exp(1.0)].map(|e| e / (exp(2.0) + exp(1.0))),
            ),
            (
                Gating::RootSoftplus,
                [exp(2.0), exp(1.0)].map(|e| e.ln_1p().sqrt()),
            ),
        ] {
            for (normalized, scale) in [(false, 1.0), (true, 2.5)] {
                let mut router = router(gating, None);
                (router.routing.normalized, router.routing.scale) = (normalized, scale);
                let mut row = scores;
                assert_eq!(router.route(&mut row), [1, 3]);
                let sum = if normalized {
                    expected[0] + expected[1]
                } else {
                    1.0
                };
                for (weight, expected) in [row[1], row[3]].iter().zip(expected) {
                    let expected = expected / sum * scale;
                    assert!(
                        (weight - expected).abs() < 1e-6,
                        "{gating:?} {weight} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn tiny_sums_are_replaced_by_the_floor() {
        let mut router = router(Gating::Sigmoid, None);
        router.routing.normalized = true;
        let mut row = [-20.0, -30.0, -15.0];
        let values = row.map(sigmoid);
        assert_eq!(router.route(&mut row), [2, 0]);
        assert_eq!(
            [row[0], row[2]],
            [values[0], values[2]].map(|x| x / LEAST_SUM)
        );
        assert_eq!(LEAST_SUM, (-14f32).exp2());
    }

    #[test]
    fn groups_are_ranked_by_their_two_best_experts() {
        // Sums of the two best per group: 1.5, 1.9, 1.2, 1.4; the best single expert is in the
        // third.
        let scores = [
            0.8, 0.7, 0.0, /**/ 1.0, 0.1, 0.9, /**/ 1.2, -9.0, 0.0, /**/ 0.6, 0.8,
            0.5,
        ];
        let choose = |count: usize, used: usize| {
            let groups = ExpertGroups { count, used };
            router(Gating::ChosenSoftmax, Some(groups)).choose(&scores)
        };
        assert_eq!(choose(4, 1), [3, 5]);
        assert_eq!(choose(4, 2), [3, 5]);
        // In groups of six, the sums are 1.9 and 2.
        assert_eq!(choose(2, 1), [6, 10]);
        assert_eq!(router(Gating::ChosenSoftmax, None).choose(&scores), [6, 3]);
        let mut values = scores;
        leave_best_groups(&mut values, ExpertGroups { count: 4, used: 3 });
        let left: Vec<_> = values.iter().map(|x| x.is_finite()).collect();
        assert_eq!(left[..6], [true; 6]);
        assert_eq!(left[6..], [false, false, false, true, true, true]);
    }
}
