//! Malicious importance matrices, in both formats.

use crate::files::{Tiny, dat, imatrix, int};
use proptest::prelude::*;
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_gguf::imatrix::Imatrix;
use quantier_gguf::types::GgmlType;

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    crate::refused(bytes, parts, Imatrix::parse);
}

/// A valid `.dat` file, and its length without the optional tail.
fn sound() -> (Vec<u8>, usize) {
    let bytes = dat(&[
        ("a.weight", 4, &[1.0, 2.0, 0.0, 0.5]),
        ("b.weight", 1, &[3.0; 8]),
    ]);
    let tail = 4 + 4 + "wiki.txt".len();
    let body = bytes.len() - tail;
    (bytes, body)
}

#[test]
fn big_endian_imatrix_equals_its_little_endian_twin() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("imatrix.gguf");
    imatrix().write_big_endian(&path).unwrap();
    let little = Imatrix::parse(&imatrix().bytes()).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap(), little);
}

#[test]
fn dat_truncated_at_every_byte() {
    let (bytes, body) = sound();
    for len in 0..body {
        refused(&bytes[..len], &[&format!("it ends at byte {len} within")]);
    }
    for len in body..=bytes.len() {
        let read = Imatrix::parse(&bytes[..len]).unwrap();
        assert_eq!(read.entries.len(), 2);
        assert_eq!(read.chunk_count, if len >= body + 4 { 7 } else { 0 });
        assert_eq!(read.datasets.len(), usize::from(len == bytes.len()));
    }
}

#[test]
fn dat_lengths_beyond_the_file() {
    for n in [0, -1, i32::MIN] {
        refused(&int(n), &[&format!("{n} entries")]);
        refused(
            &[int(1), int(n), vec![0; 40]].concat(),
            if n == 0 { &["''"] } else { &["entry 0"] },
        );
        let values = [int(1), int(1), b"a".to_vec(), int(1), int(n), vec![0; 40]].concat();
        refused(&values, &["'a'", &format!("{n} values")]);
    }
    refused(
        &[
            int(i32::MAX),
            int(1),
            b"a".to_vec(),
            int(1),
            int(1),
            vec![0; 4],
        ]
        .concat(),
        &["entry 1"],
    );
    refused(
        &[int(1), int(i32::MAX), vec![0; 40]].concat(),
        &["the name of entry 0", "2147483647"],
    );
    refused(
        &[
            int(1),
            int(1),
            b"a".to_vec(),
            int(1),
            int(i32::MAX),
            vec![0; 40],
        ]
        .concat(),
        &["'a'", "8589934588"],
    );
    // The dataset's name is optional: a wrong length loses only the name.
    let (mut bytes, body) = sound();
    for n in [-1, i32::MAX, i32::MIN, 0] {
        bytes[body + 4..body + 8].copy_from_slice(&int(n));
        assert!(Imatrix::parse(&bytes).unwrap().datasets.is_empty());
    }
}

#[test]
fn dat_names_outside_utf8() {
    refused(
        &[int(1), int(2), vec![0xc3, 0x28], int(1), int(1), vec![0; 4]].concat(),
        &["entry 0", "UTF-8"],
    );
    refused(
        &[int(1), int(0x4000), vec![b'x'; 0x4000], int(1), int(-5)].concat(),
        &["xxx...", "-5 values"],
    );
}

#[test]
fn nonpositive_dat_counts() {
    // As in the reference, a non-positive count divides by one.
    for calls in [0, -7] {
        let read = Imatrix::parse(&dat(&[("a", calls, &[2.0, 4.0])])).unwrap();
        assert_eq!(read.entries["a"].means(), [2.0, 4.0]);
    }
}

#[test]
fn negative_and_nonfinite_sums() {
    for value in [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -1.0,
        -f32::MIN_POSITIVE,
    ] {
        refused(
            &dat(&[("a.weight", 4, &[1.0, value])]),
            &["value 1 of 'a.weight'", &value.to_string()],
        );
        let file = imatrix()
            .weights("c.weight.in_sum2", &[2], [0.0, value])
            .weights("c.weight.counts", &[1], [1.0]);
        refused(
            &file.bytes(),
            &["value 1 of 'c.weight'", &value.to_string()],
        );
    }
    // Minus zero is zero.
    assert!(Imatrix::parse(&dat(&[("a.weight", 4, &[1.0, -0.0])])).is_ok());
}

#[test]
fn negative_and_nonfinite_counts() {
    for count in [f32::NAN, f32::INFINITY, -1.0] {
        let file =
            imatrix()
                .weights("c.in_sum2", &[2], [0.0, 1.0])
                .weights("c.counts", &[1], [count]);
        refused(&file.bytes(), &["'c'", &format!("a count of {count}")]);
    }
    // Beyond i64, but finite: the means are tiny, not garbage.
    let file =
        imatrix()
            .weights("c.in_sum2", &[2], [0.0, 1.0])
            .weights("c.counts", &[1], [f32::MAX]);
    let means = Imatrix::parse(&file.bytes()).unwrap().entries["c"].means();
    assert!(means[1] > 0.0 && means[1] < 1e-18, "{means:?}");
}

#[test]
fn sums_and_counts_of_different_sizes() {
    let with = |sums: u64, counts: u64| {
        imatrix()
            .weights("c.in_sum2", &[sums], vec![1.0; sums as usize])
            .weights("c.counts", &[1, counts], vec![1.0; counts as usize])
    };
    refused(&with(5, 2).bytes(), &["'c'", "5 sums", "2 counts"]);
    refused(&with(2, 4).bytes(), &["'c'", "2 sums", "4 counts"]);
    assert!(Imatrix::parse(&with(4, 2).bytes()).is_ok());
}

#[test]
fn sums_without_counts_and_counts_without_sums() {
    refused(
        &imatrix().weights("c.in_sum2", &[2], [0.0, 1.0]).bytes(),
        &["'c'", "only one of"],
    );
    refused(
        &imatrix().weights("c.counts", &[1], [1.0]).bytes(),
        &["'c'", "only one of"],
    );
}

#[test]
fn no_statistics_at_all() {
    let mut file = imatrix();
    file.tensors.clear();
    refused(&file.bytes(), &["no statistics", ".in_sum2"]);
    refused(
        &file
            .zeros("blk.0.ffn_up.weight", &[32], GgmlType::F32)
            .bytes(),
        &["no statistics"],
    );
}

#[test]
fn tensors_of_another_type() {
    for t in [GgmlType::F16, GgmlType::F64, GgmlType::I32, GgmlType::Q8_0] {
        refused(
            &imatrix().zeros("c.in_sum2", &[32], t).bytes(),
            &["'c.in_sum2'", t.name(), "f32"],
        );
        refused(
            &imatrix().zeros("c.counts", &[32], t).bytes(),
            &["'c.counts'", t.name(), "f32"],
        );
    }
}

#[test]
fn keys_missing_or_of_another_type() {
    for key in [
        "imatrix.datasets",
        "imatrix.chunk_count",
        "imatrix.chunk_size",
    ] {
        let mut file = imatrix();
        file.metadata.remove(key);
        refused(
            &file.bytes(),
            &[key, "missing", "is this an importance matrix?"],
        );
        let mut file = imatrix();
        file.metadata.set(key, Value::F32(1.0));
        refused(&file.bytes(), &[key, "f32"]);
    }
    let numbers = Array::of_values(ValueType::U32, [Value::U32(1)]);
    let file = imatrix().set("imatrix.datasets", Value::Array(numbers));
    refused(&file.bytes(), &["imatrix.datasets", "array of strings"]);
    refused(
        &imatrix().set("imatrix.chunk_count", Value::U64(7)).bytes(),
        &["imatrix.chunk_count", "u64", "u32"],
    );
}

#[test]
fn another_kind_of_file() {
    refused(b"", &["is this an importance matrix?"]);
    refused(b"<!DOCTYPE html><html></html>", &["the name of entry 0"]);
    refused(
        &Tiny::default()
            .zeros("blk.0.ffn_up.weight", &[32], GgmlType::F32)
            .bytes(),
        &["is this an importance"],
    );
}

#[test]
fn gguf_truncated_at_every_byte() {
    let bytes = imatrix().bytes();
    let padding = 32 - 2 * 4; // after the last tensor, two counts
    (0..bytes.len() - padding).for_each(|len| refused(&bytes[..len], &[]));
    assert!(Imatrix::parse(&bytes[..bytes.len() - padding]).is_ok());
}

proptest! {
    #[test]
    fn random_changes_give_an_error_or_sound_weights(
        as_dat in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = if as_dat { sound().0 } else { imatrix().bytes() };
        changes.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes[..]) = *byte);
        let Ok(read) = Imatrix::parse(&bytes) else { return Ok(()) };
        for entry in read.entries.values() {
            let means = entry.means();
            prop_assert_eq!(means.len(), entry.sums.len());
            prop_assert!(means.iter().all(|mean| mean.is_finite() && *mean >= 0.0));
        }
    }
}
