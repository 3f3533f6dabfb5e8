//! `quantier kld`.

use super::measure::{Common, input, open, source};
use super::terminal::Bar;
use super::text::say;
use anyhow::{Context, ensure};
use quantier::evaluate::measure;
use quantier::evaluate::statistics::Statistics;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure how far quantized models are from their base: KL divergence in nats, and what comes with it
///
/// One pass of the base serves all the others, and no logits file lies in between: both sides have full f32 logits.
#[derive(clap::Args)]
pub struct Args {
    /// The base model
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The models to compare with it
    #[arg(value_name = "QUANT", required = true)]
    quants: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
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
