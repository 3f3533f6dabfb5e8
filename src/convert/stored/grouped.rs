//! Integers of 2 to 8 bits, packed into words of 32, with scales and zero points of groups of columns:
//! compressed-tensors, GPTQ and AWQ.
//!
//! ```text
//! weight (i, j) = (code (i, j) - zero (i, g)) * scale (i, g)        g = j / group, or g_idx (j); in f32
//!
//!                       codes                          zero points               scales
//! compressed-tensors    [rows, columns], by columns    [rows, groups], by rows    [rows, groups]
//! GPTQ                  [columns, rows], by columns    [groups, rows], by rows    [groups, rows]
//! AWQ                   [columns, rows], by rows       [groups, rows], by rows    [groups, rows]
//! ```
//!
//! "By columns" names the dimension along which codes share a word. GPTQ's codes are one bit
//! string, so 3-bit codes may cross words; AWQ permutes the codes of a word.

use super::{Fault, Raw, Sign, check_scale};
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use std::ops::Range;

/// Bits of a word.
const WORD: u64 = 32;
/// The place of a row among the eight of an AWQ word.
const AWQ_PLACES: [u64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Packed integers.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Grouped {
    tensors: Tensors,
    packing: Packing,
    bits: u64,
    rows: u64,
    columns: u64,
    groups: u64,
    /// Columns per group, without `g_idx`.
    size: u64,
}

/// The tensors of one linear.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensors {
    pub(super) codes: Raw,
    pub(super) scales: Raw,
    /// The zero points; if None, the middle of the codes.
    pub(super) zeros: Option<Raw>,
    /// The group of every column.
    pub(super) group_of: Option<Raw>,
}

/// Layout of codes in words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Packing {
    CompressedTensors,
    /// Stored zero points are smaller by this.
    Gptq {
        zero_offset: u8,
    },
    Awq,
}

/// The config of packed integers.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) bits: u64,
    pub(super) rows: u64,
    pub(super) columns: u64,
    /// Columns per group; whole rows if None.
    pub(super) size: Option<u64>,
}

impl Grouped {
    /// # Errors
    /// If the tensors do not match each other or the config.
    pub(super) fn new(
        tensors: Tensors,
        packing: Packing,
        layout: Layout,
    ) -> Result<Grouped, String> {
        let Layout {
            bits,
            rows,
            columns,
            size,
        } = layout;
        if !(2..=8).contains(&bits) || rows == 0 || columns == 0 {
            return Err(format!(
                "{rows} x {columns} codes of {bits} bits are none that is read"
            ));
        }
        for raw in [Some(&tensors.codes), tensors.zeros.as_ref()]
            .into_iter()
            .flatten()
        {
            if raw.dtype != Dtype::I32 {
                return Err(format!("{} is of type {}, not I32", raw.name, raw.dtype));
            }
        }
        let size = size.unwrap_or(columns);
        let groups = columns.div_ceil(size);
        let is_transposed = packing != Packing::CompressedTensors;
        if tensors.group_of.is_none() && !is_transposed && !columns.is_multiple_of(size) {
            return Err(format!(
                "groups of {size} columns do not divide {columns} columns"
            ));
        }
        let groups = match (&tensors.group_of, is_transposed) {
            // The number of groups is that of scales.
            (Some(_), true) => tensors.scales.shape.first().copied().unwrap_or(0),
            (Some(_), false) => tensors.scales.shape.last().copied().unwrap_or(0),
            _ => groups,
        };
        let words = |codes: u64| match packing {
            Packing::Gptq { .. } => codes.saturating_mul(bits).div_ceil(WORD),
            _ => codes.div_ceil(WORD / bits),
        };
        let (codes, zeros, scales) = match packing {
            Packing::CompressedTensors => (
                [rows, words(columns)],
                [words(rows), groups],
                [rows, groups],
            ),
            Packing::Gptq { .. } => (
                [words(columns), rows],
                [groups, words(rows)],
                [groups, rows],
            ),
            Packing::Awq => (
                [columns, words(rows)],
                [groups, words(rows)],
                [groups, rows],
            ),
        };
        let expect = |raw: &Raw, shape: &[u64]| match raw.shape == shape {
            true => Ok(()),
            false => Err(format!(
                "{} has shape {:?}, and {shape:?} fits {rows} x {columns} weights of {bits} bits in {groups} groups",
                raw.name, raw.shape
            )),
        };
        expect(&tensors.codes, &codes)?;
        expect(&tensors.scales, &scales)?;
        if !matches!(tensors.scales.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32) {
            return Err(format!(
                "{} is of type {}",
                tensors.scales.name, tensors.scales.dtype
            ));
        }
        if let Some(raw) = &tensors.zeros {
            expect(raw, &zeros)?;
        }
        if let Some(raw) = &tensors.group_of {
            expect(raw, &[columns])?;
            if raw.dtype != Dtype::I32 {
                return Err(format!("{} is of type {}, not I32", raw.name, raw.dtype));
            }
        }
        Ok(Grouped {
            tensors,
            packing,
            bits,
            rows,
            columns,
            groups,
            size,
        })
    }

    /// The shape of the weights.
    pub(super) fn shape(&self) -> Vec<u64> {
        vec![self.rows, self.columns]
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        let Tensors {
            codes,
            scales,
            zeros,
            group_of,
        } = &self.tensors;
        let others = [zeros.as_ref(), group_of.as_ref()];
        [codes, scales]
            .into_iter()
            .chain(others.into_iter().flatten())
            .collect()
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        mut out: &mut [f32],
    ) -> Result<(), Fault> {
        let codes = Words(self.tensors.codes.bytes(maps));
        let group_of = self
            .tensors
            .group_of
            .as_ref()
            .map(|raw| Words(raw.bytes(maps)));
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        let mut at = elements.start;
        while !out.is_empty() {
            let (row, first) = (at / self.columns, at % self.columns);
            let len = ((self.columns - first) as usize).min(out.len());
            let (here, rest) = out.split_at_mut(len);
            let columns = first..first + len as u64;
            self.fill(codes, row, columns.clone(), here)?;
            let groups = match group_of {
                Some(_) => 0..self.groups,
                None => first / self.size..(columns.end - 1) / self.size + 1,
            };
            scales.clear();
            zeros.clear();
            for group in groups.clone() {
                scales.push(self.scale(maps, row, group));
                zeros.push(self.zero(maps, row, group));
            }
            let fault = |column: u64, what| Fault {
                element: row * self.columns + column,
                what,
            };
            match group_of {
                None => {
                    let (mut column, mut left) = (first, here);
                    for (scale, zero) in scales.iter().zip(&zeros) {
                        let len = (self.size - column % self.size) as usize;
                        let (group, others) = left.split_at_mut(len.min(left.len()));
                        group.iter_mut().for_each(|weight| *weight -= zero);
                        check_scale(*scale, Sign::Any, group)
                            .map_err(|what| fault(column, what))?;
                        group.iter_mut().for_each(|weight| *weight *= scale);
                        column += group.len() as u64;
                        left = others;
                    }
                }
                Some(group_of) => {
                    for (weight, column) in here.iter_mut().zip(columns) {
                        let group = group_of.get(column) as usize;
                        let Some((scale, zero)) = scales.get(group).zip(zeros.get(group)) else {
                            let what = format!(
                                "its group is {}, of {}",
                                group_of.get(column) as i32,
                                self.groups
                            );
                            return Err(fault(column, what));
                        };
                        *weight -= zero;
                        check_scale(*scale, Sign::Any, &[*weight])
                            .map_err(|what| fault(column, what))?;
                        *weight *= scale;
                    }
                }
            }
            out = rest;
            at += len as u64;
        }
        Ok(())
    }

    /// The codes of some columns of a row, as numbers.
    fn fill(
        &self,
        codes: Words<'_>,
        row: u64,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let (bits, mask) = (self.bits, self.mask());
        match self.packing {
            Packing::CompressedTensors => {
                let per_word = WORD / bits;
                let words = self.columns.div_ceil(per_word);
                let (mut left, mut word) = (out, row * words + columns.start / per_word);
                let mut place = columns.start % per_word;
                while !left.is_empty() {
                    let len = ((per_word - place) as usize).min(left.len());
                    let (here, others) = left.split_at_mut(len);
                    let mut code = codes.get(word) >> (place * bits);
                    for number in here {
                        *number = (code & mask) as f32;
                        code >>= bits;
                    }
                    (left, word, place) = (others, word + 1, 0);
                }
                let rest = self.columns % per_word;
                if columns.end == self.columns && rest != 0 {
                    let word = codes.get(row * words + words - 1);
                    if word
                        .checked_shr((rest * bits) as u32)
                        .is_some_and(|padding| padding != 0)
                    {
                        return Err(Fault {
                            element: row * self.columns + self.columns - 1,
                            what: "the columns behind the last one, which fill its word, are not 0"
                                .into(),
                        });
                    }
                }
            }
            Packing::Gptq { .. } => {
                for (number, column) in out.iter_mut().zip(columns) {
                    let at = column * bits;
                    let word = |i: u64| u64::from(codes.get((at / WORD + i) * self.rows + row));
                    let mut pair = word(0);
                    if at % WORD + bits > WORD {
                        pair |= word(1) << WORD;
                    }
                    *number = ((pair >> (at % WORD)) as u32 & mask) as f32;
                }
            }
            Packing::Awq => {
                let words = self.rows.div_ceil(WORD / bits);
                let (shift, at) = (self.awq_shift(row), row / (WORD / bits));
                for (number, column) in out.iter_mut().zip(columns) {
                    let word = codes.get(column * words + at);
                    *number = (word >> shift & mask) as f32;
                }
            }
        }
        Ok(())
    }

    fn mask(&self) -> u32 {
        (1 << self.bits) - 1
    }

    fn awq_shift(&self, row: u64) -> u64 {
        let place = row % (WORD / self.bits);
        self.bits * AWQ_PLACES.get(place as usize).copied().unwrap_or(0)
    }

    fn scale(&self, maps: &[Map], row: u64, group: u64) -> f32 {
        let index = match self.packing {
            Packing::CompressedTensors => row * self.groups + group,
            _ => group * self.rows + row,
        };
        self.tensors.scales.number(maps, index)
    }

    fn zero(&self, maps: &[Map], row: u64, group: u64) -> f32 {
        let (bits, mask, per_word) = (self.bits, self.mask(), WORD / self.bits);
        let Some(zeros) = &self.tensors.zeros else {
            return (1u32 << (bits - 1)) as f32;
        };
        let zeros = Words(zeros.bytes(maps));
        match self.packing {
            Packing::CompressedTensors => {
                let word = zeros.get(row / per_word * self.groups + group);
                (word >> (row % per_word * bits) & mask) as f32
            }
            Packing::Gptq { zero_offset } => {
                let (words, at) = ((self.rows * bits).div_ceil(WORD), row * bits);
                let word = |i: u64| u64::from(zeros.get(group * words + at / WORD + i));
                let mut pair = word(0);
                if at % WORD + bits > WORD {
                    pair |= word(1) << WORD;
                }
                // Not masked again: the greatest code stands for a zero point beyond the codes.
                (((pair >> (at % WORD)) as u32 & mask) + u32::from(zero_offset)) as f32
            }
            Packing::Awq => {
                let words = self.rows.div_ceil(per_word);
                let word = zeros.get(group * words + row / per_word);
                (word >> self.awq_shift(row) & mask) as f32
            }
        }
    }
}

/// Words of 32 bits in the order of the file.
#[derive(Clone, Copy)]
struct Words<'w>(&'w [u8]);

impl Words<'_> {
    #[inline]
    fn get(self, index: u64) -> u32 {
        u32::from_le_bytes(self.0.as_chunks().0[index as usize])
    }
}
