//! Processes that are remembered over time: a number alone may be another process by now.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
pub(crate) use situla_image::realm;
use situla_runtime::ends_within;

/// A process by its number and the moment at which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    /// Its number in the PID namespace of the state file's writer.
    pub(crate) pid: i32,
    /// Clock ticks between boot and its start.
    pub(crate) started: u64,
}

impl ProcessRef {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(ProcessRef { pid, started: start_time(pid)? })
    }

    /// Whether it still runs.
    pub(crate) fn is_running(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// A descriptor that stays with the process whatever becomes of its number; `None` where it has ended.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now: before, the number could have changed hands in between.
        self.is_running().then_some(pidfd)
    }
}

/// Waits until the process behind `pidfd` has ended; false where it has not by then.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, limit: Duration) -> bool {
    ends_within(pidfd.as_fd(), limit).unwrap_or(false)
}

fn start_time(pid: i32) -> Option<u64> {
    situla_image::start_time(u32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = ProcessRef::of(pid).unwrap();
        assert!(process.is_running());
        assert!(!ProcessRef { started: process.started + 1, ..process }.is_running());
        let pidfd = process.open().unwrap();
        assert!(!wait_for_end(&pidfd, Duration::ZERO));
        drop(child.stdin.take());
        assert!(wait_for_end(&pidfd, Duration::from_secs(30)));
        assert!(!process.is_running(), "a zombie has ended");
        assert!(process.open().is_none());
        child.wait().unwrap();
    }
}
