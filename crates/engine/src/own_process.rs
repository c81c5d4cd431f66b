//! Work in a process of its own: what takes threads, since a process with threads can make no user namespace.
//!
//! That process is this program, with a command that answers by one JSON object on its standard output. Where it
//! is killed it says nothing, and that is a loss like that of any process of ours: no other task of the step
//! waits for what does not come. Where this process is asked to end meanwhile, the other one is asked to as well, and has
//! a moment to take away what it has begun, unless this one is asked again.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use situla_records::EngineClass;
use situla_runtime::{Interruption, SignalInfo};

use crate::request::TASK_VARIABLES;

/// Nobody but the kernel and who wants to end a process at any price sends this.
const SIGKILL: i32 = 9;

/// More than an answer needs.
const MAX_ANSWER: usize = 1 << 20;

/// How long a process that was asked to end may take: it may have to remove thousands of files, and Slurm kills both
/// after KillWait.
const FAREWELL: Duration = Duration::from_secs(3);

/// Who is asked to end twice within this may have been told of one wish by two ways: Slurm's daemons, and srun.
const ECHO: Duration = Duration::from_millis(250);

/// How long a process may take from the end of its output to its own.
const MOMENT: Duration = Duration::from_millis(100);

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
    /// What this process was asked to end by, meanwhile.
    pub(crate) interrupted: Option<SignalInfo>,
}

/// Who is told of signals.
pub(crate) type Heard<'a> = &'a mut dyn FnMut(&SignalInfo);

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

/// Has something done, and reads the result out of the answer. `heard` is told of each signal by which this process is asked
/// to end, when it comes.
pub(crate) fn ask<T>(
    command: &mut Command,
    work: Work,
    heard: Heard<'_>,
    read: impl FnOnce(&Answer) -> Option<T>,
) -> Result<T, WorkFailure> {
    // Before there is anything to clean up. Where signals cannot be watched they end this process, and that one with it.
    let interruption = Interruption::watch().ok();
    interruption.iter().for_each(|signals| signals.spare(command));
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| WorkFailure {
        class: EngineClass::SetupFailed,
        message: format!("cannot start the {} process: {error}", work.name),
        remedy: None,
        interrupted: None,
    })?;
    let mut output = Vec::new();
    let stdout = child.stdout.take();
    let watched = interruption.as_ref().map(|signals| (signals, heard));
    let interrupted = stdout.and_then(|out| read_answer(out, &child, &mut output, watched));
    if interrupted.is_some() {
        // No other one is to end this process before it has said so.
        interruption.into_iter().for_each(Interruption::keep);
        // It has ended, or is not waited for any longer and takes away by itself what it can.
        return Err(WorkFailure {
            interrupted,
            ..failure(&Answer::default(), ended_within(&mut child, MOMENT), work)
        });
    }
    let status = child.wait();
    let answer = Answer(serde_json::from_slice(&output).unwrap_or_default());
    read(&answer).ok_or_else(|| failure(&answer, status.map(Some), work))
}

/// The end of a process that has closed its standard output, and with it all else: it is about to be there.
fn ended_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
}

/// Reads what the process says until it ends. Gives the signal by which this process is asked to end, if one came before.
fn read_answer(
    mut stdout: ChildStdout,
    child: &Child,
    output: &mut Vec<u8>,
    mut watched: Option<(&Interruption, Heard<'_>)>,
) -> Option<SignalInfo> {
    let mut asked: Option<(SignalInfo, Instant)> = None;
    let mut buffer = [0; 4096];
    loop {
        let limit = match asked {
            None => None,
            Some((signal, since)) => match FAREWELL.checked_sub(since.elapsed()) {
                Some(left) => Timespec::try_from(left).ok(),
                None => return Some(signal),
            },
        };
        let mut fds = vec![PollFd::new(&stdout, PollFlags::IN)];
        fds.extend(watched.as_ref().map(|(signals, _)| PollFd::new(*signals, PollFlags::IN)));
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // A missing answer is told as such.
            Err(_) => return asked.map(|(signal, _)| signal),
        }
        let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        let (has_output, has_signal) = (is_ready(fds.first()), is_ready(fds.get(1)));
        drop(fds);
        if has_signal
            && let Some((signals, heard)) = &mut watched
            && let Some(signal) = signals.heard()
        {
            // Before anything else: the next one may be KILL.
            heard(&signal);
            match asked {
                None => {
                    asked = Some((signal, Instant::now()));
                    if let Some(child) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        // One that has ended by itself needs no asking.
                        let _ = kill_process(child, Signal::TERM);
                    }
                }
                Some((first, since)) if since.elapsed() > ECHO => return Some(first),
                Some(_) => {}
            }
        }
        if has_output {
            match stdout.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A broken pipe shows as a missing answer.
                Ok(0) | Err(_) => return asked.map(|(signal, _)| signal),
                Ok(length) => output.extend(buffer.iter().take(length)),
            }
            if output.len() > MAX_ANSWER {
                return asked.map(|(signal, _)| signal);
            }
        }
    }
}

fn failure(answer: &Answer, status: io::Result<Option<ExitStatus>>, work: Work) -> WorkFailure {
    let ended = status.as_ref().ok().copied().flatten();
    let was_killed = ended.is_some_and(|status| status.signal() == Some(SIGKILL));
    let unsaid = if was_killed { EngineClass::ServerLost } else { work.unsaid };
    WorkFailure {
        class: answer.text("class").map_or(unsaid, EngineClass::from),
        message: answer.text("message").unwrap_or_else(|| match status {
            Ok(Some(status)) => format!("the {} process ended with {status}", work.name),
            Ok(None) => format!("the {} process has not ended", work.name),
            Err(error) => format!("the {} process cannot be waited for: {error}", work.name),
        }),
        remedy: answer.text("remedy"),
        interrupted: None,
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
            ask(Command::new("/bin/sh").args(["-c", script]), work.clone(), &mut |_| (), read)
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
        let failure = ask(&mut Command::new("/nonexistent"), work, &mut |_| (), |_| Some(())).unwrap_err();
        assert!(failure.message.starts_with("cannot start the digging process: "), "{}", failure.message);
    }
}
