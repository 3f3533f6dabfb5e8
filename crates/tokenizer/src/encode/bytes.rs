//! GPT-2's alphabet: one character for each byte, none of them a space or a control character.

use std::sync::OnceLock;

/// The character of each byte: itself if printable, otherwise the next one from U+0100 on.
fn alphabet() -> &'static [char; 256] {
    static ALPHABET: OnceLock<[char; 256]> = OnceLock::new();
    ALPHABET.get_or_init(|| {
        let mut beyond = 0x100;
        std::array::from_fn(|b| match b as u8 {
            seen @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => seen.into(),
            _ => {
                beyond += 1;
                char::from_u32(beyond - 1).unwrap_or('\u{100}')
            }
        })
    })
}

/// The character of a byte.
pub(crate) fn char_of(byte: u8) -> char {
    alphabet()[byte as usize]
}

/// Spells bytes in the alphabet.
pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char_of(b)).collect()
}

fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        seen @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(seen as u8),
        0x100..=0x143 => alphabet().iter().position(|&a| a == c).map(|b| b as u8),
        _ => None,
    }
}

/// Decodes a text in the alphabet; `None` if it has other characters.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text)
        .ok()?
        .chars()
        .map(byte_of)
        .collect()
}

/// Decodes a text; other characters become a marker, as in the reference.
pub(crate) fn decode_or_mark(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in String::from_utf8_lossy(text).chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                out.extend(b"[UNK_BYTE_0x");
                c.encode_utf8(&mut [0; 4])
                    .bytes()
                    .for_each(|b| out.extend(format!("{b:02x}").bytes()));
                out.extend(text);
                out.push(b']');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_distinct_characters() {
        for byte in 0..=255u8 {
            assert_eq!(
                decode(char_of(byte).to_string().as_bytes()),
                Some(vec![byte])
            );
        }
        assert_eq!(
            (char_of(b' '), char_of(b'\n'), char_of(0xAD)),
            ('Ġ', 'Ċ', 'Ń')
        );
        assert_eq!(decode("a b".as_bytes()), None);
        assert_eq!(decode_or_mark("a b".as_bytes()), b"a[UNK_BYTE_0x20a b]b");
    }
}
