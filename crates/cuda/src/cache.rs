//! The paged KV cache in device memory; its layout is that of [`families::cache`](crate::families::cache).

use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::backend::PrepareError;
use mantissa_ops::batch::Limits;
use mantissa_ops::program::CacheSpec;

use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::{CudaError, prepare_error};
use crate::families::cache::{CacheLayer, CacheLayout, MIN_PAGE_SIZE};

const WHAT: &str = "KV cache";

/// Keys, values and their scales of all layers.
#[derive(Debug)]
pub(crate) struct KvCache {
    layout: CacheLayout,
    values: DeviceBuffer,
    scales: DeviceBuffer,
    pub format: CacheFormat,
}

/// The layout, where kernels can count its vectors and pages are not too small for them.
pub(crate) fn layout(
    spec: CacheSpec,
    format: CacheFormat,
    limits: &Limits,
) -> Result<CacheLayout, PrepareError> {
    if limits.page_size < MIN_PAGE_SIZE {
        return Err(PrepareError::Limit {
            what: "tokens of a page of the KV cache",
            got: limits.page_size,
            wanted: format!("{MIN_PAGE_SIZE} or more"),
        });
    }
    CacheLayout::new(spec, format, limits).ok_or_else(|| PrepareError::Limit {
        what: "pages of the KV cache",
        got: limits.pages,
        wanted: "few enough for 2^32 vectors in a layer".to_owned(),
    })
}

impl KvCache {
    pub fn new(
        spec: CacheSpec,
        format: CacheFormat,
        limits: &Limits,
        device: &Device,
    ) -> Result<KvCache, PrepareError> {
        let layout = layout(spec, format, limits)?;
        let failed = |error| prepare_error(WHAT, error);
        let values = device.allocate(layout.value_bytes(), WHAT).map_err(failed)?;
        let scales = device.allocate(layout.scale_bytes(), WHAT).map_err(failed)?;
        Ok(KvCache { layout, values, scales, format })
    }

    pub fn bytes(&self) -> u64 {
        (self.values.bytes() + self.scales.bytes()) as u64
    }

    pub fn layer(&self, layer: usize) -> CacheLayer {
        self.layout.layer(self.values.address(), self.scales.address(), layer)
    }

    /// Key and value vectors of each layer.
    pub fn layer_vectors(&self) -> usize {
        self.layout.layer_vectors()
    }

    /// Pages of each layer.
    pub fn pages(&self) -> usize {
        self.layout.shape().1
    }

    /// Copies a page in all layers; both lie inside the cache.
    pub fn copy_page(&self, from: usize, to: usize, stream: &Stream) -> Result<(), CudaError> {
        let (layers, pages, _) = self.layout.shape();
        let buffers =
            [(&self.values, self.layout.page_value_bytes()), (&self.scales, self.layout.page_scale_bytes())];
        for (buffer, page_bytes) in buffers {
            if page_bytes == 0 {
                continue;
            }
            for layer in 0..layers {
                let start = |page: usize| (layer * pages + page) * page_bytes;
                stream.copy_within(buffer, start(from)..start(from) + page_bytes, start(to))?;
            }
        }
        Ok(())
    }
}
