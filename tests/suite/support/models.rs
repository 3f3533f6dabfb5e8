//! Runnable models: the small trained Llama, and variants of it.

use super::gguf::Tiny;
use quantier_core::rng::Rng;
use quantier_gguf::gguf::{Model, Tensor, Value};
use std::path::{Path, PathBuf};

/// The small trained Llama in F16.
pub fn refmodel_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf")
}

/// The same, for changes.
pub fn refmodel() -> Tiny {
    let model = Model::open(&refmodel_path()).unwrap();
    let tensor = |t: &Tensor| (t.info.clone(), t.data().to_vec());
    Tiny {
        metadata: model.metadata().clone(),
        tensors: model.tensors.iter().map(tensor).collect(),
    }
}

/// Its first `layers` layers.
pub fn shortened(layers: u32) -> Tiny {
    let mut model = refmodel().set("llama.block_count", Value::U32(layers));
    let block = |name: &str| {
        name.strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok())
    };
    model
        .tensors
        .retain(|(info, _)| block(&info.name).is_none_or(|block| block < layers));
    model
}

/// Two layers of it with four experts. Each token is routed to one, none to the last, whose router
/// row is zero; those of the first two are opposites.
pub fn experts() -> Tiny {
    const HIDDEN: u64 = 256;
    const LENGTH: u64 = 64;
    let mut model = shortened(2)
        .set("llama.expert_count", Value::U32(4))
        .set("llama.expert_used_count", Value::U32(1))
        .set(
            "llama.expert_feed_forward_length",
            Value::U32(LENGTH as u32),
        );
    model
        .tensors
        .retain(|(info, _)| !info.name.contains("ffn_") || info.name.contains("ffn_norm"));
    let mut rng = Rng::new(3);
    let mut random = |n: u64| (0..n).map(|_| rng.gaussian() * 0.05).collect::<Vec<_>>();
    for layer in 0..2 {
        let (first, third) = (random(HIDDEN), random(HIDDEN));
        let second: Vec<_> = first.iter().map(|x| -x).collect();
        let router = [first, second, third, vec![0.0; HIDDEN as usize]].concat();
        model = model.weights(
            &format!("blk.{layer}.ffn_gate_inp.weight"),
            &[HIDDEN, 4],
            router,
        );
        for (name, columns, rows) in [
            ("gate", HIDDEN, LENGTH),
            ("up", HIDDEN, LENGTH),
            ("down", LENGTH, HIDDEN),
        ] {
            let name = format!("blk.{layer}.ffn_{name}_exps.weight");
            model = model.weights(&name, &[columns, rows, 4], random(columns * rows * 4));
        }
    }
    model
}

/// A text of some thousand tokens.
pub fn text() -> &'static str {
    include_str!("../../../testdata/texts/mixed.txt")
}

/// Writes the first `layers` layers of the trained checkpoint into a new directory.
pub fn shortened_checkpoint(dir: &Path, layers: u32) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel");
    std::fs::create_dir(dir).unwrap();
    for entry in std::fs::read_dir(&source)
        .unwrap()
        .map(|entry| entry.unwrap())
    {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = layers.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();

    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap();
    let (mut kept, mut weights) = (serde_json::Map::new(), Vec::new());
    for (name, mut tensor) in header {
        let layer = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        if name == "__metadata__" || layer.is_some_and(|layer| layer >= layers) {
            continue;
        }
        let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let begin = weights.len();
        weights.extend_from_slice(&data[at(0)..at(1)]);
        tensor["data_offsets"] = serde_json::json!([begin, weights.len()]);
        kept.insert(name, tensor);
    }
    let header = serde_json::Value::from(kept).to_string();
    let file = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &weights,
    ]
    .concat();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}
