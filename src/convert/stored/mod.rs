//! Quantized checkpoints: from the tensors that the files hold to the weights that recipes take.
//!
//! A quantized linear is several tensors of the files: codes, scales, zero points. [`resolve`] joins
//! them to one [`Source`] with the name, the shape and the type of the weights that they stand for,
//! and a [`Form`] that makes any range of its numbers.
//!
//! ```text
//! config.json, hf_quant_config.json  ->  Declared        what the checkpoint says of itself
//! names, types, shapes               ->  Form            which tensors belong together, all of them checked
//! codes, scales, zero points         ->  Form::read      f32, in the order of the reference's arithmetic
//!                                        Fp4::repack     the same codes in ggml's blocks
//! ```
//!
//! Shapes and types are checked when the checkpoint is opened. The numbers of scales are checked when
//! they are read: a pass over all of them beforehand would read a ninth of an NVFP4 checkpoint twice.

mod declared;
mod scaled;
mod table;

use super::checkpoint::Source;
use super::numbers::widen;
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use crate::plan::recipe::Problem;
use declared::{Declared, Method};
pub(super) use scaled::Scaled;
use std::ops::Range;
use std::path::Path;
use table::Table;

/// How the weights of a quantized linear are stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// Numbers of 8 bits, multiplied by scales of blocks, rows or tensors.
    Scaled(Scaled),
}

/// One tensor of a file, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raw {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    /// The file, as an index.
    file: usize,
    /// Its bytes in that file.
    range: Range<usize>,
}

/// A number that no quantizer writes.
#[derive(Debug)]
pub(super) struct Fault {
    /// The weight that it belongs to, counted over the whole tensor.
    pub(super) element: u64,
    /// What it is.
    pub(super) what: String,
}

/// A checkpoint after [`resolve`].
#[derive(Default)]
pub(super) struct Resolved {
    /// The tensors, in the reference's order.
    pub(super) sources: Vec<Source>,
    /// Everything that is wrong with them.
    pub(super) problems: Vec<Problem>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// Joins the tensors of quantized linears.
pub(super) fn resolve(config: &crate::arch::Config, dir: &Path, sources: Vec<Source>) -> Resolved {
    let failed = |what: String, sources| Resolved {
        sources,
        problems: vec![Problem::of("", what)],
        ..Resolved::default()
    };
    let declared = match Declared::of(config, dir, &sources) {
        Ok(Some(declared)) => declared,
        Ok(None) => {
            return Resolved {
                sources,
                ..Resolved::default()
            };
        }
        Err(what) => return failed(what, sources),
    };
    let mut table = Table::new(sources);
    match declared.method {
        Method::Fp8 => scaled::resolve_fp8(&declared, &mut table),
    }
    table.finish()
}

impl Form {
    /// Makes the numbers of a range of the weights.
    ///
    /// # Errors
    /// A scale that no quantizer writes.
    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        match self {
            Form::Scaled(form) => form.read(maps, elements, out),
        }
    }

    /// The tensors of the files, that of the codes first.
    fn raws(&self) -> Vec<&Raw> {
        match self {
            Form::Scaled(form) => form.raws(),
        }
    }

    /// The files, as indices.
    pub(super) fn files(&self) -> impl Iterator<Item = usize> {
        self.raws().into_iter().map(|raw| raw.file)
    }
}

impl Raw {
    /// # Errors
    /// If rows do not follow each other.
    fn of(source: &Source) -> Result<Raw, String> {
        match source.strides {
            None => Ok(Raw {
                name: source.name.clone(),
                dtype: source.dtype,
                shape: source.shape.clone(),
                file: source.file,
                range: source.range.clone(),
            }),
            Some(_) => Err(
                "quantized weights are only read row by row; save copies, tensor.contiguous()"
                    .into(),
            ),
        }
    }

    /// One that lies nowhere.
    #[cfg(test)]
    fn made(name: &str, dtype: Dtype, shape: &[u64]) -> Raw {
        Raw {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            file: 0,
            range: 0..0,
        }
    }

    fn bytes<'m>(&self, maps: &'m [Map]) -> &'m [u8] {
        &maps[self.file].bytes()[self.range.clone()]
    }

    /// One of its numbers.
    fn number(&self, maps: &[Map], index: u64) -> f32 {
        let (width, mut number) = (self.dtype.bytes(), [0.0]);
        let bytes = &self.bytes(maps)[index as usize * width..][..width];
        widen(self.dtype, bytes, &mut number);
        number[0]
    }
}

/// A scale as it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    /// Codes have a sign of their own.
    Positive,
    /// Integers whose quantizer (AutoRound) gives the end with one code more to either sign.
    Any,
}

/// What is wrong with the scale of some weights, given the codes (without it) as numbers.
fn check_scale(scale: f32, sign: Sign, codes: &[f32]) -> Result<(), String> {
    let is_plain = scale.is_finite() && scale != 0.0 && (scale > 0.0 || sign == Sign::Any);
    if is_plain || (scale == 0.0 && codes.iter().all(|code| *code == 0.0)) {
        return Ok(());
    }
    let what = match scale {
        _ if scale == 0.0 => "is 0, and the weights under it are not".into(),
        scale => format!("is {scale}"),
    };
    Err(format!("the scale {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_that_no_quantizer_writes_are_named() {
        let ok = |scale, sign, codes: &[f32]| check_scale(scale, sign, codes).is_ok();
        assert!(ok(0.5, Sign::Positive, &[1.0]) && ok(-0.5, Sign::Any, &[1.0]));
        assert!(ok(0.0, Sign::Positive, &[0.0, -0.0]));
        for (scale, word) in [
            (f32::NAN, "NaN"),
            (f32::INFINITY, "inf"),
            (-1.0, "-1"),
            (0.0, "0"),
        ] {
            let what = check_scale(scale, Sign::Positive, &[0.0, 2.0]).unwrap_err();
            assert!(what.contains(word), "{what}");
        }
    }
}
