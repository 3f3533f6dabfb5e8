//! Which experts the text hardly reached: their importance weights are noise, or none at all.

use crate::format::imatrix::Imatrix;
use serde::Serialize;
use std::fmt;

/// An expert that few tokens or none were routed to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// Name of the tensor.
    pub tensor: String,
    /// Index of the expert.
    pub expert: usize,
    /// Tokens that met it.
    pub count: i64,
    /// Tokens that an expert of this tensor met on average.
    pub mean: f64,
}

/// Experts with fewer tokens than `fraction` of their tensor's mean; those that none met are always among them.
pub fn gaps(imatrix: &Imatrix, fraction: f64) -> Vec<Gap> {
    let mut found = Vec::new();
    for (tensor, entry) in &imatrix.entries {
        let mean = entry.counts.iter().map(|&c| c as f64).sum::<f64>() / entry.counts.len().max(1) as f64;
        for (expert, &count) in entry.counts.iter().enumerate() {
            if count == 0 || (count as f64) < fraction * mean {
                found.push(Gap { tensor: tensor.clone(), expert, count, mean });
            }
        }
    }
    found
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap { tensor, expert, count, mean } = self;
        write!(f, "{tensor}: expert {expert} met {count} tokens (mean {mean:.1})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::imatrix::Entry;

    #[test]
    fn experts_below_the_fraction_are_found() {
        let mut imatrix = Imatrix::default();
        imatrix.entries.insert("e".into(), Entry { sums: vec![0.0; 4], counts: vec![0, 1, 100, 99] });
        imatrix.entries.insert("f".into(), Entry { sums: vec![0.0; 4], counts: vec![7] });
        let experts = |fraction| gaps(&imatrix, fraction).iter().map(|g| g.expert).collect::<Vec<_>>();
        assert_eq!((experts(0.0), experts(0.02), experts(0.1)), (vec![0], vec![0], vec![0, 1]));
        assert_eq!(gaps(&imatrix, 0.0)[0].to_string(), "e: expert 0 met 0 tokens (mean 50.0)");
    }
}
