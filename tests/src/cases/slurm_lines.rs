//! Command lines of `srun` that name several programs, or look as if they did: in the containers that were asked
//! for or refused, never on the host or in another container, and nothing refused that is fine.

use std::time::Duration;

use super::Site;
use super::ends::KILL_WAIT;
use super::faults::never_accepted;
use super::uses::{expect_ok, spaces_inside};
use crate::command::wait_until;
use crate::environment::PATIENCE;
use crate::outcome;
use crate::processes::{self, Kind, Watch};
use crate::tier::Check;

/// Says where it ran, and what its arguments are.
const WITNESS: &str =
    "cat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt; echo ARGUMENTS \"$@\"";
/// A line of the witness of the small image.
const INSIDE: &str = "situla tiny image";

/// `--multi-prog` with an image: every line's program is in the container, those of a node in one, and TaskProlog was on the
/// host.
///
/// # Errors
/// One is elsewhere, has other words than the table says, or ends otherwise.
pub fn multi_prog(site: &Site) -> Check {
    let dir = site.env().work_dir("multi")?;
    let script = "cat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt; \
                  echo said $0 $1 by $SLURM_PROCID after $PROLOG_MNT; sleep 1";
    // A rank, its place among those of the line, a quoted word, a line that goes on (what stands there begins in the first
    // column: Slurm takes a blank for the end of a word), and one for all others.
    let table = format!(
        "# the leader\n0 sh -c '{script}' leader%o 'a b'\n\n1,3 \\\nsh -c '{script}' \\\nsecond%o %t\n\
         * sh -c '{script}' other 100\\%\n"
    );
    let table = dir.write("table", &table)?.display().to_string();
    let prolog = dir
        .write("prolog", "#!/bin/sh\necho export PROLOG_MNT=$(readlink /proc/self/ns/mnt | tr -d '[]')\n")?;
    let prolog = format!("--task-prolog={}", prolog.display());
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    for before in [&["--multi-prog"][..], &["--comment", "x", "--mul", "--"]] {
        let own = ["-N2", "-n5", "--overcommit", "--distribution=cyclic", &prolog, &option];
        let job = site.cluster.srun(dir.path(), own.iter().chain(before).copied().chain([table.as_str()]))?;
        let mut output = job.output.clone().success()?;
        for said in
            ["leader0 a b by 0", "second0 1 by 1", "other 100% by 2", "second1 3 by 3", "other 100% by 4"]
        {
            output = output.expect_text(&format!("said {said} after mnt:"))?;
        }
        // Without the brackets, by which those of the payloads are told.
        let nodes = site.cluster.nodes().values().filter_map(|pid| {
            let space = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
            Some(space.to_string_lossy().replace(['[', ']'], ""))
        });
        let of_prolog: usize =
            nodes.map(|space| output.stdout.matches(&format!("after {space}")).count()).sum();
        if of_prolog != 5 {
            return Err(format!("TaskProlog was on the host {of_prolog} times\n{output}").into());
        }
        let spaces = spaces_inside(site, &output.stdout, 5)?;
        if spaces.len() != 2 || output.stdout.matches("situla tiny image").count() != 5 {
            return Err(format!("{spaces:?} are not two containers of five tasks\n{output}").into());
        }
        expect_ok(site, &job, 2)?;
    }
    // How a task ends is how the step ends.
    let table = dir.write("ends", "0 sh -c 'exit 3'\n1 true\n")?.display().to_string();
    let words = ["-N1", "-n2", "--overcommit", &option, "--multi-prog", &table];
    let job = site.cluster.srun(dir.path(), words)?;
    job.output.clone().expect_code(3)?;
    // A program that is not there.
    let table = dir.write("none", "* situla-no-such-program x\n")?.display().to_string();
    let job = site.cluster.srun(dir.path(), ["-n1", &option, "--multi-prog", &table])?;
    let output = job.output.expect_code(127)?;
    let about = |line: &str| line.starts_with("situla: ") && line.contains("situla-no-such-program");
    if !output.stderr.lines().any(about) {
        return Err(format!("nothing names the program\n{output}").into());
    }
    // Of several components srun can hand on the table of one; the option counts for all of them.
    let table = dir.write("host", "* /bin/echo ON-THE-HOST\n")?.display().to_string();
    let line = ["-n1", &option, "--multi-prog", &table, ":", "-n1", &option, &table];
    let (name, running) = site.cluster.start_srun(dir.path(), line)?;
    never_accepted(site, &name, &running.finish(PATIENCE)?, "--multi-prog")
}

/// `--multi-prog` is in the container however it is written.
///
/// # Errors
/// A task ran on the host, or nowhere.
pub fn multi_prog_however_written(site: &Site) -> Check {
    let dir = site.env().work_dir("multi-lines")?;
    // One line, and no end of line.
    let line = "* sh -c 'cat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt; echo with $0${1:+ $1}' of";
    let table = dir.write("table", line)?.display().to_string();
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    for (words, said) in [
        (&["--comment", "--", "--multi-prog", &table][..], "with of\n"),
        (&["--comment=x", "--mul", &table], "with of\n"),
        (&["--exclusive", "--multi-prog", &table], "with of\n"),
        (&["--exclusive", "--multi-prog", &table, "more"], "with of more\n"),
        (&["--exclusive", "--multi-prog", "--", &table], "with of\n"),
    ] {
        let line = ["-n1", &image].into_iter().chain(words.iter().copied());
        let (_, running) = site.cluster.start_srun(dir.path(), line)?;
        let output = running.finish(PATIENCE)?.success()?.expect_text(INSIDE)?.expect_text(said)?;
        spaces_inside(site, &output.stdout, 1)?;
    }
    Ok(())
}

/// `--multi-prog` with `apptainer exec` in the table: the tasks of all its lines are in the container, and those of a node share it.
///
/// # Errors
/// One is elsewhere.
pub fn apptainer_in_the_table(site: &Site) -> Check {
    let dir = site.env().work_dir("multi-table")?;
    let sif = site.images.path("tiny.sif");
    let line = |ranks: &str, word: &str| {
        let script = "cat /etc/situla-image-witness; readlink /proc/self/ns/mnt; echo $0 $SLURM_PROCID";
        format!("{ranks} apptainer exec {sif} sh -c '{script}' {word}\n")
    };
    let table = [line("0,2", "first"), line("1", "second")].concat();
    let table = dir.write("table", &table)?.display().to_string();
    let job = site.cluster.srun(dir.path(), ["-N1", "-n3", "--overcommit", "--multi-prog", &table])?;
    let mut output = job.output.clone().success()?;
    for said in ["first 0", "second 1", "first 2"] {
        output = output.expect_text(said)?;
    }
    let spaces = spaces_inside(site, &output.stdout, 3)?;
    if spaces.len() != 1 || output.stdout.matches(INSIDE).count() != 3 {
        return Err(format!("{spaces:?} are not one container of three tasks\n{output}").into());
    }
    expect_ok(site, &job, 1)
}

/// What only looks like `--multi-prog` runs in the container.
///
/// # Errors
/// It was refused, or ran elsewhere.
pub fn not_multi_prog(site: &Site) -> Check {
    let dir = site.env().work_dir("no-multi")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let program = ["sh", "-c", WITNESS, "sh"];
    for (own, arguments) in [
        (&[][..], &["--multi-prog", "x"][..]),
        (&[], &["--multi"]),
        (&["--comment", "--multi-prog"], &["a"]),
        (&["--comment", "--"], &["--mul", ":tail"]),
    ] {
        let line = ["-n1", &image].into_iter().chain(own.iter().copied());
        let (_, running) =
            site.cluster.start_srun(dir.path(), line.chain(program).chain(arguments.iter().copied()))?;
        let output = running.finish(PATIENCE)?.success()?.expect_text(INSIDE)?;
        let output = output.expect_text(&format!("ARGUMENTS {}", arguments.join(" ")))?;
        spaces_inside(site, &output.stdout, 1)?;
    }
    // One argument that reads like a table: what the program itself makes of it is known from its status.
    let (name, running) =
        site.cluster.start_srun(dir.path(), ["-n1", &image, "cat", "0 a.out\n1 b.out\n"])?;
    let job = site.cluster.job(&name, running.finish(PATIENCE)?.expect_code(1)?)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if records.len() != 1 || records[0].class != "app-error" {
        return Err(format!("expected one record of class app-error, got {records:#?}").into());
    }
    Ok(())
}

/// The components of a heterogeneous step are in the container that each of them asks for, or refused.
///
/// # Errors
/// One of them was elsewhere, or the same container for all was refused.
pub fn heterogeneous(site: &Site) -> Check {
    let dir = site.env().work_dir("hetero")?;
    let image = |name: &str| format!("--container-image={}", site.images.path(name));
    let (tiny, other) = (image("tiny.sqsh"), image("tiny.sif"));
    let program = ["sh", "-c", WITNESS];
    for (first, second, names) in [
        (&[tiny.as_str()][..], &[other.as_str()][..], "--container-image"),
        (&[&tiny], &[], "--container-image"),
        (&[], &[&tiny], "--container-image"),
        (&[&tiny, "--container-mounts=/tmp:/x"], &[&tiny], "--container-mounts"),
    ] {
        let line = ["-n1"].into_iter().chain(first.iter().copied()).chain(program).chain([":", "-n1"]);
        let line = line.chain(second.iter().copied()).chain(program);
        let (name, running) = site.cluster.start_srun(dir.path(), line)?;
        never_accepted(site, &name, &running.finish(PATIENCE)?, names)?;
    }

    // The same for both; inside an allocation, as Slurm starts heterogeneous jobs in rounds of half a minute.
    let step = format!("srun -N1 -n1 {tiny} sh -c \"$0\" a one : -N1 -n1 {tiny} sh -c \"$0\" b two");
    let words = ["salloc", "--quiet", "-N2", "-n2", "sh", "-c", &step, WITNESS];
    let command = site.cluster.user_command(dir.path(), words)?;
    let output = crate::command::run(command, PATIENCE)?.success()?;
    for expected in ["ARGUMENTS one", "ARGUMENTS two"] {
        output.clone().expect_text(expected)?;
    }
    if output.stdout.matches(INSIDE).count() != 2 || output.stdout.contains("ON-THE-HOST") {
        return Err(format!("both shall be in the container\n{output}").into());
    }
    spaces_inside(site, &output.stdout, 2)?;
    Ok(())
}

/// In a heterogeneous job, whose components have numbers of their own, the tasks of all components are in containers of
/// their step and have records; and the only task of a node that is killed with its container ends the step in all of
/// them.
///
/// # Errors
/// A component goes on, or has no record.
pub fn kill_in_a_heterogeneous_job(site: &Site) -> Check {
    /// Slurm starts such jobs in rounds of half a minute.
    const START: Duration = Duration::from_secs(120);
    let dir = site.env().work_dir("hetjob")?;
    let here = dir.path().display().to_string();
    let tiny = format!("--container-image={} --container-mounts={here}", site.images.path("tiny.sqsh"));
    let payload = format!("touch {here}/go$SLURM_PROCID; sleep 1000");
    let text = format!(
        "#!/bin/sh\n#SBATCH -N1 -n1\n#SBATCH hetjob\n#SBATCH -N2 -n2\ncd {here}\n\
         echo $SLURM_JOB_ID_HET_GROUP_0 $SLURM_JOB_ID_HET_GROUP_1 >jobs\n\
         srun --het-group=0,1 --kill-on-bad-exit=0 {tiny} sh -c '{payload}' >said 2>&1\necho $? >status\n"
    );
    let script = dir.write("job.sh", &text)?.display().to_string();
    let watch = Watch::begin(site.env().uid()?);
    let submitted = site.cluster.user_command(dir.path(), ["sbatch", "--parsable", "-o", "out", &script])?;
    let id = crate::command::run(submitted, PATIENCE)?.success()?.stdout.trim().to_owned();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let began = wait_until(START, || (0..3).all(|rank| dir.path().join(format!("go{rank}")).exists()));
    // The last rank is on a node of the second component, alone.
    let victim = watch.look().into_iter().find(|one| {
        one.kind == Kind::Task && processes::variable(one.pid, "SLURM_PROCID").as_deref() == Some("2")
    });
    let hit = victim.filter(|_| began).map(|victim| processes::kill_if(victim, || true));
    let ended = matches!(hit, Some(Ok(true))) && wait_until(KILL_WAIT, || !read("status").trim().is_empty());
    let left = if watch.sees_none() { Vec::new() } else { watch.look() };
    site.cluster.admin(&["scancel", &id])?;
    site.cluster.settled()?;
    let story =
        format!("job {id}, began: {began}, killed: {hit:?}, status {:?}: {}", read("status"), read("said"));
    if !ended || read("status").trim() == "0" || !left.is_empty() {
        return Err(format!("the step goes on, or well; left {left:?}\n{story}").into());
    }
    let jobs = read("jobs");
    let counts = jobs.split_whitespace().map(|job| -> Result<usize, String> {
        let records = outcome::records(&site.cluster, &format!("{job}.0"))?;
        let are_told = records.iter().all(|one| ["cancelled", "incomplete"].contains(&one.class.as_str()));
        if are_told {
            Ok(records.len())
        } else {
            Err(format!("the records of {job} say {records:#?}\n{story}"))
        }
    });
    let counts = counts.collect::<Result<Vec<_>, _>>()?;
    if counts != [1, 2] {
        return Err(format!("{counts:?} records of components with 1 and 2 nodes\n{story}").into());
    }
    Ok(())
}

/// In a step of several components a program that kills itself ends alone, as it does without a container: it is not
/// taken for a process of ours that was killed.
///
/// # Errors
/// The other component is ended as well.
pub fn own_death_in_a_component(site: &Site) -> Check {
    let dir = site.env().work_dir("component")?;
    let here = dir.path().display().to_string();
    let tiny = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let in_container = format!("{tiny} --container-mounts={here} --container-workdir={here}");
    // The plugin has looked at the death long before the other one's end.
    let goes_on = "while [ ! -e dead ]; do usleep 100000; done; sleep 4; touch came-to-its-end";
    let dies = "touch dead; kill -KILL $$";
    let component = |script: &str| format!("-N1 -n1 --kill-on-bad-exit=0 {in_container} sh -c '{script}'");
    for (first, second) in [(goes_on, dies), (dies, goes_on)] {
        let step = format!("srun {} : {}", component(first), component(second));
        let words = ["salloc", "--quiet", "-N2", "-n2", "sh", "-c", &step];
        let output = crate::command::run(site.cluster.user_command(dir.path(), words)?, PATIENCE)?;
        let marks = ["dead", "came-to-its-end"].map(|name| dir.path().join(name));
        if output.status.success() || !marks.iter().all(|mark| mark.exists()) {
            return Err(format!("one shall die, the other come to its end\n{output}").into());
        }
        for mark in marks {
            std::fs::remove_file(mark)?;
        }
    }
    Ok(())
}
