//! Instances: containers that stay, and processes that enter them.
//!
//! The *holder* of an instance is a process of a session of its own ([`detach`]) that runs a Plan whose
//! share says `instance` by [`crate::run()`]: it forks the keeper and the init, waits, and ends with them. Whoever
//! enters ([`Instance::visit`], [`Instance::enter`]) asks the keeper for the namespaces:
//!
//! ```text
//! holder ─┬─ init ── payload, or nothing        visitor ──(fork)── enters the namespaces, forks ─┐
//!         └─ keeper  serves the image, hands         └── payload, a child of the visitor ────────┘
//!                    the namespaces to visitors
//! ```
//!
//! A visitor's payload dies with the visitor, and with the instance. Nothing here knows of names or files:
//! who an instance is, the engine decides.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use situla_plan::{Plan, ShareKey};
use situla_sys::{Forked, SignalMask, fork};

use crate::Observer;
use crate::failure::{Context, Failure, FailureClass};
use crate::meeting;
use crate::message;
use crate::payload::{Command, Surroundings, Waiter, become_payload};
use crate::run::{enter, watch_signals};
use crate::supervise::{Exit, INSTANCE_ENDED, Keeper, Supervised};

/// One end of a connection between a holder and the process that starts it.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The longest message in bytes.
    pub const MAX_MESSAGE: usize = message::MAX_MESSAGE;

    /// Sends one message; false where the other end has gone.
    pub fn send(&self, bytes: &[u8]) -> bool {
        message::send(self.0.as_fd(), bytes, &[]).is_ok()
    }

    /// Sends what decides: from then on this process is not interrupted any more, so that it sees what comes
    /// of it. False where the other end has gone.
    pub fn commit(&self, bytes: &[u8]) -> bool {
        // HUP INT QUIT TERM; where they cannot be blocked, an interruption shows a start as one that failed.
        let _ = situla_sys::block_signals(&SignalMask::of([1, 2, 3, 15]));
        self.send(bytes)
    }

    /// Waits for one message; `None` where the other end has gone.
    pub fn receive(&self) -> Option<Vec<u8>> {
        message::receive(self.0.as_fd()).ok().flatten().map(|message| message.bytes)
    }
}

/// No signal ends this process while this lives: HUP, INT, QUIT and TERM wait.
#[derive(Debug)]
pub struct Undisturbed(SignalMask);

impl Undisturbed {
    /// From now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin() -> Result<Self, Failure> {
        let held = situla_sys::block_signals(&SignalMask::of([1, 2, 3, 15]));
        held.map(Self).map_err(|errno| Failure::of_call(FailureClass::Setup, "cannot block signals", errno))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = situla_sys::set_signal_mask(&self.0);
    }
}

/// Forks a process that stays when this one ends, with `streams` as standard streams and nothing else open
/// but `keep` and the channel to this one. There it runs `main`, whose result is its exit status. What was
/// prepared undisturbed is in its hands then.
///
/// # Errors
/// It cannot be forked.
pub fn detach(
    streams: [BorrowedFd<'_>; 3],
    keep: &[RawFd],
    undisturbed: Undisturbed,
    main: impl FnOnce(&Channel) -> i32,
) -> Result<Channel, Failure> {
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
    let (ours, theirs) = message::pair().map_err(setup("cannot make a pair of sockets"))?;
    match fork().map_err(setup("cannot fork"))? {
        Forked::Parent(_) => Ok(Channel(ours)),
        Forked::Child => {
            let keep: Vec<RawFd> = keep.iter().copied().chain([theirs.as_raw_fd()]).collect();
            let channel = Channel(theirs);
            situla_sys::become_resident(c"situla-instance", streams, &keep, move || {
                // In a session of its own, where Ctrl-C does not reach it.
                drop(undisturbed);
                main(&channel)
            })
        }
    }
}

/// A visit to a running instance.
#[derive(Debug)]
pub struct Instance {
    connection: OwnedFd,
    namespaces: Vec<OwnedFd>,
    image: Option<OwnedFd>,
}

impl Instance {
    /// Finds the instance at `key`, whose holder is the process `holder`; `None` where it is not there or
    /// does not answer.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn visit(key: &ShareKey, holder: i32) -> Result<Option<Self>, Failure> {
        let Some(visit) = meeting::visit(key, holder)? else { return Ok(None) };
        let meeting::Visit { connection, descriptors: mut namespaces, has_image } = visit;
        let image = if has_image { namespaces.pop() } else { None };
        // It is ending, and has nothing to hand on any more.
        Ok((!namespaces.is_empty()).then_some(Instance { connection, namespaces, image }))
    }

    /// The image that the instance was started from, where it is a file: it may have another by its name now.
    pub fn image(&self) -> Option<BorrowedFd<'_>> {
        self.image.as_ref().map(AsFd::as_fd)
    }

    /// The inode numbers of its namespaces, as links in `/proc/PID/ns` show them.
    pub fn namespace_inodes(&self) -> Vec<u64> {
        self.namespaces.iter().filter_map(|fd| rustix::fs::fstat(fd).ok()).map(|stat| stat.st_ino).collect()
    }

    /// Runs the command of `plan` inside and waits for it. `name` is the name of the run.
    ///
    /// # Errors
    /// It could not be started, or the instance has ended.
    pub fn enter(self, plan: &Plan, name: &str, observer: &mut dyn Observer) -> Result<Exit, Failure> {
        let command = Command::prepare(plan)?;
        if command.is_empty() {
            return Err(Failure::new(FailureClass::Setup, "there is no command to run"));
        }
        let (signals, mask) = watch_signals()?;
        observer.phase("meet");
        let surroundings = Surroundings { mask, waiter: Waiter::Outside, hooks: None };
        let Entered { pid, report } =
            self.fork_inside(observer, name, || become_payload(plan, &command, &surroundings))?;
        let keeper = Some(Keeper::Instance(self.connection.as_fd()));
        let supervised =
            Supervised { pid, report, ended: None, signals: &signals, keeper, is_instance: false };
        match supervised.wait(observer) {
            // The kernel kills whoever is left when init has gone.
            Ok(Exit::Signal(9)) if self.has_ended() => {
                Err(Failure::new(FailureClass::ServerLost, INSTANCE_ENDED))
            }
            outcome => outcome,
        }
    }

    /// Whether the instance ends at this moment.
    fn has_ended(&self) -> bool {
        /// Between init's end, which kills, and the keeper's, which is seen here.
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let mut polled = [PollFd::from_borrowed_fd(self.connection.as_fd(), PollFlags::IN)];
        poll(&mut polled, Some(&MOMENT)).is_ok_and(|n_ready| n_ready > 0)
    }

    /// Forks a child of this process that is inside, and becomes `payload` there.
    ///
    /// A process does not move into a PID namespace: only its children are in it. So one goes in, forks, and
    /// ends; its child is made a child of this process.
    fn fork_inside(
        &self,
        observer: &mut dyn Observer,
        name: &str,
        payload: impl FnOnce() -> Failure,
    ) -> Result<Entered, Failure> {
        let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(setup("cannot make a pipe"));
        let ((report, failed), (may_go, go), (born, tell)) = (pipe()?, pipe()?, pipe()?);
        let between = match fork().map_err(setup("cannot fork"))? {
            Forked::Parent(pid) => pid,
            Forked::Child => {
                drop((report, go, born));
                let failure = match self.go_inside() {
                    Err(failure) => failure,
                    Ok(Forked::Parent(pid)) => {
                        let _ = rustix::io::write(&tell, &pid.as_raw_pid().to_ne_bytes());
                        situla_sys::exit_now(0)
                    }
                    Ok(Forked::Child) => {
                        drop(tell);
                        match rustix::io::read(&may_go, &mut [0; 1]) {
                            Ok(1) => payload(),
                            // The waiting process has been killed.
                            _ => situla_sys::exit_now(1),
                        }
                    }
                };
                let _ = rustix::io::write(&failed, &failure.encode());
                situla_sys::exit_now(1)
            }
        };
        drop((failed, may_go, tell));
        let mut number = [0; 4];
        let read = rustix::io::read(&born, &mut number);
        let _ = waitid(WaitId::Pid(between), WaitIdOptions::EXITED);
        let pid = match read {
            Ok(4) => Pid::from_raw(i32::from_ne_bytes(number)),
            _ => None,
        };
        let Some(pid) = pid else {
            // Killed between its fork and its word, it has left somebody inside who waits to go, and whose end is
            // waited for here.
            drop(go);
            let mut bytes = vec![0; message::MAX_MESSAGE];
            let n_read = rustix::io::read(&report, &mut bytes).unwrap_or(0);
            let failure = bytes.get(..n_read).and_then(Failure::decode);
            return Err(failure.unwrap_or_else(|| {
                Failure::new(FailureClass::ServerLost, "a process was killed before it became the program")
            }));
        };
        observer.met(name, true);
        // A child that has gone meanwhile does not listen any more.
        let _ = rustix::io::write(&go, &[1]);
        Ok(Entered { pid, report })
    }

    fn go_inside(&self) -> Result<Forked, Failure> {
        enter(&self.namespaces)?;
        match situla_sys::fork_sibling() {
            // zap_pid_ns_processes: no process is made in a PID namespace whose first one has gone.
            Err(Errno::NOMEM) => Err(Failure::new(FailureClass::ServerLost, INSTANCE_ENDED)),
            other => other.or_fail(FailureClass::Setup, || "cannot fork inside the instance".to_owned()),
        }
    }
}

/// A payload inside an instance.
struct Entered {
    pid: Pid,
    /// Carries a failure; ends with the exec.
    report: OwnedFd,
}
