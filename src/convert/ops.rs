//! The operations of recipes, applied to weights under construction.

use super::weights::{Cast, Numeric, Weight};
use crate::arch::Config;
use crate::arch::recipes::{Op, Size};
use serde_json::{Map, Value};
use std::path::Path;

#[cfg(test)]
mod tests;

/// Values of the sizes in recipes.
#[derive(Clone, Copy)]
pub(super) struct Sizes<'a> {
    /// config.json.
    pub(super) config: &'a Config,
    /// The directory of the tokenizer's files.
    pub(super) dir: &'a Path,
    /// The layer, of tensors of one.
    pub(super) layer: Option<u32>,
}

impl Sizes<'_> {
    /// A size that must be known.
    pub(super) fn get(self, size: Size) -> Result<u64, String> {
        match size {
            Size::Vocabulary => self.vocabulary(),
            size => size.required(self.config),
        }
    }

    /// Sizes of which one may be whatever is there: `rest` says what that is beside the others.
    fn all(self, sizes: &[Size], rest: impl Fn(&[u64]) -> Option<u64>) -> Result<Vec<u64>, String> {
        let given = sizes.iter().filter(|size| !matches!(size, Size::Any));
        let given: Vec<u64> = given
            .map(|size| self.get(*size))
            .collect::<Result<_, _>>()?;
        let mut next = given.iter().copied();
        let size = |size: &Size| match size {
            Size::Any => rest(&given).ok_or_else(|| format!("{given:?} leave nothing")),
            _ => Ok(next.next().unwrap_or(0)),
        };
        sizes.iter().map(size).collect()
    }

    /// The number of tokens in the tokenizer's files.
    fn vocabulary(self) -> Result<u64, String> {
        if self.dir.join("tokenizer.model").is_file() {
            return Ok(self.config.u32(&["vocab_size"])?.into());
        }
        let tokenizer = self.tokenizer()?;
        let tokens = tokenizer
            .get("model")
            .and_then(|model| model.get("vocab")?.as_object())
            .map_or(0, |vocabulary| vocabulary.len());
        let added = tokenizer
            .get("added_tokens")
            .and_then(|added| added.as_array())
            .map_or(0, Vec::len);
        Ok((tokens + added) as u64)
    }

    /// The number of a token.
    fn token(self, text: &str) -> Result<u64, String> {
        let tokenizer = self.tokenizer()?;
        let is_it = |entry: &&Value| entry.get("content").is_some_and(|content| content == text);
        let added = tokenizer.get("added_tokens").and_then(Value::as_array);
        let added = added.and_then(|added| added.iter().find(is_it)?.get("id"));
        let plain = || tokenizer.get("model")?.get("vocab")?.get(text);
        let id = added.or_else(plain).and_then(Value::as_u64);
        id.ok_or_else(|| {
            format!("tokenizer.json has no token '{text}', whose logit a reranker gives; download it again")
        })
    }

    fn tokenizer(self) -> Result<Map<String, Value>, String> {
        let path = self.dir.join("tokenizer.json");
        crate::format::json::read_object(&path).map_err(|e| e.to_string())
    }
}

/// The weights of an output without inputs; `None` of any other.
///
/// # Errors
/// If the config lacks the size or the value.
pub(super) fn filled(ops: &[Op], sizes: Sizes<'_>) -> Result<Option<Vec<f32>>, String> {
    let [Op::Fill { len, value }] = ops else {
        return Ok(None);
    };
    let len = sizes.get(*len)?;
    // Heads and rows, never matrices.
    if len > u64::from(u16::MAX) {
        return Err(format!("{len} is too long for a norm"));
    }
    Ok(Some(vec![value(sizes.config)? as f32; len as usize]))
}

/// Makes one output of inputs, each of which is one tensor or a stack of them.
///
/// # Errors
/// If an operation does not fit the shapes or the config.
pub(super) fn make<W: Weight>(
    ops: &[Op],
    mut inputs: Vec<Vec<W>>,
    sizes: Sizes<'_>,
) -> Result<W, String> {
    for op in ops {
        inputs = match op {
            Op::Stack(_) | Op::StackBy(_) => inputs
                .into_iter()
                .map(|stack| Ok(vec![W::stacked(stack)?]))
                .collect::<Result<_, String>>()?,
            Op::Append(_) => inputs
                .into_iter()
                .map(|stack| Ok(vec![W::concatenated(stack, 0)?]))
                .collect::<Result<_, String>>()?,
            Op::Concat(axis) => vec![concatenated(inputs, *axis)?],
            op => inputs
                .into_iter()
                .map(|stack| stack.into_iter().map(|o| apply(*op, o, sizes)).collect())
                .collect::<Result<_, _>>()?,
        };
    }
    let mut operands = inputs.into_iter().flatten();
    match (operands.next(), operands.next()) {
        (Some(operand), None) => Ok(operand),
        _ => Err("its recipe does not lead to one tensor".into()),
    }
}

/// Joins the first tensors of all stacks, the second ones and so on.
fn concatenated<W: Weight>(inputs: Vec<Vec<W>>, axis: usize) -> Result<Vec<W>, String> {
    let mut stacks: Vec<_> = inputs.into_iter().map(Vec::into_iter).collect();
    let mut joined = Vec::new();
    loop {
        let operands: Vec<_> = stacks.iter_mut().filter_map(Iterator::next).collect();
        match operands.len() {
            0 => return Ok(joined),
            n if n == stacks.len() => joined.push(W::concatenated(operands, axis)?),
            _ => return Err("stacks of different sizes cannot be joined".into()),
        }
    }
}

/// With the two halves of each head's rows interleaved.
fn interleaved<W: Weight>(operand: W, heads: u64) -> Result<W, String> {
    let rows = operand.shape().first().copied().unwrap_or(0);
    let half = match heads.checked_mul(2) {
        Some(halves) if halves > 0 && rows.is_multiple_of(halves) => rows / halves,
        _ => {
            return Err(format!(
                "its {rows} rows are not two halves of each of {heads} heads"
            ));
        }
    };
    operand.swapped(0, heads, [2, half])
}

/// The consecutive parts of a dimension. One size may be whatever the others leave.
fn ranges(
    shape: &[u64],
    axis: usize,
    parts: &[Size],
    sizes: Sizes<'_>,
) -> Result<Vec<std::ops::Range<u64>>, String> {
    let size = shape.get(axis);
    let size = *size.ok_or_else(|| format!("its shape {shape:?} has no dimension {axis}"))?;
    let sum = |parts: &[u64]| parts.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
    let parts = sizes.all(parts, |given| size.checked_sub(sum(given)?))?;
    if sum(&parts) != Some(size) {
        return Err(format!(
            "dimension {axis} of its shape {shape:?} is not {parts:?} together, as config.json says"
        ));
    }
    let mut start = 0;
    let range = |size: u64| {
        start += size;
        start - size..start
    };
    Ok(parts.into_iter().map(range).collect())
}

/// Applies an operation on one tensor.
fn apply<W: Weight>(op: Op, operand: W, sizes: Sizes<'_>) -> Result<W, String> {
    let shape = operand.shape();
    let dimension = |axis: usize| {
        shape
            .get(axis)
            .copied()
            .ok_or_else(|| format!("its shape {shape:?} has no dimension {axis}"))
    };
    match op {
        Op::Split {
            axis,
            sizes: parts,
            part,
        } => {
            let range = ranges(&shape, axis, parts, sizes)?.swap_remove(part);
            operand.narrowed(axis, range)
        }
        Op::First(size) => {
            let rows = dimension(0)?.min(sizes.get(size)?);
            operand.narrowed(0, 0..rows)
        }
        Op::Pad(size) => {
            let (rows, wanted) = (dimension(0)?, sizes.get(size)?);
            let mut missing = wanted.saturating_sub(rows);
            let mut parts = vec![operand.clone()];
            while missing > 0 && rows > 0 {
                let count = missing.min(rows);
                let zeros = operand.clone().narrowed(0, 0..count)?;
                parts.push(zeros.with(Numeric::Zero)?);
                missing -= count;
            }
            W::concatenated(parts, 0)
        }
        Op::Rows(tokens) => {
            let row = |token: &&str| {
                let row = sizes.token(token)?;
                match row < dimension(0)? {
                    true => operand.clone().narrowed(0, row..row + 1),
                    false => Err(format!(
                        "its shape {shape:?} has no row {row}, that of the token '{token}'"
                    )),
                }
            };
            let rows = tokens.iter().map(row).collect::<Result<_, _>>()?;
            W::concatenated(rows, 0)
        }
        Op::Interleave(heads) => interleaved(operand, sizes.get(heads)?),
        Op::InterleaveBy(heads) => {
            interleaved(operand, heads(sizes.config, sizes.layer.unwrap_or(0))?)
        }
        Op::Deinterleave { heads, rotated } => {
            let (rows, heads) = (dimension(0)?, sizes.get(heads)?);
            let rotated = rotated(sizes.config)?;
            let length = rows
                .checked_div(heads)
                .filter(|length| length * heads == rows);
            let length = length.ok_or_else(|| format!("its {rows} rows are not {heads} heads"))?;
            if rotated > length || !rotated.is_multiple_of(2) {
                return Err(format!(
                    "{rotated} of {length} rows of a head cannot be rotated"
                ));
            }
            let mut parts = Vec::new();
            for start in (0..heads).map(|head| head * length) {
                let part = |range: std::ops::Range<u64>| operand.clone().narrowed(0, range.clone());
                if rotated > 0 {
                    let turned = part(start..start + rotated)?;
                    parts.push(turned.swapped(0, 1, [rotated / 2, 2])?);
                }
                if rotated < length {
                    parts.push(part(start + rotated..start + length)?);
                }
            }
            W::concatenated(parts, 0)
        }
        Op::Tile {
            axis,
            groups,
            members,
        } => {
            let size = dimension(axis)?;
            let blocks = sizes.all(&[groups, members], |given| size.checked_div(given[0]))?;
            operand.swapped(axis, 1, [blocks[0], blocks[1]])
        }
        Op::HeadOrder {
            heads,
            lengths,
            order,
        } => {
            let (rows, heads) = (dimension(0)?, sizes.get(heads)?);
            let length: u64 = lengths.iter().sum();
            if heads.checked_mul(length) != Some(rows) {
                return Err(format!("its {rows} rows are not {heads} heads of {length}"));
            }
            let mut parts = Vec::new();
            for head in 0..heads {
                for &part in order {
                    let start = head * length + lengths[..part].iter().sum::<u64>();
                    parts.push(operand.clone().narrowed(0, start..start + lengths[part])?);
                }
            }
            W::concatenated(parts, 0)
        }
        Op::PairsApart { rows, heads } => {
            let (rows, heads) = (sizes.get(rows)?, sizes.get(heads)?);
            let fours = rows.checked_div(heads.saturating_mul(4)).unwrap_or(0);
            let all = dimension(0)?;
            if rows > all || fours.checked_mul(heads * 4) != Some(rows) {
                return Err(format!(
                    "the first {rows} of its {all} rows are not {heads} heads of fours"
                ));
            }
            let paired = operand.clone().narrowed(0, 0..rows)?;
            let paired = paired.swapped(0, heads, [fours, 2])?;
            match rows == all {
                true => Ok(paired),
                false => W::concatenated(vec![paired, operand.narrowed(0, rows..all)?], 0),
            }
        }
        Op::TileBehind {
            first,
            groups,
            members,
        } => {
            let (rows, first) = (dimension(0)?, sizes.get(first)?);
            if first > rows {
                return Err(format!(
                    "its shape {shape:?} has less than {first} rows, as config.json says"
                ));
            }
            let blocks = [sizes.get(groups)?, sizes.get(members)?];
            let stay = operand.clone().narrowed(0, 0..first)?;
            let tiled = operand.narrowed(0, first..rows)?.swapped(0, 1, blocks)?;
            W::concatenated(vec![stay, tiled], 0)
        }
        Op::Order(order) => {
            let (rows, parts) = (dimension(0)?, order.len() as u64);
            if parts == 0 || !rows.is_multiple_of(parts) {
                return Err(format!("its {rows} rows are not {parts} equal parts"));
            }
            let part = |number: &usize| {
                let start = *number as u64 * (rows / parts);
                let range = start..start + rows / parts;
                operand.clone().narrowed(0, range.clone())
            };
            W::concatenated(order.iter().map(part).collect::<Result<_, _>>()?, 0)
        }
        Op::Transpose => operand.transposed(),
        Op::Reshape(dims) => {
            let elements: u64 = shape.iter().product();
            let dims = sizes.all(dims, |given| {
                let product = given.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
                elements.checked_div(product)
            })?;
            operand.reshaped(&dims)
        }
        Op::Squeeze(axis) => operand.squeezed(axis),
        Op::Ungroup {
            groups,
            sizes: parts,
        } => {
            let (rows, groups) = (dimension(0)?, sizes.get(groups)?);
            let group = rows
                .checked_div(groups)
                .filter(|group| group * groups == rows);
            let group = group.ok_or_else(|| format!("its {rows} rows are not {groups} groups"))?;
            let parts = sizes.all(parts, |given| group.checked_sub(given.iter().sum()))?;
            if parts.iter().sum::<u64>() != group {
                return Err(format!(
                    "its groups of {group} rows are not {parts:?} together"
                ));
            }
            let rest = &shape[1..];
            let grouped = [&[groups, group][..], rest].concat();
            let grouped = operand.reshaped(&grouped)?;
            let mut start = 0;
            let part = |size: &u64| {
                let range = start..start + size;
                start += size;
                let flat = [&[groups * size][..], rest].concat();
                let part = grouped.clone().narrowed(1, range.clone())?;
                part.reshaped(&flat)
            };
            let parts = parts.iter().filter(|size| **size > 0).map(part);
            W::concatenated(parts.collect::<Result<_, _>>()?, 0)
        }
        Op::ScaleParts {
            sizes: parts,
            factor,
        } => {
            let ranges = ranges(&shape, 0, parts, sizes)?;
            let part = |(number, range): (usize, std::ops::Range<u64>)| {
                let factor = factor(sizes.config, number)?;
                let part = operand.clone();
                part.narrowed(0, range)?.with(Numeric::Times(factor as f32))
            };
            let ranges = ranges.into_iter().enumerate();
            let parts = ranges.filter(|(_, range)| !range.is_empty()).map(part);
            W::concatenated(parts.collect::<Result<_, String>>()?, 0)
        }
        Op::Scale(factor) => {
            let factor = factor(sizes.config)?;
            operand.with(Numeric::Times(factor as f32))
        }
        Op::ScaleBy(factor) => {
            let factor = factor(sizes.config, sizes.layer.unwrap_or(0))?;
            operand.with(Numeric::Times(factor as f32))
        }
        Op::AddOne => operand.with(Numeric::Plus(1.0)),
        Op::AddNumber(number) => operand.with(Numeric::Plus(number as f32)),
        Op::Widen => operand.with(Numeric::Widen),
        Op::Exp => operand.with(Numeric::Exp),
        Op::NegExp => operand.with(Numeric::NegExp),
        Op::Softplus => operand.with(Numeric::Softplus),
        Op::Cast(ggml_type) => Ok(operand.cast(Cast::To(ggml_type))),
        Op::CastByFile => Ok(operand.cast(Cast::ByFile)),
        Op::CastPlain => Ok(operand.cast(Cast::Plain)),
        Op::KeepType => Ok(operand.cast(Cast::Stored)),
        Op::Ternary => operand.with(Numeric::Ternary),
        Op::Centre => operand.with(Numeric::Centred),
        Op::Stack(_) | Op::StackBy(_) | Op::Append(_) | Op::Concat(_) | Op::Multiply => {
            Err("one tensor cannot be joined".into())
        }
        Op::AddHalves
        | Op::Averages
        | Op::SnakeFrequency
        | Op::SnakeFactor
        | Op::Resample(_)
        | Op::BatchNorm(_)
        | Op::Fill { .. }
        | Op::TargetTokens => Err("these operations are no part of others".into()),
    }
}
