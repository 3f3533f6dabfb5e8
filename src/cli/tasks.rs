//! `quantier tasks`.

use super::measure::{Opened, Running, open_all, runnables, sources};
use super::messages::note;
use super::terminal::Bar;
use super::text::say;
use super::wrong_usage;
use anyhow::{Context, bail, ensure};
use quantier_engine::evaluate::measure::{self, Base, Measured};
use quantier_engine::evaluate::sequences::{Sequence, Sequences};
use quantier_engine::evaluate::tasks::{Accuracy, Answer, Choices, Flips};
use quantier_gguf::tasks::{self, Format, Task};
use quantier_report::numbers::percent;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Score models on multiple-choice tasks by log-likelihood, and compare them answer by answer
///
/// Without a server: each choice is run behind its context, and the one with the highest mean
/// log-probability per token is the answer, as in llama-perplexity. Models after the first are
/// compared with it: answers won and lost with McNemar's test, and answers that changed at all.
#[derive(clap::Args)]
#[command(
    override_usage = "quantier tasks [OPTIONS] <BASE> [QUANT]...",
    after_help = "Examples:
  quantier tasks model-F16.gguf model-Q4_K_M.gguf --hellaswag hellaswag_val_full.txt
  quantier tasks model-F16.gguf model-Q4_K_M.gguf model-Q3_K_M.gguf --winogrande winogrande.csv \\
      --multiple-choice arc-challenge-validation.bin --limit 200"
)]
pub struct Args {
    /// The base model, and the models to compare with it
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Tasks in the format of llama-perplexity --hellaswag: six lines each; repeatable
    #[arg(long, value_name = "TEXT")]
    hellaswag: Vec<PathBuf>,
    /// Tasks in the format of llama-perplexity --winogrande: CSV; repeatable
    #[arg(long, value_name = "CSV")]
    winogrande: Vec<PathBuf>,
    /// Tasks in the binary format of llama-perplexity --multiple-choice (ARC, MMLU, TruthfulQA); repeatable
    #[arg(long, value_name = "BIN")]
    multiple_choice: Vec<PathBuf>,
    /// Maximum number of tasks per file, evenly spread over it; all by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Allow tasks that are longer than the model's context
    #[arg(long)]
    force_context: bool,
    #[command(flatten)]
    running: Running,
}

impl Args {
    /// The files with their formats.
    fn files(&self) -> Vec<(&Path, Format)> {
        let hellaswag = self.hellaswag.iter().map(|p| (&**p, Format::HellaSwag));
        let winogrande = self.winogrande.iter().map(|p| (&**p, Format::WinoGrande));
        let choices = self.multiple_choice.iter();
        let choices = choices.map(|p| (&**p, Format::MultipleChoice));
        hellaswag.chain(winogrande).chain(choices).collect()
    }
}

/// The tasks of a file, as tokens.
struct Group<'a> {
    path: &'a Path,
    tasks: Vec<(Task, Choices)>,
    /// Number of tasks in the file.
    all: usize,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.files().is_empty() {
        wrong_usage(
            "tasks",
            "name a file of tasks: --hellaswag, --winogrande or --multiple-choice",
        );
    }
    let sources = sources(&args.models)?;
    let inputs = runnables(&sources)?;
    let opened = open_all(&args.models, &inputs, &args.running.options())?;
    for (path, model) in args.models.iter().zip(&opened) {
        model.ensure_output(path, "it answers no questions")?;
    }
    let groups = read(args, &opened[0])?;
    for (path, other) in args.models.iter().zip(&opened).skip(1) {
        check(other, &opened[0], &groups).with_context(|| path.display().to_string())?;
    }
    let sequences = sequences(args, &opened[0], &groups)?;
    let nlls = nlls(args, &opened, &sequences)?;
    let answers: Vec<Vec<Vec<Answer>>> = nlls
        .iter()
        .map(|nlls| answers(&groups, &sequences, nlls))
        .collect();
    report(args, &groups, &answers)
}

/// Reads and tokenizes the tasks.
fn read<'a>(args: &'a Args, model: &Opened<'_>) -> anyhow::Result<Vec<Group<'a>>> {
    let group = |(path, format): (&'a Path, Format)| {
        let tasks = tasks::read(path, format)?;
        let all = tasks.len();
        let used = args.limit.map_or(all, |limit| all.min(limit as usize));
        let mut tasks: Vec<_> = tasks.into_iter().map(Some).collect();
        let picked = (0..used).filter_map(|i| tasks[i * all / used].take());
        let tasks = picked.map(|task| {
            let choices = choices(model, &task);
            (task, choices)
        });
        Ok(Group {
            path,
            tasks: tasks.collect(),
            all,
        })
    };
    args.files().into_iter().map(group).collect()
}

/// A task as tokens. Control tokens in it are plain text, as in llama-perplexity.
fn choices(model: &Opened<'_>, task: &Task) -> Choices {
    let encode = |text: &String| model.tokenizer.encode(text, true, false);
    let heads = task.heads.as_ref();
    Choices {
        tokens: task.texts.iter().map(encode).collect(),
        heads: heads.map(|heads| [&heads[0], &heads[1]].map(|head| encode(head).len())),
    }
}

/// Fails unless a model tokenizes the tasks like the first.
fn check(other: &Opened<'_>, first: &Opened<'_>, groups: &[Group<'_>]) -> anyhow::Result<()> {
    let sizes = [other, first].map(|model| model.engine.vocabulary());
    let mut tasks = groups.iter().flat_map(|group| &group.tasks);
    ensure!(
        sizes[0] == sizes[1] && tasks.all(|(task, tokens)| choices(other, task) == *tokens),
        "its vocabulary differs from the first model's; compare models of one family"
    );
    Ok(())
}

/// All choices of all tasks.
fn sequences(args: &Args, model: &Opened<'_>, groups: &[Group<'_>]) -> anyhow::Result<Sequences> {
    let mut all: Vec<Sequence> = Vec::new();
    for group in groups {
        let mut blanks = 0;
        for (task, choices) in &group.tasks {
            let place = || format!("{}: {}", group.path.display(), task.place);
            let choices_of = choices.sequences();
            let sequences = choices_of.map_err(|what| anyhow::anyhow!("{}: {what}", place()))?;
            let longest = sequences.iter().map(|one| one.tokens().len()).max();
            let longest = longest.unwrap_or(0);
            if let Some(context) = model.exceeded(longest, args.force_context) {
                bail!(
                    "{}: the task has {longest} tokens, more than the model's context of {context}; leave it out, or force it \
                     with --force-context",
                    place()
                );
            }
            blanks += usize::from(choices.scores_blank());
            all.extend(sequences);
        }
        if blanks > 0 {
            note!(
                "{}: few tokens follow the blank in {blanks} of {} tasks; llama-perplexity takes the first token of their \
                 second choice from a wrong position and may score them differently (docs/measuring.md)",
                group.path.display(),
                group.tasks.len()
            );
        }
    }
    Ok(all.into_iter().collect())
}

/// The -ln p of all scored tokens, by model.
fn nlls(
    args: &Args,
    opened: &[Opened<'_>],
    sequences: &Sequences,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let bar = Bar::new();
    let mut measured = Vec::new();
    for (path, opened) in args.models.iter().zip(opened) {
        bar.about(&path.file_name().unwrap_or_default().to_string_lossy());
        let name = path.display().to_string();
        measured.push(Measured::new(name, &opened.engine, sequences, &bar)?);
    }
    bar.about("all");
    if let [only] = &measured[..] {
        return Ok(vec![measure::nll(only, sequences, None, &bar)?]);
    }
    let base = Base::Model(measured.remove(0));
    let rows = measure::compare(&base, &measured, sequences, None, &bar)?;
    let of_base = rows[0].iter().map(|row| row.nll_base).collect();
    let of_models = rows
        .iter()
        .map(|rows| rows.iter().map(|row| row.nll).collect());
    Ok(std::iter::once(of_base).chain(of_models).collect())
}

/// A model's answers, by file.
fn answers(groups: &[Group<'_>], sequences: &Sequences, nlls: &[f64]) -> Vec<Vec<Answer>> {
    let mut next = 0;
    let mut answer = |(task, choices): &(Task, Choices)| {
        let places = next..next + task.texts.len();
        next = places.end;
        let rows = places.map(|sequence| &nlls[sequences.rows_of(sequence..sequence + 1)]);
        let choice = choices.pick(&rows.collect::<Vec<_>>());
        Answer {
            choice,
            is_right: task.right[choice],
        }
    };
    let group = |group: &Group<'_>| group.tasks.iter().map(&mut answer).collect();
    groups.iter().map(group).collect()
}

fn report(
    args: &Args,
    groups: &[Group<'_>],
    answers: &[Vec<Vec<Answer>>],
) -> anyhow::Result<ExitCode> {
    let accuracy = |answers: &[Answer]| Accuracy::of(answers).context("the file has no tasks");
    if args.running.json {
        let file = |(number, group): (usize, &Group<'_>)| -> anyhow::Result<serde_json::Value> {
            let first = &answers[0][number];
            let model = |(path, answers): (&PathBuf, &Vec<Vec<Answer>>)| {
                let answers = &answers[number];
                let picked: Vec<usize> = answers.iter().map(|answer| answer.choice).collect();
                let flips = (path != &args.models[0]).then(|| Flips::of(first, answers));
                Ok(json!({
                    "model": path, "accuracy": accuracy(answers)?, "flips": flips, "choices": picked,
                }))
            };
            let models = args.models.iter().zip(answers).map(model);
            let right = group.tasks.iter().map(|(task, _)| &task.right);
            Ok(json!({
                "file": group.path, "tasks": group.tasks.len(), "of": group.all,
                "right": right.collect::<Vec<_>>(),
                "models": models.collect::<anyhow::Result<Vec<_>>>()?,
            }))
        };
        let files = groups.iter().enumerate().map(file);
        let files = files.collect::<anyhow::Result<Vec<_>>>()?;
        say!("{}", json!({ "base": args.models[0], "files": files }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<String> = args
        .models
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or(0).max("model".len());
    for (number, group) in groups.iter().enumerate() {
        let used = group.tasks.len();
        say!(
            "{}: {used} of {} tasks\n{:<width$}  {:>8}  {:>18}  {:>6}  {:>6}  {:>7}  {:>8}",
            group.path.display(),
            group.all,
            "model",
            "accuracy",
            "95% interval",
            "won",
            "lost",
            "changed",
            "p"
        )?;
        let first = &answers[0][number];
        for (i, (name, answers)) in names.iter().zip(answers).enumerate() {
            let answers = &answers[number];
            let Accuracy {
                value, interval, ..
            } = accuracy(answers)?;
            let [low, high] = interval.map(percent);
            let interval = format!("{low} to {high}");
            let line = format!("{name:<width$}  {:>8}  {interval:>18}", percent(value));
            if i == 0 {
                say!("{line}")?;
                continue;
            }
            let flips = Flips::of(first, answers);
            let verdict = match (flips.is_significant, flips.gained > flips.lost) {
                (false, _) => "",
                (true, true) => "  better than the base",
                (true, false) => "  worse than the base",
            };
            say!(
                "{line}  {:>6}  {:>6}  {:>7}  {:>8.4}{verdict}",
                flips.gained,
                flips.lost,
                flips.changed,
                flips.p_value
            )?;
        }
        for (name, answers) in names.iter().zip(answers).skip(1) {
            let changed = Flips::of(first, &answers[number]).changed;
            say!("{name}: {changed} of {used} answers differ from the base's")?;
        }
        if number + 1 < groups.len() {
            say!("")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
