//! `quantier config`: location and content of the configuration file.

use super::config::{Options, example};
use super::text::say;
use quantier_report::numbers::shell;
use serde_json::json;
use std::process::ExitCode;

/// Show the configuration file: its location and the defaults in force
///
/// A TOML file can hold defaults for every model: texts, sizes, the publisher, the repository's name
/// pattern. Its location is --config, else $QUANTIER_CONFIG, else
/// $XDG_CONFIG_HOME/quantier/config.toml, else ~/.config/quantier/config.toml. It applies to `make`,
/// `frontier` and `publish`. Flags on the command line take precedence.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier config
  mkdir -p ~/.config/quantier && quantier config --example > ~/.config/quantier/config.toml")]
pub struct Args {
    /// Print a sample file: all keys, explained and commented out
    #[arg(long)]
    example: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "example")]
    json: bool,
}

pub fn run(args: &Args, options: &Options) -> anyhow::Result<ExitCode> {
    if args.example {
        say!("{}", example().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (place, config) = (options.place(), options.read()?);
    let path = place.map(|(path, _)| path);
    if args.json {
        let parts: serde_json::Map<_, _> = config
            .iter()
            .flat_map(|config| config.parts())
            .map(|(name, _, all)| (name.to_owned(), json!(all)))
            .collect();
        say!(
            "{}",
            json!({ "path": path, "found": config.is_some(), "in_force": parts })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    match (&path, &config) {
        (Some(_), Some(config)) => {
            say!("{}", config.path.display())?;
            for (name, commands, all) in config.parts() {
                let words: Vec<String> = all
                    .iter()
                    .map(|argument| format!("  {}", shell(argument)))
                    .collect();
                let also = if name == "publish" {
                    "publish, make --publish"
                } else {
                    &commands.join(", ")
                };
                match words.is_empty() {
                    true => say!("\n{also}: no defaults")?,
                    false => say!("\n{also}:\n{}", words.join("\n"))?,
                }
            }
            say!(
                "\nFlags on the command line take precedence. `quantier config --example` lists all keys."
            )?;
        }
        (Some(path), None) => {
            say!(
                "{}: no such file, so no defaults apply. A sample to start from:\n",
                path.display()
            )?;
            say!("{}", example().trim_end())?;
        }
        (None, _) => say!("No configuration file: --no-config, or no home directory")?,
    }
    Ok(ExitCode::SUCCESS)
}
