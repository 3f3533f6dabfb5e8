//! Models of any size, for measurements of time and memory. Written in pieces, with a few megabytes
//! of memory.

use quantier_blocks::Codec;
use quantier_core::rng::Rng;
use quantier_gguf::Result;
use quantier_gguf::gguf::{
    DEFAULT_ALIGNMENT, Layout, Metadata, Shape, TensorInfo, Value, Writer, keys,
};
use quantier_gguf::types::GgmlType;
use std::path::Path;

/// Size of the pool of random numbers; every row is a slice at a different offset.
const POOL: usize = 1 << 20;
/// Widths, each with the minimum model size for it.
const WIDTHS: [(u64, u64); 3] = [(4096, 8 << 30), (2048, 1 << 30), (1024, 0)];
const VOCABULARY: u64 = 8192;
/// Number of query heads, and of key-value heads.
const HEADS: (u32, u32) = (16, 4);

/// Writes a llama of about `bytes` bytes.
pub fn write(bytes: u64, path: &Path, ggml_type: GgmlType) -> Result<()> {
    let width = WIDTHS
        .iter()
        .find(|(_, from)| bytes >= *from)
        .map_or(1024, |(width, _)| *width);
    let per_layer: u64 = layer(0, width)
        .iter()
        .map(|(_, dims)| dims[0] * dims[1] * 2)
        .sum();
    let layers = (bytes.saturating_sub(4 * VOCABULARY * width) / per_layer).max(1) as u32;

    let mut tensors = vec![("token_embd.weight".to_owned(), [width, VOCABULARY])];
    tensors.extend((0..layers).flat_map(|number| layer(number, width)));
    tensors.push(("output.weight".to_owned(), [width, VOCABULARY]));
    let info = |(name, dims): &(String, [u64; 2])| TensorInfo {
        name: name.clone().into(),
        shape: Shape::new(dims).expect("two dimensions"),
        ggml_type,
    };
    let infos: Vec<_> = tensors.iter().map(info).collect();
    let layout = Layout::new(
        &metadata(layers, width, ggml_type),
        &infos,
        DEFAULT_ALIGNMENT,
    );
    println!(
        "{}: {layers} layers of {width}, {} bytes",
        path.display(),
        layout.file_bytes()
    );

    let codec = Codec::of(ggml_type).expect("a type of weights");
    let mut rng = Rng::new(bytes);
    let pool: Vec<f32> = (0..POOL).map(|_| 0.02 * rng.gaussian()).collect();
    let mut writer = Writer::create(path, layout, &[])?;
    for (_, [row_len, rows]) in &tensors {
        let columns: Vec<f32> = (0..*row_len).map(|_| 0.25 + rng.uniform()).collect();
        let mut row = vec![0.0; columns.len()];
        let mut out = vec![0; 2 * columns.len()];
        for _ in 0..*rows {
            let start = rng.below((POOL - columns.len()) as u64) as usize;
            row.iter_mut()
                .zip(&pool[start..])
                .zip(&columns)
                .for_each(|((w, x), scale)| *w = x * scale);
            codec.quantize_row(&row, None, &mut out);
            writer.write(&out)?;
        }
    }
    writer.finish()
}

fn layer(number: u32, width: u64) -> Vec<(String, [u64; 2])> {
    let (kv, wide) = (width / 4, width * 11 / 4);
    [
        ("attn_q", [width, width]),
        ("attn_k", [width, kv]),
        ("attn_v", [width, kv]),
        ("attn_output", [width, width]),
        ("ffn_gate", [width, wide]),
        ("ffn_up", [width, wide]),
        ("ffn_down", [wide, width]),
    ]
    .map(|(name, dims)| (format!("blk.{number}.{name}.weight"), dims))
    .into()
}

fn metadata(layers: u32, width: u64, ggml_type: GgmlType) -> Metadata<'static> {
    /// `general.file_type` of F16 and of BF16 models.
    const FILE_TYPES: [u32; 2] = [1, 32];
    let mut metadata = Metadata::new();
    metadata.set(keys::ARCHITECTURE, Value::str("llama"));
    metadata.set(
        keys::FILE_TYPE,
        Value::U32(FILE_TYPES[usize::from(ggml_type == GgmlType::BF16)]),
    );
    metadata.set("llama.context_length", Value::U32(2048));
    metadata.set("llama.embedding_length", Value::U32(width as u32));
    metadata.set("llama.block_count", Value::U32(layers));
    metadata.set(
        "llama.feed_forward_length",
        Value::U32(width as u32 * 11 / 4),
    );
    metadata.set("llama.attention.head_count", Value::U32(HEADS.0));
    metadata.set("llama.attention.head_count_kv", Value::U32(HEADS.1));
    metadata.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    metadata
}
