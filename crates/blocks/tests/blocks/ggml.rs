//! The real ggml, loaded from the reference's shared library at run time.

use libloading::{Library, Symbol};
use quantier_blocks::types::GgmlType;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

// It unwinds when ggml aborts: see `give_up`.
type QuantizeChunk =
    unsafe extern "C-unwind" fn(c_int, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
type SetAbortCallback = unsafe extern "C" fn(extern "C-unwind" fn(*const c_char)) -> *const c_void;
type ValidateRowData = unsafe extern "C" fn(c_int, *const c_void, usize) -> bool;
type GetTypeTraits = unsafe extern "C" fn(c_int) -> *const TypeTraits;

/// The head of ggml's `struct ggml_type_traits`.
#[repr(C)]
struct TypeTraits {
    type_name: *const i8,
    blck_size: i64,
    blck_size_interleave: i64,
    type_size: usize,
    is_quantized: bool,
    to_float: Option<unsafe extern "C" fn(*const c_void, *mut f32, i64)>,
}

/// ggml's own functions.
pub struct Ggml {
    library: Library,
}

/// Panic payload of a failed ggml assertion: it unwinds through ggml's frames, instead of ending
/// the process.
struct GaveUp;

/// Called by ggml before it aborts. Its frames are plain C, hold no locks while quantizing, and
/// carry unwind tables, like all code on x86-64 and aarch64 Linux.
extern "C-unwind" fn give_up(_message: *const c_char) {
    resume_unwind(Box::new(GaveUp));
}

impl Ggml {
    /// Loads `libggml-base.so` from the directory in `QUANTIER_REFERENCE_BIN` (printed by
    /// `scripts/reference.sh`).
    pub fn load() -> Ggml {
        let dir = std::env::var_os("QUANTIER_REFERENCE_BIN")
            .expect("set QUANTIER_REFERENCE_BIN to what scripts/reference.sh prints");
        let path = PathBuf::from(dir).join("libggml-base.so");
        // SAFETY: the reference's library; its initializers only fill tables.
        let library =
            unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // SAFETY: the signature is ggml.h's except for the ABI, which differs only in the effect of
        // `give_up`.
        unsafe {
            let set: Symbol<SetAbortCallback> = library.get(b"ggml_set_abort_callback").unwrap();
            set(give_up);
        }
        Ggml { library }
    }

    /// `ggml_quantize_chunk` on whole rows; `None` where its result is undefined: one of its
    /// assertions fails (codebook searches require finite sums, and powers of huge weights overflow
    /// f32), or it reads beyond its arrays.
    pub fn quantize(
        &self,
        t: GgmlType,
        weights: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
    ) -> Option<Vec<u8>> {
        if !weights
            .chunks_exact(row_len)
            .all(|row| stays_within(t, row, importance))
        {
            return None;
        }
        let rows = weights.len() / row_len;
        assert_eq!(rows * row_len, weights.len());
        assert!(importance.is_none_or(|w| w.len() == row_len));
        let row_bytes = t.row_bytes(row_len as u64).unwrap() as usize;
        let mut out = vec![0u8; rows * row_bytes];
        // SAFETY: the signature is ggml.h's; the buffers have the lengths that ggml derives from
        // the arguments.
        let written = catch_unwind(AssertUnwindSafe(|| unsafe {
            let f: Symbol<QuantizeChunk> = self.library.get(b"ggml_quantize_chunk").unwrap();
            f(
                t.id() as c_int,
                weights.as_ptr(),
                out.as_mut_ptr().cast(),
                0,
                rows as i64,
                row_len as i64,
                importance.map_or(std::ptr::null(), |w| w.as_ptr()),
            )
        }));
        match written {
            Ok(written) => assert_eq!(written, out.len()),
            Err(payload) if payload.is::<GaveUp>() => return None,
            Err(payload) => resume_unwind(payload),
        }
        Some(out)
    }

    /// `to_float` of the type; `None` if ggml has none.
    pub fn dequantize(&self, t: GgmlType, blocks: &[u8]) -> Option<Vec<f32>> {
        let len = blocks.len() / t.block_bytes() * t.block_len();
        let mut out = vec![0.0f32; len];
        // SAFETY: as above; the traits table is static.
        unsafe {
            let f: Symbol<GetTypeTraits> = self.library.get(b"ggml_get_type_traits").unwrap();
            let to_float = (*f(t.id() as c_int)).to_float?;
            to_float(blocks.as_ptr().cast(), out.as_mut_ptr(), len as i64);
        }
        Some(out)
    }

    /// `ggml_validate_row_data`; it prints faults to standard error.
    pub fn validate(&self, t: GgmlType, blocks: &[u8]) -> bool {
        // SAFETY: as above.
        unsafe {
            let f: Symbol<ValidateRowData> = self.library.get(b"ggml_validate_row_data").unwrap();
            f(t.id() as c_int, blocks.as_ptr().cast(), blocks.len())
        }
    }
}

/// True if ggml's search for IQ1_S and IQ1_M stays within its arrays. Where the distance of a group
/// from every neighbour overflows f32, it compares with memory after the group, up to 8 KiB on;
/// such bytes are undefined.
pub fn stays_within(t: GgmlType, weights: &[f32], importance: Option<&[f32]>) -> bool {
    /// Well above the sum of eight squared distances, in squares of the largest weight.
    const MARGIN: f64 = 1.0e4;
    let largest = weights
        .iter()
        .fold(0.0, |largest, w| f64::max(largest, w.abs().into()));
    let importance = importance.map_or(largest, |w| {
        w.iter()
            .fold(0.0, |largest, &w| f64::max(largest, w.into()))
    });
    !matches!(t, GgmlType::IQ1_S | GgmlType::IQ1_M)
        || MARGIN * importance * largest.powi(3) < f32::MAX.into()
}
