//! Metadata: typed values in file order. Strings and arrays borrow from the file.

use super::endian::{Endian, reverse_elements};
use super::keys;
use super::read::DEFAULT_ALIGNMENT;
use byteorder::{ByteOrder, LittleEndian};
use std::borrow::Cow;
use std::fmt;

/// Type of a metadata value, with its number in the file.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with this number.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.get(id as usize).copied()
    }

    /// The format's name of the type, for example `u32`.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "str",
            ValueType::Array => "arr",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Size in bytes; `None` for strings and arrays, whose size varies.
    pub(crate) fn fixed_size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

/// A metadata value. Strings are bytes: the format does not promise UTF-8, and real vocabularies
/// contain other bytes.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Cow<'a, [u8]>),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// A string value.
    pub fn str(s: impl Into<Cow<'a, str>>) -> Value<'a> {
        Value::String(match s.into() {
            Cow::Borrowed(s) => Cow::Borrowed(s.as_bytes()),
            Cow::Owned(s) => Cow::Owned(s.into_bytes()),
        })
    }

    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// A fixed-size value from its bytes; `None` if the length is wrong or the type has no fixed
    /// size.
    pub(crate) fn from_bytes(
        value_type: ValueType,
        bytes: &[u8],
        endian: Endian,
    ) -> Option<Value<'static>> {
        if value_type.fixed_size() != Some(bytes.len()) {
            return None;
        }
        Some(match value_type {
            ValueType::U8 => Value::U8(bytes[0]),
            ValueType::I8 => Value::I8(bytes[0] as i8),
            ValueType::U16 => Value::U16(endian.u16(bytes)),
            ValueType::I16 => Value::I16(endian.u16(bytes) as i16),
            ValueType::U32 => Value::U32(endian.u32(bytes)),
            ValueType::I32 => Value::I32(endian.u32(bytes) as i32),
            ValueType::F32 => Value::F32(f32::from_bits(endian.u32(bytes))),
            ValueType::Bool => Value::Bool(bytes[0] != 0),
            ValueType::U64 => Value::U64(endian.u64(bytes)),
            ValueType::I64 => Value::I64(endian.u64(bytes) as i64),
            ValueType::F64 => Value::F64(f64::from_bits(endian.u64(bytes))),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Appends the value in file format, without its type.
    pub fn write(&self, endian: Endian, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.push(*v as u8),
            Value::U16(v) => endian.put_u16(*v, out),
            Value::I16(v) => endian.put_u16(*v as u16, out),
            Value::U32(v) => endian.put_u32(*v, out),
            Value::I32(v) => endian.put_u32(*v as u32, out),
            Value::F32(v) => endian.put_u32(v.to_bits(), out),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => endian.put_string(v, out),
            Value::Array(v) => v.write(endian, out),
            Value::U64(v) => endian.put_u64(*v, out),
            Value::I64(v) => endian.put_u64(*v as u64, out),
            Value::F64(v) => endian.put_u64(v.to_bits(), out),
        }
    }

    /// The value as an unsigned number, if it is a non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as text, if it is a UTF-8 string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value as copied by ggml's string functions: strings, also those in an array, end at
    /// their first zero byte.
    pub fn cut_at_zeros(&self) -> Value<'a> {
        match self {
            Value::String(s) if s.contains(&0) => Value::String(Cow::Owned(until_zero(s).to_vec())),
            Value::Array(a) if a.strings().any(|s| s.contains(&0)) => {
                Value::Array(Array::of_strings(a.strings().map(until_zero)))
            }
            other => other.clone(),
        }
    }

    /// The same with owned bytes.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::U8(v) => Value::U8(v),
            Value::I8(v) => Value::I8(v),
            Value::U16(v) => Value::U16(v),
            Value::I16(v) => Value::I16(v),
            Value::U32(v) => Value::U32(v),
            Value::I32(v) => Value::I32(v),
            Value::F32(v) => Value::F32(v),
            Value::Bool(v) => Value::Bool(v),
            Value::String(v) => Value::String(Cow::Owned(v.into_owned())),
            Value::Array(v) => Value::Array(v.into_owned()),
            Value::U64(v) => Value::U64(v),
            Value::I64(v) => Value::I64(v),
            Value::F64(v) => Value::F64(v),
        }
    }

    /// The value as an array.
    pub fn as_array(&self) -> Option<&Array<'a>> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl fmt::Display for Value<'_> {
    /// Short form: strings verbatim, arrays as element type and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => f.write_str(&String::from_utf8_lossy(v)),
            Value::Array(v) => write!(f, "{} x {}", v.len, v.element.name()),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
        }
    }
}

/// A C string: the bytes before the first zero.
pub fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// An array value: its elements in little-endian file format.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    len: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// From the bytes of exactly `len` checked elements.
    pub(super) fn from_checked(
        element: ValueType,
        len: usize,
        bytes: &'a [u8],
        endian: Endian,
    ) -> Array<'a> {
        let mut bytes = Cow::Borrowed(bytes);
        if endian == Endian::Big {
            reverse_elements(endian, element, len, bytes.to_mut());
        }
        Array {
            element,
            len,
            bytes,
        }
    }

    /// The same with owned bytes.
    pub fn into_owned(self) -> Array<'static> {
        Array {
            bytes: Cow::Owned(self.bytes.into_owned()),
            ..self
        }
    }

    /// An array of strings.
    pub fn of_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Array<'static> {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for s in strings {
            Endian::Little.put_string(s.as_ref(), &mut bytes);
            len += 1;
        }
        Array {
            element: ValueType::String,
            len,
            bytes: Cow::Owned(bytes),
        }
    }

    /// An array of values of one type.
    ///
    /// # Panics
    /// If a value is of another type than `element`.
    pub fn of_values<'v>(
        element: ValueType,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> Array<'static> {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for value in values {
            assert_eq!(value.value_type(), element);
            value.write(Endian::Little, &mut bytes);
            len += 1;
        }
        Array {
            element,
            len,
            bytes: Cow::Owned(bytes),
        }
    }

    /// The elements' type.
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of an array of strings; empty for any other.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = if self.element == ValueType::String {
            &self.bytes
        } else {
            &[]
        };
        std::iter::from_fn(move || {
            let (length, after) = rest.split_at_checked(8)?;
            let (string, after) = after.split_at(LittleEndian::read_u64(length) as usize);
            rest = after;
            Some(string)
        })
    }

    /// The elements of an array of fixed-size values; empty for strings and arrays.
    pub fn values(&self) -> impl Iterator<Item = Value<'static>> {
        let size = self.element.fixed_size();
        let bytes: &[u8] = if size.is_some() { &self.bytes } else { &[] };
        bytes
            .chunks_exact(size.unwrap_or(1))
            .filter_map(|chunk| Value::from_bytes(self.element, chunk, Endian::Little))
    }

    /// The elements of an array of arrays; empty for any other.
    pub fn arrays(&self) -> impl Iterator<Item = Array<'_>> {
        let mut rest: &[u8] = if self.element == ValueType::Array {
            &self.bytes
        } else {
            &[]
        };
        std::iter::from_fn(move || {
            let mut cursor = super::read::Cursor::new(rest, Endian::Little);
            let array = cursor.array(0).ok()?;
            rest = &rest[cursor.position()..];
            Some(array)
        })
    }

    /// The elements, whatever their type.
    pub fn elements(&self) -> impl Iterator<Item = Value<'_>> {
        let strings = self.strings().map(|s| Value::String(Cow::Borrowed(s)));
        // All parts of a chain need the same lifetime.
        fn shorter<'s>(value: Value<'static>) -> Value<'s> {
            value
        }
        let values = self.values().map(shorter);
        strings.chain(values).chain(self.arrays().map(Value::Array))
    }

    fn write(&self, endian: Endian, out: &mut Vec<u8>) {
        endian.put_u32(self.element as u32, out);
        endian.put_u64(self.len as u64, out);
        let start = out.len();
        match self.element {
            // Any byte but 0 reads as true; true is written as 1.
            ValueType::Bool => out.extend(self.bytes.iter().map(|&b| u8::from(b != 0))),
            _ => out.extend(&*self.bytes),
        }
        if endian == Endian::Big {
            reverse_elements(Endian::Little, self.element, self.len, &mut out[start..]);
        }
    }
}

/// Metadata in the order of the file; keys are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata<'a> {
    entries: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Metadata<'a> {
    /// No entries.
    pub fn new() -> Metadata<'a> {
        Metadata::default()
    }

    /// From entries with keys already checked to be unique.
    pub(super) fn from_checked(entries: Vec<(Cow<'a, str>, Value<'a>)>) -> Metadata<'a> {
        Metadata { entries }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Sets a key. As in ggml, a key set again moves to the end.
    pub fn set(&mut self, key: impl Into<Cow<'a, str>>, value: Value<'a>) {
        let key = key.into();
        self.remove(&key);
        self.entries.push((key, value));
    }

    /// Removes a key if present.
    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|(k, _)| k != key);
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.entries.iter().map(|(k, v)| (&**k, v))
    }

    /// The alignment of tensor data according to this metadata, in bytes.
    pub fn alignment(&self) -> u64 {
        self.get(keys::ALIGNMENT)
            .and_then(Value::as_u64)
            .unwrap_or(DEFAULT_ALIGNMENT)
    }

    /// The metadata as copied by ggml, value by value: see [`Value::cut_at_zeros`].
    pub fn cut_at_zeros(&self) -> Metadata<'a> {
        Metadata {
            entries: self
                .entries
                .iter()
                .map(|(k, v)| (k.clone(), v.cut_at_zeros()))
                .collect(),
        }
    }

    /// The same with owned keys and values.
    pub fn into_owned(self) -> Metadata<'static> {
        let owned = |(k, v): (Cow<'a, str>, Value<'a>)| (k.into_owned().into(), v.into_owned());
        Metadata {
            entries: self.entries.into_iter().map(owned).collect(),
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Dimensions of a tensor, innermost (row length) first; one to four, each at least 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [u64; 4],
    rank: u8,
}

impl Shape {
    /// Shape of one to four dimensions.
    ///
    /// # Errors
    /// No dimensions or more than four, a zero, or a product beyond 2^63.
    pub fn new(dims: &[u64]) -> Result<Shape, String> {
        if dims.is_empty() || dims.len() > 4 {
            return Err(format!(
                "it has {} dimensions; ggml supports one to four",
                dims.len()
            ));
        }
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        let product = all.iter().try_fold(1u64, |p, &d| p.checked_mul(d));
        if all.contains(&0) {
            return Err(format!(
                "dimension {} is 0",
                all.iter().position(|&d| d == 0).unwrap_or(0)
            ));
        }
        if product.is_none_or(|p| p > i64::MAX as u64) {
            return Err(format!(
                "its dimensions {dims:?} multiply to more than 2^63 weights"
            ));
        }
        Ok(Shape {
            dims: all,
            rank: dims.len() as u8,
        })
    }

    /// The dimensions as given.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.rank as usize]
    }

    /// All four dimensions; missing ones are 1.
    pub fn four(&self) -> [u64; 4] {
        self.dims
    }

    /// Weights per row.
    pub fn row_len(&self) -> u64 {
        self.dims[0]
    }

    /// Total number of rows.
    pub fn rows(&self) -> u64 {
        self.dims[1] * self.dims[2] * self.dims[3]
    }

    /// Total number of weights.
    pub fn elements(&self) -> u64 {
        self.dims[0] * self.rows()
    }

    /// The shape without trailing ones, as ggml counts dimensions.
    pub fn trimmed(&self) -> Shape {
        let rank = self.dims.iter().rposition(|&d| d > 1).unwrap_or(0) as u8 + 1;
        Shape {
            dims: self.dims,
            rank,
        }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Shape {
    /// `[256, 4096]`, innermost first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:?}", self.dims()))
    }
}
