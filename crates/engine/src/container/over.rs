//! Containers of jobs that are over, which nobody removes at their end: there is no daemon, and no epilog that every site runs.
//!
//! Whoever comes next does, and asks Slurm which jobs there are. Where it does not answer, or does not know the user's jobs for
//! certain, they stay.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use situla_image::{ContainerPlace, Containers};

use super::{OF_JOB, containers, failed, plain, scope_here};
use crate::error::EngineError;
use crate::host::Host;
use crate::site::Site;
use crate::step_end::USUAL_PLACES;

/// How long Slurm may take to answer. Its programs retry for minutes when the controller is away, and a start must not
/// wait for that.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than the jobs of a user take.
const MAX_ANSWER: u64 = 8 << 20;

/// States in which a job does not run any more, and does not come back: squeue(1).
const OVER: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Containers of jobs that are over.
    pub removed: Vec<ContainerPlace>,
    /// The same that are in use.
    pub used: Vec<ContainerPlace>,
}

/// Removes the containers of jobs that are over, and of the job that is `ending`: in its epilog Slurm counts it still.
///
/// # Errors
/// Slurm cannot be asked, or one cannot be removed.
pub fn sweep(host: &Host, site: &Site, ending: Option<u32>) -> Result<Swept, EngineError> {
    let cluster = match &host.allocation {
        Some(allocation) => allocation.cluster.clone(),
        None => cluster(host),
    };
    sweep_scopes(&containers(site, host), host, cluster.as_deref(), (None, ending))
}

/// The same on the way to a run, which is not held up where there are none but its own job's.
pub(super) fn sweep_others(containers: &Containers, host: &Host) -> Result<Swept, EngineError> {
    let Some(allocation) = &host.allocation else { return Ok(Swept::default()) };
    let cluster = allocation.cluster.as_deref();
    sweep_scopes(containers, host, cluster, (Some(&scope_here(host, allocation, containers)), None))
}

fn sweep_scopes(
    containers: &Containers,
    host: &Host,
    cluster: Option<&str>,
    (but, ending): (Option<&str>, Option<u32>),
) -> Result<Swept, EngineError> {
    let mut swept = Swept::default();
    let of_cluster = format!("{OF_JOB}{}-", plain(cluster.unwrap_or("cluster")));
    let mut scopes = containers.scopes().map_err(failed)?;
    scopes.retain(|scope| Some(scope.as_str()) != but && job_of(scope, &of_cluster).is_some());
    if scopes.is_empty() {
        return Ok(swept);
    }
    let user = host.user.uid.to_string();
    // Jobs of hidden partitions as well: a job that is not named counts as over.
    let asked = ["--noheader", "--all", "--states=all", "--format=%A %T", "--user", &user];
    let unknown = || EngineError::BadOption {
        message: "squeue does not say which jobs there are".to_owned(),
        remedy: "try again when Slurm answers, or name what is to be removed: `situla container rm`"
            .to_owned(),
    };
    let mut alive = alive(&ask(host, "squeue", &asked).ok_or_else(unknown)?);
    // An answer without the job that asks is of another cluster, or does not name all.
    if host.allocation.as_ref().is_some_and(|allocation| !alive.contains(&allocation.job.0)) {
        return Err(unknown());
    }
    alive.retain(|job| Some(*job) != ending);
    // What a job that was requeued had before is over as well, as far as it knows itself.
    let own = host.allocation.as_ref().map(|allocation| (allocation.job.0, allocation.restart_count));
    let is_over = |(job, restarts): (u32, u32)| {
        !alive.contains(&job) || own.is_some_and(|own| job == own.0 && restarts < own.1)
    };
    scopes.retain(|scope| job_of(scope, &of_cluster).is_some_and(is_over));
    let mut first_error = None;
    for container in containers.list().map_err(failed)? {
        if !scopes.contains(&container.place.scope) {
            continue;
        }
        match containers.remove(&container.place) {
            Ok(true) => swept.removed.push(container.place),
            Ok(false) => swept.used.push(container.place),
            // One that cannot be removed does not keep the others.
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(swept), |error| Err(failed(error)))
}

/// The job of a scope, and how often it had been requeued.
fn job_of(scope: &str, of_cluster: &str) -> Option<(u32, u32)> {
    let job = scope.strip_prefix(of_cluster)?;
    let (job, restarts) = job.split_once('.').unwrap_or((job, "0"));
    Some((job.parse().ok()?, restarts.parse().ok()?))
}

/// The jobs that are not over, by the lines of squeue.
fn alive(answer: &str) -> BTreeSet<u32> {
    let jobs = answer.lines().filter_map(|line| line.trim().split_once(' '));
    jobs.filter(|(_, state)| !OVER.contains(&state.trim())).filter_map(|(job, _)| job.parse().ok()).collect()
}

/// The cluster that Slurm's programs talk to.
fn cluster(host: &Host) -> Option<String> {
    let answer = ask(host, "scontrol", &["show", "config"])?;
    let name = answer.lines().find_map(|line| line.strip_prefix("ClusterName"))?;
    Some(name.trim_start_matches([' ', '=']).trim().to_owned())
}

/// Runs a program of Slurm's; gives what it says, where it succeeds in time.
fn ask(host: &Host, program: &str, arguments: &[&str]) -> Option<String> {
    let path = host.variable("PATH").unwrap_or_default();
    let places = std::env::split_paths(path).filter(|place| place.is_absolute());
    let mut places = places.chain(USUAL_PLACES.map(PathBuf::from));
    let found = places.find(|place| place.join(program).is_file());
    let mut child = Command::new(found.as_deref().unwrap_or(Path::new("")).join(program))
        .args(arguments)
        // Formats of the user's own, and options that he likes.
        .env_remove("SLURM_CLUSTERS")
        .env_remove("SQUEUE_FORMAT")
        .env_remove("SQUEUE_STATES")
        .env_remove("SQUEUE_PARTITION")
        .env_remove("SQUEUE_ACCOUNT")
        .env_remove("SQUEUE_LICENSES")
        .env_remove("SQUEUE_NAMES")
        .env_remove("SQUEUE_QOS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut output = Vec::new();
    let read = child.stdout.take().is_some_and(|stdout| read_in_time(stdout, &mut output));
    if !read {
        // One that cannot be killed is not waited for.
        let _ = child.kill();
        let _ = child.try_wait();
        return None;
    }
    let status = child.wait().ok()?;
    status.success().then(|| String::from_utf8_lossy(&output).into_owned())
}

/// Reads all of it; false where that takes too long.
fn read_in_time(source: impl Read + AsFd, output: &mut Vec<u8>) -> bool {
    let end = Instant::now() + PATIENCE;
    let mut source = source.take(MAX_ANSWER);
    let mut buffer = [0; 8192];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(source.get_ref(), PollFlags::IN)], Some(&timeout)) {
            Ok(1..) => match source.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) => output.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(_) => return false,
            },
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_over_by_their_states() {
        let answer = "7 RUNNING\n8 COMPLETED\n 9 PENDING\n10 COMPLETING\n11 CANCELLED\nx RUNNING\n12\n";
        assert_eq!(alive(answer), BTreeSet::from([7, 9, 10]));
    }

    #[test]
    fn only_scopes_of_this_cluster_are_jobs_of_it() {
        for (scope, job) in [
            ("job-a-7", Some((7, 0))),
            ("job-a-7.2", Some((7, 2))),
            ("job-a-7.", None),
            ("job-b-7", None),
            ("job-a-b-7", None),
            ("job-a-", None),
            ("global", None),
        ] {
            assert_eq!(job_of(scope, "job-a-"), job, "{scope}");
        }
    }
}
