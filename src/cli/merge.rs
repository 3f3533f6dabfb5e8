//! `quantier merge`.

use super::split::{show, write};
use quantier::edit;
use quantier_gguf::gguf::{Files, Model};
use std::path::PathBuf;
use std::process::ExitCode;

/// Join the shards of a split GGUF, byte for byte as llama-gguf-split --merge does
///
/// The other shards are found by their names in the same directory. As in the reference, the merged
/// file keeps the keys split.no and split.tensors.count, and a split.count of 0; programs ignore
/// them.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier merge model-00001-of-00003.gguf merged.gguf
  quantier merge model-00001-of-00003.gguf original.gguf --no-split-keys   # as before the split")]
pub struct Args {
    /// Any shard
    first_shard: PathBuf,
    /// The file to write
    out: PathBuf,
    /// Omit the split.* keys: the result is, byte for byte, the file before the split
    #[arg(long)]
    no_split_keys: bool,
    /// Print the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
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
