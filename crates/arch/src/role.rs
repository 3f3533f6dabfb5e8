//! The role of a tensor, determined by its name as in llama.cpp's quantizer.

use std::ops::Range;

/// The role of a tensor.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    TokenEmbedding,
    AttentionQ,
    AttentionK,
    AttentionV,
    AttentionQkv,
    /// The joint key-value projection of multi-head latent attention.
    AttentionKvB,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    /// The output gate of attention, or of a delta net.
    AttentionGate,
    /// Input projection of a state space: gates, values, keys, queries and steps.
    StateInput,
    /// Projection of a state space's values to keys, queries and steps.
    StateParameters,
    /// Projection of a state space's low-rank factors to the steps of its channels.
    StateStep,
    /// Decay of a delta net.
    StateAlpha,
    /// Learning rate of a delta net.
    StateBeta,
    /// Both alpha and beta in one matrix.
    StateRates,
    StateOutput,
    ConvolutionInput,
    ConvolutionOutput,
    TimeReceptance,
    TimeKey,
    TimeValue,
    TimeGate,
    TimeOutput,
    ChannelReceptance,
    ChannelKey,
    ChannelValue,
    Output,
    /// Any other role. llama.cpp's quantizer treats all roles of recurrent layers this way.
    Other,
}

/// Parts of names and their roles; the first match wins.
const PARTS: &[(&str, Role)] = &[
    ("attn_qkv.weight", Role::AttentionQkv),
    ("attn_kv_b.weight", Role::AttentionKvB),
    ("attn_v.weight", Role::AttentionV),
    ("attn_k.weight", Role::AttentionK),
    ("attn_q.weight", Role::AttentionQ),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
    ("attn_gate.weight", Role::AttentionGate),
    ("ssm_in.weight", Role::StateInput),
    ("ssm_x.weight", Role::StateParameters),
    ("ssm_dt.weight", Role::StateStep),
    ("ssm_alpha.weight", Role::StateAlpha),
    ("ssm_beta.weight", Role::StateBeta),
    ("ssm_ba.weight", Role::StateRates),
    ("ssm_out.weight", Role::StateOutput),
    ("shortconv.in_proj.weight", Role::ConvolutionInput),
    ("shortconv.out_proj.weight", Role::ConvolutionOutput),
    ("time_mix_receptance.weight", Role::TimeReceptance),
    ("time_mix_key.weight", Role::TimeKey),
    ("time_mix_value.weight", Role::TimeValue),
    ("time_mix_gate.weight", Role::TimeGate),
    ("time_mix_output.weight", Role::TimeOutput),
    ("channel_mix_receptance.weight", Role::ChannelReceptance),
    ("channel_mix_key.weight", Role::ChannelKey),
    ("channel_mix_value.weight", Role::ChannelValue),
];

impl Role {
    /// The role of a tensor by name.
    pub fn of(name: &str) -> Role {
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | PER_LAYER_EMBEDDING => Role::TokenEmbedding,
            _ => PARTS
                .iter()
                .find(|(part, _)| name.contains(part))
                .map_or(Role::Other, |(_, role)| *role),
        }
    }

    /// True for attention values, which are most sensitive to few bits.
    pub fn carries_values(self) -> bool {
        matches!(
            self,
            Role::AttentionV | Role::AttentionQkv | Role::AttentionKvB
        )
    }

    /// The role with this short name.
    pub fn from_label(label: &str) -> Option<Role> {
        ALL.iter().copied().find(|role| role.label() == label)
    }

    /// A short name for tables: `attn_q`, `ffn_down`, ...
    pub fn label(self) -> &'static str {
        match self {
            Role::TokenEmbedding => "token_embd",
            Role::AttentionQ => "attn_q",
            Role::AttentionK => "attn_k",
            Role::AttentionV => "attn_v",
            Role::AttentionQkv => "attn_qkv",
            Role::AttentionKvB => "attn_kv_b",
            Role::AttentionOutput => "attn_output",
            Role::FfnUp => "ffn_up",
            Role::FfnGate => "ffn_gate",
            Role::FfnDown => "ffn_down",
            Role::AttentionGate => "attn_gate",
            Role::StateInput => "ssm_in",
            Role::StateParameters => "ssm_x",
            Role::StateStep => "ssm_dt",
            Role::StateAlpha => "ssm_alpha",
            Role::StateBeta => "ssm_beta",
            Role::StateRates => "ssm_ba",
            Role::StateOutput => "ssm_out",
            Role::ConvolutionInput => "shortconv.in_proj",
            Role::ConvolutionOutput => "shortconv.out_proj",
            Role::TimeReceptance => "time_mix_receptance",
            Role::TimeKey => "time_mix_key",
            Role::TimeValue => "time_mix_value",
            Role::TimeGate => "time_mix_gate",
            Role::TimeOutput => "time_mix_output",
            Role::ChannelReceptance => "channel_mix_receptance",
            Role::ChannelKey => "channel_mix_key",
            Role::ChannelValue => "channel_mix_value",
            Role::Output => "output",
            Role::Other => "other",
        }
    }
}

/// All roles.
const ALL: [Role; 30] = [
    Role::TokenEmbedding,
    Role::AttentionQ,
    Role::AttentionK,
    Role::AttentionV,
    Role::AttentionQkv,
    Role::AttentionKvB,
    Role::AttentionOutput,
    Role::FfnUp,
    Role::FfnGate,
    Role::FfnDown,
    Role::AttentionGate,
    Role::StateInput,
    Role::StateParameters,
    Role::StateStep,
    Role::StateAlpha,
    Role::StateBeta,
    Role::StateRates,
    Role::StateOutput,
    Role::ConvolutionInput,
    Role::ConvolutionOutput,
    Role::TimeReceptance,
    Role::TimeKey,
    Role::TimeValue,
    Role::TimeGate,
    Role::TimeOutput,
    Role::ChannelReceptance,
    Role::ChannelKey,
    Role::ChannelValue,
    Role::Output,
    Role::Other,
];

/// Gemma's second embedding table, treated as the first except for explicit overrides.
pub(crate) const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// Properties that llama.cpp's quantizer derives from a tensor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The role.
    pub role: Role,
    /// The layer as parsed by the quantizer: may be negative or outside the model.
    pub layer: Option<i32>,
    /// True if the quantizer quantizes the tensor, apart from `--leave-output-tensor`.
    pub quantizable: bool,
    /// True if the quantizer skips tensors of this name, whatever their dimensions.
    pub left_alone: bool,
    /// True if mixtures use Q8_0.
    pub keeps_q8: bool,
    /// True for Gemma's second embedding table.
    pub is_per_layer_embedding: bool,
}

impl Facts {
    /// The facts of a tensor with these dimensions, row length first, missing ones 1.
    pub fn new(architecture: &str, name: &str, dims: [u64; 4]) -> Facts {
        let dimensions = dims.iter().rposition(|&d| d > 1).unwrap_or(0) + 1;
        Facts {
            role: Role::of(name),
            layer: layer_of(name),
            quantizable: may_be_quantized(architecture, name, dimensions, true),
            left_alone: !may_be_quantized(architecture, name, 2, true),
            keeps_q8: architecture == GLM5_NEXT
                && GLM5_NEXT_PARTS_Q8.iter().any(|part| name.contains(part)),
            is_per_layer_embedding: name == PER_LAYER_EMBEDDING,
        }
    }
}

/// The block of a tensor, as parsed by llama-imatrix: 3 for `blk.3.attn_q.weight`.
pub fn block_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// True for the matrix of a single expert, as in early files of Mixtral: `blk.3.ffn_gate.7.weight`.
pub fn is_single_expert(name: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    match parts[..] {
        [
            "blk",
            layer,
            "ffn_gate" | "ffn_up" | "ffn_down",
            expert,
            "weight",
        ] => is_number(layer) && is_number(expert),
        _ => false,
    }
}

/// The name of the same tensor in the previous layer, as in llama-imatrix.
pub fn one_block_before(name: &str) -> Option<String> {
    let block = block_of(name)?;
    let before = block.checked_sub(1)?;
    Some(name.replacen(&format!("blk.{block}."), &format!("blk.{before}."), 1))
}

/// The kind of a tensor, as grouped in llama-imatrix's statistics: `ffn_up` of
/// `blk.0.ffn_up.weight`; the whole name if there is no such part.
pub fn kind_of(name: &str) -> &str {
    let parts: Vec<_> = name.split('.').collect();
    let weight = parts.iter().skip(1).position(|part| *part == "weight");
    let kind = weight.map(|at| parts[at]).filter(|kind| !kind.is_empty());
    kind.unwrap_or(name)
}

/// The layer number of a name (`blk.N.` anywhere in it) and its byte range.
pub fn layer_number(name: &str) -> Option<(Range<usize>, u32)> {
    name.match_indices("blk.").find_map(|(at, part)| {
        let start = at + part.len();
        let end = start + name[start..].bytes().take_while(u8::is_ascii_digit).count();
        let number = name[start..end].parse().ok()?;
        name[end..].starts_with('.').then_some((start..end, number))
    })
}

/// True for the name of a weight.
pub(crate) fn is_weight(name: &str) -> bool {
    name.ends_with(WEIGHT)
}

/// The name of a weight's bias.
pub(crate) fn bias_of(weight: &str) -> Option<String> {
    Some(format!("{}.bias", weight.strip_suffix(WEIGHT)?))
}

/// The name of a weight's scale, a factor of its products.
pub(crate) fn scale_of(weight: &str) -> Option<String> {
    Some(format!("{}.scale", weight.strip_suffix(WEIGHT)?))
}

/// Byte range of the short name: the role for embeddings and the output, otherwise the part between
/// the layer and `.weight`.
pub(crate) fn label_range(name: &str) -> Range<usize> {
    let label = Role::of(name).label();
    let of_layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let start = match Role::of(name) {
        Role::Output | Role::TokenEmbedding => {
            let start = name.find(label).unwrap_or(0);
            return start..start + label.len();
        }
        _ => of_layer.map_or(0, |(_, rest)| name.len() - rest.len()),
    };
    start..start + name[start..].trim_end_matches(WEIGHT).len()
}

const WEIGHT: &str = ".weight";

/// The layer number of a tensor (`blk.7.attn_q.weight` -> 7), parsed as by C's `scanf("blk.%d.")`.
fn layer_of(name: &str) -> Option<i32> {
    let digits = name
        .strip_prefix("blk.")?
        .trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let sign = usize::from(digits.starts_with(['-', '+']));
    let end = sign
        + digits[sign..]
            .bytes()
            .take_while(u8::is_ascii_digit)
            .count();
    if end == sign {
        return None;
    }
    // A number too large for an int cannot be a layer; any value outside the model works.
    Some(
        digits[..end]
            .parse::<i64>()
            .ok()
            .and_then(|n| i32::try_from(n).ok())
            .unwrap_or(i32::MAX),
    )
}

/// True if llama.cpp's quantizer may quantize the tensor, by its name and number of dimensions
/// (trailing ones not counted).
///
/// `quantize_output` is false under `--leave-output-tensor`. The excluded tensors are the
/// reference's: norms, expert routers, position tables, small state-space and RWKV matrices, parts
/// of vision and audio towers.
fn may_be_quantized(
    architecture: &str,
    name: &str,
    dimensions: usize,
    quantize_output: bool,
) -> bool {
    // In the reference, a name of five bytes without "weight" passes this test by an unsigned
    // wrap-around.
    let is_weight = name.ends_with("weight") || (name.len() == 5);
    dimensions >= 2
        && is_weight
        && (quantize_output || name != "output.weight")
        && !WHOLE_NAMES_KEPT.contains(&name)
        && !PARTS_KEPT.iter().any(|part| name.contains(part))
        && !(architecture == GLM5_NEXT
            && GLM5_NEXT_PARTS_KEPT.iter().any(|part| name.contains(part)))
}

/// The architecture with separate rules.
const GLM5_NEXT: &str = "glm5-next";

const WHOLE_NAMES_KEPT: &[&str] = &["position_embd.weight", "token_types.weight"];

const PARTS_KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

const GLM5_NEXT_PARTS_Q8: &[&str] = &["attn_q_a", "attn_q_b", "nextn.eh_proj"];

const GLM5_NEXT_PARTS_KEPT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name() {
        for (name, role) in [
            ("output.weight", Role::Output),
            ("blk.3.attn_output.weight", Role::AttentionOutput),
            ("blk.3.ffn_down_exps.weight", Role::FfnDown),
            ("blk.3.ffn_gate_inp.weight", Role::FfnGate),
            ("blk.3.attn_qkv.weight", Role::AttentionQkv),
            ("blk.3.attn_q_norm.weight", Role::Other),
            ("blk.3.attn_gate.weight", Role::AttentionGate),
            ("blk.3.ssm_in.weight", Role::StateInput),
            ("blk.3.ssm_dt.weight", Role::StateStep),
            ("blk.3.ssm_dt.bias", Role::Other),
            ("blk.3.shortconv.out_proj.weight", Role::ConvolutionOutput),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
            assert_eq!(Role::from_label(role.label()), Some(role));
        }
    }

    #[test]
    fn layers_are_parsed_like_scanf() {
        for (name, layer) in [
            ("blk.12.x", Some(12)),
            ("blk.12", Some(12)),
            ("blk.-3.x", Some(-3)),
            ("blk.x", None),
            ("a.blk.1.x", None),
            ("blk.99999999999999999999.x", Some(i32::MAX)),
        ] {
            assert_eq!(layer_of(name), layer, "{name}");
        }
    }

    #[test]
    fn names_in_importance_matrices() {
        for (name, block, before, kind) in [
            (
                "blk.3.ffn_up.weight",
                Some(3),
                Some("blk.2.ffn_up.weight"),
                "ffn_up",
            ),
            ("blk.0.ffn_up.weight", Some(0), None, "ffn_up"),
            ("output.weight", None, None, "output"),
            ("weight", None, None, "weight"),
            ("blk.x..weight", None, None, "blk.x..weight"),
        ] {
            assert_eq!(block_of(name), block, "{name}");
            assert_eq!(one_block_before(name).as_deref(), before, "{name}");
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }

    #[test]
    fn layer_numbers_anywhere_in_a_name() {
        for (name, number) in [
            ("v.blk.12.x", Some((6..8, 12))),
            ("blk.x.blk.3.y", Some((10..11, 3))),
            ("blk.12", None),
        ] {
            assert_eq!(layer_number(name), number, "{name}");
        }
    }

    #[test]
    fn excluded_tensors() {
        assert!(may_be_quantized("llama", "blk.0.attn_q.weight", 2, true));
        assert!(!may_be_quantized("llama", "blk.0.attn_q.weight", 1, true));
        assert!(!may_be_quantized(
            "llama",
            "blk.0.attn_norm.weight",
            2,
            true
        ));
        assert!(!may_be_quantized("llama", "output.weight", 2, false));
        assert!(!may_be_quantized("llama", "blk.0.attn_q.bias", 2, true));
        assert!(may_be_quantized("llama", "blk.0.attn_k_b.weight", 2, true));
        assert!(!may_be_quantized(
            GLM5_NEXT,
            "blk.0.attn_k_b.weight",
            2,
            true
        ));
    }
}
