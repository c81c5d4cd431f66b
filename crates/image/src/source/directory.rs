//! A directory tree of this machine as the content of an image.
//!
//! Walked with open directory descriptors and without following symbolic links, so a tree that changes
//! meanwhile cannot lead outside. Names are taken in sorted order: equal trees give equal images.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::file_error::FileError;
use crate::flatten::{MergeError, Merger};
use crate::layer::{Content, Entry, EntryKind};
use crate::layer_name;
use crate::progress::{Event, Progress};
use crate::sink::FileSink;
use crate::tree::{Meta, Xattrs};

/// Deepest directory: every level holds a descriptor open, and processes have 1024 of them by default.
const MAX_DEPTH: usize = 400;
/// Largest value of an extended attribute that Linux knows, and of a list of their names.
const MAX_XATTR: usize = 64 * 1024;

/// Why a directory tree cannot be read.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Directories are nested too deeply.
    #[error("'{}' is nested more than {MAX_DEPTH} deep", path.display())]
    TooDeep {
        /// The directory.
        path: PathBuf,
    },
    /// A file shrank while it was read, or the sink failed.
    #[error("cannot take in '{}'", path.display())]
    Take {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: MergeError,
    },
}

/// Whose files they are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// As in the tree.
    Keep,
    /// All are root's.
    Root,
}

/// Feeds a whole tree to a merger, as its one layer.
pub(crate) fn walk<S: FileSink>(
    root: &Path,
    owners: Owners,
    merger: &mut Merger<'_, S>,
    progress: &dyn Progress,
) -> Result<(), DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|e| FileError::read(root)(e.into()))?;
    let mut walk = Walk { root, owners, merger, progress, links: HashMap::new() };
    let stat = rustix::fs::fstat(&fd).map_err(|e| walk.read(b"", e))?;
    let meta = walk.meta(&stat, walk.xattrs_of(&fd, b"")?);
    walk.give(Entry { path: Vec::new(), kind: EntryKind::Directory, meta }, &mut io::empty())?;
    walk.directory(&fd, b"", 0)
}

struct Walk<'w, 'm, S: FileSink> {
    root: &'w Path,
    owners: Owners,
    merger: &'w mut Merger<'m, S>,
    progress: &'w dyn Progress,
    /// First names of files that have several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// A file that tells how much of it was read.
struct Told<'p> {
    file: File,
    progress: &'p dyn Progress,
}

impl io::Read for Told<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.progress.event(Event::Read { bytes: n as u64 });
        Ok(n)
    }
}

impl Content for Told<'_> {
    fn skip_hole(&mut self) -> io::Result<u64> {
        self.file.skip_hole()
    }
}

impl<S: FileSink> Walk<'_, '_, S> {
    fn directory(&mut self, fd: &OwnedFd, path: &[u8], depth: usize) -> Result<(), DirectoryError> {
        if depth > MAX_DEPTH {
            return Err(DirectoryError::TooDeep { path: self.host_path(path) });
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(fd).map_err(|e| self.read(path, e))? {
            let name = entry.map_err(|e| self.read(path, e))?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let full = if path.is_empty() {
                name.to_bytes().to_vec()
            } else {
                [path, b"/", name.to_bytes()].concat()
            };
            self.child(fd, &name, full, depth)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: Vec<u8>,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed.
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(self.read(&path, e)),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| self.read(&path, e))?;
            // What was opened counts, not what was looked at before.
            let stat = rustix::fs::fstat(&fd).map_err(|e| self.read(&path, e))?;
            let meta = self.meta(&stat, self.xattrs_of(&fd, &path)?);
            self.give(Entry { path: path.clone(), kind: EntryKind::Directory, meta }, &mut io::empty())?;
            return self.directory(&fd, &path, depth + 1);
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let kind = EntryKind::HardLink { target: first.clone() };
                return self.give(Entry { path, kind, meta: Meta::root_owned(0) }, &mut io::empty());
            }
            self.links.insert(key, path.clone());
        }
        let kind = match file_type {
            FileType::RegularFile => return self.file(dir, name, path),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|e| self.read(&path, e))?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            FileType::CharacterDevice => {
                let (major, minor) = device(&stat);
                EntryKind::CharDevice { major, minor }
            }
            FileType::BlockDevice => {
                let (major, minor) = device(&stat);
                EntryKind::BlockDevice { major, minor }
            }
            FileType::Fifo => EntryKind::Fifo,
            _ => {
                self.progress
                    .event(Event::Skipped { path: layer_name(&path), why: "socket or unknown file type" });
                return Ok(());
            }
        };
        let meta = self.meta(&stat, self.xattrs_at(dir, name, &path)?);
        self.give(Entry { path, kind, meta }, &mut io::empty())
    }

    fn file(&mut self, dir: &OwnedFd, name: &CStr, path: Vec<u8>) -> Result<(), DirectoryError> {
        // Without NONBLOCK a pipe put here since would make us wait for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| self.read(&path, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.read(&path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.read(&path, Errno::STALE));
        }
        let meta = self.meta(&stat, self.xattrs_of(&fd, &path)?);
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let mut content = Told { file: File::from(fd), progress: self.progress };
        self.give(Entry { path, kind: EntryKind::File { size }, meta }, &mut content)
    }

    fn give(&mut self, entry: Entry, data: &mut impl Content) -> Result<(), DirectoryError> {
        let path = entry.path.clone();
        let given = self.merger.literal_entry(entry, data);
        given.map_err(|source| DirectoryError::Take { path: self.host_path(&path), source })
    }

    fn meta(&self, stat: &Stat, xattrs: Xattrs) -> Meta {
        let (uid, gid) = match self.owners {
            Owners::Keep => (stat.st_uid, stat.st_gid),
            Owners::Root => (0, 0),
        };
        let mode = u16::try_from(stat.st_mode & 0o7777).unwrap_or_default();
        Meta { mode, uid, gid, mtime: stat.st_mtime, xattrs }
    }

    fn xattrs_of(&self, fd: &OwnedFd, path: &[u8]) -> Result<Xattrs, DirectoryError> {
        let list = |buf: &mut [u8]| rustix::fs::flistxattr(fd, buf);
        let get = |name: &CStr, buf: &mut [u8]| rustix::fs::fgetxattr(fd, name, buf);
        read_xattrs(list, get).map_err(|e| self.read(path, e))
    }

    /// Reads attributes of something that cannot be opened for reading without side effects.
    fn xattrs_at(&self, dir: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Xattrs, DirectoryError> {
        let prefix = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd());
        let full = [prefix.as_bytes(), name.to_bytes()].concat();
        let list = |buf: &mut [u8]| rustix::fs::llistxattr(full.as_slice(), buf);
        let get = |name: &CStr, buf: &mut [u8]| rustix::fs::lgetxattr(full.as_slice(), name, buf);
        read_xattrs(list, get).map_err(|e| self.read(path, e))
    }

    fn host_path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    fn read(&self, path: &[u8], errno: Errno) -> DirectoryError {
        FileError::read(self.host_path(path))(errno.into()).into()
    }
}

fn device(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

fn read_xattrs(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    // Most files have none: ask with a small buffer first.
    let mut names = vec![0; 256];
    let n = match list(&mut names) {
        Ok(n) => n,
        Err(Errno::RANGE) => {
            names.resize(MAX_XATTR, 0);
            list(&mut names)?
        }
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut xattrs = Vec::new();
    for name in names[..n].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0; MAX_XATTR];
        match get(name, &mut value) {
            Ok(n) => {
                value.truncate(n);
                xattrs.push((name.to_bytes().to_vec(), value));
            }
            // Gone since, or not for us to see.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}
