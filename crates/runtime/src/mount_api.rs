//! The two ways in which Linux makes mounts.
//!
//! *Descriptors*: `open_tree`, `fsopen`, `move_mount` and `mount_setattr` (Linux 5.12). A mount is made
//! detached, restricted, and then put where it belongs. *Paths*: mount(2), for older kernels and where a
//! filter of system calls refuses the others. There a mount must be attached somewhere from the start,
//! so it is made in a *slot* of a tmpfs that nobody else sees, and moved from there.
//!
//! Either way a path is looked up once; afterwards only descriptors are used, which mount(2) takes as
//! `/proc/self/fd/N`. Which way it is, is decided once per start, before anything is mounted.

use std::cell::{Cell, OnceCell};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_move, move_mount, open_tree,
};
use situla_plan::{Plan, Text};
use situla_sys::{MountAttributes, make_private, set_mount_attributes};

use crate::failure::{Context, Failure, FailureClass};
use crate::mount_table;

/// How mounts are made.
#[derive(Debug)]
pub(crate) enum MountApi {
    /// By descriptors.
    Descriptors,
    /// By paths, from slots.
    Paths(Slots),
}

/// A path that has been looked up and is to be mounted.
#[derive(Debug)]
pub(crate) enum Source {
    /// A detached copy already.
    Copy(Detached),
    /// The place itself, to be copied with what is mounted below it or without.
    Place { place: OwnedFd, recursive: bool },
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Copy(mount) => mount.as_fd(),
            Source::Place { place, .. } => place.as_fd(),
        }
    }
}

impl Source {
    /// Fails where this is not what `path` led to when `plan` was made.
    pub(crate) fn expect_planned(&self, plan: &Plan, path: &Text) -> Result<(), Failure> {
        let Some(planned) = plan.place(path) else { return Ok(()) };
        let shown = Path::new(path.as_os_str()).display();
        let stat = fstat(self.as_fd())
            .or_fail(FailureClass::MountFailed, || format!("{shown} cannot be looked at"))?;
        if (stat.st_dev, stat.st_ino) == (planned.dev, planned.ino) {
            return Ok(());
        }
        let message = format!("{shown} was exchanged for something else after the run was planned");
        Err(Failure::new(FailureClass::MountFailed, message))
    }
}

/// A mount that is not at its place yet.
#[derive(Debug)]
pub(crate) struct Detached {
    mount: OwnedFd,
    /// Whether it is in a slot, so that it has a place in the mount namespace.
    in_slot: bool,
}

impl MountApi {
    /// The way that works here: by paths where the kernel does not have one of the calls of the other way, or
    /// a filter refuses it. Each is called once with something that does not exist. This process must be in
    /// a user namespace of its own: there `EPERM` can only come from a filter.
    pub(crate) fn choose() -> Self {
        let nothing = MountAttributes::default();
        let calls = [
            open_tree(CWD, c"", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).map(drop),
            move_mount(CWD, c"", CWD, c"", MoveMountFlags::empty()),
            set_mount_attributes(CWD, nothing, false),
            probe_fsopen(),
            fsconfig_set_flag(CWD, c"ro"),
            fsmount(CWD, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop),
        ];
        if calls.iter().any(|call| matches!(call, Err(Errno::NOSYS | Errno::PERM))) {
            MountApi::Paths(Slots::default())
        } else {
            MountApi::Descriptors
        }
    }

    /// Looks the source of a bind mount up.
    pub(crate) fn open(&self, path: &Path, recursive: bool) -> Result<Source, Errno> {
        match self {
            MountApi::Descriptors => {
                let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
                let mount = open_tree(CWD, path.as_os_str().as_bytes(), flags)?;
                Ok(Source::Copy(Detached { mount, in_slot: false }))
            }
            MountApi::Paths(_) => {
                let place = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                Ok(Source::Place { place, recursive })
            }
        }
    }

    /// Makes the mount of a source.
    pub(crate) fn copy(&self, source: Source) -> Result<Detached, Errno> {
        match (source, self) {
            (Source::Copy(mount), _) => Ok(mount),
            (Source::Place { place, recursive }, MountApi::Paths(slots)) => slots.bind(&place, recursive),
            (Source::Place { .. }, MountApi::Descriptors) => Err(Errno::INVAL),
        }
    }

    /// Makes a mount of what `place` refers to, with all that is mounted below it.
    pub(crate) fn copy_place(&self, place: &OwnedFd) -> Result<Detached, Errno> {
        match self {
            MountApi::Descriptors => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_RECURSIVE
                    | OpenTreeFlags::AT_EMPTY_PATH;
                Ok(Detached { mount: open_tree(place, c"", flags)?, in_slot: false })
            }
            MountApi::Paths(slots) => slots.bind(place, true),
        }
    }

    /// Makes a mount of `name` below `directory`, which is on a mount that has a place.
    pub(crate) fn copy_below(&self, directory: BorrowedFd<'_>, name: &str) -> Result<Detached, Errno> {
        match self {
            MountApi::Descriptors => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let mount = open_tree(directory, name, flags)?;
                Ok(Detached { mount, in_slot: false })
            }
            MountApi::Paths(slots) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                slots.bind(&openat(directory, name, flags, Mode::empty())?, false)
            }
        }
    }

    /// Makes a new file system of type `kind`. Settings without a value are flags.
    pub(crate) fn create(
        &self,
        kind: &str,
        settings: &[(&str, Option<&str>)],
        attributes: MountAttributes,
    ) -> Result<Detached, Errno> {
        match self {
            MountApi::Descriptors => {
                let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
                for (key, value) in settings {
                    match value {
                        Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
                        None => fsconfig_set_flag(context.as_fd(), *key)?,
                    }
                }
                if attributes.contains(MountAttributes::READ_ONLY) {
                    // As mount(2) does: the file system itself, not this mount of it alone.
                    fsconfig_set_flag(context.as_fd(), c"ro")?;
                }
                fsconfig_create(context.as_fd())?;
                let mut flags = MountAttrFlags::empty();
                flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.contains(MountAttributes::READ_ONLY));
                flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.contains(MountAttributes::NO_SUID));
                flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.contains(MountAttributes::NO_DEV));
                flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.contains(MountAttributes::NO_EXEC));
                let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
                Ok(Detached { mount, in_slot: false })
            }
            MountApi::Paths(slots) => slots.create(kind, settings, mount_flags(attributes)),
        }
    }
}

/// Calls fsopen(2) with flags that it refuses: it looks at them before the name. A name that it does not know
/// would let it start modprobe(8).
fn probe_fsopen() -> Result<(), Errno> {
    fsopen(c"tmpfs", FsOpenFlags::from_bits_retain(u32::MAX)).map(drop)
}

fn mount_flags(attributes: MountAttributes) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, attributes.contains(MountAttributes::READ_ONLY));
    flags.set(MountFlags::NOSUID, attributes.contains(MountAttributes::NO_SUID));
    flags.set(MountFlags::NODEV, attributes.contains(MountAttributes::NO_DEV));
    flags.set(MountFlags::NOEXEC, attributes.contains(MountAttributes::NO_EXEC));
    flags
}

/// The path under which mount(2) finds what a descriptor refers to.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Detached {
    /// Sets attributes on this mount and all below it.
    pub(crate) fn restrict(&self, attributes: MountAttributes) -> Result<(), Errno> {
        if attributes.is_empty() {
            Ok(())
        } else if self.in_slot {
            mount_table::remount_all(self.as_fd(), mount_flags(attributes))
        } else {
            set_mount_attributes(self.as_fd(), attributes, true)
        }
    }

    /// Takes this mount and all below it out of all propagation.
    pub(crate) fn make_private(&self) -> Result<(), Errno> {
        if self.in_slot {
            mount_change(fd_path(self.as_fd()), MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        } else {
            make_private(self.as_fd())
        }
    }

    /// Attaches this mount on top of `target`.
    pub(crate) fn attach(&self, target: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.in_slot {
            return mount_move(fd_path(self.as_fd()), fd_path(target));
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.as_fd(), c"", target, c"", flags)
    }

    /// Gives this mount a place in the mount namespace, if it has none yet. What lies at `place` is
    /// hidden by that.
    pub(crate) fn settle(&self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.in_slot { Ok(()) } else { self.attach(place) }
    }

    /// Gives this mount a place at a new directory `name` of `session`, if it has none yet: overlayfs
    /// refuses layers that have none on kernels before 6.15.
    pub(crate) fn settle_within(&self, session: &Detached, name: &str) -> Result<(), Errno> {
        if self.in_slot {
            return Ok(());
        }
        mkdirat(session.as_fd(), name, Mode::RWXU)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.attach(openat(session.as_fd(), name, flags, Mode::empty())?.as_fd())
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

/// Places for mounts that are not where they belong yet: entries of a tmpfs that is mounted when the
/// first one is needed. All sources must have been looked up by then, because it hides a directory.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    tmpfs: OnceCell<OwnedFd>,
    n_used: Cell<u32>,
}

impl Slots {
    fn bind(&self, source: &OwnedFd, recursive: bool) -> Result<Detached, Errno> {
        let is_directory = FileType::from_raw_mode(fstat(source)?.st_mode) == FileType::Directory;
        self.fill(is_directory, |slot| {
            let source = fd_path(source.as_fd());
            if recursive { mount_bind_recursive(source, slot) } else { mount_bind(source, slot) }
        })
    }

    fn create(
        &self,
        kind: &str,
        settings: &[(&str, Option<&str>)],
        flags: MountFlags,
    ) -> Result<Detached, Errno> {
        let find = |name: &str| settings.iter().find(|(key, _)| *key == name).and_then(|(_, value)| *value);
        let options: Vec<String> = settings
            .iter()
            .filter(|(key, _)| !matches!(*key, "source" | "subtype"))
            .map(|(key, value)| value.map_or_else(|| (*key).to_owned(), |value| format!("{key}={value}")))
            .collect();
        let data = CString::new(options.join(",")).map_err(|_| Errno::INVAL)?;
        let source = find("source").unwrap_or(kind);
        let kind = find("subtype").map_or_else(|| kind.to_owned(), |subtype| format!("{kind}.{subtype}"));
        self.fill(true, |slot| mount(source, slot, kind.as_str(), flags, data.as_c_str()))
    }

    /// Lets `make` mount something at a new slot, and opens it.
    fn fill(
        &self,
        is_directory: bool,
        make: impl FnOnce(&str) -> Result<(), Errno>,
    ) -> Result<Detached, Errno> {
        let tmpfs = match self.tmpfs.get() {
            Some(tmpfs) => tmpfs,
            None => {
                let tmpfs = mount_slots()?;
                self.tmpfs.get_or_init(|| tmpfs)
            }
        };
        let number = self.n_used.get();
        self.n_used.set(number + 1);
        let name = number.to_string();
        if is_directory {
            mkdirat(tmpfs, name.as_str(), Mode::RWXU)?;
        } else {
            openat(tmpfs, name.as_str(), OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::RUSR)?;
        }
        make(&format!("{}/{name}", fd_path(tmpfs.as_fd())))?;
        let mount = openat(tmpfs, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Detached { mount, in_slot: true })
    }
}

/// Mounts the tmpfs of slots. Unbindable, so that copies of the directory that it hides have no copy of
/// it, and of all that is in it, on top.
fn mount_slots() -> Result<OwnedFd, Errno> {
    let (path, place) = staging_place()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", fd_path(place.as_fd()), "tmpfs", flags, c"mode=0700")?;
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tmpfs = openat(CWD, path, open, Mode::empty())?;
    mount_change(fd_path(tmpfs.as_fd()), MountPropagationFlags::UNBINDABLE)?;
    Ok(tmpfs)
}

/// A directory of the host on which the new root can be put for a moment. What lies there is hidden
/// only in this mount namespace, and all sources are open already.
pub(crate) fn staging_place() -> Result<(&'static str, OwnedFd), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut why = Errno::NOENT;
    for path in ["/tmp", "/mnt", "/usr", "/etc"] {
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(place) => return Ok((path, place)),
            Err(errno) => why = errno,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_probe_of_fsopen_asks_for_no_file_system() {
        const SELF: &str = "mount_api::tests::the_probe_of_fsopen_asks_for_no_file_system";
        if probe_fsopen() == Err(Errno::PERM) {
            // Not allowed to mount: once more where it is.
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount"]);
            let output = command.arg(std::env::current_exe().unwrap()).args(["--exact", SELF]).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        // ENODEV is what a name gets that was looked for.
        assert!(matches!(probe_fsopen(), Err(Errno::INVAL | Errno::NOSYS)), "{:?}", probe_fsopen());
    }
}
