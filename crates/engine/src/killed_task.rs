//! What the death of a task of ours by KILL means, by the user's own record.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use situla_records::Record;

use crate::host::Host;
use crate::step_end::OwnRecord;

/// What is known of a task that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// Its payload, which ended by itself before; or the task had been told to end.
    InOrder,
    /// The process of ours that waited for the payload, or that was about to start it. Or Slurm has
    /// killed the whole step without a warning, which cannot be told from that.
    Lost,
    /// Nothing: there are no records, or they cannot be read, or none could have been written.
    Unknown,
}

/// Signals by which a process is told to end: HUP, INT, QUIT, TERM, XCPU. Others only inform it.
const TELL_TO_END: [i32; 5] = [1, 2, 3, 15, 24];

/// Finds out from the record whether the task that `host` describes, which has died by KILL, was lost.
pub fn judge_killed(host: &Host) -> Killed {
    let Some(own) = OwnRecord::of(host) else { return Killed::Unknown };
    let Some(records) = own.read() else { return Killed::Unknown };
    match records.iter().filter_map(|record| is_over(record, &own)).reduce(|all, one| all && one) {
        Some(true) => Killed::InOrder,
        Some(false) => Killed::Lost,
        // It was killed before it had a record, or could not write one.
        None if can_write(own.directory()) => Killed::Lost,
        None => Killed::Unknown,
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

/// Whether a record could be written now: a full disk or a quota shows at the latest when data is settled.
fn can_write(directory: &Path) -> bool {
    const SIZE: usize = 4096;
    let path = directory.join(format!(".probe-{}", std::process::id()));
    let probe = || {
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        // Gone already, whatever becomes of this process.
        fs::remove_file(&path)?;
        file.write_all(&[0; SIZE])?;
        file.sync_all()
    };
    probe().is_ok()
}
