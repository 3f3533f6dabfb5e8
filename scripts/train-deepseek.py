#!/usr/bin/env python3
"""Trains a tiny DeepSeek V3 on texts and writes it as a Hugging Face checkpoint: latent attention with queries of low
rank, one dense layer, then two layers of 8 experts in 4 groups and a shared one, a sigmoid router with a bias for the
choice, all rows multiples of 256 but those of attn_k_b.

    scripts/train-deepseek.py OUT TEXT ... [--skip BYTES] [--steps N] [--batch N] [--minutes M] [--threads N]

The vocabulary (1024 tokens, byte-level) is learned from the same texts. --skip omits the beginning of every text, for
calibration and evaluation. Convert it by `quantier convert --pre gpt-2`, since the reference recognizes tokenizers by
hashes. See training.py for what it needs.

The load of experts is balanced by the bias alone, without an auxiliary loss (Wang et al. 2024).
"""

import math

import torch
import torch.nn.functional as F

from training import CONTEXT, train

VOCAB, HIDDEN, FFN, LAYERS, DENSE = 1024, 256, 512, 3, 1
HEADS, QUERY_RANK, RANK, PLAIN, ROTATED, VALUE, THETA = 4, 256, 256, 64, 32, 64, 10000.0
EXPERTS, USED, GROUPS, GROUPS_USED, EXPERT, SCALE = 8, 2, 4, 2, 256, 2.5
EPSILON = 1e-6
# Change of the bias per step.
BIAS_STEP = 0.01
SEED = 3

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "max_position_embeddings": 4096, "rms_norm_eps": EPSILON, "hidden_act": "silu", "tie_word_embeddings": False,
    "q_lora_rank": QUERY_RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": PLAIN, "qk_rope_head_dim": ROTATED,
    "v_head_dim": VALUE, "rope_theta": THETA, "first_k_dense_replace": DENSE, "moe_intermediate_size": EXPERT,
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": USED, "n_group": GROUPS,
    "topk_group": GROUPS_USED, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
    "routed_scaling_factor": SCALE, "num_nextn_predict_layers": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
}


def shapes():
    """Names -> shapes, as in the checkpoint, but all experts of a layer in one tensor."""
    def gated(p, ffn, *experts):
        return {f"{p}gate_proj.weight": (*experts, ffn, HIDDEN), f"{p}up_proj.weight": (*experts, ffn, HIDDEN),
                f"{p}down_proj.weight": (*experts, HIDDEN, ffn)}

    out = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        a, m = p + "self_attn.", p + "mlp."
        out |= {f"{p}input_layernorm.weight": (HIDDEN,), f"{p}post_attention_layernorm.weight": (HIDDEN,),
                f"{a}q_a_proj.weight": (QUERY_RANK, HIDDEN), f"{a}q_a_layernorm.weight": (QUERY_RANK,),
                f"{a}q_b_proj.weight": (HEADS * (PLAIN + ROTATED), QUERY_RANK),
                f"{a}kv_a_proj_with_mqa.weight": (RANK + ROTATED, HIDDEN), f"{a}kv_a_layernorm.weight": (RANK,),
                f"{a}kv_b_proj.weight": (HEADS * (PLAIN + VALUE), RANK), f"{a}o_proj.weight": (HIDDEN, HEADS * VALUE)}
        out |= gated(m, FFN) if i < DENSE else {
            f"{m}gate.weight": (EXPERTS, HIDDEN), **gated(m + "experts.", EXPERT, EXPERTS), **gated(m + "shared_experts.", EXPERT)}
    return out


def initial(name, shape):
    if len(shape) == 1:
        return torch.ones(shape)
    # Outputs of mixers start small.
    return torch.randn(shape) * (0.005 if "o_proj" in name or "down_proj" in name else 0.02)


class Model:
    # Tokens after a sequence that its loss needs.
    ahead = 1

    def __init__(self):
        torch.manual_seed(SEED)
        self.weights = {n: torch.nn.Parameter(initial(n, s)) for n, s in shapes().items()}
        self.biases = {i: torch.zeros(EXPERTS) for i in range(DENSE, LAYERS)}
        self.loads = {}
        angles = torch.arange(CONTEXT)[:, None] * THETA ** (-torch.arange(0, ROTATED, 2) / ROTATED)
        self.cos, self.sin = angles.cos(), angles.sin()

    def muon(self, name, weight):
        return weight.dim() == 2 and "layers" in name and not name.endswith("mlp.gate.weight")

    def tensors(self):
        out = {}
        for name, weight in self.weights.items():
            if weight.dim() == 3:
                start, end = name.split("experts.")
                out |= {f"{start}experts.{e}.{end}": expert.bfloat16() for e, expert in enumerate(weight)}
            else:
                out[name] = weight.bfloat16()
        return out | {f"model.layers.{i}.mlp.gate.e_score_correction_bias": bias for i, bias in self.biases.items()}

    def times(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weights[name + ".weight"]

    def rotate(self, x):
        """Rotates pairs of neighbours in `[batch, heads, positions, ROTATED]`."""
        positions = x.shape[2]
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = self.cos[:positions], self.sin[:positions]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)

    def attention(self, x, p):
        batch, positions, _ = x.shape
        heads = lambda y, count: y.view(batch, positions, count, -1).transpose(1, 2)
        query = heads(self.times(self.norm(self.times(x, p + "q_a_proj"), p + "q_a_layernorm"), p + "q_b_proj"), HEADS)
        latent, rotated = self.times(x, p + "kv_a_proj_with_mqa").split([RANK, ROTATED], -1)
        both = heads(self.times(self.norm(latent, p + "kv_a_layernorm"), p + "kv_b_proj"), HEADS)
        key, value = both.split([PLAIN, VALUE], -1)
        plain, turned = query.split([PLAIN, ROTATED], -1)
        rotated = self.rotate(heads(rotated, 1)).expand(-1, HEADS, -1, -1)
        query, key = torch.cat([plain, self.rotate(turned)], -1), torch.cat([key, rotated], -1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.times(y.transpose(1, 2).reshape(batch, positions, -1), p + "o_proj")

    def gated(self, x, p):
        return self.times(F.silu(self.times(x, p + "gate_proj")) * self.times(x, p + "up_proj"), p + "down_proj")

    def route(self, x, layer):
        """Experts `[tokens, USED]` and their weights. Groups are chosen by the sum of their two best experts."""
        scores = self.times(x, f"model.layers.{layer}.mlp.gate").sigmoid()
        choice = (scores.detach() + self.biases[layer]).view(-1, GROUPS, EXPERTS // GROUPS)
        groups = choice.topk(2, -1).values.sum(-1).topk(GROUPS_USED, -1).indices
        allowed = torch.zeros(choice.shape[:2], dtype=torch.bool).scatter(1, groups, True)
        experts = choice.masked_fill(~allowed[..., None], -math.inf).flatten(1).topk(USED, -1).indices
        weights = scores.gather(1, experts)
        self.loads[layer] = torch.bincount(experts.flatten(), minlength=EXPERTS).float()
        return experts, SCALE * weights / weights.sum(-1, keepdim=True)

    def experts(self, x, layer):
        p = f"model.layers.{layer}.mlp."
        shape, x = x.shape, x.flatten(0, 1)
        gate, up, down = (self.weights[f"{p}experts.{n}_proj.weight"] for n in ("gate", "up", "down"))
        chosen, weights = self.route(x, layer)
        out = self.gated(x, p + "shared_experts.")
        for e in range(EXPERTS):
            tokens, which = (chosen == e).nonzero(as_tuple=True)
            y = x[tokens]
            y = (F.silu(y @ gate[e].T) * (y @ up[e].T)) @ down[e].T
            out = out.index_add(0, tokens, y * weights[tokens, which, None])
        return out.view(shape)

    def run(self, tokens):
        """Normalized activations after the last layer."""
        x = self.weights["model.embed_tokens.weight"][tokens]
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, p + "input_layernorm"), p + "self_attn.")
            y = self.norm(x, p + "post_attention_layernorm")
            x = x + (self.gated(y, p + "mlp.") if i < DENSE else self.experts(y, i))
        return self.norm(x, "model.norm")

    def loss(self, tokens):
        """Loss of the next token; `tokens` is [batch, CONTEXT + 1]."""
        logits = self.times(self.run(tokens[:, :-1]), "lm_head")
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        most = max(load.max() / load.mean() for load in self.loads.values())
        return loss, f"{loss:.3f} nats, at most {most:.2f} times the mean load of an expert"

    def end_step(self, rate):
        for layer, load in self.loads.items():
            self.biases[layer] += BIAS_STEP * rate * (load.mean() - load).sign()


if __name__ == "__main__":
    train(Model, CONFIG, 600)
