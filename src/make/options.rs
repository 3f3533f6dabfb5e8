//! Options of a run, resolved once from the command line, without opening files.

use super::Text;
use crate::format::types::GgmlType;
use crate::model;
use crate::plan::file_type::FileType;
use crate::plan::frontier::{Budget, Constraints};
use crate::quant::Codec;
use crate::rounding::Rounding;
use crate::sensitivity::{Measure, Settings};
use crate::tune;
use std::path::PathBuf;
use std::time::Duration;

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of all results.
    pub directory: PathBuf,
    /// Stem of file names; by default the model's name.
    pub name: Option<String>,
    /// The frontier only, or files.
    pub goal: Goal,
    /// Constraints on the types of tensors.
    pub constraints: Constraints,
    /// Computation of the sensitivities.
    pub scoring: Scoring,
    /// Rounding of weights, in sensitivities as in files.
    pub rounding: Rounding,
    /// Tokens of the calibration text for sequential rounding, for each channel of the widest linear;
    /// 0 for the whole text. The input Hessians use all of it.
    pub sequential_tokens: usize,
    /// An importance matrix to use instead of computing one.
    pub imatrix: Option<PathBuf>,
    /// Shows every expert all tokens of the calibration text, for the importance matrix and the input
    /// Hessians.
    pub all_experts: bool,
    /// Accepts models that are already quantized.
    pub allow_requantize: bool,
    /// Threads and memory.
    pub engine: model::Options,
    /// Minimum time between two snapshots of a stage.
    pub snapshot_every: Duration,
    /// Command line for the report, without paths of this machine.
    pub command: Option<String>,
}

/// Purpose of a run.
#[derive(Clone, Debug)]
pub enum Goal {
    /// The frontier of size against KL divergence, without files.
    Frontier,
    /// Files on the frontier.
    Files(Files),
}

/// The files of a run.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Budgets, one file each.
    pub budgets: Vec<NamedBudget>,
    /// Number of additional files, spread over the frontier.
    pub variants: usize,
    /// Presets of llama.cpp to measure for comparison.
    pub compare: Compare,
    /// Maximum number of swaps to measure in the refinement of each file's recipe.
    pub refine: usize,
    /// Settings of the tuning of files; none for untuned ones.
    pub tune: Option<tune::Options>,
}

/// Presets of llama.cpp to measure for comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Compare {
    /// For every file the one of its size, or its two neighbours.
    #[default]
    Nearest,
    /// These; none if empty.
    Listed(Vec<FileType>),
}

/// llama.cpp's programs as the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LlamaCpp {
    /// Directory of llama-imatrix and llama-perplexity.
    pub directory: PathBuf,
    /// Servers for `--rpc`: HOST:PORT, separated by commas.
    pub rpc: Option<String>,
    /// Further arguments for both programs.
    pub arguments: Vec<String>,
}

/// A budget and its option.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedBudget {
    /// As typed: `--bpw 4.25`.
    pub name: String,
    /// The budget.
    pub budget: Budget,
}

/// Computation of the sensitivities.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// Method and its settings.
    pub settings: Settings,
    /// Maximum number of chunks of the calibration text for it. The importance matrix uses all.
    pub chunks: usize,
}

/// The texts of a run.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Texts for the importance matrix, the Hessians and the sensitivities.
    pub calibration: Vec<Text>,
    /// Texts for the measurement of files.
    pub evaluation: Vec<Text>,
    /// Tokens per chunk.
    pub context: usize,
    /// Maximum number of chunks of all evaluation texts together.
    pub evaluation_chunks: Option<usize>,
}

impl Default for Options {
    /// The frontier by KL divergence, with sequential and two-sided rounding, in the current
    /// directory.
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
            sequential_tokens: 0,
            imatrix: None,
            all_experts: false,
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
                rows: Settings::ROWS,
                draws: 2,
                seed: 1,
            },
            chunks: 24,
        }
    }
}

impl Options {
    /// The files of the run; none for the frontier only.
    pub(super) fn files(&self) -> Option<&Files> {
        match &self.goal {
            Goal::Frontier => None,
            Goal::Files(files) => Some(files),
        }
    }
}
