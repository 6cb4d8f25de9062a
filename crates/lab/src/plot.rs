//! Plots of what was measured: a [`Roofline`], [`Bars`] and [`Lines`], each drawn into a [`Picture`] that is written as SVG or
//! as PNG.
//!
//! A plot has a white ground of its own, so that it reads the same on a light page and on a dark one. Its letters come from
//! a font that is part of this crate: no plot depends on what is installed. Labels never overlap: every text reserves its
//! place in the layout before the next one looks for its own.

mod axis;
mod bars;
mod canvas;
mod layout;
mod lines;
mod png;
mod roofline;
mod theme;

pub use axis::Axis;
pub use bars::{Bars, Row};
pub use canvas::Picture;
pub use lines::{Lines, Mark, Series};
pub use roofline::{Ceiling, Point, Roofline};

/// Why a plot could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The font of this crate could not be read.
    #[error("the font of the plots cannot be read: {0}")]
    Font(String),
    /// The drawing could not be turned into pixels.
    #[error("a plot cannot be turned into pixels: {0}")]
    Pixels(String),
}
