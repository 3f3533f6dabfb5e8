//! The small models, each with the rule that it covers.
//!
//! Tensors have few rows: the rules depend on names, row lengths and counts, not on whether a model
//! runs.

use quantier_gguf::gguf::{Array, Metadata, Value, ValueType, keys};
use quantier_gguf::types::GgmlType;

/// A tensor to fill with numbers.
pub struct Tensor {
    pub name: String,
    /// Row length first.
    pub dims: Vec<u64>,
    pub ggml_type: GgmlType,
}

/// Distribution of the weights.
#[derive(Clone, Copy, PartialEq)]
pub enum Weights {
    /// Gaussian, with a scale per column and a few outliers.
    Trained,
    /// The same with one NaN, which must be refused.
    OneNaN,
    /// Far beyond the range of f16 scales; must be refused by all types that have them.
    Huge,
}

/// A model and its importance matrix.
pub struct Model {
    pub name: &'static str,
    pub metadata: Metadata<'static>,
    pub tensors: Vec<Tensor>,
    /// Number of tensors per shard; empty for a single file.
    pub shards: Vec<usize>,
    pub weights: Weights,
    /// Number of values for the token embedding in the importance matrix. llama-imatrix writes some
    /// if it is the output matrix too; a wrong number must be ignored.
    pub embedding_statistics: Option<u64>,
    /// A tensor without statistics.
    pub without_statistics: Option<&'static str>,
    /// GGUF version claimed by the file.
    pub version: u32,
    architecture: &'static str,
    width: u64,
    default_type: GgmlType,
}

/// All small models.
pub fn all() -> Vec<Model> {
    let mut models = vec![
        dense("gqa4", "llama", 16, 256).heads(8, 2),
        Model {
            embedding_statistics: Some(32),
            ..dense("gqa2", "llama", 16, 256).heads(8, 4)
        },
        dense("mha", "llama", 8, 256).heads(8, 8),
        tied(),
        mixture("experts8", 8),
        mixture("experts4", 4),
        falcon(),
        gpt2(),
        phi3(),
        deepseek2(),
        bailingmoe3(),
        glm5_next(),
        vision_tower(),
        dense("llama-80-layers", "llama", 80, 256).heads(8, 2),
        values_and_down("llama-80-layers-mha", "llama", 80)
            .set("attention.head_count", Value::U32(8)),
        values_and_down("qwen2-80-layers-and-a-predicting-one", "qwen2", 81)
            .heads(8, 2)
            .set("nextn_predict_layers", Value::U32(1)),
        values_and_down("olmo-80-layers", "olmo", 80).heads(8, 8),
        values_and_down("deci-80-layers", "deci", 80).heads(8, 2),
        values_and_down("jais2-68-layers", "jais2", 68).heads(8, 4),
        heads_by_layer(),
        odd_tensors(),
        mixed_types(),
        quantized(),
        Model {
            weights: Weights::OneNaN,
            ..dense("nan", "llama", 2, 256).heads(8, 4)
        },
        Model {
            weights: Weights::Huge,
            ..dense("huge", "llama", 2, 256)
                .heads(8, 4)
                .stored_as(GgmlType::F32)
        },
        split("split", 0),
        split("split-empty-first", 1),
        metadata(),
        Model {
            version: 2,
            ..dense("version2", "llama", 2, 256).heads(8, 4)
        },
    ];
    for (name, width) in [
        ("width-40", 40),
        ("width-64", 64),
        ("width-288", 288),
        ("width-320", 320),
        ("width-896", 896),
    ] {
        models.push(dense(name, "llama", 8, width).heads(8, 4));
    }
    for (name, ggml_type) in [("f32", GgmlType::F32), ("bf16", GgmlType::BF16)] {
        models.push(
            dense(name, "llama", 8, 256)
                .heads(8, 4)
                .stored_as(ggml_type),
        );
    }
    models
}

impl Model {
    /// A model with all metadata that llama.cpp requires, and no tensors.
    fn new(name: &'static str, architecture: &'static str, layers: u32, width: u64) -> Model {
        let mut metadata = Metadata::new();
        metadata.set(keys::ARCHITECTURE, Value::str(architecture));
        metadata.set("general.name", Value::str(name));
        metadata.set(keys::FILE_TYPE, Value::U32(1));
        let model = Model {
            name,
            metadata,
            tensors: Vec::new(),
            shards: Vec::new(),
            weights: Weights::Trained,
            embedding_statistics: None,
            without_statistics: None,
            version: 3,
            architecture,
            width,
            default_type: GgmlType::F16,
        };
        model
            .set("context_length", Value::U32(512))
            .set("embedding_length", Value::U32(width as u32))
            .set("block_count", Value::U32(layers))
            .set("feed_forward_length", Value::U32(2 * width as u32))
            .set("attention.layer_norm_rms_epsilon", Value::F32(1e-5))
            .set("attention.layer_norm_epsilon", Value::F32(1e-5))
    }

    fn set(mut self, key: &str, value: Value<'static>) -> Model {
        self.metadata
            .set(format!("{}.{key}", self.architecture), value);
        self
    }

    fn heads(self, heads: u32, kv_heads: u32) -> Model {
        self.set("attention.head_count", Value::U32(heads))
            .set("attention.head_count_kv", Value::U32(kv_heads))
    }

    fn experts(self, experts: u32) -> Model {
        self.set("expert_count", Value::U32(experts))
            .set("expert_used_count", Value::U32(2))
    }

    /// Adds a tensor of the default type.
    fn add(mut self, name: impl Into<String>, dims: &[u64]) -> Model {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            ggml_type: self.default_type,
        });
        self
    }

    /// Adds matrices of `rows` rows of the model's width to a layer.
    fn layer(mut self, layer: u32, matrices: &[(&str, u64)]) -> Model {
        for (name, rows) in matrices {
            let width = self.width;
            self = self.add(format!("blk.{layer}.{name}.weight"), &[width, *rows]);
        }
        self
    }

    /// Adds a vector, which is always F32.
    fn vector(mut self, name: impl Into<String>) -> Model {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: vec![self.width],
            ggml_type: GgmlType::F32,
        });
        self
    }

    fn embedding(self) -> Model {
        let width = self.width;
        self.add("token_embd.weight", &[width, 16])
    }

    fn output(self) -> Model {
        let width = self.width;
        self.vector("output_norm.weight")
            .add("output.weight", &[width, 16])
    }

    fn attention(self, layer: u32) -> Model {
        self.vector(format!("blk.{layer}.attn_norm.weight")).layer(
            layer,
            &[
                ("attn_q", 4),
                ("attn_k", 2),
                ("attn_v", 2),
                ("attn_output", 4),
            ],
        )
    }

    fn ffn(self, layer: u32) -> Model {
        let width = self.width;
        self.layer(layer, &[("ffn_gate", 3), ("ffn_up", 3)])
            .add(format!("blk.{layer}.ffn_down.weight"), &[2 * width, 2])
            .vector(format!("blk.{layer}.ffn_norm.weight"))
    }

    fn expert_ffn(self, layer: u32, experts: u64) -> Model {
        let width = self.width;
        self.layer(layer, &[("ffn_gate_inp", experts)])
            .add(
                format!("blk.{layer}.ffn_gate_exps.weight"),
                &[width, 2, experts],
            )
            .add(
                format!("blk.{layer}.ffn_up_exps.weight"),
                &[width, 2, experts],
            )
            .add(
                format!("blk.{layer}.ffn_down_exps.weight"),
                &[width, 3, experts],
            )
    }

    /// Stores matrices in another type.
    fn stored_as(mut self, ggml_type: GgmlType) -> Model {
        self.tensors
            .iter_mut()
            .filter(|t| t.dims.len() > 1)
            .for_each(|t| t.ggml_type = ggml_type);
        self
    }
}

/// A typical dense model.
fn dense(name: &'static str, architecture: &'static str, layers: u32, width: u64) -> Model {
    let model = Model::new(name, architecture, layers, width).embedding();
    (0..layers)
        .fold(model, |model, layer| model.attention(layer).ffn(layer))
        .output()
}

/// Only the tensors read by the rule for models of 70B.
fn values_and_down(name: &'static str, architecture: &'static str, layers: u32) -> Model {
    let model = Model::new(name, architecture, layers, 256).embedding();
    (0..layers)
        .fold(model, |model, layer| {
            model.layer(layer, &[("attn_v", 2), ("ffn_down", 2)])
        })
        .output()
}

/// Tied embeddings, and a second embedding, as in Gemma 3n.
fn tied() -> Model {
    let model = Model::new("tied", "llama", 8, 256)
        .heads(8, 4)
        .embedding()
        .add("per_layer_token_embd.weight", &[512, 8]);
    let model = (0..8).fold(model, |model, layer| model.attention(layer).ffn(layer));
    Model {
        embedding_statistics: Some(256),
        ..model.vector("output_norm.weight")
    }
}

fn mixture(name: &'static str, experts: u32) -> Model {
    let model = Model::new(name, "llama", 16, 256)
        .heads(8, 2)
        .experts(experts)
        .embedding();
    (0..16)
        .fold(model, |model, layer| {
            model.attention(layer).expert_ffn(layer, experts.into())
        })
        .output()
}

fn falcon() -> Model {
    let model = Model::new("falcon", "falcon", 16, 256)
        .heads(8, 1)
        .embedding();
    let layer = |model: Model, layer| {
        model
            .layer(layer, &[("attn_qkv", 6), ("attn_output", 4), ("ffn_up", 3)])
            .add(format!("blk.{layer}.ffn_down.weight"), &[1024, 1])
    };
    (0..16).fold(model, layer).output()
}

/// Positions, biases, joint attention, no output matrix, rows that fit no K type.
fn gpt2() -> Model {
    let model = Model::new("gpt2", "gpt2", 12, 192)
        .heads(8, 8)
        .embedding()
        .add("position_embd.weight", &[192, 32]);
    let layer = |model: Model, layer| {
        model
            .vector(format!("blk.{layer}.attn_qkv.bias"))
            .layer(layer, &[("attn_qkv", 6), ("attn_output", 4), ("ffn_up", 3)])
            .add(format!("blk.{layer}.ffn_down.weight"), &[768, 2])
    };
    (0..12).fold(model, layer).vector("output_norm.weight")
}

fn phi3() -> Model {
    let model = Model::new("phi3", "phi3", 16, 256).heads(8, 4).embedding();
    let layer = |model: Model, layer| {
        model.layer(
            layer,
            &[
                ("attn_qkv", 6),
                ("attn_output", 4),
                ("ffn_up", 6),
                ("ffn_down", 2),
            ],
        )
    };
    (0..16).fold(model, layer).output()
}

/// Multi-head latent attention: low ranks, 3-D projections that are not experts, and a first layer
/// without experts.
fn latent_attention(model: Model, layer: u32) -> Model {
    model
        .layer(
            layer,
            &[
                ("attn_q_a", 2),
                ("attn_q_b", 4),
                ("attn_kv_a_mqa", 3),
                ("attn_output", 4),
            ],
        )
        .add(format!("blk.{layer}.attn_kv_b.weight"), &[256, 6])
        .add(format!("blk.{layer}.attn_k_b.weight"), &[128, 2, 4])
        .add(format!("blk.{layer}.attn_v_b.weight"), &[256, 2, 4])
}

fn with_latent_attention(name: &'static str, architecture: &'static str, experts: u32) -> Model {
    let model = Model::new(name, architecture, 8, 256)
        .heads(4, 4)
        .experts(experts)
        .set("leading_dense_block_count", Value::U32(1))
        .set("expert_feed_forward_length", Value::U32(256))
        .set("expert_shared_count", Value::U32(1))
        .set("expert_gating_func", Value::U32(2))
        .set("attention.q_lora_rank", Value::U32(256))
        .set("attention.kv_lora_rank", Value::U32(256))
        .set("attention.key_length_mla", Value::U32(128))
        .set("attention.value_length_mla", Value::U32(128))
        .embedding();
    let layer = |model: Model, layer| match layer {
        0 => latent_attention(model, 0).ffn(0),
        _ => latent_attention(model, layer)
            .expert_ffn(layer, experts.into())
            .layer(
                layer,
                &[
                    ("ffn_gate_shexp", 2),
                    ("ffn_up_shexp", 2),
                    ("ffn_down_shexp", 2),
                ],
            )
            .vector(format!("blk.{layer}.exp_probs_b.bias")),
    };
    (0..8).fold(model, layer).output()
}

fn deepseek2() -> Model {
    with_latent_attention("deepseek2", "deepseek2", 16)
}

fn bailingmoe3() -> Model {
    with_latent_attention("bailingmoe3", "bailingmoe3", 4)
        .set("ssm.conv_kernel", Value::U32(4))
        .set("kda.head_dim", Value::U32(32))
        .set("kda.gate_lower_bound", Value::F32(-5.0))
}

/// The architecture that keeps some matrices unquantized and requires Q8_0 for others.
fn glm5_next() -> Model {
    let mut model = with_latent_attention("glm5-next", "glm5-next", 4)
        .set("ssm.conv_kernel", Value::U32(4))
        .set("kda.head_dim", Value::U32(32))
        .set("attention.indexer.head_count", Value::U32(2))
        .set("attention.indexer.key_length", Value::U32(32))
        .set("attention.indexer.top_k", Value::U32(64))
        .set("attention.indexer.kpool", Value::U32(2))
        .set("hyper_connection.count", Value::U32(4))
        .set("hyper_connection.sinkhorn_iterations", Value::U32(2))
        .set("hyper_connection.epsilon", Value::F32(1e-5));
    for part in [
        "hc_attn_fn",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "ssm_f_a",
        "ssm_beta",
        "nextn.eh_proj",
    ] {
        model = model.layer(7, &[(part, 2)]);
    }
    model
}

/// A vision tower, of which llama.cpp requires only the architecture.
fn vision_tower() -> Model {
    let mut model = Model::new("clip", "clip", 8, 256);
    for part in [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
    ] {
        model.metadata.remove(&format!("clip.{part}"));
    }
    for layer in 0..8 {
        for part in ["attn_q", "attn_v", "attn_out", "ffn_up", "ffn_down"] {
            model = model.add(format!("v.blk.{layer}.{part}.weight"), &[256, 2]);
        }
    }
    model
        .add("v.position_embd.weight", &[256, 4])
        .add("v.patch_embd.weight", &[256, 4])
        .add("mm.0.weight", &[256, 4])
}

/// Head counts in arrays, one per layer; the rules read the first.
fn heads_by_layer() -> Model {
    let array = |first: u32| {
        let heads = (0..8).map(|layer| Value::U32(if layer == 0 { first } else { 8 }));
        Value::Array(Array::of_values(ValueType::U32, heads))
    };
    dense("heads-by-layer", "llama", 8, 256)
        .set("attention.head_count", array(8))
        .set("attention.head_count_kv", array(2))
}

/// Names and shapes at the boundary of quantized ones.
fn odd_tensors() -> Model {
    let mut model = dense("odd-tensors", "llama", 11, 256).heads(8, 4);
    for (name, dims) in [
        ("one_row.weight", &[256, 1][..]),
        ("one_row_per_matrix.weight", &[256, 1, 4]),
        ("one_matrix.weight", &[256, 3, 1]),
        ("long_rows.weight", &[33_024, 2]),
        ("table", &[256, 2]),
        ("matrix", &[256, 2]),
        ("weight", &[256, 2]),
        ("weight.weight", &[256, 2]),
        ("weight_scale", &[256, 2]),
        ("v.blk.3.attn_v.weight", &[256, 2]),
        ("blk.x.ffn_down.weight", &[256, 2]),
        ("blk.3.ssm_conv1d.weight", &[256, 2]),
        ("blk.3.time_mix_w1.weight", &[256, 2]),
        ("blk.3.attn_q_norm.weight", &[256, 2]),
        ("blk.3.shortconv.conv.weight", &[256, 2]),
        ("token_types.weight", &[256, 2]),
        ("position_embd.weight", &[256, 2]),
    ] {
        model = model.add(name, dims);
    }
    Model {
        without_statistics: Some("blk.4.ffn_up.weight"),
        ..model
    }
}

fn mixed_types() -> Model {
    let mut model = dense("mixed", "llama", 8, 256).heads(8, 4);
    let types = [GgmlType::F16, GgmlType::BF16, GgmlType::F32];
    let matrices = model.tensors.iter_mut().filter(|t| t.dims.len() > 1);
    matrices
        .enumerate()
        .for_each(|(i, tensor)| tensor.ggml_type = types[i % types.len()]);
    for (name, dims) in [("blk.0.ids", &[5, 3][..]), ("ids", &[7])] {
        model.tensors.push(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            ggml_type: GgmlType::I32,
        });
    }
    model
}

fn quantized() -> Model {
    let mut model = dense("quantized", "llama", 8, 256)
        .heads(8, 4)
        .stored_as(GgmlType::Q8_0);
    let types = [
        GgmlType::Q4_K,
        GgmlType::Q5_0,
        GgmlType::IQ4_NL,
        GgmlType::Q6_K,
    ];
    let keys = model
        .tensors
        .iter_mut()
        .filter(|t| t.name.contains("attn_k.weight"));
    keys.enumerate()
        .for_each(|(i, tensor)| tensor.ggml_type = types[i % types.len()]);
    model
}

/// Three shards, the first `empty` of them without tensors. No file type, and equally many tensors
/// of two types, so that a copy must guess, and the order or a pruned layer could decide.
fn split(name: &'static str, empty: usize) -> Model {
    let mut model = dense(name, "llama", 12, 256).heads(8, 4);
    model.metadata.remove(keys::FILE_TYPE);
    let half = model.tensors.len() / 2;
    for (i, tensor) in model.tensors.iter_mut().enumerate() {
        tensor.ggml_type = if i < half {
            GgmlType::F32
        } else {
            GgmlType::F16
        };
    }
    // The count is odd; a tensor of a third type makes the others equal.
    model.tensors[2 * half].ggml_type = GgmlType::BF16;
    // The last layers come first, so that file order differs from name order.
    model.tensors.reverse();
    let first = if empty > 0 {
        0
    } else {
        model.tensors.len() / 4
    };
    let second = model.tensors.len() / 3;
    model.shards = vec![first, second, model.tensors.len() - first - second];
    model
}

/// Values of every type, alone and in arrays; strings with zeros; no file type.
fn metadata() -> Model {
    let mut model = dense("metadata", "llama", 2, 256).heads(8, 4);
    let values = [
        Value::U8(200),
        Value::I8(-100),
        Value::U16(60_000),
        Value::I16(-30_000),
        Value::U32(4_000_000_000),
        Value::I32(-2_000_000_000),
        Value::F32(f32::NAN),
        Value::Bool(true),
        Value::str("a string, \u{e4}\u{4e2d}"),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(-0.1),
    ];
    for value in values {
        let kind = value.value_type();
        let array = match kind {
            ValueType::String => Array::of_strings(["", "two", "thr\0ee", "\0"]),
            _ => Array::of_values(kind, [value.clone(), value.clone(), value.clone()]),
        };
        let empty = match kind {
            ValueType::String => Array::of_strings([""; 0]),
            _ => Array::of_values(kind, []),
        };
        model.metadata.set(format!("test.{}", kind.name()), value);
        model
            .metadata
            .set(format!("test.array.{}", kind.name()), Value::Array(array));
        model
            .metadata
            .set(format!("test.empty.{}", kind.name()), Value::Array(empty));
    }
    let bools = [false, true, false].map(Value::Bool);
    model.metadata.set(
        "test.bools",
        Value::Array(Array::of_values(ValueType::Bool, bools)),
    );
    model
        .metadata
        .set("test.zero_inside", Value::String(b"before\0after".into()));
    model.metadata.set("test.empty_string", Value::str(""));
    model
        .metadata
        .set("test.not_utf8", Value::String(b"\xff\xfe \x80".into()));
    model
        .metadata
        .set("test.long", Value::String(vec![b'x'; 70_000].into()));
    model
        .metadata
        .set("quantize.imatrix.file", Value::str("an older one"));
    model
        .metadata
        .set("quantize.imatrix.chunks_count", Value::I32(3));
    model.metadata.remove(keys::FILE_TYPE);
    model
}
