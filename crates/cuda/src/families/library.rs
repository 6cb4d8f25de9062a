//! Products by a matrix library: which it serves, and the kernels beside it (`kernels/library_*.cu`).
//!
//! The library multiplies operands of one format, adds in f32 and rounds once. It is asked for sums in f32, which a
//! kernel of our own finishes, where it has no epilogue that rounds as the contract says: SwiGLU, and biases, which are
//! f32 here and would have to be of the result's format there.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, Order};

use super::products::{Epilogue, MatmulBackend, Preferences, Product, ProductArgs, VariantPreference};
use super::rows_of_blocks;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Bytes of device memory that the library may use within a product.
pub const WORKSPACE: usize = 32 << 20;

/// Arguments of the kernel that finishes sums; the stride in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct FinishArgs {
    pub product: ProductArgs,
    pub sums: u64,
    pub sum_stride: u64,
}

/// Arguments of the kernel that gathers rows; the stride in packs of 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct GatherArgs {
    pub input: u64,
    pub wanted: u64,
    pub out: u64,
    pub stride: u32,
    pub unused: u32,
}

/// Whether a product adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bias {
    /// It does not.
    None,
    /// One f32 for each feature.
    Added,
}

/// Most rows that stay with our kernels where the library is preferred.
pub fn most_of_ours(preferences: Preferences) -> usize {
    preferences.small_n_max.unwrap_or(super::products::FEW)
}

/// How the library's result becomes a product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The library stores it.
    Direct,
    /// The library stores sums in f32, and our kernel finishes them.
    Sums,
}

/// Whether the library multiplies these formats.
pub const fn multiplies(weights: Format, activations: Format) -> bool {
    matches!(
        (weights, activations),
        (Format::F32, Format::F32) | (Format::F16, Format::F16) | (Format::Bf16, Format::Bf16)
    )
}

/// How the library forms products of operands of a format, and in which order it adds them.
pub const fn compute(operands: Format) -> (Compute, Order) {
    match operands {
        Format::F32 => (Compute::F32Fma, Order::Library),
        _ => (Compute::MatrixUnits { depth: 16 }, Order::Library),
    }
}

/// Whether the library may serve products of these formats: what their contract follows from.
pub const fn serves(weights: Format, activations: Format, preferences: Preferences) -> bool {
    match (preferences.backend, preferences.variant) {
        (MatmulBackend::Auto | MatmulBackend::Own, _) | (_, VariantPreference::SmallN) => false,
        (MatmulBackend::CublasLt, VariantPreference::Auto | VariantPreference::Gemm) => {
            multiplies(weights, activations)
        }
    }
}

/// Whether the library serves a product of this many rows.
pub fn serves_rows(product: Product, rows: usize, preferences: Preferences) -> bool {
    serves(product.weights, product.activations, preferences)
        && match preferences.variant {
            VariantPreference::Auto => rows > most_of_ours(preferences),
            VariantPreference::SmallN => false,
            VariantPreference::Gemm => true,
        }
}

/// How the library's result becomes a product's.
pub const fn finish(epilogue: Epilogue, bias: Bias) -> Finish {
    match (epilogue, bias) {
        (Epilogue::Plain, _) | (Epilogue::Store, Bias::None) => Finish::Direct,
        (Epilogue::SwiGlu, _) | (Epilogue::Store, Bias::Added) => Finish::Sums,
    }
}

/// The kernel that finishes sums.
pub fn finish_spec(product: Product) -> KernelSpec {
    // Rows of the input are not read: how they end is of no account.
    let aliases = super::products::aliases(product, 8);
    KernelSpec { file: SourceFile::LibraryFinish, entry: "library_finish", aliases }
}

/// The launch that finishes `rows` rows of `features` outputs.
pub fn finish_launch(rows: usize, features: usize) -> Launch {
    rows_of_blocks(rows, features, 256, 256)
}

/// The kernel that gathers rows.
pub fn gather_spec() -> KernelSpec {
    KernelSpec { file: SourceFile::LibraryGather, entry: "library_gather", aliases: Vec::<Alias>::new() }
}

/// The launch that gathers `rows` rows of `packs` packs.
pub fn gather_launch(rows: usize, packs: usize) -> Launch {
    rows_of_blocks(rows, packs, 256, 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

    #[test]
    fn the_library_is_used_only_where_asked_for_and_able() {
        for weights in FORMATS {
            for activations in FORMATS {
                for &backend in MatmulBackend::ALL {
                    for &variant in VariantPreference::ALL {
                        let preferences = Preferences { backend, variant, ..Preferences::default() };
                        let asked = backend == MatmulBackend::CublasLt && weights == activations;
                        let product = Product { weights, activations, epilogue: Epilogue::Store };
                        let served = [1, 32, 33, 8192].map(|rows| serves_rows(product, rows, preferences));
                        let expected = match variant {
                            VariantPreference::Auto => [false, false, asked, asked],
                            VariantPreference::SmallN => [false; 4],
                            VariantPreference::Gemm => [asked; 4],
                        };
                        assert_eq!(served, expected, "{product:?} {preferences:?}");
                        assert_eq!(serves(weights, activations, preferences), served.contains(&true));
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_library_cannot_round_once_is_finished_by_a_kernel() {
        assert_eq!(finish(Epilogue::Store, Bias::None), Finish::Direct);
        assert_eq!(finish(Epilogue::Store, Bias::Added), Finish::Sums);
        assert_eq!(finish(Epilogue::SwiGlu, Bias::None), Finish::Sums);
        assert_eq!(finish(Epilogue::Plain, Bias::None), Finish::Direct);
    }

    #[test]
    fn arguments_are_laid_out_as_the_kernels_declare_them() {
        assert_eq!((size_of::<FinishArgs>(), size_of::<GatherArgs>()), (112, 32));
        assert_eq!(std::mem::offset_of!(FinishArgs, sums), 96);
    }

    #[test]
    fn the_contract_promises_no_order() {
        assert_eq!(compute(Format::F32), (Compute::F32Fma, Order::Library));
        assert_eq!(compute(Format::F16), (Compute::MatrixUnits { depth: 16 }, Order::Library));
    }
}
