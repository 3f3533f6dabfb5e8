//! Which experts see a token, and with which weights.

/// The least sum of weights that they are divided by: the smallest normal number of f16, as in
/// llama.cpp.
const LEAST_SUM: f32 = 6.103_515_6e-5;

/// The sum in lanes of 32 that are folded by halves; the rest one after another.
fn folded_sum(xs: &[f32]) -> f32 {
    let (chunks, rest) = xs.as_chunks::<32>();
    let mut lanes = [0.0f32; 32];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    let eight: [f32; 8] =
        std::array::from_fn(|i| (lanes[i] + lanes[i + 8]) + (lanes[i + 16] + lanes[i + 24]));
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    let sum = (four[0] + four[1]) + (four[2] + four[3]);
    rest.iter().fold(sum, |sum, x| sum + x)
}

/// Exponentials of a row less its maximum, and their sum.
fn exponentials(row: &mut [f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    folded_sum(row)
}

/// Scores to probabilities.
pub(crate) fn softmax(row: &mut [f32]) {
    let sum = exponentials(row);
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The derivative of [`softmax`]: `g` becomes the gradient of the scores.
///
/// As a quotient `e / s` of exponentials: `e (g / s - sum(g e / s^2))`, less the sum of that at the
/// maximum, which nothing but rounding makes differ from 0.
pub(crate) fn softmax_derivative(scores: &[f32], g: &mut [f32]) {
    let mut e = scores.to_vec();
    let s = exponentials(&mut e);
    let of_sum: Vec<f32> = g.iter().zip(&e).map(|(g, e)| g * e / (s * s)).collect();
    let of_sum = folded_sum(&of_sum);
    g.iter_mut()
        .zip(&e)
        .for_each(|(g, e)| *g = (*g / s - of_sum) * e);
    let of_max = folded_sum(g);
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    g.iter_mut()
        .zip(scores)
        .filter(|(_, score)| **score == max)
        .for_each(|(g, _)| *g -= of_max);
}

/// The numbers of the `count` most probable experts.
pub(crate) fn most_probable(probabilities: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    order.truncate(count);
    order
}

/// How probabilities become weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighing {
    /// Weights are multiplied by this.
    pub scale: f32,
    /// Whether they are divided by the sum of the chosen probabilities.
    pub normalized: bool,
}

impl Weighing {
    /// Probabilities to weights, for the experts in `chosen`; the others' weights mean nothing.
    pub(crate) fn weights(&self, row: &mut [f32], chosen: &[usize]) {
        let sum = self
            .normalized
            .then(|| chosen_sum(row, chosen).max(LEAST_SUM));
        row.iter_mut().for_each(|x| *x *= self.scale);
        if let Some(sum) = sum {
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }

    /// The derivative of [`Weighing::weights`]: `g`, which is 0 but for the chosen experts, becomes
    /// the gradient of the probabilities.
    pub(crate) fn derivative(&self, probabilities: &[f32], chosen: &[usize], g: &mut [f32]) {
        if !self.normalized {
            g.iter_mut().for_each(|g| *g *= self.scale);
            return;
        }
        let sum = chosen_sum(probabilities, chosen);
        let divisor = sum.max(LEAST_SUM);
        let of_divisor: Vec<f32> = g
            .iter()
            .zip(probabilities)
            .map(|(g, p)| g * (p * self.scale) / (divisor * divisor))
            .collect();
        let of_sum = match sum >= LEAST_SUM {
            true => folded_sum(&of_divisor),
            false => 0.0,
        };
        g.iter_mut().for_each(|g| *g = *g / divisor * self.scale);
        chosen.iter().for_each(|expert| g[*expert] -= of_sum);
    }
}

fn chosen_sum(probabilities: &[f32], chosen: &[usize]) -> f32 {
    let mut masked = vec![0.0; probabilities.len()];
    chosen
        .iter()
        .for_each(|expert| masked[*expert] = probabilities[*expert]);
    folded_sum(&masked)
}
