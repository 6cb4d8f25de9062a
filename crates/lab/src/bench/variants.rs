//! The variants that a backend chooses from, each preferred by a backend of its own.

use std::ops::RangeInclusive;

use mantissa::cpu::Isa;
use mantissa::cuda::CudaOptions;
use mantissa::cuda::families::products::{MatmulBackend, Preferences, VariantPreference};
use mantissa::{Device, Options};

use super::sweep::Variant;
use crate::{LabError, machine};

/// Bytes that the layers of a shape have together: so many times the last-level cache of the processor, within these
/// limits, of which the first stands where the system does not tell. Of twice the cache some layers would still be in it
/// when their turn comes, and more of them in some runs of a program than in others.
const CACHES: usize = 4;
const ROTATED: RangeInclusive<usize> = 64 << 20..=512 << 20;
/// The same on a GPU, whose caches hold 50 MB or more.
const ROTATED_ON_GPU: usize = 256 << 20;
/// The same for plain code, which never waits for memory.
const ROTATED_SCALAR: usize = 4 << 20;

/// The variants of matrix products: on the processor its instruction sets, best first, on a GPU the kinds of kernels and
/// NVIDIA's library. Those that are not there are named with the reason.
///
/// # Errors
/// Where the device itself cannot be used.
pub fn of_products(options: &Options) -> Result<(Vec<Variant>, Vec<String>), LabError> {
    match options.chosen_device().device {
        Device::Cuda(_) => on_gpu(options),
        Device::Cpu | Device::Auto => Ok((on_cpu(options)?, Vec::new())),
    }
}

/// The variants of attention: the instruction sets of the processor; a GPU has one, which is the backend's.
///
/// # Errors
/// Where the device cannot be used.
pub fn of_attention(options: &Options) -> Result<Vec<Variant>, LabError> {
    match options.chosen_device().device {
        Device::Cuda(_) => {
            let (name, backend) = ("own".to_owned(), options.backend()?);
            Ok(vec![Variant { name, backend, rotated_bytes: ROTATED_ON_GPU }])
        }
        Device::Cpu | Device::Auto => on_cpu(options),
    }
}

fn on_cpu(options: &Options) -> Result<Vec<Variant>, LabError> {
    let rotated = CACHES * machine::last_level_cache().unwrap_or(0);
    let rotated = rotated.clamp(*ROTATED.start(), *ROTATED.end());
    let variant = |isa: Isa| {
        let backend = Options { cpu_isa: Some(isa), ..options.clone() }.backend()?;
        let rotated_bytes = if isa == Isa::Scalar { ROTATED_SCALAR } else { rotated };
        Ok(Variant { name: isa.name().to_owned(), backend, rotated_bytes })
    };
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(variant).collect()
}

fn on_gpu(options: &Options) -> Result<(Vec<Variant>, Vec<String>), LabError> {
    let kinds = [
        ("smalln", MatmulBackend::Own, VariantPreference::SmallN),
        ("gemm", MatmulBackend::Own, VariantPreference::Gemm),
        ("cublaslt", MatmulBackend::CublasLt, VariantPreference::Gemm),
    ];
    let (mut variants, mut missing) = (Vec::new(), Vec::new());
    for (name, backend, variant) in kinds {
        let products = Preferences { backend, variant, ..options.cuda.products };
        let cuda = CudaOptions { products, ..options.cuda.clone() };
        match (Options { cuda, ..options.clone() }).backend() {
            Ok(backend) => {
                variants.push(Variant { name: name.to_owned(), backend, rotated_bytes: ROTATED_ON_GPU });
            }
            Err(error) if backend == MatmulBackend::CublasLt => missing.push(format!("{name}: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((variants, missing))
}
