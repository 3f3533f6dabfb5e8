#!/usr/bin/env python3
"""Makes LoRA adapters, as PEFT saves them, of the checkpoints that scripts/checkpoints.py makes.

    scripts/adapters.py CHECKPOINTS OUT [NAME ...]
    scripts/adapters.py --testdata      testdata/adapter, of the reference model

CHECKPOINTS has a directory per checkpoint; OUT gets a directory NAME/CASE per adapter. For every checkpoint: an adapter of
each kind of matrix (the same module in all layers, all experts), one of all norms, and one of the embeddings. Ranks and
types rotate. Of `llama`, `phi3` and `mixtral` there are special cases too: mixed types, pickled files, scales,
activated adapters, adapters that lack factors.

Needs torch and safetensors. Equal versions of this script make equal files.
"""

import json
import re
import sys
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RANKS = [8, 32, 4, 64]
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embeddings", "embedding", "tok_embeddings", "embed_in")


def shapes(checkpoint):
    """Shapes of a checkpoint's tensors by name, in the order of its files."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                found[name] = tensors.get_slice(name).get_shape()
    return found


def random(name, shape, dtype):
    gen = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weights = torch.randn(shape, generator=gen) * 0.1
    # Edge cases of rounding.
    flat = weights.flatten()
    odd = torch.tensor([0.0, -0.0, 1e-8, -6e-8, 1.0009765625])
    flat[: len(odd)] = odd[: flat.numel()]
    return weights.to(dtype)


def pair(module, shape, rank, dtype, prefix="base_model.model."):
    """The factors of a matrix."""
    rows, columns = shape
    name = prefix + module
    return {f"{name}.lora_A.weight": random(name + "A", (rank, columns), dtype),
            f"{name}.lora_B.weight": random(name + "B", (rows, rank), dtype)}


def embedding(module, shape, rank, dtype):
    """The factors of embeddings."""
    rows, columns = shape
    name = "base_model.model." + module
    return {f"{name}.lora_embedding_A": random(name + "A", (rank, rows), dtype),
            f"{name}.lora_embedding_B": random(name + "B", (columns, rank), dtype)}


def write(folder, tensors, pickled=False, **more):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "lora_alpha": 16, "r": 8, "base_model_name_or_path": "org/base", "bias": "none",
              "target_modules": ["q_proj"], "use_rslora": False, "use_dora": False} | more
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def kinds(found):
    """Names of matrices by kind. All matrices of experts are one: the reference wants those of a layer together."""
    by_kind = {}
    for name, shape in found.items():
        # The reference leaves out what is beside the text model, and writes files without tensors.
        if len(shape) == 2 and name.endswith(".weight") and "visual" not in name and "projector" not in name:
            module = name.removesuffix(".weight")
            kind = re.sub(r"\d+", "N", module)
            kind = re.sub(r"(\.experts\.N)\..*", r"\1", kind)
            by_kind.setdefault(kind, []).append((module, shape))
    return by_kind


def every_kind(out, found):
    """One adapter of each kind of matrix."""
    for number, (kind, modules) in enumerate(kinds(found).items()):
        rank, dtype = RANKS[number % len(RANKS)], DTYPES[number % len(DTYPES)]
        if out.name.startswith("gpt2") and "_h_" in kind.replace(".", "_"):
            # Conv1D stores [columns, rows]; its factors are those of [rows, columns].
            modules = [(module, shape[::-1]) for module, shape in modules]
        make = embedding if modules[0][0].rsplit(".")[-1] in EMBEDDINGS else pair
        tensors = {}
        for module, shape in modules:
            tensors |= make(module, shape, rank, dtype)
        write(out / kind.replace(".", "_"), tensors)


def norms(out, found):
    """The norms of a model, with the factors of one matrix."""
    vectors = {name: shape for name, shape in found.items()
               if len(shape) == 1 and name.endswith("weight") and ("_layernorm" in name or ".norm" in name)}
    matrices = [name for kind in kinds(found) for name, _ in kinds(found)[kind] if name.endswith("o_proj")]
    if vectors and matrices:
        tensors = pair(matrices[0], found[matrices[0] + ".weight"], 8, torch.bfloat16)
        tensors |= {"base_model.model." + name: random(name, shape, torch.bfloat16) for name, shape in vectors.items()}
        write(out / "norms", tensors)


def special(out, found):
    """Settings, types and files."""
    module = "model.layers.0.self_attn.o_proj"
    shape = found[module + ".weight"]
    plain = pair(module, shape, 8, torch.float32)
    a, b = plain
    write(out / "rslora", plain, use_rslora=True)
    write(out / "alphas", plain, alpha_pattern={"o_proj": 4}, lora_alpha=0.3)
    write(out / "alora", plain, alora_invocation_tokens=[3, 1, 4])
    write(out / "pickled", plain, pickled=True)
    write(out / "mixed", {a: plain[a].half(), b: plain[b].bfloat16()})
    write(out / "double", {a: plain[a].double(), b: plain[b].double()})
    write(out / "bare", pair(module, shape, 8, torch.float16, prefix=""))
    write(out / "base-layer", plain | {"base_model.model.model.embed_tokens.base_layer.weight": torch.zeros(4, 4)})
    write(out / "other-order", {f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{factor}.weight": plain[key].clone()
                                for layer in (1, 0) for factor, key in (("B", b), ("A", a))})
    write(out / "two-types", pair("model.layers.0.self_attn.o_proj", shape, 8, torch.float16)
          | pair("model.layers.1.self_attn.o_proj", shape, 8, torch.float32))
    for size in ("1B", "4k"):
        write(out / f"Name-{size}-lora-v2", plain)
    (out / "Name-4k-lora-v2" / "README.md").write_text(
        "---\nbase_model: org/Base-7B-Chat\nlibrary_name: peft\nlicense: mit\ntags:\n- lora\n---\nAn adapter.\n")
    # What neither side converts.
    write(out / "no-alpha", plain, lora_alpha=None)
    write(out / "half", {a: plain[a]})
    write(out / "ranks", {a: plain[a], b: plain[b][:, :4].contiguous()})
    write(out / "dora", plain | {"base_model.model." + module + ".lora_magnitude_vector": torch.ones(shape[0])}, use_dora=True)
    write(out / "head", plain | {"base_model.model.lm_head.weight": torch.zeros(found["lm_head.weight"])})
    write(out / "unknown", plain | pair("model.layers.0.self_attn.x_proj", shape, 8, torch.float32))


def some_experts(out, found):
    """The factors of one expert only."""
    modules = [name.removesuffix(".weight") for name in found if ".experts.0.w1." in name]
    write(out / "some-experts", pair(modules[0], found[modules[0] + ".weight"], 8, torch.float32))


def testdata():
    """An adapter of two matrices of the reference model's first layer."""
    here = Path(__file__).resolve().parent.parent / "testdata"
    found = shapes(here / "refmodel")
    tensors = {}
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        module = "model.layers.0." + name
        tensors |= pair(module, found[module + ".weight"], 4, torch.bfloat16)
    write(here / "adapter", tensors, lora_alpha=8, r=4, target_modules=["q_proj", "down_proj"],
          base_model_name_or_path="testdata/refmodel")


def main():
    if sys.argv[1:] == ["--testdata"]:
        testdata()
        return
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    checkpoints, out = map(Path, sys.argv[1:3])
    for name in sys.argv[3:] or sorted(path.name for path in checkpoints.iterdir()):
        found = shapes(checkpoints / name)
        every_kind(out / name, found)
        norms(out / name, found)
        if name == "llama":
            special(out / name, found)
        if name == "mixtral":
            some_experts(out / name, found)


if __name__ == "__main__":
    main()
