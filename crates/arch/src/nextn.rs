//! Blocks behind the last layer that predict tokens beyond the next one (NextN, multi-token
//! prediction, MTP): how checkpoints name them.
//!
//! A GGUF counts them as layers and says in `nextn_predict_layers` how many of its last layers they
//! are. Checkpoints number them from 0 and keep them apart from the layers.

use super::Architecture;
use super::config::{Config, Result};

/// What is converted of a model with such blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nextn {
    /// Everything that the files hold, whatever config.json promises.
    #[default]
    IfThere,
    /// Everything, as the reference has it: what config.json promises must be there.
    Kept,
    /// The blocks, and what they share with the layers: a draft model (`--mtp`).
    Alone,
    /// Everything but the blocks (`--no-nextn`).
    LeftOut,
}

/// The names of a family's blocks.
#[derive(Debug)]
pub struct Names {
    /// The names of its architectures in a GGUF.
    architectures: &'static [&'static str],
    /// A class of one of them that has none.
    without: Option<&'static str>,
    /// The field of config.json with their number.
    pub field: &'static str,
    /// What the names begin with.
    prefix: &'static str,
    /// What the names of one block's tensors begin with, in front of its number.
    layers: &'static str,
    /// Numbers that belong to one block.
    parts: u32,
    /// What the names of layers begin with, in front of their number.
    within: &'static str,
    /// Tensors of the first block that have no number, or other names within a layer: their names,
    /// and their names within a layer.
    first: &'static [(&'static str, &'static str)],
    /// Whether every model has such blocks.
    always: bool,
    /// Tensors that the blocks share with the layers.
    shared: &'static [&'static str],
}

static FAMILIES: &[Names] = &[QWEN, NEMOTRON_H];

const QWEN: Names = Names {
    architectures: &["qwen35", "qwen35moe", "qwen3next"],
    without: None,
    field: "mtp_num_hidden_layers",
    prefix: "mtp.",
    layers: "mtp.layers.",
    parts: 1,
    within: "model.layers.",
    always: true,
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

/// Attention and experts are two layers of one block.
const NEMOTRON_H: Names = Names {
    architectures: &["nemotron_h_moe"],
    without: Some("NemotronHPuzzleForCausalLM"),
    field: "num_nextn_predict_layers",
    prefix: "mtp.",
    layers: "mtp.layers.",
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
};

impl Architecture {
    /// How its checkpoints name blocks for further tokens; None if it has none.
    pub fn nextn(&self) -> Option<&'static Names> {
        let has = |names: &&Names| {
            let is_without = |class: &str| self.classes.contains(&class);
            names.architectures.contains(&self.name) && !names.without.is_some_and(is_without)
        };
        FAMILIES.iter().find(has)
    }

    /// The number of such blocks in a conversion of `nextn`, of a checkpoint with tensors of these
    /// names.
    ///
    /// # Errors
    /// If neither config.json nor a tensor tells how many there are, as the reference wants; if the
    /// architecture has none, and `nextn` asks for them or for their absence.
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
        // Some classes have them, and leave them out.
        let own = tensors.filter(|name| names.has(name) && self.recipe(name, config).is_none());
        let own: Vec<_> = own.collect();
        if nextn == Nextn::LeftOut || nextn == Nextn::IfThere && own.is_empty() {
            return Ok(0);
        }
        let promised = config.optional_u32(&[names.field])?.unwrap_or(0);
        if promised > 0 {
            return Ok(promised);
        }
        let blocks = own.iter().map(|name| names.block(name)?.checked_add(1));
        let blocks = blocks.flatten().max();
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
    /// The same name without the model's, which some checkpoints put in front of the blocks'.
    fn own<'n>(&self, name: &'n str) -> Option<&'n str> {
        let name = match name.strip_prefix("model.") {
            Some(rest) if rest.starts_with(self.prefix) => rest,
            _ => name,
        };
        Some(name).filter(|name| name.starts_with(self.prefix))
    }

    /// The number of the block that a tensor belongs to, if its name has one.
    fn block(&self, name: &str) -> Option<u32> {
        let (number, _) = self.own(name)?.strip_prefix(self.layers)?.split_once('.')?;
        let number: u32 = number.parse().ok()?;
        Some(number / self.parts)
    }

    /// Whether a tensor belongs to one of the blocks.
    fn has(&self, name: &str) -> bool {
        self.own(name).is_some()
    }

    /// Whether a conversion has a tensor of this name.
    pub fn keeps(&self, name: &str, nextn: Nextn) -> bool {
        match nextn {
            Nextn::IfThere | Nextn::Kept => true,
            Nextn::Alone => self.has(name) || self.shared.contains(&name),
            Nextn::LeftOut => !self.has(name),
        }
    }

    /// The name that a tensor of a block has as one of the layer that the block becomes, behind so
    /// many layers.
    pub fn within_layers(&self, name: &str, layers: u32) -> Option<String> {
        let name = self.own(name)?;
        let within = self.within;
        let named = |(from, to): &(&str, &str)| {
            let ending = name.strip_prefix(from)?;
            Some(format!("{within}{layers}.{to}{ending}"))
        };
        if let Some(name) = self.first.iter().find_map(named) {
            return Some(name);
        }
        let block = self.block(name)?;
        let rest = name.strip_prefix(self.layers)?.split_once('.')?.1;
        Some(format!("{within}{}.{rest}", layers.checked_add(block)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn qwen() -> &'static Architecture {
        Architecture::of_class("Qwen3_5ForCausalLM").unwrap()
    }

    #[test]
    fn blocks_become_layers_behind_the_others() {
        let names = qwen().nextn().unwrap();
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
            assert_eq!(names.within_layers(name, 4).as_deref(), layer, "{name}");
        }
    }

    #[test]
    fn two_layers_are_one_block_of_nemotron() {
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
            assert_eq!(
                NEMOTRON_H.within_layers(name, 9).as_deref(),
                layer,
                "{name}"
            );
        }
        // Its models may have none.
        let moe = json!({ "architectures": ["NemotronHForCausalLM"], "num_experts_per_tok": 2 });
        let config = Config::new(moe.as_object().unwrap().clone()).unwrap();
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
    fn parts_of_a_model_are_chosen() {
        let names = qwen().nextn().unwrap();
        let kept = |nextn| {
            let all = [
                "mtp.fc.weight",
                "lm_head.weight",
                "model.layers.0.mlp.up_proj.weight",
            ];
            all.map(|name| names.keeps(name, nextn))
        };
        assert_eq!(kept(Nextn::Kept), [true; 3]);
        assert_eq!(kept(Nextn::Alone), [true, true, false]);
        assert_eq!(kept(Nextn::LeftOut), [false, true, true]);
    }

    #[test]
    fn the_number_of_blocks_is_the_configs_or_the_tensors() {
        let blocks = |config: serde_json::Value, nextn, tensors: &[&str]| {
            let config = Config::new(config.as_object().unwrap().clone()).unwrap();
            qwen().nextn_blocks(nextn, &config, tensors.iter().copied())
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
        let config = Config::new(serde_json::Map::new()).unwrap();
        let refused = llama.nextn_blocks(Nextn::Alone, &config, [].into_iter());
        assert!(refused.unwrap_err().contains("llama has none"));
    }
}
