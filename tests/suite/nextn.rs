//! The block for a further token of Qwen 3.5: inputs of its linears, against values that follow
//! from norms alone. `scripts/parity-nextn.py` compares all of them with llama.cpp and PyTorch.

use super::convert::{FFN, HIDDEN, Model};
use super::support::program::{json, succeeds};
use super::unusual_inputs::with_byte_level;
use quantier_core::rng::Rng;
use quantier_gguf::imatrix::Imatrix;
use std::path::Path;
use tempfile::TempDir;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/texts/evaluation.txt");
const CONTEXT: usize = 32;
const CHUNKS: usize = 2;

/// A GGUF of one gated delta net and the block, of small random weights; norms have weights of 1.
fn with_block() -> TempDir {
    let mut model = Model::qwen35();
    for (name, shape) in [
        ("fc.weight", vec![HIDDEN, 2 * HIDDEN]),
        ("pre_fc_norm_embedding.weight", vec![HIDDEN]),
        ("pre_fc_norm_hidden.weight", vec![HIDDEN]),
        ("norm.weight", vec![HIDDEN]),
        ("layers.0.input_layernorm.weight", vec![HIDDEN]),
        ("layers.0.post_attention_layernorm.weight", vec![HIDDEN]),
        ("layers.0.self_attn.q_proj.weight", vec![128, HIDDEN]),
        ("layers.0.self_attn.k_proj.weight", vec![64, HIDDEN]),
        ("layers.0.self_attn.v_proj.weight", vec![64, HIDDEN]),
        ("layers.0.self_attn.o_proj.weight", vec![HIDDEN, 64]),
        ("layers.0.self_attn.q_norm.weight", vec![32]),
        ("layers.0.self_attn.k_norm.weight", vec![32]),
        ("layers.0.mlp.gate_proj.weight", vec![FFN, HIDDEN]),
        ("layers.0.mlp.up_proj.weight", vec![FFN, HIDDEN]),
        ("layers.0.mlp.down_proj.weight", vec![HIDDEN, FFN]),
    ] {
        model.add(&format!("mtp.{name}"), &shape);
    }
    model.config["mtp_num_hidden_layers"] = 1.into();
    let mut rng = Rng::new(5);
    for (name, (_, shape, bytes)) in &mut model.tensors {
        let mut weight = || match shape.len() {
            // Most norms are stored minus 1.
            1 if name.ends_with("linear_attn.norm.weight") => 1.0,
            1 => 0.0,
            _ => 0.2 * rng.gaussian(),
        };
        for half in bytes.as_chunks_mut().0 {
            *half = ((weight().to_bits() >> 16) as u16).to_le_bytes();
        }
    }
    let dir = model.write();
    with_byte_level(dir.path(), &[]);
    succeeds(dir.path(), "convert . -o m.gguf --outtype f32 --pre qwen2");
    dir
}

/// Mean squares of the input of a linear of the block, and its number of rows.
fn read(imatrix: &Imatrix, linear: &str) -> (Vec<f64>, i64) {
    let entry = &imatrix.entries[&format!("blk.1.{linear}.weight")];
    let rows = entry.counts[0];
    let sums = entry.sums.iter().map(|sum| f64::from(*sum));
    (sums.collect(), rows)
}

fn imatrix(dir: &Path, more: &str) -> Imatrix {
    let command =
        format!("imatrix -m m.gguf -f {TEXT} -c {CONTEXT} --chunks {CHUNKS} -o i.gguf {more}");
    succeeds(dir, &command);
    Imatrix::read(&dir.join("i.gguf")).unwrap()
}

#[test]
fn projection_reads_each_token_and_its_predecessor() {
    let dir = with_block();
    let imatrix = imatrix(dir.path(), "--no-ppl");
    let positions = (CHUNKS * CONTEXT) as i64;
    let (sums, rows) = read(&imatrix, "nextn.eh_proj");
    assert_eq!((sums.len() as u64, rows), (2 * HIDDEN, positions));
    let (tokens, before) = sums.split_at(HIDDEN as usize);
    // A normalized row has mean square 1; a chunk's first position has no predecessor.
    let near = |found: &[f64], rows: usize| {
        let expected = rows as f64 * HIDDEN as f64;
        let found: f64 = found.iter().sum();
        assert!((found / expected - 1.0).abs() < 2e-3, "{found} {expected}");
    };
    near(tokens, CHUNKS * CONTEXT);
    near(before, CHUNKS * (CONTEXT - 1));

    let ids = json(dir.path(), &format!("tokenize -m m.gguf -f {TEXT} --json"));
    let ids = ids["ids"].as_array().unwrap().iter().take(CHUNKS * CONTEXT);
    let table = super::convert::weights_of(&dir.path().join("m.gguf"), "token_embd.weight");
    let mut expected = vec![0.0f64; HIDDEN as usize];
    for id in ids {
        let row = &table[id.as_u64().unwrap() as usize * HIDDEN as usize..][..HIDDEN as usize];
        let square = |x: &f32| f64::from(*x).powi(2);
        let mean = row.iter().map(square).sum::<f64>() / HIDDEN as f64;
        let places = expected.iter_mut().zip(row);
        places.for_each(|(sum, x)| *sum += square(x) / mean);
    }
    for (found, expected) in tokens.iter().zip(&expected) {
        assert!((found / expected - 1.0).abs() < 2e-3, "{found} {expected}");
    }
}

#[test]
fn all_linears_of_the_block_are_always_covered() {
    let dir = with_block();
    let bare = imatrix(dir.path(), "--no-ppl");
    for linear in [
        "nextn.eh_proj",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        let (sums, rows) = read(&bare, linear);
        assert_eq!(rows, (CHUNKS * CONTEXT) as i64, "{linear}");
        assert!(sums.iter().all(|sum| *sum > 0.0), "{linear}");
    }
    let scored = imatrix(dir.path(), "");
    assert_eq!(scored.entries, bare.entries);
    let with_output = imatrix(dir.path(), "--process-output");
    let same = |name: &String| with_output.entries[name] == bare.entries[name];
    assert!(bare.entries.keys().all(same));
}
