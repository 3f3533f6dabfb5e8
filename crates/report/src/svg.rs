//! SVG output: elements with escaped attributes and text, and estimated text widths.

use super::numbers::clean;
use std::fmt::Write;

/// Style rules for all charts; `$name` stands for a colour.
const STYLE: &str = include_str!("chart.css");

/// Colours of a chart on a light and on a dark page.
pub(super) const COLOURS: [(&str, &str, &str); 14] = [
    ("surface", "#ffffff", "#16191d"),
    ("ink", "#1b1f24", "#e8eaed"),
    ("muted", "#59636e", "#9aa4af"),
    ("grid", "#e4e7eb", "#2b3138"),
    ("axis", "#aab2bb", "#4c545d"),
    ("ours", "#0b62b0", "#62b0f5"),
    ("theirs", "#bf4f0f", "#f39a5e"),
    ("empty", "#eef0f2", "#22272d"),
    // Series of a line chart, told apart with colour vision deficiencies too (Okabe and Ito 2008).
    ("series0", "#0072b2", "#56b4e9"),
    ("series1", "#d55e00", "#f39a5e"),
    ("series2", "#009e73", "#3ccf9f"),
    ("series3", "#b5508c", "#e08fc0"),
    ("series4", "#8a6d00", "#e6c229"),
    ("series5", "#4b5563", "#b9c2cc"),
];

/// Destination of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A separate file, with its own style, title and light background, so that it looks the same
    /// on light and dark pages.
    Alone,
    /// The report, which supplies style sheet and headings.
    Page,
}

/// Style sheet of the charts: literal colours for [`Place::Alone`] (some renderers lack variables),
/// variables of the page for [`Place::Page`].
pub(super) fn style(place: Place) -> String {
    COLOURS
        .iter()
        .fold(STYLE.to_string(), |style, (name, light, _)| match place {
            Place::Alone => style.replace(&format!("${name}"), light),
            Place::Page => style.replace(&format!("${name}"), &format!("var(--{name})")),
        })
}

/// Escapes `&`, `<`, `>` and quotes; replaces control characters.
pub(super) fn escape(text: &str) -> String {
    clean(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A coordinate with at most one decimal.
pub(super) fn at(x: f64) -> String {
    let x = (x * 10.0).round() / 10.0;
    format!("{}", if x == 0.0 { 0.0 } else { x })
}

/// A point of a picture; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
}

/// A [`Point`].
pub(super) fn point(x: f64, y: f64) -> Point {
    Point { x, y }
}

/// Anchored end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A chart under construction.
pub(super) struct Svg(String);

impl Svg {
    /// Empty chart of this size, in its own units. `label` is for screen readers.
    pub(super) fn new(width: f64, height: f64, label: &str, place: Place) -> Svg {
        let (w, h) = (at(width), at(height));
        let mut svg = Svg(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" class="q-chart" role="img" aria-label="{}">"#,
            escape(label)
        ));
        if place == Place::Alone {
            let style = style(place);
            let _ = write!(svg.0, "\n<style>\n{style}</style>");
            let (w, h) = (at(width - 1.0), at(height - 1.0));
            svg.leaf(
                "rect",
                "q-card",
                &[
                    ("x", "0.5"),
                    ("y", "0.5"),
                    ("width", &w),
                    ("height", &h),
                    ("rx", "10"),
                ],
                "",
            );
        }
        svg
    }

    /// An element without children except an optional tooltip.
    pub(super) fn leaf(&mut self, name: &str, class: &str, attributes: &[(&str, &str)], tip: &str) {
        let _ = write!(self.0, "\n<{name} class=\"{class}\"");
        for (key, value) in attributes {
            let _ = write!(self.0, " {key}=\"{}\"", escape(value));
        }
        match tip.is_empty() {
            true => self.0.push_str("/>"),
            false => {
                let _ = write!(self.0, "><title>{}</title></{name}>", escape(tip));
            }
        }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: Point, to: Point) {
        self.leaf(
            "line",
            class,
            &[
                ("x1", &at(from.x)),
                ("y1", &at(from.y)),
                ("x2", &at(to.x)),
                ("y2", &at(to.y)),
            ],
            "",
        );
    }

    /// A polyline.
    pub(super) fn polyline(&mut self, class: &str, points: &[Point]) {
        let points: Vec<String> = points
            .iter()
            .map(|point| format!("{},{}", at(point.x), at(point.y)))
            .collect();
        self.leaf("polyline", class, &[("points", &points.join(" "))], "");
    }

    /// A circle with a tooltip.
    pub(super) fn circle(&mut self, class: &str, Point { x, y }: Point, r: f64, tip: &str) {
        self.leaf(
            "circle",
            class,
            &[("cx", &at(x)), ("cy", &at(y)), ("r", &at(r))],
            tip,
        );
    }

    /// A diamond with a tooltip.
    pub(super) fn diamond(&mut self, class: &str, Point { x, y }: Point, r: f64, tip: &str) {
        let d = format!(
            "M{} {}L{} {}L{} {}L{} {}Z",
            at(x),
            at(y - r),
            at(x + r),
            at(y),
            at(x),
            at(y + r),
            at(x - r),
            at(y)
        );
        self.leaf("path", class, &[("d", &d)], tip);
    }

    /// A rectangle with a tooltip; its class gives the colour if `fill` is none.
    pub(super) fn rect(&mut self, class: &str, area: Area, fill: Option<&str>, tip: &str) {
        let Area { x0, y0, x1, y1 } = area;
        let (x, y, w, h) = (at(x0), at(y0), at(x1 - x0), at(y1 - y0));
        let mut attributes = vec![
            ("x", x.as_str()),
            ("y", &y),
            ("width", &w),
            ("height", &h),
            ("rx", "2"),
        ];
        attributes.extend(fill.map(|fill| ("fill", fill)));
        self.leaf("rect", class, &attributes, tip);
    }

    /// A text; `y` is its baseline.
    pub(super) fn text(&mut self, class: &str, place: Point, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y, text) = (at(place.x), at(place.y), escape(text));
        let _ = write!(
            self.0,
            "\n<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>"
        );
    }

    /// A vertical text, reading upwards, centred at a point.
    pub(super) fn upright_text(&mut self, class: &str, place: Point, text: &str) {
        let (x, y, text) = (at(place.x), at(place.y), escape(text));
        let _ = write!(
            self.0,
            "\n<text class=\"{class}\" transform=\"translate({x} {y}) rotate(-90)\" text-anchor=\"middle\">{text}</text>"
        );
    }

    /// The complete SVG.
    pub(super) fn finish(mut self) -> String {
        self.0.push_str("\n</svg>\n");
        self.0
    }
}

/// A rectangle by its edges; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) x0: f64,
    pub(super) y0: f64,
    pub(super) x1: f64,
    pub(super) y1: f64,
}

impl Area {
    /// A square around a point.
    pub(super) fn around(Point { x, y }: Point, r: f64) -> Area {
        Area {
            x0: x - r,
            y0: y - r,
            x1: x + r,
            y1: y + r,
        }
    }

    pub(super) fn middle(&self) -> Point {
        point((self.x0 + self.x1) / 2.0, (self.y0 + self.y1) / 2.0)
    }

    pub(super) fn overlaps(&self, other: &Area) -> bool {
        self.x0 < other.x1 && other.x0 < self.x1 && self.y0 < other.y1 && other.y0 < self.y1
    }

    pub(super) fn holds(&self, inner: &Area) -> bool {
        self.x0 <= inner.x0 && self.y0 <= inner.y0 && inner.x1 <= self.x1 && inner.y1 <= self.y1
    }

    /// True if a line segment intersects the area.
    pub(super) fn meets(&self, a: Point, b: Point) -> bool {
        // The part of the segment inside the edges checked so far, as fractions of its length.
        let (mut from, mut to) = (0.0_f64, 1.0_f64);
        for (start, step, low, high) in [
            (a.x, b.x - a.x, self.x0, self.x1),
            (a.y, b.y - a.y, self.y0, self.y1),
        ] {
            if step == 0.0 {
                if start < low || start > high {
                    return false;
                }
                continue;
            }
            let (s, t) = ((low - start) / step, (high - start) / step);
            (from, to) = (from.max(s.min(t)), to.min(s.max(t)));
        }
        from <= to
    }
}

/// Estimated width of a text in a sans-serif font of this size, rather too wide than too narrow.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' | '(' | ')' => 0.33,
        'f' | 'r' | 't' | '-' | '/' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.92,
        'A'..='Z' => 0.7,
        ' '..='~' => 0.58,
        _ if (c as u32) < 0x1100 => 0.68,
        _ => 1.05,
    };
    text.chars().map(em).sum::<f64>() * size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        assert_eq!(escape("<b>&'\"\u{1}"), "&lt;b&gt;&amp;&#39;&quot;\u{fffd}");
        let mut svg = Svg::new(10.0, 10.0, "\"><script>", Place::Page);
        svg.leaf("rect", "q", &[("fill", "\"/><script>")], "</title><script>");
        svg.text("q", point(0.0, 0.0), Anchor::Start, "</text><script>");
        assert!(!svg.finish().contains("<script"));
    }

    #[test]
    fn lines_intersect_areas() {
        let area = Area {
            x0: 1.0,
            y0: 1.0,
            x1: 3.0,
            y1: 2.0,
        };
        assert!(area.meets(point(0.0, 0.0), point(4.0, 3.0)));
        assert!(area.meets(point(2.0, 1.5), point(2.0, 9.0)));
        assert!(area.meets(point(2.0, 0.0), point(2.0, 9.0)));
        assert!(!area.meets(point(0.0, 0.0), point(0.9, 9.0)));
        assert!(!area.meets(point(0.0, 2.5), point(9.0, 2.5)));
        assert!(!area.meets(point(0.0, 1.5), point(0.5, 1.5)));
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(
            (at(1.04), at(-0.01), at(2.35)),
            ("1".into(), "0".into(), "2.4".into())
        );
    }

    #[test]
    fn every_colour_is_named_in_the_style() {
        assert!(!style(Place::Alone).contains(['$']) && !style(Place::Page).contains('$'));
        assert!(!style(Place::Alone).contains("var("));
    }
}
