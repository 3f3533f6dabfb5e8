//! Models that lie on the grid of a type, and models in types that checkpoints are published in.

use crate::support::gguf::{Tiny, info};
use crate::support::models;
use crate::support::program::{fails, json, quantier, stderr, succeeds};
use quantier_blocks::Codec;
use quantier_gguf::gguf::{Files, Model};
use quantier_gguf::reader::TensorReader;
use quantier_gguf::types::GgmlType;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Short chunks, few of them.
const SMALL: &str =
    "-c 64 --score-chunks 2 --score-positions 64 --eval-chunks 4 -f cal.txt --eval eval.txt --json";

/// The weights of a tensor of the small model.
fn widened(tensor: &quantier_gguf::gguf::TensorInfo<'_>, data: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; tensor.shape.elements() as usize];
    Codec::of(tensor.ggml_type)
        .unwrap()
        .dequantize_row(data, &mut weights);
    weights
}

fn in_type(t: GgmlType, weights: &[f32]) -> Vec<u8> {
    let blocks = weights.len() / t.block_len() * t.block_bytes();
    let mut row = vec![0; blocks];
    Codec::of(t).unwrap().quantize_row(weights, None, &mut row);
    row
}

/// Two layers of the small model with other matrices: their type and data are those that `change`
/// makes of the weights.
fn changed(change: impl Fn(&[f32]) -> (GgmlType, Vec<u8>)) -> Tiny {
    let mut model = models::shortened(2);
    for (tensor, data) in &mut model.tensors {
        if tensor.shape.dims().len() > 1 {
            let (t, changed) = change(&widened(tensor, data));
            let dims = tensor.shape.dims().to_vec();
            (*tensor, *data) = (info(&tensor.name.clone(), &dims, t), changed);
        }
    }
    model
}

/// A directory with a model and both texts.
fn place(model: &Tiny) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    model.write(&dir.path().join("m.gguf"));
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/texts");
    std::fs::copy(texts.join("calibration.txt"), dir.path().join("cal.txt")).unwrap();
    std::fs::copy(texts.join("evaluation.txt"), dir.path().join("eval.txt")).unwrap();
    dir
}

/// The weights of every matrix of a file, by name, with its type.
fn matrices(path: &Path) -> BTreeMap<String, (GgmlType, Vec<f32>)> {
    let files = Files::open(path).unwrap();
    let reader = TensorReader::from(Model::parse(&files).unwrap());
    let tensors = reader.tensors.iter();
    let matrices = tensors.filter(|tensor| tensor.info.shape.rows() > 1);
    let read = |tensor: &quantier::input::Tensor<'_>| {
        let mut weights = vec![0.0; tensor.info.shape.elements() as usize];
        let rows = 0..tensor.info.shape.rows();
        reader.widen(tensor, rows, &mut weights).unwrap();
        let (name, t) = (tensor.info.name.to_string(), tensor.info.ggml_type);
        (name, (t, weights))
    };
    matrices.map(read).collect()
}

/// The only model that `make` has written, and its measured divergence.
fn made(dir: &Path, options: &str) -> (std::path::PathBuf, f64, String) {
    let run = quantier(&format!("make m.gguf {SMALL} -o out {options}"))
        .current_dir(dir)
        .assert()
        .success();
    let output = run.get_output();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = &found["files"][0];
    let name = file["name"].as_str().unwrap_or_else(|| panic!("{file}"));
    let nats = file["measured"]["kld"]
        .as_f64()
        .unwrap_or_else(|| panic!("{file}"));
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    (dir.join("out").join(name), nats, notes)
}

/// Of Q4_0's levels only -7 to 7 are used, as in quantization-aware training: the reference, which
/// puts the largest magnitude onto -8, does not find the scales.
#[test]
fn a_model_on_the_grid_of_q4_0_loses_nothing_in_it() {
    let model = changed(|weights| {
        let mut all = weights.to_vec();
        for block in all.chunks_mut(32) {
            let most = block.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            let d = half::f16::from_f32(most / 7.0).to_f32();
            for w in block {
                // Without the sign of zero, which levels do not have.
                let level = (*w / d).round().clamp(-7.0, 7.0) + 0.0;
                *w = if d > 0.0 { d * level } else { 0.0 };
            }
        }
        (GgmlType::BF16, in_type(GgmlType::BF16, &all))
    });
    let dir = place(&model);
    let (file, nats, notes) = made(dir.path(), "--bpw 4.6 --types q4_0,q3_K,q6_K");
    assert!(notes.contains("lie on the grid of q4_0"), "{notes}");
    assert!(nats < 1e-5, "{nats}");
    let stored = matrices(&dir.path().join("m.gguf"));
    for (name, (t, decoded)) in matrices(&file) {
        assert_eq!(t, GgmlType::Q4_0, "{name}");
        // Zeros under a negative scale have a sign, and are equal.
        let in_bf16 = |weights: &[f32]| {
            let unsigned: Vec<f32> = weights.iter().map(|w| w + 0.0).collect();
            in_type(GgmlType::BF16, &unsigned)
        };
        assert!(in_bf16(&decoded) == in_bf16(&stored[&name].1), "{name}");
    }
    // The same types by the reference's quantizer.
    succeeds(dir.path(), "quantize --pure m.gguf plain.gguf Q4_0");
    let plain = kld(dir.path(), "plain.gguf");
    assert!(plain > 100.0 * nats.max(1e-7), "{plain} {nats}");
}

fn kld(dir: &Path, file: &str) -> f64 {
    let found = json(
        dir,
        &format!("kld m.gguf {file} -f eval.txt -c 64 --chunks 4 --json"),
    );
    found["models"][0]["statistics"]["kld"]["value"]
        .as_f64()
        .unwrap()
}

/// Groups of 128 columns with a scale and an integer for zero, in f16, as AWQ has them.
#[test]
fn a_model_on_the_grid_of_q4_1_loses_nothing_in_it() {
    let model = changed(|weights| {
        let mut all = weights.to_vec();
        for group in all.chunks_mut(128) {
            let [least, most] = group
                .iter()
                .fold([0.0f32; 2], |[a, b], w| [a.min(*w), b.max(*w)]);
            let scale = half::f16::from_f32(((most - least) / 15.0).max(1e-4)).to_f32();
            let zero = (-least / scale).round();
            for w in group {
                let level = (*w / scale + zero).round().clamp(0.0, 15.0);
                *w = half::f16::from_f32(scale * (level - zero)).to_f32();
            }
        }
        (GgmlType::F16, in_type(GgmlType::F16, &all))
    });
    let dir = place(&model);
    let (file, nats, notes) = made(dir.path(), "--bpw 5.1 --types q4_1,q4_K,q6_K");
    assert!(notes.contains("lie on the grid of q4_1"), "{notes}");
    assert!(nats < 1e-5, "{nats}");
    let all = matrices(&file);
    assert!(all.values().all(|(t, _)| *t == GgmlType::Q4_1));
}

/// Small floats under scales of eight bits, widened to bf16.
#[test]
fn a_model_on_the_grid_of_nvfp4_loses_nothing_in_it() {
    let model = changed(|weights| {
        let t = GgmlType::NVFP4;
        let mut all = vec![0.0; weights.len()];
        let blocks = in_type(t, weights);
        Codec::of(t).unwrap().dequantize_row(&blocks, &mut all);
        (GgmlType::BF16, in_type(GgmlType::BF16, &all))
    });
    let dir = place(&model);
    let (file, nats, notes) = made(dir.path(), "--bpw 4.6 --types nvfp4,q3_K,q6_K");
    assert!(notes.contains("lie on the grid of nvfp4"), "{notes}");
    assert!(nats < 1e-9, "{nats}");
    let stored = matrices(&dir.path().join("m.gguf"));
    for (name, (t, decoded)) in matrices(&file) {
        assert_eq!(t, GgmlType::NVFP4, "{name}");
        assert!(decoded == stored[&name].1, "{name}");
    }
}

/// Published as NVFP4 with a scale for each matrix: the file is all that there is of the model.
#[test]
fn a_published_nvfp4_model_is_a_base() {
    const SCALE: f32 = 1.0 / 40.0;
    let mut model = changed(|weights| {
        let large: Vec<f32> = weights.iter().map(|w| w / SCALE).collect();
        (GgmlType::NVFP4, in_type(GgmlType::NVFP4, &large))
    });
    // Rows of embeddings are looked up without a scale.
    let whole = models::shortened(2);
    for (tensor, data) in &mut model.tensors {
        if tensor.name == "token_embd.weight" || tensor.name == "output.weight" {
            let mut tensors = whole.tensors.iter();
            let own = tensors.find(|(own, _)| own.name == tensor.name).unwrap();
            (*tensor, *data) = own.clone();
        }
    }
    let names: Vec<_> = model
        .tensors
        .iter()
        .filter(|(tensor, _)| tensor.ggml_type == GgmlType::NVFP4)
        .map(|(tensor, _)| tensor.name.replace(".weight", ".scale"))
        .collect();
    for name in &names {
        model = model.weights(name, &[1], [SCALE]);
    }
    let dir = place(&model);
    // Near the model that it was made of, and so scaled.
    models::shortened(2).write(&dir.path().join("whole.gguf"));
    let from_whole = json(
        dir.path(),
        "kld whole.gguf m.gguf -f eval.txt -c 64 --chunks 4 --json",
    );
    let from_whole = from_whole["models"][0]["statistics"]["kld"]["value"].as_f64();
    assert!(from_whole.unwrap() < 0.5, "{from_whole:?}");

    // So are the weights that `diff` compares.
    let differences = quantier("diff whole.gguf m.gguf --json")
        .current_dir(dir.path())
        .assert();
    let found: serde_json::Value =
        serde_json::from_slice(&differences.get_output().stdout).unwrap();
    let changed = found["tensors"].as_array().unwrap();
    let query = changed.iter().find(|c| c["name"] == "blk.0.attn_q.weight");
    let relative = query.unwrap()["relative_rmse"].as_f64().unwrap();
    assert!((0.01..0.2).contains(&relative), "{relative}");

    let (file, nats, notes) = made(dir.path(), "--bpw 5.5 --types nvfp4,q3_K,q4_K,q6_K,q8_0");
    assert!(notes.contains("are quantized already"), "{notes}");
    let all = matrices(&file);
    let kept = all.values().filter(|(t, _)| *t == GgmlType::NVFP4).count();
    assert!(kept > names.len() / 2, "{kept} of {}", names.len());
    assert!(nats < 0.05, "{nats}");

    // Without blocks, with its scales: the same model.
    succeeds(
        dir.path(),
        "quantize --allow-requantize m.gguf f32.gguf F32",
    );
    assert!(kld(dir.path(), "f32.gguf") < 1e-9);
    fails(
        dir.path(),
        "quantize m.gguf q.gguf Q4_K_M",
        &["quantized already", "--allow-requantize"],
    );
    let said = stderr(
        dir.path(),
        "quantize --allow-requantize m.gguf q.gguf Q8_0",
        0,
    );
    assert!(said.contains("are quantized already"), "{said}");
    assert!(kld(dir.path(), "q.gguf") < 0.01);
}

/// llama.cpp loads `output.scale` beside an output matrix in NVFP4 alone.
#[test]
fn a_scaled_output_matrix_keeps_its_type() {
    let mut model = changed(|weights| (GgmlType::NVFP4, in_type(GgmlType::NVFP4, weights)));
    if !model.tensors.iter().any(|(t, _)| t.name == "output.weight") {
        let mut tensors = model.tensors.iter();
        let embedding = tensors
            .find(|(t, _)| t.name == "token_embd.weight")
            .unwrap();
        let dims = embedding.0.shape.dims().to_vec();
        let (t, data) = (
            info("output.weight", &dims, GgmlType::NVFP4),
            embedding.1.clone(),
        );
        model = model.tensor(t, data);
    }
    let model = model.weights("output.scale", &[1], [0.5]);
    let dir = place(&model);
    fails(
        dir.path(),
        "quantize --allow-requantize m.gguf q.gguf Q8_0",
        &["output.weight", "nvfp4 alone", "--leave-output-tensor"],
    );
    succeeds(
        dir.path(),
        "quantize --allow-requantize --leave-output-tensor m.gguf q.gguf Q8_0",
    );
    let (file, _, _) = made(dir.path(), "--bpw 4.6 --types q8_0,q6_K,nvfp4");
    assert_eq!(matrices(&file)["output.weight"].0, GgmlType::NVFP4);
}
