//! Warnings of types that do not fit the rows of tensors.

use super::messages::warning;
use quantier_core::words::listed;
use quantier_gguf::types::GgmlType;

/// A tensor with another type than the wanted one.
pub struct Substituted<'t> {
    pub name: &'t str,
    pub row_len: u64,
    pub wanted: GgmlType,
    pub target: GgmlType,
}

/// Warns of all, in one line per pair of types and row length: a model whose rows fit no block of 256 weights has
/// hundreds.
pub fn warn<'t>(all: impl Iterator<Item = Substituted<'t>>) {
    lines(all).iter().for_each(|line| warning!("{line}"));
}

fn lines<'t>(all: impl Iterator<Item = Substituted<'t>>) -> Vec<String> {
    let mut groups: Vec<Vec<Substituted<'t>>> = Vec::new();
    for tensor in all {
        let kind = |t: &Substituted<'_>| (t.wanted, t.target, t.row_len);
        match groups
            .iter_mut()
            .find(|group| kind(&group[0]) == kind(&tensor))
        {
            Some(group) => group.push(tensor),
            None => groups.push(vec![tensor]),
        }
    }
    groups.iter().map(|group| line(group)).collect()
}

fn line(group: &[Substituted<'_>]) -> String {
    /// Maximum number of tensors named.
    const NAMED: usize = 4;
    let names: Vec<&str> = group.iter().map(|t| t.name).collect();
    let mut names = listed(&names, NAMED);
    if group.len() > NAMED {
        names.push_str(" tensors");
    }
    let Substituted {
        row_len,
        wanted,
        target,
        ..
    } = &group[0];
    format!("{names}: {wanted} cannot hold rows of {row_len} weights; {target} is used instead")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_equal_types_and_rows_share_a_line() {
        let names: Vec<String> = (0..6).map(|i| format!("blk.{i}.attn_q.weight")).collect();
        let tensor = |name, wanted, row_len| Substituted {
            name,
            row_len,
            wanted,
            target: GgmlType::Q8_0,
        };
        let same = names
            .iter()
            .map(|name| tensor(name.as_str(), GgmlType::Q6_K, 576));
        let other = [tensor("output.weight", GgmlType::Q6_K, 96)];
        assert_eq!(
            lines(same.chain(other)),
            [
                "blk.0.attn_q.weight, blk.1.attn_q.weight, blk.2.attn_q.weight, blk.3.attn_q.weight and 2 more tensors: \
                 q6_K cannot hold rows of 576 weights; q8_0 is used instead",
                "output.weight: q6_K cannot hold rows of 96 weights; q8_0 is used instead",
            ]
        );
    }
}
