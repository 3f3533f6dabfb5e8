//! A directory of Hessians, read by tensor name.

use quantier_gguf::hessian::{AGAIN, File, INDEX, Index, Part, triangle};
use quantier_gguf::snapshot::Key;
use quantier_gguf::{Error, Result, shown};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An expert with fewer rows in its own sample is given that of all experts.
const LEAST_SAMPLE: usize = 16;

/// A directory of Hessians. Only the headers of the files are in memory.
pub struct Store {
    directory: PathBuf,
    index: Index,
    tensors: BTreeMap<String, usize>,
    /// The matrices of each file that have a mean of their own.
    apart: Vec<Vec<bool>>,
    /// The length of an input row of each file.
    columns: Vec<usize>,
    /// Rows that were summed for each file, over all its matrices.
    rows: Vec<u64>,
}

/// The Hessian of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    /// The length `n` of an input row.
    pub columns: usize,
    /// Rows that were summed; of an expert, its own.
    pub rows: u64,
    /// The mean of `x x^T`: `[n, n]`, symmetric.
    pub mean: Vec<f32>,
    /// Rows that were not summed: `[k, n]`; `k` is 0 where there was a single chunk. Those of all
    /// experts together, if this one has fewer than 16.
    pub sample: Vec<f32>,
    /// Which mean it is.
    pub identity: Identity,
}

/// Equal for matrices of a store that share a mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    file: usize,
    matrix: Option<usize>,
}

impl Store {
    /// Opens a complete directory.
    ///
    /// # Errors
    /// If it is not complete, or one of its files is missing, damaged or of another run.
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

    /// The key of the job that made it.
    pub fn key(&self) -> &Key {
        &self.index.key
    }

    /// The tensors with Hessians, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The input channels of a tensor, and how many matrices it has; `None` without a Hessian.
    pub(crate) fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        let file = *self.tensors.get(tensor)?;
        Some([self.columns[file], self.apart[file].len()])
    }

    /// The tensors with means over fewer rows than columns, with both numbers: their Hessians are
    /// singular.
    pub(crate) fn of_few_rows(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        let all = self
            .tensors
            .iter()
            .map(|(name, file)| (&**name, self.rows[*file], self.columns[*file]));
        all.filter(|(_, rows, columns)| *rows < *columns as u64)
    }

    /// The identity of a matrix's mean, which is not read; `None` without one.
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
    /// An expert's mean is drawn towards that of all experts: with `r` rows of length `n`, its own
    /// mean has the weight `r / (r + n)`. A singular Hessian of a few rows never decides alone, and
    /// both means weigh the same where the expert has just as many rows as full rank needs. An
    /// expert without a mean of its own takes that of all.
    ///
    /// # Errors
    /// If the file is damaged, or has been changed since the store was opened.
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
            let weight = rows as f64 / (rows as f64 + columns as f64);
            let between = |all: f32, own: f32| {
                (f64::from(own) * weight + f64::from(all) * (1.0 - weight)) as f32
            };
            mean.iter_mut()
                .zip(&own)
                .for_each(|(mean, own)| *mean = between(*mean, *own));
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

/// The whole matrix of an upper triangle.
pub(crate) fn symmetric(upper: &[f32], n: usize) -> Vec<f32> {
    /// Numbers of a row that are transposed at a time, which stay in the cache.
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

/// Removes the Hessians in a directory, and nothing else. A directory that does not exist has none.
///
/// # Errors
/// If it cannot be read or written.
pub fn clear(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    // The index first: without it, the rest is known to be incomplete.
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

/// Whether a directory holds Hessians of another job.
///
/// # Errors
/// If it cannot be read.
pub fn holds_others(directory: &Path, key: &Key) -> Result<bool> {
    let files = if directory.exists() {
        gguf_files(directory)?
    } else {
        Vec::new()
    };
    Ok(files
        .iter()
        .filter_map(|path| key_of(path))
        .any(|found| found != *key))
}

/// Fails if a directory holds Hessians of another job. Returns the bytes of those of this one.
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

/// The job of a file; `None` if it is no Hessian, or damaged.
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
    fn a_triangle_is_mirrored() {
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
