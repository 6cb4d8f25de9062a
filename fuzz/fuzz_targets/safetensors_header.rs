//! Safetensors headers: any bytes give an error or tensors that lie within them, one behind the other.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mantissa_model::safetensors_file;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensors) = safetensors_file::parse(data, Path::new("fuzz.safetensors")) {
        let total: usize = tensors.values().map(|tensor| tensor.range.len()).sum();
        assert!(total < data.len());
        assert!(tensors.values().all(|tensor| data.get(tensor.range.clone()).is_some()));
    }
});
