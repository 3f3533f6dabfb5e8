//! Types with one level per weight: eight rows in lanes, column by column.

use super::Coupling;
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::{Block, quantize_row};

/// The values of the levels `0 ..= top` of a type.
pub(crate) enum Grid {
    /// `base + step * level`.
    Even {
        /// The highest level.
        top: u8,
    },
    /// `step * number`.
    Table(&'static Table),
}

/// Up to sixteen unevenly spaced numbers.
pub(crate) struct Table {
    /// In ascending order, padded with the last one.
    numbers: [f32; 16],
    /// Midpoints between them; infinite after the last one.
    middles: [f32; 15],
    /// Their levels.
    levels: [u8; 16],
}

impl Table {
    /// The table of a type with the values `numbers` by level. For equal values, the first level is
    /// used.
    pub(crate) const fn new(of_levels: &[f32; 16]) -> Table {
        let (mut numbers, mut levels) = ([0.0f32; 16], [0u8; 16]);
        let mut len = 0;
        let mut level = 0;
        while level < 16 {
            let number = of_levels[level];
            // Insertion sort, as constants have no library sort.
            let mut at = len;
            while at > 0 && numbers[at - 1] > number {
                at -= 1;
            }
            if at == 0 || numbers[at - 1] != number {
                let mut i = len;
                while i > at {
                    (numbers[i], levels[i]) = (numbers[i - 1], levels[i - 1]);
                    i -= 1;
                }
                (numbers[at], levels[at]) = (number, level as u8);
                len += 1;
            }
            level += 1;
        }
        let mut middles = [f32::INFINITY; 15];
        let mut i = 0;
        while i < 15 {
            if i + 1 < len {
                middles[i] = (numbers[i] + numbers[i + 1]) / 2.0;
            }
            i += 1;
        }
        while len < 16 {
            (numbers[len], levels[len]) = (numbers[len - 1], levels[len - 1]);
            len += 1;
        }
        Table {
            numbers,
            middles,
            levels,
        }
    }

    /// The different numbers in rising order, with their levels.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (f64, u8)> {
        let all = self.numbers.iter().zip(&self.levels);
        let mut last = None;
        all.filter(move |(number, _)| last.replace(**number) != Some(**number))
            .map(|(number, level)| (f64::from(*number), *level))
    }

    /// The mean distance of adjacent numbers.
    pub(super) fn spacing(&self) -> f32 {
        let adjacent = self.middles.iter().filter(|middle| middle.is_finite());
        (self.numbers[15] - self.numbers[0]) / adjacent.count().max(1) as f32
    }

    /// The level of the number nearest to `x`.
    #[inline(always)]
    pub(super) fn nearest(&self, x: f32) -> u8 {
        let above = self.middles.iter().filter(|middle| x >= **middle).count();
        self.levels[above]
    }

    /// The number nearest to `x`.
    #[inline(always)]
    pub(super) fn nearest_number(&self, x: f32) -> f32 {
        let above = self.middles.iter().filter(|middle| x >= **middle).count();
        self.numbers[above]
    }

    /// The least distance of adjacent numbers.
    pub(super) fn narrowest(&self) -> f32 {
        let pairs = self.numbers.windows(2).map(|pair| pair[1] - pair[0]);
        pairs.filter(|gap| *gap > 0.0).fold(f32::INFINITY, f32::min)
    }

    /// The level and the number of an entry.
    #[cfg(test)]
    pub(super) fn level(&self, entry: u8) -> u8 {
        self.levels[usize::from(entry)]
    }

    #[cfg(test)]
    pub(super) fn number(&self, entry: u8) -> f32 {
        self.numbers[usize::from(entry)]
    }
}

/// A type with one level per weight.
pub(crate) trait Stepped<const N: usize>: Block<N> {
    /// Weights per sub-block.
    const SUB: usize;
    /// The values of the levels.
    const GRID: Grid;
    /// Candidate changes of a sub-block's scale, and offset if any, in steps of the type; the first
    /// is none.
    const TRIES: &'static [[i8; 2]];

    /// The level of 0, for evenly spaced levels without a stored offset.
    const ZERO: f32 = 0.0;

    /// The step of a sub-block.
    fn step(&self, sub: usize) -> f32;

    /// The value of level 0 of a sub-block.
    fn base(&self, sub: usize) -> f32 {
        -Self::ZERO * self.step(sub)
    }

    /// Changes scale and offset of a sub-block, as far as the type can.
    fn nudge(&mut self, sub: usize, change: [i8; 2]);

    /// Replaces the levels.
    fn set_levels(&mut self, levels: &[u8; N]);
}

/// [`RoundEight`](super::RoundEight) for a stepped type.
pub(crate) fn round_stepped<B: Stepped<N>, const N: usize>(
    isa: Isa,
    coupling: Coupling<'_>,
    weights: &mut [f32],
    blocks: &mut [u8],
) {
    for (x, block) in weights
        .chunks_exact(N)
        .zip(blocks.chunks_exact_mut(size_of::<B>()))
    {
        quantize_row::<B, N>(isa, x, Some(&coupling.costs[..N]), block);
    }
    let (Some(x), Some(blocks)) = (
        weights.as_chunks_mut::<N>().0.first_chunk_mut::<LANES>(),
        bytemuck::cast_slice_mut::<u8, B>(blocks).first_chunk_mut::<LANES>(),
    ) else {
        return;
    };
    isa.run(Round {
        coupling,
        x,
        blocks,
    });
}

struct Round<'a, B, const N: usize> {
    coupling: Coupling<'a>,
    x: &'a mut [[f32; N]; LANES],
    blocks: &'a mut [B; LANES],
}

/// A sub-block rounded at one scale per lane, by column.
#[derive(Clone, Copy)]
struct Tried<S: Simd, const N: usize> {
    cost: S::F32,
    errors: [S::F32; N],
    levels: [S::I32; N],
}

impl<B: Stepped<N>, const N: usize> Kernel for Round<'_, B, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Round {
            coupling,
            x: rows,
            blocks,
        } = self;
        // By column, with one row per lane.
        let mut x = simd.gather(rows.each_ref());
        let mut levels = [[0u8; N]; LANES];
        for sub in 0..N / B::SUB {
            let from = sub * B::SUB;
            let (best, changes) = best_try::<S, B, N>(simd, coupling, &x, sub, blocks);
            for (block, change) in blocks.iter_mut().zip(changes) {
                block.nudge(sub, B::TRIES[usize::from(change)]);
            }
            for j in 0..B::SUB {
                x[from + j] = best.errors[j];
                let of_lanes = simd.store_u8(best.levels[j]);
                for (levels, level) in levels.iter_mut().zip(of_lanes) {
                    levels[from + j] = level;
                }
            }
            for j in from..from + B::SUB {
                let error = x[j];
                feed_back(
                    simd,
                    error,
                    coupling.row(j, from + B::SUB, N),
                    &mut x[from + B::SUB..],
                );
            }
        }
        if let Grid::Table(table) = B::GRID {
            levels
                .as_flattened_mut()
                .iter_mut()
                .for_each(|level| *level = table.levels[usize::from(*level & 15)]);
        }
        for (block, levels) in blocks.iter_mut().zip(&levels) {
            block.set_levels(levels);
        }
        for (part, columns) in x.as_chunks::<LANES>().0.iter().enumerate() {
            for (row, errors) in rows.iter_mut().zip(simd.transpose(*columns)) {
                row.as_chunks_mut().0[part] = simd.store(errors);
            }
        }
    }
}

/// Compensates an error per lane in the columns not yet rounded.
#[inline(always)]
fn feed_back<S: Simd>(simd: S, error: S::F32, factors: &[f32], open: &mut [S::F32]) {
    for (x, &factor) in open.iter_mut().zip(factors) {
        *x = *x - error * simd.splat(factor);
    }
}

/// A sub-block at the cheapest scale, and the index of that try per lane.
#[inline(always)]
fn best_try<S: Simd, B: Stepped<N>, const N: usize>(
    simd: S,
    coupling: Coupling<'_>,
    x: &[S::F32; N],
    sub: usize,
    blocks: &[B; LANES],
) -> (Tried<S, N>, [u8; LANES]) {
    let mut best = Tried {
        cost: simd.splat(f32::INFINITY),
        errors: [simd.splat(0.0); N],
        levels: [simd.splat_i32(0); N],
    };
    let mut choices = simd.splat_i32(0);
    for (number, change) in B::TRIES.iter().enumerate() {
        let (mut steps, mut bases) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let mut block = blocks[lane];
            block.nudge(sub, *change);
            (steps[lane], bases[lane]) = (block.step(sub), block.base(sub));
        }
        let tried = round_sub::<S, B, N>(
            simd,
            coupling,
            x,
            sub,
            [simd.load(&steps), simd.load(&bases)],
        );
        if number == 0 {
            best = tried;
            continue;
        }
        let better = simd.lt(tried.cost, best.cost);
        if simd.any(better) {
            best.cost = simd.select(better, tried.cost, best.cost);
            choices = simd.select_i32(better, simd.splat_i32(number as i32), choices);
            for j in 0..B::SUB {
                best.errors[j] = simd.select(better, tried.errors[j], best.errors[j]);
                best.levels[j] = simd.select_i32(better, tried.levels[j], best.levels[j]);
            }
        }
    }
    (best, simd.store_u8(choices))
}

/// Rounds a sub-block, with error feedback within it.
#[inline(always)]
fn round_sub<S: Simd, B: Stepped<N>, const N: usize>(
    simd: S,
    coupling: Coupling<'_>,
    x: &[S::F32; N],
    sub: usize,
    [step, base]: [S::F32; 2],
) -> Tried<S, N> {
    let (from, to) = (sub * B::SUB, (sub + 1) * B::SUB);
    let (zero, half) = (simd.splat(0.0), simd.splat(0.5));
    let mut tried = Tried {
        cost: zero,
        errors: [zero; N],
        levels: [simd.splat_i32(0); N],
    };
    tried.errors[..B::SUB].copy_from_slice(&x[from..to]);
    // The inverse of a subnormal step is infinite.
    let vanishes = simd.lt(simd.abs(step), simd.splat(f32::MIN_POSITIVE));
    let inverse = simd.select(vanishes, zero, simd.splat(1.0) / step);
    for j in 0..B::SUB {
        let x = tried.errors[j];
        let steps = (x - base) * inverse;
        let (level, number) = match B::GRID {
            Grid::Even { top } => {
                let inside = simd.min(simd.max(steps, zero), simd.splat(top.into()));
                let level = simd.trunc(inside + half);
                (level, simd.to_f32(level))
            }
            Grid::Table(table) => {
                let mut level = simd.splat_i32(0);
                for middle in table.middles {
                    let above = simd.ge(steps, simd.splat(middle));
                    level = level + simd.select_i32(above, simd.splat_i32(1), simd.splat_i32(0));
                }
                let halves: [[f32; LANES]; 2] = bytemuck::cast(table.numbers);
                (
                    level,
                    simd.lookup_of_16([simd.load(&halves[0]), simd.load(&halves[1])], level),
                )
            }
        };
        let error = x - (base + step * number);
        tried.cost = tried.cost + simd.splat(coupling.costs[from + j]) * error * error;
        tried.errors[j] = error;
        tried.levels[j] = level;
        feed_back(
            simd,
            error,
            coupling.row(from + j, from + j + 1, to),
            &mut tried.errors[j + 1..B::SUB],
        );
    }
    tried
}
