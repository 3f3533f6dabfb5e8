#!/usr/bin/env python3
"""The cases of scripts/parity-archs.sh; see there."""

import collections
import importlib
import math
import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
engine = importlib.import_module("parity-engine")

# Tokens per chunk, and chunks. The models announce a context of 256.
SIZES = (128, 4)
# The vocabulary: one token per printable character of ASCII, and a line break.
SPECIAL = ["<unk>", "<s>", "</s>", "<0x0A>"]
CHARACTERS = ["\u2581"] + [chr(c) for c in range(33, 127)]
UNKNOWN, CONTROL, BYTE, NORMAL, UNUSED = 2, 3, 6, 1, 5


# llama.cpp does not read the epsilon of Qwen 2 VL, and its norms have none.
WITHOUT_EPSILON = "qwen2vl.attention.layer_norm_rms_epsilon"


def is_used(key, value):
    """False for the values that stand for "none" in keys that the reference saves for all architectures."""
    return isinstance(value, bool) or value not in (0, -math.inf) or key == WITHOUT_EPSILON


# Tensors that the reference loads of these architectures and does not use, and that its converter never writes, by the end of
# their names: biases, a norm of keys without one of queries, divisors of RoPE angles.
QKV = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
UNUSED_TENSORS = {"ernie4_5": "attn_output.bias", "ernie4_5-moe": "attn_output.bias", "qwen2vl": "output.bias",
                  "falcon-h1": ("attn_output.bias", "rope_freqs.weight"), "kimi-linear": QKV, "bailingmoe3": QKV,
                  "mimo2": QKV, "refact": ("rope_freqs.weight", "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
                  "mpt": ("attn_k_norm.weight", "attn_k_norm.bias")}


def numbers(architecture, name, data):
    """The numbers of a tensor in F32: norms around 1 instead of 0, so that all parts of a layer matter, and divisors (of
    RoPE's angles, of MPT's activations) of at least 1. None for tensors without use, and for the scales of NVFP4's blocks, which the test gives all linears,
    also beside biases, where the reference applies them to both."""
    if name.endswith((".scale", ".input_scale")) or name.endswith(UNUSED_TENSORS.get(architecture, "\0")):
        return None
    data = np.array(data, dtype=np.float32)
    if name.startswith("rope_f") or ".rope_f" in name or name.endswith(".scales"):
        return 1 + np.abs(data)
    is_norm = "norm" in name and name.endswith(".weight") and data.squeeze().ndim <= 2
    return data + 1 if is_norm else data


def sane(source, target):
    """Copies a model with a vocabulary of characters in place of the test's own, keys that are in use, and lively numbers."""
    reader = gguf.GGUFReader(source)
    text = lambda key: reader.fields[key].contents()
    writer = gguf.GGUFWriter(target, text("general.architecture"))
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.")) or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        if field.types[0] == gguf.GGUFValueType.ARRAY and inner is None:
            # An empty array.
            continue
        if inner is None and not is_used(name, field.contents()):
            continue
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    tokens = SPECIAL + CHARACTERS
    kinds = [UNKNOWN, CONTROL, CONTROL, BYTE] + [NORMAL] * len(CHARACTERS)
    unused = len(text("tokenizer.ggml.tokens")) - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + [f"unused {i}" for i in range(unused)])
    writer.add_token_scores([0.0] * (len(tokens) + unused))
    writer.add_token_types(kinds + [UNUSED] * unused)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    for tensor in reader.tensors:
        data = numbers(text("general.architecture"), tensor.name, tensor.data)
        if data is not None:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Refused(Exception):
    """Quantier does not run the model, and says why."""


class Case(engine.Case):
    def __init__(self, options, name):
        engine.CASES[name] = (name, *SIZES)
        super().__init__(options, name)

    def make(self):
        sane(self.o.work / "models" / f"{self.name}.gguf", self.f32)
        try:
            engine.run([self.o.ours, "perplexity", "-m", self.f32, *self.sizes, "--force-context", "--json"])
        except RuntimeError as error:
            # The reference first: what it cannot run either is no refusal of ours.
            self.reference_perplexity()
            raise Refused(str(error)) from None
        engine.run([self.o.ours, "quantize", self.f32, self.quantized, "Q4_K_M"])
        engine.run([self.o.ours, "quantize", "--allow-requantize", self.quantized, self.dequantized, "F32"])


def outcome(options, name):
    """The kind of the outcome, and its text."""
    try:
        good, figures = Case(options, name).line()
        return "within" if good else "not", figures
    except Refused as refusal:
        return "refused", str(refusal)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        return ("unusable" if str(error).startswith("llama-") else "not"), str(error)


def main():
    options = engine.arguments()
    text = options.text.read_text(errors="ignore")
    known = set("".join(CHARACTERS[1:])) | {" ", "\n"}
    options.text.write_text("".join(c if c in known else " " for c in text))
    names = options.names or sorted(path.stem for path in (options.work / "models").glob("*.gguf"))
    count = collections.Counter()
    for name in names:
        kind, text = outcome(options, name)
        count[kind] += 1
        print(f"{kind:<9} {name}: {text}", flush=True)
    print(", ".join(f"{count[kind]} {kind}" for kind in ("within", "not", "refused", "unusable")))
    sys.exit(0 if count["not"] == 0 else 1)


if __name__ == "__main__":
    main()
