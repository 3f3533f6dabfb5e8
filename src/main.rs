//! The `quantier` program: parse, run, exit code (0 done, 1 failed, 2 wrong usage, 74 a failed read).

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // candle has its own threads, which busy-wait. Here chunks run in parallel, each on one thread:
    // two pools would compete for the cores.
    // SAFETY: no other thread that could read the environment is running yet.
    #[cfg(feature = "candle")]
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1")
    };
    if let Err(error) = quantier_blocks::simd::Isa::requested() {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    quantier_gguf::fault::report();
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
