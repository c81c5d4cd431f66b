//! fork(2), allowed only where it is sound: in a process with a single thread.

use rustix::io::Errno;
use rustix::process::Pid;

use crate::checked;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The process that forked, with the child's pid.
    Parent(Pid),
}

/// Tells whether this process has a single thread: `/proc/self/task` has a link for itself, one for
/// its parent, and one for each thread (`proc_task_getattr`, fs/proc/base.c). Asking for the links
/// is a tenth of the price of reading `num_threads` from `/proc/self/stat`.
pub fn is_single_threaded() -> bool {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() == 3) {
        return true;
    }
    // Where /proc is not mounted, or a container has something else at its place: this flag changes nothing and
    // is refused to a process with threads (unshare(2)).
    // SAFETY: unshare takes flags; this one moves the process nowhere.
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}

/// Forks. Fails with `EBUSY` in a process with more than one thread: there the child could find a
/// lock of the allocator held for ever.
pub fn fork() -> Result<Forked, Errno> {
    if !is_single_threaded() {
        return Err(Errno::BUSY);
    }
    // SAFETY: the process has one thread, so the child has a consistent copy of all memory and may
    // go on like any process.
    let pid = checked(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent))
}

/// Forks into a new user namespace and a new PID namespace, of which the child is the first process. Fails
/// as [`fork`] does, and as unshare(2) does.
///
/// The C library does not know of this child: it must not start threads or raise signals at itself.
/// Forking with [`fork`] again gives a process without these limits.
pub fn fork_into_pid_namespace() -> Result<Forked, Errno> {
    if !is_single_threaded() {
        return Err(Errno::BUSY);
    }
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork: no stack is given, and the child has a copy of all memory,
    // consistent because there is one thread. The other arguments are not read with these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid == -1 {
        return Err(crate::last_errno());
    }
    let pid = i32::try_from(pid).map_err(|_| Errno::INVAL)?;
    Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent))
}

/// A child of this process that has ended and is not waited for yet; it stays so.
pub fn ended_child() -> Option<Pid> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the structure is of the type that waitid(2) writes to; an id is not read with P_ALL.
    checked(unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) }).ok()?;
    // SAFETY: zeroed above, and a structure of integers.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid sets this field, or leaves the zero where no child has ended.
    Pid::from_raw(unsafe { info.si_pid() })
}

/// Forks a child of this process's parent: one that is in the PID namespace which this process has entered,
/// and that the parent waits for. Fails as [`fork`] does.
///
/// What [`fork_into_pid_namespace`] says of its child is true of this one.
pub fn fork_sibling() -> Result<Forked, Errno> {
    if !is_single_threaded() {
        return Err(Errno::BUSY);
    }
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as in `fork_into_pid_namespace`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid == -1 {
        return Err(crate::last_errno());
    }
    let pid = i32::try_from(pid).map_err(|_| Errno::INVAL)?;
    Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent))
}

/// Has this process end by SIGALRM after so many seconds, if it has not by then: alarm(2). Children do not inherit it.
pub fn end_after(seconds: u32) {
    // SAFETY: takes a number.
    unsafe { libc::alarm(seconds) };
}

/// Ends the process at once: no destructors, no exit handlers, no flushing. For children that
/// share files and locks with their parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn threads_are_counted_and_fork_refused() {
        // The test harness runs this in a thread of its own beside the main one.
        assert!(!is_single_threaded());
        assert_eq!(fork(), Err(Errno::BUSY));
        let n_links = |pid: u32| std::fs::metadata(format!("/proc/{pid}/task")).map(|task| task.nlink());
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(n_links(child.id()).unwrap(), 3, "a program with one thread");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
