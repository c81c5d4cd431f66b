//! A task of ours that has died by KILL.
//!
//! The task that slurmstepd waits for is the process of ours that waits for the payload. Where that is
//! killed on a node with no other task, nobody of ours is left there, and Slurm lets the tasks of other
//! nodes go on. So the trampoline is started once more, as the user, to find out from the user's own
//! record what the death means, and to end the step if a container was lost. That happens after a death
//! by KILL alone, and at most once a node and step unless the death was the payload's; a second time where it was
//! killed itself, since nobody else would end the step then. After the first deaths of that kind, and when the last task of the
//! node has ended, it is started to take away what killed tasks were fetching or extracting. slurmstepd is held up for less than
//! a second by it, and not for each task of hundreds: what takes
//! longer, as where slurmctld does not answer, goes on by itself. It is in the cgroup of slurmstepd, the job's, so that it is
//! not killed with the step, which may have no other task here.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::child::{self, End, Job};
use crate::ffi::{Handle, TaskEnd};
use crate::options::{CONFIG_VARIABLE, Settings};

/// What is left of the time that this step may take on this node, in milliseconds.
static LEFT: AtomicU64 = AtomicU64::new(PATIENCE_MS);

/// How long one task may hold slurmstepd up, and how much of that its verdict. A verdict takes 0.3 s where Slurm answers at
/// once: two thirds of that the tasks of other nodes have to record that they were told to end.
const HOLD: Duration = Duration::from_millis(900);
const FOR_VERDICT: Duration = Duration::from_millis(700);

/// When verdicts began that were not waited for to their end. While one is on its way, which ends the step most likely, nobody is held
/// up for another one, and of a whole step that is killed a few of them are enough.
static ASIDE: Mutex<Vec<Instant>> = Mutex::new(Vec::new());
const MOST_ASIDE: usize = 3;

/// Whether it was said that a death was passed over.
static PASSED_OVER: AtomicBool = AtomicBool::new(false);

/// How long all tasks together may hold it up before nothing begins any more.
const PATIENCE_MS: u64 = 13_000;

/// How long the trampoline may take, whether somebody waits for it or not, in seconds: it waits one for other tasks, and
/// gives Slurm ten to answer.
const LIMIT: u32 = 13;

/// The same for taking away what killed tasks have left: it waits one for those that still do so themselves.
const CLEANING_LIMIT: u32 = 3;

/// After so many deaths what is left on disk is not taken away each time, but once for all that follow: of a hundred tasks
/// that are killed together each would hold the end of the step up.
const CLEANED_AT_ONCE: u32 = 2;
static N_KILLED: AtomicU32 = AtomicU32::new(0);

/// Tasks of this node that have ended.
static N_ENDED: AtomicU32 = AtomicU32::new(0);

/// Whether the task that has just ended, for which this is called once, is the last of `n_tasks`.
pub(crate) fn is_last(n_tasks: u32) -> bool {
    N_ENDED.fetch_add(1, Ordering::Relaxed) + 1 == n_tasks
}

/// Whether there may be something to take away that nobody has looked after yet.
pub(crate) fn owes_cleaning() -> bool {
    N_KILLED.load(Ordering::Relaxed) > CLEANED_AT_ONCE
}

/// Uses up so much of a time in milliseconds, and gives whether that was the last of it.
fn take(left: &AtomicU64, used: Duration) -> bool {
    // What takes no time at all cannot go on for ever either.
    let used = u64::try_from(used.as_millis()).unwrap_or(u64::MAX).max(1);
    let less = |left: u64| Some(left.saturating_sub(used));
    let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    before.is_ok_and(|before| before > 0 && before <= used)
}

/// The programs that are ours under any path.
const OWN_NAMES: [&str; 3] = ["situla", "apptainer", "singularity"];

/// Variables of the job that the trampoline needs: where records and images are, and which step of which cluster it is.
const OF_JOB: [&CStr; 12] = [
    c"HOME",
    c"XDG_STATE_HOME",
    c"XDG_CACHE_HOME",
    c"SITULA_STORE",
    c"APPTAINER_CACHEDIR",
    c"SINGULARITY_CACHEDIR",
    c"SLURM_CLUSTER_NAME",
    c"SLURMD_NODENAME",
    c"SLURM_STEP_NODELIST",
    c"SLURM_STEP_NUM_NODES",
    c"SLURM_STEP_NUM_TASKS",
    c"SLURM_RESTART_COUNT",
];

/// Variables by which it finds Slurm. They are slurmstepd's own: with the job's, a user could have any
/// program run outside the limits of the job.
const OF_SITE: [&CStr; 2] = [c"PATH", c"SLURM_CONF"];

/// How many components a heterogeneous job has, and where each is named: all of them are to end.
const HETEROGENEOUS: &CStr = c"SLURM_HET_SIZE";
const COMPONENT: &str = "SLURM_JOB_ID_HET_GROUP_";

/// Components that are named to the trampoline; Slurm's limit is below it.
const MAX_COMPONENTS: u32 = 128;

/// Tells whether a program is one of ours, by its name.
pub(crate) fn is_own(program: &CStr, trampoline: &CStr) -> bool {
    let name = |path: &CStr| Path::new(OsStr::from_bytes(path.to_bytes())).file_name().map(OsStr::to_owned);
    let found = name(program);
    found.is_some()
        && (found == name(trampoline)
            || OWN_NAMES.iter().any(|own| found.as_deref() == Some(OsStr::new(own))))
}

/// Starts the trampoline, and waits for it. Gives whether the step is being ended because of this task, which was killed or is
/// the last. `program` is what the task was where only its name says that it was ours.
///
/// # Errors
/// It cannot be started, or says that the step could not be ended.
pub(crate) fn look_into(
    spank: Handle,
    task: &TaskEnd,
    settings: &Settings,
    program: Option<&CStr>,
    is_last: bool,
) -> Result<bool, String> {
    let was_killed = task.was_killed();
    let n_killed = N_KILLED.fetch_add(u32::from(was_killed), Ordering::Relaxed) + u32::from(was_killed);
    let cleans = is_last || n_killed <= CLEANED_AT_ONCE;
    if LEFT.load(Ordering::Relaxed) == 0 && !cleans {
        return Ok(false);
    }
    let mut environment = environment(spank, task)?;
    // It looks for what the task has left where the task went by the same settings.
    let config = settings.config.as_ref();
    environment.extend(config.and_then(|path| entry(CONFIG_VARIABLE.to_bytes(), path.to_bytes())));
    if let Some(program) = program {
        environment.extend(entry(PROGRAM, program.to_bytes()));
        environment.extend(spank.variable(c"PATH")?.and_then(|path| entry(SEARCH_PATH, path.to_bytes())));
    }
    let job = Job {
        program: &settings.trampoline,
        argument: c"task-killed",
        environment: &environment,
        uid: task.uid,
        gid: task.gid,
        // The user's records and programs may be for one of them alone.
        groups: &spank.groups(),
        limit: LIMIT,
    };
    let begun = Instant::now();
    let verdict = if was_killed { judge(&job) } else { Ok(false) };
    if cleans {
        // What is not taken away in time, the next fetch takes.
        let job = Job { argument: c"task-leavings", limit: CLEANING_LIMIT, ..job };
        let _ = child::run(&job, HOLD.saturating_sub(begun.elapsed()));
    }
    verdict
}

/// Has the trampoline find out what the death means, and end the step.
fn judge(job: &Job<'_>) -> Result<bool, String> {
    // It is being ended already, or cannot be, or has had its time.
    if LEFT.load(Ordering::Relaxed) == 0 {
        return Ok(false);
    }
    let begun = Instant::now();
    let mut aside = ASIDE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(patience) = next_patience(&mut aside, begun) else {
        let first = !PASSED_OVER.swap(true, Ordering::Relaxed);
        return if first { Err(TOO_MANY.to_owned()) } else { Ok(false) };
    };
    let mut end = child::run(job, patience);
    if matches!(end, Ok(End::Killed)) {
        end = child::run(job, patience.saturating_sub(begun.elapsed()));
    }
    let was_last = take(&LEFT, begun.elapsed());
    let is_first = patience > Duration::ZERO;
    if matches!(end, Ok(End::Running)) {
        aside.push(begun);
    } else if !matches!(end, Ok(End::Exited(NOT_LOST))) {
        // Whatever else it says, it is not asked again.
        LEFT.store(0, Ordering::Relaxed);
    }
    match end {
        Ok(End::Exited(0)) => Ok(true),
        Ok(End::Exited(NOT_LOST)) if was_last => Err(TOO_MANY.to_owned()),
        Ok(End::Exited(NOT_LOST)) => Ok(false),
        Ok(End::Killed) => Err(
            "a task was killed, and twice what was to find out why; if a container is lost, the step goes on"
                .to_owned(),
        ),
        Ok(End::Running) if !is_first => Ok(false),
        Ok(End::Running) => {
            Err("a task was killed; if its container is lost, the step ends as soon as Slurm answers"
                .to_owned())
        }
        Ok(_) => {
            Err("a task was killed with its container, and Slurm cannot be asked to end the step".to_owned())
        }
        Err(error) => Err(format!("cannot start a process: {error}")),
    }
}

/// How long the next verdict may hold slurmstepd up, after those that began `aside`; `None` where as many are on their way as
/// may be. What began long ago has ended, or was ended by the process that stays with it.
fn next_patience(aside: &mut Vec<Instant>, now: Instant) -> Option<Duration> {
    aside.retain(|begun| now.saturating_duration_since(*begun).as_secs() <= u64::from(LIMIT));
    match aside.len() {
        0 => Some(FOR_VERDICT),
        MOST_ASIDE.. => None,
        _ => Some(Duration::ZERO),
    }
}

/// What the user is told where deaths are passed over.
const TOO_MANY: &str = "so many tasks were killed that not all of them are looked into on this node";

/// What the trampoline says where the payload's death was its own.
const NOT_LOST: i32 = 1;

/// Tells the trampoline which program the task was. Looking at a user's path is for it, not for root.
const PROGRAM: &[u8] = b"SITULA_KILLED_PROGRAM";
/// And where the job looks for programs.
const SEARCH_PATH: &[u8] = b"SITULA_KILLED_PATH";

fn entry(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

/// The trampoline's environment, as `NAME=VALUE`.
fn environment(spank: Handle, task: &TaskEnd) -> Result<Vec<CString>, String> {
    let mut found = Vec::new();
    for name in OF_JOB {
        if let Some(value) = spank.variable(name)? {
            found.extend(entry(name.to_bytes(), value.to_bytes()));
        }
    }
    for name in OF_SITE.map(CStr::to_bytes) {
        if let Some(value) = std::env::var_os(OsStr::from_bytes(name)) {
            found.extend(entry(name, value.as_bytes()));
        }
    }
    if let Some(size) = spank.variable(HETEROGENEOUS)? {
        found.extend(entry(HETEROGENEOUS.to_bytes(), size.to_bytes()));
        let size = size.to_str().ok().and_then(|size| size.parse().ok()).unwrap_or(0);
        for component in 0..MAX_COMPONENTS.min(size) {
            let Ok(name) = CString::new(format!("{COMPONENT}{component}")) else { continue };
            if let Some(job) = spank.variable(&name)? {
                found.extend(entry(name.to_bytes(), job.to_bytes()));
            }
        }
    }
    let (job, step) = spank.job_and_step();
    let rank = rank_in_step(task.rank, spank.variable(c"SLURM_PROCID")?.as_deref());
    let numbers = [
        ("SLURM_JOB_ID", job),
        ("SLURM_STEP_ID", step),
        ("SLURM_NODEID", task.node),
        ("SLURM_PROCID", rank),
        ("SLURM_LOCALID", task.local_rank),
    ];
    found.extend(
        numbers.iter().filter_map(|(name, number)| entry(name.as_bytes(), number.to_string().as_bytes())),
    );
    Ok(found)
}

/// The rank as the task itself knows it, and its record. Slurm tells a plugin the rank in the component of a
/// heterogeneous step, and a task the one in the whole step: that one it has `told` the job's environment just before
/// (`_wait_for_any_task` of slurmstepd).
fn rank_in_step(in_component: u32, told: Option<&CStr>) -> u32 {
    let told = told.and_then(|rank| rank.to_str().ok()?.parse().ok());
    // A component's ranks come after those of the components before it.
    told.filter(|rank| *rank >= in_component).unwrap_or(in_component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_that_of_the_whole_step() {
        for (in_component, told, rank) in [
            (0, Some(c"3"), 3),
            (3, Some(c"3"), 3),
            (3, Some(c"0"), 3),
            (3, Some(c""), 3),
            (3, Some(c"many"), 3),
            (3, None, 3),
        ] {
            assert_eq!(rank_in_step(in_component, told), rank, "{told:?}");
        }
    }

    #[test]
    fn slurmstepd_is_held_up_for_one_slow_verdict_at_a_time() {
        let now = Instant::now() + Duration::from_secs(1000);
        let over = u64::from(LIMIT) + 1;
        for (aside, patience, n_left) in [
            (vec![], Some(FOR_VERDICT), 0),
            (vec![0], Some(Duration::ZERO), 1),
            (vec![5, 1], Some(Duration::ZERO), 2),
            (vec![5, 1, 0], None, 3),
            (vec![over, 1, 0], Some(Duration::ZERO), 2),
            (vec![over, over, over], Some(FOR_VERDICT), 0),
        ] {
            let mut begun: Vec<Instant> =
                aside.iter().map(|seconds| now - Duration::from_secs(*seconds)).collect();
            assert_eq!(next_patience(&mut begun, now), patience, "{aside:?}");
            assert_eq!(begun.len(), n_left, "{aside:?}");
        }
    }

    #[test]
    fn the_last_task_of_a_node_is_known() {
        let found: Vec<bool> = (0..4).map(|_| is_last(3)).collect();
        assert_eq!(found, [false, false, true, false]);
    }

    #[test]
    fn all_tasks_of_a_step_together_have_one_budget() {
        let all = Duration::from_millis(PATIENCE_MS);
        let full = || AtomicU64::new(PATIENCE_MS);
        let is_used_up = |left: &AtomicU64| left.load(Ordering::Relaxed) == 0;
        let left = full();
        let one = Duration::from_millis(700);
        let mut looked = Duration::ZERO;
        let mut told = 0;
        // As look_into does for each task of a large node.
        for _ in 0..1000 {
            if !is_used_up(&left) {
                looked += one;
                told += usize::from(take(&left, one));
            }
        }
        assert!(looked > all - one && looked < all + one, "{looked:?}");
        assert_eq!(told, 1, "it is said once that nobody looks any more");
        let left = full();
        assert!(!take(&left, Duration::ZERO) && !is_used_up(&left));
        assert!(take(&left, all * 2) && is_used_up(&left) && !take(&left, one));
    }

    #[test]
    fn programs_are_ours_by_their_names() {
        for (program, want) in [
            (c"/opt/bin/apptainer", true),
            (c"situla", true),
            (c"singularity", true),
            (c"/usr/libexec/trampoline", true),
            (c"trampoline", true),
            (c"/bin/bash", false),
            (c"", false),
            (c"/", false),
        ] {
            assert_eq!(is_own(program, c"/opt/situla/trampoline"), want, "{program:?}");
        }
    }
}
