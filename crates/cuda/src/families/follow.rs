//! Tokens that were just chosen become those of the next batch: `kernels/follow.cu`.

use crate::kernel::{KernelSpec, Launch, SourceFile};

/// Rows of a batch, at most.
pub const MOST_ROWS: usize = 8;

/// Arguments of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub tokens: u64,
    pub keys: [u64; MOST_ROWS],
    pub rows: u32,
    pub vocabulary: u32,
}

/// The kernel.
pub fn spec() -> KernelSpec {
    KernelSpec { file: SourceFile::Follow, entry: "follow", aliases: vec![] }
}

/// Its launch.
pub fn launch_shape() -> Launch {
    Launch { grid: [1, 1, 1], block: 32, shared: 0 }
}
