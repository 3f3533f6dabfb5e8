//! Outputs whose weights are computed at once, from whole tensors: products, sums, averages, interpolated
//! grids and folded norms.

use super::Source;
use super::numbers::rounding;
use super::weights::Cast;
use crate::arch::recipes::BatchNorm;
use crate::format::safetensors::Dtype;

/// The most numbers of an interpolated grid.
const LARGEST_GRID: u64 = 1 << 28;

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

/// Sums of vectors, divided by their counts, of which PyTorch takes none for less than 1e-5.
pub(super) fn averages(
    [sums, counts]: [&Source; 2],
    [mut numbers, divisors]: [Vec<f32>; 2],
) -> Result<Computed, String> {
    const LEAST: f32 = 1e-5;
    let [rows, columns] = sums.shape[..] else {
        return Err(format!("its shape {:?} is no matrix's", sums.shape));
    };
    if rows == 0 || columns == 0 || divisors.len() as u64 != rows {
        let (name, shape) = (&counts.name, &counts.shape);
        return Err(format!(
            "its {rows} rows have no counts in {name}, of shape {shape:?}"
        ));
    }
    if sums.dtype != counts.dtype {
        return Err(format!("it has another type than {}", counts.name));
    }
    let round = rounding(sums.dtype);
    let rows = numbers.chunks_exact_mut(columns as usize);
    for (row, divisor) in rows.zip(divisors) {
        let divisor = divisor.max(round(LEAST));
        row.iter_mut().for_each(|x| *x = round(*x / divisor));
    }
    Ok(Computed {
        weights: numbers,
        dims: sums.shape.clone(),
        cast: None,
    })
}

/// Weights of one shape along a new outermost dimension, or the only ones.
pub(super) fn stacked(parts: Vec<Computed>, is_stack: bool) -> Result<Computed, String> {
    let count = parts.len() as u64;
    let mut parts = parts.into_iter();
    let mut all = parts.next().ok_or("its recipe has no input")?;
    for part in parts {
        if part.dims != all.dims {
            let (dims, first) = (&part.dims, &all.dims);
            return Err(format!("the shapes {dims:?} and {first:?} differ"));
        }
        all.weights.extend(part.weights);
    }
    if is_stack {
        all.dims.insert(0, count);
    }
    Ok(all)
}

/// The frequencies of activations by sines, exp(x).
pub(super) fn snake_frequencies(source: &Source, mut numbers: Vec<f32>) -> Vec<f32> {
    let round = rounding(source.dtype);
    let exp = |x: &mut f32| *x = round(f64::from(*x).exp() as f32);
    numbers.iter_mut().for_each(exp);
    numbers
}

/// The factors of activations by sines, 1 / (exp(x) + 1e-9), with every step rounded.
pub(super) fn snake_factors(source: &Source, numbers: Vec<f32>) -> Vec<f32> {
    const LEAST: f32 = 1e-9;
    let round = rounding(source.dtype);
    let mut factors = snake_frequencies(source, numbers);
    let invert = |x: &mut f32| *x = round(1.0 / round(*x + LEAST));
    factors.iter_mut().for_each(invert);
    factors
}

/// A square grid of vectors, of shape `[1, side * side, length]`, as one of `side` in both directions:
/// interpolated bilinearly between the corners, which stay (PyTorch's `align_corners`).
///
/// PyTorch's sum for channels that are multiples of its vectors: four products, from the third on by
/// fused multiply-adds, in this order of the corners: 10, 11, 01, 00.
pub(super) fn resampled(source: &Source, numbers: Vec<f32>, side: u64) -> Result<Computed, String> {
    let [1, vectors, length] = source.shape[..] else {
        let shape = &source.shape;
        return Err(format!("its shape {shape:?} is no grid's"));
    };
    let from = vectors.isqrt();
    if from == 0 || from * from != vectors || length == 0 {
        return Err(format!("its {vectors} vectors are no square grid"));
    }
    let count = side
        .checked_mul(side)
        .and_then(|vectors| vectors.checked_mul(length))
        .filter(|count| *count <= LARGEST_GRID);
    let Some(count) = count else {
        return Err(format!("a grid of {side} by {side} is too large"));
    };
    let dims = vec![1, side * side, length];
    if side == from {
        return Ok(Computed {
            weights: numbers,
            dims,
            cast: None,
        });
    }
    // The place before each of the new grid's, and the weights of it and of the next.
    let step = match side {
        1 => 0.0,
        _ => (from - 1) as f32 / (side - 1) as f32,
    };
    let places: Vec<(usize, usize, [f32; 2])> = (0..side)
        .map(|place| {
            let exact = step * place as f32;
            let before = (exact as u64).min(from - 1);
            let next = (exact - before as f32).clamp(0.0, 1.0);
            let after = (before + 1).min(from - 1);
            (before as usize, after as usize, [1.0 - next, next])
        })
        .collect();
    let vector = |row: usize, column: usize| {
        let start = (row * from as usize + column) * length as usize;
        &numbers[start..start + length as usize]
    };
    let mut weights = Vec::with_capacity(count as usize);
    for &(above, below, [up, down]) in &places {
        for &(before, after, [left, right]) in &places {
            let corners = [
                (down * left, vector(below, before)),
                (down * right, vector(below, after)),
                (up * right, vector(above, after)),
                (up * left, vector(above, before)),
            ];
            let [(weight, first), rest @ ..] = corners;
            weights.extend(first.iter().enumerate().map(|(at, x)| {
                let rest = rest.iter();
                rest.fold(weight * x, |sum, (weight, corner)| {
                    corner[at].mul_add(*weight, sum)
                })
            }));
        }
    }
    Ok(Computed {
        weights,
        dims,
        cast: None,
    })
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
    use crate::format::torch::TensorInfo;

    fn grid(shape: &[u64]) -> Source {
        let tensor = TensorInfo {
            name: "grid".into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            strides: None,
            range: 0..0,
        };
        Source::plain(tensor, None, 0)
    }

    #[test]
    fn grids_are_interpolated_between_their_corners() {
        let numbers = vec![0.0, 10.0, 2.0, 12.0, 4.0, 14.0, 6.0, 16.0];
        let larger = resampled(&grid(&[1, 4, 2]), numbers.clone(), 3).unwrap();
        assert_eq!(larger.dims, [1, 9, 2]);
        let first: Vec<f32> = larger.weights.iter().copied().step_by(2).collect();
        assert_eq!(first, [0.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0]);
        let one = resampled(&grid(&[1, 4, 2]), numbers.clone(), 1).unwrap();
        assert_eq!(one.weights, [0.0, 10.0]);
        let same = resampled(&grid(&[1, 4, 2]), numbers.clone(), 2).unwrap();
        assert_eq!(same.weights, numbers);
        assert!(resampled(&grid(&[1, 3, 2]), numbers.clone(), 2).is_err());
        assert!(resampled(&grid(&[4, 2]), numbers.clone(), 2).is_err());
        assert!(resampled(&grid(&[1, 4, 2]), numbers, u64::MAX).is_err());
    }

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
