//! Numbers in, recipe out: which type each tensor gets. Knows no files.

pub mod file_type;
pub mod frontier;
pub mod presets;
pub mod recipe;
