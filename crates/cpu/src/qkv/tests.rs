use std::num::NonZeroUsize;

use half::{bf16, f16};
use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_numerics::tolerance::Tolerance;
use mantissa_ops::batch::{Limits, SequenceRows};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec};

use super::*;
use crate::isa::Tier;
use crate::pool::Pool;

const EPS: f32 = 1e-5;
const ROWS: usize = 40;

/// Operands in which each key head repeats the query head of the same number.
struct Case {
    heads: Heads,
    products: Vec<f32>,
    bias: Vec<f32>,
    norm: Vec<f32>,
    rope: RopeSpec,
}

impl Case {
    fn new(dim: usize, rotary_dim: usize) -> Case {
        let heads = Heads { query: 2, key_value: 2, dim };
        let wave = |i: usize, speed: f32| (i as f32 * speed).sin() * 2.0;
        let width = 2 * dim;
        let mut products = Vec::new();
        for row in 0..ROWS {
            let queries: Vec<f32> = (0..width).map(|i| wave(row * width + i, 0.37)).collect();
            products.extend(queries.iter().chain(&queries));
            products.extend((0..width).map(|i| wave(row * width + i, 0.71)));
        }
        let bias: Vec<f32> = (0..width).map(|i| wave(i, 0.9)).collect();
        let value_bias = (0..width).map(|i| wave(i, 1.3));
        let bias = bias.iter().chain(&bias).copied().chain(value_bias).map(exact_in_bf16).collect();
        let norm = (0..dim).map(|i| exact_in_bf16(1.0 + wave(i, 0.2) / 4.0)).collect();
        let set = RopeSet {
            inverse_frequencies: (0..rotary_dim / 2).map(|i| 0.8_f64.powi(i as i32)).collect(),
            attention_factor: 1.0,
        };
        let rope = RopeSpec { rotary_dim, sets: vec![set], long_beyond: None };
        Case { heads, products, bias, norm, rope }
    }

    /// Queries and the cache of layer 1, with positions from 100.
    fn run(&self, machine: Machine<'_>, cache: CacheFormat) -> (Vec<f32>, KvCache) {
        let limits = Limits { rows: ROWS, outputs: 0, sequences: 1, pages: 9, page_size: 32, context: 140 };
        let mut cache = KvCache::new(CacheSpec { layers: 2, heads: self.heads }, cache, &limits).unwrap();
        let rope = RopeTables::new(&self.rope, limits.context, machine.pool).unwrap();
        let positions: Vec<u32> = (100..140).collect();
        let sequences = [SequenceRows { rows: 0..ROWS, block_table: &[8, 7, 6, 2, 4], rope_set: 0 }];
        let batch = Batch { tokens: &[0; ROWS], positions: &positions, sequences: &sequences, outputs: &[] };
        let mut query = vec![0.0; ROWS * self.heads.query_width()];
        let bias: Vec<bf16> = self.bias.iter().map(|&x| Element::from_f32(x)).collect();
        let norm: Vec<bf16> = self.norm.iter().map(|&x| Element::from_f32(x)).collect();
        let norm = Elements::Bf16(&norm);
        let args = QkvArgs {
            products: &mut self.products.clone(),
            bias: Some(Elements::Bf16(&bias)),
            head_norms: Some(HeadNormWeights { query: norm, key: norm, eps: EPS }),
            rope: Some(&rope),
            heads: self.heads,
            batch: &batch,
            layer: 1,
            query: ElementsMut::F32(&mut query),
            cache: &mut cache,
        };
        qkv_epilogue(machine, args).unwrap();
        (query, cache)
    }

    /// A query head in f64, and the largest value that its error is relative to.
    fn expected(&self, row: usize, head: usize) -> (Vec<f64>, f64) {
        let Heads { dim, .. } = self.heads;
        let start = head * dim;
        let products = &self.products[row * 6 * dim + start..][..dim];
        let x: Vec<f64> =
            products.iter().zip(&self.bias[start..]).map(|(x, b)| f64::from(*x) + f64::from(*b)).collect();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
        let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
        let mut x: Vec<f64> = x.iter().zip(&self.norm).map(|(x, w)| x * inverse * f64::from(*w)).collect();
        let largest = x.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        let half = self.rope.rotary_dim / 2;
        for pair in 0..half {
            let angle = (100 + row) as f64 * self.rope.sets[0].inverse_frequencies[pair];
            let (sin, cos) = angle.sin_cos();
            let (a, b) = (x[pair], x[pair + half]);
            (x[pair], x[pair + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
        (x, largest)
    }
}

fn exact_in_bf16(x: f32) -> f32 {
    Element::to_f32(<bf16 as Element>::from_f32(x))
}

fn page_of(row: usize) -> (u32, usize) {
    let position = 100 + row;
    ([8, 7, 6, 2, 4][position / 32], position % 32)
}

#[test]
fn queries_are_biased_normalised_and_rotated() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    for (dim, rotary_dim) in [(64, 64), (24, 24), (80, 32), (16, 16)] {
        let case = Case::new(dim, rotary_dim);
        let machine = Machine { tier: Tier::detect(), pool: &pool };
        let (query, _) = case.run(machine, CacheFormat::plain(Format::F32));
        for (index, got) in query.chunks_exact(dim).enumerate() {
            let (expected, largest) = case.expected(index / 2, index % 2);
            // The bias rounds with the magnitude of its operands, the rotation with that of the pair.
            let tolerance = Tolerance::operations(dim + 20, Format::F32).plus(Tolerance::sum(
                20,
                Format::F32,
                4.0 * largest,
            ));
            for (&got, &exact) in got.iter().zip(&expected) {
                assert!(tolerance.accepts(f64::from(got), exact), "{dim}: got {got}, wanted {exact}");
            }
        }
    }
}

#[test]
fn keys_and_values_are_rounded_once_to_their_slots() {
    for threads in [1, 3] {
        let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
        for tier in Tier::available() {
            for (dim, rotary_dim) in [(64, 64), (24, 16)] {
                check_slots::<f32>(Machine { tier, pool: &pool }, &Case::new(dim, rotary_dim));
                check_slots::<f16>(Machine { tier, pool: &pool }, &Case::new(dim, rotary_dim));
                check_slots::<bf16>(Machine { tier, pool: &pool }, &Case::new(dim, rotary_dim));
            }
        }
    }
}

fn check_slots<C: SimdElement>(machine: Machine<'_>, case: &Case) {
    let dim = case.heads.dim;
    let (query, cache) = case.run(machine, CacheFormat::plain(C::FORMAT));
    let view = cache.view::<C>();
    let mut written = 0;
    for row in 0..ROWS {
        let (page, slot) = page_of(row);
        for head in 0..2 {
            let at = PageHead { layer: 1, page, head };
            let block = view.key_block(at, slot / LANES);
            let query = &query[(row * 2 + head) * dim..][..dim];
            for (&query, key) in query.iter().zip(block) {
                assert_eq!(key[slot % LANES].to_f32(), C::from_f32(query).to_f32());
            }
            let start = (4 + head) * dim;
            let products = &case.products[row * 6 * dim + start..][..dim];
            for ((x, bias), value) in products.iter().zip(&case.bias[start..]).zip(view.value(at, slot)) {
                assert_eq!(value.to_f32(), C::from_f32(x + bias).to_f32());
            }
            written += 2 * dim;
        }
    }
    // Nothing else was touched.
    assert_eq!(view.written(), written);
}
