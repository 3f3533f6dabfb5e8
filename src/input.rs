//! The input of a command: a GGUF, or a Hugging Face checkpoint converted on the fly, band by band,
//! without a temporary file.

use crate::convert::{self, Adapter, Checkpoint, OutType};
use crate::format;
use crate::format::gguf::{Files, Metadata, Model};
use crate::format::reader::TensorReader;
pub use crate::format::reader::{Tensor, TensorSource};
pub use quantier_arch::Input;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// The mapped files of a model. An [`Input`] borrows from it.
pub enum Source {
    /// One GGUF or all shards of a split one.
    Gguf(Files),
    /// Configuration, tokenizer and weights.
    Checkpoint(Box<Checkpoint>),
}

impl Source {
    /// Maps the files: a directory, a .safetensors file or a PyTorch .bin file is a checkpoint,
    /// anything else a GGUF.
    ///
    /// # Errors
    /// Missing or damaged files.
    pub fn open(path: &Path) -> convert::Result<Source> {
        match path.is_dir() || is_checkpoint_file(path) {
            true => Ok(Source::Checkpoint(Box::new(Checkpoint::open(path)?))),
            false => Ok(Source::Gguf(Files::open(path)?)),
        }
    }

    /// With a PEFT adapter merged into a checkpoint.
    ///
    /// # Errors
    /// A GGUF, and adapters that do not fit the checkpoint.
    pub fn merged(self, adapter: &Path) -> convert::Result<Source> {
        match self {
            Source::Checkpoint(checkpoint) => {
                let merged = checkpoint.merged(Adapter::open(adapter)?)?;
                Ok(Source::Checkpoint(Box::new(merged)))
            }
            Source::Gguf(_) => Err(convert::Error::impossible(
                "--lora merges an adapter into a Hugging Face checkpoint, and this is a GGUF; name the checkpoint",
            )),
        }
    }

    /// As [`Source::reader`], for use of the weights. Without a given type, a checkpoint with
    /// weights that overflow f16 is read as bf16.
    ///
    /// # Errors
    /// As [`Source::reader`], and files that have become shorter.
    pub fn finite_reader(&self, conversion: &convert::Job) -> convert::Result<Input<'_>> {
        if let (Source::Checkpoint(checkpoint), OutType::Auto) = (self, conversion.out_type) {
            let plan = convert::Plan::new(checkpoint, conversion)?;
            if let Some(found) = plan.find_too_large()? {
                let conversion = convert::Job {
                    out_type: OutType::Bf16,
                    ..conversion.clone()
                };
                let mut plan = convert::Plan::new(checkpoint, &conversion)?;
                plan.notes.push(format!(
                    "{}, row {}, holds {}, which becomes infinite in f16; the checkpoint is read as bf16",
                    found.tensor, found.row, found.value
                ));
                return Ok(reader_of(plan));
            }
            return Ok(reader_of(plan));
        }
        self.reader(conversion)
    }

    /// Checks the files. `conversion` has the options for a checkpoint; its output is never
    /// written.
    ///
    /// # Errors
    /// Damaged files, a checkpoint that cannot be converted.
    pub fn reader(&self, conversion: &convert::Job) -> convert::Result<Input<'_>> {
        let checkpoint = match self {
            Source::Gguf(files) => return Ok(TensorReader::from(Model::parse(files)?).into()),
            Source::Checkpoint(checkpoint) => checkpoint,
        };
        Ok(reader_of(convert::Plan::new(checkpoint, conversion)?))
    }
}

/// True for weight files of a checkpoint. Old GGUFs can be named `.bin`, too.
fn is_checkpoint_file(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => true,
        Some("bin") => path.is_file() && !is_gguf(path).unwrap_or(false),
        _ => false,
    }
}

/// True for GGUF files, by their first bytes.
///
/// # Errors
/// If the file cannot be opened.
pub(crate) fn is_gguf(path: &Path) -> std::io::Result<bool> {
    let mut magic = [0; 4];
    let read = File::open(path)?.read_exact(&mut magic);
    Ok(read.is_ok() && magic == *b"GGUF")
}

/// The input from a conversion plan.
pub(crate) fn reader_of(plan: convert::Plan<'_>) -> Input<'_> {
    let mut end = 0;
    let planned = plan.tensors.iter().enumerate();
    let tensors = planned
        .map(|(index, tensor)| {
            let offset = end;
            end += tensor.bytes();
            Tensor {
                info: tensor.info().into_owned(),
                shard: 0,
                offset,
                index,
            }
        })
        .collect();
    TensorReader::new(plan, tensors).into()
}

impl TensorSource for convert::Plan<'_> {
    fn metadata(&self) -> &Metadata<'_> {
        convert::Plan::metadata(self)
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn paths(&self) -> Vec<&Path> {
        self.checkpoint.paths()
    }

    fn path(&self, tensor: usize) -> &Path {
        self.path_of(&self.tensors[tensor])
    }

    fn read<'b>(
        &'b self,
        tensor: usize,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> format::Result<&'b [u8]> {
        let tensor = &self.tensors[tensor];
        convert::Plan::read(self, tensor, rows, buffer).map_err(|error| match error {
            convert::Error::Format(error) => error,
            error => format::Error::Bad {
                path: self.path_of(tensor).to_owned(),
                what: match error {
                    convert::Error::BadWeight {
                        tensor, row, value, ..
                    } => format!(
                        "tensor '{tensor}', row {row}, holds {value}; the checkpoint is damaged"
                    ),
                    convert::Error::BadScale {
                        tensor,
                        row,
                        column,
                        what,
                        ..
                    } => format!(
                        "tensor '{tensor}', row {row}, column {column}: {what}; the checkpoint is damaged"
                    ),
                    error => error.to_string(),
                },
            },
        })
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        convert::Plan::release(self, &self.tensors[tensor], rows);
    }
}
