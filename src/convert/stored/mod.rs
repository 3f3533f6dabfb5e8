//! Quantized checkpoints: from the tensors of the files to the weights of recipes.
//!
//! A quantized linear is several tensors of the files: codes, scales, zero points. [`resolve`]
//! joins them into one [`Source`] with the name, shape and type of the dequantized weights, and a
//! [`Form`] that dequantizes any range.
//!
//! ```text
//! config.json, hf_quant_config.json  ->  Declared        what the checkpoint says of itself
//! names, types, shapes               ->  Form            which tensors belong together, all of them checked
//! codes, scales, zero points         ->  Form::read      f32, in the order of the reference's arithmetic
//!                                        Fp4::repack     the same codes in ggml's blocks
//! ```
//!
//! Shapes and types are checked when the checkpoint is opened. Scales are checked when read: a
//! separate pass over all of them would read a ninth of an NVFP4 checkpoint twice.

mod declared;
mod fp4;
mod grouped;
mod join;
mod merged;
mod ranked;
mod scaled;
mod table;
mod ternary;

#[cfg(test)]
mod tests;

use super::checkpoint::Source;
use super::numbers::widen;
use crate::arch::Config;
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use crate::plan::recipe::Problem;
use declared::Declared;
pub(super) use declared::Fp4Types;
pub(super) use fp4::{Blocks, Fp4};
use grouped::Grouped;
pub(super) use merged::{Merged, Update};
use ranked::Ranked;
pub(super) use scaled::Scaled;
use std::ops::Range;
use std::path::Path;
use table::Table;
use ternary::Ternary;

/// Storage of a quantized linear's weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// 8-bit numbers with scales of blocks, rows or tensors.
    Scaled(Scaled),
    /// The same, row by row from the ranks that a model was trained on.
    Ranked(Ranked),
    /// Packed integers with scales of groups.
    Grouped(Grouped),
    /// 4-bit floats.
    Fp4(Fp4),
    /// Two bits per weight.
    Ternary(Ternary),
    /// Plain weights with those of an adapter.
    Merged(Merged),
}

/// One tensor of a file, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raw {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    /// Index of the file.
    file: usize,
    /// Bytes in the file.
    range: Range<usize>,
}

/// An invalid number in a quantized tensor.
#[derive(Debug)]
pub(super) struct Fault {
    /// Index of its weight in the whole tensor.
    pub(super) element: u64,
    /// Description of the error.
    pub(super) what: String,
}

/// A checkpoint after [`resolve`].
#[derive(Default)]
pub(super) struct Resolved {
    /// The tensors, in the reference's order.
    pub(super) sources: Vec<Source>,
    /// All errors of the tensors.
    pub(super) problems: Vec<Problem>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
    /// The 4-bit floats.
    pub(super) fp4: Fp4Types,
}

/// Joins the tensors of quantized linears.
pub(super) fn resolve(config: &Config, dir: &Path, sources: Vec<Source>, maps: &[Map]) -> Resolved {
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
    join::all(config, &declared, maps, &mut table);
    let mut resolved = table.finish();
    resolved.fp4 = declared.fp4;
    resolved.fp4.add(&resolved.sources);
    let quantized = resolved
        .sources
        .iter()
        .filter(|source| source.form.is_some());
    let count = quantized.count();
    if count > 0 {
        resolved.notes.push(format!(
            "{count} weights of the checkpoint are quantized already; divergence is measured from them, and does not \
             count what that has cost. A checkpoint in 16 bits, if there is one, is the better base"
        ));
    }
    let groups = declared.groups.len();
    if groups > 1 && !resolved.fp4.all_groups {
        resolved.notes.push(format!(
            "config.json has {groups} config_groups; every tensor is read by its own types and shapes \
             (convert_hf_to_gguf.py refuses such a checkpoint)"
        ));
    }
    resolved
}

impl Form {
    /// Dequantizes a range of the weights.
    ///
    /// # Errors
    /// An invalid scale.
    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        match self {
            Form::Scaled(form) => form.read(maps, elements, out),
            Form::Ranked(form) => form.read(maps, elements, out),
            Form::Grouped(form) => form.read(maps, elements, out),
            Form::Fp4(form) => form.read(maps, elements, out),
            Form::Ternary(form) => form.read(maps, elements, out),
            Form::Merged(form) => form.read(maps, elements, out),
        }
    }

    /// The tensors of the files, that of the codes first.
    fn raws(&self) -> Vec<&Raw> {
        match self {
            Form::Scaled(form) => form.raws(),
            Form::Ranked(form) => form.raws(),
            Form::Grouped(form) => form.raws(),
            Form::Fp4(form) => form.raws(),
            Form::Ternary(form) => form.raws(),
            Form::Merged(form) => form.raws(),
        }
    }

    /// True for 8-bit float codes.
    pub(super) fn is_fp8(&self) -> bool {
        let codes = self.raws()[0].dtype;
        matches!(self, Form::Scaled(_) | Form::Ranked(_))
            && matches!(codes, Dtype::F8E4m3 | Dtype::F8E5m2)
    }

    /// True for codes with scales, false for weights that are merged.
    pub(super) fn is_quantized(&self) -> bool {
        !matches!(self, Form::Merged(_))
    }

    /// The weights, if they are 4-bit floats.
    pub(super) fn fp4(&self) -> Option<&Fp4> {
        match self {
            Form::Fp4(fp4) => Some(fp4),
            _ => None,
        }
    }

    /// Indices of the files.
    pub(super) fn files(&self) -> impl Iterator<Item = usize> {
        self.raws().into_iter().map(|raw| raw.file)
    }
}

impl Raw {
    /// # Errors
    /// If rows are not contiguous.
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

    /// A tensor without bytes.
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

    /// Some numbers, by index.
    fn numbers(&self, maps: &[Map], elements: Range<u64>) -> Vec<f32> {
        let mut numbers = vec![0.0; (elements.end - elements.start) as usize];
        self.read(maps, elements, &mut numbers);
        numbers
    }

    /// Reads some numbers into `out`.
    fn read(&self, maps: &[Map], elements: Range<u64>, out: &mut [f32]) {
        let width = self.dtype.bytes();
        let bytes = elements.start as usize * width..elements.end as usize * width;
        widen(self.dtype, &self.bytes(maps)[bytes], out);
    }

    /// A number by index.
    fn number(&self, maps: &[Map], index: u64) -> f32 {
        let (width, mut number) = (self.dtype.bytes(), [0.0]);
        let bytes = &self.bytes(maps)[index as usize * width..][..width];
        widen(self.dtype, bytes, &mut number);
        number[0]
    }
}

/// Valid signs of a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    /// Codes are signed.
    Positive,
    /// Integers whose quantizer (AutoRound) puts the end with the extra code on either side.
    Any,
}

/// The error of a scale, given its codes as numbers (without the scale).
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
