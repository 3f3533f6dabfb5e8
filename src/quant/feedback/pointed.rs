//! Types with codebooks: group after group of eight columns, each row for itself.
//!
//! The errors of a group act on each other, so its points are not those nearest to its weights: the whole codebook is
//! gone through with the group's quadratic form ([`Metric`](super::Metric)), eight points at a time. Signs are those of the weights, a forbidden
//! parity mended where that costs least; then signs are turned and points looked for again as long as it helps.

use super::{Coupling, Metric};
use crate::quant::{Block, quantize_row};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Weights in a block, and groups of eight columns.
const N: usize = 256;
const GROUPS: usize = N / 8;

/// The points of a codebook, eight at a time, by position.
pub(in crate::quant) struct Book<const D: usize> {
    eights: Vec<[[f32; LANES]; D]>,
}

impl<const D: usize> Book<D> {
    /// From the values of the points, in units of the scale; there are a multiple of eight.
    pub(in crate::quant) fn new(points: &[[f32; D]]) -> Book<D> {
        let eight = |points: &[[f32; D]; LANES]| std::array::from_fn(|i| std::array::from_fn(|lane| points[lane][i]));
        Book { eights: points.as_chunks().0.iter().map(eight).collect() }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.eights.len() * LANES
    }

    pub(super) fn point(&self, number: u16) -> [f32; D] {
        let (eight, lane) = (usize::from(number) / LANES, usize::from(number) % LANES);
        std::array::from_fn(|i| self.eights[eight][i][lane])
    }

    /// The point `v` with the least `v^T m v - 2 h^T v`, and that.
    #[inline(always)]
    fn cheapest<S: Simd>(&self, simd: S, m: &[[f32; D]; D], h: &[f32; D]) -> (u16, f32) {
        let zero = simd.splat(0.0);
        let mut twice = [[zero; D]; D];
        for i in 0..D {
            for j in i..D {
                twice[i][j] = simd.splat(if i == j { m[i][i] } else { 2.0 * m[i][j] });
            }
        }
        let mut twice_h = [zero; D];
        for i in 0..D {
            twice_h[i] = simd.splat(2.0 * h[i]);
        }
        let (mut least, mut at) = (simd.splat(f32::INFINITY), simd.splat_i32(0));
        for (number, eight) in self.eights.iter().enumerate() {
            let mut v = [zero; D];
            for i in 0..D {
                v[i] = simd.load(&eight[i]);
            }
            let mut cost = zero;
            for i in 0..D {
                let mut slope = v[i] * twice[i][i] - twice_h[i];
                for j in i + 1..D {
                    slope = slope + v[j] * twice[i][j];
                }
                cost = cost + v[i] * slope;
            }
            let better = simd.lt(cost, least);
            least = simd.select(better, cost, least);
            at = simd.select_i32(better, simd.splat_i32(number as i32), at);
        }
        let (costs, at) = (simd.store(least), simd.store_i32(at));
        let mut best = 0;
        for lane in 1..LANES {
            if costs[lane] < costs[best] {
                best = lane;
            }
        }
        ((at[best] as usize * LANES + best) as u16, costs[best])
    }
}

/// What is chosen for a group of eight columns.
#[derive(Clone, Copy, Default)]
pub(in crate::quant) struct Choice {
    /// The point; or that of the first four columns and that of the others.
    pub(in crate::quant) points: [u16; 2],
    /// Bit `i` is set where weight `i` is negative.
    pub(in crate::quant) signs: u8,
    /// Whether the values are shifted down, in types that shift.
    pub(in crate::quant) down: bool,
}

/// The points of a type.
pub(in crate::quant) enum Points {
    /// One for eight magnitudes, with signs apart.
    Eight(&'static Book<8>),
    /// Two for four magnitudes each, with signs apart.
    Four(&'static Book<4>),
    /// One for eight values with their signs, shifted up or down by so much.
    Shifted(&'static Book<8>, f32),
}

/// A type with a codebook.
pub(in crate::quant) trait Pointed: Block<N> {
    /// Weights under one scale.
    const SUB: usize;
    /// Whether the number of minus signs in a group must be even.
    const EVEN_SIGNS: bool = false;
    /// Whether each group has a shift of its own; else [`Pointed::nudge`] turns that of the sub-block.
    const SHIFTS_GROUPS: bool = false;
    /// Changes of a sub-block's scale, in its own steps, and of its shift, that are tried; the first is none.
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0]];

    /// The points.
    fn points() -> Points;

    /// What the values of a sub-block are multiplied by.
    fn scale(&self, sub: usize) -> f32;

    /// Whether the values of a sub-block are shifted down.
    fn down(&self, _sub: usize) -> bool {
        false
    }

    /// Changes the scale of a sub-block, as far as the type can, and turns its shift if the second is not 0.
    fn nudge(&mut self, sub: usize, change: [i8; 2]);

    /// Takes these choices for those that are there.
    fn set_choices(&mut self, choices: &[Choice; GROUPS]);
}

/// [`RoundEight`](super::RoundEight) for a type with a codebook.
pub(in crate::quant) fn round_pointed<B: Pointed>(
    isa: Isa,
    coupling: Coupling<'_>,
    importance: Option<&[f32]>,
    weights: &mut [f32],
    blocks: &mut [u8],
) {
    for (x, block) in weights.as_chunks_mut::<N>().0.iter_mut().zip(blocks.chunks_exact_mut(size_of::<B>())) {
        quantize_row::<B, N>(isa, x, importance, block);
        if let [block] = bytemuck::cast_slice_mut::<u8, B>(block) {
            isa.run(Round { coupling, x, block });
        }
    }
}

struct Round<'a, B> {
    coupling: Coupling<'a>,
    x: &'a mut [f32; N],
    block: &'a mut B,
}

/// A sub-block rounded at one scale.
#[derive(Clone, Copy)]
struct Tried {
    cost: f32,
    /// As many as the sub-block has columns.
    errors: [f32; 32],
    choices: [Choice; 4],
}

impl<B: Pointed> Kernel for Round<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        const { assert!(B::SUB <= 32 && B::SUB.is_multiple_of(8)) };
        let Round { coupling, x, block } = self;
        let points = B::points();
        let mut choices = [Choice::default(); GROUPS];
        for sub in 0..N / B::SUB {
            let (from, to) = (sub * B::SUB, (sub + 1) * B::SUB);
            let mut best = Tried { cost: f32::INFINITY, errors: [0.0; 32], choices: [Choice::default(); 4] };
            let mut best_change = B::TRIES[0];
            for (number, &change) in B::TRIES.iter().enumerate() {
                let mut changed = *block;
                changed.nudge(sub, change);
                let scale = changed.scale(sub);
                if number > 0 && scale == block.scale(sub) && changed.down(sub) == block.down(sub) {
                    continue;
                }
                let tried = round_sub::<S, B>(simd, coupling, &x[from..to], from, &points, (scale, changed.down(sub)));
                if number == 0 || tried.cost < best.cost {
                    (best, best_change) = (tried, change);
                }
            }
            block.nudge(sub, best_change);
            choices[from / 8..to / 8].copy_from_slice(&best.choices[..B::SUB / 8]);
            x[from..to].copy_from_slice(&best.errors[..B::SUB]);
            for j in from..to {
                let error = x[j];
                let factors = coupling.row(j, to, N);
                x[to..].iter_mut().zip(factors).for_each(|(x, factor)| *x -= error * factor);
            }
        }
        block.set_choices(&choices);
    }
}

/// Rounds a sub-block that begins at column `first`; its errors go to the columns within it.
#[inline(always)]
fn round_sub<S: Simd, B: Pointed>(
    simd: S,
    coupling: Coupling<'_>,
    x: &[f32],
    first: usize,
    points: &Points,
    (scale, down): (f32, bool),
) -> Tried {
    let mut tried = Tried { cost: 0.0, errors: [0.0; 32], choices: [Choice::default(); 4] };
    let y = &mut tried.errors[..B::SUB];
    y.copy_from_slice(x);
    for group in 0..B::SUB / 8 {
        let at = group * 8;
        let metric = &coupling.groups[first / 8 + group];
        let here: [f32; 8] = std::array::from_fn(|i| y[at + i]);
        let (choice, values) = match points {
            Points::Shifted(book, shift) if B::SHIFTS_GROUPS => {
                let up = shifted(simd, book, metric, &here, scale, *shift);
                let down = shifted(simd, book, metric, &here, scale, -*shift);
                let (of, down) = if down.2 < up.2 { (down, true) } else { (up, false) };
                (Choice { points: [of.0, 0], signs: 0, down }, of.1)
            }
            Points::Shifted(book, shift) => {
                let shift = if down { -*shift } else { *shift };
                let of = shifted(simd, book, metric, &here, scale, shift);
                (Choice { points: [of.0, 0], signs: 0, down }, of.1)
            }
            Points::Eight(book) => signed(simd, *book, metric, &here, scale, B::EVEN_SIGNS),
            Points::Four(book) => signed(simd, *book, metric, &here, scale, B::EVEN_SIGNS),
        };
        tried.choices[group] = choice;
        for (i, value) in values.into_iter().enumerate() {
            let error = y[at + i] - value;
            tried.cost += coupling.costs[first + at + i] * error * error;
            y[at + i] = error;
            let factors = coupling.row(first + at + i, first + at + i + 1, first + B::SUB);
            y[at + i + 1..].iter_mut().zip(factors).for_each(|(y, factor)| *y -= error * factor);
        }
    }
    tried
}

/// `m x`.
#[inline(always)]
fn times<const D: usize>(m: &[[f32; D]; D], x: &[f32; D]) -> [f32; D] {
    let mut out = [0.0; D];
    for i in 0..D {
        for j in 0..D {
            out[i] += m[i][j] * x[j];
        }
    }
    out
}

/// The best point of values that have their signs and are all shifted, its weights, and what it costs (less what every
/// choice costs).
#[inline(always)]
fn shifted<S: Simd>(
    simd: S,
    book: &Book<8>,
    metric: &Metric,
    x: &[f32; 8],
    scale: f32,
    shift: f32,
) -> (u16, [f32; 8], f32) {
    let m = &metric.eight;
    // Of scale * (point + shift): the shift's part is taken away first.
    let rest = x.map(|x| x - scale * shift);
    let h = times(m, &rest).map(|h| h * scale);
    let mut of_points = *m;
    of_points.as_flattened_mut().iter_mut().for_each(|m| *m *= scale * scale);
    let (number, _) = book.cheapest(simd, &of_points, &h);
    let values = book.point(number).map(|v| scale * (v + shift));
    (number, values, cost(m, x, &values))
}

/// What it costs to take `values` for `x`.
#[inline(always)]
fn cost(m: &[[f32; 8]; 8], x: &[f32; 8], values: &[f32; 8]) -> f32 {
    let errors: [f32; 8] = std::array::from_fn(|i| x[i] - values[i]);
    times(m, &errors).iter().zip(errors).map(|(m, e)| m * e).sum()
}

/// How magnitudes of a group are looked for, signs given.
trait Magnitudes {
    /// Points, and the signed values in units of the scale.
    fn find<S: Simd>(&self, simd: S, metric: &Metric, x: &[f32; 8], scales: &[f32; 8]) -> ([u16; 2], [f32; 8]);
}

impl Magnitudes for Book<8> {
    #[inline(always)]
    fn find<S: Simd>(&self, simd: S, metric: &Metric, x: &[f32; 8], scales: &[f32; 8]) -> ([u16; 2], [f32; 8]) {
        let (m, h) = in_units(&metric.eight, &times(&metric.eight, x), scales);
        let (number, _) = self.cheapest(simd, &m, &h);
        let point = self.point(number);
        ([number, 0], std::array::from_fn(|i| scales[i] * point[i]))
    }
}

impl Magnitudes for Book<4> {
    #[inline(always)]
    fn find<S: Simd>(&self, simd: S, metric: &Metric, x: &[f32; 8], scales: &[f32; 8]) -> ([u16; 2], [f32; 8]) {
        /// Times that either half is chosen anew, the other one given.
        const ROUNDS: usize = 2;
        let ([x0, _], [s0, s1]): ([[f32; 4]; 2], [[f32; 4]; 2]) = (bytemuck::cast(*x), bytemuck::cast(*scales));
        // The first half as if the second could make good what it can.
        let (m, h) = in_units(&metric.first_four, &times(&metric.first_four, &x0), &s0);
        let mut numbers = [self.cheapest(simd, &m, &h).0, 0];
        let mut values = [self.values(numbers[0], &s0), [0.0; 4]];
        for turn in 0..2 * ROUNDS - 1 {
            let half = (turn + 1) % 2;
            // What is wanted of this half, with the errors of the other.
            let mut open: [[f32; 4]; 2] = bytemuck::cast(*x);
            for i in 0..4 {
                open[1 - half][i] -= values[1 - half][i];
            }
            let slopes: [[f32; 4]; 2] = bytemuck::cast(times(&metric.eight, &bytemuck::cast(open)));
            let mut own = [[0.0; 4]; 4];
            for i in 0..4 {
                own[i].copy_from_slice(&metric.eight[4 * half + i][4 * half..][..4]);
            }
            let scales = if half == 0 { &s0 } else { &s1 };
            let (m, h) = in_units(&own, &slopes[half], scales);
            let number = self.cheapest(simd, &m, &h).0;
            if turn > 0 && number == numbers[half] {
                break;
            }
            (numbers[half], values[half]) = (number, self.values(number, scales));
        }
        (numbers, bytemuck::cast(values))
    }
}

impl Book<4> {
    fn values(&self, number: u16, scales: &[f32; 4]) -> [f32; 4] {
        let point = self.point(number);
        std::array::from_fn(|i| scales[i] * point[i])
    }
}

/// A quadratic form and its slope for points instead of weights, each of which is a point's value times its scale.
#[inline(always)]
fn in_units<const D: usize>(m: &[[f32; D]; D], slope: &[f32; D], scales: &[f32; D]) -> ([[f32; D]; D], [f32; D]) {
    let (mut of_points, mut h) = (*m, *slope);
    for i in 0..D {
        h[i] *= scales[i];
        for j in 0..D {
            of_points[i][j] *= scales[i] * scales[j];
        }
    }
    (of_points, h)
}

/// The best signs and points that are found for a group, and its weights.
#[inline(always)]
fn signed<S: Simd>(
    simd: S,
    book: &impl Magnitudes,
    metric: &Metric,
    x: &[f32; 8],
    scale: f32,
    even: bool,
) -> (Choice, [f32; 8]) {
    /// Times that signs are turned and points looked for again.
    const ROUNDS: usize = 3;
    let m = &metric.eight;
    let mut signs = (0..8).fold(0u8, |signs, i| signs | u8::from(x[i] < 0.0) << i);
    if even && signs.count_ones() % 2 == 1 {
        let cost = |i: &usize| m[*i][*i] * x[*i] * x[*i];
        let cheapest = (1..8).fold(0, |best, i| if cost(&i) < cost(&best) { i } else { best });
        signs ^= 1 << cheapest;
    }
    let scales = |signs: u8| std::array::from_fn(|i| if signs >> i & 1 == 1 { -scale } else { scale });
    let (mut points, mut values) = book.find(simd, metric, x, &scales(signs));
    let mut least = cost(m, x, &values);
    for _ in 0..ROUNDS {
        let turned = turned(m, x, &values, signs, even);
        if turned == signs {
            break;
        }
        let (other_points, other_values) = book.find(simd, metric, x, &scales(turned));
        let cost = cost(m, x, &other_values);
        if cost >= least {
            break;
        }
        (signs, points, values, least) = (turned, other_points, other_values, cost);
    }
    (Choice { points, signs, down: false }, values)
}

/// The signs with one turned (two, if their number must stay even) where that costs less, magnitudes given.
#[inline(always)]
fn turned(m: &[[f32; 8]; 8], x: &[f32; 8], values: &[f32; 8], signs: u8, even: bool) -> u8 {
    let slopes = times(m, &std::array::from_fn(|i| x[i] - values[i]));
    // Turned, an error grows by twice the value.
    let one: [f32; 8] = std::array::from_fn(|i| 4.0 * values[i] * (slopes[i] + values[i] * m[i][i]));
    let (mut least, mut best) = (0.0, 0);
    for i in 0..8 {
        if !even {
            if one[i] < least {
                (least, best) = (one[i], 1 << i);
            }
            continue;
        }
        for j in 0..i {
            let both = one[i] + one[j] + 8.0 * values[i] * values[j] * m[i][j];
            if both < least {
                (least, best) = (both, 1 << i | 1 << j);
            }
        }
    }
    signs ^ best
}
