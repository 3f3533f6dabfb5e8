//! The order of items that several threads bring.

use std::collections::BTreeMap;

/// Puts numbered items in order: each waits until all before it have come.
pub struct Turns<T> {
    /// The number of the next item.
    next: usize,
    /// Items that came before their turn.
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
    /// Takes the item of a number.
    pub fn put(&mut self, number: usize, item: T) {
        self.early.insert(number, item);
    }

    /// The next item with its number, if it has come.
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
    fn an_early_item_waits_for_its_turn() {
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
