//! Hessians: the mean of `x x^T` over the inputs `x` of linears, or over their output gradients.
//! One file per distinct input, and an index.
//!
//! ```text
//! general.type           "covariance"
//! covariance.key         the job, a SHA-256 in hexadecimal
//! covariance.columns     u32; the length of x
//! covariance.rows        array of u64: rows summed, for each matrix (expert) of the tensors
//! covariance.tensors     array of strings: the tensors with this input
//! covariance.checksums   array of strings: SHA-256 of the data of each tensor of the file
//! covariance.checksum    string: SHA-256 of all fields above, and of the names and lengths of the file's tensors
//! mean                   f32 [columns (columns + 1) / 2]: the upper triangle row by row; for experts, over all of them
//! mean.E                 the same for expert E alone, if it has enough rows
//! sample                 f32 [columns, k]: held-out rows; for experts, of all of them
//! sample.E               the same for expert E
//! ```
//!
//! The index has the type "covariance-index" and the checksums of the files it lists. It is written
//! last, and marks a complete directory.

use super::gguf::{
    Array, DEFAULT_ALIGNMENT, Endian, Layout, Metadata, Shape, TensorInfo, Value, ValueType,
    Writer, keys, parse,
};
use super::map::Map;
use super::snapshot::{Key, Packer};
use super::types::GgmlType;
use super::{Error, Result, hex, le_bytes, shown};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const TYPE: &str = "covariance";
const INDEX_TYPE: &str = "covariance-index";
const KEY: &str = "covariance.key";
const COLUMNS: &str = "covariance.columns";
const ROWS: &str = "covariance.rows";
const TENSORS: &str = "covariance.tensors";
const CHECKSUMS: &str = "covariance.checksums";
const CHECKSUM: &str = "covariance.checksum";
const FILES: &str = "covariance.files";

/// Name of the index in its directory.
pub const INDEX: &str = "index.gguf";

/// Remedy for an unusable directory.
pub const AGAIN: &str = "remove the directory and collect the Hessians again";

/// Size of the upper triangle of a symmetric matrix, diagonal included.
pub fn triangle(columns: usize) -> usize {
    columns * (columns + 1) / 2
}

/// Header of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The job that produced it.
    pub key: Key,
    /// Length of an input row.
    pub columns: usize,
    /// Number of summed rows, for each matrix of the tensors.
    pub rows: Vec<u64>,
    /// The tensors with this input.
    pub tensors: Vec<String>,
}

/// A part of a file: of one matrix of several, by its index, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The mean of `x x^T`.
    Mean(Option<usize>),
    /// Held-out rows, not part of the mean.
    Sample(Option<usize>),
}

impl Part {
    fn name(self) -> String {
        let (stem, matrix) = match self {
            Part::Mean(matrix) => ("mean", matrix),
            Part::Sample(matrix) => ("sample", matrix),
        };
        matrix.map_or(stem.to_owned(), |matrix| format!("{stem}.{matrix}"))
    }

    fn of(name: &str) -> Option<Part> {
        let (stem, matrix) = match name.split_once('.') {
            Some((stem, number)) => (stem, Some(number.parse().ok()?)),
            None => (name, None),
        };
        let part = match stem {
            "mean" => Part::Mean(matrix),
            "sample" => Part::Sample(matrix),
            _ => return None,
        };
        // Digits only: no sign, no leading zero.
        (part.name() == name).then_some(part)
    }
}

/// Streams the numbers of a part in pieces; every call gives the same numbers.
pub type Pieces<'p> = Box<dyn Fn(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> + Sync + 'p>;

/// A part to write.
pub struct Writing<'p> {
    /// The part.
    pub part: Part,
    /// Number of rows of a sample; unused for means.
    pub rows: usize,
    /// Its numbers.
    pub pieces: Pieces<'p>,
}

/// Writes a file. Returns its checksum and its size in bytes.
///
/// # Errors
/// Non-finite numbers; I/O errors.
///
/// # Panics
/// If the size of a part differs from the header.
pub fn write(path: &Path, head: &Head, parts: &[Writing<'_>]) -> Result<(String, u64)> {
    let mut infos = Vec::with_capacity(parts.len());
    let mut checksums = Vec::with_capacity(parts.len());
    for Writing { part, rows, pieces } in parts {
        let dims = match part {
            Part::Mean(_) => vec![triangle(head.columns) as u64],
            Part::Sample(_) => vec![head.columns as u64, *rows as u64],
        };
        let mut digest = Sha256::new();
        pieces(&mut |piece| {
            if !piece.iter().fold(true, |all, x| all & x.is_finite()) {
                let tensor = shown(head.tensors.first().map_or("", String::as_str));
                let what =
                    format!("the input Hessian of {tensor} has values that are not finite in f32");
                return Err(Error::Bad {
                    path: path.to_owned(),
                    what,
                });
            }
            digest.update(le_bytes(piece));
            Ok(())
        })?;
        checksums.push(hex(&digest.finalize()));
        let bad = |what| Error::Bad {
            path: path.to_owned(),
            what,
        };
        let shape = Shape::new(&dims).map_err(bad)?;
        infos.push(TensorInfo {
            name: part.name().into(),
            shape,
            ggml_type: GgmlType::F32,
        });
    }
    let lengths = infos
        .iter()
        .map(|info| (&*info.name, info.shape.elements()));
    let checksum = checksum(head, lengths.zip(&checksums));
    let numbers = head.rows.iter().map(|rows| Value::U64(*rows));
    let mut metadata = Metadata::new();
    metadata.set(keys::TYPE, Value::str(TYPE));
    metadata.set(KEY, Value::str(hex(&head.key)));
    metadata.set(COLUMNS, Value::U32(head.columns as u32));
    metadata.set(
        ROWS,
        Value::Array(Array::of_values(ValueType::U64, numbers)),
    );
    metadata.set(TENSORS, Value::Array(Array::of_strings(&head.tensors)));
    metadata.set(CHECKSUMS, Value::Array(Array::of_strings(&checksums)));
    metadata.set(CHECKSUM, Value::str(checksum.clone()));
    let layout = Layout::new(&metadata, &infos, DEFAULT_ALIGNMENT);
    let bytes = layout.file_bytes();
    let mut writer = Writer::create(path, layout, &[])?;
    for Writing { pieces, .. } in parts {
        pieces(&mut |piece| writer.write(&le_bytes(piece)))?;
    }
    writer.finish()?;
    Ok((checksum, bytes))
}

/// A file with a checked header. Its numbers are checked as they are read.
pub struct File {
    map: Map,
    head: Head,
    checksum: String,
    /// Byte range and checksum of each part.
    parts: BTreeMap<Part, (Range<usize>, String)>,
}

impl File {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or is not a Hessian.
    pub fn open(path: &Path) -> Result<File> {
        let map = Map::open(path)?;
        let bad = |what: String| Error::Bad {
            path: path.to_owned(),
            what: format!("{what}; {AGAIN}"),
        };
        let (head, checksum, parts) = parsed(map.bytes()).map_err(bad)?;
        Ok(File {
            map,
            head,
            checksum,
            parts,
        })
    }

    /// The header.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Checksum of the whole file.
    pub fn checksum(&self) -> &str {
        &self.checksum
    }

    /// True if the file has this part.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains_key(&part)
    }

    /// The numbers of a part: the upper triangle of a mean, row by row, or the rows of a sample.
    ///
    /// # Errors
    /// Damaged or non-finite numbers.
    pub fn read(&self, part: Part) -> Result<Option<Vec<f32>>> {
        let Some((range, checksum)) = self.parts.get(&part) else {
            return Ok(None);
        };
        self.map.check_length()?;
        let bytes = &self.map.bytes()[range.clone()];
        let bad = |what: String| Error::Bad {
            path: self.map.path().to_owned(),
            what: format!("{what}; {AGAIN}"),
        };
        if !agrees(&hex(&Sha256::digest(bytes)), Some(checksum)) {
            return Err(bad(format!("the checksum of '{}' is wrong", part.name())));
        }
        let numbers = Endian::Little.f32s(bytes);
        match numbers.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(bad(format!(
                "number {i} of '{}' is {}",
                part.name(),
                numbers[i]
            ))),
            None => Ok(Some(numbers)),
        }
    }
}

type Parts = BTreeMap<Part, (Range<usize>, String)>;

fn parsed(bytes: &[u8]) -> std::result::Result<(Head, String, Parts), String> {
    let header = parse(bytes)?;
    if header.endian != Endian::Little {
        return Err("it is big-endian".into());
    }
    let metadata = &header.metadata;
    expect_type(metadata, TYPE)?;
    let columns = match metadata.get(COLUMNS) {
        Some(Value::U32(n)) if *n > 0 => *n as usize,
        _ => return Err(format!("'{COLUMNS}' is not a number above 0")),
    };
    let rows: Vec<u64> = match metadata.get(ROWS) {
        Some(Value::Array(array)) if array.element() == ValueType::U64 && !array.is_empty() => {
            array.values().filter_map(|value| value.as_u64()).collect()
        }
        _ => return Err(format!("'{ROWS}' is not a list of row counts")),
    };
    if rows
        .iter()
        .try_fold(0u64, |sum, n| sum.checked_add(*n))
        .is_none_or(|sum| sum == 0)
    {
        return Err(format!("'{ROWS}' has an impossible sum"));
    }
    let head = Head {
        key: key(metadata)?,
        columns,
        rows,
        tensors: strings(metadata, TENSORS)?,
    };
    let checksums = strings(metadata, CHECKSUMS)?;
    if head.tensors.is_empty() || checksums.len() != header.tensors.len() {
        return Err(format!(
            "'{TENSORS}' or '{CHECKSUMS}' is too short or too long"
        ));
    }
    let lengths = header
        .tensors
        .iter()
        .map(|(info, _)| (&*info.name, info.shape.elements()));
    let found = checksum(&head, lengths.zip(&checksums));
    if !agrees(&found, metadata.get(CHECKSUM).and_then(Value::as_str)) {
        return Err("the checksum of its head is wrong".into());
    }
    let mut parts = Parts::new();
    for ((info, offset), checksum) in header.tensors.iter().zip(checksums) {
        let bad = |why: &str| Err(format!("tensor {} {why}", shown(&info.name)));
        let Some(part) = Part::of(&info.name) else {
            return bad("is not part of a Hessian");
        };
        if info.ggml_type != GgmlType::F32 {
            return bad("is not f32");
        }
        let (fits, Part::Mean(matrix) | Part::Sample(matrix)) = match part {
            Part::Mean(_) => (info.shape.elements() == triangle(columns) as u64, part),
            Part::Sample(_) => (info.shape.row_len() == columns as u64, part),
        };
        if !fits || matrix.is_some_and(|matrix| matrix >= head.rows.len()) {
            return bad("has a shape that contradicts the other fields");
        }
        let start = *offset as usize;
        parts.insert(part, (start..start + info.bytes() as usize, checksum));
    }
    match parts.contains_key(&Part::Mean(None)) {
        true => Ok((head, found, parts)),
        false => Err("it has no tensor 'mean'".into()),
    }
}

fn expect_type(metadata: &Metadata<'_>, wanted: &str) -> std::result::Result<(), String> {
    match metadata.get(keys::TYPE).and_then(Value::as_str) {
        Some(found) if found == wanted => Ok(()),
        _ => Err(format!(
            "'{}' is not {wanted:?}; was it written by quantier imatrix --hessians?",
            keys::TYPE
        )),
    }
}

fn key(metadata: &Metadata<'_>) -> std::result::Result<Key, String> {
    let bad = || format!("'{KEY}' is not a SHA-256 in hexadecimal");
    let text = metadata
        .get(KEY)
        .and_then(Value::as_str)
        .filter(|text| text.is_ascii())
        .ok_or_else(bad)?;
    let mut key = Key::default();
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2).ok_or_else(bad)?, 16)
            .map_err(|_| bad())?;
    }
    // A single spelling, so that every change is detected.
    if hex(&key) == text {
        Ok(key)
    } else {
        Err(bad())
    }
}

fn strings(metadata: &Metadata<'_>, key: &str) -> std::result::Result<Vec<String>, String> {
    let bad = || format!("'{key}' is not a list of texts");
    let array = metadata
        .get(key)
        .and_then(Value::as_array)
        .filter(|a| a.element() == ValueType::String);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| bad());
    array.ok_or_else(bad)?.strings().map(text).collect()
}

/// True if a checksum matches the stored one. Fuzzers cannot guess checksums: in fuzzing builds all
/// of them match, so that the code behind the check is reached.
fn agrees(found: &str, written: Option<&str>) -> bool {
    cfg!(fuzzing) || written == Some(found)
}

/// Checksum of the header, and of the names, lengths and checksums of all parts.
fn checksum<'c>(head: &Head, parts: impl Iterator<Item = ((&'c str, u64), &'c String)>) -> String {
    let mut packed = Packer::default();
    packed
        .bytes(&head.key)
        .number(head.columns)
        .list(head.rows.iter().map(|rows| rows.to_le_bytes()));
    packed.number(head.tensors.len());
    for tensor in &head.tensors {
        packed.text(tensor);
    }
    for ((name, numbers), checksum) in parts {
        packed.text(name).number(numbers as usize).text(checksum);
    }
    hex(&Sha256::digest(&packed.0))
}

/// The files of a complete directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    /// The job that produced them.
    pub key: Key,
    /// Names and checksums of the files.
    pub files: Vec<(String, String)>,
}

impl Index {
    /// Writes the index of a directory.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.set(keys::TYPE, Value::str(INDEX_TYPE));
        metadata.set(KEY, Value::str(hex(&self.key)));
        metadata.set(
            FILES,
            Value::Array(Array::of_strings(self.files.iter().map(|(name, _)| name))),
        );
        metadata.set(
            CHECKSUMS,
            Value::Array(Array::of_strings(
                self.files.iter().map(|(_, checksum)| checksum),
            )),
        );
        metadata.set(CHECKSUM, Value::str(self.checksum()));
        Writer::create(&directory.join(INDEX), Layout::of_metadata(&metadata), &[])?.finish()
    }

    /// Reads the index of a directory.
    ///
    /// # Errors
    /// If it is missing, unreadable or damaged.
    pub fn read(directory: &Path) -> Result<Index> {
        let path = directory.join(INDEX);
        if directory.is_dir() && !path.exists() {
            let what =
                "it holds no complete Hessians; run `quantier imatrix --hessians` to its end"
                    .into();
            return Err(Error::Bad {
                path: directory.to_owned(),
                what,
            });
        }
        let map = Map::open(&path)?;
        Index::parsed(map.bytes()).map_err(|what| Error::Bad {
            path,
            what: format!("{what}; {AGAIN}"),
        })
    }

    fn parsed(bytes: &[u8]) -> std::result::Result<Index, String> {
        let header = parse(bytes)?;
        expect_type(&header.metadata, INDEX_TYPE)?;
        let names = strings(&header.metadata, FILES)?;
        let checksums = strings(&header.metadata, CHECKSUMS)?;
        let inside = |name: &String| {
            !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.')
        };
        if names.len() != checksums.len() || !names.iter().all(inside) {
            return Err(format!(
                "'{FILES}' and '{CHECKSUMS}' are not a list of files"
            ));
        }
        let index = Index {
            key: key(&header.metadata)?,
            files: names.into_iter().zip(checksums).collect(),
        };
        match agrees(
            &index.checksum(),
            header.metadata.get(CHECKSUM).and_then(Value::as_str),
        ) {
            true => Ok(index),
            false => Err("its checksum is wrong".into()),
        }
    }

    fn checksum(&self) -> String {
        let mut packed = Packer::default();
        packed.bytes(&self.key);
        for (name, checksum) in &self.files {
            packed.text(name).text(checksum);
        }
        hex(&Sha256::digest(&packed.0))
    }
}
