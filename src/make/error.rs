//! Why a run fails.

use crate::format::types::GgmlType;
use crate::imatrix::collect;
use crate::plan::frontier::{BudgetError, ConstraintError, Invalid};
use crate::{evaluate, format, quantize, sensitivity};
use std::path::PathBuf;

/// Why a run failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// The importance matrix or the input Hessians could not be collected.
    #[error(transparent)]
    Collect(#[from] collect::Error),
    /// Sensitivities could not be measured.
    #[error(transparent)]
    Score(#[from] sensitivity::Error),
    /// Files could not be planned or written.
    #[error(transparent)]
    Quantize(#[from] quantize::Error),
    /// A file that was written could not be read again.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// A model could not be run.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// A divergence could not be measured.
    #[error(transparent)]
    Measure(#[from] evaluate::measure::Error),
    /// A text cannot be cut into chunks.
    #[error("{name}: {error}{advice}")]
    Text {
        /// The text, with the names of its files.
        name: String,
        /// The fault.
        error: evaluate::windows::Error,
        /// Further advice.
        advice: &'static str,
    },
    /// A file in place of the output directory.
    #[error("{}: this is a file; name a directory, which is made if it is not there", .0.display())]
    NoDirectory(PathBuf),
    /// The model cannot be run, and there is no importance matrix.
    #[error(
        "a model that cannot be run needs an importance matrix from elsewhere (--imatrix FILE)"
    )]
    NeedsImatrix,
    /// A KL divergence as budget without divergences.
    #[error(
        "{0} asks for nats, and types are judged by their weighted error alone, which is no nats: ask for a size"
    )]
    NoNats(String),
    /// A budget that no recipe meets.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Constraints that leave no recipe.
    #[error("no recipe keeps these constraints:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Constraints(Vec<ConstraintError>),
    /// Sensitivities that the solver cannot use.
    #[error(transparent)]
    Scores(#[from] Invalid),
    /// A quantized model.
    #[error(
        "{} of {} matrices are quantized already ({example}): what was rounded once is lost, and the divergence from the \
         original cannot be measured any more. Start from the original model, or accept that with --allow-requantize",
        quantized,
        matrices
    )]
    Quantized {
        /// Quantized matrices.
        quantized: usize,
        /// All matrices.
        matrices: usize,
        /// One of them, with its type.
        example: String,
    },
    /// The quantizer would write another type than the recipe has.
    #[error("tensor '{tensor}': {chosen} was chosen and {planned} would be written; report this")]
    Recipe {
        /// The tensor.
        tensor: String,
        /// Its type in the recipe.
        chosen: GgmlType,
        /// The type that the quantizer would write.
        planned: GgmlType,
    },
}

impl Error {
    /// Whether the run was asked to stop, so that the next one resumes it.
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
        )
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
