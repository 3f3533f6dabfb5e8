//! `quantier imatrix`.

use super::embeddings;
use super::measure::{Common, Opened, open, read_text, runnable, source};
use super::messages::{note, warning};
use super::terminal::Bar;
use super::text::{beside, say, size};
use super::wrong_usage;
use anyhow::{Context, ensure};
use clap::ArgMatches;
use clap::parser::ValueSource;
use quantier::chat::encoder::Encoder;
use quantier::input::Input;
use quantier::text::{Kind, Text};
use quantier_engine::evaluate::statistics::Perplexity;
use quantier_engine::evaluate::windows::Windows;
use quantier_engine::hessian::{self, Needs};
use quantier_engine::imatrix::collect::{Collected, Options, collect};
use quantier_engine::imatrix::coverage::{self, Gap};
use quantier_engine::imatrix::statistics::Statistics;
use quantier_engine::imatrix::sums::Sums;
use quantier_engine::resume::{KeyBuilder, Resume};
use quantier_gguf::imatrix::{Format, Imatrix};
use quantier_gguf::output::Output;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Compute the importance matrix of a model from a text, as llama-imatrix does
///
/// Sums the squared inputs of every linear layer per channel and per expert. The file is for
/// `quantier quantize --imatrix` and llama-quantize. MODEL is a GGUF, the first shard of a split
/// one, a Hugging Face checkpoint, or hf://ORG/NAME.
///
/// An interrupted run resumes when the same command is run again: its snapshot is in OUTPUT.resume,
/// which is removed at the end.
#[derive(clap::Args)]
#[command(
    override_usage = "quantier imatrix [OPTIONS] --file <TEXT> <MODEL>
       quantier imatrix [OPTIONS] --in-file <FILE> [--in-file <FILE>]...
       quantier imatrix --show-statistics --in-file <FILE>",
    after_help = "Examples:
  quantier imatrix -f calibration.txt -o imatrix.gguf model-bf16.gguf

  # A third of the chunks on each of three machines, then merge:
  quantier imatrix -f calibration.txt --chunk 0 --chunks 100 -o part0.gguf model-bf16.gguf
  quantier imatrix -f calibration.txt --chunk 100 --chunks 100 -o part1.gguf model-bf16.gguf
  quantier imatrix -f calibration.txt --chunk 200 -o part2.gguf model-bf16.gguf
  quantier imatrix --in-file part0.gguf,part1.gguf,part2.gguf -o imatrix.gguf

  # Also the input Hessians, for rounding with error feedback:
  quantier imatrix -f calibration.txt -o imatrix.gguf --hessians hessians model-bf16.gguf

  # Statistics of every tensor:
  quantier imatrix --show-statistics --in-file imatrix.gguf"
)]
pub struct Args {
    /// The model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    positional: Option<PathBuf>,
    /// The model, in llama-imatrix's spelling
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A calibration text, UTF-8; repeatable. Each text is cut into chunks separately
    #[arg(short, long, value_name = "TEXT")]
    file: Vec<PathBuf>,
    /// A calibration text of conversations, JSONL: {"messages": [...], "tools": [...]}, rendered by the
    /// model's chat template; repeatable
    #[arg(long, value_name = "JSONL")]
    chat: Vec<PathBuf>,
    /// The importance matrix to write
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "imatrix.gguf",
        alias = "output-file"
    )]
    output: PathBuf,
    /// Output format: gguf, or dat for older programs
    #[arg(long, value_name = "FORMAT", value_parser = ["gguf", "dat"])]
    output_format: Option<String>,
    /// Importance matrices of the same model to add to, separated by commas; repeatable. Without a
    /// text, they are only merged
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    in_file: Vec<PathBuf>,
    /// First chunk of each text, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, alias = "from-chunk")]
    chunk: usize,
    /// Include the output matrix
    #[arg(long)]
    process_output: bool,
    /// Show every expert all tokens, not only those routed to it: experts rarely chosen are covered
    /// too, at the cost of all experts for each token
    #[arg(long)]
    all_experts: bool,
    /// Parse control tokens in the text
    #[arg(long)]
    parse_special: bool,
    /// Also write the input Hessians, the mean of x x^T of each distinct input, one file each in
    /// DIR. One chunk in eight is held out, and some of its rows are stored for validation. An input
    /// of n channels takes 2 n^2 bytes
    #[arg(long, value_name = "DIR", alias = "covariance")]
    hessians: Option<PathBuf>,
    /// Skip the perplexity, which costs the output matrix for half of the tokens
    #[arg(long, overrides_with = "ppl")]
    no_ppl: bool,
    /// The default; accepted for compatibility with llama-imatrix
    #[arg(long, hide = true)]
    ppl: bool,
    /// Print statistics of every tensor: after a run, or of a single --in-file without a text
    #[arg(long)]
    show_statistics: bool,
    /// Also write FILE.at_N after every N chunks; the weights are then read once per N chunks. 0 for
    /// never
    #[arg(long, value_name = "N", default_value_t = 0)]
    save_frequency: usize,
    /// Accepted and ignored: intermediate results are in OUTPUT.resume
    #[arg(long, value_name = "N", hide = true)]
    output_frequency: Option<usize>,
    /// Minimum time between snapshots of the run; 0 for one after every layer. A snapshot holds the
    /// activations between two layers, 4 x tokens x width bytes; two must fit on the disk
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        alias = "checkpoint-every"
    )]
    snapshot_every: u64,
    /// Neither write snapshots nor resume from one
    #[arg(long, alias = "no-checkpoint")]
    no_snapshot: bool,
    #[command(flatten)]
    common: Common,
}

impl Args {
    fn has_text(&self) -> bool {
        !self.file.is_empty() || !self.chat.is_empty()
    }
}

pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let path = args.positional.as_deref().or(args.model.as_deref());
    if !args.has_text() && args.in_file.is_empty() {
        wrong_usage(
            "imatrix",
            "a text (--file) or importance matrices to merge (--in-file) are required",
        );
    }
    if args.show_statistics && !args.has_text() && args.in_file.len() != 1 {
        wrong_usage(
            "imatrix",
            "--show-statistics without a text takes a single --in-file",
        );
    }
    if path.is_none() && args.has_text() {
        wrong_usage("imatrix", "the model is missing");
    }
    if args.hessians.is_some() && (!args.has_text() || args.save_frequency > 0) {
        wrong_usage(
            "imatrix",
            "--hessians requires a text (--file) and excludes --save-frequency",
        );
    }
    let source = path.map(source).transpose()?;
    let input = source.as_ref().map(runnable).transpose()?;
    let own_size =
        matches.value_source("ctx_size") == Some(ValueSource::CommandLine) || args.has_text();
    let model = path
        .zip(input.as_ref())
        .map(|(path, input)| Model { path, input });
    let before = Before::read(args, own_size, model)?;
    let report = match model {
        Some(model) if args.has_text() => collected(args, model, before)?,
        _ if args.show_statistics => {
            let file = before.sums.to_file(before.chunk_size);
            Report {
                file,
                chunks: 0,
                perplexity: None,
                resumed: None,
                written: None,
                covariance: None,
            }
        }
        _ => {
            let file = before.sums.to_file(before.chunk_size);
            let inputs = model.map_or(Vec::new(), |model| model.input.paths());
            file.write(&args.output, format(args), &inputs)?;
            let written = Some(&*args.output);
            Report {
                file,
                chunks: 0,
                perplexity: None,
                resumed: None,
                written,
                covariance: None,
            }
        }
    };
    report.print(args)?;
    Ok(ExitCode::SUCCESS)
}

/// A model: its path as given, and its files.
#[derive(Clone, Copy)]
struct Model<'a> {
    path: &'a Path,
    input: &'a Input<'a>,
}

/// The merged sums of `--in-file`.
struct Before {
    sums: Sums,
    /// Tokens per chunk of the output.
    chunk_size: u32,
}

impl Before {
    /// Reads and merges the files, checked against the model if given. The chunk size is the
    /// command's own or, without one, the common chunk size of the files.
    fn read(args: &Args, own_size: bool, model: Option<Model<'_>>) -> anyhow::Result<Before> {
        let name = |path: &Path| path.display().to_string();
        let mut chunk_size =
            u32::try_from(args.common.ctx_size).context("--ctx-size is too large")?;
        ensure!(
            chunk_size > 0,
            "--ctx-size must be at least 1; the default is 512"
        );
        let files = args
            .in_file
            .iter()
            .map(|path| Imatrix::read(path))
            .collect::<Result<Vec<_>, _>>()?;
        if let (false, [first, rest @ ..]) = (own_size, &files[..])
            && first.chunk_size != 0
            && rest.iter().all(|file| file.chunk_size == first.chunk_size)
        {
            chunk_size = first.chunk_size;
        }
        let mut sums = Sums::default();
        for (path, file) in args.in_file.iter().zip(&files) {
            let theirs = Sums::of_file(file, chunk_size);
            if let Some(model) = model {
                let dims = |tensor_name: &str| {
                    let tensors = &model.input.tensors;
                    let tensor = tensors.iter().find(|t| *t.info.name == *tensor_name)?;
                    Some(tensor.info.shape.dims().to_vec())
                };
                theirs
                    .check_model(dims)
                    .with_context(|| format!("{}, against {}", name(path), name(model.path)))?;
            }
            sums.merge_file(&theirs).with_context(|| name(path))?;
        }
        Ok(Before { sums, chunk_size })
    }
}

fn format(args: &Args) -> Format {
    let dat = args.output_format.as_deref() == Some("dat");
    if args.output_format.is_none() && args.output.extension().is_some_and(|e| e == "dat") {
        let path = args.output.display();
        note!(
            "{path} will be a GGUF file in spite of its name; --output-format dat writes the old format"
        );
    }
    if dat { Format::Dat } else { Format::Gguf }
}

/// The chunks of all texts.
struct Chunks {
    tokens: Vec<u32>,
    /// The end of each text of an embedding model; None for chunks of equal length.
    ends: Option<Vec<usize>>,
    bos: Option<u32>,
    /// The texts with chunks in the requested range.
    datasets: Vec<String>,
}

impl Chunks {
    /// The texts of an embedding model.
    fn separate(args: &Args, opened: &Opened<'_>) -> anyhow::Result<Chunks> {
        ensure!(
            args.chat.is_empty(),
            "--chat is for models that predict tokens; give plain texts (-f) to an embedding model"
        );
        ensure!(
            !args.process_output,
            "--process-output: an embedding model has no output matrix"
        );
        let mut chunks = Chunks {
            tokens: Vec::new(),
            ends: None,
            bos: None,
            datasets: Vec::new(),
        };
        let mut ends = Vec::new();
        let longest = opened.engine.hyper.longest_text(args.common.ctx_size);
        for path in &args.file {
            let texts = embeddings::separate(opened, path, longest)?.texts;
            let texts = texts.iter().skip(args.chunk);
            let before = ends.len();
            for text in texts.take(args.common.chunks.unwrap_or(usize::MAX)) {
                chunks.tokens.extend_from_slice(text);
                ends.push(chunks.tokens.len());
            }
            if ends.len() > before {
                chunks.datasets.push(path.display().to_string());
            }
        }
        ensure!(
            !ends.is_empty(),
            "there are no texts; empty lines separate texts or, in a file without any, line breaks"
        );
        chunks.ends = Some(ends);
        Ok(chunks)
    }

    /// The chunks for the engine.
    fn windows(&self, n_ctx: usize) -> anyhow::Result<Windows<'_>> {
        Ok(match &self.ends {
            Some(ends) => Windows::of_texts(&self.tokens, ends)?,
            None => Windows::of_chunks(&self.tokens, n_ctx, self.bos)?,
        })
    }

    fn read(args: &Args, opened: &Opened<'_>) -> anyhow::Result<Chunks> {
        let n_ctx = args.common.ctx_size;
        if !opened.engine.has_output() {
            return Chunks::separate(args, opened);
        }
        let mut chunks = Chunks {
            tokens: Vec::new(),
            ends: None,
            bos: opened.chunk_bos(),
            datasets: Vec::new(),
        };
        let mut most = 0;
        let template = match args.chat.is_empty() {
            true => None,
            false => Some(opened.chat_template()?),
        };
        let encoder = Encoder {
            tokenizer: &opened.tokenizer,
            template: template.as_ref(),
        };
        for path in args.file.iter().chain(&args.chat) {
            let content = read_text(path)?;
            let tokens = match args.chat.contains(path) {
                false => opened.tokenizer.encode(&content, true, args.parse_special),
                true => {
                    let text = Text {
                        name: String::new(),
                        content,
                        kind: Kind::Conversations,
                    };
                    encoder
                        .tokens(&text)
                        .map_err(|what| anyhow::anyhow!("{}: {what}", path.display()))?
                }
            };
            let all = Windows::of_text(&tokens, n_ctx, None, chunks.bos)
                .with_context(|| path.display().to_string())?;
            most = most.max(all.chunks());
            let end = args.common.chunks.map_or(all.chunks(), |n| {
                args.chunk.saturating_add(n).min(all.chunks())
            });
            if args.chunk < end {
                chunks
                    .tokens
                    .extend_from_slice(&all.tokens()[args.chunk * n_ctx..end * n_ctx]);
                chunks.datasets.push(path.display().to_string());
            }
        }
        ensure!(
            args.common.chunks != Some(0),
            "--chunks 0 leaves nothing to do; use at least one"
        );
        ensure!(
            args.chunk < most,
            "--chunk {} is out of range: the text has {most} chunks of {n_ctx} tokens, counted from 0",
            args.chunk
        );
        Ok(chunks)
    }
}

fn collected<'a>(
    args: &'a Args,
    Model { path, input }: Model<'_>,
    before: Before,
) -> anyhow::Result<Report<'a>> {
    let mut opened = open(path, input, &args.common.running.options())?;
    let chunks = Chunks::read(args, &opened)?;
    let windows = chunks.windows(args.common.ctx_size)?;
    let (format, mut inputs) = (format(args), input.paths());
    inputs.extend(args.file.iter().chain(&args.chat).map(PathBuf::as_path));
    // Fail on an unwritable output now rather than after the run.
    drop(Output::create(&args.output, 0, &inputs)?);

    let finished = |sums: &Sums| {
        let mut all = before.sums.clone();
        all.datasets.extend_from_slice(&chunks.datasets);
        all.merge(sums)?;
        anyhow::Ok(all.to_file(before.chunk_size))
    };
    let interim = |sums: &Sums| {
        let bad = |what: String| quantier_gguf::Error::Bad {
            path: args.output.clone(),
            what,
        };
        let file = finished(sums).map_err(|e| bad(e.to_string()))?;
        let path = beside(&args.output, &format!(".at_{}", file.chunk_count));
        file.write(&path, format, &inputs)
    };
    let covariances = match &args.hessians {
        Some(directory) => Some(covariances(args, directory, input, &mut opened, &windows)?),
        None => None,
    };
    let resume = resume(args, input, &windows, covariances.as_ref())?;
    let options = Options {
        process_output: args.process_output,
        all_experts: args.all_experts,
        score: !args.no_ppl && opened.engine.has_output(),
        interim: (args.save_frequency > 0).then_some((args.save_frequency, &interim)),
        first_chunk: args.chunk,
        resume: resume.as_ref(),
        covariance: covariances.as_ref(),
        unit: None,
    };
    let bar = Bar::new();
    let collected = collect(&opened.engine, &windows, &options, &bar);
    drop(bar);
    if let Some(why) = resume.as_ref().and_then(Resume::failed) {
        warning!("no snapshot could be written: {why}");
    }
    let Collected {
        sums,
        nll,
        resumed,
        covariance,
    } = match (collected, &resume) {
        (Ok(collected), _) => collected,
        (Err(error), Some(resume)) => {
            if error.is_final() {
                resume.remove();
            }
            let again = resume
                .snapshot()
                .map(|path| format!("; the same command resumes from {}", path.display()));
            return Err(anyhow::anyhow!(
                "{}: {error}{}",
                path.display(),
                again.unwrap_or_default()
            ));
        }
        (Err(error), None) => return Err(error).with_context(|| path.display().to_string()),
    };
    let file = finished(&sums).with_context(|| format!("adding to {}", names(&args.in_file)))?;
    file.write(&args.output, format, &inputs)?;
    if let Some(resume) = resume {
        resume.remove();
    }
    let perplexity = Perplexity::of(&[&nll]);
    let covariance = covariances.zip(covariance);
    Ok(Report {
        file,
        chunks: windows.chunks(),
        perplexity,
        resumed,
        written: Some(&args.output),
        covariance,
    })
}

/// The key of a run: model, tokens, chunks and options.
fn job(
    kind: &str,
    args: &Args,
    input: &Input<'_>,
    windows: &Windows<'_>,
) -> anyhow::Result<KeyBuilder> {
    let tokens: Vec<u8> = (0..windows.chunks())
        .flat_map(|c| windows.input(c))
        .flat_map(u32::to_le_bytes)
        .collect();
    let key = KeyBuilder::new(kind)
        .with_model(input)?
        .with("input", &tokens)
        .with("context", &number(windows.n_ctx()))
        .with("output", &[args.process_output.into()])
        .with(
            "device",
            format!("{:?}", args.common.running.options().device).as_bytes(),
        );
    Ok(match args.all_experts {
        true => key.with("all experts", &[1]),
        false => key,
    })
}

fn number(n: usize) -> [u8; 8] {
    (n as u64).to_le_bytes()
}

/// The job of `--hessians`. Reserves its memory in the engine.
fn covariances(
    args: &Args,
    directory: &Path,
    input: &Input<'_>,
    opened: &mut Opened<'_>,
    windows: &Windows<'_>,
) -> anyhow::Result<hessian::Job> {
    let needs = Needs::of(
        &opened.engine,
        args.process_output,
        [windows.chunks(), windows.n_ctx()],
    );
    let experts_apart = needs.experts_apart;
    let key = job("covariance", args, input, windows)?
        .with("experts apart", &[experts_apart.into()])
        .key();
    let job = hessian::Job {
        directory: directory.to_owned(),
        key,
        experts_apart,
        hold_out: true,
    };
    needs.check(&job)?;
    note!(
        "input Hessians take at most {} in {}",
        size(needs.files),
        directory.display()
    );
    if !experts_apart {
        note!(
            "the experts of a layer share one input Hessian: separate ones would exceed a quarter of --max-memory (2 GiB \
             by default)"
        );
    }
    if let Some(limit) = opened
        .engine
        .max_memory()
        .filter(|limit| *limit < needs.memory)
    {
        warning!(
            "the input Hessians of a layer take {} of memory, but --max-memory is {}",
            size(needs.memory),
            size(limit)
        );
    }
    opened.engine.reserve(needs.memory);
    Ok(job)
}

/// The snapshot of the run, unless disabled or impossible.
fn resume(
    args: &Args,
    input: &Input<'_>,
    windows: &Windows<'_>,
    covariances: Option<&hessian::Job>,
) -> anyhow::Result<Option<Resume>> {
    let regular = !args.output.exists() || args.output.is_file();
    if args.no_snapshot || !regular {
        return Ok(None);
    }
    let labels: Vec<u8> = windows
        .tokens()
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    let job = job("imatrix", args, input, windows)?
        .with("text", &labels)
        .with("no perplexity", &[args.no_ppl.into()])
        .with("group", &number(args.save_frequency))
        .with("covariance", covariances.map_or(&[], |job| &job.key));
    let path = beside(&args.output, ".resume");
    let (resume, note) = Resume::open(&path, job.key(), Duration::from_secs(args.snapshot_every))?;
    if let Some(note) = note {
        note!("{note}");
    }
    Ok(Some(resume))
}

fn names(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The result of the command.
struct Report<'a> {
    file: Imatrix,
    /// Chunks processed by this run; 0 if it only merged files.
    chunks: usize,
    perplexity: Option<Perplexity>,
    /// First chunk of the group, and number of layers done by an earlier run.
    resumed: Option<[usize; 2]>,
    written: Option<&'a Path>,
    covariance: Option<(hessian::Job, hessian::Written)>,
}

impl Report<'_> {
    fn print(&self, args: &Args) -> anyhow::Result<()> {
        /// Experts with less than this fraction of the mean token count are reported.
        const HARDLY: f64 = 0.05;
        /// Number of layers with rare experts that are listed.
        const SHOWN: usize = 12;
        let file = &self.file;
        let gaps = coverage::gaps(file, HARDLY);
        let statistics = args.show_statistics.then(|| Statistics::of(file));
        if let Some(statistics) = &statistics {
            ensure!(
                !statistics.tensors.is_empty(),
                "{}: no tensor has any tokens",
                names(&args.in_file)
            );
        }
        if args.common.running.json {
            return say!(
                "{}",
                json!({
                    "output": self.written,
                    "tensors": file.entries.len(),
                    "datasets": file.datasets,
                    "chunks": self.chunks,
                    "chunk_count": file.chunk_count,
                    "chunk_size": file.chunk_size,
                    "perplexity": self.perplexity,
                    "covariance": self.covariance.as_ref().map(|(job, written)| json!({
                        "directory": job.directory,
                        "files": written.files,
                        "tensors": written.tensors,
                        "bytes": written.bytes,
                        "experts_apart": job.experts_apart,
                    })),
                    "resumed": self.resumed.map(|[chunk, layers]| json!({ "chunk": chunk, "layers": layers })),
                    "gaps": gaps,
                    "statistics": statistics,
                })
            );
        }
        if let Some([chunk, layers]) = self.resumed {
            let group = if chunk > 0 {
                format!(", chunks from {chunk}")
            } else {
                String::new()
            };
            note!("resumed after {layers} layers{group}");
        }
        if let Some(perplexity) = &self.perplexity {
            say!("Final estimate: PPL = {}", perplexity.perplexity)?;
        }
        if let Some(statistics) = &statistics {
            say!("{}", statistics.text())?;
        }
        if let Some(path) = self.written {
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            say!(
                "{}: {} tensors, {} chunks of {} tokens, {}",
                path.display(),
                file.entries.len(),
                file.chunk_count,
                file.chunk_size,
                size(bytes)
            )?;
            if let Some((
                job,
                hessian::Written {
                    files,
                    tensors,
                    bytes,
                },
            )) = &self.covariance
            {
                say!(
                    "{}: {files} input Hessians for {tensors} tensors, {}",
                    job.directory.display(),
                    size(*bytes)
                )?;
            }
            warn(&gaps, SHOWN);
        }
        Ok(())
    }
}

/// Warns of experts with few tokens.
fn warn(gaps: &[Gap], shown: usize) {
    if gaps.is_empty() {
        return;
    }
    gaps.iter().take(shown).for_each(|gap| warning!("{gap}"));
    if gaps.len() > shown {
        warning!("and {} more layers; --json lists all", gaps.len() - shown);
    }
    let none = if gaps.iter().any(|gap| !gap.never.is_empty()) {
        ", or on none where no token was routed to them"
    } else {
        ""
    };
    warning!(
        "such experts are quantized on little data{none}; use a longer or more varied text, \
         or --all-experts"
    );
}
