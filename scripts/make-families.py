#!/usr/bin/env python3
"""`quantier make --bpw 4.5` end to end on a tiny random model of every family: convert, measure, round, evaluate; then the
file must load and generate in llama-completion.

    scripts/make-families.py [NAME ...]      all checkpoints of scripts/checkpoints.py, or those named

One line per checkpoint with the size and the measured divergence; the last line is `N run, M do not`. Exit code 1 if
any does not. QUANTIER is the program (default: target/release/quantier). The reference must be built
(scripts/reference.sh --python).
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parent / "testdata" / "texts"
PROGRAM = os.environ.get("QUANTIER", HERE.parent / "target" / "release" / "quantier")
BPW = 4.5
# Families with tables in f32, or a block for a further token, that dominate so small a model.
OTHER_BPW = {"starcoder": 7.5, "glm-ocr": 6.0, "exaone45": 6.0, "exaone45-shared": 6.0,
             "gpt2": 7.5, "gpt2-bare": 7.5, "gpt2-bin": 7.5, "mpt-positions": 10.0}
# Routers in f32, beside experts that are as small.
OTHER_BPW |= {name: 6.5 for name in (
    "hy_v3", "hy_v3-f16", "bailingmoe", "bailingmoe-f16", "bailingmoe2", "bailingmoe2-f32", "sarvam", "sarvam-f32", "ernie4_5-moe", "ernie4_5-moe-bare",
    "olmoe", "phi3-moe", "dots1", "dots1-sparse", "laguna", "laguna-elements", "exaone-moe", "exaone-moe-bare", "afmoe",
    "afmoe-bare", "mellum", "mellum-whole", "llama4", "llama4-vision", "maple", "dbrx", "cohere2moe", "cohere2moe-bare",
    "hunyuan-moe", "mimo2", "mimo2-fused", "step35", "step35-vision", "minimax-m3", "minimax-m3-vision", "granite_swa",
    "granite_swa-experts", "grok", "grok1", "arctic", "arctic-padded", "smallthinker",
    "smallthinker-whole", "grovemoe", "qwen3moe-ties")}
# Indexers have no gradient, and keep a precise type.
OTHER_BPW |= {name: 6.5 for name in ("deepseek32", "deepseek32-dense", "glm-dsa", "glm-dsa-shared")}
# Factors of matrices of low rank stay in f32.
OTHER_BPW |= {name: 9.0 for name in (
    "rwkv6", "rwkv6-f16", "rwkv6-halved", "rwkv6qwen2", "rwkv6qwen2-plain", "rwkv7", "rwkv7-blocks", "rwkv7-fla",
    "rwkv7-fla-together", "arwkv7", "arwkv7-plain")}
# Matrices of streams and low-rank branches, and the projection of per-layer embeddings, stay in f32.
OTHER_BPW |= {name: 6.5 for name in ("gemma3n", "gemma3n-causal")}
# Rows of their down matrices fit no block type: these matrices stay in f32.
UNBLOCKED = {name: 16.0 for name in ("qwen2", "internvl", "qwen2vl", "qwen25vl", "qwen2-bin-tied")}
# Not causal, or not text models: converted, but not measured.
UNMEASURED = {"llada", "dream", "qwen3-reranker", "qwen3-reranker-untied",
              "llada-moe", "rnd1",
              "glm5-next", "glm5-next-shared", "qwen4exp", "qwen4exp-bare", "kimi-k3", "kimi-k3-whole", "dots3note",
              "dots3note-plain", "hy_v4", "hy_v4-dense",
              # llama.cpp never finishes a token of it.
              "plamo2"}
# Without the blocks for multi-token prediction of similar checkpoints.
WITHOUT_MTP = {"qwen35-without-mtp", "qwen35-promised", "minicpmv46"}
# A few chunks, and types of few and of many bits: the test is that it runs, not the result.
SETTINGS = ["-f", TEXTS / "calibration.txt", "--eval", TEXTS / "evaluation.txt", "-c", 128, "--score-chunks", 2,
            "--eval-chunks", 2]
TYPES = "IQ2_S,Q3_K,IQ4_NL,Q4_K,Q6_K,Q8_0"


def say(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise RuntimeError((done.stderr or done.stdout).strip().replace("\n", " ")[:400])
    return done.stdout.strip()


def family(name, python, bin, work):
    say(python, HERE / "checkpoints.py", "--lively", work, name)
    model = work / "model.gguf"
    more = ["--mistral-format"] if name.startswith("mistral-format") else []
    more += ["--no-nextn"] if name in WITHOUT_MTP else []
    say(PROGRAM, "convert", work / name, "--outfile", model, "--outtype", "f32", "--pre", "gpt-2", *more)
    out = work / "out"
    types, bpw = (TYPES + ",F32", UNBLOCKED[name]) if name in UNBLOCKED else (TYPES, OTHER_BPW.get(name, BPW))
    say(PROGRAM, "make", model, "--bpw", bpw, "-o", out, "--types", types, *SETTINGS)
    (made,) = json.loads((out / "frontier.json").read_text())["files"]
    file = out / made["name"]
    wrong, _ = importlib.import_module("convert-runs").generates(Path(bin), file)
    if wrong:
        raise RuntimeError(f"llama-completion: {wrong}")
    return f"{made['bpw']:.3f} bpw, KLD {made['measured']['kld']:.6f}"


def main():
    sys.path.insert(0, str(HERE))
    bin, python = (say(HERE / "reference.sh", *a) for a in ([], ["--python"]))
    listed = say(python, HERE / "checkpoints.py", "--list").split("\n")
    count = {True: 0, False: 0}
    for name in sys.argv[1:] or [n for n in listed if n not in UNMEASURED and not n.startswith("Card-")]:
        with tempfile.TemporaryDirectory() as work:
            try:
                made = family(name, python, bin, Path(work))
                good, figures = True, made
            except (RuntimeError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
                good, figures = False, str(error)
        count[good] += 1
        print(f"{'runs' if good else 'fails':<7} {name}: {figures}", flush=True)
    print(f"{count[True]} run, {count[False]} do not")
    sys.exit(0 if count[False] == 0 else 1)


if __name__ == "__main__":
    main()
