//! `quantier verify`.

use super::hub;
use super::terminal::Bar;
use super::text::{count, say, size};
use quantier::format::gguf::{Files, Model};
use quantier::verify::verify;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check a GGUF: its structure, and every block of every tensor
///
/// Structure: magic, version, counts, types, names, offsets, overlaps, lengths. Blocks: scales that
/// are no numbers or infinite, as llama.cpp judges them. Exit code 0 if all is well, 1 at the first
/// fault.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier verify model-Q4_K_M.gguf
  quantier verify model-00001-of-00003.gguf --all")]
pub struct Args {
    /// A GGUF file, any shard of a split one, or hf://ORG/NAME/FILE.gguf
    model: PathBuf,
    /// Report every tensor with a fault, not only the first
    #[arg(long)]
    all: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = Files::open(&hub::local(&args.model)?)?;
    let model = Model::parse(&files)?;
    let bar = Bar::new();
    let Some(bad) = verify(&model, args.all, &bar)? else {
        anyhow::bail!("stopped before the end")
    };
    drop(bar);
    let bytes: u64 = model.tensors.iter().map(|t| t.info.bytes()).sum();
    if args.json {
        let ok = bad.is_empty();
        say!(
            "{}",
            serde_json::json!({ "ok": ok, "tensors": model.tensors.len(), "bytes": bytes, "faults": bad })
        )?;
    } else {
        for b in &bad {
            say!(
                "{}: tensor '{}' ({}), row {}, block {}: {}",
                b.path.display(),
                b.tensor,
                b.ggml_type,
                b.row,
                b.block,
                b.fault
            )?;
        }
        if bad.is_empty() {
            say!(
                "{}: {} tensors, {}: no fault",
                args.model.display(),
                count(model.tensors.len() as u64),
                size(bytes)
            )?;
        }
    }
    Ok(if bad.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
