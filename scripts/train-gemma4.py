#!/usr/bin/env python3
"""Trains a tiny Gemma 4 of the edge form on texts and writes it as a Hugging Face checkpoint: per-layer embeddings, two
layers with a window and two with full attention, of which the last two read the keys and values of the first two and have
twice as wide feed-forward networks; all rows multiples of 256.

    scripts/train-gemma4.py OUT TEXT ... [--skip BYTES] [--steps N] [--batch N] [--minutes M] [--threads N]

The vocabulary (1024 tokens, characters and bytes, spaces as U+2581) is learned from the same texts. --skip omits the
beginning of every text, for calibration and evaluation. See training.py for what it needs.
"""

import json

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import gemma_checkpoints
from gemma_checkpoints import FULL, SPECIAL, TURNS, kinds
from training import CONTEXT, train

VOCAB, HIDDEN, FFN, PER_LAYER = 1024, 256, 512, 256
LAYERS, SHARED, WINDOW = kinds("wfwf"), 2, 64
HEADS, KV_HEADS, HEAD, GLOBAL_HEAD, ROTATED = 4, 1, 64, 128, 0.25
THETA, GLOBAL_THETA, EPSILON, CAP = 10000.0, 1000000.0, 1e-6, 30.0
BOS = SPECIAL.index("<bos>")
SEED = 4

CONFIG = {
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": len(LAYERS), "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD, "global_head_dim": GLOBAL_HEAD, "num_global_key_value_heads": None, "attention_k_eq_v": False,
    "max_position_embeddings": 4096, "rms_norm_eps": EPSILON, "hidden_activation": "gelu_pytorch_tanh", "layer_types": LAYERS,
    "sliding_window": WINDOW, "final_logit_softcapping": CAP, "num_kv_shared_layers": SHARED,
    "hidden_size_per_layer_input": PER_LAYER, "vocab_size_per_layer_input": VOCAB, "use_double_wide_mlp": True,
    "enable_moe_block": False, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": THETA},
        FULL: {"rope_type": "proportional", "partial_rotary_factor": ROTATED, "rope_theta": GLOBAL_THETA}},
    "tie_word_embeddings": True, "bos_token_id": BOS, "eos_token_id": SPECIAL.index("<eos>"), "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}


class Vocabulary:
    """Merges within words; words begin with a space. The file names no words."""

    def __init__(self, texts, size):
        self.tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        self.tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        self.tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
        first = [*SPECIAL, *TURNS, *(f"<0x{b:02X}>" for b in range(256))]
        self.tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=size, special_tokens=first, limit_alphabet=128, show_progress=False))

    def write(self, folder):
        model = json.loads(self.tokenizer.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        gemma_checkpoints.write_tokenizer(folder, tokens, model["merges"])


def is_full(layer):
    return LAYERS[layer] == FULL


def source(layer):
    """The layer whose keys and values a layer reads."""
    own = len(LAYERS) - SHARED
    return layer if layer < own else own - 1 if is_full(layer) else own - 2


def shapes():
    """Names in the checkpoint -> shapes."""
    rows = len(LAYERS) * PER_LAYER
    out = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
           "model.embed_tokens_per_layer.weight": (VOCAB, rows), "model.per_layer_model_projection.weight": (rows, HIDDEN),
           "model.per_layer_projection_norm.weight": (PER_LAYER,)}
    for i in range(len(LAYERS)):
        p, head = f"model.layers.{i}.", GLOBAL_HEAD if is_full(i) else HEAD
        a, m, ffn = p + "self_attn.", p + "mlp.", FFN if source(i) == i else 2 * FFN
        norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
                 "post_per_layer_input_norm")
        out |= {f"{p}{n}.weight": (HIDDEN,) for n in norms}
        out |= {f"{a}q_proj.weight": (HEADS * head, HIDDEN), f"{a}o_proj.weight": (HIDDEN, HEADS * head),
                f"{a}q_norm.weight": (head,), f"{m}gate_proj.weight": (ffn, HIDDEN), f"{m}up_proj.weight": (ffn, HIDDEN),
                f"{m}down_proj.weight": (HIDDEN, ffn), f"{p}layer_scalar": (1,),
                f"{p}per_layer_input_gate.weight": (PER_LAYER, HIDDEN), f"{p}per_layer_projection.weight": (HIDDEN, PER_LAYER)}
        if source(i) == i:
            out |= {f"{a}{n}_proj.weight": (KV_HEADS * head, HIDDEN) for n in "kv"} | {f"{a}k_norm.weight": (head,)}
    return out


def initial(name, shape):
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        # Scores are not divided by the root of the length of heads.
        return torch.full(shape, shape[0] ** -0.25)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape) * 0.02


class Model:
    # Tokens after a sequence that its loss needs.
    ahead = 1

    def __init__(self):
        torch.manual_seed(SEED)
        self.weights = {n: torch.nn.Parameter(initial(n, s)) for n, s in shapes().items()}
        self.angles = {False: self.rotations(HEAD, HEAD // 2, THETA),
                       True: self.rotations(GLOBAL_HEAD, int(GLOBAL_HEAD * ROTATED / 2), GLOBAL_THETA)}
        distance = torch.arange(CONTEXT)[:, None] - torch.arange(CONTEXT)
        self.masks = {False: (distance >= 0) & (distance < WINDOW), True: distance >= 0}

    def rotations(self, head, turned, theta):
        """Angles `[positions, head / 2]` of pairs, of which the first `turned` rotate."""
        pairs = torch.arange(head // 2)
        return torch.arange(CONTEXT)[:, None] * torch.where(pairs < turned, theta ** (-2 * pairs / head), 0.0)

    def muon(self, name, weight):
        return weight.dim() == 2 and "layers." in name

    def end_step(self, rate):
        pass

    def tensors(self):
        return {n: w.bfloat16() for n, w in self.weights.items()}

    def times(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def norm(self, x, name=None):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)
        return x if name is None else x * self.weights[name + ".weight"]

    def rotate(self, x, layer):
        """Rotates heads `[batch, heads, positions, length]` by halves."""
        a, b = x.chunk(2, -1)
        angles = self.angles[is_full(layer)]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, layer, kept):
        """`kept` has the keys and values of earlier layers."""
        p = f"model.layers.{layer}.self_attn."
        batch, positions, _ = x.shape
        heads = lambda y, count: y.view(batch, positions, count, -1).transpose(1, 2)
        query = self.rotate(self.norm(heads(self.times(x, p + "q_proj"), HEADS), p + "q_norm"), layer)
        if source(layer) == layer:
            key, value = (heads(self.times(x, p + n), KV_HEADS) for n in ("k_proj", "v_proj"))
            kept[layer] = self.rotate(self.norm(key, p + "k_norm"), layer), self.norm(value)
        key, value = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in kept[source(layer)])
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=self.masks[is_full(layer)], scale=1.0)
        return self.times(y.transpose(1, 2).reshape(batch, positions, -1), p + "o_proj")

    def gated(self, x, p):
        gate = F.gelu(self.times(x, p + "gate_proj"), approximate="tanh")
        return self.times(gate * self.times(x, p + "up_proj"), p + "down_proj")

    def inputs(self, x, tokens):
        """Inputs of all layers from per-layer embeddings: `[batch, positions, layers, PER_LAYER]`."""
        parts = lambda y: y.unflatten(-1, (len(LAYERS), PER_LAYER))
        projected = parts(self.times(x, "model.per_layer_model_projection") * HIDDEN ** -0.5)
        looked_up = parts(self.weights["model.embed_tokens_per_layer.weight"][tokens]) * PER_LAYER ** 0.5
        return (self.norm(projected, "model.per_layer_projection_norm") + looked_up) * 0.5 ** 0.5

    def run(self, tokens):
        """Normalized activations after the last layer."""
        x = self.weights["model.embed_tokens.weight"][tokens] * HIDDEN ** 0.5
        inputs, kept = self.inputs(x, tokens), {}
        for i in range(len(LAYERS)):
            p = f"model.layers.{i}."
            y = self.attention(self.norm(x, p + "input_layernorm"), i, kept)
            x = x + self.norm(y, p + "post_attention_layernorm")
            y = self.gated(self.norm(x, p + "pre_feedforward_layernorm"), p + "mlp.")
            x = x + self.norm(y, p + "post_feedforward_layernorm")
            y = F.gelu(self.times(x, p + "per_layer_input_gate"), approximate="tanh") * inputs[:, :, i]
            x = x + self.norm(self.times(y, p + "per_layer_projection"), p + "post_per_layer_input_norm")
            x = x * self.weights[p + "layer_scalar"]
        return self.norm(x, "model.norm")

    def loss(self, tokens):
        """Loss of the next token; `tokens` is [batch, CONTEXT + 1], of which the first becomes that of beginnings."""
        tokens[:, 0] = BOS
        logits = CAP * torch.tanh(self.times(self.run(tokens[:, :-1]), "model.embed_tokens") / CAP)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return loss, f"{loss:.3f} nats"


if __name__ == "__main__":
    train(Model, CONFIG, 400, Vocabulary)
