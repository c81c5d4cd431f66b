//! Runs one command with a deadline and captures what it said.
//!
//! The command gets a process group of its own, so that on a missed deadline exactly the processes started
//! for it are killed. Output is read by threads: a command that fills a pipe cannot stall the wait.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How often a condition is looked at again; small against everything that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended; a missed deadline shows as SIGKILL with [`Output::timed_out`] set.
    pub status: ExitStatus,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// Whether the deadline passed and the process group was killed.
    pub timed_out: bool,
    /// Wall-clock time from start to end.
    pub took: Duration,
}

impl Output {
    /// The exit code, or 128 + signal number as a shell would say it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails unless the command ended by itself with status 0.
    ///
    /// # Errors
    /// The whole story of the command: line, status, both outputs.
    pub fn success(self) -> Result<Self, String> {
        if self.status.success() && !self.timed_out { Ok(self) } else { Err(self.to_string()) }
    }

    /// Fails unless the command ended by itself with this code.
    ///
    /// # Errors
    /// The whole story of the command.
    pub fn expect_code(self, code: i32) -> Result<Self, String> {
        if !self.timed_out && self.code() == code {
            Ok(self)
        } else {
            Err(format!("expected exit code {code}\n{self}"))
        }
    }

    /// Fails unless both outputs together hold `text`.
    ///
    /// # Errors
    /// The whole story of the command.
    pub fn expect_text(self, text: &str) -> Result<Self, String> {
        if self.stdout.contains(text) || self.stderr.contains(text) {
            Ok(self)
        } else {
            Err(format!("expected the text {text:?}\n{self}"))
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.line)?;
        if self.timed_out {
            writeln!(f, "-- killed: no end after {:?}", self.took)?;
        }
        writeln!(f, "-- {} after {:?}", self.status, self.took)?;
        writeln!(f, "-- stdout\n{}", self.stdout.trim_end())?;
        write!(f, "-- stderr\n{}", self.stderr.trim_end())
    }
}

/// A command that was started and not yet waited for.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    started: Instant,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// The process id of the command itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end, at most until `deadline` after the start; then kills the process group.
    ///
    /// # Errors
    /// Only if the kernel refuses to be asked about the child.
    pub fn finish(mut self, deadline: Duration) -> Result<Output, String> {
        let (status, timed_out) = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break (status, false),
                Ok(None) if self.started.elapsed() < deadline => thread::sleep(POLL),
                Ok(None) => {
                    self.kill_group();
                    break (self.child.wait().map_err(|e| format!("{}: {e}", self.line))?, true);
                }
                Err(error) => return Err(format!("{}: {error}", self.line)),
            }
        };
        let took = self.started.elapsed();
        // A background process that inherited the pipe would keep it open: give the readers what is left of
        // the deadline, then end the group. Something that left the group too is a leak and fails the case.
        let pipes_closed = wait_until(deadline.saturating_sub(took).max(Duration::from_secs(2)), || {
            self.stdout.is_finished() && self.stderr.is_finished()
        });
        if !pipes_closed {
            self.kill_group();
            if !wait_until(Duration::from_secs(2), || self.stdout.is_finished() && self.stderr.is_finished())
            {
                return Err(format!("{}: a process outside its group keeps its output open", self.line));
            }
        }
        let text = |handle: JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&handle.join().unwrap_or_default()).into_owned()
        };
        Ok(Output {
            line: self.line,
            status,
            stdout: text(self.stdout),
            stderr: text(self.stderr),
            timed_out,
            took,
        })
    }

    /// As [`Running::finish`], but `limit` counts from now: from a kill, say, however long it took to get there.
    ///
    /// # Errors
    /// As [`Running::finish`].
    pub fn finish_within(self, limit: Duration) -> Result<Output, String> {
        let so_far = self.started.elapsed();
        self.finish(so_far + limit)
    }

    fn kill_group(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already is as good as killed.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Starts a command in a process group of its own, without standard input.
///
/// # Errors
/// The program cannot be started.
pub fn start(mut command: Command) -> Result<Running, String> {
    let line = describe(&command);
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{line}: {e}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    Ok(Running { line, child, started: Instant::now(), stdout, stderr })
}

/// Runs a command to its end, at most `deadline` long.
///
/// # Errors
/// The program cannot be started or waited for; its own failure is in the [`Output`].
pub fn run(command: Command, deadline: Duration) -> Result<Output, String> {
    start(command)?.finish(deadline)
}

/// Builds a command from words.
pub fn words<I, S>(words: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut words = words.into_iter();
    let mut command = match words.next() {
        Some(program) => Command::new(program),
        None => Command::new("false"),
    };
    command.args(words);
    command
}

/// Looks at `condition` until it holds; says whether it did before `limit` was over.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(POLL);
    }
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the capture; the status still tells how the command fared.
            let _: io::Result<usize> = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        line.push(' ');
        line.push_str(&word.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_both_outputs_and_the_code() {
        let output =
            run(words(["sh", "-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(5)).unwrap();
        assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err\n"));
    }

    #[test]
    fn a_signal_counts_as_in_a_shell() {
        let output = run(words(["sh", "-c", "kill -TERM $$"]), Duration::from_secs(5)).unwrap();
        assert_eq!(output.code(), 143);
    }

    #[test]
    fn a_missed_deadline_kills_the_whole_group() {
        let output = run(words(["sh", "-c", "sleep 100 & sleep 100"]), Duration::from_millis(200)).unwrap();
        assert!(output.timed_out);
        assert!(output.took < Duration::from_secs(5), "{output}");
        assert!(output.success().is_err());
    }

    #[test]
    fn a_limit_from_now_does_not_count_what_has_passed() {
        let running = start(words(["sh", "-c", "sleep 0.6"])).unwrap();
        thread::sleep(Duration::from_millis(400));
        assert!(!running.finish_within(Duration::from_millis(500)).unwrap().timed_out);
        let running = start(words(["sleep", "100"])).unwrap();
        assert!(running.finish_within(Duration::from_millis(100)).unwrap().timed_out);
    }

    #[test]
    fn much_output_does_not_stall() {
        let output = run(words(["head", "-c", "1000000", "/dev/zero"]), Duration::from_secs(5)).unwrap();
        assert_eq!(output.stdout.len(), 1_000_000);
    }
}
