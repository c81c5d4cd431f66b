//! Slurm alone, without our program: what every other case compares with, and the proof that the harness
//! sees what happens.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use crate::cluster::{Cluster, Job, Variant};
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::leaks::Snapshot;
use crate::tier::Check;

/// A step on all nodes runs once on each, and accounting says so. Isolated nodes have a /tmp each, others share one.
///
/// # Errors
/// It does not.
pub fn four_nodes(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("bare")?;
    // Each task writes a file into /tmp, waits for those of the others, and looks; then all take theirs away.
    let script = "f=/tmp/situla-four-$SLURM_JOB_ID; \
                  met() { touch $1.$SLURM_PROCID; while [ \"$(ls $1.* | wc -l)\" -lt 4 ]; do sleep 0.1; done; }; \
                  touch $f.$SLURMD_NODENAME; met written; \
                  echo $SLURMD_NODENAME $(hostname) $(cd /tmp; ls -d situla-four-$SLURM_JOB_ID.* | sed 's/.*[.]//'); \
                  met seen; rm $f.$SLURMD_NODENAME";
    let job = cluster.srun(dir.path(), ["-N4", "sh", "-c", script])?;
    job.output.clone().success()?;
    let mut lines: Vec<&str> = job.output.stdout.lines().collect();
    lines.sort_unstable();
    let host = cluster.admin(&["hostname", "-s"])?.stdout.trim().to_owned();
    let all = cluster.nodes().keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    let expected = |node: &String| match cluster.variant() {
        Variant::Isolated => format!("{node} {node} {node}"),
        Variant::Loopback => format!("{node} {host} {all}"),
    };
    let expected: Vec<String> = cluster.nodes().keys().map(expected).collect();
    if lines != expected {
        return Err(format!("expected {expected:?}, got {lines:?}").into());
    }
    expect_account(&job, "COMPLETED", "0:0", "COMPLETED", "0:0")
}

/// Exit codes and signals of a payload arrive in `srun` and in accounting.
///
/// # Errors
/// They do not.
pub fn exit_codes(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("exits")?;
    let mut started = Vec::new();
    for expected in [
        ("exit 3", 3, "FAILED", "3:0", "FAILED"),
        ("kill -TERM $$", 143, "FAILED", "0:15", "CANCELLED"),
        ("kill -KILL $$", 137, "FAILED", "0:9", "CANCELLED"),
    ] {
        started.push((expected, cluster.start_srun(dir.path(), ["-n1", "sh", "-c", expected.0])?));
    }
    for ((_, code, state, exit, step), (name, running)) in started {
        let job = cluster.job(&name, running.finish(PATIENCE)?)?;
        job.output.clone().expect_code(code)?;
        expect_account(&job, state, exit, step, exit)?;
    }
    Ok(())
}

/// TaskProlog runs on the node and what it exports reaches the payload.
///
/// # Errors
/// It does not.
pub fn task_prolog(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("prolog")?;
    let script =
        "echo $SLURMD_NODENAME $SITULA_TASKPROLOG $SITULA_TASKPROLOG_MNT $(readlink /proc/self/ns/mnt)";
    let output = cluster.srun(dir.path(), ["-N2", "sh", "-c", script])?.output.success()?;
    for line in output.stdout.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words.len() != 4 || words[0] != words[1] || words[2] != words[3] {
            return Err(format!("TaskProlog's exports are wrong: {line:?}").into());
        }
    }
    if output.stdout.lines().count() == 2 { Ok(()) } else { Err(output.to_string().into()) }
}

/// A step sees its own GPU and no other.
///
/// # Errors
/// It does not.
pub fn gpu(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("gpu")?;
    // ENXIO ("No such device"): allowed, but nothing drives it. EPERM: the device cgroup refuses.
    let script = "echo visible $CUDA_VISIBLE_DEVICES; for g in /dev/situla-gpu*; do (: <$g) 2>&1 | sed 's/.*://'; done";
    let output = cluster.srun(dir.path(), ["-n1", "--gres=gpu:1", "sh", "-c", script])?.output.success()?;
    if !output.stdout.contains("visible 0") {
        return Err(output.to_string().into());
    }
    if !output.stdout.contains("Operation not permitted") {
        return Err(format!("no GPU is refused\n{output}").into());
    }
    if output.stdout.contains("No such device") {
        Ok(())
    } else {
        Err(format!("no GPU is allowed\n{output}").into())
    }
}

/// MPI started by Slurm through PMIx, two ranks on each node, is one world.
///
/// # Errors
/// It is not.
pub fn mpi(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("mpi")?;
    let program = cluster.env().image_tree("demo").join("opt/situla/bin/mpi-hello");
    let program = program.to_string_lossy();
    let job = srun_mpi(cluster, dir.path(), &["-N4", "--ntasks-per-node=2", "--mpi=pmix", &program, "8"])?;
    job.output.success()?.expect_text("ok: 8 ranks, sum of ranks 28")?;
    Ok(())
}

/// As [`Cluster::srun`] for a program of Open MPI, tried again where Open MPI itself crashes.
///
/// Debian 12's Open MPI 4.1.4 calls a null pointer in `mca_btl_tcp` when a peer's first message comes while a
/// rank still is in `MPI_Init`: 4 to 7 of 100 bare steps on a loaded machine with two cores, with no container
/// anywhere (seen in a core file). Only that very death is forgiven, and it must not come six times: under load
/// one bare step in ten dies of it.
///
/// # Errors
/// As [`Cluster::srun`].
pub fn srun_mpi(cluster: &Cluster, dir: &Path, args: &[&str]) -> Result<Job, String> {
    const TRIES: usize = 6;
    // Ranks that miss another wait for it for ever.
    let args = [&["--kill-on-bad-exit=1"], args].concat();
    let mut job = cluster.srun(dir, &args)?;
    for _ in 1..TRIES {
        if !job.output.stderr.contains("Failing at address: (nil)") {
            break;
        }
        job = cluster.srun(dir, &args)?;
    }
    Ok(job)
}

/// The harness itself: a process, a file and a control group of a running step are seen, and a mount and a socket by our
/// names; and gone, are gone.
///
/// # Errors
/// The look for leaks is blind.
pub fn leaks_are_seen(cluster: &Cluster) -> Check {
    let dir = cluster.env().work_dir("leaks")?;
    let before = Snapshot::take(cluster.env(), Some(cluster))?;
    let on_a_node = ["-n1", "-w", cluster.a_node()];
    let payload = ["sh", "-c", "touch /tmp/situla-leak go; exec sleep 100"];
    let (name, running) = cluster.start_srun(dir.path(), on_a_node.into_iter().chain(payload))?;
    let id = cluster.wait_running(&name)?;
    if !wait_until(PATIENCE, || dir.path().join("go").exists()) {
        return Err("the payload did not start".into());
    }
    let address = SocketAddr::from_abstract_name(format!("situla/{}/1.0/leak", cluster.env().uid()?))?;
    let listener = UnixListener::bind_addr(&address)?;
    let point = dir.path().join("mounted");
    std::fs::create_dir(&point)?;
    let mount = ["mount", "-t", "tmpfs", "situla-leak"].map(OsStr::new);
    command::run(command::words(mount.into_iter().chain([point.as_os_str()])), PATIENCE)?.success()?;
    let dirty = Snapshot::take(cluster.env(), Some(cluster))?.difference(&before);
    command::run(command::words([OsStr::new("umount"), point.as_os_str()]), PATIENCE)?.success()?;
    drop(listener);
    cluster.admin(&["scancel", &id])?;
    let output = running.finish(PATIENCE)?;
    let cleaned = cluster.srun(dir.path(), on_a_node.into_iter().chain(["rm", "/tmp/situla-leak"]))?;
    let mut kinds = vec!["process ", "file ", "socket ", "mount "];
    if cluster.constrains_devices() {
        kinds.push("cgroup ");
    }
    for kind in kinds {
        if !dirty.iter().any(|line| line.starts_with(kind)) {
            return Err(format!("a {kind}was there and not seen: {dirty:#?}\n{output}").into());
        }
    }
    cleaned.output.success()?;
    Ok(())
}

/// Compares a job and its step 0 with what accounting must say.
///
/// # Errors
/// They differ.
pub fn expect_account(job: &Job, state: &str, exit: &str, step_state: &str, step_exit: &str) -> Check {
    let step = job.step("0")?;
    let got = [&job.account.state, &job.account.exit, &step.state, &step.exit].map(String::as_str);
    let expected = [state, exit, step_state, step_exit];
    if got == expected {
        Ok(())
    } else {
        Err(format!("accounting of {} has {got:?}, expected {expected:?}\n{}", job.id, job.output).into())
    }
}
