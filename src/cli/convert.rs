//! `quantier convert`.

use super::hub::{self, Need};
use super::messages::{note, warning};
use super::substituted::{self, Substituted};
use super::terminal::Bar;
use super::text::{say, size};
use anyhow::{Context, bail};
use quantier::convert::{Adapter, Checkpoint, Job, OutType, Plan};
use quantier_arch::Nextn;
use quantier_gguf::gguf::Endian;
use quantier_hub::Address;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Convert a Hugging Face checkpoint to GGUF, byte for byte as convert_hf_to_gguf.py does
///
/// MODEL is a directory with config.json, weights (model*.safetensors, else pytorch_model*.bin) and a
/// tokenizer, one file of weights with config.json next to it, or hf://ORG/NAME, which is downloaded
/// first.
///
/// The directory of a PEFT adapter (adapter_config.json) becomes a LoRA adapter, byte for byte as
/// convert_lora_to_gguf.py writes it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier convert ./Qwen3-4B -o model-bf16.gguf
  quantier convert ./Qwen3-4B --outtype q8_0 -o '{ftype}.gguf'
  quantier convert hf://Qwen/Qwen3-0.6B
  quantier convert ./my-adapter --base ./Qwen3-4B -o adapter.gguf
  quantier convert ./Qwen3-4B_eagle3 --target-model-dir ./Qwen3-4B -o eagle3-Qwen3-4B.gguf")]
pub struct Args {
    /// The checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The output file; {ftype} in the name is replaced by the output type. In a directory, the file
    /// is named after the model. Default: the model's directory, or the current one for hf://
    #[arg(short, long, value_name = "FILE")]
    outfile: Option<PathBuf>,
    /// Type of the weight matrices; auto keeps the checkpoint's 16-bit type. tq1_0 and tq2_0 are for
    /// models trained with ternary weights. Default: auto, of adapters f32
    #[arg(long, value_name = "TYPE", value_parser = out_type)]
    outtype: Option<OutType>,
    /// The base model of an adapter: a directory with config.json, or hf://ORG/NAME; weights are not
    /// read. Default: the base model that the adapter names
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Merge a LoRA adapter into the model: the directory of a PEFT adapter (adapter_config.json)
    #[arg(long, value_name = "DIR")]
    lora: Option<PathBuf>,
    /// Maximum number of tensors per file; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    split_max_tensors: u64,
    /// Maximum bytes of tensors per file; K, M and G are powers of 1000; 0 for no limit
    #[arg(long, value_name = "N[K|M|G]", default_value = "0", value_parser = split_size)]
    split_max_size: u64,
    /// Leave the first file without tensors; they begin in a second one
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Print the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// MODEL is ORG/NAME on the Hub: as hf://ORG/NAME, and the file is named after both
    #[arg(long)]
    remote: bool,
    /// Accepted for compatibility with convert_hf_to_gguf.py; memory is always bounded
    #[arg(long)]
    use_temp_file: bool,
    /// MODEL is in Mistral's own format: params.json, consolidated*.safetensors, and tekken.json or
    /// tokenizer.model
    #[arg(long)]
    mistral_format: bool,
    /// With --mistral-format: write no chat template if the model brings none
    #[arg(long, requires = "mistral_format")]
    disable_mistral_community_chat_template: bool,
    /// Write only metadata and vocabulary
    #[arg(long)]
    vocab_only: bool,
    /// Write for big-endian machines (s390x, for example), with --outtype f16 or f32
    #[arg(long)]
    bigendian: bool,
    /// The model that a draft model (EAGLE-3, DFlash, DSpark) drafts for: a directory with config.json and
    /// tokenizer, or hf://ORG/NAME; weights are not read
    #[arg(long, value_name = "DIR")]
    target_model_dir: Option<PathBuf>,
    /// Write only the projector of a model that sees or hears, the file that llama.cpp takes as --mmproj; its name
    /// begins with mmproj-
    #[arg(long, conflicts_with_all = ["mistral_format", "lora"])]
    mmproj: bool,
    /// Write only the blocks for multi-token prediction, as a draft model; its name begins with mtp-
    #[arg(long)]
    mtp: bool,
    /// Leave out the blocks for multi-token prediction
    #[arg(long, alias = "no-mtp", conflicts_with = "mtp")]
    no_nextn: bool,
    /// Make matrices Q8_0 that the checkpoint stores as FP8
    #[arg(long)]
    fp8_as_q8: bool,
    /// Multiply NVFP4 and MXFP4 weights by their scales and write them in --outtype, instead of keeping
    /// them as they are
    #[arg(long)]
    widen: bool,
    /// Keep the dense modules behind the pooling of EmbeddingGemma
    #[arg(long)]
    sentence_transformers_dense_modules: bool,
    /// Fail on weights that are NaN or infinite, or become so in the output's type
    #[arg(long)]
    check: bool,
    /// Number of threads; 0 for one per core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// A JSON file with general.* keys, which override the checkpoint's
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// The model's name, overriding all other sources
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// The pre-tokenizer of a byte-level vocabulary, if it is not recognized
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
}

pub(super) fn out_type(name: &str) -> Result<OutType, String> {
    OutType::NAMES
        .iter()
        .find(|(type_name, _)| *type_name == name)
        .map(|(_, t)| *t)
        .ok_or_else(|| {
            let names: Vec<_> = OutType::NAMES.iter().map(|(name, _)| *name).collect();
            format!("no such type; the types are {}", names.join(", "))
        })
}

pub(super) fn split_size(text: &str) -> Result<u64, String> {
    let units = [("K", 1000), ("M", 1000 * 1000), ("G", 1000 * 1000 * 1000)];
    let with_unit = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (digits, factor) = with_unit.unwrap_or((text, 1));
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| "expected a number, optionally followed by K, M or G".into())
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let need = if args.vocab_only {
        Need::Vocabulary
    } else {
        Need::Everything
    };
    if args.use_temp_file {
        note!("--use-temp-file has no effect: memory is always bounded");
    }
    if args.mistral_format && (args.remote || Address::is_meant(&args.model)) {
        bail!(
            "--mistral-format takes a directory; download the model first: hf download ORG/NAME --local-dir DIR"
        );
    }
    if Adapter::is_one(&args.model) {
        return run_adapter(args);
    }
    if args.base.is_some() {
        bail!(
            "--base is for adapters, and {} has no adapter_config.json",
            args.model.display()
        );
    }
    let model = match args.remote {
        true => hub::remote(&args.model, need)?,
        false => hub::model(&args.model, need)?,
    };
    let checkpoint = match (args.mistral_format, args.mmproj) {
        (true, _) => Checkpoint::open_mistral(&model.path)?,
        (_, true) => Checkpoint::open_projector(&model.path)?,
        _ => Checkpoint::open(&model.path)?,
    };
    let checkpoint = match &args.lora {
        Some(adapter) => checkpoint.merged(Adapter::open(adapter)?)?,
        None => checkpoint,
    };
    let dir = match (&model.address, model.path.is_dir()) {
        (Some(address), _) if args.remote => {
            let name = address.repository.replace('/', "-");
            PathBuf::from(format!("{name}-{{ftype}}.gguf"))
        }
        (Some(_), _) => PathBuf::from("."),
        (None, true) => model.path,
        (None, false) => model.path.with_file_name(""),
    };
    let target = args.target_model_dir.as_deref();
    let target = target.map(|target| hub::model(target, Need::Vocabulary));
    let job = Job {
        target: target.transpose()?.map(|target| target.path),
        ..job(args, dir, OutType::Auto)
    };
    let plan = match args.mmproj {
        true => Plan::of_projector(&checkpoint, &job)?,
        false => Plan::new(&checkpoint, &job)?,
    };
    write(&plan, args)
}

/// Converts an adapter.
fn run_adapter(args: &Args) -> anyhow::Result<ExitCode> {
    if args.mistral_format || args.remote || args.lora.is_some() || args.mmproj {
        bail!(
            "--mistral-format, --remote, --lora and --mmproj are for models, and this is a LoRA adapter"
        );
    }
    let adapter = Adapter::open(&args.model)?;
    let base = match (&args.base, adapter.base()) {
        (Some(base), _) => hub::model(base, Need::Vocabulary)?,
        (None, Some(name)) if Path::new(name).is_dir() => {
            hub::model(Path::new(name), Need::Vocabulary)?
        }
        (None, Some(name)) => {
            hub::remote(Path::new(name), Need::Vocabulary).with_context(|| {
                format!("the base model of the adapter is {name}; name its directory: --base DIR")
            })?
        }
        (None, None) => bail!(
            "{} does not name the base model; name the directory with its config.json: --base DIR",
            args.model.display()
        ),
    };
    let based = adapter.on(&base.path)?;
    let job = job(args, args.model.clone(), OutType::F32);
    write(&Plan::of_adapter(&based, &job)?, args)
}

/// The job with a default output and type.
fn job(args: &Args, output: PathBuf, out_type: OutType) -> Job {
    Job {
        output: args.outfile.clone().unwrap_or(output),
        metadata: args.metadata.clone(),
        model_name: args.model_name.clone(),
        pre: args.pre.clone(),
        no_community_template: args.disable_mistral_community_chat_template,
        out_type: args.outtype.unwrap_or(out_type),
        split_max_tensors: args.split_max_tensors,
        split_max_size: args.split_max_size,
        no_tensor_first_split: args.no_tensor_first_split,
        vocab_only: args.vocab_only,
        check: args.check,
        threads: args.threads,
        endian: match args.bigendian {
            true => Endian::Big,
            false => Endian::Little,
        },
        nextn: match (args.mtp, args.no_nextn) {
            (true, _) => Nextn::Alone,
            (_, true) => Nextn::LeftOut,
            _ => Nextn::Kept,
        },
        fp8_as_q8: args.fp8_as_q8,
        widen: args.widen,
        dense_modules: args.sentence_transformers_dense_modules,
        target: None,
    }
}

/// Writes the files and shows the result.
fn write(plan: &Plan<'_>, args: &Args) -> anyhow::Result<ExitCode> {
    if !args.dry_run {
        warn(plan);
        let bar = Bar::new();
        plan.run(&bar)?;
        drop(bar);
        infinite(plan);
    }
    show(plan, args)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints notes and warnings before a long run.
fn warn(plan: &Plan<'_>) {
    plan.notes.iter().for_each(|note| note!("{note}"));
    let others = plan.tensors.iter().filter(|t| t.wanted != t.target);
    substituted::warn(others.map(|t| Substituted {
        name: &t.name,
        row_len: t.shape.row_len(),
        wanted: t.wanted,
        target: t.target,
    }));
}

/// Warns of weights that became infinite.
fn infinite(plan: &Plan<'_>) {
    /// Maximum number of tensors named.
    const NAMED: usize = 8;
    let found = plan.too_large();
    found
        .iter()
        .take(NAMED)
        .for_each(|weight| warning!("{weight}"));
    if found.len() > NAMED {
        warning!("and {} more tensors with such weights", found.len() - NAMED);
    }
}

fn show(plan: &Plan<'_>, args: &Args) -> anyhow::Result<()> {
    if args.json {
        let tensors: Vec<_> = plan
            .tensors
            .iter()
            .map(|t| {
                json!({ "name": t.name, "shape": t.shape.dims(), "wanted": t.wanted.name(), "to": t.target.name(),
                    "bytes": t.bytes() })
            })
            .collect();
        say!(
            "{}",
            json!({ "input": args.model, "written": !args.dry_run, "architecture": plan.architecture.name,
                "file_type": plan.file_type.name(), "paths": plan.paths().collect::<Vec<_>>(),
                "file_bytes": plan.file_bytes(), "tensor_bytes": plan.tensor_bytes(), "tensors": tensors })
        )?;
        return Ok(());
    }
    if args.dry_run {
        for t in &plan.tensors {
            say!(
                "  {:<44} {:<22} {:>5} {:>12}",
                t.name,
                t.shape,
                t.target,
                size(t.bytes())
            )?;
        }
    }
    let paths: Vec<_> = plan.paths().map(|p| p.display().to_string()).collect();
    say!(
        "{}: {}, {}, {} tensors, {}{}",
        paths.join(", "),
        plan.architecture.name,
        plan.file_type.name(),
        plan.tensors.len(),
        size(plan.file_bytes()),
        if args.dry_run { " (dry run)" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_splits_are_powers_of_a_thousand() {
        assert_eq!(split_size("300"), Ok(300));
        assert_eq!(split_size("2G"), Ok(2_000_000_000));
        assert!(
            split_size("2GiB").is_err()
                && split_size("-1").is_err()
                && split_size("99999999999G").is_err()
        );
    }
}
