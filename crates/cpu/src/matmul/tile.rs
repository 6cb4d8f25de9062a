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
    /// Sixteen weights, as the multiplication takes them.
    type Operand<S: Simd>: Copy;
    /// An activation, as the multiplication takes it.
    type Factor<S: Simd>: Copy;
    /// The same sums from weights that are decoded once for many rows.
    type Decoded: Product<Input = Self::Input>;
    /// Whether [`Product::Decoded`] is another type.
    const DECODES: bool;

    /// The weights of sixteen outputs.
    fn weights<S: Simd>(simd: S, weights: &[Self::Weight; LANES]) -> Self::Operand<S>;

    /// One activation for all outputs.
    fn input<S: Simd>(simd: S, input: Self::Input) -> Self::Factor<S>;

    /// One step of sixteen chains.
    fn accumulate<S: Simd>(simd: S, sum: S::F32, weights: Self::Operand<S>, input: Self::Factor<S>)
    -> S::F32;

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

/// Weights in pairs of bf16, activations decoded to f32: two fused multiply-adds a step.
#[derive(Clone, Copy)]
pub(super) struct PairsFma;

impl<W: SimdElement> Product for Fma<W> {
    type Weight = W;
    type Input = f32;
    type Operand<S: Simd> = S::F32;
    type Factor<S: Simd> = S::F32;
    type Decoded = Fma<f32>;
    const DECODES: bool = !matches!(W::FORMAT, Format::F32);

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[W; LANES]) -> S::F32 {
        W::load(simd, weights)
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: f32) -> S::F32 {
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
    type Factor<S: Simd> = S::Bf16Pairs;
    type Decoded = Pairs;
    const DECODES: bool = false;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[[bf16; 2]; LANES]) -> S::Bf16Pairs {
        simd.load_bf16_pairs(bytemuck::cast_ref(weights))
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: [bf16; 2]) -> S::Bf16Pairs {
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

impl Product for PairsFma {
    type Weight = [bf16; 2];
    type Input = [f32; 2];
    type Operand<S: Simd> = [S::F32; 2];
    type Factor<S: Simd> = [f32; 2];
    // Splitting a pair is so cheap that doing it once for all rows gains nothing.
    type Decoded = PairsFma;
    const DECODES: bool = false;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[[bf16; 2]; LANES]) -> [S::F32; 2] {
        simd.split_bf16_pairs(simd.load_bf16_pairs(bytemuck::cast_ref(weights)))
    }

    #[inline(always)]
    fn input<S: Simd>(_: S, input: [f32; 2]) -> [f32; 2] {
        input
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::F32, weights: [S::F32; 2], input: [f32; 2]) -> S::F32 {
        let first = simd.fma(weights[0], simd.splat(input[0]), sum);
        simd.fma(weights[1], simd.splat(input[1]), first)
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
            ($vectors:literal: $($rows:literal)*) => {
                match self.rows {
                    $($rows => simd.vectorize(FixedTile::<P, $rows, $vectors>(self)),)*
                    // `Split` makes no larger tiles, and none without rows.
                    _ => {}
                }
            };
        }
        match S::ISA {
            // 28 sums, two vectors of weights and one activation in 32 registers.
            Isa::Avx512 => by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            // 12 sums in 16 registers (AVX2), or 24 in 32 (Advanced SIMD): half a panel at a time.
            Isa::Avx2 | Isa::Neon | Isa::Scalar => by_rows!(1: 1 2 3 4 5 6),
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
                    let operands: [P::Operand<S>; VECTORS] =
                        std::array::from_fn(|vector| P::weights(simd, &weights[vector]));
                    for (registers, input) in registers.iter_mut().zip(input) {
                        let input = P::input(simd, input[step]);
                        for (register, &operand) in registers.iter_mut().zip(&operands) {
                            *register = P::accumulate(simd, *register, operand, input);
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
