//! Kills of an instance's processes.

use std::time::{Duration, Instant};

use super::Round;
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::processes::{Kind, Watch, kill_if};
use crate::random::Random;

impl Round<'_> {
    /// A user's instance with a kill of one of its processes, and one after it; `None` if that one had gone.
    pub(super) fn user_instance(
        &self,
        delay: Duration,
        random: &mut Random,
    ) -> Result<Option<&'static str>, libtest_mimic::Failed> {
        const PARTS: [(Kind, [&str; 2]); 3] = [
            (Kind::Holder, ["(holder) while it starts", "(holder) while it runs"]),
            (Kind::Init, ["(init) while it starts", "(init) while it runs"]),
            (Kind::Keeper, ["(keeper) while it starts", "(keeper) while it runs"]),
        ];
        let (env, desk) = (self.site.env(), self.site.desk());
        let image = self.site.images.path("tiny.sqsh");
        let run = |words: &[&str]| env.as_user(self.dir, [&["situla", "instance"], words].concat());
        let (kind, phases) = PARTS[usize::try_from(random.below(3))?];
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
                    let starts = ours.iter().any(|other| other.kind == Kind::Task);
                    hit = kill_if(*one, || true)?.then_some(phases[usize::from(!starts)]);
                    break;
                }
                _ => {}
            }
        }
        let output = starter.finish(PATIENCE)?;
        if hit.is_none() {
            run(&["stop", "--force", "victim"])?;
        }
        if !wait_until(PATIENCE, || watch.look().is_empty()) {
            return Err(format!("killed: {hit:?}, and these go on: {:?}\n{output}", watch.look()).into());
        }
        // One whose holder was killed is seen once.
        let seen =
            super::super::instances::listed(&desk, self.dir, "victim")?.map(|state| state["state"].clone());
        let again = super::super::instances::listed(&desk, self.dir, "victim")?;
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
}
