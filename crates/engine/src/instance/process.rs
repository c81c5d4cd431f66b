//! Processes that are remembered over time: a number alone may be another process by now.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

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
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Field 22 of `/proc/PID/stat`; `None` where there is no such process, or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name may hold anything; fields are counted from its closing bracket.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 3 is gone already.
    fields.nth(18)?.parse().ok()
}

/// Names the set of processes among which numbers are unique: this boot, and this PID namespace.
pub(crate) fn realm() -> (String, String) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    (boot.trim().to_owned(), namespace.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_found_behind_any_name() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 99 98\n")
        };
        assert_eq!(parse_start_time(&stat("sh", "S")), Some(4711));
        assert_eq!(parse_start_time(&stat("a) R 1 (b", "R")), Some(4711));
        assert_eq!(parse_start_time(&stat("sh", "Z")), None);
        assert_eq!(parse_start_time("7 (sh) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

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
