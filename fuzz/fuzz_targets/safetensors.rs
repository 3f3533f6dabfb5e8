//! Any bytes as a safetensors file: an error, or tensors that cover the data without gaps or
//! overlaps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantier_gguf::safetensors::parse;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse(file) else { return };
    assert!(header.tensors.is_sorted_by(|a, b| a.name < b.name));
    let mut covered = 0;
    for tensor in &header.tensors {
        let data = &file[tensor.range.clone()];
        assert_eq!(
            data.len() as u64,
            tensor.shape.iter().product::<u64>() * tensor.dtype.bytes() as u64
        );
        covered += data.len();
    }
    let json = u64::from_le_bytes(*file.first_chunk().expect("eight bytes")) as usize;
    assert_eq!(8 + json + covered, file.len());
});
