//! Hy4: DeepSeek V3's latent attention with a sink and an output gate, an indexer that layers may
//! share, independent residual streams, and stacked experts behind dense layers.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, IndexerKind, Needs, Rope, Router, ScoreYarn};
use super::deepseek::{
    DEEPSEEK2, EXPERT_PARAMETERS, LATENT, LATENT_DECODER, PARAMETERS, QUERIES, ROTATION,
    SELECTION_BIAS, TIED_OUTPUT,
};
use super::deepseek4::{COUNT, STREAMS};
use super::dots3::GATES;
use super::experts::SHARED_EXPERTS;
use super::kimi::{ATTENTION as OUTPUT, LATENT_QUERY_HEADS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags, set_floats};
use super::qwen::EXPERTS;
use super::recipes::Op::Cast;
use super::recipes::Size::{Any, Hidden, Number, QueryHeads};
use super::recipes::{Recipe, When};
use super::sparse::{INDEXER as ANYWHERE, INDEXER_PARAMETERS};
use super::{Architecture, Keys, Parameter};
use quantier_gguf::types::GgmlType;
use serde_json::Value as Json;

pub(super) static HY_V4: Architecture = Architecture {
    classes: &["HYV4ForCausalLM"],
    name: "hy_v4",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        &[Parameter::Computed(ungrouped)],
        PARAMETERS,
        LATENT,
        EXPERT_PARAMETERS,
        ROTATION,
        HYPER_CONNECTION_PARAMETERS,
        &[Parameter::Computed(indexer)],
    ],
    tensors: &[
        &[Recipe::leave_out(
            "model.mtp_layers.*",
            "multi-token prediction",
        )],
        TIED_OUTPUT,
        PRECISE_OUTPUT,
        EMBEDDINGS,
        NORMS,
        HYPER_CONNECTIONS,
        QUERIES,
        LATENT_QUERY_HEADS,
        OUTPUT,
        GATES,
        INDEXER,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router::LISTED,
        score_yarn: Some(ScoreYarn {
            is_listed: true,
            is_balanced: false,
        }),
        indexer: Some(IndexerKind {
            rope: Rope::Pairs,
            epsilon: 1e-6,
        }),
        drafts: false,
        refused: Some("its layers mix several residual streams (hyper-connections)"),
        needs: Needs {
            biases: &["indexer.k_norm"],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..LATENT_DECODER
    },
    ..DEEPSEEK2
};

/// The class, whose configs may say which layers are dense by a list.
pub(super) const CLASS: &str = "HYV4ForCausalLM";

/// Adds the number of leading dense layers, if a list of layers has it.
///
/// # Errors
/// If dense layers follow others, or the list and the number differ.
pub(super) fn complete(
    class: Option<&str>,
    fields: &mut serde_json::Map<String, Json>,
) -> Result<()> {
    const DENSE: &str = "first_k_dense_replace";
    const KINDS: &str = "mlp_layer_types";
    let Some(kinds) = fields.get(KINDS).and_then(Json::as_array) else {
        return Ok(());
    };
    if class != Some(CLASS) {
        return Ok(());
    }
    let is_dense = |kind: &&Json| **kind == "dense";
    let leading = kinds.iter().take_while(is_dense).count();
    if kinds[leading..].iter().any(|kind| kind == "dense") {
        return Err(format!(
            "field '{KINDS}' lists dense layers behind others; llama.cpp runs leading ones only"
        ));
    }
    match fields.get(DENSE).filter(|dense| !dense.is_null()) {
        Some(dense) if *dense != leading => Err(format!(
            "field '{DENSE}' is {dense}, and '{KINDS}' has {leading} leading dense layers"
        )),
        _ => {
            fields.insert(DENSE.into(), leading.into());
            Ok(())
        }
    }
}

/// Without groups of experts, there are no keys of groups.
fn ungrouped(config: &Config, keys: &mut Keys) -> Result<()> {
    let is_one = |field: &str| config.get(field).is_some_and(|groups| *groups == 1);
    if is_one("n_group") && is_one("topk_group") {
        keys.remove("expert_group_count");
        keys.remove("expert_group_used_count");
    }
    config.u32(&["q_lora_rank"])?;
    config.u32(&["first_k_dense_replace"]).map(drop)
}

const HYPER_CONNECTION_PARAMETERS: &[Parameter] = &[
    // Sigmoid.
    Parameter::ConstantU32("expert_gating_func", 2),
    Parameter::Computed(|config, keys| {
        let limit = config.optional_f64(&["swiglu_limit"])?.unwrap_or(0.0);
        if limit > 0.0 {
            let blocks = config.blocks()? as usize;
            set_floats(keys, "swiglu_clamp_exp", vec![limit as f32; blocks]);
        }
        Ok(())
    }),
    Parameter::U32("hyper_connection.count", &["hc_mult"]),
    Parameter::F32("hyper_connection.epsilon", &["hc_eps"]),
    Parameter::F32("hyper_connection.magnitude", &["hc_magnitude"]),
];

/// Keys of the indexer, if layers have one.
fn indexer(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(owners) = owners(config)? else {
        return Ok(());
    };
    for parameter in INDEXER_PARAMETERS {
        parameter.apply(config, keys)?;
    }
    set_flags(keys, "attention.indexer.types", owners);
    Ok(())
}

/// Layers with an indexer of their own; None if attention is dense.
fn owners(config: &Config) -> Result<Option<Vec<bool>>> {
    const OWNERS: &str = "indexer_types";
    const KINDS: &str = "layer_types";
    const SPARSE: [&str; 2] = ["sparse_attention", "deepseek_sparse_attention"];
    let layers = config.layers()? as usize;
    let is_sparse = |kind: &Json| SPARSE.iter().any(|sparse| kind == sparse);
    let (field, listed) = match (config.get(OWNERS), config.get(KINDS)) {
        (Some(owners), _) => (OWNERS, owners),
        (None, Some(kinds)) => (KINDS, kinds),
        (None, None) => return Ok(None),
    };
    let wrong = || {
        wrong_kind(
            field,
            listed,
            &format!("a list of the kinds of {layers} layers"),
        )
    };
    let list = listed.as_array().ok_or_else(wrong)?;
    if field == KINDS && !list.iter().any(is_sparse) {
        return Ok(None);
    }
    if list.len() < layers {
        return Err(wrong());
    }
    let list = &list[..layers];
    if field == KINDS {
        return Ok(Some(list.iter().map(is_sparse).collect()));
    }
    let is_owner = |kind: &Json| match kind.as_str() {
        Some("full") => Some(true),
        Some("shared") => Some(false),
        _ => None,
    };
    let owners: Option<Vec<bool>> = list.iter().map(is_owner).collect();
    let owners =
        owners.ok_or_else(|| wrong_kind(field, listed, "a list of 'full' and 'shared'"))?;
    match owners.first() {
        Some(false) => Err(format!(
            "field '{field}' begins with 'shared', and there is no indexer in front of the first layer"
        )),
        _ => Ok(Some(owners)),
    }
}

const OWNED: When = When::Layers(|config, layer| {
    let owners = owners(config).ok().flatten().unwrap_or_default();
    owners.get(layer as usize).copied().unwrap_or(false)
});

const INDEXER: &[Recipe] = &[
    ANYWHERE[0].when(OWNED),
    ANYWHERE[1].when(OWNED),
    ANYWHERE[2].when(OWNED),
    ANYWHERE[3].when(OWNED),
];

/// The output matrix of models that compute logits in f32.
const PRECISE_OUTPUT: &[Recipe] = &[Recipe::with(
    "lm_head.weight",
    "output.weight",
    &[Any, Hidden],
    &[Cast(GgmlType::F32)],
)
.when(When::Set("enable_lm_head_fp32"))];

/// The weights of residual streams, always in f32, and the sinks of attention.
const HYPER_CONNECTIONS: &[Recipe] = &[
    Recipe::with(
        "model.hc_head.hc_head_fn",
        "output_hc_fn.weight",
        &[COUNT, STREAMS],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::rename(
        "model.hc_head.hc_head_base",
        "output_hc_base.weight",
        &[COUNT],
    ),
    Recipe::rename(
        "model.hc_head.hc_head_scale",
        "output_hc_scale.weight",
        &[Number(1)],
    ),
    Recipe::with(
        "model.layers.{}.hc_attn_layer.hc_pre.hc_fn",
        "blk.{}.hc_attn_fn.weight",
        &[Any, STREAMS],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::rename(
        "model.layers.{}.hc_attn_layer.hc_pre.hc_base",
        "blk.{}.hc_attn_base.weight",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.hc_attn_layer.hc_pre.hc_scale",
        "blk.{}.hc_attn_scale.weight",
        &[Number(2)],
    ),
    Recipe::with(
        "model.layers.{}.hc_mlp_layer.hc_pre.hc_fn",
        "blk.{}.hc_ffn_fn.weight",
        &[Any, STREAMS],
        &[Cast(GgmlType::F32)],
    ),
    Recipe::rename(
        "model.layers.{}.hc_mlp_layer.hc_pre.hc_base",
        "blk.{}.hc_ffn_base.weight",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.hc_mlp_layer.hc_pre.hc_scale",
        "blk.{}.hc_ffn_scale.weight",
        &[Number(2)],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.learnable_sink_param",
        "blk.{}.attn_sinks.weight",
        &[QueryHeads],
    ),
];
