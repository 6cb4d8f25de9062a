//! Memory that steps use between reading and writing values, sized for the largest batch.

use mantissa_numerics::Format;
use mantissa_numerics::contract::Order;
use mantissa_ops::batch::Limits;
use mantissa_ops::{Op, Plan, WeightId};

use crate::batch::{AttentionKind, RepeatedShape};
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::families::{attention, library, sdpa, token};
use crate::needs::saturating_sum;
use crate::reducer::{self, RowsAndLogits};
use crate::token::token_bytes;
use crate::values::row_stride;

/// Bytes of each kind of scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScratchSizes {
    /// f32 products of queries, keys and values, or scores of materialised attention.
    pub floats: usize,
    /// Intermediates of the FFN in the activation format.
    pub activations: usize,
    /// Outputs of spans.
    pub parts: usize,
    /// Largest scores and sums of spans.
    pub part_softmax: usize,
    /// Workspace of the matrix library.
    pub library: usize,
    /// What is known of rows of logits while they are reduced.
    pub reduction: usize,
    /// What the driver keeps of graphs, about.
    pub graphs: usize,
    /// What the kernel for a token holds, where there is one.
    pub token: usize,
}

/// Bytes of one step in a graph, measured on an H200 with the driver of CUDA 13.0: 0.57 MB for 147 steps.
const GRAPH_STEP: usize = 4096;

/// Bytes of the graphs that a session records when it is prepared: of each shape one of the run alone, and one of the run behind
/// the choice of its tokens where there are logits. Those of the kernel for a token are small.
fn graph_bytes(plan: &Plan, limits: &Limits, token: Option<&token::Sizes>) -> usize {
    let shapes = RepeatedShape::expected(limits).into_iter();
    let recorded = shapes.filter(|shape| token.is_none() || !shape.is_token());
    let times = if reducer::shape(plan, limits).is_some() { 2 } else { 1 };
    recorded.count() * times * plan.steps.len() * GRAPH_STEP
}

impl ScratchSizes {
    pub fn of(
        plan: &Plan,
        limits: &Limits,
        kinds: &[AttentionKind],
        token: Option<&token::Sizes>,
    ) -> ScratchSizes {
        let program = &plan.program;
        let reduction = reducer::shape(plan, limits).map_or(0, RowsAndLogits::device_bytes);
        let graphs = if kinds.is_empty() { 0 } else { graph_bytes(plan, limits, token) };
        let token = token.map_or(0, |sizes| token_bytes(sizes, limits));
        let mut sizes = ScratchSizes { reduction, graphs, token, ..ScratchSizes::default() };
        let floats = |count: usize| count.saturating_mul(size_of::<f32>());
        for step in plan.steps.iter().filter(|step| step.contract.order == Order::Library) {
            sizes.add_library(plan, limits, &step.op);
        }
        for step in &program.steps {
            match &step.op {
                Op::Qkv(op) => {
                    let stride = row_stride(program.weight(op.weight).rows, Format::F32);
                    sizes.floats = sizes.floats.max(floats(stride.saturating_mul(limits.rows)));
                }
                Op::Sdpa(op) => {
                    sizes.floats = sizes.floats.max(floats(sdpa::scratch_floats(op.heads, limits.rows)));
                }
                Op::Ffn(op) => {
                    let format = plan.policy.activations();
                    let stride = row_stride(program.weight(op.down).columns, format) * format.bytes();
                    sizes.activations = sizes.activations.max(stride.saturating_mul(limits.rows));
                }
                Op::Attention(op) => {
                    if let Some(kind) = kinds.iter().find(|kind| kind.heads == op.heads) {
                        let (parts, softmax) =
                            attention::scratch_bytes(op.heads, limits, op.mask, kind.route);
                        sizes.parts = sizes.parts.max(parts);
                        sizes.part_softmax = sizes.part_softmax.max(softmax);
                    }
                }
                // Rows gathered for a product that takes all rows of its input.
                Op::Logits(op) => {
                    let format = plan.policy.activations();
                    let row = row_stride(program.weight(op.weight).columns, format) * format.bytes();
                    sizes.activations = sizes.activations.max(row.saturating_mul(limits.outputs));
                }
                _ => {}
            }
        }
        sizes
    }

    /// What a step needs whose products the library may form.
    fn add_library(&mut self, plan: &Plan, limits: &Limits, op: &Op) {
        self.library = library::WORKSPACE;
        let sums = |weight: WeightId| {
            let stride = row_stride(plan.program.weight(weight).rows, Format::F32);
            stride.saturating_mul(size_of::<f32>()).saturating_mul(limits.rows)
        };
        // Sums that a kernel finishes, or the copy of a residual, which is smaller than they would be.
        let floats = match op {
            Op::SwiGlu(op) => sums(op.weight),
            Op::Matmul(op) => sums(op.weight),
            Op::Ffn(op) => sums(op.gate_up).max(sums(op.down)),
            _ => 0,
        };
        self.floats = self.floats.max(floats);
    }

    pub fn total(&self) -> u64 {
        let ScratchSizes { floats, activations, parts, part_softmax, library, reduction, graphs, token } =
            *self;
        let all = [floats, activations, parts, part_softmax, library, reduction, graphs, token];
        saturating_sum(all.map(|bytes| bytes as u64))
    }
}

/// The memory.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub floats: DeviceBuffer,
    pub activations: DeviceBuffer,
    pub parts: DeviceBuffer,
    pub part_softmax: DeviceBuffer,
    pub library: DeviceBuffer,
    pub reduction: DeviceBuffer,
}

impl Scratch {
    pub fn new(sizes: ScratchSizes, device: &Device) -> Result<Scratch, CudaError> {
        Ok(Scratch {
            floats: device.allocate(sizes.floats, "scratch of products")?,
            activations: device.allocate(sizes.activations, "scratch of activations")?,
            parts: device.allocate(sizes.parts, "scratch of attention")?,
            part_softmax: device.allocate(sizes.part_softmax, "scratch of attention")?,
            library: device.allocate(sizes.library, "workspace of the matrix library")?,
            reduction: device.allocate(sizes.reduction, "scratch of sampling")?,
        })
    }
}
