//! Small PNGs: a plot has few colours but for the rims of its letters, so that a byte for each pixel is enough.

use std::collections::HashMap;

use png::{BitDepth, ColorType, Compression, Encoder, EncodingError};
use resvg::tiny_skia::Pixmap;

/// Entries of a palette.
const COLOURS: usize = 256;

type Colour = [u8; 3];

/// Encodes an opaque picture. The colours that most pixels have are kept as they are, and what is beyond a palette takes the
/// nearest of them.
pub fn encode(picture: &Pixmap) -> Result<Vec<u8>, EncodingError> {
    let pixels = || picture.pixels().iter().map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]);
    let mut counts: HashMap<Colour, usize> = HashMap::new();
    for colour in pixels() {
        *counts.entry(colour).or_default() += 1;
    }
    let mut colours: Vec<(Colour, usize)> = counts.into_iter().collect();
    colours.sort_by_key(|&(colour, count)| (std::cmp::Reverse(count), colour));
    let palette: Vec<Colour> = colours.iter().take(COLOURS).map(|&(colour, _)| colour).collect();
    let places: HashMap<Colour, u8> =
        colours.iter().map(|&(colour, _)| (colour, nearest(&palette, colour))).collect();
    let places: Vec<u8> = pixels().filter_map(|colour| places.get(&colour).copied()).collect();

    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, picture.width(), picture.height());
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.set_compression(Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&places)?;
    writer.finish()?;
    Ok(file)
}

/// The place of the colour in a palette that differs least.
fn nearest(palette: &[Colour], colour: Colour) -> u8 {
    let distance = |other: &Colour| -> u32 {
        other.iter().zip(colour).map(|(one, other)| u32::from(one.abs_diff(other)).pow(2)).sum()
    };
    let places = (0..=u8::MAX).zip(palette);
    places.min_by_key(|(_, other)| distance(other)).map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use resvg::tiny_skia::{Color, Paint, Pixmap, Rect, Transform};

    use super::*;

    #[test]
    fn pictures_of_few_colours_are_kept_bit_for_bit() {
        let mut picture = Pixmap::new(40, 30).unwrap();
        picture.fill(Color::WHITE);
        let mut paint = Paint::default();
        paint.set_color_rgba8(11, 92, 173, 255);
        picture.fill_rect(
            Rect::from_xywh(3.0, 4.0, 20.0, 10.0).unwrap(),
            &paint,
            Transform::identity(),
            None,
        );
        assert_eq!(Pixmap::decode_png(&encode(&picture).unwrap()).unwrap(), picture);
    }

    #[test]
    fn rare_colours_take_the_nearest() {
        let mut picture = Pixmap::new(1000, 2).unwrap();
        picture.fill(Color::WHITE);
        let mut bar = |x: u16, width: u16, [red, green]: [u8; 2]| {
            let mut paint = Paint::default();
            paint.set_color_rgba8(red, green, 0, 255);
            let rect = Rect::from_xywh(f32::from(x), 0.0, f32::from(width), 2.0).unwrap();
            picture.fill_rect(rect, &paint, Transform::identity(), None);
        };
        // With the ground as many as a palette has.
        (0..255_u8).for_each(|red| bar(3 * u16::from(red), 3, [red, 0]));
        (0..40_u8).for_each(|red| bar(800 + u16::from(red), 1, [red, 1]));
        let shown = Pixmap::decode_png(&encode(&picture).unwrap()).unwrap();
        for (x, wanted) in [(0, [0, 0]), (764, [254, 0]), (800, [0, 0]), (839, [39, 0]), (999, [255, 255])] {
            let pixel = shown.pixel(x, 1).unwrap();
            assert_eq!([pixel.red(), pixel.green()], wanted, "{x}");
        }
    }
}
