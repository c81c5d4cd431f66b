//! A slurmctld that does not answer, while something happens that it has to be told.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Site;
use super::ends::{KILL_WAIT, hit_on_first_node};
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::processes::{Kind, Watch, kill_if};
use crate::tier::Check;

/// slurmctld, which stands still for as long as this lives.
struct Silent(Pid);

impl Silent {
    fn make(site: &Site) -> Result<Self, String> {
        let path = site.cluster.state_dir().join("run/slurmctld.daemon.pid");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or("slurmctld has no number")?;
        kill_process(pid, Signal::STOP).map_err(|error| format!("slurmctld: {error}"))?;
        Ok(Silent(pid))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // If it has gone the next case says so.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Where slurmctld does not answer when the only task of a node is killed, slurmstepd is not held up for longer than a
/// second, and the step ends all the same when slurmctld answers.
///
/// # Errors
/// It is held up, or a task goes on.
pub fn kill_of_a_task(site: &Site) -> Check {
    /// The plugin's second, and what `srun` and slurmstepd need to say so on a machine that is busy.
    const TOLD: Duration = Duration::from_millis(1900);
    let dir = site.env().work_dir("silent")?;
    let watch = Watch::begin(site.env().uid()?);
    let image = site.images.path("tiny.sqsh");
    let here = dir.path().display();
    let told = dir.path().join("told");
    // What srun itself says goes to a file, to be read while it runs.
    let line = format!(
        "exec srun --job-name silent --kill-on-bad-exit=0 -N2 --ntasks-per-node=1 --container-image={image} \
         --container-mounts={here} --container-workdir={here} \
         sh -c 'touch go$SLURM_JOB_ID.$SLURM_PROCID; exec sleep 1000' 2>{}",
        told.display()
    );
    let running = command::start(site.cluster.user_command(dir.path(), ["sh", "-c", &line])?)?;
    let id = site.cluster.wait_running("silent")?;
    let begun = || (0..2).all(|rank| dir.path().join(format!("go{id}.{rank}")).exists());
    let silent = wait_until(PATIENCE, begun).then(|| Silent::make(site)).transpose()?;
    let hit = hit_on_first_node(&watch, dir.path(), &id, Kind::Task, 1);
    let killed = Instant::now();
    let text = || fs::read_to_string(&told).unwrap_or_default();
    let said = hit.is_ok() && wait_until(PATIENCE, || text().contains("task 0: Killed"));
    let held_up = killed.elapsed();
    // A kill of what goes on by itself changes nothing either.
    let ours = watch.look();
    let waits = ours.iter().find(|one| one.kind == Kind::AfterKill);
    let works = waits.and_then(|waits| ours.iter().find(|one| one.parent == waits.pid));
    let goes_on = works.is_some_and(|works| kill_if(*works, || true).unwrap_or(false));
    drop(silent);
    if hit.is_err() {
        site.cluster.admin(&["scancel", &id])?;
    }
    let answered = Instant::now();
    let output = running.finish(PATIENCE)?;
    let took = answered.elapsed();
    hit.map_err(|why| format!("{why}\n{output}"))?;
    site.cluster.settled()?;
    let nothing_left = watch.sees_none();
    let story =
        format!("told after {held_up:?}, went on: {goes_on}, over {took:?} after Slurm answered\n{}", text());
    // It asks twice, and gives up the first time after four seconds.
    if !said || held_up > TOLD || !goes_on || took > KILL_WAIT + Duration::from_secs(4) || !nothing_left {
        return Err(format!("{story}\nleft: {:?}", watch.look()).into());
    }
    if output.status.success() || !text().contains("as soon as Slurm answers") {
        return Err(story.into());
    }
    Ok(())
}
