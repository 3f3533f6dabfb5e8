//! The quantization declared by a checkpoint, in config.json and hf_quant_config.json.

use super::fp4::Kind;
use crate::arch::Config;
use crate::arch::wrapper::Part;
use crate::convert::checkpoint::Source;
use crate::format::json;
use crate::format::safetensors::Dtype;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// ModelOpt's file next to config.json.
const SIDE_FILE: &str = "hf_quant_config.json";
const CONFIG: &str = "quantization_config";
/// The format of NVFP4 in compressed-tensors.
const NVFP4_PACKED: &str = "nvfp4-pack-quantized";
/// That of MXFP4, as of Kimi K3.
const MXFP4_PACKED: &str = "mxfp4-pack-quantized";

/// The quantization of a checkpoint.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) method: Method,
    /// Rows and columns per scale.
    pub(super) block: Option<Vec<u64>>,
    /// The groups of tensors of compressed-tensors.
    pub(super) groups: Vec<Group>,
    /// Columns per scale.
    pub(super) group_size: Option<u64>,
    pub(super) fp4: Fp4Types,
}

/// Names and shapes of the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    /// `NAME_scale_inv` next to `NAME`; Mistral's `qscale_weight`.
    Fp8,
    CompressedTensors,
    ModelOpt,
    /// `qweight`, packed along the input, zero points one too small in the first version.
    Gptq {
        zero_offset: u8,
    },
    /// `qweight`, packed along the output.
    Awq,
    BitNet,
    /// gpt-oss.
    Mxfp4,
    /// `NAME.scale` next to `NAME.weight`, without a word in the config: DeepSeek V4.
    BesideWeights,
}

/// Classes whose checkpoints are quantized without a declaration, with rows and columns per scale.
const UNDECLARED: &[(&str, Method, [u64; 2])] =
    &[("DeepseekV4ForCausalLM", Method::BesideWeights, [128, 128])];

/// Storage of a group's weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) bits: u32,
    pub(super) is_float: bool,
    pub(super) size: Option<u64>,
    pub(super) block: Option<Vec<u64>>,
}

/// The 4-bit floats of a checkpoint, which determine the file type.
#[derive(Clone, Debug, Default)]
pub(in crate::convert) struct Fp4Types {
    pub(in crate::convert) nvfp4: bool,
    pub(in crate::convert) mxfp4: bool,
    /// True if they give the file its type whatever the output type.
    pub(in crate::convert) gives_type: bool,
    /// True if all groups of compressed-tensors are NVFP4.
    pub(super) all_groups: bool,
    algorithm: Option<String>,
    of_modules: HashMap<String, Option<String>>,
}

impl Fp4Types {
    /// Adds properties visible in the tensors but missing in the config.
    pub(super) fn add(&mut self, sources: &[Source]) {
        let forms = sources
            .iter()
            .filter_map(|source| source.form.as_ref()?.fp4());
        for form in forms {
            match form.kind() {
                Kind::Nvfp4 => self.nvfp4 = true,
                Kind::Mxfp4 => self.mxfp4 = true,
            }
        }
    }

    /// True if activations must not be rounded to 4 bits for a module or a weight of this name.
    pub(in crate::convert) fn keeps_activations(&self, name: &str) -> bool {
        /// Weights of 4 bits, activations of 16.
        const WEIGHTS_ONLY: &str = "W4A16_NVFP4";
        let mut module = name.strip_suffix(".weight").unwrap_or(name);
        loop {
            if let Some(algorithm) = self.of_modules.get(module) {
                return algorithm.as_deref() == Some(WEIGHTS_ONLY);
            }
            match module.rsplit_once('.') {
                Some((outer, _)) => module = outer,
                None => return self.algorithm.as_deref() == Some(WEIGHTS_ONLY),
            }
        }
    }
}

impl Declared {
    /// Reads the declaration; empty for an unquantized checkpoint.
    ///
    /// # Errors
    /// An unsupported quantization, or a field of the wrong kind.
    pub(super) fn of(
        config: &Config,
        dir: &Path,
        sources: &[Source],
    ) -> Result<Option<Declared>, String> {
        let class = config.class();
        let undeclared = UNDECLARED.iter().find(|(name, ..)| class == Some(name));
        if let Some(&(_, method, block)) = undeclared {
            return Ok(Some(Declared {
                block: Some(block.to_vec()),
                fp4: Fp4Types {
                    gives_type: true,
                    ..Fp4Types::default()
                },
                ..Declared::plain(method)
            }));
        }
        let empty = Map::new();
        let inner = config.get(CONFIG).and_then(Value::as_object);
        let inner = inner.unwrap_or(&empty);
        // Mistral's format has another name for it.
        if let Some(mistral) = config.get("quantization").filter(|_| config.is_of_params()) {
            return match text(mistral, "qformat_weight") {
                Some("fp8_e4m3") => Ok(Some(Declared::plain(Method::Fp8))),
                other => Err(format!(
                    "params.json says that weights are stored as {other:?}; only fp8_e4m3 is read"
                )),
            };
        }
        let side = side_file(dir, inner)?;
        let side_fields = side.get("quantization").and_then(Value::as_object);
        let side_fields = side_fields.unwrap_or(&empty);
        // The second file overrides config.json.
        let field = |name: &str| {
            let value = side_fields.get(name).or_else(|| inner.get(name));
            value.filter(|value| !value.is_null())
        };
        let producer = side.get("producer").and_then(|p| text(p, "name"));
        let producer = producer.map(str::to_lowercase);
        let named = inner.get("quant_method").and_then(Value::as_str);
        let Some(name) = named.map(str::to_owned).or(producer) else {
            return match inner.get("bits").is_some() || config.get("quantization").is_some() {
                true => Err(refusal("mlx", config, dir)),
                false => Ok(None),
            };
        };
        if sources.iter().all(|tensor| is_plain(tensor.dtype)) {
            return match &*name {
                "fp8" => Ok(None),
                _ => Err(format!(
                    "config.json says that the checkpoint is quantized by '{name}', and its weights are not: they \
                     are of 16 or 32 bits. Remove {CONFIG} from config.json"
                )),
            };
        }
        let method = match &*name {
            "fp8" => Method::Fp8,
            "compressed-tensors" => Method::CompressedTensors,
            "modelopt" => Method::ModelOpt,
            "gptq" => Method::Gptq {
                zero_offset: match text_of(inner, "checkpoint_format").unwrap_or("gptq") {
                    "gptq" => 1,
                    _ => 0,
                },
            },
            "auto-round" | "intel/auto-round" => of_auto_round(inner)?,
            "awq" => of_awq(inner)?,
            "bitnet" => Method::BitNet,
            "mxfp4" => Method::Mxfp4,
            _ => return Err(refusal(&name, config, dir)),
        };
        let groups = match field("config_groups").and_then(Value::as_object) {
            Some(groups) => groups
                .iter()
                .filter_map(|(name, group)| Group::of(name, group).transpose())
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let size = inner.get("group_size").and_then(Value::as_u64);
        Ok(Some(Declared {
            method,
            block: block(inner.get("weight_block_size"), "weight_block_size")?,
            groups,
            group_size: size.filter(|size| *size > 0),
            fp4: Fp4Types::of(&name, &field),
        }))
    }

    fn plain(method: Method) -> Declared {
        Declared {
            method,
            block: None,
            groups: Vec::new(),
            group_size: None,
            fp4: Fp4Types::default(),
        }
    }
}

impl Fp4Types {
    fn of<'v>(method: &str, field: &impl Fn(&str) -> Option<&'v Value>) -> Fp4Types {
        let text = |name: &str| field(name).and_then(Value::as_str);
        let algorithm = text("quant_algo").map(str::to_owned);
        let format = text("format");
        let groups = field("config_groups").and_then(Value::as_object);
        let is_nvfp4 = |group: &Value| {
            !group.is_object() || group.get("format").is_some_and(|f| f == NVFP4_PACKED)
        };
        let all_groups = groups.is_some_and(|g| !g.is_empty() && g.values().all(is_nvfp4));
        let packed =
            format == Some(NVFP4_PACKED) || format == Some("mixed-precision") && all_groups;
        let layers = field("quantized_layers").and_then(Value::as_object);
        let mut of_modules = HashMap::new();
        for (name, entry) in layers.into_iter().flatten() {
            if let (Part::Text(name), true) = (Part::of(name), entry.is_object()) {
                let algorithm = entry.get("quant_algo").and_then(Value::as_str);
                of_modules.insert(name.into_owned(), algorithm.map(str::to_owned));
            }
        }
        let mut algorithms = of_modules.values().flatten();
        let nvfp4 = matches!(algorithm.as_deref(), Some("NVFP4" | "W4A16_NVFP4"))
            || method == "compressed-tensors" && packed
            || algorithms.any(|algorithm| algorithm.ends_with("NVFP4"));
        let stored_packed = format == Some(MXFP4_PACKED) || text("store_dtype") == Some("mxfp4");
        let mxfp4 = method == "mxfp4" || stored_packed;
        Fp4Types {
            nvfp4,
            mxfp4,
            gives_type: stored_packed,
            all_groups: packed,
            algorithm,
            of_modules,
        }
    }
}

impl Group {
    /// None for a group with unquantized weights.
    fn of(name: &str, group: &Value) -> Result<Option<Group>, String> {
        let Some(weights) = group.get("weights").filter(|w| !w.is_null()) else {
            return Ok(None);
        };
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let Some(bits) = bits.filter(|bits| (1..=8).contains(bits)) else {
            return Err(format!(
                "config.json: {name} of config_groups has no 'num_bits' from 1 to 8"
            ));
        };
        let size = weights.get("group_size").and_then(Value::as_u64);
        Ok(Some(Group {
            bits: bits as u32,
            is_float: text(weights, "type") == Some("float"),
            size: size.filter(|size| *size > 0),
            block: block(weights.get("block_structure"), "block_structure")?,
        }))
    }
}

/// hf_quant_config.json, in the cases in which the reference reads it: config.json lacks the
/// algorithm of every layer.
/// layer.
fn side_file(dir: &Path, inner: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let path = dir.join(SIDE_FILE);
    let layers = inner.get("quantized_layers").and_then(Value::as_object);
    let is_complete = text_of(inner, "quant_algo").is_some_and(|algorithm| !algorithm.is_empty())
        && layers.is_some_and(|layers| !layers.is_empty());
    match !is_complete && path.is_file() {
        true => json::read_object(&path).map_err(|e| e.to_string()),
        false => Ok(Map::new()),
    }
}

fn of_auto_round(inner: &Map<String, Value>) -> Result<Method, String> {
    match text_of(inner, "packing_format").unwrap_or_default() {
        format if format.ends_with("gptq") => Ok(Method::Gptq { zero_offset: 1 }),
        format if format.ends_with("awq") => Ok(Method::Awq),
        format => Err(format!(
            "AutoRound's packing_format '{format}' is not read, only auto_gptq and auto_awq; convert the original model"
        )),
    }
}

fn of_awq(inner: &Map<String, Value>) -> Result<Method, String> {
    let version = text_of(inner, "version").unwrap_or("gemm");
    match version.eq_ignore_ascii_case("gemm") {
        true => Ok(Method::Awq),
        false => Err(format!(
            "AWQ weights packed for '{version}' are not read, only those for gemm; convert the original model"
        )),
    }
}

/// The error of an unsupported quantization, with the base model.
fn refusal(method: &str, config: &Config, dir: &Path) -> String {
    let name = match method {
        "mlx" => "MLX",
        "bitsandbytes" => "bitsandbytes",
        other => other,
    };
    let base = base_model(config, dir);
    let base = base.map_or("the original model".into(), |base| {
        format!("the model that it was made of, {base}")
    });
    format!("checkpoints quantized by {name} are not read; convert {base}")
}

/// The base repository: the card's `base_model`, or the name in config.json.
fn base_model(config: &Config, dir: &Path) -> Option<String> {
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    let front = card
        .strip_prefix("---")
        .and_then(|rest| rest.split("\n---").next());
    let mut lines = front.unwrap_or_default().lines();
    let clean = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let named = lines
        .by_ref()
        .find_map(|line| line.strip_prefix("base_model:").map(clean));
    let mut listed = || lines.next()?.trim().strip_prefix("- ").map(clean);
    let card = match named {
        Some(name) if !name.is_empty() => Some(name),
        Some(_) => listed(),
        None => None,
    };
    let field = config.get("_name_or_path").and_then(Value::as_str);
    let field = field.filter(|name| name.split('/').count() == 2 && !name.starts_with(['.', '/']));
    card.or(field.map(str::to_owned))
}

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name).and_then(Value::as_str)
}

fn text_of<'v>(fields: &'v Map<String, Value>, name: &str) -> Option<&'v str> {
    fields.get(name).and_then(Value::as_str)
}

/// True for floats of at least 16 bits.
fn is_plain(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// Rows and columns per scale.
fn block(size: Option<&Value>, field: &str) -> Result<Option<Vec<u64>>, String> {
    let Some(size) = size.filter(|size| !size.is_null()) else {
        return Ok(None);
    };
    let number = |n: &Value| n.as_u64().filter(|n| *n > 0);
    let numbers: Option<Option<Vec<u64>>> = size
        .as_array()
        .map(|list| list.iter().map(number).collect());
    match numbers.flatten() {
        Some(sizes) if sizes.len() == 2 => Ok(Some(sizes)),
        _ => Err(format!(
            "'{field}' in config.json is {size}; two whole numbers are expected"
        )),
    }
}
