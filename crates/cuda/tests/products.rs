//! Products of many rows on the first GPU against the same rows few at a time, which other kernels multiply, to the bit: at
//! sizes that take clusters of blocks, of which conformance has none. Where there is no GPU, or no NVRTC, the test is reported as
//! skipped.

#[path = "gpu/backend.rs"]
mod gpu;

use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_numerics::Format;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{Backend, LoadOptions, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::{Matmul, SwiGlu};
use mantissa_ops::program::{ValueRole, WeightKind, WeightPart};
use mantissa_ops::{Batch, Limits, Op, Plan, ProgramBuilder, SequenceRows, ValueId};

/// The feed-forward layer of Qwen2.5-0.5B.
const WIDTH: usize = 896;
const INNER: usize = 4864;
/// Prompts: on a GPU of 132 multiprocessors the products of the first take clusters that share weights, the second product of the
/// next two clusters that share inputs, with whole tiles and with a part of one; the last has neither.
const ROWS: [usize; 4] = [8192, 2048, 2000, 300];
/// Rows that are multiplied together to compare with, and how far those are apart that are compared.
const FEW: usize = 16;
const APART: usize = 7 * FEW;

/// Whole numbers, so that operands are exact in every format; a rounding of the wrong number of them shows all the same.
fn number(index: usize) -> f32 {
    let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29) >> 40) as f32 % 127.0 - 63.0
}

fn numbers(count: usize, seed: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|index| number(index + (seed << 32)) * scale).collect()
}

/// A session of the two products; the values that they read and write.
struct Layer {
    session: Box<dyn Session>,
    input: ValueId,
    out: ValueId,
}

impl Layer {
    fn new(backend: &CudaBackend, preset: Preset) -> Layer {
        let rows = ROWS[0];
        let mut source = MemorySource::default();
        let mut add = |name: &str, rows: usize, columns: usize, seed: usize| {
            source.add(name, &[rows, columns], Format::F32, &numbers(rows * columns, seed, 1.0 / 1024.0));
        };
        add("gate", INNER, WIDTH, 1);
        add("up", INNER, WIDTH, 2);
        add("down", WIDTH, INNER, 3);
        let mut builder = ProgramBuilder::new("products", rows);
        let [input, gated, out] = [("input", WIDTH), ("gated", INNER), ("out", WIDTH)]
            .map(|(name, width)| builder.value(name, width, ValueRole::Activation));
        let halves = ["gate", "up"].map(|name| WeightPart::whole(name, INNER)).to_vec();
        let weight = builder.weight("gate_up", halves, WIDTH, WeightKind::GateUp);
        builder.step("gate_up", Op::SwiGlu(SwiGlu { input, weight, out: gated }));
        let weight = builder.matrix("down", vec![WeightPart::whole("down", WIDTH)], INNER);
        let residual = Some(input);
        let op = Matmul { input: gated, weight, bias: None, residual, alpha: 1.0, out };
        builder.step("down", Op::Matmul(op));
        let plan = Plan::resolve(builder.finish(), preset.into(), backend).expect("supported");
        let limits = Limits { rows, outputs: 1, sequences: 1, pages: 1, page_size: rows, context: rows };
        let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
        let session = backend.prepare(plan, &source, &options, &NoProgress).expect("ready");
        Layer { session, input, out }
    }

    /// The bits of what becomes of some rows.
    fn run(&mut self, input: &[f32]) -> Vec<u32> {
        let rows = input.len() / WIDTH;
        self.session.write(self.input, input).expect("representable");
        self.session.write(self.out, &vec![f32::NAN; input.len()]).expect("representable");
        let positions: Vec<u32> = (0..rows as u32).collect();
        let sequences = [SequenceRows { rows: 0..rows, block_table: &[0], rope_set: 0 }];
        let tokens = vec![0; rows];
        // From the first row on all are wanted.
        let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &[0] };
        self.session.run(&batch).expect("a run");
        self.session.read(self.out).into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn many_rows_have_the_bits_of_few() {
    let Some(backend) = or_skip(gpu::open(CudaOptions::default())) else { return };
    for preset in [Preset::Bf16, Preset::F16] {
        let mut layer = Layer::new(&backend, preset);
        let input = numbers(ROWS[0] * WIDTH, 4, 1.0 / 64.0);
        let few = |layer: &mut Layer, first: usize, rows: usize| {
            let end = (first + FEW).min(rows);
            (first * WIDTH..end * WIDTH, layer.run(&input[first * WIDTH..end * WIDTH]))
        };
        for rows in ROWS {
            let many = layer.run(&input[..rows * WIDTH]);
            assert!(many.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{preset:?}, {rows} rows");
            // The last ones, too.
            for first in (0..rows).step_by(APART).chain([rows - FEW]) {
                let (range, wanted) = few(&mut layer, first, rows);
                assert!(many[range] == wanted, "{preset:?}: rows from {first} on of {rows}");
            }
        }
    }
}
