//! ChatGLM: byte-level for version 4; SentencePiece for version 3, with special tokens after the
//! pieces, as added by the checkpoint's tokenizer.

use super::files::bad;
use super::special::Special;
use super::spm::{self, Model};
use super::token::{Token, TokenType};
use super::{Import, checked_size, families, no_model};
use quantier_gguf::Result;
use serde_json::Value;

/// Special tokens of version 3, in the order of their ids from the number of pieces on.
const SPECIAL3: [&str; 9] = [
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
];
/// Texts of the first tokens of version 3.
const FIRST3: [&str; 3] = ["<unk>", "<bos>", "<eos>"];

impl Import<'_> {
    pub(crate) fn chatglm(&mut self) -> Result<usize> {
        let name = self.config("_name_or_path").and_then(Value::as_str);
        if name.is_some_and(|name| name.contains("THUDM/chatglm3-6b")) {
            return self.chatglm3();
        }
        if self.files.tokenizer.is_none() {
            return Err(bad(
                &self.files.dir,
                "no tokenizer.json; the tokenizer of this checkpoint is a program beside it, whose merges no GGUF can \
                 hold; take the model's variant with -hf in its name",
            ));
        }
        self.byte_level_with(&families::CHATGLM)
    }

    fn chatglm3(&mut self) -> Result<usize> {
        let files = self.files;
        let model = Model::read(&files.dir.join(spm::FILE))?.ok_or_else(|| no_model(&files.dir))?;
        let mut tokens = model.pieces;
        let pieces = tokens.len();
        let padded = self.config("padded_vocab_size").and_then(Value::as_u64);
        let size = checked_size(padded, pieces + SPECIAL3.len(), &files.dir)?;
        if size < pieces + SPECIAL3.len() {
            return Err(bad(
                &files.dir.join("config.json"),
                format!(
                    "a padded_vocab_size of {size}, but {} has {pieces} pieces, and there are {} special tokens more",
                    spm::FILE,
                    SPECIAL3.len()
                ),
            ));
        }
        for (token, text) in tokens.iter_mut().zip(FIRST3) {
            token.text = text.to_owned();
        }
        tokens.extend(SPECIAL3.map(|text| Token {
            text: text.to_owned(),
            score: 0.0,
            token_type: TokenType::Control,
        }));
        tokens.extend((tokens.len()..size).map(|id| Token {
            score: 0.0,
            ..Token::padding(id)
        }));
        spm::write_tokens(&tokens, "chatglm-spm", &mut self.entries);
        Special::load(files, false, &Special::TYPES, Some(size as u64))?.write(&mut self.entries);
        Ok(size)
    }
}
