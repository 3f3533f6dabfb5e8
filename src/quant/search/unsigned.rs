//! Levels above zero.

use super::{ROUNDS, VANISHING};
use crate::quant::num::{max, nearest_int};

/// Levels `0 ..= MAX` with `x ~ scale * level`.
///
/// A negative `x`, which only rounding errors bring about, gives a level below zero, wrapped into a byte.
pub(in crate::quant) struct Unsigned<const N: usize> {
    pub(in crate::quant) scale: f32,
    pub(in crate::quant) levels: [u8; N],
}

/// Searches an [`Unsigned`] scale: first among nine that put the largest `x` on `MAX` or beside it, then by moving
/// one level at a time. `w` says what the error of each `x` counts (ggml's `make_qp_quants`).
pub(in crate::quant) fn unsigned<const N: usize, const MAX: i32>(x: &[f32; N], w: &[f32; N]) -> Unsigned<N> {
    /// Candidates on either side, and how far apart they lie, in levels.
    const REACH: i32 = 4;
    const STEP: f32 = 0.1;

    let largest = x.iter().fold(0.0, |largest, &v| max(largest, v));
    if largest < VANISHING {
        return Unsigned { scale: 0.0, levels: [0; N] };
    }
    let error_of = |scale: f32, level: &dyn Fn(f32) -> i32| {
        let mut error = 0.0;
        for (&v, &w) in x.iter().zip(w) {
            let difference = v - scale * level(v) as f32;
            error += w * difference * difference;
        }
        error
    };

    let mut inverse = MAX as f32 / largest;
    // The first candidate is judged by levels that went through a byte unclamped.
    let mut best_error = error_of(1.0 / inverse, &|v| i32::from(nearest_int(inverse * v) as u8));
    for offset in (-REACH..=REACH).filter(|&offset| offset != 0) {
        let candidate = (STEP * offset as f32 + MAX as f32) / largest;
        let error = error_of(1.0 / candidate, &|v| nearest_int(candidate * v).min(MAX));
        if error < best_error {
            best_error = error;
            inverse = candidate;
        }
    }

    let mut levels = [0u8; N];
    let (mut xl, mut ll) = (0.0, 0.0);
    for ((level, &v), &w) in levels.iter_mut().zip(x).zip(w) {
        let nearest = nearest_int(inverse * v).min(MAX);
        *level = nearest as u8;
        let l = nearest as f32;
        xl += w * v * l;
        ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for ((level, &v), &w) in levels.iter_mut().zip(x).zip(w) {
            let l = f32::from(*level);
            let (rest_xl, rest_ll) = (xl - w * v * l, ll - w * l * l);
            if rest_xl > 0.0 && rest_ll > 0.0 {
                let moved = nearest_int(v * rest_ll / rest_xl).min(MAX);
                if moved != i32::from(*level) {
                    let l = moved as f32;
                    let (new_xl, new_ll) = (rest_xl + w * v * l, rest_ll + w * l * l);
                    if new_xl * new_xl * ll > xl * xl * new_ll {
                        (*level, xl, ll) = (moved as u8, new_xl, new_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    Unsigned { scale: if ll > 0.0 { xl / ll } else { 0.0 }, levels }
}
