//! Hand-made GGUF files.

/// A hand-made GGUF file, in which any number can be wrong.
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// Counts of tensors and keys in the header; `None` for the true ones.
    pub n_tensors: Option<u64>,
    pub n_keys: Option<u64>,
    pub keys: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub alignment: usize,
    /// Bytes after the header.
    pub data: usize,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: 256,
        }
    }
}

impl Raw {
    /// Adds a key: its name, the number of its type, the bytes of its value.
    pub fn key(mut self, key: &[u8], value_type: u32, value: &[u8]) -> Raw {
        self.keys
            .push([&string(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    /// Adds a tensor with this description, true or not.
    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Raw {
        let mut bytes = string(name.as_bytes());
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(
            self.n_tensors
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        bytes.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(
            bytes.len().next_multiple_of(self.alignment.max(1)) + self.data,
            0,
        );
        bytes
    }
}

/// A string in file format.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// An array in file format, from the number of its element type on; the length may be wrong.
pub fn array(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}
