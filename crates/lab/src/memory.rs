//! How much memory this process has used.

/// The most physical memory that the process has held so far, in bytes; nothing where the system does not say.
pub fn peak() -> Option<u64> {
    entry("/proc/self/status", "VmHWM:")
}

/// The physical memory that the process holds now, in bytes; nothing where the system does not say.
pub fn held() -> Option<u64> {
    entry("/proc/self/status", "VmRSS:")
}

/// Bytes of physical memory that a new process could have without anything being swapped out; nothing where the system does
/// not say.
pub fn available() -> Option<u64> {
    entry("/proc/meminfo", "MemAvailable:")
}

/// Bytes of an entry that is in kibibytes.
fn entry(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
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
        let (held, peak) = (super::held().unwrap(), super::peak().unwrap());
        assert!((100_000..=peak).contains(&held), "{held} of {peak} bytes");
        assert!(super::available().is_some_and(|bytes| bytes > 100_000));
    }
}
