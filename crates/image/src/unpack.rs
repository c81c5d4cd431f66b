//! An image's file tree into a directory, for machines without `/dev/fuse` and for whoever wants to
//! change it.
//!
//! The tree is made beside its place under a hidden name, and appears complete or not at all. What an
//! image contains cannot lead out of it: every entry is made new, by name, in a directory that was made
//! here and that nobody else may enter meanwhile.
//!
//! Blocks and listings of an image may be shared, so that a small file can hold more than any disk; what is taken
//! out of it is bounded by its own size.
//!
//! Without root, all files belong to whoever unpacks; set-id bits and device nodes are left out, and
//! the owner may read everything and enter and empty every directory.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use situla_squashfs::{DirCookie, FileType, Image, Inode, ReadOptions};

use crate::convert::ConvertError;
use crate::file_error::FileError;
use crate::file_system::{Incapable, Lacks, is_inability};
use crate::flatten::MAX_ENTRIES;
use crate::image_file::ImageFile;
use crate::progress::{Event, Progress};
use crate::resources::Ledger;
use crate::traces::Trace;

/// Files that wait for a thread; each may hold a descriptor of its directory.
const MAX_WAITING: usize = 128;
/// Bytes of a file read at once: whole blocks of any image.
const CHUNK: usize = 1 << 20;
/// Entries of a directory read at once.
const ENTRIES: usize = 4096;
/// Bytes of content that are taken out of any image, and how many times its size beyond that: images of programs and
/// data are compressed to a half or a tenth.
const ALWAYS_WRITTEN: u64 = 16 << 30;
const MAX_RATIO: u64 = 200;
/// Memory for a name or directory that is kept until the end, without its path.
const KEPT_BYTES: u64 = 250;
/// Permission bits that an unprivileged copy keeps.
const PLAIN_MODE: u16 = 0o1777;

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and everything else that was made.
    pub n_entries: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
}

/// Unpacks an image file into a new directory `out`.
///
/// # Errors
/// When `out` exists (other than as an empty directory), the image cannot be read, or a file cannot be
/// made. Nothing is left then.
pub fn unpack_file(
    input: &ImageFile,
    out: &Path,
    n_threads: usize,
    progress: &dyn Progress,
) -> Result<Unpacked, ConvertError> {
    let (name, (_, window)) = (input.name(), input.root_window()?);
    let image = Image::open(window.over(input.try_clone()?), ReadOptions::default())
        .map_err(|source| ConvertError::NotSquashfs { path: name.to_owned(), source })?;
    unpack(&image, name, out, n_threads, progress)
}

/// Unpacks an open image, which `input` names in errors, into a new directory `out`.
///
/// # Errors
/// As [`unpack_file`].
pub(crate) fn unpack(
    image: &Image,
    input: &Path,
    out: &Path,
    n_threads: usize,
    progress: &dyn Progress,
) -> Result<Unpacked, ConvertError> {
    let superblock = image.superblock();
    let limits = Limits {
        entries: u64::from(superblock.inode_count).min(MAX_ENTRIES),
        written: superblock.bytes_used.saturating_mul(MAX_RATIO).max(ALWAYS_WRITTEN),
    };
    unpack_within(image, input, out, n_threads, limits, progress)
}

fn unpack_within(
    image: &Image,
    input: &Path,
    out: &Path,
    n_threads: usize,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Unpacked, ConvertError> {
    let exists = || ConvertError::Exists { path: out.to_owned() };
    let taken = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.symlink_metadata().is_ok(),
    };
    if taken {
        return Err(exists());
    }
    let pending = PendingDirectory::create(out).map_err(FileError::write(out))?;
    let work = Work {
        image,
        input,
        out,
        progress,
        limits,
        written: AtomicU64::new(0),
        ledger: Ledger::default(),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let unpacked = work.run(&pending.path, n_threads.max(1))?;
    pending.publish(out).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => exists(),
        _ => FileError::write(out)(source).into(),
    })?;
    Ok(unpacked)
}

/// A directory being filled, under a name of its own.
struct PendingDirectory {
    path: PathBuf,
    _trace: Trace,
    published: bool,
}

impl PendingDirectory {
    fn create(out: &Path) -> io::Result<Self> {
        let name = out.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        // With the name of the host, as other hosts may work in the same place.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let prefix = format!(".{}.unpack.{host}.", name.chars().take(40).collect::<String>());
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        remove_abandoned(parent, &prefix);
        let path = parent.join(format!("{prefix}{}", std::process::id()));
        // Not registered before it is ours.
        rustix::fs::mkdirat(CWD, &path, Mode::RWXU)?;
        let trace = Trace::of(&path);
        Ok(Self { path, _trace: trace, published: false })
    }

    /// Gives the directory its name, where nothing but an empty directory is.
    fn publish(mut self, out: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, &self.path, CWD, out, RenameFlags::NOREPLACE) {
            // There is an empty directory, which rename replaces, or the file system cannot do it.
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => fs::rename(&self.path, out)?,
            result => result?,
        }
        self.published = true;
        Ok(())
    }
}

impl Drop for PendingDirectory {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now, the next run removes.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes what processes that were killed have left.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A file to be written.
struct Job {
    directory: Arc<OwnedFd>,
    name: Vec<u8>,
    /// Its path in the tree, for errors.
    path: PathBuf,
    inode: Inode,
}

/// What is put right when everything is there: owners may then no longer write.
struct Finish {
    path: PathBuf,
    mode: u16,
    modified: u32,
}

/// How much is taken out of an image.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Files, directories and others, each counted once however many names it has.
    entries: u64,
    /// Bytes of content, without holes.
    written: u64,
}

struct Work<'a> {
    image: &'a Image,
    input: &'a Path,
    out: &'a Path,
    progress: &'a dyn Progress,
    limits: Limits,
    /// Bytes of content so far, without holes.
    written: AtomicU64,
    /// For what is kept until the end.
    ledger: Ledger,
    failed: AtomicBool,
    failure: Mutex<Option<ConvertError>>,
}

impl Work<'_> {
    fn run(&self, root: &Path, n_threads: usize) -> Result<Unpacked, ConvertError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|errno| FileError::write(self.out)(errno.into()))?;
        let root = Arc::new(root);
        let (sender, receiver) = sync_channel::<Job>(MAX_WAITING);
        let receiver = Mutex::new(receiver);
        let walked = std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| self.write_files(&receiver));
            }
            let walked = self.walk(&root, &sender);
            drop(sender);
            walked
        });
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        let Walked { unpacked, links, finishes, .. } = walked?;
        for (existing, link) in links {
            rustix::fs::linkat(root.as_fd(), &existing, root.as_fd(), &link, AtFlags::empty())
                .map_err(|errno| self.cannot_link(&link, errno, Lacks::HardLinks))?;
        }
        // From the deepest up: entering a directory needs the one above.
        for finish in finishes.iter().rev() {
            let mode = Mode::from_raw_mode(u32::from(finish.mode & PLAIN_MODE | 0o700));
            let path = if finish.path.as_os_str().is_empty() { Path::new(".") } else { &finish.path };
            rustix::fs::chmodat(root.as_fd(), path, mode, AtFlags::empty())
                .and_then(|()| {
                    rustix::fs::utimensat(root.as_fd(), path, &times(finish.modified), AtFlags::empty())
                })
                .map_err(|errno| self.cannot_write(&finish.path, errno))?;
        }
        Ok(unpacked)
    }

    fn cannot_write(&self, path: &Path, errno: Errno) -> ConvertError {
        FileError::write(self.out.join(path))(errno.into()).into()
    }

    fn cannot_link(&self, path: &Path, errno: Errno, lacks: Lacks) -> ConvertError {
        if !is_inability(errno) {
            return self.cannot_write(path, errno);
        }
        FileError::write(self.out.join(path))(Incapable::at(self.out, lacks)).into()
    }

    fn cannot_read(&self, source: situla_squashfs::Error) -> ConvertError {
        ConvertError::NotSquashfs { path: self.input.to_owned(), source }
    }

    fn too_much(&self, what: &'static str, limit: u64) -> ConvertError {
        ConvertError::TooMuch { path: self.input.to_owned(), what, limit }
    }

    /// Takes memory for something that is kept until the end.
    fn keep(&self, path: &Path) -> Result<(), ConvertError> {
        let bytes = KEPT_BYTES + path.as_os_str().len() as u64;
        let failed = |source| ConvertError::Memory { path: self.input.to_owned(), source };
        self.ledger.take(bytes, "its directories and links").map_err(failed)
    }

    /// Makes directories, links and special files, and hands regular files on.
    fn walk(&self, root: &Arc<OwnedFd>, files: &SyncSender<Job>) -> Result<Walked, ConvertError> {
        let mut walked = Walked::default();
        let mut first_names: HashMap<u32, PathBuf> = HashMap::new();
        let mut directories: HashSet<u32> = HashSet::new();
        let top = self.image.inode(self.image.root()).map_err(|error| self.cannot_read(error))?;
        directories.insert(top.number);
        let mut pending = vec![(PathBuf::new(), top)];
        while let Some((path, inode)) = pending.pop() {
            let directory = match path.as_os_str().is_empty() {
                true => Arc::clone(root),
                false => open_directory(root, &path).map_err(|errno| self.cannot_write(&path, errno))?,
            };
            let (mode, modified) = (inode.mode, inode.mtime);
            walked.finishes.push(Finish { path: path.clone(), mode, modified });
            self.keep(&path)?;
            let mut cookie = DirCookie::START;
            let mut entries = Vec::new().into_iter();
            loop {
                let entry = match entries.next() {
                    Some(entry) => entry,
                    None => {
                        let more = self.image.read_dir_from(&inode, cookie, ENTRIES);
                        entries = more.map_err(|error| self.cannot_read(error))?.into_iter();
                        let Some(first) = entries.next() else { break };
                        first
                    }
                };
                cookie = entry.next;
                if self.failed.load(Ordering::Relaxed) {
                    return Ok(walked);
                }
                let here = path.join(OsStr::from_bytes(&entry.name));
                let inode = self.image.inode(entry.inode_ref).map_err(|error| self.cannot_read(error))?;
                walked.unpacked.n_entries += 1;
                // What has several names is kept with each of them, and is bounded by that.
                if inode.file_type() == FileType::Directory || inode.nlink < 2 {
                    walked.n_single += 1;
                    if walked.n_single > self.limits.entries {
                        return Err(self.too_much("files and directories", self.limits.entries));
                    }
                } else {
                    self.keep(&here)?;
                }
                let left_out = match inode.file_type() {
                    FileType::Socket => Some("a socket"),
                    FileType::BlockDevice | FileType::CharDevice => Some("a device"),
                    _ => None,
                };
                if let Some(why) = left_out {
                    self.progress.event(Event::Skipped { path: here.display().to_string(), why });
                    continue;
                }
                if inode.file_type() == FileType::Directory && !directories.insert(inode.number) {
                    // A tree that joins again would grow without end.
                    return Err(
                        FileError::write(self.out.join(&here))(io::ErrorKind::InvalidData.into()).into()
                    );
                }
                if inode.file_type() != FileType::Directory && inode.nlink > 1 {
                    if let Some(first) = first_names.get(&inode.number) {
                        walked.links.push((first.clone(), here));
                        continue;
                    }
                    first_names.insert(inode.number, here.clone());
                }
                let at = directory.as_fd();
                let made = match inode.file_type() {
                    FileType::Directory => {
                        pending.push((here.clone(), inode));
                        rustix::fs::mkdirat(at, entry.name.as_slice(), Mode::RWXU)
                    }
                    FileType::File => {
                        walked.unpacked.bytes = walked.unpacked.bytes.saturating_add(inode.size);
                        let directory = Arc::clone(&directory);
                        let job = Job { directory, name: entry.name, path: here.clone(), inode };
                        // Nobody takes it only after a failure, which is reported already.
                        let _ = files.send(job);
                        Ok(())
                    }
                    FileType::Symlink => {
                        let target = self.image.read_link(&inode).map_err(|error| self.cannot_read(error))?;
                        rustix::fs::symlinkat(target.as_slice(), at, entry.name.as_slice())
                            .map_err(|errno| self.cannot_link(&here, errno, Lacks::SymbolicLinks))?;
                        set_time(at, &entry.name, inode.mtime)
                    }
                    FileType::Fifo => {
                        let mode = Mode::from_raw_mode(u32::from(inode.mode & 0o777 | 0o600));
                        let fifo = rustix::fs::FileType::Fifo;
                        rustix::fs::mknodat(at, entry.name.as_slice(), fifo, mode, 0)
                            .and_then(|()| set_time(at, &entry.name, inode.mtime))
                    }
                    FileType::Socket | FileType::BlockDevice | FileType::CharDevice => Ok(()),
                };
                made.map_err(|errno| self.cannot_write(&here, errno))?;
            }
        }
        Ok(walked)
    }

    /// Writes files until there are no more, or one cannot be written.
    fn write_files(&self, jobs: &Mutex<Receiver<Job>>) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = next else { return };
            if self.failed.load(Ordering::Relaxed) {
                // The rest is taken, so that the walk is not kept waiting, and dropped.
                continue;
            }
            if let Err(error) = self.write_file(&job, &mut buffer) {
                self.failed.store(true, Ordering::Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn write_file(&self, job: &Job, buffer: &mut [u8]) -> Result<(), ConvertError> {
        let fail = |errno: Errno| self.cannot_write(&job.path, errno);
        let failed = |source: io::Error| FileError::write(self.out.join(&job.path))(source).into();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&*job.directory, job.name.as_slice(), flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(made.map_err(fail)?);
        let mut offset = 0;
        loop {
            // A hole may be longer than anybody could read.
            offset = self.image.skip_hole(&job.inode, offset).map_err(|error| self.cannot_read(error))?;
            if offset >= job.inode.size {
                break;
            }
            let length =
                self.image.read(&job.inode, offset, buffer).map_err(|error| self.cannot_read(error))?;
            let part = &buffer[..length];
            if length == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            // Zeros that are stored count as well: reading them takes the same time.
            let before = self.written.fetch_add(part.len() as u64, Ordering::Relaxed);
            if before.saturating_add(part.len() as u64) > self.limits.written {
                return Err(self.too_much("bytes", self.limits.written));
            }
            // Holes stay holes.
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, offset).map_err(failed)?;
            }
            offset += u64::try_from(length).unwrap_or(u64::MAX);
        }
        file.set_len(job.inode.size).map_err(failed)?;
        if job.inode.has_xattrs() {
            self.copy_xattrs(&file, &job.inode)?;
        }
        let mode = Mode::from_raw_mode(u32::from(job.inode.mode & PLAIN_MODE | 0o400));
        rustix::fs::fchmod(&file, mode).map_err(fail)?;
        rustix::fs::futimens(&file, &times(job.inode.mtime)).map_err(fail)
    }

    /// Copies what users may set; the rest belongs to root.
    fn copy_xattrs(&self, file: &File, inode: &Inode) -> Result<(), ConvertError> {
        let attributes = self.image.xattrs(inode).map_err(|error| self.cannot_read(error))?;
        for (name, value) in attributes.iter().filter(|(name, _)| name.starts_with(b"user.")) {
            // File systems without any exist, and programs must live with that.
            let _ = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
        }
        Ok(())
    }
}

/// Opens a directory that was made here. Paths of the image beyond the kernel's limit fail.
fn open_directory(root: &OwnedFd, path: &Path) -> Result<Arc<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map(Arc::new)
}

/// What a walk has made, and what is left to do.
#[derive(Default)]
struct Walked {
    unpacked: Unpacked,
    /// Further names of files: an existing one, and the new one.
    links: Vec<(PathBuf, PathBuf)>,
    finishes: Vec<Finish>,
    /// Entries with one name.
    n_single: u64,
}

/// Sets the time of what cannot be opened for it.
fn set_time(at: BorrowedFd<'_>, name: &[u8], modified: u32) -> Result<(), Errno> {
    rustix::fs::utimensat(at, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(modified: u32) -> Timestamps {
    let time = Timespec { tv_sec: modified.into(), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::convert::{ConvertOptions, OutputFormat, convert_directory};
    use crate::source::Owners;

    /// Every name below a directory with what matters of it.
    fn listing(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let content = match metadata.file_type() {
                    kind if kind.is_file() => format!("{:?}", blake(&fs::read(&path).unwrap())),
                    kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                    _ => String::new(),
                };
                let name = path.strip_prefix(root).unwrap().display().to_string();
                let size = if metadata.is_file() { metadata.len() } else { 0 };
                let (mode, time, links) = (metadata.mode(), metadata.mtime(), metadata.nlink());
                let links = if metadata.is_dir() { 0 } else { links };
                found.push(format!("{name} {mode:o} {size} {time} {links} {content}"));
                if metadata.is_dir() {
                    pending.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn blake(bytes: &[u8]) -> situla_oci::Digest {
        situla_oci::Digest::sha256(bytes)
    }

    fn image_of(tree: &Path, out: &Path) {
        let options = ConvertOptions::default();
        let format = OutputFormat::of_path(out);
        convert_directory(tree, Owners::Keep, out, format, &options, &()).unwrap();
    }

    fn open(path: &Path) -> ImageFile {
        ImageFile::open(path).unwrap()
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for number in 0..300 {
            fs::write(tree.join(format!("a/file{number}")), format!("text {number}").repeat(number)).unwrap();
        }
        let large: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        fs::write(tree.join("a/b/large"), large).unwrap();
        fs::hard_link(tree.join("a/b/large"), tree.join("second")).unwrap();
        fs::hard_link(tree.join("a/b/large"), tree.join("a/b/c/third")).unwrap();
        File::create(tree.join("hole")).unwrap().set_len(20 << 20).unwrap();
        fs::write(tree.join("empty"), b"").unwrap();
        symlink("../../etc/passwd", tree.join("a/link")).unwrap();
        symlink("/", tree.join("root")).unwrap();
        rustix::fs::mknodat(CWD, tree.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::set_permissions(tree.join("a/b/c"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(tree.join("a/file7"), fs::Permissions::from_mode(0o640)).unwrap();
        let image = dir.path().join("image.sqsh");
        image_of(&tree, &image);
        let wanted = listing(&tree);
        for (name, n_threads) in [("one", 1), ("many", 4)] {
            let out = dir.path().join(name);
            let unpacked = unpack_file(&open(&image), &out, n_threads, &()).unwrap();
            assert_eq!(listing(&out), wanted);
            assert_eq!(unpacked.n_entries, wanted.len() as u64);
            assert!(fs::metadata(out.join("hole")).unwrap().blocks() < 100, "holes stay holes");
        }
        let sif = dir.path().join("image.sif");
        image_of(&tree, &sif);
        unpack_file(&open(&sif), &dir.path().join("of-sif"), 2, &()).unwrap();
        assert!(dir.path().join("of-sif/.singularity.d").is_dir());
    }

    /// An image with a link to a directory or file outside, and with another entry of the same name: what is extracted
    /// after the link must not go where it leads. No writer makes such an image, so one name is written over.
    #[test]
    fn two_entries_of_one_name_do_not_lead_out_of_the_tree() {
        // Bytes without a pattern, so that the table of directories is stored as it is.
        let mut state = 1u64;
        let mut name = || -> Vec<u8> {
            let bytes = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            });
            bytes.filter(|byte| !matches!(byte, 0 | b'/')).take(200).collect()
        };
        let (first, second) = (name(), name());
        for (kind, link_first) in [("directory", true), ("directory", false), ("file", true), ("file", false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
            fs::create_dir(&tree).unwrap();
            fs::create_dir(&host).unwrap();
            fs::write(host.join("file"), "of the host").unwrap();
            let (link, other) = if link_first { (&first, &second) } else { (&second, &first) };
            let [link_path, other_path] = [link, other].map(|name| tree.join(OsStr::from_bytes(name)));
            match kind {
                "directory" => {
                    symlink(&host, link_path).unwrap();
                    fs::create_dir(&other_path).unwrap();
                    fs::write(other_path.join("file"), "planted").unwrap();
                    fs::write(other_path.join("new"), "planted").unwrap();
                }
                _ => {
                    symlink(host.join("file"), link_path).unwrap();
                    fs::write(other_path, "planted").unwrap();
                }
            }
            let image = dir.path().join("image.sqsh");
            image_of(&tree, &image);
            let mut bytes = fs::read(&image).unwrap();
            let at: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(other)).collect();
            assert_eq!(at.len(), 1, "the name is in the image once, uncompressed");
            bytes[at[0]..at[0] + other.len()].copy_from_slice(link);
            fs::write(&image, bytes).unwrap();
            let opened = Image::open(File::open(&image).unwrap(), ReadOptions::default()).unwrap();
            let root = opened.inode(opened.root()).unwrap();
            let names: Vec<_> = opened.read_dir(&root).unwrap().into_iter().map(|entry| entry.name).collect();
            assert_eq!(names, [link.clone(), link.clone()], "both entries are read");
            for n_threads in [1, 4] {
                let out = dir.path().join("out");
                let unpacked = unpack_file(&open(&image), &out, n_threads, &());
                assert!(unpacked.is_err(), "{kind} {link_first}: {unpacked:?}");
                assert!(!out.exists(), "{kind} {link_first}");
                let left: Vec<_> =
                    fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(left, ["file"], "{kind} {link_first}");
                assert_eq!(
                    fs::read_to_string(host.join("file")).unwrap(),
                    "of the host",
                    "{kind} {link_first}"
                );
            }
        }
    }

    #[test]
    fn an_image_that_holds_more_than_its_size_allows_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        // Equal files share their blocks: three times the content, once in the image.
        for name in ["one", "two", "three"] {
            fs::write(tree.join(name), &content).unwrap();
        }
        fs::hard_link(tree.join("one"), tree.join("again")).unwrap();
        let path = dir.path().join("image.sqsh");
        image_of(&tree, &path);
        let image = Image::open(File::open(&path).unwrap(), ReadOptions::default()).unwrap();
        let (out, len) = (dir.path().join("out"), content.len() as u64);
        let unpack =
            |entries, written| unpack_within(&image, &path, &out, 2, Limits { entries, written }, &());
        for (limits, what) in
            [((2, u64::MAX), None), ((1, u64::MAX), Some(1)), ((9, 3 * len - 1), Some(3 * len - 1))]
        {
            match (unpack(limits.0, limits.1), what) {
                (Ok(_), None) => fs::remove_dir_all(&out).unwrap(),
                (Err(ConvertError::TooMuch { limit, .. }), Some(expected)) => assert_eq!(limit, expected),
                (result, _) => panic!("{limits:?}: {result:?}"),
            }
            assert!(!out.exists(), "nothing is left");
        }
        assert_eq!(unpack(u64::from(image.superblock().inode_count), 3 * len).unwrap().n_entries, 4);
    }

    #[test]
    fn what_is_there_stays_and_what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), (0..400_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
        fs::create_dir(tree.join("locked")).unwrap();
        fs::write(tree.join("locked/program"), b"x").unwrap();
        fs::set_permissions(tree.join("locked/program"), fs::Permissions::from_mode(0o6755)).unwrap();
        fs::set_permissions(tree.join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
        let image = dir.path().join("image.sqsh");
        image_of(&tree, &image);
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        unpack_file(&open(&image), &out, 2, &()).unwrap();
        // An empty directory was no obstacle; a full one is, and a file.
        for taken in [&out, &image] {
            let again = unpack_file(&open(&image), taken, 2, &());
            assert!(matches!(again, Err(ConvertError::Exists { .. })), "{again:?}");
        }
        let mode = |name: &str| fs::metadata(out.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("locked"), mode("locked/program")), (0o700, 0o755));

        let mut bytes = fs::read(&image).unwrap();
        for byte in &mut bytes[4096..400_000] {
            *byte = !*byte;
        }
        fs::write(&image, bytes).unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let before = names();
        // What a killed process has left goes as well; what a living one is making stays.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        fs::create_dir_all(dir.path().join(format!(".bad.unpack.{host}.4194999/sub"))).unwrap();
        fs::create_dir(dir.path().join(format!(".bad.unpack.{host}.1"))).unwrap();
        fs::create_dir(dir.path().join(".bad.unpack.elsewhere.4194999")).unwrap();
        let failed = unpack_file(&open(&image), &dir.path().join("bad"), 2, &());
        assert!(matches!(failed, Err(ConvertError::NotSquashfs { .. })), "{failed:?}");
        assert_eq!(names(), before + 2);
    }
}
