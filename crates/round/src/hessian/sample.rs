//! Evenly spread sample of a stream of rows of unknown length.

use std::collections::BinaryHeap;

/// 2^64 over the golden ratio: its multiples modulo 2^64 are evenly distributed, for any number of
/// them.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keeps the rows whose number times `GOLDEN` modulo 2^64 is smallest. The gaps between them take
/// at most three values, none in step with the chunk length, so that first tokens are not
/// overrepresented.
pub struct Sample {
    limit: usize,
    offered: u64,
    kept: BinaryHeap<(u64, u64, Row)>,
}

/// A row; all compare equal, so that the preceding keys decide.
struct Row(Vec<f32>);

impl PartialEq for Row {
    fn eq(&self, _: &Row) -> bool {
        true
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Row) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, _: &Row) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Sample {
    /// Keeps at most `limit` rows.
    pub fn new(limit: usize) -> Sample {
        Sample {
            limit,
            offered: 0,
            kept: BinaryHeap::new(),
        }
    }

    /// Offers rows `[n, columns]` to the sample.
    pub fn offer(&mut self, rows: &[f32], columns: usize) {
        self.offer_at(self.offered, rows, columns);
        self.offered += (rows.len() / columns) as u64;
    }

    /// Offers rows `[n, columns]` that have `before` numbers before them in the stream. Each number is
    /// offered once; the order of the offers does not matter.
    pub fn offer_at(&mut self, before: u64, rows: &[f32], columns: usize) {
        for (i, row) in rows.chunks_exact(columns).enumerate() {
            // Starting at 1, since 0 times `GOLDEN` would always be smallest.
            self.keep(before + i as u64 + 1, row);
        }
    }

    fn keep(&mut self, number: u64, row: &[f32]) {
        let rank = number.wrapping_mul(GOLDEN);
        if self.kept.len() == self.limit {
            match self.kept.peek() {
                Some((most, ..)) if rank < *most => drop(self.kept.pop()),
                _ => return,
            }
        }
        self.kept.push((rank, number, Row(row.to_vec())));
    }

    /// The numbers of the sampled rows, ascending, and the rows `[numbers, columns]`.
    pub fn numbered(self) -> (Vec<u64>, Vec<f32>) {
        let mut kept = self.kept.into_vec();
        kept.sort_unstable_by_key(|(_, number, _)| *number);
        let numbers = kept.iter().map(|(_, number, _)| *number).collect();
        (
            numbers,
            kept.into_iter().flat_map(|(.., row)| row.0).collect(),
        )
    }

    /// Adds a part of the stream's sample, as returned by [`Sample::numbered`].
    pub fn merge(&mut self, numbers: &[u64], rows: &[f32]) {
        let columns = rows.len() / numbers.len().max(1);
        for (number, row) in numbers.iter().zip(rows.chunks_exact(columns.max(1))) {
            self.keep(*number, row);
        }
    }

    /// The sampled rows in order: their number, and their numbers row by row.
    pub fn finish(self) -> (usize, Vec<f32>) {
        let (numbers, rows) = self.numbered();
        (numbers.len(), rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_small_and_evenly_spread() {
        for (count, limit) in [(3, 8), (8, 8), (512 * 9, 64), (512 * 40, 512)] {
            let mut sample = Sample::new(limit);
            let rows: Vec<f32> = (0..count).map(|i| i as f32).collect();
            rows.chunks(512).for_each(|chunk| sample.offer(chunk, 1));
            let (kept, numbers) = sample.finish();
            assert_eq!(kept, limit.min(count));
            let widest = numbers
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .fold(0.0, f32::max);
            assert!(
                numbers.windows(2).all(|pair| pair[0] < pair[1]),
                "{numbers:?}"
            );
            assert!(
                widest <= 3.0 * count as f32 / limit.min(count) as f32,
                "{widest} of {count}"
            );
            let firsts = numbers
                .iter()
                .filter(|x| (**x as usize).is_multiple_of(512))
                .count();
            assert!(
                firsts * 64 <= kept.max(64),
                "{firsts} first tokens of {kept}"
            );
        }
    }

    #[test]
    fn samples_of_parts_make_that_of_the_whole() {
        let rows: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        let mut whole = Sample::new(100);
        whole.offer(&rows, 2);
        let whole = whole.finish();
        for cuts in [vec![0, 1500], vec![0, 1, 2, 700, 701, 1500]] {
            let mut merged = Sample::new(100);
            for part in cuts.windows(2).rev() {
                let mut sample = Sample::new(100);
                sample.offer_at(part[0] as u64, &rows[2 * part[0]..2 * part[1]], 2);
                let (numbers, rows) = sample.numbered();
                merged.merge(&numbers, &rows);
            }
            assert_eq!(merged.finish(), whole, "{cuts:?}");
        }
    }

    #[test]
    fn empty_streams_give_empty_samples() {
        assert_eq!(Sample::new(4).finish(), (0, Vec::new()));
    }
}
