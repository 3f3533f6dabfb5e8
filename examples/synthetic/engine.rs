//! Runnable models: a llama of random weights with the tokenizer of `testdata/refmodel`, whose
//! vocabulary is padded with unused tokens. For measurements of the engine beside the reference.

use quantier_blocks::Codec;
use quantier_core::rng::Rng;
use quantier_gguf::Result;
use quantier_gguf::gguf::{
    Array, DEFAULT_ALIGNMENT, Files, Layout, Metadata, Model, Shape, TensorInfo, Value, ValueType,
    Writer, keys,
};
use quantier_gguf::types::GgmlType;
use std::path::Path;

/// Dimensions of a model.
#[derive(Clone, Copy)]
pub struct Size {
    /// Name on the command line.
    pub name: &'static str,
    layers: u32,
    width: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    vocabulary: u64,
    /// True if the embedding is the output matrix too.
    tied: bool,
}

/// Half a billion weights with the vocabulary of Llama 3; the shape of Llama 3.2 1B; Llama 2's and
/// Llama 3's shapes with fewer layers; a tiny one.
pub const SIZES: [Size; 5] = [
    Size {
        name: "0.5b",
        layers: 24,
        width: 1024,
        ffn: 4096,
        heads: 16,
        kv_heads: 4,
        vocabulary: 128_256,
        tied: true,
    },
    Size {
        name: "1b",
        layers: 16,
        width: 2048,
        ffn: 8192,
        heads: 32,
        kv_heads: 8,
        vocabulary: 128_256,
        tied: true,
    },
    Size {
        name: "2.5b",
        layers: 11,
        width: 4096,
        ffn: 11_008,
        heads: 32,
        kv_heads: 32,
        vocabulary: 32_000,
        tied: false,
    },
    Size {
        name: "5b",
        layers: 18,
        width: 4096,
        ffn: 14_336,
        heads: 32,
        kv_heads: 8,
        vocabulary: 128_256,
        tied: false,
    },
    Size {
        name: "tiny",
        layers: 2,
        width: 256,
        ffn: 512,
        heads: 4,
        kv_heads: 2,
        vocabulary: 5000,
        tied: false,
    },
];

/// Size of the pool of random numbers; every row is a slice at a different offset.
const POOL: usize = 1 << 20;
/// `tokenizer.ggml.token_type` of an unused token.
const UNUSED: i32 = 5;

/// Writes a model in F16, with the tokenizer of the model `like`.
pub fn write(size: &Size, like: &Path, path: &Path) -> Result<()> {
    let files = Files::open(like)?;
    let model = Model::parse(&files)?;
    let metadata = metadata(size, model.metadata());
    let mut tensors = vec![matrix("token_embd", [size.width, size.vocabulary])];
    (0..size.layers).for_each(|number| tensors.extend(layer(number, size)));
    tensors.push(("output_norm.weight".to_owned(), vec![size.width]));
    if !size.tied {
        tensors.push(matrix("output", [size.width, size.vocabulary]));
    }
    let info = |(name, dims): &(String, Vec<u64>)| TensorInfo {
        name: name.clone().into(),
        shape: Shape::new(dims).expect("one or two dimensions"),
        ggml_type: if dims.len() == 1 {
            GgmlType::F32
        } else {
            GgmlType::F16
        },
    };
    let infos: Vec<_> = tensors.iter().map(info).collect();
    let layout = Layout::new(&metadata, &infos, DEFAULT_ALIGNMENT);
    println!("{}: {} bytes", path.display(), layout.file_bytes());

    let codec = Codec::of(GgmlType::F16).expect("a type of weights");
    let mut rng = Rng::new(size.width);
    let pool: Vec<f32> = (0..POOL).map(|_| rng.gaussian()).collect();
    let mut writer = Writer::create(path, layout, &[])?;
    for (_, dims) in &tensors {
        let columns: Vec<f32> = (0..dims[0]).map(|_| 0.5 + rng.uniform()).collect();
        let Some(rows) = dims.get(1) else {
            columns
                .iter()
                .try_for_each(|x| writer.write(&x.to_le_bytes()))?;
            continue;
        };
        let scale = 1.0 / (dims[0] as f32).sqrt();
        let mut row = vec![0.0; columns.len()];
        let mut out = vec![0; 2 * columns.len()];
        for _ in 0..*rows {
            let start = rng.below((POOL - columns.len()) as u64) as usize;
            row.iter_mut()
                .zip(&pool[start..])
                .zip(&columns)
                .for_each(|((w, x), column)| *w = x * column * scale);
            codec.quantize_row(&row, None, &mut out);
            writer.write(&out)?;
        }
    }
    writer.finish()
}

fn matrix(name: &str, dims: [u64; 2]) -> (String, Vec<u64>) {
    (format!("{name}.weight"), dims.into())
}

fn layer(number: u32, size: &Size) -> Vec<(String, Vec<u64>)> {
    let (width, kv) = (size.width, size.width / size.heads * size.kv_heads);
    let vector = |name: &str| (format!("blk.{number}.{name}.weight"), vec![width]);
    let matrix = |name: &str, dims| matrix(&format!("blk.{number}.{name}"), dims);
    vec![
        vector("attn_norm"),
        matrix("attn_q", [width, width]),
        matrix("attn_k", [width, kv]),
        matrix("attn_v", [width, kv]),
        matrix("attn_output", [width, width]),
        vector("ffn_norm"),
        matrix("ffn_gate", [width, size.ffn]),
        matrix("ffn_up", [width, size.ffn]),
        matrix("ffn_down", [size.ffn, width]),
    ]
}

/// The tokenizer's entries, with each list padded for the added tokens.
fn metadata<'a>(size: &Size, like: &Metadata<'a>) -> Metadata<'a> {
    let mut metadata = Metadata::new();
    metadata.set(keys::ARCHITECTURE, Value::str("llama"));
    metadata.set(
        "general.name",
        Value::str(format!("Synthetic {}", size.name)),
    );
    metadata.set(keys::FILE_TYPE, Value::U32(1));
    for (key, value) in [
        ("context_length", 2048),
        ("embedding_length", size.width as u32),
        ("block_count", size.layers),
        ("feed_forward_length", size.ffn as u32),
        ("attention.head_count", size.heads as u32),
        ("attention.head_count_kv", size.kv_heads as u32),
        ("vocab_size", size.vocabulary as u32),
    ] {
        metadata.set(format!("llama.{key}"), Value::U32(value));
    }
    metadata.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let known = like
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
        .map_or(0, Array::len);
    let added = (size.vocabulary as usize).saturating_sub(known);
    for (key, value) in like.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        let value = match (key, value.as_array()) {
            ("tokenizer.ggml.tokens", Some(tokens)) => {
                let more = (0..added).map(|i| format!("<unused {i}>").into_bytes());
                Value::Array(Array::of_strings(
                    tokens.strings().map(<[u8]>::to_vec).chain(more),
                ))
            }
            ("tokenizer.ggml.scores", Some(scores)) => {
                let more = std::iter::repeat_n(Value::F32(-1e6), added);
                Value::Array(Array::of_values(
                    ValueType::F32,
                    scores.values().chain(more),
                ))
            }
            ("tokenizer.ggml.token_type", Some(types)) => {
                let more = std::iter::repeat_n(Value::I32(UNUSED), added);
                Value::Array(Array::of_values(ValueType::I32, types.values().chain(more)))
            }
            _ => value.clone(),
        };
        metadata.set(key.to_owned(), value);
    }
    metadata
}
