//! Vocabularies: [`import`] converts the tokenizer files of a Hugging Face checkpoint to `tokenizer.*`
//! metadata, and [`Tokenizer`] encodes text by that metadata.
//!
//! ```text
//! tokenizer.model  -> protobuf -> spm ---+
//! *.bpe.model, spiece.model -> unigram --+
//! *.tiktoken       -> tiktoken ----------+
//! tekken.json      -> tekken ------------+
//! tokenizer.jsonl  -> plamo -------------+-> token -> special -> metadata
//! tokenizer.json -> checked -> hf -> bpe, word_piece, unigram
//!                  |         |    |
//! vocab.json ----> slow   class  pre
//! ```

#![warn(missing_docs, unreachable_pub)]

mod bpe;
mod chatglm;
mod checked;
mod class;
mod encode;
mod families;
pub mod files;
mod hf;
mod internlm;
mod plamo;
mod pre;
mod protobuf;
mod rwkv;
mod slow;
mod special;
mod spm;
mod tekken;
mod tiktoken;
mod token;
mod unigram;
mod word_piece;

use bpe::Rules;
use files::{Files, bad};
use quantier_gguf::Result;
use quantier_gguf::gguf::{Entries, Value};
use spm::Additions;
use std::path::Path;

pub use encode::{Error as VocabularyError, Tokenizer};

/// Maximum vocabulary size: the largest models have 2^18, and a damaged file could fill memory with
/// padding.
pub(crate) const MAX_TOKENS: usize = 1 << 24;

/// Note on a family whose files have a template of the reference's collection.
pub const NO_TEMPLATE: &str = "the checkpoint has no chat template, and the file gets none: convert_hf_to_gguf.py would add \
     one of its own collection (models/templates in llama.cpp). `quantier set FILE --chat-template TEMPLATE` adds one";

/// The vocabulary of a family: its files and additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabKind {
    /// Byte-level byte-pair encoding: GPT-2, OLMo, Starcoder2, Qwen's mixtures of experts, Falcon,
    /// GPT-NeoX, BLOOM, Cohere, EXAONE, Jais, Spark, Seed-OSS.
    ByteLevel,
    /// SentencePiece if `tokenizer.model` exists, otherwise byte-level: Qwen2 and Qwen3.
    Qwen,
    /// SentencePiece, otherwise byte-pair encoding with byte fallback, otherwise byte-level; with
    /// the additions of Code Llama and the small Granites: Llama, Mistral, Mixtral, Granite,
    /// SmolLM3, Apertus, Arcee, Nanbeige.
    Llama,
    /// Mistral's own files: `tekken.json` or `tokenizer.model.vN`, for checkpoints with params.json
    /// (`--mistral-format`). `Llama` accepts a lone `tekken.json` too.
    Mistral,
    /// SentencePiece: Orion, Baichuan, MiniCPM, PLaMo 1, BitNet.
    SentencePiece,
    /// SentencePiece, padding and unknown tokens by number: Nemotron.
    Nemotron,
    /// SentencePiece, with the space prefix set by tokenizer_config.json: ERNIE 4.5.
    Ernie,
    /// SentencePiece without a space prefix, with CodeGemma's end of turn: Gemma 1.
    Gemma1,
    /// SentencePiece without a space prefix: Gemma 2.
    Gemma2,
    /// The same, or byte-level without `tokenizer.model`: Gemma 3.
    Gemma3,
    /// Byte-pair encoding with byte fallback, as in `tokenizer.json`: Gemma 4.
    Gemma4,
    /// The same, and `generation_config.json` lists tokens that are never sampled: Gemma 4 Unified.
    Gemma4Unified,
    /// SentencePiece with added tokens as they are, or byte-level for Phi-4: Phi-3.
    Phi3,
    /// Byte-level; special tokens are `<|endoftext|>` and `<|user|>`: GLM 4, GLM-4V, GLM-OCR.
    Glm4,
    /// Byte-level; special tokens are `[gMASK]`, `<|user|>` and `<|observation|>`: GLM 4.5.
    GlmMoe,
    /// As GLM 4 without a BOS token; SentencePiece for ChatGLM 3: GLM, ChatGLM.
    ChatGlm,
    /// Byte-level, or `hy.tiktoken`; ends of text and turn from the configuration: Hunyuan's dense
    /// and visual models.
    Hunyuan,
    /// `hy.tiktoken`: Hunyuan's mixtures of experts.
    HunyuanMoe,
    /// Byte-level, or `tiktoken.model`: Kimi Linear.
    Kimi,
    /// The same, with the EOS token of the configuration: DeepSeek V2 and V3, Kimi K2.
    KimiK2,
    /// The same, with the end of a turn of the configuration: Kimi K3.
    KimiK3,
    /// Byte-level; the end of a turn is `<|endofassistant|>`: dots3 note.
    Dots3,
    /// Byte-level; special tokens are `<|startoftext|>` and `<|endoftext|>`: Solar Open.
    SolarOpen,
    /// `qwen.tiktoken`: Qwen 1.
    Qwen1,
    /// Byte-level, or `arcade100k.tiktoken`: StableLM.
    StableLm,
    /// SentencePiece with added tokens as they are, `<|im_end|>` as EOS token: InternLM 2.
    InternLm2,
    /// SentencePiece, `<|im_end|>` as EOS token: InternLM 3.
    InternLm3,
    /// The tokens of `tokenizer.json` as if of SentencePiece, without scores: XVERSE.
    Xverse,
    /// `tokenizer.jsonl`: PLaMo 2.
    Plamo2,
    /// The same with a chat template: PLaMo 3.
    Plamo3,
    /// SentencePiece, else byte-level, padded to a multiple of `pad_vocab_size_multiple` or 16: Mamba 2.
    Mamba2,
    /// The same, padded to a multiple of 8: Granite's hybrids, Bamba.
    GraniteHybrid,
    /// `rwkv_vocab_v20230424.txt`: RWKV 6 and 7.
    RwkvWorld,
    /// Byte-level, padded to a multiple of 8: Nemotron-H.
    NemotronH,
    /// Byte-level, else SentencePiece, padded to a multiple of `pad_vocab_size_multiple` or 8: Mamba.
    Mamba,
    /// SentencePiece, else byte-pair encoding with byte fallback and without a space prefix: Jamba.
    Jamba,
    /// Byte-level, with `chat_template.jinja`: MiniMax-01, M1.
    MiniMax01,
    /// Byte-level, for infill: Refact.
    Refact,
    /// Byte-level, else SentencePiece with special tokens by number (SEA-LION): MPT.
    Mpt,
    /// SentencePiece, from another checkpoint: OpenELM.
    OpenElm,
    /// Byte-level with Llama 3's size, else byte-pair encoding with byte fallback: DeciLM.
    Deci,
    /// Byte-level, `<|eot|>` as end of turn: Muse Glimmer.
    MuseGlimmer,
    /// Byte-level, with `chat_template.jinja` and an end of turn by the configuration: Laguna.
    Laguna,
    /// Byte-level, added tokens as they are, always with a BOS token: LLaDA.
    Llada,
    /// SentencePiece, else byte-level with added tokens as they are: Dream.
    Dream,
    /// SentencePiece, else byte-level with `chat_template.jinja`: Grok.
    Grok,
    /// SentencePiece; added tokens replace those of the model: Arctic.
    Arctic,
    /// WordPiece: BERT, DistilBERT, NeoBERT.
    WordPiece,
    /// Byte-level, with the number of token types: RoBERTa.
    Roberta,
    /// Unigram, from `sentencepiece.bpe.model` or `tokenizer.json`: XLM-RoBERTa.
    XlmRoberta,
    /// WordPiece or Unigram, as `tokenizer.json` says: Nomic-BERT.
    NomicBert,
    /// The same with a mask token that `sentencepiece.bpe.model` lacks: Nomic-BERT with experts.
    NomicBertMoe,
    /// WordPiece, byte-level or whole words, as the class of the tokenizer says: Jina-BERT.
    JinaBert,
    /// Byte-level, always with BOS, EOS and separator: ModernBERT.
    ModernBert,
    /// Byte-level, without a BOS token unless its files add one: EuroBERT.
    EuroBert,
    /// Unigram, from `tokenizer.model` or `spiece.model`, or SentencePiece: T5.
    T5,
}

/// What the configuration says about a vocabulary, and the user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// Number of tokens; missing tokens below it become padding.
    pub vocab_size: Option<u64>,
    /// Number of token types, for vocabularies with that number; 1 by default.
    pub token_types: Option<u32>,
    /// The pre-tokenizer of a byte-level vocabulary; `None` detects it.
    pub pre: Option<&'a str>,
}

/// A vocabulary as GGUF metadata.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// `tokenizer.*` in file order.
    pub entries: Entries,
    /// Number of tokens.
    pub tokens: usize,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Imports the vocabulary of a checkpoint.
///
/// # Errors
/// A missing, damaged or unsupported tokenizer file, or an unknown pre-tokenizer.
pub fn import(dir: &Path, kind: VocabKind, settings: &Settings<'_>) -> Result<Vocabulary> {
    let files = Files::read(dir)?;
    let mut import = Import {
        files: &files,
        vocab_size: settings.vocab_size,
        token_types: settings.token_types.unwrap_or(1),
        pre: settings.pre,
        entries: Entries::new(),
        notes: Vec::new(),
    };
    let tokens = match kind {
        VocabKind::ByteLevel => import.byte_level()?,
        VocabKind::Qwen => import.sentencepiece_or_byte_level()?,
        VocabKind::Llama => import.llama()?,
        VocabKind::Mistral => import.mistral(true)?,
        VocabKind::SentencePiece => import.only_sentencepiece()?,
        VocabKind::Nemotron => import.nemotron()?,
        VocabKind::Ernie => {
            let tokens = import.only_sentencepiece()?;
            import.space_prefix()?;
            tokens
        }
        VocabKind::Gemma1 => import.gemma1()?,
        VocabKind::Gemma2 => import.gemma()?.ok_or_else(|| no_model(dir))?,
        VocabKind::Gemma3 => match import.gemma()? {
            Some(tokens) => tokens,
            None => import.byte_level()?,
        },
        VocabKind::Gemma4 | VocabKind::Gemma4Unified => import.gemma4()?,
        VocabKind::Phi3 => import.phi3()?,
        VocabKind::Glm4 => import.byte_level_with(&families::GLM4)?,
        VocabKind::GlmMoe => import.byte_level_with(&families::GLM_MOE)?,
        VocabKind::ChatGlm => import.chatglm()?,
        VocabKind::Hunyuan => import.hunyuan()?,
        VocabKind::HunyuanMoe => import.hunyuan_moe()?,
        VocabKind::Kimi => import.kimi(true)?,
        VocabKind::KimiK2 => import.kimi(false)?,
        VocabKind::KimiK3 => import.kimi_k3()?,
        VocabKind::Dots3 => import.byte_level_with(&families::DOTS3)?,
        VocabKind::SolarOpen => import.byte_level_with(&families::SOLAR_OPEN)?,
        VocabKind::Qwen1 => import.qwen1()?,
        VocabKind::StableLm => import.stablelm()?,
        VocabKind::InternLm2 => import.internlm2()?,
        VocabKind::InternLm3 => import.internlm3()?,
        VocabKind::Xverse => bpe::write_xverse(&mut import)?,
        VocabKind::Plamo2 => import.plamo2()?,
        VocabKind::Mamba2 => {
            let multiple = import.config("pad_vocab_size_multiple");
            let multiple = multiple.and_then(serde_json::Value::as_u64);
            import.padded(multiple.unwrap_or(16));
            import.sentencepiece_or_byte_level()?
        }
        VocabKind::GraniteHybrid => {
            import.padded(8);
            import.sentencepiece_or_byte_level()?
        }
        VocabKind::MiniMax01 => {
            let template = template_of(
                dir,
                "the file is missing, and llama.cpp's converter would write a template of its own in its place; \
                 download it from MiniMaxAI/MiniMax-M1-40k",
            )?;
            let tokens = import.byte_level()?;
            import.entries.set_str("tokenizer.chat_template", &template);
            tokens
        }
        VocabKind::NemotronH => {
            import.padded(8);
            import.byte_level()?
        }
        VocabKind::RwkvWorld => import.rwkv_world()?,
        VocabKind::Plamo3 => import.plamo3()?,
        VocabKind::Mamba => import.mamba()?,
        VocabKind::Jamba => import.jamba()?,
        VocabKind::Refact => import.refact()?,
        VocabKind::Mpt => import.mpt()?,
        VocabKind::OpenElm => import.openelm()?,
        VocabKind::Deci => import.deci()?,
        VocabKind::MuseGlimmer => import.muse_glimmer()?,
        VocabKind::Laguna => import.laguna()?,
        VocabKind::Llada => import.llada()?,
        VocabKind::Dream => match import.sentencepiece(Additions::Common)? {
            Some(tokens) => tokens,
            None => import.byte_level_with(&families::AS_THEY_ARE)?,
        },
        VocabKind::Grok => match import.sentencepiece(Additions::Common)? {
            Some(tokens) => tokens,
            None => {
                template_of(
                    dir,
                    "the file is missing, and llama.cpp's converter asks for it; download it with tokenizer.json from \
                     alvarobartt/grok-2-tokenizer",
                )?;
                import.byte_level()?
            }
        },
        VocabKind::Arctic => {
            let tokens = import.sentencepiece(Additions::Replace)?;
            tokens.ok_or_else(|| no_model(dir))?
        }
        VocabKind::WordPiece => word_piece::write(&mut import)?,
        VocabKind::Roberta => import.roberta()?,
        VocabKind::XlmRoberta => unigram::write_xlm_roberta(&mut import, None)?,
        VocabKind::NomicBert => import.nomic_bert(None)?,
        VocabKind::NomicBertMoe => import.nomic_bert(Some(unigram::NOMIC_MASK))?,
        VocabKind::JinaBert => import.jina_bert()?,
        VocabKind::ModernBert => import.modern_bert()?,
        VocabKind::EuroBert => import.euro_bert()?,
        VocabKind::T5 => unigram::write_t5(&mut import)?,
    };
    Ok(Vocabulary {
        entries: import.entries,
        tokens,
        notes: import.notes,
    })
}

/// The chat template of a file of its own; without it, an error that says `missing`.
fn template_of(dir: &Path, missing: &str) -> Result<String> {
    let path = dir.join("chat_template.jinja");
    files::read_text(&path)?.ok_or_else(|| bad(&path, missing))
}

fn no_model(dir: &Path) -> quantier_gguf::Error {
    bad(
        dir,
        format!("no {}; download it from the model's source", spm::FILE),
    )
}

/// Number of tokens: the configuration's, otherwise the tokenizer's own.
fn checked_size(vocab_size: Option<u64>, own: usize, dir: &Path) -> Result<usize> {
    let size = vocab_size
        .map_or(Some(own), |n| usize::try_from(n).ok())
        .filter(|&n| n <= MAX_TOKENS);
    size.ok_or_else(|| {
        let claimed = vocab_size.unwrap_or(own as u64);
        bad(
            &dir.join("config.json"),
            format!("a vocab_size of {claimed}; the limit is {MAX_TOKENS}"),
        )
    })
}

/// State of an import. Each method returns the number of tokens.
struct Import<'a> {
    files: &'a Files,
    vocab_size: Option<u64>,
    token_types: u32,
    pre: Option<&'a str>,
    entries: Entries,
    notes: Vec<String>,
}

impl Import<'_> {
    /// A field of config.json; that of the text model takes precedence, as in the reference.
    fn config(&self, name: &str) -> Option<&serde_json::Value> {
        let config = self.files.config.as_ref()?;
        let own = config.get("text_config").and_then(|text| text.get(name));
        own.or_else(|| config.get(name))
    }

    fn byte_level(&mut self) -> Result<usize> {
        self.byte_level_with(&Rules::PLAIN)
    }

    fn byte_level_with(&mut self, rules: &Rules) -> Result<usize> {
        bpe::write_byte_level(self, rules).map(|(tokens, _)| tokens)
    }

    /// `None` if there is no `tokenizer.model`.
    fn sentencepiece(&mut self, additions: Additions) -> Result<Option<usize>> {
        let Some(tokens) = spm::vocabulary(self.files, self.vocab_size, additions)? else {
            return Ok(None);
        };
        spm::write(self.files, &tokens, &mut self.entries)?;
        self.notes.extend(spm::unplaced(self.files, &tokens));
        Ok(Some(tokens.len()))
    }

    fn sentencepiece_or_byte_level(&mut self) -> Result<usize> {
        match self.sentencepiece(Additions::Common)? {
            Some(tokens) => Ok(tokens),
            None => self.byte_level(),
        }
    }

    /// Rounds the number of tokens up to a multiple of `multiple`.
    fn padded(&mut self, multiple: u64) {
        let padded = |size: u64| size.checked_next_multiple_of(multiple.max(1));
        self.vocab_size = self.vocab_size.map(|size| padded(size).unwrap_or(size));
    }

    fn only_sentencepiece(&mut self) -> Result<usize> {
        let tokens = self.sentencepiece(Additions::Common)?;
        tokens.ok_or_else(|| no_model(&self.files.dir))
    }

    /// Sets the space prefix, if tokenizer_config.json states it.
    fn space_prefix(&mut self) -> Result<()> {
        let field = self.files.config_field("add_prefix_space");
        let Some(space) = field.filter(|space| !space.is_null()) else {
            return Ok(());
        };
        let path = self.files.dir.join("tokenizer_config.json");
        let space = space.as_bool();
        let space =
            space.ok_or_else(|| bad(&path, "add_prefix_space is neither true nor false"))?;
        self.entries
            .set("tokenizer.ggml.add_space_prefix", Value::Bool(space));
        Ok(())
    }

    fn gemma(&mut self) -> Result<Option<usize>> {
        let tokens = self.sentencepiece(Additions::Common)?;
        if tokens.is_some() {
            self.entries
                .set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests;
