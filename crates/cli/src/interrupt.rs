//! Dying by a signal without leaving temporary files.

use std::io::{IsTerminal, Write};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use situla_sys::{SignalFd, SignalMask, block_signals, die_by, is_ignored};

/// SIGHUP, SIGINT and SIGTERM: a terminal that is closed, Ctrl-C, and how Slurm asks to end.
const SIGNALS: [i32; 3] = [1, 2, 15];

/// From now on a signal that ends the process removes its temporary files first. To be called before any
/// other thread exists: threads inherit which signals are blocked.
pub(crate) fn remove_temporaries_on_signal() {
    // What the caller ignores (nohup) must stay ignored; a blocked signal would be seen all the same.
    let mask = SignalMask::of(SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)));
    let Ok(before) = block_signals(&mask) else { return };
    let watch = SignalFd::new(&mask).ok().and_then(|signals| {
        thread::Builder::new().name("signals".to_owned()).spawn(move || watch(&signals)).ok()
    });
    if watch.is_none() {
        // Then they end the process as ever, and the next one cleans up.
        let _ = situla_sys::set_signal_mask(&before);
    }
}

fn watch(signals: &SignalFd) {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        // Interrupted or not: the descriptor says what is there.
        let _ = poll(&mut fds, None);
        if let Ok(Some(info)) = signals.next() {
            situla_image::abandon();
            // What a meter has drawn there is out of date, and the shell writes next.
            let mut out = std::io::stderr();
            if out.is_terminal() {
                let _ = write!(out, "\r\x1b[K");
            }
            die_by(info.signal);
        }
    }
}
