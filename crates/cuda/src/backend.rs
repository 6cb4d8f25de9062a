//! A GPU as a [`Backend`]: contracts, kernel choice, and the way into a session.

use std::path::PathBuf;
use std::sync::Arc;

use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::PrecisionPolicy;
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, PrepareError, Progress, Session,
};
use mantissa_ops::{CeilingError, Ceilings, Limits, MemoryUse, Op, Plan, Program, ShapeClass, TensorSource};

use crate::ceilings::CudaCeilings;
use crate::compile::Nvrtc;
use crate::contracts::contracts;
use crate::cublaslt::CublasLt;
use crate::device::{Device, check_compiler};
use crate::error::CudaError;
use crate::families::products::{self, MatmulBackend};
use crate::families::softmax;
use crate::families::token::DecodeVariant;
use crate::kernel_cache::KernelCache;
use crate::kernels::KernelStore;
use crate::select::{self, Chooser, Formats};
use crate::session::CudaSession;

/// Rows of a batch at which products and attention run at their full rate, on a device of so much memory: where there is
/// much, the values of a large batch do not count.
fn prompt_rows(memory: u64) -> usize {
    if memory >= 64 << 30 { 8192 } else { 2048 }
}

/// How to use a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Where compiled kernels are kept; nowhere where none is given.
    pub kernel_cache: Option<PathBuf>,
    /// The library of NVRTC; looked for by the loader's rules where none is given.
    pub nvrtc: Option<PathBuf>,
    /// The library of cuBLASLt, where its products are preferred; looked for as NVRTC is where none is given.
    pub cublaslt: Option<PathBuf>,
    /// Whose products to use, and which variants of them.
    pub products: products::Preferences,
    /// Which variant of softmax to use; that changes speed, never results.
    pub softmax: softmax::Preferences,
    /// How to compute a token of one sequence; that changes speed, never results.
    pub decode: DecodeVariant,
}

/// One GPU.
#[derive(Debug)]
pub struct CudaBackend {
    machine: Machine,
    contracts: Vec<OpContract>,
}

/// What sessions share.
#[derive(Debug)]
pub(crate) struct Machine {
    pub device: Device,
    pub store: KernelStore,
    pub chooser: Chooser,
    /// Where its products are preferred.
    pub library: Option<Arc<CublasLt>>,
}

impl CudaBackend {
    /// Opens the device with this number and finds the compiler.
    ///
    /// # Errors
    /// Where the driver, the device, NVRTC or a library that is asked for is missing, or one of them is too old.
    pub fn new(ordinal: usize, options: &CudaOptions) -> Result<CudaBackend, CudaError> {
        let device = Device::open(ordinal)?;
        let nvrtc = Nvrtc::load(options.nvrtc.as_deref())?;
        check_compiler(device.info().driver, nvrtc.toolkit())?;
        let cache = match &options.kernel_cache {
            Some(directory) => KernelCache::new(directory),
            None => KernelCache::none(),
        };
        let chooser = Chooser::new(device.info(), options);
        let library = match options.products.backend {
            MatmulBackend::Auto | MatmulBackend::Own => None,
            MatmulBackend::CublasLt => Some(Arc::new(CublasLt::load(options.cublaslt.as_deref(), &device)?)),
        };
        let machine = Machine { device, store: KernelStore::new(nvrtc, cache), chooser, library };
        Ok(CudaBackend { machine, contracts: contracts(options.products) })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.machine.device
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> BackendInfo {
        let info = self.machine.device.info();
        BackendInfo {
            name: format!("cuda:{}", info.ordinal),
            device: info.name.clone(),
            features: match &self.machine.library {
                Some(library) => format!("{}, cuBLASLt {}", info.arch, library.version()),
                None => info.arch.to_string(),
            },
            driver: Some(info.driver_text()),
            threads: None,
            prompt_rows: prompt_rows(info.memory),
        }
    }

    fn contracts(&self) -> &[OpContract] {
        &self.contracts
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        select::choose(program, op, contract, class, &self.machine.chooser)
    }

    fn launches(
        &self,
        program: &Program,
        policy: &PrecisionPolicy,
        class: ShapeClass,
    ) -> Option<KernelChoice> {
        Some(self.machine.chooser.launches(program, Formats::of(policy), class))
    }

    fn memory(&self, plan: &Plan, limits: &Limits) -> Result<Option<MemoryUse>, PrepareError> {
        CudaSession::predict(&self.machine, plan, limits).map(Some)
    }

    fn ceilings(&self, bytes: usize) -> Result<Box<dyn Ceilings + '_>, CeilingError> {
        let ceilings = CudaCeilings::new(&self.machine, bytes)
            .map_err(|error| CeilingError::Device(error.to_string()))?;
        Ok(Box::new(ceilings))
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        let session = CudaSession::prepare(&self.machine, plan, source, options, progress)?;
        Ok(Box::new(session))
    }
}
