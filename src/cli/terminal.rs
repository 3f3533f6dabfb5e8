//! The terminal: progress bars, and Ctrl-C.

use super::messages;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quantier_core::progress::{Progress, Unit};
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// A progress bar on standard error; hidden if that is not a terminal. The first Ctrl-C or SIGTERM
/// asks the job to stop, the second exits at once.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar for a new job.
    pub fn new() -> Bar {
        // Without a handler Ctrl-C kills the program; the next run reuses the partial file.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(1);
            }
        });
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if !messages::wants_bar() {
            return Bar(ProgressBar::hidden());
        }
        messages::set_bar(Some(bar.clone()));
        Bar(bar)
    }

    /// Sets the prefix: the current one of several models.
    pub fn about(&self, name: &str) {
        self.0.set_prefix(format!("{name}: "));
    }
}

/// The template of a bar that counts this unit.
fn template(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => {
            "{prefix}{bar:32} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {wide_msg}"
        }
        Unit::Steps => "{prefix}{bar:32} {percent:>3}% ETA {eta} {wide_msg}",
    }
}

impl Progress for Bar {
    fn begin(&self, amount: u64, unit: Unit) {
        self.0.set_style(
            ProgressStyle::with_template(template(unit))
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        self.0.reset();
        self.0.set_length(amount);
        messages::stage_begins(amount, unit);
    }

    fn at(&self, name: &str) {
        self.0.set_message(name.to_owned());
        messages::stage_at(name);
    }

    fn advance(&self, amount: u64) {
        self.0.inc(amount);
        messages::stage_advances(amount);
    }

    fn cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        messages::set_bar(None);
        self.0.finish_and_clear();
        messages::stages_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for unit in [Unit::Bytes, Unit::Steps] {
            assert!(
                ProgressStyle::with_template(template(unit)).is_ok(),
                "{unit:?}"
            );
        }
    }
}
