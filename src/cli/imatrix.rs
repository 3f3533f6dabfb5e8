//! `quantier imatrix`.

use super::measure::{Common, input, open, read_text, source};
use super::terminal::Bar;
use super::text::{say, size};
use anyhow::Context;
use quantier::format::imatrix::Format;
use quantier::imatrix::{collect::collect, coverage};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compute the importance matrix of a model from a text, as llama-imatrix does
#[derive(clap::Args)]
pub struct Args {
    /// The model
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// The text, UTF-8
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,
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

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    /// Experts that meet less than this part of the mean are told.
    const HARDLY: f64 = 0.05;
    let common = &args.common;
    let text = read_text(&args.file)?;
    let source = source(&args.model)?;
    let input = input(&source)?;
    let opened = open(&args.model, &input, &common.options())?;
    let tokens = opened.tokenizer.encode(&text, true, args.parse_special);
    let first = (args.chunk * common.ctx_size).min(tokens.len());
    let windows = opened.windows(&tokens[first..], common, &args.file)?;
    let chunks: Vec<_> = (0..windows.chunks()).map(|chunk| windows.input(chunk)).collect();
    let bar = Bar::new();
    let collected = collect(&opened.engine, &chunks, args.process_output, &bar);
    let (mut sums, _) = collected.with_context(|| args.model.display().to_string())?;
    drop(bar);
    sums.datasets = vec![args.file.display().to_string()];
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
