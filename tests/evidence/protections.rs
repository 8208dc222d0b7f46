//! A test that passes without the protection that it is there for proves nothing. Here each protection is taken
//! away in turn, in a copy of the tree, and its test must fail.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::root;
use crate::run::{Ended, folder, git, limited, run_into, say};

/// A protection, and how the code reads without it.
pub(crate) struct Protection {
    /// What it protects from, in words.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) file: &'static str,
    /// The text that protects; it stands there once.
    pub(crate) line: &'static str,
    /// What stands there without it.
    pub(crate) without: &'static str,
    /// The target of the test that must fail then: `lib`, `sim` or `it`.
    pub(crate) target: &'static str,
    /// That test.
    pub(crate) test: &'static str,
}

/// All that are taken away.
pub(crate) const PROTECTIONS: &[Protection] = &[];

/// How long a test may take that misses its protection: some wait for what then never comes.
const DEADLINE: Duration = Duration::from_mins(5);
const BUILD_DEADLINE: Duration = Duration::from_mins(20);

/// Takes each protection away in turn; a test that does not notice is a failure.
pub(crate) fn replay() {
    let copy = Copy::new();
    for protection in PROTECTIONS {
        // What fails anyway would notice everything.
        let tested = copy.cargo(protection, false);
        assert!(tested.is_well, "with {}: {}", protection.name, tested.last);
    }
    let mut unnoticed = Vec::new();
    for protection in PROTECTIONS {
        let began = Instant::now();
        let path = copy.tree.join(protection.file);
        let whole = fs::read_to_string(&path).expect("the file was copied");
        let without = whole.replacen(protection.line, protection.without, 1);
        fs::write(&path, without).expect("the copy can be written");
        let built = copy.cargo(protection, true);
        assert!(built.is_well, "without {}: {}", protection.name, built.last);
        let tested = copy.cargo(protection, false);
        fs::write(&path, whole).expect("the copy can be written");
        let (name, test) = (protection.name, protection.test);
        let seconds = began.elapsed().as_secs();
        if tested.is_well {
            unnoticed.push(name);
            say(&format!("{name}: NOT NOTICED by {test}, {seconds} s"));
        } else {
            say(&format!("{name}: noticed by {test}, {seconds} s"));
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}

/// A copy of the tree, and of what is built of its dependencies.
struct Copy {
    tree: std::path::PathBuf,
    target: std::path::PathBuf,
}

impl Copy {
    fn new() -> Self {
        let folder = folder().join("protections");
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        fs::remove_dir_all(&tree).ok();
        fs::create_dir_all(&tree).expect("a folder for the copy");
        for file in git(&["ls-files"]).lines() {
            let to = tree.join(file);
            fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("a folder");
            copy(&root().join(file), &to);
        }
        if !target.exists() {
            fs::create_dir_all(target.join("debug")).expect("a folder for the build");
            for part in ["build", "deps", ".fingerprint"] {
                copy(
                    &root().join("target/debug").join(part),
                    &target.join("debug").join(part),
                );
            }
        }
        let tools = tree.join("target");
        fs::create_dir_all(&tools).expect("a folder for the tools");
        std::os::unix::fs::symlink(root().join("target/tools"), tools.join("tools"))
            .expect("the tools can be linked");
        Self { tree, target }
    }

    fn cargo(&self, protection: &Protection, only_build: bool) -> Ended {
        let within = if only_build { BUILD_DEADLINE } else { DEADLINE };
        let mut cargo = limited("cargo", within);
        cargo
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .arg("test");
        match protection.target {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        if only_build {
            cargo.arg("--no-run");
        } else {
            cargo.args(["--", "--exact", protection.test]);
        }
        run_into(cargo, &folder().join("protections.log"))
    }
}

/// Copies with the times, by which cargo tells what is built already.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .args([from, to])
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "{} cannot be copied",
        from.display()
    );
}
