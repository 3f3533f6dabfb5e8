//! The modules of the block formats, and nothing else of the program.
#![allow(dead_code)] // the program's other modules use more of them

/// The table of tensor types.
#[path = "."]
pub mod format {
    #[path = "../../src/format/types.rs"]
    pub mod types;
}
#[path = "../../src/quant/mod.rs"]
pub mod quant;
#[path = "../../src/simd/mod.rs"]
pub mod simd;
