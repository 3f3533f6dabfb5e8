//! `diff`: differences between two models in metadata by key, in tensors by name, and in the weights
//! of common tensors.
//!
//! The order of keys and tensors and the split into files are ignored.

use crate::convert;
use crate::format::gguf::{Array, Endian, Shape, Value, keys};
use crate::format::reader::Band;
use crate::format::types::GgmlType;
use crate::input::{Input, Tensor};
use crate::progress::{Progress, Unit};
use crate::quant::Codec;
use rayon::prelude::*;
use std::collections::HashMap;

/// The differences between two models, A and B.
pub struct Diff<'a> {
    /// Differing keys: first those of A in its order, then those of B only.
    pub keys: Vec<KeyChange<'a>>,
    /// Tensors of A only.
    pub only_a: Vec<Stored>,
    /// Tensors of B only.
    pub only_b: Vec<Stored>,
    /// Differing tensors of both, most changed first: other shapes, then NaN, then by relative error.
    pub changed: Vec<TensorChange>,
    /// Number of tensors that are equal byte for byte.
    pub same: usize,
}

/// A differing key.
#[derive(Clone, Debug)]
pub struct KeyChange<'a> {
    /// Name of the key.
    pub key: String,
    /// Value in A.
    pub a: Option<Value<'a>>,
    /// Value in B.
    pub b: Option<Value<'a>>,
    /// Differences between two arrays of one type.
    pub elements: Option<Elements<'a>>,
}

/// Differences between two arrays.
#[derive(Clone, Debug, PartialEq)]
pub struct Elements<'a> {
    /// Index of the first differing element.
    pub first: usize,
    /// Its value in A; `None` past the end.
    pub a: Option<Value<'a>>,
    /// Its value in B; `None` past the end.
    pub b: Option<Value<'a>>,
    /// Number of differing elements, including the surplus of the longer array.
    pub differing: usize,
}

/// Name, shape and type of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Name of the tensor.
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Shape,
    /// Storage type.
    pub ggml_type: GgmlType,
}

/// A differing tensor of both.
#[derive(Clone, Debug)]
pub struct TensorChange {
    /// The tensor of A.
    pub a: Stored,
    /// The tensor of B.
    pub b: Stored,
    /// The error of the weights; `None` for other shapes and for types without weights.
    pub error: Option<WeightError>,
}

/// Error of the weights of B relative to A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightError {
    /// Root mean square of the differences.
    pub rmse: f64,
    /// The same, divided by the root mean square of A's weights; infinite if all of A's are 0, but
    /// not B's.
    pub relative: f64,
}

impl Diff<'_> {
    /// True if the models are equal.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.only_a.is_empty()
            && self.only_b.is_empty()
            && self.changed.is_empty()
    }
}

/// Compares two models; `None` after cancellation. Memory is bounded by the band, not by the models.
///
/// # Errors
/// A file that changes during the comparison, weights that cannot be converted.
pub fn diff<'a>(
    a: &'a Input<'a>,
    b: &'a Input<'a>,
    progress: &dyn Progress,
) -> convert::Result<Option<Diff<'a>>> {
    let in_b: HashMap<&str, &Tensor<'_>> = b.tensors.iter().map(|t| (&*t.info.name, t)).collect();
    let mut left: HashMap<&str, &Tensor<'_>> = in_b.clone();
    let (mut pairs, mut only_a) = (Vec::new(), Vec::new());
    for tensor in &a.tensors {
        match left.remove(&*tensor.info.name) {
            Some(other) => pairs.push((tensor, other)),
            None => only_a.push(stored(tensor)),
        }
    }
    let only_b = b
        .tensors
        .iter()
        .filter(|t| left.contains_key(&*t.info.name))
        .map(stored)
        .collect();
    progress.begin(
        pairs
            .iter()
            .map(|(a, b)| a.info.bytes() + b.info.bytes())
            .sum(),
        Unit::Bytes,
    );
    let (mut changed, mut same) = (Vec::new(), 0);
    for (tensor, other) in pairs {
        if progress.cancelled() {
            return Ok(None);
        }
        progress.at(&tensor.info.name);
        let alike = shape(tensor) == shape(other);
        if alike && tensor.info.ggml_type == other.info.ggml_type && identical(a, tensor, b, other)?
        {
            same += 1;
        } else {
            let error = if alike {
                weight_error(a, tensor, b, other)?
            } else {
                None
            };
            changed.push(TensorChange {
                a: stored(tensor),
                b: stored(other),
                error,
            });
        }
        progress.advance(tensor.info.bytes() + other.info.bytes());
    }
    // A stable sort: equal errors keep the order of A.
    changed.sort_by(|x, y| rank(y).total_cmp(&rank(x)));
    Ok(Some(Diff {
        keys: key_changes(a, b),
        only_a,
        only_b,
        changed,
        same,
    }))
}

/// The shape without trailing dimensions of 1.
fn shape(tensor: &Tensor<'_>) -> Shape {
    tensor.info.shape.trimmed()
}

fn stored(tensor: &Tensor<'_>) -> Stored {
    Stored {
        name: tensor.info.name.to_string(),
        shape: shape(tensor),
        ggml_type: tensor.info.ggml_type,
    }
}

/// Sort key, largest first. A positive NaN is larger than infinity in the total order.
fn rank(change: &TensorChange) -> f64 {
    match change.error {
        _ if change.a.shape != change.b.shape => f64::NAN.copysign(1.0),
        None => f64::NAN.copysign(1.0),
        Some(error) if error.relative.is_nan() => f64::NAN.copysign(1.0),
        Some(error) => error.relative,
    }
}

/// True if two tensors of one shape and type have the same bytes.
fn identical(
    a: &Input<'_>,
    tensor: &Tensor<'_>,
    b: &Input<'_>,
    other: &Tensor<'_>,
) -> convert::Result<bool> {
    let (mut buffer_a, mut buffer_b) = (Vec::new(), Vec::new());
    for rows in tensor.bands(0..tensor.info.shape.rows()) {
        let bytes_a = a.read(tensor, rows.clone(), &mut buffer_a)?;
        let bytes_b = b.read(other, rows.clone(), &mut buffer_b)?;
        if bytes_a != bytes_b {
            return Ok(false);
        }
        a.release(tensor, rows.clone());
        b.release(other, rows);
    }
    Ok(true)
}

/// Factors of a linear's products, a number for each matrix; `None` of other
/// tensors.
fn scales(input: &Input<'_>, tensor: &Tensor<'_>) -> convert::Result<Option<Vec<f32>>> {
    let linear = input.catalog().linear_of(input.entry(tensor).id);
    let Some(scale) = linear.and_then(|linear| linear.scale) else {
        return Ok(None);
    };
    let scale = input.tensor(scale);
    let mut numbers = vec![0.0; scale.info.shape.elements() as usize];
    input.widen_here(scale, 0..scale.info.shape.rows(), &mut numbers)?;
    Ok((numbers.len() == tensor.matrices()).then_some(numbers))
}

/// Multiplies the rows of a band by the scales of their matrices.
fn multiply(weights: &mut [f32], band: &Band<'_>, scales: Option<&[f32]>, rows_per_matrix: u64) {
    let Some(scales) = scales else {
        return;
    };
    for (number, row) in band.rows().zip(weights.chunks_exact_mut(band.row_len())) {
        let scale = scales[(number / rows_per_matrix) as usize % scales.len()];
        row.iter_mut().for_each(|w| *w *= scale);
    }
}

/// Error of two tensors of one shape, each with its scale; `None` if either has a type without
/// weights. Sums are in f64, in an order independent of the threads.
fn weight_error(
    a: &Input<'_>,
    tensor: &Tensor<'_>,
    b: &Input<'_>,
    other: &Tensor<'_>,
) -> convert::Result<Option<WeightError>> {
    let holds_weights = |tensor: &Tensor<'_>| Codec::of(tensor.info.ggml_type).is_some();
    if !holds_weights(tensor) || !holds_weights(other) {
        return Ok(None);
    }
    let (scales_a, scales_b) = (scales(a, tensor)?, scales(b, other)?);
    let matrix = tensor.rows_per_matrix();
    let task_rows = tensor.task_rows();
    let task_weights = task_rows * tensor.info.shape.row_len() as usize;
    let (mut buffer_a, mut buffer_b) = (Vec::new(), Vec::new());
    let (mut error, mut power) = (0.0, 0.0);
    for rows in tensor.bands(0..tensor.info.shape.rows()) {
        let band_a = a.band(tensor, rows.clone(), &mut buffer_a)?;
        let band_b = b.band(other, rows.clone(), &mut buffer_b)?;
        let room = || (vec![0.0f32; task_weights], vec![0.0f32; task_weights]);
        let tasks = band_a
            .par_chunks(task_rows)
            .zip(band_b.par_chunks(task_rows));
        let sums: Vec<(f64, f64)> = tasks
            .map_init(room, |(x, y), (rows_a, rows_b)| {
                let weights = rows_a.len() * rows_a.row_len();
                let (x, y) = (&mut x[..weights], &mut y[..weights]);
                rows_a.widen(x);
                rows_b.widen(y);
                multiply(x, &rows_a, scales_a.as_deref(), matrix);
                multiply(y, &rows_b, scales_b.as_deref(), matrix);
                sums(x, y)
            })
            .collect();
        for (of_error, of_power) in sums {
            error += of_error;
            power += of_power;
        }
        a.release(tensor, rows.clone());
        b.release(other, rows);
    }
    let rmse = (error / tensor.info.shape.elements() as f64).sqrt();
    let relative = if error == 0.0 {
        0.0
    } else {
        (error / power).sqrt()
    };
    Ok(Some(WeightError { rmse, relative }))
}

/// Sums of squares of the differences and of A, in eight lanes.
fn sums(x: &[f32], y: &[f32]) -> (f64, f64) {
    let (mut error, mut power) = ([0.0f64; 8], [0.0f64; 8]);
    let mut add = |lane: usize, x: f32, y: f32| {
        let (x, difference) = (f64::from(x), f64::from(x) - f64::from(y));
        error[lane] += difference * difference;
        power[lane] += x * x;
    };
    let ((whole_x, rest_x), (whole_y, rest_y)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    for (x, y) in whole_x.iter().zip(whole_y) {
        (0..8).for_each(|lane| add(lane, x[lane], y[lane]));
    }
    rest_x
        .iter()
        .zip(rest_y)
        .enumerate()
        .for_each(|(lane, (x, y))| add(lane, *x, *y));
    (error.iter().sum(), power.iter().sum())
}

fn key_changes<'a>(a: &'a Input<'a>, b: &'a Input<'a>) -> Vec<KeyChange<'a>> {
    let counts =
        |key: &str| ![keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS].contains(&key);
    let (of_a, of_b) = (a.metadata(), b.metadata());
    let by_key: HashMap<&str, &Value<'_>> = of_b.iter().collect();
    let known: HashMap<&str, &Value<'_>> = of_a.iter().collect();
    let mut changes = Vec::new();
    for (key, value) in of_a.iter().filter(|(key, _)| counts(key)) {
        let other = by_key.get(key).copied();
        if other.is_some_and(|other| same(value, other)) {
            continue;
        }
        let elements = match (value, other) {
            (Value::Array(a), Some(Value::Array(b))) if a.element() == b.element() => {
                Some(elements(a, b))
            }
            _ => None,
        };
        changes.push(KeyChange {
            key: key.to_owned(),
            a: Some(value.clone()),
            b: other.cloned(),
            elements,
        });
    }
    for (key, value) in of_b
        .iter()
        .filter(|(key, _)| counts(key) && !known.contains_key(key))
    {
        changes.push(KeyChange {
            key: key.to_owned(),
            a: None,
            b: Some(value.clone()),
            elements: None,
        });
    }
    changes
}

/// True if two values are equal in type and bytes: NaN equals itself, and 0 is not -0.
fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    let bytes = |value: &Value<'_>| {
        let mut bytes = Vec::new();
        value.write(Endian::Little, &mut bytes);
        bytes
    };
    a.value_type() == b.value_type() && bytes(a) == bytes(b)
}

/// Compares two differing arrays.
fn elements<'a>(a: &'a Array<'_>, b: &'a Array<'_>) -> Elements<'a> {
    let mut found = Elements {
        first: a.len().min(b.len()),
        a: None,
        b: None,
        differing: 0,
    };
    let (mut in_a, mut in_b) = (a.elements(), b.elements());
    for index in 0.. {
        let (x, y) = (in_a.next(), in_b.next());
        match (&x, &y) {
            (None, None) => break,
            (Some(x), Some(y)) if same(x, y) => continue,
            _ => {}
        }
        if found.differing == 0 {
            found = Elements {
                first: index,
                a: x,
                b: y,
                differing: 0,
            };
        }
        found.differing += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::ValueType;

    fn numbers(values: &[f32]) -> Array<'static> {
        Array::of_values(ValueType::F32, values.iter().map(|&v| Value::F32(v)))
    }

    #[test]
    fn differing_array_elements_are_found() {
        let (a, b) = (
            numbers(&[1.0, f32::NAN, 3.0, 4.0]),
            numbers(&[1.0, f32::NAN, 2.0]),
        );
        let found = elements(&a, &b);
        assert_eq!(
            found,
            Elements {
                first: 2,
                a: Some(Value::F32(3.0)),
                b: Some(Value::F32(2.0)),
                differing: 2
            }
        );
        let (a, b) = (Array::of_strings(["a"]), Array::of_strings(["a", "b"]));
        let found = elements(&a, &b);
        assert_eq!(
            found,
            Elements {
                first: 1,
                a: None,
                b: Some(Value::str("b")),
                differing: 1
            }
        );
    }

    #[test]
    fn sums_match_their_definition() {
        let x: Vec<f32> = (0..21).map(|i| i as f32 - 10.0).collect();
        let y: Vec<f32> = x.iter().map(|v| v + 0.5).collect();
        assert_eq!(sums(&x, &y), (21.0 * 0.25, 770.0));
    }

    #[test]
    fn changes_are_sorted_by_error() {
        let one = |relative: f64| {
            let shape = Shape::new(&[1]).unwrap();
            let stored = Stored {
                name: String::new(),
                shape,
                ggml_type: GgmlType::F32,
            };
            TensorChange {
                a: stored.clone(),
                b: stored,
                error: Some(WeightError {
                    rmse: 0.0,
                    relative,
                }),
            }
        };
        let mut all = [0.5, -f64::NAN, 0.0, f64::INFINITY, 1.0].map(one);
        all.sort_by(|x, y| rank(y).total_cmp(&rank(x)));
        let order = all.map(|change| change.error.unwrap().relative);
        assert!(order[0].is_nan());
        assert_eq!(order[1..], [f64::INFINITY, 1.0, 0.5, 0.0]);
    }
}
