//! Real disks whose faults are made at will; only root can make them. Gone with the guard.
//!
//! ```text
//! the daemon ─► ext4 ─► loop device ─► nbdfuse ─► a socket ─► Medium, in this process: it keeps what was flushed,
//!                                                             and apart from it what was written since
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::program::within;
use super::random::Random;

/// Big enough for ext4 with its journal and a small store, and quick to make.
const NUM_BYTES: usize = 24 * 1024 * 1024;
/// What a real disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_MAGIC: u64 = 0x0003_e889_0455_65a9;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// What the disk holds, and what is wrong with it.
#[derive(Debug)]
struct Medium {
    /// What a read answers.
    current: Vec<u8>,
    /// What stays when the power goes.
    flushed: Vec<u8>,
    /// What was written since the last flush, in order.
    unflushed: Vec<(usize, Vec<u8>)>,
    is_off: bool,
    /// Writes that contain these bytes are refused.
    refused: Option<&'static [u8]>,
    flush_takes: Duration,
    num_flushes: u64,
    num_refused: u64,
}

/// To how many writes a power cut did what, of those that were not flushed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    pub(crate) kept: u64,
    pub(crate) torn: u64,
    pub(crate) lost: u64,
}

impl Medium {
    fn write(&mut self, at: usize, bytes: Vec<u8>) -> Result<(), u32> {
        if self.is_off {
            return Err(EIO);
        }
        if self.refused.is_some_and(|part| contains(&bytes, part)) {
            self.num_refused += 1;
            return Err(EIO);
        }
        let place = self.current.get_mut(at..at + bytes.len()).ok_or(EINVAL)?;
        place.copy_from_slice(&bytes);
        self.unflushed.push((at, bytes));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), u32> {
        if self.is_off {
            return Err(EIO);
        }
        for (at, bytes) in self.unflushed.drain(..) {
            self.flushed[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        self.num_flushes += 1;
        Ok(())
    }

    fn cut(&mut self, random: &mut Random) -> Cut {
        self.is_off = true;
        let mut gone = Cut::default();
        // A disk writes what it holds in any order.
        let mut writes = std::mem::take(&mut self.unflushed);
        for i in (1..writes.len()).rev() {
            writes.swap(i, random.below(i as u64 + 1) as usize);
        }
        for (at, bytes) in writes {
            let sectors: Vec<_> = bytes.chunks(SECTOR_BYTES).collect();
            let kept: Vec<bool> = match random.below(3) {
                0 => vec![true; sectors.len()],
                1 => vec![false; sectors.len()],
                _ => sectors.iter().map(|_| random.below(2) == 0).collect(),
            };
            for (i, _) in kept.iter().enumerate().filter(|(_, is_kept)| **is_kept) {
                let begin = at + i * SECTOR_BYTES;
                self.flushed[begin..begin + sectors[i].len()].copy_from_slice(sectors[i]);
            }
            match kept.iter().filter(|is_kept| **is_kept).count() {
                0 => gone.lost += 1,
                num if num == kept.len() => gone.kept += 1,
                _ => gone.torn += 1,
            }
        }
        self.current.clone_from(&self.flushed);
        gone
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// A disk with ext4 on it, mounted.
pub(crate) struct Disk {
    folder: TempDir,
    medium: Arc<Mutex<Medium>>,
    device: Option<String>,
    fuse: Option<Child>,
}

impl Disk {
    /// Makes one, and mounts it.
    pub(crate) fn new() -> Self {
        assert_tools();
        let folder = tempfile::tempdir().expect("a folder for the disk");
        for mount_point in ["mounted", "plain"] {
            fs::create_dir(folder.path().join(mount_point)).expect("a mount point");
        }
        let image = folder.path().join("image");
        let file = fs::File::create(&image).expect("a file");
        file.set_len(NUM_BYTES as u64).expect("room for a disk");
        let ext4 = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-J",
            "size=4",
            "-E",
            "lazy_itable_init=0,nodiscard",
        ];
        succeeds(Command::new("mkfs.ext4").args(ext4).arg(&image));
        let bytes = fs::read(&image).expect("the file system");
        fs::remove_file(image).expect("the file");
        let medium = Medium {
            current: bytes.clone(),
            flushed: bytes,
            unflushed: Vec::new(),
            is_off: false,
            refused: None,
            flush_takes: Duration::ZERO,
            num_flushes: 0,
            num_refused: 0,
        };
        let medium = Arc::new(Mutex::new(medium));
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let served = Arc::clone(&medium);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = Arc::clone(&served);
                // It ends when the other side does.
                thread::spawn(move || serve(stream, &served).ok());
            }
        });
        let mut disk = Self {
            folder,
            medium,
            device: None,
            fuse: None,
        };
        disk.mount();
        disk
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().expect("nobody panics while holding it")
    }

    /// How often it was told to flush.
    pub(crate) fn num_flushes(&self) -> u64 {
        self.medium().num_flushes
    }

    /// How many writes it has refused.
    pub(crate) fn num_refused(&self) -> u64 {
        self.medium().num_refused
    }

    /// From now on it answers EIO to writes that contain these bytes: no bytes are in every write.
    pub(crate) fn refuse(&self, part: &'static [u8]) {
        self.medium().refused = Some(part);
    }

    /// From now on it refuses nothing.
    pub(crate) fn mend(&self) {
        self.medium().refused = None;
    }

    /// From now on a flush takes so long.
    pub(crate) fn flush_takes(&self, time: Duration) {
        self.medium().flush_takes = time;
    }

    /// Cuts its power: of what was not flushed anything may be missing, sector by sector and in any order.
    pub(crate) fn cut_power(&self, random: &mut Random) -> Cut {
        self.medium().cut(random)
    }

    /// Unmounts it, and mounts it again: nothing is known any more but what the medium holds.
    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.medium().is_off = false;
        self.mount();
    }

    fn mount(&mut self) {
        let plain = self.folder.path().join("plain");
        let file = plain.join("nbd");
        let socket = self.folder.path().join("socket");
        let fuse = Command::new("nbdfuse")
            .arg(&plain)
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .stdin(Stdio::null())
            // It would repeat every write that we refuse.
            .stderr(Stdio::null())
            .spawn();
        self.fuse = Some(fuse.expect("nbdfuse starts"));
        until("the device of nbdfuse", || {
            fs::metadata(&file).is_ok_and(|it| it.len() == NUM_BYTES as u64)
        });
        let device = succeeds(
            Command::new("losetup")
                .args(["--find", "--show"])
                .arg(&file),
        );
        self.device = Some(device.clone());
        // Only what is fsynced is written, so that a test says when.
        let options = ["-t", "ext4", "-o", "commit=300,noatime"];
        succeeds(
            Command::new("mount")
                .args(options)
                .arg(device)
                .arg(self.path()),
        );
    }

    fn unmount(&mut self) {
        if self.device.is_some() {
            unmount(&self.path());
        }
        if let Some(device) = self.device.take() {
            quietly(Command::new("losetup").args(["--detach", &device]));
        }
        if let Some(mut fuse) = self.fuse.take() {
            let plain = self.folder.path().join("plain");
            until("the end of nbdfuse", || {
                quietly(Command::new("umount").arg(&plain));
                fuse.try_wait().is_ok_and(|ended| ended.is_some())
            });
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// A small tmpfs: full after so many bytes, which can be changed.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// Makes one.
    pub(crate) fn new(num_bytes: u64) -> Self {
        assert_tools();
        let folder = tempfile::tempdir().expect("a folder for the disk");
        let size = format!("size={num_bytes}");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        succeeds(Command::new("mount").args(options).arg(folder.path()));
        Self(folder)
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives it another size.
    pub(crate) fn resize(&self, num_bytes: u64) {
        remount(self.path(), &format!("remount,size={num_bytes}"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path());
    }
}

fn assert_tools() {
    assert!(
        rustix::process::geteuid().is_root(),
        "a disk of its own needs root; run the tests as root"
    );
    let found = Command::new("nbdfuse")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "nbdfuse is missing; type `.ci/tools disks`"
    );
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn quietly(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn remount(path: &Path, options: &str) {
    succeeds(Command::new("mount").args(["-o", options]).arg(path));
}

/// A process that was killed may still hold it.
fn unmount(path: &Path) {
    until("the unmounting", || {
        quietly(Command::new("umount").arg(path))
    });
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, || is_so().then_some(()));
}

/// Serves one connection: the NBD protocol as far as nbdfuse speaks it.
#[expect(clippy::disallowed_methods, reason = "a slow flush is the fault")]
fn serve(mut stream: UnixStream, medium: &Mutex<Medium>) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT")?;
    // Fixed new style, and no zeroes behind the export.
    stream.write_all(&3_u16.to_be_bytes())?;
    read::<4>(&mut stream)?;
    negotiate(&mut stream)?;
    loop {
        let magic = u32::from_be_bytes(read(&mut stream)?);
        read::<2>(&mut stream)?;
        let kind = u16::from_be_bytes(read(&mut stream)?);
        let cookie: [u8; 8] = read(&mut stream)?;
        let at = u64::from_be_bytes(read(&mut stream)?) as usize;
        let len = u32::from_be_bytes(read(&mut stream)?) as usize;
        assert_eq!(magic, REQUEST_MAGIC, "a request of the NBD protocol");
        let mut written = vec![0; if kind == 1 { len } else { 0 }];
        stream.read_exact(&mut written)?;
        let lock = || medium.lock().expect("nobody panics while holding it");
        let answer = match kind {
            0 => {
                let medium = lock();
                let bytes = medium.current.get(at..at + len).map(<[u8]>::to_vec);
                if medium.is_off {
                    Err(EIO)
                } else {
                    bytes.ok_or(EINVAL)
                }
            }
            1 => lock().write(at, written).map(|()| Vec::new()),
            2 => return Ok(()),
            3 => {
                let time = lock().flush_takes;
                thread::sleep(time);
                lock().flush().map(|()| Vec::new())
            }
            _ => Err(EINVAL),
        };
        stream.write_all(&REPLY_MAGIC.to_be_bytes())?;
        stream.write_all(
            &answer
                .as_ref()
                .err()
                .map_or(0, |error| *error)
                .to_be_bytes(),
        )?;
        stream.write_all(&cookie)?;
        stream.write_all(&answer.unwrap_or_default())?;
    }
}

fn negotiate(stream: &mut UnixStream) -> io::Result<()> {
    const GO: u32 = 7;
    const INFO: u32 = 6;
    loop {
        read::<8>(stream)?;
        let option = u32::from_be_bytes(read(stream)?);
        let len = u32::from_be_bytes(read(stream)?);
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
            stream.write_all(&option.to_be_bytes())?;
            stream.write_all(&kind.to_be_bytes())?;
            stream.write_all(&(data.len() as u32).to_be_bytes())?;
            stream.write_all(data)
        };
        if option != GO && option != INFO {
            // Not supported.
            reply(0x8000_0001, &[])?;
            continue;
        }
        let mut export = vec![0, 0];
        export.extend_from_slice(&(NUM_BYTES as u64).to_be_bytes());
        // It has flags, and can be flushed.
        export.extend_from_slice(&5_u16.to_be_bytes());
        reply(3, &export)?;
        reply(1, &[])?;
        if option == GO {
            return Ok(());
        }
    }
}

fn read<const LEN: usize>(stream: &mut UnixStream) -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
