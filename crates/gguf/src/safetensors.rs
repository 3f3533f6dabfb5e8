//! Safetensors: one JSON header, then the tensors' bytes without gaps.
//!
//! ```text
//! header length n, u64 little-endian
//! n bytes of JSON: {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ...}
//! tensor data; offsets count from here
//! ```
//!
//! [`parse`] checks all of it: the ranges of a [`Header`] need no further checks.

use byteorder::{ByteOrder, LittleEndian};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::ops::Range;

/// Bytes of the header's length.
const PREFIX: usize = 8;
/// Longest header that the format's own library accepts, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// The only key of the header that is not a tensor.
const METADATA: &str = "__metadata__";

/// Number format of a safetensors tensor.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    F8E4m3,
    F8E5m2,
    /// A power of two.
    F8E8m0,
    I64,
    U64,
    I32,
    U32,
    I16,
    U16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Every type with its name in the format and its size in bytes.
    const TABLE: [(Dtype, &'static str, u64); 16] = [
        (Dtype::F64, "F64", 8),
        (Dtype::F32, "F32", 4),
        (Dtype::F16, "F16", 2),
        (Dtype::Bf16, "BF16", 2),
        (Dtype::F8E4m3, "F8_E4M3", 1),
        (Dtype::F8E5m2, "F8_E5M2", 1),
        (Dtype::F8E8m0, "F8_E8M0", 1),
        (Dtype::I64, "I64", 8),
        (Dtype::U64, "U64", 8),
        (Dtype::I32, "I32", 4),
        (Dtype::U32, "U32", 4),
        (Dtype::I16, "I16", 2),
        (Dtype::U16, "U16", 2),
        (Dtype::I8, "I8", 1),
        (Dtype::U8, "U8", 1),
        (Dtype::Bool, "BOOL", 1),
    ];

    fn from_name(name: &str) -> Option<Dtype> {
        Self::TABLE
            .iter()
            .find(|row| row.1 == name)
            .map(|row| row.0)
    }

    fn row(self) -> &'static (Dtype, &'static str, u64) {
        &Self::TABLE[self as usize]
    }

    /// The format's name, for example `BF16`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Size of a number in bytes.
    pub fn bytes(self) -> usize {
        self.row().2 as usize
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Storage type of its numbers.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Byte range in the file.
    pub range: Range<usize>,
}

/// A checked header: every tensor lies inside the file, has the size of its shape and overlaps no
/// other, and every byte belongs to a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The tensors, sorted by name.
    pub tensors: Vec<TensorInfo>,
}

/// Error for a Git LFS pointer in place of a file, as in a clone without LFS.
pub fn lfs_pointer(file: &[u8]) -> Option<String> {
    let is_pointer = file.starts_with(b"version https://git-lfs");
    is_pointer.then(|| {
        "it is a Git LFS pointer, not the file itself; run git lfs pull, or download it".to_owned()
    })
}

/// Parses and checks the header of a whole file.
///
/// # Errors
/// The defect and its place; the caller adds the file's name.
pub fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((prefix, rest)) = file.split_at_checked(PREFIX) else {
        return Err(format!(
            "it has {} bytes and is not a safetensors file; download it again",
            file.len()
        ));
    };
    if let Some(pointer) = lfs_pointer(file) {
        return Err(pointer);
    }
    let length = LittleEndian::read_u64(prefix);
    if length > MAX_HEADER {
        return Err(format!(
            "its header claims {length} bytes, above the limit of {MAX_HEADER}; it is not a safetensors file"
        ));
    }
    if length > rest.len() as u64 {
        return Err(format!(
            "its header claims {length} bytes and {} follow; download it again",
            rest.len()
        ));
    }
    let (json, data) = rest.split_at(length as usize);
    let entries: Entries = serde_json::from_slice(json)
        .map_err(|e| format!("bad header (JSON begins at byte {PREFIX}): {e}"))?;
    let data_start = PREFIX + json.len();
    let mut tensors = entries
        .0
        .into_iter()
        .map(|(n, e)| check(n, e, data_start, data))
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    check_cover(&tensors, data_start, file.len())?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!(
            "tensor '{}' appears twice in its header",
            pair[0].name
        )),
        None => Ok(Header { tensors }),
    }
}

/// Checks one entry against the data after the header.
fn check(name: String, entry: Entry, data_start: usize, data: &[u8]) -> Result<TensorInfo, String> {
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        let known: Vec<_> = Dtype::TABLE.iter().map(|row| row.1).collect();
        return Err(format!(
            "tensor '{name}' has type '{}'; supported are {}",
            entry.dtype,
            known.join(", ")
        ));
    };
    let [begin, end] = entry.data_offsets;
    if begin > end || end > data.len() as u64 {
        return Err(format!(
            "tensor '{name}' lies at {begin}..{end} of {} bytes of data",
            data.len()
        ));
    }
    let needed = entry
        .shape
        .iter()
        .try_fold(dtype.bytes() as u64, |n, &dim| n.checked_mul(dim));
    if needed != Some(end - begin) {
        let needed = needed.map_or("a size that overflows".into(), |n| format!("{n} bytes"));
        return Err(format!(
            "tensor '{name}', {dtype} {:?}, needs {needed} and has {}",
            entry.shape,
            end - begin
        ));
    }
    let range = data_start + begin as usize..data_start + end as usize;
    Ok(TensorInfo {
        name,
        dtype,
        shape: entry.shape,
        range,
    })
}

/// Checks that tensors, sorted by offset, cover the data up to the end of the file, without
/// overlaps or gaps.
fn check_cover(tensors: &[TensorInfo], data_start: usize, file_len: usize) -> Result<(), String> {
    let mut at = data_start;
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.range.start < at {
            return Err(format!(
                "tensors '{}' and '{}' overlap",
                tensors[i - 1].name,
                tensor.name
            ));
        }
        if tensor.range.start > at {
            return Err(format!(
                "{} bytes before tensor '{}' belong to no tensor",
                tensor.range.start - at,
                tensor.name
            ));
        }
        at = tensor.range.end;
    }
    match file_len - at {
        0 => Ok(()),
        rest => Err(format!("{rest} bytes at its end belong to no tensor")),
    }
}

/// An entry of the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in order; names are not checked yet.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<de::IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn parse_entries(entries: &[String], data: usize) -> Result<Header, String> {
        parse(&file(&format!("{{{}}}", entries.join(",")), data))
    }

    #[test]
    fn tensors_are_sorted_by_name() {
        let header = parse_entries(
            &[
                r#""__metadata__":{"format":"pt"}"#.into(),
                entry("b", "BF16", "[2,3]", 0, 12),
                entry("a", "F32", "[]", 12, 16),
            ],
            16,
        )
        .unwrap();
        let names: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (&*t.name, t.range.len()))
            .collect();
        assert_eq!(names, [("a", 4), ("b", 12)]);
    }

    #[test]
    fn type_table_follows_the_enum() {
        assert!(
            Dtype::TABLE
                .iter()
                .enumerate()
                .all(|(i, row)| row.0 as usize == i)
        );
    }

    #[test]
    fn inconsistent_headers_are_refused() {
        let error = |entries: &[String], data| parse_entries(entries, data).unwrap_err();
        let huge = "[4294967296,4294967296,4294967296]";
        let cases = [
            (parse(b"GGUF").unwrap_err(), "4 bytes"),
            (
                parse(&u64::MAX.to_le_bytes()).unwrap_err(),
                "above the limit",
            ),
            (
                parse(&[9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).unwrap_err(),
                "2 follow",
            ),
            (parse(&file("{\"a\":}", 0)).unwrap_err(), "line 1 column 6"),
            (parse(&file("[]", 0)).unwrap_err(), "an object of tensors"),
            (error(&[entry("a", "F4", "[1]", 0, 1)], 1), "type 'F4'"),
            (
                error(&[entry("a", "F32", "[1]", 0, 3)], 3),
                "needs 4 bytes and has 3",
            ),
            (
                error(&[entry("a", "F32", huge, 0, 4)], 4),
                "a size that overflows",
            ),
            (
                error(&[entry("a", "U8", "[4]", 4, 8)], 4),
                "lies at 4..8 of 4",
            ),
            (error(&[entry("a", "U8", "[1]", 2, 1)], 4), "lies at 2..1"),
            (
                error(
                    &[entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[2]", 3, 5)],
                    5,
                ),
                "'a' and 'b' overlap",
            ),
            (
                error(
                    &[entry("a", "U8", "[1]", 0, 1), entry("b", "U8", "[1]", 2, 3)],
                    3,
                ),
                "1 bytes before tensor 'b'",
            ),
            (
                error(&[entry("a", "U8", "[1]", 0, 1)], 3),
                "2 bytes at its end",
            ),
            (
                error(
                    &[entry("a", "U8", "[1]", 0, 1), entry("a", "U8", "[1]", 1, 2)],
                    2,
                ),
                "'a' appears twice in its header",
            ),
            (
                error(
                    &[r#""a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#.into()],
                    1,
                ),
                "line 1 column",
            ),
        ];
        for (error, part) in cases {
            assert!(error.contains(part), "{error} | {part}");
        }
    }
}
