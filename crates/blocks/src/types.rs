//! The ggml tensor types: number, name, block length and block bytes.
//!
//! Enough for readers and writers of files. Numbers and sizes are facts of the GGUF format.

use std::fmt;

/// A ggml tensor type, as stored in a GGUF file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(u8);

/// Properties of one type.
struct Row {
    id: u32,
    name: &'static str,
    /// Weights per block; rows are whole blocks.
    block: usize,
    /// Bytes per block.
    bytes: usize,
    quantized: bool,
}

macro_rules! types {
    ($($konst:ident = $id:literal, $name:literal, $block:literal, $bytes:literal, $quantized:literal;)*) => {
        const TABLE: &[Row] = &[$(Row { id: $id, name: $name, block: $block, bytes: $bytes, quantized: $quantized }),*];
        impl GgmlType {
            $(#[doc = concat!("`", $name, "`: ", $block, " weights in ", $bytes, " bytes.")]
              pub const $konst: GgmlType = GgmlType(index_of($id));)*
        }
    };
}

/// Position in [`TABLE`] of the type with this number; evaluated at compile time only.
const fn index_of(id: u32) -> u8 {
    let mut i = 0;
    while i < TABLE.len() {
        if TABLE[i].id == id {
            return i as u8;
        }
        i += 1;
    }
    panic!("no such type")
}

types! {
    F32     =  0, "f32",       1,   4, false;
    F16     =  1, "f16",       1,   2, false;
    Q4_0    =  2, "q4_0",     32,  18, true;
    Q4_1    =  3, "q4_1",     32,  20, true;
    Q5_0    =  6, "q5_0",     32,  22, true;
    Q5_1    =  7, "q5_1",     32,  24, true;
    Q8_0    =  8, "q8_0",     32,  34, true;
    Q8_1    =  9, "q8_1",     32,  36, true;
    Q2_K    = 10, "q2_K",    256,  84, true;
    Q3_K    = 11, "q3_K",    256, 110, true;
    Q4_K    = 12, "q4_K",    256, 144, true;
    Q5_K    = 13, "q5_K",    256, 176, true;
    Q6_K    = 14, "q6_K",    256, 210, true;
    Q8_K    = 15, "q8_K",    256, 292, true;
    IQ2_XXS = 16, "iq2_xxs", 256,  66, true;
    IQ2_XS  = 17, "iq2_xs",  256,  74, true;
    IQ3_XXS = 18, "iq3_xxs", 256,  98, true;
    IQ1_S   = 19, "iq1_s",   256,  50, true;
    IQ4_NL  = 20, "iq4_nl",   32,  18, true;
    IQ3_S   = 21, "iq3_s",   256, 110, true;
    IQ2_S   = 22, "iq2_s",   256,  82, true;
    IQ4_XS  = 23, "iq4_xs",  256, 136, true;
    I8      = 24, "i8",        1,   1, false;
    I16     = 25, "i16",       1,   2, false;
    I32     = 26, "i32",       1,   4, false;
    I64     = 27, "i64",       1,   8, false;
    F64     = 28, "f64",       1,   8, false;
    IQ1_M   = 29, "iq1_m",   256,  56, true;
    BF16    = 30, "bf16",      1,   2, false;
    TQ1_0   = 34, "tq1_0",   256,  54, true;
    TQ2_0   = 35, "tq2_0",   256,  66, true;
    MXFP4   = 39, "mxfp4",    32,  17, true;
    NVFP4   = 40, "nvfp4",    64,  36, true;
    Q1_0    = 41, "q1_0",    128,  18, true;
    Q2_0    = 42, "q2_0",     64,  18, true;
}

/// Type numbers removed from GGUF, with their remedy.
const REMOVED: &[(u32, &str)] = &[
    (
        4,
        "q4_2 was removed from GGUF in 2023; quantize the original model again",
    ),
    (
        5,
        "q4_3 was removed from GGUF in 2023; quantize the original model again",
    ),
    (
        31,
        "q4_0_4_4 was removed from GGUF; use q4_0, which llama.cpp repacks when it loads",
    ),
    (
        32,
        "q4_0_4_8 was removed from GGUF; use q4_0, which llama.cpp repacks when it loads",
    ),
    (
        33,
        "q4_0_8_8 was removed from GGUF; use q4_0, which llama.cpp repacks when it loads",
    ),
    (
        36,
        "iq4_nl_4_4 was removed from GGUF; use iq4_nl, which llama.cpp repacks when it loads",
    ),
    (
        37,
        "iq4_nl_4_8 was removed from GGUF; use iq4_nl, which llama.cpp repacks when it loads",
    ),
    (
        38,
        "iq4_nl_8_8 was removed from GGUF; use iq4_nl, which llama.cpp repacks when it loads",
    ),
];

impl GgmlType {
    fn row(self) -> &'static Row {
        &TABLE[self.0 as usize]
    }

    /// All types in numerical order.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        (0..TABLE.len()).map(|i| GgmlType(i as u8))
    }

    /// The type with this number.
    ///
    /// # Errors
    /// A number that is unknown or was removed from GGUF.
    pub fn from_id(id: u32) -> Result<GgmlType, String> {
        if let Some(i) = TABLE.iter().position(|row| row.id == id) {
            return Ok(GgmlType(i as u8));
        }
        match REMOVED.iter().find(|(removed, _)| *removed == id) {
            Some((_, why)) => Err((*why).to_string()),
            None => Err(format!(
                "type number {id} is unknown; the file may be newer than this program, or damaged"
            )),
        }
    }

    /// The type with this name, case-insensitive.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        Self::all().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Number in a file.
    pub fn id(self) -> u32 {
        self.row().id
    }

    /// ggml's own name, for example `q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Weights per block; row lengths are multiples of it.
    pub fn block_len(self) -> usize {
        self.row().block
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// True if ggml counts the type as quantized (blocks with scales), not as plain numbers.
    pub fn is_quantized(self) -> bool {
        self.row().quantized
    }

    /// Bytes of a row of `len` weights, `None` if it is not whole blocks or overflows.
    pub fn row_bytes(self, len: u64) -> Option<u64> {
        let block = self.block_len() as u64;
        len.is_multiple_of(block)
            .then(|| (len / block).checked_mul(self.block_bytes() as u64))
            .flatten()
    }

    /// Bits per weight.
    pub fn bpw(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Serialized by ggml's name: `q4_K`.
impl serde::Serialize for GgmlType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for GgmlType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<GgmlType, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        GgmlType::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("'{name}' is no ggml type")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_numbers_and_names_round_trip() {
        for t in GgmlType::all() {
            assert_eq!(GgmlType::from_id(t.id()), Ok(t));
            assert_eq!(GgmlType::from_name(&t.name().to_uppercase()), Some(t));
        }
        assert!(GgmlType::from_id(31).unwrap_err().contains("repacks"));
        assert!(GgmlType::from_id(43).unwrap_err().contains("unknown"));
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_bytes(300), None);
        assert_eq!(GgmlType::F32.row_bytes(u64::MAX), None);
    }
}
