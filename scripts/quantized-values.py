#!/usr/bin/env python3
"""Checks the weights that `quantier convert` makes of quantized checkpoints which the reference refuses, and of those that
it reads, against the formats' own arithmetic, in numpy and f32.

    scripts/quantized-values.py REFERENCE WORK QUANTIER [NAME ...]

REFERENCE is the source of llama.cpp (scripts/reference.sh --source), WORK a directory with checkpoints/ in it
(scripts/checkpoints.py). Each checkpoint is written once more with its weights as f32, computed here; the reference
converts that to f32, `quantier convert --widen --outtype f32` converts the quantized one, and metadata and tensors must be
identical, whatever their order. Files of 4-bit floats that keep them must hold the same numbers by gguf-py. Prints one line for each, then
`N identical, N different`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from quantized import REFUSED
from safetensors.torch import load_file, save_file

F32 = np.float32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], F32)


def number(t):
    return t.float().numpy().astype(F32)


def string_of_bits(words, bits, axis):
    """Integers of so many bits along an axis of words, lowest bits first."""
    words = np.moveaxis(words.numpy().view(np.uint32), axis, -1).astype(np.uint64)
    string = ((words[..., None] >> np.arange(32, dtype=np.uint64)) & 1).reshape(*words.shape[:-1], -1)
    codes = string.reshape(*string.shape[:-1], -1, bits) << np.arange(bits, dtype=np.uint64)
    return np.moveaxis(codes.sum(-1), -1, axis).astype(np.int64)


def fields(words, bits, axis, count):
    """Integers of so many bits along an axis, as many in a word as fit whole."""
    words = np.moveaxis(words.numpy().view(np.uint32), axis, -1).astype(np.int64)
    codes = (words[..., None] >> (np.arange(32 // bits) * bits)) & (2 ** bits - 1)
    return np.moveaxis(codes.reshape(*words.shape[:-1], -1)[..., :count], -1, axis)


def fp8(t, codes, scale):
    w, s = number(t[codes]), number(t[scale])
    if s.ndim < 2:
        return w * s.reshape(-1, *[1] * (w.ndim - 1)) if s.size > 1 else w * s.reshape(())
    for axis in range(2):
        each = next((n for n in (1, 96, 80, 128, 64, w.shape[axis]) if -(-w.shape[axis] // n) == s.shape[axis]), None)
        s = np.repeat(s, each, axis).take(range(w.shape[axis]), axis)
    return w * s


def fp4(codes, scale, whole):
    codes = codes.numpy()
    values = E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)]
    group = values.shape[-1] // scale.shape[-1]
    return values * np.repeat(scale * whole, group, -1)


def widened(config, t):
    """The weights that all tensors of a checkpoint stand for."""
    q, out, used = config["quantization_config"], {}, set()
    method = q["quant_method"]

    def use(*names):
        used.update(names)

    for name in t:
        base = name.removesuffix(".weight_packed").removesuffix(".qweight").removesuffix(".weight_scale").removesuffix(".weight")
        weight = base + ".weight"
        if name.endswith(".qweight"):
            scales, use_ = number(t[base + ".scales"]), [name, base + ".scales", base + ".qzeros", base + ".g_idx"]
            bits = q["bits"]
            if method == "awq":
                places = [0, 4, 1, 5, 2, 6, 3, 7]
                unmixed = lambda x: x.reshape(x.shape[0], -1, 8)[:, :, places].reshape(x.shape)
                codes = unmixed(fields(t[name], 4, 1, scales.shape[1]))
                zeros = unmixed(fields(t[base + ".qzeros"], 4, 1, scales.shape[1]))
            else:
                codes = string_of_bits(t[name], bits, 0)
                zeros = string_of_bits(t[base + ".qzeros"], bits, 1) + (q.get("checkpoint_format", "gptq") == "gptq")
            index = t[base + ".g_idx"].numpy() if base + ".g_idx" in t else np.arange(len(codes)) // q["group_size"]
            out[weight] = ((codes - zeros[index]).astype(F32) * scales[index]).T
            use(*use_)
        elif name.endswith(".weight_packed") and t[name].dtype == torch.int32:
            rows, columns = t[weight + "_shape"].tolist()
            bits = q["config_groups"]["group_0"]["weights"]["num_bits"]
            scale, codes = number(t[weight + "_scale"]), fields(t[name], bits, 1, columns)
            zeros = np.full(scale.shape, 2 ** (bits - 1))
            if weight + "_zero_point" in t:
                zeros = fields(t[weight + "_zero_point"], bits, 0, rows)
            index = np.arange(columns) // -(-columns // scale.shape[1])
            if weight + "_g_idx" in t:
                index = t[weight + "_g_idx"].numpy()
            out[weight] = (codes - zeros[:, index]).astype(F32) * scale[:, index]
            use(name, *(weight + n for n in ("_scale", "_shape", "_zero_point", "_g_idx")))
        elif name.endswith(".weight_packed") or name.endswith(".weight") and t[name].dtype == torch.uint8 \
                and name + "_scale_2" in t:
            scale, whole = t[weight + "_scale"], F32(1)
            if weight + "_global_scale" in t:
                whole = F32(1) / number(t[weight + "_global_scale"]).reshape(())
            elif weight + "_scale_2" in t:
                whole = number(t[weight + "_scale_2"]).reshape(())
            scale = np.exp2(number(scale) - F32(127)) if scale.dtype == torch.uint8 else number(scale)
            base = weight.removesuffix(".weight")
            out[weight] = fp4(t[weight + "_packed"] if weight + "_packed" in t else t[weight], scale, whole)
            use(name, base + ".input_scale", base + ".input_global_scale",
                *(weight + n for n in ("_scale", "_scale_2", "_global_scale")))
        elif name.endswith(".weight_scale") and t.get(weight) is not None and t[weight].dtype == torch.uint8 \
                and method == "bitnet":
            packed = t[weight].numpy()
            codes = np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).astype(F32) - F32(1)
            out[weight] = codes / number(t[name]).reshape(())
            use(name)
        elif name.endswith(".weight_scale") and t.get(weight) is not None and t[weight].element_size() == 1 \
                and t[weight].dtype != torch.uint8:
            if weight + "_zero_point" in t:
                out[weight] = (number(t[weight]) - number(t[weight + "_zero_point"])) * number(t[name])
            else:
                out[weight] = fp8(t, weight, name)
            use(name, weight + "_zero_point")
    for name, w in t.items():
        if name not in out and name not in used and not name.endswith((".input_scale", ".k_scale", ".v_scale")):
            out[name] = w
    return {n: torch.from_numpy(np.ascontiguousarray(w)) if isinstance(w, np.ndarray) else w for n, w in out.items()}


def plain(source, folder):
    """The same checkpoint, not quantized."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        elif file.name not in ("config.json", "hf_quant_config.json") and "index" not in file.name:
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    side = source / "hf_quant_config.json"
    more = json.loads(side.read_text())["quantization"] if side.is_file() else {}
    tensors = widened({"quantization_config": more | config["quantization_config"]}, tensors)
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same_content(*files):
    from gguf import GGUFReader
    a, b = (GGUFReader(file) for file in files)
    tensors = [{t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in r.tensors} for r in (a, b)]
    keys = [{k: [p.tobytes() for p in f.parts] for k, f in r.fields.items()} for r in (a, b)]
    return tensors[0] == tensors[1] and keys[0] == keys[1]


def same_numbers(kept, wide):
    """Whether a file that keeps 4-bit floats holds the numbers of one that does not; tensors of both in any order."""
    from gguf import GGUFReader, quants
    kept, wide = ({t.name: t for t in GGUFReader(file).tensors} for file in (kept, wide))
    fine, count = True, 0
    for name, tensor in wide.items():
        other = kept[name]
        if other.tensor_type == tensor.tensor_type:
            continue
        numbers, scale = quants.dequantize(other.data, other.tensor_type), kept.get(name.replace(".weight", ".scale"))
        if scale is not None:
            numbers = numbers * scale.data.reshape(-1, *[1] * (numbers.ndim - 1))
        count += 1
        fine &= np.allclose(numbers, tensor.data, rtol=0 if scale is None else 1e-6, atol=0)
    return fine and count > 0


def main():
    reference, work, quantier = (Path(a).resolve() for a in sys.argv[1:4])
    identical = different = 0
    names = sys.argv[4:] or list(REFUSED)
    run = lambda *command, **more: subprocess.run(command, capture_output=True, text=True, **more)
    jobs = []
    for name in names:
        folder = work / "plain" / name
        shutil.rmtree(folder, ignore_errors=True)
        plain(work / "checkpoints" / name, folder)
        jobs.append(f"{folder}\t--outfile\t{work / name}-expected.gguf\t--outtype\tf32\n")
    made = run(sys.executable, Path(__file__).with_name("convert-reference.py"), reference, input="".join(jobs))
    if "failed:" in made.stderr:
        sys.exit(f"the reference failed: {made.stderr[-2000:]}")
    sys.path.insert(0, str(reference / "gguf-py"))
    for name in names:
        source = work / "checkpoints" / name
        expected, ours, kept = (work / f"{name}-{part}.gguf" for part in ("expected", "ours", "kept"))
        more = ["--outtype", "f32", "--pre", "gpt-2"]
        mine = [run(quantier, "convert", source, "-o", ours, "--widen", *more), run(quantier, "convert", source, "-o", kept, *more)]
        fine = not any(r.returncode for r in mine) and same_content(expected, ours)
        if fine and kept.read_bytes() != ours.read_bytes():
            fine = same_numbers(kept, ours)
        identical, different = identical + fine, different + (not fine)
        print("identical " if fine else "different ", name, "" if fine else mine[0].stderr[-300:])
    print(f"{identical} identical, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
