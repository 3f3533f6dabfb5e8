//! Codebooks: the few points of a lattice that a format can name, and the way from any point to those nearest to it.
//!
//! A point has `D` levels. The points of each codebook are a fact of its format; they lie under `data/`, written by
//! `scripts/grids.py`.

use std::sync::OnceLock;

/// Hexadecimal digits in a line of a data file.
const DIGITS_PER_LINE: usize = 120;
/// One more than the greatest squared distance of two points in steps: 4 * 7 * 7, for the octal books.
const DISTANCES: usize = 4 * 7 * 7 + 1;

/// `N` points of `D` levels each, every level below `base`.
pub(super) struct Codebook<const D: usize, const N: usize> {
    pub(super) levels: [[u8; D]; N],
    base: u8,
    shells: usize,
    map: OnceLock<Map>,
}

impl<const D: usize, const N: usize> Codebook<D, N> {
    /// A codebook of these points. `shells` says how many different distances a neighbour list reaches out.
    pub(super) const fn new(levels: [[u8; D]; N], base: u8, shells: usize) -> Self {
        Codebook { levels, base, shells, map: OnceLock::new() }
    }

    /// Levels in a position of a point.
    #[inline]
    pub(super) const fn base(&self) -> u8 {
        self.base
    }

    /// The map of the whole lattice, built on first use (some tens of milliseconds for the largest book).
    pub(super) fn map(&self) -> &Map {
        self.map.get_or_init(|| self.build_map())
    }

    /// Lists, for every point of the lattice that is not in the book, the book's points on the nearest `shells`
    /// distances: nearer ones first, lower numbers first among equals. A search that keeps the first of equally good
    /// points depends on that order.
    fn build_map(&self) -> Map {
        let mut number_of = vec![None; usize::from(self.base).pow(D as u32)];
        for (number, point) in self.levels.iter().enumerate() {
            number_of[code(point.map(usize::from), self.base.into())] = Some(number as u32);
        }
        let mut neighbours = Vec::new();
        let mut cells = Vec::with_capacity(number_of.len());
        for (code, number) in number_of.into_iter().enumerate() {
            let start = neighbours.len() as u32;
            cells.push(match number {
                Some(number) => Cell { start: number, len: 0 },
                None => {
                    self.list_neighbours(decode(code, self.base.into()), &mut neighbours);
                    Cell { start, len: neighbours.len() as u32 - start }
                }
            });
        }
        Map { cells: cells.into(), neighbours: neighbours.into() }
    }

    fn list_neighbours(&self, from: [u8; D], list: &mut Vec<u16>) {
        let distance = |point: &[u8; D]| -> usize {
            point.iter().zip(&from).map(|(&a, &b)| usize::from(a.abs_diff(b)).pow(2)).sum()
        };
        let distances = self.levels.each_ref().map(|point| distance(point) as u8);
        let mut occurs = [false; DISTANCES];
        for &d in &distances {
            occurs[usize::from(d)] = true;
        }
        for shell in (0..DISTANCES).filter(|&d| occurs[d]).take(self.shells) {
            list.extend((0..N).filter(|&n| usize::from(distances[n]) == shell).map(|n| n as u16));
        }
    }
}

/// The first of the cheapest points among `candidates`, given the cost of every level in every position and summed
/// from the first position on. `None` where no sum is a number below the largest f32.
///
/// `W` is the number of levels, rounded up to a power of two.
#[inline(always)]
pub(super) fn cheapest<const D: usize, const N: usize, const W: usize>(
    levels: &[[u8; D]; N],
    candidates: &[u16],
    costs: &[[f32; W]; D],
) -> Option<u16> {
    let mut least = f32::MAX;
    let mut cheapest = None;
    for &n in candidates {
        let point = &levels[usize::from(n)];
        let mut cost = 0.0;
        for i in 0..D {
            cost += costs[i][usize::from(point[i]) % W];
        }
        if cost < least {
            least = cost;
            cheapest = Some(n);
        }
    }
    cheapest
}

/// The way from every point of a lattice into a codebook.
pub(super) struct Map {
    cells: Box<[Cell]>,
    neighbours: Box<[u16]>,
}

/// A point of the book if `len` is 0, and then `start` is its number; else a list of neighbours.
struct Cell {
    start: u32,
    len: u32,
}

/// Where a point of the lattice lies.
pub(super) enum Place<'a> {
    /// In the book, under this number.
    Known(u16),
    /// Near these points of the book; never empty.
    Among(&'a [u16]),
}

impl Map {
    /// Looks up the point whose levels have this [`code`].
    #[inline]
    pub(super) fn place(&self, code: usize) -> Place<'_> {
        let Cell { start, len } = self.cells[code];
        match len {
            0 => Place::Known(start as u16),
            _ => Place::Among(&self.neighbours[start as usize..][..len as usize]),
        }
    }
}

/// The number of a point among all points of its lattice: its levels as digits, the first one lowest.
#[inline]
pub(super) fn code<const D: usize>(levels: [usize; D], base: usize) -> usize {
    levels.iter().rev().fold(0, |code, level| code * base + level)
}

/// The levels of the point with this [`code`].
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

/// Points with `values[level]` in place of each level.
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

/// Reads the points from a data file: one bit for every point of the lattice, in the order of their codes.
pub(super) const fn read_points<const D: usize, const N: usize>(hex: &[u8], base: u8) -> [[u8; D]; N] {
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

    /// Four points on the corners of a square of three levels, but for one: 00, 20 and 22, lower level first.
    fn corners() -> Codebook<2, 3> {
        Codebook { levels: [[0, 0], [2, 0], [2, 2]], base: 3, shells: 2, map: OnceLock::new() }
    }

    #[test]
    fn neighbours_come_by_distance_then_number() {
        let book = corners();
        let list = |levels: [usize; 2]| match book.map().place(code(levels, 3)) {
            Place::Known(_) => panic!("{levels:?} is in the book"),
            Place::Among(list) => list.to_vec(),
        };
        assert_eq!(list([1, 1]), [0, 1, 2]); // all at distance 2: one shell
        assert_eq!(list([1, 0]), [0, 1, 2]); // 1, 1, 5
        assert_eq!(list([0, 2]), [0, 2, 1]); // 4, 8, 4
        assert_eq!(list([2, 1]), [1, 2, 0]); // 5, 1, 1
    }

    #[test]
    fn a_point_of_the_book_is_its_own_place() {
        let book = corners();
        assert!(matches!(book.map().place(code([2, 2], 3)), Place::Known(2)));
    }

    #[test]
    fn codes_and_levels_are_each_others_inverse() {
        for n in 0..4096 {
            let levels: [u8; 4] = decode(n, 8);
            assert_eq!(code(levels.map(usize::from), 8), n);
        }
    }
}
