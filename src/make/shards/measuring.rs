//! The divergences of the files, by chunks of the evaluation text.

use super::{Cut, Result};
use crate::evaluate::score::Comparison;
use crate::format::part::{Part, Writer};
use crate::format::snapshot::{Key, Packer, Unpacker};
use crate::make::cost::Cost;
use crate::make::proof::{EngineMeter, Proof, Subject, divergence};
use crate::make::stage::Session;
use crate::resume::KeyBuilder;
use crate::sensitivity::units::locked;
use std::ops::Range;
use std::sync::Mutex;

/// Chunks of a unit.
const OF_UNIT: usize = 2;

/// The cut.
pub(in crate::make) struct Measuring<'c, 'j> {
    pub(in crate::make) proof: &'c Proof<'j>,
    pub(in crate::make) meter: &'c EngineMeter<'j>,
}

impl Measuring<'_, '_> {
    fn chunks(&self) -> usize {
        let numbers = self.meter.numbers;
        (numbers.evaluation / numbers.context) as usize
    }

    fn range(&self, unit: usize) -> Range<usize> {
        unit * OF_UNIT..((unit + 1) * OF_UNIT).min(self.chunks())
    }

    fn subjects(&self) -> Result<Vec<Subject>> {
        Ok(self.proof.files()?.unwrap_or_default())
    }
}

impl Cut for Measuring<'_, '_> {
    fn name(&self) -> &'static str {
        "proof"
    }

    fn after(&self) -> &'static [&'static str] {
        &["files"]
    }

    fn key(&self) -> Result<Key> {
        let subjects = self.subjects()?;
        let key = subjects.iter().fold(
            KeyBuilder::new("make: part of the proof"),
            |key, subject| key.with("file", subject.key()),
        );
        Ok(key.key())
    }

    fn units(&self) -> usize {
        self.chunks().div_ceil(OF_UNIT)
    }

    fn cost(&self, unit: usize) -> Cost {
        let allocation = self.proof.allocation;
        let files = allocation.files.len() + allocation.open_files();
        let whole = self.meter.cost_of(files);
        let range = self.range(unit);
        Cost {
            operations: whole.operations * range.len() as f64 / self.chunks() as f64,
            ..whole
        }
    }

    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()> {
        let subjects = self.subjects()?;
        let subjects: Vec<_> = subjects.iter().collect();
        for (unit, part) in units.zip(parts) {
            let rows = self.meter.rows(session, &subjects, self.range(unit))?;
            for (file, rows) in rows.iter().enumerate() {
                locked(part).put(&record(file), &packed(rows))?;
            }
        }
        Ok(())
    }

    fn merge(&self, session: &Session<'_>, parts: &[Part]) -> Result<()> {
        for (file, subject) in self.subjects()?.iter().enumerate() {
            let rows = parts.iter().map(|part| {
                let bad = || part.bad(format!("its rows of file {file} cannot be read"));
                unpacked(part.get(&record(file))?).ok_or_else(bad)
            });
            let rows = rows.collect::<crate::format::Result<Vec<_>>>()?;
            let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
            if let Some(divergence) = divergence(&rows, self.chunks()) {
                subject.store(session.work, &divergence)?;
            }
        }
        Ok(())
    }

    fn uses_up(&self) -> &'static [&'static str] {
        &["files", "proof"]
    }
}

/// Name of the record of a file.
fn record(file: usize) -> String {
    format!("rows/{file}")
}

fn packed(rows: &[Comparison]) -> Vec<u8> {
    let mut packed = Packer::default();
    for row in rows {
        let numbers = [row.nll, row.nll_base, row.kld, row.delta_p];
        let numbers: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        packed.bytes(&numbers).number(row.same_top.into());
    }
    packed.0
}

fn unpacked(bytes: &[u8]) -> Option<Vec<Comparison>> {
    let (mut fields, mut rows) = (Unpacker(bytes), Vec::new());
    while !fields.0.is_empty() {
        let mut number = || Some(f64::from_le_bytes(fields.take(8)?.try_into().ok()?));
        let [nll, nll_base, kld, delta_p] = [number()?, number()?, number()?, number()?];
        let same_top = fields.number()? == 1;
        rows.push(Comparison {
            nll,
            nll_base,
            kld,
            delta_p,
            same_top,
        });
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_exactly() {
        let rows: Vec<Comparison> = [1e-300, 0.1, -3.5]
            .map(|x| Comparison {
                nll: x,
                nll_base: x + 1.0,
                kld: x * 2.0,
                delta_p: -x,
                same_top: x > 0.0,
            })
            .into();
        let packed = packed(&rows);
        assert_eq!(unpacked(&packed), Some(rows));
        assert_eq!(unpacked(&packed[..packed.len() - 1]), None);
    }
}
