//! The `quantier` program: parse, run, exit code.

fn main() {}
