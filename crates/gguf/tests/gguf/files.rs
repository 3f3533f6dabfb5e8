//! Tiny GGUF files: valid ones from the program's own writer, and arbitrary bytes.

use quantier_gguf::gguf::{
    Array, DEFAULT_ALIGNMENT, Layout, Metadata, Shape, TensorInfo, Value, ValueType, Writer,
};
use quantier_gguf::types::GgmlType;
use std::path::{Path, PathBuf};

/// Metadata and tensors with their data, in file order.
#[derive(Debug, Default)]
pub struct Tiny {
    pub metadata: Metadata<'static>,
    pub tensors: Vec<(TensorInfo<'static>, Vec<u8>)>,
}

impl Tiny {
    pub fn set(mut self, key: &'static str, value: Value<'static>) -> Tiny {
        self.metadata.set(key, value);
        self
    }

    /// Adds a tensor of zeros.
    pub fn zeros(self, name: &str, dims: &[u64], ggml_type: GgmlType) -> Tiny {
        let info = info(name, dims, ggml_type);
        let data = vec![0; info.bytes() as usize];
        self.tensor(info, data)
    }

    /// Adds an F32 tensor.
    pub fn weights(self, name: &str, dims: &[u64], weights: impl IntoIterator<Item = f32>) -> Tiny {
        let data = weights.into_iter().flat_map(f32::to_le_bytes).collect();
        self.tensor(info(name, dims, GgmlType::F32), data)
    }

    pub fn tensor(mut self, info: TensorInfo<'static>, data: Vec<u8>) -> Tiny {
        assert_eq!(info.bytes(), data.len() as u64, "{}", info.name);
        self.tensors.push((info, data));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let alignment = self
            .metadata
            .get("general.alignment")
            .and_then(Value::as_u64)
            .unwrap_or(DEFAULT_ALIGNMENT);
        let infos: Vec<_> = self.tensors.iter().map(|(info, _)| info.clone()).collect();
        let layout = Layout::new(&self.metadata, &infos, alignment);
        let mut bytes = layout.header().to_vec();
        for (_, data) in &self.tensors {
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        }
        assert_eq!(bytes.len() as u64, layout.file_bytes());
        bytes
    }

    /// Writes the same model in big-endian order.
    pub fn write_big_endian(&self, path: &Path) -> Result<(), String> {
        let infos: Vec<_> = self.tensors.iter().map(|(info, _)| info.clone()).collect();
        let layout = Layout::big_endian(&self.metadata, &infos, self.metadata.alignment())?;
        let mut writer = Writer::create(path, layout, &[]).unwrap();
        for (_, data) in &self.tensors {
            writer.write(data).unwrap();
        }
        writer.finish().unwrap();
        Ok(())
    }

    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.bytes()).unwrap();
        path.to_owned()
    }
}

pub fn info(name: &str, dims: &[u64], ggml_type: GgmlType) -> TensorInfo<'static> {
    TensorInfo {
        name: name.to_owned().into(),
        shape: Shape::new(dims).unwrap(),
        ggml_type,
    }
}

/// Every value type, an array of every kind, and tensors of several types.
pub fn everything() -> Tiny {
    let numbers = Array::of_values(ValueType::F32, [0.5, -1.0, f32::NAN].map(Value::F32));
    let inner = Array::of_values(ValueType::U16, [1, 2, 3].map(Value::U16));
    let nested = Array::of_values(
        ValueType::Array,
        [
            Value::Array(inner),
            Value::Array(Array::of_strings(["a", ""])),
        ],
    );
    Tiny::default()
        .set("general.architecture", Value::str("llama"))
        .set("a.u8", Value::U8(255))
        .set("a.i8", Value::I8(-1))
        .set("a.u16", Value::U16(65535))
        .set("a.i16", Value::I16(-2))
        .set("a.u32", Value::U32(7))
        .set("a.i32", Value::I32(-3))
        .set("a.f32", Value::F32(0.1))
        .set("a.bool", Value::Bool(true))
        .set("a.u64", Value::U64(u64::MAX))
        .set("a.i64", Value::I64(i64::MIN))
        .set("a.f64", Value::F64(-0.0))
        .set(
            "a.strings",
            Value::Array(Array::of_strings(["one", "", "three\0four"])),
        )
        .set("a.numbers", Value::Array(numbers))
        .set("a.nested", Value::Array(nested))
        .zeros("token_embd.weight", &[32, 3], GgmlType::F16)
        .zeros("blk.0.ffn_down.weight", &[256, 2], GgmlType::Q4_K)
        .zeros("blk.0.attn_norm.weight", &[5], GgmlType::F32)
}

/// One key and one tensor: small enough to be truncated at every byte.
pub fn small() -> Tiny {
    Tiny::default()
        .set("general.architecture", Value::str("llama"))
        .zeros("a.weight", &[4, 2], GgmlType::F32)
}

/// An importance matrix with a plain tensor and one of two experts.
pub fn imatrix() -> Tiny {
    Tiny::default()
        .set("general.type", Value::str("imatrix"))
        .set(
            "imatrix.datasets",
            Value::Array(Array::of_strings(["wiki.txt"])),
        )
        .set("imatrix.chunk_count", Value::U32(7))
        .set("imatrix.chunk_size", Value::U32(512))
        .weights("a.weight.in_sum2", &[8, 1], (0..8).map(|i| i as f32))
        .weights("a.weight.counts", &[1, 1], [4.0])
        .weights("b.weight.in_sum2", &[4, 2], (0..8).map(|i| i as f32 / 2.0))
        .weights("b.weight.counts", &[1, 2], [2.0, 0.0])
}

/// A `.dat` importance matrix: entries of name, calls and values, and its tail.
pub fn dat(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
    let mut bytes = int(entries.len() as i32);
    for (name, calls, values) in entries {
        bytes.extend(int(name.len() as i32));
        bytes.extend(name.as_bytes());
        bytes.extend(int(*calls));
        bytes.extend(int(values.len() as i32));
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes.extend(int(7));
    bytes.extend(int(8));
    bytes.extend(b"wiki.txt");
    bytes
}

pub fn int(v: i32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}
