//! The part of the protobuf wire format used by tokenizer models.
//!
//! A message is a list of fields, each a key (number and wire type in one varint) and a payload.
//! Payloads are slices of the input: nothing is allocated.

/// A field's payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Payload<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64([u8; 8]),
    /// Wire type 2: text, bytes or a message.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32([u8; 4]),
}

/// The fields of a message in file order. Ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    /// Unread bytes.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn varint(&mut self) -> Result<u64, String> {
        /// Ten groups of seven bits hold 64.
        const LONGEST: usize = 10;
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(LONGEST).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < LONGEST {
            "it ends within a number"
        } else {
            "a number has no end"
        }
        .to_owned())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).ok().filter(|&n| n <= self.rest.len()).ok_or_else(|| {
            format!("a field claims {length} bytes and {} are left; the file is damaged or cut short", self.rest.len())
        })?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn field(&mut self) -> Result<(u64, Payload<'a>), String> {
        let key = self.varint()?;
        let payload = match key & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => Payload::Fixed64(self.array()?),
            2 => {
                let length = self.varint()?;
                Payload::Bytes(self.take(length)?)
            }
            5 => Payload::Fixed32(self.array()?),
            other => return Err(format!("wire type {other} is not one of protobuf's")),
        };
        match key >> 3 {
            0 => Err("a field has the number 0".to_owned()),
            number => Ok((number, payload)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Payload<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, Payload<'_>)>, String> {
        Fields::new(bytes).collect()
    }

    #[test]
    fn fields_of_every_wire_type() {
        let bytes = [
            0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1a, 2, b'h', b'i', 0x25, 9, 8, 7,
            6, // 1 to 4
        ];
        assert_eq!(
            all(&bytes).unwrap(),
            [
                (1, Payload::Varint(150)),
                (2, Payload::Fixed64([1, 2, 3, 4, 5, 6, 7, 8])),
                (3, Payload::Bytes(b"hi")),
                (4, Payload::Fixed32([9, 8, 7, 6])),
            ]
        );
        assert_eq!(all(&[]).unwrap(), []);
    }

    #[test]
    fn wrong_lengths_and_truncations_are_errors() {
        for (bytes, what) in [
            (&[0x08][..], "ends within a number"),
            (&[0x08, 0x80], "ends within a number"),
            (
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "no end",
            ),
            (&[0x0a, 5, 1, 2], "claims 5 bytes"),
            (
                &[0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "claims 18446744073709551615 bytes",
            ),
            (&[0x0d, 1, 2], "claims 4 bytes"),
            (&[0x0b], "wire type 3"),
            (&[0x00, 0x00], "number 0"),
        ] {
            let error = all(bytes).unwrap_err();
            assert!(error.contains(what), "{bytes:?}: {error}");
        }
    }
}
