#!/usr/bin/env python3
"""Writes a Qwen 3.5 of half a billion random weights as a Hugging Face checkpoint in bf16: 16 layers of 1024, gated delta
nets of 16 heads of keys and 32 of values, a vocabulary of 100,000 of which a small tokenizer uses a part.

    scripts/random-qwen35.py OUT TOKENIZER

TOKENIZER is a checkpoint of scripts/train-qwen35.py, whose tokenizer it takes. For measurements of speed:

    MODEL=MODEL.gguf scripts/bench-engine.sh 3 imatrix

on its conversion by `quantier convert --no-nextn --pre gpt-2`. Needs torch and safetensors.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = {"VOCAB": 100_000, "HIDDEN": 1024, "FFN": 3584, "LAYERS": 16, "HEADS": 8, "KV_HEADS": 2, "HEAD": 256}
LINEAR = {"KEY_HEADS": 16, "VALUE_HEADS": 32, "HEAD": 128}


def main():
    out, tokenizer = map(Path, sys.argv[1:])
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    train = importlib.import_module("train-qwen35")
    torch.manual_seed(1)
    vars(train).update(SIZES)
    kinds = ["full_attention" if i % train.INTERVAL == train.INTERVAL - 1 else "linear_attention"
             for i in range(train.LAYERS)]
    config = train.CONFIG | {
        "vocab_size": train.VOCAB, "hidden_size": train.HIDDEN, "intermediate_size": train.FFN,
        "num_hidden_layers": train.LAYERS, "num_attention_heads": train.HEADS, "num_key_value_heads": train.KV_HEADS,
        "head_dim": train.HEAD, "tie_word_embeddings": True, "layer_types": kinds,
        "linear_key_head_dim": LINEAR["HEAD"], "linear_value_head_dim": LINEAR["HEAD"],
        "linear_num_key_heads": LINEAR["KEY_HEADS"], "linear_num_value_heads": LINEAR["VALUE_HEADS"],
        "rope_parameters": train.CONFIG["rope_parameters"] | {"mrope_section": [11, 11, 10]}}
    train.CONFIG = config
    shapes = train.shapes()
    # Heads of delta nets differ in length from those of attention.
    vars(train).update(LINEAR, KEYS=LINEAR["KEY_HEADS"] * LINEAR["HEAD"], VALUES=LINEAR["VALUE_HEADS"] * LINEAR["HEAD"])
    shapes |= {n: s for n, s in train.shapes().items() if "linear_attn" in n}
    shapes = {n: s for n, s in shapes.items() if n != "lm_head.weight" and not n.startswith("mtp.")}
    # Outputs of mixers keep their magnitude from layer to layer.
    scale = lambda s: s[-1] ** -0.5 if len(s) == 2 else 1.0
    tensors = {n: (train.initial(n, s) if len(s) != 2 else torch.randn(s) * scale(s)).bfloat16() for n, s in shapes.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2))
    for name in "tokenizer.json", "tokenizer_config.json":
        shutil.copyfile(tokenizer / name, out / name)
    print(f"{sum(w.numel() for w in tensors.values())} weights")


if __name__ == "__main__":
    main()
