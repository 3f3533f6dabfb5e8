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
    /// Failure to convert a projector, or to read a written file again.
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
    /// Conversations that cannot be rendered.
    #[error("{name}: {what}")]
    Conversations {
        /// Name of the text.
        name: String,
        /// The fault.
        what: String,
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
    /// An option that does not apply to an embedding model, with the reason.
    #[error("{option} does not apply to an embedding model: {reason}")]
    Embedding {
        /// The option.
        option: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// A cosine distance as the budget of a model that predicts tokens.
    #[error(
        "{0}: cosine distances are those of embeddings, and this model predicts tokens; give a KL divergence (--kld)"
    )]
    NoEmbeddings(String),
    /// A budget that no recipe satisfies.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Constraints that leave no recipe.
    #[error("no recipe satisfies these constraints:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Constraints(Vec<ConstraintError>),
    /// Failure to tune a file.
    #[error(transparent)]
    Tune(#[from] crate::tune::Error),
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
    /// A job that cannot be cut into shards, with the reason.
    #[error("this job has no shards: {0}; run it without --plan-only")]
    NoCuts(&'static str),
    /// A stage without shards.
    #[error("there is no stage '{0}' in the plan; `quantier cluster status` lists them")]
    NoShards(String),
    /// A shard that the plan does not have.
    #[error("stage {stage} has no shard {shard}: they are numbered from 0, and there are {shards}")]
    NoShard {
        /// The stage.
        stage: String,
        /// As typed.
        shard: String,
        /// Number of its shards.
        shards: usize,
    },
    /// A plan that cannot be read.
    #[error(
        "{}: {what}; write a plan with the arguments of `quantier make` and --plan-only",
        path.display()
    )]
    BadPlan {
        /// The file.
        path: PathBuf,
        /// The fault.
        what: String,
    },
    /// A plan of another program, or of a processor with another arithmetic.
    #[error(
        "the plan was made by {plan}, and this is {here}: their results could differ in the last bits. Use the \
         same program on processors with the same instructions, or make the plan again on this machine"
    )]
    OtherMaker {
        /// Maker of the plan.
        plan: String,
        /// This program.
        here: String,
    },
    /// A plan of another model or text.
    #[error(
        "the {0} is not the one of the plan: its content, path or time has changed. Make the plan again with \
         --plan-only; shards of an unchanged part are kept"
    )]
    OtherPlan(&'static str),
    /// A stage whose predecessor is not merged.
    #[error(
        "stage {stage} reads the result of {needs}: run `quantier merge-shards DIR {needs}` first"
    )]
    NotMerged {
        /// The stage.
        stage: &'static str,
        /// Its predecessor.
        needs: &'static str,
    },
    /// Parts that are missing or damaged.
    #[error(
        "{} parts of stage {stage} are missing or cannot be used; run their shards (`quantier cluster status` \
         names them):\n{}",
        missing.len(),
        missing.iter().map(|part| format!("  - {part}")).collect::<Vec<_>>().join("\n")
    )]
    MissingParts {
        /// The stage.
        stage: &'static str,
        /// Paths of the parts, with the reasons.
        missing: Vec<String>,
    },
    /// A work directory whose file system does not replace files by renames.
    #[error(
        "{}: this file system does not replace a file when another one is renamed to it; shards need one that \
         does (a local disk, NFS, Lustre, BeeGFS, CephFS)",
        .0.display()
    )]
    NoRename(PathBuf),
    /// The end of a walk to a part; never returned.
    #[error("the walk has ended")]
    Ended,
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
                | Error::Tune(crate::tune::Error::Cancelled)
                | Error::Convert(crate::convert::Error::Cancelled)
                | Error::Outside(super::outside::Error::Cancelled)
        )
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
