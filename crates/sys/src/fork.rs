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
    std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() == 3)
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
