//! A model to be read: a GGUF, or a Hugging Face checkpoint that is converted on the fly, band by
//! band, so that no file lies between it and what is made of it.

use crate::convert::{self, Checkpoint};
use crate::format::gguf::{self, Files, Metadata, Model, TensorInfo};
use std::ops::Range;
use std::path::Path;

/// The mapped files of a model. [`Input::new`] borrows from it.
pub enum Source {
    /// One GGUF or all shards of a split one.
    Gguf(Files),
    /// Configuration, tokenizer and safetensors.
    Checkpoint(Box<Checkpoint>),
}

/// A checked model, ready to be read.
pub struct Input<'a> {
    /// Every tensor, in the order of the files.
    pub tensors: Vec<Tensor<'a>>,
    reader: Reader<'a>,
}

/// One tensor of an input.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Name, shape and type.
    pub info: TensorInfo<'a>,
    /// Which file of a split GGUF, counted from 0.
    pub shard: usize,
    /// Where in that file, in bytes; where it would be, without what aligns it, if there is no
    /// file.
    pub offset: u64,
    index: usize,
}

enum Reader<'a> {
    Gguf(Model<'a>),
    Checkpoint(convert::Plan<'a>),
}

impl Source {
    /// Maps the files: a directory or a .safetensors file is a checkpoint, all else a GGUF.
    pub fn open(path: &Path) -> convert::Result<Source> {
        match path.is_dir() || path.extension().is_some_and(|e| e == "safetensors") {
            true => Ok(Source::Checkpoint(Box::new(Checkpoint::open(path)?))),
            false => Ok(Source::Gguf(Files::open(path)?)),
        }
    }

    /// The files that hold the weights.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Source::Gguf(files) => files.paths(),
            Source::Checkpoint(checkpoint) => checkpoint.paths(),
        }
    }
}

impl<'a> Input<'a> {
    /// Checks the files. `conversion` says how a checkpoint is converted; its output is never
    /// written.
    pub fn new(source: &'a Source, conversion: &convert::Job) -> convert::Result<Input<'a>> {
        let reader = match source {
            Source::Gguf(files) => Reader::Gguf(Model::parse(files)?),
            Source::Checkpoint(checkpoint) => {
                Reader::Checkpoint(convert::Plan::new(checkpoint, conversion)?)
            }
        };
        let tensors = match &reader {
            Reader::Gguf(model) => {
                let one = |(index, t): (usize, &gguf::Tensor<'a>)| {
                    let (info, shard, offset) = (t.info.clone(), t.shard, t.offset);
                    Tensor {
                        info,
                        shard,
                        offset,
                        index,
                    }
                };
                model.tensors.iter().enumerate().map(one).collect()
            }
            Reader::Checkpoint(plan) => {
                let mut end = 0;
                let one = |(index, t): (usize, &convert::PlannedTensor)| {
                    let (info, offset) = (t.info().into_owned(), end);
                    end += t.bytes();
                    Tensor {
                        info,
                        shard: 0,
                        offset,
                        index,
                    }
                };
                plan.tensors.iter().enumerate().map(one).collect()
            }
        };
        Ok(Input { tensors, reader })
    }

    /// The model's metadata.
    pub fn metadata(&self) -> &Metadata<'a> {
        match &self.reader {
            Reader::Gguf(model) => model.metadata(),
            Reader::Checkpoint(plan) => plan.metadata(),
        }
    }

    /// What the user should know.
    pub fn notes(&self) -> &[String] {
        match &self.reader {
            Reader::Gguf(_) => &[],
            Reader::Checkpoint(plan) => &plan.notes,
        }
    }

    /// The files that hold the weights.
    pub fn paths(&self) -> Vec<&'a Path> {
        match &self.reader {
            Reader::Gguf(model) => model.files.paths(),
            Reader::Checkpoint(plan) => plan.checkpoint.paths(),
        }
    }

    /// The file that holds a tensor, or the first part of it.
    pub fn path_of(&self, tensor: &Tensor<'_>) -> &Path {
        match &self.reader {
            Reader::Gguf(model) => model.files.maps()[tensor.shard].path(),
            Reader::Checkpoint(plan) => plan.path_of(&plan.tensors[tensor.index]),
        }
    }

    /// The bytes of some rows, counted over all the tensor's matrices: the mapped file's own where
    /// they are there as they are wanted, else made in `buffer`. Uses the threads of the pool that
    /// it is called in.
    ///
    /// # Errors
    /// If the file has become shorter.
    pub fn read<'b>(
        &'b self,
        tensor: &Tensor<'_>,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> convert::Result<&'b [u8]> {
        match &self.reader {
            Reader::Gguf(model) => {
                model.files.maps()[tensor.shard].check_length()?;
                let row_bytes = row_bytes(&tensor.info);
                let range = rows.start as usize * row_bytes..rows.end as usize * row_bytes;
                Ok(&model.tensors[tensor.index].data()[range])
            }
            Reader::Checkpoint(plan) => plan.read(&plan.tensors[tensor.index], rows, buffer),
        }
    }

    /// Tells the system that a tensor is needed soon, so that it begins to read it. Only a hint,
    /// and none for a checkpoint.
    pub fn prefetch(&self, tensor: &Tensor<'_>) {
        if let Reader::Gguf(model) = &self.reader {
            let start = model.tensors[tensor.index].offset as usize;
            model.files.maps()[tensor.shard].prefetch(start..start + tensor.info.bytes() as usize);
        }
    }

    /// Tells the system that these rows are not needed again soon. Only a hint.
    pub fn release(&self, tensor: &Tensor<'_>, rows: Range<u64>) {
        match &self.reader {
            Reader::Gguf(model) => {
                let (start, row_bytes) = (
                    model.tensors[tensor.index].offset as usize,
                    row_bytes(&tensor.info),
                );
                let range =
                    start + rows.start as usize * row_bytes..start + rows.end as usize * row_bytes;
                model.files.maps()[tensor.shard].release(range);
            }
            Reader::Checkpoint(plan) => plan.release(&plan.tensors[tensor.index], rows),
        }
    }
}

fn row_bytes(info: &TensorInfo<'_>) -> usize {
    (info.bytes() / info.shape.rows()) as usize
}
