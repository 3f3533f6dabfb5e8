//! Scores of one row of logits.
//!
//! Exponentials are computed in f32, eight lanes at a time (relative error below 3e-7), sums in
//! f64.

use quantier_blocks::vector::{LANES, exp, vectorized};

/// llama-perplexity ignores tokens in the KL divergence whose stored base log-probability is at or
/// below this: the 16-bit encoding truncates them.
pub const STORED_FLOOR: f32 = -16.0;

/// Errors of scoring a row.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Error {
    /// A logit that is NaN or infinite.
    #[error("the logit of token {token} is {value}; the model computes no usable result here")]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// A token outside the row.
    #[error(
        "token {label} is outside the vocabulary of {n_vocab}; the text was made with another tokenizer"
    )]
    Label {
        /// The token.
        label: u32,
        /// Length of the row.
        n_vocab: usize,
    },
    /// Rows of different vocabularies.
    #[error(
        "the base model has {base} logits and the other {other}; compare models of the same vocabulary"
    )]
    Vocabulary {
        /// Length of the base model's row.
        base: usize,
        /// Length of the other model's row.
        other: usize,
    },
    /// Finite logits so far apart that a figure overflows.
    #[error(
        "the KL divergence is {0}: the logits are too large to be compared; one of the models is broken"
    )]
    Overflow(f64),
}

/// One row over the vocabulary: `ln p[i] = values[i] - log_z`.
#[derive(Debug, Clone, Copy)]
pub struct Distribution<'a> {
    values: &'a [f32],
    max: f32,
    log_z: f64,
    floor: f32,
}

impl<'a> Distribution<'a> {
    /// A row of logits, `[n_vocab]`, not empty.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn of_logits(logits: &'a [f32]) -> Result<Distribution<'a>, Error> {
        let max = checked_max(logits)?;
        let sum = vectorized(
            #[inline(always)]
            || {
                let (chunks, rest) = logits.as_chunks::<LANES>();
                let mut sums = [0.0_f64; LANES];
                for chunk in chunks {
                    for (sum, x) in sums.iter_mut().zip(chunk) {
                        *sum += f64::from(exp(x - max));
                    }
                }
                sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(exp(x - max))).sum::<f64>()
            },
        );
        Ok(Distribution {
            values: logits,
            max,
            log_z: f64::from(max) + sum.ln(),
            floor: f32::NEG_INFINITY,
        })
    }

    /// A row of log-probabilities from a logits file, as stored: neither normalized nor used below
    /// [`STORED_FLOOR`], as in llama-perplexity.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn of_stored(log_probabilities: &'a [f32]) -> Result<Distribution<'a>, Error> {
        let max = checked_max(log_probabilities)?;
        Ok(Distribution {
            values: log_probabilities,
            max,
            log_z: 0.0,
            floor: STORED_FLOOR,
        })
    }

    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The normalizer: `ln p[i] = values[i] - log_z`, in nats.
    pub fn log_z(&self) -> f64 {
        self.log_z
    }

    /// The most probable token, the first of equals.
    pub(crate) fn top(&self) -> usize {
        self.values.iter().position(|&x| x == self.max).unwrap_or(0)
    }

    /// -ln p of a token, in nats.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub(crate) fn nll(&self, label: u32) -> Result<f64, Error> {
        let n_vocab = self.values.len();
        let value = self
            .values
            .get(label as usize)
            .ok_or(Error::Label { label, n_vocab })?;
        Ok(self.log_z - f64::from(*value))
    }
}

/// Comparison of a model's row with the base model's at the same position.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Comparison {
    /// -ln p of the next token, in nats.
    pub nll: f64,
    /// -ln p of the next token under the base model, in nats.
    pub nll_base: f64,
    /// KL divergence from the base model's row, in nats: sum of p_base (ln p_base - ln p).
    pub kld: f64,
    /// Probability of the next token minus the base model's.
    pub delta_p: f64,
    /// True if both have the same most probable token.
    pub same_top: bool,
}

/// Compares a row with the base model's, over the whole vocabulary.
///
/// # Errors
/// Rows of different lengths, a token outside the vocabulary, a divergence that is not finite.
pub fn compare(base: &Distribution, row: &Distribution, label: u32) -> Result<Comparison, Error> {
    if base.values.len() != row.values.len() {
        return Err(Error::Vocabulary {
            base: base.values.len(),
            other: row.values.len(),
        });
    }
    // ln p_base - ln p = (b - r) - c. Rounding c to f32 would shift every term; the error is added
    // back at the end.
    let c = base.log_z - row.log_z;
    let c32 = c as f32;
    let term = |b: f32, r: f32| {
        let weight = if b > base.floor {
            exp(b - base.max)
        } else {
            0.0
        };
        (f64::from(weight), f64::from(weight * ((b - r) - c32)))
    };
    let (mass, sum) = vectorized(
        #[inline(always)]
        || {
            let (b, b_rest) = base.values.as_chunks::<LANES>();
            let (r, r_rest) = row.values.as_chunks::<LANES>();
            let (mut masses, mut sums) = ([0.0_f64; LANES], [0.0_f64; LANES]);
            for (b, r) in b.iter().zip(r) {
                for i in 0..LANES {
                    let (mass, sum) = term(b[i], r[i]);
                    masses[i] += mass;
                    sums[i] += sum;
                }
            }
            let (mut mass, mut sum) = (masses.iter().sum::<f64>(), sums.iter().sum::<f64>());
            for (&b, &r) in b_rest.iter().zip(r_rest) {
                let (m, s) = term(b, r);
                mass += m;
                sum += s;
            }
            (mass, sum)
        },
    );
    let scale = (f64::from(base.max) - base.log_z).exp();
    let kld = scale * (sum - mass * (c - f64::from(c32)));
    if !kld.is_finite() {
        return Err(Error::Overflow(kld));
    }
    let (nll, nll_base) = (row.nll(label)?, base.nll(label)?);
    let delta_p = (-nll).exp() - (-nll_base).exp();
    Ok(Comparison {
        nll,
        nll_base,
        kld,
        delta_p,
        same_top: base.top() == row.top(),
    })
}

/// Largest value of a row; an error if a value is not finite.
fn checked_max(values: &[f32]) -> Result<f32, Error> {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (max, bad) = vectorized(
        #[inline(always)]
        || {
            let (mut max, mut bad) = ([f32::NEG_INFINITY; LANES], [0.0_f32; LANES]);
            for chunk in chunks {
                for i in 0..LANES {
                    max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
                    bad[i] += chunk[i] * 0.0; // NaN if not finite, else 0
                }
            }
            (max, bad)
        },
    );
    if bad.iter().any(|x| x.is_nan()) || rest.iter().any(|x| !x.is_finite()) {
        let token = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(Error::NotFinite {
            token,
            value: values[token],
        });
    }
    Ok(max
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_match_a_manual_calculation() {
        // Probabilities 1/2, 1/4, 1/4 and 1/4, 1/4, 1/2, with arbitrary offsets of the logits.
        let logits = |p: [f64; 3], offset: f64| p.map(|p| (p.ln() + offset) as f32);
        let (b, r) = (
            logits([0.5, 0.25, 0.25], 3.0),
            logits([0.25, 0.25, 0.5], -2.0),
        );
        let c = compare(
            &Distribution::of_logits(&b).unwrap(),
            &Distribution::of_logits(&r).unwrap(),
            2,
        )
        .unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(c.nll, 2_f64.ln());
        near(c.nll_base, 4_f64.ln());
        near(c.kld, 0.25 * 2_f64.ln());
        near(c.delta_p, 0.25);
        assert!(!c.same_top);
    }

    #[test]
    fn large_rows_match_f64() {
        let row = |seed: u32| -> Vec<f32> {
            (0..15_013_u32)
                .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 3.0)
                .collect()
        };
        let (b, mut r) = (row(1), row(1));
        for (i, x) in r.iter_mut().enumerate() {
            *x += ((i % 17) as f32 - 8.0) / 100.0;
        }
        let logs = |v: &[f32]| -> Vec<f64> {
            let z = v.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            v.iter().map(|&x| f64::from(x) - z).collect()
        };
        let (lb, lr) = (logs(&b), logs(&r));
        let kld: f64 = lb.iter().zip(&lr).map(|(b, r)| b.exp() * (b - r)).sum();
        let (b, r) = (
            Distribution::of_logits(&b).unwrap(),
            Distribution::of_logits(&r).unwrap(),
        );
        let c = compare(&b, &r, 5).unwrap();
        assert!((c.kld - kld).abs() < 1e-8, "{} {kld}", c.kld);
        assert!((c.nll + lr[5]).abs() < 1e-7);
        assert_eq!(compare(&b, &b, 5).unwrap().kld, 0.0);
    }

    #[test]
    fn nonfinite_logits_are_named() {
        for (at, value) in [(0, f32::NAN), (8, f32::INFINITY), (9, f32::NEG_INFINITY)] {
            let mut row = [1.0; 10];
            row[at] = value;
            let error = Distribution::of_logits(&row).unwrap_err().to_string();
            assert!(error.contains(&format!("token {at} is")), "{error}");
        }
        assert!(
            Distribution::of_logits(&[1.0, 2.0])
                .unwrap()
                .nll(2)
                .is_err()
        );
    }
}
