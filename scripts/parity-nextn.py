#!/usr/bin/env python3
"""Compares the importance matrix of the block for a further token (multi-token prediction), which llama-imatrix does not
run, with an independent computation: the model of scripts/train-qwen35.py in PyTorch, on the same tokens.

    scripts/parity-nextn.py CHECKPOINT TEXT [--context N] [--chunks N]

CHECKPOINT is written by scripts/train-qwen35.py. The block is run as llama.cpp runs it for a draft: position k
reads its token and the normalized activations of position k - 1, the first one zeros. One line per linear of the block:
the largest difference of a sum relative to the tensor's mean (tolerance: 0.2%), and whether the counts agree. Exit code 1 if any
does not. QUANTIER is the program (default: target/release/quantier). Needs torch and gguf: `$(scripts/reference.sh
--python)` has both.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
PROGRAM = os.environ.get("QUANTIER", HERE.parent / "target" / "release" / "quantier")
MOST = 0.002
# The linear in the GGUF, by the end of its name in the checkpoint.
LINEARS = {"mtp.fc": "nextn.eh_proj", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
           "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def inputs(train, folder, chunks):
    """Sums of squares and counts of the inputs of every linear of the block."""
    model = train.Model()
    weights = load_file(folder / "model.safetensors")
    model.weights = {name: weights[name].float() for name in model.weights}
    sums, counts = {}, {}

    def times(x, name):
        if name.startswith("mtp."):
            part = next(part for end, part in LINEARS.items() if name.endswith(end))
            rows = x.reshape(-1, x.shape[-1]).double()
            sums[part] = sums.get(part, 0) + rows.pow(2).sum(0)
            counts[part] = counts.get(part, 0) + len(rows)
        return x @ model.weights[name + ".weight"].T

    model.times = times
    with torch.no_grad():
        model.draft(torch.tensor(chunks))
    return sums, counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    train = importlib.import_module("train-qwen35")
    with tempfile.TemporaryDirectory() as work:
        model, imatrix = Path(work) / "model.gguf", Path(work) / "imatrix.gguf"
        run(PROGRAM, "convert", options.checkpoint, "--outfile", model, "--outtype", "f32", "--pre", "gpt-2")
        run(PROGRAM, "imatrix", "-m", model, "-f", options.text, "-c", options.context, "--chunks", options.chunks, "--no-ppl",
            "-o", imatrix)
        ids = run(PROGRAM, "tokenize", "-m", model, "-f", options.text, "--ids").strip().strip("[]").split(",")
        found = {t.name: torch.tensor(t.data.copy()).double().flatten() for t in gguf.GGUFReader(imatrix).tensors}
    ids = [int(i) for i in ids]
    chunks = [ids[k * options.context:(k + 1) * options.context] for k in range(options.chunks)]
    sums, counts = inputs(train, options.checkpoint, chunks)
    block, good = f"blk.{train.LAYERS}.", True
    for part, expected in sums.items():
        ours, count = (found[f"{block}{part}.weight.{end}"] for end in ("in_sum2", "counts"))
        worst = float((ours - expected).abs().max() / expected.mean())
        agree = int(count[0]) == counts[part]
        good &= worst <= MOST and agree
        print(f"{block}{part}: off by {worst:.4%}, counts {'agree' if agree else f'{int(count[0])} / {counts[part]}'}")
    print("within" if good else "not within")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
