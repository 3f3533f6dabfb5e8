//! What `frontier.json` holds: the model, the scores, the frontier, and what was measured.
//!
//! `docs/frontier-json.md` tells the same as a table. Conventions: sizes in bytes, times in
//! seconds, KL divergences in nats per scored token, types by their ggml name (`q4_K`). What was
//! not measured is absent, never 0. All numbers are finite.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the layout that this program writes and reads.
pub const FORMAT: u32 = 1;

/// All that is known of a model's frontier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frontier {
    /// Version of the layout: [`FORMAT`].
    pub format: u32,
    /// Program and version that wrote it: `quantier 0.1.0`.
    pub generator: String,
    /// The model.
    pub model: Model,
    /// How the tensors were scored.
    pub scoring: Scoring,
    /// How the files were measured; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Names of the types that tensors could choose from.
    pub types: Vec<String>,
    /// The tensors that could be quantized, in the order of the file.
    pub tensors: Vec<Tensor>,
    /// The frontier, by rising size; nats fall.
    pub frontier: Vec<Point>,
    /// llama.cpp's presets on this model, by rising size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<Preset>,
    /// Measured against predicted nats; absent if too few files were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// The files that were written or planned, by rising size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// The stages of the run and what they cost, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// Settings that a reader may want to know, as shown: name and value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// Commands that rebuild the files, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Command>,
}

/// Why a text is no `frontier.json`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Not JSON, or a field is missing or of the wrong kind; the place is in the message.
    #[error("this is no frontier.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of another version.
    #[error(
        "the frontier.json has format {0}; this program reads format {FORMAT}: make it anew with this version"
    )]
    Format(u32),
}

impl Frontier {
    /// Reads `frontier.json`. Unknown fields are passed over.
    pub fn parse(text: &str) -> Result<Frontier, DataError> {
        /// The version alone, since another one may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        match serde_json::from_str::<Version>(text)?.format {
            FORMAT => Ok(serde_json::from_str(text)?),
            other => Err(DataError::Format(other)),
        }
    }

    /// Writes `frontier.json`: one line for each tensor, point, preset and file.
    pub fn to_json(&self) -> String {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Lines::default());
        self.serialize(&mut serializer)
            .expect("names and numbers can be written, and memory takes them");
        out.push(b'\n');
        String::from_utf8(out).expect("JSON is text")
    }
}

/// JSON with a line for each field of the outermost object and each item of its arrays.
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

    /// Between two items or before the first; `broken` is the depth down to which lines are broken.
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
    /// Its name, as a title shows it.
    pub name: String,
    /// `general.architecture`: `llama`, `qwen3moe`.
    pub architecture: String,
    /// Number of weights in all tensors.
    pub parameters: u64,
    /// Number of layers (blocks).
    pub layers: u32,
    /// Number of experts in a layer; absent for dense models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<u32>,
    /// Type of its matrices: `bf16`.
    pub base_type: String,
    /// Bytes of the file with all matrices in that type.
    pub base_bytes: u64,
    /// Where it came from, if that was the Hub.
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

/// A text by name, and how many tokens of it were used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// File name, without its directories.
    pub name: String,
    /// Tokens of it that were used.
    pub tokens: u64,
}

/// How nats were predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// Squares per token: half the mean of (g . dW x)^2 over tokens, g the gradient of a drawn
    /// label's log-likelihood.
    PerToken,
    /// The same with the sum over a sequence squared.
    PerSequence,
    /// Squared error weighted by the importance matrix, without the downstream term: relative
    /// units, not nats.
    WeightedError,
    /// The measured divergence of the model with this tensor alone in this type.
    Sweep,
}

impl Score {
    /// The label in reports.
    pub fn label(self) -> &'static str {
        match self {
            Score::PerToken => "second order, squares per token",
            Score::PerSequence => "second order, squares per sequence",
            Score::WeightedError => "importance-weighted error of the weights",
            Score::Sweep => "sweep: each tensor measured alone",
        }
    }
}

/// How the tensors were scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// The texts.
    pub texts: Vec<Text>,
    /// Number of sequences.
    pub sequences: u64,
    /// Tokens in a sequence.
    pub context: u64,
    /// Label draws for every sequence.
    pub draws: u32,
    /// Seed of the labels.
    pub seed: u64,
    /// What is summed.
    pub score: Score,
}

/// How the files were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The texts; none of them was scored on.
    pub texts: Vec<Text>,
    /// Tokens in a window; as llama-perplexity does, the second half of each is scored.
    pub context: u64,
    /// Tokens scored.
    pub tokens: u64,
    /// What measured: `quantier`, or the name of another tool.
    pub tool: String,
}

/// A matrix (or a stack of matrices, one per expert) and what each type would cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name: `blk.3.ffn_down.weight`.
    pub name: String,
    /// What it does, short: `ffn_down`.
    pub role: String,
    /// Its layer; absent outside the layers (embedding, output).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Dimensions, row length first, as GGUF counts them.
    pub shape: Vec<u64>,
    /// Product of the dimensions.
    pub weights: u64,
    /// The types that it could have, by rising bytes.
    pub choices: Vec<Choice>,
}

/// A type for one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The type.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// Nats that it is predicted to cost.
    pub nats: f64,
}

/// A point of the frontier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Bytes of the whole file.
    pub bytes: u64,
    /// 8 x bytes of all tensors / weights.
    pub bpw: f64,
    /// Predicted nats, before the fit.
    pub nats: f64,
}

/// What a file does to the model's output, on text that it was not made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Mean KL divergence from the base model, nats.
    pub kld: f64,
    /// Its standard error, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<f64>,
    /// Median of the divergence, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    /// Its 99.9th percentile, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<f64>,
    /// Fraction of tokens (0 to 1) at which both models find the same token most probable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_top: Option<f64>,
    /// Perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl: Option<f64>,
    /// Perplexity of the base model on the same tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_base: Option<f64>,
}

/// One of llama.cpp's presets on this model, with the same importance matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preset {
    /// `Q4_K_M`.
    pub name: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// 8 x bytes of all tensors / weights.
    pub bpw: f64,
    /// Predicted nats of its recipe, before the fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f64>,
    /// What was measured; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Measured against predicted: measured = scale x predicted ^ exponent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Factor.
    pub scale: f64,
    /// Exponent; 1 if all is well.
    pub exponent: f64,
    /// Files that it was fitted to.
    pub points: u32,
    /// Spearman's rank correlation of predicted and measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<f64>,
    /// Median of |fitted / measured - 1|.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_error: Option<f64>,
}

impl Fit {
    /// What a prediction means after the fit, nats.
    pub fn apply(&self, predicted: f64) -> f64 {
        self.scale * predicted.powf(self.exponent)
    }
}

/// A file that was written, or would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// File name, without its directories.
    pub name: String,
    /// The budget as the user put it: `--bpw 4.25`.
    pub budget: String,
    /// Short label for pictures: `4.25 bpw`.
    pub label: String,
    /// Bytes of the whole file.
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
    /// What was measured; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What rounding with error feedback did, tensor by tensor; empty where weights were rounded as
    /// llama.cpp does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounding: Vec<Rounded>,
}

/// What rounding with error feedback did to a tensor: squared errors of its products with inputs
/// that it has not seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rounded {
    /// The tensor.
    pub tensor: String,
    /// The sum of the squared errors as llama.cpp rounds, as a part of the products' own squares;
    /// absent if nothing was held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<f64>,
    /// The same of the rounding that was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// The part of its rows in which llama.cpp's rounding was better, and was taken.
    #[serde(default)]
    pub kept_plain: f64,
}

/// A stage of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What was done: `scores`.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// Largest resident memory up to its end, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// A setting, as shown.
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
    /// What it does.
    pub purpose: String,
    /// The command line. No path of the machine that wrote it.
    pub command: String,
}
