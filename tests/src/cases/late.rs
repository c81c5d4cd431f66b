//! Tasks that come late: when the program of the first has ended, when the process that kept its container has
//! gone, and while the first fails to set it up.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::Site;
use super::uses::expect_ok;
use crate::cluster::Job;
use crate::command::{self, Running, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit};
use crate::processes::{self, Kind, Watch, kill_if};
use crate::tier::Check;

/// How a task gets into its container, and from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the plugin.
    Plugin,
    /// By `apptainer exec`.
    Apptainer,
    /// By `situla exec`.
    Command,
}

/// A directory and an image file.
fn images(site: &Site) -> [String; 2] {
    [site.env().image_tree("tiny").display().to_string(), site.images.path("tiny.sqsh")]
}

/// Says which container this is, and that it is one of the image.
fn payload() -> String {
    format!(
        "echo rank $SLURM_PROCID $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt) $(cat {WITNESS})"
    )
}

/// The second task of a step comes to us when the first has ended, program and waiting process: it enters the container that
/// is kept for it. Where that is not kept any more it makes one. From a directory and from an image file, by the
/// plugin and by `apptainer exec`.
///
/// # Errors
/// It does not run, or in another container than it must.
pub fn after_the_first_has_ended(site: &Site) -> Check {
    for image in images(site) {
        for (way, is_kept) in [(Way::Plugin, true), (Way::Apptainer, true), (Way::Apptainer, false)] {
            let job = second_comes_late(site, &image, way, is_kept)
                .map_err(|story| format!("{image}, {way:?}, kept {is_kept}: {story}"))?;
            let containers = containers(&job, 2)?;
            // The numbers of namespaces that have gone are used again, and so tell nothing of two that were not there at once.
            if is_kept && containers.len() != 1 {
                return Err(format!("{way:?}: {containers:?}\n{}", job.output).into());
            }
            expect_ok(site, &job, 1)?;
            let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
            if records[0].exits.len() != 2 {
                return Err(format!("not both are recorded: {records:#?}").into());
            }
        }
    }
    Ok(())
}

fn second_comes_late(site: &Site, image: &str, way: Way, is_kept: bool) -> Result<Job, String> {
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let dir = site.env().work_dir("late")?;
    // Slurm's own way to hold a task up before it comes to the plugin's program.
    let gate = "#!/bin/sh\n[ \"$SLURM_PROCID\" = 0 ] || until [ -e go ]; do sleep 0.05; done\n";
    let gate = dir.write("gate", gate)?.display().to_string();
    let prolog = format!("--task-prolog={gate}");
    let option = format!("--container-image={image}");
    let enter: &[&str] = match way {
        Way::Plugin => &[&prolog, &option],
        Way::Apptainer | Way::Command => &[&prolog, "apptainer", "exec", image],
    };
    let payload = payload();
    let words = ["-n2", "-N1"].into_iter().chain(enter.iter().copied()).chain(["sh", "-c", &payload]);
    let watch = Watch::begin(site.env().uid()?);
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    // The keeper has come, and is the only one of ours that is left.
    let mut keeper = None;
    let is_alone = wait_until(PATIENCE, || match watch.look()[..] {
        [one] if one.kind == Kind::Keeper => {
            keeper = Some(one);
            true
        }
        _ => false,
    });
    let mut lost = is_kept;
    if let Some(keeper) = keeper.filter(|_| !is_kept) {
        lost = kill_if(keeper, || true)? && wait_until(PATIENCE, || watch.look().is_empty());
    }
    dir.write("go", "")?;
    let output = running.finish(PATIENCE)?;
    if !is_alone || !lost {
        return Err(format!("the first did not go and leave a keeper: {is_alone} {lost}\n{output}"));
    }
    let job = site.cluster.job(&name, output.success()?)?;
    site.cluster.settled()?;
    drop(dir);
    clean.expect_clean()?;
    Ok(job)
}

/// The containers in which `n_tasks` tasks say that they were.
fn containers(job: &Job, n_tasks: usize) -> Result<BTreeSet<(String, String)>, String> {
    let lines = job.output.stdout.lines().filter(|line| line.starts_with("rank "));
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    let are_inside =
        lines.iter().all(|line| line.len() > 4 && line[4..].join(" ").contains("situla tiny image"));
    let ranks: BTreeSet<&str> = lines.iter().filter_map(|line| line.get(1).copied()).collect();
    if lines.len() != n_tasks || ranks.len() != n_tasks || !are_inside {
        return Err(format!("not {n_tasks} tasks of the image\n{}", job.output));
    }
    Ok(lines.iter().map(|line| (line[2].to_owned(), line[3].to_owned())).collect())
}

/// The first task fails while it sets the container up, and all others wait for it by then: it alone fails, one of them
/// sets a container up in its place, and the others join that. With eight tasks, and with 64 by the plugin; in `make test-full`
/// with 64 by the command, too.
///
/// # Errors
/// Another task fails, or they are not in one container, or accounting and record say something else.
pub fn while_the_first_fails(site: &Site) -> Check {
    let [tree, file] = images(site);
    for (image, way, n_others) in
        [(&tree, Way::Command, 7), (&file, Way::Command, 63), (&file, Way::Plugin, 63)]
    {
        if (n_others, way) == (63, Way::Command) && !site.env().full() {
            continue;
        }
        first_fails(site, image, way, n_others)
            .map_err(|story| format!("{image}, {way:?}: {}", story.message().unwrap_or("")))?;
    }
    Ok(())
}

/// Refuses the second call of its kind (the first looks whether there is that call at all), which is a failure like any
/// other; who makes it stands still there until he is told to go on.
const REFUSED: [&str; 8] = [
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    "trace=open_tree",
    "-e",
    "inject=open_tree:error=EIO:signal=SIGSTOP:when=2",
];

/// Has the first task of a step by the plugin, which waits before it comes to our program, traced; `node` is a process of its
/// node, which may have numbers of its own for them.
fn trace_the_first(dir: &Path, node: u32) -> Result<Running, String> {
    let mut pid = String::new();
    let waits = wait_until(PATIENCE, || {
        let number = fs::read_to_string(dir.join("task")).unwrap_or_default();
        let task = number.trim().parse().ok().and_then(|number| processes::beside(node, number));
        pid = task.map(|pid| pid.to_string()).unwrap_or_default();
        !pid.is_empty()
    });
    let tracer = command::start(command::words(["strace"].into_iter().chain(REFUSED).chain(["-p", &pid])))?;
    let is_traced = waits
        && wait_until(PATIENCE, || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        });
    fs::write(dir.join("traced"), "").map_err(|e| e.to_string())?;
    if is_traced {
        Ok(tracer)
    } else {
        Err(format!("the first task is not traced\n{}", tracer.finish(PATIENCE)?))
    }
}

fn first_fails(site: &Site, image: &str, way: Way, n_others: usize) -> Check {
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let dir = site.env().work_dir("fails")?;
    let point = format!("@situla/{}/", site.env().uid()?);
    let others_wait = format!("until grep -q {point} /proc/net/unix; do sleep 0.3; done");
    let script = format!(
        "if [ $SLURM_PROCID = 0 ]; then exec strace {} \"$@\"; fi; {others_wait}; exec \"$@\"",
        REFUSED.join(" ")
    );
    // It is a child of the task.
    let prolog = format!(
        "#!/bin/sh\nif [ $SLURM_PROCID = 0 ]; then echo $PPID >new; mv new task; \
         until [ -e traced ]; do sleep 0.05; done; else {others_wait}; fi\n"
    );
    let prolog = format!("--task-prolog={}", dir.write("prolog", &prolog)?.display());
    let option = format!("--container-image={image}");
    let payload = payload();
    let n_tasks = format!("-n{}", n_others + 1);
    let enter: &[&str] = match way {
        Way::Plugin => &[&prolog, &option],
        _ => &["sh", "-c", &script, "sh", "situla", "exec", image],
    };
    let (node, of_node) = site.cluster.nodes().iter().next().ok_or("there is no node")?;
    let words = [&n_tasks, "-N1", "-w", node, "--overcommit", "--kill-on-bad-exit=0"].into_iter();
    let words = words.chain(enter.iter().copied()).chain(["sh", "-c", &payload]);
    let watch = Watch::begin(site.env().uid()?);
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let tracer = match way {
        Way::Plugin => Some(trace_the_first(dir.path(), *of_node)?),
        _ => None,
    };
    // The listening socket has the name, and so has the other end of each connection.
    let n_waiting = || {
        let sockets = fs::read_to_string(format!("/proc/{of_node}/net/unix")).unwrap_or_default();
        sockets.lines().filter(|line| line.contains(&point)).count().saturating_sub(1)
    };
    let all_wait = wait_until(PATIENCE, || n_waiting() == n_others);
    let stopped = watch.look().into_iter().find(|one| one.kind == Kind::Child && stands_still(one.pid));
    if let Some(pid) = stopped.and_then(|one| Pid::from_raw(i32::try_from(one.pid).ok()?)) {
        kill_process(pid, Signal::CONT)?;
    }
    let output = running.finish(PATIENCE)?;
    if let Some(tracer) = tracer {
        tracer.finish(PATIENCE)?;
    }
    if !all_wait || stopped.is_none() {
        site.cluster.admin(&["scancel", "--name", &name])?;
        return Err(format!("{} wait, and who stands still is {stopped:?}\n{output}", n_waiting()).into());
    }
    let job = site.cluster.job(&name, output.expect_code(125)?)?;
    let containers = containers(&job, n_others)?;
    let errors: Vec<&str> = job.output.stderr.lines().filter(|line| line.contains("error:")).collect();
    let ours = errors.iter().filter(|line| !line.starts_with("srun:")).count();
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let mut exits = records.first().map(|record| record.exits.clone()).unwrap_or_default();
    exits.sort_by_key(|exit| *exit == Exit::Code(0));
    let mut expected = vec![Exit::Code(0); n_others];
    expected.insert(0, Exit::Code(125));
    if containers.len() != 1
        || ours != 1
        || records.len() != 1
        || !records[0].class.starts_with("engine-")
        || exits != expected
        || (job.account.state.as_str(), job.account.exit.as_str()) != ("FAILED", "125:0")
    {
        let told = format!("{containers:?} {errors:?} {:?} {records:#?}", job.account);
        return Err(format!("{told}\n{}", job.output).into());
    }
    site.cluster.settled()?;
    drop(dir);
    clean.expect_clean()?;
    Ok(())
}

fn stands_still(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    matches!(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()), Some('T' | 't'))
}
