//! Rows of weights and importance weights, each kind with a reason.

use quantier_core::rng::Rng;

/// Kinds of rows of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Resembles a trained matrix.
    Gaussian,
    /// Scale searches with a wide spread.
    Heavy,
    /// One weight determines the scale, the others fall on the lowest levels.
    Outlier,
    /// Division by a scale of zero.
    Zeros,
    /// All sub-blocks alike: zero range, ties everywhere.
    Constant,
    /// Subnormal numbers, and scales that vanish in f16.
    Tiny,
    /// Scales near and beyond the largest f16.
    Huge,
    /// Equal magnitudes with alternating signs: ties between the positive and the negative extreme.
    Alternating,
    /// Multiples of a half step: every rounding is a tie.
    Ties,
    /// Zero blocks between non-zero blocks, and single non-zero weights.
    Sparse,
    /// Only one sign: offsets, and sign parity.
    Positive,
    /// Zeros of both signs, and a few positive numbers: offsets show which zero is the lowest.
    SignedZeros,
}

impl Weights {
    pub const ALL: [Weights; 12] = [
        Weights::Gaussian,
        Weights::Heavy,
        Weights::Outlier,
        Weights::Zeros,
        Weights::Constant,
        Weights::Tiny,
        Weights::Huge,
        Weights::Alternating,
        Weights::Ties,
        Weights::Sparse,
        Weights::Positive,
        Weights::SignedZeros,
    ];

    pub fn fill(self, rng: &mut Rng, row: &mut [f32]) {
        let n = row.len() as u64;
        let scale = [0.02, 1.0, 37.5][rng.below(3) as usize];
        let step = [0.5, 0.25, 0.125, 1.0][rng.below(4) as usize];
        let constant = rng.gaussian();
        let outlier = rng.below(n) as usize;
        let exponent = rng.below(70) as i32;
        for (i, w) in row.iter_mut().enumerate() {
            *w = match self {
                Weights::Gaussian => rng.gaussian() * scale,
                Weights::Heavy => rng.heavy() * scale,
                Weights::Outlier if i == outlier => 1000.0 * scale,
                Weights::Outlier => rng.gaussian() * scale,
                Weights::Zeros => 0.0,
                Weights::Constant => constant,
                Weights::Tiny => f32::from_bits(rng.below(1 << 23) as u32) * (rng.uniform() - 0.5),
                Weights::Huge => rng.gaussian() * 1.0e3 * 2.0f32.powi(exponent),
                Weights::Alternating => {
                    if i % 2 == 0 {
                        scale
                    } else {
                        -scale
                    }
                }
                Weights::Ties => (rng.below(33) as f32 - 16.0) * step,
                Weights::Sparse => match rng.below(40) {
                    0 => rng.gaussian(),
                    _ if (i / 32) % 3 == 1 => rng.gaussian() * scale,
                    _ => 0.0,
                },
                Weights::Positive => rng.uniform() * scale,
                Weights::SignedZeros => match rng.below(8) {
                    0 => rng.uniform(),
                    n if n % 2 == 0 => -0.0,
                    _ => 0.0,
                },
            };
        }
    }
}

/// Kinds of importance weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    None,
    /// All ones, which still take the weighted path.
    Ones,
    Uniform,
    /// Squares of heavy-tailed numbers, like those of outlier channels.
    Heavy,
    /// Some channels without activations.
    PartlyZero,
    /// Whole blocks without activations.
    BlocksOfZero,
}

impl Importance {
    pub const ALL: [Importance; 6] = [
        Importance::None,
        Importance::Ones,
        Importance::Uniform,
        Importance::Heavy,
        Importance::PartlyZero,
        Importance::BlocksOfZero,
    ];

    pub fn make(self, rng: &mut Rng, len: usize) -> Option<Vec<f32>> {
        let mut one = |i: usize| match self {
            Importance::None | Importance::Ones => 1.0,
            Importance::Uniform => rng.uniform(),
            Importance::Heavy => {
                let x = rng.heavy();
                x * x
            }
            Importance::PartlyZero => {
                if rng.below(3) == 0 {
                    0.0
                } else {
                    rng.uniform()
                }
            }
            Importance::BlocksOfZero => {
                if (i / 32).is_multiple_of(2) {
                    0.0
                } else {
                    rng.uniform()
                }
            }
        };
        (self != Importance::None).then(|| (0..len).map(&mut one).collect())
    }
}
