//! The parts of a stage in the work directory.
//!
//! ```text
//! parts/NAME/00007.part     unit 7
//! parts/NAME/00007.json     its time, for the status
//! parts/NAME/merged.json    the mark of a merged stage
//! ```

use super::Cut;
use super::arithmetic;
use crate::format;
use crate::format::part::{Identity, Lookup, Part, Writer};
use crate::hessian;
use crate::make::workdir::WorkDir;
use crate::make::{Error, Result, write_text};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FOLDER: &str = "parts";
const MERGED: &str = "merged.json";

/// The program and its arithmetic.
pub(super) fn maker() -> String {
    format!(
        "quantier {} ({})",
        env!("CARGO_PKG_VERSION"),
        arithmetic::name()
    )
}

/// Time of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UnitTime {
    pub(crate) seconds: f64,
    /// Name of the machine, if the system tells it.
    pub(crate) host: Option<String>,
}

/// The parts of a cut.
pub(in crate::make) struct Parts {
    folder: PathBuf,
    identity: Identity,
}

/// Folder of a cut's parts, in an output directory's work directory.
pub(super) fn folder(work: &WorkDir, name: &str) -> PathBuf {
    work.path(FOLDER).join(name)
}

impl Parts {
    pub(super) fn of(work: &WorkDir, cut: &dyn Cut) -> Result<Parts> {
        Ok(Parts {
            folder: folder(work, cut.name()),
            identity: Identity {
                key: cut.key()?,
                unit: 0,
                maker: maker(),
            },
        })
    }

    pub(super) fn create(&self) -> Result<()> {
        let io = |source| format::Error::Io {
            path: self.folder.clone(),
            action: "create",
            source,
        };
        Ok(std::fs::create_dir_all(&self.folder).map_err(io)?)
    }

    fn path(&self, unit: usize) -> PathBuf {
        path(&self.folder, unit)
    }

    fn identity(&self, unit: usize) -> Identity {
        Identity {
            unit,
            ..self.identity.clone()
        }
    }

    pub(super) fn find(&self, unit: usize) -> Result<Lookup> {
        Ok(Part::open(&self.path(unit), &self.identity(unit))?)
    }

    /// True if the part of a unit is there and undamaged; otherwise the reason, if there is a file.
    pub(super) fn state(&self, unit: usize) -> Result<std::result::Result<(), Option<String>>> {
        Ok(match self.find(unit)? {
            Lookup::Nothing => Err(None),
            Lookup::Other(what) | Lookup::Damaged(what) => Err(Some(what)),
            Lookup::Found(part) => part.check().map_err(|error| Some(error.to_string())),
        })
    }

    /// Begins a part.
    pub(super) fn writer(&self, unit: usize) -> Result<Writer> {
        Ok(Writer::create(&self.path(unit), &self.identity(unit))?)
    }

    /// Stores the time of a unit.
    pub(super) fn write_time(&self, unit: usize, seconds: f64) -> Result<()> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let time = UnitTime {
            seconds,
            host: host.map(|host| host.trim().to_owned()),
        };
        let text = serde_json::to_string(&time).unwrap_or_default();
        // A failure is harmless: only the status shows it.
        let _ = std::fs::write(self.path(unit).with_extension("json"), text);
        Ok(())
    }

    /// The parts of all units in order.
    ///
    /// # Errors
    /// Missing or damaged parts, with their units.
    pub(in crate::make) fn all(work: &WorkDir, cut: &dyn Cut) -> Result<Vec<Part>> {
        let parts = Parts::of(work, cut)?;
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for unit in 0..cut.units() {
            match parts.find(unit)? {
                Lookup::Found(part) if cut.is_there(work, unit)? => found.push(part),
                Lookup::Found(_) => missing.push((unit, Some("its file is missing".into()))),
                Lookup::Nothing => missing.push((unit, None)),
                Lookup::Other(what) | Lookup::Damaged(what) => missing.push((unit, Some(what))),
            }
        }
        match missing.is_empty() {
            true => Ok(found),
            false => Err(Error::MissingParts {
                stage: cut.name(),
                missing: missing
                    .into_iter()
                    .map(|(unit, what)| match what {
                        Some(what) => format!("{} ({what})", parts.path(unit).display()),
                        None => parts.path(unit).display().to_string(),
                    })
                    .collect(),
            }),
        }
    }
}

fn path(folder: &Path, unit: usize) -> PathBuf {
    folder.join(format!("{unit:05}.part"))
}

/// Hessians of a cut's units, until they are merged into those of the job.
pub(super) fn unit_hessians(work: &WorkDir, name: &str, job: &hessian::Job) -> hessian::Job {
    hessian::Job {
        directory: folder(work, name).join("hessians"),
        ..job.clone()
    }
}

/// Moves files to another directory of the same file system. Those that a killed merge has moved are there
/// already.
pub(super) fn move_files<'n>(
    [from, to]: [&Path; 2],
    names: impl Iterator<Item = &'n str>,
) -> Result<()> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| format::Error::Io {
            path,
            action,
            source,
        }
    };
    std::fs::create_dir_all(to).map_err(io("create", to))?;
    for name in names {
        let (old, new) = (from.join(name), to.join(name));
        if old.exists() {
            std::fs::rename(&old, &new).map_err(io("move", &old))?;
        }
    }
    Ok(())
}

/// True if the stage of a folder is marked as merged.
pub(crate) fn is_merged(folder: &Path) -> bool {
    folder.join(MERGED).exists()
}

/// Marks a stage as merged.
pub(super) fn mark(work: &WorkDir, name: &str) -> Result<()> {
    let folder = folder(work, name);
    let io = |source| format::Error::Io {
        path: folder.clone(),
        action: "create",
        source,
    };
    std::fs::create_dir_all(&folder).map_err(io)?;
    write_text(&folder.join(MERGED), "{}")
}

/// Removes the mark of a merged stage.
pub(super) fn unmark(work: &WorkDir, name: &str) {
    // Without a mark there is nothing to remove.
    let _ = std::fs::remove_file(folder(work, name).join(MERGED));
}

/// True if a unit has a part, of whatever key.
pub(crate) fn has_part(folder: &Path, unit: usize) -> bool {
    path(folder, unit).exists()
}

/// Time of a unit, if it is known.
pub(crate) fn time(folder: &Path, unit: usize) -> Option<UnitTime> {
    let text = std::fs::read_to_string(path(folder, unit).with_extension("json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Removes the parts of a cut, and what killed processes left beside them.
pub(super) fn remove(work: &WorkDir, name: &str) {
    let entries = std::fs::read_dir(folder(work, name)).into_iter().flatten();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_file() && path.extension().is_some_and(|e| e != "json") {
            // A failure is harmless: parts are looked up by key.
            let _ = std::fs::remove_file(path);
        }
    }
}
