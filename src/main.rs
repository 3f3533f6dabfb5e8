//! The `quantier` program: parse, run, exit code (0 done, 1 failed, 2 wrong usage).

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // candle has threads of its own, which wait actively for each other. Here chunks run side by
    // side, each on one thread: with two pools, threads would take the cores from each other.
    // SAFETY: no other thread runs yet that could read the environment.
    #[cfg(feature = "candle")]
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1")
    };
    if let Err(error) = quantier::simd::Isa::requested() {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
