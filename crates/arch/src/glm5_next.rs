//! GLM 5.3 Flash: residual streams mixed by hyper-connections, Kimi Delta Attention in most layers,
//! latent attention without RoPE and with an indexer over pooled keys in the others, and experts
//! behind dense layers.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, DeltaHeads, IndexerKind, Needs, Recurrence, Rope, Router};
use super::deepseek::{QUERIES, SELECTION_BIAS, TIED_OUTPUT};
use super::deepseek4::{HYPER_CONNECTION_PARAMETERS, STREAMS, set_limits};
use super::experts::{DENSE_LAYERS, EXPERT_LENGTH, SHARED_EXPERTS};
use super::kimi::{
    self, DECAY, DELTA, DELTA_ATTENTION, GATE_A, GATE_B, LATENT_QUERY_HEADS, delta_lengths,
};
use super::kimi_k3::lower_bound;
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, set_flag, set_numbers};
use super::qwen::EXPERTS;
use super::recipes::Op::Cast;
use super::recipes::Size::{Any, Field, Hidden, Number};
use super::recipes::{Recipe, When};
use super::sparse::{INDEXER, INDEXER_PARAMETERS, INDEXER_TYPES};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;
use quantier_tokenizer::VocabKind;

pub(super) static GLM5_NEXT: Architecture = Architecture {
    classes: &["Glm5NextForConditionalGeneration"],
    name: "glm5-next",
    vocabulary: VocabKind::GlmMoe,
    parameters: &[
        COMMON,
        FILE_TYPE,
        PARAMETERS,
        PREDICT_LAYERS,
        DELTA_PARAMETERS,
        LATENT_LENGTHS,
        INDEXER_PARAMETERS,
        POOLED_KEYS,
        INDEXER_TYPES,
        HYPER_CONNECTION_PARAMETERS,
        EXPERT_PARAMETERS,
    ],
    tensors: &[
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        HYPER_CONNECTIONS,
        DELTA_ATTENTION,
        DECAYS_AND_GATES,
        QUERIES,
        LATENT_ATTENTION,
        INDEXER,
        POOLING,
        GATED_FFN,
        EXPERTS,
        BIAS_AND_SHARED_EXPERTS,
        NEXTN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Own)),
        router: Router::LISTED,
        indexer: Some(IndexerKind {
            rope: Rope::None,
            epsilon: 1e-6,
        }),
        refused: Some(
            "its layers mix several residual streams (hyper-connections), and its indexer pools keys",
        ),
        needs: Needs {
            biases: &["exp_probs_b", "indexer.k_norm"],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(check),
    Parameter::Computed(kv_heads),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::ConstantF32("attention.layer_norm_epsilon", 1e-6),
];

const DELTA_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(delta_lengths),
    Parameter::Computed(lower_bound),
    Parameter::U32("attention.q_lora_rank", &["q_lora_rank"]),
    Parameter::U32("attention.kv_lora_rank", &["kv_lora_rank"]),
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim"]),
];

/// Head lengths of latent attention: of the latent vector in the cache, and per head.
pub(super) const LATENT_LENGTHS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let [rank, rotated, plain, value] = [
        config.u32(&["kv_lora_rank"])?,
        config.u32(&["qk_rope_head_dim"])?,
        config.u32(&["qk_nope_head_dim"])?,
        config.u32(&["v_head_dim"])?,
    ];
    let sum = |a: u32| {
        let sum = a.checked_add(rotated);
        sum.ok_or_else(|| "the length of a head has more than 32 bits".to_owned())
    };
    keys.set("attention.key_length", Value::U32(sum(rank)?));
    keys.set("attention.value_length", Value::U32(rank));
    keys.set("attention.key_length_mla", Value::U32(sum(plain)?));
    keys.set("attention.value_length_mla", Value::U32(value));
    Ok(())
})];

const POOLED_KEYS: &[Parameter] = &[
    Parameter::U32("attention.indexer.kpool", &["index_kpool"]),
    Parameter::Computed(|config, keys| {
        let tail = config.get("index_kpool_always_select_tail");
        let tail = tail.is_none_or(|tail| *tail != false);
        keys.set("attention.indexer.kpool_select_tail", Value::Bool(tail));
        Ok(())
    }),
];

const EXPERT_PARAMETERS: &[Parameter] = &[
    DENSE_LAYERS,
    EXPERT_LENGTH,
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        set_flag(config, keys, "expert_weights_norm", "norm_topk_prob")?;
        match config.optional_f64(&["swiglu_limit"])? {
            Some(limit) => set_limits(config, keys, limit),
            None => Ok(()),
        }
    }),
];

/// Requirements of the reference and of llama.cpp.
fn check(config: &Config, _: &mut Keys) -> Result<()> {
    /// Residual streams that llama.cpp runs.
    const STREAMS: u32 = 4;
    let heads = config.u32(&["num_attention_heads"])?;
    if config.number_of(DELTA, "num_heads")? != Some(heads) {
        return Err(format!(
            "field 'num_heads' of '{DELTA}' is not {heads}, the 'num_attention_heads'; llama.cpp runs layers of one \
             number of heads"
        ));
    }
    let is_unrotated = config.get("mla_use_nope").is_some_and(|nope| *nope == true);
    if !is_unrotated || config.u32(&["qk_rope_head_dim"])? != 0 {
        return Err(
            "'mla_use_nope' is not true or 'qk_rope_head_dim' not 0; llama.cpp runs this class without RoPE only"
                .into(),
        );
    }
    if config.get("mhc").is_some_and(|mhc| *mhc == false) || config.u32(&["hc_mult"])? != STREAMS {
        return Err(format!(
            "'mhc' is false or 'hc_mult' not {STREAMS}; llama.cpp runs this class with {STREAMS} residual streams only"
        ));
    }
    let (pool, chosen) = (config.u32(&["index_kpool"])?, config.u32(&["index_topk"])?);
    match pool > 1 && chosen.is_multiple_of(pool) {
        true => Ok(()),
        false => Err(format!(
            "'index_kpool' is {pool} and 'index_topk' {chosen}; llama.cpp runs pools of at least 2 keys that divide the \
             choice"
        )),
    }
}

/// One KV head in layers of latent attention and in multi-token prediction blocks, none in the
/// others.
fn kv_heads(config: &Config, keys: &mut Keys) -> Result<()> {
    let layers = config.layers()? as usize;
    let kinds = config.get(KINDS);
    let kinds = kinds.ok_or_else(|| format!("field '{KINDS}' is missing"))?;
    let list = kinds.as_array().filter(|list| list.len() == layers);
    let list = list
        .ok_or_else(|| wrong_kind(KINDS, kinds, &format!("a list of {layers} kinds of layers")))?;
    let heads = list.iter().map(|kind| u32::from(kind != LINEAR));
    let heads = heads.chain(std::iter::repeat_n(1, config.nextn() as usize));
    set_numbers(keys, "attention.head_count_kv", heads);
    Ok(())
}

const KINDS: &str = "layer_types";
const LINEAR: &str = "linear_attention";

fn is_linear(config: &Config, layer: u32) -> bool {
    let kinds = config.get(KINDS).and_then(|kinds| kinds.as_array());
    let kind = kinds.and_then(|kinds| kinds.get(layer as usize));
    kind.is_some_and(|kind| kind == LINEAR)
}

const IS_LINEAR: When = When::Layers(is_linear);
const IS_LATENT: When = When::Layers(|config, layer| !is_linear(config, layer));

const LATENT_ATTENTION: &[Recipe] = &[
    LATENT_QUERY_HEADS[0],
    LATENT_QUERY_HEADS[1],
    LATENT_QUERY_HEADS[2],
    kimi::ATTENTION[1].when(IS_LATENT),
];

/// The weights of hyper-connections, always in f32.
const HYPER_CONNECTIONS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.hc_attn_fn",
        "blk.{}.hc_attn_fn.weight",
        &[Any, STREAMS],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::rename(
        "model.layers.{}.hc_attn_base",
        "blk.{}.hc_attn_base.weight",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.hc_attn_scale",
        "blk.{}.hc_attn_scale.weight",
        &[Number(3)],
    ),
    Recipe::with(
        "model.layers.{}.hc_ffn_fn",
        "blk.{}.hc_ffn_fn.weight",
        &[Any, STREAMS],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::rename(
        "model.layers.{}.hc_ffn_base",
        "blk.{}.hc_ffn_base.weight",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.hc_ffn_scale",
        "blk.{}.hc_ffn_scale.weight",
        &[Number(3)],
    ),
];

const DECAYS_AND_GATES: &[Recipe] = &[
    DECAY,
    GATE_A,
    GATE_B,
    kimi::ATTENTION[0].when(IS_LINEAR),
    kimi::ATTENTION[1].when(IS_LINEAR),
];

/// One table, so that layers with a shared expert need the selection bias.
const BIAS_AND_SHARED_EXPERTS: &[Recipe] = &[
    SELECTION_BIAS[0],
    SHARED_EXPERTS[0],
    SHARED_EXPERTS[1],
    SHARED_EXPERTS[2],
];

/// The pooling of the indexer's keys, always in f32.
const POOLING: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.indexer.index_kpool_compress_gate",
        "blk.{}.indexer_compressor_gate.weight",
        &[Field(&["index_head_dim"]), Hidden],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.indexer.index_kpool_compress_ape",
        "blk.{}.indexer_compressor_ape.weight",
        &[Field(&["index_kpool"]), Field(&["index_head_dim"])],
        &[Cast(GgmlType::F32)],
    ),
];
