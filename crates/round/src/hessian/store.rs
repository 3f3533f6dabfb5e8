//! A directory of Hessians, read by tensor name.

use crate::Prior;
use quantier_gguf::hessian::{AGAIN, File, INDEX, Index, Part, triangle};
use quantier_gguf::snapshot::Key;
use quantier_gguf::{Error, Result, shown};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An expert with fewer rows in its own sample uses the sample of all experts.
const LEAST_SAMPLE: usize = 16;

/// A directory of Hessians. Only the files' headers are in memory.
pub struct Store {
    directory: PathBuf,
    index: Index,
    tensors: BTreeMap<String, usize>,
    /// By file: matrices with a separate mean.
    apart: Vec<Vec<bool>>,
    /// By file: length of an input row.
    columns: Vec<usize>,
    /// By file: rows summed over all matrices.
    rows: Vec<u64>,
}

/// The Hessian of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    /// Length `n` of an input row.
    pub columns: usize,
    /// Number of rows summed; for an expert, its own.
    pub rows: u64,
    /// The mean of `x x^T`: `[n, n]`, symmetric.
    pub mean: Vec<f32>,
    /// Held-out rows: `[k, n]`; `k` is 0 for a single chunk. Those of all experts if this one has
    /// fewer than 16.
    pub sample: Vec<f32>,
    /// Identity of the mean.
    pub identity: Identity,
}

/// Equal for matrices of a store with the same mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    file: usize,
    matrix: Option<usize>,
}

impl Store {
    /// Opens a complete directory.
    ///
    /// # Errors
    /// If it is incomplete, or a file is missing, damaged or from another run.
    pub fn open(directory: &Path) -> Result<Store> {
        let index = Index::read(directory)?;
        let (tensors, apart, columns, rows) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let mut store = Store {
            directory: directory.to_owned(),
            index,
            tensors,
            apart,
            columns,
            rows,
        };
        for number in 0..store.index.files.len() {
            let file = store.file(number)?;
            for tensor in &file.head().tensors {
                if store.tensors.insert(tensor.clone(), number).is_some() {
                    let what = format!("tensor {} is in another file too; {AGAIN}", shown(tensor));
                    return Err(Error::Bad {
                        path: store.path(number),
                        what,
                    });
                }
            }
            store.columns.push(file.head().columns);
            store.rows.push(
                file.head()
                    .rows
                    .iter()
                    .fold(0, |sum, rows| sum.saturating_add(*rows)),
            );
            let own = |matrix| file.has(Part::Mean(Some(matrix)));
            store
                .apart
                .push((0..file.head().rows.len()).map(own).collect());
        }
        Ok(store)
    }

    /// Key of the job that created it.
    pub fn key(&self) -> &Key {
        &self.index.key
    }

    /// Tensors with Hessians, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Input channels and number of matrices of a tensor; `None` without a Hessian.
    pub(crate) fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        let file = *self.tensors.get(tensor)?;
        Some([self.columns[file], self.apart[file].len()])
    }

    /// Tensors whose means have fewer rows than columns, with both numbers: their Hessians are
    /// singular.
    pub(crate) fn of_few_rows(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        let all = self
            .tensors
            .iter()
            .map(|(name, file)| (&**name, self.rows[*file], self.columns[*file]));
        all.filter(|(_, rows, columns)| *rows < *columns as u64)
    }

    /// Identity of a matrix's mean, without reading it; `None` without a mean.
    pub fn identity(&self, tensor: &str, matrix: usize) -> Option<Identity> {
        let file = *self.tensors.get(tensor)?;
        let own = *self.apart[file].get(matrix)?;
        Some(Identity {
            file,
            matrix: own.then_some(matrix),
        })
    }

    /// The Hessian of matrix `matrix` (the expert, or 0) of a tensor; `None` without one.
    ///
    /// An expert's mean is shrunk towards that of all experts by its number of rows (see
    /// [`Prior`]); an expert without a separate mean uses that of all.
    ///
    /// # Errors
    /// If the file is damaged, or was changed after opening the store.
    pub fn get(&self, tensor: &str, matrix: usize) -> Result<Option<Hessian>> {
        let Some(identity) = self.identity(tensor, matrix) else {
            return Ok(None);
        };
        let file = self.file(identity.file)?;
        let (columns, rows) = (file.head().columns, file.head().rows[matrix]);
        let mut mean = file.read(Part::Mean(None))?.unwrap_or_default();
        if let Some(own) = identity
            .matrix
            .map(|own| file.read(Part::Mean(Some(own))))
            .transpose()?
            .flatten()
        {
            Prior::products(columns).shrink(&own, rows, &mut mean);
        }
        let own = file
            .read(Part::Sample(Some(matrix)))?
            .filter(|own| own.len() >= LEAST_SAMPLE * columns);
        let sample = match own {
            Some(own) => own,
            None => file.read(Part::Sample(None))?.unwrap_or_default(),
        };
        Ok(Some(Hessian {
            columns,
            rows,
            mean: symmetric(&mean, columns),
            sample,
            identity,
        }))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(&self.index.files[number].0)
    }

    fn file(&self, number: usize) -> Result<File> {
        let file = File::open(&self.path(number))?;
        match file.head().key == self.index.key && file.checksum() == self.index.files[number].1 {
            true => Ok(file),
            false => {
                let what = format!("it is not the file that {INDEX} beside it lists; {AGAIN}");
                Err(Error::Bad {
                    path: self.path(number),
                    what,
                })
            }
        }
    }
}

/// The symmetric matrix of an upper triangle.
pub(crate) fn symmetric(upper: &[f32], n: usize) -> Vec<f32> {
    /// Numbers per row that are transposed together, to stay in cache.
    const BLOCK: usize = 64;
    debug_assert_eq!(upper.len(), triangle(n));
    let mut whole = vec![0.0; n * n];
    let mut rest = upper;
    for i in 0..n {
        let (row, behind) = rest.split_at(n - i);
        whole[i * n + i..(i + 1) * n].copy_from_slice(row);
        rest = behind;
    }
    for first in (0..n).step_by(BLOCK) {
        for j in 0..n {
            for i in first..(first + BLOCK).min(j) {
                whole[j * n + i] = whole[i * n + j];
            }
        }
    }
    whole
}

/// Removes the Hessian files of a directory, and nothing else. A missing directory is empty.
///
/// # Errors
/// If the directory cannot be read or written.
pub fn clear(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    // The index first: without it, the remaining files count as incomplete.
    let mut files = gguf_files(directory)?;
    files.sort_by_key(|path| !is_index(path));
    for path in files.into_iter().filter(|path| key_of(path).is_some()) {
        std::fs::remove_file(&path).map_err(|source| Error::Io {
            path,
            action: "remove",
            source,
        })?;
    }
    Ok(())
}

/// Removes the Hessian files of a directory if some are of another job; those of an interrupted run stay.
///
/// # Errors
/// As [`clear`].
pub fn clear_others(directory: &Path, key: &Key) -> Result<()> {
    let files = match directory.exists() {
        true => gguf_files(directory)?,
        false => return Ok(()),
    };
    let mut keys = files.iter().filter_map(|path| key_of(path));
    match keys.any(|found| found != *key) {
        true => clear(directory),
        false => Ok(()),
    }
}

/// Fails if a directory holds Hessians of another job. Returns the bytes of this job's files.
///
/// # Errors
/// Files of another job, a directory that cannot be read.
pub fn check_free(directory: &Path, key: &Key) -> Result<u64> {
    let files = if directory.exists() {
        gguf_files(directory)?
    } else {
        Vec::new()
    };
    let mut bytes = 0;
    for path in files {
        match key_of(&path) {
            Some(found) if found != *key => {
                let what = format!(
                    "it is of another model, text or setting; choose another directory, or {AGAIN}"
                );
                return Err(Error::Bad { path, what });
            }
            Some(_) => bytes += path.metadata().map_or(0, |meta| meta.len()),
            None => {}
        }
    }
    Ok(bytes)
}

/// The key in a file; `None` if it is not a Hessian file, or damaged.
fn key_of(path: &Path) -> Option<Key> {
    match is_index(path) {
        true => Index::read(path.parent()?).ok().map(|index| index.key),
        false => File::open(path).ok().map(|file| file.head().key),
    }
}

fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == INDEX)
}

/// The GGUF files of a directory.
fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io {
        path: directory.to_owned(),
        action: "read",
        source,
    };
    let entries = std::fs::read_dir(directory).map_err(io)?;
    let mut files: Vec<PathBuf> = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .map_err(io)?;
    files.retain(|path| path.extension().is_some_and(|e| e == "gguf") && path.is_file());
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangles_are_mirrored() {
        assert_eq!(
            symmetric(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3),
            [1.0, 2.0, 3.0, 2.0, 4.0, 5.0, 3.0, 5.0, 6.0]
        );
        let n = 150;
        let upper: Vec<f32> = (0..n)
            .flat_map(|i| (i..n).map(move |j| (i * n + j) as f32))
            .collect();
        let whole = symmetric(&upper, n);
        for i in 0..n {
            for j in 0..n {
                assert_eq!(whole[i * n + j], (i.min(j) * n + i.max(j)) as f32);
            }
        }
    }
}
