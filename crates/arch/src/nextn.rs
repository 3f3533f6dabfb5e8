//! Blocks after the last layer that predict tokens beyond the next one (NextN, multi-token
//! prediction, MTP), and their names in checkpoints.
//!
//! A GGUF counts these blocks as layers; `nextn_predict_layers` is their number, at the end of the
//! layers. Some families' checkpoints do the same; others number the blocks separately from 0.

use super::config::{Config, Result};
use super::recipes::Size::{Any, Hidden, Number, Product};
use super::{Architecture, Parameter, Recipe};
use quantier_gguf::gguf::Value;

/// Treatment of multi-token prediction blocks in a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nextn {
    /// Everything in the files, whatever config.json promises.
    #[default]
    IfThere,
    /// Everything, as in the reference: blocks promised by config.json are required.
    Kept,
    /// The blocks and the tensors shared with the layers: a draft model (`--mtp`).
    Alone,
    /// Everything except the blocks (`--no-nextn`).
    LeftOut,
}

/// Block names of a family.
#[derive(Debug)]
pub struct Names {
    /// GGUF names of the family's architectures.
    architectures: &'static [&'static str],
    /// Classes with such blocks; if empty, all classes except `without`.
    classes: &'static [&'static str],
    /// A class without such blocks.
    without: Option<&'static str>,
    /// The field of config.json with the number of blocks.
    pub field: &'static str,
    /// The number of blocks if config.json has no field.
    number: Option<u32>,
    /// The field that makes all blocks share one block's tensors.
    repeats: Option<&'static str>,
    /// Prefix of names.
    prefix: &'static str,
    /// Prefix of numbered names, before the block number.
    layers: &'static str,
    /// Numbers per block.
    parts: u32,
    /// True if block numbers continue those of the layers.
    goes_on: bool,
    /// Prefix of layer names, before the layer number.
    within: &'static str,
    /// Tensors of the first block without a number, or with different names within a layer: names
    /// in the block, and names in the layer.
    first: &'static [(&'static str, &'static str)],
    /// True if every block has a copy of the `first` tensors.
    copied: bool,
    /// True if only draft models have the blocks.
    only_alone: bool,
    /// True if every model has such blocks.
    always: bool,
    /// True if config.json alone decides the number of blocks.
    by_field: bool,
    /// True if the reference names draft models differently.
    pub names_drafts: bool,
    /// Tensors of a draft model shared with the layers; empty for families without draft models.
    shared: &'static [&'static str],
}

static FAMILIES: &[Names] = &[
    QWEN,
    NEMOTRON_H,
    EXAONE,
    GLM_OCR,
    LING,
    GLM_MOE,
    GLM_MOE_LITE,
    SOLAR_OPEN,
    SPARSE,
    K_EXAONE,
    LING_2,
    HY,
    MIMO,
    STEP,
    NORTH,
    DEEPSEEK4,
    GLM5_NEXT,
    DOTS3_NOTE,
];

/// llama.cpp's limit on layers of all kinds.
const MOST_BLOCKS: u32 = 512;

const QWEN: Names = Names {
    architectures: &["qwen35", "qwen35moe", "qwen3next"],
    classes: &[],
    without: None,
    field: "mtp_num_hidden_layers",
    number: None,
    repeats: None,
    prefix: "mtp.",
    layers: "mtp.layers.",
    parts: 1,
    goes_on: false,
    within: "model.layers.",
    copied: false,
    only_alone: false,
    always: true,
    by_field: false,
    names_drafts: true,
    first: &[
        ("mtp.fc.", "eh_proj."),
        ("mtp.pre_fc_norm_embedding.", "enorm."),
        ("mtp.pre_fc_norm_hidden.", "hnorm."),
        ("mtp.norm.", "shared_head.norm."),
    ],
    shared: &[
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "embed_tokens.weight",
        "norm.weight",
    ],
};

/// Attention and experts are two numbered layers of one block.
const NEMOTRON_H: Names = Names {
    architectures: &["nemotron_h_moe"],
    without: Some("NemotronHPuzzleForCausalLM"),
    field: "num_nextn_predict_layers",
    parts: 2,
    within: "backbone.layers.",
    always: false,
    first: &[
        ("mtp.layers.1.norm.", "post_attention_norm."),
        ("mtp.layers.1.final_layernorm.", "final_layernorm."),
    ],
    shared: &[
        "backbone.embeddings.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
    ],
    ..QWEN
};

/// Unnumbered tensors are copied to every block; `mtp_share_layers` copies the numbered ones too.
const EXAONE: Names = Names {
    architectures: &["exaone4"],
    classes: &["Exaone4_5_ForConditionalGeneration"],
    field: "num_nextn_predict_layers",
    repeats: Some("mtp_share_layers"),
    copied: true,
    by_field: true,
    shared: &[],
    ..QWEN
};

const GLM_OCR: Names = Names {
    architectures: &["glm4"],
    classes: &["GlmOcrForConditionalGeneration"],
    field: "num_nextn_predict_layers",
    prefix: "model.layers.",
    layers: "model.layers.",
    goes_on: true,
    first: &[],
    by_field: true,
    shared: &[],
    ..QWEN
};

/// Blocks are numbered separately from the layers.
const MIMO: Names = Names {
    architectures: &["mimo2"],
    names_drafts: true,
    number: Some(super::mimo::BLOCKS),
    prefix: "model.mtp.",
    layers: "model.mtp.layers.",
    goes_on: false,
    ..HY
};

const STEP: Names = Names {
    architectures: &["step35"],
    names_drafts: true,
    ..HY
};

const NORTH: Names = Names {
    architectures: &["cohere2moe"],
    classes: &[],
    ..GLM_OCR
};

/// Unnumbered tensors are copied to every block.
const K_EXAONE: Names = Names {
    architectures: &["exaone-moe"],
    classes: &[],
    repeats: None,
    ..EXAONE
};

const LING_2: Names = Names {
    architectures: &["bailingmoe2"],
    classes: &[],
    ..GLM_OCR
};

const HY: Names = Names {
    architectures: &["hy_v3"],
    names_drafts: false,
    shared: &[
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
    classes: &[],
    ..GLM_OCR
};

const LING: Names = Names {
    architectures: &["bailingmoe3"],
    field: "num_nextn_predict_layers",
    prefix: "model.layers.",
    layers: "model.layers.",
    goes_on: true,
    first: &[],
    by_field: true,
    shared: &[
        "model.word_embeddings.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
    ..QWEN
};

const GLM_MOE: Names = Names {
    architectures: &["glm4moe"],
    without: Some("SolarOpenForCausalLM"),
    shared: &[
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
    ..LING
};

const SPARSE: Names = Names {
    architectures: &["glm-dsa", "deepseek32"],
    without: None,
    names_drafts: false,
    ..GLM_MOE
};

/// Without draft models.
const SOLAR_OPEN: Names = Names {
    classes: &["SolarOpenForCausalLM"],
    without: None,
    shared: &[],
    ..GLM_MOE
};

const GLM_MOE_LITE: Names = Names {
    architectures: &["deepseek2"],
    without: None,
    classes: &["Glm4MoeLiteForCausalLM"],
    ..GLM_MOE
};

/// Left out of the model, but written alone, with a head of its own.
const DEEPSEEK4: Names = Names {
    architectures: &["deepseek4"],
    field: "num_nextn_predict_layers",
    layers: "mtp.",
    within: "layers.",
    first: &[],
    only_alone: true,
    by_field: true,
    shared: &["embed.weight", "norm.weight", "head.weight"],
    ..QWEN
};

const GLM5_NEXT: Names = Names {
    architectures: &["glm5-next"],
    without: None,
    names_drafts: true,
    ..GLM_MOE
};

/// One block, recognized by its embeddings.
const DOTS3_NOTE: Names = Names {
    architectures: &["dots3note"],
    prefix: "model.",
    first: &[("model.mtp.embed_tokens.", "embed_tokens.")],
    always: false,
    by_field: false,
    ..GLM5_NEXT
};

/// The number of blocks, if any.
pub(super) const PREDICT_LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    if config.nextn() > 0 {
        keys.set("nextn_predict_layers", Value::U32(config.nextn()));
    }
    Ok(())
})];

/// Tensors of a block in addition to those of a layer.
pub(super) const NEXTN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.eh_proj",
        "blk.{}.nextn.eh_proj",
        &[Hidden, Product(&[Number(2), Hidden])],
    ),
    Recipe::rename("model.layers.{}.enorm", "blk.{}.nextn.enorm", &[Hidden]),
    Recipe::rename("model.layers.{}.hnorm", "blk.{}.nextn.hnorm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.embed_tokens",
        "blk.{}.nextn.embed_tokens",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.shared_head.head",
        "blk.{}.nextn.shared_head_head",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.shared_head.norm",
        "blk.{}.nextn.shared_head_norm",
        &[Hidden],
    ),
];

impl Architecture {
    /// Block names in checkpoints of the architecture; None if it has no such blocks.
    pub fn nextn(&self) -> Option<&'static Names> {
        let has = |names: &&Names| {
            let is_own = |class: &str| self.classes.contains(&class);
            let classes = names.classes;
            names.architectures.contains(&self.name)
                && !names.without.is_some_and(is_own)
                && (classes.is_empty() || classes.iter().any(|class| is_own(class)))
        };
        FAMILIES.iter().find(has)
    }

    /// The number of such blocks in a conversion, given the names of the checkpoint's tensors.
    ///
    /// If neither config.json nor a tensor gives the number, as the reference requires; if the
    /// architecture has no such blocks, and `nextn` asks for them or for their absence.
    pub fn nextn_blocks<'n>(
        &self,
        nextn: Nextn,
        config: &Config,
        tensors: impl Iterator<Item = &'n str>,
    ) -> Result<u32> {
        let Some(names) = self.nextn() else {
            return match nextn {
                Nextn::IfThere | Nextn::Kept => Ok(0),
                _ => Err(format!(
                    "--mtp and --no-nextn are for models with blocks for multi-token prediction; architecture {} \
                     has none",
                    self.name
                )),
            };
        };
        if nextn == Nextn::Alone && names.shared.is_empty() {
            return Err(format!(
                "--mtp writes draft models, and llama.cpp runs none of architecture {}",
                self.name
            ));
        }
        let layers = config.layers()?;
        // Some classes have these tensors and leave them out.
        let is_kept = |name: &str| {
            let recipe = self.recipe(name, config);
            recipe.is_none_or(|(recipe, _)| !recipe.outputs().is_empty())
        };
        let own = tensors.filter(|name| names.has(name, layers) && is_kept(name));
        let own: Vec<_> = own.collect();
        let is_left_out = nextn == Nextn::LeftOut || names.only_alone && nextn != Nextn::Alone;
        if is_left_out || nextn == Nextn::IfThere && own.is_empty() {
            return Ok(0);
        }
        let promised = match names.number {
            Some(number) => number,
            None => config.optional_u32(&[names.field])?.unwrap_or(0),
        };
        if promised > MOST_BLOCKS {
            let field = names.field;
            return Err(format!(
                "'{field}' is {promised}; llama.cpp runs at most {MOST_BLOCKS} layers"
            ));
        }
        if promised > 0 || names.by_field {
            return Ok(promised);
        }
        let count = |name: &&str| match names.goes_on {
            true => names.is_of_first(name).then_some(1),
            false => names.block(name)?.checked_add(1),
        };
        let blocks = own.iter().filter_map(count).max();
        if blocks.is_none() && own.is_empty() && !names.always && nextn == Nextn::Kept {
            return Ok(0);
        }
        blocks.ok_or(format!(
            "neither '{}' nor a tensor '{}*' tells of blocks for multi-token prediction, which models of this \
             kind have; `quantier convert --no-nextn` writes it without",
            names.field, names.layers
        ))
    }
}

impl Names {
    /// The name without the `model.` that some checkpoints prepend.
    fn own<'n>(&self, name: &'n str) -> Option<&'n str> {
        let name = match name.strip_prefix("model.") {
            Some(rest) if rest.starts_with(self.prefix) => rest,
            _ => name,
        };
        Some(name).filter(|name| name.starts_with(self.prefix))
    }

    /// The number of a tensor's block or layer, if any.
    fn block(&self, name: &str) -> Option<u32> {
        let (number, _) = self.own(name)?.strip_prefix(self.layers)?.split_once('.')?;
        let number: u32 = number.parse().ok()?;
        Some(number / self.parts)
    }

    /// True for a tensor of a block with another name than within a layer.
    fn is_of_first(&self, name: &str) -> bool {
        let own = self.own(name);
        own.is_some_and(|name| self.first.iter().any(|(from, _)| name.starts_with(from)))
    }

    /// True for a tensor of one of the blocks, which follow this many layers.
    pub fn has(&self, name: &str, layers: u32) -> bool {
        match self.goes_on {
            true => {
                let is_behind = self.block(name).is_some_and(|block| block >= layers);
                is_behind || self.is_of_first(name)
            }
            false => self.own(name).is_some(),
        }
    }

    /// True if a conversion of a model with this many layers includes the tensor.
    pub fn keeps(&self, name: &str, nextn: Nextn, layers: u32) -> bool {
        match nextn {
            Nextn::IfThere | Nextn::Kept => true,
            Nextn::Alone => self.has(name, layers) || self.shared.contains(&name),
            Nextn::LeftOut => !self.has(name, layers),
        }
    }

    /// The names of a block's tensor in the layers that the blocks become: several if all blocks
    /// have a copy.
    ///
    /// # Errors
    /// A config without a number of layers.
    pub fn within_layers(&self, name: &str, config: &Config) -> Result<Vec<String>> {
        let is_named = |name: &&str| !self.goes_on || self.is_of_first(name);
        let Some(name) = self.own(name).filter(is_named) else {
            return Ok(Vec::new());
        };
        let layers = config.layers()?;
        let all = layers..layers.saturating_add(config.nextn().max(1));
        let within = |layer: u32, rest: &str| format!("{}{layer}.{rest}", self.within);
        let mut first = self.first.iter();
        if let Some((from, to)) = first.find(|(from, _)| name.starts_with(from)) {
            let rest = format!("{to}{}", &name[from.len()..]);
            let copies = if self.copied { usize::MAX } else { 1 };
            let copies = all.take(copies);
            return Ok(copies.map(|layer| within(layer, &rest)).collect());
        }
        let rest = name.strip_prefix(self.layers).unwrap_or_default();
        let rest = rest.split_once('.').map_or("", |(_, rest)| rest);
        let Some(block) = self.block(name) else {
            return Ok(Vec::new());
        };
        let is_set = |field: &str| config.get(field).is_some_and(|value| *value == true);
        Ok(match self.repeats.is_some_and(is_set) {
            true => all.map(|layer| within(layer, rest)).collect(),
            false => {
                let layer = layers.checked_add(block);
                Vec::from_iter(layer.map(|layer| within(layer, rest)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn qwen() -> &'static Architecture {
        Architecture::of_class("Qwen3_5ForCausalLM").unwrap()
    }

    fn config(fields: serde_json::Value) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn blocks_become_layers_after_the_others() {
        let names = qwen().nextn().unwrap();
        let config = config(json!({ "num_hidden_layers": 4 })).with_nextn(2);
        for (name, layer) in [
            (
                "mtp.layers.1.mlp.up_proj.weight",
                Some("model.layers.5.mlp.up_proj.weight"),
            ),
            ("model.mtp.layers.0.a", Some("model.layers.4.a")),
            ("mtp.fc.weight", Some("model.layers.4.eh_proj.weight")),
            (
                "mtp.norm.weight",
                Some("model.layers.4.shared_head.norm.weight"),
            ),
            ("mtp.layers.4294967295.a", None),
            ("mtp.layers.x.a", None),
            ("mtp.other.weight", None),
            ("model.layers.0.a", None),
        ] {
            let within = names.within_layers(name, &config).unwrap();
            assert_eq!(within, Vec::from_iter(layer), "{name}");
        }
    }

    #[test]
    fn two_numbered_layers_are_one_block_of_nemotron() {
        for (name, layer) in [
            (
                "mtp.layers.0.norm.weight",
                Some("backbone.layers.9.norm.weight"),
            ),
            (
                "mtp.layers.1.mixer.gate.weight",
                Some("backbone.layers.9.mixer.gate.weight"),
            ),
            (
                "mtp.layers.1.norm.weight",
                Some("backbone.layers.9.post_attention_norm.weight"),
            ),
            (
                "mtp.layers.2.norm.weight",
                Some("backbone.layers.10.norm.weight"),
            ),
            ("backbone.layers.1.norm.weight", None),
        ] {
            let config = config(json!({ "num_hidden_layers": 9 })).with_nextn(2);
            let within = NEMOTRON_H.within_layers(name, &config).unwrap();
            assert_eq!(within, Vec::from_iter(layer), "{name}");
        }
        // Nemotron models may have no blocks.
        let moe = json!({ "architectures": ["NemotronHForCausalLM"], "num_experts_per_tok": 2,
            "num_hidden_layers": 9 });
        let config = config(moe);
        let architecture = Architecture::of(&config).unwrap();
        assert_eq!(architecture.name, "nemotron_h_moe");
        let blocks = |nextn| architecture.nextn_blocks(nextn, &config, ["a"].into_iter());
        assert_eq!(
            (blocks(Nextn::Kept), blocks(Nextn::LeftOut)),
            (Ok(0), Ok(0))
        );
        assert!(blocks(Nextn::Alone).is_err());
        let puzzle = Architecture::of_class("NemotronHPuzzleForCausalLM").unwrap();
        assert!(puzzle.nextn().is_none());
    }

    #[test]
    fn some_families_copy_shared_tensors_to_all_blocks() {
        let exaone = Architecture::of_class("Exaone4_5_ForConditionalGeneration").unwrap();
        let names = exaone.nextn().unwrap();
        let within = |fields, name| {
            let config = config(fields).with_nextn(2);
            names.within_layers(name, &config).unwrap()
        };
        let apart = json!({ "num_hidden_layers": 4 });
        let shared = json!({ "num_hidden_layers": 4, "mtp_share_layers": true });
        let copies = [
            "model.layers.4.eh_proj.weight",
            "model.layers.5.eh_proj.weight",
        ];
        assert_eq!(within(apart.clone(), "mtp.fc.weight"), copies);
        assert_eq!(within(apart, "mtp.layers.1.a"), ["model.layers.5.a"]);
        let copies = ["model.layers.4.a", "model.layers.5.a"];
        assert_eq!(within(shared, "mtp.layers.0.a"), copies);
    }

    #[test]
    fn blocks_may_be_numbered_like_layers() {
        let glm = Architecture::of_class("GlmOcrForConditionalGeneration").unwrap();
        let names = glm.nextn().unwrap();
        let block = "model.layers.4.eh_proj.weight";
        assert!(names.has(block, 4) && !names.has(block, 5));
        assert!(!names.has("model.norm.weight", 4) && !names.has("model.layers.x.a", 4));
        let blocks = |promised: u32, nextn, tensors: &[&str]| {
            let fields = json!({ "num_hidden_layers": 4, "num_nextn_predict_layers": promised });
            glm.nextn_blocks(nextn, &config(fields), tensors.iter().copied())
        };
        assert_eq!(blocks(1, Nextn::Kept, &[block]), Ok(1));
        assert_eq!(blocks(1, Nextn::IfThere, &["model.layers.3.a"]), Ok(0));
        assert_eq!(blocks(1, Nextn::LeftOut, &[block]), Ok(0));
        assert_eq!(blocks(0, Nextn::Kept, &[block]), Ok(0));
        assert!(
            blocks(1, Nextn::Alone, &[block])
                .unwrap_err()
                .contains("draft")
        );
        assert!(
            blocks(513, Nextn::Kept, &[block])
                .unwrap_err()
                .contains("512")
        );
    }

    #[test]
    fn some_families_write_blocks_alone_only() {
        let deepseek = Architecture::of_class("DeepseekV4ForCausalLM").unwrap();
        let names = deepseek.nextn().unwrap();
        let config = config(json!({ "num_hidden_layers": 3, "num_nextn_predict_layers": 1 }));
        let blocks = |nextn| {
            let tensors = ["mtp.0.norm.weight", "layers.0.attn_norm.weight"];
            deepseek.nextn_blocks(nextn, &config, tensors.into_iter())
        };
        assert_eq!(blocks(Nextn::Alone), Ok(1));
        for nextn in [Nextn::Kept, Nextn::IfThere, Nextn::LeftOut] {
            assert_eq!(blocks(nextn), Ok(0));
        }
        let within = names.within_layers("mtp.0.hc_head_fn", &config).unwrap();
        assert_eq!(within, ["layers.3.hc_head_fn"]);
        let (recipe, matched) = deepseek.recipe(&within[0], &config).unwrap();
        assert_eq!(recipe.outputs()[0].name(&matched), "output_hc_fn.weight");
    }

    #[test]
    fn a_block_may_be_recognized_by_its_embeddings() {
        const EMBEDDINGS: &str = "model.mtp.embed_tokens.weight";
        let dots = Architecture::of_class("Dots3NoteForCausalLM").unwrap();
        let names = dots.nextn().unwrap();
        let config = config(json!({ "num_hidden_layers": 4 })).with_nextn(1);
        let blocks =
            |nextn, tensors: &[&str]| dots.nextn_blocks(nextn, &config, tensors.iter().copied());
        let block = "model.layers.4.eh_proj.weight";
        assert_eq!(blocks(Nextn::Kept, &[block, EMBEDDINGS]), Ok(1));
        assert_eq!(blocks(Nextn::LeftOut, &[block, EMBEDDINGS]), Ok(0));
        assert_eq!(blocks(Nextn::Kept, &["model.layers.3.a"]), Ok(0));
        assert!(blocks(Nextn::Kept, &[block]).is_err());
        assert!(names.has(EMBEDDINGS, 4) && names.has(block, 4));
        assert!(!names.has("model.embed_tokens.weight", 4));
        let within = names.within_layers(EMBEDDINGS, &config).unwrap();
        assert_eq!(within, ["model.layers.4.embed_tokens.weight"]);
        assert!(names.within_layers(block, &config).unwrap().is_empty());
    }

    #[test]
    fn nextn_options_select_tensors() {
        let names = qwen().nextn().unwrap();
        let kept = |nextn| {
            let all = [
                "mtp.fc.weight",
                "lm_head.weight",
                "model.layers.0.mlp.up_proj.weight",
            ];
            all.map(|name| names.keeps(name, nextn, 4))
        };
        assert_eq!(kept(Nextn::Kept), [true; 3]);
        assert_eq!(kept(Nextn::Alone), [true, true, false]);
        assert_eq!(kept(Nextn::LeftOut), [false, true, true]);
    }

    #[test]
    fn block_count_from_config_or_tensors() {
        let blocks = |mut fields: serde_json::Value, nextn, tensors: &[&str]| {
            fields["num_hidden_layers"] = 4.into();
            qwen().nextn_blocks(nextn, &config(fields), tensors.iter().copied())
        };
        let tensors = ["mtp.layers.0.a", "mtp.layers.1.a", "mtp.fc.weight"];
        let promised = json!({ "mtp_num_hidden_layers": 1 });
        assert_eq!(blocks(promised.clone(), Nextn::Kept, &tensors), Ok(1));
        assert_eq!(blocks(promised.clone(), Nextn::Kept, &[]), Ok(1));
        assert_eq!(blocks(promised.clone(), Nextn::LeftOut, &tensors), Ok(0));
        assert_eq!(blocks(promised.clone(), Nextn::IfThere, &[]), Ok(0));
        assert_eq!(blocks(promised, Nextn::IfThere, &tensors), Ok(1));
        assert_eq!(blocks(json!({}), Nextn::Alone, &tensors), Ok(2));
        let missing = blocks(json!({}), Nextn::Kept, &["mtp.fc.weight"]).unwrap_err();
        assert!(missing.contains("--no-nextn"), "{missing}");
        let llama = Architecture::of_class("LlamaForCausalLM").unwrap();
        let config = config(json!({}));
        let refused = llama.nextn_blocks(Nextn::Alone, &config, [].into_iter());
        assert!(refused.unwrap_err().contains("llama has none"));
    }
}
