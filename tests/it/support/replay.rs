//! What a power cut may leave of a folder, from a trace of the calls that wrote it.
//!
//! Nothing but an fsync makes anything durable: that of a file its bytes, that of the folder its names. What was
//! written, created, renamed or removed since may be there or not, each by itself, in any order; a write may be
//! there in part, and as zeros. An fsync covers what was done before it began, and counts once it has returned.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use super::random::Random;

/// A disk writes these whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The calls that are replayed, and those that would change a file in a way that is not.
pub(crate) const CALLS: &str = "trace=openat,close,write,fsync,fdatasync,rename,unlink,\
    pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,\
    renameat,renameat2,unlinkat,link,linkat,symlink,symlinkat,creat,open,mmap";

/// The content of a folder, by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Reads a folder.
pub(crate) fn read_files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).expect("a folder");
    let read = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name of ours");
        (name, fs::read(entry.path()).expect("a file"))
    });
    read.collect()
}

/// Makes a folder hold these files and nothing else.
pub(crate) fn write_files(folder: &Path, files: &Files) {
    for entry in fs::read_dir(folder).expect("a folder") {
        fs::remove_file(entry.expect("an entry").path()).expect("a file");
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).expect("a file");
    }
}

/// One step of a trace.
enum Step {
    Open {
        fd: i32,
        name: String,
        is_emptied: bool,
    },
    OpenFolder {
        fd: i32,
    },
    /// Another file, or none any more.
    Forget {
        fd: i32,
    },
    Write {
        fd: i32,
        bytes: Vec<u8>,
    },
    SyncBegins {
        call: usize,
        fd: i32,
    },
    SyncEnds {
        call: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    /// Somebody was told this: it is durable from now on.
    Told(String),
}

/// A trace of one process, step by step.
pub(crate) struct Recording {
    steps: Vec<Step>,
    /// How many of them are an fsync that returned.
    pub(crate) num_syncs: u64,
}

impl Recording {
    /// Reads what `strace -f -xx` wrote: what happened in `folder`, and what was written to the file `told`.
    pub(crate) fn read(trace: &str, folder: &Path, told: &Path) -> Self {
        let mut parser = Parser {
            folder: format!("{}/", folder.display()),
            told: told.display().to_string(),
            steps: Vec::new(),
            open: HashMap::new(),
            begun: HashMap::new(),
            num_calls: 0,
        };
        for line in trace.lines() {
            parser.line(line);
        }
        let steps = parser.steps;
        let ends = steps
            .iter()
            .filter(|it| matches!(it, Step::SyncEnds { .. }));
        let num_syncs = ends.count() as u64;
        Self { steps, num_syncs }
    }

    /// How many steps there are.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// What is on the disk and what is only on its way there, after each of these steps.
    pub(crate) fn replay<'a>(&'a self, before: &Files, mut take: impl FnMut(usize, &Replay<'a>)) {
        let mut replay = Replay::new(before);
        for (i, step) in self.steps.iter().enumerate() {
            replay.step(step);
            take(i, &replay);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Opened {
    File,
    Folder,
    Told,
}

struct Parser {
    folder: String,
    told: String,
    steps: Vec<Step>,
    open: HashMap<i32, Opened>,
    /// By thread: the call that has begun, without its result.
    begun: HashMap<String, (usize, String)>,
    num_calls: usize,
}

impl Parser {
    fn line(&mut self, line: &str) {
        let (thread, rest) = line.split_once(' ').expect("a thread and its call");
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            return;
        }
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            let call = self.begins(begin);
            self.begun
                .insert(thread.to_owned(), (call, begin.to_owned()));
        } else if rest.starts_with("<... ") {
            let (_, end) = rest.split_once(" resumed>").expect("a call that resumed");
            let call = self.begun.remove(thread);
            let (call, begin) = call.expect("a call that resumes has begun");
            self.ends(call, &format!("{begin}{end}"));
        } else {
            let call = self.begins(rest);
            self.ends(call, rest);
        }
    }

    fn begins(&mut self, text: &str) -> usize {
        self.num_calls += 1;
        let call = self.num_calls;
        let (name, arguments) = text.split_once('(').expect("a call has arguments");
        match name {
            "close" => {
                let fd = first_number(arguments);
                if self.open.remove(&fd).is_some() {
                    self.steps.push(Step::Forget { fd });
                }
            }
            "write" => {
                let fd = first_number(arguments);
                match self.open.get(&fd) {
                    Some(Opened::File) => {
                        let bytes = strings(arguments).remove(0);
                        self.steps.push(Step::Write { fd, bytes });
                    }
                    Some(Opened::Told) => {
                        let text = String::from_utf8(strings(arguments).remove(0));
                        self.steps.push(Step::Told(text.expect("a text")));
                    }
                    Some(Opened::Folder) | None => {}
                }
            }
            "fsync" | "fdatasync" => {
                let fd = first_number(arguments);
                if self.open.contains_key(&fd) {
                    self.steps.push(Step::SyncBegins { call, fd });
                }
            }
            "rename" | "unlink" => {
                let mut names = strings(arguments)
                    .into_iter()
                    .map_while(|it| self.name_of(it));
                let step = match (name, names.next(), names.next()) {
                    ("rename", Some(from), Some(to)) => Some(Step::Rename { from, to }),
                    ("unlink", Some(name), None) => Some(Step::Remove { name }),
                    _ => None,
                };
                self.steps.extend(step);
            }
            // Known once it has returned.
            "openat" => {}
            "mmap" => assert!(
                !arguments.contains("MAP_SHARED") || !arguments.contains("PROT_WRITE"),
                "the replay knows no such call: {text}"
            ),
            _ => {
                let fd = first_number(arguments);
                let is_ours = self.open.contains_key(&fd)
                    || strings(arguments)
                        .into_iter()
                        .any(|it| self.name_of(it).is_some());
                assert!(!is_ours, "the replay knows no such call: {text}");
            }
        }
        call
    }

    fn ends(&mut self, call: usize, text: &str) {
        let (begin, result) = text.rsplit_once(" = ").expect("a call has a result");
        let (name, arguments) = begin.split_once('(').expect("a call has arguments");
        let result = result
            .split(' ')
            .next()
            .and_then(|it| it.parse::<i64>().ok());
        match name {
            "openat" => {
                let Some(fd) = result
                    .and_then(|fd| i32::try_from(fd).ok())
                    .filter(|fd| *fd >= 0)
                else {
                    return;
                };
                let path = strings(arguments).remove(0);
                let path_text = String::from_utf8_lossy(&path).into_owned();
                if path_text == self.told {
                    self.open.insert(fd, Opened::Told);
                } else if path_text == self.folder.trim_end_matches('/') {
                    self.open.insert(fd, Opened::Folder);
                    self.steps.push(Step::OpenFolder { fd });
                } else if let Some(name) = self.name_of(path) {
                    self.open.insert(fd, Opened::File);
                    let is_emptied = arguments.contains("O_TRUNC");
                    assert!(
                        !arguments.contains("O_APPEND"),
                        "the replay knows no such call: {text}"
                    );
                    self.steps.push(Step::Open {
                        fd,
                        name,
                        is_emptied,
                    });
                } else if self.open.remove(&fd).is_some() {
                    self.steps.push(Step::Forget { fd });
                }
            }
            "fsync" | "fdatasync" if self.open.contains_key(&first_number(arguments)) => {
                assert_eq!(result, Some(0), "{text}");
                self.steps.push(Step::SyncEnds { call });
            }
            "write" if self.open.get(&first_number(arguments)) == Some(&Opened::File) => {
                let len = strings(arguments).remove(0).len();
                assert_eq!(result, i64::try_from(len).ok(), "{text}");
            }
            "rename" | "unlink" => assert_eq!(result, Some(0), "{text}"),
            _ => {}
        }
    }

    fn name_of(&self, path: Vec<u8>) -> Option<String> {
        let path = String::from_utf8(path).ok()?;
        path.strip_prefix(&self.folder).map(str::to_owned)
    }
}

fn first_number(arguments: &str) -> i32 {
    let digits = arguments.split([',', ')']).next().unwrap_or_default();
    digits.trim().parse().unwrap_or(-1)
}

/// What is quoted, each byte of which stands as `\x2f`.
fn strings(arguments: &str) -> Vec<Vec<u8>> {
    let quoted = arguments.split('"').skip(1).step_by(2);
    let bytes = quoted.map(|quoted| {
        let digits = quoted.split("\\x").skip(1);
        let bytes = digits.map(|it| u8::from_str_radix(it, 16).expect("a byte"));
        bytes.collect()
    });
    bytes.collect()
}

#[derive(Clone)]
enum Change<'a> {
    Emptied,
    Written { at: usize, bytes: &'a [u8] },
}

/// Steps of which only the first so many are durable.
struct Log<T> {
    num_before: usize,
    waiting: Vec<T>,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self {
            num_before: 0,
            waiting: Vec::new(),
        }
    }
}

impl<T> Log<T> {
    fn num(&self) -> usize {
        self.num_before + self.waiting.len()
    }

    /// Takes those out that an fsync covered.
    fn up_to(&mut self, num: usize) -> Vec<T> {
        let num_covered = num.saturating_sub(self.num_before);
        self.num_before += num_covered;
        self.waiting.drain(..num_covered).collect()
    }
}

#[derive(Default)]
struct Inode<'a> {
    durable: Vec<u8>,
    changes: Log<Change<'a>>,
}

#[derive(Clone)]
struct Renaming {
    put: Option<(String, usize)>,
    removed: Option<String>,
}

/// A folder at one moment: what is durable of it, and what is not.
pub(crate) struct Replay<'a> {
    inodes: Vec<Inode<'a>>,
    durable_names: BTreeMap<String, usize>,
    renamings: Log<Renaming>,
    names: BTreeMap<String, usize>,
    /// The file behind a descriptor and where it writes next; `None` for the folder.
    open: HashMap<i32, Option<(usize, usize)>>,
    syncs: HashMap<usize, (Option<usize>, usize)>,
    /// What somebody was told, in order.
    pub(crate) told: Vec<&'a str>,
}

impl<'a> Replay<'a> {
    fn new(before: &Files) -> Self {
        let names: BTreeMap<_, _> = before.keys().cloned().zip(0..).collect();
        let inodes = before.values().map(|bytes| Inode {
            durable: bytes.clone(),
            changes: Log::default(),
        });
        Self {
            inodes: inodes.collect(),
            durable_names: names.clone(),
            renamings: Log::default(),
            names,
            open: HashMap::new(),
            syncs: HashMap::new(),
            told: Vec::new(),
        }
    }

    fn rename(&mut self, put: Option<(String, usize)>, removed: Option<String>) {
        let renaming = Renaming { put, removed };
        apply_renaming(&mut self.names, &renaming);
        self.renamings.waiting.push(renaming);
    }

    fn step(&mut self, step: &'a Step) {
        match step {
            Step::Open {
                fd,
                name,
                is_emptied,
            } => {
                let inode = if let Some(inode) = self.names.get(name) {
                    *inode
                } else {
                    self.inodes.push(Inode::default());
                    let inode = self.inodes.len() - 1;
                    self.rename(Some((name.clone(), inode)), None);
                    inode
                };
                if *is_emptied {
                    self.inodes[inode].changes.waiting.push(Change::Emptied);
                }
                self.open.insert(*fd, Some((inode, 0)));
            }
            Step::OpenFolder { fd } => {
                self.open.insert(*fd, None);
            }
            Step::Forget { fd } => {
                self.open.remove(fd);
            }
            Step::Write { fd, bytes } => {
                let opened = self.open.get_mut(fd).and_then(Option::as_mut);
                let (inode, at) = opened.expect("a file that is written is open");
                let written = Change::Written { at: *at, bytes };
                *at += bytes.len();
                self.inodes[*inode].changes.waiting.push(written);
            }
            Step::SyncBegins { call, fd } => {
                let inode = self.open[fd].map(|(inode, _)| inode);
                let num = match inode {
                    Some(inode) => self.inodes[inode].changes.num(),
                    None => self.renamings.num(),
                };
                self.syncs.insert(*call, (inode, num));
            }
            Step::SyncEnds { call } => match self.syncs.remove(call) {
                Some((Some(inode), num)) => {
                    let inode = &mut self.inodes[inode];
                    for change in inode.changes.up_to(num) {
                        apply_change(&mut inode.durable, &change, |_| true);
                    }
                }
                Some((None, num)) => {
                    for renaming in self.renamings.up_to(num) {
                        apply_renaming(&mut self.durable_names, &renaming);
                    }
                }
                None => panic!("an fsync that ends has begun"),
            },
            Step::Rename { from, to } => {
                let inode = self.names[from];
                self.rename(Some((to.clone(), inode)), Some(from.clone()));
            }
            Step::Remove { name } => self.rename(None, Some(name.clone())),
            Step::Told(text) => self.told.push(text),
        }
    }

    /// What a power cut leaves where nothing that was not fsynced reached the disk.
    pub(crate) fn without_the_rest(&self) -> Files {
        self.cut(|_| false, |_, _, _| false)
    }

    /// What it leaves where everything did.
    pub(crate) fn with_the_rest(&self) -> Files {
        self.cut(|_| true, |_, _, _| true)
    }

    /// What it leaves where any of it did, in any order and in part.
    pub(crate) fn with_any_of_the_rest(&self, random: &mut Random) -> Files {
        let salt = random.next();
        // One draw for each name, one for each change, one for each sector of a change that is torn.
        let draw = |of: [usize; 3]| {
            let [one, two, three] = of.map(|it| it as u64);
            let seed = salt
                ^ one.wrapping_mul(0x9e37)
                ^ two.wrapping_mul(0x0123_4567_89ab)
                ^ (three << 44);
            Random(seed).next()
        };
        self.cut(
            |i| draw([0, i, 0]) % 2 == 0,
            |inode, i, sector| match draw([1 + inode, i, 0]) % 3 {
                0 => true,
                1 => false,
                _ => draw([1 + inode, i, 1 + sector]) % 2 == 0,
            },
        )
    }

    fn cut(
        &self,
        is_renamed: impl Fn(usize) -> bool,
        is_written: impl Fn(usize, usize, usize) -> bool,
    ) -> Files {
        let mut names = self.durable_names.clone();
        for (i, renaming) in self.renamings.waiting.iter().enumerate() {
            if is_renamed(i) {
                apply_renaming(&mut names, renaming);
            }
        }
        let content = |inode: usize| {
            let mut bytes = self.inodes[inode].durable.clone();
            for (i, change) in self.inodes[inode].changes.waiting.iter().enumerate() {
                apply_change(&mut bytes, change, |sector| is_written(inode, i, sector));
            }
            bytes
        };
        names
            .into_iter()
            .map(|(name, inode)| (name, content(inode)))
            .collect()
    }
}

fn apply_renaming(names: &mut BTreeMap<String, usize>, renaming: &Renaming) {
    if let Some(removed) = &renaming.removed {
        names.remove(removed);
    }
    if let Some((name, inode)) = &renaming.put {
        names.insert(name.clone(), *inode);
    }
}

/// Applies those sectors of a change that reached the disk; a file that became longer has zeros for the others.
fn apply_change(bytes: &mut Vec<u8>, change: &Change<'_>, is_written: impl Fn(usize) -> bool) {
    match change {
        Change::Emptied => {
            if is_written(0) {
                bytes.clear();
            }
        }
        Change::Written { at, bytes: written } => {
            let mut begin = *at;
            let end = at + written.len();
            while begin < end {
                let next = end.min((begin / SECTOR_BYTES + 1) * SECTOR_BYTES);
                if is_written(begin / SECTOR_BYTES) {
                    if bytes.len() < next {
                        bytes.resize(next, 0);
                    }
                    bytes[begin..next].copy_from_slice(&written[begin - at..next - at]);
                }
                begin = next;
            }
        }
    }
}
