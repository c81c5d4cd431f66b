//! Kills of processes that fetch an image for a user.

use std::fs;
use std::time::{Duration, Instant};

use super::super::Desk;
use super::super::privileged::registry;
use super::{PACE, Round, names, no_partial_file, whole_store};
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::processes::{Kind, Watch, kill_if};
use crate::random::Random;
use crate::slow_proxy::{SlowProxy, UNLIMITED};
use crate::tier::Check;

impl Round<'_> {
    /// A user's pull with one kill in it, and one after it; `None` if it was over before the moment came.
    pub(super) fn user_pull(
        &self,
        delay: Duration,
        random: &mut Random,
    ) -> Result<Option<&'static str>, libtest_mimic::Failed> {
        let env = self.site.env();
        let cache = self.dir.join("cache");
        let store = cache.join("situla");
        env.as_user(self.dir, ["rm".as_ref(), "-rf".as_ref(), cache.as_os_str()])?.success()?;
        let variable = format!("XDG_CACHE_HOME={}", cache.display());
        let to_file = random.below(2) == 0;
        let target: &[&str] = if to_file { &["-o", "out.sif"] } else { &["--store-only"] };
        let words =
            ["env", &variable, "situla", "pull", self.source].into_iter().chain(target.iter().copied());
        let words: Vec<&str> = words.collect();
        self.proxy.pace(PACE);
        let watch = Watch::begin(self.site.env().uid()?);
        let running = command::start(env.user_command(self.dir, &words)?)?;
        let mut seen: Option<Instant> = None;
        let mut hit = None;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let found = watch.look().into_iter().find(|one| one.kind == Kind::Fetcher);
            match (found, seen) {
                (Some(_), None) => seen = Some(Instant::now()),
                (None, Some(_)) => break,
                (Some(one), Some(since)) if since.elapsed() >= delay => {
                    let phase = match names(&store.join("leases")).len() {
                        0 => "before its lease",
                        _ if self.dir.join("out.sif").exists() => "after its file appeared",
                        _ => "while it fetches",
                    };
                    hit = kill_if(one, || true)?.then_some(phase);
                    break;
                }
                _ => {}
            }
        }
        self.proxy.pace(UNLIMITED);
        let output = running.finish(PATIENCE)?;
        if output.status.success() == hit.is_some() {
            return Err(format!("killed: {hit:?}\n{output}").into());
        }
        no_partial_file(&store)?;
        let half = names(self.dir).into_iter().filter(|name| name != "cache" && name != "out.sif");
        let half: Vec<String> = half.collect();
        if !half.is_empty() {
            return Err(format!("the pull left {half:?}\n{output}").into());
        }
        if fs::remove_file(self.dir.join("out.sif")).is_ok() && !output.status.success() && hit.is_none() {
            return Err(format!("a failed pull made a file\n{output}").into());
        }
        env.as_user(self.dir, &words)?.success()?;
        whole_store(&store)?;
        let image = if to_file { "./out.sif" } else { self.source };
        env.as_user(self.dir, ["env", &variable, "situla", "exec", image, "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
        let _ = fs::remove_file(self.dir.join("out.sif"));
        self.clean.expect_clean().map_err(|story| format!("{story}\n{output}"))?;
        Ok(hit)
    }
}

/// A pull that is killed while a layer arrives is no obstacle: neither to one that waits for it already, nor
/// to the next.
///
/// # Errors
/// Something partial is left, or another pull fails or waits for the dead.
pub fn killed_pull(desk: &Desk) -> Check {
    /// Taking over must not take as long as a lease of another machine would (a minute).
    const TAKEOVER: Duration = Duration::from_secs(10);
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    for somebody_waits in [false, true] {
        let dir = desk.env.work_dir("killed")?;
        let proxy = SlowProxy::before(&address)?;
        let store = dir.path().join("cache/situla");
        let cache = format!("XDG_CACHE_HOME={}", dir.path().join("cache").display());
        let source = format!("docker://{}/tiny:1", proxy.address());
        let pull = |target: &str| {
            let words = ["env", &cache, "situla", "pull", &source, "-o", target];
            command::start(desk.env.user_command(dir.path(), words)?)
        };
        // Manifest and configuration pass; the layer begins and stops.
        proxy.hold_after(300_000);
        let watch = Watch::begin(desk.env.uid()?);
        let first = pull("first.sif")?;
        let in_the_middle = || proxy.holds() && !names(&store.join("leases")).is_empty();
        if !wait_until(PATIENCE, in_the_middle) {
            return Err(format!("no layer came\n{}", first.finish(Duration::ZERO)?).into());
        }
        let [process] = watch.look()[..] else {
            return Err(format!("expected one process: {:?}", watch.look()).into());
        };
        let waiting = if somebody_waits { Some(pull("second.sif")?) } else { None };
        if waiting.is_some() && !wait_until(PATIENCE, || watch.look().len() == 2) {
            return Err("the second pull did not start".into());
        }
        let hit = kill_if(process, || true)?;
        let output = first.finish(PATIENCE)?;
        if !hit || output.code() != 128 + 9 {
            return Err(format!("it was not killed\n{output}").into());
        }
        no_partial_file(&store)?;
        proxy.pace(UNLIMITED);
        let began = Instant::now();
        let next = match waiting {
            Some(running) => running,
            None => pull("second.sif")?,
        };
        let output = next.finish(PATIENCE)?.success()?;
        if began.elapsed() > TAKEOVER {
            return Err(format!("it waited for the dead for {:?}\n{output}", began.elapsed()).into());
        }
        let mut left = names(dir.path());
        left.sort();
        if left != ["cache", "second.sif"] {
            return Err(format!("left: {left:?}").into());
        }
        whole_store(&store)?;
        desk.env
            .as_user(dir.path(), ["env", &cache, "situla", "exec", "./second.sif", "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
    }
    Ok(())
}
