//! Writer of `torch.save` files, in PyTorch's format.

/// Extra field that pads data to 64 bytes, as PyTorch writes it.
const PADDING: &[u8] = b"FB";
const ALIGNMENT: usize = 64;

/// A file under construction.
#[derive(Clone, Default)]
pub struct TorchFile {
    storages: Vec<(&'static str, Vec<u8>)>,
    /// The pickled items of the dictionary.
    items: Vec<u8>,
}

/// A view of a storage, in numbers.
#[derive(Clone, Debug)]
pub struct View {
    pub storage: usize,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

impl View {
    /// All of a storage, contiguous.
    pub fn whole(storage: usize, shape: &[u64]) -> View {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        View {
            storage,
            offset: 0,
            shape: shape.to_vec(),
            strides,
        }
    }
}

impl TorchFile {
    /// Adds a storage of a class of `torch`, such as `HalfStorage`; returns its index.
    pub fn storage(&mut self, class: &'static str, bytes: Vec<u8>) -> usize {
        self.storages.push((class, bytes));
        self.storages.len() - 1
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, view: &View) {
        let call = self.rebuild(view);
        self.item(name, &call);
    }

    /// Adds a parameter.
    pub fn parameter(&mut self, name: &str, view: &View) {
        let tensor = self.rebuild(view);
        let parts = [
            b"ctorch._utils\n_rebuild_parameter\n(",
            &tensor[..],
            b"\x88",
            ORDERED_DICT,
            b"tR",
        ];
        self.item(name, &parts.concat());
    }

    /// Adds a key and its pickled value.
    pub fn item(&mut self, key: &str, value: &[u8]) {
        self.items.extend(text(key));
        self.items.extend(value);
    }

    /// The pickled call that creates a tensor.
    pub fn rebuild(&self, view: &View) -> Vec<u8> {
        let (class, bytes) = &self.storages[view.storage];
        let key = view.storage.to_string();
        let global = format!("ctorch\n{class}\n");
        let parts = [
            &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
            &text("storage"),
            global.as_bytes(),
            &text(&key),
            &text("cpu"),
            &integer((bytes.len() / width(class)) as u64),
            b"tQ",
            &integer(view.offset),
            &tuple(&view.shape),
            &tuple(&view.strides),
            b"\x89",
            ORDERED_DICT,
            b"tR",
        ];
        parts.concat()
    }

    /// The pickle of the dictionary.
    pub fn pickle(&self) -> Vec<u8> {
        let version = [&text("version")[..], b"K\x01s"].concat();
        let metadata = [
            &text("_metadata")[..],
            ORDERED_DICT,
            &text(""),
            b"}",
            &version,
            b"s",
        ]
        .concat();
        [
            b"\x80\x02",
            ORDERED_DICT,
            b"q\x00(",
            &self.items,
            b"u}",
            &metadata,
            b"sb.",
        ]
        .concat()
    }

    /// The entries of the archive.
    pub fn entries(&self) -> Vec<(String, Vec<u8>)> {
        let mut entries = vec![
            ("pytorch_model/data.pkl".to_owned(), self.pickle()),
            ("pytorch_model/byteorder".to_owned(), b"little".to_vec()),
        ];
        for (key, (_, bytes)) in self.storages.iter().enumerate() {
            entries.push((format!("pytorch_model/data/{key}"), bytes.clone()));
        }
        entries.push(("pytorch_model/version".to_owned(), b"3\n".to_vec()));
        entries
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        archive(&self.entries(), false)
    }
}

const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";

fn width(class: &str) -> usize {
    match class {
        "DoubleStorage" | "LongStorage" => 8,
        "FloatStorage" | "IntStorage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        _ => 1,
    }
}

/// A pickled text.
pub fn text(text: &str) -> Vec<u8> {
    let len = (text.len() as u32).to_le_bytes();
    [b"X", &len[..], text.as_bytes()].concat()
}

/// A pickled number, in the shortest form.
pub fn integer(n: u64) -> Vec<u8> {
    match n {
        0..256 => vec![b'K', n as u8],
        256..0x1_0000 => [b"M", &n.to_le_bytes()[..2]].concat(),
        0x1_0000..0x8000_0000 => [b"J", &n.to_le_bytes()[..4]].concat(),
        _ => [b"\x8a\x08", &n.to_le_bytes()[..]].concat(),
    }
}

fn tuple(numbers: &[u64]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| integer(*n)).collect();
    [b"(", &numbers[..], b"t"].concat()
}

/// A zip archive of stored entries; with `wide`, all numbers have 64 bits.
pub fn archive(entries: &[(String, Vec<u8>)], wide: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (offset, size) = (file.len() as u64, data.len() as u64);
        let narrow = |n: u64| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
        let numbers: Vec<u8> = [size, size, offset]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        let extra64 = match wide {
            true => [&[1, 0, 24, 0], &numbers[..]].concat(),
            false => Vec::new(),
        };
        let plain = file.len() + 30 + name.len() + extra64.len() + PADDING.len() + 2;
        let padding = plain.next_multiple_of(ALIGNMENT) - plain;
        let padding = [
            PADDING,
            &(padding as u16).to_le_bytes(),
            &vec![b'Z'; padding],
        ]
        .concat();
        let common = [
            &[0, 0][..],
            &[0; 2],
            &[0; 4],
            &[0; 4],
            &narrow(size),
            &narrow(size),
        ]
        .concat();
        let name_len = (name.len() as u16).to_le_bytes();
        let extra_len = ((extra64.len() + padding.len()) as u16).to_le_bytes();
        file.extend(
            [
                b"PK\x03\x04\x2d\0",
                &common[..],
                &name_len,
                &extra_len,
                name.as_bytes(),
            ]
            .concat(),
        );
        file.extend([&extra64, &padding, data].map(Vec::as_slice).concat());
        let extra_len = (extra64.len() as u16).to_le_bytes();
        let header = [
            b"PK\x01\x02\x2d\0\x2d\0",
            &common[..],
            &name_len,
            &extra_len,
            &[0; 10],
        ]
        .concat();
        directory.extend([&header[..], &narrow(offset), name.as_bytes(), &extra64].concat());
    }
    let (start, size, count) = (
        file.len() as u64,
        directory.len() as u64,
        entries.len() as u64,
    );
    file.extend(directory);
    if wide {
        let end = file.len() as u64;
        let numbers = [count, count, size, start].map(u64::to_le_bytes).concat();
        file.extend(
            [
                b"PK\x06\x06",
                &44u64.to_le_bytes()[..],
                &[0x2d, 0, 0x2d, 0],
                &[0; 8],
                &numbers,
            ]
            .concat(),
        );
        file.extend(
            [
                b"PK\x06\x07",
                &[0; 4][..],
                &end.to_le_bytes(),
                &[1, 0, 0, 0],
            ]
            .concat(),
        );
    }
    let narrow = |n: u64| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
    let counts = (count as u16).to_le_bytes();
    file.extend(
        [
            b"PK\x05\x06",
            &[0; 4][..],
            &counts,
            &counts,
            &narrow(size),
            &narrow(start),
            &[0; 2],
        ]
        .concat(),
    );
    file
}
