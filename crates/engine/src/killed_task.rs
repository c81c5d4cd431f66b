//! What the death of a task of ours by KILL means, by the user's own record.

use situla_records::Record;

use crate::host::Host;
use crate::step_end::OwnRecord;

/// What is known of a task that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// Its payload, which ended by itself before; or the task had been told to end. Or it cannot be known: there is a
    /// record, or something in its place, that cannot be read.
    InOrder,
    /// The process of ours that waited for the payload. Or Slurm has killed the whole step without a warning, which
    /// cannot be told from that.
    Lost,
    /// No record knows the task: if it was ours, it was lost, before there was one or where none could be written.
    /// One that ends as a payload that was killed has recorded so before.
    Unrecorded,
}

/// Signals by which a process is told to end: HUP, INT, QUIT, TERM, XCPU. Others only inform it.
const TELL_TO_END: [i32; 5] = [1, 2, 3, 15, 24];

/// Finds out from the record whether the task that `host` describes, which has died by KILL, was lost.
pub fn judge_killed(host: &Host) -> Killed {
    let Some(own) = OwnRecord::of(host) else { return Killed::Unrecorded };
    let Some(records) = own.read() else { return Killed::InOrder };
    match records.iter().filter_map(|record| is_over(record, &own)).reduce(|all, one| all && one) {
        Some(true) => Killed::InOrder,
        Some(false) => Killed::Lost,
        None => Killed::Unrecorded,
    }
}

/// Whether the task has said how it ended, or was told to end: then it is not lost, even if it had to be
/// killed in the end. `None` of a record that does not know the task.
fn is_over(record: &Record, own: &OwnRecord) -> Option<bool> {
    let mut of_task = record.tasks.iter().filter(|known| known.task == own.task).peekable();
    of_task.peek()?;
    let exited = of_task.any(|known| {
        known.exit.is_some() || known.signals.iter().any(|seen| TELL_TO_END.contains(&seen.signal))
    });
    Some(exited || record.errors.iter().any(|error| error.task == Some(own.task)))
}
