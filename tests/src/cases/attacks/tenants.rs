//! Two users on one node, who are nothing to each other.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};

use super::{Desk, Hostile, all_refused};
use crate::cases::Site;
use crate::command::{self, Running};
use crate::environment::PATIENCE;
use crate::tier::Check;

/// A user whom every machine has, and who is not the one of the tests.
const STRANGER: &str = "nobody";

/// A variable's value that nobody else may see.
const PRIVATE: &str = "the-tenants-own-value";

/// What a task of a step of some tasks on this node finds in its environment, by rank.
pub(in crate::cases) fn step_variables(job: u32, rank: u32, tasks: u32) -> Vec<String> {
    let ranks: Vec<String> = (0..tasks).map(|rank| rank.to_string()).collect();
    [
        format!("SLURM_JOB_ID={job}"),
        format!("SLURM_LOCALID={rank}"),
        format!("SLURM_PROCID={rank}"),
        "SLURM_STEP_ID=0".into(),
        "SLURM_NODEID=0".into(),
        "SLURMD_NODENAME=here".into(),
        "SLURM_JOB_NODELIST=here".into(),
        "SLURM_STEP_NODELIST=here".into(),
        format!("SLURM_STEP_NUM_TASKS={tasks}"),
        "SLURM_STEP_NUM_NODES=1".into(),
        format!("SLURM_STEP_TASKS_PER_NODE={tasks}"),
        format!("SLURM_GTIDS={}", ranks.join(",")),
    ]
    .into()
}

/// A job number that no job has; different at each call, so that cases do not meet.
pub(in crate::cases) fn job() -> u32 {
    2_000_000_000 + std::process::id() * 100 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// The command of one task of a step, which runs `script` inside `image`.
fn task(
    desk: &Desk,
    (job, rank): (u32, u32),
    image: &str,
    gate: &Path,
    script: &str,
) -> Result<Command, String> {
    // The gate is the one thing that the container shows of the user's.
    let gate = gate.display().to_string();
    let words = step_variables(job, rank, 2).into_iter();
    let words = std::iter::once("env".to_owned()).chain(words);
    let private = format!("PRIVATE={PRIVATE}");
    let tail = ["situla", "exec", "--no-home", "--bind", &gate, "--env", &private, image, "sh", "-c", script];
    desk.env.user_command(Path::new("/"), words.chain(tail.map(str::to_owned)))
}

/// The names of meeting points of a job's steps.
pub(super) fn meeting_points(uid: u32, job: u32) -> Vec<String> {
    socket_names("self", &format!("@situla/{uid}/{job}."))
}

/// The names that begin with `prefix` in the abstract namespace of a process, which everybody may list there.
fn socket_names(process: &str, prefix: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_whitespace().nth(7));
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with(prefix)).map(|name| name[1..].to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Waits for a task to have made its meeting point, and gives its name.
fn meeting_point(uid: u32, job: u32) -> Result<String, String> {
    meeting_point_of("self", uid, job)
}

/// The same, where a process is that may have a network of its own.
fn meeting_point_of(process: &str, uid: u32, job: u32) -> Result<String, String> {
    let mut found = Vec::new();
    command::wait_until(PATIENCE, || {
        found = socket_names(process, &format!("@situla/{uid}/{job}."));
        !found.is_empty()
    });
    found.pop().ok_or_else(|| format!("no meeting point of job {job}"))
}

/// A program of the stranger's, in Python, on this node.
fn strangers(desk: &Desk, source: &str, arguments: &[&str]) -> Result<Command, String> {
    let image = desk.images.path("demo.sqsh");
    let mut stranger = Command::new(desk.env.script("as-user"));
    stranger.args([
        STRANGER,
        "env",
        "HOME=/",
        "situla",
        "exec",
        "--no-home",
        &image,
        "python3",
        "-c",
        source,
    ]);
    stranger.args(arguments).current_dir("/").env_clear().env("PATH", desk.env.search_path());
    Ok(stranger)
}

/// Connects to a meeting point as a task would, and says what comes back.
pub(super) const VISIT: &str = r#"
import array, socket, struct, sys
name = b"\0" + sys.argv[1].encode()
for rank in [0, 1, 2, 4294967295]:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20)
    try:
        s.connect(name)
        s.send(struct.pack("=I", rank))
        data, ancillary, flags, _ = s.recvmsg(4096, socket.CMSG_SPACE(64))
        print("done: answer" if data or ancillary else "refused: nothing", data, len(ancillary))
    except OSError as e:
        print("refused:", type(e).__name__)
"#;

/// Another user visits the meeting point of a step: he is turned away without a word, and the step's own second
/// task is let in afterwards. And he takes the name before the step does: its tasks then run, each alone.
///
/// # Errors
/// He joins, or the step suffers from him.
pub fn a_strangers_step(desk: &Desk) -> Check {
    let uid = desk.env.uid()?;
    let hostile = Hostile::new(desk, "step")?;
    let gate = desk.env.work_dir("gate")?;
    let go = gate.path().join("go");
    hostile.each_kind(|image| {
        // Nothing but the tasks' own namespaces tells whether they share a container.
        let script =
            format!("readlink /proc/self/ns/mnt; while [ ! -e {} ]; do sleep 0.05; done", go.display());
        let start = |job, rank, script: &str| -> Result<Running, String> {
            command::start(task(desk, (job, rank), image, gate.path(), script)?)
        };
        let job_visited = job();
        let first = start(job_visited, 0, &script)?;
        let name = meeting_point(uid, job_visited)?;
        let visit = command::run(strangers(desk, VISIT, &[&name])?, PATIENCE)?;
        let second = start(job_visited, 1, "readlink /proc/self/ns/mnt")?.finish(PATIENCE)?;
        fs::write(&go, "")?;
        let first = first.finish(PATIENCE)?.success()?;
        fs::remove_file(&go)?;
        all_refused(visit, 4)?;
        if first.stdout != second.clone().success()?.stdout {
            return Err(format!("the tasks do not share any more\n{first}\n{second}").into());
        }

        // The digest in the name is that of the last step: it does not hold the job's number.
        let job_taken = job();
        let taken = name.replace(&format!("/{job_visited}."), &format!("/{job_taken}."));
        let squat = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
             s.bind(b'\\0' + sys.argv[1].encode())\ns.listen(8)\nprint('taken', flush=True)\ntime.sleep(300)";
        let squatter = command::start(strangers(desk, squat, &[&taken])?)?;
        meeting_point(uid, job_taken)?;
        // At the same time, or the second might get the number of the first's namespace.
        let places = [0, 1].map(|rank| gate.path().join(format!("task-{rank}")));
        let tasks = [0, 1].map(|rank: u32| {
            let note = format!("readlink /proc/self/ns/mnt >{}/task-{rank}; {script}", gate.path().display());
            start(job_taken, rank, &note)
        });
        let read = |place: &std::path::PathBuf| fs::read_to_string(place).unwrap_or_default();
        command::wait_until(PATIENCE, || places.iter().all(|place| read(place).ends_with('\n')));
        fs::write(&go, "")?;
        let outputs = tasks.map(|task| task.and_then(|task| task.finish(PATIENCE)));
        fs::remove_file(&go)?;
        drop(command::run(command::words(["kill", "-9", "--", &format!("-{}", squatter.pid())]), PATIENCE)?);
        drop(squatter.finish(PATIENCE)?);
        for output in outputs {
            output?.success()?;
        }
        let [first, second] = places.each_ref().map(read);
        for place in places {
            fs::remove_file(place)?;
        }
        if first == second || !first.starts_with("mnt:") {
            return Err(format!("they met in spite of the stranger: {first:?}, {second:?}").into());
        }
        Ok(())
    })
}

/// Names a rank at a meeting point, and says whether namespaces come back.
const OUTSIDER: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(20)
s.connect(b"\0" + sys.argv[1].encode())
s.send(struct.pack("=I", 1))
data, ancillary, flags, _ = s.recvmsg(4096, socket.CMSG_SPACE(64))
print("done: namespaces" if ancillary else "refused: no namespaces", data)
"#;

/// A process of the same user outside the step, which knows where its tasks meet and names the rank that has not come
/// yet, is refused; and the task of that rank joins afterwards as if nobody had been there.
///
/// # Errors
/// It gets the namespaces, or the task has to do without.
pub fn outside_the_step(site: &Site) -> Check {
    let env = site.env();
    let dir = env.work_dir("outside")?;
    let image = site.images.path("tiny.sqsh");
    let show = "readlink /proc/self/ns/mnt; touch up.$SLURM_PROCID; while [ ! -e go ]; do usleep 50000; done";
    // The second task comes when it is told to.
    let script = format!(
        "while [ $SLURM_PROCID = 1 ] && [ ! -e come ]; do sleep 0.05; done; exec apptainer exec {image} sh -c '{show}'"
    );
    let (node, of_node) = site.cluster.nodes().iter().next().ok_or("there is no node")?;
    let words = ["-N1", "-n2", "-w", node, "sh", "-c", &script];
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let id = site.cluster.wait_running(&name)?;
    let up = |rank: u32| command::wait_until(PATIENCE, || dir.path().join(format!("up.{rank}")).exists());
    let visit = || -> Result<crate::command::Output, String> {
        if !up(0) {
            return Err("the first task did not start".to_owned());
        }
        let job = id.parse().map_err(|_| format!("job {id}"))?;
        let point = meeting_point_of(&of_node.to_string(), env.uid()?, job)?;
        let demo = site.images.path("demo.sqsh");
        let words = ["situla", "exec", &demo, "python3", "-c", OUTSIDER, &point];
        command::run(site.cluster.command_on(node, dir.path(), words)?, PATIENCE)
    };
    let visit = visit();
    dir.write("come", "")?;
    let came = up(1);
    dir.write("go", "")?;
    let output = running.finish(PATIENCE)?;
    all_refused(visit.map_err(|why| format!("{why}\n{output}"))?, 1)?;
    let output = output.success()?;
    let places: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with("mnt:")).collect();
    match places[..] {
        [first, second] if first == second && came => Ok(()),
        _ => Err(format!("the tasks do not share a container\n{output}").into()),
    }
}

/// Looks at every process that is newer than itself, until it is told to end.
const WATCH: &str = r#"
import os, sys, time
end = time.monotonic() + 60
seen = set()
mine = open("/proc/self/mountinfo").read()
print("watching", flush=True)
while not os.path.exists(sys.argv[1]) and time.monotonic() < end:
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) <= os.getpid(): continue
        try:
            if not open("/proc/%s/comm" % pid).read().startswith("situla"): continue
            # Of those outside only that they are there can be seen: they do not count.
            if os.stat("/proc/%s/mountinfo" % pid) and open("/proc/%s/mountinfo" % pid).read() != mine: continue
            seen.add(pid)
            exe = os.readlink("/proc/%s/exe" % pid)
            # Its own program already: what any payload may see of another.
            if exe != "/usr/bin/true": print("done:", exe, os.listdir("/proc/%s/fd" % pid), flush=True)
        except OSError: pass
print("refused: all of", len(seen))
"#;

/// A payload waits for further tasks of its step to enter its container, to get at the program and the descriptors
/// that they have until they run their own. The image makes that moment long.
///
/// # Errors
/// It gets at them.
pub fn entering_tasks(desk: &Desk) -> Check {
    /// Tasks that enter.
    const ENTERING: u32 = 6;
    let gate = desk.env.work_dir("gate")?;
    let go = gate.path().join("go").display().to_string();
    let shown = gate.path().display().to_string();
    let image = desk.images.path("demo.sqsh");
    let path = format!("PATH={}/usr/bin", "x:".repeat(20_000));
    let job = job();
    let task = |rank, words: &[&str]| -> Result<Running, String> {
        let variables = step_variables(job, rank, ENTERING + 1).into_iter();
        let variables = std::iter::once("env".to_owned()).chain(variables);
        let start =
            ["situla", "exec", "--no-home", "--bind", &shown].into_iter().chain(words.iter().copied());
        let command = desk.env.user_command(Path::new("/"), variables.chain(start.map(str::to_owned)))?;
        command::start(command)
    };
    let watcher = task(0, &[&image, "python3", "-c", WATCH, &go])?;
    meeting_point(desk.env.uid()?, job)?;
    let entered = (1..=ENTERING).map(|rank| task(rank, &["--env", &path, &image, "true"])?.finish(PATIENCE));
    let entered: Result<Vec<_>, _> = entered.collect();
    fs::write(&go, "")?;
    let watcher = watcher.finish(PATIENCE)?.expect_text("watching")?;
    for output in entered? {
        output.success()?;
    }
    if watcher.stdout.contains("all of 0") {
        return Err(format!("it has seen no task enter\n{watcher}").into());
    }
    all_refused(watcher, 1)
}

/// The same of an instance, where the attacker is root of the container with all capabilities in it, and those who
/// enter are processes of his PID namespace.
///
/// # Errors
/// It gets at them.
pub fn entering_an_instance(desk: &Desk) -> Check {
    const ENTERING: u32 = 6;
    let gate = desk.env.work_dir("gate")?;
    let go = gate.path().join("go").display().to_string();
    let shown = gate.path().display().to_string();
    let image = desk.images.path("demo.sqsh");
    let path = format!("PATH={}/usr/bin", "x:".repeat(20_000));
    let run = |words: &[&str]| desk.env.user_command(Path::new("/"), [&["situla"], words].concat());
    let finish = |words: &[&str]| command::run(run(words)?, PATIENCE);
    finish(&["instance", "start", "--root", "--no-home", "--bind", &shown, &image, "watched"])?.success()?;
    let watcher = command::start(run(&["instance", "exec", "watched", "python3", "-c", WATCH, &go])?)?;
    let is_watching = "test -n \"$(ls /proc | xargs -I% grep -l ^python3 /proc/%/comm 2>/dev/null)\"";
    let began = command::wait_until(PATIENCE, || {
        finish(&["instance", "exec", "watched", "sh", "-c", is_watching]).is_ok_and(|o| o.status.success())
    });
    let entered: Result<Vec<_>, _> =
        (0..ENTERING).map(|_| finish(&["instance", "exec", "--env", &path, "watched", "true"])).collect();
    fs::write(&go, "")?;
    let watcher = watcher.finish(PATIENCE)?;
    finish(&["instance", "stop", "--force", "watched"])?.success()?;
    for output in entered? {
        output.success()?;
    }
    if !began || watcher.stdout.contains("all of 0") {
        return Err(format!("it has seen nobody enter\n{watcher}").into());
    }
    all_refused(watcher, 1)
}

/// Finds its own step's meeting point, sends it what no task would send, and waits for the gate.
const NOISE: &str = r#"
import array, os, random, socket, struct, sys, time
name = next(n for n in (l.split()[-1] for l in open("/proc/net/unix")) if n.startswith("@situla/%d/%s." % (os.getuid(), sys.argv[2])))
random.seed(1)
for round in range(120):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(("\0" + name[1:]).encode())
    # Anything but four bytes, which are a rank; with descriptors, in pieces, or nothing at all.
    length = random.choice([0, 1, 3, 5, 8, 4095, 4096, 4097, 60000])
    fds = array.array("i", [0] * random.choice([0, 0, 1, 8, 9, 200]))
    try:
        if length: s.sendmsg([random.randbytes(length)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        if random.random() < 0.3: s.send(b"D")
    except OSError: pass
    s.close()
print(os.readlink("/proc/self/ns/mnt"), flush=True)
open(sys.argv[1] + "/said", "w").close()
while not os.path.exists(sys.argv[1] + "/go"): time.sleep(0.02)
"#;

/// A payload, which is the user's and of the step, sends noise to the meeting point. The step's second task is
/// let in afterwards, and the first is not disturbed.
///
/// # Errors
/// The keeper has ended, or turns the task away.
pub fn noise_at_the_meeting_point(desk: &Desk) -> Check {
    let gate = desk.env.work_dir("gate")?;
    let (image, job) = (desk.images.path("demo.sqsh"), job());
    let shown = gate.path().display().to_string();
    let task = |rank, words: &[&str]| -> Result<Running, String> {
        let variables = std::iter::once("env".to_owned()).chain(step_variables(job, rank, 2));
        let start = ["situla", "exec", "--no-home", "--bind", &shown, &image].into_iter();
        let words = start.chain(words.iter().copied()).map(str::to_owned);
        command::start(desk.env.user_command(Path::new("/"), variables.chain(words))?)
    };
    let first = task(0, &["python3", "-c", NOISE, &shown, &job.to_string()])?;
    let said = gate.path().join("said");
    let spoken = command::wait_until(PATIENCE, || said.exists());
    let second = task(1, &["readlink", "/proc/self/ns/mnt"])?.finish(PATIENCE)?;
    fs::write(gate.path().join("go"), "")?;
    let first = first.finish(PATIENCE)?.success()?;
    let second = second.success()?;
    if !spoken || first.stdout != second.stdout {
        return Err(format!("they do not share a container\n{first}\n{second}").into());
    }
    Ok(())
}

/// What [`LOOK`] tries on each process.
pub(super) const LOOKS_AT_A_PROCESS: usize = 27;

/// Looks at everything of a container's processes that `/proc` has, and for their secrets where all may look.
pub(super) const LOOK: &str = r#"
import ctypes, os, sys
private, pids = sys.argv[1].encode(), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, how):
    try:
        how()
        print("done:", what)
    except OSError as e:
        print("refused:", what, e.strerror)
def call(nr, *arguments):
    r = libc.syscall(ctypes.c_long(nr), *arguments)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
def read(path):
    with open(path, "rb") as f: return f.read(1)
for pid in pids:
    p = "/proc/%s/" % pid
    # The numbers in a file of this mode are zero for who may not look: nothing to open.
    for name in ["environ", "mem", "maps", "auxv", "io", "syscall", "task/%s/environ" % pid]:
        attempt(name, lambda: read(p + name))
    for name in ["exe", "cwd", "root"]: attempt(name, lambda: os.readlink(p + name))
    for name in ["mnt", "user", "pid", "net", "ipc", "uts", "cgroup"]:
        attempt("ns/" + name, lambda: os.readlink(p + "ns/" + name))
    for name in ["fd", "fdinfo", "map_files", "root/", "root/etc", "cwd/"]: attempt(name, lambda: os.listdir(p + name))
    attempt("root of a process, written", lambda: os.close(os.open(p + "root/tmp/made", os.O_CREAT | os.O_WRONLY)))
    pidfd = call(434, int(pid), 0)
    attempt("setns", lambda: call(308, pidfd, 0x10020000))
    attempt("a descriptor", lambda: call(438, pidfd, 0, 0))
    attempt("kill", lambda: os.kill(int(pid), 0))
    # Mounts are listed for everybody; what is in variables is not in there.
    with open(p + "mountinfo", "rb") as f: table = f.read()
    print("public: mountinfo of", len(table.splitlines()), "lines")
    if private in table: print("done: private value in mountinfo")
for name in os.listdir("/proc"):
    # Of nobody's processes may what he sees hold the value.
    try: text = open("/proc/%s/environ" % name, "rb").read()
    except OSError: continue
    if private in text: print("done: private value in", name)
"#;

/// Another user, on the node and in a container of his own, looks at the processes of a container, of a step and of an
/// instance: environment, files, descriptors and namespaces are closed to him, and so are records, store, what is known of
/// instances, and extracted images. That there are mounts, and which, he may know.
///
/// # Errors
/// One of them is not.
pub fn another_tenants_view(desk: &Desk) -> Check {
    let uid = desk.env.uid()?;
    let hostile = Hostile::new(desk, "view")?;
    let gate = desk.env.work_dir("gate")?;
    let go = gate.path().join("go");
    rustix::fs::mknodat(CWD, &go, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
    rustix::fs::chmod(&go, Mode::from_raw_mode(0o666))?;
    hostile.each_kind(|image| {
        let script = format!("read go <{}", go.display());
        let job = job();
        let running = command::start(task(desk, (job, 0), image, gate.path(), &script)?)?;
        let name = meeting_point(uid, job)?;
        // The payload, the process that waits, and the keeper: whoever of the user's has the job's number.
        let mut processes = Vec::new();
        command::wait_until(PATIENCE, || {
            processes = with_variable(uid, &format!("SLURM_JOB_ID={job}"));
            processes.len() >= 3
        });
        let look = look_at(desk, &processes)?;
        // Open for reading as well, so that nothing is waited for.
        fs::File::options().read(true).write(true).open(&go)?.write_all(b"go\n")?;
        // Without its second task the step's keeper would wait for it.
        let second = command::run(task(desk, (job, 1), image, gate.path(), "true")?, PATIENCE)?;
        running.finish(PATIENCE)?.success()?;
        second.success()?;
        if processes.len() < 3 {
            return Err(format!("only the processes {processes:?} at {name}").into());
        }
        all_refused(look, LOOKS_AT_A_PROCESS * processes.len())?;
        view_of_an_instance(desk, image)
    })?;
    let image = desk.images.path("tiny.sqsh");
    let run = |words: &[&str]| desk.env.as_user(Path::new("/"), [&["situla"], words].concat())?.success();
    run(&["exec", "--rootfs", "extract", &image, "true"])?;
    let closed = closed_directories(desk, &[&format!("/var/tmp/situla-{uid}")]);
    run(&["cache", "prune", "--all"])?;
    closed
}

fn look_at(desk: &Desk, processes: &[String]) -> Result<command::Output, String> {
    let arguments: Vec<&str> = std::iter::once(PRIVATE).chain(processes.iter().map(String::as_str)).collect();
    command::run(strangers(desk, LOOK, &arguments)?, PATIENCE)
}

/// The same of an instance, which he also visits, and of the directory in which it is known.
fn view_of_an_instance(desk: &Desk, image: &str) -> Check {
    let uid = desk.env.uid()?;
    let mark = format!("VIEWED={}", job());
    let private = format!("PRIVATE={PRIVATE}");
    let words =
        ["env", &mark, "situla", "instance", "start", "--no-home", "--env", &private, image, "viewed"];
    desk.env.as_user(Path::new("/"), words)?.success()?;
    let processes = with_variable(uid, &mark);
    let looks = look_at(desk, &processes);
    let prefix = format!("@situla/{uid}/instance/");
    let name = socket_names("self", &prefix).pop();
    let visit = name.as_deref().map(|name| command::run(strangers(desk, VISIT, &[name])?, PATIENCE));
    let closed = closed_directories(desk, &[".local/state/situla/instances"]);
    let words = ["situla", "instance", "stop", "--force", "viewed"];
    desk.env.as_user(Path::new("/"), words)?.success()?;
    // The process that waits, the one that has the container's first number, and for a file the keeper.
    if processes.len() < 2 {
        return Err(format!("only the processes {processes:?}").into());
    }
    all_refused(looks?, LOOKS_AT_A_PROCESS * processes.len())?;
    all_refused(visit.ok_or_else(|| format!("no socket {prefix}"))??, 4)?;
    closed
}

/// Another user cannot list where records are, nor where images are kept, if there are any yet, nor `others`, of
/// which each is there; and he can read no file of them.
fn closed_directories(desk: &Desk, others: &[&str]) -> Check {
    let (records, store) = (".local/state/situla/records", ".cache/situla");
    let places = [(records, true), (store, false)].into_iter();
    for (place, needed) in places.chain(others.iter().map(|place| (*place, true))) {
        let place = desk.env.home()?.join(place);
        if !needed && !place.exists() {
            continue;
        }
        if !fs::metadata(&place)?.is_dir() {
            return Err(format!("{} is no directory", place.display()).into());
        }
        // Its name may be known: that of a job's journal is easily guessed.
        let inside = fs::read_dir(&place)?.next().transpose()?.map(|entry| entry.path());
        for (program, path) in [("ls", Some(&place)), ("cat", inside.as_ref()), ("ls", inside.as_ref())] {
            let Some(path) = path else { continue };
            let mut stranger = Command::new(desk.env.script("as-user"));
            stranger.args([STRANGER, program]).arg(path).current_dir("/");
            let ran = command::run(stranger, PATIENCE)?.expect_text("Permission denied")?;
            if ran.code() == 0 || !ran.stdout.is_empty() {
                return Err(ran.to_string().into());
            }
        }
    }
    Ok(())
}

/// The processes of a user that have a variable with a value in their environment.
pub(super) fn with_variable(uid: u32, wanted: &str) -> Vec<String> {
    let of_user = |pid: &u32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == uid);
    let has = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    let found = crate::leaks::process_ids().into_iter().filter(of_user).filter(has);
    found.map(|pid| pid.to_string()).collect()
}
