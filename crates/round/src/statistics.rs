//! Statistics of a linear's inputs: the factored Hessian, held-out rows, and the target shift of
//! sequential rounding.

use crate::factor::InputCurvature;
use crate::hessian::{PairMeans, PairSums};
use crate::matrix::{View, add_product, multiply, subtract_product};
use crate::{DAMPING, InputFactor, NoFactor, extension};
use std::sync::Arc;

/// Statistics of the inputs of one matrix.
pub struct InputStatistics {
    pub(crate) factor: Arc<InputFactor>,
    /// The Hessian itself, for changes after rounding.
    pub(crate) curvature: Arc<InputCurvature>,
    /// Held-out rows, not contained in the factor: `[rows, columns]`.
    pub(crate) held_out: Arc<Vec<f32>>,
    /// Factors that scale the held-out rows to one power.
    pub(crate) even: Arc<Vec<f32>>,
    /// The target shift of sequential rounding.
    pub(crate) shift: Option<Arc<TargetShift>>,
}

/// The target shift of a matrix with inputs `x` in the original model and `z` in the rounded one
/// (GPTAQ, Li et al. 2025).
pub(crate) struct TargetShift {
    /// `E[(x - z) z^T] E[z z^T]^-1`, `[columns, columns]`: the linear prediction of `x - z` from
    /// `z`.
    map: Vec<f32>,
    /// The `x` of the held-out `z`: `[rows, columns]`.
    held_out: Vec<f32>,
}

/// The factor of a Hessian, a mean over `rows` inputs, with its damping, computed on the threads of the current
/// pool; `None` if all inputs are zero.
pub(crate) fn factored(
    mean: &[f32],
    columns: usize,
    rows: u64,
) -> Result<Option<(InputFactor, f64)>, NoFactor> {
    let mut damping = damping(columns, rows);
    loop {
        match InputFactor::new(mean, columns, damping, rayon::current_num_threads()) {
            Ok(factor) => return Ok(Some((factor, damping))),
            Err(NoFactor::Zero) => return Ok(None),
            // With few rows, f32 rounding can leave negative eigenvalues.
            Err(NoFactor::Negative { .. }) if damping < 1.0 => damping *= 10.0,
            Err(error) => return Err(error),
        }
    }
}

/// Damping of a Hessian, relative to the mean of its diagonal: stronger with fewer rows than
/// columns.
fn damping(columns: usize, rows: u64) -> f64 {
    DAMPING * (1.0 + columns as f64 / rows.max(1) as f64)
}

impl InputStatistics {
    /// Statistics of a Hessian without held-out inputs: the rounding has no proof. Factored on the threads of
    /// the current pool.
    ///
    /// # Errors
    /// Those of [`InputFactor::new`].
    pub fn unjudged(mean: Vec<f32>, columns: usize) -> Result<InputStatistics, NoFactor> {
        let factor = InputFactor::new(&mean, columns, DAMPING, rayon::current_num_threads())?;
        Ok(InputStatistics {
            factor: factor.into(),
            curvature: InputCurvature::new(mean, columns, DAMPING).into(),
            held_out: Arc::default(),
            even: Arc::default(),
            shift: None,
        })
    }

    /// Statistics for sequential rounding. The rounding target is then not the original weights but
    /// those whose products with the rounded model's inputs are closest to the original products
    /// (GPTAQ, Li et al. 2025), scaled down as far as held-out rows require. `None` if all inputs
    /// are zero. Computed on the threads of the current pool.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn of_pairs(means: PairMeans) -> Result<Option<InputStatistics>, NoFactor> {
        let PairMeans {
            columns,
            rows,
            mean,
            mut cross,
            samples: [original, rounded],
            ..
        } = means;
        let Some((factor, damping)) = factored(&mean, columns, rows)? else {
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
        let trust = trust(&cross, [&original, &rounded], columns, split);
        cross.iter_mut().for_each(|x| *x *= trust);
        Ok(Some(InputStatistics {
            factor: factor.into(),
            curvature: InputCurvature::new(mean, columns, damping).into(),
            even: even(&rounded, columns).into(),
            held_out: rounded.into(),
            shift: Some(Arc::new(TargetShift {
                map: cross,
                held_out: original,
            })),
        }))
    }

    /// Statistics of one expert: its own input Hessian, with the target shift and the held-out rows
    /// of all experts' tokens.
    pub fn with_shift_of(&self, all: &InputStatistics) -> InputStatistics {
        InputStatistics {
            factor: self.factor.clone(),
            curvature: self.curvature.clone(),
            held_out: all.held_out.clone(),
            even: all.even.clone(),
            shift: all.shift.clone(),
        }
    }

    /// Upper bound of the peak memory of statistics of `columns` columns, in bytes: the sums of
    /// pairs, then a factor beside the means.
    pub fn working_bytes(columns: u64) -> u64 {
        PairSums::bytes(columns as usize)
            .max(InputFactor::working_bytes(columns) + extension::MEANS * 4 * columns * columns)
    }

    pub(crate) fn columns(&self) -> usize {
        self.factor.columns()
    }

    /// The rounding target of rows of weights `[rows, columns]`.
    pub(crate) fn target(&self, weights: &[f32], split: usize) -> Vec<f32> {
        let (n, mut target) = (self.columns(), weights.to_vec());
        if let Some(shift) = &self.shift {
            let rows = View::new(weights, weights.len() / n, n, n);
            add_product(rows, View::new(&shift.map, n, n, n), &mut target, n, split);
        }
        target
    }

    /// Sum of squares of the products of rows of weights with held-out inputs.
    pub(crate) fn power(&self, weights: &[f32]) -> f64 {
        squares(&self.original_products(weights, 1))
    }

    /// Products of rows of weights with held-out inputs of the original model.
    pub(crate) fn original_products(&self, weights: &[f32], split: usize) -> Vec<f32> {
        let inputs = match &self.shift {
            Some(shift) => &shift.held_out,
            None => &*self.held_out,
        };
        self.products(weights, inputs, split)
    }

    /// Squared error of the products of `rounded` weights, which is overwritten, and the same with all
    /// held-out inputs scaled to one power.
    pub(crate) fn squared_errors(&self, weights: &[f32], rounded: &mut [f32]) -> [f64; 2] {
        let mut errors = self.errors(weights, rounded, 1);
        let all = squares(&errors);
        for errors in errors.chunks_exact_mut(self.even.len().max(1)) {
            errors
                .iter_mut()
                .zip(&*self.even)
                .for_each(|(error, scale)| *error *= scale);
        }
        [all, squares(&errors)]
    }

    /// Errors of the products of `rounded` weights with held-out inputs, `[rows, held out]`.
    /// `rounded` is overwritten.
    pub(crate) fn errors(&self, weights: &[f32], rounded: &mut [f32], split: usize) -> Vec<f32> {
        let Some(shift) = &self.shift else {
            rounded
                .iter_mut()
                .zip(weights)
                .for_each(|(rounded, w)| *rounded -= w);
            return self.products(rounded, &self.held_out, split);
        };
        let mut errors = self.products(weights, &shift.held_out, split);
        let n = self.columns();
        let inputs = self.held_out.len() / n;
        subtract_product(
            View::new(rounded, rounded.len() / n, n, n),
            View::new(&self.held_out, inputs, n, n).transposed(),
            &mut errors,
            inputs,
            split,
        );
        errors
    }

    /// Products of rows with inputs: `[rows, inputs]`.
    fn products(&self, rows: &[f32], inputs: &[f32], split: usize) -> Vec<f32> {
        let n = self.columns();
        let (count, input_count) = (rows.len() / n, inputs.len() / n);
        let mut products = vec![0.0f32; count * input_count];
        multiply(
            View::new(rows, count, n, n),
            View::new(inputs, input_count, n, n).transposed(),
            &mut products,
            input_count,
            split,
        );
        products
    }
}

/// Factors that scale rows of inputs `[rows, columns]` to one power; 0 for rows of zeros.
pub(crate) fn even(held_out: &[f32], columns: usize) -> Vec<f32> {
    let rows = held_out.chunks_exact(columns.max(1));
    let factor = |row: &[f32]| match squares(row) {
        power if power > 0.0 => (columns as f64 / power).sqrt() as f32,
        _ => 0.0,
    };
    rows.map(factor).collect()
}

/// Factor from 0 to 1 for the map `[n, n]` from `z` to `x - z` with the best prediction on held-out
/// rows of `x` and `z`; 1 without such rows.
fn trust(map: &[f32], [x, z]: [&[f32]; 2], n: usize, split: usize) -> f32 {
    let rows = z.len() / n;
    let mut predicted = vec![0.0f32; z.len()];
    multiply(
        View::new(z, rows, n, n),
        View::new(map, n, n, n).transposed(),
        &mut predicted,
        n,
        split,
    );
    let dot = |other: &dyn Fn(usize) -> f32| -> f64 {
        (0..predicted.len())
            .map(|i| f64::from(predicted[i]) * f64::from(other(i)))
            .sum()
    };
    let (with_truth, with_itself) = (dot(&|i| x[i] - z[i]), dot(&|i| predicted[i]));
    if with_itself > 0.0 {
        (with_truth / with_itself).clamp(0.0, 1.0) as f32
    } else {
        1.0
    }
}

/// Sum of squares, in f32 for a few hundred numbers at a time.
fn squares(numbers: &[f32]) -> f64 {
    numbers
        .chunks(512)
        .map(|some| f64::from(some.iter().map(|x| x * x).sum::<f32>()))
        .sum()
}
