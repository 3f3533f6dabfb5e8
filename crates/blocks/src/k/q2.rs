//! Q2_K.

use super::affine::{self, TOGETHER};
use super::{AFFINE_TRIES, LEN, Levels, RUN};
use crate::feedback::{Grid, Stepped};
use crate::num::{Half, nudged};
use crate::planes;
use crate::search::{Candidates, Measure, WITH_IMPORTANCE, eight, sums_of_squares, weigh};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Weights per sub-block, and sub-blocks.
const N: usize = 16;
const S: usize = LEN / N;
/// The highest level and the highest scale code.
const MAX_LEVEL: i32 = 3;
const MAX_SCALE: i32 = 15;
/// ggml's candidates for Q2_K without importance weights.
const WITHOUT_IMPORTANCE: Candidates = Candidates {
    first: -0.5,
    step: 0.1,
    last: 15,
};

/// 16 sub-blocks of 16 levels of 2 bits, with a 4-bit scale and a 4-bit offset each:
/// `w = d * (scales[j] & 15) * q - dmin * (scales[j] >> 4)`.
///
/// ```text
/// byte 0                     16                                80  82     84
///      | m0:s0 m1:s1 ... m15:s15 | q0..q255 in planes of 2 bits | d | dmin |
///        7-4 3-0  bits              in runs of 32
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ2K {
    scales: [u8; S],
    qs: [u8; LEN / 4],
    d: Half,
    dmin: Half,
}

impl BlockQ2K {
    /// Quantizes up to [`TOGETHER`] super-blocks.
    #[inline(always)]
    fn quantize<I: Simd>(
        simd: I,
        x: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        let mut weights = [[0.0; LEN]; TOGETHER];
        match importance {
            Some(importance) => {
                let squares = simd.store(sums_of_squares(simd, eight(x)));
                for (((weights, x), importance), squares) in
                    weights.iter_mut().zip(x).zip(importance).zip(squares)
                {
                    *weights = weigh(x, importance, squares / LEN as f32);
                }
            }
            None => weights
                .iter_mut()
                .zip(x)
                .for_each(|(weights, x)| *weights = x.map(f32::abs)),
        }
        let (candidates, measure) = match importance {
            Some(_) => (WITH_IMPORTANCE, Measure::Square),
            None => (WITHOUT_IMPORTANCE, Measure::Magnitude),
        };
        let fits = affine::fit::<I, N, S, MAX_LEVEL>(simd, x, &weights, candidates, measure);
        let codes = match importance {
            Some(_) => affine::codes_of_least_error::<I, S, MAX_SCALE>(simd, &fits),
            None => affine::codes_of_largest::<S, MAX_SCALE>(&fits),
        };
        for (i, ((x, block), [scales, offsets])) in x.iter().zip(row).zip(codes).enumerate() {
            block.scales = std::array::from_fn(|j| scales.codes[j] | (offsets.codes[j] << 4));
            (block.d, block.dmin) = (scales.unit, offsets.unit);
            let (scales, offsets) = block.scales_and_offsets();
            let levels = affine::round::<N, S, MAX_LEVEL>(
                bytemuck::cast_ref(x),
                &scales,
                &offsets,
                &fits.origins[i],
            );
            block.qs = planes::pack::<2, 32, LEN, _>(bytemuck::cast_ref(&levels), 0);
        }
    }

    #[inline(always)]
    fn scales_and_offsets(&self) -> ([f32; S], [f32; S]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        (
            self.scales.map(|s| d * f32::from(s & 15)),
            self.scales.map(|s| dmin * f32::from(s >> 4)),
        )
    }
}

impl Block<LEN> for BlockQ2K {
    const TYPE: GgmlType = GgmlType::Q2_K;

    #[inline(always)]
    fn quantize_row<I: Simd>(
        simd: I,
        weights: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        for (i, row) in row.chunks_mut(TOGETHER).enumerate() {
            let some = i * TOGETHER..i * TOGETHER + row.len();
            Self::quantize(
                simd,
                &weights[some.clone()],
                importance.map(|w| &w[some]),
                row,
            );
        }
    }

    #[inline(always)]
    fn dequantize<L: Simd>(&self, simd: L, weights: &mut [f32; LEN]) {
        let (scales, offsets) = self.scales_and_offsets();
        let halves = self
            .qs
            .as_chunks::<RUN>()
            .0
            .iter()
            .zip(weights.as_chunks_mut::<{ 4 * RUN }>().0);
        for (half, (bytes, weights)) in halves.enumerate() {
            for (i, bytes) in bytes.as_chunks().0.iter().enumerate() {
                for (run, levels) in planes::quarters(simd, bytes).into_iter().enumerate() {
                    let at = run * RUN + i * LANES;
                    let sub = (half * 4 * RUN + at) / N;
                    weights.as_chunks_mut().0[at / LANES] =
                        affine::weights(simd, scales[sub], levels, offsets[sub]);
                }
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault().or(self.dmin.fault())
    }
}

impl Stepped<LEN> for BlockQ2K {
    const SUB: usize = N;
    const GRID: Grid = Grid::Even {
        top: MAX_LEVEL as u8,
    };
    const TRIES: &'static [[i8; 2]] = AFFINE_TRIES;

    fn step(&self, sub: usize) -> f32 {
        self.d.to_f32() * f32::from(self.scales[sub] & 15)
    }

    fn base(&self, sub: usize) -> f32 {
        -self.dmin.to_f32() * f32::from(self.scales[sub] >> 4)
    }

    fn nudge(&mut self, sub: usize, [scale, offset]: [i8; 2]) {
        let code = self.scales[sub];
        self.scales[sub] = nudged(code & 15, scale, MAX_SCALE as u8)
            | nudged(code >> 4, offset, MAX_SCALE as u8) << 4;
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qs = planes::pack::<2, 32, _, _>(levels, 0);
    }
}
