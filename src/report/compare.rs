//! Ours beside llama.cpp's presets, and which tensors repay their bytes.

use super::data::{Choice, File, Frontier, Preset, Tensor};

/// A preset counts as being of a file's size if it is at most this much smaller (rounding of headers) ...
const SMALLER: f64 = 0.001;
/// ... or at most this much larger: a file that is smaller *and* better is compared all the same.
const LARGER: f64 = 0.05;
/// What a tensor's precision is worth is read off between the types nearest to these bits per weight.
const FEW_BITS: f64 = 3.4;
const MORE_BITS: f64 = 5.5;

/// A file beside the preset nearest to it in size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison<'a> {
    /// The preset.
    pub preset: &'a Preset,
    /// Nats of the file.
    pub ours: f64,
    /// Nats of the preset.
    pub theirs: f64,
    /// Bytes of the file over bytes of the preset, less 1.
    pub larger: f64,
    /// Whether both were measured; else both are predicted.
    pub measured: bool,
}

impl Comparison<'_> {
    /// Ours over theirs: below 1 is better.
    pub fn ratio(&self) -> f64 {
        self.ours / self.theirs
    }

    /// Nats saved; below 0 if the preset is better.
    pub fn saved(&self) -> f64 {
        self.theirs - self.ours
    }
}

impl Frontier {
    /// Predicted nats, after the fit if there is one.
    pub fn corrected(&self, predicted: f64) -> f64 {
        self.fit.map_or(predicted, |fit| fit.apply(predicted))
    }

    /// A file beside the preset that is nearest in size, of those that are not smaller than it and at most 5% larger.
    /// Those that were measured come first if the file was measured. None if no preset is near.
    pub fn comparison<'a>(&'a self, file: &File) -> Option<Comparison<'a>> {
        let larger = |preset: &Preset| file.bytes as f64 / preset.bytes.max(1) as f64 - 1.0;
        let near = |preset: &&Preset| (-LARGER..=SMALLER).contains(&larger(preset));
        let with = |nats: fn(&Preset) -> Option<f64>| {
            let known = self.presets.iter().filter(near).filter_map(|preset| Some((preset, nats(preset)?)));
            known.filter(|(_, theirs)| *theirs > 0.0).min_by_key(|(preset, _)| preset.bytes.abs_diff(file.bytes))
        };
        let both_measured = file.measured.as_ref().and_then(|measured| {
            let (preset, theirs) = with(|preset| preset.measured.as_ref().map(|m| m.kld))?;
            Some(Comparison { preset, ours: measured.kld, theirs, larger: larger(preset), measured: true })
        });
        both_measured.or_else(|| {
            let (preset, theirs) = with(|preset| preset.predicted)?;
            let (ours, theirs) = (self.corrected(file.predicted), self.corrected(theirs));
            Some(Comparison { preset, ours, theirs, larger: larger(preset), measured: false })
        })
    }

    /// Predicted nats of the frontier at a size, linear between its points in the logarithm; none outside of it.
    pub fn nats_at(&self, bytes: u64) -> Option<f64> {
        let pair = self.frontier.windows(2).find(|pair| pair[0].bytes <= bytes && bytes <= pair[1].bytes)?;
        let (a, b) = (pair[0], pair[1]);
        let part = (bytes - a.bytes) as f64 / (b.bytes - a.bytes).max(1) as f64;
        match a.nats > 0.0 && b.nats > 0.0 {
            true => Some((a.nats.ln() * (1.0 - part) + b.nats.ln() * part).exp()),
            false => Some(a.nats * (1.0 - part) + b.nats * part),
        }
    }

    /// What precision is worth, tensor by tensor, the most first; ties in the order of the file.
    pub fn worth(&self) -> Vec<Worth<'_>> {
        let mut all: Vec<Worth> = self.tensors.iter().filter_map(Worth::of).collect();
        all.sort_by(|a, b| b.nats_per_byte.total_cmp(&a.nats_per_byte));
        all
    }
}

/// Geometric mean of ratios above 0; none if there are none.
pub fn geometric_mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = ratios.filter(|r| *r > 0.0).fold((0_u32, 0.0), |(n, sum), r| (n + 1, sum + r.ln()));
    (n > 0).then(|| (sum / f64::from(n)).exp())
}

/// What it is worth to give a tensor about 5.5 bits per weight instead of about 3.4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worth<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// The smaller choice.
    pub few: &'a Choice,
    /// The larger choice.
    pub more: &'a Choice,
    /// Nats saved per byte added.
    pub nats_per_byte: f64,
}

impl<'a> Worth<'a> {
    fn of(tensor: &'a Tensor) -> Option<Worth<'a>> {
        let nearest = |bits: f64| {
            let off = |choice: &Choice| (choice.bpw(tensor.weights) - bits).abs();
            let order = |a: &&Choice, b: &&Choice| off(a).total_cmp(&off(b)).then(a.nats.total_cmp(&b.nats));
            tensor.choices.iter().min_by(order)
        };
        let (few, more) = (nearest(FEW_BITS)?, nearest(MORE_BITS)?);
        let added = more.bytes.checked_sub(few.bytes).filter(|added| *added > 0)?;
        Some(Worth { tensor, few, more, nats_per_byte: (few.nats - more.nats) / added as f64 })
    }
}

impl Choice {
    /// Bits per weight of a tensor of so many weights.
    pub fn bpw(&self, weights: u64) -> f64 {
        8.0 * self.bytes as f64 / weights.max(1) as f64
    }
}

impl Tensor {
    /// The choice of this type.
    pub fn choice(&self, ggml_type: &str) -> Option<&Choice> {
        self.choices.iter().find(|choice| choice.ggml_type.eq_ignore_ascii_case(ggml_type))
    }
}
