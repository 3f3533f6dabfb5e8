//! From the checkpoint's tensors to the output's, by the recipes of the architecture, with all
//! errors.

use super::computed::{self, Computed};
use super::groups::{Groups, Member};
use super::numbers;
use super::ops::{self, Sizes};
use super::plan::PlannedTensor;
use super::repack::{self, Early, Order, Repacked};
use super::view::View;
use super::weights::{Cast, Numeric, Operand, Part, Weight, Weights};
use super::{Checkpoint, Source};
use crate::arch::draft::target_tokens;
use crate::arch::recipes::{Input, Match, Op, Output, Place, Recipe};
use crate::arch::{Architecture, Config, Keys, Nextn};
use crate::format::gguf::{Array, MAX_NAME, Value, ValueType};
use crate::format::safetensors::Dtype;
use crate::format::types::GgmlType;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Problem;
use std::collections::{BTreeMap, HashSet};

/// Buffers computed from the config by every model, but saved in some checkpoints.
const BUFFERS: &[&str] = &[
    ".attention.masked_bias",
    ".attention.bias",
    ".rotary_emb.inv_freq",
];
/// Suffixes of matrices in f32, required by llama.cpp.
const ALWAYS_F32: &[&str] = &[
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
    "ssm_conv1d.weight",
    "ssm_conv1d_q.weight",
    "ssm_conv1d_k.weight",
    "ssm_conv1d_v.weight",
    "shortconv.conv.weight",
    "indexer.proj.weight",
    "time_mix_first.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
];

/// Suffix of norms.
const NORM: &str = "_norm.weight";

/// Any other matrix.
pub(super) const ANY: &str = ".weight";

/// Suffixes of matrices in f16 in ternary files, as in the reference.
const NEVER_TERNARY: &[&str] = &[
    "token_embd.weight",
    "altup_router.weight",
    "laurel_l.weight",
    "laurel_r.weight",
];

/// Advice for missing required tensors.
const ABSENT: &str = "these tensors are missing, and the model cannot be run without them; download the files again, \
                      or convert a checkpoint that is whole";
/// The name of multi-token prediction blocks for the user.
pub(super) const NEXTN: &str = "multi-token prediction";

/// The most numbers of a tensor that becomes a key or a vector.
const SMALL: u64 = 1 << 16;
/// The most numbers of a matrix that is computed at once.
const LARGE: u64 = 1 << 28;

/// Reason why tensors cannot be planned: the config, or any number of tensors.
pub(super) enum Fault {
    Config(String),
    Tensors(Vec<Problem>),
}

/// The tensors of the output.
pub(super) struct Outputs {
    /// In file order.
    pub(super) tensors: Vec<PlannedTensor>,
    /// The number of dropped tensors, by part of the model.
    pub(super) left_out: BTreeMap<&'static str, u64>,
    /// Tensors whose activations must not be rounded to 4 bits.
    pub(super) weights_only: Vec<String>,
    /// The number of tensors whose 4-bit floats llama.cpp would not load.
    pub(super) widened: u64,
}

/// A conversion: input and options.
#[derive(Clone, Copy)]
pub(super) struct Conversion<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// The checkpoint's config, with the number of converted multi-token prediction blocks.
    pub(super) config: &'a Config,
    pub(super) architecture: &'static Architecture,
    pub(super) file_type: FileType,
    pub(super) nextn: Nextn,
    /// True if FP8 matrices become Q8_0.
    pub(super) fp8_as_q8: bool,
    /// True if 4-bit floats are dequantized.
    pub(super) widen: bool,
}

/// All tensors of the output in order: computed ones, then the checkpoint's in their order. Sets
/// the keys of computed tensors.
///
/// # Errors
/// All errors of tensors at once, or the error of the config.
pub(super) fn plan(conversion: Conversion<'_>, keys: &mut Keys) -> Result<Outputs, Fault> {
    let Conversion {
        checkpoint,
        config,
        architecture,
        ..
    } = conversion;
    let mut planner = Planner {
        conversion,
        problems: Vec::new(),
        early: Early::default(),
        last: Vec::new(),
        outputs: Outputs {
            tensors: Vec::new(),
            left_out: checkpoint.left_out.clone(),
            weights_only: Vec::new(),
            widened: 0,
        },
        seen_layers: HashSet::new(),
        touched: HashSet::new(),
        groups: Groups::default(),
        values: BTreeMap::new(),
    };
    for generated in (architecture.generated)(config, keys).map_err(Fault::Config)? {
        let weights = || Weights::Computed(generated.weights);
        planner.push(generated.name.into(), &generated.dims, None, weights);
    }
    let layers = config.layers().map_err(Fault::Config)?;
    if !checkpoint.problems.is_empty() {
        return Err(Fault::Tensors(checkpoint.problems.clone()));
    }
    for index in 0..checkpoint.tensors.len() {
        planner.source(index).map_err(Fault::Config)?;
        planner.set_keys(layers, keys);
    }
    let early = std::mem::take(&mut planner.early).finish();
    planner.outputs.tensors.splice(0..0, early);
    planner.outputs.tensors.append(&mut planner.last);
    planner.check_complete(layers).map_err(Fault::Config)?;
    planner.check_names();
    planner.problems.sort();
    match planner.problems.is_empty() {
        true => Ok(planner.outputs),
        false => Err(Fault::Tensors(planner.problems)),
    }
}

struct Planner<'a> {
    conversion: Conversion<'a>,
    problems: Vec<Problem>,
    outputs: Outputs,
    /// Outputs before all others.
    early: Early,
    /// Outputs after all others.
    last: Vec<PlannedTensor>,
    /// Layers with tensors so far.
    seen_layers: HashSet<u32>,
    /// Names of outputs with at least one tensor of the checkpoint.
    touched: HashSet<String>,
    /// Recipes with missing inputs so far.
    groups: Groups,
    /// Values of keys, by layer for keys of layers.
    values: BTreeMap<String, BTreeMap<Option<u32>, f32>>,
}

impl<'a> Planner<'a> {
    fn config(&self) -> &'a Config {
        self.conversion.config
    }

    fn problem(&mut self, source: &Source, what: impl Into<String>) {
        self.problems.push(Problem::of(&source.name, what));
    }

    /// Plans a tensor of the checkpoint. Errors are those of the config.
    fn source(&mut self, index: usize) -> Result<(), String> {
        let Conversion {
            architecture,
            config,
            nextn,
            ..
        } = self.conversion;
        let source = &self.conversion.checkpoint.tensors[index];
        let name = source.text_name();
        let is_buffer = BUFFERS.iter().any(|end| name.ends_with(end));
        if is_buffer {
            return Ok(());
        }
        let (names, layers) = (architecture.nextn(), config.layers()?);
        if names.is_some_and(|names| !names.keeps(name, nextn, layers)) {
            return Ok(());
        }
        let found = match recipes(architecture, config, name)? {
            Some(found) => found,
            None => {
                *self.outputs.left_out.entry(NEXTN).or_default() += 1;
                return Ok(());
            }
        };
        if found.is_empty() {
            let name = architecture.name;
            self.problem(source, format!("architecture {name} has no such tensors"));
        }
        for (recipe, matched) in found {
            self.matched(index, recipe, matched)?;
        }
        Ok(())
    }

    /// Plans the outputs of a checkpoint tensor's recipe.
    fn matched(
        &mut self,
        index: usize,
        recipe: &'static Recipe,
        matched: Match,
    ) -> Result<(), String> {
        let architecture = self.conversion.architecture;
        let source = &self.conversion.checkpoint.tensors[index];
        if self.is_repeated(recipe, index) {
            return Ok(());
        }
        if let Some(part) = recipe.left_out {
            *self.outputs.left_out.entry(part).or_default() += 1;
        }
        if let Some(key) = &recipe.key {
            match self
                .numbers(source, SMALL)
                .and_then(|numbers| (key.value)(self.config(), &numbers))
            {
                Ok(value) => {
                    let values = self.values.entry(key.name(architecture.name));
                    values.or_default().insert(matched.layer, value);
                }
                Err(what) => self.problem(source, what),
            }
        }
        if recipe.outputs().is_empty() {
            return Ok(());
        }
        self.seen_layers.extend(matched.layer);
        let names = recipe.outputs().iter().map(|output| output.name(&matched));
        self.touched.extend(names);
        let blocks = self.config().blocks_of(recipe.outputs()[0].name)?;
        if matched.layer.is_some_and(|layer| layer >= blocks) {
            self.problem(source, format!("config.json has only {blocks} layers"));
            return Ok(());
        }
        let input = &recipe.inputs()[matched.input];
        if let Err(what) = check_dims(input, source.text_name(), &source.shape, self.config()) {
            self.problem(source, what);
            return Ok(());
        }
        let is_table = |output: &Output| {
            let mut ops = output.ops.iter();
            ops.any(|op| matches!(op, Op::Cast(GgmlType::I32)))
        };
        let is_table = recipe.outputs().iter().any(is_table);
        if let Some(what) = unscaled(source).filter(|_| !is_table) {
            self.problem(source, what);
            return Ok(());
        }
        self.member(recipe, matched, index)
    }

    /// True if a tensor repeats an earlier one under a name in its recipe.
    fn is_repeated(&self, recipe: &Recipe, index: usize) -> bool {
        let checkpoint = self.conversion.checkpoint;
        let (before, rest) = checkpoint.tensors.split_at(index);
        let mut others = before
            .iter()
            .filter(|other| recipe.unless_equal.contains(&other.text_name()));
        others.any(|other| {
            let tensor = &rest[0];
            other.form.is_none()
                && tensor.form.is_none()
                && other.dtype == tensor.dtype
                && other.shape == tensor.shape
                && checkpoint.data(other) == checkpoint.data(tensor)
        })
    }

    /// The numbers of a tensor with at most this many.
    fn numbers(&self, source: &Source, most: u64) -> Result<Vec<f32>, String> {
        let count: u64 = source.shape.iter().product();
        if count > most {
            return Err(format!(
                "it has {count} numbers; at most {most} are expected"
            ));
        }
        let mut numbers = vec![0.0; count as usize];
        let checkpoint = self.conversion.checkpoint;
        checkpoint
            .numbers(source, 0..count, &mut numbers)
            .map_err(|e| e.to_string())?;
        Ok(numbers)
    }

    /// Sets the keys with complete values.
    fn set_keys(&mut self, layers: u32, keys: &mut Keys) {
        self.values.retain(|key, values| {
            if let Some(value) = values.get(&None) {
                keys.set_exact(key.clone(), Value::F32(*value));
                return false;
            }
            let is_complete = values.len() == layers as usize;
            if is_complete {
                let values = values.values().map(|value| Value::F32(*value));
                let list = Array::of_values(ValueType::F32, values);
                keys.set_exact(key.clone(), Value::Array(list));
            }
            !is_complete
        });
    }

    /// Adds a tensor to its recipe; once complete, plans the outputs.
    fn member(
        &mut self,
        recipe: &'static Recipe,
        matched: Match,
        source: usize,
    ) -> Result<(), String> {
        let stack = recipe.stack(self.config(), matched.layer)?;
        if recipe.is_stack() && matched.index.is_some_and(|index| u64::from(index) >= stack) {
            let source = &self.conversion.checkpoint.tensors[source];
            self.problem(source, format!("config.json has only {stack} experts"));
            return Ok(());
        }
        if let Some(members) = self.groups.add(recipe, Member { matched, source }, stack) {
            for output in recipe.outputs() {
                if let Err(problem) = self.output(recipe, output, &members) {
                    self.problems.push(problem);
                }
            }
        }
        Ok(())
    }

    /// Plans an output of a recipe with complete and ordered inputs.
    fn output(
        &mut self,
        recipe: &Recipe,
        output: &Output,
        members: &[Member],
    ) -> Result<(), Problem> {
        let source = |member: &Member| &self.conversion.checkpoint.tensors[member.source];
        let sizes = Sizes {
            config: self.config(),
            dir: &self.conversion.checkpoint.dir,
            layer: members[0].matched.layer,
        };
        let failed = |what| Problem::of(&source(&members[0]).name, what);
        if let Some(computed) = self.computed(output, members, sizes).map_err(failed)? {
            let (name, weights) = (output.name(&members[0].matched), computed.weights);
            self.push(name, &computed.dims, computed.cast, || {
                Weights::Computed(weights)
            });
            if recipe.place == Place::Last {
                self.last.extend(self.outputs.tensors.pop());
            }
            return Ok(());
        }
        let are_alike = |op: &Op| !matches!(op, Op::Append(_) | Op::Pad(_));
        let are_alike = output.ops.iter().all(are_alike);
        let mut inputs = Vec::new();
        for &input in output.inputs {
            let stack = members
                .iter()
                .filter(|member| member.matched.input == input);
            let mut operands = Vec::new();
            let mut first: Option<&Source> = None;
            for member in stack {
                let tensor = source(member);
                let first = first.get_or_insert(tensor);
                if are_alike && tensor.shape != first.shape {
                    let (name, shape) = (&first.name, &first.shape);
                    let what = format!("it has another shape than {name}, {shape:?}");
                    return Err(Problem::of(&tensor.name, what));
                }
                if let Some(axis) = tensor.shape.iter().position(|&size| size == 0) {
                    let what = format!("dimension {axis} of its shape {:?} is 0", tensor.shape);
                    return Err(Problem::of(&tensor.name, what));
                }
                operands.push(Operand::viewed(member.source, tensor.view()));
            }
            inputs.push(operands);
        }
        let operand = ops::make(output.ops, inputs, sizes).map_err(failed)?;
        let (dims, cast) = (operand.shape(), operand.cast);
        let name = output.name(&members[0].matched);
        let cast = match cast {
            Some(Cast::Stored) => kept_type(source(&members[0])).map(Cast::To),
            cast => cast,
        };
        let layer = members[0].matched.layer;
        let stored = operand.finish();
        if recipe.is_finite {
            let elements = 0..dims.iter().product();
            for (part, _) in stored.pieces(elements) {
                self.check_finite(part).map_err(failed)?;
            }
        }
        let first = members
            .iter()
            .map(|member| member.source)
            .min()
            .unwrap_or(0);
        let checkpoint = self.conversion.checkpoint;
        let repacked = (!self.conversion.widen).then(|| repack::of(checkpoint, &stored, &dims));
        let is_nextn = match members[0].matched.layer {
            Some(layer) => layer >= self.config().layers().map_err(failed)?,
            None => false,
        };
        let repacked = repacked.flatten().filter(|repacked| {
            let is_loaded = repacked.is_loaded(&name, is_nextn);
            self.outputs.widened += u64::from(!is_loaded);
            is_loaded
        });
        if let (Some(repacked), None) = (repacked, cast) {
            let stack = recipe.is_stack().then(|| self.config());
            let names = members.iter().map(|member| source(member).text_name());
            if checkpoint.fp4.keeps_activations(&common(names)) {
                self.outputs.weights_only.push(name.clone());
            }
            let start = self.outputs.tensors.len();
            let Repacked { ggml_type, scales } = repacked;
            let kept = Some(Cast::To(ggml_type));
            self.push(name.clone(), &dims, kept, || Weights::Stored(stored));
            for (ending, scales) in scales {
                let (name, dims) = (repack::beside(&name, ending), [scales.len() as u64]);
                self.push(name, &dims, None, || Weights::Computed(scales));
            }
            let tensors = self.outputs.tensors.split_off(start);
            let input = output
                .inputs
                .first()
                .map_or("", |input| recipe.inputs()[*input].name);
            let order = Order::of(ggml_type, stack, layer, first, input);
            self.early.add(order, tensors);
            return Ok(());
        }
        // The reference uses the tensor that completes an output.
        let last = members.iter().map(|member| member.source).max();
        let form = last.and_then(|last| checkpoint.tensors[last].form.as_ref());
        let is_fp8 = form.is_some_and(|form| form.is_fp8()) && dims.len() > 1;
        let cast = match self.conversion.fp8_as_q8 && is_fp8 && !name.ends_with(NORM) {
            true => cast.or(Some(Cast::To(GgmlType::Q8_0))),
            false => cast,
        };
        self.push(name, &dims, cast, || Weights::Stored(stored));
        let order = match recipe.place {
            Place::InOrder => return Ok(()),
            Place::Last => {
                self.last.extend(self.outputs.tensors.pop());
                return Ok(());
            }
            Place::BeforeExperts => Order::Before(layer),
            Place::BehindExperts => Order::Behind(layer),
        };
        let tensors = self.outputs.tensors.pop();
        self.early.add(order, Vec::from_iter(tensors));
        Ok(())
    }

    /// The weights of an output that is computed at once; `None` for all others.
    fn computed(
        &self,
        output: &Output,
        members: &[Member],
        sizes: Sizes<'_>,
    ) -> Result<Option<Computed>, String> {
        if let Some(weights) = ops::filled(output.ops, sizes)? {
            return Ok(Some(Computed::vector(weights)));
        }
        let sources = output.inputs.iter().flat_map(|input| {
            let mut members = members.iter();
            let member = members.find(|member| member.matched.input == *input);
            member.map(|member| &self.conversion.checkpoint.tensors[member.source])
        });
        let sources: Vec<_> = sources.collect();
        let small = |source: &&Source| self.numbers(source, SMALL);
        let numbers = || sources.iter().map(small).collect::<Result<Vec<_>, _>>();
        Ok(Some(match output.ops {
            [Op::Multiply] => Computed::vector(computed::product(&sources, &numbers()?)?),
            [Op::BatchNorm(part)] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                Computed::vector(computed::batch_norm(*part, &numbers()?, source.dtype)?)
            }
            [Op::TargetTokens] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                let numbers = self.numbers(source, LARGE)?;
                let tokens = target_tokens(self.config(), &numbers)?;
                Computed {
                    cast: Some(Cast::To(GgmlType::I64)),
                    ..Computed::vector(tokens)
                }
            }
            [Op::AddHalves, rest @ ..] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                let numbers = self.numbers(source, LARGE)?;
                let (weights, shape) = computed::halves_added(source, &numbers)?;
                let operand = Operand::viewed(members[0].source, View::whole(&shape));
                let operand = ops::make(rest, vec![vec![operand]], sizes)?;
                Computed {
                    weights,
                    dims: operand.shape(),
                    cast: operand.cast,
                }
            }
            [Op::SnakeFrequency] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                let frequencies = computed::snake_frequencies(source, numbers()?.concat());
                Computed::vector(frequencies)
            }
            [Op::SnakeFactor] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                Computed::vector(computed::snake_factors(source, numbers()?.concat()))
            }
            [Op::Averages, rest @ ..] => {
                let all = |input: usize| {
                    let members = members.iter();
                    let members = members.filter(move |member| member.matched.input == input);
                    members.map(|member| &self.conversion.checkpoint.tensors[member.source])
                };
                let mut books = Vec::new();
                for (sums, counts) in all(0).zip(all(1)) {
                    let numbers = [self.numbers(sums, LARGE)?, self.numbers(counts, SMALL)?];
                    books.push(computed::averages([sums, counts], numbers)?);
                }
                computed::stacked(books, !rest.is_empty())?
            }
            [Op::Resample(side)] => {
                let source = sources.first().ok_or("its recipe has no input")?;
                let numbers = self.numbers(source, LARGE)?;
                computed::resampled(source, numbers, sizes.get(*side)?)?
            }
            _ => return Ok(None),
        }))
    }

    /// Rejects a part of a small tensor with a number that is not finite before or after the
    /// operations.
    fn check_finite(&self, part: &Part) -> Result<(), String> {
        let source = &self.conversion.checkpoint.tensors[part.source];
        for (place, number) in self.numbers(source, SMALL)?.into_iter().enumerate() {
            let mut made = [number];
            let mut dtype = source.dtype;
            for numeric in &part.numeric {
                match numeric {
                    Numeric::Widen => dtype = Dtype::F32,
                    numeric => numbers::apply(*numeric, dtype, &mut made),
                }
            }
            if !made[0].is_finite() {
                return Err(format!(
                    "number {place} is {number} and would be {} in the GGUF, which is not finite: the model would \
                     make nothing but NaN. The checkpoint is damaged; download it again",
                    made[0]
                ));
            }
        }
        Ok(())
    }

    /// Adds a tensor with dimensions from the outermost.
    fn push(
        &mut self,
        name: String,
        dims: &[u64],
        cast: Option<Cast>,
        weights: impl FnOnce() -> Weights,
    ) {
        let wanted = match cast {
            Some(Cast::To(ggml_type)) => ggml_type,
            Some(Cast::ByFile) => wanted_type(ANY, dims.len(), self.conversion.file_type),
            Some(Cast::Plain) if self.conversion.file_type == FileType::F16 => GgmlType::F16,
            Some(Cast::Plain) => GgmlType::F32,
            Some(Cast::Stored) | None => wanted_type(&name, dims.len(), self.conversion.file_type),
        };
        match PlannedTensor::new(name, dims, wanted, weights) {
            Ok(tensor) => self.outputs.tensors.push(tensor),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Checks for recipes with missing inputs, missing required tensors, and layers without
    /// tensors.
    fn check_complete(&mut self, layers: u32) -> Result<(), String> {
        for (key, values) in std::mem::take(&mut self.values) {
            let missing = (0..layers).find(|layer| !values.contains_key(&Some(*layer)));
            let what = format!(
                "key '{key}' needs a tensor of every layer; that of layer {} is missing",
                missing.unwrap_or(0)
            );
            self.problems.push(Problem::of("", what));
        }
        let absent = self.groups.absent(self.config(), ABSENT);
        self.problems.extend(absent);
        let blocks = self.config().blocks()?;
        self.check_needed();
        let missing = |layer: &u32| !self.seen_layers.contains(layer);
        let all = layers.max(self.config().audio_layers()?);
        let mut promised = layers..blocks;
        let mut needed = match self.conversion.nextn {
            Nextn::Alone => 0..0,
            // Layers may be empty.
            _ if self.conversion.architecture.decoder.linear_layers => 0..0,
            _ => 0..all,
        };
        let (promised, needed) = (promised.find(missing), needed.find(missing));
        let names = self.conversion.architecture.nextn();
        if let Some((names, _)) = names.zip(promised) {
            // The reference writes a file that neither llama-quantize nor a run can load.
            let field = names.field;
            let what = format!(
                "config.json promises blocks for multi-token prediction ('{field}'), and the files lack them; \
                 `quantier convert --no-nextn` writes the model without"
            );
            self.problems.push(Problem::of("", what));
        }
        if let Some(first) = needed {
            let what = format!(
                "config.json has {all} layers, and there is no tensor of layer {first}; files are missing"
            );
            self.problems.push(Problem::of("", what));
        }
        Ok(())
    }

    /// Checks for required tensors without a source in the checkpoint.
    fn check_needed(&mut self) {
        // A draft model has other tensors.
        if self.conversion.nextn == Nextn::Alone {
            return;
        }
        let mut seen: Vec<u32> = self.seen_layers.iter().copied().collect();
        seen.sort_unstable();
        let there = |name: &str| self.touched.contains(name);
        let (architecture, config) = (self.conversion.architecture, self.config());
        let missing = architecture.missing(&seen, Some(config), &there);
        let missing = missing.iter();
        let missing = missing.map(|tensor| Problem::of(&tensor.source, ABSENT));
        self.problems.extend(missing);
    }

    /// Checks for names that are duplicate or too long for ggml.
    fn check_names(&mut self) {
        let mut seen = HashSet::new();
        for tensor in &self.outputs.tensors {
            if !seen.insert(&tensor.name) {
                let what = "several tensors of the checkpoint become this";
                self.problems.push(Problem::of(&tensor.name, what));
            }
            if tensor.name.len() >= MAX_NAME {
                let what = format!("names have less than {MAX_NAME} bytes");
                self.problems.push(Problem::of(&tensor.name, what));
            }
        }
    }
}

/// The common prefix of tensor names, in whole modules; the name itself of a single one.
fn common<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut common: Option<&str> = None;
    for name in names {
        let mut prefix = common.unwrap_or(name);
        while prefix != name && !name.starts_with(&format!("{prefix}.")) {
            prefix = prefix.rsplit_once('.').map_or("", |(outer, _)| outer);
            if prefix.is_empty() {
                break;
            }
        }
        common = Some(prefix);
    }
    common.unwrap_or_default().to_owned()
}

/// The recipes of a tensor and the matches of its name: several for a tensor that blocks for
/// multi-token prediction share, none for an unknown one; `None` for a tensor of blocks that are left
/// out.
pub(super) fn recipes(
    architecture: &Architecture,
    config: &Config,
    name: &str,
) -> Result<Option<Vec<(&'static Recipe, Match)>>, String> {
    match (architecture.recipe(name, config), architecture.nextn()) {
        (None, Some(names)) if names.has(name, config.layers()?) => {
            if config.nextn() == 0 {
                return Ok(None);
            }
            let within = names.within_layers(name, config)?;
            let recipes = within.iter();
            let recipes = recipes.filter_map(|name| architecture.recipe(name, config));
            Ok(Some(recipes.collect()))
        }
        (found, _) => Ok(Some(Vec::from_iter(found))),
    }
}

/// The error of a matrix of integers or 8-bit numbers without scales.
pub(super) fn unscaled(source: &Source) -> Option<String> {
    if source.shape.len() < 2 {
        return None;
    }
    let dtype = source.dtype;
    match dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
        Dtype::I8 | Dtype::U8 | Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::F8E8m0 => Some(format!(
            "these matrices are stored in 8 bits ({dtype}), and their scales, or a quantization_config in config.json \
             that says where they are, are missing; convert the original model, in bf16 or f16"
        )),
        Dtype::I64
        | Dtype::I32
        | Dtype::I16
        | Dtype::U64
        | Dtype::U32
        | Dtype::U16
        | Dtype::Bool => Some(format!(
            "these matrices hold no weights but whole numbers ({dtype}); convert the original model, in bf16 or f16"
        )),
    }
}

/// Compares a tensor's dimensions with those given by the config.
pub(super) fn check_dims(
    input: &Input,
    name: &str,
    shape: &[u64],
    config: &Config,
) -> Result<(), String> {
    // A bias has one number per row of its matrix.
    let dims = match name.ends_with(".bias") {
        true => &input.dims[..input.dims.len().min(1)],
        false => input.dims,
    };
    if !dims.is_empty() && shape.len() != dims.len() {
        let count = dims.len();
        return Err(format!(
            "it has shape {shape:?}, and {count} dimensions are expected"
        ));
    }
    for (i, (dim, size)) in dims.iter().zip(shape).enumerate() {
        // Fields of the wrong kind are reported by the metadata.
        let expected = dim.of(config).ok().flatten();
        if let Some(expected) = expected.filter(|expected| expected != size) {
            return Err(format!(
                "dimension {i} of shape {shape:?} must be {expected} by config.json"
            ));
        }
    }
    Ok(())
}

/// The type of a matrix that keeps the checkpoint's; None if name and file type decide.
fn kept_type(source: &Source) -> Option<GgmlType> {
    let quantized = source.form.as_ref().filter(|form| form.is_quantized());
    match (quantized, source.dtype) {
        (Some(form), _) => form.is_fp8().then_some(GgmlType::Q8_0),
        (None, Dtype::Bf16) => Some(GgmlType::BF16),
        (None, Dtype::F32) => Some(GgmlType::F32),
        (None, _) => None,
    }
}

/// The type of a tensor, if its rows permit.
pub(super) fn wanted_type(name: &str, rank: usize, file_type: FileType) -> GgmlType {
    let in_f32 = rank <= 1
        || !name.ends_with(".weight")
        || name.ends_with(NORM)
        || ALWAYS_F32.iter().any(|end| name.ends_with(end));
    match file_type {
        _ if in_f32 => GgmlType::F32,
        FileType::F32 => GgmlType::F32,
        FileType::BF16 => GgmlType::BF16,
        FileType::Q8_0 => GgmlType::Q8_0,
        FileType::TQ1_0 | FileType::TQ2_0 if !is_never_ternary(name) => file_type.default_type(),
        _ => GgmlType::F16,
    }
}

fn is_never_ternary(name: &str) -> bool {
    name == "output.weight" || NEVER_TERNARY.iter().any(|end| name.ends_with(end))
}
