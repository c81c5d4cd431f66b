//! What happens in a run, for a program that watches it while it happens.
//!
//! A record is for afterwards and for everybody; these events are for whoever has started the run, and they
//! come from the same source. Their published form is `docs/formats/events.schema.json`.

use serde::Serialize;
use situla_plan::{Plan, RootfsIdentity, Rung, Share};
use situla_records::{Exit as RecordedExit, Phase, Sender, TaskRef};
use situla_runtime::{Exit, Observer, SignalInfo};

use crate::error::EngineError;
use crate::journal::{Recorder, now_ns};

/// Version of the events. It grows when a reader of the old ones would conclude something wrong.
pub const EVENT_SCHEMA: u32 = 1;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[non_exhaustive]
pub enum RunEvent {
    /// It is decided what will be done.
    Planned {
        /// The image as the user named it.
        image: String,
        /// Digest of its manifest, where it is known.
        manifest_digest: Option<String>,
        /// Digest of the root file system, where somebody has verified it.
        rootfs_digest: Option<String>,
        /// How the root is mounted.
        rung: Rung,
        /// With whom the container is shared: `nobody`, `step` or `instance`.
        share: &'static str,
        /// The command line of the payload.
        argv: Vec<String>,
        /// What the policy warns of.
        warnings: Vec<String>,
    },
    /// A phase of the start has ended.
    Phase(Phase),
    /// The payload runs.
    Started {
        /// Its number on the host.
        pid: u32,
    },
    /// A signal has come for the payload and is passed on.
    Signal {
        /// Its number.
        signal: i32,
        /// Who has sent it, where that was a process.
        sender: Option<Sender>,
    },
    /// The payload has ended.
    Exit {
        /// How.
        exit: RecordedExit,
    },
    /// The payload was not started, or was lost: nothing comes after this.
    Error {
        /// The class under which records count it, without `engine-`.
        class: String,
        /// What went wrong, with causes.
        message: String,
        /// What can be done.
        remedy: Option<String>,
        /// The status with which this program ends.
        status: u8,
    },
}

/// An event with what all have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventLine {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    /// The run, as records name it; empty where an error came before there was one.
    pub run: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// This task in its step.
    pub task: TaskRef,
    /// What has happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

impl EventLine {
    /// An error from before there was a run.
    pub fn early(event: RunEvent) -> Self {
        let task = TaskRef { rank: 0, local: 0 };
        EventLine { schema: EVENT_SCHEMA, run: String::new(), time_ns: now_ns(), task, event }
    }
}

/// Hears what happens. It is called between a start's steps, so it must not wait for long.
pub trait Listener {
    /// Something has happened.
    fn hear(&mut self, line: &EventLine);
}

/// A recorder that tells a listener as well.
pub(crate) struct Heard<'a> {
    pub(crate) recorder: Recorder,
    pub(crate) listener: Option<&'a mut dyn Listener>,
}

impl Heard<'_> {
    fn tell(&mut self, event: RunEvent) {
        let Some(listener) = &mut self.listener else { return };
        let (run, task) = (self.recorder.run().to_owned(), self.recorder.task());
        listener.hear(&EventLine { schema: EVENT_SCHEMA, run, time_ns: now_ns(), task, event });
    }

    fn tell_last_phase(&mut self) {
        if self.listener.is_some()
            && let Some(phase) = self.recorder.recorded_phases().pop()
        {
            self.tell(RunEvent::Phase(phase));
        }
    }

    /// Tells what was decided before anything is done.
    pub(crate) fn planned(&mut self, plan: &Plan, warnings: &[String]) {
        if self.listener.is_none() {
            return;
        }
        for phase in self.recorder.recorded_phases() {
            self.tell(RunEvent::Phase(phase));
        }
        let share = match &plan.share {
            Share::Nobody { .. } => "nobody",
            Share::Step { .. } => "step",
            Share::Instance { .. } => "instance",
        };
        let rootfs_digest = match &plan.image.rootfs {
            RootfsIdentity::Verified(digest) => Some(digest.clone()),
            RootfsIdentity::Unverified => None,
        };
        let argv = plan.spec.process.args.iter().map(|word| word.as_os_str().to_string_lossy().into_owned());
        self.tell(RunEvent::Planned {
            image: plan.image.requested.clone(),
            manifest_digest: plan.image.manifest_digest.clone(),
            rootfs_digest,
            rung: plan.rootfs.rung,
            share,
            argv: argv.collect(),
            warnings: warnings.to_vec(),
        });
    }

    /// Records why there is no payload. Whoever tells the listener knows how this program ends.
    pub(crate) fn error(&mut self, error: &EngineError) {
        self.recorder.error(error);
    }

    /// Records and tells how the payload has ended, and gives how this process is to end.
    pub(crate) fn exit(&mut self, exit: Exit) -> Exit {
        self.recorder.exit(exit);
        let recorded = match exit {
            Exit::Code(code) => RecordedExit::Code(code),
            Exit::Signal(signal) => RecordedExit::Signal(signal),
        };
        self.tell(RunEvent::Exit { exit: recorded });
        self.recorder.told(exit)
    }
}

impl Observer for Heard<'_> {
    fn phase(&mut self, name: &'static str) {
        self.recorder.phase(name);
        self.tell_last_phase();
    }

    fn met(&mut self, run: &str, leads: bool) {
        self.recorder.met(run, leads);
    }

    fn started(&mut self, pid: i32) {
        self.recorder.started(pid);
        self.tell_last_phase();
        self.tell(RunEvent::Started { pid: u32::try_from(pid).unwrap_or(0) });
    }

    fn signal(&mut self, info: &SignalInfo) {
        self.recorder.signal(info);
        let sender = (!info.from_kernel)
            .then(|| Sender { pid: u32::try_from(info.sender).unwrap_or(0), uid: info.sender_uid });
        self.tell(RunEvent::Signal { signal: info.signal, sender });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_flat() {
        let line = |event| serde_json::to_value(EventLine { time_ns: 7, ..EventLine::early(event) }).unwrap();
        let common = |more: serde_json::Value| {
            let mut value = serde_json::json!({
                "schema": 1, "run": "", "time_ns": 7, "task": { "rank": 0, "local": 0 },
            });
            let fields = more.as_object().unwrap().clone();
            value.as_object_mut().unwrap().extend(fields);
            value
        };
        for (event, want) in [
            (RunEvent::Started { pid: 9 }, serde_json::json!({ "event": "started", "pid": 9 })),
            (
                RunEvent::Exit { exit: RecordedExit::Signal(15) },
                serde_json::json!({ "event": "exit", "exit": { "signal": 15 } }),
            ),
            (
                RunEvent::Phase(Phase { name: "plan".to_owned(), start_ns: 1, end_ns: 2 }),
                serde_json::json!({ "event": "phase", "name": "plan", "start_ns": 1, "end_ns": 2 }),
            ),
        ] {
            assert_eq!(line(event), common(want));
        }
    }
}
