#!/usr/bin/env python3
"""Trains a tiny Qwen 3.5 on texts and writes it as a Hugging Face checkpoint: 3.9 M parameters, three gated delta nets
and attention with gates, twice as many heads of values as of keys, a block for a further token, all rows multiples of
256. Unlike random weights, trained ones have structure that quantization can preserve or lose.

    scripts/train-qwen35.py OUT TEXT ... [--skip BYTES] [--steps N] [--minutes M]

The vocabulary (1024 tokens, byte-level) is learned from the same texts. --skip omits the beginning of every text, for
calibration and evaluation. 800 steps take about 20 minutes of processor time. Convert it by `quantier convert --pre gpt-2`, since
the reference recognizes tokenizers by hashes. See training.py for what it needs.
"""

import math

import torch
import torch.nn.functional as F

from training import CONTEXT, train

VOCAB, HIDDEN, FFN, LAYERS, INTERVAL = 1024, 256, 512, 4, 4
HEADS, KV_HEADS, HEAD, ROTATED, THETA = 4, 2, 64, 16, 10000.0
KEY_HEADS, VALUE_HEADS, KERNEL, EPSILON = 2, 4, 4, 1e-6
KEYS, VALUES = KEY_HEADS * HEAD, VALUE_HEADS * HEAD
BLOCK = 64
# Weight of the block for a further token in the loss.
FURTHER = 0.3
SEED = 35

CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD, "max_position_embeddings": 4096, "rms_norm_eps": EPSILON, "hidden_act": "silu",
    "tie_word_embeddings": False, "attn_output_gate": True, "full_attention_interval": INTERVAL,
    "linear_conv_kernel_dim": KERNEL, "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD,
    "linear_num_key_heads": KEY_HEADS, "linear_num_value_heads": VALUE_HEADS, "mtp_num_hidden_layers": 1,
    "layer_types": ["full_attention" if i % INTERVAL == INTERVAL - 1 else "linear_attention" for i in range(LAYERS)],
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": ROTATED / HEAD,
                        "mrope_interleaved": True, "mrope_section": [3, 3, 2]},
    "eos_token_id": 0, "torch_dtype": "bfloat16",
}


def is_attention(layer):
    return CONFIG["layer_types"][layer] == "full_attention"


def shapes():
    """Names in the checkpoint -> shapes."""
    def ffn(p):
        return {f"{p}mlp.gate_proj.weight": (FFN, HIDDEN), f"{p}mlp.up_proj.weight": (FFN, HIDDEN),
                f"{p}mlp.down_proj.weight": (HIDDEN, FFN), f"{p}input_layernorm.weight": (HIDDEN,),
                f"{p}post_attention_layernorm.weight": (HIDDEN,)}

    def attention(p):
        p += "self_attn."
        return {f"{p}q_proj.weight": (2 * HEADS * HEAD, HIDDEN), f"{p}k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                f"{p}v_proj.weight": (KV_HEADS * HEAD, HIDDEN), f"{p}o_proj.weight": (HIDDEN, HEADS * HEAD),
                f"{p}q_norm.weight": (HEAD,), f"{p}k_norm.weight": (HEAD,)}

    def delta_net(p):
        p += "linear_attn."
        return {f"{p}in_proj_qkv.weight": (2 * KEYS + VALUES, HIDDEN), f"{p}in_proj_z.weight": (VALUES, HIDDEN),
                f"{p}in_proj_b.weight": (VALUE_HEADS, HIDDEN), f"{p}in_proj_a.weight": (VALUE_HEADS, HIDDEN),
                f"{p}conv1d.weight": (2 * KEYS + VALUES, 1, KERNEL), f"{p}A_log": (VALUE_HEADS,),
                f"{p}dt_bias": (VALUE_HEADS,), f"{p}norm.weight": (HEAD,), f"{p}out_proj.weight": (HIDDEN, VALUES)}

    out = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        out |= (attention(p) if is_attention(i) else delta_net(p)) | ffn(p)
    out |= attention("mtp.layers.0.") | ffn("mtp.layers.0.") | {"mtp.fc.weight": (HIDDEN, 2 * HIDDEN)}
    return out | {f"mtp.{n}.weight": (HIDDEN,) for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}


def initial(name, shape):
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(1, 16).log()
    if name.endswith("dt_bias"):
        # The inverse of softplus, for steps from 0.001 to 0.1: states that decay over few or many tokens.
        steps = torch.empty(shape).uniform_(math.log(1e-3), math.log(0.1)).exp()
        return steps + torch.log(-torch.expm1(-steps))
    if name.endswith("linear_attn.norm.weight"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)
    if "conv1d" in name:
        return torch.empty(shape).uniform_(-0.5, 0.5)
    # Outputs of mixers start small.
    return torch.randn(shape) * (0.005 if "o_proj" in name or "out_proj" in name or "down_proj" in name else 0.02)


class Model:
    def __init__(self):
        torch.manual_seed(SEED)
        self.weights = {n: torch.nn.Parameter(initial(n, s)) for n, s in shapes().items()}
        angles = torch.arange(CONTEXT)[:, None] * THETA ** (-torch.arange(0, ROTATED, 2) / ROTATED)
        self.cos, self.sin = angles.cos(), angles.sin()

    def times(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * (1 + self.weights[name + ".weight"])

    def rotate(self, x):
        """Rotates the first ROTATED numbers of heads `[batch, heads, positions, HEAD]`, by halves."""
        positions = x.shape[2]
        a, b, rest = x.split([ROTATED // 2, ROTATED // 2, HEAD - ROTATED], -1)
        cos, sin = self.cos[:positions], self.sin[:positions]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def attention(self, x, p):
        batch, positions, _ = x.shape
        heads = lambda y, count: y.view(batch, positions, count, -1).transpose(1, 2)
        query, gate = heads(self.times(x, p + "q_proj"), HEADS).chunk(2, -1)
        key, value = (heads(self.times(x, p + n), KV_HEADS) for n in ("k_proj", "v_proj"))
        query, key = self.rotate(self.norm(query, p + "q_norm")), self.rotate(self.norm(key, p + "k_norm"))
        key, value = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True) * gate.sigmoid()
        return self.times(y.transpose(1, 2).reshape(batch, positions, -1), p + "o_proj")

    def delta_net(self, x, p):
        batch, positions, _ = x.shape
        w = self.weights
        y = F.pad(self.times(x, p + "in_proj_qkv").transpose(1, 2), (KERNEL - 1, 0))
        y = F.silu(F.conv1d(y, w[p + "conv1d.weight"], groups=y.shape[1])).transpose(1, 2)
        # [batch, heads, blocks, steps, HEAD]
        heads = lambda y, count: y.reshape(batch, positions // BLOCK, BLOCK, count, -1).permute(0, 3, 1, 2, 4)
        query, key, value = y.split([KEYS, KEYS, VALUES], -1)
        unit = lambda y: y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) + EPSILON)
        shared = lambda y: unit(heads(y, KEY_HEADS)).repeat_interleave(VALUE_HEADS // KEY_HEADS, 1)
        strength = heads(self.times(x, p + "in_proj_b").sigmoid(), VALUE_HEADS)
        steps = F.softplus(self.times(x, p + "in_proj_a") + w[p + "dt_bias"])
        decay = heads(-w[p + "A_log"].exp() * steps, VALUE_HEADS)
        y = delta_rule(shared(query), shared(key), heads(value, VALUE_HEADS), decay, strength)
        y = y.permute(0, 2, 3, 1, 4).reshape(batch, positions, VALUE_HEADS, HEAD)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPSILON) * w[p + "norm.weight"]
        y = y * F.silu(self.times(x, p + "in_proj_z").view_as(y))
        return self.times(y.reshape(batch, positions, -1), p + "out_proj")

    def layer(self, x, p, mixer, name):
        x = x + mixer(self.norm(x, p + "input_layernorm"), p + name)
        y = self.norm(x, p + "post_attention_layernorm")
        y = F.silu(self.times(y, p + "mlp.gate_proj")) * self.times(y, p + "mlp.up_proj")
        return x + self.times(y, p + "mlp.down_proj")

    def run(self, tokens):
        """Embeddings, and normalized activations after the last layer."""
        embedded = self.weights["model.embed_tokens.weight"][tokens]
        x = embedded
        for i in range(LAYERS):
            full = is_attention(i)
            mixer, name = (self.attention, "self_attn.") if full else (self.delta_net, "linear_attn.")
            x = self.layer(x, f"model.layers.{i}.", mixer, name)
        return embedded, self.norm(x, "model.norm")

    def further(self, embedded, hidden):
        """The block for a further token: `hidden` is from the positions before those of `embedded`."""
        both = torch.cat([self.norm(embedded, "mtp.pre_fc_norm_embedding"), self.norm(hidden, "mtp.pre_fc_norm_hidden")], -1)
        return self.layer(self.times(both, "mtp.fc"), "mtp.layers.0.", self.attention, "self_attn.")

    def draft(self, tokens):
        """The same over all of `[batch, positions]`; zeros precede the first position."""
        embedded, hidden = self.run(tokens)
        return self.further(embedded, F.pad(hidden, (0, 0, 1, 0))[:, :-1])

    # Tokens after a sequence that its loss needs.
    ahead = 2

    def muon(self, name, weight):
        return weight.dim() == 2 and ("layers" in name or "fc" in name) and min(weight.shape) > VALUE_HEADS

    def end_step(self, rate):
        pass

    def tensors(self):
        return {n: w.bfloat16() for n, w in self.weights.items()}

    def loss(self, tokens):
        """Losses of the next token and of the one after it; `tokens` is [batch, CONTEXT + 2]."""
        _, x = self.run(tokens[:, :-2])
        embedded = self.weights["model.embed_tokens.weight"][tokens[:, 1:-1]]
        loss = lambda x, tokens: F.cross_entropy(self.times(x, "lm_head").flatten(0, 1), tokens.flatten())
        y = self.further(embedded, x)
        near, far = loss(x, tokens[:, 1:-1]), loss(self.norm(y, "mtp.norm"), tokens[:, 2:])
        return near + FURTHER * far, f"{near:.3f} and {far:.3f} nats"


def delta_rule(query, key, value, decay, strength):
    """Matrix products of blocks of steps; see crates/engine/src/model/ops/delta.rs."""
    sums = decay.cumsum(-2)
    ratios = (sums - sums.transpose(-1, -2)).tril().exp().tril()
    system = (strength * ratios * (key @ key.transpose(-1, -2))).tril(-1)
    kept, to_end = sums.exp(), (sums[..., -1:, :] - sums).exp()
    right = strength * torch.cat([value, kept * key], -1)
    system = system + torch.eye(BLOCK)
    by_value, by_state = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(HEAD, -1)
    weights = ratios * (query @ key.transpose(-1, -2))
    state, out = torch.zeros(*query.shape[:2], HEAD, HEAD), []
    for b in range(query.shape[2]):
        learned = by_value[:, :, b] - by_state[:, :, b] @ state
        out.append((kept * query)[:, :, b] @ state + weights[:, :, b] @ learned)
        state = kept[:, :, b, -1:] * state + (to_end * key)[:, :, b].transpose(-1, -2) @ learned
    return torch.stack(out, 2) / math.sqrt(HEAD)


if __name__ == "__main__":
    train(Model, CONFIG, 800)
