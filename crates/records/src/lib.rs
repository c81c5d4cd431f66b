//! Run records: what happened, one journal per step and node.
//!
//! A journal is a file of JSON lines that any process of the step appends to; a [`Record`] is what
//! [`fold`] makes of its events. Two rules shape this crate. Monitoring never fails a job: every
//! function gives an error that the caller may count and forget. And a crash loses at most the line
//! being written: each event is one `write(2)` to a file opened with `O_APPEND`, nothing is rewritten,
//! and readers skip what they cannot read and say how much that was.
//!
//! The layout is published in `docs/formats/record.md` and `record.schema.json`.

mod class;
mod closed;
mod event;
mod fold;
mod id;
mod journal;
mod record;
mod runs;

pub use class::{EngineClass, OutcomeClass, UnknownClass};
pub use closed::load_closed;
pub use event::{
    Cause, ContainerFacts, Event, EventKind, Exit, Identity, ImageFacts, Phase, SCHEMA, SavedFile, Sender,
    Start, TaskRef, UNVERIFIED,
};
pub use fold::{fold, fold_runs};
pub use id::{IdError, RecordId};
pub use journal::{
    Entry, Journal, JournalError, Loaded, MAX_EVENT_BYTES, MAX_JOURNAL_BYTES, MAX_LISTED, list, load,
    read_events,
};
pub use record::{EngineError, Outcome, Record, SignalSeen, Task};
