//! `kill -9` of our processes at random moments: of the tasks, the keeper, a payload that is not one yet, the first
//! process of a PID namespace, those that fetch or extract an image, in a step and for a user, those of an instance
//! and of whoever starts or enters it, and the process that is to find out what the kill of a task meant.
//!
//! After each kill the step must end in time and badly, nothing may be left, and the next step and the next
//! pull must work. Half of the moments are random; the others are chosen so that each phase in which a process
//! can be found is hit (`AIMS`), and the case fails where one was not. In which phase a process was is looked at
//! while it is stopped. The seed is printed, and taken from `SITULA_TEST_SEED` when it is set, and so is how often
//! which kind was hit in which phase.

mod after_kill;
mod instances;
mod pulls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use pulls::killed_pull;

use super::Site;
use super::ends::KILL_WAIT;
use super::privileged::registry;
use crate::cluster::Job;
use crate::command::{Output, Running, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit, Outcome};
use crate::processes::{self, Kind, Process, Watch, kill_if};
use crate::random::Random;
use crate::slow_proxy::{SlowProxy, UNLIMITED};
use crate::tier::Check;

/// Whom a round is to hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    /// The process that waits for a payload.
    Task,
    /// The process that serves the image.
    Keeper,
    /// A payload before its exec.
    Payload,
    /// The process that fetches the image of a step.
    Fetcher,
    /// `situla pull` of a user.
    Pull,
    /// The first process of a PID namespace (`--pid`).
    Init,
    /// The process that extracts the image of a step.
    Extractor,
    /// The starter, the holder, the init or the keeper of a user's instance.
    Instance,
    /// Who enters an instance, or what is to become his command.
    Visit,
    /// The process that the plugin starts when a task has died by KILL.
    AfterKill,
}

const VICTIMS: [Victim; 10] = [
    Victim::Task,
    Victim::Keeper,
    Victim::Payload,
    Victim::Fetcher,
    Victim::Pull,
    Victim::Init,
    Victim::Extractor,
    Victim::Instance,
    Victim::Visit,
    Victim::AfterKill,
];

/// No process of the step has the meeting point or has forked anything.
const BEFORE_MEETING: &str = "before the tasks have met";
/// Somebody leads; not all payloads have begun.
const SETTING_UP: &str = "while setting up";
/// All payloads have begun, and not all are done.
const RUNNING: &str = "while the payload runs";
/// The payload of this process has ended, or those of all have.
const ENDING: &str = "after the payload's end";
const FORKED: &str = "before it has namespaces";
const INSIDE: &str = "in its namespaces, before exec";
const FETCHING: &str = "while fetching";
const EXTRACTING: &str = "while extracting";
/// A task of ours was killed just before.
const LOST: &str = "while it ends the step";
/// The payload of a task has killed itself just before.
const OWN_DEATH: &str = "after a payload's own death";

/// What must be hit, whatever the random moments hit: a phase, or the part of an instance by which its phases begin.
const AIMS: [(Victim, &str); 18] = [
    (Victim::Task, BEFORE_MEETING),
    (Victim::Task, SETTING_UP),
    (Victim::Task, RUNNING),
    (Victim::Task, ENDING),
    (Victim::Keeper, SETTING_UP),
    (Victim::Keeper, RUNNING),
    (Victim::Payload, FORKED),
    (Victim::Payload, INSIDE),
    (Victim::Init, SETTING_UP),
    (Victim::Init, RUNNING),
    (Victim::AfterKill, LOST),
    (Victim::AfterKill, OWN_DEATH),
    (Victim::Instance, "(starter)"),
    (Victim::Instance, "(holder)"),
    (Victim::Instance, "(init)"),
    (Victim::Instance, "(keeper)"),
    (Victim::Visit, "(who enters)"),
    (Victim::Visit, "(what is to become the command)"),
];

/// When a round is to hit.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the first look at its victim, whatever that does then.
    After(Duration),
    /// As soon as its victim is in this phase.
    In(&'static str),
}

/// How many kills, in `make test` and in `make test-full`: every second one is aimed, the others take all victims in turn.
const KILLS: (usize, usize) = (36, 440);

/// How long after a payload's end the process that waits for it may still be hit; it is mostly gone by then.
const LAST_MOMENTS: Duration = Duration::from_micros(1000);

/// How often a round may be too late for its victim before the case gives up.
const TRIES: usize = 40;

/// How fast the image comes while it is being fetched: the tiny image has one megabyte, so its fetch takes about
/// as long as the delays below reach.
const PACE: u64 = 2_000_000;

/// The longest delay after the first look at a victim.
const LONGEST: Duration = Duration::from_millis(600);

/// What a round needs.
struct Round<'a> {
    site: &'a Site,
    proxy: &'a SlowProxy,
    source: &'a str,
    dir: &'a Path,
    clean: &'a Snapshot,
}

/// A kill that happened in a step, to be compared with accounting and the record later.
struct Killed {
    victim: Victim,
    phase: &'static str,
    name: String,
    output: Output,
    n_nodes: u64,
    n_tasks: u64,
    /// How many payloads had begun when the step was over.
    begun: u64,
}

/// Kills at random moments, as many as the tier has time for.
///
/// # Errors
/// A step goes on, looks well, or leaves something; or a kind of process was never hit.
pub fn at_random_moments(site: &Site) -> Check {
    let wanted = if site.env().full() { KILLS.1 } else { KILLS.0 };
    let mut random = Random::new();
    let seed = random.seed();
    killed_at_random(site, wanted, &mut random)
        .map_err(|story| format!("SITULA_TEST_SEED={seed}: {}", story.message().unwrap_or("")).into())
}

fn killed_at_random(site: &Site, wanted: usize, random: &mut Random) -> Check {
    let desk = site.desk();
    let address = registry(&desk, "up")?.stdout.trim().to_owned();
    registry(&desk, "push")?;
    let proxy = SlowProxy::before(&address)?;
    let source = format!("docker://{}/tiny:1", proxy.address());
    super::faults::forget_pulled(site)?;
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let mut hits: BTreeMap<(Victim, &'static str), usize> = BTreeMap::new();
    let mut killed = Vec::new();
    for n in 0..wanted {
        let (victim, aim) = match n % 2 {
            0 => AIMS
                .get(n / 2 % AIMS.len())
                .map_or((Victim::Task, None), |(victim, phase)| (*victim, Some(*phase))),
            _ => (VICTIMS[n / 2 % VICTIMS.len()], None),
        };
        let dir = site.env().work_dir("kill")?;
        let round = Round { site, proxy: &proxy, source: &source, dir: dir.path(), clean: &clean };
        let phase = round.hit(victim, aim, random, &mut killed).map_err(|story| {
            let aim = aim.unwrap_or("at any moment");
            format!("kill {n} of {wanted}, of {victim:?} {aim}: {}", story.message().unwrap_or(""))
        })?;
        *hits.entry((victim, phase)).or_default() += 1;
    }
    for one in &killed {
        one.judge(site)?;
    }
    let mut out = std::io::stdout().lock();
    for ((victim, phase), n) in &hits {
        writeln!(out, "  kill -9 of {victim:?} {phase}: {n}")?;
    }
    writeln!(out, "  seed {}", random.seed())?;
    let hit = |victim: &Victim| hits.keys().any(|(other, _)| other == victim);
    let reached = |(victim, aim): &(Victim, &str)| {
        hits.keys().any(|(other, phase)| other == victim && phase.starts_with(aim))
    };
    match (VICTIMS.iter().find(|victim| !hit(victim)), AIMS.iter().find(|aim| !reached(aim))) {
        (Some(victim), _) => Err(format!("{victim:?} was never hit: {hits:?}").into()),
        (None, Some((victim, phase))) => Err(format!("no {victim:?} was hit {phase}: {hits:?}").into()),
        (None, None) => Ok(()),
    }
}

impl Round<'_> {
    /// Tries until a victim was hit; returns in which phase.
    fn hit(
        &self,
        victim: Victim,
        aim: Option<&'static str>,
        random: &mut Random,
        killed: &mut Vec<Killed>,
    ) -> Result<&'static str, libtest_mimic::Failed> {
        for _ in 0..TRIES {
            let delay = random.moment(LONGEST);
            let phase = match victim {
                Victim::Pull => self.user_pull(delay, random)?,
                Victim::Instance => self.ended_if_failed("victim", self.user_instance(delay, aim, random))?,
                Victim::Visit => self.ended_if_failed("visited", self.user_visit(delay, aim, random))?,
                Victim::AfterKill => {
                    let aim = aim.unwrap_or(if random.below(2) == 0 { LOST } else { OWN_DEATH });
                    self.after_kill(aim, delay, random)?.map(|one| {
                        killed.push(one);
                        aim
                    })
                }
                _ => self.step(victim, aim.map_or(Moment::After(delay), Moment::In), random)?.map(|one| {
                    let phase = one.phase;
                    killed.push(one);
                    phase
                }),
            };
            if let Some(phase) = phase {
                return Ok(phase);
            }
        }
        Err("it was never there in time".into())
    }

    /// One step with one kill in it, and one after it.
    fn step(
        &self,
        victim: Victim,
        moment: Moment,
        random: &mut Random,
    ) -> Result<Option<Killed>, libtest_mimic::Failed> {
        let ends = matches!(moment, Moment::In(ENDING));
        let by_chance = victim == Victim::Task && matches!(moment, Moment::After(_)) && random.below(3) == 0;
        let fetches = victim == Victim::Fetcher || by_chance;
        let extracts = victim == Victim::Extractor;
        // The small one is extracted too soon.
        let (image, text, nap) = match extracts {
            true => (self.site.images.path("demo.sqsh"), "situla demo image", "sleep 0.2"),
            false if fetches => (self.source.to_owned(), "situla tiny image", "usleep 200000"),
            false => (self.site.images.path("tiny.sqsh"), "situla tiny image", "usleep 200000"),
        };
        // One or two tasks on each of one or two nodes.
        let (n_nodes, tasks_per_node) = (1 + random.below(2), 1 + random.below(2));
        let n_tasks = n_nodes * tasks_per_node;
        let short = random.below(4) == 0;
        if fetches {
            super::faults::forget_pulled(self.site)?;
            self.proxy.pace(PACE);
        }
        for name in self.marks() {
            fs::remove_file(name)?;
        }
        if extracts {
            super::extracted::empty(&self.site.desk(), self.dir)?;
        }
        let work = match () {
            () if ends => "until [ -e go ]; do usleep 2000; done",
            () if short => nap,
            () => "sleep 1000",
        };
        let script = format!("echo >begun$SLURM_PROCID; {work}; echo >done$SLURM_PROCID");
        let here = self.dir.display().to_string();
        let enter: Vec<String> = match victim {
            // The plugin has no options for these.
            Victim::Init => ["situla", "exec", "--pid", &image].map(str::to_owned).into(),
            Victim::Extractor => ["situla", "exec", "--rootfs", "extract", &image].map(str::to_owned).into(),
            _ => vec![
                format!("--container-image={image}"),
                format!("--container-mounts={here}"),
                format!("--container-workdir={here}"),
            ],
        };
        let size = [format!("-N{n_nodes}"), format!("--ntasks-per-node={tasks_per_node}")];
        let args = size.iter().chain(&enter);
        let watch = Watch::begin(self.site.env().uid()?);
        let (name, running) =
            self.site.cluster.start_srun(self.dir, args.map(String::as_str).chain(["sh", "-c", &script]))?;
        let phase = match moment {
            Moment::In(ENDING) => self.strike_last(&watch, n_tasks, random),
            _ => self.strike(&watch, victim, moment, n_tasks),
        };
        self.proxy.pace(UNLIMITED);
        if phase.is_err() {
            self.cancel(&name)?;
        }
        let phase = phase?;
        let Some((phase, at)) = phase else {
            self.missed(&name, running, extracts)?;
            return Ok(None);
        };
        let output = running.finish_within(KILL_WAIT * 3)?;
        let took = at.elapsed();
        if output.timed_out || took > KILL_WAIT {
            self.cancel(&name)?;
            return Err(format!("killed {phase}, {moment:?}, the step went on for {took:?}\n{output}").into());
        }
        let finished = (0..n_tasks).all(|n| self.dir.join(format!("done{n}")).exists());
        if output.status.success() && !finished {
            return Err(format!("killed {phase}, {moment:?}, srun says that all is well\n{output}").into());
        }
        let begun = self.marked("begun");
        if !extracts {
            self.nothing_left(&output)?;
        }
        let store = self.site.env().home()?.join(".cache/situla");
        self.site.cluster.settled()?;
        no_partial_file(&store)?;
        let (leases, building) =
            (names(&store.join("leases")), super::extracted::found(&self.site.desk())?.1);
        if !leases.is_empty() || building != 0 {
            return Err(format!("killed {phase}: {leases:?}, and {building} half trees\n{output}").into());
        }
        // The same image once more, also where it has to be fetched or extracted.
        let again = ["-n1"].into_iter().chain(enter.iter().map(String::as_str)).chain(["cat", WITNESS]);
        let (_, next) = self.site.cluster.start_srun(self.dir, again)?;
        next.finish(PATIENCE)?.success()?.expect_text(text)?;
        if extracts {
            let (trees, building) = super::extracted::found(&self.site.desk())?;
            if trees.len() != 1 || building != 0 {
                return Err(format!("there are {trees:?}, and {building} begun\n{output}").into());
            }
            super::extracted::empty(&self.site.desk(), self.dir)?;
            self.nothing_left(&output)?;
        }
        if fetches {
            whole_store(&store)?;
        }
        Ok(Some(Killed { victim, phase, name, output, n_nodes, n_tasks, begun }))
    }

    /// Waits for the victim and the moment, and kills. Returns the phase and the time of the kill.
    fn strike(
        &self,
        watch: &Watch,
        victim: Victim,
        moment: Moment,
        n_tasks: u64,
    ) -> Result<Option<(&'static str, Instant)>, String> {
        let begun = Instant::now();
        let mut seen: Option<Instant> = None;
        let wait = match moment {
            // Payloads before their exec live for a few milliseconds: any moment is as good as another.
            Moment::After(delay) if victim == Victim::Payload => delay / 200,
            Moment::After(delay) => delay,
            Moment::In(_) => Duration::ZERO,
        };
        let fits = |phase: &str| match moment {
            Moment::After(_) => true,
            Moment::In(aim) => aim == phase,
        };
        while begun.elapsed() < PATIENCE {
            let ours = watch.look();
            let found = ours.iter().find(|one| is_victim(victim, one, &ours)).copied();
            match (found, seen) {
                (Some(_), None) => seen = Some(Instant::now()),
                // It has been and gone.
                (None, Some(_)) => return Ok(None),
                _ => {}
            }
            let over = ours.is_empty() && self.marked("done") > 0;
            let is_early = matches!(victim, Victim::Payload | Victim::Extractor);
            let has_passed = matches!(moment, Moment::In(BEFORE_MEETING | SETTING_UP));
            let all_run = || self.marked("begun") == n_tasks;
            if (found.is_none() && (over || (is_early && all_run()))) || (has_passed && all_run()) {
                return Ok(None);
            }
            let Some(one) = found.filter(|_| seen.is_some_and(|since| since.elapsed() >= wait)) else {
                continue;
            };
            // Stopping it for a look would change what it comes to.
            if !fits(self.phase(victim, &one, &ours, n_tasks)) {
                continue;
            }
            let (mut phase, at) = ("", Instant::now());
            let killed = kill_if(one, || {
                phase = self.phase(victim, &one, &watch.look(), n_tasks);
                fits(phase)
            })?;
            // What is found as something else then goes on, and may come to it again.
            if killed || matches!(moment, Moment::After(_)) {
                return Ok(killed.then_some((phase, at)));
            }
        }
        Err(format!("no {victim:?} came, {moment:?}"))
    }

    /// Kills a process whose payload has ended: before it knows of that, or a little later. `None` if that was too late.
    fn strike_last(
        &self,
        watch: &Watch,
        n_tasks: u64,
        random: &mut Random,
    ) -> Result<Option<(&'static str, Instant)>, String> {
        let later = (random.below(2) == 0)
            .then(|| random.below(u64::try_from(LAST_MOMENTS.as_micros()).unwrap_or(0)));
        let all_run =
            || self.marked("begun") == n_tasks && watch.look().iter().any(|one| one.kind == Kind::Task);
        if !wait_until(PATIENCE, all_run) {
            return Err("not all payloads have begun".to_owned());
        }
        let ours = watch.look();
        let task = ours.iter().find(|one| one.kind == Kind::Task).ok_or("no task is there")?;
        let mut ended = false;
        let goes_on = |ended: &mut bool| {
            let child =
                processes::children(task.pid).into_iter().find(|pid| ours.iter().all(|one| one.pid != *pid));
            let go = fs::write(self.dir.join("go"), "");
            *ended =
                go.is_ok() && child.is_some_and(|child| wait_until(PATIENCE, || processes::is_dead(child)));
            *ended && later.is_none()
        };
        let killed = kill_if(*task, || goes_on(&mut ended))?;
        if !ended {
            return Err("its payload did not end".to_owned());
        }
        let at = Instant::now();
        let Some(later) = later.map(Duration::from_micros).filter(|_| !killed) else {
            return Ok(killed.then_some((ENDING, at)));
        };
        // It runs again.
        while at.elapsed() < later {
            std::hint::spin_loop();
        }
        Ok(kill_if(*task, || true)?.then_some((ENDING, at)))
    }

    /// What a process does. It stands still, or this is no more than a guess.
    fn phase(&self, victim: Victim, one: &Process, ours: &[Process], n_tasks: u64) -> &'static str {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let has = |kind: Kind| ours.iter().any(|other| other.kind == kind);
        match victim {
            Victim::Payload if namespace(one.pid) == namespace(one.parent) => FORKED,
            Victim::Payload => INSIDE,
            _ if has(Kind::Fetcher) => FETCHING,
            _ if has(Kind::Extractor) => EXTRACTING,
            _ if self.marked("done") == n_tasks => ENDING,
            _ if self.marked("begun") == n_tasks => RUNNING,
            Victim::Task
                if self.marked("begun") == 0
                    && !has(Kind::Keeper)
                    && !has(Kind::Child)
                    && !self.has_met() =>
            {
                BEFORE_MEETING
            }
            _ => SETTING_UP,
        }
    }

    /// Whether a task of the user's has taken a meeting point. The nodes share the network of this machine, and with it
    /// these names.
    fn has_met(&self) -> bool {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let of_user = self.site.env().uid().map(|uid| format!("@situla/{uid}/"));
        of_user.is_ok_and(|of_user| sockets.contains(&of_user))
    }

    /// Ends a step that came away unhurt, or sees that it ended well by itself.
    fn missed(&self, name: &str, running: Running, extracts: bool) -> Check {
        // One that Slurm has not heard of yet would not be cancelled.
        wait_until(PATIENCE, || self.site.cluster.knows(name).unwrap_or(false));
        self.cancel(name)?;
        let output = running.finish(PATIENCE)?;
        if output.timed_out {
            return Err(format!("a step that nobody hurt does not end\n{output}").into());
        }
        if extracts {
            self.site.cluster.settled()?;
            super::extracted::empty(&self.site.desk(), self.dir)?;
        }
        self.nothing_left(&output)
    }

    fn cancel(&self, name: &str) -> Check {
        self.site.cluster.admin(&["scancel", "--name", name])?;
        Ok(())
    }

    fn nothing_left(&self, output: &Output) -> Check {
        let judge = || -> Result<(), String> {
            self.site.cluster.settled()?;
            self.clean.expect_clean()
        };
        judge().map_err(|story| format!("{story}\n{output}").into())
    }

    /// How many payloads have written a mark.
    fn marked(&self, mark: &str) -> u64 {
        let is =
            |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(mark));
        self.marks().iter().filter(is).count() as u64
    }

    /// What payloads have written, and what they wait for.
    fn marks(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir).into_iter().flatten().flatten();
        let is_mark = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ["begun", "done", "go"].iter().any(|start| name.starts_with(start))
        };
        entries.map(|entry| entry.path()).filter(is_mark).collect()
    }
}

/// Whether a process is one that a round looks for.
fn is_victim(victim: Victim, one: &Process, all: &[Process]) -> bool {
    match victim {
        Victim::Task => one.kind == Kind::Task,
        Victim::Keeper => one.kind == Kind::Keeper,
        Victim::Fetcher => one.kind == Kind::Fetcher,
        // The keeper is forked first; until it has a name the two cannot be told apart.
        Victim::Payload => one.kind == Kind::Child && all.iter().any(|other| other.kind == Kind::Keeper),
        Victim::Init => one.kind == Kind::Init,
        Victim::Extractor => one.kind == Kind::Extractor,
        Victim::Pull | Victim::Instance | Victim::Visit | Victim::AfterKill => false,
    }
}

impl Killed {
    /// Accounting and the record must say what `srun` said.
    fn judge(&self, site: &Site) -> Check {
        let Self { victim, phase, output, .. } = self;
        let wrong = |what: String| Err(format!("kill -9 of {victim:?} {phase}: {what}\n{output}").into());
        let job: Job = site.cluster.job(&self.name, self.output.clone())?;
        let well = self.output.status.success();
        let step = job.step("0")?;
        // Slurm shows a step as completed that is cancelled while its last tasks end; of the job it tells the truth.
        // Tasks that share nothing with the victim may come to their own end first, so that Slurm does not even say
        // that it cancels. A step shows how the last of its tasks ended, without any container too:
        // `srun -n2 sh -c 'test $SLURM_PROCID = 0 && exit 125; sleep 1'` gives a failed job with a completed step.
        // Where a keeper is killed before its container stands, the next task leads one of its own.
        let shares_nothing = matches!(victim, Victim::Init | Victim::Fetcher | Victim::Extractor)
            || (matches!(victim, Victim::Keeper) && *phase == SETTING_UP);
        let comes_to_its_end = shares_nothing && self.n_tasks > 1;
        let overtaken = !well && (comes_to_its_end || self.output.stderr.contains("CANCELLED"));
        for account in [Some(&job.account), Some(step).filter(|_| !overtaken)].into_iter().flatten() {
            if (account.state == "COMPLETED") != well || (account.exit == "0:0") != well {
                return wrong(format!("accounting says {:?} and {:?}", job.account, job.steps));
            }
        }
        let records = match outcome::records(&site.cluster, &format!("{}.0", job.id)) {
            Ok(records) => records,
            // A record begins when the image is known, and ends with the plan's last step before the payload.
            Err(story) if self.begun == 0 && story.contains("there is no record") => return Ok(()),
            Err(story) => return wrong(story),
        };
        // Its last words are true, and nothing of the container was left to lose; that it did not get to exit is for Slurm to say.
        let had_said = |record: &Outcome| {
            *phase == ENDING && record.class == "ok" && record.exits.iter().all(|exit| *exit == Exit::Code(0))
        };
        let all_had_said = records.iter().all(had_said)
            && records.iter().map(|record| record.exits.len() as u64).sum::<u64>() == self.n_tasks;
        let fits = |record: &Outcome| match (well, victim) {
            (true, _) => record.class == "ok",
            // The others have come to their end.
            (false, Victim::AfterKill) if *phase == OWN_DEATH => {
                ["signal", "ok"].contains(&record.class.as_str())
            }
            (false, Victim::AfterKill) => {
                ["engine-server-lost", "cancelled"].contains(&record.class.as_str())
            }
            (false, Victim::Task) if had_said(record) => true,
            // With the only task goes who would have said how it ended.
            (false, Victim::Task) if self.n_tasks == 1 => record.class == "incomplete",
            // Short work of other nodes may be done before Slurm hears of the kill; it is told below that not all was well.
            (false, _) if self.n_nodes > 1 && record.class == "ok" => true,
            // Those that Slurm was asked to end.
            (false, _) if self.n_tasks > 1 && record.class == "cancelled" => true,
            // Killed before there was anything to say of them; another task may have done its work meanwhile.
            (false, _) if self.n_tasks > 1 && record.class == "incomplete" => {
                record.exits.iter().all(|exit| *exit == Exit::Code(0))
            }
            (false, _) => record.class == "engine-server-lost",
        };
        // One of each node, whether its tasks were in one container or not there yet.
        let names: BTreeSet<String> = records.iter().map(|record| record.record["id"].to_string()).collect();
        let tells = well || all_had_said || records.iter().any(|record| record.class != "ok");
        if tells
            && records.iter().all(fits)
            && names.len() == records.len()
            && names.len() as u64 <= self.n_nodes
        {
            Ok(())
        } else {
            wrong(format!("the records say {records:#?}"))
        }
    }
}

/// The names in a directory; none where it is not there.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// After a kill: every image under its name is complete, and nothing waits to be one.
pub(super) fn no_partial_file(store: &Path) -> Check {
    let images = names(&store.join("images"));
    let lonely = images.iter().filter_map(|name| name.strip_suffix(".sqsh"));
    let lonely: Vec<&str> = lonely.filter(|stem| !images.contains(&format!("{stem}.json"))).collect();
    let waiting = names(&store.join("tmp"));
    if lonely.is_empty() && waiting.is_empty() {
        Ok(())
    } else {
        Err(format!("partial files in the store: {lonely:?} {waiting:?}").into())
    }
}

/// After a pull that worked: one image, its record, its reference, and nothing else.
pub(super) fn whole_store(store: &Path) -> Check {
    let count = |part: &str| names(&store.join(part)).len();
    let counts = ["images", "refs", "leases", "tmp"].map(count);
    if counts == [2, 1, 0, 0] {
        Ok(())
    } else {
        Err(format!("images, references, leases, temporary files: {counts:?} instead of [2, 1, 0, 0]").into())
    }
}
