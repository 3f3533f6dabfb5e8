//! Inputs of recipes, grouped by recipe and layer until they are complete.

use crate::arch::Config;
use crate::arch::recipes::{Match, Recipe};
use crate::plan::recipe::Problem;
use std::collections::{HashMap, HashSet};

/// Number of missing inputs named in a recipe's error; the others are counted.
const NAMED_ABSENT: usize = 8;

/// The inputs of one recipe in one layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Group {
    /// The first output's name, which identifies the recipe.
    output: String,
    layer: Option<u32>,
}

/// An input of a recipe.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) matched: Match,
    /// Index of the tensor.
    pub(super) source: usize,
}

/// The groups with missing inputs so far.
#[derive(Default)]
pub(super) struct Groups {
    incomplete: HashMap<Group, (&'static Recipe, Vec<Member>)>,
}

impl Groups {
    /// Adds an input of a recipe with `stack` tensors per stacked input. Once all inputs are
    /// there, returns them in order.
    pub(super) fn add(
        &mut self,
        recipe: &'static Recipe,
        member: Member,
        stack: u64,
    ) -> Option<Vec<Member>> {
        let inputs = recipe.inputs().iter();
        let needed: u64 = inputs
            .map(|input| if input.is_stacked() { stack } else { 1 })
            .sum();
        let group = Group {
            output: recipe.outputs()[0].name(&member.matched),
            layer: member.matched.layer,
        };
        let entry = self.incomplete.entry(group.clone());
        let (_, members) = entry.or_insert_with(|| (recipe, Vec::new()));
        members.push(member);
        if (members.len() as u64) < needed {
            return None;
        }
        let (_, mut members) = self.incomplete.remove(&group)?;
        members.sort_by_key(|member| (member.matched.input, member.matched.index));
        Some(members)
    }

    /// The missing inputs of all groups, with this reason.
    pub(super) fn absent(&self, config: &Config, reason: &str) -> Vec<Problem> {
        let groups = self.incomplete.values();
        let absent = groups.flat_map(|(recipe, members)| {
            let layer = members.first().and_then(|member| member.matched.layer);
            let stack = recipe.stack(config, layer).unwrap_or(1);
            absent_inputs(recipe, members, stack, reason)
        });
        absent.collect()
    }
}

/// The missing inputs of a recipe, with the reason of the error; `stack` is the number of tensors
/// per stack.
fn absent_inputs(recipe: &Recipe, members: &[Member], stack: u64, reason: &str) -> Vec<Problem> {
    let Some(Match { layer, ending, .. }) = members.first().map(|first| &first.matched) else {
        return Vec::new();
    };
    let number = layer.map_or(String::new(), |layer| layer.to_string());
    let (mut problems, mut more) = (Vec::new(), 0u64);
    for (input, tensor) in recipe.inputs().iter().enumerate() {
        let seen: HashSet<Option<u32>> = members
            .iter()
            .filter(|member| member.matched.input == input)
            .map(|member| member.matched.index)
            .collect();
        let needed = if tensor.is_stacked() { stack } else { 1 };
        let absent = (0..needed.min(u64::from(u32::MAX)))
            .filter(|index| !seen.contains(&tensor.is_stacked().then_some(*index as u32)));
        let room = NAMED_ABSENT.saturating_sub(problems.len());
        let before = problems.len();
        problems.extend(absent.take(room).map(|index| {
            let name = tensor.name.replacen("{}", &number, 1);
            let name = name.replacen("{}", &index.to_string(), 1);
            let carried = !name.ends_with(ending);
            let ending = if carried { *ending } else { "" };
            Problem::of(&format!("{name}{ending}"), reason)
        }));
        let named = (problems.len() - before) as u64;
        more += needed
            .saturating_sub(seen.len() as u64)
            .saturating_sub(named);
    }
    if more > 0 {
        let place = layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
        problems.push(Problem::of(
            "",
            format!("{more} more tensors{place} are missing"),
        ));
    }
    problems
}
