//! Images that are extracted once on a node: what runs from them, who makes them, and what stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Desk, Site};
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::process_ids;
use crate::tier::Check;

fn run(desk: &Desk, cwd: &Path, words: &[&str]) -> Result<Output, String> {
    desk.env.as_user(cwd, words)
}

/// Where the user's trees are.
fn place(desk: &Desk) -> Result<PathBuf, String> {
    Ok(PathBuf::from(format!("/var/tmp/situla-{}", desk.env.uid()?)))
}

/// The trees, and what is being made.
pub(super) fn found(desk: &Desk) -> Result<(Vec<PathBuf>, usize), String> {
    let entries = |name: &str| -> Result<Vec<PathBuf>, String> {
        let entries = fs::read_dir(place(desk)?.join(name)).into_iter().flatten().flatten();
        Ok(entries.map(|entry| entry.path()).collect())
    };
    Ok((entries("trees")?, entries("building")?.len()))
}

pub(super) fn empty(desk: &Desk, cwd: &Path) -> Check {
    run(desk, cwd, &["situla", "cache", "prune", "--all"])?.success()?;
    if place(desk)?.exists() { Err(format!("{:?} is left", found(desk)?).into()) } else { Ok(()) }
}

/// The user without `/dev/fuse`, whatever mode the machine's has: in a mount namespace of his own a node that is root's
/// alone lies over it.
fn without_fuse(desk: &Desk, cwd: &Path, words: &[&str]) -> Result<Output, String> {
    let user = format!("--reuid={}", desk.env.user());
    let closed = "mount -t tmpfs -o mode=755,size=64k tmpfs /mnt && mknod -m 600 /mnt/fuse c 10 229 && \
                  mount --bind /mnt/fuse /dev/fuse && umount -l /mnt && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", closed, "sh"]);
    command.args(["setpriv", &user, "--regid=nogroup", "--clear-groups", "--"]).args(words);
    command.current_dir(cwd).env_clear();
    command.env("PATH", desk.env.search_path()).env("HOME", desk.env.home()?).env("USER", desk.env.user());
    command::run(command, PATIENCE)
}

/// From a tree the payload sees what it sees by FUSE, of every kind of image file, read-only and with his own
/// account; the tree is made once, also for the same bytes under another name, and a Plan makes none.
///
/// # Errors
/// It does not.
pub fn as_by_fuse(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("extracted")?;
    let script = format!(
        "cat {WITNESS}; ls -lan /bin /etc | sed 's/ [0-9][0-9]*:[0-9][0-9] / /'; id; grep ^$(id -un): /etc/passwd; \
         touch /x 2>&1; pwd"
    );
    let image = desk.images.path("tiny.sqsh");
    let plan =
        run(desk, dir.path(), &["situla", "plan", "--rootfs", "extract", &image, "true"])?.success()?;
    let plan: Value = serde_json::from_str(&plan.stdout)?;
    if plan["rootfs"]["rung"] != "extracted" || place(desk)?.exists() {
        return Err(format!("rung {}, or the plan has made something", plan["rootfs"]["rung"]).into());
    }
    for name in ["tiny.sqsh", "tiny.sif"] {
        let image = desk.images.path(name);
        let ways = ["fuse", "extract", "extract"].map(|way| {
            run(desk, dir.path(), &["situla", "exec", "--rootfs", way, &image, "sh", "-c", &script])
        });
        let [by_fuse, first, second] = ways;
        let (by_fuse, first, second) = (by_fuse?.success()?, first?.success()?, second?.success()?);
        // A file system of its own counts what directories need in its own way, and what is shown above the
        // image is as old as the container.
        let lines = |output: &Output| -> Vec<String> {
            let plain = output.stdout.lines().filter(|line| !line.starts_with("total "));
            let entry = |line: &str| -> String {
                let fields: Vec<&str> = line.split_whitespace().collect();
                if line.starts_with('d') && fields.len() > 5 {
                    format!("{} {}", fields[0], fields[fields.len() - 1])
                } else if line.starts_with('-') && fields.len() > 5 {
                    format!("{} {}", fields[..5].join(" "), fields[fields.len() - 1])
                } else {
                    fields.join(" ")
                }
            };
            plain.map(entry).collect()
        };
        for (a, b) in [(&by_fuse, &first), (&first, &second)] {
            let (a, b) = (lines(a), lines(b));
            if let Some((a, b)) = a.iter().zip(&b).find(|(a, b)| a != b) {
                return Err(format!("{name}: {a:?} is not {b:?}").into());
            }
            if a.len() != b.len() || a.len() < 100 {
                return Err(format!("{name}: {} and {} lines", a.len(), b.len()).into());
            }
        }
        first.expect_text("Read-only file system")?;
    }
    let copy = dir.path().join("copy.sqsh").display().to_string();
    run(desk, dir.path(), &["cp", &image, &copy])?.success()?;
    run(desk, dir.path(), &["situla", "exec", "--rootfs=extract", &copy, "true"])?.success()?;
    let (trees, building) = found(desk)?;
    if trees.len() != 2 || building != 0 {
        return Err(format!("there are {trees:?}, and {building} begun").into());
    }
    empty(desk, dir.path())
}

/// Without `/dev/fuse` a run fails, in one line that names the way out, unless it may extract.
///
/// # Errors
/// It does not.
pub fn without_a_device(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("no-device")?;
    let image = desk.images.path("tiny.sqsh");
    without_fuse(desk, dir.path(), &["apptainer", "exec", &image, "true"])?
        .expect_code(255)?
        .expect_text("you may not open /dev/fuse")?;
    if place(desk)?.exists() {
        return Err("something was extracted unasked".into());
    }
    let look = "readlink /proc/self/ns/mnt >/dev/null && grep -c 'trees/sha256-.* / ro' /proc/self/mountinfo";
    for program in ["situla", "apptainer"] {
        let words = [program, "exec", "--rootfs", "auto", &image, "sh", "-c", look];
        let output = without_fuse(desk, dir.path(), &words)?.success()?;
        if output.stdout != "1\n" {
            return Err(output.to_string().into());
        }
    }
    // With the device there is no reason to.
    let output = run(desk, dir.path(), &["situla", "exec", "--rootfs", "auto", &image, "sh", "-c", look])?;
    if output.stdout != "0\n" {
        return Err(output.to_string().into());
    }
    empty(desk, dir.path())
}

/// The tasks of a step share one container from an extracted tree, which one of them has made; it is not removed
/// while the step runs, whichever of them ends first.
///
/// # Errors
/// They do not, or it is.
pub fn tasks_of_a_step(site: &Site) -> Check {
    let (desk, dir) = (site.desk(), site.env().work_dir("step-tree")?);
    let image = site.images.path("tiny.sqsh");
    // The task that leads may be the first to go.
    let script = "readlink /proc/self/ns/mnt; grep -o 'trees/sha256-[^ ]* / ' /proc/self/mountinfo; touch up.$SLURM_PROCID; \
                  [ $SLURM_PROCID != 1 ] || while [ -e up.1 ]; do sleep 0.05; done; cat /etc/situla-image-witness";
    let words = ["-N1", "-n2", "situla", "exec", "--rootfs", "extract", &image, "sh", "-c", script];
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let all = || (0..2).all(|rank| dir.path().join(format!("up.{rank}")).exists());
    let came = wait_until(PATIENCE, all);
    let pruned = run(&desk, dir.path(), &["situla", "cache", "prune", "--all"])?.success()?;
    fs::remove_file(dir.path().join("up.1"))?;
    let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
    let output = job.output.success()?;
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    if !came || !pruned.stdout.contains("kept 1 in use") || lines.len() != 3 {
        return Err(format!("{lines:?}\n{pruned}\n{output}").into());
    }
    empty(&desk, dir.path())
}

/// Of many that start at once one extracts, the others wait or find it done, and all run from the same tree.
///
/// # Errors
/// They do not.
pub fn many_at_once(desk: &Desk) -> Check {
    const STARTS: usize = 8;
    let dir = desk.env.work_dir("at-once")?;
    let image = desk.images.path("tiny.sqsh");
    // Another image, so that there is a place to watch.
    let other = desk.images.path("tiny.sif");
    run(desk, dir.path(), &["situla", "exec", "--rootfs", "extract", &other, "true"])?.success()?;
    let begun = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&begun, place(desk)?.join("building"), inotify::WatchFlags::CREATE)?;
    let look = "sed -n 's,.* \\(/[^ ]*trees/[^ ]*\\) / .*,\\1,p' /proc/self/mountinfo; stat -c %i /";
    let words = ["situla", "exec", "--rootfs", "extract", &image, "sh", "-c", look];
    let started = (0..STARTS).map(|_| command::start(desk.env.user_command(dir.path(), words)?));
    let started = started.collect::<Result<Vec<_>, String>>()?;
    let outputs = started.into_iter().map(|one| one.finish(PATIENCE)?.success());
    let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
    if outputs.iter().any(|output| output.stdout != outputs[0].stdout)
        || outputs[0].stdout.lines().count() != 2
    {
        let all: Vec<String> = outputs.iter().map(ToString::to_string).collect();
        return Err(format!("not from one tree\n{}", all.join("\n")).into());
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&begun, &mut buffer);
    let mut made = Vec::new();
    // Until there is nothing more to read.
    while let Ok(event) = reader.next() {
        made.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    if made.len() != 1 {
        return Err(format!("extracted {} times: {made:?}", made.len()).into());
    }
    empty(desk, dir.path())
}

/// A tree is not removed while a run, an instance, or a process that has outlived its run uses it; then it is.
///
/// # Errors
/// It is, or is not.
pub fn used_ones_stay(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("used")?;
    let image = desk.images.path("tiny.sqsh");
    let prune = || -> Result<(usize, usize), String> {
        let output =
            run(desk, dir.path(), &["situla", "cache", "prune", "--size", "0", "--json"])?.success()?;
        let value: Value = serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
        let count = |key: &str| value[key].as_array().map_or(0, Vec::len);
        Ok((count("removed"), count("in_use")))
    };
    let kept = |what: &str, pruned: (usize, usize)| -> Check {
        if pruned == (0, 1) { Ok(()) } else { Err(format!("{what}: {pruned:?}").into()) }
    };
    let script = "touch up; while [ -e up ]; do sleep 0.05; done; cat /etc/situla-image-witness";
    let words = ["situla", "exec", "--rootfs", "extract", &image, "sh", "-c", script];
    let running = command::start(desk.env.user_command(dir.path(), words)?)?;
    let is_up = || dir.path().join("up").exists();
    if !wait_until(PATIENCE, is_up) {
        return Err(running.finish(PATIENCE)?.to_string().into());
    }
    kept("a run", prune()?)?;
    fs::remove_file(dir.path().join("up"))?;
    running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;

    run(desk, dir.path(), &["situla", "instance", "start", "--rootfs", "extract", &image, "tree"])?
        .success()?;
    kept("an instance", prune()?)?;
    run(desk, dir.path(), &["situla", "instance", "exec", "tree", "cat", WITNESS])?.success()?;
    run(desk, dir.path(), &["situla", "instance", "stop", "tree"])?.success()?;

    // The tree itself is mounted, or an overlay over it: since the root lacks a name, or to be written to.
    for words in [&[][..], &["--bind", "/usr/share:/not-in-the-image"], &["--writable-tmpfs"]] {
        let what = format!("a process that was left, with {words:?}");
        let left = "(touch up; while [ -e up ]; do sleep 0.05; done; cat /etc/situla-image-witness >seen) >/dev/null 2>&1 &";
        let start = ["situla", "exec", "--rootfs", "extract"].iter().chain(words);
        let start: Vec<&str> = start.copied().chain([image.as_str(), "sh", "-c", left]).collect();
        run(desk, dir.path(), &start)?.success()?;
        if !wait_until(PATIENCE, is_up) {
            return Err(format!("{what}: nobody was left").into());
        }
        kept(&what, prune()?)?;
        fs::remove_file(dir.path().join("up"))?;
        let seen =
            || fs::read_to_string(dir.path().join("seen")).is_ok_and(|text| text.contains("tiny image"));
        let mut pruned = Ok((0, 0));
        // It ends a moment after it has written.
        let has_gone = wait_until(PATIENCE, || {
            pruned = if seen() { prune() } else { Ok((0, 0)) };
            pruned != Ok((0, 0)) && pruned != Ok((0, 1))
        });
        if !has_gone || pruned != Ok((1, 0)) || place(desk)?.exists() {
            return Err(format!("{what}: in the end: {pruned:?}").into());
        }
        fs::remove_file(dir.path().join("seen"))?;
    }
    Ok(())
}

/// Whoever is killed while an image is extracted: the run fails or has gone, no tree appears, and the next run
/// extracts anew and removes what was left.
///
/// # Errors
/// It does not.
pub fn killed_while_extracting(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("kill-extract")?;
    let image = desk.images.path("demo.sqsh");
    for victim in ["extractor", "starter"] {
        let words = ["situla", "exec", "--rootfs", "extract", &image, "true"];
        let running = command::start(desk.env.user_command(dir.path(), words)?)?;
        let starter = i32::try_from(running.pid())?;
        let mut extractor = None;
        let begun = wait_until(PATIENCE, || {
            extractor = extractor_of(starter);
            extractor.is_some() && found(desk).is_ok_and(|(_, building)| building > 0)
        });
        let extractor = extractor.filter(|_| begun).ok_or("nothing is being extracted")?;
        let victim_pid = if victim == "extractor" { extractor } else { starter };
        kill_process(Pid::from_raw(victim_pid).ok_or("no process")?, Signal::KILL)?;
        let output = running.finish(PATIENCE)?;
        if victim == "extractor" {
            output.expect_code(125)?.expect_text("extracting process ended with signal: 9")?;
        }
        // The one removes what it had begun when it hears of the other's end, and the other what is left of the one.
        let gone = || {
            !Path::new(&format!("/proc/{extractor}")).exists()
                && found(desk).is_ok_and(|(trees, building)| trees.is_empty() && building == 0)
        };
        if !wait_until(PATIENCE, gone) {
            return Err(format!("{victim} was killed, and there is {:?}", found(desk)?).into());
        }
    }
    run(
        desk,
        dir.path(),
        &["situla", "exec", "--rootfs", "extract", &image, "python3", "-c", "print(6 * 7)"],
    )?
    .success()?
    .expect_text("42")?;
    let (trees, building) = found(desk)?;
    if trees.len() != 1 || building != 0 {
        return Err(format!("there are {trees:?}, and {building} begun").into());
    }
    empty(desk, dir.path())
}

/// Whoever extracts is killed on the point of giving something its name: half a tree, or one without a record, is
/// gone when its run is over, and the next one extracts anew.
///
/// # Errors
/// Something is left, or the next run fails.
pub fn killed_before_a_name(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("kill-names")?;
    let image = desk.images.path("tiny.sqsh");
    // The digest of the file, the tree, its record, and none that is not known here.
    const MOST: usize = 4;
    let mut n_kills = 0;
    loop {
        // Each begins with nothing, so that its names come in the same order; nothing of the one before keeps the cache.
        empty(desk, dir.path())?;
        let inject = format!("inject=rename,renameat,renameat2:signal=KILL:when={}", n_kills + 1);
        let strace = ["strace", "-f", "-qq", "-o", "log", "-e", "trace=rename,renameat,renameat2", "-e"];
        let words = ["situla", "exec", "--rootfs", "extract", &image, "cat", WITNESS];
        let words = strace.into_iter().chain([inject.as_str()]).chain(words);
        let output = command::start(desk.env.user_command(dir.path(), words)?)?.finish(PATIENCE)?;
        if output.code() == 0 {
            break;
        }
        let output = output.expect_code(125)?.expect_text("extracting process ended with signal: 9")?;
        n_kills += 1;
        let entries = |name: &str| fs::read_dir(place(desk)?.join(name)).map_err(|e| e.to_string());
        let (trees, building) = found(desk)?;
        if !trees.is_empty() || building != 0 || n_kills > MOST {
            let records: Vec<_> = entries("records")?.flatten().map(|entry| entry.file_name()).collect();
            return Err(format!("kill {n_kills}: {trees:?}, {building} begun, {records:?}\n{output}").into());
        }
    }
    if n_kills < 2 {
        return Err(format!("killed {n_kills} times").into());
    }
    empty(desk, dir.path())
}

/// The process that extracts for `starter`.
fn extractor_of(starter: i32) -> Option<i32> {
    let parent = format!("PPid:\t{starter}");
    let is_it = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        status.lines().any(|line| line == parent) && String::from_utf8_lossy(&line).contains("cache\0fill")
    };
    process_ids().into_iter().find(is_it).and_then(|pid| i32::try_from(pid).ok())
}
