//! Files of our writer, read by an independent reader: the crate gguf-rs.
//!
//! Its limitations, which these tests avoid: it loses value types and the order of keys. It
//! supports types up to MXFP4. It treats all types above 9 as having 256 weights per block, so its
//! sizes of plain numbers, IQ4_NL and MXFP4 are wrong; its Q8_1 is that before ggml's change. It
//! accepts alignments from 8 on, and no arrays of arrays.
#![cfg(test)]

#[path = "../../crates/gguf/tests/gguf/files.rs"]
#[allow(dead_code)]
mod gguf;

use gguf::{Tiny, everything};
use quantier_gguf::gguf::{Layout, Value, Writer, parse};
use quantier_gguf::types::GgmlType;

const MXFP4: u32 = 39;

fn knows(t: GgmlType) -> bool {
    t.id() <= MXFP4
}

fn knows_size_of(t: GgmlType) -> bool {
    t.id() <= GgmlType::Q8_0.id() || (t.block_len() == 256 && knows(t))
}

/// Writes a file with our writer, reads it with both readers, and compares.
fn both_agree(file: &Tiny) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let infos: Vec<_> = file.tensors.iter().map(|(info, _)| info.clone()).collect();
    let alignment = file
        .metadata
        .get("general.alignment")
        .and_then(Value::as_u64)
        .unwrap_or(32);
    let mut writer =
        Writer::create(&path, Layout::new(&file.metadata, &infos, alignment), &[]).unwrap();
    file.tensors
        .iter()
        .for_each(|(_, data)| writer.write(data).unwrap());
    writer.finish().unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let ours = parse(&bytes).unwrap();
    let theirs = gguf_rs::get_gguf_container(path.to_str().unwrap())
        .unwrap()
        .decode()
        .unwrap();
    assert_eq!(theirs.get_version(), "v3");
    assert_eq!(
        (theirs.alignment(), theirs.data_offset()),
        (ours.alignment, ours.data_start)
    );

    assert_eq!(theirs.num_kv(), ours.metadata.len() as u64);
    for (key, value) in ours.metadata.iter() {
        same(
            key,
            value,
            theirs
                .metadata()
                .get(key)
                .unwrap_or_else(|| panic!("they do not see {key}")),
        );
    }
    assert_eq!(theirs.tensors().len(), ours.tensors.len());
    for ((info, offset), seen) in ours.tensors.iter().zip(theirs.tensors()) {
        assert_eq!(seen.name, info.name);
        assert_eq!(seen.kind, info.ggml_type.id(), "{}", info.name);
        assert_eq!(seen.shape, info.shape.dims(), "{}", info.name);
        assert_eq!(seen.offset + theirs.data_offset(), *offset, "{}", info.name);
        if knows_size_of(info.ggml_type) {
            assert_eq!(seen.size, info.bytes(), "{}", info.name);
        }
    }
}

fn same(key: &str, ours: &Value<'_>, theirs: &serde_json::Value) {
    let as_f32 = || theirs.as_f64().map(|v| v as f32);
    match ours {
        Value::String(_) => assert_eq!(theirs.as_str(), ours.as_str(), "{key}"),
        Value::Bool(v) => assert_eq!(theirs.as_bool(), Some(*v), "{key}"),
        // It has no JSON number for NaN.
        Value::F32(v) if v.is_nan() => assert!(theirs.is_null(), "{key}"),
        Value::F32(v) => assert_eq!(as_f32(), Some(*v), "{key}"),
        Value::F64(v) => assert_eq!(theirs.as_f64(), Some(*v), "{key}"),
        Value::Array(array) => {
            let theirs = theirs.as_array().unwrap();
            assert_eq!(theirs.len(), array.len(), "{key}");
            let ours = array
                .strings()
                .map(|s| Value::String(s.to_vec().into()))
                .chain(array.values());
            ours.zip(theirs)
                .for_each(|(ours, theirs)| same(key, &ours, theirs));
        }
        Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => {
            assert_eq!(
                theirs.as_i64().map(|v| v.to_string()),
                Some(ours.to_string()),
                "{key}"
            );
        }
        Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => {
            assert_eq!(theirs.as_u64(), ours.as_u64(), "{key}");
        }
    }
}

/// Every value type except arrays of arrays.
fn everything_plain() -> Tiny {
    let mut file = everything();
    file.metadata.remove("a.nested");
    file
}

#[test]
fn metadata_of_every_value_type() {
    both_agree(&everything_plain());
}

#[test]
fn supported_tensor_types() {
    // Rows of two super-blocks are whole blocks of every type; odd numbers of rows need padding.
    let file = GgmlType::all()
        .filter(|&t| knows(t))
        .fold(Tiny::default(), |file, t| {
            file.zeros(&format!("{t}.plain"), &[512, 3], t).zeros(
                &format!("{t}.experts"),
                &[512, 1, 5],
                t,
            )
        });
    assert!(file.tensors.len() > 60);
    both_agree(&file);
}

#[test]
fn supported_alignments() {
    for shift in 3..=16 {
        both_agree(&everything_plain().set("general.alignment", Value::U32(1 << shift)));
    }
}

#[test]
fn a_file_without_tensors_or_keys() {
    both_agree(&Tiny::default());
}
