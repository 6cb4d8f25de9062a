//! Softmax along rows: `kernels/softmax.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Merge, Order};

use super::block_per_row;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// The order of the sum of exponentials, whatever the width.
pub const ORDER: Order = Order::Lanes { lanes: 256, group: 4, merge: Merge::Tree };

/// Arguments of the kernel; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub input: u64,
    pub out: u64,
    pub width: u32,
    pub input_stride: u32,
    pub out_stride: u32,
    pub scale: f32,
}

/// The kernel for activations of a format.
pub fn spec(activations: Format) -> KernelSpec {
    let aliases = vec![Alias::format("A", activations)];
    KernelSpec { file: SourceFile::Softmax, entry: "softmax", aliases }
}

/// The launch for `rows` rows.
pub fn launch_shape(rows: usize) -> Launch {
    block_per_row(rows, 256)
}
