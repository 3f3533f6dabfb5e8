//! The command line: one file per command. Arguments become a job; only this module prints.

mod cluster;
mod command;
mod config;
mod config_command;
mod config_keys;
mod convert;
mod corpus;
mod diff;
mod embeddings;
mod hub;
mod imatrix;
mod inspect;
mod kld;
mod make;
mod make_plan;
mod manual;
mod measure;
mod merge;
mod messages;
mod perplexity;
mod publish;
mod quantize;
mod set;
mod shard;
mod split;
mod substituted;
mod tasks;
mod terminal;
mod text;
mod tokenize;
mod tune;
mod values;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Turns a model checkpoint into the best GGUF for its size.
///
/// MODEL is a Hugging Face directory, a .safetensors or .bin file, a GGUF (any shard of a split one), or
/// hf://ORG/NAME, which is downloaded into the Hub's cache. Every output is written to a temporary
/// file and renamed at the end: a failed or interrupted run leaves nothing behind.
#[derive(Parser)]
#[command(name = "quantier", version, arg_required_else_help = true, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    messages: messages::Options,
    #[command(flatten)]
    defaults: config::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Make(Box<make::Args>),
    Publish(Box<publish::Args>),
    Frontier(Box<make::FrontierArgs>),
    Shard(shard::Args),
    MergeShards(shard::MergeArgs),
    Cluster(cluster::Args),
    Convert(convert::Args),
    Quantize(Box<quantize::Args>),
    Tune(Box<tune::Args>),
    Imatrix(Box<imatrix::Args>),
    Perplexity(perplexity::Args),
    Kld(kld::Args),
    Tasks(tasks::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Verify(verify::Args),
    Config(config_command::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    Diff(diff::Args),
    Set(set::Args),
    Split(split::Args),
    Merge(merge::Args),
}

const EXAMPLES: &str = "Examples:
  # The main job: measure, mix types, write, verify. Then open out/report.html
  quantier make hf://Qwen/Qwen3-0.6B --bpw 4.25 -o out

  # Several sizes from one measurement, with your own text
  quantier make ./Qwen3-0.6B -f calibration.txt --like Q4_K_M --size 400MiB -o out

  # One of llama.cpp's presets, byte for byte as llama-quantize writes it
  quantier quantize ./Qwen3-0.6B Qwen3-0.6B-Q4_K_M.gguf Q4_K_M

  # KL divergence of a quantized model from its base
  quantier kld ./Qwen3-0.6B Qwen3-0.6B-Q4_K_M.gguf -f held-out.txt

'quantier COMMAND --help' describes a command in full, -h in short.
Exit codes: 0 done, 1 failed, 2 wrong usage, 74 a file cannot be read any more, 75 out of time (shards only).";

/// Parses the command line and runs the command.
pub fn run() -> anyhow::Result<ExitCode> {
    // Only clap's raw matches know the order of different flags.
    let typed: Vec<_> = std::env::args_os().collect();
    let matches = Cli::command().get_matches_from(&typed);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    cli.defaults.check();
    messages::begin(&cli.messages)?;
    let ran = match config::with_defaults(&cli.defaults, &typed, &matches) {
        Ok(None) => command(cli, &matches),
        Ok(Some((all, matches))) => {
            command::set(all);
            command(
                Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit()),
                &matches,
            )
        }
        Err(error) => Err(error),
    };
    match &ran {
        Ok(code) => messages::end(*code == ExitCode::SUCCESS),
        Err(error) => {
            messages::tell("error", &format!("{error:#}"));
            messages::end(false);
        }
    }
    Ok(ran.unwrap_or(ExitCode::FAILURE))
}

fn command(cli: Cli, matches: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    match (cli.command, matches.subcommand()) {
        (Command::Quantize(args), Some((_, matches))) => quantize::run(*args, matches),
        (Command::Imatrix(args), Some((_, matches))) => imatrix::run(&args, matches),
        (Command::Make(args), _) => make::run(&args),
        (Command::Publish(args), _) => publish::run(&args),
        (Command::Frontier(args), _) => make::frontier(&args),
        (Command::Shard(args), _) => shard::run(&args),
        (Command::MergeShards(args), _) => shard::merge(&args),
        (Command::Cluster(args), _) => cluster::run(&args),
        (Command::Convert(args), _) => convert::run(&args),
        (Command::Tune(args), _) => tune::run(&args),
        (Command::Perplexity(args), _) => perplexity::run(&args),
        (Command::Kld(args), _) => kld::run(&args),
        (Command::Tasks(args), _) => tasks::run(&args),
        (Command::Inspect(args), _) => inspect::run(&args),
        (Command::Tokenize(args), _) => tokenize::run(&args),
        (Command::Verify(args), _) => verify::run(&args),
        (Command::Config(args), _) => config_command::run(&args, &cli.defaults),
        (Command::Completions(args), _) => manual::completions(&args),
        (Command::Man(args), _) => manual::man(&args),
        (Command::Diff(args), _) => Ok(diff::run(&args)),
        (Command::Set(args), _) => set::run(&args),
        (Command::Split(args), _) => split::run(&args),
        (Command::Merge(args), _) => merge::run(&args),
        (Command::Quantize(_) | Command::Imatrix(_), None) => Ok(ExitCode::from(2)),
    }
}

/// The command of some arguments, without the program.
fn parsed(arguments: &[String]) -> anyhow::Result<Command> {
    let program = std::iter::once("quantier");
    let all = program.chain(arguments.iter().map(String::as_str));
    Ok(Cli::try_parse_from(all)?.command)
}

/// Exits as clap does for wrong usage: message, usage, exit code 2.
fn wrong_usage(command: &str, message: impl std::fmt::Display) -> ! {
    let mut cli = Cli::command();
    cli.build();
    let sub = cli
        .find_subcommand_mut(command)
        .expect("a command of this program");
    sub.error(clap::error::ErrorKind::ValueValidation, message)
        .exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
