//! Every instruction set against the scalar one: each operation, on edge cases.

use super::*;

/// Zeros of both signs, neighbours of integers and halves, subnormals, extremes, infinities, NaN.
const NUMBERS: [f32; 24] = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.0,
    -1.0,
    1.5,
    2.5,
    -2.5,
    0.499_999_97,
    3.999_999_8,
    1e-40,
    -1e-40,
    f32::MIN_POSITIVE,
    1e-20,
    -1e20,
    3.4e38,
    -3.4e38,
    4_194_303.0,
    12_582_912.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    251.0,
];

/// Results of every operation on a few vectors, as bits; all NaN are equal.
struct Everything;

fn canonical(x: [f32; LANES]) -> [u32; LANES] {
    x.map(|x| {
        if x.is_nan() {
            f32::NAN.to_bits()
        } else {
            x.to_bits()
        }
    })
}

impl Kernel for Everything {
    type Output = Vec<[u32; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = Vec::new();
        let vectors: Vec<[f32; LANES]> = (0..NUMBERS.len())
            .map(|from| std::array::from_fn(|i| NUMBERS[(from + 7 * i) % NUMBERS.len()]))
            .collect();
        for (i, x) in vectors.iter().enumerate() {
            for y in &vectors {
                let (a, b) = (s.load(x), s.load(y));
                for z in [
                    a + b,
                    a - b,
                    a * b,
                    a / b,
                    s.min(a, b),
                    s.max(a, b),
                    s.abs(a),
                    s.neg(a),
                    s.sqrt(a),
                ] {
                    out.push(canonical(s.store(z)));
                }
                for mask in [s.lt(a, b), s.le(a, b), s.eq(a, b), s.gt(a, b), s.ge(a, b)] {
                    out.push([u32::from(s.mask_bits(mask)); LANES]);
                    out.push(s.store(s.select(mask, a, b)).map(f32::to_bits));
                    out.push(
                        s.store_i32(s.select_i32(mask, s.bits(a), s.bits(b)))
                            .map(|x| x as u32),
                    );
                    for other in [
                        s.both(mask, s.lt(b, a)),
                        s.either(mask, s.lt(b, a)),
                        s.not(mask),
                    ] {
                        out.push(
                            [u32::from(s.mask_bits(other)) | u32::from(s.any(other)) << 8; LANES],
                        );
                    }
                }
                let (j, k) = (s.bits(a), s.bits(b));
                let ints = [
                    j + k,
                    j - k,
                    s.min_i32(j, k),
                    s.max_i32(j, k),
                    s.and(j, k),
                    s.or(j, k),
                    s.shift_left::<0>(j),
                    s.shift_left::<5>(j),
                    s.shift_right::<0>(j),
                    s.shift_right::<5>(j),
                    s.bits(s.of_bits(j)),
                ];
                out.extend(ints.map(|z| s.store_i32(z).map(|z| z as u32)));
                for mask in [s.eq_i32(j, k), s.gt_i32(j, k)] {
                    out.push([u32::from(s.mask_bits(mask)); LANES]);
                }
                out.push(canonical(s.store(s.to_f32(j))));
                out.push(s.store_i32(s.trunc(a)).map(|x| x as u32));
                out.push(
                    s.store(s.lookup(a, s.shift_right::<3>(k)))
                        .map(f32::to_bits),
                );
                out.push(s.store_u8(k).map(u32::from));
            }
            out.push(canonical(s.store(s.min_across(s.load(x)))));
            let bytes: [u8; LANES] = std::array::from_fn(|j| (i * 31 + j * 41) as u8);
            out.push(s.store_i32(s.load_u8(&bytes)).map(|x| x as u32));
            out.push(
                s.store_i32(s.load_i8(&bytes.map(|x| x as i8)))
                    .map(|x| x as u32),
            );
            let (a, next) = (s.load(x), s.load(&vectors[(i + 1) % vectors.len()]));
            let codes = s.and(s.load_u8(&bytes), s.splat_i32(15));
            out.push(s.store(s.lookup_of_16([a, next], codes)).map(f32::to_bits));
            out.push([u32::from(s.mask_bits(s.lanes_of(bytes[1]))); LANES]);
            out.push(s.store(s.negate_where(bytes[1], a)).map(f32::to_bits));
            out.push(
                s.store_i32(s.load_i32(&bytes.map(|x| i32::from(x).wrapping_mul(0x0101_0101))))
                    .map(|x| x as u32),
            );
            out.push(s.store_i32(s.splat_i32(i as i32 - 9)).map(|x| x as u32));
            out.push(s.store(s.splat(x[3])).map(f32::to_bits));
        }
        let rows: [[f32; 16]; LANES] =
            std::array::from_fn(|r| std::array::from_fn(|c| (r * 16 + c) as f32));
        out.extend(
            s.gather(rows.each_ref())
                .map(|x| s.store(x).map(f32::to_bits)),
        );
        out
    }
}

#[test]
fn instruction_sets_match_the_scalar_one() {
    let plain = Isa::SCALAR.run(Everything);
    for isa in Isa::available() {
        let found = isa.run(Everything);
        let different = plain.iter().zip(&found).position(|(a, b)| a != b);
        assert_eq!(
            (different, plain.len()),
            (None, found.len()),
            "{}",
            isa.name()
        );
    }
}

#[test]
fn scalar_operations_match_their_definitions() {
    struct Sample;
    impl Kernel for Sample {
        type Output = ();
        fn run<S: Simd>(self, s: S) {
            let rows: [[f32; 8]; LANES] =
                std::array::from_fn(|r| std::array::from_fn(|c| (r * 8 + c) as f32));
            assert_eq!(
                s.store(s.gather(rows.each_ref())[3]),
                [3.0, 11.0, 19.0, 27.0, 35.0, 43.0, 51.0, 59.0]
            );
            let zeros = s.min(s.splat(0.0), s.splat(-0.0));
            assert_eq!(s.store(zeros).map(f32::to_bits), [(-0.0f32).to_bits(); 8]);
            assert!(s.store(s.max(s.splat(1.0), s.splat(f32::NAN)))[0].is_nan());
            assert_eq!(s.store(s.max(s.splat(f32::NAN), s.splat(1.0)))[0], 1.0);
            let table = s.load(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
            let codes = s.load_i32(&[0, 7, 8, 15, 9, 1, 2, 3]);
            let looked_up = s.lookup_of_16([table, s.splat(9.0) + table], codes);
            assert_eq!(
                s.store(looked_up),
                [0.0, 7.0, 9.0, 16.0, 10.0, 1.0, 2.0, 3.0]
            );
            assert_eq!(
                s.store(s.negate_where(0b1000_0010, table)),
                [0.0, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0]
            );
            let least = s.min_across(s.load(&[3.0, 4.0, 2.5, 7.0, 3.0, f32::INFINITY, 6.0, 9.0]));
            assert_eq!(s.store(least), [2.5; 8]);
            let index = s.load_i32(&[7, 8, 9, 3, -1, 2, 0, 5]);
            assert_eq!(
                s.store(s.lookup(table, index)),
                [7.0, 0.0, 1.0, 3.0, 7.0, 2.0, 0.0, 5.0]
            );
            let numbers = s.load(&[
                -1.9,
                1.9,
                -0.0,
                2_147_483_520.0,
                2_147_483_648.0,
                -2_147_483_648.0,
                -3e9,
                f32::NAN,
            ]);
            let (lowest, high) = (i32::MIN, 2_147_483_520);
            assert_eq!(
                s.store_i32(s.trunc(numbers)),
                [-1, 1, 0, high, lowest, lowest, lowest, lowest]
            );
            assert_eq!(s.mask_bits(s.gt_i32(index, s.splat_i32(4))), 0b1000_0111);
        }
    }
    Isa::SCALAR.run(Sample);
}

#[test]
fn available_sets_begin_with_scalar_and_end_with_the_fastest() {
    let available = Isa::available();
    assert_eq!(available[0], Isa::SCALAR);
    assert!(available.contains(&Isa::best()));
    #[cfg(target_arch = "aarch64")]
    assert_eq!(available.last().map(|isa| isa.name()), Some("neon"));
}
