//! The events of a journal.
//!
//! Readers ignore fields they do not know and count event types they do not know, so that a journal
//! of a newer version still tells what it can. Fields are only ever added.

use serde::{Deserialize, Serialize};

use crate::class::EngineClass;

/// Version of the layout, written into every event and record. It grows when a reader of an older
/// version would draw a wrong conclusion; an added field is no such change.
pub const SCHEMA: u32 = 1;

/// What stands for the digest of a rootfs that nobody has hashed yet.
pub const UNVERIFIED: &str = "unverified";

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Which run of this step it belongs to: a batch script may start containers one after another
    /// or at the same time. Ranks that share a container use the same name.
    #[serde(default)]
    pub run: String,
    /// When, in nanoseconds since 1970 (UTC).
    pub time_ns: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The container is about to be set up, or was.
    Start(Box<Start>),
    /// A task enters the container.
    TaskStart {
        /// The task.
        task: TaskRef,
        /// Its process id on the host.
        pid: u32,
        /// What this task spent time on.
        #[serde(default)]
        phases: Vec<Phase>,
    },
    /// A signal was received on behalf of a task.
    TaskSignal {
        /// The task.
        task: TaskRef,
        /// The signal's number.
        signal: i32,
        /// Who sent it, if the kernel told.
        sender: Option<Sender>,
    },
    /// A task ended.
    TaskExit {
        /// The task.
        task: TaskRef,
        /// How.
        exit: Exit,
    },
    /// A task's payload has ended, and before the task ends the files of its container are written to an image.
    Saving {
        /// The task that does it.
        task: TaskRef,
        /// How its payload ended.
        exit: Exit,
        /// The image's path on the node.
        path: String,
    },
    /// The files of the container were written to an image.
    Saved {
        /// The task that did it.
        task: TaskRef,
        /// The image.
        #[serde(flatten)]
        file: SavedFile,
    },
    /// Something was seen that explains how tasks end.
    Observed {
        /// What.
        cause: Cause,
        /// Where it was read, such as `memory.events oom_kill 1`.
        evidence: String,
    },
    /// The engine failed.
    EngineError {
        /// The class.
        class: EngineClass,
        /// One line for people.
        message: String,
        /// The task it concerns; absent if it concerns all.
        task: Option<TaskRef>,
    },
    /// An event of a newer version.
    #[serde(other)]
    Unknown,
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Who and where.
    pub identity: Identity,
    /// Version of the engine.
    pub engine: String,
    /// The command line of the payload; bytes that are not UTF-8 are replaced.
    pub argv: Vec<String>,
    /// The image.
    pub image: ImageFacts,
    /// The plan, as the engine printed it.
    #[serde(default)]
    pub plan: serde_json::Value,
    /// What setting up spent time on.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Tasks expected on this node.
    pub n_local_tasks: Option<u32>,
    /// The task that says so; absent in journals of before it was told.
    #[serde(default)]
    pub task: Option<TaskRef>,
    /// The container with a name that the run is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerFacts>,
}

/// A container whose files stay when the run has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// Its name; absent where it is kept for this step alone.
    pub name: Option<String>,
    /// Of which job it is, or `global`.
    pub scope: String,
    /// The step that has made it, as `JOB.STEP`.
    pub made_by: String,
    /// Whether the tasks can write to it.
    pub writable: bool,
}

/// A file that holds what was in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// Its path on the node.
    pub path: String,
    /// Digest of the root filesystem, which is all of the file.
    pub rootfs_digest: String,
    /// Its size.
    pub bytes: u64,
}

/// Who runs, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// Job id; absent outside Slurm.
    pub job: Option<u32>,
    /// Step: a number, `batch`, `interactive` or `extern`.
    pub step: Option<String>,
    /// Slurm's name of the node.
    pub node: Option<String>,
    /// Host name.
    pub host: String,
    /// Numeric user id.
    pub uid: u32,
    /// Login name.
    pub user: Option<String>,
    /// Account charged.
    pub account: Option<String>,
    /// Partition.
    pub partition: Option<String>,
    /// How often the job was requeued before.
    #[serde(default)]
    pub restarts: u32,
}

/// Which image, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// As the user named it.
    pub reference: String,
    /// Digest of the manifest, for images from registries and OCI layouts.
    pub manifest_digest: Option<String>,
    /// Digest of the root filesystem, or [`UNVERIFIED`].
    pub rootfs_digest: String,
}

/// A span of work, in nanoseconds since the engine started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `resolve`, `admit`, `bind`, `setup`, `join` and so on.
    pub name: String,
    /// Begin.
    pub start_ns: u64,
    /// End.
    pub end_ns: u64,
}

/// A task of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskRef {
    /// Rank in the step; zero outside Slurm.
    pub rank: u32,
    /// Rank on this node.
    pub local: u32,
}

/// Who sent a signal, from `siginfo_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Process id, as seen by the receiver; zero if it is in another namespace.
    pub pid: u32,
    /// User id, as seen by the receiver.
    pub uid: u32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With a status.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// An explanation from outside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// The kernel killed something of this step for memory.
    Oom,
    /// Slurm ended the job or step at its time limit.
    TimeLimit,
    /// Somebody cancelled the job or step.
    Cancelled,
    /// The job was put back into the queue.
    Requeued,
    /// The job had to make room for another one.
    Preempted,
    /// A node of the job failed.
    NodeFail,
    /// A cause of a newer version.
    #[serde(other)]
    Unknown,
}
