//! `quantier make` and `quantier frontier`.

use super::command;
use super::make_plan;
use super::measure::{open, read_text, source};
use super::messages::{note, warning};
use super::publish::{self, CardArgs};
use super::terminal::Bar;
use super::text::say;
use super::wrong_usage;
use anyhow::{Context, bail};
use quantier::convert;
use quantier::format::types::GgmlType;
use quantier::make::{self, Job, Text, Texts};
use quantier::model::Options;
use quantier::plan::file_type::FileType;
use quantier::plan::frontier::{Budget, Constraints};
use quantier::quant::Codec;
use quantier::report;
use quantier::rounding::Rounding;
use quantier::sensitivity::{Measure, Settings};
use quantier::text::{Set, joined};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What both take.
#[derive(clap::Args)]
pub struct Common {
    /// The model: a Hugging Face directory, a .safetensors file, a GGUF, the first shard of a split
    /// one, or hf://ORG/NAME
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A calibration text, UTF-8; repeat it for more. Without it a small built-in text is used;
    /// text of the kind that the model will meet is better
    #[arg(short, long, value_name = "TEXT")]
    file: Vec<PathBuf>,
    /// A text to judge the result on; repeat it for more. Without it every fifth part of each
    /// calibration text is kept for that
    #[arg(long, value_name = "TEXT")]
    eval: Vec<PathBuf>,
    /// An importance matrix to use instead of a new one
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Give tensors a type: NAMES=TYPE, where NAMES is a role (token_embd, output, attn_q, attn_k,
    /// attn_v, attn_output, ffn_gate, ffn_up, ffn_down) or a regular expression
    #[arg(long, value_name = "NAMES=TYPE")]
    pin: Vec<String>,
    /// No type of fewer bits: TYPE for all tensors or NAMES=TYPE for some
    #[arg(long, value_name = "[NAMES=]TYPE")]
    min: Vec<String>,
    /// No type of more bits: TYPE for all tensors or NAMES=TYPE for some
    #[arg(long, value_name = "[NAMES=]TYPE")]
    max: Vec<String>,
    /// The types to choose from, separated by commas: names or k, iq, legacy, all; for all tensors
    /// or for some
    #[arg(long, value_name = "[NAMES=]LIST")]
    types: Vec<String>,
    /// How types are judged: by the divergence that they cause downstream, to second order; by the
    /// importance-weighted error of the weights alone (faster and worse); or by a sweep, which runs
    /// the model once for every tensor in every type and measures: to compare with, and for small
    /// models with few --types and --score-chunks only
    #[arg(long, value_name = "HOW", default_value = "divergence", value_parser = ["divergence", "imatrix", "sweep"])]
    score: String,
    /// The most chunks of the calibration text that types are judged on, evenly from all of it
    #[arg(long, value_name = "N", default_value_t = 24)]
    score_chunks: usize,
    /// Positions in these chunks at which types are judged; 0 for all. Fewer are faster, and leave
    /// out what errors at different positions have in common
    #[arg(long, value_name = "N", default_value_t = 0)]
    score_positions: usize,
    /// Labels that are drawn from the model for each position
    #[arg(long, value_name = "N", default_value_t = 2)]
    draws: usize,
    /// Chooses labels and positions
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How weights are rounded: feedback (each error made good by the weights beside it: about half
    /// the divergence at the same size), or reference (each by itself, the bytes of llama-quantize)
    #[arg(long, value_name = "HOW", default_value = "feedback", value_parser = super::quantize::rounding)]
    rounding: Rounding,
    /// Round each matrix for what it meets in the model as it is, not for what it meets behind the
    /// matrices rounded before it. Saves a pass over the calibration text for each file, and costs
    /// a tenth to a quarter more divergence
    #[arg(long)]
    no_propagate: bool,
    /// Round each row of a matrix by itself, without the gradients that tell what the errors of
    /// rows do together to what the model says. Saves disk, and costs about a tenth more divergence
    #[arg(long)]
    one_sided: bool,
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// The most chunks of the evaluation texts
    #[arg(long, value_name = "N")]
    eval_chunks: Option<usize>,
    /// What the files are called; the model's own name without it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take a model that is quantized already; what it has lost stays lost
    #[arg(long)]
    allow_requantize: bool,
    /// How many threads to use; 0 takes one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Memory for widened weights and activations, in MiB; activations beyond it go to a temporary
    /// file
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u64>,
    /// Keep the state of the run at most so often, in DIR/work; 0 for after every layer
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    checkpoint_every: u64,
    /// Tell what would be done, how long it would take and what it needs, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Make the best GGUF files for their sizes: measure, choose, write, prove
///
/// Measures what every tensor's precision is worth to the model's output, chooses a type for each
/// along the frontier of size against KL divergence, writes a file for every budget, and measures
/// its divergence on text that the choice never saw. The files run on unmodified llama.cpp and
/// Ollama. DIR then holds the GGUFs, their recipes (llama-quantize's --tensor-type-file), the
/// importance matrix, frontier.json, frontier.svg and report.html.
///
/// Budgets can be repeated and mixed. A run that was killed goes on where it was, and another
/// budget for the same model and text needs no new measurement.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --bpw 4.25 -o out
  quantier make ./Qwen3-4B --like Q4_K_M --like Q3_K_M -f calibration.txt --eval held-out.txt -o out
  quantier make ./Qwen3-4B --variants 8 --publish --base-model Qwen/Qwen3-4B -o out
  quantier make model-bf16.gguf --fit 8GiB --ctx 8192 --types k --pin token_embd=q8_0 -o out")]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// So many bits per weight, over all tensors
    #[arg(long, value_name = "BITS")]
    bpw: Vec<String>,
    /// A file of this size: 4.5GiB, 4500MB, or bytes
    #[arg(long, value_name = "SIZE")]
    size: Vec<String>,
    /// The smallest file of at most so many nats
    #[arg(long, value_name = "NATS")]
    kld: Vec<String>,
    /// The size of one of llama.cpp's presets
    #[arg(long, value_name = "PRESET")]
    like: Vec<String>,
    /// Weights, KV cache and compute buffers within this memory
    #[arg(long, value_name = "MEMORY", requires = "ctx")]
    fit: Vec<String>,
    /// Tokens of context for --fit
    #[arg(long, value_name = "TOKENS")]
    ctx: Option<u64>,
    /// N files of sizes spread over the frontier so that each step is worth it: from the smallest
    /// that is of use to one that is next to the original
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=40))]
    variants: Option<u8>,
    /// Presets of llama.cpp to be quantized and measured as well, so that the report compares what
    /// is measured with what is measured: names separated by commas, or `like` for those of --like.
    /// Their files are not kept
    #[arg(long, value_name = "PRESETS", value_delimiter = ',')]
    compare: Vec<String>,
    /// Measure at most N swaps of a few tensors of each file on a part of the calibration text, and
    /// take those that are better beyond their standard error. On a small model, 6 of them gained
    /// about half a percent
    #[arg(long, value_name = "N", default_value_t = 0)]
    refine: usize,
    /// The directory for all that is written
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Publish as well: DIR/publish can then be uploaded to the Hub as it is. See `quantier
    /// publish`
    #[arg(long, help_heading = "Publishing")]
    publish: bool,
    #[command(flatten)]
    card: CardArgs,
}

/// Measure the frontier of size against KL divergence of a model, and write no model
///
/// Writes DIR/frontier.json, DIR/report.html and DIR/frontier.svg: for every tensor and type bytes
/// and predicted nats, the best recipes of all sizes, and llama.cpp's presets beside them.
/// `quantier make` with the same DIR goes on from there.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier frontier ./Qwen3-4B -f calibration.txt -o out
  quantier make ./Qwen3-4B -f calibration.txt --bpw 4.25 -o out   # needs no new measurement")]
pub struct FrontierArgs {
    #[command(flatten)]
    common: Common,
    /// The directory for all that is written
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut budgets = Vec::new();
    let mut add =
        |option: &str, texts: &[String], parse: &dyn Fn(&str) -> Result<Budget, String>| {
            for text in texts {
                match parse(text) {
                    Ok(budget) => budgets.push((format!("--{option} {text}"), budget)),
                    Err(what) => wrong_usage("make", format!("--{option}: {what}")),
                }
            }
        };
    let ctx = args.ctx.unwrap_or(0);
    add("bpw", &args.bpw, &Budget::bpw);
    add("size", &args.size, &Budget::size);
    add("kld", &args.kld, &Budget::kld);
    add("like", &args.like, &Budget::like);
    add("fit", &args.fit, &|text| Budget::fit(text, ctx));
    if budgets.is_empty() && args.variants.is_none() {
        wrong_usage(
            "make",
            "say how large the file may be: --bpw, --size, --like, --kld or --fit, or how many sizes are wanted: --variants",
        );
    }
    let mut compare = Vec::new();
    for name in &args.compare {
        let presets = match name.as_str() {
            "like" => Ok(budgets
                .iter()
                .filter_map(|(_, budget)| preset_of(budget))
                .collect()),
            name => {
                Budget::like(name).map(|budget| preset_of(&budget).into_iter().collect::<Vec<_>>())
            }
        };
        match presets {
            Ok(presets) => compare.extend(presets),
            Err(what) => wrong_usage("make", format!("--compare {name}: {what}")),
        }
    }
    compare.dedup();
    if !args.publish && args.card != CardArgs::default() {
        wrong_usage(
            "make",
            "--base-model, --license and what else a model card says go with --publish",
        );
    }
    // What would be refused is refused before the long job.
    let publication = match args.publish {
        true => Some(publish::job("make", &args.output, None, &args.card)?),
        false => None,
    };
    let files = Files {
        compare,
        refine: args.refine,
        variants: args.variants.unwrap_or(0).into(),
        publication,
    };
    go("make", &args.common, budgets, &args.output, Some(files))
}

/// What `make` has beside `frontier`.
#[derive(Default)]
struct Files {
    compare: Vec<FileType>,
    refine: usize,
    variants: usize,
    publication: Option<quantier::publish::Job>,
}

fn preset_of(budget: &Budget) -> Option<FileType> {
    match budget {
        Budget::Like(preset) => Some(*preset),
        _ => None,
    }
}

pub fn frontier(args: &FrontierArgs) -> anyhow::Result<ExitCode> {
    go("frontier", &args.common, Vec::new(), &args.output, None)
}

fn go(
    command: &str,
    args: &Common,
    budgets: Vec<(String, Budget)>,
    directory: &Path,
    files: Option<Files>,
) -> anyhow::Result<ExitCode> {
    let constraints = constraints(command, args);
    let texts = texts(args)?;
    let options = Options {
        threads: args.threads,
        max_memory: args.max_memory.map(|mib| mib.saturating_mul(1 << 20)),
        ..Options::default()
    };
    let source = source(&args.model)?;
    let input = source.reader(&convert::Job {
        threads: args.threads,
        ..convert::Job::default()
    })?;
    let mut measure = match &*args.score {
        "imatrix" => Measure::Imatrix,
        "sweep" => Measure::Sweep,
        _ => Measure::Divergence,
    };
    let opened = match (open(&args.model, &input, &options), &args.imatrix) {
        (Ok(mut opened), _) => {
            if args.rounding.has_feedback() {
                let bytes = make::rounding_bytes(&opened.engine, args.ctx_size);
                opened.engine.reserve(bytes);
            }
            Some(opened)
        }
        (Err(error), Some(imatrix)) => {
            warning!(
                "{error:#}; types are chosen by the error of the weights alone, weighted by {}. {WEIGHTED}",
                imatrix.display()
            );
            measure = Measure::Imatrix;
            None
        }
        (Err(error), None) => bail!(
            "{error:#}; types can be chosen without running it: --score imatrix --imatrix FILE, with an importance \
             matrix of llama-imatrix. {WEIGHTED}"
        ),
    };
    if let (Some(_), Measure::Imatrix) = (&opened, measure) {
        note!("types are chosen by the weighted error of the weights alone. {WEIGHTED}");
    }
    let rounding = match (&opened, args.rounding) {
        (Some(_), Rounding::Feedback { .. }) => Rounding::Feedback {
            sequential: !args.no_propagate,
            two_sided: !args.no_propagate && !args.one_sided,
        },
        _ => Rounding::Reference,
    };
    let frontier_only = files.is_none();
    let Files {
        compare,
        refine,
        variants,
        publication,
    } = files.unwrap_or_default();
    let job = Job {
        texts,
        imatrix: args.imatrix.clone(),
        budgets,
        variants,
        constraints,
        settings: Settings {
            measure,
            types: candidates(),
            positions: args.score_positions,
            draws: args.draws.max(1),
            seed: args.seed,
        },
        rounding,
        score_chunks: args.score_chunks,
        directory: directory.to_owned(),
        name: args
            .name
            .clone()
            .unwrap_or_else(|| make::model_name(&input)),
        frontier_only,
        threads: args.threads,
        options,
        allow_requantize: args.allow_requantize,
        compare,
        refine,
        command: Some(command::shown()),
        keep_every: Duration::from_secs(args.checkpoint_every),
    };
    let model = opened.as_ref().map(|o| make::Opened {
        input: &input,
        engine: &o.engine,
        tokenizer: &o.tokenizer,
    });
    if args.dry_run {
        let estimate = make::estimate(&input, model, &job)
            .with_context(|| args.model.display().to_string())?;
        return match args.json {
            true => say!("{}", serde_json::to_string_pretty(&estimate)?),
            false => say!("{}", make_plan::text(&estimate)),
        }
        .map(|()| ExitCode::SUCCESS);
    }
    let bar = Bar::new();
    let made = make::run(&input, model, &job, &bar, &|note| note!("{note}"));
    drop(bar);
    if made.as_ref().is_err_and(make::Error::is_stop) {
        let directory = directory.display();
        bail!(
            "stopped; {directory}/work keeps what is done, and the same command goes on from there"
        );
    }
    let made = made.with_context(|| args.model.display().to_string())?;
    made.notes.iter().for_each(|note| note!("{note}"));
    if args.json {
        say!("{}", made.report.to_json())?;
    } else {
        say!("{}", report::text::table(&made.report))?;
        say!(
            "{} has the report, the recipes and all figures.",
            directory.join("report.html").display()
        )?;
    }
    if let Some(job) = publication {
        let bar = Bar::new();
        let done = quantier::publish::run(&job, &bar);
        drop(bar);
        let done = done.with_context(
            || "all was made, and publishing failed: `quantier publish` does that alone",
        )?;
        match args.json {
            true => done.notes.iter().for_each(|text| note!("{text}")),
            false => publish::tell(&job, &done, false)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a choice by weighted errors is worth.
const WEIGHTED: &str = "That is worse: on a small model, such files had about twice the divergence of those chosen by \
                        their divergence (benches/frontier.md)";

/// All types that a model can be written in, but f32, and those that every other of their size
/// beats.
fn candidates() -> Vec<GgmlType> {
    let stored = |t: &GgmlType| *t != GgmlType::F32;
    Codec::all()
        .iter()
        .map(|codec| codec.ggml_type)
        .filter(stored)
        .collect()
}

fn constraints(command: &str, args: &Common) -> Constraints {
    let mut constraints = Constraints::default();
    let failed = |option: &str, text: &str, result: Result<(), String>| {
        if let Err(what) = result {
            wrong_usage(command, format!("--{option} {text}: {what}"));
        }
    };
    args.pin
        .iter()
        .for_each(|text| failed("pin", text, constraints.pin(text)));
    args.min
        .iter()
        .for_each(|text| failed("min", text, constraints.min(text)));
    args.max
        .iter()
        .for_each(|text| failed("max", text, constraints.max(text)));
    args.types
        .iter()
        .for_each(|text| failed("types", text, constraints.types(text)));
    constraints
}

fn texts(args: &Common) -> anyhow::Result<Texts> {
    let read = |paths: &[PathBuf]| -> anyhow::Result<Vec<Text>> {
        let one = |path: &PathBuf| {
            let name = path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned();
            Ok(Text {
                name,
                content: read_text(path)?,
            })
        };
        paths.iter().map(one).collect()
    };
    let built_in = |set, name: &str| {
        vec![Text {
            name: name.into(),
            content: joined(set),
        }]
    };
    let (mut calibration, mut evaluation) = (read(&args.file)?, read(&args.eval)?);
    let real = |path: &PathBuf| path.canonicalize().ok();
    let same = |path: &&PathBuf| {
        let content = calibration
            .iter()
            .zip(&args.file)
            .find(|(_, of)| of == path)
            .map(|(text, _)| &text.content);
        let is_same = |(other, text): (&PathBuf, &Text)| {
            real(path) == real(other) || content == Some(&text.content)
        };
        args.eval.iter().zip(&evaluation).any(is_same)
    };
    if let Some(both) = args.file.iter().find(same) {
        bail!(
            "{}: one text cannot be both calibration and evaluation; give it as -f alone, and a part of it is held out",
            both.display()
        );
    }
    if calibration.is_empty() {
        note!(
            "measured on the built-in text; text of the kind that the model will meet (-f) is better"
        );
        calibration = built_in(Set::Calibration, "built-in calibration text");
        if evaluation.is_empty() {
            evaluation = built_in(Set::Evaluation, "built-in evaluation text");
        }
    }
    if evaluation.is_empty() {
        for text in &mut calibration {
            let (kept, held_out) = make::split(&text.content);
            text.content = kept;
            evaluation.push(Text {
                name: format!("{}{}", text.name, make::HELD_OUT),
                content: held_out,
            });
        }
    }
    Ok(Texts {
        calibration,
        evaluation,
        context: args.ctx_size,
        evaluation_chunks: args.eval_chunks,
    })
}
