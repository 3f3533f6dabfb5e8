//! The frontier: the best type for every tensor at every size.
//!
//! A [`Problem`] lists what every tensor costs in each type, in bytes and in predicted nats.
//! [`Frontier::of`] sorts all worthwhile steps up by what a byte buys; every prefix of that order
//! is an optimum for its own size. Between two prefixes, [`Frontier::at_most`] and
//! [`Frontier::for_nats`] search for what fills the bytes left over. [`spread`] picks sizes worth
//! offering. [`Constraints`] narrow the problem beforehand, a [`Budget`] is what a person asks for.

mod budget;
mod constraints;
mod hull;
mod problem;
mod solve;
mod spread;

#[cfg(test)]
mod generator;
#[cfg(test)]
mod tests;

pub use budget::{Budget, BudgetError, LayerCache, Memory, Surroundings, Target, parse_bytes};
pub use constraints::{ConstraintError, Constraints, Subject};
pub use hull::{Frontier, Point, Step};
pub use problem::{Choice, Invalid, Item, Problem, Solution};
pub use spread::spread;
