//! Softmax along rows: `kernels/softmax_*.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Merge, Order};

use super::block_per_row;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};
use crate::preferences::preference;

/// The order of the sum of exponentials, whatever the width and the variant.
pub const ORDER: Order = Order::Lanes { lanes: 256, group: 4, merge: Merge::Tree };

/// Arguments of the kernels; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernels' file says what they are")]
pub struct Args {
    pub input: u64,
    pub out: u64,
    pub rows: u32,
    pub width: u32,
    pub input_stride: u32,
    pub out_stride: u32,
    pub scale: f32,
    pub unused: u32,
}

/// A kernel that computes a softmax. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// A row is read once, into the registers of a group of threads.
    Vec {
        /// Threads of a row.
        group: u32,
        /// Packs of 16 bytes that each of them holds.
        packs: u32,
    },
    /// A block a row, which is read three times: any width.
    Block,
}

preference! {
    /// Which variant a user wants.
    VariantPreference: "softmax variant";
    /// By the width of the rows.
    Auto = "auto",
    /// The one in registers, where rows fit.
    Vec = "vec",
    /// Always the one for any width.
    Block = "block",
}

preference! {
    /// How many threads a user wants to share a row in registers.
    GroupPreference: "softmax group size";
    /// By the width of the rows.
    Auto = "auto",
    /// One warp.
    Threads32 = "32",
    /// Two warps.
    Threads64 = "64",
    /// Four warps.
    Threads128 = "128",
}

/// Preferences about softmax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// The variant.
    pub variant: VariantPreference,
    /// Threads of a row of [`Variant::Vec`].
    pub group: GroupPreference,
}

/// Numbers of a row that a thread has registers for.
const MOST_VALUES: u32 = 64;

/// The variant for rows of `width` numbers.
pub fn choose(activations: Format, width: usize, preferences: Preferences) -> Variant {
    match preferences.variant {
        VariantPreference::Block => Variant::Block,
        VariantPreference::Auto | VariantPreference::Vec => {
            in_registers(activations, width, preferences.group).unwrap_or(Variant::Block)
        }
    }
}

/// The variant in registers, where rows of this width fit.
fn in_registers(activations: Format, width: usize, preferred: GroupPreference) -> Option<Variant> {
    let pack = 128 / activations.bits();
    let packs_of = |group: u32| width.div_ceil((group * pack) as usize).max(1).next_power_of_two();
    let fits = |group: u32, values: u32| packs_of(group) <= (values / pack) as usize;
    let group = match preferred {
        // As few threads as hold one pack each: more warps hide more of the memory's time.
        GroupPreference::Auto if fits(32, pack) => 32,
        GroupPreference::Auto if fits(64, pack) => 64,
        GroupPreference::Auto | GroupPreference::Threads128 => 128,
        GroupPreference::Threads64 => 64,
        GroupPreference::Threads32 => 32,
    };
    fits(group, MOST_VALUES).then(|| Variant::Vec { group, packs: packs_of(group) as u32 })
}

/// The kernel of a variant for activations of a format.
pub fn spec(activations: Format, variant: Variant) -> KernelSpec {
    let mut aliases = vec![Alias::format("A", activations)];
    match variant {
        Variant::Vec { group, packs } => {
            aliases.extend([Alias::count("GROUP", group), Alias::count("PACKS", packs)]);
            KernelSpec { file: SourceFile::SoftmaxVec, entry: "softmax_vec", aliases }
        }
        Variant::Block => KernelSpec { file: SourceFile::SoftmaxBlock, entry: "softmax_block", aliases },
    }
}

/// The launch for `rows` rows.
pub fn launch_shape(variant: Variant, rows: usize) -> Launch {
    match variant {
        // Whole warps of a block of four take a row each.
        Variant::Vec { group: 32, .. } => block_per_row(rows.div_ceil(4), 128),
        Variant::Vec { group, .. } => block_per_row(rows, group),
        Variant::Block => block_per_row(rows, 256),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto(format: Format, width: usize) -> Variant {
        choose(format, width, Preferences::default())
    }

    #[test]
    fn the_width_decides() {
        assert_eq!(auto(Format::Bf16, 256), Variant::Vec { group: 32, packs: 1 });
        assert_eq!(auto(Format::Bf16, 257), Variant::Vec { group: 64, packs: 1 });
        assert_eq!(auto(Format::F16, 513), Variant::Vec { group: 128, packs: 1 });
        assert_eq!(auto(Format::F16, 8192), Variant::Vec { group: 128, packs: 8 });
        assert_eq!(auto(Format::F16, 8193), Variant::Block);
        assert_eq!(auto(Format::F32, 1), Variant::Vec { group: 32, packs: 1 });
        assert_eq!(auto(Format::F32, 129), Variant::Vec { group: 64, packs: 1 });
        assert_eq!(auto(Format::F32, 8192), Variant::Vec { group: 128, packs: 16 });
        assert_eq!(auto(Format::F32, 8193), Variant::Block);
    }

    #[test]
    fn preferences_decide_where_they_can() {
        let group = GroupPreference::Threads32;
        let vec = Preferences { variant: VariantPreference::Vec, group };
        assert_eq!(choose(Format::F32, 2048, vec), Variant::Vec { group: 32, packs: 16 });
        assert_eq!(choose(Format::F32, 2049, vec), Variant::Block);
        let block = Preferences { variant: VariantPreference::Block, group };
        assert_eq!(choose(Format::F32, 1, block), Variant::Block);
    }

    #[test]
    fn rows_fit_their_threads_and_launches_their_rows() {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            for width in [1, 3, 8, 255, 256, 1023, 4096, 8191, 8192] {
                for &group in GroupPreference::ALL {
                    let preferences = Preferences { variant: VariantPreference::Vec, group };
                    let variant = choose(format, width, preferences);
                    let launch = launch_shape(variant, 5);
                    if let Variant::Vec { group, packs } = variant {
                        let values = packs * 128 / format.bits();
                        assert!((group * values) as usize >= width && values <= MOST_VALUES, "{variant:?}");
                        assert_eq!(launch.grid[0], if group == 32 { 2 } else { 5 });
                        assert_eq!(launch.block, if group == 32 { 128 } else { group });
                    }
                }
            }
        }
        assert_eq!(size_of::<Args>(), 40);
    }
}
