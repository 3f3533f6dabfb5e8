//! The evidence that a person looks at: `frontier.json`, pictures, a page, a table. Data in, text
//! out.
//!
//! | what | from |
//! |---|---|
//! | `frontier.json` | [`data::Frontier::to_json`], read by [`data::Frontier::parse`] |
//! | the report | [`page::page`] |
//! | the main picture, to stand alone | [`size_chart::size_chart`] with [`svg::Place::Alone`] |
//! | a table for a terminal | [`text::table`] |
//!
//! The same data give the same bytes.

mod axis;
pub mod compare;
pub mod data;
pub mod fit_chart;
pub mod heat_map;
mod labels;
pub mod numbers;
pub mod page;
#[doc(hidden)]
pub mod sample;
pub mod size_chart;
pub mod svg;
#[cfg(test)]
mod tests;
pub mod text;
