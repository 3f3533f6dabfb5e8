//! The forward pass on the small trained Llama: properties independent of the numbers.

use crate::support::gguf::Tiny;
use crate::support::{models, text};
use quantier::convert;
use quantier::input::Source;
use quantier_arch::LinearId;
use quantier_core::progress::Silent;
use quantier_engine::model::backward::{Labels, LinearSamples};
use quantier_engine::model::{Engine, Error, LinearInput, Observer, Options, Tap};
use quantier_gguf::gguf::Value;
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

/// Pseudo-random tokens, different in every chunk.
fn chunks(count: usize, len: usize) -> Vec<Vec<u32>> {
    text::tokens(count * len)
        .chunks(len)
        .map(<[u32]>::to_vec)
        .collect()
}

/// Activations after the last layer, by chunk.
fn hidden(engine: &Engine<'_>, chunks: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let hidden = engine
        .run(chunks, 0..chunks[0].len(), None, &Silent)
        .unwrap();
    (0..chunks.len())
        .map(|c| hidden.take(c).unwrap().into_numbers())
        .collect()
}

#[test]
fn results_are_independent_of_chunks_threads_and_memory() {
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
fn later_tokens_do_not_affect_earlier_ones() {
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
    // The checkpoint is bf16, and few of its weights are too small for f16: the difference is tiny.
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

/// Counts the rows of each matrix's input, and sums their squares.
#[derive(Default)]
struct Watcher {
    inputs: Mutex<BTreeMap<(LinearId, usize), (usize, f64)>>,
    layers: Mutex<Vec<usize>>,
}

impl Tap for Watcher {
    fn input(&self, input: LinearInput<'_>) {
        let mut inputs = self.inputs.lock().unwrap();
        let squares = input.rows.numbers().iter().map(|x| f64::from(*x).powi(2));
        let squares: f64 = squares.sum();
        for linear in input.linears {
            let entry = inputs.entry((*linear, input.rows.columns())).or_default();
            entry.0 += input.rows.len();
            entry.1 += squares;
        }
    }
}

impl Observer for Watcher {
    fn layer_done(&self, layer: usize) -> quantier_engine::model::Result<()> {
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
    let inputs = watcher.inputs.into_inner().unwrap().into_iter();
    let named =
        |((linear, columns), seen)| ((catalog.weight(linear).name.to_string(), columns), seen);
    let inputs: BTreeMap<_, _> = inputs.map(named).collect();
    assert_eq!(inputs.len(), 7 * LAYERS + 1);
    for ((name, columns), (rows, squares)) in &inputs {
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
    let squares = |name: &str| inputs[&(format!("blk.2.{name}.weight"), HIDDEN)].1;
    assert_eq!(squares("attn_q"), squares("attn_k"));
    assert_ne!(squares("attn_q"), squares("ffn_up"));
}

#[test]
fn unsupported_models_are_refused_by_name() {
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
        assert!(run(&[vec![1, 2]], 0..3).contains("exceed the chunks"));
    });
}

#[test]
fn stopped_runs_return_cancelled() {
    struct Stop;
    impl quantier_core::progress::Progress for Stop {
        fn cancelled(&self) -> bool {
            true
        }
    }
    with_engine("refmodel-f16.gguf", &Options::default(), |engine| {
        let stopped = engine.run(&chunks(1, 4), 0..4, None, &Stop).err().unwrap();
        assert!(matches!(stopped, Error::Cancelled), "{stopped}");
    });
}

/// Two layers of the small Llama as a Nanbeige, which runs them twice.
fn looped(skips_norm: bool) -> Tiny {
    let mut model = models::shortened(2);
    let keys = model.metadata.iter();
    let own = keys.filter_map(|(key, value)| {
        let rest = key.strip_prefix("llama.")?;
        Some((format!("nanbeige.{rest}"), value.clone()))
    });
    let own: Vec<_> = own.collect();
    own.into_iter()
        .for_each(|(key, value)| model.metadata.set(key, value));
    model
        .set("general.architecture", Value::str("nanbeige"))
        .set("nanbeige.num_loops", Value::U32(2))
        .set("nanbeige.skip_loop_final_norm", Value::Bool(skips_norm))
}

/// The same as a Llama of four layers.
fn unrolled() -> Tiny {
    let mut model = models::shortened(2);
    let layers = model.tensors.clone().into_iter();
    let copies = layers.filter_map(|(mut info, data)| {
        let rest = info.name.strip_prefix("blk.")?;
        let (number, rest) = rest.split_once('.')?;
        let number: u32 = number.parse().ok()?;
        info.name = format!("blk.{}.{rest}", number + 2).into();
        Some((info, data))
    });
    model.tensors.extend(copies);
    model.set("llama.block_count", Value::U32(4))
}

/// Activations of a model, and the samples of its layers from the last to the first.
fn passes(model: &Tiny, chunks: &[Vec<u32>]) -> (Vec<Vec<f32>>, Vec<Vec<LinearSamples>>) {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::open(&model.write(&dir.path().join("model.gguf"))).unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    let engine = Engine::new(&input, &Options::default()).unwrap();
    engine.check().unwrap();
    let trace = engine.trace(chunks, None, &Silent).unwrap();
    let all: Vec<Vec<u32>> = chunks
        .iter()
        .map(|c| (0..c.len() as u32).collect())
        .collect();
    let labels = Labels {
        draws: 1,
        seed: 3,
        first: 0,
    };
    let mut backward = engine.backward(&trace, labels, &all, &Silent).unwrap();
    let layers = std::iter::from_fn(|| backward.layer(&Silent).unwrap());
    let layers = layers.map(|(_, samples)| samples).collect();
    (hidden(&engine, chunks), layers)
}

#[test]
fn repeated_layers_equal_copied_layers() {
    let chunks = chunks(2, 12);
    let (once, of_copies) = passes(&unrolled(), &chunks);
    let (twice, of_loops) = passes(&looped(true), &chunks);
    assert!(once == twice);
    assert_eq!((of_copies.len(), of_loops.len()), (4, 4));
    for (layer, (copies, loops)) in of_copies.iter().zip(&of_loops).enumerate() {
        assert_eq!(copies.len(), loops.len());
        for (a, b) in copies.iter().zip(loops) {
            let number = (3 - layer) % 2;
            assert!(b.name.starts_with(&format!("blk.{number}.")), "{}", b.name);
            let pairs = a.pieces.iter().zip(&b.pieces);
            for (a, b) in pairs {
                assert!(a.inputs == b.inputs && a.gradients == b.gradients);
            }
        }
    }
    let (normalized, _) = passes(&looped(false), &chunks);
    assert!(normalized != twice);
}
