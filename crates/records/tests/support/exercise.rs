//! Journals that may hold anything.
//!
//! The invariants, here and in the fuzz target: every line that is not empty is an event or is counted as
//! unreadable, unless one says that it is of a newer layout; and whatever events there are, folding them gives records that can be written and read.

use situla_records::{JournalError, Record, SCHEMA, fold_runs, read_events};

/// Reads a journal and folds it; gives the number of its events, and 0 where it is refused.
pub(crate) fn journal(bytes: &[u8]) -> usize {
    let (events, unreadable) = match read_events(bytes) {
        Ok(read) => read,
        Err(JournalError::NewerSchema { schema }) if schema > SCHEMA => return 0,
        Err(error) => panic!("{error}"),
    };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(u64::try_from(events.len()).ok(), u64::try_from(lines).ok().map(|lines| lines - unreadable));
    let records = fold_runs(&events);
    assert!(records.len() <= events.len());
    let written = serde_json::to_vec(&records).expect("records can be written");
    let again: Vec<Record> = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, records);
    events.len()
}
