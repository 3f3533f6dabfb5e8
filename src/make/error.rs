//! Errors of a run.

use crate::format::types::GgmlType;
use crate::imatrix::collect;
use crate::plan::frontier::{BudgetError, ConstraintError, Invalid};
use crate::{evaluate, format, quantize, sensitivity};
use std::path::PathBuf;

/// Error of a run, or reason for refusing it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure to read or write a file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Failure to collect the importance matrix or the input Hessians.
    #[error(transparent)]
    Collect(#[from] collect::Error),
    /// Failure to compute sensitivities.
    #[error(transparent)]
    Score(#[from] sensitivity::Error),
    /// Failure to plan or write files.
    #[error(transparent)]
    Quantize(#[from] quantize::Error),
    /// Failure to read a written file again.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// Failure to run a model.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// Failure to measure a divergence.
    #[error(transparent)]
    Measure(#[from] evaluate::measure::Error),
    /// A text that cannot be divided into chunks.
    #[error("{name}: {error}{advice}")]
    Text {
        /// Name of the text, with its files.
        name: String,
        /// The fault.
        error: evaluate::windows::Error,
        /// Further advice.
        advice: &'static str,
    },
    /// A file in place of the output directory.
    #[error("{}: this is a file; name a directory (created if missing)", .0.display())]
    NoDirectory(PathBuf),
    /// Without an engine for the model, an importance matrix must be given.
    #[error("the model cannot be run here, so an importance matrix must be given (--imatrix FILE)")]
    NeedsImatrix,
    /// A budget in nats, but sensitivities that are not divergences.
    #[error(
        "{0} is a budget in nats, but sensitivities are weighted errors, not nats: choose a size"
    )]
    NoNats(String),
    /// A budget that no recipe satisfies.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Constraints that leave no recipe.
    #[error("no recipe satisfies these constraints:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Constraints(Vec<ConstraintError>),
    /// Failure of an outside engine.
    #[error(transparent)]
    Outside(super::outside::Error),
    /// Sensitivities rejected by the solver.
    #[error(transparent)]
    Scores(#[from] Invalid),
    /// A quantized model.
    #[error(
        "{} of {} matrices are quantized already ({example}): their precision is lost, and the divergence from the \
         original cannot be measured. Start from the original model, or accept the loss with --allow-requantize",
        quantized,
        matrices
    )]
    Quantized {
        /// Number of quantized matrices.
        quantized: usize,
        /// Number of all matrices.
        matrices: usize,
        /// An example, with its type.
        example: String,
    },
    /// The quantizer would write another type than the recipe's.
    #[error("tensor '{tensor}': {chosen} was chosen and {planned} would be written; report this")]
    Recipe {
        /// The tensor.
        tensor: String,
        /// Its type in the recipe.
        chosen: GgmlType,
        /// Type that the quantizer would write.
        planned: GgmlType,
    },
}

impl Error {
    /// True if the run was stopped on request; the next one resumes it.
    pub fn is_stop(&self) -> bool {
        use crate::model::Error::Cancelled;
        matches!(
            self,
            Error::Model(Cancelled)
                | Error::Collect(collect::Error::Model(Cancelled))
                | Error::Score(sensitivity::Error::Model(Cancelled))
                | Error::Measure(evaluate::measure::Error::Model {
                    error: Cancelled,
                    ..
                })
                | Error::Measure(evaluate::measure::Error::Cancelled)
                | Error::Quantize(quantize::Error::Cancelled)
                | Error::Outside(super::outside::Error::Cancelled)
        )
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
