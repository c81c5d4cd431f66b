//! Running a Plan: who forks whom.
//!
//! There are two shapes. *Exec-only* ([`replace`]) turns the calling process into the payload and
//! leaves nothing of ours behind. *Supervised* ([`run`]) forks the payload and waits for it; where
//! an image must be served or a container shared, it forks a keeper as well:
//!
//! ```text
//! task process ── waits, forwards signals, reports
//!   ├── payload   makes or joins the namespaces, gives up privileges, exec
//!   └── keeper    serves the image, hands the namespaces to other tasks (first task only)
//! ```

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, getpid, pidfd_open, set_dumpable_behavior};
use situla_fuse::{Layered, Paired, Tree};
use situla_plan::{NamespaceKind, PatchContent, Plan, Share};
use situla_squashfs::{Image, InodeRef};
use situla_sys::{Forked, SignalFd, SignalInfo, SignalMask, fork};

use crate::construct::construct;
use crate::failure::{Context, Failure, FailureClass};
use crate::hooks::{Poststart, Rendezvous, Staged};
use crate::image_tree::ImageTree;
use crate::init;
use crate::keeper::{self, Duties};
use crate::kernel_mount;
use crate::meeting::{self, Role, meet};
use crate::message;
use crate::mounts;
use crate::namespaces;
use crate::payload::{Command, Surroundings, Waiter, become_payload};
use crate::supervise::{self, Exit, Keeper, Supervised, forwarded};
use crate::warm_up::WarmUp;

/// Hears what happens during a run. Calls come from the waiting process, never from the payload.
pub trait Observer {
    /// A phase of the start has ended.
    fn phase(&mut self, name: &'static str);
    /// It is known which run this task belongs to, and whether it sets the container up.
    fn met(&mut self, run: &str, leads: bool);
    /// The payload runs, under this pid.
    fn started(&mut self, pid: i32);
    /// A signal has arrived and is being passed on.
    fn signal(&mut self, info: &SignalInfo);
    /// Something has failed that does not matter to the run.
    fn warning(&mut self, failure: &Failure) {
        let _ = failure;
    }
}

/// An open image: its reader, and the descriptor behind it.
#[derive(Debug)]
pub struct OpenImage {
    /// The reader.
    pub image: Image,
    /// The descriptor that the reader reads from.
    pub descriptor: RawFd,
}

/// A directory of an open image that is mounted inside.
#[derive(Debug)]
pub struct MountedImage {
    /// The image.
    pub open: OpenImage,
    /// The directory.
    pub root: InodeRef,
}

/// The open images of a Plan.
#[derive(Debug, Default)]
pub struct OpenImages {
    /// The one that is the root, where that is an image.
    pub root: Option<OpenImage>,
    /// One for each mount of type `squashfs`, in their order.
    pub mounted: Vec<MountedImage>,
}

impl OpenImages {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.root.is_none() && self.mounted.is_empty()
    }

    /// The descriptors behind them, which must stay open.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let mounted = self.mounted.iter().map(|mounted| &mounted.open);
        self.root.iter().chain(mounted).map(|open| open.descriptor)
    }
}

/// Tells whether a descriptor was there before this process opened any: all of ours close on exec.
pub fn is_inherited(fd: RawFd) -> bool {
    let flags = situla_sys::with_inherited(fd, |fd| rustix::io::fcntl_getfd(fd));
    flags.is_ok_and(|flags| !flags.contains(rustix::io::FdFlags::CLOEXEC))
}

/// A further descriptor of what a descriptor known by number alone leads to.
///
/// # Errors
/// It is not open, or there are no more descriptors.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd, rustix::io::Errno> {
    situla_sys::with_inherited(fd, |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
}

/// Replaces this process by the payload of `plan`: a directory, shared with nobody, with nobody
/// who waits. Returns only with the reason why that failed.
pub fn replace(plan: &Plan) -> Failure {
    let command = match Command::prepare(plan) {
        Ok(command) => command,
        Err(failure) => return failure,
    };
    // Blocking nothing tells the mask as it is.
    let surroundings = match situla_sys::block_signals(&SignalMask::of([])) {
        Ok(mask) => Surroundings { mask, waiter: Waiter::Nobody, hooks: None },
        Err(errno) => return Failure::of_call(FailureClass::Setup, "cannot read the signal mask", errno),
    };
    if plan.spec.linux.has(NamespaceKind::Pid) {
        return Failure::new(FailureClass::Setup, "a PID namespace needs a process that waits for it");
    }
    if plan.spec.hooks.is_some() {
        return Failure::new(FailureClass::Setup, "hooks need a process that waits for their container");
    }
    let mut serve = |_: BorrowedFd<'_>| {
        Err(Failure::new(FailureClass::Setup, "an image file needs a process that serves it"))
    };
    match construct(plan, &mut serve, &mut || Ok(())) {
        Ok(()) => become_payload(plan, &command, &surroundings),
        Err(failure) => failure,
    }
}

/// Runs the payload of `plan` and waits for it. `images` are the open images of the plan; `rank` is this task's
/// among the tasks of its node's step; `name` is the name of the run if this task leads, which the others then
/// learn.
pub fn run(
    plan: &Plan,
    images: OpenImages,
    rank: u32,
    name: &str,
    observer: &mut dyn Observer,
) -> Result<Exit, Failure> {
    if images.mounted.len() != mounts::n_images(plan) {
        return Err(Failure::new(FailureClass::Setup, "an image that is to be mounted was not opened"));
    }
    let command = Command::prepare(plan)?;
    let is_instance = matches!(plan.share, Share::Instance { .. });
    if is_instance && !plan.spec.linux.has(NamespaceKind::Pid) {
        return Err(Failure::new(FailureClass::Setup, "an instance needs a PID namespace"));
    }
    if plan.spec.linux.has(NamespaceKind::Pid) && matches!(plan.share, Share::Step { .. }) {
        return Err(Failure::new(FailureClass::Setup, "a PID namespace cannot be shared among tasks"));
    }
    Staged::check(plan)?;
    let (signals, mask) = watch_signals()?;
    let role = match &plan.share {
        Share::Step { key, local_tasks, .. } if *local_tasks > 1 => Some(meet(key, rank)?),
        Share::Instance { key } => Some(Role::Leader(meeting::open(key)?)),
        _ => None,
    };
    observer.phase("meet");
    if matches!(role, Some(Role::Member { .. } | Role::Asked(_)))
        && let Err(failure) = kernel_mount::let_go(plan)
    {
        observer.warning(&failure);
    }
    let surroundings = Surroundings { mask, waiter: Waiter::Parent(getpid()), hooks: None };
    let (name, leads) = match &role {
        Some(Role::Member { run, .. }) => (run.clone(), false),
        Some(Role::Asked(_)) => (name.to_owned(), false),
        _ => (name.to_owned(), true),
    };
    // A member's container has had its hooks.
    let hooks = Staged::of(plan, &name).filter(|_| leads);
    let start = Start { plan, name: &name, leads, command: &command, surroundings: &surroundings, hooks };
    let mut observer = Poststart::new(hooks, observer);
    let outcome = start.run(role, images, rank, &signals, &mut observer);
    if let Some(hooks) = hooks {
        hooks.poststop(&mut observer);
    }
    match observer.failure() {
        Some(failure) => Err(failure),
        None => outcome,
    }
}

/// Blocks the signals that are passed on, to be read; the mask is as it was before.
pub(crate) fn watch_signals() -> Result<(SignalFd, SignalMask), Failure> {
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
    let forwarded = forwarded();
    let mask = situla_sys::block_signals(&forwarded).map_err(setup("cannot block signals"))?;
    // A journal beyond the limit of file sizes must cost the record, not the run. SIGXFSZ is 25.
    situla_sys::block_signals(&SignalMask::of([25])).map_err(setup("cannot block signals"))?;
    let signals = SignalFd::new(&forwarded).map_err(setup("cannot read signals"))?;
    Ok((signals, mask))
}

/// What every way of starting needs.
struct Start<'a> {
    plan: &'a Plan,
    /// The name of the run, and whether this task sets its container up.
    name: &'a str,
    leads: bool,
    command: &'a Command,
    surroundings: &'a Surroundings<'a>,
    /// What is run beside it, where this task sets the container up.
    hooks: Option<Staged<'a>>,
}

/// A payload that has been forked.
struct Started {
    pid: Pid,
    report: OwnedFd,
    ended: Option<OwnedFd>,
    is_instance: bool,
}

impl Started {
    fn supervised<'a>(self, signals: &'a SignalFd, keeper: Option<Keeper<'a>>) -> Supervised<'a> {
        let Started { pid, report, ended, is_instance } = self;
        Supervised { pid, report, ended, signals, keeper, is_instance }
    }
}

impl Start<'_> {
    /// Runs the payload in the role that was found.
    fn run(
        &self,
        role: Option<Role>,
        images: OpenImages,
        rank: u32,
        signals: &SignalFd,
        observer: &mut dyn Observer,
    ) -> Result<Exit, Failure> {
        match role {
            Some(Role::Member { connection, namespaces, .. }) => {
                let keeper = Some(Keeper::Connection(connection.as_fd()));
                let outcome = self
                    .fork_payload(observer, |_| enter(&namespaces).map(|()| Vec::new()), |_| Ok(()))
                    .and_then(|started| started.supervised(signals, keeper).wait(observer));
                if !supervise::was_killed(&outcome) {
                    keeper::say_done(connection.as_fd());
                }
                outcome
            }
            Some(Role::Leader(listener)) => self.lead(images, Some(listener), rank, signals, observer),
            Some(Role::Alone) | None if !images.is_empty() => {
                self.lead(images, None, rank, signals, observer)
            }
            Some(Role::Asked(signal)) => Ok(Exit::Signal(signal)),
            Some(Role::Alone) | None => {
                let mut serve =
                    |_: BorrowedFd<'_>| Err(Failure::new(FailureClass::Setup, "no image was opened"));
                let build = |hooks: &dyn Fn() -> Result<(), Failure>| {
                    construct(self.plan, &mut serve, &mut || hooks()).map(|()| Vec::new())
                };
                let started = self.fork_payload(observer, build, |_| Ok(()))?;
                started.supervised(signals, None).wait(observer)
            }
        }
    }

    /// Forks a child that gets itself into the container by `enter` and becomes the payload. What `enter`
    /// is given runs the hooks of a container that is built, before the host's root goes. The
    /// pipe that is returned carries a failure; it ends with the exec, or with the child.
    ///
    /// Meanwhile the observer hears of the run. The child waits for that before it lets others in, by
    /// `announce`, and before its exec: nothing is run of which there is no record.
    fn fork_payload(
        &self,
        observer: &mut dyn Observer,
        enter: impl FnOnce(&dyn Fn() -> Result<(), Failure>) -> Result<Vec<OwnedFd>, Failure>,
        announce: impl FnOnce(Vec<OwnedFd>) -> Result<(), Failure>,
    ) -> Result<Started, Failure> {
        let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(setup("cannot make a pipe"));
        let ((reader, writer), (may_go, go)) = (pipe()?, pipe()?);
        let rendezvous = self.hooks.map(|_| Rendezvous::new()).transpose()?;
        let has_init = self.plan.spec.linux.has(NamespaceKind::Pid);
        let (ended, tell_end) = has_init.then(pipe).transpose()?.unzip();
        match namespaces::fork_for(&self.plan.spec.linux)? {
            Forked::Parent(pid) => {
                drop((writer, may_go, tell_end));
                observer.met(self.name, self.leads);
                // A child that has failed meanwhile does not listen any more.
                let _ = rustix::io::write(&go, &[1]);
                if let (Some(hooks), Some(rendezvous)) = (self.hooks, rendezvous)
                    && let Err(failure) = rendezvous.attend(hooks, pid)
                {
                    supervise::end(pid);
                    return Err(failure);
                }
                let is_instance = matches!(self.plan.share, Share::Instance { .. });
                Ok(Started { pid, report: reader, ended, is_instance })
            }
            Forked::Child => {
                drop((reader, go, ended));
                let bound = tell_end.as_ref().map_or(Ok(()), init::bind_to_waiting);
                let own = Cell::new(0);
                let run_hooks = || match (self.hooks, &rendezvous) {
                    (Some(hooks), Some(rendezvous)) => {
                        own.set(rendezvous.built()?);
                        hooks.create_container(own.get())
                    }
                    _ => Ok(()),
                };
                let failure = match bound.and_then(|()| enter(&run_hooks)) {
                    Ok(namespaces) => match rustix::io::read(&may_go, &mut [0; 1]) {
                        Ok(1) => match announce(namespaces) {
                            Ok(()) => self.become_payload(tell_end.as_ref(), own.get()),
                            Err(failure) => failure,
                        },
                        // The waiting process has been killed.
                        _ => situla_sys::exit_now(1),
                    },
                    Err(failure) => failure,
                };
                let _ = rustix::io::write(&writer, &failure.encode());
                situla_sys::exit_now(1)
            }
        }
    }

    /// Turns this process into the payload, or into the init that has it as a child.
    fn become_payload(&self, tell_end: Option<&OwnedFd>, own_pid: i32) -> Failure {
        let hooks = self.hooks.map(|hooks| (hooks, own_pid));
        let Some(tell_end) = tell_end else {
            let surroundings = Surroundings { hooks, ..*self.surroundings };
            return become_payload(self.plan, self.command, &surroundings);
        };
        let payload = || {
            let surroundings =
                Surroundings { waiter: Waiter::Parent(Pid::INIT), hooks, ..*self.surroundings };
            become_payload(self.plan, self.command, &surroundings)
        };
        match &self.plan.share {
            Share::Instance { .. } => {
                init::run_instance(tell_end, Some(payload).filter(|_| !self.command.is_empty()))
            }
            _ => init::run(tell_end, payload),
        }
    }

    /// Sets the container up: forks the keeper, then the payload, which builds the container
    /// around itself.
    fn lead(
        &self,
        images: OpenImages,
        listener: Option<OwnedFd>,
        rank: u32,
        signals: &SignalFd,
        observer: &mut dyn Observer,
    ) -> Result<Exit, Failure> {
        let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Setup, what, errno);
        let shared = listener.is_some();
        let descriptors: Vec<RawFd> = images.descriptors().collect();
        let OpenImages { root, mounted } = images;
        let user = self.plan.spec.process.user;
        let mut trees: Vec<Box<dyn Tree>> = Vec::with_capacity(mounted.len() + 1);
        for MountedImage { open, root } in mounted {
            trees.push(Box::new(ImageTree::below(Arc::new(open.image), root, user.uid, user.gid)));
        }
        let descriptor = root.as_ref().map(|image| image.descriptor);
        let image = root.map(|image| Arc::new(image.image));
        if let Some(image) = image.clone() {
            trees.push(served_tree(self.plan, image)?);
        }
        let warm_up = image.map(|image| WarmUp { image, programs: self.command.programs() });
        let (ours, theirs) = message::pair().map_err(setup("cannot make a pair of sockets"))?;
        let (n_expected, cgroup) = match &self.plan.share {
            Share::Step { local_tasks, cgroup, .. } => {
                (usize::try_from(*local_tasks).unwrap_or(usize::MAX), cgroup.clone())
            }
            Share::Nobody { .. } | Share::Instance { .. } => (1, None),
        };
        let is_instance = matches!(self.plan.share, Share::Instance { .. });
        let duties = Duties {
            trees,
            warm_up,
            images: descriptors,
            image: descriptor,
            listener,
            control: theirs,
            n_expected,
            leader: rank,
            run: self.name.to_owned(),
            cgroup,
            is_instance,
        };
        let keeper = match fork().map_err(setup("cannot fork"))? {
            Forked::Child => keeper::keep(duties),
            Forked::Parent(pid) => pid,
        };
        // The keeper alone has its ends now, so that their closing tells its death.
        drop(duties);
        let keeper_fd = pidfd_open(keeper, PidfdFlags::empty()).map_err(setup("cannot watch the keeper"))?;
        let build = |hooks: &dyn Fn() -> Result<(), Failure>| {
            let mut namespaces = Vec::new();
            let mut serve = |device: BorrowedFd<'_>| keeper::hand_over_device(ours.as_fd(), device);
            construct(self.plan, &mut serve, &mut || {
                if shared {
                    namespaces = open_namespaces(self.plan)?;
                }
                hooks()
            })?;
            Ok(namespaces)
        };
        let announce = |namespaces: Vec<OwnedFd>| {
            if shared { keeper::hand_over_namespaces(ours.as_fd(), &namespaces) } else { Ok(()) }
        };
        let started = match self.fork_payload(observer, build, announce) {
            Ok(started) => started,
            Err(failure) => {
                supervise::end(keeper);
                return Err(failure);
            }
        };
        let watched =
            if shared { Keeper::Connection(ours.as_fd()) } else { Keeper::Child(keeper_fd.as_fd()) };
        let outcome = started.supervised(signals, Some(watched)).wait(observer);
        if shared {
            if !supervise::was_killed(&outcome) {
                keeper::say_done(ours.as_fd());
            }
            if is_instance {
                drop(ours);
                supervise::reap_soon(keeper, keeper_fd.as_fd(), &supervise::END_OF_INSTANCE);
            }
        } else {
            drop(ours);
            supervise::reap_soon(keeper, keeper_fd.as_fd(), &supervise::MOMENT);
        }
        outcome
    }
}

/// Puts the patches of `plan` on top of its image.
fn served_tree(plan: &Plan, image: Arc<Image>) -> Result<Box<dyn Tree>, Failure> {
    let user = plan.spec.process.user;
    let mut tree = Layered::new(ImageTree::new(image, user.uid, user.gid), user.uid, user.gid);
    for patch in &plan.rootfs.patches {
        let laid = match &patch.content {
            PatchContent::Directory => tree.add_directory(&patch.path),
            PatchContent::File { content, mode } => {
                tree.add_file(&patch.path, content.as_bytes().to_vec(), *mode)
            }
            PatchContent::Passwd { .. } | PatchContent::Group { .. } => {
                let content = patch.content.clone();
                tree.complete_file(
                    &patch.path,
                    PatchContent::ACCOUNTS_MODE,
                    Box::new(move |image| match content.complete(image) {
                        Some(Ok(completed)) => completed,
                        // Too long by now, or never fit to be completed: the image's own.
                        Some(Err(_)) | None => image.to_vec(),
                    }),
                )
            }
        };
        laid.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Failure::new(FailureClass::Rootfs, format!("{error}{cause}"))
        })?;
    }
    // Without layers of the user's an overlay lies above all the same: see `overlay`.
    Ok(if plan.rootfs.overlay.is_none() { Box::new(Paired::new(tree)) } else { Box::new(tree) })
}

/// The file of `/proc/self/ns` for a type of namespace, in the order in which they are entered.
fn namespace_files(plan: &Plan) -> impl Iterator<Item = &'static str> {
    let order = [
        (NamespaceKind::User, "user"),
        (NamespaceKind::Pid, "pid"),
        (NamespaceKind::Ipc, "ipc"),
        (NamespaceKind::Uts, "uts"),
        (NamespaceKind::Network, "net"),
        (NamespaceKind::Cgroup, "cgroup"),
        (NamespaceKind::Mount, "mnt"),
    ];
    let kinds: Vec<NamespaceKind> =
        plan.spec.linux.namespaces.iter().map(|namespace| namespace.kind).collect();
    order.into_iter().filter(move |(kind, _)| kinds.contains(kind)).map(|(_, name)| name)
}

/// Opens the namespaces of this process, through the host's `/proc`.
fn open_namespaces(plan: &Plan) -> Result<Vec<OwnedFd>, Failure> {
    namespace_files(plan)
        .map(|name| {
            let path = Path::new("/proc/self/ns").join(name);
            openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .or_fail(FailureClass::Setup, || format!("cannot open {}", path.display()))
        })
        .collect()
}

/// Enters namespaces that another task has made.
pub(crate) fn enter(namespaces: &[OwnedFd]) -> Result<(), Failure> {
    // Root of the container, who is inside already, must not look at what this process has open of the host's.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .or_fail(FailureClass::Setup, || "cannot forbid to be traced".to_owned())?;
    for namespace in namespaces {
        situla_sys::join_namespace(namespace.as_fd())
            .or_fail(FailureClass::Setup, || format!("cannot enter namespace {}", namespace.as_raw_fd()))?;
    }
    // Entering a mount namespace sets root and working directory to its root.
    Ok(())
}
