//! Parallel loops over chunks, started in ascending order.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `one` with 0, 1, .. `count` - 1 on the threads of the current pool. Each thread takes the
/// next number, so that results to be combined in order wait for few others. After an error no
/// further call starts.
///
/// # Errors
/// The error of the lowest number.
pub fn in_order<E: Send>(
    count: usize,
    one: impl Fn(usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    // One loop per thread instead of one task per number: a thread that waits within `one` would
    // take another task, and its own number would end last.
    let ended = rayon::broadcast(|_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            if let Err(error) = one(number) {
                next.store(count, Ordering::Relaxed);
                return Err((number, error));
            }
        }
    });
    let first = ended
        .into_iter()
        .filter_map(|ended| ended.err())
        .min_by_key(|(number, _)| *number);
    first.map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn each_number_runs_once_and_none_after_an_error() {
        for count in [0, 1, 2, 100] {
            let seen = Mutex::new(Vec::new());
            in_order::<()>(count, |n| {
                seen.lock().unwrap().push(n);
                Ok(())
            })
            .unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
        let last = AtomicUsize::new(0);
        let stop = in_order(1_000_000, |n| {
            last.fetch_max(n, Ordering::Relaxed);
            if n >= 5 { Err(n) } else { Ok(()) }
        });
        assert_eq!(stop, Err(5));
        assert!(last.into_inner() < 1_000_000 - 1);
    }
}
