//! Outputs with the checkpoint's 4-bit floats, in ggml's blocks: type, scales and place in the
//! file.
//!
//! The reference writes them before all other tensors: experts in MXFP4 by layer, others once they
//! are complete. Each is followed by the scale of its tensor, or of every expert, unless all scales
//! are 1.

use super::Checkpoint;
use super::plan::PlannedTensor;
use super::stored::Fp4;
use super::weights::Stored;
use crate::arch::Config;
use crate::format::gguf::{Array, Value, ValueType};
use crate::format::types::GgmlType;

/// Suffixes of weights and of their scales.
const WEIGHT: &str = ".weight";
const SCALE: &str = ".scale";
const INPUT_SCALE: &str = ".input_scale";
/// Names of tensors with options in addition to types, and the permission to round activations to 4
/// bits.
const EXTRA_NAMES: &str = "general.tensor_extra.name";
const EXTRA_VALUES: &str = "general.tensor_extra.prec_a4";
/// Suffixes of weights whose scales llama.cpp loads. A file with others does not load.
const SCALED: &[&str] = &[
    ".attn_q.weight",
    ".attn_k.weight",
    ".attn_v.weight",
    ".attn_qkv.weight",
    ".attn_gate.weight",
    ".attn_output.weight",
    ".ffn_gate.weight",
    ".ffn_down.weight",
    ".ffn_up.weight",
    ".ffn_gate_shexp.weight",
    ".ffn_down_shexp.weight",
    ".ffn_up_shexp.weight",
    ".ffn_gate_exps.weight",
    ".ffn_down_exps.weight",
    ".ffn_up_exps.weight",
    ".ssm_in.weight",
    ".ssm_out.weight",
    ".ssm_alpha.weight",
    ".ssm_beta.weight",
    ".nextn.eh_proj.weight",
    ".nextn.shared_head_head.weight",
];
const OUTPUT: &str = "output.weight";

/// The fields with the number of experts. Without one, the reference does not know when all experts
/// are complete, and writes them last.
const EXPERTS: [&str; 2] = ["num_local_experts", "num_experts"];

/// An output of 4-bit floats.
pub(super) struct Repacked {
    pub(super) ggml_type: GgmlType,
    /// Additional outputs: suffixes of names, and numbers.
    pub(super) scales: Vec<(&'static str, Vec<f32>)>,
}

impl Repacked {
    /// True if llama.cpp loads a file with the scales of this output. It loads none in multi-token
    /// prediction blocks.
    pub(super) fn is_loaded(&self, name: &str, is_nextn: bool) -> bool {
        let is_scaled = name == OUTPUT || SCALED.iter().any(|end| name.ends_with(end));
        self.scales.is_empty() || is_scaled && !is_nextn
    }
}

/// The repacked form of an output that consists of 4-bit floats in whole groups, only reordered.
pub(super) fn of(checkpoint: &Checkpoint, stored: &Stored, dims: &[u64]) -> Option<Repacked> {
    let elements = dims.iter().product::<u64>();
    let fp4 = |source: usize| checkpoint.tensors[source].form.as_ref()?.fp4();
    let (first, _) = stored.pieces(0..elements).next()?;
    let kind = fp4(first.source)?.kind();
    let keeps = |part: &super::weights::Part| {
        let is_it = fp4(part.source).is_some_and(|fp4| fp4.kind() == kind);
        is_it && part.numeric.is_empty() && part.order.is_of_groups(kind.group())
    };
    let is_kept = stored.pieces(0..elements).all(|(part, _)| keeps(part));
    let ggml_type = kind.ggml_type();
    ggml_type.row_bytes(*dims.last()?).filter(|_| is_kept)?;
    let matrices = match dims {
        [_, _] => 1,
        [matrices, _, _] => *matrices,
        _ => return None,
    };
    let each = elements.checked_div(matrices)?;
    let of_matrices = |number: fn(&Fp4) -> f32| -> Option<Vec<f32>> {
        let of_matrix = |i: u64| {
            let mut parts = stored.pieces(i * each..(i + 1) * each);
            let first = number(fp4(parts.next()?.0.source)?);
            let same = |source| fp4(source).is_some_and(|fp4| number(fp4) == first);
            parts.all(|(part, _)| same(part.source)).then_some(first)
        };
        (0..matrices).map(of_matrix).collect()
    };
    let scales = [
        (SCALE, of_matrices(|fp4| fp4.scale)?),
        (INPUT_SCALE, of_matrices(|fp4| fp4.input_scale)?),
    ];
    let is_stack = dims.len() > 2;
    let written = scales.into_iter().filter(|(_, s)| !is_one(s, is_stack));
    Some(Repacked {
        ggml_type,
        scales: written.collect(),
    })
}

/// True if the reference leaves scales out, by its own tolerance.
fn is_one(scales: &[f32], is_stack: bool) -> bool {
    const NEAR: f64 = 1e-6;
    const NEAR_IN_STACK: f64 = 1e-6 + 1e-5;
    scales.iter().all(|scale| {
        let difference = (f64::from(*scale) - 1.0).abs();
        match is_stack {
            true => difference <= NEAR_IN_STACK,
            false => difference < NEAR,
        }
    })
}

/// The name of an output with another suffix.
pub(super) fn beside(name: &str, ending: &str) -> String {
    name.replace(WEIGHT, ending)
}

/// Place of an output that does not follow the checkpoint's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Before experts, by layer.
    Before(Option<u32>),
    /// Once it is complete.
    Complete,
    /// By layer, then by the names of the checkpoint's tensors.
    Layer(Option<u32>, &'static str),
    /// By the first source.
    Source(usize),
    /// Behind experts, by layer.
    Behind(Option<u32>),
}

impl Order {
    /// The place of a repacked output: `first` is its first source, `name` that of its first input in
    /// the recipe, `stack` the config for experts stacked in a layer.
    pub(super) fn of(
        ggml_type: GgmlType,
        stack: Option<&Config>,
        layer: Option<u32>,
        first: usize,
        name: &'static str,
    ) -> Order {
        let counted = |config: &Config| EXPERTS.iter().any(|field| config.get(field).is_some());
        match stack {
            Some(_) if ggml_type == GgmlType::MXFP4 => Order::Layer(layer, name),
            Some(config) if !counted(config) => Order::Source(first),
            _ => Order::Complete,
        }
    }
}

/// Outputs in construction that come before all others.
#[derive(Default)]
pub(super) struct Early(Vec<(Order, Vec<PlannedTensor>)>);

impl Early {
    /// Adds an output and its scales.
    pub(super) fn add(&mut self, order: Order, tensors: Vec<PlannedTensor>) {
        self.0.push((order, tensors));
    }

    /// All of them, in file order.
    pub(super) fn finish(mut self) -> Vec<PlannedTensor> {
        self.0.sort_by_key(|(order, _)| *order);
        let tensors = self.0.into_iter().flat_map(|(_, tensors)| tensors);
        tensors.collect()
    }
}

/// The keys for weights whose activations must not be rounded to 4 bits; None without such weights.
pub(super) fn keys(mut names: Vec<String>) -> Option<[(&'static str, Value<'static>); 2]> {
    names.sort_unstable();
    let values = names.iter().map(|_| Value::Bool(false));
    let values = Array::of_values(ValueType::Bool, values);
    let keys = [
        (EXTRA_NAMES, Value::Array(Array::of_strings(&names))),
        (EXTRA_VALUES, Value::Array(values)),
    ];
    (!names.is_empty()).then_some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_ordered_by_layer_and_name() {
        let mut early = Early::default();
        for (order, name) in [
            (Order::Behind(Some(0)), "behind"),
            (Order::Layer(Some(10), "w1"), "10.w1"),
            (Order::Layer(Some(2), "w2"), "2.w2"),
            (Order::Layer(Some(2), "w1"), "2.w1"),
            (Order::Source(3), "late"),
            (Order::Source(1), "less late"),
            (Order::Complete, "b"),
            (Order::Complete, "a"),
            (Order::Before(Some(1)), "table"),
        ] {
            let tensor = PlannedTensor::of_type(name, &[32], GgmlType::F32);
            early.add(order, vec![tensor]);
        }
        let names = early.finish().into_iter().map(|tensor| tensor.name);
        let expected = [
            "table",
            "b",
            "a",
            "2.w1",
            "2.w2",
            "10.w1",
            "less late",
            "late",
            "behind",
        ];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
