//! Costs of a matrix's types from a sample of its rows.
//!
//! With a row's change `dw`, its input `x` and its output gradient `g`, the cost of a matrix is
//!
//! ```text
//! sum_s (sum_i g_si dw_i . x_s)^2  =  sum_i sum_s (g_si dw_i . x_s)^2  +  products of different rows
//! ```
//!
//! *The first sum* is estimated from some rows of the matrix (see `rows`). It has nearly everything:
//! rows are rounded independently. The expected cost of a row, for the choice of rows, is that of a
//! pilot type, without feedback, at some positions.
//!
//! *Products of different rows* matter at two bits and less, where a type also shrinks outputs:
//! `dw . x = -a w . x + e`, with errors `e` that differ by row. The products are then `a^2` times
//! those of the rows' own outputs, `g_si w_i . x_s`, which are computed once for all types, from some
//! positions. `a` is the regression of the changes of outputs on the outputs. (Of changes on weights,
//! it was several times too large for attn_k: error feedback spares the directions of large inputs.)

use super::rows::{Row, RowSample, RowSum};
use super::saved::Costs;
use super::scores::{
    BLOCK_ROWS, Band, Candidate, Change, add, check_stop, draws_of, positions_of, ratio_of_sums,
};
use super::{OutputRows, Result};
use crate::format::types::GgmlType;
use crate::model::backward::{LinearSamples, Piece};
use crate::model::{Head, rows_times_rows};
use crate::progress::Progress;
use crate::rounding::{Knowledge, Rounder};

/// A fast type with errors like those of others.
const PILOT: GgmlType = GgmlType::Q4_0;
/// Number of positions for expected costs and for products of different rows.
pub(crate) const SURVEY_POSITIONS: usize = 512;
/// Largest standard error of a tensor's costs, relative to them. A row with a cost far beyond that of
/// the pilot type has a large one: in SmolLM2, a channel of huge activations at few bits.
const MOST_ERROR: f64 = 0.1;
/// Times more rows at the next attempt.
const GROWTH: usize = 4;
/// Times more rows for all experts of a tensor together.
const EXPERTS: usize = 4;
/// Fewest rows of an expert.
const EXPERT_ROWS: usize = 8;

/// Treatment of errors at different positions of a chunk, which add up in the square of their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correlation {
    /// Ignored: squares of single positions, of which a sample is known.
    Ignored,
    /// Squares of single positions, times a ratio of squared sums to squares that all types share.
    Ratio,
    /// Squared sums themselves: an embedding depends on all positions of its text at once.
    Sums,
}

/// Selection of rows and positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// Treatment of errors at different positions of a chunk.
    pub(super) correlation: Correlation,
    /// Number of rows of each matrix; 0 for all.
    pub(super) rows: usize,
    pub(super) seed: u64,
}

impl Correlation {
    /// The factor of each type's squares of single positions, given their squared sums over a number of chunks
    /// times draws.
    pub(super) fn ratios(self, squares: &[f64], of_chunks: &[f64], chunks: usize) -> Vec<f64> {
        match self {
            Correlation::Ignored => vec![1.0; squares.len()],
            Correlation::Ratio => vec![ratio_of_sums(squares, of_chunks, chunks); squares.len()],
            Correlation::Sums => {
                let pairs = squares.iter().zip(of_chunks);
                let ratio = |(squares, sums): (&f64, &f64)| match *squares > 0.0 {
                    true => sums / squares,
                    false => 1.0,
                };
                pairs.map(ratio).collect()
            }
        }
    }
}

impl Sampling {
    /// Number of rows of each of a tensor's matrices; `None` for all.
    pub(super) fn rows_of(&self, candidate: &Candidate<'_>, matrices: usize) -> Option<usize> {
        scored_rows(self.rows, matrices).filter(|rows| *rows < candidate.rows())
    }
}

/// Number of scored rows of each of a tensor's matrices, by the number for a single one; `None` for
/// all.
pub(crate) fn scored_rows(rows: usize, matrices: usize) -> Option<usize> {
    let of_expert = || (rows * EXPERTS / matrices).clamp(EXPERT_ROWS.min(rows), rows);
    match (rows, matrices) {
        (0, _) => None,
        (_, 0..=1) => Some(rows),
        _ => Some(of_expert()),
    }
}

/// Facts about all rows of a matrix, from which samples are drawn.
pub(super) struct Survey {
    matrix: usize,
    /// Expected costs of the rows.
    costs: Vec<f64>,
    /// Products of different rows' outputs, summed over positions and draws.
    products: f64,
}

/// Gradients and own outputs of a band's rows, by piece and draw, and the outputs' power.
type Prepared = (Vec<Vec<Vec<f32>>>, Vec<Vec<Vec<f32>>>, f64);
/// Variances and own outputs of a band's logits, and the outputs' power.
type PreparedLogits = (Vec<f32>, Vec<f32>, f64);

/// Rows drawn for scores.
pub(super) struct Drawn {
    rows: RowSample,
    /// As in [`Survey`].
    products: f64,
    correlation: Correlation,
}

impl Survey {
    fn draw(&self, rows: usize, sampling: Sampling) -> Drawn {
        Drawn {
            rows: RowSample::proportional(self.matrix, &self.costs, rows, sampling.seed),
            products: self.products,
            correlation: sampling.correlation,
        }
    }
}

/// Sums over rows for one type.
#[derive(Clone, Copy, Default)]
struct TypeSums {
    /// Squares of single positions.
    squares: RowSum,
    /// Squares of the sums over each chunk.
    in_chunks: f64,
    /// Products of the changes of outputs and the outputs, and of outputs, times squared gradients.
    regression: [f64; 2],
    /// Errors on held-out inputs.
    errors: [f64; 2],
}

impl TypeSums {
    /// Square of the regression of changes on outputs.
    fn shrinkage(&self) -> f64 {
        match self.regression {
            [_, outputs] if outputs <= 0.0 => 0.0,
            [changes, outputs] => (changes / outputs).powi(2),
        }
    }

    /// Adds sums of a row over positions: squares, and products with its own outputs.
    fn add(&mut self, row: &Row, [square, product]: [f64; 2]) {
        self.squares.add(row, square);
        self.regression[0] += row.weight * product;
    }

    fn merge(&mut self, other: &TypeSums) {
        self.squares.merge(&other.squares);
        self.in_chunks += other.in_chunks;
        for i in 0..2 {
            self.regression[i] += other.regression[i];
            self.errors[i] += other.errors[i];
        }
    }
}

/// Squares of `[positions, rows]`, with the weights of the rows.
fn weighted_squares(numbers: &[f32], rows: &[Row]) -> f64 {
    let of_position = |numbers: &[f32]| {
        let squares = numbers.iter().zip(rows);
        squares
            .map(|(x, row)| row.weight * f64::from(x * x))
            .sum::<f64>()
    };
    numbers.chunks_exact(rows.len()).map(of_position).sum()
}

/// Every `step`th row of `[rows, len]`.
fn thinned(numbers: &[f32], len: usize, step: usize) -> Vec<f32> {
    let rows = numbers.chunks_exact(len).step_by(step);
    rows.flatten().copied().collect()
}

/// Columns of `[positions, width]` at some rows of a matrix.
fn gathered(gradients: &[f32], width: usize, rows: &[Row]) -> Vec<f32> {
    let of_position = |g: &[f32]| rows.iter().map(|row| g[row.index]).collect::<Vec<f32>>();
    gradients
        .chunks_exact(width)
        .flat_map(of_position)
        .collect()
}

impl Candidate<'_> {
    /// Costs from at least `rows` rows, and as many as a small standard error takes; `None` if it
    /// takes all of them.
    pub(super) fn of_enough_rows(
        &self,
        mut rows: usize,
        survey: &Survey,
        sampling: Sampling,
        costs_of: impl Fn(&Drawn) -> Result<Costs>,
    ) -> Result<Option<Costs>> {
        while rows < self.rows() {
            let costs = costs_of(&survey.draw(rows, sampling))?;
            if costs.relative_error() <= MOST_ERROR {
                return Ok(Some(costs));
            }
            rows *= GROWTH;
        }
        Ok(None)
    }

    /// Costs from some rows of a linear's matrix: sums of `u^2 / 2` over positions, averaged over
    /// draws.
    pub(super) fn of_some_rows(
        &self,
        samples: &LinearSamples,
        drawn: &Drawn,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        let (n, m, draws) = (samples.columns, samples.width, draws_of(samples));
        let prepare = |band: &Band<'_>| {
            let (mut product, wide) = (Vec::new(), band.rows.len());
            // Gradients and own outputs of the band's rows by piece and draw, [positions, wide].
            let (mut gradients, mut outputs) = (Vec::new(), Vec::new());
            let mut power = 0.0f64;
            for piece in &samples.pieces {
                check_stop(progress)?;
                let rows = piece.inputs.len() / n;
                product.resize(rows * wide, 0.0);
                rows_times_rows(&piece.inputs, &band.weights, [rows, wide, n], &mut product);
                let gather = |g: &Vec<f32>| gathered(g, m, band.rows);
                let of_piece: Vec<Vec<f32>> = piece.gradients.iter().map(gather).collect();
                let own = |g: &Vec<f32>| product.iter().zip(g).map(|(y, g)| y * g).collect();
                let of_outputs: Vec<Vec<f32>> = of_piece.iter().map(own).collect();
                for outputs in &of_outputs {
                    power += weighted_squares(outputs, band.rows);
                }
                gradients.push(of_piece);
                outputs.push(of_outputs);
            }
            Ok((gradients, outputs, power))
        };
        let score = |band: &Band<'_>, (gradients, outputs, power): &Prepared, change: &[f32]| {
            let (mut product, wide) = (Vec::new(), band.rows.len());
            let mut sums = TypeSums::default();
            sums.regression[1] = *power;
            let mut of_band = vec![[0.0f64; 2]; wide];
            let pieces = samples.pieces.iter().zip(gradients.iter().zip(outputs));
            for (piece, (gradients, outputs)) in pieces {
                check_stop(progress)?;
                let rows = piece.inputs.len() / n;
                product.resize(rows * wide, 0.0);
                let shape = [rows, wide, n];
                rows_times_rows(&piece.inputs, change, shape, &mut product);
                for (gradients, outputs) in gradients.iter().zip(outputs) {
                    let mut of_rows = vec![[0.0f32; 3]; wide];
                    let others = gradients.chunks_exact(wide).zip(outputs.chunks_exact(wide));
                    for (product, (gradient, output)) in product.chunks_exact(wide).zip(others) {
                        let others = gradient.iter().zip(output);
                        for ((sums, e), (g, y)) in of_rows.iter_mut().zip(product).zip(others) {
                            let u = e * g;
                            sums[0] += u * u;
                            sums[1] += u * y;
                            sums[2] += u;
                        }
                    }
                    for ((row, all), of_row) in band.rows.iter().zip(&mut of_band).zip(of_rows) {
                        all[0] += f64::from(of_row[0]);
                        all[1] += f64::from(of_row[1]);
                        sums.in_chunks += row.weight * f64::from(of_row[2]).powi(2);
                    }
                }
            }
            let rows = band.rows.iter().zip(of_band);
            rows.for_each(|(row, of_row)| sums.add(row, of_row));
            Ok(sums)
        };
        let all = self.sums_of_types(drawn, progress, prepare, score)?;
        let squares: Vec<f64> = all.iter().map(|sums| sums.squares.sum).collect();
        let in_chunks: Vec<f64> = all.iter().map(|sums| sums.in_chunks).collect();
        let chunks = samples.pieces.len() * draws;
        let ratios = drawn.correlation.ratios(&squares, &in_chunks, chunks);
        let scales: Vec<f64> = ratios
            .iter()
            .map(|ratio| ratio / (2 * draws) as f64)
            .collect();
        Ok(self.costs_of_sums(&all, drawn.products, &scales))
    }

    /// Sums over the drawn rows for each type: `score` of the type's changes of a band, and of that
    /// which `prepare` computes once for all types.
    fn sums_of_types<P>(
        &self,
        drawn: &Drawn,
        progress: &dyn Progress,
        prepare: impl Fn(&Band<'_>) -> Result<P> + Sync,
        score: impl Fn(&Band<'_>, &P, &[f32]) -> Result<TypeSums> + Sync,
    ) -> Result<Vec<TypeSums>> {
        let matrix = drawn.rows.matrix;
        let inputs = self.inputs(matrix)?;
        let knowledge = self.knowledge(matrix, inputs.as_deref());
        let see = |band: Band<'_>| {
            let (mut change, prepared) = (Change::default(), prepare(&band)?);
            let mut of_types = Vec::with_capacity(self.types.len());
            for rounder in &self.types {
                let proof = band.change(rounder, &knowledge, &mut change, progress)?;
                of_types.push(TypeSums {
                    errors: proof.even,
                    ..score(&band, &prepared, &change.weights)?
                });
            }
            Ok(of_types)
        };
        let mut all = vec![TypeSums::default(); self.types.len()];
        self.bands(&drawn.rows, progress, see, |of_types: Vec<TypeSums>| {
            let pairs = all.iter_mut().zip(&of_types);
            pairs.for_each(|(all, sums)| all.merge(sums));
        })?;
        Ok(all)
    }

    /// Costs from the sums over some rows, times the scale of each type.
    fn costs_of_sums(&self, sums: &[TypeSums], products: f64, scales: &[f64]) -> Costs {
        let nats = sums.iter().zip(scales).map(|(sums, scale)| {
            let squares = sums.squares.sum;
            // Negative products of rows cannot exceed the squares.
            (squares + sums.shrinkage() * products).max(squares / 2.0) * scale
        });
        let errors: Vec<f64> = sums.iter().flat_map(|sums| sums.errors).collect();
        let error = sums
            .iter()
            .zip(scales)
            .map(|(sums, scale)| sums.squares.error() * scale)
            .sum::<f64>();
        Costs {
            error: error / sums.len().max(1) as f64,
            ..self.costs(nats.collect(), &errors)
        }
    }

    /// Changes of a band by the pilot type, or its weights if their rows do not fit that type.
    fn pilot(&self, band: &Band<'_>, progress: &dyn Progress) -> Result<Vec<f32>> {
        let Some(rounder) = Rounder::new(PILOT, self.columns()) else {
            return Ok(band.weights.clone());
        };
        let mut change = Change::default();
        band.change(&rounder, &Knowledge::default(), &mut change, progress)?;
        Ok(change.weights)
    }

    /// Runs `see` on all rows of a matrix: numbers of each row, and sums over the rows of two other
    /// lists.
    fn surveyed(
        &self,
        matrix: usize,
        progress: &dyn Progress,
        see: impl Fn(Band<'_>) -> Result<[Vec<f64>; 3]> + Sync,
    ) -> Result<[Vec<f64>; 3]> {
        let mut all = [const { Vec::new() }; 3];
        let rows = RowSample::all(matrix, self.rows());
        self.bands(
            &rows,
            progress,
            see,
            |[of_rows, others @ ..]: [Vec<f64>; 3]| {
                all[0].extend(of_rows);
                for (sums, of_band) in all[1..].iter_mut().zip(others) {
                    sums.resize(of_band.len(), 0.0);
                    add(sums, &of_band);
                }
            },
        )?;
        Ok(all)
    }

    /// Surveys the rows of a linear's matrix.
    pub(super) fn survey(
        &self,
        samples: &LinearSamples,
        progress: &dyn Progress,
    ) -> Result<Survey> {
        let (n, m, positions) = (samples.columns, samples.width, positions_of(samples));
        let step = positions.div_ceil(SURVEY_POSITIONS).max(1);
        let thin = |piece: &Piece| {
            let gradients = piece.gradients.iter().map(|g| thinned(g, m, step));
            (
                thinned(&piece.inputs, n, step),
                gradients.collect::<Vec<_>>(),
            )
        };
        let pieces: Vec<_> = samples.pieces.iter().map(thin).collect();
        let surveyed: usize = pieces.iter().map(|(inputs, _)| inputs.len() / n).sum();
        // Expected costs of the band's rows; sums over the band by position and draw; squares.
        let see = |band: Band<'_>| {
            let wide = band.rows.len();
            let (mut product, mut errors) = (Vec::new(), Vec::new());
            let (mut sums, mut squares) = (Vec::new(), 0.0f64);
            let (mut costs, change) = (vec![0.0f64; wide], self.pilot(&band, progress)?);
            for (inputs, gradients) in &pieces {
                check_stop(progress)?;
                let rows = inputs.len() / n;
                product.resize(rows * wide, 0.0);
                rows_times_rows(inputs, &band.weights, [rows, wide, n], &mut product);
                errors.resize(rows * wide, 0.0);
                rows_times_rows(inputs, &change, [rows, wide, n], &mut errors);
                for gradients in gradients {
                    let products = product.chunks_exact(wide).zip(errors.chunks_exact(wide));
                    for ((product, errors), gradient) in products.zip(gradients.chunks_exact(m)) {
                        let gradient = &gradient[band.rows[0].index..][..wide];
                        let mut sum = 0.0f64;
                        let rows = gradient.iter().zip(&mut costs);
                        for ((y, e), (g, cost)) in product.iter().zip(errors).zip(rows) {
                            let u = f64::from(y * g);
                            sum += u;
                            squares += u * u;
                            *cost += f64::from(e * g).powi(2);
                        }
                        sums.push(sum);
                    }
                }
            }
            Ok([costs, sums, vec![squares]])
        };
        let [costs, sums, squares] = self.surveyed(samples.matrix, progress, see)?;
        let products = sums.iter().map(|sum| sum * sum).sum::<f64>() - squares[0];
        Ok(Survey {
            matrix: samples.matrix,
            costs,
            products: products * positions as f64 / surveyed.max(1) as f64,
        })
    }

    /// The same for the output matrix: half the variance of the change of the logits, under the
    /// model's own distribution.
    pub(super) fn of_some_logits(
        &self,
        head: &Head<'_>,
        read: &OutputRows,
        drawn: &Drawn,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        let n = self.columns();
        let prepare = |band: &Band<'_>| {
            let (mut product, wide) = (Vec::new(), band.rows.len());
            // Variances of single logits, times squared slopes, and times the products, of all
            // positions: [positions, wide].
            let mut variances = Vec::with_capacity(read.log_z.len() * wide);
            let mut outputs = Vec::with_capacity(read.log_z.len() * wide);
            let mut power = 0.0f64;
            let blocks = read.inputs.chunks(BLOCK_ROWS * n);
            for (block, log_z) in blocks.zip(read.log_z.chunks(BLOCK_ROWS)) {
                check_stop(progress)?;
                product.resize(log_z.len() * wide, 0.0);
                rows_times_rows(block, &band.weights, [log_z.len(), wide, n], &mut product);
                for (product, log_z) in product.chunks_exact(wide).zip(log_z) {
                    for (product, row) in product.iter().zip(band.rows) {
                        let (logit, slope) = head.bend(row.index, *product);
                        let p = (f64::from(logit) - log_z).exp();
                        let variance = (p * (1.0 - p)) as f32 * slope * slope;
                        power += row.weight * f64::from(variance * product * product);
                        variances.push(variance);
                        outputs.push(variance * product);
                    }
                }
            }
            Ok((variances, outputs, power))
        };
        let score =
            |band: &Band<'_>, (variances, outputs, power): &PreparedLogits, change: &[f32]| {
                let (mut product, wide) = (Vec::new(), band.rows.len());
                let mut sums = TypeSums::default();
                sums.regression[1] = *power;
                let mut of_band = vec![[0.0f64; 2]; wide];
                let weights = variances.chunks(BLOCK_ROWS * wide);
                let weights = weights.zip(outputs.chunks(BLOCK_ROWS * wide));
                let blocks = read.inputs.chunks(BLOCK_ROWS * n);
                for (block, (variances, outputs)) in blocks.zip(weights) {
                    check_stop(progress)?;
                    let rows = block.len() / n;
                    product.resize(rows * wide, 0.0);
                    rows_times_rows(block, change, [rows, wide, n], &mut product);
                    let mut of_rows = vec![[0.0f32; 2]; wide];
                    let weights = variances.chunks_exact(wide).zip(outputs.chunks_exact(wide));
                    for (product, (variances, outputs)) in product.chunks_exact(wide).zip(weights) {
                        let weights = variances.iter().zip(outputs);
                        for ((sums, e), (v, y)) in of_rows.iter_mut().zip(product).zip(weights) {
                            sums[0] += e * e * v;
                            sums[1] += e * y;
                        }
                    }
                    for (all, of_row) in of_band.iter_mut().zip(of_rows) {
                        all[0] += f64::from(of_row[0]);
                        all[1] += f64::from(of_row[1]);
                    }
                }
                let rows = band.rows.iter().zip(of_band);
                rows.for_each(|(row, of_row)| sums.add(row, of_row));
                Ok(sums)
            };
        let all = self.sums_of_types(drawn, progress, prepare, score)?;
        Ok(self.costs_of_sums(&all, drawn.products, &vec![0.5; all.len()]))
    }

    /// Surveys the rows of the output matrix.
    pub(super) fn survey_logits(
        &self,
        head: &Head<'_>,
        read: &OutputRows,
        progress: &dyn Progress,
    ) -> Result<Survey> {
        let n = self.columns();
        let step = read.log_z.len().div_ceil(SURVEY_POSITIONS).max(1);
        let inputs = thinned(&read.inputs, n, step);
        let log_z: Vec<f64> = read.log_z.iter().copied().step_by(step).collect();
        // Expected costs of the band's rows; moments of the logits by position; squares.
        let see = |band: Band<'_>| {
            check_stop(progress)?;
            let wide = band.rows.len();
            let shape = [log_z.len(), wide, n];
            let [mut product, mut errors] = [(); 2].map(|()| vec![0.0f32; log_z.len() * wide]);
            rows_times_rows(&inputs, &band.weights, shape, &mut product);
            rows_times_rows(&inputs, &self.pilot(&band, progress)?, shape, &mut errors);
            let (mut moments, mut squares) = (Vec::with_capacity(2 * log_z.len()), 0.0f64);
            let mut costs = vec![0.0f64; wide];
            let products = product.chunks_exact(wide).zip(errors.chunks_exact(wide));
            for ((product, errors), log_z) in products.zip(&log_z) {
                let mut of_position = [0.0f64; 2];
                let rows = band.rows.iter().zip(&mut costs);
                for ((product, error), (row, cost)) in product.iter().zip(errors).zip(rows) {
                    let (logit, slope) = head.bend(row.index, *product);
                    let p = (f64::from(logit) - log_z).exp();
                    let change = f64::from(slope * product);
                    of_position[0] += p * change;
                    of_position[1] += p * change * change;
                    squares += p * (1.0 - p) * change * change;
                    *cost += p * (1.0 - p) * f64::from(slope * error).powi(2);
                }
                moments.extend(of_position);
            }
            Ok([costs, moments, vec![squares]])
        };
        let [costs, moments, squares] = self.surveyed(0, progress, see)?;
        let variance = moments.chunks_exact(2).map(|m| m[1] - m[0] * m[0]);
        let products = variance.sum::<f64>() - squares[0];
        Ok(Survey {
            matrix: 0,
            costs,
            products: products * read.log_z.len() as f64 / log_z.len().max(1) as f64,
        })
    }
}
