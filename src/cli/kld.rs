//! `quantier kld`.

use super::corpus::{Corpus, LogitsFile, Request};
use super::embeddings;
use super::measure::{Common, Opened, Scored, open_all, runnables, sources};
use super::messages::warning;
use super::terminal::Bar;
use super::text::say;
use super::wrong_usage;
use anyhow::{Context, ensure};
use quantier::input::Input;
use quantier_engine::evaluate::measure::{self, Base, Measured};
use quantier_engine::evaluate::paired::{Paired, Verdict};
use quantier_engine::evaluate::positions::{self, Bin};
use quantier_engine::evaluate::score::Comparison;
use quantier_engine::evaluate::statistics::{Figure, Statistics};
use quantier_gguf::logits::Writer;
use quantier_gguf::output::Output;
use quantier_report::kld_chart::{self, Series, kld_chart};
use quantier_report::numbers::{shorten, top_changes};
use quantier_report::svg::Place;
use serde_json::json;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure the KL divergence of quantized models from their base, in nats, and related statistics
///
/// Of an embedding model, which predicts no tokens, it measures the cosine distance of the embeddings of the texts
/// (separated by empty lines or, in a file without any, by line breaks), and the agreement on which texts are similar.
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
  quantier kld --logits wiki.logits model-Q6_K.gguf

  # Conversations, scored on the assistant's tokens, and long contexts:
  quantier kld model-F16.gguf model-Q4_K_M.gguf --chat chats.jsonl --svg kld.svg
  quantier kld model-F16.gguf model-Q4_K_M.gguf -f book.txt --ctx-size 32768"
)]
pub struct Args {
    /// The base model (not with --logits) and the models to compare with it
    #[arg(value_name = "MODEL", required = true)]
    pub(super) models: Vec<PathBuf>,
    /// An evaluation text, UTF-8; repeatable, with one line per text
    #[arg(short, long, value_name = "TEXT", required_unless_present_any = ["logits", "chat"])]
    pub(super) file: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) scored: Scored,
    /// Read the base's log-probabilities and the tokens from a file written by --save-logits or
    /// llama-perplexity --kl-divergence-base
    #[arg(long, value_name = "FILE", aliases = ["kl-divergence-base"], conflicts_with_all = ["save_logits", "chat"])]
    pub(super) logits: Option<PathBuf>,
    /// Also write the base's log-probabilities, for --logits or llama-perplexity --kl-divergence
    #[arg(long, value_name = "FILE", aliases = ["save-all-logits"], conflicts_with = "chat")]
    pub(super) save_logits: Option<PathBuf>,
    /// Also draw the distribution of the divergence, and its mean by position in the context
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let logits = args.logits.as_deref().map(LogitsFile::open).transpose()?;
    if logits.is_none() && args.models.len() < 2 {
        wrong_usage("kld", "name at least one model to compare with the base");
    }
    let sources = sources(&args.models)?;
    let inputs = runnables(&sources)?;
    let mut opened = open_all(&args.models, &inputs, &args.common.running.options())?;
    if !opened[0].engine.has_output() {
        return embeddings::run(args, &opened);
    }
    for (path, other) in args.models.iter().zip(&opened) {
        other.ensure_output(path, "it cannot be compared with one that predicts tokens")?;
    }
    let template = args.scored.template(&opened[0]);
    let template = template.with_context(|| args.models[0].display().to_string())?;
    let request = Request {
        texts: &args.file,
        chats: args.scored.chats(template.as_ref()),
        n_ctx: args.common.ctx_size,
        chunks: args.common.chunks,
        force_context: args.scored.force_context,
    };
    let corpus = read(args, &opened, logits.as_ref(), &request)?;
    let compared = compare(args, &inputs, &mut opened, &corpus, logits.as_ref())?;
    report(args, &opened[0], &corpus, &compared)
}

/// The sequences; fails unless all models tokenize them alike.
fn read(
    args: &Args,
    opened: &[Opened<'_>],
    logits: Option<&LogitsFile<'_>>,
    request: &Request<'_>,
) -> anyhow::Result<Corpus> {
    let first = &opened[0];
    let corpus = match logits {
        Some(file) => Corpus::of_logits(first, file, request)?,
        None => Corpus::read(first, request)?,
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
            .check(first, other, request)
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
    let sequences = &corpus.sequences;
    let quants = &args.models[usize::from(logits.is_none())..];
    let mut save = match &args.save_logits {
        Some(file) => {
            let windows = corpus.windows()?;
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
        let model = Measured::new(name, &opened.engine, sequences, &bar)?;
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
    let rows = measure::compare(&base, &measured, sequences, save.as_mut(), &bar)?;
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
    rows: &'a [Comparison],
    all: Statistics,
    texts: Vec<(&'a Path, Statistics)>,
    /// Means by position in the context.
    positions: Vec<Bin>,
}

/// Ranges of positions.
const BINS: usize = 8;
/// Rows with the largest divergences in `--json`.
const LARGEST: usize = 5;
/// Tokens shown before a row.
const CONTEXT: usize = 12;
/// Points of a distribution in `--svg` and `--json`.
const POINTS: usize = 100;

fn report(
    args: &Args,
    first: &Opened<'_>,
    corpus: &Corpus,
    compared: &[Compared<'_>],
) -> anyhow::Result<ExitCode> {
    let of = |rows: &[Comparison]| Statistics::of(&[rows]).context("there is nothing to score");
    let mut models = Vec::new();
    for Compared { path, rows } in compared {
        // A text may have conversations that are all cut to nothing.
        let texts = corpus
            .parts
            .iter()
            .filter_map(|part| Some((&*part.path, Statistics::of(&[corpus.rows(part, rows)])?)));
        models.push(Summary {
            path,
            rows,
            all: of(rows)?,
            texts: texts.collect(),
            positions: positions::by_position(rows, &corpus.sequences, BINS),
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
    if let Some(svg) = &args.svg {
        draw(args, svg, &models)?;
    }
    let pairs = pairs(corpus, compared);
    let places = Places { first, corpus };
    match args.common.running.json {
        true => {
            let json = as_json(args, &places, &models, &pairs);
            say!("{json}")?;
        }
        false => print(&places, &models, &pairs)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(
    args: &Args,
    places: &Places<'_>,
    models: &[Summary<'_>],
    pairs: &[Pair<'_>],
) -> serde_json::Value {
    let corpus = places.corpus;
    let one = |model: &Summary<'_>| {
        let texts = model.texts.iter();
        let texts: Vec<_> = texts
            .map(|(text, s)| json!({ "text": text, "statistics": s }))
            .collect();
        let largest = positions::largest(model.rows, LARGEST);
        let largest = largest
            .iter()
            .map(|row| places.json(*row, &model.rows[*row]));
        json!({
            "model": model.path, "statistics": model.all, "texts": texts, "positions": model.positions,
            "largest": largest.collect::<Vec<_>>(),
            "distribution": positions::exceedances(model.rows, POINTS),
        })
    };
    let texts = corpus.parts.iter().map(|part| {
        let counted = match part.lines {
            None => "chunks",
            Some(_) => "sequences",
        };
        let rows = corpus.sequences.rows_of(part.sequences.clone()).len();
        json!({ "text": part.path, counted: part.sequences.len(), "rows": rows })
    });
    let base = args.models.first().filter(|_| args.logits.is_none());
    json!({
        "base": base, "logits": args.logits, "ctx_size": corpus.n_ctx, "chunks": corpus.sequences.all().len(),
        "longest": corpus.sequences.longest(),
        "texts": texts.collect::<Vec<_>>(), "models": models.iter().map(one).collect::<Vec<_>>(),
        "pairs": pairs.iter().map(Pair::json).collect::<Vec<_>>(),
    })
}

fn print(places: &Places<'_>, models: &[Summary<'_>], pairs: &[Pair<'_>]) -> anyhow::Result<()> {
    for Summary {
        path,
        rows,
        all,
        texts,
        ..
    } in models
    {
        say!("{}\n{all}", path.display())?;
        if let [row] = positions::largest(rows, 1)[..] {
            say!("Maximum at {}", places.text(row))?;
        }
        say!("{}\n", top_changes(all.same_top.value))?;
        if texts.len() > 1 {
            let names = texts
                .iter()
                .map(|(text, s)| (text.display().to_string(), s));
            table("text", names.chain([("all".to_owned(), all)]))?;
            say!("")?;
        }
    }
    position_table(models)?;
    if models.len() > 1 {
        say!("")?;
        table(
            "model",
            models
                .iter()
                .map(|model| (model.path.display().to_string(), &model.all)),
        )?;
        say!("\npaired differences of the mean KLD, with the standard error of chunks:")?;
        pairs.iter().try_for_each(|pair| say!("{pair}"))?;
    }
    Ok(())
}

/// Prints the mean KLD by position, one column per model.
fn position_table(models: &[Summary<'_>]) -> anyhow::Result<()> {
    let Some(first) = models.first() else {
        return Ok(());
    };
    let names = models.iter().map(|model| {
        let name = model.path.file_name().unwrap_or(model.path.as_os_str());
        let name = shorten(&name.to_string_lossy(), 24);
        format!("  {name:>24}")
    });
    say!(
        "mean KLD by position in the context\n{:>15}  {:>8}{}",
        "tokens before",
        "rows",
        names.collect::<String>()
    )?;
    for (i, bin) in first.positions.iter().enumerate() {
        let klds = models.iter().map(|model| short(model.positions[i].kld));
        let klds: String = klds.map(|kld| format!("  {kld:>24}")).collect();
        let range = format!("{} to {}", bin.first, bin.end - 1);
        say!("{range:>15}  {:>8}{klds}", bin.rows)?;
    }
    Ok(())
}

/// Writes the picture.
fn draw(args: &Args, file: &Path, models: &[Summary<'_>]) -> anyhow::Result<()> {
    let series = |model: &Summary<'_>| {
        let distribution = positions::exceedances(model.rows, POINTS).into_iter();
        let positions = model.positions.iter().map(|bin| kld_chart::Bin {
            position: f64::from(bin.first + bin.end - 1) / 2.0,
            kld: bin.kld.value,
            uncertainty: bin.kld.uncertainty,
        });
        let name = model.path.file_name().unwrap_or(model.path.as_os_str());
        Series {
            name: name.to_string_lossy().into_owned(),
            mean: model.all.kld.value,
            distribution: distribution
                .map(|point| kld_chart::Exceedance {
                    share: point.share,
                    kld: point.kld,
                })
                .collect(),
            positions: positions.collect(),
        }
    };
    let series: Vec<Series> = models.iter().map(series).collect();
    let base = args.logits.as_ref().unwrap_or(&args.models[0]);
    let base = base.file_name().unwrap_or(base.as_os_str());
    let title = format!("KL divergence from {}", base.to_string_lossy());
    let text = kld_chart(&title, &series, Place::Alone);
    let texts = args
        .file
        .iter()
        .chain(&args.scored.chat)
        .chain(&args.logits);
    let inputs: Vec<&Path> = args
        .models
        .iter()
        .chain(texts)
        .map(|path| &**path)
        .collect();
    let mut output = Output::create(file, text.len() as u64, &inputs)?;
    output.write(text.as_bytes())?;
    Ok(output.finish()?)
}

/// Places of rows in the texts.
struct Places<'p> {
    first: &'p Opened<'p>,
    corpus: &'p Corpus,
}

/// The place of a row.
struct Spot<'p> {
    text: Option<&'p Path>,
    /// The chunk of its text, counted from 0, or the line of the conversation.
    unit: &'static str,
    number: usize,
    /// Tokens before the last visible one.
    position: u32,
    label: u32,
    before: String,
    next: String,
}

impl Places<'_> {
    fn spot(&self, row: usize) -> Spot<'_> {
        let place = self.corpus.sequences.place(row);
        let part = self.corpus.part_of(place.sequence);
        let start = part.map_or(0, |part| part.sequences.start);
        let lines = part.and_then(|part| part.lines.as_ref());
        let (unit, number) = match lines {
            Some(lines) => ("line", lines[place.sequence - start]),
            None => ("chunk", place.sequence - start),
        };
        let tokens = self.corpus.sequences.all()[place.sequence].tokens();
        let visible = &tokens[..=place.target.position as usize];
        let near = &visible[visible.len().saturating_sub(CONTEXT)..];
        let text = |tokens: &[u32]| {
            let bytes = self.first.tokenizer.decode(tokens);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Spot {
            text: part.map(|part| &*part.path),
            unit,
            number,
            position: place.target.position,
            label: place.target.label,
            before: text(near),
            next: text(&[place.target.label]),
        }
    }

    fn text(&self, row: usize) -> String {
        let spot = self.spot(row);
        let text = spot.text.unwrap_or(Path::new("the text")).display();
        format!(
            "{} {} of {text}, position {}: {:?} before token {} {:?}",
            spot.unit, spot.number, spot.position, spot.before, spot.label, spot.next
        )
    }

    fn json(&self, row: usize, comparison: &Comparison) -> serde_json::Value {
        let spot = self.spot(row);
        json!({
            "text": spot.text, spot.unit: spot.number, "position": spot.position, "token": spot.label,
            "token_text": spot.next, "before": spot.before, "kld": comparison.kld, "nll": comparison.nll,
            "nll_base": comparison.nll_base, "same_top": comparison.same_top,
        })
    }
}

/// Two models on the same rows.
pub(super) struct Pair<'a> {
    pub(super) models: [&'a Path; 2],
    pub(super) paired: Paired,
    pub(super) rows: usize,
    /// What rows are: tokens of a text, or texts.
    pub(super) counted: &'static str,
}

impl Pair<'_> {
    pub(super) fn json(&self) -> serde_json::Value {
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
            counted,
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
                write!(f, ", unclear with {rows} {counted}")?;
                match paired.rows_needed {
                    Some(needed) => write!(f, "; about {needed} would decide"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Every pair of models up to [`ALL_PAIRS`] of them, otherwise the first with each of the others.
fn pairs<'a>(corpus: &Corpus, compared: &[Compared<'a>]) -> Vec<Pair<'a>> {
    let sequences = corpus.sequences.all().iter();
    let chunks: Vec<usize> = sequences.map(|sequence| sequence.targets().len()).collect();
    let pair = |[first, second]: [usize; 2]| {
        let [first, second] = [&compared[first], &compared[second]];
        Some(Pair {
            models: [first.path, second.path],
            paired: Paired::of(&first.rows, &second.rows, &chunks)?,
            rows: first.rows.len(),
            counted: "rows",
        })
    };
    let pairs = listed_pairs(compared.len()).into_iter();
    pairs.filter_map(pair).collect()
}

/// The pairs of some models that are listed: all of a few models, otherwise the first with each of the others.
pub(super) fn listed_pairs(models: usize) -> Vec<[usize; 2]> {
    let firsts = match models {
        0 => 0,
        n if n <= ALL_PAIRS => n - 1,
        _ => 1,
    };
    let of_first = |first: usize| (first + 1..models).map(move |second| [first, second]);
    (0..firsts).flat_map(of_first).collect()
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
