//! The fuzzers start from these files. They are what our writer writes; a stale one fails here.

mod support;

use std::path::Path;
use support::gguf::{dat, everything, imatrix, small};

#[test]
fn the_seeds_are_current() {
    let seeds = [
        ("gguf/everything.gguf", everything().bytes()),
        ("gguf/small.gguf", small().bytes()),
        ("gguf/imatrix.gguf", imatrix().bytes()),
        ("imatrix/imatrix.gguf", imatrix().bytes()),
        ("imatrix/imatrix.dat", dat(&[("a.weight", 4, &[1.0, 2.0, 0.0, 0.5]), ("b.weight", 1, &[3.0; 8])])),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, bytes) in seeds {
        let path = dir.join(name);
        if std::env::var_os("QUANTIER_RENEW").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let now = std::fs::read(&path).unwrap_or_default();
        assert!(now == bytes, "{name} is stale: QUANTIER_RENEW=1 cargo test --test fuzz_seeds");
    }
}
