//! A checkpoint's config.json as the reference sees it: with the defaults that transformers fills
//! in.

use super::{deepseek, defaults, nemotron_h, wrapper};
use quantier_gguf::json::kind;
use serde_json::{Map, Value};

/// What is wrong with a field; names the field.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// The fields of config.json and the defaults of its class.
#[derive(Clone, Debug)]
pub struct Config {
    fields: Map<String, Value>,
    /// Scaling of rotary embeddings: `rope_parameters` or `rope_scaling`, with what stands beside
    /// them mixed in.
    rope: Map<String, Value>,
    /// The first of `architectures`.
    class: Option<String>,
    /// `model_type` of the whole checkpoint; that of its text model is among the fields.
    model_type: Option<String>,
    /// Whether the embeddings serve as output matrix, by the fields of the text model and those
    /// around it; true if any of them says so.
    is_tied: Option<bool>,
    pooling: Result<Option<Pooling>>,
    is_reranker: bool,
    /// Whether a matrix stands behind the pooling, in a file of its own.
    has_projection: bool,
    /// Blocks for further tokens behind the last layer.
    nextn: u32,
}

/// How a sentence-transformers model makes one vector of all activations, as a GGUF numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean = 1,
    /// The first.
    Cls = 2,
    /// The last.
    Last = 3,
}

/// Fields that hold the number of layers.
const LAYERS: &[&str] = &[
    "n_layers",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_transformer_layers",
];

/// Whether the embeddings serve as output matrix.
pub(crate) const TIED: &str = "tie_word_embeddings";

impl Config {
    /// Completes the fields of a config.json.
    ///
    /// # Errors
    /// A field of the wrong kind.
    pub fn new(mut fields: Map<String, Value>) -> Result<Config> {
        defaults::complete(&mut fields)?;
        wrapper::rename_text_config(&mut fields);
        let class = wrapper::class(&fields);
        let model_type = fields.get("model_type").and_then(Value::as_str);
        let model_type = model_type.map(str::to_owned);
        let outer = fields.get(TIED).and_then(Value::as_bool);
        wrapper::flatten(&mut fields);
        nemotron_h::complete(class.as_deref(), &mut fields);
        deepseek::complete(class.as_deref(), &mut fields);
        let inner = fields.get(TIED).and_then(Value::as_bool);
        let mut config = Config {
            fields,
            rope: Map::new(),
            class,
            model_type,
            is_tied: outer.max(inner),
            pooling: Ok(None),
            is_reranker: false,
            has_projection: false,
            nextn: 0,
        };
        config.rope = config.rope_parameters()?;
        Ok(config)
    }

    /// The name of the model's class, which decides the architecture.
    pub fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }

    /// `model_type` of the checkpoint and of its text model.
    pub fn model_types(&self) -> [Option<&str>; 2] {
        let text = self.get("model_type").and_then(Value::as_str);
        [self.model_type.as_deref(), text]
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The first of several names for one thing that is there at all; nothing if that one is null.
    pub(crate) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &Value)> {
        let (name, value) = names
            .iter()
            .find_map(|name| Some((*name, self.fields.get(*name)?)))?;
        (!value.is_null()).then_some((name, value))
    }

    /// How many layers there are.
    ///
    /// # Errors
    /// A missing field, or a value that is no whole number.
    pub fn layers(&self) -> Result<u32> {
        self.u32(LAYERS)
    }

    /// How many blocks for further tokens stand behind the layers.
    pub fn nextn(&self) -> u32 {
        self.nextn
    }

    /// The same config with so many blocks for further tokens.
    pub fn with_nextn(self, nextn: u32) -> Config {
        Config { nextn, ..self }
    }

    /// The layers and the blocks for further tokens, which a GGUF counts together.
    ///
    /// # Errors
    /// As [`Config::layers`], and if they do not fit into 32 bits.
    pub fn blocks(&self) -> Result<u32> {
        let blocks = self.layers()?.checked_add(self.nextn);
        blocks.ok_or_else(|| "there are more than 2^32 layers".into())
    }

    /// A whole number under the first of these names; it must be there.
    ///
    /// # Errors
    /// A missing field, or a value that is no whole number.
    pub fn u32(&self, names: &[&str]) -> Result<u32> {
        self.optional_u32(names)?.ok_or_else(|| missing(names))
    }

    /// A whole number under the first of these names.
    ///
    /// # Errors
    /// A value that is no whole number.
    pub fn optional_u32(&self, names: &[&str]) -> Result<Option<u32>> {
        self.first(names)
            .map(|(name, value)| as_u32(name, value))
            .transpose()
    }

    /// A number under the first of these names; it must be there.
    ///
    /// # Errors
    /// A missing field, or a value that is no number.
    pub(crate) fn f64(&self, names: &[&str]) -> Result<f64> {
        self.optional_f64(names)?.ok_or_else(|| missing(names))
    }

    /// A number under the first of these names.
    ///
    /// # Errors
    /// A value that is no number.
    pub(crate) fn optional_f64(&self, names: &[&str]) -> Result<Option<f64>> {
        self.first(names)
            .map(|(name, value)| as_f64(name, value))
            .transpose()
    }

    /// An object under this name.
    ///
    /// # Errors
    /// A value that is no object.
    pub(crate) fn optional_object(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        self.get(name)
            .map(|value| {
                value
                    .as_object()
                    .ok_or_else(|| wrong_kind(name, value, "an object"))
            })
            .transpose()
    }

    /// A whole number in an object of this name.
    ///
    /// # Errors
    /// A value that is no object, a number that is no whole one.
    pub(crate) fn number_of(&self, object: &str, name: &str) -> Result<Option<u32>> {
        let object = self.optional_object(object)?;
        let value = object.and_then(|object| object.get(name));
        let value = value.filter(|value| !value.is_null());
        value.map(|value| as_u32(name, value)).transpose()
    }

    /// Length of a head's queries and keys: `head_dim`, or the heads' share of the hidden size.
    ///
    /// # Errors
    /// A missing field, a value that is no whole number, no attention heads.
    pub(crate) fn head_len(&self) -> Result<u32> {
        if let Some(len) = self.optional_u32(&["head_dim"])? {
            return Ok(len);
        }
        self.share_of_head()
    }

    /// A head's share of the hidden size.
    ///
    /// # Errors
    /// A missing field, a value that is no whole number, no attention heads.
    pub(crate) fn share_of_head(&self) -> Result<u32> {
        match self.u32(&["num_attention_heads"])? {
            0 => Err("field 'num_attention_heads' is 0".into()),
            heads => Ok(self.u32(&["hidden_size"])? / heads),
        }
    }

    /// Parameters of the rotary embedding, those of full attention where several kinds have their
    /// own.
    pub(crate) fn rope(&self) -> &Map<String, Value> {
        self.rope
            .get("full_attention")
            .and_then(Value::as_object)
            .unwrap_or(&self.rope)
    }

    /// The parts of a head that are rotated by time, height and width, where there are several, and
    /// a fourth.
    ///
    /// # Errors
    /// A value that is no list of whole numbers.
    pub(crate) fn rope_sections(&self) -> Result<Option<[u32; 4]>> {
        self.sections_in(&["mrope_section"])
    }

    /// The same under the first of these names.
    ///
    /// # Errors
    /// As [`Config::rope_sections`].
    pub(crate) fn sections_in(&self, names: &[&str]) -> Result<Option<[u32; 4]>> {
        let named = names
            .iter()
            .find_map(|name| Some((*name, self.rope.get(*name)?)));
        let Some((name, value)) = named else {
            return Ok(None);
        };
        let wrong = || wrong_kind(name, value, "a list of whole numbers");
        let mut sections = [0; 4];
        for (section, value) in sections.iter_mut().zip(value.as_array().ok_or_else(wrong)?) {
            *section = as_u32(name, value)?;
        }
        Ok(Some(sections))
    }

    /// Whether the embeddings serve as output matrix; `None` if the config does not say.
    pub fn is_tied(&self) -> Option<bool> {
        self.is_tied
    }

    /// How a sentence-transformers model makes one vector of all activations.
    ///
    /// # Errors
    /// What is wrong with the files that say it.
    pub(crate) fn pooling(&self) -> Result<Option<Pooling>> {
        self.pooling.clone()
    }

    /// The same config for a model with this pooling. What is wrong with it matters only to
    /// architectures whose metadata hold it.
    pub fn with_pooling(self, pooling: std::result::Result<Option<Pooling>, String>) -> Config {
        Config { pooling, ..self }
    }

    /// Whether the model ranks texts by the logits of two tokens.
    pub(crate) fn is_reranker(&self) -> bool {
        self.is_reranker
    }

    /// The same config for a model that ranks texts by the logits of two tokens.
    pub fn as_reranker(self, is_reranker: bool) -> Config {
        Config {
            is_reranker,
            ..self
        }
    }

    /// Whether a matrix stands behind the pooling, in a file of its own.
    pub(crate) fn has_projection(&self) -> bool {
        self.has_projection
    }

    /// The same config for a model with a matrix behind the pooling, in a file of its own.
    pub fn with_projection(self, has_projection: bool) -> Config {
        Config {
            has_projection,
            ..self
        }
    }

    /// Base frequency of layers with a sliding window, where it is given.
    ///
    /// # Errors
    /// A value that is no number.
    pub(crate) fn sliding_rope_theta(&self) -> Result<Option<f64>> {
        let theta = self
            .rope
            .get("sliding_attention")
            .and_then(|sliding| sliding.get("rope_theta"));
        theta
            .filter(|value| !value.is_null())
            .map(|value| as_f64("rope_theta", value))
            .transpose()
    }

    /// A list of numbers among the rope parameters; `None` if it is missing or null.
    ///
    /// # Errors
    /// A value that is no list of numbers.
    pub(crate) fn rope_numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.rope.get(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let list = value.as_array().map(|list| list.iter());
        let numbers = list.and_then(|list| list.map(|x| Some(x.as_f64()? as f32)).collect());
        let wrong = || wrong_kind(name, value, "a list of numbers");
        numbers.map(Some).ok_or_else(wrong)
    }

    /// Which layers see only the last tokens, by `layer_types`.
    pub(crate) fn sliding_layers(&self) -> Option<Vec<bool>> {
        let kinds = self.get("layer_types")?.as_array()?.iter();
        Some(kinds.map(|kind| kind == "sliding_attention").collect())
    }

    /// The part of a head that layers of one kind rotate, as `rope_parameters` says for each kind.
    ///
    /// # Errors
    /// If it is missing.
    pub(crate) fn rope_part_of(&self, kind: &str) -> Result<f64> {
        const PART: &str = "partial_rotary_factor";
        let parameters = self.rope.get(kind).and_then(Value::as_object);
        let part = parameters.map(|parameters| number_in(parameters, PART));
        let part = part.transpose()?.flatten();
        part.ok_or_else(|| format!("'{PART}' of '{kind}' is missing in 'rope_parameters'"))
    }

    /// The same, or this where the kind does not say it; None if there is no such kind.
    ///
    /// # Errors
    /// If it is no number.
    pub(crate) fn rope_part_or(&self, kind: &str, by_default: f64) -> Result<Option<f64>> {
        let parameters = self.rope.get(kind).and_then(Value::as_object);
        let part = parameters.map(|parameters| number_in(parameters, "partial_rotary_factor"));
        let part = part.transpose()?;
        Ok(part.map(|part| part.unwrap_or(by_default)))
    }

    /// `rope_parameters` (or `rope_scaling`) with the parameters that older files keep at the root.
    fn rope_parameters(&self) -> Result<Map<String, Value>> {
        const THETA: &[&str] = &[
            "global_rope_theta",
            "rope_global_theta",
            "rope_theta_global",
            "rope_theta",
            "rotary_emb_base",
        ];
        const LOCAL_THETA: &[&str] = &[
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
            "rope_local_base_freq",
        ];
        const PARTIAL: &[&str] = &["partial_rotary_factor", "rope_pct", "rope_percent"];
        const ORIGINAL_CONTEXT: &[&str] = &["original_max_position_embeddings"];

        let name = if self.fields.contains_key("rope_parameters") {
            "rope_parameters"
        } else {
            "rope_scaling"
        };
        let mut rope = self.optional_object(name)?.cloned().unwrap_or_default();
        if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
            return Ok(rope);
        }
        let at_root = |names| self.first(names).map(|(_, value)| value.clone());
        // Of layers that see everything, then of layers with windows.
        let theta = at_root(THETA);
        let (theta, windowed) = match theta.as_ref().and_then(Value::as_array).map(Vec::as_slice) {
            Some([all, windowed, ..]) => (Some(all.clone()), Some(windowed.clone())),
            _ => (theta, at_root(LOCAL_THETA)),
        };
        if let Some(theta) = windowed {
            rope.insert(
                "sliding_attention".into(),
                serde_json::json!({ "rope_theta": theta }),
            );
        }
        let old_type = rope.get("type").filter(|t| !t.is_null()).cloned();
        let additions = [
            ("rope_theta", theta),
            ("rope_type", old_type),
            ("partial_rotary_factor", at_root(PARTIAL)),
            (
                "original_max_position_embeddings",
                at_root(ORIGINAL_CONTEXT),
            ),
        ];
        for (name, value) in additions {
            if let (Some(value), false) = (value, rope.contains_key(name)) {
                rope.insert(name.into(), value);
            }
        }
        Ok(rope)
    }
}

/// A number in an object; `None` if it is not there or null.
pub(super) fn number_in(object: &Map<String, Value>, name: &str) -> Result<Option<f64>> {
    object
        .get(name)
        .filter(|value| !value.is_null())
        .map(|value| as_f64(name, value))
        .transpose()
}

fn as_u32(name: &str, value: &Value) -> Result<u32> {
    let number = value
        .as_u64()
        .ok_or_else(|| wrong_kind(name, value, "a whole number that is not negative"))?;
    number
        .try_into()
        .map_err(|_| format!("field '{name}' is {number}, which does not fit into 32 bits"))
}

fn as_f64(name: &str, value: &Value) -> Result<f64> {
    // Python writes numbers that JSON does not know.
    let not_finite = match value.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        _ => None,
    };
    let number = not_finite
        .or(value.as_f64())
        .ok_or_else(|| wrong_kind(name, value, "a number"))?;
    // The reference packs numbers into 32 bits and fails on those that become infinite.
    match (number as f32).is_finite() || not_finite.is_some() {
        true => Ok(number),
        false => Err(format!(
            "field '{name}' is {number}, which does not fit into an f32"
        )),
    }
}

pub(super) fn wrong_kind(name: &str, value: &Value, wanted: &str) -> String {
    format!(
        "field '{name}' is {} ({value}); {wanted} is expected",
        kind(value)
    )
}

fn missing(names: &[&str]) -> String {
    match names {
        [name] => format!("field '{name}' is missing"),
        names => format!("none of the fields '{}' is there", names.join("', '")),
    }
}
