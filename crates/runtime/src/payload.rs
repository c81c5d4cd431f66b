//! The last steps before the payload runs: give up privileges, close, exec.

use std::ffi::{CStr, CString};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, OFlags, access};
use rustix::io::{Errno, FdFlags};
use rustix::process::{
    DumpableBehavior, Pid, Signal, fchdir, getppid, set_dumpable_behavior, set_parent_process_death_signal,
};
use situla_plan::{Plan, Share};
use situla_sys::{ExecStrings, SignalMask};

use crate::failure::{Context, Failure, FailureClass};
use crate::hooks::Staged;
use crate::inside::open_without_magic;
use crate::own_program::{self, Another};
use crate::privileges::Privileges;
use crate::seccomp::Filter;

/// Where the command is searched if the container's environment has no PATH (`execvp(3)`, and what
/// Apptainer uses).
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The strings of the payload, made before anything is locked or forked.
#[derive(Debug)]
pub(crate) struct Command {
    arguments: ExecStrings,
    environment: ExecStrings,
    /// The same command through a shell, for scripts without an interpreter line.
    shell_arguments: ExecStrings,
    candidates: Vec<CString>,
    name: String,
    /// Whether the user could change the file of this program, so that it must not be run inside.
    guards_own_program: bool,
    privileges: Privileges,
    /// The filter of system calls.
    filter: Option<Filter>,
}

impl Command {
    /// Prepares the command of `plan`.
    pub(crate) fn prepare(plan: &Plan) -> Result<Self, Failure> {
        let process = &plan.spec.process;
        let nul = |_| Failure::new(FailureClass::Setup, "an argument or variable holds a NUL byte");
        let bytes = |texts: &[situla_plan::Text]| -> Vec<Vec<u8>> {
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        };
        let words = bytes(&process.args);
        let program = match words.first() {
            Some(program) => program.clone(),
            None if matches!(plan.share, Share::Instance { .. }) => Vec::new(),
            None => return Err(Failure::new(FailureClass::Setup, "there is no command to run")),
        };
        let path = process.env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        let candidates = if words.is_empty() {
            Vec::new()
        } else if plan.command_paths.is_empty() {
            candidates(&program, path.unwrap_or(DEFAULT_PATH))
        } else {
            bytes(&plan.command_paths)
        };
        let shell = [b"/bin/sh".to_vec(), program.clone()].into_iter().chain(words.iter().skip(1).cloned());
        Ok(Command {
            name: String::from_utf8_lossy(&program).into_owned(),
            privileges: Privileges::prepare(process)?,
            filter: plan.spec.linux.seccomp.as_ref().map(Filter::compile).transpose()?,
            candidates: candidates.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(nul)?,
            shell_arguments: ExecStrings::new(shell).map_err(nul)?,
            arguments: ExecStrings::new(words).map_err(nul)?,
            environment: ExecStrings::new(bytes(&process.env)).map_err(nul)?,
            guards_own_program: own_program::is_changeable(),
        })
    }

    /// Whether there is nothing to execute: an instance can do without.
    pub(crate) fn is_empty(&self) -> bool {
        self.name.is_empty() && self.candidates.is_empty()
    }

    /// The absolute paths at which the program may be.
    pub(crate) fn programs(&self) -> Vec<Vec<u8>> {
        let paths = self.candidates.iter().map(|path| path.as_bytes().to_vec());
        paths.filter(|path| path.starts_with(b"/")).collect()
    }

    /// Executes the command; returns only with the reason why that failed.
    fn execute(&self) -> Failure {
        let looked_at = self.candidates.iter().map(|path| self.look_at(path));
        let Some(filter) = &self.filter else {
            return self.try_all(looked_at, || self.look_at(SHELL));
        };
        // A filter may forbid everything but the exec. So it is known before what is to be tried, and paths that
        // do not exist are left out: from the filter on nothing is done but that.
        let looked_at: Vec<Program<'_>> = looked_at.filter(Program::exists).collect();
        let shell = self.look_at(SHELL);
        match filter.install() {
            Ok(()) => self.try_all(looked_at.into_iter(), || shell),
            Err(failure) => failure,
        }
    }

    /// Looks at a program: where this one must not be executed, that it is another.
    fn look_at<'a>(&self, path: &'a CStr) -> Program<'a> {
        match self.guards_own_program.then(|| own_program::expect_another(path.to_bytes())) {
            Some(Err(errno)) => Program::Refused(errno),
            Some(Ok(Another::Unreadable(file))) => Program::Open(ManuallyDrop::new(file)),
            Some(Ok(Another::ByPath)) | None => Program::At(path),
        }
    }

    /// Tries one after the other, as execvp(3) does. A file that has no format which the kernel knows is a script
    /// for `shell`.
    fn try_all<'a>(
        &self,
        programs: impl Iterator<Item = Program<'a>>,
        shell: impl FnOnce() -> Program<'a>,
    ) -> Failure {
        let (mut denied, mut shell) = (None, Some(shell));
        for program in programs {
            match program.execute(&self.arguments, &self.environment) {
                Errno::NOENT | Errno::NOTDIR => {}
                // A shell that could not be executed once need not be tried again.
                Errno::NOEXEC => {
                    let shell = shell.take().map(|shell| shell());
                    denied = shell.map(|it| it.execute(&self.shell_arguments, &self.environment)).or(denied);
                }
                errno => denied = denied.or(Some(errno)),
            }
        }
        match denied {
            Some(errno) => Failure::of_call(
                FailureClass::CommandNotExecutable,
                format!("cannot execute {}", self.name),
                errno,
            ),
            None => Failure::of_call(
                FailureClass::CommandNotFound,
                format!("{} is not in the container", self.name),
                Errno::NOENT,
            ),
        }
    }
}

/// What runs scripts without an interpreter line.
const SHELL: &CStr = c"/bin/sh";

/// A program that may be executed.
#[derive(Debug)]
enum Program<'a> {
    /// What is at this path.
    At(&'a CStr),
    /// What is open here. A filter may forbid to close it: exec does that, or the end of this process.
    Open(ManuallyDrop<OwnedFd>),
    /// Nothing, because of this.
    Refused(Errno),
}

impl Program<'_> {
    /// Whether there is anything.
    fn exists(&self) -> bool {
        let result = match self {
            Program::At(path) => access(*path, Access::EXISTS),
            Program::Open(_) => Ok(()),
            Program::Refused(errno) => Err(*errno),
        };
        !matches!(result, Err(Errno::NOENT | Errno::NOTDIR))
    }

    /// Becomes it; returns with the reason why that failed.
    fn execute(&self, arguments: &ExecStrings, environment: &ExecStrings) -> Errno {
        match self {
            Program::At(path) => situla_sys::execute(path, arguments, environment),
            Program::Open(file) => match situla_sys::execute_open(file.as_fd(), arguments, environment) {
                // A script; it cannot be read.
                Errno::NOENT => Errno::ACCESS,
                errno => errno,
            },
            Program::Refused(errno) => *errno,
        }
    }
}

/// The paths to try for `program`.
fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            [directory, b"/", program].concat()
        })
        .collect()
}

/// What the payload inherits from its surroundings.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The signal mask of whoever started us.
    pub(crate) mask: SignalMask,
    /// The process that waits for the payload; without it the payload must not live.
    pub(crate) waiter: Waiter,
    /// Hooks to run inside, and what they are told to be the pid of this process.
    pub(crate) hooks: Option<(Staged<'a>, i32)>,
}

/// Who waits for a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// Nobody.
    Nobody,
    /// Its parent, which is this process.
    Parent(Pid),
    /// Its parent, which is outside its PID namespace and has no number there.
    Outside,
}

/// Turns this process, which is inside the container already, into the payload. Returns only with
/// the reason why that failed.
pub(crate) fn become_payload(plan: &Plan, command: &Command, surroundings: &Surroundings<'_>) -> Failure {
    match prepare(plan, &command.privileges, surroundings) {
        Ok(()) => command.execute(),
        Err(failure) => failure,
    }
}

fn prepare(plan: &Plan, privileges: &Privileges, surroundings: &Surroundings<'_>) -> Result<(), Failure> {
    enter_working_directory(plan)?;
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
    // A filter of system calls cannot be installed without it.
    if plan.spec.process.no_new_privileges || plan.spec.linux.seccomp.is_some() {
        rustix::thread::set_no_new_privs(true).map_err(setup("cannot set no_new_privs"))?;
    }
    // From here on processes that are inside already have no fewer capabilities than this one, which still
    // has things of the host open and runs a file of the host's: they must not trace it. Exec ends this.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(setup("cannot forbid to be traced"))?;
    privileges.apply()?;
    close_descriptors(plan)?;
    if let Some(hooks) = surroundings.hooks.filter(|hooks| hooks.0.has_start_container()) {
        hooks.0.start_container(hooks.1)?;
    }
    let parent = match surroundings.waiter {
        Waiter::Nobody => None,
        Waiter::Parent(pid) => Some(Some(pid)),
        // Once it has ended, the parent is the first process of the namespace.
        Waiter::Outside => Some(None),
    };
    if let Some(parent) = parent {
        // Set last: a change of credentials clears it (prctl(2)).
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(setup("cannot bind to the parent's life"))?;
        if getppid() != parent {
            return Err(Failure::new(FailureClass::Setup, "the waiting process has ended"));
        }
    }
    if !situla_sys::initial_sigpipe() {
        // Rust's runtime ignores SIGPIPE, and exec would pass that on. SIGPIPE is 13 everywhere.
        situla_sys::restore_default_action(13).map_err(setup("cannot restore SIGPIPE"))?;
    }
    situla_sys::restore_sigchld();
    situla_sys::set_signal_mask(&surroundings.mask).map_err(setup("cannot restore the signal mask"))
}

/// Enters the working directory, or the first fallback that exists where the user did not choose.
fn enter_working_directory(plan: &Plan) -> Result<(), Failure> {
    let wanted = &plan.spec.process.cwd;
    let errno = match enter_directory(wanted.as_bytes()) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    if plan.cwd_fallbacks.iter().any(|fallback| enter_directory(fallback.as_bytes()).is_ok()) {
        return Ok(());
    }
    let path = Path::new(wanted.as_os_str()).display();
    Err(Failure::of_call(
        FailureClass::WorkingDirectory,
        format!("cannot enter {path} inside the container"),
        errno,
    ))
}

/// Changes to a directory, but not through a link of `/proc` to one of our descriptors: that could be a
/// directory of the host's, and the image may have chosen the path.
fn enter_directory(path: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    fchdir(open_without_magic(path, flags)?)
}

/// Leaves standard input, output, error and what the plan names open over exec; nothing else, but
/// where the plan passes on all that was inherited.
fn close_descriptors(plan: &Plan) -> Result<(), Failure> {
    if plan.inherit_fds {
        // Everything of ours is marked already; what is not was there before us.
        return Ok(());
    }
    situla_sys::close_on_exec_from(3)
        .or_fail(FailureClass::Setup, || "cannot mark descriptors to be closed".to_owned())?;
    for fd in &plan.keep_fds {
        situla_sys::with_inherited(*fd, |fd: BorrowedFd<'_>| rustix::io::fcntl_setfd(fd, FdFlags::empty()))
            .or_fail(FailureClass::Setup, || format!("descriptor {fd} is to stay open, but is not open"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_searched_as_execvp_does() {
        let strings = |program: &str, path: &str| -> Vec<String> {
            let found = candidates(program.as_bytes(), path.as_bytes());
            found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
        };
        assert_eq!(strings("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(strings("ls", ":/b"), ["./ls", "/b/ls"]);
        assert_eq!(strings("./ls", "/a"), ["./ls"]);
        assert_eq!(strings("/bin/ls", "/a"), ["/bin/ls"]);
    }
}
