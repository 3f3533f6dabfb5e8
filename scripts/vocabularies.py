#!/usr/bin/env python3
"""Makes Hugging Face tokenizer files of the reference's vocabularies (models/ggml-vocab-*.gguf).

    vocabularies.py SOURCE OUT [NAME ...]     all vocabularies of convertible architectures, or those named
    vocabularies.py --jobs SOURCE OUT         the conversions that write OUT/NAME.gguf for each: a line of jobs for
                                              convert-reference.py

SOURCE is the reference's directory. OUT/NAME gets a config.json, tokenizer.json or tokenizer.model, and their companion
files. A GGUF stores texts, scores, types and merges; splitting, normalization and special tokens are added here by
the name of the vocabulary, as in the models' own files.

Needs gguf, torch and sentencepiece (scripts/reference.sh --python).
"""

import ast
import json
import re
import sys
from pathlib import Path

import checkpoints
import small_vocabularies
from checkpoints import base, write_spm_config
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SCORE_OF_ADDED = -1000.0
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
QWEN35 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def in_turn(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def of_source(source, name, skip_last=0):
    """Patterns of a pre-tokenizer in the reference's source: those of DeepSeek are the models' own."""
    text = (source / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    block = re.search(r"case LLAMA_VOCAB_PRE_TYPE_%s:(?:.|\n)*?\{((?:.|\n)*?)\n\s*\};" % name, text)[1]
    literals = [ast.literal_eval(line.strip().rstrip(",")) for line in block.splitlines() if line.strip().startswith('"')]
    return [split(pattern) for pattern in literals[:len(literals) - skip_last]]


def pre_tokenizer(source, name):
    """Text splitting of a vocabulary's models."""
    return {
        "aquila": lambda: byte_level(True),
        "command-r": lambda: in_turn(digits(True), byte_level(True)),
        "deepseek-coder": lambda: in_turn(*of_source(source, "DEEPSEEK_CODER", 1), digits(True), byte_level(False)),
        "deepseek-llm": lambda: in_turn(*of_source(source, "DEEPSEEK_LLM", 1), digits(True), byte_level(False)),
        "falcon": lambda: in_turn({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True), digits(False),
                                  split("[0-9][0-9][0-9]")),
        "gpt-2": lambda: byte_level(True),
        "gpt-neox": lambda: byte_level(True),
        "llama-bpe": lambda: in_turn(split(LLAMA3), byte_level(False)),
        "mpt": lambda: byte_level(True),
        "qwen2": lambda: in_turn(split(QWEN2), byte_level(False)),
        "qwen35": lambda: in_turn(split(QWEN35), byte_level(False)),
        "refact": lambda: in_turn(digits(True), byte_level(True)),
        "starcoder": lambda: in_turn(digits(True), byte_level(True)),
    }[name]()


# Name -> class, model type, class of the tokenizer. What is no model of the class serves for its kind of vocabulary.
VOCABULARIES = {
    "aquila": ("LlamaForCausalLM", "llama", "GPT2Tokenizer"),
    "baichuan": ("LlamaForCausalLM", "llama", "LlamaTokenizer"),
    "command-r": ("GPT2LMHeadModel", "gpt2", "CohereTokenizerFast"),
    "deepseek-coder": ("LlamaForCausalLM", "llama", "LlamaTokenizerFast"),
    "deepseek-llm": ("LlamaForCausalLM", "llama", "LlamaTokenizerFast"),
    "falcon": ("GPT2LMHeadModel", "gpt2", "PreTrainedTokenizerFast"),
    "gemma-4": ("LlamaForCausalLM", "llama", "GemmaTokenizerFast"),
    "gpt-2": ("GPT2LMHeadModel", "gpt2", "GPT2Tokenizer"),
    "gpt-neox": ("GPT2LMHeadModel", "gpt2", "GPTNeoXTokenizer"),
    "llama-bpe": ("LlamaForCausalLM", "llama", "PreTrainedTokenizerFast"),
    "llama-spm": ("MistralForCausalLM", "mistral", "LlamaTokenizer"),
    "mpt": ("GPT2LMHeadModel", "gpt2", "GPTNeoXTokenizer"),
    "phi-3": ("Phi3ForCausalLM", "phi3", "LlamaTokenizer"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", "Qwen2Tokenizer"),
    "qwen35": ("Qwen3ForCausalLM", "qwen3", "Qwen2Tokenizer"),
    # Qwen 1's vocabulary is that of Qwen 2 without the last tokens, in a file of ranks.
    "qwen1": ("QWenLMHeadModel", "qwen", "QWenTokenizer"),
    "refact": ("GPT2LMHeadModel", "gpt2", "GPT2TokenizerFast"),
    "starcoder": ("Starcoder2ForCausalLM", "starcoder2", "GPT2Tokenizer"),
}
COMPOSED = ("command-r", "gpt-neox", "mpt", "qwen2", "qwen35")
ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


class Vocabulary:
    def __init__(self, source, name):
        fields = GGUFReader(source / "models" / f"ggml-vocab-{name}.gguf").fields
        self.fields = {key.removeprefix("tokenizer.ggml."): field for key, field in fields.items()}
        self.model = self.get("model")
        self.texts = self.get("tokens")
        self.types = self.get("token_type")
        self.scores = self.get("scores") or [0.0] * len(self.texts)
        self.merges = self.get("merges") or []

    def get(self, key):
        field = self.fields.get(key)
        return None if field is None else field.contents()

    def roles(self):
        ids = {role: self.get(key) for role, key in ROLES.items()}
        return {f"{role}_token": self.texts[id] for role, id in ids.items() if id is not None}

    def template(self):
        field = self.fields.get("tokenizer.chat_template")
        names = self.fields.get("tokenizer.chat_templates")
        if field is None:
            return {}
        if names is None:
            return {"chat_template": field.contents()}
        # One beside the default: the reference lists several in the order of a set, which varies between runs.
        name = names.contents()[0]
        named = self.fields[f"tokenizer.chat_template.{name}"].contents()
        return {"chat_template": [{"name": "default", "template": field.contents()}, {"name": name, "template": named}]}

    def is_padding(self, id):
        # Older converters marked unused ids as unknown.
        return self.types[id] in (UNUSED, UNKNOWN) and self.texts[id] == f"[PAD{id}]"

    def added(self):
        """Ids of the tokens that are split off first."""
        return [id for id, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED) and not self.is_padding(id)]


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_sentencepiece(folder, vocabulary, name):
    proto = sentencepiece_model_pb2.ModelProto()
    piece = sentencepiece_model_pb2.ModelProto.SentencePiece
    kinds = {NORMAL: piece.NORMAL, UNKNOWN: piece.UNKNOWN, CONTROL: piece.CONTROL, USER_DEFINED: piece.USER_DEFINED,
             UNUSED: piece.UNUSED, BYTE: piece.BYTE}
    added = {id: text for id, text in enumerate(vocabulary.texts)
             if vocabulary.scores[id] == SCORE_OF_ADDED and vocabulary.types[id] != NORMAL}
    # Tokens after the last non-added one are not pieces.
    size = max(id for id in range(len(vocabulary.texts)) if id not in added and not vocabulary.is_padding(id)) + 1
    for id in range(size):
        kind = kinds[vocabulary.types[id]]
        if id in added:
            kind = piece.UNKNOWN if id == 0 else piece.CONTROL
        score = 0.0 if id in added else vocabulary.scores[id]
        proto.pieces.add(piece=vocabulary.texts[id], score=score, type=kind)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    proto.trainer_spec.vocab_size = size
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    decoder = {str(id): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                         "special": vocabulary.types[id] == CONTROL} for id, text in added.items()}
    more = vocabulary.roles() | vocabulary.template() | ({"added_tokens_decoder": decoder} if decoder else {})
    if name == "phi-3":
        write_json(folder / "added_tokens.json", {text: id for id, text in added.items() if id >= size})
    write_spm_config(folder, **more)


def write_tokenizer_json(folder, source, vocabulary, name, tokenizer_class):
    added = vocabulary.added()
    like_sentencepiece = vocabulary.model == "gemma4"
    # Special tokens at the end are only in added_tokens; others are in the vocabulary too.
    last = max(id for id in range(len(vocabulary.texts))
               if id not in set(added) and vocabulary.types[id] not in (CONTROL, USER_DEFINED)
               and not vocabulary.is_padding(id))
    size = len(vocabulary.texts) if like_sentencepiece else last + 1
    vocab = {text: id for id, text in enumerate(vocabulary.texts[:size]) if not vocabulary.is_padding(id)}
    entries = [{"id": id, "content": vocabulary.texts[id], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": vocabulary.types[id] == CONTROL} for id in added]
    merges = [list(halves(merge, vocab)) for merge in vocabulary.merges]
    roles = vocabulary.roles()
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": name == "llama-bpe", "vocab": vocab, "merges": merges}
    normalizer = {"type": "NFC"} if name in COMPOSED else None
    pre, decoder = None, byte_level(True)
    if like_sentencepiece:
        model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": roles["unk_token"]}
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        decoder = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]}
    else:
        pre = pre_tokenizer(source, name)
    post = byte_level(True)
    if vocabulary.get("add_bos_token") or name == "llama-bpe":
        bos = roles["bos_token"]
        text = [{"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB")]
        first = [{"SpecialToken": {"id": bos, "type_id": i}} for i in range(2)]
        post = {"type": "TemplateProcessing", "single": [first[0], text[0]],
                "pair": [first[0], text[0], first[1], text[1]],
                "special_tokens": {bos: {"id": bos, "ids": [vocabulary.texts.index(bos)], "tokens": [bos]}}}
        if name == "llama-bpe":
            post = {"type": "Sequence", "processors": [byte_level(True), post]}
    write_json(folder / "tokenizer.json",
               {"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries,
                "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder,
                "model": model})
    # The class would add its own <unk>.
    config = {"tokenizer_class": tokenizer_class, "unk_token": None} | roles | vocabulary.template()
    for key in "add_bos_token", "add_eos_token":
        if (adds := vocabulary.get(key)) is not None:
            config[key] = adds
    write_json(folder / "tokenizer_config.json", config)


def halves(merge, vocab):
    """The two tokens of a merge, which may contain spaces."""
    at = merge.find(" ", 1)
    while at > 0:
        if merge[:at] in vocab and merge[at + 1:] in vocab:
            return merge[:at], merge[at + 1:]
        at = merge.find(" ", at + 1)
    raise ValueError(f"the merge {merge!r} is not of two tokens")


def write_qwen1(folder, source):
    letters = {letter: byte for byte, letter in enumerate(checkpoints.byte_letters())}
    vocabulary = Vocabulary(source, "qwen2")
    texts = [text for text, kind in zip(vocabulary.texts, vocabulary.types) if kind == NORMAL]
    ranks = {bytes(letters[c] for c in text): rank for rank, text in enumerate(texts)}
    small_vocabularies.tiktoken(folder, "qwen.tiktoken", small_vocabularies.QWEN, tokens=ranks)
    write_json(folder / "config.json", base("QWenLMHeadModel", "qwen", 151936, bos_token_id=None, eos_token_id=None))


def make(source, out, name):
    model_class, model_type, tokenizer_class = VOCABULARIES[name]
    if name == "qwen1":
        (out / name).mkdir(parents=True, exist_ok=True)
        return write_qwen1(out / name, source)
    vocabulary = Vocabulary(source, name)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    config = base(model_class, model_type, len(vocabulary.texts))
    if model_type == "gpt2":
        config = checkpoints.gpt2()[0] | {"vocab_size": len(vocabulary.texts)}
    for role, key in ROLES.items():
        if (id := vocabulary.get(key)) is not None:
            config[f"{role}_token_id"] = int(id)
    write_json(folder / "config.json", config)
    if vocabulary.model == "llama":
        write_sentencepiece(folder, vocabulary, name)
    else:
        write_tokenizer_json(folder, source, vocabulary, name, tokenizer_class)


def main():
    jobs = sys.argv[1:2] == ["--jobs"]
    arguments = sys.argv[1 + jobs:]
    if len(arguments) < 2:
        sys.exit(__doc__)
    source, out = map(Path, arguments[:2])
    for name in arguments[2:] or VOCABULARIES:
        if jobs:
            print(out / name, "--vocab-only", "--outfile", out / f"{name}.gguf", sep="\t")
        else:
            make(source, out, name)


if __name__ == "__main__":
    main()
