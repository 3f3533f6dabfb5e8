//! An outside engine: llama.cpp's programs run a model that the engine of this program cannot run,
//! or is not meant to.
//!
//! ```text
//! base          the GGUF that the programs read; a checkpoint is converted first
//! calibration   importance matrix, by llama-imatrix, in parts of the text
//! logits        of the base, by llama-perplexity: of a part of the calibration text, of the evaluation text
//! probing       some files, each coarse in another part of the model: their measured divergences turn weighted
//!               errors into nats, by a factor for each part
//! meter         divergence of the files, by llama-perplexity
//! ```
//!
//! The programs give no gradients and no Hessians. So there are no sensitivities by gradients, and
//! weights are rounded as the reference does.

mod base;
mod calibration;
mod factors;
mod logits;
mod meter;
mod probing;
mod program;
mod texts;

use super::cost::Cost;
use super::options::{LlamaCpp, Options, Texts};
use super::{Error as MakeError, Result as MakeResult};
use crate::format;
use crate::format::gguf::Value;
use crate::format::hex;
use crate::format::map::Map;
use crate::format::snapshot::Key;
use crate::input::Input;
use crate::report::data::Setting;
use crate::resume::KeyBuilder;
use program::Invocation;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use texts::Prepared;

pub(super) use base::{BaseStage, given as given_base};
pub(super) use calibration::PartsStage;
pub(super) use logits::{LogitsStage, Of};
pub(super) use meter::LogitsMeter;
pub(super) use probing::{Correction, Probing};

/// All that needs the engine of this program.
const NOT_MEASURED: &str =
    "sensitivities by gradients; error feedback, sequential and two-sided rounding; refinement";
/// Metadata key of the vocabulary.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Names of the programs.
const IMATRIX: &str = "llama-imatrix";
const PERPLEXITY: &str = "llama-perplexity";
/// Places of the programs in their directory: that of an installation, of a build, of a checkout.
const PLACES: [&str; 3] = ["", "bin", "build/bin"];

/// Failures of llama.cpp's programs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No directory.
    #[error(
        "--engine llama.cpp={}: this is no directory; name the one that holds {IMATRIX} and {PERPLEXITY}",
        .0.display()
    )]
    NoDirectory(PathBuf),
    /// Missing programs.
    #[error(
        "--engine llama.cpp={}: {} not found there, nor in bin or build/bin below it; build llama.cpp with these \
         targets, or name the directory that holds them",
        directory.display(),
        names.join(" and ")
    )]
    NoProgram {
        /// The directory.
        directory: PathBuf,
        /// Names of the missing programs.
        names: Vec<String>,
    },
    /// A program that cannot be started.
    #[error("{} cannot be run: {source}", program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program ended by a signal.
    #[error(
        "{program} was ended by signal {signal} ({name}); its output: {line}; all of it is in {}",
        log.display()
    )]
    Signal {
        /// Its name.
        program: String,
        /// Number of the signal.
        signal: i32,
        /// Name and meaning of the signal.
        name: &'static str,
        /// The telling line of its output.
        line: String,
        /// File with its output.
        log: PathBuf,
    },
    /// A program that reported a failure.
    #[error("{program} failed (exit code {code}): {line}{}; its whole output is in {}", advice(line), log.display())]
    Failed {
        /// Its name.
        program: String,
        /// Its exit code.
        code: i32,
        /// The telling line of its output.
        line: String,
        /// File with its output.
        log: PathBuf,
    },
    /// A missing or wrong result of a program that reported success.
    #[error(
        "{program} reported success, but {what}; its output: {line}{}; all of it is in {}",
        advice(line),
        log.display()
    )]
    Result {
        /// Its name.
        program: String,
        /// The defect.
        what: String,
        /// The telling line of its output.
        line: String,
        /// File with its output.
        log: PathBuf,
    },
    /// Parts of the importance matrix that do not fit together.
    #[error("the parts of the importance matrix do not fit together: {0}")]
    Parts(#[from] crate::imatrix::sums::Error),
    /// Failure to read or write a file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// An option that needs gradients or the engine of this program.
    #[error("{0} needs the engine of this program; leave it out with --engine llama.cpp")]
    Unavailable(&'static str),
    /// Cancelled.
    #[error("stopped")]
    Cancelled,
}

/// Advice on a program's message.
fn advice(line: &str) -> &'static str {
    match line {
        line if line.contains("unknown model architecture") => {
            "; this build of llama.cpp does not know the model: use a newer one"
        }
        line if line.contains("you need at least") => "; give a longer text (-f, --eval)",
        line if line.contains("--rpc") => "; build llama.cpp with -DGGML_RPC=ON",
        _ => "",
    }
}

/// Result of this module.
type Result<T> = std::result::Result<T, Error>;

/// The programs of a directory.
struct Tools {
    imatrix: PathBuf,
    perplexity: PathBuf,
    /// Version as they state it; empty if they do not.
    version: String,
    /// Content of the programs and of the libraries beside them.
    key: Key,
}

impl Tools {
    fn open(directory: &Path) -> MakeResult<Tools> {
        if !directory.is_dir() {
            return Err(Error::NoDirectory(directory.to_owned()).into());
        }
        let found = |name: &str| {
            let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
            let places = PLACES.iter().map(|place| directory.join(place).join(&file));
            places.into_iter().find(|path| path.is_file())
        };
        let (imatrix, perplexity) = match (found(IMATRIX), found(PERPLEXITY)) {
            (Some(imatrix), Some(perplexity)) => (imatrix, perplexity),
            (imatrix, perplexity) => {
                let missing = [(IMATRIX, imatrix), (PERPLEXITY, perplexity)];
                let missing = missing.into_iter().filter(|(_, path)| path.is_none());
                let error = Error::NoProgram {
                    directory: directory.to_owned(),
                    names: missing.map(|(name, _)| name.to_owned()).collect(),
                };
                return Err(error.into());
            }
        };
        Ok(Tools {
            key: content([&imatrix, &perplexity])?,
            version: version(&perplexity)?,
            imatrix,
            perplexity,
        })
    }

    /// Name and version of a program, for reports.
    fn shown(&self, program: &str) -> String {
        match &*self.version {
            "" => format!("{program}, build {}", &hex(&self.key)[..8]),
            version => format!("{program} {version}"),
        }
    }
}

/// Key of the content of programs, and of the shared libraries beside them.
fn content(programs: [&Path; 2]) -> MakeResult<Key> {
    let io = |path: &Path, source| format::Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        [".so", ".dylib", ".dll"]
            .iter()
            .any(|extension| name.ends_with(extension) || name.contains(&format!("{extension}.")))
    };
    let mut files = BTreeSet::new();
    for program in programs {
        let program = program.canonicalize().map_err(|e| io(program, e))?;
        let beside = program
            .parent()
            .map(std::fs::read_dir)
            .into_iter()
            .flatten();
        let beside = beside
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        files.extend(
            beside
                .filter(is_library)
                .filter_map(|p| p.canonicalize().ok()),
        );
        files.insert(program);
    }
    let mut key = KeyBuilder::new("outside: programs");
    for path in files {
        let hash = Sha256::digest(Map::open(&path)?.bytes());
        let name = path.file_name().unwrap_or_default();
        key = key.with(&name.to_string_lossy(), &hash);
    }
    Ok(key.key())
}

/// The version that a program states.
fn version(program: &Path) -> Result<String> {
    /// Maximum number of shown characters.
    const SHOWN: usize = 40;
    let start = |source| Error::Start {
        program: program.to_owned(),
        source,
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(start)?;
    let text = [output.stderr, output.stdout].map(|s| String::from_utf8_lossy(&s).into_owned());
    let mut lines = text.iter().flat_map(|text| text.lines());
    let stated = lines.find_map(|line| line.trim().strip_prefix("version: "));
    Ok(stated.unwrap_or_default().chars().take(SHOWN).collect())
}

/// The programs with their options, and the texts of a run.
pub(super) struct Outside {
    tools: Tools,
    options: LlamaCpp,
    threads: usize,
    context: usize,
    /// Number of tokens in the vocabulary; 0 if unknown.
    vocabulary: usize,
    /// True if the importance matrix is that of the user.
    has_imatrix: bool,
    pub(super) texts: Prepared,
}

impl Outside {
    /// Resolves the programs and the texts.
    ///
    /// # Errors
    /// Missing programs, options that need the engine of this program, a context that is too short.
    pub(super) fn new(
        llama_cpp: LlamaCpp,
        input: &Input<'_>,
        options: &Options,
        texts: &Texts,
    ) -> MakeResult<Outside> {
        if options.files().is_some_and(|files| files.refine > 0) {
            return Err(Error::Unavailable("--refine").into());
        }
        if options.all_experts {
            return Err(Error::Unavailable("--all-experts").into());
        }
        let tools = Tools::open(&llama_cpp.directory)?;
        let tokens = input.metadata().get(TOKENS).and_then(Value::as_array);
        Ok(Outside {
            tools,
            options: llama_cpp,
            threads: options.engine.threads,
            context: texts.context,
            vocabulary: tokens.map_or(0, |tokens| tokens.len()),
            has_imatrix: options.imatrix.is_some(),
            texts: Prepared::new(input, options, texts)?,
        })
    }

    /// Name and version of the measuring program.
    pub(super) fn meter_name(&self) -> String {
        self.tools.shown(PERPLEXITY)
    }

    /// Name and version of the program for importance matrices; none if it was not run.
    fn imatrix_name(&self) -> Option<String> {
        (!self.has_imatrix).then(|| self.tools.shown(IMATRIX))
    }

    /// Adds the programs and their options, except for those without influence on results.
    fn key(&self, key: KeyBuilder) -> KeyBuilder {
        let arguments = self.options.arguments.join("\n");
        key.with("programs", &self.tools.key)
            .with("arguments", arguments.as_bytes())
            .with("context", &self.context.to_le_bytes())
    }

    /// For reports: who measured, and by which files the errors were corrected.
    pub(super) fn settings(&self, correction: &Correction) -> Vec<Setting> {
        let data = correction.data();
        let setting = |name: &str, value: String| Setting {
            name: name.into(),
            value,
        };
        let factors = data
            .parts
            .iter()
            .map(|part| format!("{} {:.3}", part.name, part.factor));
        let probes = data.probes.iter().map(|probe| {
            let [measured, fitted] = [probe.measured, probe.fitted];
            format!("{} {measured:.6} (fitted {fitted:.6})", probe.name)
        });
        vec![
            setting(
                "importance matrix",
                self.imatrix_name().unwrap_or_else(|| "given".into()),
            ),
            setting(
                "nats per unit of weighted error",
                factors.collect::<Vec<_>>().join(", "),
            ),
            setting(
                "probing files, measured nats",
                format!(
                    "{}; root of the mean squared relative residual {:.3}",
                    probes.collect::<Vec<_>>().join(", "),
                    data.residual
                ),
            ),
            setting("not measured", NOT_MEASURED.into()),
        ]
    }

    /// Adds the programs and all texts.
    pub(super) fn with_texts(&self, key: KeyBuilder) -> KeyBuilder {
        let key = self.key(key);
        let calibration = self.texts.calibration.iter().flat_map(|part| part.bytes());
        let calibration: Vec<u8> = calibration.collect();
        key.with("tokens", self.texts.evaluation.content.as_bytes())
            .with("calibration", &calibration)
    }

    /// Arguments of every run.
    fn arguments(&self, model: &Path) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["-m".into(), model.into()];
        all.extend(["-c".into(), self.context.to_string().into()]);
        if self.threads > 0 {
            all.extend(["-t".into(), self.threads.to_string().into()]);
        }
        if let Some(hosts) = &self.options.rpc {
            all.extend(["--rpc".into(), hosts.into()]);
        }
        all.extend(self.options.arguments.iter().map(OsString::from));
        all
    }
}

/// The programs with the GGUF that they read.
#[derive(Clone, Copy)]
pub(super) struct Ready<'o> {
    pub(super) outside: &'o Outside,
    pub(super) base: &'o Path,
}

/// Notes for the user.
pub(super) fn notes(outside: &Outside) -> Vec<String> {
    let programs = outside
        .imatrix_name()
        .into_iter()
        .chain([outside.meter_name()]);
    let programs: Vec<String> = programs.collect();
    vec![format!(
        "the model was run by {}; not available there: {NOT_MEASURED}",
        programs.join(" and ")
    )]
}

/// A cost whose time only the program knows.
fn outside_cost(cost: Cost) -> Cost {
    Cost {
        is_outside: true,
        ..cost
    }
}

impl From<Error> for MakeError {
    fn from(error: Error) -> MakeError {
        MakeError::Outside(error)
    }
}
