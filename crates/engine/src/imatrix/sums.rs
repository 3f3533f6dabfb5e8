//! Accumulation of squared activations, in f64 so that neither the order of chunks nor the number
//! of machines affects the f32 values of a file.

use quantier_arch::role::block_of;
use quantier_blocks::vector::vectorized;
use quantier_gguf::imatrix::{Entry, Imatrix};
use std::collections::{BTreeMap, BTreeSet};

/// Errors of accumulation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// An activation is NaN or infinite, or its square exceeds f32.
    #[error(
        "the input of '{tensor}' has a value of {value} in channel {column}; sums of squares must stay finite"
    )]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Input channel.
        column: usize,
        /// The resulting sum of squares.
        value: f64,
    },
    /// Rows whose shape differs from the tensor's earlier rows.
    #[error(
        "'{tensor}' has {ours} here and {theirs} there; only importance matrices of the same model can be added"
    )]
    OtherModel {
        /// The tensor.
        tensor: String,
        /// The existing shape.
        ours: String,
        /// The added shape.
        theirs: String,
    },
    /// A tensor that the model lacks or has in another shape.
    #[error(
        "'{tensor}' has {theirs}, and the model {ours}; only importance matrices of the same model can be added"
    )]
    OtherTensor {
        /// The tensor.
        tensor: String,
        /// The model's shape.
        ours: String,
        /// The importance matrix's shape.
        theirs: String,
    },
    /// Importance matrices of models with different layers.
    #[error(
        "it has tensors of {theirs} blocks, and what it is added to has {ours}; only importance matrices of the same model can be added"
    )]
    OtherBlocks {
        /// Number of existing layers.
        ours: usize,
        /// Number of added layers.
        theirs: usize,
    },
}

impl Error {
    /// The tensor of the error; empty if it concerns all.
    pub(crate) fn tensor(&self) -> &str {
        match self {
            Error::NonFinite { tensor, .. }
            | Error::OtherModel { tensor, .. }
            | Error::OtherTensor { tensor, .. } => tensor,
            Error::OtherBlocks { .. } => "",
        }
    }
}

/// The sums of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSums {
    /// Sums of squares, one per input channel, matrix by matrix.
    pub sums: Vec<f64>,
    /// Number of rows of each matrix; a single number if the source has only one.
    pub counts: Vec<i64>,
}

/// Sums by tensor, with the names of the texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// By tensor name.
    pub tensors: BTreeMap<String, TensorSums>,
    /// Names of the texts.
    pub datasets: Vec<String>,
}

impl Sums {
    /// Adds the squares of `rows` `[n, columns]` to matrix `matrix` of a tensor with `matrices`
    /// matrices.
    ///
    /// The rows of one call are summed first, then added: with one call per chunk, in chunk order,
    /// the result does not depend on threads. Nothing changes on an error.
    ///
    /// # Errors
    /// Rows of another shape than before, or a sum that is not finite in f32.
    ///
    /// # Panics
    /// If `matrix` is not less than `matrices`, or `rows` is not a multiple of `columns`.
    pub(crate) fn add_rows(
        &mut self,
        tensor: &str,
        [matrix, matrices]: [usize; 2],
        rows: &[f32],
        columns: usize,
    ) -> Result<(), Error> {
        assert!(
            matrix < matrices && columns > 0 && rows.len().is_multiple_of(columns),
            "rows of '{tensor}'"
        );
        let added = squares(rows, columns);
        let fresh = || TensorSums {
            sums: vec![0.0; columns * matrices],
            counts: vec![0; matrices],
        };
        let known = self.tensors.get(tensor);
        if let Some(known) =
            known.filter(|k| k.sums.len() != columns * matrices || !fit(k.counts.len(), matrices))
        {
            return Err(other_model(tensor, known, &fresh()));
        }
        let before = |column: usize| known.map_or(0.0, |k| k.sums[matrix * columns + column]);
        if let Some(column) = (0..columns).find(|&c| !((before(c) + added[c]) as f32).is_finite()) {
            return Err(Error::NonFinite {
                tensor: tensor.to_owned(),
                column,
                value: before(column) + added[column],
            });
        }
        let ours = self.tensors.entry(tensor.to_owned()).or_insert_with(fresh);
        broadcast(&mut ours.counts, matrices);
        let range = matrix * columns..(matrix + 1) * columns;
        ours.sums[range]
            .iter_mut()
            .zip(&added)
            .for_each(|(sum, x)| *sum += x);
        ours.counts[matrix] += (rows.len() / columns) as i64;
        Ok(())
    }

    /// Adds the sums of another run of the same model; its texts are appended. Nothing changes on
    /// an error.
    ///
    /// # Errors
    /// Tensors of other shapes, or a sum that is not finite in f32.
    pub fn merge(&mut self, other: &Sums) -> Result<(), Error> {
        for (name, theirs) in &other.tensors {
            let Some(ours) = self.tensors.get(name) else {
                continue;
            };
            if ours.sums.len() != theirs.sums.len() || !fit(ours.counts.len(), theirs.counts.len())
            {
                return Err(other_model(name, ours, theirs));
            }
            let pairs = ours.sums.iter().zip(&theirs.sums).map(|(a, b)| a + b);
            if let Some((i, value)) = pairs
                .enumerate()
                .find(|(_, sum)| !(*sum as f32).is_finite())
            {
                let column =
                    i % (ours.sums.len() / ours.counts.len().max(theirs.counts.len()).max(1));
                return Err(Error::NonFinite {
                    tensor: name.clone(),
                    column,
                    value,
                });
            }
        }
        for (name, theirs) in &other.tensors {
            let Some(ours) = self.tensors.get_mut(name) else {
                self.tensors.insert(name.clone(), theirs.clone());
                continue;
            };
            ours.sums
                .iter_mut()
                .zip(&theirs.sums)
                .for_each(|(sum, x)| *sum += x);
            let mut counts = theirs.counts.clone();
            broadcast(&mut counts, ours.counts.len());
            broadcast(&mut ours.counts, counts.len());
            ours.counts
                .iter_mut()
                .zip(counts)
                .for_each(|(count, n)| *count = count.saturating_add(n));
        }
        self.datasets.extend_from_slice(&other.datasets);
        Ok(())
    }

    /// Adds the sums of a file, whose tensors must belong to the same layers; otherwise as
    /// [`Sums::merge`].
    ///
    /// # Errors
    /// Tensors of other layers, and the errors of [`Sums::merge`].
    pub fn merge_file(&mut self, theirs: &Sums) -> Result<(), Error> {
        let blocks = |sums: &Sums| {
            sums.tensors
                .keys()
                .filter_map(|name| block_of(name))
                .collect::<BTreeSet<_>>()
        };
        let (ours, other) = (blocks(self), blocks(theirs));
        if !self.tensors.is_empty() && ours != other {
            return Err(Error::OtherBlocks {
                ours: ours.len(),
                theirs: other.len(),
            });
        }
        self.merge(theirs)
    }

    /// Checks the sums against a model. `dims` returns the dimensions of its tensors, row length
    /// first.
    ///
    /// # Errors
    /// A tensor that the model lacks or has in another shape.
    pub fn check_model(&self, dims: impl Fn(&str) -> Option<Vec<u64>>) -> Result<(), Error> {
        for (name, tensor) in &self.tensors {
            let other = |ours: String| {
                let theirs = format!(
                    "{} sums for {} counts",
                    tensor.sums.len(),
                    tensor.counts.len()
                );
                Err(Error::OtherTensor {
                    tensor: name.clone(),
                    ours,
                    theirs,
                })
            };
            let Some(dims) = dims(name) else {
                return other("has no such tensor".into());
            };
            let matrices = dims.iter().skip(2).product::<u64>();
            let columns = dims.first().copied().unwrap_or(0);
            let counts = tensor.counts.len() as u64;
            if columns.checked_mul(matrices) != Some(tensor.sums.len() as u64)
                || (counts != 1 && counts != matrices)
            {
                return other(format!(
                    "{columns} input channels in each of {matrices} matrices"
                ));
            }
        }
        Ok(())
    }

    /// The sums in a file. A `.dat` file counts chunks instead of tokens, so `chunk_size` gives
    /// their number of tokens.
    pub fn of_file(file: &Imatrix, chunk_size: u32) -> Sums {
        let scale = if file.chunk_size == 0 {
            i64::from(chunk_size)
        } else {
            1
        };
        let tensor = |entry: &Entry| TensorSums {
            sums: entry
                .sums
                .iter()
                .map(|&sum| f64::from(sum) * scale as f64)
                .collect(),
            counts: entry
                .counts
                .iter()
                .map(|count| count.saturating_mul(scale))
                .collect(),
        };
        let tensors = file
            .entries
            .iter()
            .map(|(name, entry)| (name.clone(), tensor(entry)))
            .collect();
        Sums {
            tensors,
            datasets: file.datasets.clone(),
        }
    }

    /// Content of a file for chunks of `chunk_size` tokens. The number of chunks follows from the
    /// largest count.
    pub fn to_file(&self, chunk_size: u32) -> Imatrix {
        let entry = |t: &TensorSums| Entry {
            sums: t.sums.iter().map(|&x| x as f32).collect(),
            counts: t.counts.clone(),
        };
        let most = self
            .tensors
            .values()
            .flat_map(|t| &t.counts)
            .copied()
            .max()
            .unwrap_or(0);
        Imatrix {
            entries: self
                .tensors
                .iter()
                .map(|(name, t)| (name.clone(), entry(t)))
                .collect(),
            datasets: self.datasets.clone(),
            chunk_count: u32::try_from(most / i64::from(chunk_size.max(1))).unwrap_or(u32::MAX),
            chunk_size,
        }
    }
}

/// Sums of squares by column, in row order.
fn squares(rows: &[f32], columns: usize) -> Vec<f64> {
    /// Rows per pass over the sums, to reduce loads and stores.
    const TOGETHER: usize = 4;
    let mut sums = vec![0f64; columns];
    let square = |x: f32| f64::from(x) * f64::from(x);
    vectorized(
        #[inline(always)]
        || {
            let mut groups = rows.chunks_exact(TOGETHER * columns);
            for group in &mut groups {
                let (a, rest) = group.split_at(columns);
                let (b, rest) = rest.split_at(columns);
                let (c, d) = rest.split_at(columns);
                for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *sum = (((*sum + square(*a)) + square(*b)) + square(*c)) + square(*d);
                }
            }
            for row in groups.remainder().chunks_exact(columns) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, x)| *sum += square(*x));
            }
        },
    );
    sums
}

/// True if counts of these numbers of matrices can be added: a single count applies to all.
fn fit(a: usize, b: usize) -> bool {
    a == b || a == 1 || b == 1
}

fn broadcast(counts: &mut Vec<i64>, matrices: usize) {
    if counts.len() == 1 {
        counts.resize(matrices.max(1), counts[0]);
    }
}

fn other_model(tensor: &str, ours: &TensorSums, theirs: &TensorSums) -> Error {
    let size = |t: &TensorSums| format!("{} sums for {} counts", t.sums.len(), t.counts.len());
    Error::OtherModel {
        tensor: tensor.to_owned(),
        ours: size(ours),
        theirs: size(theirs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(rows: &[f32], expert: usize) -> Sums {
        let mut sums = Sums::default();
        sums.add_rows("blk.0.ffn_down_exps.weight", [expert, 3], rows, 2)
            .unwrap();
        sums
    }

    #[test]
    fn bad_rows_change_nothing() {
        let mut sums = of(&[1.0, 2.0, 3.0, 4.0], 1);
        let before = sums.clone();
        let t = &before.tensors["blk.0.ffn_down_exps.weight"];
        assert_eq!(
            (&t.sums[..], &t.counts[..]),
            (&[0.0, 0.0, 10.0, 20.0, 0.0, 0.0][..], &[0, 2, 0][..])
        );
        for value in [f32::NAN, f32::INFINITY, f32::MAX] {
            let error = sums
                .add_rows("blk.0.ffn_down_exps.weight", [0, 3], &[1.0, value], 2)
                .unwrap_err();
            assert!(
                error.to_string().contains("'blk.0.ffn_down_exps.weight'"),
                "{error}"
            );
        }
        assert!(matches!(
            sums.add_rows("blk.0.ffn_down_exps.weight", [0, 3], &[1.0; 3], 3),
            Err(Error::OtherModel { .. })
        ));
        let mut other = Sums::default();
        other
            .add_rows("blk.0.ffn_down_exps.weight", [0, 2], &[1.0, 2.0], 2)
            .unwrap();
        assert!(matches!(sums.merge(&other), Err(Error::OtherModel { .. })));
        assert_eq!(sums, before);
    }

    #[test]
    fn other_models_are_detected_by_their_tensors() {
        let sums = |names: &[&str]| {
            let mut sums = Sums::default();
            names
                .iter()
                .for_each(|name| sums.add_rows(name, [0, 1], &[1.0, 2.0], 2).unwrap());
            sums
        };
        let mut two = sums(&["blk.0.attn_q.weight", "blk.1.attn_q.weight"]);
        let error = two.merge_file(&sums(&["blk.0.attn_q.weight"])).unwrap_err();
        assert_eq!(error, Error::OtherBlocks { ours: 2, theirs: 1 });
        two.merge_file(&sums(&[
            "blk.0.attn_k.weight",
            "blk.1.attn_q.weight",
            "output.weight",
        ]))
        .unwrap();
        let dims = |dims: &[u64]| {
            let dims = dims.to_vec();
            move |_: &str| Some(dims.clone())
        };
        two.check_model(dims(&[2, 9])).unwrap();
        assert!(
            two.check_model(dims(&[3, 9]))
                .unwrap_err()
                .to_string()
                .contains("3 input channels")
        );
        assert!(
            two.check_model(|_| None)
                .unwrap_err()
                .to_string()
                .contains("no such tensor")
        );
        of(&[1.0, 2.0], 0).check_model(dims(&[2, 9, 3])).unwrap();
        assert!(of(&[1.0, 2.0], 0).check_model(dims(&[2, 9, 2])).is_err());
    }

    proptest! {
        #[test]
        fn parts_from_several_machines_equal_one_run(
            chunks in prop::collection::vec((prop::collection::vec(-1e3f32..1e3, 8), 0usize..3), 3..9),
            cut in any::<prop::sample::Index>(),
        ) {
            let run = |chunks: &[(Vec<f32>, usize)]| {
                let mut sums = Sums::default();
                chunks.iter().for_each(|(rows, expert)| sums.merge(&of(rows, *expert)).unwrap());
                sums
            };
            let whole = run(&chunks).to_file(4);
            let (a, b) = chunks.split_at(cut.index(chunks.len()));
            // Through files, as exchanged between machines.
            let [a, b] = [a, b].map(|part| Sums::of_file(&run(part).to_file(4), 4));
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.merge(&b).unwrap();
            ba.merge(&a).unwrap();
            prop_assert_eq!(ab.to_file(4), ba.to_file(4));
            for (name, entry) in &ab.to_file(4).entries {
                prop_assert_eq!(&entry.counts, &whole.entries[name].counts);
                for (x, y) in entry.sums.iter().zip(&whole.entries[name].sums) {
                    prop_assert!((x - y).abs() <= 2.0 * f32::EPSILON * y, "{} {}", x, y);
                }
            }
        }
    }
}
