//! Nodes on which Slurm gives each job a `/tmp` and a `/dev/shm` of its own (job_container/tmpfs).

use std::fs;
use std::path::PathBuf;

use super::Site;
use crate::command;
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome;
use crate::tier::Check;

/// Has namespaces made from here on take higher numbers than any that is there.
///
/// Slurm keeps a job's mount namespace by a bind mount of its file, which the kernel refuses (EINVAL) unless it is newer than
/// the node's. Linux 6.18 looks at the namespaces' numbers for that, and each processor has a stock of 4,096 numbers of its
/// own: whatever is made on a processor that makes few has a low one, and the job is requeued. With each stock used up once
/// after the node has come up, that cannot be.
const NEWER_NAMESPACES: &str = "
import ctypes, os
unshare, new_uts = ctypes.CDLL(None, use_errno=True).unshare, 0x04000000
for cpu in os.sched_getaffinity(0):
    os.sched_setaffinity(0, {cpu})
    for _ in range(4097):
        if unshare(new_uts): raise OSError(ctypes.get_errno(), 'unshare')
";

/// Containers have the job's `/tmp` and `/dev/shm`, not the node's: by the plugin and by the command line, the same ones in
/// all steps of a job; tasks of a step share a container there; and nothing of it stays.
///
/// # Errors
/// One of these does not hold.
pub fn is_the_jobs(site: &Site) -> Check {
    let mut cluster = site.cluster.clone();
    let node = cluster.a_node().to_owned();
    let fault = cluster.fault(&node, "privatetmp")?;
    let site = Site { cluster, images: site.images.clone() };
    command::run(command::words(["python3", "-c", NEWER_NAMESPACES]), PATIENCE)?.success()?;
    let before = Snapshot::take(site.env(), Some(&site.cluster))?;
    check(&site, &node, &site.env().work_dir("private-tmp")?)?;
    site.cluster.settled()?;
    before.expect_clean()?;
    drop(fault);
    Ok(())
}

fn check(site: &Site, node: &str, dir: &WorkDir) -> Check {
    let tiny = site.images.path("tiny.sqsh");
    // Inside, what was there before is shown, and something is added.
    let step = |name: &str| {
        format!(
            "cat {WITNESS} || echo ON-THE-HOST; echo {name} $(readlink /proc/self/ns/mnt) $(ls /dev/shm /tmp); \
             touch /tmp/situla-{name} /dev/shm/situla-{name}"
        )
    };
    let batch = format!(
        "#!/bin/bash\ntouch /tmp/situla-batch /dev/shm/situla-batch\necho host $(readlink /proc/self/ns/mnt)\n\
         srun -n1 --container-image={tiny} sh -c '{}'\n\
         srun -n1 apptainer exec {tiny} sh -c '{}'\n\
         srun -n2 --overcommit --container-image={tiny} sh -c 'echo shared $(readlink /proc/self/ns/mnt); sleep 1'\n\
         echo after host $(ls /dev/shm /tmp)\n",
        step("first"),
        step("second")
    );
    let job = site.cluster.sbatch(dir.path(), &["-N1", "-n2", "-w", node], &dir.write("job.sh", &batch)?)?;
    let lines: Vec<Vec<&str>> = job.output.stdout.lines().map(|line| line.split(' ').collect()).collect();
    let line =
        |name: &str| lines.iter().find(|line| line[0] == name).map(|line| &line[1..]).unwrap_or_default();
    let of_node = site.cluster.nodes().get(node).ok_or("the node has gone")?;
    let nodes_own = fs::read_link(format!("/proc/{of_node}/ns/mnt"))?.to_string_lossy().into_owned();
    let [host] = line("host") else { return Err(format!("the script did not run\n{}", job.output).into()) };
    if **host == nodes_own {
        return Err(format!("Slurm gives the job no /tmp of its own\n{}", job.output).into());
    }
    let in_both = |names: &[&str]| {
        let list = names.iter().map(|name| format!("situla-{name}")).collect::<Vec<_>>().join(" ");
        format!("/dev/shm: {list} /tmp: {list}")
    };
    let ran = |name: &str, wanted: &str| match line(name) {
        [space, rest @ ..] => ![*host, nodes_own.as_str()].contains(space) && rest.join(" ") == wanted,
        [] => false,
    };
    let shared: Vec<&Vec<&str>> = lines.iter().filter(|line| line[0] == "shared").collect();
    let one_container =
        matches!(shared[..], [first, second] if first == second && ![*host, &nodes_own].contains(&first[1]));
    if !ran("first", &in_both(&["batch"]))
        || !ran("second", &in_both(&["batch", "first"]))
        || !one_container
        || line("after").get(1..).unwrap_or_default().join(" ") != in_both(&["batch", "first", "second"])
        || job.output.stdout.contains("ON-THE-HOST")
        || job.account.state != "COMPLETED"
    {
        return Err(format!("{:?} {:?}\n{}", job.account, job.steps, job.output).into());
    }
    for step in 0..3 {
        let records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
        if records.len() != 1 || records[0].class != "ok" {
            return Err(format!("step {step}: {records:#?}").into());
        }
    }
    // The node itself has seen nothing of that.
    for place in ["tmp", "dev/shm"] {
        let path = PathBuf::from(format!("/proc/{of_node}/root")).join(place);
        let names =
            fs::read_dir(&path)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names
            .filter(|name| ["batch", "first", "second"].iter().any(|n| *name == format!("situla-{n}")))
            .collect();
        if !left.is_empty() {
            return Err(format!("{} of the node has {left:?}", path.display()).into());
        }
    }
    Ok(())
}
