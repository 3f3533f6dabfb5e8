//! `split`, `merge`, `set`: a model's tensors as they are, in other files or under other metadata.
//!
//! [`split`], [`merge`] and [`set`] each make a [`Plan`] of new files and refuse what cannot work
//! before a byte is written; [`Plan::run`] copies the tensors, within the system where it can do
//! that, in memory that does not depend on the model. [`set::patches`] is the one way to change a
//! file where it is.

pub mod set;
mod split;

pub use split::{Limit, merge, split};

use crate::format;
use crate::format::gguf::{
    DEFAULT_ALIGNMENT, Endian, Layout, Metadata, Model, Tensor, TensorInfo, Writer,
};
use crate::format::output::check_new;
use crate::plan::recipe::Problem;
use crate::progress::{Progress, Unit};
use std::ops::Range;
use std::path::PathBuf;

/// Bytes that are copied between two looks at the clock.
const BAND_BYTES: usize = 64 << 20;

/// Why a model was not written anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, or its contents forbid it.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Edits that make no sense; one sentence per reason.
    #[error("this cannot be done, and nothing was written:\n{}", Problem::by_reason(.0))]
    Impossible(Vec<Problem>),
    /// Stopped from outside.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses big-endian models: their tensors cannot be copied as they are, and the reference does not
/// read them either.
fn check_byte_order(model: &Model) -> Result<()> {
    match model.endian() {
        Endian::Little => Ok(()),
        Endian::Big => Err(Error::Format(format::Error::Bad {
            path: model.files.paths()[0].to_owned(),
            what: "it is big-endian; make a little-endian file of it first: quantier quantize MODEL OUTPUT copy".into(),
        })),
    }
}

/// Files to be written.
pub struct Plan<'a> {
    model: &'a Model,
    /// The files, in the order of their tensors.
    pub files: Vec<PlannedFile<'a>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A file to be written.
pub struct PlannedFile<'a> {
    /// Where it goes.
    pub path: PathBuf,
    /// Its metadata.
    pub metadata: Metadata<'a>,
    /// Its tensors, as indices into the model's.
    pub tensors: Range<usize>,
    header: Header,
}

/// How the rest of a header is written.
#[derive(Clone, Copy, PartialEq)]
enum Header {
    /// As ggml does: shapes end at their last dimension that is not 1.
    Ggml,
    /// Shapes as the input has them.
    AsItWas,
    /// Metadata only, without what would align tensors.
    Bare,
}

impl<'a> Plan<'a> {
    fn tensors(&self, file: &PlannedFile<'_>) -> &'a [Tensor] {
        &self.model.tensors[file.tensors.clone()]
    }

    fn layout(&self, file: &PlannedFile<'_>) -> Layout {
        let info = |tensor: &Tensor| match file.header {
            Header::Ggml => TensorInfo {
                shape: tensor.info.shape.trimmed(),
                ..tensor.info.clone()
            },
            _ => tensor.info.clone(),
        };
        let infos: Vec<_> = self.tensors(file).iter().map(info).collect();
        match file.header {
            Header::Bare => Layout::of_metadata(&file.metadata),
            // Nothing follows that would have to be aligned, and the reference pads for 32 bytes.
            Header::Ggml if infos.is_empty() => {
                Layout::new(&file.metadata, &infos, DEFAULT_ALIGNMENT)
            }
            _ => Layout::new(&file.metadata, &infos, file.metadata.alignment()),
        }
    }

    /// Bytes that a file will have.
    pub fn file_bytes(&self, file: &PlannedFile<'_>) -> u64 {
        self.layout(file).file_bytes()
    }

    /// Writes the files: all of them or none. `replace` says that files of these names may be there
    /// already.
    ///
    /// # Errors
    /// A full disk is found out before anything is copied where the system can tell; an input that
    /// changes meanwhile is an error too.
    pub fn run(&self, replace: bool, progress: &dyn Progress) -> Result<()> {
        if !replace {
            self.files
                .iter()
                .try_for_each(|file| check_new(&file.path))?;
        }
        let inputs = self.model.files.paths();
        // All are created first, so that the space for all is taken first.
        let mut writers = Vec::with_capacity(self.files.len());
        for file in &self.files {
            writers.push(Writer::create(&file.path, self.layout(file), &inputs)?);
        }
        progress.begin(
            self.files
                .iter()
                .flat_map(|f| self.tensors(f))
                .map(|t| t.info.bytes())
                .sum(),
            Unit::Bytes,
        );
        for (file, writer) in self.files.iter().zip(&mut writers) {
            for tensor in self.tensors(file) {
                progress.at(&tensor.info.name);
                self.copy(tensor, writer, progress)?;
            }
            writer.settle()?;
        }
        writers.into_iter().try_for_each(Writer::finish)?;
        Ok(())
    }

    fn copy(&self, tensor: &Tensor, writer: &mut Writer, progress: &dyn Progress) -> Result<()> {
        let map = &self.model.files.maps()[tensor.shard];
        let (mut at, end) = (
            tensor.offset as usize,
            (tensor.offset + tensor.info.bytes()) as usize,
        );
        while at < end {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let band = at..end.min(at + BAND_BYTES);
            map.check_length()?;
            writer.copy(map, band.clone())?;
            map.release(band.clone());
            progress.advance(band.len() as u64);
            at = band.end;
        }
        Ok(())
    }
}
