//! Which events belong to one record.
//!
//! Tasks that meet use one name for their run. Those that share nothing, or fail before they meet, each have a name of
//! their own, though the user started one container on all tasks of the step: a step and node shall have one record of
//! it. The names alone do not tell, so this is inferred: runs of a numbered step, by the same user, of the same image,
//! with the same number of tasks expected on the node and no task in common, are one, as long as tasks are missing. Jobs
//! that are requeued use the names of their steps again, so the number of restarts is the same too.
//! What a script of every task starts one after another stays apart, because it has the same tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::event::{Event, EventKind, Start, TaskRef};

/// Incomplete records to which a run may be added, per image. One task can be so many containers ahead of the others.
const MAX_OPEN: usize = 1024;

/// The events of one name.
#[derive(Default)]
struct Run<'a> {
    /// With their places in the journal.
    events: Vec<(usize, &'a Event)>,
    /// What parts of one run have in common; absent where the run stands for itself.
    common: Option<Common<'a>>,
    tasks: BTreeSet<TaskRef>,
}

/// What parts of one run have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Common<'a> {
    uid: u32,
    restarts: u32,
    image: &'a str,
    n_tasks: u32,
}

impl Run<'_> {
    fn is_complete(&self) -> bool {
        let expected = self.common.and_then(|common| usize::try_from(common.n_tasks).ok());
        expected.is_none_or(|expected| self.tasks.len() >= expected)
    }
}

/// Gives the events of each record, in the order of the journal; the records in the order of first mention.
pub(crate) fn joined(events: &[Event]) -> Vec<Vec<&Event>> {
    let mut records: Vec<Run<'_>> = Vec::new();
    let mut open: BTreeMap<Common<'_>, VecDeque<usize>> = BTreeMap::new();
    for run in named(events) {
        // Of which task it is must be known, or two runs of one task could become one.
        let Some(common) = run.common.filter(|_| !run.tasks.is_empty()) else {
            records.push(run);
            continue;
        };
        let open = open.entry(common).or_default();
        let fits =
            |&&index: &&usize| records.get(index).is_some_and(|record| record.tasks.is_disjoint(&run.tasks));
        let found = open.iter().find(fits).copied();
        let index = found.unwrap_or(records.len());
        match records.get_mut(index) {
            Some(record) => {
                record.events.extend(run.events);
                record.tasks.extend(run.tasks);
            }
            None => {
                records.push(run);
                open.push_back(index);
            }
        }
        open.retain(|&index| records.get(index).is_some_and(|record| !record.is_complete()));
        if open.len() > MAX_OPEN {
            open.pop_front();
        }
    }
    records
        .into_iter()
        .map(|mut record| {
            record.events.sort_by_key(|(place, _)| *place);
            record.events.into_iter().map(|(_, event)| event).collect()
        })
        .collect()
}

/// The runs by their names, in the order of first mention.
fn named(events: &[Event]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let index = *places.entry(&event.run).or_insert(runs.len());
        if index == runs.len() {
            runs.push(Run::default());
        }
        let Some(run) = runs.get_mut(index) else { continue };
        run.events.push((place, event));
        run.tasks.extend(task_of(&event.kind));
        if run.common.is_none() {
            run.common = common(&event.kind);
        }
    }
    runs
}

fn task_of(kind: &EventKind) -> Option<TaskRef> {
    match kind {
        EventKind::TaskStart { task, .. }
        | EventKind::TaskSignal { task, .. }
        | EventKind::TaskExit { task, .. }
        | EventKind::Saving { task, .. }
        | EventKind::Saved { task, .. }
        | EventKind::EngineError { task: Some(task), .. } => Some(*task),
        EventKind::Start(start) => start.task,
        _ => None,
    }
}

fn common(kind: &EventKind) -> Option<Common<'_>> {
    let EventKind::Start(start) = kind else { return None };
    // A batch script is one task that starts what it likes.
    let is_numbered = |step: &String| !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit());
    start.identity.step.as_ref().filter(|step| is_numbered(step))?;
    let n_tasks = start.n_local_tasks?;
    let Start { identity, image, .. } = &**start;
    Some(Common { uid: identity.uid, restarts: identity.restarts, image: &image.reference, n_tasks })
}

#[cfg(test)]
mod tests;
