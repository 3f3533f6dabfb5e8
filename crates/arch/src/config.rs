//! A checkpoint's config.json as read by the reference: with the defaults of transformers' classes.

use super::projector::{self, Parts, Projector};
use super::{
    bert, deepseek, deepseek4, defaults, draft, gemma, gemma3n, hy4, lfm2, nemotron_h, wrapper,
};
use quantier_gguf::json::kind;
use serde_json::{Map, Value};

/// The error names the field.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// The fields of config.json and the defaults of its class.
#[derive(Clone, Debug)]
pub struct Config {
    fields: Map<String, Value>,
    /// Scaling of rotary embeddings: `rope_parameters` or `rope_scaling`, merged with related
    /// fields at the root.
    rope: Map<String, Value>,
    /// The first of `architectures`.
    class: Option<String>,
    /// `model_type` of the whole checkpoint; `fields` has the text model's.
    model_type: Option<String>,
    /// True if embeddings are tied by the fields of the text model or by the outer ones.
    is_tied: Option<bool>,
    pooling: Result<Option<Pooling>>,
    is_reranker: bool,
    /// Length of embeddings after the projection that follows the pooling; None without one.
    projected: Option<u32>,
    /// Number of multi-token prediction blocks after the last layer.
    nextn: u32,
}

/// Pooling of a sentence-transformers model, numbered as in GGUF: from the activations of a text's tokens to its
/// embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// None: an embedding for each token.
    Tokens = 0,
    /// Mean of all tokens.
    Mean = 1,
    /// First token.
    Cls = 2,
    /// Last token.
    Last = 3,
}

/// Names of the field with the number of layers.
const LAYERS: &[&str] = &[
    "n_layers",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_transformer_layers",
];

/// Names of the field with the number of an encoder's layers.
pub(crate) const BLOCKS: &[&str] = &[
    "n_layers",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "depth",
    "layers",
    "encoder_layers",
    "vt_num_hidden_layers",
];

/// The field of tied embeddings.
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
        deepseek4::complete(class.as_deref(), &mut fields);
        hy4::complete(class.as_deref(), &mut fields)?;
        gemma3n::complete(class.as_deref(), &mut fields);
        bert::complete(class.as_deref(), &mut fields)?;
        draft::complete(class.as_deref(), &mut fields);
        let inner = fields.get(TIED).and_then(Value::as_bool);
        let mut config = Config {
            fields,
            rope: Map::new(),
            class,
            model_type,
            is_tied: outer.max(inner),
            pooling: Ok(None),
            is_reranker: false,
            projected: None,
            nextn: 0,
        };
        config.rope = config.rope_parameters()?;
        Ok(config)
    }

    /// The config of a projector: the fields of its encoder of images, or of audio where it has no
    /// other, with the whole config.json, the preprocessor's settings and the fields of the encoder
    /// of audio as objects. The class is that of the whole model.
    ///
    /// # Errors
    /// A field of the wrong kind, and models without an encoder.
    pub fn of_projector(
        projector: &Projector,
        mut outer: Map<String, Value>,
        preprocessor: Map<String, Value>,
    ) -> Result<Config> {
        const TEXT: &str = "text_config";
        let text = Config::new(outer.clone())?;
        let hidden = text.optional_u32(&["hidden_size", "n_embd"])?;
        // Transformers' classes keep what stands at the root as it is.
        let mut completed = outer.clone();
        defaults::complete(&mut completed)?;
        wrapper::rename_text_config(&mut completed);
        outer.extend(completed.remove_entry(TEXT));
        defaults::complete_outer(&mut outer);
        let class = projector::class(&outer);
        let Parts {
            outer,
            preprocessor,
            vision,
            audio,
        } = Parts::of(projector, outer, preprocessor)?;
        let mut fields = vision.or_else(|| audio.clone()).unwrap_or_default();
        if !LAYERS.iter().any(|name| fields.contains_key(*name)) {
            let layers = BLOCKS.iter().find_map(|name| fields.get(*name)).cloned();
            fields.extend(layers.map(|layers| ("num_hidden_layers".to_owned(), layers)));
        }
        let own_hidden = fields.entry(projector::TEXT_HIDDEN);
        own_hidden.or_insert(hidden.into());
        fields.insert(projector::OUTER.into(), Value::Object(outer));
        fields.insert(projector::PREPROCESSOR.into(), Value::Object(preprocessor));
        fields.extend(audio.map(|audio| (projector::AUDIO.to_owned(), Value::Object(audio))));
        Ok(Config {
            fields,
            rope: Map::new(),
            class,
            model_type: None,
            is_tied: None,
            pooling: Ok(None),
            is_reranker: false,
            projected: None,
            nextn: 0,
        })
    }

    /// The name of the model's class, which determines the architecture.
    pub fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }

    /// `model_type` of the checkpoint and of its text model.
    pub fn model_types(&self) -> [Option<&str>; 2] {
        let text = self.get("model_type").and_then(Value::as_str);
        [self.model_type.as_deref(), text]
    }

    /// A field, if present and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// True if there is such a field, even if it is null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The first present field of several alternative names; None if its value is null.
    pub(crate) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &Value)> {
        let (name, value) = names
            .iter()
            .find_map(|name| Some((*name, self.fields.get(*name)?)))?;
        (!value.is_null()).then_some((name, value))
    }

    /// Number of layers.
    ///
    /// # Errors
    /// A missing field, or a value that is not an integer.
    pub fn layers(&self) -> Result<u32> {
        self.u32(LAYERS)
    }

    /// Number of multi-token prediction blocks after the layers.
    pub fn nextn(&self) -> u32 {
        self.nextn
    }

    /// The config with this many multi-token prediction blocks.
    pub fn with_nextn(self, nextn: u32) -> Config {
        Config { nextn, ..self }
    }

    /// Number of layers and multi-token prediction blocks, counted together in a GGUF.
    ///
    /// # Errors
    /// As [`Config::layers`], and if the sum does not fit into 32 bits.
    pub fn blocks(&self) -> Result<u32> {
        let blocks = self.layers()?.checked_add(self.nextn);
        blocks.ok_or_else(|| "there are more than 2^32 layers".into())
    }

    /// Number of layers and blocks that a GGUF tensor of this name can belong to: those of an encoder
    /// beside the main one for its tensors, [`Config::blocks`] for all others.
    ///
    /// # Errors
    /// As [`Config::blocks`].
    pub fn blocks_of(&self, name: &str) -> Result<u32> {
        let mut others = projector::OTHER_LAYERS.iter();
        match others.find(|(prefix, _)| name.starts_with(prefix)) {
            Some((_, field)) => self.u32(&[field]),
            None if name.starts_with(projector::OF_AUDIO) => self.audio_layers(),
            None => self.blocks(),
        }
    }

    /// Number of layers of a projector's encoder of audio; 0 without one.
    ///
    /// # Errors
    /// As [`Config::layers`].
    pub fn audio_layers(&self) -> Result<u32> {
        match self.get(projector::AUDIO) {
            Some(_) => projector::audio_u32(self, BLOCKS),
            None => Ok(0),
        }
    }

    /// A required integer, under the first present name.
    ///
    /// # Errors
    /// A missing field, or a value that is not an integer.
    pub fn u32(&self, names: &[&str]) -> Result<u32> {
        self.optional_u32(names)?.ok_or_else(|| missing(names))
    }

    /// An optional integer, under the first present name.
    ///
    /// # Errors
    /// A value that is not an integer.
    pub fn optional_u32(&self, names: &[&str]) -> Result<Option<u32>> {
        self.first(names)
            .map(|(name, value)| as_u32(name, value))
            .transpose()
    }

    /// A required number, under the first present name.
    ///
    /// # Errors
    /// A missing field, or a value that is not a number.
    pub(crate) fn f64(&self, names: &[&str]) -> Result<f64> {
        self.optional_f64(names)?.ok_or_else(|| missing(names))
    }

    /// An optional number, under the first present name.
    ///
    /// # Errors
    /// A value that is not a number.
    pub(crate) fn optional_f64(&self, names: &[&str]) -> Result<Option<f64>> {
        self.first(names)
            .map(|(name, value)| as_f64(name, value))
            .transpose()
    }

    /// An optional object.
    ///
    /// # Errors
    /// A value that is not an object.
    pub(crate) fn optional_object(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        self.get(name)
            .map(|value| {
                value
                    .as_object()
                    .ok_or_else(|| wrong_kind(name, value, "an object"))
            })
            .transpose()
    }

    /// An integer in an object.
    ///
    /// # Errors
    /// A value that is not an object, or a number that is not an integer.
    pub(crate) fn number_of(&self, object: &str, name: &str) -> Result<Option<u32>> {
        let object = self.optional_object(object)?;
        let value = object.and_then(|object| object.get(name));
        let value = value.filter(|value| !value.is_null());
        value.map(|value| as_u32(name, value)).transpose()
    }

    /// Length of a head's queries and keys: `head_dim`, or the hidden size per head.
    ///
    /// # Errors
    /// A missing field, a value that is not an integer, no attention heads.
    pub(crate) fn head_len(&self) -> Result<u32> {
        if let Some(len) = self.optional_u32(&["head_dim"])? {
            return Ok(len);
        }
        self.share_of_head()
    }

    /// The hidden size per head.
    ///
    /// # Errors
    /// A missing field, a value that is not an integer, no attention heads.
    pub(crate) fn share_of_head(&self) -> Result<u32> {
        match self.u32(&["num_attention_heads"])? {
            0 => Err("field 'num_attention_heads' is 0".into()),
            heads => Ok(self.u32(&["hidden_size"])? / heads),
        }
    }

    /// Parameters of the rotary embedding; those of full attention if each kind of layer has its
    /// own.
    pub(crate) fn rope(&self) -> &Map<String, Value> {
        self.rope
            .get("full_attention")
            .and_then(Value::as_object)
            .unwrap_or(&self.rope)
    }

    /// All parameters of the rotary embedding, those of kinds of layers in objects.
    pub(crate) fn all_rope(&self) -> &Map<String, Value> {
        &self.rope
    }

    /// Parameters of the rotary embedding in one kind of layer.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn rope_of(&self, kind: &str) -> Result<&Map<String, Value>> {
        let parameters = self.rope.get(kind).and_then(Value::as_object);
        parameters.ok_or_else(|| format!("'rope_parameters' has no '{kind}'"))
    }

    /// RoPE sections of a head for time, height, width and a fourth dimension, if any.
    ///
    /// # Errors
    /// A value that is not a list of integers.
    pub(crate) fn rope_sections(&self) -> Result<Option<[u32; 4]>> {
        self.sections_in(&["mrope_section"])
    }

    /// RoPE sections under the first of these names.
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

    /// True for tied embeddings; `None` if the config does not say.
    pub fn is_tied(&self) -> Option<bool> {
        self.is_tied
    }

    /// Pooling of a sentence-transformers model.
    ///
    /// # Errors
    /// Errors in the files of the pooling.
    pub(crate) fn pooling(&self) -> Result<Option<Pooling>> {
        self.pooling.clone()
    }

    /// The config with this pooling. Its errors matter only to architectures with a pooling key.
    pub fn with_pooling(self, pooling: std::result::Result<Option<Pooling>, String>) -> Config {
        Config { pooling, ..self }
    }

    /// True for rerankers, which score by the logits of two tokens.
    pub(crate) fn is_reranker(&self) -> bool {
        self.is_reranker
    }

    /// The config as that of a reranker, which scores by the logits of two tokens.
    pub fn as_reranker(self, is_reranker: bool) -> Config {
        Config {
            is_reranker,
            ..self
        }
    }

    /// The file of a projection after the pooling, for classes that may have one.
    pub fn projection_file(&self) -> Option<&'static str> {
        let has_one = |class: &str| lfm2::LFM2_EMBEDDING.classes.contains(&class);
        self.class()
            .filter(|class| has_one(class))
            .map(|_| lfm2::PROJECTION_FILE)
    }

    /// True for classes that may have dense modules after the pooling.
    pub fn has_dense_modules(&self) -> bool {
        let classes = gemma::GEMMA_EMBEDDING.classes;
        self.class().is_some_and(|class| classes.contains(&class))
    }

    /// Length of embeddings after the projection that follows the pooling.
    pub(crate) fn projected(&self) -> Option<u32> {
        self.projected
    }

    /// The config with a projection after the pooling, to embeddings of this length.
    pub fn with_projection(self, length: u32) -> Config {
        Config {
            projected: Some(length),
            ..self
        }
    }

    /// The config with a further field.
    pub fn with_field(mut self, name: &str, value: Value) -> Config {
        self.fields.insert(name.into(), value);
        self
    }

    /// RoPE base of layers with a sliding window, if present.
    ///
    /// # Errors
    /// A value that is not a number.
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
    /// A value that is not a list of numbers.
    pub(crate) fn rope_numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.rope.get(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let list = value.as_array().map(|list| list.iter());
        let numbers = list.and_then(|list| list.map(|x| Some(x.as_f64()? as f32)).collect());
        let wrong = || wrong_kind(name, value, "a list of numbers");
        numbers.map(Some).ok_or_else(wrong)
    }

    /// Layers with a sliding window, by `layer_types`.
    pub(crate) fn sliding_layers(&self) -> Option<Vec<bool>> {
        let kinds = self.get("layer_types")?.as_array()?.iter();
        Some(kinds.map(|kind| kind == "sliding_attention").collect())
    }

    /// The rotated fraction of a head in one kind of layer, by `rope_parameters`.
    ///
    /// # Errors
    /// If the fraction is missing.
    pub(crate) fn rope_part_of(&self, kind: &str) -> Result<f64> {
        const PART: &str = "partial_rotary_factor";
        let parameters = self.rope.get(kind).and_then(Value::as_object);
        let part = parameters.map(|parameters| number_in(parameters, PART));
        let part = part.transpose()?.flatten();
        part.ok_or_else(|| format!("'{PART}' of '{kind}' is missing in 'rope_parameters'"))
    }

    /// The rotated fraction of a head in one kind of layer, or `by_default`; None if there is no
    /// such kind.
    ///
    /// # Errors
    /// If the fraction is not a number.
    pub(crate) fn rope_part_or(&self, kind: &str, by_default: f64) -> Result<Option<f64>> {
        let parameters = self.rope.get(kind).and_then(Value::as_object);
        let part = parameters.map(|parameters| number_in(parameters, "partial_rotary_factor"));
        let part = part.transpose()?;
        Ok(part.map(|part| part.unwrap_or(by_default)))
    }

    /// `rope_parameters` (or `rope_scaling`) with the parameters found at the root in older files.
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
        // Base of full-attention layers, then of windowed layers.
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

/// A number in an object; `None` if missing or null.
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
    // Python writes non-finite numbers, which JSON does not have.
    let not_finite = match value.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        _ => None,
    };
    let number = not_finite
        .or(value.as_f64())
        .ok_or_else(|| wrong_kind(name, value, "a number"))?;
    // The reference packs numbers into 32 bits and fails if they overflow to infinity.
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
