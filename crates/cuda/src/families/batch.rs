//! A batch in device memory, as kernels see it: mirrors `BatchView` and `Sequence` of `prelude.cuh`. `kernels/batch.cu` brings it
//! there.

use crate::kernel::{KernelSpec, Launch, SourceFile};

const THREADS: u32 = 128;

/// One sequence of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sequence {
    /// Its first row in the batch.
    pub first_row: u32,
    /// The row after its last.
    pub end_row: u32,
    /// Its set of rotary frequencies.
    pub rope_set: u32,
    /// Index of its first page in the block tables.
    pub block_table: u32,
}

/// Device addresses of the parts of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchView {
    /// u32, one per row.
    pub tokens: u64,
    /// u32, one per row.
    pub positions: u64,
    /// u32, one per row: its sequence.
    pub row_sequence: u64,
    /// [`Sequence`], one per sequence.
    pub sequences: u64,
    /// u32: the pages of all sequences, one table after another.
    pub block_tables: u64,
    /// u32: the rows whose logits are wanted.
    pub outputs: u64,
}

/// Arguments of the kernel that brings a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args {
    /// Address on the host.
    pub host: u64,
    /// Address on the device.
    pub device: u64,
    /// Sixteen bytes each.
    pub packs: u32,
    /// Padding.
    pub unused: u32,
}

/// The kernel.
pub fn spec() -> KernelSpec {
    KernelSpec { file: SourceFile::Batch, entry: "bring", aliases: vec![] }
}

/// The launch for so many packs.
pub fn launch_shape(packs: u32) -> Launch {
    Launch { grid: [packs.div_ceil(THREADS), 1, 1], block: THREADS, shared: 0 }
}
