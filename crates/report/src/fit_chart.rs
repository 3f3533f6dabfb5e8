//! Chart of predicted against measured nats: the accuracy of the prediction.

use super::axis::{Axis, drawable, tick};
use super::data::Frontier;
use super::labels::Labels;
use super::numbers::{nats, shorten};
use super::plot::{Legend, Mark, Plot, RADIUS, Symbol};
use super::svg::{Anchor, Area, Place, Point, Svg, point};

const SIZE: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const HEAD: f64 = 40.0;
const FOOT: f64 = 56.0;
/// Margin of the axes beyond the points, as a factor.
const ROOM: f64 = 1.6;

fn symbol(ours: bool) -> Symbol {
    Symbol {
        ours,
        open: false,
        radius: if ours { RADIUS + 2.0 } else { RADIUS },
    }
}

/// Predicted and measured nats of a file or preset.
fn mark(name: String, predicted: f64, measured: f64, ours: bool) -> Mark {
    let (x, y) = (nats(predicted), nats(measured));
    Mark {
        tip: format!("{name}: {x} predicted, {y} measured"),
        name,
        x: predicted,
        y: measured,
        symbol: symbol(ours),
        favoured: if ours { 0.7 } else { 3.8 },
    }
}

/// Our files, then the presets, as far as both predicted and measured.
fn marks(data: &Frontier) -> Vec<Mark> {
    let ours = data.files.iter().filter_map(|file| {
        let measured = file.measured.as_ref()?.mean.value();
        Some(mark(
            shorten(&file.label, 24),
            file.predicted,
            measured,
            true,
        ))
    });
    let theirs = data.presets.iter().filter_map(|preset| {
        let (predicted, measured) = (preset.predicted?, preset.measured.as_ref()?.mean.value());
        Some(mark(shorten(&preset.name, 20), predicted, measured, false))
    });
    ours.chain(theirs)
        .filter(|mark| drawable(mark.x) && drawable(mark.y))
        .collect()
}

/// The chart as SVG; none with fewer than two points.
pub fn fit_chart(data: &Frontier, place: Place) -> Option<String> {
    let marks = marks(data);
    if marks.len() < 2 {
        return None;
    }
    let values = || marks.iter().flat_map(|mark| [mark.x, mark.y]);
    let low = values().min_by(f64::total_cmp)? / ROOM;
    let high = values().max_by(f64::total_cmp)? * ROOM;
    let label = format!(
        "Predicted and measured {} of {}",
        data.distance.terms().name,
        shorten(&data.model.name, 80)
    );
    let mut svg = Svg::new(SIZE, SIZE, &label, place);
    let area = Area {
        x0: LEFT,
        y0: HEAD,
        x1: SIZE - RIGHT,
        y1: SIZE - FOOT,
    };
    let Area { x0, y0, x1, y1 } = area;
    let plot = Plot {
        area,
        x: Axis::new(true, low..=high, x0, x1),
        y: Axis::new(true, low..=high, y1, y0),
    };
    for value in plot.x.ticks(48.0) {
        let x = plot.x.at(value);
        svg.line("q-grid", point(x, y0), point(x, y1));
        svg.text("q-tick", point(x, y1 + 19.0), Anchor::Middle, &tick(value));
        plot.y_tick(&mut svg, value);
    }
    let Point { x, y } = area.middle();
    let noun = data.distance.terms().noun;
    let text = format!("predicted {noun} (not fitted)");
    svg.text("q-note", point(x, SIZE - 14.0), Anchor::Middle, &text);
    svg.upright_text("q-note", point(16.0, y), &format!("measured {noun}"));

    let mut labels = Labels::new(area);
    let mut draw = |svg: &mut Svg, class: &str, line: [Point; 2]| {
        svg.line(class, line[0], line[1]);
        labels.curve(&line);
    };
    draw(&mut svg, "q-diagonal", [point(x0, y1), point(x1, y0)]);
    let fit = fit_line(data, &plot);
    if let Some(line) = fit {
        draw(&mut svg, "q-fit", line);
    }
    legend(&mut svg, &marks, fit.is_some());
    plot.draw_marks(&mut svg, &marks, labels, RADIUS + 1.5);
    Some(svg.finish())
}

/// The visible part of the fitted line, which is straight because both axes are logarithmic.
fn fit_line(data: &Frontier, plot: &Plot) -> Option<[Point; 2]> {
    let fit = data
        .fit
        .filter(|fit| fit.scale > 0.0 && fit.exponent > 0.0)?;
    let (low, high) = (plot.x.low, plot.x.high);
    let back = |measured: f64| (measured / fit.scale).powf(1.0 / fit.exponent);
    let (from, to) = (low.max(back(low)), high.min(back(high)));
    (from < to).then(|| [from, to].map(|predicted| plot.at(predicted, fit.apply(predicted))))
}

fn legend(svg: &mut Svg, marks: &[Mark], fitted: bool) {
    let mut legend = Legend {
        svg,
        at: point(LEFT, 18.0),
        indent: 22.0,
        gap: 12.0,
        reach: 8.0,
    };
    for (ours, text) in [(true, "Quantier"), (false, "llama.cpp preset")] {
        let symbol = symbol(ours);
        if marks.iter().any(|mark| mark.symbol == symbol) {
            legend.symbol(symbol, text);
        }
    }
    legend.line("q-diagonal", "equal");
    if fitted {
        legend.line("q-fit", "fit");
    }
}
