#!/usr/bin/env python3
"""Compares the importance matrix of the block for a further token (multi-token prediction), which llama-imatrix does not
run, with independent computations on the same tokens: llama.cpp's own draft of the block (scripts/nextn-reference.cpp), or the
model of scripts/train-qwen35.py in PyTorch.

    scripts/parity-nextn.py TEXT CHECKPOINT... [--pytorch] [--context N] [--chunks N]

CHECKPOINT is a directory, or a name of scripts/checkpoints.py; with --pytorch, a directory written by
scripts/train-qwen35.py. The block is run as for a draft: position k reads its token and the normalized activations of position
k - 1, the first one zeros. One line per linear of the block: the largest difference of a sum relative to the tensor's mean
(tolerance: 0.2%), and whether the counts agree. Exit code 1 if any does not, or if a linear is missing. QUANTIER is
the program (default: target/release/quantier). The reference must be built (scripts/reference.sh --python).
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = os.environ.get("QUANTIER", HERE.parent / "target" / "release" / "quantier")
MOST = 0.002
# The linear in the GGUF, by the end of its name in the checkpoint.
LINEARS = {"mtp.fc": "nextn.eh_proj", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
           "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]}: {done.stderr.strip()[-400:]}")
    return done.stdout


class PyTorch:
    """Sums by the model of scripts/train-qwen35.py."""

    def __init__(self, _):
        self.train = importlib.import_module("train-qwen35")

    def sums(self, checkpoint, _, chunks):
        """Sums of squares and counts of the inputs of every linear of the block, by name."""
        import torch
        from safetensors.torch import load_file

        model = self.train.Model()
        weights = load_file(checkpoint / "model.safetensors")
        model.weights = {name: weights[name].float() for name in model.weights}
        sums = {}

        def times(x, name):
            if name.startswith("mtp."):
                part = next(part for end, part in LINEARS.items() if name.endswith(end))
                rows = x.reshape(-1, x.shape[-1]).double()
                squares, count = sums.get(part, (0, 0))
                sums[part] = (squares + rows.pow(2).sum(0).numpy(), count + len(rows))
            return x @ model.weights[name + ".weight"].T

        model.times = times
        with torch.no_grad():
            model.draft(torch.tensor(chunks))
        return {f"blk.{self.train.LAYERS}.{part}.weight": (squares, [count]) for part, (squares, count) in sums.items()}


class Reference:
    """Sums by llama.cpp's draft of the block."""

    def __init__(self, work):
        binaries, self.program = Path(run(HERE / "reference.sh").strip()), work / "nextn-reference"
        source = Path(run(HERE / "reference.sh", "--source").strip())
        run("g++", "-O1", "-std=c++17", *(f"-I{source / part}" for part in ("common", "include", "ggml/include", "src", "vendor")),
            HERE / "nextn-reference.cpp", "-o", self.program, f"-L{binaries}", f"-Wl,-rpath,{binaries}", "-lllama-common",
            "-lllama", "-lggml", "-lggml-base")

    def sums(self, _, model, chunks):
        import numpy as np

        tokens = model.with_suffix(".tokens")
        tokens.write_text(" ".join(str(token) for chunk in chunks for token in chunk))
        sums = {}
        for line in run(self.program, model, tokens, len(chunks[0])).splitlines():
            head, squares = line.split(" | ")
            name, *counts = head.split()
            sums[name] = (np.array(squares.split(), dtype=np.float64), [int(count) for count in counts])
        return sums


def compare(checkpoint, source, options, work):
    """True if all sums of a checkpoint's block agree; prints them."""
    import gguf
    import numpy as np

    model, imatrix = work / "model.gguf", work / "imatrix.gguf"
    run(PROGRAM, "convert", checkpoint, "--outfile", model, "--outtype", "f32", "--pre", "gpt-2")
    run(PROGRAM, "imatrix", "-m", model, "-f", options.text, "-c", options.context, "--chunks", options.chunks, "--no-ppl",
        "-o", imatrix)
    ids = run(PROGRAM, "tokenize", "-m", model, "-f", options.text, "--ids").strip().strip("[]").split(",")
    chunks = [[int(i) for i in ids[k * options.context:(k + 1) * options.context]] for k in range(options.chunks)]
    fields = gguf.GGUFReader(model).fields
    count = fields[f"{fields['general.architecture'].contents()}.block_count"].contents()
    found = {t.name: np.array(t.data, dtype=np.float64).flatten() for t in gguf.GGUFReader(imatrix).tensors}
    block = f"blk.{count - 1}."
    expected = source.sums(checkpoint, model, chunks)
    ours = {name.removesuffix(".in_sum2") for name in found if name.startswith(block) and name.endswith(".in_sum2")}
    for name in sorted(ours ^ expected.keys()):
        print(f"  {name}: only {'ours' if name in ours else 'the other'} has it")
    good = ours == expected.keys()
    for name in sorted(ours & expected.keys()):
        squares, counts = expected[name]
        count = found[f"{name}.counts"].astype(int).tolist()
        worst = float(np.abs(found[f"{name}.in_sum2"] - squares).max() / squares.mean())
        good &= worst <= MOST and count == counts
        print(f"  {name}: off by {worst:.4%}, counts {'agree' if count == counts else f'{count} / {counts}'}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--pytorch", action="store_true")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    python = run(HERE / "reference.sh", "--python").strip()
    if Path(sys.executable) != Path(python):
        os.execv(python, [python, *sys.argv])
    sys.path.insert(0, str(HERE))
    all_good = True
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        source = (PyTorch if options.pytorch else Reference)(work)
        for checkpoint in options.checkpoints:
            folder = checkpoint
            if not folder.is_dir():
                folder = work / checkpoint
                run(python, HERE / "checkpoints.py", "--lively", work, checkpoint)
            good = compare(folder, source, options, work)
            all_good &= good
            print(f"{'within' if good else 'not'} {checkpoint}", flush=True)
    sys.exit(0 if all_good else 1)


if __name__ == "__main__":
    main()
