//! `quantier merge`.

use super::split::{show, write};
use quantier::edit;
use quantier::format::gguf::{Files, Model};
use std::path::PathBuf;
use std::process::ExitCode;

/// Join the shards of a split GGUF, byte for byte as llama-gguf-split --merge does
///
/// The other shards are found by their names, beside the one that is named. Like the reference, the
/// file keeps a note of having been split (split.no, split.tensors.count, and a split.count of 0),
/// which no program minds.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier merge model-00001-of-00003.gguf merged.gguf
  quantier merge model-00001-of-00003.gguf original.gguf --no-split-keys   # the file that was split")]
pub struct Args {
    /// The first shard; any other will do
    first_shard: PathBuf,
    /// The file to write
    out: PathBuf,
    /// Leave the split.* keys out: what comes out is, byte for byte, the file that was split
    #[arg(long)]
    no_split_keys: bool,
    /// Show the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
    /// Print the plan, or what was written, as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = Files::open(&args.first_shard)?;
    let model = Model::parse(&files)?;
    let plan = edit::merge(&model, &args.out, !args.no_split_keys)?;
    write(&plan, args.dry_run, args.force)?;
    show(&plan, args.dry_run, args.json)?;
    Ok(ExitCode::SUCCESS)
}
