//! The record: what a journal's events add up to.

use serde::{Deserialize, Serialize};

use crate::class::{EngineClass, OutcomeClass};
use crate::event::{Exit, Phase, SavedFile, Sender, Start, TaskRef};

/// One run of a container on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`crate::SCHEMA`] of the program that folded it.
    pub schema: u32,
    /// Name of the run within its step and node.
    pub run: String,
    /// What the run is; absent if the engine failed before it knew.
    pub start: Option<Start>,
    /// Time of the first event, in nanoseconds since 1970.
    pub started_ns: Option<u64>,
    /// Time of the last event, in nanoseconds since 1970.
    pub last_ns: Option<u64>,
    /// Whether the run is over, as far as the journal tells.
    pub ended: bool,
    /// The tasks, by local rank.
    pub tasks: Vec<Task>,
    /// What the engine reported.
    pub errors: Vec<EngineError>,
    /// What was saved of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saved: Vec<SavedFile>,
    /// How it ended.
    pub outcome: Outcome,
}

/// One task of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which.
    pub task: TaskRef,
    /// Its process id on the host.
    pub pid: Option<u32>,
    /// When it entered the container, in nanoseconds since 1970.
    pub started_ns: Option<u64>,
    /// When it ended.
    pub ended_ns: Option<u64>,
    /// What its start spent time on.
    pub phases: Vec<Phase>,
    /// Signals received on its behalf.
    pub signals: Vec<SignalSeen>,
    /// How it ended, if that was seen.
    pub exit: Option<Exit>,
    /// Its class.
    pub class: OutcomeClass,
}

/// A signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalSeen {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its number.
    pub signal: i32,
    /// Who sent it.
    pub sender: Option<Sender>,
}

/// A failure of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineError {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The class.
    pub class: EngineClass,
    /// One line for people.
    pub message: String,
    /// The task it concerns; absent if it concerns all.
    pub task: Option<TaskRef>,
}

/// How a run ended: its worst task decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The class.
    pub class: OutcomeClass,
    /// The task that decided, if one did.
    pub task: Option<TaskRef>,
    /// How that task ended.
    pub exit: Option<Exit>,
    /// The engine's message, or the evidence for the class.
    pub message: Option<String>,
}
