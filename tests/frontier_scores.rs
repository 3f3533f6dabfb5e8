//! Predicted nats against measured ones: a whole model in one type, scored, quantized, run.

use quantier::convert;
use quantier::evaluate::measure;
use quantier::evaluate::statistics::Statistics;
use quantier::evaluate::windows::Windows;
use quantier::format::types::GgmlType;
use quantier::frontier::{Measure, Settings, score};
use quantier::imatrix::collect::collect;
use quantier::input::{Input, Source};
use quantier::model::{Engine, Options};
use quantier::progress::Silent;
use quantier::tokenizer::Tokenizer;
use std::path::Path;
use std::time::Instant;

#[test]
#[ignore = "measures; set QUANTIER_TEXT (calibration) and QUANTIER_EVAL"]
fn predicted_against_measured() {
    let number = |name: &str, or: usize| std::env::var(name).map_or(or, |v| v.parse().unwrap());
    let text = std::fs::read_to_string(std::env::var("QUANTIER_TEXT").unwrap()).unwrap();
    let eval = std::fs::read_to_string(std::env::var("QUANTIER_EVAL").unwrap()).unwrap();
    let types: Vec<GgmlType> = std::env::var("QUANTIER_TYPES")
        .unwrap_or("q2_K,iq3_s,q4_K,q6_K,q8_0".into())
        .split(',')
        .map(|t| GgmlType::from_name(t).unwrap())
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf");
    let source = Source::open(&path).unwrap();
    let input = Input::new(&source, &convert::Job::default()).unwrap();
    let engine = Engine::new(&input, &Options::default()).unwrap();
    let tokenizer = Tokenizer::from_gguf(input.metadata()).unwrap();
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let tokens = tokenizer.encode(&text, true, false);
    let windows = Windows::of_text(&tokens, 512, Some(number("QUANTIER_CHUNKS", 40)), bos).unwrap();
    let chunks: Vec<_> = (0..windows.chunks()).map(|c| windows.input(c)).collect();
    let (sums, _) = collect(&engine, &chunks, true, &Silent).unwrap();
    let imatrix = sums.to_file(512);
    let settings = Settings {
        measure: Measure::Divergence,
        types: types.clone(),
        positions: number("QUANTIER_POSITIONS", 0),
        draws: number("QUANTIER_DRAWS", 2),
        seed: number("QUANTIER_SEED", 1) as u64,
    };
    let start = Instant::now();
    let scores = score(&input, &engine, &imatrix, &chunks, &settings, &Silent).unwrap();
    println!("scored {} positions of {} chunks in {:.1?}", scores.positions, chunks.len(), start.elapsed());
    if let Some(out) = std::env::var_os("QUANTIER_OUT") {
        std::fs::write(out, serde_json::to_string(&scores).unwrap()).unwrap();
    }
    let eval_tokens = tokenizer.encode(&eval, true, false);
    let windows = Windows::of_text(&eval_tokens, 512, Some(40), bos).unwrap();
    let base = measure::hidden(&engine, &windows, &Silent).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let imatrix_path = dir.path().join("imatrix.gguf");
    imatrix.write_gguf(&imatrix_path).unwrap();
    for t in types {
        let predicted: f64 =
            scores.tensors.iter().filter_map(|s| s.choices.iter().find(|c| c.ggml_type == t)).map(|c| c.nats).sum();
        let out = dir.path().join("q.gguf");
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_quantier"))
            .args(["quantize", "--pure", "--imatrix"])
            .arg(&imatrix_path)
            .args(["--tensor-type", &format!(".*={t}"), "--output-tensor-type", t.name()])
            .arg(&path)
            .arg(&out)
            .arg("Q4_K_M")
            .output()
            .unwrap();
        if !status.status.success() {
            println!("{t}: predicted {predicted:.6}; {}", String::from_utf8_lossy(&status.stderr));
            continue;
        }
        let source = Source::open(&out).unwrap();
        let input = Input::new(&source, &convert::Job::default()).unwrap();
        let quant = Engine::new(&input, &Options::default()).unwrap();
        let rows = measure::compare((&engine, &base), &quant, &windows, &Silent).unwrap();
        let kld = Statistics::of(&[&rows]).unwrap().kld;
        println!("{t}: predicted {predicted:.6} measured {:.6} ratio {:.3}", kld.value, kld.value / predicted);
    }
}
