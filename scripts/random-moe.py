#!/usr/bin/env python3
"""Writes a Mixtral of two billion random weights as a Hugging Face checkpoint in bf16: 20 layers of 1024, 64 experts of
512 of which a token takes 8, a vocabulary of 32,768 of which the reference model's tokenizer uses a part.

    scripts/random-moe.py OUT

For measurements of speed and memory:

    MODEL=MODEL.gguf scripts/bench-engine.sh 1 imatrix

on its conversion by `quantier convert --outtype f16`. Needs torch and safetensors, 5 GB of memory and of disk.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).resolve().parent.parent / "testdata/refmodel"
VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, EXPERTS, WIDTH = 32_768, 1024, 20, 16, 4, 128, 64, 512
CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 8,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu", "sliding_window": None,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}


def layer(number):
    """Names and shapes of a layer's matrices."""
    base = f"model.layers.{number}"
    yield f"{base}.self_attn.q_proj", (HEADS * HEAD, HIDDEN)
    yield f"{base}.self_attn.k_proj", (KV_HEADS * HEAD, HIDDEN)
    yield f"{base}.self_attn.v_proj", (KV_HEADS * HEAD, HIDDEN)
    yield f"{base}.self_attn.o_proj", (HIDDEN, HEADS * HEAD)
    yield f"{base}.block_sparse_moe.gate", (EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        yield f"{base}.block_sparse_moe.experts.{expert}.w1", (WIDTH, HIDDEN)
        yield f"{base}.block_sparse_moe.experts.{expert}.w3", (WIDTH, HIDDEN)
        yield f"{base}.block_sparse_moe.experts.{expert}.w2", (HIDDEN, WIDTH)


def main():
    out = Path(sys.argv[1])
    torch.manual_seed(1)
    # Outputs of matrices keep the magnitude of their inputs.
    matrix = lambda rows, columns: (torch.randn(rows, columns) * columns**-0.5).bfloat16()
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "model.norm.weight": torch.ones(HIDDEN).bfloat16()}
    for number in range(LAYERS):
        tensors |= {f"{name}.weight": matrix(*shape) for name, shape in layer(number)}
        for norm in "input_layernorm", "post_attention_layernorm":
            tensors[f"model.layers.{number}.{norm}.weight"] = torch.ones(HIDDEN).bfloat16()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2))
    for name in "tokenizer.model", "tokenizer_config.json":
        shutil.copyfile(TOKENIZER / name, out / name)
    print(f"{sum(w.numel() for w in tensors.values())} weights")


if __name__ == "__main__":
    main()
