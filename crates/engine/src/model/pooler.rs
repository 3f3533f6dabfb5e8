//! Embeddings of texts: from the activations of a text's tokens to a vector of length 1.
//!
//! ```text
//! norm after the last layer -> mean, first or last token -> dense matrices -> divided by its length
//! ```
//!
//! The cosine distance of two unit vectors is half their squared distance. To second order, what a change of the
//! weights costs is therefore half the squared change of the embedding, and with random signs `z` the gradient of
//! `z . embedding` takes the place of that of a sampled token's log-probability: its mean square over `z` is the
//! squared change (Hutchinson 1990).

use super::backward::Labels;
use super::head::{HeadInput, of_chunk};
use super::ops::elementwise::{add, scale};
use super::ops::product::{product, product_derivative};
use super::rows::Rows;
use super::weights::Weights;
use super::{Engine, Error, Result};
use quantier_arch::Pooling;
use quantier_arch::spec::DenseSpec;

/// From the last layer's output to embeddings.
pub struct Pooler {
    input: HeadInput,
    pooling: Pooling,
    dense: Vec<Dense>,
}

/// A matrix after the pooling.
struct Dense {
    /// `[rows, columns]`.
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Dense {
    fn load(weights: &Weights<'_>, spec: &DenseSpec) -> Result<Dense> {
        let bias = spec.bias.as_ref();
        let bias = bias.map(|name| weights.finite(name, &[spec.rows]));
        Ok(Dense {
            weights: weights.finite(&spec.weight, &[spec.rows, spec.columns])?,
            bias: bias.transpose()?,
        })
    }

    fn times(&self, x: &Rows) -> Rows {
        let mut y = product(x, &self.weights, 1);
        if let Some(bias) = &self.bias {
            y.iter_mut().for_each(|y| add(y, bias));
        }
        y
    }
}

impl Engine<'_> {
    /// Loads what makes embeddings of the last layer's output.
    ///
    /// # Errors
    /// A model that predicts tokens; tensors that are missing, have the wrong shape or cannot be read.
    pub fn pooler(&self) -> Result<Pooler> {
        let pooling = self.hyper.pooling.ok_or_else(|| {
            Error::Model("the model predicts tokens; only embedding models make embeddings".into())
        })?;
        let dense = self.spec.dense.iter();
        let load = || -> Result<Pooler> {
            Ok(Pooler {
                input: self.head_input(&self.weights)?,
                pooling,
                dense: dense
                    .map(|spec| Dense::load(&self.weights, spec))
                    .collect::<Result<_>>()?,
            })
        };
        self.pool.install(load)
    }

    /// Checks presence and shapes of the matrices after the pooling.
    pub(super) fn check_dense(&self, weights: &Weights<'_>) -> Result<()> {
        let mut dense = self.spec.dense.iter();
        dense.try_for_each(|spec| Dense::load(weights, spec).map(drop))
    }
}

impl Pooler {
    /// The embeddings of a text, each of length 1, from the last layer's output at all of its tokens, `[tokens,
    /// hidden]`: one, or one for each token if the model has no pooling. None if one is zero or not finite.
    pub fn embed(&self, hidden: &Rows) -> Option<Rows> {
        let mut pooled = self.pooled(hidden);
        for row in pooled.iter_mut() {
            let length = length(row);
            if !(length.is_finite() && length > 0.0) {
                return None;
            }
            scale(row, (1.0 / length) as f32);
        }
        Some(pooled)
    }

    /// The vectors before the division by their lengths.
    fn pooled(&self, hidden: &Rows) -> Rows {
        let tokens = self.input.of(hidden);
        let (count, columns) = (tokens.len(), tokens.columns());
        let pooled = match self.pooling {
            Pooling::Tokens => tokens,
            Pooling::Cls => tokens.range(0..1.min(count)),
            Pooling::Last => tokens.range(count.saturating_sub(1)..count),
            Pooling::Mean => {
                let mut sums = vec![0.0f64; columns];
                for token in tokens.iter() {
                    let pairs = sums.iter_mut().zip(token);
                    pairs.for_each(|(sum, x)| *sum += f64::from(*x));
                }
                let mean = |sum: f64| (sum / count.max(1) as f64) as f32;
                Rows::new(sums.into_iter().map(mean).collect(), columns)
            }
        };
        let dense = self.dense.iter();
        dense.fold(pooled, |x, dense| dense.times(&x))
    }

    /// The gradient of the last layer's output, given that of the embeddings, and [`Pooler::pooled`].
    fn derivative(&self, hidden: &Rows, pooled: &Rows, mut gradient: Rows) -> Rows {
        for (g, x) in gradient.iter_mut().zip(pooled.iter()) {
            unit_derivative(x, g);
        }
        for dense in self.dense.iter().rev() {
            gradient = product_derivative(&gradient, &dense.weights, 1);
        }
        let count = hidden.len();
        let of_tokens = match self.pooling {
            Pooling::Tokens => gradient,
            Pooling::Cls | Pooling::Last => {
                let mut all = Rows::zeros(count, gradient.columns());
                let at = match self.pooling {
                    Pooling::Cls => 0,
                    _ => count.saturating_sub(1),
                };
                if let Some(row) = all.iter_mut().nth(at) {
                    row.copy_from_slice(gradient.row(0));
                }
                all
            }
            Pooling::Mean => {
                scale(gradient.numbers_mut(), 1.0 / count.max(1) as f32);
                let row = gradient.numbers();
                Rows::new(row.repeat(count), row.len())
            }
        };
        self.input.derivative(hidden, of_tokens, &of_chunk(0, None))
    }

    /// Gradients of the last layer's output for random signs of the embedding's numbers, one for each draw. With
    /// several embeddings of a text, the sum of squares is that of their mean distance.
    pub(super) fn probes(&self, hidden: &Rows, chunk: usize, labels: &Labels) -> Vec<Rows> {
        let pooled = self.pooled(hidden);
        let (count, width) = (pooled.len(), pooled.columns());
        let size = 1.0 / (count.max(1) as f32).sqrt();
        let draw = |draw: usize| {
            let sign = |at: usize| match labels.random(chunk, at, draw) < 0.5 {
                true => size,
                false => -size,
            };
            let signs = Rows::new((0..count * width).map(sign).collect(), width);
            self.derivative(hidden, &pooled, signs)
        };
        (0..labels.draws).map(draw).collect()
    }
}

/// The length of a vector.
fn length(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Derivative of the division by the length: turns the gradient of the unit vector into that of `x`.
fn unit_derivative(x: &[f32], g: &mut [f32]) {
    let length = length(x);
    let along: f64 = x.iter().zip(&*g).map(|(x, g)| f64::from(x * g)).sum();
    let along = along / length.powi(2);
    let pairs = g.iter_mut().zip(x);
    pairs.for_each(|(g, x)| *g = ((f64::from(*g) - along * f64::from(*x)) / length) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layer::tests::{HIDDEN, norm};
    use crate::model::ops::tests::{check_gradients, random};

    fn pooler(pooling: Pooling, dense: bool) -> Pooler {
        let matrix = |rows: usize, columns: usize, seed: u32| Dense {
            weights: random(rows * columns, seed),
            bias: (seed == 7).then(|| random(rows, 8)),
        };
        Pooler {
            input: HeadInput::of_norm(Some(norm(5))),
            pooling,
            dense: match dense {
                true => vec![matrix(9, HIDDEN, 7), matrix(4, 9, 9)],
                false => Vec::new(),
            },
        }
    }

    #[test]
    fn embeddings_are_unit_vectors_with_a_derivative() {
        const TOKENS: usize = 4;
        for pooling in [Pooling::Tokens, Pooling::Mean, Pooling::Cls, Pooling::Last] {
            for dense in [false, true] {
                let pooler = pooler(pooling, dense);
                let rows = |x: &[Vec<f32>]| Rows::new(x[0].clone(), HIDDEN);
                let embed = |x: &[Vec<f32>]| pooler.embed(&rows(x)).unwrap();
                let at = [random(TOKENS * HIDDEN, 1)];
                for row in embed(&at).iter() {
                    assert!((length(row) - 1.0).abs() < 1e-6);
                }
                let forward = |x: &[Vec<f32>]| embed(x).into_numbers();
                let backward = |x: &[Vec<f32>], g: &[f32]| {
                    let width = embed(x).columns();
                    let gradient = Rows::new(g.to_vec(), width);
                    let (hidden, pooled) = (rows(x), pooler.pooled(&rows(x)));
                    vec![pooler.derivative(&hidden, &pooled, gradient).into_numbers()]
                };
                check_gradients("embedding", &at, &forward, &backward);
            }
        }
    }

    #[test]
    fn pooling_takes_its_tokens() {
        let rows = Rows::new(random(3 * HIDDEN, 2), HIDDEN);
        let of = |pooling| pooler(pooling, false).pooled(&rows);
        let all = of(Pooling::Tokens);
        assert_eq!(of(Pooling::Cls).numbers(), all.row(0));
        assert_eq!(of(Pooling::Last).numbers(), all.row(2));
        for (i, mean) in of(Pooling::Mean).numbers().iter().enumerate() {
            let sum: f32 = all.iter().map(|row| row[i]).sum();
            assert!((mean - sum / 3.0).abs() < 1e-6);
        }
        let zeros = Rows::zeros(2, HIDDEN);
        assert!(pooler(Pooling::Mean, false).embed(&zeros).is_none());
    }

    /// The mean square of the probes' products with a small change is twice the cosine distance.
    #[test]
    fn probes_measure_the_cosine_distance() {
        const DRAWS: usize = 4000;
        let pooler = pooler(Pooling::Mean, true);
        let hidden = Rows::new(random(3 * HIDDEN, 2), HIDDEN);
        let mut changed = hidden.clone();
        let change = random(3 * HIDDEN, 3);
        let pairs = changed.numbers_mut().iter_mut().zip(&change);
        pairs.for_each(|(x, change)| *x += 1e-2 * change);
        let [a, b] = [&hidden, &changed].map(|rows| pooler.embed(rows).unwrap());
        let distance: f64 = a
            .numbers()
            .iter()
            .zip(b.numbers())
            .map(|(a, b)| f64::from(a - b).powi(2) / 2.0)
            .sum();
        let labels = Labels {
            draws: DRAWS,
            seed: 5,
            first: 0,
        };
        let squares = pooler.probes(&hidden, 0, &labels).into_iter().map(|probe| {
            let product = probe.numbers().iter().zip(&change);
            let product: f64 = product
                .map(|(g, change)| f64::from(1e-2 * g * change))
                .sum();
            product.powi(2)
        });
        let found = squares.sum::<f64>() / (2 * DRAWS) as f64;
        assert!((found / distance - 1.0).abs() < 0.1, "{found}, {distance}");
    }
}
