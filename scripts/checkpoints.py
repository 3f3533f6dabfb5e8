#!/usr/bin/env python3
"""Makes a tiny Hugging Face checkpoint for every architecture: real config fields, small dimensions, weights from a
fixed seed, a small tokenizer.

    scripts/checkpoints.py [--lively] OUT [NAME ...]     all of them, or those named
    scripts/checkpoints.py --list                        the names

With --lively, weights are such that the output of the model depends on its input: norms near 1, no outliers.

Needs torch, safetensors and sentencepiece. The tokenizer.model is the reference model's (testdata/refmodel or
QUANTIER_REFMODEL); byte-level vocabularies are made here. Equal versions of this script make equal files.
"""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

HERE = Path(__file__).resolve().parent
REFMODEL = Path(os.environ.get("QUANTIER_REFMODEL", HERE.parent / "testdata" / "refmodel"))
SPM_VOCAB = 4096
PHI3_VOCAB = SPM_VOCAB + 64
BPE_VOCAB = 512

HIDDEN, HEADS, KV_HEADS, LAYERS, FFN = 256, 4, 2, 2, 512
HEAD = HIDDEN // HEADS


def tensor(name, shape, dtype):
    """Weights of this name: reproducible, with a few values that rounding could treat differently."""
    gen = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    w = torch.randn(shape, generator=gen, dtype=torch.float32) * 0.05
    flat = w.flatten()
    odd = torch.tensor([0.0, -0.0, 1e-8, -6e-8, 3e-5, 65519.0 / 65536, 1.0009765625, 1e-30])
    if flat.numel() >= 4096:
        flat[1024:1024 + len(odd)] = odd
        flat[2048:2080] = 0.0
        flat[3072] = 8.0
    return w.to(dtype)


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
    # Rows of 688 weights are no whole blocks of q8_0.
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


def qwen3_yarn():
    config, shapes, tokenizer = qwen3()
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    return config | {"rope_scaling": scaling, "max_position_embeddings": 8192}, shapes, tokenizer


def qwen3moe():
    config = base("Qwen3MoeForCausalLM", "qwen3_moe", BPE_VOCAB, head_dim=128, num_experts=8, num_experts_per_tok=2,
                  moe_intermediate_size=96, norm_topk_prob=True)

    def layer(p):
        shapes = attention(p, head=128) | norms(p, "input_layernorm", "post_attention_layernorm")
        shapes |= norms(p + "self_attn.", "q_norm", "k_norm", size=128)
        shapes[p + "mlp.gate.weight"] = (8, HIDDEN)
        for e in range(8):
            shapes |= gated(f"{p}mlp.experts.{e}.", ffn=96)
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
    # Two rows more than tokens: the reference leaves them out.
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
    """A text model within one that also sees: its config in an object, its tensors behind `prefix`, and others beside."""
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
    """Experts in two tensors of a layer, of which the first holds gates and the others."""
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


def bare(text, cls):
    """A model without its head: names without `model.`."""
    config, shapes, tokenizer = text
    shapes = {name.removeprefix("model."): shape for name, shape in shapes.items() if name != "lm_head.weight"}
    return config | {"architectures": [cls]}, shapes, tokenizer


def fp8():
    config, shapes, tokenizer = llama()
    return config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, shapes, tokenizer


# Name -> (maker, type of the weights, number of files).
CHECKPOINTS = {
    "llama": (llama, torch.bfloat16, 1),
    "llama-f16": (llama, torch.float16, 3),
    "llama-f32": (lambda: llama(rope_theta=10000), torch.float32, 2),
    "llama-fp8": (fp8, torch.bfloat16, 1),
    "llama-yarn": (llama_yarn, torch.float32, 1),
    "llama3": (llama3, torch.bfloat16, 1),
    "mistral": (mistral, torch.bfloat16, 1),
    "mixtral": (mixtral, torch.bfloat16, 3),
    "qwen2": (qwen2, torch.bfloat16, 1),
    "qwen2moe": (qwen2moe, torch.bfloat16, 2),
    "qwen3": (qwen3, torch.bfloat16, 1),
    "qwen3-yarn": (qwen3_yarn, torch.bfloat16, 1),
    "qwen3moe": (qwen3moe, torch.bfloat16, 2),
    "seed_oss": (seed_oss, torch.bfloat16, 1),
    "arcee": (arcee, torch.bfloat16, 1),
    "olmo3": (olmo3, torch.bfloat16, 1),
    # The fourth layer is the first that sees everything.
    "olmo3-deep": (lambda: olmo3(5), torch.bfloat16, 1),
    "command-r": (command_r, torch.float16, 1),
    "cohere2": (cohere2, torch.float16, 1),
    "phi2": (phi2, torch.float16, 1),
    "stablelm": (stablelm, torch.bfloat16, 1),
    "stablelm-parallel": (lambda: stablelm(True), torch.bfloat16, 1),
    "starcoder": (starcoder, torch.float32, 1),
    "codeshell": (codeshell, torch.float16, 1),
    "paddleocr": (paddleocr, torch.bfloat16, 1),
    "stepvl": (stepvl, torch.bfloat16, 1),
    # llama.cpp goes by the model's name for spaces after special tokens.
    "phi3-vision": (lambda: (phi3()[0] | {"architectures": ["Phi4ForCausalLMV"]}, *phi3()[1:]), torch.bfloat16, 1),
    "nemotron": (nemotron, torch.bfloat16, 1),
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
    # The sixth layer is the first that sees everything.
    "gemma3-deep": (lambda: gemma3(7), torch.bfloat16, 1),
    "phi3": (phi3, torch.bfloat16, 1),
    "phi3-long": (lambda: phi3(True), torch.float16, 1),
    "olmo": (olmo, torch.float32, 1),
    "olmo2": (olmo2, torch.bfloat16, 1),
    "granite": (granite, torch.bfloat16, 1),
    "starcoder2": (starcoder2, torch.bfloat16, 1),
    "gpt2": (gpt2, torch.float32, 1),
    "gpt2-bare": (lambda: gpt2(""), torch.float16, 1),
    "smollm3": (smollm3, torch.bfloat16, 1),
    # The fourth layer is the first that does not rotate.
    "smollm3-deep": (lambda: smollm3(5), torch.bfloat16, 1),
}


CARD = "Card-Llama-7M-Chat-v0.3"


def quantize_fp8(tensors):
    """Matrices of the layers as F8_E4M3 with one scale for 128 x 128 weights."""
    out = {}
    for name, w in tensors.items():
        if w.dim() != 2 or ".layers." not in name:
            out[name] = w
            continue
        w = w.float()
        rows, cols = w.shape
        blocks = w.reshape(rows // 128, 128, cols // 128, 128)
        scale = blocks.abs().amax(dim=(1, 3)) / 448.0
        out[name] = (blocks / scale[:, None, :, None]).reshape(rows, cols).to(torch.float8_e4m3fn)
        out[name + "_scale_inv"] = scale
    return out


def enliven(name, tensors):
    """Weights near 1 for norms (Gemma's are added to 1 as they are), no outliers, and logits that differ by a nat."""
    for key, w in tensors.items():
        w32 = w.float().clamp(-0.2, 0.2)
        if w.dim() == 1 and key.endswith(".weight") and not name.startswith("gemma"):
            w32 += 1.0
        elif "embed_tokens" in key or "lm_head" in key or key.endswith("wte.weight"):
            # Gemma multiplies embeddings by the root of their length, and they are the output matrix too.
            w32 *= 0.25 if name.startswith("gemma") else 2.0
        tensors[key] = w32.to(w.dtype)
    return tensors


def write_weights(folder, tensors, files):
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(files):
        part = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        mine = names[i * len(names) // files:(i + 1) * len(names) // files]
        save_file({n: tensors[n] for n in mine}, folder / part, metadata={"format": "pt"})
        weight_map |= {n: part for n in mine}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def byte_letters():
    """GPT-2's letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + extra)
            extra += 1
    return [letters[b] for b in range(256)]


def write_bpe(folder):
    letters = byte_letters()
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
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


def write_spm(folder):
    shutil.copyfile(REFMODEL / "tokenizer.model", folder / "tokenizer.model")
    write_spm_config(folder)


def write_spm_config(folder, **more):
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
              "eos_token": "</s>", "unk_token": "<unk>", "legacy": True} | more
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_gemma(folder):
    """Gemma's tokenizers put no space before a text, and begin with special tokens of their own."""
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
    """Phi-3's tokenizers have added tokens, which take the spaces after them. The reference wants <|endoftext|>."""
    added = {0: "<unk>", 1: "<s>", 2: "</s>"}
    added |= {SPM_VOCAB + i: t for i, t in enumerate(["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"])}
    decoder = {str(i): {"content": t, "lstrip": False, "normalized": False, "single_word": False, "special": t != "</s>",
                        "rstrip": t not in ("<unk>", "<s>", "<|endoftext|>")} for i, t in added.items()}
    shutil.copyfile(REFMODEL / "tokenizer.model", folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps({t: i for i, t in added.items() if i >= SPM_VOCAB}))
    write_spm_config(folder, eos_token="<|endoftext|>", pad_token="<|endoftext|>", added_tokens_decoder=decoder)


def make_card(folder):
    """The reference model under a name with parts, with everything that describes a model beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in REFMODEL, HERE.parent / "testdata" / "card":
        for file in source.iterdir():
            shutil.copyfile(file, folder / file.name)


def write_pooling(folder):
    """The modules of sentence-transformers: the last token's activations stand for all."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
              "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def make(out, name, lively=False):
    if name == CARD:
        return make_card(out / name)
    maker, dtype, files = CHECKPOINTS[name]
    config, shapes, tokenizer = maker()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: tensor(n, shape, dtype) for n, shape in shapes.items()}
    if lively:
        tensors = enliven(name, tensors)
    if name.endswith("fp8"):
        tensors = quantize_fp8(tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(folder, tensors, files)
    {"spm": write_spm, "bpe": write_bpe, "gemma": write_gemma, "phi3": write_phi3}[tokenizer](folder)
    if name.endswith("-embedding"):
        write_pooling(folder)


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join([*CHECKPOINTS, CARD]))
        return
    lively = "--lively" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--lively"]
    if not arguments:
        sys.exit(__doc__)
    for name in arguments[1:] or [*CHECKPOINTS, CARD]:
        make(Path(arguments[0]), name, lively)


if __name__ == "__main__":
    main()
