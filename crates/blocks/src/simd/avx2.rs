//! Eight lanes in one AVX2 register.

use super::{Kernel, LANES, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

/// Eight f32. Constructible only from an [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct F32(__m256);

/// Eight i32. Constructible only from an [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct I32(__m256i);

/// Eight booleans: all bits of a lane, or none. Constructible only from an [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct Mask(__m256);

/// AVX and AVX2 operations on registers only.
macro_rules! avx2 {
    ($operation:expr) => {{
        // SAFETY: the expression holds an `Avx2` or a vector made from one, so the CPU has these
        // instructions; they access no memory.
        #[allow(unused_unsafe)]
        unsafe {
            $operation
        }
    }};
}

impl Avx2 {
    /// `None` if the CPU lacks it.
    pub(super) fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Avx2(()))
    }

    /// Runs a kernel compiled with AVX2.
    #[inline]
    pub(super) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn compiled<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: the token proves that the CPU has AVX2 and the other features checked by
        // `detect`.
        unsafe { compiled(self, kernel) }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $type:ident, $f:ident) => {
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $type(avx2!($f(self.0, other.0)))
            }
        }
    };
}

operator!(Add, add, F32, _mm256_add_ps);
operator!(Sub, sub, F32, _mm256_sub_ps);
operator!(Mul, mul, F32, _mm256_mul_ps);
operator!(Div, div, F32, _mm256_div_ps);
operator!(Add, add, I32, _mm256_add_epi32);
operator!(Sub, sub, I32, _mm256_sub_epi32);

/// All bits except the sign.
const MAGNITUDE: i32 = i32::MAX;

impl Simd for Avx2 {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        F32(avx2!(_mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F32 {
        // SAFETY: the array has the 32 bytes read, no alignment is needed, and the token proves
        // support.
        F32(unsafe { _mm256_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, x: F32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the array has the 32 bytes written, no alignment is needed, and the token proves
        // support.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x.0) };
        out
    }

    #[inline(always)]
    fn sqrt(self, x: F32) -> F32 {
        F32(avx2!(_mm256_sqrt_ps(x.0)))
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        F32(avx2!(_mm256_min_ps(a.0, b.0)))
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        F32(avx2!(_mm256_max_ps(a.0, b.0)))
    }

    #[inline(always)]
    fn min_across(self, x: F32) -> F32 {
        F32(avx2!({
            let x = _mm256_min_ps(x.0, _mm256_permute2f128_ps::<0x01>(x.0, x.0));
            let x = _mm256_min_ps(x, _mm256_permute_ps::<0x4e>(x));
            _mm256_min_ps(x, _mm256_permute_ps::<0xb1>(x))
        }))
    }

    #[inline(always)]
    fn abs(self, x: F32) -> F32 {
        F32(avx2!(_mm256_and_ps(
            x.0,
            _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE))
        )))
    }

    #[inline(always)]
    fn neg(self, x: F32) -> F32 {
        F32(avx2!(_mm256_xor_ps(
            x.0,
            _mm256_castsi256_ps(_mm256_set1_epi32(!MAGNITUDE))
        )))
    }

    #[inline(always)]
    fn lookup(self, table: F32, index: I32) -> F32 {
        F32(avx2!(_mm256_permutevar8x32_ps(table.0, index.0)))
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        avx2!({
            // Pairs of rows, then pairs of pairs, within each half; then the halves.
            let [r0, r1, r2, r3, r4, r5, r6, r7] = rows.map(|r| r.0);
            let (a0, a1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (a2, a3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            let (a4, a5) = (_mm256_unpacklo_ps(r4, r5), _mm256_unpackhi_ps(r4, r5));
            let (a6, a7) = (_mm256_unpacklo_ps(r6, r7), _mm256_unpackhi_ps(r6, r7));
            let (b0, b1) = (
                _mm256_shuffle_ps::<0x44>(a0, a2),
                _mm256_shuffle_ps::<0xee>(a0, a2),
            );
            let (b2, b3) = (
                _mm256_shuffle_ps::<0x44>(a1, a3),
                _mm256_shuffle_ps::<0xee>(a1, a3),
            );
            let (b4, b5) = (
                _mm256_shuffle_ps::<0x44>(a4, a6),
                _mm256_shuffle_ps::<0xee>(a4, a6),
            );
            let (b6, b7) = (
                _mm256_shuffle_ps::<0x44>(a5, a7),
                _mm256_shuffle_ps::<0xee>(a5, a7),
            );
            [
                F32(_mm256_permute2f128_ps::<0x20>(b0, b4)),
                F32(_mm256_permute2f128_ps::<0x20>(b1, b5)),
                F32(_mm256_permute2f128_ps::<0x20>(b2, b6)),
                F32(_mm256_permute2f128_ps::<0x20>(b3, b7)),
                F32(_mm256_permute2f128_ps::<0x31>(b0, b4)),
                F32(_mm256_permute2f128_ps::<0x31>(b1, b5)),
                F32(_mm256_permute2f128_ps::<0x31>(b2, b6)),
                F32(_mm256_permute2f128_ps::<0x31>(b3, b7)),
            ]
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        I32(avx2!(_mm256_set1_epi32(x)))
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> I32 {
        // SAFETY: the array has the 32 bytes read, no alignment is needed, and the token proves
        // support.
        I32(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> I32 {
        // SAFETY: the array has the 8 bytes read, no alignment is needed, and the token proves
        // support.
        I32(unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> I32 {
        // SAFETY: the array has the 8 bytes read, no alignment is needed, and the token proves
        // support.
        I32(unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_i32(self, x: I32) -> [i32; LANES] {
        let mut out = [0; LANES];
        // SAFETY: the array has the 32 bytes written, no alignment is needed, and the token proves
        // support.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x.0) };
        out
    }

    #[inline(always)]
    fn store_u8(self, x: I32) -> [u8; LANES] {
        let eight = avx2!({
            // The low bytes of each half in its lowest four bytes, then both combined.
            let low = _mm256_set1_epi32(0x0c08_0400);
            let halves = _mm256_shuffle_epi8(x.0, low);
            let (first, second) = (
                _mm256_castsi256_si128(halves),
                _mm256_extracti128_si256::<1>(halves),
            );
            _mm_cvtsi128_si64(_mm_unpacklo_epi32(first, second))
        });
        eight.to_le_bytes()
    }

    #[inline(always)]
    fn min_i32(self, a: I32, b: I32) -> I32 {
        I32(avx2!(_mm256_min_epi32(a.0, b.0)))
    }

    #[inline(always)]
    fn max_i32(self, a: I32, b: I32) -> I32 {
        I32(avx2!(_mm256_max_epi32(a.0, b.0)))
    }

    #[inline(always)]
    fn and(self, a: I32, b: I32) -> I32 {
        I32(avx2!(_mm256_and_si256(a.0, b.0)))
    }

    #[inline(always)]
    fn or(self, a: I32, b: I32) -> I32 {
        I32(avx2!(_mm256_or_si256(a.0, b.0)))
    }

    #[inline(always)]
    fn shift_left<const BITS: i32>(self, x: I32) -> I32 {
        I32(avx2!(_mm256_slli_epi32::<BITS>(x.0)))
    }

    #[inline(always)]
    fn shift_right<const BITS: i32>(self, x: I32) -> I32 {
        I32(avx2!(_mm256_srli_epi32::<BITS>(x.0)))
    }

    #[inline(always)]
    fn bits(self, x: F32) -> I32 {
        I32(avx2!(_mm256_castps_si256(x.0)))
    }

    #[inline(always)]
    fn of_bits(self, x: I32) -> F32 {
        F32(avx2!(_mm256_castsi256_ps(x.0)))
    }

    #[inline(always)]
    fn to_f32(self, x: I32) -> F32 {
        F32(avx2!(_mm256_cvtepi32_ps(x.0)))
    }

    #[inline(always)]
    fn trunc(self, x: F32) -> I32 {
        I32(avx2!(_mm256_cvttps_epi32(x.0)))
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> Mask {
        Mask(avx2!(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)))
    }

    #[inline(always)]
    fn le(self, a: F32, b: F32) -> Mask {
        Mask(avx2!(_mm256_cmp_ps::<_CMP_LE_OQ>(a.0, b.0)))
    }

    #[inline(always)]
    fn eq(self, a: F32, b: F32) -> Mask {
        Mask(avx2!(_mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0)))
    }

    #[inline(always)]
    fn eq_i32(self, a: I32, b: I32) -> Mask {
        Mask(avx2!(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.0, b.0))))
    }

    #[inline(always)]
    fn gt_i32(self, a: I32, b: I32) -> Mask {
        Mask(avx2!(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.0, b.0))))
    }

    #[inline(always)]
    fn both(self, a: Mask, b: Mask) -> Mask {
        Mask(avx2!(_mm256_and_ps(a.0, b.0)))
    }

    #[inline(always)]
    fn either(self, a: Mask, b: Mask) -> Mask {
        Mask(avx2!(_mm256_or_ps(a.0, b.0)))
    }

    #[inline(always)]
    fn not(self, a: Mask) -> Mask {
        Mask(avx2!(_mm256_xor_ps(
            a.0,
            _mm256_castsi256_ps(_mm256_set1_epi32(-1))
        )))
    }

    #[inline(always)]
    fn mask_bits(self, a: Mask) -> u8 {
        avx2!(_mm256_movemask_ps(a.0)) as u8
    }

    #[inline(always)]
    fn select(self, mask: Mask, yes: F32, no: F32) -> F32 {
        F32(avx2!(_mm256_blendv_ps(no.0, yes.0, mask.0)))
    }

    #[inline(always)]
    fn select_i32(self, mask: Mask, yes: I32, no: I32) -> I32 {
        let (yes, no) = (self.of_bits(yes), self.of_bits(no));
        self.bits(self.select(mask, yes, no))
    }
}
