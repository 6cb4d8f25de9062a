//! Some panels of weights against a block of rows: what a thread does at a time.

use std::ops::Range;

use super::epilogue::Writer;
use super::tile::{DecodedWeight, Product, Tile};
use super::{CHUNK, Split};
use crate::pack::PANEL;
use crate::simd::{Kernel, LANES, Simd};

/// Tiles of a block from which decoding the weights once for all of them saves work.
const DECODE_TILES: usize = 2;

/// Some panels, some tiles of rows.
pub(super) struct Block<'a, P: Product> {
    /// Which panels.
    pub panels: Range<usize>,
    /// The weights of all panels, `[panel][steps][PANEL]`.
    pub weights: &'a [P::Weight],
    /// All activations, `[tile][padded_steps / 16][rows of the tile][16]`.
    pub input: &'a [P::Input],
    /// Steps over k.
    pub steps: usize,
    /// Steps of the activations: whole groups of sixteen.
    pub padded_steps: usize,
    /// Rows of all tiles.
    pub tiles: Split,
    /// The tiles of this block.
    pub parts: Range<usize>,
    /// Scratch, `[rows][PANEL]`.
    pub sums: &'a mut [f32],
    /// Scratch, `[CHUNK][PANEL]`.
    pub decoded: &'a mut [DecodedWeight<P>],
    /// Takes the sums.
    pub writer: &'a Writer<'a>,
}

impl<P: Product> Kernel for Block<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let first_row = self.tiles.start(self.parts.start);
        let rows = self.tiles.start(self.parts.end) - first_row;
        let sums = &mut self.sums[..rows * PANEL];
        let tiles =
            Tiles { input: self.input, steps: self.padded_steps, tiles: self.tiles, parts: self.parts };
        let panel_len = self.steps * PANEL;
        for panel in self.panels {
            let weights = &self.weights[panel * panel_len..(panel + 1) * panel_len];
            sums.fill(0.0);
            for start in (0..self.steps).step_by(CHUNK) {
                let chunk = start..(start + CHUNK).min(self.steps);
                let weights = &weights[start * PANEL..chunk.end * PANEL];
                if P::DECODES && tiles.parts.len() >= DECODE_TILES {
                    let decoded = &mut self.decoded[..weights.len()];
                    decode::<P, S>(simd, weights, decoded);
                    tiles.run::<P::Decoded, S>(simd, chunk, decoded, sums);
                } else {
                    tiles.run::<P, S>(simd, chunk, weights, sums);
                }
            }
            // SAFETY: tasks have different panels or blocks of rows, and each is run by one thread.
            unsafe { self.writer.write(simd, panel, first_row, sums) }
        }
    }
}

#[inline(always)]
fn decode<P: Product, S: Simd>(simd: S, from: &[P::Weight], to: &mut [DecodedWeight<P>]) {
    let (from, _) = from.as_chunks::<LANES>();
    let (to, _) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        P::decode(simd, from, to);
    }
}

/// The rows of a block.
struct Tiles<'a, I> {
    input: &'a [I],
    /// Padded.
    steps: usize,
    tiles: Split,
    parts: Range<usize>,
}

impl<I> Tiles<'_, I> {
    /// Adds a chunk of steps to the sums of every tile.
    #[inline(always)]
    fn run<P: Product<Input = I>, S: Simd>(
        &self,
        simd: S,
        chunk: Range<usize>,
        weights: &[P::Weight],
        sums: &mut [f32],
    ) {
        let mut rest = sums;
        for tile in self.parts.clone() {
            let first = self.tiles.start(tile);
            let rows = self.tiles.start(tile + 1) - first;
            let (sums, after) = std::mem::take(&mut rest).split_at_mut(rows * PANEL);
            rest = after;
            let start = first * self.steps;
            let end = chunk.end.next_multiple_of(LANES);
            let input = &self.input[start + chunk.start * rows..start + end * rows];
            Tile::<P> { weights, input, sums, rows }.run(simd);
        }
    }
}
