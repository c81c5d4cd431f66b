//! How a payload ends: codes, signals, cancellation, limits, and the death of our own processes. The bare
//! step is the standard: with a container `srun` and accounting must say the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Site;
use crate::command::{Running, wait_until};
use crate::environment::PATIENCE;
use crate::outcome::{self, Exit};
use crate::tier::Check;

/// KillWait of the cluster, and what Slurm needs around it on two cores.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(5 + 6);

/// How often slurmctld looks whether jobs have reached their limits.
const LIMIT_PERIOD: Duration = Duration::from_secs(30);

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
    for (enter, delay) in plugin.chain(apptainer) {
        let begun = dir.path().join("begun");
        let script = format!("echo >{}; exec sleep 1000", begun.display());
        let mount = format!("--container-mounts={}", dir.path().display());
        let mount = (enter.len() == 1).then_some(mount.as_str());
        let args = ["-N2"].into_iter().chain(mount).chain(enter.iter().copied());
        let (name, running) =
            site.cluster.start_srun(dir.path(), args.chain(["sh", "-c", script.as_str()]))?;
        cancelled_after(site, &name, running, Duration::from_millis(delay), &begun).map_err(|story| {
            format!("{} cancelled after {delay} ms: {}", enter[0], story.message().unwrap_or(""))
        })?;
        if begun.exists() {
            fs::remove_file(begun)?;
        }
    }
    Ok(())
}

/// Cancels a job when it has run for `delay`, and judges its end. `begun` exists once a payload runs.
fn cancelled_after(site: &Site, name: &str, running: Running, delay: Duration, begun: &Path) -> Check {
    let id = site.cluster.wait_running(name)?;
    // Not a wait for anything: the moment of the cancellation is what is varied.
    std::thread::sleep(delay);
    let began = begun.exists();
    site.cluster.admin(&["scancel", &id])?;
    let cancelled = std::time::Instant::now();
    let output = running.finish(PATIENCE)?;
    let gone = wait_until(KILL_WAIT, || {
        site.cluster.admin(&["squeue", "-h", "-j", &id]).map_or(true, |o| o.stdout.trim().is_empty())
    });
    if !gone || cancelled.elapsed() > KILL_WAIT + Duration::from_secs(1) {
        return Err(format!("it took {:?}\n{output}", cancelled.elapsed()).into());
    }
    let job = site.cluster.job(name, output)?;
    if job.account.state != "CANCELLED" {
        return Err(format!("accounting says {:?}\n{}", job.account, job.output).into());
    }
    match outcome::records(&site.cluster, &format!("{id}.0")) {
        Ok(records) if records.iter().all(|record| record.class == "cancelled") => Ok(()),
        Ok(records) => Err(format!("the record says {records:#?}\n{}", job.output).into()),
        // A step that was cancelled before any task came to us has none.
        Err(story) if !began && story.contains("there is no record") => Ok(()),
        Err(story) => Err(story.into()),
    }
}

/// `kill -9` of each of our processes in turn ends the step within KillWait, with a failed status.
///
/// # Errors
/// The step goes on, hangs, or looks successful.
pub fn kill_of_our_processes(site: &Site) -> Check {
    let dir = site.env().work_dir("kill")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let here = dir.path().display().to_string();
    let (mounts, workdir) = (format!("--container-mounts={here}"), format!("--container-workdir={here}"));
    let mut victim = 0;
    loop {
        let (name, running) = site.cluster.start_srun(
            dir.path(),
            ["-n2", "-N1", &option, &mounts, &workdir, "sh", "-c", "touch go$SLURM_PROCID; exec sleep 1000"],
        )?;
        let id = site.cluster.wait_running(&name)?;
        if !wait_until(PATIENCE, || dir.path().join("go0").exists() && dir.path().join("go1").exists()) {
            site.cluster.admin(&["scancel", &id])?;
            return Err(format!("the payload did not start\n{}", running.finish(PATIENCE)?).into());
        }
        let ours = our_processes(site)?;
        let Some((pid, line)) = ours.get(victim).cloned() else {
            site.cluster.admin(&["scancel", &id])?;
            running.finish(PATIENCE)?;
            // Exec-only starts leave no process of ours; a supervised step has at least one.
            return Ok(());
        };
        site.cluster.admin(&["kill", "-9", &pid.to_string()])?;
        let killed = std::time::Instant::now();
        let output = running.finish(KILL_WAIT * 3)?;
        if output.timed_out || killed.elapsed() > KILL_WAIT {
            site.cluster.admin(&["scancel", &id])?;
            return Err(format!(
                "after kill -9 of {line:?} the step went on for {:?}\n{output}",
                killed.elapsed()
            )
            .into());
        }
        let job = site.cluster.job(&name, output)?;
        if job.output.status.success() || job.account.state == "COMPLETED" {
            return Err(format!(
                "after kill -9 of {line:?} all looks well: {:?}\n{}",
                job.account, job.output
            )
            .into());
        }
        for go in ["go0", "go1"] {
            fs::remove_file(dir.path().join(go))?;
        }
        victim += 1;
    }
}

/// A job that reaches its time limit ends, and both accounting and the record say why.
///
/// # Errors
/// It does not.
pub fn time_limit(site: &Site) -> Check {
    let dir = site.env().work_dir("limit")?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    // Slurm counts limits in minutes.
    let limit = Duration::from_secs(60);
    let job =
        site.cluster.srun_within(dir.path(), limit * 3, ["-n1", "--time=1", &option, "sleep", "1000"])?;
    if job.output.status.success() || job.account.state != "TIMEOUT" {
        return Err(format!("accounting says {:?}\n{}", job.account, job.output).into());
    }
    if job.output.took < limit || job.output.took > limit + LIMIT_PERIOD + KILL_WAIT {
        return Err(format!("with a limit of {limit:?} it took {:?}\n{}", job.output.took, job.output).into());
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if records.len() == 1 && records.iter().all(|r| r.class == "time-limit") {
        Ok(())
    } else {
        Err(format!("the record says {records:#?}").into())
    }
}

/// Processes of the user whose executable is the program under test, oldest first.
fn our_processes(site: &Site) -> Result<Vec<(u32, String)>, String> {
    let program = fs::canonicalize(site.env().situla()).map_err(|e| e.to_string())?;
    let name = program.file_name().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        // Inside a container the program may have no path, or one that is deleted: its name is enough.
        if exe.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&*name.to_string_lossy())) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found.sort_unstable();
    Ok(found)
}
