//! Building a container around the calling process.

use std::os::fd::AsFd;

use situla_plan::Plan;

use crate::failure::{Context, Failure, FailureClass};
use crate::rootfs::Serve;
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
    let sources = plan.spec.mounts.iter().map(mounts::open_source).collect::<Result<Vec<_>, _>>()?;
    let place = mounts::staging_place()?;
    let root = rootfs::mount(plan, place.as_fd(), serve)?;
    let place = mounts::staging_place()?;
    root.attach(place.as_fd())?;
    for (mount, source) in plan.spec.mounts.iter().zip(&sources) {
        mounts::attach_inside(root.mount.as_fd(), mount, source)?;
    }
    if let Some(hostname) = &plan.spec.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .or_fail(FailureClass::Setup, || "cannot set the host name".to_owned())?;
    }
    before_root()?;
    mounts::change_root(root.mount.as_fd())
}
