//! From bytes to a checked header. Every count and length is compared with the rest of the file
//! before use.

use super::endian::Endian;
use super::keys;
use super::value::{Array, Metadata, Shape, Value, ValueType};
use crate::shown;
use crate::types::GgmlType;
use std::borrow::Cow;
use std::collections::HashSet;

/// Default alignment of tensor data, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's limit for tensor names in bytes, with the terminating zero.
pub const MAX_NAME: usize = 64;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Larger than any key or string of a real model; a larger length is damage.
const MAX_STRING: u64 = 1 << 30;
/// Maximum nesting of arrays: deeper than in any real file, shallow enough for any stack.
const MAX_DEPTH: usize = 8;
/// Largest plausible alignment (a huge page); a larger one is damage.
pub const MAX_ALIGNMENT: u64 = 1 << 21;
/// Number of entries for which memory is reserved from the header's count alone; beyond it, memory
/// grows with the entries read.
const TRUSTED_ENTRIES: u64 = 1 << 16;

/// A tensor as described by the header.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo<'a> {
    /// Name, unique in the model.
    pub name: Cow<'a, str>,
    /// Dimensions, row length first.
    pub shape: Shape,
    /// Storage type of the weights.
    pub ggml_type: GgmlType,
}

impl TensorInfo<'_> {
    /// The same with an owned name.
    pub fn into_owned(self) -> TensorInfo<'static> {
        TensorInfo {
            name: Cow::Owned(self.name.into_owned()),
            ..self
        }
    }

    /// Size of its data in bytes. The row length was checked to be whole blocks, and the product to
    /// fit.
    pub fn bytes(&self) -> u64 {
        self.ggml_type.row_bytes(self.shape.row_len()).unwrap_or(0) * self.shape.rows()
    }
}

/// A parsed header. Every tensor lies inside the file, aligned, and overlaps no other.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// 2 or 3.
    pub version: u32,
    /// The file's byte order.
    pub endian: Endian,
    /// Metadata in the order of the file.
    pub metadata: Metadata<'a>,
    /// Tensors in the order of the file, each with the offset of its data from the file's start.
    pub tensors: Vec<(TensorInfo<'a>, u64)>,
    /// Offset of the tensor data from the file's start.
    pub data_start: u64,
    /// Alignment of tensor data.
    pub alignment: u64,
}

impl Header<'_> {
    /// The same without borrowing the file's bytes.
    pub(crate) fn into_owned(self) -> Header<'static> {
        let owned = |(info, offset): (TensorInfo<'_>, u64)| (info.into_owned(), offset);
        Header {
            metadata: self.metadata.into_owned(),
            tensors: self.tensors.into_iter().map(owned).collect(),
            ..self
        }
    }
}

/// Parses and checks the header of a whole file, of either byte order.
///
/// # Errors
/// The defect and its place; the caller adds the file's name.
pub fn parse(file: &[u8]) -> Result<Header<'_>, String> {
    let mut cursor = Cursor::new(file, Endian::Little);
    let Preamble {
        version,
        n_tensors,
        n_keys,
    } = preamble(&mut cursor)?;
    let metadata = metadata(&mut cursor, n_keys)?;
    let alignment = alignment(&metadata)?;
    let described = tensor_infos(&mut cursor, n_tensors)?;
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(described, file.len() as u64, data_start, alignment)?;
    Ok(Header {
        version,
        endian: cursor.endian,
        metadata,
        tensors,
        data_start,
        alignment,
    })
}

struct Preamble {
    version: u32,
    n_tensors: u64,
    n_keys: u64,
}

/// Reads the fields before the first key; the version gives the byte order of the rest.
fn preamble(cursor: &mut Cursor<'_>) -> Result<Preamble, String> {
    let magic = cursor
        .take(4)
        .map_err(|_| "it is shorter than a GGUF header; is it an unfinished download?")?;
    if magic != MAGIC {
        let hint = match magic {
            b"FUGG" => "; its magic is byte-swapped, which is never valid: it is damaged",
            b"ggml" | b"tjgg" | b"lmgg" | b"fmgg" => {
                "; it is a ggml file from before GGUF: convert the original model again"
            }
            b"<!DO" | b"<htm" | b"vers" => {
                "; it looks like a web page or a Git LFS pointer: download the file itself"
            }
            _ => "",
        };
        return Err(format!(
            "it does not begin with \"GGUF\" but with {}{hint}",
            show_bytes(magic)
        ));
    }
    let mut version = cursor.u32().map_err(|e| e.at("the version"))?;
    if version & 0xffff == 0 {
        version = version.swap_bytes();
        cursor.endian = Endian::Big;
    }
    match version {
        2 | 3 => {}
        1 => {
            return Err(
                "it is GGUF version 1, which llama.cpp dropped in 2023: convert the original model again".into()
            );
        }
        v => {
            return Err(format!(
                "it is GGUF version {v}; versions 2 and 3 are supported: the file is damaged or newer than this program"
            ));
        }
    }
    let n_tensors = cursor.u64().map_err(|e| e.at("the number of tensors"))?;
    let n_keys = cursor
        .u64()
        .map_err(|e| e.at("the number of metadata keys"))?;
    // The shortest possible entries bound both counts by the remaining size of the file.
    const SHORTEST_KEY: u64 = 8 + 1 + 4 + 1;
    const SHORTEST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
    let left = cursor.left() as u64;
    if n_keys > left / SHORTEST_KEY {
        return Err(format!(
            "it claims {n_keys} metadata keys, more than fit in its {left} bytes; it is damaged or cut short"
        ));
    }
    if n_tensors > left / SHORTEST_TENSOR {
        return Err(format!(
            "it claims {n_tensors} tensors, more than fit in its {left} bytes; it is damaged or cut short"
        ));
    }
    Ok(Preamble {
        version,
        n_tensors,
        n_keys,
    })
}

fn metadata<'a>(cursor: &mut Cursor<'a>, n_keys: u64) -> Result<Metadata<'a>, String> {
    let mut entries = Vec::with_capacity(n_keys.min(TRUSTED_ENTRIES) as usize);
    let mut seen = HashSet::with_capacity(entries.capacity());
    for i in 0..n_keys {
        let key = cursor
            .text()
            .map_err(|e| e.at(&format!("metadata key {i} of {n_keys}")))?;
        if key.is_empty() {
            return Err(format!("metadata key {i} is empty"));
        }
        if !seen.insert(key) {
            return Err(format!("metadata key {} appears twice", shown(key)));
        }
        let of = |e: Fault| {
            e.at(&format!(
                "the value of {} (metadata key {i} of {n_keys})",
                shown(key)
            ))
        };
        let value = cursor.value().map_err(of)?;
        entries.push((Cow::Borrowed(key), value));
    }
    Ok(Metadata::from_checked(entries))
}

fn alignment(metadata: &Metadata<'_>) -> Result<u64, String> {
    match metadata.get(keys::ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(a)) if a.is_power_of_two() && u64::from(a) <= MAX_ALIGNMENT => {
            Ok(a.into())
        }
        Some(Value::U32(a)) => Err(format!(
            "'{}' is {a}; it must be a power of two, at most {MAX_ALIGNMENT}",
            keys::ALIGNMENT
        )),
        Some(v) => Err(format!(
            "'{}' is of type {}; it must be u32",
            keys::ALIGNMENT,
            v.value_type().name()
        )),
    }
}

/// Reads the tensor table: descriptions with their stored, still unchecked offsets.
fn tensor_infos<'a>(
    cursor: &mut Cursor<'a>,
    n_tensors: u64,
) -> Result<Vec<(TensorInfo<'a>, u64)>, String> {
    let mut tensors = Vec::with_capacity(n_tensors.min(TRUSTED_ENTRIES) as usize);
    let mut seen = HashSet::with_capacity(tensors.capacity());
    for i in 0..n_tensors {
        let name = cursor
            .text()
            .map_err(|e| e.at(&format!("the name of tensor {i} of {n_tensors}")))?;
        let of = |e: Fault| e.at(&format!("tensor {} ({i} of {n_tensors})", shown(name)));
        if name.len() >= MAX_NAME {
            return Err(format!(
                "the name of tensor {i} has {} bytes; ggml's limit is {}: {}",
                name.len(),
                MAX_NAME - 1,
                shown(name)
            ));
        }
        if !seen.insert(name) {
            return Err(format!("tensor '{name}' appears twice"));
        }
        let rank = cursor.u32().map_err(of)?;
        if rank > 4 {
            return Err(format!(
                "tensor '{name}' has {rank} dimensions; ggml supports at most four"
            ));
        }
        let mut dims = [1u64; 4];
        for dim in &mut dims[..rank as usize] {
            *dim = cursor.u64().map_err(of)?;
        }
        let shape = Shape::new(&dims[..rank.max(1) as usize])
            .map_err(|e| format!("tensor '{name}': {e}"))?;
        let type_id = cursor.u32().map_err(of)?;
        let ggml_type = GgmlType::from_id(type_id).map_err(|e| format!("tensor '{name}': {e}"))?;
        let offset = cursor.u64().map_err(of)?;
        if !shape.row_len().is_multiple_of(ggml_type.block_len() as u64) {
            return Err(format!(
                "tensor '{name}': rows of {} weights are not whole blocks of type {ggml_type} ({} weights)",
                shape.row_len(),
                ggml_type.block_len()
            ));
        }
        if ggml_type
            .row_bytes(shape.row_len())
            .and_then(|row| row.checked_mul(shape.rows()))
            .is_none()
        {
            return Err(format!(
                "tensor '{name}' {shape} of type {ggml_type} has a size that overflows"
            ));
        }
        tensors.push((
            TensorInfo {
                name: Cow::Borrowed(name),
                shape,
                ggml_type,
            },
            offset,
        ));
    }
    Ok(tensors)
}

/// Converts offsets in the data section to offsets in the file, and checks alignment, bounds and
/// overlap.
fn place(
    mut tensors: Vec<(TensorInfo<'_>, u64)>,
    file_len: u64,
    data_start: u64,
    alignment: u64,
) -> Result<Vec<(TensorInfo<'_>, u64)>, String> {
    for (tensor, offset) in &mut tensors {
        let name = &tensor.name;
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "the data of tensor '{name}' is at offset {offset}, which is not a multiple of the alignment {alignment}"
            ));
        }
        let end = offset.checked_add(data_start).and_then(|start| {
            *offset = start;
            start.checked_add(tensor.bytes())
        });
        if end.is_none_or(|end| end > file_len) {
            return Err(format!(
                "the data of tensor '{name}' (offset {offset}, {} bytes) reaches beyond the end of the file ({file_len} bytes); the file is cut short: get it again",
                tensor.bytes()
            ));
        }
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by_key(|&i| tensors[i].1);
    for pair in order.windows(2) {
        let ((a, start_a), (b, start_b)) = (&tensors[pair[0]], &tensors[pair[1]]);
        if start_a + a.bytes() > *start_b {
            return Err(format!(
                "the data of tensors '{}' (offset {start_a}) and '{}' (offset {start_b}) overlap",
                a.name, b.name
            ));
        }
    }
    Ok(tensors)
}

/// A decoding error and its position.
pub(super) struct Fault {
    position: usize,
    what: String,
}

impl Fault {
    fn at(self, place: &str) -> String {
        format!("{} in {place} at byte {}", self.what, self.position)
    }
}

/// Reads numbers, strings and values from the front of a slice.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    endian: Endian,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], endian: Endian) -> Cursor<'a> {
        Cursor {
            bytes,
            position: 0,
            endian,
        }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault {
            position: self.position,
            what: what.into(),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        if n > self.left() {
            return Err(self.fault(format!(
                "{n} bytes are expected and {} are left: the file ends",
                self.left()
            )));
        }
        let taken = &self.bytes[self.position..][..n];
        self.position += n;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(self.endian.u32(self.take(4)?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(self.endian.u64(self.take(8)?))
    }

    fn string(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.u64()?;
        if len > MAX_STRING || len > self.left() as u64 {
            return Err(self.fault(format!(
                "a string of {len} bytes is expected and {} are left",
                self.left()
            )));
        }
        self.take(len as usize)
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let bytes = self.string()?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.fault(format!("a name is not UTF-8: {}", show_bytes(bytes))))
    }

    fn value_type(&mut self) -> Result<ValueType, Fault> {
        let id = self.u32()?;
        ValueType::from_id(id)
            .ok_or_else(|| self.fault(format!("value type {id} is unknown (0 to 12 are valid)")))
    }

    fn value(&mut self) -> Result<Value<'a>, Fault> {
        match self.value_type()? {
            ValueType::String => Ok(Value::String(Cow::Borrowed(self.string()?))),
            ValueType::Array => Ok(Value::Array(self.array(0)?)),
            fixed => {
                let bytes = self.take(fixed.fixed_size().unwrap_or(0))?;
                Value::from_bytes(fixed, bytes, self.endian)
                    .ok_or_else(|| self.fault("unreadable value"))
            }
        }
    }

    /// Reads an array, starting at its element type.
    pub(super) fn array(&mut self, depth: usize) -> Result<Array<'a>, Fault> {
        let (element, len) = self.array_head(depth)?;
        let start = self.position;
        self.skip_elements(element, len, depth)?;
        let bytes = &self.bytes[start..self.position];
        Ok(Array::from_checked(element, len, bytes, self.endian))
    }

    /// Reads element type and length; `depth` counts the enclosing arrays.
    fn array_head(&mut self, depth: usize) -> Result<(ValueType, usize), Fault> {
        if depth >= MAX_DEPTH {
            return Err(self.fault(format!("arrays are nested more than {MAX_DEPTH} deep")));
        }
        let element = self.value_type()?;
        let len = self.u64()?;
        let smallest = match element {
            ValueType::String => 8,
            ValueType::Array => 12,
            fixed => fixed.fixed_size().unwrap_or(1) as u64,
        };
        if len > self.left() as u64 / smallest {
            return Err(self.fault(format!(
                "an array of {len} x {} is expected and {} bytes are left",
                element.name(),
                self.left()
            )));
        }
        Ok((element, len as usize))
    }

    /// Checks the elements of an array.
    fn skip_elements(&mut self, element: ValueType, len: usize, depth: usize) -> Result<(), Fault> {
        match element.fixed_size() {
            Some(size) => {
                self.take(len * size)?;
            }
            None if element == ValueType::String => {
                for _ in 0..len {
                    self.string()?;
                }
            }
            None => {
                for _ in 0..len {
                    let (element, len) = self.array_head(depth + 1)?;
                    self.skip_elements(element, len, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

fn show_bytes(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii();
    let dots = if bytes.len() > SHOWN { "..." } else { "" };
    format!("\"{shown}\"{dots}")
}
