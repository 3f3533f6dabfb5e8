"""Checkpoints of Gemma 4 and 3n, for scripts/checkpoints.py, whose parts (`c`) they are made of, and their tokenizer."""

import json

import torch

WINDOWED, FULL = "sliding_attention", "full_attention"
# Length of a head in layers with full attention; that of the others is c.HEAD.
GLOBAL_HEAD = 128
# Length of a per-layer embedding.
PER_LAYER = 256
EXPERTS, USED, WIDTH = 8, 2, 96
WINDOW = 128

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
# The first two are control tokens; chat parsers read the others.
TURNS = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<|tool_response>", "<|\"|>"]
# No competing merges.
MERGES = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "n"), ("e", "r"), ("1", "0"), ("4", "2"), ("8", "6"), ("\n", "\n")]
TOKENS = [*SPECIAL, *TURNS, *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "\n", *(chr(c) for c in range(33, 127)),
          *(a + b for a, b in MERGES)]
VOCAB = len(TOKENS)


def write_tokenizer(folder, tokens=TOKENS, merges=MERGES):
    """Byte-pair encoding with byte fallback, spaces as U+2581, no words."""
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(tokens[:len(SPECIAL) + len(TURNS)])]
    first = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    begin = {"type": "TemplateProcessing", "single": [first, texts[0]], "pair": [first, *texts],
             "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)},
             "merges": [list(m) for m in merges]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": space,
                 "pre_tokenizer": None, "post_processor": begin, "decoder": {"type": "Sequence", "decoders": decoders},
                 "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
              "unk_token": "<unk>", "additional_special_tokens": TURNS[:2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_unified(folder):
    """The same, with tokens that are never sampled."""
    write_tokenizer(folder)
    config = {"bos_token_id": 2, "eos_token_id": [1, 5], "top_k": 64, "suppress_tokens": [6, 7]}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2))


TOKENIZERS = {"gemma4": write_tokenizer, "gemma4-unified": write_unified}


def kinds(letters):
    return [WINDOWED if letter == "w" else FULL for letter in letters]


def gemma4(c, layers="wwfwwf", shared=0, per_layer=0, experts=False, wide=False, listed=False, kv_full=1, causal=False):
    """`layers` has a letter for each kind of attention. With `kv_full`, layers with full attention have as many KV heads, and
    their keys serve as values."""
    count = len(layers)
    text = {"model_type": "gemma4_text", "hidden_size": c.HIDDEN, "intermediate_size": c.FFN, "num_hidden_layers": count,
            "num_attention_heads": c.HEADS, "num_key_value_heads": c.KV_HEADS, "head_dim": c.HEAD, "global_head_dim": GLOBAL_HEAD,
            "num_global_key_value_heads": kv_full, "attention_k_eq_v": kv_full is not None, "vocab_size": VOCAB,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds(layers), "sliding_window": WINDOW, "final_logit_softcapping": 30.0,
            "num_kv_shared_layers": shared, "hidden_size_per_layer_input": per_layer, "use_double_wide_mlp": wide,
            "vocab_size_per_layer_input": VOCAB, "enable_moe_block": experts, "num_experts": EXPERTS if experts else None,
            "top_k_experts": USED if experts else None, "moe_intermediate_size": WIDTH if experts else None,
            "rope_parameters": {
                WINDOWED: {"rope_type": "default", "rope_theta": 10000.0},
                FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}},
            "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    if listed:
        del text["global_head_dim"], text["num_global_key_value_heads"]
        own = {"head_dim": GLOBAL_HEAD, "num_key_value_heads": kv_full}
        text["per_layer_config"] = {str(i): own for i, kind in enumerate(layers) if kind == "f"}

    def layer(i, p):
        is_full, is_shared = layers[i] == "f", i >= count - shared
        head = GLOBAL_HEAD if is_full else c.HEAD
        kv_heads = kv_full if is_full and kv_full else c.KV_HEADS
        a, q, k = p + "self_attn.", c.HEADS * head, kv_heads * head
        shapes = {a + "q_proj.weight": (q, c.HIDDEN), a + "o_proj.weight": (c.HIDDEN, q), p + "layer_scalar": (1,)}
        shapes |= c.norms(a, "q_norm", size=head)
        if not is_shared:
            shapes |= {a + "k_proj.weight": (k, c.HIDDEN)} | c.norms(a, "k_norm", size=head)
            if not (is_full and kv_full):
                shapes[a + "v_proj.weight"] = (k, c.HIDDEN)
        shapes |= c.gated(p + "mlp.", ffn=2 * c.FFN if wide and is_shared else c.FFN)
        shapes |= c.norms(p, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                          "post_feedforward_layernorm")
        if experts:
            shapes |= {p + "router.proj.weight": (EXPERTS, c.HIDDEN), p + "router.scale": (c.HIDDEN,),
                       p + "router.per_expert_scale": (EXPERTS,), p + "experts.gate_up_proj": (EXPERTS, 2 * WIDTH, c.HIDDEN),
                       p + "experts.down_proj": (EXPERTS, c.HIDDEN, WIDTH)}
            shapes |= c.norms(p, "post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
        if per_layer:
            shapes |= {p + "per_layer_input_gate.weight": (per_layer, c.HIDDEN),
                       p + "per_layer_projection.weight": (c.HIDDEN, per_layer)}
            shapes |= c.norms(p, "post_per_layer_input_norm")
        return shapes

    shapes = {"model.embed_tokens.weight": (VOCAB, c.HIDDEN)}
    if per_layer:
        shapes |= {"model.embed_tokens_per_layer.weight": (VOCAB, count * per_layer),
                   "model.per_layer_model_projection.weight": (count * per_layer, c.HIDDEN)}
        shapes |= c.norms("model.", "per_layer_projection_norm", size=per_layer)
    for i in range(count):
        shapes |= layer(i, f"model.layers.{i}.")
    shapes |= c.norms("model.", "norm")
    if causal:
        return text | {"architectures": ["Gemma4ForCausalLM"]}, shapes, "gemma4"
    shapes = {c.inside(name): shape for name, shape in shapes.items()}
    shapes |= {"model.vision_tower.patch_embedder.input_proj.weight": (32, 48), "model.embed_vision.embedding_projection.weight": (c.HIDDEN, 32),
               "model.audio_tower.output_proj.weight": (32, 32), "model.embed_audio.embedding_projection.weight": (c.HIDDEN, 32)}
    config = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text,
              "vision_config": {"hidden_size": 32}, "audio_config": {"hidden_size": 32}, "tie_word_embeddings": True}
    return config, shapes, "gemma4"


def unified(c):
    config, shapes, _ = gemma4(c, "wfwf")
    config |= {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified"}
    shapes = {name: shape for name, shape in shapes.items() if "tower" not in name}
    shapes |= {"model.vision_embedder.patch_dense.weight": (32, 48), "model.vision_embedder.pos_embedding": (4, 2, 32)}
    return config, shapes, "gemma4-unified"


def gemma3n(c, layers=22, causal=False, padded=8):
    """llama.cpp takes keys and values of layers 18 and 19 from layer 20 on. `padded` tokens have no embeddings."""
    hidden, ffn, streams, rank = c.HIDDEN, c.FFN, 4, 64
    text = {"model_type": "gemma3n_text", "hidden_size": hidden, "intermediate_size": ffn if causal else [ffn] * layers,
            "num_hidden_layers": layers, "num_attention_heads": c.HEADS, "num_key_value_heads": c.KV_HEADS, "head_dim": c.HEAD,
            "vocab_size": c.SPM_VOCAB, "vocab_size_per_layer_input": c.SPM_VOCAB - padded, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": WINDOW, "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0, "altup_active_idx": 0, "altup_num_inputs": streams,
            "num_kv_shared_layers": max(layers - 20, 0), "laurel_rank": rank, "hidden_size_per_layer_input": PER_LAYER,
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True}
    if not causal:
        text |= {"layer_types": [FULL if (i + 1) % 5 == 0 else WINDOWED for i in range(layers)],
                 "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10)}
    rows = c.SPM_VOCAB - padded
    shapes = {"model.embed_tokens.weight": (rows, hidden),
              "model.embed_tokens_per_layer.weight": (rows, layers * PER_LAYER),
              "model.per_layer_model_projection.weight": (layers * PER_LAYER, hidden)}
    shapes |= c.norms("model.", "per_layer_projection_norm", size=PER_LAYER) | c.norms("model.", "norm")
    for i in range(streams - 1):
        shapes |= {f"model.altup_{n}.{i}.weight": (hidden, hidden) for n in ("projections", "unembed_projections")}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= c.gemma_layer(p, qk=True)
        shapes |= {p + "altup.correction_coefs.weight": (streams, streams), p + "altup.correct_output_scale": (hidden,),
                   p + "altup.prediction_coefs.weight": (streams * streams, streams),
                   p + "altup.modality_router.weight": (streams, hidden), p + "laurel.linear_left.weight": (rank, hidden),
                   p + "laurel.linear_right.weight": (hidden, rank), p + "per_layer_input_gate.weight": (PER_LAYER, hidden),
                   p + "per_layer_projection.weight": (hidden, PER_LAYER)}
        shapes |= c.norms(p, "altup.router_norm", "laurel.post_laurel_norm", "post_per_layer_input_norm")
    if causal:
        return text | {"architectures": ["Gemma3nForCausalLM"]}, shapes, "gemma"
    shapes = {c.inside(name): shape for name, shape in shapes.items()}
    shapes |= {"model.vision_tower.timm_model.conv_stem.conv.weight": (8, 3, 3, 3), "model.embed_vision.embedding.weight": (8, 32),
               "model.audio_tower.output_proj.weight": (32, 32), "model.embed_audio.embedding.weight": (8, 32)}
    config = {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "text_config": text,
              "vision_config": {"model_type": "gemma3n_vision"}, "audio_config": {"model_type": "gemma3n_audio"}}
    return config, shapes, "gemma"


B, H = torch.bfloat16, torch.float16
# Layers with the keys and values of layers 3 and 4, of which the former has a window.
EDGE = "wwfwfwfw"
MAKERS = {
    "gemma4": (gemma4, B, 1),
    "gemma4-causal": (lambda c: gemma4(c, "wf", causal=True), H, 1),
    "gemma4-edge": (lambda c: gemma4(c, EDGE, 3, PER_LAYER, wide=True, kv_full=None), B, 2),
    "gemma4-moe": (lambda c: gemma4(c, "wwfw", experts=True), B, 1),
    "gemma4-unified": (unified, B, 1),
    "gemma3n": (gemma3n, B, 1),
    "gemma3n-causal": (lambda c: gemma3n(c, 6, causal=True, padded=0), H, 1),
    "gemma4-listed": (lambda c: gemma4(c, "wfwf", listed=True), B, 1),
}


def makers(c):
    """The table of scripts/checkpoints.py."""
    bound = lambda maker: lambda: maker(c)
    return {name: (bound(maker), dtype, files) for name, (maker, dtype, files) in MAKERS.items()}
