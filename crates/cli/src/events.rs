//! Events of a run as lines of JSON, for the program that has started it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
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
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

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
        Ok(Some(EventWriter { out: Some(own.into()) }))
    }
}

/// Writes events, as long as somebody reads them.
#[derive(Debug)]
pub(crate) struct EventWriter {
    out: Option<File>,
}

impl EventWriter {
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
        // A pipe that is ready takes a line of usual length at once; one that is not must not stop the run.
        let ready = poll(&mut [PollFd::from_borrowed_fd(out.as_fd(), PollFlags::OUT)], Some(&PATIENCE));
        if !matches!(ready, Ok(1)) || out.write_all(&bytes).is_err() {
            self.out = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

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

    #[test]
    fn a_reader_that_does_not_keep_up_or_goes_is_left() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut events = EventWriter { out: Some(OwnedFd::from(writer).into()) };
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
        let mut events = EventWriter { out: Some(OwnedFd::from(writer).into()) };
        events.hear(&EventLine::early(RunEvent::Started { pid: 1 }));
        assert!(events.out.is_none());
    }
}
