//! What an instance uses, by the kernel's count.
//!
//! Where the instance has a control group to itself, that counts. Elsewhere (in a step of Slurm, whose group
//! it shares, or in a session) its processes are added up: then processor time of ended processes is what
//! their parents have inherited, and memory that processes share is divided among them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use situla_plan::ShareKey;
use situla_runtime::Instance;

use super::error::InstanceError;
use super::state::InstanceState;
use crate::error::EngineError;

/// Where the numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageSource {
    /// A control group that is the instance's own.
    Cgroup,
    /// Its processes, one by one.
    Processes,
}

/// What an instance uses at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Where the numbers come from.
    pub source: UsageSource,
    /// Processor time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The limit on it, where a control group of its own sets one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes inside, its init included.
    pub n_processes: usize,
    /// Processes of which only the resident size is known, which counts shared pages in full.
    pub n_without_pss: usize,
}

/// The most processes of a machine that are looked at.
const MAX_PROCESSES: usize = 1 << 20;

/// The most control groups below one that are looked into.
const MAX_GROUPS: usize = 1000;

/// Asks what an instance uses.
///
/// # Errors
/// It has ended, or does not answer.
pub fn usage(state: &InstanceState) -> Result<Usage, InstanceError> {
    let visit =
        Instance::visit(&ShareKey(state.key.clone()), state.holder.pid).map_err(EngineError::Runtime)?;
    let visit = visit.ok_or_else(|| InstanceError::Silent { name: state.name.clone() })?;
    let namespaces: BTreeSet<u64> = visit.namespace_inodes().into_iter().collect();
    let processes = processes(&namespaces);
    let inside = members(&processes, state.init.pid);
    let own: BTreeSet<i32> =
        descendants(&processes, inside.iter().copied().chain([state.holder.pid]).collect());
    if let Some(usage) = of_own_group(state.init.pid, &own, inside.len()) {
        return Ok(usage);
    }
    Ok(sum(&processes, &inside))
}

/// What is read of one process.
#[derive(Clone, Copy, Debug)]
struct Process {
    parent: i32,
    /// Clock ticks of its own and of children that it has waited for.
    ticks: u64,
    /// Whether it is in one of the namespaces asked for.
    matches: bool,
}

fn processes(namespaces: &BTreeSet<u64>) -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .take(MAX_PROCESSES)
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (parent, ticks) = parse_stat(&stat)?;
            // Those of others, and an init of ours, do not let themselves be looked at.
            let link = fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
            let inode = link.as_ref().and_then(|link| parse_namespace(link.to_str()?));
            let matches = inode.is_some_and(|inode| namespaces.contains(&inode));
            Some((pid, Process { parent, ticks, matches }))
        })
        .collect()
}

/// Parent and processor time of a line of `/proc/PID/stat`.
fn parse_stat(stat: &str) -> Option<(i32, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Fields 4, and 14 to 17; the first here is field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = [14, 15, 16, 17].into_iter().map(number).sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

/// The number in `pid:[4026531836]`.
fn parse_namespace(link: &str) -> Option<u64> {
    link.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()
}

/// The processes inside: init, those in its namespace, and all below them.
fn members(processes: &BTreeMap<i32, Process>, init: i32) -> BTreeSet<i32> {
    let matching = processes.iter().filter(|(_, process)| process.matches).map(|(pid, _)| *pid);
    descendants(processes, matching.chain(processes.contains_key(&init).then_some(init)).collect())
}

/// Completes a set of processes by all that they have started.
fn descendants(processes: &BTreeMap<i32, Process>, mut found: BTreeSet<i32>) -> BTreeSet<i32> {
    loop {
        let more: Vec<i32> = processes
            .iter()
            .filter(|(pid, process)| !found.contains(pid) && found.contains(&process.parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn sum(processes: &BTreeMap<i32, Process>, inside: &BTreeSet<i32>) -> Usage {
    let ticks: u64 = inside.iter().filter_map(|pid| processes.get(pid)).map(|process| process.ticks).sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let mut usage = Usage {
        source: UsageSource::Processes,
        cpu_ns: ticks.saturating_mul(1_000_000_000 / per_second),
        memory_bytes: 0,
        memory_limit_bytes: None,
        n_processes: inside.len(),
        n_without_pss: 0,
    };
    for pid in inside {
        let kib = |file: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next()?.parse().ok())
        };
        let resident: Option<u64> = kib("smaps_rollup", "Pss:").or_else(|| {
            usage.n_without_pss += 1;
            kib("status", "VmRSS:")
        });
        usage.memory_bytes = usage.memory_bytes.saturating_add(resident.unwrap_or(0).saturating_mul(1024));
    }
    usage
}

/// The numbers of the control group of `init`, where nobody else is in it.
fn of_own_group(init: i32, own: &BTreeSet<i32>, n_processes: usize) -> Option<Usage> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
    let group = group_files(&text)?;
    // In version 1 they are two, and somebody may have made but one of them.
    for counted in [&group.memory, &group.cpu] {
        if group_processes(counted)?.into_iter().any(|pid| !own.contains(&pid)) {
            return None;
        }
    }
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let (memory, cpu, limit) = if group.is_unified {
        let cpu = fs::read_to_string(group.cpu.join("cpu.stat")).ok()?;
        let usec =
            cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok())?;
        let limit = number(group.memory.join("memory.max"));
        (number(group.memory.join("memory.current"))?, usec.saturating_mul(1000), limit)
    } else {
        /// More than any machine has: how version 1 writes that there is no limit.
        const NO_LIMIT: u64 = 1 << 62;
        let limit = number(group.memory.join("memory.limit_in_bytes")).filter(|limit| *limit < NO_LIMIT);
        let cpu = number(group.cpu.join("cpuacct.usage"))?;
        (number(group.memory.join("memory.usage_in_bytes"))?, cpu, limit)
    };
    Some(Usage {
        source: UsageSource::Cgroup,
        cpu_ns: cpu,
        memory_bytes: memory,
        memory_limit_bytes: limit,
        n_processes,
        n_without_pss: 0,
    })
}

/// Where a process's control group counts memory and processor time.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    is_unified: bool,
    memory: PathBuf,
    cpu: PathBuf,
}

fn group_files(text: &str) -> Option<Group> {
    let mounted = Path::new("/sys/fs/cgroup");
    let path_of = |controller: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            controllers.split(',').any(|name| name == controller).then(|| path.trim_start_matches('/'))
        })
    };
    if let (Some(memory), Some(cpu)) = (path_of("memory"), path_of("cpuacct")) {
        let (memory, cpu) = (mounted.join("memory").join(memory), mounted.join("cpuacct").join(cpu));
        return Some(Group { is_unified: false, memory, cpu });
    }
    let unified = mounted.join(path_of("")?);
    Some(Group { is_unified: true, memory: unified.clone(), cpu: unified })
}

/// The processes of a control group and of those below it.
fn group_processes(group: &Path) -> Option<Vec<i32>> {
    let mut found = Vec::new();
    let mut pending = vec![group.to_owned()];
    let mut n_seen = 0;
    while let Some(group) = pending.pop() {
        n_seen += 1;
        if n_seen > MAX_GROUPS {
            return None;
        }
        let text = fs::read_to_string(group.join("cgroup.procs")).ok()?;
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        let below = fs::read_dir(&group).ok()?.flatten();
        pending.extend(
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_belong_by_namespace_or_by_parent() {
        let process = |parent, matches| Process { parent, ticks: 1, matches };
        // 10 is an init that does not let itself be looked at; 30 has entered; 40 is a stranger.
        let processes = BTreeMap::from([
            (1, process(0, false)),
            (9, process(1, false)),
            (10, process(9, false)),
            (11, process(10, true)),
            (12, process(11, false)),
            (30, process(29, true)),
            (31, process(30, false)),
            (40, process(1, false)),
        ]);
        let inside = members(&processes, 10);
        assert_eq!(inside.iter().copied().collect::<Vec<_>>(), [10, 11, 12, 30, 31]);
        assert_eq!(sum(&processes, &inside).n_processes, 5);
        assert!(members(&processes, 99).contains(&11));
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let stat = "5 (a) b) S 4 5 5 0 -1 0 0 0 0 0 10 20 30 40 20 0 1 0 7 0 0";
        assert_eq!(parse_stat(stat), Some((4, 100)));
        assert_eq!(parse_stat("5 (a) S 4"), None);
        assert_eq!(parse_namespace("pid:[4026531836]"), Some(4_026_531_836));
        assert_eq!(parse_namespace("mnt:[1]"), None);
        let mounted = |path: &str| Path::new("/sys/fs/cgroup").join(path);
        let unified = Group { is_unified: true, memory: mounted("user/x"), cpu: mounted("user/x") };
        assert_eq!(group_files("0::/user/x\n"), Some(unified));
        let split =
            Group { is_unified: false, memory: mounted("memory/slurm/uid_1"), cpu: mounted("cpuacct/slurm") };
        assert_eq!(group_files("9:memory:/slurm/uid_1\n4:cpu,cpuacct:/slurm\n0::/\n"), Some(split));
        assert_eq!(group_files(""), None);
    }
}
