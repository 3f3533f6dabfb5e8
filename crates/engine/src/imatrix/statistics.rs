//! Figures of an importance matrix, as llama-imatrix's `--show-statistics` defines them: f32,
//! summed in order.

use quantier_arch::role::{block_of, kind_of, one_block_before};
use quantier_gguf::imatrix::{Entry, Imatrix};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Channels with a mean square up to this count as inactive.
const INACTIVE: f32 = 1e-5;

/// Figures of a tensor's mean squared activations, over the channels of all matrices with at least
/// one token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Name of the tensor.
    pub tensor: String,
    /// Layer, if the tensor belongs to one.
    pub layer: Option<u32>,
    /// Sum.
    pub total: f32,
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub std: f32,
    /// Fraction of active channels, 0 to 1.
    pub active: f32,
    /// Number of channels.
    pub elements: usize,
    /// Entropy of the channels' shares of the sum, in bits.
    pub entropy: f32,
    /// Entropy in percent of that of a uniform distribution.
    pub entropy_percent: f32,
    /// Fraction of channels more than one standard deviation above the mean, 0 to 1 (the ZD score).
    pub zd: f32,
    /// Cosine similarity of the sums with those of the same tensor one layer before; 0 without one.
    pub cosine: f32,
}

/// Averages over the tensors of a layer, weighted by their number of channels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerStatistics {
    /// Layer.
    pub layer: u32,
    /// Average of the sums.
    pub total: f32,
    /// Average of the ZD scores.
    pub zd: f32,
    /// Average of the cosine similarities.
    pub cosine: f32,
}

/// Figures of all tensors (by kind, then descending sum) and of the layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Tensors with at least one token.
    pub tensors: Vec<TensorStatistics>,
    /// In ascending order.
    pub layers: Vec<LayerStatistics>,
}

impl Statistics {
    /// Computes all figures.
    pub fn of(imatrix: &Imatrix) -> Statistics {
        let entries = &imatrix.entries;
        let mut tensors: Vec<_> = entries
            .iter()
            .filter_map(|(name, entry)| of_tensor(name, entry))
            .collect();
        for tensor in &mut tensors {
            let before = one_block_before(&tensor.tensor).and_then(|name| entries.get(&name));
            let before = before.filter(|entry| entry.counts.iter().any(|&c| c != 0));
            let ours = &entries[&tensor.tensor].sums;
            if let Some(before) = before.filter(|entry| entry.sums.len() == ours.len()) {
                tensor.cosine = dot(ours, &before.sums)
                    / (dot(ours, ours).sqrt() * dot(&before.sums, &before.sums).sqrt());
            }
        }
        tensors.sort_by(|a, b| {
            kind_of(&a.tensor)
                .cmp(kind_of(&b.tensor))
                .then(b.total.total_cmp(&a.total))
        });
        let mut sums = BTreeMap::<u32, [f32; 4]>::new();
        for tensor in &tensors {
            let Some(layer) = tensor.layer else { continue };
            let n = tensor.elements as f32;
            let added = [n * tensor.total, n * tensor.zd, n * tensor.cosine, n];
            sums.entry(layer)
                .or_default()
                .iter_mut()
                .zip(added)
                .for_each(|(sum, x)| *sum += x);
        }
        let layer = |(layer, [total, zd, cosine, n]): (u32, [f32; 4])| LayerStatistics {
            layer,
            total: total / n,
            zd: zd / n,
            cosine: cosine / n,
        };
        Statistics {
            tensors,
            layers: sums.into_iter().map(layer).collect(),
        }
    }

    /// Two tables with tab-separated columns.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "Layer\tTensor\tSum(Act^2)\tMin\tMax\tMean\tStd\t% Active\tN\tEntropy\tE (norm)\tZD\tCosSim\n",
        );
        for t in &self.tensors {
            let layer = t.layer.map_or("-".into(), |layer| layer.to_string());
            let _ = writeln!(
                text,
                "{layer:>5}\t{:<20}\t{:10.2}\t{:8.4}\t{:11.4}\t{:6.2}\t{:6.2}\t{:8.2}%\t{:6}\t{:10.4}\t{:6.2}%\t{:10.2}%\t{:8.4}",
                kind_of(&t.tensor),
                t.total,
                t.min,
                t.max,
                t.mean,
                t.std,
                t.active * 100.0,
                t.elements,
                t.entropy,
                t.entropy_percent,
                100.0 * t.zd,
                t.cosine
            );
        }
        text.push_str("\nLayer\tSum(Act^2)\tZD\tCosSim\n");
        for l in &self.layers {
            let _ = writeln!(
                text,
                "{:5}\t{:14.2}\t{:10.4}%\t{:6.4}",
                l.layer,
                l.total,
                100.0 * l.zd,
                l.cosine
            );
        }
        text
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y)
}

fn of_tensor(name: &str, entry: &Entry) -> Option<TensorStatistics> {
    let per_count = entry.sums.len().checked_div(entry.counts.len())?;
    let reached = entry
        .sums
        .chunks(per_count.max(1))
        .zip(&entry.counts)
        .filter(|(_, count)| **count != 0);
    let values: Vec<f32> = reached
        .flat_map(|(sums, &count)| sums.iter().map(move |sum| sum / count as f32))
        .collect();
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f32;
    let total = values.iter().fold(0.0f32, |sum, x| sum + x);
    let mean = total / n;
    let std = (dot(&values, &values) / n - mean * mean).max(0.0).sqrt();
    let inactive = values.iter().filter(|x| x.abs() <= INACTIVE).count();
    let shares = values.iter().map(|x| x / total).filter(|p| *p > 0.0);
    let entropy = shares.fold(0.0f32, |sum, p| sum - p * p.log2());
    let far = values.iter().filter(|x| (**x - mean) / std > 1.0).count();
    Some(TensorStatistics {
        tensor: name.to_owned(),
        layer: block_of(name),
        total,
        min: values.iter().copied().fold(f32::INFINITY, f32::min),
        max: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        mean,
        std,
        active: 1.0 - inactive as f32 / n,
        elements: values.len(),
        entropy,
        entropy_percent: if values.len() > 1 {
            (100.0 * (f64::from(entropy) / f64::from(n).log2())) as f32
        } else {
            0.0
        },
        zd: if std > 0.0 { far as f32 / n } else { 0.0 },
        cosine: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `QUANTIER_IMATRIX=FILE` (GGUF): prints the tables and writes copies beside the file in both
    /// formats, for comparison with llama-imatrix's output.
    #[test]
    #[ignore = "needs a GGUF file that llama-imatrix wrote: set QUANTIER_IMATRIX"]
    fn tables_and_copies_of_a_real_file() {
        use quantier_gguf::imatrix::Format;
        let path = std::path::PathBuf::from(
            std::env::var_os("QUANTIER_IMATRIX").expect("QUANTIER_IMATRIX is set"),
        );
        let imatrix = Imatrix::read(&path).unwrap();
        let sums = crate::imatrix::sums::Sums::of_file(&imatrix, 512);
        assert_eq!(sums.to_file(imatrix.chunk_size).entries, imatrix.entries);
        for (suffix, format) in [("gguf", Format::Gguf), ("dat", Format::Dat)] {
            let copy = path.with_extension(format!("ours.{suffix}"));
            sums.to_file(imatrix.chunk_size)
                .write(&copy, format, &[])
                .unwrap();
        }
        println!("{}", Statistics::of(&imatrix).text());
    }

    #[test]
    fn figures_match_a_manual_calculation() {
        let mut imatrix = Imatrix::default();
        let entry = |sums: &[f32]| Entry {
            sums: sums.to_vec(),
            counts: vec![2, 0],
        };
        imatrix.entries.insert(
            "blk.0.ffn_up.weight".into(),
            entry(&[2.0, 2.0, 2.0, 2.0, 9.0, 9.0, 9.0, 9.0]),
        );
        imatrix.entries.insert(
            "blk.1.ffn_up.weight".into(),
            entry(&[0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]),
        );
        let all = Statistics::of(&imatrix);
        let (a, b) = (&all.tensors[0], &all.tensors[1]);
        assert_eq!(
            (
                a.total,
                a.std,
                a.entropy,
                a.entropy_percent,
                a.zd,
                a.elements
            ),
            (4.0, 0.0, 2.0, 100.0, 0.0, 4)
        );
        assert_eq!(
            (b.total, b.max, b.active, b.entropy, b.zd),
            (4.0, 4.0, 0.25, 0.0, 0.25)
        );
        assert!((b.cosine - 16.0 / (8.0 * 340f32.sqrt())).abs() < 1e-6);
        assert_eq!(all.layers.len(), 2);
    }
}
