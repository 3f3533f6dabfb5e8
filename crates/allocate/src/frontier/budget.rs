//! Budgets and their targets for the solver.

use super::hull::{Frontier, Point};
use super::problem::{Problem, Solution};
use crate::file_type::{self, FileType};

/// A budget of a recipe, as stated by a user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The most bits per weight, over all tensors.
    Bpw(f64),
    /// The most bytes of a file, metadata included.
    Size(u64),
    /// The smallest file with at most this predicted KL divergence in nats per token.
    Kld(f64),
    /// The smallest file of an embedding model with at most this predicted cosine distance.
    Cosine(f64),
    /// At most the tensor bytes of a preset.
    Like(FileType),
    /// The best file for a memory and a context.
    Fit {
        /// Bytes for weights, projector, KV cache and compute buffers together.
        memory: u64,
        /// Tokens of context.
        ctx: u64,
    },
}

/// A budget in the solver's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The most bytes of tensors.
    Bytes(u64),
    /// The most predicted nats per token, or the largest cosine distance.
    Nats(f64),
}

/// Facts about the file and the model for budgets.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Bytes of the file before its tensors: metadata and tensor table.
    pub header_bytes: u64,
    /// Bytes of all tensors under the preset of [`Budget::Like`].
    pub preset_bytes: Option<u64>,
    /// Bytes of the projector, which the model runs with; 0 without one.
    pub projector_bytes: u64,
    /// Memory of the running model, for [`Budget::Fit`].
    pub memory: Option<Memory>,
}

/// KV cache of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerCache {
    /// Key-value heads; 0 for a layer without a cache.
    pub kv_heads: u64,
    /// Length of a head's key.
    pub key_length: u64,
    /// Length of a head's value.
    pub value_length: u64,
    /// Tokens of the sliding window; `None` for full attention.
    pub window: Option<u64>,
}

/// Dimensions of a model's memory beside its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Cache of each layer.
    pub layers: Vec<LayerCache>,
    /// Numbers of the states that layers without a cache pass from token to token.
    pub states: u64,
    /// Tokens in the vocabulary.
    pub vocabulary: u64,
    /// Width of the hidden state.
    pub embedding: u64,
    /// Width of the widest feed-forward layer: for experts, the sum over the active ones.
    pub feed_forward: u64,
    /// Heads of queries times the length of a key: the width of the queries of a layer.
    pub queries: u64,
}

/// Batch size of llama.cpp in tokens (`n_ubatch`).
const BATCH: u64 = 512;

/// llama.cpp rounds the cells of a cache up to a multiple of this.
const CELLS: u64 = 256;

impl Memory {
    /// Bytes of the KV cache in llama.cpp's default, f16: of every layer, tokens x KV heads x (key
    /// + value) x 2; and of one sequence's states, which are f32.
    ///
    /// Tokens are rounded up to 256. A layer with a sliding window keeps the window and one batch
    /// of 512 (`llama_kv_cache_iswa`).
    pub(crate) fn kv_cache(&self, ctx: u64) -> u64 {
        let up = |tokens: u64| tokens.div_ceil(CELLS).saturating_mul(CELLS);
        let layer = |layer: &LayerCache| {
            let all = up(ctx);
            let cells = layer
                .window
                .map_or(all, |window| all.min(up(window.saturating_add(BATCH))));
            let per_token = layer
                .kv_heads
                .saturating_mul(layer.key_length.saturating_add(layer.value_length));
            cells.saturating_mul(per_token).saturating_mul(2)
        };
        let states = self.states.saturating_mul(4);
        self.layers
            .iter()
            .map(layer)
            .fold(states, u64::saturating_add)
    }

    /// An allowance for llama.cpp's compute buffers: for a batch of 512 tokens, in f32, the logits,
    /// two feed-forward activations, four hidden states, queries and attention's output, and the
    /// attention mask in f32 and f16.
    ///
    /// An upper estimate: the reference shares buffers between parts of the graph. It presumes flash
    /// attention, the reference's default; without it, add scores of 512 x ctx x heads x 4 bytes.
    pub(crate) fn compute(&self, ctx: u64) -> u64 {
        let batch = BATCH.min(ctx);
        let widths = [
            (self.vocabulary, 1),
            (self.feed_forward, 2),
            (self.embedding, 4),
            (self.queries, 2),
        ];
        let width = widths.iter().fold(0u64, |sum, (width, times)| {
            sum.saturating_add(width.saturating_mul(*times))
        });
        let activations = batch.saturating_mul(width).saturating_mul(4);
        activations.saturating_add(batch.saturating_mul(ctx).saturating_mul(4 + 2))
    }
}

/// A budget without a recipe.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// Less than the smallest recipe.
    #[error("{budget} is less than the smallest recipe takes: {range}")]
    TooSmall {
        /// The budget in words.
        budget: String,
        /// The possible range in words.
        range: String,
    },
    /// Far more than the largest recipe.
    #[error(
        "{budget} is more than the largest recipe can use: {range}; allow larger types, or ask for less"
    )]
    TooLarge {
        /// The budget in words.
        budget: String,
        /// The possible range in words.
        range: String,
    },
    /// Fewer nats than any recipe has.
    #[error(
        "{budget} is less than any recipe reaches: {range}; allow larger types, or ask for more"
    )]
    OutOfReach {
        /// The budget in words.
        budget: String,
        /// The possible range in words.
        range: String,
    },
    /// A missing fact about the file or the model.
    #[error("{budget} cannot be resolved: {missing}")]
    Unknown {
        /// The budget in words.
        budget: String,
        /// The missing fact.
        missing: &'static str,
    },
}

/// The largest recipe meets a size-like budget above it if at most this part of the budget is left
/// over: 8.5 bits, or the rounded size of the largest file, mean the largest; 12 bits are a mistake.
const LEFT_OVER: f64 = 0.01;

impl Budget {
    /// From bits per weight such as `4.25`.
    ///
    /// # Errors
    /// A text that is no number above 0.
    pub fn bpw(text: &str) -> Result<Budget, String> {
        positive(text).map(Budget::Bpw)
    }

    /// From a size such as `4.5GiB`.
    ///
    /// # Errors
    /// A text that is no size, or a size below 1 byte or above 9 PB.
    pub fn size(text: &str) -> Result<Budget, String> {
        parse_bytes(text).map(Budget::Size)
    }

    /// From nats per token such as `0.02`.
    ///
    /// # Errors
    /// A text that is no number above 0.
    pub fn kld(text: &str) -> Result<Budget, String> {
        positive(text).map(Budget::Kld)
    }

    /// From a cosine distance such as `0.001`.
    ///
    /// # Errors
    /// A text that is no number above 0.
    pub fn cosine(text: &str) -> Result<Budget, String> {
        positive(text).map(Budget::Cosine)
    }

    /// From the name of a preset such as `Q4_K_M`.
    ///
    /// # Errors
    /// An unknown name; the message lists all presets.
    pub fn like(text: &str) -> Result<Budget, String> {
        let choice = file_type::Choice::parse(text).and_then(|choice| choice.file_type);
        choice.map(Budget::Like).ok_or_else(|| {
            let names: Vec<_> = file_type::CHOICES
                .iter()
                .filter(|c| c.file_type.is_some())
                .map(|c| c.name)
                .collect();
            format!("no such preset; known are {}", names.join(", "))
        })
    }

    /// From memory such as `8GiB` and tokens of context.
    ///
    /// # Errors
    /// A text that is no size, or a size below 1 byte or above 9 PB.
    pub fn fit(memory: &str, ctx: u64) -> Result<Budget, String> {
        Ok(Budget::Fit {
            memory: parse_bytes(memory)?,
            ctx,
        })
    }

    /// The target for the solver.
    ///
    /// Memory is a limit, not a target: more than the model can use is accepted, as are more nats
    /// than those of the smallest recipe.
    ///
    /// # Errors
    /// As [`Budget::solve`].
    pub(crate) fn target(
        &self,
        problem: &Problem,
        frontier: &Frontier,
        around: &Surroundings,
    ) -> Result<Target, BudgetError> {
        let (smallest, largest) = (frontier.smallest(), frontier.largest());
        let budget = self.to_string();
        let unknown = |missing| BudgetError::Unknown {
            budget: budget.clone(),
            missing,
        };
        let (bytes, overhead, is_size) = match *self {
            Budget::Kld(most) | Budget::Cosine(most) if most < largest.nats => {
                let unit = match self {
                    Budget::Cosine(_) => "",
                    _ => " nats",
                };
                let range = format!(
                    "{:.6}{unit} at {}",
                    largest.nats,
                    bytes_and_bpw(problem, largest, 0)
                );
                return Err(BudgetError::OutOfReach { budget, range });
            }
            Budget::Kld(most) | Budget::Cosine(most) => return Ok(Target::Nats(most)),
            Budget::Bpw(bpw) => ((bpw * problem.weights() as f64 / 8.0) as u64, 0, true),
            Budget::Size(bytes) => (bytes, around.header_bytes, true),
            Budget::Like(_) => (
                around
                    .preset_bytes
                    .ok_or_else(|| unknown("the size of that preset is not known"))?,
                0,
                true,
            ),
            Budget::Fit { memory, ctx } => {
                let model = around
                    .memory
                    .as_ref()
                    .ok_or_else(|| unknown("what the model needs to run is not known"))?;
                let needs = model.kv_cache(ctx).saturating_add(model.compute(ctx));
                let files = around.header_bytes.saturating_add(around.projector_bytes);
                (memory, needs.saturating_add(files), false)
            }
        };
        let range = || {
            let [from, to] =
                [smallest, largest].map(|point| bytes_and_bpw(problem, point, overhead));
            let of_it = match (overhead, is_size) {
                (0, _) => String::new(),
                (_, true) => format!(", {overhead} bytes of metadata included"),
                (_, false) => {
                    let projector = match around.projector_bytes {
                        0 => "",
                        _ => "projector, ",
                    };
                    format!(
                        ", {overhead} bytes of {projector}KV cache, compute buffers and metadata included"
                    )
                }
            };
            format!("recipes take {from} to {to}{of_it}")
        };
        let of_tensors = bytes.saturating_sub(overhead);
        if bytes < overhead || of_tensors < smallest.bytes {
            return Err(BudgetError::TooSmall {
                budget,
                range: range(),
            });
        }
        // Larger than the largest of the frontier are recipes that lose no less.
        let most = problem.most_bytes();
        if is_size && of_tensors.saturating_sub(most) as f64 > LEFT_OVER * bytes as f64 {
            return Err(BudgetError::TooLarge {
                budget,
                range: range(),
            });
        }
        Ok(Target::Bytes(of_tensors))
    }

    /// The best recipe within the budget.
    ///
    /// # Errors
    /// A budget below the smallest recipe, a size well above that of the largest types, nats below the
    /// fewest possible, a fact missing in `around`.
    pub fn solve(
        &self,
        problem: &Problem,
        frontier: &Frontier,
        around: &Surroundings,
    ) -> Result<Solution, BudgetError> {
        let solution = match self.target(problem, frontier, around)? {
            Target::Bytes(bytes) => frontier.at_most(bytes),
            Target::Nats(nats) => frontier.for_nats(nats),
        };
        // `target` has checked that a recipe exists.
        Ok(solution.unwrap_or_else(|| frontier.after(0)))
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Budget::Bpw(bpw) => write!(f, "{bpw} bits per weight"),
            Budget::Size(bytes) => write!(f, "a file of {bytes} bytes"),
            Budget::Kld(nats) => write!(f, "a KL divergence of {nats} nats"),
            Budget::Cosine(distance) => write!(f, "a cosine distance of {distance}"),
            Budget::Like(preset) => write!(f, "the size of {}", preset.name()),
            Budget::Fit { memory, ctx } => write!(f, "memory of {memory} bytes for {ctx} tokens"),
        }
    }
}

fn bytes_and_bpw(problem: &Problem, point: Point, overhead: u64) -> String {
    format!(
        "{} bytes ({:.3} bpw)",
        point.bytes.saturating_add(overhead),
        problem.bpw(point.bytes)
    )
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| format!("'{text}' is not a number above 0"))
}

/// Units of bytes; a unit precedes its suffixes.
const UNITS: &[(&str, u64)] = &[
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("b", 1),
    ("", 1),
];

/// Parses a size: `4.5GiB` (powers of 1024), `4.5GB` or `4.5G` (powers of 1000), or a plain number,
/// in any case. Fractions of a byte are dropped.
///
/// # Errors
/// A text that is no size, or a size below 1 byte or above 9 PB.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?.trim_end(), *factor)))
        .unwrap_or((&*lower, 1));
    let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bytes = number
        .parse::<f64>()
        .ok()
        .filter(|_| digits)
        .map(|n| n * factor as f64);
    // Doubles above 2^53 are not exact, and no file is that large.
    match bytes.filter(|b| (1.0..=9.0e15).contains(b)) {
        Some(bytes) => Ok(bytes as u64),
        None => Err(format!(
            "'{text}' is not a size such as 4.5GiB, 4500MB or 4500000000"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::{Choice, Item};
    use quantier_arch::Role;
    use quantier_blocks::types::GgmlType;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("4.5GiB", 4_831_838_208),
            ("4.5 gib", 4_831_838_208),
            ("4.5GB", 4_500_000_000),
            ("4500MB", 4_500_000_000),
            ("4500M", 4_500_000_000),
            ("1kib", 1024),
            ("123456", 123_456),
            ("123456B", 123_456),
            ("0.0000015MB", 1),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "GiB",
            "-1",
            "0",
            "nan",
            "inf",
            "1e3",
            "4.5XB",
            "4,5GB",
            "99999999999TB",
            "1 2",
            ".",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!(Budget::bpw(" 4.25"), Ok(Budget::Bpw(4.25)));
        assert!(
            Budget::bpw("0").is_err()
                && Budget::kld("-0.1").is_err()
                && Budget::kld("NaN").is_err()
        );
        assert_eq!(Budget::like("q4_k_m"), Ok(Budget::Like(FileType::Q4_K_M)));
        assert!(Budget::like("COPY").unwrap_err().contains("Q4_K_M"));
        assert_eq!(
            Budget::fit("8GiB", 8192),
            Ok(Budget::Fit {
                memory: 8 << 30,
                ctx: 8192
            })
        );
    }

    /// A thousand weights in Q4_0-like 500 bytes or Q8_0-like 1000, and 100 bytes that stay.
    fn problem() -> Problem {
        let choice = |ggml_type, bytes, nats| Choice {
            ggml_type,
            bytes,
            nats,
        };
        let choices = vec![
            choice(GgmlType::Q4_0, 500, 0.5),
            choice(GgmlType::Q8_0, 1000, 0.01),
        ];
        let item = Item {
            name: "blk.0.ffn_up.weight".into(),
            role: Role::FfnUp,
            row_len: 100,
            weights: 1000,
            choices,
        };
        Problem {
            items: vec![item],
            fixed_bytes: 100,
            fixed_weights: 25,
        }
    }

    fn target(budget: Budget, around: &Surroundings) -> Result<Target, BudgetError> {
        let problem = problem();
        budget.target(&problem, &Frontier::of(&problem).unwrap(), around)
    }

    #[test]
    fn every_budget_becomes_bytes_of_tensors_or_nats() {
        let around = Surroundings {
            header_bytes: 50,
            preset_bytes: Some(700),
            projector_bytes: 30,
            memory: Some(Memory {
                layers: vec![LayerCache {
                    kv_heads: 1,
                    key_length: 1,
                    value_length: 1,
                    window: None,
                }],
                ..Memory::default()
            }),
        };
        // 256 cells x 2 numbers x 2 bytes, and a mask of 10 x 10 x 6.
        let needs = 1024 + 600;
        for (budget, bytes) in [
            (Budget::Bpw(5.0), 5 * 1025 / 8),
            (Budget::Size(850), 800),
            (Budget::Like(FileType::Q4_K_M), 700),
            (
                Budget::Fit {
                    memory: needs + 50 + 30 + 720,
                    ctx: 10,
                },
                720,
            ),
        ] {
            assert_eq!(
                target(budget, &around),
                Ok(Target::Bytes(bytes)),
                "{budget}"
            );
        }
        assert_eq!(target(Budget::Kld(0.02), &around), Ok(Target::Nats(0.02)));
        assert_eq!(
            target(Budget::Kld(7.0), &around),
            Ok(Target::Nats(7.0)),
            "the smallest recipe is good enough"
        );
        let solution = Budget::Kld(0.02)
            .solve(&problem(), &Frontier::of(&problem()).unwrap(), &around)
            .unwrap();
        assert_eq!((solution.bytes, solution.choices), (1100, vec![1]));
    }

    #[test]
    fn budgets_out_of_range_name_both_bounds() {
        let around = Surroundings {
            header_bytes: 50,
            memory: Some(Memory::default()),
            ..Surroundings::default()
        };
        for budget in [
            Budget::Bpw(1.0),
            Budget::Size(649),
            Budget::Size(20),
            Budget::Fit {
                memory: 649,
                ctx: 1,
            },
            Budget::Fit {
                memory: 1,
                ctx: 8192,
            },
        ] {
            let error = target(budget, &around).unwrap_err();
            assert!(matches!(error, BudgetError::TooSmall { .. }), "{error}");
        }
        let message = target(Budget::Size(649), &around).unwrap_err().to_string();
        for part in [
            "649 bytes",
            "650 bytes (4.683 bpw) to 1150 bytes (8.585 bpw)",
            "50 bytes of metadata",
        ] {
            assert!(message.contains(part), "{message}");
        }
        for budget in [Budget::Bpw(12.0), Budget::Size(1200)] {
            let message = target(budget, &around).unwrap_err().to_string();
            assert!(message.contains("more than the largest"), "{message}");
        }
        // The largest recipe as people round it, and memory to spare.
        for budget in [
            Budget::Bpw(8.6),
            Budget::Size(1155),
            Budget::Fit {
                memory: 1 << 40,
                ctx: 4096,
            },
        ] {
            assert!(target(budget, &around).is_ok(), "{budget}");
        }
        let message = target(Budget::Cosine(0.001), &around)
            .unwrap_err()
            .to_string();
        assert!(message.contains("a cosine distance of 0.001"), "{message}");
        let message = target(Budget::Kld(0.001), &around).unwrap_err().to_string();
        assert!(message.contains("0.010000 nats at 1100 bytes"), "{message}");
        assert!(matches!(
            target(Budget::Like(FileType::Q2_K), &around),
            Err(BudgetError::Unknown { .. })
        ));
    }

    #[test]
    fn a_cache_is_counted_as_llama_cpp_allocates_it() {
        let full = LayerCache {
            kv_heads: 4,
            key_length: 128,
            value_length: 64,
            window: None,
        };
        let sliding = LayerCache {
            window: Some(1000),
            ..full
        };
        let memory = |layer| Memory {
            layers: vec![layer; 3],
            ..Memory::default()
        };
        assert_eq!(memory(full).kv_cache(8192), 3 * 8192 * 4 * 192 * 2);
        let with_states = Memory {
            states: 1000,
            ..memory(full)
        };
        assert_eq!(
            with_states.kv_cache(8192),
            memory(full).kv_cache(8192) + 4000
        );
        assert_eq!(
            memory(full).kv_cache(8193),
            3 * 8448 * 4 * 192 * 2,
            "cells come in blocks of 256"
        );
        assert_eq!(
            memory(sliding).kv_cache(8192),
            3 * 1536 * 4 * 192 * 2,
            "1000 + 512, rounded up"
        );
        assert_eq!(
            memory(sliding).kv_cache(512),
            3 * 512 * 4 * 192 * 2,
            "a window is no larger than the context"
        );
        assert_eq!(
            memory(full).kv_cache(u64::MAX),
            u64::MAX,
            "absurd numbers end in an absurd budget"
        );
    }
}
