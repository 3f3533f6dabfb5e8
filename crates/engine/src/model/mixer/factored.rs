//! A matrix, or two factors of a low-rank matrix.

use super::StageTape;
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative};
use crate::model::rows::Rows;
use quantier_arch::Activation;

/// A matrix, or two factors of a low-rank matrix: the second reads the output of the first, after
/// an optional norm and activation.
#[derive(Clone)]
pub(in crate::model) enum Factored {
    Whole(Linear),
    LowRank(Box<LowRank>),
}

/// The factors of a low-rank matrix.
#[derive(Clone)]
pub(in crate::model) struct LowRank {
    pub first: Linear,
    pub norm: Option<Norm>,
    pub activation: Option<Activation>,
    pub second: Linear,
}

/// Values that the derivative needs.
pub(super) struct FactoredTape<'m> {
    factored: &'m Factored,
    /// Output of the first factor before its norm, if there is one.
    unnormalized: Option<Rows>,
    /// Input of the activation, if there is one.
    unactivated: Option<Rows>,
}

impl Factored {
    /// The linear that reads the input.
    pub(super) fn outer(&self) -> &Linear {
        match self {
            Factored::Whole(whole) => whole,
            Factored::LowRank(factors) => &factors.first,
        }
    }

    /// The second factor.
    pub(super) fn inner(&self) -> Option<&Linear> {
        match self {
            Factored::Whole(_) => None,
            Factored::LowRank(factors) => Some(&factors.second),
        }
    }

    /// The matrix and None, or both factors in order.
    pub(super) fn linears_mut(&mut self) -> (&mut Linear, Option<&mut Linear>) {
        match self {
            Factored::Whole(whole) => (whole, None),
            Factored::LowRank(factors) => {
                let LowRank { first, second, .. } = &mut **factors;
                (first, Some(second))
            }
        }
    }

    /// The product with `input`, which the caller has already shown to the tap.
    pub(super) fn run<'m>(
        &'m self,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, FactoredTape<'m>)> {
        self.run_past(input, pass, |_| Ok(()))
    }

    /// [`Factored::run`]; `inner` is called with the input of the second factor, if there is one.
    pub(super) fn run_past<'m>(
        &'m self,
        input: &Rows,
        pass: &Pass<'_>,
        inner: impl FnOnce(&Rows) -> Result<()>,
    ) -> Result<(Rows, FactoredTape<'m>)> {
        let mut y = pass.times(self.outer(), input)?;
        let (mut unnormalized, mut unactivated) = (None, None);
        if let Factored::LowRank(factors) = self {
            if let Some(norm) = &factors.norm {
                unnormalized = pass.recording.then(|| y.clone());
                norm.apply(y.numbers_mut());
            }
            if let Some(activation) = factors.activation {
                unactivated = pass.recording.then(|| y.clone());
                activate(y.numbers_mut(), activation);
            }
            inner(&y)?;
            pass.input(&[&factors.second], None, &y)?;
            y = pass.times(&factors.second, &y)?;
        }
        let tape = FactoredTape {
            factored: self,
            unnormalized,
            unactivated,
        };
        Ok((y, tape))
    }
}

impl StageTape for FactoredTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let Factored::LowRank(factors) = self.factored else {
            return pass.back(self.factored.outer(), &dy, dx);
        };
        let mut of_inner = Rows::zeros(input.len(), factors.second.columns);
        pass.back(&factors.second, &dy, &mut of_inner)?;
        if let (Some(activation), Some(before)) = (factors.activation, &self.unactivated) {
            let g = std::mem::replace(&mut of_inner, before.clone());
            activate_derivative(of_inner.numbers_mut(), g.numbers(), activation);
        }
        if let (Some(norm), Some(before)) = (&factors.norm, &self.unnormalized) {
            pass.back_norm(norm, before.numbers(), of_inner.numbers_mut());
        }
        pass.back(&factors.first, &of_inner, dx)
    }
}
