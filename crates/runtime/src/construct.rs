//! Building a container around the calling process.

use std::os::fd::AsFd;
use std::path::Path;

use situla_plan::Plan;

use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::{Detached, MountApi, Source};
use crate::paths::Attached;
use crate::rootfs::{Ready, Serve};
use crate::{mounts, namespaces, rootfs};

/// Puts this process into new namespaces with the root file system and the mounts of `plan`. It
/// has every capability in its user namespace afterwards; whoever calls this gives them up before
/// exec. `before_root` runs when everything is mounted and the host's root is about to go.
pub(crate) fn construct(
    plan: &Plan,
    serve: &mut Serve<'_>,
    before_root: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    namespaces::enter_new(&plan.spec.linux)?;
    let Mounted { api, root, mounts } = mount_all(plan, serve)?;
    let place = mounts::staging_place()?;
    root.attach(place.as_fd())?;
    let mut in_memory = mounts::InMemory::default();
    let mut attached = Attached::below(root.mount.as_fd());
    for (mount, made) in plan.spec.mounts.iter().zip(&mounts) {
        mounts::attach_inside(root.mount.as_fd(), mount, made, &in_memory)?;
        in_memory.note(mount, made)?;
        attached.note(mount, made);
    }
    // Masks come first: what is made read-only afterwards is a copy that has them, and would hide them else.
    for path in &plan.spec.linux.masked_paths {
        attached.mask(&api, Path::new(path.as_os_str()))?;
    }
    for path in &plan.spec.linux.readonly_paths {
        attached.make_read_only(&api, Path::new(path.as_os_str()))?;
    }
    if let Some(hostname) = &plan.spec.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .or_fail(FailureClass::Setup, || "cannot set the host name".to_owned())?;
    }
    before_root()?;
    mounts::change_root(root.mount.as_fd())
}

/// All mounts of a container, none of them at its place.
struct Mounted {
    /// How they were made.
    api: MountApi,
    root: Ready,
    mounts: Vec<Detached>,
}

/// Makes all mounts. There is one attempt: what has been attached is in the way of another.
fn mount_all(plan: &Plan, serve: &mut Serve<'_>) -> Result<Mounted, Failure> {
    let api = MountApi::choose();
    let sources = plan.spec.mounts.iter().map(|mount| mounts::open_source(&api, plan, mount));
    let sources = sources.collect::<Result<Vec<Option<Source>>, _>>()?;
    let root = rootfs::open_sources(&api, plan)?;
    let mut image = || rootfs::mount_fuse(&api, plan, serve);
    let made = plan.spec.mounts.iter().zip(sources);
    let made = made.map(|(mount, source)| mounts::make(&api, mount, source, &mut image));
    let mounts = made.collect::<Result<Vec<Detached>, _>>()?;
    let place = mounts::staging_place()?;
    let root = rootfs::mount(&api, plan, root, place.as_fd(), serve)?;
    Ok(Mounted { api, root, mounts })
}
