//! Contents of `frontier.json`: model, scores, frontier and measurements.
//!
//! `docs/frontier-json.md` documents the fields in a table. Conventions: sizes in bytes, times in
//! seconds, KL divergences in nats per scored token, types by their ggml name (`q4_K`). For an embedding
//! model, all divergences are cosine distances instead ([`Distance`]). Values that were not measured are absent, never 0. All numbers are finite.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the layout that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Sensitivities, frontier and measurements of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frontier {
    /// Version of the layout: [`FORMAT`].
    pub format: u32,
    /// Program and version that wrote it: `quantier 0.1.0`.
    pub generator: String,
    /// The model.
    pub model: Model,
    /// The measure of all divergences, predicted and measured; absent for KL divergences.
    #[serde(default, skip_serializing_if = "Distance::is_kl_divergence")]
    pub distance: Distance,
    /// Computation of the sensitivities.
    pub scoring: Scoring,
    /// Evaluation of the files; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Names of the candidate types.
    pub types: Vec<String>,
    /// The quantizable tensors, in file order.
    pub tensors: Vec<Tensor>,
    /// The frontier, by rising size and falling nats.
    pub frontier: Vec<Point>,
    /// llama.cpp's presets on this model, by rising size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<Preset>,
    /// Factors that turn weighted errors into nats; absent for other scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<Correction>,
    /// Fit of measured to predicted nats; absent with too few measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Fit of measured to predicted nats of the presets, whose rounding differs from the files';
    /// absent if none was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset_fit: Option<Fit>,
    /// The written or planned files, by rising size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// The projector beside the files; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projector: Option<Projector>,
    /// The stages of the run with their costs, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// Settings of the run as displayed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// Commands that rebuild the files, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Command>,
}

/// Reason for rejecting a `frontier.json`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Not JSON, or a field is missing or of the wrong type; the message has the position.
    #[error("not a valid frontier.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// An unsupported version.
    #[error(
        "the frontier.json has format {0}; this program reads format {FORMAT}: create it again with this version"
    )]
    Format(u32),
}

impl Frontier {
    /// Parses `frontier.json`. Unknown fields are ignored.
    ///
    /// # Errors
    /// Malformed JSON, missing fields, another version.
    pub fn parse(text: &str) -> Result<Frontier, DataError> {
        /// Only the version, since others may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        match serde_json::from_str::<Version>(text)?.format {
            FORMAT => Ok(serde_json::from_str(text)?),
            other => Err(DataError::Format(other)),
        }
    }

    /// Serializes `frontier.json`: one line per tensor, point, preset and file.
    pub fn to_json(&self) -> String {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Lines::default());
        self.serialize(&mut serializer)
            .expect("names and numbers can be written, and memory takes them");
        out.push(b'\n');
        String::from_utf8(out).expect("JSON is text")
    }
}

/// JSON with one line per field of the outermost object and per item of its arrays.
#[derive(Default)]
struct Lines {
    depth: usize,
}

impl Lines {
    fn open<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        bracket: &[u8],
    ) -> std::io::Result<()> {
        self.depth += 1;
        out.write_all(bracket)
    }

    /// Separator between items or before the first; lines are broken down to depth `broken`.
    fn next<W: std::io::Write + ?Sized>(
        &self,
        out: &mut W,
        first: bool,
        broken: usize,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b"," })?;
        match self.depth <= broken {
            true => write!(out, "\n{:width$}", "", width = self.depth),
            false => out.write_all(if first { b"" } else { b" " }),
        }
    }
}

impl serde_json::ser::Formatter for Lines {
    fn begin_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.depth -= 1;
        out.write_all(if self.depth == 0 { b"\n}" } else { b"}" })
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(out, first, 1)
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }

    fn begin_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.depth -= 1;
        out.write_all(b"]")
    }

    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(out, first, 2)
    }
}

/// The model before quantization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Display name.
    pub name: String,
    /// `general.architecture`: `llama`, `qwen3moe`.
    pub architecture: String,
    /// Number of weights in all tensors.
    pub parameters: u64,
    /// Number of layers (blocks).
    pub layers: u32,
    /// Number of experts per layer; absent for dense models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<u32>,
    /// Type of its linears: `bf16`.
    pub base_type: String,
    /// Size of the file with all linears in that type, in bytes.
    pub base_bytes: u64,
    /// Origin on the Hub, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// A model on the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// A text by name, with its number of used tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// File name, without its directories.
    pub name: String,
    /// Number of used tokens.
    pub tokens: u64,
}

/// The file of a model's encoders of images and of audio, which llama.cpp takes as `--mmproj`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projector {
    /// File name.
    pub name: String,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Method of predicting nats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// The square of the sum over a text, half its mean over texts: (sum of g . dW x)^2, g the gradient of the
    /// embedding's product with random signs.
    PerText,
    /// Squares per token: half the mean of (g . dW x)^2 over tokens, g the gradient of the
    /// log-likelihood of a sampled label.
    PerToken,
    /// The same, but summed over a sequence before squaring.
    PerSequence,
    /// Squared error weighted by the importance matrix, without the downstream term: relative
    /// units, not nats.
    WeightedError,
    /// The same, times factors that were fitted to measured divergences: see [`Correction`].
    FittedError,
    /// Measured divergence of the model with only this tensor in this type.
    Sweep,
}

impl Score {
    /// Label in reports.
    pub fn label(self) -> &'static str {
        match self {
            Score::PerText => "second order, squares per text",
            Score::PerToken => "second order, squares per token",
            Score::PerSequence => "second order, squares per sequence",
            Score::WeightedError => "importance-weighted error of the weights",
            Score::FittedError => {
                "importance-weighted error of the weights, times factors from measured files"
            }
            Score::Sweep => "sweep: each tensor measured alone",
        }
    }
}

/// Computation of the sensitivities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// The texts.
    pub texts: Vec<Text>,
    /// Number of sequences.
    pub sequences: u64,
    /// Tokens per sequence.
    pub context: u64,
    /// Sampled labels per position of every sequence.
    pub draws: u32,
    /// Seed of the labels.
    pub seed: u64,
    /// Quantity that is summed.
    pub score: Score,
}

/// Evaluation of the files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The evaluation texts, disjoint from those of the sensitivities.
    pub texts: Vec<Text>,
    /// Tokens per window; as in llama-perplexity, the second half of each is scored.
    pub context: u64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// The evaluating program: `quantier`, or the name of another tool.
    pub tool: String,
}

/// A linear (or a stack of matrices, one per expert) with its candidate types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name: `blk.3.ffn_down.weight`.
    pub name: String,
    /// Role: `ffn_down`.
    pub role: String,
    /// Layer; absent outside the layers (embedding, output).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Dimensions in GGUF order, row length first.
    pub shape: Vec<u64>,
    /// Product of the dimensions.
    pub weights: u64,
    /// Candidate types by rising size.
    pub choices: Vec<Choice>,
    /// Standard error of the nats due to the sampling of rows, relative to them, averaged over the
    /// types; absent if all rows were rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
}

/// A candidate type of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The type.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// Size of the tensor in this type, in bytes.
    pub bytes: u64,
    /// Predicted nats.
    pub nats: f64,
}

/// A point of the frontier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// 8 x bytes of all tensors / weights.
    pub bpw: f64,
    /// Predicted nats, before the fit.
    pub nats: f64,
}

/// The measure of a model's distance from its base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// KL divergence of the next token's distribution, in nats per token.
    #[default]
    KlDivergence,
    /// Cosine distance, 1 - cos, of a text's embeddings: for models that predict no tokens.
    Cosine,
}

/// Words for a measure in charts, tables and pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Its name.
    pub name: &'static str,
    /// Its name in headings of columns.
    pub short: &'static str,
    /// Its unit behind a number, with a space.
    pub unit: &'static str,
    /// Its unit as a noun.
    pub noun: &'static str,
    /// Label of its axis.
    pub axis: &'static str,
    /// What means are over.
    pub counted: &'static str,
    /// A note below tables.
    pub note: &'static str,
    /// Its definition.
    pub definition: &'static str,
}

impl Distance {
    fn is_kl_divergence(&self) -> bool {
        *self == Distance::KlDivergence
    }

    /// Its words.
    pub fn terms(self) -> &'static Terms {
        match self {
            Distance::KlDivergence => &Terms {
                name: "KL divergence",
                short: "KLD",
                unit: " nats",
                noun: "nats",
                axis: "mean KL divergence, nats per token (log)",
                counted: "tokens",
                note: "KL divergences are in nats per token, with their standard errors.",
                definition: "Nats: KL divergence of the quantized model’s next-token distribution from the full-precision \
                             model’s, averaged over tokens; 0 is a perfect copy.",
            },
            Distance::Cosine => &Terms {
                name: "cosine distance",
                short: "distance",
                unit: "",
                noun: "distance",
                axis: "mean cosine distance of embeddings (log)",
                counted: "texts",
                note: "Cosine distances are means over texts, with their standard errors.",
                definition: "Cosine distance: 1 minus the cosine of the quantized model’s and the full-precision model’s \
                             embedding of a text, averaged over texts; 0 is a perfect copy.",
            },
        }
    }
}

/// The mean distance of a file from the base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    /// KL divergence, nats.
    Kld(f64),
    /// Cosine distance of embeddings.
    CosineDistance(f64),
}

impl Mean {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Mean::Kld(value) | Mean::CosineDistance(value) => value,
        }
    }
}

/// Quality of a file, measured on held-out text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Mean distance from the base model.
    #[serde(flatten)]
    pub mean: Mean,
    /// Standard error of the mean, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<f64>,
    /// Median of the divergence, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    /// 99.9th percentile of the divergence, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<f64>,
    /// Fraction of tokens (0 to 1) with the same most probable token in both models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_top: Option<f64>,
    /// Perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl: Option<f64>,
    /// Perplexity of the base model on the same tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_base: Option<f64>,
    /// Spearman's rank correlation of the similarities of all pairs of texts in both models, for embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<f64>,
    /// Mean fraction (0 to 1) of a text's nearest neighbours that are so in both models, for embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_neighbours: Option<f64>,
}

/// Which of a file and a preset is closer to the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The file.
    Closer,
    /// The preset.
    Farther,
    /// Neither beyond two standard errors.
    Unclear,
}

/// The paired difference between a file and a preset, both measured on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// The preset: `Q4_K_M`.
    pub preset: String,
    /// Mean KL divergence of the file minus that of the preset, nats.
    pub difference: f64,
    /// Standard error of the difference, from the means of chunks, nats; absent with few chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<f64>,
    /// The verdict at two standard errors.
    pub verdict: Verdict,
}

/// The tuning of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Steps of the state that was kept; 0 for an unchanged file.
    pub steps: u64,
    /// Tokens for training.
    pub tokens: u64,
    /// Mean divergence before, of held-out parts of the calibration text, nats.
    pub before: f64,
    /// The same after.
    pub after: f64,
}

/// A llama.cpp preset on this model, with the same importance matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preset {
    /// `Q4_K_M`.
    pub name: String,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// 8 x bytes of all tensors / weights.
    pub bpw: f64,
    /// Predicted nats of its recipe, before the fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f64>,
    /// Measurements; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Fit of measured to predicted nats: measured = scale x predicted ^ exponent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Factor.
    pub scale: f64,
    /// Exponent; ideally 1.
    pub exponent: f64,
    /// Number of fitted files.
    pub points: u32,
    /// Spearman's rank correlation of predicted and measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<f64>,
    /// Median of |fitted / measured - 1|.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_error: Option<f64>,
}

impl Fit {
    /// Corrected prediction, nats.
    pub fn apply(&self, predicted: f64) -> f64 {
        self.scale * predicted.powf(self.exponent)
    }
}

/// Factors that turn weighted errors into nats, fitted to the measured divergences of some files:
/// measured = sum over parts of factor x weighted errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    /// The parts of the model.
    pub parts: Vec<Part>,
    /// The measured files, which are not kept.
    pub probes: Vec<Probe>,
    /// Root of the mean squared relative difference between fitted and measured.
    pub residual: f64,
}

/// A part of a model with its factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Name: `queries and keys`.
    pub name: String,
    /// Nats per unit of weighted error.
    pub factor: f64,
}

/// A file that was measured for the factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Name: `queries and keys coarse`.
    pub name: String,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// Mean KL divergence from the base model on a part of the calibration text, nats.
    pub measured: f64,
    /// The same by the factors, nats.
    pub fitted: f64,
}

/// A written or planned file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// File name, without its directories.
    pub name: String,
    /// The budget as given: `--bpw 4.25`.
    pub budget: String,
    /// Short label for charts: `4.25 bpw`.
    pub label: String,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// 8 x bytes of all tensors / weights.
    pub bpw: f64,
    /// Type of every tensor of [`Frontier::tensors`].
    pub recipe: BTreeMap<String, String>,
    /// Predicted nats, before the fit.
    pub predicted: f64,
    /// Predicted nats after the fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<f64>,
    /// Its tuning; absent for an untuned file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
    /// Measurements; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// Paired differences from the measured presets; empty if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versus: Vec<Versus>,
    /// Effect of error feedback on each tensor; empty with the reference's rounding.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounding: Vec<Rounded>,
}

/// Effect of error feedback on a tensor: squared errors of its outputs on held-out inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rounded {
    /// The tensor.
    pub tensor: String,
    /// Squared error of llama.cpp's rounding, relative to the squared outputs; absent without
    /// held-out inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<f64>,
    /// The same for the chosen rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// Fraction of rows in which llama.cpp's rounding was better and was chosen.
    #[serde(default)]
    pub kept_plain: f64,
}

/// A stage of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name: `scores`.
    pub name: String,
    /// Duration.
    pub seconds: f64,
    /// Peak resident memory up to its end, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// A setting as displayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A command that a reader can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Purpose.
    pub purpose: String,
    /// Command line, without paths of the machine that wrote it.
    pub command: String,
}
