//! Where the names of points go, so that none hides another, a point or a curve.
//!
//! Greedy: one name after the other takes the cheapest of a fixed set of places around its point. A
//! place costs its distance, how far its direction is from the favoured one, and every line that it
//! lies on. It may not lie on another name or on a point, nor leave the picture. A name without a
//! place is left out; its point still has a tooltip.

use super::svg::{Anchor, Area, Point, point, text_width};
use std::f64::consts::TAU;

/// Distances from the point that are tried.
const DISTANCES: [f64; 7] = [8.0, 13.0, 20.0, 30.0, 42.0, 58.0, 78.0];
/// Directions that are tried.
const DIRECTIONS: u32 = 16;
/// From this distance on, a line leads from the point to its name.
const LEADER_FROM: f64 = 14.0;
/// Room between names, sideways and up and down.
const MARGIN: (f64, f64) = (5.0, 1.0);
/// What lying on a line costs, in units of distance.
const LINE_COST: f64 = 35.0;
/// What pointing away from the favoured direction costs, in units of distance.
const TURN_COST: f64 = 14.0;

/// Where a name stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spot {
    /// Left or right end of the baseline, as the anchor says.
    pub(super) at: Point,
    pub(super) anchor: Anchor,
    /// End of the line that leads from the point to the name, if it needs one.
    pub(super) leader: Option<Point>,
}

/// What is on the picture so far.
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

    /// A curve that names should not lie on.
    pub(super) fn curve(&mut self, points: &[Point]) {
        self.lines
            .extend(points.windows(2).map(|pair| [pair[0], pair[1]]));
    }

    /// An area that names must not lie on.
    pub(super) fn block(&mut self, area: Area) {
        self.taken.push(area);
    }

    /// A place for a name of this font size beside a point, as near to `favoured` (radians,
    /// clockwise from the right) as can be.
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

    /// Whether a name may stand there, and its leader cross nothing that is taken.
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

/// The area of a name at a distance and direction from a point, and the point of its edge that is
/// nearest.
fn beside(
    Point { x, y }: Point,
    angle: f64,
    distance: f64,
    width: f64,
    height: f64,
) -> (Area, Point) {
    let (sin, cos) = angle.sin_cos();
    let edge = point(x + distance * cos, y + distance * sin);
    // The name hangs on that point by the side that faces the point; straight above or below, by
    // its middle.
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

/// Where the text starts or ends. It is anchored at the side near the point, since its width is a
/// guess.
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

    /// Two hundred points in a heap: whatever gets a name, no two overlap and none lies on a point.
    #[test]
    fn names_never_overlap() {
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
    fn a_lone_name_stands_where_it_likes_best() {
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
