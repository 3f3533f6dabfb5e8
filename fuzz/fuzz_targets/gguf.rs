//! Any bytes as a GGUF file: an error, or a usable header that round-trips through our writer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantier_gguf::gguf::{
    Array, Endian, Header, Layout, Metadata, TensorInfo, Value, ValueType, parse,
};

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse(file) else { return };
    walk(&header, file);
    let tensors: Vec<TensorInfo> = header
        .tensors
        .iter()
        .map(|(info, _)| info.clone())
        .collect();
    let layout = Layout::new(&header.metadata, &tensors, header.alignment);
    let mut written = layout.header().to_vec();
    written.resize(layout.file_bytes() as usize, 0);
    let again = parse(&written).expect("our own file is readable");
    assert_eq!(serialized(&again.metadata), serialized(&header.metadata));
    assert!(again.tensors.iter().map(|(info, _)| info).eq(&tensors));
    walk(&again, &written);
    if let Ok(layout) = Layout::big_endian(&header.metadata, &tensors, header.alignment) {
        let mut written = layout.header().to_vec();
        written.resize(layout.file_bytes() as usize, 0);
        let again = parse(&written).expect("our own big-endian file is readable");
        assert_eq!(again.endian, Endian::Big);
        assert_eq!(serialized(&again.metadata), serialized(&header.metadata));
    }
});

/// Accesses everything in a header.
fn walk(header: &Header<'_>, file: &[u8]) {
    for (key, value) in header.metadata.iter() {
        assert!(!key.is_empty() && header.metadata.get(key).is_some());
        let _ = (
            value.to_string(),
            value.cut_at_zeros(),
            value.as_u64(),
            value.as_str(),
        );
        if let Some(array) = value.as_array() {
            walk_array(array);
        }
    }
    for (info, offset) in &header.tensors {
        let data = &file[*offset as usize..][..info.bytes() as usize];
        assert!(!data.is_empty() && (offset - header.data_start).is_multiple_of(header.alignment));
        let _ = (info.shape.to_string(), info.shape.trimmed());
    }
}

fn walk_array(array: &Array<'_>) {
    let walked = match array.element() {
        ValueType::String => array.strings().count(),
        ValueType::Array => array.arrays().inspect(walk_array).count(),
        _ => array.values().count(),
    };
    assert_eq!(walked, array.len());
}

/// Bytes instead of values, so that a NaN equals itself.
fn serialized(metadata: &Metadata<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    metadata
        .iter()
        .for_each(|(key, value): (&str, &Value<'_>)| {
            out.extend(key.as_bytes());
            value.write(Endian::Little, &mut out);
        });
    out
}
