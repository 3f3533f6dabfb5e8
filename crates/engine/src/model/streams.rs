//! Several residual streams of a token (AltUp, Baykal et al. 2023).
//!
//! ```text
//! Expansion     embedding -> streams
//! Opening       streams -> the stream that a section of blocks works on, and the streams beside it
//! Closing       both -> streams
//! Merging       streams of the last layer -> input of the last norm
//! ```
//!
//! The streams of a position are one row, side by side. Their matrices are small, and no quantizer
//! changes them: derivatives pass through them, and no tap sees their output gradients.

use super::Result;
use super::layer::Bundle;
use super::linear::{Linear, Norm, Pass};
use super::ops::elementwise::{add, dots, multiply, scale, scale_groups};
use super::ops::length::{match_lengths, match_lengths_derivative};
use super::ops::mixing::{mix, mix_derivative};
use super::ops::product::{product, product_derivative};
use super::rows::Rows;
use super::weights::Weights;
use quantier_arch::spec::{ClosingSpec, ModalitiesSpec, OpeningSpec, StreamsSpec};

/// The streams besides the first: products of the embedding with a matrix each, scaled to its
/// length.
pub(super) struct Expansion(Projections);

/// The mean of the first stream and of the others' products with a matrix each, scaled to the first
/// one's length.
pub(super) struct Merging(Projections);

/// A square matrix for each stream but the first.
struct Projections {
    /// `[streams - 1, hidden, hidden]`.
    weights: Vec<f32>,
    streams: usize,
    hidden: usize,
}

impl Projections {
    fn load(weights: &Weights<'_>, spec: &StreamsSpec, name: &str, hidden: usize) -> Result<Self> {
        Ok(Projections {
            weights: weights.finite(name, &[spec.count - 1, hidden, hidden])?,
            streams: spec.count,
            hidden,
        })
    }

    /// The matrix of a stream, counted from 1.
    fn of(&self, stream: usize) -> &[f32] {
        let each = self.hidden * self.hidden;
        &self.weights[(stream - 1) * each..][..each]
    }
}

impl Expansion {
    pub(super) fn load(weights: &Weights<'_>, spec: &StreamsSpec, hidden: usize) -> Result<Self> {
        Projections::load(weights, spec, spec.expansion, hidden).map(Expansion)
    }

    /// From embeddings `[positions, hidden]` to `[positions, streams * hidden]`.
    pub(super) fn expand(&self, embedding: &Rows) -> Rows {
        let others = (1..self.0.streams).map(|stream| {
            let mut projected = product(embedding, self.0.of(stream), 1);
            match_lengths(&mut projected, embedding);
            projected
        });
        let others: Vec<_> = others.collect();
        let all: Vec<_> = [embedding].into_iter().chain(&others).collect();
        Rows::beside(&all)
    }

    /// Derivative of [`Expansion::expand`]: the gradient of the embedding.
    pub(super) fn derivative(&self, embedding: &Rows, gradient: &Rows) -> Rows {
        let mut of_embedding = stream_of(gradient, 0, self.0.hidden);
        for stream in 1..self.0.streams {
            let projected = product(embedding, self.0.of(stream), 1);
            let mut g = stream_of(gradient, stream, self.0.hidden);
            let of_length = match_lengths_derivative(&projected, embedding, &mut g);
            add(of_embedding.numbers_mut(), of_length.numbers());
            let of_input = product_derivative(&g, self.0.of(stream), 1);
            add(of_embedding.numbers_mut(), of_input.numbers());
        }
        of_embedding
    }
}

impl Merging {
    pub(super) fn load(weights: &Weights<'_>, spec: &StreamsSpec, hidden: usize) -> Result<Self> {
        Projections::load(weights, spec, spec.merging, hidden).map(Merging)
    }

    /// From `[positions, streams * hidden]` to `[positions, hidden]`.
    pub(super) fn merge(&self, streams: &Rows) -> Rows {
        let first = stream_of(streams, 0, self.0.hidden);
        let mut sum = first.clone();
        for stream in 1..self.0.streams {
            let input = stream_of(streams, stream, self.0.hidden);
            let mut projected = product(&input, self.0.of(stream), 1);
            match_lengths(&mut projected, &first);
            add(sum.numbers_mut(), projected.numbers());
        }
        scale(sum.numbers_mut(), 1.0 / self.0.streams as f32);
        sum
    }

    /// Derivative of [`Merging::merge`]: the gradient of the streams.
    pub(super) fn derivative(&self, streams: &Rows, mut gradient: Rows) -> Rows {
        scale(gradient.numbers_mut(), 1.0 / self.0.streams as f32);
        let first = stream_of(streams, 0, self.0.hidden);
        let mut of_first = gradient.clone();
        let mut of_streams = Rows::zeros(streams.len(), streams.columns());
        for stream in 1..self.0.streams {
            let input = stream_of(streams, stream, self.0.hidden);
            let projected = product(&input, self.0.of(stream), 1);
            let mut g = gradient.clone();
            let of_length = match_lengths_derivative(&projected, &first, &mut g);
            add(of_first.numbers_mut(), of_length.numbers());
            let of_input = product_derivative(&g, self.0.of(stream), 1);
            of_streams.set_columns(stream * self.0.hidden, &of_input);
        }
        of_streams.set_columns(0, &of_first);
        of_streams
    }
}

/// One of the streams.
fn stream_of(streams: &Rows, stream: usize, hidden: usize) -> Rows {
    streams.columns_range(stream * hidden..(stream + 1) * hidden)
}

/// Weights of streams, computed from a row of one of them.
#[derive(Clone)]
pub(super) struct Modalities {
    /// The norm, times the factor of the router's input.
    pub norm: Norm,
    pub router: Linear,
    pub coefficients: Linear,
}

impl Modalities {
    fn load(weights: &Weights<'_>, spec: &ModalitiesSpec) -> Result<Modalities> {
        Ok(Modalities {
            norm: weights.scaled_norm(&spec.norm)?,
            router: weights.linear(&spec.router)?,
            coefficients: weights.linear(&spec.coefficients)?,
        })
    }

    /// The modalities, input of the last matrix: `[positions, streams]`.
    fn modalities(&self, x: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let input = self.norm.of(x);
        pass.input(&[&self.router], None, &input)?;
        let mut modalities = pass.times(&self.router, &input)?;
        modalities
            .numbers_mut()
            .iter_mut()
            .for_each(|x| *x = x.tanh());
        Ok(modalities)
    }

    /// The weights of a row.
    fn weights(&self, x: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let modalities = self.modalities(x, pass)?;
        pass.input(&[&self.coefficients], None, &modalities)?;
        pass.times(&self.coefficients, &modalities)
    }

    /// Derivative of [`Modalities::weights`]: adds the gradient of the row to `of_x`. `pass` has no
    /// tap.
    fn derivative(&self, x: &Rows, g: &Rows, pass: &Pass<'_>, of_x: &mut Rows) -> Result<()> {
        let modalities = self.modalities(x, pass)?;
        let mut of_modalities = Rows::zeros(g.len(), modalities.columns());
        pass.back(&self.coefficients, g, &mut of_modalities)?;
        let places = of_modalities.numbers_mut().iter_mut();
        let places = places.zip(modalities.numbers());
        places.for_each(|(g, tanh)| *g *= 1.0 - tanh * tanh);
        let mut of_input = Rows::zeros(x.len(), x.columns());
        pass.back(&self.router, &of_modalities, &mut of_input)?;
        pass.back_norm(&self.norm, x.numbers(), of_input.numbers_mut());
        add(of_x.numbers_mut(), of_input.numbers());
        Ok(())
    }
}

/// The pass without its tap.
fn untapped<'p>(pass: &Pass<'p>) -> Pass<'p> {
    Pass { tap: None, ..*pass }
}

/// From the streams to the stream that a section works on ([`OpeningSpec`]).
#[derive(Clone)]
pub(super) enum Opening {
    Predict(Box<Modalities>),
    /// Factors of the first stream.
    First(Vec<f32>),
}

impl Opening {
    pub(super) fn load(weights: &Weights<'_>, spec: &OpeningSpec) -> Result<Opening> {
        Ok(match spec {
            OpeningSpec::Predict(spec) => {
                Opening::Predict(Box::new(Modalities::load(weights, spec)?))
            }
            OpeningSpec::First { scale, hidden } => {
                Opening::First(weights.finite(scale, &[*hidden])?)
            }
        })
    }

    /// Length of a stream.
    fn hidden(&self) -> usize {
        match self {
            Opening::Predict(modalities) => modalities.router.columns,
            Opening::First(factors) => factors.len(),
        }
    }

    /// Moves the bundle's streams aside and puts the section's stream in their place.
    pub(super) fn open(&self, bundle: &mut Bundle, pass: &Pass<'_>) -> Result<()> {
        let streams = std::mem::take(&mut bundle.stream);
        let first = stream_of(&streams, 0, self.hidden());
        (bundle.stream, bundle.beside) = match self {
            Opening::Predict(modalities) => {
                let predicted = mix(&streams, &modalities.weights(&first, pass)?);
                (stream_of(&predicted, 0, self.hidden()), Some(predicted))
            }
            Opening::First(factors) => (scaled(first, factors), Some(streams)),
        };
        Ok(())
    }

    /// Derivative of [`Opening::open`], given the streams before it.
    pub(super) fn derivative(
        &self,
        streams: &Rows,
        gradient: &mut Bundle,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let of_stream = std::mem::take(&mut gradient.stream);
        let of_beside = gradient.beside.take();
        let mut of_beside =
            of_beside.unwrap_or_else(|| Rows::zeros(streams.len(), streams.columns()));
        match self {
            Opening::Predict(modalities) => {
                of_beside.add_columns(0, &of_stream);
                let pass = untapped(pass);
                let first = stream_of(streams, 0, self.hidden());
                let weights = modalities.weights(&first, &pass)?;
                let [mut of_streams, of_weights] = mix_derivative(streams, &weights, &of_beside);
                let mut of_first = Rows::zeros(first.len(), first.columns());
                modalities.derivative(&first, &of_weights, &pass, &mut of_first)?;
                of_streams.add_columns(0, &of_first);
                gradient.stream = of_streams;
            }
            Opening::First(factors) => {
                of_beside.add_columns(0, &scaled(of_stream, factors));
                gradient.stream = of_beside;
            }
        }
        Ok(())
    }
}

/// Every row times these factors.
fn scaled(mut rows: Rows, factors: &[f32]) -> Rows {
    rows.iter_mut().for_each(|row| multiply(row, factors));
    rows
}

/// From the stream that a section worked on to all streams ([`ClosingSpec`]).
#[derive(Clone)]
pub(super) enum Closing {
    Correct(Box<Modalities>),
    AddToOthers,
}

impl Closing {
    pub(super) fn load(weights: &Weights<'_>, spec: &ClosingSpec) -> Result<Closing> {
        Ok(match spec {
            ClosingSpec::Correct(spec) => {
                Closing::Correct(Box::new(Modalities::load(weights, spec)?))
            }
            ClosingSpec::AddToOthers => Closing::AddToOthers,
        })
    }

    /// Puts the streams in the place of the section's stream.
    pub(super) fn close(&self, bundle: &mut Bundle, pass: &Pass<'_>) -> Result<()> {
        let Some(mut streams) = bundle.beside.take() else {
            return Ok(());
        };
        let stream = std::mem::take(&mut bundle.stream);
        let hidden = stream.columns();
        match self {
            Closing::Correct(modalities) => {
                let weights = modalities.weights(&stream, pass)?;
                let difference = difference(&stream, &streams);
                for number in 0..weights.columns() {
                    let correction = corrected(&difference, &weights, number);
                    streams.add_columns(number * hidden, &correction);
                }
            }
            Closing::AddToOthers => {
                for first in (hidden..streams.columns()).step_by(hidden) {
                    streams.add_columns(first, &stream);
                }
            }
        }
        bundle.stream = streams;
        Ok(())
    }

    /// Derivative of [`Closing::close`], given the bundle before it.
    pub(super) fn derivative(
        &self,
        before: &Closed,
        gradient: &mut Bundle,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let Closed { stream, beside } = before;
        let hidden = stream.columns();
        let mut of_streams = std::mem::take(&mut gradient.stream);
        let streams = of_streams.columns() / hidden;
        let mut of_stream = Rows::zeros(stream.len(), hidden);
        match self {
            Closing::Correct(modalities) => {
                let pass = untapped(pass);
                let weights = modalities.weights(stream, &pass)?;
                let difference = difference(stream, beside);
                let mut of_weights = Rows::zeros(stream.len(), streams);
                for number in 0..streams {
                    let g = stream_of(&of_streams, number, hidden);
                    let of_weight = dots(g.numbers(), difference.numbers(), g.len());
                    of_weights.set_columns(number, &Rows::new(of_weight, 1));
                    let of_difference = corrected(&g, &weights, number);
                    add(of_stream.numbers_mut(), of_difference.numbers());
                }
                let mut of_prediction = of_stream.clone();
                scale(of_prediction.numbers_mut(), -1.0);
                of_streams.add_columns(0, &of_prediction);
                modalities.derivative(stream, &of_weights, &pass, &mut of_stream)?;
            }
            Closing::AddToOthers => {
                for number in 1..streams {
                    let g = stream_of(&of_streams, number, hidden);
                    add(of_stream.numbers_mut(), g.numbers());
                }
            }
        }
        (gradient.stream, gradient.beside) = (of_stream, Some(of_streams));
        Ok(())
    }
}

/// A bundle before its closing.
pub(super) struct Closed {
    /// The section's stream.
    stream: Rows,
    /// The streams beside it.
    beside: Rows,
}

impl Closed {
    /// Of this bundle; None if no section is open.
    pub(super) fn of(bundle: &Bundle) -> Option<Closed> {
        Some(Closed {
            stream: bundle.stream.clone(),
            beside: bundle.beside.clone()?,
        })
    }
}

/// The section's stream minus its prediction, the first stream.
fn difference(stream: &Rows, streams: &Rows) -> Rows {
    let mut difference = stream_of(streams, 0, stream.columns());
    scale(difference.numbers_mut(), -1.0);
    add(difference.numbers_mut(), stream.numbers());
    difference
}

/// The rows times 1 plus the weights of a stream.
fn corrected(rows: &Rows, weights: &Rows, stream: usize) -> Rows {
    let factors: Vec<f32> = weights.iter().map(|row| 1.0 + row[stream]).collect();
    let mut rows = rows.clone();
    scale_groups(rows.numbers_mut(), &factors);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layer::tests::{linear, norm, pass};
    use crate::model::ops::tests::{check_gradients, random};

    const HIDDEN: usize = crate::model::layer::tests::HIDDEN;
    const STREAMS: usize = 3;
    const POSITIONS: usize = 4;

    fn projections() -> Projections {
        Projections {
            weights: random((STREAMS - 1) * HIDDEN * HIDDEN, 1),
            streams: STREAMS,
            hidden: HIDDEN,
        }
    }

    fn streams(x: &[f32]) -> Rows {
        Rows::new(x.to_vec(), STREAMS * HIDDEN)
    }

    #[test]
    fn streams_besides_the_first_have_its_length() {
        let embedding = Rows::new(random(POSITIONS * HIDDEN, 2), HIDDEN);
        let all = Expansion(projections()).expand(&embedding);
        let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for (row, first) in all.iter().zip(embedding.iter()) {
            assert_eq!(&row[..HIDDEN], first);
            let parts = row.chunks_exact(HIDDEN);
            assert!(
                parts
                    .into_iter()
                    .all(|x| (length(x) - length(first)).abs() < 1e-5)
            );
        }
    }

    #[test]
    fn expansion_and_merging_have_derivatives() {
        let expansion = Expansion(projections());
        let embedding = |x: &[Vec<f32>]| Rows::new(x[0].clone(), HIDDEN);
        let forward = |x: &[Vec<f32>]| expansion.expand(&embedding(x)).into_numbers();
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let gradient = expansion.derivative(&embedding(x), &streams(g));
            vec![gradient.into_numbers()]
        };
        let at = [random(POSITIONS * HIDDEN, 3)];
        check_gradients("expansion", &at, &forward, &backward);
        let merging = Merging(projections());
        let forward = |x: &[Vec<f32>]| merging.merge(&streams(&x[0])).into_numbers();
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let g = Rows::new(g.to_vec(), HIDDEN);
            vec![merging.derivative(&streams(&x[0]), g).into_numbers()]
        };
        let at = [random(POSITIONS * STREAMS * HIDDEN, 4)];
        check_gradients("merging", &at, &forward, &backward);
    }

    fn modalities(count: usize) -> Modalities {
        Modalities {
            norm: norm(11),
            router: linear(STREAMS, HIDDEN, 12),
            coefficients: linear(count, STREAMS, 13),
        }
    }

    #[test]
    fn predictions_are_weighted_sums_of_streams() {
        // Weights 0, 1, .. 8 whatever the modalities.
        let mut modalities = modalities(STREAMS * STREAMS);
        modalities.coefficients.weights = vec![0.0; STREAMS.pow(3)].into();
        modalities.coefficients.bias = Some((0..9).map(|x| x as f32).collect());
        let mut bundle = Bundle::of(streams(&random(STREAMS * HIDDEN, 5)));
        let before = bundle.stream.clone();
        let opening = Opening::Predict(modalities.into());
        opening.open(&mut bundle, &pass()).unwrap();
        let predicted = bundle.beside.unwrap();
        let at = |rows: &Rows, stream: usize, i: usize| rows.row(0)[stream * HIDDEN + i];
        for i in 0..HIDDEN {
            for stream in 0..STREAMS {
                let [a, b, c] = [0, 1, 2].map(|other| at(&before, other, i));
                let w = (3 * stream) as f32;
                let expected = at(&before, stream, i) + w * a + (w + 1.0) * b + (w + 2.0) * c;
                assert!((at(&predicted, stream, i) - expected).abs() < 1e-4);
            }
            assert_eq!(bundle.stream.row(0)[i], at(&predicted, 0, i));
        }
    }

    #[test]
    fn openings_have_derivatives() {
        let openings = [
            Opening::Predict(modalities(STREAMS * STREAMS).into()),
            Opening::First(random(HIDDEN, 6)),
        ];
        for opening in openings {
            let open = |x: &[f32]| {
                let mut bundle = Bundle::of(streams(x));
                opening.open(&mut bundle, &pass()).unwrap();
                Rows::beside(&[&bundle.stream, &bundle.beside.unwrap()])
            };
            let forward = |x: &[Vec<f32>]| open(&x[0]).into_numbers();
            let backward = |x: &[Vec<f32>], g: &[f32]| {
                let g = Rows::new(g.to_vec(), (STREAMS + 1) * HIDDEN);
                let mut gradient = Bundle::of(g.columns_range(0..HIDDEN));
                gradient.beside = Some(g.columns_range(HIDDEN..g.columns()));
                opening
                    .derivative(&streams(&x[0]), &mut gradient, &pass())
                    .unwrap();
                vec![gradient.stream.into_numbers()]
            };
            let at = [random(POSITIONS * STREAMS * HIDDEN, 7)];
            check_gradients("opening", &at, &forward, &backward);
        }
    }

    #[test]
    fn closings_have_derivatives() {
        for closing in [
            Closing::Correct(modalities(STREAMS).into()),
            Closing::AddToOthers,
        ] {
            let before = |x: &[Vec<f32>]| Bundle {
                beside: Some(streams(&x[1])),
                ..Bundle::of(Rows::new(x[0].clone(), HIDDEN))
            };
            let forward = |x: &[Vec<f32>]| {
                let mut bundle = before(x);
                closing.close(&mut bundle, &pass()).unwrap();
                bundle.stream.into_numbers()
            };
            let backward = |x: &[Vec<f32>], g: &[f32]| {
                let mut gradient = Bundle::of(streams(g));
                let closed = Closed::of(&before(x)).unwrap();
                closing.derivative(&closed, &mut gradient, &pass()).unwrap();
                let of_streams = gradient.beside.unwrap().into_numbers();
                vec![gradient.stream.into_numbers(), of_streams]
            };
            let at = [
                random(POSITIONS * HIDDEN, 8),
                random(POSITIONS * STREAMS * HIDDEN, 9),
            ];
            check_gradients("closing", &at, &forward, &backward);
        }
    }
}
