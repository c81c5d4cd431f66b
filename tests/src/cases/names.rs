//! Containers with a name, whose files stay for later steps, and containers that are saved: judged by what later steps and
//! the saved files have, by records and by accounting.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::Site;
use super::kept::stop_saver;
use crate::cluster::{Account, Job, Variant};
use crate::command::{self, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::outcome::{self, Exit, Outcome};
use crate::tier::Check;

/// What a batch script of the host does; its steps go into containers.
pub(super) fn batch(site: &Site, dir: &WorkDir, options: &[&str], script: &str) -> Result<Job, String> {
    let tiny = site.images.path("tiny.sqsh");
    let script = format!("#!/bin/bash\ntiny={tiny}\n{script}\n");
    site.cluster.sbatch(dir.path(), options, &dir.write("job.sh", &script)?)
}

pub(super) fn lines(job: &Job) -> Vec<&str> {
    job.output.stdout.lines().collect()
}

fn expect_lines(what: &str, job: &Job, wanted: &[&str]) -> Result<(), String> {
    if lines(job) == wanted { Ok(()) } else { Err(format!("{what}: wanted {wanted:?}\n{}", job.output)) }
}

/// The record of a step on its only node, which agrees with accounting.
pub(super) fn record(
    site: &Site,
    job: &Job,
    step: u32,
    (class, code): (&str, i64),
) -> Result<Outcome, String> {
    let mut records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
    let Some(record) = records.pop().filter(|_| records.is_empty()) else {
        return Err(format!("step {step} has not one record"));
    };
    if record.class != class || record.exits.iter().any(|exit| *exit != Exit::Code(code)) {
        return Err(format!("step {step} should be {class}, {code}: {record:?}"));
    }
    let state = if code == 0 { "COMPLETED" } else { "FAILED" };
    let wanted = Account { state: state.to_owned(), exit: format!("{code}:0") };
    match job.step(&step.to_string())? {
        account if *account == wanted => Ok(record),
        account => Err(format!("step {step}: accounting says {account:?}, the record {record:?}")),
    }
}

/// Where the user's containers are that were made on a node.
pub(super) fn place(site: &Site, node: &str) -> Result<PathBuf, String> {
    let name = format!("var/tmp/situla-{}", site.env().uid()?);
    match site.cluster.variant() {
        // These share a disk.
        Variant::Loopback => Ok(Path::new("/").join(name)),
        Variant::Isolated => {
            let pid = site.cluster.nodes().get(node).ok_or_else(|| format!("there is no node {node}"))?;
            Ok(PathBuf::from(format!("/proc/{pid}/root")).join(name))
        }
    }
}

/// Runs our program as the user on a node, with the cluster's Slurm.
fn situla(site: &Site, dir: &WorkDir, node: &str, words: &[&str]) -> Result<command::Output, String> {
    let mut command = site.cluster.command_on(node, dir.path(), [site.env().situla().as_os_str()])?;
    command.args(words);
    command::run(command, PATIENCE)
}

/// Removes on every node what jobs that are over have left, and expects that nothing else is there.
pub(super) fn swept(site: &Site, dir: &WorkDir) -> Result<(), String> {
    for node in site.cluster.nodes().keys() {
        let place = place(site, node)?;
        let mut said = String::new();
        let gone = wait_until(PATIENCE, || {
            if !place.exists() {
                return true;
            }
            said = situla(site, dir, node, &["container", "prune"])
                .map_or_else(|error| error, |output| output.to_string());
            !place.exists()
        });
        if !gone {
            return Err(format!("there is something left of containers on {node}\n{said}"));
        }
    }
    Ok(())
}

/// A container stays while its job is there, also where the user's variables would have Slurm asked about another cluster;
/// and goes when an epilog says that the job is over.
///
/// # Errors
/// It goes before, or stays.
pub fn until_the_epilog(site: &Site) -> Check {
    let dir = site.env().work_dir("names-epilog")?;
    let script = "srun --container-image=$tiny --container-name=work true
        situla container prune
        SLURM_CLUSTERS=elsewhere situla container prune
        srun --container-name=work echo still there
        situla container prune --job $SLURM_JOB_ID
        srun --container-name=work echo never 2>&1
        true";
    let job = batch(site, &dir, &["-N1", "-n1"], script)?;
    let said = lines(&job);
    let wanted =
        ["removed 0, kept 0 in use", "removed 0, kept 0 in use", "still there", "removed 1, kept 0 in use"];
    let refused = said.iter().any(|line| line.contains("there is no container work"));
    if said.get(..wanted.len()) != Some(&wanted[..]) || !refused || said.contains(&"never") {
        return Err(format!("wanted {wanted:?} and a refusal\n{}", job.output).into());
    }
    swept(site, &dir)?;
    Ok(())
}

fn container_of(record: &Outcome) -> &Value {
    &record.record["start"]["container"]
}

/// What one step writes the next one sees, by the name alone or with the same image under any name; another image, a name
/// that is not known, and flags that do not fit are refused.
///
/// # Errors
/// They are not.
pub fn later_steps(site: &Site) -> Check {
    let dir = site.env().work_dir("names")?;
    let demo = site.images.path("demo.sqsh");
    let script = format!(
        "cp $tiny copy.sqsh
        srun --container-image=$tiny --container-name=work --container-writable \
            sh -c 'echo one > /etc/kept; rm {WITNESS}; mkdir /etc/new; echo made'
        srun --container-name=work sh -c 'cat /etc/kept; [ -e {WITNESS} ] || echo gone; touch /x 2>/dev/null || echo read-only'
        srun --container-image=./copy.sqsh --container-name=work:no_exec --container-writable --container-remap-root \
            sh -c 'cat /etc/kept; ls -d /etc/new; id -u; echo x:x:7:7::/:/bin/sh >> /etc/passwd; mv /etc/passwd /etc/p; mv /etc/p /etc/passwd'
        srun --container-name=work grep -c ^x:x:7 /etc/passwd
        srun --container-image={demo} --container-name=work echo never 2>&1
        srun --container-name=other echo never 2>&1
        srun --container-image=$tiny --container-name=work:create echo never 2>&1
        srun --container-name=work:exec echo never 2>&1
        srun --container-image=$tiny sh -c '[ -e {WITNESS} ] && [ ! -e /etc/kept ] && echo as before'
        situla container list --json
        true"
    );
    let job = batch(site, &dir, &["-N1", "-n1"], &script)?;
    let said: Vec<&str> = lines(&job).into_iter().filter(|line| !line.starts_with("srun: ")).collect();
    let wanted = ["made", "one", "gone", "read-only", "one", "/etc/new", "0", "1"];
    if said.get(..wanted.len()) != Some(&wanted[..]) {
        return Err(format!("wanted {wanted:?}\n{}", job.output).into());
    }
    let refusals = [
        "was made of another image",
        "there is no container other",
        "is there already",
        "nothing runs in the container work",
    ];
    for (refusal, line) in refusals.iter().zip(&said[wanted.len()..]) {
        if !line.contains(refusal) {
            return Err(format!("wanted {refusal:?}, got {line:?}\n{}", job.output).into());
        }
    }
    if !said.contains(&"as before") || said.contains(&"never") {
        return Err(
            format!("a container without a name has what another one was written\n{}", job.output).into()
        );
    }
    let first = record(site, &job, 0, ("ok", 0))?;
    for step in 1..=3 {
        let later = record(site, &job, step, ("ok", 0))?;
        let (made, used) = (container_of(&first), container_of(&later));
        let same = ["name", "scope", "made_by"].iter().all(|key| made[key] == used[key]);
        let digests = [&first, &later].map(|record| record.record["start"]["image"]["rootfs_digest"].clone());
        if !same
            || used["name"] != "work"
            || used["made_by"] != format!("{}.0", job.id)
            || digests[0] != digests[1]
        {
            return Err(format!("records differ: {made} {used} {digests:?}").into());
        }
    }
    for step in 4..=7 {
        record(site, &job, step, ("engine-bad-option", 125))?;
    }
    let list = job.output.stdout.split_once("{\n").ok_or("no list")?.1;
    let list: Value = serde_json::from_str(&format!("{{{list}"))?;
    let all = list["containers"].as_array().ok_or("no list")?;
    if all.len() != 1 || all[0]["name"] != "work" || all[0]["in_use"] != false {
        return Err(format!("the list has {list}").into());
    }
    swept(site, &dir)?;
    Ok(())
}

/// Steps and tasks of one name at the same time see each other's files at once; the first step's end does not end the other.
///
/// # Errors
/// They do not, or it does.
pub fn at_once(site: &Site) -> Check {
    let dir = site.env().work_dir("names-at-once")?;
    // Both wait for the other's file; the second goes on when the first has ended.
    let wait =
        "wait_for() { n=0; while [ ! -e $1 ] && [ $n -lt 600 ]; do usleep 50000; n=$((n+1)); done; cat $1; }";
    let here = dir.path().display();
    let script = format!(
        "options=\"--overlap --container-writable --container-mounts={here}:/out\"
        srun -n2 --overcommit --container-image=$tiny --container-name=crowd --container-writable \
            sh -c '{wait}; echo task $SLURM_LOCALID > /etc/$SLURM_LOCALID; wait_for /etc/$((1-SLURM_LOCALID))' | sort
        srun -n1 $options --container-name=crowd sh -c '{wait}; echo of the first > /etc/first; touch /out/up; \
            wait_for /etc/second' &
        first=$!
        for n in $(seq 600); do [ -e up ] && break; sleep 0.05; done
        srun -n1 $options --container-name=crowd:exec sh -c '{wait}; wait_for /etc/first; echo of the second > /etc/second; \
            wait_for /out/over; echo still here > /etc/second; cat /etc/second' &
        wait $first
        echo over > over
        wait"
    );
    let job = batch(site, &dir, &["-N1", "-n2", "--overcommit"], &script)?;
    let mut said = lines(&job);
    // The first two by rank; the others by what they wait for.
    let wanted = ["task 0", "task 1", "of the first", "of the second", "over", "still here"];
    said.get_mut(2..4).ok_or_else(|| job.output.to_string())?.sort_unstable();
    if said != wanted {
        return Err(format!("wanted {wanted:?}\n{}", job.output).into());
    }
    for step in 0..=2 {
        record(site, &job, step, ("ok", 0))?;
    }
    swept(site, &dir)?;
    Ok(())
}

fn digest_of(path: &Path) -> Result<String, String> {
    let output =
        command::run(command::words(["sha256sum".as_ref(), path.as_os_str()]), PATIENCE)?.success()?;
    Ok(format!("sha256:{}", output.stdout.split(' ').next().unwrap_or_default()))
}

/// Expects that a record says of a file what it is.
fn expect_saved(record: &Outcome, path: &Path) -> Result<(), String> {
    let saved = &record.record["saved"];
    let size = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    let is_it = saved.as_array().is_some_and(|all| all.len() == 1)
        && saved[0]["path"] == path.display().to_string()
        && saved[0]["bytes"] == size
        && saved[0]["rootfs_digest"] == digest_of(path)?;
    if is_it {
        Ok(())
    } else {
        Err(format!("{} has {size} bytes, and the record says {saved}", path.display()))
    }
}

/// A saved container runs as an image: with what was written, without what was removed, of root, and without claiming to be
/// the image that it was made of. It is saved however its program ends, and not where that cannot be started.
///
/// # Errors
/// It does not.
pub fn saved(site: &Site) -> Check {
    let dir = site.env().work_dir("saved")?;
    let write = format!(
        "rm {WITNESS}; rm -r /usr/share/zoneinfo 2>/dev/null; mkdir -p /new/dir; echo text > /new/dir/file; \
         ln -s dir/file /new/link; ln /new/dir/file /new/hard; chmod 750 /new/dir/file"
    );
    let look = format!(
        "cat /new/link; stat -c \"%a %h\" /new/hard; [ -e {WITNESS} ] || echo gone; [ -d /var/empty-as-never ] || echo never"
    );
    let script = format!(
        "srun --container-image=$tiny --container-save=saved.sqsh sh -c '{write}'
        srun --container-image=./saved.sqsh sh -c '{look}'
        srun --container-image=$tiny --container-name=work --container-writable --container-remap-root sh -c '{write}'
        srun --container-name=work --container-readonly --container-save=%x-%j.%s.sqsh sh -c 'exit 3'
        named=$(ls ./*-$SLURM_JOB_ID.3.sqsh)
        srun --container-image=$named sh -c '{look}'
        srun --container-name=work --container-save=none.sqsh /no/such/program 2>/dev/null
        ls
        true"
    );
    let job = batch(site, &dir, &["-N1", "-n1"], &script)?;
    let by_name = fs::read_dir(dir.path())?.flatten().map(|entry| entry.path());
    let by_name: Vec<PathBuf> =
        by_name.filter(|path| path.to_string_lossy().ends_with(&format!("-{}.3.sqsh", job.id))).collect();
    let [named] = &by_name[..] else {
        return Err(format!("saved by pattern: {by_name:?}\n{}", job.output).into());
    };
    let first = record(site, &job, 0, ("ok", 0))?;
    expect_saved(&first, &dir.path().join("saved.sqsh"))?;
    if !container_of(&first)["name"].is_null() {
        return Err(format!("a name from nowhere: {}", container_of(&first)).into());
    }
    let manifest = &record(site, &job, 1, ("ok", 0))?.record["start"]["image"]["manifest_digest"];
    if !manifest.is_null() {
        return Err(format!("the saved file claims to be {manifest}").into());
    }
    record(site, &job, 2, ("ok", 0))?;
    expect_saved(&record(site, &job, 3, ("app-error", 3))?, named)?;
    record(site, &job, 5, ("engine-command-missing", 127))?;
    let said = lines(&job);
    let wanted = ["text", "750 2", "gone", "never"];
    if said.get(..4) != Some(&wanted[..]) || said.contains(&"none.sqsh") {
        return Err(format!(
            "wanted {wanted:?}, and nothing of a program that was not started\n{}",
            job.output
        )
        .into());
    }
    let owners =
        ["unsquashfs", "-lln", &dir.path().join("saved.sqsh").display().to_string()].map(str::to_owned);
    let listed = command::run(command::words(owners), PATIENCE)?.success()?;
    let others =
        listed.stdout.lines().filter(|line| line.contains(" squashfs-root") && !line.contains(" 0/0 "));
    let others: Vec<&str> = others.collect();
    if !others.is_empty() || listed.stdout.contains(WITNESS) || !listed.stdout.contains("/new/dir/file") {
        return Err(format!("not of root: {others:?}\n{listed}").into());
    }
    swept(site, &dir)?;
    Ok(())
}

/// On several nodes one file is written by the first, after the last of its tasks; with the node in its name each writes its
/// own.
///
/// # Errors
/// They do not.
pub fn saved_on_two_nodes(site: &Site) -> Check {
    let dir = site.env().work_dir("saved-nodes")?;
    let script = "
        srun -N2 -n4 --overcommit --ntasks-per-node=2 --container-image=$tiny --container-save=one.sqsh \
            sh -c 'echo $SLURMD_NODENAME $SLURM_NODEID > /etc/$SLURM_LOCALID'
        srun -N2 -n2 --container-image=$tiny --container-save=each-%N.sqsh sh -c 'echo $SLURMD_NODENAME > /etc/node'
        srun -N1 -n1 --container-image=./one.sqsh sh -c 'cut -d\" \" -f2 /etc/0 /etc/1'
        for file in each-*; do srun -N1 -n1 --container-image=./$file sed s/^/each-/ /etc/node; done
        ls *.sqsh";
    let job = batch(site, &dir, &["-N2", "-n4", "--overcommit", "--ntasks-per-node=2"], script)?;
    let mut said = lines(&job);
    // Who has several tasks is told when the last of them saves.
    said.retain(|line| !line.starts_with("situla: saving the container to "));
    let [zero, also_zero, first, second, files @ ..] = &said[..] else {
        return Err(job.output.to_string().into());
    };
    let of_nodes = [first, second].map(|name| format!("{name}.sqsh"));
    if [*zero, *also_zero] != ["0", "0"]
        || files != [&of_nodes[0], &of_nodes[1], "one.sqsh"]
        || first == second
    {
        return Err(format!("not one file of the first node, and one of each\n{}", job.output).into());
    }
    for (step, n_saved) in [(0, [1, 0]), (1, [1, 1])] {
        let records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
        let mut saved: Vec<usize> =
            records.iter().map(|record| record.record["saved"].as_array().map_or(0, Vec::len)).collect();
        saved.sort_unstable_by(|a, b| b.cmp(a));
        if saved != n_saved || records.iter().any(|record| record.class != "ok") {
            return Err(format!("step {step}: {saved:?} {records:?}").into());
        }
    }
    swept(site, &dir)?;
    Ok(())
}

/// Each node has containers of its own: one that was made on one node is not found on another, what a step writes stays on the
/// node where it was written, and what is removed on one node stays on the others.
///
/// # Errors
/// One of these does not hold.
pub fn of_each_node(site: &Site) -> Check {
    let dir = site.env().work_dir("names-nodes")?;
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let [first, second] = nodes[..] else { return Err("there are no two nodes".into()) };
    let script = format!(
        "srun -N1 -n1 -w {first} --container-image=$tiny --container-name=work --container-writable \
            sh -c 'echo of the first > /etc/kept'
        srun -N1 -n1 -w {second} --container-name=work echo never 2>&1 | grep -o 'there is no container work'
        srun -N2 -n2 --container-image=$tiny --container-name=work --container-writable \
            sh -c 'echo before $SLURMD_NODENAME $(cat /etc/kept); echo $SLURMD_NODENAME > /etc/own' 2>/dev/null | sort
        srun -N2 -n2 --container-name=work sh -c 'echo now $SLURMD_NODENAME $(cat /etc/own)' | sort"
    );
    let job = batch(site, &dir, &["-N2", "-n2", "-w", &nodes.join(",")], &script)?;
    let wanted = [
        "there is no container work".to_owned(),
        format!("before {first} of the first"),
        format!("before {second}"),
        format!("now {first} {first}"),
        format!("now {second} {second}"),
    ];
    expect_lines("two nodes", &job, &wanted.each_ref().map(String::as_str))?;
    record(site, &job, 1, ("engine-bad-option", 125))?;
    for step in [2, 3] {
        let records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
        if records.len() != 2 || records.iter().any(|record| container_of(record)["name"] != "work") {
            return Err(format!("step {step}: {records:#?}").into());
        }
    }
    let here = place(site, first)?;
    let removed = wait_until(PATIENCE, || {
        let _ = situla(site, &dir, first, &["container", "prune"]);
        !here.exists()
    });
    let there = situla(site, &dir, second, &["container", "list"])?.success()?;
    if !removed || !there.stdout.contains("work") {
        return Err(format!("removed on {first}: {removed}; on {second} there is\n{there}").into());
    }
    swept(site, &dir)?;
    Ok(())
}

/// Where nothing can be saved, the program is not started; a save that fails afterwards fails the step; and what makes no
/// sense anywhere is refused before there is a job.
///
/// # Errors
/// It is not.
pub fn refused(site: &Site) -> Check {
    let dir = site.env().work_dir("saved-refused")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let here = dir.path().display();
    let mount = format!("--container-mounts={here}:/out");
    let run = ["touch", "/out/ran"];
    for (target, told) in [
        ("/etc/situla-saved.sqsh", "cannot be saved to /etc/situla-saved.sqsh"),
        ("./no-such/saved.sqsh", "No such file or directory"),
        (".", "names no file"),
        (&here.to_string(), "is a directory"),
    ] {
        let save = format!("--container-save={target}");
        let words = [&["-n1", &image, &mount, &save][..], &run].concat();
        let (name, running) = site.cluster.start_srun(dir.path(), words)?;
        let output = running.finish(PATIENCE)?;
        if output.status.success() || dir.path().join("ran").exists() {
            return Err(format!("{target}: the program ran\n{output}").into());
        }
        let early = target == ".";
        output.clone().expect_text(told)?;
        if early {
            if site.cluster.knows(&name)? {
                return Err(format!("{target} made a job\n{output}").into());
            }
            continue;
        }
        let job = site.cluster.job(&name, output)?;
        record(site, &job, 0, ("engine-bad-option", 125))?;
    }
    for (option, told) in [
        ("--container-save=%t.sqsh", "the tasks of a node have one container"),
        ("--container-save=%q.sqsh", "stands for nothing"),
        ("--container-name=a/b", "cannot be the name"),
        ("--container-name=a:new", "choose from create, exec, auto and no_exec"),
    ] {
        let (name, running) = site.cluster.start_srun(dir.path(), ["-n1", &image, option, "true"])?;
        let output = running.finish(PATIENCE)?.expect_text(told)?;
        if output.status.success() || site.cluster.knows(&name)? {
            return Err(format!("{option} made a job\n{output}").into());
        }
    }
    let tree = format!("--container-image={}", site.env().image_tree("tiny").display());
    let job = site.cluster.srun(dir.path(), ["-n1", &tree, "--container-name=a", "true"])?;
    job.output.clone().expect_text("it is a directory")?;
    record(site, &job, 0, ("engine-bad-option", 125))?;
    site.env().as_user(dir.path(), ["mkdir", "goes"])?.success()?;
    let words = ["-n1", &image, &mount, "--container-save=goes/saved.sqsh", "rmdir", "/out/goes"];
    let job = site.cluster.srun(dir.path(), words)?;
    job.output.clone().expect_text("cannot save the container to")?;
    record(site, &job, 0, ("engine-setup-failed", 125))?;
    swept(site, &dir)?;
    Ok(())
}

/// Who cancels a step while its container is saved cancels that as well, and finds nothing of the file.
///
/// # Errors
/// He finds something, or accounting or the record call the end something else.
pub fn cancelled_save(site: &Site) -> Check {
    let dir = site.env().work_dir("saved-cancelled")?;
    let image = format!("--container-image={}", site.images.path("demo.sqsh"));
    let (name, running) =
        site.cluster.start_srun(dir.path(), ["-n1", &image, "--container-save=never.sqsh", "true"])?;
    // It stands still until it has been told to end: else it might be done before.
    let Some(saver) = stop_saver(&dir.path().join("never.sqsh")) else {
        return Err(format!("nothing is saved\n{}", running.finish(PATIENCE)?).into());
    };
    let id = site.cluster.wait_running(&name)?;
    let told = site.cluster.admin(&["scancel", &format!("{id}.0")]);
    // Slurm may have made it go on already, and it may be over.
    let _ = kill_process(saver, Signal::CONT);
    told?;
    let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
    let records = outcome::records(&site.cluster, &format!("{id}.0"))?;
    let [record] = &records[..] else { return Err(format!("{records:?}").into()) };
    let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
    if record.class != "cancelled" || job.step("0")?.state != "CANCELLED" || !left.is_empty() {
        return Err(format!("{record:?}, {:?}, left {left:?}\n{}", job.steps, job.output).into());
    }
    swept(site, &dir)?;
    Ok(())
}

/// Variables stand for the options, in `srun`, and below `salloc` and `sbatch`, which have the options as well.
///
/// # Errors
/// They do not.
pub fn variables(site: &Site) -> Check {
    let dir = site.env().work_dir("names-variables")?;
    let tiny = site.images.path("tiny.sqsh");
    let script = "export PYXIS_CONTAINER_NAME=named PYXIS_CONTAINER_WRITABLE=1
        srun --container-image=$tiny sh -c 'echo by variable > /etc/kept'
        srun cat /etc/kept
        PYXIS_CONTAINER_NAME=other srun --container-name=named cat /etc/kept
        PYXIS_CONTAINER_SAVE=saved-%s.sqsh srun true
        ls *.sqsh";
    let job = batch(site, &dir, &["-N1", "-n1"], script)?;
    expect_lines("variables", &job, &["by variable", "by variable", "saved-3.sqsh"])?;
    // A profile alone makes no container.
    let (_, running) = site.cluster.start_srun_with(
        dir.path(),
        &[("PYXIS_CONTAINER_SAVE", "profile.sqsh")],
        ["-n1", "ls", "saved-3.sqsh"],
    )?;
    running.finish(PATIENCE)?.success()?;
    let image = format!("--container-image={tiny}");
    let steps = "srun --quiet sh -c 'echo below salloc > /etc/kept'; srun --quiet cat /etc/kept";
    let words = [
        "salloc",
        "--quiet",
        "-n1",
        &image,
        "--container-name=s",
        "--container-writable",
        "bash",
        "-c",
        steps,
    ];
    let output = command::run(site.cluster.user_command(dir.path(), words)?, PATIENCE)?.success()?;
    if output.stdout != "below salloc\n" {
        return Err(format!("below salloc\n{output}").into());
    }
    // The script itself runs inside, and the container is saved at its end.
    let script = format!(
        "#!/bin/sh\n#SBATCH {image}\n#SBATCH --container-save=script.sqsh\necho script > /etc/kept\n"
    );
    let job = site.cluster.sbatch(dir.path(), &["-N1", "-n1"], &dir.write("inside.sh", &script)?)?;
    let records = outcome::records(&site.cluster, &format!("{}.batch", job.id))?;
    let [batch_record] = &records[..] else { return Err(format!("{records:?}").into()) };
    expect_saved(batch_record, &dir.path().join("script.sqsh"))?;
    let saved = ["-n1", "--container-image=./script.sqsh", "cat", "/etc/kept"];
    let job = site.cluster.srun(dir.path(), saved)?;
    expect_lines("what the script wrote", &job, &["script"])?;
    swept(site, &dir)?;
    Ok(())
}

/// A container goes when its job is over, with the next container on the node; one that the site keeps for all jobs stays
/// until it is removed.
///
/// # Errors
/// It does not.
pub fn scopes(site: &Site) -> Check {
    let dir = site.env().work_dir("names-scopes")?;
    let tiny = site.images.path("tiny.sqsh");
    let image = format!("--container-image={tiny}");
    let node = site.cluster.a_node();
    let of_first = ["-n1", "-w", node, &image, "--container-name=first"];
    let words = of_first.into_iter().chain(["--container-writable", "touch", "/etc/kept"]);
    let first = site.cluster.srun(dir.path(), words)?;
    let of_jobs = |job: &Job| {
        let all = fs::read_dir(place(site, node)?.join("containers")).into_iter().flatten().flatten();
        let names = all.filter_map(|entry| entry.file_name().into_string().ok());
        Ok::<_, String>(names.filter(|name| name.ends_with(&format!("-{}", job.id))).count())
    };
    if of_jobs(&first)? != 1 {
        return Err(format!("job {} has left nothing", first.id).into());
    }
    site.cluster.settled()?;
    let second = site.cluster.srun(dir.path(), of_first.into_iter().chain(["ls", "/etc/kept"]))?;
    if second.output.status.success() || of_jobs(&first)? != 0 || of_jobs(&second)? != 1 {
        return Err(
            format!("what job {} left was there for job {}\n{}", first.id, second.id, second.output).into()
        );
    }
    // As the plugin does with `container_scope=global`.
    let global = |name: &str, script: &str| {
        let variables = [
            "SITULA_TASK_PROGRAM=/bin/sh".to_owned(),
            format!("SITULA_TASK_IMAGE={tiny}"),
            format!("SITULA_TASK_NAME={name}"),
            "SITULA_TASK_SCOPE=global".to_owned(),
            "SITULA_TASK_WRITABLE=1".to_owned(),
        ];
        let mut words = vec!["-n1".to_owned(), "--nodelist".to_owned(), node.to_owned(), "env".to_owned()];
        words.extend(variables);
        words.extend(["situla", "-c", script].map(str::to_owned));
        site.cluster.srun(dir.path(), words)
    };
    global("stays", "echo for all > /etc/kept")?.output.success()?;
    site.cluster.settled()?;
    let job = global("stays", "cat /etc/kept")?;
    expect_lines("another job", &job, &["for all"])?;
    situla(site, &dir, node, &["container", "prune"])?.success()?;
    let list = situla(site, &dir, node, &["container", "list"])?.success()?;
    if !list.stdout.contains("stays") || list.stdout.contains("first") {
        return Err(format!("the list after pruning\n{list}").into());
    }
    situla(site, &dir, node, &["container", "rm", "first"])?
        .expect_code(2)?
        .expect_text("there is no container first")?;
    situla(site, &dir, node, &["container", "rm", "stays"])?.success()?;
    if place(site, node)?.exists() {
        return Err("something is left".into());
    }
    Ok(())
}
