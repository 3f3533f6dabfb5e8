//! Serialized state of a run between two layers.

use crate::format::snapshot::{Packer, Unpacker};
use std::collections::BTreeMap;

/// Costs of a tensor's types, in nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Costs {
    /// By type.
    pub(super) nats: Vec<f64>,
    /// Costs without error feedback, for types rounded with it; empty without error feedback.
    pub(super) plain: Vec<f64>,
    /// Standard error due to the sampling of rows, averaged over the types.
    pub(super) error: f64,
}

/// Costs by tensor.
pub(super) type Nats = BTreeMap<String, Costs>;

impl Costs {
    /// Costs without a series for plain rounding.
    pub(super) fn of(nats: Vec<f64>) -> Costs {
        Costs {
            nats,
            ..Costs::default()
        }
    }

    /// Adds independent costs of the same types.
    pub(super) fn add(&mut self, other: &Costs) {
        for (mine, others) in [
            (&mut self.nats, &other.nats),
            (&mut self.plain, &other.plain),
        ] {
            mine.resize(others.len(), 0.0);
            mine.iter_mut().zip(others).for_each(|(x, y)| *x += y);
        }
        self.error = self.error.hypot(other.error);
    }

    /// Costs per token, from sums over `tokens`.
    pub(super) fn per(mut self, tokens: usize) -> Costs {
        let all = self.nats.iter_mut().chain(&mut self.plain);
        all.chain([&mut self.error])
            .for_each(|x| *x /= tokens as f64);
        self
    }

    pub(super) fn are_finite(&self) -> bool {
        self.nats.iter().chain(&self.plain).all(|x| x.is_finite())
    }

    /// Standard error relative to the mean cost.
    pub(super) fn relative_error(&self) -> f64 {
        let sum = self.nats.iter().sum::<f64>();
        match sum > 0.0 {
            true => self.error * self.nats.len() as f64 / sum,
            false => 0.0,
        }
    }
}

/// Written files of output Hessians with their checksums.
pub(super) type Files = Vec<(String, String)>;

pub(super) fn pack(nats: &Nats, files: &Files) -> Vec<u8> {
    let mut packed = Packer::default();
    packed.number(files.len());
    for (name, checksum) in files {
        packed.text(name).text(checksum);
    }
    packed.number(nats.len());
    for (name, costs) in nats {
        packed.text(name);
        for numbers in [&costs.nats, &costs.plain, &vec![costs.error]] {
            packed.list(numbers.iter().map(|x| x.to_le_bytes()));
        }
    }
    packed.0
}

pub(super) fn unpack(bytes: &[u8]) -> Option<(Nats, Files)> {
    let mut fields = Unpacker(bytes);
    let mut files = Files::new();
    for _ in 0..fields.number()? {
        files.push((fields.text()?.to_owned(), fields.text()?.to_owned()));
    }
    let mut nats = Nats::new();
    for _ in 0..fields.number()? {
        let name = fields.text()?.to_owned();
        let costs = Costs {
            nats: fields.list(f64::from_le_bytes)?,
            plain: fields.list(f64::from_le_bytes)?,
            error: *fields.list(f64::from_le_bytes)?.first()?,
        };
        nats.insert(name, costs);
    }
    fields.0.is_empty().then_some((nats, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_scores_round_trip_exactly() {
        let mut nats = Nats::new();
        nats.insert(
            "blk.0.attn_q.weight".into(),
            Costs {
                nats: vec![0.1, 1e-300, f64::from_bits(1)],
                plain: vec![2.0],
                error: 0.01,
            },
        );
        nats.insert("output.weight".into(), Costs::default());
        let files = vec![("blk.0.attn_q.gguf".to_owned(), "ab".to_owned())];
        let packed = pack(&nats, &files);
        assert_eq!(unpack(&packed), Some((nats, files)));
        for cut in 0..packed.len() {
            assert_eq!(unpack(&packed[..cut]), None, "cut at {cut}");
        }
    }
}
