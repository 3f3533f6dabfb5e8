//! A model on disk: one GGUF file or all shards of a split one.

use super::endian::{Endian, has_big_endian_form, reverse_blocks};
use super::keys;
use super::read::{Header, MAGIC, TensorInfo, parse};
use super::value::{Metadata, Value};
use crate::map::Map;
use crate::types::GgmlType;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of shards that the names `-00001-of-99999.gguf` can count.
pub const MAX_SHARDS: u64 = 65_535;
/// Remedy for shards that were joined byte by byte.
const JOINED: &str = "it contains several shards, joined byte by byte, which no program can read; keep the shards apart \
                      under their names (-00001-of-00002.gguf and so on), or join them by quantier merge";
/// Maximum number of missing shards that an error names; the rest is counted.
const NAMED_SHARDS: usize = 5;

/// The mapped files of a model. Clones share the mappings.
#[derive(Clone)]
pub struct Files {
    maps: Vec<Arc<Map>>,
}

impl Files {
    /// Maps a GGUF file and, if its name is that of a shard, all the other shards beside it.
    ///
    /// # Errors
    /// A file that is missing or cannot be mapped.
    pub fn open(path: &Path) -> Result<Files> {
        let Some((prefix, _, count)) = shard_name(path) else {
            return Ok(Files {
                maps: vec![Arc::new(Map::open(path)?)],
            });
        };
        let paths: Vec<PathBuf> = (0..count)
            .map(|no| shard_path(&prefix, no, count))
            .collect();
        let missing: Vec<String> = paths
            .iter()
            .filter(|p| !p.exists())
            .map(|p| p.display().to_string())
            .collect();
        if !missing.is_empty() && path.exists() {
            let map = Arc::new(Map::open(path)?);
            if is_whole(map.bytes()) {
                return Ok(Files { maps: vec![map] });
            }
            let named = missing[..missing.len().min(NAMED_SHARDS)].join(", ");
            let more = match missing.len().saturating_sub(NAMED_SHARDS) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            let what = format!(
                "it is one of {count} shards, and these are missing: {named}{more}; put all shards into one directory"
            );
            return Err(Error::Bad {
                path: path.to_owned(),
                what,
            });
        }
        let map = |path: &PathBuf| Ok(Arc::new(Map::open(path)?));
        Ok(Files {
            maps: paths.iter().map(map).collect::<Result<_>>()?,
        })
    }

    /// The mapped files, in the order of the shards.
    pub fn maps(&self) -> &[Arc<Map>] {
        &self.maps
    }

    /// The paths of the files.
    pub fn paths(&self) -> Vec<&Path> {
        self.maps.iter().map(|map| map.path()).collect()
    }
}

/// A tensor of a model and the place of its data.
#[derive(Clone)]
pub struct Tensor {
    /// Name, shape and type.
    pub info: TensorInfo<'static>,
    /// Index of its file in the model, from 0.
    pub shard: usize,
    /// Offset in that file, in bytes.
    pub offset: u64,
    endian: Endian,
    map: Arc<Map>,
}

impl Tensor {
    /// The tensor's bytes as stored, in the byte order of the file.
    pub fn data(&self) -> &[u8] {
        &self.map.bytes()[self.offset as usize..][..self.info.bytes() as usize]
    }

    /// A byte range of whole blocks in little-endian order: a slice of the mapped file, or swapped
    /// in `buffer`.
    ///
    /// # Errors
    /// A file that has become shorter, and a type that has no big-endian form in a big-endian file.
    pub fn read<'b>(&'b self, range: Range<usize>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        self.map.check_length()?;
        let stored = &self.data()[range];
        if self.endian == Endian::Little {
            return Ok(stored);
        }
        if !has_big_endian_form(self.info.ggml_type) {
            return Err(Error::Bad {
                path: self.map.path().to_owned(),
                what: no_big_endian_form(&self.info.name, self.info.ggml_type),
            });
        }
        buffer.clear();
        buffer.extend_from_slice(stored);
        reverse_blocks(self.info.ggml_type, buffer);
        Ok(buffer)
    }
}

/// Error for a tensor type without a big-endian form.
pub(super) fn no_big_endian_form(name: &str, ggml_type: GgmlType) -> String {
    format!(
        "tensor '{name}' is of type {ggml_type}, whose bytes in big-endian files are not defined (they are for f32, f16, bf16, q4_0, q8_0, q4_K, q6_K, q1_0, tq2_0, mxfp4 and nvfp4); start from the original model"
    )
}

/// A checked model that owns the mappings of its files: metadata (of the first shard) and the
/// tensors of all shards in file order.
pub struct Model {
    /// The files it was parsed from.
    pub files: Files,
    /// The header of each file.
    pub headers: Vec<Header<'static>>,
    /// Every tensor.
    pub tensors: Vec<Tensor>,
}

impl Model {
    /// Maps and checks a GGUF, with all its shards if it is split.
    ///
    /// # Errors
    /// As [`Files::open`] and [`Model::parse`].
    pub fn open(path: &Path) -> Result<Model> {
        Model::parse(&Files::open(path)?)
    }

    /// Parses and checks all files.
    ///
    /// # Errors
    /// A damaged file, and shards that do not belong together.
    pub fn parse(files: &Files) -> Result<Model> {
        let mut headers: Vec<Header<'static>> = Vec::with_capacity(files.maps.len());
        let mut tensors = Vec::new();
        for (shard, map) in files.maps.iter().enumerate() {
            let bad = |what| Error::Bad {
                path: map.path().to_owned(),
                what,
            };
            let header = parse(map.bytes()).map_err(bad)?.into_owned();
            check_shard(&header, shard, files.maps.len()).map_err(|what| {
                match is_followed_by_another(&header, map.bytes()) {
                    true => bad(JOINED.into()),
                    false => bad(what),
                }
            })?;
            if headers
                .first()
                .is_some_and(|first| first.endian != header.endian)
            {
                let what =
                    "its byte order differs from the first shard's; do they belong to one model?";
                return Err(bad(what.into()));
            }
            tensors.extend(header.tensors.iter().map(|(info, offset)| Tensor {
                info: info.clone(),
                shard,
                offset: *offset,
                endian: header.endian,
                map: map.clone(),
            }));
            headers.push(header);
        }
        let model = Model {
            files: files.clone(),
            headers,
            tensors,
        };
        model.check_split()?;
        Ok(model)
    }

    /// Byte order of the files.
    pub fn endian(&self) -> Endian {
        self.headers[0].endian
    }

    /// Metadata of the first file.
    pub fn metadata(&self) -> &Metadata<'static> {
        &self.headers[0].metadata
    }

    /// Architecture, from `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata().get(keys::ARCHITECTURE)?.as_str()
    }

    fn check_split(&self) -> Result<()> {
        if self.headers.len() < 2 {
            return Ok(());
        }
        let bad = |shard: usize, what| Error::Bad {
            path: self.files.maps[shard].path().to_owned(),
            what,
        };
        let mut seen = HashMap::new();
        for tensor in &self.tensors {
            if let Some(first) = seen.insert(&tensor.info.name, tensor.shard) {
                let what = format!(
                    "tensor '{}' is in shard {} already",
                    tensor.info.name,
                    first + 1
                );
                return Err(bad(tensor.shard, what));
            }
        }
        let held = self.tensors.len();
        for (shard, header) in self.headers.iter().enumerate() {
            match header.metadata.get(keys::SPLIT_TENSORS) {
                Some(said) if said.as_u64() != Some(held as u64) => {
                    let what = format!(
                        "'{}' is {said}, but the shards hold {held} tensors; do they belong to one model?",
                        keys::SPLIT_TENSORS
                    );
                    return Err(bad(shard, what));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// True if a file is a complete model, regardless of its name.
fn is_whole(file: &[u8]) -> bool {
    let count = |header: &Header<'_>| header.metadata.get(keys::SPLIT_COUNT)?.as_u64();
    parse(file).is_ok_and(|header| count(&header).is_none_or(|count| count <= 1))
}

/// True if another GGUF begins after the tensors of a file, as in shards joined by `cat`.
fn is_followed_by_another(header: &Header<'_>, file: &[u8]) -> bool {
    let ends = header
        .tensors
        .iter()
        .map(|(info, offset)| offset + info.bytes());
    let end = ends.max().unwrap_or(0);
    let alignment = header.metadata.alignment().max(1);
    let begin = [end, end.next_multiple_of(alignment)];
    begin.iter().any(|&at| {
        file.get(at as usize..)
            .is_some_and(|rest| rest.starts_with(MAGIC))
    })
}

/// Checks a header's place in a split against the file names.
fn check_shard(header: &Header<'_>, shard: usize, count: usize) -> std::result::Result<(), String> {
    let number = |key| header.metadata.get(key).and_then(|v| v.as_u64());
    let said_count = number(keys::SPLIT_COUNT).unwrap_or(1).max(1);
    let said_no = number(keys::SPLIT_NO).unwrap_or(0);
    if said_count > 1 && count == 1 {
        return Err(format!(
            "it is shard {} of {said_count}, but its name does not end in -{:05}-of-{said_count:05}.gguf; give the shards their names back",
            said_no + 1,
            said_no + 1
        ));
    }
    if count > 1
        && number(keys::SPLIT_COUNT) != Some(count as u64)
        && (shard == 0 || number(keys::SPLIT_COUNT).is_some())
    {
        return Err(format!(
            "its name says {count} shards and '{}' says {said_count}",
            keys::SPLIT_COUNT
        ));
    }
    if count > 1 && said_no != shard as u64 {
        return Err(format!(
            "its name says shard {} and '{}' says {}",
            shard + 1,
            keys::SPLIT_NO,
            said_no + 1
        ));
    }
    Ok(())
}

/// Name of a shard, in llama.cpp's scheme; `no` counts from 0.
pub fn shard_path(prefix: &Path, no: u64, count: u64) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{:05}-of-{count:05}.gguf", no + 1));
    PathBuf::from(name)
}

/// Names of all shards of a model, in order; `None` if the name is not that of a shard.
pub fn shard_siblings(name: &str) -> Option<Vec<String>> {
    let (directory, name) = name
        .rsplit_once('/')
        .map_or(("", name), |(directory, name)| (directory, name));
    let (prefix, _, count) = shard_name(Path::new(name))?;
    let slash = if directory.is_empty() { "" } else { "/" };
    let one = |no| {
        format!(
            "{directory}{slash}{}",
            shard_path(&prefix, no, count).display()
        )
    };
    Some((0..count).map(one).collect())
}

/// The files of a split model with their metadata: `first` for the first one, only the split's keys
/// for the others.
pub fn shards<'a>(
    prefix: &Path,
    first: Metadata<'a>,
    count: usize,
    tensors: usize,
) -> Vec<(PathBuf, Metadata<'a>)> {
    let mut first = Some(first);
    let one = |no: usize| {
        let mut metadata = first.take().unwrap_or_default();
        metadata.set(keys::SPLIT_NO, Value::U16(no as u16));
        metadata.set(keys::SPLIT_COUNT, Value::U16(count as u16));
        metadata.set(keys::SPLIT_TENSORS, Value::I32(tensors as i32));
        (shard_path(prefix, no as u64, count as u64), metadata)
    };
    (0..count).map(one).collect()
}

/// Splits `PREFIX-00002-of-00003.gguf` into prefix, index from 0, and count; `None` for any other
/// name, and for a count of one.
pub fn shard_name(path: &Path) -> Option<(PathBuf, u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    let number = |s: &str| {
        (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u64>().ok())?
    };
    let (no, count) = (number(no)?, number(count)?);
    (no >= 1 && no <= count && (2..=MAX_SHARDS).contains(&count))
        .then(|| (path.with_file_name(prefix), no - 1, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_round_trip() {
        let path = Path::new("/models/a-of-b-00002-of-00003.gguf");
        let (prefix, no, count) = shard_name(path).unwrap();
        assert_eq!((no, count), (1, 3));
        assert_eq!(shard_path(&prefix, no, count), path);
        for other in [
            "a.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-2-of-3.gguf",
            "a-00001-of-00001.gguf",
        ] {
            assert_eq!(shard_name(Path::new(other)), None, "{other}");
            assert_eq!(shard_siblings(other), None, "{other}");
        }
        let all = ["d/e/a-00001-of-00002.gguf", "d/e/a-00002-of-00002.gguf"];
        assert_eq!(shard_siblings(all[1]).unwrap(), all);
        assert_eq!(shard_siblings("a-00001-of-00002.gguf").unwrap().len(), 2);
    }
}
