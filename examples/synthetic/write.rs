//! Writing of the described models.

use crate::models::{Model, Tensor, Weights};
use quantier_blocks::Codec;
use quantier_core::rng::Rng;
use quantier_gguf::Result;
use quantier_gguf::gguf::{
    DEFAULT_ALIGNMENT, Files, Layout, Metadata, Model as Read, Shape, TensorInfo, Value, Writer,
    keys, shard_path,
};
use quantier_gguf::imatrix::{Entry, Imatrix};
use quantier_gguf::types::GgmlType;
use std::path::Path;

/// Every such channel has no activations.
const DEAD_CHANNEL: usize = 17;
/// Ratio of outliers to weights, and their factor.
const OUTLIER: (u64, f32) = (300, 12.0);

/// Writes a model and its importance matrices.
pub fn model(model: &Model, dir: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let prefix = dir.join(model.name);
    let with_suffix = |suffix: &str| dir.join(format!("{}{suffix}", model.name));
    if model.shards.is_empty() {
        file(
            model,
            &with_suffix(".gguf"),
            &model.metadata,
            &model.tensors,
        )?;
    } else {
        shards(model, &prefix)?;
    }
    if model.version != 3 {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options()
            .write(true)
            .open(with_suffix(".gguf"))?;
        // The version follows the four bytes of the magic.
        file.write_all_at(&model.version.to_le_bytes(), 4)?;
    }
    let mut matrices: Vec<(&str, &[u64])> =
        model.tensors.iter().map(|t| (&*t.name, &*t.dims)).collect();
    matrices.retain(|(name, _)| Some(*name) != model.without_statistics);
    let mut imatrix = imatrix(model.name, &matrices);
    if let Some(values) = model.embedding_statistics {
        imatrix.entries.insert(
            "token_embd.weight".into(),
            entry(&mut Rng::new(values), values as usize, 1),
        );
    }
    imatrix.write_gguf(&with_suffix(".imatrix.gguf"))?;
    Ok(imatrix.write_dat(&with_suffix(".imatrix.dat"))?)
}

/// Writes synthetic importance matrices for the tensors of a model: `PREFIX.gguf` and `PREFIX.dat`.
pub fn imatrix_for_file(path: &Path, prefix: &str) -> Result<()> {
    let files = Files::open(path)?;
    let model = Read::parse(&files)?;
    let matrices: Vec<(&str, &[u64])> = model
        .tensors
        .iter()
        .map(|t| (&*t.info.name, t.info.shape.dims()))
        .collect();
    let imatrix = imatrix("file", &matrices);
    imatrix.write_gguf(Path::new(&format!("{prefix}.gguf")))?;
    imatrix.write_dat(Path::new(&format!("{prefix}.dat")))
}

fn shards(model: &Model, prefix: &Path) -> Result<()> {
    let count = model.shards.len();
    let mut rest = &model.tensors[..];
    for (no, size) in model.shards.iter().enumerate() {
        let (here, later) = rest.split_at(*size);
        rest = later;
        let mut metadata = if no == 0 {
            model.metadata.clone()
        } else {
            Metadata::new()
        };
        metadata.set(keys::SPLIT_NO, Value::U16(no as u16));
        metadata.set(keys::SPLIT_COUNT, Value::U16(count as u16));
        metadata.set(keys::SPLIT_TENSORS, Value::I32(model.tensors.len() as i32));
        file(
            model,
            &shard_path(prefix, no as u64, count as u64),
            &metadata,
            here,
        )?;
    }
    Ok(())
}

fn file(model: &Model, path: &Path, metadata: &Metadata<'_>, tensors: &[Tensor]) -> Result<()> {
    let info = |t: &Tensor| TensorInfo {
        name: t.name.clone().into(),
        shape: shape(&t.dims),
        ggml_type: t.ggml_type,
    };
    let infos: Vec<_> = tensors.iter().map(info).collect();
    let mut writer = Writer::create(path, Layout::new(metadata, &infos, DEFAULT_ALIGNMENT), &[])?;
    let last_matrix = tensors.iter().rposition(|t| t.dims.len() > 1);
    for (i, tensor) in tensors.iter().enumerate() {
        let bad = Some(i) == last_matrix;
        writer.write(&data(
            tensor,
            if bad { model.weights } else { Weights::Trained },
            model.name,
        ))?;
    }
    writer.finish()
}

fn shape(dims: &[u64]) -> Shape {
    Shape::new(dims).expect("one to four dimensions, none of them zero")
}

fn data(tensor: &Tensor, weights: Weights, model: &str) -> Vec<u8> {
    let mut rng = Rng::new(seed(model, &tensor.name));
    let shape = shape(&tensor.dims);
    let row_len = shape.row_len() as usize;
    let Some(codec) = Codec::of(tensor.ggml_type) else {
        assert_eq!(tensor.ggml_type, GgmlType::I32, "a type without a codec");
        return (0..shape.elements())
            .flat_map(|_| (rng.next_u64() as i32).to_le_bytes())
            .collect();
    };
    let columns: Vec<f32> = (0..row_len)
        .map(|_| 0.02 * (0.25 + rng.uniform()))
        .collect();
    let mut rows = Vec::with_capacity(shape.rows() as usize);
    for _ in 0..shape.rows() {
        let one = |scale: &f32| {
            let outlier = if rng.below(OUTLIER.0) == 0 {
                OUTLIER.1
            } else {
                1.0
            };
            rng.gaussian() * scale * outlier
        };
        rows.push(columns.iter().map(one).collect::<Vec<f32>>());
    }
    let last = rows
        .last_mut()
        .and_then(|row| row.last_mut())
        .expect("no dimension is zero");
    match weights {
        Weights::Trained => {}
        Weights::OneNaN => *last = f32::NAN,
        Weights::Huge => *last = 1e30,
    }
    let row_bytes = tensor
        .ggml_type
        .row_bytes(row_len as u64)
        .expect("rows of whole blocks") as usize;
    let mut bytes = vec![0; rows.len() * row_bytes];
    for (row, out) in rows.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
        codec.quantize_row(row, None, out);
    }
    bytes
}

/// Statistics for every matrix with activations. In a tensor of several matrices, the second has
/// none.
fn imatrix(seed_name: &str, tensors: &[(&str, &[u64])]) -> Imatrix {
    let mut imatrix = Imatrix {
        datasets: vec!["calibration.txt".into(), "more.txt".into()],
        chunk_count: 7,
        chunk_size: 512,
        ..Imatrix::default()
    };
    for (name, dims) in tensors {
        let four = shape(dims).four();
        let is_embedding = name.contains("_embd") || name.contains("_norm");
        if shape(dims).trimmed().dims().len() < 2 || is_embedding {
            continue;
        }
        let mut rng = Rng::new(seed(seed_name, name) ^ 1);
        imatrix.entries.insert(
            (*name).to_owned(),
            entry(&mut rng, four[0] as usize, four[2] as usize),
        );
    }
    imatrix
}

fn entry(rng: &mut Rng, channels: usize, matrices: usize) -> Entry {
    let counts: Vec<i64> = (0..matrices)
        .map(|m| {
            if m == 1 {
                0
            } else {
                200 + rng.below(3000) as i64
            }
        })
        .collect();
    let mut sums = Vec::with_capacity(channels * matrices);
    for count in &counts {
        for channel in 0..channels {
            let x = rng.gaussian() * if rng.below(50) == 0 { 20.0 } else { 1.0 };
            let dead = channel % DEAD_CHANNEL == DEAD_CHANNEL - 1;
            sums.push(if dead { 0.0 } else { x * x * *count as f32 });
        }
    }
    Entry { sums, counts }
}

/// A seed from two names (64-bit FNV-1a).
fn seed(model: &str, tensor: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    model
        .bytes()
        .chain([0])
        .chain(tensor.bytes())
        .fold(OFFSET, |hash, b| (hash ^ u64::from(b)).wrapping_mul(PRIME))
}
