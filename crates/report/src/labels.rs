//! Placement of point labels without overlaps with other labels, points or curves.
//!
//! Greedy: each label in turn takes the cheapest of a fixed set of positions around its point. A
//! position costs its distance, its deviation from the preferred direction, and every curve that it
//! covers. It must not overlap another label or a point, nor leave the picture. A label without a
//! position is omitted; its point still has a tooltip.

use super::svg::{Anchor, Area, Point, point, text_width};
use std::f64::consts::TAU;

/// Candidate distances from the point.
const DISTANCES: [f64; 7] = [8.0, 13.0, 20.0, 30.0, 42.0, 58.0, 78.0];
/// Number of candidate directions.
const DIRECTIONS: u32 = 16;
/// Distance from which a leader line connects point and label.
const LEADER_FROM: f64 = 14.0;
/// Margins between labels, horizontal and vertical.
const MARGIN: (f64, f64) = (5.0, 1.0);
/// Cost of covering a curve, in units of distance.
const LINE_COST: f64 = 35.0;
/// Cost of deviating from the preferred direction, in units of distance.
const TURN_COST: f64 = 14.0;

/// Position of a label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spot {
    /// Left or right end of the baseline, depending on the anchor.
    pub(super) at: Point,
    pub(super) anchor: Anchor,
    /// End of the leader line, if needed.
    pub(super) leader: Option<Point>,
}

/// Occupied areas of the picture.
pub(super) struct Labels {
    bounds: Area,
    taken: Vec<Area>,
    lines: Vec<[Point; 2]>,
}

impl Labels {
    /// An empty picture.
    pub(super) fn new(bounds: Area) -> Labels {
        Labels {
            bounds,
            taken: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Adds a curve that labels should avoid.
    pub(super) fn curve(&mut self, points: &[Point]) {
        self.lines
            .extend(points.windows(2).map(|pair| [pair[0], pair[1]]));
    }

    /// Adds an area that labels must not overlap.
    pub(super) fn block(&mut self, area: Area) {
        self.taken.push(area);
    }

    /// Finds a position for a label of this font size beside a point, as near to `favoured`
    /// (radians, clockwise from the right) as possible.
    pub(super) fn place(
        &mut self,
        point: Point,
        text: &str,
        size: f64,
        favoured: f64,
    ) -> Option<Spot> {
        let (width, height) = (text_width(text, size), size);
        let mut best: Option<(f64, Spot, Area)> = None;
        for distance in DISTANCES {
            for direction in 0..DIRECTIONS {
                let angle = favoured + TAU * f64::from(direction) / f64::from(DIRECTIONS);
                let turn = direction.min(DIRECTIONS - direction);
                let cost = distance + TURN_COST * f64::from(turn) / f64::from(DIRECTIONS / 2);
                if best.as_ref().is_some_and(|(least, ..)| *least <= cost) {
                    continue;
                }
                let (area, edge) = beside(point, angle, distance, width, height);
                let leader = (distance >= LEADER_FROM).then_some(edge);
                if !self.is_free(point, &area, leader) {
                    continue;
                }
                let crossed = self
                    .lines
                    .iter()
                    .filter(|[a, b]| area.meets(*a, *b))
                    .count()
                    .min(2);
                let cost = cost + LINE_COST * crossed as f64;
                if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                    best = Some((cost, spot(&area, point, height, leader), area));
                }
            }
        }
        let (_, spot, area) = best?;
        let Area { x0, y0, x1, y1 } = area;
        self.taken.push(Area {
            x0: x0 - MARGIN.0,
            y0: y0 - MARGIN.1,
            x1: x1 + MARGIN.0,
            y1: y1 + MARGIN.1,
        });
        if let Some(end) = spot.leader {
            self.lines.push([point, end]);
        }
        Some(spot)
    }

    /// True if a label's area is free and its leader crosses nothing.
    fn is_free(&self, point: Point, area: &Area, leader: Option<Point>) -> bool {
        let own = |taken: &&Area| !taken.holds(&Area::around(point, 0.0));
        self.bounds.holds(area)
            && !self.taken.iter().any(|taken| taken.overlaps(area))
            && leader.is_none_or(|end| {
                !self
                    .taken
                    .iter()
                    .filter(own)
                    .any(|taken| taken.meets(point, end))
            })
    }
}

/// Area of a label at a distance and direction from a point, and the nearest point of its edge.
fn beside(
    Point { x, y }: Point,
    angle: f64,
    distance: f64,
    width: f64,
    height: f64,
) -> (Area, Point) {
    let (sin, cos) = angle.sin_cos();
    let edge = point(x + distance * cos, y + distance * sin);
    // The label is attached by the side that faces the point; straight above or below, by its
    // middle.
    let x0 = edge.x - width * (1.0 - cos.clamp(-0.5, 0.5) * 2.0) / 2.0;
    let y0 = edge.y - height * (1.0 - sin.clamp(-0.5, 0.5) * 2.0) / 2.0;
    (
        Area {
            x0,
            y0,
            x1: x0 + width,
            y1: y0 + height,
        },
        edge,
    )
}

/// Start or end of the text, anchored at the side near the point, as its width is an estimate.
fn spot(area: &Area, beside: Point, height: f64, leader: Option<Point>) -> Spot {
    let baseline = area.y1 - 0.18 * height;
    let (x, anchor) = match beside.x {
        x if area.x0 >= x => (area.x0, Anchor::Start),
        x if area.x1 <= x => (area.x1, Anchor::End),
        _ => (area.middle().x, Anchor::Middle),
    };
    Spot {
        at: point(x, baseline),
        anchor,
        leader,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two hundred crowded points: placed labels overlap neither each other nor points.
    #[test]
    fn labels_never_overlap() {
        let bounds = Area {
            x0: 0.0,
            y0: 0.0,
            x1: 400.0,
            y1: 300.0,
        };
        let mut labels = Labels::new(bounds);
        let points: Vec<Point> = (0..200_u32)
            .map(|i| point(f64::from(i * 37 % 390) + 5.0, f64::from(i * 91 % 290) + 5.0))
            .collect();
        for &point in &points {
            labels.block(Area::around(point, 5.0));
        }
        labels.curve(&[point(0.0, 0.0), point(400.0, 300.0)]);
        let before = labels.taken.len();
        let named = points
            .iter()
            .filter(|&&point| labels.place(point, "Q4_K_M", 11.0, -0.8).is_some())
            .count();
        let names = &labels.taken[before..];
        assert!(named >= 20 && names.len() == named, "{named}");
        for (i, name) in names.iter().enumerate() {
            let inner = Area {
                x0: name.x0 + MARGIN.0,
                y0: name.y0 + MARGIN.1,
                x1: name.x1 - MARGIN.0,
                y1: name.y1 - MARGIN.1,
            };
            assert!(bounds.holds(&inner));
            assert!(
                points
                    .iter()
                    .all(|&point| !Area::around(point, 5.0).overlaps(&inner))
            );
            assert!(names[..i].iter().all(|other| !other.overlaps(&inner)));
        }
    }

    #[test]
    fn single_labels_take_the_preferred_direction() {
        let mut labels = Labels::new(Area {
            x0: 0.0,
            y0: 0.0,
            x1: 100.0,
            y1: 100.0,
        });
        let spot = labels.place(point(50.0, 50.0), "A", 10.0, 0.0).unwrap();
        assert_eq!((spot.anchor, spot.leader), (Anchor::Start, None));
        assert!((spot.at.x - 58.0).abs() < 1e-9);
    }
}
