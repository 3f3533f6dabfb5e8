#!/usr/bin/env python3
"""Compares sensitivities of single tensors, to second order, with the measured divergence of the model with only that
tensor in the type (`--score divergence` beside `--score sweep`), on the same chunks of a text.

    scripts/sensitivities.py MODEL.gguf TEXT [--chunks N] [--context N] [--types Q3_K,Q4_K,Q6_K] [--work DIR]

One line per role: tensors, the ratio predicted / measured as a geometric mean over tensors and types, its smallest and
largest value for a tensor. The last line is `N roles within a factor of 1.5, M not`. Exit code 1 if any is not. QUANTIER
is the program (default: target/release/quantier).
"""

import argparse
import collections
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = os.environ.get("QUANTIER", Path(__file__).resolve().parent.parent / "target" / "release" / "quantier")
FACTOR = 1.5
# Smaller divergences are rounding errors of f32.
LEAST = 1e-6


def scores(options, work, score):
    out = work / score
    command = [PROGRAM, "frontier", options.model, "-f", options.text, "-c", options.context, "--types", options.types,
               "--score", score, "--score-chunks", options.chunks, "--score-positions", 0, "--rounding", "reference",
               "-o", out]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    frontier = json.loads((out / "frontier.json").read_text())
    return {(t["name"], c["type"]): c["nats"] for t in frontier["tensors"] for c in t["choices"]}


def mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--types", default="Q3_K,Q4_K,Q6_K")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        predicted, measured = (scores(options, work, score) for score in ("divergence", "sweep"))
    by_tensor = collections.defaultdict(list)
    for key, nats in measured.items():
        if nats > LEAST and predicted.get(key, 0) > 0:
            by_tensor[key[0]].append(predicted[key] / nats)
    by_role = collections.defaultdict(list)
    for name, ratios in by_tensor.items():
        by_role[re.sub(r"^blk\.\d+\.|\.weight$", "", name)].append(mean(ratios))
    print("| role | tensors | predicted / measured | smallest | largest |\n|---|---|---|---|---|")
    count = {True: 0, False: 0}
    for role, ratios in by_role.items():
        count[1 / FACTOR <= mean(ratios) <= FACTOR] += 1
        print(f"| {role} | {len(ratios)} | {mean(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |")
    print(f"\n{count[True]} roles within a factor of {FACTOR}, {count[False]} not")
    sys.exit(0 if count[False] == 0 else 1)


if __name__ == "__main__":
    main()
