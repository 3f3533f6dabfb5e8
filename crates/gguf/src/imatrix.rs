//! Importance matrices: for each linear of a model, the sums of its squared inputs per channel.
//!
//! Two formats: GGUF (`NAME.in_sum2` and `NAME.counts` tensors), and the older `.dat`, which is little-endian:
//!
//! ```text
//! entries i32
//! name length i32, name, calls i32, values i32, f32 x values (mean x calls)     for each entry
//! last chunk i32, dataset length i32, dataset                                   optional
//! ```

use super::gguf::{
    Array, Endian, Layout, Metadata, Shape, TensorInfo, Value, ValueType, Writer, parse, until_zero,
};
use super::map::Map;
use super::output::Output;
use super::safetensors::lfs_pointer;
use super::types::GgmlType;
use super::{Error, Result, le_bytes, shown};
use byteorder::{ByteOrder, LittleEndian};
use std::collections::BTreeMap;
use std::path::Path;

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// Bytes of a tensor name that ggml keeps.
const MAX_NAME: usize = 63;

/// A format of importance matrices, by llama-imatrix's `--output-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Sums and counts of each matrix as tensors of a GGUF file.
    #[default]
    Gguf,
    /// The older format: means times calls. It stores one count per tensor and only the last
    /// dataset. Entries without activations are omitted; a matrix without activations, beside
    /// others with some, is filled with ones.
    Dat,
}

/// Statistics of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Sums of squared activations, `[matrices, channels]`.
    pub sums: Vec<f32>,
    /// Number of activations summed for each matrix (one for a plain tensor, one per expert for a
    /// 3-D tensor). An entry of a `.dat` file has a single count for all its matrices.
    pub counts: Vec<i64>,
}

impl Entry {
    /// Mean squares, one per channel and matrix: the importance weights of the quantizers. A matrix
    /// without activations gets all ones, as in the reference.
    pub fn means(&self) -> Vec<f32> {
        let per_count = self.sums.len() / self.counts.len().max(1);
        let count_of = |i: usize| self.counts[i / per_count] as f32;
        let mean = |(i, &sum): (usize, &f32)| {
            if count_of(i) > 0.0 {
                sum / count_of(i)
            } else {
                1.0
            }
        };
        self.sums.iter().enumerate().map(mean).collect()
    }
}

/// An importance matrix: statistics by tensor name, and their origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// By tensor name.
    pub entries: BTreeMap<String, Entry>,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Number of chunks; 0 if unknown.
    pub chunk_count: u32,
    /// Tokens per chunk; 0 if unknown.
    pub chunk_size: u32,
}

impl Imatrix {
    /// Reads either format. All values of the result are finite and non-negative.
    ///
    /// # Errors
    /// A file that cannot be read or is not a valid importance matrix.
    pub fn read(path: &Path) -> Result<Imatrix> {
        let map = Map::open(path)?;
        Imatrix::parse(map.bytes()).map_err(|what| Error::Bad {
            path: path.to_owned(),
            what,
        })
    }

    /// Reads either format from a file's bytes.
    ///
    /// # Errors
    /// The defect and its place; the caller adds the file's name.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Imatrix, String> {
        if let Some(pointer) = lfs_pointer(bytes) {
            return Err(pointer);
        }
        let imatrix = if bytes.starts_with(b"GGUF") {
            parse_gguf(bytes)?
        } else {
            parse_dat(bytes)?
        };
        for (name, entry) in &imatrix.entries {
            let bad = |v: &f32| !v.is_finite() || *v < 0.0;
            if let Some(i) = entry.sums.iter().position(bad) {
                return Err(format!(
                    "value {i} of {} is {}; sums of squares are finite and not negative: compute the importance matrix again",
                    shown(name),
                    entry.sums[i]
                ));
            }
        }
        Ok(imatrix)
    }

    /// Writes one of the formats, byte for byte as llama-imatrix does for the same sums.
    ///
    /// # Errors
    /// A name too long for the format, a target among the `inputs`, and I/O errors.
    pub fn write(&self, path: &Path, format: Format, inputs: &[&Path]) -> Result<()> {
        match format {
            Format::Gguf => self.write_gguf_beside(path, inputs),
            Format::Dat => self.write_dat_beside(path, inputs),
        }
    }

    /// Writes the GGUF format.
    ///
    /// # Errors
    /// As [`Imatrix::write`].
    pub fn write_gguf(&self, path: &Path) -> Result<()> {
        self.write(path, Format::Gguf, &[])
    }

    /// Writes the `.dat` format; [`Format::Dat`] lists what it loses.
    ///
    /// # Errors
    /// As [`Imatrix::write`].
    pub fn write_dat(&self, path: &Path) -> Result<()> {
        self.write(path, Format::Dat, &[])
    }

    fn write_gguf_beside(&self, path: &Path, inputs: &[&Path]) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::str("imatrix"));
        metadata.set(DATASETS, Value::Array(Array::of_strings(&self.datasets)));
        metadata.set(CHUNK_COUNT, Value::U32(self.chunk_count));
        metadata.set(CHUNK_SIZE, Value::U32(self.chunk_size));
        let mut tensors = Vec::new();
        for (name, entry) in self.filled() {
            let matrices = entry.counts.len() as u64;
            let mut add = |suffix, row: u64| -> Result<()> {
                let bad = |what| Error::Bad {
                    path: path.to_owned(),
                    what: format!("tensor {}: {what}", shown(name)),
                };
                if name.len() + SUMS.len() > MAX_NAME {
                    let room = MAX_NAME - SUMS.len();
                    return Err(bad(format!(
                        "a name of {} bytes is too long for this format ({room}); choose dat",
                        name.len()
                    )));
                }
                // A single row has one dimension, as in ggml.
                let shape = if matrices == 1 {
                    Shape::new(&[row])
                } else {
                    Shape::new(&[row, matrices])
                };
                let shape = shape.map_err(bad)?;
                tensors.push(TensorInfo {
                    name: format!("{name}{suffix}").into(),
                    shape,
                    ggml_type: GgmlType::F32,
                });
                Ok(())
            };
            add(SUMS, entry.sums.len() as u64 / matrices)?;
            add(COUNTS, 1)?;
        }
        let layout = Layout::new(&metadata, &tensors, super::gguf::DEFAULT_ALIGNMENT);
        let mut writer = Writer::create(path, layout, inputs)?;
        for (_, entry) in self.filled() {
            writer.write(&le_bytes(&entry.sums))?;
            let counts: Vec<f32> = entry.counts.iter().map(|&count| count as f32).collect();
            writer.write(&le_bytes(&counts))?;
        }
        writer.finish()
    }

    /// Entries that a GGUF file can store: those with sums and counts.
    fn filled(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries
            .iter()
            .filter(|(_, entry)| !entry.sums.is_empty() && !entry.counts.is_empty())
    }

    fn write_dat_beside(&self, path: &Path, inputs: &[&Path]) -> Result<()> {
        let stored: Vec<_> = self
            .filled()
            .filter(|(_, entry)| entry.counts.iter().any(|&c| c != 0))
            .collect();
        let mut bytes = Vec::new();
        let put = |number: usize, out: &mut Vec<u8>| out.extend(le_i32(number as i32));
        put(stored.len(), &mut bytes);
        let chunk = i64::from(self.chunk_size.max(1));
        for (name, entry) in stored {
            // Rounded up, so that part of a chunk counts as one call.
            let most = entry.counts.iter().copied().max().unwrap_or(0);
            let calls = ((most + (chunk - 1)) / chunk) as i32;
            put(name.len(), &mut bytes);
            bytes.extend(name.as_bytes());
            bytes.extend(le_i32(calls));
            put(entry.sums.len(), &mut bytes);
            let mut sums = entry.means();
            sums.iter_mut().for_each(|mean| *mean *= calls as f32);
            bytes.extend(le_bytes(&sums));
        }
        let dataset = self.datasets.last().map_or("", String::as_str);
        put(self.chunk_count as usize, &mut bytes);
        put(dataset.len(), &mut bytes);
        bytes.extend(dataset.as_bytes());
        let mut output = Output::create(path, bytes.len() as u64, inputs)?;
        output.write(&bytes)?;
        output.finish()
    }
}

fn le_i32(number: i32) -> [u8; 4] {
    let mut bytes = [0; 4];
    LittleEndian::write_i32(&mut bytes, number);
    bytes
}

fn parse_gguf(bytes: &[u8]) -> std::result::Result<Imatrix, String> {
    let header = parse(bytes)?;
    let number = |key: &str| -> std::result::Result<u32, String> {
        match header.metadata.get(key) {
            Some(Value::U32(n)) => Ok(*n),
            Some(v) => Err(format!(
                "'{key}' is of type {}; it must be u32",
                v.value_type().name()
            )),
            None => Err(format!(
                "'{key}' is missing; is this an importance matrix? llama-imatrix and quantier imatrix write one"
            )),
        }
    };
    let datasets = match header.metadata.get(DATASETS) {
        Some(Value::Array(array)) if array.element() == ValueType::String => array
            .strings()
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .collect(),
        Some(v) => {
            return Err(format!(
                "'{DATASETS}' is of type {}; it must be an array of strings",
                v.value_type().name()
            ));
        }
        None => {
            return Err(format!(
                "'{DATASETS}' is missing; is this an importance matrix? llama-imatrix and quantier imatrix write one"
            ));
        }
    };
    let mut halves: BTreeMap<&str, [Option<Vec<f32>>; 2]> = BTreeMap::new();
    for (tensor, offset) in &header.tensors {
        let name: &str = &tensor.name;
        let (of, half) = match (name.strip_suffix(SUMS), name.strip_suffix(COUNTS)) {
            (Some(of), _) => (of, 0),
            (_, Some(of)) => (of, 1),
            _ => continue,
        };
        if tensor.ggml_type != GgmlType::F32 {
            return Err(format!(
                "tensor '{name}' is of type {}; it must be f32",
                tensor.ggml_type
            ));
        }
        let data = &bytes[*offset as usize..][..tensor.bytes() as usize];
        halves.entry(of).or_default()[half] = Some(header.endian.f32s(data));
    }
    if halves.is_empty() {
        return Err("it holds no statistics (no tensor ends in .in_sum2)".into());
    }
    let mut entries = BTreeMap::new();
    for (name, half) in halves {
        let [Some(sums), Some(counts)] = half else {
            return Err(format!("'{name}' has only one of {SUMS} and {COUNTS}"));
        };
        if !sums.len().is_multiple_of(counts.len()) {
            return Err(format!(
                "'{name}' has {} sums for {} counts, which is not a multiple",
                sums.len(),
                counts.len()
            ));
        }
        if let Some(count) = counts.iter().find(|c| !c.is_finite() || **c < 0.0) {
            return Err(format!("'{name}' has a count of {count}"));
        }
        // Counts are whole numbers in f32; f32::round equals C's lround here.
        entries.insert(
            name.to_owned(),
            Entry {
                sums,
                counts: counts.iter().map(|c| c.round() as i64).collect(),
            },
        );
    }
    Ok(Imatrix {
        entries,
        datasets,
        chunk_count: number(CHUNK_COUNT)?,
        chunk_size: number(CHUNK_SIZE)?,
    })
}

fn parse_dat(bytes: &[u8]) -> std::result::Result<Imatrix, String> {
    let mut rest = bytes;
    let mut take = |n: usize, what: &str| -> std::result::Result<&[u8], String> {
        let at = bytes.len() - rest.len();
        let (taken, after) = rest.split_at_checked(n).ok_or_else(|| {
            format!(
                "it ends at byte {} within {what}, which begins at byte {at} and has {n} bytes",
                bytes.len()
            )
        })?;
        rest = after;
        Ok(taken)
    };
    let int = LittleEndian::read_i32;
    let n_entries = int(take(
        4,
        "the number of entries (is this an importance matrix?)",
    )?);
    if n_entries < 1 {
        return Err(format!(
            "it claims {n_entries} entries; is this an importance matrix?"
        ));
    }
    let mut entries = BTreeMap::new();
    for i in 0..n_entries {
        let length = int(take(4, &format!("the name length of entry {i}"))?);
        let length = usize::try_from(length)
            .map_err(|_| format!("entry {i} has a name of {length} bytes"))?;
        let name = take(length, &format!("the name of entry {i}"))?;
        let name = std::str::from_utf8(until_zero(name)).map_err(|_| {
            format!("the name of entry {i} is not UTF-8; is this an importance matrix?")
        })?;
        let quoted = shown(name);
        let calls = int(take(4, &format!("the call count of {quoted}"))?);
        let values = int(take(4, &format!("the number of values of {quoted}"))?);
        let length = usize::try_from(values)
            .ok()
            .filter(|&n| n > 0)
            .and_then(|n| n.checked_mul(4));
        let length = length.ok_or_else(|| format!("{quoted} claims {values} values"))?;
        let sums = Endian::Little.f32s(take(length, &format!("the values of {quoted}"))?);
        // A count of 0 marks values that are means already.
        entries.insert(
            name.to_owned(),
            Entry {
                sums,
                counts: vec![i64::from(calls.max(0)).max(1)],
            },
        );
    }
    let mut imatrix = Imatrix {
        entries,
        ..Imatrix::default()
    };
    if let Ok(chunks) = take(4, "the chunk count") {
        imatrix.chunk_count = int(chunks).max(0) as u32;
        if let Ok(length) = take(4, "the length of the dataset's name") {
            let length = usize::try_from(int(length)).unwrap_or(0);
            if let (1.., Ok(name)) = (length, take(length, "the dataset's name")) {
                imatrix
                    .datasets
                    .push(String::from_utf8_lossy(until_zero(name)).into_owned());
            }
        }
    }
    Ok(imatrix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Imatrix {
        let entry = |counts: &[i64]| Entry {
            sums: (0..8).map(|i| i as f32).collect(),
            counts: counts.to_vec(),
        };
        Imatrix {
            entries: [
                ("a.weight".into(), entry(&[4])),
                ("b.weight".into(), entry(&[2, 0])),
            ]
            .into(),
            datasets: vec!["wiki.txt".into(), "code.txt".into()],
            chunk_count: 7,
            chunk_size: 512,
        }
    }

    #[test]
    fn gguf_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        example().write_gguf(&path).unwrap();
        assert_eq!(Imatrix::read(&path).unwrap(), example());
    }

    #[test]
    fn dat_preserves_the_means() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        example().write_dat(&path).unwrap();
        let back = Imatrix::read(&path).unwrap();
        assert_eq!(
            back.entries["a.weight"].means(),
            example().entries["a.weight"].means()
        );
        assert_eq!(
            (back.chunk_count, &*back.datasets),
            (7, &["code.txt".to_string()][..])
        );
    }

    #[test]
    fn names_beyond_the_ggml_limit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        let mut long = example();
        long.entries.insert(
            "x".repeat(55),
            Entry {
                sums: vec![1.0],
                counts: vec![1],
            },
        );
        long.write_gguf(&path).unwrap();
        long.entries.insert(
            "x".repeat(56),
            Entry {
                sums: vec![1.0],
                counts: vec![1],
            },
        );
        assert!(
            long.write_gguf(&path)
                .unwrap_err()
                .to_string()
                .contains("56 bytes")
        );
        long.write_dat(&path).unwrap();
    }

    #[test]
    fn experts_without_activations_are_all_ones() {
        assert_eq!(
            example().entries["b.weight"].means(),
            [0.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0]
        );
    }

    #[test]
    fn negative_and_nonfinite_sums_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let mut imatrix = example();
            imatrix.entries.get_mut("b.weight").unwrap().sums[1] = value;
            for name in ["m.gguf", "m.dat"] {
                let path = dir.path().join(name);
                if name == "m.dat" {
                    imatrix.write_dat(&path).unwrap()
                } else {
                    imatrix.write_gguf(&path).unwrap()
                }
                let error = Imatrix::read(&path).unwrap_err().to_string();
                assert!(error.contains("value 1 of 'b.weight'"), "{error}");
            }
        }
    }

    #[test]
    fn truncated_dat_files_are_refused_or_lose_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        example().write_dat(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            let _ = Imatrix::parse(&bytes[..len]);
        }
        assert!(
            Imatrix::parse(&bytes[..100])
                .unwrap_err()
                .contains("it ends at byte 100")
        );
    }
}
