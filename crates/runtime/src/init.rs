//! The first process of a container's PID namespace.
//!
//! It starts the payload, passes signals on to it, reaps what others leave behind, and ends when the
//! payload does; the kernel then ends whatever else runs in the namespace. It dies with the process that
//! waits for it, has no privileges, and nothing open but what it needs for this.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, set_dumpable_behavior, set_parent_process_death_signal, wait,
};
use situla_sys::{Forked, SignalFd, SignalMask};

use crate::failure::{Context, Failure, FailureClass};
use crate::supervise::{forwarded, is_of_terminal};

/// SIGCHLD, on x86 and Arm.
const CHILD: i32 = 17;

/// Makes sure that this process, which has just been forked, does not outlive the one that waits for it.
/// `ended` is a pipe whose other end that process has open all its life.
pub(crate) fn bind_to_waiting(ended: &OwnedFd) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .or_fail(FailureClass::Setup, || "cannot bind to the parent's life".to_owned())?;
    let mut polled = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::empty())];
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&AT_ONCE)) {
        // It ended before the signal was asked for.
        Ok(n_ready) if n_ready > 0 => situla_sys::exit_now(1),
        _ => Ok(()),
    }
}

/// Forks `payload` and becomes the first process of the namespace. The signal by which the payload dies
/// is written to `ended`: init itself cannot die by one. Returns only where it could not be started.
pub(crate) fn run(ended: &OwnedFd, payload: impl FnOnce() -> Failure) -> Failure {
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
    let mut watched: Vec<i32> = (1..=64).filter(|signal| forwarded().contains(*signal)).collect();
    watched.push(CHILD);
    let mask = SignalMask::of(watched);
    let prepared = situla_sys::block_signals(&mask).and_then(|_| SignalFd::new(&mask));
    let signals = match prepared.map_err(setup("cannot read signals")) {
        Ok(signals) => signals,
        Err(failure) => return failure,
    };
    match situla_sys::fork().map_err(setup("cannot fork")) {
        Err(failure) => failure,
        Ok(Forked::Child) => payload(),
        Ok(Forked::Parent(pid)) => {
            // It runs a file of the host's to the end: the payload must not trace it.
            let given_up = set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .and_then(|()| rustix::thread::set_no_new_privs(true))
                .and_then(|()| situla_sys::drop_all_capabilities());
            if given_up.is_err() {
                // The payload ends with this process.
                situla_sys::exit_now(1);
            }
            let keep = [ended.as_raw_fd(), signals.as_fd().as_raw_fd()];
            situla_sys::become_init(c"situla-init", &keep, || attend(pid, &signals, ended))
        }
    }
}

/// Waits for the payload; the result is its exit status.
fn attend(payload: Pid, signals: &SignalFd, ended: &OwnedFd) -> i32 {
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid != payload {
                continue;
            }
            if let Some(signal) = status.terminating_signal() {
                // Whoever waits for this has gone where it cannot be written.
                let _ = rustix::io::write(ended, &[u8::try_from(signal).unwrap_or(u8::MAX)]);
            }
            return status.exit_status().unwrap_or(1);
        }
        let mut polled = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        if !matches!(poll(&mut polled, None), Ok(_) | Err(Errno::INTR)) {
            return 1;
        }
        while let Ok(Some(info)) = signals.next() {
            if info.signal != CHILD && !is_of_terminal(&info) {
                situla_sys::send_raw_signal(payload, info.signal);
            }
        }
    }
}
