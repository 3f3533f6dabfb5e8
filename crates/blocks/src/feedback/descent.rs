//! Coordinate descent after rounding: codes change one by one while the cost of all errors falls.
//!
//! Error feedback never looks back: the code of a column is chosen before the errors of later columns
//! are known. With all codes chosen, the cost `e^T H e` of a row's errors `e` has the slope `H e`
//! (half its gradient). The best change of weight `j` alone is `-slope[j] / H[j][j]`, and of a group of
//! eight `-H_g^-1 slope_g`; the code nearest to it in the metric of `H` is taken if it is another
//! (Nair and Suggala 2024, for even grids).

use super::pointed::{Choice, Pointed, Under, nearest_choices, search_group};
use super::recode::recode_stepped;
use super::stepped::{Grid, Stepped};
use super::{LONGEST, Metric};
use crate::simd::{Isa, Kernel, Simd};
use crate::vector::{add_scaled, vectorized};

/// The input Hessian among the columns of a block.
#[derive(Clone, Copy)]
pub struct Curvature<'a> {
    /// Row `j` from the block's first column on.
    pub rows: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// The Hessian among each group of eight columns.
    pub groups: &'a [Metric],
}

impl Curvature<'_> {
    #[inline(always)]
    fn row(&self, j: usize, len: usize) -> &[f32] {
        &self.rows[j * self.stride..][..len]
    }
}

/// A rounded block of one row.
pub struct Rounded<'a> {
    /// Its dequantized weights.
    pub values: &'a mut [f32],
    /// The errors of the whole row, rounded minus target, times the Hessian, at the block's columns.
    pub slopes: &'a mut [f32],
    /// Its bytes.
    pub block: &'a mut [u8],
}

/// [`Codec::descend`](crate::Codec::descend) of one type.
pub(crate) type Descend = fn(Isa, Curvature<'_>, Rounded<'_>) -> bool;

/// [`Descend`] for a stepped type.
pub(crate) fn descend_stepped<B: Stepped<N>, const N: usize>(
    isa: Isa,
    curvature: Curvature<'_>,
    Rounded {
        values,
        slopes,
        block: bytes,
    }: Rounded<'_>,
) -> bool {
    let [block] = bytemuck::cast_slice::<u8, B>(bytes) else {
        return false;
    };
    let block = *block;
    let spacing = match B::GRID {
        Grid::Even { .. } => 1.0,
        Grid::Table(table) => table.narrowest(),
    };
    let mut any = false;
    for sub in 0..N / B::SUB {
        let (step, base, first) = (block.step(sub), block.base(sub), sub * B::SUB);
        if step.abs() < f32::MIN_POSITIVE {
            continue;
        }
        let inverse = 1.0 / step;
        let value_at = |x: f32| {
            let steps = (x - base) * inverse;
            match B::GRID {
                Grid::Even { top } => {
                    let level = (steps.clamp(0.0, f32::from(top)) + 0.5) as u8;
                    base + step * f32::from(level)
                }
                Grid::Table(table) => base + step * table.nearest_number(steps),
            }
        };
        // Weights whose best change is below half a step stay: nearly all.
        let least = 0.5 * spacing * step.abs();
        for j in first..first + B::SUB {
            let row = curvature.row(j, N);
            if slopes[j].abs() <= least * row[j] {
                continue;
            }
            let value = value_at(values[j] - slopes[j] / row[j]);
            let change = value - values[j];
            // A value that is not of the grid to the last bit is the same one.
            if change.abs() < 0.25 * spacing * step.abs() {
                continue;
            }
            values[j] = value;
            any = true;
            vectorized(
                #[inline(always)]
                || add_scaled(slopes, row, change),
            );
        }
    }
    if any {
        recode_stepped::<B, N>(isa, values, bytes);
    }
    any
}

/// [`Descend`] for a type with a codebook.
pub(crate) fn descend_pointed<B: Pointed>(
    isa: Isa,
    curvature: Curvature<'_>,
    Rounded {
        values,
        slopes,
        block,
    }: Rounded<'_>,
) -> bool {
    let ([block], Some(values), Some(slopes)) = (
        bytemuck::cast_slice_mut::<u8, B>(block),
        values.first_chunk_mut::<LONGEST>(),
        slopes.first_chunk_mut::<LONGEST>(),
    ) else {
        return false;
    };
    isa.run(OfGroups {
        isa,
        curvature,
        values,
        slopes,
        block,
    })
}

struct OfGroups<'a, B> {
    isa: Isa,
    curvature: Curvature<'a>,
    values: &'a mut [f32; LONGEST],
    slopes: &'a mut [f32; LONGEST],
    block: &'a mut B,
}

impl<B: Pointed> Kernel for OfGroups<'_, B> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        /// Least part of a group's cost that a change must save: rounding errors of f32 do not.
        const LEAST: f32 = 1e-5;
        let OfGroups {
            isa,
            curvature,
            values,
            slopes,
            block,
        } = self;
        let points = B::points();
        let mut changed: [Option<Choice>; LONGEST / 8] = [None; LONGEST / 8];
        for (group, changed) in changed.iter_mut().enumerate() {
            let (first, sub) = (8 * group, 8 * group / B::SUB);
            let metric = &curvature.groups[group];
            let under = Under {
                scale: block.scale(sub),
                down: block.down(sub),
            };
            if under.scale.abs() < f32::MIN_POSITIVE {
                continue;
            }
            let slope: [f32; 8] = std::array::from_fn(|i| slopes[first + i]);
            // In units of the best point, errors are those of the changes.
            let best = metric.solve(&slope);
            let now: [f32; 8] = std::array::from_fn(|i| values[first + i]);
            let target: [f32; 8] = std::array::from_fn(|i| now[i] - best[i]);
            let found = search_group::<S, B>(simd, metric, target, under, &points);
            let cost: f32 = (0..8).map(|i| best[i] * slope[i]).sum();
            if found.cost >= cost * (1.0 - LEAST) || found.values == now {
                continue;
            }
            for (i, value) in found.values.into_iter().enumerate() {
                let change = value - now[i];
                if change != 0.0 {
                    values[first + i] = value;
                    add_scaled(slopes, curvature.row(first + i, LONGEST), change);
                }
            }
            *changed = Some(found.choice);
        }
        if changed.iter().all(Option::is_none) {
            return false;
        }
        let mut choices = nearest_choices(isa, block, values);
        for (choice, changed) in choices.iter_mut().zip(changed) {
            *choice = changed.unwrap_or(*choice);
        }
        block.set_choices(&choices);
        true
    }
}
