#!/usr/bin/env python3
"""Writes the checkpoint of a large model without its weights: the right config.json, index and headers, and
files of holes that take no space and read as zeros. For `quantier make --dry-run`, which reads no weights.

    scripts/sparse-checkpoint.py NAME OUT

NAME is qwen3-0.6b, qwen3-8b, qwen3-32b, llama-3.3-70b, qwen3-30b-a3b, qwen3-235b-a22b or deepseek-v3 (bf16). The tokenizer is the small one of testdata/bpe, so a text has
more tokens than with the model's own. Needs only Python's standard library, and a file system with holes.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parent.parent / "testdata" / "bpe"
BF16 = 2


def gated(p, ffn, hidden):
    return {p + "gate_proj.weight": (ffn, hidden), p + "up_proj.weight": (ffn, hidden), p + "down_proj.weight": (hidden, ffn)}


def experts(p, count, ffn, hidden):
    return {name: shape for e in range(count) for name, shape in gated(f"{p}experts.{e}.", ffn, hidden).items()}


def norms(p, hidden):
    return {p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,)}


def attention(p, heads, kv_heads, hidden, head=128):
    return {p + "q_proj.weight": (heads * head, hidden), p + "k_proj.weight": (kv_heads * head, hidden),
            p + "v_proj.weight": (kv_heads * head, hidden), p + "o_proj.weight": (hidden, heads * head)}


def qwen3(hidden, layers, heads, kv_heads, ffn):
    """A Qwen 3 with 128 experts, 8 of them used. Returns the config and a function from layers to their shapes."""
    head, count, vocabulary = 128, 128, 151936
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": 8 * ffn, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": head,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "hidden_act": "silu", "tie_word_embeddings": False, "num_experts": count, "num_experts_per_tok": 8,
        "moe_intermediate_size": ffn, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}

    def layer(i):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        return (norms(p, hidden) | experts(p + "mlp.", count, ffn, hidden) | {
            p + "mlp.gate.weight": (count, hidden), a + "q_norm.weight": (head,), a + "k_norm.weight": (head,)}
            | attention(a, heads, kv_heads, hidden))

    return config, layer


def dense(sizes, vocabulary, name, more):
    """A dense model with heads of 128: Qwen 3 or Llama 3. `sizes`: hidden, layers, heads, key-value heads, FFN."""
    hidden, layers, heads, kv_heads, ffn = sizes
    config = {
        "architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": 128,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": False} | more

    def layer(i):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        of_heads = {a + "q_norm.weight": (128,), a + "k_norm.weight": (128,)} if name == "Qwen3" else {}
        return (norms(p, hidden) | gated(p + "mlp.", ffn, hidden) | attention(a, heads, kv_heads, hidden) | of_heads)

    return config, layer


def qwen3_dense(*sizes, tied=False):
    return dense(sizes, 151936, "Qwen3", {"rope_theta": 1e6, "tie_word_embeddings": tied})


def deepseek_v3():
    hidden, layers, heads, dense, ffn, count, vocabulary = 7168, 61, 128, 3, 2048, 256, 129280
    queries, latent, plain, rotated, value = 1536, 512, 128, 64, 128
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": vocabulary,
        "hidden_size": hidden, "intermediate_size": 18432, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "q_lora_rank": queries, "kv_lora_rank": latent,
        "qk_nope_head_dim": plain, "qk_rope_head_dim": rotated, "v_head_dim": value, "first_k_dense_replace": dense,
        "moe_intermediate_size": ffn, "n_routed_experts": count, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}}

    def layer(i):
        p = f"model.layers.{i}."
        a, m = p + "self_attn.", p + "mlp."
        shapes = norms(p, hidden) | {
            a + "q_a_proj.weight": (queries, hidden), a + "q_a_layernorm.weight": (queries,),
            a + "q_b_proj.weight": (heads * (plain + rotated), queries),
            a + "kv_a_proj_with_mqa.weight": (latent + rotated, hidden), a + "kv_a_layernorm.weight": (latent,),
            a + "kv_b_proj.weight": (heads * (plain + value), latent), a + "o_proj.weight": (hidden, heads * value)}
        if i < dense:
            return shapes | gated(m, config["intermediate_size"], hidden)
        return shapes | experts(m, count, ffn, hidden) | gated(m + "shared_experts.", ffn, hidden) | {
            m + "gate.weight": (count, hidden), m + "gate.e_score_correction_bias": (count,)}

    return config, layer


MODELS = {
    "qwen3-0.6b": lambda: qwen3_dense(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-8b": lambda: qwen3_dense(4096, 36, 32, 8, 12288),
    "qwen3-32b": lambda: qwen3_dense(5120, 64, 64, 8, 25600),
    "llama-3.3-70b": lambda: dense((8192, 80, 64, 8, 28672), 128256, "Llama", {"rope_theta": 5e5}),
    "qwen3-30b-a3b": lambda: qwen3(2048, 48, 32, 4, 768),
    "qwen3-235b-a22b": lambda: qwen3(4096, 94, 64, 4, 1536),
    "deepseek-v3": deepseek_v3,
}


def write(path, shapes):
    """A safetensors file of these shapes, as holes. Returns its bytes of tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = BF16
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    out = Path(sys.argv[2])
    config, layer = MODELS[sys.argv[1]]()
    out.mkdir(parents=True, exist_ok=True)
    for name in "tokenizer.json", "tokenizer_config.json":
        shutil.copyfile(TOKENIZER / name, out / name)
    (out / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=2))
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        ends["lm_head.weight"] = (vocabulary, hidden)
    # One file per layer, and one for the rest.
    parts = [layer(i) for i in range(layers)] + [ends]
    files, total = {}, 0
    for number, shapes in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        total += write(out / file, shapes)
        files |= {name: file for name in shapes}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    print(f"{total / BF16 / 1e9:.1f} billion weights, {total / 1e9:.1f} GB in name only")


if __name__ == "__main__":
    main()
