//! What plots are drawn on: marks go into an SVG, and every text is remembered with the place that it takes.

use std::fmt::Write;
use std::sync::Arc;

use resvg::{tiny_skia, usvg};
use ttf_parser::Face;

use super::layout::Area;
use super::{PlotError, png, theme};

const FONT: &[u8] = include_bytes!("font/DejaVuSans-Latin.ttf");
/// The font's own name first, then those that look like it: they are no wider.
const FAMILIES: &str = "DejaVu Sans, Verdana, Geneva, sans-serif";
/// Pixels of a PNG for one of the layout, so that letters stay sharp on dense screens.
const PIXELS: f32 = 1.25;

/// A plot that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    svg: String,
    labels: Vec<Label>,
}

/// A text in a picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Label {
    pub text: String,
    pub area: Area,
}

impl Picture {
    /// As SVG, which scales.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// As PNG, opaque, with five pixels for each four of the SVG's.
    ///
    /// # Errors
    /// Where there is no memory for the pixels.
    pub fn png(&self) -> Result<Vec<u8>, PlotError> {
        let pixels = |error: &dyn std::fmt::Display| PlotError::Pixels(error.to_string());
        let mut options = usvg::Options { font_family: family()?, ..usvg::Options::default() };
        Arc::make_mut(&mut options.fontdb).load_font_data(FONT.to_vec());
        let tree = usvg::Tree::from_str(&self.svg, &options).map_err(|error| pixels(&error))?;
        let size = tree.size().to_int_size().scale_by(PIXELS).ok_or_else(|| pixels(&"too large"))?;
        let mut pixmap =
            tiny_skia::Pixmap::new(size.width(), size.height()).ok_or_else(|| pixels(&"too large"))?;
        // A PNG of few colours knows no transparent corners.
        pixmap.fill(tiny_skia::Color::WHITE);
        let transform = tiny_skia::Transform::from_scale(PIXELS, PIXELS);
        resvg::render(&tree, transform, &mut pixmap.as_mut());
        png::encode(&pixmap).map_err(|error| pixels(&error))
    }

    /// The texts and their places.
    #[cfg(test)]
    pub(super) fn labels(&self) -> &[Label] {
        &self.labels
    }
}

/// The name of the font as it says itself.
fn family() -> Result<String, PlotError> {
    let name = face()?.names().into_iter().find(|name| name.name_id == ttf_parser::name_id::FAMILY);
    name.and_then(|name| name.to_string()).ok_or_else(|| PlotError::Font("it has no name".to_owned()))
}

fn face() -> Result<Face<'static>, PlotError> {
    Face::parse(FONT, 0).map_err(|error| PlotError::Font(error.to_string()))
}

/// How a text stands to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    pub size: f64,
    pub colour: &'static str,
}

impl Style {
    pub const TITLE: Style = Style { size: theme::TITLE, colour: theme::INK };
    pub const PLAIN: Style = Style { size: theme::LETTERS, colour: theme::INK };
    pub const FAINT: Style = Style { size: theme::LETTERS, colour: theme::FAINT_INK };
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    pub colour: &'static str,
    pub width: f64,
    pub dashes: &'static str,
}

impl Stroke {
    /// A line to read values by.
    pub const GRID: Stroke = Stroke { colour: theme::GRID, width: 1.0, dashes: "none" };
    /// An axis.
    pub const AXIS: Stroke = Stroke { colour: theme::FAINT_INK, width: 1.2, dashes: "none" };
}

/// A picture that is being drawn.
pub struct Canvas {
    width: f64,
    height: f64,
    face: Face<'static>,
    body: String,
    labels: Vec<Label>,
}

impl Canvas {
    /// Of this size, with a ground and an edge.
    pub fn new(width: f64, height: f64) -> Result<Canvas, PlotError> {
        let face = face()?;
        let mut canvas = Canvas { width, height, face, body: String::new(), labels: Vec::new() };
        canvas.push(&format!(
            r#"<rect x="0.5" y="0.5" width="{}" height="{}" rx="6" fill="{}" stroke="{}"/>"#,
            width - 1.0,
            height - 1.0,
            theme::GROUND,
            theme::EDGE
        ));
        Ok(canvas)
    }

    /// The width of a text in pixels.
    pub fn text_width(&self, text: &str, size: f64) -> f64 {
        text_width(&self.face, text, size)
    }

    /// The text, or as much of its beginning as fits and an ellipsis.
    pub fn shortened(&self, text: &str, width: f64) -> String {
        if self.text_width(text, theme::LETTERS) <= width {
            return text.to_owned();
        }
        let mut kept: Vec<char> = text.chars().collect();
        while let Some(_dropped) = kept.pop() {
            let shorter = kept.iter().collect::<String>().trim_end().to_owned() + "\u{2026}";
            if self.text_width(&shorter, theme::LETTERS) <= width {
                return shorter;
            }
        }
        String::new()
    }

    /// Writes a text whose line has its middle at this height, with a rim of the ground's colour over what lies below it.
    pub fn text(&mut self, x: f64, middle: f64, text: &str, anchor: Anchor, style: Style) {
        let width = self.text_width(text, style.size);
        let (left, name) = match anchor {
            Anchor::Start => (x, "start"),
            Anchor::Middle => (x - width / 2.0, "middle"),
            Anchor::End => (x - width, "end"),
        };
        let height = line_height(style.size);
        let area = Area { left, top: middle - height / 2.0, width, height };
        self.labels.push(Label { text: text.to_owned(), area });
        // A digit's middle lies so far above the base line.
        let base = middle + 0.36 * style.size;
        self.push(&format!(
            r#"<text x="{x:.1}" y="{base:.1}" text-anchor="{name}" font-size="{}" fill="{}" stroke="{}" stroke-width="3" paint-order="stroke">{}</text>"#,
            style.size,
            style.colour,
            theme::GROUND,
            escaped(text)
        ));
    }

    /// Draws lines through points.
    pub fn lines(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(&format!(
            r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}" stroke-linejoin="round"/>"#,
            points.join(" "),
            stroke.colour,
            stroke.width,
            stroke.dashes
        ));
    }

    /// Fills an area.
    pub fn bar(&mut self, area: Area, colour: &str) {
        self.push(&format!(
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
            area.left, area.top, area.width, area.height
        ));
    }

    /// Draws the mark of a series.
    pub fn mark(&mut self, x: f64, y: f64, series: usize) {
        let colour = theme::colour(series);
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<String> =
                corners.iter().map(|(right, down)| format!("{:.1},{:.1}", x + right, y + down)).collect();
            format!(r#"<polygon points="{}" fill="{colour}"/>"#, corners.join(" "))
        };
        let mark = match series % 4 {
            0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{colour}"/>"#),
            1 => polygon(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
            2 => polygon(&[(0.0, -5.0), (4.8, 3.6), (-4.8, 3.6)]),
            _ => polygon(&[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
        };
        self.push(&mark);
    }

    /// The picture.
    pub fn finish(self, title: &str) -> Picture {
        let Canvas { width, height, body, labels, .. } = self;
        let svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FAMILIES}" role="img">
<title>{}</title>
{body}</svg>
"#,
            escaped(title)
        );
        Picture { svg, labels }
    }

    fn push(&mut self, element: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }
}

/// The height of a line of text.
pub fn line_height(size: f64) -> f64 {
    1.25 * size
}

fn text_width(face: &Face<'_>, text: &str, size: f64) -> f64 {
    let missing = face.units_per_em();
    let advance = |letter: char| {
        let glyph = face.glyph_index(letter).and_then(|glyph| face.glyph_hor_advance(glyph));
        f64::from(glyph.unwrap_or(missing))
    };
    text.chars().map(advance).sum::<f64>() * size / f64::from(face.units_per_em())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What holds of every plot: texts that lie in the picture and cover no other, and a PNG of the right size with
    /// something in it.
    pub fn is_legible(picture: &Picture, (width, height): (f64, f64)) {
        let all = Area { left: 0.0, top: 0.0, width, height };
        let labels = picture.labels();
        assert!(!labels.is_empty());
        for (number, one) in labels.iter().enumerate() {
            assert!(all.contains(&one.area), "{one:?} sticks out");
            for other in &labels[..number] {
                assert!(!one.area.overlaps(&other.area), "{one:?} covers {other:?}");
            }
            assert!(picture.svg().contains(&escaped(&one.text)), "{:?}", one.text);
        }
        let image = tiny_skia::Pixmap::decode_png(&picture.png().expect("a PNG")).expect("pixels");
        for (pixels, length) in [(image.width(), width), (image.height(), height)] {
            assert!((f64::from(pixels) - length * f64::from(PIXELS)).abs() <= 1.0, "{pixels}");
        }
        for label in labels {
            assert!(dark(&image, &label.area) > 0, "no letter of {:?}", label.text);
        }
    }

    /// Pixels of an area that are rather letters than ground.
    fn dark(image: &tiny_skia::Pixmap, area: &Area) -> usize {
        let at = |length: f64| (length * f64::from(PIXELS)) as u32;
        let rows = at(area.top)..at(area.bottom());
        let pixels = rows.flat_map(|y| (at(area.left)..at(area.right())).map(move |x| (x, y)));
        pixels.filter(|&(x, y)| image.pixel(x, y).is_some_and(|pixel| pixel.red() < 160)).count()
    }

    #[test]
    fn texts_are_as_wide_as_they_are_drawn() {
        let canvas = Canvas::new(100.0, 100.0).expect("a canvas");
        assert_eq!(canvas.text_width("", 13.0), 0.0);
        let (one, two) = (canvas.text_width("8", 20.0), canvas.text_width("88", 20.0));
        assert!((two - 2.0 * one).abs() < 1e-9 && (one - 12.7).abs() < 0.1, "{one}");
        // Where a letter is not in the font, the room of a wide one is kept.
        assert_eq!(canvas.text_width("\u{4e2d}", 20.0), 20.0);
    }

    #[test]
    fn long_texts_are_shortened() {
        let canvas = Canvas::new(100.0, 100.0).expect("a canvas");
        assert_eq!(canvas.shortened("short", 100.0), "short");
        let short = canvas.shortened("model.layers.0.self_attn.q_proj", 100.0);
        assert!(short.starts_with("model.la") && short.ends_with('\u{2026}'), "{short}");
        assert!(canvas.text_width(&short, theme::LETTERS) <= 100.0);
        assert_eq!(canvas.shortened("anything", 0.0), "");
    }

    #[test]
    fn texts_cannot_break_the_svg() {
        let mut canvas = Canvas::new(300.0, 100.0).expect("a canvas");
        canvas.text(10.0, 50.0, "a<b>&\"c\"", Anchor::Start, Style::PLAIN);
        let picture = canvas.finish("<&>");
        is_legible(&picture, (300.0, 100.0));
    }
}
