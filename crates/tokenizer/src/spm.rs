//! SentencePiece: `tokenizer.model` and the additions of the other files.
//!
//! ```text
//! model       1: piece, repeated    2: training    3: normalizer
//! piece       1: text    2: score, f32    3: type; normal if absent
//! training    3: type of the model, 1 (unigram) if absent    35: byte fallback for text without pieces
//! normalizer  2: compiled replacements of characters    3: space prefix for texts, true if absent
//!             4: removal of repeated spaces, true if absent
//! ```

use super::files::{Files, bad, kind, read_bytes, read_object};
use super::protobuf::{Fields, Payload};
use super::token::{self, SCORE_OF_ADDED, SCORE_OF_PADDING, Scores, Token, TokenType};
use super::{MAX_TOKENS, special::Special};
use quantier_core::words::listed;
use quantier_gguf::Result;
use quantier_gguf::gguf::Entries;
use quantier_gguf::safetensors::lfs_pointer;
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

/// Name of the file.
pub(super) const FILE: &str = "tokenizer.model";

/// Type of unigram models.
pub(super) const UNIGRAM: u64 = 1;
/// Type of models with byte-pair encoding.
pub(super) const BYTE_PAIRS: u64 = 2;

/// A SentencePiece model.
pub(super) struct Model {
    pub pieces: Vec<Token>,
    pub model_type: u64,
    /// Compiled replacements of characters; empty without any.
    pub charsmap: Vec<u8>,
    /// True if repeated spaces are removed.
    pub removes_spaces: bool,
    /// True if texts get a space prefix.
    pub prefixes_space: bool,
}

impl Model {
    /// Reads a file; `None` if it does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Model>> {
        let bytes = read_bytes(path)?;
        let model = bytes.map(|bytes| parse(&bytes).map_err(|what| bad(path, what)));
        model.transpose()
    }
}

/// Reads a model.
fn parse(bytes: &[u8]) -> std::result::Result<Model, String> {
    const PIECES: u64 = 1;
    const TRAINER: u64 = 2;
    const MODEL_TYPE: u64 = 3;
    const BYTE_FALLBACK: u64 = 35;
    const NORMALIZER: u64 = 3;
    const CHARSMAP: u64 = 2;
    const PREFIX: u64 = 3;
    const REMOVAL: u64 = 4;
    if let Some(pointer) = lfs_pointer(bytes) {
        return Err(pointer);
    }
    let mut model = Model {
        pieces: Vec::new(),
        model_type: UNIGRAM,
        charsmap: Vec::new(),
        removes_spaces: true,
        prefixes_space: true,
    };
    let mut falls_back = false;
    let mut fields = Fields::new(bytes);
    loop {
        let at = bytes.len() - fields.remaining();
        let Some(field) = fields.next() else { break };
        let (number, payload) =
            field.map_err(|what| format!("not a SentencePiece model: at byte {at}: {what}"))?;
        match (number, payload) {
            (PIECES, Payload::Bytes(message)) => {
                let piece = parse_piece(message)
                    .map_err(|what| format!("piece {} at byte {at}: {what}", model.pieces.len()))?;
                model.pieces.push(piece);
            }
            (TRAINER, Payload::Bytes(message)) => {
                for field in Fields::new(message) {
                    match field.map_err(|what| format!("the training at byte {at}: {what}"))? {
                        (MODEL_TYPE, Payload::Varint(number)) => model.model_type = number,
                        (BYTE_FALLBACK, Payload::Varint(flag)) => falls_back = flag != 0,
                        _ => {}
                    }
                }
            }
            (NORMALIZER, Payload::Bytes(message)) => {
                for field in Fields::new(message) {
                    match field.map_err(|what| format!("the normalizer at byte {at}: {what}"))? {
                        (CHARSMAP, Payload::Bytes(bytes)) => model.charsmap = bytes.to_vec(),
                        (PREFIX, Payload::Varint(flag)) => model.prefixes_space = flag != 0,
                        (REMOVAL, Payload::Varint(flag)) => model.removes_spaces = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if model.pieces.len() > MAX_TOKENS {
            return Err(format!("more than {MAX_TOKENS} pieces"));
        }
    }
    if model.pieces.is_empty() {
        return Err("not a SentencePiece model: it has no pieces".to_owned());
    }
    // As in the library: the byte's own token is <0x00>.
    let nul = model.pieces.iter_mut().find(|piece| piece.text == "\0");
    if let Some(nul) = nul.filter(|_| falls_back) {
        nul.token_type = TokenType::Unused;
    }
    let pieces = &model.pieces;
    let mut seen = HashSet::with_capacity(pieces.len());
    match pieces.iter().position(|p| !seen.insert(p.text.as_str())) {
        Some(at) => Err(format!("piece {at}: {:?} appears twice", pieces[at].text)),
        None => Ok(model),
    }
}

fn parse_piece(message: &[u8]) -> std::result::Result<Token, String> {
    const TEXT: u64 = 1;
    const SCORE: u64 = 2;
    const TYPE: u64 = 3;
    let mut token = Token {
        text: String::new(),
        score: 0.0,
        token_type: TokenType::Normal,
    };
    for field in Fields::new(message) {
        match field? {
            (TEXT, Payload::Bytes(text)) => {
                token.text = std::str::from_utf8(text)
                    .map_err(|_| "its text is not UTF-8")?
                    .to_owned();
            }
            (SCORE, Payload::Fixed32(score)) => token.score = f32::from_le_bytes(score),
            (TYPE, Payload::Varint(number)) => {
                token.token_type = match number {
                    2 => TokenType::Unknown,
                    3 => TokenType::Control,
                    5 => TokenType::Unused,
                    6 => TokenType::Byte,
                    // As in the reference, user-defined pieces (4) become normal ones.
                    _ => TokenType::Normal,
                }
            }
            _ => {}
        }
    }
    if token.text.is_empty() {
        return Err("it has no text".to_owned());
    }
    Ok(token)
}

/// Handling of added tokens by family.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Additions {
    /// Added tokens are control tokens by their text; the others get spaces for U+2581.
    Common,
    /// Phi-3, InternLM 2: added tokens unchanged, also from `tokenizer.json`; ids beyond the
    /// vocabulary are errors.
    AsTheyAre,
    /// Arctic: added tokens of `tokenizer_config.json` alone, unchanged. Special ones have score 0,
    /// and the unknown token keeps its type; the others have the score of padding.
    Replace,
}

/// The vocabulary of `tokenizer.model`; `None` without that file.
pub(super) fn vocabulary(
    files: &Files,
    vocab_size: Option<u64>,
    additions: Additions,
) -> Result<Option<Vec<Token>>> {
    let path = files.dir.join(FILE);
    let Some(Model { pieces, .. }) = Model::read(&path)? else {
        return Ok(None);
    };
    let size = super::checked_size(vocab_size.filter(|&n| n > 0), pieces.len(), &files.dir)?;
    if additions != Additions::Common && pieces.len() > size {
        return Err(bad(
            &path,
            format!(
                "{} pieces, but config.json has a vocab_size of {size}",
                pieces.len()
            ),
        ));
    }
    let mut tokens = pieces;
    tokens.truncate(size);
    tokens.extend((tokens.len()..size).map(Token::padding));
    if additions != Additions::Replace {
        add_from_added_tokens_json(&mut tokens, &files.dir.join("added_tokens.json"))?;
    }
    place_added(files, &mut tokens, additions)?;
    Ok(Some(tokens))
}

/// Places the added tokens of `tokenizer_config.json`, and of `tokenizer.json` for families that
/// use them.
pub(super) fn place_added(files: &Files, tokens: &mut [Token], additions: Additions) -> Result<()> {
    let config_path = files.dir.join("tokenizer_config.json");
    match files.config_field("added_tokens_decoder") {
        None => {}
        Some(Value::Object(decoder)) => {
            for (id, entry) in decoder {
                let number = id.parse().map_err(|_| {
                    bad(
                        &config_path,
                        format!("added token id {id:?} is not a number"),
                    )
                })?;
                let mut entry =
                    Added::parse(number, entry).map_err(|what| bad(&config_path, what))?;
                let unknown = files.config_field("unk_token").and_then(Value::as_str);
                entry.is_unknown = unknown == Some(entry.text);
                entry
                    .place(tokens, additions)
                    .map_err(|what| bad(&config_path, what))?;
            }
        }
        Some(other) => {
            return Err(bad(
                &config_path,
                format!("added_tokens_decoder is {}, not an object", kind(other)),
            ));
        }
    }
    if additions == Additions::AsTheyAre {
        for entry in files.added_tokens() {
            let id = entry.get("id").and_then(Value::as_u64);
            let id = id.ok_or_else(|| files.bad_tokenizer("an entry of added_tokens has no id"))?;
            let entry = Added::parse(id, entry).map_err(|what| files.bad_tokenizer(what))?;
            entry
                .place(tokens, additions)
                .map_err(|what| files.bad_tokenizer(what))?;
        }
    }
    Ok(())
}

/// Warning about added tokens of `tokenizer.json` that become padding, as neither
/// `added_tokens.json` nor `tokenizer_config.json` has them: the reference reads no other file.
pub(super) fn unplaced(files: &Files, tokens: &[Token]) -> Option<String> {
    /// Maximum number of tokens named.
    const NAMED: usize = 8;
    let is_padding = |id: u64| {
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.is_some_and(|token| *token == Token::padding(id as usize))
    };
    let unplaced = |entry: &Value| {
        let id = entry.get("id")?.as_u64().filter(|id| is_padding(*id))?;
        let text = entry.get("content")?.as_str()?;
        Some(format!("{text} ({id})"))
    };
    let named: Vec<String> = files.added_tokens().iter().filter_map(unplaced).collect();
    let names: Vec<&str> = named.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "tokens that only tokenizer.json adds become padding, as convert_hf_to_gguf.py has them: {}. Texts will not \
             be split at them, and generation does not end at one of them; add them to added_tokens_decoder in \
             tokenizer_config.json",
            listed(&names, NAMED)
        )
    })
}

/// Places the tokens of `added_tokens.json`.
pub(super) fn add_from_added_tokens_json(tokens: &mut [Token], path: &Path) -> Result<()> {
    for (text, id) in read_object(path)?.unwrap_or_default() {
        let id = id.as_u64().ok_or_else(|| {
            bad(
                path,
                format!("the id of {text:?} is not a whole number from 0 up"),
            )
        })?;
        // Ids beyond the vocabulary are ignored.
        if let Some(token) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) {
            *token = Token {
                text,
                score: SCORE_OF_ADDED,
                token_type: TokenType::UserDefined,
            };
        }
    }
    Ok(())
}

/// An added token in the files of the tokenizers library.
struct Added<'a> {
    id: u64,
    text: &'a str,
    special: bool,
    is_unknown: bool,
}

impl<'a> Added<'a> {
    fn parse(id: u64, entry: &'a Value) -> std::result::Result<Added<'a>, String> {
        let text = entry
            .get("content")
            .and_then(Value::as_str)
            .ok_or(format!("added token {id} has no content"))?;
        let special = entry
            .get("special")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        Ok(Added {
            id,
            text,
            special,
            is_unknown: false,
        })
    }

    fn place(&self, tokens: &mut [Token], additions: Additions) -> std::result::Result<(), String> {
        let size = tokens.len();
        let place = usize::try_from(self.id)
            .ok()
            .and_then(|id| tokens.get_mut(id));
        let control =
            self.special || (additions == Additions::Common && token::looks_special(self.text));
        let token_type = match control {
            true if additions == Additions::Replace && self.is_unknown => TokenType::Unknown,
            true => TokenType::Control,
            false => TokenType::UserDefined,
        };
        let score = match (additions, control) {
            (Additions::Replace, true) => 0.0,
            (Additions::Replace, false) => SCORE_OF_PADDING,
            _ => SCORE_OF_ADDED,
        };
        let text = match additions {
            Additions::Common if !control => token::with_spaces(self.text),
            _ => self.text.to_owned(),
        };
        match place {
            Some(place) => {
                *place = Token {
                    text,
                    score,
                    token_type,
                }
            }
            None if additions != Additions::AsTheyAre => {}
            None => {
                let Added { id, text, .. } = self;
                return Err(format!(
                    "added token {text:?} has the id {id}, but config.json has a vocab_size of {size}"
                ));
            }
        }
        Ok(())
    }
}

/// Writes tokens with scores, with the name of a pre-tokenizer.
pub(super) fn write_tokens(tokens: &[Token], pre: &str, entries: &mut Entries) {
    entries.set_str("tokenizer.ggml.model", "llama");
    entries.set_str("tokenizer.ggml.pre", pre);
    token::write(tokens, Scores::Floats, entries);
}

/// Writes a vocabulary with scores and its special tokens.
pub(super) fn write(files: &Files, tokens: &[Token], entries: &mut Entries) -> Result<()> {
    write_tokens(tokens, "default", entries);
    Special::load(files, false, &Special::TYPES, Some(tokens.len() as u64))?.write(entries);
    Ok(())
}

/// A serialized model with these pieces: text, score and type.
#[cfg(test)]
pub(super) fn model_of(pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let mut model = Vec::new();
    for &(text, score, piece_type) in pieces {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, piece_type]);
        model.extend([0x0a, piece.len() as u8]);
        model.extend(piece);
    }
    model
}

/// Parses a `tokenizer_config.json`.
#[cfg(test)]
pub(super) fn object(json: &str) -> serde_json::Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small_model() -> Vec<u8> {
        let mut model = model_of(&[
            ("<unk>", 0.0, 2),
            ("<s>", 0.0, 3),
            ("<0x0A>", 0.0, 6),
            ("▁a", -1.5, 1),
            ("x", -2.0, 4),
        ]);
        // training with byte fallback, and a piece without score and type
        model.extend([0x12, 3, 0x98, 0x02, 0x01]);
        model.extend([0x0a, 3, 0x0a, 1, b'y']);
        model
    }

    fn directory(config: &str) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), small_model()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let files = Files::read(dir.path()).unwrap();
        (dir, files)
    }

    #[test]
    fn pieces_have_text_score_and_type() {
        let tokens = parse(&small_model()).unwrap().pieces;
        let seen: Vec<_> = tokens
            .iter()
            .map(|t| (t.text.as_str(), t.score, t.token_type))
            .collect();
        use TokenType::*;
        let expected = [
            ("<unk>", 0.0, Unknown),
            ("<s>", 0.0, Control),
            ("<0x0A>", 0.0, Byte),
            ("▁a", -1.5, Normal),
            ("x", -2.0, Normal),
            ("y", 0.0, Normal),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn truncated_models_are_errors_or_shorter_models() {
        let model = small_model();
        for length in 0..model.len() {
            if let Ok(model) = parse(&model[..length]) {
                assert!(model.pieces.len() < 6, "cut at {length}");
            }
        }
    }

    #[test]
    fn malformed_models_are_explained() {
        for (model, what) in [
            (vec![], "no pieces"),
            (vec![0x0a, 200, 1], "claims 200 bytes"),
            (
                model_of(&[("", 0.0, 1)]),
                "piece 0 at byte 0: it has no text",
            ),
            (
                model_of(&[("a", 0.0, 1), ("a", 0.0, 1)]),
                "piece 1: \"a\" appears twice",
            ),
            (vec![0x0a, 3, 0x0a, 1, 0xff], "not UTF-8"),
            (
                b"PK\x03\x04 an archive".to_vec(),
                "not a SentencePiece model: at byte 2",
            ),
        ] {
            let error = parse(&model).err().unwrap();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn holes_are_padded_and_added_tokens_placed() {
        let config = r#"{"added_tokens_decoder": {
            "1": {"content": "<s>", "special": true}, "4": {"content": "▁▁x", "special": false},
            "6": {"content": "<|end|>"}, "99": {"content": "far"}}}"#;
        let (dir, files) = directory(config);
        std::fs::write(
            dir.path().join("added_tokens.json"),
            r#"{"seven": 7, "beyond": 9}"#,
        )
        .unwrap();
        let tokens = vocabulary(&files, Some(9), Additions::Common)
            .unwrap()
            .unwrap();
        let seen: Vec<_> = tokens
            .iter()
            .map(|t| (t.text.as_str(), t.score, t.token_type))
            .collect();
        use TokenType::*;
        assert_eq!(seen[1], ("<s>", -1000.0, Control));
        assert_eq!(seen[4], ("  x", -1000.0, UserDefined));
        assert_eq!(
            seen[6..],
            [
                ("<|end|>", -1000.0, Control),
                ("seven", -1000.0, UserDefined),
                ("[PAD8]", -10000.0, Unused)
            ]
        );
        // A vocabulary smaller than the model is truncated; without a size, the model's is used.
        assert_eq!(
            vocabulary(&files, Some(3), Additions::Common)
                .unwrap()
                .unwrap()
                .len(),
            3
        );
        assert_eq!(
            vocabulary(&files, Some(0), Additions::Common)
                .unwrap()
                .unwrap()
                .len(),
            6
        );
        // Phi-3 uses flags unchanged, and refuses ids beyond the vocabulary.
        let error = vocabulary(&files, Some(9), Additions::AsTheyAre)
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"far\" has the id 99"), "{error}");
    }

    #[test]
    fn tokens_added_only_by_tokenizer_json_are_named() {
        let (dir, _) = directory("{}");
        let added = r#"{"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 6, "content": "<|end|>"},
            {"id": 99, "content": "far"}]}"#;
        std::fs::write(dir.path().join("tokenizer.json"), added).unwrap();
        let files = Files::read(dir.path()).unwrap();
        let warning = |size| {
            let tokens = vocabulary(&files, size, Additions::Common)
                .unwrap()
                .unwrap();
            unplaced(&files, &tokens)
        };
        let told = warning(Some(8)).unwrap();
        assert!(told.contains(": <|end|> (6). "), "{told}");
        assert_eq!(warning(None), None, "no padding");
    }

    #[test]
    fn added_tokens_replace_those_of_the_model() {
        let (_dir, files) = directory(
            r#"{"unk_token": "<unk>", "added_tokens_decoder": {"0": {"content": "<unk>", "special": true},
                "4": {"content": "<|end|>", "special": true}, "5": {"content": "\u2581b", "special": false},
                "99": {"content": "far", "special": true}}}"#,
        );
        let tokens = vocabulary(&files, Some(7), Additions::Replace)
            .unwrap()
            .unwrap();
        let seen: Vec<_> = tokens[3..]
            .iter()
            .map(|t| (t.text.as_str(), t.score, t.token_type))
            .collect();
        use TokenType::*;
        assert_eq!(tokens[0].token_type, Unknown);
        let expected = [
            ("▁a", -1.5, Normal),
            ("<|end|>", 0.0, Control),
            ("▁b", -10000.0, UserDefined),
            ("[PAD6]", -10000.0, Unused),
        ];
        assert_eq!(seen, expected);
        let error = vocabulary(&files, Some(5), Additions::Replace).unwrap_err();
        assert!(error.to_string().contains("6 pieces"), "{error}");
    }

    #[test]
    fn wrong_types_in_companion_files_are_errors() {
        for (config, what) in [
            (
                r#"{"added_tokens_decoder": [1]}"#,
                "added_tokens_decoder is an array",
            ),
            (
                r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#,
                "\"x\" is not a number",
            ),
            (
                r#"{"added_tokens_decoder": {"1": {"special": true}}}"#,
                "added token 1 has no content",
            ),
        ] {
            let error = vocabulary(&directory(config).1, None, Additions::Common)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("tokenizer_config.json: ") && error.contains(what),
                "{error}"
            );
        }
        let (_dir, files) = directory("{}");
        let error = vocabulary(&files, Some(u64::MAX), Additions::Common)
            .unwrap_err()
            .to_string();
        assert!(error.contains("vocab_size"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn changed_bytes_are_read_or_refused(at in 0usize..64, value in any::<u8>()) {
            let mut model = small_model();
            let at = at % model.len();
            model[at] = value;
            let _ = parse(&model);
        }
    }
}
