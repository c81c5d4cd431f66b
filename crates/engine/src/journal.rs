//! Writing the record of a run while it happens. Nothing here can fail the run.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use situla_plan::{Plan, RootfsIdentity, Text};
use situla_records::{
    Cause, ContainerFacts, EngineClass, Event, EventKind, Exit as RecordedExit, Identity, ImageFacts,
    Journal, Phase, RecordId, SCHEMA, SavedFile, Sender, Start, TaskRef, UNVERIFIED,
};
use situla_runtime::{Exit, Observer, SignalInfo};

use crate::error::EngineError;
use crate::host::Host;
use crate::request::Personality;
use crate::status::FailureKind;
use crate::step_end::has_others;

/// Names of the phases up to the frozen Plan, with the moment at which each ended.
#[derive(Clone, Debug)]
pub(crate) struct Phases {
    begun: Instant,
    ended: Vec<(&'static str, Instant)>,
}

impl Phases {
    pub(crate) fn begin() -> Self {
        Phases { begun: Instant::now(), ended: Vec::new() }
    }

    pub(crate) fn end(&mut self, name: &'static str) {
        self.ended.push((name, Instant::now()));
    }

    fn recorded(&self) -> Vec<Phase> {
        let since = |moment: Instant| {
            u64::try_from(moment.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
        };
        let mut start_ns = 0;
        let phase = |(name, end): &(&'static str, Instant)| {
            let end_ns = since(*end);
            let phase = Phase { name: (*name).to_owned(), start_ns, end_ns };
            start_ns = end_ns;
            phase
        };
        self.ended.iter().map(phase).collect()
    }
}

/// The record of one task's part in a run.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Where the record goes, until it is open: making a file can take as long as all else that a
    /// start does, and the container is being built meanwhile if it is made with the first event.
    place: Option<(PathBuf, RecordId)>,
    journal: Option<Journal>,
    run: String,
    task: TaskRef,
    phases: Phases,
    /// What the first event says, without the Plan.
    start: Option<Box<Start>>,
    plan: Option<Plan>,
    step_cgroup: Option<String>,
    /// By whose conventions this process ends where the failure is ours.
    personality: Personality,
    /// Whether it is one of several tasks, which are to end where a process of ours is killed.
    has_others: bool,
}

impl Recorder {
    /// Finds the record that this run belongs to; one that cannot be opened stays silent.
    pub(crate) fn open(
        host: &Host,
        wanted_outside_slurm: bool,
        personality: Personality,
        phases: Phases,
    ) -> Self {
        let (id, task) = name(host);
        let wanted = host.allocation.is_some() || wanted_outside_slurm;
        let place = host.records.clone().zip(id).filter(|_| wanted);
        let run = format!("{}-{}", std::process::id(), now_ns());
        Recorder {
            place,
            journal: None,
            run,
            task,
            phases,
            start: None,
            plan: None,
            step_cgroup: host.step_cgroup.clone(),
            personality,
            has_others: has_others(host),
        }
    }

    /// Whether anything is recorded at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.place.is_some() || self.journal.is_some()
    }

    /// The name of the run, if this task turns out to lead it.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// This task's place in its step.
    pub(crate) fn task(&self) -> TaskRef {
        self.task
    }

    /// The phases so far.
    pub(crate) fn recorded_phases(&self) -> Vec<Phase> {
        self.phases.recorded()
    }

    /// Prepares what the first task writes when the container is about to be set up.
    pub(crate) fn describe(&mut self, host: &Host, plan: &Plan) {
        if !self.is_wanted() {
            return;
        }
        let allocation = host.allocation.as_ref();
        let rootfs_digest = match &plan.image.rootfs {
            RootfsIdentity::Verified(digest) => digest.clone(),
            RootfsIdentity::Unverified => UNVERIFIED.to_owned(),
        };
        let argv = plan
            .spec
            .process
            .args
            .iter()
            .map(|word| word.as_os_str().to_string_lossy().into_owned())
            .collect();
        self.plan = Some(without_secrets(plan));
        self.start = Some(Box::new(Start {
            identity: identity(host),
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            argv,
            image: ImageFacts {
                reference: plan.image.requested.clone(),
                manifest_digest: plan.image.manifest_digest.clone(),
                rootfs_digest,
            },
            plan: serde_json::Value::Null,
            phases: self.phases.recorded(),
            n_local_tasks: allocation.and_then(|allocation| allocation.tasks_on_node).or(Some(1)),
            task: Some(self.task),
            container: None,
        }));
    }

    /// Adds the container whose files stay.
    pub(crate) fn describe_container(&mut self, facts: &ContainerFacts) {
        if let Some(start) = &mut self.start {
            start.container = Some(facts.clone());
        }
    }

    /// Records how the payload ended, before the container is saved to `path`: whoever kills this process meanwhile
    /// does not take that along.
    pub(crate) fn saving(&mut self, exit: Exit, path: &Path) {
        let path = path.display().to_string();
        self.write(EventKind::Saving { task: self.task, exit: recorded(exit), path });
    }

    /// Records that the container was saved.
    pub(crate) fn saved(&mut self, file: SavedFile) {
        self.write(EventKind::Saved { task: self.task, file });
    }

    /// Prepares the same for a run that fails before it has a Plan.
    pub(crate) fn describe_request(&mut self, host: &Host, image: &str, argv: Vec<String>) {
        if !self.is_wanted() {
            return;
        }
        let allocation = host.allocation.as_ref();
        self.start = Some(Box::new(Start {
            identity: identity(host),
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            argv,
            image: ImageFacts {
                reference: image.to_owned(),
                manifest_digest: None,
                rootfs_digest: UNVERIFIED.to_owned(),
            },
            plan: serde_json::Value::Null,
            phases: self.phases.recorded(),
            n_local_tasks: allocation.and_then(|allocation| allocation.tasks_on_node).or(Some(1)),
            task: Some(self.task),
            container: None,
        }));
    }

    /// Records how the payload ended.
    pub(crate) fn exit(&mut self, exit: Exit) {
        // Whoever was asked to end while it waited for others has none yet.
        self.write_start();
        let exit = recorded(exit);
        // A shell around the victim reports 128 + 9.
        let killed = matches!(exit, RecordedExit::Signal(SIGKILL) | RecordedExit::Code(KILLED));
        let seen = self.step_cgroup.as_deref().filter(|_| killed);
        if let Some(evidence) = seen.and_then(|step| out_of_memory(Path::new(MOUNTED), step, self.task.local))
        {
            self.write(EventKind::Observed { cause: Cause::Oom, evidence });
        }
        self.write(EventKind::TaskExit { task: self.task, exit });
    }

    /// How this process is to end after a payload that ended so, which was recorded. Where one task of several
    /// dies by KILL without a record that its payload did, it was killed itself, and the whole step ends. So a
    /// payload's death by KILL that could not be recorded is told as a shell tells it.
    pub(crate) fn told(&self, exit: Exit) -> Exit {
        let unrecorded = self.journal.is_none() && self.has_others;
        if unrecorded && exit == Exit::Signal(SIGKILL) { Exit::Code(KILLED) } else { exit }
    }

    /// Whether somebody must stay to tell a killed payload from a killed process of ours.
    pub(crate) fn must_tell(&self) -> bool {
        self.has_others
    }

    /// Records that the payload was not started, or was lost.
    pub(crate) fn error(&mut self, error: &EngineError) {
        self.failure(error.class(), error.to_string(), error.kind());
    }

    /// Records a failure that is not the engine's own, and how this process is about to end after it.
    pub(crate) fn failure(&mut self, class: EngineClass, message: String, kind: FailureKind) {
        self.write_start();
        self.write(EventKind::EngineError { class, message, task: Some(self.task) });
        let exit = RecordedExit::Code(kind.status(self.personality).into());
        self.write(EventKind::TaskExit { task: self.task, exit });
    }

    /// Writes the first event, for what is known to come to nothing.
    pub(crate) fn begin(&mut self) {
        self.write_start();
    }

    /// Records that this process, which was asked to end while there was no payload, ends as it would have done.
    pub(crate) fn interrupted(&mut self, signal: &SignalInfo) {
        let exit = RecordedExit::Signal(signal.signal);
        self.write(EventKind::TaskExit { task: self.task, exit });
    }

    /// Writes the first event, unless that is done.
    fn write_start(&mut self) {
        let Some(mut start) = self.start.take() else { return };
        if let Some(plan) = self.plan.take() {
            start.plan = serde_json::to_value(plan).unwrap_or_default();
        }
        self.write(EventKind::Start(start));
    }

    fn write(&mut self, kind: EventKind) {
        if let Some((directory, id)) = self.place.take() {
            self.journal = Journal::open(&directory, &id).ok();
        }
        let Some(journal) = &self.journal else { return };
        let event = Event { schema: SCHEMA, run: self.run.clone(), time_ns: now_ns(), kind };
        // A full disk or a limit must not fail a job; the reader shows the gap as incomplete.
        if journal.append(&event).is_err() {
            self.journal = None;
        }
    }
}

fn recorded(exit: Exit) -> RecordedExit {
    match exit {
        Exit::Code(code) => RecordedExit::Code(code),
        Exit::Signal(signal) => RecordedExit::Signal(signal),
    }
}

/// Out-of-memory kills end a process with this signal.
const SIGKILL: i32 = 9;

/// What a shell makes of it.
const KILLED: i32 = 128 + SIGKILL;

impl Observer for Recorder {
    fn phase(&mut self, name: &'static str) {
        self.phases.end(name);
    }

    fn met(&mut self, run: &str, leads: bool) {
        run.clone_into(&mut self.run);
        if leads {
            self.write_start();
        }
        self.start = None;
    }

    fn started(&mut self, pid: i32) {
        self.phases.end("start");
        let pid = u32::try_from(pid).unwrap_or(0);
        self.write(EventKind::TaskStart { task: self.task, pid, phases: self.phases.recorded() });
    }

    fn signal(&mut self, info: &SignalInfo) {
        let sender = (!info.from_kernel)
            .then(|| Sender { pid: u32::try_from(info.sender).unwrap_or(0), uid: info.sender_uid });
        self.write(EventKind::TaskSignal { task: self.task, signal: info.signal, sender });
    }
}

/// Parts of names that variables with secrets have.
const SECRET: [&str; 11] = [
    "TOKEN",
    "SECRET",
    "PASSWD",
    "PASSWORD",
    "PASSPHRASE",
    "CREDENTIAL",
    "PRIVATE_KEY",
    "API_KEY",
    "APIKEY",
    "_PWD",
    "ACCESS_KEY",
];

/// The Plan as it may be kept: records live long, and get copied into reports.
fn without_secrets(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for entry in &mut plan.spec.process.env {
        let Some(end) = entry.as_bytes().iter().position(|byte| *byte == b'=') else { continue };
        let name = String::from_utf8_lossy(&entry.as_bytes()[..end]).into_owned();
        let upper = name.to_ascii_uppercase();
        let value = String::from_utf8_lossy(&entry.as_bytes()[end + 1..]).into_owned();
        if SECRET.iter().any(|part| upper.contains(part)) || has_user_info(&value) {
            *entry = Text::from(format!("{name}=[redacted]"));
        }
    }
    plan
}

/// Tells whether a value is a URL with a password in it.
fn has_user_info(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

/// The record's name, and this task's place in it.
pub(crate) fn name(host: &Host) -> (Option<RecordId>, TaskRef) {
    let alone = TaskRef { rank: 0, local: 0 };
    let local = || RecordId::local(now_ns(), std::process::id(), &host.hostname).ok();
    let Some(allocation) = &host.allocation else { return (local(), alone) };
    let task =
        allocation.task.map_or(alone, |task| TaskRef { rank: task.proc_id.0, local: task.local_rank.0 });
    let (Some(step), Some(node)) = (allocation.step, &allocation.node) else { return (local(), task) };
    let id = RecordId::step(allocation.cluster.as_deref(), allocation.job.0, &step.to_string(), node);
    (id.ok(), task)
}

fn identity(host: &Host) -> Identity {
    let allocation = host.allocation.as_ref();
    Identity {
        cluster: allocation.and_then(|allocation| allocation.cluster.clone()),
        job: allocation.map(|allocation| allocation.job.0),
        step: allocation.and_then(|allocation| allocation.step).map(|step| step.to_string()),
        node: allocation.and_then(|allocation| allocation.node.clone()),
        host: host.hostname.clone(),
        uid: host.user.uid,
        user: Some(host.user.name.clone()),
        account: allocation.and_then(|allocation| allocation.account.clone()),
        partition: allocation.and_then(|allocation| allocation.partition.clone()),
        restarts: allocation.map_or(0, |allocation| allocation.restart_count),
    }
}

/// Where systems mount control groups.
const MOUNTED: &str = "/sys/fs/cgroup";

/// Looks for kills in the memory cgroups of the step. Version 2 counts in a group what happens below it
/// (Documentation/admin-guide/cgroup-v2.rst, `memory.events`); version 1 counts it where the victim was: Slurm gives each
/// task a group of its own there.
fn out_of_memory(mounted: &Path, step_cgroup: &str, local_task: u32) -> Option<String> {
    let step = step_cgroup.trim_start_matches('/');
    let (v1, v2) = (mounted.join("memory"), mounted);
    let candidates = [
        (v1.join(step).join(format!("task_{local_task}")), "memory.oom_control", "task"),
        (v1.join(step), "memory.oom_control", "step"),
        (v2.join(step), "memory.events", "step"),
    ];
    candidates.iter().find_map(|(group, file, of)| {
        let text = std::fs::read_to_string(group.join(file)).ok()?;
        let count: u64 = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()?;
        (count > 0).then(|| format!("{file} of the {of}: oom_kill {count}"))
    })
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Files as a node with version 1 or 2 has them, of which `kills` are those of interest.
    fn tree(groups: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let mounted = tempfile::tempdir().unwrap();
        for (group, file, kills) in groups {
            let directory = mounted.path().join(group);
            fs::create_dir_all(&directory).unwrap();
            let text = match *file {
                "memory.events" => {
                    format!("low 0\nhigh 0\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 0\n")
                }
                _ => format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"),
            };
            fs::write(directory.join(file), text).unwrap();
        }
        mounted
    }

    #[test]
    fn kills_for_memory_are_found_in_both_versions() {
        const V1: &str = "/slurm_n1/uid_1001/job_5/step_0";
        const V2: &str = "/system.slice/n1_slurmstepd.scope/job_5/step_0";
        // Since Slurm 26.05.
        const SLUID: &str = "/system.slice/slurmstepd.scope/s8FXKTA79XAR00/step_0";
        let v1 = |group: &str, kills| (format!("memory{V1}{group}"), "memory.oom_control", kills);
        let v2 = |step: &str, group: &str, kills| {
            (format!("{}{group}", step.trim_start_matches('/')), "memory.events", kills)
        };
        for (step, groups, wanted) in [
            (
                V1,
                vec![v1("/task_0", 0), v1("/task_1", 2), v1("", 0)],
                Some("memory.oom_control of the task: oom_kill 2"),
            ),
            // Another task's, in a group of its own.
            (V1, vec![v1("/task_0", 2), v1("/task_1", 0), v1("", 0)], None),
            (V1, vec![v1("", 1)], Some("memory.oom_control of the step: oom_kill 1")),
            // What happens in a task's group is counted in the step's.
            (
                V2,
                vec![v2(V2, "", 1), v2(V2, "/user", 1), v2(V2, "/user/task_1", 1)],
                Some("memory.events of the step: oom_kill 1"),
            ),
            (V2, vec![v2(V2, "", 0), v2(V2, "/slurm", 0)], None),
            (SLUID, vec![v2(SLUID, "", 3)], Some("memory.events of the step: oom_kill 3")),
            (SLUID, vec![v2(V2, "", 3)], None),
            (V2, vec![], None),
        ] {
            let groups: Vec<(&str, &str, u32)> =
                groups.iter().map(|(group, file, kills)| (group.as_str(), *file, *kills)).collect();
            let mounted = tree(&groups);
            assert_eq!(out_of_memory(mounted.path(), step, 1).as_deref(), wanted, "{step} {groups:?}");
        }
    }
}
