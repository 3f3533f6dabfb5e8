//! GGUF files put together by hand.

/// A GGUF file put together by hand, so that every number in it can lie.
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// Tensors and keys as the header counts them; `None` for the truth.
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
    /// Adds a key with a value: its type's number, then its bytes.
    pub fn key(mut self, key: &[u8], value_type: u32, value: &[u8]) -> Raw {
        self.keys
            .push([&string(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    /// Adds a tensor as described, true or not.
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

/// A string as the format holds it.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// An array as the format holds it, from the number of its elements' type on; the length may lie.
pub fn array(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}
