//! Mixers: the components of a layer between norms. Each is a list of stages; within a stage, all
//! linears read the same input.
//!
//! ```text
//! stages      the linears of each stage
//! run_stage   input of a stage -> input of the next, or the mixer's output; with a tape
//! forward     all stages in sequence
//! backward    the tapes in reverse
//! ```

mod attention;
mod channel_mix;
mod delta_net;
mod expanded;
mod factored;
mod ffn;
mod front;
mod indexer;
mod latent;
mod laurel;
mod lightning;
mod mamba;
mod mamba2;
mod moe;
mod per_layer;
mod short_conv;
mod single;
#[cfg(test)]
mod tests;
mod wkv6;
mod wkv7;

pub(super) use attention::{Attention, Gate, KeysValues, Projections, QueryKeyValue};
pub(super) use channel_mix::{ChannelMix, Receptance};
pub(super) use delta_net::{Apart, Decay, DeltaNet, Rates};
pub(super) use expanded::ExpandedAttention;
pub(super) use factored::{Factored, LowRank};
pub(super) use ffn::{Ffn, First};
pub(super) use indexer::{Indexer, Sparse};
pub(super) use latent::LatentAttention;
pub(super) use laurel::Laurel;
pub(super) use lightning::Lightning;
pub(super) use mamba::Mamba;
pub(super) use mamba2::{Factors, Mamba2};
pub(super) use moe::{Adjugates, Latent, Moe, Shared};
pub(super) use per_layer::PerLayer;
pub(super) use short_conv::ShortConv;
pub(super) use single::Single;
pub(super) use wkv6::Wkv6;
pub(super) use wkv7::{Rank, Wkv7};

use super::Result;
use super::linear::{Linear, Pass};
use super::rows::Rows;
use std::ops::{Deref, DerefMut};

/// The linears of a stage.
#[derive(Default)]
pub(super) struct Stage<L> {
    /// Linears that read the stage's input.
    pub linears: Vec<L>,
    /// Linears that read intermediate values of the stage, such as the second matrices of experts.
    pub inner: Vec<L>,
}

impl<L> Stage<L> {
    /// A stage whose linears all read its input.
    fn of(linears: Vec<L>) -> Stage<L> {
        Stage {
            linears,
            inner: Vec::new(),
        }
    }
}

/// Values, beside the stage's input, that its derivative needs.
pub(super) trait StageTape {
    /// Derivative: given the stage's input and the gradient of its output, adds the gradient of the
    /// input to `dx`.
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()>;
}

pub(super) type BoxedTape<'m> = Box<dyn StageTape + 'm>;

/// Values that a mixer's derivative needs.
#[derive(Default)]
pub(super) struct Tape<'m> {
    /// Of all stages.
    stages: Vec<BoxedTape<'m>>,
    /// Of all stages but the first.
    inputs: Vec<Rows>,
}

/// A map from normalized activations to an update of the residual stream.
pub(super) trait Mixer: Send + Sync {
    /// The linears of each stage.
    fn stages(&self) -> Vec<Stage<&Linear>>;

    /// The linears of each stage, for replacing weights.
    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>>;

    /// Row length of a stage's input; None if the mixer has no such stage. Linears read the leading
    /// columns.
    fn columns(&self, stage: usize) -> Option<usize> {
        let stages = self.stages();
        Some(stages.get(stage)?.linears.first()?.columns)
    }

    /// Runs one stage. Returns the input of the next stage, or after the last the mixer's output.
    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)>;

    /// Runs all stages. `tape` receives the values for [`backward`](Mixer::backward).
    fn forward<'m>(
        &'m self,
        input: &Rows,
        pass: &Pass<'_>,
        mut tape: Option<&mut Tape<'m>>,
    ) -> Result<Rows> {
        let mut x = None;
        for stage in 0..self.stages().len() {
            let (y, stage_tape) = self.run_stage(stage, x.as_ref().unwrap_or(input), pass)?;
            let read = x.replace(y);
            if let Some(tape) = &mut tape {
                tape.stages.push(stage_tape);
                tape.inputs.extend(read);
            }
        }
        Ok(x.unwrap_or_default())
    }

    /// Derivative: adds the gradient of the input to `dx`, given the gradient of the output. The
    /// tap sees the output gradient of every linear.
    fn backward(
        &self,
        tape: &Tape<'_>,
        input: &Rows,
        dy: Rows,
        pass: &Pass<'_>,
        dx: &mut Rows,
    ) -> Result<()> {
        let mut gradient = dy;
        for (stage, stage_tape) in tape.stages.iter().enumerate().rev() {
            let Some(input) = stage.checked_sub(1).map(|before| &tape.inputs[before]) else {
                return stage_tape.backward(input, gradient, pass, dx);
            };
            let mut of_input = Rows::zeros(input.len(), input.columns());
            stage_tape.backward(input, gradient, pass, &mut of_input)?;
            gradient = of_input;
        }
        Ok(())
    }
}

/// The tape of a single-linear stage.
struct LinearTape<'m>(&'m Linear);

impl StageTape for LinearTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        pass.back(self.0, &dy, dx)
    }
}

/// Runs a single-linear stage.
fn run_linear<'m>(
    linear: &'m Linear,
    input: &Rows,
    pass: &Pass<'_>,
) -> Result<(Rows, BoxedTape<'m>)> {
    pass.input(&[linear], None, input)?;
    Ok((pass.times(linear, input)?, Box::new(LinearTape(linear))))
}

/// Any mixer.
// Unboxed: a loaded layer holds few mixers.
#[allow(clippy::large_enum_variant)]
#[derive(Clone)]
pub(super) enum AnyMixer {
    Attention(Attention),
    ChannelMix(ChannelMix),
    DeltaNet(DeltaNet),
    ExpandedAttention(ExpandedAttention),
    Ffn(Ffn),
    LatentAttention(LatentAttention),
    Laurel(Laurel),
    Lightning(Lightning),
    Mamba2(Mamba2),
    Mamba(Mamba),
    Moe(Moe),
    PerLayer(PerLayer),
    ShortConv(ShortConv),
    Single(Single),
    Wkv6(Wkv6),
    Wkv7(Wkv7),
}

impl Deref for AnyMixer {
    type Target = dyn Mixer;

    fn deref(&self) -> &(dyn Mixer + 'static) {
        match self {
            AnyMixer::Attention(mixer) => mixer,
            AnyMixer::ChannelMix(mixer) => mixer,
            AnyMixer::DeltaNet(mixer) => mixer,
            AnyMixer::ExpandedAttention(mixer) => mixer,
            AnyMixer::Ffn(mixer) => mixer,
            AnyMixer::Laurel(mixer) => mixer,
            AnyMixer::Lightning(mixer) => mixer,
            AnyMixer::LatentAttention(mixer) => mixer,
            AnyMixer::Mamba2(mixer) => mixer,
            AnyMixer::Mamba(mixer) => mixer,
            AnyMixer::Moe(mixer) => mixer,
            AnyMixer::PerLayer(mixer) => mixer,
            AnyMixer::ShortConv(mixer) => mixer,
            AnyMixer::Single(mixer) => mixer,
            AnyMixer::Wkv6(mixer) => mixer,
            AnyMixer::Wkv7(mixer) => mixer,
        }
    }
}

impl DerefMut for AnyMixer {
    fn deref_mut(&mut self) -> &mut (dyn Mixer + 'static) {
        match self {
            AnyMixer::Attention(mixer) => mixer,
            AnyMixer::ChannelMix(mixer) => mixer,
            AnyMixer::DeltaNet(mixer) => mixer,
            AnyMixer::ExpandedAttention(mixer) => mixer,
            AnyMixer::Ffn(mixer) => mixer,
            AnyMixer::Laurel(mixer) => mixer,
            AnyMixer::Lightning(mixer) => mixer,
            AnyMixer::LatentAttention(mixer) => mixer,
            AnyMixer::Mamba2(mixer) => mixer,
            AnyMixer::Mamba(mixer) => mixer,
            AnyMixer::Moe(mixer) => mixer,
            AnyMixer::PerLayer(mixer) => mixer,
            AnyMixer::ShortConv(mixer) => mixer,
            AnyMixer::Single(mixer) => mixer,
            AnyMixer::Wkv6(mixer) => mixer,
            AnyMixer::Wkv7(mixer) => mixer,
        }
    }
}
