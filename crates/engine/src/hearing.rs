//! Requests to end that come before there is a container, while another process fetches or extracts the image.
//!
//! They are recorded when they come and not when this process ends: it gives the other one a moment to clean up, and
//! whoever asks may kill it meanwhile. A task that was told to end and did not say so would count as lost.

use std::cell::RefCell;

use situla_runtime::{Observer, SignalInfo};

use crate::host::Host;
use crate::journal::{Phases, Recorder};
use crate::prepare::texts;
use crate::request::RunRequest;

/// Writes such requests down.
#[derive(Debug)]
pub(crate) struct Hearing<'a> {
    of: Option<(&'a Host, &'a RunRequest)>,
    recorder: RefCell<Option<Recorder>>,
}

impl<'a> Hearing<'a> {
    /// For a run.
    pub(crate) fn of(host: &'a Host, request: &'a RunRequest) -> Self {
        Hearing { of: Some((host, request)), recorder: RefCell::default() }
    }

    /// For a Plan, of which nothing is recorded.
    pub(crate) fn nobody() -> Self {
        Hearing { of: None, recorder: RefCell::default() }
    }

    /// Records a signal that came after these phases.
    pub(crate) fn heard(&self, signal: &SignalInfo, phases: &Phases) {
        let Some((host, request)) = self.of else { return };
        let mut recorder = self.recorder.borrow_mut();
        let recorder = recorder.get_or_insert_with(|| {
            let mut recorder = Recorder::open(host, request.record, request.personality, phases.clone());
            recorder.describe_request(host, &request.image, texts(request.action.words()));
            recorder.begin();
            recorder
        });
        recorder.signal(signal);
    }

    /// The record that was begun, where there was something to write.
    pub(crate) fn into_recorder(self) -> Option<Recorder> {
        self.recorder.into_inner()
    }
}
