//! Adam (Kingma and Ba 2015) for one array of parameters.

/// Decay of the mean of gradients.
const FIRST: f32 = 0.9;
/// Decay of the mean of squared gradients: of about a hundred steps, as runs have few hundred.
const SECOND: f32 = 0.99;
/// Part of the array's mean of squared gradients that is added to each parameter's own: parameters
/// with hardly any gradient move less.
const SHARED: f32 = 0.01;

/// Running means of gradients and of their squares, without correction of their bias.
#[derive(Clone, Debug, Default)]
pub(super) struct Adam {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
}

/// Corrections of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    rate: f32,
    /// Part of the squared gradient that is added to each.
    shared: f32,
    first: f32,
    second: f32,
}

impl Adam {
    pub(super) fn new(len: usize) -> Adam {
        Adam {
            mean: vec![0.0; len],
            square: vec![0.0; len],
        }
    }

    /// Adds a gradient. Returns the corrections for step `number`, from 1 on, with a learning rate.
    pub(super) fn add(&mut self, gradient: &[f32], rate: f32, number: u64) -> Step {
        let places = self.mean.iter_mut().zip(&mut self.square).zip(gradient);
        let mut sum = 0.0f64;
        for ((mean, square), g) in places {
            *mean += (1.0 - FIRST) * (g - *mean);
            *square += (1.0 - SECOND) * (g * g - *square);
            sum += f64::from(*square);
        }
        let correction = |decay: f32| (1.0 - f64::from(decay).powi(number as i32)).recip() as f32;
        Step {
            rate,
            shared: SHARED * (sum / gradient.len().max(1) as f64) as f32,
            first: correction(FIRST),
            second: correction(SECOND),
        }
    }

    /// The change of one parameter.
    pub(super) fn change(&self, step: Step, at: usize) -> f32 {
        let square = (self.square[at] + step.shared) * step.second;
        match square > 0.0 {
            true => -step.rate * self.mean[at] * step.first / square.sqrt(),
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_gradients_move_by_the_rate_whatever_their_size() {
        let mut adam = Adam::new(2);
        for number in 1..=50 {
            let step = adam.add(&[3e-9, -2e-9], 0.01, number);
            let changes = [0, 1].map(|at| adam.change(step, at));
            assert!((-0.0101..-0.0098).contains(&changes[0]), "{changes:?}");
            assert!((0.0098..0.0101).contains(&changes[1]), "{changes:?}");
        }
        let step = Adam::new(1).add(&[0.0], 0.01, 1);
        assert_eq!(Adam::new(1).change(step, 0), 0.0);
    }
}
