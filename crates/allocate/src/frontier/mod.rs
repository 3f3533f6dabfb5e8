//! The frontier: the best type for every tensor at every size.
//!
//! A [`Problem`] lists bytes and predicted nats of every tensor in each type. [`Frontier::of`] sorts
//! all useful steps to larger types by nats per byte; every prefix of that order is an optimum for
//! its size. Between two prefixes, [`Frontier::at_most`] and [`Frontier::for_nats`] search for
//! changes that fill the remaining bytes. [`spread`] picks a series of sizes. [`Constraints`] narrow
//! the problem beforehand; a [`Budget`] states the size or divergence of a recipe.

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

pub use budget::{Budget, BudgetError, LayerCache, Memory, Surroundings, Target};
pub use constraints::{ConstraintError, Constraints, Subject};
pub use hull::{Frontier, Point, Step};
pub use problem::{Choice, Invalid, Item, Problem, Solution};
pub use spread::spread;
