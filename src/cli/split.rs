//! `quantier split`.

use super::messages::note;
use super::terminal::Bar;
use super::text::{count, say, size};
use quantier::edit::{self, Limit, Plan, PlannedFile};
use quantier::format::gguf::{Files, Model};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Cut a GGUF into shards, byte for byte as llama-gguf-split does
///
/// The shards are called OUT_PREFIX-00001-of-0000N.gguf. llama.cpp and every command here read the
/// model through the first of them. A model that is split already is split anew. All shards get
/// their names once the last is complete, or none does; the model stays what it is.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier split model-BF16.gguf model-BF16 --split-max-size 48G   # files that the Hub takes
  quantier split model.gguf model --split-max-tensors 64
  quantier split model.gguf model --split-max-size 2G --dry-run    # what would come out")]
pub struct Args {
    /// A GGUF file, or any shard of a split one
    model: PathBuf,
    /// What the shards' names begin with, directories included
    out_prefix: PathBuf,
    /// Begin another shard after so many tensors
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    split_max_tensors: u64,
    /// Begin another shard before one would have more bytes of tensors than this; M and G are
    /// powers of 1000
    #[arg(long, value_name = "N(M|G)", conflicts_with = "split_max_tensors", value_parser = max_size)]
    split_max_size: Option<u64>,
    /// Put nothing but metadata into the first shard, which is small then and quickly read
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Show the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace shards of these names (llama-gguf-split does so unasked)
    #[arg(long)]
    force: bool,
    /// Print the plan, or what was written, as JSON
    #[arg(long)]
    json: bool,
}

fn max_size(text: &str) -> Result<u64, String> {
    match super::convert::split_size(text)? {
        0 => Err("a shard must hold something".into()),
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

/// Writes the files of a plan, unless it is only to be shown.
pub(super) fn write(plan: &Plan<'_>, dry_run: bool, force: bool) -> anyhow::Result<()> {
    plan.notes.iter().for_each(|text| note!("{text}"));
    if !dry_run {
        let bar = Bar::new();
        plan.run(force, &bar)?;
    }
    Ok(())
}

/// One line for each file.
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
