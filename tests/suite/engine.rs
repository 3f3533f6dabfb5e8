//! The forward pass on the small trained Llama: what must hold whatever the numbers are.

use crate::support::text;
use quantier::arch::LinearId;
use quantier::convert;
use quantier::input::Source;
use quantier::model::{Engine, Error, LinearInput, Observer, Options, Tap};
use quantier::progress::Silent;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

const LAYERS: usize = 6;
const HIDDEN: usize = 256;
const VOCABULARY: u32 = 4096;

fn with_engine<T>(model: &str, options: &Options, then: impl FnOnce(&Engine<'_>) -> T) -> T {
    let source = Source::open(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata")
            .join(model),
    )
    .unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    then(&Engine::new(&input, options).unwrap())
}

/// Tokens without a pattern, all different by chunk.
fn chunks(count: usize, len: usize) -> Vec<Vec<u32>> {
    text::tokens(count * len)
        .chunks(len)
        .map(<[u32]>::to_vec)
        .collect()
}

/// The activations behind the last layer, chunk by chunk.
fn hidden(engine: &Engine<'_>, chunks: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let hidden = engine
        .run(chunks, 0..chunks[0].len(), None, &Silent)
        .unwrap();
    (0..chunks.len())
        .map(|c| hidden.take(c).unwrap().into_numbers())
        .collect()
}

#[test]
fn chunks_threads_and_memory_change_nothing() {
    let chunks = chunks(5, 40);
    let two = Options {
        threads: 2,
        ..Options::default()
    };
    let (all, split) = with_engine("refmodel-f16.gguf", &two, |engine| {
        (hidden(engine, &chunks), hidden(engine, &chunks[3..4]))
    });
    assert!(split[0] == all[3]);
    let one = Options {
        threads: 1,
        max_memory: Some(1),
        ..Options::default()
    };
    with_engine("refmodel-f16.gguf", &one, |engine| {
        let spilled = engine
            .run(&chunks, 0..1, None, &Silent)
            .unwrap()
            .spilled_bytes;
        assert_eq!(spilled, 5 * 40 * HIDDEN as u64 * 4);
        assert!(hidden(engine, &chunks) == all);
        assert!(hidden(engine, &chunks[3..4])[0] == all[3]);
    });
}

#[test]
fn later_tokens_do_not_reach_back() {
    let mut both = chunks(1, 30);
    let mut other = both[0].clone();
    other[20] = (other[20] + 1) % VOCABULARY;
    both.push(other);
    let out = with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        hidden(engine, &both)
    });
    let (same, different) = (&out[0][..20 * HIDDEN], &out[0][20 * HIDDEN..]);
    assert!(same == &out[1][..20 * HIDDEN]);
    assert!(
        different
            .chunks(HIDDEN)
            .zip(out[1][20 * HIDDEN..].chunks(HIDDEN))
            .all(|(a, b)| a != b)
    );
}

#[test]
fn a_checkpoint_runs_like_its_gguf() {
    // The checkpoint is bf16, and few of its weights are too small for f16: the two differ by next
    // to nothing.
    let chunks = chunks(1, 16);
    let gguf = with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        hidden(engine, &chunks)
    });
    let checkpoint = with_engine("refmodel", &Options::default(), |engine| {
        hidden(engine, &chunks)
    });
    let distance: f32 = gguf[0]
        .iter()
        .zip(&checkpoint[0])
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let norm: f32 = gguf[0].iter().map(|a| a * a).sum();
    assert!(distance < 1e-6 * norm, "{distance} of {norm}");
}

/// Counts the rows that each matrix meets, and adds up their squares.
#[derive(Default)]
struct Watcher {
    met: Mutex<BTreeMap<(LinearId, usize), (usize, f64)>>,
    layers: Mutex<Vec<usize>>,
}

impl Tap for Watcher {
    fn input(&self, input: LinearInput<'_>) {
        let mut met = self.met.lock().unwrap();
        let squares = input.rows.numbers().iter().map(|x| f64::from(*x).powi(2));
        let squares: f64 = squares.sum();
        for linear in input.linears {
            let entry = met.entry((*linear, input.rows.columns())).or_default();
            entry.0 += input.rows.len();
            entry.1 += squares;
        }
    }
}

impl Observer for Watcher {
    fn layer_done(&self, layer: usize) -> quantier::model::Result<()> {
        self.layers.lock().unwrap().push(layer);
        Ok(())
    }
}

#[test]
fn every_matrix_is_observed_with_every_row() {
    let watcher = Watcher::default();
    let catalog = with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        let hidden = engine
            .run(&chunks(3, 20), 10..20, Some(&watcher), &Silent)
            .unwrap();
        let head = engine.head().unwrap();
        let logits = head
            .logits(&hidden.take(1).unwrap(), 1, Some(&watcher))
            .unwrap();
        assert_eq!((logits.len(), logits.columns()), (10, VOCABULARY as usize));
        engine.catalog().clone()
    });
    assert_eq!(
        *watcher.layers.lock().unwrap(),
        (0..LAYERS).collect::<Vec<_>>()
    );
    let met = watcher.met.into_inner().unwrap().into_iter();
    let named =
        |((linear, columns), seen)| ((catalog.weight(linear).name.to_string(), columns), seen);
    let met: BTreeMap<_, _> = met.map(named).collect();
    assert_eq!(met.len(), 7 * LAYERS + 1);
    for ((name, columns), (rows, squares)) in &met {
        assert_eq!(
            *columns,
            if name.contains("ffn_down") {
                768
            } else {
                HIDDEN
            },
            "{name}"
        );
        assert_eq!(
            *rows,
            if name == "output.weight" { 10 } else { 60 },
            "{name}"
        );
        assert!(*squares > 0.0, "{name}");
    }
    let squares = |name: &str| met[&(format!("blk.2.{name}.weight"), HIDDEN)].1;
    assert_eq!(squares("attn_q"), squares("attn_k"));
    assert_ne!(squares("attn_q"), squares("ffn_up"));
}

#[test]
fn what_cannot_run_is_named() {
    with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        let run = |chunks: &[Vec<u32>], keep| {
            engine
                .run(chunks, keep, None, &Silent)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(run(&[vec![1, VOCABULARY]], 0..1).contains("row 4096 is asked for"));
        assert!(run(&[vec![1, 2], vec![1]], 0..1).contains("differ in length"));
        assert!(run(&[vec![1, 2]], 0..3).contains("differ in length"));
    });
}

#[test]
fn a_stopped_run_says_so() {
    struct Stop;
    impl quantier::progress::Progress for Stop {
        fn cancelled(&self) -> bool {
            true
        }
    }
    with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        let stopped = engine.run(&chunks(1, 4), 0..4, None, &Stop).err().unwrap();
        assert!(matches!(stopped, Error::Cancelled), "{stopped}");
    });
}
