//! Predicted against measured nats: how far the prediction can be trusted.

use super::axis::{Axis, drawable, tick};
use super::data::Frontier;
use super::labels::Labels;
use super::numbers::{nats, shorten};
use super::svg::{Anchor, Area, Place, Svg, text_width};

const SIZE: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const HEAD: f64 = 40.0;
const FOOT: f64 = 56.0;
const RADIUS: f64 = 5.0;
const NAME_SIZE: f64 = 12.5;
/// Bold letters are about this much wider.
const BOLD: f64 = 1.07;
/// The axes reach this much further than the points, as a factor.
const ROOM: f64 = 1.6;

/// Predicted and measured nats of a file or preset.
struct Mark {
    name: String,
    predicted: f64,
    measured: f64,
    ours: bool,
}

/// Our files, then the presets: those that were both predicted and measured.
fn marks(data: &Frontier) -> Vec<Mark> {
    let ours = data.files.iter().filter_map(|file| {
        let (name, measured) = (shorten(&file.label, 24), file.measured.as_ref()?.kld);
        Some(Mark {
            name,
            predicted: file.predicted,
            measured,
            ours: true,
        })
    });
    let theirs = data.presets.iter().filter_map(|preset| {
        let (name, measured) = (shorten(&preset.name, 20), preset.measured.as_ref()?.kld);
        Some(Mark {
            name,
            predicted: preset.predicted?,
            measured,
            ours: false,
        })
    });
    ours.chain(theirs)
        .filter(|mark| drawable(mark.predicted) && drawable(mark.measured))
        .collect()
}

/// The picture; none if fewer than two were measured.
pub fn fit_chart(data: &Frontier, place: Place) -> Option<String> {
    let marks = marks(data);
    if marks.len() < 2 {
        return None;
    }
    let values = || {
        marks
            .iter()
            .flat_map(|mark| [mark.predicted, mark.measured])
    };
    let low = values().min_by(f64::total_cmp)? / ROOM;
    let high = values().max_by(f64::total_cmp)? * ROOM;
    let label = format!(
        "Predicted and measured KL divergence of {}",
        shorten(&data.model.name, 80)
    );
    let mut svg = Svg::new(SIZE, SIZE, &label, place);
    let plot = Area {
        x0: LEFT,
        y0: HEAD,
        x1: SIZE - RIGHT,
        y1: SIZE - FOOT,
    };
    let x = Axis::new(true, (low, high), (plot.x0, plot.x1));
    let y = Axis::new(true, (low, high), (plot.y1, plot.y0));
    for value in x.ticks(48.0) {
        svg.line("q-grid", (x.at(value), plot.y0), (x.at(value), plot.y1));
        svg.text(
            "q-tick",
            (x.at(value), plot.y1 + 19.0),
            Anchor::Middle,
            &tick(value),
        );
        svg.line("q-grid", (plot.x0, y.at(value)), (plot.x1, y.at(value)));
        svg.text(
            "q-tick",
            (plot.x0 - 8.0, y.at(value) + 4.0),
            Anchor::End,
            &tick(value),
        );
    }
    svg.text(
        "q-note",
        ((plot.x0 + plot.x1) / 2.0, SIZE - 14.0),
        Anchor::Middle,
        "predicted nats (not fitted)",
    );
    svg.upright_text("q-note", (16.0, (plot.y0 + plot.y1) / 2.0), "measured nats");

    let mut labels = Labels::new(plot);
    let diagonal = [(plot.x0, plot.y1), (plot.x1, plot.y0)];
    svg.line("q-diagonal", diagonal[0], diagonal[1]);
    labels.curve(&diagonal);
    let fit = fit_line(data, &x, &y);
    if let Some(line) = fit {
        svg.line("q-fit", line[0], line[1]);
        labels.curve(&line);
    }
    legend(&mut svg, &marks, fit.is_some());

    let at = |mark: &Mark| (x.at(mark.predicted), y.at(mark.measured));
    marks
        .iter()
        .for_each(|mark| labels.block(Area::around(at(mark), RADIUS + 1.5)));
    let mut names = Vec::new();
    for mark in &marks {
        let favoured = if mark.ours { 0.7 } else { 3.8 };
        let letters = if mark.ours {
            BOLD * NAME_SIZE
        } else {
            NAME_SIZE
        };
        let Some(spot) = labels.place(at(mark), &mark.name, letters, favoured) else {
            continue;
        };
        if let Some(end) = spot.leader {
            svg.line("q-lead", at(mark), end);
        }
        names.push((mark, spot));
    }
    for mark in marks.iter().rev() {
        let tip = format!(
            "{}: {} predicted, {} measured",
            mark.name,
            nats(mark.predicted),
            nats(mark.measured)
        );
        shape(&mut svg, mark.ours, at(mark), &tip);
    }
    for (mark, spot) in names {
        let class = if mark.ours {
            "q-ours-name"
        } else {
            "q-theirs-name"
        };
        svg.text(class, spot.at, spot.anchor, &mark.name);
    }
    Some(svg.finish())
}

/// The part of the fitted line that is in the picture; it is straight, since both axes are
/// logarithmic.
fn fit_line(data: &Frontier, x: &Axis, y: &Axis) -> Option<[(f64, f64); 2]> {
    let fit = data
        .fit
        .filter(|fit| fit.scale > 0.0 && fit.exponent > 0.0)?;
    let (low, high) = x.ends();
    let back = |measured: f64| (measured / fit.scale).powf(1.0 / fit.exponent);
    let (from, to) = (low.max(back(low)), high.min(back(high)));
    (from < to).then(|| [from, to].map(|predicted| (x.at(predicted), y.at(fit.apply(predicted)))))
}

fn shape(svg: &mut Svg, ours: bool, at: (f64, f64), tip: &str) {
    match ours {
        true => svg.diamond("q-ours", at, RADIUS + 2.0, tip),
        false => svg.circle("q-theirs", at, RADIUS, tip),
    }
}

fn legend(svg: &mut Svg, marks: &[Mark], fitted: bool) {
    let (mut x, y) = (LEFT, 18.0);
    let mut entry = |svg: &mut Svg, draw: &dyn Fn(&mut Svg, (f64, f64)), text: &str| {
        draw(svg, (x + 8.0, y));
        svg.text("q-note", (x + 22.0, y + 4.0), Anchor::Start, text);
        x += 22.0 + text_width(text, NAME_SIZE) + 12.0;
    };
    for (ours, text) in [(true, "Quantier"), (false, "llama.cpp preset")] {
        if marks.iter().any(|mark| mark.ours == ours) {
            entry(svg, &|svg, at| shape(svg, ours, at, ""), text);
        }
    }
    entry(
        svg,
        &|svg, (x, y)| svg.line("q-diagonal", (x - 8.0, y), (x + 8.0, y)),
        "equal",
    );
    if fitted {
        entry(
            svg,
            &|svg, (x, y)| svg.line("q-fit", (x - 8.0, y), (x + 8.0, y)),
            "fit",
        );
    }
}
