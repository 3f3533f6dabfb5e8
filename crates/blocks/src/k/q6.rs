//! Q6_K.

use super::{LEN, Levels, RUN, SCALE_TRIES};
use crate::feedback::{Grid, Stepped};
use crate::num::{Half, nearest_int};
use crate::planes;
use crate::search::{self, VANISHING, eight, extreme};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Weights per sub-block, and sub-blocks.
const N: usize = 16;
const S: usize = LEN / N;
/// The levels are `-32 ..= 31`, stored with this offset.
const HALF_LEVELS: i32 = 32;
/// The scale code of the largest scale, and the highest one.
const EXTREME_SCALE: f32 = -128.0;
const MAX_SCALE: i32 = 127;

/// 16 sub-blocks of 16 levels of 6 bits, with a signed 8-bit scale each: `w = d * s * (q - 32)`.
///
/// ```text
/// byte 0                             128                            192          208 210
///      | bits 3-0 of q0..q255, planes | bits 5-4 of q0..q255, planes | s0 ... s15 | d |
///        of 4 bits in runs of 64        of 2 bits in runs of 32
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ6K {
    ql: [u8; LEN / 2],
    qh: [u8; LEN / 4],
    scales: [i8; S],
    d: Half,
}

impl BlockQ6K {
    #[inline(always)]
    fn quantize<V: Simd>(simd: V, x: &[f32; LEN], importance: Option<&[f32; LEN]>) -> Self {
        let blocks: &[[f32; N]; S] = bytemuck::cast_ref(x);
        let (mut scales, mut inverses) = ([0.0; S], [0.0; S]);
        for h in 0..S / LANES {
            let of_lanes = h * LANES..(h + 1) * LANES;
            let x = simd.gather(eight(&blocks[of_lanes.clone()]));
            // Error weights are the plain importance weights, otherwise squares.
            let mut weights = x;
            match importance {
                Some(importance) => {
                    let importance: &[[f32; N]; S] = bytemuck::cast_ref(importance);
                    weights = simd.gather(eight(&importance[of_lanes.clone()]));
                }
                None => {
                    for v in &mut weights {
                        *v = *v * *v;
                    }
                }
            }
            let fit = search::symmetric::<V, N, HALF_LEVELS>(simd, &x, &weights);
            scales[of_lanes.clone()].copy_from_slice(&simd.store(fit.scale));
            inverses[of_lanes].copy_from_slice(&simd.store(fit.inverse));
        }
        let extreme = extreme(&scales);
        if extreme.abs() < VANISHING {
            return bytemuck::Zeroable::zeroed();
        }
        let inverse = EXTREME_SCALE / extreme;
        let mut block = BlockQ6K {
            ql: [0; LEN / 2],
            qh: [0; LEN / 4],
            scales: scales.map(|s| nearest_int(inverse * s).min(MAX_SCALE) as i8),
            d: Half::from_f32(1.0 / inverse),
        };
        let mut levels = [[0u8; N]; S];
        let scales = block.sub_scales();
        for j in 0..S {
            levels[j] = search::levels_of_scale::<V, N, HALF_LEVELS>(simd, &blocks[j], scales[j]);
        }
        for j in 0..S {
            if scales[j] == 0.0 {
                levels[j] =
                    search::levels_of_inverse::<V, N, HALF_LEVELS>(simd, &blocks[j], inverses[j]);
            }
        }
        let levels: Levels = bytemuck::cast(levels);
        block.set_levels(&levels);
        block
    }

    #[inline]
    fn sub_scales(&self) -> [f32; S] {
        let d = self.d.to_f32();
        self.scales.map(|s| d * f32::from(s))
    }
}

impl Block<LEN> for BlockQ6K {
    const TYPE: GgmlType = GgmlType::Q6_K;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            *block = match importance {
                Some(importance) => Self::quantize(simd, x, Some(&importance[i])),
                None => Self::quantize(simd, x, None),
            };
        }
    }

    #[inline(always)]
    fn dequantize<L: Simd>(&self, simd: L, weights: &mut [f32; LEN]) {
        let scales = self.sub_scales();
        let half_levels = simd.splat_i32(HALF_LEVELS);
        for half in 0..2 {
            for i in 0..RUN / LANES {
                let low = [0, 1].map(|j| self.ql.as_chunks().0[(2 * half + j) * RUN / LANES + i]);
                let ([l0, l2], [l1, l3]) = (
                    planes::nibbles(simd, &low[0]),
                    planes::nibbles(simd, &low[1]),
                );
                let high = planes::quarters(simd, &self.qh.as_chunks().0[half * RUN / LANES + i]);
                for (run, (low, high)) in [l0, l1, l2, l3].into_iter().zip(high).enumerate() {
                    let levels = simd.or(low, simd.shift_left::<4>(high)) - half_levels;
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

impl Stepped<LEN> for BlockQ6K {
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
        self.scales[sub] = self.scales[sub].saturating_add(scale);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &Levels) {
        self.ql = planes::pack::<4, 64, _, _>(levels, 0);
        self.qh = planes::pack::<2, 32, _, _>(levels, 4);
    }
}
