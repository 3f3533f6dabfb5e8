//! Codebook types: groups of eight columns in sequence, each row by itself.
//!
//! The errors of a group interact, so its best points are not those nearest to its weights: the
//! whole codebook is searched with the group's quadratic form ([`Metric`]), eight points at a time.
//! Signs start as those of the weights; a forbidden parity is fixed at the lowest cost. Then sign
//! changes and searches alternate as long as the cost falls.

use super::{Coupling, Metric};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::{Block, quantize_row};

/// Weights in a block, and groups of eight columns.
const N: usize = 256;
const GROUPS: usize = N / 8;

/// A codebook of points with four values, eight points at a time, by position.
pub(crate) struct Fours {
    eights: Vec<[[f32; LANES]; 4]>,
}

impl Fours {
    /// From the values of the points, in units of the scale; their number is a multiple of eight.
    pub(crate) fn new(points: &[[f32; 4]]) -> Fours {
        Fours {
            eights: points.as_chunks().0.iter().map(by_position).collect(),
        }
    }

    pub(super) fn point(&self, number: u16) -> [f32; 4] {
        let (eight, lane) = (usize::from(number) / LANES, usize::from(number) % LANES);
        std::array::from_fn(|i| self.eights[eight][i][lane])
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.eights.len() * LANES
    }

    /// The point of least cost.
    #[inline(always)]
    fn cheapest<S: Simd>(&self, simd: S, Quadratic { m, h }: &Quadratic<4>) -> u16 {
        let form = Form::new(simd, m, h);
        let (mut least, mut at) = (simd.splat(f32::INFINITY), simd.splat_i32(0));
        for (number, eight) in self.eights.iter().enumerate() {
            let cost = form.of(simd, eight);
            let better = simd.lt(cost, least);
            least = simd.select(better, cost, least);
            at = simd.select_i32(better, simd.splat_i32(number as i32), at);
        }
        let (_, lane) = least_lane(simd, least);
        (simd.store_i32(at)[lane] as usize * LANES + lane) as u16
    }
}

/// Four numbers of eight points each, by position.
fn by_position(points: &[[f32; 4]; LANES]) -> [[f32; LANES]; 4] {
    std::array::from_fn(|i| std::array::from_fn(|lane| points[lane][i]))
}

/// The least of eight numbers, and its first lane.
#[inline(always)]
fn least_lane<S: Simd>(simd: S, numbers: S::F32) -> (f32, usize) {
    let numbers = simd.store(numbers);
    let mut best = 0;
    for lane in 1..LANES {
        if numbers[lane] < numbers[best] {
            best = lane;
        }
    }
    (numbers[best], best)
}

/// The cost of a point `v`: `v^T m v - 2 h^T v`.
struct Quadratic<const D: usize> {
    m: [[f32; D]; D],
    h: [f32; D],
}

/// A [`Quadratic`] of four values, for eight points at a time.
#[derive(Clone, Copy)]
struct Form<S: Simd> {
    /// The diagonal, and twice the upper triangle.
    m: [[S::F32; 4]; 4],
    twice_h: [S::F32; 4],
}

impl<S: Simd> Form<S> {
    #[inline(always)]
    fn new(simd: S, m: &[[f32; 4]; 4], h: &[f32; 4]) -> Form<S> {
        let zero = simd.splat(0.0);
        let mut form = Form {
            m: [[zero; 4]; 4],
            twice_h: [zero; 4],
        };
        for i in 0..4 {
            form.twice_h[i] = simd.splat(2.0 * h[i]);
            for j in i..4 {
                form.m[i][j] = simd.splat(if i == j { m[i][i] } else { 2.0 * m[i][j] });
            }
        }
        form
    }

    #[inline(always)]
    fn of(&self, simd: S, points: &[[f32; LANES]; 4]) -> S::F32 {
        let mut v = [simd.splat(0.0); 4];
        for i in 0..4 {
            v[i] = simd.load(&points[i]);
        }
        let mut cost = simd.splat(0.0);
        for i in 0..4 {
            let mut slope = v[i] * self.m[i][i] - self.twice_h[i];
            for j in i + 1..4 {
                slope = slope + v[j] * self.m[i][j];
            }
            cost = cost + v[i] * slope;
        }
        cost
    }
}

/// A codebook of points with eight values, grouped by their first halves.
///
/// The cost of a first half, minimized over arbitrary second halves, is a lower bound for all its
/// points: where the bound is not below the best cost so far, these points are skipped.
pub(crate) struct Eights {
    points: Vec<[f32; 8]>,
    /// Distinct first halves, eight at a time, padded with the last one.
    firsts: Vec<[[f32; LANES]; 4]>,
    /// For each first half, the start of its rows in `seconds`; they end at the next entry.
    starts: Vec<u32>,
    /// Second halves, eight at a time, padded with the last one of their first half; and the
    /// indices of the points.
    seconds: Vec<([[f32; LANES]; 4], [u16; LANES])>,
}

/// The cost of eight values, and of the first four minimized over the other four.
struct Forms {
    all: Quadratic<8>,
    first: Quadratic<4>,
    /// Makes both costs comparable.
    offset: f32,
    /// Bound on rounding errors of the comparison.
    slack: f32,
}

/// A point of a codebook and its cost.
#[derive(Clone, Copy)]
struct Candidate {
    number: u16,
    cost: f32,
}

impl Eights {
    /// From the values of the points, in units of the scale.
    pub(crate) fn new(points: &[[f32; 8]]) -> Eights {
        let half = |point: &[f32; 8], from: usize| -> [f32; 4] {
            std::array::from_fn(|i| point[from + i])
        };
        let mut order: Vec<u16> = (0..points.len() as u16).collect();
        let key = |n: &u16| half(&points[usize::from(*n)], 0).map(f32::to_bits);
        order.sort_by_key(key);
        let mut eights = Eights {
            points: points.to_vec(),
            firsts: Vec::new(),
            starts: Vec::new(),
            seconds: Vec::new(),
        };
        let mut firsts = Vec::new();
        for same in order.chunk_by(|a, b| key(a) == key(b)) {
            firsts.push(half(&points[usize::from(same[0])], 0));
            eights.starts.push(eights.seconds.len() as u32);
            for some in same.chunks(LANES) {
                let numbers: [u16; LANES] = std::array::from_fn(|i| some[i.min(some.len() - 1)]);
                let others = numbers.map(|n| half(&points[usize::from(n)], 4));
                eights.seconds.push((by_position(&others), numbers));
            }
        }
        eights.starts.push(eights.seconds.len() as u32);
        let padded =
            |some: &[[f32; 4]]| by_position(&std::array::from_fn(|i| some[i.min(some.len() - 1)]));
        eights.firsts = firsts.chunks(LANES).map(padded).collect();
        eights
    }

    pub(super) fn point(&self, number: u16) -> [f32; 8] {
        self.points[usize::from(number)]
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    /// The point of least cost.
    #[inline(always)]
    fn cheapest<S: Simd>(&self, simd: S, forms: &Forms) -> u16 {
        /// The largest number of rows of any codebook: three values in four places.
        const MOST: usize = 11;
        let form = Form::new(simd, &forms.first.m, &forms.first.h);
        let offset = simd.splat(forms.offset - forms.slack);
        let mut bounds = [[f32::INFINITY; LANES]; MOST];
        let (mut least, mut at) = (simd.splat(f32::INFINITY), simd.splat_i32(0));
        for (i, firsts) in self.firsts.iter().enumerate() {
            let bound = form.of(simd, firsts) + offset;
            bounds[i] = simd.store(bound);
            let better = simd.lt(bound, least);
            least = simd.select(better, bound, least);
            at = simd.select_i32(better, simd.splat_i32(i as i32), at);
        }
        let (_, lane) = least_lane(simd, least);
        // The most promising half first, so that few others remain.
        let likely = simd.store_i32(at)[lane] as usize * LANES + lane;
        let second = Quadratic {
            m: sub_form(&forms.all.m, 4),
            h: quarter(&forms.all.h, 4),
        };
        let none = Candidate {
            number: 0,
            cost: f32::INFINITY,
        };
        let mut best = self.cheapest_of(simd, &forms.all, &second, likely, none);
        let halves = self.starts.len() - 1;
        for first in 0..halves {
            if bounds[first / LANES][first % LANES] < best.cost && first != likely {
                best = self.cheapest_of(simd, &forms.all, &second, first, best);
            }
        }
        best.number
    }

    /// The cheapest of `best` and the points with this first half. `second` is the cost of second
    /// halves alone.
    #[inline(always)]
    fn cheapest_of<S: Simd>(
        &self,
        simd: S,
        all: &Quadratic<8>,
        second: &Quadratic<4>,
        first: usize,
        best: Candidate,
    ) -> Candidate {
        let v: [f32; 4] = std::array::from_fn(|i| self.firsts[first / LANES][i][first % LANES]);
        let (mut base, mut h) = (0.0, second.h);
        for i in 0..4 {
            let row: f32 = (0..4).map(|j| all.m[i][j] * v[j]).sum();
            base += v[i] * (row - 2.0 * all.h[i]);
            for j in 0..4 {
                h[j] -= all.m[4 + j][i] * v[i];
            }
        }
        let form = Form::new(simd, &second.m, &h);
        let rows = &self.seconds[self.starts[first] as usize..self.starts[first + 1] as usize];
        let (mut least, mut at) = (simd.splat(f32::INFINITY), simd.splat_i32(0));
        for (i, (others, _)) in rows.iter().enumerate() {
            let cost = form.of(simd, others);
            let better = simd.lt(cost, least);
            least = simd.select(better, cost, least);
            at = simd.select_i32(better, simd.splat_i32(i as i32), at);
        }
        let (cost, lane) = least_lane(simd, least);
        match base + cost < best.cost {
            true => Candidate {
                number: rows[simd.store_i32(at)[lane] as usize].1[lane],
                cost: base + cost,
            },
            false => best,
        }
    }
}

/// The part of a quadratic form for the four values from `from` on.
#[inline(always)]
fn sub_form(m: &[[f32; 8]; 8], from: usize) -> [[f32; 4]; 4] {
    let mut own = [[0.0; 4]; 4];
    for i in 0..4 {
        own[i].copy_from_slice(&m[from + i][from..from + 4]);
    }
    own
}

/// Four of eight numbers, from `from` on.
#[inline(always)]
fn quarter(x: &[f32; 8], from: usize) -> [f32; 4] {
    [x[from], x[from + 1], x[from + 2], x[from + 3]]
}

/// The choice for a group of eight columns.
#[derive(Clone, Copy, Default)]
pub(crate) struct Choice {
    /// The point; or the points of the first and the last four columns.
    pub(crate) points: [u16; 2],
    /// Bit `i` is set if weight `i` is negative.
    pub(crate) signs: u8,
    /// True if the values are shifted down, in types with a shift.
    pub(crate) down: bool,
}

/// The points of a type.
pub(crate) enum Points {
    /// One point for eight magnitudes, with separate signs.
    Eight(&'static Eights),
    /// Two points for four magnitudes each, with separate signs.
    Four(&'static Fours),
    /// One point for eight signed values, shifted up or down by this much.
    Shifted(&'static Eights, f32),
}

impl Points {
    /// The least distance between values of one weight, in units of the scale.
    pub(super) fn spacing(&self) -> f32 {
        let least = |values: &[f32]| values.iter().copied().fold(f32::INFINITY, f32::min);
        match self {
            // The least magnitude, from its negative.
            Points::Eight(book) => 2.0 * least(&book.point(0)),
            Points::Four(book) => 2.0 * least(&book.point(0)),
            Points::Shifted(..) => 1.0,
        }
    }
}

/// A type with a codebook.
pub(crate) trait Pointed: Block<N> {
    /// Weights under one scale.
    const SUB: usize;
    /// True if the number of minus signs in a group must be even.
    const EVEN_SIGNS: bool = false;
    /// True if each group has its own shift; otherwise [`Pointed::nudge`] flips the shift of the
    /// sub-block.
    const SHIFTS_GROUPS: bool = false;
    /// Candidate changes of a sub-block's scale, in its own steps, and of its shift; the first is
    /// none.
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0]];

    /// The points.
    fn points() -> Points;

    /// Factor of a sub-block's values.
    fn scale(&self, sub: usize) -> f32;

    /// True if the values of a sub-block are shifted down.
    fn down(&self, _sub: usize) -> bool {
        false
    }

    /// Changes the scale of a sub-block, as far as the type can, and flips its shift if the second
    /// entry is not 0.
    fn nudge(&mut self, sub: usize, change: [i8; 2]);

    /// Replaces the choices.
    fn set_choices(&mut self, choices: &[Choice; GROUPS]);
}

/// [`RoundEight`](super::RoundEight) for a type with a codebook.
pub(crate) fn round_pointed<B: Pointed>(
    isa: Isa,
    coupling: Coupling<'_>,
    weights: &mut [f32],
    blocks: &mut [u8],
) {
    for (x, block) in weights
        .as_chunks_mut::<N>()
        .0
        .iter_mut()
        .zip(blocks.chunks_exact_mut(size_of::<B>()))
    {
        quantize_row::<B, N>(isa, x, Some(&coupling.costs[..N]), block);
        if let [block] = bytemuck::cast_slice_mut::<u8, B>(block) {
            isa.run(Round { coupling, x, block });
        }
    }
}

/// The choices nearest to the weights, with the scales of a block.
pub(super) fn nearest_choices<B: Pointed>(isa: Isa, block: &B, x: &[f32; N]) -> [Choice; GROUPS] {
    isa.run(Nearest { x, block })
}

struct Nearest<'a, B> {
    x: &'a [f32; N],
    block: &'a B,
}

impl<B: Pointed> Kernel for Nearest<'_, B> {
    type Output = [Choice; GROUPS];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [Choice; GROUPS] {
        let points = B::points();
        let mut choices = [Choice::default(); GROUPS];
        for sub in 0..N / B::SUB {
            let first = sub * B::SUB;
            let here = Try {
                first,
                x: &self.x[first..first + B::SUB],
                scale: self.block.scale(sub),
                down: self.block.down(sub),
            };
            let tried = round_sub::<S, B>(simd, Coupling::NONE, here, &points);
            choices[first / 8..][..B::SUB / 8].copy_from_slice(&tried.choices[..B::SUB / 8]);
        }
        choices
    }
}

struct Round<'a, B> {
    coupling: Coupling<'a>,
    x: &'a mut [f32; N],
    block: &'a mut B,
}

/// A sub-block to round at one scale.
struct Try<'a> {
    /// Index of its first column.
    first: usize,
    x: &'a [f32],
    scale: f32,
    /// True if its values are shifted down.
    down: bool,
}

/// A sub-block rounded at one scale.
#[derive(Clone, Copy)]
struct Tried {
    cost: f32,
    /// Only the first entries are used, one per column of the sub-block.
    errors: [f32; 32],
    choices: [Choice; 4],
}

/// A group of eight columns to round.
struct Group<'a> {
    metric: &'a Metric,
    x: [f32; 8],
    scale: f32,
}

/// Scale and shift of a group's sub-block.
#[derive(Clone, Copy)]
pub(super) struct Under {
    pub(super) scale: f32,
    /// True if its values are shifted down.
    pub(super) down: bool,
}

/// A rounded group.
pub(super) struct Rounded {
    pub(super) choice: Choice,
    /// Dequantized values of the choice.
    pub(super) values: [f32; 8],
    pub(super) cost: f32,
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
            let mut best = Tried {
                cost: f32::INFINITY,
                errors: [0.0; 32],
                choices: [Choice::default(); 4],
            };
            let mut best_change = B::TRIES[0];
            for (number, &change) in B::TRIES.iter().enumerate() {
                let mut changed = *block;
                changed.nudge(sub, change);
                let scale = changed.scale(sub);
                if number > 0 && scale == block.scale(sub) && changed.down(sub) == block.down(sub) {
                    continue;
                }
                let sub = Try {
                    first: from,
                    x: &x[from..to],
                    scale,
                    down: changed.down(sub),
                };
                let tried = round_sub::<S, B>(simd, coupling, sub, &points);
                if number == 0 || tried.cost < best.cost {
                    (best, best_change) = (tried, change);
                }
            }
            block.nudge(sub, best_change);
            choices[from / 8..to / 8].copy_from_slice(&best.choices[..B::SUB / 8]);
            x[from..to].copy_from_slice(&best.errors[..B::SUB]);
            for j in from..to {
                let error = x[j];
                feed_back(error, coupling.row(j, to, N), &mut x[to..]);
            }
        }
        block.set_choices(&choices);
    }
}

/// Compensates an error in the columns not yet rounded.
#[inline(always)]
fn feed_back(error: f32, factors: &[f32], open: &mut [f32]) {
    open.iter_mut()
        .zip(factors)
        .for_each(|(x, factor)| *x -= error * factor);
}

/// Rounds a sub-block; its errors are compensated in later columns of the sub-block.
#[inline(always)]
fn round_sub<S: Simd, B: Pointed>(
    simd: S,
    coupling: Coupling<'_>,
    sub: Try<'_>,
    points: &Points,
) -> Tried {
    let Try {
        first,
        x,
        scale,
        down,
    } = sub;
    let mut tried = Tried {
        cost: 0.0,
        errors: [0.0; 32],
        choices: [Choice::default(); 4],
    };
    let y = &mut tried.errors[..B::SUB];
    y.copy_from_slice(x);
    for number in 0..B::SUB / 8 {
        let at = number * 8;
        let metric = &coupling.groups[first / 8 + number];
        let x = std::array::from_fn(|i| y[at + i]);
        let rounded = search_group::<S, B>(simd, metric, x, Under { scale, down }, points);
        tried.choices[number] = rounded.choice;
        for (i, value) in rounded.values.into_iter().enumerate() {
            let error = y[at + i] - value;
            tried.cost += coupling.costs[first + at + i] * error * error;
            y[at + i] = error;
            let factors = coupling.row(first + at + i, first + at + i + 1, first + B::SUB);
            feed_back(error, factors, &mut y[at + i + 1..]);
        }
    }
    tried
}

/// The best choice for a group given all other columns: `x` is its target in the metric.
#[inline(always)]
pub(super) fn search_group<S: Simd, B: Pointed>(
    simd: S,
    metric: &Metric,
    x: [f32; 8],
    under: Under,
    points: &Points,
) -> Rounded {
    let group = Group {
        metric,
        x,
        scale: under.scale,
    };
    match points {
        Points::Shifted(book, shift) if B::SHIFTS_GROUPS => {
            let up = shifted(simd, book, &group, *shift, false);
            let down = shifted(simd, book, &group, *shift, true);
            if down.cost < up.cost { down } else { up }
        }
        Points::Shifted(book, shift) => shifted(simd, book, &group, *shift, under.down),
        Points::Eight(book) => signed(simd, *book, &group, B::EVEN_SIGNS),
        Points::Four(book) => signed(simd, *book, &group, B::EVEN_SIGNS),
    }
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

/// The best point for signed values that are all shifted up or down.
#[inline(always)]
fn shifted<S: Simd>(simd: S, book: &Eights, group: &Group<'_>, shift: f32, down: bool) -> Rounded {
    let Group {
        metric,
        ref x,
        scale,
    } = *group;
    let shift = if down { -shift } else { shift };
    // The values are scale * (point + shift): subtract the shift's part first.
    let rest = x.map(|x| x - scale * shift);
    let number = cheapest_of_eight(simd, book, metric, &rest, &[scale; 8]);
    let values = book.point(number).map(|v| scale * (v + shift));
    Rounded {
        choice: Choice {
            points: [number, 0],
            signs: 0,
            down,
        },
        values,
        cost: cost(&metric.eight, x, &values),
    }
}

/// Cost of replacing `x` by `values`.
#[inline(always)]
fn cost(m: &[[f32; 8]; 8], x: &[f32; 8], values: &[f32; 8]) -> f32 {
    let errors: [f32; 8] = std::array::from_fn(|i| x[i] - values[i]);
    times(m, &errors)
        .iter()
        .zip(errors)
        .map(|(m, e)| m * e)
        .sum()
}

/// Search of the magnitudes of a group, given the signs.
trait Magnitudes {
    /// Points, and the signed values in units of the scale.
    fn find<S: Simd>(
        &self,
        simd: S,
        metric: &Metric,
        x: &[f32; 8],
        scales: &[f32; 8],
    ) -> ([u16; 2], [f32; 8]);
}

/// The best point for eight weights, each a value of the point times its scale.
#[inline(always)]
fn cheapest_of_eight<S: Simd>(
    simd: S,
    book: &Eights,
    metric: &Metric,
    x: &[f32; 8],
    scales: &[f32; 8],
) -> u16 {
    /// Relative to the compared costs.
    const SLACK: f32 = 1e-4;
    let slopes = times(&metric.eight, x);
    let (x4, scales4) = (quarter(x, 0), quarter(scales, 0));
    let slopes4 = times(&metric.first_four, &x4);
    let all: f32 = x.iter().zip(slopes).map(|(x, s)| x * s).sum();
    let first: f32 = x4.iter().zip(slopes4).map(|(x, s)| x * s).sum();
    let forms = Forms {
        all: in_units(&metric.eight, &slopes, scales),
        first: in_units(&metric.first_four, &slopes4, &scales4),
        offset: first - all,
        slack: SLACK * all,
    };
    book.cheapest(simd, &forms)
}

impl Magnitudes for Eights {
    #[inline(always)]
    fn find<S: Simd>(
        &self,
        simd: S,
        metric: &Metric,
        x: &[f32; 8],
        scales: &[f32; 8],
    ) -> ([u16; 2], [f32; 8]) {
        let number = cheapest_of_eight(simd, self, metric, x, scales);
        let point = self.point(number);
        ([number, 0], std::array::from_fn(|i| scales[i] * point[i]))
    }
}

impl Magnitudes for Fours {
    #[inline(always)]
    fn find<S: Simd>(
        &self,
        simd: S,
        metric: &Metric,
        x: &[f32; 8],
        scales: &[f32; 8],
    ) -> ([u16; 2], [f32; 8]) {
        /// Number of alternating updates of the two halves.
        const ROUNDS: usize = 2;
        let ([x0, _], [s0, s1]): ([[f32; 4]; 2], [[f32; 4]; 2]) =
            (bytemuck::cast(*x), bytemuck::cast(*scales));
        // The first half, with its errors compensated in the second.
        let form = in_units(&metric.first_four, &times(&metric.first_four, &x0), &s0);
        let mut numbers = [self.cheapest(simd, &form), 0];
        let mut values = [self.values(numbers[0], &s0), [0.0; 4]];
        for turn in 0..2 * ROUNDS - 1 {
            let half = (turn + 1) % 2;
            // Target of this half, given the errors of the other.
            let mut open: [[f32; 4]; 2] = bytemuck::cast(*x);
            for i in 0..4 {
                open[1 - half][i] -= values[1 - half][i];
            }
            let slopes: [[f32; 4]; 2] = bytemuck::cast(times(&metric.eight, &bytemuck::cast(open)));
            let scales = if half == 0 { &s0 } else { &s1 };
            let form = in_units(&sub_form(&metric.eight, 4 * half), &slopes[half], scales);
            let number = self.cheapest(simd, &form);
            if turn > 0 && number == numbers[half] {
                break;
            }
            (numbers[half], values[half]) = (number, self.values(number, scales));
        }
        (numbers, bytemuck::cast(values))
    }
}

impl Fours {
    fn values(&self, number: u16, scales: &[f32; 4]) -> [f32; 4] {
        let point = self.point(number);
        std::array::from_fn(|i| scales[i] * point[i])
    }
}

/// The cost of points in their own units, from the quadratic form and the slope of weights, each of
/// which is a point's value times its scale.
#[inline(always)]
fn in_units<const D: usize>(
    m: &[[f32; D]; D],
    slope: &[f32; D],
    scales: &[f32; D],
) -> Quadratic<D> {
    let (mut m, mut h) = (*m, *slope);
    for i in 0..D {
        h[i] *= scales[i];
        for j in 0..D {
            m[i][j] *= scales[i] * scales[j];
        }
    }
    Quadratic { m, h }
}

/// The best signs and points found for a group.
#[inline(always)]
fn signed<S: Simd>(simd: S, book: &impl Magnitudes, group: &Group<'_>, even: bool) -> Rounded {
    /// Number of alternations of sign changes and searches.
    const ROUNDS: usize = 3;
    let Group {
        metric,
        ref x,
        scale,
    } = *group;
    let m = &metric.eight;
    let mut signs = (0..8).fold(0u8, |signs, i| signs | u8::from(x[i] < 0.0) << i);
    if even && signs.count_ones() % 2 == 1 {
        let cost = |i: &usize| m[*i][*i] * x[*i] * x[*i];
        let cheapest = (1..8).fold(0, |best, i| if cost(&i) < cost(&best) { i } else { best });
        signs ^= 1 << cheapest;
    }
    let scales =
        |signs: u8| std::array::from_fn(|i| if signs >> i & 1 == 1 { -scale } else { scale });
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
    Rounded {
        choice: Choice {
            points,
            signs,
            down: false,
        },
        values,
        cost: least,
    }
}

/// The signs with one flipped (two, if their number must stay even) where that lowers the cost,
/// given the magnitudes.
#[inline(always)]
fn turned(m: &[[f32; 8]; 8], x: &[f32; 8], values: &[f32; 8], signs: u8, even: bool) -> u8 {
    let slopes = times(m, &std::array::from_fn(|i| x[i] - values[i]));
    // A flip increases the error by twice the value.
    let one: [f32; 8] =
        std::array::from_fn(|i| 4.0 * values[i] * (slopes[i] + values[i] * m[i][i]));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;
    use quantier_core::rng::Rng;

    /// Every skipped point costs more than the result.
    #[test]
    fn search_finds_the_cheapest_point() {
        let mut rng = Rng::new(5);
        let mut next = || rng.centered();
        let points: Vec<[f32; 8]> = (0..600)
            .map(|_| std::array::from_fn(|_| [8.0, 25.0, 43.0][(next() * 2.999 + 1.5) as usize]))
            .collect();
        let book = Eights::new(&points);
        for _ in 0..200 {
            let mut coupling = [[0.0f32; 8]; 8];
            coupling
                .as_flattened_mut()
                .iter_mut()
                .for_each(|c| *c = next() * 1.5);
            let costs: [f32; 8] = std::array::from_fn(|_| next() + 0.6);
            let metric = Metric::new(std::array::from_fn(|j| &coupling[j][..]), &costs);
            let x: [f32; 8] = std::array::from_fn(|_| next() * 2.0);
            let scales: [f32; 8] = std::array::from_fn(|_| if next() < 0.0 { -0.03 } else { 0.03 });
            let of = |point: &[f32; 8]| {
                cost(
                    &metric.eight,
                    &x,
                    &std::array::from_fn(|i| scales[i] * point[i]),
                )
            };
            let found = of(&book.point(cheapest_of_eight(Scalar, &book, &metric, &x, &scales)));
            let least = points.iter().map(of).fold(f32::INFINITY, f32::min);
            assert!(
                found <= least * 1.001 + 1e-4,
                "{found} was found and {least} is there"
            );
        }
    }
}
