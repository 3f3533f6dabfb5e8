//! Hessians of a unit of a text, in a part, and their sums over all units.
//!
//! Records of an input, under the name of its first tensor:
//!
//! ```text
//! NAME/head          columns, rows by matrix, tensors
//! NAME/sum           f32: the upper triangle of the sum of x x^T, row by row; of experts, if they are pooled
//! NAME/sum.E         the same for expert E alone
//! NAME/sample        numbers of held-out rows, and the rows
//! NAME/sample.E      the same for expert E
//! ```

use super::{EXPERT_SAMPLE, SAMPLE};
use quantier_gguf::hessian::{Head, triangle};
use quantier_gguf::part::{Part, Writer};
use quantier_gguf::snapshot::{Key, Packer, Unpacker};
use quantier_gguf::{Result, le_bytes};
use quantier_round::hessian::Sample;
use quantier_round::hessian::sums::{Panel, end_unit, rows};
use std::collections::BTreeSet;

/// The upper triangle of a sum.
#[derive(Clone, Copy)]
pub(super) enum Upper<'p> {
    Panels(&'p [Panel]),
    /// Row by row, and the number of columns.
    Triangle(&'p [f32], usize),
}

impl<'p> Upper<'p> {
    /// The rows, from the diagonal on.
    pub(super) fn rows(self) -> Box<dyn Iterator<Item = &'p [f32]> + 'p> {
        match self {
            Upper::Panels(panels) => Box::new(rows(panels)),
            Upper::Triangle(numbers, columns) => {
                let mut rest = numbers;
                Box::new((0..columns).map(move |row| {
                    let (row, others) = rest.split_at(columns - row);
                    rest = others;
                    row
                }))
            }
        }
    }
}

/// Sums and samples of an input over the whole text.
pub(super) struct Total<'p> {
    pub(super) head: Head,
    /// Over all matrices, unless each has a separate sum.
    pub(super) all: Option<Upper<'p>>,
    /// By matrix, if they are separate.
    pub(super) each: Vec<Option<Upper<'p>>>,
    pub(super) sample: Sample,
    pub(super) samples: Vec<Sample>,
}

const HEAD: &str = "/head";

fn name(lead: &str, what: &str, matrix: Option<usize>) -> String {
    match matrix {
        Some(matrix) => format!("{lead}/{what}.{matrix}"),
        None => format!("{lead}/{what}"),
    }
}

/// Writes the sums of an input.
pub(super) fn put(lead: &str, total: Total<'_>, part: &mut Writer) -> Result<()> {
    let Head {
        columns,
        rows,
        tensors,
        ..
    } = &total.head;
    let mut head = Packer::default();
    head.number(*columns)
        .list(rows.iter().map(|rows| rows.to_le_bytes()))
        .number(tensors.len());
    for tensor in tensors {
        head.text(tensor);
    }
    part.put(&name(lead, "head", None), &head.0)?;
    let each = total.each.iter().enumerate();
    let sums = each.map(|(matrix, sum)| (Some(matrix), *sum));
    for (matrix, sum) in std::iter::once((None, total.all)).chain(sums) {
        let Some(sum) = sum else { continue };
        part.put_pieces(&name(lead, "sum", matrix), 4 * triangle(*columns), |put| {
            sum.rows().try_for_each(|row| put(&le_bytes(row)))
        })?;
    }
    let samples = total.samples.into_iter().enumerate();
    let samples = samples.map(|(matrix, sample)| (Some(matrix), sample));
    for (matrix, sample) in std::iter::once((None, total.sample)).chain(samples) {
        let (numbers, rows) = sample.numbered();
        if !numbers.is_empty() {
            let mut packed = Packer::default();
            packed
                .list(numbers.iter().map(|number| number.to_le_bytes()))
                .bytes(&le_bytes(&rows));
            part.put(&name(lead, "sample", matrix), &packed.0)?;
        }
    }
    Ok(())
}

/// The inputs of all units, by the names of their first tensors.
pub(super) fn leads(units: &[Part]) -> BTreeSet<String> {
    let names = units.iter().flat_map(Part::names);
    let leads = names.filter_map(|name| name.strip_suffix(HEAD));
    leads.map(str::to_owned).collect()
}

fn unpacked(bytes: &[u8]) -> Option<Head> {
    let mut fields = Unpacker(bytes);
    let (columns, rows) = (fields.number()?, fields.list(u64::from_le_bytes)?);
    let mut tensors = Vec::new();
    for _ in 0..fields.number()? {
        tensors.push(fields.text()?.to_owned());
    }
    // The key is that of the job.
    let key = Key::default();
    (fields.0.is_empty() && columns > 0).then_some(Head {
        key,
        columns,
        rows,
        tensors,
    })
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Sums of an input over all units.
pub(super) struct Merged {
    head: Head,
    all: Vec<f32>,
    each: Vec<Vec<f32>>,
    sample: Sample,
    samples: Vec<Sample>,
}

impl Merged {
    /// Adds the sums of the units in order; `None` if no unit has the input.
    ///
    /// # Errors
    /// A damaged part, or units of different models.
    pub(super) fn of(lead: &str, units: &[Part]) -> Result<Option<Merged>> {
        let mut merged: Option<Merged> = None;
        let head_name = name(lead, "head", None);
        for unit in units.iter().filter(|unit| unit.has(&head_name)) {
            let bad = || {
                unit.bad(format!(
                    "its sums of '{lead}' do not fit those of other units"
                ))
            };
            let head = unpacked(unit.get(&head_name)?).ok_or_else(bad)?;
            let merged = merged.get_or_insert_with(|| Merged::new(&head));
            merged.add(lead, head, unit)?.ok_or_else(bad)?;
        }
        Ok(merged)
    }

    fn new(head: &Head) -> Merged {
        let matrices = head.rows.len();
        let experts = if matrices > 1 { matrices } else { 0 };
        Merged {
            head: Head {
                rows: vec![0; matrices],
                tensors: Vec::new(),
                ..head.clone()
            },
            all: Vec::new(),
            each: vec![Vec::new(); experts],
            sample: Sample::new(SAMPLE),
            samples: (0..experts).map(|_| Sample::new(EXPERT_SAMPLE)).collect(),
        }
    }

    /// Adds a unit; the inner `None` means that its shape differs.
    fn add(&mut self, lead: &str, head: Head, unit: &Part) -> Result<Option<()>> {
        let columns = self.head.columns;
        if (head.columns, head.rows.len()) != (columns, self.head.rows.len()) {
            return Ok(None);
        }
        let rows = self.head.rows.iter_mut().zip(head.rows);
        rows.for_each(|(all, rows)| *all += rows);
        for tensor in head.tensors {
            if !self.head.tensors.contains(&tensor) {
                self.head.tensors.push(tensor);
            }
        }
        let each = self.each.iter_mut().enumerate();
        let sums = each.map(|(matrix, sum)| (Some(matrix), sum));
        for (matrix, total) in std::iter::once((None, &mut self.all)).chain(sums) {
            let name = name(lead, "sum", matrix);
            if unit.has(&name) {
                let mut sum = numbers(unit.get(&name)?);
                if sum.len() != triangle(columns) {
                    return Ok(None);
                }
                end_unit(total, &mut sum);
            }
        }
        let samples = self.samples.iter_mut().enumerate();
        let samples = samples.map(|(matrix, sample)| (Some(matrix), sample));
        for (matrix, sample) in std::iter::once((None, &mut self.sample)).chain(samples) {
            let name = name(lead, "sample", matrix);
            if unit.has(&name) {
                let mut fields = Unpacker(unit.get(&name)?);
                let Some(of_rows) = fields.list(u64::from_le_bytes) else {
                    return Ok(None);
                };
                let rows = numbers(fields.0);
                if rows.len() != of_rows.len() * columns {
                    return Ok(None);
                }
                sample.merge(&of_rows, &rows);
            }
        }
        Ok(Some(()))
    }

    /// The sums, with the key of their job; without the samples afterwards.
    pub(super) fn total(&mut self, key: Key) -> Total<'_> {
        let columns = self.head.columns;
        let upper = |sum| -> Option<Upper<'_>> {
            let sum: &Vec<f32> = sum;
            (!sum.is_empty()).then_some(Upper::Triangle(sum, columns))
        };
        Total {
            head: Head {
                key,
                ..self.head.clone()
            },
            all: upper(&self.all),
            each: self.each.iter().map(upper).collect(),
            sample: std::mem::replace(&mut self.sample, Sample::new(0)),
            samples: std::mem::take(&mut self.samples),
        }
    }
}
