//! `quantier tune`.

use super::measure::{Common, open, read_text, runnable, source};
use super::messages::{note, warning};
use super::terminal::Bar;
use super::text::{beside, say};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use quantier::chat::encoder::Encoder;
use quantier::input::Source;
use quantier::text::Kind as TextKind;
use quantier::tune::{
    Base, Corpus, Job, Kinds, Model, Options, Outcome, Rates, Text, check, targets,
};
use quantier_core::words;
use quantier_engine::resume::Resume;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Tune a quantized file: train its norms, scales and codes by KL divergence from the base model
///
/// Works with any GGUF whose types have blocks, whoever made it. OUT has the same tensors, types and
/// layout as FILE, so that size and speed stay. BASE is the model that FILE was made from, unquantized.
///
/// About a fifth of each text is held out. Half of the held-out chunks decide which state is kept and
/// when to stop: the one with the least divergence that is worse on no text. The other half is reported.
///
/// An interrupted run resumes when the same command is run again: its snapshot is in OUT.resume,
/// which is removed at the end.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier tune model-F16.gguf model-Q4_K_M.gguf -f calibration.txt -o tuned-Q4_K_M.gguf

  # Only norms and scales, with a text of its own for decisions:
  quantier tune model-F16.gguf model-Q4_K_M.gguf -f calibration.txt --eval held-out.txt \\
      --train norms,scales -o tuned.gguf")]
pub struct Args {
    /// The unquantized model
    base: PathBuf,
    /// The quantized GGUF to tune (any shard of a split one)
    file: PathBuf,
    /// A text for training, UTF-8; repeatable
    #[arg(
        short = 'f',
        long = "file",
        value_name = "TEXT",
        required_unless_present = "chat"
    )]
    texts: Vec<PathBuf>,
    /// A training text of conversations, JSONL: {"messages": [...], "tools": [...]}, rendered by the
    /// model's chat template; repeatable
    #[arg(long, value_name = "JSONL")]
    chat: Vec<PathBuf>,
    /// Conversations for decisions and the report; repeatable
    #[arg(long, value_name = "JSONL")]
    eval_chat: Vec<PathBuf>,
    /// A text for decisions and the report, in the place of a fifth of the others; repeatable
    #[arg(long, value_name = "TEXT")]
    eval: Vec<PathBuf>,
    /// The file to write; for a split FILE, its first file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Kinds of parameters to train
    #[arg(
        long,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "norms,scales,codes"
    )]
    train: Vec<Kind>,
    /// Number of steps, at most
    #[arg(long, value_name = "N", default_value_t = Options::default().steps)]
    steps: usize,
    /// Chunks of each step
    #[arg(long, value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// Learning rate of norms and biases, relative to their size, for a file at 0.1 nats from its base; in
    /// proportion to the square root of the divergence
    #[arg(long, value_name = "RATE", default_value_t = Rates::default().norms)]
    rate_norms: f32,
    /// Learning rate of scales, relative to each; otherwise like that of norms
    #[arg(long, value_name = "RATE", default_value_t = Rates::default().scales)]
    rate_scales: f32,
    /// Learning rate of codes, in steps between adjacent ones; otherwise like that of norms
    #[arg(long, value_name = "RATE", default_value_t = Rates::default().codes)]
    rate_codes: f32,
    /// Seed of the order of the chunks
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
    /// Minimum time between snapshots of the run, in OUT.resume; 0 for one after every step
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    snapshot_every: u64,
    /// Neither write snapshots nor resume from one
    #[arg(long)]
    no_snapshot: bool,
    /// Replace an existing OUT
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Kinds of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Norms, and biases
    Norms,
    /// The f16 scales of blocks
    Scales,
    /// The codes of blocks
    Codes,
}

impl Args {
    fn options(&self) -> Options {
        let has = |kind: Kind| self.train.contains(&kind);
        Options {
            kinds: Kinds {
                norms: has(Kind::Norms),
                scales: has(Kind::Scales),
                codes: has(Kind::Codes),
            },
            steps: self.steps,
            batch: self.batch.max(1),
            rates: Rates {
                norms: self.rate_norms,
                scales: self.rate_scales,
                codes: self.rate_codes,
            },
            seed: self.seed,
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let rates = [args.rate_norms, args.rate_scales, args.rate_codes];
    ensure!(
        rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0),
        "learning rates are numbers of at least 0"
    );
    let sources = [source(&args.base)?, source(&args.file)?];
    let Source::Gguf(files) = &sources[1] else {
        bail!(
            "{}: not a GGUF; tune works on a quantized file, which quantier make or llama-quantize writes",
            args.file.display()
        );
    };
    let targets = targets(files, &args.output, args.force)?;
    let inputs = [runnable(&sources[0])?, runnable(&sources[1])?];
    let options = args.common.running.options();
    let base = open(&args.base, &inputs[0], &options)?;
    base.ensure_output(
        &args.base,
        "tuning trains by the KL divergence of predicted tokens, and cannot be done",
    )?;
    let file = open(&args.file, &inputs[1], &options)?;
    let model = |path: &Path, at: usize, engine| Model {
        name: path.display().to_string(),
        input: &inputs[at],
        engine,
    };
    let [of_base, of_file] = [
        model(&args.base, 0, &base.engine),
        model(&args.file, 1, &file.engine),
    ];
    check(&of_base, &of_file)?;
    let both = [(&args.texts, &args.chat), (&args.eval, &args.eval_chat)];
    let [texts, held_out] = both.map(|(plain, chats)| texts(plain, chats, args.common.chunks));
    let (texts, held_out) = (texts?, held_out?);
    let template = match args.chat.is_empty() && args.eval_chat.is_empty() {
        true => None,
        false => Some(base.chat_template()),
    };
    let template = template.transpose();
    let template = template.with_context(|| args.base.display().to_string())?;
    let encoder = Encoder {
        tokenizer: &base.tokenizer,
        template: template.as_ref(),
    };
    let corpus = Corpus::new(encoder, &texts, &held_out, args.common.ctx_size)?;
    let bar = Bar::new();
    let base = Base::new(of_base, corpus, &bar)?;
    drop(bar);
    let job = Job {
        base: &base,
        file: of_file,
        options: args.options(),
    };
    let resume = match args.no_snapshot {
        true => None,
        false => {
            let path = beside(&args.output, ".resume");
            let every = Duration::from_secs(args.snapshot_every);
            let (resume, text) = Resume::open(&path, job.key()?, every)?;
            text.iter().for_each(|text| note!("{text}"));
            Some(resume)
        }
    };
    let bar = Bar::new();
    let ran = job.run(resume.as_ref(), &bar, &|text| warning!("{text}"));
    drop(bar);
    let outcome = match (ran, &resume) {
        (Ok(outcome), _) => outcome,
        (Err(error), Some(resume)) => {
            let again = resume.snapshot();
            let again =
                again.map(|path| format!("; the same command resumes from {}", path.display()));
            bail!("{error}{}", again.unwrap_or_default());
        }
        (Err(error), None) => return Err(error.into()),
    };
    if !outcome.without_gradient.is_empty() {
        let names: Vec<&str> = outcome
            .without_gradient
            .iter()
            .map(String::as_str)
            .collect();
        /// Most names listed.
        const NAMED: usize = 8;
        note!(
            "not tuned, as they have no gradient: {}",
            words::listed(&names, NAMED)
        );
    }
    job.write(files, &outcome, &targets)?;
    resume.iter().for_each(Resume::remove);
    report(args, &outcome)
}

fn texts(plain: &[PathBuf], chats: &[PathBuf], chunks: Option<usize>) -> anyhow::Result<Vec<Text>> {
    ensure!(
        chunks.is_none(),
        "tune takes whole texts: leave out --chunks"
    );
    let plain = plain.iter().map(|path| (path, TextKind::Plain));
    let chats = chats.iter().map(|path| (path, TextKind::Conversations));
    let read = |(path, kind): (&PathBuf, TextKind)| {
        Ok(Text {
            name: path.display().to_string(),
            content: read_text(path)?,
            kind,
        })
    };
    plain.chain(chats).map(read).collect()
}

fn report(args: &Args, outcome: &Outcome) -> anyhow::Result<ExitCode> {
    if args.common.running.json {
        let mut report = serde_json::to_value(outcome).context("the report")?;
        report["output"] = json!(args.output);
        report["tensors_changed"] = json!(outcome.changed.len());
        say!("{report}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let [done, best] = outcome.steps;
    say!("step    training  divergence of held-out chunks that decide, by text")?;
    for point in &outcome.points {
        let training = point
            .training
            .map_or("       -".into(), |nats| format!("{nats:8.6}"));
        let nats: Vec<String> = point.nats.iter().map(|nats| format!("{nats:.6}")).collect();
        say!("{:>5}  {training}  {}", point.step, nats.join("  "))?;
    }
    say!("\nheld-out chunks that decided nothing, mean KL divergence in nats:")?;
    for text in &outcome.texts {
        let ratio = text.after / text.before;
        say!(
            "{}: {:.6} -> {:.6}  (x {ratio:.3}, {} chunks)",
            text.name,
            text.before,
            text.after,
            text.chunks
        )?;
    }
    match best {
        0 => say!(
            "{}: a copy of FILE: {done} steps gained nothing",
            args.output.display()
        )?,
        _ => say!(
            "{}: {} tensors tuned, the state after {best} of {done} steps, {} tokens",
            args.output.display(),
            outcome.changed.len(),
            outcome.tokens
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
