//! `publish`: from the output of `make` to a directory that can be uploaded to the Hub as is.
//!
//! ```text
//! frontier.json   files and measurements
//! facts           about the model, from the files' metadata and the user
//! lint, turns     its chat template: checked, and split into pieces for Ollama
//! place           a directory beside its target: models linked or copied, texts written, checksums computed
//! card            README.md
//! ```
//!
//! The directory contains no paths of the machine that made it.

pub mod card;
pub mod facts;
pub mod front_matter;
pub mod go_template;
pub mod lint;
pub mod modelfile;
mod place;
pub mod turns;

use crate::convert::ProjectorFile;
use crate::format;
use crate::format::gguf::{Files, Metadata, Model};
use crate::progress::{Progress, Unit};
use crate::report::data::{DataError, File, Frontier, Projector};
use crate::report::page::page;
use crate::report::size_chart::size_chart;
use crate::report::svg::Place as Shown;
use card::{Contents, Published, PublishedProjector};
use facts::{Details, Facts, Output, of_architecture};
use modelfile::Template;
use place::Place;
pub use place::SUMS;
use std::path::{Path, PathBuf};

/// Options of a publication.
pub struct Job {
    /// Output directory of `make`.
    pub directory: PathBuf,
    /// Directory to create for the upload.
    pub output: PathBuf,
    /// Facts about the model given by the user.
    pub details: Details,
    /// Template of the card; `None` for the built-in one.
    pub template: Option<String>,
    /// The projector to publish; `None` for that of the directory, if it has one.
    pub projector: Option<PathBuf>,
    /// Allows an existing output directory.
    pub force: bool,
    /// Copies models instead of hard-linking them.
    pub copy: bool,
}

/// Result of a publication.
pub struct Done {
    /// The models, then the projector: name, SHA-256, size in bytes, and true for a hard link.
    pub files: Vec<(String, String, u64, bool)>,
    /// Target repository, if given.
    pub repo: Option<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Errors of a publication.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure to read or write a file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// A directory without output of `make`.
    #[error("{}: it has no frontier.json; name an output directory of `quantier make`", .0.display())]
    NothingMade(PathBuf),
    /// An unreadable frontier.json.
    #[error("{}: {error}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The defect.
        error: DataError,
    },
    /// A frontier without files.
    #[error("{}: it has a frontier but no models; run `quantier make` with a budget and the same directory", .0.display())]
    NoFiles(PathBuf),
    /// A missing or changed model.
    #[error("{}: {what}; run the same `quantier make` again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The defect.
        what: String,
    },
    /// An existing output.
    #[error("{}: it exists and is not empty; --force replaces the files of an earlier publication", .0.display())]
    Exists(PathBuf),
    /// An output that is not a directory.
    #[error("{}: not a writable directory; name another", .0.display())]
    NoDirectory(PathBuf),
    /// A directory at the temporary place that was not made by `publish`.
    #[error("{}: this directory was not made by quantier publish; move it, or choose another output", .0.display())]
    Foreign(PathBuf),
    /// Another process writes the same output.
    #[error("{}: another process is writing it; wait for it, or choose another output", .0.display())]
    Taken(PathBuf),
    /// An invalid template of the card.
    #[error("the card's template: {0}")]
    Template(String),
    /// Cancelled.
    #[error("stopped before the end; nothing was published")]
    Cancelled,
}

/// Result type of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// File names of report data and importance matrix, in both directories.
const FRONTIER: &str = "frontier.json";
const IMATRIX: &str = "imatrix.gguf";

/// Checks output and template before publishing.
///
/// # Errors
/// An output that is a file, or not empty without `force`; a malformed template of the card.
pub fn check(job: &Job) -> Result<()> {
    place::check(&job.output, job.force)?;
    job.template.as_deref().map_or(Ok(()), |template| {
        card::check(template).map_err(Error::Template)
    })
}

/// Publishes the results of `make`.
///
/// # Errors
/// As [`check`]; missing, damaged or changed results; files that cannot be read or written;
/// cancellation.
pub fn run(job: &Job, progress: &dyn Progress) -> Result<Done> {
    check(job)?;
    let mut data = read(&job.directory)?;
    let paths: Vec<PathBuf> = data
        .files
        .iter()
        .map(|file| job.directory.join(&file.name))
        .collect();
    for (file, path) in data.files.iter().zip(&paths) {
        check_bytes(path, file.bytes)?;
    }
    let projector = projector(job, &data)?;
    data.projector = projector.as_ref().map(|projector| Projector {
        name: projector.name(),
        bytes: projector.bytes,
    });
    let Some(first) = paths.first() else {
        return Err(Error::NoFiles(job.directory.clone()));
    };
    let mapped = Files::open(first)?;
    let source = data
        .model
        .source
        .as_ref()
        .map(|source| source.repository.clone());
    let details = Details {
        source,
        ..job.details.clone()
    };
    let model = Model::parse(&mapped)?;
    let output = Output::new(data.distance, model.metadata());
    let facts = Facts::new(model.metadata(), output, &details, projector.as_ref());
    let mut notes = facts.notes.clone();
    let other = |projector: &ProjectorFile| other_width(projector, model.metadata());
    notes.extend(projector.as_ref().and_then(other));

    let mut place = Place::new(&job.output, job.force)?;
    let imatrix = Some(job.directory.join(IMATRIX)).filter(|path| path.is_file());
    if imatrix.is_none() {
        notes
            .push("there is no imatrix.gguf, since another importance matrix was used: add it to the directory".into());
    }
    let recipe_of = |file: &File| format!("{}.recipe.txt", file.name);
    let beside = data
        .files
        .iter()
        .map(|file| job.directory.join(recipe_of(file)))
        .chain(imatrix.clone());
    let small: u64 = beside
        .filter_map(|path| path.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    progress.begin(
        small
            + data.files.iter().map(|file| file.bytes).sum::<u64>()
            + projector.as_ref().map_or(0, |projector| projector.bytes),
        Unit::Bytes,
    );
    // Ollama has no interface for rerankers.
    let is_for_ollama = output != Output::Scores;
    let (mut published, mut files) = (Vec::new(), Vec::new());
    for (file, path) in data.files.iter().zip(&paths) {
        let (sha256, linked) = place.file(path, &file.name, job.copy, progress)?;
        let stem = file.name.strip_suffix(".gguf").unwrap_or(&file.name);
        let modelfile = is_for_ollama.then(|| format!("{stem}.Modelfile"));
        if let Some(modelfile) = &modelfile {
            let beside = data.projector.as_ref().map(|projector| &*projector.name);
            place.text(modelfile, &facts.ollama.modelfile(&file.name, beside))?;
        }
        let recipe = recipe_of(file);
        place.file(&job.directory.join(&recipe), &recipe, true, progress)?;
        files.push((file.name.clone(), sha256.clone(), file.bytes, linked));
        published.push(Published {
            file,
            sha256,
            modelfile,
        });
    }
    let mut published_projector = None;
    if let Some(projector) = &projector {
        let name = projector.name();
        let (sha256, linked) = place.file(&projector.path, &name, job.copy, progress)?;
        files.push((name, sha256.clone(), projector.bytes, linked));
        published_projector = Some(PublishedProjector {
            file: projector,
            sha256,
        });
    }
    if let Some(imatrix) = &imatrix {
        place.file(imatrix, IMATRIX, job.copy, progress)?;
    }
    place.text("frontier.svg", &size_chart(&data, Shown::Alone))?;
    place.text("report.html", &page(&data))?;
    place.text(FRONTIER, &data.to_json())?;
    // A base model and an embedding model need no template on the Hub, and a model without a derived
    // template has its own.
    if let (Template::Derived(_), Some(go)) = (&facts.ollama.template, facts.ollama.go()) {
        place.text("template", &go)?;
    }
    if is_for_ollama {
        place.text("params", &facts.ollama.params())?;
    }
    let template = job.template.as_deref().unwrap_or(card::TEMPLATE);
    let contents = Contents {
        files: published,
        projector: published_projector,
        imatrix: imatrix.is_some(),
    };
    let readme = card::card(template, &data, &contents, &facts).map_err(Error::Template)?;
    place.text("README.md", &readme)?;
    place.finish()?;
    Ok(Done {
        files,
        repo: facts.repo,
        notes,
    })
}

/// Fails if a file of `make` is missing or has another size than in frontier.json.
fn check_bytes(path: &Path, bytes: u64) -> Result<()> {
    let changed = |what: String| Error::Changed {
        path: path.to_owned(),
        what,
    };
    let len = path
        .metadata()
        .map_err(|_| changed("frontier.json names this file, but it is missing".into()))?
        .len();
    match len == bytes {
        true => Ok(()),
        false => Err(changed(format!(
            "it has {len} bytes, but {bytes} in frontier.json"
        ))),
    }
}

/// The projector of a publication: the given one, or that of the directory.
fn projector(job: &Job, data: &Frontier) -> Result<Option<ProjectorFile>> {
    let path = match (&job.projector, &data.projector) {
        (Some(path), _) => path.clone(),
        (None, Some(made)) => {
            let path = job.directory.join(&made.name);
            check_bytes(&path, made.bytes)?;
            path
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(ProjectorFile::open(&path)?))
}

/// A note on a projector whose outputs do not have the length of the model's embeddings.
fn other_width(projector: &ProjectorFile, metadata: &Metadata<'_>) -> Option<String> {
    let length = of_architecture(metadata, "embedding_length")?;
    let width = projector.width?;
    (length != width).then(|| {
        format!(
            "{} is for embeddings of {width} numbers, and those of the model have {length}: it may be that of another model",
            projector.name()
        )
    })
}

fn read(directory: &Path) -> Result<Frontier> {
    let path = directory.join(FRONTIER);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NothingMade(directory.to_owned()));
        }
        Err(source) => {
            return Err(format::Error::Io {
                path,
                action: "read",
                source,
            }
            .into());
        }
    };
    let data = Frontier::parse(&text).map_err(|error| Error::Data {
        path: path.clone(),
        error,
    })?;
    // File names must not contain paths.
    let names = data.files.iter().map(|file| &file.name);
    let mut names = names.chain(data.projector.iter().map(|projector| &projector.name));
    let stray = names.find(|name| Path::new(name).file_name() != Some(name.as_ref()));
    match stray {
        Some(name) => Err(Error::Changed {
            path,
            what: format!("'{name}' is not a file name"),
        }),
        None => Ok(data),
    }
}
