//! Hessians: sums, stored files, and reading.

use crate::support::allocation;
use crate::support::models;
use crate::support::program::{fail_each, json, killed_when, quantier, stderr, succeeds};
use crate::support::text;
use quantier::convert;
use quantier::input::Source;
use quantier_arch::Catalog;
use quantier_core::progress::Silent;
use quantier_engine::evaluate::windows::Windows;
use quantier_engine::hessian::{self, Hessian, Needs, Store, is_held_out};
use quantier_engine::imatrix::collect::{Collected, Options, collect};
use quantier_engine::model::{self, Engine, LinearInput, Observer, Tap};
use quantier_gguf::gguf::Value;
use quantier_gguf::hessian::{File, Head, Index, Part, Writing, triangle, write};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::TempDir;

const CONTEXT: usize = 24;

fn tokens(chunks: usize) -> Vec<u32> {
    text::tokens(chunks * CONTEXT)
}

fn with_engine<T>(path: &Path, threads: usize, then: impl FnOnce(&Engine<'_>) -> T) -> T {
    let source = Source::open(path).unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    let options = model::Options {
        threads,
        ..model::Options::default()
    };
    then(&Engine::new(&input, &options).unwrap())
}

fn job(directory: &Path) -> hessian::Job {
    hessian::Job {
        directory: directory.to_owned(),
        key: [7; 32],
        experts_apart: true,
        hold_out: true,
    }
}

fn collected(
    engine: &Engine<'_>,
    chunks: usize,
    process_output: bool,
    job: &hessian::Job,
) -> Collected {
    let tokens = tokens(chunks);
    let windows = Windows::of_chunks(&tokens, CONTEXT, None).unwrap();
    let options = Options {
        process_output,
        covariance: Some(job),
        ..Options::default()
    };
    collect(engine, &windows, &options, &Silent).unwrap()
}

/// Rows by chunk.
type Rows = BTreeMap<usize, Vec<f32>>;

/// Inputs of each matrix, by tensor and matrix.
struct Inputs<'c> {
    catalog: &'c Catalog,
    rows: Mutex<BTreeMap<(String, usize), Rows>>,
}

impl Tap for Inputs<'_> {
    fn input(&self, input: LinearInput<'_>) {
        let mut inputs = self.rows.lock().unwrap();
        let matrix = input.routed.map_or(0, |routed| routed.expert);
        for linear in input.linears {
            let name = self.catalog.weight(*linear).name.to_string();
            let chunks = inputs.entry((name, matrix)).or_default();
            chunks
                .entry(input.chunk)
                .or_default()
                .extend_from_slice(input.rows.numbers());
        }
    }
}

impl Observer for Inputs<'_> {}

/// Inputs of a model's matrices for some chunks.
fn inputs(engine: &Engine<'_>, chunks: usize) -> BTreeMap<(String, usize), Rows> {
    let all: Vec<_> = tokens(chunks)
        .chunks(CONTEXT)
        .map(<[u32]>::to_vec)
        .collect();
    let watcher = Inputs {
        catalog: engine.catalog(),
        rows: Mutex::default(),
    };
    let hidden = engine
        .run(&all, 0..CONTEXT, Some(&watcher), &Silent)
        .unwrap();
    let head = engine.head().unwrap();
    (0..chunks).for_each(|c| {
        drop(
            head.logits(&hidden.take(c).unwrap(), c, Some(&watcher))
                .unwrap(),
        )
    });
    watcher.rows.into_inner().unwrap()
}

/// Mean of `x x^T` over the summed chunks, in f64, and the number of summed rows.
fn plain(inputs: &Rows, chunks: usize, columns: usize) -> (Vec<f64>, u64) {
    let mut sums = vec![0.0; columns * columns];
    let mut count = 0;
    for row in inputs
        .iter()
        .filter(|(c, _)| !is_held_out(**c, chunks))
        .flat_map(|(_, rows)| rows.chunks(columns))
    {
        count += 1;
        for (x, sums) in row.iter().zip(sums.chunks_mut(columns)) {
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, y)| *sum += f64::from(*x) * f64::from(*y));
        }
    }
    sums.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    (sums, count)
}

/// Fails unless each number is accurate to some parts per million of the bound from its row and
/// column.
#[track_caller]
fn close(found: &[f32], want: &[f64], columns: usize, what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (found, this)) in found.iter().zip(want).enumerate() {
        let [row, column] = [i / columns, i % columns];
        let scale = (want[row * (columns + 1)] * want[column * (columns + 1)]).sqrt();
        assert!(
            (f64::from(*found) - this).abs() <= 3e-6 * scale + 1e-30,
            "{what}: {row} {column}: {found} {this}"
        );
    }
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let all = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    all.map(|path| (name(&path), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn means_equal_plain_sums_and_inputs_are_shared() {
    const CHUNKS: usize = 17;
    let dir = tempfile::tempdir().unwrap();
    models::shortened(2).write(&dir.path().join("m.gguf"));
    let out = dir.path().join("out");
    let (inputs, written, needs) = with_engine(&dir.path().join("m.gguf"), 2, |engine| {
        let written = collected(engine, CHUNKS, true, &job(&out))
            .covariance
            .unwrap();
        (
            inputs(engine, CHUNKS),
            written,
            Needs::of(engine, true, [CHUNKS, CONTEXT]),
        )
    });
    let store = Store::open(&out).unwrap();
    assert_eq!(
        (store.key(), written.files, written.tensors),
        (&[7; 32], 2 * 4 + 1, 2 * 7 + 1)
    );
    let bytes: usize = files(&out)
        .iter()
        .filter(|(name, _)| *name != "index.gguf")
        .map(|(_, b)| b.len())
        .sum();
    assert_eq!(written.bytes, bytes as u64);
    assert!(
        (written.bytes..written.bytes + written.bytes / 100).contains(&needs.files),
        "{needs:?} {written:?}"
    );

    let mut identities: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for ((name, matrix), inputs) in &inputs {
        let found: Hessian = store
            .get(name, *matrix)
            .unwrap()
            .unwrap_or_else(|| panic!("no {name}"));
        let (want, count) = plain(inputs, CHUNKS, found.columns);
        assert_eq!(
            (found.rows, count),
            (15 * CONTEXT as u64, 15 * CONTEXT as u64)
        );
        close(&found.mean, &want, found.columns, name);
        let held_out: Vec<&[f32]> = [7, 15]
            .iter()
            .flat_map(|chunk| inputs[chunk].chunks(found.columns))
            .collect();
        assert!(
            found
                .sample
                .chunks(found.columns)
                .eq(held_out.iter().copied()),
            "the sample of {name}"
        );
        assert_eq!(store.identity(name, 0), Some(found.identity));
        identities
            .entry(found.identity)
            .or_default()
            .insert(name.clone());
    }
    assert_eq!(store.names().count(), inputs.len());
    let shared: Vec<_> = identities
        .into_values()
        .filter(|names| names.contains("blk.1.attn_k.weight"))
        .collect();
    let want = ["attn_k", "attn_q", "attn_v"].map(|name| format!("blk.1.{name}.weight"));
    assert_eq!(shared, [BTreeSet::from(want)]);
    assert_eq!(
        (
            store.get("blk.0.attn_q.weight", 1).unwrap(),
            store.identity("x", 0)
        ),
        (None, None)
    );
}

#[test]
fn tied_output_has_a_hessian_and_a_single_chunk_has_no_sample() {
    let dir = tempfile::tempdir().unwrap();
    let mut tied = models::shortened(1);
    tied.tensors
        .retain(|(info, _)| info.name != "output.weight");
    tied.write(&dir.path().join("m.gguf"));
    let out = dir.path().join("out");
    let sums = with_engine(&dir.path().join("m.gguf"), 1, |engine| {
        collected(engine, 1, true, &job(&out)).sums
    });
    assert!(
        !sums.tensors.contains_key("token_embd.weight"),
        "importance matrices have none"
    );
    let store = Store::open(&out).unwrap();
    for name in ["token_embd.weight", "blk.0.ffn_down.weight"] {
        let found = store.get(name, 0).unwrap().unwrap();
        assert_eq!(
            (found.rows, found.sample.len()),
            (CONTEXT as u64, 0),
            "{name}"
        );
    }
}

#[test]
fn experts_have_their_own_hessians_and_a_common_one() {
    const CHUNKS: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let path = models::experts().write(&dir.path().join("m.gguf"));
    let [apart, pooled] = ["apart", "pooled"].map(|name| job(&dir.path().join(name)));
    let pooled = hessian::Job {
        experts_apart: false,
        ..pooled
    };
    let (inputs, needs) = with_engine(&path, 2, |engine| {
        collected(engine, CHUNKS, false, &apart);
        collected(engine, CHUNKS, false, &pooled);
        (
            inputs(engine, CHUNKS),
            Needs::of(engine, false, [CHUNKS, CONTEXT]),
        )
    });
    let bytes: usize = files(&apart.directory).values().map(Vec::len).sum();
    assert!(
        needs.experts_apart && (bytes..2 * bytes).contains(&(needs.files as usize)),
        "{needs:?} {bytes}"
    );
    let [apart, pooled] = [apart, pooled].map(|job| Store::open(&job.directory).unwrap());
    for name in ["ffn_gate", "ffn_up", "ffn_down"].map(|name| format!("blk.1.{name}_exps.weight")) {
        let columns = if name.contains("down") { 64 } else { 256 };
        let none = BTreeMap::new();
        let of = |expert: usize| {
            plain(
                inputs.get(&(name.clone(), expert)).unwrap_or(&none),
                CHUNKS,
                columns,
            )
        };
        let experts = [0, 1, 2, 3].map(of);
        let total: u64 = experts.iter().map(|(_, rows)| rows).sum();
        assert_eq!(total, 14 * CONTEXT as u64);
        let weighed = |i: usize| {
            experts
                .iter()
                .map(|(mean, rows)| mean[i] * *rows as f64)
                .sum::<f64>()
                / total as f64
        };
        let all: Vec<f64> = (0..columns * columns).map(weighed).collect();
        let mut leaning = 0;
        for (expert, (own, rows)) in experts.iter().enumerate() {
            let found = apart.get(&name, expert).unwrap().unwrap();
            let weight = if *rows < hessian::LEAST_ROWS {
                0.0
            } else {
                *rows as f64 / (rows + columns as u64) as f64
            };
            leaning += usize::from(weight > 0.0);
            let want: Vec<f64> = own
                .iter()
                .zip(&all)
                .map(|(own, all)| weight * own + (1.0 - weight) * all)
                .collect();
            assert_eq!((found.columns, found.rows), (columns, *rows));
            close(&found.mean, &want, columns, &name);
            assert!(!found.sample.is_empty() && found.sample.len() <= hessian::SAMPLE * columns);

            let together = pooled.get(&name, expert).unwrap().unwrap();
            close(&together.mean, &all, columns, &name);
            assert_eq!((together.rows, &together.sample), (*rows, &found.sample));
            assert_eq!(Some(together.identity), pooled.identity(&name, 0));
        }
        assert!(leaning >= 2 && experts[3].1 == 0, "{name}: {leaning}");
        assert_eq!(
            apart.identity(&name, 3),
            apart.identity(&name.replace("gate", "up"), 3)
        );
        assert!(
            apart.identity(&name, 0) != apart.identity(&name, 3)
                && apart.identity(&name, 4).is_none()
        );
    }
    assert_eq!(apart.identity("blk.1.ffn_gate_inp.weight", 0), None);
}

/// A directory with a text and a model.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), models::text()).unwrap();
    std::os::unix::fs::symlink(models::refmodel_path(), dir.path().join("m.gguf")).unwrap();
    dir
}

const RUN: &str = "imatrix -m m.gguf -f t.txt -c 64 --chunks 60 --no-ppl -o out.gguf";

/// Longer than a few seconds.
mod slow {
    use super::*;

    #[test]
    fn killed_hessian_runs_resume() {
        let dir = place();
        let dir = dir.path();
        succeeds(dir, &format!("{RUN} --hessians want"));
        let run = format!("{RUN} --hessians cov");
        killed(dir, &run, 9);
        assert!(
            Store::open(&dir.join("cov"))
                .err()
                .unwrap()
                .to_string()
                .contains("no complete Hessians")
        );
        let told = json(dir, &format!("{run} --json"));
        assert!(told["resumed"]["layers"].as_u64() >= Some(1), "{told}");
        assert_eq!(told["covariance"]["files"], 24);
        assert!(files(&dir.join("cov")) == files(&dir.join("want")));

        // A file of a finished layer is missing: everything is repeated.
        fs::remove_dir_all(dir.join("cov")).unwrap();
        killed(dir, &run, 9);
        fs::remove_file(dir.join("cov/blk.0.attn_q.gguf")).unwrap();
        let told = json(dir, &format!("{run} --json"));
        assert!(told["resumed"].is_null(), "{told}");
        assert!(files(&dir.join("cov")) == files(&dir.join("want")));
    }

    #[test]
    fn hessians_are_independent_of_threads_memory_and_imatrix() {
        let dir = place();
        let dir = dir.path();
        let told = json(
            dir,
            &format!("{RUN} --json --process-output --hessians a -t 1"),
        );
        let told = &told["covariance"];
        assert_eq!(
            (&told["directory"], &told["files"], &told["tensors"]),
            (&"a".into(), &25.into(), &43.into()),
            "{told}"
        );
        let imatrix = fs::read(dir.join("out.gguf")).unwrap();
        let text = succeeds(
            dir,
            &format!("{RUN} --process-output --hessians b -t 3 --max-memory 1"),
        );
        assert!(
            text.contains("b: 25 input Hessians for 43 tensors, "),
            "{text}"
        );
        assert!(files(&dir.join("a")) == files(&dir.join("b")));
        succeeds(dir, &format!("{RUN} --process-output"));
        assert!(fs::read(dir.join("out.gguf")).unwrap() == imatrix);
        // Again into the same directory: the same job.
        succeeds(dir, &format!("{RUN} --process-output --hessians a"));
        assert!(files(&dir.join("a")) == files(&dir.join("b")));
    }

    #[test]
    fn changes_and_truncations_of_hessian_files_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let head = small(&path);
        let index = Index {
            key: head.key,
            files: vec![("a.gguf".into(), "x".into())],
        };
        index.write(dir.path()).unwrap();
        let (sound, listed) = (
            fs::read(&path).unwrap(),
            fs::read(dir.path().join("index.gguf")).unwrap(),
        );
        let want = contents(&path).unwrap();
        assert_eq!(
            (&want.0, want.2[1].as_ref().unwrap()[5], want.2[2].is_none()),
            (&head, 7.0, true)
        );
        assert!(
            Store::open(dir.path())
                .err()
                .unwrap()
                .to_string()
                .contains("not the file that index.gguf")
        );
        let check = |bytes: &[u8], at: usize| {
            fs::write(&path, bytes).unwrap();
            let (found, largest) = allocation::largest(|| contents(&path));
            assert!(largest <= 1 << 16, "{largest} bytes at once");
            match found {
                // Padding, or another encoding of the same.
                Ok(found) => assert!(found == want, "a change at byte {at} was not found out"),
                Err(error) => assert!(error.to_string().contains("a.gguf"), "{error}"),
            }
        };
        for at in 0..sound.len() {
            for bit in [1, 0x40, 0x80] {
                let mut changed = sound.clone();
                changed[at] ^= bit;
                check(&changed, at);
            }
            fs::write(&path, &sound[..at]).unwrap();
            assert!(
                contents(&path).is_err() || at > sound.len() - 32,
                "cut at byte {at}"
            );
        }
        for at in 0..listed.len() {
            let mut changed = listed.clone();
            changed[at] ^= 1;
            fs::write(dir.path().join("index.gguf"), &changed).unwrap();
            assert!(
                Index::read(dir.path()).is_ok_and(|found| found == index)
                    || Index::read(dir.path()).is_err()
            );
            fs::write(dir.path().join("index.gguf"), &listed[..at]).unwrap();
            assert!(Index::read(dir.path()).is_err(), "cut at byte {at}");
        }
    }
}

/// Kills a run with snapshots after every layer once `reached` files exist.
fn killed(dir: &Path, args: &str, reached: usize) {
    let covariances = || fs::read_dir(dir.join("cov")).map_or(0, Iterator::count);
    let ready = || covariances() >= reached && dir.join("out.gguf.resume").exists();
    assert!(killed_when(
        dir,
        &format!("{args} --checkpoint-every 0"),
        ready
    ));
}

#[test]
fn impossible_requests_are_refused() {
    let dir = place();
    let dir = dir.path();
    for args in [
        &format!("{RUN} --hessians a --save-frequency 2"),
        "imatrix --in-file x --hessians a",
    ] {
        let ran = quantier(args).current_dir(dir).assert().code(2);
        assert!(
            String::from_utf8_lossy(&ran.get_output().stderr)
                .contains("--hessians requires a text")
        );
    }
    succeeds(dir, &format!("{RUN} --hessians a"));
    let before = files(&dir.join("a"));
    let other = RUN.replace("60", "59");
    fail_each(
        dir,
        &[
            (
                &format!("{other} --hessians a"),
                &["a/", "of another model, text or setting", "choose another"],
            ),
            (&format!("{other} --hessians t.txt"), &["cannot read t.txt"]),
        ],
    );
    assert!(files(&dir.join("a")) == before);
    // A directory with files of two runs, one that lacks a file, and one that is not of Hessians.
    succeeds(dir, &format!("{other} --hessians b"));
    fs::copy(
        dir.join("b/blk.1.attn_q.gguf"),
        dir.join("a/blk.1.attn_q.gguf"),
    )
    .unwrap();
    let refused = |name: &str| Store::open(&dir.join(name)).err().unwrap().to_string();
    assert!(
        refused("a").contains("blk.1.attn_q.gguf: it is not the file"),
        "{}",
        refused("a")
    );
    fs::remove_file(dir.join("b/blk.1.attn_q.gguf")).unwrap();
    assert!(refused("b").contains("blk.1.attn_q.gguf") && !refused("nowhere").is_empty());
    assert!(refused(".").contains("no complete Hessians"));

    fs::copy(dir.join("m.gguf"), dir.join("b/model.gguf")).unwrap();
    hessian::clear(&dir.join("b")).unwrap();
    assert_eq!(
        files(&dir.join("b")).keys().collect::<Vec<_>>(),
        ["model.gguf"]
    );
    hessian::clear(&dir.join("nowhere")).unwrap();

    let needs = Needs {
        files: u64::MAX,
        memory: 0,
        operations: 0.0,
        experts_apart: true,
    };
    let error = needs
        .check(&job(&dir.join("new/deep")))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("new/deep") && error.contains("free"),
        "{error}"
    );
    assert!(!dir.join("new").exists());
}

#[test]
fn nonfinite_activations_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = models::shortened(2);
    let (info, data) = model
        .tensors
        .iter_mut()
        .find(|(info, _)| info.name == "blk.1.attn_norm.weight")
        .unwrap();
    assert_eq!(data.len() as u64, info.bytes());
    data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    model.write(&dir.path().join("m.gguf"));
    fs::write(dir.path().join("t.txt"), models::text()).unwrap();
    let error = stderr(
        dir.path(),
        "imatrix -m m.gguf -f t.txt -c 64 --hessians a",
        1,
    );
    assert!(
        error.contains("layer 1, chunk 0: the input of 'blk.1.attn_q.weight'"),
        "{error}"
    );
    assert!(!dir.path().join("a/index.gguf").exists());
}

fn pieces(numbers: Vec<f32>) -> quantier_gguf::hessian::Pieces<'static> {
    Box::new(move |put| put(&numbers))
}

/// A small file of two experts; returns its header.
fn small(path: &Path) -> Head {
    let head = Head {
        key: [9; 32],
        columns: 3,
        rows: vec![40, 2],
        tensors: vec!["a".into(), "b".into()],
    };
    let mean = |x: f32| pieces((0..6).map(|i| x + i as f32).collect());
    let sample = |n: usize| pieces((0..3 * n).map(|i| i as f32).collect());
    let parts = [
        Writing {
            part: Part::Mean(None),
            rows: 0,
            pieces: mean(1.0),
        },
        Writing {
            part: Part::Mean(Some(0)),
            rows: 0,
            pieces: mean(2.0),
        },
        Writing {
            part: Part::Sample(None),
            rows: 4,
            pieces: sample(4),
        },
    ];
    write(path, &head, &parts).unwrap();
    head
}

/// Contents of a file: header, checksum, and the numbers of some parts.
type Contents = (Head, String, Vec<Option<Vec<f32>>>);

fn contents(path: &Path) -> quantier_gguf::Result<Contents> {
    let file = File::open(path)?;
    let parts = [
        Part::Mean(None),
        Part::Mean(Some(0)),
        Part::Mean(Some(1)),
        Part::Sample(None),
        Part::Sample(Some(0)),
    ];
    let numbers = parts
        .into_iter()
        .map(|part| file.read(part))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((file.head().clone(), file.checksum().to_owned(), numbers))
}

#[test]
fn inconsistent_heads_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let sound = Head {
        key: [9; 32],
        columns: 2,
        rows: vec![5],
        tensors: vec!["a".into()],
    };
    let mean = |n: usize| Writing {
        part: Part::Mean(None),
        rows: 0,
        pieces: pieces(vec![1.0; triangle(n)]),
    };
    // Non-finite numbers are not written.
    let nan = Writing {
        part: Part::Mean(None),
        rows: 0,
        pieces: pieces(vec![1.0, f32::NAN, 1.0]),
    };
    assert!(
        write(&path, &sound, &[nan])
            .unwrap_err()
            .to_string()
            .contains("the input Hessian of 'a'")
    );
    let refused = |head: &Head, parts: &[Writing<'_>], part: &str| {
        write(&path, head, parts).unwrap();
        let error = File::open(&path).err().unwrap().to_string();
        assert!(
            error.contains(part) && error.contains("collect the Hessians again"),
            "{part}: {error}"
        );
    };
    refused(
        &Head {
            rows: vec![0],
            ..sound.clone()
        },
        &[mean(2)],
        "covariance.rows",
    );
    refused(
        &Head {
            rows: vec![u64::MAX, 2],
            ..sound.clone()
        },
        &[mean(2)],
        "covariance.rows",
    );
    refused(
        &Head {
            tensors: Vec::new(),
            ..sound.clone()
        },
        &[mean(2)],
        "covariance.tensors",
    );
    refused(&sound, &[], "no tensor 'mean'");
    let other = |part| Writing {
        part,
        rows: 1,
        pieces: pieces(vec![1.0; if matches!(part, Part::Mean(_)) { 3 } else { 2 }]),
    };
    refused(&sound, &[mean(2), other(Part::Mean(Some(1)))], "'mean.1'");
    refused(
        &sound,
        &[mean(2), other(Part::Sample(Some(usize::MAX)))],
        "'sample.18446744073709551615'",
    );
    // Another container: a model; then one with enough columns and rows to exhaust memory.
    models::refmodel().write(&path);
    assert!(
        File::open(&path)
            .err()
            .unwrap()
            .to_string()
            .contains("general.type")
    );
    write(&path, &sound, &[mean(2)]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(18)
        .position(|w| w == b"covariance.columns")
        .unwrap()
        + 18
        + 4;
    let mut lying = bytes.clone();
    lying[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&path, lying).unwrap();
    let (found, largest) = allocation::largest(|| File::open(&path).map(|_| ()));
    assert!(found.is_err() && largest < 1 << 16, "{largest}");
    // An index with paths.
    for name in ["../a.gguf", "/a.gguf", "", ".hidden", "b\\a.gguf"] {
        Index {
            key: [9; 32],
            files: vec![(name.into(), "x".into())],
        }
        .write(dir.path())
        .unwrap();
        assert!(
            Index::read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("covariance.files"),
            "{name}"
        );
    }
    let tiny =
        crate::support::gguf::Tiny::default().set("general.type", Value::str("covariance-index"));
    tiny.write(&dir.path().join("index.gguf"));
    assert!(
        Index::read(dir.path())
            .unwrap_err()
            .to_string()
            .contains("covariance.files")
    );
}
