//! How a payload ends: codes, signals, cancellation, limits, and the death of our own processes. The bare
//! step is the standard: with a container `srun` and accounting must say the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::Failed;

use super::Site;
use super::kills::names;
use crate::cluster::{Account, Job};
use crate::command::{Output, Running, wait_until};
use crate::environment::PATIENCE;
use crate::outcome::{self, Exit};
use crate::processes::{Kind, Process, Watch, kill_if, variable};
use crate::tier::Check;

/// KillWait of the cluster: a step that loses a process of ours, and one that heeds TERM, is over by then.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(5);

/// What Slurm takes to tell `srun`, once it has sent KILL to those that do not heed TERM.
const AFTER_KILL: Duration = Duration::from_millis(1500);

/// Longer than the plugin takes to find out what a kill was, and Slurm to end a step.
pub(super) const UNDISTURBED: Duration = Duration::from_secs(4);

/// How often slurmctld looks whether jobs have reached their limits.
pub(super) const LIMIT_PERIOD: Duration = Duration::from_secs(30);

/// Codes and signals pass through, by the plugin and by `apptainer exec`, as without a container.
///
/// # Errors
/// They differ from the bare step's, or the record does.
pub fn codes_and_signals(site: &Site) -> Check {
    let dir = site.env().work_dir("ends")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let sif = site.images.path("tiny.sif");
    for (script, class, exit) in [
        ("exit 3", "app-error", Exit::Code(3)),
        ("exit 255", "app-error", Exit::Code(255)),
        ("kill -TERM $$", "signal", Exit::Signal(15)),
        ("kill -SEGV $$", "signal", Exit::Signal(11)),
        ("kill -KILL $$", "signal", Exit::Signal(9)),
    ] {
        let mut started = Vec::new();
        for enter in [vec![], vec![option.as_str()], vec!["apptainer", "exec", sif.as_str()]] {
            let args = ["-n1"].into_iter().chain(enter).chain(["sh", "-c", script]);
            started.push(site.cluster.start_srun(dir.path(), args)?);
        }
        let mut jobs = Vec::new();
        for (name, running) in started {
            jobs.push(site.cluster.job(&name, running.finish(PATIENCE)?)?);
        }
        let bare = &jobs[0];
        for job in &jobs[1..] {
            if (job.output.code(), &job.account, job.step("0")?)
                != (bare.output.code(), &bare.account, bare.step("0")?)
            {
                return Err(format!(
                    "{script}: without a container {:?}\n{}\nwith one {:?}\n{}",
                    bare.steps, bare.output, job.steps, job.output
                )
                .into());
            }
            let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
            if records.len() != 1 || records[0].class != class || records[0].exits != [exit] {
                return Err(
                    format!("{script}: expected {class} {exit:?}, the record says {records:#?}").into()
                );
            }
        }
    }
    Ok(())
}

/// A program that is not in the image: 127; one that cannot be executed: 126.
///
/// # Errors
/// Another code.
pub fn command_missing(site: &Site) -> Check {
    let dir = site.env().work_dir("missing")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let job = site.cluster.srun(dir.path(), ["-n1", &option, program])?;
        job.output.clone().expect_code(code)?.expect_text(program)?;
        let exit = format!("{code}:0");
        super::bare::expect_account(&job, "FAILED", &exit, "FAILED", &exit)?;
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        let exits = [Exit::Code(code.into())];
        if records.len() != 1 || records[0].class != "engine-command-missing" || records[0].exits != exits {
            return Err(format!("{program}: the record says {records:#?}").into());
        }
    }
    Ok(())
}

/// `scancel` at any moment of a step's life ends it within KillWait, by the plugin and by `apptainer exec`,
/// and the record says that it was cancelled.
///
/// # Errors
/// It does not, or accounting or the record call it something else.
pub fn scancel_at_any_moment(site: &Site) -> Check {
    let dir = site.env().work_dir("scancel")?;
    let option = format!("--container-image={}", site.images.path("demo.sqsh"));
    let sif = site.images.path("demo.sif");
    // From before the task exists to the middle of the payload, which writes a file when it has begun.
    let (plugin, apptainer): (Vec<u64>, Vec<u64>) = if site.env().full() {
        ((0..60).map(|n| n * n).collect(), (0..20).map(|n| 9 * n * n).collect())
    } else {
        (vec![0, 20, 60, 120, 250, 1000], vec![0, 100, 1000])
    };
    let plugin = plugin.into_iter().map(|delay| (vec![option.as_str()], delay));
    let apptainer = apptainer.into_iter().map(|delay| (vec!["apptainer", "exec", sif.as_str()], delay));
    let (mut early, mut late) = (0, 0);
    for (enter, delay) in plugin.chain(apptainer) {
        let begun = dir.path().join("begun");
        let script = format!("echo >{}; exec sleep 1000", begun.display());
        let mount = format!("--container-mounts={}", dir.path().display());
        let mount = (enter.len() == 1).then_some(mount.as_str());
        let args = ["-N2"].into_iter().chain(mount).chain(enter.iter().copied());
        let (name, running) =
            site.cluster.start_srun(dir.path(), args.chain(["sh", "-c", script.as_str()]))?;
        let delay = Duration::from_millis(delay);
        let began = cancelled_after(site, &name, running, delay, &begun)
            .map_err(|story| format!("{} cancelled after {delay:?}: {story}", enter[0]))?;
        *(if began { &mut late } else { &mut early }) += 1;
        if begun.exists() {
            fs::remove_file(begun)?;
        }
    }
    // Both sides of the start were tried, or "any moment" is not true.
    if early == 0 || late == 0 {
        return Err(format!("{early} were cancelled before a payload began, {late} after").into());
    }
    Ok(())
}

/// Cancels a job when it has run for `delay`, and judges its end. `begun` exists once a payload runs; returns whether it
/// did when the job was cancelled.
fn cancelled_after(
    site: &Site,
    name: &str,
    running: Running,
    delay: Duration,
    begun: &Path,
) -> Result<bool, String> {
    let id = site.cluster.wait_running(name)?;
    // Not a wait for anything: the moment of the cancellation is what is varied.
    std::thread::sleep(delay);
    let began = begun.exists();
    site.cluster.admin(&["scancel", &id])?;
    let cancelled = Instant::now();
    let output = running.finish(PATIENCE)?;
    let took = cancelled.elapsed();
    let gone = wait_until(PATIENCE, || {
        site.cluster.admin(&["squeue", "-h", "-j", &id]).map_or(true, |o| o.stdout.trim().is_empty())
    });
    if !gone || took > KILL_WAIT {
        return Err(format!("gone: {gone}, it took {took:?}\n{output}"));
    }
    let job = site.cluster.job(name, output)?;
    if job.account.state != "CANCELLED" || job.output.status.success() {
        return Err(format!("accounting says {:?}\n{}", job.account, job.output));
    }
    match outcome::records(&site.cluster, &format!("{id}.0")) {
        Ok(records) if records.iter().all(|record| record.class == "cancelled") => Ok(began),
        Ok(records) => Err(format!("the record says {records:#?}\n{}", job.output)),
        // A step that was cancelled before any task came to us has none.
        Err(story) if !began && story.contains("there is no record") => Ok(began),
        Err(story) => Err(story),
    }
}

/// How a step comes into a container, and the status that says that the container was lost.
struct Entrance {
    name: &'static str,
    words: Vec<String>,
    lost: i32,
}

/// The ways that have processes of ours of their own: an image that is served, a directory, and the command line.
fn entrances(site: &Site, dir: &Path) -> Vec<Entrance> {
    let here = dir.display();
    let plugin = |name, image: String| Entrance {
        name,
        words: vec![
            format!("--container-image={image}"),
            format!("--container-mounts={here}"),
            format!("--container-workdir={here}"),
        ],
        lost: 125,
    };
    vec![
        plugin("an image", site.images.path("tiny.sqsh")),
        plugin("a directory", site.env().image_tree("tiny").display().to_string()),
        Entrance {
            name: "apptainer exec",
            words: ["apptainer", "exec", &site.images.path("tiny.sif")].map(str::to_owned).into(),
            lost: 255,
        },
    ]
}

/// `kill -9` of each of our processes ends the step within KillWait, with a failed status and a record that says
/// that the container was lost.
///
/// # Errors
/// The step goes on, hangs, or looks successful; or there were other processes than there must be.
pub fn kill_of_our_processes(site: &Site) -> Check {
    let dir = site.env().work_dir("kill")?;
    let entrances = entrances(site, dir.path());
    let mut killed = Vec::new();
    for entrance in &entrances {
        for one in kill_each(site, dir.path(), &entrance.words)? {
            killed.push((entrance, one));
        }
    }
    // Accounting arrives in batches: it is asked when all are over.
    for (entrance, (kind, name, output)) in killed {
        let job = site.cluster.job(&name, output)?;
        after_kill(site, &job, kind, entrance.lost).map_err(|what| {
            format!("{}: kill -9 of {kind:?}: {what}\n{:?}\n{}", entrance.name, job.steps, job.output)
        })?;
    }
    Ok(())
}

/// Starts a step of two tasks for each process that one has, and kills another one in each.
fn kill_each(site: &Site, dir: &Path, words: &[String]) -> Result<Vec<(Kind, String, Output)>, String> {
    let watch = Watch::begin(site.env().uid()?);
    let mut started = Vec::new();
    for node in site.cluster.nodes().keys().take(3) {
        let script = "touch go$SLURM_JOB_ID.$SLURM_PROCID; exec sleep 1000";
        let args = ["-n2", "-N1", "-w", node].into_iter().chain(words.iter().map(String::as_str));
        started.push(site.cluster.start_srun(dir, args.chain(["sh", "-c", script]))?);
    }
    let mut hit = Vec::new();
    for (nth, (name, running)) in started.into_iter().enumerate() {
        let id = site.cluster.wait_running(&name)?;
        let begun = || (0..2).all(|rank| dir.join(format!("go{id}.{rank}")).exists());
        let kind = if wait_until(PATIENCE, begun) {
            kill_nth(&watch.look(), &id, nth)
        } else {
            Err("the payload did not start".to_owned())
        };
        if kind.is_err() {
            site.cluster.admin(&["scancel", &id])?;
        }
        hit.push((kind, Instant::now(), name, running));
    }
    let mut ended = Vec::new();
    for (kind, at, name, running) in hit {
        let output = running.finish_within(KILL_WAIT * 3)?;
        let kind = kind.map_err(|why| format!("{why}\n{output}"))?;
        if output.timed_out || at.elapsed() > KILL_WAIT {
            site.cluster.admin(&["scancel", "--name", &name])?;
            let took = at.elapsed();
            return Err(format!("after kill -9 of {kind:?} the step went on for {took:?}\n{output}"));
        }
        ended.push((kind, name, output));
    }
    Ok(ended)
}

/// Kills the first task, the second, or the keeper of a job's step on one node; there must be just these.
fn kill_nth(all: &[Process], job: &str, nth: usize) -> Result<Kind, String> {
    let of_job = |one: &&Process| variable(one.pid, "SLURM_JOB_ID").as_deref() == Some(job);
    let of = |kind| all.iter().filter(of_job).copied().filter(move |one| one.kind == kind);
    let victims: Vec<Process> = of(Kind::Task).chain(of(Kind::Keeper)).collect();
    if [of(Kind::Task).count(), of(Kind::Keeper).count()] != [2, 1] {
        return Err(format!("two tasks and a keeper are expected, not {all:?}"));
    }
    let victim = victims[nth];
    if kill_if(victim, || true)? { Ok(victim.kind) } else { Err(format!("{victim:?} has gone")) }
}

/// What `srun`, accounting and the record must say after the kill of one of two tasks, or of the keeper.
fn after_kill(site: &Site, job: &Job, kind: Kind, lost: i32) -> Result<(), String> {
    let story = |failed: Failed| failed.message().unwrap_or("").to_owned();
    if kind == Kind::Task {
        // Slurm sees that very task die; the other one finds that the container is lost.
        job.output.clone().expect_code(128 + 9)?.expect_text("was killed")?;
        super::bare::expect_account(job, "FAILED", "0:9", "CANCELLED", "0:9").map_err(story)?;
    } else {
        let output = job.output.clone().expect_text("the process that serves the image has ended")?;
        // The tasks end by themselves, and Slurm is asked to end those that do not know: which of the two comes
        // first for which task is open.
        let exit = format!("{}:0", lost & 0x7f);
        let one_of = |account: &Account| {
            [exit.as_str(), "0:9", "0:15"].contains(&account.exit.as_str())
                && ["FAILED", "CANCELLED"].contains(&account.state.as_str())
        };
        let step = job.step("0")?;
        if ![lost, 128 + 9, 128 + 15].contains(&output.code()) || !one_of(&job.account) || !one_of(step) {
            return Err(format!("srun and accounting say {} {:?} {step:?}", output.code(), job.account));
        }
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if records.len() == 1 && records[0].class == "engine-server-lost" {
        Ok(())
    } else {
        Err(format!("the record says {records:#?}"))
    }
}

/// A process of ours that is killed on one node ends the tasks of all nodes, within KillWait: also where nobody
/// of ours is left on that node, and without `--kill-on-bad-exit`.
///
/// # Errors
/// A task goes on, or something is left; or `srun`, accounting or the records say that all is well.
pub fn kill_on_one_of_two_nodes(site: &Site) -> Check {
    let dir = site.env().work_dir("onenode")?;
    let watch = Watch::begin(site.env().uid()?);
    let mut ended = Vec::new();
    for entrance in entrances(site, dir.path()) {
        for (victim, tasks_per_node) in
            [(Kind::Keeper, 2), (Kind::Keeper, 1), (Kind::Task, 2), (Kind::Task, 1)]
        {
            if victim == Kind::Keeper && tasks_per_node == 1 && entrance.name == "a directory" {
                // Nothing to serve, and nobody to hand anything to: there is none.
                continue;
            }
            let story =
                |why: String| format!("{victim:?} of {tasks_per_node} tasks, {}: {why}", entrance.name);
            let per_node = format!("--ntasks-per-node={tasks_per_node}");
            let args = ["--kill-on-bad-exit=0", "-N2", &per_node].into_iter();
            // A payload that does not heed TERM goes as well, by the KILL that follows.
            let is_deaf = is_deaf(victim, tasks_per_node);
            let trap = if is_deaf { "trap '' TERM; " } else { "" };
            let script = format!("{trap}touch go$SLURM_JOB_ID.$SLURM_PROCID; sleep 1000");
            let args = args.chain(entrance.words.iter().map(String::as_str)).chain(["sh", "-c", &script]);
            let (name, running) = site.cluster.start_srun(dir.path(), args)?;
            let id = site.cluster.wait_running(&name)?;
            let hit = hit_on_first_node(&watch, dir.path(), &id, victim, tasks_per_node);
            if hit.is_err() {
                site.cluster.admin(&["scancel", &id])?;
            }
            let begun = Instant::now();
            let output = running.finish(PATIENCE)?;
            let took = begun.elapsed();
            hit.map_err(|why| story(format!("{why}\n{output}")))?;
            if took > KILL_WAIT {
                site.cluster.admin(&["scancel", &id])?;
                return Err(story(format!("the step went on for {took:?}\n{output}")).into());
            }
            site.cluster.settled()?;
            if !watch.sees_none() {
                return Err(story(format!("these go on: {:?}\n{output}", watch.look())).into());
            }
            ended.push((victim, tasks_per_node, name, output));
        }
    }
    for (victim, tasks_per_node, name, output) in ended {
        let job = site.cluster.job(&name, output)?;
        let mut records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        records.sort_by_key(|record| record.record["start"]["identity"]["node"].to_string());
        let classes: Vec<&str> = records.iter().map(|record| record.class.as_str()).collect();
        // With the only task of a node goes who would have said how it ended; accounting tells the rest.
        let alone = victim == Kind::Task && tasks_per_node == 1;
        let first = if alone { "cancelled" } else { "engine-server-lost" };
        // KILL takes all of a node at once, so that nobody is left to say how it ended.
        let is_deaf = is_deaf(victim, tasks_per_node);
        let fits = |class: &str| class == "cancelled" || is_deaf && class == "incomplete";
        if classes.len() != 2 || classes[0] != first || !fits(classes[1]) {
            let story = format!("{victim:?} of {tasks_per_node} tasks\n{}", job.output);
            return Err(format!("{story}\nthe records say {records:#?}").into());
        }
        let step = job.step("0")?;
        // Which of several bad ends srun and accounting show is theirs to choose.
        let bad = |state: &str| matches!(state, "FAILED" | "CANCELLED");
        if job.output.status.success() || !bad(&job.account.state) || !bad(&step.state) || step.exit == "0:0"
        {
            return Err(format!("accounting says {:?} {step:?}\n{}", job.account, job.output).into());
        }
    }
    Ok(())
}

/// In which of the rounds above payloads do not heed TERM.
fn is_deaf(victim: Kind, tasks_per_node: u8) -> bool {
    victim == Kind::Task && tasks_per_node == 2
}

/// A user whose record would hang who reads it, a pipe that nobody writes to, holds nobody up: what reads it sees
/// that it is no file.
///
/// # Errors
/// The step takes longer than others to end, or something is left, or a node is drained.
pub fn a_record_that_hangs(site: &Site) -> Check {
    let dir = site.env().work_dir("fifo")?;
    let watch = Watch::begin(site.env().uid()?);
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let script = "touch go$SLURM_JOB_ID.$SLURM_PROCID; sleep 1000";
    let args = ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=1", &option, "sh", "-c", script];
    let mounts = format!("--container-mounts={0}", dir.path().display());
    let workdir = format!("--container-workdir={}", dir.path().display());
    let args = [mounts.as_str(), workdir.as_str()].into_iter().chain(args);
    let (name, running) = site.cluster.start_srun(dir.path(), args)?;
    let id = site.cluster.wait_running(&name)?;
    let begun =
        wait_until(PATIENCE, || (0..2).all(|rank| dir.path().join(format!("go{id}.{rank}")).exists()));
    let records = site.env().home()?.join(".local/state/situla/records").join(site.cluster.name()?);
    let replace = || -> Result<(), String> {
        if !begun {
            return Err("the payloads did not start".to_owned());
        }
        let of_step = |name: &String| name.starts_with(&format!("{id}.0."));
        for name in names(&records).into_iter().filter(of_step) {
            let path = records.join(&name).display().to_string();
            site.env().as_user(dir.path(), ["rm", &path])?.success()?;
            site.env().as_user(dir.path(), ["mkfifo", &path])?.success()?;
        }
        hit_on_first_node(&watch, dir.path(), &id, Kind::Task, 1)
    };
    let hit = replace();
    let killed = Instant::now();
    site.cluster.admin(&["scancel", &id])?;
    let output = running.finish(PATIENCE)?;
    site.cluster.settled()?;
    let took = killed.elapsed();
    let fifos: Vec<_> =
        names(&records).into_iter().filter(|name| name.starts_with(&format!("{id}."))).collect();
    for name in &fifos {
        let path = records.join(name).display().to_string();
        site.env().as_user(dir.path(), ["rm", &path])?.success()?;
    }
    hit.map_err(|why| format!("{why}\n{output}"))?;
    if fifos.is_empty() || took > KILL_WAIT || !watch.sees_none() {
        return Err(format!("it took {took:?}; {fifos:?}; these go on: {:?}\n{output}", watch.look()).into());
    }
    Ok(())
}

/// Where no record can be written, a killed process of ours ends the step all the same; a program that kills itself does
/// not, and is told as a shell tells it.
///
/// # Errors
/// The other node's task goes on after the first kill, or is ended by the second; or a kill does not show.
pub fn kill_without_a_record(site: &Site) -> Check {
    let dir = site.env().work_dir("norecord")?;
    let watch = Watch::begin(site.env().uid()?);
    // No directory can be made there, by anybody.
    let nowhere = [("XDG_STATE_HOME", "/proc/situla-has-no-records")];
    let begin = "touch go$SLURM_JOB_ID.$SLURM_PROCID";
    let wait = "while [ ! -e end$SLURM_JOB_ID ]; do usleep 100000; done; touch over$SLURM_JOB_ID";
    let killed = "test $SLURM_PROCID = 1 || kill -9 $$";
    for entrance in entrances(site, dir.path()) {
        let story = |why: String| format!("{}: {why}", entrance.name);
        let start = |script: String| {
            let args = ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=1"].into_iter();
            let args = args.chain(entrance.words.iter().map(String::as_str)).chain(["sh", "-c", &script]);
            site.cluster.start_srun_with(dir.path(), &nowhere, args)
        };
        let no_record = |id: &str| match outcome::records(&site.cluster, &format!("{id}.0")) {
            Err(why) if why.contains("there is no record") => Ok(()),
            other => Err(story(format!("a record where none can be: {other:#?}"))),
        };

        let (name, running) = start(format!("{begin}; {wait}"))?;
        let id = site.cluster.wait_running(&name)?;
        let hit = hit_on_first_node(&watch, dir.path(), &id, Kind::Task, 1);
        if hit.is_err() {
            site.cluster.admin(&["scancel", &id])?;
        }
        let begun = Instant::now();
        let output = running.finish(PATIENCE)?;
        let took = begun.elapsed();
        hit.map_err(|why| story(format!("{why}\n{output}")))?;
        site.cluster.settled()?;
        if took > KILL_WAIT || !watch.sees_none() || output.status.success() {
            let left = watch.look();
            return Err(story(format!("it took {took:?}; these go on: {left:?}\n{output}")).into());
        }
        no_record(&id)?;

        let (name, running) = start(format!("{begin}; {killed}; {wait}"))?;
        let id = site.cluster.wait_running(&name)?;
        let both = || (0..2).all(|rank| dir.path().join(format!("go{id}.{rank}")).exists());
        let begun = wait_until(PATIENCE, both);
        if begun {
            // Not a wait for anything: nothing is to happen in that time.
            std::thread::sleep(UNDISTURBED);
        }
        dir.write(&format!("end{id}"), "")?;
        let output = running.finish(PATIENCE)?;
        let came = dir.path().join(format!("over{id}")).exists();
        let job = site.cluster.job(&name, output)?;
        // sacct takes 128 away from a status beyond it; of a signal it would say 0:9.
        let exit = (job.output.code(), job.account.state.as_str(), job.account.exit.as_str());
        let step = job.step("0")?;
        if !begun || !came || exit != (128 + 9, "FAILED", "9:0") || step.exit != "9:0" {
            let why =
                format!("begun: {begun}, to its end: {came}, accounting says {:?} {step:?}", job.account);
            return Err(story(format!("{why}\n{}", job.output)).into());
        }
        no_record(&id)?;
    }
    Ok(())
}

/// A record that its user has closed to himself changes nothing: the kill of our process ends the step, and a program
/// that kills itself ends no other task. The record is as closed as before.
///
/// # Errors
/// The other node's task goes on after the first kill, or is ended by the second; or the record is open.
pub fn kill_with_a_closed_record(site: &Site) -> Check {
    let dir = site.env().work_dir("closed")?;
    let watch = Watch::begin(site.env().uid()?);
    let records = site.env().home()?.join(".local/state/situla/records").join(site.cluster.name()?);
    let wait = |name: &str| format!("while [ ! -e {name}$SLURM_JOB_ID ]; do usleep 100000; done");
    let script = format!(
        "touch go$SLURM_JOB_ID.$SLURM_PROCID; if test $SLURM_PROCID = 0; then {}; kill -9 $$; fi; {}; \
         touch over$SLURM_JOB_ID",
        wait("die"),
        wait("end")
    );
    let here = dir.path().display().to_string();
    let options = [
        format!("--container-image={}", site.images.path("tiny.sqsh")),
        format!("--container-mounts={here}"),
        format!("--container-workdir={here}"),
    ];
    for by_itself in [false, true] {
        let args = ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=1"].into_iter();
        let args = args.chain(options.iter().map(String::as_str)).chain(["sh", "-c", &script]);
        let (name, running) = site.cluster.start_srun(dir.path(), args)?;
        let id = site.cluster.wait_running(&name)?;
        let begun =
            wait_until(PATIENCE, || (0..2).all(|rank| dir.path().join(format!("go{id}.{rank}")).exists()));
        let of_step: Vec<_> = names(&records)
            .into_iter()
            .filter(|name| name.starts_with(&format!("{id}.0.")))
            .map(|name| records.join(name))
            .collect();
        for record in &of_step {
            fs::set_permissions(record, fs::Permissions::from_mode(0o000))?;
        }
        let at = Instant::now();
        let hit = if by_itself {
            dir.write(&format!("die{id}"), "")?;
            if begun {
                // Not a wait for anything: nothing is to happen in that time.
                std::thread::sleep(UNDISTURBED);
            }
            dir.write(&format!("end{id}"), "")?;
            Ok(())
        } else {
            hit_on_first_node(&watch, dir.path(), &id, Kind::Task, 1)
        };
        if hit.is_err() {
            site.cluster.admin(&["scancel", &id])?;
        }
        let output = running.finish(PATIENCE)?;
        let took = at.elapsed();
        site.cluster.settled()?;
        let is_closed =
            |path: &Path| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o7777 == 0);
        let closed = of_step.iter().all(|record| is_closed(record));
        for record in &of_step {
            fs::set_permissions(record, fs::Permissions::from_mode(0o600))?;
        }
        hit.map_err(|why| format!("{why}\n{output}"))?;
        let over = dir.path().join(format!("over{id}")).exists();
        let well = if by_itself { over && output.code() == 128 + 9 } else { !over && took <= KILL_WAIT };
        if !begun || of_step.len() != 2 || !closed || !well || output.status.success() {
            return Err(format!(
                "by itself: {by_itself}; begun: {begun}, to its end: {over} after {took:?}, closed: {closed}, \
                 records: {of_step:?}\n{output}"
            )
            .into());
        }
    }
    Ok(())
}

/// A program that has a name of ours and is none of ours dies by KILL without consequences: the plugin leaves other
/// engines alone.
///
/// # Errors
/// The other node's task is ended.
pub fn kill_of_another_engine(site: &Site) -> Check {
    let dir = site.env().work_dir("other")?;
    let other = dir.path().join("apptainer");
    let script = "#!/bin/sh\ntouch go.$SLURM_PROCID\ntest $SLURM_PROCID = 1 || kill -9 $$\n\
                  while [ ! -e end ]; do sleep 0.1; done\ntouch over\n";
    dir.write("apptainer", script)?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    let other = other.display().to_string();
    let args = ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=1", &other];
    let (_, running) = site.cluster.start_srun(dir.path(), args)?;
    let begun = wait_until(PATIENCE, || (0..2).all(|rank| dir.path().join(format!("go.{rank}")).exists()));
    if begun {
        // Not a wait for anything: nothing is to happen in that time.
        std::thread::sleep(UNDISTURBED);
    }
    dir.write("end", "")?;
    let output = running.finish(PATIENCE)?;
    if begun && dir.path().join("over").exists() {
        output.expect_code(128 + 9)?;
        return Ok(());
    }
    Err(format!("begun: {begun}, and the other task did not come to its end\n{output}").into())
}

/// Kills the first `victim` of the first node, once all payloads have begun.
pub(super) fn hit_on_first_node(
    watch: &Watch,
    dir: &Path,
    job: &str,
    victim: Kind,
    tasks_per_node: u8,
) -> Result<(), String> {
    let begun = || (0..2 * tasks_per_node).all(|rank| dir.join(format!("go{job}.{rank}")).exists());
    if !wait_until(PATIENCE, begun) {
        return Err("the payloads did not start".to_owned());
    }
    let ours = watch.look();
    let is_hit = |one: &&Process| {
        one.kind == victim
            && variable(one.pid, "SLURM_JOB_ID").as_deref() == Some(job)
            && variable(one.pid, "SLURM_NODEID").as_deref() == Some("0")
    };
    match ours.iter().find(is_hit) {
        Some(one) if kill_if(*one, || true)? => Ok(()),
        _ => Err(format!("none to kill on the first node: {ours:?}")),
    }
}

/// A cancelled payload that dies of TERM is gone long before KillWait is over; one that does not heed TERM, right
/// after it. By the plugin and by `apptainer exec`.
///
/// # Errors
/// One ends at another time, or the record says something else.
pub fn term_and_kill(site: &Site) -> Check {
    let dir = site.env().work_dir("term")?;
    let here = dir.path().display();
    let mut started = Vec::new();
    for entrance in entrances(site, dir.path()).into_iter().filter(|one| one.name != "a directory") {
        for heeds in [true, false] {
            let trap = if heeds { "" } else { "trap '' TERM; " };
            let script = format!("{trap}touch {here}/go$SLURM_JOB_ID; exec sleep 1000");
            let args = ["-n1"].into_iter().chain(entrance.words.iter().map(String::as_str));
            let (name, running) =
                site.cluster.start_srun(dir.path(), args.chain(["sh", "-c", script.as_str()]))?;
            started.push((entrance.name, heeds, name, running));
        }
    }
    let mut cancelled = Vec::new();
    for (enter, heeds, name, running) in started {
        let id = site.cluster.wait_running(&name)?;
        if !wait_until(PATIENCE, || dir.path().join(format!("go{id}")).exists()) {
            site.cluster.admin(&["scancel", &id])?;
            return Err(format!("the payload did not start\n{}", running.finish(PATIENCE)?).into());
        }
        site.cluster.admin(&["scancel", &id])?;
        cancelled.push((enter, heeds, id, Instant::now(), running));
    }
    // Those that end at once first: waiting for another one must not count for them.
    cancelled.sort_by_key(|(_, heeds, ..)| !heeds);
    for (enter, heeds, id, at, running) in cancelled {
        let output = running.finish(PATIENCE)?;
        let took = at.elapsed();
        let (least, most) = if heeds {
            (Duration::ZERO, KILL_WAIT * 3 / 5)
        } else {
            (KILL_WAIT * 4 / 5, KILL_WAIT + AFTER_KILL)
        };
        if took < least || took > most {
            return Err(format!("{enter}, heeds TERM: {heeds}: it took {took:?}\n{output}").into());
        }
        let records = outcome::records(&site.cluster, &format!("{id}.0"))?;
        // KILL goes to all processes of a step, so nobody is left to see how the payload ended.
        let exits: &[Exit] = if heeds { &[Exit::Signal(15)] } else { &[] };
        if records.len() != 1 || records[0].class != "cancelled" || records[0].exits != exits {
            return Err(format!("{enter}, heeds TERM: {heeds}: the record says {records:#?}").into());
        }
    }
    Ok(())
}

/// A job that reaches its time limit ends, and both accounting and the record say why.
///
/// # Errors
/// It does not.
pub fn time_limit(site: &Site) -> Check {
    let dir = site.env().work_dir("limit")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    // Slurm counts limits in minutes. `make test-full` waits for one; otherwise the job is given less once it runs.
    let whole = site.env().full();
    let limit = Duration::from_secs(if whole { 60 } else { 5 });
    let (name, running) =
        site.cluster.start_srun(dir.path(), ["-n1", "--time=1", &option, "sleep", "1000"])?;
    let id = site.cluster.wait_running(&name)?;
    if !whole {
        let end = format!("EndTime=now+{}", limit.as_secs());
        site.cluster.admin(&["scontrol", "update", &format!("jobid={id}"), &end])?;
    }
    let output = running.finish(limit + Duration::from_secs(120))?;
    let ended = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let job = site.cluster.job(&name, output)?;
    // As Slurm has it without a container: the job has no status, the step the signal.
    let step = job.step("0")?;
    let told = [&job.account.state, &job.account.exit, &step.state, &step.exit].map(String::as_str);
    if job.output.code() != 128 + 15 || told != ["TIMEOUT", "0:0", "CANCELLED", "0:15"] {
        return Err(format!("accounting says {told:?}\n{}", job.output).into());
    }
    // Slurm counts whole seconds, from the one in which the job begins.
    let least = limit - Duration::from_secs(1);
    if job.output.took < least || job.output.took > limit + LIMIT_PERIOD + KILL_WAIT {
        return Err(format!("with a limit of {limit:?} it took {:?}\n{}", job.output.took, job.output).into());
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let ended_by = |record: &outcome::Outcome| {
        (record.class.as_str(), &record.exits[..]) == ("time-limit", &[Exit::Signal(15)])
    };
    if records.len() != 1 || !records.iter().all(ended_by) {
        return Err(format!("the record says {records:#?}").into());
    }
    // From the moment at which Slurm has told the task to end.
    let told = records[0].record["tasks"][0]["signals"][0]["time_ns"].as_u64().map(Duration::from_nanos);
    let after =
        told.and_then(|told| ended.checked_sub(told)).ok_or_else(|| format!("no signal in {records:#?}"))?;
    if after > KILL_WAIT { Err(format!("it went on for {after:?} after TERM").into()) } else { Ok(()) }
}
