//! Byte order of header fields and of the numbers inside blocks.

use super::value::ValueType;
use crate::types::GgmlType;
use byteorder::{BigEndian, ByteOrder, LittleEndian};

/// Byte order of a GGUF file: that of the machine that runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first: nearly every file.
    #[default]
    Little,
    /// Most significant byte first: files for s390x and similar machines.
    Big,
}

impl Endian {
    /// The format's name: `little` or `big`.
    pub fn name(self) -> &'static str {
        match self {
            Endian::Little => "little",
            Endian::Big => "big",
        }
    }

    /// Decodes the first bytes of a slice, which must be long enough.
    pub(crate) fn u16(self, bytes: &[u8]) -> u16 {
        match self {
            Endian::Little => LittleEndian::read_u16(bytes),
            Endian::Big => BigEndian::read_u16(bytes),
        }
    }

    pub(crate) fn u32(self, bytes: &[u8]) -> u32 {
        match self {
            Endian::Little => LittleEndian::read_u32(bytes),
            Endian::Big => BigEndian::read_u32(bytes),
        }
    }

    pub(crate) fn u64(self, bytes: &[u8]) -> u64 {
        match self {
            Endian::Little => LittleEndian::read_u64(bytes),
            Endian::Big => BigEndian::read_u64(bytes),
        }
    }

    pub(crate) fn f32s(self, bytes: &[u8]) -> Vec<f32> {
        let mut numbers = vec![0.0; bytes.len() / 4];
        let whole = &bytes[..numbers.len() * 4];
        match self {
            Endian::Little => LittleEndian::read_f32_into(whole, &mut numbers),
            Endian::Big => BigEndian::read_f32_into(whole, &mut numbers),
        }
        numbers
    }

    pub(super) fn put_u16(self, number: u16, out: &mut Vec<u8>) {
        let mut bytes = [0; 2];
        match self {
            Endian::Little => LittleEndian::write_u16(&mut bytes, number),
            Endian::Big => BigEndian::write_u16(&mut bytes, number),
        }
        out.extend(bytes);
    }

    pub(super) fn put_u32(self, number: u32, out: &mut Vec<u8>) {
        let mut bytes = [0; 4];
        match self {
            Endian::Little => LittleEndian::write_u32(&mut bytes, number),
            Endian::Big => BigEndian::write_u32(&mut bytes, number),
        }
        out.extend(bytes);
    }

    pub(super) fn put_u64(self, number: u64, out: &mut Vec<u8>) {
        let mut bytes = [0; 8];
        match self {
            Endian::Little => LittleEndian::write_u64(&mut bytes, number),
            Endian::Big => BigEndian::write_u64(&mut bytes, number),
        }
        out.extend(bytes);
    }

    pub(super) fn put_string(self, string: &[u8], out: &mut Vec<u8>) {
        self.put_u64(string.len() as u64, out);
        out.extend(string);
    }
}

/// Swaps every number of an array's elements, string lengths included, from byte order `from` to
/// the other. `bytes` begins with `len` checked elements; returns their size in bytes.
pub(super) fn reverse_elements(
    from: Endian,
    element: ValueType,
    len: usize,
    bytes: &mut [u8],
) -> usize {
    let mut at = 0;
    match element {
        ValueType::String => {
            for _ in 0..len {
                let length = from.u64(&bytes[at..]) as usize;
                bytes[at..at + 8].reverse();
                at += 8 + length;
            }
        }
        ValueType::Array => {
            for _ in 0..len {
                let inner = ValueType::from_id(from.u32(&bytes[at..]));
                let inner = inner.expect("checked elements");
                let length = from.u64(&bytes[at + 4..]) as usize;
                bytes[at..at + 4].reverse();
                bytes[at + 4..at + 12].reverse();
                at += 12;
                at += reverse_elements(from, inner, length, &mut bytes[at..]);
            }
        }
        fixed => {
            let size = fixed.fixed_size().unwrap_or(1);
            at = len * size;
            bytes[..at].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }
    at
}

/// A number inside a block: its offset and its size, in bytes.
type Field = (usize, usize);

/// The multi-byte numbers inside a block; `None` for types without a defined big-endian form.
///
/// The reference swaps these types and refuses the others (gguf-py, `gguf_convert_endian.py`).
/// Added here: plain integers and f64, whose big-endian form is unambiguous.
fn fields(ggml_type: GgmlType) -> Option<&'static [Field]> {
    Some(match ggml_type {
        GgmlType::I8 | GgmlType::MXFP4 | GgmlType::NVFP4 => &[],
        GgmlType::F16 | GgmlType::BF16 | GgmlType::I16 => &[(0, 2)],
        GgmlType::F32 | GgmlType::I32 => &[(0, 4)],
        GgmlType::F64 | GgmlType::I64 => &[(0, 8)],
        GgmlType::Q1_0 | GgmlType::Q4_0 | GgmlType::Q8_0 => &[(0, 2)],
        GgmlType::Q4_K => &[(0, 2), (2, 2)],
        GgmlType::Q6_K => &[(208, 2)],
        GgmlType::TQ2_0 => &[(64, 2)],
        _ => return None,
    })
}

/// True if big-endian files can store this type.
pub(super) fn has_big_endian_form(ggml_type: GgmlType) -> bool {
    fields(ggml_type).is_some()
}

/// Swaps the numbers of whole blocks from one byte order to the other.
///
/// # Panics
/// If the type has no big-endian form.
pub(super) fn reverse_blocks(ggml_type: GgmlType, blocks: &mut [u8]) {
    let fields = fields(ggml_type).expect("a type with a big-endian form");
    for block in blocks.chunks_exact_mut(ggml_type.block_bytes()) {
        for &(at, width) in fields {
            block[at..][..width].reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_blocks::Codec;

    /// A block with scales of 1 and zeros elsewhere decodes equally in both byte orders.
    #[test]
    fn fields_match_the_block_layouts() {
        for codec in Codec::all()
            .iter()
            .filter(|c| fields(c.ggml_type).is_some())
        {
            let t = codec.ggml_type;
            let weights: Vec<f32> = (0..t.block_len()).map(|i| i as f32 - 7.5).collect();
            let mut block = vec![0; t.block_bytes()];
            codec.quantize_row(&weights, Some(&vec![1.0; weights.len()]), &mut block);
            let mut turned = block.clone();
            reverse_blocks(t, &mut turned);
            let fields = fields(t).unwrap();
            let changed: usize = fields.iter().map(|field| field.1).sum();
            let differs = block.iter().zip(&turned).filter(|(a, b)| a != b).count();
            assert!(
                differs <= changed && (differs > 0 || fields.is_empty()),
                "{t}"
            );
            reverse_blocks(t, &mut turned);
            assert_eq!(block, turned, "{t}");
        }
    }
}
