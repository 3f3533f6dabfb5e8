//! `split`, `merge`, `set`: copies of a model with other files or metadata, tensors unchanged.
//!
//! [`split`], [`merge`] and [`set`] each check their request and make a [`Plan`] of new files;
//! [`Plan::run`] copies the tensors, inside the kernel if possible, in constant memory.
//! [`set::patches`] alone edits a file in place.

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

/// Bytes copied between two checks for cancellation.
const BAND_BYTES: usize = 64 << 20;

/// Error of a split, merge or edit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read or written, or is unsuitable.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Invalid edits, with one sentence per reason.
    #[error("this cannot be done, and nothing was written:\n{}", Problem::by_reason(.0))]
    Impossible(Vec<Problem>),
    /// Cancelled.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses big-endian models: their tensors cannot be copied unchanged, and the reference does not
/// read them either.
fn check_byte_order(model: &Model) -> Result<()> {
    match model.endian() {
        Endian::Little => Ok(()),
        Endian::Big => Err(Error::Format(format::Error::Bad {
            path: model.files.paths()[0].to_owned(),
            what: "it is big-endian; convert it to little-endian first: quantier quantize MODEL OUTPUT copy".into(),
        })),
    }
}

/// The planned files of a copy.
pub struct Plan<'a> {
    model: &'a Model,
    /// The files, in the order of their tensors.
    pub files: Vec<PlannedFile<'a>>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// A planned file.
pub struct PlannedFile<'a> {
    /// Path of the file.
    pub path: PathBuf,
    /// Metadata of the file.
    pub metadata: Metadata<'a>,
    /// Tensors of the file, as indices into the model's.
    pub tensors: Range<usize>,
    header: Header,
}

/// Layout of a header.
#[derive(Clone, Copy, PartialEq)]
enum Header {
    /// ggml's: shapes without trailing dimensions of 1.
    Ggml,
    /// The input's: shapes as stored.
    AsItWas,
    /// Metadata only, without padding at the end.
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
            // Without tensors the reference pads to 32 bytes.
            Header::Ggml if infos.is_empty() => {
                Layout::new(&file.metadata, &infos, DEFAULT_ALIGNMENT)
            }
            _ => Layout::new(&file.metadata, &infos, file.metadata.alignment()),
        }
    }

    /// Size of a file in bytes.
    pub fn file_bytes(&self, file: &PlannedFile<'_>) -> u64 {
        self.layout(file).file_bytes()
    }

    /// Writes the files: all of them or none. `replace` allows existing files of these names.
    ///
    /// # Errors
    /// An existing file without `replace`, insufficient disk space, an input that changes during
    /// the copy, cancellation.
    pub fn run(&self, replace: bool, progress: &dyn Progress) -> Result<()> {
        if !replace {
            self.files
                .iter()
                .try_for_each(|file| check_new(&file.path))?;
        }
        let inputs = self.model.files.paths();
        // All files are created before the first is written, to reserve space for all.
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
