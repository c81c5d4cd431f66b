//! Many tasks of a step on one node: one of them killed at any moment, what they can do to each other in the one
//! container that they share, and what becomes of that when sharing is switched off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Site;
use super::ends::KILL_WAIT;
use super::kills::names;
use crate::cluster::Job;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit};
use crate::processes::{Kind, Process, Watch, kill_if};
use crate::random::Random;
use crate::tier::{self, Check, Skip};

/// Tasks that arrive at once.
const RANKS: usize = 128;

/// How often, in `make test` and in `make test-full`: Slurm needs three seconds on two cores to start so many.
const ROUNDS: (usize, usize) = (2, 200);

/// The latest moment of a kill after the first process of ours has come: the last task has come by then. Where a step is over
/// sooner, the next of its kind is hit within the time that it took.
const LATEST: Duration = Duration::from_millis(1800);

/// Until there is a keeper: one round in four is to hit before that, which a moment out of all of them hardly does.
const EARLY: Duration = Duration::from_millis(30);

/// All that a run of `make test-full` must have hit.
const PHASES: [&str; 3] = ["before there is a keeper", "while others come or go", "while all are there"];

/// How often a step may be over before the moment came, beside one time in four.
const MISSES: usize = 20;

/// 128 tasks arrive at once on a node, and one of our processes is killed at a random moment: no task hangs,
/// nothing is left, and the next step works.
///
/// # Errors
/// One of these does not hold, or no step was hit.
pub fn one_of_many_is_killed(site: &Site) -> Check {
    let rounds = if site.env().full() { ROUNDS.1 } else { ROUNDS.0 };
    let mut random = Random::new();
    let seed = random.seed();
    killed(site, rounds, &mut random)
        .map_err(|story| format!("SITULA_TEST_SEED={seed}: {}", story.message().unwrap_or("")).into())
}

fn killed(site: &Site, rounds: usize, random: &mut Random) -> Check {
    let mut hits: BTreeMap<(Kind, &'static str), usize> = BTreeMap::new();
    let bare = end_of_bare(site)?;
    let mut slowest = Duration::ZERO;
    let mut n_missed = 0;
    let mut round = 0;
    // How long steps last, by whether their tasks arrive together.
    let mut lasting = [LATEST; 2];
    while round < rounds {
        let crowd = Crowd::draw(random);
        let lasts = &mut lasting[usize::from(crowd.together)];
        let latest = if round % 4 == 3 { EARLY } else { *lasts };
        let delay = Duration::from_micros(random.below(u64::try_from(latest.as_micros())?.max(1)));
        let end = killed_once(site, crowd, delay, KILL_WAIT + bare, random)
            .map_err(|story| format!("round {round}, after {delay:?}: {}", story.message().unwrap_or("")))?;
        let (kind, phase, took) = match end {
            End::Hit(kind, phase, took) => (kind, phase, took),
            End::Over(after) => {
                *lasts = after.min(LATEST);
                n_missed += 1;
                if n_missed > MISSES + round / 4 {
                    return Err(format!("{n_missed} steps were over before the moment came").into());
                }
                continue;
            }
        };
        round += 1;
        *hits.entry((kind, phase)).or_default() += 1;
        slowest = slowest.max(took);
    }
    let mut out = std::io::stdout().lock();
    for ((kind, phase), n) in &hits {
        writeln!(out, "  {RANKS} tasks, kill -9 of a {kind:?} {phase}: {n}")?;
    }
    writeln!(
        out,
        "  the slowest end after a kill: {slowest:?}, of a cancelled bare step {bare:?}; seed {}",
        random.seed()
    )?;
    if !site.env().full() {
        return Ok(());
    }
    let missing = PHASES.iter().find(|phase| hits.keys().all(|(_, other)| other != *phase));
    match missing {
        Some(phase) => Err(format!("nothing was hit {phase}: {hits:?}").into()),
        None if hits.keys().all(|(kind, _)| *kind != Kind::Keeper) => {
            Err(format!("no keeper was hit: {hits:?}").into())
        }
        None => Ok(()),
    }
}

/// How long Slurm takes to end a step of so many tasks that has no container.
fn end_of_bare(site: &Site) -> Result<Duration, libtest_mimic::Failed> {
    let dir = site.env().work_dir("bare-crowd")?;
    let n_ranks = format!("-n{RANKS}");
    let script = "touch here.$SLURM_PROCID; exec sleep 1000";
    let words = [n_ranks.as_str(), "-N1", "-w", site.cluster.a_node(), "--overcommit", "sh", "-c", script];
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let all = wait_until(PATIENCE, || {
        names(dir.path()).iter().filter(|name| name.starts_with("here.")).count() == RANKS
    });
    let begun = Instant::now();
    site.cluster.admin(&["scancel", "--name", &name])?;
    let output = running.finish_within(PATIENCE)?;
    if all && !output.timed_out { Ok(begun.elapsed()) } else { Err(format!("no bare step\n{output}").into()) }
}

/// How a step ended.
enum End {
    /// It was hit: what, when, and how long the step went on.
    Hit(Kind, &'static str, Duration),
    /// All of ours had gone before, so long after the first had come.
    Over(Duration),
}

/// One step with one kill in it, after which it must go on no longer than `limit`.
fn killed_once(
    site: &Site,
    crowd: Crowd,
    delay: Duration,
    limit: Duration,
    random: &mut Random,
) -> Result<End, libtest_mimic::Failed> {
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    let dir = site.env().work_dir("crowd")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let node = site.cluster.a_node();
    let n_ranks = format!("-n{RANKS}");
    let entered = match crowd.of_file {
        true => site.images.path("tiny.sqsh"),
        false => site.env().image_tree("tiny").display().to_string(),
    };
    let option = format!("--container-image={entered}");
    // Slurm's own way to hold a task up before it comes to us.
    let gate = "#!/bin/sh\ntouch here.$SLURM_PROCID\nuntil [ -e go ]; do sleep 0.1; done\n";
    let prolog = format!("--task-prolog={}", dir.write("gate", gate)?.display());
    let words = [n_ranks.as_str(), "-N1", "-w", node, "--overcommit"].into_iter();
    let words = words.chain(crowd.together.then_some(prolog.as_str()));
    let enter: &[&str] = if crowd.by_plugin { &[&option] } else { &["apptainer", "exec", &entered] };
    // In the short run a payload stays until the latest moment of a kill, so that a round is not in vain; in the long one
    // ranks also go while others are hit.
    let payload = if site.env().full() { "sleep 0.5; echo done" } else { "sleep 2; echo done" };
    let words = words.chain(enter.iter().copied()).chain(["sh", "-c", payload]);
    let watch = Watch::begin(site.env().uid()?);
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    if crowd.together {
        site.cluster.wait_running(&name)?;
        let here = |name: &String| name.starts_with("here.");
        let all =
            wait_until(PATIENCE, || names(dir.path()).iter().filter(|name| here(name)).count() == RANKS);
        dir.write("go", "")?;
        if !all {
            return Err(format!("not all tasks were started\n{}", running.finish_within(PATIENCE)?).into());
        }
    }
    let begun = Instant::now();
    let mut first: Option<Instant> = None;
    let mut after = Duration::ZERO;
    let hit = loop {
        if begun.elapsed() > PATIENCE {
            site.cluster.admin(&["scancel", "--name", &name])?;
            return Err(format!("nothing could be hit\n{}", running.finish_within(PATIENCE)?).into());
        }
        let ours = watch.look();
        if ours.is_empty() {
            if let Some(first) = first {
                after = first.elapsed();
                break None;
            }
            continue;
        }
        if first.get_or_insert_with(Instant::now).elapsed() < delay {
            continue;
        }
        // Payloads run other programs by then: the processes that wait, the keeper, and those on their way.
        let nth = usize::try_from(random.below(ours.len() as u64))?;
        // The keeper is one among hundreds.
        let keeper = ours.iter().find(|one| one.kind == Kind::Keeper).filter(|_| random.below(8) == 0);
        let Some(victim) = keeper.or_else(|| ours.get(nth)) else { continue };
        if kill_if(*victim, || true)? {
            break Some((victim.kind, phase(&ours)));
        }
    };
    let at = Instant::now();
    let output = running.finish_within(limit * 3)?;
    let took = at.elapsed();
    // A step that was not hit may take its time. For one that was, Slurm's own share is what it is at that moment.
    if output.timed_out || hit.is_some() && took > limit && took > KILL_WAIT + end_of_bare(site)? {
        site.cluster.admin(&["scancel", "--name", &name])?;
        return Err(format!("after a kill of {hit:?} the step went on for {took:?}\n{output}").into());
    }
    let n_done = output.stdout.lines().filter(|line| *line == "done").count();
    if output.status.success() && n_done != RANKS {
        return Err(format!(
            "{n_done} tasks came to their end, and all is well, after {hit:?}, {crowd:?}\n{output}"
        )
        .into());
    }
    site.cluster.settled()?;
    clean.expect_clean().map_err(|story| format!("after {hit:?}, {crowd:?}: {story}\n{output}"))?;
    let (_, next) = site
        .cluster
        .start_srun(dir.path(), ["-n2", "-N1", "-w", node, "--overcommit", &image, "cat", WITNESS])?;
    next.finish(PATIENCE)?
        .success()
        .and_then(|output| output.expect_text("situla tiny image"))
        .map_err(|story| format!("the next step after {hit:?}, {crowd:?}: {story}"))?;
    judge(site, &site.cluster.job(&name, output)?)
        .map_err(|story| format!("after {hit:?}, {crowd:?}: {story}"))?;
    Ok(hit.map_or(End::Over(after), |(kind, phase)| End::Hit(kind, phase, took)))
}

/// How the tasks of a step come to us.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    /// At one moment: Slurm takes a second to start so many, so that they wait for each other before.
    together: bool,
    /// Into an image file, which a keeper serves to all of them, or into a directory.
    of_file: bool,
    /// By the plugin, or by `apptainer exec`.
    by_plugin: bool,
}

impl Crowd {
    /// Each of these independently of the others.
    fn draw(random: &mut Random) -> Self {
        let mut either = || random.below(2) == 0;
        Crowd { together: either(), of_file: either(), by_plugin: either() }
    }
}

/// How far the step has come.
fn phase(ours: &[Process]) -> &'static str {
    let n_tasks = ours.iter().filter(|one| one.kind == Kind::Task).count();
    if ours.iter().all(|one| one.kind != Kind::Keeper) {
        PHASES[0]
    } else if n_tasks < RANKS {
        PHASES[1]
    } else {
        PHASES[2]
    }
}

/// Accounting says what `srun` said, and a step that has lost somebody has no good record.
fn judge(site: &Site, job: &Job) -> Result<(), String> {
    let well = job.output.status.success();
    if (job.account.state == "COMPLETED") != well {
        return Err(format!("accounting says {:?}\n{}", job.account, job.output));
    }
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let is_whole = |record: &outcome::Outcome| {
        record.class == "ok"
            && record.exits.len() == RANKS
            && record.exits.iter().all(|one| *one == Exit::Code(0))
    };
    // Nobody that was killed, or was ended for it, is said to have ended by itself.
    let has_lost = |record: &outcome::Outcome| {
        ["engine-server-lost", "cancelled", "incomplete"].contains(&&*record.class)
    };
    let fits = match well {
        true => records.iter().all(is_whole),
        false => records.iter().all(has_lost),
    };
    if fits { Ok(()) } else { Err(format!("the records say {records:#?}\n{}", job.output)) }
}

/// `--no-share` of either command line gives each task a container of its own; without it there is one.
///
/// # Errors
/// It does not, or the record does not say so.
pub fn sharing_switched_off(site: &Site) -> Check {
    let dir = site.env().work_dir("alone")?;
    let image = site.images.path("tiny.sif");
    let script = "for n in user mnt; do readlink /proc/self/ns/$n; done; sleep 1";
    for (program, options, n_containers) in [
        ("apptainer", &["--no-share"][..], 4),
        ("apptainer", &[], 1),
        ("situla", &["--no-share"], 4),
        ("situla", &[], 1),
    ] {
        let words =
            ["-n4", "-N1", "--overcommit", program, "exec"].into_iter().chain(options.iter().copied());
        let job = site.cluster.srun(dir.path(), words.chain([image.as_str(), "sh", "-c", script]))?;
        let output = job.output.clone().success()?;
        for kind in ["user:", "mnt:"] {
            let lines = || output.stdout.lines().filter(|line| line.starts_with(kind));
            let different: BTreeSet<&str> = lines().collect();
            if lines().count() != 4 || different.len() != n_containers {
                return Err(format!("{program} {options:?}: not {n_containers} of {kind}\n{output}").into());
            }
        }
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        // However many containers there were, a step has one record on a node, with all its tasks.
        if records.len() != 1 || records[0].class != "ok" || records[0].exits.len() != 4 {
            return Err(format!("{program} {options:?}: the records say {records:#?}").into());
        }
    }
    Ok(())
}

/// Two ranks show what they are, write to shared memory, and the first reads the other's memory.
const NEIGHBOURS: &str = r#"
import ctypes, os, time
rank, here = int(os.environ["SLURM_PROCID"]), os.environ["MEET"]
def put(name, text):
    with open(f"{here}/{name}.new", "w") as f: f.write(text)
    os.rename(f"{here}/{name}.new", f"{here}/{name}")
def wait(name):
    for _ in range(3000):
        if os.path.exists(f"{here}/{name}"): return open(f"{here}/{name}").read()
        time.sleep(0.01)
    raise SystemExit(f"waited in vain for {name}")
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
caps = " ".join(status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(f"caps {caps}\ndumpable {dumpable}\nowner {os.stat('/proc/self/status').st_uid == os.getuid()}", flush=True)
shared = f"/dev/shm/situla-test-{os.environ['SLURM_JOB_ID']}"
if rank == 1:
    text = ctypes.create_string_buffer(b"the memory of another rank")
    open(shared, "w").write("shared memory")
    put("address", f"{os.getpid()} {ctypes.addressof(text)} {len(text)}")
    wait("read")
    os.unlink(shared)
else:
    pid, address, length = map(int, wait("address").split())
    class Part(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    mine = ctypes.create_string_buffer(length)
    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    n = call(pid, ctypes.byref(Part(ctypes.addressof(mine), length)), 1, ctypes.byref(Part(address, length)), 1, 0)
    print("read", mine.value.decode() if n == length else os.strerror(ctypes.get_errno()))
    print("found", open(shared).read(), flush=True)
    put("read", "")
"#;

/// Ranks that share a container can read each other's memory, as MPI does it, have equal capabilities, are dumpable
/// and share `/dev/shm`: by the plugin and by `apptainer exec`. In containers of their own they cannot.
///
/// # Errors
/// One of these does not hold.
pub fn ranks_reach_each_other(site: &Site) -> Check {
    let sif = site.images.path("demo.sif");
    let option = format!("--container-image={}", site.images.path("demo.sqsh"));
    for (enter, reads) in [
        (vec![option.as_str()], true),
        (vec!["apptainer", "exec", sif.as_str()], true),
        (vec!["apptainer", "exec", "--no-share", sif.as_str()], false),
    ] {
        let dir = site.env().work_dir("reach")?;
        let here = dir.path().display().to_string();
        let mounts = format!("--container-mounts={here}");
        let mut words = vec!["-n2", "-N1"];
        if enter.len() == 1 {
            words.push(&mounts);
        }
        words.extend(enter.iter().copied());
        words.extend(["python3", "-c", NEIGHBOURS]);
        let (name, running) = site.cluster.start_srun_with(dir.path(), &[("MEET", here.as_str())], words)?;
        let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
        let output: Output = job.output.success()?;
        let read = if reads { "read the memory of another rank" } else { "read Operation not permitted" };
        let output = output.expect_text(read)?.expect_text("found shared memory")?;
        let both =
            |start: &str| output.stdout.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
        let alike = |start| matches!(both(start)[..], [first, second] if first == second);
        if !alike("caps ") || both("dumpable 1").len() != 2 || both("owner True").len() != 2 {
            return Err(format!("the ranks are not alike\n{output}").into());
        }
    }
    Ok(())
}

/// A way to show that an MPI library hands large messages over by cross-memory attach.
struct Mpi {
    compiler: &'static str,
    /// How Slurm starts its ranks.
    start: &'static str,
    /// What makes it say what it does.
    verbose: &'static [(&'static str, &'static str)],
    /// What it says where it reads the other rank's memory.
    says: &'static [&'static str],
    /// Which of these every rank says for itself.
    each_says: &'static str,
    /// What it says where the ranks are in containers of their own.
    apart: &'static str,
    /// What it says of each message that it could not read out of the other rank's memory.
    refused: &'static str,
    /// Whether the message arrives all the same, in another way.
    has_another_way: bool,
    /// Whether its libraries come from this machine: the image has none.
    of_the_host: bool,
}

const OPEN_MPI: Mpi = Mpi {
    compiler: "mpicc.openmpi",
    start: "--mpi=pmix",
    verbose: &[
        ("OMPI_MCA_pml", "ob1"),
        ("OMPI_MCA_btl", "vader,self"),
        // Asked for by name, it is an error where it does not work.
        ("OMPI_MCA_btl_vader_single_copy_mechanism", "cma"),
        ("OMPI_MCA_btl_base_verbose", "100"),
        // What holds at the end of MPI_Init: without permission the mechanism is another one by then.
        ("OMPI_MCA_mpi_show_mca_params", "enviro"),
    ],
    says: &[
        "init of component vader returned success",
        "Using vader btl for send to",
        "btl_vader_single_copy_mechanism=cma",
    ],
    each_says: "Using vader btl for send to",
    apart: "cma-different-user-namespace-error",
    // mca_btl_vader_get_cma() says it of each process_vm_readv(2) that fails; then the message is sent in pieces.
    refused: "Read -1, expected",
    has_another_way: true,
    of_the_host: false,
};

const MPICH: Mpi = Mpi {
    compiler: "mpicc.mpich",
    start: "--mpi=pmi2",
    verbose: &[
        ("UCX_TLS", "sysv,cma,self"),
        // Nothing else will do for a large message.
        ("UCX_RNDV_SCHEME", "get_zcopy"),
        ("UCX_LOG_LEVEL", "info"),
    ],
    says: &["tag(sysv/memory cma/memory)"],
    each_says: "tag(sysv/memory cma/memory)",
    apart: "process_vm_readv(",
    refused: "process_vm_readv(",
    has_another_way: false,
    of_the_host: true,
};

impl Mpi {
    /// Both ranks have their messages, and the library says that it has read each out of the sender's memory: that it
    /// takes this way, and of no message that it had to take another.
    fn has_copied_directly(&self, output: Output) -> Result<Output, String> {
        let output = output.success()?.expect_text("large messages ok, 2 ranks")?;
        let output = self.says.iter().try_fold(output, |output, words| output.expect_text(words))?;
        let told = format!("{}{}", output.stdout, output.stderr);
        if [self.apart, self.refused].iter().any(|complaint| told.contains(complaint)) {
            return Err(format!("{}: a message went another way\n{output}", self.compiler));
        }
        Ok(output)
    }
}

/// How two ranks come into their container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the plugin.
    Plugin,
    /// By `apptainer exec`.
    Apptainer,
    /// By `apptainer exec`, each into its own.
    Apart,
    /// By `apptainer exec`, with a filter that refuses `process_vm_readv`.
    Refused,
}

/// Allows everything but what this is about.
const REFUSES_READING: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
"syscalls": [{"names": ["process_vm_readv"], "action": "SCMP_ACT_ERRNO"}]}"#;

/// Needs the compilers of both MPI libraries, of the release that the image is of.
///
/// # Errors
/// One of them is not installed.
pub(super) fn compilers() -> Result<(), Skip> {
    for mpi in [OPEN_MPI, MPICH] {
        tier::succeeds(mpi.compiler, &["-show"])
            .map_err(|why| Skip(format!("needs {}: {why}", mpi.compiler)))?;
    }
    Ok(())
}

/// Open MPI and MPICH read large messages out of the sender's memory where ranks share a container, by the plugin and by
/// `apptainer exec`, and say so, each rank of two on each of four nodes as well. With `--no-share`, and where a filter refuses the system call, they say that they
/// cannot, and the same judgement finds it.
///
/// # Errors
/// They do not, or a message arrives damaged.
pub fn mpi_copies_directly(site: &Site) -> Check {
    for mpi in [OPEN_MPI, MPICH] {
        let dir = site.env().work_dir("cma")?;
        let program = dir.path().join("large-messages").display().to_string();
        let source = site.env().file("tests/programs/large-messages.c").display().to_string();
        let compile = [mpi.compiler, "-O2", "-Wall", "-o", &program, &source];
        command::run(command::words(compile), PATIENCE)?.success()?;
        dir.write("refuses.json", REFUSES_READING)?;
        on_four_nodes(site, &mpi, dir.path(), &program)?;
        for way in [Way::Plugin, Way::Apptainer, Way::Apart, Way::Refused] {
            let output = large_messages(site, &mpi, way, dir.path(), &program)?;
            let complaint = match way {
                Way::Plugin | Way::Apptainer => {
                    mpi.has_copied_directly(output)?;
                    continue;
                }
                Way::Apart => mpi.apart,
                Way::Refused => mpi.refused,
            };
            let output = output.expect_text(complaint)?;
            if way == Way::Refused && mpi.has_another_way {
                output.clone().success()?.expect_text("large messages ok, 2 ranks")?;
            } else if output.status.success() {
                return Err(
                    format!("{}, {way:?}: they have reached each other\n{output}", mpi.compiler).into()
                );
            }
            if mpi.has_copied_directly(output.clone()).is_ok() {
                return Err(format!("{}, {way:?}: nobody has noticed it\n{output}", mpi.compiler).into());
            }
        }
    }
    Ok(())
}

/// Two ranks on each of four nodes, in pairs: each rank of each node says that it takes the way through the other's memory.
fn on_four_nodes(site: &Site, mpi: &Mpi, dir: &Path, program: &str) -> Check {
    let image = format!("--container-image={}", site.images.path("demo.sqsh"));
    let here = dir.display();
    let libraries = format!("/usr/lib/{}-linux-gnu:/opt/mpi-libs", std::env::consts::ARCH);
    let mounts = match mpi.of_the_host {
        true => format!("--container-mounts={here},{libraries}"),
        false => format!("--container-mounts={here}"),
    };
    let mut words =
        vec!["-N4", "--ntasks-per-node=2", "--label", "--kill-on-bad-exit=1", mpi.start, &image, &mounts];
    words.extend(["env", "LD_LIBRARY_PATH=/opt/mpi-libs"].into_iter().filter(|_| mpi.of_the_host));
    words.push(program);
    // Between nodes that are hosts of their own MPICH needs one more way; there is none for large messages but the one above.
    let apart = [("UCX_TLS", "sysv,cma,self,tcp")];
    let settings: Vec<_> =
        mpi.verbose.iter().filter(|(name, _)| *name != "UCX_TLS").chain(&apart).copied().collect();
    let (_, running) = site.cluster.start_srun_with(dir, &settings, words)?;
    let output = running.finish(PATIENCE)?.success()?;
    let told = format!("{}{}", output.stdout, output.stderr);
    let by_rank = |rank: usize, words: &str| {
        told.lines().any(|line| line.trim_start().starts_with(&format!("{rank}: ")) && line.contains(words))
    };
    let silent: Vec<usize> = (0..8).filter(|rank| !by_rank(*rank, mpi.each_says)).collect();
    let arrived = [1, 3, 5, 7].iter().all(|rank| by_rank(*rank, "large messages ok, 8 ranks"));
    if !silent.is_empty() || !arrived || [mpi.apart, mpi.refused].iter().any(|words| told.contains(words)) {
        return Err(format!(
            "{}: ranks {silent:?} do not say it; all arrived: {arrived}\n{output}",
            mpi.compiler
        )
        .into());
    }
    Ok(())
}

/// One run of `program`, which lies in `dir`, with two ranks on a node.
fn large_messages(site: &Site, mpi: &Mpi, way: Way, dir: &Path, program: &str) -> Result<Output, String> {
    /// MPICH has no deadline for a message that cannot be read.
    const TRY: Duration = Duration::from_secs(20);
    let here = dir.display().to_string();
    let libraries = format!("/usr/lib/{}-linux-gnu:/opt/mpi-libs", std::env::consts::ARCH);
    let search = "LD_LIBRARY_PATH=/opt/mpi-libs";
    let filter = format!("seccomp:{here}/refuses.json");
    let mut words = vec!["-n2", "-N1", "--kill-on-bad-exit=1", mpi.start];
    let image = match way {
        Way::Plugin => format!("--container-image={}", site.images.path("demo.sqsh")),
        _ => site.images.path("demo.sif"),
    };
    let mounts = match mpi.of_the_host {
        true => format!("--container-mounts={here},{libraries}"),
        false => format!("--container-mounts={here}"),
    };
    match way {
        Way::Plugin => {
            words.extend([image.as_str(), &mounts]);
            words.extend(["env", search].into_iter().filter(|_| mpi.of_the_host));
        }
        Way::Apptainer | Way::Apart | Way::Refused => {
            words.extend(["apptainer", "exec", "--bind", &here]);
            words.extend((way == Way::Apart).then_some("--no-share"));
            words.extend(["--security", &filter].into_iter().filter(|_| way == Way::Refused));
            words.extend(["--bind", &libraries, "--env", search].into_iter().filter(|_| mpi.of_the_host));
            words.push(&image);
        }
    }
    words.push(program);
    let (name, running) = site.cluster.start_srun_with(dir, mpi.verbose, words)?;
    let limit = if matches!(way, Way::Plugin | Way::Apptainer) { PATIENCE } else { TRY };
    let output = running.finish_within(limit)?;
    if output.timed_out {
        site.cluster.admin(&["scancel", "--name", &name])?;
    }
    Ok(output)
}
