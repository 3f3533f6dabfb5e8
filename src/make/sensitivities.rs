//! Sensitivities of all tensors to all types, and the output Hessians, from one backward pass.

use super::Result;
use super::calibration::Calibrated;
use super::cost::{Cost, Memory};
use super::job::{Job, Model, gradient_rows};
use super::numbers::{self, Numbers};
use super::shards::{Cut, Gradients, Sensing};
use super::stage::{Foreseeable, Session, Stage};
use super::workdir::WorkDir;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::hessian::{self, Store};
use crate::input::Tensor;
use crate::resume::KeyBuilder;
use crate::rounding::Importance;
use crate::sensitivity::{self, Measure, Run, Scores, Settings};
use quantier_core::threads;
use std::path::Path;

/// Sensitivities of a model.
pub(super) struct Sensitivities {
    pub(super) scores: Scores,
    /// Output Hessians, for two-sided rounding; none in a plan.
    pub(super) output_hessians: Option<Store>,
    /// Key of the output Hessians, also in a plan.
    pub(super) output_key: Option<Key>,
    /// True in a plan: the nats are a guess without measurement.
    pub(super) is_guess: bool,
}

/// The stage.
pub(super) struct ScoringStage<'j> {
    pub(super) job: &'j Job<'j>,
    numbers: Option<&'j Numbers>,
    pub(super) calibrated: &'j Calibrated,
    /// Chunks of the calibration text; empty for weighted errors.
    pub(super) chunks: Vec<Vec<u32>>,
    /// Key of all inputs of the scores except the types.
    pub(super) key: Key,
    /// Tensors and types to score.
    pub(super) needed: Scores,
    pub(super) output_hessians: Option<hessian::Job>,
}

/// Name of the scores and of the snapshot in the work directory.
pub(super) const SCORES: &str = "scores";

/// Tokens of chunks as bytes, for keys.
pub(super) fn token_bytes(chunks: &[Vec<u32>]) -> Vec<u8> {
    chunks
        .iter()
        .flatten()
        .flat_map(|token| token.to_le_bytes())
        .collect()
}

impl<'j> ScoringStage<'j> {
    pub(super) fn new(
        job: &'j Job<'j>,
        numbers: Option<&'j Numbers>,
        calibrated: &'j Calibrated,
    ) -> Result<ScoringStage<'j>> {
        let chunks = match job.model() {
            Some(model) if job.settings().measure != Measure::Imatrix => {
                let texts = &model.texts;
                texts.spread_chunks(texts.scored_chunks(job.options.scoring.chunks)?)?
            }
            _ => Vec::new(),
        };
        Ok(ScoringStage {
            job,
            numbers,
            calibrated,
            key: scores_key(job, &chunks, calibrated)?,
            needed: job.expected_scores(&calibrated.imatrix),
            output_hessians: output_hessians(job, &chunks)?,
            chunks,
        })
    }

    /// Scores of an earlier run, if complete.
    fn scores(&self, work: &WorkDir) -> Option<Scores> {
        let scores: Scores = work.read(SCORES, &self.key)?;
        let covers = scores.cover(&self.needed, &self.job.allowed());
        covers.then_some(scores)
    }

    fn output_key(&self) -> Option<Key> {
        self.output_hessians.as_ref().map(|job| job.key)
    }

    /// Output Hessians of an earlier run; the inner `None` means that none are needed.
    fn loaded_hessians(&self) -> Option<Option<Store>> {
        let Some(needed) = &self.output_hessians else {
            return Some(None);
        };
        let store = Store::open(&needed.directory).ok()?;
        (*store.key() == needed.key).then_some(Some(store))
    }

    /// Computes the scores, and the output Hessians if `missing`.
    fn measure(&self, session: &Session<'_>, missing: Option<&hessian::Job>) -> Result<Scores> {
        let Job { input, options, .. } = self.job;
        let (settings, allowed) = (self.job.settings(), self.job.allowed());
        let knowledge = self.calibrated.knowledge(input);
        let Some(model) = self.job.model() else {
            let pool = threads::pool(options.engine.threads).map_err(crate::model::Error::Model)?;
            let progress = session.progress;
            let scores = sensitivity::weighted(&knowledge, settings, &allowed, &pool, progress)?;
            session.work.write(SCORES, &self.key, &scores)?;
            return Ok(scores);
        };
        let types = serde_json::to_vec(&self.needed).unwrap_or_default();
        let key = KeyBuilder::new("make: scores")
            .with("all", &self.key)
            .with("types", &types)
            .with("gradients", missing.map_or(&[][..], |job| &job.key));
        let (scores, resume) = session.resumable(
            &session.work.snapshot(SCORES),
            key.key(),
            sensitivity::Error::is_final,
            |resume| {
                let run = Run {
                    resume: Some(resume),
                    ..self.run_of(model, missing)
                };
                sensitivity::score(&run, &knowledge, &allowed, session.progress)
            },
        )?;
        session.work.write(SCORES, &self.key, &scores)?;
        resume.remove();
        Ok(scores)
    }

    /// Parameters of a run over the chunks.
    pub(super) fn run_of<'r>(
        &'r self,
        model: &'r Model<'r>,
        missing: Option<&'r hessian::Job>,
    ) -> Run<'r> {
        Run {
            engine: model.engine,
            chunks: &self.chunks,
            settings: self.job.settings(),
            output_hessians: missing,
            resume: None,
        }
    }

    /// Tensors to score, each with its candidate types.
    fn trials(&self) -> impl Iterator<Item = (&'j Tensor<'j>, Vec<GgmlType>)> + '_ {
        let tensors = self.job.input.tensors.iter();
        tensors.filter_map(|tensor| {
            let name = &*tensor.info.name;
            let scored = self.needed.tensors.iter().find(|t| t.name == name)?;
            let types = scored.choices.iter().map(|choice| choice.ggml_type);
            let types = types.filter(|t| *t != tensor.info.ggml_type);
            Some((tensor, types.collect()))
        })
    }

    /// Cost of rounding some tensors to every type, and of scoring it on held-out inputs.
    fn cost_of_rounding(&self, is_scored: &dyn Fn(&Tensor<'_>) -> bool) -> Cost {
        let mut cost = Cost::default();
        let feedback = self.numbers.and_then(|numbers| numbers.feedback.as_ref());
        let feedback = feedback.filter(|_| self.job.settings().measure != Measure::Imatrix);
        let mut with_feedback = Vec::new();
        for (tensor, types) in self.trials().filter(|(tensor, _)| is_scored(tensor)) {
            for ggml_type in types {
                let mut rounding = numbers::rounding(tensor, ggml_type, feedback);
                rounding.weights *= self.tried_rows(tensor);
                if let Some(feedback) = feedback.filter(|_| rounding.feedback) {
                    cost.operations += 2.0 * feedback.proof(tensor);
                }
                cost.rounding.push(rounding);
            }
            if feedback.is_some_and(|feedback| feedback.has(tensor)) {
                with_feedback.push(tensor);
            }
        }
        // Factors are made in the order of names.
        with_feedback.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        cost.double_operations =
            feedback.map_or(0.0, |feedback| feedback.factors(with_feedback.into_iter()));
        cost
    }

    /// Fraction of a tensor's rows that is scored: of a table, at most those of the tokens in the
    /// text.
    fn tried_rows(&self, tensor: &Tensor<'_>) -> f64 {
        let settings = self.job.settings();
        if settings.measure != Measure::Divergence {
            return 1.0;
        }
        let entry = self.job.input.entry(tensor);
        let is_embedding = entry.is_table && entry.linear.is_none();
        let tokens: usize = self.chunks.iter().map(Vec::len).sum();
        let sampled = sensitivity::scored_rows(settings.rows, tensor.matrices());
        let mut rows = tensor.rows_per_matrix() as f64;
        if is_embedding {
            rows = rows.min(tokens as f64);
        }
        if let Some(sampled) = sampled {
            rows = rows.min(sampled as f64);
        }
        rows / tensor.rows_per_matrix() as f64
    }

    /// Cost of forward and backward passes, and of the products of each type.
    fn cost_of_divergence(&self, numbers: &Numbers) -> Cost {
        let tokens = self.chunks.iter().map(Vec::len).sum::<usize>() as f64;
        let Settings {
            positions, draws, ..
        } = *self.job.settings();
        let (positions, draws) = (at_most(positions, tokens), draws as f64);
        // Forward for the trace and again for the derivatives; backward to the inputs, for each
        // draw; then the same at the output, where probabilities are needed twice.
        let stream = (2.0 + draws) * numbers.forward(tokens);
        let output = (1.0 + draws) * numbers.logits(tokens) + 2.0 * numbers.logits(positions);
        let products = self
            .trials()
            .map(|(tensor, types)| self.products(numbers, tensor, &types));
        // Half of a square for each position and draw.
        let rows = self.missing_rows();
        let hessians = rows.iter().map(|rows| (rows * rows) as f64).sum::<f64>();
        Cost {
            operations: stream + output + products.sum::<f64>() + positions * draws * hessians,
            read: 2 * numbers.model_bytes,
            written: rows.iter().copied().map(hessian::gradient_bytes).sum(),
            scratch: numbers.snapshots(tokens * draws),
            ..Cost::default()
        }
    }

    /// Operations of the products of a tensor's types with its inputs.
    fn products(&self, numbers: &Numbers, tensor: &Tensor<'_>, types: &[GgmlType]) -> f64 {
        let tokens = self.chunks.iter().map(Vec::len).sum::<usize>() as f64;
        let positions = at_most(self.job.settings().positions, tokens);
        let catalog = self.job.input.catalog();
        let linear = catalog.linear_of(self.job.input.entry(tensor).id);
        let seen = linear.map_or(0.0, |linear| positions * numbers.share(linear));
        let tried = self.tried_rows(tensor);
        let mut products = seen * tried * types.len() as f64;
        if tried < 1.0 {
            products += seen.min(sensitivity::SURVEY_POSITIONS as f64);
        }
        2.0 * products * tensor.info.shape.elements() as f64
    }

    /// Cost of the gradients of a chunk between all layers, in a shard.
    pub(super) fn cost_of_gradients(&self) -> Cost {
        let Some(numbers) = self.numbers else {
            return Cost::default();
        };
        let (tokens, draws) = (numbers.context, self.job.settings().draws as f64);
        // Forward for the trace and again for the derivatives; backward for each draw.
        let cost = Cost {
            operations: (2.0 + draws) * numbers.forward(tokens)
                + (1.0 + draws) * numbers.logits(tokens),
            read: 2 * numbers.model_bytes,
            written: (tokens * numbers.width * 4.0 * (numbers.layers + 1.0) * (1.0 + draws)) as u64,
            ..Cost::default()
        };
        numbers.with_memory(cost, self.memory(numbers))
    }

    /// Cost of a unit of the scores: the output matrix, a layer, or the tables.
    pub(super) fn cost_of_unit(&self, unit: usize) -> Cost {
        let (Some(numbers), Some(model)) = (self.numbers, self.job.model()) else {
            return Cost::default();
        };
        let layers = model.engine.hyper.layers;
        let layer = sensitivity::units::layer_of(model.engine, unit);
        let catalog = self.job.input.catalog();
        let is_scored = |tensor: &Tensor<'_>| {
            let entry = self.job.input.entry(tensor);
            match (layer, entry.layer) {
                (Some(layer), Some(of)) => of.index() == layer % layers.max(1),
                (None, None) => match unit {
                    0 => catalog.linear_of(entry.id).is_some(),
                    _ => entry.is_table,
                },
                _ => false,
            }
        };
        let tokens = self.chunks.iter().map(Vec::len).sum::<usize>() as f64;
        let draws = self.job.settings().draws as f64;
        let trials = self.trials().filter(|(tensor, _)| is_scored(tensor));
        let products = trials.map(|(tensor, types)| self.products(numbers, tensor, &types));
        let mut cost = self.cost_of_rounding(&is_scored);
        let share = 1.0 / numbers.layers.max(1.0);
        cost.operations += products.sum::<f64>();
        match layer {
            Some(_) => {
                // Forward, and backward for each draw.
                cost.operations += (1.0 + draws) * numbers.forward(tokens) * share;
                cost.read = (numbers.model_bytes as f64 * share) as u64
                    + (tokens * numbers.width * 4.0 * (1.0 + draws)) as u64;
                let rows = gradient_rows(model.engine);
                let squares: f64 = rows.iter().map(|rows| (rows * rows) as f64).sum();
                cost.operations += tokens * draws * squares * share;
                let bytes: u64 = rows.into_iter().map(hessian::gradient_bytes).sum();
                cost.written = (bytes as f64 * share) as u64;
            }
            None if unit == 0 => cost.operations += numbers.logits(tokens),
            None => {}
        }
        numbers.with_memory(cost, self.memory(numbers))
    }

    /// Cost of running the model with one tensor rounded, for every tensor and type.
    fn cost_of_sweep(&self, numbers: &Numbers) -> Cost {
        let tokens = self.chunks.iter().map(Vec::len).sum::<usize>() as f64;
        let model = numbers.forward(tokens) + numbers.logits(tokens);
        let layers = numbers.layers.max(1.0);
        // From the tensor's layer on; all layers for the embedding.
        let part = |tensor: &Tensor<'_>| {
            let entry = self.job.input.entry(tensor);
            match entry.layer {
                Some(layer) => (layers - f64::from(layer.0)) / layers,
                None if entry.is_table => 1.0,
                None => 0.0,
            }
        };
        let trials = self.trials().map(|(tensor, types)| {
            let logits = numbers.logits(tokens);
            types.len() as f64 * (part(tensor) * numbers.forward(tokens) + logits)
        });
        Cost {
            operations: model + trials.sum::<f64>(),
            read: numbers.model_bytes,
            ..Cost::default()
        }
    }

    /// Rows of the matrices whose output Hessians are to be summed.
    fn missing_rows(&self) -> Vec<u64> {
        match (self.job.model(), self.loaded_hessians()) {
            (Some(model), None) => gradient_rows(model.engine),
            _ => Vec::new(),
        }
    }

    fn memory(&self, numbers: &Numbers) -> Memory {
        let tokens = self.chunks.iter().map(Vec::len).sum::<usize>() as f64;
        let Settings {
            positions, draws, ..
        } = *self.job.settings();
        let (positions, draws) = (at_most(positions, tokens), draws as f64);
        // Inputs and output gradients of a layer.
        let layer = positions * (numbers.rows * draws + numbers.inputs) * 4.0;
        // Products of errors and gradients, in f64, for every band of a matrix of few rows.
        let types = self.trials().map(|(_, types)| types.len()).max();
        let products = types.unwrap_or(0) as f64 * positions * draws.max(2.0) * 8.0;
        let bands = (2.0 * numbers.threads + 1.0) * products;
        // Products and gradients of the bands in progress, of one type, where rows are sampled.
        let columns = 1.0 + draws;
        let sampled = numbers.threads * positions * columns * sensitivity::BAND_ROWS as f64 * 4.0;
        let bands = bands.max(sampled);
        let sums = self.missing_rows().into_iter().map(|rows| 4 * rows * rows);
        let feedback = numbers.feedback.as_ref();
        // The output matrix is released before the first layer is widened.
        let at_output = numbers.output * 4.0 + numbers.working_logits();
        let at_layer = numbers.largest * 4.0 + layer + numbers.working(3.0);
        // The input of every layer; what no layer changes is stored once.
        let changing = numbers.width - numbers.constant;
        let trace = (numbers.layers + 1.0) * changing + numbers.constant;
        let gradients = 2.0 * draws * numbers.width;
        Memory {
            activations: tokens * (trace + gradients) * 4.0,
            work: at_output.max(at_layer) + bands,
            feedback: feedback.map_or(0.0, |feedback| feedback.factor_bytes())
                + sums.sum::<u64>() as f64 / numbers.layers.max(1.0),
        }
    }
}

/// Number of scored positions, at most `positions`; 0 means all.
fn at_most(positions: usize, tokens: f64) -> f64 {
    match positions {
        0 => tokens,
        positions => tokens.min(positions as f64),
    }
}

impl Stage for ScoringStage<'_> {
    type Output = Sensitivities;

    fn name(&self) -> &'static str {
        "sensitivities"
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Sensitivities>> {
        let loaded = self.scores(work).zip(self.loaded_hessians());
        Ok(loaded.map(|(scores, output_hessians)| Sensitivities {
            scores,
            output_hessians,
            output_key: self.output_key(),
            is_guess: false,
        }))
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let has_scores = self.scores(work).is_some();
        let mut cost = match has_scores {
            true => Cost::default(),
            false => self.cost_of_rounding(&|_| true),
        };
        let Some(numbers) = self.numbers else {
            return Ok(cost);
        };
        cost += match self.job.settings().measure {
            Measure::Divergence => self.cost_of_divergence(numbers),
            Measure::Sweep => self.cost_of_sweep(numbers),
            Measure::Imatrix | Measure::Fitted => return Ok(cost),
        };
        Ok(numbers.with_memory(cost, self.memory(numbers)))
    }

    fn cuts(&self) -> Vec<Box<dyn Cut + '_>> {
        match (self.job.model(), self.job.settings().measure) {
            (Some(_), Measure::Divergence) => {
                vec![Box::new(Gradients(self)), Box::new(Sensing(self))]
            }
            _ => Vec::new(),
        }
    }

    fn run(&self, session: &Session<'_>) -> Result<Sensitivities> {
        let loaded = self.loaded_hessians();
        let missing = self.output_hessians.as_ref().filter(|_| loaded.is_none());
        if let (Some(missing), Some(model)) = (missing, self.job.model()) {
            hessian::clear_others(&missing.directory, &missing.key)?;
            let rows = gradient_rows(model.engine);
            let bytes = rows.into_iter().map(hessian::gradient_bytes);
            hessian::check_room(missing, bytes.sum())?;
        }
        let scores = match self.scores(session.work) {
            Some(scores) => {
                if let (Some(missing), Some(model)) = (missing, self.job.model()) {
                    let run = self.run_of(model, Some(missing));
                    sensitivity::sum_output_hessians(&run, session.progress)?;
                }
                scores
            }
            None => self.measure(session, missing)?,
        };
        let output_hessians = match (loaded, missing) {
            (Some(loaded), _) => loaded,
            (None, Some(missing)) => Some(Store::open(&missing.directory)?),
            (None, None) => None,
        };
        Ok(Sensitivities {
            scores,
            output_hessians,
            output_key: self.output_key(),
            is_guess: false,
        })
    }
}

impl Foreseeable for ScoringStage<'_> {
    fn expected(&self, work: &WorkDir) -> Result<Sensitivities> {
        let scores = self.scores(work);
        Ok(Sensitivities {
            is_guess: scores.is_none(),
            scores: scores.unwrap_or_else(|| self.needed.clone()),
            output_hessians: None,
            output_key: self.output_key(),
        })
    }
}

fn scores_key(job: &Job<'_>, chunks: &[Vec<u32>], calibrated: &Calibrated) -> Result<Key> {
    let settings = serde_json::to_vec(job.settings()).unwrap_or_default();
    let hessians = calibrated.hessian_key.as_ref();
    let mut key = KeyBuilder::new("make: scores")
        .with_model(job.input)?
        .with("tokens", &token_bytes(chunks))
        .with("covariance", hessians.map_or(&[][..], |key| key))
        .with("settings", &settings);
    for (name, entry) in &calibrated.imatrix.entries {
        let importance = Importance::new(entry);
        let weights = [importance.reference(), importance.shrunk()].into_iter();
        let weights: Vec<u8> = weights.flatten().flat_map(|x| x.to_le_bytes()).collect();
        key = key.with(name, &weights);
    }
    Ok(job.lossless.with(key).key())
}

/// Output Hessians of a run, if its files are rounded with them.
fn output_hessians(job: &Job<'_>, chunks: &[Vec<u32>]) -> Result<Option<hessian::Job>> {
    let Some(model) = job.model().filter(|_| job.options.rounding.is_two_sided()) else {
        return Ok(None);
    };
    let Settings {
        positions,
        draws,
        seed,
        ..
    } = *job.settings();
    // The set of matrices depends on the memory limit.
    let rows = gradient_rows(model.engine);
    let rows: Vec<u8> = rows.iter().flat_map(|rows| rows.to_le_bytes()).collect();
    let key = KeyBuilder::new("make: gradients")
        .with_model(job.input)?
        .with("tokens", &token_bytes(chunks))
        .with("context", &job.context.to_le_bytes())
        .with("draws", &draws.to_le_bytes())
        .with("positions", &positions.to_le_bytes())
        .with("seed", &seed.to_le_bytes())
        .with("rows", &rows);
    let directory: &Path = &job.work().path("gradients");
    Ok(Some(hessian::Job {
        directory: directory.to_owned(),
        key: key.key(),
        experts_apart: false,
        hold_out: false,
    }))
}
