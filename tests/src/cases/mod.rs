//! The cases, by what they are about. Each is a function of its surroundings that returns the story of its
//! failure; the lists here say in which tier and under which name it runs.

pub mod bare;
pub mod ends;
pub mod faults;
pub mod uses;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Trial;

use crate::cluster::{Cluster, Variant};
use crate::environment::TestEnv;
use crate::images::Images;
use crate::leaks::Snapshot;
use crate::tier::{self, Check, Skip};

/// A case of the cluster tier that needs Slurm alone.
pub type BareCase = fn(&Cluster) -> Check;

const BARE: &[(&str, BareCase)] = &[
    ("four_nodes", bare::four_nodes),
    ("exit_codes", bare::exit_codes),
    ("task_prolog", bare::task_prolog),
    ("gpu", bare::gpu),
    ("mpi", bare::mpi),
    ("leaks_are_seen", bare::leaks_are_seen),
];

/// A cluster with the plugin loaded, and images to start on it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
    /// The images.
    pub images: Images,
}

impl Site {
    /// The surroundings.
    #[must_use]
    pub fn env(&self) -> &TestEnv {
        self.cluster.env()
    }

    fn prepare(cluster: &Cluster) -> Result<Self, String> {
        let env = cluster.env();
        let trampoline = format!("trampoline={}", env.situla().display());
        cluster.control(&["plugin", "install", &env.spank().display().to_string(), &trampoline])?;
        // slurmd was restarted, so the nodes' processes are others now.
        Ok(Self { cluster: Cluster::find(env, cluster.variant())?, images: Images::prepare(env)? })
    }
}

/// A case of the cluster tier that needs our programs.
pub type SiteCase = fn(&Site) -> Check;

const ON_SITE: &[(&str, SiteCase)] = &[
    ("uses::srun_apptainer_exec", uses::srun_apptainer_exec),
    ("uses::sbatch_apptainer", uses::sbatch_apptainer),
    ("uses::plugin_on_four_nodes", uses::plugin_on_four_nodes),
    ("uses::kinds_of_images", uses::kinds_of_images),
    ("uses::tasks_share_a_container", uses::tasks_share_a_container),
    ("uses::task_prolog", uses::task_prolog),
    ("uses::mpi", uses::mpi),
    ("uses::gpu", uses::gpu),
    ("uses::step_in_a_plain_allocation", uses::step_in_a_plain_allocation),
    ("ends::codes_and_signals", ends::codes_and_signals),
    ("ends::command_missing", ends::command_missing),
    ("ends::scancel_at_any_moment", ends::scancel_at_any_moment),
    ("ends::kill_of_our_processes", ends::kill_of_our_processes),
    ("ends::time_limit", ends::time_limit),
    ("faults::missing_image", faults::missing_image),
    ("faults::truncated_image", faults::truncated_image),
    ("faults::wrong_layer", faults::wrong_layer),
    ("faults::unknown_option", faults::unknown_option),
    ("faults::missing_mount_source", faults::missing_mount_source),
    ("faults::mounts_without_image", faults::mounts_without_image),
    ("faults::multi_prog", faults::multi_prog),
    ("faults::pty", faults::pty),
    ("faults::batch_script_with_options", faults::batch_script_with_options),
    ("faults::submission_without_plugin", faults::submission_without_plugin),
];

/// Cases that change a node and look for leaks themselves, while the fault lasts.
const ON_SICK_NODES: &[(&str, SiteCase)] =
    &[("faults::no_fuse", faults::no_fuse), ("faults::no_user_namespaces", faults::no_user_namespaces)];

/// Runs all cluster cases on one variant.
#[must_use]
pub fn run_on_cluster(variant: Variant) -> ExitCode {
    let env = TestEnv::from_environment();
    // Found once: every case asks, and the answer does not change.
    let found: Arc<OnceLock<Result<Cluster, String>>> = Arc::default();
    let mut trials: Vec<Trial> = Vec::new();
    for (name, case) in BARE {
        let ready = {
            let (env, found) = (env.clone(), Arc::clone(&found));
            move || {
                tier::root()?;
                tier::user(&env)?;
                tier::image(&env, "demo")?;
                found.get_or_init(|| Cluster::find(&env, variant)).clone().map_err(Skip)
            }
        };
        trials.push(tier::trial(&env, &format!("bare::{name}"), ready, move |cluster: Cluster| {
            watched(&cluster, || case(&cluster))
        }));
    }
    let site: Arc<OnceLock<Result<Site, String>>> = Arc::default();
    for (name, case) in ON_SITE.iter().chain(ON_SICK_NODES) {
        let sick = ON_SICK_NODES.iter().any(|(other, _)| other == name);
        let ready = {
            let (env, found, site) = (env.clone(), Arc::clone(&found), Arc::clone(&site));
            move || {
                tier::root()?;
                tier::user(&env)?;
                tier::program(&env)?;
                tier::plugin(&env)?;
                tier::image(&env, "demo")?;
                tier::image(&env, "tiny")?;
                let cluster = found.get_or_init(|| Cluster::find(&env, variant)).clone().map_err(Skip)?;
                // From here on nothing is a reason to skip: what fails now is the system's failure.
                Ok(site.get_or_init(|| Site::prepare(&cluster)).clone())
            }
        };
        trials.push(tier::trial(&env, name, ready, move |site: Result<Site, String>| {
            let site = site?;
            if sick { case(&site) } else { watched(&site.cluster, || case(&site)) }
        }));
    }
    tier::run(trials)
}

/// Runs a case; afterwards every node must be usable and nothing may be left.
fn watched(cluster: &Cluster, case: impl FnOnce() -> Check) -> Check {
    let before = Snapshot::take(cluster.env(), Some(cluster))?;
    case()?;
    cluster.settled()?;
    before.expect_clean()?;
    Ok(())
}
