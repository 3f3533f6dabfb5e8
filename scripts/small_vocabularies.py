#!/usr/bin/env python3
"""Makes checkpoints without weights, for each family's vocabulary format that no real vocabulary of the
reference has.

    small_vocabularies.py OUT              OUT/NAME for each: config.json and the files of its tokenizer
    small_vocabularies.py --jobs OUT       the conversions that write OUT/NAME.gguf: a line of jobs for
                                           convert-reference.py
    small_vocabularies.py --goldens OUT    stores those without a tokenizer.model, and the reference's files of them, in
                                           crates/tokenizer/testdata

Some tokenizers are programs beside the checkpoint, which the reference runs. For these, a program with the same
interface is written here; its input and special tokens are those of the models' own programs.

Needs torch and sentencepiece (scripts/reference.sh --python), as checkpoints.py does.
"""

import base64
import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path

import checkpoints
import embedding_checkpoints as embeddings
from checkpoints import BPE_VOCAB, HERE, REFMODEL, SPM_VOCAB, base, byte_letters, gpt2, write_bpe, write_spm_config
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2

TEXT_END = "<|endoftext|>"
# Words whose pairs of bytes become tokens, beside all bytes.
WORDS = "the and ing that with from  this have not for are you was all one said word line text model token".split(" ")


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def ranks():
    """Tokens of a tiktoken file: all bytes, then the beginnings of words, so that each is a merge of two earlier ones."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in WORDS:
        for start in ("", " "):
            text = (start + word).encode()
            tokens += [text[:n] for n in range(2, len(text) + 1)]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def write_ranks(path, tokens, twice=False):
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in tokens.items()]
    if twice:
        lines.insert(300, lines[42])
    path.write_text("\n".join(lines) + "\n")


PROGRAM = '''
import base64
import types
import unicodedata

import regex
from transformers import PreTrainedTokenizer

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
           r"|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")


class MadeTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "%(file)s"}

    def __init__(self, vocab_file, **kwargs):
        self.mergeable_ranks = {}
        for line in open(vocab_file, "rb"):
            token = base64.b64decode(line.split()[0])
            self.mergeable_ranks.setdefault(token, len(self.mergeable_ranks))
        first = len(self.mergeable_ranks) + %(gap)d
        self.special_tokens = {text: first + i for i, text in enumerate(%(special)r)}
        # Names of Kimi's program.
        self.model, self.eos_id = types.SimpleNamespace(_mergeable_ranks=self.mergeable_ranks), self.special_tokens.get("[EOS]")
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return max(self.special_tokens.values()) + 1

    def get_vocab(self):
        return self.mergeable_ranks

    def encode(self, text, **_):
        ids = []
        for word in regex.findall(PATTERN, unicodedata.normalize("NFC", text)):
            parts = [bytes([byte]) for byte in word.encode()]
            while True:
                pairs = [(self.mergeable_ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
                rank, i = min(pairs, default=(1 << 30, 0))
                if rank == 1 << 30:
                    break
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
            ids += [self.mergeable_ranks[part] for part in parts]
        return ids

    def _add_tokens(self, new_tokens, special_tokens=False):
        return 0

    def _convert_token_to_id(self, token):
        return self.mergeable_ranks.get(token, self.special_tokens.get(token, 0))
'''
EXTRAS = [f"<|extra_{i}|>" for i in range(205)]
QWEN = [TEXT_END, "<|im_start|>", "<|im_end|>", *EXTRAS]
HUNYUAN = [TEXT_END, "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *EXTRAS]
ARCADE = [TEXT_END, *(f"<|fim_{n}|>" for n in ("prefix", "middle", "suffix", "pad")), "<gh_stars>", "<filename>",
          *(f"<issue_{n}>" for n in ("start", "comment", "closed")),
          *(f"<jupyter_{n}>" for n in ("start", "text", "code", "output")), "<empty_output>",
          *(f"<commit_{n}>" for n in ("before", "msg", "after")), "<reponame>", "<|endofprompt|>", "<|im_start|>",
          "<|im_end|>", "<|pause|>", *(f"<|reg{i}|>" for i in range(8)), "<|extra0|>"]


def tiktoken(folder, file, special, **more):
    """A tokenizer of ranks (by default our own) with its program. Returns the number of tokens."""
    gap, tokens = more.pop("gap", 0), more.pop("tokens", None) or ranks()
    write_ranks(folder / file, tokens, more.pop("twice", False))
    (folder / "tokenization_made.py").write_text(PROGRAM % {"file": file, "gap": gap, "special": special})
    config = {"tokenizer_class": "MadeTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_made.MadeTokenizer", None]}}
    write_json(folder / "tokenizer_config.json", config | more)
    return len(tokens) + gap + len(special)


def byte_level(folder, added=(), plain=(), **more):
    """checkpoints.py's byte-level vocabulary with more added tokens, special and plain. Returns the number of tokens."""
    write_bpe(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    size = len(tokenizer["model"]["vocab"])
    for text in (*added, *plain):
        tokenizer["added_tokens"].append({"id": size, "content": text, "single_word": False, "lstrip": False,
                                          "rstrip": False, "normalized": False, "special": text in added})
        size += 1
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") | more)
    return size


def slow(folder, tokenizer_class, **more):
    """vocab.json and merges.txt of the same vocabulary, without tokenizer.json."""
    write_bpe(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", tokenizer["model"]["vocab"])
    lines = ["#version: 0.2", *(" ".join(merge) for merge in tokenizer["model"]["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class} | more)
    return len(tokenizer["model"]["vocab"])


def pieces(folder, change=lambda proto: None):
    """The reference model's SentencePiece model with changes. Returns the number of its pieces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((REFMODEL / "tokenizer.model").read_bytes())
    change(proto)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return len(proto.pieces)


def decoder(**texts):
    """added_tokens_decoder: name of a token with its id and true for special ones."""
    return {str(id): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                      "special": special} for text, (id, special) in texts.items()}


def config(cls, model_type, size, **more):
    return base(cls, model_type, size) | more


def glm4(folder):
    size = byte_level(folder, [TEXT_END, "[gMASK]", "<sop>", "<|user|>", "<|observation|>"], ["<think>"])
    return config("Glm4ForCausalLM", "glm4", size + 7, eos_token_id=[size - 6, size - 3], bos_token_id=None)


def glm_moe(folder):
    return glm4(folder) | {"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "bos_token_id": 1}


def chatglm(folder):
    return glm4(folder) | {"architectures": ["GlmForCausalLM"], "model_type": "glm", "eos_token_id": 2}


CHATGLM3 = '''
import sentencepiece
from transformers import PreTrainedTokenizer

SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


class Pieces:
    def __init__(self, path):
        self.sp_model = sentencepiece.SentencePieceProcessor(path)


class MadeTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "tokenizer.model"}

    def __init__(self, vocab_file, **kwargs):
        self.tokenizer = Pieces(vocab_file)
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.tokenizer.sp_model.vocab_size() + len(SPECIAL)

    def get_vocab(self):
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def _add_tokens(self, new_tokens, special_tokens=False):
        return 0

    def _convert_id_to_token(self, index):
        model = self.tokenizer.sp_model
        if 0 <= index - model.vocab_size() < len(SPECIAL):
            return SPECIAL[index - model.vocab_size()]
        return "" if index < 3 or index >= model.vocab_size() else model.IdToPiece(index)
'''


def chatglm3(folder):
    size = pieces(folder)
    (folder / "tokenization_made.py").write_text(CHATGLM3)
    auto = {"AutoTokenizer": ["tokenization_made.MadeTokenizer", None]}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MadeTokenizer", "auto_map": auto})
    return config("ChatGLMModel", "chatglm", size, padded_vocab_size=size + 20, _name_or_path="THUDM/chatglm3-6b",
                  num_layers=2)


def hunyuan(folder):
    size = byte_level(folder, [TEXT_END, "<|eos|>"])
    write_json(folder / "generation_config.json", {"eos_token_id": [size - 2, size - 1]})
    return config("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", size, pad_token_id=-1, eod_token_id=size - 1)


def hunyuan_vl(folder):
    more = {"architectures": ["HunYuanVLForConditionalGeneration"], "model_type": "hunyuan_vl"}
    return hunyuan(folder) | more


def hunyuan_tiktoken(folder, **more):
    size = tiktoken(folder, "hy.tiktoken", HUNYUAN, twice=True, chat_template="{{ messages }}")
    return config("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", size, hidden_size=4096, eod_token_id=5, **more)


def hunyuan_moe(folder):
    return hunyuan_tiktoken(folder) | {"architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan"}


def kimi(folder):
    """Special tokens by number: two without names, one outside the vocabulary, and padding after none."""
    first = len(ranks())
    named = {first: "[BOS]", first + 1: "[EOS]", first + 2: "<|im_end|>", first + 4: "<|im_user|>", first + 256: "[UNK]",
             first + 257: "[PAD]"}
    special = [named.get(i, f"<|reserved_token_{i}|>") for i in range(first, first + 258)]
    tiktoken(folder, "tiktoken.model", special, eos_token="[EOS]", bos_token="[BOS]", chat_template="{{ messages }}",
             added_tokens_decoder={str(i): {"content": text, "special": True} for i, text in named.items()})
    linear = {"linear_attn_config": {"full_attn_layers": [1]}}
    return config("KimiLinearForCausalLM", "kimi_linear", first + 257, bos_token_id=first, eos_token_id=first + 2, **linear)


def kimi_k2(folder):
    """The same in a DeepSeek V3, whose EOS token the configuration says."""
    return kimi(folder) | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}


def qwen1(folder):
    size = tiktoken(folder, "qwen.tiktoken", QWEN)
    return config("QWenLMHeadModel", "qwen", size + 13, bos_token_id=None, eos_token_id=None)


def qwen1_ids(folder):
    return qwen1(folder) | {"eos_token_id": 7}


def stablelm_tiktoken(folder):
    size = tiktoken(folder, "arcade100k.tiktoken", ARCADE, gap=1)
    return config("StableLmForCausalLM", "stablelm", size + 3)


def internlm2(folder, added=True):
    def change(proto):
        proto.pieces[500].piece = "\0"
        proto.pieces[501].piece = "[UNUSED_TOKEN_7]"
        proto.normalizer_spec.add_dummy_prefix = False

    size = pieces(folder, change)
    more = decoder(**{"<|im_end|>": (size - 3, True), "<|tool|>": (size - 2, False), "\u2581x": (size - 1, False)})
    if added:
        write_json(folder / "added_tokens.json", {"<new>": size})
    write_spm_config(folder, added_tokens_decoder=more)
    return config("InternLM2ForCausalLM", "internlm2", size)


def internlm2_plain(folder):
    size = pieces(folder)
    write_spm_config(folder)
    return config("InternLM2ForCausalLM", "internlm2", size - 5)


def internlm3(folder):
    size = pieces(folder)
    more = decoder(**{"<|im_end|>": (size, True), "<|tool|>": (size + 1, False), "<s>": (1, True)})
    write_spm_config(folder, added_tokens_decoder=more, add_prefix_space=False)
    return config("InternLM3ForCausalLM", "internlm3", size + 4)


def like_sentencepiece(folder, zero=False):
    """A tokenizer.json converted from SentencePiece, with bytes and added tokens."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdefgh"] + ["\0"] * zero
    vocab = {text: id for id, text in enumerate(texts)}
    merges = [["a", "b"], ["ab", "c"], ["▁", "a"]]
    vocab |= {"ab": len(vocab), "abc": len(vocab) + 1, "▁a": len(vocab) + 2}
    texts = [("<unk>", 0, True), ("<s>", 1, True), ("</s>", 2, True), ("<end>", len(vocab), True),
             ("<tool>", len(vocab) + 1, False)]
    added = [{"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": special} for text, id, special in texts]
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges}
    normalizer = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    write_json(folder / "tokenizer.json",
               {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
                "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Sequence", "decoders": steps},
                "model": model})
    write_spm_config(folder, tokenizer_class="PreTrainedTokenizerFast")
    return len(vocab) + 2


def xverse(folder):
    return config("XverseForCausalLM", "xverse", like_sentencepiece(folder, zero=True), pad_token_id=0)


def deci(folder):
    return config("DeciLMForCausalLM", "nemotron-nas", like_sentencepiece(folder))


def deci_llama3(folder):
    byte_level(folder)
    return config("DeciLMForCausalLM", "nemotron-nas", 128256)


def plamo3(folder):
    names = ["unk", "bos", "eos", "pad"]
    lines = [[f"<|plamo:{n}|>", 0.0, "UNKNOWN" if n == "unk" else "CONTROL", None] for n in names]
    lines += [["<|plamo:op|>", 0.0, "NORMAL"], *([f"<0x{b:02X}>", 0.0, "BYTE"] for b in range(256))]
    lines += [[text, -float(n) / 3, "NORMAL"] for n, text in enumerate(["a", "b", "ab", " the", "漢", "漢字", "\u2028"])]
    text = "\n".join(json.dumps(line, ensure_ascii=n % 2 == 0) for n, line in enumerate(lines))
    (folder / "tokenizer.jsonl").write_text(text + "\n\n", encoding="utf-8")
    roles = {f"{n}_token": f"<|plamo:{n}|>" for n in names} | {"sep_token": None, "chat_template": "{{ one }}"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PlamoTokenizer"} | roles)
    (folder / "chat_template.jinja").write_text("{{ other }}")
    return config("Plamo3ForCausalLM", "plamo3", len(lines) + 3)


def refact(folder):
    size = byte_level(folder, chat_template="{{ messages }}")
    return gpt2()[0] | {"architectures": ["GPTRefactForCausalLM"], "model_type": "gpt_refact", "vocab_size": size,
                        "eot_token_id": 4}


def mpt(folder):
    return config("MPTForCausalLM", "mpt", byte_level(folder), n_layers=2)


def mpt_sentencepiece(folder):
    # A class unknown to transformers: it reads no tokenizer then, and the reference falls back.
    pieces(folder)
    write_spm_config(folder, tokenizer_class="MadeTokenizer")
    return config("MPTForCausalLM", "mpt", SPM_VOCAB, n_layers=2)


def muse_glimmer(folder):
    size = byte_level(folder, ["<|eot|>"])
    return config("MuseGlimmerForConditionalGeneration", "muse_glimmer", size)


def muse_glimmer_unknown(folder):
    return config("MuseGlimmerForConditionalGeneration", "muse_glimmer", byte_level(folder))


def llada(folder):
    size = byte_level(folder, ["<|eot|>"], ["<|plain|>", "▁▁"])
    return config("LLaDAModelLM", "llada", size, n_layers=2)


def dream(folder):
    return llada(folder) | {"architectures": ["DreamModel"], "model_type": "Dream"}


def gpt2_slow(folder):
    size = slow(folder, "GPT2Tokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True)
    write_json(folder / "added_tokens.json", {"<new>": size + 1, "<|end|>": size + 2})
    return gpt2()[0] | {"vocab_size": BPE_VOCAB}


def gpt2_slow_plain(folder):
    slow(folder, "GPT2Tokenizer")
    return gpt2()[0] | {"vocab_size": BPE_VOCAB}


def qwen2_slow(folder):
    size = slow(folder, "Qwen2Tokenizer", added_tokens_decoder=decoder(**{
        "<|endoftext|>": (BPE_VOCAB - 9, True), "<|im_start|>": (3, True), "<tool>": (BPE_VOCAB - 8, False)}),
        chat_template="{{ messages }}", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    return config("Qwen2ForCausalLM", "qwen2", max(size, BPE_VOCAB) + 8, eos_token_id=4, pad_token_id=3)


def codegen_slow(folder):
    size = slow(folder, "CodeGenTokenizer")
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    write_json(folder / "added_tokens.json", {"  ": size + 1, "\t\t": size + 2})
    return config("PhiForCausalLM", "phi", BPE_VOCAB + 8)


def tekken(folder, version="v3", named=None):
    tokens = list(ranks())
    count = 40
    write_json(folder / "tekken.json", {
        "config": {"pattern": "[^\\s]+|\\s+", "num_vocab_tokens": len(tokens), "default_vocab_size": len(tokens) + count - 9,
                   "default_num_special_tokens": count, "version": version},
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
                  for rank, token in enumerate(tokens)]} | ({"special_tokens": named} if named else {}))
    return config("LlamaForCausalLM", "llama", len(tokens) + count - 9)


def tekken_v7(folder):
    both = ["INST", "AVAILABLE_TOOLS", "TOOL_RESULTS", "SYSTEM_PROMPT"]
    names = ["<pad>", "</s>", "<s>", "<unk>", *(f"[{slash}{n}]" for n in both for slash in ("", "/")), "[MADE]", "[TOOL_CALLS]",
             "[TOOL_CONTENT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
    return tekken(folder, "v7", [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(names)])


def bert(folder):
    embeddings.write_word_piece(folder)
    return embeddings.fields("BertModel", "bert", embeddings.BERT_VOCAB)


def roberta(folder):
    embeddings.write_roberta(folder, checkpoints)
    return embeddings.fields("RobertaModel", "roberta", BPE_VOCAB, type_vocab_size=1, pad_token_id=1)


def of_xlm_roberta(size):
    return embeddings.fields("XLMRobertaModel", "xlm-roberta", size, type_vocab_size=1, pad_token_id=1)


def xlm_roberta(folder):
    embeddings.write_xlm_roberta(folder)
    return of_xlm_roberta(embeddings.XLM_PIECES + 2)


def xlm_roberta_json(folder):
    embeddings.write_unigram_json(folder)
    return of_xlm_roberta(embeddings.UNIGRAM_VOCAB + 2)


def nomic_bert_moe(folder):
    """A mask token behind those of the file, which has nothing for its number."""
    embeddings.write_unigram_json(folder)
    embeddings.write_xlm_roberta(folder)
    return embeddings.nomic(embeddings.EXPERTS, vocab=250_048)[0]


def jina_bert_words(folder):
    embeddings.write_words(folder, checkpoints)
    return embeddings.jina(False, "words", BPE_VOCAB)[0]


def modern_bert(folder):
    embeddings.tokenizers(checkpoints)["roberta-plain"](folder)
    return embeddings.modern("ModernBertModel", "")[0]


def euro_bert(folder):
    embeddings.tokenizers(checkpoints)["roberta-plain"](folder)
    return embeddings.euro(checkpoints)[0]


def t5(folder):
    embeddings.write_t5(folder)
    return embeddings.t5()[0]


MADE = {f.__name__: f for f in (
    glm4, glm_moe, chatglm, chatglm3, hunyuan, hunyuan_vl, hunyuan_tiktoken, hunyuan_moe, kimi, kimi_k2, qwen1, qwen1_ids, stablelm_tiktoken, internlm2,
    internlm2_plain, internlm3, xverse, deci, deci_llama3, plamo3, refact, mpt, mpt_sentencepiece, muse_glimmer,
    muse_glimmer_unknown, llada, dream, gpt2_slow, gpt2_slow_plain, qwen2_slow, codegen_slow, tekken, tekken_v7, bert, roberta, xlm_roberta,
    xlm_roberta_json, nomic_bert_moe, jina_bert_words, modern_bert, euro_bert, t5)}


def shown(field):
    """A GGUF value on one line; an array as its type, length and SHA-256."""
    value, kind = field.contents(), field.types[-1].name
    if len(field.types) == 1:
        return str(value).lower() if kind == "BOOL" else json.dumps(value, ensure_ascii=False)
    digest = hashlib.sha256()
    for element in value:
        text = element.encode() if kind == "STRING" else struct.pack("<f" if kind == "FLOAT32" else "<i", element)
        digest.update(struct.pack("<I", len(text)) + text)
    return f"{kind.lower()} {len(value)} {digest.hexdigest()}"


def write_goldens(out):
    data = HERE.parent / "crates" / "tokenizer" / "testdata"
    lines = []
    for name in sorted(MADE):
        if (out / name / "tokenizer.model").is_file():
            continue
        shutil.rmtree(data / name, ignore_errors=True)
        shutil.copytree(out / name, data / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        fields = GGUFReader(out / f"{name}.gguf").fields
        lines += [f"{name} {key} {shown(field)}\n" for key, field in fields.items() if key.startswith("tokenizer.")]
    (data / "vocabularies.golden").write_text("".join(lines), encoding="utf-8")


def main():
    mode = sys.argv[1] if len(sys.argv) == 3 else None
    if len(sys.argv) not in (2, 3) or mode not in (None, "--jobs", "--goldens"):
        sys.exit(__doc__)
    out, jobs = Path(sys.argv[-1]), mode == "--jobs"
    if mode == "--goldens":
        return write_goldens(out)
    for name, make in MADE.items():
        if jobs:
            print(out / name, "--vocab-only", "--outfile", out / f"{name}.gguf", sep="\t")
            continue
        (out / name).mkdir(parents=True, exist_ok=True)
        write_json(out / name / "config.json", make(out / name))


if __name__ == "__main__":
    main()
