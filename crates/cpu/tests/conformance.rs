//! The conformance suite on the CPU backend, once per instruction set that this machine has.

use std::num::NonZeroUsize;

use mantissa_cpu::{CpuBackend, CpuOptions, Isa};

/// The backend on two threads, so that every kernel is split.
fn backend(isa: Isa) -> CpuBackend {
    let options = CpuOptions { threads: NonZeroUsize::new(2), isa: Some(isa), ..CpuOptions::default() };
    CpuBackend::new(options).unwrap_or_else(|error| panic!("{error}"))
}

mod best {
    mantissa_ops::conformance!(super::backend(mantissa_cpu::Isa::detect()));
}

mod scalar {
    mantissa_ops::conformance!(super::backend(mantissa_cpu::Isa::Scalar));
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use mantissa_cpu::Isa;

    /// AVX2 where there is AVX2; elsewhere the suite runs on the best set once more.
    fn available() -> Isa {
        if Isa::Avx2.is_available() { Isa::Avx2 } else { Isa::detect() }
    }

    mantissa_ops::conformance!(super::backend(available()));
}
