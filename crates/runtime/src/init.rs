//! The first process of a container's PID namespace.
//!
//! It starts the payload, passes signals on to it, reaps what others leave behind, and ends when the
//! payload does; the kernel then ends whatever else runs in the namespace. It dies with the process that
//! waits for it, has no privileges, and nothing open but what it needs for this. The first process of an
//! instance stays when its payload ends.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, pidfd_send_signal, set_dumpable_behavior,
    set_parent_process_death_signal, wait, waitpid,
};
use situla_sys::{Forked, SignalFd, SignalMask};

use crate::failure::{Context, Failure, FailureClass};
use crate::supervise::{KILLED_BEFORE_EXEC, STARTED, forwarded, has_executed, is_of_terminal};

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

/// Forks `payload` and becomes the first process of the namespace. That the payload runs, and the signal by
/// which it dies, is written to `ended`: init itself cannot die by one. Returns only where it could not be
/// started.
pub(crate) fn run(ended: &OwnedFd, payload: impl FnOnce() -> Failure) -> Failure {
    let signals = match watch() {
        Ok(signals) => signals,
        Err(failure) => return failure,
    };
    // The second pipe has one end with the payload, until its exec or its death.
    let pipe = pipe_with(PipeFlags::CLOEXEC);
    let (before_exec, until_exec) =
        match pipe.map_err(|errno| Failure::of_call(FailureClass::Setup, "cannot make a pipe", errno)) {
            Ok(pipe) => pipe,
            Err(failure) => return failure,
        };
    // Both stay until the payload has been forked; what is closed behind its owner's back must not be dropped.
    let kept = [before_exec.as_raw_fd(), until_exec.as_raw_fd()];
    start(ended, signals, &kept, payload, |payload, signals| {
        drop(until_exec);
        attend(payload, signals, before_exec, ended)
    })
}

/// The same for an instance, which may have no payload, and goes on when it has ended: until a signal
/// comes from outside that means the end, and nobody is left whom it has reached.
pub(crate) fn run_instance(ended: &OwnedFd, payload: Option<impl FnOnce() -> Failure>) -> Failure {
    let signals = match watch() {
        Ok(signals) => signals,
        Err(failure) => return failure,
    };
    match payload {
        Some(payload) => start(ended, signals, &[], payload, |_, signals| attend_instance(signals)),
        None => become_init(ended, &signals, &[], || attend_instance(&signals)),
    }
}

/// Blocks the signals that init hears, to be read.
fn watch() -> Result<SignalFd, Failure> {
    let mut watched: Vec<i32> = (1..=64).filter(|signal| forwarded().contains(*signal)).collect();
    watched.push(CHILD);
    let mask = SignalMask::of(watched);
    situla_sys::block_signals(&mask)
        .and_then(|_| SignalFd::new(&mask))
        .map_err(|errno| Failure::of_call(FailureClass::Setup, "cannot read signals", errno))
}

fn start(
    ended: &OwnedFd,
    signals: SignalFd,
    kept: &[RawFd],
    payload: impl FnOnce() -> Failure,
    attend: impl FnOnce(Pid, &SignalFd) -> i32,
) -> Failure {
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
    match situla_sys::fork().map_err(setup("cannot fork")) {
        Err(failure) => failure,
        Ok(Forked::Child) => payload(),
        Ok(Forked::Parent(pid)) => become_init(ended, &signals, kept, || attend(pid, &signals)),
    }
}

/// Gives up what init does not need, then does nothing but `main`, which may use the descriptors `kept`.
fn become_init(ended: &OwnedFd, signals: &SignalFd, kept: &[RawFd], main: impl FnOnce() -> i32) -> ! {
    // It runs a file of the host's to the end: the payload must not trace it.
    let given_up = set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .and_then(|()| rustix::thread::set_no_new_privs(true))
        .and_then(|()| situla_sys::drop_all_capabilities());
    if given_up.is_err() {
        // The payload ends with this process.
        situla_sys::exit_now(1);
    }
    let own = [ended.as_raw_fd(), signals.as_fd().as_raw_fd()];
    let keep: Vec<RawFd> = own.into_iter().chain(kept.iter().copied()).collect();
    situla_sys::become_init(c"situla-init", &keep, main)
}

/// Signals that mean the end of an instance whoever sends them. All others inform.
const ENDING: [Signal; 5] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::XCPU];

/// From whoever ends an instance by another signal, which is sent first: that was to be the end. The init of a
/// machine understands it likewise. It is not passed on.
const END: Signal = Signal::POWER;

/// Sends everybody in an instance, whose first process is `init`, a signal that is to be their end.
///
/// # Errors
/// It has gone, or is somebody else's.
pub fn ask_to_end(init: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    pidfd_send_signal(init, signal)?;
    if ENDING.contains(&signal) { Ok(()) } else { pidfd_send_signal(init, END) }
}

/// What the init of an instance does about a signal from outside: whether it passes it on, and whether it ends
/// once nobody is left.
fn meaning(signal: i32) -> (bool, bool) {
    match Signal::from_named_raw(signal) {
        Some(Signal::CHILD) => (false, false),
        Some(END) => (false, true),
        Some(signal) => (true, ENDING.contains(&signal)),
        None => (true, false),
    }
}

/// Reaps, and passes signals on to everybody. Once one has come that means the end, ends when nobody is left.
fn attend_instance(signals: &SignalFd) -> i32 {
    /// How often to look whether those have gone that entered: their end is told to others.
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut is_ending = false;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if is_ending && situla_sys::signal_everybody(0) == Err(Errno::SRCH) {
            return 0;
        }
        let mut polled = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        if !matches!(poll(&mut polled, is_ending.then_some(&LOOK)), Ok(_) | Err(Errno::INTR)) {
            return 1;
        }
        while let Ok(Some(info)) = signals.next() {
            let (passed_on, ends) = meaning(info.signal);
            is_ending |= ends;
            if passed_on {
                // Nobody there, or nobody who may be told: then the look says whether to go.
                let _ = situla_sys::signal_everybody(info.signal);
            }
        }
    }
}

/// Waits for the payload; the result is its exit status. `before_exec` has an end as soon as the payload is
/// the program, or is dead.
fn attend(payload: Pid, signals: &SignalFd, before_exec: OwnedFd, ended: &OwnedFd) -> i32 {
    // Whoever waits for this may have gone where it cannot be written.
    let tell = |what: u8| {
        let _ = rustix::io::write(ended, &[what]);
    };
    let mut before_exec = Some(before_exec);
    let mut runs = false;
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        polled.extend(before_exec.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        if !matches!(poll(&mut polled, None), Ok(_) | Err(Errno::INTR)) {
            return 1;
        }
        let mut look = polled.get(1).is_some_and(|pipe| !pipe.revents().is_empty());
        while let Ok(Some(info)) = signals.next() {
            if info.signal != CHILD && !is_of_terminal(&info) {
                situla_sys::send_raw_signal(payload, info.signal);
            }
        }
        loop {
            let child = situla_sys::ended_child();
            // The last chance to ask, if it is the payload.
            if (look || child == Some(payload)) && before_exec.take().is_some() {
                runs = has_executed(payload);
                if runs {
                    tell(STARTED);
                }
            }
            look = false;
            let Some(child) = child else { break };
            let Ok(Some((_, status))) = waitpid(Some(child), WaitOptions::NOHANG) else { return 1 };
            if child != payload {
                continue;
            }
            match status.terminating_signal() {
                Some(signal) if signal == Signal::KILL.as_raw() && !runs => tell(KILLED_BEFORE_EXEC),
                Some(signal) => tell(u8::try_from(signal).unwrap_or(KILLED_BEFORE_EXEC)),
                None => {}
            }
            return status.exit_status().unwrap_or(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_signals_end_an_instance() {
        for signal in (1..=64).filter(|signal| forwarded().contains(*signal)) {
            // HUP INT QUIT TERM XCPU, and PWR, which is for the init alone.
            let ends = [1, 2, 3, 15, 24, 30].contains(&signal);
            assert_eq!(meaning(signal), (signal != 30, ends), "{signal}");
        }
        assert_eq!(meaning(CHILD), (false, false));
    }
}
