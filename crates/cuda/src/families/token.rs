//! A token of one sequence by one persistent kernel: `kernels/token.cu`.
//!
//! The kernel goes through the [`Chain`] of a decoder in phases, the same list in every block. The host lowers a program to
//! that list once; a token is then one launch. The numbers are those of the single kernels, bit for bit.

mod chain;
mod lower;
mod shares;

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::Heads;

use super::attention::{self, SECTION, SPAN};
use super::batch::BatchView;
use super::cache;
use super::products::{Capabilities, SEGMENT};
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};
use crate::preferences::preference;

pub use self::chain::{Chain, DIM, Layer, Refusal};
pub use self::lower::{Described, KINDS, LAST_PHASES, Lowered, Places, Sizes, table, tables};

/// Warps of a block that multiply; one more copies.
const WARPS: usize = 11;
const THREADS: usize = (WARPS + 1) * 32;
/// Rows and columns of the weights that a slot of the ring takes.
const FILL_ROWS: usize = 8;
const FILL_COLUMNS: usize = 2 * SEGMENT;
/// Bytes of a slot of the ring, and of its barriers.
const SLOT_BYTES: usize = 8192;
const SLOT_BARRIERS: usize = 16;
/// Slots of the ring at most: more than these do not make it faster.
const MOST_SLOTS: usize = 24;
/// Slots that are being filled at a time, and for a layer that is longer than two rings: with more of them memory is busier,
/// but words of the exchange come later.
const FLIGHT: usize = 6;
const LONG_FLIGHT: usize = 7;
/// The same for logits, behind which no words are waited for; with more than LONG_FLIGHT those of long layers are slower.
const LAST_FLIGHT: usize = 10;
/// Bytes of a block's share of a phase in shared memory.
const SHARE_BYTES: usize = 16;
/// Bytes of the sums of a block's tiles of a phase, and these tiles, at most.
const SUM_BYTES: usize = 8192;
const MOST_TILES: usize = 12;
/// Bytes of the activations for a slot, padded such that those of the next start in other banks.
const INPUT_PITCH: usize = 1152;
/// Bytes that attention needs to merge records.
const MERGE_BYTES: usize = 12_288;
/// Bytes of what norms sum up.
const NORM_BYTES: usize = 1024;
/// Values that one sweep of a norm takes, and sweeps at most.
const NORM_SWEEP: usize = 1024;
const MOST_SWEEPS: usize = 2;
/// Values that one sweep over an input without a norm takes.
const INPUT_SWEEP: usize = 1024;

/// What a phase computes: values of `Phase::kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub enum Kind {
    Qkv = 0,
    Attention = 1,
    Output = 2,
    GateUp = 3,
    Down = 4,
    Logits = 5,
}

/// One phase: mirrors `Phase`. Null addresses stand for what there is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Phase {
    pub weights: u64,
    pub norm: u64,
    pub bias: u64,
    pub cache: u64,
    pub scales: u64,
    pub cache_map: u64,
    pub columns: u32,
    pub features: u32,
    pub kind: u32,
    pub range: u32,
    pub alpha: f32,
    pub unused: u32,
}

/// A block's tiles of a phase: mirrors `TileRange`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TileRange {
    /// The first of them; of attention, the block's rank among those that take units of it.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// Arguments of the kernel; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub phases: u64,
    pub ranges: u64,
    pub embedding: u64,
    pub cos: u64,
    pub sin: u64,
    pub logits: u64,
    pub bests: u64,
    pub epoch: u64,
    pub hidden: u64,
    pub middle: u64,
    pub projected: u64,
    pub attended: u64,
    pub gated: u64,
    pub records: u64,
    pub phase_count: u32,
    pub layers: u32,
    pub width: u32,
    pub embedding_stride: u32,
    pub query_heads: u32,
    pub key_heads: u32,
    pub context: u32,
    pub page_shift: u32,
    pub cache_stride: u32,
    pub window: u32,
    pub max_sections: u32,
    pub work_bytes: u32,
    pub eps: f32,
    pub scale: f32,
}

preference! {
    /// How a user wants a token of one sequence to be computed.
    DecodeVariant: "decode variant";
    /// By one kernel where there is one for the model, the formats and the device.
    Auto = "auto",
    /// Kernel by kernel, launched as one graph.
    Graph = "graph",
    /// By one kernel, and not at all where there is none.
    Token = "token",
}

/// Whether the kernel multiplies weights, activations and a cache of these formats.
pub fn serves_formats(weights: Format, activations: Format, cache: CacheFormat) -> bool {
    let multiplied = matches!(activations, Format::F16 | Format::Bf16) && weights == activations;
    let scaled = cache.format == Format::F8E4M3 && cache.scales.is_some();
    multiplied && (scaled || cache == CacheFormat::plain(activations))
}

/// Whether the kernel runs on a device.
pub fn serves_device(device: Capabilities) -> bool {
    device.arch.major == 9 && device.arch.minor == 0
}

/// Shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Slots of the ring.
    pub slots: usize,
    /// Bytes behind it: activations and sums of a phase, or what attention needs.
    pub work: usize,
    /// Bytes of everything.
    pub total: usize,
}

/// Bytes that attention needs, for the outputs, the softmaxes and the scales of a section or to merge records.
fn attention_bytes(heads: Heads, cache: CacheFormat) -> usize {
    const FLOAT: usize = size_of::<f32>();
    let group = attention::group(heads);
    let scales = if cache.scales.is_some() { 2 * SPAN * FLOAT } else { 2 * 4 * FLOAT };
    let section = SECTION * (group * (heads.dim + 10) * FLOAT + scales);
    // Queries, and a row of zeros, two bytes a value and padded by a pack.
    let queries = (group + 1) * (2 * heads.dim + 16);
    (section + queries).max(MERGE_BYTES)
}

impl Shared {
    /// Gives the ring what a device has beside the rest; `None` where that is too little to be of use. `columns` are the
    /// most of any weights.
    pub fn divide(
        columns: usize,
        phases: usize,
        heads: Heads,
        cache: CacheFormat,
        device: Capabilities,
    ) -> Option<Shared> {
        let products = columns.div_ceil(FILL_COLUMNS) * INPUT_PITCH + SUM_BYTES;
        let work = products.max(attention_bytes(heads, cache)).next_multiple_of(128);
        let rest = work + NORM_BYTES + phases * (size_of::<Phase>() + SHARE_BYTES);
        let left = (device.shared_per_block as usize).checked_sub(rest)?;
        let slots = (left / (SLOT_BYTES + SLOT_BARRIERS)).min(MOST_SLOTS);
        let total = rest + slots * (SLOT_BYTES + SLOT_BARRIERS);
        (slots >= 2 * WARPS).then_some(Shared { slots, work, total })
    }
}

/// The kernel for activations and a model's sizes.
pub fn spec(activations: Format, sizes: &Sizes) -> KernelSpec {
    let Sizes { width, inner, heads, cache, shared, .. } = *sizes;
    let mut aliases = cache::aliases(activations, cache);
    let mut count = |name, count: usize| aliases.push(Alias::count(name, count as u32));
    count("DIM", heads.dim);
    count("GROUP", attention::group(heads));
    count("SLOTS", shared.slots);
    let is_long = sizes.has_long_layers();
    let (flight, last) = if is_long { (LONG_FLIGHT, LONG_FLIGHT) } else { (FLIGHT, LAST_FLIGHT) };
    count("FLIGHT", flight);
    count("LAST_FLIGHT", last);
    count("NORM_SWEEPS", width.div_ceil(NORM_SWEEP));
    count("WORK_BYTES", shared.work);
    count("INPUT_EACH", inner.max(heads.query_width()).div_ceil(INPUT_SWEEP));
    KernelSpec { file: SourceFile::Token, entry: "token", aliases }
}

/// The launch: a block for each multiprocessor.
pub fn launch_shape(shared: Shared, device: Capabilities) -> Launch {
    Launch { grid: [device.multiprocessors, 1, 1], block: THREADS as u32, shared: shared.total as u32 }
}

/// Sections of a context, at most.
pub fn sections(context: usize) -> usize {
    context.div_ceil(SECTION * SPAN)
}

/// Sections of so many spans.
pub fn sections_of(spans: usize) -> usize {
    spans.div_ceil(SECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_the_sizes_of_the_kernel_s() {
        assert_eq!((size_of::<Phase>(), size_of::<TileRange>()), (72, 8));
        assert_eq!((size_of::<Args>(), align_of::<Args>()), (216, 8));
        assert_eq!(std::mem::offset_of!(Args, phase_count), 160);
    }
}
