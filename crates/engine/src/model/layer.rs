//! Widened layers: blocks of mixers on the residual stream.

use super::linear::{Linear, Norm, NormTensors, Pass};
use super::mixer::{
    Adjugates, AnyMixer, Apart, Attention, ChannelMix, Decay, DeltaNet, ExpandedAttention,
    Factored, Factors, Ffn, First, Gate, Indexer, KeysValues, Latent, LatentAttention, Laurel,
    Lightning, LowRank, Mamba, Mamba2, Moe, PerLayer, Projections, QueryKeyValue, Rank, Rates,
    Receptance, Shared, ShortConv, Single, Sparse, Stage, Tape, Wkv6, Wkv7,
};
use super::ops::attention::{Scores, alibi_slopes};
use super::ops::elementwise::{add, add_scaled, scale};
use super::ops::rope::Angles;
use super::ops::router::Router;
use super::rows::Rows;
use super::streams::{Closed, Closing, Opening};
use super::weights::Weights;
use super::{Error, Replaced, Result};
use quantier_arch::hyper::{Cache, Columns};
use quantier_arch::spec::{
    self, AttentionSpec, BlockSpec, BranchSpec, Carry, ChannelMixSpec, DeltaSpec, ExpandedSpec,
    FactorsSpec, FfnSpec, IndexerSpec, LatentSpec, LaurelSpec, LayerSpec, LightningSpec,
    LinearSpec, Mamba2Spec, MambaSpec, MixerSpec, MoeSpec, PerLayerSpec, RankSpec, Residual,
    ShortConvSpec, Source, SparseSpec, Wkv6Spec, Wkv7Spec,
};
use quantier_arch::{Activation, Norm as NormKind};
use std::borrow::Cow;
use std::sync::Arc;

/// Activations of one chunk between layers.
#[derive(Clone, Debug, Default)]
pub(super) struct Bundle {
    /// The residual streams side by side: `[positions, streams * hidden]`; within a section of a
    /// layer, the one that its blocks work on: `[positions, hidden]`.
    pub stream: Rows,
    /// Within a section, all streams: `[positions, streams * hidden]`. None outside.
    pub beside: Option<Rows>,
    /// What later layers read of earlier ones, and of the tokens: `[positions, columns]`; None in
    /// most models.
    pub carried: Option<Rows>,
    /// The stream before the layer, if a later block of the layer reads it: `[positions, hidden]`.
    /// None between layers and in the first block, where it is the stream.
    pub entry: Option<Rows>,
}

impl Bundle {
    /// A bundle with streams only.
    pub(super) fn of(stream: Rows) -> Bundle {
        Bundle {
            stream,
            ..Bundle::default()
        }
    }

    /// Splits rows into the streams, `width` columns, and the carried columns after them.
    pub(super) fn new(rows: Rows, width: usize) -> Bundle {
        if rows.columns() == width {
            return Bundle::of(rows);
        }
        Bundle {
            carried: Some(rows.columns_range(width..rows.columns())),
            ..Bundle::of(rows.columns_range(0..width))
        }
    }

    /// Puts all streams in the place of a section's stream, which it returns; None outside of
    /// sections.
    pub(super) fn leave_section(&mut self) -> Option<Rows> {
        let streams = self.beside.take()?;
        Some(std::mem::replace(&mut self.stream, streams))
    }

    /// Opposite of [`Bundle::leave_section`].
    pub(super) fn enter_section(&mut self, stream: Rows) {
        self.beside = Some(std::mem::replace(&mut self.stream, stream));
    }

    /// Streams and carried columns side by side, outside of sections.
    pub(super) fn into_rows(self) -> Rows {
        match &self.carried {
            Some(carried) => Rows::beside(&[&self.stream, carried]),
            None => self.stream,
        }
    }

    /// Splits the output of a mixer that writes carried columns: they come first.
    fn take_carried(&mut self, y: Rows, columns: Columns) -> Rows {
        let made = y.columns_range(0..columns.count);
        self.carried_up_to(columns)
            .set_columns(columns.first, &made);
        y.columns_range(columns.count..y.columns())
    }

    /// The carried columns; zeros, at least as many as these, if there are none.
    fn carried_up_to(&mut self, columns: Columns) -> &mut Rows {
        let rows = self.stream.len();
        self.carried
            .get_or_insert_with(|| Rows::zeros(rows, columns.end()))
    }
}

/// A widened layer.
#[derive(Clone)]
pub(super) struct Layer {
    blocks: Vec<Block>,
    /// Norm of the stream after the blocks.
    norm: Option<Norm>,
    /// Factor of the stream after the blocks.
    scale: f32,
}

#[derive(Clone)]
struct Block {
    branches: Vec<Branch>,
    post_norm: Option<Norm>,
    residual_scale: f32,
    residual: Residual,
    /// Norms of the stream after the block.
    stream_norms: Vec<Norm>,
    opening: Option<Opening>,
    closing: Option<Closing>,
}

#[derive(Clone)]
struct Branch {
    norm: Option<Norm>,
    source: Source,
    /// Norm of the router's input, which precedes that of the experts.
    router_norm: Option<Norm>,
    mixer: AnyMixer,
    post_norm: Option<Norm>,
    carry: Carry,
}

/// The position of a stage in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub block: usize,
    pub branch: usize,
    pub stage: usize,
}

/// The state of a chunk before a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Between {
    /// The bundle before the stage's block.
    pub bundle: Bundle,
    /// Sum of the outputs of the block's earlier branches; None before the first.
    pub mixed: Option<Rows>,
    /// The stage's input; None for the first stage of a mixer, whose input follows from the stream.
    pub input: Option<Rows>,
}

/// Values that the derivative of a layer needs.
pub(super) struct LayerTape<'l> {
    blocks: Vec<BlockTape<'l>>,
    /// The stream before the norm after the blocks, if there is one.
    unnormalized: Option<Rows>,
}

struct BlockTape<'l> {
    block: &'l Block,
    /// The streams before the block's opening, if it has one.
    streams: Option<Rows>,
    /// The stream before the block.
    stream: Rows,
    /// Stream and streams before the block's closing, if it has one.
    closed: Option<Closed>,
    branches: Vec<BranchTape<'l>>,
    /// Sum of the branches' outputs, if a norm follows.
    mixed: Option<Rows>,
    /// The stream before each of the norms after the block.
    unnormalized: Vec<Rows>,
}

#[derive(Default)]
struct BranchTape<'l> {
    /// The mixer's input; None if it is the stream.
    normalized: Option<Rows>,
    mixer: Tape<'l>,
    /// The mixer's output, if a norm follows.
    unnormalized: Option<Rows>,
}

impl Layer {
    /// Widens a layer. `angles` are those of the model's rotations.
    pub(super) fn load(
        weights: &Weights<'_>,
        spec: &LayerSpec,
        angles: &[Arc<Angles>],
    ) -> Result<Layer> {
        let blocks = spec.blocks.iter();
        let blocks = blocks.map(|block| Block::load(weights, block, angles));
        Ok(Layer {
            blocks: blocks.collect::<Result<_>>()?,
            norm: norm(weights, &spec.norm)?,
            scale: spec.scale * scalar(weights, spec)?,
        })
    }

    /// From the bundle before the layer to the bundle after it.
    pub(super) fn forward(&self, mut bundle: Bundle, pass: &Pass<'_>) -> Result<Bundle> {
        for (number, block) in self.blocks.iter().enumerate() {
            block.open(&mut bundle, pass)?;
            let y = block.mix(&mut bundle, pass, None)?;
            self.enter(number, &mut bundle);
            block.add_to(&mut bundle.stream, y, None);
            block.close(&mut bundle, pass)?;
        }
        self.leave(&mut bundle);
        Ok(bundle)
    }

    /// True if a section is open before this block, or before its opening.
    pub(super) fn is_within_section(&self, block: usize) -> bool {
        let before = self.blocks.iter().take(block);
        before.fold(false, |is_open, block| {
            block.closing.is_none() && (is_open || block.opening.is_some())
        })
    }

    /// True if a block behind the first reads the stream before the layer.
    pub(super) fn keeps_entry(&self) -> bool {
        let mut behind = self.blocks.iter().skip(1);
        behind.any(|block| {
            let mut branches = block.branches.iter();
            branches.any(|branch| branch.source != Source::Block)
        })
    }

    /// Keeps the stream before the first block changes it, if a later block reads it.
    fn enter(&self, block: usize, bundle: &mut Bundle) {
        if block == 0 && self.keeps_entry() {
            bundle.entry = Some(bundle.stream.clone());
        }
    }

    fn leave(&self, bundle: &mut Bundle) {
        bundle.entry = None;
        self.normalize(&mut bundle.stream);
    }

    fn normalize(&self, stream: &mut Rows) {
        if let Some(norm) = &self.norm {
            norm.apply(stream.numbers_mut());
        }
        scale(stream.numbers_mut(), self.scale);
    }

    /// [`Layer::forward`], and the tape for [`Layer::backward`].
    pub(super) fn record<'l>(
        &'l self,
        mut bundle: Bundle,
        pass: &Pass<'_>,
    ) -> Result<(Bundle, LayerTape<'l>)> {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (number, block) in self.blocks.iter().enumerate() {
            let mut branches = Vec::new();
            let streams = block.opening.is_some().then(|| bundle.stream.clone());
            block.open(&mut bundle, pass)?;
            let stream = bundle.stream.clone();
            let y = block.mix(&mut bundle, pass, Some(&mut branches))?;
            let mixed = block.post_norm.is_some().then(|| y.clone());
            self.enter(number, &mut bundle);
            let mut unnormalized = Vec::new();
            block.add_to(&mut bundle.stream, y, Some(&mut unnormalized));
            blocks.push(BlockTape {
                block,
                streams,
                stream,
                closed: block
                    .closing
                    .is_some()
                    .then(|| Closed::of(&bundle))
                    .flatten(),
                branches,
                mixed,
                unnormalized,
            });
            block.close(&mut bundle, pass)?;
        }
        let unnormalized = self.norm.is_some().then(|| bundle.stream.clone());
        self.leave(&mut bundle);
        let tape = LayerTape {
            blocks,
            unnormalized,
        };
        Ok((bundle, tape))
    }

    /// Derivative: from the gradient of the bundle after the layer to that of the bundle before it.
    /// The tap sees the output gradient of every linear.
    pub(super) fn backward(
        &self,
        tape: &LayerTape<'_>,
        mut gradient: Bundle,
        pass: &Pass<'_>,
    ) -> Result<Bundle> {
        scale(gradient.stream.numbers_mut(), self.scale);
        if let (Some(norm), Some(stream)) = (&self.norm, &tape.unnormalized) {
            pass.back_norm(norm, stream.numbers(), gradient.stream.numbers_mut());
        }
        let Some(first) = tape.blocks.first() else {
            return Ok(gradient);
        };
        let mut tapes = tape.blocks.iter().rev();
        let mut gradient = tapes.try_fold(gradient, |gradient, tape| {
            tape.backward(gradient, &first.stream, pass)
        })?;
        if let Some(of_entry) = gradient.entry.take() {
            add(gradient.stream.numbers_mut(), of_entry.numbers());
        }
        Ok(gradient)
    }

    /// All stages in execution order.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (block, of_block) in self.blocks.iter().enumerate() {
            for (branch, of_branch) in of_block.branches.iter().enumerate() {
                let stages = 0..of_branch.mixer.stages().len();
                places.extend(stages.map(|stage| Place {
                    block,
                    branch,
                    stage,
                }));
            }
        }
        places
    }

    /// The linears of a stage.
    pub(super) fn linears(&self, place: Place) -> Stage<&Linear> {
        let mixer = &self.blocks[place.block].branches[place.branch].mixer;
        mixer.stages().swap_remove(place.stage)
    }

    /// Replaces weights of a stage's linears.
    pub(super) fn replace(&mut self, place: Place, replaced: Vec<Replaced>) {
        let mixer = &mut self.blocks[place.block].branches[place.branch].mixer;
        let stage = mixer.stages_mut().swap_remove(place.stage);
        let mut linears: Vec<_> = stage.linears.into_iter().chain(stage.inner).collect();
        for Replaced { name, weights } in replaced {
            let named = linears.iter_mut().filter(|linear| linear.name == name);
            named.for_each(|linear| linear.replace(weights.clone()));
        }
    }

    /// The input of a stage.
    fn input<'b>(&self, place: Place, at: &'b Between) -> Cow<'b, Rows> {
        match &at.input {
            Some(input) => Cow::Borrowed(input),
            None => self.blocks[place.block].branches[place.branch].input(&at.bundle),
        }
    }

    /// Input of a stage's linears.
    pub(super) fn input_of_linears(
        &self,
        place: Place,
        mut at: Between,
        pass: &Pass<'_>,
    ) -> Result<Rows> {
        self.blocks[place.block].open(&mut at.bundle, pass)?;
        let input = self.input(place, &at);
        Ok(match self.linears(place).linears.first() {
            Some(linear) if linear.columns < input.columns() => {
                input.columns_range(0..linear.columns)
            }
            _ => input.into_owned(),
        })
    }

    /// Row length of a stage's input.
    pub(super) fn columns(&self, place: Place) -> Option<usize> {
        let mixer = &self.blocks[place.block].branches[place.branch].mixer;
        mixer.columns(place.stage)
    }

    /// Runs one stage on a chunk.
    pub(super) fn step(&self, place: Place, mut at: Between, pass: &Pass<'_>) -> Result<Between> {
        let block = &self.blocks[place.block];
        block.open(&mut at.bundle, pass)?;
        let mixer = &block.branches[place.branch].mixer;
        let (mut y, _) = mixer.run_stage(place.stage, &self.input(place, &at), pass)?;
        at.input = None;
        if place.stage + 1 < mixer.stages().len() {
            at.input = Some(y);
            return Ok(at);
        }
        if let Carry::Makes(columns) = block.branches[place.branch].carry {
            y = at.bundle.take_carried(y, columns);
        }
        if let Some(norm) = &block.branches[place.branch].post_norm {
            norm.apply(y.numbers_mut());
        }
        let mixed = match at.mixed.take() {
            Some(mut mixed) => {
                add(mixed.numbers_mut(), y.numbers());
                mixed
            }
            None => y,
        };
        match place.branch + 1 < block.branches.len() {
            true => at.mixed = Some(mixed),
            false => {
                self.enter(place.block, &mut at.bundle);
                block.add_to(&mut at.bundle.stream, mixed, None);
                block.close(&mut at.bundle, pass)?;
                if place.block + 1 == self.blocks.len() {
                    self.leave(&mut at.bundle);
                }
            }
        }
        Ok(at)
    }
}

impl Block {
    fn load(weights: &Weights<'_>, spec: &BlockSpec, angles: &[Arc<Angles>]) -> Result<Block> {
        let branches = spec.branches.iter();
        let branches = branches.map(|branch| Branch::load(weights, branch, angles));
        let opening = spec.opening.as_ref();
        let closing = spec.closing.as_ref();
        Ok(Block {
            branches: branches.collect::<Result<_>>()?,
            post_norm: norm(weights, &spec.post_norm)?,
            residual_scale: spec.residual_scale,
            residual: spec.residual,
            stream_norms: spec
                .stream_norms
                .iter()
                .map(|norm| weights.norm(norm))
                .collect::<Result<_>>()?,
            opening: opening
                .map(|spec| Opening::load(weights, spec))
                .transpose()?,
            closing: closing
                .map(|spec| Closing::load(weights, spec))
                .transpose()?,
        })
    }

    /// Opens the block's section, if it has an opening and the section is not open.
    fn open(&self, bundle: &mut Bundle, pass: &Pass<'_>) -> Result<()> {
        match &self.opening {
            Some(opening) if bundle.beside.is_none() => opening.open(bundle, pass),
            _ => Ok(()),
        }
    }

    /// Closes the section, if the block has a closing.
    fn close(&self, bundle: &mut Bundle, pass: &Pass<'_>) -> Result<()> {
        let mut closing = self.closing.iter();
        closing.try_for_each(|closing| closing.close(bundle, pass))
    }

    /// The sum of the branches' outputs. Stores the carried columns if a branch writes them.
    fn mix<'b>(
        &'b self,
        bundle: &mut Bundle,
        pass: &Pass<'_>,
        mut tapes: Option<&mut Vec<BranchTape<'b>>>,
    ) -> Result<Rows> {
        let mut sum: Option<Rows> = None;
        for branch in &self.branches {
            let input = branch.input(bundle);
            let mut tape = tapes.is_some().then(BranchTape::default);
            let of_mixer = tape.as_mut().map(|tape| &mut tape.mixer);
            let mut y = branch.mixer.forward(&input, pass, of_mixer)?;
            if let (Some(tape), Cow::Owned(input)) = (&mut tape, input) {
                tape.normalized = Some(input);
            }
            if let Carry::Makes(columns) = branch.carry {
                y = bundle.take_carried(y, columns);
            }
            if let Some(norm) = &branch.post_norm {
                if let Some(tape) = &mut tape {
                    tape.unnormalized = Some(y.clone());
                }
                norm.apply(y.numbers_mut());
            }
            if let (Some(tapes), Some(tape)) = (&mut tapes, tape) {
                tapes.push(tape);
            }
            match &mut sum {
                Some(sum) => add(sum.numbers_mut(), y.numbers()),
                None => sum = Some(y),
            }
        }
        Ok(sum.unwrap_or_default())
    }

    /// The norm before the first branch.
    fn first_norm(&self) -> Option<&Norm> {
        self.branches.first()?.norm.as_ref()
    }

    /// Adds the sum of the branches to the stream, and normalizes it; `tape` receives the stream before each
    /// norm.
    fn add_to(&self, stream: &mut Rows, mut mixed: Rows, mut tape: Option<&mut Vec<Rows>>) {
        let before = (self.stream_norms.len() > 1).then(|| stream.clone());
        if let Some(norm) = &self.post_norm {
            norm.apply(mixed.numbers_mut());
        }
        match self.residual {
            Residual::Stream => {}
            Residual::Scaled(factor) => scale(stream.numbers_mut(), factor),
            Residual::Normalized(factor) => {
                if let Some(norm) = self.first_norm() {
                    norm.apply(stream.numbers_mut());
                }
                scale(stream.numbers_mut(), factor);
            }
        }
        add_scaled(stream.numbers_mut(), mixed.numbers(), self.residual_scale);
        for (number, norm) in self.stream_norms.iter().enumerate() {
            if let Some(before) = before.as_ref().filter(|_| number > 0) {
                add(stream.numbers_mut(), before.numbers());
            }
            if let Some(tape) = &mut tape {
                tape.push(stream.clone());
            }
            norm.apply(stream.numbers_mut());
        }
    }
}

impl Branch {
    fn load(weights: &Weights<'_>, spec: &BranchSpec, angles: &[Arc<Angles>]) -> Result<Branch> {
        Ok(Branch {
            norm: norm(weights, &spec.norm)?,
            source: spec.source,
            router_norm: spec
                .router_norm
                .as_ref()
                .map(|norm| weights.scaled_norm(norm))
                .transpose()?,
            mixer: match &spec.mixer {
                MixerSpec::Attention(spec) => {
                    AnyMixer::Attention(attention(weights, spec, angles)?)
                }
                MixerSpec::LatentAttention(spec) => {
                    AnyMixer::LatentAttention(latent_attention(weights, spec, angles)?)
                }
                MixerSpec::ExpandedAttention(spec) => {
                    AnyMixer::ExpandedAttention(expanded_attention(weights, spec, angles)?)
                }
                MixerSpec::DeltaNet(spec) => AnyMixer::DeltaNet(delta_net(weights, spec)?),
                MixerSpec::Wkv6(spec) => AnyMixer::Wkv6(wkv6(weights, spec)?),
                MixerSpec::Wkv7(spec) => AnyMixer::Wkv7(wkv7(weights, spec)?),
                MixerSpec::ChannelMix(spec) => AnyMixer::ChannelMix(channel_mix(weights, spec)?),
                MixerSpec::Lightning(spec) => AnyMixer::Lightning(lightning(weights, spec)?),
                MixerSpec::Mamba2(spec) => AnyMixer::Mamba2(mamba2(weights, spec)?),
                MixerSpec::Linear(spec) => AnyMixer::Single(Single(weights.linear(spec)?)),
                MixerSpec::ShortConv(spec) => AnyMixer::ShortConv(short_conv(weights, spec)?),
                MixerSpec::Mamba(spec) => AnyMixer::Mamba(mamba(weights, spec)?),
                MixerSpec::Ffn(spec) => AnyMixer::Ffn(ffn(weights, spec)?),
                MixerSpec::Moe(spec) => AnyMixer::Moe(moe(weights, spec)?),
                MixerSpec::PerLayer(spec) => AnyMixer::PerLayer(per_layer(weights, spec)?),
                MixerSpec::Laurel(spec) => AnyMixer::Laurel(laurel(weights, spec)?),
            },
            post_norm: norm(weights, &spec.post_norm)?,
            carry: spec.mixer.carry(),
        })
    }

    /// Input of the mixer.
    fn input<'s>(&self, bundle: &'s Bundle) -> Cow<'s, Rows> {
        let entry = bundle.entry.as_ref().unwrap_or(&bundle.stream);
        let source = match self.source {
            Source::Block | Source::Both => &bundle.stream,
            Source::Layer => entry,
        };
        let input = match &self.norm {
            Some(norm) => Cow::Owned(norm.of(source)),
            None => Cow::Borrowed(source),
        };
        let router = match (&self.router_norm, self.source) {
            (Some(norm), _) => Some(Cow::Owned(norm.of(&bundle.stream))),
            (None, Source::Both) => Some(Cow::Borrowed(entry)),
            (None, Source::Block | Source::Layer) => None,
        };
        let read = match (&bundle.carried, self.carry) {
            (Some(carried), Carry::Reads(columns)) => Some(carried.columns_range(columns.range())),
            _ => None,
        };
        if router.is_none() && read.is_none() {
            return input;
        }
        let router = router.iter().map(|router| &**router);
        let parts = router.chain([&*input]).chain(&read);
        Cow::Owned(Rows::beside(&parts.collect::<Vec<_>>()))
    }
}

impl BlockTape<'_> {
    /// `entry` is the stream before the layer.
    fn backward(&self, gradient: Bundle, entry: &Rows, pass: &Pass<'_>) -> Result<Bundle> {
        let block = self.block;
        let mut gradient = gradient;
        if let (Some(closing), Some(before)) = (&block.closing, &self.closed) {
            closing.derivative(before, &mut gradient, pass)?;
        }
        let mut of_entry = gradient.entry.take();
        let mut again: Option<Rows> = None;
        let norms = block.stream_norms.iter().zip(&self.unnormalized);
        for (number, (norm, stream)) in norms.enumerate().rev() {
            pass.back_norm(norm, stream.numbers(), gradient.stream.numbers_mut());
            match &mut again {
                _ if number == 0 => {}
                Some(again) => add(again.numbers_mut(), gradient.stream.numbers()),
                None => again = Some(gradient.stream.clone()),
            }
        }
        let mut of_mixed = gradient.stream.clone();
        scale(of_mixed.numbers_mut(), block.residual_scale);
        if let (Some(norm), Some(mixed)) = (&block.post_norm, &self.mixed) {
            pass.back_norm(norm, mixed.numbers(), of_mixed.numbers_mut());
        }
        let mut of_stream = gradient.stream.clone();
        match block.residual {
            Residual::Stream => {}
            Residual::Scaled(factor) => scale(of_stream.numbers_mut(), factor),
            Residual::Normalized(factor) => {
                scale(of_stream.numbers_mut(), factor);
                if let Some(norm) = block.first_norm() {
                    pass.back_norm(norm, self.stream.numbers(), of_stream.numbers_mut());
                }
            }
        }
        if let Some(again) = &again {
            add(of_stream.numbers_mut(), again.numbers());
        }
        for (branch, tape) in block.branches.iter().zip(&self.branches).rev() {
            let (mixer, mut dy) = (&branch.mixer, of_mixed.clone());
            if let (Some(norm), Some(before)) = (&branch.post_norm, &tape.unnormalized) {
                pass.back_norm(norm, before.numbers(), dy.numbers_mut());
            }
            if let Carry::Makes(columns) = branch.carry {
                let of_carried = gradient.carried_up_to(columns);
                let made = of_carried.columns_range(columns.range());
                // Nothing reads the former content of these columns.
                of_carried.set_columns(columns.first, &Rows::zeros(made.len(), columns.count));
                dy = Rows::beside(&[&made, &dy]);
            }
            let zeros = || Rows::zeros(entry.len(), entry.columns());
            let Some(input) = &tape.normalized else {
                let (source, of_source) = match branch.source {
                    Source::Block | Source::Both => (&self.stream, &mut of_stream),
                    Source::Layer => (entry, of_entry.get_or_insert_with(zeros)),
                };
                mixer.backward(&tape.mixer, source, dy, pass, of_source)?;
                continue;
            };
            let mut of_input = Rows::zeros(input.len(), input.columns());
            mixer.backward(&tape.mixer, input, dy, pass, &mut of_input)?;
            let hidden = self.stream.columns();
            let mut router = None;
            if branch.router_norm.is_some() || branch.source == Source::Both {
                router = Some(of_input.columns_range(0..hidden));
                of_input = of_input.columns_range(hidden..of_input.columns());
            }
            match (router, &branch.router_norm) {
                (Some(mut of_router), Some(norm)) => {
                    pass.back_norm(norm, self.stream.numbers(), of_router.numbers_mut());
                    add(of_stream.numbers_mut(), of_router.numbers());
                }
                (Some(of_router), None) => {
                    let of_entry = of_entry.get_or_insert_with(zeros);
                    add(of_entry.numbers_mut(), of_router.numbers());
                }
                (None, _) => {}
            }
            let (source, of_source) = match branch.source {
                Source::Block | Source::Both => (&self.stream, &mut of_stream),
                Source::Layer => (entry, of_entry.get_or_insert_with(zeros)),
            };
            let mut of_input = Bundle::new(of_input, hidden);
            if let (Some(read), Carry::Reads(columns)) = (&of_input.carried, branch.carry) {
                let of_carried = gradient.carried_up_to(columns);
                of_carried.add_columns(columns.first, read);
            }
            if let Some(norm) = &branch.norm {
                pass.back_norm(norm, source.numbers(), of_input.stream.numbers_mut());
            }
            add(of_source.numbers_mut(), of_input.stream.numbers());
        }
        gradient.stream = of_stream;
        gradient.entry = of_entry;
        if let (Some(opening), Some(streams)) = (&block.opening, &self.streams) {
            opening.derivative(streams, &mut gradient, pass)?;
        }
        Ok(gradient)
    }
}

fn norm(weights: &Weights<'_>, spec: &Option<spec::NormSpec>) -> Result<Option<Norm>> {
    spec.as_ref().map(|spec| weights.norm(spec)).transpose()
}

/// The layer's own factor of the stream; 1 without one.
fn scalar(weights: &Weights<'_>, spec: &LayerSpec) -> Result<f32> {
    let Some(name) = &spec.scalar else {
        return Ok(1.0);
    };
    let scalar = weights.finite(name, &[1])?;
    Ok(scalar.first().copied().unwrap_or(1.0))
}

fn per_layer(weights: &Weights<'_>, spec: &PerLayerSpec) -> Result<PerLayer> {
    Ok(PerLayer {
        gate: weights.linear(&spec.gate)?,
        activation: spec.activation,
        output: weights.linear(&spec.output)?,
    })
}

fn laurel(weights: &Weights<'_>, spec: &LaurelSpec) -> Result<Laurel> {
    let [first, second] = &spec.factors;
    Ok(Laurel {
        first: weights.linear(first)?,
        second: weights.linear(second)?,
        norm: weights.norm(&spec.norm)?,
    })
}

fn query_key_value(weights: &Weights<'_>, spec: &spec::QueryKeyValue) -> Result<QueryKeyValue> {
    Ok(match spec {
        spec::QueryKeyValue::All(all) => QueryKeyValue::All(projections(weights, all)?),
        spec::QueryKeyValue::KeysAsValues([query, key]) => {
            QueryKeyValue::KeysAsValues(Box::new([weights.linear(query)?, weights.linear(key)?]))
        }
        spec::QueryKeyValue::Queries(query) => QueryKeyValue::Queries(weights.linear(query)?),
    })
}

fn attention(
    weights: &Weights<'_>,
    spec: &AttentionSpec,
    angles: &[Arc<Angles>],
) -> Result<Attention> {
    let norm = |spec| norm(weights, spec);
    let numbers = spec.numbers;
    let sinks = spec.sinks.as_ref();
    let sinks = sinks.map(|name| weights.finite(name, &[numbers.heads]));
    let keys_values = match numbers.cache {
        Cache::Own => KeysValues::Own,
        Cache::Kept(_) => KeysValues::Kept,
        Cache::Shared(_) => KeysValues::Shared,
    };
    let projections = query_key_value(weights, &spec.projections)?;
    let reads = matches!(projections, QueryKeyValue::Queries(_));
    if (keys_values == KeysValues::Shared) != reads {
        let stem = &spec.output.stem;
        return Err(Error::Model(format!(
            "the layer of tensor '{stem}.weight' reads keys and values of an earlier layer, and has a matrix for its own: \
             convert the original model again, without --fuse-qkv"
        )));
    }
    Ok(Attention {
        projections,
        keys_values,
        query_norm: norm(&spec.query_norm)?,
        key_norm: norm(&spec.key_norm)?,
        value_norm: norm(&spec.value_norm)?,
        norms_rotated: spec.norms_rotated,
        gate: gate(weights, &spec.gate)?,
        gate_activation: spec.gate_activation,
        output_norm: norm(&spec.output_norm)?,
        output: weights.linear(&spec.output)?,
        heads: numbers.heads,
        kv_heads: numbers.kv_heads,
        key_length: numbers.key_length,
        clamp: spec.clamp,
        temperature: spec.temperature,
        rope: spec.rope,
        angles: numbers
            .rotation
            .and_then(|rotation| angles.get(rotation).cloned()),
        scores: Scores {
            scale: spec.score_scale,
            cap: spec.score_cap,
            window: numbers.window,
            sinks: sinks.transpose()?.map(Arc::from),
            is_chunked: numbers.is_chunked,
            is_causal: spec.is_causal,
            slopes: spec
                .max_alibi_bias
                .map(|bias| alibi_slopes(numbers.heads, bias).into()),
        },
    })
}

fn projections(weights: &Weights<'_>, spec: &spec::Projections) -> Result<Projections> {
    Ok(match spec {
        spec::Projections::Apart([query, key, value]) => Projections::Apart(Box::new([
            weights.linear(query)?,
            weights.linear(key)?,
            weights.linear(value)?,
        ])),
        spec::Projections::Fused(all) => Projections::Fused(weights.linear(all)?),
    })
}

fn gate(weights: &Weights<'_>, spec: &spec::Gate) -> Result<Gate> {
    Ok(match spec {
        spec::Gate::None => Gate::None,
        spec::Gate::Queries => Gate::Queries,
        spec::Gate::Own(gate) => Gate::Own(weights.linear(gate)?),
    })
}

fn factored(weights: &Weights<'_>, spec: &spec::Factored) -> Result<Factored> {
    Ok(match spec {
        spec::Factored::Whole(whole) => Factored::Whole(weights.linear(whole)?),
        spec::Factored::LowRank {
            first,
            norm: between,
            second,
        } => Factored::LowRank(Box::new(LowRank {
            first: weights.linear(first)?,
            norm: norm(weights, between)?,
            activation: None,
            second: weights.linear(second)?,
        })),
    })
}

fn latent_attention(
    weights: &Weights<'_>,
    spec: &LatentSpec,
    angles: &[Arc<Angles>],
) -> Result<LatentAttention> {
    let rotation = spec.attention.rotation;
    Ok(LatentAttention {
        numbers: spec.numbers,
        heads: spec.attention.heads,
        query: factored(weights, &spec.query)?,
        compression: weights.linear(&spec.compression)?,
        norm: weights.norm(&spec.norm)?,
        key: weights.linear(&spec.key)?,
        value: weights.linear(&spec.value)?,
        gate: gate(weights, &spec.gate)?,
        output: weights.linear(&spec.output)?,
        rope: spec.rope,
        angles: rotation.and_then(|rotation| angles.get(rotation).cloned()),
        scores: Scores {
            scale: spec.score_scale,
            cap: None,
            window: spec.attention.window,
            sinks: None,
            is_chunked: spec.attention.is_chunked,
            is_causal: true,
            slopes: None,
        },
        temperature: spec.temperature,
        sparse: spec
            .sparse
            .as_ref()
            .map(|spec| sparse(weights, spec, angles.first()))
            .transpose()?,
    })
}

fn expanded_attention(
    weights: &Weights<'_>,
    spec: &ExpandedSpec,
    angles: &[Arc<Angles>],
) -> Result<ExpandedAttention> {
    let rotation = spec.attention.rotation;
    Ok(ExpandedAttention {
        numbers: spec.numbers,
        heads: spec.attention.heads,
        query: factored(weights, &spec.query)?,
        compression: weights.linear(&spec.compression)?,
        norm: weights.norm(&spec.norm)?,
        expansion: weights.linear(&spec.expansion)?,
        output: weights.linear(&spec.output)?,
        rope: spec.rope,
        angles: rotation.and_then(|rotation| angles.get(rotation).cloned()),
        scores: Scores {
            scale: spec.score_scale,
            cap: None,
            window: None,
            sinks: None,
            is_chunked: false,
            is_causal: true,
            slopes: None,
        },
    })
}

fn sparse(
    weights: &Weights<'_>,
    spec: &SparseSpec,
    angles: Option<&Arc<Angles>>,
) -> Result<Sparse> {
    let indexer = |spec: &IndexerSpec| -> Result<Box<Indexer>> {
        Ok(Box::new(Indexer {
            numbers: spec.numbers,
            query: weights.linear(&spec.query)?,
            key: weights.linear(&spec.key)?,
            key_norm: weights.norm(&spec.key_norm)?,
            weights: weights.linear(&spec.weights)?,
            rope: spec.rope,
            angles: angles.cloned(),
        }))
    };
    Ok(Sparse {
        top_k: spec.top_k,
        indexer: spec.indexer.as_ref().map(indexer).transpose()?,
    })
}

fn delta_net(weights: &Weights<'_>, spec: &DeltaSpec) -> Result<DeltaNet> {
    let numbers = spec.numbers;
    let heads = numbers.value_heads;
    let length = numbers.key_length;
    // Several kernels are those of queries, keys and values, which have equal lengths then.
    let channels = numbers.channels() / spec.convolutions.len();
    let convolutions = spec.convolutions.iter();
    let convolutions: Result<Vec<_>> = convolutions
        .map(|name| weights.finite(name, &[channels, numbers.kernel]))
        .collect();
    let decay = match spec.decay_bound {
        Some(_) => weights.finite(&spec.decay, &[heads])?,
        None => weights.at_most_zero(&spec.decay, &[heads])?,
    };
    Ok(DeltaNet {
        numbers,
        projections: projections(weights, &spec.projections)?,
        gate: factored(weights, &spec.gate)?,
        gate_activation: spec.gate_activation,
        rates: match &spec.rates {
            spec::Rates::Apart { strength, step } => Rates::Apart(Box::new(Apart {
                strength: weights.linear(strength)?,
                step: factored(weights, step)?,
            })),
            spec::Rates::Fused(both) => Rates::Fused(weights.linear(both)?),
        },
        step_bias: weights.finite(&spec.step_bias, &[numbers.decays()])?,
        decay: match spec.decay_bound {
            Some(bound) => Decay::Bounded {
                numbers: decay,
                bound,
            },
            None => Decay::Softplus(decay),
        },
        kernels: convolutions?.concat(),
        // For a head of length 1, the root mean square is the square root of 1 / length.
        unit: Norm {
            kind: NormKind::Rms,
            epsilon: spec.epsilon / length as f32,
            weight: vec![1.0 / (length as f32).sqrt(); length],
            bias: Vec::new(),
            len: length,
            tensors: NormTensors::default(),
        },
        norm: weights.norm(&spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn mamba2(weights: &Weights<'_>, spec: &Mamba2Spec) -> Result<Mamba2> {
    let numbers = spec.numbers;
    let (heads, channels) = (numbers.heads, numbers.channels());
    let bias = spec.convolution_bias.as_ref();
    let bias = bias.map(|name| weights.finite(name, &[channels]));
    Ok(Mamba2 {
        numbers,
        input: weights.linear(&spec.input)?,
        factors: spec
            .factors
            .as_ref()
            .map(|spec| factors(weights, spec))
            .transpose()?,
        kernels: weights.finite(&spec.convolution, &[channels, numbers.kernel])?,
        channel_bias: bias.transpose()?,
        step_bias: weights.finite(&spec.step_bias, &[heads])?,
        decay: weights.at_most_zero(&spec.decay, &[heads])?,
        skip: weights.finite(&spec.skip, &[heads])?,
        norm: norm(weights, &spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn short_conv(weights: &Weights<'_>, spec: &ShortConvSpec) -> Result<ShortConv> {
    let numbers = spec.numbers;
    Ok(ShortConv {
        input: weights.linear(&spec.input)?,
        kernels: weights.finite(&spec.convolution, &[numbers.channels, numbers.kernel])?,
        output: weights.linear(&spec.output)?,
    })
}

fn mamba(weights: &Weights<'_>, spec: &MambaSpec) -> Result<Mamba> {
    let numbers = spec.numbers;
    let channels = numbers.channels;
    let norms = |[rank, key, query]: &[spec::NormSpec; 3]| -> Result<Box<[Norm; 3]>> {
        let [rank, key, query] = [rank, key, query].map(|norm| weights.norm(norm));
        Ok(Box::new([rank?, key?, query?]))
    };
    Ok(Mamba {
        numbers,
        input: weights.linear(&spec.input)?,
        kernels: weights.finite(&spec.convolution, &[channels, numbers.kernel])?,
        kernel_bias: weights.finite(&spec.convolution_bias, &[channels])?,
        parameters: weights.linear(&spec.parameters)?,
        norms: spec.norms.as_ref().map(norms).transpose()?,
        step: weights.linear(&spec.step)?,
        decay: weights.at_most_zero(&spec.decay, &[channels, numbers.state])?,
        skip: weights.finite(&spec.skip, &[channels])?,
        output: weights.linear(&spec.output)?,
    })
}

fn factors(weights: &Weights<'_>, spec: &FactorsSpec) -> Result<Box<Factors>> {
    let [keys, queries, rank] = spec.norms.each_ref().map(|norm| weights.norm(norm));
    Ok(Box::new(Factors {
        parameters: weights.linear(&spec.parameters)?,
        norms: [keys?, queries?, rank?],
        step: weights.linear(&spec.step)?,
    }))
}

fn lightning(weights: &Weights<'_>, spec: &LightningSpec) -> Result<Lightning> {
    Ok(Lightning {
        numbers: spec.numbers,
        projections: weights.linear(&spec.projections)?,
        gate: weights.linear(&spec.gate)?,
        norm: weights.norm(&spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

/// The factors of a low-rank matrix with an activation between them.
fn ranks(
    weights: &Weights<'_>,
    [first, second]: &[LinearSpec; 2],
    activation: Option<Activation>,
) -> Result<Factored> {
    Ok(Factored::LowRank(Box::new(LowRank {
        first: weights.linear(first)?,
        norm: None,
        activation,
        second: weights.linear(second)?,
    })))
}

fn wkv6(weights: &Weights<'_>, spec: &Wkv6Spec) -> Result<Wkv6> {
    /// Number of token-shift mixes.
    const MIXES: usize = 5;
    let numbers = spec.numbers;
    let channels = numbers.channels();
    let count = MIXES / spec.mixes.len();
    let mixes = spec.mixes.iter();
    let mixes = mixes.map(|name| weights.finite(name, &[count, channels]));
    let mixes: Vec<_> = mixes.collect::<Result<_>>()?;
    let bonus = spec.bonus.as_ref();
    let bonus = bonus.map(|name| weights.finite(name, &[numbers.heads, numbers.length]));
    Ok(Wkv6 {
        numbers,
        first_mix: weights.finite(&spec.first_mix, &[channels])?,
        mixes: mixes.concat(),
        mix_factor: weights.linear(&spec.mix_factor)?,
        mix_outputs: weights.linear(&spec.mix_outputs)?,
        decay: ranks(weights, &spec.decay, Some(Activation::Tanh))?,
        decay_bias: weights.finite(&spec.decay_bias, &[channels])?,
        bonus: bonus.transpose()?,
        projections: Box::new([
            weights.linear(&spec.receptance)?,
            weights.linear(&spec.key)?,
            weights.linear(&spec.value)?,
            weights.linear(&spec.gate)?,
        ]),
        norm: norm(weights, &spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn wkv7(weights: &Weights<'_>, spec: &Wkv7Spec) -> Result<Wkv7> {
    /// Lower bound of the length by which keys are divided.
    const LEAST: f32 = 1e-12;
    let numbers = spec.numbers;
    let (channels, length) = (numbers.channels(), numbers.length);
    let rank = |rank: &RankSpec, activation: Option<Activation>| -> Result<Rank> {
        Ok(Rank {
            factors: ranks(weights, &rank.factors, activation)?,
            bias: weights.finite(&rank.bias, &[channels])?,
        })
    };
    let channels_of = |name: &str| weights.finite(name, &[channels]);
    let gate = spec.gate.as_ref();
    let gate = gate.map(|gate| ranks(weights, gate, Some(Activation::Sigmoid)));
    let values = spec.values.as_ref().map(|values| rank(values, None));
    // Of receptance, decay, key, value and rate, and of the gate if there is one.
    let mixes = 5 + usize::from(spec.gate.is_some());
    Ok(Wkv7 {
        numbers,
        mixes: weights.finite(&spec.mixes, &[mixes, channels])?,
        decay: rank(&spec.decay, Some(Activation::Tanh))?,
        rate: rank(&spec.rate, None)?,
        values: values.transpose()?,
        gate: gate.transpose()?,
        key_scale: channels_of(&spec.key_scale)?,
        key_rate: channels_of(&spec.key_rate)?,
        bonus: channels_of(&spec.bonus)?,
        projections: Box::new([
            weights.linear(&spec.receptance)?,
            weights.linear(&spec.key)?,
            weights.linear(&spec.value)?,
        ]),
        // For a head of length 1, the root mean square is the square root of 1 / length.
        unit: Norm {
            kind: NormKind::Rms,
            epsilon: LEAST * LEAST / length as f32,
            weight: vec![1.0 / (length as f32).sqrt(); length],
            bias: Vec::new(),
            len: length,
            tensors: NormTensors::default(),
        },
        norm: norm(weights, &spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn channel_mix(weights: &Weights<'_>, spec: &ChannelMixSpec) -> Result<ChannelMix> {
    let receptance = spec.receptance.as_ref().map(|receptance| -> Result<_> {
        Ok(Box::new(Receptance {
            mix: weights.finite(&receptance.mix, &[receptance.matrix.columns])?,
            matrix: weights.linear(&receptance.matrix)?,
        }))
    });
    Ok(ChannelMix {
        key_mix: weights.finite(&spec.key_mix, &[spec.key.columns])?,
        key: weights.linear(&spec.key)?,
        value: weights.linear(&spec.value)?,
        receptance: receptance.transpose()?,
    })
}

fn ffn(weights: &Weights<'_>, spec: &FfnSpec) -> Result<Ffn> {
    Ok(Ffn {
        first: match &spec.first {
            spec::First::Gated { gate, up } => First::Gated {
                gate: weights.linear(gate)?,
                up: weights.linear(up)?,
            },
            spec::First::Fused(both) => First::Fused(weights.linear(both)?),
            spec::First::Plain(up) => First::Plain(weights.linear(up)?),
        },
        inner_norm: norm(weights, &spec.inner_norm)?,
        factors: match &spec.divisors {
            Some(name) => Some(weights.reciprocals(name, &[spec.down.columns])?),
            None => None,
        },
        down: weights.linear(&spec.down)?,
        activation: spec.activation,
        limit: spec.limit,
        sparsity: spec.sparsity,
    })
}

fn moe(weights: &Weights<'_>, spec: &MoeSpec) -> Result<Moe> {
    let shared = |shared: &spec::SharedSpec| -> Result<Shared> {
        let router = shared.router.as_ref();
        Ok(Shared {
            router: router.map(|router| weights.linear(router)).transpose()?,
            ffn: ffn(weights, &shared.ffn)?,
        })
    };
    let latent = |[down, up]: &[spec::LinearSpec; 2]| -> Result<Latent> {
        Ok(Latent {
            down: weights.linear(down)?,
            up: weights.linear(up)?,
        })
    };
    let adjugates = |adjugates: &spec::AdjugatesSpec| -> Result<Box<Adjugates>> {
        Ok(Box::new(Adjugates {
            router: Router {
                routing: spec.routing,
                selection_bias: None,
                sharing: adjugates.numbers.sharing,
            },
            experts: ffn(weights, &adjugates.experts)?,
            scale: adjugates.numbers.scale,
        }))
    };
    let bias = spec.selection_bias.as_ref();
    let bias = bias.map(|bias| weights.finite(bias, &[spec.router.rows]));
    let scores = weights.linear(&spec.router)?;
    if scores.bias.is_some() && !spec.may_be_biased {
        let stem = &spec.router.stem;
        return Err(super::Error::Model(format!(
            "tensor '{stem}.bias' is unexpected: routers of this architecture have no bias, and llama.cpp does not load \
             a file with one"
        )));
    }
    Ok(Moe {
        scores,
        router: Router {
            routing: spec.routing,
            selection_bias: bias.transpose()?,
            sharing: 1,
        },
        routes_first: spec.routes_first,
        latent: spec.latent.as_ref().map(latent).transpose()?,
        experts: ffn(weights, &spec.experts)?,
        adjugates: spec.adjugates.as_ref().map(adjugates).transpose()?,
        shared: spec.shared.as_ref().map(shared).transpose()?,
        scale: spec.scale,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::ops::tests::{check_gradients, random};
    use crate::model::streams::Modalities;
    use quantier_arch::LinearId;
    use quantier_core::progress::Silent;

    pub(in crate::model) const HIDDEN: usize = 6;

    pub(in crate::model) fn norm(seed: u32) -> Norm {
        Norm {
            kind: NormKind::Rms,
            epsilon: 1e-2,
            weight: random(HIDDEN, seed),
            bias: vec![0.0; HIDDEN],
            len: HIDDEN,
            tensors: NormTensors::default(),
        }
    }

    /// A norm and a matrix.
    fn branch(seed: u32) -> Branch {
        Branch {
            norm: Some(norm(seed + 1)),
            source: Source::Block,
            router_norm: None,
            mixer: AnyMixer::Single(Single(linear(HIDDEN, HIDDEN, seed))),
            post_norm: None,
            carry: Carry::None,
        }
    }

    fn block(branches: Vec<Branch>, residual: Residual) -> Block {
        Block {
            branches,
            post_norm: None,
            residual_scale: 0.7,
            residual,
            stream_norms: Vec::new(),
            opening: None,
            closing: None,
        }
    }

    /// One block with a norm and a matrix, followed by a norm.
    fn layer() -> Layer {
        Layer {
            blocks: vec![block(vec![branch(1)], Residual::Stream)],
            norm: Some(norm(3)),
            scale: 0.5,
        }
    }

    pub(in crate::model) fn pass<'p>() -> Pass<'p> {
        Pass {
            chunk: 0,
            tap: None,
            recording: true,
            split: 1,
            stored: None,
            progress: &Silent,
        }
    }

    fn bundle(x: &[f32]) -> Bundle {
        Bundle::of(Rows::new(x.to_vec(), HIDDEN))
    }

    /// Compares the derivative of a layer with finite differences, and its forward pass with its
    /// stages.
    fn check(layer: &Layer) {
        let at = random(3 * HIDDEN, 4);
        let forward = |x: &[Vec<f32>]| {
            let behind = layer.forward(bundle(&x[0]), &pass()).unwrap();
            behind.stream.into_numbers()
        };
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let (_, tape) = layer.record(bundle(&x[0]), &pass()).unwrap();
            let gradient = layer.backward(&tape, bundle(g), &pass()).unwrap();
            vec![gradient.stream.into_numbers()]
        };
        check_gradients("layer", std::slice::from_ref(&at), &forward, &backward);
        let mut between = Between {
            bundle: bundle(&at),
            ..Between::default()
        };
        for place in layer.places() {
            between = layer.step(place, between, &pass()).unwrap();
        }
        assert_eq!(between.bundle.stream.numbers(), forward(&[at]));
    }

    #[test]
    fn norm_after_blocks_has_a_derivative_and_runs_last() {
        check(&layer());
    }

    pub(in crate::model) fn linear(rows: usize, columns: usize, seed: u32) -> Linear {
        Linear {
            id: LinearId(seed),
            name: "linear".into(),
            weights: random(rows * columns, seed).into(),
            experts: 1,
            columns,
            scales: None,
            bias: None,
            uploaded: None,
        }
    }

    /// One head of two numbers, whose keys and values are in the columns behind the first two.
    fn attention(projections: QueryKeyValue, keys_values: KeysValues) -> Branch {
        const KEPT: Columns = Columns { first: 2, count: 4 };
        Branch {
            mixer: AnyMixer::Attention(Attention {
                projections,
                keys_values,
                query_norm: None,
                key_norm: None,
                value_norm: None,
                norms_rotated: false,
                gate: Gate::None,
                gate_activation: Activation::Sigmoid,
                output_norm: None,
                output: linear(HIDDEN, 2, 33),
                heads: 1,
                kv_heads: 1,
                key_length: 2,
                clamp: None,
                temperature: None,
                rope: quantier_arch::Rope::None,
                angles: None,
                scores: Scores {
                    scale: 0.7,
                    cap: None,
                    window: None,
                    sinks: None,
                    is_chunked: false,
                    is_causal: true,
                    slopes: None,
                },
            }),
            post_norm: Some(norm(34)),
            carry: match keys_values {
                KeysValues::Shared => Carry::Reads(KEPT),
                KeysValues::Own | KeysValues::Kept => Carry::Makes(KEPT),
            },
            ..branch(21)
        }
    }

    #[test]
    fn carried_columns_reach_later_blocks_and_have_a_derivative() {
        const CARRIED: usize = 7;
        let all = QueryKeyValue::All(Projections::Fused(linear(6, HIDDEN, 31)));
        let queries = QueryKeyValue::Queries(linear(2, HIDDEN, 32));
        let gate = Branch {
            mixer: AnyMixer::PerLayer(PerLayer {
                gate: linear(2, HIDDEN, 35),
                activation: Activation::Gelu,
                output: linear(HIDDEN, 2, 36),
            }),
            norm: None,
            carry: Carry::Reads(Columns { first: 0, count: 2 }),
            ..branch(41)
        };
        let branches = [
            vec![attention(all, KeysValues::Kept)],
            vec![attention(queries, KeysValues::Shared), branch(51)],
            vec![gate],
        ];
        let layer = Layer {
            blocks: branches
                .map(|branches| block(branches, Residual::Stream))
                .into(),
            norm: None,
            scale: 0.5,
        };
        let bundle = |x: &[Vec<f32>]| Bundle {
            carried: Some(Rows::new(x[1].clone(), CARRIED)),
            ..Bundle::of(Rows::new(x[0].clone(), HIDDEN))
        };
        let at = [random(3 * HIDDEN, 4), random(3 * CARRIED, 5)];
        check_bundles(&layer, &at, &bundle);
    }

    /// Compares the derivative of a layer by streams and carried columns with finite differences, and
    /// its forward pass with its stages.
    fn check_bundles(layer: &Layer, at: &[Vec<f32>; 2], bundle: &dyn Fn(&[Vec<f32>]) -> Bundle) {
        let numbers = |bundle: Bundle| bundle.into_rows().into_numbers();
        let forward = |x: &[Vec<f32>]| numbers(layer.forward(bundle(x), &pass()).unwrap());
        let width = bundle(at).stream.columns();
        let columns = width + at[1].len() * width / at[0].len();
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let (_, tape) = layer.record(bundle(x), &pass()).unwrap();
            let g = Bundle::new(Rows::new(g.to_vec(), columns), width);
            let gradient = layer.backward(&tape, g, &pass()).unwrap();
            let carried = gradient.carried.unwrap();
            vec![gradient.stream.into_numbers(), carried.into_numbers()]
        };
        check_gradients("layer", at, &forward, &backward);
        let mut between = Between {
            bundle: bundle(at),
            ..Between::default()
        };
        for place in layer.places() {
            between = layer.step(place, between, &pass()).unwrap();
        }
        assert_eq!(numbers(between.bundle), forward(at));
    }

    /// As in BERT; a second norm follows once more the stream before the block.
    #[test]
    fn norms_of_the_stream_after_blocks_have_a_derivative() {
        for count in [1, 2] {
            let with_norms = |first: u32| Block {
                stream_norms: (0..count).map(|i| norm(first + 10 * i)).collect(),
                ..block(vec![branch(first + 1)], Residual::Stream)
            };
            check(&Layer {
                blocks: vec![with_norms(3), with_norms(71)],
                norm: None,
                scale: 1.0,
            });
        }
    }

    #[test]
    fn later_blocks_read_the_layers_input() {
        let of_layer = |normed: bool| Branch {
            source: Source::Layer,
            norm: normed.then(|| norm(5)),
            ..branch(21)
        };
        for normed in [true, false] {
            // The first block also has one, whose source is the stream.
            let blocks = vec![
                block(vec![branch(1), of_layer(true)], Residual::Stream),
                block(vec![branch(11), of_layer(normed)], Residual::Stream),
            ];
            check(&Layer {
                blocks,
                norm: None,
                scale: 1.0,
            });
        }
    }

    #[test]
    fn residuals_add_to_the_stream_or_to_the_first_mixers_input() {
        for residual in [
            Residual::Stream,
            Residual::Normalized(1.6),
            Residual::Scaled(0.4),
        ] {
            let two = || vec![branch(1), branch(11)];
            check(&Layer {
                blocks: vec![block(two(), residual), block(two(), residual)],
                norm: None,
                scale: 1.0,
            });
        }
    }

    #[test]
    fn sections_work_on_one_of_several_streams() {
        const STREAMS: usize = 3;
        const CARRIED: usize = 2;
        let modalities = |count: usize, seed: u32| Modalities {
            norm: norm(seed),
            router: linear(STREAMS, HIDDEN, seed + 1),
            coefficients: linear(count, STREAMS, seed + 2),
        };
        let gate = Branch {
            mixer: AnyMixer::PerLayer(PerLayer {
                gate: linear(CARRIED, HIDDEN, 35),
                activation: Activation::Gelu,
                output: linear(HIDDEN, CARRIED, 36),
            }),
            norm: None,
            carry: Carry::Reads(Columns {
                first: 0,
                count: CARRIED,
            }),
            ..branch(41)
        };
        let two = vec![branch(1), branch(11)];
        let opening = Opening::Predict(modalities(STREAMS * STREAMS, 61).into());
        let layer = Layer {
            blocks: vec![
                Block {
                    opening: Some(opening),
                    ..block(two, Residual::Scaled(0.7))
                },
                Block {
                    closing: Some(Closing::Correct(modalities(STREAMS, 71).into())),
                    ..block(vec![branch(21)], Residual::Stream)
                },
                Block {
                    opening: Some(Opening::First(random(HIDDEN, 81))),
                    closing: Some(Closing::AddToOthers),
                    ..block(vec![gate], Residual::Scaled(0.0))
                },
            ],
            norm: None,
            scale: 1.0,
        };
        let inside = [0, 1, 2].map(|block| layer.is_within_section(block));
        assert_eq!(inside, [false, true, false]);
        let bundle = |x: &[Vec<f32>]| Bundle {
            carried: Some(Rows::new(x[1].clone(), CARRIED)),
            ..Bundle::of(Rows::new(x[0].clone(), STREAMS * HIDDEN))
        };
        let at = [random(3 * STREAMS * HIDDEN, 4), random(3 * CARRIED, 5)];
        check_bundles(&layer, &at, &bundle);
        // A section's stream can be stored apart from the bundle between two of its blocks.
        let mut between = Between {
            bundle: bundle(&at),
            ..Between::default()
        };
        for place in layer.places() {
            between = layer.step(place, between, &pass()).unwrap();
            if let Some(stream) = between.bundle.leave_section() {
                between.bundle.enter_section(stream);
            }
        }
        let behind = layer.forward(bundle(&at), &pass()).unwrap();
        assert_eq!(between.bundle.stream, behind.stream);
    }
}
