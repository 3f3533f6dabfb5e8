//! Any bytes as an importance matrix: an error, or finite, non-negative weights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantier_gguf::imatrix::Imatrix;

fuzz_target!(|file: &[u8]| {
    let Ok(imatrix) = Imatrix::parse(file) else {
        return;
    };
    for (name, entry) in &imatrix.entries {
        let means = entry.means();
        assert_eq!(means.len(), entry.sums.len());
        assert!(
            means.iter().all(|&mean| mean.is_finite() && mean >= 0.0),
            "'{name}': {means:?}"
        );
    }
});
