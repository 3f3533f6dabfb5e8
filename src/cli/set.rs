//! `quantier set`.

use super::messages::note;
use super::split::write;
use super::text::{say, size};
use super::values::{shortened, typed, value_json};
use super::wrong_usage;
use anyhow::{Context, bail, ensure};
use quantier::chat::template::chat_template;
use quantier::edit::set::{Change, Edit, copy, edit, patches};
use quantier::publish::lint::lint;
use quantier_gguf::gguf::{Files, Model, Value};
use quantier_gguf::output;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Edit a GGUF's metadata: names, token ids, the chat template, any key
///
/// OUT is a copy with edited metadata and identical tensors; keys keep their order, new ones are
/// appended. --in-place edits the file itself, limited to edits that keep its layout: numbers,
/// flags, and strings of the same length. The file then stays readable even if the run is killed.
/// Other edits are refused.
///
/// A new chat template is tested on conversations of all kinds; failures and omissions are
/// reported.
///
/// A split model stays split: --in-place changes its first shard only; OUT is the new first shard,
/// and the others are copied next to it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier set model.gguf -o fixed.gguf --chat-template template.jinja
  quantier set model.gguf --in-place --eos 2
  quantier set model.gguf -o named.gguf --name 'My Model' --key general.url=str:https://example.org
  quantier set model.gguf -o tagged.gguf --key 'general.tags=str[]:[\"chat\", \"en\"]' \\
      --remove general.description

Types: u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool, str; TYPE[] is an array, with a value in JSON.
quantier inspect lists a model's keys and their types.")]
pub struct Args {
    /// A GGUF file (any shard of a split one)
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Edit MODEL itself, if that is safe
    #[arg(long)]
    in_place: bool,
    /// Set a key; repeatable. An existing key keeps its type
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = key_value)]
    key: Vec<Edit>,
    /// Remove a key; repeatable
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
    /// Read the chat template from a file (tokenizer.chat_template)
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// The model's name (general.name)
    #[arg(long)]
    name: Option<String>,
    /// Beginning-of-text token (tokenizer.ggml.bos_token_id)
    #[arg(long, value_name = "ID")]
    bos: Option<u32>,
    /// End-of-text token (tokenizer.ggml.eos_token_id)
    #[arg(long, value_name = "ID")]
    eos: Option<u32>,
    /// End-of-turn token (tokenizer.ggml.eot_token_id)
    #[arg(long, value_name = "ID")]
    eot: Option<u32>,
    /// Padding token (tokenizer.ggml.padding_token_id)
    #[arg(long, value_name = "ID")]
    pad: Option<u32>,
    /// Unknown token (tokenizer.ggml.unknown_token_id)
    #[arg(long, value_name = "ID")]
    unk: Option<u32>,
    /// Separator token (tokenizer.ggml.seperator_token_id, the format's spelling)
    #[arg(long, value_name = "ID")]
    sep: Option<u32>,
    /// Prepend BOS to texts (tokenizer.ggml.add_bos_token)
    #[arg(long, value_name = "true|false")]
    add_bos: Option<bool>,
    /// Append EOS to texts (tokenizer.ggml.add_eos_token)
    #[arg(long, value_name = "true|false")]
    add_eos: Option<bool>,
    /// Allow a change of a key's type, token IDs outside the vocabulary, removal of
    /// general.architecture, and an existing OUT
    #[arg(long)]
    force: bool,
    /// Print the changes; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
}

/// Key of the chat template.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

fn key_value(text: &str) -> Result<Edit, String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=TYPE:VALUE")?;
    Ok(Edit {
        key: key.to_owned(),
        value: Some(typed(value)?),
    })
}

/// Turns arguments into edits.
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
        wrong_usage("set", "no change requested; --help lists the options");
    }
    if args.output.is_none() && !args.in_place && !args.dry_run {
        wrong_usage(
            "set",
            "choose an output with -o OUT, or edit the model itself with --in-place",
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
    let mut done = String::from("nothing written (dry run)");
    if args.in_place {
        let found = patches(&model, &edited);
        let patches = match found {
            Ok(patches) => patches,
            Err(why) => bail!(
                "{}: {why}; impossible in place: a killed run would leave an unreadable file. Write a copy with -o OUT",
                first.display()
            ),
        };
        let bytes: usize = patches.iter().map(|patch| patch.after.len()).sum();
        // A mapped file must not change.
        drop(edited);
        drop(model);
        drop(files);
        if !args.dry_run {
            output::patch(&first, &patches)?;
            done = format!(
                "{}: {bytes} bytes changed in place; tensors untouched",
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
                "{}: {} written, tensors unchanged",
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
