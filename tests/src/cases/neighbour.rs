//! A cluster of ours on a machine that has a Slurm already: the machine's configuration is as before, the
//! other Slurm and its job do not notice.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::Desk;
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::foreign::Foreign;
use crate::images::WITNESS;
use crate::tier::Check;

/// Settings of a cluster beside the other clusters of the tests.
const SETTINGS: [(&str, &str); 6] = [
    ("SITULA_CLUSTER_STATE", "/var/lib/situla-neighbour-cluster"),
    ("SITULA_CLUSTER_PORT", "27100"),
    ("SITULA_CLUSTER_PREFIX", "nb"),
    ("SITULA_CLUSTER_GPU_FIRST", "800"),
    ("SITULA_CLUSTER_USER", "situla-neighbour"),
    ("SITULA_CLUSTER_NODES", "2"),
];

/// Files that change while the two users of a cluster exist, and are as before when they are gone.
const USERS: [&str; 6] = ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"];

/// Everything below these directories is compared. `/run` is the other Slurm's own, with what mount(8) keeps there.
const WATCHED: [&str; 8] = [
    "/etc",
    "/run",
    "/usr/local",
    "/usr/lib/systemd",
    "/usr/lib/tmpfiles.d",
    "/var/lib/slurm",
    "/var/lib/munge",
    "/var/spool",
];

/// Names alone are compared in these: what is in them is used all the time.
const LISTED: [&str; 5] = ["/", "/dev", "/home", "/var/lib", "/var/log"];

/// The machine's settings that a cluster of nodes with networks of their own might be tempted to change.
const KERNEL: [&str; 4] = [
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/overcommit_memory",
];

/// Up, a step in a container, down: beside a Slurm that runs a job all the while.
///
/// # Errors
/// A file of the machine has changed, or the other Slurm suffered.
pub fn machine_is_left_alone(desk: &Desk) -> Check {
    let foreign = Foreign::start()?;
    let job = foreign.counting_job()?;
    foreign.healthy()?;
    let before = machine(&foreign);
    let lived = live_beside(desk, &foreign, &before);
    // Also after a failure: nothing of ours may stay.
    let down = cluster(desk, &foreign, &["down", "--purge"]);
    lived?;
    down?.success()?;
    let after = machine(&foreign);
    let changed = differences(&before, &after);
    if !changed.is_empty() {
        return Err(format!("changed for good:\n  {}", changed.join("\n  ")).into());
    }
    beats(&foreign)?;
    foreign.healthy()?;
    fs::write(foreign.dir().join("stop"), "")?;
    job.finish(PATIENCE)?.success()?.expect_text("counted")?;
    Ok(())
}

fn live_beside(desk: &Desk, foreign: &Foreign, before: &BTreeMap<String, String>) -> Check {
    cluster(desk, foreign, &["up"])?.success()?;
    beats(foreign)?;
    let trampoline = format!("trampoline={}", desk.env.situla().display());
    let plugin = desk.env.spank().display().to_string();
    cluster(desk, foreign, &["plugin", "install", &plugin, &trampoline])?.success()?;
    let conf = format!("{}/etc/slurm.conf", SETTINGS[0].1);
    // In the other Slurm's directory: the user has none of his own before `up`.
    let image = foreign.dir().join("tiny.sqsh");
    fs::copy(desk.images.path("tiny.sqsh"), &image)?;
    let option = format!("--container-image={}", image.display());
    let script = desk.env.script("as-user").display().to_string();
    let user = SETTINGS[4].1;
    let mut step = foreign.command([&script, user, "srun", "-N2", "--chdir=/", &option, "cat", WITNESS]);
    step.env("SLURM_CONF", conf).current_dir("/");
    let output = command::run(step, PATIENCE)?.success()?;
    if output.stdout.matches("situla tiny image").count() != 2 {
        return Err(format!("not two tasks in the image\n{output}").into());
    }
    // While ours is up only our users are there, and what `down --purge` takes away again.
    let ours = |line: &&String| {
        let users = USERS.iter().any(|name| line.contains(&format!("/etc/{name} ")));
        let places = [
            "/home/situla-neighbour",
            "/var/lib/situla-neighbour-cluster",
            "/var/lib/situla-demo-users",
            "/dev/situla-gpu8",
        ];
        users || places.iter().any(|place| line.contains(place))
    };
    let changed = differences(before, &machine(foreign));
    let foreign_files: Vec<&String> = changed.iter().filter(|line| !ours(line)).collect();
    if !foreign_files.is_empty() {
        return Err(format!("changed while up: {foreign_files:#?}").into());
    }
    if changed.is_empty() {
        return Err("the comparison did not even see our users".into());
    }
    beats(foreign)?;
    foreign.healthy()?;
    Ok(())
}

/// Our cluster, on the other Slurm's machine.
fn cluster(desk: &Desk, foreign: &Foreign, words: &[&str]) -> Result<Output, String> {
    let script = desk.env.script("slurm-cluster").display().to_string();
    let mut command: Command = foreign.command([script.as_str()].iter().chain(words));
    command.envs(SETTINGS);
    command::run(command, PATIENCE * 2)
}

/// The other Slurm's job goes on counting.
fn beats(foreign: &Foreign) -> Check {
    let so_far = foreign.beat();
    if command::wait_until(PATIENCE / 6, || foreign.beat() > so_far) {
        Ok(())
    } else {
        Err(format!("the other Slurm's job stopped at {so_far}").into())
    }
}

/// The machine's configuration: a line for each file, with all that can be changed about it.
fn machine(foreign: &Foreign) -> BTreeMap<String, String> {
    let root = foreign.root();
    let mut seen = BTreeMap::new();
    for dir in WATCHED {
        walk(&root, dir, &mut seen);
    }
    for dir in LISTED {
        for entry in fs::read_dir(root.join(&dir[1..])).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let meta =
                entry.metadata().map(|meta| format!("{:o} {} {}", meta.mode(), meta.uid(), meta.gid()));
            seen.insert(format!("{}/{name} ", dir.trim_end_matches('/')), meta.unwrap_or_default());
        }
    }
    for setting in KERNEL {
        seen.insert(format!("{setting} "), fs::read_to_string(setting).unwrap_or_default());
    }
    seen
}

fn walk(root: &Path, dir: &str, seen: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root.join(&dir[1..])).into_iter().flatten().flatten() {
        let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
        // useradd and userdel keep the last version of each file under this name, and lock by another.
        let kept = USERS.iter().any(|name| path == format!("/etc/{name}-")) || path == "/etc/.pwd.lock";
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        if kept {
            continue;
        }
        let content = if meta.is_file() {
            let mut hasher = DefaultHasher::new();
            let mut content = fs::read(entry.path()).unwrap_or_default();
            if path == "/etc/subuid" || path == "/etc/subgid" {
                // useradd and userdel sort them by the ids, whoever wrote them in another order before.
                let mut lines: Vec<&[u8]> = content.split(|byte| *byte == b'\n').collect();
                lines.sort_unstable();
                content = lines.join(&b'\n');
            }
            content.hash(&mut hasher);
            format!("{:x}", hasher.finish())
        } else {
            fs::read_link(entry.path()).map(|to| to.display().to_string()).unwrap_or_default()
        };
        seen.insert(format!("{path} "), format!("{:o} {} {} {content}", meta.mode(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            walk(root, &path, seen);
        }
    }
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let gone =
        before.iter().filter(|(name, _)| !after.contains_key(*name)).map(|(name, _)| format!("gone: {name}"));
    let other = after.iter().filter(|(name, what)| before.get(*name) != Some(what));
    gone.chain(other.map(|(name, what)| format!("new or changed: {name}{what}"))).collect()
}
