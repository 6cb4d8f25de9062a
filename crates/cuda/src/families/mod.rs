//! Kernel families: which kernel serves a contract and a shape, how it is launched, and what it is told.
//!
//! Each file has, for its kernels, a `spec` (contract and class of shapes to [`KernelSpec`](crate::kernel::KernelSpec)),
//! a launch shape, and the `#[repr(C)]` arguments that mirror the `Args` of its `.cu` file. Sessions only select
//! and hand off.

use crate::kernel::Launch;

pub mod attention;
pub mod batch;
pub mod cache;
pub mod ceilings;
mod deal;
pub mod elementwise;
pub mod embedding;
pub mod library;
pub mod norm;
pub mod products;
pub mod qkv;
pub mod rope;
pub mod sampling;
pub mod sdpa;
pub mod single;
pub mod softmax;
pub mod tiles;
pub mod token;
pub mod wgmma;

/// One block of `threads` for each row.
fn block_per_row(rows: usize, threads: u32) -> Launch {
    Launch { grid: [rows as u32, 1, 1], block: threads, shared: 0 }
}

/// For each row as many blocks of `threads` as its `width` values need, `per_block` values each.
fn rows_of_blocks(rows: usize, width: usize, per_block: usize, threads: u32) -> Launch {
    Launch { grid: [rows as u32, width.div_ceil(per_block) as u32, 1], block: threads, shared: 0 }
}
