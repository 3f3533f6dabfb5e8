//! `quantier split`.

use super::messages::note;
use super::terminal::Bar;
use super::text::{count, say, size};
use quantier::edit::{self, Limit, Plan, PlannedFile};
use quantier_gguf::gguf::{Files, Model};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Split a GGUF into shards, byte for byte as llama-gguf-split does
///
/// The shards are named OUT_PREFIX-00001-of-0000N.gguf. llama.cpp and all commands here open the
/// model by its first shard. A split model is split again. The shards are renamed into place
/// together once the last is complete; the input is not modified.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier split model-BF16.gguf model-BF16 --split-max-size 48G   # below the Hub's limit
  quantier split model.gguf model --split-max-tensors 64
  quantier split model.gguf model --split-max-size 2G --dry-run    # the plan only")]
pub struct Args {
    /// A GGUF file (any shard of a split one)
    model: PathBuf,
    /// Prefix of the shards' paths
    out_prefix: PathBuf,
    /// Maximum number of tensors per shard
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    split_max_tensors: u64,
    /// Maximum bytes of tensors per shard; M and G are powers of 1000
    #[arg(long, value_name = "N(M|G)", conflicts_with = "split_max_tensors", value_parser = max_size)]
    split_max_size: Option<u64>,
    /// Write only metadata into the first shard, which makes it small and quick to read
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Print the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite existing shards (llama-gguf-split always does)
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn max_size(text: &str) -> Result<u64, String> {
    match super::convert::split_size(text)? {
        0 => Err("the size must be greater than 0".into()),
        bytes => Ok(bytes),
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = Files::open(&args.model)?;
    let model = Model::parse(&files)?;
    let limit = args
        .split_max_size
        .map_or(Limit::Tensors(args.split_max_tensors), Limit::Bytes);
    let plan = edit::split(&model, &args.out_prefix, limit, args.no_tensor_first_split)?;
    write(&plan, args.dry_run, args.force)?;
    show(&plan, args.dry_run, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the notes of a plan and, unless it is a dry run, writes its files.
pub(super) fn write(plan: &Plan<'_>, dry_run: bool, force: bool) -> anyhow::Result<()> {
    plan.notes.iter().for_each(|text| note!("{text}"));
    if !dry_run {
        let bar = Bar::new();
        plan.run(force, &bar)?;
    }
    Ok(())
}

/// Prints one line per file.
pub(super) fn show(plan: &Plan<'_>, dry_run: bool, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let one = |f: &PlannedFile<'_>| json!({ "path": f.path, "tensors": f.tensors.len(), "bytes": plan.file_bytes(f) });
        let files: Vec<_> = plan.files.iter().map(one).collect();
        return say!(
            "{}",
            json!({ "written": !dry_run, "files": files, "notes": plan.notes })
        );
    }
    for file in &plan.files {
        let (tensors, bytes) = (
            count(file.tensors.len() as u64),
            size(plan.file_bytes(file)),
        );
        say!(
            "{}: {tensors} tensors, {bytes}{}",
            file.path.display(),
            if dry_run { " (dry run)" } else { "" }
        )?;
    }
    Ok(())
}
