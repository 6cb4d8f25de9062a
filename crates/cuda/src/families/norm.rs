//! RMSNorm: `kernels/norm.cu`, and for many rows, or behind an embedding, `kernels/norm_rows.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Merge, Order};

use super::batch::BatchView;
use super::block_per_row;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// The order of the sum of squares, whatever the width.
pub const ORDER: Order = Order::Lanes { lanes: 256, group: 4, merge: Merge::Tree };

/// Arguments of the kernel; strides in values. `residual` is not looked at where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub input: u64,
    pub residual: u64,
    pub weight: u64,
    pub out: u64,
    pub width: u32,
    pub input_stride: u32,
    pub residual_stride: u32,
    pub out_stride: u32,
    pub eps: f32,
    pub rows: u32,
}

/// Arguments of the kernel that looks tokens up, too; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct EmbeddedArgs {
    pub batch: BatchView,
    pub table: u64,
    pub stream: u64,
    pub weight: u64,
    pub out: u64,
    pub width: u32,
    pub table_stride: u32,
    pub stream_stride: u32,
    pub out_stride: u32,
    pub eps: f32,
    pub rows: u32,
}

/// Whether a residual is added first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addition {
    /// The input alone is normalised.
    None,
    /// The sum of input and residual is, and replaces the residual.
    Residual,
}

/// A kernel. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A block for each row.
    Block(Addition),
    /// A warp for each row, whose lanes hold this many packs of 16 bytes each. Nothing is added.
    Warp {
        /// The number of packs.
        packs: u32,
    },
}

/// Rows from which on a warp each occupies an H200 at least as well as a block each: measured for rows of 896 and 2,048
/// 16-bit values.
const MANY_ROWS: usize = 1024;
/// Packs of a lane that fit its registers.
const MOST_PACKS: usize = 16;
/// Rows of a block that has a warp for each.
const WARPS: usize = 4;

/// The kernel for so many rows of so many values.
pub fn choose(activations: Format, width: usize, rows: usize, addition: Addition) -> Variant {
    match (addition, warp(activations, width)) {
        (Addition::None, Some(warp)) if rows >= MANY_ROWS => warp,
        (Addition::None | Addition::Residual, _) => Variant::Block(addition),
    }
}

/// A warp for each row, where so many values fit its registers.
fn warp(activations: Format, width: usize) -> Option<Variant> {
    let packs = (width * activations.bytes()).div_ceil(32 * 16);
    (packs <= MOST_PACKS).then_some(Variant::Warp { packs: packs as u32 })
}

/// The kernel for activations of a format.
pub fn spec(activations: Format, variant: Variant) -> KernelSpec {
    let (file, count) = match variant {
        Variant::Block(addition) => {
            (SourceFile::Norm, Alias::count("RESIDUAL", u32::from(addition == Addition::Residual)))
        }
        Variant::Warp { packs } => (SourceFile::NormRows, Alias::count("PACKS", packs)),
    };
    KernelSpec { file, entry: "rms_norm", aliases: vec![Alias::format("A", activations), count] }
}

/// The kernel for so many values of an embedding with a table of the format of activations, where there is one. It looks
/// tokens up, too, which for any number of rows is faster than by another kernel before, and has the bits of both.
pub fn embedded_spec(activations: Format, width: usize) -> Option<KernelSpec> {
    let warp = warp(activations, width)?;
    Some(KernelSpec { file: SourceFile::NormEmbedding, ..spec(activations, warp) })
}

/// The launch of that kernel for `rows` rows.
pub fn embedded_launch(rows: usize) -> Launch {
    warp_per_row(rows)
}

/// The launch for `rows` rows.
pub fn launch_shape(variant: Variant, rows: usize) -> Launch {
    match variant {
        Variant::Block(_) => block_per_row(rows, 256),
        Variant::Warp { .. } => warp_per_row(rows),
    }
}

fn warp_per_row(rows: usize) -> Launch {
    Launch { grid: [rows.div_ceil(WARPS) as u32, 1, 1], block: 32 * WARPS as u32, shared: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_that_fit_registers_take_a_warp_each() {
        let choose = |format, width, rows| choose(format, width, rows, Addition::None);
        let block = Variant::Block(Addition::None);
        assert_eq!(choose(Format::Bf16, 896, 8192), Variant::Warp { packs: 4 });
        assert_eq!(choose(Format::F32, 900, 1024), Variant::Warp { packs: 8 });
        assert_eq!(choose(Format::Bf16, 4096, 2048), Variant::Warp { packs: 16 });
        assert_eq!([choose(Format::Bf16, 896, 1023), choose(Format::F32, 4096, 8192)], [block; 2]);
        let added = super::choose(Format::Bf16, 896, 8192, Addition::Residual);
        assert_eq!(added, Variant::Block(Addition::Residual));
        assert_eq!(launch_shape(Variant::Warp { packs: 4 }, 1025).grid, [257, 1, 1]);
    }

    #[test]
    fn embedded_rows_that_fit_registers_have_a_kernel() {
        let spec = |format, width| embedded_spec(format, width).map(|spec| spec.to_string());
        let qwen = "norm_embedding.rms_norm[A=bf16,PACKS=4]".to_owned();
        assert_eq!([spec(Format::Bf16, 896), spec(Format::F32, 4096)], [Some(qwen), None]);
        assert_eq!(embedded_launch(1), Launch { grid: [1, 1, 1], block: 128, shared: 0 });
    }
}
