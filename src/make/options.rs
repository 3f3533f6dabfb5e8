//! The options of a run: what is meant. They are resolved once from the command line, and no file
//! is opened for that.

use super::Text;
use crate::format::types::GgmlType;
use crate::model;
use crate::plan::file_type::FileType;
use crate::plan::frontier::{Budget, Constraints};
use crate::quant::Codec;
use crate::rounding::Rounding;
use crate::sensitivity::{Measure, Settings};
use std::path::PathBuf;
use std::time::Duration;

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of all results.
    pub directory: PathBuf,
    /// Stem of the file names; the name of the model without it.
    pub name: Option<String>,
    /// The frontier alone, or files.
    pub goal: Goal,
    /// The types that a tensor may take.
    pub constraints: Constraints,
    /// How sensitivities are measured.
    pub scoring: Scoring,
    /// How weights are rounded, in sensitivities as in files.
    pub rounding: Rounding,
    /// An importance matrix to use instead of a new one.
    pub imatrix: Option<PathBuf>,
    /// Whether a model that is already quantized is accepted.
    pub allow_requantize: bool,
    /// Threads and memory.
    pub engine: model::Options,
    /// The shortest time between two snapshots of a stage.
    pub snapshot_every: Duration,
    /// The command line of the run for the report, without paths of this machine.
    pub command: Option<String>,
}

/// What a run is for.
#[derive(Clone, Debug)]
pub enum Goal {
    /// The frontier of size against KL divergence. No model is written.
    Frontier,
    /// Files on the frontier.
    Files(Files),
}

/// The files of a run.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// A file for each of these budgets.
    pub budgets: Vec<NamedBudget>,
    /// Additional files, of sizes spread over the frontier.
    pub variants: usize,
    /// Presets of llama.cpp to measure beside the files.
    pub compare: Vec<FileType>,
    /// The most swaps to measure in the refinement of each file's recipe.
    pub refine: usize,
}

/// A budget and the option that states it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedBudget {
    /// As typed: `--bpw 4.25`.
    pub name: String,
    /// The budget.
    pub budget: Budget,
}

/// How sensitivities are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// The measure and its settings.
    pub settings: Settings,
    /// The most chunks of the calibration text that are used for it. The importance matrix takes
    /// all.
    pub chunks: usize,
}

/// The texts of a run.
#[derive(Clone, Debug)]
pub struct Texts {
    /// For the importance matrix, the Hessians and the sensitivities.
    pub calibration: Vec<Text>,
    /// For the proof.
    pub evaluation: Vec<Text>,
    /// Tokens in a chunk.
    pub context: usize,
    /// The most chunks of the evaluation texts, all together.
    pub evaluation_chunks: Option<usize>,
}

impl Default for Options {
    /// The frontier of the model by its KL divergence, with sequential and two-sided rounding, in
    /// the current directory.
    fn default() -> Options {
        Options {
            directory: PathBuf::from("."),
            name: None,
            goal: Goal::Frontier,
            constraints: Constraints::default(),
            scoring: Scoring::default(),
            rounding: Rounding::Feedback {
                sequential: true,
                two_sided: true,
            },
            imatrix: None,
            allow_requantize: false,
            engine: model::Options::default(),
            snapshot_every: Duration::from_secs(30),
            command: None,
        }
    }
}

impl Default for Scoring {
    fn default() -> Scoring {
        let types = Codec::all().iter().map(|codec| codec.ggml_type);
        Scoring {
            settings: Settings {
                measure: Measure::Divergence,
                types: types.filter(|t| *t != GgmlType::F32).collect(),
                positions: 0,
                draws: 2,
                seed: 1,
            },
            chunks: 24,
        }
    }
}

impl Options {
    /// The files of the run; none for the frontier alone.
    pub(super) fn files(&self) -> Option<&Files> {
        match &self.goal {
            Goal::Frontier => None,
            Goal::Files(files) => Some(files),
        }
    }
}
