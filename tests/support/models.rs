//! Models that run: the small trained Llama, and what can be made of it.

use super::gguf::Tiny;
use super::inputs::Rng;
use quantier::convert;
use quantier::format::gguf::Value;
use quantier::input::{Input, Source};
use std::path::{Path, PathBuf};

/// The small trained Llama in F16.
pub fn refmodel_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf")
}

/// The same, to be changed. What it borrows from lives as long as the test.
pub fn refmodel() -> Tiny {
    let source: &'static Source = Box::leak(Box::new(Source::open(&refmodel_path()).unwrap()));
    let input: &'static Input<'static> = Box::leak(Box::new(Input::new(source, &convert::Job::default()).unwrap()));
    let tensor = |t: &quantier::input::Tensor<'static>| {
        let data = input.read(t, 0..t.info.shape.rows(), &mut Vec::new()).unwrap().to_vec();
        (t.info.clone(), data)
    };
    Tiny { metadata: input.metadata().clone(), tensors: input.tensors.iter().map(tensor).collect() }
}

/// The first `layers` layers of it.
pub fn shortened(layers: u32) -> Tiny {
    let mut model = refmodel().set("llama.block_count", Value::U32(layers));
    let block = |name: &str| name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    model.tensors.retain(|(info, _)| block(&info.name).is_none_or(|block| block < layers));
    model
}

/// Two layers of it with four experts, of which each token meets one, and none the last: its router's row is zero, and
/// those of the first two are opposites.
pub fn experts() -> Tiny {
    const HIDDEN: u64 = 256;
    const LENGTH: u64 = 64;
    let mut model = shortened(2)
        .set("llama.expert_count", Value::U32(4))
        .set("llama.expert_used_count", Value::U32(1))
        .set("llama.expert_feed_forward_length", Value::U32(LENGTH as u32));
    model.tensors.retain(|(info, _)| !info.name.contains("ffn_") || info.name.contains("ffn_norm"));
    let mut rng = Rng::new(3);
    let mut random = |n: u64| (0..n).map(|_| rng.gaussian() * 0.05).collect::<Vec<_>>();
    for layer in 0..2 {
        let (first, third) = (random(HIDDEN), random(HIDDEN));
        let second: Vec<_> = first.iter().map(|x| -x).collect();
        let router = [first, second, third, vec![0.0; HIDDEN as usize]].concat();
        model = model.weights(&format!("blk.{layer}.ffn_gate_inp.weight"), &[HIDDEN, 4], router);
        for (name, columns, rows) in [("gate", HIDDEN, LENGTH), ("up", HIDDEN, LENGTH), ("down", LENGTH, HIDDEN)] {
            let name = format!("blk.{layer}.ffn_{name}_exps.weight");
            model = model.weights(&name, &[columns, rows, 4], random(columns * rows * 4));
        }
    }
    model
}

/// A text of some thousand tokens.
pub fn text() -> &'static str {
    concat!(include_str!("../../CONTRIBUTING.md"), include_str!("../../src/model/layer.rs"))
}
