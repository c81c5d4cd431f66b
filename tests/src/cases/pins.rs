//! A tag is one image for the whole of a job, whatever the registry has under it meanwhile.

use std::fs;
use std::path::Path;

use super::Site;
use super::uses::spaces_inside;
use crate::cluster::Job;
use crate::command;
use crate::environment::{PATIENCE, WorkDir};
use crate::reached_registry::ReachedRegistry;
use crate::tier::Check;

/// Two images that say which they are, and a repository for them.
pub(super) struct Images {
    pub(super) dir: WorkDir,
    pub(super) tag: String,
    /// Ends with them.
    _registry: ReachedRegistry,
}

impl Images {
    pub(super) fn make(site: &Site, name: &str) -> Result<Self, String> {
        let dir = site.env().work_dir(name)?;
        let registry = site.registry()?;
        let tree = site.env().image_tree("tiny").display().to_string();
        for which in ["one", "two"] {
            site.env().as_user(dir.path(), ["cp", "-r", "--preserve=links", &tree, which])?.success()?;
            dir.write(&format!("{which}/which"), &format!("image {which}\n"))?;
        }
        // A repository of its own, so that nobody has pulled it before.
        let tag = format!("docker://{}/{name}-{}:latest", registry.address(), std::process::id());
        let images = Images { dir, tag, _registry: registry };
        images.point_to(site, "one")?;
        Ok(images)
    }

    fn push(&self, which: &str) -> String {
        format!("situla push --quiet {}/{which} {} >/dev/null", self.dir.path().display(), self.tag)
    }

    pub(super) fn point_to(&self, site: &Site, which: &str) -> Result<(), String> {
        site.env().as_user(self.dir.path(), ["sh", "-c", &self.push(which)])?.success()?;
        Ok(())
    }

    /// The script whose second half comes after the tag was moved.
    fn script(&self, first: &str, second: &str) -> Result<std::path::PathBuf, String> {
        let push = self.push("two");
        self.dir.write("job.sh", &format!("#!/bin/bash\n{first}\n{push} || echo not pushed\n{second}\n"))
    }
}

fn expect(output: &command::Output, wanted: &[&str]) -> Check {
    // Fetching tells how it goes on.
    let got: Vec<&str> = output.stdout.lines().filter(|line| !line.starts_with("fetching ")).collect();
    if got == wanted { Ok(()) } else { Err(format!("wanted {wanted:?}\n{output}").into()) }
}

/// All steps of a batch job have the image that the first had, on every node, by every way to ask for it, also where Slurm does
/// not tell the name of the cluster; the record has its digest, and the next job has the new one.
///
/// # Errors
/// They have not.
pub fn steps_of_a_job(site: &Site) -> Check {
    let images = Images::make(site, "pinned")?;
    let tag = &images.tag;
    let script = images.script(
        &format!("srun -N2 -n2 situla exec {tag} cat /which"),
        &format!(
            "srun -N2 -n2 situla exec {tag} cat /which\n\
             srun -N1 -n1 --export=NONE --container-image={tag} cat /which\n\
             srun -N1 -n1 env -u SLURM_CLUSTER_NAME situla exec {tag} cat /which\n\
             apptainer exec {tag} cat /which"
        ),
    )?;
    let job: Job = site.cluster.sbatch(images.dir.path(), &["-N2"], &script)?;
    expect(&job.output, &["image one"; 7])?;
    let digests = |step: &str| -> Result<Vec<String>, String> {
        // The user's records are of several clusters, and job numbers repeat.
        let name = format!("{}/{}.{step}", site.cluster.name()?, job.id);
        let words = ["situla", "show", "--json", &name].map(str::to_owned);
        let shown = site.env().as_user(images.dir.path(), words)?.success()?.stdout;
        let digest = |line: &str| Some(line.split_once("sha256:")?.1.get(..64)?.to_owned());
        let lines = shown.split(['\n', ',']).filter(|line| line.contains("manifest_digest"));
        Ok(lines.filter_map(digest).collect())
    };
    let (before, after) = (digests("0")?, digests("1")?);
    if before.is_empty() || before[0] != after[0] {
        return Err(format!("the records of the two steps have {before:?} and {after:?}").into());
    }
    let next = site.cluster.srun(images.dir.path(), ["-n1", "situla", "exec", tag, "cat", "/which"])?;
    expect(&next.output, &["image two"])
}

/// A SIF file is pinned like an image of layers.
///
/// # Errors
/// It is not.
pub fn of_sif_files(site: &Site) -> Check {
    let images = Images::make(site, "pinned-sif")?;
    let (tag, dir) = (images.tag.replace("docker:", "oras:"), images.dir.path());
    let push = |which: &str| format!("situla push --quiet {}/{which}.sif {tag} >/dev/null", dir.display());
    let make = "for n in one two; do situla convert --quiet $n $n.sif >/dev/null || exit; done";
    site.env().as_user(dir, ["sh", "-c", &format!("{make}; {}", push("one"))])?.success()?;
    let text = format!(
        "#!/bin/bash\nsrun -N2 -n2 situla exec {tag} cat /which\n{} || echo not pushed\n\
         srun -N2 -n2 situla exec {tag} cat /which\n\
         srun -N1 -n1 --export=NONE --container-image={tag} cat /which\n\
         apptainer exec {tag} cat /which\n",
        push("two")
    );
    let script = images.dir.write("job.sh", &text)?;
    let job: Job = site.cluster.sbatch(dir, &["-N2"], &script)?;
    expect(&job.output, &["image one"; 6])?;
    let next = site.cluster.srun(dir, ["-n1", "situla", "exec", &tag, "cat", "/which"])?;
    expect(&next.output, &["image two"])
}

/// The tasks of an array are one job in that.
///
/// # Errors
/// They have different images.
pub fn tasks_of_an_array(site: &Site) -> Check {
    let images = Images::make(site, "pinned-array")?;
    let run = format!(
        "srun -n1 --container-image={} sh -c 'cat /which; echo $SLURM_ARRAY_TASK_ID; readlink /proc/self/ns/mnt'",
        images.tag
    );
    let script = images
        .dir
        .write("job.sh", &format!("#!/bin/bash\n{run}\n{} || echo not pushed\n", images.push("two")))?;
    let log = images.dir.path().join("array.log");
    // One after the other: the second starts when the tag has moved.
    let words = ["sbatch", "--quiet", "--wait", "--array=0-1%1", "--open-mode=append", "-n1", "--output"];
    let mut command = site.cluster.user_command(images.dir.path(), words)?;
    command.arg(&log).arg(&script);
    let mut output = command::run(command, PATIENCE * 2)?.success()?;
    let log = fs::read_to_string(&log)?;
    spaces_inside(site, &log, 2)?;
    output.stdout =
        log.lines().filter(|line| !line.starts_with("mnt:")).map(|line| format!("{line}\n")).collect();
    expect(&output, &["image one", "0", "image one", "1"])?;
    site.cluster.settled()?;
    Ok(())
}

/// The steps of a script that is given no environment are one job in that.
///
/// # Errors
/// They have different images.
pub fn steps_of_a_bare_script(site: &Site) -> Check {
    let images = Images::make(site, "pinned-bare")?;
    let run = format!("srun -n1 --container-image={} cat /which", images.tag);
    // It has no path of the user's either.
    let push = images.push("two").replacen("situla", &site.env().situla().display().to_string(), 1);
    let text = format!("#!/bin/sh\necho =$COLOUR=\n{run}\n{push} || echo not pushed\n{run}\n");
    let script = images.dir.write("job.sh", &text)?.display().to_string();
    let log = images.dir.path().join("bare.log");
    let words = ["sbatch", "--quiet", "--wait", "--export=NONE", "-n1", "--output"];
    let mut command = site.cluster.user_command(images.dir.path(), words)?;
    command.env("COLOUR", "host").arg(&log).arg(&script);
    let mut output = command::run(command, PATIENCE * 2)?;
    output.stdout = fs::read_to_string(&log)?;
    let output = output.success()?;
    expect(&output, &["==", "image one", "image one"])
}

/// A pin that its user has written himself gives nothing that its digest would not: an image that the site's policy refuses
/// under its name does not come under the name of another.
///
/// # Errors
/// It does.
pub fn forged(site: &Site) -> Check {
    let images = Images::make(site, "pinned-forged")?;
    let (repository, _) = images.tag.rsplit_once(':').ok_or("the name has no tag")?;
    let denied = format!("{repository}-denied:latest");
    let push = ["situla", "push", "--json", "two", &denied];
    let pushed = site.env().as_user(images.dir.path(), push)?.success()?;
    let pushed: serde_json::Value =
        serde_json::from_str(&pushed.stdout).map_err(|e| format!("{e}\n{pushed}"))?;
    let digest = pushed["manifest_digest"].as_str().ok_or("a push tells no digest")?;
    let text = format!(
        "#!/bin/bash\nsitula exec {tag} cat /which\nsitula exec {denied} cat /which\necho status $?\n\
         pins=$(echo ~/.local/state/situla/pins/{cluster}-$SLURM_JOB_ID/*)\nsed -i '1s/.*/{digest}/' $pins\n\
         echo pin $(head -n1 $pins)\nsitula exec {tag} cat /which\necho status $?\n\
         srun -n1 --container-image={tag} cat /which\necho status $?\n",
        tag = images.tag,
        cluster = site.cluster.name()?,
    );
    let script = images.dir.write("job.sh", &text)?;
    let prefix = site.env().situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let policy = prefix.join("etc/situla/policy.toml");
    fs::create_dir_all(policy.parent().ok_or("the policy has no directory")?)?;
    let rule = denied.trim_start_matches("docker://").trim_end_matches(":latest");
    fs::write(&policy, format!("mode = \"enforce\"\n[registry]\ndeny = [\"{rule}\"]\n"))?;
    let job = site.cluster.sbatch(images.dir.path(), &["-N1", "-n1"], &script);
    fs::remove_file(&policy)?;
    let job = job?;
    let told = ["image one", "status ", "pin "];
    let said = job.output.stdout.lines().filter(|line| told.iter().any(|told| line.starts_with(told)));
    let pin = format!("pin {digest}");
    let wanted = ["image one", "status 125", &pin, "status 125", "status 125"];
    if said.ne(wanted) || job.output.stdout.contains("image two") {
        return Err(format!("wanted {wanted:?}\n{}", job.output).into());
    }
    job.output.clone().expect_text("the site's policy refuses")?.expect_text("cannot fetch")?;
    Ok(())
}

/// The components of a heterogeneous job are one job in that.
///
/// # Errors
/// They have different images.
pub fn components_of_a_job(site: &Site) -> Check {
    let images = Images::make(site, "pinned-het")?;
    let run = |group: u32| format!("srun --het-group={group} -n1 situla exec {} cat /which", images.tag);
    let script = images.dir.write(
        "job.sh",
        &format!(
            "#!/bin/bash\n#SBATCH -N1 -n1\n#SBATCH hetjob\n#SBATCH -N1 -n1\n{}\n{} || echo not pushed\n{}\n{}\n",
            run(1),
            images.push("two"),
            run(0),
            run(1)
        ),
    )?;
    let log = images.dir.path().join("het.log");
    let mut command =
        site.cluster.user_command(images.dir.path(), ["sbatch", "--quiet", "--wait", "--output"])?;
    command.arg(&log).arg(&script);
    let mut output = command::run(command, PATIENCE * 2)?.success()?;
    output.stdout = fs::read_to_string(&log)?;
    expect(&output, &["image one"; 3])?;
    site.cluster.settled()?;
    Ok(())
}

/// All tasks of a step that ask at once have one image, though the tag moves at that moment.
///
/// # Errors
/// They have not.
pub fn tasks_at_once(site: &Site) -> Check {
    let images = Images::make(site, "pinned-crowd")?;
    let line = ["-N4", "-n16", "--overcommit", "situla", "exec", &images.tag, "cat", "/which"];
    let (name, running) = site.cluster.start_srun(images.dir.path(), line)?;
    let moved = images.point_to(site, "two");
    let job = site.cluster.job(&name, running.finish(PATIENCE)?.success()?)?;
    moved?;
    let said: Vec<&str> = job.output.stdout.lines().collect();
    if said.len() != 16 || said.iter().any(|line| *line != said[0]) {
        return Err(format!("not one image for all\n{}", job.output).into());
    }
    Ok(())
}
