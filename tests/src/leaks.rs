//! Finds what a run left behind: processes, mounts, sockets, control groups, files.
//!
//! A [`Snapshot`] is taken before a case; [`Snapshot::expect_clean`] waits, with a deadline, until nothing
//! is there that was not there before. The look goes into the mount namespace of every node (a node's slurmd
//! has one of its own) and into every network namespace that a process of the machine uses.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::command::wait_until;
use crate::environment::TestEnv;

/// After the end of a step Slurm gives processes KillWait (5 s here), then kills; accounting and epilog take
/// their time on two cores. What is still there after this is a leak.
const SETTLE: Duration = Duration::from_secs(15);

/// How deep the directories under watch are listed: a step's own directories are at most this deep.
const DEPTH: usize = 3;

/// What is there at one moment, as lines that name it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    uid: u32,
    nodes: Vec<(String, u32)>,
    watched: Vec<PathBuf>,
    home: PathBuf,
    seen: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the whole machine and, with a cluster, into its nodes.
    ///
    /// # Errors
    /// There is no unprivileged user to look for.
    pub fn take(env: &TestEnv, cluster: Option<&Cluster>) -> Result<Self, String> {
        let mut watched: Vec<PathBuf> =
            ["/tmp", "/var/tmp", "/dev/shm", "/run/user"].map(PathBuf::from).into();
        let mut nodes = Vec::new();
        if let Some(cluster) = cluster {
            // Isolated nodes keep their /tmp below nodes/; the rest is Slurm's, PMIx's and ours.
            watched.extend(["tmp", "spool", "nodes"].map(|d| cluster.state_dir().join(d)));
            nodes = cluster.nodes().iter().map(|(n, p)| (n.clone(), *p)).collect();
        }
        let home = env.home()?.to_path_buf();
        let mut snapshot = Self { uid: env.uid()?, nodes, watched, home, seen: BTreeSet::new() };
        snapshot.seen = snapshot.look();
        Ok(snapshot)
    }

    /// Waits until nothing is left that was not there when the snapshot was taken.
    ///
    /// # Errors
    /// One line for each thing that stays.
    pub fn expect_clean(&self) -> Result<(), String> {
        let mut left: Vec<String> = Vec::new();
        if wait_until(SETTLE, || {
            left = self.look().difference(&self.seen).cloned().collect();
            left.is_empty()
        }) {
            Ok(())
        } else {
            Err(format!("left behind:\n  {}", left.join("\n  ")))
        }
    }

    /// What is here and was not there.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Vec<String> {
        self.seen.difference(&before.seen).cloned().collect()
    }

    fn look(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut networks = BTreeSet::new();
        for pid in process_ids() {
            let dir = PathBuf::from(format!("/proc/{pid}"));
            if is_of_another_machine(&dir) {
                continue;
            }
            self.look_at_process(pid, &dir, &mut seen);
            if let Ok(network) = fs::read_link(dir.join("ns/net"))
                && networks.insert(network)
            {
                self.sockets(&dir, &mut seen);
            }
        }
        mounts("host", Path::new("/proc/self"), &mut seen);
        for (node, pid) in &self.nodes {
            mounts(node, &PathBuf::from(format!("/proc/{pid}")), &mut seen);
            // In isolated nodes /dev/shm and /run are seen from inside only.
            for inner in ["dev/shm", "run"] {
                self.files(
                    &PathBuf::from(format!("/proc/{pid}/root")).join(inner),
                    DEPTH,
                    &format!("{node}:"),
                    &mut seen,
                );
            }
            cgroups(node, &mut seen);
        }
        for dir in &self.watched {
            self.files(dir, DEPTH, "", &mut seen);
        }
        partial(&self.home, &mut seen);
        seen
    }

    /// Processes of the user, and any process of root's that is our program. Those of other users are of other
    /// clusters, such as a demonstration's.
    fn look_at_process(&self, pid: u32, dir: &Path, seen: &mut BTreeSet<String>) {
        let Ok(status) = fs::read_to_string(dir.join("status")) else { return };
        let field =
            |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim().to_owned();
        if matches!(field("State:").chars().next(), Some('Z' | 'X')) {
            return;
        }
        let uid = field("Uid:").split_whitespace().next().and_then(|u| u.parse().ok());
        let name = field("Name:");
        if uid == Some(self.uid) || (uid == Some(0) && name.starts_with("situla")) {
            let line = fs::read(dir.join("cmdline")).unwrap_or_default();
            let line: String = String::from_utf8_lossy(&line).replace('\0', " ").chars().take(120).collect();
            seen.insert(format!("process {pid} ({name}): {line}"));
        }
    }

    /// Unix sockets, abstract ones too, whose name holds ours: the user's meeting points, and whatever else is
    /// not of a cluster's own daemons.
    fn sockets(&self, process: &Path, seen: &mut BTreeSet<String>) {
        let Ok(table) = fs::read_to_string(process.join("net/unix")) else { return };
        for name in table.lines().filter_map(|line| line.split_whitespace().nth(7)) {
            let watched = self.watched.iter().any(|dir| name.starts_with(&*dir.to_string_lossy()));
            let slurms = !watched && ["-cluster", "/situla-foreign"].iter().any(|of| name.contains(of));
            // @situla/UID/JOB.STEP/…
            let user = name.strip_prefix("@situla/").and_then(|rest| rest.split('/').next()?.parse().ok());
            if name.contains("situla") && !slurms && user.is_none_or(|uid: u32| uid == self.uid || uid == 0) {
                seen.insert(format!("socket {name}"));
            }
        }
    }

    /// Files of the user under a directory; in a cluster's own directories any file with our name as well. (In
    /// /tmp there may be those of whoever builds or tests on the same machine.)
    fn files(&self, dir: &Path, depth: usize, prefix: &str, seen: &mut BTreeSet<String>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            let shared = ["/tmp", "/var/tmp", "/dev/shm", "/run"].iter().any(|dir| path.starts_with(dir));
            // Where root's images are mounted: made when first needed, and then there like /run/lock.
            let stays = meta.uid() == 0 && path.ends_with("run/situla");
            let ours = !shared && !stays && entry.file_name().to_string_lossy().starts_with("situla");
            if meta.uid() == self.uid || ours {
                seen.insert(format!("file {prefix}{}", path.display()));
            }
            if meta.is_dir() && depth > 1 {
                self.files(&path, depth - 1, prefix, seen);
            }
        }
    }
}

/// Files of the user's store and records that are there only while something is being made: temporary files, images
/// without their record, and whatever has a name that no finished file has. Not leases: one whose holder was killed
/// stays until the next pull takes it over, and a case that must not leave one looks for itself.
fn partial(home: &Path, seen: &mut BTreeSet<String>) {
    let store = home.join(".cache/situla");
    let pins = home.join(".local/state/situla/pins");
    let finished = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path.parent().and_then(Path::file_name).and_then(|parent| parent.to_str()) {
            Some("images") if name.ends_with(".sqsh") || name.ends_with(".sif") => {
                path.with_extension("json").exists()
            }
            Some("images" | "refs") => name.ends_with(".json"),
            Some("leases") => name.ends_with(".lease"),
            // Also the mark of a process that was killed: it counts for nothing, and goes with the next prune.
            Some("uses") => name.starts_with("sha256-"),
            Some("identities") => name.ends_with(".json"),
            // The digest of a tag, one directory for each job.
            Some(_) if path.starts_with(&pins) => name.len() == 64 || name == ".swept",
            Some("tmp") => false,
            // Whoever starts an instance takes turns by it.
            _ if name == ".lock" => true,
            _ => name.ends_with(".jsonl"),
        }
    };
    let mut note = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
        for path in files.map(|entry| entry.path()).filter(|path| !finished(path)) {
            seen.insert(format!("partial file {}", path.display()));
        }
    };
    for directory in [store, home.join(".local/state/situla")] {
        note(&directory);
        directories(&directory, &mut note);
    }
}

/// The ids of all processes of the machine.
pub(crate) fn process_ids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process belongs to a machine of `scripts/fresh-machine`, which has tests of its own.
fn is_of_another_machine(process: &Path) -> bool {
    fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(":/situla-fresh"))
}

/// Mounts of a namespace. The same mount point twice (a bind over a bind) counts twice.
fn mounts(place: &str, process: &Path, seen: &mut BTreeSet<String>) {
    let Ok(table) = fs::read_to_string(process.join("mountinfo")) else { return };
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let (Some(id), Some(point)) = (fields.first(), fields.get(4)) {
            seen.insert(format!("mount {id} on {place} at {point}"));
        }
    }
}

/// Slurm's control groups of jobs on a node that hold a process, in every hierarchy. About once in 300 steps,
/// where several jobs of a user end at once, Slurm 22.05 leaves the empty directory of one.
fn cgroups(node: &str, seen: &mut BTreeSet<String>) {
    let mut note = |path: &Path| {
        if fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| !pids.trim().is_empty()) {
            seen.insert(format!("cgroup {}", path.display()));
        }
    };
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
    for hierarchy in hierarchies.flatten() {
        let root = hierarchy.path().join(format!("slurm_{node}"));
        directories(&root, &mut note);
    }
    directories(
        &PathBuf::from(format!("/sys/fs/cgroup/system.slice/{node}_slurmstepd.scope")),
        &mut |path| {
            // Version 2 keeps "system" for slurmd itself.
            if path.to_string_lossy().contains("/job_") {
                note(path);
            }
        },
    );
}

/// Every directory below one.
fn directories(root: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            visit(&entry.path());
            directories(&entry.path(), visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_files_are_told_from_finished_ones() {
        let home = std::env::temp_dir().join(format!("partial-files-{}", std::process::id()));
        let finished = [
            ".cache/situla/images/sha256-a.sqsh",
            ".cache/situla/images/sha256-a.json",
            ".cache/situla/images/sha256-d.sif",
            ".cache/situla/images/sha256-d.json",
            ".cache/situla/refs/b.json",
            ".cache/situla/leases/sha256-c.lease",
            ".cache/situla/uses/sha256-a",
            ".cache/situla/uses/sha256-a.1.2.r.h",
            ".cache/situla/identities/0.json",
            ".local/state/situla/records/cluster/1.0.n1.jsonl",
            ".local/state/situla/records/local-1.jsonl",
            &format!(".local/state/situla/pins/cluster-1/{}", "0".repeat(64)),
        ];
        let partial_ones = [
            ".cache/situla/images/sha256-b.sqsh",
            ".cache/situla/images/sha256-c.sqsh.new",
            ".cache/situla/images/sha256-e.sif",
            ".cache/situla/tmp/sha256-c",
            ".local/state/situla/records/cluster/1.0.n1.jsonl.tmp",
            ".local/state/situla/pins/cluster-1/.new",
        ];
        for path in finished.iter().chain(&partial_ones) {
            fs::create_dir_all(home.join(path).parent().unwrap()).unwrap();
            fs::write(home.join(path), "").unwrap();
        }
        let mut seen = BTreeSet::new();
        partial(&home, &mut seen);
        fs::remove_dir_all(&home).unwrap();
        let expected = partial_ones.map(|path| format!("partial file {}", home.join(path).display()));
        assert_eq!(seen, BTreeSet::from(expected));
    }
}
