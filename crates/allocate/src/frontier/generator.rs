//! Problems to test the solver on, and two simple solvers that are right by inspection.

use super::{Choice, Item, Problem};
use quantier_arch::Role;
use quantier_blocks::types::GgmlType;
use quantier_core::rng::Rng;

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model's tensors; nats fall by a factor of four per bit, give or take.
    Model,
    /// So few items that prefixes are far apart.
    Few,
    /// One item of about as many bytes as all others together: a step that often does not fit.
    OneHuge,
    /// A byte buys the same everywhere: nothing is left for the order of steps to tell.
    EqualSlopes,
    /// Types far above the hull of their item, of use only to fill.
    NonConvex,
}

pub(crate) const KINDS: [Kind; 5] = [
    Kind::Model,
    Kind::Few,
    Kind::OneHuge,
    Kind::EqualSlopes,
    Kind::NonConvex,
];

/// Evenly in the logarithm between 1 / factor and factor.
fn around_one(rng: &mut Rng, factor: f64) -> f64 {
    factor.powf(2.0 * rng.uniform_f64() - 1.0)
}

/// The types that llama.cpp quantizes to, plain floats included.
pub(crate) fn types() -> Vec<GgmlType> {
    let not_written = [
        GgmlType::F32,
        GgmlType::F64,
        GgmlType::Q8_1,
        GgmlType::Q8_K,
        GgmlType::NVFP4,
    ];
    GgmlType::all()
        .filter(|t| !not_written.contains(t) && (t.is_quantized() || t.bpw() == 16.0))
        .collect()
}

/// A problem with so many items, each of 1 to 16 rows of 256 weights, and `kind`'s difficulty.
pub(crate) fn problem(kind: Kind, items: usize, random: &mut Rng) -> Problem {
    let items = if kind == Kind::Few {
        items.min(3)
    } else {
        items
    };
    let mut rows: Vec<u64> = (0..items).map(|_| 1 + random.below(16)).collect();
    if kind == Kind::OneHuge {
        rows[0] = rows[1..].iter().sum::<u64>() + 3;
    }
    let item =
        |(i, &rows): (usize, &u64)| item(kind, &format!("blk.{i}.ffn_up.weight"), rows, random);
    Problem {
        items: rows.iter().enumerate().map(item).collect(),
        fixed_bytes: 1024,
        fixed_weights: 256,
    }
}

pub(crate) fn item(kind: Kind, name: &str, rows: u64, random: &mut Rng) -> Item {
    let matters = around_one(random, 10.0);
    let mut types = types();
    random.shuffle(&mut types);
    if kind != Kind::Model {
        types.truncate(3 + random.below(6) as usize);
    }
    let choice = |t: &GgmlType| {
        let bytes = rows * t.row_bytes(256).unwrap();
        let nats = match kind {
            // 17 bits is more than any type has, so that nats stay above 0.
            Kind::EqualSlopes => 1e-3 * (17.0 - t.bpw()) * rows as f64,
            // A square root is concave: only the ends are on the hull.
            Kind::NonConvex => {
                matters * (17.0 - t.bpw()).sqrt() * rows as f64 * around_one(random, 1.2)
            }
            _ => matters * 0.25f64.powf(t.bpw()) * rows as f64 * around_one(random, 2.0),
        };
        Choice {
            ggml_type: *t,
            bytes,
            nats,
        }
    };
    let choices = types.iter().map(choice).collect();
    Item {
        name: name.into(),
        role: Role::Other,
        row_len: 256,
        weights: 256 * rows,
        choices,
    }
}

/// The fewest nats at every even number of bytes up to a limit, index 1 for 2 bytes; infinite where
/// nothing fits.
///
/// Dynamic programming over bytes, one item after the other. Every block of every type has an even
/// number of bytes per 256 weights.
pub(crate) fn by_bytes(problem: &Problem, limit: u64) -> Vec<f64> {
    let mut fewest = vec![f64::INFINITY; (limit / 2 + 1) as usize];
    fewest[(problem.fixed_bytes / 2) as usize..].fill(0.0);
    for item in &problem.items {
        let mut next = vec![f64::INFINITY; fewest.len()];
        for choice in &item.choices {
            assert!(choice.bytes.is_multiple_of(2));
            let shift = (choice.bytes / 2) as usize;
            for (to, from) in next.iter_mut().skip(shift).zip(&fewest) {
                *to = to.min(from + choice.nats);
            }
        }
        fewest = next;
    }
    fewest
}

/// The fewest nats within so many bytes, of all recipes there are.
pub(crate) fn brute_force(problem: &Problem, bytes: u64) -> f64 {
    fn walk(items: &[Item], room: i64) -> f64 {
        let Some((item, rest)) = items.split_first() else {
            return if room < 0 { f64::INFINITY } else { 0.0 };
        };
        let with = |c: &Choice| c.nats + walk(rest, room - c.bytes as i64);
        item.choices.iter().map(with).fold(f64::INFINITY, f64::min)
    }
    walk(&problem.items, bytes as i64 - problem.fixed_bytes as i64)
}
