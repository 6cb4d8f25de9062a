//! Activations in the order in which tiles read them: `[tile][group of steps][row of the tile][step of the group]`.
//!
//! A row of a group is one vector (or two): preparing is copying, and decoding where needed. In the tile the rows of
//! a group lie at constant distances, whatever the width of the matrix.

use half::bf16;
use mantissa_numerics::Format;

use super::Split;
use crate::disjoint::Disjoint;
use crate::isa::Tier;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

/// What a tile reads for one step, made of values of format `X`.
pub(super) trait Unit<X: SimdElement>: bytemuck::Pod + Send + Sync {
    /// Values of one step.
    const VALUES: usize;
    /// Format of these values.
    const FORMAT: Format;

    /// One row as it is, where it needs no preparation: the right format, and whole groups of steps.
    fn same(row: &[X]) -> Option<&[Self]> {
        if X::FORMAT != Self::FORMAT || !row.len().is_multiple_of(LANES * Self::VALUES) {
            return None;
        }
        bytemuck::try_cast_slice(row).ok()
    }

    /// Sixteen steps of one row from its next values, zero where the row ends.
    fn fill<S: Simd>(simd: S, values: &[X], out: &mut [Self; LANES]);
}

impl<X: SimdElement> Unit<X> for f32 {
    const VALUES: usize = 1;
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn fill<S: Simd>(simd: S, values: &[X], out: &mut [f32; LANES]) {
        simd.store(X::load_partial(simd, values), out);
    }
}

impl<X: SimdElement> Unit<X> for [f32; 2] {
    const VALUES: usize = 2;
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn fill<S: Simd>(simd: S, values: &[X], out: &mut [[f32; 2]; LANES]) {
        let [first, second]: &mut [[f32; LANES]; 2] = bytemuck::cast_mut(out);
        let (low, high) = values.split_at(values.len().min(LANES));
        simd.store(X::load_partial(simd, low), first);
        simd.store(X::load_partial(simd, high), second);
    }
}

impl Unit<bf16> for [bf16; 2] {
    const VALUES: usize = 2;
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    fn fill<S: Simd>(_: S, values: &[bf16], out: &mut [[bf16; 2]; LANES]) {
        let out: &mut [bf16; 2 * LANES] = bytemuck::cast_mut(out);
        match values.first_chunk() {
            Some(whole) => *out = *whole,
            None => {
                out.fill(bf16::ZERO);
                out[..values.len()].copy_from_slice(values);
            }
        }
    }
}

/// Reorders the rows of all tiles.
#[derive(Clone, Copy)]
pub(super) struct PackInput<'a, X> {
    /// `[rows][columns]`.
    pub input: &'a [X],
    /// Values of a row.
    pub columns: usize,
    /// Steps of a row, a multiple of a group.
    pub steps: usize,
    /// Rows of the tiles.
    pub tiles: Split,
}

impl<X: SimdElement> PackInput<'_, X> {
    /// Packs on this thread.
    pub(super) fn all<I: Unit<X>>(&self, tier: Tier, out: &mut [I]) {
        let mut rest = out;
        for tile in 0..self.tiles.parts {
            let (out, after) = rest.split_at_mut(self.tile_len(tile));
            dispatch(tier, PackTile { whole: *self, tile, out });
            rest = after;
        }
    }

    /// Packs on all threads, tile by tile.
    pub(super) fn parallel<I: Unit<X>>(&self, tier: Tier, pool: &Pool, out: &mut [I]) {
        let out = Disjoint::new(out);
        pool.run(self.tiles.parts, |task| {
            let start = self.tiles.start(task.index) * self.steps;
            // SAFETY: tiles do not overlap, and each is one task.
            let out = unsafe { out.range(start..start + self.tile_len(task.index)) };
            dispatch(tier, PackTile { whole: *self, tile: task.index, out });
        });
    }

    fn tile_len(&self, tile: usize) -> usize {
        (self.tiles.start(tile + 1) - self.tiles.start(tile)) * self.steps
    }
}

/// Reorders the rows of one tile.
struct PackTile<'a, X, I> {
    whole: PackInput<'a, X>,
    tile: usize,
    out: &'a mut [I],
}

impl<X: SimdElement, I: Unit<X>> Kernel for PackTile<'_, X, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackInput { input, columns, tiles, .. } = self.whole;
        let (first, end) = (tiles.start(self.tile), tiles.start(self.tile + 1));
        let rows = end - first;
        let (groups, _) = self.out.as_chunks_mut::<LANES>();
        for (group, out) in groups.chunks_exact_mut(rows).enumerate() {
            let column = group * LANES * I::VALUES;
            for (row, out) in out.iter_mut().enumerate() {
                let start = (first + row) * columns;
                I::fill(simd, &input[start + column..start + columns], out);
            }
        }
    }
}
