//! Ending a step that has lost a container.
//!
//! Where one of our processes is killed, the tasks that share its container end by themselves. Those
//! of other nodes, and those that have not come yet, do not know of it, and Slurm lets tasks go on
//! when another one dies. So Slurm is asked to end the step, as `scancel JOB.STEP` does.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use situla_records::{EngineClass, Record, RecordId, TaskRef, load, load_closed};
use situla_slurm::{Allocation, StepId};

use crate::error::EngineError;
use crate::host::Host;
use crate::journal;

/// How long the tasks of this node have to say how they ended, before Slurm ends them. Those that share
/// the lost container need a few milliseconds; those that never come would be waited for in vain.
const FAREWELLS: Duration = Duration::from_secs(1);

/// How often to look whether they have.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How long Slurm may take to hear the warning, and to hear both. The client retries for minutes when the
/// controller is away, and a task must not wait that long to end.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(10));

/// How long the tasks of other nodes have to record that they were told to end: scancel does not wait until they hear of it.
const WARNING: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// How long of that a task waits for another one of its node that asks already.
const TURN: Duration = Duration::from_secs(5);

/// Where Slurm's programs are where `PATH` does not lead to them.
pub(crate) const USUAL_PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/opt/slurm/bin"];

/// A step whose other tasks would go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepEnd {
    /// The step as each component of a heterogeneous job has it; one otherwise.
    steps: Vec<String>,
    places: Vec<PathBuf>,
    /// Whether this node is the only one.
    one_node: bool,
    /// Where this node's tasks say how they end.
    record: Option<OwnRecord>,
    /// Whose turn it is among the tasks of this node.
    turn: String,
}

/// The record of the step on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnRecord {
    directory: PathBuf,
    id: RecordId,
    pub(crate) task: TaskRef,
    restarts: u32,
}

impl OwnRecord {
    pub(crate) fn of(host: &Host) -> Option<Self> {
        let allocation = host.allocation.as_ref()?;
        allocation.node.as_ref()?;
        let (id, task) = journal::name(host);
        let directory = host.records.clone()?;
        Some(OwnRecord { directory, id: id?, task, restarts: allocation.restart_count })
    }

    /// What is recorded of the job as it was started this time; `None` where that cannot be read.
    pub(crate) fn read(&self) -> Option<Vec<Record>> {
        let loaded = load(&self.directory, &self.id).or_else(|error| {
            if error.is_denial() { load_closed(&self.directory, &self.id) } else { Err(error) }
        });
        let mut records = match loaded {
            Ok(loaded) => loaded.records,
            Err(error) if error.is_absence() => Vec::new(),
            Err(_) => return None,
        };
        // A job that is requeued uses the names of its steps again.
        let restarts = |record: &Record| record.start.as_ref().map(|start| start.identity.restarts);
        records.retain(|record| restarts(record).is_none_or(|restarts| restarts == self.restarts));
        Some(records)
    }

    /// How many tasks of this node have ended, and how many there are, by what they say.
    fn farewells(&self) -> Option<(usize, usize)> {
        let records = self.read()?;
        let mut tasks: BTreeMap<TaskRef, bool> = BTreeMap::new();
        let mut expected = None;
        for record in &records {
            let known = record.start.as_ref().and_then(|start| start.n_local_tasks);
            expected = expected.max(known);
            // One task can have started several containers.
            for task in &record.tasks {
                *tasks.entry(task.task).or_insert(true) &= task.exit.is_some();
            }
        }
        let ended = tasks.values().filter(|has_ended| **has_ended).count();
        Some((ended, usize::try_from(expected?).ok()?))
    }
}

/// Slurm could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepEndError {
    /// The program cannot be run.
    #[error("cannot run scancel")]
    Run(#[source] std::io::Error),
    /// It says no.
    #[error("scancel {step} ended with {status}")]
    Refused {
        /// Job and step.
        step: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It has not come back.
    #[error("scancel {step} did not answer in time")]
    Silent {
        /// Job and step.
        step: String,
    },
}

impl StepEnd {
    /// What is to end when this process loses its container; `None` where nobody else is concerned:
    /// outside a step of srun, or as its only task.
    pub fn of(host: &Host) -> Option<Self> {
        let allocation = host.allocation.as_ref()?;
        let steps = others(allocation)?;
        let path = host.variable("PATH").unwrap_or_default();
        let places = std::env::split_paths(path).filter(|place| place.is_absolute());
        let node = allocation.node.as_deref().unwrap_or_default();
        Some(StepEnd {
            // The component's own name: a name of a socket has room for one.
            turn: format!("situla/end/{}/{}/{node}", host.user.uid, steps.first()?),
            steps,
            places: places.chain(USUAL_PLACES.map(PathBuf::from)).collect(),
            one_node: allocation.n_nodes() == Some(1) && allocation.het.is_none(),
            record: OwnRecord::of(host),
        })
    }

    /// Asks Slurm to end the step, once the tasks of this node have said how they ended or had the time
    /// to, and waits until it has heard. Where all tasks have ended by themselves, it is not asked.
    ///
    /// # Errors
    /// There is no `scancel`, or it fails, or it takes longer than ten seconds.
    pub fn request(&self) -> Result<(), StepEndError> {
        self.request_without(0)
    }

    /// The same from outside the tasks, after one of them was killed: that one says nothing any more.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn request_for_killed(&self) -> Result<(), StepEndError> {
        self.request_without(1)
    }

    fn request_without(&self, n_silent: usize) -> Result<(), StepEndError> {
        // A hundred tasks that each read the record and ran scancel would keep a node busy for seconds. When it has worked, the
        // others are killed where they wait.
        let begun = Instant::now();
        let turn = self.take_turn();
        let all_ended = self.hear_farewells(n_silent);
        if all_ended && self.one_node {
            return Ok(());
        }
        // Slurm kills the tasks of a step that is cancelled without a warning. With one, those of ours
        // have recorded that they were told to end. Without it the step must end as well.
        // What a long turn has left is for both.
        let for_warning = PATIENCE.0.min(PATIENCE.1.saturating_sub(begun.elapsed()) / 2);
        if self.scancel(&["--signal=TERM"], for_warning).is_ok() {
            let _ = poll(&mut [], Some(&WARNING));
        }
        let ended = self.scancel(&[], PATIENCE.1.saturating_sub(begun.elapsed()));
        if ended.is_ok() {
            // Until this process has gone as well, nobody need ask again.
            std::mem::forget(turn);
        }
        ended
    }

    /// Waits until no other task of this node asks; one that has died does not. The kernel gives a name in the abstract
    /// namespace to one process at a time, and takes it back when that ends (unix(7)). A stranger who has it is not waited for.
    fn take_turn(&self) -> Option<OwnedFd> {
        /// More tasks than a node has.
        const BACKLOG: i32 = 4096;
        let address = SocketAddrUnix::new_abstract_name(self.turn.as_bytes()).ok()?;
        let begun = Instant::now();
        let own = rustix::process::getuid();
        while let Some(left) = TURN.checked_sub(begun.elapsed()) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
            match bind(&socket, &address) {
                Ok(()) => return listen(&socket, BACKLOG).is_ok().then_some(socket),
                Err(Errno::ADDRINUSE) => {}
                Err(_) => return None,
            }
            match connect(&socket, &address) {
                Ok(()) if socket_peercred(&socket).is_ok_and(|peer| peer.uid == own) => {
                    // Nobody answers; it hangs up when it ends.
                    let left = Timespec::try_from(left).ok();
                    let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], left.as_ref());
                }
                Ok(()) => return None,
                // It has ended meanwhile, or does not listen yet, or there is a crowd.
                Err(Errno::CONNREFUSED | Errno::AGAIN) => {
                    let _ = poll(&mut [], Some(&MOMENT));
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Waits until all tasks of this node but so many have said how they ended, or could have.
    fn hear_farewells(&self, n_silent: usize) -> bool {
        let begun = Instant::now();
        let Some(record) = &self.record else { return false };
        loop {
            let Some((ended, expected)) = record.farewells() else { return false };
            if ended + n_silent >= expected {
                return true;
            }
            if begun.elapsed() > FAREWELLS {
                return false;
            }
            let _ = poll(&mut [], Some(&MOMENT));
        }
    }

    fn scancel(&self, options: &[&str], patience: Duration) -> Result<(), StepEndError> {
        let program = self.places.iter().map(|place| place.join("scancel")).find(|path| path.is_file());
        let mut child = Command::new(program.as_deref().unwrap_or(Path::new("scancel")))
            .args(options)
            .args(&self.steps)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(StepEndError::Run)?;
        let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let watched = watched.map_err(|errno| StepEndError::Run(errno.into()))?;
        let patience = Timespec::try_from(patience).unwrap_or_default();
        let answered = poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&patience));
        if matches!(answered, Ok(0)) {
            // It may end this moment. One that cannot be killed is not waited for.
            let _ = child.kill();
            let _ = poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&MOMENT));
        }
        match child.try_wait().map_err(StepEndError::Run)? {
            Some(status) if status.success() => Ok(()),
            Some(status) if !matches!(answered, Ok(0)) => {
                Err(StepEndError::Refused { step: self.steps.join(" "), status })
            }
            _ => Err(StepEndError::Silent { step: self.steps.join(" ") }),
        }
    }
}

/// Whether this process is one of several tasks of a step.
pub(crate) fn has_others(host: &Host) -> bool {
    host.allocation.as_ref().is_some_and(|allocation| of_several(allocation).is_some())
}

/// The number of the step, where it has other tasks.
fn of_several(allocation: &Allocation) -> Option<StepId> {
    // Each component of a heterogeneous step counts its own tasks.
    let alone = allocation.n_tasks() == Some(1) && allocation.het.is_none();
    allocation.step.filter(|step| step.is_numeric() && !alone)
}

/// The names of a step that has other tasks: each component of a heterogeneous job has a step of that number.
fn others(allocation: &Allocation) -> Option<Vec<String>> {
    let step = of_several(allocation)?;
    let jobs = allocation.het.as_ref().map(|het| het.jobs.as_slice()).unwrap_or_default();
    let others = jobs.iter().filter(|job| **job != allocation.job);
    Some([&allocation.job].into_iter().chain(others).map(|job| format!("{job}.{step}")).collect())
}

impl EngineError {
    /// Whether one of our own processes was killed: then no other task of the step is to go on.
    pub fn is_loss(&self) -> bool {
        self.class() == EngineClass::ServerLost
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn allocation(variables: &[(&str, &str)]) -> Allocation {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Allocation::from_env(&lookup).unwrap().unwrap()
    }

    #[test]
    fn one_task_of_a_node_asks_at_a_time() {
        let of = |turn: &str| StepEnd {
            steps: vec!["7.3".to_owned()],
            places: Vec::new(),
            one_node: true,
            record: None,
            turn: format!("situla/end/test/{}/{turn}", std::process::id()),
        };
        let (step, other) = (of("7.3"), of("7.4"));
        let first = step.take_turn().unwrap();
        assert!(other.take_turn().is_some(), "another step");
        let waited = std::thread::scope(|scope| {
            let next = scope.spawn(|| step.take_turn().is_some());
            drop(first);
            next.join().unwrap()
        });
        assert!(waited);
        let _holds = step.take_turn().unwrap();
        let begun = Instant::now();
        assert!(step.take_turn().is_none(), "it asks all the same");
        assert!(begun.elapsed() >= TURN);
    }

    #[test]
    fn a_hundred_tasks_ask_one_after_the_other() {
        let step = StepEnd {
            steps: vec!["7.5".to_owned()],
            places: Vec::new(),
            one_node: true,
            record: None,
            turn: format!("situla/end/test/{}/7.5", std::process::id()),
        };
        let (asking, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let n_turns = std::thread::scope(|scope| {
            let tasks = (0..100).map(|_| {
                scope.spawn(|| {
                    let turn = step.take_turn();
                    most.fetch_max(asking.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    std::thread::yield_now();
                    asking.fetch_sub(1, Ordering::Relaxed);
                    turn.is_some()
                })
            });
            let tasks: Vec<_> = tasks.collect();
            tasks.into_iter().map(|task| usize::from(task.join().unwrap())).sum::<usize>()
        });
        assert_eq!((n_turns, most.into_inner()), (100, 1));
    }

    #[test]
    fn only_a_step_with_other_tasks_is_to_end() {
        let of = |step: &str, n_tasks: &str, more: &[(&str, &str)]| {
            let step = [
                ("SLURM_JOB_ID", "7"),
                ("SLURM_STEP_ID", step),
                ("SLURM_STEP_NUM_TASKS", n_tasks),
                ("SLURM_STEP_NUM_NODES", "1"),
                ("SLURM_PROCID", "0"),
                ("SLURM_LOCALID", "0"),
            ];
            others(&allocation(&[&step, more].concat()))
        };
        let steps = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(of("3", "4", &[]), steps(&["7.3"]));
        assert_eq!(of("3", "1", &[]), None);
        assert_eq!(of("3", "1", &[("SLURM_HET_SIZE", "2")]), steps(&["7.3"]));
        let both =
            [("SLURM_HET_SIZE", "2"), ("SLURM_JOB_ID_HET_GROUP_0", "6"), ("SLURM_JOB_ID_HET_GROUP_1", "7")];
        assert_eq!(of("3", "1", &both), steps(&["7.3", "6.3"]));
        assert_eq!(of("4294967291", "4", &[]), None, "a batch script");
    }
}
