//! Rounding of whole tensors, band by band: each band is widened once, rounded for every target,
//! and checked.

use crate::{Importance, InputStatistics, Knowledge, OutputFactor, Proof, Rounder, Stopped};
use quantier_blocks::Fault;
use quantier_core::progress::Progress;
use quantier_gguf::reader::{Band, Tensor, TensorReader, first_fault};
use quantier_gguf::types::GgmlType;
use rayon::prelude::*;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Rows per task with error feedback: enough to amortize reading the factor.
const FEEDBACK_ROWS: usize = 128;

/// Errors of rounding a tensor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error(transparent)]
    Format(#[from] quantier_gguf::Error),
    /// The model contains a NaN or an infinity.
    #[error(
        "{}: tensor '{tensor}', row {row}, has {fault}; llama-quantize refuses such a model too: repair or convert it again",
        path.display()
    )]
    BadInput {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row, counted over all matrices.
        row: u64,
        /// The fault.
        fault: Fault,
    },
    /// Weights too large for the type's scales.
    #[error(
        "tensor '{tensor}', row {row}: quantized to {target} it has {fault}; its weights are too large for that type: keep it in f16 or bf16 with --tensor-type"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The row, counted over all matrices.
        row: u64,
        /// The type.
        target: GgmlType,
        /// The fault.
        fault: Fault,
    },
    /// Cancelled.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A tensor's weights and importance.
#[derive(Clone, Copy)]
pub struct Weights<'w> {
    /// The model.
    pub reader: &'w TensorReader<'w>,
    /// The tensor.
    pub tensor: &'w Tensor<'w>,
    /// Name in the output.
    pub name: &'w str,
    /// One importance weight per column and matrix.
    pub importance: Option<&'w Importance>,
}

/// One output of a band: a type with its buffer.
pub struct Target<'t> {
    /// The rounder of the type.
    pub rounder: Rounder,
    /// True if it is rounded with error feedback.
    pub feedback: bool,
    /// Destination of the band's blocks.
    pub blocks: &'t mut [u8],
    /// Accumulates the proofs of the band's rows.
    pub proof: &'t mut Proof,
}

/// Calibration data of one matrix of a tensor, beside weights and importance.
#[derive(Default)]
pub struct MatrixKnowledge {
    /// Input statistics, for error feedback.
    pub inputs: Option<Arc<InputStatistics>>,
    /// The factor of its output Hessian, for two-sided rounding.
    pub output: Option<OutputFactor>,
}

impl Weights<'_> {
    fn row_len(&self) -> usize {
        self.tensor.info.shape.row_len() as usize
    }

    /// Importance of the columns of one matrix: with error feedback that of experts is shrunk,
    /// otherwise it is the reference's.
    pub fn importance_of(&self, matrix: usize, feedback: bool) -> Option<&[f32]> {
        let n = self.row_len();
        let all = match feedback {
            true => Importance::shrunk,
            false => Importance::reference,
        };
        self.importance
            .map(|importance| &all(importance)[matrix * n..][..n])
    }

    /// Rounds the whole tensor to one type, on the threads of the current pool: its blocks, and
    /// their proof. `knowledge` is called once per matrix.
    ///
    /// # Errors
    /// Those of reading and of `knowledge`, faults of the weights, overflow, cancellation.
    pub fn round<E: From<Error>>(
        &self,
        rounder: &Rounder,
        knowledge: &dyn Fn(usize) -> std::result::Result<MatrixKnowledge, E>,
        progress: &dyn Progress,
    ) -> std::result::Result<(Vec<u8>, Proof), E> {
        let rows = self.tensor.info.shape.rows();
        let mut blocks = vec![0; rows as usize * rounder.row_bytes()];
        let mut proof = Proof::default();
        let rows_per_matrix = self.tensor.rows_per_matrix();
        let matrices = blocks.chunks_mut((rows_per_matrix as usize * rounder.row_bytes()).max(1));
        for (number, blocks) in matrices.enumerate() {
            let matrix = number % self.tensor.matrices();
            let knowledge = knowledge(matrix)?;
            let first = number as u64 * rows_per_matrix;
            let matrix_proof = match (&knowledge.inputs, &knowledge.output) {
                (Some(inputs), Some(output)) => {
                    let knowledge = Knowledge {
                        importance: self.importance_of(matrix, true),
                        inputs: Some(inputs),
                        output: Some(output),
                    };
                    self.round_whole(first, rounder, &knowledge, blocks, progress)?
                }
                (inputs, _) => self.round_banded(
                    first..first + rows_per_matrix,
                    rounder,
                    inputs.as_deref(),
                    blocks,
                    progress,
                )?,
            };
            proof.add(&matrix_proof);
        }
        Ok((blocks, proof))
    }

    /// Dequantizes the tensor's blocks, in file order, on the threads of the current pool.
    ///
    /// # Panics
    /// If `blocks` does not have the length of the whole tensor.
    pub fn widen(&self, rounder: &Rounder, blocks: &[u8]) -> Vec<f32> {
        let mut weights = vec![0.0f32; self.tensor.info.shape.elements() as usize];
        let rows = self.tensor.task_rows();
        assert_eq!(
            rounder.blocks_bytes(weights.len()),
            blocks.len(),
            "blocks of a tensor"
        );
        weights
            .par_chunks_mut(rows * self.row_len())
            .zip(blocks.par_chunks(rows * rounder.row_bytes()))
            .for_each(|(weights, blocks)| rounder.widen(blocks, weights));
        weights
    }

    /// Rounds the rows of one matrix band by band.
    fn round_banded(
        &self,
        rows: Range<u64>,
        rounder: &Rounder,
        inputs: Option<&InputStatistics>,
        blocks: &mut [u8],
        progress: &dyn Progress,
    ) -> Result<Proof> {
        let (mut buffer, mut proof, mut left) = (Vec::new(), Proof::default(), blocks);
        for rows in self.tensor.bands(rows) {
            let bytes = (rows.end - rows.start) as usize * rounder.row_bytes();
            let blocks = left.split_off_mut(..bytes).expect("bands make up the rows");
            let band = self.reader.band(self.tensor, rows.clone(), &mut buffer)?;
            let target = Target {
                rounder: *rounder,
                feedback: inputs.is_some(),
                blocks,
                proof: &mut proof,
            };
            self.round_band(band, inputs, vec![target], progress)?;
            self.reader.release(self.tensor, rows);
        }
        Ok(proof)
    }

    /// Rounds one matrix as a whole, starting at row `first` of the tensor.
    fn round_whole(
        &self,
        first: u64,
        rounder: &Rounder,
        knowledge: &Knowledge<'_>,
        blocks: &mut [u8],
        progress: &dyn Progress,
    ) -> Result<Proof> {
        let row_len = self.row_len();
        let rows = (blocks.len() / rounder.row_bytes()) as u64;
        let (mut weights, mut buffer) = (vec![0.0; rows as usize * row_len], Vec::new());
        for rows in self.tensor.bands(first..first + rows) {
            if progress.cancelled() {
                return Err(Stopped.into());
            }
            let band = self.reader.band(self.tensor, rows.clone(), &mut buffer)?;
            self.check_input(&band)?;
            let [from, to] = [rows.start, rows.end].map(|row| (row - first) as usize * row_len);
            band.widen(&mut weights[from..to]);
            self.reader.release(self.tensor, rows);
        }
        let proof = rounder.round(&weights, knowledge, blocks, progress)?;
        self.check_output(rounder, blocks, first)?;
        Ok(proof)
    }

    /// Checks the weights of a band and rounds them for every target, on the threads of the current
    /// pool. With `inputs`, the band must belong to one matrix, whose input statistics they are.
    ///
    /// # Errors
    /// Faults of the weights, overflow, cancellation.
    ///
    /// # Panics
    /// If the blocks of a target do not have the band's length.
    pub fn round_band(
        &self,
        band: Band<'_>,
        inputs: Option<&InputStatistics>,
        mut targets: Vec<Target<'_>>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let inputs = inputs.filter(|_| targets.iter().any(|target| target.feedback));
        let task_rows = match inputs {
            Some(_) => FEEDBACK_ROWS,
            None => self.tensor.task_rows(),
        };
        let mut tasks: Vec<Task<'_>> = band
            .par_chunks(task_rows)
            .map(|band| Task {
                band,
                rows: Vec::new(),
            })
            .collect();
        for (target, chosen) in targets.iter_mut().enumerate() {
            let rounder = chosen.rounder;
            assert_eq!(
                chosen.blocks.len(),
                band.len() * rounder.row_bytes(),
                "blocks of a band"
            );
            let inputs = inputs.filter(|_| chosen.feedback);
            let blocks = chosen.blocks.chunks_mut(task_rows * rounder.row_bytes());
            for (task, blocks) in tasks.iter_mut().zip(blocks) {
                task.rows.push(Rows {
                    target,
                    rounder,
                    inputs,
                    blocks,
                });
            }
        }
        let room = || vec![0.0f32; task_rows.min(band.len()) * self.row_len()];
        // A band can take a minute in the slowest types: cancellation is checked between tasks.
        let proofs: Result<Vec<Vec<(usize, Proof)>>> = tasks
            .into_par_iter()
            .map_init(room, |room, task| match progress.cancelled() {
                true => Err(Stopped.into()),
                false => self.round_task(task, room, progress),
            })
            .collect();
        // In row order, so that sums do not depend on threads.
        for (target, proof) in proofs?.into_iter().flatten() {
            targets[target].proof.add(&proof);
        }
        Ok(())
    }

    fn round_task(
        &self,
        task: Task<'_>,
        room: &mut [f32],
        progress: &dyn Progress,
    ) -> Result<Vec<(usize, Proof)>> {
        let (band, row_len) = (task.band, self.row_len());
        self.check_input(&band)?;
        if task.rows.is_empty() {
            return Ok(Vec::new());
        }
        let weights = &mut room[..band.len() * row_len];
        band.widen(weights);
        // Shared by all targets.
        let inputs = task.rows.iter().find_map(|rows| rows.inputs);
        let power = inputs.map_or(0.0, |inputs| inputs.power(weights));
        let mut proofs = Vec::new();
        for rows in task.rows {
            let rounder = rows.rounder;
            for piece in self.matrices_of(band.rows()) {
                let [from, to] = [piece.rows.start, piece.rows.end]
                    .map(|row| (row - band.rows().start) as usize);
                let knowledge = Knowledge {
                    importance: self.importance_of(piece.matrix, rows.inputs.is_some()),
                    inputs: rows.inputs,
                    output: None,
                };
                let blocks = &mut rows.blocks[from * rounder.row_bytes()..to * rounder.row_bytes()];
                let weights = &weights[from * row_len..to * row_len];
                let proof = rounder.round(weights, &knowledge, blocks, progress)?;
                if rows.inputs.is_some() {
                    proofs.push((rows.target, Proof { power, ..proof }));
                }
            }
            self.check_output(&rounder, rows.blocks, band.rows().start)?;
        }
        Ok(proofs)
    }

    /// Splits a range of rows by matrix.
    fn matrices_of(&self, rows: Range<u64>) -> impl Iterator<Item = Piece> + use<> {
        let rows_per_matrix = self.tensor.rows_per_matrix();
        let matrices = self.tensor.matrices() as u64;
        (rows.start / rows_per_matrix..rows.end.div_ceil(rows_per_matrix)).map(move |number| {
            Piece {
                rows: (number * rows_per_matrix).max(rows.start)
                    ..((number + 1) * rows_per_matrix).min(rows.end),
                matrix: (number % matrices) as usize,
            }
        })
    }

    /// Fails if a band contains a NaN or an infinity.
    fn check_input(&self, band: &Band<'_>) -> Result<()> {
        match band.first_fault() {
            None => Ok(()),
            Some((row, fault)) => Err(Error::BadInput {
                path: self.reader.path_of(self.tensor).to_owned(),
                tensor: self.tensor.info.name.to_string(),
                row,
                fault,
            }),
        }
    }

    /// Fails if blocks of the rows from `first` on contain a NaN or an infinity.
    fn check_output(&self, rounder: &Rounder, blocks: &[u8], first: u64) -> Result<()> {
        match first_fault(rounder.codec(), self.row_len(), first, blocks) {
            None => Ok(()),
            Some((row, fault)) => Err(Error::Overflow {
                tensor: self.name.to_owned(),
                row,
                target: rounder.ggml_type(),
                fault,
            }),
        }
    }
}

/// Rows of one matrix.
struct Piece {
    rows: Range<u64>,
    matrix: usize,
}

/// Rows that one thread rounds for all targets.
struct Task<'t> {
    band: Band<'t>,
    rows: Vec<Rows<'t>>,
}

/// The rows of a task for one target.
struct Rows<'t> {
    /// Index of the target.
    target: usize,
    rounder: Rounder,
    inputs: Option<&'t InputStatistics>,
    blocks: &'t mut [u8],
}
