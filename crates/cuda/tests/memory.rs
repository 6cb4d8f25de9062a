//! What a session takes of the first GPU's memory after it was prepared: nothing. Where there is no GPU, or no NVRTC, the
//! test is reported as skipped.

#[path = "gpu/decoder.rs"]
mod decoder;
#[path = "gpu/backend.rs"]
mod gpu;

use decoder::Decoder;
use mantissa_cuda::CudaOptions;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{Backend, LoadOptions, NextRun, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::Heads;
use mantissa_ops::reduction::{Request, Wish};
use mantissa_ops::{Batch, Limits, Plan, SequenceRows};

const PAGE: usize = 64;
const CONTEXT: usize = 2048;

const DECODER: Decoder = Decoder {
    layers: 24,
    heads: Heads { query: 4, key_value: 2, dim: 64 },
    hidden: 256,
    intermediate: 512,
    vocabulary: 1000,
    context: CONTEXT,
    bias: Some(0.3),
};

/// One token of each of some sequences, all at one position, by itself and then behind the choice of another.
fn decode(session: &mut dyn Session, sequences: usize, position: usize) {
    let pages = CONTEXT / PAGE;
    let table = |sequence: usize| (0..pages).map(|page| (sequence * pages + page) as u32).collect();
    let tables: Vec<Vec<u32>> = (0..sequences).map(table).collect();
    let rows = |(row, table)| SequenceRows { rows: row..row + 1, block_table: table, rope_set: 0 };
    let rows: Vec<SequenceRows<'_>> = tables.iter().map(Vec::as_slice).enumerate().map(rows).collect();
    let tokens: Vec<u32> = (0..sequences).map(|row| (row * 31 + position) as u32 % 1000).collect();
    let positions = vec![position as u32; sequences];
    let outputs: Vec<u32> = (0..sequences as u32).collect();
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &rows, outputs: &outputs };
    session.run(&batch).expect("a run");
    assert_eq!(session.logits().expect("logits").len(), sequences * DECODER.vocabulary);
    let requests = vec![Request { penalties: None, wish: Wish::Best }; sequences];
    let mut reduced = Vec::new();
    assert_eq!(session.reduce_and_run(&requests, &mut reduced, &batch), Ok(NextRun::Started));
    // Pages that nothing was written to are not finite.
    assert!(reduced.iter().all(|row| row.chosen.is_some() || row.not_finite > 0));
}

#[test]
fn nothing_is_allocated_after_the_start() {
    let Some(backend) = or_skip(gpu::open(CudaOptions::default())) else { return };
    // Fewer shapes of batches than there are graphs, and more.
    for sequences in [8, 16] {
        let (program, source) = DECODER.model();
        let plan = Plan::resolve(program, Preset::Bf16.into(), &backend).expect("supported");
        let limits = Limits {
            rows: 512,
            outputs: sequences,
            sequences,
            pages: sequences * CONTEXT / PAGE,
            page_size: PAGE,
            context: CONTEXT,
        };
        let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
        let before = backend.device().free_memory();
        let mut session = backend.prepare(plan, &source, &options, &NoProgress).expect("ready");
        let free = backend.device().free_memory();
        let (predicted, taken) = (session.memory().total(), before - free);
        println!("{sequences} sequences: {taken} bytes, of which {predicted} were predicted");
        for position in [0, 1, 63, 64, 128, 200, 512, 1000, 1500, 2047] {
            (1..=sequences).for_each(|sequences| decode(&mut *session, sequences, position));
        }
        (0..200).for_each(|position| decode(&mut *session, 1, position));
        assert_eq!(backend.device().free_memory(), free, "{sequences} sequences");
    }
}
