//! Snapshots: the saved state of a long job, from which another process resumes it.
//!
//! ```text
//! magic u8 x 8     "QNTSNAP" and the version of this layout
//! key u8 x 32      the job: SHA-256 of all inputs of its result
//! done u64         finished steps (layers)
//! slots u64, len u64, extra u64
//! extra bytes      partial results, packed by the job itself
//! f32 x slots x len                  activations between two steps
//! SHA-256 of the preceding bytes     u8 x 32
//! ```
//!
//! Numbers are little-endian. The file stays on the machine, or the shared disk, of its job.

use super::map::Map;
use super::output::Output;
use super::{Error, Result, le_bytes};
use byteorder::{ByteOrder, LittleEndian};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;

const MAGIC: &[u8; 8] = b"QNTSNAP1";
/// Size of a SHA-256 in bytes.
const DIGEST: usize = 32;
/// Size of the fields before the packed partial results, in bytes.
const HEAD: usize = MAGIC.len() + DIGEST + 4 * 8;

/// SHA-256 of all inputs of a result.
pub type Key = [u8; DIGEST];

/// Result of a search for a snapshot.
pub enum Lookup {
    /// No file.
    Nothing,
    /// The snapshot of another job.
    Other,
    /// A damaged file, with the reason.
    Damaged(String),
    /// The snapshot of this job.
    Ours(Snapshot),
}

/// A snapshot with a correct checksum.
pub struct Snapshot {
    map: Map,
    done: usize,
    slots: usize,
    len: usize,
    extra: Range<usize>,
}

impl Snapshot {
    /// Opens the snapshot of a job.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
    pub fn open(path: &Path, key: &Key) -> Result<Lookup> {
        if !path.exists() {
            return Ok(Lookup::Nothing);
        }
        let map = Map::open(path)?;
        Ok(match parse(map.bytes()) {
            Err(what) => Lookup::Damaged(what),
            Ok(head) if head.key != *key => Lookup::Other,
            Ok(Head {
                done,
                slots,
                len,
                extra,
                ..
            }) => Lookup::Ours(Snapshot {
                map,
                done,
                slots,
                len,
                extra,
            }),
        })
    }

    /// Finished steps.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Partial results as packed by the job.
    pub fn extra(&self) -> &[u8] {
        &self.map.bytes()[self.extra.clone()]
    }

    /// Number and length of the activation slots.
    pub fn shape(&self) -> [usize; 2] {
        [self.slots, self.len]
    }

    /// The activations of one slot.
    ///
    /// # Errors
    /// If the file has become shorter.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn state(&self, slot: usize) -> Result<Vec<f32>> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        self.map.check_length()?;
        let bytes = &self.map.bytes()[self.extra.end + slot * self.len * 4..][..self.len * 4];
        let mut state = vec![0.0; self.len];
        LittleEndian::read_f32_into(bytes, &mut state);
        Ok(state)
    }
}

struct Head {
    key: Key,
    done: usize,
    slots: usize,
    len: usize,
    extra: Range<usize>,
}

fn parse(bytes: &[u8]) -> std::result::Result<Head, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not begin as a snapshot does".into());
    }
    let short = || format!("it ends at byte {}, before its end", bytes.len());
    let (body, digest) = bytes
        .len()
        .checked_sub(DIGEST)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(short)?;
    let mut fields = Unpacker(body.get(MAGIC.len()..).ok_or_else(short)?);
    let key = fields
        .take(DIGEST)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(short)?;
    let mut number = || fields.number().ok_or_else(short);
    let (done, slots, len, extra) = (number()?, number()?, number()?, number()?);
    let states = slots.checked_mul(len).and_then(|n| n.checked_mul(4));
    let end = states.and_then(|n| n.checked_add(extra)?.checked_add(HEAD));
    if end != Some(body.len()) {
        return Err(format!(
            "it has {} bytes, which its header does not add up to",
            bytes.len()
        ));
    }
    if Sha256::digest(body)[..] != *digest {
        return Err("its checksum is wrong".into());
    }
    Ok(Head {
        key,
        done,
        slots,
        len,
        extra: HEAD..HEAD + extra,
    })
}

/// Progress of a job, for its snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'p> {
    /// Finished steps.
    pub done: usize,
    /// Partial results, packed by the job.
    pub extra: &'p [u8],
    /// Number and length of the activation slots.
    pub shape: [usize; 2],
}

/// Writes a snapshot under a temporary name, then renames it, so that a killed process leaves the
/// previous one.
///
/// `state` gives the activations of each slot.
///
/// # Errors
/// I/O errors and those of `state`.
pub fn write<E: From<Error>>(
    path: &Path,
    key: &Key,
    progress: Progress<'_>,
    state: &dyn Fn(usize) -> std::result::Result<Vec<f32>, E>,
) -> std::result::Result<(), E> {
    let Progress { done, extra, shape } = progress;
    let [slots, len] = shape;
    let bytes = HEAD + extra.len() + slots * len * 4 + DIGEST;
    let mut output = Output::create(path, bytes as u64, &[])?;
    let mut digest = Sha256::new();
    let mut head = Packer::default();
    head.bytes(MAGIC)
        .bytes(key)
        .number(done)
        .number(slots)
        .number(len)
        .number(extra.len());
    let mut write = |bytes: &[u8]| {
        digest.update(bytes);
        output.write(bytes)
    };
    write(&head.0)?;
    write(extra)?;
    for slot in 0..slots {
        let state = state(slot)?;
        assert_eq!(state.len(), len, "activations of slot {slot}");
        write(&le_bytes(&state))?;
    }
    let digest = digest.finalize();
    output.write(&digest)?;
    Ok(output.finish()?)
}

/// Packs numbers and texts into bytes, for partial results of a job.
#[derive(Default)]
pub struct Packer(pub Vec<u8>);

impl Packer {
    /// Appends raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Packer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a number.
    pub fn number(&mut self, n: usize) -> &mut Packer {
        let mut bytes = [0; 8];
        LittleEndian::write_u64(&mut bytes, n as u64);
        self.bytes(&bytes)
    }

    /// Appends a text with its length.
    pub fn text(&mut self, text: &str) -> &mut Packer {
        self.number(text.len()).bytes(text.as_bytes())
    }

    /// Appends a list of 8-byte numbers with its length.
    pub fn list(&mut self, numbers: impl ExactSizeIterator<Item = [u8; 8]>) -> &mut Packer {
        self.number(numbers.len());
        self.0.extend(numbers.flatten());
        self
    }
}

/// Unpacks the output of a [`Packer`]; `None` if it ends too early.
pub struct Unpacker<'a>(pub &'a [u8]);

impl<'a> Unpacker<'a> {
    /// Takes raw bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a number.
    pub fn number(&mut self) -> Option<usize> {
        usize::try_from(LittleEndian::read_u64(self.take(8)?)).ok()
    }

    /// Reads a text.
    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.number()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    /// Reads a list of 8-byte numbers.
    pub fn list<T>(&mut self, number: impl Fn([u8; 8]) -> T) -> Option<Vec<T>> {
        let bytes = self.number()?.checked_mul(8)?;
        Some(
            self.take(bytes)?
                .as_chunks()
                .0
                .iter()
                .map(|b| number(*b))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [7; 32];

    fn written(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("a.resume");
        let progress = Progress {
            done: 3,
            extra: b"extra",
            shape: [2, 5],
        };
        write::<Error>(&path, &KEY, progress, &|slot| {
            Ok(vec![slot as f32 + 0.5; 5])
        })
        .unwrap();
        path
    }

    #[test]
    fn snapshots_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let Lookup::Ours(found) = Snapshot::open(&path, &KEY).unwrap() else {
            panic!("it is ours")
        };
        assert_eq!(
            (found.done(), found.extra(), found.shape()),
            (3, &b"extra"[..], [2, 5])
        );
        assert_eq!(found.state(1).unwrap(), [1.5; 5]);
        assert!(matches!(
            Snapshot::open(&path, &[8; 32]).unwrap(),
            Lookup::Other
        ));
        assert!(matches!(
            Snapshot::open(&dir.path().join("b"), &KEY).unwrap(),
            Lookup::Nothing
        ));
    }

    #[test]
    fn changes_and_truncations_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            matches!(Snapshot::open(&path, &KEY).unwrap(), Lookup::Damaged(_))
        };
        for at in 0..bytes.len() {
            assert!(damaged(&bytes[..at]), "cut at byte {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(damaged(&changed), "changed at byte {at}");
        }
        assert!(damaged(&[&bytes[..], b"x"].concat()));
    }

    #[test]
    fn failed_writes_keep_the_previous_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let before = std::fs::read(&path).unwrap();
        let fail = |_| {
            Err(Error::Bad {
                path: path.clone(),
                what: "no".into(),
            })
        };
        let progress = Progress {
            done: 4,
            extra: b"",
            shape: [1, 1],
        };
        assert!(write(&path, &KEY, progress, &fail).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn packed_fields_round_trip() {
        let mut packed = Packer::default();
        packed
            .number(9)
            .text("a b")
            .list([1.5f64, -2.0].iter().map(|x| x.to_le_bytes()));
        let mut fields = Unpacker(&packed.0);
        assert_eq!((fields.number(), fields.text()), (Some(9), Some("a b")));
        assert_eq!(fields.list(f64::from_le_bytes), Some(vec![1.5, -2.0]));
        assert_eq!(fields.number(), None);
        assert_eq!(Unpacker(&packed.0[..20]).list(u64::from_le_bytes), None);
    }
}
