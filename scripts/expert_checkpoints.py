"""Checkpoints of mixtures of experts, for scripts/checkpoints.py, whose parts (`c`) they are made of: 8 experts, of which a
token sees 2."""

import torch

EXPERTS, USED, WIDTH = 8, 2, 96


def experts(c, p, width=WIDTH, count=EXPERTS, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = names
    shapes = {}
    for e in range(count):
        shapes |= {f"{p}{e}.{gate}.weight": (width, c.HIDDEN), f"{p}{e}.{up}.weight": (width, c.HIDDEN),
                   f"{p}{e}.{down}.weight": (c.HIDDEN, width)}
    return shapes


def layer_norms(c, p):
    return c.norms(p, "input_layernorm", "post_attention_layernorm")


def head_norms(c, p, head=None, names=("q_norm", "k_norm")):
    return c.norms(p, *names, size=head or c.HEAD)


def by_layer(c, vocab, layer, layers, **more):
    """A model whose layers know their number."""
    shapes = c.model(vocab, lambda p: {}, **more)
    for i in range(layers):
        shapes |= layer(i, f"model.layers.{i}.")
    return shapes


def nextn(c, i):
    """What a block for a further token has beside a layer, where it is numbered like one."""
    p = f"model.layers.{i}."
    return {p + "eh_proj.weight": (c.HIDDEN, 2 * c.HIDDEN)} | c.norms(p, "enorm", "hnorm")


def llama4(c, vision=False, layers=4, step=2, used=USED):
    text = {"model_type": "llama4_text", "hidden_size": c.HIDDEN, "intermediate_size": WIDTH, "intermediate_size_mlp": c.FFN,
            "num_hidden_layers": layers, "num_attention_heads": c.HEADS, "num_key_value_heads": c.KV_HEADS, "head_dim": c.HEAD,
            "vocab_size": c.BPE_VOCAB, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_local_experts": EXPERTS,
            "num_experts_per_tok": used, "interleave_moe_layer_step": step, "rope_theta": 500000.0, "bos_token_id": 1,
            "eos_token_id": 2, "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
    config = text | {"architectures": ["Llama4ForCausalLM"]}
    if vision:
        config = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "text_config": text,
                  "vision_config": {"hidden_size": 64}}
    front = "language_model." if vision else ""

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p)
        f = p + "feed_forward."
        if (i + 1) % step:
            return shapes | c.gated(f)
        return shapes | c.gated(f + "shared_expert.", ffn=WIDTH) | {
            f + "router.weight": (EXPERTS, c.HIDDEN), f + "experts.gate_up_proj": (EXPERTS, c.HIDDEN, 2 * WIDTH),
            f + "experts.down_proj": (EXPERTS, WIDTH, c.HIDDEN)}

    shapes = {front + n: s for n, s in by_layer(c, c.BPE_VOCAB, layer, layers).items()}
    if vision:
        shapes |= {"vision_model.class_embedding": (64,), "multi_modal_projector.linear_1.weight": (c.HIDDEN, 64)}
    return config, shapes, "bpe"


def hunyuan_moe(c):
    import small_vocabularies

    heads, kv = 2, 1
    vocab = len(small_vocabularies.ranks()) + len(small_vocabularies.HUNYUAN)
    config = c.base("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", vocab, num_attention_heads=heads, num_key_value_heads=kv,
                    intermediate_size=WIDTH, num_experts=EXPERTS, moe_topk=[USED] * 2, moe_intermediate_size=[WIDTH] * 2, num_shared_expert=[1] * 2,
                    rope_scaling={"type": "dynamic", "alpha": 1000.0, "factor": 1.0}, max_position_embeddings=32768,
                    tie_word_embeddings=True)

    def layer(p):
        q, k = c.HIDDEN, c.HIDDEN // heads * kv
        return ({p + "self_attn.q_proj.weight": (q, c.HIDDEN), p + "self_attn.k_proj.weight": (k, c.HIDDEN),
                 p + "self_attn.v_proj.weight": (k, c.HIDDEN), p + "self_attn.o_proj.weight": (c.HIDDEN, q)}
                | layer_norms(c, p) | head_norms(c, p + "self_attn.", c.HIDDEN // heads, ("query_layernorm", "key_layernorm"))
                | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_mlp.", ffn=WIDTH)
                | {p + "mlp.gate.wg.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(vocab, layer, tied=True), "hunyuan-moe"


def mimo2(c, fused=False, blocks=3):
    layers, value = 4, 32
    config = c.base("MiMoV2ForCausalLM" if fused else "MiMoV2FlashForCausalLM", "mimo_v2", c.BPE_VOCAB,
                    num_hidden_layers=layers, head_dim=c.HEAD, v_head_dim=value, swa_head_dim=c.HEAD, swa_v_head_dim=value,
                    swa_num_attention_heads=c.HEADS, swa_num_key_value_heads=4, num_key_value_heads=2, n_routed_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, topk_method="noaux_tc", n_group=1, topk_group=1,
                    scoring_func="sigmoid", norm_topk_prob=True, hybrid_layer_pattern=[0, 1, 1, 0], sliding_window=128,
                    partial_rotary_factor=0.5, rope_theta=5000000.0, swa_rope_theta=10000.0, layernorm_epsilon=1e-5)
    if not fused:
        config["attention_value_scale"] = 0.707

    def layer(i, p):
        kv = 2 if i in (0, 3) else 4
        a = p + "self_attn."
        q, k, v = c.HEADS * c.HEAD, kv * c.HEAD, kv * value
        shapes = layer_norms(c, p) | {a + "o_proj.weight": (c.HIDDEN, c.HEADS * value)}
        if fused:
            shapes |= {a + "qkv_proj.weight": (q + k + v, c.HIDDEN)}
        else:
            shapes |= {a + "q_proj.weight": (q, c.HIDDEN), a + "k_proj.weight": (k, c.HIDDEN), a + "v_proj.weight": (v, c.HIDDEN)}
        if i in (1, 2):
            shapes |= {a + "attention_sink_bias": (c.HEADS,)}
        if i < 1 or i >= layers:
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | {
            p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.gate.e_score_correction_bias": (EXPERTS,)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, layers)
    for i in range(blocks):
        p = f"model.mtp.layers.{i}."
        shapes |= layer(layers + i, p) | {p + "eh_proj.weight": (c.HIDDEN, 2 * c.HIDDEN)}
        shapes |= c.norms(p, "enorm", "hnorm", "final_layernorm")
    return config, shapes, "bpe"


def hy_v3(c, blocks=1):
    config = c.base("HYV3ForCausalLM", "hy_v3", c.BPE_VOCAB, num_hidden_layers=3, head_dim=c.HEAD, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, num_shared_experts=2, first_k_dense_replace=1,
                    num_nextn_predict_layers=blocks, rope_theta=10000.0)
    if blocks:
        config |= {"route_norm": True, "router_scaling_factor": 2.5}

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.")
        if i < 1:
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_mlp.", ffn=2 * WIDTH) | {
            p + "mlp.router.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.expert_bias": (EXPERTS,)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, 3 + blocks)
    for i in range(3, 3 + blocks):
        shapes |= nextn(c, i) | c.norms(f"model.layers.{i}.", "final_layernorm")
    return config, shapes, "bpe"


def bailingmoe(c, head=None):
    config = c.base("BailingMoeForCausalLM", "bailing_moe", c.BPE_VOCAB, num_experts=EXPERTS, num_experts_per_tok=USED,
                    moe_intermediate_size=WIDTH, num_shared_experts=2, first_k_dense_replace=0, norm_topk_prob=head is None,
                    rope_theta=600000.0)
    if head:
        config["head_dim"] = head
    head = head or c.HEAD

    def layer(p):
        rows = (c.HEADS + 2 * c.KV_HEADS) * head
        return (layer_norms(c, p) | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_experts.", ffn=2 * WIDTH)
                | {p + "attention.query_key_value.weight": (rows, c.HIDDEN), p + "mlp.gate.weight": (EXPERTS, c.HIDDEN),
                   p + "attention.dense.weight": (c.HIDDEN, c.HEADS * head)})

    return config, embedded(c, c.model(c.BPE_VOCAB, layer)), "bpe"


def embedded(c, shapes):
    """Embeddings under Ling's name."""
    return {n.replace("embed_tokens", "word_embeddings"): s for n, s in shapes.items()}


def bailingmoe2(c, blocks=1):
    config = c.base("BailingMoeV2ForCausalLM", "bailing_moe", c.BPE_VOCAB, num_experts=EXPERTS, num_experts_per_tok=USED,
                    n_group=4, topk_group=2, score_function="sigmoid", moe_intermediate_size=WIDTH, num_shared_experts=1,
                    first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.5, head_dim=c.HEAD,
                    num_hidden_layers=3, rope_theta=600000.0)
    if blocks:
        config |= {"num_nextn_predict_layers": blocks, "moe_shared_expert_intermediate_size": WIDTH,
                   "partial_rotary_factor": 0.25}

    def layer(i, p):
        rows = (c.HEADS + 2 * c.KV_HEADS) * c.HEAD
        shapes = layer_norms(c, p) | {p + "attention.query_key_value.weight": (rows, c.HIDDEN),
                                      p + "attention.dense.weight": (c.HIDDEN, c.HEADS * c.HEAD)}
        shapes |= head_norms(c, p + "attention.", names=("query_layernorm", "key_layernorm"))
        if i < 1:
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_experts.", ffn=WIDTH) | {
            p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.gate.expert_bias": (EXPERTS,)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, 3 + blocks)
    for i in range(3, 3 + blocks):
        shapes |= nextn(c, i) | c.norms(f"model.layers.{i}.", "final_layernorm")
    return config, embedded(c, shapes), "bpe"


def sarvam(c, dots=False):
    """Ling 2 with whole heads rotated; real ones have as many heads of keys as others, and no block for further tokens."""
    config, shapes, tokenizer = bailingmoe2(c, 0)
    cls = "SarvamMoEForCausalLM"
    config |= {"architectures": [f"modeling_sarvam_moe.{cls}" if dots else cls], "model_type": "sarvam_moe"}
    if dots:
        del config["head_dim"]
    return config, shapes, tokenizer


def ernie_moe(c, shared=2):
    config = c.base("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", c.SPM_VOCAB, num_hidden_layers=3, moe_num_experts=EXPERTS,
                    moe_k=USED, moe_intermediate_size=128, moe_num_shared_experts=shared, moe_layer_start_index=1,
                    moe_layer_interval=1, moe_layer_end_index=2, rope_theta=500000.0, tie_word_embeddings=shared > 0)

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p)
        if i < 1:
            return shapes | c.gated(p + "mlp.")
        shapes |= experts(c, p + "mlp.experts.", width=128)
        shapes |= {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.moe_statics.e_score_correction_bias": (1, EXPERTS)}
        return shapes | (c.gated(p + "mlp.shared_experts.", ffn=shared * 128) if shared else {})

    shapes = by_layer(c, c.SPM_VOCAB, layer, 3, tied=shared > 0)
    shapes |= {"model.mtp_linear_proj.0.weight": (c.HIDDEN, 2 * c.HIDDEN), "model.mtp_emb_norm.0.weight": (c.HIDDEN,)}
    return config, shapes, "spm"


def olmoe(c):
    config = c.base("OlmoeForCausalLM", "olmoe", c.BPE_VOCAB, num_key_value_heads=c.HEADS, num_experts=EXPERTS, num_experts_per_tok=USED,
                    intermediate_size=WIDTH, norm_topk_prob=False)

    def layer(p):
        whole = {f"{p}self_attn.{n}_proj.weight": (c.HIDDEN, c.HIDDEN) for n in "qkvo"}
        return (whole | layer_norms(c, p) | experts(c, p + "mlp.experts.") | {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN)}
                | c.norms(p + "self_attn.", "q_norm", "k_norm"))

    return config, c.model(c.BPE_VOCAB, layer), "bpe"


def phimoe(c, long=True):
    factors = c.HEAD // 2
    config = c.base("PhiMoEForCausalLM", "phimoe", c.PHI3_VOCAB, num_local_experts=EXPERTS, num_experts_per_tok=USED,
                    intermediate_size=WIDTH, attention_bias=True, lm_head_bias=True, sliding_window=2047,
                    max_position_embeddings=131072, original_max_position_embeddings=4096)
    config["rope_scaling"] = {"type": "longrope", "short_mscale": 1.2, "long_mscale": 1.2,
                              "original_max_position_embeddings": 4096,
                              "short_factor": [1.0 + i / 64 for i in range(factors)],
                              "long_factor": [1.1 + i * 1.3 for i in range(factors)]}
    if not long:
        del config["rope_scaling"]

    def layer(p):
        return (c.attention(p, biases=True, out_bias=True)
                | c.norms(p, "input_layernorm", "post_attention_layernorm", bias=True)
                | experts(c, p + "block_sparse_moe.experts.", names=("w1", "w3", "w2"))
                | {p + "block_sparse_moe.gate.weight": (EXPERTS, c.HIDDEN)})

    shapes = c.model(c.PHI3_VOCAB, layer, bias=True) | {"lm_head.bias": (c.PHI3_VOCAB,)}
    return config, shapes, "phi3"


def dots1(c, dense=1):
    config = c.base("Dots1ForCausalLM", "dots1", c.BPE_VOCAB, num_key_value_heads=c.HEADS, n_routed_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, n_shared_experts=2, first_k_dense_replace=dense,
                    norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", n_group=4, topk_group=2)

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.")
        shapes |= {p + f"self_attn.{n}_proj.weight": (c.HEADS * c.HEAD, c.HIDDEN) for n in "kv"}
        if i < dense:
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_experts.", ffn=2 * WIDTH) | {
            p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.gate.e_score_correction_bias": (EXPERTS,)}

    return config, by_layer(c, c.BPE_VOCAB, layer, c.LAYERS), "bpe"


def laguna(c, elements=False):
    """Windows and heads by layer, gates of heads; or gates of elements, no windows, heads that are everywhere the same."""
    layers, head = 4, c.HEAD
    full = {"rope_theta": 500000.0, "partial_rotary_factor": 0.5, "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 512, "beta_fast": 64.0, "beta_slow": 1.0, "attention_factor": 1.0}
    windowed = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, "rope_type": "default"}
    config = c.base("LagunaForCausalLM", "laguna", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=head, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, shared_expert_intermediate_size=64,
                    moe_routed_scaling_factor=2.5, mlp_layer_types=["dense"] + ["sparse"] * 3, sliding_window=128,
                    layer_types=["full_attention"] + ["sliding_attention"] * 3, gating=True, eos_token_id=[1, 5],
                    rope_parameters={"full_attention": full, "sliding_attention": windowed})
    heads = [2, 4, 4, 4]
    if elements:
        config |= {"gating": "per-element", "gating_types": ["per_element", "per_head"] * 2, "sliding_window": None,
                   "rope_parameters": {"full_attention": {"rope_theta": 500000.0, "rope_type": "default"}}}
        heads = [c.HEADS] * layers
    else:
        config["num_attention_heads_per_layer"] = heads

    def layer(i, p):
        q, k = heads[i] * head, c.KV_HEADS * head
        a = p + "self_attn."
        shapes = {a + "q_proj.weight": (q, c.HIDDEN), a + "k_proj.weight": (k, c.HIDDEN), a + "v_proj.weight": (k, c.HIDDEN),
                  a + "o_proj.weight": (c.HIDDEN, q), a + "g_proj.weight": (q if elements and i % 2 == 0 else heads[i], c.HIDDEN)}
        shapes |= layer_norms(c, p) | head_norms(c, a)
        if i < 1:
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_expert.", ffn=64) | {
            p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.experts.e_score_correction_bias": (EXPERTS,)}

    return config, by_layer(c, c.BPE_VOCAB, layer, layers, tied=elements), "laguna"


def exaone_moe(c, blocks=1):
    layers = 4
    config = c.base("ExaoneMoEForCausalLM", "exaone_moe", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD,
                    num_experts=EXPERTS, num_experts_per_tok=USED, moe_intermediate_size=WIDTH, num_shared_experts=1,
                    scoring_func="sigmoid", n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5,
                    sliding_window=128, rope_theta=1000000.0)
    if blocks:
        config |= {"first_k_dense_replace": 1, "num_nextn_predict_layers": blocks, "sliding_window_pattern": "LLLG"}
    else:
        config |= {"first_last_k_dense_replace": 1, "layer_types": ["sliding_attention", "full_attention"] * 2,
                   "architectures": ["ExaoneMoeForCausalLM"]}

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.")
        if i < 1 or p.startswith("mtp"):
            return shapes | c.gated(p + "mlp.")
        return shapes | experts(c, p + "mlp.experts.") | c.gated(p + "mlp.shared_experts.", ffn=WIDTH) | {
            p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.e_score_correction_bias": (EXPERTS,)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, layers)
    for i in range(blocks):
        shapes |= layer(i, f"mtp.layers.{i}.")
    if blocks:
        shapes |= {"mtp.fc.weight": (c.HIDDEN, 2 * c.HIDDEN)}
        shapes |= c.norms("mtp.", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return config, shapes, "bpe"


def afmoe(c, shared=1):
    layers = 5
    config = c.base("AfmoeForCausalLM", "afmoe", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, num_shared_experts=shared, num_dense_layers=1,
                    route_norm=True, route_scale=2.826, score_func="sigmoid", n_group=1, topk_group=1, sliding_window=128,
                    global_attn_every_n_layers=4, rope_theta=10000.0, mup_enabled=True)

    def layer(i, p):
        shapes = c.attention(p) | {p + "self_attn.gate_proj.weight": (c.HEADS * c.HEAD, c.HIDDEN)}
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
        shapes |= head_norms(c, p + "self_attn.")
        if i < 1:
            return shapes | c.gated(p + "mlp.")
        shapes |= experts(c, p + "mlp.experts.") | {p + "mlp.router.gate.weight": (EXPERTS, c.HIDDEN),
                                                    p + "mlp.expert_bias": (EXPERTS,)}
        return shapes | (c.gated(p + "mlp.shared_experts.", ffn=shared * WIDTH) if shared else {})

    return config, by_layer(c, c.BPE_VOCAB, layer, layers), "bpe"


def mellum(c, windows=True):
    layers = 4
    config = c.base("MellumForCausalLM", "mellum", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, norm_topk_prob=True, sliding_window=128,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
                    rope_theta=500000.0, use_sliding_window=windows)
    if windows:
        config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}

    def layer(p):
        return (c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.") | experts(c, p + "mlp.experts.")
                | {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(c.BPE_VOCAB, layer, layers=layers), "bpe"


def maple(c):
    layers = 4
    config = c.base("MapleForCausalLM", "maple", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, norm_topk_prob=True, sliding_window=128,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
                    nope_on_global_attention=True, rope_theta=10000.0, partial_rotary_factor=0.5)
    _, shapes, _ = mellum(c)
    return config, shapes, "bpe"


def dbrx(c):
    config = {"architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "d_model": c.HIDDEN, "n_heads": c.HEADS,
              "n_layers": c.LAYERS, "max_seq_len": 2048, "vocab_size": c.BPE_VOCAB, "bos_token_id": 1, "eos_token_id": 2,
              "attn_config": {"clip_qkv": 8.0, "kv_n_heads": c.KV_HEADS, "rope_theta": 500000.0},
              "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": EXPERTS, "moe_top_k": USED}}
    shapes = {"transformer.wte.weight": (c.BPE_VOCAB, c.HIDDEN), "transformer.norm_f.weight": (c.HIDDEN,),
              "lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)}
    for i in range(c.LAYERS):
        p = f"transformer.blocks.{i}."
        shapes |= c.norms(p + "norm_attn_norm.", "norm_1", "norm_2")
        shapes |= {p + "norm_attn_norm.attn.Wqkv.weight": ((c.HEADS + 2 * c.KV_HEADS) * c.HEAD, c.HIDDEN),
                   p + "norm_attn_norm.attn.out_proj.weight": (c.HIDDEN, c.HIDDEN),
                   p + "ffn.router.layer.weight": (EXPERTS, c.HIDDEN)}
        shapes |= {p + f"ffn.experts.mlp.{n}": (EXPERTS * WIDTH, c.HIDDEN) for n in ("w1", "v1", "w2")}
    return config, shapes, "bpe"


def cohere2moe(c, blocks=1):
    layers, dense = 5, 320
    config = c.base("Cohere2MoeForCausalLM", "cohere2_moe", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD,
                    num_experts=EXPERTS, num_experts_per_tok=USED, intermediate_size=WIDTH,
                    prefix_dense_intermediate_size=dense, sliding_window=128, logit_scale=0.25, rope_theta=50000.0,
                    layer_types=["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"],
                    expert_selection_fn="sigmoid")
    if blocks:
        del config["rms_norm_eps"]
        config |= {"layer_norm_eps": 1e-5, "norm_topk_prob": True, "num_shared_experts": 2, "num_nextn_predict_layers": blocks,
                   "mlp_layer_types": ["dense"] + ["sparse"] * 4, "shared_expert_combination_strategy": "average"}
    else:
        config |= {"first_k_dense_replace": 1, "tie_word_embeddings": True}

    def layer(i, p):
        shapes = c.attention(p) | c.norms(p, "input_layernorm")
        if i < 1:
            return shapes | c.gated(p + "mlp.", ffn=dense)
        shapes |= experts(c, p + "mlp.experts.") | {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN)}
        return shapes | (c.gated(p + "mlp.shared_experts.", ffn=2 * WIDTH) if blocks else {})

    shapes = by_layer(c, c.BPE_VOCAB, layer, layers + blocks, tied=not blocks)
    for i in range(layers, layers + blocks):
        shapes |= nextn(c, i) | c.norms(f"model.layers.{i}.", "shared_head.norm")
    return config, shapes, "bpe"


def granite_swa(c, sparse=True):
    layers, shared = 4, 160
    config = c.base("GraniteMoeSWAForCausalLM" if sparse else "GraniteSWAForCausalLM", "granitemoe_swa", c.BPE_VOCAB,
                    num_hidden_layers=layers, attention_multiplier=0.0625, embedding_multiplier=12.0,
                    residual_multiplier=0.22, logits_scaling=8.0, rope_theta=10000.0)
    if sparse:
        config |= {"num_local_experts": EXPERTS, "num_experts_per_tok": USED, "intermediate_size": WIDTH,
                   "shared_intermediate_size": shared, "sliding_window": 96, "no_rope_layers": [1, 0, 1, 1],
                   "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p) | {p + "self_attn.sinks": (c.HEADS,)}
        if not sparse:
            return shapes | c.gated(p + "mlp.")
        m = p + "block_sparse_moe."
        if i % 2:
            shapes |= {m + "router.weight": (EXPERTS, c.HIDDEN), m + "experts.gate_up_proj": (EXPERTS, 2 * WIDTH, c.HIDDEN),
                       m + "experts.down_proj": (EXPERTS, c.HIDDEN, WIDTH)}
        else:
            shapes |= {m + "router.layer.weight": (EXPERTS, c.HIDDEN), m + "input_linear.weight": (EXPERTS, 2 * WIDTH, c.HIDDEN),
                       m + "output_linear.weight": (EXPERTS, c.HIDDEN, WIDTH)}
        return shapes | {p + "shared_mlp.input_linear.weight": (2 * shared, c.HIDDEN),
                         p + "shared_mlp.output_linear.weight": (c.HIDDEN, shared)}

    return config, by_layer(c, c.BPE_VOCAB, layer, layers, tied=sparse), "bpe"


def step35(c, vision=False, blocks=1):
    layers, parts = 4, {"sliding_attention": 1.0, "full_attention": 0.5}
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    more = ["sliding_attention"] * blocks
    config = c.base("Step3p5ForCausalLM", "step3p5", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD,
                    num_attention_groups=2, attention_other_setting={"num_attention_heads": 6, "num_attention_groups": 2},
                    layer_types=kinds + more, partial_rotary_factors=[parts[k] for k in kinds + more], sliding_window=128,
                    rope_theta=[5000000.0, 10000.0, 10000.0, 5000000.0], moe_num_experts=EXPERTS, moe_top_k=USED,
                    moe_intermediate_size=WIDTH, share_expert_dim=64, moe_router_scaling_factor=3.0, norm_expert_weight=True,
                    moe_layers_enum="1,2,3", num_nextn_predict_layers=blocks, swiglu_limits=[None, 0.0, 0.05, 0.0],
                    swiglu_limits_shared=[0.0, 0.0, 0.0, 0.05])
    del config["num_key_value_heads"]
    if blocks:
        config["rope_scaling"] = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 32.0,
                                  "original_max_position_embeddings": 2048}

    def layer(i, p):
        heads = 6 if (kinds + more)[i] == "sliding_attention" else c.HEADS
        a, q, k = p + "self_attn.", heads * c.HEAD, 2 * c.HEAD
        shapes = {a + "q_proj.weight": (q, c.HIDDEN), a + "k_proj.weight": (k, c.HIDDEN), a + "v_proj.weight": (k, c.HIDDEN),
                  a + "o_proj.weight": (c.HIDDEN, q), a + "g_proj.weight": (heads, c.HIDDEN)}
        shapes |= layer_norms(c, p) | head_norms(c, a)
        if i < 1 or i >= layers:
            return shapes | c.gated(p + "mlp.")
        m = p + "moe."
        return shapes | c.gated(p + "share_expert.", ffn=64) | {
            m + "gate.weight": (EXPERTS, c.HIDDEN), m + "router_bias": (EXPERTS,),
            m + "gate_proj.weight": (EXPERTS, WIDTH, c.HIDDEN), m + "up_proj.weight": (EXPERTS, WIDTH, c.HIDDEN),
            m + "down_proj.weight": (EXPERTS, c.HIDDEN, WIDTH)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, layers + blocks)
    for i in range(layers, layers + blocks):
        p = f"model.layers.{i}.transformer.shared_head."
        shapes |= nextn(c, i) | {p + "norm.weight": (c.HIDDEN,), p + "output.weight": (c.BPE_VOCAB, c.HIDDEN)}
    if vision:
        config = {"architectures": ["Step3p7ForConditionalGeneration"], "model_type": "step3p7", "text_config": config}
        shapes |= {"vision_model.conv1.weight": (8, 3, 2, 2), "vit_large_projector.weight": (c.HIDDEN, 8)}
    return config, shapes, "bpe"


def smallthinker(c, windows=True):
    # With windows and 4 layers, llama.cpp rotates all.
    layers = 6 if windows else 4
    config = c.base("SmallThinkerForCausalLM", "smallthinker", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD,
                    moe_num_primary_experts=EXPERTS, moe_num_active_primary_experts=USED, moe_ffn_hidden_size=WIDTH,
                    moe_primary_router_apply_softmax=windows, sliding_window_layout=[0, 1, 1, 1, 0, 1] if windows else [0] * 4,
                    sliding_window_size=4096, rope_layout=[0, 1, 1, 1, 0, 1] if windows else [1] * 4, rope_theta=1500000.0)
    del config["intermediate_size"]

    def layer(p):
        m = p + "block_sparse_moe."
        return (c.attention(p) | layer_norms(c, p) | experts(c, m + "experts.", names=("gate", "up", "down"))
                | {m + "primary_router.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(c.BPE_VOCAB, layer, layers=layers, tied=not windows), "bpe"


def grovemoe(c):
    config = c.base("GroveMoeForCausalLM", "grove_moe", c.BPE_VOCAB, head_dim=c.HEAD, num_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, norm_topk_prob=True)

    def layer(p):
        return (c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.") | experts(c, p + "mlp.experts.")
                | experts(c, p + "mlp.chunk_experts.", width=c.HEAD, count=EXPERTS // 2)
                | {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN), p + "mlp.gate.expert_bias": (EXPERTS,)})

    return config, c.model(c.BPE_VOCAB, layer), "bpe"


def minicpm3(c):
    # Twice as wide as the base by which llama.cpp scales the output matrix's input.
    hidden, heads, nope, rotated, q_rank, rank = 512, 4, 32, 32, 96, 64
    value = hidden // heads
    factors = [1.0 + i / 8 for i in range(rotated // 2)]
    config = c.base("MiniCPM3ForCausalLM", "minicpm3", c.SPM_VOCAB, hidden_size=hidden, num_key_value_heads=heads,
                    q_lora_rank=q_rank, kv_lora_rank=rank, qk_nope_head_dim=nope, qk_rope_head_dim=rotated, v_head_dim=value,
                    scale_emb=12, dim_model_base=256, scale_depth=1.4,
                    rope_scaling={"type": "longrope", "long_factor": factors, "short_factor": [1.0] * len(factors),
                                  "original_max_position_embeddings": 32768})

    def layer(p):
        a = p + "self_attn."
        return (c.norms(p, "input_layernorm", "post_attention_layernorm", size=hidden) | c.gated(p + "mlp.", hidden=hidden)
                | c.norms(a, "q_a_layernorm", size=q_rank) | c.norms(a, "kv_a_layernorm", size=rank)
                | {a + "q_a_proj.weight": (q_rank, hidden), a + "q_b_proj.weight": (heads * (nope + rotated), q_rank),
                   a + "kv_a_proj_with_mqa.weight": (rank + rotated, hidden),
                   a + "kv_b_proj.weight": (heads * (nope + value), rank), a + "o_proj.weight": (hidden, heads * value)})

    shapes = c.model(c.SPM_VOCAB, layer) | c.norms("model.", "norm", size=hidden)
    return config, shapes | {f"{n}.weight": (c.SPM_VOCAB, hidden) for n in ("model.embed_tokens", "lm_head")}, "spm"


def llada_moe(c):
    config = c.base("LLaDAMoEModelLM", "llada", c.BPE_VOCAB, num_experts=EXPERTS, num_experts_per_tok=USED,
                    expert_intermediate_size=WIDTH, moe_intermediate_size=WIDTH, norm_topk_prob=None, rope_theta=50000)

    def layer(p):
        return (c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.") | experts(c, p + "mlp.experts.")
                | {p + "mlp.gate.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(c.BPE_VOCAB, layer), "bpe"


def rnd1(c):
    config = c.base("RND1", "rnd1", c.BPE_VOCAB, head_dim=c.HEAD, num_experts=EXPERTS, num_experts_per_tok=USED,
                    moe_intermediate_size=WIDTH, norm_topk_prob=True, mask_token_id=3)
    return config, llada_moe(c)[1], "bpe"


def minimax_m3(c, vision=False):
    layers, dense = 3, 320
    config = c.base("MiniMaxM3SparseForCausalLM", "minimax_m3", c.BPE_VOCAB, num_hidden_layers=layers, head_dim=c.HEAD,
                    num_local_experts=EXPERTS, num_experts_per_tok=USED, intermediate_size=WIDTH,
                    dense_intermediate_size=dense, rotary_dim=c.HEAD // 2, scoring_func="sigmoid", n_shared_experts=2,
                    routed_scaling_factor=2.0, moe_layer_freq=[0, 1, 1], rope_theta=5000000.0, num_key_value_heads=2,
                    sparse_attention_config={"sparse_num_index_heads": 2, "sparse_index_dim": 32, "sparse_topk_blocks": 4,
                                             "sparse_block_size": 128, "sparse_local_block": 1})

    def layer(i, p):
        shapes = c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.")
        if i < 1:
            return shapes | c.gated(p + "mlp.", ffn=dense)
        b, a = p + "block_sparse_moe.", p + "self_attn."
        shapes |= experts(c, b + "experts.", names=("w1", "w3", "w2")) | c.gated(b + "shared_experts.", ffn=2 * WIDTH)
        return shapes | head_norms(c, a, 32, ("index_q_norm", "index_k_norm")) | {
            b + "gate.weight": (EXPERTS, c.HIDDEN), b + "e_score_correction_bias": (EXPERTS,),
            a + "index_q_proj.weight": (64, c.HIDDEN), a + "index_k_proj.weight": (32, c.HIDDEN)}

    shapes = by_layer(c, c.BPE_VOCAB, layer, layers)
    if vision:
        config = {"architectures": ["MiniMaxM3SparseForConditionalGeneration"], "model_type": "minimax_m3_vl",
                  "text_config": config, "vision_config": {"hidden_size": 64}}
        shapes = {"language_model." + n: s for n, s in shapes.items()}
        shapes |= {"vision_tower.embeddings.patch_embedding.weight": (8, 3, 2, 2),
                   "multi_modal_projector.linear_1.weight": (c.HIDDEN, 64), "patch_merge_mlp.linear_1.weight": (64, 64)}
    return config, shapes, "bpe"


def ties(c):
    """Qwen 3 with 32 experts, 4 of which a token sees; scripts/checkpoints.py gives all rows of a router two or more times."""
    count, used = 32, 4
    config = c.base("Qwen3MoeForCausalLM", "qwen3_moe", c.BPE_VOCAB, head_dim=c.HEAD, num_experts=count, num_experts_per_tok=used,
                    moe_intermediate_size=WIDTH, norm_topk_prob=True)

    def layer(p):
        return (c.attention(p) | layer_norms(c, p) | head_norms(c, p + "self_attn.") | experts(c, p + "mlp.experts.", count=count)
                | {p + "mlp.gate.weight": (count, c.HIDDEN)})

    return config, c.model(c.BPE_VOCAB, layer), "bpe"


def grok2(c):
    """With a dense network beside the experts, YaRN, and all caps."""
    config = c.base("Grok1ForCausalLM", "git", c.BPE_VOCAB, head_dim=c.HEAD, num_local_experts=EXPERTS,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, residual_moe=True, embedding_multiplier_scale=16.0,
                    output_multiplier_scale=0.5, final_logit_softcapping=8.0, attn_logit_softcapping=2.0,
                    router_logit_softcapping=30.0, rope_theta=208533496.0, attn_temperature_len=1024, rope_type="original",
                    original_max_position_embeddings=256, scaling_factor=8.0, extrapolation_factor=0.5, attn_factor=1.25,
                    beta_fast=8, beta_slow=1, attn_output_multiplier=0.25)

    def layer(p):
        return (c.attention(p) | c.norms(p, "pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
                | c.gated(p + "mlp.") | experts(c, p + "block_sparse_moe.experts.", names=("w1", "w3", "w2"))
                | {p + "block_sparse_moe.gate.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(c.BPE_VOCAB, layer), "laguna"


def grok1(c):
    """Experts alone, under the names of the first release; caps and scales by default."""
    config = c.base("GrokForCausalLM", "grok-1", c.SPM_VOCAB, num_local_experts=EXPERTS, num_experts_per_tok=USED,
                    embedding_multiplier_scale=12.0, output_multiplier_scale=0.5773502691896257,
                    intermediate_size=WIDTH, rope_theta=10000.0)
    shapes = {"transformer.in_out_embed.weight": (c.SPM_VOCAB, c.HIDDEN)} | c.norms("transformer.", "rms_norm")
    for i in range(c.LAYERS):
        p, q, k = f"transformer.decoder_layer.{i}.", c.HEADS * c.HEAD, c.KV_HEADS * c.HEAD
        a = p + "multi_head_attention."
        shapes |= {a + "query.weight": (q, c.HIDDEN), a + "key.weight": (k, c.HIDDEN), a + "value.weight": (k, c.HIDDEN),
                   a + "linear.weight": (c.HIDDEN, q), p + "router.weight": (EXPERTS, c.HIDDEN)}
        shapes |= c.norms(p, "rms_norm", "rms_norm_1", "rms_norm_2", "rms_norm_3")
        shapes |= experts(c, p + "moe.", names=("linear", "linear_v", "linear_1"))
    return config, shapes, "spm"


def arctic(c, kv=True):
    config = c.base("ArcticForCausalLM", "arctic", c.SPM_VOCAB, num_local_experts=EXPERTS, num_experts_per_tok=USED,
                    intermediate_size=WIDTH, rope_theta=10000.0, use_residual=True)
    if not kv:
        config |= {"vocab_size": c.SPM_VOCAB + 32, "head_dim": c.HEAD}
        del config["num_key_value_heads"]

    def layer(p):
        m, k = p + "residual_mlp.", (c.KV_HEADS if kv else c.HEADS) * c.HEAD
        shapes = c.attention(p) | {f"{p}self_attn.{n}_proj.weight": (k, c.HIDDEN) for n in "kv"}
        return (shapes | c.norms(p, "input_layernorm", "residual_layernorm", "post_attention_layernorm")
                | {f"{m}w{n}.weight": (c.HIDDEN, c.HIDDEN) for n in (1, 2, 3)}
                | experts(c, p + "block_sparse_moe.experts.", names=("w1", "w3", "w2"))
                | {p + "block_sparse_moe.gate.weight": (EXPERTS, c.HIDDEN)})

    return config, c.model(config["vocab_size"], layer, tied=not kv), "arctic"


B, H, F = torch.bfloat16, torch.float16, torch.float32
MAKERS = {
    "llama4": (llama4, B, 1),
    "llama4-vision": (lambda c: llama4(c, True, 4, 1, 1), B, 2),
    "hy_v3": (hy_v3, B, 1),
    "hy_v3-f16": (lambda c: hy_v3(c, 0), H, 1),
    "bailingmoe": (bailingmoe, B, 1),
    "bailingmoe-f16": (lambda c: bailingmoe(c, 96), H, 1),
    "bailingmoe2": (bailingmoe2, B, 2),
    "bailingmoe2-f32": (lambda c: bailingmoe2(c, 0), F, 1),
    "sarvam": (sarvam, B, 1),
    "sarvam-f32": (lambda c: sarvam(c, True), F, 2),
    "ernie4_5-moe": (ernie_moe, B, 1),
    "ernie4_5-moe-bare": (lambda c: ernie_moe(c, 0), H, 1),
    "olmoe": (olmoe, B, 1),
    # llama.cpp goes by the model's name for spaces after special tokens.
    "phi3-moe": (phimoe, B, 1),
    "dots1": (dots1, B, 1),
    "dots1-sparse": (lambda c: dots1(c, 0), H, 2),
    "laguna": (laguna, B, 1),
    "laguna-elements": (lambda c: laguna(c, True), H, 1),
    "exaone-moe": (exaone_moe, B, 1),
    "exaone-moe-bare": (lambda c: exaone_moe(c, 0), B, 1),
    "afmoe": (afmoe, B, 1),
    "afmoe-bare": (lambda c: afmoe(c, 0), H, 1),
    "mellum": (mellum, B, 1),
    "hunyuan-moe": (hunyuan_moe, B, 1),
    "mimo2": (mimo2, B, 1),
    "mimo2-fused": (lambda c: mimo2(c, True), H, 1),
    "step35": (step35, B, 1),
    "step35-vision": (lambda c: step35(c, True, 0), H, 1),
    "smallthinker": (smallthinker, B, 1),
    "smallthinker-whole": (lambda c: smallthinker(c, False), H, 1),
    "grovemoe": (grovemoe, B, 1),
    "minicpm3": (minicpm3, B, 1),
    "llada-moe": (llada_moe, B, 1),
    "rnd1": (rnd1, B, 1),
    "minimax-m3": (minimax_m3, B, 1),
    "minimax-m3-vision": (lambda c: minimax_m3(c, True), H, 2),
    "maple": (maple, B, 1),
    "dbrx": (dbrx, B, 2),
    "cohere2moe": (cohere2moe, B, 1),
    "cohere2moe-bare": (lambda c: cohere2moe(c, 0), H, 1),
    "granite_swa": (lambda c: granite_swa(c, False), B, 1),
    "granite_swa-experts": (granite_swa, B, 1),
    "mellum-whole": (lambda c: mellum(c, False), H, 1),
    "qwen3moe-ties": (ties, B, 1),
    "grok": (grok2, B, 2),
    "grok1": (grok1, H, 1),
    "arctic": (arctic, B, 1),
    "arctic-padded": (lambda c: arctic(c, False), H, 1),
}


def makers(c):
    """The table of scripts/checkpoints.py."""
    bound = lambda maker: lambda: maker(c)
    return {name: (bound(maker), dtype, files) for name, (maker, dtype, files) in MAKERS.items()}
