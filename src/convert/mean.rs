//! Sums and means of a tensor, added up in f32 in PyTorch's order, for weights that depend on them.
//!
//! PyTorch (2.x, CPU, one thread) adds 32 sums side by side: four vectors of eight lanes. A sum that has taken
//! a number of terms is emptied into that of the next of four levels, so that errors grow with the logarithm of
//! the length (cascade summation). Threads share a longer sum among them, and its last bits follow their
//! number; the order here is that of one.

const LANES: usize = 8;
const VECTORS: usize = 4;
const WIDTH: usize = LANES * VECTORS;
const LEVELS: u32 = 4;
/// Levels take at least 2 to this power of terms.
const LEAST_POWER: u32 = 4;
/// Numbers that are read at a time, a multiple of the width.
const PIECE: usize = WIDTH << 9;

/// Fills a slice with the numbers of a tensor from a place on.
pub(super) type Read<'r> = &'r mut dyn FnMut(u64, &mut [f32]);

/// The mean magnitude of `count` numbers.
pub(super) fn mean_magnitude(count: u64, read: Read<'_>) -> f32 {
    let sum = sum(count, &mut |at, out| {
        read(at, out);
        out.iter_mut().for_each(|x| *x = x.abs());
    });
    sum / count as f32
}

/// The mean of `count` numbers, with the sum and the mean `rounded`: PyTorch adds halves in f32, and
/// rounds both.
pub(super) fn mean(count: u64, rounded: fn(f32) -> f32, read: Read<'_>) -> f32 {
    rounded(rounded(sum(count, read)) / count as f32)
}

/// The sum of `count` numbers.
fn sum(count: u64, read: Read<'_>) -> f32 {
    let steps = count / WIDTH as u64;
    let ceil_log2 = u64::BITS - steps.saturating_sub(1).leading_zeros();
    let power = (ceil_log2 / LEVELS).max(LEAST_POWER);
    let mask = (1u64 << power) - 1;
    let mut levels = [[0.0f32; WIDTH]; LEVELS as usize];
    let mut piece = vec![0.0f32; PIECE];
    let (mut step, mut at) = (0u64, 0);
    while step < steps {
        let len = ((steps - step) * WIDTH as u64).min(PIECE as u64) as usize;
        read(at, &mut piece[..len]);
        at += len as u64;
        for terms in piece[..len].as_chunks::<WIDTH>().0 {
            add(&mut levels[0], terms);
            step += 1;
            if step & mask != 0 {
                continue;
            }
            for level in 1..LEVELS {
                let full = std::mem::replace(&mut levels[level as usize - 1], [0.0; WIDTH]);
                add(&mut levels[level as usize], &full);
                if step & (mask << (level * power)) != 0 {
                    break;
                }
            }
        }
    }
    let [mut sums, others @ ..] = levels;
    others.iter().for_each(|level| add(&mut sums, level));
    let rest = &mut piece[..(count - at) as usize];
    read(at, rest);
    let vectors = sums.as_chunks::<LANES>().0;
    let mut sum = vectors[0];
    let whole = rest.as_chunks::<LANES>();
    whole.0.iter().for_each(|terms| add(&mut sum, terms));
    vectors[1..].iter().for_each(|vector| add(&mut sum, vector));
    let single = whole.1.iter().fold(0.0f32, |sum, x| sum + x);
    sum.iter().fold(single, |sum, x| sum + x)
}

fn add<const N: usize>(sums: &mut [f32; N], terms: &[f32; N]) {
    sums.iter_mut().zip(terms).for_each(|(sum, x)| *sum += x);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -1 to 1, more of them near 0.
    fn number(i: u64) -> f32 {
        let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let even = ((mixed >> 40) as f32 / (1 << 23) as f32) - 1.0;
        even * even * even
    }

    fn mean(count: u64) -> f32 {
        mean_magnitude(count, &mut |at, out| {
            (at..).zip(out).for_each(|(i, x)| *x = number(i));
        })
    }

    /// Bits taken from torch 2.11 on one thread, by scripts/means.py.
    #[test]
    fn means_are_those_of_pytorch_on_one_thread() {
        for (count, bits) in MEANS {
            assert_eq!(mean(count).to_bits(), bits, "{count}");
        }
    }

    const MEANS: [(u64, u32); 7] = [
        (64, 0x3e798610),
        (100, 0x3e7bff49),
        (4096, 0x3e7fdf72),
        (4103, 0x3e7fe534),
        (65536, 0x3e7ffe0a),
        (131327, 0x3e7fff22),
        (1638400, 0x3e7ffff7),
    ];
}
