"""Quantizes the weights of tiny checkpoints as the tools that people use store them. checkpoints.py writes them,
quantized-values.py computes what they stand for.

Each function takes the config, which it completes, and the tensors, and returns other tensors. Matrices of layers are
quantized; embeddings, norms, routers and the output matrix stay.
"""

import json

import torch

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def is_linear(name, w):
    parts = (".mlp.gate.", ".mixer.gate.", "shared_expert_gate", "block_sparse_moe.gate.", "conv1d", "norm", ".hc_", "hyper_connection",
             "index_", "ngram_")
    return w.dim() >= 2 and ".layers." in name and not any(part in name for part in parts)


def linears(tensors, quantize, keep=lambda name: False):
    """`quantize(name, weights)` gives the tensors that stand for one."""
    out = {}
    for name, w in tensors.items():
        out |= quantize(name, w.float()) if is_linear(name, w) and not keep(name) else {name: w}
    return out


# FP8


def to_fp8(w, scale, dtype=torch.float8_e4m3fn):
    return (w / scale).clamp(-448.0, 448.0).to(dtype)


def blocks(w, rows, columns):
    """The largest magnitude of every block, and the same for every weight."""
    r, c = w.shape[-2:]
    padded = torch.nn.functional.pad(w, (0, -c % columns, 0, -r % rows))
    shape = padded.shape[:-2] + (padded.shape[-2] // rows, rows, padded.shape[-1] // columns, columns)
    largest = padded.reshape(shape).abs().amax(dim=(-3, -1))
    each = largest.repeat_interleave(rows, -2).repeat_interleave(columns, -1)[..., :r, :c]
    return largest, each


def fp8_block(rows, columns, scale_dtype=torch.float32):
    def quantize(config, tensors):
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [rows, columns]}

        def one(name, w):
            largest, each = blocks(w, rows, columns)
            scale = (largest / 448.0).clamp(min=1e-6).to(scale_dtype)
            base = name.removesuffix(".weight")
            return {name: to_fp8(w, (each / 448.0).clamp(min=1e-6)), name + "_scale_inv": scale,
                    base + ".activation_scale": torch.tensor(0.5)}
        return linears(tensors, one)
    return quantize


def fp8_whole(rows, scale_dtype=torch.float32, dtype=torch.float8_e4m3fn):
    """Scales of rows, or of tensors."""
    def quantize(config, tensors):
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": None}

        def one(name, w):
            scale = ((w.abs().amax(-1, keepdim=True) if rows else w.abs().amax()) / 448.0).to(scale_dtype)
            return {name: to_fp8(w, scale.float(), dtype), name + "_scale_inv": scale}
        return linears(tensors, one)
    return quantize


def mistral_fp8(config, tensors):
    config["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    out = {}
    for name, w in tensors.items():
        if w.dim() != 2 or not name.startswith("layers."):
            out[name] = w
            continue
        scale = w.float().abs().amax() / 448.0
        base = name.removesuffix("weight")
        out |= {name: to_fp8(w.float(), scale), base + "qscale_weight": scale, base + "qscale_act": torch.tensor(0.25)}
    return out


def modelopt_fp8(config, tensors):
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8"}

    def one(name, w):
        base, scale = name.removesuffix(".weight"), w.abs().amax() / 448.0
        more = {base + ".k_scale": torch.tensor([0.5])} if name.endswith("k_proj.weight") else {}
        more |= {base + ".v_scale": torch.tensor([0.5])} if name.endswith("v_proj.weight") else {}
        return {name: to_fp8(w, scale), name + "_scale": scale, base + ".input_scale": torch.tensor(0.125), **more}
    return linears(tensors, one)


# compressed-tensors


def ct(config, quant_format, *groups, formats=None):
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": quant_format, "quantization_status": "compressed",
        "config_groups": {f"group_{i}": {"targets": ["Linear"], "weights": weights}
                          | ({"format": formats[i]} if formats else {}) for i, weights in enumerate(groups)}}


def ct_fp8(strategy, rows=128, columns=128):
    def quantize(config, tensors):
        weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "group_size": None}
        if strategy == "block":
            weights["block_structure"] = [rows, columns]
        ct(config, "float-quantized", weights)
        return linears(tensors, lambda name, w: ct_fp8_one(name, w, strategy, rows, columns))
    return quantize


def ct_fp8_one(name, w, strategy, rows=128, columns=128):
    if strategy == "block":
        largest, each = blocks(w, rows, columns)
        scale, each = (largest / 448.0).bfloat16(), (each / 448.0).bfloat16().float()
    elif strategy == "tensor":
        scale = each = (w.abs().amax() / 448.0).reshape(1)
    else:
        scale = (w.abs().amax(-1, keepdim=True) / 448.0).bfloat16()
        each = scale.float()
    return {name: to_fp8(w, each.clamp(min=1e-12)), name + "_scale": scale}


def ct_int8(zeros=False):
    def quantize(config, tensors):
        ct(config, "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": not zeros,
                                     "group_size": None})

        def one(name, w):
            scale = (w.abs().amax(-1, keepdim=True) / 100.0).bfloat16()
            zero = (torch.arange(w.shape[0]).reshape(-1, 1) % 7 - 3) * zeros
            codes = (w / scale.float()).round().add(zero).clamp(-128, 127).to(torch.int8)
            more = {name + "_zero_point": zero.to(torch.int8)} if zeros else {}
            return {name: codes, name + "_scale": scale, **more}
        return linears(tensors, one)
    return quantize


def groups_of(w, size, bits, zeros, dtype):
    """Codes from 0 on, scales and zero points of groups of columns."""
    rows, columns = w.shape
    index = torch.arange(columns) // size
    count = int(index[-1]) + 1
    padded = torch.nn.functional.pad(w, (0, count * size - columns)).reshape(rows, count, size)
    if zeros:
        low, high = padded.amin(-1).clamp(max=0), padded.amax(-1).clamp(min=0)
        scale = ((high - low) / (2 ** bits - 1)).clamp(min=1e-5).to(dtype)
        zero = (-low / scale.float()).round().clamp(0, 2 ** bits - 1)
    else:
        scale = (padded.abs().amax(-1) / (2 ** (bits - 1) - 1 + (bits == 2))).clamp(min=1e-5).to(dtype)
        zero = torch.full_like(scale.float(), 2 ** (bits - 1))
    codes = (w / scale.float()[:, index]).round() + zero[:, index]
    return codes.clamp(0, 2 ** bits - 1).to(torch.int64), scale, zero.to(torch.int64), index


def to_words(codes, bits, dim):
    """Codes along a dimension into words of 32 bits, as many whole ones as fit, the last word filled with zeros."""
    codes = codes.movedim(dim, -1)
    per_word = 32 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_word))
    codes = codes.reshape(*codes.shape[:-1], -1, per_word)
    words = (codes << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(words >= 2 ** 31, words - 2 ** 32, words).to(torch.int32).movedim(-1, dim).contiguous()


def to_bits(codes, bits, dim):
    """As `to_words`, as one string of bits."""
    codes = codes.movedim(dim, -1)
    string = ((codes.unsqueeze(-1) >> torch.arange(bits)) & 1).reshape(*codes.shape[:-1], -1, 32)
    words = (string << torch.arange(32)).sum(-1)
    return torch.where(words >= 2 ** 31, words - 2 ** 32, words).to(torch.int32).movedim(-1, dim).contiguous()


def ct_packed(bits, size, zeros=False, dtype=torch.bfloat16, unsorted=False):
    def quantize(config, tensors):
        ct(config, "pack-quantized", {"num_bits": bits, "type": "int", "strategy": "group" if size else "channel",
                                      "symmetric": not zeros, "group_size": size})
        return linears(tensors, lambda name, w: ct_packed_one(name, w, bits, size, zeros, dtype, unsorted))
    return quantize


def ct_packed_one(name, w, bits, size, zeros, dtype=torch.bfloat16, unsorted=False):
    order = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(7)) if unsorted else None
    codes, scale, zero, index = groups_of(w if order is None else w[:, order], size or w.shape[1], bits, zeros, dtype)
    more = {}
    if order is not None:
        back = torch.argsort(order)
        codes, more = codes[:, back], {name + "_g_idx": index[back].to(torch.int32)}
    if zeros:
        more[name + "_zero_point"] = to_words(zero, bits, 0)
    return {name + "_packed": to_words(codes, bits, 1), name + "_scale": scale,
            name + "_shape": torch.tensor(w.shape, dtype=torch.int64), **more}


# 4-bit floats


def to_e2m1(x):
    """The nearest codes, two in a byte."""
    magnitude = (x.abs().unsqueeze(-1) - E2M1).abs().argmin(-1)
    codes = (magnitude | ((x < 0).to(torch.int64) << 3)).reshape(*x.shape[:-1], -1, 2)
    return (codes[..., 0] | codes[..., 1] << 4).to(torch.uint8)


def nvfp4(w, unit=False):
    """Codes, scales of 16 columns, the scale of the tensor."""
    whole = torch.tensor(1.0) if unit else w.abs().amax() / (6.0 * 448.0)
    largest = w.reshape(*w.shape[:-1], -1, 16).abs().amax(-1)
    scale = (largest / 6.0 / whole).clamp(min=2.0 ** -9, max=448.0).to(torch.float8_e4m3fn)
    return to_e2m1(w / (scale.float() * whole).repeat_interleave(16, -1)), scale, whole


def modelopt_nvfp4(unit=False, algorithm="NVFP4", side_file=True, mixed=False, input_scale=True, mtp=True):
    def quantize(config, tensors):
        inner = {"quant_algo": "MIXED_PRECISION" if mixed else algorithm, "exclude_modules": ["lm_head"]}
        layers = {}

        def one(name, w):
            base = name.removesuffix(".weight")
            if mixed and "self_attn" in name:
                scale = w.abs().amax() / 448.0
                layers[base] = {"quant_algo": "FP8"}
                return {name: to_fp8(w, scale), name + "_scale": scale, base + ".input_scale": torch.tensor(0.125)}
            # The reference wants all experts of a layer in one form.
            if mixed and ".layers.1." in name and ("down_proj" in name or ".experts." in name):
                return {name: w.bfloat16()}
            if name.startswith("mtp.") and not mtp:
                return {name: w.bfloat16()}
            weights_only = mixed and (".layers.1." in name or "gate_proj" in name)
            layers[base] = {"quant_algo": "W4A16_NVFP4" if weights_only else "NVFP4", "group_size": 16}
            codes, scale, whole = nvfp4(w, unit)
            out = {name: codes, name + "_scale": scale, name + "_scale_2": whole}
            if input_scale:
                out[base + ".input_scale"] = torch.tensor(1.0) if unit else 0.01 + w[0, 0].abs()
            return out
        out = linears(tensors, one)
        if mixed:
            inner["quantized_layers"] = layers
        config["quantization_config"] = {"quant_method": "modelopt"} | ({} if side_file else inner)
        files = {"hf_quant_config.json": {"producer": {"name": "modelopt", "version": "0.29"}, "quantization": inner}}
        return (out, files) if side_file else out
    return quantize


def ct_nvfp4_one(name, w):
    codes, scale, whole = nvfp4(w)
    base = name.removesuffix(".weight")
    return {name + "_packed": codes, name + "_scale": scale, name + "_global_scale": (1.0 / whole).reshape(1),
            base + ".input_global_scale": torch.tensor([37.5])}


NVFP4_GROUP = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}


def ct_nvfp4(config, tensors):
    ct(config, "nvfp4-pack-quantized", NVFP4_GROUP)
    return linears(tensors, ct_nvfp4_one)


def ct_nvfp4_mixed(config, tensors):
    """FP8 in rows beside NVFP4, which the reference refuses."""
    fp8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "group_size": None}
    ct(config, "mixed-precision", NVFP4_GROUP, fp8, formats=["nvfp4-pack-quantized", "float-quantized"])
    return linears(tensors, lambda name, w: ct_fp8_one(name, w, "channel") if "self_attn" in name else ct_nvfp4_one(name, w))


def mxfp4(w):
    largest = w.reshape(*w.shape[:-1], -1, 32).abs().amax(-1)
    exponent = (torch.floor(torch.log2(largest.clamp(min=2.0 ** -100))) - 2 + 127).clamp(1, 254)
    scale = torch.exp2(exponent - 127)
    return to_e2m1(w / scale.repeat_interleave(32, -1)), exponent.to(torch.uint8)


def ct_mxfp4(config, tensors):
    ct(config, "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32,
                                        "symmetric": True})

    def one(name, w):
        codes, scale = mxfp4(w)
        return {name + "_packed": codes, name + "_scale": scale}
    return linears(tensors, one)


def deepseek4(fp8, e8m0):
    """FP8 in blocks, or not, and experts in MXFP4, under powers of two; no declaration in the config."""
    fp8_parts = (".wq_a.", ".wq_b.", ".wkv.", ".wo_a.", ".wo_b.", ".shared_experts.", ".e_proj.", ".h_proj.")
    precise = ("hc_", "attn_sink", ".ape", "gate.bias")
    to_scale = lambda exponent: exponent.to(torch.uint8).view(torch.float8_e8m0fnu) if e8m0 else exponent.to(torch.uint8)

    def quantize(config, tensors):
        out = {}
        for name, w in tensors.items():
            base = name.removesuffix(".weight")
            if ".ffn.experts." in name:
                codes, exponent = mxfp4(w.float())
                out |= {name: codes.view(torch.int8) if e8m0 else codes, base + ".scale": to_scale(exponent)}
            elif fp8 and name.endswith(".weight") and "compressor" not in name and any(part in name for part in fp8_parts):
                largest, _ = blocks(w.float(), 128, 128)
                exponent = (torch.ceil(torch.log2((largest / 448.0).clamp(min=2.0 ** -100))) + 127).clamp(1, 254)
                each = torch.exp2(exponent - 127).repeat_interleave(128, 0).repeat_interleave(128, 1)
                out |= {name: to_fp8(w.float(), each[:w.shape[0], :w.shape[1]]), base + ".scale": to_scale(exponent)}
            elif any(part in name for part in precise) and w.is_floating_point():
                out[name] = w.float()
            else:
                out[name] = w
        return out
    return quantize


def kimi_k3(config, tensors):
    """Routed experts in MXFP4, the rest as it is."""
    ct(config["text_config"], "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32,
                                                       "symmetric": True})
    out = {}
    for name, w in tensors.items():
        if ".block_sparse_moe.experts." in name:
            codes, scale = mxfp4(w.float())
            out |= {name + "_packed": codes, name + "_scale": scale}
        else:
            out[name] = w
    return out


def mimo2(ranks, packed):
    """FP8 in blocks; a fused projection as `ranks` ranks store it, each with its own blocks; experts in MXFP4."""
    def quantize(config, tensors):
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        if packed:
            config["quantization_config"] |= {"store_dtype": "mxfp4", "mxfp4_block_size": 32}
        heads, key, value = config["num_attention_heads"], config["head_dim"], config["v_head_dim"]

        def one(name, w):
            if packed and ".mlp.experts." in name:
                codes, exponent = mxfp4(w)
                return {name: codes, name + "_scale": exponent}
            if "qkv_proj" not in name:
                largest, each = blocks(w, 128, 128)
                return {name: to_fp8(w, (each / 448.0).clamp(min=1e-6)), name + "_scale_inv": (largest / 448.0).clamp(min=1e-6)}
            kv = (w.shape[0] - heads * key) // (key + value)
            parts = w.split([heads * key, kv * key, kv * value])
            stored = torch.cat([part.chunk(ranks)[rank] for rank in range(ranks) for part in parts])
            codes, scales = [], []
            for rank in stored.chunk(ranks):
                largest, each = blocks(rank, 128, 128)
                codes.append(to_fp8(rank, (each / 448.0).clamp(min=1e-6)).view(torch.uint8))
                scales.append((largest / 448.0).clamp(min=1e-6))
            return {name: torch.cat(codes).view(torch.float8_e4m3fn), name + "_scale_inv": torch.cat(scales)}
        return linears(tensors, one, keep=lambda name: name.startswith("model.mtp.") and "qkv_proj" not in name)
    return quantize


# GPTQ, AWQ, BitNet


def gptq(bits, size, zeros=False, version="gptq", unsorted=False, auto_round=False):
    def quantize(config, tensors):
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": not zeros,
                        "desc_act": unsorted, "checkpoint_format": version}
        if auto_round:
            quantization = {"quant_method": "auto-round", "bits": bits, "group_size": size, "sym": not zeros,
                            "packing_format": "auto_round:auto_gptq"}
        config["quantization_config"] = quantization

        def one(name, w):
            order = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(3)) if unsorted else None
            codes, scale, zero, index = groups_of(w if order is None else w[:, order], size, bits, zeros, torch.float16)
            if version == "gptq":
                zero = (zero - 1).clamp(min=0)
            if order is not None:
                back = torch.argsort(order)
                codes, index = codes[:, back], index[back]
            base = name.removesuffix(".weight")
            # AutoRound flips the sign of scales whose greatest weight is positive.
            scale = torch.where(torch.arange(len(scale)).reshape(-1, 1) % 3 == 0, -scale, scale) if auto_round else scale
            out = {base + ".qweight": to_bits(codes.t(), bits, 0), base + ".qzeros": to_bits(zero.t(), bits, 1),
                   base + ".scales": scale.t().contiguous()}
            return out if auto_round else out | {base + ".g_idx": index.to(torch.int32)}
        return linears(tensors, one)
    return quantize


def awq(size):
    def quantize(config, tensors):
        config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True,
                                         "version": "gemm"}

        def one(name, w):
            codes, scale, zero, _ = groups_of(w, size, 4, True, torch.float16)
            base = name.removesuffix(".weight")
            permuted = lambda x: x.reshape(x.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(x.shape)
            return {base + ".qweight": to_words(permuted(codes.t()), 4, 1),
                    base + ".qzeros": to_words(permuted(zero.t()), 4, 1), base + ".scales": scale.t().contiguous()}
        return linears(tensors, one)
    return quantize


def bitnet(config, tensors):
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear"}

    def one(name, w):
        mean = w.abs().mean().clamp(min=1e-5)
        codes = (w / mean).round().clamp(-1, 1).add(1).to(torch.uint8).reshape(4, -1, w.shape[1])
        packed = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        return {name: packed, name + "_scale": (1.0 / mean).reshape(1).bfloat16()}
    return linears(tensors, one)


# Name -> (checkpoint whose weights are quantized, function).
QUANTIZED = {
    "llama-fp8": ("llama", fp8_block(128, 128)),
    "llama-fp8-odd": ("llama", fp8_block(96, 80, torch.bfloat16)),
    "llama-fp8-tensor": ("llama", fp8_whole(False)),
    "llama-fp8-rows": ("llama-f16", fp8_whole(True, torch.bfloat16, torch.float8_e5m2)),
    "mixtral-fp8": ("mixtral", fp8_block(128, 128)),
    "qwen3moe-fp8": ("qwen3moe", fp8_block(128, 64)),
    "qwen35moe-fp8": ("qwen35moe", fp8_block(96, 96)),
    "mistral-format-fp8": ("mistral-format", mistral_fp8),
    "llama-modelopt-fp8": ("llama", modelopt_fp8),
    "llama-ct-fp8": ("llama", ct_fp8("channel")),
    "llama-ct-fp8-block": ("llama", ct_fp8("block", 96, 80)),
    "qwen3moe-ct-fp8": ("qwen3moe", ct_fp8("block")),
    "llama-nvfp4": ("llama", modelopt_nvfp4()),
    "llama-nvfp4-unit": ("llama", modelopt_nvfp4(unit=True, side_file=False)),
    "llama-nvfp4-w4a16": ("llama", modelopt_nvfp4(algorithm="W4A16_NVFP4", input_scale=False)),
    "qwen3moe-nvfp4": ("qwen3moe-128", modelopt_nvfp4()),
    "qwen3moe-nvfp4-unit": ("qwen3moe-128", modelopt_nvfp4(unit=True)),
    "qwen3moe-nvfp4-mixed": ("qwen3moe-128", modelopt_nvfp4(mixed=True, side_file=False)),
    "llama-nvfp4-mixed": ("llama", modelopt_nvfp4(mixed=True)),
    "qwen35-nvfp4": ("qwen35", modelopt_nvfp4(mtp=False)),
    "nemotron_h_moe-nvfp4": ("nemotron_h_moe-128", modelopt_nvfp4()),
    "llama-ct-nvfp4": ("llama", ct_nvfp4),
    "qwen3moe-ct-nvfp4": ("qwen3moe-128", ct_nvfp4),
    "llama-ct-int8": ("llama", ct_int8()),
    "llama-ct-w4": ("llama", ct_packed(4, 32)),
    "llama-ct-w4-zeros": ("llama", ct_packed(4, 64, zeros=True, dtype=torch.float16)),
    "llama-ct-w8": ("llama-f16", ct_packed(8, 128, dtype=torch.float16)),
    "llama-ct-w8-zeros": ("llama", ct_packed(8, 128, zeros=True)),
    "qwen3moe-ct-w4": ("qwen3moe", ct_packed(4, 32, zeros=True)),
    "llama-gptq": ("llama-f16", gptq(4, 128)),
    "llama-gptq-zeros": ("llama-f16", gptq(4, 64, zeros=True)),
    "llama-gptq-order": ("llama-f16", gptq(4, 96, zeros=True, unsorted=True)),
    "llama-gptq-2": ("llama-f16", gptq(2, 32, zeros=True, version="gptq_v2")),
    "llama-gptq-8": ("llama-f16", gptq(8, 128, version="gptq_v2", unsorted=True)),
    "llama-gptq-8-v1": ("llama-f16", gptq(8, 64, zeros=True)),
    "qwen3moe-gptq": ("qwen3moe", gptq(4, 96, zeros=True, unsorted=True)),
    "mixtral-gptq": ("mixtral", gptq(4, 64)),
    "bitnet-packed": ("bitnet", bitnet),
    "deepseek4": ("deepseek4-plain", deepseek4(True, True)),
    "deepseek4-bf16": ("deepseek4-plain", deepseek4(False, False)),
    "deepseek4-f16": ("deepseek4-half", deepseek4(True, False)),
    "deepseek4-0731": ("deepseek4-plain", deepseek4(True, False)),
    "mimo2-fp8": ("mimo2-fused", mimo2(4, False)),
    "mimo2-mxfp4": ("mimo2-fused", mimo2(8, True)),
    "kimi-k3-mxfp4": ("kimi-k3", kimi_k3),
    "glm5-next-fp8": ("glm5-next", fp8_block(128, 128)),
    "qwen4exp-fp8": ("qwen4exp", fp8_block(96, 96)),
}

# Those that the reference refuses.
REFUSED = {
    "qwen3moe-nvfp4-96": ("qwen3moe", modelopt_nvfp4()),
    "qwen35-nvfp4-mtp": ("qwen35", modelopt_nvfp4()),
    "llama-ct-fp8-tensor": ("llama", ct_fp8("tensor")),
    "llama-ct-int8-zeros": ("llama", ct_int8(zeros=True)),
    "llama-ct-w4-rows": ("llama", ct_packed(4, None)),
    "llama-ct-w3": ("llama", ct_packed(3, 64, zeros=True)),
    "llama-ct-w4-order": ("llama", ct_packed(4, 32, zeros=True, unsorted=True)),
    "llama-ct-nvfp4-mixed": ("llama", ct_nvfp4_mixed),
    "mixtral-nvfp4": ("mixtral", modelopt_nvfp4()),
    "llama-ct-mxfp4": ("llama", ct_mxfp4),
    "llama-gptq-3": ("llama-f16", gptq(3, 64, zeros=True, unsorted=True)),
    "llama-autoround": ("llama-f16", gptq(4, 128, auto_round=True)),
    "llama-awq": ("llama-f16", awq(64)),
    "mixtral-awq": ("mixtral", awq(128)),
}


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
