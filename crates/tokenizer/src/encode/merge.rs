//! Merging, common to both algorithms: merge the best pair of adjacent symbols, the leftmost of
//! equals, until no pair can be merged.
//!
//! ```text
//! queue every mergeable pair of neighbours
//! pop the best pair:  skip it if either side has changed since
//!                     merge it; queue the new symbol with both its neighbours
//! ```
//!
//! O(n log n) for n symbols.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A symbol without a token and without merges.
pub(crate) const UNKNOWN: u32 = u32::MAX;
const NONE: u32 = u32::MAX;

/// A range of the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    /// Offset of its first byte.
    pub start: u32,
    /// Length in bytes; 0 after a merge into the preceding symbol.
    pub len: u32,
    /// Id, or [`UNKNOWN`].
    pub id: u32,
    prev: u32,
    next: u32,
}

/// A queued pair. Ordered by `key`: the pair's order above, the left symbol's index below.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    key: u64,
    right: u32,
    len: u32,
    id: u32,
}

/// Symbols of a text and queue of pairs, kept between texts to reuse their memory.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Pair>>,
}

impl Merger {
    /// Removes all symbols.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub(crate) fn push(&mut self, len: usize, id: u32) {
        let index = self.symbols.len() as u32;
        let mut start = 0;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
            start = last.start + last.len;
        }
        self.symbols.push(Symbol {
            start,
            len: len as u32,
            id,
            prev: index.wrapping_sub(1),
            next: NONE,
        });
    }

    /// Merges until no pair is left. `pair` returns the priority of two neighbours (lowest first)
    /// and the resulting id, or `None` if they do not merge.
    pub(crate) fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.queue(right - 1, right, &pair);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let left = best.key as u32;
            let (l, r) = (
                self.symbols[left as usize],
                self.symbols[best.right as usize],
            );
            if l.len == 0 || r.len == 0 || l.len + r.len != best.len {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            let joined = &mut self.symbols[left as usize];
            (joined.len, joined.id, joined.next) = (best.len, best.id, r.next);
            if r.next != NONE {
                self.symbols[r.next as usize].prev = left;
            }
            self.queue(l.prev, left, &pair);
            self.queue(left, r.next, &pair);
        }
    }

    fn queue(
        &mut self,
        left: u32,
        right: u32,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((order, id)) = pair(l, r) {
            let key = u64::from(order) << 32 | u64::from(left);
            self.queue.push(Reverse(Pair {
                key,
                right,
                len: l.len + r.len,
                id,
            }));
        }
    }

    /// The remaining symbols, in the order of the text.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins "aa" first, then "aaa" from the pair and one more.
    fn merged(n: usize) -> Vec<u32> {
        let mut merger = Merger::default();
        (0..n).for_each(|_| merger.push(1, 0));
        merger.merge(|l, r| match (l.len, r.len) {
            (1, 1) => Some((0, 1)),
            (2, 1) => Some((1, 2)),
            _ => None,
        });
        merger.symbols().map(|s| s.len).collect()
    }

    #[test]
    fn leftmost_of_equal_pairs_is_merged_first() {
        assert!(merged(0).is_empty());
        assert_eq!(merged(1), [1]);
        assert_eq!(merged(3), [3]);
        assert_eq!(merged(5), [2, 3]);
    }
}
