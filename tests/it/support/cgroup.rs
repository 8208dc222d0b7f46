//! A control group for one process: the kernel's limits on its memory and its processors, gone with the guard.
//!
//! Version 1 where the controller has a hierarchy of its own, else version 2; both need root. A process is put
//! into its group by the shell that becomes it: all of its memory is counted from its first instruction.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MOUNT: &str = "/sys/fs/cgroup";
/// How long one window of the processors' quota is, in microseconds.
const PERIOD_US: u64 = 200_000;
/// Enters the groups named before `--`, then becomes what is named behind it.
const ENTER: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@""#;

/// What is limited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

/// A group of one controller. Dropped, it is removed.
pub(crate) struct Cgroup {
    version: Version,
    folder: PathBuf,
}

impl Cgroup {
    /// A group without a limit.
    pub(crate) fn new(controller: Controller) -> Self {
        static NUM: AtomicUsize = AtomicUsize::new(0);
        let (version, parent) = parent_of(controller);
        let num = NUM.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("tocsin-test-{}-{num}", std::process::id()));
        fs::create_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}; control groups need root", folder.display())
        });
        Self { version, folder }
    }

    /// A group that the kernel lets have so much memory, and no swap.
    pub(crate) fn of_memory(num_bytes: u64) -> Self {
        let group = Self::new(Controller::Memory);
        match group.version {
            Version::One => {
                group.write("memory.limit_in_bytes", &num_bytes.to_string());
                if group.folder.join("memory.memsw.limit_in_bytes").exists() {
                    group.write("memory.memsw.limit_in_bytes", &num_bytes.to_string());
                }
            }
            Version::Two => {
                group.write("memory.max", &num_bytes.to_string());
                group.write("memory.swap.max", "0");
            }
        }
        group
    }

    /// Lets it have so many thousandths of one processor from now on; `None`: all of them.
    pub(crate) fn limit_cpu(&self, thousandths: Option<u64>) {
        let quota = thousandths.map(|it| it * PERIOD_US / 1000);
        match self.version {
            Version::One => {
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                self.write("cpu.cfs_quota_us", &quota);
            }
            Version::Two => {
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                self.write("cpu.max", &format!("{quota} {PERIOD_US}"));
            }
        }
    }

    /// Which kind of control groups this machine has.
    pub(crate) const fn version(&self) -> &'static str {
        match self.version {
            Version::One => "cgroup v1",
            Version::Two => "cgroup v2",
        }
    }

    /// The words that start a program inside.
    pub(crate) fn launcher(&self) -> Vec<String> {
        let procs = self.folder.join("cgroup.procs").display().to_string();
        let words = ["/bin/sh", "-c", ENTER, "sh", procs.as_str(), "--"];
        words.map(str::to_owned).to_vec()
    }

    /// The most memory that it had at a time, the pages of its files included.
    pub(crate) fn peak_memory(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let text = self.read(file);
        text.trim().parse().expect("a number of bytes")
    }

    /// How often the kernel killed a process of it for want of memory.
    pub(crate) fn num_oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        self.field(file, "oom_kill")
    }

    /// In how many windows it had used up its share of the processors.
    pub(crate) fn num_throttled(&self) -> u64 {
        self.field("cpu.stat", "nr_throttled")
    }

    fn field(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("{file} has no {name}: {text}"));
        value.trim().parse().expect("a number")
    }

    fn read(&self, file: &str) -> String {
        let path = self.folder.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Cgroup {
    #[expect(
        clippy::disallowed_methods,
        reason = "a pause between two looks at the kernel"
    )]
    fn drop(&mut self) {
        // A process that was just killed may still be leaving.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where a group of that controller can be made: below our own.
fn parent_of(controller: Controller) -> (Version, PathBuf) {
    let name = controller.name();
    let groups = fs::read_to_string("/proc/self/cgroup").expect("Linux says our groups");
    // Each line is `number:controllers:path`; version 2 is number 0.
    let path_in = |is_it: &dyn Fn(&str, &str) -> bool| {
        groups.lines().find_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            is_it(number, controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let of_version_1 =
        path_in(&|_, controllers| controllers.split(',').any(|controller| controller == name));
    let mount = Path::new(MOUNT).join(name);
    if let Some(path) = of_version_1
        && mount.is_dir()
    {
        let own = mount.join(path);
        return (Version::One, if own.is_dir() { own } else { mount });
    }
    let mount = [Path::new(MOUNT).join("unified"), MOUNT.into()];
    let mount = mount
        .into_iter()
        .find(|it| it.join("cgroup.controllers").is_file());
    let (Some(path), Some(mount)) = (path_in(&|number, _| number == "0"), mount) else {
        panic!("no control groups with {name} below {MOUNT}");
    };
    // Version 2 allows groups with a controller only below one that shares it out.
    let own = mount.join(path);
    let shares = |folder: &Path| {
        let shared = fs::read_to_string(folder.join("cgroup.subtree_control"));
        shared.is_ok_and(|shared| shared.split_whitespace().any(|it| it == name))
    };
    let parent = own.ancestors().take_while(|it| it.starts_with(&mount));
    let parent = parent.into_iter().find(|folder| shares(folder));
    let parent = parent.unwrap_or_else(|| {
        panic!("no control group above ours shares out {name}; enable it in cgroup.subtree_control")
    });
    (Version::Two, parent.to_owned())
}
