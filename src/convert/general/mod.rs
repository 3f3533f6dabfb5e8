//! General metadata.
