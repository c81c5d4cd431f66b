//! The accelerators that a host has, and which of them this process may open.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use situla_bindings::Openable;

/// Device nodes that may be accelerators, by the names that drivers use.
pub(crate) fn accelerator_nodes() -> Vec<PathBuf> {
    let list = |directory: &str, wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries
            .filter(|entry| wanted(&String::from_utf8_lossy(entry.file_name().as_bytes())))
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    };
    let mut found = list("/dev", &|name| name.starts_with("nvidia") || name == "kfd" || name.contains("gpu"));
    found.extend(list("/dev/dri", &|name| name.starts_with("renderD")));
    found
}

/// Tries to open a device node, which is what the step's device cgroup judges.
pub(crate) fn openable(path: &Path) -> Openable {
    use rustix::fs::{CWD, Mode, OFlags};
    use rustix::io::Errno;
    match rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
        Err(Errno::PERM | Errno::ACCESS) => Openable::Denied,
        Err(Errno::NOENT) => Openable::Missing,
        // No driver behind it, or busy: the cgroup has let it pass.
        _ => Openable::Yes,
    }
}
