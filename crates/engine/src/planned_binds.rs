//! Which binds a run has: the host's by default, those of processes that work together, of devices, and the user's.

use std::path::{Path, PathBuf};

use situla_bindings::{
    BindRequest, BindSource, DefaultOptions, HostFacts, KeepFd, NoMount, Origin, PmiFacts, Propagation,
    plan_default_binds, plan_pmi,
};
use situla_slurm::StepId;

use crate::host::Host;
use crate::identity::uid_inside;
use crate::request::{Personality, RunRequest};

/// The reason of the bind of the working directory.
pub(crate) const WORKING_DIRECTORY: &str = "working directory";

/// Directories that must be visible because a variable names them, besides those of PMIx.
const DIRECTORY_VARIABLES: [&str; 1] = ["OMPI_MCA_btl_vader_backing_directory"];

/// The binds of a run, in the order in which they are mounted. A function of its arguments and of
/// what exists on the host.
pub(crate) fn plan_binds(
    request: &RunRequest,
    host: &Host,
) -> (Vec<BindRequest>, Option<PathBuf>, Vec<KeepFd>) {
    let mut options: DefaultOptions = request.defaults.clone();
    if request.personality == Personality::Task {
        options.no_mount.push(NoMount::Cwd);
    }
    let home = Some(PathBuf::from(&host.user.home)).filter(|home| home.is_absolute());
    let facts = host_facts(uid_inside(request, host), host, home.as_deref());
    let defaults = plan_default_binds(&facts, &options, &request.binds);
    let mut binds = defaults.binds;
    // The working directory comes last: a bind of the user's may show it already.
    let cwd = binds.pop_if(|last| last.reason == WORKING_DIRECTORY);
    let pmi = plan_pmi(
        host.env.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?))),
        &PmiFacts { uid: host.user.uid, step: numeric_step(host), bases: &[], is_dir: &|path| path.is_dir() },
    );
    binds.extend(pmi.binds);
    for name in DIRECTORY_VARIABLES {
        let path = host.variable(name).map(PathBuf::from);
        if let Some(path) = path.filter(|path| path.is_absolute() && path.is_dir()) {
            binds.push(host_bind(path, format!("{name}: files that ranks share")));
        }
    }
    binds.retain(|bind| !options.unmounted.iter().any(|path| bind.destination.starts_with(path)));
    drop_covered(&mut binds);
    let mut devices = request.device_edits.binds.clone();
    devices.extend(request.slurm_client.binds.iter().cloned());
    devices.sort_by(|a, b| a.destination.cmp(&b.destination));
    binds.extend(devices);
    let mut user = request.binds.clone();
    user.sort_by(|a, b| a.destination.cmp(&b.destination));
    binds.extend(user);
    binds.extend(cwd);
    (binds, defaults.home, pmi.keep_fds)
}

fn host_bind(path: PathBuf, reason: String) -> BindRequest {
    BindRequest {
        source: BindSource::Host(path.clone()),
        destination: path,
        read_only: false,
        recursive: true,
        no_exec: false,
        propagation: Propagation::default(),
        optional: true,
        no_follow: false,
        origin: Origin::Default,
        reason,
    }
}

/// Drops binds that show what an earlier bind shows already: same path inside and outside.
fn drop_covered(binds: &mut Vec<BindRequest>) {
    let same_inside_and_outside = |bind: &BindRequest| match &bind.source {
        BindSource::Host(source) => *source == bind.destination && bind.recursive,
        _ => false,
    };
    let mut roots: Vec<PathBuf> = Vec::new();
    binds.retain(|bind| {
        let plain = same_inside_and_outside(bind);
        if plain && roots.iter().any(|root| bind.destination.starts_with(root)) {
            return false;
        }
        if plain {
            roots.push(bind.destination.clone());
        }
        true
    });
}

fn host_facts(uid: u32, host: &Host, home: Option<&Path>) -> HostFacts {
    let mut facts = HostFacts {
        uid,
        home: home.map(Path::to_owned),
        cwd: Some(host.cwd.clone()),
        ..HostFacts::default()
    };
    for path in HostFacts::paths_of_interest(home, Some(&host.cwd)) {
        let Ok(real) = path.canonicalize() else { continue };
        if real != path {
            facts.resolved.insert(path.clone(), real);
        }
        facts.existing.insert(path);
    }
    facts
}

/// Job and step, where the step is one of `srun`.
pub(crate) fn numeric_step(host: &Host) -> Option<(u32, u32)> {
    let allocation = host.allocation.as_ref()?;
    match allocation.step? {
        StepId::Numeric(step) => Some((allocation.job.0, step)),
        _ => None,
    }
}
