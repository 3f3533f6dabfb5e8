//! Multiple choice by log-likelihood: the model picks the choice whose tokens have the highest mean log-probability
//! (`acc_norm` of the LM Evaluation Harness, with tokens in place of bytes), as llama-perplexity does.
//!
//! Two models are compared on the same tasks: answers that only one of them gets right decide (McNemar 1947), and
//! answers that change at all are counted ("flips": Dutta et al. 2024, arXiv 2407.09141).

use super::sequences::Sequence;
use serde::Serialize;
use std::ops::Range;

/// With more tokens behind the common beginning of both sentences, the filled blank itself is not scored, as in
/// llama-perplexity.
const MIN_TRAILING: usize = 3;
/// Two-sided 95% quantile of the normal distribution.
const Z95: f64 = 1.959_963_984_54;
/// Significance level of a verdict.
const LEVEL: f64 = 0.05;

/// The choices of a task, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// All tokens of each choice, the context included.
    pub tokens: Vec<Vec<u32>>,
    /// For a blank: tokens of each sentence up to the end of the filled blank.
    pub heads: Option<[usize; 2]>,
}

impl Choices {
    /// The sequences of the choices, with their scored tokens: those behind the common beginning. With a blank,
    /// those behind the filled blank if enough follow it, without the last token.
    ///
    /// # Errors
    /// Choices without a common beginning, or without scored tokens.
    pub fn sequences(&self) -> Result<Vec<Sequence>, String> {
        let ranges = self.scored()?;
        let sequence = |(tokens, range): (&Vec<u32>, Range<usize>)| {
            Sequence::new(tokens.clone(), std::slice::from_ref(&range))
        };
        Ok(self.tokens.iter().zip(ranges).map(sequence).collect())
    }

    /// True if the blank itself is scored, since few tokens follow it.
    pub fn scores_blank(&self) -> bool {
        let common = self.common();
        let is_short = |tokens: &Vec<u32>| tokens.len() - common <= MIN_TRAILING;
        self.heads.is_some() && self.tokens.iter().any(is_short)
    }

    /// Number of first tokens that all choices share.
    fn common(&self) -> usize {
        let Some((first, others)) = self.tokens.split_first() else {
            return 0;
        };
        let shared = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        others.iter().map(shared).min().unwrap_or(first.len())
    }

    fn scored(&self) -> Result<Vec<Range<usize>>, String> {
        let common = self.common();
        let starts = match self.heads.filter(|_| !self.scores_blank()) {
            Some(heads) => heads.to_vec(),
            None => vec![common; self.tokens.len()],
        };
        let range = |(choice, (tokens, start)): (usize, (&Vec<u32>, usize))| {
            let last = self.heads.is_some() && tokens.len() > start + 1;
            let range = start..tokens.len() - usize::from(last);
            match (start, range.is_empty()) {
                (0, _) => Err("the choices have no common first token to be predicted from".into()),
                (_, true) => Err(format!("choice {} adds no token to the others", choice + 1)),
                _ => Ok(range),
            }
        };
        let both = self.tokens.iter().zip(starts).enumerate();
        both.map(range).collect()
    }

    /// The choice with the lowest mean -ln p. `nlls` are those of the scored tokens by choice, in nats. Of equal
    /// choices it is the first, with a blank the second, as in llama-perplexity.
    pub fn pick(&self, nlls: &[&[f64]]) -> usize {
        let mean = |nlls: &&[f64]| nlls.iter().sum::<f64>() / nlls.len().max(1) as f64;
        let means = nlls.iter().map(mean).enumerate();
        let better = match self.heads {
            None => |best: f64, next: f64| next < best,
            Some(_) => |best: f64, next: f64| next <= best,
        };
        let best = means.reduce(|best, next| match better(best.1, next.1) {
            true => next,
            false => best,
        });
        best.map_or(0, |(choice, _)| choice)
    }
}

/// A model's answer to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The picked choice.
    pub choice: usize,
    /// True if it is right.
    pub is_right: bool,
}

/// Fraction of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Number of tasks.
    pub tasks: usize,
    /// Right answers.
    pub right: usize,
    /// Their fraction.
    pub value: f64,
    /// 95% confidence interval (Wilson 1927).
    pub interval: [f64; 2],
}

impl Accuracy {
    /// Of some answers; None without any.
    pub fn of(answers: &[Answer]) -> Option<Accuracy> {
        let (tasks, right) = (
            answers.len(),
            answers.iter().filter(|answer| answer.is_right).count(),
        );
        if tasks == 0 {
            return None;
        }
        let (n, value) = (tasks as f64, right as f64 / tasks as f64);
        let z = Z95 * Z95 / n;
        let middle = value + z / 2.0;
        let half = (z * (value * (1.0 - value) + z / 4.0)).sqrt();
        Some(Accuracy {
            tasks,
            right,
            value,
            interval: [middle - half, middle + half].map(|end| end / (1.0 + z)),
        })
    }
}

/// Answers of two models to the same tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flips {
    /// Tasks that only the first gets right.
    pub lost: usize,
    /// Tasks that only the second gets right.
    pub gained: usize,
    /// Tasks with different answers, right or wrong.
    pub changed: usize,
    /// Probability of a split as uneven as lost and gained, or more, if both models are equally good: McNemar's
    /// test, exact.
    pub p_value: f64,
    /// True if the difference in right answers is significant at 5%.
    pub is_significant: bool,
}

impl Flips {
    /// From the first model's answers to the second's.
    ///
    /// # Panics
    /// If the numbers of answers differ.
    pub fn of(first: &[Answer], second: &[Answer]) -> Flips {
        assert_eq!(first.len(), second.len(), "answers to the same tasks");
        let count = |is: &dyn Fn(&Answer, &Answer) -> bool| {
            first.iter().zip(second).filter(|(a, b)| is(a, b)).count()
        };
        let lost = count(&|a, b| a.is_right && !b.is_right);
        let gained = count(&|a, b| !a.is_right && b.is_right);
        let p_value = sign_test(lost.min(gained), lost + gained);
        Flips {
            lost,
            gained,
            changed: count(&|a, b| a.choice != b.choice),
            p_value,
            is_significant: p_value < LEVEL,
        }
    }
}

/// Probability that `n` fair coins show at most `k` heads, or at most `k` tails; `k` is at most `n / 2`.
fn sign_test(k: usize, n: usize) -> f64 {
    // Terms of the binomial distribution, in logarithms: 0.5^n underflows.
    let mut term = n as f64 * 0.5_f64.ln();
    let mut sum = term.exp();
    for i in 1..=k {
        term += ((n - i + 1) as f64 / i as f64).ln();
        sum += term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(tokens: &[&[u32]], heads: Option<[usize; 2]>) -> Choices {
        Choices {
            tokens: tokens.iter().map(|tokens| tokens.to_vec()).collect(),
            heads,
        }
    }

    #[test]
    fn endings_are_scored_behind_the_common_beginning() {
        let four = choices(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 5, 6]], None);
        assert_eq!(four.scored().unwrap(), [2..4, 2..3, 2..4]);
        let sequences = four.sequences().unwrap();
        assert_eq!(sequences[1].targets()[0].position, 1);
        assert!(
            choices(&[&[1, 2], &[1, 2, 3]], None)
                .scored()
                .unwrap_err()
                .contains("choice 1 adds no token")
        );
        assert!(
            choices(&[&[2], &[3]], None)
                .scored()
                .unwrap_err()
                .contains("no common first token")
        );
    }

    #[test]
    fn blanks_are_scored_by_what_follows_them() {
        // Five tokens follow the beginning: the blank of one or two tokens is left out, and the last token.
        let long = choices(
            &[&[1, 2, 7, 4, 5, 6, 9], &[1, 2, 8, 8, 4, 5, 6, 9]],
            Some([3, 4]),
        );
        assert!(!long.scores_blank());
        assert_eq!(long.scored().unwrap(), [3..6, 4..7]);
        // Three: the blank is scored.
        let short = choices(&[&[1, 2, 7, 4, 9], &[1, 2, 8, 4, 9]], Some([3, 3]));
        assert!(short.scores_blank());
        assert_eq!(short.scored().unwrap(), [2..4, 2..4]);
        // One token is not left out.
        let bare = choices(&[&[1, 2, 7], &[1, 2, 8]], Some([3, 3]));
        assert_eq!(bare.scored().unwrap(), [2..3, 2..3]);
    }

    #[test]
    fn picks_are_the_most_probable_per_token() {
        let endings = choices(&[&[1, 2], &[1, 3]], None);
        assert_eq!(endings.pick(&[&[1.0, 3.0], &[1.9]]), 1);
        assert_eq!(endings.pick(&[&[1.0], &[1.0]]), 0);
        let blank = choices(&[&[1, 2], &[1, 3]], Some([2, 2]));
        assert_eq!(blank.pick(&[&[1.0], &[1.0]]), 1);
    }

    fn answers(right: &[bool]) -> Vec<Answer> {
        let answer = |is_right: &bool| Answer {
            choice: usize::from(*is_right),
            is_right: *is_right,
        };
        right.iter().map(answer).collect()
    }

    #[test]
    fn accuracies_have_wilson_intervals() {
        let right: Vec<bool> = (0..100).map(|i| i < 80).collect();
        let accuracy = Accuracy::of(&answers(&right)).unwrap();
        assert_eq!((accuracy.right, accuracy.value), (80, 0.8));
        // As published tables have it.
        let [low, high] = accuracy.interval;
        assert!(
            (low - 0.7112).abs() < 1e-4 && (high - 0.8666).abs() < 1e-4,
            "{low} {high}"
        );
        assert_eq!(Accuracy::of(&[]), None);
    }

    #[test]
    fn flips_are_tested_exactly() {
        // 1 lost and 8 gained: 2 (1 + 9) / 512.
        let first: Vec<bool> = (0..20).map(|i| i < 3).collect();
        let second: Vec<bool> = (0..20).map(|i| i > 0 && i < 11).collect();
        let flips = Flips::of(&answers(&first), &answers(&second));
        assert_eq!((flips.lost, flips.gained, flips.changed), (1, 8, 9));
        assert!((flips.p_value - 20.0 / 512.0).abs() < 1e-12);
        assert!(flips.is_significant);
        let same = Flips::of(&answers(&first), &answers(&first));
        assert_eq!((same.p_value, same.is_significant), (1.0, false));
        assert_eq!(sign_test(5, 10), 1.0);
        let many = sign_test(4_800, 10_000);
        assert!((many - 6.6e-5).abs() < 1e-5, "{many}");
    }
}
