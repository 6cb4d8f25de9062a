//! What a measurement was made on, and by what: stands beside every number that is kept.

use mantissa::ops::BackendInfo;
use serde::{Deserialize, Serialize};

/// The program that measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The commit that it was built from, with `-dirty` where files differed from it; `unknown` where there was none.
    pub commit: String,
}

/// A device with the backend that computes on it, and the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the backend, such as `cpu`.
    pub backend: String,
    /// The device, in words.
    pub device: String,
    /// Instruction set or compute capability in use.
    pub features: String,
    /// Version of the device's driver, where it has one.
    pub driver: Option<String>,
    /// Threads, where the backend has them.
    pub threads: Option<usize>,
    /// The program.
    #[serde(flatten)]
    pub build: Build,
}

impl Machine {
    /// What a backend says of itself, with the program that asks it.
    pub fn new(info: &BackendInfo, build: &Build) -> Machine {
        Machine {
            backend: info.name.clone(),
            device: info.device.clone(),
            features: info.features.clone(),
            driver: info.driver.clone(),
            threads: info.threads,
            build: build.clone(),
        }
    }

    /// In one line: `Xeon (avx512, 2 threads), mantissa 0.1.0 (1a2b3c4)`.
    pub fn describe(&self) -> String {
        let mut parts = vec![self.features.clone()];
        parts.extend(self.driver.as_ref().map(|driver| format!("driver {driver}")));
        parts.extend(self.threads.map(|threads| format!("{threads} threads")));
        let Build { version, commit } = &self.build;
        format!("{} ({}), mantissa {version} ({commit})", self.device, parts.join(", "))
    }
}

/// Bytes of the processor's last-level cache, where the system says: on Linux.
pub fn last_level_cache() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |cache: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(cache.ok()?.path().join("size")).ok()?;
        bytes_of(text.trim())
    };
    caches.filter_map(size).max()
}

/// A size such as `32768K`.
fn bytes_of(size: &str) -> Option<usize> {
    let digits = size.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(bytes_of("48K"), Some(48 << 10));
        assert_eq!(bytes_of("32768K"), Some(32 << 20));
        assert_eq!(bytes_of("105M"), Some(105 << 20));
        assert_eq!(bytes_of("512"), Some(512));
        assert_eq!(["", "K", "1X", "1.5M", "99999999999999999999K"].map(bytes_of), [None; 5]);
        if let Some(bytes) = last_level_cache() {
            assert!((64 << 10..8 << 30).contains(&bytes), "{bytes} bytes");
        }
    }

    #[test]
    fn a_machine_is_described_and_kept_as_it_is() {
        let info = BackendInfo {
            name: "cuda".to_owned(),
            device: "H200".to_owned(),
            features: "sm_90".to_owned(),
            driver: Some("580.1".to_owned()),
            threads: None,
            prompt_rows: 512,
        };
        let build = Build { version: "0.1.0".to_owned(), commit: "1a2b3c4".to_owned() };
        let machine = Machine::new(&info, &build);
        assert_eq!(machine.describe(), "H200 (sm_90, driver 580.1), mantissa 0.1.0 (1a2b3c4)");
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    }
}
