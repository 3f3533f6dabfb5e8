//! The 32-weight types of ggml's first years: one scale (and offset) per block.

use super::num::{Half, max, trunc_i32};
use super::{Block, Fault};
use crate::format::types::GgmlType;

/// 32 signed bytes and a scale: `w = d * q`.
///
/// ```text
/// byte 0   2                       34
///      | d | q0 q1 q2 ...     q31  |
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    d: Half,
    qs: [i8; 32],
}

impl Block<32> for BlockQ8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;

    fn quantize_row(weights: &[[f32; 32]], _importance: Option<&[[f32; 32]]>, row: &mut [Self]) {
        for (x, block) in weights.iter().zip(row) {
            let amax = x.iter().fold(0.0, |amax, v| max(amax, v.abs()));
            let d = amax / 127.0;
            let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
            block.d = Half::from_f32(d);
            for (q, &v) in block.qs.iter_mut().zip(x) {
                *q = trunc_i32((v * inverse).round()) as i8;
            }
        }
    }

    fn dequantize(&self, weights: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (w, &q) in weights.iter_mut().zip(&self.qs) {
            *w = f32::from(q) * d;
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}
