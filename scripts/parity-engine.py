#!/usr/bin/env python3
"""The cases of scripts/parity-engine.sh; see there."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import parity_embeddings

# Tolerances: perplexity, sums relative to their tensor's mean, KL divergence; all as fractions.
PPL, SUMS, KLD = 0.0005, 0.002, 0.02
# The reference uses a table of GELU in f16. Phi-2's sums differ by 0.200% because of it, and by 0.011% with such a table;
# those of GPT-NeoX, Falcon and Grok 1 (0.391%, 0.335%, 0.265%; 0.245% of the reference's own model) were not tried with one.
SUMS_OF_TABLE = {"phi2": 0.005, "gptneox": 0.005, "falcon": 0.005, "falcon-groups": 0.005, "grok1": 0.005,
                 "grok-moe": 0.005}
# Gemma 4: 0.639% and 0.549%; 0.102% and 0.169% with such a table. Gemma 3n: 0.760% and 0.325%. Its few large gates enlarge
# differences: 5.3% and 0.53% with such a table, where outputs of blocks are 30 times as large.
SUMS_OF_TABLE |= {name: 0.01 for name in ("gemma4", "gemma4-causal", "gemma4-edge", "gemma4-moe", "gemma4-unified", "gemma4-listed",
                                          "gemma3n", "gemma3n-causal")}
# Half the last digit of a divergence that the reference prints, which exceeds the tolerance of the smallest ones.
PRINTED = 0.5e-6

# Case -> (checkpoint, tokens per chunk, chunks). Chunks are longer than the start of a window or of a stretched
# context.
CASES = {name: (name, 512, 4) for name in (
    "llama", "llama3", "llama-yarn", "mistral", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3-yarn", "qwen3moe",
    "phi3", "phi3-long", "olmo", "olmo2", "granite", "starcoder2", "gpt2", "gpt2-bare", "smollm3", "smollm3-deep",
    "seed_oss", "arcee", "olmo3", "olmo3-deep", "command-r", "cohere2", "phi2", "stablelm", "stablelm-parallel",
    "starcoder", "codeshell", "paddleocr", "nemotron", "orion", "ernie4_5", "qwen3moe-stacked", "llava", "internvl",
    "mistral3", "qwen2vl", "qwen3vl", "qwen3vlmoe", "gptneox", "gptneox-sequential", "bloom", "bloom-bare",
    "falcon", "falcon-groups", "mpt", "mpt-positions", "mpt-scaled", "refact", "jais", "jais2", "apertus", "exaone", "exaone4",
    "exaone4-deep", "exaone45", "spark2_5", "muse-glimmer", "glm4", "glm4v", "glm-ocr", "glm", "chatglm", "hunyuan", "hunyuan-vl",
    "openelm", "minicpm", "minicpm-long", "baichuan", "xverse", "internlm2", "internlm3", "deci", "deci-7b", "bitnet", "nanbeige",
    "nanbeige-loops", "nanbeige-loops-bare",
    "nemotron_h", "nemotron_h-f16", "nemotron_h_moe", "nemotron_h_moe-latent", "nemotron_h_puzzle", "granitehybrid",
    "minimax-01", "granitemoe", "granitemoe-shared", "granitehybrid-experts", "granitehybrid-attention",
    "granitehybrid-attention-experts", "bamba", "bamba-period",
    "mamba2", "mamba2-codestral", "mamba2-original", "falcon-h1", "falcon-h1-f16",
    "qwen35", "qwen35-f16", "qwen35-sparse", "qwen35moe", "qwen35moe-apart", "qwen3next",
    "lfm2", "lfm2-plain", "lfm2-vl", "lfm2-audio", "lfm2moe", "mamba", "mamba-old", "falcon-mamba", "jamba",
    "jamba-sparse", "rwkv6", "rwkv6-f16", "rwkv6-halved", "rwkv6qwen2", "rwkv6qwen2-plain", "rwkv7", "rwkv7-blocks", "rwkv7-fla",
    "rwkv7-fla-together", "arwkv7", "arwkv7-plain",
    "gpt-oss", "gpt-oss-mxfp4", "gpt-oss-f16", "deepseek", "deepseek2", "deepseek2-v2", "deepseek2-lite", "kimi-k25", "youtu", "glm4-flash",
    "deepseek2-ocr", "mistral4", "deepseek32", "deepseek32-dense",
    "glm-dsa", "glm-dsa-shared", "glm4moe", "solar-open", "glm4v-moe", "minimax-m2", "kimi-linear", "kimi-linear-f16", "bailingmoe3", "bailingmoe3-vl")}
# Blocks with a scale for each matrix or expert beside them.
CASES |= {name: (name, 512, 4) for name in ("llama-nvfp4", "qwen3moe-nvfp4", "qwen35-nvfp4", "nemotron_h_moe-nvfp4")}
CASES |= {name: (name, 1024, 3) for name in ("gemma1", "gemma2", "gemma3", "gemma3-deep", "gemma3-vl")}
# Ministral's queries grow from position 1024 on.
CASES |= {"ministral3": ("ministral3", 2048, 2)}
CASES |= {"phi3-beyond-4096": ("phi3-long", 4608, 2), "llama3-odd-context": ("llama3", 333, 5),
          # Not a multiple of the block of steps of a delta net.
          "qwen35-odd-context": ("qwen35", 333, 5),
          "kimi-linear-odd-context": ("kimi-linear", 333, 5), "refmodel": ("refmodel", 512, 8)}

# Mixtures of experts. Where there are windows, chunks are longer.
CASES |= {name: (name, 512, 4) for name in (
    "hy_v3", "hy_v3-f16", "bailingmoe", "bailingmoe-f16", "bailingmoe2", "bailingmoe2-f32", "sarvam", "ernie4_5-moe",
    "ernie4_5-moe-bare", "olmoe", "phi3-moe", "dots1", "dots1-sparse", "laguna", "laguna-elements", "exaone-moe",
    "exaone-moe-bare", "afmoe", "afmoe-bare", "mellum", "mellum-whole", "llama4-vision", "maple", "dbrx", "cohere2moe", "hunyuan-moe", "mimo2",
    "mimo2-fused", "step35", "step35-vision", "minimax-m3", "minimax-m3-vision",
    "cohere2moe-bare", "granite_swa", "granite_swa-experts", "grok", "grok1", "arctic")}
CASES |= {name: (name, 512, 4) for name in ("smallthinker", "smallthinker-whole", "grovemoe", "minicpm3",
                                             "qwen3moe-ties")}
# Rotated by the long factors.
CASES |= {"minicpm3-beyond-2048": ("minicpm3", 2304, 2)}
CASES |= {name: (name, 512, 4) for name in ("gemma4", "gemma4-causal", "gemma4-edge", "gemma4-unified", "gemma4-listed", "gemma3n", "gemma3n-causal")}
CASES |= {"gemma4-moe": ("gemma4-moe", 256, 4)}
# Llama 4 cuts texts into parts of 8192 tokens.
CASES |= {"llama4": ("llama4", 8704, 1)}

CASES |= parity_embeddings.CASES

# Only the reference's table of GELU is in f16.
EXACT = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
# Where several sequences are in a batch, the reference stores the position of the first one for all of them.
ONE_SEQUENCE = ("rwkv6qwen2", "arwkv7")
# The reference's last lines are sometimes lost; maximum number of runs.
TRIES = 20


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{Path(command[0]).name} fails with {done.returncode}: {' '.join(tail)}")
    return done


class Case:
    def __init__(self, options, name):
        self.o, self.name = options, name
        self.checkpoint, self.ctx, self.chunks = CASES[name]
        self.folder = options.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.f32, self.quantized, self.dequantized = (self.folder / f"{n}.gguf" for n in ("f32", "q", "dequantized"))
        self.sizes = ["-f", options.text, "-c", self.ctx, "--chunks", self.chunks]

    def reference(self, program, *arguments):
        # One thread: several wait for each other at every step, which takes minutes on a busy machine.
        batch = ["-b", self.ctx] if self.checkpoint.startswith(ONE_SEQUENCE) else []
        done = run([self.o.reference / program, "-t", 1, *EXACT, *batch, *arguments])
        return done.stdout + done.stderr

    def convert(self, checkpoint):
        """The F32 file. Blocks that the conversion keeps (NVFP4, MXFP4) are widened beside their scales, and say the same."""
        command = ["convert", checkpoint, "--outtype", "f32", "--pre", "gpt-2", "--outfile"]
        if not self.checkpoint.endswith(("nvfp4", "mxfp4")):
            run([self.o.ours, *command, self.f32])
            return
        stored = self.folder / "stored.gguf"
        run([self.o.ours, *command, stored])
        run([self.o.ours, "quantize", "--allow-requantize", stored, self.f32, "F32"])
        out = json.loads(run([self.o.ours, "kld", self.f32, stored, *self.sizes, "--force-context", "--json"]).stdout)
        if (kld := out["models"][0]["statistics"]["kld"]["value"]) > 1e-9:
            raise RuntimeError(f"blocks and their numbers differ by {kld} nats")

    def make(self):
        if self.checkpoint == "refmodel":
            checkpoint = Path(os.environ["QUANTIER_REFMODEL"])
        else:
            checkpoint = self.o.work / "checkpoints" / self.checkpoint
            if not checkpoint.exists():
                maker = Path(__file__).with_name("checkpoints.py")
                run([self.o.python, maker, "--lively", checkpoint.parent, self.checkpoint])
        self.convert(checkpoint)
        run([self.o.ours, "quantize", self.f32, self.quantized, "Q4_K_M"])
        run([self.o.ours, "quantize", "--allow-requantize", self.quantized, self.dequantized, "F32"])

    def ours(self):
        """Perplexity of the F32 file and KL divergence of the quantized one."""
        out = json.loads(run([self.o.ours, "kld", self.f32, self.quantized, *self.sizes, "--force-context", "--json",
                              "--save-logits", self.folder / "ours.kld"]).stdout)
        found = out["models"][0]["statistics"]
        return found["perplexity_base"]["value"], found["kld"]["value"]

    def ours_of_stored(self):
        """KL divergence of the quantized file from the reference's logits file."""
        out = json.loads(run([self.o.ours, "kld", "--logits", self.folder / "reference.kld", self.quantized, "-f",
                              self.o.text, "--chunks", self.chunks, "--json"]).stdout)
        return out["models"][0]["statistics"]["kld"]["value"]

    def reference_says(self, pattern, *arguments):
        for _ in range(TRIES):
            out = self.reference("llama-perplexity", "-c", self.ctx, *arguments)
            if found := re.search(pattern + r" +([0-9.]+)", out):
                return float(found[1])
        raise RuntimeError(f"llama-perplexity prints no '{pattern}'")

    def reference_perplexity(self):
        return self.reference_says("Final estimate: PPL =", "-m", self.f32, *self.sizes, "--kl-divergence-base",
                                   self.folder / "reference.kld")

    def reference_kld(self, base):
        return self.reference_says("Mean +KLD:", "-m", self.dequantized, "--kl-divergence", "--kl-divergence-base",
                                   self.folder / base)

    def imatrix(self):
        """The largest difference of a sum relative to its tensor's mean, and whether all counts agree."""
        theirs, ours = self.folder / "theirs.imatrix.gguf", self.folder / "ours.imatrix.gguf"
        self.reference("llama-imatrix", "-m", self.f32, *self.sizes, "--no-ppl", "--process-output", "-o", theirs)
        run([self.o.ours, "imatrix", "-m", self.f32, *self.sizes, "--process-output", "-o", ours])
        theirs, ours = tensors(theirs), tensors(ours)
        # The reference does not run the block for a further token: scripts/parity-nextn.py covers it.
        block = [n.split(".nextn.")[0] + "." for n in ours if n.endswith("nextn.eh_proj.weight.in_sum2")]
        ours = {n: v for n, v in ours.items() if n in theirs or not n.startswith(tuple(block))}
        if theirs.keys() != ours.keys():
            raise RuntimeError(f"imatrix: only one side has {sorted(theirs.keys() ^ ours.keys())[:3]}")
        worst, where, counts = 0.0, "", True
        for name, expected in theirs.items():
            if name.endswith(".counts"):
                counts &= np.array_equal(expected.flatten(), ours[name].flatten())
                continue
            difference = np.abs(expected.flatten() - ours[name].flatten()).max() / expected.mean()
            if not difference <= worst:
                worst, where = float(difference), name.removesuffix(".in_sum2")
        return worst, where, counts

    def line(self):
        """True if all values are within tolerance, and the values."""
        self.make()
        expected_ppl = self.reference_perplexity()
        ppl, kld = self.ours()
        stored = self.ours_of_stored()
        expected_kld, of_ours = self.reference_kld("reference.kld"), self.reference_kld("ours.kld")
        sums, where, counts = self.imatrix()
        bound = SUMS_OF_TABLE.get(self.name, SUMS)
        off = lambda found, expected: found / expected - 1
        near = lambda found, expected: abs(found - expected) <= KLD * expected + PRINTED
        good = [abs(off(ppl, expected_ppl)) <= PPL, sums <= bound and counts, near(kld, expected_kld),
                near(stored, expected_kld), near(kld, of_ours)]
        return all(good), (
            f"PPL {ppl:.4f} / {expected_ppl:.4f} ({off(ppl, expected_ppl):+.4%}); imatrix off by {sums:.4%}"
            f"{' in ' + where if sums > bound else ''}, counts {'identical' if counts else 'DIFFER'}; KLD {kld:.6f} / "
            f"{expected_kld:.6f} ({off(kld, expected_kld):+.3%}), with its logits file {off(stored, expected_kld):+.3%}, "
            f"it with ours {off(kld, of_ours):+.3%}")


def tensors(path):
    return {t.name: np.array(t.data, dtype=np.float64) for t in gguf.GGUFReader(path).tensors}


def arguments():
    parser = argparse.ArgumentParser()
    for name in ("reference", "ours", "embed", "text", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("names", nargs="*")
    return parser.parse_args()


def main():
    options = arguments()
    if unknown := set(options.names) - set(CASES):
        sys.exit(f"parity-engine: no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    count = {True: 0, False: 0}
    for name in options.names or CASES:
        try:
            kind = parity_embeddings.EmbeddingCase if name in parity_embeddings.CASES else Case
            good, figures = kind(options, name).line()
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            good, figures = False, str(error)
        count[good] += 1
        print(f"{'within' if good else 'not   '}  {name}: {figures}", flush=True)
    print(f"{count[True]} within, {count[False]} not")
    sys.exit(0 if count[False] == 0 else 1)


if __name__ == "__main__":
    main()
