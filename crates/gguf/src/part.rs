//! Parts of a result that several processes compute: named records of one unit of work.
//!
//! ```text
//! magic u8 x 8       "QNTPART" and the version of this layout
//! key u8 x 32        the result: SHA-256 of all its inputs
//! unit u64           number of the unit
//! maker              text: the program's version and its arithmetic, which bytes can depend on
//! for each record:
//!     name           text, not empty
//!     len u64        bytes of data
//!     data u8 x len
//!     SHA-256 of the data      u8 x 32
//! u64 0              the end of the records
//! SHA-256 of everything but the data     u8 x 32
//! ```
//!
//! Numbers are little-endian, texts have their length in front. The checksum at the end covers those of
//! the records, so that opening a part reads none of its data, which is checked when it is read.

use super::map::Map;
use super::output::Output;
use super::snapshot::{Key, Packer, Unpacker};
use super::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"QNTPART1";
/// Size of a SHA-256 in bytes.
const DIGEST: usize = 32;

/// Identity of a part: equal identities have equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The result to which the part belongs.
    pub key: Key,
    /// Number of the unit.
    pub unit: usize,
    /// The program's version and its arithmetic.
    pub maker: String,
}

/// Result of a search for a part.
pub enum Lookup {
    /// No file.
    Nothing,
    /// A part of another result, or of another program or processor, with the difference.
    Other(String),
    /// A damaged file, with the reason.
    Damaged(String),
    /// The part.
    Found(Part),
}

/// A part with a correct head.
pub struct Part {
    map: Map,
    records: BTreeMap<String, (Range<usize>, [u8; DIGEST])>,
}

impl Part {
    /// Opens a part.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
    pub fn open(path: &Path, identity: &Identity) -> Result<Lookup> {
        if !path.exists() {
            return Ok(Lookup::Nothing);
        }
        let map = Map::open(path)?;
        Ok(match parse(map.bytes()) {
            Err(what) => Lookup::Damaged(what),
            Ok((found, _)) if found != *identity => Lookup::Other(difference(&found, identity)),
            Ok((_, records)) => Lookup::Found(Part { map, records }),
        })
    }

    /// Names of the records, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// True if there is a record of this name.
    pub fn has(&self, name: &str) -> bool {
        self.records.contains_key(name)
    }

    /// Data of a record.
    ///
    /// # Errors
    /// A missing or damaged record.
    pub fn get(&self, name: &str) -> Result<&[u8]> {
        let Some((range, digest)) = self.records.get(name) else {
            return Err(self.bad(format!("it has no record '{name}'")));
        };
        self.map.check_length()?;
        let data = &self.map.bytes()[range.clone()];
        match Sha256::digest(data)[..] == digest[..] {
            true => Ok(data),
            false => Err(self.bad(format!("the checksum of '{name}' is wrong"))),
        }
    }

    /// Checks the data of all records.
    ///
    /// # Errors
    /// A damaged record.
    pub fn check(&self) -> Result<()> {
        self.names().try_for_each(|name| self.get(name).map(drop))
    }

    /// An error about the content of this file.
    pub fn bad(&self, what: String) -> Error {
        Error::Bad {
            path: self.map.path().to_owned(),
            what: format!("{what}; remove it and run its shard again"),
        }
    }
}

fn difference(found: &Identity, wanted: &Identity) -> String {
    match found {
        _ if found.maker != wanted.maker => {
            format!("it was made by {}, not by {}", found.maker, wanted.maker)
        }
        _ if found.unit != wanted.unit => format!("it is unit {}", found.unit),
        _ => "it is of another model, text or setting".into(),
    }
}

type Records = BTreeMap<String, (Range<usize>, [u8; DIGEST])>;

fn parse(bytes: &[u8]) -> std::result::Result<(Identity, Records), String> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not begin as a part does".into());
    }
    let short = || format!("it ends at byte {}, before its end", bytes.len());
    let mut fields = Unpacker(&bytes[MAGIC.len()..]);
    let key: Key = fields
        .take(DIGEST)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(short)?;
    let unit = fields.number().ok_or_else(short)?;
    let maker = fields.text().ok_or_else(short)?.to_owned();
    let mut digest = Sha256::new();
    digest.update(&bytes[..bytes.len() - fields.0.len()]);
    let mut records = Records::new();
    loop {
        let start = bytes.len() - fields.0.len();
        let name = fields.text().ok_or_else(short)?.to_owned();
        if name.is_empty() {
            digest.update(&bytes[start..bytes.len() - fields.0.len()]);
            break;
        }
        let len = fields.number().ok_or_else(short)?;
        let data = bytes.len() - fields.0.len();
        fields.take(len).ok_or_else(short)?;
        let of_data: [u8; DIGEST] = fields
            .take(DIGEST)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(short)?;
        digest.update(&bytes[start..data]);
        digest.update(of_data);
        if records.insert(name, (data..data + len, of_data)).is_some() {
            return Err("two of its records have one name".into());
        }
    }
    match fields.0.len() {
        DIGEST if digest.finalize()[..] == *fields.0 => {
            Ok((Identity { key, unit, maker }, records))
        }
        DIGEST => Err("the checksum of its head is wrong".into()),
        _ => Err(format!("it has {} bytes after its end", fields.0.len())),
    }
}

/// A part in progress. It gets its name when it is complete, also where several processes write the
/// same part.
pub struct Writer {
    path: PathBuf,
    /// A name of this process.
    own: PathBuf,
    output: Output,
    /// Of everything but the data.
    digest: Sha256,
}

impl Writer {
    /// Begins a part.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn create(path: &Path, identity: &Identity) -> Result<Writer> {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut own = path.file_name().unwrap_or_default().to_owned();
        own.push(format!(".{}-{}", std::process::id(), time.as_nanos()));
        let own = path.with_file_name(own);
        let output = Output::create(&own, 0, &[])?;
        let mut writer = Writer {
            path: path.to_owned(),
            own,
            output,
            digest: Sha256::new(),
        };
        let mut head = Packer::default();
        head.bytes(MAGIC)
            .bytes(&identity.key)
            .number(identity.unit)
            .text(&identity.maker);
        writer.write_head(&head.0)?;
        Ok(writer)
    }

    fn write_head(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.output.write(bytes)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put(&mut self, name: &str, data: &[u8]) -> Result<()> {
        self.put_pieces(name, data.len(), |put| put(data))
    }

    /// Appends a record of `len` bytes, in pieces.
    ///
    /// # Errors
    /// I/O errors, and those of `pieces`.
    ///
    /// # Panics
    /// If the name is empty, or the pieces have another length together.
    pub fn put_pieces(
        &mut self,
        name: &str,
        len: usize,
        pieces: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        assert!(!name.is_empty(), "a record without a name");
        let mut head = Packer::default();
        head.text(name).number(len);
        self.write_head(&head.0)?;
        let (mut digest, mut written) = (Sha256::new(), 0);
        pieces(&mut |piece| {
            digest.update(piece);
            written += piece.len();
            self.output.write(piece)
        })?;
        assert_eq!(written, len, "bytes of record '{name}'");
        self.write_head(&digest.finalize())
    }

    /// Completes the part and gives it its name.
    ///
    /// # Errors
    /// I/O errors, for example a full disk or a file system that cannot replace a file by a rename.
    pub fn finish(mut self) -> Result<()> {
        self.write_head(&0u64.to_le_bytes())?;
        let digest = self.digest.finalize();
        self.output.write(&digest)?;
        self.output.finish()?;
        std::fs::rename(&self.own, &self.path).map_err(|source| Error::Io {
            path: self.path.clone(),
            action: "rename the finished part to",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            key: [7; DIGEST],
            unit: 3,
            maker: "quantier 1".into(),
        }
    }

    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("3.part");
        let mut writer = Writer::create(&path, &identity()).unwrap();
        writer.put("b", b"some bytes").unwrap();
        let two = |put: &mut dyn FnMut(&[u8]) -> Result<()>| {
            put(b"more")?;
            put(b" bytes")
        };
        writer.put_pieces("a", 10, two).unwrap();
        writer.put("empty", b"").unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn parts_round_trip_and_leave_nothing_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let Lookup::Found(part) = Part::open(&path, &identity()).unwrap() else {
            panic!("it is the part")
        };
        assert_eq!(part.names().collect::<Vec<_>>(), ["a", "b", "empty"]);
        assert_eq!(part.get("a").unwrap(), b"more bytes");
        part.check().unwrap();
        let error = part.get("c").unwrap_err().to_string();
        assert!(error.contains("no record 'c'"), "{error}");
        let again = std::fs::read(&path).unwrap();
        assert_eq!(std::fs::read(written(dir.path())).unwrap(), again);
        let nothing = Part::open(&dir.path().join("x"), &identity()).unwrap();
        assert!(matches!(nothing, Lookup::Nothing));
    }

    #[test]
    fn parts_of_other_results_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let others = [
            (
                Identity {
                    key: [8; DIGEST],
                    ..identity()
                },
                "another model",
            ),
            (
                Identity {
                    unit: 4,
                    ..identity()
                },
                "unit 3",
            ),
            (
                Identity {
                    maker: "quantier 2".into(),
                    ..identity()
                },
                "by quantier 1, not by quantier 2",
            ),
        ];
        for (other, expected) in others {
            let Lookup::Other(what) = Part::open(&path, &other).unwrap() else {
                panic!("{other:?}")
            };
            assert!(what.contains(expected), "{what}");
        }
    }

    #[test]
    fn changes_and_truncations_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        let is_intact = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match Part::open(&path, &identity()).unwrap() {
                Lookup::Found(part) => part.check().is_ok(),
                _ => false,
            }
        };
        assert!(is_intact(&bytes));
        for at in 0..bytes.len() {
            assert!(!is_intact(&bytes[..at]), "cut at byte {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(!is_intact(&changed), "byte {at}");
        }
        assert!(!is_intact(&[&bytes[..], b"x"].concat()));
    }
}
