//! Small matrix products in f32: scores from queries and keys, outputs from weights and values.

use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// `c[row][column] (+)= sum over k of a[row][k] * b[k][column]`, columns in vectors of 16.
///
/// Each result is one chain of fused multiply-adds over ascending `k`, whatever the shapes of the tiles.
pub(crate) struct Product<'a> {
    /// Rows of `a_stride` values, of which the first `depth` count.
    pub a: &'a [f32],
    pub a_stride: usize,
    pub rows: usize,
    /// Column vectors of `b_stride` vectors, of which the first `depth` count.
    pub b: &'a [[f32; LANES]],
    pub b_stride: usize,
    /// Vectors of columns.
    pub vectors: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Rows of `c_stride` values, of which the first `16 * vectors` count.
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub start: Start,
}

/// What the chains start from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// What `c` holds.
    Stored,
}

/// Rows of a full tile: as many accumulators as the registers of the instruction set hold.
const fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 12,
        Isa::Avx2 | Isa::Neon | Isa::Scalar => 6,
    }
}

/// Vectors of a full tile.
const fn tile_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 2,
        Isa::Avx2 | Isa::Neon | Isa::Scalar => 1,
    }
}

impl Product<'_> {
    /// Computes.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(mut self, simd: S) {
        let mut vector = 0;
        while vector < self.vectors {
            let pair = tile_vectors(S::ISA) == 2 && self.vectors - vector >= 2;
            let mut row = 0;
            while row < self.rows {
                let count = (self.rows - row).min(tile_rows(S::ISA));
                if pair {
                    self.rows_of_tile::<S, 2>(simd, row, vector, count);
                } else {
                    self.rows_of_tile::<S, 1>(simd, row, vector, count);
                }
                row += count;
            }
            vector += if pair { 2 } else { 1 };
        }
    }

    /// Chooses the tile for `count` rows.
    #[inline(always)]
    fn rows_of_tile<S: Simd, const V: usize>(&mut self, simd: S, row: usize, vector: usize, count: usize) {
        macro_rules! choose {
            ($($rows:literal)*) => {
                match count {
                    $($rows => simd.vectorize(Tile::<'_, '_, $rows, V> { product: self, row, vector }),)*
                    // No tile has more rows.
                    _ => {}
                }
            };
        }
        choose!(1 2 3 4 5 6);
        if tile_rows(S::ISA) > 6 {
            choose!(7 8 9 10 11 12);
        }
    }
}

/// `M` rows by `V` vectors that stay in registers.
struct Tile<'a, 'b, const M: usize, const V: usize> {
    product: &'a mut Product<'b>,
    row: usize,
    vector: usize,
}

impl<const M: usize, const V: usize> Kernel for Tile<'_, '_, M, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile { product, row, vector } = self;
        let depth = product.depth;
        let mut a: [&[f32]; M] = [&[]; M];
        for (m, a) in a.iter_mut().enumerate() {
            *a = &product.a[(row + m) * product.a_stride..][..depth];
        }
        let mut b: [&[[f32; LANES]]; V] = [&[]; V];
        for (v, b) in b.iter_mut().enumerate() {
            *b = &product.b[(vector + v) * product.b_stride..][..depth];
        }
        let mut sums = [[simd.zero(); V]; M];
        if product.start == Start::Stored {
            for (m, sums) in sums.iter_mut().enumerate() {
                let c = &product.c[(row + m) * product.c_stride + vector * LANES..][..V * LANES];
                for (sum, c) in sums.iter_mut().zip(c.as_chunks::<LANES>().0) {
                    *sum = simd.load(c);
                }
            }
        }
        for k in 0..depth {
            let mut columns = [simd.zero(); V];
            for (column, b) in columns.iter_mut().zip(&b) {
                *column = simd.load(&b[k]);
            }
            for (sums, a) in sums.iter_mut().zip(&a) {
                let x = simd.splat(a[k]);
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.fma(x, column, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let c = &mut product.c[(row + m) * product.c_stride + vector * LANES..][..V * LANES];
            for (&sum, c) in sums.iter().zip(c.as_chunks_mut::<LANES>().0) {
                simd.store(sum, c);
            }
        }
    }
}
