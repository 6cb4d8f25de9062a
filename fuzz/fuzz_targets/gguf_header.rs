//! GGUF headers: any bytes give an error or tensors that lie within them.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mantissa_model::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    if let Ok(gguf) = Gguf::parse(data, Path::new("fuzz.gguf")) {
        for tensor in gguf.tensors() {
            assert!(data.get(tensor.range.clone()).is_some());
            assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        }
    }
});
