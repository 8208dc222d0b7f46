//! What a process uses, as Linux counts it.

use std::fs;

/// Bytes of one MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// What a process uses at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Its memory, in bytes.
    pub(crate) resident: u64,
    /// The most memory that it ever had, in bytes.
    pub(crate) peak: u64,
    pub(crate) num_files: u64,
    pub(crate) num_threads: u64,
}

impl Usage {
    /// Looks at a process; `None` when it is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        };
        let num_in =
            |folder: &str| Some(fs::read_dir(format!("/proc/{pid}/{folder}")).ok()?.count() as u64);
        Some(Self {
            // A zombie has none.
            resident: field("VmRSS")? * 1024,
            peak: field("VmHWM")? * 1024,
            num_files: num_in("fd")?,
            num_threads: num_in("task")?,
        })
    }
}

/// Bytes, as a table says them.
pub(crate) fn mib(num_bytes: u64) -> String {
    format!("{} MiB", num_bytes / MIB)
}
