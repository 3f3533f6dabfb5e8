//! A GGUF file out: the header from a plan, then the tensors' bytes as they come.

use super::read::TensorInfo;
use super::value::Metadata;
use crate::Result;
use crate::map::Map;
use crate::output::Output;
use std::ops::Range;
use std::path::Path;

/// The version that is written.
const VERSION: u32 = 3;

/// Where everything in a file will be, known before its first byte is written.
pub struct Layout {
    header: Vec<u8>,
    /// Bytes of each tensor's data, without padding.
    tensor_bytes: Vec<u64>,
    alignment: u64,
    file_bytes: u64,
}

impl Layout {
    /// Lays out a file with this metadata and these tensors in this order.
    ///
    /// `alignment` is a power of two; a reader expects the metadata to say it under
    /// `general.alignment` unless it is 32.
    pub fn new(metadata: &Metadata<'_>, tensors: &[TensorInfo<'_>], alignment: u64) -> Layout {
        let mut header = head(metadata, tensors.len() as u64);
        let mut offset = 0u64;
        for tensor in tensors {
            header.extend((tensor.name.len() as u64).to_le_bytes());
            header.extend(tensor.name.as_bytes());
            header.extend((tensor.shape.dims().len() as u32).to_le_bytes());
            tensor
                .shape
                .dims()
                .iter()
                .for_each(|dim| header.extend(dim.to_le_bytes()));
            header.extend(tensor.ggml_type.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.bytes().next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let file_bytes = header.len() as u64 + offset;
        Layout {
            header,
            tensor_bytes: tensors.iter().map(TensorInfo::bytes).collect(),
            alignment,
            file_bytes,
        }
    }

    /// The file's bytes before the first tensor's data, padding included.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// A file of metadata only, which ends with it: there is nothing behind that would have to be
    /// aligned.
    pub fn of_metadata(metadata: &Metadata<'_>) -> Layout {
        let header = head(metadata, 0);
        let file_bytes = header.len() as u64;
        Layout {
            header,
            tensor_bytes: Vec::new(),
            alignment: 1,
            file_bytes,
        }
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// What comes before the description of the tensors.
fn head(metadata: &Metadata<'_>, tensors: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(VERSION.to_le_bytes());
    header.extend(tensors.to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        header.extend((key.len() as u64).to_le_bytes());
        header.extend(key.as_bytes());
        header.extend((value.value_type() as u32).to_le_bytes());
        value.write(&mut header);
    }
    header
}

/// Streams tensor data into a file that was laid out before.
pub struct Writer {
    output: Output,
    layout: Layout,
    /// The tensor that is being written, and how many of its bytes are.
    tensor: usize,
    done: u64,
}

impl Writer {
    /// Creates the file beside its target and writes the header. Fails if the target is one of the
    /// `inputs` or the space does not suffice.
    pub fn create(path: &Path, layout: Layout, inputs: &[&Path]) -> Result<Writer> {
        let mut output = Output::create(path, layout.file_bytes, inputs)?;
        output.write(&layout.header)?;
        Ok(Writer {
            output,
            layout,
            tensor: 0,
            done: 0,
        })
    }

    /// Appends data of the tensor whose turn it is; pads after its last byte.
    ///
    /// # Panics
    /// If there is more data than the layout has room for.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.count(data.len());
        self.output.write(data)?;
        self.pad()
    }

    /// The same with bytes of an input as they are.
    ///
    /// # Panics
    /// If there is more data than the layout has room for.
    pub fn copy(&mut self, input: &Map, range: Range<usize>) -> Result<()> {
        self.count(range.len());
        self.output.copy(input, range)?;
        self.pad()
    }

    fn count(&mut self, more: usize) {
        self.done += more as u64;
        let bytes = self.layout.tensor_bytes[self.tensor];
        assert!(
            self.done <= bytes,
            "more data than tensor {} was laid out for",
            self.tensor
        );
    }

    /// Pads if the tensor is complete, whose turn is over then.
    fn pad(&mut self) -> Result<()> {
        let bytes = self.layout.tensor_bytes[self.tensor];
        if self.done == bytes {
            let padding = bytes.next_multiple_of(self.layout.alignment) - bytes;
            self.output.write(&vec![0; padding as usize])?;
            self.tensor += 1;
            self.done = 0;
        }
        Ok(())
    }

    /// Brings everything to the disk; see [`Output::settle`].
    pub fn settle(&mut self) -> Result<()> {
        self.output.settle()
    }

    /// Flushes the file and gives it its name.
    ///
    /// # Panics
    /// If a tensor's data is missing.
    pub fn finish(self) -> Result<()> {
        assert_eq!(
            self.tensor,
            self.layout.tensor_bytes.len(),
            "every tensor is written"
        );
        self.output.finish()
    }
}
