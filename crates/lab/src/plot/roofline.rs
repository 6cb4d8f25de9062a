//! The roofline: how fast operations ran, by how many of them there are for each byte.

use super::axis::{Axis, Ruler, Scale};
use super::canvas::{Anchor, Canvas, Picture, Stroke, Style, line_height};
use super::layout::{Area, Place, Placer};
use super::lines::{Side, draw_frame};
use super::{PlotError, theme};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 620.0;

/// Operations under the ceilings of a machine, after Williams, Waterman and Patterson (2009): what is left of the ridge is
/// limited by memory, what is right of it by arithmetic. Both axes are logarithmic.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// What is shown.
    pub title: String,
    /// Bytes per second that memory was measured to give.
    pub memory: f64,
    /// Operations per second that units were measured to carry out.
    pub multiply: Vec<Ceiling>,
    /// What was run.
    pub points: Vec<Point>,
}

/// How fast a unit multiplies.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceiling {
    /// The unit.
    pub name: String,
    /// Operations per second.
    pub rate: f64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Stands beside it.
    pub name: String,
    /// What it belongs to, such as prefill or decode: said in the legend, and shown by colour and mark.
    pub series: String,
    /// Operations for each byte that is read or written.
    pub intensity: f64,
    /// Operations per second.
    pub rate: f64,
}

impl Roofline {
    /// Draws it. Points that have no place on logarithmic axes are counted below the title.
    ///
    /// # Errors
    /// Where the font of this crate cannot be read.
    pub fn draw(&self) -> Result<Picture, PlotError> {
        let mut canvas = Canvas::new(WIDTH, HEIGHT)?;
        let shown: Vec<&Point> = self.points.iter().filter(|point| is_shown(point)).collect();
        let top = 4.0 * theme::SPACE + line_height(theme::TITLE) + 2.0 * line_height(theme::LETTERS);
        let (left, right) = (110.0, WIDTH - 2.0 * theme::SPACE);
        let bottom = HEIGHT - 2.5 * theme::SPACE - 2.0 * line_height(theme::LETTERS);
        let frame = Area { left, top, width: right - left, height: bottom - top };
        let across = self.across(&shown, frame);
        let up = self.up(&shown, &across, frame);
        let (bytes, rates) = (Axis::plain("operations for each byte", ""), Axis::prefixed("speed", "op/s"));
        draw_frame(
            &mut canvas,
            frame,
            Side { axis: &bytes, ruler: &across },
            Side { axis: &rates, ruler: &up },
        );
        let mut placer = Placer::new(frame);
        let roofs = self.draw_roofs(&mut canvas, &mut placer, &across, &up);
        let at = |point: &Point| (across.at(point.intensity), up.at(point.rate));
        for point in &shown {
            let (x, y) = at(point);
            placer.take(Area::around(x, y, 11.0, 11.0));
        }
        self.name_roofs(&mut canvas, &mut placer, roofs);
        let mut nameless = 0;
        for group in neighbours(&shown, at) {
            if !draw_names(&mut canvas, &mut placer, &group, at) {
                nameless += group.len();
            }
        }
        for point in &shown {
            let (x, y) = at(point);
            canvas.mark(x, y, self.series_of(point));
        }
        self.legend(&mut canvas, self.points.len() - shown.len(), nameless);
        Ok(canvas.finish(&self.title))
    }

    /// Holds the points and the ridges.
    fn across(&self, shown: &[&Point], frame: Area) -> Ruler {
        let ridges = self.multiply.iter().map(|ceiling| ceiling.rate / self.memory);
        let values = shown
            .iter()
            .map(|point| point.intensity)
            .chain(ridges.flat_map(|ridge| [ridge / 8.0, ridge * 4.0]));
        Ruler::new(Scale::Logarithmic, values, (frame.left, frame.right()))
    }

    /// Holds the points and the roofs.
    fn up(&self, shown: &[&Point], across: &Ruler, frame: Area) -> Ruler {
        let roofs = self.multiply.iter().map(|ceiling| ceiling.rate * 1.6);
        let foot = shown.iter().map(|point| point.rate).chain([across.values().0 * self.memory]);
        let foot = foot.filter(|&rate| Scale::Logarithmic.shows(rate));
        // The roof of memory may begin far below the points: that part says nothing.
        let least = shown.iter().map(|point| point.rate / 2.0).fold(f64::INFINITY, f64::min);
        let foot = foot.filter(|&rate| rate >= least);
        Ruler::new(Scale::Logarithmic, foot.chain(roofs), (frame.bottom(), frame.top))
    }

    /// Draws the roofs, keeps labels off them, and says where each wants its name.
    fn draw_roofs(
        &self,
        canvas: &mut Canvas,
        placer: &mut Placer,
        across: &Ruler,
        up: &Ruler,
    ) -> Vec<((f64, f64), String)> {
        let rates = Axis::prefixed("", "op/s");
        let bytes = Axis::prefixed("", "B/s");
        let (first, last) = across.values();
        let foot = up.values().0;
        let mut names = Vec::new();
        let highest = self.multiply.iter().map(|ceiling| ceiling.rate).fold(0.0, f64::max);
        let begin = first.max(foot / self.memory);
        let ridge = (highest / self.memory).clamp(begin, last);
        let slope = [(begin, begin * self.memory), (ridge, ridge * self.memory)];
        let mut roof = |points: [(f64, f64); 2]| {
            let [from, to] = points.map(|(x, y)| (across.at(x), up.at(y)));
            canvas.lines(&[from, to], ROOF);
            placer.take_line(from, to);
            (f64::midpoint(from.0, to.0), f64::midpoint(from.1, to.1))
        };
        if Scale::Logarithmic.shows(self.memory) && ridge > begin {
            names.push((roof(slope), format!("memory: {}", bytes.tick(self.memory))));
        }
        for ceiling in self.multiply.iter().filter(|ceiling| Scale::Logarithmic.shows(ceiling.rate)) {
            let ridge = (ceiling.rate / self.memory).clamp(first, last);
            let middle = roof([(ridge, ceiling.rate), (last, ceiling.rate)]);
            names.push((middle, format!("{}: {}", ceiling.name, rates.tick(ceiling.rate))));
        }
        names
    }

    /// Names the roofs, where there is room.
    fn name_roofs(&self, canvas: &mut Canvas, placer: &mut Placer, roofs: Vec<((f64, f64), String)>) {
        for ((x, y), name) in roofs {
            let width = canvas.text_width(&name, theme::LETTERS);
            if let Some(Place { area, .. }) = placer.place(x, y, width, line_height(theme::LETTERS)) {
                canvas.text(area.left, area.top + area.height / 2.0, &name, Anchor::Start, Style::FAINT);
            }
        }
    }

    /// Names of series, in the order in which they come.
    fn series(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for point in &self.points {
            if !names.contains(&point.series.as_str()) {
                names.push(&point.series);
            }
        }
        names
    }

    fn series_of(&self, point: &Point) -> usize {
        self.series().iter().position(|name| *name == point.series).unwrap_or(0)
    }

    fn legend(&self, canvas: &mut Canvas, unplaced: usize, nameless: usize) {
        let middle = theme::SPACE + line_height(theme::TITLE) / 2.0;
        let title = canvas.shortened(&self.title, 0.7 * WIDTH);
        canvas.text(theme::SPACE, middle, &title, Anchor::Start, Style::TITLE);
        let middle = middle + line_height(theme::TITLE) / 2.0 + 6.0 + line_height(theme::LETTERS) / 2.0;
        let mut left = theme::SPACE + 5.0;
        for (number, name) in self.series().iter().enumerate() {
            canvas.mark(left, middle, number);
            canvas.text(left + 11.0, middle, name, Anchor::Start, Style::PLAIN);
            left += 11.0 + canvas.text_width(name, theme::LETTERS) + 20.0;
        }
        let notes = [(unplaced, "without operations or bytes not shown"), (nameless, "not named")];
        let notes: Vec<String> = notes
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !notes.is_empty() {
            canvas.text(left, middle, &notes.join(", "), Anchor::Start, Style::FAINT);
        }
    }
}

/// The line of a ceiling.
const ROOF: Stroke = Stroke { colour: theme::INK, width: 2.0, dashes: "none" };
/// The line from a point to a name that is not beside it.
const LEADER: Stroke = Stroke { colour: theme::FAINT_INK, width: 0.8, dashes: "none" };

fn is_shown(point: &Point) -> bool {
    Scale::Logarithmic.shows(point.intensity) && Scale::Logarithmic.shows(point.rate)
}

/// Points of one series that are nearer to each other than this share a list of names, in pixels.
const NEAR: f64 = 18.0;

/// Groups of points that are near each other, the highest first in each.
fn neighbours<'a>(shown: &[&'a Point], at: impl Fn(&Point) -> (f64, f64)) -> Vec<Vec<&'a Point>> {
    let near = |one: &Point, other: &Point| {
        let ((x, y), (other_x, other_y)) = (at(one), at(other));
        one.series == other.series && (x - other_x).hypot(y - other_y) < NEAR
    };
    let mut groups: Vec<Vec<&Point>> = Vec::new();
    for &point in shown {
        let (mut joined, others): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.iter().any(|other| near(point, other)));
        joined.push(vec![point]);
        groups = others;
        groups.push(joined.concat());
    }
    for group in &mut groups {
        group.sort_by(|one, other| other.rate.total_cmp(&one.rate));
    }
    groups
}

/// Writes the names of a group beside it, one a line, if there is room.
#[must_use]
fn draw_names(
    canvas: &mut Canvas,
    placer: &mut Placer,
    group: &[&Point],
    at: impl Fn(&Point) -> (f64, f64),
) -> bool {
    let widths = group.iter().map(|point| canvas.text_width(&point.name, theme::LETTERS));
    let width = widths.fold(0.0, f64::max);
    let line = line_height(theme::LETTERS);
    let count = group.len() as f64;
    let (sum_x, sum_y) =
        group.iter().map(|point| at(point)).fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
    let middle = (sum_x / count, sum_y / count);
    let Some(Place { area, leader }) = placer.place(middle.0, middle.1, width, count * line) else {
        return false;
    };
    if let Some(end) = leader {
        canvas.lines(&[middle, end], LEADER);
    }
    // Names end at the points where they stand on their left.
    let (x, anchor) =
        if area.right() < middle.0 { (area.right(), Anchor::End) } else { (area.left, Anchor::Start) };
    for (number, point) in group.iter().enumerate() {
        canvas.text(x, area.top + (number as f64 + 0.5) * line, &point.name, anchor, Style::PLAIN);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::canvas::tests::is_legible;

    fn of_a_model() -> Roofline {
        let names =
            ["embedding", "rms_norm", "qkv", "attention", "output projection", "ffn", "logits", "final norm"];
        let decode = names.iter().enumerate().map(|(number, name)| Point {
            name: (*name).to_owned(),
            series: "decode".to_owned(),
            intensity: 0.98 + 0.01 * number as f64,
            rate: 0.9e12 + 1e11 * number as f64,
        });
        let prefill = names.iter().enumerate().map(|(number, name)| Point {
            name: (*name).to_owned(),
            series: "prefill".to_owned(),
            intensity: 0.5 * 3_f64.powi(number as i32),
            rate: 4e11 * 2.4_f64.powi(number as i32),
        });
        let ceiling = |name: &str, rate| Ceiling { name: name.to_owned(), rate };
        Roofline {
            title: "Qwen2.5-0.5B under bf16".to_owned(),
            memory: 4.2e12,
            multiply: vec![ceiling("bf16 products", 7e14), ceiling("f32 products", 5e13)],
            points: decode.chain(prefill).collect(),
        }
    }

    #[test]
    fn rooflines_are_legible() {
        let roofline = of_a_model();
        let picture = roofline.draw().unwrap();
        is_legible(&picture, (WIDTH, HEIGHT));
        for text in
            ["memory: 4.2 TB/s", "bf16 products: 700 Top/s", "f32 products: 50 Top/s", ">speed<", ">decode<"]
        {
            assert!(picture.svg().contains(text), "{text}");
        }
        for point in &roofline.points {
            let named = picture.svg().matches(&format!(">{}<", point.name)).count();
            assert_eq!(named, 2, "{}", point.name);
        }
        // Those of the legend are two more.
        assert_eq!(picture.svg().matches("<circle").count(), 9);
    }

    #[test]
    fn points_without_a_place_are_counted() {
        let mut roofline = of_a_model();
        roofline.points[0].rate = 0.0;
        roofline.points[1].intensity = f64::NAN;
        let picture = roofline.draw().unwrap();
        is_legible(&picture, (WIDTH, HEIGHT));
        assert!(picture.svg().contains("2 without operations or bytes not shown"));
    }

    #[test]
    fn ceilings_alone_are_a_picture_too() {
        let roofline = Roofline { points: Vec::new(), ..of_a_model() };
        is_legible(&roofline.draw().unwrap(), (WIDTH, HEIGHT));
    }
}
