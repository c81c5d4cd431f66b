//! Files that appear under their name only when they are complete.
//!
//! Where the file system can, the file has no name at all until then (`O_TMPFILE`), so that even a killed
//! process leaves nothing behind; elsewhere a hidden temporary name beside the final one is used. What never gets a
//! name, and is nobody else's to read, lies in a hidden directory then.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::file_error::FileError;
use crate::file_system::{Incapable, Lacks, is_inability};
use crate::process_identity::realm_name;
use crate::traces::Trace;

/// A file being written.
#[derive(Debug)]
pub(crate) struct PendingFile {
    file: Option<File>,
    dir: PathBuf,
    /// Temporary name, if it has one: the file's, or that of the directory that it lies in.
    temp: Option<(PathBuf, Trace)>,
    prefix: String,
}

/// Fails where no file can be made at `path`, or take the place of what is there. Nothing is left.
///
/// # Errors
/// There is a directory, or none to make it in, or it cannot be written to.
pub fn expect_writable(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Err(FileError::write(path)(io::ErrorKind::IsADirectory.into()));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    PendingFile::create(dir, "probe").map(drop).map_err(FileError::write(path))
}

/// Whether an existing file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Replace it.
    Replace,
    /// Fail with `AlreadyExists`.
    Refuse,
}

/// Writes a new file that nobody but its owner reads, whatever the umask.
pub(crate) fn write_for_owner(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Makes a directory, and those that lead to it, in which others may read and nobody else may write, whatever the
/// umask allows.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl PendingFile {
    /// Creates a file in `dir`; temporary names begin with `.prefix`.
    pub(crate) fn create(dir: &Path, prefix: &str) -> io::Result<Self> {
        // Old kernels and some network file systems lack it and say so in different ways.
        Self::create_unnamed(dir, prefix, 0o644).or_else(|_| Self::create_named(dir, prefix))
    }

    /// Creates a file in `dir` for what is in work, and is for nobody else to read; it is not to be published.
    pub(crate) fn create_scratch(dir: &Path, prefix: &str) -> io::Result<Self> {
        Self::create_unnamed(dir, prefix, 0o600).or_else(|_| Self::create_hidden(dir, prefix))
    }

    fn create_unnamed(dir: &Path, prefix: &str, mode: u32) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, dir, flags, Mode::from_raw_mode(mode))?);
        Ok(Self { file: Some(file), dir: dir.to_owned(), temp: None, prefix: prefix.to_owned() })
    }

    /// In a directory of its own, into which nobody else may look, whoever owns `dir`.
    fn create_hidden(dir: &Path, prefix: &str) -> io::Result<Self> {
        let mut pending = Self { file: None, dir: dir.to_owned(), temp: None, prefix: prefix.to_owned() };
        let place = pending.temp_path();
        let trace = Trace::of(&place);
        DirBuilder::new().mode(0o700).create(&place)?;
        let path = place.join("file");
        // From here on it is removed with what is made.
        pending.temp = Some((place, trace));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        pending.file = Some(file);
        Ok(pending)
    }

    fn create_named(dir: &Path, prefix: &str) -> io::Result<Self> {
        let mut pending = Self { file: None, dir: dir.to_owned(), temp: None, prefix: prefix.to_owned() };
        let path = pending.temp_path();
        let trace = Trace::of(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path)?;
        pending.temp = Some((path, trace));
        pending.file = Some(file);
        Ok(pending)
    }

    fn temp_path(&self) -> PathBuf {
        self.dir.join(temporary_name(&self.prefix, "tmp"))
    }

    /// Tells whether it has a temporary name, which others may remove.
    pub(crate) fn has_name(&self) -> bool {
        self.temp.is_some()
    }

    /// Fails where it could not be given a name that is to be new, before there is anything in it: some file systems have
    /// no way to do that. To make an empty file of the name would, and so would a look whether there is one, but for a
    /// moment others would find a file that is not complete, or lose theirs.
    pub(crate) fn expect_new_names(&self) -> io::Result<()> {
        let Some((temp, _)) = &self.temp else { return Ok(()) };
        let probe = self.temp_path();
        let _trace = Trace::of(&probe);
        match fs::hard_link(temp, &probe) {
            Ok(()) => fs::remove_file(&probe),
            Err(link) => match rename_anew(temp, &probe) {
                Ok(()) => fs::rename(&probe, temp),
                Err(error) => Err(is_why(&self.dir, error, link)),
            },
        }
    }

    /// Returns the open file.
    pub(crate) fn file(&self) -> io::Result<File> {
        match &self.file {
            Some(file) => file.try_clone(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Writes everything to disk and gives the file its name.
    pub(crate) fn publish(self, path: &Path, existing: Existing) -> io::Result<()> {
        self.file()?.sync_all()?;
        self.appear(path, existing)?;
        sync_dir_of(path)
    }

    /// Gives the file its name, for processes that run: it need not survive a crash of the machine.
    pub(crate) fn appear(mut self, path: &Path, existing: Existing) -> io::Result<()> {
        let Some(file) = self.file.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let temp = self.temp.as_ref().map(|(temp, _)| temp.clone());
        match (temp, existing) {
            (None, existing) => {
                let source = format!("/proc/self/fd/{}", file.as_raw_fd());
                let link = |to: &Path| {
                    rustix::fs::linkat(CWD, source.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
                        .map_err(io::Error::from)
                };
                match link(path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && existing == Existing::Replace => {
                        let temp = self.temp_path();
                        let trace = Trace::of(&temp);
                        link(&temp)?;
                        self.temp = Some((temp.clone(), trace));
                        fs::rename(&temp, path)?;
                        self.temp = None;
                    }
                    result => result?,
                }
            }
            (Some(temp), Existing::Replace) => {
                fs::rename(&temp, path)?;
                self.temp = None;
            }
            (Some(temp), Existing::Refuse) => {
                // A link fails where a name exists; rename would replace it.
                match fs::hard_link(&temp, path) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        rename_anew(&temp, path).map_err(|error| is_why(&self.dir, error, e))?
                    }
                    result => result?,
                }
            }
        }
        Ok(())
    }
}

/// Why a file in `dir` got no name that is new, by neither of both ways.
fn is_why(dir: &Path, rename: io::Error, link: io::Error) -> io::Error {
    let is_inability = |error: &io::Error| Errno::from_io_error(error).is_some_and(is_inability);
    match (is_inability(&rename), is_inability(&link)) {
        (true, true) => Incapable::at(dir, Lacks::NewNames),
        (true, false) => link,
        (false, _) => rename,
    }
}

/// Renames a file where there is none, on file systems without links. Not all of them can.
fn rename_anew(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// A hidden name that nobody else makes, on no machine that shares the directory.
pub(crate) fn temporary_name(prefix: &str, suffix: &str) -> OsString {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(".{prefix}.{}.{}.{n}.{suffix}", realm_name(), std::process::id()).into()
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some((temp, _)) = &self.temp {
            // It may be gone; nothing else can be done about it here.
            if fs::remove_file(temp).is_err() {
                let _ = fs::remove_dir_all(temp);
            }
        }
    }
}

/// Writes a small file completely or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let pending = PendingFile::create(dir, "small")?;
    io::Write::write_all(&mut pending.file()?, bytes)?;
    pending.publish(path, Existing::Replace)
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn temporary_names_belong_to_one_process_of_one_machine() {
        let (one, other) = (temporary_name("x", "tmp"), temporary_name("x", "tmp"));
        assert_ne!(one, other);
        let one = one.into_string().unwrap();
        let parts: Vec<&str> = one.split('.').collect();
        assert_eq!((parts[0], parts[1], parts[2], parts[5]), ("", "x", realm_name(), "tmp"), "{one}");
        assert_eq!(parts[3], std::process::id().to_string());
    }

    #[test]
    fn what_is_in_work_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |metadata: fs::Metadata| metadata.permissions().mode() & 0o777;
        let unnamed = PendingFile::create_scratch(dir.path(), "x").unwrap();
        let hidden = PendingFile::create_hidden(dir.path(), "x").unwrap();
        for pending in [&unnamed, &hidden] {
            assert_eq!(mode(pending.file().unwrap().metadata().unwrap()), 0o600);
        }
        let place = fs::read_dir(dir.path()).unwrap().last().unwrap().unwrap();
        assert!(place.file_type().unwrap().is_dir());
        assert_eq!(mode(place.metadata().unwrap()), 0o700);
        drop((unnamed, hidden));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_rename_takes_the_place_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        assert_eq!(rename_anew(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        fs::remove_file(&to).unwrap();
        rename_anew(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
    }

    #[test]
    fn whether_names_can_be_new_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pending = PendingFile::create_named(dir.path(), "x").unwrap();
        pending.file().unwrap().write_all(b"text").unwrap();
        pending.expect_new_names().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        pending.appear(&dir.path().join("out"), Existing::Refuse).unwrap();
        assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"text");
        // What is no inability is told as it is.
        let error = |errno: Errno| io::Error::from(errno);
        for (rename, link, kind) in [
            (Errno::INVAL, Errno::PERM, io::ErrorKind::Unsupported),
            (Errno::NOSYS, Errno::OPNOTSUPP, io::ErrorKind::Unsupported),
            (Errno::EXIST, Errno::PERM, io::ErrorKind::AlreadyExists),
            (Errno::INVAL, Errno::NOENT, io::ErrorKind::NotFound),
            (Errno::NOSPC, Errno::PERM, io::ErrorKind::StorageFull),
        ] {
            assert_eq!(is_why(dir.path(), error(rename), error(link)).kind(), kind, "{rename:?} {link:?}");
        }
    }

    type Create = fn(&Path, &str) -> io::Result<PendingFile>;

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        for create in [PendingFile::create as Create, PendingFile::create_named as Create] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let names = || fs::read_dir(dir.path()).unwrap().count();
            let write = |text: &[u8], existing| {
                let pending = create(dir.path(), "x").unwrap();
                pending.file().unwrap().write_all(text).unwrap();
                pending.publish(&path, existing)
            };
            let pending = create(dir.path(), "x").unwrap();
            assert!(!path.exists());
            drop(pending);
            assert_eq!(names(), 0);
            write(b"one", Existing::Refuse).unwrap();
            assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"one"[..], 1));
            let error = write(b"two", Existing::Refuse).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"one"[..], 1));
            write(b"three", Existing::Replace).unwrap();
            assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"three"[..], 1));
        }
    }
}
