//! Common parts of the point charts: marks with labels, ticks, legend.

use super::axis::{Axis, tick};
use super::labels::Labels;
use super::svg::{Anchor, Area, Point, Svg, point, text_width};

/// Radius of a mark.
pub(super) const RADIUS: f64 = 5.0;
/// Font size of labels, as in the style sheet.
const NAME_SIZE: f64 = 12.5;
/// Approximate relative width of bold letters.
const BOLD: f64 = 1.07;

/// The symbol of a mark: a diamond for our files, a circle for presets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Symbol {
    pub(super) ours: bool,
    /// Open for predictions, filled for measurements.
    pub(super) open: bool,
    pub(super) radius: f64,
}

impl Symbol {
    fn draw(self, svg: &mut Svg, at: Point, tip: &str) {
        match (self.ours, self.open) {
            (true, false) => svg.diamond("q-ours", at, self.radius, tip),
            (true, true) => svg.diamond("q-ours-open", at, self.radius, tip),
            (false, false) => svg.circle("q-theirs", at, self.radius, tip),
            (false, true) => svg.circle("q-theirs-open", at, self.radius, tip),
        }
    }
}

/// A file or preset on a chart.
pub(super) struct Mark {
    /// Empty for an unlabelled mark.
    pub(super) name: String,
    pub(super) tip: String,
    /// Coordinates in units of the axes.
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) symbol: Symbol,
    /// Preferred direction of the label, in radians clockwise from the right.
    pub(super) favoured: f64,
}

/// Area and axes of a chart.
pub(super) struct Plot {
    pub(super) area: Area,
    pub(super) x: Axis,
    pub(super) y: Axis,
}

impl Plot {
    /// Position of a pair of values.
    pub(super) fn at(&self, x: f64, y: f64) -> Point {
        point(self.x.at(x), self.y.at(y))
    }

    /// Position of a mark.
    pub(super) fn place(&self, mark: &Mark) -> Point {
        self.at(mark.x, mark.y)
    }

    /// A tick of the y axis with its grid line.
    pub(super) fn y_tick(&self, svg: &mut Svg, value: f64) {
        let (Area { x0, x1, .. }, y) = (self.area, self.y.at(value));
        svg.line("q-grid", point(x0, y), point(x1, y));
        let at = point(x0 - 8.0, y + 4.0);
        svg.text("q-tick", at, Anchor::End, &tick(value));
    }

    /// Draws marks with labels. No label is nearer than `room` to the centre of a mark.
    pub(super) fn draw_marks(&self, svg: &mut Svg, marks: &[Mark], mut labels: Labels, room: f64) {
        for mark in marks {
            labels.block(Area::around(self.place(mark), room));
        }
        let mut names = Vec::new();
        for mark in marks.iter().filter(|mark| !mark.name.is_empty()) {
            let (at, bold) = (self.place(mark), if mark.symbol.ours { BOLD } else { 1.0 });
            let spot = labels.place(at, &mark.name, bold * NAME_SIZE, mark.favoured);
            let Some(spot) = spot else { continue };
            if let Some(end) = spot.leader {
                svg.line("q-lead", at, end);
            }
            names.push((mark, spot));
        }
        // Filled marks last: they are smaller, and fill the open ones where both agree.
        for open in [true, false] {
            for mark in marks.iter().rev().filter(|mark| mark.symbol.open == open) {
                mark.symbol.draw(svg, self.place(mark), &mark.tip);
            }
        }
        for (mark, spot) in names {
            let class = match mark.symbol.ours {
                true => "q-ours-name",
                false => "q-theirs-name",
            };
            svg.text(class, spot.at, spot.anchor, &mark.name);
        }
    }
}

/// Legend of a chart, from left to right.
pub(super) struct Legend<'a> {
    pub(super) svg: &'a mut Svg,
    /// Left end of the next entry.
    pub(super) at: Point,
    /// Distance from the left end of an entry to its text.
    pub(super) indent: f64,
    /// Gap between entries.
    pub(super) gap: f64,
    /// Half the length of a line sample.
    pub(super) reach: f64,
}

impl Legend<'_> {
    /// An entry for marks.
    pub(super) fn symbol(&mut self, symbol: Symbol, text: &str) {
        symbol.draw(self.svg, self.key(), "");
        self.text(text);
    }

    /// An entry for a line.
    pub(super) fn line(&mut self, class: &str, text: &str) {
        let Point { x, y } = self.key();
        let ends = [x - self.reach, x + self.reach].map(|x| point(x, y));
        self.svg.line(class, ends[0], ends[1]);
        self.text(text);
    }

    /// Centre of the next entry's symbol.
    fn key(&self) -> Point {
        point(self.at.x + 8.0, self.at.y)
    }

    fn text(&mut self, text: &str) {
        let at = point(self.at.x + self.indent, self.at.y + 4.0);
        self.svg.text("q-note", at, Anchor::Start, text);
        self.at.x += self.indent + text_width(text, NAME_SIZE) + self.gap;
    }
}
