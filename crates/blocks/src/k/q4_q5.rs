//! Q4_K and Q5_K: one method, with four or five bits.

use super::affine::{self, Codes, TOGETHER};
use super::{AFFINE_TRIES, LEN, Levels};
use crate::feedback::{Grid, Stepped};
use crate::num::{Half, nudged};
use crate::planes;
use crate::search::{
    Candidates, Measure, WITH_IMPORTANCE, eight, sum_of_squares, sums_of_squares, weigh,
};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Weights per sub-block, and sub-blocks.
const N: usize = 32;
const S: usize = LEN / N;
/// The highest scale code.
const MAX_SCALE: i32 = 63;

/// The scales and offsets of both types: `scale = d * s`, `offset = dmin * m`, with `s` and `m` of
/// 6 bits.
///
/// ```text
/// byte 0   2      4                    8                    12                             16
///      | d | dmin | s4:s0 ...    s7:s3 | m4:m0 ...    m7:m3 | m4:s4 ...             m7:s7 |
///                   7-6 = high bits of s4, 7-6 = high bits     7-4 = low bits of m4,
///                   5-0 = s0               of m4, 5-0 = m0     3-0 = low bits of s4
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Head {
    d: Half,
    dmin: Half,
    scales: [u8; 12],
}

impl Head {
    /// Codes above 63, where the reference admits them, corrupt the high bits of their neighbours
    /// as in the reference.
    #[inline(always)]
    fn new(scales: &Codes<S>, offsets: &Codes<S>) -> Self {
        let (s, m) = (&scales.codes, &offsets.codes);
        let mut packed = [0; 12];
        for j in 0..4 {
            packed[j] = s[j] | ((s[j + 4] >> 4) << 6);
            packed[j + 4] = m[j] | ((m[j + 4] >> 4) << 6);
            packed[j + 8] = (s[j + 4] & 15) | (m[j + 4] << 4);
        }
        Head {
            d: scales.unit,
            dmin: offsets.unit,
            scales: packed,
        }
    }

    /// The codes of scales and offsets.
    #[inline(always)]
    fn codes(&self) -> [[u8; S]; 2] {
        let packed = &self.scales;
        let (mut scales, mut offsets) = ([0; S], [0; S]);
        for j in 0..4 {
            scales[j] = packed[j] & 63;
            offsets[j] = packed[j + 4] & 63;
            scales[j + 4] = (packed[j + 8] & 15) | ((packed[j] >> 6) << 4);
            offsets[j + 4] = (packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4);
        }
        [scales, offsets]
    }

    #[inline(always)]
    fn scales_and_offsets(&self) -> ([f32; S], [f32; S]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let codes = self.codes();
        let (mut scales, mut offsets) = ([0.0; S], [0.0; S]);
        for j in 0..S {
            scales[j] = d * f32::from(codes[0][j]);
            offsets[j] = dmin * f32::from(codes[1][j]);
        }
        (scales, offsets)
    }

    fn step(&self, sub: usize) -> f32 {
        self.d.to_f32() * f32::from(self.codes()[0][sub])
    }

    fn base(&self, sub: usize) -> f32 {
        -self.dmin.to_f32() * f32::from(self.codes()[1][sub])
    }

    fn nudge(&mut self, sub: usize, change: [i8; 2]) {
        let mut codes = self.codes();
        for (codes, change) in codes.iter_mut().zip(change) {
            codes[sub] = nudged(codes[sub], change, MAX_SCALE as u8);
        }
        let [scales, offsets] = codes;
        *self = Head::new(
            &Codes {
                unit: self.d,
                codes: scales,
            },
            &Codes {
                unit: self.dmin,
                codes: offsets,
            },
        );
    }

    #[inline(always)]
    fn fault(&self) -> Option<Fault> {
        self.d.fault().or(self.dmin.fault())
    }
}

/// Differences between the two types.
trait Variant {
    /// The candidates without importance weights.
    const CANDIDATES: Candidates;
    /// The highest scale code admitted with importance weights.
    const CEILING: u8;

    /// The block of these scales, offsets and levels.
    fn new(head: Head, levels: &Levels) -> Self;
}

/// Quantizes up to [`TOGETHER`] super-blocks to levels of `0 ..= MAX`.
#[inline(always)]
fn quantize<I: Simd, B: Variant, const MAX: i32>(
    simd: I,
    x: &[[f32; LEN]],
    importance: Option<&[[f32; LEN]]>,
    blocks: &mut [B],
) {
    let mut weights = [[0.0; LEN]; TOGETHER];
    match importance {
        Some(importance) => {
            let squares = simd.store(sums_of_squares(simd, eight(x)));
            for (((weights, x), importance), squares) in
                weights.iter_mut().zip(x).zip(importance).zip(squares)
            {
                *weights = weigh(x, importance, 2.0 * squares / LEN as f32);
            }
        }
        None => {
            for (weights, x) in weights
                .as_flattened_mut()
                .as_chunks_mut::<N>()
                .0
                .iter_mut()
                .zip(x.as_flattened().as_chunks::<N>().0)
            {
                let rms = (sum_of_squares(x) / N as f32).sqrt();
                *weights = x.map(|v| rms + v.abs());
            }
        }
    }
    let candidates = if importance.is_some() {
        WITH_IMPORTANCE
    } else {
        B::CANDIDATES
    };
    let fits = affine::fit::<I, N, S, MAX>(simd, x, &weights, candidates, Measure::Square);
    let (codes, ceiling) = match importance {
        Some(_) => (
            affine::codes_of_least_error::<I, S, MAX_SCALE>(simd, &fits),
            B::CEILING,
        ),
        None => (
            affine::codes_of_largest::<S, MAX_SCALE>(&fits),
            MAX_SCALE as u8,
        ),
    };
    for (i, ((block, x), [scales, offsets])) in blocks.iter_mut().zip(x).zip(codes).enumerate() {
        let head = Head::new(&scales.up_to(ceiling), &offsets.up_to(ceiling));
        let (scales, offsets) = head.scales_and_offsets();
        let levels =
            affine::round::<N, S, MAX>(bytemuck::cast_ref(x), &scales, &offsets, &fits.origins[i]);
        *block = B::new(head, bytemuck::cast_ref(&levels));
    }
}

/// Quantizes a row to levels of `0 ..= MAX`.
#[inline(always)]
fn quantize_row<I: Simd, B: Variant, const MAX: i32>(
    simd: I,
    weights: &[[f32; LEN]],
    importance: Option<&[[f32; LEN]]>,
    row: &mut [B],
) {
    for (i, blocks) in row.chunks_mut(TOGETHER).enumerate() {
        let some = i * TOGETHER..i * TOGETHER + blocks.len();
        let importance = importance.map(|w| &w[some.clone()]);
        quantize::<I, B, MAX>(simd, &weights[some], importance, blocks);
    }
}

/// `high` holds the fifth bits, if any.
#[inline(always)]
fn dequantize<V: Simd>(
    simd: V,
    head: &Head,
    qs: &[u8; LEN / 2],
    high: Option<&[u8; LEN / 8]>,
    weights: &mut [f32; LEN],
) {
    let (scales, offsets) = head.scales_and_offsets();
    let sixteen = simd.splat_i32(16);
    for i in 0..N / LANES {
        // The high bits of two runs, each moved to bit 4.
        let mut high = high.map(|high| simd.shift_left::<4>(simd.load_u8(&high.as_chunks().0[i])));
        for pair in 0..S / 2 {
            let nibbles = planes::nibbles(simd, &qs.as_chunks().0[pair * N / LANES + i]);
            for (run, mut levels) in nibbles.into_iter().enumerate() {
                if let Some(high) = &mut high {
                    levels = simd.or(levels, simd.and(*high, sixteen));
                    *high = simd.shift_right::<1>(*high);
                }
                let sub = 2 * pair + run;
                weights.as_chunks_mut().0[sub * N / LANES + i] =
                    affine::weights(simd, scales[sub], levels, offsets[sub]);
            }
        }
    }
}

/// 8 sub-blocks of 32 levels of 4 bits, with a 6-bit scale and a 6-bit offset each: `w = d * s * q
/// - dmin * m`.
///
/// ```text
/// byte 0   2      4                       16                              144
///      | d | dmin | s0..s7, m0..m7 packed | q0..q255 in planes of 4 bits |
///                                           in runs of 32
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4K {
    head: Head,
    qs: [u8; LEN / 2],
}

impl BlockQ4K {
    const MAX_LEVEL: i32 = 15;
}

impl Variant for BlockQ4K {
    const CANDIDATES: Candidates = Candidates {
        first: -1.0,
        step: 0.1,
        last: 20,
    };
    /// ggml packs the unclamped codes of its search, unlike in Q5_K. This matters for negative
    /// scales, which wrap: they occur where hardly any weight of a sub-block has importance.
    const CEILING: u8 = u8::MAX;

    #[inline(always)]
    fn new(head: Head, levels: &Levels) -> Self {
        BlockQ4K {
            head,
            qs: planes::pack::<4, 32, _, _>(levels, 0),
        }
    }
}

impl Block<LEN> for BlockQ4K {
    const TYPE: GgmlType = GgmlType::Q4_K;

    #[inline(always)]
    fn quantize_row<I: Simd>(
        simd: I,
        weights: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        quantize_row::<I, Self, { Self::MAX_LEVEL }>(simd, weights, importance, row);
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; LEN]) {
        dequantize(simd, &self.head, &self.qs, None, weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.head.fault()
    }
}

impl Stepped<LEN> for BlockQ4K {
    const SUB: usize = N;
    const GRID: Grid = Grid::Even {
        top: Self::MAX_LEVEL as u8,
    };
    const TRIES: &'static [[i8; 2]] = AFFINE_TRIES;

    fn step(&self, sub: usize) -> f32 {
        self.head.step(sub)
    }

    fn base(&self, sub: usize) -> f32 {
        self.head.base(sub)
    }

    fn nudge(&mut self, sub: usize, change: [i8; 2]) {
        self.head.nudge(sub, change);
    }

    fn set_levels(&mut self, levels: &Levels) {
        *self = Self::new(self.head, levels);
    }
}

/// 8 sub-blocks of 32 levels of 5 bits, with a 6-bit scale and a 6-bit offset each: `w = d * s * q
/// - dmin * m`.
///
/// ```text
/// byte 0   2      4                       16                           48                         176
///      | d | dmin | s0..s7, m0..m7 packed | bit 4 of q0..q255, planes | bits 3-0 of q0..q255,   |
///                                           of 1 bit in runs of 32      planes in runs of 32
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5K {
    head: Head,
    qh: [u8; LEN / 8],
    qs: [u8; LEN / 2],
}

impl BlockQ5K {
    const MAX_LEVEL: i32 = 31;
}

impl Variant for BlockQ5K {
    const CANDIDATES: Candidates = Candidates {
        first: -0.5,
        step: 0.1,
        last: 15,
    };
    const CEILING: u8 = MAX_SCALE as u8;

    #[inline(always)]
    fn new(head: Head, levels: &Levels) -> Self {
        BlockQ5K {
            head,
            qh: planes::pack::<1, 32, _, _>(levels, 4),
            qs: planes::pack::<4, 32, _, _>(levels, 0),
        }
    }
}

impl Block<LEN> for BlockQ5K {
    const TYPE: GgmlType = GgmlType::Q5_K;

    #[inline(always)]
    fn quantize_row<I: Simd>(
        simd: I,
        weights: &[[f32; LEN]],
        importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        quantize_row::<I, Self, { Self::MAX_LEVEL }>(simd, weights, importance, row);
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; LEN]) {
        dequantize(simd, &self.head, &self.qs, Some(&self.qh), weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.head.fault()
    }
}

impl Stepped<LEN> for BlockQ5K {
    const SUB: usize = N;
    const GRID: Grid = Grid::Even {
        top: Self::MAX_LEVEL as u8,
    };
    const TRIES: &'static [[i8; 2]] = AFFINE_TRIES;

    fn step(&self, sub: usize) -> f32 {
        self.head.step(sub)
    }

    fn base(&self, sub: usize) -> f32 {
        self.head.base(sub)
    }

    fn nudge(&mut self, sub: usize, change: [i8; 2]) {
        self.head.nudge(sub, change);
    }

    fn set_levels(&mut self, levels: &Levels) {
        *self = Self::new(self.head, levels);
    }
}
