//! `quantier perplexity`.

use super::corpus::{Corpus, Request};
use super::measure::{Common, Scored, open, runnable, source};
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
    #[arg(short, long, value_name = "TEXT", required_unless_present = "chat")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    scored: Scored,
    /// Also write the log-probabilities of all scored rows, as llama-perplexity
    /// --kl-divergence-base does
    #[arg(long, value_name = "FILE", aliases = ["save-all-logits", "kl-divergence-base"], conflicts_with = "chat")]
    save_logits: Option<PathBuf>,
    /// llama-perplexity's option for the statistics of quantier kld
    #[arg(long, hide = true)]
    kl_divergence: bool,
    /// llama-perplexity's options for tasks
    #[arg(long, hide = true, aliases = ["winogrande", "multiple-choice"])]
    hellaswag: bool,
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
    if args.hellaswag {
        bail!(
            "tasks are a command here: quantier tasks BASE MODEL --hellaswag FILE, --winogrande FILE or --multiple-choice FILE"
        );
    }
    let Some(path) = args.positional.as_ref().or(args.model.as_ref()) else {
        bail!("name a model")
    };
    let source = source(path)?;
    let input = runnable(&source)?;
    let opened = open(path, &input, &common.running.options())?;
    opened.ensure_output(path, "it has no perplexity")?;
    let template = args.scored.template(&opened);
    let template = template.with_context(|| path.display().to_string())?;
    let request = Request {
        texts: &args.file,
        chats: args.scored.chats(template.as_ref()),
        n_ctx: common.ctx_size,
        chunks: common.chunks,
        force_context: args.scored.force_context,
    };
    let corpus = Corpus::read(&opened, &request)?;
    let sequences = &corpus.sequences;
    let mut save = match &args.save_logits {
        Some(file) => {
            let windows = corpus.windows()?;
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
    let measured = Measured::new(path.display().to_string(), &opened.engine, sequences, &bar)?;
    let nll = measure::nll(&measured, sequences, save.as_mut(), &bar)?;
    drop(bar);
    save.map_or(Ok(()), Writer::finish)?;
    let of = |rows: &[f64]| Perplexity::of(&[rows]).context("there is nothing to score");
    let texts = corpus.parts.iter().map(|part| {
        let found = of(corpus.rows(part, &nll))?;
        Ok((&part.path, part.sequences.len(), found))
    });
    let texts = texts.collect::<anyhow::Result<Vec<_>>>()?;
    let all = of(&nll)?;
    if common.running.json {
        let texts: Vec<_> = texts
            .iter()
            .map(|(t, n, p)| json!({ "text": t, "chunks": n, "perplexity": p }))
            .collect();
        let sizes = (sequences.all().len(), corpus.n_ctx);
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
    let chunks = sequences.all().len();
    match request.chats {
        None => say!(
            "Final estimate: PPL = {}, {chunks} chunks of {} tokens",
            all.perplexity,
            corpus.n_ctx
        )?,
        Some(_) => say!(
            "Final estimate: PPL = {}, {chunks} sequences of up to {} tokens",
            all.perplexity,
            sequences.longest()
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
