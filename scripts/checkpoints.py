#!/usr/bin/env python3
"""Makes a tiny Hugging Face checkpoint for every architecture: real config fields, small dimensions, seeded random
weights, a small tokenizer.

    scripts/checkpoints.py [--lively] OUT [NAME ...]     all of them, or those named
    scripts/checkpoints.py --list                        names of checkpoints that the reference converts
    scripts/checkpoints.py --targets                     draft models, each with the checkpoint that it drafts for

With --lively, the output of the model depends on its input: norms near 1, no outliers.

Needs torch, safetensors and sentencepiece. The tokenizer.model is the reference model's (testdata/refmodel or
QUANTIER_REFMODEL); byte-level vocabularies are made here. Equal versions of this script make equal files.
"""

import collections
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import draft_checkpoints
import embedding_checkpoints
import expert_checkpoints
import frontier_checkpoints
import gemma_checkpoints
import torch
from quantized import QUANTIZED, REFUSED, write_files
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

HERE = Path(__file__).resolve().parent
REFMODEL = Path(os.environ.get("QUANTIER_REFMODEL", HERE.parent / "testdata" / "refmodel"))
SPM_VOCAB = 4096
PHI3_VOCAB = SPM_VOCAB + 64
BPE_VOCAB = 512
# Tokens of byte-pair encoding with byte fallback.
HF_VOCAB = 3 + 256 + 1 + 94 + 8

HIDDEN, HEADS, KV_HEADS, LAYERS, FFN = 256, 4, 2, 2, 512
HEAD = HIDDEN // HEADS


# Prepends <s>.
FIRST = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TEXTS = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
BEGIN = {"type": "TemplateProcessing", "single": [FIRST, TEXTS[0]], "pair": [FIRST, *TEXTS],
         "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}


def tensor(name, shape, dtype):
    """Reproducible weights for a name, with a few edge cases of rounding."""
    whole = frontier_checkpoints.integers(name, shape)
    whole = draft_checkpoints.integers(name, shape) if whole is None else whole
    if whole is not None:
        return whole
    gen = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    w = torch.randn(shape, generator=gen, dtype=torch.float32) * 0.05
    if name.endswith("_blocks"):
        return torch.randint(0, 256, shape, generator=gen, dtype=torch.uint8)
    if name.endswith("_scales"):
        # Powers of 2 around the size of other weights.
        return torch.randint(119, 124, shape, generator=gen, dtype=torch.uint8)
    if name.endswith("act.scales"):
        # Divisors.
        return (1 + w.abs()).to(dtype)
    if name.endswith("relative_pe.slopes"):
        return torch.tensor([[0.25 ** (i + 1)] for i in range(shape[0])], dtype=dtype)
    if name.endswith("A_log"):
        # Without the 1% of numbers whose exponential torch (MKL) does not round to nearest.
        w = w.to(dtype).float()
        return torch.where(torch.exp(w) == torch.exp(w.double()).float(), w, 0.0).to(dtype)
    flat = w.flatten()
    odd = torch.tensor([0.0, -0.0, 1e-8, -6e-8, 3e-5, 65519.0 / 65536, 1.0009765625, 1e-30])
    if flat.numel() >= 4096:
        flat[1024:1024 + len(odd)] = odd
        flat[2048:2080] = 0.0
        flat[3072] = 8.0
    w = w.to(dtype)
    if name.endswith("A_log"):
        # PyTorch's exponential differs in the last bit for some numbers, depending on the CPU.
        exact = w.float().double().exp().float()
        w[w.float().exp() != exact] = 0.0
    return w


def attention(prefix, head=HEAD, biases=False, hidden=HIDDEN, out_bias=False):
    q, k = HEADS * head, KV_HEADS * head
    shapes = {"q_proj.weight": (q, hidden), "k_proj.weight": (k, hidden), "v_proj.weight": (k, hidden),
              "o_proj.weight": (hidden, q)}
    if biases:
        shapes |= {"q_proj.bias": (q,), "k_proj.bias": (k,), "v_proj.bias": (k,)}
    if out_bias:
        shapes |= {"o_proj.bias": (hidden,)}
    return {f"{prefix}self_attn.{n}": s for n, s in shapes.items()}


def gated(prefix, ffn=FFN, hidden=HIDDEN):
    return {f"{prefix}gate_proj.weight": (ffn, hidden), f"{prefix}up_proj.weight": (ffn, hidden),
            f"{prefix}down_proj.weight": (hidden, ffn)}


def norms(prefix, *names, size=HIDDEN, bias=False):
    both = {f"{prefix}{n}.weight": (size,) for n in names}
    if bias:
        both |= {f"{prefix}{n}.bias": (size,) for n in names}
    return both


def model(vocab, layer, tied=False, final_norm=True, bias=False, layers=LAYERS):
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(layers):
        shapes |= layer(f"model.layers.{i}.")
    if final_norm:
        shapes |= norms("model.", "norm", bias=bias)
    if not tied:
        shapes["lm_head.weight"] = (vocab, HIDDEN)
    return shapes


def llama_layer(p, **kw):
    return attention(p, **kw) | gated(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm")


def base(cls, model_type, vocab, **more):
    return {"architectures": [cls], "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": FFN,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "vocab_size": vocab, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "bos_token_id": 1, "eos_token_id": 2} | more


def llama(**more):
    return base("LlamaForCausalLM", "llama", SPM_VOCAB, **more), model(SPM_VOCAB, llama_layer), "spm"


def llama3():
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    config = base("LlamaForCausalLM", "llama", BPE_VOCAB, rope_theta=500000.0, rope_scaling=scaling,
                  max_position_embeddings=131072, tie_word_embeddings=True, head_dim=HEAD)
    return config, model(BPE_VOCAB, llama_layer, tied=True), "bpe"


def llama_yarn():
    scaling = {"factor": 4.0, "original_max_position_embeddings": 2048, "type": "yarn", "beta_fast": 32.0,
               "attention_factor": 1.1}
    config = base("LlamaForCausalLM", "llama", SPM_VOCAB, rope_scaling=scaling, max_position_embeddings=8192,
                  attention_bias=True)
    return config, model(SPM_VOCAB, lambda p: llama_layer(p, biases=True, out_bias=True)), "spm"


def mistral():
    config = base("MistralForCausalLM", "mistral", SPM_VOCAB, sliding_window=4096, rope_theta=1e6)
    return config, model(SPM_VOCAB, llama_layer), "spm"


def mistral_format(scaled=False):
    """params.json and the names of Mistral's code; the second kind has YaRN, and queries that grow with position."""
    params = {"dim": HIDDEN, "n_layers": LAYERS, "head_dim": HEAD, "hidden_dim": FFN, "n_heads": HEADS,
              "n_kv_heads": KV_HEADS, "norm_eps": 1e-5, "vocab_size": SPM_VOCAB, "rope_theta": 1000000.0,
              "max_position_embeddings": 2048}
    if scaled:
        params |= {"max_position_embeddings": 8192, "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 2048},
                   "yarn": {"original_max_position_embeddings": 2048, "factor": 4.0, "apply_scale": False, "beta": 32,
                            "alpha": 1}}
    shapes = {"tok_embeddings.weight": (SPM_VOCAB, HIDDEN), "norm.weight": (HIDDEN,), "output.weight": (SPM_VOCAB, HIDDEN)}
    for i in range(LAYERS):
        p, q, k = f"layers.{i}.", HEADS * HEAD, KV_HEADS * HEAD
        shapes |= {p + "attention.wq.weight": (q, HIDDEN), p + "attention.wk.weight": (k, HIDDEN),
                   p + "attention.wv.weight": (k, HIDDEN), p + "attention.wo.weight": (HIDDEN, q),
                   p + "feed_forward.w1.weight": (FFN, HIDDEN), p + "feed_forward.w2.weight": (HIDDEN, FFN),
                   p + "feed_forward.w3.weight": (FFN, HIDDEN)}
        shapes |= norms(p, "attention_norm", "ffn_norm")
    return params, shapes, "spm"


def mixtral():
    config = base("MixtralForCausalLM", "mixtral", SPM_VOCAB, num_local_experts=4, num_experts_per_tok=2)

    def layer(p):
        shapes = attention(p) | norms(p, "input_layernorm", "post_attention_layernorm")
        shapes[p + "block_sparse_moe.gate.weight"] = (4, HIDDEN)
        for e in range(4):
            x = f"{p}block_sparse_moe.experts.{e}."
            shapes |= {x + "w1.weight": (FFN, HIDDEN), x + "w2.weight": (HIDDEN, FFN), x + "w3.weight": (FFN, HIDDEN)}
        return shapes

    return config, model(SPM_VOCAB, layer), "spm"


def qwen2():
    # Rows of 688 weights are not whole blocks of q8_0.
    config = base("Qwen2ForCausalLM", "qwen2", BPE_VOCAB, intermediate_size=688, rope_theta=1000000.0,
                  tie_word_embeddings=True, rms_norm_eps=1e-6)

    def layer(p):
        return (attention(p, biases=True) | gated(p + "mlp.", ffn=688)
                | norms(p, "input_layernorm", "post_attention_layernorm"))

    return config, model(BPE_VOCAB, layer, tied=True), "bpe"


def qwen2moe():
    config = base("Qwen2MoeForCausalLM", "qwen2_moe", BPE_VOCAB, num_experts=12, num_experts_per_tok=2,
                  moe_intermediate_size=64, shared_expert_intermediate_size=128)

    def layer(p):
        shapes = attention(p, biases=True) | norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= {p + "mlp.gate.weight": (12, HIDDEN), p + "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        shapes |= gated(p + "mlp.shared_expert.", ffn=128)
        for e in range(12):
            shapes |= gated(f"{p}mlp.experts.{e}.", ffn=64)
        return shapes

    return config, model(BPE_VOCAB, layer), "bpe"


def qwen3():
    config = base("Qwen3ForCausalLM", "qwen3", BPE_VOCAB, head_dim=128, rope_theta=1000000, tie_word_embeddings=True)

    def layer(p):
        return llama_layer(p, head=128) | norms(p + "self_attn.", "q_norm", "k_norm", size=128)

    return config, model(BPE_VOCAB, layer, tied=True), "bpe"


def reranker(tied=True):
    """Qwen3's reranker, which the reference recognizes by the name of its directory."""
    config, shapes, _ = qwen3()
    head = {} if tied else {"lm_head.weight": (BPE_VOCAB, HIDDEN)}
    return config | {"tie_word_embeddings": tied}, shapes | head, "bpe-answers"


def qwen3_yarn():
    config, shapes, tokenizer = qwen3()
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    return config | {"rope_scaling": scaling, "max_position_embeddings": 8192}, shapes, tokenizer


def qwen3moe(ffn=96):
    config = base("Qwen3MoeForCausalLM", "qwen3_moe", BPE_VOCAB, head_dim=128, num_experts=8, num_experts_per_tok=2,
                  moe_intermediate_size=ffn, norm_topk_prob=True)

    def layer(p):
        shapes = attention(p, head=128) | norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= norms(p + "self_attn.", "q_norm", "k_norm", size=128)
        shapes[p + "mlp.gate.weight"] = (8, HIDDEN)
        for e in range(8):
            shapes |= gated(f"{p}mlp.experts.{e}.", ffn=ffn)
        return shapes

    return config, model(BPE_VOCAB, layer), "bpe"


def gemma1():
    def layer(p):
        return attention(p) | gated(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm")

    config = base("GemmaForCausalLM", "gemma", SPM_VOCAB, head_dim=HEAD, bos_token_id=2, eos_token_id=1,
                  hidden_activation="gelu_pytorch_tanh")
    return config, model(SPM_VOCAB, layer, tied=True), "gemma"


def gemma_layer(p, qk=False):
    shapes = attention(p) | gated(p + "mlp.")
    shapes |= norms(p, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                    "post_feedforward_layernorm")
    if qk:
        shapes |= norms(p + "self_attn.", "q_norm", "k_norm", size=HEAD)
    return shapes


def gemma2():
    config = base("Gemma2ForCausalLM", "gemma2", SPM_VOCAB, head_dim=HEAD, query_pre_attn_scalar=HEAD,
                  bos_token_id=2, eos_token_id=1, hidden_activation="gelu_pytorch_tanh", sliding_window=512)
    return config, model(SPM_VOCAB, gemma_layer, tied=True), "gemma"


def gemma3(layers=LAYERS):
    # Two more rows than tokens: the reference omits them.
    config = base("Gemma3ForCausalLM", "gemma3_text", SPM_VOCAB, head_dim=HEAD, query_pre_attn_scalar=HEAD,
                  bos_token_id=2, eos_token_id=1, sliding_window=512, rope_local_base_freq=10000.0,
                  rope_theta=1000000.0, sliding_window_pattern=6, rope_scaling={"factor": 8.0, "rope_type": "linear"},
                  num_hidden_layers=layers)
    shapes = model(SPM_VOCAB, lambda p: gemma_layer(p, qk=True), tied=True, layers=layers)
    shapes["model.embed_tokens.weight"] = (SPM_VOCAB + 2, HIDDEN)
    return config, shapes, "gemma"


def phi3(long=False):
    config = base("Phi3ForCausalLM", "phi3", PHI3_VOCAB, num_key_value_heads=HEADS, sliding_window=2047)
    if long:
        factors = HEAD // 2
        config |= {"rope_scaling": {"type": "su", "short_factor": [1.0 + i / 64 for i in range(factors)],
                                    "long_factor": [1.1 + i * 1.3 for i in range(factors)]},
                   "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": None}

    def layer(p):
        return ({p + "self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN), p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                 p + "mlp.gate_up_proj.weight": (2 * FFN, HIDDEN), p + "mlp.down_proj.weight": (HIDDEN, FFN)}
                | norms(p, "input_layernorm", "post_attention_layernorm"))

    return config, model(PHI3_VOCAB, layer), "phi3"


def olmo():
    config = base("OlmoForCausalLM", "olmo", BPE_VOCAB, clip_qkv=8.0)
    del config["rms_norm_eps"]
    return config, model(BPE_VOCAB, lambda p: attention(p) | gated(p + "mlp."), final_norm=False), "bpe"


def olmo2(layers=LAYERS):
    config = base("Olmo2ForCausalLM", "olmo2", BPE_VOCAB, num_hidden_layers=layers)

    def layer(p):
        return (attention(p) | gated(p + "mlp.") | norms(p, "post_attention_layernorm", "post_feedforward_layernorm")
                | norms(p + "self_attn.", "q_norm") | norms(p + "self_attn.", "k_norm", size=KV_HEADS * HEAD))

    return config, model(BPE_VOCAB, layer, layers=layers), "bpe"


def granite():
    config = base("GraniteForCausalLM", "granite", BPE_VOCAB, attention_multiplier=0.0078125, tie_word_embeddings=True,
                  embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0)
    return config, model(BPE_VOCAB, llama_layer, tied=True), "bpe"


def starcoder2():
    config = base("Starcoder2ForCausalLM", "starcoder2", BPE_VOCAB, norm_epsilon=1e-5, use_bias=True)
    del config["rms_norm_eps"]

    def layer(p):
        return (attention(p, biases=True, out_bias=True)
                | norms(p, "input_layernorm", "post_attention_layernorm", bias=True)
                | {p + "mlp.c_fc.weight": (FFN, HIDDEN), p + "mlp.c_fc.bias": (FFN,),
                   p + "mlp.c_proj.weight": (HIDDEN, FFN), p + "mlp.c_proj.bias": (HIDDEN,)})

    return config, model(BPE_VOCAB, layer, tied=True, bias=True), "bpe"


def gpt2(prefix="transformer.", kv_heads=HEADS, by_rows=False):
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_head": HEADS,
              "n_layer": LAYERS, "n_positions": 1024, "n_ctx": 1024, "vocab_size": BPE_VOCAB,
              "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    shapes = {prefix + "wte.weight": (BPE_VOCAB, HIDDEN), prefix + "wpe.weight": (1024, HIDDEN)}
    for i in range(LAYERS):
        p = f"{prefix}h.{i}."
        shapes |= norms(p, "ln_1", "ln_2", bias=True)
        for name, n_in, n_out in (("attn.c_attn", HIDDEN, HIDDEN + 2 * kv_heads * HEAD), ("attn.c_proj", HIDDEN, HIDDEN),
                                  ("mlp.c_fc", HIDDEN, 4 * HIDDEN), ("mlp.c_proj", 4 * HIDDEN, HIDDEN)):
            shapes |= {f"{p}{name}.weight": (n_out, n_in) if by_rows else (n_in, n_out), f"{p}{name}.bias": (n_out,)}
    return config, shapes | norms(prefix, "ln_f", bias=True), "bpe"


def smollm3(layers=LAYERS):
    config = base("SmolLM3ForCausalLM", "smollm3", BPE_VOCAB, rope_theta=5000000.0, no_rope_layer_interval=4,
                  tie_word_embeddings=True, num_hidden_layers=layers)
    return config, model(BPE_VOCAB, llama_layer, tied=True, layers=layers), "bpe"


def seed_oss():
    config = base("SeedOssForCausalLM", "seed_oss", BPE_VOCAB, head_dim=HEAD, attention_bias=True)
    return config, model(BPE_VOCAB, lambda p: llama_layer(p, biases=True)), "bpe"


def plain(prefix):
    return {f"{prefix}up_proj.weight": (FFN, HIDDEN), f"{prefix}down_proj.weight": (HIDDEN, FFN)}


def arcee():
    config = base("ArceeForCausalLM", "arcee", BPE_VOCAB, head_dim=HEAD)

    def layer(p):
        return attention(p) | plain(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm")

    return config, model(BPE_VOCAB, layer), "bpe"


def olmo3(layers=LAYERS):
    config, shapes, tokenizer = olmo2(layers)
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "attention_factor": 1.2,
               "beta_fast": 32.0, "beta_slow": 1.0}
    config |= {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "sliding_window": 64, "rope_scaling": scaling}
    return config, shapes, tokenizer


def command_r(layers=LAYERS):
    config = base("CohereForCausalLM", "cohere", BPE_VOCAB, logit_scale=0.25, layer_norm_eps=1e-5, rope_theta=8e6,
                  model_max_length=8192, num_hidden_layers=layers)
    del config["rms_norm_eps"]

    def layer(p):
        return attention(p) | gated(p + "mlp.") | norms(p, "input_layernorm")

    return config, model(BPE_VOCAB, layer, tied=True, layers=layers), "bpe"


def command_r_norms():
    # llama.cpp expects them from this number of layers on.
    layers = 64
    config, shapes, tokenizer = command_r(layers)
    for i in range(layers):
        p = f"model.layers.{i}.self_attn."
        shapes |= {p + "q_norm.weight": (HEADS, HEAD), p + "k_norm.weight": (KV_HEADS, HEAD)}
    return config | {"use_qk_norm": True}, shapes, tokenizer


def cohere2():
    config, shapes, tokenizer = command_r(5)
    del config["model_max_length"]
    config |= {"architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "rotary_pct": 1.0, "sliding_window": 64}
    return config, shapes, tokenizer


def phi2():
    config = base("PhiForCausalLM", "phi", BPE_VOCAB, intermediate_size=4 * HIDDEN, partial_rotary_factor=0.5,
                  layer_norm_eps=1e-5, num_key_value_heads=HEADS)
    del config["rms_norm_eps"]

    def layer(p):
        shapes = norms(p, "input_layernorm", bias=True)
        for name, n_in, n_out in (("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN, HIDDEN),
                                  ("self_attn.v_proj", HIDDEN, HIDDEN), ("self_attn.dense", HIDDEN, HIDDEN),
                                  ("mlp.fc1", HIDDEN, 4 * HIDDEN), ("mlp.fc2", 4 * HIDDEN, HIDDEN)):
            shapes |= {f"{p}{name}.weight": (n_out, n_in), f"{p}{name}.bias": (n_out,)}
        return shapes

    shapes = model(BPE_VOCAB, layer, final_norm=False) | norms("model.", "final_layernorm", bias=True)
    return config, shapes | {"lm_head.bias": (BPE_VOCAB,)}, "bpe"


def stablelm(parallel=False):
    config = base("StableLmForCausalLM", "stablelm", BPE_VOCAB, layer_norm_eps=1e-5, partial_rotary_factor=0.25,
                  use_parallel_residual=parallel)
    del config["rms_norm_eps"]
    names = ["input_layernorm"] if parallel else ["input_layernorm", "post_attention_layernorm"]

    def layer(p):
        return attention(p, biases=not parallel) | gated(p + "mlp.") | norms(p, *names, bias=True)

    return config, model(BPE_VOCAB, layer, bias=True), "bpe"


def starcoder(kv_heads=1):
    config, shapes, tokenizer = gpt2(kv_heads=kv_heads, by_rows=True)
    config |= {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "multi_query": True}
    return config, shapes, tokenizer


def codeshell():
    config, shapes, tokenizer = starcoder(KV_HEADS)
    config |= {"architectures": ["CodeShellForCausalLM"], "model_type": "codeshell", "num_query_groups": KV_HEADS}
    del shapes["transformer.wpe.weight"]
    return config, shapes | {"lm_head.weight": (BPE_VOCAB, HIDDEN)}, tokenizer


def nemotron():
    config = base("NemotronForCausalLM", "nemotron", SPM_VOCAB, norm_eps=1e-5, partial_rotary_factor=0.5,
                  hidden_act="relu2")
    del config["rms_norm_eps"]

    def layer(p):
        return attention(p) | plain(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm", bias=True)

    return config, model(SPM_VOCAB, layer, bias=True), "spm"


def orion():
    config = base("OrionForCausalLM", "orion", SPM_VOCAB)

    def layer(p):
        return attention(p) | gated(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm", bias=True)

    return config, model(SPM_VOCAB, layer, bias=True), "spm"


def ernie(fused=False):
    config = base("Ernie4_5ForCausalLM", "ernie4_5", SPM_VOCAB, head_dim=HEAD)

    def layer(p):
        if not fused:
            return llama_layer(p)
        return (norms(p, "input_layernorm", "post_attention_layernorm")
                | {p + "self_attn.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN),
                   p + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
                   p + "mlp.up_gate_proj.weight": (2 * FFN, HIDDEN), p + "mlp.down_proj.weight": (HIDDEN, FFN)})

    shapes = model(SPM_VOCAB, layer)
    if fused:
        shapes = {name.replace("model.", "ernie."): shape for name, shape in shapes.items()}
    return config, shapes, "spm"


def wrapped(text, cls, model_type, prefix, config_name="text_config", **outer):
    """A text model inside a vision model: its config in an object, its tensors prefixed by `prefix`, and others beside."""
    config, shapes, tokenizer = text
    inner = {k: v for k, v in config.items() if k != "architectures"}
    if config_name == "llm_config":
        inner["architectures"] = config["architectures"]
    shapes = {prefix(name): shape for name, shape in shapes.items()}
    shapes |= {"vision_tower.blocks.0.norm1.weight": (HIDDEN,), "model.visual.merger.mlp.0.weight": (HIDDEN, HIDDEN),
               "multi_modal_projector.linear_1.weight": (HIDDEN, HIDDEN), "audio_tower.conv1.bias": (HIDDEN,)}
    config = {"architectures": [cls], "model_type": model_type, config_name: inner,
              "vision_config": {"hidden_size": 32}, "hidden_size": 64} | outer
    return config, shapes, tokenizer


def outside(name):
    return "language_model." + name


def inside(name):
    return name.replace("model.", "model.language_model.", 1)


def gemma3_vl():
    config, shapes, tokenizer = gemma3()
    return wrapped((config | {"model_type": "gemma3_text"}, shapes, tokenizer), "Gemma3ForConditionalGeneration", "gemma3",
                   outside)


def mistral3():
    config, shapes, tokenizer = mistral()
    return wrapped((config, shapes, tokenizer), "Mistral3ForConditionalGeneration", "mistral3", outside)


def ministral3():
    config, shapes, tokenizer = mistral()
    rope = {"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1024,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    config = {k: v for k, v in config.items() if k != "rope_theta"} | {
        "model_type": "ministral3", "rope_parameters": rope, "head_dim": HEAD, "max_position_embeddings": 16384}
    return wrapped((config, shapes, tokenizer), "Mistral3ForConditionalGeneration", "mistral3", outside)


def llava():
    return wrapped(llama(), "LlavaForConditionalGeneration", "llava", outside)


def internvl():
    return wrapped(qwen2(), "InternVLChatModel", "internvl_chat", outside, "llm_config")


MROPE = {"type": "mrope", "mrope_section": [8, 12, 12]}


def qwen2vl():
    config, shapes, tokenizer = qwen2()
    config |= {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "rope_scaling": MROPE,
               "vision_config": {"depth": 2, "embed_dim": 32}}
    return config, shapes | {"visual.blocks.0.norm1.weight": (HIDDEN,)}, tokenizer


def qwen25vl():
    config, shapes, tokenizer = qwen2()
    return wrapped((config | {"model_type": "qwen2_5_vl_text", "rope_scaling": MROPE}, shapes, tokenizer),
                   "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", inside)


def paddleocr():
    config, shapes, tokenizer = ernie()
    config |= {"architectures": ["PaddleOCRVLForConditionalGeneration"], "model_type": "paddleocr_vl",
               "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"}, "vision_config": {"hidden_size": 32}}
    return config, shapes | {"visual.vision_model.post_layernorm.weight": (32,), "mlp_AR.pre_norm.weight": (32,)}, tokenizer


def stepvl():
    return wrapped(qwen3(), "StepVLForConditionalGeneration", "step_vl", inside)


def qwen3vl():
    config, shapes, tokenizer = qwen3()
    rope = {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"}
    return wrapped((config | {"model_type": "qwen3_vl_text", "rope_scaling": rope}, shapes, tokenizer),
                   "Qwen3VLForConditionalGeneration", "qwen3_vl", inside,
                   vision_config={"hidden_size": 32, "deepstack_visual_indexes": [1]})


def qwen3moe_stacked(transposed=False):
    """Experts in two tensors per layer, the first with gate and up projections."""
    config, shapes, tokenizer = qwen3moe()
    shapes = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    experts, length = config["num_experts"], config["moe_intermediate_size"]
    for i in range(LAYERS):
        p = f"model.layers.{i}.mlp.experts."
        both, down = (experts, 2 * length, HIDDEN), (experts, HIDDEN, length)
        if transposed:
            both, down = (experts, HIDDEN, 2 * length), (experts, length, HIDDEN)
        shapes |= {p + "gate_up_proj": both, p + "down_proj": down}
    return config, shapes, tokenizer


def qwen3vlmoe():
    config, shapes, tokenizer = qwen3moe_stacked(True)
    rope = {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"}
    return wrapped((config | {"model_type": "qwen3_vl_moe_text", "rope_scaling": rope}, shapes, tokenizer),
                   "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", inside,
                   vision_config={"hidden_size": 32, "deepstack_visual_indexes": [1]})


LINEAR_HEAD = 64


def delta_net(p, keys, values):
    """A gated delta net with `keys` heads of keys and `values` heads of values."""
    inner = values * LINEAR_HEAD
    p += "linear_attn."
    return {p + "in_proj_qkv.weight": (2 * keys * LINEAR_HEAD + inner, HIDDEN), p + "in_proj_z.weight": (inner, HIDDEN),
            p + "in_proj_b.weight": (values, HIDDEN), p + "in_proj_a.weight": (values, HIDDEN),
            p + "conv1d.weight": (2 * keys * LINEAR_HEAD + inner, 1, 4), p + "A_log": (values,), p + "dt_bias": (values,),
            p + "norm.weight": (LINEAR_HEAD,), p + "out_proj.weight": (HIDDEN, inner)}


def gated_attention(p):
    """Attention with the gate rows of every head after its query rows."""
    return (attention(p) | {p + "self_attn.q_proj.weight": (2 * HEADS * HEAD, HIDDEN)}
            | norms(p + "self_attn.", "q_norm", "k_norm", size=HEAD))


def qwen35(keys=2, values=4, layers=4, mtp=1, ffn=lambda p: gated(p + "mlp."), **more):
    """Qwen 3.5: three delta nets, then attention; `mtp` blocks for further tokens."""
    rope = {"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25}
    config = base("Qwen3_5ForCausalLM", "qwen3_5_text", BPE_VOCAB, num_hidden_layers=layers, head_dim=HEAD,
                  attn_output_gate=True, full_attention_interval=4, linear_conv_kernel_dim=4,
                  linear_key_head_dim=LINEAR_HEAD, linear_value_head_dim=LINEAR_HEAD, linear_num_key_heads=keys,
                  linear_num_value_heads=values, mtp_num_hidden_layers=mtp, rope_parameters=rope,
                  layer_types=["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)])
    config |= more
    both = ("input_layernorm", "post_attention_layernorm")

    def layer(p):
        full = int(p.split(".")[2]) % 4 == 3
        return (gated_attention(p) if full else delta_net(p, keys, values)) | norms(p, *both) | ffn(p)

    shapes = model(BPE_VOCAB, layer, layers=layers)
    for i in range(mtp):
        p = f"mtp.layers.{i}."
        shapes |= gated_attention(p) | norms(p, *both) | ffn(p)
    if mtp:
        shapes |= {"mtp.fc.weight": (HIDDEN, 2 * HIDDEN)}
        shapes |= norms("mtp.", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return config, shapes, "bpe"


def without(config, *fields):
    return {name: value for name, value in config.items() if name not in fields}


def qwen35_vl():
    return wrapped(qwen35(), "Qwen3_5ForConditionalGeneration", "qwen3_5", inside)


def qwen35_sparse():
    """Equally many heads of keys and values; without optional fields: kinds of layers, sections, number of blocks for
    further tokens, rotated part of a head."""
    config, shapes, tokenizer = qwen35(keys=4, layers=5)
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000000}}
    return without(config, "layer_types", "mtp_num_hidden_layers"), shapes, tokenizer


def qwen35_without_mtp():
    config, shapes, tokenizer = qwen35(mtp=0)
    return without(config, "mtp_num_hidden_layers"), shapes, tokenizer


def qwen35_promised():
    """A block for a further token in the config, but without tensors."""
    config, shapes, tokenizer = qwen35(mtp=0)
    return config | {"mtp_num_hidden_layers": 1}, shapes, tokenizer


def qwen35moe(stacked=True):
    experts, length = 8, 96

    def ffn(p):
        p += "mlp."
        shapes = {p + "gate.weight": (experts, HIDDEN), p + "shared_expert_gate.weight": (1, HIDDEN)}
        shapes |= gated(p + "shared_expert.", ffn=128)
        if stacked:
            return shapes | {p + "experts.gate_up_proj": (experts, 2 * length, HIDDEN),
                             p + "experts.down_proj": (experts, HIDDEN, length)}
        for e in range(experts):
            shapes |= gated(f"{p}experts.{e}.", ffn=length)
        return shapes

    config, shapes, tokenizer = qwen35(ffn=ffn, architectures=["Qwen3_5MoeForCausalLM"], model_type="qwen3_5_moe_text",
                                       num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=length,
                                       shared_expert_intermediate_size=128)
    return without(config, "intermediate_size"), shapes, tokenizer


def qwen3next(**more):
    """Qwen 3 Next: queries, keys, values and gates in one matrix, strengths and steps in another, by head."""
    config, shapes, tokenizer = qwen35moe(False)
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    apart = ("in_proj_qkv.", "in_proj_z.", "in_proj_a.", "in_proj_b.")
    shapes = {name: shape for name, shape in shapes.items() if not any(part in name for part in apart)}
    for i in (i for i, kind in enumerate(config["layer_types"]) if kind == "linear_attention"):
        p = f"model.layers.{i}.linear_attn."
        shapes |= {p + "in_proj_qkvz.weight": (2 * (keys + values) * LINEAR_HEAD, HIDDEN),
                   p + "in_proj_ba.weight": (2 * values, HIDDEN)}
    config = without(config, "rope_parameters", "mtp_num_hidden_layers", "layer_types", "attn_output_gate")
    config |= {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "rope_theta": 10000000,
               "partial_rotary_factor": 0.25}
    return config | more, shapes, tokenizer


def kimi_linear(head=32, kernel=4, rank=64, dense=1):
    """Three of four layers with Kimi Delta Attention, the last with multi-head latent attention; a dense network first."""
    layers, experts, length, plain, rotated, value = 4, 8, 96, 32, 16, 48
    config = base("KimiLinearForCausalLM", "kimi_linear", BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=HEADS,
                  head_dim=HIDDEN // HEADS, kv_lora_rank=rank, q_lora_rank=None, qk_nope_head_dim=plain,
                  qk_rope_head_dim=rotated, v_head_dim=value, mla_use_nope=True, num_experts=experts,
                  num_experts_per_token=2, num_shared_experts=1, moe_intermediate_size=length, moe_renormalize=True,
                  moe_router_activation_func="sigmoid", first_k_dense_replace=dense, routed_scaling_factor=2.446,
                  use_grouped_topk=True, num_expert_group=1, topk_group=1, rope_theta=10000.0,
                  linear_attn_config={"full_attn_layers": [layers], "kda_layers": list(range(1, layers)),
                                      "head_dim": head, "num_heads": HEADS, "short_conv_kernel_size": kernel})
    shapes = {"model.embed_tokens.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("model.", "norm")
    inner = HEADS * head
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm")
        a = p + "self_attn."
        if i + 1 < layers:
            shapes |= linears(a, {"q_proj": (inner, HIDDEN), "k_proj": (inner, HIDDEN), "v_proj": (inner, HIDDEN),
                                  "f_a_proj": (head, HIDDEN), "f_b_proj": (inner, head), "b_proj": (HEADS, HIDDEN),
                                  "g_a_proj": (head, HIDDEN), "g_b_proj": (inner, head), "o_proj": (HIDDEN, inner)},
                              bias=False)
            shapes |= {f"{a}{n}_conv1d.weight": (inner, 1, kernel) for n in "qkv"}
            shapes |= {a + "A_log": (1, 1, HEADS, 1), a + "dt_bias": (inner,), a + "o_norm.weight": (head,)}
        else:
            queries = HEADS * (plain + rotated)
            shapes |= {a + "kv_a_proj_with_mqa.weight": (rank + rotated, HIDDEN), a + "kv_a_layernorm.weight": (rank,),
                       a + "kv_b_proj.weight": (HEADS * (plain + value), rank), a + "o_proj.weight": (HIDDEN, HEADS * value)}
            shapes[a + "q_proj.weight"] = (queries, HIDDEN)
        if i < dense:
            shapes |= gated(p + "mlp.")
            continue
        m = p + "block_sparse_moe."
        shapes |= {m + "gate.weight": (experts, HIDDEN), m + "gate.e_score_correction_bias": (experts,)}
        shapes |= gated(m + "shared_experts.", ffn=length)
        for e in range(experts):
            x = f"{m}experts.{e}."
            shapes |= {x + "w1.weight": (length, HIDDEN), x + "w2.weight": (HIDDEN, length), x + "w3.weight": (length, HIDDEN)}
    return config, shapes, "bpe"


def gpt_oss(mxfp4=False, **more):
    """Sinks, every other layer with a window, experts with biases and interleaved rows of gate and up projections."""
    layers, experts, length = 3, 8, 96
    if mxfp4:
        more |= {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}
    config = base("GptOssForCausalLM", "gpt_oss", BPE_VOCAB, num_hidden_layers=layers, intermediate_size=length,
                  head_dim=32, num_local_experts=experts, num_experts_per_tok=3, sliding_window=96,
                  layer_types=["sliding_attention", "full_attention", "sliding_attention"])

    def layer(p):
        m = p + "mlp."
        shapes = (attention(p, head=32, biases=True, out_bias=True) | {p + "self_attn.sinks": (HEADS,)}
                  | {m + "router.weight": (experts, HIDDEN), m + "router.bias": (experts,),
                     m + "experts.gate_up_proj_bias": (experts, 2 * length), m + "experts.down_proj_bias": (experts, HIDDEN)}
                  | norms(p, "input_layernorm", "post_attention_layernorm"))
        for name, rows, columns in (("gate_up_proj", 2 * length, HIDDEN), ("down_proj", HIDDEN, length)):
            if mxfp4:
                shapes |= {f"{m}experts.{name}_blocks": (experts, rows, columns // 32, 16),
                           f"{m}experts.{name}_scales": (experts, rows, columns // 32)}
            else:
                shapes[f"{m}experts.{name}"] = (experts, columns, rows)
        return shapes

    return config | more, model(BPE_VOCAB, layer, layers=layers), "bpe"


def latent_attention(p, query_rank, rank=64, plain=32, rotated=16, value=48):
    """Multi-head latent attention by the names of DeepSeek."""
    queries = HEADS * (plain + rotated)
    shapes = {p + "kv_a_proj_with_mqa.weight": (rank + rotated, HIDDEN), p + "kv_a_layernorm.weight": (rank,),
              p + "kv_b_proj.weight": (HEADS * (plain + value), rank), p + "o_proj.weight": (HIDDEN, HEADS * value)}
    if query_rank is None:
        return shapes | {p + "q_proj.weight": (queries, HIDDEN)}
    return shapes | {p + "q_a_proj.weight": (query_rank, HIDDEN), p + "q_a_layernorm.weight": (query_rank,),
                     p + "q_b_proj.weight": (queries, query_rank)}


def shared_and_routed(p, experts, length, shared, bias):
    """A router, experts and what every token sees, by the names of DeepSeek."""
    shapes = {p + "gate.weight": (experts, HIDDEN)}
    if bias:
        shapes[p + "gate.e_score_correction_bias"] = (experts,)
    if shared:
        shapes |= gated(p + "shared_experts.", ffn=shared * length)
    for e in range(experts):
        shapes |= gated(f"{p}experts.{e}.", ffn=length)
    return shapes


def nextn(p):
    """What a block for a further token has beside a layer."""
    return ({p + "eh_proj.weight": (HIDDEN, 2 * HIDDEN), p + "embed_tokens.weight": (BPE_VOCAB, HIDDEN),
             p + "shared_head.head.weight": (BPE_VOCAB, HIDDEN), p + "shared_head.norm.weight": (HIDDEN,)}
            | norms(p, "enorm", "hnorm"))


def deepseek2(cls, model_type, layers=3, query_rank=48, rank=64, dense=1, experts=8, length=96, shared=1, bias=True, mtp=0,
              **more):
    """Latent attention, and behind the first layers a mixture of experts."""
    config = base(cls, model_type, BPE_VOCAB, num_hidden_layers=layers, num_key_value_heads=HEADS, kv_lora_rank=rank,
                  q_lora_rank=query_rank, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=48, rope_theta=10000.0,
                  first_k_dense_replace=dense, moe_intermediate_size=length, n_routed_experts=experts,
                  n_shared_experts=shared, num_experts_per_tok=2, num_nextn_predict_layers=mtp)
    shapes = {"model.embed_tokens.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("model.", "norm")
    for i in range(layers + mtp):
        p = f"model.layers.{i}."
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= latent_attention(p + "self_attn.", query_rank, rank)
        if i < dense:
            shapes |= gated(p + "mlp.")
        else:
            shapes |= shared_and_routed(p + "mlp.", experts, length, shared, bias)
        if i >= layers:
            shapes |= nextn(p)
    return config | more, shapes, "bpe"


def yarn(**more):
    """Contexts of the tests are longer than the original one."""
    return {"type": "yarn", "factor": 8, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1} | more


def deepseek_v3():
    """Groups of experts, a bias for the choice, a block for a further token that is left out."""
    return deepseek2("DeepseekV3ForCausalLM", "deepseek_v3", mtp=1, n_group=4, topk_group=2, topk_method="noaux_tc",
                     scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
                     rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0))


def deepseek_v2():
    """Softmax over groups without a norm; experts in every layer; another latent length."""
    return deepseek2("DeepseekV2ForCausalLM", "deepseek_v2", rank=32, dense=0, shared=2, bias=False, n_group=4, topk_group=2,
                     topk_method="group_limited_greedy", scoring_func="softmax", norm_topk_prob=False,
                     routed_scaling_factor=16.0)


def deepseek_v2_lite():
    """Queries of one matrix, which llama.cpp loads of models of so many layers."""
    config, shapes, tokenizer = deepseek2(
        "DeepseekV2ForCausalLM", "deepseek_v2", layers=27, query_rank=None, length=32, shared=2, bias=False, n_group=1,
        topk_group=1, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0,
        rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707))
    return config, shapes, tokenizer


def kimi_k25():
    text = deepseek2("DeepseekV3ForCausalLM", "kimi_k2", n_group=1, topk_group=1, scoring_func="sigmoid", norm_topk_prob=True,
                     routed_scaling_factor=2.827, aux_loss_alpha=0.001,
                     rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0))
    config, shapes, tokenizer = wrapped(text, "KimiK25ForConditionalGeneration", "kimi_k25", outside)
    return config, shapes | {"vision_tower.a.weight": (8, 8), "mm_projector.proj.0.weight": (8, 8)}, tokenizer


def youtu():
    """No experts; the embeddings are the output matrix, and the file has it once more."""
    config, shapes, tokenizer = deepseek2("YoutuForCausalLM", "youtu", dense=3, tie_word_embeddings=True, mlp_bias=False,
                                          rope_interleave=True)
    return without(config, "n_routed_experts", "n_shared_experts", "first_k_dense_replace", "moe_intermediate_size",
                   "num_experts_per_tok", "num_nextn_predict_layers"), shapes, tokenizer


def glm4_moe_lite(**more):
    config, shapes, _ = deepseek2("Glm4MoeLiteForCausalLM", "glm4_moe_lite", mtp=1, n_group=1, topk_group=1,
                                  topk_method="noaux_tc", norm_topk_prob=True, routed_scaling_factor=1.8,
                                  partial_rotary_factor=1.0)
    return config | more, shapes, "glm-moe"


def glm4moe(mtp=1, dense=1, head_norms=True, biases=True, **more):
    layers, experts, length = 3, 8, 96
    config = base("Glm4MoeForCausalLM", "glm4_moe", BPE_VOCAB, num_hidden_layers=layers, head_dim=HEAD,
                  partial_rotary_factor=0.5, moe_intermediate_size=length, n_routed_experts=experts, n_shared_experts=1,
                  num_experts_per_tok=3, n_group=1, topk_group=1, first_k_dense_replace=dense, routed_scaling_factor=2.5,
                  norm_topk_prob=True, use_qk_norm=head_norms, attention_bias=biases, rope_theta=1000000.0,
                  num_nextn_predict_layers=mtp)

    def layer(p):
        i = int(p.split(".")[2])
        shapes = attention(p, biases=biases) | norms(p, "input_layernorm", "post_attention_layernorm")
        if head_norms:
            shapes |= norms(p + "self_attn.", "q_norm", "k_norm", size=HEAD)
        shapes |= gated(p + "mlp.") if i < dense else shared_and_routed(p + "mlp.", experts, length, 1, True)
        return shapes | nextn(p) if i >= layers else shapes

    return config | more, model(BPE_VOCAB, layer, layers=layers + mtp), "glm-moe"


def glm4v_moe():
    """Positions in sections, no norms of heads, no dense network, no block for a further token."""
    text = glm4moe(0, 0, False, rope_scaling={"type": "default", "mrope_section": [4, 6, 6]})
    text = (without(text[0], "num_nextn_predict_layers"), *text[1:])
    return wrapped(text, "Glm4vMoeForConditionalGeneration", "glm4v_moe", inside)


def solar_open():
    config, shapes, _ = glm4moe(0, 1, False, False, architectures=["SolarOpenForCausalLM"], model_type="solar_open",
                                partial_rotary_factor=1.0, rope_scaling=yarn())
    return without(config, "num_nextn_predict_layers"), shapes, "solar"


def minimax_m2():
    experts, length = 8, 96
    config = base("MiniMaxM2ForCausalLM", "minimax_m2", BPE_VOCAB, intermediate_size=length, head_dim=HEAD, rotary_dim=32,
                  num_local_experts=experts, num_experts_per_tok=3, scoring_func="sigmoid", use_routing_bias=True,
                  use_qk_norm=True, qk_norm_type="per_layer", rope_theta=5000000)

    def layer(p):
        m = p + "block_sparse_moe."
        shapes = attention(p) | norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= norms(p + "self_attn.", "q_norm", size=HEADS * HEAD) | norms(p + "self_attn.", "k_norm", size=KV_HEADS * HEAD)
        shapes |= {m + "gate.weight": (experts, HIDDEN), m + "e_score_correction_bias": (experts,)}
        for e in range(experts):
            x = f"{m}experts.{e}."
            shapes |= {x + "w1.weight": (length, HIDDEN), x + "w2.weight": (HIDDEN, length), x + "w3.weight": (length, HIDDEN)}
        return shapes

    return config, model(BPE_VOCAB, layer), "bpe"


def mistral4():
    """A DeepSeek V2 within a Mistral 3, its experts stacked."""
    experts, length = 8, 96
    config, shapes, tokenizer = deepseek2(
        "", "mistral4", dense=0, experts=0, bias=False, n_routed_experts=experts, n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=1.0, rope_parameters=yarn(
            rope_type="yarn", rope_theta=10000.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1))
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}.mlp."
        shapes |= {p + "gate.weight": (experts, HIDDEN), p + "experts.gate_up_proj": (experts, 2 * length, HIDDEN),
                   p + "experts.down_proj": (experts, HIDDEN, length)}
    config = without(config, "architectures", "rope_theta", "num_nextn_predict_layers")
    return wrapped((config, shapes, tokenizer), "Mistral3ForConditionalGeneration", "mistral3", outside)


def sparse(cls, model_type, top_k, kinds=None, **more):
    """Indexers, in all layers or in those that are full."""
    # So many heads that hardly any index is 0, of which the best are any.
    heads, length, layers, query_rank = 16, 64, 3, 48
    config, shapes, _ = deepseek2(cls, model_type, layers=layers, query_rank=query_rank, mtp=1, scoring_func="sigmoid",
                                  norm_topk_prob=True, routed_scaling_factor=2.5, index_n_heads=heads, index_head_dim=length,
                                  index_topk=top_k, **more)
    for i in range(layers + 1):
        if kinds and i < layers and kinds[i] == "shared":
            continue
        p = f"model.layers.{i}.self_attn.indexer."
        shapes |= norms(p, "k_norm", size=length, bias=True)
        shapes |= {p + "weights_proj.weight": (heads, HIDDEN), p + "wk.weight": (length, HIDDEN),
                   p + "wq_b.weight": (heads * length, query_rank)}
    return config | ({"indexer_types": kinds} if kinds else {}), shapes


def deepseek_v32(top_k):
    config, shapes = sparse("DeepseekV32ForCausalLM", "deepseek_v32", top_k, n_group=4, topk_group=2,
                            rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0))
    return config, shapes, "bpe-bos"


def glm_dsa(top_k, kinds=None):
    config, shapes = sparse("GlmMoeDsaForCausalLM", "glm_moe_dsa", top_k, kinds, n_group=1, topk_group=1,
                            rope_parameters={"rope_theta": 1000000, "rope_type": "default"})
    return without(config, "rope_theta"), shapes, "glm-moe"


def deepseek_ocr():
    """Plain attention; the fields of the text model have another name, and a few are missing."""
    experts, length = 8, 96
    config, shapes, tokenizer = deepseek2("DeepseekV2ForCausalLM", "deepseek_v2", experts=experts, shared=2, bias=False,
                                          n_group=1, topk_group=1, topk_method="greedy", use_mla=False, sliding_window_size=64)
    shapes = {n: s for n, s in shapes.items() if ".self_attn." not in n}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
    shapes |= {n + ".weight": (8, 8) for n in ("model.sam_model.a", "model.vision_model.b", "model.projector.layers", "model.qwen2_model.c")}
    shapes |= {"model.image_newline": (8,), "model.view_seperator": (8,)}
    text = without(config, "architectures", "model_type", "rope_theta", "rms_norm_eps") | {
        "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "kv_lora_rank": None, "q_lora_rank": None}
    return {"architectures": ["DeepseekOCRForCausalLM"], "model_type": "deepseek_vl_v2", "bos_token_id": 1,
            "eos_token_id": 2, "language_config": text, "vision_config": {"width": {}}}, shapes, tokenizer


def deepseek_v1():
    experts, length, layers = 8, 96, 3
    config = base("DeepseekForCausalLM", "deepseek", BPE_VOCAB, num_hidden_layers=layers, moe_intermediate_size=length,
                  n_routed_experts=experts, n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=1, moe_layer_freq=1,
                  norm_topk_prob=False, scoring_func="softmax", rope_theta=10000.0, attention_bias=False)

    def layer(p):
        shapes = attention(p) | norms(p, "input_layernorm", "post_attention_layernorm")
        if p.startswith("model.layers.0."):
            return shapes | gated(p + "mlp.")
        return shapes | shared_and_routed(p + "mlp.", experts, length, 2, False)

    return config, model(BPE_VOCAB, layer, layers=layers), "bpe"


def bailingmoe3(query_rank=None, mtp=1, **more):
    """Kimi Delta Attention in three of five layers, latent attention in the others; limits of activations."""
    layers, experts, length, rank, plain, rotated, value, kernel = 5, 8, 96, 64, 32, 16, 48, 4
    config = base("BailingMoeV3ForCausalLM", "bailing_hybrid", BPE_VOCAB, num_hidden_layers=layers,
                  num_key_value_heads=HEADS, head_dim=HEAD, layer_group_size=4, num_nextn_predict_layers=mtp,
                  no_kda_lora=True, kda_safe_gate=True, kda_lower_bound=-5.0, short_conv_kernel_size=kernel,
                  gated_attention_proj_granularity_type="head_wise", kv_lora_rank=rank, q_lora_rank=query_rank,
                  qk_nope_head_dim=plain, qk_rope_head_dim=rotated, v_head_dim=value, num_experts=experts,
                  num_experts_per_tok=3, n_group=4, topk_group=2, num_shared_experts=1, moe_intermediate_size=length,
                  moe_shared_expert_intermediate_size=128, first_k_dense_replace=1, routed_scaling_factor=2.5,
                  norm_topk_prob=True, score_function="sigmoid", rope_theta=6000000.0,
                  expert_swiglu_limit_list=[None, 0.02, 0.01, 7.0, 0.02, 0.02],
                  share_expert_swiglu_limit_list=[0.01, 0.02, None, 7.0])
    shapes = {"model.word_embeddings.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("model.", "norm")
    inner = HEADS * HEAD
    for i in range(layers + mtp):
        p = f"model.layers.{i}."
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm")
        a = p + "attention."
        if i < 3:
            shapes |= linears(a, {"q_proj": (inner, HIDDEN), "k_proj": (inner, HIDDEN), "v_proj": (inner, HIDDEN),
                                  "f_proj": (inner, HIDDEN), "b_proj": (HEADS, HIDDEN), "g_proj": (inner, HIDDEN),
                                  "o_proj": (HIDDEN, inner)}, bias=False)
            shapes |= {f"{a}{n}_conv1d.weight": (inner, 1, kernel) for n in "qkv"}
            shapes |= {a + "A_log": (HEADS,), a + "dt_bias": (inner,), a + "o_norm.weight": (HEAD,)}
        else:
            queries = HEADS * (plain + rotated)
            shapes |= {a + "kv_a_proj_with_mqa.weight": (rank + rotated, HIDDEN), a + "kv_a_layernorm.weight": (rank,),
                       a + "kv_b_proj.weight": (HEADS * (plain + value), rank), a + "g_proj.weight": (HEADS, HIDDEN),
                       a + "dense.weight": (HIDDEN, HEADS * value)}
            if query_rank is None:
                shapes[a + "q_proj.weight"] = (queries, HIDDEN)
            else:
                shapes |= {a + "q_a_proj.weight": (query_rank, HIDDEN), a + "q_a_layernorm.weight": (query_rank,),
                           a + "q_b_proj.weight": (queries, query_rank)}
        if i < 1:
            shapes |= gated(p + "mlp.")
            continue
        m = p + "mlp."
        shapes |= {m + "gate.weight": (experts, HIDDEN), m + "gate.expert_bias": (experts,)}
        shapes |= gated(m + "shared_experts.", ffn=128)
        for e in range(experts):
            shapes |= gated(f"{m}experts.{e}.", ffn=length)
        if i >= layers:
            shapes |= {p + "eh_proj.weight": (HIDDEN, 2 * HIDDEN)} | norms(p, "enorm", "hnorm", "final_layernorm")
    return config | more, shapes, "bpe"


def bailingmoe3_vl():
    text = bailingmoe3(48, 0, mrope_section=[4, 2, 2])
    config, shapes, tokenizer = wrapped(text, "BailingMoeV3VLForConditionalGeneration", "bailingmm_hybrid", inside)
    return config, shapes | {"linear_proj.0.weight": (HIDDEN, HIDDEN)}, tokenizer


def qwen35moe_vl():
    return wrapped(qwen35moe(), "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", inside)


def minicpmv46():
    config, shapes, tokenizer = wrapped(qwen35(), "MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6", inside)
    return config, shapes | {"model.merger.mlp.0.linear_1.weight": (HIDDEN, HIDDEN)}, tokenizer


SPACE_HEAD = 64


def state_space(p, heads=8, groups=2, state=32, hidden=HIDDEN, norm=True):
    """A Mamba-2 state space: gates, values, keys, queries and steps from one matrix."""
    inner, keys = heads * SPACE_HEAD, groups * state
    shapes = {p + "in_proj.weight": (2 * inner + 2 * keys + heads, hidden), p + "conv1d.weight": (inner + 2 * keys, 1, 4),
              p + "conv1d.bias": (inner + 2 * keys,), p + "A_log": (heads,), p + "D": (heads,), p + "dt_bias": (heads,),
              p + "out_proj.weight": (hidden, inner)}
    return shapes | (norms(p, "norm", size=inner) if norm else {})


def backbone(layers, vocab, layer, prefix="", tied=False):
    """A model with the names of Mamba's authors; the embeddings include padding rows."""
    shapes = {prefix + "backbone.embeddings.weight": (vocab, HIDDEN)} | norms(prefix + "backbone.", "norm_f")
    for i in range(layers):
        p = f"{prefix}backbone.layers.{i}."
        shapes |= layer(i, p) | norms(p, "norm")
    return shapes | ({} if tied else {prefix + "lm_head.weight": (vocab, HIDDEN)})


def mamba2(**more):
    config = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": HIDDEN, "expand": 2,
              "num_hidden_layers": 3, "num_heads": 8, "head_dim": SPACE_HEAD, "n_groups": 2, "state_size": 32,
              "conv_kernel": 4, "layer_norm_epsilon": 1e-5, "vocab_size": BPE_VOCAB + 5, "pad_vocab_size_multiple": 8,
              "bos_token_id": 1, "eos_token_id": 2}
    return config | more, backbone(3, BPE_VOCAB + 8, lambda i, p: state_space(p + "mixer.")), "bpe"


def codestral():
    """Mamba Codestral's names; without optional fields: groups, kernels, lengths, padding."""
    config = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "d_model": HIDDEN, "n_layer": 2,
              "vocab_size": SPM_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-6}
    shapes = backbone(2, SPM_VOCAB, lambda i, p: state_space(p + "mixer.", groups=1, state=128), "model.")
    return config, shapes, "spm"


def original_mamba2():
    """The files of Mamba's authors: no class, other names, tied embeddings."""
    config = {"d_model": HIDDEN, "n_layer": 2, "vocab_size": BPE_VOCAB + 5, "ssm_cfg": {"layer": "Mamba2"},
              "rms_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    shapes = backbone(2, BPE_VOCAB + 16, lambda i, p: state_space(p + "mixer.", groups=1, state=128), tied=True)
    return config, {name.replace("embeddings", "embedding"): shape for name, shape in shapes.items()}, "bpe"


def nemotron_h(pattern="M-M*-", **more):
    length = 128
    config = base("NemotronHForCausalLM", "nemotron_h", BPE_VOCAB + 5, hybrid_override_pattern=pattern,
                  num_hidden_layers=len(pattern), attention_head_dim=length, mamba_num_heads=8, mamba_head_dim=SPACE_HEAD,
                  n_groups=2, ssm_state_size=32, conv_kernel=4, expand=2, mlp_hidden_act="relu2", layer_norm_epsilon=1e-5,
                  use_conv_bias=True, intermediate_size=FFN + 64, tie_word_embeddings=False)
    config = without(config, "hidden_act", "rms_norm_eps") | more
    biases = config.get("attention_bias", False)

    def layer(i, p):
        p += "mixer."
        if pattern[i] == "M":
            return state_space(p)
        if pattern[i] == "*":
            q, k = HEADS * length, KV_HEADS * length
            return linears(p, {"q_proj": (q, HIDDEN), "k_proj": (k, HIDDEN), "v_proj": (k, HIDDEN),
                               "o_proj": (HIDDEN, q)}, bias=biases)
        return linears(p, {"up_proj": (FFN + 64, HIDDEN), "down_proj": (HIDDEN, FFN + 64)}, bias=biases)

    return config, backbone(len(pattern), BPE_VOCAB + 8, layer), "bpe"


def nemotron_h_moe(latent=None, mtp=0, listed=False, length=96, shared=160, **more):
    """Nemotron 3: experts without gates, routed by sigmoids and a bias, in groups; a shared expert. Experts can have a
    smaller latent input. A block for a further token has two layers, attention and experts."""
    pattern, experts = "ME*E", 8
    config, shapes, tokenizer = nemotron_h(pattern)
    names = {"M": "mamba", "E": "moe", "*": "attention"}
    config |= {"n_routed_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": length,
               "moe_shared_expert_intermediate_size": shared, "n_shared_experts": 1, "norm_topk_prob": True,
               "routed_scaling_factor": 2.5, "n_group": 4 if latent else 1, "topk_group": 2 if latent else 1,
               "num_nextn_predict_layers": mtp}
    if latent:
        config["moe_latent_size"] = latent
    if listed:
        config = without(config, "hybrid_override_pattern", "num_hidden_layers")
        config |= {"layers_block_type": [names[letter] for letter in pattern]}
    columns = latent or HIDDEN

    def moe(p):
        p += "mixer."
        layer = {p + "gate.weight": (experts, HIDDEN), p + "gate.e_score_correction.bias": (experts,),
                 p + "shared_experts.up_proj.weight": (shared, HIDDEN), p + "shared_experts.down_proj.weight": (HIDDEN, shared)}
        for e in range(experts):
            x = f"{p}experts.{e}."
            layer |= {x + "up_proj.weight": (length, columns), x + "down_proj.weight": (columns, length)}
        if latent:
            layer |= {p + "fc1_latent_proj.weight": (latent, HIDDEN), p + "fc2_latent_proj.weight": (HIDDEN, latent)}
        return layer

    for i in (i for i, letter in enumerate(pattern) if letter == "E"):
        p = f"backbone.layers.{i}."
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(p + "mixer.")} | moe(p)
    if mtp:
        attention = "backbone.layers.2."
        shapes |= {name.replace(attention, "mtp.layers.0."): shape for name, shape in shapes.items()
                   if name.startswith(attention)}
        shapes |= moe("mtp.layers.1.") | norms("mtp.layers.0.", "enorm", "hnorm")
        shapes |= norms("mtp.layers.1.", "norm", "final_layernorm")
        shapes["mtp.layers.0.eh_proj.weight"] = (HIDDEN, 2 * HIDDEN)
    return config | more, shapes, tokenizer


def puzzle():
    """Different widths and numbers of experts in every layer, names without `backbone.`, an omitted head."""
    config, shapes, tokenizer = nemotron_h_moe(64, 1)
    config = without(config, "hybrid_override_pattern", "num_hidden_layers", "num_experts_per_tok", "moe_intermediate_size")
    widths = {1: (96, 2), 3: (128, 4)}
    kinds = ["mamba", "moe", "attention", "moe"]
    blocks = [{"block_type": kind} for kind in kinds]
    for i, (width, used) in widths.items():
        blocks[i] |= {"moe_intermediate_size": width, "num_experts_per_tok": used}
    for name, shape in shapes.items():
        if "layers.3.mixer.experts" in name:
            shapes[name] = tuple(128 if size == 96 else size for size in shape)
    shapes = {name.replace("backbone.", "model.").replace("correction.bias", "correction_bias"): shape
              for name, shape in shapes.items()}
    return (config | {"architectures": ["NemotronHPuzzleForCausalLM"], "model_type": "nemotron_h_puzzle", "block_configs": blocks,
                      "n_group": 1, "topk_group": 1}, shapes, tokenizer)


def granite_hybrid(experts=0, kinds="MAMM", shared=FFN, **more):
    """Granite 4: state spaces and attention, each with a feed-forward network, or experts and a shared one."""
    config = base("GraniteMoeHybridForCausalLM", "granitemoehybrid", BPE_VOCAB + (5 if "M" in kinds else 0),
                  num_hidden_layers=len(kinds), layer_types=["mamba" if kind == "M" else "attention" for kind in kinds],
                  mamba_n_heads=8, mamba_d_head=SPACE_HEAD, mamba_n_groups=1, mamba_d_state=32, mamba_d_conv=4,
                  mamba_expand=2, mamba_conv_bias=True, shared_intermediate_size=shared, num_local_experts=experts,
                  num_experts_per_tok=2 if experts else 0, attention_multiplier=0.015625, embedding_multiplier=12,
                  residual_multiplier=0.22, logits_scaling=8, position_embedding_type="nope", rope_theta=10000)

    def layer(p):
        kind = kinds[int(p.split(".")[2])]
        shapes = state_space(p + "mamba.", groups=1) if kind == "M" else attention(p)
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= {p + "shared_mlp.input_linear.weight": (2 * shared, HIDDEN),
                   p + "shared_mlp.output_linear.weight": (HIDDEN, shared)}
        if experts:
            p += "block_sparse_moe."
            shapes |= {p + "router.layer.weight": (experts, HIDDEN), p + "input_linear.weight": (experts, 2 * FFN, HIDDEN),
                       p + "output_linear.weight": (experts, HIDDEN, FFN)}
        return shapes

    vocab = BPE_VOCAB + (8 if "M" in kinds else 0)
    return config | more, model(vocab, layer, layers=len(kinds)), "bpe"


def granite_moe(shared=0):
    """Granite's experts without state spaces, with or without a shared expert."""
    cls, model_type = ("GraniteMoeSharedForCausalLM", "granitemoeshared") if shared else ("GraniteMoeForCausalLM", "granitemoe")
    config, shapes, tokenizer = granite_hybrid(4, "AA", shared or FFN, architectures=[cls], model_type=model_type)
    config = {name: value for name, value in config.items() if not name.startswith(("mamba_", "layer_types", "shared"))}
    if shared:
        return config | {"shared_intermediate_size": shared}, shapes, tokenizer
    return config, {name: shape for name, shape in shapes.items() if "shared_mlp" not in name}, tokenizer


def minimax01(layers=9, **more):
    """MiniMax-01: every eighth layer has softmax attention, with half of each head rotated."""
    kinds = "layernorm_full_attention", "layernorm_linear_attention", "layernorm_mlp"
    config = base("MiniMaxText01ForCausalLM", "minimax_text_01", BPE_VOCAB, num_hidden_layers=layers, head_dim=HEAD,
                  rotary_dim=HEAD // 2, rope_theta=10000000, num_local_experts=4, num_experts_per_tok=2, intermediate_size=96)
    config |= {f"{kind}_{which}": 1.0 if which == "beta" else 3.5565588200778455 for kind in kinds for which in ("alpha", "beta")}

    def layer(p):
        shapes = norms(p, "input_layernorm", "post_attention_layernorm")
        x, values = p + "self_attn.", HEADS * HEAD
        if int(p.split(".")[2]) % 8 == 7:
            shapes |= attention(p)
        else:
            shapes |= {x + "qkv_proj.weight": (3 * values, HIDDEN), x + "output_gate.weight": (values, HIDDEN),
                       x + "norm.weight": (values,), x + "out_proj.weight": (HIDDEN, values)}
        shapes[p + "block_sparse_moe.gate.weight"] = (4, HIDDEN)
        for e in range(4):
            x = f"{p}block_sparse_moe.experts.{e}."
            shapes |= {x + "w1.weight": (96, HIDDEN), x + "w2.weight": (HIDDEN, 96), x + "w3.weight": (96, HIDDEN)}
        return shapes

    return config | more, model(BPE_VOCAB, layer, layers=layers), "bpe"


def plamo2(**more):
    """PLaMo 2: attention in every other layer, with norms per head; keys, queries and steps of its state spaces come
    from their values."""
    state, rank, heads, length = 32, 64, 8, SPACE_HEAD
    config = {"architectures": ["Plamo2ForCausalLM"], "model_type": "plamo2", "hidden_size": HIDDEN, "vocab_size": HF_VOCAB,
              "num_hidden_layers": 4, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "mamba_d_state": state,
              "hidden_size_per_head": length, "mamba_num_heads": heads, "mamba_step": 2, "intermediate_size": FFN,
              "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "mamba_enabled": True}

    def layer(i):
        p = f"model.layers.layers.{i}."
        x, inner, rows = p + "mixer.", heads * length, (HEADS + 2 * KV_HEADS) * length
        shapes = norms(p, "pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm")
        shapes |= {p + "mlp.gate_up_proj.weight": (2 * FFN, HIDDEN), p + "mlp.down_proj.weight": (HIDDEN, FFN)}
        if i % 2 == 1:
            return shapes | {x + "qkv_proj.weight": (rows, HIDDEN), x + "o_proj.weight": (HIDDEN, HEADS * length),
                             x + "q_weight": (HEADS, length), x + "k_weight": (KV_HEADS, length)}
        return shapes | {x + "in_proj.weight": (2 * inner, HIDDEN), x + "conv1d.weight": (inner, 1, 4),
                         x + "bcdt_proj.weight": (rank + 2 * state, inner), x + "dt_proj.weight": (heads, rank),
                         x + "dt_bias": (heads,), x + "A_log": (heads,), x + "D": (heads,), x + "dt_norm_weight": (rank,),
                         x + "B_norm_weight": (state,), x + "C_norm_weight": (state,), x + "out_proj.weight": (HIDDEN, inner)}

    shapes = {"model.embed_tokens.weight": (HF_VOCAB, HIDDEN)} | norms("model.", "norm")
    for i in range(4):
        shapes |= layer(i)
    return config | more, shapes, "plamo"


def bamba(**more):
    """Attention layers listed by number, with partial rotation."""
    config = base("BambaForCausalLM", "bamba", BPE_VOCAB, num_hidden_layers=3, attn_layer_indices=[1], attn_rotary_emb=32,
                  mamba_n_heads=8, mamba_d_head="auto", mamba_n_groups=1, mamba_d_state=32, mamba_d_conv=4, mamba_expand=2,
                  rope_theta=10000.0)
    config["mamba_d_head"] = SPACE_HEAD

    def layer(p):
        shapes = attention(p) if p.split(".")[2] == "1" else state_space(p + "mamba.", groups=1)
        return shapes | gated(p + "feed_forward.") | norms(p, "input_layernorm", "pre_ff_layernorm")

    shapes = model(BPE_VOCAB, layer, final_norm=False, layers=3) | norms("model.", "final_layernorm")
    return config | more, shapes, "bpe"


def bamba_period():
    config, shapes, tokenizer = bamba(attn_layer_period=3, attn_layer_offset=1)
    return without(config, "attn_layer_indices", "attn_rotary_emb"), shapes, tokenizer


def falcon_h1(norm=True):
    """Attention parallel to a state space, with multipliers everywhere; with and without a norm of the states."""
    multipliers = {"embedding_multiplier": 5.656854249492381, "lm_head_multiplier": 0.0390625,
                   "attention_in_multiplier": 1.1, "attention_out_multiplier": 0.9375, "key_multiplier": 0.39062,
                   "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.23570226039551587,
                   "mlp_multipliers": [0.8838834764831844, 0.5859375],
                   "ssm_multipliers": [0.3535533905932738, 0.25, 0.1767766952966369, 0.5, 0.3535533905932738]}
    config = base("FalconH1ForCausalLM", "falcon_h1", BPE_VOCAB, head_dim=HEAD, mamba_d_ssm=8 * SPACE_HEAD,
                  mamba_d_head=SPACE_HEAD, mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=32, mamba_d_conv=4,
                  mamba_expand=2, mamba_rms_norm=norm, rope_theta=100000000000.0, **multipliers)

    def layer(p):
        return (attention(p) | gated(p + "feed_forward.") | state_space(p + "mamba.", norm=norm)
                | norms(p, "input_layernorm", "pre_ff_layernorm"))

    shapes = model(BPE_VOCAB, layer, final_norm=False) | norms("model.", "final_layernorm")
    return config, shapes, "bpe"


def lfm2_layer(p, attends, ffn):
    """A short convolution, or attention if there are heads."""
    both = norms(p, "operator_norm", "ffn_norm") | ffn(p + "feed_forward.")
    if not attends:
        c = p + "conv."
        return both | {c + "conv.weight": (HIDDEN, 1, 3), c + "in_proj.weight": (3 * HIDDEN, HIDDEN),
                       c + "out_proj.weight": (HIDDEN, HIDDEN)}
    own = attention(p)
    own[p + "self_attn.out_proj.weight"] = own.pop(p + "self_attn.o_proj.weight")
    return both | own | norms(p + "self_attn.", "q_layernorm", "k_layernorm", size=HEAD)


def lfm2_ffn(p, length):
    return {p + "w1.weight": (length, HIDDEN), p + "w2.weight": (HIDDEN, length), p + "w3.weight": (length, HIDDEN)}


def lfm2(length=384, kinds=("conv", "conv", "full_attention", "conv"), **more):
    """LFM2, with tied embeddings and the last norm named after the embeddings."""
    config = base("Lfm2ForCausalLM", "lfm2", BPE_VOCAB, num_hidden_layers=len(kinds), norm_eps=1e-5, rope_theta=1000000.0,
                  conv_L_cache=3, conv_bias=False, layer_types=list(kinds), block_ff_dim=FFN, block_multiple_of=64,
                  block_ffn_dim_multiplier=1.1, block_auto_adjust_ff_dim=True, tie_embedding=True)
    config = without(config, "rms_norm_eps", "intermediate_size") | more

    def layer(p):
        return lfm2_layer(p, kinds[int(p.split(".")[2])] != "conv", lambda p: lfm2_ffn(p, length))

    shapes = model(BPE_VOCAB, layer, tied=True, final_norm=False, layers=len(kinds))
    return config, shapes | norms("model.", "embedding_norm"), "bpe"


def lfm2_plain():
    """An unadjusted width, attention layers by number, and missing optional fields."""
    config, shapes, tokenizer = lfm2(FFN, intermediate_size=FFN, block_auto_adjust_ff_dim=False, full_attn_idxs=[2],
                                     architectures=["LFM2ForCausalLM"])
    absent = ("layer_types", "block_ff_dim", "block_multiple_of", "block_ffn_dim_multiplier", "conv_L_cache", "norm_eps",
              "rope_theta", "max_position_embeddings")
    return without(config, *absent), shapes, tokenizer


def lfm2_projected(architecture):
    """A text embedding model with a projection after the pooling."""
    config, shapes, tokenizer = bare(lfm2(), architecture)
    return config, shapes | {PROJECTION + "linear.weight": (128, HIDDEN)}, tokenizer


def lfm2_vl():
    config, shapes, tokenizer = wrapped(lfm2(), "Lfm2VlForConditionalGeneration", "lfm2_vl", inside)
    config["text_config"]["architectures"] = ["Lfm2ForCausalLM"]
    return config, shapes, tokenizer


def lfm2_audio():
    config, shapes, tokenizer = lfm2()
    shapes = {"lfm." + name.removeprefix("model."): shape for name, shape in shapes.items()}
    shapes |= {"depthformer.layers.0.w.weight": (HIDDEN, HIDDEN), "codebook_offsets": (8,),
               "conformer.layers.0.norm_out.weight": (HIDDEN,)}
    config |= {"intermediate_size": FFN, "rope_theta": 1000000.0}
    outer = {"architectures": ["Lfm2AudioForConditionalGeneration"], "model_type": "lfm2_audio", "lfm": config}
    return outer, shapes, tokenizer


def lfm2moe():
    """A dense layer first, then experts routed by sigmoids with a bias."""
    kinds, experts, length = ("conv", "full_attention", "conv", "conv"), 8, 96

    def moe(p):
        shapes = {p + "gate.weight": (experts, HIDDEN), p + "expert_bias": (experts,)}
        for e in range(experts):
            shapes |= lfm2_ffn(f"{p}experts.{e}.", length)
        return shapes

    def layer(p):
        number = int(p.split(".")[2])
        return lfm2_layer(p, kinds[number] != "conv", moe if number else lambda p: lfm2_ffn(p, FFN))

    config = base("Lfm2MoeForCausalLM", "lfm2_moe", BPE_VOCAB, num_hidden_layers=len(kinds), norm_eps=1e-5,
                  rope_theta=1000000.0, conv_L_cache=3, conv_bias=False, layer_types=list(kinds), num_dense_layers=1,
                  num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=length, norm_topk_prob=True,
                  use_expert_bias=True, routed_scaling_factor=1.0, tie_word_embeddings=True)
    shapes = model(BPE_VOCAB, layer, tied=True, final_norm=False, layers=len(kinds))
    return without(config, "rms_norm_eps"), shapes | norms("model.", "embedding_norm"), "bpe"


def mamba_mixer(p, state=16, rank=8, kernel=4):
    """A selective state space."""
    inner = 2 * HIDDEN
    return {p + "in_proj.weight": (2 * inner, HIDDEN), p + "conv1d.weight": (inner, 1, kernel), p + "conv1d.bias": (inner,),
            p + "x_proj.weight": (rank + 2 * state, inner), p + "dt_proj.weight": (inner, rank), p + "dt_proj.bias": (inner,),
            p + "A_log": (inner, state), p + "D": (inner,), p + "out_proj.weight": (HIDDEN, inner)}


def mamba(falcon=False, embeddings="embeddings", repeated=False, rank=8, **more):
    """Mamba. The output matrix is separate or tied to the embeddings, which can be stored twice."""
    config = {"architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
              "model_type": "falcon_mamba" if falcon else "mamba", "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
              "num_hidden_layers": LAYERS, "state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": rank,
              "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True, "vocab_size": BPE_VOCAB - 3,
              "bos_token_id": 1, "eos_token_id": 2}
    shapes = {f"backbone.{embeddings}.weight": (BPE_VOCAB, HIDDEN)} | norms("backbone.", "norm_f")
    for i in range(LAYERS):
        p = f"backbone.layers.{i}."
        shapes |= mamba_mixer(p + "mixer.", rank=rank) | norms(p, "norm")
    if falcon or repeated:
        shapes["lm_head.weight"] = (BPE_VOCAB, HIDDEN)
    return config | more, shapes, "bpe"


def mamba_old():
    """The files of Mamba's authors: no class, other names. The output matrix is tied, but stored a second time."""
    config, shapes, tokenizer = mamba(embeddings="embedding", repeated=True, rank=16)
    config = {"d_model": HIDDEN, "n_layer": LAYERS, "vocab_size": config["vocab_size"], "ssm_cfg": {},
              "rms_norm": True, "residual_in_fp32": True, "pad_vocab_size_multiple": 16}
    return config, shapes, tokenizer


def jamba(experts=4, rank=8, **more):
    """Jamba: attention in the third of four layers, experts in every other one."""
    layers = 5
    config = base("JambaForCausalLM", "jamba", SPM_VOCAB, num_hidden_layers=layers, rms_norm_eps=1e-6, attn_layer_offset=2,
                  attn_layer_period=3, expert_layer_offset=1, expert_layer_period=2, num_experts=experts,
                  num_experts_per_tok=2, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=rank,
                  mamba_conv_bias=True, mamba_proj_bias=False, tie_word_embeddings=False)

    def layer(p):
        number = int(p.split(".")[2])
        shapes = norms(p, "input_layernorm", "pre_ff_layernorm")
        if number % 3 == 2:
            shapes |= attention(p)
        else:
            m = p + "mamba."
            shapes |= mamba_mixer(m, rank=rank) | norms(m, "dt_layernorm", size=rank)
            shapes |= norms(m, "b_layernorm", "c_layernorm", size=16)
        f = p + "feed_forward."
        if number % 2 == 0:
            return shapes | gated(f)
        shapes[f + "router.weight"] = (experts, HIDDEN)
        for e in range(experts):
            shapes |= gated(f"{f}experts.{e}.")
        return shapes

    shapes = model(SPM_VOCAB, layer, final_norm=False, layers=layers)
    return config | more, shapes | norms("model.", "final_layernorm"), "spm"


def jamba_sparse():
    """Without optional fields; a single expert in layers without experts; a tokenizer.json."""
    config, shapes, _ = jamba(rank=16, mamba_dt_rank="auto")
    config = without(config, "mamba_d_state", "mamba_d_conv", "mamba_expand", "num_experts_per_tok", "rms_norm_eps")
    alone = {name.replace("feed_forward.", "feed_forward.experts.0."): shape for name, shape in shapes.items()
             if "feed_forward." in name and "experts" not in name and "router" not in name}
    shapes = {name: shape for name, shape in shapes.items()
              if "feed_forward." not in name or "experts" in name or "router" in name}
    shapes = {name: (HF_VOCAB, HIDDEN) if shape[0] == SPM_VOCAB else shape for name, shape in shapes.items()}
    return config | {"vocab_size": HF_VOCAB}, shapes | alone, "hf-bare"


def mixes_of_rwkv6(prefix, names="wkvrg"):
    shapes = {f"{prefix}time_maa_{n}": (1, 1, HIDDEN) for n in "x" + names}
    return shapes | {f"{prefix}time_maa_w1": (HIDDEN, 5 * 32), f"{prefix}time_maa_w2": (5, 32, HIDDEN),
                     f"{prefix}time_decay": (1, 1, HIDDEN), f"{prefix}time_decay_w1": (HIDDEN, 64),
                     f"{prefix}time_decay_w2": (64, HIDDEN)}


def rwkv6(rescale=2, ffn=FFN):
    """RWKV 6. What is added to the stream is halved in later layers; the length of the network may be absent."""
    layers = 3
    config = {"architectures": ["Rwkv6ForCausalLM"], "model_type": "rwkv6", "hidden_size": HIDDEN, "head_size": HEAD,
              "attention_hidden_size": HIDDEN, "intermediate_size": ffn, "num_hidden_layers": layers,
              "layer_norm_epsilon": 1e-5, "rescale_every": rescale, "vocab_size": BPE_VOCAB, "bos_token_id": 0,
              "eos_token_id": 0, "tie_word_embeddings": False}
    ffn = ffn or int(HIDDEN * 3.5) // 32 * 32
    shapes = {"rwkv.embeddings.weight": (BPE_VOCAB, HIDDEN)} | norms("rwkv.blocks.0.", "pre_ln", bias=True)
    for i in range(layers):
        p = f"rwkv.blocks.{i}."
        shapes |= norms(p, "ln1", "ln2", "attention.ln_x", bias=True) | mixes_of_rwkv6(p + "attention.")
        shapes[p + "attention.time_faaaa"] = (HEADS, HEAD)
        shapes |= {f"{p}attention.{n}.weight": (HIDDEN, HIDDEN) for n in ("receptance", "key", "value", "gate", "output")}
        f = p + "feed_forward."
        shapes |= {f"{f}time_maa_{n}": (1, 1, HIDDEN) for n in "kr"}
        shapes |= {f + "key.weight": (ffn, HIDDEN), f + "receptance.weight": (HIDDEN, HIDDEN), f + "value.weight": (HIDDEN, ffn)}
    return config, shapes | norms("rwkv.", "ln_out", bias=True) | {"head.weight": (BPE_VOCAB, HIDDEN)}, "world"


def rwkv6qwen2(kv_heads=KV_HEADS, biases=True, **more):
    """Qwen 2 with states of RWKV 6 in place of attention; heads of keys are shared or not."""
    config = base("RWKV6Qwen2ForCausalLM", "rwkv6qwen2", BPE_VOCAB, num_key_value_heads=kv_heads, tie_word_embeddings=False)

    def layer(p):
        a, k = p + "self_attn.", kv_heads * HEAD
        shapes = norms(p, "input_layernorm", "post_attention_layernorm") | mixes_of_rwkv6(a, "rkvwg")
        shapes |= linears(a, {"q_proj": (HIDDEN, HIDDEN), "k_proj": (k, HIDDEN), "v_proj": (k, HIDDEN)}, bias=biases)
        shapes |= {a + "gate.weight": (HIDDEN, HIDDEN), a + "o_proj.weight": (HIDDEN, HIDDEN)}
        return shapes | gated(p + "mlp.")

    return config | more, model(BPE_VOCAB, layer), "bpe"


def time_mix_of_rwkv7(p, layer, ranks, mixes="rwkvag"):
    """In the names of RWKV itself: factors are transposed. The first layer may have factors of values that nobody reads."""
    shapes = {f"{p}x_{n}": (1, 1, HIDDEN) for n in mixes}
    for n, rank in zip("wavg", ranks):
        if n in mixes + "v" and (n != "v" or layer > 0 or len(mixes) > 5):
            shapes |= {f"{p}{n}1": (HIDDEN, rank), f"{p}{n}2": (rank, HIDDEN)}
            shapes |= {f"{p}{n}0": (1, 1, HIDDEN)} if n != "g" else {}
    shapes |= {f"{p}k_k": (1, 1, HIDDEN), f"{p}k_a": (1, 1, HIDDEN), f"{p}r_k": (HEADS, HEAD)}
    return shapes | {f"{p}{n}.weight": (HIDDEN, HIDDEN) for n in ("receptance", "key", "value", "output")}


def rwkv7(blocks=False):
    """RWKV 7 in the names of RWKV itself, in blocks, or as transformers has them."""
    layers = 3
    config = {"architectures": ["RWKV7ForCausalLM" if blocks else "Rwkv7ForCausalLM"], "model_type": "rwkv7",
              "hidden_size": HIDDEN, "head_size": HEAD, "intermediate_size": FFN, "num_hidden_layers": layers,
              "layer_norm_epsilon": 1e-5, "lora_rank_decay": 64, "lora_rank_iclr": 64, "lora_rank_value_residual_mix": 32,
              "lora_rank_gate": 96, "vocab_size": BPE_VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    attention, feed_forward = ("attn.", "ffn.") if blocks else ("attention.", "feed_forward.")
    shapes = {"model.embeddings.weight": (BPE_VOCAB, HIDDEN)} | norms("model.", "pre_ln", bias=True)
    for i in range(layers):
        p = f"model.{'blocks' if blocks else 'layers'}.{i}."
        shapes |= norms(p, "ln1", "ln2", attention + "ln_x", bias=True)
        shapes |= time_mix_of_rwkv7(p + attention, i, (64, 64, 32, 96))
        f = p + feed_forward
        shapes |= {f + "x_k": (1, 1, HIDDEN), f + "key.weight": (FFN, HIDDEN), f + "value.weight": (HIDDEN, FFN)}
    return config, shapes | norms("model.", "ln_out", bias=True) | {"head.weight": (BPE_VOCAB, HIDDEN)}, "world"


def rwkv7_fla(together=False):
    """RWKV 7 in the names of flash-linear-attention; ranks and lengths that follow from the size; mixes in one tensor."""
    ranks = dict(zip("wavg", (32, 32, 32, 64)))
    config = {"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "hidden_size": HIDDEN, "head_dim": HEAD,
              "intermediate_size": None, "hidden_ratio": 4.0, "num_hidden_layers": LAYERS, "norm_eps": 1e-5,
              "decay_low_rank_dim": 32, "a_low_rank_dim": None, "v_low_rank_dim": 32, "gate_low_rank_dim": None,
              "vocab_size": BPE_VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    shapes = {"model.embeddings.weight": (BPE_VOCAB, HIDDEN)} | norms("model.layers.0.", "pre_norm", bias=True)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= norms(p, "attn_norm", "ffn_norm", "attn.g_norm", bias=True)
        a = p + "attn."
        mixes = {a + "x_x": (6, HIDDEN)} if together else {f"{a}x_{n}": (1, 1, HIDDEN) for n in "rwkvag"}
        shapes |= mixes | {a + "k_k": (HIDDEN,), a + "k_a": (HIDDEN,), a + "r_k": (HEADS, HEAD)}
        for n, rank in ranks.items():
            if n != "v" or i > 0:
                shapes |= {f"{a}{n}_lora.lora.0.weight": (rank, HIDDEN), f"{a}{n}_lora.lora.2.weight": (HIDDEN, rank)}
                shapes |= {f"{a}{n}_lora.lora.2.bias": (HIDDEN,)} if n != "g" else {}
        shapes |= {f"{a}{n}_proj.weight": (HIDDEN, HIDDEN) for n in "rkvo"}
        f = p + "ffn."
        shapes |= {f + "x_k": (HIDDEN,), f + "key.weight": (4 * HIDDEN, HIDDEN), f + "value.weight": (HIDDEN, 4 * HIDDEN)}
    return config, shapes | norms("model.", "norm", bias=True) | {"lm_head.weight": (BPE_VOCAB, HIDDEN)}, "world"


def arwkv7(gate=True, normed=False):
    """Qwen 2 with states of RWKV 7 in place of attention, with or without a gate and a norm of heads."""
    config = base("RwkvHybridForCausalLM", "rwkv_hybrid", BPE_VOCAB, head_size=HEAD, wkv_has_gate=gate, wkv_version=7,
                  tie_word_embeddings=False)

    def layer(p):
        t = p + "self_attn.time_mixer."
        shapes = norms(p, "input_layernorm", "post_attention_layernorm") | gated(p + "mlp.")
        shapes |= time_mix_of_rwkv7(t, int(p.split(".")[2]), (64, 64, 32, 128), "rwkvag" if gate else "rwkva")
        return shapes | (norms(t, "ln_x", bias=True) if normed else {})

    return config, model(BPE_VOCAB, layer), "bpe"


def bare(text, cls):
    """A model without its head: names without `model.`."""
    config, shapes, tokenizer = text
    shapes = {name.removeprefix("model."): shape for name, shape in shapes.items() if name != "lm_head.weight"}
    return config | {"architectures": [cls]}, shapes, tokenizer


def without(config, *names):
    return {k: v for k, v in config.items() if k not in names}


def gptneox(parallel=True):
    config = base("GPTNeoXForCausalLM", "gpt_neox", BPE_VOCAB, rotary_pct=0.25, layer_norm_eps=1e-5, hidden_act="gelu",
                  use_parallel_residual=parallel)
    shapes = {"gpt_neox.embed_in.weight": (BPE_VOCAB, HIDDEN), "embed_out.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("gpt_neox.", "final_layer_norm", bias=True)
    for i in range(LAYERS):
        p = f"gpt_neox.layers.{i}."
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm", bias=True)
        shapes |= linears(p, {"attention.query_key_value": (3 * HIDDEN, HIDDEN), "attention.dense": (HIDDEN, HIDDEN),
                              "mlp.dense_h_to_4h": (FFN, HIDDEN), "mlp.dense_4h_to_h": (HIDDEN, FFN)})
    return without(config, "rms_norm_eps", "num_key_value_heads"), shapes, "bpe"


def linears(prefix, shapes, bias=True):
    both = {f"{prefix}{n}.weight": s for n, s in shapes.items()}
    return both | ({f"{prefix}{n}.bias": s[:1] for n, s in shapes.items()} if bias else {})


def bloom(prefix="transformer.", heads=HEADS):
    config = {"architectures": ["BloomForCausalLM" if prefix else "BloomModel"], "model_type": "bloom",
              "hidden_size": HIDDEN, "n_layer": LAYERS, "num_attention_heads": heads, "vocab_size": BPE_VOCAB,
              "seq_length": 2048, "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    shapes = {f"{prefix}word_embeddings.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms(prefix, "word_embeddings_layernorm", "ln_f", bias=True)
    for i in range(LAYERS):
        p = f"{prefix}h.{i}."
        shapes |= norms(p, "input_layernorm", "post_attention_layernorm", bias=True)
        shapes |= linears(p, {"self_attention.query_key_value": (3 * HIDDEN, HIDDEN),
                              "self_attention.dense": (HIDDEN, HIDDEN), "mlp.dense_h_to_4h": (4 * HIDDEN, HIDDEN),
                              "mlp.dense_4h_to_h": (HIDDEN, 4 * HIDDEN)})
    return config, shapes, "bpe"


def falcon(groups=None):
    config = {"architectures": ["FalconForCausalLM" if groups else "RWForCausalLM"],
              "model_type": "falcon" if groups else "RefinedWebModel", "hidden_size": HIDDEN, "vocab_size": BPE_VOCAB,
              "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "bias": False, "parallel_attn": True}
    if groups:
        config |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_kv_heads": groups,
                   "new_decoder_architecture": True}
    else:
        config |= {"n_layer": LAYERS, "n_head": HEADS, "multi_query": True}
    names = ["ln_attn", "ln_mlp"] if groups else ["input_layernorm"]
    shapes = {"transformer.word_embeddings.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("transformer.", "ln_f", bias=True)
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        rows = HIDDEN + 2 * (groups or 1) * HEAD
        shapes |= norms(p, *names, bias=True)
        shapes |= linears(p, {"self_attention.query_key_value": (rows, HIDDEN),
                              "self_attention.dense": (HIDDEN, HIDDEN), "mlp.dense_h_to_4h": (4 * HIDDEN, HIDDEN),
                              "mlp.dense_4h_to_h": (HIDDEN, 4 * HIDDEN)}, bias=False)
    return config, shapes, "bpe"


def mpt(alibi=True, scaled=False):
    # Without norms of queries and keys: llama.cpp aborts on them ("ggml_is_contiguous").
    attention_config = {"alibi": alibi, "alibi_bias_max": 8, "clip_qkv": None if alibi else 6.0, "qk_ln": False}
    config = {"architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": HIDDEN, "n_layers": LAYERS,
              "n_heads": HEADS, "vocab_size": BPE_VOCAB, "max_seq_len": 2048, "attn_config": attention_config,
              "no_bias": True, "expansion_ratio": 4}
    shapes = {"transformer.wte.weight": (BPE_VOCAB, HIDDEN)} | norms("transformer.", "norm_f", bias=not alibi)
    if not alibi:
        shapes["transformer.wpe.weight"] = (2048, HIDDEN)
    for i in range(LAYERS):
        p = f"transformer.blocks.{i}."
        shapes |= norms(p, "norm_1", "norm_2", bias=not alibi)
        shapes |= linears(p, {"attn.Wqkv": (3 * HIDDEN, HIDDEN), "attn.out_proj": (HIDDEN, HIDDEN),
                              "ffn.up_proj": (4 * HIDDEN, HIDDEN), "ffn.down_proj": (HIDDEN, 4 * HIDDEN)},
                          bias=not alibi)
        if scaled:
            # Of AWQ.
            shapes[p + "ffn.act.scales"] = (4 * HIDDEN,)
    return config, shapes, "bpe"


def refact():
    config = {"architectures": ["GPTRefactForCausalLM"], "model_type": "gpt_refact", "n_embd": HIDDEN,
              "n_layer": LAYERS, "n_head": HEADS, "n_positions": 2048, "vocab_size": BPE_VOCAB, "multi_query": True,
              "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    ffn = -(-(2 * 4 * HIDDEN // 3) // 256) * 256
    shapes = {"transformer.wte.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("transformer.", "ln_f")
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        shapes |= norms(p, "ln_1", "ln_2")
        shapes |= linears(p, {"attn.q": (HIDDEN, HIDDEN), "attn.kv": (2 * HEAD, HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN),
                              "mlp.gate_up_proj": (2 * ffn, HIDDEN), "mlp.c_proj": (HIDDEN, ffn)}, bias=False)
    return config, shapes, "bpe"


def jais(mup=True):
    config = {"architectures": ["JAISLMHeadModel"], "model_type": "jais", "n_embd": HIDDEN, "n_layer": LAYERS,
              "n_head": HEADS, "n_inner": FFN, "n_positions": 2048, "vocab_size": BPE_VOCAB,
              "layer_norm_epsilon": 1e-5, "activation_function": "swiglu", "position_embedding_type": "alibi",
              "bos_token_id": 1, "eos_token_id": 2}
    config |= ({"mup_embeddings_scale": 9.1705, "mup_output_alpha": 1.09, "mup_width_scale": 0.2857} if mup
               else {"embeddings_scale": 14.6, "width_scale": 0.1111})
    shapes = {"transformer.wte.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("transformer.", "ln_f", bias=True)
    if mup:
        shapes["transformer.relative_pe.slopes"] = (HEADS, 1)
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        shapes |= norms(p, "ln_1", "ln_2", bias=True)
        for name, (rows, columns) in {"attn.c_attn": (3 * HIDDEN, HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN),
                                      "mlp.c_fc": (FFN, HIDDEN), "mlp.c_fc2": (FFN, HIDDEN),
                                      "mlp.c_proj": (HIDDEN, FFN)}.items():
            shapes |= {f"{p}{name}.weight": (columns, rows), f"{p}{name}.bias": (rows,)}
    return config, shapes, "bpe"


def jais2():
    config = base("Jais2ForCausalLM", "jais2", BPE_VOCAB, layer_norm_eps=1e-5, hidden_act="relu2", rope_theta=5e5)

    def layer(p):
        biased = linears(p + "mlp.", {"up_proj": (FFN, HIDDEN), "down_proj": (HIDDEN, FFN)})
        return (attention(p, biases=True, out_bias=True) | biased
                | norms(p, "input_layernorm", "post_attention_layernorm", bias=True))

    return without(config, "rms_norm_eps"), model(BPE_VOCAB, layer, bias=True), "bpe"


def apertus():
    config = base("ApertusForCausalLM", "apertus", BPE_VOCAB, hidden_act="xielu", rope_theta=12e6,
                  rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 8192})

    def layer(p):
        shapes = attention(p) | plain(p + "mlp.") | norms(p, "attention_layernorm", "feedforward_layernorm")
        shapes |= norms(p + "self_attn.", "q_norm", "k_norm", size=HEAD)
        return shapes | {f"{p}mlp.act_fn.{n}": (1,) for n in ("alpha_n", "alpha_p", "beta", "eps")}

    return config, model(BPE_VOCAB, layer), "bpe"


def exaone():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
    config = base("ExaoneForCausalLM", "exaone", BPE_VOCAB, num_layers=LAYERS, activation_function="silu",
                  layer_norm_epsilon=1e-5, head_dim=HEAD, rope_theta=1e6, rope_scaling=scaling)
    shapes = {"transformer.wte.weight": (BPE_VOCAB, HIDDEN), "lm_head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms("transformer.", "ln_f")
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        shapes |= norms(p, "ln_1", "ln_2") | linears(p, {
            "attn.attention.q_proj": (HEADS * HEAD, HIDDEN), "attn.attention.k_proj": (KV_HEADS * HEAD, HIDDEN),
            "attn.attention.v_proj": (KV_HEADS * HEAD, HIDDEN), "attn.attention.out_proj": (HIDDEN, HEADS * HEAD),
            "mlp.c_fc_0": (FFN, HIDDEN), "mlp.c_fc_1": (FFN, HIDDEN), "mlp.c_proj": (HIDDEN, FFN)}, bias=False)
    return without(config, "rms_norm_eps", "num_hidden_layers"), shapes, "bpe"


def exaone4(layers=LAYERS):
    config = base("Exaone4ForCausalLM", "exaone4", BPE_VOCAB, num_hidden_layers=layers, rope_theta=1e6,
                  sliding_window=64 if layers > LAYERS else None, sliding_window_pattern="LLLG")
    config |= {"rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 8192}}

    def layer(p):
        return (attention(p) | gated(p + "mlp.") | norms(p, "post_attention_layernorm", "post_feedforward_layernorm")
                | norms(p + "self_attn.", "q_norm", "k_norm", size=HEAD))

    return config, model(BPE_VOCAB, layer, layers=layers), "bpe"


def with_nextn(config, **more):
    """Blocks for further tokens: their number in the config, and their tensors beside those of a layer."""
    config = config | {"num_nextn_predict_layers": 1} | more
    shapes = {"mtp.fc.weight": (HIDDEN, 2 * HIDDEN)}
    return config, shapes | norms("mtp.", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")


def exaone45(shared=False):
    """EXAONE 4.5 with blocks that have their own layers, or share one."""
    config, shapes, tokenizer = exaone4()
    config, more = with_nextn(config, num_nextn_predict_layers=2, mtp_share_layers=shared)
    behind = f"model.layers.{LAYERS - 1}."
    for i in range(1 if shared else 2):
        more |= {n.replace(behind, f"mtp.layers.{i}."): s for n, s in shapes.items() if n.startswith(behind)}
    config, shapes, tokenizer = wrapped((config | {"model_type": "exaone4_5_text"}, shapes, tokenizer),
                                        "Exaone4_5_ForConditionalGeneration", "exaone4_5", inside)
    return config, shapes | more, tokenizer


def spark(layers=4):
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
    kinds = ["sliding_attention", "full_attention"] * (layers // 2)
    config = base("Spark2_5ForCausalLM", "spark2_5", BPE_VOCAB, num_hidden_layers=layers, head_dim=HEAD,
                  sliding_window=64, layer_types=kinds, rope_parameters=rope, gate_attn_act_mode="sigmoid",
                  headwise_attn_output_gate=True, hidden_act="gelu")

    def layer(p):
        rows = (HEADS + 2 * KV_HEADS) * HEAD
        return (linears(p + "self_attn.", {"q_k_v_proj": (rows, HIDDEN), "g_proj": (HEADS, HIDDEN),
                                           "o_proj": (HIDDEN, HEADS * HEAD)}, bias=False)
                | gated(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm"))

    return config, model(BPE_VOCAB, layer, layers=layers), "bpe"


def muse(layers=4):
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    text = base("MuseGlimmerForCausalLM", "muse_glimmer_text", BPE_VOCAB, num_hidden_layers=layers, head_dim=HEAD,
                sliding_window=64, layer_types=kinds, rope_theta=5e5, qk_scale_factor=3.5, output_multiplier=0.25,
                final_logit_softcapping=20.0)

    def layer(p):
        shapes = attention(p) | gated(p + "mlp.") | {p + "self_attn.gate_proj.weight": (HEADS * HEAD, HIDDEN)}
        return shapes | norms(p, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                              "post_feedforward_layernorm")

    shapes = {n.replace("model.", "model.language_model.", 1): s for n, s in model(BPE_VOCAB, layer, layers=layers).items()}
    shapes["model.vision_tower.ln_pre.weight"] = (32,)
    config = {"architectures": ["MuseGlimmerForConditionalGeneration"], "model_type": "muse_glimmer",
              "text_config": without(text, "architectures"), "vision_config": {"hidden_size": 32}}
    return config, shapes, "muse"


def glm4(vision=False):
    text = base("Glm4ForCausalLM", "glm4", BPE_VOCAB, head_dim=HEAD, partial_rotary_factor=0.5, attention_bias=True)

    def layer(p):
        ffn = linears(p + "mlp.", {"gate_up_proj": (2 * FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}, bias=False)
        return attention(p, biases=True) | ffn | norms(
            p, "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")

    shapes = model(BPE_VOCAB, layer)
    if not vision:
        return text, shapes, "glm"
    text |= {"model_type": "glm4v_text", "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}}
    shapes = {n.replace("model.", "model.language_model.", 1): s for n, s in shapes.items()}
    shapes["model.visual.patch_embed.proj.weight"] = (32, 3)
    config = {"architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v",
              "text_config": without(text, "architectures"), "vision_config": {"hidden_size": 32}}
    return config, shapes, "glm"


def glm_ocr():
    """GLM-OCR: a block for a further token, numbered like a layer."""
    config, shapes, tokenizer = glm4(True)
    last, block = (f"model.language_model.layers.{i}." for i in (LAYERS - 1, LAYERS))
    shapes |= {n.replace(last, block): s for n, s in shapes.items() if n.startswith(last)}
    shapes |= {block + "eh_proj.weight": (HIDDEN, 2 * HIDDEN), block + "embed_tokens.weight": (BPE_VOCAB, HIDDEN),
               block + "shared_head.head.weight": (BPE_VOCAB, HIDDEN)}
    shapes |= norms(block, "enorm", "hnorm", "shared_head.norm")
    text = config["text_config"] | {"model_type": "glm_ocr_text", "num_nextn_predict_layers": 1}
    return config | {"architectures": ["GlmOcrForConditionalGeneration"], "model_type": "glm_ocr",
                     "text_config": text}, shapes, tokenizer


def glm():
    config, shapes, tokenizer = glm4()
    config |= {"architectures": ["GlmForCausalLM"], "model_type": "glm"}
    names = ("post_self_attn_layernorm", "post_mlp_layernorm")
    return config, {n: s for n, s in shapes.items() if not any(name in n for name in names)}, tokenizer


def chatglm():
    config = {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": HIDDEN, "num_layers": LAYERS,
              "num_attention_heads": HEADS, "multi_query_attention": True, "multi_query_group_num": KV_HEADS,
              "ffn_hidden_size": FFN, "kv_channels": HEAD, "seq_length": 2048, "layernorm_epsilon": 1.5e-7,
              "padded_vocab_size": BPE_VOCAB, "vocab_size": BPE_VOCAB, "rope_ratio": 500, "eos_token_id": 2}
    rows = (HEADS + 2 * KV_HEADS) * HEAD
    p = "transformer."
    shapes = {p + "embedding.word_embeddings.weight": (BPE_VOCAB, HIDDEN),
              p + "output_layer.weight": (BPE_VOCAB, HIDDEN), p + "rotary_pos_emb.inv_freq": (HEAD // 4,)}
    shapes |= norms(p + "encoder.", "final_layernorm")
    for i in range(LAYERS):
        q = f"{p}encoder.layers.{i}."
        shapes |= norms(q, "input_layernorm", "post_attention_layernorm")
        shapes |= linears(q, {"self_attention.query_key_value": (rows, HIDDEN)})
        shapes |= linears(q, {"self_attention.dense": (HIDDEN, HIDDEN), "mlp.dense_h_to_4h": (2 * FFN, HIDDEN),
                              "mlp.dense_4h_to_h": (HIDDEN, FFN)}, bias=False)
    return config, shapes, "glm"


def hunyuan(vision=False):
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    config = base("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", BPE_VOCAB, head_dim=HEAD, rope_theta=10000.0,
                  max_position_embeddings=32768, rope_scaling=scaling, tie_word_embeddings=True)

    def layer(p):
        return llama_layer(p) | norms(p + "self_attn.", "query_layernorm", "key_layernorm", size=HEAD)

    shapes = model(BPE_VOCAB, layer, tied=True)
    if vision:
        config |= {"architectures": ["HunYuanVLForConditionalGeneration"], "model_type": "hunyuan_vl",
                   "pad_token_id": -1, "num_experts": 1, "vision_config": {"hidden_size": 32},
                   "rope_scaling": {"type": "xdrope", "alpha": 1000.0, "factor": 1.0,
                                    "xdrope_section": [8, 8, 8, 8]}}
        shapes["vit.layers.0.mlp.dense_h_to_4h.weight"] = (64, 32)
    return config, shapes, "bpe"


def openelm():
    heads, kv_heads, multipliers = [4, 8], [2, 2], [0.5, 1.3]
    config = {"architectures": ["OpenELMForCausalLM"], "model_type": "openelm", "model_dim": HIDDEN, "head_dim": HEAD,
              "num_transformer_layers": LAYERS, "num_query_heads": heads, "num_kv_heads": kv_heads,
              "ffn_multipliers": multipliers, "ffn_dim_divisor": 256, "max_context_length": 2048,
              "rope_freq_constant": 10000, "vocab_size": SPM_VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    p = "transformer."
    shapes = {p + "token_embeddings.weight": (SPM_VOCAB, HIDDEN)} | norms(p, "norm")
    for i in range(LAYERS):
        q = f"{p}layers.{i}."
        ffn = max(256, int(multipliers[i] * HIDDEN + 128) // 256 * 256)
        ffn += 256 if ffn < 0.9 * multipliers[i] * HIDDEN else 0
        rows = (heads[i] + 2 * kv_heads[i]) * HEAD
        shapes |= norms(q, "attn_norm", "ffn_norm") | norms(q + "attn.", "q_norm", "k_norm", size=HEAD)
        shapes |= linears(q, {"attn.qkv_proj": (rows, HIDDEN), "attn.out_proj": (HIDDEN, heads[i] * HEAD),
                              "ffn.proj_1": (2 * ffn, HIDDEN), "ffn.proj_2": (HIDDEN, ffn)}, bias=False)
    return config, shapes, "spm"


def minicpm(long=False):
    config = base("MiniCPMForCausalLM", "minicpm", SPM_VOCAB, scale_emb=12, scale_depth=1.4, dim_model_base=64,
                  tie_word_embeddings=True)
    if long:
        config["rope_scaling"] = {"rope_type": "longrope", "original_max_position_embeddings": 1024,
                                  "long_factor": [1.0 + i / 7 for i in range(HEAD // 2)],
                                  "short_factor": [1.0 + i / 70 for i in range(HEAD // 2)]}
    return config, model(SPM_VOCAB, llama_layer, tied=True), "spm"


def baichuan(layers=LAYERS):
    config = base("BaichuanForCausalLM", "baichuan", SPM_VOCAB, num_hidden_layers=layers)

    def layer(p):
        shapes = {p + "self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN), p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN)}
        return shapes | gated(p + "mlp.") | norms(p, "input_layernorm", "post_attention_layernorm")

    return without(config, "num_key_value_heads"), model(SPM_VOCAB, layer, layers=layers), "spm"


def xverse():
    config = base("XverseForCausalLM", "xverse", HF_VOCAB)
    return config, model(HF_VOCAB, llama_layer), "hf"


def internlm2():
    config = base("InternLM2ForCausalLM", "internlm2", SPM_VOCAB)
    rows = (HEADS + 2 * KV_HEADS) * HEAD
    shapes = {"model.tok_embeddings.weight": (SPM_VOCAB, HIDDEN), "output.weight": (SPM_VOCAB, HIDDEN)}
    shapes |= norms("model.", "norm")
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= norms(p, "attention_norm", "ffn_norm")
        shapes |= linears(p, {"attention.wqkv": (rows, HIDDEN), "attention.wo": (HIDDEN, HIDDEN),
                              "feed_forward.w1": (FFN, HIDDEN), "feed_forward.w2": (HIDDEN, FFN),
                              "feed_forward.w3": (FFN, HIDDEN)}, bias=False)
    return config, shapes, "spm"


def internlm3():
    config = base("InternLM3ForCausalLM", "internlm3", SPM_VOCAB, head_dim=HEAD)
    return config, model(SPM_VOCAB, llama_layer), "spm"


def deci():
    def block(group, linear, width):
        return {"attention": {"n_heads_in_group": group, "replace_with_linear": linear}, "ffn": {"ffn_mult": width}}

    # Not the last one: llama.cpp fails on an empty last layer ("GGML_ASSERT(buffer) failed").
    blocks = [block(2, False, 2.0), block(None, False, 1.3), block(None, False, None), block(None, True, 2.5),
              block(4, False, 1.0)]
    config = base("DeciLMForCausalLM", "nemotron-nas", HF_VOCAB, num_hidden_layers=len(blocks), block_configs=blocks,
                  rope_theta=5e5)
    shapes = {"model.embed_tokens.weight": (HF_VOCAB, HIDDEN), "lm_head.weight": (HF_VOCAB, HIDDEN)}
    shapes |= norms("model.", "norm")
    for i, spec in enumerate(blocks):
        p, group = f"model.layers.{i}.", spec["attention"]["n_heads_in_group"]
        if group:
            rows = HEADS // group * HEAD
            shapes |= norms(p, "input_layernorm")
            shapes |= linears(p + "self_attn.", {"q_proj": (HIDDEN, HIDDEN), "k_proj": (rows, HIDDEN),
                                                 "v_proj": (rows, HIDDEN), "o_proj": (HIDDEN, HIDDEN)}, bias=False)
        elif spec["attention"]["replace_with_linear"]:
            shapes |= norms(p, "input_layernorm") | {p + "self_attn.linear_attn.weight": (HIDDEN, HIDDEN)}
        if width := spec["ffn"]["ffn_mult"]:
            ffn = -(-int(2 * width * HIDDEN / 3) // 256) * 256
            shapes |= gated(p + "mlp.", ffn=ffn) | norms(p, "post_attention_layernorm")
    return config, shapes, "hf"


def deci7b():
    config = base("DeciLMForCausalLM", "deci", HF_VOCAB, num_key_value_heads_per_layer=[4, 1])
    shapes = model(HF_VOCAB, llama_layer)
    for i, heads in enumerate((4, 1)):
        for name in ("k_proj", "v_proj"):
            shapes[f"model.layers.{i}.self_attn.{name}.weight"] = (heads * HEAD, HIDDEN)
    return config, shapes, "hf"


def plamo():
    """The reference supports only one size."""
    hidden, heads, length = 5120, 40, 128
    config = base("PlamoForCausalLM", "plamo", SPM_VOCAB, hidden_size=hidden, num_attention_heads=heads,
                  num_hidden_layers=1, intermediate_size=256)
    p = "model.layers.layers.0."
    shapes = {"model.embed_tokens.weight": (SPM_VOCAB, hidden), "lm_head.weight": (SPM_VOCAB, hidden)}
    shapes |= norms("model.", "norm", size=hidden) | norms(p, "norm", size=hidden)
    shapes |= linears(p, {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (5 * length, hidden),
                          "self_attn.v_proj": (5 * length, hidden), "self_attn.o_proj": (hidden, hidden),
                          "mlp.gate_proj": (256, hidden), "mlp.up_proj": (256, hidden),
                          "mlp.down_proj": (hidden, 256)}, bias=False)
    return config, shapes | {p + "self_attn.rotary_emb.inv_freq": (length // 2,)}, "spm"


def plamo3(layers=4):
    config = base("Plamo3ForCausalLM", "plamo3", HF_VOCAB, num_hidden_layers=layers, head_dim=HEAD, window_size=64,
                  sliding_window_pattern=4, rope_theta=1e6, rope_local_theta=10000.0)
    shapes = {"model.embed_tokens.weight": (HF_VOCAB, HIDDEN)} | norms("model.", "norm")
    for i in range(layers):
        p = f"model.layers.layers.{i}."
        shapes |= norms(p, "pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm")
        shapes |= norms(p + "mixer.", "q_norm", "k_norm", size=HEAD)
        shapes |= linears(p, {"mixer.qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN),
                              "mixer.o_proj": (HIDDEN, HEADS * HEAD), "mlp.gate_up_proj": (2 * FFN, HIDDEN),
                              "mlp.down_proj": (HIDDEN, FFN)}, bias=False)
    return config, shapes, "plamo"


def nanbeige(loops=1, bare=False):
    """With several loops, with or without the last norm between them."""
    config = base("NanbeigeForCausalLM", "nanbeige", SPM_VOCAB, num_loops=loops, head_dim=HEAD,
                  skip_loop_final_norm=bare)
    return config, model(SPM_VOCAB, llama_layer), "spm"


def bitnet():
    config = base("BitnetForCausalLM", "bitnet", SPM_VOCAB, tie_word_embeddings=True)

    def layer(p):
        return (llama_layer(p) | norms(p + "self_attn.", "inner_attn_ln") | norms(p + "mlp.", "ffn_layernorm", size=FFN))

    return config, model(SPM_VOCAB, layer, tied=True), "spm"


def llada():
    config = {"architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": HIDDEN, "n_layers": LAYERS,
              "n_heads": HEADS, "n_kv_heads": HEADS, "mlp_hidden_size": FFN, "max_sequence_length": 2048,
              "rope_theta": 5e5, "rms_norm_eps": 1e-5, "vocab_size": BPE_VOCAB, "eos_token_id": 2}
    t = "model.transformer."
    shapes = {t + "wte.weight": (BPE_VOCAB, HIDDEN), t + "ff_out.weight": (BPE_VOCAB, HIDDEN)} | norms(t, "ln_f")
    for i in range(LAYERS):
        p = f"{t}blocks.{i}."
        shapes |= norms(p, "attn_norm", "ff_norm")
        shapes |= linears(p, {n: (HIDDEN, HIDDEN) for n in ("q_proj", "k_proj", "v_proj", "attn_out")}, bias=False)
        shapes |= linears(p, {"ff_proj": (FFN, HIDDEN), "up_proj": (FFN, HIDDEN), "ff_out": (HIDDEN, FFN)}, bias=False)
    return config, shapes, "llada"


def dream():
    config, shapes, tokenizer = qwen2()
    config |= {"architectures": ["DreamModel"], "model_type": "Dream", "mask_token_id": 4}
    return config, shapes, tokenizer


# Name -> (maker, type of the weights, number of files).
CHECKPOINTS = {
    "llama": (llama, torch.bfloat16, 1),
    "llama-f16": (llama, torch.float16, 3),
    "llama-f32": (lambda: llama(rope_theta=10000), torch.float32, 2),
    "llama-yarn": (llama_yarn, torch.float32, 1),
    "llama3": (llama3, torch.bfloat16, 1),
    "mistral": (mistral, torch.bfloat16, 1),
    "mixtral": (mixtral, torch.bfloat16, 3),
    "qwen2": (qwen2, torch.bfloat16, 1),
    "qwen2moe": (qwen2moe, torch.bfloat16, 2),
    "qwen3": (qwen3, torch.bfloat16, 1),
    "qwen3-yarn": (qwen3_yarn, torch.bfloat16, 1),
    "qwen3-reranker": (reranker, torch.bfloat16, 1),
    "qwen3-reranker-untied": (lambda: reranker(False), torch.float32, 1),
    "qwen3moe": (qwen3moe, torch.bfloat16, 2),
    "seed_oss": (seed_oss, torch.bfloat16, 1),
    "arcee": (arcee, torch.bfloat16, 1),
    "olmo3": (olmo3, torch.bfloat16, 1),
    # The fourth layer is the first with full attention.
    "olmo3-deep": (lambda: olmo3(5), torch.bfloat16, 1),
    "command-r": (command_r, torch.float16, 1),
    "cohere2": (cohere2, torch.float16, 1),
    "phi2": (phi2, torch.float16, 1),
    "stablelm": (stablelm, torch.bfloat16, 1),
    "stablelm-parallel": (lambda: stablelm(True), torch.bfloat16, 1),
    "starcoder": (starcoder, torch.float32, 1),
    "codeshell": (codeshell, torch.float16, 1),
    "paddleocr": (paddleocr, torch.bfloat16, 1),
    "gptneox": (gptneox, torch.float16, 1),
    "gptneox-sequential": (lambda: gptneox(False), torch.bfloat16, 1),
    "bloom": (bloom, torch.bfloat16, 1),
    "bloom-bare": (lambda: bloom("", 8), torch.float16, 1),
    "falcon": (falcon, torch.bfloat16, 1),
    "falcon-groups": (lambda: falcon(2), torch.bfloat16, 2),
    "mpt": (mpt, torch.bfloat16, 1),
    "mpt-positions": (lambda: mpt(False), torch.float32, 1),
    "mpt-scaled": (lambda: mpt(scaled=True), torch.float16, 1),
    "refact": (refact, torch.bfloat16, 1),
    "jais": (jais, torch.float32, 1),
    "jais-f16": (lambda: jais(False), torch.float16, 1),
    "jais2": (jais2, torch.bfloat16, 1),
    "apertus": (apertus, torch.bfloat16, 1),
    "exaone": (exaone, torch.bfloat16, 1),
    "exaone4": (exaone4, torch.bfloat16, 1),
    "exaone45": (exaone45, torch.bfloat16, 1),
    "exaone45-shared": (lambda: exaone45(True), torch.bfloat16, 1),
    # Windows are used by the model of 64 layers.
    "exaone4-deep": (lambda: exaone4(64), torch.bfloat16, 1),
    "spark2_5": (spark, torch.bfloat16, 1),
    "muse-glimmer": (muse, torch.bfloat16, 1),
    "glm4": (glm4, torch.bfloat16, 1),
    "glm4v": (lambda: glm4(True), torch.bfloat16, 1),
    "glm-ocr": (glm_ocr, torch.bfloat16, 1),
    "glm": (glm, torch.bfloat16, 1),
    "chatglm": (chatglm, torch.float16, 1),
    "hunyuan": (hunyuan, torch.bfloat16, 1),
    "hunyuan-vl": (lambda: hunyuan(True), torch.bfloat16, 1),
    "openelm": (openelm, torch.bfloat16, 1),
    "minicpm": (minicpm, torch.bfloat16, 1),
    "minicpm-long": (lambda: minicpm(True), torch.float16, 1),
    "baichuan": (baichuan, torch.bfloat16, 1),
    "xverse": (xverse, torch.bfloat16, 1),
    "internlm2": (internlm2, torch.bfloat16, 1),
    "internlm3": (internlm3, torch.bfloat16, 1),
    "plamo": (plamo, torch.bfloat16, 1),
    "plamo3": (plamo3, torch.bfloat16, 1),
    "nanbeige": (nanbeige, torch.bfloat16, 1),
    "nanbeige-loops": (lambda: nanbeige(2), torch.bfloat16, 1),
    "nanbeige-loops-bare": (lambda: nanbeige(3, bare=True), torch.bfloat16, 1),
    "bitnet": (bitnet, torch.bfloat16, 1),
    "bitnet-f16": (bitnet, torch.float16, 1),
    "llada": (llada, torch.bfloat16, 1),
    "dream": (dream, torch.bfloat16, 1),
    "command-r-norms": (command_r_norms, torch.bfloat16, 1),
    "deci": (deci, torch.bfloat16, 1),
    "deci-7b": (deci7b, torch.bfloat16, 1),
    "stepvl": (stepvl, torch.bfloat16, 1),
    # llama.cpp decides by the model's name about spaces after special tokens.
    "phi3-vision": (lambda: (phi3()[0] | {"architectures": ["Phi4ForCausalLMV"]}, *phi3()[1:]), torch.bfloat16, 1),
    "nemotron": (nemotron, torch.bfloat16, 1),
    "nemotron_h": (nemotron_h, torch.bfloat16, 1),
    "nemotron_h-f16": (lambda: nemotron_h("*M-", attention_bias=True, rms_norm_eps=1e-6), torch.float16, 1),
    "nemotron_h_moe": (nemotron_h_moe, torch.bfloat16, 1),
    "nemotron_h_moe-latent": (lambda: nemotron_h_moe(64, 1, True), torch.bfloat16, 2),
    "nemotron_h_puzzle": (puzzle, torch.bfloat16, 1),
    "granitehybrid": (granite_hybrid, torch.bfloat16, 1),
    "granitehybrid-experts": (lambda: granite_hybrid(4, shared=160), torch.bfloat16, 1),
    "granitehybrid-attention": (lambda: granite_hybrid(kinds="AA"), torch.bfloat16, 1),
    "granitehybrid-attention-experts": (lambda: granite_hybrid(4, kinds="AA", shared=160), torch.bfloat16, 1),
    "minimax-01": (minimax01, torch.bfloat16, 2),
    "plamo2": (plamo2, torch.bfloat16, 1),
    "granitemoe": (granite_moe, torch.bfloat16, 1),
    "granitemoe-shared": (lambda: granite_moe(160), torch.bfloat16, 1),
    "bamba": (bamba, torch.bfloat16, 1),
    "bamba-period": (bamba_period, torch.float16, 1),
    "mamba2": (mamba2, torch.bfloat16, 1),
    "mamba2-codestral": (codestral, torch.float32, 2),
    "mamba2-original": (original_mamba2, torch.float16, 1),
    "falcon-h1": (falcon_h1, torch.bfloat16, 1),
    "falcon-h1-f16": (lambda: falcon_h1(False), torch.float16, 1),
    "orion": (orion, torch.bfloat16, 1),
    "ernie4_5": (ernie, torch.bfloat16, 1),
    "ernie4_5-fused": (lambda: ernie(True), torch.bfloat16, 2),
    "qwen3moe-stacked": (qwen3moe_stacked, torch.bfloat16, 1),
    "llama-bare": (lambda: bare(llama(), "LlamaModel"), torch.bfloat16, 1),
    "qwen3-embedding": (lambda: bare(qwen3(), "Qwen3Model"), torch.bfloat16, 1),
    "llava": (llava, torch.bfloat16, 2),
    "internvl": (internvl, torch.bfloat16, 1),
    "mistral3": (mistral3, torch.bfloat16, 1),
    "ministral3": (ministral3, torch.bfloat16, 1),
    "qwen2vl": (qwen2vl, torch.bfloat16, 1),
    "qwen25vl": (qwen25vl, torch.bfloat16, 2),
    "qwen3vl": (qwen3vl, torch.bfloat16, 1),
    "qwen3vlmoe": (qwen3vlmoe, torch.bfloat16, 1),
    "gemma3-vl": (gemma3_vl, torch.bfloat16, 1),
    "gemma1": (gemma1, torch.bfloat16, 1),
    "gemma2": (gemma2, torch.bfloat16, 1),
    "gemma2-f16": (gemma2, torch.float16, 1),
    "gemma3": (gemma3, torch.bfloat16, 1),
    # The sixth layer is the first with full attention.
    "gemma3-deep": (lambda: gemma3(7), torch.bfloat16, 1),
    "phi3": (phi3, torch.bfloat16, 1),
    "phi3-long": (lambda: phi3(True), torch.float16, 1),
    "olmo": (olmo, torch.float32, 1),
    "olmo2": (olmo2, torch.bfloat16, 1),
    "granite": (granite, torch.bfloat16, 1),
    "starcoder2": (starcoder2, torch.bfloat16, 1),
    "gpt2": (gpt2, torch.float32, 1),
    "gpt2-bare": (lambda: gpt2(""), torch.float16, 1),
    "qwen3next": (qwen3next, torch.bfloat16, 1),
    "qwen35": (qwen35_vl, torch.bfloat16, 1),
    "qwen35-f16": (lambda: qwen35(values=6), torch.float16, 1),
    "qwen35-sparse": (qwen35_sparse, torch.float32, 1),
    "qwen35-without-mtp": (qwen35_without_mtp, torch.bfloat16, 1),
    "qwen35-promised": (qwen35_promised, torch.bfloat16, 1),
    "qwen35moe": (qwen35moe_vl, torch.bfloat16, 2),
    "qwen35moe-apart": (lambda: qwen35moe(False), torch.bfloat16, 1),
    "minicpmv46": (minicpmv46, torch.bfloat16, 1),
    "lfm2": (lfm2, torch.bfloat16, 1),
    "lfm2-plain": (lfm2_plain, torch.float32, 1),
    "lfm2-colbert": (lambda: lfm2_projected("Lfm2Model"), torch.bfloat16, 1),
    "lfm2-bidirectional": (lambda: lfm2_projected("Lfm2BidirectionalModel"), torch.float16, 1),
    "lfm2-vl": (lfm2_vl, torch.bfloat16, 1),
    "lfm2-audio": (lfm2_audio, torch.bfloat16, 1),
    "lfm2-embedding": (lambda: bare(lfm2(), "Lfm2Model"), torch.bfloat16, 1),
    "lfm2moe": (lfm2moe, torch.bfloat16, 2),
    "mamba": (mamba, torch.bfloat16, 1),
    "mamba-old": (mamba_old, torch.float32, 1),
    "falcon-mamba": (lambda: mamba(True), torch.bfloat16, 2),
    "rwkv6": (rwkv6, torch.bfloat16, 2),
    "rwkv6-f16": (lambda: rwkv6(0, None), torch.float16, 1),
    "rwkv6-halved": (lambda: rwkv6(1), torch.float16, 1),
    "rwkv6qwen2": (rwkv6qwen2, torch.bfloat16, 1),
    "rwkv6qwen2-plain": (lambda: rwkv6qwen2(HEADS, False, lora_rank_tokenshift=32, lora_rank_decay=64), torch.float16, 1),
    "rwkv7": (rwkv7, torch.bfloat16, 2),
    "rwkv7-blocks": (lambda: rwkv7(True), torch.float16, 1),
    "rwkv7-fla": (rwkv7_fla, torch.bfloat16, 1),
    "rwkv7-fla-together": (lambda: rwkv7_fla(True), torch.float32, 1),
    "arwkv7": (arwkv7, torch.bfloat16, 1),
    "arwkv7-plain": (lambda: arwkv7(False, True), torch.float16, 1),
    "jamba": (jamba, torch.bfloat16, 2),
    "jamba-sparse": (jamba_sparse, torch.float16, 1),
    # YaRN by its class, and by its own fields.
    "gpt-oss": (gpt_oss, torch.bfloat16, 2),
    "gpt-oss-mxfp4": (lambda: gpt_oss(True), torch.bfloat16, 2),
    "gpt-oss-f16": (lambda: gpt_oss(rope_scaling=None, rope_theta=10000.0), torch.float16, 1),
    "deepseek": (deepseek_v1, torch.bfloat16, 1),
    "deepseek2": (deepseek_v3, torch.bfloat16, 2),
    "deepseek2-v2": (deepseek_v2, torch.float16, 1),
    "deepseek2-lite": (deepseek_v2_lite, torch.bfloat16, 1),
    "kimi-k25": (kimi_k25, torch.bfloat16, 1),
    "youtu": (youtu, torch.bfloat16, 1),
    "glm4-flash": (glm4_moe_lite, torch.bfloat16, 1),
    "deepseek2-ocr": (deepseek_ocr, torch.bfloat16, 1),
    "mistral4": (mistral4, torch.bfloat16, 1),
    # Chunks of the tests are longer than what a token sees, or shorter.
    "deepseek32": (lambda: deepseek_v32(96), torch.bfloat16, 1),
    "deepseek32-dense": (lambda: deepseek_v32(2048), torch.bfloat16, 1),
    "glm-dsa": (lambda: glm_dsa(96), torch.bfloat16, 1),
    "glm-dsa-shared": (lambda: glm_dsa(2048, ["full", "shared", "full"]), torch.bfloat16, 1),
    "glm4moe": (glm4moe, torch.bfloat16, 1),
    "solar-open": (solar_open, torch.bfloat16, 1),
    "glm4v-moe": (glm4v_moe, torch.bfloat16, 1),
    "minimax-m2": (minimax_m2, torch.bfloat16, 1),
    "kimi-linear": (kimi_linear, torch.bfloat16, 2),
    "bailingmoe3": (bailingmoe3, torch.bfloat16, 1),
    # Without a block for multi-token prediction, queries of low rank, positions in sections.
    "bailingmoe3-vl": (bailingmoe3_vl, torch.bfloat16, 1),
    # Heads, kernels and latent vectors of other lengths, no dense network.
    "kimi-linear-f16": (lambda: kimi_linear(64, 3, 48, 0), torch.float16, 1),
    "smollm3": (smollm3, torch.bfloat16, 1),
    # The fourth layer is the first without rotation.
    "smollm3-deep": (lambda: smollm3(5), torch.bfloat16, 1),
    # Mistral's own format.
    "mistral-format": (mistral_format, torch.bfloat16, 1),
    "mistral-format-scaled": (lambda: mistral_format(True), torch.float16, 2),
    # Files of torch.save instead of safetensors.
    "llama-bin": (llama, torch.bfloat16, 1),
    "llama-bin-f16": (llama, torch.float16, 2),
    "llama-bin-f32": (llama, torch.float32, 3),
    "mixtral-bin": (mixtral, torch.float16, 2),
    # Both names of the embeddings have one storage.
    "qwen2-bin-tied": (lambda: (qwen2()[0], qwen2()[1] | {"lm_head.weight": (BPE_VOCAB, HIDDEN)}, "bpe"), torch.float32, 1),
    "gpt2-bin": (gpt2, torch.float32, 1),
}


# Checkpoints that are written only with quantized weights.
PLAIN = {
    "qwen3moe-128": (lambda: qwen3moe(128), torch.bfloat16, 2),
    "nemotron_h_moe-128": (lambda: nemotron_h_moe(length=128, shared=192), torch.bfloat16, 1),
}


CHECKPOINTS |= expert_checkpoints.makers(sys.modules[__name__])
CHECKPOINTS |= frontier_checkpoints.makers(sys.modules[__name__])
PLAIN |= frontier_checkpoints.plain(sys.modules[__name__])
CHECKPOINTS |= gemma_checkpoints.makers(sys.modules[__name__])
CHECKPOINTS |= embedding_checkpoints.makers(sys.modules[__name__])
CHECKPOINTS |= draft_checkpoints.makers(sys.modules[__name__])
CARD = "Card-Llama-7M-Chat-v0.3"


def enliven(name, tensors):
    """Norm weights near 1 (some are stored minus 1), no outliers, and logits that differ by about a nat."""
    for key, w in tensors.items():
        if key.endswith("relative_pe.slopes") or not w.is_floating_point():
            continue
        w32 = w.float().clamp(-0.2, 0.2)
        plus_one = name.startswith(("gemma1", "gemma2", "gemma3")) and not name.startswith("gemma3n") or name.startswith(("qwen35", "qwen3next", "step35", "minimax-m3")) and "linear_attn" not in key
        if name == "gemma4-moe" and key.endswith("post_feedforward_layernorm.weight"):
            # The reference's table of GELU in f16 must not lead tokens to other experts in later layers.
            w32 = 0.03 * (w32 + 1.0)
        elif name.startswith("gemma3n") and key.endswith(("q_norm.weight", "k_norm.weight")):
            # Scores are not divided. Sharper ones would enlarge differences of the reference's table of GELU in every layer.
            w32 += 0.3
        elif name.startswith("gemma3n") and "post_" in key and key.endswith("norm.weight"):
            # For the same reason: 22 layers with a few large gates.
            w32 = 0.03 * (w32 + 1.0)
        elif w.dim() == 1 and key.endswith((".weight", "_scale", "layer_scalar")) and not plus_one:
            w32 += 1.0
        elif key.endswith("router.scale"):
            # Its products are divided by the square root of their length.
            w32 = 20.0 * w32 + 8.0
        elif key.endswith("modality_router.weight"):
            # Its products are divided by their length.
            w32 *= 250.0
        elif key.endswith(("correction_coefs.weight", "prediction_coefs.weight")):
            w32 *= 2.0
        elif key.endswith("A_log"):
            # States that decay over few or many tokens.
            w32 = 20.0 * w32 - 2.0
        elif key.endswith(".D"):
            w32 += 1.0
        elif key.endswith(("sinks", "sink_bias")):
            # As large as the largest scores.
            w32 *= 20.0
        elif "experts.gate_up_proj" in key and name.startswith("gpt-oss"):
            # Occasionally beyond the limit of activations.
            w32 *= 4.0
        elif "conv1d" in key or "conv.conv" in key or key.endswith(
                ("expert_bias", "router.bias", "router_bias", "score_correction_bias")):
            w32 *= 5.0
        elif key.startswith(("word_embeddings", "transformer.word_embeddings")):
            # BLOOM's and Falcon's tied embeddings: logits would be far too large.
            pass
        elif "embed" in key or "lm_head" in key or key.endswith("wte.weight"):
            # Gemma's tied embeddings are multiplied by the square root of their length.
            w32 *= 0.25 if name.startswith("gemma") else 2.0
        tensors[key] = w32.to(w.dtype)
    return tensors


def save_safetensors(tensors, file):
    save_file(tensors, file, metadata={"format": "pt"})


def save_torch(tensors, file):
    """Saves a state dictionary, with its versions as an attribute."""
    state = collections.OrderedDict(tensors)
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(state, file)


def write_weights(folder, tensors, files, stem):
    suffix, save = ("bin", save_torch) if stem == "pytorch_model" else ("safetensors", save_safetensors)
    if files == 1:
        save(tensors, folder / f"{stem}.{suffix}")
        return
    names = list(tensors)
    weight_map = {}
    for i in range(files):
        part = f"{stem}-{i + 1:05d}-of-{files:05d}.{suffix}"
        mine = names[i * len(names) // files:(i + 1) * len(names) // files]
        save({n: tensors[n] for n in mine}, folder / part)
        weight_map |= {n: part for n in mine}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))


def as_views(tensors):
    """The same tensors as training code can leave them: parts of one storage, transposed in memory, tied, in double
    precision, with a boolean buffer."""
    out = dict(tensors)
    small = [n for n, w in tensors.items() if w.dim() == 1]
    whole, at = torch.cat([torch.zeros(3, dtype=tensors[small[0]].dtype), *(tensors[n] for n in small)]), 3
    for n in small:
        out[n] = whole[at:at + len(tensors[n])]
        at += len(tensors[n])
    for n, w in tensors.items():
        if "k_proj.weight" in n or "mlp.c_proj.weight" in n or "w3.weight" in n:
            out[n] = w.t().contiguous().t()
        elif "v_proj.weight" in n or "attn.c_proj.weight" in n:
            out[n] = torch.cat([w, w + 1], dim=1)[:, :w.shape[1]]
        elif "q_proj.weight" in n:
            out[n] = w.double()
    if "lm_head.weight" in out and "model.embed_tokens.weight" in out and "q_proj.bias" in "".join(out):
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    if "model.layers.0.self_attn.q_proj.weight" in out:
        out["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(HEAD // 2) < 8
    return out


def byte_letters():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + extra)
            extra += 1
    return [letters[b] for b in range(256)]


def write_bpe(folder, more=()):
    letters = byte_letters()
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *more]
    vocab = {t: i for i, t in enumerate(specials + letters)}
    space = letters[32]
    pairs = [("t", "h"), ("th", "e"), (space, "the"), ("i", "n"), ("a", "n"), ("e", "r"), ("o", "n"), ("r", "e"),
             (space, "a"), ("an", "d"), (space, "and"), ("in", "g"), (space, "o"), ("o", "f"), (space, "of")]
    pairs += [(letters[a], letters[b]) for a in range(97, 109) for b in range(97, 115)]
    merges = []
    for a, b in pairs:
        if a in vocab and b in vocab and a + b not in vocab and len(vocab) < BPE_VOCAB - 8:
            vocab[a + b] = len(vocab)
            merges.append([a, b])
    added = [{"id": vocab[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for t in specials]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                 "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                           "ignore_merges": False, "vocab": vocab, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "add_bos_token": False,
              "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_glm(folder):
    write_bpe(folder, ["<|endoftext|>", "<|user|>"])


def write_glm_moe(folder):
    write_bpe(folder, ["<|endoftext|>", "<|user|>", "[gMASK]", "<|observation|>"])


def write_solar(folder):
    write_bpe(folder, ["<|endoftext|>", "<|startoftext|>"])


def write_bpe_bos(folder):
    """With a token at the beginning, by a class that says so."""
    write_llada(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "legacy": True}
    path.write_text(json.dumps(config, indent=2))


def write_laguna(folder):
    """The end of a turn is no special token, and the template includes another file."""
    write_bpe(folder, ["</assistant>"])
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] != "</assistant>"
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")


def write_hunyuan_moe(folder):
    """Ranks of tiktoken, and the program of their tokenizer."""
    import small_vocabularies

    small_vocabularies.tiktoken(folder, "hy.tiktoken", small_vocabularies.HUNYUAN, twice=True)


def write_dots3(folder):
    write_bpe(folder, ["<|endofassistant|>"])


def write_muse(folder):
    write_bpe(folder, ["<|eot|>"])


def hf_tokens():
    """Tokens of byte-pair encoding with byte fallback, and its merges."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]
    tokens += [chr(c) for c in range(33, 127)]
    # No competing merges: without scores, llama.cpp merges the leftmost pair first.
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "n"), ("e", "r"), ("1", "0"), ("4", "2"), ("8", "6")]
    return tokens + [a + b for a, b in merges], merges


def write_hf(folder, prefix=True):
    """With or without a space prefix."""
    tokens, merges = hf_tokens()
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(tokens[:3])]
    before = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    normalizer = {"type": "Sequence", "normalizers": [
        *before, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
                 "pre_tokenizer": None, "post_processor": BEGIN, "decoder": {"type": "Sequence", "decoders": [
                     {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                     {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                 "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                           "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                           "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(m) for m in merges]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    write_spm_config(folder, tokenizer_class="PreTrainedTokenizerFast")
def write_bpe_answers(folder):
    """The same with the answer words of a reranker."""
    write_bpe(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    first = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [{"id": first + i, "content": word, "single_word": False, "lstrip": False,
                                   "rstrip": False, "normalized": False, "special": False}
                                  for i, word in enumerate(["no", "yes"])]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def write_plamo(folder):
    kinds = {0: "UNKNOWN", 1: "CONTROL", 2: "CONTROL"}
    lines = [json.dumps([t, -float(i), kinds.get(i, "BYTE" if t.startswith("<0x") else "NORMAL")], ensure_ascii=False)
             for i, t in enumerate(hf_tokens()[0])]
    (folder / "tokenizer.jsonl").write_text("\n".join(lines) + "\n")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_world(folder):
    """RWKV's World vocabulary in small: all bytes, two line breaks at the same place, and words."""
    words = ["\t\t", "\t\n", "\t ", "\n\t", "\n\n", "  ", " the", "'s", '"', "it's", "\"'", "\\\\", " \\n", "é", " é", "中", "文字",
             "\u0394", "\x7f\x7f", "\x00\x01", "\u2028"]
    words += [f" {a}{b}" for a in "abcdefghijklmn" for b in ("n", "re", "st", "ing", "er", "ou")] + ["th", "he", "and", "ing"]
    words += [bytes([0xe4, 0xb8]), bytes([0xff, 0xfe])]
    words = [word for word in dict.fromkeys(words) if len(word) > 1 or ord(word) > 127]
    lines = [f"{i + 1} {chr(i)!r} 1" if i < 128 else f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    for i, word in enumerate(words):
        lines.append(f"{i + 257} {word!r} {len(word if isinstance(word, bytes) else word.encode())}")
    (folder / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "<s>", "unk_token": "<s>",
              "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_llada(folder):
    """Byte-level, with a BOS token."""
    write_bpe(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(json.dumps(tokenizer | {"post_processor": BEGIN}, ensure_ascii=False))


def write_spm(folder):
    shutil.copyfile(REFMODEL / "tokenizer.model", folder / "tokenizer.model")
    write_spm_config(folder)


def write_spm_config(folder, **more):
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
              "eos_token": "</s>", "unk_token": "<unk>", "legacy": True} | more
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_arctic(folder):
    """Added tokens in place of the model's last ones, and behind them."""
    texts = {0: ("<unk>", True), 1: ("<s>", True), 2: ("</s>", True), SPM_VOCAB - 2: ("<|begin|>", True),
             SPM_VOCAB - 1: ("<|finish|>", True), SPM_VOCAB + 1: ("a word", False), 2 * SPM_VOCAB: ("far", True)}
    decoder = {str(i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                        "special": special} for i, (text, special) in texts.items()}
    shutil.copyfile(REFMODEL / "tokenizer.model", folder / "tokenizer.model")
    write_spm_config(folder, eos_token="<|finish|>", added_tokens_decoder=decoder)


def write_gemma(folder):
    """Gemma's tokenizers have no space prefix, and their own special tokens at the beginning."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((REFMODEL / "tokenizer.model").read_bytes())
    piece = sentencepiece_model_pb2.ModelProto.SentencePiece
    names = ["<pad>", "<eos>", "<bos>", "<unk>"]
    special = [piece(piece=n, score=0.0, type=piece.UNKNOWN if n == "<unk>" else piece.CONTROL) for n in names]
    pieces = [*special, *proto.pieces[3:-1]]
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    for i, n in enumerate(names):
        setattr(proto.trainer_spec, n.strip("<>") + "_id", i)
        setattr(proto.trainer_spec, n.strip("<>") + "_piece", n)
    proto.normalizer_spec.add_dummy_prefix = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    write_spm_config(folder, tokenizer_class="GemmaTokenizer", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def write_phi3(folder):
    """Phi-3's tokenizers have added tokens that include the spaces after them. The reference requires <|endoftext|>."""
    added = {0: "<unk>", 1: "<s>", 2: "</s>"}
    added |= {SPM_VOCAB + i: t for i, t in enumerate(["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"])}
    decoder = {str(i): {"content": t, "lstrip": False, "normalized": False, "single_word": False, "special": t != "</s>",
                        "rstrip": t not in ("<unk>", "<s>", "<|endoftext|>")} for i, t in added.items()}
    shutil.copyfile(REFMODEL / "tokenizer.model", folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps({t: i for i, t in added.items() if i >= SPM_VOCAB}))
    write_spm_config(folder, eos_token="<|endoftext|>", pad_token="<|endoftext|>", added_tokens_decoder=decoder)


def make_card(folder):
    """The reference model under a name with parts, with all files that describe a model beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in REFMODEL, HERE.parent / "testdata" / "card":
        for file in source.iterdir():
            shutil.copyfile(file, folder / file.name)


def write_pooling(folder):
    """The modules of sentence-transformers: pooling of the last token."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
              "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


# Prefix of tensors behind the pooling, in a file of their own.
PROJECTION = "1_Dense."


def write_projection(folder, tensors):
    """Moves the tensors behind the pooling to their file."""
    own = {name.removeprefix(PROJECTION): tensors.pop(name) for name in list(tensors) if name.startswith(PROJECTION)}
    if own:
        (folder / "1_Dense").mkdir(exist_ok=True)
        save_file(own, folder / "1_Dense" / "model.safetensors", {"format": "pt"})


def make(out, name, lively=False):
    if name == CARD:
        return make_card(out / name)
    plain, quantize = (QUANTIZED | REFUSED).get(name, (name, None))
    maker, dtype, files = (CHECKPOINTS | PLAIN)[plain]
    config, shapes, tokenizer = maker()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: tensor(n, shape, dtype) for n, shape in shapes.items()}
    if lively:
        tensors = enliven(plain, tensors)
    if name.startswith("minimax") and "model.embed_tokens.weight" in tensors:
        # Untrained tokens.
        tensors["model.embed_tokens.weight"][[-5, -2, -1]] = 0.0
    if name == "qwen3moe-ties":
        for router in (w for n, w in tensors.items() if n.endswith("mlp.gate.weight")):
            router[12:] = router[:12].repeat(2, 1)[:20]
    if name == "mamba-old":
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    if quantize:
        # Some have files beside config.json.
        tensors = quantize(config, tensors)
        if isinstance(tensors, tuple):
            tensors, more = tensors
            write_files(folder, more)
    is_torch, is_mistral = "-bin" in name, name.startswith("mistral-format")
    (folder / ("params.json" if is_mistral else "config.json")).write_text(json.dumps(config, indent=2))
    write_projection(folder, tensors)
    embedding_checkpoints.write_modules(folder, name, tensors)
    stem = "consolidated" if is_mistral else "model"
    write_weights(folder, as_views(tensors) if is_torch else tensors, files, "pytorch_model" if is_torch else stem)
    # Drafts have the tokenizers of their targets.
    {"none": lambda folder: None, "spm": write_spm, "bpe": write_bpe, "bpe-answers": write_bpe_answers, "gemma": write_gemma, "phi3": write_phi3,
     "glm": write_glm, "glm-moe": write_glm_moe, "bpe-bos": write_bpe_bos, "solar": write_solar, "laguna": write_laguna,
     "hunyuan-moe": write_hunyuan_moe, "muse": write_muse, "hf": write_hf, "hf-bare": lambda folder: write_hf(folder, False),
     "plamo": write_plamo, "arctic": write_arctic, "dots3": write_dots3, "llada": write_llada, "world": write_world,
     **gemma_checkpoints.TOKENIZERS, **embedding_checkpoints.tokenizers(sys.modules[__name__])}[tokenizer](folder)
    if name.startswith("minimax"):
        (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    if name.endswith("-embedding"):
        write_pooling(folder)


# Checkpoints that the reference's converter cannot convert: its Baichuan recurses infinitely, its EXAONE 3.5 lacks a
# key that llama.cpp requires, its MPT maps the name of AWQ's divisors twice.
UNCONVERTED = {"baichuan", "exaone", "mpt-scaled"}


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(name for name in [*CHECKPOINTS, *QUANTIZED, CARD] if name not in UNCONVERTED))
        return
    if sys.argv[1:] == ["--targets"]:
        print("\n".join(f"{draft}\t{target}" for draft, target in draft_checkpoints.TARGETS.items()))
        return
    lively = "--lively" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--lively"]
    if not arguments:
        sys.exit(__doc__)
    for name in arguments[1:] or [*CHECKPOINTS, *QUANTIZED, *REFUSED, CARD]:
        make(Path(arguments[0]), name, lively)


if __name__ == "__main__":
    main()
