//! `quantier diff`.

use super::measure::{input, source};
use super::messages::{self, note};
use super::terminal::Bar;
use super::text::{count, say};
use super::values::{shortened, value_json};
use quantier::diff::{Diff, KeyChange, Stored, TensorChange, diff};
use quantier_gguf::gguf::Value;
use quantier_report::numbers::nats;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit codes, as those of diff(1).
const DIFFERENT: u8 = 1;
const TROUBLE: u8 = 2;
/// Longest array printed in full as JSON.
const SHORT_ARRAY: usize = 16;
/// Longest text shown from its beginning; longer ones are shown from the first difference.
const SHORT_TEXT: usize = 48;

/// Compare two models: metadata, tensors, shapes, types, and the error of the weights
///
/// The error of a tensor is the root mean square of B - A relative to that of A, both dequantized;
/// 0.01 is one per cent. The most changed tensors come first. The order of keys and tensors and the
/// split into shards are ignored; use cmp to compare files byte for byte.
///
/// Exit code 0 if the models are equal, 1 if they differ, 2 if the comparison failed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier diff model-F16.gguf model-Q4_K_M.gguf   # quantization error of each tensor
  quantier diff ./Qwen3-4B model-BF16.gguf         # a checkpoint against its GGUF
  quantier diff old.gguf new.gguf --json | jq .metadata")]
pub struct Args {
    /// A GGUF, any shard of a split one, or a Hugging Face checkpoint
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The model to compare with it
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Number of changed tensors to list; 0 for all. JSON always lists all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
    top: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Returns its own exit code: a difference is not a failure.
pub fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(same) => ExitCode::from(if same { 0 } else { DIFFERENT }),
        Err(error) => {
            messages::tell("error", &format!("{error:#}"));
            ExitCode::from(TROUBLE)
        }
    }
}

fn compare(args: &Args) -> anyhow::Result<bool> {
    let (source_a, source_b) = (source(&args.a)?, source(&args.b)?);
    let (a, b) = (input(&source_a)?, input(&source_b)?);
    a.notes()
        .iter()
        .chain(b.notes())
        .for_each(|text| note!("{text}"));
    let bar = Bar::new();
    let Some(found) = diff(&a, &b, &bar)? else {
        anyhow::bail!("interrupted")
    };
    drop(bar);
    match args.json {
        true => say!("{}", to_json(&found))?,
        false => print(&found, args)?,
    }
    Ok(found.is_empty())
}

fn print(found: &Diff<'_>, args: &Args) -> anyhow::Result<()> {
    if found.is_empty() {
        return say!("equal: {} tensors", count(found.same as u64));
    }
    say!("A: {}\nB: {}", args.a.display(), args.b.display())?;
    if !found.keys.is_empty() {
        say!("\nMetadata: {} keys differ", found.keys.len())?;
        found
            .keys
            .iter()
            .try_for_each(|change| say!("  {}", key_line(change)))?;
    }
    for (name, tensors) in [("A", &found.only_a), ("B", &found.only_b)] {
        if !tensors.is_empty() {
            say!("\nTensors only in {name}: {}", count(tensors.len() as u64))?;
        }
        tensors
            .iter()
            .try_for_each(|t| say!("  {:<44} {:<22} {}", t.name, t.shape, t.ggml_type))?;
    }
    say!(
        "\nTensors in both: {} differ, {} are equal",
        count(found.changed.len() as u64),
        count(found.same as u64)
    )?;
    let listed = if args.top == 0 {
        found.changed.len()
    } else {
        args.top
    };
    if !found.changed.is_empty() {
        say!(
            "  {:<44} {:<22} {:<20} relative RMSE",
            "tensor",
            "shape",
            "type"
        )?;
    }
    found
        .changed
        .iter()
        .take(listed)
        .try_for_each(|change| say!("  {}", tensor_line(change)))?;
    match found.changed.len().saturating_sub(listed) {
        0 => Ok(()),
        more => say!(
            "  and {} more with smaller errors; --top 0 lists all",
            count(more as u64)
        ),
    }
}

fn key_line(change: &KeyChange<'_>) -> String {
    let key = &change.key;
    let typed = |value: &Value<'_>| format!("{} {}", value.value_type().name(), shortened(value));
    match (&change.a, &change.b, &change.elements) {
        (Some(Value::Array(a)), Some(Value::Array(b)), Some(found)) => {
            let lengths = match (a.len(), b.len()) {
                (a, b) if a == b => format!("of {a}"),
                (a, b) => format!("({a} in A, {b} in B)"),
            };
            let element =
                |value: &Option<Value<'_>>| value.as_ref().map_or("nothing".into(), quoted);
            let (a, b) = (element(&found.a), element(&found.b));
            format!(
                "~ {key}: {} elements {lengths} differ, first [{}]: {a} -> {b}",
                found.differing, found.first
            )
        }
        (Some(Value::String(a)), Some(Value::String(b)), _)
            if a.len().max(b.len()) > SHORT_TEXT =>
        {
            let at = a
                .iter()
                .zip(b.iter())
                .position(|(x, y)| x != y)
                .unwrap_or(a.len().min(b.len()));
            let rest = |text: &[u8]| quoted(&Value::String(text[at..].to_vec().into()));
            let (lengths, rests) = ((a.len(), b.len()), (rest(a), rest(b)));
            format!(
                "~ {key}: strings of {} and {} bytes, first difference at byte {at}: {} -> {}",
                lengths.0, lengths.1, rests.0, rests.1
            )
        }
        (Some(a), Some(b), _) if a.value_type() == b.value_type() => {
            format!("~ {key}: {} -> {}", typed(a), shortened(b))
        }
        (Some(a), Some(b), _) => format!("~ {key}: {} -> {}", typed(a), typed(b)),
        (Some(a), None, _) => format!("- {key}: {}", typed(a)),
        (None, b, _) => format!("+ {key}: {}", b.as_ref().map_or(String::new(), typed)),
    }
}

/// A value, shortened; strings in quotes.
fn quoted(value: &Value<'_>) -> String {
    match value {
        Value::String(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            match text.char_indices().nth(SHORT_TEXT) {
                Some((end, _)) => format!("{:?}...", &text[..end]),
                None => format!("{text:?}"),
            }
        }
        other => shortened(other),
    }
}

fn tensor_line(change: &TensorChange) -> String {
    let (a, b) = (&change.a, &change.b);
    let of = |x: String, y: String| if x == y { x } else { format!("{x} -> {y}") };
    let error = match change.error {
        Some(error) => nats(error.relative),
        None if a.shape != b.shape => "shapes differ".into(),
        None => "bytes differ".into(),
    };
    let shapes = of(a.shape.to_string(), b.shape.to_string());
    format!(
        "{:<44} {shapes:<22} {:<20} {error}",
        a.name,
        of(a.ggml_type.to_string(), b.ggml_type.to_string())
    )
}

fn to_json(found: &Diff<'_>) -> serde_json::Value {
    let value = |value: &Option<Value<'_>>| match value {
        Some(Value::Array(a)) if a.len() > SHORT_ARRAY => {
            json!({ "type": "arr", "element": a.element().name(), "length": a.len() })
        }
        Some(value) => json!({ "type": value.value_type().name(), "value": value_json(value) }),
        None => json!(null),
    };
    let key = |change: &KeyChange<'_>| {
        let elements = change.elements.as_ref().map(|e| {
            let one = |value: &Option<Value<'_>>| value.as_ref().map(value_json);
            json!({ "differing": e.differing, "first": e.first, "a": one(&e.a), "b": one(&e.b) })
        });
        json!({ "key": change.key, "a": value(&change.a), "b": value(&change.b), "elements": elements })
    };
    let stored =
        |t: &Stored| json!({ "name": t.name, "shape": t.shape.dims(), "type": t.ggml_type.name() });
    // NaN and infinity become null in JSON.
    let tensor = |change: &TensorChange| {
        json!({
            "name": change.a.name, "shape_a": change.a.shape.dims(), "shape_b": change.b.shape.dims(),
            "type_a": change.a.ggml_type.name(), "type_b": change.b.ggml_type.name(),
            "rmse": change.error.map(|e| e.rmse), "relative_rmse": change.error.map(|e| e.relative),
        })
    };
    json!({
        "same": found.is_empty(), "metadata": found.keys.iter().map(key).collect::<Vec<_>>(),
        "only_a": found.only_a.iter().map(stored).collect::<Vec<_>>(),
        "only_b": found.only_b.iter().map(stored).collect::<Vec<_>>(),
        "tensors": found.changed.iter().map(tensor).collect::<Vec<_>>(), "same_tensors": found.same,
    })
}
