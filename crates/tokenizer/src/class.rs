//! The tokenizer classes of transformers as data: their changes to `tokenizer.json`.

use super::files::Files;
use super::slow::Slow;
use serde_json::{Map, Value};

/// A tokenizer class of transformers.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    /// Name without "Fast".
    name: &'static str,
    /// Role and text of the default special tokens.
    defaults: &'static [(&'static str, &'static str)],
    /// Further special tokens.
    more_special: &'static [&'static str],
    /// Default of `add_bos_token`; `None` if `tokenizer.json` decides.
    adds_bos: Option<bool>,
    /// True if its special tokens are added tokens with flags, not plain texts.
    makes_added: bool,
    /// True if it overrides `add_prefix_space` of `tokenizer.json`.
    sets_prefix_space: bool,
    /// True if it overrides the settings of BERT's normalizer.
    sets_normalizer: bool,
    /// Reading of `vocab.json` and `merges.txt`; `None` if it requires a `tokenizer.json`.
    slow: Option<Slow>,
}

const TEXT_END: &str = "<|endoftext|>";

/// A class without changes.
const PLAIN: Class = Class {
    name: "PreTrainedTokenizer",
    defaults: &[],
    more_special: &[],
    adds_bos: None,
    makes_added: false,
    sets_prefix_space: true,
    sets_normalizer: false,
    slow: None,
};

/// BERT's special tokens.
const BERT: Class = Class {
    name: "BertTokenizer",
    defaults: &[
        ("unk_token", "[UNK]"),
        ("sep_token", "[SEP]"),
        ("pad_token", "[PAD]"),
        ("cls_token", "[CLS]"),
        ("mask_token", "[MASK]"),
    ],
    sets_normalizer: true,
    ..PLAIN
};

/// RoBERTa's special tokens.
const ROBERTA: Class = Class {
    name: "RobertaTokenizer",
    defaults: &[
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("sep_token", "</s>"),
        ("pad_token", "<pad>"),
        ("cls_token", "<s>"),
        ("mask_token", "<mask>"),
    ],
    ..PLAIN
};

const CLASSES: [Class; 13] = [
    BERT,
    Class {
        name: "DistilBertTokenizer",
        ..BERT
    },
    ROBERTA,
    Class {
        name: "XLMRobertaTokenizer",
        ..ROBERTA
    },
    Class {
        name: "LlamaTokenizer",
        defaults: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
        ],
        adds_bos: Some(true),
        sets_prefix_space: false,
        ..PLAIN
    },
    Class {
        name: "CodeLlamaTokenizer",
        defaults: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
        ],
        more_special: &["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
        adds_bos: Some(true),
        ..PLAIN
    },
    Class {
        name: "GemmaTokenizer",
        defaults: &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
        ],
        adds_bos: Some(true),
        ..PLAIN
    },
    Class {
        name: "CohereTokenizer",
        defaults: &[
            ("bos_token", "<BOS_TOKEN>"),
            ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ("unk_token", "<UNK>"),
        ],
        adds_bos: Some(true),
        ..PLAIN
    },
    Class {
        name: "GPTNeoXTokenizer",
        defaults: &[
            ("bos_token", TEXT_END),
            ("eos_token", TEXT_END),
            ("unk_token", TEXT_END),
        ],
        adds_bos: Some(false),
        ..PLAIN
    },
    Class {
        name: "GPT2Tokenizer",
        defaults: &[
            ("bos_token", TEXT_END),
            ("eos_token", TEXT_END),
            ("unk_token", TEXT_END),
        ],
        slow: Some(Slow::Gpt2),
        ..PLAIN
    },
    Class {
        name: "CodeGenTokenizer",
        defaults: &[
            ("bos_token", TEXT_END),
            ("eos_token", TEXT_END),
            ("unk_token", TEXT_END),
        ],
        slow: Some(Slow::Gpt2),
        ..PLAIN
    },
    Class {
        name: "BloomTokenizer",
        defaults: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
        ],
        ..PLAIN
    },
    Class {
        name: "Qwen2Tokenizer",
        defaults: &[
            ("eos_token", TEXT_END),
            ("unk_token", TEXT_END),
            ("pad_token", TEXT_END),
        ],
        makes_added: true,
        slow: Some(Slow::Qwen2),
        ..PLAIN
    },
];

/// Default class by model type; other types have a class without changes.
const CLASS_OF_MODEL: [(&str, &str); 83] = [
    ("aria", "LlamaTokenizer"),
    ("arcee", "LlamaTokenizer"),
    ("aya_vision", "CohereTokenizer"),
    ("bert", "BertTokenizer"),
    ("bloom", "BloomTokenizer"),
    ("code_llama", "CodeLlamaTokenizer"),
    ("codegen", "CodeGenTokenizer"),
    ("cohere", "CohereTokenizer"),
    ("cohere2", "CohereTokenizer"),
    ("dbrx", "GPT2Tokenizer"),
    ("deepseek_v2", "LlamaTokenizer"),
    ("deepseek_v3", "LlamaTokenizer"),
    ("diffllama", "LlamaTokenizer"),
    ("distilbert", "DistilBertTokenizer"),
    ("ernie4_5", "LlamaTokenizer"),
    ("ernie4_5_moe", "LlamaTokenizer"),
    ("exaone4", "GPT2Tokenizer"),
    ("falcon_mamba", "GPTNeoXTokenizer"),
    ("flex_olmo", "GPT2Tokenizer"),
    ("gemma", "GemmaTokenizer"),
    ("gemma2", "GemmaTokenizer"),
    ("gemma3", "GemmaTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gemma3n", "GemmaTokenizer"),
    ("gemma3n_text", "GemmaTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_bigcode", "GPT2Tokenizer"),
    ("gpt_neo", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("gptj", "GPT2Tokenizer"),
    ("granite", "GPT2Tokenizer"),
    ("granitemoe", "GPT2Tokenizer"),
    ("granitemoehybrid", "GPT2Tokenizer"),
    ("granitemoeshared", "GPT2Tokenizer"),
    ("idefics3", "LlamaTokenizer"),
    ("internvl", "Qwen2Tokenizer"),
    ("jamba", "LlamaTokenizer"),
    ("jetmoe", "LlamaTokenizer"),
    ("llama", "LlamaTokenizer"),
    ("llama4", "LlamaTokenizer"),
    ("llama4_text", "LlamaTokenizer"),
    ("llava", "LlamaTokenizer"),
    ("llava_next", "LlamaTokenizer"),
    ("llava_onevision", "LlamaTokenizer"),
    ("mamba", "GPTNeoXTokenizer"),
    ("mamba2", "GPTNeoXTokenizer"),
    ("minimax", "GPT2Tokenizer"),
    ("ministral", "LlamaTokenizer"),
    ("mistral", "LlamaTokenizer"),
    ("mistral3", "LlamaTokenizer"),
    ("mixtral", "LlamaTokenizer"),
    ("mllama", "LlamaTokenizer"),
    ("mpt", "GPTNeoXTokenizer"),
    ("olmo", "GPTNeoXTokenizer"),
    ("olmo2", "GPTNeoXTokenizer"),
    ("olmo3", "GPT2Tokenizer"),
    ("olmoe", "GPTNeoXTokenizer"),
    ("opt", "GPT2Tokenizer"),
    ("paligemma", "LlamaTokenizer"),
    ("persimmon", "LlamaTokenizer"),
    ("phi", "CodeGenTokenizer"),
    ("phi3", "LlamaTokenizer"),
    ("phimoe", "LlamaTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen2_5_omni", "Qwen2Tokenizer"),
    ("qwen2_5_vl", "Qwen2Tokenizer"),
    ("qwen2_audio", "Qwen2Tokenizer"),
    ("qwen2_moe", "Qwen2Tokenizer"),
    ("qwen2_vl", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("qwen3_moe", "Qwen2Tokenizer"),
    ("qwen3_next", "Qwen2Tokenizer"),
    ("qwen3_omni_moe", "Qwen2Tokenizer"),
    ("qwen3_vl", "Qwen2Tokenizer"),
    ("qwen3_vl_moe", "Qwen2Tokenizer"),
    ("recurrent_gemma", "GemmaTokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("rwkv", "GPTNeoXTokenizer"),
    ("stablelm", "GPTNeoXTokenizer"),
    ("starcoder2", "GPT2Tokenizer"),
    ("xlm-roberta", "XLMRobertaTokenizer"),
    ("zamba", "LlamaTokenizer"),
    ("zamba2", "LlamaTokenizer"),
];

impl Class {
    /// The class of a checkpoint's tokenizer: from `tokenizer_config.json`, `config.json`, or the
    /// model type, in this order. Unknown classes have no changes.
    pub(crate) fn of(files: &Files) -> &'static Class {
        let config = |name| {
            files
                .config
                .as_ref()
                .and_then(|c| c.get(name))
                .and_then(Value::as_str)
        };
        let named = files
            .config_field("tokenizer_class")
            .and_then(Value::as_str)
            .or_else(|| config("tokenizer_class"));
        let of_model = |model: &str| {
            CLASS_OF_MODEL
                .iter()
                .find(|(m, _)| *m == model)
                .map_or(PLAIN.name, |(_, class)| class)
        };
        let name = named.unwrap_or_else(|| config("model_type").map_or(PLAIN.name, of_model));
        let name = name.strip_suffix("Fast").unwrap_or(name);
        CLASSES
            .iter()
            .find(|class| class.name == name)
            .unwrap_or(&PLAIN)
    }

    /// The default special token of a role.
    pub(crate) fn default(&self, role: &str) -> Option<&'static str> {
        self.defaults
            .iter()
            .find(|(r, _)| *r == role)
            .map(|(_, text)| *text)
    }

    /// The roles with a default.
    pub(crate) fn default_roles(&self) -> impl Iterator<Item = &'static str> {
        // Qwen's class declares an empty BOS token.
        self.defaults
            .iter()
            .map(|(role, _)| *role)
            .chain(self.makes_added.then_some("bos_token"))
    }

    /// True if the class declares the padding token, even as none.
    pub(crate) fn names_pad(&self) -> bool {
        self.default("pad_token").is_some() || self.name == "GPTNeoXTokenizer"
    }

    pub(crate) fn more_special(&self) -> &'static [&'static str] {
        self.more_special
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn slow(&self) -> Option<Slow> {
        self.slow
    }

    pub(crate) fn adds_bos(&self) -> Option<bool> {
        self.adds_bos
    }

    pub(crate) fn makes_added(&self) -> bool {
        self.makes_added
    }

    /// True if texts get a space prefix; `None` if `tokenizer.json` decides.
    pub(crate) fn prefix_space(&self, settings: &Map<String, Value>) -> Option<bool> {
        let set = settings.get("add_prefix_space").and_then(Value::as_bool);
        if self.sets_prefix_space {
            Some(set.unwrap_or(false))
        } else {
            set
        }
    }
}

impl Class {
    /// BERT's normalizer with the settings that the class overrides.
    pub(crate) fn with_normalizer(
        &self,
        mut normalizer: Value,
        settings: &Map<String, Value>,
    ) -> Value {
        let is_berts = normalizer
            .get("type")
            .is_some_and(|name| name == "BertNormalizer");
        if self.sets_normalizer && is_berts {
            let set =
                |name: &str, by_default: Value| settings.get(name).cloned().unwrap_or(by_default);
            normalizer["lowercase"] = set("do_lower_case", Value::Bool(true));
            normalizer["strip_accents"] = set("strip_accents", Value::Null);
            normalizer["handle_chinese_chars"] = set("tokenize_chinese_chars", Value::Bool(true));
        }
        normalizer
    }
}

/// Sets `add_prefix_space` of a pre-tokenizer. As in transformers, parts of a sequence are not
/// changed.
pub(super) fn with_prefix_space(mut pre_tokenizer: Value, prefix_space: Option<bool>) -> Value {
    if let (Some(set), Some(old)) = (prefix_space, pre_tokenizer.get_mut("add_prefix_space")) {
        *old = Value::Bool(set);
    }
    pre_tokenizer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spm::object;

    fn class(tokenizer_config: &str, config: &str) -> &'static str {
        let files = Files {
            dir: Default::default(),
            tokenizer: None,
            tokenizer_config: Some(object(tokenizer_config)),
            config: Some(object(config)),
        };
        Class::of(&files).name
    }

    #[test]
    fn class_comes_from_the_files_or_the_model_type() {
        assert_eq!(
            class(
                r#"{"tokenizer_class": "LlamaTokenizerFast"}"#,
                r#"{"model_type": "qwen2"}"#
            ),
            "LlamaTokenizer"
        );
        assert_eq!(
            class(
                "{}",
                r#"{"model_type": "qwen2", "tokenizer_class": "GPT2Tokenizer"}"#
            ),
            "GPT2Tokenizer"
        );
        assert_eq!(
            class("{}", r#"{"model_type": "starcoder2"}"#),
            "GPT2Tokenizer"
        );
        assert_eq!(
            class(r#"{"tokenizer_class": "TokenizersBackend"}"#, "{}"),
            "PreTrainedTokenizer"
        );
        assert_eq!(
            class("{}", r#"{"model_type": "smollm3"}"#),
            "PreTrainedTokenizer"
        );
    }
}
