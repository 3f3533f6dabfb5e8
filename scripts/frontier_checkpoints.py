"""Checkpoints of models with several residual streams, attention residuals and latent experts, for scripts/checkpoints.py,
whose parts (`c`) they are made of."""

import torch

EXPERTS, USED, WIDTH = 8, 2, 96


def integers(name, shape):
    """Tensors of whole numbers, by name; None of any other."""
    gen = torch.Generator().manual_seed(len(name))
    if name.endswith("tid2eid"):
        return torch.randint(0, EXPERTS, shape, generator=gen, dtype=torch.int64)
    if name.endswith("layer_multipliers"):
        # Odd, of more bits than an f32 has.
        return torch.randint(2 ** 40, 2 ** 44, shape, generator=gen, dtype=torch.int64) * 2 + 1
    if name.endswith("ngram_heads_offsets"):
        return torch.arange(shape[0], dtype=torch.int64) * 97
    if name.endswith("ngram_heads_vocab_sizes"):
        return torch.tensor([89 + 2 * (i % 4) for i in range(shape[0])], dtype=torch.int64)
    return None


def gated(p, width, hidden, names=("w1", "w3", "w2")):
    gate, up, down = names
    return {f"{p}{gate}.weight": (width, hidden), f"{p}{up}.weight": (width, hidden), f"{p}{down}.weight": (hidden, width)}


def deepseek4(c, ratios=(0, 4, 128, 4), hashed=1, mtp=1, **more):
    """Layers without compression and with both kinds of it, the first of them with a table of experts."""
    layers, streams, heads, head, rotated, rank = len(ratios), 4, c.HEADS, c.HEAD, 16, 64
    groups, out_rank, index_heads, index_head = 2, 32, 4, 64
    config = c.base("DeepseekV4ForCausalLM", "deepseek_v4", c.BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=1,
                    head_dim=head, qk_rope_head_dim=rotated, q_lora_rank=rank, o_groups=groups, o_lora_rank=out_rank,
                    sliding_window=128, n_routed_experts=EXPERTS, n_shared_experts=1, num_experts_per_tok=USED,
                    moe_intermediate_size=WIDTH, routed_scaling_factor=1.5, norm_topk_prob=True, scoring_func="sqrtsoftplus",
                    topk_method="noaux_tc", swiglu_limit=10.0, index_n_heads=index_heads, index_head_dim=index_head,
                    index_topk=64, compress_ratios=[*ratios, *[0] * mtp], compress_rope_theta=160000, hc_mult=streams,
                    hc_sinkhorn_iters=3, hc_eps=1e-6, num_hash_layers=hashed, num_nextn_predict_layers=mtp,
                    rope_theta=10000, rope_scaling=c.yarn())
    del config["intermediate_size"]
    mixes = (2 + streams) * streams

    def layer(i, p):
        a, f = p + "attn.", p + "ffn."
        shapes = {a + "wq_a.weight": (rank, c.HIDDEN), a + "wq_b.weight": (heads * head, rank), a + "wkv.weight": (head, c.HIDDEN),
                  a + "wo_a.weight": (groups * out_rank, heads * head // groups), a + "wo_b.weight": (c.HIDDEN, groups * out_rank),
                  a + "attn_sink": (heads,), a + "q_norm.weight": (rank,), a + "kv_norm.weight": (head,)}
        shapes |= c.norms(p, "attn_norm", "ffn_norm")
        for part in ("attn", "ffn"):
            shapes |= {f"{p}hc_{part}_fn": (mixes, streams * c.HIDDEN), f"{p}hc_{part}_base": (mixes,), f"{p}hc_{part}_scale": (3,)}
        ratio = ratios[i] if i < layers else 0
        if ratio:
            shapes |= compressor(a, ratio, (2 if ratio == 4 else 1) * head, head)
        if ratio == 4:
            x = a + "indexer."
            shapes |= {x + "wq_b.weight": (index_heads * index_head, rank), x + "weights_proj.weight": (index_heads, c.HIDDEN)}
            shapes |= compressor(x, ratio, 2 * index_head, index_head)
        shapes |= {f + "gate.weight": (EXPERTS, c.HIDDEN), f + "gate.bias": (EXPERTS,)}
        if i < hashed:
            shapes[f + "gate.tid2eid"] = (c.BPE_VOCAB, USED)
        shapes |= gated(f + "shared_experts.", WIDTH, c.HIDDEN)
        for e in range(EXPERTS):
            shapes |= gated(f"{f}experts.{e}.", WIDTH, c.HIDDEN)
        return shapes

    def compressor(p, ratio, length, norm):
        p += "compressor."
        return {p + "ape": (ratio, length), p + "wkv.weight": (length, c.HIDDEN), p + "wgate.weight": (length, c.HIDDEN),
                p + "norm.weight": (norm,)}

    def head_of_streams(p):
        return {p + "hc_head_fn": (streams, streams * c.HIDDEN), p + "hc_head_base": (streams,), p + "hc_head_scale": (1,)}

    shapes = {"embed.weight": (c.BPE_VOCAB, c.HIDDEN), "head.weight": (c.BPE_VOCAB, c.HIDDEN)} | c.norms("", "norm")
    shapes |= head_of_streams("")
    for i in range(layers):
        shapes |= layer(i, f"layers.{i}.")
    for i in range(mtp):
        p = f"mtp.{i}."
        shapes |= layer(layers + i, p) | head_of_streams(p) | c.norms(p, "enorm", "hnorm", "norm")
        shapes |= {p + "e_proj.weight": (c.HIDDEN, c.HIDDEN), p + "h_proj.weight": (c.HIDDEN, c.HIDDEN)}
    return config | more, shapes, "bpe"


def kda(c, p, heads, head, kernel, whole_gate):
    """Kimi Delta Attention, its output gate of one matrix or of two."""
    inner = heads * head
    shapes = {f"{p}{n}_proj.weight": (inner, c.HIDDEN) for n in "qkv"} | {f"{p}{n}_conv1d.weight": (inner, 1, kernel) for n in "qkv"}
    shapes |= {p + "f_a_proj.weight": (head, c.HIDDEN), p + "f_b_proj.weight": (inner, head), p + "b_proj.weight": (heads, c.HIDDEN),
               p + "A_log": (heads,), p + "dt_bias": (inner,), p + "o_norm.weight": (head,), p + "o_proj.weight": (c.HIDDEN, inner)}
    if whole_gate:
        return shapes | {p + "g_proj.weight": (inner, c.HIDDEN)}
    return shapes | {p + "g_a_proj.weight": (head, c.HIDDEN), p + "g_b_proj.weight": (inner, head)}


def latent(c, p, heads, query_rank, rank, plain, rotated, value):
    shapes = {p + "kv_a_proj_with_mqa.weight": (rank + rotated, c.HIDDEN), p + "kv_a_layernorm.weight": (rank,),
              p + "kv_b_proj.weight": (heads * (plain + value), rank), p + "o_proj.weight": (c.HIDDEN, heads * value)}
    if query_rank is None:
        return shapes | {p + "q_proj.weight": (heads * (plain + rotated), c.HIDDEN)}
    return shapes | {p + "q_a_proj.weight": (query_rank, c.HIDDEN), p + "q_a_layernorm.weight": (query_rank,),
                     p + "q_b_proj.weight": (heads * (plain + rotated), query_rank)}


def indexer(c, p, heads, head, query_rank):
    return {p + "wq_b.weight": (heads * head, query_rank), p + "wk.weight": (head, c.HIDDEN),
            p + "weights_proj.weight": (heads, c.HIDDEN)} | c.norms(p, "k_norm", size=head, bias=True)


def glm5_next(c, kinds=None, mtp=1, **more):
    """Two kinds of attention; `kinds` of indexers."""
    layers, streams, head, kernel, query_rank, rank, plain, value = 4, 4, 32, 4, 48, 64, 32, 48
    index_heads, index_head, pool = 4, 32, 4
    full = (1, 3)
    text = c.base("", "glm5_next_text", c.BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=c.HEADS, head_dim=plain,
                  layer_types=["sparse_attention" if i in full else "linear_attention" for i in range(layers)],
                  linear_attn_config={"num_heads": c.HEADS, "head_dim": head, "short_conv_kernel_size": kernel,
                                      "gate_lower_bound": -5.0},
                  mla_use_nope=True, q_lora_rank=query_rank, kv_lora_rank=rank, qk_nope_head_dim=plain, qk_rope_head_dim=0,
                  v_head_dim=value, index_n_heads=index_heads, index_head_dim=index_head, index_topk=16, index_kpool=pool,
                  mhc=True, hc_mult=streams, hc_sinkhorn_iters=3, hc_eps=1e-6, first_k_dense_replace=1,
                  n_routed_experts=EXPERTS, num_experts_per_tok=USED, n_shared_experts=1, moe_intermediate_size=WIDTH,
                  n_group=1, topk_group=1, scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
                  num_nextn_predict_layers=mtp, tie_word_embeddings=False)
    if kinds:
        text |= {"indexer_types": kinds, "index_kpool_always_select_tail": False}
    else:
        text["swiglu_limit"] = 7.0
    text |= more
    shapes = {"model.embed_tokens.weight": (c.BPE_VOCAB, c.HIDDEN), "lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)} | c.norms("model.", "norm")
    mixes = (2 + streams) * streams
    for i in range(layers + mtp):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm")
        if i < layers:
            for part in ("attn", "ffn"):
                shapes |= {f"{p}hc_{part}_fn": (mixes, streams * c.HIDDEN), f"{p}hc_{part}_base": (mixes,), f"{p}hc_{part}_scale": (3,)}
        if i in full or i >= layers:
            shapes |= latent(c, a, c.HEADS, query_rank, rank, plain, 0, value)
            if not kinds or i >= layers or kinds[i] == "full":
                x = a + "indexer."
                shapes |= indexer(c, x, index_heads, index_head, query_rank)
                shapes |= {x + "index_kpool_compress_gate": (index_head, c.HIDDEN), x + "index_kpool_compress_ape": (pool, index_head)}
        else:
            shapes |= kda(c, a, c.HEADS, head, kernel, False)
        shapes |= c.gated(p + "mlp.") if i < 1 else c.shared_and_routed(p + "mlp.", EXPERTS, WIDTH, 1, True)
        if i >= layers:
            shapes |= c.nextn(p)
    return c.wrapped((c.without(text, "architectures"), shapes, "glm-moe"), "Glm5NextForConditionalGeneration", "glm5_next", c.inside)


def qwen4exp(c, parts=2, causal=False):
    """Delta nets and attention between hyper-connections; a layer with a table of n-grams in two parts, or none."""
    streams, low, index_heads, index_head, ngrams, heads, row, kernel = 4, 32, 4, 32, 3, 4, 16, 4
    config, shapes, _ = c.qwen35moe(causal)
    layers = config["num_hidden_layers"]
    config = c.without(config, "mtp_num_hidden_layers") | {
        "architectures": ["Qwen4ExpForCausalLM"], "model_type": "qwen4_exp_text", "hc_count": streams, "hc_lowrank": low,
        "indexer_n_heads": index_heads, "indexer_head_dim": index_head, "indexer_budget": 64, "indexer_compress_ratio": 4,
        "ple_layer_ids": [2] if parts else [], "ngram_size": ngrams, "heads_per_ngram": heads, "ple_conv_kernel_size": kernel,
        "split_ngram_parts": parts, "eos_token_id": [4, 2], "image_token_id": 7}
    left_out = ("input_layernorm", "post_attention_layernorm", "model.norm.")
    shapes = {n: s for n, s in shapes.items() if not any(part in n for part in left_out)}
    wide = streams * c.HIDDEN

    def mixer(p, inject=True):
        more = {p + "block_inject_weight.weight": (streams, wide)} if inject else {}
        return more | {p + "hc_norm.weight": (wide,), p + "input_mix_weight_down.weight": (low, wide),
                       p + "input_mix_weight_up.weight": (wide, low)}

    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= mixer(p + "attn_hyper_connection.") | mixer(p + "mlp_hyper_connection.")
        if config["layer_types"][i] == "full_attention":
            x = p + "self_attn.indexer."
            shapes |= {x + "index_qk_proj.weight": ((index_heads + 1) * index_head, c.HIDDEN)}
            shapes |= c.norms(x, "q_layernorm", "k_layernorm", size=index_head)
    shapes |= mixer("model.hyper_connection_mixer.", False)
    if parts:
        p = "model.layers.1.ple."
        count = (ngrams - 1) * heads
        shapes |= {p + "key_proj.weight": (wide, c.HIDDEN), p + "value_proj.weight": (c.HIDDEN, c.HIDDEN),
                   p + "conv1d.weight": (wide, 1, kernel)} | c.norms(p, "norm_key", "norm_query", "norm_conv", size=wide)
        e = p + "ple_embedding."
        shapes |= {e + "layer_multipliers": (ngrams,), e + "ngram_heads_offsets": (count,), e + "ngram_heads_vocab_sizes": (count,)}
        # Parts of several lengths.
        rows = 97 * count
        for i in range(parts):
            own = rows // parts + (3 if i == 0 else 0)
            shapes[f"{e}ngram_embedding.shard_{i}.weight"] = (own, c.HIDDEN // count)
    if causal:
        return config, shapes, "bpe"
    return c.wrapped((c.without(config, "architectures"), shapes, "bpe"), "Qwen4ExpForConditionalGeneration", "qwen4_exp", c.inside)


def kimi_k3(c, query_rank=48, latent_length=128, **more):
    """Three of four layers with Kimi Delta Attention; latent experts."""
    layers, head, kernel, rank, plain, rotated, value, dense = 4, 32, 4, 64, 32, 16, 48, 1
    text = c.base("KimiLinearForCausalLM", "kimi_linear", c.BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=c.HEADS,
                  hidden_act="situ", activation_situ_beta=4.0, activation_situ_linear_beta=2.0, kv_lora_rank=rank,
                  q_lora_rank=query_rank, qk_nope_head_dim=plain, qk_rope_head_dim=rotated, v_head_dim=value, mla_use_nope=True,
                  num_experts=EXPERTS, num_experts_per_token=USED, num_shared_experts=1, moe_intermediate_size=WIDTH,
                  moe_renormalize=True, moe_router_activation_func="sigmoid", first_k_dense_replace=dense,
                  routed_scaling_factor=2.446, num_expert_group=1, topk_group=1, attn_res_block_size=2,
                  linear_attn_config={"full_attn_layers": [layers], "kda_layers": list(range(1, layers)), "head_dim": head,
                                      "num_heads": c.HEADS, "short_conv_kernel_size": kernel, "gate_lower_bound": -5.0})
    if latent_length:
        text["routed_expert_hidden_size"] = latent_length
    text |= more
    shapes = {"model.embed_tokens.weight": (c.BPE_VOCAB, c.HIDDEN), "lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)} | c.norms("model.", "norm")
    shapes |= {"model.output_attn_res_norm.weight": (c.HIDDEN,), "model.output_attn_res_proj.weight": (1, c.HIDDEN)}
    for i in range(layers):
        p = f"model.layers.{i}."
        a, m = p + "self_attn.", p + "block_sparse_moe."
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm", "self_attention_res_norm", "mlp_res_norm")
        shapes |= {p + "self_attention_res_proj.weight": (1, c.HIDDEN), p + "mlp_res_proj.weight": (1, c.HIDDEN)}
        if i + 1 < layers:
            shapes |= kda(c, a, c.HEADS, head, kernel, True)
        else:
            shapes |= latent(c, a, c.HEADS, query_rank, rank, plain, rotated, value)
            shapes[a + "g_proj.weight"] = (c.HEADS * value, c.HIDDEN)
        if i < dense:
            shapes |= c.gated(p + "mlp.")
            continue
        shapes |= {m + "gate.weight": (EXPERTS, c.HIDDEN), m + "gate.e_score_correction_bias": (EXPERTS,)}
        shapes |= c.gated(m + "shared_experts.", ffn=WIDTH)
        width = latent_length or c.HIDDEN
        for e in range(EXPERTS):
            shapes |= gated(f"{m}experts.{e}.", WIDTH, width)
        if latent_length:
            shapes |= {m + "routed_expert_down_proj.weight": (width, c.HIDDEN), m + "routed_expert_up_proj.weight": (c.HIDDEN, width),
                       m + "routed_expert_norm.weight": (width,)}
    return c.wrapped((text, shapes, "bpe"), "KimiK3ForConditionalGeneration", "kimi_k3", c.outside)


def dots3(c, rescaled=True, mtp=True, cls="Dots3NoteForCausalLM"):
    """Two sizes of latent attention."""
    layers, heads, query_rank, rank, plain, rotated, value = 4, c.HEADS, 48, 64, 32, 16, 48
    window_heads, window_rank, window_plain, window_value = 2, 32, 48, 32
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = c.base(cls, "dots3_note", c.BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=heads, head_dim=64,
                    layer_types=kinds, use_dsa=True, scoring_func="sigmoid", topk_method="noaux_tc", n_group=1, topk_group=1,
                    q_lora_rank=query_rank, kv_lora_rank=rank, qk_nope_head_dim=plain, qk_rope_head_dim=rotated, v_head_dim=value,
                    swa_num_attention_heads=window_heads, swa_q_lora_rank=query_rank, swa_kv_lora_rank=window_rank,
                    swa_qk_nope_head_dim=window_plain, swa_qk_rope_head_dim=rotated, swa_v_head_dim=window_value,
                    swa_head_dim=window_plain + rotated, sliding_window_size=128, rope_theta=1000000.0, swa_rope_theta=10000.0,
                    index_n_heads=16, index_head_dim=64, index_topk=64, n_routed_experts=EXPERTS, n_shared_experts=1,
                    num_experts_per_tok=USED, moe_intermediate_size=WIDTH, first_k_dense_replace=1, norm_topk_prob=True,
                    routed_scaling_factor=2.5, attention_gate_type="headwise", apply_mla_qkv_lora_rescale=rescaled)
    if not rescaled:
        del config["rms_norm_eps"]
    shapes = {"model.embed_tokens.weight": (c.BPE_VOCAB, c.HIDDEN), "lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)} | c.norms("model.", "norm")
    for i in range(layers + mtp):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        windowed = i >= layers or kinds[i] == "sliding_attention"
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm") | c.norms(a, "k_rope_only_layernorm", size=rotated)
        if windowed:
            shapes |= latent(c, a, window_heads, query_rank, window_rank, window_plain, rotated, window_value)
        else:
            shapes |= latent(c, a, heads, query_rank, rank, plain, rotated, value) | indexer(c, a + "indexer.", 16, 64, query_rank)
        shapes[a + "g_proj.weight"] = (window_heads if windowed else heads, c.HIDDEN)
        dense = i < 1 or i >= layers
        shapes |= c.gated(p + "mlp.") if dense else c.shared_and_routed(p + "mlp.", EXPERTS, WIDTH, 1, True)
        if i >= layers:
            shapes |= {p + "eh_proj.weight": (c.HIDDEN, 2 * c.HIDDEN)} | c.norms(p, "enorm", "hnorm", "shared_head.norm")
    if mtp:
        shapes["model.mtp.embed_tokens.weight"] = (c.BPE_VOCAB, c.HIDDEN)
    shapes |= {"vision_encoder.blocks.0.norm_1.weight": (8,), "audio_encoder.audio_adapter.proj.0.weight": (8, 8)}
    return config, shapes, "dots3"


def hy_v4(c, owners=("full", "shared", "full"), **more):
    """Indexers that layers share, independent streams, stacked experts."""
    layers, streams, query_rank, rank, plain, rotated, value = 3, 4, 48, 64, 32, 16, 48
    config = c.base("HYV4ForCausalLM", "hy_v4", c.BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=2,
                    q_lora_rank=query_rank, kv_lora_rank=rank, qk_nope_head_dim=plain, qk_rope_head_dim=rotated, v_head_dim=value,
                    n_routed_experts=EXPERTS, n_shared_experts=1, num_experts_per_tok=USED, moe_intermediate_size=WIDTH,
                    n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5, hc_mult=streams, hc_eps=1e-6,
                    hc_magnitude=2.0, mlp_layer_types=["dense", *["sparse"] * (layers - 1)], rope_theta=10000.0,
                    num_nextn_predict_layers=1, index_n_heads=16, index_head_dim=64, index_topk=64)
    if owners:
        config |= {"indexer_types": list(owners), "swiglu_limit": 7.0, "enable_lm_head_fp32": True}
    else:
        config |= {"first_k_dense_replace": 1}
    shapes = {"model.embed_tokens.weight": (c.BPE_VOCAB, c.HIDDEN), "lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)} | c.norms("model.", "norm")
    h = "model.hc_head.hc_head_"
    shapes |= {h + "fn": (streams, streams * c.HIDDEN), h + "base": (streams,), h + "scale": (1,)}
    for i in range(layers):
        p = f"model.layers.{i}."
        a, m = p + "self_attn.", p + "mlp."
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm") | latent(c, a, c.HEADS, query_rank, rank, plain, rotated, value)
        shapes |= {a + "learnable_sink_param": (c.HEADS,), a + "g_proj.weight": (c.HEADS * value, c.HIDDEN)}
        for part in ("attn", "mlp"):
            x = f"{p}hc_{part}_layer.hc_pre.hc_"
            shapes |= {x + "fn": (2 * streams, streams * c.HIDDEN), x + "base": (2 * streams,), x + "scale": (2,)}
        if owners and owners[i] == "full":
            shapes |= indexer(c, a + "indexer.", 16, 64, query_rank)
        if i < 1:
            shapes |= c.gated(m)
            continue
        shapes |= {m + "gate.weight": (EXPERTS, c.HIDDEN), m + "gate.e_score_correction_bias": (EXPERTS,),
                   m + "experts.gate_up_proj": (EXPERTS, 2 * WIDTH, c.HIDDEN), m + "experts.down_proj": (EXPERTS, c.HIDDEN, WIDTH)}
        shapes |= c.gated(m + "shared_experts.", ffn=WIDTH)
    shapes["model.mtp_layers.0.eh_proj.weight"] = (c.HIDDEN, 2 * c.HIDDEN)
    return config | more, shapes, "bpe"


def makers(c):
    """Name -> (function, type, number of files)."""
    half, single = torch.bfloat16, torch.float16
    return {
        "glm5-next": (lambda: glm5_next(c), half, 2),
        "glm5-next-shared": (lambda: glm5_next(c, ["full", "full", "full", "shared"], 0), single, 1),
        "qwen4exp": (lambda: qwen4exp(c), half, 2),
        "qwen4exp-bare": (lambda: qwen4exp(c, 0, True), single, 1),
        "kimi-k3": (lambda: kimi_k3(c), half, 2),
        "kimi-k3-whole": (lambda: kimi_k3(c, None, None), single, 1),
        "dots3note": (lambda: dots3(c), half, 2),
        "dots3note-plain": (lambda: dots3(c, False, False, "Dots3NoteTextForCausalLM"), single, 1),
        "hy_v4": (lambda: hy_v4(c), half, 2),
        "hy_v4-dense": (lambda: hy_v4(c, None), single, 1),
    }


def plain(c):
    """Checkpoints whose weights the reference converts in quantized form only."""
    return {
        "deepseek4-plain": (lambda: deepseek4(c), torch.bfloat16, 2),
        "deepseek4-half": (lambda: deepseek4(c, (128, 4), 0, 0, num_hash_layers=0), torch.float16, 1),
    }
