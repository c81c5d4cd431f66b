//! What of the machine a conversion may use: processors by affinity and quota, memory by the control groups and the
//! limit of the address space. What follows from that is decided in `situla_image::Resources`; and what is written into
//! memory above an image, in `situla_engine`.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use situla_image::{ConvertOptions, Resources};

use crate::command_error::CommandError;

/// Where systems mount control groups; version 1 has a directory for each controller in there.
const MOUNTED: &str = "/sys/fs/cgroup";
/// More than any machine has: how version 1 says that there is no limit (the largest number of pages).
const NO_LIMIT: u64 = 1 << 62;

/// The settings of a conversion within what this process may use.
pub(crate) fn convert_options() -> Result<ConvertOptions, CommandError> {
    Ok(ConvertOptions::within(resources()?))
}

/// Bytes of memory that the control groups of this process leave, where one of them has a limit.
pub(crate) fn memory_of_groups() -> Option<u64> {
    memory_limit(&groups(), Path::new(MOUNTED), None)
}

fn groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// What this process may use.
pub(crate) fn resources() -> Result<Resources, CommandError> {
    // The standard library looks at the affinity mask and at the quotas of both versions of control groups.
    let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = memory_limit(&groups(), Path::new(MOUNTED), getrlimit(Resource::As).current);
    Resources::plan(n_cpus, limit).map_err(|error| {
        let remedy = "give the job more memory (--mem), or convert the image elsewhere, as on a login node";
        CommandError::other(&error, "setup-failed", Some(remedy.to_owned()))
    })
}

/// Bytes that may be used: what the control groups in `/proc/self/cgroup` leave, and what the address space can hold.
fn memory_limit(groups: &str, mounted: &Path, address_space: Option<u64>) -> Option<u64> {
    // Stacks, code and the allocator's reserves are addresses that are never memory.
    let of_addresses = address_space.map(|bytes| bytes / 2);
    let of_groups = groups.lines().filter_map(|line| group_limit(line, mounted)).min();
    [of_addresses, of_groups].into_iter().flatten().min()
}

/// What one line of `/proc/self/cgroup` (cgroups(7)) leaves: the least along the way to the root, as each group there
/// limits all below.
fn group_limit(line: &str, mounted: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, files) = if controllers.is_empty() {
        (mounted.to_owned(), &UNIFIED)
    } else if controllers.split(',').any(|name| name == "memory") {
        (mounted.join("memory"), &VERSION_1)
    } else {
        return None;
    };
    // In a container the path may be one outside: then the groups that are there are looked at, up to the root.
    let below: PathBuf = Path::new(path).components().skip(1).collect();
    below.ancestors().filter_map(|group| free(&root.join(group), files)).min()
}

/// The files of a version, and the lines in its statistics that count what cannot be given back: the memory of processes,
/// and files in memory, which a tmpfs holds and which no process need have mapped.
struct Files {
    limit: &'static str,
    used: [&'static str; 2],
}

const UNIFIED: Files = Files { limit: "memory.max", used: ["anon ", "shmem "] };
const VERSION_1: Files = Files { limit: "memory.limit_in_bytes", used: ["total_rss ", "total_shmem "] };

/// What a group leaves: its limit less what its processes and their files in memory hold. Other page cache is not held: the
/// kernel takes it back.
fn free(group: &Path, files: &Files) -> Option<u64> {
    let limit = std::fs::read_to_string(group.join(files.limit)).ok()?;
    // Version 2 writes "max" where there is no limit.
    let limit: u64 = limit.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)?;
    let statistics = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let count =
        |name| statistics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let used = files.used.into_iter().filter_map(count).fold(0, u64::saturating_add);
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(mounted: &Path, path: &str, files: &[(&str, String)]) {
        let directory = mounted.join(path);
        fs::create_dir_all(&directory).unwrap();
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
        }
    }

    #[test]
    fn the_least_of_all_groups_on_the_way_counts() {
        let dir = tempfile::tempdir().unwrap();
        let v2 = dir.path().join("v2");
        let limit = |mib: u64| ("memory.max", format!("{}\n", mib * MIB));
        group(&v2, "", &[("memory.stat", "anon 1\n".into())]);
        group(&v2, "slurm", &[("memory.max", "max\n".into())]);
        group(
            &v2,
            "slurm/job_1",
            &[limit(512), ("memory.stat", format!("file 9\nanon {}\nkernel 3\n", 100 * MIB))],
        );
        let held = format!("anon {}\nfile {}\nshmem {}\n", 10 * MIB, 90 * MIB, 60 * MIB);
        group(&v2, "slurm/job_2", &[limit(512), ("memory.stat", held)]);
        group(&v2, "slurm/job_1/step_0", &[limit(800)]);
        let v1 = dir.path().join("v1");
        let old = |bytes: u64| ("memory.limit_in_bytes", format!("{bytes}\n"));
        group(&v1, "memory", &[old(9_223_372_036_854_771_712)]);
        group(
            &v1,
            "memory/job",
            &[old(300 * MIB), ("memory.stat", format!("rss 1\ntotal_rss {}\n", 50 * MIB))],
        );
        let held = format!("shmem 1\ntotal_rss {}\ntotal_shmem {}\n", 50 * MIB, 20 * MIB);
        group(&v1, "memory/job_2", &[old(300 * MIB), ("memory.stat", held)]);
        group(&v1, "memory/free", &[old(9_223_372_036_854_771_712)]);
        for (what, groups, mounted, addresses, want) in [
            ("unified", "0::/slurm/job_1/step_0\n", &v2, None, Some(412)),
            ("unified, no limit", "0::/slurm\n", &v2, None, None),
            ("a path outside", "0::/slurm/job_1/gone/below\n", &v2, None, Some(412)),
            ("version 1", "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n", &v1, None, Some(250)),
            ("unified, files in memory", "0::/slurm/job_2\n", &v2, None, Some(442)),
            ("version 1, files in memory", "4:memory:/job_2\n", &v1, None, Some(230)),
            ("version 1, no limit", "4:memory:/free\n", &v1, None, None),
            ("address space", "0::/slurm\n", &v2, Some(100 * MIB), Some(50)),
            ("the least of both", "0::/slurm/job_1\n", &v2, Some(100_000 * MIB), Some(412)),
            ("nothing is known", "", &v2, None, None),
            ("nonsense", "x\n::\n4:memory\n", &v1, None, None),
        ] {
            let limit = memory_limit(groups, mounted, addresses);
            assert_eq!(limit, want.map(|mib| mib * MIB), "{what}");
        }
    }

    #[test]
    fn this_process_has_something_to_work_with() {
        let resources = resources().unwrap();
        let n_cpus = std::thread::available_parallelism().unwrap().get();
        assert!(resources.n_threads >= 1 && resources.n_threads <= n_cpus);
    }
}
