//! `quantier shard` and `quantier merge-shards`.

use super::make::with_planned_job;
use super::messages::note;
use super::terminal::Bar;
use super::text::say;
use anyhow::{Context, bail};
use quantier::make::{self, Done, ShardPlan};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Exit code of a shard that has run out of time: the same command continues it (`EX_TEMPFAIL`).
const OUT_OF_TIME: u8 = 75;

/// Do one shard of a plan
///
/// A shard is a part of a stage's work, as `quantier make --plan-only` has cut it. It reads what it needs
/// of the model, writes its parts into DIR/work/parts, and may be killed, repeated, or done twice at once;
/// parts that are done already are left alone. Any scheduler can start shards: see `quantier cluster`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --bpw 4.25 -o out --plan-only --shards 4
  quantier shard out imatrix 0   # and 1, 2, 3: in any order, on any machine
  quantier shard out imatrix 1
  quantier shard out imatrix 2
  quantier shard out imatrix 3
  quantier merge-shards out imatrix

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 out of time (the same command continues).")]
pub struct Args {
    /// Output directory of `make`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The stage: imatrix, gradients, sensitivities, files or proof
    #[arg(value_name = "STAGE")]
    stage: String,
    /// Number of the shard, from 0
    #[arg(value_name = "N")]
    shard: String,
    /// End after this time and keep what is done, with exit code 75
    #[arg(long, value_name = "MINUTES")]
    max_time: Option<f64>,
    /// Number of threads, in place of the plan's
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

/// Merge the parts of all shards of a stage into its result
///
/// Parts are added in the order of the units of work: the result is that of one process. `quantier make`
/// with the plan's arguments then continues from it. The merged parts are removed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --bpw 4.25 -o out --plan-only --shards 1
  quantier shard out imatrix 0
  quantier merge-shards out imatrix")]
pub struct MergeArgs {
    /// Output directory of `make`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The stage: imatrix, gradients, sensitivities, files or proof
    #[arg(value_name = "STAGE")]
    stage: String,
    /// Number of threads, in place of the plan's
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (directory, plan) = plan_of(&args.directory)?;
    let time = args
        .max_time
        .map(|minutes| Duration::try_from_secs_f64(minutes * 60.0).unwrap_or(Duration::ZERO));
    let bar = Bar::new();
    let done = with_planned_job(&plan, &directory, args.threads, |job| {
        let shard = [&*args.stage, &*args.shard];
        Ok(job.shard(&plan, shard, time, &bar, &|text| note!("{text}")))
    })?;
    drop(bar);
    let name = format!("{} {}", args.stage, args.shard);
    match done {
        Ok(Done::Already) => say!("{name}: done already")?,
        Ok(Done::Units(count)) => say!("{name}: {} done", units(count))?,
        Ok(Done::OutOfTime { done, left }) => {
            note!(
                "{name}: out of time with {} done and {left} left; the same command continues",
                units(done)
            );
            return Ok(ExitCode::from(OUT_OF_TIME));
        }
        Err(error) if error.is_stop() => {
            note!("{name}: stopped; the same command continues");
            return Ok(ExitCode::from(OUT_OF_TIME));
        }
        Err(error) => bail!(error),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn merge(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    let (directory, plan) = plan_of(&args.directory)?;
    let bar = Bar::new();
    let done = with_planned_job(&plan, &directory, args.threads, |job| {
        Ok(job.merge_shards(&plan, &args.stage, &bar, &|text| note!("{text}"))?)
    })?;
    drop(bar);
    match done {
        Done::Units(count) => say!("{}: {} merged", args.stage, units(count))?,
        _ => say!("{}: done already", args.stage)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn units(count: usize) -> String {
    match count {
        1 => "1 unit".into(),
        count => format!("{count} units"),
    }
}

/// The output directory with its links resolved, and its plan.
pub fn plan_of(directory: &Path) -> anyhow::Result<(PathBuf, ShardPlan)> {
    let shown = directory.display();
    let directory = directory
        .canonicalize()
        .with_context(|| format!("cannot find the output directory {shown}"))?;
    let plan = ShardPlan::read(&directory).map_err(|error: make::Error| anyhow::anyhow!(error))?;
    Ok((directory, plan))
}
