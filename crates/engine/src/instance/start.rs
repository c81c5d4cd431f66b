//! Starting an instance: one process plans and waits, another one holds.
//!
//! ```text
//! starter: lock, fork holder ──────── hears "ready", says "go" ─────── hears "up": done
//! holder:           builds the container ─ "ready" ─ hears "go" ─ publishes the file ─ "up"
//! ```
//!
//! A starter that goes before it has said "go" takes everything with it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use situla_image::UseMark;
use situla_plan::{RootfsSource, Rung};
use situla_records::EngineClass;
use situla_runtime::{Channel, Observer, SignalInfo, Undisturbed, detach};

use super::error::{InstanceError, InstanceFlaw};
use super::name::InstanceName;
use super::place::{Condition, Instances, failed, open_options, remove_empty};
use super::process::{ProcessRef, realm};
use super::state::{InstanceState, SCHEMA};
use super::stop::parse_signal;
use crate::error::EngineError;
use crate::host::Host;
use crate::journal::Recorder;
use crate::prepare::{Prepared, PreparedParts, prepare};
use crate::request::{InstanceUse, RunRequest};
use crate::resolve::name_anywhere;
use crate::site::Site;

/// From the holder: the container stands and its command runs.
const READY: &[u8] = b"ready";
/// From the starter: it is to stay.
const GO: &[u8] = b"go";
/// From the holder: its file is published.
const UP: &[u8] = b"up";

/// The longest text of an error that is passed on.
const MAX_TEXT: usize = Channel::MAX_MESSAGE / 4;

/// Why the holder could not hold.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    class: String,
    message: String,
    remedy: Option<String>,
}

/// Starts an instance. Warnings of the policy go to `warn` before anything is done.
///
/// # Errors
/// The name is taken, the container cannot be made, or its command cannot be executed. Nothing is left then.
pub fn start(
    mut request: RunRequest,
    name: &InstanceName,
    host: &Host,
    site: &Site,
    warn: &mut dyn FnMut(&str),
) -> Result<InstanceState, InstanceError> {
    let instances = Instances::new(host.instances.clone().ok_or(InstanceError::NoPlace)?);
    // Before anything is fetched. A file that says nothing is replaced, under the lock.
    match expect_free(&instances, name) {
        Ok(_) | Err(InstanceError::Unusable { flaw: InstanceFlaw::Content, .. }) => {}
        Err(error) => return Err(error),
    }
    let key = format!("{}/instance/{}-{}", host.user.uid, std::process::id(), since_1970().as_nanos());
    request.instance = Some(InstanceUse { name: name.to_string(), key: key.clone(), enters: false });
    request.isolation.pid = true;
    let prepared = prepare(&request, host, site)?;
    prepared.warnings().iter().for_each(|warning| warn(warning));
    instances.create()?;
    let _lock = instances.lock()?;
    instances.remove_unusable(name)?;
    instances.remove_pending(name);
    if let Some(ended) = expect_free(&instances, name)? {
        instances.remove(&ended);
    }
    // Whoever interrupts from here on leaves no log: the holder removes what it was given, and is there then.
    let undisturbed = Undisturbed::begin().map_err(EngineError::Runtime)?;
    let [log_out, log_err] = instances.logs(name);
    let open = |path: &PathBuf| {
        let mut options = open_options();
        options.write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path).map_err(failed("write", path))
    };
    let (out, err) = (open(&log_out)?, open(&log_err)?);
    let null = std::path::Path::new("/dev/null");
    let input = std::fs::File::open(null).map_err(failed("open", null))?;
    let stop_signal = prepared.stop_signal().filter(|signal| parse_signal(signal).is_ok()).map(str::to_owned);
    let described = describe(&request, name, key, host, [log_out.clone(), log_err.clone()]);
    let plan = prepared.plan();
    let (RootfsSource::Squashfs { path, .. } | RootfsSource::Directory { path }) = &plan.rootfs.source;
    let tree = (plan.rootfs.rung == Rung::Extracted).then(|| path.as_os_str().into());
    let image_path = prepared.image_path().to_owned();
    let seccomp = plan.spec.linux.seccomp.clone();
    let state = InstanceState { stop_signal, image_path, tree, seccomp, ..described };
    let prepared = prepared.for_another_process();
    let keep = prepared.descriptors();
    let streams = [input.as_fd(), out.as_fd(), err.as_fd()];
    let holding = instances.clone();
    let started =
        detach(streams, &keep, undisturbed, move |channel| hold(prepared, &holding, state, channel))
            .map_err(EngineError::Runtime)
            .map_err(InstanceError::from)
            .and_then(|channel| agree(&channel, name));
    if started.is_err() {
        // The holder may have been killed before it could.
        [&log_out, &log_err].into_iter().for_each(|log| remove_empty(log));
    }
    started?;
    let published = instances.get(name)?;
    published.map(|listed| listed.state).ok_or_else(|| InstanceError::Silent { name: name.to_string() })
}

/// Fails where the name is taken; gives what an instance of that name has left that is no more.
fn expect_free(instances: &Instances, name: &InstanceName) -> Result<Option<InstanceState>, InstanceError> {
    let Some(found) = instances.get(name)? else { return Ok(None) };
    match found.condition {
        Condition::Ended => Ok(Some(found.state)),
        condition => {
            let elsewhere = condition == Condition::Elsewhere;
            Err(InstanceError::Exists { name: name.to_string(), elsewhere })
        }
    }
}

/// What is known of an instance before its processes are there.
fn describe(
    request: &RunRequest,
    name: &InstanceName,
    key: String,
    host: &Host,
    [log_out, log_err]: [PathBuf; 2],
) -> InstanceState {
    let (boot, pid_namespace) = realm();
    let none = ProcessRef { pid: 0, started: 0 };
    let allocation = host.allocation.as_ref();
    let step = allocation.map(|allocation| match allocation.step {
        Some(step) => format!("{}.{step}", allocation.job.0),
        None => allocation.job.0.to_string(),
    });
    let home = request.defaults.home.as_ref().map(|home| (home.source.clone(), home.destination.clone()));
    InstanceState {
        schema: SCHEMA,
        name: name.to_string(),
        key,
        boot,
        pid_namespace,
        holder: none,
        init: none,
        image: name_anywhere(&request.image, &host.cwd),
        image_path: PathBuf::new(),
        tree: None,
        started: since_1970().as_secs(),
        step,
        log_out,
        log_err,
        stop_signal: None,
        root: request.root,
        contain: request.defaults.contain,
        home,
        no_home: request.defaults.no_home,
        seccomp: None,
    }
}

fn since_1970() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The starter's part.
fn agree(channel: &Channel, name: &InstanceName) -> Result<(), InstanceError> {
    let lost = || InstanceError::HolderLost { name: name.to_string() };
    let refused = |bytes: &[u8]| match serde_json::from_slice::<Refusal>(bytes) {
        Ok(Refusal { class, message, remedy }) => {
            InstanceError::Refused { message, class: EngineClass::from(class), remedy }
        }
        Err(_) => lost(),
    };
    let first = channel.receive().ok_or_else(lost)?;
    if first != READY {
        return Err(refused(&first));
    }
    if !channel.commit(GO) {
        return Err(lost());
    }
    let second = channel.receive().ok_or_else(lost)?;
    if second == UP { Ok(()) } else { Err(refused(&second)) }
}

/// The holder's part: its result is its exit status, which nobody reads.
fn hold(prepared: Prepared, instances: &Instances, state: InstanceState, channel: &Channel) -> i32 {
    // The starter's mark is about to go with it. Before anything else: until then nothing tells of this process.
    let _use_mark = UseMark::make(prepared.image_path());
    let PreparedParts { plan, images, lease, recorder, rank } = prepared.into_parts();
    let run = recorder.run().to_owned();
    let mut holding = Holding { recorder, instances, state, channel, is_published: false };
    let outcome = situla_runtime::run(&plan, images, rank, &run, &mut holding);
    // Nothing is mounted any more.
    drop(lease);
    let Holding { mut recorder, state, is_published, .. } = holding;
    let error = match outcome {
        Ok(exit) => {
            recorder.exit(exit);
            None
        }
        Err(failure) => {
            let error = EngineError::Runtime(failure);
            recorder.error(&error);
            Some(error)
        }
    };
    if is_published {
        instances.remove(&state);
        return 0;
    }
    [&state.log_out, &state.log_err].into_iter().for_each(|log| remove_empty(log));
    if let Some(error) = error {
        let message = with_causes(&error);
        refuse(channel, error.class().name(), message, error.remedy());
    }
    1
}

/// An error with its causes, in one line.
fn with_causes(error: &EngineError) -> String {
    let mut message = error.to_string();
    let mut cause = match error {
        EngineError::Runtime(failure) => std::error::Error::source(failure),
        other => std::error::Error::source(other),
    };
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

fn refuse(channel: &Channel, class: &str, message: String, remedy: Option<String>) {
    let short = |text: String| text.chars().take(MAX_TEXT / 4).collect::<String>();
    let refusal = Refusal { class: class.to_owned(), message: short(message), remedy: remedy.map(short) };
    // A starter that has gone need not hear it.
    let _ = serde_json::to_vec(&refusal).map(|bytes| channel.send(&bytes));
}

/// Hears what becomes of the container.
struct Holding<'a> {
    recorder: Recorder,
    instances: &'a Instances,
    state: InstanceState,
    channel: &'a Channel,
    is_published: bool,
}

impl Holding<'_> {
    /// Comes to an agreement with the starter; false where the instance is not to be.
    fn settle(&mut self, pid: i32) -> bool {
        if !self.channel.send(READY) || self.channel.receive().as_deref() != Some(GO) {
            return false;
        }
        let own = ProcessRef::of(i32::try_from(std::process::id()).unwrap_or(0));
        let (Some(holder), Some(init)) = (own, ProcessRef::of(pid)) else { return false };
        (self.state.holder, self.state.init) = (holder, init);
        match self.instances.publish(&self.state) {
            Ok(()) => {
                self.is_published = true;
                self.channel.send(UP);
                true
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                let message = format!("{error}{}", cause.unwrap_or_default());
                refuse(self.channel, error.class().name(), message, error.remedy());
                false
            }
        }
    }
}

impl Observer for Holding<'_> {
    fn phase(&mut self, name: &'static str) {
        self.recorder.phase(name);
    }

    fn met(&mut self, run: &str, leads: bool) {
        self.recorder.met(run, leads);
    }

    fn started(&mut self, pid: i32) {
        self.recorder.started(pid);
        if !self.settle(pid)
            && let Some(init) = Pid::from_raw(pid)
        {
            // A child of this process that is not waited for yet: the number is its own.
            let _ = kill_process(init, Signal::KILL);
        }
    }

    fn signal(&mut self, info: &SignalInfo) {
        self.recorder.signal(info);
    }
}
