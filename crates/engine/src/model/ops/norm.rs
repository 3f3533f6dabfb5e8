//! RMS norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016).

use quantier_blocks::vector::{sum, sum_of_squares, vectorized};

/// Divides every row by its root mean square and multiplies by `weight`, which has the row's
/// length.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let columns = weight.len();
    let normalize = |row: &mut [f32]| {
        let mean = sum_of_squares(row) / columns as f64;
        let scale = 1.0 / (mean as f32 + epsilon).sqrt();
        row.iter_mut()
            .zip(weight)
            .for_each(|(x, weight)| *x = *x * scale * weight);
    };
    vectorized(
        #[inline(always)]
        || x.chunks_exact_mut(columns).for_each(normalize),
    );
}

/// Centres every row, divides by its standard deviation, multiplies by `weight` and adds `bias`.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let columns = weight.len();
    let normalize = |row: &mut [f32]| {
        let mean = (sum(row) / columns as f64) as f32;
        row.iter_mut().for_each(|x| *x -= mean);
        let variance = sum_of_squares(row) / columns as f64;
        let scale = 1.0 / (variance as f32 + epsilon).sqrt();
        let places = row.iter_mut().zip(weight).zip(bias);
        places.for_each(|((x, weight), bias)| *x = *x * scale * weight + bias);
    };
    vectorized(
        #[inline(always)]
        || x.chunks_exact_mut(columns).for_each(normalize),
    );
}

/// Derivative of [`rms_norm`], or of [`layer_norm`] if `centred`: turns the output gradient `g`
/// into the gradient of `x`.
///
/// With the (centred) row `c`, its scale `s` and the weighted gradient `h`: `s (h - c s^2 mean(c
/// h))`, centred if `centred`.
pub(crate) fn derivative(x: &[f32], g: &mut [f32], weight: &[f32], epsilon: f32, centred: bool) {
    let columns = weight.len();
    let mean = |row: &[f32]| match centred {
        true => (sum(row) / columns as f64) as f32,
        false => 0.0,
    };
    let mut c = vec![0.0f32; columns];
    for (h, x) in g.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
        vectorized(
            #[inline(always)]
            || {
                let mean_of_x = mean(x);
                c.iter_mut().zip(x).for_each(|(c, x)| *c = x - mean_of_x);
                let s = 1.0 / ((sum_of_squares(&c) / columns as f64) as f32 + epsilon).sqrt();
                h.iter_mut()
                    .zip(weight)
                    .for_each(|(h, weight)| *h *= weight);
                let both: f64 = c.iter().zip(&*h).map(|(c, h)| f64::from(c * h)).sum();
                let back = s * s * (both / columns as f64) as f32;
                h.iter_mut()
                    .zip(&c)
                    .for_each(|(h, c)| *h = s * (*h - c * back));
                let mean_of_h = mean(h);
                h.iter_mut().for_each(|h| *h -= mean_of_h);
            },
        );
    }
}
