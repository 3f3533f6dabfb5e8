//! 4-bit floats (E2M1) under scales of 16 or 32 columns: NVFP4 and MXFP4.
//!
//! ```text
//! codes   [rows, columns / 2]        element 2i in the low nibble of byte i, 2i + 1 in the high one
//! scales  [rows, columns / group]    E4M3 (NVFP4, group of 16) or E8M0 (MXFP4, group of 32)
//! weight = number (code) * (scale * scale of the tensor)                                  in f32
//! ```
//!
//! ggml's blocks have the same codes and scales in another order, so [`Fp4::repack`] is lossless.
//! The scale of the tensor becomes a separate tensor.

use super::{Fault, Raw, Sign, check_scale};
use crate::convert::numbers::widen;
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use crate::format::types::GgmlType;
use std::ops::Range;

/// E2M1 numbers by code.
const NUMBERS: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// Both numbers of every byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NUMBERS[byte & 15], NUMBERS[byte >> 4]];
        byte += 1;
    }
    pairs
};

/// Weights of 4-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Fp4 {
    codes: Raw,
    scales: Raw,
    kind: Kind,
    columns: u64,
    /// Factor of all weights, in addition to their scales.
    pub(in crate::convert) scale: f32,
    /// The quantizer's divisor of the input.
    pub(in crate::convert) input_scale: f32,
}

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::convert) enum Kind {
    Nvfp4,
    Mxfp4,
}

impl Kind {
    /// Columns per scale.
    pub(in crate::convert) fn group(self) -> u64 {
        match self {
            Kind::Nvfp4 => 16,
            Kind::Mxfp4 => 32,
        }
    }

    /// The ggml type with the same codes and scales.
    pub(in crate::convert) fn ggml_type(self) -> GgmlType {
        match self {
            Kind::Nvfp4 => GgmlType::NVFP4,
            Kind::Mxfp4 => GgmlType::MXFP4,
        }
    }
}

/// Codes and scales of one tensor.
pub(super) struct Parts {
    pub(super) codes: Raw,
    pub(super) scales: Raw,
    pub(super) kind: Kind,
}

impl Fp4 {
    /// # Errors
    /// If codes and scales do not match.
    pub(super) fn new(parts: Parts, [scale, input_scale]: [f32; 2]) -> Result<Fp4, String> {
        let Parts {
            codes,
            scales,
            kind,
        } = parts;
        let group = kind.group();
        let (scale_type, name) = match kind {
            Kind::Nvfp4 => (&[Dtype::F8E4m3][..], "NVFP4"),
            Kind::Mxfp4 => (&[Dtype::U8, Dtype::F8E8m0][..], "MXFP4"),
        };
        if codes.dtype != Dtype::U8 || !scale_type.contains(&scales.dtype) {
            return Err(format!(
                "{name} has codes of type U8 and scales of type {}, and these are of {} and {}",
                scale_type[0], codes.dtype, scales.dtype
            ));
        }
        let misfit = || {
            format!(
                "scales of shape {:?} ({}) do not fit codes of shape {:?}: {name} has one for {group} columns",
                scales.shape, scales.name, codes.shape
            )
        };
        let (Some((half, rows)), Some((groups, scale_rows))) =
            (codes.shape.split_last(), scales.shape.split_last())
        else {
            return Err(misfit());
        };
        let columns = half.saturating_mul(2);
        if rows != scale_rows || rows.is_empty() || groups.saturating_mul(group) != columns {
            return Err(misfit());
        }
        Ok(Fp4 {
            columns,
            codes,
            scales,
            kind,
            scale,
            input_scale,
        })
    }

    /// The shape of the weights.
    pub(super) fn shape(&self) -> Vec<u64> {
        let mut shape = self.codes.shape.clone();
        shape.pop();
        shape.push(self.columns);
        shape
    }

    pub(in crate::convert) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        vec![&self.codes, &self.scales]
    }

    /// The stored scale of a group, checked against its codes.
    fn group_scale(&self, scales: &[u8], index: u64) -> Result<f32, Fault> {
        let byte = scales[index as usize];
        let mut scale = [0.0];
        let dtype = match self.kind {
            Kind::Nvfp4 => Dtype::F8E4m3,
            Kind::Mxfp4 => Dtype::F8E8m0,
        };
        widen(dtype, &[byte], &mut scale);
        // The weights of a group may be too small for the smallest scale.
        check_scale(scale[0], Sign::Positive, &[]).map_err(|what| Fault {
            element: index * self.kind.group(),
            what,
        })?;
        Ok(scale[0])
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        mut out: &mut [f32],
    ) -> Result<(), Fault> {
        let (codes, scales) = (self.codes.bytes(maps), self.scales.bytes(maps));
        let group = self.kind.group();
        let mut at = elements.start;
        while !out.is_empty() {
            let scale = self.group_scale(scales, at / group)? * self.scale;
            let len = ((group - at % group) as usize).min(out.len());
            let (here, rest) = out.split_at_mut(len);
            if at.is_multiple_of(2) && len.is_multiple_of(2) {
                let bytes = &codes[at as usize / 2..][..len / 2];
                for (pair, byte) in here.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = PAIRS[usize::from(*byte)].map(|number| number * scale);
                }
            } else {
                for (weight, at) in here.iter_mut().zip(at..) {
                    let byte = codes[at as usize / 2] >> (4 * (at % 2));
                    *weight = NUMBERS[usize::from(byte & 15)] * scale;
                }
            }
            out = rest;
            at += len as u64;
        }
        Ok(())
    }

    /// Packs groups of weights into consecutive ggml blocks: `first` is the first element, and
    /// `block` receives groups from index `place` on.
    ///
    /// # Errors
    /// An invalid scale.
    pub(in crate::convert) fn repack(
        &self,
        maps: &[Map],
        groups: Range<u64>,
        out: Blocks<'_>,
    ) -> Result<(), Fault> {
        let (codes, scales) = (self.codes.bytes(maps), self.scales.bytes(maps));
        let half = self.kind.group() as usize / 2;
        for (group, place) in groups.zip(out.place..) {
            self.group_scale(scales, group)?;
            let bytes = &codes[group as usize * half..][..half];
            let scale = scales[group as usize];
            let (scale_at, codes_at) = match self.kind {
                // Four scales, then the codes of four groups.
                Kind::Nvfp4 => {
                    let (block, sub) = (place / 4 * 36, place % 4);
                    (block + sub, block + 4 + sub * half)
                }
                Kind::Mxfp4 => (place * 17, place * 17 + 1),
            };
            out.bytes[scale_at] = match self.kind {
                Kind::Nvfp4 => scale & 0x7f,
                Kind::Mxfp4 => scale,
            };
            let (low, high) = bytes.split_at(half / 2);
            let codes = out.bytes[codes_at..][..half].as_chunks_mut::<2>().0;
            // Element j and element j + half share a byte.
            for ((pair, low), high) in codes.iter_mut().zip(low).zip(high) {
                *pair = [low & 15 | high << 4, low >> 4 | high & 0xf0];
            }
        }
        Ok(())
    }
}

/// Blocks to fill, starting at a group.
pub(in crate::convert) struct Blocks<'b> {
    pub(in crate::convert) bytes: &'b mut [u8],
    /// Index of the group, from the first block's first.
    pub(in crate::convert) place: usize,
}
