//! RMSNorm: `kernels/norm.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Merge, Order};

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
    pub unused: u32,
}

/// Whether a residual is added first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addition {
    /// The input alone is normalised.
    None,
    /// The sum of input and residual is, and replaces the residual.
    Residual,
}

/// The kernel for activations of a format.
pub fn spec(activations: Format, addition: Addition) -> KernelSpec {
    let residual = u32::from(addition == Addition::Residual);
    let aliases = vec![Alias::format("A", activations), Alias::count("RESIDUAL", residual)];
    KernelSpec { file: SourceFile::Norm, entry: "rms_norm", aliases }
}

/// The launch for `rows` rows.
pub fn launch_shape(rows: usize) -> Launch {
    block_per_row(rows, 256)
}
