//! Waiting for a payload: forward signals, notice the keeper's death, take the exit status.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, pidfd_open,
    pidfd_send_signal, waitid,
};
use situla_sys::{SignalFd, SignalInfo, SignalMask};

use crate::Observer;
use crate::failure::{Failure, FailureClass};
use crate::keeper::FAREWELL;
use crate::message::receive;

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// It died by this signal.
    Signal(i32),
}

/// The signals that a waiting process passes on: all that end or inform a process, except those
/// that a terminal's driver sends to stop it, which must stop the waiting process too.
pub(crate) fn forwarded() -> SignalMask {
    // HUP INT QUIT USR1 USR2 ALRM TERM CONT XCPU VTALRM PROF WINCH IO PWR and the real-time
    // signals: signal(7), the numbers of x86 and Arm.
    SignalMask::of([1, 2, 3, 10, 12, 14, 15, 18, 24, 26, 27, 28, 29, 30].into_iter().chain(34..=64))
}

/// Death by KILL.
const KILLED: Exit = Exit::Signal(9);

/// Whether one of our own processes was killed. Such a task takes no leave of the others, so that
/// they end as well.
pub(crate) fn was_killed(outcome: &Result<Exit, Failure>) -> bool {
    outcome.as_ref().is_err_and(|failure| failure.class() == FailureClass::ServerLost)
}

/// A payload being waited for.
pub(crate) struct Supervised<'a> {
    pub(crate) pid: Pid,
    /// Reads a failure that happened before exec; ends with exec.
    pub(crate) report: OwnedFd,
    /// Reads what becomes of the payload, where an init of ours stands between.
    pub(crate) ended: Option<OwnedFd>,
    /// Blocked signals to pass on.
    pub(crate) signals: &'a SignalFd,
    /// How the keeper's end is noticed, where the payload cannot live without it.
    pub(crate) keeper: Option<Keeper<'a>>,
    /// Whether the child is the init of an instance: then it may be killed in order to end that.
    pub(crate) is_instance: bool,
}

/// A keeper to be watched. It ends by itself when its container has ended, which may be seen a
/// moment before the payload's end is.
#[derive(Clone, Copy)]
pub(crate) enum Keeper<'a> {
    /// Our child: its exit status tells whether it was killed.
    Child(BorrowedFd<'a>),
    /// Another task's child: it says farewell, or the connection just breaks.
    Connection(BorrowedFd<'a>),
    /// The keeper of an instance that was entered: the connection breaks when that ends.
    Instance(BorrowedFd<'a>),
}

/// What a payload in an instance that ends is killed for.
pub(crate) const INSTANCE_ENDED: &str = "the instance has ended";

impl<'a> Keeper<'a> {
    fn watched(self) -> BorrowedFd<'a> {
        match self {
            Keeper::Child(fd) | Keeper::Connection(fd) | Keeper::Instance(fd) => fd,
        }
    }

    /// What it means that the watched descriptor has something to say: `None` where the container
    /// has ended in order, else why the payload must end.
    fn verdict(self) -> Option<&'static str> {
        const LOST: &str = "the process that serves the image has ended";
        const ABORTED: &str = "a process that waited for another task of this step was killed";
        match self {
            Keeper::Child(pidfd) => {
                // It has ended, but the status of one that is traced goes to who traces it first (ptrace(2)).
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                let status = waitid(WaitId::PidFd(pidfd), options).ok().flatten();
                (status.and_then(|status| status.exit_status()) != Some(0)).then_some(LOST)
            }
            Keeper::Instance(_) => Some(INSTANCE_ENDED),
            Keeper::Connection(socket) => match receive(socket).ok().flatten() {
                Some(message) if message.bytes.first() == Some(&FAREWELL) => None,
                Some(_) => Some(ABORTED),
                None => Some(LOST),
            },
        }
    }

    /// Why a payload that has ended badly may have done so: the kernel takes the mount of a server that was killed
    /// before it shows that server as dead, and a program that finds its own code gone is faster.
    fn verdict_after_a_bad_end(self) -> Option<&'static str> {
        if matches!(self, Keeper::Instance(_)) {
            // All in it end with it, whatever they did.
            return None;
        }
        let watched = self.watched();
        let mut polled = [PollFd::from_borrowed_fd(watched, PollFlags::IN)];
        match poll(&mut polled, Some(&MOMENT)) {
            Ok(1..) => self.verdict(),
            _ => None,
        }
    }
}

impl Supervised<'_> {
    /// Waits until the payload has ended.
    pub(crate) fn wait(self, observer: &mut dyn Observer) -> Result<Exit, Failure> {
        let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
        let Supervised { pid, report, ended, signals, mut keeper, is_instance } = self;
        let mut report = Some(File::from(report));
        // The init of an instance says nothing that matters here, but lives only while somebody could hear it.
        let (mut init, _heard) = if is_instance { (None, ended) } else { (ended.map(Init::new), None) };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(setup("cannot watch the payload"))?;
        let mut failure = None;
        loop {
            let payload = pidfd.as_fd();
            let fixed = [
                Some(payload),
                Some(signals.as_fd()),
                report.as_ref().map(AsFd::as_fd),
                keeper.map(Keeper::watched),
                init.as_ref().filter(|init| !init.has_gone).map(|init| init.says.as_fd()),
            ];
            let mut polled: Vec<PollFd<'_>> =
                fixed.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            match poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(setup("cannot wait for the payload"))?,
            };
            let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
            let [has_ended, signalled, reported, lost, told] =
                fixed.map(|fd| fd.is_some() && ready.next().unwrap_or(false));
            drop(polled);
            if reported {
                failure = failure.or(report.take().and_then(read_report));
                // That nothing was said may also mean that nobody is left to say it.
                let runs = if is_instance { !has_ended } else { init.is_none() && has_executed(pid) };
                if failure.is_none() && runs {
                    observer.started(pid.as_raw_pid());
                } else if is_instance {
                    // Its init would stay.
                    let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
                }
            }
            if let Some(init) = init.as_mut().filter(|_| told)
                && init.hear()
            {
                observer.started(pid.as_raw_pid());
            }
            if signalled {
                while let Ok(Some(info)) = signals.next() {
                    pass_on(&info, pid, &pidfd, observer);
                }
            }
            if has_ended {
                break;
            }
            if let Some(why) = keeper.take_if(|_| lost).and_then(Keeper::verdict) {
                failure.get_or_insert_with(|| Failure::new(FailureClass::ServerLost, why));
                // A payload that has ended meanwhile needs no signal.
                let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
            }
        }
        // A payload that ended between its report and our poll.
        let failure = failure.or_else(|| report.take().and_then(read_report));
        let take = |options| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | options);
        let failed = setup("cannot take the payload's status");
        let own = exit(take(WaitIdOptions::NOWAIT).map_err(failed)?.as_ref());
        let (told, killed) = match &mut init {
            // Its init becomes no other program, and its death is the end of the instance.
            None if is_instance => (None, false),
            None => (None, own == KILLED && !has_executed(pid)),
            Some(init) => {
                if init.hear() {
                    observer.started(pid.as_raw_pid());
                }
                // Init tells the signal by which the payload has died; its own death by KILL is no payload's.
                (init.payload, init.killed_before_exec || (init.payload.is_none() && own == KILLED))
            }
        };
        take(WaitIdOptions::empty()).map_err(failed)?;
        let ended_well = own == Exit::Code(0) && told.is_none();
        let lost = || keeper.filter(|_| !ended_well && !killed).and_then(Keeper::verdict_after_a_bad_end);
        let failure = failure.or_else(|| lost().map(|why| Failure::new(FailureClass::ServerLost, why)));
        match failure {
            Some(failure) => Err(failure),
            None if killed => Err(Failure::new(
                FailureClass::ServerLost,
                "a process was killed before it became the program",
            )),
            None => Ok(told.unwrap_or(own)),
        }
    }
}

/// Signals that a terminal's driver sends to the whole foreground group: HUP, INT, QUIT, CONT, WINCH.
const OF_TERMINALS: [i32; 5] = [1, 2, 3, 18, 28];

/// Tells whether the terminal has sent a signal, to the payload as well.
pub(crate) fn is_of_terminal(info: &SignalInfo) -> bool {
    info.from_kernel && OF_TERMINALS.contains(&info.signal)
}

/// Passes a signal on, unless the terminal has sent it to the payload as well.
fn pass_on(info: &SignalInfo, pid: Pid, pidfd: &OwnedFd, observer: &mut dyn Observer) {
    observer.signal(info);
    if is_of_terminal(info) {
        return;
    }
    match Signal::from_named_raw(info.signal) {
        // A payload that has ended meanwhile needs no signal.
        Some(signal) => drop(pidfd_send_signal(pidfd.as_fd(), signal)),
        None => situla_sys::send_raw_signal(pid, info.signal),
    }
}

fn exit(status: Option<&WaitIdStatus>) -> Exit {
    let Some(status) = status else { return Exit::Code(0) };
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => Exit::Signal(signal),
        (code, None) => Exit::Code(code.unwrap_or(0)),
    }
}

/// From init: the payload runs. Any other byte is the signal by which it has died, or the next one.
pub(crate) const STARTED: u8 = 0;
/// From init: the payload was killed before it was the program.
pub(crate) const KILLED_BEFORE_EXEC: u8 = u8::MAX;

/// What an init says of the payload that is its child.
struct Init {
    says: File,
    has_gone: bool,
    payload: Option<Exit>,
    killed_before_exec: bool,
}

impl Init {
    fn new(says: OwnedFd) -> Self {
        Init { says: File::from(says), has_gone: false, payload: None, killed_before_exec: false }
    }

    /// Hears what it has said, waiting for it; whether the payload has started.
    fn hear(&mut self) -> bool {
        let mut said = [0; 8];
        let Ok(length @ 1..) = self.says.read(&mut said) else {
            self.has_gone = true;
            return false;
        };
        let mut started = false;
        for byte in said.iter().take(length) {
            match *byte {
                STARTED => started = true,
                KILLED_BEFORE_EXEC => self.killed_before_exec = true,
                signal => self.payload = Some(Exit::Signal(i32::from(signal))),
            }
        }
        started
    }
}

/// Reads a failure from the report pipe; `None` where exec has closed it.
fn read_report(mut report: File) -> Option<Failure> {
    let mut bytes = Vec::new();
    // A read error would mean a broken kernel; the exit status tells the rest.
    report.read_to_end(&mut bytes).ok()?;
    Failure::decode(&bytes)
}

/// Whether a child of this process, which is not waited for yet, has become another program. The kernel
/// refuses to move it to another process group then, also when it has died meanwhile (setpgid(2), `EACCES`).
/// For a child that has executed something or is dead: another one is moved.
pub(crate) fn has_executed(child: Pid) -> bool {
    rustix::process::setpgid(Some(child), Some(child)).is_err()
}

/// How long a task that ends waits for its keeper, which may serve other tasks still.
pub(crate) const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How long the holder of an instance waits for its keeper, which nobody else needs.
pub(crate) const END_OF_INSTANCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Waits a moment for a child that is about to end, so that it leaves no zombie behind.
pub(crate) fn reap_soon(child: Pid, pidfd: BorrowedFd<'_>, moment: &Timespec) {
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    if poll(&mut polled, Some(moment)).is_ok_and(|n_ready| n_ready > 0) {
        let _ = waitid(WaitId::Pid(child), WaitIdOptions::EXITED);
    }
}

/// Ends a child at once: one that was started for a payload that could not be.
pub(crate) fn end(child: Pid) {
    let _ = kill_process(child, Signal::KILL);
    let _ = waitid(WaitId::Pid(child), WaitIdOptions::EXITED);
}
