//! Four-bit levels, denser around zero, where most weights are.
//!
//! IQ4_NL has a scale per block of 32 weights, IQ4_XS one per 256 and a six-bit factor per 32.

use super::feedback::{Grid, Stepped, Table};
use super::num::{Half, inverse_or_zero, nearest_int, nudged};
use super::planes;
use super::search::{Best, VANISHING, eight, extreme, extremes, sums_of_squares, weigh_lanes};
use super::{Block, Fault};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;

/// The sixteen levels.
const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Weights per factor.
const SUB: usize = 32;
type Sub = [f32; SUB];
/// Eight sub-blocks in lanes.
type Lanes<S> = [<S as Simd>::F32; SUB];

/// 32 nonlinear levels and a scale: `w = d * LEVELS[q]`.
///
/// ```text
/// byte 0   2                               18
///      | d | q0,q16  q1,q17  ...  q15,q31  |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq4Nl {
    d: Half,
    qs: [u8; SUB / 2],
}

impl Block<SUB> for BlockIq4Nl {
    const TYPE: GgmlType = GgmlType::IQ4_NL;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[Sub],
        importance: Option<&[Sub]>,
        row: &mut [Self],
    ) {
        for (i, (blocks, row)) in weights.chunks(LANES).zip(row.chunks_mut(LANES)).enumerate() {
            let x = simd.gather(eight(blocks));
            let importance = match importance {
                Some(w) => {
                    let mut sums = simd.splat(0.0);
                    for &v in &x {
                        sums = sums + v * v;
                    }
                    Some(Importance {
                        subs: eight(&w[i * LANES..][..blocks.len()]),
                        variance: variances(simd, sums, SUB),
                    })
                }
                None => None,
            };
            let scales = simd.store(best_scales(simd, &x, &error_weights(simd, &x, importance)));
            for ((x, d), block) in blocks.iter().zip(scales).zip(row) {
                *block = BlockIq4Nl {
                    d: Half::from_f32(d),
                    qs: pack(simd, x, inverse_or_zero(d)),
                };
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Sub) {
        planes::looked_up(simd, &self.qs, table(simd), self.d.to_f32(), weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// 256 nonlinear levels, a scale, and eight factors from -32 to 31: `w = d * (s - 32) * LEVELS[q]`.
///
/// ```text
/// byte 0   2    4      8                                           136
///      | d | sh | sl   | q0,q16 .. q15,q31 | q32,q48 .. | ..  | ..  |   low nibble first
///            |    s0,s1  s2,s3 ..: low four bits
///            bits 2i, 2i+1: the high two bits of si
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq4Xs {
    d: Half,
    scales_high: [u8; 2],
    scales_low: [u8; 4],
    qs: [[u8; SUB / 2]; 8],
}

/// Half the range of the factors.
const FACTORS: i32 = 32;

impl Block<256> for BlockIq4Xs {
    const TYPE: GgmlType = GgmlType::IQ4_XS;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[[f32; 256]],
        importance: Option<&[[f32; 256]]>,
        row: &mut [Self],
    ) {
        let mut variance = [0.0; LANES];
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            if i % LANES == 0 && importance.is_some() {
                variance = simd.store(variances(
                    simd,
                    sums_of_squares(simd, eight(&weights[i..])),
                    256,
                ));
            }
            let subs: &[Sub; 8] = bytemuck::cast_ref(x);
            let x = simd.gather(subs.each_ref());
            let importance = match importance {
                Some(w) => {
                    let subs: &[Sub; 8] = bytemuck::cast_ref(&w[i]);
                    Some(Importance {
                        subs: subs.each_ref(),
                        variance: simd.splat(variance[i % LANES]),
                    })
                }
                None => None,
            };
            let scales = simd.store(best_scales(simd, &x, &error_weights(simd, &x, importance)));

            // The largest scale gets the factor -32, which has no positive counterpart.
            let d = -extreme(&scales) / FACTORS as f32;
            let inverse = inverse_or_zero(d);
            let (mut low, mut high) = ([0; 8], 0u16);
            for s in 0..8 {
                let factor = nearest_int(inverse * scales[s]).clamp(-FACTORS, FACTORS - 1);
                block.qs[s] = pack(simd, &subs[s], inverse_or_zero(d * factor as f32));
                let code = (factor + FACTORS) as u8;
                low[s] = code & 0x0f;
                high |= u16::from(code >> 4) << (2 * s);
            }
            block.d = Half::from_f32(d);
            block.scales_low = std::array::from_fn(|j| low[2 * j] | low[2 * j + 1] << 4);
            block.scales_high = high.to_le_bytes();
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (s, out) in weights.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
            let factor = i32::from(self.code(s)) - FACTORS;
            planes::looked_up(simd, &self.qs[s], table(simd), d * factor as f32, out);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// [`LEVELS`] as a table.
static TABLE: Table = {
    let mut numbers = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        numbers[i] = LEVELS[i] as f32;
        i += 1;
    }
    Table::new(&numbers)
};

/// Packs levels two per byte.
fn pack_levels(levels: &[u8; SUB]) -> [u8; SUB / 2] {
    planes::pack::<4, 16, _, _>(levels, 0)
}

impl Stepped<SUB> for BlockIq4Nl {
    const SUB: usize = SUB;
    const GRID: Grid = Grid::Table(&TABLE);
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0], [-2, 0], [2, 0]];

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    fn set_levels(&mut self, levels: &[u8; SUB]) {
        self.qs = pack_levels(levels);
    }
}

impl BlockIq4Xs {
    /// A factor as stored, offset by [`FACTORS`].
    #[inline(always)]
    fn code(&self, sub: usize) -> u8 {
        let high = u16::from_le_bytes(self.scales_high) >> (2 * sub) & 3;
        self.scales_low[sub / 2] >> (4 * (sub % 2)) & 0x0f | (high as u8) << 4
    }
}

impl Stepped<256> for BlockIq4Xs {
    const SUB: usize = SUB;
    const GRID: Grid = Grid::Table(&TABLE);
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0]];

    fn step(&self, sub: usize) -> f32 {
        self.d.to_f32() * (i32::from(self.code(sub)) - FACTORS) as f32
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let code = nudged(self.code(sub), scale, 2 * FACTORS as u8 - 1);
        let (low, high) = (4 * (sub % 2), 2 * sub);
        self.scales_low[sub / 2] = self.scales_low[sub / 2] & !(0x0f << low) | (code & 0x0f) << low;
        let scales_high =
            u16::from_le_bytes(self.scales_high) & !(3 << high) | u16::from(code >> 4) << high;
        self.scales_high = scales_high.to_le_bytes();
    }

    fn set_levels(&mut self, levels: &[u8; 256]) {
        for (qs, levels) in self.qs.iter_mut().zip(levels.as_chunks::<SUB>().0) {
            *qs = pack_levels(levels);
        }
    }
}

/// The `variance` term of the error weights: twice the mean square of `count` weights.
#[inline(always)]
fn variances<S: Simd>(simd: S, sums_of_squares: S::F32, count: usize) -> S::F32 {
    sums_of_squares * simd.splat(2.0 / count as f32)
}

/// Importance of the weights of eight sub-blocks.
struct Importance<'a, S: Simd> {
    subs: [&'a Sub; LANES],
    variance: S::F32,
}

/// Error weights: from importance and variance, or the squares of the weights.
#[inline(always)]
fn error_weights<S: Simd>(
    simd: S,
    x: &Lanes<S>,
    importance: Option<Importance<'_, S>>,
) -> Lanes<S> {
    match importance {
        Some(Importance { subs, variance }) => {
            let mut weights = simd.gather(subs);
            for (w, &x) in weights.iter_mut().zip(x) {
                *w = weigh_lanes(simd, x, *w, variance);
            }
            weights
        }
        None => {
            let mut squares = *x;
            for v in &mut squares {
                *v = *v * *v;
            }
            squares
        }
    }
}

/// ggml's offsets of the extreme weight's level.
const TRIES: [f32; 15] = [
    -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.,
];
/// Tries scored in parallel.
const SIDE_BY_SIDE: usize = 5;

/// Contributions of a weight to the sums of a try, on either side of the one midpoint between
/// levels that it can pass.
#[derive(Clone, Copy)]
struct Choice<F32> {
    x: F32,
    middle: F32,
    wxl: [F32; 2],
    wll: [F32; 2],
}

/// The scale of least weighted error for each of eight sub-blocks, among those that put the extreme
/// weight near the lowest level, and one, the first, that puts it at the opposite end.
///
/// From the first of [`TRIES`] to the last, a weight in units of the scale shrinks to 120/134 of
/// itself, which is more than the ratio of any two midpoints between levels: it passes at most one
/// of them. That midpoint, and the weight's contributions on either side, are looked up once. A try
/// then needs one comparison and two selections. The price is an array of six vectors per weight,
/// which fits the L1 cache.
#[inline(always)]
fn best_scales<S: Simd>(simd: S, x: &Lanes<S>, w: &Lanes<S>) -> S::F32 {
    const {
        let lowest = LEVELS[0] as f32;
        let shrinks_to = (lowest + TRIES[TRIES.len() - 1]) / (lowest + TRIES[0]);
        let mut i = 0;
        while i < 14 {
            let (a, b) = (MIDDLES[i], MIDDLES[i + 1]);
            // Smaller over larger magnitude; a weight keeps its sign.
            let ratio = if b < 0.0 { b / a } else { a / b };
            assert!(ratio < 0.99 * shrinks_to);
            i += 1;
        }
    }
    let extreme = extremes(simd, x);
    let lowest = f32::from(LEVELS[0]);
    let zero = simd.splat(0.0);

    let opposite = simd.splat(1.0) / (simd.neg(extreme) / simd.splat(lowest));
    let mut inverses = [zero; TRIES.len()];
    for (inverse, t) in inverses.iter_mut().zip(TRIES) {
        *inverse = simd.splat(t + lowest) / extreme;
    }
    let (mut first_wxl, mut first_wll) = (zero, zero);
    let mut choices = [Choice {
        x: zero,
        middle: zero,
        wxl: [zero; 2],
        wll: [zero; 2],
    }; SUB];
    for i in 0..SUB {
        let place = Place::of(simd, opposite * x[i]);
        let l = place.level(simd);
        let wl = w[i] * l;
        first_wxl = first_wxl + wl * x[i];
        first_wll = first_wll + wl * l;

        let place = Place::of(
            simd,
            simd.min(inverses[0] * x[i], inverses[TRIES.len() - 1] * x[i]),
        );
        choices[i].x = x[i];
        choices[i].middle = place.next_middle(simd);
        for (side, l) in [place.level(simd), place.next_level(simd)]
            .into_iter()
            .enumerate()
        {
            let wl = w[i] * l;
            choices[i].wxl[side] = wl * x[i];
            choices[i].wll[side] = wl * l;
        }
    }
    let mut best = Best::<S>::new(
        simd.select(simd.gt(first_wll, zero), first_wxl / first_wll, zero),
        first_wxl,
    );
    for inverses in inverses.as_chunks::<SIDE_BY_SIDE>().0 {
        let (mut wxl, mut wll) = ([zero; SIDE_BY_SIDE], [zero; SIDE_BY_SIDE]);
        for choice in &choices {
            for c in 0..SIDE_BY_SIDE {
                let below = simd.lt(inverses[c] * choice.x, choice.middle);
                wxl[c] = wxl[c] + simd.select(below, choice.wxl[0], choice.wxl[1]);
                wll[c] = wll[c] + simd.select(below, choice.wll[0], choice.wll[1]);
            }
        }
        for c in 0..SIDE_BY_SIDE {
            best.offer(simd, wxl[c], wll[c]);
        }
    }
    simd.select(
        simd.lt(simd.abs(extreme), simd.splat(VANISHING)),
        zero,
        best.scale,
    )
}

/// Midpoints between levels, infinite after the last one. They are half-integers, near which the
/// differences that the reference compares are exact, so that a comparison with them picks the same
/// level, ties upwards and NaN to the top.
const MIDDLES: [f32; 16] = {
    let mut middles = [f32::INFINITY; 16];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// Every second entry of [`MIDDLES`].
const fn middles(odd: usize) -> [f32; LANES] {
    let mut some = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        some[i] = MIDDLES[2 * i + odd];
        i += 1;
    }
    some
}

/// Every second level, the last one repeated.
const fn levels(from: usize) -> [f32; LANES] {
    let mut some = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        let level = 2 * i + from;
        some[i] = LEVELS[if level < 16 { level } else { 15 }] as f32;
        i += 1;
    }
    some
}

/// 0 where the mask is set, otherwise 1.
#[inline(always)]
fn one_unless<S: Simd>(simd: S, mask: S::Mask) -> S::I32 {
    simd.select_i32(mask, simd.splat_i32(0), simd.splat_i32(1))
}

/// Positions of numbers among the levels.
struct Place<S: Simd> {
    /// Number of pairs of levels below.
    pair: S::I32,
    /// True if nearest to the lower level of the pair.
    lower: S::Mask,
}

impl<S: Simd> Place<S> {
    /// Binary search: four comparisons. Anything not below counts as above, NaN too.
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> Self {
        let quarters = simd.load(&[MIDDLES[3], MIDDLES[11], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let eighths = simd.load(&[
            MIDDLES[1],
            MIDDLES[5],
            MIDDLES[9],
            MIDDLES[13],
            0.0,
            0.0,
            0.0,
            0.0,
        ]);
        let half = one_unless(simd, simd.lt(x, simd.splat(MIDDLES[7])));
        let quarter = half + half + one_unless(simd, simd.lt(x, simd.lookup(quarters, half)));
        let pair = quarter + quarter + one_unless(simd, simd.lt(x, simd.lookup(eighths, quarter)));
        let lower = simd.lt(x, simd.lookup(simd.load(&const { middles(0) }), pair));
        Place { pair, lower }
    }

    #[inline(always)]
    fn either(&self, simd: S, lower: &[f32; LANES], upper: &[f32; LANES]) -> S::F32 {
        let (lower, upper) = (simd.load(lower), simd.load(upper));
        simd.select(
            self.lower,
            simd.lookup(lower, self.pair),
            simd.lookup(upper, self.pair),
        )
    }

    /// The nearest levels.
    #[inline(always)]
    fn level(&self, simd: S) -> S::F32 {
        self.either(simd, &const { levels(0) }, &const { levels(1) })
    }

    /// The next higher levels.
    #[inline(always)]
    fn next_level(&self, simd: S) -> S::F32 {
        self.either(simd, &const { levels(1) }, &const { levels(2) })
    }

    /// The midpoints before the next levels.
    #[inline(always)]
    fn next_middle(&self, simd: S) -> S::F32 {
        self.either(simd, &const { middles(0) }, &const { middles(1) })
    }

    /// Indices of the nearest levels.
    #[inline(always)]
    fn number(&self, simd: S) -> S::I32 {
        self.pair + self.pair + one_unless(simd, self.lower)
    }
}

#[inline(always)]
fn pack<S: Simd>(simd: S, x: &Sub, inverse: f32) -> [u8; SUB / 2] {
    let inverse = simd.splat(inverse);
    let mut bytes = [[0; LANES]; SUB / 2 / LANES];
    let (first, second) = x.as_chunks().0.split_at(bytes.len());
    for ((bytes, first), second) in bytes.iter_mut().zip(first).zip(second) {
        let low = Place::of(simd, inverse * simd.load(first)).number(simd);
        let high = Place::of(simd, inverse * simd.load(second)).number(simd);
        *bytes = simd.store_u8(simd.or(low, simd.shift_left::<4>(high)));
    }
    bytemuck::cast(bytes)
}

/// The halves of [`LEVELS`].
#[inline(always)]
fn table<S: Simd>(simd: S) -> [S::F32; 2] {
    let [low, high] = bytemuck::cast::<_, [[i8; LANES]; 2]>(LEVELS);
    [
        simd.to_f32(simd.load_i8(&low)),
        simd.to_f32(simd.load_i8(&high)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Numbers([f32; LANES]);

    impl Kernel for Numbers {
        type Output = [(i32, f32, f32, f32); LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let place = Place::of(simd, simd.load(&self.0));
            let numbers = simd.store_i32(place.number(simd));
            let [levels, next, middles] = [
                place.level(simd),
                place.next_level(simd),
                place.next_middle(simd),
            ]
            .map(|x| simd.store(x));
            std::array::from_fn(|i| (numbers[i], levels[i], next[i], middles[i]))
        }
    }

    /// Every midpoint and its neighbours, every level, and numbers beyond them.
    #[test]
    fn binary_search_finds_the_nearest_level() {
        let mut numbers = vec![
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        numbers.extend(
            MIDDLES[..15]
                .iter()
                .flat_map(|m| [m.next_down(), *m, m.next_up()]),
        );
        numbers.extend(LEVELS.map(f32::from));
        numbers.resize(numbers.len().next_multiple_of(LANES), 1e-30);
        for eight in numbers.as_chunks().0 {
            for isa in Isa::available() {
                for (x, found) in eight.iter().zip(isa.run(Numbers(*eight))) {
                    let number = MIDDLES[..15]
                        .iter()
                        .filter(|m| x >= *m || x.is_nan())
                        .count();
                    let level = |i: usize| f32::from(LEVELS[i.min(15)]);
                    let expected = (
                        number as i32,
                        level(number),
                        level(number + 1),
                        MIDDLES[number],
                    );
                    assert_eq!(found, expected, "{x} with {}", isa.name());
                }
            }
        }
    }
}
