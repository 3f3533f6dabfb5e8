//! A single linear as a mixer.

use super::{BoxedTape, Mixer, Stage, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Pass};
use crate::model::rows::Rows;

/// ```text
/// stage 0    input -> the output
/// ```
#[derive(Clone)]
pub(in crate::model) struct Single(pub Linear);

impl Mixer for Single {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(vec![&self.0])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![Stage::of(vec![&mut self.0])]
    }

    fn run_stage<'m>(
        &'m self,
        _stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        run_linear(&self.0, input, pass)
    }
}
