//! The arithmetic of this processor and its libraries, as far as results depend on it.

use crate::format::hex;
use crate::model::rows_times_rows;
use sha2::{Digest, Sha256};

/// Digits of the checksum that are shown.
const SHOWN: usize = 8;

/// Name of this machine's arithmetic: equal names give equal bytes.
///
/// Products have one order of additions on every processor, but fuse them only where there is such an
/// instruction, and functions such as `exp` are those of the system's library. So the name contains the
/// checksum of some results.
pub(super) fn name() -> String {
    let mut digest = Sha256::new();
    for i in 0..256 {
        let x = f64::from(i) * 0.173 + 0.01;
        let of_f64 = [
            x.exp(),
            (-x).exp(),
            x.ln(),
            x.sin(),
            x.cos(),
            x.tanh(),
            x.powf(0.37),
            x.ln_1p(),
            x.exp_m1(),
        ];
        let y = x as f32;
        let of_f32 = [
            y.exp(),
            (-y).exp(),
            y.ln(),
            y.sin(),
            y.cos(),
            y.tanh(),
            y.powf(0.37),
            y.sqrt(),
        ];
        of_f64.iter().for_each(|x| digest.update(x.to_le_bytes()));
        of_f32.iter().for_each(|x| digest.update(x.to_le_bytes()));
    }
    // A product of rows longer than a part of a sum.
    const SHAPE: [usize; 3] = [9, 17, 700];
    let numbers = |count: usize| -> Vec<f32> {
        let number = |i: usize| ((i * 7919) % 1013) as f32 / 507.0 - 1.0;
        (0..count).map(number).collect()
    };
    let [rows, columns, inner] = SHAPE;
    let mut out = vec![0.0; rows * columns];
    let (left, right) = (numbers(rows * inner), numbers(columns * inner));
    rows_times_rows(&left, &right, SHAPE, &mut out);
    out.iter().for_each(|x| digest.update(x.to_le_bytes()));
    let checksum = hex(&digest.finalize());
    format!("{} {}", std::env::consts::ARCH, &checksum[..SHOWN])
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_do_not_change() {
        let name = super::name();
        assert_eq!(name, super::name());
        assert!(name.starts_with(std::env::consts::ARCH), "{name}");
    }
}
