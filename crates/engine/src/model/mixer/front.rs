//! A stage whose linear reads the leading columns of the stage's input; the remaining columns pass
//! through to later stages.

use super::{BoxedTape, StageTape};
use crate::model::Result;
use crate::model::linear::{Linear, Pass};
use crate::model::ops::activation::{activate, activate_derivative};
use crate::model::rows::Rows;
use quantier_arch::Activation;

/// Values that the derivative needs.
struct FrontTape<'m> {
    linear: &'m Linear,
    /// Output of the linear before its activation.
    activated: Option<(Rows, Activation)>,
}

/// Runs the stage: returns the columns passed through, then the activated output of the linear.
pub(super) fn run_front<'m>(
    linear: &'m Linear,
    activation: Option<Activation>,
    input: &Rows,
    pass: &Pass<'_>,
) -> Result<(Rows, BoxedTape<'m>)> {
    let x = input.columns_range(0..linear.columns);
    pass.input(&[linear], None, &x)?;
    let mut y = pass.times(linear, &x)?;
    let activated = activation.map(|activation| {
        let before = y.clone();
        activate(y.numbers_mut(), activation);
        (before, activation)
    });
    let rest = input.columns_range(linear.columns..input.columns());
    let tape = FrontTape { linear, activated };
    Ok((beside(&[&rest, &y]), Box::new(tape)))
}

/// Concatenates rows side by side; parts may have no columns.
pub(super) fn beside(parts: &[&Rows]) -> Rows {
    let parts: Vec<&Rows> = parts
        .iter()
        .copied()
        .filter(|part| part.columns() > 0)
        .collect();
    Rows::beside(&parts)
}

/// Splits rows into parts of these column counts, whose sum is the row length.
pub(super) fn parts(rows: &Rows, lengths: &[usize]) -> Vec<Rows> {
    let mut start = 0;
    let part = |length: &usize| {
        start += length;
        rows.columns_range(start - length..start)
    };
    lengths.iter().map(part).collect()
}

impl StageTape for FrontTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let (linear, passing) = (self.linear, input.columns() - self.linear.columns);
        let rest = dy.columns_range(0..passing);
        let mut of_product = dy.columns_range(passing..dy.columns());
        if let Some((before, activation)) = &self.activated {
            let g = of_product.numbers().to_vec();
            of_product = before.clone();
            activate_derivative(of_product.numbers_mut(), &g, *activation);
        }
        let mut of_x = Rows::zeros(input.len(), linear.columns);
        pass.back(linear, &of_product, &mut of_x)?;
        dx.add_columns(0, &of_x);
        dx.add_columns(linear.columns, &rest);
        Ok(())
    }
}
