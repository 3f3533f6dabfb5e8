//! The report as a table for a terminal.

use super::data::{Distance, File, Frontier};
use super::numbers::{change, figure, nats, percent, shorten, size, type_name, weights};
use super::page::preset_names;
use std::fmt::Write;

/// Longest file name shown in full, in characters.
const NAME: usize = 48;

/// A column: heading and one cell per file, empty if unknown.
struct Column {
    heading: &'static str,
    cells: Vec<String>,
    left: bool,
}

/// Model, files and fit, without a final line break. Empty columns are omitted.
pub fn table(data: &Frontier) -> String {
    let model = &data.model;
    let mut out = format!(
        "{}: {}, {} weights, {} layers, {} {}\n",
        shorten(&model.name, 60),
        shorten(&model.architecture, 30),
        weights(model.parameters),
        model.layers,
        type_name(&model.base_type),
        size(model.base_bytes)
    );
    if !data.files.is_empty() {
        out.push('\n');
        write_columns(&mut out, &columns(data));
    }
    let findings = data.files.iter().filter_map(|file| {
        let finding = data.finding(file)?;
        Some(format!("{}: {finding}\n", shorten(&file.name, NAME)))
    });
    let findings: String = findings.collect();
    if !findings.is_empty() {
        let _ = write!(out, "\n{findings}");
    }
    if let Some(fit) = data.fit {
        let _ = write!(
            out,
            "\nmeasured = {:.3} x predicted^{:.3}",
            fit.scale, fit.exponent
        );
        let _ = write!(
            out,
            ", from {} file{}",
            fit.points,
            if fit.points == 1 { "" } else { "s" }
        );
        if let Some(rank) = fit.rank_correlation {
            let _ = write!(out, ", rank correlation {rank:.3}");
        }
        if let Some(error) = fit.median_error {
            let _ = write!(out, ", median error {}", percent(error));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

fn columns(data: &Frontier) -> Vec<Column> {
    let column = |heading, cell: &dyn Fn(&File) -> Option<String>| {
        let cells = data
            .files
            .iter()
            .map(|file| cell(file).unwrap_or_default())
            .collect();
        Column {
            heading,
            cells,
            left: false,
        }
    };
    let measured = |heading, show: &dyn Fn(&super::data::Measured) -> Option<String>| {
        column(heading, &|file| file.measured.as_ref().and_then(show))
    };
    let [mean, presets] = match data.distance {
        Distance::KlDivergence => ["mean KLD", "KLD vs. presets of this size"],
        Distance::Cosine => ["mean distance", "distance vs. presets of this size"],
    };
    let mut columns = vec![
        Column {
            left: true,
            ..column("file", &|file| Some(shorten(&file.name, NAME)))
        },
        column("size", &|file| Some(size(file.bytes))),
        column("bpw", &|file| Some(format!("{:.2}", file.bpw))),
        column("predicted", &|file| {
            Some(nats(
                file.corrected
                    .unwrap_or_else(|| data.corrected(file.predicted)),
            ))
        }),
        measured(mean, &|m| {
            let (value, error) = figure(m.mean.value(), m.uncertainty);
            Some(error.map_or(value.clone(), |error| format!("{value} ± {error}")))
        }),
        measured("99.9%", &|m| m.p999.map(nats)),
        measured("same top", &|m| m.same_top.map(percent)),
        measured("PPL ratio", &|m| {
            Some(format!("{:.4}", m.ppl? / m.ppl_base?))
        }),
        measured("rank correlation", &|m| {
            m.rank_correlation.map(|rank| format!("{rank:.4}"))
        }),
        measured("neighbours", &|m| m.shared_neighbours.map(percent)),
        Column {
            left: true,
            ..column(presets, &|file| against(data, file))
        },
    ];
    columns.retain(|column| column.cells.iter().any(|cell| !cell.is_empty()));
    columns
}

fn against(data: &Frontier, file: &File) -> Option<String> {
    let comparison = data.comparison(file)?;
    let (ratio, preset) = (change(comparison.ratio() - 1.0), preset_names(&comparison));
    Some(format!("{ratio} {preset}"))
}

fn write_columns(out: &mut String, columns: &[Column]) {
    let width = |column: &Column| {
        let cells = column.cells.iter().map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(column.heading.chars().count())
    };
    let widths: Vec<usize> = columns.iter().map(width).collect();
    let rows = columns.first().map_or(0, |column| column.cells.len());
    for row in 0..=rows {
        let mut line = String::new();
        for (column, width) in columns.iter().zip(&widths) {
            let text = if row == 0 {
                column.heading
            } else {
                column.cells[row - 1].as_str()
            };
            let _ = match column.left {
                true => write!(line, "{text:<width$}  "),
                false => write!(line, "{text:>width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}
