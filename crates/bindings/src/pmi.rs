//! What MPI's process managers need inside: PMIx rendezvous directories, the PMI file descriptor,
//! shared memory.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bind::{BindRequest, Origin};

/// Directories bound for a process manager.
const MAX_DIRS: usize = 64;

/// A descriptor number beyond this is a mistake; Linux's default hard limit is far lower.
const MAX_FD: i32 = 1 << 20;

/// Directories of the operating system. A `PMIX_*` variable may name an installation prefix, and
/// showing the host's `/usr` would replace the image's.
const SYSTEM_DIRS: &[&str] = &[
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/root", "/sbin", "/sys",
    "/usr",
];

/// What is known about the step.
#[expect(missing_debug_implementations, reason = "holds a function")]
pub struct PmiFacts<'a> {
    /// Owner of the job.
    pub uid: u32,
    /// Job and step, as in `42.0`; absent outside a step.
    pub step: Option<(u32, u32)>,
    /// Directories where Slurm's PMIx plugin may have made the step's directory beside those the
    /// environment names, such as `TmpFS` of slurm.conf.
    pub bases: &'a [PathBuf],
    /// Tells whether a path is an existing directory.
    pub is_dir: &'a dyn Fn(&Path) -> bool,
}

/// A descriptor that stays open for the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepFd {
    /// Its number, the same inside.
    pub fd: i32,
    /// Why.
    pub reason: String,
}

/// What a process manager needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmiPlan {
    /// Directories to show, parents only where one lies in another.
    pub binds: Vec<BindRequest>,
    /// Descriptors to keep.
    pub keep_fds: Vec<KeepFd>,
}

/// Finds what MPI needs, from the environment of the task.
pub fn plan_pmi<'e>(env: impl IntoIterator<Item = (&'e str, &'e str)>, facts: &PmiFacts<'_>) -> PmiPlan {
    let mut plan = PmiPlan::default();
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    let mut bases: Vec<PathBuf> = facts.bases.to_vec();
    for (name, value) in env {
        if name == "PMI_FD" {
            if let Some(fd) = value.parse().ok().filter(|fd| (3..MAX_FD).contains(fd)) {
                plan.keep_fds
                    .push(KeepFd { fd, reason: "PMI_FD: the connection to the process manager".to_owned() });
            }
            continue;
        }
        let is_base = matches!(name, "SLURM_PMIX_TMPDIR" | "TMPDIR");
        if !is_base && !name.starts_with("PMIX_") {
            continue;
        }
        let Some(path) = plain(value) else { continue };
        if is_base {
            bases.push(path);
        } else if found.len() < MAX_DIRS && !is_system(&path) && (facts.is_dir)(&path) {
            // The step's client directory lies beside or in the server's, depending on the release.
            bases.extend(path.parent().map(Path::to_owned));
            found.push((path, format!("{name}: directory of the PMIx server")));
        }
    }
    if let Some((job, step)) = facts.step {
        bases.push(PathBuf::from("/tmp"));
        // With the uid since 22.05, without it before.
        let names =
            [format!("spmix_appdir_{}_{job}.{step}", facts.uid), format!("spmix_appdir_{job}.{step}")];
        for base in bases.iter().take(MAX_DIRS) {
            for name in &names {
                let path = base.join(name);
                if (facts.is_dir)(&path) {
                    found.push((path, "step directory of Slurm's PMIx plugin".to_owned()));
                }
            }
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    let paths: Vec<PathBuf> = found.iter().map(|(path, _)| path.clone()).collect();
    for (path, reason) in found {
        let covered = paths.iter().any(|other| *other != path && path.starts_with(other));
        if !covered {
            plan.binds.push(BindRequest::same(path, Origin::Pmi, &reason));
        }
    }
    plan
}

/// Shows the host's `/dev/shm` if the container gets a `/dev` of its own: ranks of one node exchange
/// data through it, also with ranks outside this container. With the host's `/dev` it is there.
pub fn plan_shm(host_dev: bool, is_dir: &dyn Fn(&Path) -> bool) -> Option<BindRequest> {
    let shm = Path::new("/dev/shm");
    (!host_dev && is_dir(shm)).then(|| BindRequest::same(shm, Origin::Pmi, "shared memory between ranks"))
}

fn plain(value: &str) -> Option<PathBuf> {
    let path = Path::new(value);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    (path.is_absolute() && plain && !value.contains('\0')).then(|| path.components().collect())
}

fn is_system(path: &Path) -> bool {
    // The top directories themselves (`/tmp`, `/var`) are never a process manager's own either.
    path.components().count() <= 2 || SYSTEM_DIRS.iter().any(|dir| path.starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::BindSource;

    fn run(env: &[(&str, &str)], dirs: &[&str], bases: &[&str]) -> (Vec<String>, Vec<i32>) {
        let is_dir = |path: &Path| dirs.iter().any(|dir| Path::new(dir) == path);
        let bases: Vec<PathBuf> = bases.iter().map(PathBuf::from).collect();
        let facts = PmiFacts { uid: 1001, step: Some((42, 0)), bases: &bases, is_dir: &is_dir };
        let plan = plan_pmi(env.iter().copied(), &facts);
        let show = |bind: &BindRequest| {
            assert_eq!(bind.source, BindSource::Host(bind.destination.clone()));
            assert!(!bind.reason.is_empty());
            bind.destination.display().to_string()
        };
        (plan.binds.iter().map(show).collect(), plan.keep_fds.iter().map(|keep| keep.fd).collect())
    }

    /// Environment, existing directories, expected binds, expected descriptors.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str], &'a [i32]);

    #[test]
    fn directories_and_descriptors() {
        let spool = "/var/spool/slurmd/pmix.42.0";
        let app = "/tmp/spmix_appdir_1001_42.0";
        let table: &[Case<'_>] = &[
            (&[], &[], &[], &[]),
            (&[("PMIX_SERVER_TMPDIR", spool)], &[spool, app], &[app, spool], &[]),
            (&[("PMIX_SERVER_TMPDIR", spool)], &[], &[], &[]),
            (&[("PMIX_RANK", "0"), ("PMIX_HOSTNAME", "/n1")], &["/n1"], &[], &[]),
            (
                &[("PMIX_INSTALL_PREFIX", "/usr"), ("PMIX_X", "/usr/lib/pmix")],
                &["/usr", "/usr/lib/pmix"],
                &[],
                &[],
            ),
            (&[("PMIX_A", "/tmp"), ("PMIX_B", "/")], &["/tmp", "/"], &[], &[]),
            (&[("PMIX_A", "/x/../etc/y"), ("PMIX_B", "x/y")], &["/x/../etc/y", "x/y"], &[], &[]),
            (&[("PMIX_A", "/run/p"), ("PMIX_B", "/run/p/q")], &["/run/p", "/run/p/q"], &["/run/p"], &[]),
            (&[("PMI_FD", "7"), ("PMI_RANK", "0")], &[], &[], &[7]),
            (&[("PMI_FD", "0")], &[], &[], &[]),
            (&[("PMI_FD", "-1")], &[], &[], &[]),
            (&[("PMI_FD", "x")], &[], &[], &[]),
            (&[], &["/tmp/spmix_appdir_42.0"], &["/tmp/spmix_appdir_42.0"], &[]),
            (
                &[("SLURM_PMIX_TMPDIR", "/scratch/t")],
                &["/scratch/t/spmix_appdir_1001_42.0"],
                &["/scratch/t/spmix_appdir_1001_42.0"],
                &[],
            ),
            (&[("SOMETHING", spool)], &[spool], &[], &[]),
        ];
        for (env, dirs, binds, fds) in table {
            let got = run(env, dirs, &[]);
            assert_eq!(
                (got.0.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), got.1.as_slice()),
                (*binds, *fds)
            );
        }
        let told = run(&[], &["/node/tmp/spmix_appdir_1001_42.0"], &["/node/tmp"]);
        assert_eq!(told.0, ["/node/tmp/spmix_appdir_1001_42.0"]);
    }

    #[test]
    fn shared_memory_comes_with_the_hosts_dev() {
        assert!(plan_shm(true, &|_| true).is_none());
        assert!(plan_shm(false, &|_| false).is_none());
        let bind = plan_shm(false, &|_| true).expect("a dev of its own");
        assert_eq!(bind.destination, Path::new("/dev/shm"));
    }
}
