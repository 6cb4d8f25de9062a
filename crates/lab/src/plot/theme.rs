//! Colours and sizes.

/// The ground of every plot.
pub const GROUND: &str = "#ffffff";
/// Letters, axes and outlines.
pub const INK: &str = "#1f2328";
/// Letters that matter less.
pub const FAINT_INK: &str = "#57606a";
/// Lines to read values by.
pub const GRID: &str = "#e3e7eb";
/// The edge of the ground, which shows where a plot ends on a white page.
pub const EDGE: &str = "#d0d7de";
/// Series, in order. They differ in lightness as well as in hue.
pub const SERIES: [&str; 6] = ["#0b5cad", "#b84a00", "#0a7a55", "#9b2d86", "#6b5300", "#4a5560"];
/// How the lines of series are dashed, so that they can be told apart without colours.
pub const DASHES: [&str; 6] = ["none", "7 4", "2 3", "10 3 2 3", "4 2", "1 4"];

/// Letters of the title, in pixels.
pub const TITLE: f64 = 17.0;
/// All other letters, in pixels.
pub const LETTERS: f64 = 13.0;
/// Space around a plot and between its parts, in pixels.
pub const SPACE: f64 = 14.0;

/// The colour of a series.
pub fn colour(series: usize) -> &'static str {
    SERIES[series % SERIES.len()]
}

/// How a series is dashed.
pub fn dashes(series: usize) -> &'static str {
    DASHES[series % DASHES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contrast of two colours as WCAG 2 defines it.
    fn contrast(one: &str, other: &str) -> f64 {
        let luminance = |colour: &str| -> f64 {
            let channel = |at: usize| {
                let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
                if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
        };
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn everything_that_is_read_stands_out() {
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
        for ink in [INK, FAINT_INK].into_iter().chain(SERIES) {
            assert!(contrast(ink, GROUND) >= 4.5, "{ink}: {}", contrast(ink, GROUND));
        }
    }
}
