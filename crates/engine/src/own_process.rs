//! Work in a process of its own: what takes threads, since a process with threads can make no user namespace.
//!
//! That process is this program, with a command that answers by one JSON object on its standard output. Where it
//! is killed it says nothing, and that is a loss like that of any process of ours: no other task of the step
//! waits for what does not come.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;
use situla_records::EngineClass;

use crate::request::TASK_VARIABLES;

/// Nobody but the kernel and who wants to end a process at any price sends this.
const SIGKILL: i32 = 9;

/// More than an answer needs.
const MAX_ANSWER: u64 = 1 << 20;

/// A kind of work.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// How the process is called in messages: the `fetching` process.
    pub(crate) name: &'static str,
    /// The class of a failure that it does not explain.
    pub(crate) unsaid: EngineClass,
}

/// Why there is no result.
#[derive(Debug)]
pub(crate) struct WorkFailure {
    pub(crate) class: EngineClass,
    pub(crate) message: String,
    pub(crate) remedy: Option<String>,
}

/// The answer of the process.
#[derive(Debug, Default)]
pub(crate) struct Answer(Value);

impl Answer {
    /// A property that is text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).and_then(Value::as_str).map(str::to_owned)
    }
}

/// This program, as a process that ends with the one that starts it, by `--for-process` in its command line.
pub(crate) fn own_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    // Apptainer's names have other commands.
    command.arg0("situla").stdin(Stdio::null());
    // With these it would take itself for the task, resolve the image, and start such a process of its own.
    for name in TASK_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Has something done, and reads the result out of the answer.
pub(crate) fn ask<T>(
    command: &mut Command,
    work: Work,
    read: impl FnOnce(&Answer) -> Option<T>,
) -> Result<T, WorkFailure> {
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| WorkFailure {
        class: EngineClass::SetupFailed,
        message: format!("cannot start the {} process: {error}", work.name),
        remedy: None,
    })?;
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // A broken pipe shows as a missing answer below.
        let _ = stdout.take(MAX_ANSWER).read_to_end(&mut output);
    }
    let status = child.wait();
    let answer = Answer(serde_json::from_slice(&output).unwrap_or_default());
    read(&answer).ok_or_else(|| failure(&answer, status, work))
}

fn failure(answer: &Answer, status: io::Result<ExitStatus>, work: Work) -> WorkFailure {
    let was_killed = status.as_ref().is_ok_and(|status| status.signal() == Some(SIGKILL));
    let unsaid = if was_killed { EngineClass::ServerLost } else { work.unsaid };
    WorkFailure {
        class: answer.text("class").map_or(unsaid, EngineClass::from),
        message: answer.text("message").unwrap_or_else(|| match status {
            Ok(status) => format!("the {} process ended with {status}", work.name),
            Err(error) => format!("the {} process cannot be waited for: {error}", work.name),
        }),
        remedy: answer.text("remedy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_result_or_says_why_there_is_none() {
        let work = Work { name: "digging", unsaid: EngineClass::FetchFailed };
        let shell = |script: &str| {
            let read = |answer: &Answer| answer.text("digest");
            ask(Command::new("/bin/sh").args(["-c", script]), work.clone(), read)
        };
        assert_eq!(shell("echo '{\"digest\": \"x\"}'; exit 3").unwrap(), "x");
        for (script, class, message) in [
            // Whatever it works at: nobody goes on without it.
            ("kill -KILL $$", EngineClass::ServerLost, "the digging process ended with signal: 9 (SIGKILL)"),
            (
                "kill -TERM $$",
                EngineClass::FetchFailed,
                "the digging process ended with signal: 15 (SIGTERM)",
            ),
            ("echo no", EngineClass::FetchFailed, "the digging process ended with exit status: 0"),
            ("echo '{\"class\": \"no-fuse\", \"message\": \"m\"}'", EngineClass::NoFuse, "m"),
        ] {
            let failure = shell(script).unwrap_err();
            assert_eq!((failure.class, failure.message.as_str()), (class, message), "{script}");
            assert_eq!(failure.remedy, None);
        }
        let failure = ask(&mut Command::new("/nonexistent"), work, |_| Some(())).unwrap_err();
        assert!(failure.message.starts_with("cannot start the digging process: "), "{}", failure.message);
    }
}
