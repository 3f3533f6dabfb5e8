//! MiniCPM: Llama with three multipliers, and factors of angles for long contexts.

use super::config::Result;
use super::decoder::Decoder;
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::olmo::WEIGHTS_INTERLEAVED;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::{Architecture, Config, Generated, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MINICPM: Architecture = Architecture {
    classes: &["MiniCPMForCausalLM"],
    name: "minicpm",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        WEIGHTS_INTERLEAVED,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: long_rope_factors,
    decoder: Decoder::LLAMA,
};

const PARAMETERS: &[Parameter] = &[
    Parameter::F32("embedding_scale", &["scale_emb"]),
    Parameter::Computed(|config, keys| {
        let scale = config.f64(&["scale_depth"])? / f64::from(config.layers()?).sqrt();
        keys.set("residual_scale", Value::F32(scale as f32));
        Ok(())
    }),
    Parameter::Computed(|config, keys| {
        let scale = config.f64(&["hidden_size"])? / config.f64(&["dim_model_base"])?;
        keys.set("logit_scale", Value::F32(scale as f32));
        Ok(())
    }),
];

fn long_rope_factors(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    let expected = config.share_of_head()? as usize / 2;
    let factors = |field: &str, name| {
        let Some(weights) = config.rope_numbers(field)? else {
            return Ok(None);
        };
        match weights.len() == expected {
            true => Ok(Some(Generated { name, weights })),
            false => Err(format!(
                "'{field}' has {} numbers; {expected} are needed",
                weights.len()
            )),
        }
    };
    let long = factors("long_factor", "rope_factors_long.weight")?;
    let short = factors("short_factor", "rope_factors_short.weight")?;
    match (long, short) {
        (Some(long), Some(short)) => Ok(vec![long, short]),
        (None, None) => Ok(Vec::new()),
        _ => Err("'long_factor' and 'short_factor' belong together".into()),
    }
}
