//! Where things go, so that no label covers another.

/// An upright rectangle, in pixels from the upper left corner of the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Area {
    /// With its middle here.
    pub fn around(x: f64, y: f64, width: f64, height: f64) -> Area {
        Area { left: x - width / 2.0, top: y - height / 2.0, width, height }
    }

    pub fn right(&self) -> f64 {
        self.left + self.width
    }

    pub fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Whether they have more than an edge in common.
    pub fn overlaps(&self, other: &Area) -> bool {
        self.left < other.right()
            && other.left < self.right()
            && self.top < other.bottom()
            && other.top < self.bottom()
    }

    pub fn contains(&self, other: &Area) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && other.right() <= self.right()
            && other.bottom() <= self.bottom()
    }

    /// The point of it that is nearest to another.
    pub fn nearest(&self, x: f64, y: f64) -> (f64, f64) {
        (x.clamp(self.left, self.right()), y.clamp(self.top, self.bottom()))
    }
}

/// Finds places for labels beside their points.
#[derive(Clone, Debug)]
pub struct Placer {
    within: Area,
    taken: Vec<Area>,
    /// Those of them that lines to other labels must not cross.
    labels: Vec<Area>,
}

/// A label that is farther from its point than this needs a line to it, in pixels.
const BESIDE: f64 = 16.0;

/// Where a label goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub area: Area,
    /// Where the line from the point ends, if the label needs one.
    pub leader: Option<(f64, f64)>,
}

/// How far a label may be from its point, in steps of [`STEP`].
const STEPS: u32 = 60;
/// Pixels between two distances that are tried.
const STEP: f64 = 6.0;
/// Directions that are tried at each distance, as (right, down).
const DIRECTIONS: [(f64, f64); 16] = [
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (0.7, -0.7),
    (-0.7, -0.7),
    (0.7, 0.7),
    (-0.7, 0.7),
    (0.9, -0.4),
    (-0.9, -0.4),
    (0.9, 0.4),
    (-0.9, 0.4),
    (0.4, -0.9),
    (-0.4, -0.9),
    (0.4, 0.9),
    (-0.4, 0.9),
];

impl Placer {
    /// Nothing is taken yet.
    pub fn new(within: Area) -> Placer {
        Placer { within, taken: Vec::new(), labels: Vec::new() }
    }

    /// Keeps labels off this place.
    pub fn take(&mut self, area: Area) {
        self.taken.push(area);
    }

    /// Keeps labels off a line.
    pub fn take_line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.taken.extend(along(from, to));
    }

    /// The nearest free place for a label of this size, which it takes, with the line to it; nothing where there is none.
    /// A line runs through another label only where no free place is without that.
    pub fn place(&mut self, x: f64, y: f64, width: f64, height: f64) -> Option<Place> {
        let candidates = (1..=STEPS).flat_map(|step| {
            let distance = STEP * f64::from(step) + 2.0;
            DIRECTIONS.into_iter().map(move |(right, down)| {
                let (right, down) = (right * (width / 2.0 + distance), down * (height / 2.0 + distance));
                Area::around(x + right, y + down, width, height)
            })
        });
        let places = candidates.map(|area| {
            let end = area.nearest(x, y);
            let far = (end.0 - x).hypot(end.1 - y) > BESIDE;
            Place { area, leader: far.then_some(end) }
        });
        let free: Vec<Place> = places.filter(|place| self.is_free(&place.area)).collect();
        let found = *free.iter().find(|place| !self.crosses((x, y), place)).or(free.first())?;
        self.take(found.area);
        self.labels.push(found.area);
        if let Some(end) = found.leader {
            self.take_line((x, y), end);
        }
        Some(found)
    }

    fn is_free(&self, area: &Area) -> bool {
        self.within.contains(area) && !self.taken.iter().any(|taken| taken.overlaps(area))
    }

    /// Whether the line from a point to its label runs through another label.
    fn crosses(&self, point: (f64, f64), place: &Place) -> bool {
        let mut line = place.leader.iter().flat_map(|&end| along(point, end));
        line.any(|piece| self.labels.iter().any(|label| label.overlaps(&piece)))
    }
}

/// Small areas that cover a line.
fn along(from: (f64, f64), to: (f64, f64)) -> impl Iterator<Item = Area> {
    let length = (to.0 - from.0).hypot(to.1 - from.1);
    let pieces = (length / 4.0).ceil().clamp(1.0, 1e4) as u32;
    (0..=pieces).map(move |piece| {
        let at = f64::from(piece) / f64::from(pieces);
        Area::around(from.0 + at * (to.0 - from.0), from.1 + at * (to.1 - from.1), 5.0, 5.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_that_share_an_edge_do_not_overlap() {
        let area = Area { left: 0.0, top: 0.0, width: 10.0, height: 10.0 };
        assert!(!area.overlaps(&Area { left: 10.0, ..area }));
        assert!(area.overlaps(&Area { left: 9.9, ..area }));
        assert!(!area.overlaps(&Area { top: -10.0, ..area }));
        assert!(area.contains(&area) && !area.contains(&Area { width: 10.1, ..area }));
        assert_eq!(area.nearest(20.0, 5.0), (10.0, 5.0));
    }

    #[test]
    fn labels_of_points_that_crowd_are_disjoint() {
        let within = Area { left: 0.0, top: 0.0, width: 600.0, height: 400.0 };
        let mut placer = Placer::new(within);
        placer.take_line((0.0, 400.0), (600.0, 0.0));
        let line: Vec<Area> = placer.taken.clone();
        let points =
            (0..9).map(|point| (300.0 + 9.0 * f64::from(point), 200.0 + 18.0 * f64::from(point % 3)));
        let places: Vec<Place> =
            points.map(|(x, y)| placer.place(x, y, 70.0, 16.0).expect("a place")).collect();
        for (number, one) in places.iter().enumerate() {
            assert!(within.contains(&one.area));
            assert!(!line.iter().any(|taken| taken.overlaps(&one.area)));
            assert!(places[..number].iter().all(|other| !one.area.overlaps(&other.area)), "{one:?}");
        }
        let far = places.iter().filter(|place| place.leader.is_some()).count();
        assert!(far > 0 && far < places.len(), "{far}");
    }

    #[test]
    fn lines_to_labels_go_around_other_labels() {
        let mut placer = Placer::new(Area { left: 0.0, top: 0.0, width: 600.0, height: 400.0 });
        let first = placer.place(300.0, 200.0, 70.0, 16.0).expect("a place");
        assert_eq!(first.leader, None);
        // Everything near is taken but by a label, and what is behind that label is the nearest that is free.
        placer.take(Area { left: 200.0, top: 100.0, width: 106.0, height: 200.0 });
        let second = placer.place(300.0, 200.0, 70.0, 16.0).expect("a place");
        let end = second.leader.expect("a line");
        assert!(along((300.0, 200.0), end).all(|piece| !piece.overlaps(&first.area)), "{second:?}");
    }

    #[test]
    fn a_label_that_does_not_fit_is_not_placed() {
        let mut placer = Placer::new(Area { left: 0.0, top: 0.0, width: 50.0, height: 50.0 });
        assert_eq!(placer.place(25.0, 25.0, 60.0, 10.0), None);
    }
}
