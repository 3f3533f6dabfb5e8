//! `quantier verify`.

use super::hub;
use super::terminal::Bar;
use super::text::{count, say, size};
use quantier::verify::verify;
use quantier_gguf::gguf::{Files, Model};
use std::path::PathBuf;
use std::process::ExitCode;

/// Check a GGUF: its structure and every block of every tensor
///
/// Structure: magic, version, counts, types, names, offsets, overlaps, lengths. Blocks: NaN and
/// infinite scales, by llama.cpp's rules. Exit code 0 if the file is valid, 1 if it has a fault.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier verify model-Q4_K_M.gguf
  quantier verify model-00001-of-00003.gguf --all")]
pub struct Args {
    /// A GGUF file (any shard of a split one), or hf://ORG/NAME/FILE.gguf
    model: PathBuf,
    /// Report all faulty tensors, not only the first
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
    let Some(faults) = verify(&model, args.all, &bar)? else {
        anyhow::bail!("interrupted")
    };
    drop(bar);
    let bytes: u64 = model.tensors.iter().map(|t| t.info.bytes()).sum();
    if args.json {
        let ok = faults.is_empty();
        say!(
            "{}",
            serde_json::json!({ "ok": ok, "tensors": model.tensors.len(), "bytes": bytes, "faults": faults })
        )?;
    } else {
        for b in &faults {
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
        if faults.is_empty() {
            say!(
                "{}: {} tensors, {}: no fault",
                args.model.display(),
                count(model.tensors.len() as u64),
                size(bytes)
            )?;
        }
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
