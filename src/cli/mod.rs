//! The command line: one file per command. What was typed becomes a job; only this module prints.

mod command;
mod convert;
mod corpus;
mod imatrix;
mod inspect;
mod kld;
mod make;
mod make_plan;
mod measure;
mod perplexity;
mod publish;
mod quantize;
mod terminal;
mod text;
mod tokenize;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Turns a model checkpoint into the best GGUF for its size.
///
/// Every command that takes a GGUF takes any shard of a split one, and every output is written beside its target
/// before it is renamed, so that a failed or stopped run leaves nothing behind.
#[derive(Parser)]
#[command(name = "quantier", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Make(Box<make::Args>),
    Publish(Box<publish::Args>),
    Frontier(Box<make::FrontierArgs>),
    Convert(convert::Args),
    Quantize(Box<quantize::Args>),
    Imatrix(Box<imatrix::Args>),
    Perplexity(perplexity::Args),
    Kld(kld::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Verify(verify::Args),
}

/// Parses the command line and runs the command.
pub fn run() -> anyhow::Result<ExitCode> {
    // Clap's own matches are kept beside the typed arguments: they alone know the order of different flags.
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    match (cli.command, matches.subcommand()) {
        (Command::Quantize(args), Some((_, matches))) => quantize::run(*args, matches),
        (Command::Imatrix(args), Some((_, matches))) => imatrix::run(&args, matches),
        (Command::Make(args), _) => make::run(&args),
        (Command::Publish(args), _) => publish::run(&args),
        (Command::Frontier(args), _) => make::frontier(&args),
        (Command::Convert(args), _) => convert::run(&args),
        (Command::Perplexity(args), _) => perplexity::run(&args),
        (Command::Kld(args), _) => kld::run(&args),
        (Command::Inspect(args), _) => inspect::run(&args),
        (Command::Tokenize(args), _) => tokenize::run(&args),
        (Command::Verify(args), _) => verify::run(&args),
        (Command::Quantize(_) | Command::Imatrix(_), None) => Ok(ExitCode::from(2)),
    }
}

/// Ends the program as clap does for wrong usage: a sentence, the usage, exit code 2.
fn wrong_usage(command: &str, message: impl std::fmt::Display) -> ! {
    let mut cli = Cli::command();
    cli.build();
    let sub = cli.find_subcommand_mut(command).expect("a command of this program");
    sub.error(clap::error::ErrorKind::ValueValidation, message).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
