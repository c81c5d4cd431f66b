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

/// Tells whether this process has a single thread, by `num_threads` of `/proc/self/stat`
/// (`proc_pid_stat(5)`).
pub fn is_single_threaded() -> bool {
    let Ok(stat) = std::fs::read("/proc/self/stat") else { return false };
    // Fields are counted after the command's closing parenthesis, as the command may hold spaces.
    let Some(end) = stat.iter().rposition(|byte| *byte == b')') else { return false };
    let mut fields = stat[end + 1..].split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    // num_threads is field 20; the state after the parenthesis is field 3.
    fields.nth(17) == Some(b"1")
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
    use super::*;

    #[test]
    fn threads_are_counted_and_fork_refused() {
        // The test harness runs this in a thread of its own beside the main one.
        assert!(!is_single_threaded());
        assert_eq!(fork(), Err(Errno::BUSY));
    }
}
