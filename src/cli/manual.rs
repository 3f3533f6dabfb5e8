//! `quantier completions` and `quantier man`: shell completions and manual pages.

use super::Cli;
use super::text::{bytes, say};
use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use quantier_gguf::output::Output;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Print a shell completion script
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier completions bash > ~/.local/share/bash-completion/completions/quantier
  quantier completions zsh > ~/.zfunc/_quantier
  quantier completions fish > ~/.config/fish/completions/quantier.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write the pages of all commands to a directory
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier man | man -l -
  quantier man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// An existing directory for quantier.1, quantier-make.1 and so on
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    // clap_complete panics on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quantier", &mut script);
    bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let Some(directory) = &args.directory else {
        bytes(&page(cli)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut written = 0;
    let mut write = |command: clap::Command, name: &str| -> anyhow::Result<()> {
        let path = directory.join(format!("{name}.1"));
        write_page(&path, &page(command)?)?;
        written += 1;
        Ok(())
    };
    for command in cli
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        write(command.clone(), &format!("quantier-{}", command.get_name()))?;
    }
    write(cli, "quantier")?;
    say!("{}: {written} manual pages", directory.display())?;
    Ok(ExitCode::SUCCESS)
}

fn page(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .context("cannot render the manual page")?;
    Ok(page)
}

fn write_page(path: &Path, page: &[u8]) -> anyhow::Result<()> {
    let mut output = Output::create(path, page.len() as u64, &[])?;
    output.write(page)?;
    Ok(output.finish()?)
}
