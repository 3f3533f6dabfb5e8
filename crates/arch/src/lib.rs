//! Model families as data: one table, and one small file per family.
//!
//! An [`Architecture`] has its classes in transformers, its name in a GGUF, the metadata from
//! config.json, and the [`recipes`] of its tensors. All of it is data, with functions only where
//! data does not suffice.
//!
//! An opened model ([`Input`]) has a [`Catalog`]: ids of its tensors, linears, inputs and layers.
//! [`role`] has the reference's rules on tensor names; no other module reads names.

#![warn(unreachable_pub)]

mod afmoe;
mod apertus;
mod arctic;
mod baichuan;
mod bailing;
mod bailing_moe;
mod bert;
mod bitnet;
mod bloom;
pub mod catalog;
mod cohere;
mod config;
mod dbrx;
mod deci;
mod decoder;
mod deepseek;
mod deepseek4;
mod defaults;
mod delta;
mod dots1;
mod dots3;
pub mod draft;
mod ernie;
mod exaone;
mod experts;
mod falcon_h1;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm;
mod glm5_next;
mod glm_moe;
mod gpt2;
mod gpt_oss;
mod granite;
mod grok;
mod grovemoe;
mod hunyuan;
mod hy3;
mod hy4;
pub mod hyper;
mod input;
mod internlm;
mod jais;
mod kimi;
mod kimi_k3;
mod laguna;
mod lfm2;
mod llada;
mod llama;
mod llama4;
mod mamba;
mod mamba2;
mod maple;
mod mellum;
mod mimo;
mod minicpm;
mod minimax;
mod mistral;
mod mpt;
mod muse;
mod needed;
mod nemotron;
mod nemotron_h;
mod neox;
mod nextn;
mod olmo;
mod olmoe;
mod openelm;
mod orion;
mod parameters;
mod phi;
mod plamo;
pub mod projector;
mod qwen;
mod qwen4;
pub mod recipes;
mod refact;
mod refused;
pub mod role;
mod rwkv;
mod seed;
mod smallthinker;
mod spark;
mod sparse;
pub mod spec;
mod stablelm;
mod starcoder;
mod step;
mod t5;
pub mod wrapper;

use quantier_tokenizer::VocabKind;

pub use catalog::{Catalog, Entry, Grouping, InputId, LayerId, Linear, LinearId, TensorId};
pub use config::{Config, Pooling};
pub use decoder::{
    Activation, Alibi, Cap, Decoder, DeltaHeads, Dense, Gating, IndexerKind, Layout, Limit, Listed,
    Mamba2Layers, Needs, Norm, Ranking, Recurrence, Rope, Router, Scales, ScoreDivisor, ScoreYarn,
    Sections, Setting, SharedKv, SparseGates, Streams, Tempering, UnitHeads, Unrotated, Window,
    Wkv, Xielu, YarnKeys,
};
pub use input::Input;
pub use mimo::fused_rows;
pub use needed::Missing;
pub use nextn::Nextn;
pub use parameters::{Keys, Parameter};
pub use recipes::Recipe;
pub use role::{Facts, Role};

/// The data for converting models of one architecture.
pub struct Architecture {
    /// Names of its classes in transformers, as in `architectures` of config.json.
    pub classes: &'static [&'static str],
    /// Name in a GGUF.
    pub name: &'static str,
    /// Source of the vocabulary.
    pub vocabulary: VocabKind,
    /// Metadata, in file order.
    pub parameters: &'static [&'static [Parameter]],
    /// Tensors; the first recipe that matches a name applies.
    pub tensors: &'static [&'static [Recipe]],
    /// Tensors computed from the config, and their keys.
    pub generated: fn(&Config, &mut Keys) -> config::Result<Vec<Generated>>,
    /// The forward pass.
    pub decoder: Decoder,
}

/// A tensor without a source in the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Name in the GGUF.
    pub name: &'static str,
    /// Dimensions, outermost first.
    pub dims: Vec<u64>,
    /// Weights.
    pub weights: Vec<f32>,
}

impl Generated {
    /// A tensor of one dimension.
    fn vector(name: &'static str, weights: Vec<f32>) -> Generated {
        let dims = vec![weights.len() as u64];
        Generated {
            name,
            dims,
            weights,
        }
    }
}

/// All architectures that can be converted.
pub static ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &llama::INTERNLM3,
    &llama::SMOLLM3,
    &llama::MISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN2_MOE,
    &qwen::QWEN2_VL,
    &qwen::QWEN3,
    &qwen::QWEN3_MOE,
    &qwen::QWEN3_VL,
    &qwen::QWEN3_VL_MOE,
    &delta::QWEN3_NEXT,
    &delta::QWEN3_5,
    &delta::QWEN3_5_MOE,
    &delta::MINICPM_V4_6,
    &lfm2::LFM2,
    &lfm2::LFM2_EMBEDDING,
    &lfm2::LFM2_MOE,
    &mamba::MAMBA,
    &mamba::JAMBA,
    &deepseek::DEEPSEEK,
    &deepseek::DEEPSEEK2,
    &deepseek::DEEPSEEK2_OCR,
    &deepseek::MISTRAL4,
    &sparse::DEEPSEEK32,
    &sparse::GLM_DSA,
    &glm_moe::GLM4_MOE_LITE,
    &glm_moe::GLM4_MOE,
    &glm_moe::SOLAR_OPEN,
    &minimax::MINIMAX_M2,
    &minimax::MINIMAX_M3,
    &rwkv::RWKV6,
    &rwkv::RWKV6_QWEN2,
    &rwkv::RWKV7,
    &rwkv::ARWKV7,
    &kimi::KIMI_LINEAR,
    &bailing::BAILING_MOE3,
    &bailing::BAILING_MOE3_VL,
    &gemma::GEMMA1,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma3n::GEMMA3N,
    &gemma4::GEMMA4,
    &gemma4::GEMMA4_UNIFIED,
    &phi::PHI3,
    &olmo::OLMO,
    &olmo::OLMO2,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &granite::GRANITE_HYBRID,
    &starcoder::STARCODER2,
    &gpt2::GPT2,
    &gpt_oss::GPT_OSS,
    &seed::SEED_OSS,
    &llama::ARCEE,
    &cohere::COMMAND_R,
    &cohere::COHERE2,
    &phi::PHI2,
    &stablelm::STABLELM,
    &starcoder::STARCODER,
    &starcoder::CODESHELL,
    &nemotron::NEMOTRON,
    &nemotron_h::NEMOTRON_H,
    &nemotron_h::NEMOTRON_H_PUZZLE,
    &mamba2::MAMBA2,
    &falcon_h1::FALCON_H1,
    &orion::ORION,
    &ernie::ERNIE4_5,
    &ernie::PADDLEOCR,
    &neox::GPTNEOX,
    &bloom::BLOOM,
    &bloom::FALCON,
    &mpt::MPT,
    &refact::REFACT,
    &jais::JAIS,
    &jais::JAIS2,
    &apertus::APERTUS,
    &exaone::EXAONE,
    &exaone::EXAONE4,
    &exaone::EXAONE4_5,
    &spark::SPARK2_5,
    &muse::MUSE_GLIMMER,
    &glm::GLM4,
    &glm::GLM_OCR,
    &glm::CHATGLM,
    &hunyuan::HUNYUAN_DENSE,
    &hunyuan::HUNYUAN_VL,
    &openelm::OPENELM,
    &minicpm::MINICPM,
    &minimax::MINIMAX_01,
    &baichuan::BAICHUAN,
    &baichuan::XVERSE,
    &bitnet::BITNET,
    &internlm::INTERNLM2,
    &plamo::PLAMO,
    &plamo::PLAMO2,
    &plamo::PLAMO3,
    &llama::NANBEIGE,
    &llada::LLADA,
    &llada::DREAM,
    &deci::DECI,
    &mistral::LLAMA,
    &mistral::MISTRAL3,
    &llama4::LLAMA4,
    &hy3::HUNYUAN_MOE,
    &hy3::HY_V3,
    &bailing_moe::BAILING_MOE,
    &bailing_moe::BAILING_MOE2,
    &bailing_moe::SARVAM_MOE,
    &ernie::ERNIE4_5_MOE,
    &olmoe::OLMOE,
    &phi::PHI_MOE,
    &dots1::DOTS1,
    &laguna::LAGUNA,
    &exaone::EXAONE_MOE,
    &afmoe::AFMOE,
    &mellum::MELLUM,
    &maple::MAPLE,
    &mimo::MIMO2,
    &step::STEP35,
    &smallthinker::SMALLTHINKER,
    &grovemoe::GROVE_MOE,
    &minicpm::MINICPM3,
    &llada::LLADA_MOE,
    &llada::RND1,
    &dbrx::DBRX,
    &cohere::COHERE2_MOE,
    &granite::GRANITE_SWA,
    &grok::GROK,
    &arctic::ARCTIC,
    &deepseek4::DEEPSEEK4,
    &glm5_next::GLM5_NEXT,
    &qwen4::QWEN4_EXP,
    &kimi_k3::KIMI_K3,
    &dots3::DOTS3_NOTE,
    &hy4::HY_V4,
    &bert::BERT,
    &bert::DISTILBERT,
    &bert::ROBERTA,
    &bert::XLM_ROBERTA,
    &bert::NOMIC_BERT,
    &bert::NOMIC_BERT_MOE,
    &bert::JINA_BERT,
    &bert::MODERN_BERT,
    &bert::NEO_BERT,
    &bert::EURO_BERT,
    &gemma::GEMMA_EMBEDDING,
    &llama::LLAMA_EMBED,
    &t5::T5,
    &t5::T5_ENCODER,
    &draft::EAGLE3,
    &draft::DFLASH,
    &draft::DSPARK,
    &draft::GEMMA4_DSPARK,
];

/// Choice of an architecture by other fields than the class.
type Choice = fn(&Config) -> config::Result<&'static Architecture>;

/// Classes with several architectures.
const CHOICES: &[(&str, Choice)] = &[
    ("GraniteMoeHybridForCausalLM", granite::of_hybrid),
    ("BambaForCausalLM", granite::of_hybrid),
    ("NemotronHForCausalLM", nemotron_h::of_class),
    ("Mistral3ForConditionalGeneration", deepseek::of_mistral),
    ("NomicBertModel", bert::of_nomic),
];

impl Architecture {
    /// The architecture of a checkpoint, by its class and, where a class has several architectures,
    /// by other fields of the config.
    ///
    /// # Errors
    /// A missing or unsupported class; the message has known details about it. Missing fields, or
    /// fields of the wrong kind, that the choice depends on.
    pub fn of(config: &Config) -> Result<&'static Architecture, String> {
        let class = config.class();
        let class = class.ok_or("field 'architectures' is missing or empty")?;
        if [&llama::LLAMA, &draft::EAGLE3]
            .iter()
            .any(|architecture| architecture.classes.contains(&class))
        {
            return draft::of_llama(config);
        }
        if let Some((_, choice)) = CHOICES.iter().find(|(name, _)| *name == class) {
            return choice(config);
        }
        Architecture::of_class(class).map_err(|unsupported| {
            let types = config.model_types().into_iter().flatten();
            let mut reasons = types.filter_map(|model_type| refused::reason(model_type, class));
            reasons.next().unwrap_or(unsupported)
        })
    }

    /// The architecture of a class in config.json.
    ///
    /// # Errors
    /// An unsupported class; the message suggests a supported one with a similar name.
    fn of_class(class: &str) -> Result<&'static Architecture, String> {
        let mut classes = ARCHITECTURES
            .iter()
            .flat_map(|a| a.classes.iter().map(move |c| (*a, *c)));
        if let Some((architecture, _)) = classes.clone().find(|(_, known)| *known == class) {
            return Ok(architecture);
        }
        let near = match classes.find(|(_, known)| is_misspelt(class, known)) {
            Some((_, known)) => format!("; is it {known}?"),
            None => "; docs/architectures.md lists those that are".to_owned(),
        };
        Err(format!("architecture '{class}' is not supported{near}"))
    }

    /// The architecture of a GGUF by its `general.architecture`.
    ///
    /// # Errors
    /// An unsupported architecture; the message lists the supported ones.
    pub(crate) fn of_gguf(name: &str) -> Result<&'static Architecture, String> {
        ARCHITECTURES.iter().copied().find(|a| a.name == name).ok_or_else(|| {
            let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
            format!(
                "models of architecture '{name}' cannot be run here yet (convert and quantize work); known are {}",
                known.join(", ")
            )
        })
    }

    /// True if this `general.architecture` is supported.
    pub fn is_known(name: &str) -> bool {
        ARCHITECTURES.iter().any(|a| a.name == name)
    }

    /// The recipe of a checkpoint tensor, and the match of its name. Models without a head
    /// (`LlamaModel`, `BloomModel`) omit the first part of names.
    pub fn recipe(&self, name: &str, config: &Config) -> Option<(&'static Recipe, recipes::Match)> {
        let find = |name: &str| {
            self.recipes()
                .find_map(|recipe| Some((recipe, recipe.matches(name, config)?)))
        };
        let bare = |part: &&str| find(&format!("{part}.{name}"));
        find(name).or_else(|| ["model", "transformer"].iter().find_map(bare))
    }

    /// The place of a tensor in the order of the recipes: by table, layer, and place in the table, the bias
    /// behind the weight.
    pub fn rank(&self, name: &str, config: &Config) -> Option<(usize, Option<u32>, usize, bool)> {
        let mut tables = self.tensors.iter().enumerate();
        tables.find_map(|(table, recipes)| {
            let mut recipes = recipes.iter().enumerate();
            recipes.find_map(|(at, recipe)| {
                let matched = recipe.matches(name, config)?;
                Some((table, matched.layer, at, name.ends_with(".bias")))
            })
        })
    }

    fn recipes(&self) -> impl Iterator<Item = &'static Recipe> {
        self.tensors.iter().flat_map(|recipes| recipes.iter())
    }
}

/// True if a class is another one with a wrong letter or different case. Different numbers are
/// different models.
fn is_misspelt(class: &str, known: &str) -> bool {
    let numbers = |name: &str| {
        name.chars()
            .filter(char::is_ascii_digit)
            .collect::<String>()
    };
    /// In a shorter name, a different letter means a different family: OPT, MPT.
    const SHORTEST: usize = 5;
    let own = class.split("For").next().unwrap_or_default();
    let [a, b] = [class, known].map(str::to_ascii_lowercase);
    own.len() >= SHORTEST
        && numbers(class) == numbers(known)
        && quantier_core::words::distance(&a, &b) <= 1
}

/// For architectures without generated tensors.
fn nothing_generated(_: &Config, _: &mut Keys) -> config::Result<Vec<Generated>> {
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn classes_are_unique_and_found() {
        let mut seen = HashSet::new();
        for class in ARCHITECTURES.iter().flat_map(|a| a.classes) {
            assert!(seen.insert(class), "{class} is listed twice");
            assert!(
                Architecture::of_class(class)
                    .unwrap()
                    .classes
                    .contains(class)
            );
        }
    }

    #[test]
    fn only_similar_classes_are_suggested() {
        let error = |class: &str| Architecture::of_class(class).err().unwrap();
        assert!(error("LLamaForCausalLM").ends_with("is it LlamaForCausalLM?"));
        assert!(error("Qwen2MoEForCausalLM").ends_with("is it Qwen2MoeForCausalLM?"));
        for class in [
            "Llama5ForCausalLM",
            "GlmMoeForCausalLM",
            "OPTForCausalLM",
            "",
        ] {
            assert!(error(class).contains("docs/architectures.md"), "{class}");
        }
    }

    #[test]
    fn popular_unsupported_models_are_recognized_by_type() {
        let error = |fields: serde_json::Value| {
            let config = Config::new(fields.as_object().unwrap().clone()).unwrap();
            Architecture::of(&config).err().unwrap()
        };
        use serde_json::json;
        let opt = error(json!({ "architectures": ["OPTForCausalLM"], "model_type": "opt" }));
        assert!(opt.starts_with("OPT (model type 'opt'"), "{opt}");
        // The inner text model has another type.
        let inkling = error(
            json!({ "architectures": ["InklingForConditionalGeneration"],
            "model_type": "inkling_mm_model", "text_config": { "model_type": "inkling_text" } }),
        );
        assert!(inkling.starts_with("Inkling"), "{inkling}");
        assert!(error(json!({})).contains("'architectures' is missing"));
    }

    #[test]
    fn recipe_names_match_stacks_and_joins() {
        for recipe in ARCHITECTURES.iter().flat_map(|a| a.recipes()) {
            let numbers = |name: &str| name.matches("{}").count();
            for output in recipe.outputs() {
                let stacks = output
                    .ops
                    .iter()
                    .any(|op| matches!(op, recipes::Op::Stack(_) | recipes::Op::Append(_)));
                let joins = output
                    .ops
                    .iter()
                    .any(|op| matches!(op, recipes::Op::Concat(_) | recipes::Op::Multiply));
                assert_eq!(joins, output.inputs.len() > 1, "{}", output.name);
                for &input in output.inputs {
                    let input = recipe.inputs()[input].name;
                    let own = numbers(input) - usize::from(stacks);
                    // Some tensors of one layer stand outside of the layers in a GGUF.
                    assert!([own, 0].contains(&numbers(output.name)), "{input}");
                }
            }
        }
    }
}
