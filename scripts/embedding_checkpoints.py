"""Checkpoints of embedding models, rerankers and encoder-decoders, for scripts/checkpoints.py, whose parts (`c`) they are
made of, and their tokenizers."""

import base64
import json
import struct

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

HIDDEN, HEADS, LAYERS, FFN, POSITIONS = 128, 4, 2, 256, 96
HEAD = HIDDEN // HEADS
EXPERTS = 4
PADDING = 1

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "and", "ing", "hello", "world", "over", "fox", "un", "token", "ization", "é", "ü"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_pieces():
    """Tokens of WordPiece: special ones, unused ones, characters and words, each as a beginning and as a continuation."""
    single = [*LETTERS, *"0123456789", *"日本語中文字", *(chr(c) for c in range(33, 127) if not chr(c).isalnum())]
    whole = [*single, *WORDS]
    tokens = [*BERT_SPECIAL[:1], *(f"[unused{i}]" for i in range(4)), *BERT_SPECIAL[1:], *whole]
    return list(dict.fromkeys([*tokens, *("##" + text for text in whole)]))


BERT_VOCAB = len(word_pieces()) + 9


def special(ids, plain=(), **flags):
    """Entries of added_tokens: special tokens by text, and plain ones."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": t, **usual, "special": t not in plain, **flags.get(t, {})} for t, i in ids.items()]


def template(first, last, ids):
    """Adds a token before and another behind each text."""
    def part(name, number):
        return {"Sequence": {"id": name, "type_id": number}}

    def token(name, number):
        return {"SpecialToken": {"id": name, "type_id": number}}

    tokens = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (first, last)}
    return {"type": "TemplateProcessing", "single": [token(first, 0), part("A", 0), token(last, 0)],
            "pair": [token(first, 0), part("A", 0), token(last, 0), part("B", 1), token(last, 1)], "special_tokens": tokens}


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_word_piece(folder, lowercase=True, plain=True, tokenizer_class="BertTokenizer"):
    tokens = word_pieces()
    ids = {t: i for i, t in enumerate(tokens)}
    added = {t: ids[t] for t in BERT_SPECIAL}
    if plain:
        added |= {"<Plain Word>": len(tokens) + 1}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                  "lowercase": lowercase}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
             "vocab": ids}
    dump(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special(added, ["<Plain Word>"]),
        "normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template("[CLS]", "[SEP]", ids), "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model})
    roles = {f"{t.strip('[]').lower()}_token": t for t in BERT_SPECIAL}
    dump(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class, "do_lower_case": lowercase,
                                            "clean_up_tokenization_spaces": True, "tokenize_chinese_chars": True,
                                            "strip_accents": None, "model_max_length": 512} | roles)


def write_vocab_txt(folder):
    """The same without tokenizer.json."""
    write_word_piece(folder, plain=False)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in word_pieces()), encoding="utf-8")


def write_roberta(folder, c, post="RobertaProcessing", tokenizer_class="RobertaTokenizer"):
    """The byte-level vocabulary of the other checkpoints with RoBERTa's special tokens."""
    c.write_bpe(folder, ["<pad>", "<mask>"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    if post == "RobertaProcessing":
        tokenizer["post_processor"] = {"type": post, "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]],
                                       "trim_offsets": True, "add_prefix_space": False}
    else:
        tokenizer["post_processor"] = template("<s>", "</s>", ids)
    for token in tokenizer["added_tokens"]:
        token["lstrip"] = token["content"] == "<mask>"
    dump(folder / "tokenizer.json", tokenizer)
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
        "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>", "add_prefix_space": False})


def write_words(folder, c):
    """Byte-pair encoding of whole words without letters for bytes."""
    write_roberta(folder, c)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    tokenizer["decoder"] = None
    tokenizer["model"]["unk_token"] = "<unk>"
    dump(folder / "tokenizer.json", tokenizer)


def charsmap():
    """A compiled map of characters: U+FB01 to "fi", U+2460 to "1". A double array of bytes, then the replacements."""
    entries = {"\ufb01".encode(): 0, "\u2460".encode(): 3}
    replacements = b"fi\0001\0"
    tree = [{}]
    for key, value in entries.items():
        node = 0
        for byte in key:
            if byte not in tree[node]:
                tree[node][byte] = len(tree)
                tree.append({})
            node = tree[node][byte]
        tree[node][0] = ("value", value)
    # Children of a node at the exclusive or of its base and their bytes; a base of its own block for every node.
    array = [0] * 256 * (len(tree) + 1)
    place = {0: 0}
    for number, children in enumerate(tree):
        at = place[number]
        base = 256 * (number + 1)
        # The base is stored relative to the node's own place.
        offset = base if number == 0 else at ^ base
        leaf = 0 in children
        assert offset < 1 << 21
        array[at] |= (offset << 10) | (int(leaf) << 8)
        for byte, child in children.items():
            if byte == 0:
                array[base] = child[1] | 1 << 31
            else:
                place[child] = base ^ byte
                array[base ^ byte] |= byte
    blob = struct.pack(f"<{len(array)}I", *array)
    return struct.pack("<I", len(blob)) + blob + replacements


def pieces():
    """Pieces of a unigram model behind its special ones: text and score."""
    space = "\u2581"
    texts = [space, *LETTERS, *(space + letter for letter in LETTERS), *"0123456789.,!?'", *WORDS, *(space + word for word in WORDS)]
    return [(text, -2.0 - 0.125 * i) for i, text in enumerate(dict.fromkeys(texts))]


UNIGRAM_VOCAB = 4 + len(pieces()) + 1


def unigram_model(first, kind="UNIGRAM", **normalizer):
    proto = sentencepiece_model_pb2.ModelProto()
    piece = sentencepiece_model_pb2.ModelProto.SentencePiece
    for text, type in first:
        proto.pieces.add(piece=text, score=0.0, type=getattr(piece, type))
    for text, score in pieces():
        proto.pieces.add(piece=text, score=score, type=piece.NORMAL)
    proto.pieces.add(piece="a user's", score=-1.0, type=piece.USER_DEFINED)
    proto.pieces.add(piece="never", score=-1.0, type=piece.UNUSED)
    proto.trainer_spec.model_type = getattr(sentencepiece_model_pb2.TrainerSpec, kind)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    for name, number in (("unk", "UNKNOWN"),):
        setattr(proto.trainer_spec, f"{name}_id", next(i for i, (_, type) in enumerate(first) if type == number))
    for text, role in (("<s>", "bos_id"), ("</s>", "eos_id"), ("<pad>", "pad_id")):
        setattr(proto.trainer_spec, role, next((i for i, (own, _) in enumerate(first) if own == text), -1))
    proto.normalizer_spec.name = "nmt_nfkc"
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    return proto.SerializeToString()


XLM_FIRST = [("<unk>", "UNKNOWN"), ("<s>", "CONTROL"), ("</s>", "CONTROL")]
T5_FIRST = [("<pad>", "CONTROL"), ("</s>", "CONTROL"), ("<unk>", "UNKNOWN")]
# The pieces of a file, with those that are not among pieces().
XLM_PIECES = len(XLM_FIRST) + len(pieces()) + 2


def write_xlm_roberta(folder):
    """SentencePiece alone, and the settings of transformers."""
    (folder / "sentencepiece.bpe.model").write_bytes(unigram_model(XLM_FIRST, precompiled_charsmap=charsmap()))
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
        "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"})


def write_unigram_json(folder, tokenizer_class="XLMRobertaTokenizerFast", named=True):
    vocab = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *map(list, pieces()), ["<mask>", 0.0]]
    ids = {t: i for i, (t, _) in enumerate(vocab)}
    added = {t: ids[t] for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "hello")}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special(added, ["hello"], **{"<mask>": {"lstrip": True}}),
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]},
        "post_processor": template("<s>", "</s>", ids),
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False}}
    dump(folder / "tokenizer.json", tokenizer)
    config = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
              "pad_token": "<pad>", "mask_token": "<mask>", "clean_up_tokenization_spaces": True}
    dump(folder / "tokenizer_config.json", config | ({"unk_token": "<unk>", "add_prefix_space": True} if named else {}))


def write_t5(folder, file="spiece.model"):
    (folder / file).write_bytes(unigram_model(T5_FIRST, precompiled_charsmap=charsmap(), remove_extra_whitespaces=True))
    # The last one is behind the vocabulary.
    dump(folder / "added_tokens.json", {"<extra_id_0>": T5_VOCAB - 1, "<extra_id_1>": T5_VOCAB - 2, "<far>": T5_VOCAB + 3})
    dump(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>",
                                            "pad_token": "<pad>", "extra_ids": 0})


T5_VOCAB = len(T5_FIRST) + len(pieces()) + 2 + 6


def tokenizers(c):
    return {
        "bert": write_word_piece, "vocab.txt": write_vocab_txt, "bert-cased": lambda folder: write_word_piece(folder, False, False),
        "distilbert": lambda folder: write_word_piece(folder, tokenizer_class="DistilBertTokenizer"),
        "roberta": lambda folder: write_roberta(folder, c),
        "roberta-plain": lambda folder: write_roberta(folder, c, "TemplateProcessing", "PreTrainedTokenizerFast"),
        "words": lambda folder: write_words(folder, c), "xlm-roberta": write_xlm_roberta, "unigram": write_unigram_json,
        "unigram-plain": lambda folder: write_unigram_json(folder, "PreTrainedTokenizerFast", False), "t5": write_t5,
        "t5-model": lambda folder: write_t5(folder, "tokenizer.model"),
    }


ROBERTA_VOCAB = 512


def linear(name, rows, columns=HIDDEN, bias=True):
    shapes = {name + ".weight": (rows, columns)}
    return shapes | ({name + ".bias": (rows,)} if bias else {})


def norm(name, bias=True, old=False):
    weight, own = ("gamma", "beta") if old else ("weight", "bias")
    shapes = {f"{name}.{weight}": (HIDDEN,)}
    return shapes | ({f"{name}.{own}": (HIDDEN,)} if bias else {})


def fields(cls, model_type, vocab, **more):
    return {"architectures": [cls], "model_type": model_type, "vocab_size": vocab, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": FFN, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0, "position_embedding_type": "absolute"} | more


def embeddings(p, vocab, types=2, positions=POSITIONS, old=False):
    shapes = {p + "embeddings.word_embeddings.weight": (vocab, HIDDEN)} | norm(p + "embeddings.LayerNorm", old=old)
    if positions:
        shapes[p + "embeddings.position_embeddings.weight"] = (positions, HIDDEN)
    if types:
        shapes[p + "embeddings.token_type_embeddings.weight"] = (types, HIDDEN)
    return shapes


def bert_layers(p="", old=False):
    shapes = {}
    for i in range(LAYERS):
        x = f"{p}encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= linear(x + "attention.self." + name, HIDDEN)
        shapes |= linear(x + "attention.output.dense", HIDDEN) | norm(x + "attention.output.LayerNorm", old=old)
        shapes |= linear(x + "intermediate.dense", FFN) | linear(x + "output.dense", HIDDEN, FFN) | norm(x + "output.LayerNorm", old=old)
    return shapes


def bert():
    shapes = embeddings("", BERT_VOCAB) | bert_layers() | linear("pooler.dense", HIDDEN)
    # transformers' own defaults for the rest.
    config = fields("BertModel", "bert", BERT_VOCAB)
    del config["type_vocab_size"], config["layer_norm_eps"]
    return config, shapes, "bert"


def bert_txt():
    config, shapes, _ = bert()
    return config | {"vocab_size": len(word_pieces()), "cls_token_id": 6}, shapes | {"embeddings.word_embeddings.weight": (len(word_pieces()), HIDDEN)}, "vocab.txt"


def bert_mlm():
    """With old names of norms, and the heads of the training."""
    p = "bert."
    shapes = embeddings(p, BERT_VOCAB, old=True) | bert_layers(p, old=True) | linear(p + "pooler.dense", HIDDEN)
    shapes |= {"cls.predictions.bias": (BERT_VOCAB,)} | linear("cls.predictions.transform.dense", HIDDEN)
    shapes |= norm("cls.predictions.transform.LayerNorm", old=True) | linear("cls.seq_relationship", 2)
    return fields("BertForMaskedLM", "bert", BERT_VOCAB), shapes, "bert-cased"


def bert_classifier(labels, count):
    shapes = embeddings("bert.", BERT_VOCAB) | bert_layers("bert.") | linear("bert.pooler.dense", HIDDEN) | linear("classifier", count)
    return fields("BertForSequenceClassification", "bert", BERT_VOCAB, id2label=labels), shapes, "bert"


def distilbert(cls, p, classes=0, **more):
    config = {"architectures": [cls], "model_type": "distilbert", "vocab_size": BERT_VOCAB, "dim": HIDDEN, "n_layers": LAYERS,
              "n_heads": HEADS, "hidden_dim": FFN, "max_position_embeddings": POSITIONS, "pad_token_id": 0, "activation": "gelu",
              "sinusoidal_pos_embds": False, **more}
    shapes = embeddings(p, BERT_VOCAB, types=0)
    for i in range(LAYERS):
        x = f"{p}transformer.layer.{i}."
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= linear(x + "attention." + name, HIDDEN)
        shapes |= norm(x + "sa_layer_norm") | norm(x + "output_layer_norm") | linear(x + "ffn.lin1", FFN) | linear(x + "ffn.lin2", HIDDEN, FFN)
    if classes:
        shapes |= linear("pre_classifier", HIDDEN) | linear("classifier", classes)
    if cls.endswith("MaskedLM"):
        shapes |= linear("vocab_transform", HIDDEN) | norm("vocab_layer_norm") | {"vocab_projector.bias": (BERT_VOCAB,)}
    return config, shapes, "distilbert"


def roberta(cls, p, vocab, model_type="roberta", tokenizer="roberta", classes=0, **more):
    shapes = embeddings(p, vocab, types=1, positions=POSITIONS + PADDING + 1) | bert_layers(p)
    if classes:
        shapes |= linear("classifier.dense", HIDDEN) | linear("classifier.out_proj", classes)
    else:
        shapes |= linear(p + "pooler.dense", HIDDEN) | {p + "embeddings.position_ids": (1, POSITIONS + PADDING + 1)}
    config = fields(cls, model_type, vocab, type_vocab_size=1, pad_token_id=PADDING, layer_norm_eps=1e-5,
                    max_position_embeddings=POSITIONS + PADDING + 1, bos_token_id=0, eos_token_id=2, **more)
    return config, shapes, tokenizer


def nomic(experts=0, tokenizer="bert", vocab=BERT_VOCAB, **more):
    """Nomic-BERT, whose configuration has names of its own."""
    config = {"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": vocab, "n_embd": HIDDEN, "n_head": HEADS,
              "n_inner": FFN, "n_layer": LAYERS, "n_positions": 2048 if experts else 8192, "max_trained_positions": 2048,
              "layer_norm_epsilon": 1e-12, "activation_function": "gelu" if experts else "swiglu", "causal": False,
              "qkv_proj_bias": bool(experts), "mlp_fc1_bias": bool(experts), "mlp_fc2_bias": bool(experts), "prenorm": False,
              "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
              "type_vocab_size": 1 if experts else 2, "pad_token_id": 1 if experts else 0}
    if experts:
        config |= {"moe_every_n_layers": 2, "moe_top_k": 2, "num_experts": experts, "num_shared_experts": 0, "rotary_emb_base": 10000.0}
    shapes = {"embeddings.word_embeddings.weight": (vocab, HIDDEN), "embeddings.token_type_embeddings.weight": (1 if experts else 2, HIDDEN)}
    shapes |= norm("emb_ln")
    for i in range(LAYERS):
        x, bias = f"encoder.layers.{i}.", bool(experts)
        shapes |= linear(x + "attn.Wqkv", 3 * HIDDEN, bias=bias) | linear(x + "attn.out_proj", HIDDEN, bias=bias) | norm(x + "norm1") | norm(x + "norm2")
        if not experts:
            shapes |= linear(x + "mlp.fc11", FFN, bias=False) | linear(x + "mlp.fc12", FFN, bias=False) | linear(x + "mlp.fc2", HIDDEN, FFN, bias=False)
        elif i % 2 == 0:
            shapes |= linear(x + "mlp.fc1", FFN) | linear(x + "mlp.fc2", HIDDEN, FFN)
        else:
            shapes |= {x + "mlp.experts.mlp.w1": (experts * FFN, HIDDEN), x + "mlp.experts.mlp.w2": (experts * FFN, HIDDEN),
                       x + "mlp.experts.bias": (HIDDEN,), x + "mlp.router.layer.weight": (experts, HIDDEN)}
    return config | more, shapes, tokenizer


def jina(code=False, tokenizer="bert", vocab=BERT_VOCAB, cls="JinaBertModel"):
    """ALiBi in place of positions; the model for code has norms of queries and keys, and other names."""
    shapes = embeddings("", vocab, positions=0) | linear("pooler.dense", HIDDEN)
    for i in range(LAYERS):
        x = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= linear(x + "attention.self." + name, HIDDEN)
        shapes |= linear(x + "attention.output.dense", HIDDEN) | norm(x + "attention.output.LayerNorm")
        if code:
            shapes |= norm(x + "attention.self.layer_norm_q") | norm(x + "attention.self.layer_norm_k")
            shapes |= norm(x + "layer_norm_1") | norm(x + "layer_norm_2")
            shapes |= linear(x + "mlp.up_gated_layer", 2 * FFN, bias=False) | linear(x + "mlp.down_layer", HIDDEN, FFN)
        else:
            shapes |= linear(x + "mlp.gated_layers", 2 * FFN, bias=False) | linear(x + "mlp.wo", HIDDEN, FFN) | norm(x + "mlp.layernorm")
    return fields(cls, "bert", vocab, position_embedding_type="alibi", feed_forward_type="geglu"), shapes, tokenizer


def jina_mlm():
    config, shapes, tokenizer = jina(cls="JinaBertForMaskedLM")
    return config, {"bert." + n: s for n, s in shapes.items()} | {"cls.predictions.bias": (BERT_VOCAB,)}, tokenizer


def modern(cls, p, classes=0, **more):
    config = {"architectures": [cls], "model_type": "modernbert", "vocab_size": ROBERTA_VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 512, "norm_eps": 1e-5, "layer_norm_eps": 1e-5,
              "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "local_attention": 128, "global_attn_every_n_layers": 3,
              "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 5, **more}
    shapes = {p + "embeddings.tok_embeddings.weight": (ROBERTA_VOCAB, HIDDEN)} | norm(p + "embeddings.norm", False) | norm(p + "final_norm", False)
    for i in range(LAYERS):
        x = f"{p}layers.{i}."
        # The first layer has no norm in front of attention.
        shapes |= norm(x + "attn_norm", False) if i else {}
        shapes |= linear(x + "attn.Wqkv", 3 * HIDDEN, bias=False) | linear(x + "attn.Wo", HIDDEN, bias=False) | norm(x + "mlp_norm", False)
        shapes |= linear(x + "mlp.Wi", 2 * FFN, bias=False) | linear(x + "mlp.Wo", HIDDEN, FFN, bias=False)
    if classes:
        shapes |= linear("head.dense", HIDDEN, bias=False) | norm("head.norm", False) | linear("classifier", classes)
    return config, shapes, "roberta-plain"


def neo(cls, p="model.", classes=0, **more):
    """Two thirds of the given width, in one matrix with the gates."""
    config = {"architectures": [cls], "model_type": "neobert", "vocab_size": BERT_VOCAB, "hidden_size": HIDDEN, "intermediate_size": 384,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_length": 512, "norm_eps": 1e-5, "pad_token_id": 0,
              "hidden_act": "SwiGLU", **more}
    shapes = {p + "encoder.weight": (BERT_VOCAB, HIDDEN)} | norm(p + "layer_norm", False)
    for i in range(LAYERS):
        x = f"{p}transformer_encoder.{i}."
        shapes |= norm(x + "attention_norm", False) | norm(x + "ffn_norm", False) | linear(x + "qkv", 3 * HIDDEN, bias=False)
        shapes |= linear(x + "wo", HIDDEN, bias=False) | linear(x + "ffn.w12", 2 * FFN, bias=False) | linear(x + "ffn.w3", HIDDEN, FFN, bias=False)
    if cls == "NeoBERTLMHead":
        shapes |= linear("decoder", BERT_VOCAB)
    if classes:
        shapes |= linear("dense", HIDDEN) | linear("classifier", classes)
    return config, shapes, "bert"


def euro(c, p=""):
    config = c.base("EuroBertModel", "eurobert", ROBERTA_VOCAB, rope_theta=250000, num_key_value_heads=c.HEADS, rope_scaling=None)
    shapes = {p + "embed_tokens.weight": (ROBERTA_VOCAB, c.HIDDEN)} | c.norms(p, "norm")
    for i in range(c.LAYERS):
        x = f"{p}layers.{i}."
        shapes |= {f"{x}self_attn.{n}_proj.weight": (c.HIDDEN, c.HIDDEN) for n in "qkvo"}
        shapes |= c.gated(x + "mlp.") | c.norms(x, "input_layernorm", "post_attention_layernorm")
    return config, shapes, "roberta-plain"


def gemma(c, dense=False):
    # Every sixth layer sees all tokens; llama.cpp fails without any.
    config, shapes, tokenizer = c.gemma3(layers=6)
    text = config.get("text_config", config)
    config = {**text, "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "use_bidirectional_attention": True}
    shapes = {n.removeprefix("model."): s for n, s in shapes.items() if not n.startswith("lm_head")}
    if dense:
        shapes |= {"2_Dense.linear.weight": (2 * c.HIDDEN, c.HIDDEN), "3_Dense.linear.weight": (c.HIDDEN, 2 * c.HIDDEN)}
    return config, shapes, tokenizer


def llama_embed(c):
    config, shapes, tokenizer = c.llama(tie_word_embeddings=False)
    shapes = {n.removeprefix("model."): s for n, s in shapes.items() if not n.startswith("lm_head")}
    return config | {"architectures": ["LlamaBidirectionalModel"], "model_type": "llama_bidirec"}, shapes, tokenizer


def t5(cls="T5ForConditionalGeneration", model_type="t5", gated=False, decoder=LAYERS, biases=1, head=False, names=("shared",),
       tokenizer="t5", **more):
    width, inner, ffn = HIDDEN, HEADS * HEAD, FFN
    config = {"architectures": [cls], "model_type": model_type, "vocab_size": T5_VOCAB, "d_model": width, "d_kv": HEAD, "d_ff": ffn,
              "num_layers": LAYERS, "num_heads": HEADS, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
              "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu" if gated else "relu", "is_encoder_decoder": True,
              "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, **more}
    if decoder != LAYERS:
        config["num_decoder_layers"] = decoder
    shapes = {f"{name}.weight": (T5_VOCAB, width) for name in names}

    def attention(x, biased):
        own = {f"{x}.{n}.weight": (inner, width) for n in "qkv"} | {f"{x}.o.weight": (width, inner)}
        return own | ({x + ".relative_attention_bias.weight": (32, HEADS)} if biased else {})

    for part, layers in (("encoder", LAYERS), ("decoder", decoder if "Encoder" not in cls else 0)):
        for i in range(layers):
            x, behind = f"{part}.block.{i}.layer.", 1 if part == "encoder" else 2
            shapes |= attention(x + "0.SelfAttention", i < biases) | norm(x + "0.layer_norm", False) | norm(f"{x}{behind}.layer_norm", False)
            if part == "decoder":
                shapes |= attention(x + "1.EncDecAttention", False) | norm(x + "1.layer_norm", False)
            for name in (("wi_0", "wi_1") if gated else ("wi",)):
                shapes |= linear(f"{x}{behind}.DenseReluDense.{name}", ffn, bias=False)
            shapes |= linear(f"{x}{behind}.DenseReluDense.wo", width, ffn, bias=False)
        shapes |= norm(part + ".final_layer_norm", False) if layers else {}
    if head:
        shapes["lm_head.weight"] = (T5_VOCAB, width)
    return config, shapes, tokenizer


def makers(c):
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    return {
        "bert": (bert, full, 1),
        "bert-txt": (bert_txt, half, 1),
        "bert-mlm": (bert_mlm, full, 2),
        "bert-classifier": (lambda: bert_classifier({"0": "low", "1": "middle", "10": "highest", "2": "high"}, 4), half, 1),
        "bert-reranker": (lambda: bert_classifier({"0": "LABEL_0"}, 1), full, 1),
        "distilbert": (lambda: distilbert("DistilBertModel", ""), full, 1),
        "distilbert-mlm": (lambda: distilbert("DistilBertForMaskedLM", "distilbert."), half, 1),
        "distilbert-classifier": (lambda: distilbert("DistilBertForSequenceClassification", "distilbert.", 2,
                                                     id2label={"0": "NEGATIVE", "1": "POSITIVE"}), full, 1),
        "roberta": (lambda: roberta("RobertaModel", "", ROBERTA_VOCAB), full, 1),
        "roberta-reranker": (lambda: roberta("RobertaForSequenceClassification", "roberta.", ROBERTA_VOCAB, classes=1,
                                             id2label={"0": "LABEL_0"}), brain, 1),
        "xlm-roberta": (lambda: roberta("XLMRobertaModel", "", XLM_PIECES + 2, "xlm-roberta", "xlm-roberta"), half, 1),
        "xlm-roberta-json": (lambda: roberta("XLMRobertaModel", "", UNIGRAM_VOCAB + 2, "xlm-roberta", "unigram"), full, 1),
        "xlm-roberta-reranker": (lambda: roberta("XLMRobertaForSequenceClassification", "roberta.", UNIGRAM_VOCAB, "xlm-roberta",
                                                 "unigram-plain", 1, id2label={"0": "LABEL_0"}), half, 1),
        "nomic-bert": (nomic, full, 1),
        "nomic-bert-moe": (lambda: nomic(EXPERTS, "unigram", UNIGRAM_VOCAB), full, 1),
        "jina-bert": (jina, brain, 1),
        "jina-bert-mlm": (jina_mlm, full, 1),
        "jina-bert-code": (lambda: jina(True, "roberta", ROBERTA_VOCAB), full, 1),
        "jina-bert-words": (lambda: jina(False, "words", ROBERTA_VOCAB), half, 1),
        "modernbert": (lambda: modern("ModernBertModel", ""), brain, 1),
        "modernbert-classifier": (lambda: modern("ModernBertForSequenceClassification", "model.", 1, classifier_pooling="mean",
                                                 id2label={"0": "LABEL_0"}, hidden_activation="silu"), full, 1),
        "neobert": (lambda: neo("NeoBERT"), full, 1),
        "neobert-mlm": (lambda: neo("NeoBERTLMHead"), half, 1),
        "neobert-classifier": (lambda: neo("NeoBERTForSequenceClassification", classes=3,
                                           id2label={"0": "a", "10": "c", "2": "b"}), full, 1),
        "eurobert": (lambda: euro(c), brain, 1),
        "eurobert-prefixed": (lambda: euro(c, "model."), full, 1),
        "embeddinggemma": (lambda: gemma(c), brain, 1),
        "embeddinggemma-dense": (lambda: gemma(c, True), full, 1),
        "llama-embed": (lambda: llama_embed(c), brain, 1),
        "t5": (lambda: t5(n_positions=512), full, 1),
        "t5-gated": (lambda: t5(gated=True, head=True, names=("decoder.embed_tokens", "encoder.embed_tokens", "shared"),
                                tokenizer="t5-model", tie_word_embeddings=False), brain, 1),
        "t5-short": (lambda: t5(decoder=1, cls="T5WithLMHeadModel"), half, 1),
        "mt5": (lambda: t5("MT5ForConditionalGeneration", "mt5", gated=True, head=True), full, 1),
        "umt5": (lambda: t5("UMT5ForConditionalGeneration", "umt5", gated=True, biases=LAYERS), full, 1),
        "t5-encoder": (lambda: t5("T5EncoderModel"), half, 1),
    }


# Checkpoints with the modules of sentence-transformers, and the field of their pooling.
POOLED = {"bert": "pooling_mode_mean_tokens", "xlm-roberta": "pooling_mode_cls_token", "nomic-bert": "pooling_mode_mean_tokens",
          "modernbert": "pooling_mode_cls_token", "eurobert": "pooling_mode_lasttoken", "embeddinggemma": "pooling_mode_mean_tokens",
          "embeddinggemma-dense": "pooling_mode_mean_tokens", "jina-bert": "mean"}


def is_encoder(name):
    """True for checkpoints that give embeddings and generate no text."""
    families = ("bert", "distilbert", "roberta", "xlm-roberta", "nomic-bert", "jina-bert", "modernbert", "neobert", "eurobert",
                "embeddinggemma", "llama-embed", "t5-encoder")
    return name.startswith(families)


def is_pair(name):
    """True for checkpoints of an encoder and a decoder."""
    return name.startswith(("t5", "mt5", "umt5")) and not is_encoder(name)


def write_modules(folder, name, tensors):
    """Pooling and dense modules; takes the tensors of the latter. Copies of T5's embeddings are equal."""
    copies = [n for n in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight") if n in tensors]
    for copy in copies[1:]:
        tensors[copy] = tensors[copies[0]].clone()
    if name not in POOLED:
        return
    field = POOLED[name]
    types = ["Transformer", "Pooling", *(["Dense", "Dense", "Normalize"] if name.endswith("-dense") else [])]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(types)]
    dump(folder / "modules.json", [{"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
                                   for i, kind in enumerate(types)])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    config = {f"pooling_mode_{mode}": field == f"pooling_mode_{mode}" for mode in modes}
    dump(folder / "1_Pooling" / "config.json", {"pooling_mode": field} if field == "mean" else config)
    for path in paths[2:4]:
        own = {n.removeprefix(path + "."): tensors.pop(n) for n in list(tensors) if n.startswith(path + ".")}
        if own:
            (folder / path).mkdir(exist_ok=True)
            save_file(own, folder / path / "model.safetensors", {"format": "pt"})
            rows, columns = own["linear.weight"].shape
            dump(folder / path / "config.json", {"in_features": columns, "out_features": rows, "bias": False})
