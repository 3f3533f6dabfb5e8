//! The low-rank branch beside attention (LAuReL, Menghani et al. 2025).

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::elementwise::add;
use crate::model::rows::Rows;

/// ```text
/// stage 0    x -> first factor, and x beside it
/// stage 1    -> norm(second factor) + x
/// ```
#[derive(Clone)]
pub(in crate::model) struct Laurel {
    pub first: Linear,
    pub second: Linear,
    /// Norm of the product.
    pub norm: Norm,
}

/// The derivative of the first stage needs nothing else.
struct FirstTape<'m>(&'m Laurel);

/// Values that the derivative of the second stage needs.
struct SecondTape<'m> {
    mixer: &'m Laurel,
    /// The product before its norm.
    unnormalized: Rows,
}

impl Mixer for Laurel {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(vec![&self.first]), Stage::of(vec![&self.second])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(vec![&mut self.first]),
            Stage::of(vec![&mut self.second]),
        ]
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        Some(match stage {
            0 => self.first.columns,
            _ => self.second.columns + self.first.columns,
        })
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if stage == 0 {
            let (product, _) = run_linear(&self.first, input, pass)?;
            let y = Rows::beside(&[&product, input]);
            return Ok((y, Box::new(FirstTape(self))));
        }
        let rank = self.second.columns;
        let (mut y, _) = run_linear(&self.second, &input.columns_range(0..rank), pass)?;
        let unnormalized = match pass.recording {
            true => y.clone(),
            false => Rows::default(),
        };
        self.norm.apply(y.numbers_mut());
        let x = input.columns_range(rank..input.columns());
        add(y.numbers_mut(), x.numbers());
        let tape = SecondTape {
            mixer: self,
            unnormalized,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for FirstTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let rank = self.0.second.columns;
        pass.back(&self.0.first, &dy.columns_range(0..rank), dx)?;
        add(
            dx.numbers_mut(),
            dy.columns_range(rank..dy.columns()).numbers(),
        );
        Ok(())
    }
}

impl StageTape for SecondTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let Laurel { second, norm, .. } = self.mixer;
        let mut of_product = dy.clone();
        pass.back_norm(norm, self.unnormalized.numbers(), of_product.numbers_mut());
        let mut of_inner = Rows::zeros(dy.len(), second.columns);
        pass.back(second, &of_product, &mut of_inner)?;
        dx.add_columns(0, &of_inner);
        dx.add_columns(second.columns, &dy);
        Ok(())
    }
}
