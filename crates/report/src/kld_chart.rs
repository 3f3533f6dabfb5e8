//! Chart of `kld`: the distribution of the divergence over tokens, and its mean by position in the context.

use super::axis::{Axis, drawable, tick};
use super::numbers::{nats, shorten};
use super::plot::Plot;
use super::svg::{Anchor, Area, Place, Point, Svg, point};
use std::ops::RangeInclusive;

const WIDTH: f64 = 1040.0;
const PLOT_HEIGHT: f64 = 330.0;
/// Height above the plots, for title and legend.
const HEAD: f64 = 74.0;
/// Height of a line of the legend.
const LINE: f64 = 20.0;
/// Height below the plots.
const FOOT: f64 = 56.0;
/// Left and right end of the two plots.
const PLOTS: [[f64; 2]; 2] = [[74.0, 520.0], [614.0, 1016.0]];
/// Colours of series, by class: `q-series-0` and so on. Further series begin anew, dashed.
const SERIES: usize = 6;
/// Extension of the axes beyond the values, as a factor.
const ROOM: f64 = 1.25;
/// The distribution is drawn down to this divergence: less is numerical noise.
const LEAST: f64 = 1e-7;

/// A point of the distribution over tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exceedance {
    /// Fraction of the tokens with at least this divergence.
    pub share: f64,
    /// The divergence, in nats.
    pub kld: f64,
}

/// Mean divergence of a range of positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// The middle of the range.
    pub position: f64,
    /// The mean, in nats.
    pub kld: f64,
    /// Its standard error.
    pub uncertainty: Option<f64>,
}

/// A model compared with the base.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Mean divergence, in nats.
    pub mean: f64,
    /// The distribution, from the largest divergence down.
    pub distribution: Vec<Exceedance>,
    /// Means by position.
    pub positions: Vec<Bin>,
}

/// Smallest and largest drawable value, with room.
fn range(values: impl Iterator<Item = f64>) -> Option<RangeInclusive<f64>> {
    let values = values.filter(|value| drawable(*value));
    let both = values
        .map(|x| x..=x)
        .reduce(|a, b| a.start().min(*b.start())..=a.end().max(*b.end()))?;
    Some(both.start() / ROOM..=both.end() * ROOM)
}

fn area(plot: usize, top: f64) -> Area {
    let [x0, x1] = PLOTS[plot];
    Area {
        x0,
        y0: top,
        x1,
        y1: top + PLOT_HEIGHT,
    }
}

fn class(series: usize) -> String {
    let dashed = if series >= SERIES { " q-dashed" } else { "" };
    format!("q-series q-series-{}{dashed}", series % SERIES)
}

/// The chart as SVG; `title` names the base and the text.
pub fn kld_chart(title: &str, series: &[Series], place: Place) -> String {
    let top = HEAD + LINE * series.len().div_ceil(2) as f64;
    let height = top + PLOT_HEIGHT + FOOT;
    let mut svg = Svg::new(WIDTH, height, title, place);
    let at = point(24.0, 34.0);
    svg.text("q-title", at, Anchor::Start, &shorten(title, 90));
    legend(&mut svg, series);
    distribution(&mut svg, series, area(0, top));
    positions(&mut svg, series, area(1, top));
    svg.finish()
}

/// Two columns of names with their means.
fn legend(svg: &mut Svg, series: &[Series]) {
    for (i, one) in series.iter().enumerate() {
        let x = if i % 2 == 0 { 24.0 } else { WIDTH / 2.0 };
        let y = 58.0 + LINE * (i / 2) as f64;
        svg.line(&class(i), point(x, y - 4.0), point(x + 22.0, y - 4.0));
        let text = format!("{}: mean {} nats", shorten(&one.name, 50), nats(one.mean));
        svg.text("q-note", point(x + 30.0, y), Anchor::Start, &text);
    }
}

fn empty(svg: &mut Svg, area: Area) {
    let text = "No divergence above 0.";
    svg.text("q-note", area.middle(), Anchor::Middle, text);
}

/// Axes with ticks and names; `names` are those of x and y.
fn axes(svg: &mut Svg, plot: &Plot, names: [&str; 2], x_label: impl Fn(f64) -> String) {
    let Area { x0, y0, x1, y1 } = plot.area;
    for value in plot.y.ticks(30.0) {
        plot.y_tick(svg, value);
    }
    for value in plot.x.ticks(58.0) {
        let x = plot.x.at(value);
        svg.line("q-grid", point(x, y0), point(x, y1));
        svg.text(
            "q-tick",
            point(x, y1 + 19.0),
            Anchor::Middle,
            &x_label(value),
        );
    }
    svg.line("q-axis", point(x0, y1), point(x1, y1));
    let Point { x, y } = plot.area.middle();
    svg.text("q-note", point(x, y1 + 42.0), Anchor::Middle, names[0]);
    svg.upright_text("q-note", point(x0 - 52.0, y), names[1]);
}

fn distribution(svg: &mut Svg, series: &[Series], area: Area) {
    let points = || series.iter().flat_map(|one| &one.distribution);
    let klds = points().map(|point| point.kld).filter(|kld| *kld >= LEAST);
    let shares = points().map(|point| point.share);
    let (Some(klds), Some(shares)) = (range(klds), shares.reduce(f64::min)) else {
        return empty(svg, area);
    };
    let plot = Plot {
        area,
        x: Axis::new(true, klds, area.x0, area.x1),
        y: Axis::new(true, shares / ROOM..=1.0, area.y1, area.y0),
    };
    let names = [
        "KL divergence of a token, nats (log)",
        "share of the tokens at or above (log)",
    ];
    axes(svg, &plot, names, tick);
    for (i, one) in series.iter().enumerate() {
        let shown = one.distribution.iter();
        let shown = shown.filter(|point| plot.x.holds(point.kld));
        let line: Vec<Point> = shown.map(|p| plot.at(p.kld, p.share)).collect();
        if line.len() > 1 {
            svg.polyline(&class(i), &line);
        }
    }
}

fn positions(svg: &mut Svg, series: &[Series], area: Area) {
    let bins = || series.iter().flat_map(|one| &one.positions);
    let ends = |bin: &Bin| {
        let error = bin.uncertainty.unwrap_or(0.0);
        [bin.kld - error, bin.kld, bin.kld + error]
    };
    let klds = range(bins().flat_map(ends).filter(|kld| *kld >= LEAST));
    let places = bins().map(|bin| bin.position..=bin.position);
    let places = places.reduce(|a, b| a.start().min(*b.start())..=a.end().max(*b.end()));
    let (Some(klds), Some(places)) = (klds, places) else {
        return empty(svg, area);
    };
    let room = ((places.end() - places.start()) * 0.04).max(1.0);
    let plot = Plot {
        area,
        x: Axis::new(
            false,
            places.start() - room..=places.end() + room,
            area.x0,
            area.x1,
        ),
        y: Axis::new(true, klds, area.y1, area.y0),
    };
    let names = [
        "position in the context, tokens",
        "mean KL divergence, nats (log)",
    ];
    axes(svg, &plot, names, tick);
    for (i, one) in series.iter().enumerate() {
        let drawn = one.positions.iter().filter(|bin| plot.y.holds(bin.kld));
        let line: Vec<Point> = drawn
            .clone()
            .map(|bin| plot.at(bin.position, bin.kld))
            .collect();
        if line.len() > 1 {
            svg.polyline(&class(i), &line);
        }
        for bin in drawn {
            let [low, _, high] = ends(bin).map(|kld| kld.clamp(plot.y.low, plot.y.high));
            let from = plot.at(bin.position, low);
            svg.line(&class(i), from, plot.at(bin.position, high));
            let tip = format!(
                "{}: {} nats at position {}",
                shorten(&one.name, 50),
                nats(bin.kld),
                bin.position.round()
            );
            let class = format!("q-dot-{}", i % SERIES);
            svg.circle(&class, plot.at(bin.position, bin.kld), 3.5, &tip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, mean: f64) -> Series {
        let share = |i: u32| Exceedance {
            share: 2_f64.powi(i as i32 - 9),
            kld: mean * 4_f64.powi(4 - i as i32),
        };
        let bin = |i: u32| Bin {
            position: 256.0 + 32.0 * f64::from(i),
            kld: mean * (1.0 + 0.1 * f64::from(i % 3)),
            uncertainty: (i > 0).then_some(mean * 0.2),
        };
        Series {
            name: name.into(),
            mean,
            distribution: (0..10).map(share).collect(),
            positions: (0..8).map(bin).collect(),
        }
    }

    #[test]
    fn every_series_is_drawn_twice_with_its_name() {
        let all: Vec<Series> = (0..8)
            .map(|i| series(&format!("<q{i}>.gguf"), 0.01 * f64::from(i + 1)))
            .collect();
        let chart = kld_chart("KL divergence from <base>", &all, Place::Alone);
        assert_eq!(chart.matches("<polyline").count(), 16, "{chart}");
        assert_eq!(chart.matches("<circle").count(), 64);
        assert!(chart.contains("&lt;q7&gt;.gguf: mean 0.0800 nats"));
        assert!(!chart.contains("NaN") && !chart.contains("inf"));
    }

    #[test]
    fn divergences_of_0_leave_the_plots_empty() {
        let none = Series {
            distribution: vec![Exceedance {
                share: 1.0,
                kld: 0.0,
            }],
            positions: vec![Bin {
                position: 3.0,
                kld: 0.0,
                uncertainty: None,
            }],
            ..series("same.gguf", 0.0)
        };
        let chart = kld_chart("itself", &[none], Place::Alone);
        assert_eq!(chart.matches("No divergence above 0.").count(), 2);
        assert!(!chart.contains("NaN"));
    }
}
