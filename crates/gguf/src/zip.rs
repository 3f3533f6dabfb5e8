//! Zip archives of stored (uncompressed) entries: the container of `torch.save`.
//!
//! ```text
//! per entry   local header (30 bytes), name, extra field, data
//! per entry   central header (46 bytes), name, extra field, comment
//! end         the number of entries, place and size of the central directory, comment
//! ```
//!
//! The central directory is authoritative; a local header only gives the start of its data. Sizes
//! and offsets of 0xffffffff are replaced by 64-bit numbers in an extra field, those of the end
//! record by a record before it (zip64). [`entries`] checks everything: the ranges of an [`Entry`]
//! need no further checks.

use crate::shown;
use byteorder::{ByteOrder, LittleEndian};
use std::ops::Range;

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR64: &[u8; 4] = b"PK\x06\x07";
/// Sizes of the records in bytes, without names, extra fields and comments.
const LOCAL_LEN: usize = 30;
const CENTRAL_LEN: usize = 46;
const END_LEN: usize = 22;
const END64_LEN: usize = 56;
const LOCATOR64_LEN: usize = 20;
/// Longest comment of an archive, in bytes.
const MAX_COMMENT: usize = 0xffff;
/// Id of the extra field with 64-bit sizes and offsets.
const EXTRA64: u16 = 1;
/// Marks a number that is stored in 64 bits elsewhere.
const ELSEWHERE: u32 = u32::MAX;
/// Bit 0 of the flags.
const ENCRYPTED: u16 = 1;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<'a> {
    /// Path in the archive, unique.
    pub(crate) name: &'a str,
    /// Byte range in the archive.
    pub(crate) range: Range<usize>,
}

/// True if a file begins like an archive with entries.
pub(crate) fn is_zip(file: &[u8]) -> bool {
    file.starts_with(LOCAL)
}

/// The entries of an archive in data order, without overlaps.
///
/// # Errors
/// The defect and its place; the caller adds the file's name.
pub(crate) fn entries(file: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let directory = directory(file)?;
    let mut rest = &file[directory.clone()];
    let mut places = Vec::new();
    while !rest.is_empty() {
        let header = Central::parse(rest, file.len() - rest.len())?;
        rest = &rest[header.len..];
        let place = header.place(file, directory.start)?;
        places.push((header.offset, header.name, place));
    }
    places.sort_by_key(|(offset, ..)| *offset);
    for pair in places.windows(2) {
        let ((_, first, place), (offset, second, _)) = (&pair[0], &pair[1]);
        if place.end > *offset {
            let (first, second) = (shown(first), shown(second));
            return Err(format!("its entries {first} and {second} overlap"));
        }
    }
    let mut names: Vec<&str> = places.iter().map(|(_, name, _)| *name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("its entry {} appears twice", shown(pair[0])));
    }
    let entry = |(_, name, range)| Entry { name, range };
    Ok(places.into_iter().map(entry).collect())
}

/// Byte range of the central directory.
fn directory(file: &[u8]) -> Result<Range<usize>, String> {
    let cut = || {
        "the directory at its end is missing, so it is truncated; download it again, or save it again"
            .to_owned()
    };
    let last = file.len().checked_sub(END_LEN).ok_or_else(cut)?;
    let first = last.saturating_sub(MAX_COMMENT);
    let is_end = |at: &usize| {
        let record = &file[*at..];
        let comment = usize::from(LittleEndian::read_u16(&record[20..]));
        record.starts_with(END) && comment == record.len() - END_LEN
    };
    let end = (first..=last).rev().find(is_end).ok_or_else(cut)?;
    let record = &file[end..];
    let mut directory_end = end;
    let mut size = u64::from(LittleEndian::read_u32(&record[12..]));
    let mut start = u64::from(LittleEndian::read_u32(&record[16..]));
    let locator = end
        .checked_sub(LOCATOR64_LEN)
        .map(|at| &file[at..])
        .filter(|record| record.starts_with(LOCATOR64));
    if let Some(locator) = locator {
        let at = LittleEndian::read_u64(&locator[8..]);
        let record = usize::try_from(at)
            .ok()
            .and_then(|at| file.get(at..at.checked_add(END64_LEN)?))
            .filter(|record| record.starts_with(END64))
            .ok_or_else(|| format!("its 64-bit end record is not at byte {at}"))?;
        directory_end = at as usize;
        size = LittleEndian::read_u64(&record[40..]);
        start = LittleEndian::read_u64(&record[48..]);
    }
    match start.checked_add(size) {
        Some(end) if end <= directory_end as u64 => Ok(start as usize..end as usize),
        _ => Err(format!(
            "its directory of {size} bytes at byte {start} is not before its end at {directory_end}"
        )),
    }
}

/// A header of the central directory.
struct Central<'a> {
    name: &'a str,
    size: u64,
    /// Offset of the local header.
    offset: usize,
    /// Size of this header in bytes, with its variable fields.
    len: usize,
}

impl<'a> Central<'a> {
    /// Parses the first header of `bytes`, at offset `at` of the file.
    fn parse(bytes: &'a [u8], at: usize) -> Result<Central<'a>, String> {
        let cut = || format!("the entry of its directory at byte {at} is damaged");
        let header = bytes.get(..CENTRAL_LEN).ok_or_else(cut)?;
        if !header.starts_with(CENTRAL) {
            return Err(cut());
        }
        let u16_at = |at: usize| LittleEndian::read_u16(&header[at..]);
        let u32_at = |at: usize| LittleEndian::read_u32(&header[at..]);
        let [name_len, extra_len, comment_len] =
            [28, 30, 32].map(|field| usize::from(u16_at(field)));
        let extra_start = CENTRAL_LEN + name_len;
        let comment_start = extra_start + extra_len;
        let len = comment_start + comment_len;
        let all = bytes.get(..len).ok_or_else(cut)?;
        let name = std::str::from_utf8(&all[CENTRAL_LEN..extra_start])
            .map_err(|_| format!("the name of an entry at byte {at} is not UTF-8"))?;
        if u16_at(8) & ENCRYPTED != 0 {
            return Err(format!("its entry {} is encrypted", shown(name)));
        }
        if u16_at(10) != 0 {
            return Err(format!(
                "its entry {} is compressed, as in a TorchScript program, and torch.save never does that; save the weights alone, \
                 torch.save(model.state_dict(), FILE)",
                shown(name)
            ));
        }
        let mut wide = wide_numbers(&all[extra_start..comment_start]);
        let mut number = |narrow: u32| match narrow {
            ELSEWHERE => wide
                .next()
                .ok_or_else(|| format!("its entry {} has no 64-bit size", shown(name))),
            _ => Ok(u64::from(narrow)),
        };
        // Order of the fields: size, compressed size, offset.
        let (size, stored, offset) = (
            number(u32_at(24))?,
            number(u32_at(20))?,
            number(u32_at(42))?,
        );
        if size != stored {
            return Err(format!(
                "its entry {} has {size} bytes and stores {stored}",
                shown(name)
            ));
        }
        Ok(Central {
            name,
            size,
            offset: usize::try_from(offset).map_err(|_| cut())?,
            len,
        })
    }

    /// Byte range of the data, from the local header. It must end before the directory.
    fn place(&self, file: &[u8], directory: usize) -> Result<Range<usize>, String> {
        let bad = || {
            format!(
                "its entry {} should be at byte {}, but is not; the file is truncated or damaged",
                shown(self.name),
                self.offset
            )
        };
        let before = &file[..directory];
        let header = before
            .get(self.offset..)
            .and_then(|rest| rest.get(..LOCAL_LEN))
            .filter(|header| header.starts_with(LOCAL))
            .ok_or_else(bad)?;
        let [name_len, extra_len] =
            [26, 28].map(|field| usize::from(LittleEndian::read_u16(&header[field..])));
        let name_start = self.offset + LOCAL_LEN;
        let data_start = name_start + name_len + extra_len;
        let data = usize::try_from(self.size)
            .ok()
            .and_then(|size| Some(data_start..data_start.checked_add(size)?))
            .filter(|data| data.end <= directory)
            .ok_or_else(bad)?;
        match file[name_start..].starts_with(self.name.as_bytes()) && name_len == self.name.len() {
            true => Ok(data),
            false => Err(bad()),
        }
    }
}

/// Numbers of the 64-bit extra field, if present.
fn wide_numbers(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let (id, len) = (
            LittleEndian::read_u16(head),
            LittleEndian::read_u16(&head[2..]),
        );
        let Some((field, rest)) = rest.split_at_checked(usize::from(len)) else {
            break;
        };
        if id == EXTRA64 {
            found = field;
            break;
        }
        extra = rest;
    }
    found
        .as_chunks::<8>()
        .0
        .iter()
        .map(|n| u64::from_le_bytes(*n))
}
