//! Files of `torch.save`: accepted and refused ones.

use crate::refused;
use crate::torch_files::{TorchFile, View, archive, integer, text};
use proptest::prelude::*;
use quantier_gguf::safetensors::Dtype;
use quantier_gguf::torch::{TensorInfo, parse};

/// Ascending two-byte numbers.
fn numbers(count: u16) -> Vec<u8> {
    (0..count).flat_map(u16::to_le_bytes).collect()
}

fn sample() -> TorchFile {
    let mut file = TorchFile::default();
    let halves = file.storage("HalfStorage", numbers(24));
    let floats = file.storage("FloatStorage", vec![7; 8]);
    file.tensor("b.weight", &View::whole(halves, &[4, 6]));
    file.parameter("a.bias", &View::whole(floats, &[2]));
    file.tensor("tied", &View::whole(halves, &[4, 6]));
    file
}

/// The numbers of a tensor of halves, read with its strides.
fn read(file: &[u8], tensor: &TensorInfo) -> Vec<u16> {
    let data = file[tensor.range.clone()].as_chunks::<2>().0;
    let plain = View::whole(0, &tensor.shape).strides;
    let strides = tensor.strides.as_ref().unwrap_or(&plain);
    let mut places = vec![0];
    for (size, stride) in tensor.shape.iter().zip(strides) {
        let steps = places
            .iter()
            .flat_map(|at| (0..*size).map(move |i| at + i * stride));
        places = steps.collect();
    }
    places
        .iter()
        .map(|at| u16::from_le_bytes(data[*at as usize]))
        .collect()
}

#[test]
fn tensors_keep_the_order_of_the_dictionary() {
    for wide in [false, true] {
        let file = archive(&sample().entries(), wide);
        let tensors = parse(&file).unwrap();
        let rows: Vec<_> = tensors
            .iter()
            .map(|t| (&*t.name, t.dtype, &*t.shape))
            .collect();
        let expected: [(&str, Dtype, &[u64]); 3] = [
            ("b.weight", Dtype::F16, &[4, 6]),
            ("a.bias", Dtype::F32, &[2]),
            ("tied", Dtype::F16, &[4, 6]),
        ];
        assert_eq!(rows, expected);
        assert!(tensors.iter().all(|tensor| tensor.strides.is_none()));
        assert_eq!(tensors[0].range, tensors[2].range);
        assert_eq!(read(&file, &tensors[0]), (0..24).collect::<Vec<_>>());
        assert_eq!(&file[tensors[1].range.clone()], [7; 8]);
    }
}

#[test]
fn types_have_their_widths() {
    let classes = [
        ("DoubleStorage", Dtype::F64),
        ("FloatStorage", Dtype::F32),
        ("HalfStorage", Dtype::F16),
        ("BFloat16Storage", Dtype::Bf16),
        ("LongStorage", Dtype::I64),
        ("IntStorage", Dtype::I32),
        ("ShortStorage", Dtype::I16),
        ("CharStorage", Dtype::I8),
        ("ByteStorage", Dtype::U8),
        ("BoolStorage", Dtype::Bool),
    ];
    let mut file = TorchFile::default();
    for (class, dtype) in classes {
        let storage = file.storage(class, vec![1; 3 * dtype.bytes()]);
        file.tensor(class, &View::whole(storage, &[3]));
    }
    let tensors = parse(&file.bytes()).unwrap();
    let found: Vec<_> = tensors.iter().map(|t| (&*t.name, t.dtype)).collect();
    assert_eq!(found, classes);
    assert!(tensors.iter().all(|t| t.range.len() == 3 * t.dtype.bytes()));
}

#[test]
fn eight_bit_floats_are_typed_by_the_tensor() {
    let mut file = TorchFile::default();
    file.storage("UntypedStorage", vec![0x38; 6]);
    let call = |dtype: &str| {
        let id = [
            &text("storage")[..],
            b"ctorch.storage\nUntypedStorage\n",
            &text("0"),
            &text("cpu"),
            b"K\x06",
        ]
        .concat();
        let view = b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)R";
        [
            b"ctorch._utils\n_rebuild_tensor_v3\n((",
            &id[..],
            b"tQ",
            view,
            dtype.as_bytes(),
            b"tR",
        ]
        .concat()
    };
    let mut whole = file.clone();
    whole.item("w", &call("ctorch\nfloat8_e4m3fn\n"));
    let tensors = parse(&whole.bytes()).unwrap();
    assert_eq!(
        (tensors[0].dtype, &*tensors[0].shape),
        (Dtype::F8E4m3, &[2, 3][..])
    );
    file.item("w", &call("ctorch\nfloat8_e4m3fnuz\n"));
    refused(&file.bytes(), &["torch.float8_e4m3fnuz"], parse);
}

#[test]
fn views_keep_their_strides() {
    let mut file = TorchFile::default();
    let storage = file.storage("HalfStorage", numbers(24));
    let mut view = |name: &str, offset, shape: &[u64], strides: &[u64]| {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        file.tensor(
            name,
            &View {
                storage,
                offset,
                shape,
                strides,
            },
        );
    };
    view("transposed", 0, &[6, 4], &[1, 6]);
    view("second row", 6, &[6], &[1]);
    view("columns", 2, &[4, 2], &[6, 1]);
    view("number", 5, &[], &[]);
    view("row of one", 3, &[1, 2], &[99, 1]);
    view("none", 24, &[0, 4], &[4, 1]);
    let file = file.bytes();
    let tensors = parse(&file).unwrap();
    let found: Vec<_> = tensors
        .iter()
        .map(|t| (t.strides.is_some(), read(&file, t)))
        .collect();
    let transposed = (0..6).flat_map(|column| (0..4).map(move |row| row * 6 + column));
    assert_eq!(found[0], (true, transposed.collect()));
    assert_eq!(found[1], (false, (6..12).collect()));
    assert_eq!(found[2], (true, vec![2, 3, 8, 9, 14, 15, 20, 21]));
    assert_eq!(
        found[3..],
        [(false, vec![5]), (false, vec![3, 4]), (false, vec![])]
    );
}

#[test]
fn views_beyond_their_storage_are_refused() {
    let max = i64::MAX as u64;
    let cases: [(u64, &[u64], &[u64], &str); 9] = [
        (0, &[25], &[1], "beyond its storage of 24"),
        (1, &[4, 6], &[6, 1], "beyond its storage"),
        (24, &[1], &[1], "beyond its storage"),
        (max, &[2], &[1], "beyond its storage"),
        (0, &[2], &[max], "beyond its storage"),
        (max, &[3], &[max], "beyond its storage"),
        (0, &[max, max], &[0, 0], "beyond its storage"),
        (0, &[1000], &[0], "repeats the 24 numbers"),
        (0, &[2, 2], &[1], "strides are invalid"),
    ];
    for (offset, shape, strides, part) in cases {
        let mut file = TorchFile::default();
        let storage = file.storage("HalfStorage", numbers(24));
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        file.tensor(
            "w",
            &View {
                storage,
                offset,
                shape,
                strides,
            },
        );
        refused(&file.bytes(), &["tensor 'w'", part], parse);
    }
}

#[test]
fn other_objects_are_refused_by_name() {
    let with = |key: &str, value: &[u8]| {
        let mut file = sample();
        file.item(key, value);
        file.bytes()
    };
    refused(
        &with("run", b"cos\nsystem\nX\x02\0\0\0ls\x85R"),
        &["'os.system'", "nothing of it was run"],
        parse,
    );
    refused(
        &with("q", b"ctorch._utils\n_rebuild_qtensor\n)R"),
        &["torch._utils._rebuild_qtensor"],
        parse,
    );
    refused(
        &with("epoch", &integer(3)),
        &["tensor 'epoch'", "a number"],
        parse,
    );
    refused(
        &with("model", b"}"),
        &["tensor 'model'", "a dictionary", "one level deeper"],
        parse,
    );
    refused(
        &with("a.bias", b"N"),
        &["'a.bias' appears twice in its dictionary"],
        parse,
    );
    refused(
        &with("w", b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        &["tensor 'w'", "other arguments"],
        parse,
    );
    refused(
        &with("w", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR"),
        &["tensor 'w'", "no storage"],
        parse,
    );
    refused(
        &with("w", b"ctorch\nHalfStorage\n)R"),
        &["tensor 'w'", "other arguments"],
        parse,
    );

    let mut file = sample();
    let negated = file.rebuild(&View::whole(0, &[4, 6]));
    let metadata = [b"}", &text("neg")[..], b"\x88s", b"tR"].concat();
    file.item("w", &[&negated[..negated.len() - 2], &metadata].concat());
    refused(&file.bytes(), &["tensor 'w'", "negated"], parse);
}

/// An archive with a change to the sample's entries.
fn changed(change: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut entries = sample().entries();
    change(&mut entries);
    archive(&entries, false)
}

#[test]
fn unrelated_archives_are_refused() {
    let entry = |name: &str, bytes: &[u8]| (format!("pytorch_model/{name}"), bytes.to_vec());
    refused(
        &changed(|entries| entries[1] = entry("byteorder", b"big")),
        &["big-endian"],
        parse,
    );
    refused(
        &changed(|entries| drop(entries.remove(0))),
        &["without data.pkl"],
        parse,
    );
    refused(
        &changed(|entries| entries.push(entry("constants.pkl", b""))),
        &["TorchScript"],
        parse,
    );
    refused(
        &changed(|entries| drop(entries.remove(2))),
        &["tensor 'b.weight'", "data/0 is missing"],
        parse,
    );
    refused(
        &changed(|entries| {
            entries[2].1.pop();
        }),
        &["data/0 has 47 bytes", "24 numbers of F16"],
        parse,
    );
    refused(
        &changed(|entries| entries[2].0 = entries[3].0.clone()),
        &["data/1' appears twice"],
        parse,
    );
    refused(
        &changed(|entries| entries[0].1 = b"\x80\x02].".to_vec()),
        &["holds a list"],
        parse,
    );
    refused(
        &changed(|entries| entries[0].1 = b"\x80\x02}K\x01Ns.".to_vec()),
        &["a number for a key"],
        parse,
    );
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    refused(legacy, &["before 1.6", "torch.save(torch.load("], parse);
    refused(
        b"version https://git-lfs.github.com/spec/v1\n",
        &["Git LFS"],
        parse,
    );
    refused(b"GGUF", &["not a file of torch.save"], parse);
    refused(b"", &["not a file of torch.save"], parse);
}

#[test]
fn inconsistent_archives_are_refused() {
    let (good, wide) = (sample().bytes(), archive(&sample().entries(), true));
    let central = good.windows(4).position(|b| b == b"PK\x01\x02").unwrap();
    let last = good.windows(4).rposition(|b| b == b"PK\x01\x02").unwrap();
    let (end, locator) = (good.len() - 22, wide.len() - 42);
    let cases: [(&[u8], usize, &[u8], &str); 12] = [
        (&good, end, b"XX", "truncated"),
        (&good, end + 16, &[0xff; 4], "is not before its end"),
        (&good, central, b"XX", "damaged"),
        (&good, central + 8, &[1], "is encrypted"),
        (&good, central + 10, &[8], "is compressed"),
        (&good, central + 24, &[7], "bytes and stores"),
        (&good, central + 28, &[0xff, 0xff], "damaged"),
        (&good, central + 42, &[1], "should be at byte 1"),
        (
            &good,
            central + 20,
            &[0xfe, 0xff, 0xff, 0, 0xfe, 0xff, 0xff],
            "should be at byte 0",
        ),
        (&good, central + 20, &[0xff; 8], "has no 64-bit size"),
        (&good, last + 42, &[0, 0, 0], "should be at byte 0"),
        (&wide, locator + 8, &[1], "64-bit end record"),
    ];
    for (file, at, bytes, part) in cases {
        let mut file = file.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file, &[part], parse);
    }
    // An entry within another: its header is data.
    let inner = archive(&[("a/data/1".to_owned(), b"x".to_vec())], false);
    let mut entries = sample().entries();
    entries.insert(0, ("a/data/0".to_owned(), inner));
    entries.insert(1, ("a/data/1".to_owned(), b"x".to_vec()));
    let mut nested = archive(&entries, false);
    let second = nested
        .windows(4)
        .enumerate()
        .filter(|(_, b)| *b == b"PK\x01\x02");
    // One directory is in the inner archive.
    let second = second.map(|(at, _)| at).nth(2).unwrap();
    nested[second + 42..second + 46].copy_from_slice(&64u32.to_le_bytes());
    refused(&nested, &["'a/data/0' and 'a/data/1' overlap"], parse);
    for len in 0..good.len() {
        assert!(parse(&good[..len]).is_err(), "{len} bytes");
    }
}

/// Checks the guarantees of [`parse`] for any bytes.
fn check(file: &[u8]) {
    for tensor in parse(file).unwrap_or_default() {
        let data = &file[tensor.range.clone()];
        let elements: u64 = tensor.shape.iter().product();
        let width = tensor.dtype.bytes() as u64;
        assert!(elements * width <= file.len() as u64, "{tensor:?}");
        let last: u64 = match &tensor.strides {
            Some(strides) => tensor
                .shape
                .iter()
                .zip(strides)
                .map(|(size, stride)| (size - 1) * stride)
                .sum(),
            None => elements.saturating_sub(1),
        };
        let numbers = if elements == 0 { 0 } else { last + 1 };
        assert_eq!(data.len() as u64, numbers * width, "{tensor:?}");
    }
}

proptest! {
    /// Any views of any storages round-trip.
    #[test]
    fn written_views_round_trip(
        count in 1u16..64,
        views in prop::collection::vec((0u64..70, prop::collection::vec((0u64..5, 0u64..20), 0..4)), 1..8),
        wide: bool,
    ) {
        let mut file = TorchFile::default();
        let storage = file.storage("ShortStorage", numbers(count));
        let mut expected = Vec::new();
        for (i, (offset, dims)) in views.iter().enumerate() {
            let (shape, strides): (Vec<u64>, Vec<u64>) = dims.iter().copied().unzip();
            let mut places = vec![*offset];
            for (size, stride) in dims {
                places = places.iter().flat_map(|at| (0..*size).map(move |n| at + n * stride)).collect();
            }
            let fits = places.iter().all(|at| *at < u64::from(count)) && places.len() <= usize::from(count);
            if fits {
                file.tensor(&format!("t{i}"), &View { storage, offset: *offset, shape, strides });
                expected.push(places.iter().map(|at| *at as u16).collect::<Vec<_>>());
            }
        }
        let file = archive(&file.entries(), wide);
        let tensors = parse(&file).unwrap();
        let found: Vec<_> = tensors.iter().map(|tensor| read(&file, tensor)).collect();
        prop_assert_eq!(found, expected);
    }

    /// Changed bytes give an error or tensors within the file.
    #[test]
    fn damaged_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        wide: bool,
    ) {
        let mut file = archive(&sample().entries(), wide);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        check(&file);
    }

    /// Random pickles of valid opcodes in a valid archive.
    #[test]
    fn random_pickles_never_panic(
        parts in prop::collection::vec(prop::sample::select(PARTS), 0..60),
    ) {
        let pickle: Vec<u8> = parts.concat();
        check(&changed(|entries| entries[0].1 = pickle.clone()));
    }
}

/// Opcodes with arguments, and whole values.
const PARTS: &[&[u8]] = &[
    b"N",
    b"\x88",
    b"K\x01",
    b"M\x00\x01",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"X\x07\0\0\0storage",
    b"X\x01\0\0\x000",
    b")",
    b"\x85",
    b"\x86",
    b"\x87",
    b"t",
    b"]",
    b"}",
    b"(",
    b"(",
    b"a",
    b"e",
    b"s",
    b"u",
    b"b",
    b"R",
    b"Q",
    b"q\x01",
    b"h\x01",
    b".",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nHalfStorage\n",
    b"(X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x18tQ",
    b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89N",
];
