//! How much memory this process has used.

/// The most physical memory that the process has held so far, in bytes; nothing where the system does not say.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Bytes of physical memory that a new process could have without anything being swapped out; nothing where the system does
/// not say.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Makes [`peak`] count from now on, where the system can; elsewhere it goes on counting from the start.
pub fn reset_peak() {
    // 5 is what Linux takes for this: see proc_pid_clear_refs(5).
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn linux_says_how_much() {
        assert!(super::peak().is_some_and(|bytes| bytes > 100_000));
        assert!(super::available().is_some_and(|bytes| bytes > 100_000));
    }
}
