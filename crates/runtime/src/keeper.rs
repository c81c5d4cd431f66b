//! The keeper: the process that serves a container's images and hands its namespaces to late tasks.
//!
//! It is forked by the first task of a node and lives in the cgroup of the step, so Slurm ends it
//! with the step whatever happens. It never enters the container: when the last process has left
//! and no more tasks are expected, the kernel takes the mount away, and the keeper ends with it.
//! It has nothing of the payload's open, ignores every signal but SIGKILL, and its death is noticed
//! by all tasks, which then end their payloads.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use situla_fuse::{Server, Tree};

use crate::failure::{Context, Failure, FailureClass};
use crate::meeting::{ANSWER_READY, ANSWER_REFUSED, ANSWER_WITH_IMAGE, is_own};
use crate::message::{receive, send};
use crate::near::{Aside, Near};
use crate::warm_up::WarmUp;

/// From the constructing process: the FUSE device of the new mount.
pub(crate) const DEVICE: u8 = b'F';
/// From the constructing process: the container stands, and these are its namespaces.
pub(crate) const NAMESPACES: u8 = b'N';

/// From the keeper: it ends because the container has ended.
pub(crate) const FAREWELL: u8 = b'B';
/// From the keeper: a process that waits for a payload was killed, so all payloads are to end.
pub(crate) const ABORT: u8 = b'A';
/// From a task: its payload has ended, and so will it.
pub(crate) const DONE: u8 = b'D';

/// How long a keeper without any task waits for those that have not come yet. Slurm ends it long
/// before, with its step; this is for a launcher that has lost its tasks.
const IDLE_LIMIT: Timespec = Timespec { tv_sec: 300, tv_nsec: 0 };

/// How long a task that has connected may take to say who it is.
const GREETING_LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long a keeper that cannot take another visitor waits before it tries again.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How often a server that has nothing left to serve looks whether it may go.
const MOMENT: Duration = Duration::from_millis(1);

/// The most threads that serve one image: requests of a few ranks, and the decompression behind
/// them, rarely keep more busy.
const MAX_SERVERS: usize = 4;

/// What a keeper is to do.
#[derive(Debug)]
pub(crate) struct Duties {
    /// The trees to serve, in the order in which their devices come: that of the root is the last one, where the
    /// rootfs is an image.
    pub(crate) trees: Vec<Box<dyn Tree>>,
    /// What to do with the root's image before the payload asks.
    pub(crate) warm_up: Option<WarmUp>,
    /// The descriptors behind the trees, which must stay open.
    pub(crate) images: Vec<RawFd>,
    /// That of the root's image among them.
    pub(crate) image: Option<RawFd>,
    /// The meeting point, where the container is shared.
    pub(crate) listener: Option<OwnedFd>,
    /// The connection to the constructing process.
    pub(crate) control: OwnedFd,
    /// How many tasks will come in all.
    pub(crate) n_expected: usize,
    /// The rank of the task that leads.
    pub(crate) leader: u32,
    /// The name of the run, for the tasks that join it.
    pub(crate) run: String,
    /// The cgroup that tasks must be in, where Slurm has made one for the step.
    pub(crate) cgroup: Option<String>,
    /// Whether this is an instance: visitors come and go as they like, until its init has ended.
    pub(crate) is_instance: bool,
}

/// Turns this freshly forked process into a keeper.
pub(crate) fn keep(duties: Duties) -> ! {
    let listener = duties.listener.as_ref().map(AsRawFd::as_raw_fd);
    let others = [listener, Some(duties.control.as_raw_fd())].into_iter().flatten();
    let kept: Vec<RawFd> = duties.images.iter().copied().chain(others).collect();
    situla_sys::become_background(c"situla-keeper", &kept, move || {
        allow_many_files();
        serve(duties);
    })
}

/// Every task that has joined costs a descriptor, and the soft limit is the caller's, made for programs
/// that use select(2). The payload, a process of its own, keeps it.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // Raising to the hard limit is refused nobody; without it fewer tasks can join.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A tree to serve, and the device at which it is asked for once that has come.
struct Serving<'a> {
    server: Server<'a>,
    device: OnceLock<OwnedFd>,
    /// Whether a thread has found it unmounted.
    has_ended: AtomicBool,
}

impl<'a> Serving<'a> {
    fn new(tree: &'a dyn Tree) -> Self {
        Serving { server: Server::new(tree), device: OnceLock::new(), has_ended: AtomicBool::new(false) }
    }
}

/// Serves the last tree on this thread and others, and tends the meeting point on another.
fn serve(duties: Duties) {
    let Duties {
        trees,
        warm_up,
        images: _,
        image,
        listener,
        control,
        n_expected,
        leader,
        run,
        cgroup,
        is_instance,
    } = duties;
    let connected = Connected::default();
    // Whether somebody tends the meeting point of a container that does not stand yet.
    let under_way = AtomicBool::new(false);
    let mut meeting = listener.map(|listener| Meeting {
        listener: Some(listener),
        namespaces: None,
        waiting: Vec::new(),
        connected: &connected,
        come: HashSet::from([leader]),
        n_expected,
        run,
        cgroup,
        killed: false,
        under_way: &under_way,
        image: image.filter(|_| is_instance),
        is_instance,
    });
    let servings: Vec<Serving<'_>> = trees.iter().map(|tree| Serving::new(tree.as_ref())).collect();
    let Some((last, others)) = servings.split_last() else {
        // A directory: nothing to serve, only namespaces to hand on.
        if let Some(meeting) = &mut meeting {
            meeting.tend(&control);
        }
        return;
    };
    let n_servers = n_processors().min(MAX_SERVERS);
    let n_mounted = AtomicUsize::new(servings.len());
    // What nobody reads at the control connection would keep the container's namespaces alive, and with them
    // its mount, for good.
    let unheard = AtomicBool::new(false);
    let warming = Aside::default();
    let serve = |serving: &Serving<'_>, mut near: Option<Near>| {
        let device: &OwnedFd = serving.device.wait();
        let mut wait = || {
            if let Some(place) = near.take_if(|_| warming.is_done()) {
                place.leave();
            }
            if unheard.load(Ordering::Relaxed) && !discard_before(device.as_fd(), control.as_fd()) {
                unheard.store(false, Ordering::Relaxed);
            }
        };
        let clean = serving.server.serve_with(device.as_fd(), &mut wait).is_ok();
        if clean {
            // Each device has several threads; it counts once.
            let is_first = !serving.has_ended.swap(true, Ordering::AcqRel);
            if !is_first || n_mounted.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
        }
        // All unmounted, or beyond help: there is nothing left to do for any thread.
        while under_way.load(Ordering::Acquire) {
            // The constructing process has failed or was killed; what the others must hear depends on
            // which, and is said at the meeting point.
            std::thread::park_timeout(MOMENT);
        }
        if clean {
            // Not because it was killed: the container has gone.
            connected.tell(FAREWELL);
            let _ = send(control.as_fd(), &[FAREWELL], &[]);
        }
        situla_sys::exit_now(i32::from(!clean));
    };
    under_way.store(meeting.is_some(), Ordering::Release);
    let meets = meeting.is_some();
    // Whoever gets to it tends it.
    let meeting = Mutex::new(meeting);
    let take_meeting = || meeting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let tend = || {
        if let Some(mut meeting) = take_meeting() {
            meeting.tend(&control);
        }
        under_way.store(false, Ordering::Release);
    };
    std::thread::scope(|scope| {
        // A thread that cannot be made is one server less.
        let helped = n_servers > 1
            && thread(scope, || {
                if let Some(warm_up) = &warm_up {
                    warming.do_aside(|| warm_up.run());
                }
                serve(last, None);
            })
            .is_ok();
        let mut builder_at = None;
        for serving in &servings {
            let Some(mut message) = receive(control.as_fd()).ok().flatten() else {
                if let Some(mut meeting) = take_meeting() {
                    meeting.turn_away();
                }
                situla_sys::exit_now(1)
            };
            // Another message comes where the constructing process has failed: then there is nothing to serve.
            let opened = message.descriptors.pop().filter(|_| message.bytes.first() == Some(&DEVICE));
            builder_at =
                message.bytes.get(1..).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            let Some(opened) = opened else { situla_sys::exit_now(0) };
            let _ = serving.device.set(opened);
        }
        for other in others {
            let serve = &serve;
            let n_started =
                (0..n_servers).filter(|_| thread(scope, move || serve(other, None)).is_ok()).count();
            if n_started == 0 {
                // Who looks there would wait for good.
                situla_sys::exit_now(1)
            }
        }
        if n_servers > 2 || meets {
            let tended = thread(scope, || {
                for _ in 2..n_servers {
                    let _ = thread(scope, || serve(last, None));
                }
                tend();
            });
            match tended {
                Ok(()) => {}
                // The other one serves until the meeting is over.
                Err(_) if helped => tend(),
                // With the meeting goes its point: tasks lead for themselves.
                Err(_) => {
                    drop(take_meeting());
                    unheard.store(true, Ordering::Relaxed);
                    under_way.store(false, Ordering::Release);
                }
            }
        }
        // With more of them the kernel lets threads answer in turn, on whichever processors.
        let near = builder_at.filter(|_| n_servers == 2 && helped && warm_up.is_some());
        let near = near.and_then(|processor| usize::try_from(processor).ok()).and_then(Near::at);
        if let Some(near) = &near {
            warming.make_room(near);
        }
        serve(last, near);
    });
}

/// Waits for a request at `device` and takes away what arrives at `control` meanwhile; false where nothing will
/// arrive there any more.
fn discard_before(device: BorrowedFd<'_>, control: BorrowedFd<'_>) -> bool {
    loop {
        let mut polled = [&device, &control].map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        match poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return true,
            Ok(_) => {}
        }
        if !polled[1].revents().is_empty() && !matches!(receive(control), Ok(Some(_))) {
            return false;
        }
        if !polled[0].revents().is_empty() {
            return true;
        }
    }
}

/// The processors that this step may use. Not what cgroup quotas leave of them: reading those
/// takes longer than a start should.
fn n_processors() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| usize::try_from(set.count()).unwrap_or(1))
}

/// Starts a thread with a small stack; buffers are on the heap.
fn thread<'scope, 'env>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    body: impl FnOnce() + Send + 'scope,
) -> std::io::Result<()> {
    const STACK: usize = 512 * 1024;
    std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, body).map(|_| ())
}

/// The tasks that have the namespaces and are still there.
#[derive(Default)]
struct Connected(Mutex<Vec<Arc<OwnedFd>>>);

impl Connected {
    fn all(&self) -> Vec<Arc<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, task: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(task));
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn remove(&self, task: &Arc<OwnedFd>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, task));
    }

    /// Tells all tasks something; one that has gone need not hear it.
    fn tell(&self, what: u8) {
        for task in self.all() {
            let _ = send(task.as_fd(), &[what], &[]);
        }
    }
}

/// The meeting point, and who has come.
struct Meeting<'a> {
    listener: Option<OwnedFd>,
    namespaces: Option<Vec<OwnedFd>>,
    waiting: Vec<OwnedFd>,
    connected: &'a Connected,
    come: HashSet<u32>,
    n_expected: usize,
    run: String,
    cgroup: Option<String>,
    /// The leader was killed before its container stood.
    killed: bool,
    /// True until the container stands.
    under_way: &'a AtomicBool,
    /// The image, where visitors get it as well.
    image: Option<RawFd>,
    is_instance: bool,
}

/// What is ready at the meeting point.
enum Event {
    Control,
    Visitor,
    Task(Arc<OwnedFd>),
    Idle,
}

impl Meeting<'_> {
    /// Answers tasks until all have come and gone, or nobody is there any more.
    fn tend(&mut self, control: &OwnedFd) {
        let mut leader_lives = true;
        loop {
            let alone = !leader_lives && self.connected.all().is_empty() && self.waiting.is_empty();
            if self.is_instance {
                if !leader_lives {
                    // Its init has ended. What visitors hear is that the connection breaks.
                    self.namespaces = Some(Vec::new());
                    self.listener = None;
                    self.connected.clear();
                    return;
                }
            } else if self.come.len() >= self.n_expected
                && self.namespaces.is_some()
                && self.waiting.is_empty()
            {
                // Nobody else will come: the namespaces live on by their processes alone, and the
                // name is free for the next container of this step.
                self.namespaces = Some(Vec::new());
                self.listener = None;
                if alone {
                    return;
                }
            }
            match self.wait(leader_lives.then_some(control.as_fd()), alone) {
                Ok(Event::Control) => leader_lives = self.hear_leader(control),
                Ok(Event::Visitor) => self.admit(),
                Ok(Event::Task(task)) => {
                    let done = is_done(task.as_fd());
                    self.connected.remove(&task);
                    if !done && !self.is_instance {
                        self.abort(control);
                    }
                }
                Ok(Event::Idle) | Err(_) => {
                    self.namespaces = Some(Vec::new());
                    self.listener = None;
                    return;
                }
            }
        }
    }

    /// Hears what the leader has to say; false once it has gone.
    fn hear_leader(&mut self, control: &OwnedFd) -> bool {
        match receive(control.as_fd()).ok().flatten() {
            Some(message) if message.bytes.first() == Some(&NAMESPACES) => {
                self.namespaces = Some(message.descriptors);
                self.under_way.store(false, Ordering::Release);
                for task in std::mem::take(&mut self.waiting) {
                    self.answer(task);
                }
                true
            }
            Some(message) if message.bytes.first() == Some(&DONE) => {
                if self.namespaces.is_none() {
                    // The leader failed before its container stood; whoever waits sees the end of this
                    // process and leads in its place.
                    situla_sys::exit_now(1)
                }
                false
            }
            Some(_) => true,
            None if self.namespaces.is_none() => {
                self.turn_away();
                situla_sys::exit_now(1)
            }
            None => {
                if !self.is_instance {
                    self.abort(control);
                }
                false
            }
        }
    }

    /// Tells every task that comes, or waits already, that the leader was killed before its container
    /// stood: a step that has lost a task that way must not go on without it.
    fn turn_away(&mut self) {
        self.killed = true;
        for task in std::mem::take(&mut self.waiting) {
            let _ = send(task.as_fd(), &[ABORT], &[]);
        }
        // Slurm ends this process with its step, if not all come.
        while self.come.len() < self.n_expected && self.listener.is_some() {
            match self.wait(None, true) {
                Ok(Event::Visitor) => self.admit(),
                _ => return,
            }
        }
    }

    /// Ends the payloads of all tasks: one of our processes was killed, and a step that has lost a
    /// task that way must not look as if it went on.
    fn abort(&self, control: &OwnedFd) {
        self.connected.tell(ABORT);
        // The leader may be the one that was killed.
        let _ = send(control.as_fd(), &[ABORT], &[]);
    }

    fn wait(&self, control: Option<BorrowedFd<'_>>, idle: bool) -> Result<Event, Errno> {
        let listener = self.listener.as_ref().map(AsFd::as_fd);
        let fixed = [control, listener];
        let connected = self.connected.all();
        let watched = fixed.into_iter().flatten().chain(connected.iter().map(|task| task.as_fd()));
        let mut polled: Vec<PollFd<'_>> =
            watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        loop {
            match poll(&mut polled, idle.then_some(&IDLE_LIMIT)) {
                Ok(0) => return Ok(Event::Idle),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        let n_fixed = fixed.iter().flatten().count();
        let ready = polled.iter().position(|fd| !fd.revents().is_empty()).ok_or(Errno::IO)?;
        Ok(match ready {
            0 if control.is_some() => Event::Control,
            index if index < n_fixed => Event::Visitor,
            index => Event::Task(connected.get(index - n_fixed).cloned().ok_or(Errno::IO)?),
        })
    }

    /// Takes a connection and hears who it is.
    fn admit(&mut self) {
        let Some(listener) = &self.listener else { return };
        let task = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(task) => task,
            Err(Errno::INTR | Errno::CONNABORTED) => return,
            Err(_) => {
                // Out of descriptors, say.
                if self.is_instance {
                    // Until a visitor has gone.
                    let _ = poll(&mut [], Some(&PAUSE));
                } else {
                    // Tasks that come now lead for themselves.
                    self.listener = None;
                }
                return;
            }
        };
        let mut greeting = [PollFd::from_borrowed_fd(task.as_fd(), PollFlags::IN)];
        if !is_own(task.as_fd()) || !matches!(poll(&mut greeting, Some(&GREETING_LIMIT)), Ok(1)) {
            return;
        }
        let hello = receive(task.as_fd()).ok().flatten().map(|hello| hello.bytes);
        let Some(rank) = hello.and_then(|hello| <[u8; 4]>::try_from(hello).ok()).map(u32::from_ne_bytes)
        else {
            return;
        };
        // Whoever is not of the step has not come: the rank that he has named is still expected.
        let is_of_step = is_of_step(task.as_fd(), self.cgroup.as_deref());
        // A rank that has come before starts its next container: what this one shows may be out of
        // date by now, a replaced image or a directory made anew.
        if !is_of_step || !(self.is_instance || self.come.insert(rank)) {
            let _ = send(task.as_fd(), &[ANSWER_REFUSED], &[]);
            return;
        }
        if self.killed {
            let _ = send(task.as_fd(), &[ABORT], &[]);
        } else if self.namespaces.is_some() {
            self.answer(task);
        } else {
            self.waiting.push(task);
        }
    }

    fn answer(&mut self, task: OwnedFd) {
        let Some(namespaces) = &self.namespaces else { return };
        let descriptors: Vec<BorrowedFd<'_>> = namespaces.iter().map(AsFd::as_fd).collect();
        let kind = if self.image.is_some() { ANSWER_WITH_IMAGE } else { ANSWER_READY };
        let answer = [&[kind], self.run.as_bytes()].concat();
        let sent = match self.image {
            Some(image) => situla_sys::with_inherited(image, |image| {
                let with_image: Vec<BorrowedFd<'_>> = descriptors.iter().copied().chain([image]).collect();
                send(task.as_fd(), &answer, &with_image)
            }),
            None => send(task.as_fd(), &answer, &descriptors),
        };
        if sent.is_ok() {
            self.connected.add(task);
        }
    }
}

/// Tells whether the peer is in the cgroup of the step, in any hierarchy: the environment, from
/// which the name of the meeting point is made, could have been taken from another step.
fn is_of_step(task: BorrowedFd<'_>, cgroup: Option<&str>) -> bool {
    let Some(cgroup) = cgroup else { return true };
    let Ok(peer) = socket_peercred(task) else { return false };
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", peer.pid.as_raw_pid())).unwrap_or_default();
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|path| path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Hears a task's last word; false where it has none.
fn is_done(task: BorrowedFd<'_>) -> bool {
    receive(task).ok().flatten().is_some_and(|message| message.bytes.first() == Some(&DONE))
}

/// Tells the keeper that this task ends in order.
pub(crate) fn say_done(keeper: BorrowedFd<'_>) {
    // A keeper that has gone need not hear it.
    let _ = send(keeper, &[DONE], &[]);
}

/// Sends the keeper what [`serve`] waits for first, and the processor from which this process will ask for names.
pub(crate) fn hand_over_device(control: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<(), Failure> {
    let processor = u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(u32::MAX);
    send(control, &[&[DEVICE], processor.to_ne_bytes().as_slice()].concat(), &[device])
        .or_fail(FailureClass::ServerLost, || "the process that is to serve the image has ended".to_owned())
}

/// Tells the keeper that the container stands.
pub(crate) fn hand_over_namespaces(control: BorrowedFd<'_>, namespaces: &[OwnedFd]) -> Result<(), Failure> {
    let descriptors: Vec<BorrowedFd<'_>> = namespaces.iter().map(AsFd::as_fd).collect();
    send(control, &[NAMESPACES], &descriptors)
        .or_fail(FailureClass::ServerLost, || "the process that keeps the container has ended".to_owned())
}
