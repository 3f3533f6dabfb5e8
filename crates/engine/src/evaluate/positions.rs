//! Divergence by place: the largest rows, means by position in the context, the distribution over rows.

use super::score::Comparison;
use super::sequences::Sequences;
use super::statistics::{Figure, mean};
use serde::Serialize;

/// Mean divergence of a range of positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// The first position: the number of tokens before the last visible one.
    pub first: u32,
    /// The position after the last.
    pub end: u32,
    /// Rows at these positions.
    pub rows: usize,
    /// Mean KL divergence, in nats.
    pub kld: Figure,
    /// Fraction of the rows in which both models have the same most probable token.
    pub same_top: f64,
}

/// Means by position in the context, in at most `bins` ranges of equal length from the first to the last scored
/// position. Ranges without rows are omitted.
///
/// # Panics
/// If the rows are not those of the sequences.
pub fn by_position(rows: &[Comparison], sequences: &Sequences, bins: usize) -> Vec<Bin> {
    assert_eq!(rows.len(), sequences.rows(), "rows of the sequences");
    let targets = sequences.all().iter().flat_map(|one| one.targets());
    let positions: Vec<u32> = targets.map(|target| target.position).collect();
    let (Some(&low), Some(&high)) = (positions.iter().min(), positions.iter().max()) else {
        return Vec::new();
    };
    let length = (high - low + 1).div_ceil(bins.max(1) as u32);
    let mut groups: Vec<Vec<&Comparison>> = vec![Vec::new(); ((high - low) / length + 1) as usize];
    for (row, position) in rows.iter().zip(&positions) {
        groups[((position - low) / length) as usize].push(row);
    }
    let bin = |(number, rows): (usize, &Vec<&Comparison>)| Bin {
        first: low + number as u32 * length,
        end: (low + (number as u32 + 1) * length).min(high + 1),
        rows: rows.len(),
        kld: mean(rows.iter().map(|row| row.kld)),
        same_top: rows.iter().filter(|row| row.same_top).count() as f64 / rows.len() as f64,
    };
    let groups = groups
        .iter()
        .enumerate()
        .filter(|(_, rows)| !rows.is_empty());
    groups.map(bin).collect()
}

/// The numbers of the rows with the largest KL divergence, descending; of equal rows the first.
pub fn largest(rows: &[Comparison], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let descending = |a: &usize, b: &usize| rows[*b].kld.total_cmp(&rows[*a].kld).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, descending);
        order.truncate(count);
    }
    order.sort_unstable_by(descending);
    order
}

/// A point of the distribution of the divergence over rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exceedance {
    /// Fraction of the rows with at least this divergence.
    pub share: f64,
    /// The divergence, in nats.
    pub kld: f64,
}

/// The distribution of the divergence: the fraction of rows at or above it, from the largest row to the
/// smallest, in about `points` steps of equal ratio.
pub fn exceedances(rows: &[Comparison], points: usize) -> Vec<Exceedance> {
    let mut sorted: Vec<f64> = rows.iter().map(|row| row.kld).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let step = (sorted.len() as f64).powf(1.0 / points.max(1) as f64);
    let mut taken = Vec::new();
    let mut next = 1.0;
    for (i, &kld) in sorted.iter().enumerate() {
        let rank = (i + 1) as f64;
        if rank >= next || i + 1 == sorted.len() {
            let share = rank / sorted.len() as f64;
            taken.push(Exceedance { share, kld });
            next = rank * step;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::super::sequences::Sequence;
    use super::*;

    fn rows(klds: &[f64]) -> Vec<Comparison> {
        let row = |kld: &f64| Comparison {
            nll: 0.0,
            nll_base: 0.0,
            kld: *kld,
            delta_p: 0.0,
            same_top: *kld < 2.5,
        };
        klds.iter().map(row).collect()
    }

    #[test]
    fn positions_are_averaged_over_sequences() {
        // Scored positions 2, 3, 4 and 6, 7.
        let sequences: Sequences = [
            Sequence::new((0..9).collect(), std::slice::from_ref(&(3..6))),
            Sequence::new((0..9).collect(), std::slice::from_ref(&(7..9))),
            Sequence::new((0..5).collect(), std::slice::from_ref(&(3..5))),
        ]
        .into_iter()
        .collect();
        let rows = rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 6.0]);
        let bins = by_position(&rows, &sequences, 3);
        let found: Vec<_> = bins
            .iter()
            .map(|bin| (bin.first, bin.end, bin.rows, bin.kld.value))
            .collect();
        // 1, 2, 3, 6 at positions 2 and 3; 3 at 4; 4, 5 at 6 and 7.
        assert_eq!(found, [(2, 4, 4, 3.0), (4, 6, 1, 3.0), (6, 8, 2, 4.5)]);
        assert_eq!(bins[0].same_top, 0.5);
        assert_eq!(by_position(&rows, &sequences, 100).len(), 5);
        assert_eq!(by_position(&[], &Sequences::default(), 3), []);
    }

    #[test]
    fn largest_rows_come_first() {
        let rows = rows(&[1.0, 5.0, 2.0, 5.0, 4.0]);
        assert_eq!(largest(&rows, 3), [1, 3, 4]);
        assert_eq!(largest(&rows, 9), [1, 3, 4, 2, 0]);
    }

    #[test]
    fn distributions_fall_from_the_maximum_to_the_minimum() {
        let klds: Vec<f64> = (1..=1000).map(f64::from).collect();
        let points = exceedances(&rows(&klds), 30);
        assert_eq!((points[0].share, points[0].kld), (0.001, 1000.0));
        let last = points.last().unwrap();
        assert_eq!((last.share, last.kld), (1.0, 1.0));
        for point in &points {
            let above = klds.iter().filter(|kld| **kld >= point.kld).count();
            assert_eq!(above as f64 / 1000.0, point.share);
        }
        assert!((20..=32).contains(&points.len()), "{}", points.len());
        assert_eq!(exceedances(&[], 5), []);
    }
}
