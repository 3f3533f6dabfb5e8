//! `quantier perplexity`, `quantier kld` and `quantier imatrix`: what runs a model on a text.

use super::terminal::Bar;
use super::text::{say, size};
use anyhow::{Context, bail, ensure};
use quantier::convert;
use quantier::evaluate::measure;
use quantier::evaluate::statistics::{Perplexity, Statistics};
use quantier::evaluate::windows::Windows;
use quantier::format::imatrix::Format;
use quantier::imatrix::{collect::collect, coverage};
use quantier::input::{Input, Source};
use quantier::model::{Engine, Options};
use quantier::tokenizer::Tokenizer;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What all of them take.
#[derive(clap::Args)]
pub struct Common {
    /// The text, UTF-8
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// The most chunks of the text that are used; all without it
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// How many threads to use; 0 takes one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Memory for a layer's weights and the activations of all chunks, in MiB; activations beyond it go to a temporary
    /// file
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Measure the perplexity of a model on a text, as llama-perplexity does
///
/// MODEL is a GGUF, the first shard of a split one, or a Hugging Face checkpoint. The second half of every chunk is
/// scored. Quantized weights are dequantized and multiplied in f32, so that the figure is that of the weights alone.
#[derive(clap::Args)]
pub struct PerplexityArgs {
    /// The model
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Measure how far quantized models are from their base: KL divergence in nats, and what comes with it
///
/// One pass of the base serves all the others, and no logits file lies in between: both sides have full f32 logits.
#[derive(clap::Args)]
pub struct KldArgs {
    /// The base model
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The models to compare with it
    #[arg(value_name = "QUANT", required = true)]
    quants: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Compute the importance matrix of a model from a text, as llama-imatrix does
#[derive(clap::Args)]
pub struct ImatrixArgs {
    /// The model
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// Where the importance matrix goes
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// gguf, or dat for old programs
    #[arg(long, value_name = "FORMAT", default_value = "gguf", value_parser = ["gguf", "dat"])]
    output_format: String,
    /// The chunk to begin with, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// Collect for the output matrix too
    #[arg(long)]
    process_output: bool,
    /// Take control tokens in the text for what they are
    #[arg(long)]
    parse_special: bool,
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn options(&self) -> Options {
        let max_memory = self.max_memory.map(|mib| mib << 20);
        Options { threads: self.threads, max_memory, ..Options::default() }
    }

    fn text(&self) -> anyhow::Result<String> {
        let path = self.file.display();
        let bytes = std::fs::read(&self.file).with_context(|| format!("cannot read {path}"))?;
        String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            anyhow::anyhow!("{path}: not UTF-8 at byte {at}; convert the text to UTF-8")
        })
    }
}

/// A model that is open, with its tokenizer.
struct Opened<'a> {
    engine: Engine<'a>,
    tokenizer: Tokenizer,
}

fn open<'a>(path: &Path, input: &'a Input<'a>, options: &Options) -> anyhow::Result<Opened<'a>> {
    let name = || path.display().to_string();
    let tokenizer = Tokenizer::from_gguf(input.metadata()).with_context(name)?;
    let engine = Engine::new(input, options).with_context(name)?;
    ensure!(
        tokenizer.vocab_size() <= engine.vocabulary(),
        "{}: its tokenizer has {} tokens and its output matrix {} rows",
        name(),
        tokenizer.vocab_size(),
        engine.vocabulary()
    );
    Ok(Opened { engine, tokenizer })
}

fn source(path: &Path) -> anyhow::Result<Source> {
    Ok(Source::open(path)?)
}

fn input(source: &Source) -> anyhow::Result<Input<'_>> {
    Ok(Input::new(source, &convert::Job::default())?)
}

impl Opened<'_> {
    fn windows<'t>(&self, tokens: &'t [u32], common: &Common) -> anyhow::Result<Windows<'t>> {
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        let cut = Windows::of_text(tokens, common.ctx_size, common.chunks, bos);
        cut.with_context(|| common.file.display().to_string())
    }
}

pub fn perplexity(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let text = common.text()?;
    let source = source(&args.model)?;
    let input = input(&source)?;
    let opened = open(&args.model, &input, &common.options())?;
    let tokens = opened.tokenizer.encode(&text, true, false);
    let windows = opened.windows(&tokens, common)?;
    let bar = Bar::new();
    let nll = measure::nll(&opened.engine, &windows, &bar).with_context(|| args.model.display().to_string())?;
    drop(bar);
    let Some(found) = Perplexity::of(&[&nll]) else { bail!("{}: nothing to score", common.file.display()) };
    if common.json {
        say!(
            "{}",
            json!({ "model": args.model, "text": common.file, "chunks": windows.chunks(), "perplexity": found })
        )?;
    } else {
        say!("Final estimate: PPL = {}, {} chunks of {} tokens", found.perplexity, windows.chunks(), windows.n_ctx())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn kld(args: &KldArgs) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let text = common.text()?;
    let base_source = source(&args.base)?;
    let base_input = input(&base_source)?;
    let base = open(&args.base, &base_input, &common.options())?;
    let tokens = base.tokenizer.encode(&text, true, false);
    let windows = base.windows(&tokens, common)?;
    // All are looked at before the first is run.
    let sources = args.quants.iter().map(|path| source(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let inputs = sources.iter().map(input).collect::<anyhow::Result<Vec<_>>>()?;
    let mut quants = Vec::new();
    for (path, input) in args.quants.iter().zip(&inputs) {
        let quant = open(path, input, &common.options())?;
        ensure!(
            quant.engine.vocabulary() == base.engine.vocabulary()
                && quant.tokenizer.encode(&text, true, false) == tokens,
            "{} has another vocabulary than {}; compare models of one family",
            path.display(),
            args.base.display()
        );
        quants.push((path, quant));
    }
    let bar = Bar::new();
    let base_hidden = measure::hidden(&base.engine, &windows, &bar).with_context(|| args.base.display().to_string())?;
    let mut found: Vec<(&PathBuf, Statistics)> = Vec::new();
    for (path, quant) in &quants {
        let rows = measure::compare((&base.engine, &base_hidden), &quant.engine, &windows, &bar);
        let rows = rows.with_context(|| path.display().to_string())?;
        let statistics = Statistics::of(&[&rows]);
        found.push((path, statistics.with_context(|| format!("{}: nothing to score", common.file.display()))?));
    }
    drop(bar);
    if common.json {
        let models: Vec<_> = found.iter().map(|(path, s)| json!({ "model": path, "statistics": s })).collect();
        say!("{}", json!({ "base": args.base, "text": common.file, "chunks": windows.chunks(), "models": models }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (path, statistics) in &found {
        say!("{}\n{statistics}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn imatrix(args: &ImatrixArgs) -> anyhow::Result<ExitCode> {
    /// Experts that meet less than this part of the mean are told.
    const HARDLY: f64 = 0.05;
    let common = &args.common;
    let text = common.text()?;
    let source = source(&args.model)?;
    let input = input(&source)?;
    let opened = open(&args.model, &input, &common.options())?;
    let tokens = opened.tokenizer.encode(&text, true, args.parse_special);
    let first = (args.chunk * common.ctx_size).min(tokens.len());
    let windows = opened.windows(&tokens[first..], common)?;
    let chunks: Vec<_> = (0..windows.chunks()).map(|chunk| windows.input(chunk)).collect();
    let bar = Bar::new();
    let collected = collect(&opened.engine, &chunks, args.process_output, &bar);
    let (mut sums, _) = collected.with_context(|| args.model.display().to_string())?;
    drop(bar);
    sums.datasets = vec![common.file.display().to_string()];
    let imatrix = sums.to_file(common.ctx_size as u32);
    let format = if args.output_format == "dat" { Format::Dat } else { Format::Gguf };
    imatrix.write(&args.output, format, &input.paths())?;
    let gaps = coverage::gaps(&imatrix, HARDLY);
    if common.json {
        say!(
            "{}",
            json!({ "output": args.output, "chunks": chunks.len(), "tensors": imatrix.entries.len(), "gaps": gaps })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    gaps.iter().for_each(|gap| eprintln!("warning: {gap}"));
    let bytes = std::fs::metadata(&args.output).map_or(0, |m| m.len());
    let (path, count) = (args.output.display(), imatrix.entries.len());
    say!("{path}: {count} tensors, {} chunks of {} tokens, {}", chunks.len(), common.ctx_size, size(bytes))?;
    Ok(ExitCode::SUCCESS)
}
