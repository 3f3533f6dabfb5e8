"""Training of tiny models on texts, shared by train-*.py: the vocabulary, the optimizers, the loop, the checkpoint. Needs
torch, safetensors and tokenizers: `$(scripts/reference.sh --python)` has them.

The matrices of the layers are trained by Muon (Jordan et al. 2024), everything else by Adam.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 256


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


class ByteLevel:
    """A byte-level vocabulary learned from texts."""

    def __init__(self, texts, size):
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self.tokenizer.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        self.tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))

    def write(self, folder):
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "add_bos_token": False}, indent=2))


def save(tensors, config, vocabulary, out):
    out.mkdir(parents=True, exist_ok=True)
    save_file({n: w.detach().contiguous() for n, w in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2))
    vocabulary.write(out)


def train(new_model, config, default_steps, new_vocabulary=ByteLevel):
    """Trains on the texts of the command line. `new_model` makes a model with `weights` (name -> parameter), `muon(name,
    weight)` (true for matrices of Muon), `ahead` (tokens after a sequence that its loss needs), `loss(tokens)` -> (the loss,
    a text of its parts), `end_step(rate)`, and `tensors()`, those of the checkpoint. `new_vocabulary(texts, size)` makes one
    with `tokenizer` and `write(folder)`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--steps", type=int, default=default_steps)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--minutes", type=float, help="end sooner, after so many minutes")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = [path.read_bytes()[options.skip:].decode(errors="ignore") for path in options.texts]
    vocabulary = new_vocabulary(texts, config["vocab_size"])
    pieces = [text[at:at + 20000] for text in texts for at in range(0, len(text), 20000)]
    tokens = torch.tensor([t for e in vocabulary.tokenizer.encode_batch(pieces) for t in e.ids])
    model = new_model()
    muon = Muon([w for n, w in model.weights.items() if model.muon(n, w)])
    rest = [w for n, w in model.weights.items() if not model.muon(n, w)]
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
        length = CONTEXT + model.ahead
        starts = torch.randint(0, len(tokens) - length, (options.batch,))
        loss, parts = model.loss(torch.stack([tokens[s:s + length] for s in starts]))
        adam.zero_grad()
        for w in muon.weights:
            w.grad = None
        loss.backward()
        muon.step(0.02 * rate)
        adam.param_groups[0]["lr"] = 3e-3 * rate
        adam.step()
        model.end_step(rate)
        if step % 20 == 0 or step + 1 == options.steps:
            print(f"step {step}, {time.time() - begin:.0f} s: {parts}", flush=True)
    save(model.tensors(), config, vocabulary, options.out)
