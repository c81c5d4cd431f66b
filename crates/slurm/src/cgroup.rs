//! The identity of a step according to the kernel: `/proc/self/cgroup` as text.
//!
//! The environment can claim any job; the cgroup of a process was chosen by slurmstepd as root. A
//! process may at most move below the directory it was put in, so the *outermost* Slurm
//! directories of a path decide and deeper look-alikes are ignored. A user can also make directories
//! of any name in his own systemd session, so nothing below `user.slice` counts.
//!
//! Layouts (Slurm 22.05 to 26.05):
//! v1 `/slurm[_NODE]/uid_U/job_J/step_S[/task_T]`, in one hierarchy per controller;
//! v2 `…/[NODE_]slurmstepd.scope/job_J/step_S/{slurm,user[/task_T]}`;
//! since 26.05 the job directory may carry a SLUID (`s8FXKTA79XAR00`) in place of `job_J`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{JobId, StepId, parse_digits};

/// Bytes of `/proc/self/cgroup` that are looked at: some 40 lines of PATH_MAX.
pub const MAX_TEXT: usize = 160 * 1024;

/// Why a cgroup text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The text is longer than [`MAX_TEXT`].
    #[error("cgroup text of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A line is not `ID:CONTROLLERS:PATH`.
    #[error("bad line in cgroup text: {line:?}")]
    BadLine {
        /// The line, shortened.
        line: String,
    },
    /// Two hierarchies place the process in different jobs or steps.
    #[error("cgroup hierarchies disagree: {first} and {second}")]
    Conflict {
        /// The path seen first.
        first: String,
        /// The path that contradicts it.
        second: String,
    },
}

/// How a cgroup directory names the job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupJob {
    /// `job_J`.
    Id(JobId),
    /// A SLUID, as text.
    Sluid(String),
}

/// One hierarchy in which the process sits below Slurm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// The controllers of a v1 hierarchy; empty for the unified one (v2).
    pub controllers: Vec<String>,
    /// Path of the job's directory, relative to the hierarchy's root, with a leading slash.
    pub job_path: String,
    /// Path of the step's directory; absent if this hierarchy stops at the job.
    pub step_path: Option<String>,
}

/// Where Slurm put this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmCgroup {
    /// The job.
    pub job: CgroupJob,
    /// The step, if any hierarchy goes that deep.
    pub step: Option<StepId>,
    /// Component of a heterogeneous step (`step_0+1`).
    pub het_component: Option<u32>,
    /// The owner that v1 directories name.
    pub uid: Option<u32>,
    /// The node name that a multi-slurmd host puts in front.
    pub node: Option<String>,
    /// The task (local rank) if the process sits in a task directory.
    pub task: Option<u32>,
    /// All hierarchies below Slurm, in the order of the text.
    pub hierarchies: Vec<Hierarchy>,
}

impl SlurmCgroup {
    /// Gives the hierarchy that has a v1 controller, else the unified one.
    pub fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        let v1 = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        v1.or_else(|| self.hierarchies.iter().find(|h| h.controllers.is_empty()))
    }
}

/// Finds the Slurm identity in the text of `/proc/self/cgroup`.
///
/// Gives `None` for a process that no slurmstepd placed, such as a login shell.
///
/// # Errors
/// Malformed or oversized text, and hierarchies that contradict each other.
pub fn parse(text: &str) -> Result<Option<SlurmCgroup>, CgroupError> {
    if text.len() > MAX_TEXT {
        return Err(CgroupError::TooLong { length: text.len(), limit: MAX_TEXT });
    }
    let mut found: Option<(SlurmCgroup, String)> = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let bad = || CgroupError::BadLine { line: line.chars().take(80).collect() };
        let (_, rest) = line.split_once(':').ok_or_else(bad)?;
        let (controllers, path) = rest.split_once(':').ok_or_else(bad)?;
        if !path.starts_with('/') {
            return Err(bad());
        }
        let Some(place) = parse_path(path) else { continue };
        let hierarchy = Hierarchy {
            controllers: controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
            job_path: place.job_path,
            step_path: place.step_path,
        };
        let Some((all, first)) = &mut found else {
            let all = SlurmCgroup {
                job: place.job,
                step: place.step,
                het_component: place.het_component,
                uid: place.uid,
                node: place.node,
                task: place.task,
                hierarchies: vec![hierarchy],
            };
            found = Some((all, path.to_owned()));
            continue;
        };
        // A hybrid 26.05 could name the job by number here and by SLUID there: only like is compared.
        let other_job = match (&all.job, &place.job) {
            (CgroupJob::Id(a), CgroupJob::Id(b)) => a != b,
            (CgroupJob::Sluid(a), CgroupJob::Sluid(b)) => a != b,
            _ => false,
        };
        let other_step = matches!((all.step, place.step), (Some(a), Some(b)) if a != b);
        if other_job || other_step {
            return Err(CgroupError::Conflict { first: first.clone(), second: path.to_owned() });
        }
        if matches!(place.job, CgroupJob::Id(_)) {
            all.job = place.job;
        }
        all.step = all.step.or(place.step);
        all.het_component = all.het_component.or(place.het_component);
        all.uid = all.uid.or(place.uid);
        all.task = all.task.or(place.task);
        if all.node.is_none() {
            all.node = place.node;
        }
        all.hierarchies.push(hierarchy);
    }
    Ok(found.map(|(all, _)| all))
}

struct Place {
    job: CgroupJob,
    step: Option<StepId>,
    het_component: Option<u32>,
    uid: Option<u32>,
    node: Option<String>,
    task: Option<u32>,
    job_path: String,
    step_path: Option<String>,
}

fn parse_path(path: &str) -> Option<Place> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let prefix = |n: usize| parts[..n].iter().fold(String::new(), |path, part| path + "/" + part);
    for (i, part) in parts.iter().enumerate() {
        if *part == "user.slice" {
            return None;
        }
        let v1_node = part.strip_prefix("slurm").and_then(|rest| match rest {
            "" => Some(None),
            _ => rest.strip_prefix('_').filter(|name| !name.is_empty()).map(Some),
        });
        let v1_uid = parts.get(i + 1).and_then(|next| parse_digits(next.strip_prefix("uid_")?));
        let (node, uid, job_idx) = if let (Some(node), Some(uid)) = (v1_node, v1_uid) {
            (node, Some(uid), i + 2)
        } else if let Some(front) = part.strip_suffix("slurmstepd.scope") {
            match front {
                "" => (None, None, i + 1),
                _ => (Some(front.strip_suffix('_').filter(|name| !name.is_empty())?), None, i + 1),
            }
        } else {
            continue;
        };
        let job = parse_job(parts.get(job_idx)?)?;
        let (step, het_component) = parts.get(job_idx + 1).and_then(|name| parse_step(name)).unzip();
        let task = parts.iter().skip(job_idx + 2).take(2).find_map(|name| parse_task(name));
        return Some(Place {
            job,
            step,
            het_component: het_component.flatten(),
            uid,
            node: node.map(str::to_owned),
            task: step.and(task),
            job_path: prefix(job_idx + 1),
            step_path: step.map(|_| prefix(job_idx + 2)),
        });
    }
    None
}

fn parse_job(name: &str) -> Option<CgroupJob> {
    if let Some(id) = name.strip_prefix("job_") {
        return parse_digits(id).map(|id| CgroupJob::Id(JobId(id)));
    }
    // A SLUID is `s` and 13 characters of an upper-case base-32 alphabet.
    let rest = name.strip_prefix('s')?;
    let well_formed = rest.len() == 13 && rest.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    well_formed.then(|| CgroupJob::Sluid(name.to_owned()))
}

fn parse_step(name: &str) -> Option<(StepId, Option<u32>)> {
    let rest = name.strip_prefix("step_")?;
    let (id, component) = match rest.split_once('+') {
        Some((id, component)) => (id, Some(parse_digits(component)?)),
        None => (rest, None),
    };
    Some((id.parse().ok()?, component))
}

fn parse_task(name: &str) -> Option<u32> {
    // `task_special` holds slurmstepd's own helpers and is no task.
    parse_digits(name.strip_prefix("task_")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(CgroupJob, Option<StepId>, Option<u32>)> {
        parse(text).expect(text).map(|c| (c.job, c.step, c.task))
    }

    #[test]
    fn identities_are_found() {
        let job = |n| CgroupJob::Id(JobId(n));
        let sluid = || CgroupJob::Sluid("s8FXKTA79XAR00".to_owned());
        let table = [
            (
                "4:memory:/slurm_n1/uid_1001/job_5/step_0/task_0\n",
                Some((job(5), Some(StepId::Numeric(0)), Some(0))),
            ),
            ("4:freezer:/slurm/uid_0/job_7/step_batch", Some((job(7), Some(StepId::Batch), None))),
            ("4:freezer:/slurm/uid_0/job_7/step_extern", Some((job(7), Some(StepId::Extern), None))),
            ("4:freezer:/slurm/uid_0/job_7", Some((job(7), None, None))),
            (
                "0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_3",
                Some((job(5), Some(StepId::Numeric(0)), Some(3))),
            ),
            (
                "0::/system.slice/n1_slurmstepd.scope/job_5/step_interactive/user/task_0",
                Some((job(5), Some(StepId::Interactive), Some(0))),
            ),
            (
                "0::/system.slice/slurmstepd.scope/job_5/step_0/slurm",
                Some((job(5), Some(StepId::Numeric(0)), None)),
            ),
            (
                "0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_special",
                Some((job(5), Some(StepId::Numeric(0)), None)),
            ),
            (
                "0::/system.slice/slurmstepd.scope/s8FXKTA79XAR00/step_batch/user/task_0",
                Some((sluid(), Some(StepId::Batch), Some(0))),
            ),
            (
                "0::/system.slice/slurmstepd.scope/s8FXKTA79XAR00/step_extern/user/task_special",
                Some((sluid(), Some(StepId::Extern), None)),
            ),
            ("0::/system.slice/slurmstepd.scope/s8FXKTA79XAR00", Some((sluid(), None, None))),
            // Too short, too long, not of its alphabet.
            ("0::/system.slice/slurmstepd.scope/s8FXKTA79XAR0/step_0", None),
            ("0::/system.slice/slurmstepd.scope/s8FXKTA79XAR000/step_0", None),
            ("0::/system.slice/slurmstepd.scope/s8fxkta79xar00/step_0", None),
            ("0::/system.slice/slurmstepd.scope/system", None),
            ("0::/docker/abc/system.slice/slurmstepd.scope/job_5", Some((job(5), None, None))),
            ("0::/", None),
            ("", None),
            ("0::/system.slice/slurmd.service", None),
            ("4:memory:/slurm_n1/job_5/step_0", None),
            ("4:memory:/slurmish/uid_1/job_5/step_0", None),
            ("4:memory:/slurm/uid_1/job_x/step_0", None),
            ("4:memory:/slurm/uid_1/job_99999999999/step_0", None),
        ];
        for (text, want) in table {
            assert_eq!(id(text), want, "{text}");
        }
    }

    #[test]
    fn hybrid_text_merges() {
        let text = "12:devices:/slurm_n2/uid_1001/job_9/step_1/task_2\n\
                    5:cpu,cpuacct:/user.slice\n\
                    3:freezer:/slurm_n2/uid_1001/job_9/step_1\n\
                    2:memory:/slurm_n2/uid_1001/job_9\n\
                    1:name=systemd:/system.slice/slurmd.service\n\
                    0::/init.scope\n";
        let got = parse(text).expect("well formed").expect("in a job");
        assert_eq!((got.uid, got.node.as_deref(), got.task), (Some(1001), Some("n2"), Some(2)));
        assert_eq!(got.step, Some(StepId::Numeric(1)));
        assert_eq!(got.hierarchies.len(), 3);
        let freezer = got.hierarchy("freezer").expect("listed");
        assert_eq!(freezer.step_path.as_deref(), Some("/slurm_n2/uid_1001/job_9/step_1"));
        assert_eq!(got.hierarchy("memory").expect("listed").step_path, None);
        assert_eq!(got.hierarchy("pids"), None);
    }

    #[test]
    fn the_unified_hierarchy_has_all_controllers() {
        let text = "0::/system.slice/n2_slurmstepd.scope/job_9/step_1/user/task_2\n";
        let got = parse(text).expect("well formed").expect("in a job");
        assert_eq!((got.uid, got.node.as_deref(), got.task), (None, Some("n2"), Some(2)));
        for controller in ["memory", "devices", "cpuset"] {
            let found = got.hierarchy(controller).expect("the unified one");
            assert_eq!(found.job_path, "/system.slice/n2_slurmstepd.scope/job_9");
            assert_eq!(
                found.step_path.as_deref(),
                Some("/system.slice/n2_slurmstepd.scope/job_9/step_1"),
                "{controller}"
            );
        }
    }

    #[test]
    fn a_number_is_preferred_to_a_sluid() {
        // Hierarchies of one release name a job alike; those of two, while a node is updated, need not.
        let sluid = "0::/system.slice/slurmstepd.scope/s8FXKTA79XAR00/step_0/user/task_0\n";
        let number = "4:memory:/slurm/uid_1/job_5/step_0/task_0\n";
        for text in [format!("{sluid}{number}"), format!("{number}{sluid}")] {
            assert_eq!(
                id(&text),
                Some((CgroupJob::Id(JobId(5)), Some(StepId::Numeric(0)), Some(0))),
                "{text}"
            );
        }
        let others = "1:freezer:/system.slice/slurmstepd.scope/s8FXKTA79XAR01/step_0\n";
        assert!(matches!(parse(&format!("{sluid}{others}")), Err(CgroupError::Conflict { .. })));
    }

    #[test]
    fn heterogeneous_steps_name_their_component() {
        let got =
            parse("0::/system.slice/slurmstepd.scope/job_5/step_2+1/user/task_0").expect("ok").expect("job");
        assert_eq!((got.step, got.het_component), (Some(StepId::Numeric(2)), Some(1)));
    }

    #[test]
    fn look_alikes_of_the_user_do_not_count() {
        // Deeper directories made by the job itself.
        let nested =
            "0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_0/slurmstepd.scope/job_6/step_1";
        assert_eq!(id(nested), Some((CgroupJob::Id(JobId(5)), Some(StepId::Numeric(0)), Some(0))));
        // Directories of a login session.
        for text in [
            "0::/user.slice/user-1001.slice/user@1001.service/slurmstepd.scope/job_6/step_0/user/task_0",
            "0::/user.slice/user-1001.slice/user@1001.service/slurm/uid_0/job_6/step_0",
        ] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn contradictions_and_garbage_are_refused() {
        let two_jobs = "2:memory:/slurm/uid_1/job_5/step_0\n3:freezer:/slurm/uid_1/job_6/step_0";
        assert!(matches!(parse(two_jobs), Err(CgroupError::Conflict { .. })));
        let two_steps = "2:memory:/slurm/uid_1/job_5/step_0\n3:freezer:/slurm/uid_1/job_5/step_1";
        assert!(matches!(parse(two_steps), Err(CgroupError::Conflict { .. })));
        for text in ["nonsense", "0:", "0::relative/path", "::"] {
            assert!(matches!(parse(text), Err(CgroupError::BadLine { .. })), "{text:?}");
        }
        assert!(matches!(parse(&"0::/a\n".repeat(40_000)), Err(CgroupError::TooLong { .. })));
    }
}
