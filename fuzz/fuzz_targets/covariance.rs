//! Any bytes as a file of Hessians, and as the index of their directory: errors, or finite numbers
//! in the stated amounts.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use quantier_gguf::hessian::{File, INDEX, Index, Part, triangle};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The bytes as a file, with an index that lists it.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| scratch::directory("covariance-file"));
/// The bytes as an index, beside valid files.
static INDEXED: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch::directory("covariance-index");
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/covariance");
    for name in ["plain.gguf", "experts.gguf"] {
        std::fs::copy(seeds.join(name), dir.join(name)).expect("a seed");
    }
    dir
});

fuzz_target!(|bytes: &[u8]| {
    let path = FILE.join("a.gguf");
    std::fs::write(&path, bytes).expect("write");
    if let Ok(file) = File::open(&path) {
        read(&file);
        let files = vec![("a.gguf".into(), file.checksum().to_owned())];
        Index {
            key: file.head().key,
            files,
        }
        .write(&FILE)
        .expect("write");
        assert!(Index::read(&FILE).is_ok());
    }
    std::fs::write(INDEXED.join(INDEX), bytes).expect("write");
    let _ = Index::read(&INDEXED);
});

/// Reads every part of a file.
fn read(file: &File) {
    let head = file.head();
    assert!(head.columns > 0 && !head.rows.is_empty() && !head.tensors.is_empty());
    assert!(file.has(Part::Mean(None)));
    for matrix in std::iter::once(None).chain((0..head.rows.len()).map(Some)) {
        if let Ok(Some(mean)) = file.read(Part::Mean(matrix)) {
            assert_eq!(mean.len(), triangle(head.columns));
            assert!(mean.iter().all(|x| x.is_finite()));
        }
        if let Ok(Some(sample)) = file.read(Part::Sample(matrix)) {
            assert!(
                sample.len().is_multiple_of(head.columns) && sample.iter().all(|x| x.is_finite())
            );
        }
    }
}
