//! Jobs that Slurm takes off their nodes before they are over. Those that it starts again have a record of each time, which
//! says what accounting says of that time, and the same image each time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Site;
use super::ends::KILL_WAIT;
use super::pins::Images;
use crate::cluster::Cluster;
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::outcome::{self, Exit, Outcome};
use crate::tier::Check;

/// Until Slurm has killed those that do not heed TERM, and cleaned up after them.
const ENDED: Duration = Duration::from_secs(2 * KILL_WAIT.as_secs());

/// How often Slurm is told to start jobs again.
const RESTARTS: u32 = 5;

/// A partition whose jobs make room for those of the ordinary one, for as long as this lives.
struct Lesser {
    cluster: Cluster,
    name: String,
}

impl Lesser {
    fn add(cluster: &Cluster, mode: &str) -> Result<Self, String> {
        let lesser = Lesser { cluster: cluster.clone(), name: format!("lesser-{}", mode.to_lowercase()) };
        let mode = format!("PreemptMode={mode}");
        let partition = format!("PartitionName={}", lesser.name);
        // The ordinary one has tier 1.
        cluster.admin(&["scontrol", "create", &partition, "Nodes=ALL", "PriorityTier=0", &mode])?;
        Ok(lesser)
    }
}

impl Drop for Lesser {
    fn drop(&mut self) {
        let _ = self.cluster.admin(&["scancel", "--partition", &self.name]);
        let partition = format!("PartitionName={}", self.name);
        // Slurm refuses as long as a job of it is not cleaned up; should that not end, the next cases say so.
        wait_until(PATIENCE, || self.cluster.admin(&["scontrol", "delete", &partition]).is_ok());
    }
}

/// The states of a job, for each time that it ran.
fn states(cluster: &Cluster, job: &str) -> Result<Vec<String>, String> {
    let rows = cluster.admin(&["sacct", "-a", "-n", "-P", "-X", "-D", "-j", job, "-o", "State"])?.stdout;
    Ok(rows.lines().map(str::to_owned).collect())
}

/// Waits until accounting says so of a job.
fn expect_states(cluster: &Cluster, job: &str, wanted: &[&str]) -> Result<(), String> {
    let mut found = Ok(Vec::new());
    if wait_until(PATIENCE, || {
        found = states(cluster, job);
        found.as_ref().is_ok_and(|found| found == wanted)
    }) {
        return Ok(());
    }
    Err(format!("accounting says {found:?} of job {job}, wanted {wanted:?}"))
}

/// Qualities of service of which the one makes room for the other, for as long as this lives: then Slurm goes by them
/// alone, and not by partitions.
struct Qualities {
    cluster: Cluster,
    conf: PathBuf,
    was: String,
}

const LESSER: &str = "situla-lesser";
const BETTER: &str = "situla-better";

impl Qualities {
    fn add(cluster: &Cluster) -> Result<Self, String> {
        let conf = cluster.state_dir().join("etc/slurm.conf");
        let was = fs::read_to_string(&conf).map_err(|error| format!("{}: {error}", conf.display()))?;
        let by_partition = "PreemptType=preempt/partition_prio\n";
        if !was.contains(by_partition) {
            return Err(format!("{} has no {by_partition:?}", conf.display()));
        }
        let by_quality = was.replace(by_partition, "PreemptType=preempt/qos\n");
        let qualities = Qualities { cluster: cluster.clone(), conf, was };
        cluster.admin(&["sacctmgr", "-i", "add", "qos", LESSER])?;
        cluster.admin(&["sacctmgr", "-i", "add", "qos", BETTER, &format!("preempt={LESSER}")])?;
        qualities.configure(&by_quality)?;
        let says = wait_until(PATIENCE, || {
            let config = cluster.admin(&["scontrol", "show", "config"]);
            config.is_ok_and(|config| config.stdout.contains("= preempt/qos"))
        });
        if says { Ok(qualities) } else { Err("Slurm does not go by qualities".to_owned()) }
    }

    fn configure(&self, text: &str) -> Result<(), String> {
        fs::write(&self.conf, text).map_err(|error| format!("{}: {error}", self.conf.display()))?;
        self.cluster.admin(&["scontrol", "reconfigure"]).map(drop)
    }
}

impl Drop for Qualities {
    fn drop(&mut self) {
        let _ = self.cluster.admin(&["scancel", "--qos", LESSER]);
        // If this fails, the cases about partitions say so.
        let _ = self.configure(&self.was);
        let _ = self.cluster.admin(&["sacctmgr", "-i", "delete", "qos", BETTER, LESSER]);
    }
}

/// Runs something on a node alone, in the ordinary partition: whoever is there must make room.
fn take_over(site: &Site, dir: &Path, node: &str, more: &[&str]) -> Check {
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let words = ["-N1", "-n1", "--exclusive", "-w", node, &image, "cat", WITNESS];
    let (_, running) = site.cluster.start_srun(dir, more.iter().chain(&words).copied())?;
    running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;
    Ok(())
}

fn digest(record: &Outcome) -> Option<&str> {
    record.record["start"]["image"]["manifest_digest"].as_str()
}

/// A batch job that is preempted, and one that its user requeues, run again: in the image of the first time, though its tag
/// has moved, and with a record of each time. The container of the one is a step, of the other the script's own.
///
/// # Errors
/// One of these does not hold.
pub fn started_again(site: &Site) -> Check {
    let images = Images::make(site, "requeued")?;
    let dir = images.dir.path();
    let here = dir.display();
    let lesser = Lesser::add(&site.cluster, "REQUEUE")?;
    let tag = &images.tag;
    let table = [
        (
            "PREEMPTED",
            "preempted",
            "0",
            format!("srun -n1 --container-image={tag} --container-mounts={here}"),
        ),
        ("REQUEUED", "requeued", "batch", format!("situla exec {tag}")),
    ];
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let mut jobs = Vec::new();
    for ((_, class, _, enter), node) in table.iter().zip(&nodes) {
        let script = format!(
            "#!/bin/bash\nexport TIME=${{SLURM_RESTART_COUNT:-0}}\necho host $TIME $(readlink /proc/self/ns/mnt)\n\
             exec {enter} sh -c 'echo inside $TIME $(readlink /proc/self/ns/mnt) $(cat /which); \
             touch {here}/go.$SLURM_JOB_ID.$TIME; [ $TIME != 0 ] || exec sleep 1000'\n"
        );
        let script = images.dir.write(class, &script)?;
        let words = ["-p", &lesser.name, "-N1", "-n1", "-w", node, "--requeue", "--open-mode=append"];
        jobs.push(site.cluster.submit(dir, &words.map(str::to_owned), &script)?);
    }
    if !wait_until(PATIENCE, || jobs.iter().all(|(_, id)| dir.join(format!("go.{id}.0")).exists())) {
        return Err("not both jobs have begun".into());
    }
    images.point_to(site, "two")?;
    let requeue = ["scontrol", "requeue", &jobs[1].1];
    command::run(site.cluster.user_command(dir, requeue)?, PATIENCE)?.success()?;
    take_over(site, dir, nodes[0], &[])?;
    let ids: Vec<&str> = jobs.iter().map(|(_, id)| id.as_str()).collect();
    run_again(&site.cluster, &ids, &|id| dir.join(format!("go.{id}.1")).exists())?;
    for ((name, id), (state, class, step, _)) in jobs.iter().zip(&table) {
        expect_states(&site.cluster, id, &[state, "COMPLETED"])?;
        expect_log(site, &fs::read_to_string(dir.join(format!("{name}.log")))?)?;
        let records = outcome::records(&site.cluster, &format!("{id}.{step}"))?;
        let [first, second] = &records[..] else {
            return Err(format!("not a record of each time: {records:#?}").into());
        };
        let times = |record: &Outcome| record.record["start"]["identity"]["restarts"].as_u64();
        if (first.class.as_str(), times(first)) != (*class, Some(0))
            || (second.class.as_str(), times(second)) != ("ok", Some(1))
            || second.exits != [Exit::Code(0)]
        {
            return Err(format!("wanted {class} and ok, the records say {records:#?}").into());
        }
        // Asked again, accounting has nothing to add.
        let again = outcome::records(&site.cluster, &format!("{id}.{step}"))?;
        if again.iter().map(|record| &record.text).ne(records.iter().map(|record| &record.text)) {
            return Err(format!("at a second look the records say {again:#?}").into());
        }
        if digest(first).is_none() || digest(first) != digest(second) {
            return Err(format!("they have different images: {}, {}", first.text, second.text).into());
        }
    }
    Ok(())
}

/// Waits until jobs that were requeued have begun again.
pub(super) fn run_again(
    cluster: &Cluster,
    jobs: &[&str],
    has_begun: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    for id in jobs {
        let waits = wait_until(ENDED, || {
            let queued = cluster.admin(&["squeue", "-h", "-j", id, "-o", "%T"]);
            queued.is_ok_and(|state| state.stdout.trim() == "PENDING")
        });
        if !waits {
            return Err(format!("job {id} does not wait again"));
        }
    }
    // Slurm lets them wait for two minutes, so that nodes take what they are started with for new: they tell it from the old,
    // which they have revoked, by the second. And once more where it has cleaned up only after it was told not to.
    let again = (0..RESTARTS).any(|_| {
        for id in jobs.iter().filter(|id| !has_begun(id)) {
            // One that has begun this moment is not to be changed any more.
            let _ = cluster.admin(&["scontrol", "update", &format!("jobid={id}"), "StartTime=now+2"]);
        }
        wait_until(ENDED, || jobs.iter().all(|id| has_begun(id)))
    });
    if again { Ok(()) } else { Err("not all jobs have begun again".to_owned()) }
}

/// What such a job has written, the first and the second time.
fn expect_log(site: &Site, log: &str) -> Check {
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    for time in ["0", "1"] {
        let line = |place: &str| lines.iter().find(|line| line.len() > 2 && line[..2] == [place, time]);
        let (Some(host), Some(inside)) = (line("host"), line("inside")) else {
            return Err(format!("time {time} is not there:\n{log}").into());
        };
        let node = |pid: &u32| {
            fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns.as_os_str() == host[2])
        };
        if !site.cluster.nodes().values().any(node) || inside[2] == host[2] || inside[3..] != ["image", "one"]
        {
            return Err(format!("time {time} was elsewhere, or in another image:\n{log}").into());
        }
    }
    Ok(())
}

/// A step that is preempted and cannot be put back into the queue ends in time on all its nodes, heeding the warning or
/// not; its records say why it ended, as accounting does.
///
/// # Errors
/// One of these does not hold.
pub fn preempted_and_cancelled(site: &Site) -> Check {
    let lesser = Lesser::add(&site.cluster, "CANCEL")?;
    makes_room(site, &["-p", &lesser.name], &[])
}

/// The same by qualities of service.
///
/// # Errors
/// One of these does not hold.
pub fn preempted_by_quality(site: &Site) -> Check {
    let _qualities = Qualities::add(&site.cluster)?;
    makes_room(site, &["--qos", LESSER], &["--qos", BETTER])
}

fn makes_room(site: &Site, lesser: &[&str], better: &[&str]) -> Check {
    let dir = site.env().work_dir("preempted")?;
    let here = dir.path().display();
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let list = nodes.join(",");
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mount = format!("--container-mounts={here}");
    let script = format!(
        "[ $SLURM_PROCID = 0 ] || trap '' TERM; readlink /proc/self/ns/mnt; touch {here}/go.$SLURM_PROCID; exec sleep 1000"
    );
    let words = ["-N2", "-n2", "-w", &list, &image, &mount, "sh", "-c", &script];
    let (name, running) = site.cluster.start_srun(dir.path(), lesser.iter().chain(&words).copied())?;
    site.cluster.wait_running(&name)?;
    if !wait_until(PATIENCE, || (0..2).all(|rank| dir.path().join(format!("go.{rank}")).exists())) {
        return Err("the payloads have not begun".into());
    }
    take_over(site, dir.path(), nodes[0], better)?;
    let output = running.finish_within(ENDED)?;
    let job = site.cluster.job(&name, output)?;
    if job.output.timed_out || job.output.status.success() || job.account.state != "PREEMPTED" {
        return Err(format!("accounting says {:?} {:?}\n{}", job.account, job.steps, job.output).into());
    }
    for pid in site.cluster.nodes().values() {
        let host = fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
        if job.output.stdout.contains(&*host.to_string_lossy()) {
            return Err(format!("it was on the host\n{}", job.output).into());
        }
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let exits: Vec<Exit> = records.iter().flat_map(|record| record.exits.clone()).collect();
    if records.len() != 2
        || records.iter().any(|record| record.class != "preempted")
        || exits != [Exit::Signal(15)]
    {
        return Err(format!("the records say {records:#?}\n{}", job.output).into());
    }
    Ok(())
}
