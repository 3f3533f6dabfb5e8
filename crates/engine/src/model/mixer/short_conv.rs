//! Gated short convolution (Liquid AI 2025).

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Pass};
use crate::model::ops::convolution::{convolve, convolve_derivative};
use crate::model::ops::elementwise::multiply;
use crate::model::rows::Rows;

/// ```text
/// stage 0    input -> b, c and x -> causal convolution of b x -> times c
/// stage 1    -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct ShortConv {
    /// Rows of b, then of c, then of x.
    pub input: Linear,
    /// `[channels, kernel]`.
    pub kernels: Vec<f32>,
    pub output: Linear,
}

/// Values that the derivative of the first stage needs.
struct GatesTape<'m> {
    mixer: &'m ShortConv,
    /// b, c and x.
    parts: [Rows; 3],
    convolved: Rows,
}

/// Elementwise product.
fn product(x: &Rows, y: &Rows) -> Rows {
    let mut product = x.clone();
    multiply(product.numbers_mut(), y.numbers());
    product
}

impl Mixer for ShortConv {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(vec![&self.input]), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(vec![&mut self.input]),
            Stage::of(vec![&mut self.output]),
        ]
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if stage > 0 {
            return run_linear(&self.output, input, pass);
        }
        pass.input(&[&self.input], None, input)?;
        let all = pass.times(&self.input, input)?;
        let channels = all.columns() / 3;
        let [b, c, x] = [0, 1, 2].map(|i| all.columns_range(i * channels..(i + 1) * channels));
        let convolved = convolve(&product(&b, &x), &self.kernels);
        let y = product(&convolved, &c);
        let tape = GatesTape {
            mixer: self,
            parts: [b, c, x],
            convolved,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for GatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let [b, c, x] = &self.parts;
        let of_c = product(&dy, &self.convolved);
        let of_convolved = product(&dy, c);
        let of_products = convolve_derivative(&of_convolved, &self.mixer.kernels);
        let (of_b, of_x) = (product(&of_products, x), product(&of_products, b));
        let of_all = Rows::beside(&[&of_b, &of_c, &of_x]);
        pass.back(&self.mixer.input, &of_all, dx)
    }
}
