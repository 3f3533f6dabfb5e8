//! Every form against its definition, number by number, and all errors.

use super::fp4::{self, Fp4, Kind};
use super::grouped::{Grouped, Layout, Packing, Tensors};
use super::ternary::Ternary;
use super::*;
use crate::quant::Codec;
use serde_json::{Value, json};

/// Tensors in one file.
struct File {
    bytes: Vec<u8>,
}

impl File {
    fn new() -> File {
        File { bytes: Vec::new() }
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Raw {
        assert_eq!(
            bytes.len() as u64,
            shape.iter().product::<u64>() * dtype.bytes() as u64
        );
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Raw {
            range: start..self.bytes.len(),
            ..Raw::made(name, dtype, shape)
        }
    }

    fn words(&mut self, name: &str, shape: &[u64], words: &[u32]) -> Raw {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.add(name, Dtype::I32, shape, &bytes)
    }

    fn floats(&mut self, name: &str, shape: &[u64], floats: &[f32]) -> Raw {
        let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(name, Dtype::F32, shape, &bytes)
    }

    fn maps(&self) -> Vec<Map> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.bytes).unwrap();
        vec![Map::open(file.path()).unwrap()]
    }
}

/// Numbers that cycle by a prime, to detect swapped ones.
fn cycle(len: u64, modulus: u64) -> Vec<u32> {
    (0..len).map(|i| (i * 37 % 251 % modulus) as u32).collect()
}

/// Checks every range of a form against all of its numbers.
fn check_ranges(form: &Form, maps: &[Map], expected: &[f32]) {
    let len = expected.len();
    for start in [0, 1, 7, len / 2, len - 1] {
        for end in [start, start + 1, (start + 33).min(len), len] {
            let range = start.min(len)..end.clamp(start, len);
            let mut out = vec![0.0; range.len()];
            form.read(maps, range.start as u64..range.end as u64, &mut out)
                .unwrap();
            assert_eq!(out, expected[range.clone()], "{range:?}");
        }
    }
}

/// Codes in words, by rows of `row` codes.
fn to_words(codes: &[u32], row: usize, bits: u32) -> Vec<u32> {
    let per_word = (32 / bits) as usize;
    let word = |codes: &[u32]| {
        let fields = codes.iter().enumerate();
        fields.fold(0, |word, (i, code)| word | code << (i as u32 * bits))
    };
    codes
        .chunks(row)
        .flat_map(|row| row.chunks(per_word).map(word))
        .collect()
}

/// Codes as one bit string, by rows of `row` codes.
fn to_string(codes: &[u32], row: usize, bits: u32) -> Vec<u32> {
    let of_row = |row: &[u32]| {
        let bit = |i: usize| row[i / bits as usize] >> (i as u32 % bits) & 1;
        let all: Vec<u32> = (0..row.len() * bits as usize).map(bit).collect();
        let word = |bits: &[u32]| bits.iter().rev().fold(0, |word, bit| word << 1 | bit);
        all.chunks(32).map(word).collect::<Vec<u32>>()
    };
    codes.chunks(row).flat_map(of_row).collect()
}

fn transposed<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = matrix.len() / columns;
    (0..columns)
        .flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j]))
        .collect()
}

struct Matrix {
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
    group_of: Vec<u32>,
}

const ROWS: usize = 64;
const COLUMNS: usize = 96;
const GROUPS: usize = 3;

impl Matrix {
    fn new(bits: u32) -> Matrix {
        let modulus = 1 << bits;
        let scales = cycle((ROWS * GROUPS) as u64, 251);
        Matrix {
            codes: cycle((ROWS * COLUMNS) as u64, modulus),
            zeros: cycle((ROWS * GROUPS) as u64, modulus),
            scales: scales
                .iter()
                .map(|n| (*n as f32 - 100.5) / 1024.0)
                .collect(),
            group_of: cycle(COLUMNS as u64, GROUPS as u64),
        }
    }

    fn weights(&self, zero: impl Fn(usize) -> f32, group: impl Fn(usize) -> usize) -> Vec<f32> {
        let weight = |at: usize| {
            let place = at / COLUMNS * GROUPS + group(at % COLUMNS);
            (self.codes[at] as f32 - zero(place)) * self.scales[place]
        };
        (0..ROWS * COLUMNS).map(weight).collect()
    }
}

#[test]
fn integers_of_every_packing_are_read_as_they_are_defined() {
    let (rows, columns, groups) = (ROWS as u64, COLUMNS as u64, GROUPS as u64);
    for (bits, packing, is_ordered) in [
        (4, Packing::CompressedTensors, false),
        (8, Packing::CompressedTensors, true),
        (3, Packing::CompressedTensors, false),
        (2, Packing::Gptq { zero_offset: 0 }, true),
        (3, Packing::Gptq { zero_offset: 1 }, true),
        (4, Packing::Gptq { zero_offset: 1 }, false),
        (8, Packing::Gptq { zero_offset: 1 }, true),
        (4, Packing::Awq, false),
    ] {
        let (matrix, mut file) = (Matrix::new(bits), File::new());
        let per_row = COLUMNS.div_ceil(32 / bits as usize) as u64;
        let words = |file: &mut File, name: &str, shape: [u64; 2], words: Vec<u32>| {
            file.words(name, &shape, &words)
        };
        let (codes, zeros, scales) = match packing {
            Packing::CompressedTensors => {
                let codes = to_words(&matrix.codes, COLUMNS, bits);
                let zeros = to_words(&transposed(&matrix.zeros, GROUPS), ROWS, bits);
                let per_column = zeros.len() / GROUPS;
                let zeros = transposed(&zeros, per_column);
                (
                    words(&mut file, "c", [rows, per_row], codes),
                    words(&mut file, "z", [per_column as u64, groups], zeros),
                    file.floats("s", &[rows, groups], &matrix.scales),
                )
            }
            Packing::Gptq { .. } => {
                let codes = to_string(&matrix.codes, COLUMNS, bits);
                let count = codes.len() / ROWS;
                let codes = transposed(&codes, count);
                let zeros = to_string(&transposed(&matrix.zeros, GROUPS), ROWS, bits);
                let per_group = (zeros.len() / GROUPS) as u64;
                (
                    words(&mut file, "c", [count as u64, rows], codes),
                    words(&mut file, "z", [groups, per_group], zeros),
                    file.floats("s", &[groups, rows], &transposed(&matrix.scales, GROUPS)),
                )
            }
            Packing::Awq => {
                let mixed = |codes: Vec<u32>| {
                    let eight = |eight: &[u32]| [0, 2, 4, 6, 1, 3, 5, 7].map(|i| eight[i]);
                    let codes: Vec<u32> = codes.chunks(8).flat_map(eight).collect();
                    to_words(&codes, ROWS, bits)
                };
                let codes = mixed(transposed(&matrix.codes, COLUMNS));
                let zeros = mixed(transposed(&matrix.zeros, GROUPS));
                (
                    words(&mut file, "c", [columns, rows / 8], codes),
                    words(&mut file, "z", [groups, rows / 8], zeros),
                    file.floats("s", &[groups, rows], &transposed(&matrix.scales, GROUPS)),
                )
            }
        };
        let group_of = is_ordered.then(|| file.words("g", &[columns], &matrix.group_of));
        let tensors = Tensors {
            codes,
            scales,
            zeros: Some(zeros),
            group_of,
        };
        let layout = Layout {
            bits: bits.into(),
            rows,
            columns,
            size: Some(columns / groups),
        };
        let grouped = Grouped::new(tensors.clone(), packing, layout).unwrap();
        assert_eq!(grouped.shape(), [rows, columns]);
        let offset = match packing {
            Packing::Gptq { zero_offset } => f32::from(zero_offset),
            _ => 0.0,
        };
        let group = |column: usize| match is_ordered {
            true => matrix.group_of[column] as usize,
            false => column / (COLUMNS / GROUPS),
        };
        let zero = |place: usize| matrix.zeros[place] as f32 + offset;
        check_ranges(
            &Form::Grouped(grouped),
            &file.maps(),
            &matrix.weights(zero, group),
        );
        if packing == Packing::CompressedTensors && !is_ordered {
            let symmetric = Tensors {
                zeros: None,
                ..tensors
            };
            let grouped = Grouped::new(symmetric, packing, layout).unwrap();
            let middle = |_| (1u32 << (bits - 1)) as f32;
            check_ranges(
                &Form::Grouped(grouped),
                &file.maps(),
                &matrix.weights(middle, group),
            );
        }
    }
}

#[test]
fn damaged_integers_are_refused_where_they_are() {
    let read = |scale: f32, group: u32, padding: u32| {
        let mut file = File::new();
        // Ten columns of 4 bits in two words.
        let words = [0x7654_3210, 0x98 | padding << 8];
        let tensors = Tensors {
            codes: file.words("c", &[1, 2], &words),
            scales: file.floats("s", &[1, 2], &[1.0, scale]),
            zeros: None,
            group_of: Some(file.words("g", &[10], &[0, 0, 0, 0, 0, 0, 0, 0, 1, group])),
        };
        let layout = Layout {
            bits: 4,
            rows: 1,
            columns: 10,
            size: Some(5),
        };
        let grouped = Grouped::new(tensors, Packing::CompressedTensors, layout).unwrap();
        let mut out = [0.0; 10];
        grouped.read(&file.maps(), 0..10, &mut out).map(|()| out)
    };
    assert_eq!(read(-2.0, 1, 0).unwrap()[7..], [-1.0, 0.0, -2.0]);
    for (scale, group, padding, element, what) in [
        (f32::NAN, 1, 0, 8, "the scale is NaN"),
        (0.0, 1, 0, 9, "the scale is 0"),
        (1.0, 2, 0, 9, "its group is 2, of 2"),
        (1.0, u32::MAX, 0, 9, "its group is -1, of 2"),
        (1.0, 1, 1, 9, "fill its word, are not 0"),
    ] {
        let fault = read(scale, group, padding).unwrap_err();
        assert!(
            fault.what.contains(what) && fault.element == element,
            "{fault:?}"
        );
    }
}

/// Four ranks of 2 queries, 1 key and 1 value, each under a scale of its own.
#[test]
fn rows_of_ranks_are_read_in_order() {
    let mut file = File::new();
    let codes: Vec<u8> = (0..16 * 3).map(|i| 0x30 + i % 16).collect();
    let codes = file.add("qkv", Dtype::F8E4m3, &[16, 3], &codes);
    let scales = file.floats("qkv_scale_inv", &[4, 1], &[1.0, 2.0, 4.0, 8.0]);
    let maps = file.maps();
    let number = |row: u64, column: u64| {
        let mut number = [0.0];
        widen(
            Dtype::F8E4m3,
            &[0x30 + ((row * 3 + column) % 16) as u8],
            &mut number,
        );
        number[0] * [1.0, 2.0, 4.0, 8.0][row as usize / 4]
    };
    let rows = [0, 1, 4, 5, 8, 9, 12, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    let expected = rows
        .iter()
        .flat_map(|row| (0..3).map(|column| number(*row, column)));
    let expected: Vec<f32> = expected.collect();
    let form = Form::Ranked(Ranked::new(codes, scales, [8, 4, 4]).unwrap());
    check_ranges(&form, &maps, &expected);
}

#[test]
fn four_bit_floats_are_read_and_repacked_without_loss() {
    for (kind, dtype, width) in [
        (Kind::Nvfp4, Dtype::F8E4m3, 36),
        (Kind::Mxfp4, Dtype::U8, 17),
    ] {
        let (rows, columns, group) = (3, 128, kind.group());
        let bytes: Vec<u8> = cycle(rows * columns / 2, 251)
            .iter()
            .map(|n| *n as u8)
            .collect();
        let count = rows * columns / group;
        let scales: Vec<u8> = cycle(count, 100).iter().map(|n| *n as u8 + 20).collect();
        let mut file = File::new();
        let parts = || fp4::Parts {
            codes: Raw::made("c", Dtype::U8, &[rows, columns / 2]),
            scales: Raw::made("s", dtype, &[rows, columns / group]),
            kind,
        };
        let parts = fp4::Parts {
            codes: file.add("c", Dtype::U8, &parts().codes.shape, &bytes),
            scales: file.add("s", dtype, &parts().scales.shape, &scales),
            kind,
        };
        let (whole, maps) = (0.0625, file.maps());
        let fp4 = Fp4::new(parts, [whole, 1.0]).unwrap();
        assert_eq!(fp4.shape(), [rows, columns]);
        let block = kind.ggml_type().block_len() as u64;
        let mut blocks = vec![0; (rows * columns / block) as usize * width];
        let out = Blocks {
            bytes: &mut blocks,
            place: 0,
        };
        fp4.repack(&maps, 0..count, out).unwrap();
        let mut numbers = vec![0.0; (rows * columns) as usize];
        let codec = Codec::of(kind.ggml_type()).unwrap();
        codec.dequantize_row(&blocks, &mut numbers);
        numbers.iter_mut().for_each(|number| *number *= whole);
        check_ranges(&Form::Fp4(fp4), &maps, &numbers);
    }
}

#[test]
fn a_scale_of_a_group_may_be_too_small_but_not_negative() {
    let read = |scale: u8| {
        let mut file = File::new();
        let parts = fp4::Parts {
            codes: file.add("c", Dtype::U8, &[1, 8], &[0x21; 8]),
            scales: file.add("s", Dtype::F8E4m3, &[1, 1], &[scale]),
            kind: Kind::Nvfp4,
        };
        let fp4 = Fp4::new(parts, [1.0; 2]).unwrap();
        let mut out = [1.0; 16];
        fp4.read(&file.maps(), 0..16, &mut out).map(|()| out[1])
    };
    assert_eq!(read(0x38).unwrap(), 1.0);
    assert_eq!(read(0).unwrap(), 0.0);
    assert!(read(0x7f).unwrap_err().what.contains("NaN"));
    assert!(read(0xb8).unwrap_err().what.contains("-1"));
}

#[test]
fn ternary_weights_are_four_rows_in_a_byte() {
    let mut file = File::new();
    // Rows 0, 2, 4, 6 in the first packed row, rows 1, 3, 5, 7 in the second.
    let codes = [0b10_01_00_10, 0b00_10_01_01, 0b01_01_01_01, 0b10_10_10_00];
    let codes = file.add("c", Dtype::U8, &[2, 2], &codes);
    let ternary = Ternary::new(codes, 4.0).unwrap();
    assert_eq!(ternary.shape(), [8, 2]);
    let expected = [1, 0, 0, -1, -1, 0, 0, 1, 0, 1, 0, 1, 1, -1, 0, 1];
    let expected = expected.map(|number| number as f32 / 4.0);
    check_ranges(&Form::Ternary(ternary), &file.maps(), &expected);
}

fn source(name: &str, dtype: Dtype, shape: &[u64]) -> Source {
    Source {
        name: name.into(),
        text_name: None,
        dtype,
        shape: shape.to_vec(),
        strides: None,
        file: 0,
        range: 0..0,
        form: None,
    }
}

/// The result of `resolve` for such tensors.
fn resolved(quantization: Value, sources: &[(&str, Dtype, &[u64])]) -> Resolved {
    let config = json!({ "quantization_config": quantization, "_name_or_path": "org/base" });
    let config = Config::new(config.as_object().unwrap().clone()).unwrap();
    let sources = sources
        .iter()
        .map(|(name, dtype, shape)| source(name, *dtype, shape));
    let mut file = File::new();
    // Rows and columns, for tests with a shape tensor.
    let shape: Vec<u8> = [64i64, 96].iter().flat_map(|n| n.to_le_bytes()).collect();
    file.add("shape", Dtype::I64, &[2], &shape);
    let sources = sources.map(|source| Source {
        range: if source.name.ends_with("_shape") {
            0..16
        } else {
            0..0
        },
        ..source
    });
    let dir = tempfile::tempdir().unwrap();
    resolve(&config, dir.path(), sources.collect(), &file.maps())
}

fn refused(quantization: Value, sources: &[(&str, Dtype, &[u64])], words: &[&str]) {
    let problems = resolved(quantization, sources).problems;
    let [problem] = &*problems else {
        panic!("{problems:?}");
    };
    let text = format!("{problem:?}");
    words
        .iter()
        .for_each(|word| assert!(text.contains(word), "{text} lacks {word}"));
}

#[test]
fn what_does_not_fit_is_named() {
    const CODES: (&str, Dtype, &[u64]) = ("a.weight_packed", Dtype::I32, &[64, 12]);
    const SHAPE: (&str, Dtype, &[u64]) = ("a.weight_shape", Dtype::I64, &[2]);
    const SCALE: (&str, Dtype, &[u64]) = ("a.weight_scale", Dtype::Bf16, &[64, 3]);
    let ct = |groups: &[Value]| {
        let groups: serde_json::Map<String, Value> = groups
            .iter()
            .enumerate()
            .map(|(i, weights)| (format!("group_{i}"), json!({ "weights": weights })))
            .collect();
        json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups })
    };
    let int = |bits: u32, size: u64| json!({ "num_bits": bits, "type": "int", "group_size": size });
    let all = [CODES, SHAPE, SCALE];
    let whole = resolved(ct(&[int(4, 32)]), &all);
    assert!(
        whole.problems.is_empty() && whole.notes.len() == 1,
        "{:?}",
        whole.problems
    );
    assert_eq!(whole.sources[0].name, "a.weight");
    assert_eq!(whole.sources[0].shape, [64, 96]);
    let two = resolved(ct(&[int(8, 32), int(4, 32)]), &all);
    assert!(two.problems.is_empty() && two.notes[1].contains("2 config_groups"));
    let twice = [
        ("a.weight_scale", Dtype::Bf16, &[64u64, 96][..]),
        CODES,
        SHAPE,
    ];
    refused(
        ct(&[int(4, 7)]),
        &all,
        &["a.weight_packed", "groups of 7 columns do not divide 96"],
    );
    refused(
        ct(&[int(4, 32)]),
        &twice,
        &["a.weight_scale", "[64, 3] fits"],
    );
    refused(ct(&[int(4, 32)]), &all[..2], &["a.weight_scale", "missing"]);
    refused(ct(&[]), &all, &["config_groups"]);
    let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 });
    let qweight = ("a.qweight", Dtype::I32, &[12u64, 64][..]);
    refused(
        gptq.clone(),
        &[qweight],
        &["a.qweight", "a.scales", "missing"],
    );
    let of_gptq = |words: u64, groups: u64| {
        let shapes: [[u64; 2]; 2] = [[groups, words], [groups, 64]];
        resolved(
            gptq.clone(),
            &[
                qweight,
                ("a.qzeros", Dtype::I32, &shapes[0]),
                ("a.scales", Dtype::F16, &shapes[1]),
            ],
        )
    };
    assert_eq!(of_gptq(8, 3).sources[0].shape, [64, 96]);
    for (words, groups, word) in [(10, 3, "number of bits"), (8, 5, "5 groups do not divide")] {
        let problems = of_gptq(words, groups).problems;
        assert!(problems[0].reason.contains(word), "{problems:?}");
    }
    let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let scale = ("a.weight_scale_inv", Dtype::F32, &[1u64, 1][..]);
    refused(
        fp8,
        &[scale, ("b", Dtype::U8, &[1])],
        &["a.weight_scale_inv", "missing"],
    );
}

#[test]
fn quantizations_that_are_not_read_name_the_original_model() {
    let codes = [("a.weight", Dtype::U8, &[64u64, 64][..])];
    refused(
        json!({ "quant_method": "bitsandbytes" }),
        &codes,
        &["bitsandbytes", "org/base"],
    );
    refused(
        json!({ "bits": 4, "group_size": 64 }),
        &codes,
        &["MLX", "org/base"],
    );
    refused(
        json!({ "quant_method": "awq", "version": "gemv" }),
        &codes,
        &["'gemv'"],
    );
    let plain = [("a.weight", Dtype::Bf16, &[64u64, 64][..])];
    refused(
        json!({ "quant_method": "gptq" }),
        &plain,
        &["'gptq'", "16 or 32 bits"],
    );
}

#[test]
fn scales_that_no_quantizer_writes_are_named() {
    let ok = |scale, sign, codes: &[f32]| check_scale(scale, sign, codes).is_ok();
    assert!(ok(0.5, Sign::Positive, &[1.0]) && ok(-0.5, Sign::Any, &[1.0]));
    assert!(ok(0.0, Sign::Positive, &[0.0, -0.0]));
    for (scale, word) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (-1.0, "-1"),
        (0.0, "0"),
    ] {
        let what = check_scale(scale, Sign::Positive, &[0.0, 2.0]).unwrap_err();
        assert!(what.contains(word), "{what}");
    }
}
