//! Tensors of a model and their weights: the only conversion of weights to f32.
//!
//! ```text
//! TensorSource   rows of tensors as stored bytes: a GGUF, or a checkpoint converted on the fly
//! TensorReader   a source with its list of tensors; cuts rows into bands of bounded size
//! Band           consecutive rows, which threads cut further and widen to f32
//! ```

use crate::gguf::{Metadata, Model, TensorInfo};
use crate::types::GgmlType;
use crate::{Error, Result};
use quantier_blocks::{Codec, Fault};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// Weights per band (at least one row).
const BAND_WEIGHTS: u64 = 8 << 20;
/// Weights per task of a thread (at least one row), sized for its cache.
const TASK_WEIGHTS: usize = 64 << 10;

/// One tensor of a model.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Name, shape and type.
    pub info: TensorInfo<'a>,
    /// Index of its file in a split GGUF, from 0.
    pub shard: usize,
    /// Offset in that file, in bytes; in a checkpoint, the size of the tensors before it.
    pub offset: u64,
    /// Index in [`TensorReader::tensors`].
    pub index: usize,
}

impl Tensor<'_> {
    /// Size of a row in bytes.
    pub(crate) fn row_bytes(&self) -> usize {
        (self.info.bytes() / self.info.shape.rows()) as usize
    }

    /// Number of matrices, such as experts.
    pub fn matrices(&self) -> usize {
        self.info.shape.four()[2] as usize
    }

    /// Rows per matrix.
    pub fn rows_per_matrix(&self) -> u64 {
        self.info.shape.four()[1]
    }

    /// Row range of one matrix, counted over all matrices.
    pub fn rows_of(&self, matrix: usize) -> Range<u64> {
        let rows = self.rows_per_matrix();
        matrix as u64 * rows..(matrix as u64 + 1) * rows
    }

    /// Rows per task of a thread.
    pub fn task_rows(&self) -> usize {
        (TASK_WEIGHTS / self.info.shape.row_len() as usize).max(1)
    }

    /// Bands of bounded size that cover `rows`, in order.
    pub fn bands(&self, rows: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let step = (BAND_WEIGHTS / self.info.shape.row_len()).max(1);
        rows.clone()
            .step_by(step as usize)
            .map(move |first| first..(first + step).min(rows.end))
    }
}

/// A source of metadata and weights. Tensors are identified by [`Tensor::index`].
pub trait TensorSource: Send + Sync {
    /// The model's metadata.
    fn metadata(&self) -> &Metadata<'_>;

    /// Notes for the user.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Paths of the weight files.
    fn paths(&self) -> Vec<&Path>;

    /// Path of the file with a tensor, or with the first part of it.
    fn path(&self, tensor: usize) -> &Path;

    /// The bytes of some rows, counted over all matrices of the tensor: a slice of the mapped file
    /// where it has the wanted form, otherwise made in `buffer` on the threads of the current pool.
    ///
    /// # Errors
    /// A file that has become shorter, weights that cannot be converted.
    fn read<'b>(
        &'b self,
        tensor: usize,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]>;

    /// Hints to the system that a tensor will be needed soon.
    fn prefetch(&self, _tensor: usize) {}

    /// Hints to the system that rows will not be needed again soon.
    fn release(&self, tensor: usize, rows: Range<u64>);
}

/// A checked model, ready to be read.
pub struct TensorReader<'a> {
    /// Every tensor, in the order of the files.
    pub tensors: Vec<Tensor<'a>>,
    source: Box<dyn TensorSource + 'a>,
}

impl<'a> TensorReader<'a> {
    /// Reader of `tensors` of `source`, each at its index.
    pub fn new(source: impl TensorSource + 'a, tensors: Vec<Tensor<'a>>) -> TensorReader<'a> {
        TensorReader {
            tensors,
            source: Box::new(source),
        }
    }

    /// The model's metadata.
    pub fn metadata(&self) -> &Metadata<'_> {
        self.source.metadata()
    }

    /// Notes for the user.
    pub fn notes(&self) -> &[String] {
        self.source.notes()
    }

    /// Paths of the weight files.
    pub fn paths(&self) -> Vec<&Path> {
        self.source.paths()
    }

    /// Path of the file with a tensor, or with the first part of it.
    pub fn path_of(&self, tensor: &Tensor<'_>) -> &Path {
        self.source.path(tensor.index)
    }

    /// The bytes of some rows, counted over all matrices of the tensor: a slice of the mapped file,
    /// or made in `buffer` on the threads of the current pool.
    ///
    /// # Errors
    /// A file that has become shorter, weights that cannot be converted.
    pub fn read<'b>(
        &'b self,
        tensor: &Tensor<'_>,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        self.source.read(tensor.index, rows, buffer)
    }

    /// The same rows as weights.
    ///
    /// # Errors
    /// As [`TensorReader::read`], and a tensor of integers.
    pub fn band<'b>(
        &'b self,
        tensor: &Tensor<'_>,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Band<'b>> {
        let first = rows.start;
        let bytes = self.read(tensor, rows, buffer)?;
        Band::new(tensor, first, bytes).ok_or_else(|| Error::Bad {
            path: self.path_of(tensor).to_owned(),
            what: format!(
                "tensor '{}' is of type {}, which holds no weights",
                tensor.info.name, tensor.info.ggml_type
            ),
        })
    }

    /// Widens rows into `out`, `[rows, row_len]`, band by band on the threads of the current pool,
    /// and releases their pages.
    ///
    /// # Errors
    /// As [`TensorReader::band`].
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn widen(&self, tensor: &Tensor<'_>, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.widen_with(tensor, rows, out, |band, out| {
            let rows = tensor.task_rows();
            band.par_chunks(rows)
                .zip(out.par_chunks_mut(rows * band.row_len))
                .for_each(|(rows, out)| rows.widen(out));
            self.release(tensor, band.rows());
        })
    }

    /// The same on the calling thread, without releasing pages: for tables read row by row,
    /// repeatedly.
    ///
    /// # Errors
    /// As [`TensorReader::band`].
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn widen_here(&self, tensor: &Tensor<'_>, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.widen_with(tensor, rows, out, |band, out| band.widen(out))
    }

    fn widen_with(
        &self,
        tensor: &Tensor<'_>,
        rows: Range<u64>,
        out: &mut [f32],
        widen: impl Fn(Band<'_>, &mut [f32]),
    ) -> Result<()> {
        let row_len = tensor.info.shape.row_len() as usize;
        assert_eq!(
            out.len() as u64,
            (rows.end - rows.start) * row_len as u64,
            "room for {rows:?}"
        );
        let (mut buffer, mut left) = (Vec::new(), out);
        for rows in tensor.bands(rows) {
            let out = left
                .split_off_mut(..(rows.end - rows.start) as usize * row_len)
                .expect("bands make up the rows");
            widen(self.band(tensor, rows, &mut buffer)?, out);
        }
        Ok(())
    }

    /// Hints to the system that a tensor will be needed soon.
    pub fn prefetch(&self, tensor: &Tensor<'_>) {
        self.source.prefetch(tensor.index);
    }

    /// Hints to the system that rows will not be needed again soon.
    pub fn release(&self, tensor: &Tensor<'_>, rows: Range<u64>) {
        self.source.release(tensor.index, rows);
    }
}

/// Consecutive rows of a tensor that holds weights, as stored.
#[derive(Clone, Copy)]
pub struct Band<'b> {
    codec: &'static Codec,
    first: u64,
    row_len: usize,
    row_bytes: usize,
    bytes: &'b [u8],
}

impl<'b> Band<'b> {
    /// Rows from `first` on, counted over all matrices; `None` for a tensor of integers.
    pub fn new(tensor: &Tensor<'_>, first: u64, bytes: &'b [u8]) -> Option<Band<'b>> {
        Some(Band {
            codec: Codec::of(tensor.info.ggml_type)?,
            first,
            row_len: tensor.info.shape.row_len() as usize,
            row_bytes: tensor.row_bytes(),
            bytes,
        })
    }

    /// Type of its blocks.
    pub fn ggml_type(&self) -> GgmlType {
        self.codec.ggml_type
    }

    /// Row range, counted over all matrices of the tensor.
    pub fn rows(&self) -> Range<u64> {
        self.first..self.first + self.len() as u64
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// True if it has no rows.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Weights per row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Writes its weights to `out`, `[rows, row_len]`.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len() * self.row_len, "room for its weights");
        self.codec.dequantize_row(self.bytes, out);
    }

    /// The first row with an invalid (non-finite) block, and the fault.
    pub fn first_fault(&self) -> Option<(u64, Fault)> {
        first_fault(self.codec, self.row_len, self.first, self.bytes)
    }

    /// Its rows in groups of the given size, in parallel.
    pub fn par_chunks(
        &self,
        rows: usize,
    ) -> impl IndexedParallelIterator<Item = Band<'b>> + use<'b> {
        let band = *self;
        band.bytes
            .par_chunks(rows * band.row_bytes)
            .enumerate()
            .map(move |(at, bytes)| Band {
                first: band.first + (at * rows) as u64,
                bytes,
                ..band
            })
    }
}

/// The first row with an invalid (non-finite) block, counted from `first`, and the fault.
pub fn first_fault(
    codec: &Codec,
    row_len: usize,
    first: u64,
    blocks: &[u8],
) -> Option<(u64, Fault)> {
    let (block, fault) = codec.first_fault(blocks)?;
    let blocks_per_row = row_len / codec.ggml_type.block_len();
    Some((first + (block / blocks_per_row) as u64, fault))
}

impl From<Model> for TensorReader<'static> {
    fn from(model: Model) -> TensorReader<'static> {
        let tensors = model.tensors.iter().enumerate();
        let tensors = tensors
            .map(|(index, tensor)| Tensor {
                info: tensor.info.clone(),
                shard: tensor.shard,
                offset: tensor.offset,
                index,
            })
            .collect();
        TensorReader::new(model, tensors)
    }
}

impl TensorSource for Model {
    fn metadata(&self) -> &Metadata<'_> {
        Model::metadata(self)
    }

    fn paths(&self) -> Vec<&Path> {
        self.files.paths()
    }

    fn path(&self, tensor: usize) -> &Path {
        self.files.maps()[self.tensors[tensor].shard].path()
    }

    fn read<'b>(
        &'b self,
        tensor: usize,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        let tensor = &self.tensors[tensor];
        tensor.read(bytes_of(&tensor.info, rows), buffer)
    }

    fn prefetch(&self, tensor: usize) {
        let tensor = &self.tensors[tensor];
        let start = tensor.offset as usize;
        self.files.maps()[tensor.shard].prefetch(start..start + tensor.data().len());
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        let tensor = &self.tensors[tensor];
        let bytes = bytes_of(&tensor.info, rows);
        let start = tensor.offset as usize;
        self.files.maps()[tensor.shard].release(start + bytes.start..start + bytes.end);
    }
}

/// Byte range of rows in a tensor's data.
fn bytes_of(info: &TensorInfo<'_>, rows: Range<u64>) -> Range<usize> {
    let row_bytes = (info.bytes() / info.shape.rows()) as usize;
    rows.start as usize * row_bytes..rows.end as usize * row_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Files, Layout, Shape, Writer};

    const ROW_LEN: usize = 64;

    /// A file with `w`, two matrices of rows, and `i`, integers.
    fn file(dir: &Path, rows: u64) -> std::path::PathBuf {
        let info = |name: &'static str, dims: &[u64], ggml_type| TensorInfo {
            name: name.into(),
            shape: Shape::new(dims).unwrap(),
            ggml_type,
        };
        let tensors = [
            info("w", &[ROW_LEN as u64, rows, 2], GgmlType::F32),
            info("i", &[8], GgmlType::I32),
        ];
        let path = dir.join("m.gguf");
        let layout = Layout::new(&Metadata::new(), &tensors, 32);
        let mut writer = Writer::create(&path, layout, &[]).unwrap();
        let weights: Vec<u8> = (0..2 * rows as usize * ROW_LEN)
            .flat_map(|i| (i as f32).to_le_bytes())
            .collect();
        writer.write(&weights).unwrap();
        writer.write(&[0; 32]).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn bands_cover_the_rows() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&file(dir.path(), 150)).unwrap();
        let reader = TensorReader::from(Model::parse(&files).unwrap());
        let tensor = &reader.tensors[0];
        assert_eq!((tensor.matrices(), tensor.rows_of(1)), (2, 150..300));
        for rows in [0..300, 150..300, 299..300, 7..7] {
            let len = (rows.end - rows.start) as usize * ROW_LEN;
            let first = rows.start as usize * ROW_LEN;
            let expected: Vec<f32> = (first..first + len).map(|i| i as f32).collect();
            let (mut side_by_side, mut here) = (vec![0.0; len], vec![0.0; len]);
            reader
                .widen(tensor, rows.clone(), &mut side_by_side)
                .unwrap();
            reader.widen_here(tensor, rows.clone(), &mut here).unwrap();
            assert!(side_by_side == expected && here == expected, "{rows:?}");
            let ends: Vec<_> = tensor
                .bands(rows.clone())
                .flat_map(|b| [b.start, b.end])
                .collect();
            assert_eq!(ends.is_empty(), rows.is_empty());
        }
        let mut buffer = Vec::new();
        let band = reader.band(tensor, 10..31, &mut buffer).unwrap();
        let rows: Vec<_> = band.par_chunks(8).map(|band| band.rows()).collect();
        assert_eq!(rows, [10..18, 18..26, 26..31]);
    }

    /// The error names the file and the tensor.
    #[test]
    fn integer_tensors_are_refused_as_weights() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&file(dir.path(), 1)).unwrap();
        let reader = TensorReader::from(Model::parse(&files).unwrap());
        let error = reader
            .widen(&reader.tensors[1], 0..1, &mut [0.0; 8])
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("m.gguf: tensor 'i' is of type i32, which holds no weights"),
            "{text}"
        );
    }

    #[test]
    fn faults_are_located_by_row() {
        let codec = Codec::of(GgmlType::F32).unwrap();
        let mut weights = [0.0f32; 5 * ROW_LEN];
        weights[3 * ROW_LEN + 1] = f32::NAN;
        let blocks: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        let row = first_fault(codec, ROW_LEN, 100, &blocks).map(|(row, _)| row);
        assert_eq!(row, Some(103));
    }
}
