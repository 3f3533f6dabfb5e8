//! Coverage of experts: importance weights of experts with few tokens are noise or missing.

use quantier_arch::role::block_of;
use quantier_gguf::imatrix::Imatrix;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Experts with few tokens or none, for tensors that share their routing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// Layer of the tensors.
    pub layer: Option<u32>,
    /// Names of the tensors.
    pub tensors: Vec<String>,
    /// Number of experts per tensor.
    pub experts: usize,
    /// Mean number of tokens per expert.
    pub mean: f64,
    /// Experts without tokens.
    pub never: Vec<usize>,
    /// Other experts below the given fraction of the mean, with their token counts.
    pub hardly: Vec<(usize, i64)>,
}

/// Experts with fewer tokens than `fraction` of their tensor's mean, including all without tokens.
pub fn gaps(imatrix: &Imatrix, fraction: f64) -> Vec<Gap> {
    let mut found: Vec<Gap> = Vec::new();
    for (tensor, entry) in &imatrix.entries {
        let (experts, layer) = (entry.counts.len(), block_of(tensor));
        let mean = entry.counts.iter().map(|&c| c as f64).sum::<f64>() / experts.max(1) as f64;
        let counted = || entry.counts.iter().copied().enumerate();
        let never: Vec<_> = counted()
            .filter(|(_, count)| *count == 0)
            .map(|(expert, _)| expert)
            .collect();
        let few = |&(_, count): &(usize, i64)| count != 0 && (count as f64) < fraction * mean;
        let hardly: Vec<_> = counted().filter(few).collect();
        if never.is_empty() && hardly.is_empty() {
            continue;
        }
        let gap = Gap {
            layer,
            tensors: vec![tensor.clone()],
            experts,
            mean,
            never,
            hardly,
        };
        match found.iter_mut().find(|known| known.same_routing(&gap)) {
            Some(known) => known.tensors.push(tensor.clone()),
            None => found.push(gap),
        }
    }
    found.sort_by_key(|gap| gap.layer);
    found
}

/// Tokens per expert, over all layers with experts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// Number of layers with experts.
    pub layers: usize,
    /// Number of experts in all layers.
    pub experts: usize,
    /// Tokens of the expert with the fewest.
    pub fewest: i64,
    /// Median of the tokens per expert.
    pub median: i64,
    /// Layers with experts without tokens, and the number of these.
    pub never: BTreeMap<u32, usize>,
}

/// The coverage of experts by a text; `None` without experts, or if the file has one count for all
/// of them. `is_of_experts` is true for tensors of experts.
pub fn coverage(imatrix: &Imatrix, is_of_experts: impl Fn(&str) -> bool) -> Option<Coverage> {
    // The tensors of a layer share their routing.
    let mut layers: BTreeSet<(u32, &[i64])> = BTreeSet::new();
    for (tensor, entry) in &imatrix.entries {
        let counted = entry.counts.len() > 1 && is_of_experts(tensor);
        if let Some(layer) = block_of(tensor).filter(|_| counted) {
            layers.insert((layer, &entry.counts));
        }
    }
    let mut tokens: Vec<i64> = layers
        .iter()
        .flat_map(|(_, counts)| *counts)
        .copied()
        .collect();
    tokens.sort_unstable();
    let never = layers.iter().map(|(layer, counts)| {
        let unreached = counts.iter().filter(|count| **count == 0);
        (*layer, unreached.count())
    });
    Some(Coverage {
        layers: layers.len(),
        experts: tokens.len(),
        fewest: *tokens.first()?,
        median: tokens[tokens.len() / 2],
        never: never.filter(|(_, unreached)| *unreached > 0).collect(),
    })
}

impl Coverage {
    /// Number of experts without tokens in all layers.
    pub fn unreached(&self) -> usize {
        self.never.values().sum()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coverage { fewest, median, .. } = self;
        write!(f, "{fewest} at least, {median} in the median")?;
        match (self.unreached(), self.never.len()) {
            (0, _) => Ok(()),
            (experts, layers) => write!(
                f,
                "; none for {experts} of {} experts, in {layers} of {} layers",
                self.experts, self.layers
            ),
        }
    }
}

impl Gap {
    fn same_routing(&self, other: &Gap) -> bool {
        let key = |gap: &Gap| (gap.layer, gap.experts, gap.mean.to_bits());
        key(self) == key(other) && self.never == other.never && self.hardly == other.hardly
    }
}

/// The first few items of a list, and the number of others.
pub fn some(items: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 8;
    let more = items.len().saturating_sub(SHOWN);
    let shown: Vec<_> = items.take(SHOWN).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.layer, &self.tensors[..]) {
            (Some(layer), [_, _, ..]) => write!(f, "layer {layer}")?,
            (_, tensors) => f.write_str(&tensors.join(", "))?,
        }
        write!(
            f,
            ", {} experts with {:.1} tokens on average: ",
            self.experts, self.mean
        )?;
        if !self.never.is_empty() {
            write!(
                f,
                "no tokens for {}",
                some(self.never.iter().map(ToString::to_string))
            )?;
        }
        if !self.hardly.is_empty() {
            let hardly = some(
                self.hardly
                    .iter()
                    .map(|(expert, count)| format!("{expert} ({count})")),
            );
            write!(
                f,
                "{}few for {hardly}",
                if self.never.is_empty() { "" } else { "; " }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_gguf::imatrix::Entry;

    #[test]
    fn experts_below_the_fraction_are_found() {
        let mut imatrix = Imatrix::default();
        let mut add = |name: &str, counts: &[i64]| {
            imatrix.entries.insert(
                name.into(),
                Entry {
                    sums: vec![0.0; 4],
                    counts: counts.to_vec(),
                },
            );
        };
        add("blk.10.ffn_up_exps.weight", &[0, 1, 100, 99]);
        add("blk.10.ffn_down_exps.weight", &[0, 1, 100, 99]);
        add("blk.9.ffn_up_exps.weight", &[0, 0, 0, 9]);
        add("blk.9.ffn_up.weight", &[7]);
        let text = |fraction| {
            gaps(&imatrix, fraction)
                .iter()
                .map(Gap::to_string)
                .collect::<Vec<_>>()
        };
        let nine =
            "blk.9.ffn_up_exps.weight, 4 experts with 2.2 tokens on average: no tokens for 0, 1, 2";
        assert_eq!(
            text(0.02)[..],
            [
                nine,
                "layer 10, 4 experts with 50.0 tokens on average: no tokens for 0"
            ]
        );
        let hardly =
            "layer 10, 4 experts with 50.0 tokens on average: no tokens for 0; few for 1 (1)";
        assert_eq!(text(0.1)[1], hardly);
        assert_eq!(gaps(&imatrix, 0.1)[1].tensors.len(), 2);
        let many = Gap {
            never: (0..100).collect(),
            ..gaps(&imatrix, 0.1)[1].clone()
        };
        assert!(many.to_string().contains("6, 7 and 92 more; "), "{many}");
    }

    #[test]
    fn coverage_counts_every_expert_once() {
        let mut imatrix = Imatrix::default();
        let mut add = |name: &str, counts: &[i64]| {
            let sums = vec![0.0; 4];
            let counts = counts.to_vec();
            imatrix.entries.insert(name.into(), Entry { sums, counts });
        };
        add("blk.1.ffn_up_exps.weight", &[0, 1, 100, 99]);
        add("blk.1.ffn_down_exps.weight", &[0, 1, 100, 99]);
        add("blk.2.ffn_up_exps.weight", &[50, 50, 50, 50]);
        add("blk.1.attn_k_b.weight", &[1000, 1000]);
        let experts = |name: &str| name.contains("_exps");
        let found = coverage(&imatrix, experts).unwrap();
        assert_eq!((found.layers, found.experts), (2, 8));
        assert_eq!((found.fewest, found.median), (0, 50));
        assert_eq!(found.never, [(1, 1)].into());
        assert_eq!(
            found.to_string(),
            "0 at least, 50 in the median; none for 1 of 8 experts, in 1 of 2 layers"
        );
        imatrix.entries.retain(|name, _| !experts(name));
        assert_eq!(coverage(&imatrix, experts), None);
    }
}
