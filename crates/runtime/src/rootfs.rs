//! Mounting the root file system of a Plan, inside the new namespaces.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use situla_plan::{Plan, RootfsSource};
use situla_sys::MountAttributes;

use crate::covers::Covers;
use crate::failure::{Context, Failure, FailureClass};
use crate::layers::{LayerSources, mount_layers, open_layers};
use crate::mount_api::{Detached, MountApi, Source};
use crate::overlay::{mount_overlay, shield_server};

/// Where the FUSE device of a new mount goes: to the process that will serve it. Devices go in the order in which
/// their images are mounted: those of the Plan's mounts, then the root's.
pub(crate) type Serve<'a> = dyn FnMut(BorrowedFd<'_>) -> Result<(), Failure> + 'a;

/// A rootfs that is ready to be attached.
pub(crate) struct Ready {
    /// The root mount.
    pub(crate) mount: Detached,
    /// What goes on top of it once it is attached.
    covers: Option<Covers>,
    /// What an overlay was made of: a tmpfs with its upper directory, or the mount of an image. It must outlive nothing, the
    /// overlay keeps what it needs, but it hides the staging place until the old root goes.
    _session: Option<Detached>,
}

impl Ready {
    /// Attaches the root on top of `place`, and on it what the Plan shows above the image.
    pub(crate) fn attach(&self, place: BorrowedFd<'_>) -> Result<(), Failure> {
        self.mount
            .attach(place)
            .or_fail(FailureClass::Rootfs, || "cannot attach the root mount".to_owned())?;
        self.covers.as_ref().map_or(Ok(()), Covers::attach)
    }
}

/// The paths of the host that a root is made of, looked up.
pub(crate) struct Sources {
    root: Option<Source>,
    layers: Option<LayerSources>,
}

/// Looks the paths of the host up of which the root of `plan` is made.
pub(crate) fn open_sources(api: &MountApi, plan: &Plan) -> Result<Sources, Failure> {
    let root = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => None,
        RootfsSource::Directory { path } => {
            let shown = Path::new(path.as_os_str());
            let root = api.open(shown, true).map_err(|errno| unusable_root(shown, errno))?;
            root.expect_planned(plan, path)?;
            Some(root)
        }
    };
    let layers = plan.rootfs.overlay.as_ref().map(|overlay| open_layers(api, plan, overlay)).transpose()?;
    Ok(Sources { root, layers })
}

fn unusable_root(path: &Path, errno: Errno) -> Failure {
    let message = format!("the root directory {} cannot be opened", path.display());
    Failure::of_call(FailureClass::Rootfs, message, errno)
}

/// Mounts the rootfs of `plan`, detached. `place` is the staging place of the caller, `sources` what
/// [`open_sources`] has found.
pub(crate) fn mount(
    api: &MountApi,
    plan: &Plan,
    sources: Sources,
    place: BorrowedFd<'_>,
    serve: &mut Serve<'_>,
) -> Result<Ready, Failure> {
    let mut attributes = MountAttributes::NO_SUID.union(MountAttributes::NO_DEV);
    if plan.spec.root.readonly {
        attributes = attributes.union(MountAttributes::READ_ONLY);
    }
    let plain = |mount| Ready { mount, covers: None, _session: None };
    let overlay = plan.rootfs.overlay.as_ref().zip(sources.layers);
    let lower = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => mount_fuse(api, plan, serve)?,
        RootfsSource::Directory { path } => {
            let copy = sources.root.ok_or(Errno::INVAL).and_then(|source| api.copy(source));
            copy.map_err(|errno| unusable_root(Path::new(path.as_os_str()), errno))?
        }
    };
    // The server of an image shows the patches itself.
    let patches = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => &[],
        RootfsSource::Directory { .. } => plan.rootfs.patches.as_slice(),
    };
    let directory = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => None,
        RootfsSource::Directory { path } => path.as_os_str().to_str(),
    };
    let name = directory.map(overlay_name);
    let ready = if let Some((overlay, sources)) = overlay {
        let (mount, session) = mount_layers(api, (overlay, name), sources, (&lower, patches), place)?;
        Ready { mount, covers: None, _session: Some(session) }
    } else if let RootfsSource::Squashfs { .. } = &plan.rootfs.source {
        let (mount, server) = shield_server(api, lower, place)?;
        Ready { mount, covers: None, _session: Some(server) }
    } else if patches.is_empty() {
        plain(lower)
    } else if let Some(covers) = Covers::make(api, patches, &lower, place, attributes)? {
        Ready { mount: lower, covers: Some(covers), _session: None }
    } else {
        let (mount, session) = mount_overlay(api, patches, place, (&lower, name))?;
        Ready { mount, covers: None, _session: Some(session) }
    };
    ready
        .mount
        .restrict(attributes)
        .or_fail(FailureClass::Rootfs, || "cannot restrict the root mount".to_owned())?;
    Ok(ready)
}

/// How an overlay over the directory `path` is called in tables of mounts, which say nothing else of what its layers are:
/// whoever removes extracted trees sees there that somebody uses one. The end tells which it is.
fn overlay_name(path: &str) -> &str {
    /// fsconfig(2) takes no more.
    const MAX_NAME: usize = 255;
    let mut start = path.len().saturating_sub(MAX_NAME);
    while !path.is_char_boundary(start) {
        start += 1;
    }
    path.get(start..).unwrap_or_default()
}

/// Mounts a FUSE file system and hands its device over to be served.
///
/// The device must be opened here, in the new user namespace: the kernel refuses a device that was
/// opened in another one than the mount belongs to (`fuse_fill_super`, fs/fuse/inode.c).
pub(crate) fn mount_fuse(api: &MountApi, plan: &Plan, serve: &mut Serve<'_>) -> Result<Detached, Failure> {
    let device = open_fuse_device()?;
    let user = plan.spec.process.user;
    let (fd, uid, gid) = (device.as_raw_fd().to_string(), user.uid.to_string(), user.gid.to_string());
    let settings = [
        ("source", Some("situla")),
        ("subtype", Some("situla")),
        ("fd", Some(fd.as_str())),
        ("rootmode", Some("40000")),
        ("user_id", Some(&uid)),
        ("group_id", Some(&gid)),
        // A task of the same user with another primary group gets EACCES without allow_other.
        ("allow_other", None),
        ("default_permissions", None),
    ];
    // Read-only as a whole: else the kernel takes each reading for a change of the time of access, and asks for the
    // attributes anew (`fuse_invalidate_atime`, fs/fuse/dir.c).
    let attributes =
        MountAttributes::NO_DEV.union(MountAttributes::NO_SUID).union(MountAttributes::READ_ONLY);
    let mount = api
        .create("fuse", &settings, attributes)
        .map_err(|errno| Failure::of_call(FailureClass::NoFuse, "cannot mount a FUSE file system", errno))?;
    serve(device.as_fd())?;
    Ok(mount)
}

fn open_fuse_device() -> Result<OwnedFd, Failure> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => Ok(device.into()),
        Err(error) => {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            let what = match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => "/dev/fuse does not exist on this machine",
                Errno::ACCESS | Errno::PERM => "you may not open /dev/fuse on this machine",
                _ => "/dev/fuse cannot be opened",
            };
            Err(Failure::of_call(FailureClass::NoFuse, what, errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_has_a_name_that_fits() {
        for (path, name) in [
            ("/trees/sha256-aa".to_owned(), "/trees/sha256-aa".to_owned()),
            (format!("/{}/a", "b".repeat(300)), format!("{}/a", "b".repeat(253))),
            // Never half a character.
            (format!("/{}a", "ü".repeat(200)), format!("{}a", "ü".repeat(127))),
            (format!("/{}", "ü".repeat(200)), "ü".repeat(127)),
        ] {
            assert_eq!(overlay_name(&path), name);
        }
    }
}
