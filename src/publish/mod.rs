//! publish
#![allow(missing_docs)]
pub mod chat;
pub mod go_template;
pub mod lint;
pub mod modelfile;
pub mod turns;
