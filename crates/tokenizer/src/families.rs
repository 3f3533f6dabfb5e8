//! Vocabularies of single families: plain ones with other special tokens.

use super::bpe::{self, Rules};
use super::files::{bad, read_text};
use super::special::Special;
use super::spm::{self, Additions};
use super::token::{self, Scores, TokenType};
use super::{Import, NO_TEMPLATE, no_model, tekken};
use quantier_gguf::Result;
use quantier_gguf::gguf::Value;

const TEXT_END: &str = "<|endoftext|>";
/// GLM's pre-tokenizers split like Llama 3's.
const GLM_KIN: &[(&str, &str)] = &[("llama-bpe", "glm4"), ("dbrx", "chatglm-bpe")];

/// GLM 4 and related small and visual models.
pub(super) const GLM4: Rules = Rules {
    roles: &[
        ("eos", TEXT_END),
        ("eot", "<|user|>"),
        ("unk", TEXT_END),
        ("bos", TEXT_END),
    ],
    kin: GLM_KIN,
    ..Rules::PLAIN
};
/// GLM 4.5 and later mixtures of experts.
pub(super) const GLM_MOE: Rules = Rules {
    roles: &[
        ("bos", "[gMASK]"),
        ("eot", "<|user|>"),
        ("unk", TEXT_END),
        ("eom", "<|observation|>"),
    ],
    kin: GLM_KIN,
    ..Rules::PLAIN
};
/// Solar Open.
pub(super) const SOLAR_OPEN: Rules = Rules {
    roles: &[
        ("eos", TEXT_END),
        ("eot", TEXT_END),
        ("unk", "<unk>"),
        ("bos", "<|startoftext|>"),
    ],
    ..Rules::PLAIN
};
/// ChatGLM 4.
pub(super) const CHATGLM: Rules = Rules {
    roles: &[("eos", TEXT_END), ("eot", "<|user|>"), ("unk", TEXT_END)],
    kin: GLM_KIN,
    ..Rules::PLAIN
};
/// Laguna, whose end of a turn is no special token in its files.
const LAGUNA: Rules = Rules {
    control: &["</assistant>"],
    ..Rules::PLAIN
};
/// dots3 note.
pub(super) const DOTS3: Rules = Rules {
    roles: &[("eot", "<|endofassistant|>")],
    ..Rules::PLAIN
};
/// LLaDA and Dream.
pub(super) const AS_THEY_ARE: Rules = Rules {
    as_they_are: true,
    ..Rules::PLAIN
};
/// Kinds of infill tokens. The reference writes only the last.
const FILL_IN: [&str; 4] = ["prefix", "suffix", "middle", "eot"];

impl Import<'_> {
    pub(crate) fn set_id(&mut self, kind: &str, id: u32) {
        self.entries
            .set(format!("tokenizer.ggml.{kind}_token_id"), Value::U32(id));
    }

    pub(crate) fn set_flag(&mut self, name: &str, flag: bool) {
        self.entries
            .set(format!("tokenizer.ggml.{name}"), Value::Bool(flag));
    }

    /// Kimi Linear's, with the configuration's end of a turn.
    pub(crate) fn kimi_k3(&mut self) -> Result<usize> {
        let tokens = self.kimi(true)?;
        let end = self.config("eos_token_id").and_then(|id| id.as_u64());
        if let Some(id) = end.and_then(|id| u32::try_from(id).ok()) {
            self.set_id("eos", id);
        }
        if self.entries.get("tokenizer.chat_template").is_none() {
            self.notes.push(NO_TEMPLATE.to_owned());
        }
        Ok(tokens)
    }

    pub(crate) fn llada(&mut self) -> Result<usize> {
        let tokens = self.byte_level_with(&AS_THEY_ARE)?;
        self.set_flag("add_bos_token", true);
        Ok(tokens)
    }

    pub(crate) fn refact(&mut self) -> Result<usize> {
        let tokens = self.byte_level()?;
        Special::load(self.files, false, &FILL_IN, None)?.write(&mut self.entries);
        Ok(tokens)
    }

    pub(crate) fn muse_glimmer(&mut self) -> Result<usize> {
        let (tokens, tokenizer) = bpe::write_byte_level(self, &Rules::PLAIN)?;
        if let Some(id) = tokenizer.id_or_unknown("<|eot|>") {
            self.set_id("eot", id);
        }
        Ok(tokens)
    }

    /// Laguna's: a lone `chat_template.jinja` counts more than what includes it, and of several ends of
    /// text the first that does not begin one ends a turn.
    pub(crate) fn laguna(&mut self) -> Result<usize> {
        let tokens = self.byte_level_with(&LAGUNA)?;
        let path = self.files.dir.join("chat_template.jinja");
        if let Some(template) = read_text(&path)? {
            self.entries.set_str("tokenizer.chat_template", &template);
        }
        let ends = self.config("eos_token_id").and_then(|ends| ends.as_array());
        let begin = self.config("bos_token_id");
        let turn = ends.and_then(|ends| ends.iter().find(|end| Some(*end) != begin));
        if let Some(id) = turn.and_then(|id| u32::try_from(id.as_u64()?).ok()) {
            self.set_id("eot", id);
        }
        Ok(tokens)
    }

    /// Byte-level; with a `tokenizer.model` alone, SEA-LION's.
    pub(crate) fn mpt(&mut self) -> Result<usize> {
        if self.files.tokenizer.is_some() || !self.files.dir.join(spm::FILE).is_file() {
            return self.byte_level();
        }
        let tokens = self.only_sentencepiece()?;
        self.set_flag("add_bos_token", false);
        self.set_id("padding", 3);
        self.set_id("eos", 1);
        self.set_id("unknown", 0);
        Ok(tokens)
    }

    /// Mamba's; the first models have no tokenizer.
    pub(crate) fn mamba(&mut self) -> Result<usize> {
        let multiple = self.config("pad_vocab_size_multiple");
        self.padded(multiple.and_then(serde_json::Value::as_u64).unwrap_or(8));
        if self.files.tokenizer.is_some() {
            return self.byte_level();
        }
        self.sentencepiece(Additions::Common)?.ok_or_else(|| {
            let what = format!(
                "neither tokenizer.json nor {}; the first Mambas come without one and use that of GPT-NeoX: download \
                 EleutherAI/gpt-neox-20b's",
                spm::FILE
            );
            bad(&self.files.dir, what)
        })
    }

    pub(crate) fn jamba(&mut self) -> Result<usize> {
        if let Some(tokens) = self.sentencepiece(Additions::Common)? {
            return Ok(tokens);
        }
        let tokens = self.like_sentencepiece()?;
        self.set_flag("add_space_prefix", false);
        Ok(tokens)
    }

    pub(crate) fn openelm(&mut self) -> Result<usize> {
        self.sentencepiece(Additions::Common)?.ok_or_else(|| {
            let what = format!(
                "no {}; OpenELM comes without one and uses that of Llama 2: download it from a checkpoint of Llama 2",
                spm::FILE
            );
            bad(&self.files.dir, what)
        })
    }

    /// Byte-level with Llama 3's size, otherwise as converted from SentencePiece.
    pub(crate) fn deci(&mut self) -> Result<usize> {
        /// Vocabulary size of Llama 3.
        const LLAMA3: u64 = 128_256;

        if self.vocab_size.unwrap_or(LLAMA3) == LLAMA3 {
            return self.byte_level();
        }
        if !bpe::is_like_sentencepiece(self.files) {
            return Err(self.files.bad_tokenizer(
                "DeciLM 7B needs a tokenizer.json with byte-pair encoding, byte fallback and a Sequence as decoder; \
                 get it from the model's source",
            ));
        }
        self.like_sentencepiece()
    }

    fn like_sentencepiece(&mut self) -> Result<usize> {
        let tokens = bpe::like_sentencepiece(self.files)?;
        spm::write(self.files, &tokens, &mut self.entries)?;
        Ok(tokens.len())
    }

    pub(crate) fn nemotron(&mut self) -> Result<usize> {
        let tokens = self.only_sentencepiece()?;
        self.set_id("padding", 0);
        self.set_id("unknown", 1);
        Ok(tokens)
    }

    pub(crate) fn gemma1(&mut self) -> Result<usize> {
        /// End of a turn. The reference sets infill tokens too, but writes none of them.
        const EOT: u32 = 107;

        let tokens = self.only_sentencepiece()?;
        let types = ["prefix", "suffix", "middle", "fsep", "eot"];
        let mut special = Special::load(self.files, false, &types, None)?;
        special.set_id("eot", EOT);
        special.write(&mut self.entries);
        self.entries
            .set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(tokens)
    }

    /// Byte-pair encoding of characters with byte fallback; llama.cpp merges by rank.
    pub(crate) fn gemma4(&mut self) -> Result<usize> {
        /// Tokens of tool calls and channels, which chat parsers read.
        const VISIBLE: [&str; 7] = [
            "<|channel>",
            "<channel|>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            "<tool_response|>",
            "<|\"|>",
        ];

        if !bpe::is_like_sentencepiece(self.files) {
            return Err(self.files.bad_tokenizer(
                "Gemma 4 needs a tokenizer.json with byte-pair encoding, byte fallback and a Sequence as decoder; get it \
                 from the model's source",
            ));
        }
        let mut tokens = bpe::like_sentencepiece(self.files)?;
        let visible = tokens.iter_mut();
        let visible = visible.filter(|token| VISIBLE.contains(&token.text.as_str()));
        visible.for_each(|token| token.token_type = TokenType::UserDefined);
        self.entries.set_str("tokenizer.ggml.model", "gemma4");
        token::write(&tokens, Scores::Floats, &mut self.entries);
        Special::load(self.files, true, &Special::TYPES, None)?.write(&mut self.entries);
        self.set_flag("add_space_prefix", false);
        self.set_flag("add_bos_token", true);
        Ok(tokens.len())
    }

    pub(crate) fn phi3(&mut self) -> Result<usize> {
        let class = self
            .files
            .config_field("tokenizer_class")
            .and_then(|c| c.as_str());
        if class == Some("GPT2Tokenizer") {
            return self.byte_level();
        }
        self.sentencepiece(Additions::AsTheyAre)?
            .ok_or_else(|| no_model(&self.files.dir))
    }

    pub(crate) fn llama(&mut self) -> Result<usize> {
        /// Vocabulary size of Code Llama, and its end-of-infill token, the only infill token that
        /// the reference writes.
        const CODE_LLAMA: u64 = 32016;
        const CODE_LLAMA_EOT: u32 = 32010;
        /// Vocabulary size of the small Granite models, whose tokenizer wrongly declares a BOS
        /// token.
        const SMALL_GRANITE: u64 = 49152;

        if self.files.tokenizer.is_none() && self.files.dir.join(tekken::FILE).is_file() {
            return self.mistral(false);
        }
        self.space_prefix()?;
        let tokens = if let Some(tokens) = self.sentencepiece(Additions::Common)? {
            tokens
        } else if bpe::is_like_sentencepiece(self.files) {
            self.like_sentencepiece()?
        } else {
            self.byte_level()?
        };
        match self.vocab_size {
            Some(CODE_LLAMA) => {
                let mut special = Special::load(
                    self.files,
                    false,
                    &["prefix", "suffix", "middle", "eot"],
                    None,
                )?;
                special.set_id("eot", CODE_LLAMA_EOT);
                special.write(&mut self.entries);
            }
            Some(SMALL_GRANITE) => self
                .entries
                .set("tokenizer.ggml.add_bos_token", Value::Bool(false)),
            _ => {}
        }
        Ok(tokens)
    }
}
