//! What the device can do at most, measured by the kernels of [`families::ceilings`](crate::families::ceilings).

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_ops::ceilings::{CeilingError, Ceilings, Unit};

use crate::backend::Machine;
use crate::device::{DeviceBuffer, Kernel, Stream};
use crate::error::CudaError;
use crate::families::ceilings::{self, CeilingArgs};
use crate::kernel::{KernelSpec, Launch};

/// Bytes read for one measurement, by as many passes as that takes.
const READ_BYTES: u64 = 16 << 30;
/// Steps of a launch, and launches of one measurement: together 10 to 30 ms, after which the clock has settled.
const STEPS: u32 = 1 << 16;
const LAUNCHES: u64 = 3;

/// Measures one device.
pub(crate) struct CudaCeilings<'a> {
    machine: &'a Machine,
    stream: Stream,
    /// Random bytes, whole blocks of the kernel that reads them.
    input: DeviceBuffer,
    out: DeviceBuffer,
}

impl CudaCeilings<'_> {
    /// Fills a buffer of about `bytes` bytes.
    pub fn new(machine: &Machine, bytes: usize) -> Result<CudaCeilings<'_>, CudaError> {
        let block = ceilings::stream_block_bytes() as usize;
        let whole = (bytes / block).max(1) * block;
        let ceilings = CudaCeilings {
            machine,
            stream: machine.device.stream()?,
            input: machine.device.allocate(whole, "ceilings")?,
            out: machine.device.allocate(ceilings::OUT_BYTES, "ceilings")?,
        };
        let fill = ceilings.kernel(ceilings::fill_stream())?;
        ceilings.launch(&fill, ceilings::stream_shape(whole as u64), 0)?;
        ceilings.stream.synchronize()?;
        Ok(ceilings)
    }

    fn kernel(&self, spec: KernelSpec) -> Result<Arc<Kernel>, CudaError> {
        let loaded = self.machine.store.load(&self.machine.device, std::slice::from_ref(&spec))?;
        let missing =
            || CudaError::Driver { during: "loading a kernel", message: format!("{spec} is missing") };
        loaded.get(&spec).cloned().ok_or_else(missing)
    }

    fn launch(&self, kernel: &Kernel, launch: Launch, steps: u32) -> Result<(), CudaError> {
        let args = CeilingArgs { input: self.input.address(), out: self.out.address(), steps, unused: 0 };
        // SAFETY: `CeilingArgs` mirrors the kernels' struct; the launches are those of `families::ceilings`, whose
        // kernels touch `stream_block_bytes` of the input for each block, at most the whole of it, and `OUT_BYTES`.
        unsafe { self.stream.launch(kernel, launch, &args) }
    }

    /// Seconds of `times` launches, after one that is not counted.
    fn time(&self, spec: KernelSpec, launch: Launch, steps: u32, times: u64) -> Result<f64, CudaError> {
        self.machine.device.bind()?;
        let kernel = self.kernel(spec)?;
        self.launch(&kernel, launch, steps)?;
        let start = self.stream.record()?;
        for _ in 0..times {
            self.launch(&kernel, launch, steps)?;
        }
        start.seconds_until(&self.stream.record()?)
    }
}

fn failed(error: CudaError) -> CeilingError {
    CeilingError::Device(error.to_string())
}

impl Ceilings for CudaCeilings<'_> {
    fn read(&self) -> Result<f64, CeilingError> {
        let bytes = self.input.bytes() as u64;
        let passes = READ_BYTES.div_ceil(bytes).min(64);
        let shape = ceilings::stream_shape(bytes);
        let seconds = self.time(ceilings::read_stream(), shape, 0, passes).map_err(failed)?;
        Ok((bytes * passes) as f64 / seconds)
    }

    fn multiply(&self, unit: Unit) -> Result<f64, CeilingError> {
        let info = self.machine.device.info();
        let (spec, (launch, operations)) = match unit {
            Unit::F32Fma => (ceilings::fma_steps(), ceilings::fma_shape(info.multiprocessors, STEPS)),
            Unit::Matrix(format @ (Format::F16 | Format::Bf16)) => {
                (ceilings::matrix_steps(format), ceilings::matrix_shape(info.multiprocessors, STEPS))
            }
            Unit::Bf16Pairs | Unit::Matrix(_) => {
                return Err(CeilingError::Unit { backend: format!("cuda:{}", info.ordinal), unit });
            }
        };
        let seconds = self.time(spec, launch, STEPS, LAUNCHES).map_err(failed)?;
        Ok(operations * LAUNCHES as f64 / seconds)
    }
}
