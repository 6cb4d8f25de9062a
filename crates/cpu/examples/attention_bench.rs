//! Times attention at the shape of Qwen2.5-0.5B (14 query heads, 2 key heads of 64): a prefill of 512 tokens and a
//! decode step at a context of 4096, for each cache format; the best of many calls, one layer each.
//!
//! `cargo run --release -p mantissa-cpu --example attention_bench [THREADS]`

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Instant;

use mantissa_cpu::attention::{AttentionArgs, AttentionWorkspace, attention};
use mantissa_cpu::cache::KvCache;
use mantissa_cpu::elements::{Elements, ElementsMut};
use mantissa_cpu::operands::Machine;
use mantissa_cpu::qkv::{QkvArgs, qkv_epilogue};
use mantissa_cpu::{Isa, Pool, Tier};
use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::batch::{Batch, Limits, SequenceRows};
use mantissa_ops::op::{Heads, Mask};
use mantissa_ops::program::CacheSpec;

const HEADS: Heads = Heads { query: 14, key_value: 2, dim: 64 };
const CONTEXT: usize = 4096;
const PROMPT: usize = 512;
const REPEATS: usize = 30;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => Pool::default_threads(),
    };
    for tier in Tier::available().filter(|tier| tier.isa() != Isa::Scalar) {
        println!("{}, {threads} threads", tier.isa());
        for cache in [
            CacheFormat::plain(Format::F32),
            CacheFormat::plain(Format::F16),
            CacheFormat::plain(Format::Bf16),
            CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
        ] {
            bench(tier, threads, cache)?;
        }
    }
    Ok(())
}

fn bench(tier: Tier, threads: NonZeroUsize, format: CacheFormat) -> Result<(), Box<dyn Error>> {
    let pool = Pool::new(threads)?;
    let machine = Machine { tier, pool: &pool };
    let page_size = 64;
    let limits = Limits {
        rows: CONTEXT,
        outputs: 0,
        sequences: 1,
        pages: CONTEXT / page_size,
        page_size,
        context: CONTEXT,
    };
    // As many layers as make the decode step read from memory, not from the cache of the processor.
    let layers = 24;
    let mut cache = KvCache::new(CacheSpec { layers, heads: HEADS }, format, &limits)?;
    let mut workspace = AttentionWorkspace::new(HEADS, &limits, &pool)?;
    let table: Vec<u32> = (0..limits.pages as u32).collect();
    let width = HEADS.query_width() + 2 * HEADS.kv_width();
    let products: Vec<f32> = (0..CONTEXT * width).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut query = vec![0.0; CONTEXT * HEADS.query_width()];
    let mut out = vec![0.0; CONTEXT * HEADS.query_width()];

    let mut time =
        |positions: std::ops::Range<usize>, repeats: usize| -> Result<(f64, f64), Box<dyn Error>> {
            let rows = positions.len();
            let positions: Vec<u32> = (positions.start as u32..positions.end as u32).collect();
            let tokens = vec![0; rows];
            let sequences = [SequenceRows { rows: 0..rows, block_table: &table, rope_set: 0 }];
            let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &[] };
            let (mut epilogue, mut attend) = (f64::INFINITY, f64::INFINITY);
            let mut products = products[..rows * width].to_vec();
            let queries = rows * HEADS.query_width();
            for _ in 0..repeats {
                for layer in 0..layers {
                    let start = Instant::now();
                    let args = QkvArgs {
                        products: &mut products,
                        bias: None,
                        head_norms: None,
                        rope: None,
                        heads: HEADS,
                        batch: &batch,
                        layer,
                        query: ElementsMut::F32(&mut query[..queries]),
                        cache: &mut cache,
                    };
                    qkv_epilogue(machine, args)?;
                    epilogue = epilogue.min(start.elapsed().as_secs_f64());
                    let start = Instant::now();
                    let args = AttentionArgs {
                        query: Elements::F32(&query[..queries]),
                        cache: &cache,
                        layer,
                        scale: 0.125,
                        mask: Mask::Causal,
                        batch: &batch,
                        workspace: &mut workspace,
                        out: ElementsMut::F32(&mut out[..queries]),
                    };
                    attention(machine, args)?;
                    attend = attend.min(start.elapsed().as_secs_f64());
                }
            }
            Ok((epilogue, attend))
        };
    time(0..CONTEXT, 1)?;
    let (epilogue, prefill) = time(0..PROMPT, REPEATS / 10)?;
    let (_, decode) = time(CONTEXT - 1..CONTEXT, REPEATS)?;
    let pairs = (PROMPT * (PROMPT + 1) / 2 * HEADS.query) as f64;
    let bytes = (2 * HEADS.key_value * CONTEXT * format.vector_bytes(HEADS.dim)) as f64;
    println!(
        "{format:>10}: prefill {PROMPT} {:8.1} us {:6.1} GFLOP/s (cache write {:6.1} us) | \
         decode at {CONTEXT} {:7.1} us {:5.1} GB/s",
        prefill * 1e6,
        4.0 * pairs * HEADS.dim as f64 / prefill * 1e-9,
        epilogue * 1e6,
        decode * 1e6,
        bytes / decode * 1e-9,
    );
    Ok(())
}
