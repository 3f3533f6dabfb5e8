//! Notes, warnings, errors and progress, on standard error and in a log file.
//!
//! On a terminal: colours and a progress bar. Elsewhere: plain lines and no progress or, on
//! request, one line of JSON per event. A log file records everything with timestamps.

use indicatif::ProgressBar;
use quantier_core::progress::Unit;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The form of progress messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// A bar on a terminal, nothing elsewhere
    Auto,
    /// Nothing
    None,
    /// One line of JSON per event, on standard error
    Json,
}

/// Options of every command.
#[derive(clap::Args)]
#[command(next_help_heading = "Messages")]
#[group(id = "messages")]
pub struct Options {
    /// Append notes, warnings, errors and stages to a file, with timestamps
    #[arg(long, value_name = "FILE", global = true)]
    log: Option<PathBuf>,
    /// Print the current step line by line, even without a terminal
    #[arg(short, long, global = true)]
    verbose: bool,
    /// How to show progress; json is for programs: one line per event on standard error
    /// (docs/messages.md)
    #[arg(long, value_name = "HOW", default_value = "auto", global = true)]
    progress: Show,
}

/// First line of a log file. A file without it is not appended to.
const HEAD: &str = "# quantier log\n";
/// Minimum interval between progress events.
const PACE: Duration = Duration::from_millis(200);

struct Messages {
    begun: Instant,
    show: Show,
    verbose: bool,
    colour: bool,
    log: Option<Mutex<File>>,
    bar: Mutex<Option<ProgressBar>>,
    /// Amount and unit of the stage, the amount done, and the time of the last event.
    stage: Mutex<Option<(u64, Unit, u64, Instant)>>,
}

static MESSAGES: OnceLock<Messages> = OnceLock::new();

fn messages() -> &'static Messages {
    MESSAGES.get_or_init(|| Messages::new(Show::Auto, false, None))
}

impl Messages {
    fn new(show: Show, verbose: bool, log: Option<File>) -> Messages {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = std::io::stderr().is_terminal() && !is_set("NO_COLOR") && !dumb;
        let (log, bar, stage) = (log.map(Mutex::new), Mutex::new(None), Mutex::new(None));
        Messages {
            begun: Instant::now(),
            show,
            verbose,
            colour,
            log,
            bar,
            stage,
        }
    }
}

/// Sets up the messages, once, before the first one.
pub fn begin(options: &Options) -> anyhow::Result<()> {
    let log = options.log.as_deref().map(opened).transpose()?;
    let _ = MESSAGES.set(Messages::new(options.progress, options.verbose, log));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let version = env!("CARGO_PKG_VERSION");
    logged(
        "begin",
        &format!("quantier {version} {}", arguments.join(" ")),
    );
    Ok(())
}

/// Opens a log for appending; refuses a file that is not a log of this program.
fn opened(path: &Path) -> anyhow::Result<File> {
    let fail = |e| anyhow::anyhow!("cannot write the log {}: {e}", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .map_err(fail)?;
    let mut head = [0; HEAD.len()];
    let meta = file.metadata().map_err(fail)?;
    if meta.is_file() && meta.len() > 0 {
        let is_log = file.read_exact(&mut head).is_ok() && head == *HEAD.as_bytes();
        anyhow::ensure!(
            is_log,
            "{}: not a log of this program; nothing was appended. Choose another file for --log",
            path.display()
        );
    } else {
        file.write_all(HEAD.as_bytes()).map_err(fail)?;
    }
    Ok(file)
}

/// Prints and logs a message for the user. `note!` and `warning!` call it.
pub fn tell(kind: &str, text: &str) {
    let messages = messages();
    logged(kind, text);
    let line = match (messages.show, messages.colour) {
        (Show::Json, _) => event(kind, json!({ "text": text })),
        (_, true) => {
            let code = match kind {
                "error" => "1;31",
                "warning" => "1;33",
                _ => "1;36",
            };
            format!("\x1b[{code}m{kind}:\x1b[0m {text}")
        }
        (_, false) => format!("{kind}: {text}"),
    };
    above_the_bar(&line);
}

macro_rules! note {
    ($($text:tt)*) => { $crate::cli::messages::tell("note", &format!($($text)*)) };
}
macro_rules! warning {
    ($($text:tt)*) => { $crate::cli::messages::tell("warning", &format!($($text)*)) };
}
pub(super) use {note, warning};

/// Prints a line on standard error; a closed pipe is not an error.
fn above_the_bar(line: &str) {
    let print = || {
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    match locked(&messages().bar).as_ref() {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Sets the bar on the terminal.
pub fn set_bar(bar: Option<ProgressBar>) {
    *locked(&messages().bar) = bar;
}

/// True to show a bar.
pub fn wants_bar() -> bool {
    messages().show == Show::Auto && std::io::stderr().is_terminal()
}

/// Begins a stage of a given amount of work.
pub fn stage_begins(amount: u64, unit: Unit) {
    let messages = messages();
    let unit_name = unit_name(unit);
    logged("stage", &format!("{amount} {unit_name}"));
    if messages.show == Show::Json {
        above_the_bar(&event(
            "begin",
            json!({ "amount": amount, "unit": unit_name }),
        ));
    }
    *locked(&messages.stage) = Some((amount, unit, 0, Instant::now()));
}

/// Reports the current item of a stage.
pub fn stage_at(name: &str) {
    let messages = messages();
    logged("at", name);
    if messages.show == Show::Json {
        above_the_bar(&event("at", json!({ "name": name })));
    } else if messages.verbose {
        above_the_bar(&format!(
            "{:>9.1} s  {name}",
            messages.begun.elapsed().as_secs_f64()
        ));
    }
}

/// Reports progress of a stage.
pub fn stage_advances(more: u64) {
    let messages = messages();
    if messages.show != Show::Json {
        return;
    }
    let mut stage = locked(&messages.stage);
    if let Some((amount, unit, done, told)) = stage.as_mut() {
        *done += more;
        if told.elapsed() >= PACE || done >= amount {
            *told = Instant::now();
            let line = event(
                "advance",
                json!({ "done": done, "amount": amount, "unit": unit_name(*unit) }),
            );
            drop(stage);
            above_the_bar(&line);
        }
    }
}

/// Ends the last stage of the job.
pub fn stages_end() {
    let messages = messages();
    if locked(&messages.stage).take().is_some() && messages.show == Show::Json {
        above_the_bar(&event("end", json!({})));
    }
}

/// Logs the end of the program.
pub fn end(ok: bool) {
    let took = messages().begun.elapsed().as_secs_f64();
    logged(
        "end",
        &format!("{} after {took:.1} s", if ok { "done" } else { "failed" }),
    );
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Steps => "steps",
    }
}

/// One line of JSON: the event, the seconds since the start of the program, and the fields.
fn event(kind: &str, mut fields: serde_json::Value) -> String {
    let seconds = (messages().begun.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let mut line = json!({ "event": kind, "seconds": seconds });
    if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object_mut()) {
        line.append(fields);
    }
    line.to_string()
}

fn logged(kind: &str, text: &str) {
    let Some(log) = &messages().log else { return };
    // One event is one line.
    let text = text.replace('\n', "\n    ");
    // A full disk must not stop the job.
    let _ = writeln!(locked(log), "{} {kind:<7} {text}", time(SystemTime::now()));
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A moment as `2026-03-01T12:34:56.789Z`.
fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, milli) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_as_rfc3339() {
        let at = |seconds: u64, milli: u64| {
            time(UNIX_EPOCH + Duration::from_millis(1000 * seconds + milli))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_868_799, 7), "2000-02-29T23:59:59.007Z");
        assert_eq!(at(951_868_800, 0), "2000-03-01T00:00:00.000Z");
        assert_eq!(at(1_798_761_599, 999), "2026-12-31T23:59:59.999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn events_are_single_lines_of_json() {
        let line = event("note", json!({ "text": "a\nb \"c\"" }));
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (read["event"].as_str(), read["text"].as_str()),
            (Some("note"), Some("a\nb \"c\""))
        );
        assert!(read["seconds"].is_number());
    }

    #[test]
    fn files_other_than_logs_are_not_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, b"GGUF and more than that").unwrap();
        assert!(
            opened(&path)
                .unwrap_err()
                .to_string()
                .contains("not a log of this program")
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"GGUF and more than that");
        let log = dir.path().join("log");
        for _ in 0..2 {
            opened(&log).unwrap().write_all(b"line\n").unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            format!("{HEAD}line\nline\n")
        );
    }
}
