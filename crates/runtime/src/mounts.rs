//! The mounts of a Plan, and the change to the new root.
//!
//! Sources are looked up before the root is put in place, so no path is looked up twice and nothing that
//! the image contains can redirect them. Destinations are resolved inside the new root and never leave it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_move, unmount};
use rustix::process::{chroot, fchdir, pivot_root};
use situla_plan::{Mount, Plan};
use situla_sys::MountAttributes;

use crate::failure::{Context, Failure, FailureClass};
use crate::inside::{Links, open_inside};
use crate::mount_api::{Detached, MountApi, Source};

/// The type of a mount that shows what is in an image file, which the keeper serves.
const IMAGE_MOUNT: &str = "squashfs";

/// How many images `plan` mounts beside its root.
pub(crate) fn n_images(plan: &Plan) -> usize {
    plan.spec.mounts.iter().filter(|mount| mount.kind == IMAGE_MOUNT).count()
}

/// Looks the source of `mount` up, where it has one.
pub(crate) fn open_source(api: &MountApi, plan: &Plan, mount: &Mount) -> Result<Option<Source>, Failure> {
    if mount.kind != "bind" {
        return Ok(None);
    }
    let path = Path::new(mount.source.as_os_str());
    let source = api.open(path, is_recursive(mount)).map_err(|errno| unusable_source(mount, errno))?;
    source.expect_planned(plan, &mount.source)?;
    Ok(Some(source))
}

/// Makes `mount` of its source, with its options applied. `image` mounts what is served of an image.
pub(crate) fn make(
    api: &MountApi,
    mount: &Mount,
    source: Option<Source>,
    image: &mut dyn FnMut() -> Result<Detached, Failure>,
) -> Result<Detached, Failure> {
    let made = match (source, mount.kind.as_str()) {
        (Some(source), _) => api.copy(source).map_err(|errno| unusable_source(mount, errno))?,
        (None, IMAGE_MOUNT) => image().map_err(|failure| {
            let source = Path::new(mount.source.as_os_str()).display();
            failure.about(&format!("the image {source} cannot be mounted"))
        })?,
        (None, "tmpfs") => new_tmpfs(api, &mount.options)?,
        (None, kind @ ("devpts" | "mqueue" | "proc")) => new_kernel_tree(api, kind, &mount.options)?,
        (None, other) => {
            return Err(Failure::new(FailureClass::Setup, format!("mounts of type {other} are not known")));
        }
    };
    let restricted = made.restrict(attributes(&mount.options)).and_then(|()| {
        let private = mount.options.iter().any(|option| matches!(option.as_str(), "private" | "rprivate"));
        // Copies of the host's mounts are slaves as they come: they see its mounts and not the reverse.
        if private { made.make_private() } else { Ok(()) }
    });
    restricted.or_fail(FailureClass::MountFailed, || {
        format!("cannot restrict the mount of {}", Path::new(mount.source.as_os_str()).display())
    })?;
    Ok(made)
}

fn is_recursive(mount: &Mount) -> bool {
    !mount.options.iter().any(|option| option == "bind")
}

fn unusable_source(mount: &Mount, errno: Errno) -> Failure {
    let path = Path::new(mount.source.as_os_str()).display();
    let (class, message) = match errno {
        // Mounts that came into a user namespace together stay together (mount_namespaces(7)).
        Errno::INVAL if !is_recursive(mount) => (
            FailureClass::MountFailed,
            format!("{path} has mounts below it, and can only be bound with them: use rbind"),
        ),
        Errno::NOENT | Errno::NOTDIR => {
            (FailureClass::BindSourceMissing, format!("the bind source {path} does not exist"))
        }
        _ => (FailureClass::MountFailed, format!("the bind source {path} cannot be opened")),
    };
    Failure::of_call(class, message, errno)
}

/// Attaches `source` at the destination of `mount` inside `root`.
pub(crate) fn attach_inside(
    root: BorrowedFd<'_>,
    mount: &Mount,
    source: &Detached,
    in_memory: &InMemory<'_>,
) -> Result<(), Failure> {
    let destination = Path::new(mount.destination.as_os_str());
    let target = open_destination(root, destination).or_else(|errno| match errno {
        Errno::NOENT => {
            in_memory.make_point(destination, source)?;
            open_destination(root, destination)
        }
        errno => Err(errno),
    });
    let target = target.or_fail(FailureClass::MountFailed, || {
        format!("the mount point {} cannot be opened inside the image", destination.display())
    })?;
    source.attach(target.as_fd()).map_err(|errno| {
        let what = match errno {
            Errno::NOTDIR | Errno::ISDIR => "is a file on one side and a directory on the other",
            _ => "cannot be mounted",
        };
        let message =
            format!("{} at {} {what}", Path::new(mount.source.as_os_str()).display(), destination.display());
        Failure::of_call(FailureClass::MountFailed, message, errno)
    })
}

/// Opens what a mount is to lie on, or anything else inside `root`.
pub(crate) fn open_destination(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open_inside(root, path.as_os_str().as_bytes(), OFlags::PATH, Links::Follow)
}

/// Makes a tmpfs; options that are no mount attributes go to the file system.
pub(crate) fn new_tmpfs(api: &MountApi, options: &[String]) -> Result<Detached, Failure> {
    api.create("tmpfs", &settings(options), MountAttributes::NO_DEV.union(MountAttributes::NO_SUID))
        .or_fail(FailureClass::MountFailed, || "cannot make a tmpfs".to_owned())
}

/// Makes a tree of the kernel's that belongs to the namespaces of this process.
fn new_kernel_tree(api: &MountApi, kind: &str, options: &[String]) -> Result<Detached, Failure> {
    let attributes = MountAttributes::NO_SUID.union(MountAttributes::NO_EXEC);
    api.create(kind, &settings(options), attributes).map_err(|errno| match (kind, errno) {
        // Something of the host's is mounted in it, and would come into sight: mount_too_revealing().
        ("proc", Errno::PERM) => Failure::of_call(
            FailureClass::MountFailed,
            "this machine does not let /proc be mounted anew, because parts of its own are hidden",
            errno,
        ),
        _ => Failure::of_call(FailureClass::MountFailed, format!("cannot mount a new {kind}"), errno),
    })
}

fn settings(options: &[String]) -> Vec<(&str, Option<&str>)> {
    let pairs = options.iter().filter_map(|option| option.split_once('='));
    pairs.map(|(key, value)| (key, Some(value))).collect()
}

/// The mounts of a Plan that are file systems in memory, by the places where they are.
#[derive(Debug, Default)]
pub(crate) struct InMemory<'a> {
    places: Vec<(&'a Path, &'a Detached)>,
}

impl<'a> InMemory<'a> {
    /// Notes a mount that has been attached. A new `/dev` gets the links that programs expect there
    /// (OCI runtime specification, `config-linux.md`, "Dev symbolic links").
    pub(crate) fn note(&mut self, mount: &'a Mount, made: &'a Detached) -> Result<(), Failure> {
        let destination = Path::new(mount.destination.as_os_str());
        // What is mounted over a place hides what was in memory there.
        self.places.retain(|(place, _)| !place.starts_with(destination));
        if mount.kind != "tmpfs" {
            return Ok(());
        }
        self.places.push((destination, made));
        if destination != Path::new("/dev") {
            return Ok(());
        }
        let links = [
            ("/proc/self/fd", "fd"),
            ("/proc/self/fd/0", "stdin"),
            ("/proc/self/fd/1", "stdout"),
            ("/proc/self/fd/2", "stderr"),
            ("pts/ptmx", "ptmx"),
        ];
        links
            .iter()
            .try_for_each(|(target, link)| symlinkat(*target, made.as_fd(), *link))
            .or_fail(FailureClass::MountFailed, || "cannot make the links of a new /dev".to_owned())
    }

    /// Makes a mount point for `source` where `destination` is missing in one of these file systems.
    /// Nothing is made anywhere else: not in the image, and not in a directory of the host that is bound
    /// below one of them.
    fn make_point(&self, destination: &Path, source: &Detached) -> Result<(), Errno> {
        let inside = |(place, made): &(&'a Path, &'a Detached)| {
            Some((*made, destination.strip_prefix(place).ok()?.to_owned()))
        };
        let (made, rest) = self.places.iter().rev().find_map(inside).ok_or(Errno::NOENT)?;
        let memory = fstat(made.as_fd())?.st_dev;
        let is_directory = FileType::from_raw_mode(fstat(source.as_fd())?.st_mode) == FileType::Directory;
        let mut here = rustix::io::dup(made.as_fd())?;
        let mut names = rest.components().peekable();
        while let Some(name) = names.next() {
            let Component::Normal(name) = name else { return Err(Errno::NOENT) };
            if fstat(&here)?.st_dev != memory {
                return Err(Errno::NOENT);
            }
            if names.peek().is_none() && !is_directory {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                return openat(&here, name, flags, Mode::from_bits_truncate(0o644)).map(drop);
            }
            match mkdirat(&here, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = openat(&here, name, flags, Mode::empty())?;
        }
        Ok(())
    }
}

/// The attributes that `mount(8)` options ask for.
fn attributes(options: &[String]) -> MountAttributes {
    options.iter().fold(MountAttributes::default(), |set, option| {
        set.union(match option.as_str() {
            "ro" => MountAttributes::READ_ONLY,
            "nosuid" => MountAttributes::NO_SUID,
            "nodev" => MountAttributes::NO_DEV,
            "noexec" => MountAttributes::NO_EXEC,
            _ => MountAttributes::default(),
        })
    })
}

/// Opens a directory of the host on which the new root can be put for a moment.
pub(crate) fn staging_place() -> Result<OwnedFd, Failure> {
    let found = crate::mount_api::staging_place().map(|(_, place)| place);
    found.or_fail(FailureClass::Setup, || "the host has none of /tmp, /mnt, /usr and /etc to use".to_owned())
}

/// Makes `root`, an attached mount, the root of this mount namespace and lets go of the old one.
pub(crate) fn change_root(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let fail = |errno| Failure::of_call(FailureClass::Setup, "cannot change to the new root", errno);
    fchdir(root).map_err(fail)?;
    // Both arguments may be the same place: the old root then lies on top of the new one, and
    // unmounting "." takes it away (pivot_root(2), NOTES).
    match pivot_root(c".", c".") {
        Ok(()) => unmount(c".", UnmountFlags::DETACH).map_err(fail)?,
        // A host that runs from its initial RAM file system: that root can only be covered. Nobody
        // inside can get below the cover, as `..` ends there.
        Err(Errno::INVAL) => {
            mount_move(c".", c"/").map_err(fail)?;
            chroot(c".").map_err(fail)?;
        }
        Err(errno) => return Err(fail(errno)),
    }
    rustix::process::chdir(c"/").map_err(fail)
}
