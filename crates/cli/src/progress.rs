//! Shows how a pull or conversion is going.
//!
//! On a terminal one line is rewritten; elsewhere (a batch job's log) a line is added every few seconds.
//! A thread draws from counters, so whoever reports never waits for the terminal.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use situla_image::{Event, Progress};

use crate::output::{layers, size};

/// Time between two drawings on a terminal: smooth, and nothing to a terminal over a slow line.
const REDRAW: Duration = Duration::from_millis(200);
/// Time between two lines in a log: a pull of minutes stays readable.
const LOG: Duration = Duration::from_secs(5);
/// Width where the terminal does not say.
const DEFAULT_WIDTH: usize = 80;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Nothing.
    Nothing,
    /// What suits standard error.
    Suitable,
}

/// Counts, and shows the counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Meter {
    counts: Arc<Counts>,
    drawer: Option<(Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug, Default)]
struct Counts {
    n_layers: AtomicU64,
    n_done: AtomicU64,
    bytes: AtomicU64,
    total: AtomicU64,
    /// Of files of this machine.
    read: AtomicU64,
    to_read: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Who is converting the image that we wait for.
    holder: Option<String>,
    /// What cannot be in an image.
    skipped: Vec<String>,
}

impl Meter {
    /// Starts to show, each line with `about` in front.
    pub(crate) fn start(show: Show, about: &str) -> Self {
        let counts = Arc::new(Counts::default());
        let drawer = match show {
            Show::Nothing => None,
            Show::Suitable => {
                let (stop, stopped) = channel();
                let (shared, about) = (Arc::clone(&counts), about.to_owned());
                let thread = thread::Builder::new().name("progress".to_owned());
                // Without a thread nothing is shown, which is no reason to fail.
                thread
                    .spawn(move || {
                        let terminal = std::io::stderr().is_terminal();
                        let pause = if terminal { REDRAW } else { LOG };
                        draw(&shared, &about, terminal, pause, &stopped);
                    })
                    .ok()
                    .map(|thread| (stop, thread))
            }
        };
        Meter { counts, drawer }
    }

    /// Stops to show, and gives the files that were left out.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.stop();
        std::mem::take(&mut self.counts.notes().skipped)
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.drawer.take() {
            drop(stop);
            // A drawer that panicked has stopped too.
            let _ = thread.join();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Counts {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Meter {
    fn event(&self, event: Event) {
        let counts = &self.counts;
        match event {
            Event::Resolved { n_layers, bytes, .. } => {
                counts.n_layers.store(u64::try_from(n_layers).unwrap_or(u64::MAX), Relaxed);
                counts.total.store(bytes, Relaxed);
                // Whoever fetches an image and sends it on has two.
                counts.n_done.store(0, Relaxed);
                counts.bytes.store(0, Relaxed);
            }
            Event::Present => counts.notes().holder = None,
            Event::Waiting { holder } => counts.notes().holder = Some(holder),
            Event::Fetched { bytes, .. } => {
                counts.bytes.fetch_add(bytes, Relaxed);
            }
            Event::ToRead { bytes } => {
                counts.to_read.fetch_add(bytes, Relaxed);
            }
            Event::Read { bytes } => {
                counts.read.fetch_add(bytes, Relaxed);
            }
            Event::LayerDone { .. } => {
                counts.n_done.fetch_add(1, Relaxed);
            }
            Event::Skipped { path, why } => counts.notes().skipped.push(format!("{path}: {why}")),
            _ => {}
        }
    }
}

/// A look at the counters.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    n_layers: u64,
    n_done: u64,
    bytes: u64,
    total: u64,
    read: u64,
    to_read: u64,
}

fn draw(counts: &Counts, about: &str, terminal: bool, pause: Duration, stopped: &Receiver<()>) {
    let mut began: Option<(Instant, u64)> = None;
    let mut drawn = false;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
        let seen = Seen {
            n_layers: counts.n_layers.load(Relaxed),
            n_done: counts.n_done.load(Relaxed),
            bytes: counts.bytes.load(Relaxed),
            total: counts.total.load(Relaxed),
            read: counts.read.load(Relaxed),
            to_read: counts.to_read.load(Relaxed),
        };
        let (since, before) = *began.get_or_insert_with(|| (Instant::now(), seen.bytes));
        let elapsed = since.elapsed();
        let rate = rate(seen.bytes.saturating_sub(before), elapsed);
        let holder = counts.notes().holder.clone().filter(|_| seen.bytes == 0);
        let text = format!("{about}{}", line(seen, rate, holder.as_deref()));
        let mut out = std::io::stderr().lock();
        // Where standard error is closed there is nobody to tell.
        let _ = if terminal {
            let text: String = text.chars().take(width().saturating_sub(1)).collect();
            write!(out, "\r\x1b[K{text}")
        } else {
            writeln!(out, "{text}")
        };
        let _ = out.flush();
        drawn = true;
    }
    if terminal && drawn {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(DEFAULT_WIDTH)
}

/// Bytes in a second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    bytes.saturating_mul(1000).checked_div(millis).unwrap_or(0)
}

/// The line for some counts.
fn line(seen: Seen, rate: u64, holder: Option<&str>) -> String {
    let Seen { n_layers, n_done, bytes, total, read, to_read } = seen;
    if let Some(holder) = holder {
        return format!("waiting for {holder}, which is fetching the same image");
    }
    if n_layers == 0 {
        return match (read, to_read) {
            (0, _) => "reading".to_owned(),
            (read, 0) => format!("reading, {}", size(read)),
            // What grows meanwhile is read to its end.
            (read, to_read) => format!("reading, {} of {}", size(read), size(to_read.max(read))),
        };
    }
    if n_done >= n_layers {
        return format!("{}, {}; finishing the image", layers(n_layers), size(bytes));
    }
    let mut text =
        format!("layer {}/{n_layers}, {} of {}", n_done.saturating_add(1), size(bytes), size(total));
    if let Some(left) = total.saturating_sub(bytes).checked_div(rate) {
        text.push_str(&format!(", {}/s", size(rate)));
        if bytes < total {
            text.push_str(&format!(", {} left", duration(left)));
        }
    }
    text
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known() {
        const MIB: u64 = 1 << 20;
        let seen = Seen { n_layers: 5, n_done: 2, bytes: 40 * MIB, total: 100 * MIB, ..Seen::default() };
        let read = Seen { read: 40 * MIB, ..Seen::default() };
        for (seen, rate, holder, expected) in [
            (Seen::default(), 0, None, "reading"),
            (Seen { to_read: MIB, ..Seen::default() }, 0, None, "reading"),
            (read, 0, None, "reading, 40.0 MiB"),
            (Seen { to_read: 50 * MIB, ..read }, 0, None, "reading, 40.0 MiB of 50.0 MiB"),
            (Seen { to_read: 30 * MIB, ..read }, 0, None, "reading, 40.0 MiB of 40.0 MiB"),
            // Once there are layers they count.
            (Seen { read: MIB, ..seen }, 0, None, "layer 3/5, 40.0 MiB of 100.0 MiB"),
            (seen, 2 * MIB, None, "layer 3/5, 40.0 MiB of 100.0 MiB, 2.0 MiB/s, 30 s left"),
            (seen, 0, None, "layer 3/5, 40.0 MiB of 100.0 MiB"),
            (Seen { bytes: 100 * MIB, ..seen }, MIB, None, "layer 3/5, 100.0 MiB of 100.0 MiB, 1.0 MiB/s"),
            (Seen { n_done: 5, ..seen }, MIB, None, "5 layers, 40.0 MiB; finishing the image"),
            (Seen { n_layers: 1, ..seen }, MIB, None, "1 layer, 40.0 MiB; finishing the image"),
            (
                seen,
                0,
                Some("process 7 on n1"),
                "waiting for process 7 on n1, which is fetching the same image",
            ),
        ] {
            assert_eq!(line(seen, rate, holder), expected);
        }
        for (seconds, text) in [(59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!((rate(10, Duration::ZERO), rate(10, Duration::from_secs(2))), (0, 5));
    }

    #[test]
    fn what_was_left_out_is_remembered() {
        let meter = Meter::start(Show::Nothing, "");
        meter.event(Event::Skipped { path: "run/socket".to_owned(), why: "a socket" });
        assert_eq!(meter.finish(), ["run/socket: a socket"]);
    }
}
