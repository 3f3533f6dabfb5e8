//! Axes: mapping of values to coordinates, and positions of ticks.

use std::ops::RangeInclusive;

/// Steps of a logarithmic axis within a decade, from coarse to fine.
const LOG_STEPS: [&[u32]; 4] = [&[1], &[1, 3], &[1, 2, 5], &[1, 2, 3, 4, 5, 6, 8]];
/// Steps of a linear axis, per power of ten.
const LINEAR_STEPS: [f64; 4] = [1.0, 2.0, 2.5, 5.0];

/// True if a value in nats can be drawn on a logarithmic axis: neither 0 nor implausibly large.
pub(super) fn drawable(nats: f64) -> bool {
    (1e-12..=1e6).contains(&nats)
}

/// Mapping of values to coordinates along a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    log: bool,
    /// Lowest and highest value.
    pub(super) low: f64,
    pub(super) high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Axis of `values` (more than one; above 0 for a logarithmic axis), drawn between the
    /// coordinates `from` and `to`.
    pub(super) fn new(log: bool, values: RangeInclusive<f64>, from: f64, to: f64) -> Axis {
        let (low, high) = values.into_inner();
        Axis {
            log,
            low,
            high,
            from,
            to,
        }
    }

    /// Coordinate of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + part * (self.to - self.from)
    }

    /// The same axis in other units: value x factor + offset replaces value.
    pub(super) fn scaled(&self, factor: f64, offset: f64) -> Axis {
        Axis {
            low: self.low * factor + offset,
            high: self.high * factor + offset,
            ..*self
        }
    }

    /// True if a value is within the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Round values at least `apart` from each other, as many as fit.
    pub(super) fn ticks(&self, apart: f64) -> Vec<f64> {
        let most = ((self.to - self.from).abs() / apart).floor().max(1.0) as usize;
        match self.log {
            true => {
                let fits = |ticks: &Vec<f64>| {
                    ticks
                        .windows(2)
                        .all(|pair| (self.at(pair[1]) - self.at(pair[0])).abs() >= apart)
                };
                let mut choices = LOG_STEPS.iter().rev().map(|steps| self.log_ticks(steps));
                choices.find(fits).unwrap_or_else(|| self.decades(most))
            }
            false => self.linear_ticks(most),
        }
    }

    fn log_ticks(&self, steps: &[u32]) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = decades.flat_map(|decade| steps.iter().map(move |&step| power(step, decade)));
        all.filter(|&value| self.holds(value)).collect()
    }

    /// Powers of ten, thinned out to at most `most`.
    fn decades(&self, most: usize) -> Vec<f64> {
        let all = self.log_ticks(&[1]);
        let every = all.len().div_ceil(most.max(1)).max(1);
        all.into_iter().step_by(every).collect()
    }

    fn linear_ticks(&self, most: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / most as f64;
        let decade = rough.log10().floor() as i32;
        let steps =
            (decade..=decade + 1).flat_map(|d| LINEAR_STEPS.map(|step| step * 10_f64.powi(d)));
        let step = steps
            .into_iter()
            .find(|&step| step >= rough)
            .unwrap_or(10_f64.powi(decade + 2));
        let first = (self.low / step).ceil() as i64;
        (first..first + most as i64 + 1)
            .map(|i| i as f64 * step)
            .filter(|&value| self.holds(value))
            .collect()
    }
}

/// step x 10^decade as the nearest float to its decimal form: 2e-3 is 0.002, not
/// 0.0020000000000000004.
fn power(step: u32, decade: i32) -> f64 {
    match decade < 0 {
        true => f64::from(step) / 10_f64.powi(-decade),
        false => f64::from(step) * 10_f64.powi(decade),
    }
}

/// Label of a tick: `0.05`, `12`, `1e-5`.
pub(super) fn tick(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    match value != 0.0 && value.abs() < 9.9e-5 {
        true => format!("{value:.0e}"),
        false => format!("{rounded}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_apart() {
        let linear = Axis::new(false, 2.29..=6.7, 0.0, 900.0);
        assert_eq!(
            linear.ticks(90.0),
            [2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5]
        );
        let log = Axis::new(true, 0.0018..=0.6, 500.0, 0.0);
        assert_eq!(
            log.ticks(30.0),
            [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
        );
        let wide = Axis::new(true, 1e-12..=10.0, 0.0, 100.0);
        assert!(wide.ticks(20.0).len() <= 6);
        for axis in [linear, log, wide] {
            for value in axis.ticks(20.0) {
                assert!(axis.holds(value));
            }
        }
        assert_eq!(tick(0.002), "0.002");
        assert_eq!(tick(1e-5), "1e-5");
        assert_eq!(tick(4.0), "4");
    }

    #[test]
    fn axis_ends_map_to_its_ends() {
        for log in [false, true] {
            let axis = Axis::new(log, 2.0..=32.0, 10.0, 110.0);
            assert_eq!((axis.at(2.0), axis.at(32.0)), (10.0, 110.0));
        }
        assert!((Axis::new(true, 2.0..=32.0, 10.0, 110.0).at(8.0) - 60.0).abs() < 1e-9);
    }
}
