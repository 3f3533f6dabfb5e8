//! `quantier publish` and `quantier make --publish`.

use super::messages::note;
use super::terminal::Bar;
use super::text::{say, size};
use super::wrong_usage;
use anyhow::{Context, bail};
use quantier::publish::facts::{Details, hub_id, repository};
use quantier::publish::{self, Done, Job, card};
use quantier_report::numbers::shell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Content and location of the model card.
#[derive(clap::Args, Default, PartialEq)]
pub struct CardArgs {
    /// The quantized model's ID on the Hub; by default from the GGUF's metadata
    #[arg(long, value_name = "ORG/NAME", help_heading = "Publishing")]
    pub base_model: Option<String>,
    /// The license: one of the Hub's identifiers (apache-2.0, mit, llama3.1 ...) or another name
    #[arg(long, value_name = "LICENSE", help_heading = "Publishing")]
    pub license: Option<String>,
    /// The publisher's name on the Hub
    #[arg(long, value_name = "NAME", help_heading = "Publishing")]
    pub quantized_by: Option<String>,
    /// A language of the model (en, no, multilingual); repeatable
    #[arg(long, value_name = "LANGUAGE", help_heading = "Publishing")]
    pub language: Vec<String>,
    /// An additional tag; repeatable
    #[arg(long, value_name = "TAG", help_heading = "Publishing")]
    pub tag: Vec<String>,
    /// The target repository, for the download commands on the card. {name} is replaced by the
    /// model's name
    #[arg(long, value_name = "USER/NAME", help_heading = "Publishing")]
    pub repo: Option<String>,
    /// A custom template for the card; `quantier publish --print-template` prints the built-in one
    /// and the variables
    #[arg(long, value_name = "FILE", help_heading = "Publishing")]
    pub template: Option<PathBuf>,
    /// Publish into an existing directory: files of an earlier publication are replaced, others are
    /// kept
    #[arg(long, help_heading = "Publishing")]
    pub force: bool,
    /// Copy the models instead of making hard links, which take no space
    #[arg(long, help_heading = "Publishing")]
    pub copy: bool,
}

/// Prepare the output of `make` for upload to the Hub
///
/// DIR is the output directory of `quantier make`. The result is ready for upload: README.md with
/// the Hub's metadata, a table of the files and instructions to run them; the models (hard links or
/// copies), the projector, recipes, importance matrix, chart, report, a Modelfile per model, Ollama's template and
/// params, SHA256SUMS. Missing facts about the model are left out, with a note.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier make ./Qwen3-4B --variants 8 -o out
  quantier publish out --base-model Qwen/Qwen3-4B --license apache-2.0 --language en \\
      --quantized-by me --repo me/Qwen3-4B-GGUF
  hf upload me/Qwen3-4B-GGUF out/publish .")]
pub struct Args {
    /// The output directory of `quantier make`
    #[arg(value_name = "DIR", required_unless_present = "print_template")]
    directory: Option<PathBuf>,
    /// The directory to upload; DIR/publish by default
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// A projector to publish with the models, from `quantier convert --mmproj`; by default that of DIR, if `make`
    /// wrote one
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    #[command(flatten)]
    card: CardArgs,
    /// Print the built-in card template and its variables, and exit
    #[arg(long)]
    print_template: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.print_template {
        say!("{}", card::printed().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let directory = args.directory.as_deref().unwrap_or(Path::new("."));
    let job = Job {
        projector: args.mmproj.clone(),
        ..job("publish", directory, args.output.as_deref(), &args.card)?
    };
    let bar = Bar::new();
    let done = publish::run(&job, &bar);
    drop(bar);
    tell(&job, &done?, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Turns arguments into a checked job.
pub fn job(
    command: &str,
    directory: &Path,
    output: Option<&Path>,
    args: &CardArgs,
) -> anyhow::Result<Job> {
    let id = |option: &str, given: &Option<String>| match given
        .as_deref()
        .map(|text| (text, hub_id(text)))
    {
        None => None,
        Some((_, Some(id))) => Some(id),
        Some((text, None)) => wrong_usage(
            command,
            format!("{option} '{text}': expected a name on the Hub, like org/name"),
        ),
    };
    for (option, texts) in [("--language", &args.language), ("--tag", &args.tag)] {
        if let Err(what) = texts.iter().try_for_each(|text| check_word(text)) {
            wrong_usage(command, format!("{option} {what}"));
        }
    }
    if let Some(Err(what)) = args.repo.as_deref().map(check_repo) {
        wrong_usage(command, format!("--repo {what}"));
    }
    let template = match &args.template {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
        ),
        None => None,
    };
    let job = Job {
        directory: directory.to_owned(),
        output: output.map_or_else(|| directory.join("publish"), Path::to_owned),
        details: Details {
            base_model: id("--base-model", &args.base_model),
            source: None,
            license: args.license.clone(),
            quantized_by: args.quantized_by.clone(),
            languages: args.language.clone(),
            tags: args.tag.clone(),
            repo: args.repo.clone(),
        },
        template,
        projector: None,
        force: args.force,
        copy: args.copy,
    };
    match publish::check(&job) {
        Ok(()) => Ok(job),
        Err(error) => bail!(error),
    }
}

/// Checks a language or a tag.
pub fn check_word(text: &str) -> Result<(), String> {
    match text.trim().is_empty() || text.contains(['\n', '/', '\\']) {
        true => Err(format!("'{text}': expected a single word")),
        false => Ok(()),
    }
}

/// Checks a repository, or a pattern of one.
pub fn check_repo(text: &str) -> Result<(), String> {
    match repository(text, "name") {
        Some(_) => Ok(()),
        None => Err(format!(
            "'{text}': expected a name on the Hub, like org/name or org/{{name}}-GGUF"
        )),
    }
}

/// Prints the result as text or JSON.
pub fn tell(job: &Job, done: &Done, json: bool) -> anyhow::Result<()> {
    done.notes.iter().for_each(|text| note!("{text}"));
    if json {
        let file = |(name, sha256, bytes, linked): &(String, String, u64, bool)| serde_json::json!({ "name": name, "sha256": sha256, "bytes": bytes, "linked": linked });
        let files: Vec<_> = done.files.iter().map(file).collect();
        return say!(
            "{}",
            serde_json::json!({ "directory": job.output, "files": files, "notes": done.notes })
        );
    }
    for (name, _, bytes, linked) in &done.files {
        let how = if *linked { "hard link" } else { "copy" };
        say!("{:>12}  {name} ({how})", size(*bytes))?;
    }
    let repo = done.repo.as_deref().unwrap_or("USER/NAME");
    say!(
        "{} is ready: hf upload {repo} {} .",
        job.output.display(),
        shell(&job.output.to_string_lossy())
    )
}
