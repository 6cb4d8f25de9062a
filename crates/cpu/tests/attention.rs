//! Attention over the paged cache, and the QKV epilogue that fills it.

mod common;

use common::{Random, STORAGE, Stored, on_every_machine, pool};
use half::f16;
use mantissa_cpu::Tier;
use mantissa_cpu::attention::{AttentionArgs, AttentionWorkspace, attention};
use mantissa_cpu::cache::KvCache;
use mantissa_cpu::operands::{Machine, OperandError};
use mantissa_cpu::qkv::{QkvArgs, qkv_epilogue};
use mantissa_numerics::contract::CacheFormat;
use mantissa_numerics::tolerance::{Tolerance, dot_bound, gamma, rounding_bound};
use mantissa_numerics::{E4M3, Element, Format};
use mantissa_ops::batch::{Batch, Limits, SequenceRows};
use mantissa_ops::op::{Heads, Mask};
use mantissa_ops::program::CacheSpec;

const CACHES: [CacheFormat; 5] = [
    CacheFormat::plain(Format::F32),
    CacheFormat::plain(Format::F16),
    CacheFormat::plain(Format::Bf16),
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) },
];

/// A layer of attention over the tokens of one sequence, fed in parts.
struct Case {
    heads: Heads,
    cache: CacheFormat,
    activations: Format,
    page_size: usize,
    mask: Mask,
    tokens: usize,
    /// `[tokens, query + key + value]`.
    products: Vec<f32>,
}

impl Case {
    fn new(heads: Heads, tokens: usize) -> Case {
        let mut random = Random(tokens as u64 + 1000 * heads.dim as u64);
        let width = heads.query_width() + 2 * heads.kv_width();
        let mut products = random.numbers(tokens * width);
        // Peaked distributions: some queries are large.
        for row in products.chunks_exact_mut(width).step_by(3) {
            row[..heads.query_width()].iter_mut().for_each(|x| *x *= 4.0);
        }
        Case {
            heads,
            cache: CacheFormat::plain(Format::F16),
            activations: Format::F32,
            page_size: 16,
            mask: Mask::Causal,
            tokens,
            products,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    fn limits(&self) -> Limits {
        // More pages than needed, so that most of the cache stays unwritten.
        let pages = 2 * self.tokens.div_ceil(self.page_size) + 3;
        let Case { tokens: context, page_size, .. } = *self;
        Limits { rows: self.tokens, outputs: 0, sequences: 4, pages, page_size, context }
    }

    fn empty_cache(&self) -> KvCache {
        let spec = CacheSpec { layers: 2, heads: self.heads };
        KvCache::new(spec, self.cache, &self.limits()).unwrap()
    }

    /// Pages in an order that is not theirs.
    fn block_table(&self) -> Vec<u32> {
        let pages = self.limits().pages as u32;
        (0..self.tokens.div_ceil(self.page_size) as u32).map(|page| pages - 1 - 2 * page).collect()
    }

    /// Outputs of all tokens, fed in parts of these lengths.
    fn run(&self, machine: Machine<'_>, parts: &[usize]) -> Stored {
        let (limits, table) = (self.limits(), self.block_table());
        let mut cache = self.empty_cache();
        let mut workspace = AttentionWorkspace::new(self.heads, &limits, machine.pool).unwrap();
        let mut numbers = Vec::new();
        let mut start = 0;
        for &rows in parts {
            let positions: Vec<u32> = (start as u32..(start + rows) as u32).collect();
            let sequences = [SequenceRows { rows: 0..rows, block_table: &table, rope_set: 0 }];
            let tokens = vec![0; rows];
            let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &[] };
            let width = self.products.len() / self.tokens;
            let products = &self.products[start * width..(start + rows) * width];
            let out = self.step(machine, products, &batch, &mut cache, &mut workspace).unwrap();
            numbers.extend(out.numbers());
            start += rows;
        }
        assert_eq!(start, self.tokens);
        Stored::new(self.activations, &numbers)
    }

    fn step(
        &self,
        machine: Machine<'_>,
        products: &[f32],
        batch: &Batch<'_>,
        cache: &mut KvCache,
        workspace: &mut AttentionWorkspace,
    ) -> Result<Stored, OperandError> {
        let count = batch.rows() * self.heads.query_width();
        let mut query = Stored::poisoned(self.activations, count);
        let mut products = products.to_vec();
        let args = QkvArgs {
            products: &mut products,
            bias: None,
            head_norms: None,
            rope: None,
            heads: self.heads,
            batch,
            layer: 1,
            query: query.get_mut(),
            cache,
        };
        qkv_epilogue(machine, args)?;
        let mut out = Stored::poisoned(self.activations, count);
        let args = AttentionArgs {
            query: query.get(),
            cache,
            layer: 1,
            scale: self.scale(),
            mask: self.mask,
            batch,
            workspace,
            out: out.get_mut(),
        };
        attention(machine, args)?;
        Ok(out)
    }

    /// A vector as the cache returns it.
    fn through_cache(&self, vector: &[f32]) -> Vec<f64> {
        let Some(scales) = self.cache.scales else {
            return Stored::new(self.cache.format, vector).exact();
        };
        let largest = vector.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let scale = Stored::new(scales, &[largest / 448.0]).numbers()[0];
        vector.iter().map(|x| f64::from(E4M3::from_f32(x / scale).to_f32()) * f64::from(scale)).collect()
    }

    /// In f64, from the stored queries, keys and values; with the bound of the kernel's error.
    fn check(&self, out: &Stored) {
        let Heads { query, key_value, dim } = self.heads;
        let width = self.products.len() / self.tokens;
        let rows: Vec<&[f32]> = self.products.chunks_exact(width).collect();
        let cached: Vec<Vec<Vec<f64>>> = rows
            .iter()
            .map(|row| row[query * dim..].chunks_exact(dim).map(|head| self.through_cache(head)).collect())
            .collect();
        let out = out.exact();
        for (position, row) in rows.iter().enumerate() {
            let queries = Stored::new(self.activations, &row[..query * dim]).exact();
            for head in 0..query {
                let kv = head / (query / key_value);
                let visible = self.mask.first_visible(position)..position + 1;
                let keys = visible.clone().map(|position| cached[position][kv].as_slice());
                let values = visible.clone().map(|position| cached[position][key_value + kv].as_slice());
                let got = &out[(position * query + head) * dim..][..dim];
                self.check_head(&queries[head * dim..][..dim], keys, values, got);
            }
        }
    }

    fn check_head<'a>(
        &self,
        query: &[f64],
        keys: impl Iterator<Item = &'a [f64]>,
        values: impl Iterator<Item = &'a [f64]>,
        got: &[f64],
    ) {
        let scale = f64::from(self.scale());
        let (mut scores, mut score_error) = (Vec::new(), 0.0_f64);
        for key in keys {
            let products = query.iter().zip(key).map(|(q, k)| q * k);
            let magnitude: f64 = products.clone().map(f64::abs).sum::<f64>() * scale;
            scores.push(products.sum::<f64>() * scale);
            // The chain, the two scales, and the difference from the maximum.
            let error = dot_bound(query.len(), Format::F32, magnitude);
            score_error = score_error.max(error + 5.0 * rounding_bound(Format::F32, magnitude));
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        // Each weight and each sum: the exponential, the chain, and the merging of spans (two exponentials each).
        let spans = scores.len() / 512 + 2;
        let relative = (2.0 * score_error).exp_m1() + gamma(scores.len() + 8 + 12 * spans, Format::F32);
        let values: Vec<&[f64]> = values.collect();
        for (dim, &got) in got.iter().enumerate() {
            let terms = weights.iter().zip(&values).map(|(weight, value)| weight * value[dim] / sum);
            let magnitude: f64 = terms.clone().map(f64::abs).sum();
            let exact: f64 = terms.sum();
            let tolerance = Tolerance::new(2.1 * relative * magnitude, 0.0)
                .plus(Tolerance::operations(1, Format::F32))
                .stored_as(self.activations);
            assert!(
                tolerance.accepts(got, exact),
                "{} of {} values, dimension {dim}: got {got:e}, wanted {exact:e} within {:e}",
                self.cache,
                scores.len(),
                tolerance.bound(exact)
            );
        }
    }

    fn check_everywhere(&self, parts: &[usize]) -> Stored {
        let out = on_every_machine(|machine| vec![self.run(machine, parts)]).remove(0);
        self.check(&out);
        out
    }
}

#[test]
fn every_format_is_that_of_f64() {
    for activations in STORAGE {
        for cache in CACHES {
            let heads = Heads { query: 4, key_value: 2, dim: 64 };
            Case { activations, cache, ..Case::new(heads, 37) }.check_everywhere(&[37]);
        }
    }
}

#[test]
fn every_shape_is_that_of_f64() {
    let heads = |query, key_value, dim| Heads { query, key_value, dim };
    for heads in [
        heads(1, 1, 1),
        heads(3, 3, 16),
        heads(2, 1, 24),
        heads(6, 2, 32),
        heads(14, 2, 64),
        heads(2, 1, 80),
        heads(4, 4, 96),
        heads(8, 1, 128),
        heads(5, 1, 20),
    ] {
        for (page_size, cache) in [(16, CACHES[1]), (32, CACHES[3]), (64, CACHES[0])] {
            Case { page_size, cache, ..Case::new(heads, 70) }.check_everywhere(&[70]);
        }
    }
}

#[test]
fn windows_hide_what_came_before() {
    for window in [1, 5, 16, 40, 1000] {
        let mask = Mask::SlidingWindow { window };
        for cache in [CACHES[1], CACHES[3]] {
            let case = Case { mask, cache, ..Case::new(Heads { query: 4, key_value: 2, dim: 32 }, 90) };
            let whole = case.check_everywhere(&[90]);
            assert!(whole == case.check_everywhere(&[33, 1, 1, 55]));
        }
    }
}

#[test]
fn chunks_and_steps_give_the_bits_of_one_prefill() {
    let machine_pool = pool(3);
    for (mask, cache) in [
        (Mask::Causal, CACHES[2]),
        (Mask::Causal, CACHES[3]),
        (Mask::SlidingWindow { window: 600 }, CACHES[1]),
        (Mask::SlidingWindow { window: 100 }, CACHES[0]),
    ] {
        let case = Case { mask, cache, ..Case::new(Heads { query: 7, key_value: 1, dim: 24 }, 1100) };
        for tier in Tier::available().filter(|tier| tier.isa() != mantissa_cpu::Isa::Scalar) {
            let machine = Machine { tier, pool: &machine_pool };
            let whole = case.run(machine, &[1100]);
            case.check(&whole);
            for parts in [
                vec![512, 588],
                vec![1, 510, 2, 587],
                [vec![500], vec![1; 30], vec![490], vec![1; 80]].concat(),
            ] {
                assert!(whole == case.run(machine, &parts), "{mask:?}, {cache}, {}", tier.isa());
            }
        }
    }
}

#[test]
fn long_contexts_have_the_same_bits_everywhere() {
    let heads = Heads { query: 2, key_value: 1, dim: 16 };
    for cache in [CACHES[0], CACHES[4]] {
        let case = Case { cache, page_size: 64, ..Case::new(heads, 1060) };
        case.check_everywhere(&[511, 1, 1, 1, 511, 1, 1, 33]);
    }
}

/// A batch of sequences gives each the bits that it has alone, decode steps and prefills mixed.
#[test]
fn sequences_of_a_batch_do_not_change_each_other() {
    let heads = Heads { query: 4, key_value: 2, dim: 32 };
    let (long, short) = (Case::new(heads, 600), Case::new(heads, 40));
    let pool = pool(2);
    let machine = Machine { tier: Tier::detect(), pool: &pool };
    let (alone_long, alone_short) = (long.run(machine, &[600]), short.run(machine, &[40]));
    let mut limits = long.limits();
    limits.pages += short.limits().pages;
    limits.rows = 700;
    let mut cache = KvCache::new(CacheSpec { layers: 2, heads }, long.cache, &limits).unwrap();
    let mut workspace = AttentionWorkspace::new(heads, &limits, &pool).unwrap();
    let tables = [
        long.block_table(),
        short.block_table().iter().map(|page| page + long.limits().pages as u32).collect(),
    ];
    let width = long.products.len() / 600;
    // Rows of the long and of the short sequence in each step.
    let (mut starts, mut got) = ([0, 0], [Vec::new(), Vec::new()]);
    for rows in [[590, 3], [1, 20], [1, 1], [8, 16]] {
        let (mut positions, mut products, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for (index, case) in [&long, &short].into_iter().enumerate() {
            let from = positions.len();
            positions.extend(starts[index] as u32..(starts[index] + rows[index]) as u32);
            products.extend_from_slice(&case.products[starts[index] * width..][..rows[index] * width]);
            let rows = from..positions.len();
            sequences.push(SequenceRows { rows, block_table: &tables[index], rope_set: 0 });
            starts[index] = positions[positions.len() - 1] as usize + 1;
        }
        let tokens = vec![0; positions.len()];
        let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &[] };
        let out = long.step(machine, &products, &batch, &mut cache, &mut workspace).unwrap().numbers();
        let (first, second) = out.split_at(rows[0] * heads.query_width());
        got[0].extend_from_slice(first);
        got[1].extend_from_slice(second);
    }
    assert!(got[0] == alone_long.numbers());
    assert!(got[1] == alone_short.numbers());
}

#[test]
fn a_copied_page_holds_the_same() {
    for cache_format in [CACHES[1], CACHES[3]] {
        let heads = Heads { query: 2, key_value: 2, dim: 16 };
        let case = Case { cache: cache_format, ..Case::new(heads, 20) };
        let pool = pool(1);
        let machine = Machine { tier: Tier::detect(), pool: &pool };
        let whole = case.run(machine, &[20]).numbers();
        let mut cache = case.empty_cache();
        let mut workspace = AttentionWorkspace::new(heads, &case.limits(), &pool).unwrap();
        let width = case.products.len() / 20;
        let mut step = |rows: std::ops::Range<usize>, table: &[u32], cache: &mut KvCache| {
            let positions: Vec<u32> = (rows.start as u32..rows.end as u32).collect();
            let sequences = [SequenceRows { rows: 0..rows.len(), block_table: table, rope_set: 0 }];
            let tokens = vec![0; rows.len()];
            let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &[] };
            let products = &case.products[rows.start * width..rows.end * width];
            case.step(machine, products, &batch, cache, &mut workspace).unwrap().numbers()
        };
        step(0..18, &[3, 1], &mut cache);
        cache.copy_page(1, 5).unwrap();
        let got = step(18..20, &[3, 5], &mut cache);
        assert!(got == whole[18 * heads.query_width()..]);
        let error = cache.copy_page(0, 1000).unwrap_err().to_string();
        assert_eq!(error, format!("page 1000 is outside the cache of {} pages", cache.pages()));
    }
}

#[test]
fn an_eight_bit_cache_takes_at_most_55_percent() {
    let case = Case::new(Heads { query: 4, key_value: 2, dim: 64 }, 100);
    let half = case.empty_cache().bytes() as f64;
    for cache in [CACHES[3], CACHES[4]] {
        let eight = Case { cache, ..Case::new(case.heads, 100) }.empty_cache();
        assert!(eight.bytes() as f64 <= 0.55 * half, "{cache}");
        let limits = case.limits();
        let vectors = 2 * 2 * case.heads.key_value * limits.pages * limits.page_size;
        assert_eq!(eight.bytes(), vectors * cache.vector_bytes(case.heads.dim));
    }
}

/// One token sees itself alone, so the output is its value as the cache returns it.
#[test]
fn eight_bit_vectors_keep_zero_tiny_huge_and_nan() {
    let heads = Heads { query: 1, key_value: 1, dim: 16 };
    let pool = pool(1);
    for scales in [Format::F16, Format::F32] {
        let cache = CacheFormat { format: Format::F8E4M3, scales: Some(scales) };
        for tier in Tier::available() {
            let value = |value: [f32; 2]| {
                let mut case = Case { cache, ..Case::new(heads, 1) };
                case.products[16..32].fill(0.0);
                case.products[32..48].fill(0.0);
                case.products[32..34].copy_from_slice(&value);
                let out = case.run(Machine { tier, pool: &pool }, &[1]).numbers();
                assert!(out[2..].iter().all(|&x| x == 0.0));
                [out[0], out[1]]
            };
            assert_eq!(value([0.0, 0.0]), [0.0, 0.0]);
            assert_eq!(value([448.0, -1.0]), [448.0, -1.0]);
            let [tiny, _] = value([1e-9, 0.0]);
            let smallest = scales.min_subnormal() as f32 * 0.5_f32.powi(9);
            assert!((tiny - 1e-9).abs() <= smallest.max(1e-10), "{tiny:e}");
            let [huge, small] = value([3e38, 1.0]);
            let expected = if scales == Format::F16 { 448.0 * 65504.0 } else { 3e38 };
            assert!((huge / expected - 1.0).abs() < 0.01 && small.abs() < 1e30, "{huge:e}");
            let [nan, other] = value([f32::NAN, 2.0]);
            assert!(nan.is_nan() && (other - 2.0).abs() < 0.01, "{nan} {other}");
        }
        let smallest = f16::from_bits(1).to_f32();
        assert!(smallest > 0.0);
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let heads = Heads { query: 2, key_value: 1, dim: 16 };
    let case = Case::new(heads, 32);
    let pool = pool(1);
    let machine = Machine { tier: Tier::detect(), pool: &pool };
    let mut workspace = AttentionWorkspace::new(heads, &case.limits(), &pool).unwrap();
    let mut cache = case.empty_cache();
    let mut refused = |tables: [&[u32]; 2]| {
        let sequences = [
            SequenceRows { rows: 0..17, block_table: tables[0], rope_set: 0 },
            SequenceRows { rows: 17..18, block_table: tables[1], rope_set: 0 },
        ];
        let positions: Vec<u32> = (0..17).chain([15]).collect();
        let batch = Batch { tokens: &[0; 18], positions: &positions, sequences: &sequences, outputs: &[] };
        let width = case.products.len() / 32;
        case.step(machine, &case.products[..18 * width], &batch, &mut cache, &mut workspace).unwrap_err()
    };
    assert_eq!(refused([&[0, 1], &[1]]), OperandError::SharedPage { page: 1 });
    assert_eq!(refused([&[0, 0], &[1]]), OperandError::SharedPage { page: 0 });
    assert_eq!(refused([&[0], &[1]]).to_string(), "block table: wanted 2 values, got 1");
    assert_eq!(refused([&[0, 1], &[99]]).to_string(), "page: 99, but the limit is 6");
}
