//! Outputs whose weights are computed at once, from whole tensors: products, sums and folded batch
//! norms.

use super::Source;
use super::numbers::rounding;
use super::weights::Cast;
use crate::arch::recipes::BatchNorm;
use crate::format::safetensors::Dtype;

/// Computed weights.
pub(super) struct Computed {
    pub(super) weights: Vec<f32>,
    /// Dimensions, outermost first.
    pub(super) dims: Vec<u64>,
    /// The type, if not given by name and file type.
    pub(super) cast: Option<Cast>,
}

impl Computed {
    /// Weights of one dimension.
    pub(super) fn vector(weights: Vec<f32>) -> Computed {
        Computed {
            dims: vec![weights.len() as u64],
            weights,
            cast: None,
        }
    }
}

/// The products of two tensors' numbers, in f32.
pub(super) fn product(sources: &[&Source], numbers: &[Vec<f32>]) -> Result<Vec<f32>, String> {
    let ([a, b], [x, y]) = (sources, numbers) else {
        return Err("its recipe does not multiply two tensors".into());
    };
    match x.len() == y.len() {
        true => Ok(x.iter().zip(y).map(|(x, y)| x * y).collect()),
        false => Err(format!(
            "its shape is {:?}, and that of {}, which it is multiplied by, {:?}",
            a.shape, b.name, b.shape
        )),
    }
}

/// The sum of the two halves of every row, and the shape of the sums. Those of halves are halves.
pub(super) fn halves_added(
    source: &Source,
    numbers: &[f32],
) -> Result<(Vec<f32>, [u64; 2]), String> {
    let [rows, columns] = source.shape[..] else {
        return Err(format!("its shape {:?} is no matrix's", source.shape));
    };
    if rows == 0 || columns == 0 || columns % 2 == 1 {
        return Err(format!("its rows of {columns} numbers have no two halves"));
    }
    let round = computing(source.dtype);
    let half = columns as usize / 2;
    let row = |row: &[f32]| {
        let (first, second) = row.split_at(half);
        let sums = first.iter().zip(second).map(|(x, y)| round(x + y));
        sums.collect::<Vec<_>>()
    };
    let sums = numbers.chunks_exact(columns as usize).flat_map(row);
    Ok((sums.collect(), [rows, columns / 2]))
}

/// The factor or the summand per channel of a batch norm, given by its weight, bias, mean and
/// variance.
pub(super) fn batch_norm(
    part: BatchNorm,
    numbers: &[Vec<f32>],
    dtype: Dtype,
) -> Result<Vec<f32>, String> {
    /// PyTorch's default, which no config has.
    const EPSILON: f32 = 1e-5;
    let [weight, bias, mean, variance, ..] = numbers else {
        return Err("a batch norm has a weight, a bias, a mean and a variance".into());
    };
    let channels = weight.len();
    if [bias, mean, variance]
        .iter()
        .any(|part| part.len() != channels)
    {
        return Err("the parts of the batch norm have different lengths".into());
    }
    let round = computing(dtype);
    let channel = |channel: usize| {
        let deviation = round(round(variance[channel] + EPSILON).sqrt());
        let factor = round(weight[channel] / deviation);
        match part {
            BatchNorm::Weight => factor,
            BatchNorm::Bias => round(bias[channel] - round(mean[channel] * factor)),
        }
    };
    Ok((0..channels).map(channel).collect())
}

/// Rounding to the type in which PyTorch computes: BF16 is widened before.
fn computing(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::F16 => rounding(dtype),
        _ => rounding(Dtype::F32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_norms_are_folded() {
        let parts = [vec![3.0], vec![1.0], vec![2.0], vec![0.25 - 1e-5]];
        let fold = |part| batch_norm(part, &parts, Dtype::F32).unwrap()[0];
        assert_eq!(fold(BatchNorm::Weight), 6.0);
        assert_eq!(fold(BatchNorm::Bias), -11.0);
        let short = [vec![3.0], vec![], vec![2.0], vec![1.0]];
        assert!(batch_norm(BatchNorm::Bias, &short, Dtype::F16).is_err());
    }
}
