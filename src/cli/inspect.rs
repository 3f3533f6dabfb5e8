//! `quantier inspect`.

use super::text::{count, say, size};
use super::values::{shortened, value_json};
use quantier::format::gguf::{Files, Model};
use quantier::plan::role::Role;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show what a GGUF holds: metadata, tensors, sizes and bits per weight by role
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file, or any shard of a split one
    model: PathBuf,
    /// Print everything as JSON, arrays in full
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Sums over tensors that have something in common.
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

fn sums(model: &Model<'_>) -> (Sum, BTreeMap<Role, Sum>) {
    let mut all = Sum::default();
    let mut by_role: BTreeMap<Role, Sum> = BTreeMap::new();
    for tensor in &model.tensors {
        let info = &tensor.info;
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
    let files = Files::open(&args.model)?;
    let model = Model::parse(&files)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&to_json(&model))?)?;
    } else {
        print(&model, args)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(model: &Model<'_>, args: &Args) -> anyhow::Result<()> {
    let (all, by_role) = sums(model);
    for (header, path) in model.headers.iter().zip(model.files.paths()) {
        say!(
            "{}: GGUF version {}, {} keys, {} tensors",
            path.display(),
            header.version,
            header.metadata.len(),
            header.tensors.len()
        )?;
    }
    say!("\nMetadata")?;
    for (key, value) in model.metadata().iter() {
        say!("  {key:<44} {:<4} {}", value.value_type().name(), shortened(value))?;
    }
    say!("\nTensors by role")?;
    say!("  {:<12} {:>7} {:>15} {:>12} {:>7}  types", "role", "tensors", "weights", "size", "bpw")?;
    let row = |name: &str, sum: &Sum| -> anyhow::Result<()> {
        let types: Vec<_> = sum.types.iter().map(|(t, n)| format!("{n} x {t}")).collect();
        say!(
            "  {name:<12} {:>7} {:>15} {:>12} {:>7.3}  {}",
            sum.tensors,
            count(sum.weights),
            size(sum.bytes),
            sum.bpw(),
            types.join(", ")
        )
    };
    by_role.iter().try_for_each(|(role, sum)| row(role.label(), sum))?;
    row("all", &all)?;
    if args.tensors {
        say!("\nTensors")?;
        for tensor in &model.tensors {
            let info = &tensor.info;
            say!("  {:<44} {:<22} {:<8} {:>12}", info.name, info.shape, info.ggml_type, size(info.bytes()))?;
        }
    }
    Ok(())
}

fn to_json(model: &Model<'_>) -> serde_json::Value {
    let (all, by_role) = sums(model);
    let sum_json = |sum: &Sum| json!({ "tensors": sum.tensors, "weights": sum.weights, "bytes": sum.bytes, "bpw": sum.bpw(), "types": sum.types });
    let metadata: Map<_, _> = model
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), json!({ "type": value.value_type().name(), "value": value_json(value) })))
        .collect();
    let tensors: Vec<_> = model
        .tensors
        .iter()
        .map(|t| {
            json!({
                "name": t.info.name, "role": Role::of(&t.info.name).label(), "shape": t.info.shape.dims(),
                "type": t.info.ggml_type.name(), "bytes": t.info.bytes(), "shard": t.shard, "offset": t.offset,
            })
        })
        .collect();
    let roles: Map<_, _> = by_role.iter().map(|(role, sum)| (role.label().to_owned(), sum_json(sum))).collect();
    json!({
        "files": model.files.paths(), "version": model.headers[0].version, "alignment": model.headers[0].alignment,
        "metadata": metadata, "all": sum_json(&all), "roles": roles, "tensors": tensors,
    })
}
