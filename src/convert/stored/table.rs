//! The tensors of a checkpoint by name, while those of quantized linears are joined.

use super::{Form, Raw, Resolved};
use crate::convert::checkpoint::Source;
use crate::format::safetensors::Dtype;
use crate::plan::recipe::Problem;
use std::collections::HashMap;

/// Tensors by name; taken ones are removed.
pub(super) struct Table {
    sources: Vec<Option<Source>>,
    index: HashMap<String, usize>,
    /// Joined tensors that the reference writes last.
    behind: Vec<Source>,
    problems: Vec<Problem>,
}

/// The place of joined weights among the tensors, and thus in the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    /// The place of the codes.
    InPlace,
    /// After all others.
    Behind,
}

impl Table {
    pub(super) fn new(sources: Vec<Source>) -> Table {
        let names = sources.iter().enumerate();
        let index = names.map(|(i, source)| (source.name.clone(), i)).collect();
        Table {
            sources: sources.into_iter().map(Some).collect(),
            index,
            behind: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Names with this suffix, in the tensors' order.
    pub(super) fn ending(&self, ending: &str) -> Vec<String> {
        let names = self.sources.iter().flatten().map(|source| &source.name);
        names
            .filter(|name| name.ends_with(ending))
            .cloned()
            .collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Source> {
        self.sources[*self.index.get(name)?].as_ref()
    }

    /// Takes a tensor of quantized weights.
    ///
    /// # Errors
    /// If the tensor is missing, or its rows are not contiguous.
    pub(super) fn take(&mut self, name: &str) -> Result<Raw, String> {
        match self.take_optional(name)? {
            Some(raw) => Ok(raw),
            None => Err(format!(
                "{name}, which belongs to it, is missing; download the files again"
            )),
        }
    }

    /// As [`Table::take`], for an optional tensor.
    pub(super) fn take_optional(&mut self, name: &str) -> Result<Option<Raw>, String> {
        let source = self.index.get(name).and_then(|i| self.sources[*i].take());
        source.map(|source| Raw::of(&source)).transpose()
    }

    /// Drops tensors unused in GGUF.
    pub(super) fn drop_ending(&mut self, endings: &[&str]) {
        for source in &mut self.sources {
            let is_it = |source: &Source| endings.iter().any(|end| source.name.ends_with(end));
            if source.as_ref().is_some_and(is_it) {
                *source = None;
            }
        }
    }

    /// Replaces the tensor `codes`, with a suffix of its name replaced by `ending`, by the joined
    /// weights. `join` returns the shape and the form of the weights.
    pub(super) fn join(
        &mut self,
        codes: &str,
        [from, to]: [&str; 2],
        order: Order,
        join: impl FnOnce(&mut Table, &str) -> Result<(Vec<u64>, Form), String>,
    ) {
        let Some(&at) = self.index.get(codes) else {
            return;
        };
        let Some(first) = self.sources[at].clone() else {
            return;
        };
        let renamed = |name: &str| {
            let base = name.strip_suffix(from).unwrap_or(name);
            format!("{base}{to}")
        };
        let base = codes.strip_suffix(from).unwrap_or(codes).to_owned();
        match join(self, &base) {
            Ok((shape, form)) => {
                let joined = Source {
                    name: renamed(&first.name),
                    text_name: first.text_name.as_deref().map(renamed),
                    dtype: Dtype::F32,
                    shape,
                    strides: None,
                    form: Some(form.into()),
                    ..first
                };
                match order {
                    Order::InPlace => self.sources[at] = Some(joined),
                    Order::Behind => {
                        self.sources[at] = None;
                        self.behind.push(joined);
                    }
                }
            }
            Err(what) => self.problems.push(Problem::of(codes, what)),
        }
    }

    /// Reports a problem of a tensor.
    pub(super) fn problem(&mut self, name: &str, what: String) {
        self.problems.push(Problem::of(name, what));
    }

    pub(super) fn finish(self) -> Resolved {
        let mut sources: Vec<_> = self.sources.into_iter().flatten().collect();
        sources.extend(self.behind);
        Resolved {
            sources,
            problems: self.problems,
            ..Resolved::default()
        }
    }
}
