//! From events to a record.
//!
//! Events of several processes arrive in the order of their writes, which need not be the order of
//! their times. Folding therefore depends on what was said and not on where in the file, except
//! that for two ends of one task the later line counts. A signal explains a death only if it came
//! from root (Slurm's daemons) and the job is not root's own.

use std::collections::{BTreeMap, BTreeSet};

use crate::class::{EngineClass, OutcomeClass};
use crate::event::{Cause, Event, EventKind, Exit, SCHEMA, SavedFile, TaskRef};
use crate::record::{EngineError, Outcome, Record, SignalSeen, Task};
use crate::runs::joined;

/// Tasks kept per run. A node has far fewer; a damaged journal could claim any number.
const MAX_TASKS: usize = 1 << 16;

/// Signals kept per task; a payload may be sent thousands, and the first ones tell.
const MAX_SIGNALS: usize = 64;

/// Engine errors kept per run, and saved files.
const MAX_ERRORS: usize = 1024;

/// By what a failure is explained that Slurm or the kernel has brought about, worst first.
const EXPLAINED: [(Cause, OutcomeClass); 6] = [
    (Cause::Oom, OutcomeClass::Oom),
    (Cause::TimeLimit, OutcomeClass::TimeLimit),
    (Cause::NodeFail, OutcomeClass::NodeFail),
    (Cause::Preempted, OutcomeClass::Preempted),
    (Cause::Requeued, OutcomeClass::Requeued),
    (Cause::Cancelled, OutcomeClass::Cancelled),
];

/// Linux's numbers, the same on all its architectures that Slurm runs on.
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Makes one record for each run named in the events, in the order of first mention. Runs that are parts of one run of
/// a step, because its tasks shared no container or failed before they met, become one record.
pub fn fold_runs(events: &[Event]) -> Vec<Record> {
    joined(events).into_iter().map(fold).collect()
}

/// Makes the record of one run.
pub fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Record {
    let mut state = Fold::default();
    for event in events {
        state.add(event);
    }
    state.finish()
}

#[derive(Default)]
struct Fold {
    run: Option<String>,
    start: Option<crate::event::Start>,
    times: Option<(u64, u64)>,
    tasks: BTreeMap<(u32, u32), Task>,
    errors: Vec<EngineError>,
    observed: Vec<(Cause, String)>,
    saved: Vec<SavedFile>,
    /// Where to the tasks save that have not ended since.
    saving: BTreeMap<TaskRef, String>,
}

/// A signal by which Slurm ends a task.
fn is_end_by_root(seen: &SignalSeen) -> bool {
    matches!(seen.signal, SIGTERM | SIGKILL) && seen.sender.is_some_and(|sender| sender.uid == 0)
}

/// Whether a task lost its container because Slurm was ending it: after the warning KILL takes all processes, one after
/// the other, and who is taken a little later may see that another one has gone.
fn is_of_the_end(error: &EngineError, task: &Task, root_job: bool) -> bool {
    let told = |seen: &SignalSeen| is_end_by_root(seen) && seen.time_ns <= error.time_ns;
    !root_job && error.class == EngineClass::ServerLost && task.signals.iter().any(told)
}

impl Fold {
    fn add(&mut self, event: &Event) {
        self.run.get_or_insert_with(|| event.run.clone());
        let time_ns = event.time_ns;
        let (first, last) = self.times.unwrap_or((time_ns, time_ns));
        self.times = Some((first.min(time_ns), last.max(time_ns)));
        match &event.kind {
            // Ranks that raced to set up may each say so; they agree, or they would not share. One that failed
            // before it had a Plan knows less than the others.
            EventKind::Start(start) => {
                // It may be killed before it says more.
                if let Some(task) = start.task {
                    self.task(task);
                }
                let known = self.start.get_or_insert_with(|| (**start).clone());
                if known.plan.is_null() && !start.plan.is_null() {
                    known.clone_from(start);
                }
            }
            EventKind::TaskStart { task, pid, phases } => {
                if let Some(entry) = self.task(*task) {
                    entry.pid = Some(*pid);
                    entry.started_ns = Some(time_ns);
                    entry.phases.clone_from(phases);
                }
            }
            EventKind::TaskSignal { task, signal, sender } => {
                let seen = SignalSeen { time_ns, signal: *signal, sender: *sender };
                if let Some(entry) = self.task(*task).filter(|entry| entry.signals.len() < MAX_SIGNALS) {
                    entry.signals.push(seen);
                }
            }
            EventKind::TaskExit { task, exit } => {
                self.saving.remove(task);
                if let Some(entry) = self.task(*task) {
                    entry.exit = Some(*exit);
                    entry.ended_ns = Some(time_ns);
                }
            }
            EventKind::Saving { task, exit, path } => {
                // Where lines are out of order the end counts.
                if let Some(entry) = self.task(*task).filter(|entry| entry.ended_ns.is_none()) {
                    entry.exit = Some(*exit);
                    self.saving.insert(*task, path.clone());
                }
            }
            EventKind::Saved { task, file } => {
                self.task(*task);
                if self.saved.len() < MAX_ERRORS {
                    self.saved.push(file.clone());
                }
            }
            EventKind::Observed { cause, evidence } => {
                if self.observed.len() < MAX_ERRORS {
                    self.observed.push((*cause, evidence.clone()));
                }
            }
            EventKind::EngineError { class, message, task } => {
                // A task that never entered is a task of the run all the same.
                if let Some(task) = task {
                    self.task(*task);
                }
                if self.errors.len() < MAX_ERRORS {
                    let error =
                        EngineError { time_ns, class: class.clone(), message: message.clone(), task: *task };
                    self.errors.push(error);
                }
            }
            EventKind::Unknown => {}
        }
    }

    fn task(&mut self, task: TaskRef) -> Option<&mut Task> {
        let full = self.tasks.len() >= MAX_TASKS;
        match self.tasks.entry((task.local, task.rank)) {
            std::collections::btree_map::Entry::Vacant(_) if full => None,
            entry => Some(entry.or_insert_with(|| Task {
                task,
                pid: None,
                started_ns: None,
                ended_ns: None,
                phases: Vec::new(),
                signals: Vec::new(),
                exit: None,
                class: OutcomeClass::Incomplete,
            })),
        }
    }

    fn finish(mut self) -> Record {
        let failed: BTreeSet<TaskRef> = self.errors.iter().filter_map(|error| error.task).collect();
        // After a failure of ours nothing of a task comes any more, even where its exit status was not written.
        let over = |task: &&Task| task.ended_ns.is_some() || failed.contains(&task.task);
        let n_over = self.tasks.values().filter(over).count();
        let expected = self.start.as_ref().and_then(|start| start.n_local_tasks);
        let ended = expected.is_some_and(|n| n > 0 && usize::try_from(n).is_ok_and(|n| n_over >= n));

        let root_job = self.start.as_ref().is_some_and(|start| start.identity.uid == 0);
        let mut tasks = std::mem::take(&mut self.tasks);
        for task in tasks.values_mut() {
            task.class = self.classify(task, root_job);
        }
        let tasks: Vec<Task> = tasks.into_values().collect();
        let outcome = self.outcome(&tasks, ended, root_job);
        Record {
            schema: SCHEMA,
            run: self.run.unwrap_or_default(),
            start: self.start,
            started_ns: self.times.map(|(first, _)| first),
            last_ns: self.times.map(|(_, last)| last),
            ended,
            tasks,
            errors: self.errors,
            saved: self.saved,
            outcome,
        }
    }

    fn classify(&self, task: &Task, root_job: bool) -> OutcomeClass {
        let is_own =
            |error: &&EngineError| error.task == Some(task.task) && !is_of_the_end(error, task, root_job);
        if let Some(error) = self.errors.iter().find(is_own) {
            return OutcomeClass::Engine(error.class.clone());
        }
        let failed = match task.exit {
            _ if self.saving.contains_key(&task.task) => return OutcomeClass::Incomplete,
            None => return OutcomeClass::Incomplete,
            Some(Exit::Code(0)) => return OutcomeClass::Ok,
            Some(Exit::Code(_)) => OutcomeClass::AppError,
            Some(Exit::Signal(_)) => OutcomeClass::Signal,
        };
        // The kernel's killer uses SIGKILL, and a shell around the victim reports 128 + 9.
        let killed = matches!(task.exit, Some(Exit::Signal(SIGKILL) | Exit::Code(137)));
        if killed && self.saw(Cause::Oom) {
            return OutcomeClass::Oom;
        }
        // The kernel's killer explains the death of its victim alone.
        if let Some(class) = self.explanation(|cause| cause != Cause::Oom) {
            return class;
        }
        if !root_job && task.signals.iter().any(is_end_by_root) {
            return OutcomeClass::Cancelled;
        }
        failed
    }

    fn saw(&self, cause: Cause) -> bool {
        self.observed.iter().any(|(seen, _)| *seen == cause)
    }

    /// The worst class that was observed, among causes that count.
    fn explanation(&self, counts: impl Fn(Cause) -> bool) -> Option<OutcomeClass> {
        let found = EXPLAINED.into_iter().find(|(cause, _)| counts(*cause) && self.saw(*cause));
        found.map(|(_, class)| class)
    }

    fn outcome(&self, tasks: &[Task], ended: bool, root_job: bool) -> Outcome {
        let of_the_end = |error: &&EngineError| {
            let task = tasks.iter().find(|task| Some(task.task) == error.task);
            task.is_some_and(|task| is_of_the_end(error, task, root_job))
        };
        let engine = self.errors.iter().filter(|error| !of_the_end(error)).map(|error| Outcome {
            class: OutcomeClass::Engine(error.class.clone()),
            task: error.task,
            exit: error
                .task
                .and_then(|of| tasks.iter().find(|task| task.task == of))
                .and_then(|task| task.exit),
            message: Some(error.message.clone()),
        });
        // The first error is the cause, later ones follow from it.
        if let Some(outcome) = engine.into_iter().next() {
            return outcome;
        }
        // Among equally bad tasks the lowest rank speaks.
        let worst = tasks.iter().reduce(|worst, task| if task.class > worst.class { task } else { worst });
        let by_task = worst.map(|task| Outcome {
            class: task.class.clone(),
            task: Some(task.task),
            exit: task.exit,
            message: self.evidence(&task.class),
        });
        if let Some(outcome) = by_task.clone().filter(|_| ended) {
            return outcome;
        }
        // Killed at the limit, the engine itself may have had no time to say goodbye.
        let class = self.explanation(|_| true).unwrap_or(OutcomeClass::Incomplete);
        match by_task {
            Some(outcome) if outcome.class > class => outcome,
            _ => {
                let said: Vec<String> = self.evidence(&class).into_iter().chain(self.unsaved()).collect();
                let message = Some(said.join("; ")).filter(|message| !message.is_empty());
                Outcome { task: None, exit: None, message, class }
            }
        }
    }

    /// What was not said to be saved by who was about to save it.
    fn unsaved(&self) -> Option<String> {
        let path = self.saving.values().next()?;
        Some(format!("the end came while the container was being saved to {path}"))
    }

    fn evidence(&self, class: &OutcomeClass) -> Option<String> {
        let (cause, _) = EXPLAINED.into_iter().find(|(_, explained)| explained == class)?;
        self.observed.iter().find(|(seen, _)| *seen == cause).map(|(_, evidence)| evidence.clone())
    }
}

#[cfg(test)]
mod tests;
