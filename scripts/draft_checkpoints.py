"""Checkpoints of draft models (EAGLE-3, DFlash, DSpark), for scripts/checkpoints.py, whose parts (`c`) they are made of."""

import torch

# Tokens of a smaller output matrix.
ROWS = 192
# The checkpoints that drafts are for: their vocabularies and numbers of layers.
TARGETS = {"eagle3": "llama", "eagle3-bpe": "llama3", "eagle3-speculator": "qwen35", "eagle3-whole": "qwen3",
           "dflash": "qwen3", "dflash-pairs": "gemma3", "dflash-windows": "llama", "dflash2": "qwen35",
           "dspark": "qwen3", "dspark-gemma4": "gemma3", "dspark-gemma4-whole": "gemma3", "dspark-speculator": "qwen35", "dspark-smaller": "llama"}


def integers(name, shape):
    """Tables of tokens by name; None of any other tensor."""
    if name.endswith("d2t"):
        # Every other token, as the distance from a row's index to its token.
        return torch.arange(shape[0], dtype=torch.int64) + 1
    if name.endswith("t2d"):
        return torch.arange(shape[0]) % 2 == 1
    return None


def eagle_layer(c, p, biases=False):
    """A layer whose attention reads an embedding and hidden states."""
    return (c.attention(p, biases=biases, hidden=2 * c.HIDDEN)
            | {p + "self_attn.o_proj.weight": (c.HIDDEN, c.HEADS * c.HEAD)} | c.gated(p + "mlp.")
            | c.norms(p, "input_layernorm", "hidden_norm", "post_attention_layernorm"))


def eagle3(c, cls="LlamaForCausalLMEagle3", vocab=None, rows=ROWS, layer="midlayer.", target_hidden=None, biases=False,
           embeddings=True, **more):
    vocab = vocab or c.SPM_VOCAB
    target_hidden = target_hidden or c.HIDDEN
    config = c.base(cls, "llama", vocab, num_hidden_layers=1, draft_vocab_size=rows, **more)
    shapes = {"fc.weight": (c.HIDDEN, 3 * target_hidden), "norm.weight": (c.HIDDEN,), "lm_head.weight": (rows, c.HIDDEN)}
    shapes |= eagle_layer(c, layer, biases)
    if embeddings:
        shapes["embed_tokens.weight"] = (vocab, c.HIDDEN)
    if rows < vocab:
        shapes |= {"d2t": (rows,), "t2d": (vocab,)}
    return config, shapes, "none"


def eagle3_bpe(c):
    """Another class, RoPE factors, biases, a target of another width, a norm in front of the projection."""
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    config, shapes, tokenizer = eagle3(c, "LlamaForCausalLM", c.BPE_VOCAB, target_hidden=320, biases=True, embeddings=False,
                                       rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072, head_dim=c.HEAD,
                                       target_hidden_size=320, norm_before_fc=True, attention_bias=True,
                                       eagle_aux_hidden_state_layer_ids=[1, 1, 2])
    return config, shapes | {"input_norm.weight": (3 * 320,)}, tokenizer


def speculator(config, cls, *outer):
    """Moves the fields of layers into an object of their own."""
    inner = {k: v for k, v in config.items() if k not in ("architectures", *outer)}
    return {"architectures": [cls], "speculators_model_type": "eagle3", "transformer_layer_config": inner,
            **{k: config[k] for k in outer}}


def eagle3_speculator(c):
    config, shapes, tokenizer = eagle3(c, "Eagle3Speculator", c.BPE_VOCAB, layer="layers.0.", norm_before_residual=True,
                                       head_dim=c.HEAD)
    return speculator(config, "Eagle3Speculator", "draft_vocab_size", "norm_before_residual"), shapes, tokenizer


def dflash(c, cls="DFlashDraftModel", vocab=None, layers=2, biases=False, prefix="", **more):
    """Layers of Qwen 3, and the projection of hidden states of three layers of the target."""
    vocab = vocab or c.BPE_VOCAB
    more = {"dflash_config": {"mask_token_id": 7, "target_layer_ids": [0, 1, 1]}, "block_size": 8, "rope_theta": 1000000} | more
    config = c.base(cls, "qwen3", vocab, num_hidden_layers=layers, head_dim=c.HEAD, **more)
    shapes = {f"{prefix}fc.weight": (c.HIDDEN, 3 * c.HIDDEN), f"{prefix}hidden_norm.weight": (c.HIDDEN,),
              f"{prefix}norm.weight": (c.HIDDEN,)}
    for i in range(layers):
        p = f"{prefix}layers.{i}."
        shapes |= c.llama_layer(p, biases=biases) | c.norms(p + "self_attn.", "q_norm", "k_norm", size=c.HEAD)
    return config, shapes, "none"


def dflash_pairs(c):
    """Rotated pairs, sinks, embeddings that are the target's, an output matrix of its own, and a small rotated part."""
    config, shapes, tokenizer = dflash(c, vocab=c.SPM_VOCAB, biases=True, prefix="model.", rope_is_neox_style=False,
                                       has_embed_tokens=False, attention_bias=True, partial_rotary_factor=0.5,
                                       dflash_config={"target_layer_ids": [1], "attention_value_scale": 0.7, "causal": False})
    for i in range(2):
        shapes[f"model.layers.{i}.self_attn.sinks"] = (c.HEADS,)
    del shapes["model.fc.weight"]
    return config, shapes | {"model.fc.weight": (c.HIDDEN, c.HIDDEN), "model.embed_tokens.weight": (c.SPM_VOCAB, c.HIDDEN),
                             "lm_head.weight": (c.SPM_VOCAB, c.HIDDEN)}, tokenizer


def dflash_windows(c):
    """A window in one of three layers; identifiers of layers outside of DFlash's own fields."""
    config, shapes, tokenizer = dflash(c, vocab=c.SPM_VOCAB, layers=3, use_sliding_window=True, sliding_window=64,
                                       layer_types=["full_attention", "sliding_attention", "full_attention"],
                                       target_layer_ids=[0, 1, 1], is_causal=True, final_logit_softcapping=30.0,
                                       input_embedding_scale=16.0)
    del config["dflash_config"], config["block_size"]
    return config, shapes | {"embed_tokens.weight": (c.SPM_VOCAB, c.HIDDEN)}, tokenizer


def dflash2(c):
    """Convolutions, a selector, and scales in DFlash's own fields; the target rotates in sections."""
    kernel, group, rank, top = 3, 32, 48, 4
    own = {"mask_token_id": 5, "target_layer_ids": [0, 1, 1], "block_size": 12, "conv_kernel_size": kernel, "conv_group_size": group,
           "selector_rank": rank, "selector_top_k": top, "output_multiplier": 0.25, "final_logit_softcapping": 20,
           "input_embedding_scale": 4.0, "use_swa": True, "swa_window_size": 96}
    config, shapes, tokenizer = dflash(c, "DFlash2DraftModel", dflash_config=own)
    for i in range(2):
        for part in ("attention", "mlp"):
            p = f"layers.{i}.{part}_conv."
            shapes |= {p + "base_kernel": (2, kernel, c.HIDDEN), p + "kernel_projection.weight": (2 * kernel * c.HIDDEN // group, c.HIDDEN)}
    p = "candidate_selector."
    return config, shapes | {p + "predecessor_codebook": (c.BPE_VOCAB, rank), p + "successor_codebook": (c.BPE_VOCAB, rank),
                             p + "hidden_projection.weight": (rank, c.HIDDEN)}, tokenizer


def heads(c, vocab, rows, confidence=True, rank=64):
    shapes = {"markov_head.markov_w1.weight": (vocab, rank), "markov_head.markov_w2.weight": (rows, rank)}
    if confidence:
        shapes |= {"confidence_head.proj.weight": (1, c.HIDDEN + rank), "confidence_head.proj.bias": (1,)}
    return shapes


def dspark(c):
    """An output matrix of all tokens is the target's, and left out."""
    config, shapes, tokenizer = dflash(c, "Qwen3DSparkModel", mask_token_id=9, target_layer_ids=[0, 1, 1])
    del config["dflash_config"]
    return config, shapes | heads(c, c.BPE_VOCAB, c.BPE_VOCAB) | {"lm_head.weight": (c.BPE_VOCAB, c.HIDDEN)}, tokenizer


def dspark_smaller(c):
    """A smaller output matrix, and fields of DFlash."""
    config, shapes, tokenizer = dflash(c, "DSparkDraftModel", vocab=c.SPM_VOCAB, draft_vocab_size=ROWS, sample_from_anchor=False,
                                       markov_head_type="vanilla")
    return config, shapes | heads(c, c.SPM_VOCAB, ROWS, confidence=False) | {
        "lm_head.weight": (ROWS, c.HIDDEN), "d2t": (ROWS,), "t2d": (c.SPM_VOCAB,)}, tokenizer


def dspark_speculator(c):
    config, shapes, tokenizer = dflash(c, "DSparkSpeculator", draft_vocab_size=ROWS, mask_token_id=3,
                                       aux_hidden_state_layer_ids=[1, 2, 2])
    del config["dflash_config"], config["block_size"]
    config = speculator(config, "DSparkSpeculator", "draft_vocab_size", "mask_token_id", "aux_hidden_state_layer_ids")
    return config, shapes | heads(c, c.BPE_VOCAB, ROWS) | {"lm_head.weight": (ROWS, c.HIDDEN), "d2t": (ROWS,)}, tokenizer


def dspark_gemma4(c, whole=False):
    """Gemma 4's norms, scales of layers, and no values; RoPE of a part of a head, or of all of it."""
    config, shapes, tokenizer = dflash(c, "Gemma4DSparkModel", vocab=c.SPM_VOCAB, mask_token_id=6, target_layer_ids=[0, 1, 1],
                                       attention_k_eq_v=True, layer_types=["full_attention"] * 2, global_head_dim=2 * c.HEAD,
                                       num_global_key_value_heads=1, tie_word_embeddings=not whole)
    del config["dflash_config"], config["rope_theta"], config["hidden_act"]
    config["model_type"] = "gemma4_dspark"
    if whole:
        config |= {"dflash_config": {"mask_token_id": 4, "target_layer_ids": [1, 1, 0], "use_swa": True, "swa_window_size": 32},
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "sample_from_anchor": False}
    for i in range(2):
        p = f"layers.{i}."
        del shapes[p + "self_attn.v_proj.weight"]
        shapes |= {p + "self_attn.q_proj.weight": (c.HEADS * 2 * c.HEAD, c.HIDDEN), p + "self_attn.k_proj.weight": (2 * c.HEAD, c.HIDDEN),
                   p + "self_attn.o_proj.weight": (c.HIDDEN, c.HEADS * 2 * c.HEAD), p + "layer_scalar": (1,)}
        shapes |= c.norms(p, "pre_feedforward_layernorm", "post_feedforward_layernorm")
        shapes |= c.norms(p + "self_attn.", "q_norm", "k_norm", size=2 * c.HEAD)
    own = heads(c, c.SPM_VOCAB, c.SPM_VOCAB, confidence=not whole)
    own = {name.replace("confidence_head.proj", "confidence_proj"): shape for name, shape in own.items()}
    shapes |= own | {"embed_tokens.weight": (c.SPM_VOCAB, c.HIDDEN)}
    if whole:
        shapes["lm_head.weight"] = (c.SPM_VOCAB, c.HIDDEN)
    return config, shapes, tokenizer


def makers(c):
    """Names, and how to make each: maker, type, number of files."""
    return {
        "eagle3": (lambda: eagle3(c), torch.bfloat16, 1),
        "eagle3-bpe": (lambda: eagle3_bpe(c), torch.float16, 2),
        "eagle3-speculator": (lambda: eagle3_speculator(c), torch.float32, 1),
        "eagle3-whole": (lambda: eagle3(c, "Eagle3LlamaForCausalLM", c.BPE_VOCAB, rows=c.BPE_VOCAB), torch.bfloat16, 1),
        "dflash": (lambda: dflash(c), torch.bfloat16, 1),
        "dflash-pairs": (lambda: dflash_pairs(c), torch.bfloat16, 1),
        "dflash-windows": (lambda: dflash_windows(c), torch.float16, 2),
        "dflash2": (lambda: dflash2(c), torch.bfloat16, 1),
        "dspark": (lambda: dspark(c), torch.bfloat16, 1),
        "dspark-gemma4": (lambda: dspark_gemma4(c), torch.bfloat16, 1),
        "dspark-gemma4-whole": (lambda: dspark_gemma4(c, True), torch.bfloat16, 1),
        "dspark-smaller": (lambda: dspark_smaller(c), torch.float32, 1),
        "dspark-speculator": (lambda: dspark_speculator(c), torch.bfloat16, 2),
    }
