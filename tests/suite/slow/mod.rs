//! Tests that take longer than a few seconds: whole runs of the engine and of `make`. `cargo fast`
//! skips them.

#[cfg(unix)]
mod documented;
#[cfg(unix)]
mod embeddings;
#[cfg(unix)]
mod feedback;
#[cfg(unix)]
mod imatrix;
#[cfg(unix)]
mod lossless;
#[cfg(unix)]
mod make;
mod make_proof;
#[cfg(unix)]
mod outside;
#[cfg(unix)]
mod publish;
#[cfg(unix)]
mod sequential;
#[cfg(unix)]
mod shards;
