//! What a checkpoint says of its quantization, in config.json.

use crate::arch::Config;
use crate::convert::checkpoint::Source;
use crate::format::safetensors::Dtype;
use serde_json::Value;
use std::path::Path;

/// The quantization of a checkpoint.
pub(super) struct Declared {
    pub(super) method: Method,
    /// Rows and columns that share a scale.
    pub(super) block: Option<Vec<u64>>,
}

/// Which names and shapes the tensors have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    /// `NAME_scale_inv` beside `NAME`.
    Fp8,
}

impl Declared {
    /// Reads it; nothing of a checkpoint that is not quantized.
    ///
    /// # Errors
    /// A quantization that is not read, a field of the wrong kind.
    pub(super) fn of(
        config: &Config,
        _dir: &Path,
        sources: &[Source],
    ) -> Result<Option<Declared>, String> {
        let Some(quantization) = config.get("quantization_config") else {
            return Ok(None);
        };
        let method = match quantization.get("quant_method").and_then(Value::as_str) {
            None => return Ok(None),
            Some("fp8") => Method::Fp8,
            Some(method) if sources.iter().all(|tensor| is_plain(tensor.dtype)) => {
                return Err(format!(
                    "config.json says that the checkpoint is quantized by '{method}', and its weights are not: they \
                     are of 16 or 32 bits. Remove quantization_config from config.json"
                ));
            }
            Some(method) => {
                return Err(format!(
                    "checkpoints quantized by '{method}' are not supported; convert the original model"
                ));
            }
        };
        Ok(Some(Declared {
            method,
            block: block(quantization, "weight_block_size")?,
        }))
    }
}

/// Whether numbers are stored as floats of at least 16 bits.
fn is_plain(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// The rows and columns that share a scale.
fn block(quantization: &Value, field: &str) -> Result<Option<Vec<u64>>, String> {
    let Some(size) = quantization.get(field).filter(|size| !size.is_null()) else {
        return Ok(None);
    };
    let number = |n: &Value| n.as_u64().filter(|n| *n > 0);
    let numbers: Option<Option<Vec<u64>>> = size
        .as_array()
        .map(|list| list.iter().map(number).collect());
    match numbers.flatten() {
        Some(sizes) if sizes.len() == 2 => Ok(Some(sizes)),
        _ => Err(format!(
            "'{field}' in config.json is {size}; two whole numbers are expected"
        )),
    }
}
