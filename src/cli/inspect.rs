//! `quantier inspect`.

use super::measure::{input, source};
use super::messages::note;
use super::text::{count, say, size};
use super::values::{shortened, value_json};
use quantier::input::{Input, Source};
use quantier_arch::role::Role;
use quantier_gguf::gguf::{Endian, Metadata, Model, TensorInfo};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show a model's metadata, tensors, sizes and bits per weight by role
///
/// A Hugging Face checkpoint is shown as `quantier convert` would write it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  quantier inspect model-Q4_K_M.gguf
  quantier inspect --json model.gguf | jq -r '.metadata.\"tokenizer.chat_template\".value'
  quantier inspect hf://Qwen/Qwen3-0.6B")]
pub struct Args {
    /// A GGUF file (any shard of a split one), a Hugging Face directory, a .safetensors or .bin file, or
    /// hf://ORG/NAME
    model: PathBuf,
    /// Print everything as JSON, arrays in full
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Sums over a group of tensors.
#[derive(Default)]
struct Sum {
    tensors: u64,
    weights: u64,
    bytes: u64,
    types: BTreeMap<&'static str, u64>,
}

impl Sum {
    fn bpw(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights.max(1) as f64
    }
}

/// A model's content, independent of its file format.
struct Content<'a> {
    paths: Vec<&'a Path>,
    /// One line per file of a GGUF, or one for a checkpoint.
    heads: Vec<String>,
    /// Version and alignment of a GGUF.
    version: Option<(u32, u64)>,
    metadata: &'a Metadata<'a>,
    tensors: Vec<Tensor<'a>>,
}

struct Tensor<'a> {
    info: &'a TensorInfo<'a>,
    shard: usize,
    offset: u64,
}

impl<'a> Content<'a> {
    fn of_gguf(model: &'a Model) -> Content<'a> {
        let paths = model.files.paths();
        let head = |(header, path): (&quantier_gguf::gguf::Header<'_>, &&Path)| {
            let (keys, tensors) = (header.metadata.len(), header.tensors.len());
            format!(
                "{}: GGUF version {}{}, {keys} keys, {tensors} tensors",
                path.display(),
                header.version,
                match header.endian {
                    Endian::Little => "",
                    Endian::Big => ", big-endian",
                }
            )
        };
        let tensors = model.tensors.iter().map(|t| Tensor {
            info: &t.info,
            shard: t.shard,
            offset: t.offset,
        });
        Content {
            heads: model.headers.iter().zip(&paths).map(head).collect(),
            paths,
            version: model
                .headers
                .first()
                .map(|header| (header.version, header.alignment)),
            metadata: model.metadata(),
            tensors: tensors.collect(),
        }
    }

    fn of_checkpoint(dir: &Path, input: &'a Input<'a>) -> Content<'a> {
        let (metadata, tensors) = (input.metadata(), &input.tensors);
        let (name, keys, n) = (dir.display(), metadata.len(), tensors.len());
        let tensors = tensors.iter().map(|t| Tensor {
            info: &t.info,
            shard: t.shard,
            offset: t.offset,
        });
        Content {
            heads: vec![format!(
                "{name}: checkpoint; as GGUF: {keys} keys, {n} tensors"
            )],
            paths: input.paths(),
            version: None,
            metadata,
            tensors: tensors.collect(),
        }
    }
}

fn sums(content: &Content<'_>) -> (Sum, BTreeMap<Role, Sum>) {
    let mut all = Sum::default();
    let mut by_role: BTreeMap<Role, Sum> = BTreeMap::new();
    for tensor in &content.tensors {
        let info = tensor.info;
        for sum in [&mut all, by_role.entry(Role::of(&info.name)).or_default()] {
            sum.tensors += 1;
            sum.weights += info.shape.elements();
            sum.bytes += info.bytes();
            *sum.types.entry(info.ggml_type.name()).or_insert(0) += 1;
        }
    }
    (all, by_role)
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let source = source(&args.model)?;
    match &source {
        Source::Gguf(files) => show(&Content::of_gguf(&Model::parse(files)?), args)?,
        Source::Checkpoint(checkpoint) => {
            let input = input(&source)?;
            input.notes().iter().for_each(|note| note!("{note}"));
            show(&Content::of_checkpoint(&checkpoint.dir, &input), args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(content: &Content<'_>, args: &Args) -> anyhow::Result<()> {
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&to_json(content))?),
        false => print(content, args),
    }
}

fn print(content: &Content<'_>, args: &Args) -> anyhow::Result<()> {
    let (all, by_role) = sums(content);
    content.heads.iter().try_for_each(|head| say!("{head}"))?;
    say!("\nMetadata")?;
    for (key, value) in content.metadata.iter() {
        say!(
            "  {key:<44} {:<4} {}",
            value.value_type().name(),
            shortened(value)
        )?;
    }
    say!("\nTensors by role")?;
    let widest = by_role.keys().map(|role| role.label().len()).max();
    let width = widest.unwrap_or(0).max(12);
    say!(
        "  {:<width$} {:>7} {:>15} {:>12} {:>7}  types",
        "role",
        "tensors",
        "weights",
        "size",
        "bpw"
    )?;
    let row = |name: &str, sum: &Sum| -> anyhow::Result<()> {
        let types: Vec<_> = sum
            .types
            .iter()
            .map(|(t, n)| format!("{n} x {t}"))
            .collect();
        say!(
            "  {name:<width$} {:>7} {:>15} {:>12} {:>7.3}  {}",
            sum.tensors,
            count(sum.weights),
            size(sum.bytes),
            sum.bpw(),
            types.join(", ")
        )
    };
    by_role
        .iter()
        .try_for_each(|(role, sum)| row(role.label(), sum))?;
    row("all", &all)?;
    if args.tensors {
        say!("\nTensors")?;
        for Tensor { info, .. } in &content.tensors {
            say!(
                "  {:<44} {:<22} {:<8} {:>12}",
                info.name,
                info.shape,
                info.ggml_type,
                size(info.bytes())
            )?;
        }
    }
    Ok(())
}

fn to_json(content: &Content<'_>) -> serde_json::Value {
    let (all, by_role) = sums(content);
    let sum_json = |sum: &Sum| json!({ "tensors": sum.tensors, "weights": sum.weights, "bytes": sum.bytes, "bpw": sum.bpw(), "types": sum.types });
    let metadata: Map<_, _> = content
        .metadata
        .iter()
        .map(|(key, value)| {
            (
                key.to_owned(),
                json!({ "type": value.value_type().name(), "value": value_json(value) }),
            )
        })
        .collect();
    let tensors: Vec<_> = content
        .tensors
        .iter()
        .map(|t| {
            json!({
                "name": t.info.name, "role": Role::of(&t.info.name).label(), "shape": t.info.shape.dims(),
                "type": t.info.ggml_type.name(), "bytes": t.info.bytes(), "shard": t.shard, "offset": t.offset,
            })
        })
        .collect();
    let roles: Map<_, _> = by_role
        .iter()
        .map(|(role, sum)| (role.label().to_owned(), sum_json(sum)))
        .collect();
    json!({
        "files": content.paths, "version": content.version.map(|v| v.0), "alignment": content.version.map(|v| v.1),
        "metadata": metadata, "all": sum_json(&all), "roles": roles, "tensors": tensors,
    })
}
