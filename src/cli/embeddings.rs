//! `quantier kld` for embedding models: cosine distances and rank agreement.

use super::kld::{Args, Pair, listed_pairs};
use super::measure::{Opened, read_text};
use super::messages::note;
use super::terminal::Bar;
use super::text::say;
use anyhow::{Context, bail, ensure};
use quantier::chat::encoder::{Encoder, Separate};
use quantier::text::{Kind, Text};
use quantier_engine::evaluate::embeddings::{
    Agreement, Distances, Embedding, distances, embeddings,
};
use quantier_engine::evaluate::paired::Paired;
use quantier_engine::evaluate::windows::{self, MIN_CHUNKS};
use quantier_report::numbers::{neighbour_changes, percent};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Texts with the largest distances in `--json`.
const LARGEST: usize = 5;

/// A file with the tokens of its texts.
struct Part<'p> {
    path: &'p Path,
    text: Text,
    tokens: Separate,
}

/// The content of a file.
fn text(path: &Path) -> anyhow::Result<Text> {
    Ok(Text {
        name: path.display().to_string(),
        content: read_text(path)?,
        kind: Kind::Plain,
    })
}

/// The tokens of a file's texts, at most `longest` of each.
fn tokens(opened: &Opened<'_>, text: &Text, longest: usize) -> anyhow::Result<Separate> {
    let encoder = Encoder {
        tokenizer: &opened.tokenizer,
        template: None,
    };
    let separate = encoder.separate(text, longest);
    separate.map_err(|what| anyhow::anyhow!("{}: {what}", text.name))
}

/// Says how many texts of a file were cut.
fn tell_cut(text: &Text, separate: &Separate, longest: usize) {
    if separate.cut > 0 {
        note!(
            "{}: {} of {} texts are longer than {longest} tokens, and were cut",
            text.name,
            separate.cut,
            separate.texts.len()
        );
    }
}

/// The texts of a file for an embedding model, of at most `longest` tokens each.
pub fn separate(opened: &Opened<'_>, path: &Path, longest: usize) -> anyhow::Result<Separate> {
    let text = text(path)?;
    let separate = tokens(opened, &text, longest)?;
    tell_cut(&text, &separate, longest);
    Ok(separate)
}

/// A model compared with the base.
struct Compared<'a> {
    path: &'a Path,
    distances: Vec<f64>,
    statistics: Distances,
    agreement: Option<Agreement>,
}

/// Compares the embeddings of models with those of the first.
pub fn run(args: &Args, opened: &[Opened<'_>]) -> anyhow::Result<ExitCode> {
    for (is_given, option) in [
        (args.logits.is_some(), "--logits"),
        (args.save_logits.is_some(), "--save-logits"),
        (!args.scored.chat.is_empty(), "--chat"),
        (args.svg.is_some(), "--svg"),
    ] {
        if is_given {
            bail!(
                "{option} is for models that predict tokens; the embeddings of an embedding model are compared on plain \
                 texts (-f)"
            );
        }
    }
    let first = &opened[0];
    let longest = |of: &Opened<'_>| of.engine.hyper.longest_text(args.common.ctx_size);
    let most = args.common.chunks.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    for path in &args.file {
        let text = text(path)?;
        let mut tokens = tokens(first, &text, longest(first))?;
        tell_cut(&text, &tokens, longest(first));
        tokens.texts.truncate(most);
        parts.push(Part { path, text, tokens });
    }
    for (path, other) in args.models.iter().zip(opened).skip(1) {
        ensure!(
            !other.engine.has_output(),
            "{}: it predicts tokens, and {} is an embedding model; compare models of one family",
            path.display(),
            args.models[0].display()
        );
        for part in &parts {
            let mut own = tokens(other, &part.text, longest(other))?;
            own.texts.truncate(most);
            ensure!(
                own == part.tokens,
                "{}: its vocabulary differs: it splits the text into other tokens; compare models of one family",
                path.display()
            );
        }
    }
    let texts: Vec<Vec<u32>> = parts
        .iter()
        .flat_map(|part| part.tokens.texts.clone())
        .collect();
    ensure!(texts.len() >= MIN_CHUNKS, windows::Error::Few(texts.len()));
    let bar = Bar::new();
    let embed = |model: usize| -> anyhow::Result<(String, Vec<Embedding>)> {
        let path = &args.models[model];
        bar.about(&path.file_name().unwrap_or_default().to_string_lossy());
        let name = path.display().to_string();
        let all = embeddings(&name, &opened[model].engine, &texts, &bar)?;
        Ok((name, all))
    };
    let (base_name, base) = embed(0)?;
    let mut compared = Vec::new();
    for (model, path) in args.models.iter().enumerate().skip(1) {
        let (name, own) = embed(model)?;
        let distances = distances(&base, &own, [&base_name, &name])?;
        compared.push(Compared {
            path,
            statistics: Distances::of(&distances).context("there is nothing to compare")?,
            agreement: Agreement::of(&base, &own),
            distances,
        });
    }
    drop(bar);
    let pairs = pairs(&compared);
    match args.common.running.json {
        true => say!("{}", as_json(args, &parts, &compared, &pairs))?,
        false => print(&compared, &pairs)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Paired differences of the models' distances, text by text.
fn pairs<'a>(compared: &[Compared<'a>]) -> Vec<Pair<'a>> {
    let pair = |[first, second]: [usize; 2]| {
        let [first, second] = [&compared[first], &compared[second]];
        let differences = first.distances.iter().zip(&second.distances);
        let differences: Vec<f64> = differences.map(|(a, b)| a - b).collect();
        let paired = Paired::of_sums(&differences, &vec![1; differences.len()])?;
        Some(Pair {
            models: [first.path, second.path],
            paired,
            rows: differences.len(),
            counted: "texts",
        })
    };
    listed_pairs(compared.len())
        .into_iter()
        .filter_map(pair)
        .collect()
}

fn as_json(
    args: &Args,
    parts: &[Part<'_>],
    compared: &[Compared<'_>],
    pairs: &[Pair<'_>],
) -> serde_json::Value {
    // The file and the number of a text in it.
    let place = |mut text: usize| {
        for part in parts {
            match text.checked_sub(part.tokens.texts.len()) {
                Some(left) => text = left,
                None => return json!({ "file": part.path, "text": text }),
            }
        }
        json!(null)
    };
    let one = |model: &Compared<'_>| {
        let mut order: Vec<usize> = (0..model.distances.len()).collect();
        order.sort_by(|a, b| model.distances[*b].total_cmp(&model.distances[*a]));
        let largest = order.iter().take(LARGEST).map(|text| {
            let mut place = place(*text);
            place["cosine_distance"] = model.distances[*text].into();
            place
        });
        json!({
            "model": model.path, "cosine_distance": model.statistics, "agreement": model.agreement,
            "largest": largest.collect::<Vec<_>>(),
        })
    };
    let texts = parts.iter().map(|part| {
        let tokens: usize = part.tokens.texts.iter().map(Vec::len).sum();
        json!({
            "text": part.path, "texts": part.tokens.texts.len(), "tokens": tokens, "shortened": part.tokens.cut,
        })
    });
    json!({
        "base": args.models[0], "measure": "cosine-distance", "ctx_size": args.common.ctx_size,
        "texts": texts.collect::<Vec<_>>(), "models": compared.iter().map(one).collect::<Vec<_>>(),
        "pairs": pairs.iter().map(Pair::json).collect::<Vec<_>>(),
    })
}

fn print(compared: &[Compared<'_>], pairs: &[Pair<'_>]) -> anyhow::Result<()> {
    for model in compared {
        let Distances {
            texts,
            mean,
            spread,
        } = &model.statistics;
        say!("{}", model.path.display())?;
        say!("====== Cosine distance of embeddings from the base, {texts} texts ======")?;
        let uncertainty = mean
            .uncertainty
            .map_or(String::new(), |u| format!(" ± {u:.8}"));
        say!("Mean    distance: {:>12.8}{uncertainty}", mean.value)?;
        say!("Maximum distance: {:>12.8}", spread.maximum)?;
        for (percent, value) in &spread.percentiles {
            match *percent == 50.0 {
                true => say!("Median  distance: {value:>12.8}")?,
                false => say!("{percent:>4.1}%   distance: {value:>12.8}")?,
            }
        }
        say!("Minimum distance: {:>12.8}", spread.minimum)?;
        if let Some(agreement) = &model.agreement {
            say!("====== Agreement on similar texts ======")?;
            if let Some(rank) = agreement.rank_correlation {
                say!("Rank correlation of the similarities of all pairs: {rank:.6}")?;
            }
            let (shared, count) = (agreement.shared_neighbours, agreement.neighbours);
            say!(
                "Shared among the {count} nearest neighbours:          {}",
                percent(shared)
            )?;
            say!("\n{}", neighbour_changes(shared))?;
        }
        say!("")?;
    }
    if !pairs.is_empty() {
        say!("paired differences of the mean cosine distance, with the standard error of texts:")?;
        pairs.iter().try_for_each(|pair| say!("{pair}"))?;
    }
    Ok(())
}
