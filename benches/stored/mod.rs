//! Checkpoints of one quantized linear, for the benchmark and the fuzzer of their readers.

use serde_json::{Value, json};

/// A way to store a linear.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Fp8Blocks,
    Fp8Rows,
    Int8,
    Packed { bits: u64 },
    Gptq { bits: u64 },
    Awq,
    Nvfp4,
    Mxfp4,
    BitNet,
}

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind::Fp8Blocks,
    Kind::Fp8Rows,
    Kind::Int8,
    Kind::Packed { bits: 4 },
    Kind::Packed { bits: 8 },
    Kind::Gptq { bits: 2 },
    Kind::Gptq { bits: 3 },
    Kind::Gptq { bits: 4 },
    Kind::Gptq { bits: 8 },
    Kind::Awq,
    Kind::Nvfp4,
    Kind::Mxfp4,
    Kind::BitNet,
];

/// Types of safetensors.
pub const DTYPES: &[&str] = &[
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I32", "I16", "I8", "U8",
    "BOOL",
];

/// Bytes of a number of a type.
fn width(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" | "I16" => 2,
        _ => 1,
    }
}

/// A tensor to be written.
pub struct Tensor {
    pub name: &'static str,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    /// Numbers that are not free.
    pub fixed: Option<Vec<u8>>,
}

/// A checkpoint to be written.
pub struct Model {
    pub quantization: Value,
    pub tensors: Vec<Tensor>,
}

/// Columns of a group of integers.
const GROUP: u64 = 16;

impl Model {
    /// A linear of these sizes.
    pub fn new(kind: Kind, rows: u64, columns: u64) -> Model {
        let tensor = |name, dtype, shape: &[u64]| Tensor {
            name,
            dtype,
            shape: shape.to_vec(),
            fixed: None,
        };
        let ct = |format: &str, bits: u64, is_float: bool, size: Option<u64>| {
            let kind = if is_float { "float" } else { "int" };
            let weights = json!({ "num_bits": bits, "type": kind, "group_size": size });
            let groups = json!({ "group_0": { "weights": weights } });
            json!({ "quant_method": "compressed-tensors", "format": format, "config_groups": groups })
        };
        let groups = columns.div_ceil(GROUP);
        let (quantization, tensors) = match kind {
            Kind::Fp8Blocks => (
                json!({ "quant_method": "fp8", "weight_block_size": [128, 128] }),
                vec![
                    tensor("a.weight", "F8_E4M3", &[rows, columns]),
                    tensor(
                        "a.weight_scale_inv",
                        "F32",
                        &[rows.div_ceil(128), columns.div_ceil(128)],
                    ),
                ],
            ),
            Kind::Fp8Rows => (
                ct("float-quantized", 8, true, None),
                vec![
                    tensor("a.weight", "F8_E4M3", &[rows, columns]),
                    tensor("a.weight_scale", "BF16", &[rows, 1]),
                ],
            ),
            Kind::Int8 => (
                ct("int-quantized", 8, false, None),
                vec![
                    tensor("a.weight", "I8", &[rows, columns]),
                    tensor("a.weight_scale", "F32", &[rows, 1]),
                    tensor("a.weight_zero_point", "I8", &[rows, 1]),
                ],
            ),
            Kind::Packed { bits } => {
                let words = |codes: u64| codes.div_ceil(32 / bits);
                let shape = Tensor {
                    fixed: Some([rows, columns].map(u64::to_le_bytes).concat()),
                    ..tensor("a.weight_shape", "I64", &[2])
                };
                (
                    ct("pack-quantized", bits, false, Some(GROUP)),
                    vec![
                        tensor("a.weight_packed", "I32", &[rows, words(columns)]),
                        tensor("a.weight_scale", "F16", &[rows, groups]),
                        tensor("a.weight_zero_point", "I32", &[words(rows), groups]),
                        shape,
                    ],
                )
            }
            Kind::Gptq { bits } => {
                let words = |codes: u64| (codes * bits).div_ceil(32);
                let order = (0..columns as u32).map(|j| (j * 7 % columns as u32) / GROUP as u32);
                let order = Tensor {
                    fixed: Some(order.flat_map(|group| group.to_le_bytes()).collect()),
                    ..tensor("a.g_idx", "I32", &[columns])
                };
                (
                    json!({ "quant_method": "gptq", "bits": bits, "group_size": GROUP }),
                    vec![
                        tensor("a.qweight", "I32", &[words(columns), rows]),
                        tensor("a.qzeros", "I32", &[groups, words(rows)]),
                        tensor("a.scales", "F16", &[groups, rows]),
                        order,
                    ],
                )
            }
            Kind::Awq => (
                json!({ "quant_method": "awq", "bits": 4, "group_size": GROUP }),
                vec![
                    tensor("a.qweight", "I32", &[columns, rows.div_ceil(8)]),
                    tensor("a.qzeros", "I32", &[groups, rows.div_ceil(8)]),
                    tensor("a.scales", "F16", &[groups, rows]),
                ],
            ),
            Kind::Nvfp4 => (
                json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" }),
                vec![
                    tensor("a.weight", "U8", &[rows, columns / 2]),
                    tensor("a.weight_scale", "F8_E4M3", &[rows, columns / 16]),
                    tensor("a.weight_scale_2", "F32", &[]),
                ],
            ),
            Kind::Mxfp4 => (
                ct("mxfp4-pack-quantized", 4, true, Some(32)),
                vec![
                    tensor("a.weight_packed", "U8", &[rows, columns / 2]),
                    tensor("a.weight_scale", "U8", &[rows, columns / 32]),
                ],
            ),
            Kind::BitNet => (
                json!({ "quant_method": "bitnet" }),
                vec![
                    tensor("a.weight", "U8", &[rows / 4, columns]),
                    tensor("a.weight_scale", "BF16", &[1]),
                ],
            ),
        };
        Model {
            quantization,
            tensors,
        }
    }

    /// Writes it into a directory that is removed with what is returned; `byte` gives the numbers' bytes.
    pub fn write(&self, byte: impl Fn(usize) -> u8) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = json!({ "architectures": ["LlamaForCausalLM"], "quantization_config": self.quantization });
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).expect("a file in a temporary directory");
        };
        write("config.json", config.to_string().as_bytes());
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for tensor in &self.tensors {
            let (start, count) = (data.len(), tensor.shape.iter().product::<u64>());
            let len = (count * width(tensor.dtype)) as usize;
            match &tensor.fixed {
                Some(fixed) if fixed.len() == len => data.extend_from_slice(fixed),
                _ => data.extend((start..start + len).map(&byte)),
            }
            let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()] });
            header.insert(tensor.name.into(), entry);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&data);
        write("model.safetensors", &file);
        dir
    }
}
