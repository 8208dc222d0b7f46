//! What the kernel knows of a process.

use std::fs;
use std::process::Child;
use std::time::Duration;

/// A process that does not outlive the bench.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// CPU time so far: `/proc` counts in hundredths of a second.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = self.read("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..]
            .split(' ')
            .collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// CPU time since it was so much.
    pub(crate) fn cpu_since(&self, before: Duration) -> Duration {
        self.cpu().saturating_sub(before)
    }

    /// Bytes of its memory that are resident.
    pub(crate) fn resident_bytes(&self) -> u64 {
        1024 * self.number("status", "VmRSS:")
    }

    /// Bytes that it has had written to disks.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.number("io", "write_bytes:")
    }

    fn number(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        let number = word.and_then(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("/proc/PID/{file} has no {name}"))
    }

    fn read(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.0.id());
        fs::read_to_string(path).expect("the process runs")
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already when all went well.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
