//! The kernels of a device: compiled or taken from disk once, loaded once, shared by all sessions.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::compile::Nvrtc;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::kernel::KernelSpec;
use crate::kernel_cache::KernelCache;

/// Kernels by name.
pub(crate) type Loaded = HashMap<KernelSpec, Arc<Kernel>>;

/// Where kernels come from.
#[derive(Debug)]
pub(crate) struct KernelStore {
    nvrtc: Nvrtc,
    cache: KernelCache,
    loaded: Mutex<Loaded>,
}

impl KernelStore {
    pub fn new(nvrtc: Nvrtc, cache: KernelCache) -> KernelStore {
        KernelStore { nvrtc, cache, loaded: Mutex::default() }
    }

    /// These kernels, loaded. What is missing is compiled, on all processors.
    pub fn load(&self, device: &Device, specs: &[KernelSpec]) -> Result<Loaded, CudaError> {
        // A panic while the lock is held leaves a map of whole entries.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<&KernelSpec> = Vec::new();
        for spec in specs {
            if !loaded.contains_key(spec) && !missing.contains(&spec) {
                missing.push(spec);
            }
        }
        for (spec, cubin) in missing.iter().zip(self.compile(device, &missing)?) {
            let kernel = Arc::new(device.load(spec, &cubin)?);
            loaded.insert((*spec).clone(), kernel);
        }
        let wanted = specs.iter().filter_map(|spec| Some((spec.clone(), Arc::clone(loaded.get(spec)?))));
        Ok(wanted.collect())
    }

    fn compile(&self, device: &Device, specs: &[&KernelSpec]) -> Result<Vec<Vec<u8>>, CudaError> {
        let arch = device.info().arch;
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(spec) = specs.get(index) else { return done };
                done.push((index, self.cache.cubin(spec, arch, &self.nvrtc)));
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(specs.len());
        let mut results: Vec<(usize, Result<Vec<u8>, CudaError>)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut results = work();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => results.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            results
        });
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}
