use super::*;
use proptest::prelude::*;
use quantier_gguf::gguf::{Array, Value, ValueType};

fn metadata(model: &str, tokens: &[(&str, f32, i32)], merges: &[&str]) -> Metadata<'static> {
    let mut metadata = Metadata::new();
    metadata.set(MODEL, Value::str(model.to_owned()));
    metadata.set(
        vocab::TOKENS,
        Value::Array(Array::of_strings(tokens.iter().map(|t| t.0))),
    );
    let scores = Array::of_values(ValueType::F32, tokens.iter().map(|t| Value::F32(t.1)));
    metadata.set("tokenizer.ggml.scores", Value::Array(scores));
    let types = Array::of_values(ValueType::I32, tokens.iter().map(|t| Value::I32(t.2)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(types));
    metadata.set(
        "tokenizer.ggml.merges",
        Value::Array(Array::of_strings(merges)),
    );
    metadata
}

/// SentencePiece with tokens for a few letters and for all bytes.
fn spm() -> Metadata<'static> {
    let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
    let mut tokens = vec![("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
    tokens.extend(bytes.iter().map(|b| (b.as_str(), 0.0, 6)));
    tokens.extend([
        ("▁", -9.0, 1),
        ("a", -9.0, 1),
        ("b", -9.0, 1),
        ("ab", -2.0, 1),
        ("▁a", -3.0, 1),
        ("▁▁", -1.0, 1),
    ]);
    tokens.push(("[x]", 0.0, 4));
    metadata("llama", &tokens, &[])
}

/// Byte-level BPE with all bytes, a few merges and two special tokens.
fn bpe(pre: &str) -> Metadata<'static> {
    let bytes: Vec<String> = (0..=255).map(|b| bytes::char_of(b).to_string()).collect();
    let mut tokens: Vec<_> = bytes.iter().map(|b| (b.as_str(), 0.0, 1)).collect();
    tokens.extend([
        ("aa", 0.0, 1),
        ("ab", 0.0, 1),
        ("Ġab", 0.0, 1),
        ("aab", 0.0, 1),
    ]);
    tokens.extend([("<|endoftext|>", 0.0, 3), ("<u>", 0.0, 4), ("<u>b", 0.0, 3)]);
    let mut metadata = metadata("gpt2", &tokens, &["a b", "a a", "Ġ ab", "a ab"]);
    metadata.set(PRE, Value::str(pre.to_owned()));
    metadata
}

/// PLaMo with all bytes, padding as from its converter, and a few tokens.
fn plamo() -> Metadata<'static> {
    let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
    let mut tokens = vec![("<|plamo:unk|>", 0.0, 2), ("<|plamo:bos|>", 0.0, 3)];
    tokens.extend([("</s>", 0.0, 3), ("<|plamo:pad|>", 0.0, 3)]);
    tokens.extend(bytes.iter().map(|b| (b.as_str(), 0.0, 6)));
    tokens.extend([
        ("a", -4.0, 1),
        ("b", -4.0, 1),
        ("ab", -3.0, 1),
        ("ba", -2.0, 1),
    ]);
    tokens.extend([("bab", -9.0, 1), ("漢", -5.0, 1), ("[P1]", -1000.0, 5)]);
    metadata("plamo2", &tokens, &[])
}

fn tokenizer(metadata: &Metadata<'_>) -> Tokenizer {
    Tokenizer::from_gguf(metadata).expect("a vocabulary")
}

fn shown(tokenizer: &Tokenizer, text: &str, parse: bool) -> Vec<String> {
    let text_of =
        |id: u32| String::from_utf8_lossy(&tokenizer.vocab.tokens[id as usize].text).into_owned();
    tokenizer
        .encode(text, true, parse)
        .into_iter()
        .map(text_of)
        .collect()
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let t = tokenizer(&spm());
    assert_eq!(shown(&t, "ab", true), ["<s>", "▁", "ab"]);
    assert_eq!(shown(&t, "a  a", true), ["<s>", "▁a", "▁▁", "a"]);
    assert_eq!(shown(&t, "é", true), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(shown(&t, "", true), ["<s>"]);
    // A space prefix after each special token; user-defined ones are always special.
    assert_eq!(
        shown(&t, "a[x]a</s>a", true),
        ["<s>", "▁a", "[x]", "▁a", "</s>", "▁a"]
    );
    assert_eq!(shown(&t, "a[x]b", false), ["<s>", "▁a", "[x]", "▁", "b"]);
    assert_eq!(
        t.decode(&t.encode("ab é", false, false)),
        " ab é".as_bytes()
    );
    assert_eq!(
        (t.bos(), t.eos(), t.adds_bos(), t.adds_eos()),
        (Some(1), Some(2), true, false)
    );
    assert!(t.is_eog(2) && !t.is_eog(1) && t.is_control(1) && !t.is_control(0));
}

#[test]
fn byte_pairs_merge_by_rank() {
    let t = tokenizer(&bpe("gpt-2"));
    assert_eq!(shown(&t, "aab ab", true), ["aab", "Ġab"]);
    assert_eq!(shown(&t, "aaa", true), ["aa", "a"]);
    // The longest special token is cut out first, control tokens only on request.
    assert_eq!(shown(&t, "a<u>b", true), ["a", "<u>b"]);
    assert_eq!(shown(&t, "a<u>b", false), ["a", "<u>", "b"]);
    assert_eq!(shown(&t, "<|endoftext|>", true), ["<|endoftext|>"]);
    assert_eq!(t.encode("<|endoftext|>", true, false).len(), 13);
}

#[test]
fn plamo_maximizes_the_score() {
    let t = tokenizer(&plamo());
    assert_eq!(shown(&t, "ab", true), ["ab"]);
    // The sum decides: -3 - 3, not -4 - 2 - 4.
    assert_eq!(shown(&t, "abab", true), ["ab", "ab"]);
    assert_eq!(shown(&t, "aba", true), ["a", "ba"]);
    assert_eq!(shown(&t, "bab", true), ["ba", "b"]);
    assert_eq!(
        shown(&t, "漢字", true),
        ["漢", "<0xE5>", "<0xAD>", "<0x97>"]
    );
    assert_eq!(shown(&t, "\u{feff}a</s>", true), ["a", "</s>"]);
    // Unused tokens are used, at the cost of a character in bytes.
    assert_eq!(shown(&t, "[P1]", true), ["[P1]"]);
    let mut broken = plamo();
    let bytes = Array::of_values(ValueType::I32, (0..267).map(|_| Value::I32(1)));
    broken.set("tokenizer.ggml.token_type", Value::Array(bytes));
    let error = Tokenizer::from_gguf(&broken).err().unwrap().to_string();
    assert!(error.contains("no token <0x00>"), "{error}");
}

/// RWKV's bytes and a few tokens, in the escapes of Python.
fn world() -> Metadata<'static> {
    let bytes: Vec<String> = (0..256).map(|b| format!("\\x{b:02x}")).collect();
    let mut tokens = vec![("<s>", 0.0, 3)];
    tokens.extend(bytes.iter().map(|b| (b.as_str(), 0.0, 1)));
    tokens.extend([("ab", 0.0, 1), ("abcd", 0.0, 1), ("\\n\\n", 0.0, 1)]);
    tokens.extend([
        ("\\xe6\\xbc", 0.0, 1),
        ("\\\\\\'", 0.0, 1),
        ("[PAD262]", 0.0, 5),
    ]);
    metadata("rwkv", &tokens, &[])
}

#[test]
fn rwkv_takes_the_longest_token() {
    let t = tokenizer(&world());
    let ids = |text: &str| t.encode(text, true, false);
    let byte = |b: u8| u32::from(b) + 1;
    assert_eq!(ids("abcd"), [258]);
    // The longest that is there, not the longest that begins so.
    assert_eq!(ids("abcx"), [257, byte(b'c'), byte(b'x')]);
    assert_eq!(ids("\n\n\n"), [259, byte(b'\n')]);
    // Tokens end within characters.
    assert_eq!(ids("漢"), [260, byte(0xa2)]);
    assert_eq!(ids("\\'"), [261]);
    // All tokens count, whatever their type.
    assert_eq!(ids("<s>[PAD262]"), [0, 262]);
    assert!(ids("").is_empty());
    assert_eq!(t.decode(&[258, 259, 260, 261]), b"abcd\n\n\xe6\xbc\\'");
    let without_one: Vec<_> = (1..256).map(|b| format!("\\x{b:02x}")).collect();
    let without_one: Vec<_> = without_one.iter().map(|b| (b.as_str(), 0.0, 1)).collect();
    let error = Tokenizer::from_gguf(&metadata("rwkv", &without_one, &[]));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("no token of the byte 0x00"), "{error}");
}

/// BERT's vocabulary with beginnings of words and continuations.
fn word_pieces(lowercase: bool) -> Metadata<'static> {
    let mut tokens = vec![("[UNK]", 0.0, 2), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3)];
    tokens
        .extend(["▁a", "▁ab", "a", "b", "▁!", "▁漢", "▁é", "▁e", "▁A"].map(|text| (text, 0.0, 1)));
    let mut metadata = metadata("bert", &tokens, &[]);
    metadata.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    metadata.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    metadata.set("tokenizer.ggml.seperator_token_id", Value::U32(2));
    metadata.set(
        "tokenizer.ggml.normalizer.lowercase",
        Value::Bool(lowercase),
    );
    metadata
}

#[test]
fn word_pieces_are_the_longest_ones() {
    let t = tokenizer(&word_pieces(true));
    let whole = |text: &str| {
        let shown = shown(&t, text, true);
        assert_eq!((&*shown[0], &*shown[shown.len() - 1]), ("[CLS]", "[SEP]"));
        shown[1..shown.len() - 1].join(" ")
    };
    assert_eq!(whole("abab a"), "▁ab a b ▁a");
    // A word without tokens is one unknown token, whatever it begins with.
    assert_eq!(whole("abx aba"), "[UNK] ▁ab a");
    assert_eq!(whole("a!漢\u{0}\u{200b}b"), "▁a ▁! ▁漢 [UNK]");
    assert_eq!(whole("É A\u{301}[SEP]"), "▁e ▁a [SEP]");
    assert_eq!(whole("  "), "");
    let cased = tokenizer(&word_pieces(false));
    assert_eq!(shown(&cased, "éAb", false)[1..], ["[UNK]", "[SEP]"]);
    assert_eq!(shown(&cased, "é A", false)[1..], ["▁é", "▁A", "[SEP]"]);
}

/// A unigram model, with a map of the fi ligature to the letters f and i.
fn unigram() -> Metadata<'static> {
    let mut tokens = vec![("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)];
    tokens.extend([
        ("▁", -2.0, 1),
        ("a", -3.0, 1),
        ("b", -3.0, 1),
        ("ab", -5.5, 1),
        ("▁ab", -8.5, 1),
    ]);
    tokens.extend([("fi", -4.0, 1), ("user's", 0.0, 4), ("u", -9.0, 5)]);
    let mut metadata = metadata("t5", &tokens, &[]);
    // Root, then one block of 256 entries for each byte of the key and for its end.
    let mut array = vec![0u32; 256 * 5];
    let mut at = 0;
    for (block, byte) in (1..).zip("\u{fb01}".bytes()) {
        let base: u32 = block << 8;
        array[at as usize] |= (at ^ base) << 10;
        at = base ^ u32::from(byte);
        array[at as usize] = byte.into();
    }
    array[at as usize] |= (at ^ 4 << 8) << 10 | 1 << 8;
    array[4 << 8] = 1 << 31;
    let mut charsmap = (array.len() as u32 * 4).to_le_bytes().to_vec();
    charsmap.extend(array.iter().flat_map(|entry| entry.to_le_bytes()));
    charsmap.extend(b"fi\0");
    let bytes = charsmap.into_iter().map(Value::U8);
    let bytes = Array::of_values(ValueType::U8, bytes);
    metadata.set("tokenizer.ggml.precompiled_charsmap", Value::Array(bytes));
    for name in ["add_space_prefix", "remove_extra_whitespaces"] {
        metadata.set(format!("tokenizer.ggml.{name}"), Value::Bool(true));
    }
    metadata
}

#[test]
fn unigrams_maximize_the_score() {
    let t = tokenizer(&unigram());
    let whole = |text: &str| shown(&t, text, true).join(" ");
    // -2 - 5.5 is more than -8.5, and -5.5 more than -3 - 3.
    assert_eq!(whole("ab"), "▁ ab </s>");
    assert_eq!(whole("  a   b "), "▁ a ▁ b </s>");
    assert_eq!(whole("\u{fb01}"), "▁ fi </s>");
    // Unknown characters in a row are one token.
    assert_eq!(whole("a漢字\u{fb02}b"), "▁ a <unk> b </s>");
    assert_eq!(whole("auser's u</s>"), "▁ a user's ▁ u </s> </s>");
    assert_eq!(whole(""), "</s>");
    let mut kept = unigram();
    kept.set(
        "tokenizer.ggml.remove_extra_whitespaces",
        Value::Bool(false),
    );
    let kept = tokenizer(&kept);
    assert_eq!(shown(&kept, "  a", true).join(" "), "▁ ▁ ▁ a </s>");
}

#[test]
fn damaged_maps_of_characters_are_refused_or_empty() {
    const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
    let of = |bytes: &[u8]| {
        let bytes = bytes.iter().map(|byte| Value::U8(*byte));
        let mut metadata = unigram();
        metadata.set(KEY, Value::Array(Array::of_values(ValueType::U8, bytes)));
        Tokenizer::from_gguf(&metadata)
    };
    for bytes in [&[][..], &[1, 0, 0], &[8, 0, 0, 0, 1], &[255; 9]] {
        let error = of(bytes).err().unwrap().to_string();
        assert!(error.contains(KEY), "{error}");
    }
    // Entries that lead nowhere, and a replacement without an end.
    for bytes in [&[4, 0, 0, 0, 255, 255, 255, 127, 1][..], &[0, 0, 0, 0, 1]] {
        assert_eq!(
            shown(&of(bytes).unwrap(), "ab", true).join(" "),
            "▁ ab </s>"
        );
    }
}

#[test]
fn defects_are_reported() {
    let said = |metadata: &Metadata<'_>| {
        Tokenizer::from_gguf(metadata)
            .err()
            .expect("an error")
            .to_string()
    };
    assert!(said(&Metadata::new()).contains(MODEL));
    assert!(said(&metadata("hybriddna", &[], &[])).contains("'hybriddna'"));
    assert!(said(&bpe("no such")).contains("'no such'"));
    let mut broken = bpe("gpt-2");
    broken.set(
        "tokenizer.ggml.scores",
        Value::Array(Array::of_values(ValueType::F32, [Value::F32(0.0)])),
    );
    assert!(said(&broken).contains("1 values for 263 tokens"));
    broken.remove("tokenizer.ggml.scores");
    broken.remove("tokenizer.ggml.merges");
    assert!(said(&broken).contains("'tokenizer.ggml.merges' is missing"));
    assert!(
        said(&metadata("llama", &[("a", 0.0, 1), ("a", 0.0, 1)], &[])).contains("tokens 0 and 1")
    );
}

#[test]
fn long_runs_of_one_letter_terminate() {
    let text = "a".repeat(10 << 20);
    assert_eq!(
        tokenizer(&bpe("gpt-2")).encode(&text, false, false).len(),
        5 << 20
    );
    assert_eq!(
        tokenizer(&spm()).encode(&text, false, false).len(),
        10 << 20
    );
}

proptest! {
    #[test]
    fn byte_level_tokens_decode_to_the_text(text in r"(\PC|[ab' \r\n0-9\u{0}-\u{ff}]|<u>b?){0,60}") {
        for pre in ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "tekken", "jais-2"] {
            let t = tokenizer(&bpe(pre));
            prop_assert_eq!(t.decode(&t.encode(&text, false, true)), text.as_bytes());
        }
    }

    #[test]
    fn any_text_has_word_pieces_and_unigrams(text in r"(\PC|[ab' \r\n漢字\u{0}-\u{ff}]|\[SEP\]){0,60}") {
        for metadata in [word_pieces(true), word_pieces(false), unigram()] {
            let t = tokenizer(&metadata);
            prop_assert!(t.encode(&text, true, true).iter().all(|id| (*id as usize) < t.vocab_size()));
        }
    }

    #[test]
    fn plamo_tokens_decode_to_the_text(text in r"(\PC|[ab' \r\n漢字]|\[P1\]){0,60}") {
        let t = tokenizer(&plamo());
        let whole = text.strip_prefix('\u{feff}').unwrap_or(&text);
        prop_assert_eq!(t.decode(&t.encode(&text, false, false)), whole.as_bytes());
    }

    #[test]
    fn split_and_whole_texts_give_equal_tokens(text in "[ab ▁é]{0,60}") {
        let t = tokenizer(&spm());
        let Algorithm::Spm(spm) = &t.algorithm else { unreachable!() };
        let (mut out, mut merger) = (Vec::new(), Merger::default());
        spm.word(&t.vocab, &format!(" {text}").replace(' ', "▁"), &mut merger, &mut out);
        if !text.is_empty() {
            prop_assert_eq!(t.encode(&text, false, true), out);
        }
    }
}
