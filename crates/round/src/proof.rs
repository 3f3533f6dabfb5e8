//! The proof of a rounding: its errors on held-out inputs, which its Hessian does not contain.

use quantier_gguf::types::GgmlType;
use serde::{Deserialize, Serialize};

/// Errors of the products of rounded rows with held-out inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Sum of the squared errors of the reference's rounding.
    pub reference: f64,
    /// Sum of the squared errors of the chosen rounding.
    pub taken: f64,
    /// Both sums with all held-out inputs scaled to one power: a few tokens with massive activations,
    /// which hardly change what follows, do not decide them. Of one-sided rounding only.
    #[serde(skip)]
    pub even: [f64; 2],
    /// Sum of the squares of the exact products.
    pub power: f64,
    /// Number of rounded rows.
    pub rows: u64,
    /// Number of rows for which the reference's rounding was chosen, because its error was smaller.
    pub by_reference: u64,
}

impl Proof {
    /// The proof of rows without held-out inputs.
    pub(crate) fn unjudged(rows: usize) -> Proof {
        Proof {
            rows: rows as u64,
            ..Proof::default()
        }
    }

    /// Adds the proof of more rows.
    pub fn add(&mut self, other: &Proof) {
        self.reference += other.reference;
        self.taken += other.taken;
        self.even[0] += other.even[0];
        self.even[1] += other.even[1];
        self.power += other.power;
        self.rows += other.rows;
        self.by_reference += other.by_reference;
    }

    /// Error relative to the reference's; `None` without feedback or held-out inputs.
    pub fn ratio(&self) -> Option<f64> {
        (self.reference > 0.0).then(|| self.taken / self.reference)
    }
}

/// Geometric mean, minimum and maximum of ratios; `None` without ratios.
pub fn spread(ratios: &[f64]) -> Option<[f64; 3]> {
    let logarithms = ratios.iter().map(|r| r.max(f64::MIN_POSITIVE).ln());
    let mean = (logarithms.sum::<f64>() / ratios.len() as f64).exp();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    (!ratios.is_empty()).then_some([mean, least, most])
}

/// The proof of one tensor in one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorProof {
    /// The tensor's name in the output.
    pub tensor: String,
    /// Its type in the output.
    #[serde(rename = "type")]
    pub ggml_type: GgmlType,
    /// The proof.
    #[serde(flatten)]
    pub proof: Proof,
}
