//! Joins related tensors, by the names of each method.

use super::declared::{Declared, Group, Method};
use super::fp4::{self, Fp4, Kind};
use super::grouped::{Grouped, Layout, Packing, Tensors};
use super::table::{Order, Table};
use super::ternary::Ternary;
use super::{Form, Ranked, Raw, Scaled};
use crate::arch::{Config, fused_rows};
use crate::format::map::Map;
use crate::format::safetensors::Dtype;

/// Scales of activations and of the KV cache, unused in GGUF.
const UNUSED: &[&str] = &[
    ".activation_scale",
    "_activation_scale",
    ".qscale_act",
    ".input_scale",
    ".input_zero_point",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
];

/// Joins all tensors of quantized linears.
pub(super) fn all(config: &Config, declared: &Declared, maps: &[Map], table: &mut Table) {
    match declared.method {
        Method::Fp8 => {
            ranked(config, table);
            fp8(declared, table);
            packed_experts(table);
        }
        Method::CompressedTensors | Method::ModelOpt => by_type(declared, maps, table),
        Method::Gptq { zero_offset } => {
            transposed(declared, Packing::Gptq { zero_offset }, table);
        }
        Method::Awq => transposed(declared, Packing::Awq, table),
        Method::BitNet => ternary(maps, table),
        Method::Mxfp4 => blocks(table),
        Method::BesideWeights => beside_weights(declared, table),
    }
    table.drop_ending(UNUSED);
}

/// `quant_method: fp8`, in the names of Hugging Face and of Mistral.
fn fp8(declared: &Declared, table: &mut Table) {
    for [ending, weight] in [["_scale_inv", ""], [".qscale_weight", ".weight"]] {
        for scales in table.ending(ending) {
            let base = scales.strip_suffix(ending).unwrap_or(&scales);
            let codes = format!("{base}{weight}");
            if is_alone(table, &scales, &codes) {
                continue;
            }
            table.join(&codes, ["", ""], Order::InPlace, |table, _| {
                let (codes, scales) = (table.take(&codes)?, table.take(&scales)?);
                scaled(codes, scales, None, declared.block.as_deref())
            });
        }
    }
}

/// DeepSeek V4: `NAME.scale` next to `NAME.weight`, whose type tells FP8 in blocks from MXFP4. Scales
/// are powers of two.
fn beside_weights(declared: &Declared, table: &mut Table) {
    const SCALE: &str = ".scale";
    for scales in table.ending(SCALE) {
        let base = scales.strip_suffix(SCALE).unwrap_or(&scales);
        let codes = format!("{base}.weight");
        let Some(dtype) = table.get(&codes).map(|source| source.dtype) else {
            is_alone(table, &scales, &codes);
            continue;
        };
        let is_fp8 = matches!(dtype, Dtype::F8E4m3 | Dtype::F8E5m2);
        if !is_fp8 && !matches!(dtype, Dtype::I8 | Dtype::U8) {
            continue;
        }
        table.join(&codes, ["", ""], Order::InPlace, |table, _| {
            let (codes, mut scales) = (table.take(&codes)?, table.take(&scales)?);
            if scales.dtype == Dtype::U8 {
                scales.dtype = Dtype::F8E8m0;
            }
            match is_fp8 {
                true => scaled(codes, scales, None, declared.block.as_deref()),
                false => mxfp4(codes, scales),
            }
        });
    }
}

/// MXFP4 in bytes of any sign.
fn mxfp4(mut codes: Raw, scales: Raw) -> Result<(Vec<u64>, Form), String> {
    if codes.dtype == Dtype::I8 {
        codes.dtype = Dtype::U8;
    }
    let kind = Kind::Mxfp4;
    let parts = fp4::Parts {
        codes,
        scales,
        kind,
    };
    let fp4 = Fp4::new(parts, [1.0; 2])?;
    Ok((fp4.shape(), Form::Fp4(fp4)))
}

/// Fused projections of MiMo V2 in FP8, whose rows and scales are those of ranks.
fn ranked(config: &Config, table: &mut Table) {
    const SCALE: &str = "_scale_inv";
    for scales in table.ending(SCALE) {
        let codes = scales.strip_suffix(SCALE).unwrap_or(&scales).to_owned();
        let Some(name) = table.get(&codes).map(|source| source.text_name()) else {
            continue;
        };
        match fused_rows(config, name) {
            Ok(None) => {}
            Err(what) => table.problem(&codes, what),
            Ok(Some(rows)) => {
                table.join(&codes, ["", ""], Order::InPlace, |table, _| {
                    let (codes, scales) = (table.take(&codes)?, table.take(&scales)?);
                    let shape = codes.shape.clone();
                    Ok((shape, Form::Ranked(Ranked::new(codes, scales, rows)?)))
                });
            }
        }
    }
}

/// Experts in MXFP4 beside matrices in FP8: `NAME_scale` next to `NAME`, two codes in a byte.
fn packed_experts(table: &mut Table) {
    const SCALE: &str = "_scale";
    for scales in table.ending(".weight_scale") {
        let codes = scales.strip_suffix(SCALE).unwrap_or(&scales).to_owned();
        let dtype = table.get(&codes).map(|source| source.dtype);
        if matches!(dtype, Some(Dtype::U8 | Dtype::I8)) {
            table.join(&codes, ["", ""], Order::InPlace, |table, _| {
                let (codes, scales) = (table.take(&codes)?, table.take(&scales)?);
                mxfp4(codes, scales)
            });
        }
    }
}

/// True if scales have no weights, reported as a problem.
fn is_alone(table: &mut Table, scales: &str, codes: &str) -> bool {
    let is_alone = table.get(codes).is_none();
    if is_alone {
        let what =
            format!("{codes}, which these scales belong to, is missing; download the files again");
        table.problem(scales, what);
    }
    is_alone
}

fn scaled(
    codes: Raw,
    scales: Raw,
    zeros: Option<Raw>,
    block: Option<&[u64]>,
) -> Result<(Vec<u64>, Form), String> {
    let shape = codes.shape.clone();
    let form = Scaled::new(codes, scales, zeros, block)?;
    Ok((shape, Form::Scaled(form)))
}

/// compressed-tensors and ModelOpt: the types of a linear's tensors determine its form.
fn by_type(declared: &Declared, maps: &[Map], table: &mut Table) {
    for name in table.ending(".weight_packed") {
        let dtype = table.get(&name).map(|source| source.dtype);
        // The reference renames the tensors of NVFP4, and writes joined integers last.
        let order = match dtype {
            Some(Dtype::I32) => Order::Behind,
            _ => Order::InPlace,
        };
        table.join(&name, ["_packed", ""], order, |table, base| match dtype {
            Some(Dtype::I32) => packed(declared, maps, table, base),
            _ => fp4(maps, table, &name, base),
        });
    }
    for scales in table.ending(".weight_scale") {
        let codes = scales.strip_suffix("_scale").unwrap_or(&scales).to_owned();
        let Some(source) = table.get(&codes) else {
            // ModelOpt keeps scales of unquantized tensors.
            if declared.method == Method::CompressedTensors {
                is_alone(table, &scales, &codes);
            } else {
                let _ = table.take_optional(&scales);
            }
            continue;
        };
        let dtype = source.dtype;
        table.join(
            &codes,
            ["", ""],
            Order::InPlace,
            |table, base| match dtype {
                Dtype::U8 => fp4(maps, table, &codes, base),
                _ => {
                    let zeros = table.take_optional(&format!("{base}_zero_point"))?;
                    let (raw, scales) = (table.take(&codes)?, table.take(&scales)?);
                    let is_float = dtype != Dtype::I8;
                    let groups = declared
                        .groups
                        .iter()
                        .filter(|group| group.is_float == is_float);
                    let blocks = groups.map(|group| group.scale_block());
                    fit(blocks.collect(), |block| {
                        let block = block.as_deref();
                        scaled(raw.clone(), scales.clone(), zeros.clone(), block)
                    })
                }
            },
        );
    }
}

impl Group {
    /// Rows and columns per scale, unless scales are per row or per tensor.
    fn scale_block(&self) -> Option<Vec<u64>> {
        let columns = || self.size.map(|size| vec![1, size]);
        self.block.clone().or_else(columns)
    }
}

/// The form of a linear by the groups of config.json, if they agree.
fn fit<G, T: PartialEq>(
    mut groups: Vec<Option<G>>,
    make: impl Fn(Option<G>) -> Result<T, String>,
) -> Result<T, String> {
    if groups.is_empty() {
        groups.push(None);
    }
    let count = groups.len();
    let mut made: Option<T> = None;
    let mut first_error = None;
    for group in groups {
        match (make(group), &made) {
            (Ok(other), Some(before)) if *before != other => {
                return Err(format!(
                    "several of the {count} config_groups in config.json fit it, and each makes other weights of it"
                ));
            }
            (Ok(other), _) => made = Some(other),
            (Err(what), _) => drop(first_error.get_or_insert(what)),
        }
    }
    made.ok_or_else(|| first_error.unwrap_or_default())
}

/// Integers of compressed-tensors.
fn packed(
    declared: &Declared,
    maps: &[Map],
    table: &mut Table,
    base: &str,
) -> Result<(Vec<u64>, Form), String> {
    let shape = table.take(&format!("{base}_shape"))?;
    if shape.shape != [2] || !matches!(shape.dtype, Dtype::I64 | Dtype::I32) {
        return Err(format!("{} does not say rows and columns", shape.name));
    }
    let [rows, columns] = [0, 1].map(|i| shape.number(maps, i).max(0.0) as u64);
    let tensors = Tensors {
        codes: table.take(&format!("{base}_packed"))?,
        scales: table.take(&format!("{base}_scale"))?,
        zeros: table.take_optional(&format!("{base}_zero_point"))?,
        group_of: table.take_optional(&format!("{base}_g_idx"))?,
    };
    let groups = declared.groups.iter().filter(|group| !group.is_float);
    let groups: Vec<_> = groups.map(Some).collect();
    let grouped = fit(groups, |group| {
        let group = group.ok_or("config.json has no config_groups of integers")?;
        let layout = Layout {
            bits: group.bits.into(),
            rows,
            columns,
            size: group.size,
        };
        Grouped::new(tensors.clone(), Packing::CompressedTensors, layout)
    })?;
    Ok((grouped.shape(), Form::Grouped(grouped)))
}

/// 4-bit floats, in the names of compressed-tensors, whose tensor scales are divisors, and of
/// ModelOpt, whose tensor scales are factors.
fn fp4(
    maps: &[Map],
    table: &mut Table,
    codes: &str,
    base: &str,
) -> Result<(Vec<u64>, Form), String> {
    let module = base.strip_suffix(".weight").unwrap_or(base);
    let names = [
        [format!("{base}_global_scale"), format!("{base}_scale_2")],
        [
            format!("{module}.input_global_scale"),
            format!("{module}.input_scale"),
        ],
    ];
    let mut scales = [1.0; 2];
    for (scale, [divides, multiplies]) in scales.iter_mut().zip(&names) {
        for (name, is_inverse) in [(divides, true), (multiplies, false)] {
            if let Some(raw) = table.take_optional(name)? {
                let number = single(&raw, maps)?;
                *scale = if is_inverse { 1.0 / number } else { number };
            }
        }
    }
    let parts = fp4::Parts {
        codes: table.take(codes)?,
        scales: table.take(&format!("{base}_scale"))?,
        kind: Kind::Nvfp4,
    };
    let kind = match parts.scales.dtype {
        Dtype::F8E4m3 => Kind::Nvfp4,
        _ => Kind::Mxfp4,
    };
    let fp4 = Fp4::new(fp4::Parts { kind, ..parts }, scales)?;
    Ok((fp4.shape(), Form::Fp4(fp4)))
}

/// The scale of a whole tensor.
fn single(raw: &Raw, maps: &[Map]) -> Result<f32, String> {
    if raw.shape.iter().product::<u64>() != 1 {
        return Err(format!(
            "{} has shape {:?}, and one number is expected",
            raw.name, raw.shape
        ));
    }
    match raw.number(maps, 0) {
        scale if scale.is_finite() && scale > 0.0 => Ok(scale),
        scale => Err(format!(
            "{} is {scale}; the checkpoint is damaged, download it again",
            raw.name
        )),
    }
}

/// GPTQ and AWQ.
fn transposed(declared: &Declared, packing: Packing, table: &mut Table) {
    for name in table.ending(".qweight") {
        table.join(
            &name,
            [".qweight", ".weight"],
            Order::Behind,
            |table, base| {
                let tensors = Tensors {
                    codes: table.take(&name)?,
                    scales: table.take(&format!("{base}.scales"))?,
                    zeros: Some(table.take(&format!("{base}.qzeros"))?),
                    group_of: table.take_optional(&format!("{base}.g_idx"))?,
                };
                let layout = transposed_layout(declared, packing, &tensors)?;
                let grouped = Grouped::new(tensors, packing, layout)?;
                Ok((grouped.shape(), Form::Grouped(grouped)))
            },
        );
    }
}

/// Bits and sizes follow from the shapes: zero points and scales belong to the same rows.
fn transposed_layout(
    declared: &Declared,
    packing: Packing,
    tensors: &Tensors,
) -> Result<Layout, String> {
    let zeros = tensors.zeros.as_ref().map_or(&[][..], |raw| &raw.shape);
    let shapes = (&*tensors.codes.shape, &*tensors.scales.shape, zeros);
    let (&[first, _], &[groups, rows], &[_, words]) = shapes else {
        return Err(format!(
            "qweight, scales and qzeros are matrices, and these have shapes {shapes:?}"
        ));
    };
    let bits = words.saturating_mul(32).checked_div(rows).unwrap_or(0);
    let columns = match packing {
        Packing::Awq => first,
        _ => first.saturating_mul(32).checked_div(bits).unwrap_or(0),
    };
    if !matches!(
        (packing, bits),
        (Packing::Gptq { .. }, 2 | 3 | 4 | 8) | (Packing::Awq, 4)
    ) {
        return Err(format!(
            "its qzeros have {words} words for {rows} rows, which is no number of bits that this format has"
        ));
    }
    let size = declared
        .group_size
        .filter(|size| columns.div_ceil(*size) == groups);
    let even = || {
        columns
            .checked_div(groups)
            .filter(|size| size * groups == columns)
    };
    match size.or_else(even) {
        Some(size) => Ok(Layout {
            bits,
            rows,
            columns,
            size: Some(size),
        }),
        None if tensors.group_of.is_some() => Ok(Layout {
            bits,
            rows,
            columns,
            size: None,
        }),
        None => Err(format!("{groups} groups do not divide {columns} columns")),
    }
}

/// BitNet's packed weights.
fn ternary(maps: &[Map], table: &mut Table) {
    for scales in table.ending(".weight_scale") {
        let codes = scales.strip_suffix("_scale").unwrap_or(&scales).to_owned();
        if is_alone(table, &scales, &codes) {
            continue;
        }
        table.join(&codes, ["", ""], Order::InPlace, |table, _| {
            let (codes, scale) = (table.take(&codes)?, table.take(&scales)?);
            let ternary = Ternary::new(codes, single(&scale, maps)?)?;
            Ok((ternary.shape(), Form::Ternary(ternary)))
        });
    }
}

/// gpt-oss: `NAME_blocks`, 16 bytes for 32 columns, next to `NAME_scales`. The weights keep the
/// name of their blocks: unlike 16-bit weights, they are not transposed.
fn blocks(table: &mut Table) {
    for name in table.ending("_blocks") {
        table.join(
            &name,
            ["_blocks", "_blocks"],
            Order::InPlace,
            |table, base| {
                let mut codes = table.take(&name)?;
                let scales = table.take(&format!("{base}_scales"))?;
                match codes.shape.pop() {
                    Some(16) => {}
                    _ => return Err("its last dimension is not 16, the bytes of 32 columns".into()),
                }
                let bytes = codes.shape.pop().unwrap_or(0).saturating_mul(16);
                codes.shape.push(bytes);
                mxfp4(codes, scales)
            },
        );
    }
}
