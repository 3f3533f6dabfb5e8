//! Figures of a model and a run for all costs, from metadata alone.

use super::cost::{Cost, Memory, Rounding};
use super::job::{Model, gradient_rows, hessian_needs};
use super::{Options, Result, rounding_bytes};
use crate::arch::{Grouping, InputId, LayerId, Linear};
use crate::format::types::GgmlType;
use crate::hessian::{EXPERT_SAMPLE, Needs, SAMPLE, input_of, is_held_out};
use crate::input::{Input, Tensor};
use crate::model::LOGIT_ROWS;
use crate::quant::Codec;
use crate::rounding::{InputFactor, OutputFactor};
use std::collections::BTreeMap;

/// Figures of a model that is run on texts.
pub(super) struct Numbers {
    pub(super) layers: f64,
    /// Numbers per position between layers.
    pub(super) width: f64,
    /// Those that no layer changes.
    pub(super) constant: f64,
    pub(super) context: f64,
    pub(super) threads: f64,
    /// Active weights per token in all layers.
    active: f64,
    /// All weights of matrices in layers.
    all: f64,
    /// Weights of the largest layer that are widened together.
    pub(super) largest: f64,
    /// Weights of experts in all layers that every chunk widens anew; 0 if whole layers are widened.
    on_use: f64,
    /// Weights of the output matrix.
    pub(super) output: f64,
    /// Summed rows and columns of the active matrices per token, in the layer with the most.
    pub(super) rows: f64,
    pub(super) columns: f64,
    /// Summed channels of the distinct inputs of such a layer.
    pub(super) inputs: f64,
    /// Rows of the output matrix.
    vocabulary: f64,
    /// Operations of attention per token, in all layers.
    attention: f64,
    /// Active experts per token.
    experts_used: usize,
    /// Size of the tensors in bytes.
    pub(super) model_bytes: u64,
    /// Tokens of the texts.
    pub(super) calibration: f64,
    /// Chunks of the calibration text for sequential rounding.
    pub(super) sequential_chunks: usize,
    pub(super) evaluation: f64,
    /// Memory limit in bytes, minus the memory of error feedback.
    limit: Option<u64>,
    pub(super) feedback: Option<FeedbackNumbers>,
}

/// Figures of error feedback.
pub(super) struct FeedbackNumbers {
    /// Requirements of the input Hessians.
    pub(super) needs: Needs,
    /// Rows of the matrices with an output Hessian, if any.
    pub(super) output_rows: Vec<u64>,
    /// Linears with an input Hessian, by tensor name.
    linears: BTreeMap<String, Linear>,
    /// Channels of the widest input.
    pub(super) widest: u64,
    /// Number of held-out positions.
    held_out: usize,
    sequential: bool,
}

/// Fraction of a linear's matrices that is active per token: 1 except for experts.
fn share(linear: &Linear, experts_used: usize) -> f64 {
    match linear.grouping.experts() {
        Some(experts) => (experts_used.max(1) as f64 / experts as f64).min(1.0),
        None => 1.0,
    }
}

impl Numbers {
    pub(super) fn new(input: &Input<'_>, model: &Model<'_>, options: &Options) -> Result<Numbers> {
        #[derive(Default)]
        struct Layer {
            rows: f64,
            columns: f64,
            inputs: BTreeMap<InputId, f64>,
        }
        let (hyper, engine, catalog) = (&model.engine.hyper, model.engine, input.catalog());
        let mut layers: BTreeMap<LayerId, Layer> = BTreeMap::new();
        let (mut active, mut all, mut of_experts) = (0.0, 0.0, 0.0);
        for linear in catalog.linears() {
            let Some(layer) = linear.layer else {
                continue;
            };
            let (layer, shape) = (
                layers.entry(layer).or_default(),
                &input.tensor(linear.tensor).info.shape,
            );
            let ([columns, rows, ..], share) = (shape.four(), share(linear, hyper.experts_used()));
            let weights = shape.elements() as f64;
            active += weights * share;
            all += weights;
            if linear.grouping.experts().is_some() {
                of_experts += weights;
            }
            layer.rows += rows as f64 * share;
            layer.columns += columns as f64 * share;
            layer.inputs.insert(linear.input, columns as f64 * share);
        }
        let attention = hyper.attention.iter().flatten();
        let queries: usize = attention.map(|a| a.heads * a.key_length).sum();
        let queries = queries * hyper.loops;
        active *= hyper.loops as f64;
        all *= hyper.loops as f64;
        let most = |of: fn(&Layer) -> f64| layers.values().map(of).fold(0.0, f64::max);
        let calibration = model.texts.calibration()?;
        let context = calibration.mean_length();
        let output = catalog.output().filter(|_| engine.has_output());
        let output = output.map(|linear| input.tensor(linear.tensor).info.shape.elements());
        let feedback = match options.rounding.has_feedback() {
            true => Some(FeedbackNumbers::new(input, model, options.rounding)?),
            false => None,
        };
        let sequential_chunks = match (&feedback, options.sequential_tokens) {
            (None, _) | (_, 0) => calibration.chunks(),
            (Some(feedback), each) => each
                .saturating_mul(feedback.widest as usize)
                .div_ceil(context),
        };
        let reserved = match feedback {
            Some(_) => rounding_bytes(engine, context),
            None => 0,
        };
        Ok(Numbers {
            layers: hyper.runs() as f64,
            width: hyper.width() as f64,
            constant: hyper.constant().count as f64,
            context: context as f64,
            threads: engine.pool().current_num_threads() as f64,
            active,
            all,
            largest: engine.layer_bytes() as f64 / 4.0,
            on_use: match engine.widens_experts_on_use() {
                true => of_experts,
                false => 0.0,
            },
            output: output.unwrap_or(0) as f64,
            rows: most(|layer| layer.rows),
            columns: most(|layer| layer.columns),
            inputs: most(|layer| layer.inputs.values().sum()),
            vocabulary: engine.vocabulary() as f64,
            attention: 2.0 * (context * queries) as f64 + hyper.state_operations() as f64,
            experts_used: hyper.experts_used(),
            model_bytes: input.tensors.iter().map(|t| t.info.bytes()).sum(),
            calibration: calibration.tokens().len() as f64,
            sequential_chunks: sequential_chunks.clamp(1, calibration.chunks()),
            evaluation: model.texts.evaluation()?.tokens().len() as f64,
            limit: options
                .engine
                .max_memory
                .map(|limit| limit.saturating_sub(reserved)),
            feedback,
        })
    }

    /// Operations of a forward pass through all layers.
    pub(super) fn forward(&self, tokens: f64) -> f64 {
        tokens * (2.0 * self.active + self.attention) + self.widening(tokens)
    }

    /// Weights of all matrices that are multiplied.
    pub(super) fn weights(&self) -> f64 {
        self.all + self.output
    }

    /// Tokens for sequential rounding.
    pub(super) fn sequential_tokens(&self) -> f64 {
        self.sequential_chunks as f64 * self.context
    }

    /// Operations that take as long as widening the experts for every chunk.
    fn widening(&self, tokens: f64) -> f64 {
        /// Operations of a product in the time of widening one weight.
        const OF_WEIGHT: f64 = 32.0;
        tokens / self.context * self.on_use * OF_WEIGHT
    }

    /// Bytes of a layer's rounded experts, kept in blocks until the next layer, in a file of this
    /// many bytes.
    pub(super) fn rounded_experts(&self, file_bytes: f64) -> f64 {
        match self.on_use > 0.0 {
            true => file_bytes / self.layers.max(1.0),
            false => 0.0,
        }
    }

    /// Operations of a forward pass through all layers with all experts.
    pub(super) fn forward_all(&self, tokens: f64) -> f64 {
        tokens * (2.0 * self.all + self.attention) + self.widening(tokens)
    }

    /// Operations of the logits.
    pub(super) fn logits(&self, tokens: f64) -> f64 {
        2.0 * tokens * self.output
    }

    /// Fraction of the positions that reaches each matrix of a linear.
    pub(super) fn share(&self, linear: &Linear) -> f64 {
        share(linear, self.experts_used)
    }

    /// Bytes of the threads' activations in a layer, `times` over.
    pub(super) fn working(&self, times: f64) -> f64 {
        self.threads * self.context * (self.rows + self.columns) * 4.0 * times
    }

    /// Bytes of the threads' logits, probabilities and derivatives.
    pub(super) fn working_logits(&self) -> f64 {
        3.0 * self.threads * LOGIT_ROWS as f64 * self.vocabulary * 4.0
    }

    /// Bytes of snapshots of activations: a new one is written beside the previous one.
    pub(super) fn snapshots(&self, tokens: f64) -> u64 {
        (2.0 * tokens * self.width * 4.0) as u64
    }

    /// Adds memory to a cost.
    pub(super) fn with_memory(&self, cost: Cost, memory: Memory) -> Cost {
        let [memory, temporary] = memory.under(self.limit);
        Cost {
            memory,
            temporary,
            ..cost
        }
    }
}

impl FeedbackNumbers {
    fn new(
        input: &Input<'_>,
        model: &Model<'_>,
        rounding: crate::rounding::Rounding,
    ) -> Result<FeedbackNumbers> {
        let calibration = model.texts.calibration()?;
        let (chunks, context) = (calibration.chunks(), calibration.mean_length());
        let catalog = input.catalog();
        let linears = catalog.linears().iter().filter(|linear| {
            let weight = catalog.weight(linear.id);
            input_of(model.engine, weight, model.engine.has_output()).is_some()
        });
        let linears = linears.map(|linear| (catalog.weight(linear.id), linear));
        let linears: Vec<_> = linears.collect();
        let held_out = (0..chunks).filter(|chunk| is_held_out(*chunk, chunks));
        Ok(FeedbackNumbers {
            needs: hessian_needs(model)?,
            output_rows: match rounding.is_two_sided() {
                true => gradient_rows(model.engine),
                false => Vec::new(),
            },
            widest: linears
                .iter()
                .map(|(weight, _)| weight.row_len())
                .max()
                .unwrap_or(0),
            linears: linears
                .into_iter()
                .map(|(weight, linear)| (weight.name.to_string(), linear.clone()))
                .collect(),
            held_out: held_out.count() * context,
            sequential: rounding.is_sequential(),
        })
    }

    /// True if a tensor is rounded with error feedback, for types with levels.
    pub(super) fn has(&self, tensor: &Tensor<'_>) -> bool {
        self.linears.contains_key(&*tensor.info.name)
    }

    /// Held-out rows of a tensor's input, for scoring roundings.
    fn sample(&self, tensor: &Tensor<'_>) -> f64 {
        let linear = self.linears.get(&*tensor.info.name);
        let most = match linear.and_then(|linear| linear.grouping.experts()) {
            None => SAMPLE,
            Some(_) => EXPERT_SAMPLE,
        };
        most.min(self.held_out) as f64
    }

    /// Operations of one product of a tensor's weights with the held-out rows of its input.
    pub(super) fn proof(&self, tensor: &Tensor<'_>) -> f64 {
        2.0 * tensor.info.shape.elements() as f64 * self.sample(tensor)
    }

    /// Operations in f64 of the factors of these tensors' inputs, in this order: a factor is reused
    /// until another input's is needed.
    pub(super) fn factors<'t>(&self, tensors: impl Iterator<Item = &'t Tensor<'t>>) -> f64 {
        let (mut last, mut sum) = (None, 0.0);
        for tensor in tensors {
            let Some(linear) = self.linears.get(&*tensor.info.name) else {
                continue;
            };
            let experts = linear.grouping.experts();
            let apart = experts.filter(|_| self.needs.experts_apart);
            if apart.is_some() || last != Some(linear.input) {
                let factors = apart.unwrap_or(1) as f64;
                sum += factors * InputFactor::operations(tensor.info.shape.row_len());
            }
            last = Some(linear.input);
        }
        sum
    }

    /// Bytes of the largest factor during factorization, and of the held-out rows.
    pub(super) fn factor_bytes(&self) -> f64 {
        let sample = self.widest * SAMPLE.min(self.held_out) as u64 * 4;
        let rows = self.output_rows.iter().copied().max().unwrap_or(0);
        (InputFactor::working_bytes(self.widest) + sample + OutputFactor::working_bytes(rows))
            as f64
    }

    /// Cost of a pass that rounds these tensors, each to some types, without the cost of the
    /// weights. A sequential pass has one type each.
    pub(super) fn pass(&self, tensors: &[(&Tensor<'_>, usize)], numbers: &Numbers) -> Cost {
        let mut cost = Cost {
            double_operations: self.factors(tensors.iter().map(|(tensor, _)| *tensor)),
            ..Cost::default()
        };
        if self.sequential {
            // Both models process the text; the sums of squares equal those of the Hessians, those
            // of cross products are twice as many.
            let tokens = numbers.sequential_tokens();
            let share = tokens / numbers.calibration;
            let sums = if share < 1.0 { 4.0 } else { 3.0 };
            cost.operations += 2.0 * numbers.forward(tokens) + sums * share * self.needs.operations;
        }
        let mut last = None;
        for (tensor, types) in tensors {
            match self.linears.get(&*tensor.info.name) {
                Some(linear) if self.sequential => {
                    cost += self.sequential(tensor, linear, last);
                    last = Some(linear.input);
                }
                // The weights themselves, and for each type the errors of both roundings.
                _ => cost.operations += (1 + 2 * types) as f64 * self.proof(tensor),
            }
        }
        cost
    }

    /// Cost of one tensor in a sequential pass, after one with the input `last`.
    fn sequential(&self, tensor: &Tensor<'_>, linear: &Linear, last: Option<InputId>) -> Cost {
        let [columns, rows, ..] = tensor.info.shape.four();
        let (n, m, sample) = (columns as f64, rows as f64, self.sample(tensor));
        let weights = tensor.info.shape.elements() as f64;
        let mut cost = Cost::default();
        if last != Some(linear.input) {
            // The map between both models' inputs, and its validity.
            cost.operations += 4.0 * n.powi(3) + 2.0 * sample * n * n;
        }
        // Shift of the weights by the map; errors of both roundings, two products each; power.
        cost.operations += 2.0 * weights * n + 5.0 * self.proof(tensor);
        let is_whole = linear.grouping == Grouping::Whole;
        if is_whole && self.output_rows.contains(&rows) {
            cost.double_operations += m.powi(3) / 3.0 + m * m * BLOCK / 2.0;
            // Feedback between rows; errors and power weighted by the output Hessian.
            cost.operations += m * m * n + 3.0 * 2.0 * m * m * sample;
        }
        cost
    }
}

/// Approximate number of rows rounded together in two-sided rounding.
const BLOCK: f64 = 32.0;

/// True for types with levels to choose.
pub(super) fn takes_feedback(t: GgmlType) -> bool {
    Codec::of(t).is_some_and(Codec::takes_feedback)
}

/// Weights of a tensor that are rounded to a type.
pub(super) fn rounding(
    tensor: &Tensor<'_>,
    ggml_type: GgmlType,
    feedback: Option<&FeedbackNumbers>,
) -> Rounding {
    Rounding {
        ggml_type,
        weights: tensor.info.shape.elements() as f64,
        columns: tensor.info.shape.row_len(),
        feedback: takes_feedback(ggml_type)
            && feedback.is_some_and(|feedback| feedback.has(tensor)),
    }
}
