//! Sequential rounding: both models in parallel, files, and killed runs.

use crate::support::program::{
    divergence, fails, json, killed_when, place, proven, quantier, read, refmodel, succeeds, types,
};
use quantier::convert;
use quantier::input::Source;
use quantier::sensitivity::{self, Measure, Run, Settings};
use quantier_arch::Catalog;
use quantier_core::progress::Silent;
use quantier_engine::hessian::{self, Store};
use quantier_engine::model::backward::Labels;
use quantier_engine::model::{
    Engine, Error, LinearInput, LinearWeights, Observer, Options, Replaced, Rows,
    SequentialRounder, Tap,
};
use quantier_gguf::types::GgmlType;
use quantier_report::data::Frontier;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Inputs of whole matrices, by name and chunk.
type Inputs = BTreeMap<(String, usize), Vec<f32>>;

/// Records the inputs shown in a run.
struct Watcher<'c> {
    catalog: &'c Catalog,
    inputs: Mutex<Inputs>,
}

impl Tap for Watcher<'_> {
    fn input(&self, input: LinearInput<'_>) {
        if input.routed.is_none() {
            let mut inputs = self.inputs.lock().unwrap();
            for linear in input.linears {
                let name = self.catalog.weight(*linear).name.to_string();
                inputs.insert((name, input.chunk), input.rows.numbers().to_vec());
            }
        }
    }
}

impl Observer for Watcher<'_> {}

/// Replaces weights by unrelated numbers instead of rounding them, and records the inputs.
struct Changer<'c> {
    changed: &'c [Replaced],
    waiting: Mutex<BTreeMap<usize, [Vec<f32>; 2]>>,
    inputs: Mutex<[Inputs; 2]>,
}

impl Changer<'_> {
    fn of(&self, name: &str) -> Option<&Replaced> {
        self.changed.iter().find(|replaced| replaced.name == name)
    }
}

impl SequentialRounder for Changer<'_> {
    type Error = Error;

    fn wants(&self, tensors: &[String]) -> bool {
        !tensors.is_empty()
    }

    fn table_rows(
        &self,
        table: &str,
        rows: &[u32],
        columns: usize,
        numbers: &mut [f32],
    ) -> Result<(), Error> {
        if let Some(of) = self.of(table) {
            for (row, numbers) in rows.iter().zip(numbers.chunks_exact_mut(columns)) {
                let LinearWeights::Widened(weights) = &of.weights else {
                    panic!("the weights of {} are in f32", of.name);
                };
                numbers.copy_from_slice(&weights[*row as usize * columns..][..columns]);
            }
        }
        Ok(())
    }

    fn input(&self, chunk: usize, original: Rows, rounded: Rows) {
        assert_eq!(original.len(), rounded.len());
        assert_eq!(original.columns(), rounded.columns());
        let both = [original, rounded].map(Rows::into_numbers);
        let mut waiting = self.waiting.lock().unwrap();
        assert!(waiting.insert(chunk, both).is_none());
    }

    fn round(&self, linears: &[String], inner: &[String]) -> Result<Vec<Replaced>, Error> {
        let mut all = self.inputs.lock().unwrap();
        for (chunk, both) in std::mem::take(&mut *self.waiting.lock().unwrap()) {
            for (all, rows) in all.iter_mut().zip(both) {
                all.extend(
                    linears
                        .iter()
                        .map(|name| ((name.clone(), chunk), rows.clone())),
                );
            }
        }
        Ok(linears
            .iter()
            .chain(inner)
            .filter_map(|name| self.of(name).cloned())
            .collect())
    }
}

/// Inputs of the matrices in a run, including the output matrix.
fn inputs(engine: &Engine<'_>, chunks: &[Vec<u32>]) -> Inputs {
    let watcher = Watcher {
        catalog: engine.catalog(),
        inputs: Mutex::default(),
    };
    let hidden = engine
        .run(chunks, 0..chunks[0].len(), Some(&watcher), &Silent)
        .unwrap();
    let head = engine.head().unwrap();
    for chunk in 0..chunks.len() {
        head.logits(&hidden.take(chunk).unwrap(), chunk, Some(&watcher))
            .unwrap();
    }
    watcher.inputs.into_inner().unwrap()
}

/// Each matrix gets the inputs of a run of the original model, and of a run of the model with all
/// weights replaced, although weights of later matrices are not known yet; also without memory for
/// activations.
#[test]
fn parallel_models_match_separate_runs() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<Vec<u32>> = (0..3u32)
        .map(|c| (0..24).map(|i| (i * 37 + c * 1009) % 4096).collect())
        .collect();
    for (name, model) in [
        ("dense", crate::support::models::shortened(2)),
        ("experts", crate::support::models::experts()),
    ] {
        let path = dir.path().join(format!("{name}.gguf"));
        model.write(&path);
        let source = Source::open(&path).unwrap();
        let input = source.reader(&convert::Job::default()).unwrap();
        let matrices = input.tensors.iter().filter(|t| {
            let name = &*t.info.name;
            t.info.shape.dims().len() > 1 && name.ends_with(".weight") && name != "output.weight"
        });
        let changed: Vec<_> = matrices
            .map(|t| {
                let number = |i: u64| ((i * 7919 % 4093) as f32 - 2046.0) * 2e-5;
                let weights: Vec<f32> = (0..t.info.shape.elements()).map(number).collect();
                Replaced {
                    name: t.info.name.to_string(),
                    weights: weights.into(),
                }
            })
            .collect();
        for max_memory in [None, Some(1)] {
            let engine = Engine::new(
                &input,
                &Options {
                    threads: 2,
                    max_memory,
                    ..Options::default()
                },
            )
            .unwrap();
            let changer = Changer {
                changed: &changed,
                waiting: Mutex::default(),
                inputs: Mutex::default(),
            };
            engine
                .round_sequentially(&chunks, &changer, &Silent)
                .unwrap();
            let found = changer.inputs.into_inner().unwrap();
            let wanted = [
                inputs(&engine, &chunks),
                inputs(&engine.replacing(&changed).unwrap(), &chunks),
            ];
            let mut compared = 0;
            for (found, wanted) in found.iter().zip(&wanted) {
                for (of, rows) in wanted {
                    // Inputs of a shared expert's second half are not shown.
                    let Some(found) = found.get(of) else { continue };
                    assert!(found == rows, "{name}: {of:?}");
                    compared += 1;
                }
            }
            assert!(compared >= 2 * 3 * 11, "{name}: {compared} inputs");
            let of_rounded = |tensor: &str| &found[1][&(tensor.to_owned(), 0)];
            assert!(
                of_rounded("output.weight") != &found[0][&("output.weight".to_owned(), 0)],
                "{name}"
            );
        }
    }
}

const IMATRIX: &str =
    "imatrix m.gguf -f cal.txt -c 128 --process-output --no-ppl --hessians cov -o imatrix.gguf";
const QUANTIZE: &str = "quantize --imatrix imatrix.gguf --rounding feedback --hessians cov -c 128";

#[test]
fn sequential_rounding_lowers_the_divergence() {
    let dir = place();
    let dir = dir.path();
    succeeds(dir, IMATRIX);
    for name in ["Q2_K", "Q4_K_M"] {
        succeeds(dir, &format!("{QUANTIZE} m.gguf feedback.gguf {name}"));
        let done = json(
            dir,
            &format!("{QUANTIZE} --sequential cal.txt --json m.gguf sequential.gguf {name}"),
        );
        proven(&done);
        let [feedback, sequential] =
            ["feedback.gguf", "sequential.gguf"].map(|file| divergence(dir, file));
        assert!(
            sequential < 0.95 * feedback,
            "{name}: {sequential} nats, {feedback} on the inputs of the original model"
        );
        succeeds(dir, "verify sequential.gguf");
        assert_eq!(
            types(dir, "feedback.gguf"),
            types(dir, "sequential.gguf"),
            "{name}"
        );
        let held = json(dir, "inspect --json sequential.gguf");
        assert_eq!(
            held.pointer("/metadata/quantier.rounding/value")
                .and_then(Json::as_str),
            Some("propagated")
        );
    }
}

#[test]
fn sequential_rounding_is_independent_of_threads_and_memory() {
    let dir = place();
    let dir = dir.path();
    succeeds(dir, IMATRIX);
    let quantize = format!("{QUANTIZE} --sequential cal.txt");
    succeeds(
        dir,
        &format!("{quantize} --also Q2_K=also.gguf m.gguf one.gguf Q3_K_M 1"),
    );
    succeeds(
        dir,
        &format!("{quantize} --max-memory 1 m.gguf two.gguf Q3_K_M 2"),
    );
    succeeds(dir, &format!("{quantize} m.gguf alone.gguf Q2_K 2"));
    assert!(read(dir, "one.gguf") == read(dir, "two.gguf"));
    assert!(read(dir, "also.gguf") == read(dir, "alone.gguf"));
}

/// An embedding tied to the output matrix is rounded before any activations; experts are rounded on
/// their own inputs.
#[test]
fn experts_and_tied_embeddings() {
    let dir = place();
    let dir = dir.path();
    crate::support::models::experts().write(&dir.join("experts.gguf"));
    let of = |args: &str| args.replace("m.gguf", "experts.gguf");
    succeeds(dir, &of(IMATRIX));
    let done = json(
        dir,
        &of(&format!(
            "{QUANTIZE} --sequential cal.txt --json m.gguf out.gguf Q4_K"
        )),
    );
    let proved: Vec<_> = done["outputs"][0]["feedback"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["tensor"].as_str().unwrap())
        .collect();
    for tensor in [
        "blk.0.attn_q.weight",
        "blk.1.ffn_down_exps.weight",
        "output.weight",
    ] {
        assert!(proved.contains(&tensor), "{tensor} is not in {proved:?}");
    }
    succeeds(dir, "verify out.gguf");
    succeeds(
        dir,
        "kld experts.gguf out.gguf -f eval.txt -c 128 --chunks 2",
    );
}

#[test]
fn contradictory_options_are_refused() {
    let dir = place();
    let dir = dir.path();
    quantier("quantize --sequential cal.txt m.gguf x.gguf Q4_K")
        .current_dir(dir)
        .assert()
        .code(2);
    succeeds(dir, IMATRIX);
    quantier(&format!(
        "{QUANTIZE} --sequential cal.txt --prune-layers 1 m.gguf x.gguf Q4_K"
    ))
    .current_dir(dir)
    .assert()
    .code(2);
    fails(
        dir,
        &format!("{QUANTIZE} --sequential none.txt m.gguf x.gguf Q4_K"),
        &["none.txt"],
    );
    quantier(&format!(
        "{QUANTIZE} --output-hessians cov m.gguf x.gguf Q4_K"
    ))
    .current_dir(dir)
    .assert()
    .code(2);
    fails(
        dir,
        &format!("{QUANTIZE} --sequential cal.txt --output-hessians nothing m.gguf x.gguf Q4_K"),
        &["nothing"],
    );
    fs::write(dir.join("short.txt"), "A few words.").unwrap();
    fails(
        dir,
        &format!("{QUANTIZE} --sequential short.txt m.gguf x.gguf Q4_K"),
        &["short.txt"],
    );
    assert!(!dir.join("x.gguf").exists());
}

/// Sums of gradients equal the gradients of the backward pass, chunk by chunk.
#[test]
fn gradient_sums_match_the_backward_pass() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::open(Path::new(&refmodel())).unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    let engine = Engine::new(
        &input,
        &Options {
            threads: 2,
            ..Options::default()
        },
    )
    .unwrap();
    let chunks: Vec<Vec<u32>> = (0..9u32)
        .map(|c| (0..20).map(|i| (i * 37 + c * 1009) % 4096).collect())
        .collect();
    let job = hessian::Job {
        directory: dir.path().join("gradients"),
        key: [7; 32],
        experts_apart: false,
        hold_out: false,
    };
    let (measure, types) = (Measure::Divergence, vec![GgmlType::Q4_K]);
    let settings = Settings {
        measure,
        types,
        positions: 0,
        rows: 0,
        draws: 2,
        seed: 3,
    };
    let run = Run {
        engine: &engine,
        chunks: &chunks,
        settings: &settings,
        output_hessians: Some(&job),
        resume: None,
    };
    sensitivity::sum_output_hessians(&run, &Silent).unwrap();
    let store = Store::open(&job.directory).unwrap();
    assert_eq!(
        store.names().count(),
        7 * 6,
        "the output matrix is not among them"
    );

    let trace = engine.trace(&chunks, None, &Silent).unwrap();
    let sample: Vec<Vec<u32>> = chunks
        .iter()
        .map(|c| (0..c.len() as u32).collect())
        .collect();
    let mut backward = engine
        .backward(
            &trace,
            Labels {
                draws: 2,
                seed: 3,
                first: 0,
            },
            &sample,
            &Silent,
        )
        .unwrap();
    let (_, inputs) = backward.layer(&Silent).unwrap().unwrap();
    for name in ["blk.5.attn_k.weight", "blk.5.ffn_gate.weight"] {
        let of = inputs.iter().find(|inputs| inputs.name == name).unwrap();
        let found = store.get(name, 0).unwrap().unwrap();
        assert_eq!(
            (found.columns, found.rows),
            (of.width, 9 * 20 * 2),
            "{name}"
        );
        let m = of.width;
        let draws = of.pieces.iter().flat_map(|piece| &piece.gradients);
        let rows: Vec<&[f32]> = draws.flat_map(|of_draw| of_draw.chunks(m)).collect();
        for (i, j) in [(0, 0), (1, 5), (m - 1, 2)] {
            let sum: f64 = rows.iter().map(|g| f64::from(g[i]) * f64::from(g[j])).sum();
            let scale: f64 = rows.iter().map(|g| f64::from(g[i] * g[j]).abs()).sum();
            let off = (f64::from(found.mean[i * m + j]) * rows.len() as f64 - sum).abs();
            assert!(off <= 1e-5 * scale, "{name} {i} {j}: {sum}, off by {off}");
        }
    }
}

const SMALL: &str = "-c 128 --score-chunks 2 --eval-chunks 12 -f cal.txt --eval eval.txt --types q2_K,q3_K,q4_K,q6_K,q8_0";

/// Files of `make` are rounded sequentially by default.
#[test]
fn make_rounds_sequentially() {
    let dir = place();
    let dir = dir.path();
    let made = |rest: &str| -> Frontier {
        let text = succeeds(dir, &format!("make m.gguf {SMALL} --json {rest}"));
        Frontier::parse(&text).unwrap()
    };
    let whole = made("--bpw 3.5 -o out");
    let kld = |of: &Frontier| of.files[0].measured.as_ref().unwrap().mean.value();
    let name = dir.join("out").join(&whole.files[0].name);
    assert_eq!(
        fs::metadata(&name).unwrap().len(),
        whole.files[0].bytes,
        "the size is as it was planned"
    );
    let rounding = |of: &Frontier| {
        of.settings
            .iter()
            .find(|s| s.name == "rounding")
            .unwrap()
            .value
            .clone()
    };
    assert!(
        rounding(&whole).contains("sequential, two-sided"),
        "{}",
        rounding(&whole)
    );
    let bytes = fs::read(&name).unwrap();
    assert!(dir.join("out/work/gradients/blk.0.attn_q.gguf").exists());
    let part = made("--bpw 3.5 -o out --sequential-tokens 3");
    assert!(
        fs::read(&name).unwrap() != bytes,
        "the file from a part of the text is another"
    );
    assert!(
        kld(&part) < 1.15 * kld(&whole),
        "{} from a part of the text, {} from all of it",
        kld(&part),
        kld(&whole)
    );
    let rows = made("--bpw 3.5 -o out --one-sided");
    assert!(
        fs::read(&name).unwrap() != bytes,
        "the file of rows by themselves is another"
    );
    assert_eq!(whole.files[0].rounding.len(), rows.files[0].rounding.len());
    let without = made("--bpw 3.5 -o out --no-sequential");
    assert!(
        !rounding(&without).contains("behind"),
        "{}",
        rounding(&without)
    );
    assert!(
        fs::read(&name).unwrap() != bytes,
        "the file of the other rounding was taken for this one's"
    );
    assert!(
        kld(&whole) < 0.95 * kld(&without),
        "{} and {}",
        kld(&whole),
        kld(&without)
    );
    let left = fs::read_dir(dir.join("out/work"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left
        .filter(|name| name.ends_with(".blocks") || name.ends_with(".resume"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Finished layers according to a file's snapshot.
fn layers_done(work: &Path) -> Option<u8> {
    let state = fs::read_dir(work)
        .ok()?
        .filter_map(|e| Some(e.ok()?.path()));
    let state: PathBuf = state
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".gguf.resume"))?;
    fs::read(state).ok()?.get(40).copied()
}

#[test]
fn killed_runs_resume_and_write_the_same_file() {
    let dir = place();
    let dir = dir.path();
    let run = |out: &str| format!("make m.gguf {SMALL} --bpw 3.2 --checkpoint-every 0 -o {out}");
    succeeds(dir, &run("whole"));
    let mut kills = 0;
    for wanted in [1, 3, 5] {
        let ready = || layers_done(&dir.join("out/work")).is_some_and(|done| done >= wanted);
        kills += usize::from(killed_when(dir, &run("out"), ready));
        // A changed block: its tensor, and all later ones, are rounded again.
        if wanted == 3 {
            let work = fs::read_dir(dir.join("out/work"))
                .unwrap()
                .map(|e| e.unwrap().path());
            if let Some(path) = work
                .into_iter()
                .find(|path| path.extension().is_some_and(|e| e == "blocks"))
            {
                let mut blocks = fs::read(&path).unwrap();
                blocks[1000] ^= 1;
                fs::write(&path, blocks).unwrap();
            }
        }
    }
    assert!(kills > 0, "no run was killed in time");
    succeeds(dir, &run("out"));
    let file = |out: &str| {
        let files = fs::read_dir(dir.join(out))
            .unwrap()
            .map(|e| e.unwrap().path());
        let found = files.into_iter().find(|p| {
            p.file_name().unwrap().to_string_lossy().contains("bpw-")
                && p.extension().is_some_and(|e| e == "gguf")
        });
        fs::read(found.unwrap()).unwrap()
    };
    assert!(file("out") == file("whole"));

    // Another recipe: nothing remains of the file of a killed run.
    let other = |bpw: &str| format!("make m.gguf {SMALL} --bpw {bpw} --snapshot-every 0 -o out");
    killed_when(dir, &other("3.7"), || {
        layers_done(&dir.join("out/work")).is_some()
    });
    succeeds(dir, &other("4.4"));
    let left = fs::read_dir(dir.join("out/work")).unwrap();
    let mut left = left.map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.all(|name| !name.ends_with(".blocks") && !name.ends_with(".resume")));
}
