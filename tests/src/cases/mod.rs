//! The cases, by what they are about. Each is a function of its surroundings that returns the story of its
//! failure; the lists here say in which tier and under which name it runs.

pub mod bare;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Trial;

use crate::cluster::{Cluster, Variant};
use crate::environment::TestEnv;
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
