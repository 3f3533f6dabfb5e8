//! Comparison with llama.cpp's presets, and tensors ranked by nats saved per byte.

use super::data::{Choice, Distance, File, Frontier, Preset, Tensor, Verdict, Versus};
use super::numbers::{figure, neighbour_changes, shorten, top_changes};

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
    /// The next larger preset that is better, if none has the file's size.
    pub next: Option<&'a Preset>,
    /// Nats of the file.
    pub ours: f64,
    /// Nats of the preset; between two presets, interpolated (nats logarithmic, bytes linear).
    pub theirs: f64,
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

    /// Predicted nats of a preset, times the factor of measured presets, if there are any.
    pub fn predicted(&self, preset: &Preset) -> Option<f64> {
        let predicted = preset.predicted?;
        Some(
            self.preset_fit
                .map_or(predicted, |fit| fit.apply(predicted)),
        )
    }

    /// Compares a measured file with the measured presets of its size; predictions make no claim. None
    /// if the file is smaller or larger than all of them.
    pub fn comparison<'a>(&'a self, file: &File) -> Option<Comparison<'a>> {
        let ours = file.measured.as_ref()?.mean.value();
        let measured = self.presets.iter();
        let measured = measured
            .filter_map(|preset| Some((preset, preset.measured.as_ref()?.mean.value())))
            .filter(|(_, nats)| nats.is_finite() && *nats > 0.0);
        let mut presets: Vec<(&Preset, f64)> = measured.collect();
        presets.sort_by(|a, b| a.0.bytes.cmp(&b.0.bytes).then(a.1.total_cmp(&b.1)));
        let sizes: Vec<(u64, f64)> = presets.iter().map(|(p, nats)| (p.bytes, *nats)).collect();
        let Neighbours { preset, next } = neighbours(&sizes, file.bytes)?;
        let (preset, nats) = presets[preset];
        let next = next.map(|next| presets[next]);
        let theirs = next.map_or(nats, |(next, of_next)| {
            between(nats, of_next, part(preset.bytes, next.bytes, file.bytes))
        });
        Some(Comparison {
            preset,
            next: next.map(|(next, _)| next),
            ours,
            theirs,
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

impl Versus {
    /// A phrase: `closer to the original than Q4_K_M by 0.0175 ± 0.0003 nats`.
    pub fn phrase(&self, distance: Distance) -> String {
        let unit = distance.terms().unit;
        let (value, error) = figure(self.difference.abs(), self.uncertainty);
        let error = error.map_or(String::new(), |error| format!(" ± {error}"));
        let preset = shorten(&self.preset, 24);
        match self.verdict {
            Verdict::Closer => {
                format!("closer to the original than {preset} by {value}{error}{unit}")
            }
            Verdict::Farther => {
                format!("farther from the original than {preset} by {value}{error}{unit}")
            }
            Verdict::Unclear => {
                format!("indistinguishable from {preset} (a difference of {value}{error}{unit})")
            }
        }
    }
}

impl Frontier {
    /// What was found about a file, in plain words: how often the most probable token differs from the original's or,
    /// of an embedding model, how many of the nearest neighbours; and whether the file is closer to it than the presets that it is compared with. None without a measurement.
    pub fn finding(&self, file: &File) -> Option<String> {
        let measured = file.measured.as_ref()?;
        let mut text = match (measured.same_top, measured.shared_neighbours) {
            (Some(same), _) => top_changes(same),
            (None, Some(shared)) => neighbour_changes(shared),
            (None, None) => return None,
        };
        let comparison = self.comparison(file);
        let presets = comparison.map(|c| [Some(c.preset), c.next]);
        let presets = presets.into_iter().flatten().flatten();
        let versus = presets.filter_map(|preset| {
            let mut versus = file.versus.iter();
            versus.find(|versus| versus.preset == preset.name)
        });
        let phrases: Vec<String> = versus.map(|versus| versus.phrase(self.distance)).collect();
        if !phrases.is_empty() {
            text += &format!(" The file is {}.", phrases.join(", and "));
        }
        Some(text)
    }
}

/// The presets that a file is compared with, by their position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbours {
    /// The preset of the file's size, or the best smaller one.
    pub preset: usize,
    /// The next larger preset that is better, if none has the file's size.
    pub next: Option<usize>,
}

/// The presets that a file of `bytes` is compared with, among presets with their nats by rising size: the
/// one of its size or, if there is none, the best smaller one and the next larger one that is better
/// still. None if the file is smaller or larger than all.
pub fn neighbours(presets: &[(u64, f64)], bytes: u64) -> Option<Neighbours> {
    let same = |preset: u64| {
        let larger = preset as f64 / bytes.max(1) as f64 - 1.0;
        (-SAME_SIZE.0..=SAME_SIZE.1).contains(&larger)
    };
    let all = || presets.iter().enumerate();
    let nearest = all()
        .filter(|(_, (of, _))| same(*of))
        .min_by_key(|(_, (of, _))| of.abs_diff(bytes));
    if let Some((preset, _)) = nearest {
        return Some(Neighbours { preset, next: None });
    }
    let smaller = all().take_while(|(_, (of, _))| *of <= bytes);
    let (preset, (_, nats)) = smaller.min_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
    let mut larger = all().skip_while(|(_, (of, _))| *of < bytes).peekable();
    larger.peek()?;
    let next = larger.find(|(_, (_, of))| of < nats);
    Some(Neighbours {
        preset,
        next: next.map(|(next, _)| next),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{frontier, refmodel};

    #[test]
    fn findings_have_a_verdict_for_each_preset() {
        let mut data = frontier(&refmodel(), &[4.25]);
        let file = data.files[0].clone();
        let comparison = data.comparison(&file).unwrap();
        let preset = comparison.preset.name.clone();
        let versus = |verdict| Versus {
            preset: preset.clone(),
            difference: -0.0175,
            uncertainty: Some(0.00031),
            verdict,
        };
        data.files[0].versus = vec![versus(Verdict::Closer)];
        data.files[0].measured.as_mut().unwrap().same_top = Some(0.97);
        assert_eq!(
            data.finding(&data.files[0]).unwrap(),
            format!(
                "At 3 of 100 positions, the most probable next token differs. The file is closer to the original than \
                 {preset} by 0.01750 ± 0.00031 nats."
            )
        );
        let phrase = versus(Verdict::Unclear).phrase(Distance::KlDivergence);
        assert!(phrase.starts_with("indistinguishable from "), "{phrase}");
        data.files[0].versus.clear();
        let alone = data.finding(&data.files[0]).unwrap();
        assert!(alone.ends_with("differs."), "{alone}");
        data.files[0].measured = None;
        assert_eq!(data.finding(&data.files[0]), None);
    }
}
