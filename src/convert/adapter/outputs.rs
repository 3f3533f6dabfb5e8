//! From the pairs of an adapter to the tensors of its GGUF, by the recipes of the base model's
//! architecture, with all errors.

use super::pair::Pair;
use super::{Based, Change, Weights};
use crate::arch::recipes::{Match, Op, Output, Recipe};
use crate::arch::{Architecture, Config};
use crate::convert::Source;
use crate::convert::groups::{Groups, Member};
use crate::convert::ops::{self, Sizes};
use crate::convert::outputs::{ANY, Fault, NEXTN, check_dims, recipes, unscaled, wanted_type};
use crate::convert::plan::PlannedTensor;
use crate::convert::weights::{Numeric, Operand, Weight, Weights as Planned};
use crate::plan::file_type::FileType;
use crate::plan::recipe::Problem;
use std::collections::BTreeMap;

/// The embeddings of tokens, whose factors llama.cpp reads in another orientation than all others.
const EMBEDDINGS: &str = "token_embd.weight";
/// Pieces of the checkpoint's names and of the GGUF's by which the reference knows norms.
const NORMS: [&str; 2] = ["_layernorm", ".norm"];
const NORM: &str = "_norm";

const ABSENT: &str = "the adapter lacks the factors of these, and the GGUF has one tensor of all of them; merge the \
                      adapter into its base instead (--lora)";

/// The tensors of the output.
pub(super) struct Outputs {
    /// In file order.
    pub(super) tensors: Vec<PlannedTensor>,
    /// The number of tensors that are left out, by part of the model.
    pub(super) left_out: BTreeMap<&'static str, u64>,
    /// True if a norm is among the tensors.
    pub(super) has_norms: bool,
    /// True if the output matrix is among the tensors.
    pub(super) has_output: bool,
    /// The number of matrices that the base stores transposed.
    pub(super) transposed: u64,
}

/// The conversion of an adapter.
#[derive(Clone, Copy)]
pub(super) struct Conversion<'a> {
    pub(super) based: &'a Based,
    pub(super) config: &'a Config,
    pub(super) architecture: &'static Architecture,
    pub(super) file_type: FileType,
}

/// All tensors of the output: norms, then the factors of every pair, in the adapter's order.
///
/// # Errors
/// All errors of tensors at once, or the error of the config.
pub(super) fn plan(conversion: Conversion<'_>) -> Result<Outputs, Fault> {
    let mut planner = Planner {
        conversion,
        groups: Groups::default(),
        problems: Vec::new(),
        outputs: Outputs {
            tensors: Vec::new(),
            left_out: conversion.based.checkpoint.left_out.clone(),
            has_norms: false,
            has_output: false,
            transposed: 0,
        },
    };
    for index in 0..conversion.based.changes.len() {
        planner.change(index).map_err(Fault::Config)?;
    }
    let absent = planner.groups.absent(conversion.config, ABSENT);
    planner.problems.extend(absent);
    planner.problems.sort();
    match planner.problems.is_empty() {
        true => Ok(planner.outputs),
        false => Err(Fault::Tensors(planner.problems)),
    }
}

struct Planner<'a> {
    conversion: Conversion<'a>,
    groups: Groups,
    problems: Vec<Problem>,
    outputs: Outputs,
}

impl<'a> Planner<'a> {
    fn source(&self, index: usize) -> &'a Source {
        &self.conversion.based.checkpoint.tensors[index]
    }

    fn problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(Problem::of(name, what));
    }

    /// Plans a changed tensor. Errors are those of the config.
    fn change(&mut self, index: usize) -> Result<(), String> {
        let Conversion {
            based,
            config,
            architecture,
            ..
        } = self.conversion;
        let name = &*based.changes[index].name;
        let Some(found) = recipes(architecture, config, name)? else {
            *self.outputs.left_out.entry(NEXTN).or_default() += 1;
            return Ok(());
        };
        if found.is_empty() {
            let what = format!("architecture {} has no such tensors", architecture.name);
            self.problem(name, what);
        }
        for (recipe, matched) in found {
            if let Some(part) = recipe.left_out {
                *self.outputs.left_out.entry(part).or_default() += 1;
            } else if let Err(what) = self.check(index, recipe, &matched)? {
                self.problem(name, what);
            } else {
                self.member(index, recipe, matched)?;
            }
        }
        Ok(())
    }

    /// Adds a change to its recipe; once complete, plans the outputs.
    fn member(
        &mut self,
        index: usize,
        recipe: &'static Recipe,
        matched: Match,
    ) -> Result<(), String> {
        let name = &*self.conversion.based.changes[index].name;
        let stack = recipe.stack(self.conversion.config, matched.layer)?;
        let member = Member {
            matched,
            source: index,
        };
        if let Some(members) = self.groups.add(recipe, member, stack) {
            for output in recipe.outputs() {
                if let Err(what) = self.output(recipe, output, &members) {
                    self.problem(name, what);
                }
            }
        }
        Ok(())
    }

    /// Checks a change against the config and its recipe. The outer error is that of the config.
    fn check(
        &self,
        index: usize,
        recipe: &Recipe,
        matched: &Match,
    ) -> Result<Result<(), String>, String> {
        let Conversion { based, config, .. } = self.conversion;
        let change = &based.changes[index];
        let (blocks, stack) = (config.blocks()?, recipe.stack(config, matched.layer)?);
        let check = || {
            if matched.layer.is_some_and(|layer| layer >= blocks) {
                return Err(format!("config.json of the base has only {blocks} layers"));
            }
            if matched.index.is_some_and(|index| u64::from(index) >= stack) {
                return Err(format!("config.json of the base has only {stack} experts"));
            }
            let shape = self.shape(change, recipe);
            check_dims(
                &recipe.inputs()[matched.input],
                &change.name,
                &shape,
                config,
            )
            .map_err(|what| format!("of the product of the factors: {what} of the base"))
        };
        Ok(self.check_kind(change, recipe).and_then(|()| check()))
    }

    /// Checks that llama.cpp can apply a change.
    fn check_kind(&self, change: &Change, recipe: &Recipe) -> Result<(), String> {
        if recipe.outputs().is_empty() {
            return Err("the GGUF of the base has no such tensor".into());
        }
        let sources = match change.weights {
            Weights::Whole(index) => vec![index],
            Weights::Pair { a, b, .. } => vec![a, b],
        };
        let mut sources = sources.into_iter().map(|index| self.source(index));
        if let Some(what) = sources.find_map(unscaled) {
            return Err(what);
        }
        let Weights::Whole(index) = change.weights else {
            return Ok(());
        };
        let is_norm = NORMS.iter().any(|piece| change.name.contains(piece));
        match is_norm && self.source(index).shape.len() == 1 {
            true => Ok(()),
            false => Err(
                "the adapter holds the whole tensor (modules_to_save, bias or new tokens), and llama.cpp's adapters have \
                 only pairs of factors; merge the adapter into its base instead (--lora)"
                    .into(),
            ),
        }
    }

    /// The shape of the base's tensor.
    fn shape(&self, change: &Change, recipe: &Recipe) -> Vec<u64> {
        match change.weights {
            Weights::Whole(index) => self.source(index).shape.clone(),
            Weights::Pair { a, b, .. } => {
                let (rows, columns) = (self.source(b).shape[0], self.source(a).shape[1]);
                match change.is_of_embedding() || is_transposed(recipe) {
                    true => vec![columns, rows],
                    false => vec![rows, columns],
                }
            }
        }
    }

    /// Plans an output of a recipe with complete inputs.
    fn output(
        &mut self,
        recipe: &Recipe,
        output: &Output,
        members: &[Member],
    ) -> Result<(), String> {
        let based = self.conversion.based;
        let first = &members[0];
        let sizes = Sizes {
            config: self.conversion.config,
            dir: &based.checkpoint.dir,
            layer: first.matched.layer,
        };
        let name = output.name(&first.matched);
        let changes = |input: usize| {
            let members = members.iter();
            let members = members.filter(move |member| member.matched.input == input);
            members.map(|member| &based.changes[member.source])
        };
        let inputs = output.inputs.iter();
        if !based.changes[first.source].is_pair() {
            let operands = inputs.map(|input| changes(*input).map(|c| self.whole(c)).collect());
            let operands = operands.collect::<Result<Vec<Vec<Operand>>, String>>()?;
            let norm = ops::make(output.ops, operands, sizes)?;
            if !name.contains(NORM) || norm.shape().len() != 1 {
                return Err(format!(
                    "it becomes {name}, which llama.cpp does not take as a norm"
                ));
            }
            self.outputs.has_norms = true;
            return self.push(name.clone(), &name, norm);
        }
        let operands = inputs.map(|input| changes(*input).map(|c| self.pair(c, recipe)).collect());
        let operands = operands.collect::<Result<Vec<Vec<Pair>>, String>>()?;
        let pair = ops::make(output.ops, operands, sizes)?;
        if name.contains(NORM) {
            return Err(format!(
                "it becomes {name}, and factors cannot update a norm"
            ));
        }
        let of_embedding = based.changes[first.source].is_of_embedding();
        let [mut a, mut b] = pair.finish()?;
        match (of_embedding, name.contains(EMBEDDINGS)) {
            (false, false) => {}
            (true, true) if name == EMBEDDINGS && self.are_output() => {
                return Err(
                    "the embeddings of the base serve as output matrix too, to which llama.cpp cannot apply these factors: \
                     it aborts; merge the adapter into its base instead (--lora)"
                        .into(),
                );
            }
            (true, true) => (a, b) = (b, a.transposed()?),
            _ => {
                return Err(format!(
                    "it becomes {name}; llama.cpp takes factors named .lora_embedding_A and .lora_embedding_B for \
                     embeddings of tokens, and for nothing else"
                ));
            }
        }
        self.outputs.has_output |= name == "output.weight";
        self.outputs.transposed += u64::from(is_transposed(recipe));
        self.push(format!("{name}.lora_a"), ANY, a)?;
        self.push(format!("{name}.lora_b"), ANY, b)
    }

    /// True if the embeddings of the base are its output matrix.
    fn are_output(&self) -> bool {
        let Conversion {
            architecture,
            config,
            ..
        } = self.conversion;
        config.is_tied() == Some(true) || !architecture.has_output()
    }

    /// A whole tensor.
    fn whole(&self, change: &Change) -> Result<Operand, String> {
        match change.weights {
            Weights::Whole(index) => Ok(Operand::viewed(index, self.source(index).view())),
            Weights::Pair { .. } => Err("factors cannot be joined with a whole tensor".into()),
        }
    }

    /// The factors of a matrix.
    fn pair(&self, change: &Change, recipe: &Recipe) -> Result<Pair, String> {
        let Weights::Pair { a, b, .. } = change.weights else {
            return Err("a whole tensor cannot be joined with factors".into());
        };
        let [of_a, of_b] = [a, b].map(|index| self.source(index));
        let operand = |index: usize, source: &Source| {
            let operand = Operand::viewed(index, source.view());
            // PyTorch computes with factors of two types in f32.
            match of_a.dtype == of_b.dtype {
                true => Ok(operand),
                false => operand.with(Numeric::Widen),
            }
        };
        let (a, b) = (operand(a, of_a)?, operand(b, of_b)?);
        match change.is_of_embedding() {
            true => Pair::of_transpose(a, b),
            false if is_transposed(recipe) => Pair::new(a, b).transposed(),
            false => Ok(Pair::new(a, b)),
        }
    }

    /// Adds a tensor of the type of tensors with the name `like`.
    fn push(&mut self, name: String, like: &str, operand: Operand) -> Result<(), String> {
        let dims = operand.shape();
        let wanted = wanted_type(like, dims.len(), self.conversion.file_type);
        let weights = || Planned::Stored(operand.finish());
        match PlannedTensor::new(name, &dims, wanted, weights) {
            Ok(tensor) => self.outputs.tensors.push(tensor),
            Err(problem) => self.problems.push(problem),
        }
        Ok(())
    }
}

/// True if a checkpoint stores the matrix of a linear as `[columns, rows]` (Conv1D of GPT-2). The
/// factors of its update are those of `[rows, columns]`.
pub(super) fn is_transposed(recipe: &Recipe) -> bool {
    let mut outputs = recipe.outputs().iter();
    outputs.any(|output| matches!(output.ops, [Op::Transpose, ..]))
}
