//! `quantier perplexity`.

use super::measure::{Common, input, open, source};
use super::terminal::Bar;
use super::text::say;
use anyhow::{Context, bail};
use quantier::evaluate::measure;
use quantier::evaluate::statistics::Perplexity;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure the perplexity of a model on a text, as llama-perplexity does
///
/// MODEL is a GGUF, the first shard of a split one, or a Hugging Face checkpoint. The second half of every chunk is
/// scored. Quantized weights are dequantized and multiplied in f32, so that the figure is that of the weights alone.
#[derive(clap::Args)]
pub struct Args {
    /// The model
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
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
