//! Weighted sums of residual streams.

use super::elementwise::{add_scaled, dots};
use crate::model::rows::Rows;

/// Adds to each stream of a row a weighted sum of all: streams side by side, `[positions, streams *
/// length]`; weights by stream, then by summand, `[positions, streams * streams]`.
pub(crate) fn mix(streams: &Rows, weights: &Rows) -> Rows {
    let mut mixed = streams.clone();
    let rows = mixed.iter_mut().zip(streams.iter()).zip(weights.iter());
    for ((mixed, row), weights) in rows {
        let count = count(weights);
        let length = row.len() / count;
        for (mixed, weights) in mixed
            .chunks_exact_mut(length)
            .zip(weights.chunks_exact(count))
        {
            let summands = row.chunks_exact(length).zip(weights);
            summands.for_each(|(stream, weight)| add_scaled(mixed, stream, *weight));
        }
    }
    mixed
}

/// Derivatives of [`mix`] with respect to streams and weights, given the gradient `g` of its output.
pub(crate) fn mix_derivative(streams: &Rows, weights: &Rows, g: &Rows) -> [Rows; 2] {
    let mut of_streams = g.clone();
    let mut of_weights = Vec::with_capacity(weights.numbers().len());
    let rows = of_streams.iter_mut().zip(streams.iter());
    for (((of_row, row), weights), g) in rows.zip(weights.iter()).zip(g.iter()) {
        let count = count(weights);
        let length = row.len() / count;
        for (g, weights) in g.chunks_exact(length).zip(weights.chunks_exact(count)) {
            let summands = of_row.chunks_exact_mut(length).zip(weights);
            summands.for_each(|(of_stream, weight)| add_scaled(of_stream, g, *weight));
            for stream in row.chunks_exact(length) {
                of_weights.extend(dots(g, stream, 1));
            }
        }
    }
    [of_streams, Rows::new(of_weights, weights.columns())]
}

/// Number of streams.
fn count(weights: &[f32]) -> usize {
    weights.len().isqrt()
}
