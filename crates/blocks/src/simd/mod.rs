//! Eight lanes of f32, with the same results on every CPU.
//!
//! ```text
//! Simd      operations on eight f32, eight i32 and eight booleans
//! Scalar    arrays of eight; defines every operation, and is the fallback
//! Avx2      one 256-bit register (x86-64)
//! Neon      two 128-bit registers (aarch64)
//! Isa       an instruction set of this CPU; `Isa::best`, or a lower one by QUANTIER_ISA
//! ```
//!
//! A kernel is written once, over `S: Simd`, and entered through `Isa::run`, which compiles it for
//! each of the three. Lanes are sub-blocks, candidates or codebook points, never positions inside
//! one sum: every sum keeps the order of the reference, and every operation rounds like the scalar
//! one. Nothing is fused.
//!
//! All CPU-specific instructions of the program, with their `unsafe`, are in this directory.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
pub(crate) use scalar::Scalar;
use std::ops::{Add, Div, Mul, Sub};
use std::sync::OnceLock;

/// Number of lanes.
pub const LANES: usize = 8;

/// Eight lanes. A value of an implementation proves CPU support of its instructions.
///
/// Results for NaN and out-of-range numbers are the same on every CPU, too: [`Scalar`] defines
/// them.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F32: Copy
        + Add<Output = Self::F32>
        + Sub<Output = Self::F32>
        + Mul<Output = Self::F32>
        + Div<Output = Self::F32>;
    /// Eight i32; sums and differences wrap.
    type I32: Copy + Add<Output = Self::I32> + Sub<Output = Self::I32>;
    /// Eight booleans.
    type Mask: Copy;

    fn splat(self, x: f32) -> Self::F32;
    fn load(self, x: &[f32; LANES]) -> Self::F32;
    fn store(self, x: Self::F32) -> [f32; LANES];
    fn sqrt(self, x: Self::F32) -> Self::F32;
    /// `a` where `a < b`, else `b`: of a NaN and of two zeros it is `b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a` where `a > b`, else `b`: of a NaN and of two zeros it is `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The minimum of all lanes, in every lane: each takes the [`Simd::min`] of itself and the lane
    /// four away, then two away, then one.
    fn min_across(self, x: Self::F32) -> Self::F32;
    fn abs(self, x: Self::F32) -> Self::F32;
    fn neg(self, x: Self::F32) -> Self::F32;
    /// The table's entry at the index in the three lowest bits of each lane.
    fn lookup(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// Lane `j` of row `i` becomes lane `i` of row `j`.
    fn transpose(self, rows: [Self::F32; LANES]) -> [Self::F32; LANES];

    fn splat_i32(self, x: i32) -> Self::I32;
    fn load_i32(self, x: &[i32; LANES]) -> Self::I32;
    /// Widens unsigned bytes.
    fn load_u8(self, x: &[u8; LANES]) -> Self::I32;
    /// Widens signed bytes.
    fn load_i8(self, x: &[i8; LANES]) -> Self::I32;
    fn store_i32(self, x: Self::I32) -> [i32; LANES];
    /// The low byte of each lane.
    fn store_u8(self, x: Self::I32) -> [u8; LANES];
    fn min_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Shifts every lane left, filling with zeros.
    fn shift_left<const BITS: i32>(self, x: Self::I32) -> Self::I32;
    /// Shifts every lane right, filling with zeros.
    fn shift_right<const BITS: i32>(self, x: Self::I32) -> Self::I32;

    /// The bits of the f32.
    fn bits(self, x: Self::F32) -> Self::I32;
    /// The f32 of these bits.
    fn of_bits(self, x: Self::I32) -> Self::F32;
    /// Converts to f32, rounded to nearest.
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// The integer part; `i32::MIN` for NaN and out-of-range numbers.
    fn trunc(self, x: Self::F32) -> Self::I32;

    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn eq_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    fn gt_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    fn both(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn either(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn not(self, a: Self::Mask) -> Self::Mask;
    /// The lanes as bits: lane `i` is bit `i`.
    fn mask_bits(self, a: Self::Mask) -> u8;
    /// `yes` in the lanes of the mask, `no` in the others.
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// `yes` in the lanes of the mask, `no` in the others.
    fn select_i32(self, mask: Self::Mask, yes: Self::I32, no: Self::I32) -> Self::I32;

    #[inline(always)]
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.lt(b, a)
    }

    #[inline(always)]
    fn ge(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.le(b, a)
    }

    /// Entries of a table of sixteen, given its halves, for indices below 16.
    #[inline(always)]
    fn lookup_of_16(self, [low, high]: [Self::F32; 2], index: Self::I32) -> Self::F32 {
        let upper = self.gt_i32(index, self.splat_i32(LANES as i32 - 1));
        self.select(upper, self.lookup(high, index), self.lookup(low, index))
    }

    /// Minus `x` in lanes `i` where bit `i` of `signs` is set, otherwise `x`.
    #[inline(always)]
    fn negate_where(self, signs: u8, x: Self::F32) -> Self::F32 {
        self.select(self.lanes_of(signs), self.neg(x), x)
    }

    /// The mask of these [`Simd::mask_bits`].
    #[inline(always)]
    fn lanes_of(self, bits: u8) -> Self::Mask {
        let own = self.load_i32(&[1, 2, 4, 8, 16, 32, 64, 128]);
        self.eq_i32(self.and(self.splat_i32(bits.into()), own), own)
    }

    #[inline(always)]
    fn any(self, mask: Self::Mask) -> bool {
        self.mask_bits(mask) != 0
    }

    #[inline(always)]
    fn all(self, mask: Self::Mask) -> bool {
        self.mask_bits(mask) == u8::MAX
    }

    /// Transposes eight arrays: position `i` of all eight, for every `i`.
    #[inline(always)]
    fn gather<const N: usize>(self, rows: [&[f32; N]; LANES]) -> [Self::F32; N] {
        const { assert!(N.is_multiple_of(LANES)) };
        let mut out = [self.splat(0.0); N];
        for (part, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            // A loop: the closure of `std::array::from_fn` is not always inlined, and is then
            // compiled without vectors.
            let mut square = *out;
            for (row, lanes) in square.iter_mut().zip(rows) {
                *row = self.load(&lanes.as_chunks().0[part]);
            }
            *out = self.transpose(square);
        }
        out
    }
}

/// A computation compiled for every instruction set.
pub(crate) trait Kernel {
    /// Result type.
    type Output;

    /// The computation; `#[inline(always)]`, like all functions that it calls.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The supported instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// An instruction set of this CPU. All produce the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The instructions of every CPU.
    pub const SCALAR: Isa = Isa(Level::Scalar);
    /// The environment variable that lowers [`Isa::best`].
    pub const VARIABLE: &str = "QUANTIER_ISA";

    /// All instruction sets of this CPU, [`Isa::SCALAR`] first, the fastest last.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::SCALAR];
        #[cfg(target_arch = "x86_64")]
        all.extend(Avx2::detect().map(|token| Isa(Level::Avx2(token))));
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(|token| Isa(Level::Neon(token))));
        all
    }

    /// The fastest, or the one named by `QUANTIER_ISA` if this CPU has it; cached. Unknown names
    /// are ignored: see [`Isa::requested`].
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let fastest = Isa::available().pop().unwrap_or(Isa::SCALAR);
            Isa::requested().ok().flatten().unwrap_or(fastest)
        })
    }

    /// The instruction set named by `QUANTIER_ISA`, if it is set.
    ///
    /// # Errors
    /// A name other than those of this CPU's instruction sets.
    pub fn requested() -> Result<Option<Isa>, String> {
        let Some(wanted) = std::env::var_os(Isa::VARIABLE) else {
            return Ok(None);
        };
        let available = Isa::available();
        let named = available.iter().find(|isa| wanted == isa.name());
        named.map(|isa| Some(*isa)).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            format!(
                "{}={} names no instruction set of this CPU, which has {}",
                Isa::VARIABLE,
                wanted.to_string_lossy(),
                names.join(" and ")
            )
        })
    }

    /// Name, as in `QUANTIER_ISA`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
        }
    }

    /// Runs a kernel with these instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(token) => token.enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(token) => token.enter(kernel),
        }
    }
}

#[cfg(test)]
mod tests;
