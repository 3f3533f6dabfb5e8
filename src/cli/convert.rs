//! `quantier convert`.

use super::terminal::Bar;
use super::text::size;
use anyhow::Context;
use quantier::convert::{Checkpoint, Companions, Entry, Job, OutType, ParameterCount, Plan};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Converts a Hugging Face checkpoint to GGUF, byte for byte as convert_hf_to_gguf.py does
///
/// MODEL is a directory with config.json, safetensors and a tokenizer, or one .safetensors file beside its config.
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint
    #[arg(value_name = "HF_DIR")]
    model: PathBuf,
    /// Where the output goes; {ftype} in the name becomes the output type
    #[arg(short, long, value_name = "FILE")]
    outfile: Option<PathBuf>,
    /// How matrices are stored: auto takes the 16-bit type of the checkpoint
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = out_type)]
    outtype: OutType,
    /// Begin another file before one would have more than this many tensors
    #[arg(long, value_name = "N", default_value_t = 0)]
    split_max_tensors: u64,
    /// Begin another file before one would have more bytes of tensors than this; K, M and G are powers of 1000
    #[arg(long, value_name = "N[K|M|G]", default_value = "0", value_parser = split_size)]
    split_max_size: u64,
    /// Show the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write metadata and vocabulary only
    #[arg(long)]
    vocab_only: bool,
    /// Fail if a weight is not a number or infinite
    #[arg(long)]
    check: bool,
    /// How many threads to use; 0 takes one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print the plan, or what was written, as JSON
    #[arg(long)]
    json: bool,
    /// Take general.* and tokenizer.* from this GGUF
    #[arg(long, value_name = "FILE", hide = true)]
    keys_from: Option<PathBuf>,
}

fn out_type(name: &str) -> Result<OutType, String> {
    OutType::NAMES.iter().find(|(known, _)| *known == name).map(|(_, t)| *t).ok_or_else(|| {
        let names: Vec<_> = OutType::NAMES.iter().map(|(name, _)| *name).collect();
        format!("no such type; known are {}", names.join(", "))
    })
}

fn split_size(text: &str) -> Result<u64, String> {
    let units = [("K", 1000), ("M", 1000 * 1000), ("G", 1000 * 1000 * 1000)];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (digits, factor) = found.unwrap_or((text, 1));
    let number: Option<u64> = digits.parse().ok();
    number.and_then(|n| n.checked_mul(factor)).ok_or_else(|| "a number is expected, and K, M or G behind it".into())
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let file_type = args.outtype.file_type(&checkpoint.tensors);
    let job = Job {
        output: output(args, file_type.name()),
        out_type: args.outtype,
        split_max_tensors: args.split_max_tensors,
        split_max_size: args.split_max_size,
        vocab_only: args.vocab_only,
        check: args.check,
        threads: args.threads,
    };
    let companions = FromGguf::read(args.keys_from.as_deref())?;
    let plan = Plan::new(&checkpoint, &job, &companions)?;
    if !args.dry_run {
        warn(&plan);
        let bar = Bar::new();
        plan.run(&bar)?;
        drop(bar);
    }
    show(&plan, args);
    Ok(ExitCode::SUCCESS)
}

/// Where the output goes, by the name that was typed.
fn output(args: &Args, file_type: &str) -> PathBuf {
    let default = || args.model.join(format!("ggml-model-{}.gguf", file_type.to_lowercase()));
    let path = args.outfile.clone().unwrap_or_else(default);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(name.replace("{ftype}", file_type))
}

/// What the user should know before a long run.
fn warn(plan: &Plan<'_>) {
    for t in plan.tensors.iter().filter(|t| t.wanted != t.target) {
        let (name, len, wanted, target) = (&t.name, t.shape.row_len(), t.wanted, t.target);
        eprintln!("warning: {name}: rows of {len} weights do not fit {wanted}; {target} is used instead");
    }
}

fn show(plan: &Plan<'_>, args: &Args) {
    if args.json {
        let tensors: Vec<_> = plan
            .tensors
            .iter()
            .map(|t| {
                json!({ "name": t.name, "shape": t.shape.dims(), "wanted": t.wanted.name(), "to": t.target.name(),
                    "bytes": t.bytes() })
            })
            .collect();
        println!(
            "{}",
            json!({ "input": args.model, "written": !args.dry_run, "architecture": plan.architecture.name,
                "file_type": plan.file_type.name(), "paths": plan.paths().collect::<Vec<_>>(),
                "file_bytes": plan.file_bytes(), "tensor_bytes": plan.tensor_bytes(), "tensors": tensors })
        );
        return;
    }
    if args.dry_run {
        for t in &plan.tensors {
            println!("  {:<44} {:<22} {:>5} {:>12}", t.name, t.shape, t.target, size(t.bytes()));
        }
    }
    let paths: Vec<_> = plan.paths().map(|p| p.display().to_string()).collect();
    println!(
        "{}: {}, {}, {} tensors, {}{}",
        paths.join(", "),
        plan.architecture.name,
        plan.file_type.name(),
        plan.tensors.len(),
        size(plan.file_bytes()),
        if args.dry_run { " (dry run)" } else { "" }
    );
}

/// General keys and vocabulary of another GGUF.
#[derive(Default)]
struct FromGguf {
    general: Vec<Entry>,
    tokenizer: Vec<Entry>,
}

impl FromGguf {
    fn read(path: Option<&Path>) -> anyhow::Result<FromGguf> {
        use quantier::format::gguf::{Array, Value, keys, parse};
        const NOT_TAKEN: [&str; 3] = [keys::ARCHITECTURE, keys::FILE_TYPE, keys::QUANTIZATION_VERSION];
        let Some(path) = path else { return Ok(FromGguf::default()) };
        let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let header = parse(&file).map_err(|what| anyhow::anyhow!("{}: {what}", path.display()))?;
        let own = |value: &Value<'_>| match value {
            Value::String(s) => Value::String(s.clone().into_owned().into()),
            Value::Array(a) if a.strings().next().is_some() => Value::Array(Array::of_strings(a.strings())),
            Value::Array(a) => Value::Array(Array::of_values(a.element(), a.values())),
            other => Value::from_le_bytes(other.value_type(), &bytes(other)).expect("a value of fixed size"),
        };
        let starting = |prefix: &str| {
            let taken = header.metadata.iter().filter(|(key, _)| key.starts_with(prefix) && !NOT_TAKEN.contains(key));
            taken.map(|(key, value)| (key.to_owned(), own(value))).collect()
        };
        Ok(FromGguf { general: starting("general."), tokenizer: starting("tokenizer.") })
    }
}

fn bytes(value: &quantier::format::gguf::Value<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    bytes
}

impl Companions for FromGguf {
    fn general(&self, _: &ParameterCount) -> Result<Vec<Entry>, String> {
        Ok(self.general.clone())
    }

    fn tokenizer(&self) -> Result<Vec<Entry>, String> {
        Ok(self.tokenizer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_splits_are_powers_of_a_thousand() {
        assert_eq!(split_size("300"), Ok(300));
        assert_eq!(split_size("2G"), Ok(2_000_000_000));
        assert!(split_size("2GiB").is_err() && split_size("-1").is_err() && split_size("99999999999G").is_err());
    }
}
