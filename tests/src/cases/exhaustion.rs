//! What a run meets when something is used up or has died under it: open files, processes, room on a disk, the
//! connection to its image, the server of a mount. It says which, ends, and leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use super::ends::KILL_WAIT;
use super::kills::{names, no_partial_file};
use super::privileged::registry;
use super::{Desk, Site};
use crate::cluster::Job;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit};
use crate::tier::Check;

/// At every limit of open files, and of processes, a program runs or one reason is given: the limit.
///
/// # Errors
/// Another reason, none, or a limit that changes nothing.
pub fn limits(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("limits")?;
    let image = desk.images.path("tiny.sqsh");
    let at = |option: &str| {
        let words = ["prlimit", option, "situla", "exec", &image, "echo", "the program ran"];
        desk.env.as_user(dir.path(), words)
    };
    let judge = |output: Output, names: &str| -> Result<bool, String> {
        if output.status.success() {
            return output.expect_text("the program ran").map(|_| true);
        }
        let one = output.stderr.lines().filter(|line| line.starts_with("error:")).count() == 1;
        let output = output.expect_code(125)?.expect_text(names)?;
        if one { Ok(false) } else { Err(format!("not one error\n{output}")) }
    };
    let mut ran = Vec::new();
    for limit in 3..=40 {
        ran.push(judge(at(&format!("--nofile={limit}:{limit}"))?, "ulimit -n")?);
    }
    if ran.first() != Some(&false) || ran.last() != Some(&true) {
        return Err(format!("limits of open files change nothing: {ran:?}").into());
    }
    // Processes and threads of the user that are there already count as well.
    let uid = desk.env.uid()?.to_string();
    let threads = command::run(command::words(["ps", "-L", "--no-headers", "-U", &uid]), PATIENCE)?;
    let base = threads.stdout.lines().count();
    let mut ran = Vec::new();
    for more in 1..=10 {
        ran.push(judge(at(&format!("--nproc={0}:{0}", base + more))?, "ulimit -u")?);
    }
    if ran.first() != Some(&false) || ran.last() != Some(&true) {
        return Err(format!("limits of processes change nothing: {ran:?}").into());
    }
    Ok(())
}

/// A machine that lets nobody make another user namespace (`user.max_user_namespaces`, namespaces(7)) is named as the
/// cause, with the setting to look at. The limit is one of the user namespace that it is set in, so the machine's own stays.
///
/// # Errors
/// The run goes well, or says something else.
pub fn no_namespaces_left(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("namespaces")?;
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec situla exec \"$0\" true";
    let image = desk.images.path("tiny.sqsh");
    let output =
        desk.env.as_user(dir.path(), ["unshare", "--user", "--map-root-user", "sh", "-c", script, &image])?;
    one_error(output, &["does not let you make a user namespace", "max_user_namespaces"])?;
    Ok(())
}

/// A task that takes more memory than its step has is killed by the kernel; the record says `oom`, as accounting does, and status
/// and accounting are those of a step without a container.
///
/// # Errors
/// They do not.
pub fn memory_of_a_step(site: &Site) -> Check {
    let dir = site.env().work_dir("oom")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    // One buffer of that size, all of which is written.
    let payload = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"];
    let run = |enter: &[&str]| {
        let words = ["-n1", "--mem=60"].into_iter().chain(enter.iter().copied()).chain(payload);
        site.cluster.start_srun(dir.path(), words)
    };
    let (bare, contained) = (run(&[])?, run(&[&option])?);
    let bare = site.cluster.job(&bare.0, bare.1.finish(PATIENCE)?)?;
    let job = site.cluster.job(&contained.0, contained.1.finish(PATIENCE)?)?;
    let end = |job: &Job| Ok::<_, String>((job.output.code(), job.account.clone(), job.step("0")?.clone()));
    if end(&job)? != end(&bare)? {
        return Err(format!("bare {:?}, contained {:?}\n{}", end(&bare)?, end(&job)?, job.output).into());
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let well = job.output.status.success() || job.account.state != "OUT_OF_MEMORY";
    if well || records.len() != 1 || records[0].class != "oom" || records[0].exits != [Exit::Signal(9)] {
        return Err(format!("{:?}, the records say {records:#?}\n{}", job.account, job.output).into());
    }
    Ok(())
}

/// Fills what is above an image, and says how much that was.
const FILL: &str = "dd if=/dev/zero of=/full bs=1M; echo written $(stat -c %s /full)";

/// What those say who have filled it: bytes.
fn written(output: &Output) -> Vec<u64> {
    output.stdout.lines().filter_map(|line| line.strip_prefix("written ")?.parse().ok()).collect()
}

/// The tasks of a step share half of its memory: both fill what `--writable-tmpfs` gives them while the other's is full, and are told that
/// there is no room. A container that comes while another's is full has half of what that has left.
///
/// # Errors
/// One is killed, or they can write more together.
pub fn memory_above_two_images(site: &Site) -> Check {
    const MIB: u64 = 240;
    let dir = site.env().work_dir("above-two")?;
    let image = site.images.path("tiny.sif");
    let memory = format!("--mem={MIB}");
    let both =
        format!("{FILL}; touch full.$SLURM_PROCID; until [ -e full.0 -a -e full.1 ]; do sleep 0.05; done");
    let exec = ["situla", "exec", "--writable-tmpfs", image.as_str(), "sh", "-c"];
    let words = ["-n2", "-N1", &memory].into_iter().chain(exec).chain([both.as_str()]);
    let job = site.cluster.srun(dir.path(), words)?;
    let output = job.output.clone().success()?.expect_text("No space left on device")?;
    let bytes = written(&output);
    let of_each = (MIB << 20) / 8..=(MIB << 20) / 4;
    if bytes.len() != 2 || !bytes.iter().all(|one| of_each.contains(one)) || job.account.state != "COMPLETED"
    {
        return Err(format!("{bytes:?} of {MIB} MiB, {:?}\n{output}", job.account).into());
    }
    // One after the other in one task: the first stays until the second has ended.
    let exec = format!("situla exec --writable-tmpfs {image} sh -c");
    let script = format!(
        "{exec} '{FILL}; touch first; until [ -e second ]; do sleep 0.05; done' & \
         until [ -e first ]; do sleep 0.05; done; {exec} '{FILL}'; touch second; wait $!"
    );
    let job = site.cluster.srun(dir.path(), ["-n1", &memory, "bash", "-c", &script])?;
    let output = job.output.clone().success()?.expect_text("No space left on device")?;
    let well = match written(&output)[..] {
        [first, second] => {
            let left = (MIB << 20).saturating_sub(first);
            first >= (MIB << 20) / 4 && second >= left / 4 && second <= left / 2
        }
        _ => false,
    };
    if !well || job.account.state != "COMPLETED" {
        return Err(format!("one after the other, of {MIB} MiB, {:?}\n{output}", job.account).into());
    }
    Ok(())
}

/// A task that fills what `--writable-tmpfs` gives it is told that there is no room, long before its step runs out of memory: the step
/// ends with the task's own status, and of a program, as record and accounting say.
///
/// # Errors
/// It is killed, or can write without end.
pub fn memory_above_an_image(site: &Site) -> Check {
    const MIB: u64 = 120;
    let dir = site.env().work_dir("above")?;
    let memory = format!("--mem={MIB}");
    let script = format!("{FILL}; exit 7");
    for program in ["situla", "apptainer"] {
        let image = site.images.path("tiny.sif");
        let words = ["-n1", &memory, program, "exec", "--writable-tmpfs", &image, "sh", "-c", &script];
        let job = site.cluster.srun(dir.path(), words)?;
        let output = job.output.clone().expect_code(7)?.expect_text("No space left on device")?;
        let written = written(&output).pop();
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        let ended_itself =
            matches!(&records[..], [one] if one.exits == [Exit::Code(7)] && !one.class.starts_with("engine"));
        if written.is_none_or(|bytes| bytes > (MIB << 20) / 2)
            || (job.account.state.as_str(), job.account.exit.as_str()) != ("FAILED", "7:0")
            || !ended_itself
        {
            let told = format!("{written:?} bytes of {MIB} MiB, {:?}, {records:#?}", job.account);
            return Err(format!("{told}\n{}", job.output).into());
        }
    }
    Ok(())
}

/// A mount that ends with the case.
struct Mounted(PathBuf);

/// Makes a file system without room, not even for one more name.
const FULL: &str = "mount -t tmpfs -o size=64k,nr_inodes=20,mode=1777 situla-full \"$1\" && cd \"$1\" && \
                    { dd if=/dev/zero of=room bs=4k; n=0; while touch name$n; do n=$((n + 1)); done; } 2>/dev/null; true";

impl Mounted {
    fn new(point: PathBuf, script: &str) -> Result<Self, String> {
        fs::create_dir(&point).map_err(|e| format!("{}: {e}", point.display()))?;
        let mut mount = Command::new("sh");
        mount.args(["-c", script, "sh"]).arg(&point);
        // From here on it is taken away, also where the rest of the script fails.
        let mounted = Self(point);
        command::run(mount, PATIENCE)?.success()?;
        Ok(mounted)
    }

    /// A file system without room, not even for one more name.
    fn full(point: PathBuf) -> Result<Self, String> {
        Self::new(point, FULL)
    }

    /// A disk without room: there are names left, and no block. Unlike a tmpfs it may take what is written and refuse it when
    /// it is to be synced.
    fn full_disk(point: PathBuf) -> Result<Self, String> {
        Self::new(
            point,
            "truncate -s 1M \"$1.disk\" && mkfs.ext4 -q -F -O ^has_journal -m 0 -N 64 \"$1.disk\" && \
             mount -o loop \"$1.disk\" \"$1\" && chmod 1777 \"$1\" && cd \"$1\" && \
             { dd if=/dev/zero of=room bs=1k; sync; dd if=/dev/zero of=rest bs=1; sync; } 2>/dev/null; true",
        )
    }

    /// One whose server has died.
    fn dead(point: PathBuf) -> Result<Self, String> {
        Self::new(
            point,
            "exec 9<>/dev/fuse && mount -i -t fuse \
             -o fd=9,rootmode=40000,user_id=0,group_id=0,allow_other situla-dead \"$1\"",
        )
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays mounted is found by the look for leaks.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// One error of ours, which names these.
fn one_error(output: Output, names: &[&str]) -> Result<(), String> {
    let output = output.expect_code(125)?;
    if output.stderr.lines().filter(|line| line.starts_with("error:")).count() != 1 {
        return Err(format!("not one error\n{output}"));
    }
    names.iter().try_fold(output, |output, name| output.expect_text(name)).map(drop)
}

/// A full disk costs the record alone where records are kept; where images are kept, where a new one is to be
/// written, and where an overlay writes, it is named and nothing partial stays.
///
/// # Errors
/// It is not.
pub fn full_places(desk: &Desk) -> Check {
    const FULL: &str = "No space left on device";
    let dir = desk.env.work_dir("full")?;
    let image = desk.images.path("tiny.sqsh");
    let run = |words: &[&str]| desk.env.as_user(dir.path(), words);
    let again = |full: &Mounted, room: bool| -> Check {
        let place = full.text();
        let state = format!("XDG_STATE_HOME={place}");
        run(&["env", &state, "situla", "exec", "--record", &image, "echo", "ran"])?
            .success()?
            .expect_text("ran")?;
        let address = registry(desk, "up")?.stdout.trim().to_owned();
        registry(desk, "push")?;
        let (cache, source) = (format!("XDG_CACHE_HOME={place}"), format!("docker://{address}/tiny:1"));
        one_error(run(&["env", &cache, "situla", "exec", &source, "true"])?, &[&place, FULL])?;
        no_partial_file(&full.0.join("situla"))?;
        let target = format!("{place}/out.sif");
        one_error(run(&["situla", "convert", &image, &target])?, &[&target, FULL])?;
        if full.0.join("out.sif").exists() {
            return Err("there is half an image".into());
        }
        if !room {
            one_error(run(&["situla", "exec", "--overlay", &place, &image, "true"])?, &[&place, FULL])?;
        }
        Ok(())
    };
    let disk = Mounted::full_disk(dir.path().join("disk"))?;
    again(&disk, true)?;
    drop(disk);
    let full = Mounted::full(dir.path().join("full"))?;
    let place = full.text();
    again(&full, false)?;
    // The same with room for names and none for what is in them.
    for n in 0..12 {
        fs::remove_file(full.0.join(format!("name{n}")))?;
    }
    again(&full, true)?;
    one_error(run(&["situla", "exec", "--overlay", &place, &image, "true"])?, &[&place, FULL])?;
    // What the payload writes above its image is its own affair, and it hears of it.
    for n in 12..20 {
        // As many as there were.
        let _ = fs::remove_file(full.0.join(format!("name{n}")));
    }
    let script = "echo x >/written || echo 'the payload was told'";
    let words = ["situla", "exec", "--overlay", &place, &image, "sh", "-c", script];
    run(&words)?.success()?.expect_text("the payload was told")?;
    Ok(())
}

/// No room where trees are extracted is named, by either command line, and nothing of a tree stays.
///
/// # Errors
/// It is not, or something does.
pub fn no_room_for_a_tree(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("tree")?;
    let image = desk.images.path("tiny.sqsh");
    let full = Mounted::full(dir.path().join("full"))?;
    let place = full.text();
    let as_user = desk.env.script("as-user").display().to_string();
    // Where the user's trees are kept, for this command alone.
    let script = "mount --bind \"$1\" /var/tmp && shift && exec \"$@\"";
    for (n_names, code) in [(0, 125), (8, 125), (0, 255)] {
        // Names, and no room for what is in them.
        for n in 0..n_names {
            fs::remove_file(full.0.join(format!("name{n}")))?;
        }
        let program = if code == 125 { "situla" } else { "apptainer" };
        let mut command =
            command::words(["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]);
        command.args(["sh", &place, &as_user, desk.env.user(), program, "exec", "--rootfs", "extract"]);
        command.args([image.as_str(), "true"]).current_dir(dir.path());
        command.env_clear().env("PATH", desk.env.search_path());
        let output = command::run(command, PATIENCE)?.expect_code(code)?;
        output.expect_text("/var/tmp/situla-")?.expect_text("No space left on device")?;
        no_partial_tree(&full.0)?;
    }
    Ok(())
}

/// Nothing but directories and locks is there beside what was put there.
fn no_partial_tree(place: &Path) -> Result<(), String> {
    for entry in fs::read_dir(place).map_err(|e| format!("{}: {e}", place.display()))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && name != "locks" {
            no_partial_tree(&path)?;
        } else if !path.is_dir() && !name.starts_with("name") && name != "room" {
            return Err(format!("there is {}", path.display()));
        }
    }
    Ok(())
}

/// A mount whose server has died is named wherever it is asked for, and is no obstacle where it is not; a directory
/// that was removed under the user's feet is none either.
///
/// # Errors
/// It is not.
pub fn dead_mounts(desk: &Desk) -> Check {
    const DEAD: [&str; 2] = ["Transport endpoint is not connected", "mount it again"];
    let dir = desk.env.work_dir("dead")?;
    let image = desk.images.path("tiny.sqsh");
    let dead = Mounted::dead(dir.path().join("dead"))?;
    let place = dead.text();
    let names = |of: &'static str| -> [&str; 3] { [of, DEAD[0], DEAD[1]] };
    for option in ["--bind", "--overlay"] {
        let output = desk.env.as_user(dir.path(), ["situla", "exec", option, &place, &image, "true"])?;
        one_error(output.expect_text(&place)?, &names("cannot be looked at"))?;
    }
    let there = format!("{place}/image.sqsh");
    let output = desk.env.as_user(dir.path(), ["situla", "exec", &there, "true"])?;
    one_error(output.expect_text(&there)?, &names("cannot open image"))?;
    for variable in ["HOME", "XDG_STATE_HOME", "TMPDIR"] {
        let set = format!("{variable}={place}");
        let words = ["env", &set, "situla", "exec", "--record", &image, "echo", "ran"];
        desk.env.as_user(dir.path(), words)?.success()?.expect_text("ran")?;
    }
    let script = format!("mkdir gone && cd gone && rmdir ../gone && exec situla exec {image} echo ran");
    desk.env.as_user(dir.path(), ["sh", "-c", &script])?.success()?.expect_text("ran")?;
    Ok(())
}

/// The kernel aborts the connection to the image of a running step: its tasks end, and the record says that the
/// image was lost. By the plugin and by `apptainer exec`, of one task and of two.
///
/// # Errors
/// They go on, or it is called something else.
pub fn fuse_aborted(site: &Site) -> Check {
    let dir = site.env().work_dir("abort")?;
    let control = Mounted::new(dir.path().join("control"), "mount -t fusectl situla-control \"$1\"")?;
    let sif = site.images.path("tiny.sif");
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let here = dir.path().display().to_string();
    let mounts = format!("--container-mounts={here}");
    for (n_tasks, enter, code) in [
        ("-n1", vec![option.as_str(), &mounts], 125),
        ("-n2", vec![option.as_str(), &mounts], 125),
        ("-n1", vec!["apptainer", "exec", sif.as_str()], 255),
    ] {
        // A task that comes when all is over leads anew, and is ended with its step.
        let n_begun = || (0..2).filter(|rank| dir.path().join(format!("begun.{rank}")).exists()).count();
        let n_wanted = if n_tasks == "-n2" { 2 } else { 1 };
        let script = format!("echo >{here}/begun.$SLURM_PROCID; exec sleep 1000");
        let before = names(&control.0);
        let words = [n_tasks, "-N1"].into_iter().chain(enter).chain(["sh", "-c", &script]);
        let (name, running) = site.cluster.start_srun(dir.path(), words)?;
        let id = site.cluster.wait_running(&name)?;
        let began = wait_until(PATIENCE, || n_begun() == n_wanted);
        // No file of the root names the connection: an overlay lies above. It is the user's only one that was not there.
        let uid = site.env().uid()?;
        let is_new = |name: &String| {
            let owner = fs::metadata(control.0.join(name)).map(|found| found.uid());
            !before.contains(name) && owner.is_ok_and(|owner| owner == uid)
        };
        let found: Vec<String> = names(&control.0).into_iter().filter(is_new).collect();
        let connection =
            found.first().filter(|_| found.len() == 1).map(|name| control.0.join(name).join("abort"));
        let aborted = connection.as_ref().is_some_and(|abort| fs::write(abort, "1").is_ok());
        if !began || !aborted {
            site.cluster.admin(&["scancel", &id])?;
            let output = running.finish_within(PATIENCE)?;
            return Err(format!("no connection to abort: {found:?}\n{output}").into());
        }
        let output = running.finish_within(KILL_WAIT)?;
        if output.timed_out {
            site.cluster.admin(&["scancel", &id])?;
        }
        let output = output.expect_code(code)?.expect_text("the process that serves the image has ended")?;
        let job = site.cluster.job(&name, output)?;
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        if records.len() != 1 || records[0].class != "engine-server-lost" || job.account.state != "FAILED" {
            return Err(format!("{:?}, the records say {records:#?}\n{}", job.account, job.output).into());
        }
        for rank in 0..n_wanted {
            fs::remove_file(dir.path().join(format!("begun.{rank}")))?;
        }
        site.cluster.settled()?;
    }
    Ok(())
}

/// In a step: a full disk where records are kept costs the record alone, and a limit that is too low ends the task with
/// one reason, in accounting too.
///
/// # Errors
/// It is otherwise.
pub fn in_a_step(site: &Site) -> Check {
    let dir = site.env().work_dir("step")?;
    let image = site.images.path("tiny.sqsh");
    let node = site.cluster.a_node();
    let full = MountedOnNode::full(site, node, dir.path().join("full"))?;
    let (place, option) = (full.point.display().to_string(), format!("--container-image={image}"));
    let words = ["-n2", "-N1", "-w", node, &option, "echo", "ran"];
    let (name, running) = site.cluster.start_srun_with(dir.path(), &[("XDG_STATE_HOME", &place)], words)?;
    let unrecorded = (name, running.finish(PATIENCE)?);
    let script = format!("ulimit -n 6; exec situla exec {image} true");
    let (name, running) = site.cluster.start_srun(dir.path(), ["-n1", "sh", "-c", &script])?;
    let limited = (name, running.finish(PATIENCE)?);
    drop(full);

    let job = site.cluster.job(&unrecorded.0, unrecorded.1.success()?)?;
    let n_ran = job.output.stdout.lines().filter(|line| *line == "ran").count();
    let recorded = outcome::records(&site.cluster, &format!("{}.0", job.id));
    let has_none = recorded.as_ref().is_err_and(|story| story.contains("there is no record"));
    if n_ran != 2 || job.account.state != "COMPLETED" || !has_none {
        return Err(format!("{:?}, the records say {recorded:#?}\n{}", job.account, job.output).into());
    }

    let output = limited.1.expect_code(125)?.expect_text("ulimit -n")?;
    let job = site.cluster.job(&limited.0, output)?;
    let n_errors =
        job.output.stderr.lines().filter(|line| line.contains("error:") && !line.starts_with("srun")).count();
    let records = match outcome::records(&site.cluster, &format!("{}.0", job.id)) {
        // There may have been no descriptor for it.
        Err(story) if story.contains("there is no record") => Vec::new(),
        other => other?,
    };
    let is_ours = |record: &outcome::Outcome| {
        record.class.starts_with("engine-") && record.class != "engine-server-lost"
    };
    if n_errors != 1 || job.account.exit != "125:0" || !records.iter().all(is_ours) {
        return Err(format!("{:?}, the records say {records:#?}\n{}", job.account, job.output).into());
    }
    Ok(())
}

/// The source of a bind has lost its server before the step begins: it is named with what can be done, by record and accounting
/// too, and no program runs.
///
/// # Errors
/// It is otherwise.
pub fn bind_of_a_dead_server(site: &Site) -> Check {
    let dir = site.env().work_dir("dead-bind")?;
    let point = dir.path().join("served");
    fs::create_dir(&point)?;
    let (node, slurmd) = site.cluster.nodes().iter().next().ok_or("no node")?;
    let target = format!("--target={slurmd}");
    // With the shell goes the only descriptor of the connection.
    let script = "exec 9<>/dev/fuse && mount -i -t fuse \
                  -o fd=9,rootmode=40000,user_id=0,group_id=0,allow_other situla-dead \"$1\"";
    let mut mount = Command::new("nsenter");
    mount.args(["--mount", &target, "--", "sh", "-c", script, "sh"]).arg(&point);
    command::run(mount, PATIENCE)?.success()?;
    let dead = MountedOnNode { target, point };
    let place = dead.point.display().to_string();
    let image = site.images.path("tiny.sqsh");
    let option = format!("--container-image={image}");
    let (mounts, bind) = (format!("--container-mounts={place}:/served"), format!("{place}:/served"));
    let ways: [(&[&str], i32); 2] =
        [(&[&option, &mounts], 125), (&["apptainer", "exec", "--bind", &bind, &image], 255)];
    for (way, code) in ways {
        let words = ["-n1", "-w", node.as_str()].into_iter().chain(way.iter().copied());
        let job = site.cluster.srun(dir.path(), words.chain(["echo", "ran"]))?;
        let output = job.output.clone().expect_code(code)?.expect_text(&place)?;
        let output =
            output.expect_text("Transport endpoint is not connected")?.expect_text("mount it again")?;
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        let is_told = |record: &outcome::Outcome| {
            record.class == "engine-setup-failed" && record.exits == [Exit::Code(code.into())]
        };
        if output.stdout.contains("ran")
            || job.account.state != "FAILED"
            || records.len() != 1
            || !records.iter().all(is_told)
        {
            return Err(format!("{:?}, the records say {records:#?}\n{output}", job.account).into());
        }
        site.cluster.settled()?;
    }
    Ok(())
}

/// Slurm hands a low limit of open files on to tasks that come by the plugin (`--propagate`): at each limit with which `srun` itself
/// works, all run, or each that does not names the limit, and nothing is left.
///
/// # Errors
/// One says something else or nothing, or no limit changes anything.
pub fn limits_through_the_plugin(site: &Site) -> Check {
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mut ran = BTreeMap::new();
    for limit in [8, 12, 14, 16, 20, 24, 64] {
        let dir = site.env().work_dir("propagated")?;
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The soft one is what is handed on. Both tasks get it, one after the other.
        let nofile = format!("--nofile={limit}:");
        let words = ["prlimit", &nofile, "srun", "--quiet", "--job-name", &name, "--propagate=NOFILE"];
        let words = words.into_iter().chain(["-n2", "-N1", "--overcommit", "--kill-on-bad-exit=0", &option]);
        let command =
            site.cluster.user_command(dir.path(), words.chain(["sh", "-c", "ulimit -n; echo ran"]))?;
        let output = command::start(command)?.finish_within(PATIENCE)?;
        if output.timed_out {
            site.cluster.admin(&["scancel", "--name", &name])?;
            return Err(format!("{limit}: tasks hang\n{output}").into());
        }

        let job = site.cluster.job(&name, output)?;
        let n_ran = job.output.stdout.lines().filter(|line| *line == "ran").count();
        let n_named = job
            .output
            .stderr
            .lines()
            .filter(|line| line.contains("error:") && line.contains("ulimit -n"))
            .count();
        if n_ran + n_named != 2 || (job.account.state == "COMPLETED") != (n_ran == 2) {
            return Err(format!(
                "{limit}: {n_ran} ran, {n_named} did not; {:?}\n{}",
                job.account, job.output
            )
            .into());
        }
        site.cluster.settled()?;
        drop(dir);
        clean.expect_clean().map_err(|story| format!("{limit}: {story}"))?;
        ran.insert(limit, n_ran);
    }
    let counts: Vec<usize> = ran.values().copied().collect();
    if counts.first() != Some(&0) || counts.last() != Some(&2) {
        return Err(format!("limits change nothing: {ran:?}").into());
    }
    Ok(())
}

/// How many tasks a step with low limits has.
const LIMITED: usize = 4;

/// What each task of a step with low limits does: it sets them for itself and enters the container.
fn limited_step(site: &Site, limit: &str, payload: &str) -> Result<(Job, usize), String> {
    let dir = site.env().work_dir("limits")?;
    let image = site.images.path("tiny.sqsh");
    let script = format!("ulimit {limit} && exec situla exec {image} sh -c '{payload}'");
    let n_tasks = format!("-n{LIMITED}");
    let words = [&n_tasks, "-N1", "--overcommit", "--kill-on-bad-exit=0", "bash", "-c", &script];
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let output = running.finish_within(PATIENCE)?;
    if output.timed_out {
        site.cluster.admin(&["scancel", "--name", &name])?;
        return Err(format!("ulimit {limit}: tasks hang\n{output}"));
    }
    let job = site.cluster.job(&name, output)?;
    let n_ran = job.output.stdout.lines().filter(|line| *line == "ran").count();
    Ok((job, n_ran))
}

/// Tasks of a step with few open files or processes: at every limit each of them runs or names the limit, alone or behind
/// another that has none left; the step ends, with that status, and nothing of it is left.
///
/// # Errors
/// A task hangs, says something else or nothing, or something is left.
pub fn limits_in_a_step(site: &Site) -> Check {
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let mut ran = BTreeMap::new();
    // Tasks that have few themselves, and those that must do with what is left when the others are there. Of processes all
    // of the user count, on all nodes, which are one machine here.
    let files = [4, 8, 10, 12, 14, 16, 20, 64].map(|limit| ("ulimit -n", format!("-n {limit}")));
    let processes = ["1", "$(($(ps -L --no-headers -U $UID | wc -l) + 2))", "4096"];
    let processes = processes.map(|limit| ("ulimit -u", format!("-u {limit}")));
    for (names, limit) in files.iter().chain(&processes) {
        let (job, n_ran) = limited_step(site, limit, "echo ran")?;
        let errors = job.output.stderr.lines().filter(|line| line.contains("error:"));
        let errors: Vec<&str> = errors.filter(|line| !line.starts_with("srun:")).collect();
        let all_named = errors.iter().all(|line| line.contains(names));
        let (state, exit) = if n_ran == LIMITED { ("COMPLETED", "0:0") } else { ("FAILED", "125:0") };
        if n_ran + errors.len() != LIMITED
            || !all_named
            || (job.account.state.as_str(), job.account.exit.as_str()) != (state, exit)
        {
            let told = format!("ulimit {limit}: {n_ran} ran, {} did not; {:?}", errors.len(), job.account);
            return Err(format!("{told}\n{}", job.output).into());
        }
        site.cluster.settled()?;
        clean.expect_clean().map_err(|story| format!("ulimit {limit}: {story}"))?;
        ran.insert((*names, limit.clone()), n_ran);
    }
    for kind in [&files[..], &processes[..]] {
        let few = kind.first().and_then(|key| ran.get(key));
        let many = kind.last().and_then(|key| ran.get(key));
        if few != Some(&0) || many != Some(&LIMITED) {
            return Err(format!("limits change nothing: {ran:?}").into());
        }
    }
    Ok(())
}

/// A file system that says what its root is, and leaves whoever looks into it waiting, after a note in a file.
const SILENT_SERVER: &str = r#"
import os, struct, sys
note = sys.argv[1]
def reply(unique, body, error=0): os.write(9, struct.pack("=IiQ", 16 + len(body), -error, unique) + body)
root = struct.pack("=6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
while True:
    request = os.read(9, 1 << 17)
    length, opcode, unique, node = struct.unpack_from("=IIQQ", request)
    if opcode == 26: reply(unique, struct.pack("=IIIIHHI", 7, 31, 0, 0, 12, 9, 4096) + bytes(40))
    elif opcode == 3: reply(unique, struct.pack("=QII", 3600, 0, 0) + root)
    elif opcode == 1: open(note, "w").close()
    elif opcode not in (2, 36, 42): reply(unique, b"", 38)
"#;

/// A mount in the mount namespace of a node.
pub(super) struct MountedOnNode {
    target: String,
    point: PathBuf,
}

impl MountedOnNode {
    /// A file system without room: what is mounted beside a node is not seen there.
    pub(super) fn full(site: &Site, node: &str, point: PathBuf) -> Result<Self, String> {
        let slurmd = site.cluster.nodes().get(node).ok_or_else(|| format!("there is no node {node}"))?;
        fs::create_dir_all(&point).map_err(|e| format!("{}: {e}", point.display()))?;
        let mounted = Self { target: format!("--target={slurmd}"), point };
        let mut mount = Command::new("nsenter");
        mount.args(["--mount", &mounted.target, "--", "sh", "-c", FULL, "sh"]).arg(&mounted.point);
        command::run(mount, PATIENCE)?.success()?;
        Ok(mounted)
    }
}

impl Drop for MountedOnNode {
    fn drop(&mut self) {
        // What stays mounted is found by the look for leaks.
        let unmount = ["--mount", &self.target, "--", "umount"];
        let _ = Command::new("nsenter").args(unmount).arg(&self.point).status();
    }
}

/// The server of a bind's source dies while a program waits for it: the program gets an error, and then another one
/// at once; the container goes on, and nothing is left.
///
/// # Errors
/// The step hangs, or ends, or says that it has lost its container.
pub fn server_of_a_bind_dies(site: &Site) -> Check {
    let dir = site.env().work_dir("server")?;
    let here = dir.path().display().to_string();
    let point = dir.path().join("served");
    fs::create_dir(&point)?;
    let script = "exec 9<>/dev/fuse && mount -i -t fuse \
                  -o fd=9,rootmode=40000,user_id=0,group_id=0,allow_other situla-served \"$1\" && exec python3 -c \"$2\" \"$3\"";
    // A node has a mount namespace of its own, and what is mounted beside it later is not seen there.
    let (node, slurmd) = site.cluster.nodes().iter().next().ok_or("no node")?;
    let target = format!("--target={slurmd}");
    let mut server = Command::new("nsenter");
    server.args(["--mount", &target, "--", "sh", "-c", script, "sh"]);
    server.arg(&point).arg(SILENT_SERVER).arg(dir.path().join("asked"));
    let server = command::start(server)?;
    let served = MountedOnNode { target: target.clone(), point };
    let place = served.point.display().to_string();
    let is_mounted = || {
        let mounts = fs::read_to_string(format!("/proc/{slurmd}/mountinfo")).unwrap_or_default();
        mounts.lines().any(|line| line.contains(&place))
    };
    let mounted = wait_until(PATIENCE, is_mounted);
    let options = [
        format!("--container-image={}", site.images.path("tiny.sqsh")),
        format!("--container-mounts={here},{place}:/served"),
    ];
    let script =
        "cat /served/file; echo first $?; cat /served/file; echo second $?; cat /etc/situla-image-witness";
    let on_node = ["-n1", "-w", node.as_str()];
    let words = on_node.into_iter().chain(options.iter().map(String::as_str)).chain(["sh", "-c", script]);
    let started = site.cluster.start_srun(dir.path(), words);
    let asked = mounted && started.is_ok() && wait_until(PATIENCE, || dir.path().join("asked").exists());
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).ok_or("no process")?;
    // Whatever else has happened: without it nobody waits for anything any more.
    let killed = kill_process(pid, Signal::KILL);
    let server = server.finish(PATIENCE)?;
    let (name, running) = started?;
    let output = running.finish_within(KILL_WAIT)?;
    if output.timed_out {
        site.cluster.admin(&["scancel", "--name", &name])?;
    }
    if !asked || killed.is_err() {
        return Err(format!("mounted: {mounted}, asked: {asked}\n{server}\n{output}").into());
    }
    let output = output.success()?.expect_text("first 1")?.expect_text("second 1")?;
    let job = site.cluster.job(&name, output.expect_text("situla tiny image")?)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if job.account.state != "COMPLETED" || records.len() != 1 || records[0].class != "ok" {
        return Err(format!("{:?}, the records say {records:#?}\n{}", job.account, job.output).into());
    }
    site.cluster.settled()?;
    Ok(())
}
