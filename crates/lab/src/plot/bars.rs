//! Bars to compare by their length, such as the time of each operation under several policies.

use super::axis::{Axis, Ruler, Scale, short};
use super::canvas::{Anchor, Canvas, Picture, Stroke, Style, line_height};
use super::layout::Area;
use super::{PlotError, theme};

const WIDTH: f64 = 960.0;
/// Height of a bar.
const BAR: f64 = 18.0;
/// Between the bars of two rows.
const GAP: f64 = 10.0;
/// The widest that the names of rows get.
const NAMES: f64 = 300.0;

/// Rows of bars that lie, one bar for each series.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What is shown.
    pub title: String,
    /// What their lengths say.
    pub axis: Axis,
    /// What the bars of a row stand for, such as policies; one series needs no legend.
    pub series: Vec<String>,
    /// From the top down.
    pub rows: Vec<Row>,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Stands before the bars; shortened where it is long.
    pub name: String,
    /// One value for each series, not negative; nothing where it was not measured.
    pub values: Vec<Option<f64>>,
}

impl Bars {
    /// Draws them.
    ///
    /// # Errors
    /// Where the font of this crate cannot be read.
    pub fn draw(&self) -> Result<Picture, PlotError> {
        let (top, height) = (self.top(), self.height());
        let mut canvas = Canvas::new(WIDTH, height)?;
        let names = self.rows.iter().map(|row| canvas.text_width(&row.name, theme::LETTERS));
        let names = names.fold(40.0, f64::max).min(NAMES);
        let values = || self.rows.iter().flat_map(|row| row.values.iter().copied().flatten());
        let finite = values().filter(|value| value.is_finite());
        let prefix = self.axis.prefix(finite.clone().fold(0.0, f64::max));
        let widest =
            finite.clone().map(|value| canvas.text_width(&short(value / prefix.factor), theme::LETTERS));
        let left = theme::SPACE + names + 8.0;
        let right = WIDTH - 2.0 * theme::SPACE - widest.fold(30.0, f64::max);
        let frame = Area { left, top, width: right - left, height: self.rows.len() as f64 * self.row() };
        let ruler = Ruler::new(Scale::Linear, finite.chain([0.0]), (frame.left, frame.right()));

        self.legend(&mut canvas);
        for &tick in &ruler.ticks {
            let x = ruler.at(tick);
            canvas.lines(&[(x, frame.top), (x, frame.bottom())], Stroke::GRID);
            let middle = frame.bottom() + 6.0 + line_height(theme::LETTERS) / 2.0;
            canvas.text(x, middle, &short(tick / prefix.factor), Anchor::Middle, Style::FAINT);
        }
        let middle = frame.bottom() + 8.0 + 1.5 * line_height(theme::LETTERS);
        let name = self.axis.title(prefix);
        canvas.text(frame.left + frame.width / 2.0, middle, &name, Anchor::Middle, Style::PLAIN);
        for (number, row) in self.rows.iter().enumerate() {
            let top = frame.top + number as f64 * self.row() + GAP / 2.0;
            let name = canvas.shortened(&row.name, names);
            let middle = top + self.series.len().max(1) as f64 * BAR / 2.0;
            canvas.text(frame.left - 8.0, middle, &name, Anchor::End, Style::PLAIN);
            for (series, value) in row.values.iter().take(self.series.len().max(1)).enumerate() {
                let middle = top + (series as f64 + 0.5) * BAR;
                draw_bar(&mut canvas, &ruler, middle, series, *value, prefix.factor);
            }
        }
        canvas.lines(&[(frame.left, frame.top), (frame.left, frame.bottom())], Stroke::AXIS);
        Ok(canvas.finish(&self.title))
    }

    /// The height of a row with the space around it.
    fn row(&self) -> f64 {
        self.series.len().max(1) as f64 * BAR + GAP
    }

    /// Where the rows begin.
    fn top(&self) -> f64 {
        let legend = if self.series.len() > 1 { line_height(theme::LETTERS) + 8.0 } else { 0.0 };
        1.5 * theme::SPACE + line_height(theme::TITLE) + legend
    }

    fn height(&self) -> f64 {
        let below = 2.0 * line_height(theme::LETTERS) + 8.0 + theme::SPACE;
        (self.top() + self.rows.len() as f64 * self.row() + below).ceil()
    }

    fn legend(&self, canvas: &mut Canvas) {
        let middle = theme::SPACE + line_height(theme::TITLE) / 2.0;
        let title = canvas.shortened(&self.title, 0.7 * WIDTH);
        canvas.text(theme::SPACE, middle, &title, Anchor::Start, Style::TITLE);
        if self.series.len() < 2 {
            return;
        }
        let middle = middle + line_height(theme::TITLE) / 2.0 + 6.0 + line_height(theme::LETTERS) / 2.0;
        let room = (WIDTH - 2.0 * theme::SPACE) / self.series.len() as f64;
        let mut left = theme::SPACE;
        for (series, name) in self.series.iter().enumerate() {
            let name = canvas.shortened(name, room - 30.0);
            canvas.bar(Area { left, top: middle - 5.0, width: 10.0, height: 10.0 }, theme::colour(series));
            canvas.text(left + 15.0, middle, &name, Anchor::Start, Style::PLAIN);
            left += 15.0 + canvas.text_width(&name, theme::LETTERS) + 15.0;
        }
    }
}

/// Draws a bar and its value behind it.
fn draw_bar(canvas: &mut Canvas, ruler: &Ruler, middle: f64, series: usize, value: Option<f64>, factor: f64) {
    let zero = ruler.at(0.0);
    let (end, text) = match value {
        Some(value) if value.is_finite() => (ruler.at(value), short(value / factor)),
        Some(value) => (zero, short(value)),
        None => (zero, "\u{2013}".to_owned()),
    };
    let height = BAR - 4.0;
    let area = Area { left: zero, top: middle - height / 2.0, width: (end - zero).max(0.0), height };
    canvas.bar(area, theme::colour(series));
    canvas.text(end + 5.0, middle, &text, Anchor::Start, Style::FAINT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::canvas::tests::is_legible;

    fn times() -> Bars {
        let row = |name: &str, values: [f64; 3]| Row {
            name: name.to_owned(),
            values: values.into_iter().map(Some).collect(),
        };
        Bars {
            title: "Time of each operation in one token".to_owned(),
            axis: Axis::prefixed("time", "s"),
            series: ["f32", "bf16", "bf16,kv_cache=f8e4m3"].map(str::to_owned).to_vec(),
            rows: vec![
                row("ffn", [1.2e-3, 0.61e-3, 0.6e-3]),
                row("qkv with bias, head norms and RoPE, of all layers together", [2e-4, 1e-4, 1e-4]),
                Row { values: vec![Some(0.0), None, Some(f64::NAN)], ..row("logits", [0.0; 3]) },
            ],
        }
    }

    #[test]
    fn bars_are_legible() {
        let bars = times();
        let picture = bars.draw().unwrap();
        is_legible(&picture, (WIDTH, bars.height()));
        for text in ["time (ms)", ">1.2<", ">0.61<", ">\u{2013}<", ">NaN<", "bf16,kv_cache=f8e4m3"] {
            assert!(picture.svg().contains(text), "{text}");
        }
    }

    #[test]
    fn lengths_are_in_proportion() {
        let svg = times().draw().unwrap().svg().to_owned();
        let width = |element: &str| -> f64 {
            let after = element.split("width=\"").nth(1).unwrap();
            after.split('"').next().unwrap().parse().unwrap()
        };
        // The ground, three squares of the legend, then nine bars.
        let bars: Vec<f64> =
            svg.lines().filter(|line| line.starts_with("<rect")).skip(4).map(width).collect();
        assert_eq!(bars.len(), 9);
        assert!((bars[0] / bars[3] - 6.0).abs() < 0.01 && bars[0] > 300.0, "{bars:?}");
        assert_eq!(bars[6..], [0.0; 3]);
    }

    #[test]
    fn one_series_needs_no_legend() {
        let mut bars = times();
        bars.series.truncate(1);
        let picture = bars.draw().unwrap();
        is_legible(&picture, (WIDTH, bars.height()));
        assert!(!picture.svg().contains(">f32<"));
    }
}
