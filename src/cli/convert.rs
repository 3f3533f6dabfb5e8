//! `quantier convert`.

use super::hub::{self, Need};
use super::messages::{note, warning};
use super::terminal::Bar;
use super::text::{say, size};
use anyhow::bail;
use quantier::convert::{Checkpoint, Job, OutType, Plan};
use quantier_arch::Nextn;
use quantier_gguf::gguf::Endian;
use quantier_hub::Address;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Convert a Hugging Face checkpoint to GGUF, byte for byte as convert_hf_to_gguf.py does
///
/// MODEL is a directory with config.json, weights (model*.safetensors, else pytorch_model*.bin) and a
/// tokenizer, one file of weights with config.json next to it, or hf://ORG/NAME, which is downloaded
/// first.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier convert ./Qwen3-4B -o model-bf16.gguf
  quantier convert ./Qwen3-4B --outtype q8_0 -o '{ftype}.gguf'
  quantier convert hf://Qwen/Qwen3-0.6B")]
pub struct Args {
    /// The checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The output file; {ftype} in the name is replaced by the output type. In a directory, the file
    /// is named after the model. Default: the model's directory, or the current one for hf://
    #[arg(short, long, value_name = "FILE")]
    outfile: Option<PathBuf>,
    /// Type of the weight matrices; auto keeps the checkpoint's 16-bit type. tq1_0 and tq2_0 are for
    /// models trained with ternary weights
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = out_type)]
    outtype: OutType,
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
    let model = match args.remote {
        true => hub::remote(&args.model, need)?,
        false => hub::model(&args.model, need)?,
    };
    let checkpoint = match args.mistral_format {
        true => Checkpoint::open_mistral(&model.path)?,
        false => Checkpoint::open(&model.path)?,
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
    let job = Job {
        output: args.outfile.clone().unwrap_or(dir),
        metadata: args.metadata.clone(),
        model_name: args.model_name.clone(),
        pre: args.pre.clone(),
        no_community_template: args.disable_mistral_community_chat_template,
        out_type: args.outtype,
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
    };
    let plan = Plan::new(&checkpoint, &job)?;
    if !args.dry_run {
        warn(&plan);
        let bar = Bar::new();
        plan.run(&bar)?;
        drop(bar);
        infinite(&plan);
    }
    show(&plan, args)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints notes and warnings before a long run.
fn warn(plan: &Plan<'_>) {
    plan.notes.iter().for_each(|note| note!("{note}"));
    for t in plan.tensors.iter().filter(|t| t.wanted != t.target) {
        let (name, len, wanted, target) = (&t.name, t.shape.row_len(), t.wanted, t.target);
        warning!("{name}: {wanted} cannot hold rows of {len} weights; {target} is used instead");
    }
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
