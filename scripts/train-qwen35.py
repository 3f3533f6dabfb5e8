#!/usr/bin/env python3
"""Trains a tiny Qwen 3.5 on texts and writes it as a Hugging Face checkpoint: 3.9 M parameters, three gated delta nets
and attention with gates, twice as many heads of values as of keys, a block for a further token, all rows multiples of
256. Unlike random weights, trained ones have structure that quantization can preserve or lose.

    scripts/train-qwen35.py OUT TEXT ... [--skip BYTES] [--steps N] [--minutes M]

The vocabulary (1024 tokens, byte-level) is learned from the same texts. --skip omits the beginning of every text, for
calibration and evaluation. 800 steps take about 20 minutes of processor time. Convert it by `quantier convert --pre gpt-2`, since
the reference recognizes tokenizers by hashes. Needs torch, safetensors and tokenizers:
`$(scripts/reference.sh --python)` has them.

The matrices of the layers are trained by Muon (Jordan et al. 2024), everything else by Adam.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB, HIDDEN, FFN, LAYERS, INTERVAL = 1024, 256, 512, 4, 4
HEADS, KV_HEADS, HEAD, ROTATED, THETA = 4, 2, 64, 16, 10000.0
KEY_HEADS, VALUE_HEADS, KERNEL, EPSILON = 2, 4, 4, 1e-6
KEYS, VALUES = KEY_HEADS * HEAD, VALUE_HEADS * HEAD
CONTEXT, BATCH, BLOCK = 256, 8, 64
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

    def losses(self, tokens):
        """Losses of the next token and of the one after it; `tokens` is [batch, CONTEXT + 2]."""
        _, x = self.run(tokens[:, :-2])
        embedded = self.weights["model.embed_tokens.weight"][tokens[:, 1:-1]]
        loss = lambda x, tokens: F.cross_entropy(self.times(x, "lm_head").flatten(0, 1), tokens.flatten())
        y = self.further(embedded, x)
        return loss(x, tokens[:, 1:-1]), loss(self.norm(y, "mtp.norm"), tokens[:, 2:])


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


class Muon:
    """Momentum with matrices orthogonalized by Newton-Schulz iteration."""

    def __init__(self, weights, momentum=0.95):
        self.weights, self.momentum = weights, momentum
        self.sums = [torch.zeros_like(w) for w in weights]

    @torch.no_grad()
    def step(self, rate):
        for w, total in zip(self.weights, self.sums):
            total.lerp_(w.grad, 1 - self.momentum)
            x = w.grad.lerp(total, self.momentum)
            x = x.T if x.shape[0] > x.shape[1] else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            x = x.T if w.shape[0] > w.shape[1] else x
            w.add_(x, alpha=-rate * max(1, w.shape[0] / w.shape[1]) ** 0.5)


def vocabulary(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {n: w.detach().bfloat16().contiguous() for n, w in model.weights.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "add_bos_token": False}, indent=2))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--minutes", type=float, help="end sooner, of so many minutes")
    options = parser.parse_args()
    texts = [path.read_bytes()[options.skip:].decode(errors="ignore") for path in options.texts]
    tokenizer = vocabulary(texts)
    pieces = [text[at:at + 20000] for text in texts for at in range(0, len(text), 20000)]
    tokens = torch.tensor([t for e in tokenizer.encode_batch(pieces) for t in e.ids])
    model = Model()
    matrix = lambda n, w: w.dim() == 2 and ("layers" in n or "fc" in n) and min(w.shape) > VALUE_HEADS
    muon = Muon([w for n, w in model.weights.items() if matrix(n, w)])
    rest = [w for n, w in model.weights.items() if not matrix(n, w)]
    adam = torch.optim.AdamW(rest, lr=0, betas=(0.9, 0.95), weight_decay=0.0)
    count = sum(w.numel() for w in model.weights.values())
    print(f"{count} parameters, {len(tokens)} tokens of {sum(map(len, texts))} characters", flush=True)
    begin = time.time()
    for step in range(options.steps):
        spent = (time.time() - begin) / 60 / options.minutes if options.minutes else 0.0
        left = 1 - max(step / options.steps, spent)
        if left <= 0:
            break
        # Constant, then linear decay to zero.
        rate = min(1.0, (step + 1) / 20, left / 0.5)
        starts = torch.randint(0, len(tokens) - CONTEXT - 2, (BATCH,))
        near, far = model.losses(torch.stack([tokens[s:s + CONTEXT + 2] for s in starts]))
        adam.zero_grad()
        for w in muon.weights:
            w.grad = None
        (near + FURTHER * far).backward()
        muon.step(0.02 * rate)
        adam.param_groups[0]["lr"] = 3e-3 * rate
        adam.step()
        if step % 20 == 0 or step + 1 == options.steps:
            print(f"step {step}, {time.time() - begin:.0f} s: {near:.3f} and {far:.3f} nats", flush=True)
    save(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
