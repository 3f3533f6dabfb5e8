//! `quantier make` and `quantier frontier`.

use super::command;
use super::make_plan;
use super::measure::{Opened, open, read_text, source};
use super::messages::{note, warning};
use super::publish::{self, CardArgs};
use super::terminal::Bar;
use super::text::{say, size};
use super::wrong_usage;
use anyhow::{Context, bail};
use quantier::chat::conversation::Renderer;
use quantier::chat::encoder::Encoder;
use quantier::chat::template::ChatTemplate;
use quantier::convert;
use quantier::input::Source;
use quantier::make::{
    self, Compare, Files, Goal, Job, LlamaCpp, NamedBudget, Options, ProjectorChoice,
    ProjectorSource, Runner, Scoring, ShardPlan, ShardSize, Text, Texts,
};
use quantier::sensitivity::{Measure, Settings};
use quantier::text::{Kind, Set, conversations, joined};
use quantier::tune;
use quantier_allocate::frontier::{Budget, Constraints};
use quantier_allocate::recipe::Problem;
use quantier_engine::model;
use quantier_round::Rounding;
use quantier_tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Options of both commands.
#[derive(clap::Args)]
pub struct Common {
    /// The model: a Hugging Face directory, a .safetensors or .bin file, a GGUF, the first shard of a split
    /// one, or hf://ORG/NAME
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Merge a LoRA adapter into the model: the directory of a PEFT adapter (adapter_config.json)
    #[arg(long, value_name = "DIR")]
    lora: Option<PathBuf>,
    /// A calibration text, UTF-8; repeatable. The default is a small built-in text, with conversations for
    /// a model with a chat template; text like that of the model's later use is better
    #[arg(short, long, value_name = "TEXT")]
    file: Vec<PathBuf>,
    /// An evaluation text; repeatable. By default, a fifth of each calibration text is held out for
    /// it
    #[arg(long, value_name = "TEXT")]
    eval: Vec<PathBuf>,
    /// A calibration text of conversations, JSONL: {"messages": [...], "tools": [...]}, rendered by the
    /// model's chat template; repeatable
    #[arg(long, value_name = "JSONL")]
    chat: Vec<PathBuf>,
    /// An evaluation text of conversations; repeatable
    #[arg(long, value_name = "JSONL")]
    eval_chat: Vec<PathBuf>,
    /// An importance matrix to use instead of a new one
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Set the type of tensors: NAMES=TYPE, where NAMES is a role (token_embd, output, attn_q, attn_k,
    /// attn_v, attn_output, attn_gate, ffn_gate, ffn_up, ffn_down, ssm_in, ssm_out ... as `inspect`
    /// lists them) or a regular expression
    #[arg(long, value_name = "NAMES=TYPE")]
    pin: Vec<String>,
    /// The smallest type, by bits per weight: TYPE for all tensors or NAMES=TYPE for some
    #[arg(long, value_name = "[NAMES=]TYPE")]
    min: Vec<String>,
    /// The largest type, by bits per weight: TYPE for all tensors or NAMES=TYPE for some
    #[arg(long, value_name = "[NAMES=]TYPE")]
    max: Vec<String>,
    /// Candidate types, separated by commas: names or k, iq, legacy, all; for all tensors or for some
    #[arg(long, value_name = "[NAMES=]LIST")]
    types: Vec<String>,
    /// A first file soon: --score-chunks 12 --score-rows 64 --draws 1 --sequential-tokens 16 --compare none,
    /// unless given.
    /// About a third of the time, and about 5% more divergence
    #[arg(long)]
    fast: bool,
    /// The sensitivity measure: divergence, the KL divergence to second order; imatrix, the
    /// importance-weighted error of the weights alone (faster and worse); sweep, one run of the
    /// model for every type of every tensor (for comparisons, on small models with few --types and
    /// --score-chunks)
    #[arg(long, value_name = "HOW", default_value = "divergence", value_parser = ["divergence", "imatrix", "sweep"])]
    score: String,
    /// Maximum number of chunks of the calibration text for sensitivities, spread evenly over it
    #[arg(
        long,
        value_name = "N",
        default_value_if("fast", "true", "12"),
        default_value_t = 24
    )]
    score_chunks: usize,
    /// Number of positions in these chunks for sensitivities; 0 for all. Fewer are faster, but miss
    /// the correlation of errors between positions
    #[arg(long, value_name = "N", default_value_t = 0)]
    score_positions: usize,
    /// Number of rows of each matrix for sensitivities; 0 for all. Rows are chosen in proportion to
    /// their expected share; frontier.json has the standard error
    #[arg(
        long,
        value_name = "N",
        default_value_if("fast", "true", "64"),
        default_value_t = 256
    )]
    score_rows: usize,
    /// Number of labels to sample from the model for each position
    #[arg(
        long,
        value_name = "N",
        default_value_if("fast", "true", "1"),
        default_value_t = 2
    )]
    draws: usize,
    /// Seed for sampling labels and positions
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Rounding of weights: feedback (each rounding error is compensated in the weights not yet
    /// rounded, GPTQ: about half the divergence at the same size), or reference (the bytes of
    /// llama-quantize)
    #[arg(long, value_name = "HOW", default_value = "feedback", value_parser = super::quantize::rounding)]
    rounding: Rounding,
    /// Calibrate every matrix on the unquantized model instead of sequentially. Saves a pass over the
    /// calibration text for each file, and costs a tenth to a quarter more divergence
    #[arg(long, alias = "no-propagate")]
    no_sequential: bool,
    /// Number of tokens for sequential rounding, for each channel of the widest linear, spread evenly
    /// over the calibration text; 0 for the whole text
    #[arg(
        long,
        value_name = "N",
        default_value_if("fast", "true", "16"),
        default_value_t = 0
    )]
    sequential_tokens: usize,
    /// Round each row of a matrix by itself, without the output Hessian that weights the errors of
    /// rows jointly (YAQA). Saves disk, and costs about a tenth more divergence
    #[arg(long)]
    one_sided: bool,
    /// Tokens per chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// Maximum number of chunks of the evaluation texts
    #[arg(long, value_name = "N")]
    eval_chunks: Option<usize>,
    /// Stem of the file names; by default the name of the model
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Show every expert all tokens of the calibration text, not only those routed to it. For texts that
    /// reach some experts rarely; costs all experts for each token in the importance matrix
    #[arg(long)]
    all_experts: bool,
    /// Accept a quantized model; its quantization errors remain. Not needed for MXFP4 and NVFP4, which models are
    /// published in
    #[arg(long)]
    allow_requantize: bool,
    /// The program that runs the model: native, or llama.cpp=DIR with the directory of llama-imatrix
    /// and llama-perplexity, for models that the native engine cannot run. See
    /// docs/outside-engine.md
    #[arg(long, value_name = "ENGINE", default_value = "native", value_parser = engine)]
    engine: EngineArg,
    /// Servers that llama.cpp's programs use (their --rpc): HOST:PORT, separated by commas
    #[arg(long, value_name = "SERVERS")]
    rpc: Option<String>,
    /// Further arguments for llama.cpp's programs, separated by spaces: "-ngl 20 --no-mmap"
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    engine_args: Option<String>,
    /// Number of threads; 0 for one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Memory for widened weights and activations, in MiB; activations beyond it go to a temporary
    /// file
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u64>,
    /// Minimum time between two snapshots of the run, in DIR/work; 0 for one after every layer
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        alias = "checkpoint-every"
    )]
    snapshot_every: u64,
    /// Print the work, time, memory and disk space of the run; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Cut the run into shards for several processes or machines, and write DIR/work/plan.json only. See
    /// `quantier shard`, `quantier cluster` and docs/many-machines.md
    #[arg(long, conflicts_with = "dry_run")]
    plan_only: bool,
    /// Time of a shard on a machine like this one, in minutes, for --plan-only
    #[arg(
        long,
        value_name = "MINUTES",
        default_value_t = 30.0,
        requires = "plan_only"
    )]
    shard_minutes: f64,
    /// Number of shards of every stage for --plan-only, or fewer if a stage has fewer units of work
    #[arg(
        long,
        value_name = "N",
        requires = "plan_only",
        conflicts_with = "shard_minutes"
    )]
    shards: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The program that runs the model.
#[derive(Clone, Debug, PartialEq)]
enum EngineArg {
    Native,
    LlamaCpp(PathBuf),
}

fn engine(text: &str) -> Result<EngineArg, String> {
    match (text, text.split_once('=')) {
        ("native", _) => Ok(EngineArg::Native),
        (_, Some(("llama.cpp", directory))) if !directory.is_empty() => {
            Ok(EngineArg::LlamaCpp(directory.into()))
        }
        _ => Err(
            "engines are native and llama.cpp=DIR, with DIR the directory of llama-imatrix and \
                  llama-perplexity"
                .into(),
        ),
    }
}

/// Make the best GGUF files for their sizes: measure, allocate, write, verify
///
/// Measures the sensitivity of the model's output to every tensor's precision, chooses a type for
/// each along the frontier of size against KL divergence, writes a file for every budget, and
/// measures its divergence on held-out text. The files run on unmodified llama.cpp and
/// Ollama. DIR then holds the GGUFs, their recipes (llama-quantize's --tensor-type-file), the
/// importance matrix, frontier.json, frontier.svg and report.html.
///
/// Budgets can be repeated and mixed. An interrupted run resumes when the same command is run
/// again, and another budget for the same model and text needs no new measurement.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --bpw 4.25 -o out
  quantier make ./Qwen3-4B --like Q4_K_M --like Q3_K_M -f calibration.txt --eval held-out.txt -o out
  quantier make ./Qwen3-4B --variants 8 --publish --base-model Qwen/Qwen3-4B -o out
  quantier make model-bf16.gguf --fit 8GiB --ctx 8192 --types k --pin token_embd=q8_0 -o out")]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// A file of BITS per weight, over all tensors
    #[arg(long, value_name = "BITS")]
    bpw: Vec<String>,
    /// A file of this size: 4.5GiB, 4500MB, or bytes
    #[arg(long, value_name = "SIZE")]
    size: Vec<String>,
    /// The smallest file with a KL divergence of at most NATS
    #[arg(long, value_name = "NATS")]
    kld: Vec<String>,
    /// The smallest file of an embedding model with a cosine distance of at most DISTANCE from the original's
    /// embeddings
    #[arg(long, value_name = "DISTANCE")]
    cosine: Vec<String>,
    /// A file of the size of one of llama.cpp's presets
    #[arg(long, value_name = "PRESET")]
    like: Vec<String>,
    /// The best file whose weights, KV cache and compute buffers fit into MEMORY
    #[arg(long, value_name = "MEMORY", requires = "ctx")]
    fit: Vec<String>,
    /// Context length for --fit
    #[arg(long, value_name = "TOKENS")]
    ctx: Option<u64>,
    /// N files spread over the frontier, from the smallest useful one to one close to the original
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=40))]
    variants: Option<u8>,
    /// Presets of llama.cpp to quantize and measure as well, for comparison in the report: names
    /// separated by commas, `like` for those of --like, or `none`. By default those next to each file
    /// in size. Their files are removed
    #[arg(
        long,
        value_name = "PRESETS",
        value_delimiter = ',',
        default_value_if("fast", "true", "none")
    )]
    compare: Vec<String>,
    /// Measure at most N swaps of types in each file's recipe on a part of the calibration text, and
    /// accept gains beyond the standard error. On a small model, 6 swaps gained about half a
    /// percent
    #[arg(long, value_name = "N", default_value_t = 0)]
    refine: usize,
    /// Tune each file on the calibration text: train its norms, scales and codes by KL divergence, in the
    /// same bytes. See `quantier tune`
    #[arg(long)]
    tune: bool,
    /// Number of steps for --tune, at most
    #[arg(long, value_name = "N", default_value_t = tune::Options::default().steps, requires = "tune")]
    tune_steps: usize,
    /// The projector of a model that sees or hears, from `quantier convert --mmproj`: copied beside the
    /// files. By default it is converted from the checkpoint, in F16
    #[arg(long, value_name = "FILE", conflicts_with = "no_mmproj")]
    mmproj: Option<PathBuf>,
    /// Write no projector: the files are for text alone
    #[arg(long)]
    no_mmproj: bool,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Prepare DIR/publish for an upload to the Hub. See `quantier publish`
    #[arg(long, help_heading = "Publishing")]
    publish: bool,
    #[command(flatten)]
    card: CardArgs,
}

/// Measure the frontier of size against KL divergence of a model, without writing a model
///
/// Writes DIR/frontier.json, DIR/report.html and DIR/frontier.svg: bytes and predicted nats of every
/// tensor and type, the best recipes of all sizes, and llama.cpp's presets beside them. `quantier
/// make` with the same DIR continues from there.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier frontier ./Qwen3-4B -f calibration.txt -o out
  quantier make ./Qwen3-4B -f calibration.txt --bpw 4.25 -o out   # needs no new measurement")]
pub struct FrontierArgs {
    #[command(flatten)]
    common: Common,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = args.files();
    if !args.publish && args.card != CardArgs::default() {
        let message =
            "--base-model, --license and other options of the model card require --publish";
        wrong_usage("make", message);
    }
    // Check the publication before the long job.
    let publication = match args.publish {
        true => Some(publish::job("make", &args.output, None, &args.card)?),
        false => None,
    };
    let options = args
        .common
        .options("make", &args.output, Goal::Files(files));
    go(
        &args.common,
        args.common.llama_cpp("make"),
        options,
        publication,
    )
}

pub fn frontier(args: &FrontierArgs) -> anyhow::Result<ExitCode> {
    let options = args
        .common
        .options("frontier", &args.output, Goal::Frontier);
    go(
        &args.common,
        args.common.llama_cpp("frontier"),
        options,
        None,
    )
}

impl Args {
    fn files(&self) -> Files {
        let mut budgets = Vec::new();
        let mut add =
            |option: &str, texts: &[String], parse: &dyn Fn(&str) -> Result<Budget, String>| {
                for text in texts {
                    match parse(text) {
                        Ok(budget) => budgets.push(NamedBudget {
                            name: format!("--{option} {text}"),
                            budget,
                        }),
                        Err(fault) => wrong_usage("make", format!("--{option}: {fault}")),
                    }
                }
            };
        let ctx = self.ctx.unwrap_or(0);
        add("bpw", &self.bpw, &Budget::bpw);
        add("size", &self.size, &Budget::size);
        add("kld", &self.kld, &Budget::kld);
        add("cosine", &self.cosine, &Budget::cosine);
        add("like", &self.like, &Budget::like);
        add("fit", &self.fit, &|text| Budget::fit(text, ctx));
        if budgets.is_empty() && self.variants.is_none() {
            wrong_usage(
                "make",
                "state a budget (--bpw, --size, --like, --kld, --cosine or --fit) or a number of sizes (--variants)",
            );
        }
        Files {
            compare: self.compared(&budgets),
            budgets,
            variants: self.variants.unwrap_or(0).into(),
            refine: self.refine,
            tune: self.tune.then(|| tune::Options {
                steps: self.tune_steps,
                ..tune::Options::default()
            }),
            projector: match (&self.mmproj, self.no_mmproj) {
                (Some(path), _) => ProjectorChoice::Given(path.clone()),
                (None, true) => ProjectorChoice::Omitted,
                (None, false) => ProjectorChoice::Own,
            },
        }
    }

    /// The presets of --compare.
    fn compared(&self, budgets: &[NamedBudget]) -> Compare {
        if self.compare.is_empty() {
            return Compare::Nearest;
        }
        let preset = |budget: Budget| match budget {
            Budget::Like(preset) => Some(preset),
            _ => None,
        };
        let mut compared = Vec::new();
        for name in &self.compare {
            match (name.as_str(), Budget::like(name)) {
                ("none", _) if self.compare.len() == 1 => {}
                ("none", _) => wrong_usage("make", "--compare: `none` stands alone"),
                ("like", _) => compared.extend(budgets.iter().filter_map(|b| preset(b.budget))),
                (_, Ok(budget)) => compared.extend(preset(budget)),
                (_, Err(fault)) => wrong_usage("make", format!("--compare {name}: {fault}")),
            }
        }
        compared.dedup();
        Compare::Listed(compared)
    }
}

impl Common {
    /// llama.cpp's programs, if they are the engine.
    fn llama_cpp(&self, command: &str) -> Option<LlamaCpp> {
        let EngineArg::LlamaCpp(directory) = &self.engine else {
            if self.rpc.is_some() || self.engine_args.is_some() {
                wrong_usage(
                    command,
                    "--rpc and --engine-args require --engine llama.cpp=DIR",
                );
            }
            return None;
        };
        let arguments = self
            .engine_args
            .iter()
            .flat_map(|args| args.split_whitespace());
        Some(LlamaCpp {
            directory: directory.clone(),
            rpc: self.rpc.clone(),
            arguments: arguments.map(str::to_owned).collect(),
        })
    }

    fn options(&self, command: &str, directory: &Path, goal: Goal) -> Options {
        let scoring = Scoring::default();
        Options {
            directory: directory.to_owned(),
            name: self.name.clone(),
            goal,
            constraints: self.constraints(command),
            scoring: Scoring {
                settings: Settings {
                    measure: match &*self.score {
                        "imatrix" => Measure::Imatrix,
                        "sweep" => Measure::Sweep,
                        _ => Measure::Divergence,
                    },
                    positions: self.score_positions,
                    rows: self.score_rows,
                    draws: self.draws.max(1),
                    seed: self.seed,
                    ..scoring.settings
                },
                chunks: self.score_chunks,
            },
            rounding: match self.rounding {
                Rounding::Reference => Rounding::Reference,
                Rounding::Feedback { .. } => Rounding::Feedback {
                    sequential: !self.no_sequential,
                    two_sided: !self.no_sequential && !self.one_sided,
                },
            },
            sequential_tokens: self.sequential_tokens,
            imatrix: self.imatrix.clone(),
            all_experts: self.all_experts,
            allow_requantize: self.allow_requantize,
            engine: model::Options {
                threads: self.threads,
                max_memory: self.max_memory.map(|mib| mib.saturating_mul(1 << 20)),
                ..model::Options::default()
            },
            snapshot_every: Duration::from_secs(self.snapshot_every),
            command: Some(command::shown()),
        }
    }

    fn constraints(&self, command: &str) -> Constraints {
        let mut constraints = Constraints::default();
        let mut apply =
            |option: &str,
             texts: &[String],
             parse: &dyn Fn(&mut Constraints, &str) -> Result<(), String>| {
                for text in texts {
                    if let Err(fault) = parse(&mut constraints, text) {
                        wrong_usage(command, format!("--{option} {text}: {fault}"));
                    }
                }
            };
        apply("pin", &self.pin, &|constraints, text| constraints.pin(text));
        apply("min", &self.min, &|constraints, text| constraints.min(text));
        apply("max", &self.max, &|constraints, text| constraints.max(text));
        apply("types", &self.types, &|constraints, text| {
            constraints.types(text)
        });
        constraints
    }
}

/// Opens the model and runs the job.
fn go(
    args: &Common,
    llama_cpp: Option<LlamaCpp>,
    options: Options,
    publication: Option<quantier::publish::Job>,
) -> anyhow::Result<ExitCode> {
    let directory = options.directory.clone();
    with_job(args, llama_cpp, options, |job| {
        run_job(args, job, &directory, publication)
    })
}

/// Opens the model and resolves the job.
fn with_job<T>(
    args: &Common,
    llama_cpp: Option<LlamaCpp>,
    options: Options,
    then: impl FnOnce(&Job<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut texts, is_built_in) = texts(args)?;
    let source = source(&args.model)?;
    let source = match &args.lora {
        Some(adapter) => source.merged(adapter)?,
        None => source,
    };
    let projector = projector(&options, &source)?;
    let conversion = convert::Job {
        threads: args.threads,
        ..convert::Job::default()
    };
    let input = source.finite_reader(&conversion)?;
    input.notes().iter().for_each(|note| note!("{note}"));
    let open = || open(&args.model, &input, &options.engine);
    let opened = match (llama_cpp.is_none().then(open), &options.imatrix) {
        (None, _) => None,
        (Some(Ok(mut opened)), _) => {
            if options.rounding.has_feedback() {
                let bytes = make::rounding_bytes(&opened.engine, args.ctx_size);
                opened.engine.reserve(bytes);
            }
            Some(opened)
        }
        (Some(Err(error)), Some(imatrix)) => {
            warning!(
                "{error:#}; types are chosen by the error of the weights alone, weighted by {}. {WEIGHTED}. {OUTSIDE}",
                imatrix.display()
            );
            None
        }
        (Some(Err(error)), None) => bail!(
            "{error:#}. {OUTSIDE}. Types can also be chosen without running it: --score imatrix --imatrix FILE, with an \
             importance matrix of llama-imatrix. {WEIGHTED}"
        ),
    };
    if let (Some(_), Measure::Imatrix) = (&opened, options.scoring.settings.measure) {
        note!("types are chosen by the weighted error of the weights alone. {WEIGHTED}");
    }
    let needs_template = !args.chat.is_empty() || !args.eval_chat.is_empty();
    // Embedding models take no conversations.
    let template = opened.as_ref().filter(|opened| opened.engine.has_output());
    let template = template.filter(|_| needs_template || is_built_in);
    let template = match template.map(Opened::chat_template) {
        Some(found) if needs_template => {
            Some(found.with_context(|| args.model.display().to_string())?)
        }
        found => found.and_then(Result::ok),
    };
    if let (Some(opened), Some(template), true) = (&opened, &template, is_built_in) {
        add_conversations(&mut texts, template, &opened.tokenizer);
    }
    let runner = match (&opened, llama_cpp) {
        (_, Some(llama_cpp)) => Runner::LlamaCpp(llama_cpp),
        (Some(opened), None) => Runner::Native(make::Runnable {
            engine: &opened.engine,
            encoder: Encoder {
                tokenizer: &opened.tokenizer,
                template: template.as_ref(),
            },
        }),
        (None, None) => Runner::None,
    };
    let shown = || args.model.display().to_string();
    let job = Job::new(&input, runner, options, &texts).with_context(shown)?;
    let job = match &projector {
        Some(projector) => job.with_projector(projector).with_context(shown)?,
        None => job,
    };
    then(&job).with_context(shown)
}

/// The source of the projector; a warning instead if that of the model's own checkpoint cannot be converted.
fn projector(options: &Options, model: &Source) -> anyhow::Result<Option<ProjectorSource>> {
    let Goal::Files(files) = &options.goal else {
        return Ok(None);
    };
    match &files.projector {
        ProjectorChoice::Omitted => Ok(None),
        ProjectorChoice::Given(path) => Ok(Some(ProjectorSource::given(path)?)),
        ProjectorChoice::Own => Ok(ProjectorSource::own(model).unwrap_or_else(|error| {
            let why = match error {
                convert::Error::Impossible(problems) => Problem::by_reason(&problems),
                error => error.to_string(),
            };
            warning!(
                "{why}\nThere will be no projector: the files of the text model are complete without it, and read text \
                 alone. --mmproj FILE adds one of another program, --no-mmproj omits it without a warning"
            );
            None
        })),
    }
}

/// Runs a job, or plans it.
fn run_job(
    args: &Common,
    job: &Job<'_>,
    directory: &Path,
    publication: Option<quantier::publish::Job>,
) -> anyhow::Result<ExitCode> {
    for shared in job.shared_texts() {
        warning!(
            "{shared} with the calibration text: its divergence is lower than on text of other origin; take such passages out \
             of one of them"
        );
    }
    if args.plan_only {
        return plan_shards(args, job, directory);
    }
    if args.dry_run {
        let dry_run = job.dry_run()?;
        return match args.json {
            true => say!("{}", serde_json::to_string_pretty(&dry_run)?),
            false => say!("{}", make_plan::text(&dry_run)),
        }
        .map(|()| ExitCode::SUCCESS);
    }
    let bar = Bar::new();
    let made = job.run(&bar, &|note| note!("{note}"));
    drop(bar);
    if made.as_ref().is_err_and(make::Error::is_stop) {
        let directory = directory.display();
        bail!("stopped; the same command resumes from {directory}/work");
    }
    let made = made?;
    made.notes.iter().for_each(|note| note!("{note}"));
    if args.json {
        say!("{}", made.report.to_json())?;
    } else {
        say!("{}", quantier_report::text::table(&made.report))?;
        say!(
            "{} has the report, the recipes and all figures.",
            directory.join("report.html").display()
        )?;
        if let Some(projector) = &made.report.projector {
            say!(
                "{} ({}) is the projector.",
                directory.join(&projector.name).display(),
                size(projector.bytes)
            )?;
        }
    }
    if let Some(job) = publication {
        let bar = Bar::new();
        let done = quantier::publish::run(&job, &bar);
        drop(bar);
        let done = done.with_context(
            || "the files are complete, but publishing failed; `quantier publish` repeats it",
        )?;
        match args.json {
            true => done.notes.iter().for_each(|text| note!("{text}")),
            false => publish::tell(&job, &done, false)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Plans the shards of a job.
fn plan_shards(args: &Common, job: &Job<'_>, directory: &Path) -> anyhow::Result<ExitCode> {
    let size = match args.shards {
        Some(count) => ShardSize::Count(count.max(1)),
        None => ShardSize::Seconds(args.shard_minutes * 60.0),
    };
    let here = std::env::current_dir().context("cannot find the current directory")?;
    let plan = job.plan_shards(size, &here, command::planned()?)?;
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&plan)?)?,
        false => say!("{}", make_plan::shards(&plan, directory))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The job of a plan in this output directory.
pub fn with_planned_job<T>(
    plan: &ShardPlan,
    directory: &Path,
    threads: Option<usize>,
    then: impl FnOnce(&Job<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    std::env::set_current_dir(&plan.directory).with_context(|| {
        format!(
            "the plan was made in {}, which is not here: mount it under the same path",
            plan.directory.display()
        )
    })?;
    let (common, goal, name) = match super::parsed(&plan.arguments)? {
        super::Command::Make(args) => {
            let files = args.files();
            (args.common, Goal::Files(files), "make")
        }
        super::Command::Frontier(args) => (args.common, Goal::Frontier, "frontier"),
        _ => bail!("the plan is not one of `quantier make` or `quantier frontier`"),
    };
    let mut options = common.options(name, directory, goal);
    options.engine.threads = threads.unwrap_or(options.engine.threads);
    with_job(&common, common.llama_cpp(name), options, then)
}

/// The way for models that the engine cannot run.
const OUTSIDE: &str = "llama.cpp's programs can run it if they know the model: --engine llama.cpp=DIR (docs/outside-engine.md)";

/// The cost of choosing types by weighted errors.
const WEIGHTED: &str = "That is worse: on a small model, such files had about twice the divergence of those chosen by \
                        their divergence (benches/frontier.md)";

/// Names of the built-in texts.
const CALIBRATION: &str = "built-in calibration text";
const EVALUATION: &str = "built-in evaluation text";

/// The texts of the arguments; true if the calibration text is the built-in one.
fn texts(args: &Common) -> anyhow::Result<(Texts, bool)> {
    let read = |paths: &[PathBuf], kind: Kind| -> anyhow::Result<Vec<Text>> {
        let one = |path: &PathBuf| {
            let name = path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned();
            Ok(Text {
                name,
                content: read_text(path)?,
                kind,
            })
        };
        paths.iter().map(one).collect()
    };
    let built_in = |set, name: &str| vec![Text::plain(name, joined(set))];
    let both = |plain: &[PathBuf], chats: &[PathBuf]| -> anyhow::Result<Vec<Text>> {
        let chats = read(chats, Kind::Conversations)?;
        Ok([read(plain, Kind::Plain)?, chats].concat())
    };
    let mut calibration = both(&args.file, &args.chat)?;
    let mut evaluation = both(&args.eval, &args.eval_chat)?;
    let of_calibration = || args.file.iter().chain(&args.chat);
    let of_evaluation = || args.eval.iter().chain(&args.eval_chat);
    let real = |path: &PathBuf| path.canonicalize().ok();
    let same = |path: &&PathBuf| {
        let content = calibration
            .iter()
            .zip(of_calibration())
            .find(|(_, of)| of == path)
            .map(|(text, _)| &text.content);
        let is_same = |(other, text): (&PathBuf, &Text)| {
            real(path) == real(other) || content == Some(&text.content)
        };
        of_evaluation().zip(&evaluation).any(is_same)
    };
    if let Some(both) = of_calibration().find(same) {
        bail!(
            "{}: one text cannot be both calibration and evaluation; give it only as -f, and a part of it is held out",
            both.display()
        );
    }
    let is_built_in = calibration.is_empty();
    if is_built_in {
        note!(
            "measured on the built-in text; text like that of the model's later use (-f) is better"
        );
        calibration = built_in(Set::Calibration, CALIBRATION);
        if evaluation.is_empty() {
            evaluation = built_in(Set::Evaluation, EVALUATION);
        }
    }
    let texts = match evaluation.is_empty() {
        true => Texts::hold_out(calibration),
        false => Texts {
            calibration,
            evaluation,
            ..Texts::default()
        },
    };
    let texts = Texts {
        context: args.ctx_size,
        evaluation_chunks: args.eval_chunks,
        ..texts
    };
    Ok((texts, is_built_in))
}

/// Adds the built-in conversations to the built-in texts, as far as the model's template takes them: some have no
/// tools, or no system prompt.
fn add_conversations(texts: &mut Texts, template: &ChatTemplate, tokenizer: &Tokenizer) {
    let renderer = Renderer {
        template,
        tokenizer,
    };
    let add = |set, name: &str, to: &mut Vec<Text>| {
        let all = conversations(set).lines();
        let (lines, refused): (Vec<&str>, Vec<&str>) = all.partition(|line| renderer.takes(line));
        if !refused.is_empty() {
            let (refused, all) = (refused.len(), refused.len() + lines.len());
            note!(
                "{name}: the model's chat template refuses {refused} of {all}, which are left out"
            );
        }
        if !lines.is_empty() {
            to.push(Text {
                name: name.into(),
                content: lines.join("\n"),
                kind: Kind::Conversations,
            });
        }
    };
    add(
        Set::Calibration,
        "built-in conversations",
        &mut texts.calibration,
    );
    if texts.evaluation.iter().any(|text| text.name == EVALUATION) {
        add(
            Set::Evaluation,
            "built-in conversations for evaluation",
            &mut texts.evaluation,
        );
    }
}
