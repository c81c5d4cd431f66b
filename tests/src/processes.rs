//! Our processes while they run: which is which, seen from outside through `/proc`.
//!
//! A look costs a fraction of a millisecond, because processes that were there before are not looked at:
//! some of ours live no longer than a few milliseconds.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::command::wait_until;
use crate::leaks::process_ids;

/// As long as such a process may go on, at most.
const MOMENT: Duration = Duration::from_secs(13);

/// What a process of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It waits for a payload: what Slurm sees as the task.
    Task,
    /// It serves the image and hands the namespaces on.
    Keeper,
    /// It will become the payload, or the keeper: forked, and not yet told apart.
    Child,
    /// It fetches an image.
    Fetcher,
    /// It extracts an image.
    Extractor,
    /// The first process of a PID namespace, which waits for a payload in it.
    Init,
    /// It waits for an instance.
    Holder,
    /// It starts an instance.
    Starter,
    /// It runs a command in an instance, and waits for it.
    Visitor,
    /// It tells srun whether the options of a container make sense: there is no step yet, and without it the nodes tell.
    BeforeStep,
    /// It finds out, for the plugin, what the death of a task by KILL means.
    AfterKill,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// What it is for.
    pub kind: Kind,
}

/// Sees processes of one user that are younger than itself.
#[derive(Debug)]
pub struct Watch {
    uid: u32,
    older: HashSet<u32>,
}

impl Watch {
    /// Everything that runs now is not looked at, and nothing of other users: a machine may have more than
    /// one cluster of ours.
    #[must_use]
    pub fn begin(uid: u32) -> Self {
        Self { uid, older: process_ids().into_iter().collect() }
    }

    /// Whether none of our processes is left: what looks into the death of a task goes on for a moment beyond the step,
    /// where slurmstepd does not wait for it.
    #[must_use]
    pub fn sees_none(&self) -> bool {
        wait_until(MOMENT, || self.look().is_empty())
    }

    /// Our processes that have come since.
    #[must_use]
    pub fn look(&self) -> Vec<Process> {
        let younger = process_ids().into_iter().filter(|pid| !self.older.contains(pid));
        let raw: Vec<Raw> = younger.filter_map(|pid| Raw::read(pid, self.uid)).collect();
        raw.iter().map(|one| one.known_among(&raw)).collect()
    }
}

/// What `/proc` says about a process whose executable is ours.
struct Raw {
    pid: u32,
    parent: u32,
    name: String,
    /// What it was started for, by its command line.
    work: Option<Kind>,
}

impl Raw {
    fn read(pid: u32, uid: u32) -> Option<Self> {
        if !is_ours(pid) {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let owner = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
        if owner.parse() != Ok(uid) {
            return None;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        if matches!(fields.next(), Some("Z" | "X")) {
            return None;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let says = |first: &[u8], second: &[u8]| words.windows(2).any(|two| two == [first, second]);
        let work = match () {
            () if words.contains(&&b"pull"[..]) => Some(Kind::Fetcher),
            () if says(b"cache", b"fill") => Some(Kind::Extractor),
            () if says(b"instance", b"start") => Some(Kind::Starter),
            () if says(b"instance", b"exec") => Some(Kind::Visitor),
            () if words.get(1) == Some(&&b"task-check"[..]) => Some(Kind::BeforeStep),
            () if [&b"task-killed"[..], b"task-leavings"].iter().any(|name| words.get(1) == Some(name)) => {
                Some(Kind::AfterKill)
            }
            () => None,
        };
        Some(Self {
            pid,
            parent: fields.next()?.parse().ok()?,
            name: head.split_once('(')?.1.to_owned(),
            work,
        })
    }

    fn known_among(&self, all: &[Raw]) -> Process {
        let is_child = all.iter().any(|other| other.pid == self.parent);
        let kind = match (self.name.as_str(), self.work) {
            ("situla-keeper", _) => Kind::Keeper,
            ("situla-init", _) => Kind::Init,
            ("situla-instance", _) => Kind::Holder,
            // Their children have their words until they have a name.
            (_, Some(Kind::Starter | Kind::Visitor | Kind::AfterKill)) if is_child => Kind::Child,
            (_, Some(work)) => work,
            _ if is_child => Kind::Child,
            _ => Kind::Task,
        };
        Process { pid: self.pid, parent: self.parent, kind }
    }
}

/// A variable of the environment that a process was started with.
#[must_use]
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let of_name = |entry: &[u8]| {
        String::from_utf8_lossy(entry).strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
    };
    all.split(|byte| *byte == 0).find_map(of_name)
}

/// The PID namespace of a process, and its number there: isolated nodes have namespaces of their own.
#[must_use]
pub fn in_its_namespace(pid: u32) -> Option<(String, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    // The innermost one is the last.
    let number = numbers.split_whitespace().next_back()?.parse().ok()?;
    let space = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((space.to_string_lossy().into_owned(), number))
}

/// The process that has this number in the PID namespace of another one.
#[must_use]
pub fn beside(other: u32, number: u32) -> Option<u32> {
    let (space, _) = in_its_namespace(other)?;
    process_ids()
        .into_iter()
        .find(|pid| in_its_namespace(*pid).is_some_and(|one| one == (space.clone(), number)))
}

/// The children of a process, whatever they run.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    // One file for each thread; those that wait for payloads have one thread.
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Whether a process has ended, waited for or not.
#[must_use]
pub fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    matches!(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()), None | Some('Z' | 'X'))
}

/// Whether a process runs our program now. In a container the program may have no path, or one that is
/// deleted: its name is enough.
fn is_ours(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("situla")))
}

/// Kills a process, if it is still what it was when `still` looks at it stopped. Returns whether it was.
///
/// # Errors
/// The kernel refuses to signal it.
pub fn kill_if(process: Process, still: impl FnOnce() -> bool) -> Result<bool, String> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or("no process id")?;
    // A descriptor means this very process, whatever becomes of its number.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(false) };
    let send = |signal| match pidfd_send_signal(&handle, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(errno) => Err(format!("cannot signal process {}: {errno}", process.pid)),
    };
    // Stopped, it cannot become something else between the look and the kill.
    if !send(Signal::STOP)? || !stopped(process.pid) {
        return Ok(false);
    }
    if !is_ours(process.pid) || !still() {
        send(Signal::CONT)?;
        return Ok(false);
    }
    send(Signal::KILL)
}

/// Waits until a process that was sent SIGSTOP has stopped; false if it has gone.
fn stopped(pid: u32) -> bool {
    // Until it comes back from a system call: without a pause, because it is a matter of microseconds.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < deadline {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        match stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next()) {
            Some('T' | 't') => return true,
            Some('Z' | 'X') | None => return false,
            _ => {}
        }
    }
    // In an uninterruptible call: it will be stopped before it does anything else.
    true
}
