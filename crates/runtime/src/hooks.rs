//! Running the hooks of a document, each at its stage.
//!
//! | stage | who runs them | where | a failure |
//! |---|---|---|---|
//! | `prestart`, `createRuntime` | the waiting process | the host | ends the start |
//! | `createContainer` | the process that builds the container | its namespaces, the host's root | ends the start |
//! | `startContainer` | the process that becomes the payload | inside, with its rights | ends the start |
//! | `poststart` | the waiting process | the host | ends the payload |
//! | `poststop` | the waiting process | the host | is told, and no more |
//!
//! Nothing here has more rights than the user: on the host hooks run as he does, in the container's namespaces
//! with its capabilities. A hook gets the state of the container on standard input, its own environment and
//! nothing of ours; what it prints goes to standard error. Where `createContainer` runs, the container's root is
//! mounted at the host's `/tmp`. One that takes too long is killed with what it
//! has started.

use std::ffi::{CString, NulError};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
    set_parent_process_death_signal, setpgid, waitid,
};
use situla_plan::{Hook, Hooks, Plan, RootfsSource, Share, Text};
use situla_sys::{ExecStrings, Forked, SignalInfo, SignalMask};

use crate::Observer;
use crate::ending::ends_within;
use crate::failure::{Context, Failure, FailureClass};

/// How long a hook may take that names no limit: longer than any does, shorter than a node's time-outs.
const LONGEST: Duration = Duration::from_secs(600);

/// The most hooks of a stage.
const MAX_HOOKS: usize = 64;

/// The longest state: a pipe takes it at once, so that a hook that does not read it holds nobody up.
const MAX_STATE: usize = 32 << 10;

/// What the container is doing: `runtime.md`, "State".
#[derive(Clone, Copy, Debug)]
enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        }
    }
}

/// The hooks of a Plan, checked, and what they are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Staged<'a> {
    hooks: &'a Hooks,
    plan: &'a Plan,
    name: &'a str,
}

impl<'a> Staged<'a> {
    /// The hooks of `plan`, whose run is called `name`; `None` where it has none.
    pub(crate) fn of(plan: &'a Plan, name: &'a str) -> Option<Self> {
        plan.spec.hooks.as_ref().map(|hooks| Staged { hooks, plan, name })
    }

    /// Finds out what could never work, before anything is made.
    pub(crate) fn check(plan: &Plan) -> Result<(), Failure> {
        let Some(hooks) = &plan.spec.hooks else { return Ok(()) };
        let refused = |what: String| Err(Failure::new(FailureClass::Hook, what));
        let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } =
            hooks;
        let stages = [prestart, create_runtime, create_container, start_container, poststart, poststop];
        for hook in stages.into_iter().flatten() {
            let path = display(hook);
            if !hook.path.as_bytes().starts_with(b"/") {
                return refused(format!("the hook {path} is no absolute path"));
            }
            if hook.timeout == Some(0) {
                return refused(format!("the hook {path} is given no time"));
            }
            let texts = [&hook.path].into_iter().chain(&hook.args).chain(&hook.env);
            if texts.into_iter().any(|text| text.as_bytes().contains(&0)) {
                return refused(format!("the hook {path} has a NUL byte"));
            }
        }
        if stages.iter().any(|stage| stage.len() > MAX_HOOKS) {
            return refused(format!("a stage has more than {MAX_HOOKS} hooks"));
        }
        let at_ends = [start_container, poststart, poststop];
        if !matches!(plan.share, Share::Nobody { .. }) && at_ends.iter().any(|stage| !stage.is_empty()) {
            // There is no one payload whose beginning and end would be the container's.
            return refused("hooks of these stages cannot be in a container that tasks share".to_owned());
        }
        let staged = Staged { hooks, plan, name: "" };
        if staged.state(Status::Creating, None).len() > MAX_STATE {
            return refused("the annotations are too long for hooks".to_owned());
        }
        Ok(())
    }

    /// The stages on the host before the container is finished.
    pub(crate) fn create_runtime(self, pid: Pid) -> Result<(), Failure> {
        let state = self.state(Status::Creating, Some(pid.as_raw_pid()));
        run_all("prestart", &self.hooks.prestart, &state)?;
        run_all("createRuntime", &self.hooks.create_runtime, &state)
    }

    /// The stage in the container's namespaces, with the host's root; `pid` is this process on the host.
    pub(crate) fn create_container(self, pid: i32) -> Result<(), Failure> {
        run_all("createContainer", &self.hooks.create_container, &self.state(Status::Creating, Some(pid)))
    }

    /// The stage inside.
    pub(crate) fn start_container(self, pid: i32) -> Result<(), Failure> {
        run_all("startContainer", &self.hooks.start_container, &self.state(Status::Created, Some(pid)))
    }

    /// Whether there is something to do inside.
    pub(crate) fn has_start_container(self) -> bool {
        !self.hooks.start_container.is_empty()
    }

    fn poststart(self, pid: i32) -> Result<(), Failure> {
        run_all("poststart", &self.hooks.poststart, &self.state(Status::Running, Some(pid)))
    }

    /// The stage after the end: all are run, and failures are told.
    pub(crate) fn poststop(self, observer: &mut dyn Observer) {
        let state = self.state(Status::Stopped, None);
        for hook in &self.hooks.poststop {
            if let Err(failure) = run_one("poststop", hook, &state) {
                observer.warning(&failure);
            }
        }
    }

    /// The state as hooks read it.
    fn state(self, status: Status, pid: Option<i32>) -> String {
        let spec = &self.plan.spec;
        let bundle = match &self.plan.rootfs.source {
            RootfsSource::Squashfs { path, .. } | RootfsSource::Directory { path } => path,
        };
        let mut state = serde_json::json!({
            "ociVersion": spec.oci_version,
            "id": self.name,
            "status": status.name(),
            // There is no bundle; what is run is as near as can be.
            "bundle": bundle.as_os_str().to_string_lossy(),
            "annotations": spec.annotations,
        });
        if let (Some(pid), Some(object)) = (pid, state.as_object_mut()) {
            object.insert("pid".to_owned(), pid.into());
        }
        state.to_string()
    }
}

/// How the process that builds a container and the one that waits for it agree on when hooks run.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    built: (OwnedFd, OwnedFd),
    go: (OwnedFd, OwnedFd),
}

impl Rendezvous {
    pub(crate) fn new() -> Result<Self, Failure> {
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).or_fail(FailureClass::Setup, || "cannot make a pipe".to_owned());
        Ok(Rendezvous { built: pipe()?, go: pipe()? })
    }

    /// The builder's side: says that the container is built, and waits for the hooks on the host. Gives the
    /// pid of this process on the host.
    pub(crate) fn built(&self) -> Result<i32, Failure> {
        let mut answer = [0; 5];
        let failed = |errno| Failure::of_call(FailureClass::Setup, "cannot wait for the hooks", errno);
        rustix::io::write(&self.built.1, &[1]).map_err(failed)?;
        match rustix::io::read(&self.go.0, &mut answer) {
            Ok(5) if answer[0] == 1 => {
                let [_, pid @ ..] = answer;
                Ok(i32::from_ne_bytes(pid))
            }
            // The waiting process knows why.
            _ => situla_sys::exit_now(1),
        }
    }

    /// The waiting process's side: waits until the container is built, and runs the hooks on the host. A
    /// container that cannot be built is no failure here: its builder reports why.
    pub(crate) fn attend(self, hooks: Staged<'_>, builder: Pid) -> Result<(), Failure> {
        let Rendezvous { built: (reader, writer), go: (their_end, answer) } = self;
        drop((writer, their_end));
        if !matches!(rustix::io::read(&reader, &mut [0; 1]), Ok(1)) {
            return Ok(());
        }
        let outcome = hooks.create_runtime(builder);
        let pid = builder.as_raw_pid().to_ne_bytes();
        let bytes = [&[u8::from(outcome.is_ok())][..], &pid].concat();
        // A builder that has been killed meanwhile does not read it.
        let _ = rustix::io::write(&answer, &bytes);
        outcome
    }
}

/// Runs the hooks of the stage that begins with the payload, whoever else listens.
pub(crate) struct Poststart<'a> {
    hooks: Option<Staged<'a>>,
    observer: &'a mut dyn Observer,
    failure: Option<Failure>,
}

impl<'a> Poststart<'a> {
    pub(crate) fn new(hooks: Option<Staged<'a>>, observer: &'a mut dyn Observer) -> Self {
        Poststart { hooks, observer, failure: None }
    }

    /// Why the payload was ended, where a hook has failed.
    pub(crate) fn failure(self) -> Option<Failure> {
        self.failure
    }
}

impl Observer for Poststart<'_> {
    fn phase(&mut self, name: &'static str) {
        self.observer.phase(name);
    }

    fn met(&mut self, run: &str, leads: bool) {
        self.observer.met(run, leads);
    }

    fn started(&mut self, pid: i32) {
        self.observer.started(pid);
        if let Some(Err(failure)) = self.hooks.map(|hooks| hooks.poststart(pid)) {
            self.failure = Some(failure);
            if let Some(pid) = Pid::from_raw(pid) {
                // It is not waited for yet, so the pid is still its own.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    fn signal(&mut self, info: &SignalInfo) {
        self.observer.signal(info);
    }

    fn warning(&mut self, failure: &Failure) {
        self.observer.warning(failure);
    }
}

fn display(hook: &Hook) -> String {
    String::from_utf8_lossy(hook.path.as_bytes()).into_owned()
}

fn run_all(stage: &str, hooks: &[Hook], state: &str) -> Result<(), Failure> {
    hooks.iter().try_for_each(|hook| run_one(stage, hook, state))
}

fn run_one(stage: &str, hook: &Hook, state: &str) -> Result<(), Failure> {
    let path = display(hook);
    let failed = |what: String| Failure::new(FailureClass::Hook, format!("the {stage} hook {path} {what}"));
    let cannot = |errno| {
        Failure::of_call(FailureClass::Hook, format!("the {stage} hook {path} cannot be started"), errno)
    };
    let program = Program::of(hook).map_err(|_| failed("has a NUL byte".to_owned()))?;
    let pid = program.start(state).map_err(cannot)?;
    let limit = hook.timeout.map_or(LONGEST, |seconds| Duration::from_secs(seconds.into()));
    let pidfd = pidfd_open(pid, PidfdFlags::empty());
    let ended = pidfd.and_then(|pidfd| ends_within(pidfd.as_fd(), limit));
    if !matches!(ended, Ok(true)) {
        // It leads a process group, in which nobody is but what it has started.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)
        .or_fail(FailureClass::Hook, || format!("the {stage} hook {path} was lost"))?;
    match ended {
        Err(errno) => Err(Failure::of_call(FailureClass::Hook, "cannot wait for a hook", errno)),
        Ok(false) => Err(failed(format!("took longer than {} s", limit.as_secs()))),
        Ok(true) => match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(0), _)) => Ok(()),
            Some((Some(code), _)) => Err(failed(format!("ended with status {code}"))),
            Some((None, signal)) => Err(failed(format!("died by signal {}", signal.unwrap_or(0)))),
            None => Err(failed("was lost".to_owned())),
        },
    }
}

/// A hook, its strings made before the fork.
struct Program {
    path: CString,
    arguments: ExecStrings,
    environment: ExecStrings,
}

impl Program {
    fn of(hook: &Hook) -> Result<Self, NulError> {
        let bytes =
            |texts: &[Text]| -> Vec<Vec<u8>> { texts.iter().map(|text| text.as_bytes().to_vec()).collect() };
        let arguments =
            if hook.args.is_empty() { vec![hook.path.as_bytes().to_vec()] } else { bytes(&hook.args) };
        Ok(Program {
            path: CString::new(hook.path.as_bytes())?,
            arguments: ExecStrings::new(arguments)?,
            environment: ExecStrings::new(bytes(&hook.env))?,
        })
    }

    /// Starts it in a process group of its own, with `state` on its standard input.
    fn start(&self, state: &str) -> Result<Pid, Errno> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((input, state_writer), (report, report_writer)) = (pipe()?, pipe()?);
        // The pipe takes all of it at once: see `MAX_STATE`.
        rustix::io::write(&state_writer, state.as_bytes())?;
        drop(state_writer);
        match situla_sys::fork()? {
            Forked::Child => {
                let errno = self.become_hook(&input);
                let _ = rustix::io::write(&report_writer, &errno.raw_os_error().to_ne_bytes());
                situla_sys::exit_now(127)
            }
            Forked::Parent(pid) => {
                drop(report_writer);
                let mut errno = [0; 4];
                match rustix::io::read(&report, &mut errno) {
                    Ok(4) => {
                        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                        Err(Errno::from_raw_os_error(i32::from_ne_bytes(errno)))
                    }
                    _ => Ok(pid),
                }
            }
        }
    }

    /// Executes it; returns only with the reason why that failed.
    fn become_hook(&self, input: &OwnedFd) -> Errno {
        let prepared = setpgid(None, None)
            // Nothing of a hook is left where the one that waits for it is killed.
            .and_then(|()| set_parent_process_death_signal(Some(Signal::KILL)))
            .and_then(|()| rustix::stdio::dup2_stdin(input))
            // What is printed is no data of the payload's.
            .and_then(|()| rustix::stdio::dup2_stdout(std::io::stderr()))
            .and_then(|()| situla_sys::set_signal_mask(&SignalMask::of([])))
            // Rust's runtime ignores SIGPIPE, which is 13 everywhere.
            .and_then(|()| situla_sys::restore_default_action(13));
        match prepared {
            Ok(()) => situla_sys::execute(&self.path, &self.arguments, &self.environment),
            Err(errno) => errno,
        }
    }
}
