//! Ending an instance.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use situla_runtime::ask_to_end;

use super::error::InstanceError;
use super::place::Instances;
use super::process::wait_for_end;
use super::state::InstanceState;

/// How to end an instance.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The signal that its processes are sent first.
    pub signal: Signal,
    /// How long they may take; then they are killed.
    pub limit: Duration,
}

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The signals that an init passes on, and the one that it need not.
const SIGNALS: [(&str, Signal); 13] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("XCPU", Signal::XCPU),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
];

/// Reads a signal: `TERM`, `SIGTERM` or `15`.
///
/// # Errors
/// It is none that an instance can be sent.
pub fn parse_signal(text: &str) -> Result<Signal, InstanceError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name.parse::<i32>().ok();
    let found = SIGNALS
        .iter()
        .find(|(known, signal)| *known == name || number == Some(signal.as_raw()))
        .map(|(_, signal)| *signal);
    found.ok_or_else(|| InstanceError::Signal { text: text.to_owned() })
}

/// Ends an instance: asks its processes, and kills them where that takes too long. When this returns, its
/// processes, mounts and files have gone.
///
/// # Errors
/// It is still there: a process hangs in the kernel.
pub fn stop(instances: &Instances, state: &InstanceState, how: &Stop) -> Result<(), InstanceError> {
    if let Some(holder) = state.holder.open() {
        let send = |signal| {
            // An init that has gone needs no signal.
            if let Some(init) = state.init.open() {
                let _ = ask_to_end(init.as_fd(), signal);
            }
        };
        send(how.signal);
        let mut has_ended = how.signal != Signal::KILL && wait_for_end(&holder, how.limit);
        if !has_ended {
            send(Signal::KILL);
            has_ended = wait_for_end(&holder, KILL_LIMIT);
        }
        if !has_ended {
            // It is stopped, say. Its init and its keeper end with it.
            let _ = pidfd_send_signal(holder.as_fd(), Signal::KILL);
            has_ended = wait_for_end(&holder, KILL_LIMIT);
        }
        if !has_ended {
            return Err(InstanceError::Stays { name: state.name.clone(), limit: how.limit + KILL_LIMIT * 2 });
        }
    }
    // A holder that was killed has left it.
    instances.forget(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in [
            ("TERM", Some(Signal::TERM)),
            ("sigint", Some(Signal::INT)),
            ("SIGKILL", Some(Signal::KILL)),
            ("9", Some(Signal::KILL)),
            ("10", Some(Signal::USR1)),
            ("STOP", None),
            ("19", None),
            ("0", None),
            ("-9", None),
            ("", None),
            ("TERM ", None),
        ] {
            assert_eq!(parse_signal(text).ok(), want, "{text:?}");
        }
    }
}
