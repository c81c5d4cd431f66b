//! Running a command inside an instance.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use situla_bindings::CustomHome;
use situla_plan::{Plan, ShareKey};
use situla_runtime::{Exit, Instance};

use super::error::InstanceError;
use super::name::InstanceName;
use super::place::{Condition, Instances};
use super::state::InstanceState;
use crate::error::EngineError;
use crate::events::{Heard, Listener};
use crate::host::Host;
use crate::journal::{Phases, Recorder};
use crate::prepare::plan_inside;
use crate::request::{InstanceUse, RunRequest};
use crate::site::Site;

/// Finds an instance that runs. What one of that name has left is removed.
///
/// # Errors
/// There is none; the error names those that there are.
pub fn find(instances: &Instances, name: &InstanceName, host: &Host) -> Result<InstanceState, InstanceError> {
    let found = instances.get(name)?;
    if let Some(listed) = &found
        && listed.condition == Condition::Ended
    {
        instances.forget(&listed.state)?;
    }
    match found {
        Some(listed) if listed.condition == Condition::Running => Ok(listed.state),
        _ => {
            let listed = instances.list()?;
            let running = listed.into_iter().filter(|listed| listed.condition == Condition::Running);
            Err(InstanceError::Missing {
                name: name.to_string(),
                host: host.hostname.clone(),
                others: running.map(|listed| listed.state.name).collect(),
            })
        }
    }
}

/// A command that is about to be run inside an instance.
#[derive(Debug)]
pub struct Entering {
    plan: Plan,
    visit: Instance,
    recorder: Recorder,
    warnings: Vec<String>,
}

impl Entering {
    /// Finds the instance, and plans what `request` asks for in it. What the container is made of is the
    /// instance's; of the request count the command, the environment and the working directory.
    ///
    /// # Errors
    /// There is no such instance, or the command cannot be planned.
    pub fn prepare(
        mut request: RunRequest,
        name: &InstanceName,
        host: &Host,
        site: &Site,
    ) -> Result<Self, InstanceError> {
        let mut phases = Phases::begin();
        let instances = Instances::new(host.instances.clone().ok_or(InstanceError::NoPlace)?);
        let state = find(&instances, name, host)?;
        let visit = Instance::visit(&ShareKey(state.key.clone()), state.holder.pid);
        let visit = visit.map_err(EngineError::Runtime)?;
        let visit = visit.ok_or_else(|| InstanceError::Silent { name: name.to_string() })?;
        request.image.clone_from(&state.image);
        request.root = state.root;
        request.isolation.pid = true;
        request.defaults.contain = state.contain;
        request.defaults.no_home = state.no_home;
        request.defaults.home =
            state.home.clone().map(|(source, destination)| CustomHome { source, destination });
        request.instance =
            Some(InstanceUse { name: state.name.clone(), key: state.key.clone(), enters: true });
        // The file may be another by now, or gone; the instance has it open.
        let opened = visit.image().map(|image| PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd())));
        let opened = opened.as_ref().or(state.tree.as_ref()).unwrap_or(&state.image_path);
        let planned = plan_inside(&request, host, site, (opened, &state.image_path), &mut phases);
        let mut recorder = Recorder::open(host, request.record, request.personality, phases);
        match planned {
            Ok((mut plan, warnings)) => {
                // Who has none of his own gets the instance's: the way in is no way around it.
                let filter = &mut plan.spec.linux.seccomp;
                *filter = filter.take().or(state.seccomp);
                recorder.describe(host, &plan);
                Ok(Entering { plan, visit, recorder, warnings })
            }
            Err(error) => {
                let words = request.action.words().iter().map(|word| word.to_string_lossy().into_owned());
                recorder.describe_request(host, &state.image, words.collect());
                recorder.error(&error);
                Err(error.into())
            }
        }
    }

    /// What the user should be told before the run.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Runs the command and waits for it.
    ///
    /// # Errors
    /// It could not be started, or the instance has ended.
    pub fn run(self, listener: Option<&mut dyn Listener>) -> Result<Exit, EngineError> {
        let Entering { plan, visit, recorder, warnings } = self;
        let run = recorder.run().to_owned();
        let mut heard = Heard { recorder, listener };
        heard.planned(&plan, &warnings);
        match visit.enter(&plan, &run, &mut heard) {
            Ok(exit) => Ok(heard.exit(exit)),
            Err(failure) => {
                let error = EngineError::Runtime(failure);
                heard.error(&error);
                Err(error)
            }
        }
    }
}
