//! The conformance suite on the first GPU, and the products of cuBLASLt under their own contracts. Where there is none, or
//! no NVRTC, or no cuBLASLt, every test is reported as skipped.

#[path = "gpu/backend.rs"]
mod gpu;

use std::sync::OnceLock;

use mantissa_cuda::families::products::{MatmulBackend, Preferences, VariantPreference};
use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_numerics::contract::{Family, OpContract, Order};
use mantissa_ops::Backend;
use mantissa_ops::conformance::{check_family, or_skip};

/// The device, shared by all tests so that each kernel is loaded once, or why there is none.
fn backend() -> Result<&'static CudaBackend, String> {
    static BACKEND: OnceLock<Result<CudaBackend, String>> = OnceLock::new();
    BACKEND.get_or_init(|| gpu::open(CudaOptions::default())).as_ref().map_err(Clone::clone)
}

/// The same, with every product that cuBLASLt can form left to it.
fn library() -> Result<&'static CudaBackend, String> {
    static BACKEND: OnceLock<Result<CudaBackend, String>> = OnceLock::new();
    let (backend, variant) = (MatmulBackend::CublasLt, VariantPreference::Gemm);
    let products = Preferences { backend, variant, ..Preferences::default() };
    BACKEND
        .get_or_init(|| gpu::open(CudaOptions { products, ..CudaOptions::default() }))
        .as_ref()
        .map_err(Clone::clone)
}

/// Runs the contracts of a family that leave their order to the library.
fn check_library(family: Family) {
    let Some(backend) = or_skip(library()) else { return };
    let promised =
        |contract: &&OpContract| contract.query.family == family && contract.order == Order::Library;
    assert!(backend.contracts().iter().any(|contract| promised(&contract)), "{family} is left to no library");
    if let Err(failures) = check_family(backend, family) {
        panic!("{failures}");
    }
}

#[test]
fn matmul_by_cublaslt() {
    check_library(Family::Matmul);
}

#[test]
fn qkv_by_cublaslt() {
    check_library(Family::Qkv);
}

#[test]
fn swiglu_by_cublaslt() {
    check_library(Family::SwiGlu);
}

#[test]
fn ffn_by_cublaslt() {
    check_library(Family::Ffn);
}

#[test]
fn logits_by_cublaslt() {
    check_library(Family::Logits);
}

mantissa_ops::conformance!(try backend());
