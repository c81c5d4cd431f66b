//! The id maps of a user namespace.
//!
//! A process without privileges may map one user and one group, its own, by itself. More than that is
//! written by newuidmap(1) and newgidmap(1): programs of the host with rights of their own, which map what
//! `/etc/subuid` and `/etc/subgid` give to the user. They must be started outside the namespace.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};
use situla_plan::{IdMapping, LinuxSpec};
use situla_sys::Forked;

use crate::apparmor;
use crate::failure::{Context, Failure, FailureClass};

/// Where the programs are; a search path is the user's to set.
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// The most ranges of a map: what the kernel takes (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// The most that is repeated of what a program says.
const MAX_SAID: usize = 300;

/// Whether the maps are more than a process may write by itself.
pub(crate) fn need_programs(linux: &LinuxSpec) -> bool {
    let more = |maps: &[IdMapping]| maps.len() > 1 || maps.iter().any(|map| map.size > 1);
    more(&linux.uid_mappings) || more(&linux.gid_mappings)
}

/// Writes the maps of this process's new user namespace.
pub(crate) fn write_own(linux: &LinuxSpec) -> Result<(), Failure> {
    write_own_maps(&linux.uid_mappings, &linux.gid_mappings)
}

/// The same for users and groups.
pub(crate) fn write_own_maps(uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Failure> {
    // A gid map may only be written by an unprivileged process after it has given up setgroups(2):
    // user_namespaces(7).
    write_proc("setgroups", "deny")?;
    write_proc("gid_map", &map_text(gids))?;
    write_proc("uid_map", &map_text(uids))
}

/// Maps the ids of `process`, which is in a new user namespace that this process is not in.
pub(crate) fn map_with_programs(linux: &LinuxSpec, process: Pid) -> Result<(), Failure> {
    run("newgidmap", process, &linux.gid_mappings)?;
    run("newuidmap", process, &linux.uid_mappings)
}

/// A process that stays outside to start the programs for this one.
#[derive(Debug)]
pub(crate) struct Outside {
    pid: Pid,
    request: OwnedFd,
    answer: OwnedFd,
}

impl Outside {
    /// Forks it.
    pub(crate) fn fork(linux: &LinuxSpec) -> Result<Self, Failure> {
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).or_fail(FailureClass::Setup, || "cannot make a pipe".to_owned());
        let ((wanted, request), (answer, report)) = (pipe()?, pipe()?);
        let process = getpid();
        match situla_sys::fork().or_fail(FailureClass::Setup, || "cannot fork".to_owned())? {
            Forked::Parent(pid) => Ok(Outside { pid, request, answer }),
            Forked::Child => {
                drop((request, answer));
                // Where nobody asks, there is no namespace.
                if matches!(rustix::io::read(&wanted, &mut [0; 1]), Ok(1))
                    && let Err(failure) = map_with_programs(linux, process)
                {
                    let _ = rustix::io::write(&report, &failure.encode());
                }
                situla_sys::exit_now(0)
            }
        }
    }

    /// Has the ids of this process mapped, which is in its new user namespace by now.
    pub(crate) fn map(self) -> Result<(), Failure> {
        let Outside { pid, request, answer } = self;
        let asked = rustix::io::write(&request, &[1])
            .or_fail(FailureClass::Setup, || "cannot ask for the ids to be mapped".to_owned());
        let mut said = Vec::new();
        let read = File::from(answer)
            .read_to_end(&mut said)
            .or_fail(FailureClass::Setup, || "cannot wait for the ids to be mapped".to_owned());
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        asked?;
        read?;
        Failure::decode(&said).map_or(Ok(()), Err)
    }
}

fn run(name: &str, process: Pid, maps: &[IdMapping]) -> Result<(), Failure> {
    let failed = |what: String| Failure::new(FailureClass::SubordinateIds, what);
    if maps.len() > MAX_RANGES {
        return Err(failed(format!("more than {MAX_RANGES} ranges of ids cannot be mapped")));
    }
    let program = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    let Some(program) = program.into_iter().find(|path| path.exists()) else {
        return Err(failed(format!("{name} is not installed on this machine")));
    };
    let numbers = maps.iter().flat_map(|map| [map.container_id, map.host_id, map.size]);
    let output = Command::new(&program)
        .arg(process.as_raw_pid().to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .or_fail(FailureClass::SubordinateIds, || format!("cannot start {}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().filter(|c| !c.is_control()).take(MAX_SAID).collect();
    Err(failed(format!("{} does not map these ids: {said}", program.display())))
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
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let errno = error.raw_os_error().map_or(Errno::PERM, Errno::from_raw_os_error);
            let message = format!("this machine does not let you use a user namespace ({path})");
            Err(apparmor::explain(message, errno, Path::new("/proc")))
        }
        other => other.or_fail(FailureClass::Setup, || format!("cannot write {path}")),
    }
}
