//! Eight lanes in two NEON registers.

use super::{Kernel, LANES, Simd};
use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon(());

/// Eight f32: lanes 0 to 3, and 4 to 7. Constructible only from a [`Neon`].
#[derive(Clone, Copy)]
pub(super) struct F32(float32x4_t, float32x4_t);

/// Eight i32. Constructible only from a [`Neon`].
#[derive(Clone, Copy)]
pub(super) struct I32(int32x4_t, int32x4_t);

/// Eight booleans: all bits of a lane, or none. Constructible only from a [`Neon`].
#[derive(Clone, Copy)]
pub(super) struct Mask(uint32x4_t, uint32x4_t);

/// NEON operations on registers only.
macro_rules! neon {
    ($operation:expr) => {{
        // SAFETY: the expression holds a `Neon` or a vector made from one, so the CPU has these
        // instructions; they access no memory.
        #[allow(unused_unsafe)]
        unsafe {
            $operation
        }
    }};
}

impl Neon {
    /// `None` if the CPU lacks it.
    pub(super) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    /// Runs a kernel compiled with NEON.
    #[inline]
    pub(super) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn compiled<K: Kernel>(token: Neon, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: the token proves that the CPU has NEON.
        unsafe { compiled(self, kernel) }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $type:ident, $f:ident) => {
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $type(neon!($f(self.0, other.0)), neon!($f(self.1, other.1)))
            }
        }
    };
}

operator!(Add, add, F32, vaddq_f32);
operator!(Sub, sub, F32, vsubq_f32);
operator!(Mul, mul, F32, vmulq_f32);
operator!(Div, div, F32, vdivq_f32);
operator!(Add, add, I32, vaddq_s32);
operator!(Sub, sub, I32, vsubq_s32);

/// Transposes four rows of four.
#[inline(always)]
fn transpose_four(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    neon!({
        let (a0, a1) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (a2, a3) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        let wide = |x| vreinterpretq_f64_f32(x);
        let first = |x, y| vreinterpretq_f32_f64(vtrn1q_f64(wide(x), wide(y)));
        let second = |x, y| vreinterpretq_f32_f64(vtrn2q_f64(wide(x), wide(y)));
        [first(a0, a2), first(a1, a3), second(a0, a2), second(a1, a3)]
    })
}

impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        let x = neon!(vdupq_n_f32(x));
        F32(x, x)
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F32 {
        // SAFETY: the array has the 32 bytes read, aligned as f32, and the token proves support.
        unsafe { F32(vld1q_f32(x.as_ptr()), vld1q_f32(x[4..].as_ptr())) }
    }

    #[inline(always)]
    fn store(self, x: F32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the array has the 32 bytes written, aligned as f32, and the token proves support.
        unsafe {
            vst1q_f32(out.as_mut_ptr(), x.0);
            vst1q_f32(out[4..].as_mut_ptr(), x.1);
        }
        out
    }

    #[inline(always)]
    fn sqrt(self, x: F32) -> F32 {
        F32(neon!(vsqrtq_f32(x.0)), neon!(vsqrtq_f32(x.1)))
    }

    // NEON's own minimum and maximum differ for NaN and zeros.
    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        self.select(self.lt(a, b), a, b)
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        self.select(self.gt(a, b), a, b)
    }

    #[inline(always)]
    fn min_across(self, x: F32) -> F32 {
        let x = self.min(x, F32(x.1, x.0));
        let x = self.min(
            x,
            F32(
                neon!(vextq_f32::<2>(x.0, x.0)),
                neon!(vextq_f32::<2>(x.1, x.1)),
            ),
        );
        self.min(x, F32(neon!(vrev64q_f32(x.0)), neon!(vrev64q_f32(x.1))))
    }

    #[inline(always)]
    fn abs(self, x: F32) -> F32 {
        F32(neon!(vabsq_f32(x.0)), neon!(vabsq_f32(x.1)))
    }

    #[inline(always)]
    fn neg(self, x: F32) -> F32 {
        F32(neon!(vnegq_f32(x.0)), neon!(vnegq_f32(x.1)))
    }

    #[inline(always)]
    fn lookup(self, table: F32, index: I32) -> F32 {
        neon!({
            let bytes = uint8x16x2_t(vreinterpretq_u8_f32(table.0), vreinterpretq_u8_f32(table.1));
            // The four bytes of entry i are bytes 4 i to 4 i + 3.
            let four = |index: int32x4_t| {
                let entry = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(7));
                let first = vmulq_u32(entry, vdupq_n_u32(0x0404_0404));
                let all = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
                vreinterpretq_f32_u8(vqtbl2q_u8(bytes, vreinterpretq_u8_u32(all)))
            };
            F32(four(index.0), four(index.1))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        let quarter =
            |rows: [F32; 4], high: bool| transpose_four(rows.map(|r| if high { r.1 } else { r.0 }));
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
        let (upper, lower) = ([r0, r1, r2, r3], [r4, r5, r6, r7]);
        let (left, right) = (quarter(upper, false), quarter(lower, false));
        let (left_high, right_high) = (quarter(upper, true), quarter(lower, true));
        std::array::from_fn(|i| match i {
            0..4 => F32(left[i], right[i]),
            _ => F32(left_high[i - 4], right_high[i - 4]),
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        let x = neon!(vdupq_n_s32(x));
        I32(x, x)
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> I32 {
        // SAFETY: the array has the 32 bytes that are read, aligned as i32 are; the token is here.
        unsafe { I32(vld1q_s32(x.as_ptr()), vld1q_s32(x[4..].as_ptr())) }
    }

    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> I32 {
        // SAFETY: the array has the 8 bytes that are read; the token is here.
        let wide = unsafe { vmovl_u8(vld1_u8(x.as_ptr())) };
        widened(wide)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> I32 {
        // SAFETY: the array has the 8 bytes that are read; the token is here.
        let wide = unsafe { vmovl_s8(vld1_s8(x.as_ptr())) };
        neon!(I32(
            vmovl_s16(vget_low_s16(wide)),
            vmovl_s16(vget_high_s16(wide))
        ))
    }

    #[inline(always)]
    fn store_i32(self, x: I32) -> [i32; LANES] {
        let mut out = [0; LANES];
        // SAFETY: the array has the 32 bytes that are written, aligned as i32 are; the token is
        // here.
        unsafe {
            vst1q_s32(out.as_mut_ptr(), x.0);
            vst1q_s32(out[4..].as_mut_ptr(), x.1);
        }
        out
    }

    #[inline(always)]
    fn store_u8(self, x: I32) -> [u8; LANES] {
        let eight = neon!(vmovn_s16(vcombine_s16(vmovn_s32(x.0), vmovn_s32(x.1))));
        neon!(vget_lane_u64::<0>(vreinterpret_u64_s8(eight))).to_le_bytes()
    }

    #[inline(always)]
    fn min_i32(self, a: I32, b: I32) -> I32 {
        I32(neon!(vminq_s32(a.0, b.0)), neon!(vminq_s32(a.1, b.1)))
    }

    #[inline(always)]
    fn max_i32(self, a: I32, b: I32) -> I32 {
        I32(neon!(vmaxq_s32(a.0, b.0)), neon!(vmaxq_s32(a.1, b.1)))
    }

    #[inline(always)]
    fn and(self, a: I32, b: I32) -> I32 {
        I32(neon!(vandq_s32(a.0, b.0)), neon!(vandq_s32(a.1, b.1)))
    }

    #[inline(always)]
    fn or(self, a: I32, b: I32) -> I32 {
        I32(neon!(vorrq_s32(a.0, b.0)), neon!(vorrq_s32(a.1, b.1)))
    }

    // With a register of counts, as the immediate forms do not shift by nothing.
    #[inline(always)]
    fn shift_left<const BITS: i32>(self, x: I32) -> I32 {
        let by = neon!(vdupq_n_s32(BITS));
        I32(neon!(vshlq_s32(x.0, by)), neon!(vshlq_s32(x.1, by)))
    }

    #[inline(always)]
    fn shift_right<const BITS: i32>(self, x: I32) -> I32 {
        neon!({
            let by = vdupq_n_s32(-BITS);
            let shifted = |x| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), by));
            I32(shifted(x.0), shifted(x.1))
        })
    }

    #[inline(always)]
    fn bits(self, x: F32) -> I32 {
        I32(
            neon!(vreinterpretq_s32_f32(x.0)),
            neon!(vreinterpretq_s32_f32(x.1)),
        )
    }

    #[inline(always)]
    fn of_bits(self, x: I32) -> F32 {
        F32(
            neon!(vreinterpretq_f32_s32(x.0)),
            neon!(vreinterpretq_f32_s32(x.1)),
        )
    }

    #[inline(always)]
    fn to_f32(self, x: I32) -> F32 {
        F32(neon!(vcvtq_f32_s32(x.0)), neon!(vcvtq_f32_s32(x.1)))
    }

    #[inline(always)]
    fn trunc(self, x: F32) -> I32 {
        // The conversion maps NaN to 0 and too large numbers to the largest integer; too small ones
        // become `i32::MIN`.
        let fits = self.lt(x, self.splat(2_147_483_648.0));
        let whole = I32(neon!(vcvtq_s32_f32(x.0)), neon!(vcvtq_s32_f32(x.1)));
        self.select_i32(fits, whole, self.splat_i32(i32::MIN))
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> Mask {
        Mask(neon!(vcltq_f32(a.0, b.0)), neon!(vcltq_f32(a.1, b.1)))
    }

    #[inline(always)]
    fn le(self, a: F32, b: F32) -> Mask {
        Mask(neon!(vcleq_f32(a.0, b.0)), neon!(vcleq_f32(a.1, b.1)))
    }

    #[inline(always)]
    fn eq(self, a: F32, b: F32) -> Mask {
        Mask(neon!(vceqq_f32(a.0, b.0)), neon!(vceqq_f32(a.1, b.1)))
    }

    #[inline(always)]
    fn eq_i32(self, a: I32, b: I32) -> Mask {
        Mask(neon!(vceqq_s32(a.0, b.0)), neon!(vceqq_s32(a.1, b.1)))
    }

    #[inline(always)]
    fn gt_i32(self, a: I32, b: I32) -> Mask {
        Mask(neon!(vcgtq_s32(a.0, b.0)), neon!(vcgtq_s32(a.1, b.1)))
    }

    #[inline(always)]
    fn both(self, a: Mask, b: Mask) -> Mask {
        Mask(neon!(vandq_u32(a.0, b.0)), neon!(vandq_u32(a.1, b.1)))
    }

    #[inline(always)]
    fn either(self, a: Mask, b: Mask) -> Mask {
        Mask(neon!(vorrq_u32(a.0, b.0)), neon!(vorrq_u32(a.1, b.1)))
    }

    #[inline(always)]
    fn not(self, a: Mask) -> Mask {
        Mask(neon!(vmvnq_u32(a.0)), neon!(vmvnq_u32(a.1)))
    }

    #[inline(always)]
    fn mask_bits(self, a: Mask) -> u8 {
        const PLACES: [u16; LANES] = [1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: the array has the 16 bytes read, aligned as u16, and the token proves support.
        let places = unsafe { vld1q_u16(PLACES.as_ptr()) };
        neon!({
            let lanes = vcombine_u16(vmovn_u32(a.0), vmovn_u32(a.1));
            vaddvq_u16(vandq_u16(lanes, places))
        }) as u8
    }

    #[inline(always)]
    fn select(self, mask: Mask, yes: F32, no: F32) -> F32 {
        F32(
            neon!(vbslq_f32(mask.0, yes.0, no.0)),
            neon!(vbslq_f32(mask.1, yes.1, no.1)),
        )
    }

    #[inline(always)]
    fn select_i32(self, mask: Mask, yes: I32, no: I32) -> I32 {
        I32(
            neon!(vbslq_s32(mask.0, yes.0, no.0)),
            neon!(vbslq_s32(mask.1, yes.1, no.1)),
        )
    }
}

/// Eight unsigned 16-bit numbers as i32.
#[inline(always)]
fn widened(x: uint16x8_t) -> I32 {
    neon!(I32(
        vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x))),
        vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(x)))
    ))
}
