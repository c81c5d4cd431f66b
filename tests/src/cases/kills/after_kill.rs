//! Kills of the process that the plugin starts after a task's death by KILL.
//!
//! Where a node has lost its only task, nobody else ends the step on the other nodes; where a payload has
//! killed itself, nobody is to end it.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::{Killed, OWN_DEATH, Round, Victim};
use crate::cases::ends::{KILL_WAIT, UNDISTURBED};
use crate::command::wait_until;
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::processes::{Kind, Watch, kill_if, variable};
use crate::random::Random;

impl Round<'_> {
    /// A step on two nodes that loses a task, or a payload by its own hand, with a kill of the process that comes
    /// to find out which; `None` if that one had gone.
    pub(super) fn after_kill(
        &self,
        phase: &'static str,
        delay: Duration,
        random: &mut Random,
    ) -> Result<Option<Killed>, Failed> {
        let by_itself = phase == OWN_DEATH;
        let tasks_per_node = 1 + random.below(2);
        let n_tasks = 2 * tasks_per_node;
        for name in self.marks() {
            fs::remove_file(name)?;
        }
        let wait = |name: &str| format!("until [ -e {name} ]; do usleep 2000; done");
        let script = match by_itself {
            true => format!(
                "echo >begun$SLURM_PROCID; {}; test $SLURM_PROCID != 0 || kill -9 $$; {}; echo >done$SLURM_PROCID",
                wait("go"),
                wait("go-on")
            ),
            false => "echo >begun$SLURM_PROCID; sleep 1000; echo >done$SLURM_PROCID".to_owned(),
        };
        let here = self.dir.display();
        let image = self.site.images.path("tiny.sqsh");
        let enter: Vec<String> = match random.below(2) {
            0 => ["apptainer", "exec", &image].map(str::to_owned).into(),
            _ => vec![
                format!("--container-image={image}"),
                format!("--container-mounts={here}"),
                format!("--container-workdir={here}"),
            ],
        };
        let per_node = format!("--ntasks-per-node={tasks_per_node}");
        let args = ["--kill-on-bad-exit=0", "-N2", &per_node].into_iter();
        let args = args.chain(enter.iter().map(String::as_str)).chain(["sh", "-c", &script]);
        let watch = Watch::begin(self.site.env().uid()?);
        let (name, running) = self.site.cluster.start_srun(self.dir, args)?;
        // Who looks whether a payload's death was its own has soon seen it.
        let delay = if by_itself { delay / 100 } else { delay };
        let hit = self
            .lose_a_task(&watch, by_itself, n_tasks)
            .and_then(|()| strike(&watch, delay, random.below(2) == 0));
        if !matches!(hit, Ok(Some(_))) {
            self.missed(&name, running, false)?;
            hit?;
            return Ok(None);
        }
        if by_itself {
            // Not a wait for anything: nothing is to happen in that time.
            std::thread::sleep(UNDISTURBED);
            fs::write(self.dir.join("go-on"), "")?;
        }
        let at = Instant::now();
        let output = running.finish_within(KILL_WAIT * 3)?;
        let took = at.elapsed();
        if output.timed_out || took > KILL_WAIT {
            self.cancel(&name)?;
            return Err(format!("the step went on for {took:?}\n{output}").into());
        }
        let done = self.marked("done");
        let complains = output.stderr.contains("find out why") || output.stderr.contains("cannot be asked");
        let is_well = match by_itself {
            true => output.code() == 128 + 9 && done == n_tasks - 1,
            false => !output.status.success() && done == 0,
        };
        if !is_well || complains {
            return Err(format!("{done} of {n_tasks} came to their end\n{output}").into());
        }
        self.nothing_left(&output)?;
        let again = ["-n1"].into_iter().chain(enter.iter().map(String::as_str)).chain(["cat", WITNESS]);
        let (_, next) = self.site.cluster.start_srun(self.dir, again)?;
        next.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;
        let begun = self.marked("begun");
        Ok(Some(Killed { victim: Victim::AfterKill, phase, name, output, n_nodes: 2, n_tasks, begun }))
    }

    /// Kills a task of the first node, or lets the first payload kill itself.
    fn lose_a_task(&self, watch: &Watch, by_itself: bool, n_tasks: u64) -> Result<(), String> {
        if !wait_until(PATIENCE, || self.marked("begun") == n_tasks) {
            return Err("not all payloads have begun".to_owned());
        }
        if by_itself {
            return fs::write(self.dir.join("go"), "").map_err(|error| error.to_string());
        }
        let ours = watch.look();
        let of_first = ours
            .iter()
            .find(|one| one.kind == Kind::Task && variable(one.pid, "SLURM_NODEID").as_deref() == Some("0"));
        match of_first {
            Some(task) if kill_if(*task, || true)? => Ok(()),
            _ => Err(format!("there is no task to kill: {ours:?}")),
        }
    }
}

/// Waits for the process that finds out, and kills it so long after it was seen; `None` if it had gone, or was not
/// seen at all. There are two, of which one waits for the other: the `first`, or its child, where it has one by then.
fn strike(watch: &Watch, delay: Duration, first: bool) -> Result<Option<()>, String> {
    let begun = Instant::now();
    let mut seen = None;
    while begun.elapsed() < KILL_WAIT {
        let ours = watch.look();
        let waits = ours.iter().find(|one| one.kind == Kind::AfterKill).copied();
        let works = waits.and_then(|waits| ours.iter().find(|one| one.parent == waits.pid).copied());
        let found = if first { waits } else { works.or(waits) };
        match (found, seen) {
            (None, Some(_)) => return Ok(None),
            (None, None) => {}
            (Some(one), _) => {
                let since = *seen.get_or_insert_with(Instant::now);
                if since.elapsed() >= delay {
                    return Ok(kill_if(one, || true)?.then_some(()));
                }
            }
        }
    }
    Ok(None)
}
