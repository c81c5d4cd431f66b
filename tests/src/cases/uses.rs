//! What the system is for: the uses, each judged by what the payload printed from inside, the record, and
//! accounting together.

use std::collections::BTreeSet;
use std::fs;

use super::Site;
use super::bare::srun_mpi;
use crate::cluster::Job;
use crate::command::wait_until;
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::leaks::process_ids;
use crate::outcome::{self, Exit, Outcome};
use crate::tier::Check;

/// `srun apptainer exec image.sif python3 -V`, without any option of the plugin.
///
/// # Errors
/// It does not work.
pub fn srun_apptainer_exec(site: &Site) -> Check {
    let dir = site.env().work_dir("apptainer")?;
    let sif = site.images.path("demo.sif");
    let job = site.cluster.srun(dir.path(), ["-n1", "apptainer", "exec", &sif, "python3", "-V"])?;
    job.output.clone().success()?.expect_text("Python 3.")?;
    expect_ok(site, &job, 1)?;
    let script = format!("cat {WITNESS}; readlink /proc/self/ns/mnt; pwd");
    let job = site.cluster.srun(dir.path(), ["-n1", "apptainer", "exec", &sif, "sh", "-c", &script])?;
    inside(site, &job, 1)?;
    job.output.clone().expect_text(&dir.path().display().to_string())?;
    Ok(())
}

/// A batch script that calls `apptainer exec image.sif python train.py`.
///
/// # Errors
/// It does not work.
pub fn sbatch_apptainer(site: &Site) -> Check {
    let dir = site.env().work_dir("batch")?;
    dir.write("train.py", &fs::read_to_string(site.env().demo_file("train.py"))?)?;
    let image = site.images.path("demo.sif");
    let script =
        format!("#!/bin/bash\n#SBATCH --job-name=container-demo\napptainer exec {image} python train.py\n");
    let job = site.cluster.sbatch(dir.path(), &["-N1"], &dir.write("job.sh", &script)?)?;
    job.output.clone().expect_text("slope 3.00")?.expect_text("image: situla demo image")?;
    step_ok(site, &job, "batch", 1)
}

/// What a batch script starts in the background without `srun` stays apart: each run has a container of its own.
///
/// # Errors
/// They share one, or do not run at the same time.
pub fn background_runs_stay_apart(site: &Site) -> Check {
    let dir = site.env().work_dir("background")?;
    let image = site.images.path("tiny.sif");
    // Both are there at once, or the second could get the number of the first's namespace.
    let script = format!(
        "#!/bin/bash\n\
         for n in 0 1; do\n\
         apptainer exec {image} sh -c 'touch up.$0; n=0; \
         while [ ! -e up.$((1 - $0)) ] && [ $n -lt 300 ]; do usleep 100000; n=$((n + 1)); done; \
         [ -e up.$((1 - $0)) ] && echo apart $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt)' $n &\n\
         done\n\
         wait\n"
    );
    let job = site.cluster.sbatch(dir.path(), &["-N1", "-n2"], &dir.write("job.sh", &script)?)?;
    let lines = job.output.stdout.lines().filter(|line| line.starts_with("apart user:"));
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    match &lines[..] {
        [first, second] if first[1] != second[1] && first[2] != second[2] => Ok(()),
        _ => Err(format!("not two containers\n{}", job.output).into()),
    }
}

/// `srun -N4 --container-image=./image.sqsh --container-mounts=$PWD --container-workdir=$PWD python3 train.py`.
///
/// # Errors
/// It does not work.
pub fn plugin_on_four_nodes(site: &Site) -> Check {
    let dir = site.env().work_dir("plugin")?;
    dir.write("train.py", &fs::read_to_string(site.env().demo_file("train.py"))?)?;
    // ./image.sqsh must be found from the working directory.
    std::os::unix::fs::symlink(site.images.path("demo.sqsh"), dir.path().join("image.sqsh"))?;
    let here = dir.path().display().to_string();
    let (mounts, workdir) = (format!("--container-mounts={here}"), format!("--container-workdir={here}"));
    let args = ["-N4", "--container-image=./image.sqsh", &mounts, &workdir, "python3", "train.py"];
    let job = site.cluster.srun(dir.path(), args)?;
    job.output.clone().success()?.expect_text(&format!("cwd {here}"))?;
    let trained = job
        .output
        .stdout
        .lines()
        .filter(|l| l.contains("slope 3.00") && l.contains("image: situla demo image"));
    let nodes: BTreeSet<&str> = trained.filter_map(|l| l.split(' ').nth(3)).collect();
    if nodes.len() != 4 {
        return Err(format!("not trained on four nodes: {nodes:?}\n{}", job.output).into());
    }
    expect_ok(site, &job, 4)
}

/// A directory, a `.sif` and a `.sqsh` of another writer are images too.
///
/// # Errors
/// One is not.
pub fn kinds_of_images(site: &Site) -> Check {
    let dir = site.env().work_dir("kinds")?;
    let foreign = dir.path().join("foreign.sqsh");
    let tree = site.env().image_tree("tiny");
    let mksquashfs = [
        "mksquashfs".as_ref(),
        tree.as_os_str(),
        foreign.as_os_str(),
        "-comp".as_ref(),
        "xz".as_ref(),
        "-quiet".as_ref(),
    ];
    site.env().as_user(dir.path(), mksquashfs)?.success()?;
    let script = format!("cat {WITNESS}; readlink /proc/self/ns/mnt");
    for image in [
        tree.display().to_string(),
        site.images.path("tiny.sif"),
        site.images.path("tiny.sqsh"),
        foreign.display().to_string(),
    ] {
        let option = format!("--container-image={image}");
        let job = site.cluster.srun(dir.path(), ["-n1", &option, "sh", "-c", &script])?;
        inside(site, &job, 1)?;
    }
    one_program_alone(site, &dir)
}

/// An image of one static program and nothing else, without a shell and `/etc`: as a directory, and as a file of the working
/// directory that is named without one. By the plugin and by `situla exec`.
fn one_program_alone(site: &Site, dir: &WorkDir) -> Check {
    let program = site.env().image_tree("tiny").join("bin/busybox").display().to_string();
    let make = format!("mkdir alone && cp {program} alone/busybox && situla convert alone alone.sqsh");
    site.env().as_user(dir.path(), ["sh", "-c", &make])?.success()?;
    let script = "test ! -e /bin && test ! -e /lib && /busybox readlink /proc/self/ns/mnt";
    for enter in [
        &["--container-image=alone.sqsh"][..],
        &["--container-image=./alone"],
        &["situla", "exec", "./alone.sqsh"],
        &["situla", "exec", "./alone"],
    ] {
        let line = ["-n1"].into_iter().chain(enter.iter().copied()).chain(["/busybox", "sh", "-c", script]);
        let job = site.cluster.srun(dir.path(), line)?;
        let output = job.output.clone().success().map_err(|story| format!("{enter:?}: {story}"))?;
        spaces_inside(site, &output.stdout, 1)?;
        expect_ok(site, &job, 1)?;
    }
    Ok(())
}

/// The tasks of a step on one node share one container; those of another node do not see it.
///
/// # Errors
/// They do not, or it is the host.
pub fn tasks_share_a_container(site: &Site) -> Check {
    let dir = site.env().work_dir("share")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let script = "echo $SLURMD_NODENAME $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/user)";
    let job = site.cluster.srun(dir.path(), ["-N2", "--ntasks-per-node=2", &image, "sh", "-c", script])?;
    job.output.clone().success()?;
    let all: Vec<&str> = job.output.stdout.lines().collect();
    let distinct: BTreeSet<&str> = all.iter().copied().collect();
    if all.len() != 4 || distinct.len() != 2 {
        return Err(format!("4 tasks on 2 nodes shall be in 2 containers\n{}", job.output).into());
    }
    expect_ok(site, &job, 2)
}

/// TaskProlog, which the image does not have, runs on the host; its exports reach the payload.
///
/// # Errors
/// They do not.
pub fn task_prolog(site: &Site) -> Check {
    let dir = site.env().work_dir("prolog")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let script =
        "echo $SLURMD_NODENAME $SITULA_TASKPROLOG $SITULA_TASKPROLOG_MNT $(readlink /proc/self/ns/mnt)";
    let job = site.cluster.srun(dir.path(), ["-N2", &image, "sh", "-c", script])?;
    let output = job.output.clone().success()?;
    for line in output.stdout.lines() {
        let [node, told, prolog, payload] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("the exports are missing\n{output}").into());
        };
        let host =
            site.cluster.nodes().get(node).and_then(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok());
        if told != node || host.is_none_or(|host| host.as_os_str() != prolog) || payload == prolog {
            return Err(format!("TaskProlog ran in {prolog}, the payload in {payload}\n{output}").into());
        }
    }
    if output.stdout.lines().count() != 2 {
        return Err(output.to_string().into());
    }
    expect_ok(site, &job, 2)
}

/// MPI through PMIx, two ranks on each of four nodes, all in one image: by the plugin and by `apptainer`.
///
/// # Errors
/// It is not one world, or a rank is on the host.
pub fn mpi(site: &Site) -> Check {
    let dir = site.env().work_dir("mpi")?;
    let option = format!("--container-image={}", site.images.path("demo.sqsh"));
    let sif = site.images.path("demo.sif");
    let start = ["-N4", "--ntasks-per-node=2", "--mpi=pmix"];
    for enter in [vec![option.as_str()], vec!["apptainer", "exec", sif.as_str()]] {
        let args: Vec<&str> =
            start.iter().copied().chain(enter).chain(["/opt/situla/bin/mpi-hello", "8"]).collect();
        let job = srun_mpi(&site.cluster, dir.path(), &args)?;
        job.output.clone().success()?.expect_text("ok: 8 ranks, sum of ranks 28")?;
        if job.output.stdout.matches(" image yes ").count() != 8 {
            return Err(format!("not every rank is in the image\n{}", job.output).into());
        }
        spaces_inside(site, &job.output.stdout, 8)?;
        expect_ok(site, &job, 4)?;
    }
    Ok(())
}

/// Inside, the step's GPU can be opened and the node's other one cannot, as outside; and the Plan lists the one.
///
/// # Errors
/// It differs from the bare step, or from what Slurm was told to give out.
pub fn gpu(site: &Site) -> Check {
    let dir = site.env().work_dir("gpu")?;
    let node = site.cluster.a_node();
    // Other nodes of the machine have devices beside these, and no slurmd of ours keeps anybody from them.
    let of_node = devices_of(site, node)?;
    let image = format!("--container-image={}", site.images.path("demo.sqsh"));
    // ENXIO ("No such device"): allowed, but nothing drives it. EPERM: the device cgroup refuses.
    let script = format!(
        "echo visible $CUDA_VISIBLE_DEVICES; for g in {}; do echo \"$g $( (: <$g) 2>&1 | sed 's/.*: //')\"; done",
        of_node.join(" ")
    );
    let on = ["-n1", "--gres=gpu:1", "-w", node];
    let bare = site.cluster.srun(dir.path(), on.into_iter().chain(["bash", "-c", &script]))?;
    let job = site.cluster.srun(dir.path(), on.into_iter().chain([image.as_str(), "bash", "-c", &script]))?;
    let (bare, contained) = (bare.output.success()?, job.output.clone().success()?);
    let says = |answer: &str| -> Vec<&str> {
        let lines = contained.stdout.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(_, said)| said.starts_with(answer)).map(|(device, _)| device).collect()
    };
    let (allowed, refused) = (says("No such device"), says("Operation not permitted"));
    if contained.stdout != bare.stdout
        || !contained.stdout.contains("visible 0\n")
        || allowed.len() != 1
        || allowed.len() + refused.len() != of_node.len()
        || of_node.len() < 2
    {
        return Err(format!("of {of_node:?}\nbare:\n{bare}\ncontained:\n{contained}").into());
    }
    expect_ok(site, &job, 1)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let bindings = records[0].record["start"]["plan"]["bindings"].as_array().cloned().unwrap_or_default();
    let planned = bindings.iter().filter_map(|bind| bind["destination"].as_str());
    let planned: Vec<&str> = planned.filter(|path| of_node.iter().any(|device| device == path)).collect();
    if planned == allowed {
        Ok(())
    } else {
        Err(format!("the step has {allowed:?}, the plan lists {planned:?}").into())
    }
}

/// The devices that Slurm gives out on a node.
pub(super) fn devices_of(site: &Site, node: &str) -> Result<Vec<String>, String> {
    let path = site.cluster.state_dir().join("etc/gres.conf");
    let conf = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    // NodeName=sn1 Name=gpu Type=fake File=/dev/situla-gpu[0-1] Flags=nvidia_gpu_env
    let of_node = |line: &&str| line.split(' ').next() == Some(&format!("NodeName={node}"));
    let line = conf.lines().find(of_node).ok_or(format!("{} does not know {node}", path.display()))?;
    let list = || {
        let file = line.split(' ').find_map(|word| word.strip_prefix("File="))?;
        let (name, range) = file.strip_suffix(']')?.split_once('[')?;
        let (first, last) = range.split_once('-')?;
        let numbers = first.parse::<u32>().ok()?..=last.parse().ok()?;
        Some(numbers.map(|number| format!("{name}{number}")).collect())
    };
    list().ok_or(format!("no range of devices in {line}"))
}

/// In an allocation made without any option, a step with options is in the container.
///
/// # Errors
/// It is not.
pub fn step_in_a_plain_allocation(site: &Site) -> Check {
    let dir = site.env().work_dir("alloc")?;
    let image = site.images.path("tiny.sqsh");
    let script = format!(
        "#!/bin/sh\nsrun -n1 --container-image={image} cat {WITNESS} || exit\necho host: $(cat {WITNESS} 2>&1)\n"
    );
    let job = site.cluster.sbatch(dir.path(), &["-N1"], &dir.write("job.sh", &script)?)?;
    job.output.clone().expect_text("situla tiny image")?.expect_text("host: cat:")?;
    step_ok(site, &job, "batch", 0)?;
    expect_ok(site, &job, 1)
}

/// Every output line pair shows the image's witness and a namespace that is not the node's.
///
/// # Errors
/// The payload ran on the host, or not at all.
pub(super) fn inside(site: &Site, job: &Job, records: usize) -> Check {
    let output = job.output.clone().success()?.expect_text(" image, recipe ")?;
    spaces_inside(site, &output.stdout, 1)?;
    expect_ok(site, job, records)
}

/// The mount namespaces that `n_payloads` payloads say to be in (`mnt:[…]`): none is a node's or the machine's.
///
/// # Errors
/// One is, or more or fewer payloads say theirs.
pub(super) fn spaces_inside(site: &Site, said: &str, n_payloads: usize) -> Result<BTreeSet<String>, String> {
    let numbers = said.split("mnt:[").skip(1).filter_map(|rest| rest.split_once(']'));
    let spaces: Vec<String> = numbers.map(|(number, _)| format!("mnt:[{number}]")).collect();
    let own = ["self".to_owned()];
    let nodes: Vec<String> = site.cluster.nodes().values().map(u32::to_string).collect();
    for pid in nodes.iter().chain(&own) {
        let host = fs::read_link(format!("/proc/{pid}/ns/mnt")).map_err(|e| format!("process {pid}: {e}"))?;
        if spaces.iter().any(|space| host.as_os_str() == space.as_str()) {
            return Err(format!("a payload was in the host's mount namespace {}\n{said}", host.display()));
        }
    }
    match spaces.len() == n_payloads {
        true => Ok(spaces.into_iter().collect()),
        false => Err(format!("{spaces:?} are not the namespaces of {n_payloads} payloads\n{said}")),
    }
}

/// Accounting and as many records as nodes say that all went well.
///
/// # Errors
/// One of them does not.
pub(super) fn expect_ok(site: &Site, job: &Job, n_records: usize) -> Check {
    step_ok(site, job, "0", n_records)
}

/// The same of a step with another name.
fn step_ok(site: &Site, job: &Job, step: &str, n_records: usize) -> Check {
    for account in [&job.account, job.step(step)?] {
        if (account.state.as_str(), account.exit.as_str()) != ("COMPLETED", "0:0") {
            return Err(format!("accounting says {:?} {:?}\n{}", job.account, job.steps, job.output).into());
        }
    }
    let name = format!("{}.{step}", job.id);
    let records = match outcome::records(&site.cluster, &name) {
        Err(story) if n_records == 0 && story.contains("there is no record") => return Ok(()),
        other => other?,
    };
    let good = |r: &Outcome| {
        r.class == "ok"
            && r.record["start"]["identity"]["step"] == step
            && !r.exits.is_empty()
            && r.exits.iter().all(|e| *e == Exit::Code(0))
    };
    if records.iter().all(good) && records.len() == n_records {
        Ok(())
    } else {
        Err(format!("expected {n_records} records of class ok, got {records:#?}").into())
    }
}

/// Mounts as the user asks for them: read-only, writable, of a single file; and /dev/shm, by which the ranks
/// of a node talk to each other.
///
/// # Errors
/// A mount is missing, can be written where it must not, or ranks do not see each other's memory.
pub fn mounts_and_shm(site: &Site) -> Check {
    let dir = site.env().work_dir("mounts")?;
    let home = dir.path().display().to_string();
    // Both belong to the user: what refuses to write is the mount.
    site.env().as_user(dir.path(), ["mkdir", "kept", "shared"])?.success()?;
    dir.write("kept/fact", "kept fact\n")?;
    dir.write("one.txt", "single file\n")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mounts = format!(
        "--container-mounts={home}/kept:/data/kept:ro,{home}/shared:/data/shared,{home}/one.txt:/data/one.txt"
    );
    let script = "cat /data/kept/fact /data/one.txt; ls /data; \
                  if (echo no >/data/kept/new); then echo THE-MOUNT-WAS-WRITTEN; fi; \
                  echo from inside >/data/shared/new";
    let job = site.cluster.srun(dir.path(), ["-n1", &image, &mounts, "sh", "-c", script])?;
    let output = job.output.clone().success()?.expect_text("Read-only file system")?;
    if output.stdout.lines().ne(["kept fact", "single file", "kept", "one.txt", "shared"])
        || dir.path().join("kept/new").exists()
        || fs::read_to_string(dir.path().join("shared/new"))? != "from inside\n"
    {
        return Err(format!("the mounts are not as asked for\n{output}").into());
    }
    expect_ok(site, &job, 1)?;

    // Each rank reads and removes the other's file, so that neither goes before it was read.
    let script = "f=/dev/shm/situla-test-$SLURM_JOB_ID; o=$((1 - SLURM_PROCID)); n=0; \
                  echo \"memory of $SLURM_PROCID\" >$f.new$SLURM_PROCID && mv $f.new$SLURM_PROCID $f.$SLURM_PROCID; \
                  while [ ! -e $f.$o ] && [ $n -lt 30 ]; do sleep 1; n=$((n + 1)); done; \
                  echo \"$SLURM_PROCID sees $(cat $f.$o)\"; rm -f $f.$o";
    let job = site.cluster.srun(dir.path(), ["-N1", "-n2", &image, "sh", "-c", script])?;
    let output = job.output.clone().success()?;
    let seen: BTreeSet<&str> = output.stdout.lines().collect();
    if seen != BTreeSet::from(["0 sees memory of 1", "1 sees memory of 0"]) {
        return Err(format!("the ranks do not share /dev/shm\n{output}").into());
    }
    expect_ok(site, &job, 1)
}

/// The keeper of a step's container is in the step's control groups: its memory and time count as the step's.
///
/// # Errors
/// It is elsewhere.
pub fn keeper_in_the_steps_cgroup(site: &Site) -> Check {
    let dir = site.env().work_dir("keeper")?;
    let here = dir.path().display();
    let (image, mounts) = (
        format!("--container-image={}", site.images.path("tiny.sqsh")),
        format!("--container-mounts={here}:/data"),
    );
    let script = "touch /data/go; while [ ! -e /data/stop ]; do sleep 1; done";
    let (name, running) =
        site.cluster.start_srun(dir.path(), ["-n1", &image, &mounts, "sh", "-c", script])?;
    let id = site.cluster.wait_running(&name)?;
    let runs = wait_until(PATIENCE, || dir.path().join("go").exists());
    let keepers = keepers(site.env().uid()?);
    dir.write("stop", "")?;
    let output = running.finish(PATIENCE)?.success()?;
    match &keepers[..] {
        [(_, groups)] if runs && groups.contains(&format!("job_{id}/step_0")) => Ok(()),
        other => {
            Err(format!("expected one keeper in the groups of job {id}, found {other:?}\n{output}").into())
        }
    }
}

/// The record says who ran what where, how long each phase took, and why.
///
/// # Errors
/// Something is missing or wrong.
pub fn record_is_complete(site: &Site) -> Check {
    let dir = site.env().work_dir("record")?;
    let here = dir.path().display().to_string();
    let (image, mounts) = (
        format!("--container-image={}", site.images.path("tiny.sqsh")),
        format!("--container-mounts={here}:/data"),
    );
    let node = site.cluster.a_node();
    let script = "touch /data/go$SLURM_PROCID; while [ ! -e /data/stop ]; do sleep 1; done";
    let args = ["-n2", "-N1", "-w", node, &image, &mounts, "sh", "-c", script];
    let (name, running) = site.cluster.start_srun(dir.path(), args)?;
    let runs = wait_until(PATIENCE, || ["go0", "go1"].iter().all(|go| dir.path().join(go).exists()));
    dir.write("stop", "")?;
    let job = site.cluster.job(&name, running.finish(PATIENCE * 2)?)?;
    if !runs {
        return Err(format!("the payload did not start\n{}", job.output).into());
    }
    expect_ok(site, &job, 1)?;
    let mut records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let found = records.remove(0);
    let wrong = |what: &str| Err(format!("{what}\n{}", found.text).into());
    let start = &found.record["start"];
    let expected = serde_json::json!({
        "cluster": site.cluster.name()?,
        "job": job.id.parse::<u32>().map_err(|e| e.to_string())?,
        "step": "0",
        "node": node,
        "user": site.env().user(),
        "uid": site.env().uid()?,
    });
    for (key, value) in expected.as_object().into_iter().flatten() {
        if start["identity"][key] != *value {
            return wrong(&format!("identity: {key} shall be {value}"));
        }
    }
    if start["argv"] != serde_json::json!(["sh", "-c", script]) || found.exits.len() != 2 {
        return wrong("the command or the tasks are others");
    }
    let tasks = found.record["tasks"].as_array().into_iter().flatten().map(|task| &task["phases"]);
    for (phases, needed) in std::iter::once((&start["phases"], "plan")).chain(tasks.map(|p| (p, "start"))) {
        let phases: Vec<&serde_json::Value> = phases.as_array().into_iter().flatten().collect();
        let time = |phase: &serde_json::Value, key: &str| phase[key].as_u64();
        if phases.iter().any(|p| time(p, "start_ns").is_none() || time(p, "end_ns") <= time(p, "start_ns")) {
            return wrong("a phase ends before it began");
        }
        if !phases.iter().any(|phase| phase["name"] == needed) {
            return wrong(&format!("the phase {needed} is missing"));
        }
    }
    let plan = &start["plan"];
    if plan["verdict"]["decision"] != "allow" || !plan["verdict"]["policy"].is_string() {
        return wrong("the plan has no verdict");
    }
    let bindings: Vec<&serde_json::Value> = plan["bindings"].as_array().into_iter().flatten().collect();
    let reason = |bind: &serde_json::Value| bind["reason"].as_str().unwrap_or_default().to_owned();
    if bindings.iter().any(|bind| reason(bind).is_empty()) {
        return wrong("a binding has no reason");
    }
    let asked = |bind: &&&serde_json::Value| bind["source"] == *here && bind["destination"] == "/data";
    match bindings.iter().find(asked) {
        Some(bind) if reason(bind).contains("--container-mounts") => Ok(()),
        _ => wrong("the binding asked for is not among those of the plan"),
    }
}

/// The keepers of a user's containers, each with its control groups.
fn keepers(uid: u32) -> Vec<(u32, String)> {
    let real_uid = |status: &str| -> Option<u32> {
        status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
    };
    // One that has ended and is not reaped yet is in no group any more.
    let runs =
        |status: &str| !status.lines().any(|l| l.starts_with("State:\tZ") || l.starts_with("State:\tX"));
    let of_user = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| runs(&status) && real_uid(&status) == Some(uid))
    };
    let keeper = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "situla-keeper")
    };
    let groups = |pid: u32| (pid, fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default());
    process_ids().into_iter().filter(keeper).filter(of_user).map(groups).collect()
}

/// A task names an image in a registry: it is fetched once, and the tasks of both nodes run in it.
///
/// # Errors
/// They do not, or it is fetched more than once.
pub fn image_from_a_registry(site: &Site) -> Check {
    super::faults::forget_pulled(site)?;
    let registry = site.registry()?;
    let address = registry.address();
    let dir = site.env().work_dir("registry")?;
    let option = format!("--container-image=docker://{address}/tiny:1");
    let mut images: Vec<serde_json::Value> = Vec::new();
    for _ in 0..2 {
        let args = ["-N2", "-n4", "--overcommit", &option, "cat", WITNESS];
        let job = site.cluster.srun(dir.path(), args)?;
        let output = job.output.success()?;
        if output.stdout.lines().filter(|line| line.starts_with("situla tiny image")).count() != 4 {
            return Err(format!("not four tasks in the image\n{output}").into());
        }
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        if records.len() != 2 || records.iter().any(|record| record.class != "ok") {
            return Err(format!("expected two good records: {records:#?}").into());
        }
        images.extend(records.into_iter().map(|record| record.record["start"]["image"].clone()));
    }
    // What a pull of the user's own says about the same image.
    let source = format!("docker://{address}/tiny:1");
    let pulled =
        site.env().as_user(dir.path(), ["situla", "pull", "--store-only", "--json", &source])?.success()?;
    let told: serde_json::Value =
        serde_json::from_str(&pulled.stdout).map_err(|e| format!("{e}\n{pulled}"))?;
    for key in ["manifest_digest", "rootfs_digest"] {
        let digest = told[key].as_str().unwrap_or_default();
        if !digest.starts_with("sha256:") || images.iter().any(|image| image[key] != digest) {
            return Err(format!(
                "the {key} of the records is another than of the pull: {images:#?}\n{pulled}"
            )
            .into());
        }
    }
    let listed = site.env().as_user(dir.path(), ["situla", "images", "--json"])?.success()?;
    let images: serde_json::Value =
        serde_json::from_str(&listed.stdout).map_err(|e| format!("{e}\n{listed}"))?;
    // The name as enroot writes it, by an option and in an environment's file.
    dir.write("e.toml", &format!("image = \"{address}#tiny:1\"\n"))?;
    for option in [&format!("--container-image={address}#tiny:1"), "--environment=./e.toml"] {
        let job = site.cluster.srun(dir.path(), ["-n1", option, "cat", WITNESS])?;
        job.output.success()?.expect_text("situla tiny image")?;
    }
    match images.as_array().map(Vec::len) {
        Some(1) => Ok(()),
        other => Err(format!("{other:?} images in the store\n{listed}").into()),
    }
}
