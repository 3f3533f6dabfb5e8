//! Scales of 8-bit checkpoints: `NAME.weight_scale_inv` beside `NAME.weight`.

use super::Source;
use crate::arch::Config;
use crate::format::safetensors::Dtype;
use crate::plan::recipe::Problem;
use std::collections::{HashMap, HashSet};

/// The ending of a scale's name, after that of its weights.
const SCALE: &str = "_scale_inv";
/// Scales of activations, which no GGUF has.
const UNUSED: &[&str] = &[".activation_scale", "_activation_scale"];

/// How a tensor's weights are scaled: weight (i, j) is multiplied by scale (i / rows, j / columns).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// The tensor with the scales.
    pub(super) source: usize,
    /// Rows that share a scale.
    pub(super) rows: u64,
    /// Columns that share a scale.
    pub(super) columns: u64,
    /// Scales in a row of them.
    pub(super) row_len: u64,
}

/// The scales of a checkpoint.
#[derive(Default)]
pub(super) struct Scales {
    by_weight: HashMap<usize, Scale>,
    consumed: HashSet<usize>,
}

impl Scales {
    /// The scale of a tensor's weights.
    pub(super) fn of(&self, source: usize) -> Option<Scale> {
        self.by_weight.get(&source).copied()
    }

    /// Whether a tensor holds scales, or anything else that belongs to a weight.
    pub(super) fn is_consumed(&self, source: usize) -> bool {
        self.consumed.contains(&source)
    }
}

/// Finds the scales, where config.json says that the checkpoint has them.
pub(super) fn find(config: &Config, tensors: &[Source]) -> Result<Scales, Vec<Problem>> {
    let mut scales = Scales::default();
    let Some(quantization) = config.get("quantization_config") else {
        return Ok(scales);
    };
    match quantization
        .get("quant_method")
        .and_then(|method| method.as_str())
    {
        None => return Ok(scales),
        Some("fp8") => {}
        Some(method) if tensors.iter().all(|tensor| is_plain(tensor.dtype)) => {
            let what = format!(
                "config.json says that the checkpoint is quantized by '{method}', and its weights are not: they are \
                 of 16 or 32 bits. Remove quantization_config from config.json"
            );
            return Err(vec![Problem::of("", what)]);
        }
        Some(method) => {
            let what = format!(
                "checkpoints quantized by '{method}' are not supported; convert the original model"
            );
            return Err(vec![Problem::of("", what)]);
        }
    }
    let block = block(quantization).map_err(|what| vec![Problem::of("", what)])?;
    let index_of: HashMap<&str, usize> = tensors
        .iter()
        .enumerate()
        .map(|(i, t)| (&*t.name, i))
        .collect();
    let mut problems = Vec::new();
    for (index, source) in tensors.iter().enumerate() {
        if UNUSED.iter().any(|end| source.name.ends_with(end)) {
            scales.consumed.insert(index);
        }
        let Some(name) = source.name.strip_suffix(SCALE) else {
            continue;
        };
        scales.consumed.insert(index);
        let weight = index_of
            .get(name)
            .ok_or("the weights of these scales are missing".to_owned());
        match weight.and_then(|&w| Ok((w, fit(index, source, &tensors[w], block)?))) {
            Ok((weight, scale)) => drop(scales.by_weight.insert(weight, scale)),
            Err(what) => problems.push(Problem::of(&source.name, what)),
        }
    }
    if problems.is_empty() {
        Ok(scales)
    } else {
        Err(problems)
    }
}

/// Whether numbers are stored as floats of at least 16 bits.
fn is_plain(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// `weight_block_size`: rows and columns that share a scale.
fn block(quantization: &serde_json::Value) -> Result<Option<[u64; 2]>, String> {
    let Some(size) = quantization
        .get("weight_block_size")
        .filter(|size| !size.is_null())
    else {
        return Ok(None);
    };
    let numbers: Option<Option<Vec<u64>>> = size
        .as_array()
        .map(|list| list.iter().map(|n| n.as_u64().filter(|n| *n > 0)).collect());
    match numbers.flatten().as_deref() {
        Some(&[rows, columns]) => Ok(Some([rows, columns])),
        _ => Err(format!(
            "'weight_block_size' in config.json is {size}; two whole numbers are expected"
        )),
    }
}

/// Checks that scales fit their weights.
fn fit(
    index: usize,
    scales: &Source,
    weights: &Source,
    block: Option<[u64; 2]>,
) -> Result<Scale, String> {
    let &[rows, columns] = &*weights.shape else {
        return Err(format!(
            "its weights have shape {:?}; only matrices can be scaled",
            weights.shape
        ));
    };
    if weights.strides.is_some() || scales.strides.is_some() {
        return Err(
            "scaled weights are only read row by row; save copies, tensor.contiguous()".into(),
        );
    }
    let [scale_rows, scale_columns] = match *scales.shape {
        [] => [1, 1],
        [n] => [n, 1],
        [n, m] => [n, m],
        _ => return Err(format!("shape {:?} is no shape of scales", scales.shape)),
    };
    let misfit = || {
        format!(
            "scales of shape {:?} do not fit weights of shape {:?}",
            scales.shape, weights.shape
        )
    };
    let [rows_each, columns_each] = match block {
        // Scales may go beyond the weights: the last block need not be whole.
        Some([r, c])
            if scale_rows.saturating_mul(r) >= rows
                && scale_columns.saturating_mul(c) >= columns =>
        {
            [r, c]
        }
        Some(_) => return Err(misfit()),
        None => {
            let each = |scales: u64, weights: u64| match scales {
                1 => Ok(weights.max(1)),
                n if n == weights => Ok(1),
                _ => Err(misfit()),
            };
            [each(scale_rows, rows)?, each(scale_columns, columns)?]
        }
    };
    Ok(Scale {
        source: index,
        rows: rows_each,
        columns: columns_each,
        row_len: scale_columns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    fn source(name: &str, dtype: Dtype, shape: &[u64]) -> Source {
        Source {
            name: name.into(),
            text_name: None,
            dtype,
            shape: shape.to_vec(),
            strides: None,
            file: 0,
            range: 0..0,
        }
    }

    fn found(quantization: serde_json::Value, scale_shape: &[u64]) -> Result<Scales, Vec<Problem>> {
        let config = serde_json::json!({ "quantization_config": quantization });
        let config = Config::new(config.as_object().unwrap().clone()).unwrap();
        let weights = source("a.weight", Dtype::F8E4m3, &[256, 300]);
        find(
            &config,
            &[
                weights,
                source("a.weight_scale_inv", Dtype::F32, scale_shape),
            ],
        )
    }

    #[test]
    fn scales_are_matched_to_their_weights() {
        let blocks = serde_json::json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
        let scale = found(blocks.clone(), &[2, 3]).ok().unwrap().of(0).unwrap();
        assert_eq!(
            scale,
            Scale {
                source: 1,
                rows: 128,
                columns: 128,
                row_len: 3
            }
        );
        assert!(
            found(blocks, &[2, 2]).err().unwrap()[0]
                .reason
                .contains("do not fit")
        );
        let whole = serde_json::json!({ "quant_method": "fp8" });
        let scale = found(whole.clone(), &[]).ok().unwrap().of(0).unwrap();
        assert_eq!(
            scale,
            Scale {
                source: 1,
                rows: 256,
                columns: 300,
                row_len: 1
            }
        );
        let scale = found(whole, &[256, 1]).ok().unwrap().of(0).unwrap();
        assert_eq!(
            scale,
            Scale {
                source: 1,
                rows: 1,
                columns: 300,
                row_len: 1
            }
        );
    }

    #[test]
    fn other_quantizations_are_refused_by_name() {
        let refused = found(serde_json::json!({ "quant_method": "awq" }), &[1])
            .err()
            .unwrap();
        assert!(refused[0].reason.contains("'awq'"));
    }
}
