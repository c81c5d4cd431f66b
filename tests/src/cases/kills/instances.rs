//! Kills of an instance's processes, and of those that start and enter it.

use std::fs;
use std::time::{Duration, Instant};

use super::Round;
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::processes::{self, Kind, Process, Watch, kill_if};
use crate::random::Random;

impl Round<'_> {
    /// The instance of a round that has failed is ended: it would be in the way of whatever comes next.
    pub(super) fn ended_if_failed<T>(
        &self,
        name: &str,
        outcome: Result<T, libtest_mimic::Failed>,
    ) -> Result<T, libtest_mimic::Failed> {
        if outcome.is_err() {
            // There may be none.
            let _ = self.site.env().as_user(self.dir, ["situla", "instance", "stop", "--force", name]);
        }
        outcome
    }

    /// A user's instance with a kill of one of its processes, and one after it; `None` if that one had gone.
    pub(super) fn user_instance(
        &self,
        delay: Duration,
        aim: Option<&str>,
        random: &mut Random,
    ) -> Result<Option<&'static str>, libtest_mimic::Failed> {
        const PARTS: [(Kind, [&str; 2]); 4] = [
            (Kind::Starter, ["(starter)"; 2]),
            (Kind::Holder, ["(holder) while it starts", "(holder) while it runs"]),
            (Kind::Init, ["(init) while it starts", "(init) while it runs"]),
            (Kind::Keeper, ["(keeper) while it starts", "(keeper) while it runs"]),
        ];
        let (env, desk) = (self.site.env(), self.site.desk());
        let image = self.site.images.path("tiny.sqsh");
        let run = |words: &[&str]| env.as_user(self.dir, [&["situla", "instance"], words].concat());
        let by_chance = PARTS[usize::try_from(random.below(4))?];
        let aimed = PARTS.into_iter().find(|(_, [phase, _])| aim.is_some_and(|aim| phase.starts_with(aim)));
        let (kind, phases) = aimed.unwrap_or(by_chance);
        // A start takes some ten milliseconds.
        let delay = if random.below(2) == 0 { delay / 10 } else { delay };
        let watch = Watch::begin(env.uid()?);
        let starter =
            command::start(env.user_command(self.dir, ["situla", "instance", "start", &image, "victim"])?)?;
        let mut seen: Option<Instant> = None;
        let mut hit = None;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let ours = watch.look();
            match (ours.iter().find(|one| one.kind == kind), seen) {
                (Some(_), None) => seen = Some(Instant::now()),
                (None, Some(_)) => break,
                (Some(one), Some(since)) if since.elapsed() >= delay => {
                    let starts = ours.iter().any(|other| other.kind == Kind::Starter);
                    hit = kill_if(*one, || true)?.then_some(phases[usize::from(!starts)]);
                    break;
                }
                _ => {}
            }
        }
        let output = starter.finish(PATIENCE)?;
        let listed = || super::super::instances::listed(&desk, self.dir, "victim");
        if hit.is_some() && kind == Kind::Starter {
            if output.code() != 128 + 9 {
                return Err(format!("the starter was killed\n{output}").into());
            }
            // Whoever was told to stay stays, and is as good as any other; the rest goes with the starter.
            let mut state = Ok(None);
            let has_settled = wait_until(PATIENCE, || {
                state = listed();
                watch.look().is_empty() || !matches!(state, Ok(None))
            });
            let state = state?.map(|state| state["state"].clone());
            if !has_settled || state.as_ref().is_some_and(|state| *state != "running") {
                return Err(format!("it is {state:?}, with {:?}\n{output}", watch.look()).into());
            }
            if state.is_some() {
                run(&["exec", "victim", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
                run(&["stop", "victim"])?.success()?;
            }
        }
        if hit.is_none() {
            run(&["stop", "--force", "victim"])?;
        }
        if !wait_until(PATIENCE, || watch.look().is_empty()) {
            return Err(format!("killed: {hit:?}, and these go on: {:?}\n{output}", watch.look()).into());
        }
        // One whose holder was killed is seen once.
        let seen = listed()?.map(|state| state["state"].clone());
        let again = listed()?;
        if seen.as_ref().is_some_and(|state| *state != "killed") || again.is_some() {
            return Err(format!("killed: {hit:?}, and the list says {seen:?}, {again:?}\n{output}").into());
        }
        run(&["start", &image, "victim"])?.success()?;
        let inside = run(&["exec", "victim", "cat", WITNESS]);
        run(&["stop", "victim"])?.success()?;
        inside?.success()?.expect_text("situla tiny image")?;
        self.clean.expect_clean().map_err(|story| format!("{story}\n{output}"))?;
        Ok(hit)
    }

    /// Somebody who enters a user's instance, with a kill of him or of what is to become his command; `None` if that
    /// one had gone. The instance goes on.
    pub(super) fn user_visit(
        &self,
        delay: Duration,
        aim: Option<&str>,
        random: &mut Random,
    ) -> Result<Option<&'static str>, libtest_mimic::Failed> {
        let (env, desk) = (self.site.env(), self.site.desk());
        let image = self.site.images.path("tiny.sqsh");
        let run = |words: &[&str]| env.as_user(self.dir, [&["situla", "instance"], words].concat());
        for name in self.marks() {
            fs::remove_file(name)?;
        }
        run(&["start", &image, "visited"])?.success()?;
        let alone = Snapshot::take(env, Some(&self.site.cluster))?;
        // How many have to be there: one goes in and forks the other, and is gone at once.
        let among = match aim {
            None => 0..4,
            Some("(who enters)") => 0..2,
            Some(_) => 2..4,
        };
        let (kind, delay, n_there) = match among.start + random.below(among.end - among.start) {
            // He takes some milliseconds to get in.
            0 => (Kind::Visitor, delay / 50, 1),
            1 => (Kind::Visitor, delay, 1),
            2 => (Kind::Child, delay / 200, 1),
            _ => (Kind::Child, Duration::ZERO, 2),
        };
        let watch = Watch::begin(env.uid()?);
        let words = ["situla", "instance", "exec", "visited", "sh", "-c", "echo >begun0; sleep 1000"];
        let visitor = command::start(env.user_command(self.dir, words)?)?;
        let mut seen = None;
        let mut hit = None;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let ours: Vec<_> = watch.look().into_iter().filter(|one| one.kind == kind).collect();
            let found = ours.iter().min_by_key(|one| one.pid).filter(|_| ours.len() >= n_there);
            let Some(&one) = found else {
                if seen.is_some() || self.marked("begun") > 0 {
                    break;
                }
                continue;
            };
            if seen.get_or_insert_with(Instant::now).elapsed() < delay {
                continue;
            }
            let mut is_in = false;
            let killed = kill_if(one, || {
                is_in = self.marked("begun") > 0;
                true
            })?;
            hit = killed.then_some(match (kind, is_in) {
                (Kind::Child, _) => "(what is to become the command)",
                (_, false) => "(who enters) before the command runs",
                (_, true) => "(who enters) while the command runs",
            });
            break;
        }
        if hit.is_none() {
            run(&["stop", "--force", "visited"])?.success()?;
        } else if kind == Kind::Child {
            // One that has forked the command's process and has told so is not missed.
            let pid = visitor.pid();
            wait_until(PATIENCE, || self.marked("begun") > 0 || processes::is_dead(pid));
            if self.marked("begun") > 0 {
                hit = Some("(who goes in) when that was done");
                kill_if(Process { pid, parent: 0, kind: Kind::Visitor }, || true)?;
            }
        }
        let output = visitor.finish(PATIENCE)?;
        if output.timed_out || output.status.success() {
            return Err(format!("killed: {hit:?}, and the visit has not failed\n{output}").into());
        }
        if hit.is_some() {
            // Neither the command nor anything of the way in: the instance alone.
            alone.expect_clean().map_err(|story| format!("killed: {hit:?}, {story}\n{output}"))?;
            let state = super::super::instances::listed(&desk, self.dir, "visited")?;
            if state.as_ref().is_none_or(|state| state["state"] != "running") {
                return Err(format!("killed: {hit:?}, and the instance is {state:?}\n{output}").into());
            }
            run(&["exec", "visited", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
            run(&["stop", "visited"])?.success()?;
        }
        self.clean.expect_clean().map_err(|story| format!("{story}\n{output}"))?;
        // All of it was as it must be; another round is to hit what this one has missed.
        Ok(hit.filter(|hit| aim.is_none_or(|aim| hit.starts_with(aim))))
    }
}
