//! `quantier config`: where the file of defaults is looked for, and what it says.

use super::config::{Options, example};
use super::text::say;
use quantier::report::numbers::shell;
use serde_json::json;
use std::process::ExitCode;

/// Show the file of your defaults: where it is looked for, and what is in force
///
/// What one would state for every model (texts, sizes, who publishes, the repository's pattern) can
/// stand in a TOML file: the one that --config names, else the one that QUANTIER_CONFIG names, else
/// quantier/config.toml in XDG_CONFIG_HOME, else ~/.config/quantier/config.toml. It counts for
/// `make`, `frontier` and `publish`. Flags that are typed win over it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier config
  mkdir -p ~/.config/quantier && quantier config --example > ~/.config/quantier/config.toml")]
pub struct Args {
    /// Print a file to begin with: all keys, explained and commented out
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
                    true => say!("\n{also}: nothing")?,
                    false => say!("\n{also}:\n{}", words.join("\n"))?,
                }
            }
            say!(
                "\nFlags that are typed win. `quantier config --example` shows what else can be there."
            )?;
        }
        (Some(path), None) => {
            say!(
                "{}: there is no such file, and so no defaults. One could begin like this:\n",
                path.display()
            )?;
            say!("{}", example().trim_end())?;
        }
        (None, _) => say!("No file of defaults: --no-config, or no home directory")?,
    }
    Ok(ExitCode::SUCCESS)
}
