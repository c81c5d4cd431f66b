//! How a batch script ends whose work is in a container: by `apptainer exec` inside it, and where the script itself runs
//! inside. It is a step without `srun`, so nobody but Slurm and the record tells.

use std::fs;
use std::path::Path;
use std::time::Instant;

use libtest_mimic::Failed;

use super::Site;
use super::ends::{KILL_WAIT, LIMIT_PERIOD};
use crate::cluster::Job;
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::outcome;
use crate::processes::{Kind, Watch, kill_if};
use crate::tier::Check;

/// What ends the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Itself,
    Scancel,
    Limit,
    KillOfKeeper,
}

/// What is expected of an end: the state of the job, and the class of the record.
fn expected(end: End) -> (&'static str, &'static str) {
    match end {
        End::Itself => ("FAILED", "app-error"),
        End::Scancel => ("CANCELLED", "cancelled"),
        End::Limit => ("TIMEOUT", "time-limit"),
        End::KillOfKeeper => ("FAILED", "engine-server-lost"),
    }
}

/// A script ends by its own status, by `scancel`, at its time limit and with a killed keeper, as a step of `srun` does.
///
/// # Errors
/// It does not end in time, or accounting or the record call it something else.
pub fn ends_of_a_script(site: &Site) -> Check {
    let dir = site.env().work_dir("batch")?;
    let told = |end: End, inside: bool| {
        move |story: Failed| format!("{end:?}, the script inside: {inside}: {}", text(&story))
    };
    // Slurm takes up to half a minute to notice a limit: meanwhile the others have their turn.
    let mut limited = Vec::new();
    for inside in [false, true] {
        limited.push(begin(site, dir.path(), End::Limit, inside).map_err(told(End::Limit, inside))?);
    }
    for end in [End::Itself, End::Scancel, End::KillOfKeeper] {
        for inside in [false, true] {
            let begun = begin(site, dir.path(), end, inside).map_err(told(end, inside))?;
            finish(site, dir.path(), begun).map_err(told(end, inside))?;
        }
    }
    for (begun, inside) in limited.into_iter().zip([false, true]) {
        finish(site, dir.path(), begun).map_err(told(End::Limit, inside))?;
    }
    Ok(())
}

fn text(story: &Failed) -> &str {
    story.message().unwrap_or_default()
}

/// A script that was submitted, and will end.
struct Begun {
    name: String,
    id: String,
    end: End,
    since: Instant,
}

fn begin(site: &Site, dir: &Path, end: End, inside: bool) -> Result<Begun, Failed> {
    let go = dir.join(format!("go-{end:?}-{inside}"));
    let work = match end {
        End::Itself => format!("touch {}; exit 3", go.display()),
        _ => format!("touch {}; exec sleep 1000", go.display()),
    };
    let (script, options) = if inside {
        let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
        let mount = format!("--container-mounts={}", dir.display());
        (format!("#!/bin/sh\n{work}\n"), vec![image, mount])
    } else {
        let image = site.images.path("tiny.sif");
        (format!("#!/bin/bash\napptainer exec {image} sh -c '{work}'\n"), Vec::new())
    };
    let path = dir.join(format!("job-{end:?}-{inside}.sh"));
    fs::write(&path, script)?;
    let watch = Watch::begin(site.env().uid()?);
    let (name, id) = site.cluster.submit(dir, &options, &path)?;
    if !wait_until(PATIENCE, || go.exists()) {
        site.cluster.admin(&["scancel", &id])?;
        return Err("the script did not begin".into());
    }
    match end {
        End::Itself => {}
        End::Scancel => drop(site.cluster.admin(&["scancel", &id])?),
        End::Limit => {
            let job = format!("jobid={id}");
            drop(site.cluster.admin(&["scontrol", "update", &job, "TimeLimit=1", "EndTime=now+2"])?);
        }
        End::KillOfKeeper => {
            let keeper = watch.look().into_iter().find(|one| one.kind == Kind::Keeper);
            if !kill_if(keeper.ok_or("there is no keeper")?, || true)? {
                return Err("the keeper had ended".into());
            }
        }
    }
    Ok(Begun { name, id, end, since: Instant::now() })
}

fn finish(site: &Site, dir: &Path, begun: Begun) -> Check {
    let Begun { name, id, end, since } = begun;
    let patience = if end == End::Limit { LIMIT_PERIOD + KILL_WAIT } else { KILL_WAIT };
    let gone = wait_until(patience.saturating_sub(since.elapsed()), || {
        site.cluster.admin(&["squeue", "-h", "-j", &id]).map_or(true, |o| o.stdout.trim().is_empty())
    });
    let log = fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
    if !gone {
        site.cluster.admin(&["scancel", &id])?;
        return Err(format!("it goes on after {:?}\n{log}", since.elapsed()).into());
    }
    let asked = command::run(command::words(["true"]), PATIENCE)?;
    judge(site, &site.cluster.job(&name, asked)?, expected(end))
        .map_err(|story| format!("{}\n{log}", text(&story)).into())
}

fn judge(site: &Site, job: &Job, (state, class): (&str, &str)) -> Check {
    if job.account.state != state {
        return Err(format!("accounting says {:?} {:?}", job.account, job.steps).into());
    }
    let records = outcome::records(&site.cluster, &format!("{}.batch", job.id))?;
    match &records[..] {
        [record] if record.class == class => Ok(()),
        _ => Err(format!("the records say {records:#?}").into()),
    }
}
