//! A directory of the host that is the root of an image, looked into by one name at a time.
//!
//! Whoever owns the directory can exchange what is in it meanwhile. So no path is given to the kernel as a whole: the
//! directory that leads to a name is opened inside the root, without following links (openat2(2), `RESOLVE_IN_ROOT`), and kept,
//! and the name is looked up in that.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use situla_runtime::{Links, open_inside};

/// An open directory.
#[derive(Debug)]
pub(crate) struct DirectoryView {
    root: OwnedFd,
    /// Directories that names were looked up in: most names that a run asks for are in a few of them.
    opened: RefCell<BTreeMap<String, Rc<OwnedFd>>>,
}

/// The most directories that stay open: a limit of open files is shared with everything else.
const MAX_OPEN: usize = 8;

impl DirectoryView {
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty())?;
        Ok(DirectoryView { root, opened: RefCell::default() })
    }

    /// What is at a path none of whose parents is a link; a link at its end is not followed.
    pub(crate) fn stat(&self, path: &str) -> Result<Stat, Errno> {
        self.in_parent(path, |directory, name| statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Where the link at such a path leads.
    pub(crate) fn read_link(&self, path: &str) -> Result<String, Errno> {
        let target = self.in_parent(path, |directory, name| readlinkat(directory, name, Vec::new()))?;
        Ok(target.to_string_lossy().into_owned())
    }

    fn in_parent<T>(
        &self,
        path: &str,
        look: impl FnOnce(BorrowedFd<'_>, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let path = path.trim_matches('/');
        let Some((parent, name)) = path.rsplit_once('/') else {
            return look(self.root.as_fd(), if path.is_empty() { "." } else { path });
        };
        if let Some(found) = self.opened.borrow().get(parent).map(Rc::clone) {
            return look(found.as_fd(), name);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let found = Rc::new(open_inside(self.root.as_fd(), parent.as_bytes(), flags, Links::Refuse)?);
        let mut opened = self.opened.borrow_mut();
        if opened.len() < MAX_OPEN {
            opened.insert(parent.to_owned(), Rc::clone(&found));
        }
        drop(opened);
        look(found.as_fd(), name)
    }
}

impl AsFd for DirectoryView {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_exchanged_directory_leads_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "12345").unwrap();
        fs::create_dir_all(root.path().join("etc/deep")).unwrap();
        fs::write(root.path().join("etc/deep/secret"), "1").unwrap();
        let view = DirectoryView::open(root.path()).unwrap();
        assert_eq!(view.stat("/etc/deep/secret").unwrap().st_size, 1);
        // Once opened it is what it was.
        fs::rename(root.path().join("etc/deep"), root.path().join("etc/other")).unwrap();
        symlink(outside.path(), root.path().join("etc/deep")).unwrap();
        assert_eq!(view.stat("/etc/deep/secret").unwrap().st_size, 1);
        // For whoever comes now there is a link where the path has none.
        let view = DirectoryView::open(root.path()).unwrap();
        assert_eq!(view.stat("/etc/deep/secret").map(|stat| stat.st_size), Err(Errno::LOOP));
        assert_eq!(view.read_link("/etc/deep/secret"), Err(Errno::LOOP));
        assert_eq!(view.read_link("/etc/deep").unwrap(), outside.path().to_string_lossy());
    }

    #[test]
    fn no_more_stay_open_than_few() {
        let root = tempfile::tempdir().unwrap();
        let view = DirectoryView::open(root.path()).unwrap();
        for number in 0..MAX_OPEN + 3 {
            let directory = root.path().join(format!("d{number}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("file"), "x").unwrap();
            assert_eq!(view.stat(&format!("/d{number}/file")).unwrap().st_size, 1);
        }
        assert_eq!(view.opened.borrow().len(), MAX_OPEN);
        assert!(view.stat("/").is_ok());
    }
}
