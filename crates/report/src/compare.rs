//! Comparison with llama.cpp's presets, and tensors ranked by nats saved per byte.

use super::data::{Choice, File, Frontier, Preset, Tensor};

/// Tolerances for equal size: a file counts as of a preset's size if it is at most this much
/// smaller (headers differ by that) or larger.
const SAME_SIZE: (f64, f64) = (0.001, 0.01);
/// Bits per weight between which the gain of a tensor is computed; the nearest types are taken.
const FEW_BITS: f64 = 3.4;
const MORE_BITS: f64 = 5.5;

/// A file compared with llama.cpp's presets of its size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison<'a> {
    /// The preset of the file's size, or the nearest smaller one that no other preset beats.
    pub preset: &'a Preset,
    /// The nearest larger preset, if none has the file's size.
    pub next: Option<&'a Preset>,
    /// Nats of the file.
    pub ours: f64,
    /// Nats of the preset; between two presets, interpolated (nats logarithmic, bytes linear).
    pub theirs: f64,
    /// True if all values were measured; otherwise all are predicted.
    pub measured: bool,
}

impl Comparison<'_> {
    /// Our nats over the preset's: below 1 is better.
    pub fn ratio(&self) -> f64 {
        self.ours / self.theirs
    }

    /// Nats saved; negative if the preset is better.
    pub fn saved(&self) -> f64 {
        self.theirs - self.ours
    }
}

impl Frontier {
    /// Predicted nats after the fit, if there is one.
    pub fn corrected(&self, predicted: f64) -> f64 {
        self.fit.map_or(predicted, |fit| fit.apply(predicted))
    }

    /// Compares a file with the presets of its size: measured values where there are enough,
    /// otherwise predicted ones. None if the file is smaller or larger than all presets.
    pub fn comparison<'a>(&'a self, file: &File) -> Option<Comparison<'a>> {
        let measured = self
            .presets
            .iter()
            .filter_map(|preset| Some((preset, preset.measured.as_ref()?.kld)));
        let predicted = self
            .presets
            .iter()
            .filter_map(|preset| Some((preset, self.corrected(preset.predicted?))));
        let by_measurement = file
            .measured
            .as_ref()
            .and_then(|m| compare(file.bytes, m.kld, true, measured.collect()));
        by_measurement.or_else(|| {
            compare(
                file.bytes,
                self.corrected(file.predicted),
                false,
                predicted.collect(),
            )
        })
    }

    /// Predicted nats of the frontier at a size, interpolated linearly in the logarithm; none
    /// outside its range.
    pub fn nats_at(&self, bytes: u64) -> Option<f64> {
        let pair = self
            .frontier
            .windows(2)
            .find(|pair| pair[0].bytes <= bytes && bytes <= pair[1].bytes)?;
        let part = part(pair[0].bytes, pair[1].bytes, bytes);
        Some(between(pair[0].nats, pair[1].nats, part))
    }

    /// Gains of all tensors in descending order; ties in file order.
    pub fn gains(&self) -> Vec<Gain<'_>> {
        let mut all: Vec<Gain> = self.tensors.iter().filter_map(Gain::of).collect();
        all.sort_by(|a, b| b.nats_per_byte.total_cmp(&a.nats_per_byte));
        all
    }
}

/// Compares a file with presets, given their nats.
fn compare<'a>(
    bytes: u64,
    ours: f64,
    measured: bool,
    mut presets: Vec<(&'a Preset, f64)>,
) -> Option<Comparison<'a>> {
    presets.retain(|(_, nats)| nats.is_finite() && *nats > 0.0);
    presets.sort_by(|a, b| a.0.bytes.cmp(&b.0.bytes).then(a.1.total_cmp(&b.1)));
    let same = |preset: &Preset| {
        let larger = preset.bytes as f64 / bytes.max(1) as f64 - 1.0;
        (-SAME_SIZE.0..=SAME_SIZE.1).contains(&larger)
    };
    let nearest = presets
        .iter()
        .filter(|(preset, _)| same(preset))
        .min_by_key(|(preset, _)| preset.bytes.abs_diff(bytes));
    if let Some(&(preset, theirs)) = nearest {
        return Some(Comparison {
            preset,
            next: None,
            ours,
            theirs,
            measured,
        });
    }
    // Presets that no smaller preset beats.
    let mut least = f64::INFINITY;
    presets.retain(|(_, nats)| {
        let unbeaten = *nats < least;
        least = least.min(*nats);
        unbeaten
    });
    let pair = presets
        .windows(2)
        .find(|pair| pair[0].0.bytes <= bytes && bytes <= pair[1].0.bytes)?;
    let [(small, small_nats), (large, large_nats)] = [pair[0], pair[1]];
    let part = part(small.bytes, large.bytes, bytes);
    Some(Comparison {
        preset: small,
        next: Some(large),
        ours,
        theirs: between(small_nats, large_nats, part),
        measured,
    })
}

/// Position of `bytes` between `small` and `large`, as a fraction.
fn part(small: u64, large: u64, bytes: u64) -> f64 {
    (bytes - small) as f64 / (large - small).max(1) as f64
}

/// Interpolation from `a` to `b`: linear in the logarithm, or in the nats if one is 0.
fn between(a: f64, b: f64, part: f64) -> f64 {
    match a > 0.0 && b > 0.0 {
        true => (a.ln() * (1.0 - part) + b.ln() * part).exp(),
        false => a * (1.0 - part) + b * part,
    }
}

/// Geometric mean of positive ratios; none without any.
pub fn geometric_mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = ratios
        .filter(|r| *r > 0.0)
        .fold((0_u32, 0.0), |(n, sum), r| (n + 1, sum + r.ln()));
    (n > 0).then(|| (sum / f64::from(n)).exp())
}

/// Gain of a tensor from about 5.5 instead of about 3.4 bits per weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// The smaller choice.
    pub few: &'a Choice,
    /// The larger choice.
    pub more: &'a Choice,
    /// Nats saved per byte added.
    pub nats_per_byte: f64,
}

impl<'a> Gain<'a> {
    fn of(tensor: &'a Tensor) -> Option<Gain<'a>> {
        let nearest = |bits: f64| {
            let off = |choice: &Choice| (choice.bpw(tensor.weights) - bits).abs();
            let order = |a: &&Choice, b: &&Choice| {
                off(a).total_cmp(&off(b)).then(a.nats.total_cmp(&b.nats))
            };
            tensor.choices.iter().min_by(order)
        };
        let (few, more) = (nearest(FEW_BITS)?, nearest(MORE_BITS)?);
        let added = more
            .bytes
            .checked_sub(few.bytes)
            .filter(|added| *added > 0)?;
        Some(Gain {
            tensor,
            few,
            more,
            nats_per_byte: (few.nats - more.nats) / added as f64,
        })
    }
}

impl Choice {
    /// Bits per weight for a tensor of `weights` weights.
    pub fn bpw(&self, weights: u64) -> f64 {
        8.0 * self.bytes as f64 / weights.max(1) as f64
    }
}

impl Tensor {
    /// The choice of this type.
    pub fn choice(&self, ggml_type: &str) -> Option<&Choice> {
        self.choices
            .iter()
            .find(|choice| choice.ggml_type.eq_ignore_ascii_case(ggml_type))
    }
}
