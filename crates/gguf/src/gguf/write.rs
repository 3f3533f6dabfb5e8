//! Writing of GGUF files: the header from a layout, then streamed tensor data.

use super::endian::{Endian, has_big_endian_form, reverse_blocks};
use super::model::no_big_endian_form;
use super::read::{MAGIC, TensorInfo};
use super::value::Metadata;
use crate::Result;
use crate::map::Map;
use crate::output::Output;
use crate::types::GgmlType;
use std::ops::Range;
use std::path::Path;

/// The version written.
const VERSION: u32 = 3;
/// Blocks swapped at a time.
const BLOCKS_AT_ONCE: usize = 4096;

/// Offsets of everything in a file, computed before the first byte is written.
pub struct Layout {
    endian: Endian,
    header: Vec<u8>,
    /// Type of each tensor, and size of its data in bytes, without padding.
    tensors: Vec<(GgmlType, u64)>,
    alignment: u64,
    file_bytes: u64,
}

impl Layout {
    /// Lays out a little-endian file with this metadata and these tensors, in this order.
    ///
    /// `alignment` is a power of two in bytes; the metadata must state it under `general.alignment`
    /// unless it is 32.
    pub fn new(metadata: &Metadata<'_>, tensors: &[TensorInfo<'_>], alignment: u64) -> Layout {
        Layout::encoded(metadata, tensors, alignment, Endian::Little)
    }

    /// Lays out a big-endian file. [`Writer`] takes the tensors' data in little-endian order and
    /// swaps it.
    ///
    /// # Errors
    /// A tensor of a type without a big-endian form.
    pub fn big_endian(
        metadata: &Metadata<'_>,
        tensors: &[TensorInfo<'_>],
        alignment: u64,
    ) -> std::result::Result<Layout, String> {
        for TensorInfo {
            name, ggml_type, ..
        } in tensors
        {
            if !has_big_endian_form(*ggml_type) {
                return Err(no_big_endian_form(name, *ggml_type));
            }
        }
        Ok(Layout::encoded(metadata, tensors, alignment, Endian::Big))
    }

    fn encoded(
        metadata: &Metadata<'_>,
        tensors: &[TensorInfo<'_>],
        alignment: u64,
        endian: Endian,
    ) -> Layout {
        let mut header = MAGIC.to_vec();
        endian.put_u32(VERSION, &mut header);
        endian.put_u64(tensors.len() as u64, &mut header);
        endian.put_u64(metadata.len() as u64, &mut header);
        for (key, value) in metadata.iter() {
            endian.put_string(key.as_bytes(), &mut header);
            endian.put_u32(value.value_type() as u32, &mut header);
            value.write(endian, &mut header);
        }
        let mut offset = 0u64;
        for tensor in tensors {
            let dims = tensor.shape.dims();
            endian.put_string(tensor.name.as_bytes(), &mut header);
            endian.put_u32(dims.len() as u32, &mut header);
            dims.iter()
                .for_each(|dim| endian.put_u64(*dim, &mut header));
            endian.put_u32(tensor.ggml_type.id(), &mut header);
            endian.put_u64(offset, &mut header);
            offset += tensor.bytes().next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let file_bytes = header.len() as u64 + offset;
        Layout {
            endian,
            header,
            tensors: tensors.iter().map(|t| (t.ggml_type, t.bytes())).collect(),
            alignment,
            file_bytes,
        }
    }

    /// The bytes before the first tensor's data, padding included.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// A file of metadata only, without padding at its end, since no tensor follows.
    pub fn of_metadata(metadata: &Metadata<'_>) -> Layout {
        Layout::new(metadata, &[], 1)
    }

    /// Size of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// Streams tensor data into a file with a known layout.
pub struct Writer {
    output: Output,
    layout: Layout,
    /// Index of the current tensor, and the bytes of it written so far.
    tensor: usize,
    done: u64,
    /// Buffer for swapped data.
    reversed: Vec<u8>,
}

impl Writer {
    /// Creates the file beside its target and writes the header.
    ///
    /// # Errors
    /// If the target is one of the `inputs`, space is insufficient, or the disk fails.
    pub fn create(path: &Path, layout: Layout, inputs: &[&Path]) -> Result<Writer> {
        let mut output = Output::create(path, layout.file_bytes, inputs)?;
        output.write(&layout.header)?;
        Ok(Writer {
            output,
            layout,
            tensor: 0,
            done: 0,
            reversed: Vec::new(),
        })
    }

    /// Appends data of the current tensor in little-endian order; pads after its last byte.
    ///
    /// # Errors
    /// I/O errors.
    ///
    /// # Panics
    /// If there is more data than laid out, or if the file is big-endian and the data is not whole
    /// blocks.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let ggml_type = self.count(data.len());
        if self.layout.endian == Endian::Big {
            assert!(
                data.len().is_multiple_of(ggml_type.block_bytes()),
                "whole blocks of {ggml_type}"
            );
            self.reversed.clear();
            self.reversed.extend_from_slice(data);
            reverse_blocks(ggml_type, &mut self.reversed);
            self.output.write(&self.reversed)?;
        } else {
            self.output.write(data)?;
        }
        self.pad()
    }

    /// Appends data of the current tensor from an input, in little-endian order.
    ///
    /// # Errors
    /// I/O errors, and an input that became shorter.
    ///
    /// # Panics
    /// As [`Writer::write`].
    pub fn copy(&mut self, input: &Map, range: Range<usize>) -> Result<()> {
        if self.layout.endian == Endian::Big {
            input.check_length()?;
            // A multiple of every block size.
            let block = self.layout.tensors[self.tensor].0.block_bytes();
            let mut data = input.bytes()[range].chunks(block * BLOCKS_AT_ONCE);
            return data.try_for_each(|data| self.write(data));
        }
        self.count(range.len());
        self.output.copy(input, range)?;
        self.pad()
    }

    /// Counts data of the current tensor and returns its type.
    fn count(&mut self, more: usize) -> GgmlType {
        self.done += more as u64;
        let (ggml_type, bytes) = self.layout.tensors[self.tensor];
        assert!(
            self.done <= bytes,
            "more data than tensor {} was laid out for",
            self.tensor
        );
        ggml_type
    }

    /// Pads a complete tensor and moves on to the next.
    fn pad(&mut self) -> Result<()> {
        let (_, bytes) = self.layout.tensors[self.tensor];
        if self.done == bytes {
            let padding = bytes.next_multiple_of(self.layout.alignment) - bytes;
            self.output.write(&vec![0; padding as usize])?;
            self.tensor += 1;
            self.done = 0;
        }
        Ok(())
    }

    /// Flushes all data to disk, before the first of several files is renamed.
    ///
    /// # Errors
    /// I/O errors.
    pub fn settle(&mut self) -> Result<()> {
        self.output.settle()
    }

    /// Flushes the file and renames it to its target.
    ///
    /// # Errors
    /// I/O errors.
    ///
    /// # Panics
    /// If a tensor's data is missing.
    pub fn finish(self) -> Result<()> {
        assert_eq!(
            self.tensor,
            self.layout.tensors.len(),
            "every tensor is written"
        );
        self.output.finish()
    }
}
