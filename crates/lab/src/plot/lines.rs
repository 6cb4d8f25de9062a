//! Lines over a logarithmic axis, such as the error from layer to layer.

use super::axis::{Axis, Ruler, Scale, short};
use super::canvas::{Anchor, Canvas, Picture, Stroke, Style, line_height};
use super::layout::Area;
use super::{PlotError, theme};

const WIDTH: f64 = 960.0;
/// Of the part between the axes.
const HEIGHT: f64 = 360.0;

/// Series of values over a common linear axis; their own is logarithmic.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// What is shown.
    pub title: String,
    /// Along the bottom.
    pub across: Axis,
    /// Up the side.
    pub up: Axis,
    /// One line each.
    pub series: Vec<Series>,
    /// Values to compare with, such as a tolerance.
    pub marks: Vec<Mark>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Said in the legend.
    pub name: String,
    /// Points (across, up), in order. A value that is not finite or not positive is a gap, which the plot counts.
    pub points: Vec<(f64, f64)>,
}

/// A value that is marked all across.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Said in the legend.
    pub name: String,
    /// Where it is.
    pub value: f64,
}

impl Lines {
    /// Draws them.
    ///
    /// # Errors
    /// Where the font of this crate cannot be read.
    pub fn draw(&self) -> Result<Picture, PlotError> {
        let legend_rows = self.series.len() + self.marks.len() + usize::from(self.gaps() > 0);
        let height = self.top(legend_rows) + HEIGHT + 4.0 * theme::SPACE + line_height(theme::LETTERS);
        let mut canvas = Canvas::new(WIDTH, height)?;
        let values = self.series.iter().flat_map(|series| series.points.iter());
        let positions = values.clone().map(|point| point.0);
        let levels = values.map(|point| point.1).chain(self.marks.iter().map(|mark| mark.value));
        let widest = 90.0;
        let frame = Area {
            left: widest,
            top: self.top(legend_rows),
            width: WIDTH - widest - 2.0 * theme::SPACE,
            height: HEIGHT,
        };
        let across = Ruler::tight(positions, (frame.left, frame.right()));
        let up = Ruler::new(Scale::Logarithmic, levels, (frame.bottom(), frame.top));
        self.legend(&mut canvas);
        draw_frame(
            &mut canvas,
            frame,
            Side { axis: &self.across, ruler: &across },
            Side { axis: &self.up, ruler: &up },
        );
        for mark in &self.marks {
            if Scale::Logarithmic.shows(mark.value) {
                let y = up.at(mark.value);
                canvas.lines(&[(frame.left, y), (frame.right(), y)], MARK);
            }
        }
        for (number, series) in self.series.iter().enumerate() {
            draw_series(&mut canvas, number, series, &across, &up);
        }
        Ok(canvas.finish(&self.title))
    }

    /// Where the part between the axes begins: below title, legend and the name of the axis.
    fn top(&self, legend_rows: usize) -> f64 {
        3.0 * theme::SPACE
            + line_height(theme::TITLE)
            + (1.0 + legend_rows as f64) * (line_height(theme::LETTERS) + 2.0)
    }

    /// Points that cannot be shown.
    fn gaps(&self) -> usize {
        self.series.iter().flat_map(|series| &series.points).filter(|point| !is_shown(point)).count()
    }

    fn legend(&self, canvas: &mut Canvas) {
        let left = theme::SPACE;
        let mut y = theme::SPACE + line_height(theme::TITLE) / 2.0;
        let title = canvas.shortened(&self.title, 0.7 * WIDTH);
        canvas.text(left, y, &title, Anchor::Start, Style::TITLE);
        let row = line_height(theme::LETTERS) + 2.0;
        y += line_height(theme::TITLE) / 2.0 + row / 2.0 + 4.0;
        let room = WIDTH - left - 44.0 - theme::SPACE;
        for (number, series) in self.series.iter().enumerate() {
            let stroke = stroke(number);
            canvas.lines(&[(left, y), (left + 34.0, y)], stroke);
            canvas.mark(left + 17.0, y, number);
            let name = canvas.shortened(&series.name, room);
            canvas.text(left + 44.0, y, &name, Anchor::Start, Style::PLAIN);
            y += row;
        }
        for mark in &self.marks {
            canvas.lines(&[(left, y), (left + 34.0, y)], MARK);
            let text = canvas.shortened(&format!("{}: {}", mark.name, short(mark.value)), room);
            canvas.text(left + 44.0, y, &text, Anchor::Start, Style::PLAIN);
            y += row;
        }
        let gaps = self.gaps();
        if gaps > 0 {
            let text = match gaps {
                1 => "1 value has no place on this axis: it is zero or not finite".to_owned(),
                gaps => format!("{gaps} values have no place on this axis: they are zero or not finite"),
            };
            canvas.text(left, y, &text, Anchor::Start, Style::FAINT);
        }
    }
}

/// The line of a marked value.
const MARK: Stroke = Stroke { colour: theme::INK, width: 1.4, dashes: "3 4" };

fn stroke(series: usize) -> Stroke {
    Stroke { colour: theme::colour(series), width: 2.0, dashes: theme::dashes(series) }
}

fn is_shown(&(across, up): &(f64, f64)) -> bool {
    Scale::Linear.shows(across) && Scale::Logarithmic.shows(up)
}

/// Marks, and lines between those without a gap between them.
fn draw_series(canvas: &mut Canvas, number: usize, series: &Series, across: &Ruler, up: &Ruler) {
    for run in series.points.split(|point| !is_shown(point)) {
        let points: Vec<(f64, f64)> = run.iter().map(|point| (across.at(point.0), up.at(point.1))).collect();
        if points.len() > 1 {
            canvas.lines(&points, stroke(number));
        }
        for (x, y) in points {
            canvas.mark(x, y, number);
        }
    }
}

/// One side of a frame.
pub struct Side<'a> {
    pub axis: &'a Axis,
    pub ruler: &'a Ruler,
}

/// Draws two axes with lines to read values by: one along the bottom, linear unless its values are far apart, and a
/// logarithmic one up the side.
pub fn draw_frame(canvas: &mut Canvas, frame: Area, across: Side<'_>, up: Side<'_>) {
    for &tick in &up.ruler.ticks {
        let y = up.ruler.at(tick);
        canvas.lines(&[(frame.left, y), (frame.right(), y)], Stroke::GRID);
        canvas.text(frame.left - 8.0, y, &up.axis.tick(tick), Anchor::End, Style::FAINT);
    }
    let middle = frame.bottom() + 10.0 + line_height(theme::LETTERS) / 2.0;
    let most = across.ruler.values().1;
    let (prefix, logarithmic) = match across.ruler.scale() {
        Scale::Linear => (across.axis.prefix(most), false),
        Scale::Logarithmic => (super::axis::Prefix::NONE, true),
    };
    for &tick in &across.ruler.ticks {
        let x = across.ruler.at(tick);
        canvas.lines(&[(x, frame.top), (x, frame.bottom())], Stroke::GRID);
        let text = if logarithmic { across.axis.tick(tick) } else { short(tick / prefix.factor) };
        canvas.text(x, middle, &text, Anchor::Middle, Style::FAINT);
    }
    let corner = (frame.left, frame.bottom());
    canvas.lines(&[(frame.left, frame.top), corner, (frame.right(), frame.bottom())], Stroke::AXIS);
    let name = across.axis.title(prefix);
    let below = middle + line_height(theme::LETTERS) + 2.0;
    canvas.text(frame.left + frame.width / 2.0, below, &name, Anchor::Middle, Style::PLAIN);
    // Above the first tick's label, which may reach beyond the frame.
    let above = frame.top - line_height(theme::LETTERS) - 3.0;
    canvas.text(theme::SPACE, above, &up.axis.name_alone(), Anchor::Start, Style::PLAIN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::canvas::tests::is_legible;

    fn errors() -> Lines {
        let series = |name: &str, scale: f64| Series {
            name: name.to_owned(),
            points: (0..24).map(|layer| (f64::from(layer), scale * 1.2_f64.powi(layer))).collect(),
        };
        let mut wrong = series("f16", 2e-4);
        wrong.points[20].1 = f64::NAN;
        wrong.points[21].1 = 0.0;
        Lines {
            title: "Relative error by layer".to_owned(),
            across: Axis::plain("layer", ""),
            up: Axis::plain("relative error", ""),
            series: vec![series("bf16", 3e-3), wrong, series("f32", 1e-7)],
            marks: vec![Mark { name: "tolerance".to_owned(), value: 1e-2 }],
        }
    }

    #[test]
    fn lines_are_legible() {
        let picture = errors().draw().unwrap();
        let height = errors().top(5) + HEIGHT + 4.0 * theme::SPACE + line_height(theme::LETTERS);
        is_legible(&picture, (WIDTH, height));
        for text in ["relative error", ">layer<", "tolerance: 0.01", "2 values have no place"] {
            assert!(picture.svg().contains(text), "{text}");
        }
    }

    #[test]
    fn every_value_but_gaps_is_marked() {
        let svg = errors().draw().unwrap().svg().to_owned();
        // One more of each stands in the legend.
        assert_eq!(svg.matches("<circle").count(), 24 + 1);
        let polygons = svg.matches("<polygon").count();
        assert_eq!(polygons, 22 + 1 + 24 + 1);
    }

    #[test]
    fn long_titles_are_shortened() {
        let lines = Lines { title: "a/long/path/to/a/model ".repeat(20), ..errors() };
        let height = lines.top(5) + HEIGHT + 4.0 * theme::SPACE + line_height(theme::LETTERS);
        is_legible(&lines.draw().unwrap(), (WIDTH, height));
    }

    #[test]
    fn nothing_is_a_picture_too() {
        let lines = Lines { series: Vec::new(), marks: Vec::new(), ..errors() };
        assert!(lines.draw().unwrap().png().unwrap().len() > 100);
    }
}
