//! The engine as a library: runs a small trained Llama.

use quantier_arch::{Input, LinearId};
use quantier_core::progress::Silent;
use quantier_engine::model::{Engine, LinearInput, Observer, Options, Tap};
use quantier_gguf::gguf::{Files, Model};
use quantier_gguf::reader::TensorReader;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// Counts the rows read by each linear.
#[derive(Default)]
struct Counter(Mutex<BTreeMap<LinearId, usize>>);

impl Tap for Counter {
    fn input(&self, input: LinearInput<'_>) {
        let mut counts = self.0.lock().unwrap();
        for linear in input.linears {
            *counts.entry(*linear).or_default() += input.rows.len();
        }
    }
}

impl Observer for Counter {}

#[test]
fn every_linear_of_the_catalog_reads_every_position() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let files = Files::open(&testdata.join("refmodel-f16.gguf")).unwrap();
    let input = Input::from(TensorReader::from(Model::parse(&files).unwrap()));
    let engine = Engine::new(&input, &Options::default()).unwrap();
    engine.check().unwrap();
    let (counter, chunks) = (
        Counter::default(),
        [vec![1, 2, 3, 4, 5], vec![9, 8, 7, 6, 5]],
    );
    let hidden = engine.run(&chunks, 0..5, Some(&counter), &Silent).unwrap();
    let head = engine.head().unwrap();
    for chunk in 0..chunks.len() {
        let logits = head.logits(&hidden.take(chunk).unwrap(), chunk, Some(&counter));
        assert_eq!(logits.unwrap().columns(), engine.vocabulary());
    }
    let counts = counter.0.into_inner().unwrap();
    let linears = engine
        .catalog()
        .linears()
        .iter()
        .map(|linear| (linear.id, 10));
    assert_eq!(counts, linears.collect());
}

/// Chunks of several lengths have the activations that each has alone, in memory and in a temporary file.
#[test]
fn chunks_of_any_length_run_together() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let files = Files::open(&testdata.join("refmodel-f16.gguf")).unwrap();
    let input = Input::from(TensorReader::from(Model::parse(&files).unwrap()));
    let chunk = |length: u32| (0..length).map(|i| 5 + i * 37 % 4000).collect::<Vec<_>>();
    let chunks = [chunk(7), chunk(130), chunk(1), chunk(64)];
    let keep = [2..7, 0..130, 0..0, 63..64];
    for max_memory in [None, Some(1)] {
        let options = Options {
            max_memory,
            ..Options::default()
        };
        let engine = Engine::new(&input, &options).unwrap();
        let together = engine.run_each(&chunks, &keep, None, &Silent).unwrap();
        for (i, (chunk, keep)) in chunks.iter().zip(&keep).enumerate() {
            let alone = std::slice::from_ref(chunk);
            let alone = engine.run(alone, keep.clone(), None, &Silent).unwrap();
            assert_eq!(together.rows_of(i).unwrap(), alone.rows_of(0).unwrap());
        }
        assert!(engine.run(&chunks, 0..1, None, &Silent).is_err());
        assert!(engine.run_each(&chunks, &keep[..3], None, &Silent).is_err());
    }
}
