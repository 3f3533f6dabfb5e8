//! A matrix, or the two factors of one of low rank.

use super::StageTape;
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative};
use crate::model::rows::Rows;
use quantier_arch::Activation;

/// A matrix, or the factors of one of low rank: the first reads the input, the second what the first
/// makes of it, behind a norm and an activation if there are any.
#[derive(Clone)]
pub(in crate::model) enum Factored {
    Whole(Linear),
    LowRank(Box<LowRank>),
}

/// The factors of a matrix of low rank.
#[derive(Clone)]
pub(in crate::model) struct LowRank {
    pub first: Linear,
    pub norm: Option<Norm>,
    pub activation: Option<Activation>,
    pub second: Linear,
}

/// What the derivative needs.
pub(super) struct FactoredTape<'m> {
    factored: &'m Factored,
    /// What the first factor made, if a norm stands behind it.
    unnormalized: Option<Rows>,
    /// What stands in front of the activation, if there is one.
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

    /// The linear that reads what the first one makes.
    pub(super) fn inner(&self) -> Option<&Linear> {
        match self {
            Factored::Whole(_) => None,
            Factored::LowRank(factors) => Some(&factors.second),
        }
    }

    /// Both, in this order.
    pub(super) fn linears_mut(&mut self) -> (&mut Linear, Option<&mut Linear>) {
        match self {
            Factored::Whole(whole) => (whole, None),
            Factored::LowRank(factors) => {
                let LowRank { first, second, .. } = &mut **factors;
                (first, Some(second))
            }
        }
    }

    /// The product with an input that was shown already to the linear that reads it.
    pub(super) fn run<'m>(
        &'m self,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, FactoredTape<'m>)> {
        self.run_past(input, pass, |_| Ok(()))
    }

    /// The same; `inner` sees what the second factor reads, if there is one.
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
            norm.derivative(before.numbers(), of_inner.numbers_mut());
        }
        pass.back(&factors.first, &of_inner, dx)
    }
}
