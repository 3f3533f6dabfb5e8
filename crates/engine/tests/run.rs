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
