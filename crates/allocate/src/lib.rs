//! Allocation: sensitivities in, recipes out. Numbers and names only, no files.

#![warn(unreachable_pub)]

pub mod file_type;
pub mod frontier;
pub mod presets;
pub mod recipe;
