//! What a run would do: counted from metadata, timed by trying a product and a few rows of every type on this machine.

use super::choice::{self, Choices};
use super::{IMATRIX, Job, Kept, Opened, Result, check, covariance_job, guess, imatrix_key, proof, scores_key};
use crate::covariance::Needs;
use crate::feedback::Rounding;
use crate::format::imatrix::Imatrix;
use crate::format::types::GgmlType;
use crate::frontier::{Measure, Scores};
use crate::input::{Input, Tensor};
use crate::model::rows_times_rows;
use crate::plan::frontier::Budget;
use crate::quant::Codec;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Tensors that have a choice.
    pub tensors: usize,
    /// Their matrices: each expert counts.
    pub matrices: u64,
    /// Types to choose from, over all tensors.
    pub types: usize,
    /// Pairs of a matrix and a type that are tried.
    pub trials: u64,
    /// Tokens of the calibration text: all of them go into the importance matrix.
    pub calibration_tokens: u64,
    /// Those of them that types are judged on.
    pub scoring_tokens: u64,
    /// Tokens of the evaluation text.
    pub evaluation_tokens: u64,
    /// What this machine does in a matrix product, in floating-point operations per second.
    pub flops_per_second: f64,
    /// In their order.
    pub stages: Vec<Stage>,
    /// What the budgets come to, as far as that can be known before types are judged: bytes of the file.
    pub files: Vec<(String, Option<u64>)>,
    /// Bytes of the files that the budgets come to. A budget in nats counts as the largest file.
    pub files_bytes: u64,
    /// Bytes of the importance matrix.
    pub imatrix_bytes: u64,
    /// Bytes of what is kept for the case that the run is killed, at the worst moment.
    pub work_bytes: u64,
    /// Bytes of activations that go to a temporary file because of the limit on memory.
    pub temporary_bytes: u64,
    /// Bytes of memory at the worst moment, mapped files not counted.
    pub memory_bytes: u64,
}

/// A stage of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name, as in the report.
    pub name: &'static str,
    /// Floating-point operations of its matrix products.
    pub flops: f64,
    /// How long it would take; 0 if it is done.
    pub seconds: f64,
    /// Whether an earlier run has left its result.
    pub done: bool,
}

/// Estimates a run, and writes nothing.
///
/// # Errors
/// Whatever would be refused before anything is measured.
pub fn estimate(input: &Input<'_>, opened: Option<Opened<'_>>, job: &Job) -> Result<Estimate> {
    let windows = check(input, opened, job)?;
    let kept = Kept::look(&job.directory);
    let texts = windows.as_ref();
    let own = job.directory.join(IMATRIX);
    let imatrix_path = match (&job.imatrix, texts) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(windows)) => {
            let there = own.exists() && kept.has("imatrix", &imatrix_key(input, windows)?);
            there.then_some(own)
        }
        (None, None) => None,
    };
    let covariance = match opened.zip(texts).filter(|_| job.settings.rounding == Rounding::Feedback) {
        Some((model, windows)) => {
            let calibration = windows.calibration()?;
            let needs = Needs::of(model.engine, model.input, true, [calibration.chunks(), calibration.n_ctx()]);
            Some(covariance_job(model, windows, &kept, &needs)?.key)
        }
        None => None,
    };
    let imatrix = imatrix_path.as_ref().map(|path| Imatrix::read(path)).transpose()?;
    let expected = guess(input, job, imatrix.as_ref());
    let judged = job.settings.measure == Measure::Divergence;
    let chunks = match texts {
        Some(windows) if judged => windows.score_chunks(job.score_chunks)?,
        _ => Vec::new(),
    };
    let key =
        imatrix.as_ref().map(|imatrix| scores_key(input, job, &chunks, imatrix, covariance.as_ref())).transpose()?;
    let allowed = |name: &str, t| job.constraints.allows(name, t);
    let scores = key.and_then(|key| kept.read::<Scores>("scores", &key));
    let scores = scores.filter(|scores| scores.cover(&expected, &allowed));
    let known = |(_, budget): &&(String, Budget)| scores.is_some() || !matches!(budget, Budget::Kld(_));
    let budgets: Vec<_> = job.budgets.iter().filter(known).cloned().collect();
    let model = opened.filter(|_| texts.is_some());
    let choices = scores.as_ref().unwrap_or(&expected);
    let variants = if scores.is_some() { job.variants } else { 0 };
    let choices = Choices::new(input, model, job, (&budgets, variants), choices, imatrix_path.as_deref())?;
    let (written, measured) = match (&scores, &imatrix_path) {
        (Some(_), Some(path)) => {
            let written = choice::written(input, &choices, (path, covariance), &kept)?;
            let files: Vec<_> = choices.chosen.iter().map(|c| c.path.clone()).filter(|path| path.exists()).collect();
            let measured = match texts {
                Some(windows) if written == choices.chosen.len() => proof::known(input, windows, &files, &kept)?,
                _ => 0,
            };
            (written, measured)
        }
        _ => (0, 0),
    };

    let count = Count::new(input, model, job, &expected, windows.as_ref(), chunks.len());
    let machine = Machine::new(input, &expected, job.threads)?;
    let products = |flops: f64| flops / (REACHED * machine.flops_per_second);
    let files = job.budgets.len() + job.variants;
    let unknown = files - budgets.len() - variants;
    let all_written = scores.is_some() && written == choices.chosen.len();
    let mut stages = Vec::new();
    let mut add = |name, flops: f64, seconds: f64, done: bool| {
        stages.push(Stage { name, flops, seconds: if done { 0.0 } else { products(flops) + seconds }, done });
    };
    if job.imatrix.is_none() {
        add("importance matrix", count.imatrix(), 0.0, imatrix.is_some());
    }
    add(
        "scores",
        if judged { count.scores(&expected) } else { 0.0 },
        machine.trials(&count, &expected),
        scores.is_some(),
    );
    if !job.frontier_only {
        let recipes = choices.chosen.iter().flat_map(|chosen| &chosen.recipe);
        let seconds: f64 = recipes.map(|(name, t)| machine.tensor(input, name, *t)).sum();
        // Files whose recipe is not known yet are taken for the mean of the others.
        let more = unknown as f64 / choices.chosen.len().max(1) as f64;
        add("files", 0.0, seconds * (1.0 + more), all_written);
        if texts.is_some() {
            add("proof", count.proof(files), 0.0, all_written && measured == choices.chosen.len());
        }
    }
    let file_bytes = |text: &String| choices.chosen.iter().find(|c| c.budget == *text).map(|c| c.file_bytes);
    let largest = choices.header_bytes + choices.frontier.largest().bytes;
    let mut shown: Vec<_> = job.budgets.iter().map(|(text, _)| (text.clone(), file_bytes(text))).collect();
    let of_variants = choices.chosen.iter().filter(|c| !job.budgets.iter().any(|(text, _)| *text == c.budget));
    shown.extend(of_variants.map(|c| (c.budget.clone(), Some(c.file_bytes))));
    if variants < job.variants {
        shown.push((format!("--variants {}", job.variants), None));
    }
    let memory = count.memory(job, files);
    Ok(Estimate {
        tensors: expected.tensors.len(),
        matrices: count.trials.iter().map(|t| t.matrices).sum(),
        types: count.trials.iter().flat_map(|t| &t.types).collect::<BTreeSet<_>>().len(),
        trials: count.trials.iter().map(|t| t.matrices * t.types.len() as u64).sum(),
        calibration_tokens: count.calibration as u64,
        scoring_tokens: count.scoring as u64,
        evaluation_tokens: count.evaluation as u64,
        flops_per_second: machine.flops_per_second,
        stages,
        files: shown,
        files_bytes: choices.chosen.iter().map(|c| c.file_bytes).sum::<u64>() + unknown as u64 * largest,
        imatrix_bytes: count.imatrix_bytes,
        // One while it is written beside the one before.
        work_bytes: 2 * count.state_bytes(job),
        temporary_bytes: memory.1,
        memory_bytes: memory.0,
    })
}

/// What whole layers reach of the speed of a product alone, with attention, norms and what each product prepares: 0.59
/// (scores) to 0.70 (importance matrix, proof) in a run on an idle machine.
const REACHED: f64 = 0.65;

/// A tensor to be tried.
struct Trial<'a> {
    tensor: &'a Tensor<'a>,
    matrices: u64,
    types: Vec<GgmlType>,
    /// Part of the positions that each of its rows meets: fewer than all for experts.
    share: f64,
    /// Part of its rows that are tried: fewer than all for an embedding.
    rows: f64,
}

/// Numbers that all estimates are made of.
struct Count<'a> {
    trials: Vec<Trial<'a>>,
    calibration: f64,
    scoring: f64,
    evaluation: f64,
    positions: f64,
    draws: f64,
    context: f64,
    layers: f64,
    hidden: f64,
    /// Weights of all layers that a token meets.
    met: f64,
    /// Weights of the largest layer.
    largest: f64,
    /// Lengths of rows, then of columns, of the matrices of one layer.
    widths: (f64, f64),
    /// Weights of the output matrix.
    output: f64,
    output_name: &'a str,
    /// Products of attention for one token in all layers, in operations.
    attention: f64,
    threads: f64,
    imatrix_bytes: u64,
}

impl<'a> Count<'a> {
    fn new(
        input: &'a Input<'a>,
        model: Option<Opened<'a>>,
        job: &Job,
        expected: &Scores,
        windows: Option<&super::texts::Cut>,
        chunks: usize,
    ) -> Count<'a> {
        let context = job.texts.context as f64;
        let tokens = |of: fn(&super::texts::Cut) -> &[u8]| windows.map_or(0.0, |w| (of(w).len() / 4) as f64);
        let hyper = model.map(|model| &model.engine.hyper);
        let scoring = chunks as f64 * context;
        let output_name = model.map_or("output.weight", |model| model.engine.output_name());
        let used = hyper.map_or(1, |hyper| hyper.experts_used) as f64;
        let share = |t: &Tensor<'_>| match t.info.shape.four()[2] {
            1 => 1.0,
            experts => (used / experts as f64).min(1.0),
        };
        let elements = |t: &Tensor<'_>| t.info.shape.elements() as f64;
        let matrices = |t: &&Tensor<'_>| t.info.shape.dims().len() > 1;
        let in_layers: Vec<_> = input.tensors.iter().filter(|t| t.info.name.starts_with("blk.")).collect();
        let in_layers: Vec<&Tensor<'_>> = in_layers.into_iter().filter(matrices).collect();
        let mut by_layer: BTreeMap<Option<i32>, (f64, f64, f64)> = BTreeMap::new();
        for tensor in &in_layers {
            let layer = by_layer.entry(crate::plan::role::layer_of(&tensor.info.name)).or_default();
            let [columns, rows, ..] = tensor.info.shape.four();
            layer.0 += elements(tensor);
            layer.1 += columns as f64 * share(tensor);
            layer.2 += rows as f64 * share(tensor);
        }
        let most = |of: fn(&(f64, f64, f64)) -> f64| by_layer.values().map(of).fold(0.0, f64::max);
        let of_trial = |tensor: &'a Tensor<'a>| {
            let scored = expected.tensors.iter().find(|t| t.name == tensor.info.name)?;
            let types = scored.choices.iter().map(|c| c.ggml_type).filter(|t| *t != tensor.info.ggml_type);
            let is_embedding = tensor.info.name == "token_embd.weight" && output_name != "token_embd.weight";
            let rows = tensor.info.shape.rows() as f64;
            let judged = job.settings.measure == Measure::Divergence;
            Some(Trial {
                tensor,
                matrices: tensor.info.shape.four()[2],
                types: types.collect(),
                share: share(tensor),
                rows: if is_embedding && judged { (scoring / rows).min(1.0) } else { 1.0 },
            })
        };
        let all = job.settings.positions as f64;
        Count {
            trials: input.tensors.iter().filter_map(of_trial).collect(),
            calibration: if job.imatrix.is_none() { tokens(super::texts::Cut::calibration_bytes) } else { 0.0 },
            scoring,
            evaluation: if job.frontier_only { 0.0 } else { tokens(super::texts::Cut::evaluation_bytes) },
            positions: if all > 0.0 { all.min(scoring) } else { scoring },
            draws: job.settings.draws as f64,
            context,
            layers: hyper.map_or(0.0, |hyper| hyper.layers as f64),
            hidden: hyper.map_or(0.0, |hyper| hyper.hidden as f64),
            met: in_layers.iter().map(|t| elements(t) * share(t)).sum(),
            largest: most(|layer| layer.0),
            widths: (most(|layer| layer.1), most(|layer| layer.2)),
            output: input.tensors.iter().find(|t| t.info.name == output_name).map_or(0.0, elements),
            output_name,
            attention: hyper.map_or(0.0, |h| 2.0 * context * (h.heads * h.key_length * h.layers) as f64),
            threads: match job.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from) as f64,
                threads => threads as f64,
            },
            imatrix_bytes: in_layers.iter().map(|t| t.info.shape.row_len() * t.info.shape.four()[2] * 4).sum(),
        }
    }

    /// Operations of a forward pass of so many tokens through all layers.
    fn forward(&self, tokens: f64) -> f64 {
        tokens * (2.0 * self.met + self.attention)
    }

    fn imatrix(&self) -> f64 {
        self.forward(self.calibration) + self.calibration * 2.0 * self.output
    }

    fn scores(&self, expected: &Scores) -> f64 {
        // Forward for the trace and again for the derivatives; those of a product by its input, for each draw; then the
        // same at the output, where probabilities are needed twice.
        let stream = (2.0 + self.draws) * self.forward(self.scoring);
        let output = (1.0 + self.draws) * self.scoring * 2.0 * self.output + 2.0 * self.positions * 2.0 * self.output;
        let trial = |t: &Trial<'_>| {
            let is_met = t.tensor.info.name.starts_with("blk.") || t.tensor.info.name == self.output_name;
            let positions = if is_met { self.positions * t.share } else { 0.0 };
            2.0 * positions * t.tensor.info.shape.elements() as f64 * t.types.len() as f64
        };
        debug_assert_eq!(expected.tensors.len(), self.trials.len());
        stream + output + self.trials.iter().map(trial).sum::<f64>()
    }

    fn proof(&self, files: usize) -> f64 {
        let models = 1.0 + files as f64;
        models * (self.forward(self.evaluation) + self.evaluation / 2.0 * 2.0 * self.output)
    }

    /// Bytes of what a long stage keeps between two layers: the larger of both.
    fn state_bytes(&self, job: &Job) -> u64 {
        let imatrix = if job.imatrix.is_none() { self.calibration } else { 0.0 };
        (imatrix.max(self.scoring * self.draws) * self.hidden * 4.0) as u64
    }

    /// Bytes of memory at the worst moment, and bytes that go to a temporary file.
    fn memory(&self, job: &Job, files: usize) -> (u64, u64) {
        let (rows, columns) = self.widths;
        // What the threads work on: activations of one layer, several times where derivatives are taken.
        let work = |times: f64| self.threads * self.context * (rows + columns) * 4.0 * times;
        let imatrix = (self.calibration * self.hidden, self.largest.max(self.output) * 4.0 + work(1.0));
        let kept = self.positions * (rows + self.draws * columns) * 4.0;
        let states = (self.layers + 1.0 + self.draws) * self.scoring * self.hidden;
        let scores = (states, self.largest.max(self.output) * 4.0 + kept + work(3.0));
        let models = 1.0 + files.min(proof::TOGETHER) as f64;
        let of_evaluation = (models / 2.0 + 1.0) * self.evaluation * self.hidden;
        let proof = (of_evaluation, (self.largest + models * self.output) * 4.0 + work(1.0));
        let limit = job.options.max_memory.map_or(f64::INFINITY, |limit| limit as f64);
        let one = |(states, other): (f64, f64)| {
            let states = states * 4.0;
            let room = (limit - other).max(0.0);
            (states.min(room) + other, (states - room).max(0.0))
        };
        let all = [imatrix, scores, proof].map(one);
        let most = |of: fn(&(f64, f64)) -> f64| all.iter().map(of).fold(0.0, f64::max) as u64;
        (most(|m| m.0), most(|m| m.1))
    }
}

/// How fast this machine is, tried.
struct Machine {
    flops_per_second: f64,
    /// Weights per second that all threads quantize and read again.
    rates: BTreeMap<GgmlType, f64>,
}

/// How long a try takes at least.
const PRODUCT_TIME: Duration = Duration::from_millis(150);
const TYPE_TIME: Duration = Duration::from_millis(20);

impl Machine {
    fn new(input: &Input<'_>, expected: &Scores, threads: usize) -> Result<Machine> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| crate::model::Error::Model(format!("cannot start {threads} threads: {e}")))?;
        // Work per second of all threads, each of which does `work` again and again.
        let rate = |amount: f64, at_least: Duration, work: &(dyn Fn() + Sync)| -> f64 {
            let each = pool.broadcast(|_| {
                work();
                let (start, mut times) = (Instant::now(), 0);
                while start.elapsed() < at_least {
                    work();
                    times += 1;
                }
                f64::from(times) * amount / start.elapsed().as_secs_f64()
            });
            each.into_iter().sum()
        };
        const SIDE: usize = 256;
        let a = vec![0.5f32; SIDE * SIDE];
        let flops_per_second = rate(2.0 * (SIDE * SIDE * SIDE) as f64, PRODUCT_TIME, &|| {
            let mut out = vec![0.0; SIDE * SIDE];
            rows_times_rows(&a, &a, [SIDE, SIDE, SIDE], &mut out);
            std::hint::black_box(out);
        });
        let mut rates = BTreeMap::new();
        let mut tensors: Vec<_> = expected.tensors.iter().collect();
        tensors.sort_by_key(|t| std::cmp::Reverse(t.weights));
        for scored in tensors {
            let Some(tensor) = input.tensors.iter().find(|t| t.info.name == scored.name) else { continue };
            let Some(decoder) = Codec::of(tensor.info.ggml_type) else { continue };
            let mut row: Option<Vec<f32>> = None;
            for codec in scored.choices.iter().filter_map(|c| Codec::of(c.ggml_type)) {
                if rates.contains_key(&codec.ggml_type) {
                    continue;
                }
                let columns = tensor.info.shape.row_len() as usize;
                if row.is_none() {
                    let (mut buffer, mut weights) = (Vec::new(), vec![0.0; columns]);
                    let middle = tensor.info.shape.rows() / 2;
                    decoder.dequantize_row(input.read(tensor, middle..middle + 1, &mut buffer)?, &mut weights);
                    row = Some(weights);
                }
                let weights = row.as_deref().unwrap_or_default();
                let importance: Vec<f32> = (0..columns).map(|i| 0.5 + (i % 7) as f32).collect();
                let row_bytes = codec.ggml_type.row_bytes(columns as u64).unwrap_or(0) as usize;
                let of_type = rate(columns as f64, TYPE_TIME, &|| {
                    let (mut bytes, mut again) = (vec![0; row_bytes], vec![0.0; columns]);
                    codec.quantize_row(weights, Some(&importance), &mut bytes);
                    codec.dequantize_row(&bytes, &mut again);
                    std::hint::black_box(again);
                });
                rates.insert(codec.ggml_type, of_type);
            }
        }
        Ok(Machine { flops_per_second, rates })
    }

    /// Seconds that quantizing takes where every type of every tensor is tried.
    fn trials(&self, count: &Count<'_>, expected: &Scores) -> f64 {
        debug_assert_eq!(count.trials.len(), expected.tensors.len());
        let of_trial = |t: &Trial<'_>| {
            let weights = t.tensor.info.shape.elements() as f64 * t.rows;
            t.types.iter().map(|of| self.seconds(*of, weights)).sum::<f64>()
        };
        count.trials.iter().map(of_trial).sum()
    }

    /// Seconds that a tensor takes in this type.
    fn tensor(&self, input: &Input<'_>, name: &str, t: GgmlType) -> f64 {
        let tensor = input.tensors.iter().find(|tensor| tensor.info.name == name);
        let changed = tensor.filter(|tensor| tensor.info.ggml_type != t);
        changed.map_or(0.0, |tensor| self.seconds(t, tensor.info.shape.elements() as f64))
    }

    fn seconds(&self, t: GgmlType, weights: f64) -> f64 {
        self.rates.get(&t).map_or(0.0, |rate| weights / rate.max(1.0))
    }
}
