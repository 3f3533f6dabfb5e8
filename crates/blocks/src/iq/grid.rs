//! Codebooks: small subsets of a lattice, and the map from every lattice point to its nearest
//! codebook points.
//!
//! A point has `D` levels. The points of each codebook are given by its format; `data/` holds them,
//! written by `scripts/grids.py`.
//!
//! Codebook types spend most of their time finding the neighbour with the least weighted distance.
//! So the neighbours of a point are stored together, eight levels in 32 bits, and eight neighbours
//! are summed at a time: for every position, a shift moves the levels of all eight to the index
//! bits of a table lookup. A cost table has eight entries: for one position in octal books, or for
//! two positions of at most four levels, which halves the cost of building the tables.
//!
//! The price is memory: lists are padded to whole rows of eight, which adds 5% (IQ1) to 80%
//! (IQ3_XXS), and maps take from 0.2 MB (3-bit types) to 1.2 MB (IQ2_XS) and 2.1 MB (IQ1).

use crate::simd::{LANES, Simd};
use std::sync::OnceLock;

/// Hexadecimal digits per line of a data file.
const DIGITS_PER_LINE: usize = 120;
/// Number of distances examined together.
const PART: usize = 32;

/// `N` points of `D` levels each, all levels below `base`: eight positions of up to four levels, or
/// four of eight.
pub(super) struct Codebook<const D: usize, const N: usize> {
    pub(super) levels: [[u8; D]; N],
    base: u8,
    shells: usize,
    map: OnceLock<Map>,
}

impl<const D: usize, const N: usize> Codebook<D, N> {
    /// A codebook of these points. `shells` is the number of different distances in a neighbour
    /// list.
    pub(super) const fn new(levels: [[u8; D]; N], base: u8, shells: usize) -> Self {
        Codebook {
            levels,
            base,
            shells,
            map: OnceLock::new(),
        }
    }

    /// Number of levels per position.
    #[inline]
    pub(super) const fn base(&self) -> u8 {
        self.base
    }

    /// The map of the whole lattice, built on first use (in 1 to 35 ms, depending on the size of
    /// the book).
    #[inline]
    pub(super) fn map(&self) -> &Map {
        self.map.get_or_init(|| self.build_map())
    }

    /// Lists, for every lattice point outside the book, the book's points at the nearest `shells`
    /// distances, ordered by distance, then index. Searches that keep the first of equally good
    /// points depend on that order.
    #[cold]
    fn build_map(&self) -> Map {
        let base = usize::from(self.base);
        let mut number_of = vec![None; base.pow(D as u32)];
        for (number, point) in self.levels.iter().enumerate() {
            number_of[digits(point, base)] = Some(number as u32);
        }
        let packed = self.levels.each_ref().map(pack);
        // The book itself comes first.
        let (mut points, mut numbers) = (Vec::new(), Vec::new());
        let mut append = |list: &[u16]| {
            for eight in list.chunks(LANES) {
                // Padded with the last point, which never wins.
                let eight: [u16; LANES] = std::array::from_fn(|i| eight[i.min(eight.len() - 1)]);
                numbers.push(eight);
                points.push(eight.map(|n| packed[usize::from(n)]));
            }
            points.len() as u32
        };
        let mut end = append(&std::array::from_fn::<_, N, _>(|n| n as u16));
        // A squared distance is the sum of those of the first and of the second half of the
        // positions.
        let half = base.pow(D as u32 / 2);
        let [first, second] = [0, D / 2].map(|from| {
            let points = (0..half).map(|code| self.half_distances(decode(code, base), from));
            points.collect::<Vec<_>>()
        });
        let mut list = Vec::new();
        let mut cells = Vec::with_capacity(number_of.len());
        for (code, number) in number_of.into_iter().enumerate() {
            cells.push(match number {
                Some(number) => Cell::new(number, 0),
                None => {
                    let (first, second) = (&first[code % half], &second[code / half]);
                    self.list_neighbours(&std::array::from_fn(|n| first[n] + second[n]), &mut list);
                    let start = std::mem::replace(&mut end, append(&list));
                    Cell::new(start, end - start)
                }
            });
        }
        Map {
            cells: cells.into(),
            points: points.into(),
            numbers: numbers.into(),
        }
    }

    /// The squared distances of the book's points from these levels in positions `from` to `from +
    /// D / 2`. A full distance is at most 4 * 7 * 7, in the octal books.
    fn half_distances(&self, levels: [u8; D], from: usize) -> [u8; N] {
        std::array::from_fn(|n| {
            let positions = self.levels[n][from..][..D / 2].iter().zip(levels);
            positions.map(|(&a, b)| a.abs_diff(b).pow(2)).sum()
        })
    }

    /// Lists the points on the nearest shells, given all distances.
    fn list_neighbours(&self, distances: &[u8; N], list: &mut Vec<u16>) {
        let mut last = None;
        for _ in 0..self.shells {
            let beyond = |&d: &u8| if Some(d) > last { d } else { u8::MAX };
            last = Some(distances.iter().map(beyond).min().unwrap_or(u8::MAX));
        }
        let last = last.unwrap_or(0);
        list.clear();
        for (i, some) in distances.chunks(PART).enumerate() {
            if some.iter().any(|&d| d <= last) {
                list.extend(
                    (0..some.len())
                        .filter(|&j| some[j] <= last)
                        .map(|j| (i * PART + j) as u16),
                );
            }
        }
        // Stable: equal distances keep the order of the indices.
        list.sort_by_key(|&n| distances[usize::from(n)]);
    }
}

/// Bits per position of a packed point.
const FIELD: i32 = 3;
/// Number of cost tables: one per position of eight levels, or per pair of positions `i` and `i +
/// 4` of up to four levels.
pub(super) const TABLES: usize = 4;

/// The levels of a point in one integer, position `i` in three bits from bit `3 i` on. With eight
/// positions, the last four have the top bit of their field set, so that they index the second half
/// of their tables.
pub(super) fn pack<const D: usize>(levels: &[u8; D]) -> i32 {
    let field =
        |(i, &level): (usize, &u8)| i32::from(level) | if i < TABLES { 0 } else { TABLES as i32 };
    levels
        .iter()
        .enumerate()
        .map(|position| field(position) << (FIELD * position.0 as i32))
        .sum()
}

/// Position `i` of eight packed points, in the three lowest bits; the higher bits are arbitrary.
#[inline(always)]
pub(super) fn field<S: Simd>(simd: S, points: S::I32, i: usize) -> S::I32 {
    match i {
        0 => points,
        1 => simd.shift_right::<FIELD>(points),
        2 => simd.shift_right::<{ 2 * FIELD }>(points),
        3 => simd.shift_right::<{ 3 * FIELD }>(points),
        4 => simd.shift_right::<{ 4 * FIELD }>(points),
        5 => simd.shift_right::<{ 5 * FIELD }>(points),
        6 => simd.shift_right::<{ 6 * FIELD }>(points),
        _ => simd.shift_right::<{ 7 * FIELD }>(points),
    }
}

/// Entries of `tables` for position `i` of eight packed points.
#[inline(always)]
pub(super) fn entry<S: Simd>(
    simd: S,
    tables: &[S::F32; TABLES],
    points: S::I32,
    i: usize,
) -> S::F32 {
    simd.lookup(tables[i % TABLES], field(simd, points, i))
}

/// The costs of eight points: those of their levels, summed from the first position on; the largest
/// f32 where the sum is not less.
#[inline(always)]
fn costs<S: Simd, const D: usize>(
    simd: S,
    tables: &[S::F32; TABLES],
    points: &[i32; LANES],
) -> S::F32 {
    let points = simd.load_i32(points);
    let mut sum = entry(simd, tables, points, 0);
    for i in 1..D {
        sum = sum + entry(simd, tables, points, i);
    }
    simd.min(sum, simd.splat(f32::MAX))
}

/// The index in the list of the cheapest point, the first of equals, given the cost of every level:
/// of position `i` of four in table `i`, and of positions `i` and `i + 4` of eight in the halves of
/// table `i`. `None` if no sum is below the largest f32.
///
/// Lanes are neighbours, so each sum keeps the order of its positions.
#[inline(always)]
pub(super) fn cheapest<S: Simd, const D: usize>(
    simd: S,
    list: &Neighbours<'_>,
    tables: &[S::F32; TABLES],
) -> Option<usize> {
    const { assert!(D == TABLES || D == 2 * TABLES) };
    let dearest = simd.splat(f32::MAX);
    if let [points] = list.points {
        // Many lists fit in one row and need only this.
        let cost = costs::<S, D>(simd, tables, points);
        let least = simd.min_across(cost);
        let lanes = simd.mask_bits(simd.both(simd.eq(cost, least), simd.lt(cost, dearest)));
        return (lanes != 0).then_some(lanes.trailing_zeros() as usize);
    }
    let mut least = dearest;
    let mut row = simd.splat_i32(0);
    for (i, points) in list.points.iter().enumerate() {
        let cost = costs::<S, D>(simd, tables, points);
        row = simd.select_i32(simd.lt(cost, least), simd.splat_i32(i as i32), row);
        least = simd.min(cost, least);
    }
    let all = simd.min_across(least);
    let mut lanes = simd.mask_bits(simd.both(simd.eq(least, all), simd.lt(least, dearest)));
    if lanes == 0 {
        return None;
    }
    let rows = simd.store_i32(row);
    let mut first = usize::MAX;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        first = first.min(rows[lane] as usize * LANES + lane);
        lanes &= lanes - 1;
    }
    Some(first)
}

/// The map from every lattice point into a codebook.
pub(super) struct Map {
    cells: Box<[Cell]>,
    /// The book's points, then the neighbours of all lists: packed, eight per row.
    points: Box<[[i32; LANES]]>,
    /// The indices of the same points.
    numbers: Box<[[u16; LANES]]>,
}

/// Low eight bits: the number of rows of eight neighbours, or 0 for a point of the book. High bits:
/// the first row, or the index of the point.
#[derive(Clone, Copy)]
struct Cell(u32);

impl Cell {
    fn new(start: u32, rows: u32) -> Cell {
        assert!(rows < 1 << 8 && start < 1 << 24);
        Cell(start << 8 | rows)
    }
}

/// Location of a lattice point.
pub(super) enum Place<'a> {
    /// In the book, at this index.
    Known(u16),
    /// Outside, near these points of the book.
    Among(Neighbours<'a>),
}

/// The points of a book near a lattice point outside it, ordered by distance, then index. Never
/// empty; padded with the last one to fill the lanes.
pub(super) struct Neighbours<'a> {
    points: &'a [[i32; LANES]],
    numbers: &'a [[u16; LANES]],
}

impl Neighbours<'_> {
    /// Index in the book of entry `at` of the list.
    #[inline(always)]
    pub(super) fn number(&self, at: usize) -> u16 {
        self.numbers.as_flattened()[at]
    }

    /// Entry `at` of the list, packed by [`pack`].
    #[inline(always)]
    pub(super) fn point(&self, at: usize) -> i32 {
        self.points.as_flattened()[at]
    }
}

impl Map {
    /// Looks up the point with these [`digits`].
    #[inline(always)]
    pub(super) fn at(&self, place: usize) -> Place<'_> {
        let cell = self.cells[place].0;
        let (start, rows) = ((cell >> 8) as usize, (cell & 0xff) as usize);
        match rows {
            0 => Place::Known(start as u16),
            _ => Place::Among(Neighbours {
                points: &self.points[start..start + rows],
                numbers: &self.numbers[start..start + rows],
            }),
        }
    }

    /// The book's point at this index, packed by [`pack`].
    #[inline(always)]
    pub(super) fn point(&self, number: u16) -> i32 {
        self.points.as_flattened()[usize::from(number)]
    }
}

/// The sum of 3^i over the set bits `i` of a byte.
static POWERS: [u16; 256] = {
    let mut sums = [0; 256];
    let mut bits = 1;
    while bits < 256usize {
        sums[bits] = 3u16.pow(bits.trailing_zeros()) + sums[bits & (bits - 1)];
        bits += 1;
    }
    sums
};

/// The [`digits`] of a point of eight levels 0 to 2, from one bit per position: level above 0, and
/// level above 1.
#[inline(always)]
pub(super) fn place_of_eight(above_0: u8, above_1: u8) -> usize {
    usize::from(POWERS[usize::from(above_0)]) + usize::from(POWERS[usize::from(above_1)])
}

/// The index of a point among all lattice points: its levels as digits, the first one lowest.
fn digits<const D: usize>(levels: &[u8; D], base: usize) -> usize {
    levels
        .iter()
        .rev()
        .fold(0, |code, &level| code * base + usize::from(level))
}

/// The levels of the point with these [`digits`].
const fn decode<const D: usize>(mut code: usize, base: usize) -> [u8; D] {
    let mut levels = [0; D];
    let mut i = 0;
    while i < D {
        levels[i] = (code % base) as u8;
        code /= base;
        i += 1;
    }
    levels
}

/// Points with each level replaced by `values[level]`.
pub(super) const fn spelled<const D: usize, const N: usize, const K: usize, T: Copy>(
    levels: &[[u8; D]; N],
    values: [T; K],
) -> [[T; D]; N] {
    let mut points = [[values[0]; D]; N];
    let mut n = 0;
    while n < N {
        let mut i = 0;
        while i < D {
            points[n][i] = values[levels[n][i] as usize];
            i += 1;
        }
        n += 1;
    }
    points
}

/// Reads the points from a data file: one bit for every lattice point, in index order.
pub(super) const fn read_points<const D: usize, const N: usize>(
    hex: &[u8],
    base: u8,
) -> [[u8; D]; N] {
    let mut points = [[0; D]; N];
    let mut found = 0;
    let mut code = 0;
    let lattice = (base as usize).pow(D as u32);
    while code < lattice {
        // The high half of a byte comes first.
        let digit = 2 * (code / 8) + if code % 8 < 4 { 1 } else { 0 };
        let half = hex_value(hex[digit + digit / DIGITS_PER_LINE]);
        if half >> (code % 4) & 1 == 1 {
            points[found] = decode(code, base as usize);
            found += 1;
        }
        code += 1;
    }
    assert!(found == N, "the data file holds another number of points");
    points
}

const fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => panic!("not a hexadecimal digit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    /// Three points of eight positions: all 0; 2 in the first; 2 in the first two.
    fn corners() -> Codebook<8, 3> {
        let point = |a, b| [a, b, 0, 0, 0, 0, 0, 0];
        Codebook {
            levels: [point(0, 0), point(2, 0), point(2, 2)],
            base: 3,
            shells: 2,
            map: OnceLock::new(),
        }
    }

    #[test]
    fn neighbours_are_ordered_by_distance_then_index_and_padded() {
        let book = corners();
        let list = |a, b| match book.map().at(digits(&[a, b, 0, 0, 0, 0, 0, 0], 3)) {
            Place::Known(_) => panic!("{a} {b} is in the book"),
            Place::Among(list) => {
                let points: Vec<_> = (0..LANES).map(|i| list.point(i)).collect();
                let numbers: Vec<_> = (0..LANES).map(|i| list.number(i)).collect();
                assert_eq!(
                    points,
                    numbers
                        .iter()
                        .map(|&n| pack(&book.levels[usize::from(n)]))
                        .collect::<Vec<_>>()
                );
                assert_eq!(numbers[3..], [numbers[2]; 5]);
                [numbers[0], numbers[1], numbers[2]]
            }
        };
        assert_eq!(list(1, 1), [0, 1, 2]); // all at distance 2: one shell
        assert_eq!(list(1, 0), [0, 1, 2]); // 1, 1, 5
        assert_eq!(list(0, 2), [0, 2, 1]); // 4, 8, 4
        assert_eq!(list(2, 1), [1, 2, 0]); // 5, 1, 1
    }

    #[test]
    fn codebook_points_map_to_themselves() {
        let book = corners();
        assert!(matches!(
            book.map().at(digits(&[2, 2, 0, 0, 0, 0, 0, 0], 3)),
            Place::Known(2)
        ));
    }

    #[test]
    fn place_of_eight_equals_digits() {
        for n in 0..6561 {
            let levels: [u8; 8] = decode(n, 3);
            let above = |limit| {
                levels
                    .iter()
                    .rev()
                    .fold(0, |bits: u8, &l| bits << 1 | u8::from(l > limit))
            };
            assert_eq!(
                (place_of_eight(above(0), above(1)), digits(&levels, 3)),
                (n, n)
            );
        }
    }

    #[test]
    fn first_of_equal_costs_wins_across_rows() {
        let s = Scalar;
        // Row 1 has the cheapest point in lanes 2 and 6, row 2 in lane 1: levels of position 5.
        let levels = |level: u8| pack(&[0, 0, 0, 0, 0, level, 0, 0]);
        let mut points = [[levels(3); LANES]; 3];
        (points[1][6], points[1][2], points[2][1]) = (levels(1), levels(1), levels(1));
        let list = Neighbours {
            points: &points,
            numbers: &[[0; LANES]; 3],
        };
        let mut tables = [s.splat(0.5); TABLES];
        tables[1] = s.load(&[9.0, 9.0, 9.0, 9.0, 4.0, 1.0, f32::NAN, 2.0]);
        assert_eq!(cheapest::<_, 8>(s, &list, &tables), Some(LANES + 2));
        assert_eq!(
            cheapest::<_, 8>(
                s,
                &Neighbours {
                    points: &points[1..2],
                    ..list
                },
                &tables
            ),
            Some(2)
        );
        tables[1] = s.splat(f32::NAN);
        assert_eq!(cheapest::<_, 8>(s, &list, &tables), None);
        tables[1] = s.splat(f32::MAX);
        assert_eq!(cheapest::<_, 8>(s, &list, &tables), None);
    }

    #[test]
    fn digits_and_levels_are_inverse() {
        for n in 0..4096 {
            let levels: [u8; 4] = decode(n, 8);
            assert_eq!(digits(&levels, 8), n);
        }
    }
}
