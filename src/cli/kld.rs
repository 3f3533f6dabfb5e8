//! `quantier kld`.

use super::corpus::{Corpus, LogitsFile};
use super::measure::{Common, Opened, open, runnable, source};
use super::messages::warning;
use super::terminal::Bar;
use super::text::say;
use super::wrong_usage;
use anyhow::{Context, ensure};
use quantier::input::Input;
use quantier_engine::evaluate::measure::{self, Base, Measured};
use quantier_engine::evaluate::paired::{Paired, Verdict};
use quantier_engine::evaluate::score::Comparison;
use quantier_engine::evaluate::statistics::{Figure, Statistics};
use quantier_gguf::logits::Writer;
use serde_json::json;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure the KL divergence of quantized models from their base, in nats, and related statistics
///
/// The base runs once for all models, without a logits file in between: all logits are full f32. A
/// logits file of llama-perplexity can replace the base; it holds 16 bits per log-probability and
/// cuts off below e^-16 of the most probable token.
#[derive(clap::Args)]
#[command(
    override_usage = "quantier kld [OPTIONS] --file <TEXT> <BASE> <QUANT>...
       quantier kld [OPTIONS] --logits <FILE> <QUANT>...",
    after_help = "Examples:
  quantier kld model-F16.gguf model-Q4_K_M.gguf model-Q6_K.gguf -f wiki.txt -f code.txt

  # Run the base once and reuse its log-probabilities:
  quantier kld model-F16.gguf model-Q4_K_M.gguf -f wiki.txt --save-logits wiki.logits
  quantier kld --logits wiki.logits model-Q6_K.gguf"
)]
pub struct Args {
    /// The base model (not with --logits) and the models to compare with it
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// An evaluation text, UTF-8; repeatable, with one line per text
    #[arg(short, long, value_name = "TEXT", required_unless_present = "logits")]
    file: Vec<PathBuf>,
    /// Read the base's log-probabilities and the tokens from a file written by --save-logits or
    /// llama-perplexity --kl-divergence-base
    #[arg(long, value_name = "FILE", aliases = ["kl-divergence-base"], conflicts_with = "save_logits")]
    logits: Option<PathBuf>,
    /// Also write the base's log-probabilities, for --logits or llama-perplexity --kl-divergence
    #[arg(long, value_name = "FILE", aliases = ["save-all-logits"])]
    save_logits: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let logits = args.logits.as_deref().map(LogitsFile::open).transpose()?;
    if logits.is_none() && args.models.len() < 2 {
        wrong_usage("kld", "name at least one model to compare with the base");
    }
    // Open and check all models before running the first.
    let sources = args
        .models
        .iter()
        .map(|path| source(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let inputs = sources
        .iter()
        .map(runnable)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let opened = args
        .models
        .iter()
        .zip(&inputs)
        .map(|(path, input)| open(path, input, &args.common.options()));
    let mut opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
    let corpus = read(args, &opened, logits.as_ref())?;
    let compared = compare(args, &inputs, &mut opened, &corpus, logits.as_ref())?;
    report(args, &corpus, &compared)
}

/// The chunks; fails unless all models tokenize them alike.
fn read(
    args: &Args,
    opened: &[Opened<'_>],
    logits: Option<&LogitsFile<'_>>,
) -> anyhow::Result<Corpus> {
    let (first, chunks) = (&opened[0], args.common.chunks);
    let corpus = match logits {
        Some(file) => Corpus::of_logits(first, file, &args.file, chunks)?,
        None => Corpus::of_texts(first, &args.file, args.common.ctx_size, chunks)?,
    };
    for (path, other) in args.models.iter().zip(opened).skip(1) {
        let sizes = (first.engine.vocabulary(), other.engine.vocabulary());
        ensure!(
            sizes.0 == sizes.1,
            "{}: its vocabulary has {} tokens, that of {} has {}; compare models of one family",
            path.display(),
            sizes.1,
            args.models[0].display(),
            sizes.0
        );
        corpus
            .check(first, other, &args.file, chunks)
            .with_context(|| path.display().to_string())?;
    }
    Ok(corpus)
}

/// Most models of which every pair is listed.
const ALL_PAIRS: usize = 4;

/// Minimum fraction of rows with the same most probable token for related models.
const UNRELATED: f64 = 0.05;

/// A model compared with the base, row by row.
struct Compared<'a> {
    path: &'a Path,
    rows: Vec<Comparison>,
}

/// Runs the layers of one model after another, then compares all logits in one sweep.
fn compare<'a>(
    args: &'a Args,
    inputs: &[Input<'_>],
    opened: &mut [Opened<'_>],
    corpus: &Corpus,
    logits: Option<&LogitsFile<'_>>,
) -> anyhow::Result<Vec<Compared<'a>>> {
    let windows = corpus.windows()?;
    let quants = &args.models[usize::from(logits.is_none())..];
    let mut save = match &args.save_logits {
        Some(file) => {
            let mut others: Vec<&Path> = inputs.iter().flat_map(|input| input.paths()).collect();
            others.extend(args.file.iter().map(|f| &**f));
            Some(Writer::create(
                file,
                measure::shape(&opened[0].engine, &windows),
                windows.tokens(),
                &others,
            )?)
        }
        None => None,
    };
    // A running model shares memory with the activations of its predecessors; the final sweep needs
    // at least two output matrices.
    let head = opened
        .iter()
        .map(|model| model.engine.head_bytes())
        .max()
        .unwrap_or(0);
    let mut kept = 0;
    let mut measured = Vec::new();
    let bar = Bar::new();
    for (path, opened) in args.models.iter().zip(opened) {
        let name = path.display().to_string();
        bar.about(&path.file_name().unwrap_or_default().to_string_lossy());
        opened.engine.reserve(head.saturating_add(kept));
        let model = Measured::new(name, &opened.engine, &windows, &bar)?;
        kept += model.memory_bytes();
        measured.push(model);
    }
    bar.about("all");
    let base = match logits {
        Some(LogitsFile { path, logits }) => Base::Stored {
            name: path.display().to_string(),
            logits,
        },
        None => Base::Model(measured.remove(0)),
    };
    let rows = measure::compare(&base, &measured, &windows, save.as_mut(), &bar)?;
    drop(bar);
    save.map_or(Ok(()), Writer::finish)?;
    let compared = quants.iter().zip(rows);
    Ok(compared
        .map(|(path, rows)| Compared { path, rows })
        .collect())
}

/// Statistics of a model: of all texts, and of each.
struct Summary<'a> {
    path: &'a Path,
    all: Statistics,
    texts: Vec<(&'a Path, Statistics)>,
}

fn report(args: &Args, corpus: &Corpus, compared: &[Compared<'_>]) -> anyhow::Result<ExitCode> {
    let of = |rows: &[Comparison]| Statistics::of(&[rows]).context("there is nothing to score");
    let mut models = Vec::new();
    for Compared { path, rows } in compared {
        let texts = corpus
            .parts
            .iter()
            .map(|(text, part)| Ok((&**text, of(corpus.rows(part, rows))?)));
        models.push(Summary {
            path,
            all: of(rows)?,
            texts: texts.collect::<anyhow::Result<_>>()?,
        });
    }
    if args.logits.is_some() && args.file.is_empty() {
        // Without the text, only the sizes of the vocabularies were compared.
        for Summary { path, all, .. } in models
            .iter()
            .filter(|model| model.all.same_top.value < UNRELATED)
        {
            warning!(
                "{} and the logits file agree on the most probable token in only {:.1}% of the rows; their vocabularies \
                 may differ. --file checks that",
                path.display(),
                100.0 * all.same_top.value
            );
        }
    }
    let pairs = pairs(corpus, compared)?;
    if args.common.json {
        let one = |Summary { path, all, texts }: &Summary<'_>| {
            let texts: Vec<_> = texts
                .iter()
                .map(|(text, s)| json!({ "text": text, "statistics": s }))
                .collect();
            json!({ "model": path, "statistics": all, "texts": texts })
        };
        let windows = corpus.windows()?;
        let texts: Vec<_> = corpus
            .parts
            .iter()
            .map(|(text, part)| json!({ "text": text, "chunks": part.len() }))
            .collect();
        let base = args.models.first().filter(|_| args.logits.is_none());
        say!(
            "{}",
            json!({
                "base": base, "logits": args.logits, "ctx_size": windows.n_ctx(), "chunks": windows.chunks(),
                "texts": texts, "models": models.iter().map(one).collect::<Vec<_>>(),
                "pairs": pairs.iter().map(Pair::json).collect::<Vec<_>>(),
            })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    for Summary { path, all, texts } in &models {
        say!("{}\n{all}", path.display())?;
        if texts.len() > 1 {
            let names = texts
                .iter()
                .map(|(text, s)| (text.display().to_string(), s));
            table("text", names.chain([("all".to_owned(), all)]))?;
            say!("")?;
        }
    }
    if models.len() > 1 {
        table(
            "model",
            models
                .iter()
                .map(|model| (model.path.display().to_string(), &model.all)),
        )?;
        say!("\npaired differences of the mean KLD, with the standard error of chunks:")?;
        pairs.iter().try_for_each(|pair| say!("{pair}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Two models on the same rows.
struct Pair<'a> {
    models: [&'a Path; 2],
    paired: Paired,
    rows: usize,
}

impl Pair<'_> {
    fn json(&self) -> serde_json::Value {
        let Pair { models, paired, .. } = self;
        json!({ "first": models[0], "second": models[1], "paired": paired })
    }
}

impl fmt::Display for Pair<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pair {
            models,
            paired,
            rows,
        } = self;
        let [first, second] = models.map(Path::display);
        write!(f, "{first} - {second}: {:+.6}", paired.difference)?;
        if let Some(error) = paired.uncertainty {
            write!(f, " ± {error:.6}")?;
        }
        match (paired.verdict, paired.uncertainty) {
            (Verdict::First, _) => write!(f, ", {first} is closer to the base"),
            (Verdict::Second, _) => write!(f, ", {second} is closer to the base"),
            (Verdict::Unclear, None) => write!(f, ", too few chunks for a verdict"),
            (Verdict::Unclear, Some(_)) => {
                write!(f, ", unclear with {rows} rows")?;
                match paired.rows_needed {
                    Some(needed) => write!(f, "; about {needed} would decide"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Every pair of models up to [`ALL_PAIRS`] of them, otherwise the first with each of the others.
fn pairs<'a>(corpus: &Corpus, compared: &[Compared<'a>]) -> anyhow::Result<Vec<Pair<'a>>> {
    let chunks = corpus.windows()?.chunks().max(1);
    let firsts = match compared.len() {
        0 => 0,
        n if n <= ALL_PAIRS => n - 1,
        _ => 1,
    };
    let mut pairs = Vec::new();
    for (at, first) in compared[..firsts].iter().enumerate() {
        for second in &compared[at + 1..] {
            let rows = first.rows.len();
            let paired = Paired::of(&first.rows, &second.rows, rows / chunks);
            pairs.extend(paired.map(|paired| Pair {
                models: [first.path, second.path],
                paired,
                rows,
            }));
        }
    }
    Ok(pairs)
}

/// Prints one line per text or model.
fn table<'s>(
    what: &str,
    lines: impl Iterator<Item = (String, &'s Statistics)> + Clone,
) -> anyhow::Result<()> {
    let width = lines
        .clone()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        .max(what.len());
    let heads = [
        "mean KLD",
        "99.9% KLD",
        "PPL(base)",
        "PPL(Q)",
        "RMS Δp",
        "same top p",
    ];
    let [kld, tail, base, ppl, rms, top] = heads;
    say!("{what:<width$}  {kld:>20}  {tail:>10}  {base:>10}  {ppl:>10}  {rms:>9}  {top:>10}")?;
    for (name, s) in lines {
        let high = s
            .kld_spread
            .percentiles
            .iter()
            .find(|(percent, _)| *percent == 99.9)
            .map_or(f64::NAN, |p| p.1);
        say!(
            "{name:<width$}  {:>20}  {high:>10.6}  {:>10.4}  {:>10.4}  {:>7.3} %  {:>8.3} %",
            short(s.kld),
            s.perplexity_base.value,
            s.perplexity.value,
            100.0 * s.delta_p_rms.value,
            100.0 * s.same_top.value
        )?;
    }
    Ok(())
}

fn short(figure: Figure) -> String {
    match figure.uncertainty {
        Some(u) => format!("{:.6} ± {u:.6}", figure.value),
        None => format!("{:.6}", figure.value),
    }
}
