//! strace beside a program that stays our own child: what it asks of the system, and calls that are made to
//! fail or to take long.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::program::within;

/// Where a trace goes.
pub(crate) struct Strace {
    folder: TempDir,
}

impl Strace {
    pub(crate) fn new() -> Self {
        let found = Command::new("strace")
            .arg("-V")
            .stdout(Stdio::null())
            .status();
        assert!(
            found.is_ok_and(|status| status.success()),
            "strace is missing; type `.ci/tools disks`"
        );
        let folder = tempfile::tempdir().expect("a folder for the trace");
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    /// The command that a program is started through, with all its threads: it stays the child of whoever starts it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Vec<String> {
        let mut command: Vec<_> = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o"]
            .map(str::to_owned)
            .into();
        command.push(self.file().display().to_string());
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        command
    }

    /// The same, to do something to a call, such as `fsync:error=EIO:when=2`, on these files alone.
    pub(crate) fn injecting(&self, fault: &str, files: &[PathBuf]) -> Vec<String> {
        let (call, _) = fault.split_once(':').expect("a call and its fault");
        let calls = format!("trace={call}");
        let inject = format!("inject={fault}");
        let files: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
        let mut arguments = vec!["-e", &calls, "-e", &inject];
        for file in &files {
            arguments.extend(["-P", file]);
        }
        self.command(&arguments)
    }

    /// What was traced, once the program has ended, and strace after it.
    pub(crate) fn finished(&self) -> String {
        within("the end of strace", || {
            let text = std::fs::read_to_string(self.file()).unwrap_or_default();
            text.ends_with("+++\n").then_some(text)
        })
    }

    /// How often something was done to a call, once the program has ended.
    pub(crate) fn num_injected(&self) -> usize {
        self.finished().matches("(INJECTED)").count()
    }
}

/// Every file that a store may have which has had few segments and snapshots, and its folder.
pub(crate) fn files_of_store(store: &Path) -> Vec<PathBuf> {
    let mut files = vec![store.to_owned(), store.join("lock")];
    let segments = (1..60).map(|number| format!("journal-{number:016x}"));
    let whole = segments.chain(["store".to_owned()]);
    files.extend(whole.flat_map(|name| [store.join(format!("{name}.tmp")), store.join(name)]));
    for partition in 0..2 {
        let name = format!("snapshot-{partition:04x}");
        files.extend((1..60).map(|token| store.join(format!("{name}.{token}.tmp"))));
        files.push(store.join(name));
    }
    files
}
