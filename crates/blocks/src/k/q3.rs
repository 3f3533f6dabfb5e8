//! Q3_K.

use super::{LEN, Levels, RUN, SCALE_TRIES};
use crate::feedback::{Grid, Stepped};
use crate::num::{Half, nearest_int, nudged};
use crate::planes;
use crate::search::{self, eight, extreme, sums_of_squares, weigh_lanes};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Weights per sub-block, and sub-blocks.
const N: usize = 16;
const S: usize = LEN / N;
/// The levels are `-4 ..= 3`, the scale codes `-32 ..= 31`; both are stored with this offset.
const HALF_LEVELS: i32 = 4;
const HALF_SCALES: i32 = 32;

/// 16 sub-blocks of 16 levels of 3 bits, with a 6-bit scale each: `w = d * (s - 32) * (q - 4)`.
///
/// ```text
/// byte 0                          32                            96                          108 110
///      | bit 2 of q0..q255, plane | bits 1-0 of q0..q255, planes | s0..s15 packed, see below | d |
///        of 1 bit in runs of 32     of 2 bits in runs of 32
///
/// byte 96 + j, j < 8:    7-4 = low bits of s(j+8),  3-0 = low bits of s(j)
/// byte 104 + j, j < 4:   7-6, 5-4, 3-2, 1-0 = high bits of s(j+12), s(j+8), s(j+4), s(j)
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ3K {
    hmask: [u8; LEN / 8],
    qs: [u8; LEN / 4],
    scales: [u8; 12],
    d: Half,
}

/// The super-block's scale and the scale codes, `0 ..= 63`.
struct Scales {
    d: f32,
    codes: [u8; S],
}

impl Scales {
    /// The scale of largest magnitude gets the code -32.
    #[inline]
    fn of_extreme(scales: &[f32; S]) -> Scales {
        let extreme = extreme(scales);
        if extreme == 0.0 {
            return Scales {
                d: 0.0,
                codes: [0; S],
            };
        }
        let inverse = -HALF_SCALES as f32 / extreme;
        let codes = scales.map(|s| {
            // Through a signed byte first, as in the reference.
            let code = i32::from(nearest_int(inverse * s) as i8);
            (code.clamp(-HALF_SCALES, HALF_SCALES - 1) + HALF_SCALES) as u8
        });
        Scales {
            d: 1.0 / inverse,
            codes,
        }
    }
}

/// The sub-blocks of a super-block, eight per vector.
#[inline(always)]
fn halves<V: Simd>(simd: V, x: &[f32; LEN]) -> [[V::F32; N]; 2] {
    let blocks: &[[f32; N]; S] = bytemuck::cast_ref(x);
    let (first, second) = blocks.split_at(LANES);
    [simd.gather(eight(first)), simd.gather(eight(second))]
}

impl BlockQ3K {
    /// Quantizes up to eight super-blocks, with importance weights; their scales are searched in
    /// parallel, too.
    #[inline(always)]
    fn quantize_eight<V: Simd>(
        simd: V,
        x: &[[f32; LEN]],
        importance: &[[f32; LEN]],
        row: &mut [Self],
    ) {
        let variances = simd.splat(2.0) * sums_of_squares(simd, eight(x)) / simd.splat(LEN as f32);
        let variances = simd.store(variances);
        // By super-block and sub-block.
        let (mut scales, mut inverses, mut totals) =
            ([[0.0; S]; LANES], [[0.0; S]; LANES], [[0.0; S]; LANES]);
        for (i, (x, importance)) in x.iter().zip(importance).enumerate() {
            let (x, mut weights) = (halves(simd, x), halves(simd, importance));
            for h in 0..2 {
                let mut total = simd.splat(0.0);
                for (w, &x) in weights[h].iter_mut().zip(&x[h]) {
                    *w = weigh_lanes(simd, x, *w, simd.splat(variances[i]));
                    total = total + *w;
                }
                let fit = search::symmetric::<V, N, HALF_LEVELS>(simd, &x[h], &weights[h]);
                scales[i].as_chunks_mut().0[h] = simd.store(fit.scale);
                inverses[i].as_chunks_mut().0[h] = simd.store(fit.inverse);
                totals[i].as_chunks_mut().0[h] = simd.store(total);
            }
        }
        let (of_scales, of_totals) = (
            simd.gather(scales.each_ref()),
            simd.gather(totals.each_ref()),
        );
        let fit = search::symmetric::<V, S, HALF_SCALES>(simd, &of_scales, &of_totals);
        let (units, inverse_units) = (simd.store(fit.scale), simd.store(fit.inverse));
        for (i, (x, block)) in x.iter().zip(row).enumerate() {
            let codes =
                search::levels_of_inverse::<V, S, HALF_SCALES>(simd, &scales[i], inverse_units[i]);
            block.write(simd, x, &Scales { d: units[i], codes }, |sub_block, j| {
                search::levels_of_inverse::<V, N, HALF_LEVELS>(simd, sub_block, inverses[i][j])
            });
        }
    }

    /// Quantizes without importance weights.
    #[inline(always)]
    fn quantize<V: Simd>(&mut self, simd: V, x: &[f32; LEN]) {
        let fit = search::symmetric_by_descent::<V, N, 2, HALF_LEVELS>(simd, &halves(simd, x));
        let mut scales = [0.0; S];
        for (scales, &fit) in scales.as_chunks_mut().0.iter_mut().zip(&fit.scales) {
            *scales = simd.store(fit);
        }
        self.write(simd, x, &Scales::of_extreme(&scales), |_, j| {
            fit.levels[j / LANES].map(|eight| eight[j % LANES])
        });
    }

    /// Writes the block. `found` gives the levels of the search for a sub-block, which are kept if
    /// its scale is zero.
    #[inline(always)]
    fn write<V: Simd>(
        &mut self,
        simd: V,
        x: &[f32; LEN],
        scales: &Scales,
        found: impl Fn(&[f32; N], usize) -> [u8; N],
    ) {
        self.scales = pack_scales(&scales.codes);
        self.d = Half::from_f32(scales.d);
        let blocks: &[[f32; N]; S] = bytemuck::cast_ref(x);
        let mut levels = [[0u8; N]; S];
        let scales = self.sub_scales();
        for j in 0..S {
            levels[j] = search::levels_of_scale::<V, N, HALF_LEVELS>(simd, &blocks[j], scales[j]);
        }
        for j in 0..S {
            if scales[j] == 0.0 {
                levels[j] = found(&blocks[j], j);
            }
        }
        let levels: Levels = bytemuck::cast(levels);
        self.set_levels(&levels);
    }

    #[inline]
    fn sub_scales(&self) -> [f32; S] {
        let d = self.d.to_f32();
        unpack_scales(&self.scales).map(|code| d * (i32::from(code) - HALF_SCALES) as f32)
    }
}

#[inline]
fn pack_scales(codes: &[u8; S]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => (codes[i] & 15) | (codes[i + 8] << 4),
        _ => (0..4).fold(0, |byte, k| byte | ((codes[i - 8 + 4 * k] >> 4) << (2 * k))),
    })
}

#[inline]
fn unpack_scales(packed: &[u8; 12]) -> [u8; S] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        low | (high << 4)
    })
}

impl Block<LEN> for BlockQ3K {
    const TYPE: GgmlType = GgmlType::Q3_K;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        match importance {
            Some(importance) => {
                let groups = weights.chunks(LANES).zip(importance.chunks(LANES));
                for ((x, importance), row) in groups.zip(row.chunks_mut(LANES)) {
                    Self::quantize_eight(simd, x, importance, row);
                }
            }
            None => {
                for (x, block) in weights.iter().zip(row) {
                    block.quantize(simd, x);
                }
            }
        }
    }

    #[inline(always)]
    fn dequantize<L: Simd>(&self, simd: L, weights: &mut [f32; LEN]) {
        let scales = self.sub_scales();
        let half_levels = simd.splat_i32(HALF_LEVELS);
        for i in 0..RUN / LANES {
            // The high bits of four runs, each moved to bit 2.
            let four = simd.splat_i32(4);
            let mut high = simd.shift_left::<2>(simd.load_u8(&self.hmask.as_chunks().0[i]));
            for half in 0..2 {
                let quarters =
                    planes::quarters(simd, &self.qs.as_chunks().0[half * RUN / LANES + i]);
                for (run, low) in quarters.into_iter().enumerate() {
                    let levels = simd.or(low, simd.and(high, four)) - half_levels;
                    high = simd.shift_right::<1>(high);
                    let at = (half * 4 + run) * RUN + i * LANES;
                    let scale = simd.splat(scales[at / N]);
                    weights.as_chunks_mut().0[at / LANES] = simd.store(scale * simd.to_f32(levels));
                }
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockQ3K {
    const SUB: usize = N;
    const GRID: Grid = Grid::Even {
        top: 2 * HALF_LEVELS as u8 - 1,
    };
    const ZERO: f32 = HALF_LEVELS as f32;
    const TRIES: &'static [[i8; 2]] = SCALE_TRIES;

    fn step(&self, sub: usize) -> f32 {
        self.sub_scales()[sub]
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let mut codes = unpack_scales(&self.scales);
        codes[sub] = nudged(codes[sub], scale, 2 * HALF_SCALES as u8 - 1);
        self.scales = pack_scales(&codes);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &Levels) {
        self.hmask = planes::pack::<1, 32, _, _>(levels, 2);
        self.qs = planes::pack::<2, 32, _, _>(levels, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_codes_round_trip() {
        let codes: [u8; S] = std::array::from_fn(|j| (j * 23 % 64) as u8);
        assert_eq!(unpack_scales(&pack_scales(&codes)), codes);
    }
}
