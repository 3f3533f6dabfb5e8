//! Defaults of transformers' configuration classes for fields missing in config.json.
//!
//! The reference reads config.json through the class of `model_type`. Only fields that affect a
//! GGUF are listed, with the values of transformers 4.57; configs of other `model_type`s are not
//! changed.

use super::config::{Result, wrong_kind};
use serde_json::{Map, Number, Value};

/// The default of a field.
#[derive(Clone, Copy)]
enum Fill {
    Int(u64),
    Float(f64),
    True,
    Text(&'static str),
    Object(&'static [(&'static str, Fill)]),
    False,
    /// A known field whose default is null.
    Null,
    /// The value of another field; null counts as missing.
    SameAs(&'static str),
    /// The quotient of two other fields; null counts as missing.
    Quotient(&'static str, &'static str),
}

use self::Fill::{False, Float, Int, Null, Object, Quotient, SameAs, Text, True};

/// A configuration class.
struct Class {
    model_types: &'static [&'static str],
    fields: &'static [(&'static str, Fill)],
}

macro_rules! class {
    ($($model_type:literal)|+: $($field:ident = $default:expr),* $(,)?) => {
        Class { model_types: &[$($model_type),+], fields: &[$((stringify!($field), $default)),*] }
    };
}

const HEADS: Fill = SameAs("num_attention_heads");

const GPT_OSS_YARN: &[(&str, Fill)] = &[
    ("rope_type", Text("yarn")),
    ("factor", Float(32.0)),
    ("beta_fast", Float(32.0)),
    ("beta_slow", Float(1.0)),
    ("original_max_position_embeddings", Int(4096)),
];

static CLASSES: &[Class] = &[
    class!("llama": vocab_size = Int(32_000), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, head_dim = Quotient("hidden_size", "num_attention_heads")),
    // Grok 2 has the type of another model.
    class!("git": vocab_size = Int(30_522), hidden_size = Int(768), intermediate_size = Int(3072),
        num_hidden_layers = Int(6), num_attention_heads = Int(12), max_position_embeddings = Int(1024),
        layer_norm_eps = Float(1e-12)),
    class!("mistral": vocab_size = Int(32_000), hidden_size = Int(4096), intermediate_size = Int(14_336),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(8), head_dim = Null,
        max_position_embeddings = Int(4096 * 32), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        sliding_window = Int(4096)),
    class!("mixtral": vocab_size = Int(32_000), hidden_size = Int(4096), intermediate_size = Int(14_336),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(8), head_dim = Null,
        max_position_embeddings = Int(4096 * 32), rms_norm_eps = Float(1e-5), rope_theta = Float(1e6),
        sliding_window = Null, num_experts_per_tok = Int(2), num_local_experts = Int(8)),
    class!("qwen2": vocab_size = Int(151_936), hidden_size = Int(4096), intermediate_size = Int(22_016),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null),
    class!("qwen2_moe": vocab_size = Int(151_936), hidden_size = Int(2048), intermediate_size = Int(5632),
        num_hidden_layers = Int(24), num_attention_heads = Int(16), num_key_value_heads = Int(16),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, moe_intermediate_size = Int(1408), shared_expert_intermediate_size = Int(5632),
        num_experts_per_tok = Int(4), num_experts = Int(60)),
    class!("qwen3": vocab_size = Int(151_936), hidden_size = Int(4096), intermediate_size = Int(22_016),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32),
        head_dim = Int(128), max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), rope_scaling = Null),
    class!("qwen3_moe": vocab_size = Int(151_936), hidden_size = Int(2048), intermediate_size = Int(6144),
        num_hidden_layers = Int(24), num_attention_heads = Int(32), num_key_value_heads = Int(4),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, moe_intermediate_size = Int(768), num_experts_per_tok = Int(8),
        num_experts = Int(128)),
    class!("qwen3_next": vocab_size = Int(151_936), hidden_size = Int(2048), intermediate_size = Int(5632),
        num_hidden_layers = Int(48), num_attention_heads = Int(16), num_key_value_heads = Int(2),
        head_dim = Int(256), max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), rope_scaling = Null, partial_rotary_factor = Float(0.25),
        linear_conv_kernel_dim = Int(4), linear_key_head_dim = Int(128), linear_value_head_dim = Int(128),
        linear_num_key_heads = Int(16), linear_num_value_heads = Int(32), moe_intermediate_size = Int(512),
        shared_expert_intermediate_size = Int(512), num_experts_per_tok = Int(10), num_experts = Int(512)),
    class!("lfm2": vocab_size = Int(65_536), hidden_size = Int(2560), intermediate_size = Int(12_288),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(8),
        max_position_embeddings = Int(128_000), norm_eps = Float(1e-5), rope_theta = Float(1e6),
        tie_word_embeddings = True, conv_L_cache = Int(3), block_multiple_of = Int(256),
        block_ffn_dim_multiplier = Float(1.0), block_auto_adjust_ff_dim = True),
    class!("jamba": vocab_size = Int(65_536), hidden_size = Int(4096), intermediate_size = Int(14_336),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(8),
        rms_norm_eps = Float(1e-6), max_position_embeddings = Int(262_144), num_experts_per_tok = Int(2),
        num_experts = Int(16), expert_layer_period = Int(2), expert_layer_offset = Int(1), attn_layer_period = Int(8),
        attn_layer_offset = Int(4), mamba_d_state = Int(16), mamba_d_conv = Int(4), mamba_expand = Int(2)),
    class!("gemma": vocab_size = Int(256_000), hidden_size = Int(3072), intermediate_size = Int(24_576),
        num_hidden_layers = Int(28), num_attention_heads = Int(16), num_key_value_heads = Int(16),
        head_dim = Int(256), max_position_embeddings = Int(8192), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), tie_word_embeddings = True),
    class!("gemma2": vocab_size = Int(256_000), hidden_size = Int(2304), intermediate_size = Int(9216),
        num_hidden_layers = Int(26), num_attention_heads = Int(8), num_key_value_heads = Int(4),
        head_dim = Int(256), max_position_embeddings = Int(8192), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), sliding_window = Int(4096), final_logit_softcapping = Float(30.0),
        attn_logit_softcapping = Float(50.0), tie_word_embeddings = True),
    class!("gemma3_text": vocab_size = Int(262_208), hidden_size = Int(2304), intermediate_size = Int(9216),
        num_hidden_layers = Int(26), num_attention_heads = Int(8), num_key_value_heads = Int(4),
        head_dim = Int(256), max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-6),
        rope_theta = Float(1_000_000.0), sliding_window = Int(4096), final_logit_softcapping = Null,
        attn_logit_softcapping = Null, rope_scaling = Null, rope_local_base_freq = Float(10_000.0),
        tie_word_embeddings = True),
    class!("gemma3n_text": vocab_size = Int(262_400), hidden_size = Int(2048), hidden_size_per_layer_input = Int(256),
        intermediate_size = Int(16_384), num_hidden_layers = Int(35), num_attention_heads = Int(8),
        num_key_value_heads = Int(2), head_dim = Int(256), max_position_embeddings = Int(32_768),
        rms_norm_eps = Float(1e-6), rope_theta = Float(1_000_000.0), rope_scaling = Null,
        rope_local_base_freq = Float(10_000.0), sliding_window = Int(512), final_logit_softcapping = Float(30.0),
        altup_active_idx = Int(0), altup_num_inputs = Int(4), num_kv_shared_layers = Int(15)),
    class!("phi3": vocab_size = Int(32_064), hidden_size = Int(3072), intermediate_size = Int(8192),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(4096), original_max_position_embeddings = Int(4096),
        rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0), rope_scaling = Null,
        partial_rotary_factor = Float(1.0), sliding_window = Null),
    class!("olmo": vocab_size = Int(50_304), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), rope_theta = Float(10_000.0), rope_scaling = Null, clip_qkv = Null),
    class!("olmoe": vocab_size = Int(50_304), hidden_size = Int(2048), intermediate_size = Int(2048),
        num_hidden_layers = Int(16), num_attention_heads = Int(16), num_key_value_heads = HEADS,
        max_position_embeddings = Int(4096), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, num_experts_per_tok = Int(8), num_experts = Int(64)),
    class!("llama4_text": vocab_size = Int(202_048), hidden_size = Int(5120), intermediate_size = Int(8192),
        intermediate_size_mlp = Int(16_384), num_hidden_layers = Int(48), num_attention_heads = Int(40),
        num_key_value_heads = Int(8), head_dim = Int(128), max_position_embeddings = Int(131_072),
        rms_norm_eps = Float(1e-5), rope_theta = Int(500_000), rope_scaling = Null, num_experts_per_tok = Int(1),
        num_local_experts = Int(16), interleave_moe_layer_step = Int(1)),
    class!("ernie4_5_moe": vocab_size = Int(103_424), hidden_size = Int(2560), intermediate_size = Int(12_288),
        num_hidden_layers = Int(28), num_attention_heads = Int(20), num_key_value_heads = Int(4),
        max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-5), rope_theta = Float(500_000.0),
        rope_scaling = Null, moe_intermediate_size = Int(1536), moe_k = Int(6), moe_num_experts = Int(64),
        moe_num_shared_experts = Int(2), moe_layer_start_index = Int(1), moe_layer_interval = Int(1)),
    class!("phimoe": vocab_size = Int(32_064), hidden_size = Int(4096), intermediate_size = Int(6400),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(8),
        max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-5), rope_theta = Float(1e6),
        rope_scaling = Null, sliding_window = Null, num_experts_per_tok = Int(2), num_local_experts = Int(16)),
    class!("dots1": vocab_size = Int(152_064), hidden_size = Int(4608), intermediate_size = Int(10_944),
        moe_intermediate_size = Int(1408), num_hidden_layers = Int(62), num_attention_heads = Int(32),
        num_key_value_heads = Int(32), max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), rope_scaling = Null, n_shared_experts = Null, n_routed_experts = Null,
        num_experts_per_tok = Null, first_k_dense_replace = Int(0), norm_topk_prob = False, n_group = Int(1),
        topk_group = Int(1), routed_scaling_factor = Float(1.0)),
    class!("dbrx": d_model = Int(2048), n_heads = Int(16), n_layers = Int(24), max_seq_len = Int(2048),
        vocab_size = Int(32_000)),
    class!("hunyuan_v1_moe": vocab_size = Int(290_943), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32), head_dim = Null,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, num_experts = Int(1), moe_topk = Int(1)),
    class!("olmo2": vocab_size = Int(50_304), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null),
    class!("arcee": vocab_size = Int(32_000), hidden_size = Int(2560), intermediate_size = Int(18_432),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(4096), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, head_dim = Quotient("hidden_size", "num_attention_heads")),
    class!("cohere": vocab_size = Int(256_000), hidden_size = Int(8192), intermediate_size = Int(22_528),
        num_hidden_layers = Int(40), num_attention_heads = Int(64), num_key_value_heads = HEADS,
        max_position_embeddings = Int(8192), layer_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, logit_scale = Float(0.0625)),
    class!("cohere2": vocab_size = Int(256_000), hidden_size = Int(8192), intermediate_size = Int(22_528),
        num_hidden_layers = Int(40), num_attention_heads = Int(64), num_key_value_heads = HEADS,
        max_position_embeddings = Int(8192), layer_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, logit_scale = Float(0.0625), sliding_window = Int(4096),
        head_dim = Quotient("hidden_size", "num_attention_heads")),
    class!("gpt_bigcode": vocab_size = Int(50_257), n_positions = Int(1024), n_embd = Int(768), n_layer = Int(12),
        n_head = Int(12), layer_norm_epsilon = Float(1e-5)),
    class!("phi": vocab_size = Int(51_200), hidden_size = Int(2048), intermediate_size = Int(8192),
        num_hidden_layers = Int(24), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), layer_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, partial_rotary_factor = Float(0.5)),
    class!("stablelm": vocab_size = Int(50_304), hidden_size = Int(2560), intermediate_size = Int(6912),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32),
        max_position_embeddings = Int(4096), layer_norm_eps = Float(1e-5), rope_theta = Int(10_000),
        rope_scaling = Null, partial_rotary_factor = Float(0.25)),
    class!("ernie4_5": vocab_size = Int(103_424), hidden_size = Int(1024), intermediate_size = Int(3072),
        num_hidden_layers = Int(18), num_attention_heads = Int(16), num_key_value_heads = Int(2),
        max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-5), rope_theta = Float(500_000.0),
        rope_scaling = Null, head_dim = Int(128)),
    class!("nemotron": vocab_size = Int(256_000), hidden_size = Int(6144), intermediate_size = Int(24_576),
        num_hidden_layers = Int(32), num_attention_heads = Int(48), num_key_value_heads = Null,
        max_position_embeddings = Int(4096), norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        partial_rotary_factor = Float(0.5),
        head_dim = Quotient("hidden_size", "num_attention_heads")),
    class!("olmo3": vocab_size = Int(50_304), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, sliding_window = Int(4096)),
    class!("seed_oss": vocab_size = Int(155_136), hidden_size = Int(4096), intermediate_size = Int(27_648),
        num_hidden_layers = Int(64), num_attention_heads = Int(80), num_key_value_heads = Int(8),
        max_position_embeddings = Int(524_288), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, head_dim = Int(128)),
    class!("qwen2_vl_text" | "qwen2_5_vl_text": vocab_size = Int(152_064), hidden_size = Int(8192), intermediate_size = Int(29_568),
        num_hidden_layers = Int(80), num_attention_heads = Int(64), num_key_value_heads = Int(8),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-5), rope_theta = Float(1e6),
        rope_scaling = Null),
    class!("qwen3_vl_text": vocab_size = Int(151_936), hidden_size = Int(4096), intermediate_size = Int(22_016),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32),
        head_dim = Int(128), max_position_embeddings = Int(128_000), rms_norm_eps = Float(1e-6),
        rope_theta = Float(5e6), rope_scaling = Null),
    class!("qwen3_vl_moe_text": vocab_size = Int(151_936), hidden_size = Int(2048), intermediate_size = Int(5632),
        num_hidden_layers = Int(24), num_attention_heads = Int(16), num_key_value_heads = Int(16),
        head_dim = Int(128), max_position_embeddings = Int(128_000), rms_norm_eps = Float(1e-6),
        rope_theta = Float(5e6), rope_scaling = Null, moe_intermediate_size = Int(1408),
        num_experts_per_tok = Int(4), num_experts = Int(60)),
    class!("granitemoe" | "granitemoeshared": vocab_size = Int(32_000), hidden_size = Int(4096),
        intermediate_size = Int(11_008), num_hidden_layers = Int(32), num_attention_heads = Int(32),
        num_key_value_heads = HEADS, max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), rope_scaling = Null, embedding_multiplier = Float(1.0),
        logits_scaling = Float(1.0), residual_multiplier = Float(1.0), attention_multiplier = Float(1.0),
        num_local_experts = Int(8), num_experts_per_tok = Int(2)),
    class!("granite": vocab_size = Int(32_000), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, embedding_multiplier = Float(1.0), logits_scaling = Float(1.0),
        residual_multiplier = Float(1.0), attention_multiplier = Float(1.0)),
    class!("starcoder2": vocab_size = Int(49_152), hidden_size = Int(3072), intermediate_size = Int(12_288),
        num_hidden_layers = Int(30), num_attention_heads = Int(24), num_key_value_heads = Int(2),
        max_position_embeddings = Int(4096), norm_epsilon = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, sliding_window = Null),
    class!("gpt2": vocab_size = Int(50_257), n_positions = Int(1024), n_embd = Int(768), n_layer = Int(12),
        n_head = Int(12), n_inner = Null, layer_norm_epsilon = Float(1e-5)),
    class!("deepseek_v2": vocab_size = Int(32_000), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS, head_dim = SameAs("qk_rope_head_dim"),
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-6), rope_theta = Float(10_000.0),
        rope_scaling = Null, first_k_dense_replace = Int(0), kv_lora_rank = Int(512), q_lora_rank = Int(1536),
        n_group = Null, n_routed_experts = Int(64), n_shared_experts = Int(2), qk_nope_head_dim = Int(128),
        qk_rope_head_dim = Int(64), routed_scaling_factor = Float(1.0), topk_group = Null, v_head_dim = Int(128),
        num_experts_per_tok = Null, moe_intermediate_size = Int(1407)),
    class!("deepseek_v3": vocab_size = Int(129_280), hidden_size = Int(7168), intermediate_size = Int(18_432),
        num_hidden_layers = Int(61), num_attention_heads = Int(128), num_key_value_heads = Int(128),
        head_dim = SameAs("qk_rope_head_dim"), max_position_embeddings = Int(4096), rms_norm_eps = Float(1e-6),
        rope_theta = Float(10_000.0), rope_scaling = Null, first_k_dense_replace = Int(3), kv_lora_rank = Int(512),
        q_lora_rank = Int(1536), n_group = Int(8), n_routed_experts = Int(256), n_shared_experts = Int(1),
        qk_nope_head_dim = Int(128), qk_rope_head_dim = Int(64), routed_scaling_factor = Float(2.5), topk_group = Int(4),
        v_head_dim = Int(128), num_experts_per_tok = Int(8), moe_intermediate_size = Int(2048), norm_topk_prob = True),
    class!("glm4_moe": vocab_size = Int(151_552), hidden_size = Int(4096), intermediate_size = Int(10_944),
        num_hidden_layers = Int(46), num_attention_heads = Int(96), num_key_value_heads = Int(8),
        max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, partial_rotary_factor = Float(0.5), moe_intermediate_size = Int(1408),
        num_experts_per_tok = Int(8), n_group = Int(1), topk_group = Int(1), n_shared_experts = Int(1),
        n_routed_experts = Int(128), routed_scaling_factor = Float(1.0), first_k_dense_replace = Int(1),
        norm_topk_prob = True),
    class!("glm4v_moe_text": vocab_size = Int(151_424), hidden_size = Int(4096), intermediate_size = Int(10_944),
        num_hidden_layers = Int(46), num_attention_heads = Int(96), num_key_value_heads = Int(8),
        max_position_embeddings = Int(65_536), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, partial_rotary_factor = Float(0.5), moe_intermediate_size = Int(1408),
        num_experts_per_tok = Int(8), n_group = Int(1), topk_group = Int(1), n_shared_experts = Int(1),
        n_routed_experts = Int(128), routed_scaling_factor = Float(1.0), first_k_dense_replace = Int(1),
        norm_topk_prob = True),
    class!("gpt_oss": vocab_size = Int(201_088), hidden_size = Int(2880), intermediate_size = Int(2880),
        num_hidden_layers = Int(36), num_attention_heads = Int(64), num_key_value_heads = Int(8), head_dim = Int(64),
        max_position_embeddings = Int(131_072), rms_norm_eps = Float(1e-5), rope_theta = Float(150_000.0),
        rope_scaling = Object(GPT_OSS_YARN), sliding_window = Int(128), num_local_experts = Int(128),
        num_experts_per_tok = Int(4)),
    class!("gpt_neox": vocab_size = Int(50_432), hidden_size = Int(6144), intermediate_size = Int(24_576),
        num_hidden_layers = Int(44), num_attention_heads = Int(64), max_position_embeddings = Int(2048),
        layer_norm_eps = Float(1e-5), rotary_pct = Float(0.25)),
    class!("bloom": vocab_size = Int(250_880), hidden_size = Int(64), n_layer = Int(2), n_head = Int(8),
        layer_norm_epsilon = Float(1e-5)),
    class!("falcon": vocab_size = Int(65_024), hidden_size = Int(4544), num_hidden_layers = Int(32),
        num_attention_heads = Int(71), num_kv_heads = HEADS, layer_norm_epsilon = Float(1e-5)),
    class!("mpt": vocab_size = Int(50_368), d_model = Int(2048), n_layers = Int(24), n_heads = Int(16),
        max_seq_len = Int(2048)),
    class!("apertus": vocab_size = Int(131_072), hidden_size = Int(4096), intermediate_size = Int(14_336),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS,
        max_position_embeddings = Int(65_536), rms_norm_eps = Float(1e-5), rope_theta = Float(12e6)),
    class!("bitnet": vocab_size = Int(128_256), hidden_size = Int(2560), intermediate_size = Int(6912),
        num_hidden_layers = Int(30), num_attention_heads = Int(20), num_key_value_heads = Int(5),
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(500_000.0)),
    class!("exaone4": vocab_size = Int(102_400), hidden_size = Int(4096), intermediate_size = Int(16_384),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = Int(32),
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null, sliding_window = Int(4096)),
    class!("glm" | "glm4": vocab_size = Int(151_552), hidden_size = Int(4096), intermediate_size = Int(13_696),
        num_hidden_layers = Int(40), num_attention_heads = Int(32), num_key_value_heads = Int(2),
        head_dim = Int(128), max_position_embeddings = Int(131_072), rms_norm_eps = Float(1.5625e-7),
        rope_theta = Float(10_000.0), partial_rotary_factor = Float(0.5)),
    class!("glm4v_text": vocab_size = Int(151_552), hidden_size = Int(4096), intermediate_size = Int(13_696),
        num_hidden_layers = Int(40), num_attention_heads = Int(32), num_key_value_heads = Int(2),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null),
    class!("hunyuan_v1_dense": vocab_size = Int(290_943), hidden_size = Int(4096), intermediate_size = Int(11_008),
        num_hidden_layers = Int(32), num_attention_heads = Int(32), num_key_value_heads = HEADS, head_dim = Null,
        max_position_embeddings = Int(2048), rms_norm_eps = Float(1e-5), rope_theta = Float(10_000.0),
        rope_scaling = Null),
    class!("bert": vocab_size = Int(30_522), hidden_size = Int(768), intermediate_size = Int(3072),
        num_hidden_layers = Int(12), num_attention_heads = Int(12), max_position_embeddings = Int(512),
        type_vocab_size = Int(2), layer_norm_eps = Float(1e-12)),
    class!("roberta": vocab_size = Int(50_265), hidden_size = Int(768), intermediate_size = Int(3072),
        num_hidden_layers = Int(12), num_attention_heads = Int(12), max_position_embeddings = Int(512),
        type_vocab_size = Int(2), layer_norm_eps = Float(1e-12), pad_token_id = Int(1)),
    class!("xlm-roberta": vocab_size = Int(30_522), hidden_size = Int(768), intermediate_size = Int(3072),
        num_hidden_layers = Int(12), num_attention_heads = Int(12), max_position_embeddings = Int(512),
        type_vocab_size = Int(2), layer_norm_eps = Float(1e-12), pad_token_id = Int(1)),
    class!("distilbert": vocab_size = Int(30_522), max_position_embeddings = Int(512), n_layers = Int(6),
        n_heads = Int(12), dim = Int(768), hidden_dim = Int(3072)),
    class!("modernbert": vocab_size = Int(50_368), hidden_size = Int(768), intermediate_size = Int(1152),
        num_hidden_layers = Int(22), num_attention_heads = Int(12), hidden_activation = Text("gelu"),
        max_position_embeddings = Int(8192), norm_eps = Float(1e-5), global_rope_theta = Float(160_000.0),
        global_attn_every_n_layers = Int(3), local_attention = Int(128), local_rope_theta = Float(10_000.0),
        classifier_pooling = Text("cls")),
    class!("t5": vocab_size = Int(32_128), d_model = Int(512), d_kv = Int(64), d_ff = Int(2048), num_layers = Int(6),
        num_decoder_layers = SameAs("num_layers"), num_heads = Int(8), relative_attention_num_buckets = Int(32),
        layer_norm_epsilon = Float(1e-6)),
    class!("mt5": vocab_size = Int(250_112), d_model = Int(512), d_kv = Int(64), d_ff = Int(1024),
        num_layers = Int(8), num_decoder_layers = SameAs("num_layers"), num_heads = Int(6),
        relative_attention_num_buckets = Int(32), layer_norm_epsilon = Float(1e-6), decoder_start_token_id = Int(0),
        tie_word_embeddings = False),
    class!("umt5": vocab_size = Int(250_112), d_model = Int(512), d_kv = Int(64), d_ff = Int(1024),
        num_layers = Int(8), num_decoder_layers = SameAs("num_layers"), num_heads = Int(6),
        relative_attention_num_buckets = Int(32), layer_norm_epsilon = Float(1e-6), decoder_start_token_id = Int(0)),
    class!("smollm3": vocab_size = Int(128_256), hidden_size = Int(2048), intermediate_size = Int(11_008),
        num_hidden_layers = Int(36), num_attention_heads = Int(16), num_key_value_heads = Int(4),
        max_position_embeddings = Int(32_768), rms_norm_eps = Float(1e-6), rope_theta = Float(2_000_000.0),
        rope_scaling = Null, sliding_window = Null),
];

/// The encoders of images, by their `model_type` or that of the whole model.
static ENCODERS: &[Class] = &[
    class!("idefics3" | "smolvlm": hidden_size = Int(1152), intermediate_size = Int(3072), num_hidden_layers = Int(12),
        num_attention_heads = Int(16), image_size = Int(224), patch_size = Int(32), layer_norm_eps = Float(1e-6)),
    class!("pixtral": hidden_size = Int(1024), intermediate_size = Int(4096), num_hidden_layers = Int(24),
        num_attention_heads = Int(16), image_size = Int(1024), patch_size = Int(16), hidden_act = Text("gelu")),
    class!("gemma3": hidden_size = Int(768), intermediate_size = Int(3072), num_hidden_layers = Int(12),
        num_attention_heads = Int(12), image_size = Int(224), patch_size = Int(16), layer_norm_eps = Float(1e-6)),
    class!("qwen2_vl": depth = Int(32), embed_dim = Int(1280), hidden_size = Int(3584), num_heads = Int(16),
        patch_size = Int(14)),
    class!("qwen2_5_vl": depth = Int(32), hidden_size = Int(3584), intermediate_size = Int(3420), num_heads = Int(16),
        patch_size = Int(14)),
    class!("qwen2_5_omni_vision_encoder": depth = Int(32), hidden_size = Int(3584), intermediate_size = Int(3420),
        num_heads = Int(16), patch_size = Int(14)),
    class!("qwen2_5_omni_audio_encoder" | "qwen3_omni_moe_audio_encoder": d_model = Int(1280),
        encoder_ffn_dim = Int(5120), encoder_layers = Int(32), encoder_attention_heads = Int(20),
        num_mel_bins = Int(128), num_hidden_layers = SameAs("encoder_layers")),
    class!("qwen3_omni_moe_vision_encoder": depth = Int(27), hidden_size = Int(1152),
        intermediate_size = Int(4304), num_heads = Int(16), patch_size = Int(16), spatial_merge_size = Int(2),
        num_position_embeddings = Int(2304)),
    class!("qwen3_vl" | "qwen3_vl_moe": depth = Int(27), hidden_size = Int(1152), intermediate_size = Int(4304),
        num_heads = Int(16), patch_size = Int(16), spatial_merge_size = Int(2), num_position_embeddings = Int(2304)),
    class!("glm4v" | "glm4v_moe": depth = Int(24), hidden_size = Int(1536), intermediate_size = Int(13_696),
        num_heads = Int(12), image_size = Int(336), patch_size = Int(14), spatial_merge_size = Int(2),
        hidden_act = Text("silu"), rms_norm_eps = Float(1e-5)),
    class!("llama4": hidden_size = Int(768), intermediate_size = Int(5632), num_hidden_layers = Int(34),
        num_attention_heads = Int(16), image_size = Int(448), patch_size = Int(14), hidden_act = Text("gelu"),
        norm_eps = Float(1e-5), pixel_shuffle_ratio = Float(0.5)),
    class!("lfm2_vl": hidden_size = Int(768), intermediate_size = Int(3072), num_hidden_layers = Int(12),
        num_attention_heads = Int(12), patch_size = Int(16), layer_norm_eps = Float(1e-6)),
    class!("janus": hidden_size = Int(1024), num_hidden_layers = Int(24), num_attention_heads = Int(16),
        image_size = Int(384), patch_size = Int(16), mlp_ratio = Float(4.0), hidden_act = Text("gelu"),
        layer_norm_eps = Float(1e-6)),
    class!("granite_speech": input_dim = Int(160), num_layers = Int(10), hidden_dim = Int(1024),
        feedforward_mult = Int(4), num_heads = Int(8), dim_head = Int(128), context_size = Int(200),
        max_pos_emb = Int(512), conv_kernel_size = Int(15)),
    class!("voxtral": hidden_size = Int(1280), intermediate_size = Int(5120), num_hidden_layers = Int(32),
        num_attention_heads = Int(20), num_mel_bins = Int(128)),
    class!("qwen2_audio": d_model = Int(1280), encoder_ffn_dim = Int(5120), encoder_layers = Int(32),
        encoder_attention_heads = Int(20), num_mel_bins = Int(128), num_hidden_layers = SameAs("encoder_layers")),
    class!("gemma3n_vision": hidden_size = Int(2048)),
    class!("gemma3n_audio": hidden_size = Int(1536), input_feat_size = Int(128), conf_num_attention_heads = Int(8),
        conf_num_hidden_layers = Int(12)),
];

/// Adds the defaults at the root of a config that a projector reads.
pub(super) fn complete_outer(outer: &mut Map<String, Value>) {
    /// The side of the squares of patches that Mistral 3 merges.
    const MERGED: u32 = 2;
    match model_type(outer).as_deref() {
        Some("mistral3") => {
            let merged = || MERGED.into();
            outer.entry("spatial_merge_size").or_insert_with(merged);
        }
        Some("granite_speech") => {
            for (name, number) in [("downsample_rate", 5), ("window_size", 15)] {
                outer.entry(name).or_insert_with(|| number.into());
            }
        }
        _ => {}
    }
}

/// Adds the defaults of an encoder.
pub(super) fn complete_encoder(
    fields: &mut Map<String, Value>,
    outer: &Map<String, Value>,
) -> Result<()> {
    let model_type = self::model_type(outer).unwrap_or_default();
    if model_type == "mistral3" {
        let pixtral = || "pixtral".into();
        fields.entry("model_type").or_insert_with(pixtral);
    }
    rename_aliases(fields, &model_type);
    let own = self::model_type(fields).unwrap_or_default();
    let class = ENCODERS.iter().find(|class| {
        let types = class.model_types;
        types.contains(&&*model_type) || types.contains(&&*own)
    });
    for (name, default) in class.into_iter().flat_map(|class| class.fields) {
        if !fields.contains_key(*name) {
            let value = default.value(fields)?;
            fields.insert((*name).into(), value);
        }
    }
    Ok(())
}

/// A class that wraps a text model's class.
struct Wrapper {
    model_type: &'static str,
    /// The text model's class.
    text: &'static str,
    /// True if the text model may have another class.
    open: bool,
    /// True if the fields of a text model without its own object are at the root.
    flat: bool,
}

const fn wrapper(model_type: &'static str, text: &'static str, open: bool, flat: bool) -> Wrapper {
    Wrapper {
        model_type,
        text,
        open,
        flat,
    }
}

static WRAPPERS: &[Wrapper] = &[
    wrapper("glm4v", "glm4v_text", false, false),
    wrapper("glm4v_moe", "glm4v_moe_text", false, false),
    wrapper("gemma3", "gemma3_text", false, false),
    wrapper("granite_speech", "granite", true, false),
    wrapper("idefics3", "llama", true, false),
    wrapper("internvl", "qwen2", true, false),
    wrapper("janus", "llama", true, false),
    wrapper("llama4", "llama4_text", false, false),
    wrapper("lfm2_vl", "lfm2", true, false),
    wrapper("llava", "llama", true, false),
    wrapper("mistral3", "mistral", true, false),
    wrapper("qwen2_5_vl", "qwen2_5_vl_text", false, true),
    wrapper("qwen2_vl", "qwen2_vl_text", false, true),
    wrapper("qwen3_vl", "qwen3_vl_text", false, false),
    wrapper("qwen3_vl_moe", "qwen3_vl_moe_text", false, false),
    wrapper("qwen2_audio", "qwen2", true, false),
    wrapper("smolvlm", "llama", true, false),
    wrapper("voxtral", "llama", true, false),
];

/// Classes in which an explicit null of `num_key_value_heads` means the number of heads.
const NULL_IS_HEADS: &[&str] = &[
    "deepseek_v2",
    "deepseek_v3",
    "jamba",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_5_vl_text",
    "qwen2_vl_text",
    "qwen3",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
    "smollm3",
];

/// Adds the defaults of the config's `model_type` and of its text model.
pub(super) fn complete(fields: &mut Map<String, Value>) -> Result<()> {
    let Some(model_type) = model_type(fields) else {
        return Ok(());
    };
    let Some(wrapper) = WRAPPERS.iter().find(|w| w.model_type == model_type) else {
        return complete_class(fields, &model_type);
    };
    match fields.get_mut("text_config") {
        Some(Value::Object(text)) => {
            let own = self::model_type(text).filter(|_| wrapper.open);
            complete_class(text, own.as_deref().unwrap_or(wrapper.text))
        }
        None | Some(Value::Null) if wrapper.flat => complete_class(fields, wrapper.text),
        _ => Ok(()),
    }
}

fn model_type(fields: &Map<String, Value>) -> Option<String> {
    Some(fields.get("model_type")?.as_str()?.to_owned())
}

/// Other names of T5's fields.
const OF_T5: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "num_layers"),
    ("head_dim", "d_kv"),
];

/// Aliases of a class's fields, and the canonical names.
const ALIASES: &[(&str, &[(&str, &str)])] = &[
    (
        "bloom",
        &[
            ("n_embed", "hidden_size"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ],
    ),
    (
        "distilbert",
        &[
            ("hidden_size", "dim"),
            ("num_attention_heads", "n_heads"),
            ("num_hidden_layers", "n_layers"),
        ],
    ),
    ("modernbert", &[("rope_theta", "global_rope_theta")]),
    ("t5", OF_T5),
    ("mt5", OF_T5),
    ("umt5", OF_T5),
    (
        "lfm2",
        &[
            ("block_ff_dim", "intermediate_size"),
            ("theta", "rope_theta"),
            ("tie_embedding", "tie_word_embeddings"),
        ],
    ),
    (
        "mpt",
        &[
            ("hidden_size", "d_model"),
            ("num_attention_heads", "n_heads"),
            ("num_hidden_layers", "n_layers"),
        ],
    ),
    (
        "voxtral",
        &[
            ("d_model", "hidden_size"),
            ("encoder_attention_heads", "num_attention_heads"),
            ("encoder_ffn_dim", "intermediate_size"),
            ("encoder_layers", "num_hidden_layers"),
        ],
    ),
];

/// Gives the fields of a class their canonical names.
fn rename_aliases(fields: &mut Map<String, Value>, model_type: &str) {
    let aliases = ALIASES.iter().filter(|(class, _)| *class == model_type);
    for (alias, name) in aliases.flat_map(|(_, aliases)| *aliases) {
        if let Some(value) = fields.remove(*alias) {
            fields.insert((*name).into(), value);
        }
    }
}

/// Adds the defaults of a class.
fn complete_class(fields: &mut Map<String, Value>, model_type: &str) -> Result<()> {
    rename_aliases(fields, model_type);
    let Some(class) = CLASSES
        .iter()
        .find(|class| class.model_types.contains(&model_type))
    else {
        return Ok(());
    };
    for (name, default) in class.fields {
        let there = fields.get(*name).is_some_and(|value| match default {
            SameAs(_) | Quotient(..) => !value.is_null(),
            Int(_) | Float(_) | True | False | Text(_) | Object(_) | Null => true,
        });
        if !there {
            let value = default.value(fields)?;
            fields.insert((*name).into(), value);
        }
    }
    if NULL_IS_HEADS.contains(&model_type)
        && fields
            .get("num_key_value_heads")
            .is_some_and(Value::is_null)
    {
        let heads = HEADS.value(fields)?;
        fields.insert("num_key_value_heads".into(), heads);
    }
    if model_type == "phi3" {
        rename_long_rope(fields);
    }
    Ok(())
}

impl Fill {
    fn value(self, fields: &Map<String, Value>) -> Result<Value> {
        let whole = |name: &str| {
            let value = fields.get(name).unwrap_or(&Value::Null);
            value
                .as_u64()
                .ok_or_else(|| wrong_kind(name, value, "a whole number that is not negative"))
        };
        Ok(match self {
            Int(n) => n.into(),
            Float(x) => Number::from_f64(x).map_or(Value::Null, Value::Number),
            True => true.into(),
            Text(text) => text.into(),
            Object(fills) => {
                let filled =
                    |(name, fill): &(&str, Fill)| Ok(((*name).to_owned(), fill.value(fields)?));
                Value::Object(fills.iter().map(filled).collect::<Result<_>>()?)
            }
            False => false.into(),
            Null => Value::Null,
            SameAs(other) => fields.get(other).cloned().unwrap_or_default(),
            Quotient(of, by) => match whole(by)? {
                0 => return Err(format!("field '{by}' is 0")),
                divisor => (whole(of)? / divisor).into(),
            },
        })
    }
}

/// Phi-3's class replaces old names of the long-context type by the new one.
fn rename_long_rope(fields: &mut Map<String, Value>) {
    let kind = fields
        .get_mut("rope_scaling")
        .and_then(|scaling| scaling.get_mut("type"));
    if let Some(kind) = kind.filter(|kind| matches!(kind.as_str(), Some("su" | "yarn"))) {
        *kind = "longrope".into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn completed(fields: Value) -> Map<String, Value> {
        let mut fields = fields.as_object().unwrap().clone();
        complete(&mut fields).unwrap();
        fields
    }

    #[test]
    fn missing_fields_get_class_defaults() {
        let llama = completed(
            json!({ "model_type": "llama", "hidden_size": 512, "num_attention_heads": 8,
            "head_dim": null }),
        );
        assert_eq!(llama["num_key_value_heads"], 8);
        assert_eq!(llama["head_dim"], 64);
        let mistral = completed(json!({ "model_type": "mistral", "num_key_value_heads": null }));
        assert_eq!(mistral["num_key_value_heads"], 32);
        assert!(mistral["head_dim"].is_null());
        assert_eq!(completed(json!({ "model_type": "new" })).len(), 1);
    }

    #[test]
    fn canonical_names_take_precedence_over_aliases() {
        let bloom = completed(
            json!({ "model_type": "bloom", "num_attention_heads": 4, "n_head": 16, "n_layer": 3 }),
        );
        assert_eq!(
            (&bloom["n_head"], &bloom["n_layer"]),
            (&json!(4), &json!(3))
        );
        assert!(!bloom.contains_key("num_attention_heads"));
    }

    #[test]
    fn a_division_by_zero_heads_is_an_error() {
        let mut fields = json!({ "model_type": "llama", "num_attention_heads": 0 })
            .as_object()
            .unwrap()
            .clone();
        assert!(
            complete(&mut fields)
                .unwrap_err()
                .contains("num_attention_heads")
        );
    }
}
