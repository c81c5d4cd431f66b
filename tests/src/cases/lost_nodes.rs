//! One node of several that fails, or cannot do its part: how that looks to the others, to accounting and in the records.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Site;
use super::bare::expect_account;
use super::ends::KILL_WAIT;
use crate::cluster::Cluster;
use crate::command::{Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::outcome::{self, Exit, Outcome};
use crate::processes::Watch;
use crate::tier::Check;

/// Until Slurm has killed those that do not heed TERM, and cleaned up after them.
const ENDED: Duration = Duration::from_secs(2 * KILL_WAIT.as_secs());

/// A node that comes back when this is dropped.
struct Lost<'a> {
    cluster: &'a Cluster,
    node: &'a str,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        // If this fails, the next look at the nodes says so.
        let _ = self.cluster.control(&["reconfigure", self.node]);
    }
}

/// One node of a step dies, with all that runs there. The step ends on the other node, records and
/// accounting call it by its name, nothing is left, and the node can be used when it is back.
///
/// # Errors
/// One of these does not hold.
pub fn a_node_dies(site: &Site) -> Check {
    let dir = site.env().work_dir("lost-node")?;
    let here = dir.path().display();
    let watch = Watch::begin(site.env().uid()?);
    // Other cases may have restarted it.
    let cluster = Cluster::find(site.env(), site.cluster.variant())?;
    let nodes: Vec<&str> = cluster.nodes().keys().take(2).map(String::as_str).collect();
    let [survivor, victim] = nodes[..] else { return Err("there are no two nodes".into()) };
    let list = nodes.join(",");
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mount = format!("--container-mounts={here}");
    let script = format!("touch {here}/go.$SLURM_PROCID; exec sleep 1000");
    let words = ["-N2", "--ntasks-per-node=2", "-w", &list, &image, &mount, "sh", "-c", &script];
    let (name, running) = cluster.start_srun(dir.path(), words)?;
    cluster.wait_running(&name)?;
    if !wait_until(PATIENCE, || (0..4).all(|rank| dir.path().join(format!("go.{rank}")).exists())) {
        return Err("the payloads have not begun".into());
    }
    let lost = Lost { cluster: &cluster, node: victim };
    // All its processes end with the first one of their namespace.
    let first = cluster.nodes().get(victim).and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    kill_process(first.ok_or("no process id")?, Signal::KILL)?;
    let of_victim = format!("nodename={victim}");
    // What slurmctld does by itself after SlurmdTimeout.
    cluster.admin(&["scontrol", "update", &of_victim, "state=down", "reason=lost"])?;
    let output = running.finish_within(ENDED)?;
    let job = cluster.job(&name, output)?;
    if job.output.timed_out || job.output.status.success() || job.account.state != "NODE_FAIL" {
        return Err(format!("accounting says {:?} {:?}\n{}", job.account, job.steps, job.output).into());
    }
    if !wait_until(ENDED, || watch.look().is_empty()) {
        return Err(format!("these go on: {:?}\n{}", watch.look(), job.output).into());
    }
    let records = outcome::records(&cluster, &format!("{}.0", job.id))?;
    let of = |node: &str| {
        let found = records.iter().filter(|record| record.record["start"]["identity"]["node"] == node);
        found.collect::<Vec<&Outcome>>()
    };
    let fits = match (&of(survivor)[..], &of(victim)[..]) {
        // Nobody was left to see how those of the other node ended.
        ([here], [there]) => {
            [here, there].iter().all(|one| one.class == "node-fail") && there.exits.is_empty()
        }
        _ => false,
    };
    if !fits {
        return Err(format!("the records say {records:#?}\n{}", job.output).into());
    }
    drop(lost);
    // With the processes that it has now.
    let cluster = Cluster::find(site.env(), site.cluster.variant())?;
    let back = cluster.srun(dir.path(), ["-n2", "-N1", "-w", victim, &image, "cat", WITNESS])?;
    back.output.success()?.expect_text("situla tiny image")?;
    cluster.settled()?;
    Ok(())
}

/// slurmd of one node is killed, and its steps go on: a container has the same processes as before, and ends as it would have,
/// with its record and in accounting; whether it ends before slurmd is started again, or afterwards, when the new slurmd takes signals to it.
///
/// # Errors
/// One of these does not hold.
pub fn slurmd_alone_dies(site: &Site) -> Check {
    for end in [End::Before, End::After, End::Cancelled] {
        outlives_slurmd(site, end).map_err(|story| format!("{end:?}: {}", story.message().unwrap_or("")))?;
    }
    Ok(())
}

/// How a step ends whose slurmd is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself, while there is no slurmd.
    Before,
    /// By itself, when there is one again.
    After,
    /// By `scancel`, when there is one again.
    Cancelled,
}

/// A node whose slurmd is started again when this is dropped.
struct WithoutSlurmd<'a> {
    cluster: &'a Cluster,
    node: &'a str,
}

impl Drop for WithoutSlurmd<'_> {
    fn drop(&mut self) {
        // If this fails, the next look at the nodes says so.
        let _ = self.cluster.control(&["daemon", self.node, "start"]);
    }
}

fn outlives_slurmd(site: &Site, end: End) -> Check {
    let dir = site.env().work_dir("no-slurmd")?;
    let here = dir.path().display();
    // Other cases may have restarted it.
    let cluster = Cluster::find(site.env(), site.cluster.variant())?;
    let nodes: Vec<&str> = cluster.nodes().keys().take(2).map(String::as_str).collect();
    let [_, victim] = nodes[..] else { return Err("there are no two nodes".into()) };
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mount = format!("--container-mounts={here}");
    let script = format!(
        "touch {here}/go.$SLURM_PROCID; while [ ! -e {here}/end ]; do usleep 100000; done; cat {WITNESS}; \
         [ $SLURM_PROCID != 3 ] || exit 3"
    );
    let watch = Watch::begin(site.env().uid()?);
    let list = nodes.join(",");
    let words = ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=2", "-w", &list, &image, &mount];
    let (name, running) = cluster.start_srun(dir.path(), words.into_iter().chain(["sh", "-c", &script]))?;
    let id = cluster.wait_running(&name)?;
    if !wait_until(PATIENCE, || (0..4).all(|rank| dir.path().join(format!("go.{rank}")).exists())) {
        return Err("the payloads have not begun".into());
    }
    let ours = || {
        let mut pids: Vec<u32> = watch.look().iter().map(|one| one.pid).collect();
        pids.sort_unstable();
        pids
    };
    let before = ours();
    let without = WithoutSlurmd { cluster: &cluster, node: victim };
    cluster.control(&["daemon", victim, "kill"])?;
    let output = match end {
        End::Before => {
            dir.write("end", "")?;
            let output = running.finish_within(ENDED)?;
            drop(without);
            output
        }
        End::After | End::Cancelled => {
            drop(without);
            let after = ours();
            if before.is_empty() || after != before {
                return Err(format!("there were {before:?}, and are {after:?}").into());
            }
            if end == End::After {
                dir.write("end", "")?;
            } else {
                cluster.admin(&["scancel", &id])?;
            }
            running.finish_within(ENDED)?
        }
    };
    let cluster = Cluster::find(site.env(), site.cluster.variant())?;
    cluster.settled()?;
    let job = cluster.job(&name, output)?;
    let records = outcome::records(&cluster, &format!("{id}.0"))?;
    let mut exits: Vec<Exit> = records.iter().flat_map(|record| record.exits.clone()).collect();
    exits.sort_unstable_by_key(|exit| *exit != Exit::Code(0));
    let mut classes: Vec<&str> = records.iter().map(|record| record.class.as_str()).collect();
    classes.sort_unstable();
    let step = job.step("0")?;
    let fits = match end {
        End::Cancelled => {
            classes == ["cancelled"; 2] && exits == [Exit::Signal(15); 4] && step.state == "CANCELLED"
        }
        _ => {
            classes == ["app-error", "ok"]
                && exits == [Exit::Code(0), Exit::Code(0), Exit::Code(0), Exit::Code(3)]
                && (step.state.as_str(), step.exit.as_str()) == ("FAILED", "3:0")
                && job.output.code() == 3
                && job.output.stdout.matches("situla tiny image").count() == 4
        }
    };
    if !fits || job.output.timed_out || !watch.sees_none() {
        let told = format!("{:?} {:?}, the records say {records:#?}", job.account, job.steps);
        return Err(format!("{told}\nthere are {:?}\n{}", watch.look(), job.output).into());
    }
    let next = cluster.srun(dir.path(), ["-n2", "-N1", "-w", victim, &image, "cat", WITNESS])?;
    next.output.success()?.expect_text("situla tiny image")?;
    cluster.settled()?;
    Ok(())
}

/// A mount that is taken away when this is dropped.
struct Covered<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    path: String,
}

impl Covered<'_> {
    fn inside(&self, words: &[&str]) -> Result<Output, String> {
        self.cluster.control(&[&["enter", self.node][..], words].concat())
    }
}

impl Drop for Covered<'_> {
    fn drop(&mut self) {
        // If this fails, the look for leaks says so.
        let _ = self.inside(&["umount", &self.path]);
    }
}

/// On one of two nodes the trampoline is missing, or cannot be executed: its tasks fail and say so, the others run, and
/// the node is not drained, by a batch script neither.
///
/// # Errors
/// One of these does not hold.
pub fn no_trampoline_on_one_node(site: &Site) -> Check {
    let dir = site.env().work_dir("no-trampoline")?;
    let cluster = &site.cluster;
    let nodes: Vec<&str> = cluster.nodes().keys().take(2).map(String::as_str).collect();
    let [well, sick] = nodes[..] else { return Err("there are no two nodes".into()) };
    let list = nodes.join(",");
    let program = site.env().situla().display().to_string();
    let directory = site.env().situla().parent().ok_or("the program has no directory")?.display().to_string();
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let plain = dir.write("plain", "no program\n")?;
    fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let plain = plain.display().to_string();
    let script = dir.write("job.sh", "#!/bin/sh\necho ON-THE-HOST\n")?;
    let missing = (
        ["mount", "-t", "tmpfs", "none", &directory].to_vec(),
        directory.clone(),
        "cannot be used on this node",
    );
    let refused = (["mount", "--bind", &plain, &program].to_vec(), program.clone(), "Permission denied");
    for (cover, path, says) in [missing, refused] {
        let is_ours = path == directory;
        let covered = Covered { cluster, node: sick, path };
        covered.inside(&cover)?;
        let words = ["--kill-on-bad-exit=0", "-N2", "-n2", "-w", &list, &image];
        let job = cluster.srun(dir.path(), words.into_iter().chain(["cat", WITNESS]))?;
        let output = job.output.clone().expect_text(says)?.expect_text(&program)?;
        // What Slurm itself says of a program that it cannot execute is Slurm's.
        let place = |step: &str, id: &str| format!("the site must install it there (job {id}, step {step})");
        let output = if is_ours { output.expect_text(&place("0", &job.id))? } else { output };
        if output.status.success()
            || output.stdout.lines().count() != 1
            || !output.stdout.starts_with("situla tiny image")
        {
            return Err(format!("wanted one task inside and one that fails\n{output}").into());
        }
        let exit = format!("{}:0", output.code());
        expect_account(&job, "FAILED", &exit, "FAILED", &exit)?;
        let records = outcome::records(cluster, &format!("{}.0", job.id))?;
        match &records[..] {
            [one]
                if one.class == "ok"
                    && one.exits == [Exit::Code(0)]
                    && one.record["start"]["identity"]["node"] == well => {}
            _ => return Err(format!("the records say {records:#?}\n{output}").into()),
        }
        cluster.settled()?;
        let batch = cluster.sbatch(dir.path(), &["-N1", "-w", sick, &image], &script)?;
        let told = !is_ours || batch.output.stdout.contains(&place("batch", &batch.id));
        if batch.account.state != "FAILED" || batch.output.stdout.contains("ON-THE-HOST") || !told {
            return Err(
                format!("accounting says {:?} {:?}\n{}", batch.account, batch.steps, batch.output).into()
            );
        }
        cluster.settled()?;
    }
    Ok(())
}
