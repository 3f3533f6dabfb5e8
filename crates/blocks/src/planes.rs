//! Packing of levels into bytes: planes of 1, 2 or 4 bits, in runs.
//!
//! With `BITS` bits per level and runs of `RUN` levels, the first `RUN` bytes hold the first `8 /
//! BITS` runs, the first run in the lowest bits; the next `RUN` bytes hold the next runs, and so
//! on. For two bits in runs of 32:
//!
//! ```text
//!         bits 7-6        5-4         3-2         1-0
//! byte  0  | level  96 | level  64 | level 32 | level  0 |
//! byte  1  | level  97 | level  65 | level 33 | level  1 |
//!   ...
//! byte 31  | level 127 | level  95 | level 63 | level 31 |
//! byte 32  | level 224 | level 192 | level 160| level 128|
//! ```
//!
//! Four bits in runs of half the levels are the nibbles of the 32-weight types: level `j` and level
//! `j + 16` share byte `j`.

use crate::simd::{LANES, Simd};

/// Packs `BITS` bits of every level, those from bit `low` upwards.
#[inline]
pub(super) fn pack<const BITS: usize, const RUN: usize, const N: usize, const BYTES: usize>(
    levels: &[u8; N],
    low: u32,
) -> [u8; BYTES] {
    const { assert!(BYTES * 8 == N * BITS && BYTES.is_multiple_of(RUN)) };
    let mask = ((1u16 << BITS) - 1) as u8;
    let mut bytes = [0; BYTES];
    for (out, runs) in bytes
        .chunks_exact_mut(RUN)
        .zip(levels.chunks_exact(RUN * 8 / BITS))
    {
        for (run, levels) in runs.chunks_exact(RUN).enumerate() {
            for (byte, &level) in out.iter_mut().zip(levels) {
                *byte |= ((level >> low) & mask) << (run * BITS);
            }
        }
    }
    bytes
}

/// Both runs of four bits in eight bytes.
#[inline(always)]
pub(super) fn nibbles<V: Simd>(simd: V, bytes: &[u8; LANES]) -> [V::I32; 2] {
    let bytes = simd.load_u8(bytes);
    [
        simd.and(bytes, simd.splat_i32(15)),
        simd.shift_right::<4>(bytes),
    ]
}

/// The values `step * table[nibble]` of nibbles in runs of half the weights, given the halves of a
/// table of sixteen.
#[inline(always)]
pub(super) fn looked_up<V: Simd, const N: usize, const BYTES: usize>(
    simd: V,
    bytes: &[u8; BYTES],
    table: [V::F32; 2],
    step: f32,
    weights: &mut [f32; N],
) {
    const { assert!(BYTES * 2 == N && BYTES.is_multiple_of(LANES)) };
    let step = simd.splat(step);
    let (first, second) = weights.as_chunks_mut().0.split_at_mut(BYTES / LANES);
    for ((first, second), bytes) in first.iter_mut().zip(second).zip(bytes.as_chunks().0) {
        let [low, high] = nibbles(simd, bytes);
        *first = simd.store(step * simd.lookup_of_16(table, low));
        *second = simd.store(step * simd.lookup_of_16(table, high));
    }
}

/// The four runs of two bits in eight bytes.
#[inline(always)]
pub(super) fn quarters<V: Simd>(simd: V, bytes: &[u8; LANES]) -> [V::I32; 4] {
    let (bytes, three) = (simd.load_u8(bytes), simd.splat_i32(3));
    [
        simd.and(bytes, three),
        simd.and(simd.shift_right::<2>(bytes), three),
        simd.and(simd.shift_right::<4>(bytes), three),
        simd.shift_right::<6>(bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    /// Unpacks the bits of all levels in the documented order.
    fn unpack<const BITS: usize, const RUN: usize, const N: usize>(
        bytes: &[u8],
        low: u32,
    ) -> [u8; N] {
        let runs = 8 / BITS;
        std::array::from_fn(|i| {
            let byte = bytes[i / (RUN * runs) * RUN + i % RUN];
            let bits = byte >> (i / RUN % runs * BITS) & ((1u16 << BITS) - 1) as u8;
            bits << low
        })
    }

    fn round_trip<const BITS: usize, const RUN: usize, const N: usize, const BYTES: usize>(
        low: u32,
    ) {
        let mask = ((1u16 << BITS) - 1) as u8;
        // 251 is prime, so that no two runs are alike.
        let levels: [u8; N] = std::array::from_fn(|i| (i % 251) as u8 & (mask << low));
        assert_eq!(
            unpack::<BITS, RUN, N>(&pack::<BITS, RUN, N, BYTES>(&levels, low), low),
            levels
        );
    }

    #[test]
    fn all_layouts_round_trip() {
        round_trip::<1, 32, 256, 32>(2);
        round_trip::<1, 32, 256, 32>(4);
        round_trip::<2, 32, 256, 64>(0);
        round_trip::<2, 32, 256, 64>(4);
        round_trip::<4, 32, 256, 128>(0);
        round_trip::<4, 64, 256, 128>(0);
        round_trip::<4, 16, 32, 16>(0);
        round_trip::<4, 8, 16, 8>(0);
    }

    #[test]
    fn lanes_unpack_as_packed() {
        let bytes: [u8; LANES] = std::array::from_fn(|i| (i * 89 + 37) as u8);
        let nibbles = nibbles(Scalar, &bytes).map(|run| Scalar.store_u8(run));
        assert_eq!(*nibbles.as_flattened(), unpack::<4, 8, 16>(&bytes, 0));
        let quarters = quarters(Scalar, &bytes).map(|run| Scalar.store_u8(run));
        assert_eq!(*quarters.as_flattened(), unpack::<2, 8, 32>(&bytes, 0));
    }

    #[test]
    fn nibbles_look_up_both_halves_of_a_table() {
        let table = [
            Scalar.load(&std::array::from_fn(|i| i as f32)),
            Scalar.load(&std::array::from_fn(|i| 50.0 + i as f32)),
        ];
        let mut weights = [0.0; 16];
        looked_up(
            Scalar,
            &[0x80, 0x21, 0xf7, 0x00, 0, 0, 0, 0x9a],
            table,
            0.5,
            &mut weights,
        );
        assert_eq!(weights[..3], [0.0, 0.5, 3.5]);
        assert_eq!(weights[7..11], [26.0, 25.0, 1.0, 28.5]);
        assert_eq!(weights[15], 25.5);
    }

    #[test]
    fn two_bits_in_runs_of_32_match_the_diagram() {
        let mut levels = [0; 256];
        levels[33] = 1;
        levels[97] = 3;
        levels[224] = 2;
        let bytes = pack::<2, 32, 256, 64>(&levels, 0);
        assert_eq!((bytes[1], bytes[32]), (0b11_00_01_00, 0b10_00_00_00));
    }
}
