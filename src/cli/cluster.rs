//! `quantier cluster`.

use super::make_plan::duration;
use super::messages::note;
use super::shard::plan_of;
use super::text::say;
use anyhow::{Context, ensure};
use quantier::cluster::slurm::{self, Slurm};
use quantier::cluster::status::{StageStatus, Status};
use quantier::cluster::{Script, Settings, snakemake};
use quantier_gguf::output::Output;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Run the shards of a plan by a scheduler that you have
///
/// Writes what Slurm or Snakemake need to run a plan of `quantier make --plan-only`, from its stages, their
/// dependencies, memory and time. Other schedulers need only `quantier shard` and `quantier merge-shards`:
/// see docs/many-machines.md.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --bpw 4.25 -o out --plan-only
  quantier cluster slurm out --cores 16
  quantier cluster status out")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Slurm(SlurmArgs),
    Snakemake(SnakemakeArgs),
    Status(StatusArgs),
}

/// Settings of all schedulers.
#[derive(clap::Args)]
struct Common {
    /// Output directory of `make`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The program, as the machines call it; by default this one, by its path
    #[arg(long, value_name = "PATH")]
    program: Option<String>,
    /// Processor cores of a shard
    #[arg(long, value_name = "N", default_value_t = 16)]
    cores: usize,
    /// Times that a killed shard is started again
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: usize,
    /// Time limit of a shard, in multiples of its estimated time
    #[arg(long, value_name = "X", default_value_t = 3.0)]
    time_factor: f64,
}

/// Write job arrays for Slurm, and submit them with --submit
///
/// DIR/work/slurm then has a script for each stage, its merge and the last step, and submit.sh, which
/// submits them with their dependencies.
#[derive(clap::Args)]
struct SlurmArgs {
    #[command(flatten)]
    common: Common,
    /// The account to charge
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// The partition
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// A file with further lines for every script: directives (#SBATCH), modules to load
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Submit the jobs
    #[arg(long)]
    submit: bool,
}

/// Write a Snakefile, whose executors reach Slurm, Kubernetes and cloud batch
#[derive(clap::Args)]
struct SnakemakeArgs {
    #[command(flatten)]
    common: Common,
}

/// Show which shards are done, and how much more machines would help
#[derive(clap::Args)]
struct StatusArgs {
    /// Output directory of `make`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Slurm(args) => run_slurm(args),
        What::Snakemake(args) => run_snakemake(args),
        What::Status(args) => status(args),
    }
    .map(|()| ExitCode::SUCCESS)
}

impl Common {
    fn settings(&self) -> anyhow::Result<Settings> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => {
                let path = std::env::current_exe().context("cannot find the program's path")?;
                path.display().to_string()
            }
        };
        Ok(Settings {
            program,
            cores: self.cores.max(1),
            retries: self.retries,
            time_factor: self.time_factor.max(1.0),
        })
    }
}

fn run_slurm(args: &SlurmArgs) -> anyhow::Result<()> {
    let (directory, plan) = plan_of(&args.common.directory)?;
    let folder = directory.join("work").join("slurm");
    let template = args.template.as_ref().map(|path| {
        let text = std::fs::read_to_string(path);
        text.with_context(|| format!("cannot read the template {}", path.display()))
    });
    let slurm = Slurm {
        account: args.account.clone(),
        partition: args.partition.clone(),
        template: template.transpose()?,
    };
    let settings = args.common.settings()?;
    let scripts = slurm::scripts(&plan, &directory, &folder, &settings, &slurm);
    write(&folder, &scripts)?;
    let submit = folder.join(slurm::SUBMIT);
    if !args.submit {
        return Ok(say!(
            "{} scripts in {}; `sh {}` submits them",
            scripts.len() - 1,
            folder.display(),
            submit.display()
        )?);
    }
    let done = Command::new("sh").arg(&submit).status();
    let done = done.with_context(|| format!("cannot run {}", submit.display()))?;
    ensure!(
        done.success(),
        "{} failed; the jobs before the failure are submitted",
        submit.display()
    );
    Ok(())
}

fn run_snakemake(args: &SnakemakeArgs) -> anyhow::Result<()> {
    let (directory, plan) = plan_of(&args.common.directory)?;
    let folder = directory.join("work").join("snakemake");
    let marks = folder.join("done");
    // Marks of an earlier plan are no marks of this one.
    if marks.exists() {
        std::fs::remove_dir_all(&marks)
            .with_context(|| format!("cannot remove {}", marks.display()))?;
        note!("the marks of an earlier Snakefile are removed; finished shards end at once");
    }
    let settings = args.common.settings()?;
    let script = snakemake::snakefile(&plan, &directory, &marks, &settings);
    write(&folder, std::slice::from_ref(&script))?;
    Ok(say!(
        "snakemake --snakefile {} --cores {}",
        folder.join(&script.name).display(),
        settings.cores
    )?)
}

fn write(folder: &Path, scripts: &[Script]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    for script in scripts {
        let path = folder.join(&script.name);
        let mut output = Output::create(&path, script.text.len() as u64, &[])?;
        output.write(script.text.as_bytes())?;
        output.finish()?;
    }
    Ok(())
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let (directory, plan) = plan_of(&args.directory)?;
    let status = Status::of(&plan, &directory);
    if args.json {
        return Ok(say!("{}", serde_json::to_string_pretty(&status)?)?);
    }
    let mut lines = vec![format!(
        "{:<16}{:>10}{:>12}{:>12}{:>22}  machines",
        "stage", "shards", "estimated", "measured", "longest shard"
    )];
    lines.extend(status.stages.iter().map(line));
    lines.push(String::new());
    lines.push(format!(
        "no number of machines is faster than {}",
        duration(status.critical_path_seconds)
    ));
    for (machines, seconds, efficiency) in &status.machines {
        lines.push(format!(
            "{machines:>4} machines: {:>8}, {:.0}% of their time at work",
            duration(*seconds),
            efficiency * 100.0
        ));
    }
    for [step, why] in &status.later {
        lines.push(format!("in one process at the end: {step} ({why})"));
    }
    Ok(say!("{}", lines.join("\n"))?)
}

fn line(stage: &StageStatus) -> String {
    let longest = stage
        .longest
        .map(|(shard, seconds)| format!("{shard} in {}", duration(seconds)));
    let hosts: Vec<_> = stage.hosts.iter().map(String::as_str).collect();
    let state = match stage.merged {
        true => "merged".into(),
        false => format!("{} of {}", stage.done, stage.shards),
    };
    format!(
        "{:<16}{state:>10}{:>12}{:>12}{:>22}  {}",
        stage.name,
        duration(stage.seconds),
        duration(stage.measured_seconds),
        longest.unwrap_or_default(),
        hosts.join(", ")
    )
}
