//! What there is of a run between two layers, as bytes.

use crate::format::checkpoint::{Packer, Unpacker};
use std::collections::BTreeMap;

/// Nats by tensor, one for each of its types.
pub(super) type Nats = BTreeMap<String, Vec<f64>>;

pub(super) fn pack(nats: &Nats) -> Vec<u8> {
    let mut packed = Packer::default();
    packed.number(nats.len());
    for (name, of_types) in nats {
        packed.text(name).list(of_types.iter().map(|x| x.to_le_bytes()));
    }
    packed.0
}

pub(super) fn unpack(bytes: &[u8]) -> Option<Nats> {
    let mut fields = Unpacker(bytes);
    let mut nats = Nats::new();
    for _ in 0..fields.number()? {
        nats.insert(fields.text()?.to_owned(), fields.list(f64::from_le_bytes)?);
    }
    fields.0.is_empty().then_some(nats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_to_the_last_bit() {
        let mut nats = Nats::new();
        nats.insert("blk.0.attn_q.weight".into(), vec![0.1, 1e-300, f64::from_bits(1)]);
        nats.insert("output.weight".into(), Vec::new());
        let packed = pack(&nats);
        assert_eq!(unpack(&packed), Some(nats));
        for cut in 0..packed.len() {
            assert_eq!(unpack(&packed[..cut]), None, "cut at {cut}");
        }
    }
}
