//! Any tensors as a quantized checkpoint: errors, or weights that can all be read.
//!
//! The first bytes choose a method and sizes, and tear one shape or type of a sound checkpoint; the others are the numbers
//! of the tensors. `QUANTIER_FUZZ_KIND` limits the methods to those whose name begins with it, in lower case: fp8, int8,
//! packed, gptq, awq, nvfp4, mxfp4, bitnet.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use quantier::convert::Checkpoint;
use std::sync::LazyLock;

#[path = "../../benches/stored/mod.rs"]
#[allow(dead_code)]
mod stored;

static KINDS: LazyLock<Vec<stored::Kind>> = LazyLock::new(|| {
    let wanted = std::env::var("QUANTIER_FUZZ_KIND").unwrap_or_default();
    let name = |kind: &stored::Kind| format!("{kind:?}").to_lowercase();
    let kinds = stored::KINDS.iter().copied();
    let kinds: Vec<_> = kinds.filter(|kind| name(kind).starts_with(&wanted)).collect();
    assert!(!kinds.is_empty(), "QUANTIER_FUZZ_KIND={wanted}: no such kind");
    kinds
});

fuzz_target!(|bytes: &[u8]| {
    let _ = check(&mut Unstructured::new(bytes));
});

fn check(bytes: &mut Unstructured<'_>) -> libfuzzer_sys::arbitrary::Result<()> {
    /// The most weights of a tensor that are read.
    const MOST: u64 = 1 << 16;
    let kind = *bytes.choose(&KINDS)?;
    let [rows, columns] = [bytes.int_in_range(1..=40)? * 4, bytes.int_in_range(1..=12)? * 16];
    let mut model = stored::Model::new(kind, rows, columns);
    for _ in 0..bytes.int_in_range(0..=2)? {
        let tensor = bytes.choose_index(model.tensors.len())?;
        let tensor = &mut model.tensors[tensor];
        match bytes.int_in_range(0..=3)? {
            0 => tensor.dtype = *bytes.choose(stored::DTYPES)?,
            1 => tensor.shape.push(bytes.int_in_range(0..=3)?),
            2 => drop(tensor.shape.pop()),
            _ => {
                let size = bytes.int_in_range(0..=130)?;
                if let Some(last) = tensor.shape.last_mut() {
                    *last = size;
                }
            }
        }
    }
    if bytes.ratio(1, 8)? {
        let tensor = bytes.choose_index(model.tensors.len())?;
        model.tensors.remove(tensor);
    }
    let numbers = bytes.bytes(bytes.len())?;
    let dir = model.write(|i| numbers.get(i % numbers.len().max(1)).copied().unwrap_or(0x38));
    let Ok(checkpoint) = Checkpoint::open(dir.path()) else {
        return Ok(());
    };
    for source in &checkpoint.tensors {
        let count: u64 = source.shape.iter().product::<u64>().min(MOST);
        let mut weights = vec![0.0; count as usize];
        let _ = checkpoint.numbers(source, 0..count, &mut weights);
        let middle = count / 3..count / 2;
        let mut part = vec![0.0; (middle.end - middle.start) as usize];
        let _ = checkpoint.numbers(source, middle, &mut part);
    }
    Ok(())
}
