//! Containers whose files stay, where something comes in between: files that nobody may read, targets that cannot be
//! written in the end, tasks that do not start, an end that does not wait for a save, and a job that begins anew.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::Site;
use super::names::{batch, lines, place, record, swept};
use super::requeues::run_again;
use crate::cluster::Job;
use crate::command::{self, Running, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::leaks::process_ids;
use crate::outcome::{self, Exit, Outcome};
use crate::tier::Check;

/// What stands where something is to be saved to.
const OLD: &str = "what was there before\n";

/// A file that a save is to take the place of.
fn old_file(site: &Site, dir: &Path, name: &str) -> Result<PathBuf, String> {
    let path = dir.join(name);
    let words = ["sh", "-c", "printf '%s' \"$1\" > \"$2\"", "sh", OLD];
    let words = words.map(str::to_owned).into_iter().chain([path.display().to_string()]);
    site.env().as_user(dir, words)?.success()?;
    Ok(path)
}

/// Expects that a directory has that file alone, as it was.
fn expect_old(path: &Path) -> Result<(), String> {
    let dir = path.parent().unwrap_or(path);
    let there: Vec<_> = fs::read_dir(dir)
        .map_err(|error| format!("{}: {error}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    if there == [path.to_owned()] && text.as_deref() == Ok(OLD) {
        return Ok(());
    }
    Err(format!(
        "wanted {} alone, with what was in it; there is {there:?}, and in it {text:?}",
        path.display()
    ))
}

fn only_record(site: &Site, job: &Job) -> Result<Outcome, String> {
    let mut records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    match records.pop().filter(|_| records.is_empty()) {
        Some(record) => Ok(record),
        None => Err(format!("step 0 of job {} has not one record\n{}", job.id, job.output)),
    }
}

/// Stops the process that saves to this file, as soon as there is one.
pub(super) fn stop_saver(target: &Path) -> Option<Pid> {
    let saves = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"situla\0container\0save\0")
            && line.ends_with(format!("{}\0", target.display()).as_bytes())
    };
    let mut saver = None;
    let stopped = wait_until(PATIENCE, || {
        let found = process_ids().into_iter().find(saves);
        saver = found.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        saver.is_some_and(|saver| kill_process(saver, Signal::STOP).is_ok())
    });
    saver.filter(|_| stopped)
}

/// Files and directories that their owner himself may not read are saved, with what is in them and with their modes.
///
/// # Errors
/// They are not.
pub fn shut_files(site: &Site) -> Check {
    let dir = site.env().work_dir("kept-shut")?;
    let write = "mkdir -p /shut/dir/in; echo none > /shut/none; echo exec > /shut/exec; echo in > /shut/dir/in/file; \
                 chmod 0 /shut/none /shut/dir/in/file; chmod 111 /shut/exec; chmod 0 /shut/dir";
    let script = format!(
        "srun --container-image=$tiny --container-save=shut.sqsh sh -c '{write}'
        srun --container-image=$tiny --container-name=work --container-save=named.sqsh sh -c '{write}'
        srun --container-name=work stat -c %a /shut/none /shut/exec /shut/dir
        srun --container-image=./shut.sqsh stat -c %a /shut/none /shut/exec /shut/dir"
    );
    let job = batch(site, &dir, &["-N1", "-n1"], &script)?;
    // Modes are the same in the container that is kept and in what was saved.
    if lines(&job) != ["0", "111", "0", "0", "111", "0"] {
        return Err(format!("the modes are others\n{}", job.output).into());
    }
    for step in 0..4 {
        record(site, &job, step, ("ok", 0))?;
    }
    for (file, text) in [("none", "none\n"), ("exec", "exec\n"), ("dir/in/file", "in\n")] {
        for image in ["shut.sqsh", "named.sqsh"] {
            let image = dir.path().join(image).display().to_string();
            let words = ["unsquashfs", "-cat", &image, &format!("shut/{file}")].map(str::to_owned);
            let output = command::run(command::words(words), PATIENCE)?.success()?;
            if output.stdout != text {
                return Err(format!("{file} has something else in it\n{output}").into());
            }
        }
    }
    swept(site, &dir)?;
    Ok(())
}

/// A small file system on a node, for everybody, as long as this lives.
struct SmallMount<'a> {
    site: &'a Site,
    node: String,
    place: String,
}

impl<'a> SmallMount<'a> {
    fn new(site: &'a Site, node: &str, place: &Path) -> Result<Self, String> {
        let place = place.display().to_string();
        let mount = ["enter", node, "mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "none", &place];
        site.cluster.control(&mount)?;
        Ok(SmallMount { site, node: node.to_owned(), place })
    }
}

impl Drop for SmallMount<'_> {
    fn drop(&mut self) {
        // What stays mounted is found by the look for leaks.
        let _ = self.site.cluster.control(&["enter", &self.node, "umount", &self.place]);
    }
}

/// A save that fails leaves what was there, and nothing of its own: where the disk becomes full, and where the directory
/// is no longer to be written to. It fails the step, and says why.
///
/// # Errors
/// It does not.
pub fn failed_saves(site: &Site) -> Check {
    let dir = site.env().work_dir("kept-failed")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mount = format!("--container-mounts={}:/out", dir.path().display());
    let (node, pid) = site.cluster.nodes().iter().next().ok_or("no node")?;
    // As the node sees it.
    let inside = |name: &str| PathBuf::from(format!("/proc/{pid}/root{}/{name}", dir.path().display()));
    site.env().as_user(dir.path(), ["mkdir", "shut", "small"])?.success()?;
    let small = SmallMount::new(site, node, &dir.path().join("small"))?;
    for (place, script, cause) in [
        ("small", "dd if=/dev/urandom of=/big bs=1M count=16 2>/dev/null", "No space left on device"),
        ("shut", "chmod 555 /out/shut", "Permission denied"),
    ] {
        let target = inside(place).join("old.sqsh");
        fs::write(&target, OLD)?;
        std::os::unix::fs::chown(&target, Some(site.env().uid()?), None)?;
        let save = format!("--container-save={place}/old.sqsh");
        let words = ["-n1", "-w", node, &image, &mount, &save, "sh", "-c", script];
        let job = site.cluster.srun(dir.path(), words)?;
        expect_old(&target)?;
        let told = format!("cannot save the container to {}/{place}/old.sqsh", dir.path().display());
        job.output.clone().expect_code(125)?.expect_text(&told)?.expect_text(cause)?;
        let record = record(site, &job, 0, ("engine-setup-failed", 125))?;
        if !record.record["saved"].as_array().is_none_or(Vec::is_empty) {
            return Err(format!("the record says that something was saved: {record:?}").into());
        }
    }
    // So that it can be taken away.
    fs::set_permissions(dir.path().join("shut"), Permissions::from_mode(0o755))?;
    drop(small);
    swept(site, &dir)?;
    Ok(())
}

/// An end that does not wait for a save, `srun --wait` or a kill, leaves what was there. The record has how the program
/// ended before, and that it was being saved; the user was told that it would be, where other tasks had ended.
///
/// # Errors
/// It does not.
pub fn cut_off_saves(site: &Site) -> Check {
    let dir = site.env().work_dir("kept-cut-off")?;
    site.env().as_user(dir.path(), ["mkdir", "out"])?.success()?;
    let target = old_file(site, &dir.path().join("out"), "old.sqsh")?;
    // A large one, so that the save lasts until it can be stopped.
    let image = format!("--container-image={}", site.images.path("demo.sqsh"));
    let shown = target.display().to_string();
    for (n_tasks, wait) in [("-n2", "--wait=2"), ("-n1", "--wait=0")] {
        let words = [
            "-N1",
            "--overcommit",
            n_tasks,
            wait,
            &image,
            "--container-save=out/old.sqsh",
            "sh",
            "-c",
            "exit 3",
        ];
        let (name, running) = site.cluster.start_srun(dir.path(), words)?;
        let job = cut_off(site, &target, &name, running, n_tasks == "-n1")?;
        expect_old(&target)?;
        if job.output.status.success() {
            return Err(format!("{wait}: it looks successful\n{}", job.output).into());
        }
        if n_tasks == "-n2" {
            job.output.clone().expect_text(&format!("saving the container to {shown}"))?;
        }
        let record = only_record(site, &job)?;
        let message = record.record["outcome"]["message"].as_str().unwrap_or_default();
        if record.exits.is_empty()
            || record.exits.iter().any(|exit| *exit != Exit::Code(3))
            || !message.contains(&shown)
            || !["incomplete", "cancelled"].contains(&record.class.as_str())
        {
            return Err(format!("{wait}: {:?} {record:#?}\n{}", job.steps, job.output).into());
        }
    }
    swept(site, &dir)?;
    Ok(())
}

/// Has the end come while a save stands still: by the kill of the task that waits for it, or by what Slurm does.
fn cut_off(site: &Site, target: &Path, name: &str, running: Running, kill: bool) -> Result<Job, String> {
    let Some(saver) = stop_saver(target) else {
        return Err(format!("nothing is saved\n{}", running.finish(PATIENCE)?));
    };
    if kill {
        let stat = fs::read_to_string(format!("/proc/{}/stat", saver.as_raw_nonzero())).unwrap_or_default();
        let task = stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(1)?.parse().ok());
        let killed =
            task.and_then(Pid::from_raw).is_some_and(|task| kill_process(task, Signal::KILL).is_ok());
        // It is asked to end when its parent dies, and must go on for that.
        let _ = kill_process(saver, Signal::CONT);
        if !killed {
            return Err(format!("{stat} has no parent that can be killed"));
        }
    }
    let output = running.finish(PATIENCE)?;
    site.cluster.job(name, output)
}

/// Where one task of a node does not start, its container is not saved, and that is said: by that task, and by the last
/// one that ran, also where the other one was killed before it came to us.
///
/// # Errors
/// It is, or nobody does.
pub fn not_all_started(site: &Site) -> Check {
    let dir = site.env().work_dir("kept-unstarted")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mount = format!("--container-mounts={}:/out", dir.path().display());
    // What the plugin has told the task is the task's own to change.
    let misled = "echo export SITULA_TASK_PROGRAM=/no/such/program; echo $PPID > pid";
    let killed = "echo $PPID > pid; kill -TERM $PPID";
    let missed = "1 of the 2 tasks of this step here were not started";
    let unsaved = "so the container of this node is not saved";
    for (prolog, class, told) in [
        (misled, "engine-command-missing", &["/no/such/program", unsaved, missed][..]),
        (killed, "engine-setup-failed", &[missed]),
    ] {
        let script = format!("#!/bin/sh\n[ $SLURM_LOCALID = 0 ] || {{ {prolog}; }}\n");
        let prolog = dir.write("prolog.sh", &script)?;
        fs::set_permissions(&prolog, Permissions::from_mode(0o755))?;
        let prolog = format!("--task-prolog={}", prolog.display());
        // The other one ends when that one has.
        let script = "gone() { ! grep -q '^State:.[^ZX]' /proc/$(cat /out/pid)/status 2>/dev/null; }; \
                      until [ -s /out/pid ] && gone; do usleep 20000; done; echo ran";
        let words = ["-N1", "-n2", "--overcommit", &prolog, &image, &mount, "--container-save=never.sqsh"];
        let job = site.cluster.srun(dir.path(), words.into_iter().chain(["sh", "-c", script]))?;
        let output = told.iter().try_fold(job.output.clone(), |output, text| output.expect_text(text))?;
        let output = output.expect_text("ran\n")?;
        let record = only_record(site, &job)?;
        let saved = dir.path().join("never.sqsh").exists();
        if output.status.success() || saved || record.class != class || job.account.state != "FAILED" {
            return Err(format!("{:?} {record:?}\n{output}", job.account).into());
        }
        fs::remove_file(dir.path().join("pid"))?;
    }
    swept(site, &dir)?;
    Ok(())
}

/// A job that was requeued begins anew: on the node that it had before as well, the container of its first time is not
/// its own any more, and goes.
///
/// # Errors
/// It finds it, or it stays.
pub fn requeued(site: &Site) -> Check {
    let dir: WorkDir = site.env().work_dir("kept-requeued")?;
    let tiny = site.images.path("tiny.sqsh");
    let here = dir.path().display();
    let script = format!(
        "#!/bin/bash\nexport TIME=${{SLURM_RESTART_COUNT:-0}}\n\
         srun --container-image={tiny} --container-name=work:create --container-writable \
         sh -c 'ls /etc/kept 2>&1; echo of $TIME > /etc/kept'\n\
         srun --container-name=work cat /etc/kept\n\
         touch {here}/go.$SLURM_JOB_ID.$TIME; [ $TIME != 0 ] || exec sleep 1000\n\
         situla container list\n"
    );
    let script = dir.write("requeued.sh", &script)?;
    let node = site.cluster.a_node();
    let words = ["-N1", "-n1", "-w", node, "--requeue", "--open-mode=append"];
    let (name, id) = site.cluster.submit(dir.path(), &words.map(str::to_owned), &script)?;
    let has_begun = |time: u8| dir.path().join(format!("go.{id}.{time}")).exists();
    if !wait_until(PATIENCE, || has_begun(0)) {
        return Err("the job has not begun".into());
    }
    let requeue = ["scontrol", "requeue", &id];
    command::run(site.cluster.user_command(dir.path(), requeue)?, PATIENCE)?.success()?;
    run_again(&site.cluster, &[&id], &|_| has_begun(1))?;
    let ended = wait_until(PATIENCE, || {
        site.cluster.admin(&["squeue", "-h", "-j", &id]).map_or(true, |out| out.stdout.trim().is_empty())
    });
    let log = fs::read_to_string(dir.path().join(format!("{name}.log")))?;
    let said = |text: &str| log.lines().filter(|line| *line == text).count();
    let listed = log.lines().filter(|line| line.starts_with("work ")).count();
    let of_job = fs::read_dir(place(site, node)?.join("containers"))?.flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.ends_with(&format!("-{id}")) || name.contains(&format!("-{id}."))
    });
    let of_job: Vec<_> = of_job.map(|entry| entry.file_name()).collect();
    if !ended || said("of 0") != 1 || said("of 1") != 1 || said("/etc/kept") != 0 || listed != 1 {
        return Err(format!("ended: {ended}; the job has said:\n{log}").into());
    }
    if of_job.len() != 1 || !of_job[0].to_string_lossy().ends_with(".1") {
        return Err(format!("of the job there is {of_job:?}\n{log}").into());
    }
    swept(site, &dir)?;
    Ok(())
}
