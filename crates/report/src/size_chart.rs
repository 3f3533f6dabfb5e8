//! The main chart: nats against size; the frontier, our files, llama.cpp's presets.

use super::axis::{Axis, drawable, tick};
use super::data::{self, Frontier};
use super::labels::Labels;
use super::numbers::{Unit, capital, nats, percent, shorten, size};
use super::plot::{Legend, Mark, Plot, RADIUS, Symbol};
use super::svg::{Anchor, Area, Place, Point, Svg, point};
use std::ops::RangeInclusive;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 82.0;
const RIGHT: f64 = 28.0;
const PLOT_HEIGHT: f64 = 430.0;
/// Height above the plot, for bits per weight and legend; plus the title if the picture stands
/// alone.
const HEAD: f64 = 78.0;
const TITLE: f64 = 58.0;
/// Height below the plot, for sizes.
const FOOT: f64 = 58.0;

/// Ratio of largest to smallest size from which the size axis is logarithmic.
const LOG_FROM: f64 = 8.0;
/// Range of the frontier that is always shown; outside, only the surroundings of files and presets.
const TELLING: RangeInclusive<f64> = 1e-3..=0.6;
/// Minimum distance of drawn points of the curve.
const CURVE_STEP: f64 = 1.5;

/// Symbol for measured or predicted nats.
fn symbol(ours: bool, measured: bool) -> Symbol {
    let radius = match (ours, measured) {
        (_, true) => RADIUS,
        (true, false) => RADIUS + 2.5,
        (false, false) => RADIUS - 0.75,
    };
    Symbol {
        ours,
        open: !measured,
        radius,
    }
}

/// Files first, then presets, each by size; x is bytes, y nats. Presets usually lie above the curve
/// and get their labels there; ours get them below.
fn marks(data: &Frontier) -> Vec<Mark> {
    let tell = |name: &str, bytes: u64, bpw: f64, nats_: f64, how: &str| {
        format!(
            "{}: {} ({bpw:.2} bpw), {}{} {how}",
            shorten(name, 80),
            size(bytes),
            nats(nats_),
            data.distance.terms().unit
        )
    };
    let after = if data.fit.is_some() {
        "predicted (fitted)"
    } else {
        "predicted"
    };
    let mut marks = Vec::new();
    for file in &data.files {
        let predicted = file
            .corrected
            .unwrap_or_else(|| data.corrected(file.predicted));
        let mut add = |name: String, nats: f64, measured: bool, how: &str| {
            marks.push(Mark {
                name,
                tip: tell(&file.name, file.bytes, file.bpw, nats, how),
                x: file.bytes as f64,
                y: nats,
                symbol: symbol(true, measured),
                favoured: 2.5,
            });
        };
        let name = shorten(&file.label, 24);
        match &file.measured {
            Some(measured) => {
                add(String::new(), predicted, false, after);
                let same = measured.same_top.map_or(String::new(), |top| {
                    format!(", same top token {}", percent(top))
                });
                add(
                    name,
                    measured.mean.value(),
                    true,
                    &format!("measured{same}"),
                );
            }
            None => add(name, predicted, false, after),
        }
    }
    for preset in &data.presets {
        let after = match data.preset_fit {
            Some(_) => "predicted (fitted)",
            None => "predicted",
        };
        let (nats, measured, how) = match (&preset.measured, data.predicted(preset)) {
            (Some(measured), _) => (measured.mean.value(), true, "measured"),
            (None, Some(predicted)) => (predicted, false, after),
            (None, None) => continue,
        };
        marks.push(Mark {
            name: shorten(&preset.name, 20),
            tip: tell(&preset.name, preset.bytes, preset.bpw, nats, how),
            x: preset.bytes as f64,
            y: nats,
            symbol: symbol(false, measured),
            favoured: -0.65,
        });
    }
    marks.retain(|mark| drawable(mark.y));
    marks
}

/// The fitted frontier, without points that cannot be drawn on a logarithmic axis.
fn curve(data: &Frontier) -> Vec<data::Point> {
    let all = data.frontier.iter().map(|point| data::Point {
        nats: data.corrected(point.nats),
        ..*point
    });
    all.filter(|point| drawable(point.nats)).collect()
}

/// Minimum and maximum of some values; none without values.
fn range(values: impl Iterator<Item = f64>) -> Option<RangeInclusive<f64>> {
    values
        .map(|x| x..=x)
        .reduce(|a, b| a.start().min(*b.start())..=a.end().max(*b.end()))
}

/// Ranges shown by the chart.
struct Window {
    sizes: RangeInclusive<f64>,
    nats: RangeInclusive<f64>,
}

/// None if there is nothing to show.
fn window(curve: &[data::Point], marks: &[Mark]) -> Option<Window> {
    let bytes = |point: &data::Point| point.bytes as f64;
    let telling = curve.iter().filter(|point| TELLING.contains(&point.nats));
    let (low, high) = range(marks.iter().map(|mark| mark.x).chain(telling.map(bytes)))
        .or_else(|| range(curve.iter().map(bytes)))?
        .into_inner();
    let room = (0.04 * (high - low)).max(0.01 * high).max(1.0);
    let sizes = (low - room).max(0.9 * low)..=high + room;
    // The curve may leave at the top, where predictions are unreliable, but not between the points.
    let nats = marks.iter().map(|mark| mark.y);
    let top = nats.clone().fold(*TELLING.end(), f64::max) * 1.3;
    let shown = curve
        .iter()
        .filter(|point| sizes.contains(&bytes(point)) && point.nats <= top)
        .map(|point| point.nats);
    let (least, most) = range(nats.chain(shown))
        .or_else(|| range(curve.iter().map(|point| point.nats)))?
        .into_inner();
    let nats = least / 1.4..=most * 1.4;
    Some(Window { sizes, nats })
}

/// File size in bytes at 0 bits per weight, and increase per bit.
fn bytes_per_bit(data: &Frontier) -> Option<(f64, f64)> {
    let points = data.frontier.iter().map(|p| (p.bytes as f64, p.bpw));
    let points = points.chain(data.presets.iter().map(|p| (p.bytes as f64, p.bpw)));
    let points: Vec<(f64, f64)> = points
        .chain(data.files.iter().map(|p| (p.bytes as f64, p.bpw)))
        .collect();
    let finite = || points.iter().copied().filter(|point| point.1.is_finite());
    let low = finite().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let high = finite().max_by(|a, b| a.0.total_cmp(&b.0))?;
    match high.1 - low.1 {
        bits if bits > 0.0 => {
            let slope = (high.0 - low.0) / bits;
            Some((low.0 - slope * low.1, slope))
        }
        _ => (low.1 > 0.0).then_some((0.0, low.0 / low.1)),
    }
}

/// The chart as SVG.
pub fn size_chart(data: &Frontier, place: Place) -> String {
    let top = HEAD + if place == Place::Alone { TITLE } else { 0.0 };
    let height = top + PLOT_HEIGHT + FOOT;
    let label = format!(
        "{} of {} against file size",
        capital(data.distance.terms().name),
        shorten(&data.model.name, 80)
    );
    let mut svg = Svg::new(WIDTH, height, &label, place);
    if place == Place::Alone {
        title(&mut svg, data);
    }
    let (curve, marks) = (curve(data), marks(data));
    let Some(Window { sizes, nats }) = window(&curve, &marks) else {
        let middle = point(WIDTH / 2.0, height / 2.0);
        let text = "No divergence has been computed yet.";
        svg.text("q-note", middle, Anchor::Middle, text);
        return svg.finish();
    };
    let area = Area {
        x0: LEFT,
        y0: top,
        x1: WIDTH - RIGHT,
        y1: top + PLOT_HEIGHT,
    };
    let log = *sizes.start() >= 1.0 && sizes.end() / sizes.start() > LOG_FROM;
    let plot = Plot {
        area,
        x: Axis::new(log, sizes, area.x0, area.x1),
        y: Axis::new(true, nats, area.y1, area.y0),
    };
    axes(&mut svg, data, &plot);
    let left = if place == Place::Alone { 24.0 } else { LEFT };
    legend(&mut svg, data, point(left, top - 58.0), &marks);

    let line = line(&curve, &plot);
    draw_gaps(&mut svg, &line, &marks, &plot);
    if line.len() > 1 {
        svg.polyline("q-curve", &line);
    }
    let mut labels = Labels::new(area);
    labels.curve(&line);
    plot.draw_marks(&mut svg, &marks, labels, RADIUS + 2.0);
    svg.finish()
}

/// The curve as drawn.
fn line(curve: &[data::Point], plot: &Plot) -> Vec<Point> {
    let mut line: Vec<Point> = Vec::new();
    for &data::Point { bytes, nats, .. } in curve {
        let (bytes, next) = (bytes as f64, plot.at(bytes as f64, nats));
        let apart = |last: &Point| (next.x - last.x).hypot(next.y - last.y) >= CURVE_STEP;
        if plot.x.holds(bytes) && plot.y.holds(nats) && line.last().is_none_or(apart) {
            line.push(next);
        }
    }
    line
}

fn title(svg: &mut Svg, data: &Frontier) {
    let name = shorten(&data.model.name, 60);
    svg.text(
        "q-title",
        point(24.0, 34.0),
        Anchor::Start,
        &format!("{name}: quality at every size"),
    );
    let tokens = data.evaluation.as_ref().map(|e| {
        let counted = data.distance.terms().counted;
        format!(
            ", measured on {} {counted}",
            super::numbers::count(e.tokens)
        )
    });
    let note = format!(
        "Mean {} from the {} model ({}){}. Lower is better.",
        data.distance.terms().name,
        super::numbers::type_name(&data.model.base_type),
        size(data.model.base_bytes),
        tokens.unwrap_or_default()
    );
    svg.text("q-note", point(24.0, 55.0), Anchor::Start, &note);
}

fn axes(svg: &mut Svg, data: &Frontier, plot: &Plot) {
    let Plot { area, x, y } = plot;
    let &Area { x0, y0, x1, y1 } = area;
    for nats in y.ticks(30.0) {
        plot.y_tick(svg, nats);
    }
    svg.upright_text(
        "q-note",
        point(20.0, area.middle().y),
        data.distance.terms().axis,
    );

    svg.line("q-axis", point(x0, y1), point(x1, y1));
    let unit = Unit::of(x.high as u64);
    let in_units = x.scaled(1.0 / unit.bytes(), 0.0);
    for value in in_units.ticks(64.0) {
        let at = in_units.at(value);
        svg.line("q-axis", point(at, y1), point(at, y1 + 5.0));
        svg.text("q-tick", point(at, y1 + 20.0), Anchor::Middle, &tick(value));
    }
    svg.text(
        "q-note",
        point(area.middle().x, y1 + 43.0),
        Anchor::Middle,
        &format!("file size, {}", unit.name()),
    );

    let Some((nothing, bit)) = bytes_per_bit(data) else {
        return;
    };
    svg.line("q-axis", point(x0, y0), point(x1, y0));
    for value in x.scaled(1.0 / bit, -nothing / bit).ticks(56.0) {
        let at = x.at(nothing + bit * value);
        svg.line("q-axis", point(at, y0), point(at, y0 - 5.0));
        svg.text("q-tick", point(at, y0 - 10.0), Anchor::Middle, &tick(value));
    }
    svg.text(
        "q-note",
        point(x1, y0 - 28.0),
        Anchor::End,
        "bits per weight",
    );
}

/// Legend of the symbols that occur.
fn legend(svg: &mut Svg, data: &Frontier, at: Point, marks: &[Mark]) {
    let mut legend = Legend {
        svg,
        at,
        indent: 24.0,
        gap: 14.0,
        reach: 9.0,
    };
    if data.frontier.len() > 1 {
        let fitted = if data.fit.is_some() { " (fitted)" } else { "" };
        legend.line("q-curve", &format!("frontier, predicted{fitted}"));
    }
    for (ours, name) in [(true, "Quantier, "), (false, "llama.cpp preset, ")] {
        let mut name = name;
        for (measured, how) in [(true, "measured"), (false, "predicted")] {
            let symbol = symbol(ours, measured);
            if marks.iter().any(|mark| mark.symbol == symbol) {
                legend.symbol(symbol, &format!("{name}{how}"));
                name = "";
            }
        }
    }
}

/// Lines from each preset to the curve: the saving at its size.
fn draw_gaps(svg: &mut Svg, line: &[Point], marks: &[Mark], plot: &Plot) {
    for mark in marks.iter().filter(|mark| !mark.symbol.ours) {
        let at = plot.place(mark);
        let Some(pair) = line
            .windows(2)
            .find(|pair| pair[0].x <= at.x && at.x <= pair[1].x)
        else {
            continue;
        };
        let part = (at.x - pair[0].x) / (pair[1].x - pair[0].x).max(f64::MIN_POSITIVE);
        let end = point(at.x, pair[0].y + part * (pair[1].y - pair[0].y));
        svg.line("q-gap", at, end);
    }
}
