//! adapter_config.json.

use regex::Regex;
use serde_json::{Map, Value};

/// The settings of an adapter.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Scale of the update before the division by the rank.
    pub(super) alpha: f64,
    /// The name of the base model.
    pub(super) base: Option<String>,
    /// Tokens after which an activated adapter (aLoRA) begins to act.
    pub(super) invocation: Vec<u32>,
    /// True if the update is divided by the root of the rank.
    pub(super) by_root: bool,
    /// Other alphas, by patterns for ends of modules' names; the first that matches counts.
    pub(super) alphas: Vec<(Regex, f64)>,
    /// The method of initial weights, if it changes the base model.
    pub(super) residual: Option<String>,
}

/// Methods of `init_lora_weights` that subtract the initial update from the base model.
const RESIDUAL: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Settings {
    /// # Errors
    /// Missing or wrong fields, and methods other than LoRA.
    pub(super) fn of(config: Map<String, Value>) -> Result<Settings, String> {
        let text = |field: &str| config.get(field).and_then(Value::as_str);
        let is_set = |field: &str| match config.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if let Some(method) = text("peft_type").filter(|method| *method != "LORA") {
            return Err(format!(
                "it is an adapter of kind {method} ('peft_type'), and only LORA can be converted; merge it into its \
                 base with PEFT's merge_and_unload"
            ));
        }
        for (field, method) in [
            ("use_dora", "DoRA scales the columns of updated matrices"),
            ("layer_replication", "layers of the base are repeated"),
        ] {
            if is_set(field) {
                return Err(format!(
                    "'{field}' is set: {method}, and llama.cpp's adapters have only pairs of factors; merge it into \
                     its base with PEFT's merge_and_unload"
                ));
            }
        }
        let alpha = config.get("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.filter(|alpha| alpha.is_finite());
        let alpha =
            alpha.ok_or("'lora_alpha' is missing or no number; download the adapter again")?;
        let invocation = match config.get("alora_invocation_tokens") {
            None | Some(Value::Null) => Vec::new(),
            Some(tokens) => {
                let tokens = tokens.as_array().map_or(&[][..], Vec::as_slice).iter();
                let token = |token: &Value| u32::try_from(token.as_u64()?).ok();
                let tokens: Option<Vec<u32>> = tokens.map(token).collect();
                tokens.ok_or("'alora_invocation_tokens' is no list of token ids")?
            }
        };
        if invocation.is_empty() && is_set("invocation_string") {
            return Err(
                "'invocation_string' has no 'alora_invocation_tokens' beside it; add the ids of its tokens without the \
                 first"
                    .into(),
            );
        }
        let initial = text("init_lora_weights").map(str::to_lowercase);
        Ok(Settings {
            alpha,
            base: text("base_model_name_or_path").map(str::to_owned),
            invocation,
            by_root: is_set("use_rslora"),
            alphas: alphas(&config)?,
            residual: initial.filter(|method| RESIDUAL.iter().any(|m| method.starts_with(m))),
        })
    }
}

/// The alphas of single matrices.
fn alphas(config: &Map<String, Value>) -> Result<Vec<(Regex, f64)>, String> {
    let Some(Value::Object(patterns)) = config.get("alpha_pattern") else {
        return Ok(Vec::new());
    };
    let alpha = |(pattern, alpha): (&String, &Value)| {
        let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z"));
        let alpha = alpha.as_f64().filter(|alpha| alpha.is_finite());
        let entry = regex.ok().zip(alpha);
        entry.ok_or_else(|| {
            format!("'alpha_pattern' has no number for '{pattern}', or that is no pattern")
        })
    };
    patterns.iter().map(alpha).collect()
}

impl Settings {
    /// The factor of the update of a module with this rank.
    pub(super) fn scale(&self, rank: u64, module: &str) -> f32 {
        let mut alphas = self.alphas.iter();
        let own = alphas.find(|(pattern, _)| pattern.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.by_root { rank.sqrt() } else { rank }) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(config: Value) -> Result<Settings, String> {
        Settings::of(config.as_object().unwrap().clone())
    }

    #[test]
    fn settings_are_read() {
        let read = settings(json!({
            "peft_type": "LORA", "lora_alpha": 32, "base_model_name_or_path": "a/b", "alpha_pattern": {},
            "alora_invocation_tokens": [3, 4], "init_lora_weights": "pissa_niter_4"
        }));
        let read = read.unwrap();
        assert_eq!((read.alpha, read.base.as_deref()), (32.0, Some("a/b")));
        assert_eq!((read.invocation, read.by_root), (vec![3, 4], false));
        assert_eq!(read.residual.as_deref(), Some("pissa_niter_4"));
    }

    #[test]
    fn updates_are_scaled_by_alpha_and_rank() {
        let patterns = json!({ "layers.1.q_proj": 4, "[qk]_proj": 8 });
        let plain =
            settings(json!({ "lora_alpha": 32, "alpha_pattern": patterns.clone() })).unwrap();
        for (module, scale) in [
            ("model.layers.1.q_proj", 0.25),
            ("m.layers.2.k_proj", 0.5),
            ("xq_proj", 2.0),
        ] {
            assert_eq!(plain.scale(16, module), scale, "{module}");
        }
        let rooted = settings(json!({ "lora_alpha": 32, "use_rslora": true })).unwrap();
        assert_eq!(rooted.scale(16, "q_proj"), 8.0);
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        for (config, part) in [
            (json!({ "peft_type": "IA3" }), "kind IA3"),
            (json!({ "lora_alpha": 1, "use_dora": true }), "'use_dora'"),
            (
                json!({ "lora_alpha": 1, "layer_replication": [[0, 4], [2, 5]] }),
                "'layer_replication'",
            ),
            (json!({}), "'lora_alpha' is missing"),
            (
                json!({ "lora_alpha": "8" }),
                "'lora_alpha' is missing or no number",
            ),
            (
                json!({ "lora_alpha": 8, "alora_invocation_tokens": [-1] }),
                "no list of token ids",
            ),
            (
                json!({ "lora_alpha": 8, "invocation_string": "x" }),
                "'invocation_string'",
            ),
        ] {
            let what = settings(config).unwrap_err();
            assert!(what.contains(part), "{what}");
        }
    }
}
