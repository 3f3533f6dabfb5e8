//! `quantier perplexity`.

use super::corpus::Corpus;
use super::measure::{Common, open, runnable, source};
use super::terminal::Bar;
use super::text::say;
use anyhow::{Context, bail};
use quantier_engine::evaluate::measure::{self, Measured};
use quantier_engine::evaluate::statistics::Perplexity;
use quantier_gguf::logits::Writer;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure the perplexity of a model on texts, as llama-perplexity does
///
/// MODEL is a GGUF, the first shard of a split one, a Hugging Face checkpoint, or hf://ORG/NAME.
/// The second half of every chunk is scored. Quantized weights are dequantized and multiplied in
/// f32: the result depends on the weights alone.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier perplexity model-Q4_K_M.gguf -f wiki.txt
  quantier perplexity ./Qwen3-4B -f wiki.txt -f code.txt --chunks 20")]
pub struct Args {
    /// The model
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    positional: Option<PathBuf>,
    /// The model, in llama-perplexity's spelling
    #[arg(short, long, value_name = "MODEL", conflicts_with = "positional")]
    model: Option<PathBuf>,
    /// A text, UTF-8; repeatable, with a result per text and one for all
    #[arg(short, long, value_name = "TEXT", required = true)]
    file: Vec<PathBuf>,
    /// Also write the log-probabilities of all scored rows, as llama-perplexity
    /// --kl-divergence-base does
    #[arg(long, value_name = "FILE", aliases = ["save-all-logits", "kl-divergence-base"])]
    save_logits: Option<PathBuf>,
    /// llama-perplexity's option for the statistics of quantier kld
    #[arg(long, hide = true)]
    kl_divergence: bool,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    if args.kl_divergence {
        bail!(
            "--kl-divergence is a command here: quantier kld BASE MODEL -f TEXT, or quantier kld MODEL --logits FILE \
             with the log-probabilities that --save-logits writes"
        );
    }
    let Some(path) = args.positional.as_ref().or(args.model.as_ref()) else {
        bail!("name a model")
    };
    let source = source(path)?;
    let input = runnable(&source)?;
    let opened = open(path, &input, &common.options())?;
    let corpus = Corpus::of_texts(&opened, &args.file, common.ctx_size, common.chunks)?;
    let windows = corpus.windows()?;
    let mut save = match &args.save_logits {
        Some(file) => {
            let inputs: Vec<&Path> = input
                .paths()
                .into_iter()
                .chain(args.file.iter().map(|f| &**f))
                .collect();
            Some(Writer::create(
                file,
                measure::shape(&opened.engine, &windows),
                windows.tokens(),
                &inputs,
            )?)
        }
        None => None,
    };
    let bar = Bar::new();
    let measured = Measured::new(path.display().to_string(), &opened.engine, &windows, &bar)?;
    let nll = measure::nll(&measured, &windows, save.as_mut(), &bar)?;
    drop(bar);
    save.map_or(Ok(()), Writer::finish)?;
    let of = |rows: &[f64]| Perplexity::of(&[rows]).context("there is nothing to score");
    let texts = corpus
        .parts
        .iter()
        .map(|(text, part)| Ok((text, part.len(), of(corpus.rows(part, &nll))?)));
    let texts = texts.collect::<anyhow::Result<Vec<_>>>()?;
    let all = of(&nll)?;
    if common.json {
        let texts: Vec<_> = texts
            .iter()
            .map(|(t, n, p)| json!({ "text": t, "chunks": n, "perplexity": p }))
            .collect();
        let sizes = (windows.chunks(), windows.n_ctx());
        say!(
            "{}",
            json!({ "model": path, "ctx_size": sizes.1, "chunks": sizes.0, "perplexity": all, "texts": texts })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if texts.len() > 1 {
        let width = texts
            .iter()
            .map(|(text, ..)| text.display().to_string().chars().count())
            .max()
            .unwrap_or(0);
        for (text, chunks, found) in &texts {
            say!(
                "{:<width$}  PPL = {}, {chunks} chunks",
                text.display().to_string(),
                found.perplexity
            )?;
        }
    }
    say!(
        "Final estimate: PPL = {}, {} chunks of {} tokens",
        all.perplexity,
        windows.chunks(),
        windows.n_ctx()
    )?;
    Ok(ExitCode::SUCCESS)
}
