//! Making namespaces, and the id maps that a user namespace needs before it is of use.

use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;
use situla_plan::{LinuxSpec, NamespaceKind};
use situla_sys::Forked;

use crate::failure::{Context, Failure, FailureClass};
use crate::id_maps::{self, Outside};
use crate::{apparmor, supervise};

/// Forks; the child is in new user and PID namespaces already where `linux` asks for the latter. It is
/// the first process of it then, and must stay to the end.
pub(crate) fn fork_for(linux: &LinuxSpec) -> Result<Forked, Failure> {
    if linux.has(NamespaceKind::Pid) {
        fork_mapped(linux)
    } else {
        situla_sys::fork().or_fail(FailureClass::Setup, || "cannot fork".to_owned())
    }
}

/// Forks into a PID namespace, with ids mapped by this process where the child cannot.
fn fork_mapped(linux: &LinuxSpec) -> Result<Forked, Failure> {
    if !id_maps::need_programs(linux) {
        return situla_sys::fork_into_pid_namespace().map_err(refused);
    }
    let (mapped, tell) =
        pipe_with(PipeFlags::CLOEXEC).or_fail(FailureClass::Setup, || "cannot make a pipe".to_owned())?;
    match situla_sys::fork_into_pid_namespace().map_err(refused)? {
        Forked::Child => {
            drop(tell);
            match rustix::io::read(&mapped, &mut [0; 1]) {
                Ok(1) => Ok(Forked::Child),
                // The other process knows why, or has been killed.
                _ => situla_sys::exit_now(1),
            }
        }
        Forked::Parent(pid) => {
            let done = id_maps::map_with_programs(linux, pid);
            if done.is_ok() {
                // A child that has been killed meanwhile is noticed later.
                let _ = rustix::io::write(&tell, &[1]);
                return Ok(Forked::Parent(pid));
            }
            supervise::end(pid);
            done.map(|()| Forked::Parent(pid))
        }
    }
}

/// Moves this process, which [`fork_for`] has made, into new namespaces as `linux` asks, with its ids
/// mapped.
pub(crate) fn enter_new(linux: &LinuxSpec) -> Result<(), Failure> {
    let mut flags =
        linux.namespaces.iter().fold(UnshareFlags::empty(), |flags, namespace| flags | flag(namespace.kind));
    let maps_ids = flags.contains(UnshareFlags::NEWUSER);
    if flags.contains(UnshareFlags::NEWPID) {
        flags = flags.difference(UnshareFlags::NEWPID | UnshareFlags::NEWUSER);
    }
    let outside = flags.contains(UnshareFlags::NEWUSER) && id_maps::need_programs(linux);
    let outside = outside.then(|| Outside::fork(linux)).transpose()?;
    situla_sys::unshare(flags).map_err(refused)?;
    if maps_ids {
        match outside {
            Some(outside) => outside.map()?,
            // Those of a PID namespace's first process are mapped by the one that forked it.
            None if id_maps::need_programs(linux) => {}
            None => id_maps::write_own(linux)?,
        }
    }
    if flags.contains(UnshareFlags::NEWNET) {
        situla_sys::bring_loopback_up()
            .or_fail(FailureClass::Setup, || "cannot switch the loopback device on".to_owned())?;
    }
    Ok(())
}

fn flag(kind: NamespaceKind) -> UnshareFlags {
    match kind {
        NamespaceKind::User => UnshareFlags::NEWUSER,
        NamespaceKind::Mount => UnshareFlags::NEWNS,
        NamespaceKind::Ipc => UnshareFlags::NEWIPC,
        NamespaceKind::Uts => UnshareFlags::NEWUTS,
        NamespaceKind::Network => UnshareFlags::NEWNET,
        NamespaceKind::Pid => UnshareFlags::NEWPID,
        NamespaceKind::Cgroup => UnshareFlags::NEWCGROUP,
    }
}

fn refused(errno: Errno) -> Failure {
    match errno {
        // EPERM: forbidden by a sysctl, a security module or a plain chroot. ENOSPC, EUSERS: the
        // limit user.max_user_namespaces is reached, or is 0. EINVAL: not built into the kernel.
        Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::ACCESS => apparmor::explain(
            "this machine does not let you make a user namespace".to_owned(),
            errno,
            Path::new("/proc"),
        ),
        errno => Failure::of_call(FailureClass::Setup, "cannot make namespaces", errno),
    }
}
