//! Work of `make` after its files are measured: divergence targets, swaps, comparison with presets.

use crate::support::program::{json, listing};
use std::path::{Path, PathBuf};

/// A quick run on the model of testdata: few chunks, few types, no sequential pass. A budget of a
/// preset's size sets the scale.
fn make(dir: &Path, more: &str) -> serde_json::Value {
    let model = format!("{}/testdata/refmodel-f16.gguf", env!("CARGO_MANIFEST_DIR"));
    let quick =
        "-c 128 --types q2_k,q3_k,q4_k,q6_k --score-chunks 2 --eval-chunks 6 --no-sequential";
    json(dir, &format!("make {model} {quick} --json -o out {more}"))
}

fn file<'f>(frontier: &'f serde_json::Value, budget: &str) -> &'f serde_json::Value {
    let files = frontier["files"].as_array().unwrap();
    files
        .iter()
        .find(|f| f["budget"] == budget)
        .unwrap_or_else(|| panic!("no file for {budget}"))
}

#[test]
fn files_are_measured_and_refined() {
    let dir = tempfile::tempdir().unwrap();
    let first = make(dir.path(), "--bpw 4.5 --like Q4_K_M --compare like");
    let preset = first["presets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "Q4_K_M")
        .unwrap();
    let (theirs, ours) = (
        &preset["measured"]["kld"],
        &file(&first, "--like Q4_K_M")["measured"]["kld"],
    );
    assert!(
        ours.as_f64().unwrap() < theirs.as_f64().unwrap(),
        "{ours} {theirs}"
    );
    let others = first["presets"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["name"] != "Q4_K_M");
    assert!(
        others.into_iter().all(|p| p.get("measured").is_none()),
        "nobody asked for these"
    );
    let is_gguf = |(path, _): &(PathBuf, u64)| path.extension().is_some_and(|e| e == "gguf");
    let ggufs = |dir: &Path| listing(dir).into_iter().filter(is_gguf).collect::<Vec<_>>();
    let out = dir.path().join("out");
    assert_eq!(
        ggufs(&out).len(),
        3,
        "two files and the importance matrix, no preset: {:?}",
        listing(&out)
    );
    assert!(!out.join("work/presets").exists());

    // A budget in nats is met by measurement, not by prediction, and replaces the file.
    let at = file(&first, "--bpw 4.5")["measured"]["kld"]
        .as_f64()
        .unwrap();
    let wish = format!("--kld {:.5}", at * 1.5);
    let second = make(dir.path(), &wish);
    let met = file(&second, &wish)["measured"]["kld"].as_f64().unwrap() / (at * 1.5);
    assert!((0.85..1.05).contains(&met), "{met}");
    assert_eq!(ggufs(&out).len(), 4, "{:?}", listing(&out));
    // The next run starts from this result.
    let again = make(dir.path(), &wish);
    // Its files are compared with the presets next to them, not next to those of the plan.
    let files = |report: &serde_json::Value| -> Vec<serde_json::Value> {
        let mut files = report["files"].as_array().unwrap().clone();
        for file in &mut files {
            file.as_object_mut().unwrap().remove("versus");
        }
        files
    };
    assert_eq!(files(&again), files(&second));
    let stages = again["stages"].as_array().unwrap();
    assert!(
        stages.iter().all(|s| s["name"] != "corrected files"),
        "{stages:?}"
    );

    // Swaps keep the size.
    let refined = make(dir.path(), "--bpw 4.5 --refine 3");
    let (before, after) = (file(&first, "--bpw 4.5"), file(&refined, "--bpw 4.5"));
    assert!(after["bytes"].as_u64().unwrap() <= before["bytes"].as_u64().unwrap());
    assert!(
        refined["stages"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["name"] == "refinement")
    );
}

#[test]
fn a_sweep_agrees_with_the_second_order() {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("{}/testdata/refmodel-f16.gguf", env!("CARGO_MANIFEST_DIR"));
    let run = |score: &str| {
        let args = format!(
            "frontier {model} -c 128 --types attn_v=q4_k --types ffn_down=q4_k --types q8_0 --score {score} --score-chunks 2 \
             --score-positions 0 --json -o {score}"
        );
        json(dir.path(), &args)
    };
    let (sweep, second) = (run("sweep"), run("divergence"));
    assert_eq!(sweep["scoring"]["score"], "sweep");
    let nats = |frontier: &serde_json::Value, part: &str| -> Vec<f64> {
        let tensors = frontier["tensors"].as_array().unwrap().iter();
        let tensors = tensors.filter(|t| t["name"].as_str().unwrap().contains(part));
        let of = |t: &serde_json::Value| {
            let choices = t["choices"].as_array().unwrap();
            choices
                .iter()
                .find(|c| c["type"] == "q4_K")
                .map(|c| c["nats"].as_f64().unwrap())
        };
        tensors.filter_map(of).collect()
    };
    // Errors of values at several positions affect the same output; the second order omits their
    // correlation.
    for (part, least) in [("attn_v", 0.1), ("ffn_down", 0.4)] {
        let (sweep, second) = (nats(&sweep, part), nats(&second, part));
        assert_eq!((sweep.len(), second.len()), (6, 6));
        for (layer, (sweep, second)) in sweep.iter().zip(&second).enumerate() {
            assert!(
                (least..2.5).contains(&(second / sweep)),
                "{part} of layer {layer}: {sweep} {second}"
            );
        }
    }
}

#[test]
fn some_rows_are_as_good_as_all() {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("{}/testdata/refmodel-f16.gguf", env!("CARGO_MANIFEST_DIR"));
    let run = |rows: u32| {
        let args = format!(
            "frontier {model} -c 128 --types q4_k,q2_k,tq2_0 --score-chunks 4 --score-positions 508 \
             --score-rows {rows} --json -o {rows}"
        );
        json(dir.path(), &args)
    };
    let (all, some) = (run(0), run(64));
    let tensors = |frontier: &serde_json::Value| frontier["tensors"].as_array().unwrap().clone();
    let (mut ratios, mut sampled) = (Vec::new(), 0);
    for (all, some) in tensors(&all).iter().zip(&tensors(&some)) {
        assert_eq!(all["name"], some["name"]);
        assert!(all["standard_error"].is_null(), "{all}");
        // Keys and values have 64 rows. With a large error, all rows count.
        let has_more = some["shape"][1].as_u64().unwrap() > 64;
        let error = some["standard_error"].as_f64();
        sampled += usize::from(error.is_some());
        let is_small = |error: f64| has_more && (0.001..=0.1).contains(&error);
        assert!(error.is_none_or(is_small), "{} {error:?}", some["name"]);
        let choices = |tensor: &serde_json::Value| tensor["choices"].as_array().unwrap().clone();
        for (all, some) in choices(all).iter().zip(&choices(some)) {
            assert_eq!(all["type"], some["type"]);
            let [all, some] = [all, some].map(|choice| choice["nats"].as_f64().unwrap());
            if all > 0.0 {
                ratios.push((some / all).ln());
            }
        }
    }
    assert!(sampled >= 20, "{sampled} tensors");
    // 44 tensors, three types each. A few positions decide some tensors' products of rows, in either
    // estimate: the typical difference is that of the rows.
    assert_eq!(ratios.len(), 132);
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!(mean.abs() < 0.08, "{mean}");
    ratios.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let typical = ratios[ratios.len() / 2].abs();
    assert!(typical < 0.1, "{typical}");
}
