//! Any bytes as a file of torch.save: an error, or tensors within the file. Since random bytes are
//! rarely a valid archive, they are also used as the pickle of a valid one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantier_gguf::torch::parse;

#[path = "../../crates/gguf/tests/gguf/torch_files.rs"]
#[allow(dead_code)]
mod torch_files;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let entry = |name: &str, data: &[u8]| (format!("a/{name}"), data.to_vec());
    let entries = [
        entry("data.pkl", bytes),
        entry("data/0", &[7; 48]),
        entry("data/1", &[7; 8]),
    ];
    check(&torch_files::archive(&entries, false));
});

fn check(file: &[u8]) {
    for tensor in parse(file).unwrap_or_default() {
        let (data, width) = (&file[tensor.range.clone()], tensor.dtype.bytes() as u64);
        let elements: u64 = tensor.shape.iter().product();
        assert!(elements * width <= file.len() as u64);
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
        assert_eq!(data.len() as u64, numbers * width);
    }
}
