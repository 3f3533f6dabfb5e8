//! What error feedback adds to a run: sums of covariances, their files, factors, and the proof of
//! every rounding.

use super::super::{Job, Kept, Opened, Result, covariance_job, rounding_bytes, texts};
use crate::arch::InputId;
use crate::format::snapshot::Key;
use crate::hessian::{EXPERT_SAMPLE, Needs, SAMPLE, input_of, is_held_out};
use crate::input::Tensor;
use crate::rounding::{InputFactor, InputHessians};
use std::collections::BTreeMap;

/// Covariances of a run, and what is made of them.
pub(super) struct Fed {
    /// All that they depend on.
    pub(super) key: Key,
    /// Whether an earlier run has left them.
    pub(super) there: bool,
    /// What collecting them takes.
    pub(super) needs: Needs,
    /// Bytes that are taken off the limit on memory.
    pub(super) reserved: u64,
    /// The input of every tensor that has one.
    inputs: BTreeMap<String, InputId>,
    /// Channels of the widest.
    pub(super) widest: u64,
    /// Positions that were held out of the sums.
    held_out: usize,
}

impl Fed {
    pub(super) fn new(
        model: Opened<'_>,
        job: &Job,
        windows: &texts::Cut,
        kept: &Kept,
    ) -> Result<Fed> {
        let calibration = windows.calibration()?;
        let (chunks, context) = (calibration.chunks(), calibration.n_ctx());
        let needs = Needs::of(model.engine, true, [chunks, context]);
        let collected = covariance_job(model, windows, kept, &needs)?;
        let tensors = model.input.tensors.iter();
        let input = |t: &Tensor<'_>| input_of(model.engine, model.input.entry(t), true);
        let met = tensors.filter_map(|t| Some((t, input(t)?)));
        let met: Vec<_> = met.collect();
        Ok(Fed {
            there: InputHessians::open(&collected.directory)
                .is_ok_and(|found| *found.key() == collected.key),
            key: collected.key,
            needs,
            reserved: rounding_bytes(model.engine, job.texts.context),
            widest: met
                .iter()
                .map(|(t, _)| t.info.shape.row_len())
                .max()
                .unwrap_or(0),
            inputs: met
                .into_iter()
                .map(|(t, input)| (t.info.name.to_string(), input))
                .collect(),
            held_out: (0..chunks)
                .filter(|chunk| is_held_out(*chunk, chunks))
                .count()
                * context,
        })
    }

    /// Whether a tensor is rounded with error feedback, in types that have levels.
    pub(super) fn has(&self, tensor: &Tensor<'_>) -> bool {
        self.inputs.contains_key(&*tensor.info.name)
    }

    /// Operations of the products of a tensor's weights with the rows that are held out of its
    /// input, once.
    pub(super) fn proof(&self, tensor: &Tensor<'_>) -> f64 {
        let shape = &tensor.info.shape;
        let most = if shape.four()[2] > 1 {
            EXPERT_SAMPLE
        } else {
            SAMPLE
        };
        2.0 * shape.elements() as f64 * most.min(self.held_out) as f64
    }

    /// Operations of the factors of these tensors' inputs, in their order: that of an input is kept
    /// until another is wanted.
    pub(super) fn factors<'t>(&self, tensors: impl Iterator<Item = &'t Tensor<'t>>) -> f64 {
        let (mut last, mut sum) = (None, 0.0);
        for tensor in tensors {
            let Some(input) = self.inputs.get(&*tensor.info.name) else {
                continue;
            };
            let [columns, _, matrices, _] = tensor.info.shape.four();
            let apart = matrices > 1 && self.needs.experts_apart;
            if apart || last != Some(input) {
                sum += InputFactor::operations(columns) * if apart { matrices as f64 } else { 1.0 };
            }
            last = Some(input);
        }
        sum
    }

    /// Bytes of memory of the largest factor while it is made, and of the rows beside it.
    pub(super) fn factor_bytes(&self) -> f64 {
        (InputFactor::working_bytes(self.widest)
            + self.widest * SAMPLE.min(self.held_out) as u64 * 4) as f64
    }
}
