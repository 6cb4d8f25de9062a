//! What the machine can do at most, measured by `kernels/ceilings.cu`: what other kernels' rates are shares of.

use mantissa_numerics::Format;

use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Threads of a block, 16-byte loads of each, and chains of steps of each warp or thread.
const THREADS: u32 = 256;
const LOADS: u32 = 8;
const CHAINS: u32 = 8;

/// Bytes that results would be written to.
pub const OUT_BYTES: usize = THREADS as usize * size_of::<u32>();

/// Arguments of all kernels. `input` has [`stream_block_bytes`] bytes for each block of those that read or fill it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernels' file says what they are")]
pub struct CeilingArgs {
    pub input: u64,
    pub out: u64,
    pub steps: u32,
    pub unused: u32,
}

fn spec(entry: &'static str, format: Format) -> KernelSpec {
    let aliases = vec![Alias::format("W", format), Alias::format("A", format)];
    KernelSpec { file: SourceFile::Ceilings, entry, aliases }
}

/// The kernel that fills memory with random bytes.
pub fn fill_stream() -> KernelSpec {
    spec("fill_stream", Format::Bf16)
}

/// The kernel that reads memory once.
pub fn read_stream() -> KernelSpec {
    spec("read_stream", Format::Bf16)
}

/// Bytes that one of their blocks fills or reads.
pub const fn stream_block_bytes() -> u64 {
    (THREADS * LOADS * 16) as u64
}

/// The launch that fills or reads `bytes`, rounded down to whole blocks.
pub fn stream_shape(bytes: u64) -> Launch {
    let blocks = u32::try_from(bytes / stream_block_bytes()).unwrap_or(u32::MAX);
    Launch { grid: [blocks, 1, 1], block: THREADS, shared: 0 }
}

/// The kernel that multiplies and adds in f32 without memory.
pub fn fma_steps() -> KernelSpec {
    spec("fma_steps", Format::Bf16)
}

/// A launch that fills the multiprocessors, and the operations that it does in `steps` steps.
pub fn fma_shape(multiprocessors: u32, steps: u32) -> (Launch, f64) {
    let launch = Launch { grid: [8 * multiprocessors, 1, 1], block: THREADS, shared: 0 };
    let threads = f64::from(launch.grid[0] * THREADS);
    (launch, threads * f64::from(CHAINS) * f64::from(steps) * 2.0)
}

/// The kernel that multiplies on the matrix units without memory; `format` is f16 or bf16.
pub fn matrix_steps(format: Format) -> KernelSpec {
    spec("matrix_steps", format)
}

/// As [`fma_shape`], for the matrix units.
pub fn matrix_shape(multiprocessors: u32, steps: u32) -> (Launch, f64) {
    let launch = Launch { grid: [2 * multiprocessors, 1, 1], block: THREADS, shared: 0 };
    let warps = f64::from(launch.grid[0] * THREADS / 32);
    // A step multiplies 16 by 16 with 16 by 8.
    (launch, warps * f64::from(CHAINS) * f64::from(steps) * f64::from(2 * 16 * 16 * 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_do_what_they_are_counted_for() {
        assert_eq!(stream_shape(10 * stream_block_bytes() + 5).grid, [10, 1, 1]);
        let (launch, operations) = matrix_shape(132, 10);
        assert_eq!((launch.grid[0], launch.block), (264, 256));
        assert_eq!(operations, 264.0 * 8.0 * 8.0 * 10.0 * 4096.0);
        let (launch, operations) = fma_shape(132, 10);
        assert_eq!((launch.grid[0], launch.block), (1056, 256));
        assert_eq!(operations, 1056.0 * 256.0 * 8.0 * 10.0 * 2.0);
    }
}
