//! A run of one of llama.cpp's programs: its output, its end, and signs of failure in both.
//!
//! The programs exit with 0 after many failures, so that an exit code proves nothing: callers check
//! the results themselves, and report a missing one with the line of the output that explains it.

use super::{Error, Result};
use crate::progress::{Progress, Unit};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two looks at a running program.
const POLL: Duration = Duration::from_millis(50);
/// Time between two looks at its output.
const SHOW: Duration = Duration::from_millis(500);
/// Time for a Ctrl-C, which ends the program too, to be noticed here.
const GRACE: Duration = Duration::from_millis(300);
/// Maximum number of kept bytes of each stream; older ones are in the log only.
const KEPT: usize = 4 << 20;

/// A run to start.
pub(super) struct Invocation<'i> {
    pub(super) program: &'i Path,
    pub(super) arguments: Vec<OsString>,
    /// File for the whole output; removed by [`Finished::accept`].
    pub(super) log: PathBuf,
    /// Number of chunks, for progress; 0 if unknown.
    pub(super) chunks: u64,
}

/// A run that ended with exit code 0.
pub(super) struct Finished {
    program: String,
    log: PathBuf,
    /// Standard output, then standard error.
    pub(super) text: String,
}

/// The process, killed on drop.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // A failure is harmless: the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Output of a stream so far.
type Kept = Arc<Mutex<Vec<u8>>>;

/// The shared log of both streams.
type Log = Arc<Mutex<Option<std::fs::File>>>;

impl Invocation<'_> {
    /// Runs the program to its end, or kills it if the job is cancelled.
    ///
    /// # Errors
    /// A program that cannot be started, a signal, an exit code other than 0, cancellation.
    pub(super) fn run(&self, progress: &dyn Progress) -> Result<Finished> {
        let program = shown(self.program);
        let start = |source| Error::Start {
            program: self.program.to_owned(),
            source,
        };
        let log = std::fs::File::create(&self.log).map_err(|source| crate::format::Error::Io {
            path: self.log.clone(),
            action: "create",
            source,
        })?;
        let log: Log = Arc::new(Mutex::new(Some(log)));
        // Both streams are pipes: once this process has been killed, the program's next line ends it.
        let child = Command::new(self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        let mut child = Guard(child);
        let (kept, mut readers) = (Kept::default(), Vec::new());
        let errors = Kept::default();
        readers.extend(child.0.stdout.take().map(|s| reader(s, &kept, &log)));
        readers.extend(child.0.stderr.take().map(|s| reader(s, &errors, &log)));
        progress.begin(self.chunks, Unit::Steps);
        progress.at(&program);
        let (mut done, mut shown) = (0, Instant::now());
        let status = loop {
            if let Some(status) = child.0.try_wait().map_err(start)? {
                break status;
            }
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            if shown.elapsed() > SHOW {
                let now = chunks(&text(&kept)).min(self.chunks);
                progress.advance(now.saturating_sub(done));
                (done, shown) = (done.max(now), Instant::now());
            }
            thread::sleep(POLL);
        };
        readers.into_iter().for_each(|reader: JoinHandle<()>| {
            let _ = reader.join();
        });
        let finished = Finished {
            program,
            log: self.log.clone(),
            text: text(&kept) + "\n" + &text(&errors),
        };
        finished.checked(status, progress)
    }
}

impl Finished {
    /// Checks the end of the process.
    fn checked(self, status: ExitStatus, progress: &dyn Progress) -> Result<Finished> {
        if let Some(signal) = signal_of(status) {
            thread::sleep(GRACE);
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            return Err(Error::Signal {
                name: signal_name(signal),
                signal,
                line: self.line(),
                log: self.log,
                program: self.program,
            });
        }
        match status.success() {
            true => Ok(self),
            false => Err(Error::Failed {
                code: status.code().unwrap_or(-1),
                line: self.line(),
                log: self.log,
                program: self.program,
            }),
        }
    }

    /// The error for a missing or wrong result.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error::Result {
            program: self.program.clone(),
            what: what.into(),
            line: self.line(),
            log: self.log.clone(),
        }
    }

    /// Checks the perplexities of the chunks so far, one sign of a broken model.
    ///
    /// # Errors
    /// A perplexity that is no number.
    pub(super) fn check_numbers(&self) -> Result<()> {
        let is_bad = |mark: &str| {
            let value = mark.split(']').nth(1).unwrap_or_default();
            value.trim_start_matches('-').starts_with("nan") || value.starts_with("inf")
        };
        let mut marks = self.text.split('[').skip(1);
        match marks.find(|mark| chunk_of(mark).is_some() && is_bad(mark)) {
            Some(mark) => Err(self.error(format!(
                "the perplexity of chunk {} is not a number",
                chunk_of(mark).unwrap_or(0)
            ))),
            None => Ok(()),
        }
    }

    /// Removes the log of an accepted run.
    pub(super) fn accept(&self) {
        // A failure is harmless: the next run replaces it.
        let _ = std::fs::remove_file(&self.log);
    }

    /// The line that explains a failure.
    fn line(&self) -> String {
        explanation(&self.text)
    }
}

/// Reads a stream to its end.
fn reader(mut stream: impl Read + Send + 'static, kept: &Kept, log: &Log) -> JoinHandle<()> {
    use std::io::Write;
    let (kept, log) = (kept.clone(), log.clone());
    thread::spawn(move || {
        let mut buffer = [0; 1 << 14];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() + n > KEPT {
                let half = kept.len() / 2;
                kept.drain(..half);
            }
            kept.extend_from_slice(&buffer[..n]);
            drop(kept);
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            // On a full disk, the log ends and the run does not.
            if let Some(file) = log.as_mut()
                && file.write_all(&buffer[..n]).is_err()
            {
                *log = None;
            }
        }
    })
}

fn text(kept: &Kept) -> String {
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&kept).into_owned()
}

/// Name of a program in messages.
fn shown(program: &Path) -> String {
    let name = program.file_stem().unwrap_or(program.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The chunk of a mark `[12]4.5678,`, given the part after its bracket.
fn chunk_of(mark: &str) -> Option<u64> {
    mark.split_once(']')?.0.parse().ok()
}

/// Number of finished chunks in standard output: marks `[12]4.5678,` or, in a comparison, lines
/// that begin with a number.
fn chunks(text: &str) -> u64 {
    let marks = text.split('[').skip(1).filter_map(chunk_of);
    let first = |line: &str| line.split_whitespace().next().and_then(|n| n.parse().ok());
    let lines = text.lines().filter_map(first);
    marks.chain(lines).max().unwrap_or(0)
}

/// Parts of lines that explain a failure, from the most to the least telling.
const SIGNS: [&[&str]; 3] = [
    &[
        "unknown model architecture",
        "you need at least",
        "non-finite",
        "error loading model",
        "error: ",
        "invalid argument",
    ],
    &[
        "GGML_ASSERT",
        "terminate called",
        "what():",
        "No space left",
    ],
    &["failed", "error", "unable", "cannot"],
];

/// The line of an output that explains a failure best, otherwise its last one.
fn explanation(text: &str) -> String {
    /// Maximum number of shown characters.
    const SHOWN: usize = 300;
    let lines = || text.lines().map(without_prefix).filter(|l| !l.is_empty());
    let with = |signs: &[&str]| lines().find(|line| signs.iter().any(|sign| line.contains(sign)));
    let found = SIGNS.iter().find_map(|signs| with(signs));
    let line = found.or_else(|| lines().next_back()).unwrap_or("nothing");
    line.chars().take(SHOWN).collect()
}

/// A line without llama.cpp's time and level: `0.00.047.380 E llama_model_load: ...`.
fn without_prefix(line: &str) -> &str {
    let line = line.trim();
    let Some((time, rest)) = line.split_once(' ') else {
        return line;
    };
    let is_time = time.contains('.') && time.chars().all(|c| c.is_ascii_digit() || c == '.');
    match (is_time, rest.get(..2)) {
        (true, Some("I " | "W " | "E " | "D ")) => rest[2..].trim_start(),
        _ => line,
    }
}

/// The signal that ended a process, or that of a shell's exit code.
fn signal_of(status: ExitStatus) -> Option<i32> {
    /// Added by shells to the number of a signal.
    const SHELL: i32 = 128;
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Some(signal);
    }
    let code = status.code()?;
    (cfg!(unix) && signal_name(code - SHELL) != UNNAMED).then_some(code - SHELL)
}

const UNNAMED: &str = "a signal";

/// Name and meaning of a signal, by its number on Linux and macOS.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        2 => "SIGINT: interrupted",
        4 => "SIGILL: illegal instruction; this llama.cpp was built for another CPU",
        6 => "SIGABRT: it aborted itself",
        7 | 10 => "SIGBUS: bus error",
        8 => "SIGFPE: arithmetic error",
        9 => "SIGKILL: killed, perhaps because memory ran out",
        11 => "SIGSEGV: segmentation fault",
        15 => "SIGTERM: terminated",
        _ => UNNAMED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_counted_in_both_kinds_of_output() {
        assert_eq!(chunks("x\n[1]4.2,[2]5.1,[3]"), 3);
        let table = "chunk  PPL\n   1   5.0 ± 0.1\n   2   5.0 ± 0.1\n";
        assert_eq!(chunks(table), 2);
        assert_eq!(chunks("no number [a]"), 0);
    }

    #[test]
    fn the_telling_line_is_shown() {
        let log = "0.00.010.000 I main: build\n\
                   0.00.020.000 E llama_model_load: error loading model: unknown model architecture: 'x'\n\
                   0.00.030.000 E common_init_from_params: failed to load model 'm.gguf'\n";
        assert_eq!(
            explanation(log),
            "llama_model_load: error loading model: unknown model architecture: 'x'"
        );
        assert_eq!(explanation("one\ntwo\n\n"), "two");
        assert_eq!(explanation(""), "nothing");
        assert_eq!(without_prefix("1.5 E x"), "x");
        assert_eq!(without_prefix("main: 1.5 E x"), "main: 1.5 E x");
    }

    #[test]
    fn perplexities_without_a_number_are_found() {
        let of = |text: &str| Finished {
            program: "llama-imatrix".into(),
            log: PathBuf::new(),
            text: text.into(),
        };
        assert!(of("[1]4.2,[2]5.1,").check_numbers().is_ok());
        let error = of("[1]4.2,[2]-nan,").check_numbers().unwrap_err();
        assert!(error.to_string().contains("chunk 2"), "{error}");
    }
}
