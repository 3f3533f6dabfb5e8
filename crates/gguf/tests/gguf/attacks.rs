//! Malicious files. Every attack must give an error that names the defect, without a panic and
//! without disproportionate memory; and everything our writer writes must read back equal.

use crate::allocation;
use crate::files::{Tiny, everything, info, small};
use crate::raw::{Raw, array, string};
use proptest::prelude::*;
use quantier_gguf::gguf::{
    Array, Endian, Files, Header, Layout, Metadata, Model, Shape, TensorInfo, Value, ValueType,
    parse,
};
use quantier_gguf::types::GgmlType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const U8: u32 = 0;
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32_TYPE: u32 = 0;
const Q4_K_TYPE: u32 = 12;

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) -> String {
    crate::refused(bytes, parts, |bytes| parse(bytes).map(|_| ()))
}

fn le(v: u64) -> [u8; 8] {
    v.to_le_bytes()
}

#[test]
fn truncation_at_every_byte() {
    for file in [small(), everything()] {
        let bytes = file.bytes();
        let data_end = parse(&bytes)
            .unwrap()
            .tensors
            .iter()
            .map(|(t, at)| at + t.bytes())
            .max()
            .unwrap() as usize;
        for len in 0..data_end {
            refused(&bytes[..len], &[]);
        }
        // Only the padding after the last tensor may be missing.
        (data_end..=bytes.len()).for_each(|len| assert!(parse(&bytes[..len]).is_ok()));
    }
}

#[test]
fn changed_bytes_never_panic() {
    let bytes = everything().bytes();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let (_, largest) = allocation::largest(|| parse(&changed).map(|_| ()));
            assert!(largest <= 4096 + 64 * bytes.len(), "byte {at}");
        }
    }
}

/// The bytes of a model in big-endian order.
fn big_endian(file: &Tiny) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    file.write_big_endian(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn truncated_and_changed_big_endian_files_never_panic() {
    let bytes = big_endian(&everything());
    let header = parse(&bytes).unwrap();
    assert_eq!((header.version, header.endian), (3, Endian::Big));
    let last = header.tensors.iter().map(|(t, at)| at + t.bytes()).max();
    for len in 0..last.unwrap() as usize {
        refused(&bytes[..len], &[]);
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let (_, largest) = allocation::largest(|| parse(&changed).map(|_| ()));
            assert!(largest <= 4096 + 64 * bytes.len(), "byte {at}");
        }
    }
}

/// Every type in one file: those with a big-endian form round-trip, the others are refused by name
/// when their data is read.
#[test]
fn tensors_of_big_endian_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut sound = 0;
    for t in GgmlType::all() {
        let info = info("a.weight", &[2 * t.block_len() as u64, 3], t);
        let data: Vec<u8> = (0..info.bytes()).map(|i| (i % 251) as u8).collect();
        let file = Tiny::default().tensor(info.clone(), data.clone());
        let mut buffer = Vec::new();
        match file.write_big_endian(&path) {
            Ok(()) => {
                let model = Model::open(&path).unwrap();
                let tensor = &model.tensors[0];
                assert_eq!(tensor.info, info);
                assert_eq!(
                    tensor.read(0..data.len(), &mut buffer).unwrap(),
                    data,
                    "{t}"
                );
                let block = t.block_bytes();
                let second = tensor.read(block..2 * block, &mut buffer).unwrap();
                assert_eq!(second, &data[block..2 * block], "{t}");
                sound += 1;
            }
            Err(what) => {
                assert!(
                    what.contains("'a.weight'") && what.contains(t.name()),
                    "{what}"
                );
                // A file of f32 that claims the type.
                let like = Tiny::default().zeros("a.weight", &[512, 600], GgmlType::F32);
                let mut bytes = big_endian(&like);
                let at = bytes.windows(8).position(|w| w == b"a.weight").unwrap();
                bytes[at + 28..at + 32].copy_from_slice(&t.id().to_be_bytes());
                std::fs::write(&path, bytes).unwrap();
                let model = Model::open(&path).unwrap();
                let error = model.tensors[0].read(0..t.block_bytes(), &mut buffer);
                let error = error.unwrap_err().to_string();
                assert!(
                    error.contains("m.gguf") && error.contains(t.name()),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(sound, 16);
}

#[test]
fn shards_of_two_byte_orders() {
    let dir = tempfile::tempdir().unwrap();
    let paths = shards(dir.path(), &[says(0, 2, 2), says(1, 2, 2)], &["a", "b"]);
    let second = Tiny::default()
        .set("split.no", Value::U16(1))
        .set("split.count", Value::U16(2))
        .set("split.tensors.count", Value::I32(2))
        .zeros("b", &[4], GgmlType::F32);
    second.write_big_endian(&paths[1]).unwrap();
    model_refused(&paths[0], &["m-00002-of-00002.gguf", "byte order"]);
}

#[test]
fn wrong_magic() {
    let with = |magic: &[u8; 4]| {
        Raw {
            magic: *magic,
            ..Raw::default()
        }
        .bytes()
    };
    refused(&with(b"lmgg"), &["before GGUF", "convert"]);
    refused(&with(b"tjgg"), &["before GGUF"]);
    refused(&with(b"FUGG"), &["byte-swapped"]);
    refused(&with(b"PK\x03\x04"), &["PK\\x03\\x04"]);
    refused(b"<!DOCTYPE html><html>404</html>", &["web page"]);
    refused(b"<html><body>Sign in</body></html>", &["web page"]);
    refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        &["Git LFS pointer"],
    );
    refused(b"", &["shorter than a GGUF header"]);
}

#[test]
fn unknown_versions() {
    let with = |version| {
        Raw {
            version,
            ..Raw::default()
        }
        .bytes()
    };
    refused(&with(0), &["version 0"]);
    refused(&with(1), &["version 1", "convert the original model"]);
    refused(&with(4), &["version 4", "newer"]);
    refused(&with(1u32.swap_bytes()), &["version 1"]);
    refused(&with(4u32.swap_bytes()), &["version 4", "newer"]);
    // Counts in another byte order than the version.
    refused(
        &Raw {
            version: 3u32.swap_bytes(),
            n_keys: Some(1),
            ..Raw::default()
        }
        .bytes(),
        &["72057594037927936 metadata keys"],
    );
    assert!(parse(&with(2)).is_ok());
}

#[test]
fn counts_beyond_the_file() {
    for n in [40, 1 << 32, 1 << 62, u64::MAX] {
        refused(
            &Raw {
                n_keys: Some(n),
                ..Raw::default()
            }
            .bytes(),
            &[&format!("{n} metadata keys")],
        );
        refused(
            &Raw {
                n_tensors: Some(n),
                ..Raw::default()
            }
            .bytes(),
            &[&format!("{n} tensors")],
        );
    }
}

#[test]
fn counts_that_fit_only_a_sparse_file_of_1_tib() {
    const TIB: u64 = 1 << 40;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.gguf");
    let claims = [
        (Some(TIB / 64), Some(0), "tensor"),
        (Some(0), Some(TIB / 32), "metadata key 0 is empty"),
    ];
    for (n_tensors, n_keys, named) in claims {
        std::fs::write(
            &path,
            Raw {
                n_tensors,
                n_keys,
                ..Raw::default()
            }
            .bytes(),
        )
        .unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(TIB)
            .unwrap();
        let files = Files::open(&path).unwrap();
        let (result, largest) = allocation::largest(|| Model::parse(&files).map(|_| ()));
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains(named) && error.contains("sparse.gguf"),
            "{error}"
        );
        assert!(largest < 16 << 20, "{largest} bytes at once");
    }
}

#[test]
fn absurd_string_lengths() {
    for len in [300, 1 << 31, 1 << 63, u64::MAX, u64::MAX - 7] {
        let error = format!("a string of {len} bytes");
        refused(
            &Raw::default().key(b"k", STRING, &le(len)).bytes(),
            &[&error, "'k'", "at byte"],
        );
        let raw = Raw {
            keys: vec![le(len).to_vec()],
            ..Raw::default()
        };
        refused(&raw.bytes(), &[&error, "metadata key 0 of 1"]);
        let raw = Raw {
            tensors: vec![[&le(len)[..], &[0; 32]].concat()],
            ..Raw::default()
        };
        refused(&raw.bytes(), &[&error, "tensor 0 of 1"]);
        refused(
            &Raw::default()
                .key(b"k", ARRAY, &array(STRING, 1, &le(len)))
                .bytes(),
            &[&error, "'k'"],
        );
    }
}

#[test]
fn absurd_array_lengths() {
    for len in [1000, 1 << 32, 1 << 61, 1 << 63, u64::MAX] {
        for (element, name) in [
            (U8, "u8"),
            (U32, "u32"),
            (STRING, "str"),
            (ARRAY, "arr"),
            (12, "f64"),
        ] {
            let bytes = Raw::default()
                .key(b"k", ARRAY, &array(element, len, &[]))
                .bytes();
            refused(&bytes, &[&format!("{len} x {name}"), "'k'"]);
        }
    }
}

#[test]
fn arrays_nested_1000_deep() {
    let nested =
        |depth: usize| (0..depth).fold(array(U8, 0, &[]), |inner, _| array(ARRAY, 1, &inner));
    refused(
        &Raw::default().key(b"deep", ARRAY, &nested(1000)).bytes(),
        &["nested", "'deep'"],
    );
    let bytes = Raw::default().key(b"deep", ARRAY, &nested(7)).bytes();
    assert!(parse(&bytes).is_ok());
}

#[test]
fn unknown_value_types() {
    for id in [13, 255, u32::MAX] {
        refused(
            &Raw::default().key(b"k", id, &[0; 8]).bytes(),
            &[&format!("value type {id}"), "'k'"],
        );
        let bytes = Raw::default()
            .key(b"k", ARRAY, &array(id, 1, &[0; 8]))
            .bytes();
        refused(&bytes, &[&format!("value type {id}"), "'k'"]);
    }
}

#[test]
fn bad_keys() {
    let twice = Raw::default()
        .key(b"same", U8, &[1])
        .key(b"other", U8, &[1])
        .key(b"same", U32, &[0; 4]);
    refused(&twice.bytes(), &["'same'", "twice"]);
    refused(
        &Raw::default().key(b"", U8, &[1]).bytes(),
        &["metadata key 0 is empty"],
    );
    refused(
        &Raw::default().key(b"a\xff\xfeb", U8, &[1]).bytes(),
        &["not UTF-8", "a\\xff\\xfeb"],
    );
    refused(
        &Raw::default().key(&[b'x'; 1 << 20], 13, &[1]).bytes(),
        &["xxx...'", "value type 13"],
    );
}

#[test]
fn bad_tensor_names() {
    let twice = Raw::default()
        .tensor("same", &[1], F32_TYPE, 0)
        .tensor("same", &[1], F32_TYPE, 32);
    refused(&twice.bytes(), &["'same'", "twice"]);
    let long = "n".repeat(64);
    refused(
        &Raw::default().tensor(&long, &[1], F32_TYPE, 0).bytes(),
        &["64 bytes", "limit is 63", &long],
    );
    assert!(parse(&Raw::default().tensor(&long[1..], &[1], F32_TYPE, 0).bytes()).is_ok());
    // A name may be absurdly long; the error is not.
    let endless = "x".repeat(1 << 20);
    refused(
        &Raw::default().tensor(&endless, &[1], F32_TYPE, 0).bytes(),
        &["1048576 bytes"],
    );
    let raw = Raw {
        tensors: vec![[string(b"\xc3\x28"), vec![0; 24]].concat()],
        ..Raw::default()
    };
    refused(&raw.bytes(), &["not UTF-8", "tensor 0 of 1"]);
}

#[test]
fn absurd_dimensions() {
    let with = |dims: &[u64], t| Raw::default().tensor("t", dims, t, 0).bytes();
    refused(&with(&[1, 1, 1, 1, 1], F32_TYPE), &["'t'", "5 dimensions"]);
    refused(&with(&[4, 0, 2], F32_TYPE), &["'t'", "dimension 1 is 0"]);
    refused(&with(&[0], F32_TYPE), &["'t'", "dimension 0 is 0"]);
    refused(&with(&[1 << 32, 1 << 32], F32_TYPE), &["'t'", "2^63"]);
    refused(
        &with(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], F32_TYPE),
        &["'t'", "2^63"],
    );
    refused(&with(&[0, u64::MAX, u64::MAX, 2], F32_TYPE), &["'t'"]);
    refused(
        &with(&[1 << 62], F32_TYPE),
        &["'t'", "a size that overflows"],
    );
    refused(
        &with(&[1 << 31, 1 << 31], F32_TYPE),
        &["'t'", "a size that overflows"],
    );
    // As in ggml, no dimensions make a single number.
    assert_eq!(
        parse(&with(&[], F32_TYPE)).unwrap().tensors[0]
            .0
            .shape
            .dims(),
        [1]
    );
}

#[test]
fn a_billion_dimensions() {
    let mut tensor = string(b"t");
    tensor.extend(u32::MAX.to_le_bytes());
    tensor.extend([0; 40]);
    refused(
        &Raw {
            tensors: vec![tensor],
            ..Raw::default()
        }
        .bytes(),
        &["'t'", "4294967295 dimensions"],
    );
}

#[test]
fn unknown_and_removed_tensor_types() {
    let with = |id| Raw::default().tensor("t", &[256], id, 0).bytes();
    refused(&with(4), &["'t'", "q4_2 was removed"]);
    refused(&with(33), &["'t'", "q4_0_8_8 was removed"]);
    refused(&with(43), &["'t'", "type number 43"]);
    refused(&with(u32::MAX), &["'t'", "type number 4294967295"]);
}

#[test]
fn rows_of_partial_blocks() {
    refused(
        &Raw::default().tensor("t", &[255, 2], Q4_K_TYPE, 0).bytes(),
        &["'t'", "255", "256"],
    );
    refused(
        &Raw::default().tensor("t", &[128, 2], Q4_K_TYPE, 0).bytes(),
        &["'t'", "128", "q4_K"],
    );
}

#[test]
fn bad_offsets() {
    let with = |offset| Raw::default().tensor("t", &[8], F32_TYPE, offset).bytes();
    refused(
        &with(8),
        &["'t'", "offset 8", "multiple of the alignment 32"],
    );
    refused(&with(256), &["'t'", "beyond the end"]);
    refused(&with(1 << 62), &["'t'", "beyond the end"]);
    refused(&with(u64::MAX - 31), &["'t'", "beyond the end"]);
    assert!(parse(&with(224)).is_ok());
    let over = Raw::default()
        .tensor("a", &[16], F32_TYPE, 0)
        .tensor("b", &[8], F32_TYPE, 32);
    refused(&over.bytes(), &["'a'", "'b'", "overlap"]);
    let same = Raw::default()
        .tensor("a", &[8], F32_TYPE, 64)
        .tensor("b", &[8], F32_TYPE, 64);
    refused(&same.bytes(), &["'a'", "'b'", "overlap"]);
    let inside = Raw::default()
        .tensor("in", &[8], F32_TYPE, 32)
        .tensor("out", &[32], F32_TYPE, 0);
    refused(&inside.bytes(), &["'in'", "'out'", "overlap"]);
}

#[test]
fn bad_alignments() {
    let with = |a: u32| {
        Raw::default()
            .key(b"general.alignment", U32, &a.to_le_bytes())
            .bytes()
    };
    for a in [0, 3, 33, 1 << 22, 1 << 31, u32::MAX] {
        refused(&with(a), &["'general.alignment'", &a.to_string()]);
    }
    refused(
        &Raw::default()
            .key(b"general.alignment", 10, &le(32))
            .bytes(),
        &["'general.alignment'", "u64", "u32"],
    );
    refused(
        &Raw::default()
            .key(b"general.alignment", STRING, &string(b"32"))
            .bytes(),
        &["'general.alignment'", "str"],
    );
}

/// Writes shards of a model, one tensor each; `split` gives the claims of each: number, count,
/// tensors.
fn shards(
    dir: &Path,
    split: &[(Value<'static>, Value<'static>, Value<'static>)],
    names: &[&str],
) -> Vec<PathBuf> {
    let one =
        |(i, (no, count, tensors)): (usize, &(Value<'static>, Value<'static>, Value<'static>))| {
            let path = dir.join(format!("m-{:05}-of-{:05}.gguf", i + 1, split.len()));
            let file = Tiny::default()
                .set("split.no", no.clone())
                .set("split.count", count.clone())
                .set("split.tensors.count", tensors.clone());
            file.zeros(names[i], &[8], GgmlType::F32).write(&path)
        };
    split.iter().enumerate().map(one).collect()
}

fn says(no: u16, count: u16, tensors: i32) -> (Value<'static>, Value<'static>, Value<'static>) {
    (Value::U16(no), Value::U16(count), Value::I32(tensors))
}

#[track_caller]
fn model_refused(path: &Path, parts: &[&str]) {
    let error = Files::open(path)
        .and_then(|files| Model::parse(&files).map(|_| ()))
        .unwrap_err()
        .to_string();
    parts.iter().for_each(|part| {
        assert!(
            error.contains(part),
            "the error does not say {part:?}: {error}"
        )
    });
    assert!(error.len() < 1000, "{error}");
}

#[test]
fn shards_that_contradict_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let paths = shards(dir.path(), &[says(0, 2, 2), says(1, 2, 2)], &["a", "b"]);
    for path in &paths {
        let files = Files::open(path).unwrap();
        assert_eq!(Model::parse(&files).unwrap().tensors.len(), 2);
    }
    let write = |split: &[_]| shards(dir.path(), split, &["a", "b"]);
    write(&[says(0, 3, 2), says(1, 2, 2)]);
    model_refused(
        &paths[1],
        &["m-00001-of-00002.gguf", "2 shards", "'split.count' says 3"],
    );
    write(&[says(0, 2, 2), says(1, 9, 2)]);
    model_refused(
        &paths[0],
        &["m-00002-of-00002.gguf", "'split.count' says 9"],
    );
    write(&[says(0, 2, 2), says(0, 2, 2)]);
    model_refused(
        &paths[0],
        &["m-00002-of-00002.gguf", "shard 2", "'split.no' says 1"],
    );
    write(&[says(1, 2, 2), says(0, 2, 2)]);
    model_refused(&paths[0], &["m-00001-of-00002.gguf", "'split.no' says 2"]);
    write(&[
        (Value::U16(0), Value::str("2"), Value::I32(2)),
        says(1, 2, 2),
    ]);
    model_refused(&paths[0], &["m-00001-of-00002.gguf", "split.count"]);
}

#[test]
fn a_shard_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let paths = shards(dir.path(), &[says(0, 2, 2), says(1, 2, 2)], &["a", "b"]);
    let renamed = dir.path().join("model.gguf");
    std::fs::rename(&paths[1], &renamed).unwrap();
    model_refused(
        &renamed,
        &["model.gguf", "shard 2 of 2", "-00002-of-00002.gguf"],
    );
}

#[test]
fn missing_shards() {
    let dir = tempfile::tempdir().unwrap();
    let paths = shards(
        dir.path(),
        &[says(0, 3, 3), says(1, 3, 3), says(2, 3, 3)],
        &["a", "b", "c"],
    );
    std::fs::remove_file(&paths[1]).unwrap();
    model_refused(
        &paths[2],
        &["one of 3 shards", "missing", "m-00002-of-00003.gguf"],
    );
    let lone = dir.path().join("m-00001-of-65535.gguf");
    std::fs::copy(&paths[0], &lone).unwrap();
    model_refused(
        &lone,
        &[
            "one of 65535 shards",
            "m-00002-of-65535.gguf",
            "and 65529 more",
        ],
    );
}

#[test]
fn a_tensor_in_two_shards() {
    let dir = tempfile::tempdir().unwrap();
    let paths = shards(
        dir.path(),
        &[says(0, 2, 2), says(1, 2, 2)],
        &["same", "same"],
    );
    model_refused(
        &paths[0],
        &["m-00002-of-00002.gguf", "'same'", "shard 1 already"],
    );
}

#[test]
fn a_wrong_count_of_tensors_over_all_shards() {
    let dir = tempfile::tempdir().unwrap();
    for n in [3, 1, 0, -1, i32::MIN] {
        let paths = shards(dir.path(), &[says(0, 2, n), says(1, 2, n)], &["a", "b"]);
        model_refused(
            &paths[0],
            &[
                "m-00001-of-00002.gguf",
                &format!("'split.tensors.count' is {n}"),
                "hold 2",
            ],
        );
    }
}

#[test]
fn irregular_files() {
    let dir = tempfile::tempdir().unwrap();
    model_refused(dir.path(), &["cannot read"]);
    model_refused(
        &dir.path().join("nowhere.gguf"),
        &["cannot open", "nowhere.gguf"],
    );
    std::fs::write(dir.path().join("empty.gguf"), b"").unwrap();
    model_refused(
        &dir.path().join("empty.gguf"),
        &["empty.gguf", "shorter than a GGUF header"],
    );
    if cfg!(unix) {
        model_refused(Path::new("/dev/zero"), &["cannot read /dev/zero"]);
    }
}

// Round trips of written files.

fn fixed_value() -> impl Strategy<Value = Value<'static>> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn some_array() -> impl Strategy<Value = Array<'static>> {
    let leaf = prop_oneof![
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9)
            .prop_map(Array::of_strings),
        // Copies of one value, so that all have one type.
        (fixed_value(), 0..9usize).prop_map(|(v, n)| Array::of_values(v.value_type(), vec![v; n])),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop::collection::vec(inner.prop_map(Value::Array), 0..4)
            .prop_map(|arrays| Array::of_values(ValueType::Array, arrays))
    })
}

fn some_value() -> impl Strategy<Value = Value<'static>> {
    prop_oneof![
        fixed_value(),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Value::String(bytes.into())),
        some_array().prop_map(Value::Array),
    ]
}

fn some_shape() -> impl Strategy<Value = (GgmlType, Vec<u64>)> {
    let types: Vec<_> = GgmlType::all().collect();
    (
        prop::sample::select(types),
        1..3u64,
        prop::collection::vec(1..4u64, 0..4),
    )
        .prop_map(|(t, blocks, outer)| {
            let mut dims = vec![blocks * t.block_len() as u64];
            dims.extend(outer);
            (t, dims)
        })
}

/// A file with any valid power of two as alignment, up to a page.
fn some_file() -> impl Strategy<Value = Tiny> {
    let metadata = prop::collection::btree_map("[a-z.é]{1,20}", some_value(), 0..12);
    let tensors = prop::collection::btree_map("[a-z0-9._]{1,60}", some_shape(), 0..6);
    (metadata, tensors, prop::option::of(0..13u32)).prop_map(|(keys, shapes, shift)| {
        let mut file = Tiny::default();
        keys.into_iter()
            .for_each(|(key, value)| file.metadata.set(key, value));
        if let Some(shift) = shift {
            file.metadata
                .set("general.alignment", Value::U32(1 << shift));
        }
        for (i, (name, (t, dims))) in shapes.into_iter().enumerate() {
            let info = info(&name, &dims, t);
            let data = vec![i as u8 + 1; info.bytes() as usize];
            file = file.tensor(info, data);
        }
        file
    })
}

fn walk(array: &Array<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    array.strings().for_each(|s| out.extend(string(s)));
    array
        .values()
        .for_each(|v| v.write(Endian::Little, &mut out));
    array.arrays().for_each(|a| {
        out.extend((a.element() as u32).to_le_bytes());
        out.extend((a.len() as u64).to_le_bytes());
        out.extend(walk(&a));
    });
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn written_files_round_trip(file in some_file()) {
        let bytes = file.bytes();
        let header: Header = parse(&bytes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(&header.metadata, &file.metadata);
        prop_assert_eq!(header.tensors.len(), file.tensors.len());
        for ((info, offset), (wanted, data)) in header.tensors.iter().zip(&file.tensors) {
            prop_assert_eq!(info, wanted);
            prop_assert_eq!(&bytes[*offset as usize..][..data.len()], &data[..]);
        }
        // The other byte order gives the same contents.
        let infos: Vec<_> = file.tensors.iter().map(|(info, _)| info.clone()).collect();
        if let Ok(layout) = Layout::big_endian(&file.metadata, &infos, header.alignment) {
            let mut bytes = layout.header().to_vec();
            bytes.resize(layout.file_bytes() as usize, 0);
            let big = parse(&bytes).map_err(TestCaseError::fail)?;
            prop_assert_eq!(big.endian, Endian::Big);
            prop_assert_eq!(&big.metadata, &header.metadata);
            prop_assert_eq!(&big.tensors, &header.tensors);
        }
        // Arrays, read element by element, give the bytes of the file.
        for (_, value) in header.metadata.iter() {
            let Value::Array(array) = value else { continue };
            let mut written = Vec::new();
            value.write(Endian::Little, &mut written);
            prop_assert_eq!(&written[12..], &walk(array)[..]);
        }
    }

    #[test]
    fn random_changes_never_panic(
        file in some_file(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file.bytes();
        changes.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes[..]) = *byte);
        let _ = parse(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = parse(&bytes);
    }
}

#[test]
fn layout_states_the_file_size() {
    let mut metadata = Metadata::new();
    metadata.set("k", Value::U8(1));
    let tensors: BTreeMap<_, _> = [("a", 3u64), ("b", 9)].into();
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, n)| TensorInfo {
            name: (*name).into(),
            shape: Shape::new(&[*n]).unwrap(),
            ggml_type: GgmlType::F32,
        })
        .collect();
    let layout = Layout::new(&metadata, &infos, 64);
    assert_eq!(layout.file_bytes(), layout.header().len() as u64 + 64 + 64);
    assert!(layout.header().len().is_multiple_of(64));
}
