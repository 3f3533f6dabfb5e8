//! Numbers in descending order, with ties as in llama.cpp.
//!
//! llama.cpp sorts indices by `std::sort`, which is not stable. The order of equal numbers decides
//! between experts with equal scores, so the sort here takes the same steps as that of the GNU C++
//! library: partitions around a median of three down to 16 numbers, then insertion.
//!
//! Departure: where partitions are far from even, the library sorts a range by a heap. Here such a
//! range is sorted with its ties in the order before.

/// Ranges of at most this many numbers are left to insertion.
const SHORT: usize = 16;

/// Indices of the `count` largest numbers, largest first.
pub(crate) fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let depth = 2 * values.len().checked_ilog2().unwrap_or(0);
    partition_all(&mut order, values, depth);
    insert(&mut order, values);
    order.truncate(count);
    order
}

/// Partitions a range until its parts are short.
fn partition_all(mut order: &mut [usize], values: &[f32], mut depth: u32) {
    while order.len() > SHORT {
        if depth == 0 {
            order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
            return;
        }
        depth -= 1;
        let cut = partition(order, values);
        let (front, back) = order.split_at_mut(cut);
        partition_all(back, values, depth);
        order = front;
    }
}

/// Moves larger numbers than the median of three before the others; returns the number of the
/// former, with the median among them.
fn partition(order: &mut [usize], values: &[f32]) -> usize {
    let len = order.len();
    let median = median(order, values);
    order.swap(0, median);
    let pivot = values[order[0]];
    let (mut first, mut last) = (1, len);
    loop {
        // Bounds matter to NaNs alone.
        while first < len - 1 && values[order[first]] > pivot {
            first += 1;
        }
        last -= 1;
        while last > 1 && pivot > values[order[last]] {
            last -= 1;
        }
        if first >= last {
            return first;
        }
        order.swap(first, last);
        first += 1;
    }
}

/// The place of the median of the second, the middle and the last number.
fn median(order: &[usize], values: &[f32]) -> usize {
    let places @ [a, b, c] = [1, order.len() / 2, order.len() - 1];
    let [x, y, z] = places.map(|place| values[order[place]]);
    match (x > y, y > z, x > z) {
        (true, true, _) | (false, false, false) => b,
        (true, false, true) | (false, true, false) => c,
        (true, false, false) | (false, _, true) => a,
    }
}

/// Moves each number before the smaller ones in front of it.
fn insert(order: &mut [usize], values: &[f32]) {
    for place in 1..order.len() {
        let value = values[order[place]];
        let front = order[..place].iter().rev();
        let smaller = front.take_while(|other| value > values[**other]).count();
        order[place - smaller..=place].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from 0 to below `levels`.
    fn values(count: u32, levels: u32) -> Vec<f32> {
        let mut state = count * 31 + levels;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) % levels) as f32
        };
        (0..count).map(|_| next()).collect()
    }

    /// The first eight indices, from std::sort of the GNU C++ library (GCC).
    const GOLDENS: &[(u32, u32, [usize; 8])] = &[
        (8, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 3, [1, 6, 2, 7, 0, 3, 4, 5]),
        (8, 7, [2, 0, 4, 7, 1, 3, 5, 6]),
        (16, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, 3, [1, 5, 6, 8, 15, 0, 2, 9]),
        (16, 7, [3, 15, 4, 9, 2, 13, 6, 11]),
        (17, 1, [8, 16, 15, 14, 13, 12, 11, 10]),
        (17, 3, [1, 11, 8, 5, 4, 3, 2, 9]),
        (17, 7, [3, 4, 6, 13, 12, 15, 14, 0]),
        (40, 1, [30, 21, 22, 23, 24, 25, 26, 27]),
        (40, 3, [39, 26, 22, 17, 33, 15, 12, 11]),
        (40, 7, [24, 19, 15, 4, 32, 6, 0, 33]),
        (128, 1, [80, 95, 94, 93, 92, 91, 90, 89]),
        (128, 3, [82, 28, 104, 103, 99, 97, 93, 92]),
        (128, 7, [47, 21, 51, 14, 13, 59, 91, 61]),
        (256, 1, [176, 161, 162, 163, 164, 165, 166, 167]),
        (256, 3, [179, 98, 165, 66, 166, 168, 170, 172]),
        (256, 7, [15, 180, 178, 186, 188, 130, 25, 192]),
    ];

    #[test]
    fn ties_are_in_the_order_of_the_gnu_library() {
        for (count, levels, expected) in GOLDENS {
            let order = largest(&values(*count, *levels), 8);
            assert_eq!(order, expected, "{count} numbers of {levels} levels");
        }
    }

    #[test]
    fn numbers_are_in_descending_order() {
        for count in [0, 1, 2, 16, 17, 100, 1000] {
            let values = values(count, 1 << 12);
            let order = largest(&values, values.len());
            assert!(order.is_sorted_by(|a, b| values[*a] >= values[*b]));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..count as usize));
        }
    }

    #[test]
    fn nans_and_uneven_partitions_end() {
        for count in [2u32, 17, 40, 300] {
            let mut values = values(count, 5);
            values.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
            assert_eq!(largest(&values, 300).len(), count as usize);
            assert_eq!(largest(&vec![f32::NAN; count as usize], 1).len(), 1);
            let mut organ: Vec<f32> = (0..count).map(|i| i.min(count - i) as f32).collect();
            assert_eq!(largest(&organ, 1), [count as usize / 2]);
            organ.reverse();
            assert_eq!(largest(&organ, 300).len(), count as usize);
        }
    }
}
