//! `quantier quantize`: llama-quantize's command line.

use super::embeddings;
use super::hub::{self, Need};
use super::measure::{open, read_text};
use super::messages::{note, warning};
use super::substituted::{self, Substituted};
use super::terminal::Bar;
use super::text::{say, size};
use super::wrong_usage;
use anyhow::Context;
use quantier::convert::{self, OutType};
use quantier::input::{Input, Source};
use quantier::quantize::{
    ImatrixRequest, Job, KvOverride, OutputRequest, OverrideValue, Plan, PlannedOutput,
    SequentialRun,
};
use quantier_allocate::file_type::{CHOICES, Choice};
use quantier_allocate::recipe::{Pattern, Wishes};
use quantier_engine::evaluate::windows::Windows;
use quantier_engine::hessian::Store;
use quantier_engine::model::Options;
use quantier_gguf::types::GgmlType;
use quantier_round::{Rounding, TensorProof, spread};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NAME: &str = "quantize";
/// Length limit of keys and strings in llama.cpp's overrides.
const OVERRIDE_LIMIT: usize = 127;

/// Quantize a GGUF or a Hugging Face checkpoint, byte for byte as llama-quantize does, with the
/// same arguments
///
/// MODEL is a GGUF, the first shard of a split one, or a checkpoint: a directory with config.json,
/// safetensors and a tokenizer, a .safetensors or .bin file, or hf://ORG/NAME. A checkpoint is converted on
/// the fly. TYPE is the name or number of a preset, in upper or lower case, or COPY. The default
/// for OUT is ggml-model-TYPE.gguf in the input's directory, or in the current one for hf://.
#[derive(clap::Args)]
#[command(
    override_usage = "quantier quantize [OPTIONS] MODEL [OUT] TYPE [THREADS]",
    after_help = types_help()
)]
pub struct Args {
    /// Model, output, preset and number of threads
    #[arg(num_args = 2..=4, required = true, allow_negative_numbers = true, value_names = ["MODEL", "OUT", "TYPE", "THREADS"])]
    args: Vec<OsString>,
    /// Importance matrix, GGUF or .dat
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Rounding of weights: reference (llama-quantize's bytes), or feedback (each rounding error is
    /// compensated in the weights not yet rounded, as in GPTQ: about half the KL divergence at the
    /// same types and size)
    #[arg(long, value_name = "HOW", default_value = "reference", value_parser = rounding, requires_if("feedback", "hessians"))]
    rounding: Rounding,
    /// Input Hessians for --rounding feedback, written by `quantier imatrix --hessians DIR`
    #[arg(long, value_name = "DIR", alias = "covariance")]
    hessians: Option<PathBuf>,
    /// Sequential rounding with error feedback: calibrate each linear layer on this text's
    /// activations in the already rounded model (GPTAQ), for 10 to 20% less divergence. Takes a pass
    /// over the text per output; repeatable. Best with the text of the Hessians
    #[arg(
        long,
        value_name = "TEXT",
        requires = "hessians",
        conflicts_with = "prune_layers",
        alias = "propagate"
    )]
    sequential: Vec<PathBuf>,
    /// Two-sided rounding: output Hessians for --sequential, written by `quantier frontier` and
    /// `quantier make` to DIR/work/gradients. The rows of a matrix are rounded jointly (YAQA), for
    /// about 10% less divergence
    #[arg(long, value_name = "DIR", requires = "sequential", alias = "gradients")]
    output_hessians: Option<PathBuf>,
    /// Tokens per chunk for --sequential
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// Maximum number of chunks per text for --sequential; all by default
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Memory for the weights and activations of --sequential, in MiB; activations beyond it go to
    /// a temporary file
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u64>,
    /// Use the importance matrix only for tensors whose name contains NAME
    #[arg(long, value_name = "NAME")]
    include_weights: Vec<String>,
    /// Do not use the importance matrix for tensors whose name contains NAME
    #[arg(long, value_name = "NAME", conflicts_with = "include_weights")]
    exclude_weights: Vec<String>,
    /// Allow input that is already quantized; the result is much worse than from the original
    #[arg(long)]
    allow_requantize: bool,
    /// Keep the type of output.weight
    #[arg(long)]
    leave_output_tensor: bool,
    /// Use the preset's default type for all tensors, without a mixture
    #[arg(long)]
    pure: bool,
    /// Type of output.weight
    #[arg(long, value_name = "GGML_TYPE", value_parser = ggml_type)]
    output_tensor_type: Option<GgmlType>,
    /// Type of the token embeddings
    #[arg(long, value_name = "GGML_TYPE", value_parser = ggml_type)]
    token_embedding_type: Option<GgmlType>,
    /// Type of tensors by regular expression; repeatable, the first match wins
    #[arg(long, value_name = "NAME=GGML_TYPE")]
    tensor_type: Vec<String>,
    /// A file of NAME=GGML_TYPE entries, separated by white space
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Vec<PathBuf>,
    /// Layers to remove: 3,4,17
    #[arg(long, value_name = "L0,L1,...", value_delimiter = ',')]
    prune_layers: Vec<u32>,
    /// Write as many shards as the input has
    #[arg(long)]
    keep_split: bool,
    /// Set metadata in the output; TYPE is int, float, bool or str
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = kv_override)]
    override_kv: Vec<KvOverride>,
    /// Print the plan with exact sizes and substituted types; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Accepted for compatibility with llama-quantize; memory is always bounded
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    max_buffer_size: Option<u32>,
    /// Another output from the same pass over the input; repeatable
    #[arg(long, value_name = "TYPE=PATH")]
    also: Vec<OsString>,
    /// Fail, instead of substituting a type, if a tensor's rows do not fit its type
    #[arg(long)]
    no_fallback: bool,
    /// Type of a checkpoint's matrices before quantization; auto keeps its 16-bit type
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = super::convert::out_type)]
    outtype: OutType,
    /// The pre-tokenizer of a checkpoint's byte-level vocabulary, if it is not recognized
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  quantier quantize model-bf16.gguf model-IQ4_XS.gguf IQ4_XS
  quantier quantize --also Q8_0=model-Q8_0.gguf model-bf16.gguf model-Q5_K_M.gguf Q5_K_M
  quantier quantize --dry-run ./Qwen3-4B Q4_K_M   # the exact size
  quantier quantize --tensor-type ffn_down=q6_k ./Qwen3-4B mixed.gguf Q4_K_S";

fn types_help() -> String {
    let names: Vec<_> = CHOICES
        .iter()
        .map(|c| {
            c.file_type
                .map_or(c.name.to_owned(), |f| format!("{} ({})", c.name, f.id()))
        })
        .collect();
    format!(
        "{EXAMPLES}\n\nTypes, with their numbers: {}",
        names.join(", ")
    )
}

/// `reference` or `feedback`.
pub(super) fn rounding(name: &str) -> Result<Rounding, String> {
    let all = [Rounding::Reference, Rounding::FEEDBACK];
    all.into_iter()
        .find(|r| r.name() == name)
        .ok_or_else(|| "expected reference or feedback".into())
}

fn ggml_type(name: &str) -> Result<GgmlType, String> {
    GgmlType::from_name(name).ok_or_else(|| {
        let names: Vec<_> = GgmlType::all().map(GgmlType::name).collect();
        format!("no such type; the types are {}", names.join(", "))
    })
}

fn kv_override(text: &str) -> Result<KvOverride, String> {
    let (key, typed) = text.split_once('=').ok_or("expected KEY=TYPE:VALUE")?;
    let (kind, value) = typed.split_once(':').ok_or("expected KEY=TYPE:VALUE")?;
    if key.is_empty() || key.len() > OVERRIDE_LIMIT {
        return Err(format!("keys must have 1 to {OVERRIDE_LIMIT} bytes"));
    }
    let value = match kind {
        "int" => OverrideValue::Int(value.parse().map_err(|e| format!("'{value}': {e}"))?),
        "float" => OverrideValue::Float(value.parse().map_err(|e| format!("'{value}': {e}"))?),
        "bool" => OverrideValue::Bool(
            value
                .parse()
                .map_err(|_| format!("'{value}' is neither true nor false"))?,
        ),
        "str" if value.len() > OVERRIDE_LIMIT => {
            return Err(format!("strings must have at most {OVERRIDE_LIMIT} bytes"));
        }
        "str" => OverrideValue::Str(value.as_bytes().to_vec()),
        other => {
            return Err(format!(
                "'{other}' is not a type; the types are int, float, bool and str"
            ));
        }
    };
    Ok(KvOverride {
        key: key.to_owned(),
        value,
    })
}

pub fn run(args: Args, matches: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let (dry_run, json) = (args.dry_run, args.json);
    let conversion = convert::Job {
        out_type: args.outtype,
        pre: args.pre.clone(),
        ..convert::Job::default()
    };
    let propagation = Sequential::new(&args);
    let mut job = job(args, matches)?;
    let source = Source::open(&job.input)?;
    // A quantized checkpoint is all that there is of its model.
    job.allow_requantize |= matches!(source, Source::Checkpoint(_));
    let input = source.finite_reader(&conversion)?;
    input.notes().iter().for_each(|note| note!("{note}"));
    let mut plan = Plan::new(&input, &job)?;
    if dry_run {
        plan.warnings.iter().for_each(|what| warning!("{what}"));
        show(&plan, &job, json, None)?;
        return Ok(ExitCode::SUCCESS);
    }
    let proved = match propagation.texts.is_empty() {
        true => {
            warn(&plan);
            plan.run(&Bar::new())?
        }
        false => propagation.run(&mut plan, &job, &input)?,
    };
    show(&plan, &job, json, Some(&proved))?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `--sequential`.
struct Sequential {
    texts: Vec<PathBuf>,
    ctx_size: usize,
    chunks: Option<usize>,
    gradients: Option<PathBuf>,
    max_memory: Option<u64>,
}

impl Sequential {
    fn new(args: &Args) -> Sequential {
        let Args {
            ctx_size,
            chunks,
            max_memory,
            ..
        } = *args;
        let gradients = args.output_hessians.clone();
        Sequential {
            texts: args.sequential.clone(),
            ctx_size,
            chunks,
            gradients,
            max_memory,
        }
    }

    /// Runs the text through the model for every output, then writes the outputs.
    fn run(
        &self,
        plan: &mut Plan<'_>,
        job: &Job,
        input: &Input<'_>,
    ) -> anyhow::Result<Vec<Vec<TensorProof>>> {
        let max_memory = self.max_memory.map(|mib| mib.saturating_mul(1 << 20));
        let options = Options {
            threads: job.threads,
            max_memory,
            ..Options::default()
        };
        let opened = open(&job.input, input, &options)?;
        let mut chunks = Vec::new();
        let longest = opened.engine.hyper.longest_text(self.ctx_size);
        for path in &self.texts {
            if !opened.engine.has_output() {
                let texts = embeddings::separate(&opened, path, longest)?.texts;
                chunks.extend(texts.into_iter().take(self.chunks.unwrap_or(usize::MAX)));
                continue;
            }
            let tokens = opened.tokenizer.encode(&read_text(path)?, true, false);
            let windows = Windows::of_text(&tokens, self.ctx_size, self.chunks, opened.chunk_bos());
            let windows = windows.with_context(|| path.display().to_string())?;
            chunks.extend((0..windows.chunks()).map(|chunk| windows.input(chunk)));
        }
        let gradients = self.gradients.as_deref().map(Store::open).transpose()?;
        warn(plan);
        let with = SequentialRun {
            engine: &opened.engine,
            chunks: &chunks,
            is_part: false,
            output_hessians: gradients.as_ref(),
            file: None,
            resume: None,
        };
        let bar = Bar::new();
        for output in 0..plan.outputs.len() {
            plan.round_sequentially(output, &with, &bar)?;
        }
        Ok(plan.run(&bar)?)
    }
}

/// Turns arguments into a job.
fn job(args: Args, matches: &clap::ArgMatches) -> anyhow::Result<Job> {
    let named = |text: &OsString| text.to_str().and_then(Choice::parse);
    let model = hub::model(Path::new(&args.args[0]), Need::Everything)?;
    let input = model.path;
    let (path, choice, threads) = match (named(&args.args[1]), args.args.get(2)) {
        (Some(choice), threads) if args.args.len() <= 3 => {
            let file = format!(
                "ggml-model-{}{}",
                choice.name,
                if args.keep_split { "" } else { ".gguf" }
            );
            let path = match (&model.address, input.is_dir()) {
                (Some(_), _) => PathBuf::from(file),
                (None, true) => input.join(file),
                (None, false) => input.with_file_name(file),
            };
            (path, choice, threads)
        }
        (Some(_), _) => wrong_usage(NAME, "too many arguments after the type"),
        (None, None) => wrong_usage(
            NAME,
            format!(
                "'{}' is not a type, and no type follows it",
                args.args[1].display()
            ),
        ),
        (None, Some(text)) => match named(text) {
            Some(choice) => (PathBuf::from(&args.args[1]), choice, args.args.get(3)),
            None => wrong_usage(
                NAME,
                format!("'{}' is not a type; --help lists the types", text.display()),
            ),
        },
    };
    let threads = match threads.map(|t| t.to_str().unwrap_or_default().parse::<i32>()) {
        None => 0,
        Some(Ok(n)) => n.max(0) as usize,
        Some(Err(_)) => wrong_usage(NAME, "the number of threads is not a number"),
    };
    let wishes = Wishes {
        file_type: choice.file_type,
        pure: args.pure,
        leave_output: args.leave_output_tensor,
        output_type: args.output_tensor_type,
        embedding_type: args.token_embedding_type,
        overrides: overrides(&args, matches)?,
        ..Wishes::default()
    };
    let without_suffix = |path: PathBuf| match path.extension() {
        Some(e) if args.keep_split && e == "gguf" => path.with_extension(""),
        _ => path,
    };
    let rounding = match args.sequential.is_empty() {
        true => args.rounding,
        false => Rounding::Feedback {
            sequential: true,
            two_sided: args.output_hessians.is_some(),
        },
    };
    let mut outputs = vec![OutputRequest {
        path: without_suffix(path),
        wishes: wishes.clone(),
        rounding,
        lossless: false,
    }];
    for also in &args.also {
        let parsed = also
            .to_str()
            .and_then(|s| s.split_once('='))
            .map(|(t, path)| (Choice::parse(t), path));
        match parsed {
            Some((Some(choice), path)) if !path.is_empty() => outputs.push(OutputRequest {
                path: without_suffix(path.into()),
                wishes: Wishes {
                    file_type: choice.file_type,
                    ..wishes.clone()
                },
                rounding,
                lossless: false,
            }),
            _ => wrong_usage(NAME, format!("'{}' is not TYPE=PATH", also.display())),
        }
    }
    let imatrix = args.imatrix.map(|path| ImatrixRequest {
        path,
        shown: None,
        include: args.include_weights,
        exclude: args.exclude_weights,
    });
    Ok(Job {
        input,
        outputs,
        imatrix,
        hessians: args.hessians,
        allow_requantize: args.allow_requantize,
        keep_split: args.keep_split,
        no_fallback: args.no_fallback,
        kv_overrides: args.override_kv,
        prune_layers: args.prune_layers,
        threads,
    })
}

/// `--tensor-type` and `--tensor-type-file` in command-line order, since the first match wins.
fn overrides(args: &Args, matches: &clap::ArgMatches) -> anyhow::Result<Vec<(Pattern, GgmlType)>> {
    let indices = |id| matches.indices_of(id).into_iter().flatten();
    let mut typed: Vec<(usize, Vec<String>)> = Vec::new();
    for (index, text) in indices("tensor_type").zip(&args.tensor_type) {
        typed.push((index, vec![text.clone()]));
    }
    for (index, path) in indices("tensor_type_file").zip(&args.tensor_type_file) {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        typed.push((
            index,
            text.split_ascii_whitespace().map(str::to_owned).collect(),
        ));
    }
    typed.sort_by_key(|(index, _)| *index);
    let parse = |text: String| {
        tensor_type(&text)
            .unwrap_or_else(|e| wrong_usage(NAME, format!("'{text}' is not NAME=GGML_TYPE: {e}")))
    };
    Ok(typed
        .into_iter()
        .flat_map(|(_, texts)| texts)
        .map(parse)
        .collect())
}

/// As in llama-quantize, the name ends at the first `=` and is lower-cased.
fn tensor_type(text: &str) -> Result<(Pattern, GgmlType), String> {
    let (name, t) = text.split_once('=').ok_or("'=' is missing")?;
    if name.is_empty() {
        return Err("the name is missing".into());
    }
    Ok((Pattern::new(&name.to_ascii_lowercase())?, ggml_type(t)?))
}

/// Prints notes and warnings before a long run.
fn warn(plan: &Plan<'_>) {
    plan.warnings.iter().for_each(|what| warning!("{what}"));
    plan.few_tokens().iter().for_each(|what| warning!("{what}"));
    for output in &plan.outputs {
        let plain: Vec<_> = output.without_feedback().map(|t| &*t.name).collect();
        if !plain.is_empty() {
            note!(
                "rounded without error feedback, for lack of an input Hessian: {}",
                plain.join(", ")
            );
        }
        substituted::warn(output.substituted().map(|t| Substituted {
            name: &t.name,
            row_len: t.shape.row_len(),
            wanted: t.chosen.wanted,
            target: t.chosen.target,
        }));
    }
}

/// Prints the plan or, with `proved`, the result.
fn show(
    plan: &Plan<'_>,
    job: &Job,
    as_json: bool,
    proved: Option<&[Vec<TensorProof>]>,
) -> anyhow::Result<()> {
    let dry_run = proved.is_none();
    let of_output = |i: usize| {
        proved
            .and_then(|all| all.get(i))
            .map_or(&[][..], Vec::as_slice)
    };
    if as_json {
        let outputs: Vec<_> = plan
            .outputs
            .iter()
            .enumerate()
            .map(|(i, o)| output_json(o, of_output(i)))
            .collect();
        return say!(
            "{}",
            json!({ "input": job.input, "input_bytes": plan.input_bytes(), "written": !dry_run, "outputs": outputs })
        );
    }
    for (i, output) in plan.outputs.iter().enumerate() {
        if dry_run {
            show_tensors(output)?;
        }
        let paths: Vec<_> = output.paths().map(|p| p.display().to_string()).collect();
        let name = output.file_type.map_or("COPY", |f| f.name());
        say!(
            "{}: {name}, {}, {:.3} bpw{}",
            paths.join(", "),
            size(output.file_bytes()),
            output.bpw(),
            if dry_run { " (dry run)" } else { "" }
        )?;
        let missing: Vec<_> = output.imatrix_missing().map(|t| &*t.name).collect();
        if !missing.is_empty() {
            say!("  requires an importance matrix for {}", missing.join(", "))?;
        }
        if let Some(text) = feedback_text(of_output(i)) {
            say!("  {text}")?;
        }
    }
    Ok(())
}

/// The effect of error feedback in one line; --json has it per tensor.
fn feedback_text(proved: &[TensorProof]) -> Option<String> {
    let ratios: Vec<f64> = proved.iter().filter_map(|p| p.proof.ratio()).collect();
    let Some([mean, least, most]) = spread(&ratios) else {
        return (!proved.is_empty()).then(|| {
            format!(
                "{} tensors rounded with error feedback, not validated: no chunk was held out",
                proved.len()
            )
        });
    };
    let (rows, kept) = proved.iter().fold((0, 0), |(rows, kept), p| {
        (rows + p.proof.rows, kept + p.proof.by_reference)
    });
    Some(format!(
        "{} tensors rounded with error feedback: on held-out text, their output error is {mean:.2} times that of plain \
         rounding ({least:.2} to {most:.2}); {kept} of {rows} rows were better with plain rounding and keep it",
        proved.len()
    ))
}

fn show_tensors(output: &PlannedOutput<'_>) -> anyhow::Result<()> {
    for t in &output.tensors {
        let note = if t.chosen.wanted == t.chosen.target {
            String::new()
        } else {
            format!("  in place of {}", t.chosen.wanted)
        };
        say!(
            "  {:<44} {:<22} {:>7} -> {:<7} {:>12}{note}",
            t.name,
            t.shape,
            t.from,
            t.chosen.target,
            size(t.bytes_after)
        )?;
    }
    Ok(())
}

fn output_json(output: &PlannedOutput<'_>, proved: &[TensorProof]) -> serde_json::Value {
    let tensors: Vec<_> = output
        .tensors
        .iter()
        .map(|t| {
            json!({
                "name": t.name, "role": t.chosen.role.label(), "shape": t.shape.dims(), "from": t.from.name(),
                "wanted": t.chosen.wanted.name(), "to": t.chosen.target.name(), "bytes_before": t.bytes_before,
                "bytes_after": t.bytes_after, "importance": t.has_importance, "feedback": t.has_feedback,
            })
        })
        .collect();
    json!({
        "paths": output.paths().map(|p: &PathBuf| p.as_path()).collect::<Vec<&Path>>(),
        "file_type": output.file_type.map_or("COPY", |f| f.name()), "file_bytes": output.file_bytes(),
        "tensor_bytes": output.tensor_bytes(), "bpw": output.bpw(), "imatrix_missing": output.imatrix_missing().map(|t| &t.name).collect::<Vec<_>>(),
        "substituted": output.substituted().map(|t| &t.name).collect::<Vec<_>>(), "tensors": tensors,
        "rounding": output.rounding.name(), "feedback": proved,
    })
}
