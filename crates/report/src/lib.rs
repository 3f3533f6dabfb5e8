//! Reports: `frontier.json`, charts, HTML page, terminal table. Deterministic functions of the
//! data.
//!
//! | output | function |
//! |---|---|
//! | `frontier.json` | [`data::Frontier::to_json`], read by [`data::Frontier::parse`] |
//! | `report.html` | [`page::page`] |
//! | `frontier.svg` | [`size_chart::size_chart`] with [`svg::Place::Alone`] |
//! | the picture of `kld` | [`kld_chart::kld_chart`] |
//! | the table on a terminal | [`text::table`] |

mod axis;
pub mod compare;
pub mod data;
pub mod fit_chart;
pub mod heat_map;
pub mod kld_chart;
mod labels;
pub mod numbers;
pub mod page;
mod plot;
#[doc(hidden)]
pub mod sample;
pub mod size_chart;
pub mod svg;
#[cfg(test)]
mod tests;
pub mod text;
