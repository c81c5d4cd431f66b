//! What Slurm does around the tasks of a step: scripts after them, steps beside them, devices for each of them.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::Site;
use super::ends::KILL_WAIT;
use super::uses::{devices_of, expect_ok, spaces_inside};
use crate::cluster::Job;
use crate::command::words;
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::outcome::{self, Exit};
use crate::tier::Check;

/// Until Slurm has killed those that do not heed TERM, and cleaned up after them.
const ENDED: Duration = Duration::from_secs(2 * KILL_WAIT.as_secs());

/// TaskEpilog, which the image does not have, runs on the host once for each task, after its payload and as the user;
/// also after one that has failed or was killed.
///
/// # Errors
/// It runs elsewhere, or not at all, or too early.
pub fn task_epilog(site: &Site) -> Check {
    let dir = site.env().work_dir("epilog")?;
    let here = dir.path().display().to_string();
    let epilog = format!(
        "#!/bin/sh\ncd {here} || exit\nover=early; [ ! -e over.$SLURM_PROCID ] || over=over\n\
         echo $SLURM_PROCID $SLURMD_NODENAME $(readlink /proc/self/ns/mnt) $(id -un) $over >>epilogs.$SLURM_PROCID\n"
    );
    let epilog = format!("--task-epilog={}", dir.write("epilog", &epilog)?.display());
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mounts = format!("--container-mounts={here}");
    let script = format!(
        "cd {here}; readlink /proc/self/ns/mnt; touch over.$SLURM_PROCID; \
         case $SLURM_PROCID in 0) exit 0;; 1) exit 3;; 2) kill -TERM $$;; *) kill -KILL $$;; esac"
    );
    let words =
        ["--kill-on-bad-exit=0", "-N2", "--ntasks-per-node=2", &epilog, &image, &mounts, "sh", "-c", &script];
    let job = site.cluster.srun(dir.path(), words)?;
    spaces_inside(site, &job.output.stdout, 4)?;
    for rank in 0..4 {
        let said = fs::read_to_string(dir.path().join(format!("epilogs.{rank}"))).unwrap_or_default();
        let fits = match said.lines().map(|line| line.split(' ').collect::<Vec<_>>()).collect::<Vec<_>>()[..]
        {
            [ref line] => match line[..] {
                [number, node, namespace, user, over] => {
                    let host = site.cluster.nodes().get(node);
                    let host = host.and_then(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok());
                    number == rank.to_string()
                        && host.is_some_and(|host| host.as_os_str() == namespace)
                        && (user, over) == (site.env().user(), "over")
                }
                _ => false,
            },
            _ => false,
        };
        if !fits {
            return Err(format!("TaskEpilog of task {rank} says {said:?}\n{}", job.output).into());
        }
    }
    let mut records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    // Which node wrote last is open.
    records.sort_by_key(|record| record.record["start"]["identity"]["node"].to_string());
    let exits: Vec<Exit> = records.iter().flat_map(|record| record.exits.clone()).collect();
    if exits != [Exit::Code(0), Exit::Code(3), Exit::Signal(15), Exit::Signal(9)] {
        return Err(format!("the records say {records:#?}\n{}", job.output).into());
    }
    Ok(())
}

/// Steps of one job that run at the same time on the same processors (`--overlap`), one of them from outside of the job,
/// are in containers of their own.
///
/// # Errors
/// They share one, or do not run at the same time, or one is on the host.
pub fn overlapping(site: &Site) -> Check {
    let dir = site.env().work_dir("overlap")?;
    let here = dir.path().display().to_string();
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let mounts = format!("--container-mounts={here}");
    let script = format!(
        "readlink /proc/self/ns/mnt; cat {WITNESS}; touch {here}/up.$0; \
         while [ ! -e {here}/down ]; do usleep 100000; done"
    );
    let batch = format!(
        "#!/bin/bash\nfor n in 0 1; do\nsrun --overlap --exact -n1 {image} {mounts} sh -c '{script}' $n &\ndone\nwait\n\
         until [ -e {here}/over ]; do sleep 0.1; done\n"
    );
    let node = site.cluster.a_node().to_owned();
    let arguments = ["-N1", "-n1", "-w", &node].map(str::to_owned);
    let (name, id) = site.cluster.submit(dir.path(), &arguments, &dir.write("job.sh", &batch)?)?;
    site.cluster.wait_running(&name)?;
    let attach =
        ["srun", "--quiet", "--overlap", "--jobid", &id, "-n1", &image, &mounts, "sh", "-c", &script, "2"];
    let outside = command::start(site.cluster.user_command(dir.path(), attach)?)?;
    let all = wait_until(PATIENCE, || (0..3).all(|n| dir.path().join(format!("up.{n}")).exists()));
    dir.write("down", "")?;
    let output = outside.finish(PATIENCE)?;
    // With its job a step from outside would end as well.
    dir.write("over", "")?;
    let job = site.cluster.job(&name, output)?;
    let log = fs::read_to_string(dir.path().join(format!("{name}.log")))?;
    let lines: Vec<&str> = log.lines().chain(job.output.stdout.lines()).collect();
    let spaces: BTreeSet<&str> = lines.iter().copied().filter(|line| line.starts_with("mnt:")).collect();
    spaces_inside(site, &lines.join("\n"), 3)?;
    let n_inside = lines.iter().filter(|line| line.starts_with("situla tiny image")).count();
    if !all || spaces.len() != 3 || n_inside != 3 {
        return Err(format!("all at once: {all}\n{log}\n{}", job.output).into());
    }
    for step in 0..3 {
        // That of outside is of the same cluster, although Slurm does not tell it so.
        let records = outcome::records(&site.cluster, &format!("{id}.{step}"))?;
        let account = job.step(&step.to_string())?;
        if records.len() != 1 || records[0].class != "ok" || account.state != "COMPLETED" {
            return Err(format!("step {step}: {account:?}, {records:#?}").into());
        }
    }
    Ok(())
}

/// A task of an array that is cancelled, so hard that nobody of ours can say so, has a record that says it all the same.
///
/// # Errors
/// The record says something else than accounting.
pub fn cancelled_in_an_array(site: &Site) -> Check {
    let dir = site.env().work_dir("array")?;
    let here = dir.path().display();
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let batch = format!(
        "#!/bin/bash\nexec srun -n1 {image} --container-mounts={here} sh -c \
         \"trap '' TERM; echo $SLURM_JOB_ID >{here}/new.$SLURM_ARRAY_TASK_ID; \
         mv {here}/new.$SLURM_ARRAY_TASK_ID {here}/go.$SLURM_ARRAY_TASK_ID; exec sleep 1000\"\n"
    );
    let arguments = ["--array=1-2", "-N1", "-n1"].map(str::to_owned);
    let (_, array) = site.cluster.submit(dir.path(), &arguments, &dir.write("job.sh", &batch)?)?;
    let gone = |task: u8| dir.path().join(format!("go.{task}"));
    let begun = wait_until(PATIENCE, || (1..3).all(|task| gone(task).exists()));
    command::run(site.cluster.user_command(dir.path(), ["scancel", &array])?, PATIENCE)?.success()?;
    if !begun {
        return Err("not both tasks have begun".into());
    }
    let ended = wait_until(ENDED, || {
        site.cluster.admin(&["squeue", "-h", "-j", &array]).map_or(true, |o| o.stdout.trim().is_empty())
    });
    if !ended {
        return Err("the array goes on".into());
    }
    for task in 1..3 {
        let job = fs::read_to_string(gone(task))?.trim().to_owned();
        let mut records = Vec::new();
        // Accounting hears of it a little later.
        let fits = wait_until(PATIENCE, || {
            records = outcome::records(&site.cluster, &format!("{job}.0")).unwrap_or_default();
            matches!(&records[..], [one] if one.class == "cancelled" && one.exits.is_empty())
        });
        if !fits {
            return Err(format!("task {task} of the array: the records say {records:#?}").into());
        }
        let message = records[0].record["outcome"]["message"].as_str().unwrap_or_default();
        if !message.starts_with("sacct: job CANCELLED by ") {
            return Err(format!("task {task} of the array: accounting was not asked: {records:#?}").into());
        }
    }
    Ok(())
}

/// With `--gpus-per-task` each task has its own device, and what Slurm says about it, as without a container; all of them
/// share one container, and each opens there what it may open outside.
///
/// # Errors
/// It differs from the bare step, or the tasks do not share, or have the same device.
pub fn gpus_of_each_task(site: &Site) -> Check {
    let dir = site.env().work_dir("gpus-per-task")?;
    let node = site.cluster.a_node();
    let devices = devices_of(site, node)?;
    let script = format!(
        "for v in CUDA_VISIBLE_DEVICES SLURM_STEP_GPUS SLURM_GPUS_ON_NODE; do echo $SLURM_PROCID $v ${{!v}}; done; \
         for g in {}; do echo \"$SLURM_PROCID $g $( (: <$g) 2>&1 | sed 's/.*: //')\"; done; \
         echo space $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/user) >&2; sleep 1",
        devices.join(" ")
    );
    let image = format!("--container-image={}", site.images.path("demo.sqsh"));
    let sif = site.images.path("demo.sif");
    let on = ["-N1", "-n2", "--gpus-per-task=1", "-w", node];
    let run = |enter: &[&str]| -> Result<Job, String> {
        let words = on.into_iter().chain(enter.iter().copied()).chain(["bash", "-c", &script]);
        let job = site.cluster.srun(dir.path(), words)?;
        job.output.clone().success()?;
        Ok(job)
    };
    let sorted = |job: &Job| {
        let mut lines: Vec<String> = job.output.stdout.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let bare = run(&[])?;
    let told = sorted(&bare);
    let seen = |rank: &str| -> BTreeSet<&str> {
        let of_rank = told.iter().filter_map(|line| line.strip_prefix(rank)?.strip_prefix(' '));
        of_rank
            .filter(|line| line.starts_with("SLURM_STEP_GPUS") || line.contains("No such device"))
            .collect()
    };
    // The standard itself must tell the tasks apart.
    if devices.len() < 2 || seen("0").is_empty() || seen("0") == seen("1") {
        return Err(format!("without a container the tasks have the same\n{}", bare.output).into());
    }
    for enter in [&[image.as_str()][..], &["apptainer", "exec", &sif]] {
        let job = run(enter)?;
        let spaces: BTreeSet<&str> =
            job.output.stderr.lines().filter(|line| line.starts_with("space ")).collect();
        if sorted(&job) != told || spaces.len() != 1 {
            return Err(format!("{enter:?}: bare:\n{}\ncontained:\n{}", bare.output, job.output).into());
        }
        spaces_inside(site, &job.output.stderr, 2)?;
        expect_ok(site, &job, 1)?;
    }
    Ok(())
}

/// MPICH through PMI-2, two ranks on each of four nodes, all in one image: by the plugin and by `apptainer`.
///
/// # Errors
/// It is not one world, or a rank is on the host.
pub fn mpich_by_pmi2(site: &Site) -> Check {
    let dir = site.env().work_dir("pmi2")?;
    let here = dir.path().display().to_string();
    let program = dir.path().join("mpi-hello").display().to_string();
    let source = site.env().demo_file("mpi-hello.c").display().to_string();
    command::run(words(["mpicc.mpich", "-O2", "-o", &program, &source]), PATIENCE)?.success()?;
    // The image has no MPICH; what this machine has is of the same release.
    let libraries = format!("/usr/lib/{}-linux-gnu:/opt/mpi-libs", std::env::consts::ARCH);
    let search = "LD_LIBRARY_PATH=/opt/mpi-libs";
    let (image, sif) =
        (format!("--container-image={}", site.images.path("demo.sqsh")), site.images.path("demo.sif"));
    let mounts = format!("--container-mounts={here},{libraries}");
    let by_plugin = vec![image.as_str(), &mounts, "env", search];
    let by_command =
        vec!["apptainer", "exec", "--bind", &here, "--bind", &libraries, "--env", search, sif.as_str()];
    for enter in [by_plugin, by_command] {
        let start = ["-N4", "--ntasks-per-node=2", "--kill-on-bad-exit=1", "--mpi=pmi2"];
        let line = start.into_iter().chain(enter.iter().copied()).chain([program.as_str(), "8"]);
        // Without shared memory of a node this MPICH hangs in MPI_Finalize now and then, in no container as well.
        let (name, running) =
            site.cluster.start_srun_with(dir.path(), &[("UCX_TLS", "tcp,sysv,self")], line)?;
        let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
        let output = job.output.clone().success()?.expect_text("ok: 8 ranks, sum of ranks 28")?;
        if output.stdout.matches(" image yes ").count() != 8 {
            return Err(format!("not every rank is in the image\n{output}").into());
        }
        spaces_inside(site, &output.stdout, 8)?;
        expect_ok(site, &job, 4)?;
    }
    Ok(())
}
