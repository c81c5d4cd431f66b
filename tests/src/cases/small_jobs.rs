//! Conversions in jobs that have little: they finish, or name the limit; no process of theirs is ever killed for want
//! of memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Desk;
use super::kills::{names, whole_store};
use super::privileged::registry;
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::tier::{Check, Skip};

/// Whether the conversion was made; the other outcome is one error that names a limit in MiB.
fn made_or_named(output: Output) -> Result<bool, String> {
    if output.status.success() {
        return Ok(true);
    }
    let one = output.stderr.lines().filter(|line| line.starts_with("error:")).count() == 1;
    let output = output.expect_code(125)?.expect_text("MiB")?;
    if one { Ok(false) } else { Err(format!("not one error\n{output}")) }
}

/// At every size of the address space, an image is made or one reason is given.
///
/// # Errors
/// Another reason, none, or a size that changes nothing.
pub fn address_space(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("address-space")?;
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let mut made = Vec::new();
    for mib in [100, 120, 140, 200, 300, 500, 1000, 4000] {
        let limit = format!("--as={}", mib << 20);
        let words = ["prlimit", &limit, "situla", "convert", "--force", &layout, "a.sqsh"];
        made.push(made_or_named(desk.env.as_user(dir.path(), words)?)?);
    }
    if made.first() != Some(&false) || made.last() != Some(&true) || !made.is_sorted() {
        return Err(format!("the address space changes nothing, or more is less: {made:?}").into());
    }
    Ok(())
}

/// A control group with so many bytes of memory and no swap, which goes with the case.
pub(super) struct Group {
    pub(super) path: PathBuf,
    pub(super) is_unified: bool,
}

impl Group {
    pub(super) fn new(name: &str, bytes: u64) -> Result<Self, String> {
        let (parent, is_unified) = parent().map_err(|Skip(reason)| reason)?;
        let group = Self { path: parent.join(format!("situla-{name}-{}", std::process::id())), is_unified };
        let io = |e: std::io::Error| format!("{}: {e}", group.path.display());
        fs::create_dir(&group.path).map_err(io)?;
        let limit = if is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.path.join(limit), bytes.to_string()).map_err(io)?;
        if is_unified {
            // Not there without swap.
            let _ = fs::write(group.path.join("memory.swap.max"), "0");
        }
        Ok(group)
    }

    /// One of version 1 that counts something else.
    pub(super) fn below(controller: &str, name: &str) -> Result<Self, String> {
        let path = Path::new("/sys/fs/cgroup").join(controller);
        let group =
            Self { path: path.join(format!("situla-{name}-{}", std::process::id())), is_unified: false };
        fs::create_dir(&group.path).map_err(|e| format!("{}: {e}", group.path.display()))?;
        Ok(group)
    }

    /// Runs a command of the user in the group, on one processor.
    fn run(&self, desk: &Desk, dir: &Path, words: &[&str]) -> Result<Output, String> {
        self.run_within(desk, dir, words, PATIENCE)
    }

    fn run_within(&self, desk: &Desk, dir: &Path, words: &[&str], limit: Duration) -> Result<Output, String> {
        let words = ["taskset", "-c", "0"].into_iter().chain(words.iter().copied());
        command::run(in_group(&desk.env.user_command(dir, words)?, dir, &self.path), limit)
    }

    /// Processes that the kernel has killed in the group for want of memory.
    fn n_killed(&self) -> Result<u64, String> {
        let file = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        let path = self.path.join(file);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.ok_or_else(|| format!("{}: no count of kills", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What stays is found by the look for leaks.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Where groups with a limit of memory can be made, and whether they are of version 2.
fn parent() -> Result<(PathBuf, bool), Skip> {
    let mounted = Path::new("/sys/fs/cgroup");
    let enabled = fs::read_to_string(mounted.join("cgroup.subtree_control")).unwrap_or_default();
    if enabled.split_whitespace().any(|controller| controller == "memory") {
        return Ok((mounted.to_owned(), true));
    }
    let version_1 = mounted.join("memory");
    if version_1.join("memory.limit_in_bytes").exists() {
        return Ok((version_1, false));
    }
    Err(Skip("no control groups with limits of memory on this machine".into()))
}

/// Whether groups can be made.
///
/// # Errors
/// They cannot.
pub fn ready() -> Result<(), Skip> {
    parent().map(drop)
}

/// In a control group of little memory, a program that fills what `--writable-tmpfs` gives it is told that there is no room, and
/// goes on; the kernel kills nothing, and no more than half of the memory was written.
///
/// # Errors
/// It is not told, or killed.
pub fn written_into_memory(desk: &Desk) -> Check {
    const MIB: u64 = 96;
    let dir = desk.env.work_dir("memory")?;
    let fits = (MIB << 20) / 4..=(MIB << 20) / 2;
    let group = Group::new("memory", MIB << 20)?;
    let script = "dd if=/dev/zero of=/full bs=1M; echo written $(stat -c %s /full); exit 7";
    for image in [desk.env.image_tree("tiny").display().to_string(), desk.images.path("tiny.sqsh")] {
        let words = ["situla", "exec", "--writable-tmpfs", &image, "sh", "-c", script];
        let output = group.run(desk, dir.path(), &words)?.expect_code(7)?;
        let output = output.expect_text("No space left on device")?;
        let written =
            output.stdout.lines().find_map(|line| line.strip_prefix("written ")?.parse::<u64>().ok());
        let n_killed = group.n_killed()?;
        if written.is_none_or(|bytes| !fits.contains(&bytes)) || n_killed > 0 {
            return Err(format!("{written:?} bytes of {MIB} MiB, {n_killed} killed\n{output}").into());
        }
    }
    Ok(())
}

/// In a control group of little memory and with one processor, an image is made, or the limit is named where it has too
/// many files; the kernel kills nothing.
///
/// # Errors
/// It does, or a limit changes nothing.
pub fn control_group(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("small-job")?;
    // As many files as 128 MiB have no room for, and 512 MiB have.
    let script =
        "mkdir many && cd many && for d in $(seq 400); do mkdir $d; (cd $d && seq 700 | xargs touch); done";
    desk.env.as_user(dir.path(), ["sh", "-c", script])?.success()?;
    let large = "head -c 300M /dev/urandom > many/large";
    desk.env.as_user(dir.path(), ["sh", "-c", large])?.success()?;
    for (mib, source, expected) in
        [(32u64, "many/1", false), (80, "many/1", true), (128, "many", false), (512, "many", true)]
    {
        let group = Group::new("small", mib << 20)?;
        let words = ["situla", "convert", "--force", source, "a.sqsh"];
        let made = made_or_named(group.run(desk, dir.path(), &words)?)?;
        let n_killed = group.n_killed()?;
        if made != expected || n_killed > 0 {
            return Err(format!("{source} in {mib} MiB: made {made}, {n_killed} killed").into());
        }
    }
    Ok(())
}

/// Needs two processors, and control groups that limit them.
///
/// # Errors
/// One is not there.
pub fn processors() -> Result<(), Skip> {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        return Err(Skip("needs two processors".into()));
    }
    super::no_helpers::tracer()?;
    processor_groups().map(drop)
}

/// Files of a control group, and what they hold where it may use one processor.
type QuotaOfOne = &'static [(&'static str, &'static str)];

/// Where groups with a quota of processors can be made; and what they need for that of one.
fn processor_groups() -> Result<(PathBuf, QuotaOfOne), Skip> {
    let mounted = Path::new("/sys/fs/cgroup");
    let enabled = fs::read_to_string(mounted.join("cgroup.subtree_control")).unwrap_or_default();
    if enabled.split_whitespace().any(|controller| controller == "cpu") {
        return Ok((mounted.to_owned(), &[("cpu.max", "100000 100000")]));
    }
    let version_1 = mounted.join("cpu");
    if version_1.join("cpu.cfs_quota_us").exists() {
        return Ok((version_1, &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]));
    }
    Err(Skip("no control groups with quotas of processors on this machine".into()))
}

/// A conversion has as many threads as processors that it may use: by affinity, and by the quota of its control group.
///
/// # Errors
/// It has others.
pub fn threads(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("threads")?;
    let (parent, settings) = processor_groups().map_err(|Skip(reason)| reason)?;
    let group =
        Group { path: parent.join(format!("situla-threads-{}", std::process::id())), is_unified: false };
    fs::create_dir(&group.path)?;
    for (file, value) in settings {
        fs::write(group.path.join(file), value)?;
    }
    let tree = desk.env.image_tree("tiny").display().to_string();
    let trace = dir.path().join("trace").display().to_string();
    let made = |processors: &str, place: &Path| -> Result<usize, libtest_mimic::Failed> {
        let strace = ["strace", "-f", "-qq", "-e", "trace=clone,clone3", "-o", &trace];
        let words = ["taskset", "-c", processors].into_iter().chain(strace);
        let words = words.chain(["situla", "convert", "--quiet", "--force", &tree, "a.sqsh"]);
        command::run(in_group(&desk.env.user_command(dir.path(), words)?, dir.path(), place), PATIENCE)?
            .success()?;
        let text = fs::read_to_string(&trace)?;
        Ok(text.lines().filter(|line| line.contains("CLONE_THREAD") && !line.contains("resumed>")).count())
    };
    let (two, one, quota) = (made("0,1", &parent)?, made("0", &parent)?, made("0,1", &group.path)?);
    // One compresses by itself; two are beside the one that reads.
    if two != one + 2 || quota != one {
        return Err(
            format!("{two} threads on two processors, {one} on one, {quota} by the quota of one").into()
        );
    }
    Ok(())
}

/// The same command in a control group.
pub(super) fn in_group(inside: &Command, dir: &Path, group: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"]);
    command.arg(group).arg(inside.get_program()).args(inside.get_args()).current_dir(dir).env_clear();
    command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// An image of several layers is pulled in a control group of little memory and with one processor, or the limit is named;
/// the kernel kills nothing, and where it was named nothing is left.
///
/// # Errors
/// It is otherwise.
pub fn pull_in_a_control_group(desk: &Desk) -> Check {
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let dir = desk.env.work_dir("small-pull")?;
    let cache = format!("XDG_CACHE_HOME={}", dir.path().join("cache").display());
    let store = dir.path().join("cache/situla");
    for (mib, tag, expected) in
        [(24u64, "1", false), (24, "zstd", false), (96, "1", true), (96, "zstd", true), (512, "1", true)]
    {
        let _ = fs::remove_dir_all(dir.path().join("cache"));
        let group = Group::new("pull", mib << 20)?;
        let source = format!("docker://{address}/demo:{tag}");
        let words = ["env", &cache, "situla", "pull", "--store-only", &source];
        let output = group.run(desk, dir.path(), &words)?;
        let (made, n_killed) = (made_or_named(output)?, group.n_killed()?);
        if made != expected || n_killed > 0 {
            return Err(format!("{source} in {mib} MiB: made {made}, {n_killed} killed").into());
        }
        if made {
            whole_store(&store)?;
        } else if ["images", "leases", "tmp", "refs"].iter().any(|part| !names(&store.join(part)).is_empty())
        {
            return Err(format!("{source} in {mib} MiB: a refused pull has left something").into());
        }
    }
    Ok(())
}

/// In a control group of 512 MiB and with one processor, a tree of nearly a million files is converted, with all of them; in
/// one of much less the limit is named. The kernel kills nothing.
///
/// # Errors
/// It is otherwise.
pub fn nearly_a_million_files(desk: &Desk) -> Check {
    /// Making, converting and removing them, on a busy machine.
    const LONG: Duration = Duration::from_secs(900);
    let dir = desk.env.work_dir("million")?;
    let script = "mkdir many && cd many && for d in $(seq 950); do mkdir $d && (cd $d && seq -f file-%g-of-a-thousand 1000 | xargs touch) || exit; done";
    command::run(desk.env.user_command(dir.path(), ["sh", "-c", script])?, LONG)?.success()?;
    for (mib, expected) in [(96u64, false), (512, true)] {
        let group = Group::new("million", mib << 20)?;
        let words = ["situla", "convert", "--quiet", "many", "many.sqsh"];
        let output = group.run_within(desk, dir.path(), &words, LONG)?;
        let (took, made, n_killed) = (output.took, made_or_named(output)?, group.n_killed()?);
        if made != expected || n_killed > 0 {
            return Err(format!("in {mib} MiB: made {made} after {took:?}, {n_killed} killed").into());
        }
    }
    let count = ["sh", "-c", "unsquashfs -l many.sqsh | grep -c file-"];
    let count = command::run(desk.env.user_command(dir.path(), count)?, LONG)?.success()?;
    if count.stdout.trim() != "950000" {
        return Err(format!("not all files are there\n{count}").into());
    }
    // Faster than one by one, and outside of the time that the other cases have.
    command::run(desk.env.user_command(dir.path(), ["rm", "-rf", "many"])?, LONG)?.success()?;
    Ok(())
}
