#!/usr/bin/env python3
"""Makes a GGUF with a small vocabulary for each pre-tokenizer named in the reference's llama-vocab.cpp, and one for each
other algorithm without a vocabulary in the reference.

    split_vocabularies.py SOURCE OUT TEXT

SOURCE is the reference's directory. OUT/split-NAME.gguf has only metadata. The tokens are learned from TEXT without
pre-tokenization, so that merges cross all word boundaries: different splits give different tokens.

Needs gguf and transformers' tokenizers (scripts/reference.sh --python).
"""

import json
import re
import sys
from pathlib import Path

from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TOKENS = 6000
# Not for byte-pair encoding: the vocabulary of an embedding model.
OTHER_MODELS = {"whitespace"}
# Tokens in UTF-8 with U+2581 for spaces, as in Gemma 4.
RAW = {"gemma4", "granite-embed-multi-311m", "sarvam-moe"}


def learn(text):
    """Tokens in GPT-2's letters for bytes, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, show_progress=False, limit_alphabet=256,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    pieces = [text[i:i + 400] for i in range(0, len(text), 400)]
    tokenizer.train_from_iterator(pieces, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def write(path, model, pre, tokens, types, merges=None, scores=None):
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges is not None:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def plamo(text):
    """Tokens of PLaMo: bytes, words of the text by their frequency, padding."""
    tokens = [("<|plamo:unk|>", 0.0, UNKNOWN), ("<|plamo:bos|>", 0.0, CONTROL), ("<|plamo:eos|>", 0.0, CONTROL),
              ("<|plamo:pad|>", 0.0, CONTROL), ("<|plamo:op|>", 0.0, NORMAL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    counts = {}
    for start in range(len(text) - 5):
        for length in range(1, 6):
            piece = text[start:start + length]
            counts[piece] = counts.get(piece, 0) + length
    best = sorted(counts, key=lambda piece: (-counts[piece], piece))[:TOKENS]
    seen = {token for token, _, _ in tokens}
    tokens += [(piece, -3.0 - (n % 97) / 7, NORMAL) for n, piece in enumerate(best) if piece not in seen and "\0" not in piece]
    tokens += [("[PAD1]", -1000.0, UNUSED), ("[PAD2]", -1000.0, UNUSED)]
    return tokens


def world(text):
    """Tokens of RWKV: all bytes, parts of the text by their frequency, cut also within characters, padding."""
    tokens = [bytes([i]) for i in range(256)] + [b"\t\t", b"\t\n", b"\t ", b"\n\t", b"\n\n"]
    raw, counts = text.encode()[:200000], {}
    for start in range(len(raw) - 7):
        for length in range(2, 8):
            piece = raw[start:start + length]
            counts[piece] = counts.get(piece, 0) + length
    best = sorted(counts, key=lambda piece: (-counts[piece], piece))[:TOKENS]
    tokens += [piece for piece in best if piece not in tokens and piece != b"<s>"]
    tokens = [("<s>", CONTROL)] + [(repr(piece)[2:-1], NORMAL) for piece in tokens]
    return tokens + [(f"[PAD{len(tokens)}]", UNUSED)]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, out, text = map(Path, sys.argv[1:])
    text = text.read_bytes().decode()
    out.mkdir(parents=True, exist_ok=True)
    code = (source / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    names = list(dict.fromkeys(re.findall(r'tokenizer_pre == "([^"]+)"', code)))
    if len(names) < 80:
        sys.exit(f"{source}: the names of the pre-tokenizers are not where they used to be")
    own, merges = learn(text)
    tokens = ["<|made bos|>", "<|made eos|>", *own]
    types = [CONTROL, CONTROL, *[NORMAL] * len(own)]
    gemma = {key: field.contents() for key, field in
             GGUFReader(source / "models" / "ggml-vocab-gemma-4.gguf").fields.items() if key.startswith("tokenizer.ggml.")}
    gemma = {key.removeprefix("tokenizer.ggml."): value for key, value in gemma.items()}
    for name in names:
        path = out / f"split-{name}.gguf"
        if name in OTHER_MODELS:
            print(f"left out   {name}: not of a byte-pair encoder")
        elif name in RAW:
            write(path, "gpt2", name, gemma["tokens"], gemma["token_type"], gemma["merges"])
        else:
            write(path, "gpt2", name, tokens, types, merges)
    texts, types = zip(*world(text))
    write(out / "split-rwkv.gguf", "rwkv", "default", texts, types)
    texts, scores, types = zip(*plamo(text))
    write(out / "split-plamo2.gguf", "plamo2", "default", texts, types, scores=scores)


if __name__ == "__main__":
    main()
