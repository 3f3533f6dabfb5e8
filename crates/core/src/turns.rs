//! Reordering of items from several threads.

use std::collections::BTreeMap;

/// Puts numbered items in order: each waits until all before it have arrived.
pub struct Turns<T> {
    /// The number of the next item.
    next: usize,
    /// Items that arrived before their turn.
    early: BTreeMap<usize, T>,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns {
            next: 0,
            early: BTreeMap::new(),
        }
    }
}

impl<T> Turns<T> {
    /// Adds the item with this number.
    pub fn put(&mut self, number: usize, item: T) {
        self.early.insert(number, item);
    }

    /// The next item with its number, if it has arrived.
    pub fn pop(&mut self) -> Option<(usize, T)> {
        let item = self.early.remove(&self.next)?;
        self.next += 1;
        Some((self.next - 1, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_items_wait_for_their_turn() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
            let (mut turns, mut seen) = (Turns::default(), Vec::new());
            for number in order {
                turns.put(number, number * 10);
                seen.extend(std::iter::from_fn(|| turns.pop()));
            }
            assert_eq!(seen, [(0, 0), (1, 10), (2, 20), (3, 30)], "{order:?}");
        }
    }
}
