//! Required tensors of an architecture: the weights reached by its recipes and the biases listed,
//! except the optional ones ([`crate::Needs`]).

use super::catalog::{OF_EXPERTS, weight_names};
use super::hyper::{Cache, Hyper};
use super::{Architecture, Catalog, Config, Dense, Recipe, Recurrence, SharedKv, deci, role};

/// Two alternatives for the same part of a layer. A layer with any tensor of the first has the
/// first; all other layers have the second.
struct Ways {
    first: fn(&str) -> bool,
    second: fn(&str) -> bool,
}

/// Experts, or a dense feed-forward network.
const EXPERTS: Ways = Ways {
    first: |stem| {
        ["ffn_gate_inp", "exp_probs_b"].contains(&stem)
            || stem.ends_with(OF_EXPERTS)
            || stem.ends_with(SHARED)
            || APART.contains(&stem)
    },
    second: |stem| ["ffn_gate", "ffn_up", "ffn_down"].contains(&stem),
};

/// Queries by way of a shorter vector, or at once.
const LATENT_QUERIES: Ways = Ways {
    first: |stem| ["attn_q_a", "attn_q_a_norm", "attn_q_b"].contains(&stem),
    second: |stem| stem == "attn_q",
};

const WAYS: [Ways; 3] = [
    Ways {
        first: |stem| stem == "layer_output_norm",
        second: |stem| stem == "post_ffw_norm",
    },
    Ways {
        first: |stem| stem == "attn_qkv",
        second: |stem| ["attn_q", "attn_k", "attn_v"].contains(&stem),
    },
    LATENT_QUERIES,
];

/// Experts' gates and ups in one tensor: the reference's converter joins them on demand
/// (`--fuse-gate-up-exps`).
const JOINED: &str = "ffn_gate_up_exps";
const JOINED_PARTS: [&str; 2] = ["ffn_gate_exps", "ffn_up_exps"];

/// Norms of experts apart from a dense network, and of their router.
const APART: [&str; 4] = [
    "ffn_gate_inp.scale",
    "pre_ffw_norm_2",
    "post_ffw_norm_1",
    "post_ffw_norm_2",
];
/// Weights that layers with keys and values of earlier layers lack.
const KEYS: [&str; 3] = ["attn_k", "attn_v", "attn_k_norm"];
/// The field of the number of such layers.
const SHARED_LAYERS: &str = "num_kv_shared_layers";

/// Suffix of the names of shared experts.
const SHARED: &str = "_shexp";
/// The output matrix, absent with tied embeddings.
const OUTPUT: &str = "output";
/// Tensors of multi-token prediction blocks in addition to those of a layer, and the optional ones.
const NEXTN: &str = "nextn.";
const OPTIONAL_NEXTN: [&str; 3] = [
    "nextn.embed_tokens",
    "nextn.shared_head_head",
    "nextn.shared_head_norm",
];
/// The norm in front of every mixer.
const MIXER_NORM: &str = "attn_norm";
/// Optional weights that belong together.
const TOGETHER: [[&str; 2]; 2] = [
    ["time_mix_g1", "time_mix_g2"],
    ["ffn_latent_down", "ffn_latent_up"],
];
/// The step of a recurrence, a bias without a weight in some families.
const STEP: &str = "ssm_dt";
const WEIGHT: &str = ".weight";
const BIAS: &str = ".bias";

/// A required tensor that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Name in the GGUF.
    pub name: String,
    /// Name of the checkpoint tensor that it comes from, or of the first of several.
    pub source: String,
}

/// A weight reached by an architecture's recipes.
struct Weight {
    /// Name in the GGUF without suffix, with the prefix `blk.{}.` for weights of layers.
    name: &'static str,
    /// All recipes of the weight.
    recipes: Vec<&'static Recipe>,
    /// The recipe's first input for it.
    source: &'static str,
    /// The checkpoint tensor of its bias, if the bias has separate recipes.
    bias_source: Option<&'static str>,
    /// True if its name has the input's suffix.
    carries_ending: bool,
    /// Indices of the architecture's recipe tables with the weight.
    tables: Vec<usize>,
    /// True for a bias without a weight.
    is_bias: bool,
}

impl Weight {
    /// The name without layer and suffix.
    fn stem(&self) -> &'static str {
        self.name.strip_prefix("blk.{}.").unwrap_or(self.name)
    }

    fn is_of_layers(&self) -> bool {
        self.name.contains("{}")
    }

    /// True for weights of blocks within stages, which differ in kind.
    fn is_of_stages(&self) -> bool {
        self.name.matches("{}").count() > 1
    }

    /// True for weights of multi-token prediction blocks only.
    fn is_of_nextn(&self) -> bool {
        self.stem().starts_with(NEXTN)
    }

    /// True if the tensor exists.
    fn is_there(&self, layer: Option<u32>, has: &dyn Fn(&str) -> bool) -> bool {
        weight_names(&self.name(layer, "")).any(|name| has(&name))
    }

    fn name(&self, layer: Option<u32>, ending: &str) -> String {
        let layer = layer.map_or(String::new(), |layer| layer.to_string());
        self.name.replacen("{}", &layer, 1) + ending
    }

    /// The name of a layer's weight, or of one outside of layers.
    fn layer_name(stem: &str, layer: Option<u32>) -> String {
        match layer {
            Some(layer) => format!("blk.{layer}.{stem}"),
            None => stem.to_owned(),
        }
    }

    fn missing(&self, layer: Option<u32>, ending: &str) -> Missing {
        // Some tensors of one layer stand outside of the layers in a GGUF.
        let number = layer.map_or("*".to_owned(), |layer| layer.to_string());
        let bias = self.bias_source.filter(|_| ending == BIAS);
        let source = bias.unwrap_or(self.source);
        let source = source.replacen("{}", &number, 1).replace("{}", "*");
        let carries_ending = self.carries_ending && bias.is_none();
        Missing {
            name: self.name(layer, ending),
            source: match carries_ending && !source.ends_with(ending) {
                true => source + ending,
                false => source,
            },
        }
    }
}

impl Hyper {
    /// The names of required tensors missing in the model's file.
    pub fn missing(&self, catalog: &Catalog) -> Vec<String> {
        let Ok(architecture) = Architecture::of_gguf(&self.architecture) else {
            return Vec::new();
        };
        let layers: Vec<u32> = (0..self.layers as u32).collect();
        let has = |name: &str| catalog.tensor_named(name).is_some();
        // Some models have layers without attention or without a feed-forward network.
        let is_mixed = self.decoder.has_several_mixers();
        let is_of_missing_part = |name: &str| {
            let layer = role::block_of(name).map_or(usize::MAX, |layer| layer as usize);
            let no_attention = self.attention.get(layer).is_some_and(Option::is_none);
            let no_ffn = self.has_ffn.get(layer).is_some_and(|has_ffn| !has_ffn);
            let reads_others = self.attention.get(layer).is_some_and(|attention| {
                attention.is_some_and(|numbers| matches!(numbers.cache, Cache::Shared(_)))
            });
            let is_key = |stem: &&str| name.ends_with(&format!(".{stem}.weight"));
            let lacks_keys = reads_others && self.decoder.shared_kv == SharedKv::Listed;
            no_attention && !is_mixed && name.contains(".attn_")
                || no_ffn && name.contains(".ffn_")
                || lacks_keys && KEYS.iter().any(is_key)
        };
        let missing = architecture.missing(&layers, None, &has).into_iter();
        let names = missing.map(|tensor| tensor.name);
        names.filter(|name| !is_of_missing_part(name)).collect()
    }
}

impl Hyper {
    /// Weights that no layer reads, though llama.cpp loads them: matrices of keys and values in layers
    /// that read those of earlier ones.
    pub fn unread<'c>(&self, catalog: &'c Catalog) -> Vec<&'c str> {
        let reads_others = |layer: usize| {
            let attention = self.attention.get(layer).copied().flatten();
            attention.is_some_and(|numbers| matches!(numbers.cache, Cache::Shared(_)))
        };
        let linears = catalog.linears().iter();
        let of_readers =
            linears.filter(|linear| linear.layer.is_some_and(|id| reads_others(id.index())));
        let weights = of_readers.map(|linear| catalog.weight(linear.id));
        weights
            .filter(|weight| KEYS.contains(&weight.label()))
            .map(|weight| &*weight.name)
            .collect()
    }
}

impl Architecture {
    /// The required tensors missing outside of layers and in these layers. `config` is the
    /// checkpoint's; without it, conditional recipes are ignored, and no layer is a multi-token
    /// prediction block. `has` is true for names of existing tensors.
    pub fn missing(
        &'static self,
        layers: &[u32],
        config: Option<&Config>,
        has: &dyn Fn(&str) -> bool,
    ) -> Vec<Missing> {
        let needs = self.decoder.needs;
        let mut weights = self.weights();
        weights.retain(|weight| !weight.is_of_stages());
        let mut missing = Vec::new();
        let mut look = |weight: &Weight, layer: Option<u32>| {
            let applies = |recipe: &&Recipe| recipe.applies(layer, config);
            if !weight.recipes.iter().any(applies) {
                return;
            }
            let of_nextn = OPTIONAL_NEXTN.iter();
            let of_nextn = of_nextn.filter(|stem| !needs.nextn.contains(stem));
            let optional = needs.optional.iter().chain(of_nextn);
            let is_part = |stem: &str| {
                let name = Weight::layer_name(stem, layer);
                weight_names(&name).any(|name| has(&name))
            };
            let is_half = |both: &[&str; 2]| {
                both.contains(&weight.stem()) && both.iter().any(|stem| is_part(stem))
            };
            let is_optional = optional.copied().any(|stem| stem == weight.stem())
                && !TOGETHER.iter().any(is_half);
            if !is_optional && !weight.is_bias && !weight.is_there(layer, has) {
                missing.push(weight.missing(layer, WEIGHT));
            }
            let needs_bias =
                needs.biases.contains(&weight.stem()) || weight.is_bias && weight.stem() == STEP;
            if needs_bias && !has(&weight.name(layer, BIAS)) {
                missing.push(weight.missing(layer, BIAS));
            }
        };
        for weight in weights.iter().filter(|weight| !weight.is_of_layers()) {
            if weight.stem() != OUTPUT || needs.own_output {
                look(weight, None);
            }
        }
        // Some models have empty layers, as given in the config.
        let layers = match (self.decoder.linear_layers, config) {
            (true, None) => &layers[..0],
            _ => layers,
        };
        let searched = config.filter(|_| self.decoder.linear_layers);
        let searched = searched.and_then(|config| deci::blocks(config).ok().flatten());
        let first_nextn = config.and_then(|config| config.layers().ok());
        let first_nextn = first_nextn.unwrap_or(u32::MAX);
        let of_layers: Vec<&Weight> = weights.iter().filter(|w| w.is_of_layers()).collect();
        let shared = config.filter(|_| self.decoder.shared_kv == SharedKv::Listed);
        let shared = shared.and_then(|config| config.optional_u32(&[SHARED_LAYERS]).ok()?);
        let first_shared = first_nextn.saturating_sub(shared.unwrap_or(0));
        let recurrence = self.decoder.recurrence;
        let is_everywhere = recurrence.is_some_and(Recurrence::is_everywhere);
        for &layer in layers {
            let is_nextn = layer >= first_nextn;
            let block = searched.as_ref().and_then(|all| all.get(layer as usize));
            let is_joined = has(&format!("blk.{layer}.{JOINED}{WEIGHT}"));
            let lacks = |weight: &Weight| {
                let stem = weight.stem();
                block.is_some_and(|block| !block.has(stem))
                    || is_joined && JOINED_PARTS.contains(&stem)
            };
            let there = |weight: &&&Weight| weight.is_there(Some(layer), has);
            let present: Vec<&Weight> = of_layers.iter().filter(there).copied().collect();
            let any = |weights: &[&Weight], way: fn(&str) -> bool| {
                weights.iter().any(|weight| way(weight.stem()))
            };
            let is_second_missing = |ways: &Ways, weight: &Weight| {
                (ways.second)(weight.stem()) && !any(&present, ways.second)
            };
            let is_other = |ways: &Ways, weight: &Weight| {
                let has_both = any(&of_layers, ways.first) && any(&of_layers, ways.second);
                let other = match any(&present, ways.first) {
                    true => ways.second,
                    false => ways.first,
                };
                has_both && other(weight.stem())
            };
            let is_other_way = |weight: &Weight| {
                let is_other_network = match self.decoder.dense {
                    Dense::Instead => is_other(&EXPERTS, weight),
                    Dense::Beside => is_second_missing(&EXPERTS, weight),
                    Dense::Apart => (EXPERTS.first)(weight.stem()) && !any(&present, EXPERTS.first),
                    Dense::Behind => false,
                };
                is_other_network || WAYS.iter().any(|ways| is_other(ways, weight))
            };
            // With several kinds of mixers, a layer has a mixer if it has a tensor of that mixer's
            // table only.
            let is_other_mixer = |weight: &Weight| {
                let has = |table: &usize| present.iter().any(|other| other.tables == [*table]);
                // Selection biases have a table of their own.
                let has_experts = weight.is_bias
                    && (EXPERTS.first)(weight.stem())
                    && any(&present, EXPERTS.first);
                !weight.tables.iter().any(has) && !has_experts || is_other(&LATENT_QUERIES, weight)
            };
            for &weight in &of_layers {
                let is_other = match self.decoder.has_several_mixers() {
                    _ if weight.is_of_nextn() || needs.nextn.contains(&weight.stem()) => !is_nextn,
                    true if weight.stem() == MIXER_NORM => false,
                    true if !is_everywhere => is_other_mixer(weight),
                    _ => is_other_way(weight),
                };
                let is_beyond = config.is_some_and(|config| {
                    let blocks = config.blocks_of(weight.name);
                    blocks.is_ok_and(|blocks| layer >= blocks)
                });
                let is_shared =
                    (first_shared..first_nextn).contains(&layer) && KEYS.contains(&weight.stem());
                if !is_other && !lacks(weight) && !is_shared && !is_beyond {
                    look(weight, Some(layer));
                }
            }
        }
        missing
    }

    /// True if a model may have an untied output matrix.
    pub fn has_output(&self) -> bool {
        let outputs = |recipe: &'static Recipe| recipe.outputs().iter();
        let name = |name: &str| name.strip_suffix(WEIGHT).unwrap_or(name) == OUTPUT;
        self.recipes()
            .flat_map(outputs)
            .any(|output| name(output.name))
    }

    /// All weights reached by the recipes, and all biases without a weight. A recipe is ignored if
    /// an earlier unconditional one has one of its names.
    fn weights(&'static self) -> Vec<Weight> {
        let mut weights: Vec<Weight> = Vec::new();
        let mut taken: Vec<&str> = Vec::new();
        let tables = self.tensors.iter().enumerate();
        let recipes = tables.flat_map(|(table, recipes)| recipes.iter().map(move |r| (table, r)));
        for (table, recipe) in recipes {
            let mut names = recipe.inputs().iter().map(|input| input.name);
            if names.clone().any(|name| taken.contains(&name)) {
                continue;
            }
            if recipe.is_unconditional() {
                taken.extend(&mut names);
            }
            for output in recipe.outputs() {
                let bias = output.name.strip_suffix(BIAS);
                let weight = output.name.strip_suffix(WEIGHT).unwrap_or(output.name);
                let name = bias.unwrap_or(weight);
                let input = output.inputs.first();
                let Some(source) = input.map(|input| recipe.inputs()[*input].name) else {
                    continue;
                };
                let found = Weight {
                    name,
                    recipes: vec![recipe],
                    source,
                    bias_source: bias.map(|_| source),
                    carries_ending: name == output.name,
                    tables: vec![table],
                    is_bias: bias.is_some(),
                };
                match weights.iter_mut().find(|weight| weight.name == name) {
                    None => weights.push(found),
                    Some(weight) if found.is_bias => weight.bias_source = found.bias_source,
                    Some(weight) if weight.is_bias => {
                        *weight = Weight {
                            bias_source: weight.bias_source,
                            ..found
                        }
                    }
                    Some(weight) => {
                        weight.recipes.push(recipe);
                        weight
                            .tables
                            .extend((!weight.tables.contains(&table)).then_some(table));
                    }
                }
            }
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The missing tensors of a model after removal of those with this prefix.
    fn without(
        architecture: &'static Architecture,
        tensors: &[&str],
        left_out: &str,
    ) -> Vec<String> {
        let has = |name: &str| tensors.contains(&name) && !name.starts_with(left_out);
        let missing = architecture.missing(&[0], None, &has);
        missing.into_iter().map(|m| m.name).collect()
    }

    const LLAMA: [&str; 11] = [
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_norm.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",
        "blk.0.attn_output.weight",
        "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
    ];

    #[test]
    fn all_tensors_of_a_llama_are_required() {
        let llama = Architecture::of_gguf("llama").unwrap();
        assert!(without(llama, &LLAMA, "-").is_empty());
        for name in LLAMA {
            assert_eq!(without(llama, &LLAMA, name), [name]);
        }
        let has = |name: &str| {
            let name = name.replace("blk.7.", "blk.0.");
            LLAMA.contains(&&*name) && name != "blk.0.ffn_down.weight"
        };
        let missing = llama.missing(&[7], None, &has);
        assert_eq!(missing[0].source, "model.layers.7.mlp.down_proj.weight");
    }

    #[test]
    fn layers_have_experts_or_a_dense_ffn() {
        let llama = Architecture::of_gguf("llama").unwrap();
        let experts = [
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.0.ffn_down_exps.weight",
        ];
        let tensors: Vec<_> = LLAMA[..8].iter().chain(&experts).copied().collect();
        assert!(without(llama, &tensors, "-").is_empty());
        assert_eq!(without(llama, &tensors, experts[2]), [experts[2]]);
        let qwen = Architecture::of_gguf("qwen3moe").unwrap();
        let missing = without(qwen, &LLAMA, "-");
        assert!(missing.contains(&experts[0].to_owned()), "{missing:?}");
        assert!(!missing.iter().any(|name| name.contains("ffn_down.")));
    }

    #[test]
    fn dense_networks_beside_experts_are_whole_or_missing() {
        const EXPERTS: [&str; 4] = [
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.0.ffn_down_exps.weight",
        ];
        const DENSE: [&str; 3] = [
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_down.weight",
        ];
        let both = [&EXPERTS[..], &DENSE].concat();
        let networks = |name: &str, tensors: &[&str], left_out: &str| {
            let architecture = Architecture::of_gguf(name).unwrap();
            let mut missing = without(architecture, tensors, left_out);
            missing.retain(|name| name.contains("ffn_") && !name.contains("norm"));
            missing
        };
        for (name, tensors, optional) in [
            ("grok", &both[..], false),
            ("grok", &EXPERTS, true),
            ("arctic", &both, false),
        ] {
            assert!(networks(name, tensors, "-").is_empty(), "{name}");
            for tensor in tensors {
                assert_eq!(networks(name, tensors, tensor), [*tensor], "{name}");
            }
            assert_eq!(networks(name, &DENSE, "-").len(), 4, "{name}");
            let bare = networks(name, &EXPERTS, "-");
            assert_eq!(bare.is_empty(), optional || name == "grok", "{name}");
        }
    }

    #[test]
    fn mixers_have_a_norm_and_mamba_2_a_biased_convolution() {
        let mamba = Architecture::of_gguf("mamba2").unwrap();
        let missing = without(mamba, &["blk.0.ssm_in.weight"], "-");
        for name in ["blk.0.attn_norm.weight", "blk.0.ssm_conv1d.bias"] {
            assert!(missing.contains(&name.to_owned()), "{name}: {missing:?}");
        }
    }

    #[test]
    fn factors_of_a_gate_belong_together() {
        let arwkv = Architecture::of_gguf("arwkv7").unwrap();
        let factors = ["blk.0.time_mix_g1.weight", "blk.0.time_mix_g2.weight"];
        let missing = |tensors: &[&str]| {
            let mut missing = without(arwkv, tensors, "-");
            missing.retain(|name| factors.contains(&&**name));
            missing
        };
        assert!(missing(&[]).is_empty() && missing(&factors).is_empty());
        assert_eq!(missing(&factors[..1]), [factors[1]]);
        assert_eq!(missing(&factors[1..]), [factors[0]]);
    }

    #[test]
    fn selection_bias_is_required_with_experts() {
        let lfm2 = Architecture::of_gguf("lfm2moe").unwrap();
        let tensors = [
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.0.ffn_down_exps.weight",
            "blk.1.ffn_gate.weight",
            "blk.1.ffn_up.weight",
            "blk.1.ffn_down.weight",
        ];
        let missing = |layer: u32| {
            let missing = lfm2.missing(&[layer], None, &|name| tensors.contains(&name));
            let names = missing.into_iter().map(|missing| missing.name);
            names
                .filter(|name| !name.contains("norm"))
                .collect::<Vec<_>>()
        };
        assert!(missing(0).contains(&"blk.0.exp_probs_b.bias".to_owned()));
        assert!(!missing(1).iter().any(|name| name.starts_with("blk.")));
        // Neither attention nor a convolution: loading reports layers without both.
        assert!(!missing(0).iter().any(|name| name.contains("attn_q")));
    }

    #[test]
    fn norms_are_optional_in_families_without_them() {
        let missing = |name: &str| {
            let architecture = Architecture::of_gguf(name).unwrap();
            let missing = architecture.missing(&[0], None, &|_| false);
            missing.into_iter().map(|m| m.name).collect::<Vec<_>>()
        };
        let norms = |name: &str| missing(name).iter().filter(|n| n.contains("norm")).count();
        assert_eq!((norms("olmo"), norms("llama"), norms("gemma2")), (0, 3, 5));
        // Of two recipes for one name, the first decides the output.
        let seed = missing("seed_oss");
        assert!(seed.contains(&"blk.0.post_attention_norm.weight".to_owned()));
        assert!(!seed.contains(&"blk.0.ffn_norm.weight".to_owned()));
        // Parallel attention and feed-forward networks share one norm, sequential ones have two.
        assert!(!missing("stablelm").contains(&"blk.0.ffn_norm.weight".to_owned()));
        assert!(missing("stablelm").contains(&"blk.0.attn_norm.bias".to_owned()));
        assert!(missing("gpt2").contains(&"blk.0.attn_qkv.bias".to_owned()));
        assert!(
            !missing("command-r")
                .iter()
                .any(|name| name.ends_with(".bias"))
        );
    }

    #[test]
    fn output_matrix_is_required_without_tied_embeddings() {
        for (name, needed) in [
            ("llama", false),
            ("phi2", true),
            ("gemma2", false),
            ("apertus", true),
            ("gptneox", true),
            ("bloom", false),
            ("jais2", false),
        ] {
            let architecture = Architecture::of_gguf(name).unwrap();
            let missing = architecture.missing(&[], None, &|_| false);
            let output = missing.iter().any(|m| m.name == "output.weight");
            assert_eq!(output, needed, "{name}");
        }
    }

    #[test]
    fn biases_required_by_the_loader() {
        let biases = |name: &str| {
            let architecture = Architecture::of_gguf(name).unwrap();
            let missing = architecture.missing(&[0], None, &|_| false);
            let names = missing.into_iter().map(|m| m.name);
            names
                .filter(|name| name.ends_with(BIAS))
                .collect::<Vec<_>>()
        };
        assert!(biases("mpt").is_empty() && biases("plamo").is_empty());
        assert_eq!(
            biases("falcon"),
            ["output_norm.bias", "blk.0.attn_norm.bias"]
        );
        assert!(biases("bloom").contains(&"token_embd_norm.bias".to_owned()));
        // A bias of fused queries, keys and values is required, except in codeshell.
        let of_qkv = |name| biases(name).contains(&"blk.0.attn_qkv.bias".to_owned());
        assert_eq!(
            ["gptneox", "jais", "starcoder", "codeshell"].map(of_qkv),
            [true, true, true, false]
        );
        assert!(biases("jais").contains(&"blk.0.ffn_gate.bias".to_owned()));
        assert_eq!(biases("jais2").len(), 6);
    }

    #[test]
    fn prediction_blocks_require_more_than_a_layer() {
        let glm = Architecture::of_class("GlmOcrForConditionalGeneration").unwrap();
        let config = serde_json::json!({ "num_hidden_layers": 1, "num_nextn_predict_layers": 1 });
        let config = Config::new(config.as_object().unwrap().clone()).unwrap();
        let config = config.with_nextn(1);
        let names = |layer| {
            let missing = glm.missing(&[layer], Some(&config), &|_| false);
            let names = missing.into_iter().map(|m| m.name);
            names
                .filter(|name| name.contains("nextn"))
                .collect::<Vec<_>>()
        };
        assert!(names(0).is_empty());
        assert_eq!(
            names(1),
            ["eh_proj", "enorm", "hnorm"].map(|name| format!("blk.1.nextn.{name}.weight"))
        );
    }

    #[test]
    fn searched_layers_require_tensors_by_config() {
        let deci = Architecture::of_gguf("deci").unwrap();
        let fields = serde_json::json!({
            "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 256, "block_configs": [
                { "attention": { "n_heads_in_group": 2 }, "ffn": { "ffn_mult": 1.0 } },
                { "attention": { "replace_with_linear": true }, "ffn": { "ffn_mult": 1.0 } },
                { "attention": { "no_op": true }, "ffn": { "no_op": true } },
            ]
        });
        let config = Config::new(fields.as_object().unwrap().clone()).unwrap();
        let count = |layer, config| {
            let missing = deci.missing(&[layer], config, &|_| false);
            missing
                .iter()
                .filter(|m| m.name.starts_with("blk."))
                .count()
        };
        assert_eq!(
            [0, 1, 2].map(|layer| count(layer, Some(&config))),
            [9, 6, 0]
        );
        assert_eq!(count(0, None), 0);
    }

    #[test]
    fn sources_are_checkpoint_names() {
        let qwen = Architecture::of_gguf("qwen3moe").unwrap();
        let missing = qwen.missing(&[2], None, &|name| !name.contains("ffn_"));
        let sources: Vec<_> = missing.iter().map(|m| &*m.source).collect();
        assert!(
            sources.contains(&"model.layers.2.mlp.gate.weight"),
            "{sources:?}"
        );
        assert!(
            sources.contains(&"model.layers.2.mlp.experts.gate_up_proj"),
            "{sources:?}"
        );
    }
}
