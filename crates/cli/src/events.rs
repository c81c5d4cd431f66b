//! Events of a run as lines of JSON, for the program that has started it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use situla_engine::{EventLine, Listener};

use crate::command_error::CommandError;

/// Whether events are wanted, and where.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct EventOptions {
    /// Tell what happens as lines of JSON on standard error; errors as well
    #[arg(long)]
    json: bool,
    /// The same, on this open file descriptor
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(2..=65535))]
    json_fd: Option<i32>,
}

/// How long a reader that does not keep up may hold a run up, in all: then it gets no more.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that a pipe which is ready takes without waiting: `PIPE_BUF` of `linux/limits.h`, see pipe(7).
const PIECE: usize = 4096;

/// The option, as it stands in a command line that could not be understood.
const OPTION: &str = "--json";

impl EventOptions {
    /// The options of a command line that starts a container and that cannot be parsed: its error must
    /// reach the program that reads events, too.
    pub(crate) fn of_unparsed(words: &[OsString]) -> Self {
        let name = |index: usize| words.get(index).and_then(|word| word.to_str());
        let is_start = matches!(
            (name(0), name(1)),
            (Some("exec" | "run" | "shell"), _) | (Some("instance"), Some("exec"))
        );
        let options = words.iter().skip(1).map(|word| word.to_string_lossy());
        let options: Vec<_> = options.take_while(|word| word != "--").collect();
        let fd = |index: usize| options.get(index).and_then(|text| text.parse().ok());
        let json_fd =
            options.iter().enumerate().find_map(|(index, word)| match word.strip_prefix("--json-fd")? {
                "" => fd(index + 1),
                value => value.strip_prefix('=')?.parse().ok(),
            });
        let options = EventOptions {
            json: options.iter().any(|word| word == OPTION),
            json_fd: json_fd.filter(|fd| (2..=65535).contains(fd)),
        };
        if is_start { options } else { EventOptions::default() }
    }

    /// Opens what the events are written to; `None` where nobody wants them.
    pub(crate) fn open(self) -> Result<Option<EventWriter>, CommandError> {
        let number = match self.json_fd {
            Some(number) => number,
            None if self.json => 2,
            None => return Ok(None),
        };
        let opened = situla_sys::with_inherited(number, |fd| {
            let own = fcntl_dupfd_cloexec(fd, 3)?;
            if number > 2 {
                // It is for this process; the payload must not keep it open.
                fcntl_setfd(fd, FdFlags::CLOEXEC)?;
            }
            Ok(own)
        });
        let own = opened.map_err(|errno| {
            let message = format!("events cannot go to descriptor {number}: {errno}");
            CommandError::usage(message, "open it for writing, as in --json-fd 3 3>events.jsonl")
        })?;
        Ok(Some(EventWriter::to(own)))
    }
}

/// Writes events, as long as somebody reads them.
#[derive(Debug)]
pub(crate) struct EventWriter {
    out: Option<File>,
    /// How long it has waited for the reader.
    waited: Duration,
}

impl EventWriter {
    fn to(out: OwnedFd) -> Self {
        EventWriter { out: Some(out.into()), waited: Duration::ZERO }
    }

    /// Tells a failure.
    pub(crate) fn error(&mut self, error: &CommandError) {
        self.hear(&EventLine::early(error.event()));
    }
}

impl Listener for EventWriter {
    fn hear(&mut self, line: &EventLine) {
        let Some(out) = &mut self.out else { return };
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if write_in_time(out, &bytes, &mut self.waited).is_err() {
            self.out = None;
        }
    }
}

/// Writes all of it, unless that lets `waited` grow beyond [`PATIENCE`]. The descriptor stays as it is: a
/// change of its flags would be seen by all who share it.
fn write_in_time(mut out: &File, mut bytes: &[u8], waited: &mut Duration) -> io::Result<()> {
    // A file has room, and takes a line as a whole: other tasks may write to it as well.
    let piece = if out.metadata()?.is_file() { bytes.len() } else { PIECE };
    while !bytes.is_empty() {
        let left = Timespec::try_from(PATIENCE.saturating_sub(*waited)).unwrap_or_default();
        let begun = Instant::now();
        let ready = poll(&mut [PollFd::from_borrowed_fd(out.as_fd(), PollFlags::OUT)], Some(&left));
        *waited += begun.elapsed();
        match ready {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match out.write(&bytes[..bytes.len().min(piece)]) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else has made it so, and may have been faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use situla_engine::RunEvent;

    use super::*;

    #[test]
    fn options_are_found_in_what_cannot_be_parsed() {
        for (line, want) in [
            ("exec --json --bad i true", (true, None)),
            ("run --json-fd 5 --bad", (false, Some(5))),
            ("shell --json-fd=7", (false, Some(7))),
            ("instance exec --json --bad", (true, None)),
            ("instance start --json i n", (false, None)),
            ("exec --bad -- --json", (false, None)),
            ("exec --json-fd x", (false, None)),
            ("exec --json-fd 1", (false, None)),
            ("images --json --bad", (false, None)),
            ("", (false, None)),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let found = EventOptions::of_unparsed(&words);
            assert_eq!((found.json, found.json_fd), want, "{line}");
        }
    }

    /// A line with a long command, into a pipe with room for one page.
    #[test]
    fn a_long_line_waits_for_its_reader_and_not_for_ever() {
        let small = || {
            let (reader, writer) = std::io::pipe().unwrap();
            rustix::pipe::fcntl_setpipe_size(&writer, PIECE).unwrap();
            (reader, EventWriter::to(writer.into()))
        };
        let message = "x".repeat(100 * PIECE);
        let error = || RunEvent::Error {
            class: "bad-option".to_owned(),
            message: message.clone(),
            remedy: None,
            status: 2,
        };
        let (reader, mut events) = small();
        let begun = Instant::now();
        events.hear(&EventLine::early(error()));
        assert!(events.out.is_none(), "nobody has read it");
        assert!(begun.elapsed() < PATIENCE * 10);
        drop(reader);
        let (mut reader, mut events) = small();
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        events.hear(&EventLine::early(error()));
        drop(events);
        let value: serde_json::Value = serde_json::from_str(&read.join().unwrap().unwrap()).unwrap();
        assert_eq!(value["message"].as_str(), Some(message.as_str()));
    }

    #[test]
    fn a_reader_that_does_not_keep_up_or_goes_is_left() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut events = EventWriter::to(writer.into());
        events.hear(&EventLine::early(RunEvent::Started { pid: 1 }));
        let mut seen = vec![0; 4096];
        let n_read = reader.read(&mut seen).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&seen[..n_read]).unwrap();
        assert_eq!((&value["event"], &value["pid"]), (&"started".into(), &1.into()));
        // More than any pipe holds.
        for _ in 0..20_000 {
            events.hear(&EventLine::early(RunEvent::Started { pid: 1 }));
        }
        assert!(events.out.is_none());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut events = EventWriter::to(writer.into());
        events.hear(&EventLine::early(RunEvent::Started { pid: 1 }));
        assert!(events.out.is_none());
    }
}
