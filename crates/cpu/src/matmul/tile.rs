//! The innermost loops: a few rows by 32 (or 16) outputs, with the sums in registers.

use std::marker::PhantomData;

use half::bf16;
use mantissa_numerics::Format;

use crate::aligned::ALIGNMENT;
use crate::isa::Isa;
use crate::pack::PANEL;
use crate::simd::{Kernel, LANES, Simd, SimdElement};

/// How far ahead of the multiplication weights are asked for, in bytes: across the end of a page, where the
/// processor's own prefetching stops.
const PREFETCH: usize = 4096;

/// How one step over k multiplies.
pub(super) trait Product: Copy + Send + Sync + 'static {
    /// What a panel stores for one output and step.
    type Weight: bytemuck::Pod + Sync;
    /// What a row of activations holds for one step.
    type Input: bytemuck::Pod + Sync;
    /// Sixteen of either, as the multiplication takes them.
    type Operand<S: Simd>: Copy;
    /// The same sums from weights that are decoded once for many rows.
    type Decoded: Product<Input = Self::Input>;
    /// Multiplications of a step, one after the other in each chain.
    const PRODUCTS: usize;
    /// Whether [`Product::Decoded`] is another type.
    const DECODES: bool;

    /// The weights of sixteen outputs for one of the multiplications.
    fn weights<S: Simd>(simd: S, weights: &[Self::Weight; LANES], product: usize) -> Self::Operand<S>;

    /// One activation for all outputs, for one of the multiplications.
    fn input<S: Simd>(simd: S, input: Self::Input, product: usize) -> Self::Operand<S>;

    /// One multiplication in each of sixteen chains.
    fn accumulate<S: Simd>(
        simd: S,
        sum: S::F32,
        weights: Self::Operand<S>,
        input: Self::Operand<S>,
    ) -> S::F32;

    /// Sixteen weights for [`Product::Decoded`].
    fn decode<S: Simd>(simd: S, from: &[Self::Weight; LANES], to: &mut [DecodedWeight<Self>; LANES]);
}

/// What [`Product::decode`] writes.
pub(super) type DecodedWeight<P> = <<P as Product>::Decoded as Product>::Weight;

/// Weights of format `W`, activations decoded to f32: one fused multiply-add a step.
#[derive(Clone, Copy)]
pub(super) struct Fma<W>(PhantomData<W>);

/// Pairs of bf16 on both sides.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// Weights in pairs of bf16, activations decoded to f32: two fused multiply-adds a step, product `FIRST` of the pair
/// (0 or 1) before the other.
#[derive(Clone, Copy)]
pub(super) struct PairsFma<const FIRST: usize>;

impl<W: SimdElement> Product for Fma<W> {
    type Weight = W;
    type Input = f32;
    type Operand<S: Simd> = S::F32;
    type Decoded = Fma<f32>;
    const PRODUCTS: usize = 1;
    const DECODES: bool = !matches!(W::FORMAT, Format::F32);

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[W; LANES], _: usize) -> S::F32 {
        W::load(simd, weights)
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: f32, _: usize) -> S::F32 {
        simd.splat(input)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::F32, weights: S::F32, input: S::F32) -> S::F32 {
        simd.fma(weights, input, sum)
    }

    #[inline(always)]
    fn decode<S: Simd>(simd: S, from: &[W; LANES], to: &mut [f32; LANES]) {
        simd.store(W::load(simd, from), to);
    }
}

impl Product for Pairs {
    type Weight = [bf16; 2];
    type Input = [bf16; 2];
    type Operand<S: Simd> = S::Bf16Pairs;
    type Decoded = Pairs;
    const PRODUCTS: usize = 1;
    const DECODES: bool = false;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[[bf16; 2]; LANES], _: usize) -> S::Bf16Pairs {
        simd.load_bf16_pairs(bytemuck::cast_ref(weights))
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: [bf16; 2], _: usize) -> S::Bf16Pairs {
        simd.splat_bf16_pair(input)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::F32, weights: S::Bf16Pairs, input: S::Bf16Pairs) -> S::F32 {
        simd.dot_bf16(sum, weights, input)
    }

    #[inline(always)]
    fn decode<S: Simd>(_: S, from: &[[bf16; 2]; LANES], to: &mut [[bf16; 2]; LANES]) {
        *to = *from;
    }
}

impl<const FIRST: usize> Product for PairsFma<FIRST> {
    type Weight = [bf16; 2];
    type Input = [f32; 2];
    type Operand<S: Simd> = S::F32;
    // Splitting a pair is so cheap that doing it once for all rows gains nothing.
    type Decoded = PairsFma<FIRST>;
    const PRODUCTS: usize = 2;
    const DECODES: bool = false;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[[bf16; 2]; LANES], product: usize) -> S::F32 {
        let pairs = simd.load_bf16_pairs(bytemuck::cast_ref(weights));
        simd.split_bf16_pairs(pairs)[(FIRST + product) % 2]
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: [f32; 2], product: usize) -> S::F32 {
        simd.splat(input[(FIRST + product) % 2])
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::F32, weights: S::F32, input: S::F32) -> S::F32 {
        simd.fma(weights, input, sum)
    }

    #[inline(always)]
    fn decode<S: Simd>(_: S, from: &[[bf16; 2]; LANES], to: &mut [[bf16; 2]; LANES]) {
        *to = *from;
    }
}

/// Adds some steps to the sums of one tile.
pub(super) struct Tile<'a, P: Product> {
    /// `[steps][PANEL]`.
    pub weights: &'a [P::Weight],
    /// `[steps / 16][rows][16]`, rounded up.
    pub input: &'a [P::Input],
    /// `[rows][PANEL]`: what earlier steps left, and what these leave.
    pub sums: &'a mut [f32],
    /// Rows, at most [`tile_rows`](super::tile_rows).
    pub rows: usize,
}

impl<P: Product> Tile<'_, P> {
    /// Runs the loop compiled for this number of rows.
    #[inline(always)]
    pub(super) fn run<S: Simd>(self, simd: S) {
        macro_rules! by_rows {
            ($($rows:literal x $vectors:literal)*) => {
                match self.rows {
                    $($rows => simd.vectorize(FixedTile::<P, $rows, $vectors>(self)),)*
                    // `Split` makes no larger tiles, and none without rows.
                    _ => {}
                }
            };
        }
        match S::ISA {
            // At most 28 sums, two vectors of weights and one activation in 32 registers.
            Isa::Avx512 => {
                by_rows!(1 x 2 2 x 2 3 x 2 4 x 2 5 x 2 6 x 2 7 x 2 8 x 2 9 x 2 10 x 2 11 x 2 12 x 2 13 x 2 14 x 2);
            }
            // A vector takes two registers of 16 (AVX2) or four of 32 (Advanced SIMD): few rows pass once over whole
            // panels, more rows twice over halves.
            Isa::Avx2 | Isa::Neon | Isa::Scalar => by_rows!(1 x 2 2 x 2 3 x 1 4 x 1 5 x 1 6 x 1),
        }
    }
}

/// A tile of `ROWS` rows, `VECTORS` vectors of outputs at a time.
struct FixedTile<'a, P: Product, const ROWS: usize, const VECTORS: usize>(Tile<'a, P>);

impl<P: Product, const ROWS: usize, const VECTORS: usize> Kernel for FixedTile<'_, P, ROWS, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile { weights, input, sums, .. } = self.0;
        let (weights, _) = weights.as_chunks::<LANES>();
        let (input, _) = input.as_chunks::<LANES>();
        let (input, _) = input.as_chunks::<ROWS>();
        let (sums, _) = sums.as_chunks_mut::<LANES>();
        let vectors = PANEL / LANES;
        if sums.len() < ROWS * vectors {
            return;
        }
        for first in (0..vectors).step_by(VECTORS) {
            let mut registers = [[simd.zero(); VECTORS]; ROWS];
            for (row, registers) in registers.iter_mut().enumerate() {
                for (vector, register) in registers.iter_mut().enumerate() {
                    *register = simd.load(&sums[row * vectors + first + vector]);
                }
            }
            for (weights, input) in weights.chunks(LANES * vectors).zip(input) {
                for (weights, step) in weights.chunks_exact(vectors).zip(0..LANES) {
                    let weights: &[[P::Weight; LANES]] = &weights[first..first + VECTORS];
                    for line in (0..size_of_val(weights)).step_by(ALIGNMENT) {
                        simd.prefetch(weights.as_ptr().wrapping_byte_add(PREFETCH + line));
                    }
                    for product in 0..P::PRODUCTS {
                        let mut operands = [P::weights(simd, &weights[0], product); VECTORS];
                        for (operand, weights) in operands.iter_mut().zip(weights) {
                            *operand = P::weights(simd, weights, product);
                        }
                        for (registers, input) in registers.iter_mut().zip(input) {
                            let input = P::input(simd, input[step], product);
                            for (register, &operand) in registers.iter_mut().zip(&operands) {
                                *register = P::accumulate(simd, *register, operand, input);
                            }
                        }
                    }
                }
            }
            for (row, registers) in registers.iter().enumerate() {
                for (vector, &register) in registers.iter().enumerate() {
                    simd.store(register, &mut sums[row * vectors + first + vector]);
                }
            }
        }
    }
}
