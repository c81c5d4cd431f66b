//! Making namespaces, and the id maps that a user namespace needs before it is of use.

use std::fs::OpenOptions;
use std::io::Write;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;
use situla_plan::{IdMapping, LinuxSpec, NamespaceKind};
use situla_sys::Forked;

use crate::failure::{Context, Failure, FailureClass};

/// Forks; the child is in new user and PID namespaces already where `linux` asks for the latter. It is
/// the first process of it then, and must stay to the end.
pub(crate) fn fork_for(linux: &LinuxSpec) -> Result<Forked, Failure> {
    if linux.has(NamespaceKind::Pid) {
        situla_sys::fork_into_pid_namespace().map_err(refused)
    } else {
        situla_sys::fork().or_fail(FailureClass::Setup, || "cannot fork".to_owned())
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
    situla_sys::unshare(flags).map_err(refused)?;
    if maps_ids {
        // A gid map may only be written by an unprivileged process after it has given up setgroups(2):
        // user_namespaces(7).
        write_proc("setgroups", "deny")?;
        write_proc("gid_map", &map_text(&linux.gid_mappings))?;
        write_proc("uid_map", &map_text(&linux.uid_mappings))?;
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
    }
}

fn refused(errno: Errno) -> Failure {
    match errno {
        // EPERM: forbidden by a sysctl, a security module or a plain chroot. ENOSPC, EUSERS: the
        // limit user.max_user_namespaces is reached, or is 0. EINVAL: not built into the kernel.
        Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::ACCESS => Failure::of_call(
            FailureClass::NoUserNamespaces,
            "this machine does not let you make a user namespace",
            errno,
        ),
        errno => Failure::of_call(FailureClass::Setup, "cannot make namespaces", errno),
    }
}

fn map_text(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect()
}

/// Writes a file of `/proc/self` in one write(2), as the id maps demand.
fn write_proc(name: &str, text: &str) -> Result<(), Failure> {
    let path = format!("/proc/self/{name}");
    let result =
        OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    match result {
        // AppArmor's restriction lets the namespace be made and then forbids to use it.
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Err(Failure::of_call(
            FailureClass::NoUserNamespaces,
            format!("this machine does not let you use a user namespace ({path})"),
            Errno::PERM,
        )),
        other => other.or_fail(FailureClass::Setup, || format!("cannot write {path}")),
    }
}
