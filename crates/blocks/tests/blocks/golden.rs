//! Every block format against bytes written by the real ggml, stored in `testdata/blocks.golden`.
//!
//! The file has no weights: they are regenerated from the seed. It is a list of cases, each a line
//! of text followed by bytes:
//! each a line of text and the bytes that follow it:
//!
//! ```text
//! <type> <kind of weights> <kind of importance weights> <seed> <weights in the row> <bytes>\n
//! <the bytes of the row; none if ggml aborts>
//! ```
//!
//! Renewed only from the reference: `scripts/goldens.sh`.

use crate::ggml::Ggml;
use crate::inputs::{Importance, Weights};
use quantier_blocks::Codec;
use quantier_core::rng::Rng;
use std::path::{Path, PathBuf};

const RENEW: &str = "to renew it from the real ggml, run scripts/goldens.sh";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/blocks.golden")
}

/// Parameters of one row.
struct Case {
    codec: &'static Codec,
    weights: Weights,
    importance: Importance,
    seed: u64,
    row_len: usize,
}

impl Case {
    /// Every type with every kind of weights, without importance weights and with one kind of them.
    fn all() -> Vec<Case> {
        let weighted = &Importance::ALL[1..];
        let mut cases = Vec::new();
        for codec in Codec::all() {
            // Short rows keep the file small; several blocks cover row-level statistics.
            let row_len = match codec.ggml_type.block_len() {
                1 => 32,
                len @ 2..256 => 3 * len,
                len => 2 * len,
            };
            for (seed, weights) in (0..).zip(Weights::ALL) {
                for importance in [Importance::None, weighted[seed as usize % weighted.len()]] {
                    if importance != Importance::None || !codec.needs_importance {
                        cases.push(Case {
                            codec,
                            weights,
                            importance,
                            seed,
                            row_len,
                        });
                    }
                }
            }
        }
        cases
    }

    fn row_bytes(&self) -> usize {
        self.codec.ggml_type.row_bytes(self.row_len as u64).unwrap() as usize
    }

    /// The text line before the row's bytes, without their count.
    fn line(&self) -> String {
        let Case {
            weights,
            importance,
            seed,
            row_len,
            ..
        } = self;
        format!(
            "{} {weights:?} {importance:?} {seed} {row_len}",
            self.codec.ggml_type
        )
    }

    fn inputs(&self) -> (Vec<f32>, Option<Vec<f32>>) {
        let mut rng = Rng::new(self.seed);
        let mut weights = vec![0.0; self.row_len];
        self.weights.fill(&mut rng, &mut weights);
        let importance = self.importance.make(&mut rng, self.row_len);
        (weights, importance)
    }
}

#[test]
fn blocks_match_the_golden_file() {
    let path = path();
    let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; {RENEW}", path.display()));
    let mut rest = file.as_slice();
    for case in Case::all() {
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = String::from_utf8_lossy(&rest[..end]);
        let bytes = line
            .strip_prefix(&case.line())
            .and_then(|bytes| bytes.trim_start().parse::<usize>().ok());
        let bytes = bytes.filter(|&bytes| bytes == 0 || bytes == case.row_bytes());
        let bytes = bytes.unwrap_or_else(|| {
            panic!(
                "{}: '{line}' stands for '{}'; {RENEW}",
                path.display(),
                case.line()
            )
        });
        let (golden, after) = rest
            .get(end + 1..)
            .unwrap_or_default()
            .split_at_checked(bytes)
            .unwrap_or_else(|| panic!("{} ends within {line}; {RENEW}", path.display()));
        rest = after;

        let (weights, importance) = case.inputs();
        let mut ours = vec![0xa5; case.row_bytes()];
        case.codec
            .quantize_row(&weights, importance.as_deref(), &mut ours);
        // The sign of a NaN scale depends on the processor, and such a block never reaches a file:
        // only the fault itself must be the same on other processors.
        let fault = case.codec.first_fault(golden);
        if !cfg!(target_arch = "x86_64") && fault.is_some() {
            assert_eq!(case.codec.first_fault(&ours), fault, "{line}");
            continue;
        }
        if let Some(at) = ours.iter().zip(golden).position(|(a, b)| a != b) {
            let size = case.codec.ggml_type.block_bytes();
            let (block, byte) = (at / size, at % size);
            panic!(
                "{line}: block {block}, byte {byte}: {:#04x}, ggml's is {:#04x}",
                ours[at], golden[at]
            );
        }
    }
    assert!(
        rest.is_empty(),
        "{} holds more cases than this test; {RENEW}",
        path.display()
    );
}

/// Writes the file; `scripts/goldens.sh` sets `QUANTIER_WRITE_GOLDENS`.
#[test]
#[ignore = "writes testdata/blocks.golden from the reference: use scripts/goldens.sh"]
fn write_goldens() {
    if std::env::var_os("QUANTIER_WRITE_GOLDENS").is_none() {
        return;
    }
    let ggml = Ggml::load();
    let mut file = Vec::new();
    for case in Case::all() {
        let (weights, importance) = case.inputs();
        let row = ggml
            .quantize(
                case.codec.ggml_type,
                &weights,
                case.row_len,
                importance.as_deref(),
            )
            .unwrap_or_default();
        file.extend_from_slice(format!("{} {}\n", case.line(), row.len()).as_bytes());
        file.extend(row);
    }
    let path = path();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    println!(
        "{}: {} cases, {} bytes",
        path.display(),
        Case::all().len(),
        file.len()
    );
}
