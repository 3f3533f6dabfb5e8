//! Eight lanes as arrays: the definition of every operation.

use super::{LANES, Simd};
use std::ops::{Add, Div, Mul, Sub};

/// The instructions of every CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Eight<T>([T; LANES]);

#[inline(always)]
fn each<T: Copy, R>(a: Eight<T>, f: impl Fn(T) -> R) -> Eight<R> {
    Eight(std::array::from_fn(|i| f(a.0[i])))
}

#[inline(always)]
fn pairs<T: Copy, R>(a: Eight<T>, b: Eight<T>, f: impl Fn(T, T) -> R) -> Eight<R> {
    Eight(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

macro_rules! operator {
    ($trait:ident, $method:ident, $type:ty, $f:expr) => {
        impl $trait for Eight<$type> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                pairs(self, other, $f)
            }
        }
    };
}

operator!(Add, add, f32, |a, b| a + b);
operator!(Sub, sub, f32, |a, b| a - b);
operator!(Mul, mul, f32, |a, b| a * b);
operator!(Div, div, f32, |a, b| a / b);
operator!(Add, add, i32, i32::wrapping_add);
operator!(Sub, sub, i32, i32::wrapping_sub);

impl Simd for Scalar {
    type F32 = Eight<f32>;
    type I32 = Eight<i32>;
    type Mask = Eight<bool>;

    #[inline(always)]
    fn splat(self, x: f32) -> Eight<f32> {
        Eight([x; LANES])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Eight<f32> {
        Eight(*x)
    }

    #[inline(always)]
    fn store(self, x: Eight<f32>) -> [f32; LANES] {
        x.0
    }

    #[inline(always)]
    fn sqrt(self, x: Eight<f32>) -> Eight<f32> {
        each(x, f32::sqrt)
    }

    #[inline(always)]
    fn min(self, a: Eight<f32>, b: Eight<f32>) -> Eight<f32> {
        pairs(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: Eight<f32>, b: Eight<f32>) -> Eight<f32> {
        pairs(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min_across(self, x: Eight<f32>) -> Eight<f32> {
        [4, 2, 1].iter().fold(x, |x, away| {
            self.min(x, Eight(std::array::from_fn(|i| x.0[i ^ away])))
        })
    }

    #[inline(always)]
    fn abs(self, x: Eight<f32>) -> Eight<f32> {
        each(x, f32::abs)
    }

    #[inline(always)]
    fn neg(self, x: Eight<f32>) -> Eight<f32> {
        each(x, |x| -x)
    }

    #[inline(always)]
    fn lookup(self, table: Eight<f32>, index: Eight<i32>) -> Eight<f32> {
        each(index, |i| table.0[i as usize % LANES])
    }

    #[inline(always)]
    fn transpose(self, rows: [Eight<f32>; LANES]) -> [Eight<f32>; LANES] {
        std::array::from_fn(|i| Eight(std::array::from_fn(|j| rows[j].0[i])))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Eight<i32> {
        Eight([x; LANES])
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> Eight<i32> {
        Eight(*x)
    }

    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> Eight<i32> {
        each(Eight(*x), i32::from)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Eight<i32> {
        each(Eight(*x), i32::from)
    }

    #[inline(always)]
    fn store_i32(self, x: Eight<i32>) -> [i32; LANES] {
        x.0
    }

    #[inline(always)]
    fn store_u8(self, x: Eight<i32>) -> [u8; LANES] {
        x.0.map(|x| x as u8)
    }

    #[inline(always)]
    fn min_i32(self, a: Eight<i32>, b: Eight<i32>) -> Eight<i32> {
        pairs(a, b, Ord::min)
    }

    #[inline(always)]
    fn max_i32(self, a: Eight<i32>, b: Eight<i32>) -> Eight<i32> {
        pairs(a, b, Ord::max)
    }

    #[inline(always)]
    fn and(self, a: Eight<i32>, b: Eight<i32>) -> Eight<i32> {
        pairs(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn or(self, a: Eight<i32>, b: Eight<i32>) -> Eight<i32> {
        pairs(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn shift_left<const BITS: i32>(self, x: Eight<i32>) -> Eight<i32> {
        each(x, |x| x << BITS)
    }

    #[inline(always)]
    fn shift_right<const BITS: i32>(self, x: Eight<i32>) -> Eight<i32> {
        each(x, |x| (x as u32 >> BITS) as i32)
    }

    #[inline(always)]
    fn bits(self, x: Eight<f32>) -> Eight<i32> {
        each(x, |x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn of_bits(self, x: Eight<i32>) -> Eight<f32> {
        each(x, |x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    fn to_f32(self, x: Eight<i32>) -> Eight<f32> {
        each(x, |x| x as f32)
    }

    #[inline(always)]
    fn trunc(self, x: Eight<f32>) -> Eight<i32> {
        // The conversion saturates too small numbers to `i32::MIN`.
        each(x, |x| {
            if x < 2_147_483_648.0 {
                x as i32
            } else {
                i32::MIN
            }
        })
    }

    #[inline(always)]
    fn lt(self, a: Eight<f32>, b: Eight<f32>) -> Eight<bool> {
        pairs(a, b, |a, b| a < b)
    }

    #[inline(always)]
    fn le(self, a: Eight<f32>, b: Eight<f32>) -> Eight<bool> {
        pairs(a, b, |a, b| a <= b)
    }

    #[inline(always)]
    fn eq(self, a: Eight<f32>, b: Eight<f32>) -> Eight<bool> {
        pairs(a, b, |a, b| a == b)
    }

    #[inline(always)]
    fn eq_i32(self, a: Eight<i32>, b: Eight<i32>) -> Eight<bool> {
        pairs(a, b, |a, b| a == b)
    }

    #[inline(always)]
    fn gt_i32(self, a: Eight<i32>, b: Eight<i32>) -> Eight<bool> {
        pairs(a, b, |a, b| a > b)
    }

    #[inline(always)]
    fn both(self, a: Eight<bool>, b: Eight<bool>) -> Eight<bool> {
        pairs(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn either(self, a: Eight<bool>, b: Eight<bool>) -> Eight<bool> {
        pairs(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn not(self, a: Eight<bool>) -> Eight<bool> {
        each(a, |a| !a)
    }

    #[inline(always)]
    fn mask_bits(self, a: Eight<bool>) -> u8 {
        a.0.iter()
            .rev()
            .fold(0, |bits, &lane| bits << 1 | u8::from(lane))
    }

    #[inline(always)]
    fn select(self, mask: Eight<bool>, yes: Eight<f32>, no: Eight<f32>) -> Eight<f32> {
        Eight(std::array::from_fn(|i| {
            if mask.0[i] { yes.0[i] } else { no.0[i] }
        }))
    }

    #[inline(always)]
    fn select_i32(self, mask: Eight<bool>, yes: Eight<i32>, no: Eight<i32>) -> Eight<i32> {
        Eight(std::array::from_fn(|i| {
            if mask.0[i] { yes.0[i] } else { no.0[i] }
        }))
    }
}
