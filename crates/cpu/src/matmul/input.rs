//! Activations in the order in which tiles read them: `[tile][step][row of the tile]`.

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

    /// One row as it is, where it needs no preparation.
    fn same(row: &[X]) -> Option<&[Self]> {
        if X::FORMAT == Self::FORMAT { bytemuck::try_cast_slice(row).ok() } else { None }
    }

    /// Sixteen steps of one row from its next values, zero where the row ends.
    fn gather<S: Simd>(simd: S, values: &[X]) -> [Self; LANES];
}

impl<X: SimdElement> Unit<X> for f32 {
    const VALUES: usize = 1;
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn gather<S: Simd>(simd: S, values: &[X]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd.store(X::load_partial(simd, values), &mut out);
        out
    }
}

impl<X: SimdElement> Unit<X> for [f32; 2] {
    const VALUES: usize = 2;
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn gather<S: Simd>(simd: S, values: &[X]) -> [[f32; 2]; LANES] {
        let mut out = [[0.0; LANES]; 2];
        let (low, high) = values.split_at(values.len().min(LANES));
        simd.store(X::load_partial(simd, low), &mut out[0]);
        simd.store(X::load_partial(simd, high), &mut out[1]);
        bytemuck::cast(out)
    }
}

impl Unit<bf16> for [bf16; 2] {
    const VALUES: usize = 2;
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    fn gather<S: Simd>(_: S, values: &[bf16]) -> [[bf16; 2]; LANES] {
        let mut padded = [bf16::ZERO; 2 * LANES];
        let count = values.len().min(2 * LANES);
        padded[..count].copy_from_slice(&values[..count]);
        bytemuck::cast(padded)
    }
}

/// Reorders the rows of all tiles.
#[derive(Clone, Copy)]
pub(super) struct PackInput<'a, X> {
    /// `[rows][columns]`.
    pub input: &'a [X],
    /// Values of a row.
    pub columns: usize,
    /// Steps of a row.
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
        for (group, out) in self.out.chunks_mut(LANES * rows).enumerate() {
            let column = group * LANES * I::VALUES;
            for row in 0..rows {
                let start = (first + row) * columns;
                let units = I::gather(simd, &input[start + column..start + columns]);
                for (out, unit) in out.iter_mut().skip(row).step_by(rows).zip(units) {
                    *out = unit;
                }
            }
        }
    }
}
