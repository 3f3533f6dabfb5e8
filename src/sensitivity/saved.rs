//! Serialized state of a run between two layers.

use crate::format::snapshot::{Packer, Unpacker};
use std::collections::BTreeMap;

/// Nats by tensor, one value per type.
pub(super) type Nats = BTreeMap<String, Vec<f64>>;

/// Written files of output Hessians with their checksums.
pub(super) type Files = Vec<(String, String)>;

pub(super) fn pack(nats: &Nats, files: &Files) -> Vec<u8> {
    let mut packed = Packer::default();
    packed.number(files.len());
    for (name, checksum) in files {
        packed.text(name).text(checksum);
    }
    packed.number(nats.len());
    for (name, of_types) in nats {
        packed
            .text(name)
            .list(of_types.iter().map(|x| x.to_le_bytes()));
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
        nats.insert(fields.text()?.to_owned(), fields.list(f64::from_le_bytes)?);
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
            vec![0.1, 1e-300, f64::from_bits(1)],
        );
        nats.insert("output.weight".into(), Vec::new());
        let files = vec![("blk.0.attn_q.gguf".to_owned(), "ab".to_owned())];
        let packed = pack(&nats, &files);
        assert_eq!(unpack(&packed), Some((nats, files)));
        for cut in 0..packed.len() {
            assert_eq!(unpack(&packed[..cut]), None, "cut at {cut}");
        }
    }
}
