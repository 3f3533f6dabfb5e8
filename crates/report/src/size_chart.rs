//! The main picture: nats against size; the frontier, our files, llama.cpp's presets.

use super::axis::{Axis, drawable, tick};
use super::data::Frontier;
use super::labels::Labels;
use super::numbers::{Unit, nats, percent, shorten, size};
use super::svg::{Anchor, Area, Place, Svg, text_width};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 28.0;
const PLOT_HEIGHT: f64 = 430.0;
/// Above the plot: bits per weight and the legend; the title too if the picture stands alone.
const HEAD: f64 = 78.0;
const TITLE: f64 = 58.0;
/// Below the plot: sizes.
const FOOT: f64 = 58.0;

/// Font size of names of points, as in the style sheet.
const NAME_SIZE: f64 = 12.5;
/// Bold letters are about this much wider.
const BOLD: f64 = 1.07;
const RADIUS: f64 = 5.0;
/// Largest sizes over smallest from which on the axis of sizes is logarithmic.
const LOG_FROM: f64 = 8.0;
/// The part of the frontier that is shown for its own sake; outside, only what surrounds files and
/// presets is.
const TELLING: (f64, f64) = (1e-3, 0.6);
/// Points of the curve nearer to each other than this are not drawn.
const CURVE_STEP: f64 = 1.5;

/// The source of a point's nats.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Measured,
    Predicted,
}

/// A file or preset on the chart.
struct Mark {
    name: String,
    tip: String,
    bytes: f64,
    nats: f64,
    source: Source,
    ours: bool,
}

/// Files first, then presets, each by size.
fn marks(data: &Frontier) -> Vec<Mark> {
    let tell = |name: &str, bytes: u64, bpw: f64, nats_: f64, how: &str| {
        format!(
            "{}: {} ({bpw:.2} bpw), {} nats {how}",
            shorten(name, 80),
            size(bytes),
            nats(nats_)
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
        let mut add = |name: String, nats: f64, source, how: &str| {
            let tip = tell(&file.name, file.bytes, file.bpw, nats, how);
            marks.push(Mark {
                name,
                tip,
                bytes: file.bytes as f64,
                nats,
                source,
                ours: true,
            });
        };
        let name = shorten(&file.label, 24);
        match &file.measured {
            Some(measured) => {
                add(String::new(), predicted, Source::Predicted, after);
                let same = measured.same_top.map_or(String::new(), |top| {
                    format!(", same top token {}", percent(top))
                });
                add(
                    name,
                    measured.kld,
                    Source::Measured,
                    &format!("measured{same}"),
                );
            }
            None => add(name, predicted, Source::Predicted, after),
        }
    }
    for preset in &data.presets {
        let predicted = preset
            .predicted
            .map(|p| (data.corrected(p), Source::Predicted, after));
        let measured = preset
            .measured
            .as_ref()
            .map(|m| (m.kld, Source::Measured, "measured"));
        let Some((nats, source, how)) = measured.or(predicted) else {
            continue;
        };
        let tip = tell(&preset.name, preset.bytes, preset.bpw, nats, how);
        let name = shorten(&preset.name, 20);
        marks.push(Mark {
            name,
            tip,
            bytes: preset.bytes as f64,
            nats,
            source,
            ours: false,
        });
    }
    marks.retain(|mark| drawable(mark.nats));
    marks
}

/// The fitted frontier, (bytes, nats), without points that a logarithmic axis cannot show.
fn curve(data: &Frontier) -> Vec<(f64, f64)> {
    let all = data
        .frontier
        .iter()
        .map(|point| (point.bytes as f64, data.corrected(point.nats)));
    all.filter(|(_, nats)| drawable(*nats)).collect()
}

/// Least and greatest of some values; none of none.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, x| match range {
        None => Some((x, x)),
        Some((low, high)) => Some((low.min(x), high.max(x))),
    })
}

/// The ranges of sizes and nats that are shown; none if there is nothing to show.
fn window(curve: &[(f64, f64)], marks: &[Mark]) -> Option<((f64, f64), (f64, f64))> {
    let telling = curve
        .iter()
        .filter(|(_, nats)| (TELLING.0..=TELLING.1).contains(nats))
        .map(|(bytes, _)| *bytes);
    let sizes = marks.iter().map(|mark| mark.bytes);
    let (low, high) = range(sizes.clone().chain(telling))
        .or_else(|| range(curve.iter().map(|(bytes, _)| *bytes)))?;
    let room = (0.04 * (high - low)).max(0.01 * high).max(1.0);
    let (low, high) = ((low - room).max(0.9 * low), high + room);
    // The curve may leave at the top, where predictions mean little, but not between the points.
    let top = marks.iter().map(|mark| mark.nats).fold(TELLING.1, f64::max) * 1.3;
    let shown = curve
        .iter()
        .filter(|(bytes, nats)| (low..=high).contains(bytes) && *nats <= top)
        .map(|(_, nats)| *nats);
    let (least, most) = range(marks.iter().map(|mark| mark.nats).chain(shown))
        .or_else(|| range(curve.iter().map(|(_, nats)| *nats)))?;
    Some(((low, high), (least / 1.4, most * 1.4)))
}

/// Bytes of the whole file for 0 bits per weight, and for each further bit.
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

/// The picture.
pub fn size_chart(data: &Frontier, place: Place) -> String {
    let top = HEAD + if place == Place::Alone { TITLE } else { 0.0 };
    let height = top + PLOT_HEIGHT + FOOT;
    let label = format!(
        "KL divergence of {} against file size",
        shorten(&data.model.name, 80)
    );
    let mut svg = Svg::new(WIDTH, height, &label, place);
    if place == Place::Alone {
        title(&mut svg, data);
    }
    let (curve, marks) = (curve(data), marks(data));
    let Some((sizes, divergences)) = window(&curve, &marks) else {
        svg.text(
            "q-note",
            (WIDTH / 2.0, height / 2.0),
            Anchor::Middle,
            "No divergence is known yet.",
        );
        return svg.finish();
    };
    let plot = Area {
        x0: LEFT,
        y0: top,
        x1: WIDTH - RIGHT,
        y1: top + PLOT_HEIGHT,
    };
    let x = Axis::new(
        sizes.0 >= 1.0 && sizes.1 / sizes.0 > LOG_FROM,
        sizes,
        (plot.x0, plot.x1),
    );
    let y = Axis::new(true, divergences, (plot.y1, plot.y0));
    axes(&mut svg, data, plot, &x, &y, sizes.1);
    legend(
        &mut svg,
        data,
        (if place == Place::Alone { 24.0 } else { LEFT }, top - 58.0),
        &marks,
    );

    let mut line: Vec<(f64, f64)> = Vec::new();
    for &(bytes, nats) in curve
        .iter()
        .filter(|(bytes, nats)| x.holds(*bytes) && y.holds(*nats))
    {
        let (px, py) = (x.at(bytes), y.at(nats));
        if line
            .last()
            .is_none_or(|(lx, ly)| (px - lx).hypot(py - ly) >= CURVE_STEP)
        {
            line.push((px, py));
        }
    }
    draw_gaps(&mut svg, &line, &marks, &x, &y);
    if line.len() > 1 {
        svg.polyline("q-curve", &line);
    }
    draw_marks(&mut svg, plot, &line, &marks, &x, &y);
    svg.finish()
}

fn title(svg: &mut Svg, data: &Frontier) {
    let name = shorten(&data.model.name, 60);
    svg.text(
        "q-title",
        (24.0, 34.0),
        Anchor::Start,
        &format!("{name}: quality at every size"),
    );
    let tokens = data
        .evaluation
        .as_ref()
        .map(|e| format!(", measured on {} tokens", super::numbers::count(e.tokens)));
    let note = format!(
        "Mean KL divergence from the {} model ({}){}. Lower is better.",
        super::numbers::type_name(&data.model.base_type),
        size(data.model.base_bytes),
        tokens.unwrap_or_default()
    );
    svg.text("q-note", (24.0, 55.0), Anchor::Start, &note);
}

fn axes(svg: &mut Svg, data: &Frontier, plot: Area, x: &Axis, y: &Axis, most: f64) {
    for nats in y.ticks(30.0) {
        let at = y.at(nats);
        svg.line("q-grid", (plot.x0, at), (plot.x1, at));
        svg.text(
            "q-tick",
            (plot.x0 - 8.0, at + 4.0),
            Anchor::End,
            &tick(nats),
        );
    }
    svg.upright_text(
        "q-note",
        (20.0, (plot.y0 + plot.y1) / 2.0),
        "mean KL divergence, nats per token (log)",
    );

    svg.line("q-axis", (plot.x0, plot.y1), (plot.x1, plot.y1));
    let unit = Unit::of(most as u64);
    let in_units = x.scaled(1.0 / unit.bytes(), 0.0);
    for value in in_units.ticks(64.0) {
        let at = in_units.at(value);
        svg.line("q-axis", (at, plot.y1), (at, plot.y1 + 5.0));
        svg.text("q-tick", (at, plot.y1 + 20.0), Anchor::Middle, &tick(value));
    }
    let middle = (plot.x0 + plot.x1) / 2.0;
    svg.text(
        "q-note",
        (middle, plot.y1 + 43.0),
        Anchor::Middle,
        &format!("file size, {}", unit.name()),
    );

    let Some((nothing, bit)) = bytes_per_bit(data) else {
        return;
    };
    svg.line("q-axis", (plot.x0, plot.y0), (plot.x1, plot.y0));
    for value in x.scaled(1.0 / bit, -nothing / bit).ticks(56.0) {
        let at = x.at(nothing + bit * value);
        svg.line("q-axis", (at, plot.y0), (at, plot.y0 - 5.0));
        svg.text("q-tick", (at, plot.y0 - 10.0), Anchor::Middle, &tick(value));
    }
    svg.text(
        "q-note",
        (plot.x1, plot.y0 - 28.0),
        Anchor::End,
        "bits per weight",
    );
}

/// What the shapes mean; only those that occur.
fn legend(svg: &mut Svg, data: &Frontier, (mut x, y): (f64, f64), marks: &[Mark]) {
    let mut entry = |svg: &mut Svg, draw: &dyn Fn(&mut Svg, (f64, f64)), text: &str| {
        draw(svg, (x + 8.0, y));
        svg.text("q-note", (x + 24.0, y + 4.0), Anchor::Start, text);
        x += 24.0 + text_width(text, NAME_SIZE) + 14.0;
    };
    if data.frontier.len() > 1 {
        let text = if data.fit.is_some() {
            "frontier, predicted (fitted)"
        } else {
            "frontier, predicted"
        };
        entry(
            svg,
            &|svg, (x, y)| svg.line("q-curve", (x - 9.0, y), (x + 9.0, y)),
            text,
        );
    }
    for (ours, name) in [(true, "Quantier"), (false, "llama.cpp preset")] {
        let mut named = false;
        for (source, how) in [
            (Source::Measured, "measured"),
            (Source::Predicted, "predicted"),
        ] {
            if marks
                .iter()
                .any(|mark| mark.ours == ours && mark.source == source)
            {
                let text = if named {
                    how.into()
                } else {
                    format!("{name}, {how}")
                };
                entry(svg, &|svg, at| shape(svg, ours, source, at, ""), &text);
                named = true;
            }
        }
    }
}

fn shape(svg: &mut Svg, ours: bool, source: Source, at: (f64, f64), tip: &str) {
    match (ours, source) {
        (true, Source::Measured) => svg.diamond("q-ours", at, RADIUS, tip),
        (true, Source::Predicted) => svg.diamond("q-ours-open", at, RADIUS + 2.5, tip),
        (false, Source::Measured) => svg.circle("q-theirs", at, RADIUS, tip),
        (false, Source::Predicted) => svg.circle("q-theirs-open", at, RADIUS - 0.75, tip),
    }
}

/// From each preset down (or up) to the curve: what the frontier saves at its size.
fn draw_gaps(svg: &mut Svg, line: &[(f64, f64)], marks: &[Mark], x: &Axis, y: &Axis) {
    for mark in marks.iter().filter(|mark| !mark.ours) {
        let at = (x.at(mark.bytes), y.at(mark.nats));
        let Some(pair) = line
            .windows(2)
            .find(|pair| pair[0].0 <= at.0 && at.0 <= pair[1].0)
        else {
            continue;
        };
        let part = (at.0 - pair[0].0) / (pair[1].0 - pair[0].0).max(f64::MIN_POSITIVE);
        svg.line(
            "q-gap",
            at,
            (at.0, pair[0].1 + part * (pair[1].1 - pair[0].1)),
        );
    }
}

/// Points and their names. Presets lie above the curve as a rule, and their names are best there;
/// ours below.
fn draw_marks(svg: &mut Svg, plot: Area, line: &[(f64, f64)], marks: &[Mark], x: &Axis, y: &Axis) {
    let mut labels = Labels::new(plot);
    labels.curve(line);
    let place = |mark: &Mark| (x.at(mark.bytes), y.at(mark.nats));
    for mark in marks {
        labels.block(Area::around(place(mark), RADIUS + 2.0));
    }
    let mut names = Vec::new();
    for mark in marks.iter().filter(|mark| !mark.name.is_empty()) {
        let favoured = if mark.ours { 2.5 } else { -0.65 };
        let letters = if mark.ours {
            BOLD * NAME_SIZE
        } else {
            NAME_SIZE
        };
        names.push((
            mark,
            labels.place(place(mark), &mark.name, letters, favoured),
        ));
    }
    for (mark, end) in names
        .iter()
        .filter_map(|(mark, spot)| Some((mark, spot.as_ref()?.leader?)))
    {
        svg.line("q-lead", place(mark), end);
    }
    // The measured ones last: they are smaller, and fill the predicted ones where both agree.
    for source in [Source::Predicted, Source::Measured] {
        for mark in marks.iter().rev().filter(|mark| mark.source == source) {
            shape(svg, mark.ours, mark.source, place(mark), &mark.tip);
        }
    }
    for (mark, spot) in names
        .iter()
        .filter_map(|(mark, spot)| Some((mark, spot.as_ref()?)))
    {
        let class = if mark.ours {
            "q-ours-name"
        } else {
            "q-theirs-name"
        };
        svg.text(class, spot.at, spot.anchor, &mark.name);
    }
}
