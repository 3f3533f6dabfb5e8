//! `quantier set`.

use super::messages::note;
use super::split::write;
use super::text::{say, size};
use super::values::{shortened, typed, value_json};
use super::wrong_usage;
use anyhow::{Context, bail, ensure};
use quantier::edit::set::{Change, Edit, copy, edit, patches};
use quantier::format::gguf::{Files, Model, Value};
use quantier::format::output;
use quantier::publish::facts::chat_template;
use quantier::publish::lint::lint;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Edit a GGUF's metadata: names, token ids, the chat template, any key
///
/// OUT is a copy with other metadata, whose tensors are the model's own, byte for byte; keys keep
/// their places, and new ones come last. --in-place writes into the file itself, without touching
/// the tensors, and only where nothing has to move for it: numbers, flags, and texts of the same
/// length. A run that is killed then leaves a readable file; anything else would not, and is
/// refused.
///
/// A new chat template is tried with conversations of all kinds, and what it cannot render or
/// leaves out is noted.
///
/// A split model keeps its cut: with --in-place only its first shard is changed; OUT is the name of
/// the new first shard, and all others are copied beside it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier set model.gguf -o fixed.gguf --chat-template template.jinja
  quantier set model.gguf --in-place --eos 2
  quantier set model.gguf -o named.gguf --name 'My Model' --key general.url=str:https://example.org
  quantier set model.gguf -o tagged.gguf --key 'general.tags=str[]:[\"chat\", \"en\"]' \\
      --remove general.description

Types: u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool, str; TYPE[] is an array, its value in JSON.
quantier inspect shows a model's keys with their types.")]
pub struct Args {
    /// A GGUF file, or any shard of a split one
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Change MODEL itself, where that is safe
    #[arg(long)]
    in_place: bool,
    /// Set a key; repeatable. A key that is there keeps its type
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = key_value)]
    key: Vec<Edit>,
    /// Remove a key; repeatable
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
    /// Take the chat template from a file (tokenizer.chat_template)
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// The model's name (general.name)
    #[arg(long)]
    name: Option<String>,
    /// Token that begins a text (tokenizer.ggml.bos_token_id)
    #[arg(long, value_name = "ID")]
    bos: Option<u32>,
    /// Token that ends a text (tokenizer.ggml.eos_token_id)
    #[arg(long, value_name = "ID")]
    eos: Option<u32>,
    /// Token that ends a turn (tokenizer.ggml.eot_token_id)
    #[arg(long, value_name = "ID")]
    eot: Option<u32>,
    /// Token that fills up (tokenizer.ggml.padding_token_id)
    #[arg(long, value_name = "ID")]
    pad: Option<u32>,
    /// Token for what is unknown (tokenizer.ggml.unknown_token_id)
    #[arg(long, value_name = "ID")]
    unk: Option<u32>,
    /// Token between two texts (tokenizer.ggml.seperator_token_id, which is how the format spells
    /// it)
    #[arg(long, value_name = "ID")]
    sep: Option<u32>,
    /// Whether a text gets a BOS (tokenizer.ggml.add_bos_token)
    #[arg(long, value_name = "true|false")]
    add_bos: Option<bool>,
    /// Whether a text gets an EOS (tokenizer.ggml.add_eos_token)
    #[arg(long, value_name = "true|false")]
    add_eos: Option<bool>,
    /// Do what is refused otherwise: change a key's type, name a token that the vocabulary does not
    /// have, remove general.architecture, replace an OUT that is there
    #[arg(long)]
    force: bool,
    /// Show the changes; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
}

/// Where a model has its chat template.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

fn key_value(text: &str) -> Result<Edit, String> {
    let (key, value) = text.split_once('=').ok_or("KEY=TYPE:VALUE is expected")?;
    Ok(Edit {
        key: key.to_owned(),
        value: Some(typed(value)?),
    })
}

/// From what was typed to what is meant.
fn edits(args: &Args) -> anyhow::Result<Vec<Edit>> {
    let mut all = args.key.clone();
    let mut set = |key: &str, value: Option<Value<'static>>| {
        all.extend(value.map(|value| Edit {
            key: key.to_owned(),
            value: Some(value),
        }));
    };
    if let Some(path) = &args.chat_template {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            !text.trim().is_empty(),
            "{} is empty; --remove tokenizer.chat_template removes it",
            path.display()
        );
        set(CHAT_TEMPLATE, Some(Value::str(text)));
    }
    set("general.name", args.name.clone().map(Value::str));
    let ids = [
        ("bos", args.bos),
        ("eos", args.eos),
        ("eot", args.eot),
        ("padding", args.pad),
        ("unknown", args.unk),
        ("seperator", args.sep),
    ];
    for (token, id) in ids {
        set(
            &format!("tokenizer.ggml.{token}_token_id"),
            id.map(Value::U32),
        );
    }
    set(
        "tokenizer.ggml.add_bos_token",
        args.add_bos.map(Value::Bool),
    );
    set(
        "tokenizer.ggml.add_eos_token",
        args.add_eos.map(Value::Bool),
    );
    all.extend(args.remove.iter().map(|key| Edit {
        key: key.clone(),
        value: None,
    }));
    Ok(all)
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let edits = edits(args)?;
    if edits.is_empty() {
        wrong_usage("set", "nothing is to be set; see --help for what can be");
    }
    if args.output.is_none() && !args.in_place && !args.dry_run {
        wrong_usage(
            "set",
            "name a file to write with -o OUT, or change the model itself with --in-place",
        );
    }
    let files = Files::open(&args.model)?;
    let model = Model::parse(&files)?;
    let edited = edit(&model, &edits, args.force)?;
    let is_template = |change: &Change<'_>| change.key == CHAT_TEMPLATE && change.after.is_some();
    let found = match edited.changes.iter().any(is_template) {
        true => lint(chat_template(&edited.metadata).as_ref()).0,
        false => Vec::new(),
    };
    let lines: Vec<_> = edited.changes.iter().map(line).collect();
    let changes: Vec<_> = edited.changes.iter().map(change_json).collect();
    let mut report = json!({ "input": args.model, "written": !args.dry_run, "changes": changes });
    let first = model.files.paths()[0].to_owned();
    let mut done = String::from("nothing was written (dry run)");
    if args.in_place {
        let found = patches(&model, &edited);
        let patches = match found {
            Ok(patches) => patches,
            Err(why) => bail!(
                "{}: {why}; that cannot be done in place: a run that is killed in the middle would leave no readable \
                 file. Write a copy with -o OUT",
                first.display()
            ),
        };
        let bytes: usize = patches.iter().map(|patch| patch.after.len()).sum();
        // What is mapped must not change.
        drop(edited);
        drop(model);
        drop(files);
        if !args.dry_run {
            output::patch(&first, &patches)?;
            done = format!(
                "{}: {bytes} bytes changed in place; tensors were not touched",
                first.display()
            );
        }
        report["in_place"] = json!(true);
        report["bytes_changed"] = json!(bytes);
    } else if let Some(path) = &args.output {
        let plan = copy(&model, edited.metadata, path)?;
        write(&plan, args.dry_run, args.force)?;
        let bytes: u64 = plan.files.iter().map(|f| plan.file_bytes(f)).sum();
        let paths: Vec<_> = plan
            .files
            .iter()
            .map(|f| f.path.display().to_string())
            .collect();
        if !args.dry_run {
            done = format!(
                "{}: {} written, tensors as they were",
                paths.join(", "),
                size(bytes)
            );
        }
        report["in_place"] = json!(false);
        report["paths"] = json!(paths);
    }
    found.iter().for_each(|text| note!("{text}"));
    if args.json {
        say!("{report}")?;
    } else {
        lines.iter().try_for_each(|line| say!("{line}"))?;
        say!("{done}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(change: &Change<'_>) -> String {
    let typed = |value: &Value<'_>| format!("{} {}", value.value_type().name(), shortened(value));
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            format!("~ {}: {} -> {}", change.key, typed(before), typed(after))
        }
        (None, Some(after)) => format!("+ {}: {}", change.key, typed(after)),
        (before, None) => format!(
            "- {}: {}",
            change.key,
            before.as_ref().map_or(String::new(), typed)
        ),
    }
}

fn change_json(change: &Change<'_>) -> serde_json::Value {
    let value = |value: &Value<'_>| json!({ "type": value.value_type().name(), "value": value_json(value) });
    json!({ "key": change.key, "before": change.before.as_ref().map(value), "after": change.after.as_ref().map(value) })
}
