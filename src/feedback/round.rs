//! Rounding a tensor's rows with what is known of its inputs, and the proof that it was worth it.

use super::{DAMPING, Factor, NoFactor, RowFactor, round_rows};
use crate::covariance::{Identity, Paired, Pairs, Store};
use crate::format;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::matrix::{View, add_product, multiply, subtract_product};
use crate::quant::Codec;
use crate::simd::LANES;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How weights are rounded to the levels of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest level, byte for byte as the reference does.
    #[default]
    Reference,
    /// With error feedback (GPTQ), from input Hessians.
    Feedback {
        /// Each linear is calibrated on the activations of the already rounded model (GPTAQ).
        sequential: bool,
        /// The rows of a matrix are rounded jointly, weighted by its output Hessian (YAQA).
        two_sided: bool,
    },
}

impl Rounding {
    /// Error feedback in its simplest form: neither sequential nor two-sided.
    pub const FEEDBACK: Rounding = Rounding::Feedback {
        sequential: false,
        two_sided: false,
    };

    /// Whether there is error feedback.
    pub fn has_feedback(self) -> bool {
        self != Rounding::Reference
    }

    /// Whether each linear is calibrated on the activations of the already rounded model.
    pub fn is_sequential(self) -> bool {
        matches!(
            self,
            Rounding::Feedback {
                sequential: true,
                ..
            }
        )
    }

    /// Whether rows are rounded jointly.
    pub fn is_two_sided(self) -> bool {
        matches!(
            self,
            Rounding::Feedback {
                two_sided: true,
                ..
            }
        )
    }

    /// Its name in a file's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Reference => "reference",
            Rounding::Feedback {
                sequential: false, ..
            } => "feedback",
            Rounding::Feedback {
                sequential: true, ..
            } => "propagated",
        }
    }
}

/// The inputs of all matrices of a model, as far as they were collected.
pub struct Feedback {
    directory: PathBuf,
    store: Store,
    /// What was asked for last: matrices that share an input follow each other.
    last: Mutex<Option<(Identity, Option<Arc<Inputs>>)>>,
}

/// What is known of the inputs of one matrix.
pub struct Inputs {
    factor: Arc<Factor>,
    /// Rows that the factor has not seen: `[rows, columns]`.
    sample: Arc<Vec<f32>>,
    /// What is known of the inputs of the matrix as it is, if the rounded one has others.
    moved: Option<Arc<Moved>>,
}

/// Of a matrix that meets `x`, and whose rounded form meets `z`, since what is before it was
/// rounded too.
struct Moved {
    /// `E[(x - z) z^T] E[z z^T]^-1`, `[columns, columns]`: the linear map that makes of `z` what is
    /// best known of `x - z`.
    map: Vec<f32>,
    /// Those `x` whose `z` is in the sample: `[rows, columns]`.
    sample: Vec<f32>,
}

/// What rounding did to rows: the errors of their products with inputs that it has not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Sum of the squared errors, as the reference rounds.
    pub reference: f64,
    /// The same of what was taken.
    pub taken: f64,
    /// Sum of the squares of the products themselves.
    pub power: f64,
    /// Rows that were rounded.
    pub rows: u64,
    /// Rows where the reference's rounding was taken, since its error was smaller.
    pub by_reference: u64,
}

impl Proof {
    /// That of more rows.
    pub fn add(&mut self, other: &Proof) {
        self.reference += other.reference;
        self.taken += other.taken;
        self.power += other.power;
        self.rows += other.rows;
        self.by_reference += other.by_reference;
    }

    /// The error that is left, as a part of the reference's; `None` where that had none, or nothing
    /// was held out.
    pub fn ratio(&self) -> Option<f64> {
        (self.reference > 0.0).then(|| self.taken / self.reference)
    }
}

/// The geometric mean of ratios, the least and the largest; `None` if there are none.
pub fn spread(ratios: &[f64]) -> Option<[f64; 3]> {
    let logarithms = ratios.iter().map(|r| r.max(f64::MIN_POSITIVE).ln());
    let mean = (logarithms.sum::<f64>() / ratios.len() as f64).exp();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    (!ratios.is_empty()).then_some([mean, least, most])
}

/// What was proved of one tensor in one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proved {
    /// The tensor, as it is called in the output.
    pub tensor: String,
    /// Its type there.
    #[serde(rename = "type")]
    pub ggml_type: GgmlType,
    /// What was measured.
    #[serde(flatten)]
    pub proof: Proof,
}

impl Feedback {
    /// Opens a directory of covariances.
    ///
    /// # Errors
    /// If it is not complete, or damaged.
    pub fn open(directory: &Path) -> format::Result<Feedback> {
        let store = Store::open(directory)?;
        Ok(Feedback {
            directory: directory.to_owned(),
            store,
            last: Mutex::default(),
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All that it depends on.
    pub fn key(&self) -> &Key {
        self.store.key()
    }

    /// Whether there is something for a tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.store.identity(tensor, 0).is_some()
    }

    /// How many input channels and matrices a tensor has here; `None` if there is nothing for it.
    pub fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        self.store.shape(tensor)
    }

    /// What the user should know where fewer tokens were seen than a matrix has input channels.
    pub fn few_tokens(&self) -> Option<String> {
        let few: Vec<_> = self.store.of_few_rows().collect();
        let (name, rows, columns) = few
            .iter()
            .max_by_key(|(_, rows, columns)| *columns as u64 - rows)?;
        Some(format!(
            "the covariances of {} tensors are of fewer tokens than they have input channels ('{name}': {rows} tokens, \
             {columns} channels), so that errors are fed back only in part: at least {} tokens are needed, and several \
             times as many are better",
            few.len(),
            // One chunk of so many is held out.
            columns + columns.div_ceil(crate::covariance::HELD_OUT - 1)
        ))
    }

    /// The tensors that there is something for, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.store.names()
    }

    /// What is known of the inputs of matrix `matrix` of a tensor, factored on the threads of the
    /// pool that it is called in; `None` if nothing is, or its inputs were all zero.
    ///
    /// # Errors
    /// Files that are damaged or of another model.
    pub fn inputs(
        &self,
        tensor: &str,
        matrix: usize,
        columns: usize,
    ) -> format::Result<Option<Arc<Inputs>>> {
        let Some(identity) = self.store.identity(tensor, matrix) else {
            return Ok(None);
        };
        let bad = |what: String| format::Error::Bad {
            path: self.directory.clone(),
            what: format!("the covariance of the inputs of '{tensor}': {what}"),
        };
        if let Some([of, _]) = self.store.shape(tensor).filter(|[of, _]| *of != columns) {
            return Err(bad(format!(
                "it is of {of} channels and {columns} are needed; it is of another model"
            )));
        }
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((_, inputs)) = last.filter(|(of, _)| *of == identity) {
            return Ok(inputs);
        }
        let Some(of) = self.store.get(tensor, matrix)? else {
            return Ok(None);
        };
        let factor =
            factored(&of.mean, columns, of.rows).map_err(|error| bad(error.to_string()))?;
        let inputs = factor.map(|factor| {
            Arc::new(Inputs {
                factor: factor.into(),
                sample: of.sample.into(),
                moved: None,
            })
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((identity, inputs.clone()));
        Ok(inputs)
    }
}

/// The factor of a covariance of so many rows, made on the threads of the pool that this is called
/// in; `None` if all rows were zero.
fn factored(mean: &[f32], columns: usize, rows: u64) -> Result<Option<Factor>, NoFactor> {
    let mut damping = damping(columns, rows);
    loop {
        match Factor::new(mean, columns, damping, rayon::current_num_threads()) {
            Ok(factor) => return Ok(Some(factor)),
            Err(NoFactor::Zero) => return Ok(None),
            // Of so few rows that rounding errors show: a covariance has no negative squares.
            Err(NoFactor::Negative { .. }) if damping < 1.0 => damping *= 10.0,
            Err(error) => return Err(error),
        }
    }
}

/// What is added to the diagonal of a covariance, as a part of its mean: more where fewer rows than
/// columns were seen.
fn damping(columns: usize, rows: u64) -> f64 {
    DAMPING * (1.0 + columns as f64 / rows.max(1) as f64)
}

impl Inputs {
    /// Of a matrix that meets something else when it is rounded than it does as it is. Then it is
    /// not its weights that are rounded but those that make, of what the rounded one meets, what
    /// comes nearest to the products as they were (GPTAQ, Li et al. 2025); as much of the way there
    /// as holds for rows that were held out. `None` if all it meets is zero. Made on the threads of
    /// the pool that this is called in.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn of_pairs(paired: Paired) -> Result<Option<Inputs>, NoFactor> {
        let Paired {
            columns,
            rows,
            mean,
            mut cross,
            samples: [sample, of_rounded],
        } = paired;
        let Some(factor) = factored(&mean, columns, rows)? else {
            return Ok(None);
        };
        if let Some(at) = cross.iter().position(|x| !x.is_finite()) {
            return Err(NoFactor::NotFinite {
                row: at / columns,
                column: at % columns,
            });
        }
        let split = rayon::current_num_threads();
        factor.divide(&mut cross, split);
        let part = part_that_holds(&cross, [&sample, &of_rounded], columns, split);
        cross.iter_mut().for_each(|x| *x *= part);
        let moved = Some(Moved { map: cross, sample }.into());
        Ok(Some(Inputs {
            factor: factor.into(),
            sample: of_rounded.into(),
            moved,
        }))
    }

    /// Of one expert, of whose own inputs in the model as it is these are, with what `all`
    /// positions tell of what the rounded experts meet. The held-out rows are those of all
    /// positions.
    pub fn moved_as(&self, all: &Inputs) -> Inputs {
        Inputs {
            factor: self.factor.clone(),
            sample: all.sample.clone(),
            moved: all.moved.clone(),
        }
    }

    /// What making those of so many columns takes at most: the sums of pairs, and then the factor
    /// beside what was made of them.
    pub fn working_bytes(columns: u64) -> u64 {
        Pairs::bytes(columns as usize).max(Factor::working_bytes(columns) + 4 * columns * columns)
    }

    /// Rounds rows of weights, `[rows, columns]`, with error feedback; and as the reference does
    /// where that has the smaller error with inputs that were held out. The proof has no
    /// [`Proof::power`], which is the same for all types: [`Inputs::power`] gives it.
    ///
    /// # Panics
    /// As [`round_rows`].
    pub fn round(
        &self,
        codec: &Codec,
        importance: Option<&[f32]>,
        weights: &[f32],
        out: &mut [u8],
    ) -> Proof {
        let n = self.factor.columns();
        let rows = weights.len() / n;
        let row_bytes = out.len() / rows.max(1);
        let mut rounded = self.target(weights, 1);
        round_rows(codec, &self.factor, &mut rounded, out);
        if self.sample.is_empty() {
            return Proof {
                rows: rows as u64,
                ..Proof::default()
            };
        }
        codec.dequantize_row(out, &mut rounded);
        let feedback = self.error(weights, &mut rounded);
        let mut other = vec![0; out.len()];
        for (x, y) in weights
            .chunks_exact(n)
            .zip(other.chunks_exact_mut(row_bytes))
        {
            codec.quantize_row(x, importance, y);
        }
        codec.dequantize_row(&other, &mut rounded);
        better(
            [feedback, self.error(weights, &mut rounded)],
            rows,
            out,
            &other,
        )
    }

    /// What rows of weights `[rows, columns]` are to be rounded to.
    fn target(&self, weights: &[f32], split: usize) -> Vec<f32> {
        let (n, mut target) = (self.factor.columns(), weights.to_vec());
        if let Some(moved) = &self.moved {
            let rows = View::new(weights, weights.len() / n, n, n);
            add_product(rows, View::new(&moved.map, n, n, n), &mut target, n, split);
        }
        target
    }

    /// Rounds a whole matrix of weights, `[rows, columns]`, with error feedback along its rows and
    /// between them; and as the reference does if that costs less with inputs that were held out.
    /// On all threads of the pool that this is called in, whose number changes nothing. Errors and
    /// powers of the proof are weighted by the gradients.
    ///
    /// # Panics
    /// As [`round_rows`].
    pub fn round_together(
        &self,
        rows: &RowFactor,
        codec: &Codec,
        importance: Option<&[f32]>,
        weights: &[f32],
        out: &mut [u8],
    ) -> Proof {
        let (n, m, threads) = (
            self.factor.columns(),
            rows.rows(),
            rayon::current_num_threads(),
        );
        assert_eq!(
            (weights.len(), out.len() % m),
            (m * n, 0),
            "a matrix of {m} rows"
        );
        let row_bytes = out.len() / m;
        rows.through(&self.target(weights, threads), n, threads, |of, numbers| {
            let here = of.len().div_ceil(threads).next_multiple_of(LANES);
            let mut blocks = vec![0u8; of.len() * row_bytes];
            numbers
                .par_chunks_mut(here * n)
                .zip(blocks.par_chunks_mut(here * row_bytes))
                .for_each(|(x, y)| {
                    round_rows(codec, &self.factor, x, y);
                    codec.dequantize_row(y, x);
                });
            let of_rows = of.iter().zip(blocks.chunks_exact(row_bytes));
            of_rows.for_each(|(row, blocks)| {
                out[row * row_bytes..][..row_bytes].copy_from_slice(blocks)
            });
        });
        if self.sample.is_empty() {
            return Proof {
                rows: m as u64,
                ..Proof::default()
            };
        }
        let cost = |blocks: &[u8]| {
            let mut rounded = vec![0.0; m * n];
            codec.dequantize_row(blocks, &mut rounded);
            rows.cost(&self.errors(weights, &mut rounded, threads), threads)
        };
        let mut other = vec![0; out.len()];
        let of_rows = weights
            .par_chunks_exact(n)
            .zip(other.par_chunks_exact_mut(row_bytes));
        of_rows.for_each(|(x, y)| codec.quantize_row(x, importance, y));
        let power = rows.cost(&self.products(weights, self.as_it_is(), threads), threads);
        Proof {
            power,
            ..better([cost(out), cost(&other)], m, out, &other)
        }
    }

    /// Held-out rows that the matrix as it is meets.
    fn as_it_is(&self) -> &[f32] {
        self.moved
            .as_ref()
            .map_or(self.sample.as_slice(), |moved| moved.sample.as_slice())
    }

    /// The sum of the squares of the products of rows of weights with inputs that were held out.
    pub fn power(&self, weights: &[f32]) -> f64 {
        squares(&self.products(weights, self.as_it_is(), 1))
    }

    /// The squared error of the products, of weights that became `rounded`, which is lost.
    fn error(&self, weights: &[f32], rounded: &mut [f32]) -> f64 {
        squares(&self.errors(weights, rounded, 1))
    }

    /// The errors of the products with what was held out, `[rows, held out]`, of weights that
    /// became `rounded`, which is lost.
    fn errors(&self, weights: &[f32], rounded: &mut [f32], split: usize) -> Vec<f32> {
        let Some(moved) = &self.moved else {
            rounded
                .iter_mut()
                .zip(weights)
                .for_each(|(rounded, w)| *rounded -= w);
            return self.products(rounded, &self.sample, split);
        };
        let mut errors = self.products(weights, &moved.sample, split);
        let (n, sampled) = (
            self.factor.columns(),
            self.sample.len() / self.factor.columns(),
        );
        let rows = View::new(rounded, rounded.len() / n, n, n);
        subtract_product(
            rows,
            View::new(&self.sample, sampled, n, n).transposed(),
            &mut errors,
            sampled,
            split,
        );
        errors
    }

    /// The products of rows with those of a sample: `[rows, sampled]`.
    fn products(&self, rows: &[f32], sample: &[f32], split: usize) -> Vec<f32> {
        let n = self.factor.columns();
        let (count, sampled) = (rows.len() / n, sample.len() / n);
        let mut products = vec![0.0f32; count * sampled];
        let sample = View::new(sample, sampled, n, n);
        multiply(
            View::new(rows, count, n, n),
            sample.transposed(),
            &mut products,
            sampled,
            split,
        );
        products
    }
}

/// How much of the map `[n, n]` from `z` to `x - z` is to be believed, 0 to 1: the part of it that
/// comes nearest on these rows of `x` and `z`, which it was not made of. All of it, where there are
/// none.
fn part_that_holds(map: &[f32], [x, z]: [&[f32]; 2], n: usize, split: usize) -> f32 {
    let rows = z.len() / n;
    let mut told = vec![0.0f32; z.len()];
    multiply(
        View::new(z, rows, n, n),
        View::new(map, n, n, n).transposed(),
        &mut told,
        n,
        split,
    );
    let dot = |of: &dyn Fn(usize) -> f32| -> f64 {
        (0..told.len())
            .map(|i| f64::from(told[i]) * f64::from(of(i)))
            .sum()
    };
    let (both, own) = (dot(&|i| x[i] - z[i]), dot(&|i| told[i]));
    if own > 0.0 {
        (both / own).clamp(0.0, 1.0) as f32
    } else {
        1.0
    }
}

/// Takes what the reference makes of rows, if its error is the smaller of both: that of feedback,
/// whose blocks are there, then its.
fn better([feedback, reference]: [f64; 2], rows: usize, out: &mut [u8], other: &[u8]) -> Proof {
    let rows = rows as u64;
    // Not a number is not smaller.
    if feedback > reference || feedback.is_nan() {
        out.copy_from_slice(other);
        return Proof {
            reference,
            taken: reference,
            rows,
            by_reference: rows,
            ..Proof::default()
        };
    }
    Proof {
        reference,
        taken: feedback,
        rows,
        ..Proof::default()
    }
}

/// Their sum; a few hundred at a time in f32.
fn squares(numbers: &[f32]) -> f64 {
    numbers
        .chunks(512)
        .map(|some| f64::from(some.iter().map(|x| x * x).sum::<f32>()))
        .sum()
}
