//! llama-perplexity's file of log-probabilities (`--kl-divergence-base`), little-endian:
//!
//! ```text
//! "_logits_"  i32 n_ctx  i32 n_vocab  i32 n_chunk  i32 tokens[n_chunk * n_ctx]
//! n_chunk * (n_ctx - 1 - n_ctx / 2) rows: f32 scale  f32 min  u16 codes[n_vocab, rounded up to even]
//! ```
//!
//! ln p of a token is `scale * code + min`, in nats. Values more than 16 nats below the largest
//! have code 0.

use super::map::Map;
use super::output::Output;
use super::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use std::path::Path;

const MAGIC: &[u8; 8] = b"_logits_";
const HEADER: u64 = 20;
/// Size of `scale` and `min` in bytes.
const ROW_HEADER: usize = 8;
/// Upper bound of a log-probability; rounding can lift one above 0.
const ABOVE_ZERO: f32 = 1e-3;
/// Range below the largest log-probability, in nats; lower ones are cut off.
const RANGE: f32 = 16.0;
/// Largest code.
const CODES: f32 = 65_535.0;

/// Dimensions of a file, in tokens and chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens per chunk, at least 3.
    pub n_ctx: u32,
    /// Vocabulary size in tokens, at least 1.
    pub n_vocab: u32,
    /// Number of chunks, at least 1.
    pub n_chunk: u32,
}

impl Shape {
    /// Rows per chunk: one per scored position.
    pub fn rows(&self) -> usize {
        (self.n_ctx - self.n_ctx / 2).saturating_sub(1) as usize
    }

    /// Size of a row in bytes.
    pub fn row_bytes(&self) -> usize {
        ROW_HEADER + 2 * (self.n_vocab as usize).next_multiple_of(2)
    }

    fn tokens(&self) -> u64 {
        u64::from(self.n_ctx) * u64::from(self.n_chunk)
    }

    /// Size of the file in bytes, or an error about the dimensions.
    fn file_bytes(&self) -> std::result::Result<u64, String> {
        let fits = |n: u32, least: u32| (least..=i32::MAX as u32).contains(&n);
        let Shape {
            n_ctx,
            n_vocab,
            n_chunk,
        } = *self;
        if !(fits(n_ctx, 3) && fits(n_vocab, 1) && fits(n_chunk, 1)) {
            return Err(format!(
                "its header (byte 8) gives n_ctx {n_ctx}, n_vocab {n_vocab}, n_chunk {n_chunk}; make it again"
            ));
        }
        let rows = (self.rows() as u64).checked_mul(n_chunk.into());
        let rows = rows.and_then(|rows| rows.checked_mul(self.row_bytes() as u64));
        rows.and_then(|rows| rows.checked_add(HEADER + 4 * self.tokens()))
            .ok_or("its dimensions overflow".into())
    }
}

/// A file of log-probabilities, mapped and checked.
pub struct Logits {
    map: Map,
    shape: Shape,
    tokens: Vec<u32>,
}

impl Logits {
    /// Opens a file. Dimensions and tokens are checked here, each row when it is read.
    ///
    /// # Errors
    /// A file that cannot be read, is no logits file, or was cut short.
    pub fn open(path: &Path) -> Result<Logits> {
        let map = Map::open(path)?;
        match parse(map.bytes()) {
            Ok((shape, tokens)) => Ok(Logits { map, shape, tokens }),
            Err(what) => Err(Error::Bad {
                path: path.to_owned(),
                what,
            }),
        }
    }

    /// Dimensions of the file.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The text, `[n_chunk * n_ctx]` tokens, without the BOS that replaces the first token of each
    /// chunk.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Decodes a row into `[n_vocab]` log-probabilities, in nats.
    ///
    /// # Errors
    /// A file that has become shorter, and a row of invalid log-probabilities.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn row(&self, chunk: usize, row: usize, out: &mut [f32]) -> Result<()> {
        assert!(chunk < self.shape.n_chunk as usize && row < self.shape.rows());
        assert_eq!(out.len(), self.shape.n_vocab as usize);
        self.map.check_length()?;
        let start = HEADER as usize + 4 * self.tokens.len();
        let at = start + (chunk * self.shape.rows() + row) * self.shape.row_bytes();
        decode(&self.map.bytes()[at..][..self.shape.row_bytes()], out).map_err(|what| Error::Bad {
            path: self.map.path().to_owned(),
            what: format!("row {row} of chunk {chunk} (byte {at}) {what}; make the file again from a sound model"),
        })
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<(Shape, Vec<u32>), String> {
    if bytes.get(..8) != Some(MAGIC) {
        return Err("it does not begin with '_logits_'; llama-perplexity --kl-divergence-base makes such a file".into());
    }
    let header = bytes
        .get(8..HEADER as usize)
        .ok_or("it ends within its header; make it again")?;
    let number = |i: usize| LittleEndian::read_u32(&header[i..]);
    let shape = Shape {
        n_ctx: number(0),
        n_vocab: number(4),
        n_chunk: number(8),
    };
    let want = shape.file_bytes()?;
    if bytes.len() as u64 != want {
        return Err(format!(
            "it has {} bytes and its header requires {want}; the run that made it was cut short or the file was damaged: make it again",
            bytes.len()
        ));
    }
    let mut tokens = vec![0; shape.tokens() as usize];
    let stored = &bytes[HEADER as usize..][..4 * tokens.len()];
    LittleEndian::read_u32_into(stored, &mut tokens);
    match tokens.iter().position(|&token| token >= shape.n_vocab) {
        Some(i) => Err(format!(
            "token {i} (byte {}) is {}, outside its vocabulary of {}; make the file again",
            HEADER as usize + 4 * i,
            tokens[i] as i32,
            shape.n_vocab
        )),
        None => Ok((shape, tokens)),
    }
}

fn decode(row: &[u8], out: &mut [f32]) -> std::result::Result<(), String> {
    let (scale, min) = (
        LittleEndian::read_f32(row),
        LittleEndian::read_f32(&row[4..]),
    );
    let max = scale * CODES + min;
    if !(scale >= 0.0 && min.is_finite() && max <= ABOVE_ZERO) {
        return Err(format!(
            "has scale {scale} and minimum {min}, which is invalid for log-probabilities"
        ));
    }
    for (out, code) in out.iter_mut().zip(row[ROW_HEADER..].as_chunks::<2>().0) {
        *out = scale * f32::from(LittleEndian::read_u16(code)) + min;
    }
    Ok(())
}

/// Encodes a row, `[n_vocab]` finite logits whose log-sum-exp is `log_z`, into `[row_bytes]` bytes.
///
/// # Panics
///
/// If `out` is shorter than the row's bytes.
pub fn encode(logits: &[f32], log_z: f64, out: &mut [u8]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = logits
        .iter()
        .copied()
        .fold(f32::INFINITY, f32::min)
        .max(max - RANGE);
    let scale = (max - min) / CODES;
    LittleEndian::write_f32(&mut out[..4], scale);
    LittleEndian::write_f32(&mut out[4..8], min - max - (log_z - f64::from(max)) as f32);
    out[8..].fill(0);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even, and leaves it in the low
    // bits.
    let code = |x: f32| (inverse * (x - min).max(0.0) + 12_582_912.0).to_bits() as u16;
    let codes = out[ROW_HEADER..].as_chunks_mut::<2>().0;
    for (out, &x) in codes.iter_mut().zip(logits) {
        LittleEndian::write_u16(out, code(x));
    }
}

/// Writes a file, which gets its name when [`Writer::finish`] succeeds.
pub struct Writer {
    output: Output,
    path: std::path::PathBuf,
    left: u64,
    row_bytes: usize,
}

impl Writer {
    /// Starts a file with `[n_chunk * n_ctx]` tokens.
    ///
    /// # Errors
    /// Invalid dimensions, tokens that do not match them, a target among the `inputs`, and I/O
    /// errors.
    pub fn create(path: &Path, shape: Shape, tokens: &[u32], inputs: &[&Path]) -> Result<Writer> {
        let bad = |what| Error::Bad {
            path: path.to_owned(),
            what,
        };
        let bytes = shape.file_bytes().map_err(bad)?;
        if tokens.len() as u64 != shape.tokens()
            || tokens.iter().any(|&token| token >= shape.n_vocab)
        {
            return Err(bad("its number of tokens contradicts its dimensions".into()));
        }
        let mut output = Output::create(path, bytes, inputs)?;
        let sizes = [shape.n_ctx, shape.n_vocab, shape.n_chunk];
        let mut header = vec![0; HEADER as usize + 4 * tokens.len()];
        header[..8].copy_from_slice(MAGIC);
        LittleEndian::write_u32_into(&sizes, &mut header[8..HEADER as usize]);
        LittleEndian::write_u32_into(tokens, &mut header[HEADER as usize..]);
        output.write(&header)?;
        Ok(Writer {
            output,
            path: path.to_owned(),
            left: bytes - HEADER - 4 * shape.tokens(),
            row_bytes: shape.row_bytes(),
        })
    }

    /// Bytes of an encoded row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Appends encoded rows, in order.
    ///
    /// # Errors
    /// More rows than the dimensions allow, and I/O errors.
    pub fn write(&mut self, rows: &[u8]) -> Result<()> {
        self.left = self
            .left
            .checked_sub(rows.len() as u64)
            .ok_or_else(|| Error::Bad {
                path: self.path.clone(),
                what: "more rows were written than its dimensions allow".into(),
            })?;
        self.output.write(rows)
    }

    /// Renames the file to its target.
    ///
    /// # Errors
    /// Missing rows, and I/O errors.
    pub fn finish(self) -> Result<()> {
        match self.left {
            0 => self.output.finish(),
            left => Err(Error::Bad {
                path: self.path,
                what: format!("{left} bytes of rows were never written"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip_and_truncations_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.kld");
        let shape = Shape {
            n_ctx: 5,
            n_vocab: 3,
            n_chunk: 1,
        };
        let logits = [1.0_f32, 0.0, -30.0];
        let log_z = (1_f64.exp() + 1.0).ln();
        let mut row = vec![9; shape.row_bytes()];
        encode(&logits, log_z, &mut row);
        let mut writer = Writer::create(&path, shape, &[0, 1, 2, 1, 0], &[]).unwrap();
        writer.write(&row).unwrap();
        writer.write(&row).unwrap();
        assert!(writer.write(&row).is_err());
        writer.finish().unwrap();
        let file = Logits::open(&path).unwrap();
        assert_eq!((file.shape(), file.tokens()), (shape, &[0, 1, 2, 1, 0][..]));
        let mut out = [0.0; 3];
        file.row(0, 1, &mut out).unwrap();
        for (out, want) in out.iter().zip([1.0 - log_z, -log_z, 1.0 - 16.0 - log_z]) {
            assert!(
                (f64::from(*out) - want).abs() < 16.0 / 65535.0,
                "{out} {want}"
            );
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 20 + 20 + 2 * 16);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err());
        }
        let mut bad = bytes.clone();
        bad[20] = 3;
        assert!(parse(&bad).unwrap_err().contains("token 0 (byte 20) is 3"));
        bad[8..20].fill(0xff);
        assert!(parse(&bad).is_err());
        LittleEndian::write_f32(&mut row, f32::NAN);
        assert!(decode(&row, &mut out).is_err());
    }
}
