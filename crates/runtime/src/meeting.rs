//! How the tasks of a step find each other on a node.
//!
//! The meeting point is a Unix socket in the abstract namespace, named after the share key. Binding
//! it is atomic, so the first task leads and the others connect; when the leader dies the kernel
//! takes the name away, and the next task to come leads. There is no file to leave behind and no
//! lock to break. Names in the abstract namespace are visible to all users of a machine, so both
//! sides check the other's user id, and a task that finds a stranger shares with nobody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use situla_plan::ShareKey;
use situla_sys::{SignalFd, SignalMask, is_ignored};

use crate::failure::{Failure, FailureClass};
use crate::keeper::{self, ABORT};
use crate::message::{receive, send};

/// How the tasks of a step speak to each other. Whoever compares what tasks ask for counts it in, so that those of another
/// release, which the program on the node may be replaced by under a running step, meet only where they understand each
/// other. To be raised whenever what a message means changes.
pub const MEETING_PROTOCOL: u32 = 1;

/// First byte of the keeper's answer: the name of the run follows, and the namespaces as descriptors.
pub(crate) const ANSWER_READY: u8 = b'R';

/// The same of an instance that has an image: its descriptor comes last.
pub(crate) const ANSWER_WITH_IMAGE: u8 = b'I';

/// The keeper's answer to a task that it does not wait for.
pub(crate) const ANSWER_REFUSED: u8 = b'X';

/// How long a task waits for the leader's container. Set-up takes milliseconds; a node that needs
/// longer than this is sick, and Slurm would give up in the end as well.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the name may be taken without anybody who answers.
const SILENCE: Duration = Duration::from_secs(1);

/// How long to wait before trying again while another task is between bind and listen, or dying.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };

/// What a task turned out to be.
#[derive(Debug)]
pub(crate) enum Role {
    /// It sets the container up; others will connect here.
    Leader(OwnedFd),
    /// It has a container of its own: a stranger is at the meeting point. Names there are anybody's
    /// to take, and a neighbour on the node must not be able to fail a step by taking one.
    Alone,
    /// It enters a container that another task has set up.
    Member {
        /// Stays open as long as this task runs; it breaks when the keeper ends.
        connection: OwnedFd,
        /// The namespaces to enter, in order.
        namespaces: Vec<OwnedFd>,
        /// The name of the run that this task has joined.
        run: String,
    },
    /// It was asked to end, by this signal, before it was inside.
    Asked(i32),
}

/// Finds out whether this task leads or follows. `rank` tells the keeper who has come.
pub(crate) fn meet(key: &ShareKey, rank: u32) -> Result<Role, Failure> {
    let fail =
        |errno| Failure::of_call(FailureClass::Setup, "cannot meet the other tasks of the step", errno);
    let address = address(key).map_err(fail)?;
    let deadline = Instant::now() + PATIENCE;
    let mut silent_since = Instant::now();
    loop {
        let socket = new_socket(SocketFlags::NONBLOCK).map_err(fail)?;
        match connect(socket.as_fd(), &address) {
            Ok(()) => {
                if !is_own(socket.as_fd()) {
                    return Ok(Role::Alone);
                }
                match ask(socket.as_fd(), rank, deadline).map_err(fail)? {
                    Answer::Joined(namespaces, run) => {
                        return Ok(Role::Member { connection: socket, namespaces, run });
                    }
                    Answer::Refused => return Ok(Role::Alone),
                    Answer::Asked(signal) => return Ok(Role::Asked(signal)),
                    Answer::Killed => {
                        let why = "another task of this step was killed before its container stood";
                        return Err(Failure::new(FailureClass::ServerLost, why));
                    }
                    // The leader failed or died: try to lead. It was there until now, however long it took.
                    Answer::Gone => silent_since = Instant::now(),
                }
            }
            // Nobody listens, or so many wait there that it makes no difference.
            Err(Errno::CONNREFUSED | Errno::AGAIN) => {}
            Err(errno) => return Err(fail(errno)),
        }
        match lead(&address) {
            Ok(listener) => return Ok(Role::Leader(listener)),
            Err(Errno::ADDRINUSE) => {}
            Err(errno) => return Err(fail(errno)),
        }
        // Somebody has the name and does not answer: no task of ours is between bind and listen for
        // that long, and a neighbour on the node must not be able to hold a step up.
        if silent_since.elapsed() > SILENCE {
            return Ok(Role::Alone);
        }
        let _ = poll(&mut [], Some(&RETRY));
    }
}

/// Takes a meeting point that nobody else can have a reason to take.
pub(crate) fn open(key: &ShareKey) -> Result<OwnedFd, Failure> {
    let fail = |errno| Failure::of_call(FailureClass::Setup, "cannot be found by others", errno);
    let address = address(key).map_err(fail)?;
    lead(&address).map_err(fail)
}

/// What a visitor of an instance gets.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Stays open while the visitor is inside; it breaks when the instance ends.
    pub(crate) connection: OwnedFd,
    /// The namespaces to enter, in order, and behind them the image, where there is one.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether the last descriptor is the image.
    pub(crate) has_image: bool,
}

/// Visits the instance at `key`, whose meeting point the process `holder` has made. `None` where it is not
/// there, is another's, or does not answer.
pub(crate) fn visit(key: &ShareKey, holder: i32) -> Result<Option<Visit>, Failure> {
    /// Answering takes no time; a holder that is stopped must not stop its visitors.
    const PATIENCE: Duration = Duration::from_secs(5);
    let fail = |errno| Failure::of_call(FailureClass::Setup, "cannot reach the instance", errno);
    let address = address(key).map_err(fail)?;
    let connection = new_socket(SocketFlags::empty()).map_err(fail)?;
    match connect(connection.as_fd(), &address) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    }
    // The credentials are those of the process that called listen(2): unix(7).
    let peer = socket_peercred(connection.as_fd()).map_err(fail)?;
    if !is_own(connection.as_fd()) || peer.pid.as_raw_pid() != holder {
        return Ok(None);
    }
    match send(connection.as_fd(), &0u32.to_ne_bytes(), &[]) {
        Ok(()) => {}
        Err(Errno::PIPE | Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    }
    let timeout = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(0), tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)], Some(&timeout)) {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(errno) => return Err(fail(errno)),
    }
    let Some(answer) = receive(connection.as_fd()).map_err(fail)? else { return Ok(None) };
    let has_image = match answer.bytes.first() {
        Some(&ANSWER_READY) => false,
        Some(&ANSWER_WITH_IMAGE) => true,
        _ => return Ok(None),
    };
    Ok(Some(Visit { connection, descriptors: answer.descriptors, has_image }))
}

fn address(key: &ShareKey) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new_abstract_name(format!("situla/{}", key.0).as_bytes())
}

fn new_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None)
}

fn lead(address: &SocketAddrUnix) -> Result<OwnedFd, Errno> {
    /// All tasks of a node may arrive at once.
    const BACKLOG: i32 = 1024;
    let socket = new_socket(SocketFlags::empty())?;
    bind(socket.as_fd(), address)?;
    listen(socket.as_fd(), BACKLOG)?;
    Ok(socket)
}

/// What the keeper says.
enum Answer {
    /// Namespaces to enter, and the name of the run.
    Joined(Vec<OwnedFd>, String),
    /// This task is not one that it waits for.
    Refused,
    /// The leader was killed.
    Killed,
    /// Nothing yet, and this task has been asked to end.
    Asked(i32),
    /// Nothing: it has gone.
    Gone,
}

/// Asks the keeper for the namespaces.
fn ask(socket: BorrowedFd<'_>, rank: u32, deadline: Instant) -> Result<Answer, Errno> {
    // HUP, INT, QUIT and TERM are held back by then, to be passed on to a payload; one that is ignored (nohup) asks nobody.
    let ending = [1, 2, 3, 15].into_iter().filter(|signal| !is_ignored(*signal));
    let asking = SignalFd::new(&SignalMask::of(ending))?;
    match send(socket, &rank.to_ne_bytes(), &[]) {
        Ok(()) => {}
        Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Answer::Gone),
        Err(errno) => return Err(errno),
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: 0 };
        let mut polled = [socket, asking.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        if matches!(poll(&mut polled, Some(&timeout)), Ok(0)) {
            return Ok(Answer::Refused);
        }
        // With an answer there will be a payload, which is told.
        if !polled[0].revents().is_empty() || polled[1].revents().is_empty() {
            break;
        }
        if let Some(signal) = asking.next()? {
            // Not killed: the others may go on.
            keeper::say_done(socket);
            return Ok(Answer::Asked(signal.signal));
        }
    }
    let Some(answer) = receive(socket)? else { return Ok(Answer::Gone) };
    if answer.bytes.first() == Some(&ABORT) {
        return Ok(Answer::Killed);
    }
    let Some(run) = answer.bytes.strip_prefix(&[ANSWER_READY]) else { return Ok(Answer::Refused) };
    Ok(Answer::Joined(answer.descriptors, String::from_utf8_lossy(run).into_owned()))
}

/// Tells whether the peer is a process of the same user.
pub(crate) fn is_own(socket: BorrowedFd<'_>) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said here is said to other releases as well.
    #[test]
    fn a_change_of_the_messages_raises_the_protocol() {
        let first_bytes = [ANSWER_READY, ANSWER_WITH_IMAGE, ANSWER_REFUSED, ABORT];
        assert_eq!((MEETING_PROTOCOL, &first_bytes), (1, b"RIXA"), "raise MEETING_PROTOCOL with them");
    }

    #[test]
    fn the_first_leads_and_the_next_takes_over() {
        let key = ShareKey(format!("test/{}", std::process::id()));
        let Role::Leader(first) = meet(&key, 0).unwrap() else { panic!("the first task must lead") };
        let follower = std::thread::spawn({
            let key = key.clone();
            move || meet(&key, 1).unwrap()
        });
        // A leader that goes without an answer is succeeded by whoever waits for it.
        let visitor = rustix::net::accept(first.as_fd()).unwrap();
        assert_eq!(receive(visitor.as_fd()).unwrap().unwrap().bytes, 1u32.to_ne_bytes());
        drop(first);
        drop(visitor);
        assert!(matches!(follower.join().unwrap(), Role::Leader(_)));
    }

    #[test]
    fn a_name_that_is_taken_and_silent_costs_the_sharing_alone() {
        let key = ShareKey(format!("silent/{}", std::process::id()));
        let address = SocketAddrUnix::new_abstract_name(format!("situla/{}", key.0).as_bytes()).unwrap();
        let squatter = new_socket(SocketFlags::empty()).unwrap();
        bind(squatter.as_fd(), &address).unwrap();
        assert!(matches!(meet(&key, 0).unwrap(), Role::Alone), "bound, and nobody listens");
        listen(squatter.as_fd(), 0).unwrap();
        let filler = new_socket(SocketFlags::NONBLOCK).unwrap();
        connect(filler.as_fd(), &address).unwrap();
        assert!(matches!(meet(&key, 0).unwrap(), Role::Alone), "the queue is full");
    }
}
