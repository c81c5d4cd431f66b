//! Environment definition files, by `--environment`, judged by what the payload sees.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Site;
use super::uses::spaces_inside;
use crate::command::Output;
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::outcome;
use crate::tier::Check;

/// Runs one task with `words` and these variables, whatever comes of it.
fn task(
    site: &Site,
    dir: &WorkDir,
    variables: &[(&str, &str)],
    words: &[&str],
) -> Result<(String, Output), String> {
    let line = ["-n1"].into_iter().chain(words.iter().copied());
    let (name, running) = site.cluster.start_srun_with(dir.path(), variables, line)?;
    Ok((name, running.finish(PATIENCE)?))
}

fn expect(what: &str, output: Output, wanted: &[&str]) -> Check {
    let output = output.success()?;
    let got: Vec<&str> = output.stdout.lines().collect();
    if got == wanted { Ok(()) } else { Err(format!("{what}: wanted {wanted:?}\n{output}").into()) }
}

/// Each key does what it says, and an option counts instead.
///
/// # Errors
/// One does not.
pub fn every_key(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-keys")?;
    let image = site.images.path("tiny.sqsh");
    dir.write("data", "bound\n")?;
    let edf = format!(
        "image = \"{image}\"\nworkdir = \"${{PLACE}}\"\nwritable = true\nentrypoint = false\n\
         mounts = [\"./data:/odd/data:ro,private\", \"${{PWD}}:/here\"]\ndevices = [\"/dev/null\"]\n\
         [env]\nMODE = \"${{SPEED:-slow}} $${{SPEED}}\"\nFROM_HOST = \"\"\nLANG = \"xx\"\n\
         [annotations]\nteam.name = \"blue\"\ncom.hooks.ssh.enabled = \"true\"\n[colours]\nred = 1\n"
    );
    dir.write("all.toml", &edf)?;
    let script = format!(
        "head -n1 {WITNESS} | cut -d, -f1; pwd; cat /odd/data /here/data; echo x > /etc/new && echo written; \
         echo \"$MODE|${{FROM_HOST-gone}}|$LANG\""
    );
    let variables = [("PLACE", "/usr"), ("SPEED", "fast"), ("FROM_HOST", "1")];
    let wanted = ["situla tiny image", "/usr", "bound", "bound", "written", "fast ${SPEED}|gone|xx"];
    let words = ["--environment=./all.toml", "sh", "-c", &script];
    let (name, output) = task(site, &dir, &variables, &words)?;
    let job = site.cluster.job(&name, output.clone())?;
    let output =
        output.expect_text("nobody knows colours")?.expect_text("com.hooks.ssh.enabled has no effect")?;
    expect("./all.toml", output, &wanted)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if records.len() != 1 || records[0].class != "ok" {
        return Err(format!("expected one record of class ok, got {records:#?}").into());
    }
    let annotations = &records[0].record["start"]["plan"]["spec"]["annotations"];
    let files = dir.path().join("all.toml").display().to_string();
    if annotations["team.name"] != "blue" || annotations["situla.environment"] != files {
        return Err(format!("the record has the annotations {annotations}").into());
    }
    dir.write("kept.toml", &format!("image = \"{image}\"\nwritable = false\n"))?;
    let script = "touch /etc/new 2>/dev/null && echo written; [ -e /etc/new ] || echo as before";
    let words = ["--environment=./kept.toml", "sh", "-c", script];
    expect("writable = false", task(site, &dir, &[], &words)?.1, &["as before"])?;
    let options = ["--environment=all.toml", "--container-readonly", "--container-workdir=/etc"];
    let words = [&options[..], &["sh", "-c", "pwd; touch /etc/new 2>/dev/null || echo read-only"]].concat();
    expect("options count instead", task(site, &dir, &variables, &words)?.1, &["/etc", "read-only"])?;
    // Tasks of a node share the root, as they do with the option.
    let script = "if [ $SLURM_LOCALID = 0 ]; then echo one > /etc/shared; else n=0; \
                  while [ ! -s /etc/shared ] && [ $n -lt 200 ]; do usleep 50000; n=$((n+1)); done; cat /etc/shared; fi";
    let line = ["-N1", "-n2", "--overcommit", "--environment=./all.toml", "sh", "-c", script];
    let (_, running) = site.cluster.start_srun_with(dir.path(), &variables, line)?;
    expect("two tasks", running.finish(PATIENCE)?, &["one"])
}

/// Without `EDF_PATH` a name is looked for in `~/.edf`.
fn in_the_users_own_place(site: &Site, dir: &WorkDir) -> Check {
    let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let home = site.env().home()?.to_path_buf();
    let add = format!("mkdir -p .edf && cp {}/edf/base.toml .edf/{name}.toml", dir.path().display());
    site.env().as_user(&home, ["sh", "-c", &add])?.success()?;
    let option = format!("--environment={name}");
    let output = task(site, dir, &[], &[&option, "sh", "-c", "echo $A $B"]);
    let remove = format!("rm .edf/{name}.toml && rmdir --ignore-fail-on-non-empty .edf");
    site.env().as_user(&home, ["sh", "-c", &remove])?.success()?;
    expect("in ~/.edf", output?.1, &["base base"])
}

/// Image files are mounted, to all tasks of a node alike, and nowhere but in their container.
///
/// # Errors
/// They are not.
pub fn image_mounts(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-images")?;
    site.env().as_user(dir.path(), ["mkdir", "-p", "tree/sub"])?.success()?;
    dir.write("tree/sub/file", "in the image\n")?;
    let convert = ["situla", "convert", "tree", "data.sqsh"];
    site.env().as_user(dir.path(), convert)?.success()?;
    let (image, sif) = (site.images.path("tiny.sqsh"), site.images.path("tiny.sif"));
    let edf = format!(
        "image = \"{image}\"\nmounts = [\"./data.sqsh:/odd/data:sqsh\", \"{sif}:/odd/sif:ro,sqsh\", \
         \"./none.sqsh:/odd/none:sqsh+nofail\"]\n"
    );
    dir.write("data.toml", &edf)?;
    let more = format!("--container-mounts={image}:/more:sqsh");
    let script = format!(
        "cat /odd/data/sub/file; head -n1 /odd/sif{WITNESS} /more{WITNESS} | grep -c 'situla tiny image'; \
         ls /odd; touch /odd/data/new 2>/dev/null || echo read-only; \
         grep -c ' /odd/[a-z]* .* fuse.situla ' /proc/self/mountinfo; readlink /proc/self/ns/mnt"
    );
    let host = std::fs::read_link("/proc/self/ns/mnt").map_err(|error| error.to_string())?;
    let line =
        ["-N1", "-n2", "--overcommit", "--label", "--environment=./data.toml", &more, "sh", "-c", &script];
    let (name, running) = site.cluster.start_srun_with(dir.path(), &[], line)?;
    let output = running.finish(PATIENCE)?.success()?;
    let of = |task: &str| -> Vec<String> {
        let own = output.stdout.lines().filter_map(|line| line.strip_prefix(&format!("{task}: ")));
        own.map(str::to_owned).collect()
    };
    let (first, second) = (of("0"), of("1"));
    let wanted = ["in the image", "2", "data", "sif", "read-only", "2"];
    if first != second || first.len() != wanted.len() + 1 || first[..wanted.len()] != wanted {
        return Err(format!("wanted {wanted:?} and one namespace\n{output}").into());
    }
    if host.display().to_string() == first[wanted.len()] {
        return Err(format!("the namespace is the host's\n{output}").into());
    }
    let job = site.cluster.job(&name, output)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let is_one = records.len() == 1 && records[0].class == "ok" && records[0].exits.len() == 2;
    let steps: Vec<&str> = job.steps.values().map(|step| step.state.as_str()).collect();
    if !is_one || steps.iter().any(|state| *state != "COMPLETED") {
        return Err(
            format!("expected one record of two tasks, all completed, got {records:#?} {steps:?}").into()
        );
    }
    Ok(())
}

/// Devices bring what the site's specifications say, to all tasks alike; hooks run once for a container; who names one that is not there hears
/// which there are.
///
/// # Errors
/// They do not.
pub fn devices(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-devices")?;
    let prefix = site.env().situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let settings = prefix.join("etc/situla/site.toml");
    if settings.exists() {
        return Err(format!("{} is there already", settings.display()).into());
    }
    std::fs::create_dir_all(settings.parent().ok_or("the settings have no directory")?)?;
    let here = dir.path().display();
    std::fs::write(&settings, format!("[devices]\npath = [\"{here}/none\", \"{here}/cdi\"]\n"))?;
    let result = devices_by_name(site, &dir);
    std::fs::remove_file(&settings)?;
    result
}

fn devices_by_name(site: &Site, dir: &WorkDir) -> Check {
    let image = site.images.path("tiny.sqsh");
    let here = dir.path().display();
    site.env().as_user(dir.path(), ["mkdir", "cdi"])?.success()?;
    dir.write("data", "of the device\n")?;
    let hook = dir.write("hook", &format!("#!/bin/sh\ncat > /dev/null; echo hook >> {here}/log\n"))?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    let json = format!(
        "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"vendor.com/device\", \"devices\": [\
         {{\"name\": \"zero\", \"containerEdits\": {{\"env\": [\"VENDOR=yes\", \"OTHER=device\"], \
         \"deviceNodes\": [{{\"path\": \"/odd/zero\", \"hostPath\": \"/dev/zero\"}}], \
         \"mounts\": [{{\"hostPath\": \"{here}/data\", \"containerPath\": \"/odd/data\", \"options\": [\"ro\"]}}], \
         \"hooks\": [{{\"hookName\": \"createContainer\", \"path\": \"{}\"}}]}}}}, \
         {{\"name\": \"gone\", \"containerEdits\": {{\"deviceNodes\": [{{\"path\": \"/dev/no-such-node\"}}]}}}}]}}",
        hook.display()
    );
    dir.write("cdi/vendor.json", &json)?;
    let yaml = "cdiVersion: 0.5.0\nkind: other.com/device\ndevices:\n- name: full\n  containerEdits:\n    \
                deviceNodes:\n    - path: /odd/full\n      hostPath: /dev/full\n";
    dir.write("cdi/other.yaml", yaml)?;
    dir.write("cdi/broken.json", "{")?;
    let edf =
        |devices: &str| format!("image = \"{image}\"\ndevices = [{devices}]\n[env]\nOTHER = \"mine\"\n");
    dir.write("good.toml", &edf("\"vendor.com/device=zero\", \"/dev/null\", \"other.com/device=full\""))?;
    let script = "head -c 3 /odd/zero | od -An -tx1 | tr -d ' '; cat /odd/data; echo x 2>/dev/null > /odd/full || echo full; \
                  echo $VENDOR $OTHER; test -w /odd/data || echo read-only";
    let line = ["-N1", "-n2", "--overcommit", "--environment=./good.toml", "sh", "-c", script];
    let (name, running) = site.cluster.start_srun_with(dir.path(), &[], line)?;
    let output = running.finish(PATIENCE)?.success()?;
    let mut got: Vec<&str> = output.stdout.lines().collect();
    got.sort_unstable();
    let wanted = ["000000", "full", "of the device", "read-only", "yes mine"];
    if got != wanted.iter().flat_map(|line| [*line, *line]).collect::<Vec<_>>() {
        return Err(format!("wanted {wanted:?} twice\n{output}").into());
    }
    let log = std::fs::read_to_string(dir.path().join("log"))?;
    if log != "hook\n" {
        return Err(format!("the hook of one container has left {log:?}").into());
    }
    let job = site.cluster.job(&name, output)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let plan = records.first().map(|record| record.record["start"]["plan"]["bindings"].to_string());
    if !plan.is_some_and(|plan| plan.contains("device vendor.com/device=zero")) {
        return Err(format!("the record does not say why: {records:#?}").into());
    }
    for (device, part) in [
        (
            "vendor.com/device=none",
            "there are other.com/device=full, vendor.com/device=gone, vendor.com/device=zero",
        ),
        ("vendor.com/device=none", "broken.json is not understood"),
        ("vendor.com/device=gone", "needs /dev/no-such-node, which does not exist on"),
    ] {
        dir.write("bad.toml", &edf(&format!("\"{device}\"")))?;
        let (name, output) = task(site, dir, &[], &["--environment=./bad.toml", "true"])?;
        let job = site.cluster.job(&name, output.clone())?;
        output.expect_code(125)?.expect_text(part)?;
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        let step = job.steps.get("0").map(|step| (step.state.as_str(), step.exit.as_str()));
        if records.len() != 1 || records[0].class != "engine-bad-option" || step != Some(("FAILED", "125:0"))
        {
            return Err(format!("{device}: {records:#?} {step:?}").into());
        }
    }
    Ok(())
}

/// Slurm's tools are inside of an image that has none, and whose C library is of another kind: steps that a program starts there
/// are steps of its job, with their exit statuses, containers and records.
///
/// # Errors
/// They are not.
pub fn steps_from_inside(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-slurm")?;
    let image = site.images.path("tiny.sqsh");
    dir.write("slurm.toml", &format!("image = \"{image}\"\nslurm = true\n"))?;
    let script = format!(
        "readlink /proc/self/ns/mnt >&2; srun --overlap -n2 -l sh -c 'test -e {WITNESS} || echo on the host'; echo status $?; \
         srun --overlap -n1 --container-image={image} sh -c 'readlink /proc/self/ns/mnt >&2; cat {WITNESS}' | cut -d, -f1; \
         srun --overlap -n1 sh -c 'exit 7'; echo status $?; squeue -h -j $SLURM_JOB_ID -o %i"
    );
    let line = ["-N1", "-n1", "--overcommit", "--environment=./slurm.toml", "sh", "-c", &script];
    let (name, running) = site.cluster.start_srun_with(dir.path(), &[], line)?;
    let output = running.finish(PATIENCE)?.success()?;
    let mut got: Vec<&str> = output.stdout.lines().collect();
    let job = site.cluster.job(&name, output.clone())?;
    got.get_mut(..2).map(<[&str]>::sort_unstable);
    let wanted = ["0: on the host", "1: on the host", "status 0", "situla tiny image", "status 7", &job.id];
    if got != wanted {
        return Err(format!("wanted {wanted:?}\n{output}").into());
    }
    // The one that calls srun, and the one that srun starts.
    spaces_inside(site, &output.stderr, 2)?;
    let states: Vec<(&str, &str, &str)> = job
        .steps
        .iter()
        .filter(|(step, _)| step.bytes().all(|byte| byte.is_ascii_digit()))
        .map(|(step, account)| (step.as_str(), account.state.as_str(), account.exit.as_str()))
        .collect();
    let wanted = [
        ("0", "COMPLETED", "0:0"),
        ("1", "COMPLETED", "0:0"),
        ("2", "COMPLETED", "0:0"),
        ("3", "FAILED", "7:0"),
    ];
    if states != wanted {
        return Err(format!("wanted {wanted:?}, accounting has {states:?}").into());
    }
    for step in ["0", "2"] {
        let records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
        if records.len() != 1 || records[0].class != "ok" {
            return Err(format!("step {step}: {records:#?}").into());
        }
    }
    // What it needs of the node is named.
    dir.write("slurm.conf", "AuthType=auth/munge\nAuthInfo=socket=/no/such/socket\n")?;
    let conf = format!("SLURM_CONF={}/slurm.conf", dir.path().display());
    let words = ["-n1", "env", &conf, "situla", "exec", "--slurm", &image, "true"];
    let (_, running) = site.cluster.start_srun_with(dir.path(), &[], words)?;
    running
        .finish(PATIENCE)?
        .expect_code(125)?
        .expect_text("there is no socket of munge at /no/such/socket")?;
    let words = ["-n1", "--environment=./slurm.toml", "--container-remap-root", "true"];
    let (_, running) = site.cluster.start_srun_with(dir.path(), &[], words)?;
    running.finish(PATIENCE)?.expect_code(125)?.expect_text("another user to Slurm")?;
    Ok(())
}

/// Steps that a program starts inside run on all nodes of its job, on the host and in containers, and tell the program what they
/// print and how they ended.
///
/// # Errors
/// They do not.
pub fn steps_on_other_nodes_from_inside(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-slurm-nodes")?;
    let (image, here) = (site.images.path("tiny.sqsh"), dir.path().display());
    let edf =
        format!("image = \"{image}\"\nslurm = true\nmounts = [\"{here}:{here}\"]\nworkdir = \"{here}\"\n");
    dir.write("slurm.toml", &edf)?;
    let witness = format!("$(cut -d, -f1 {WITNESS} 2>/dev/null || echo on the host)");
    let inside = format!(
        "echo outer {witness}; readlink /proc/self/ns/mnt >&2
        srun --overlap -N2 -n2 sh -c 'echo $SLURMD_NODENAME {witness}' | sort
        srun --overlap -N2 -n2 sh -c 'exit $((3 * SLURM_PROCID))' 2>/dev/null; echo status $?
        srun --overlap -N2 -n2 --container-image={image} sh -c 'readlink /proc/self/ns/mnt >&2; echo $SLURMD_NODENAME {witness}' | sort"
    );
    dir.write("inside.sh", &inside)?;
    let script =
        dir.write("job.sh", "#!/bin/sh\nsrun -N1 -n1 --environment=./slurm.toml sh ./inside.sh 2>errors\n")?;
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let [first, second] = nodes[..] else { return Err("there are no two nodes".into()) };
    let job = site.cluster.sbatch(dir.path(), &["-N2", "-n2", "-w", &nodes.join(",")], &script)?;
    let errors = std::fs::read_to_string(dir.path().join("errors"))?;
    let wanted = [
        "outer situla tiny image".to_owned(),
        format!("{first} on the host"),
        format!("{second} on the host"),
        "status 3".to_owned(),
        format!("{first} situla tiny image"),
        format!("{second} situla tiny image"),
    ];
    if job.output.stdout.lines().ne(wanted.iter().map(String::as_str)) {
        return Err(format!("wanted {wanted:?}\n{}\n{errors}", job.output).into());
    }
    spaces_inside(site, &errors, 3)?;
    let states = ["0", "1", "2", "3"].map(|step| job.step(step).map(|account| account.exit.as_str()));
    if states != [Ok("0:0"), Ok("0:0"), Ok("3:0"), Ok("0:0")] {
        return Err(format!("accounting has {:?}", job.steps).into());
    }
    for (step, n_records) in [("0", 1), ("3", 2)] {
        let records = outcome::records(&site.cluster, &format!("{}.{step}", job.id))?;
        if records.len() != n_records || records.iter().any(|record| record.class != "ok") {
            return Err(format!("step {step}: {records:#?}").into());
        }
    }
    Ok(())
}

/// A name is found where the user or `EDF_PATH` has it, in a batch job too, and what it inherits is in it;
/// `situla environment` shows the same.
///
/// # Errors
/// It is not.
pub fn names_and_inheritance(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-names")?;
    site.env().as_user(dir.path(), ["mkdir", "edf"])?.success()?;
    let image = site.images.path("tiny.sqsh");
    dir.write("edf/base.toml", &format!("image = \"{image}\"\n[env]\nA = \"base\"\nB = \"base\"\n"))?;
    dir.write("edf/own.toml", "base_environment = \"base\"\n[env]\nB = \"own\"\n")?;
    dir.write("edf/more.toml", "[env]\nB = \"more\"\nC = \"more\"\n")?;
    dir.write("edf/both.toml", "base_environment = [\"base\", \"more\"]\n[env]\nC = \"own\"\n")?;
    let path = dir.path().join("edf").display().to_string();
    let variables = [("EDF_PATH", path.as_str()), ("PYXIS_CONTAINER_IMAGE", "/of/a/profile.sqsh")];
    let words = ["--environment=own", "sh", "-c", "echo $A $B"];
    expect("by name", task(site, &dir, &variables, &words)?.1, &["base own"])?;
    let words = ["--environment=both", "sh", "-c", "echo $A $B $C"];
    expect("of two", task(site, &dir, &variables, &words)?.1, &["base more own"])?;
    in_the_users_own_place(site, &dir)?;
    // srun finds the file: the node knows nothing of EDF_PATH then.
    let words = ["--export=NONE", "--environment=own", "sh", "-c", "echo $A $B"];
    expect("with nothing exported", task(site, &dir, &variables, &words)?.1, &["base own"])?;
    let script = dir.write("job.sh", "#!/bin/bash\nsrun --environment=own sh -c 'echo $A $B'\n")?;
    let export = format!("--export=ALL,EDF_PATH={path}");
    let job = site.cluster.sbatch(dir.path(), &["-N1", "-n1", &export], &script)?;
    expect("in a batch job", job.output, &["base own"])?;
    let shown = ["env", &format!("EDF_PATH={path}"), "situla", "environment", "own"].map(str::to_owned);
    let shown = site.env().as_user(dir.path(), shown)?.success()?;
    for part in ["\"A\": \"base\"", "\"B\": \"own\"", "edf/base.toml", "edf/own.toml"] {
        shown.clone().expect_text(part)?;
    }
    Ok(())
}

/// What is wrong with a file is said by srun, before there is a job.
///
/// # Errors
/// There is one, or it is not said.
pub fn refused(site: &Site) -> Check {
    let dir = site.env().work_dir("edf-refused")?;
    let image = site.images.path("tiny.sqsh");
    site.env()
        .as_user(dir.path(), ["sh", "-c", &format!("head -c 200000 {image} > short.sqsh")])?
        .success()?;
    for (text, part) in [
        ("image = 1", "image must be a string"),
        ("base_environment = \"nowhere\"", "no nowhere.toml in"),
        ("writable = true", "names no image"),
        (&format!("image = \"{image}\"\nmounts = [\"/a\"]"), "has no destination"),
        (
            &format!("image = \"{image}\"\nmounts = [\"./bad.toml:/b:sqsh\"]"),
            "is neither a SquashFS nor a SIF image",
        ),
        (
            &format!("image = \"{image}\"\nmounts = [\"./short.sqsh:/b:sqsh\"]"),
            "cannot read the SquashFS image",
        ),
        (&format!("image = \"{image}\"\nmounts = [\"{image}:/b:sqsh+rw\"]"), "says both sqsh and rw"),
        (
            &format!("image = \"{image}\"\ndevices = [\"nvidia.com/gpu\"]"),
            "\"nvidia.com/gpu\" names no device",
        ),
    ] {
        dir.write("bad.toml", text)?;
        let (name, output) = task(site, &dir, &[], &["--environment=./bad.toml", "true"])?;
        if output.status.success() || site.cluster.knows(&name)? {
            return Err(format!("{text:?} made a job\n{output}").into());
        }
        output.expect_text(part)?;
    }
    // One that inherits itself, and a row of more than may inherit each other.
    let here = dir.path().display();
    for level in 0..12 {
        let next = format!("base_environment = \"{here}/level{}.toml\"\n", level + 1);
        dir.write(&format!("level{level}.toml"), &next)?;
    }
    dir.write("bad.toml", &format!("base_environment = \"{here}/bad.toml\"\n"))?;
    for (file, part) in [("bad", "inherits from itself"), ("level0", "levels of environments")] {
        let option = format!("--environment=./{file}.toml");
        let (name, output) = task(site, &dir, &[], &[&option, "true"])?;
        if output.status.success() || site.cluster.knows(&name)? {
            return Err(format!("{file} made a job\n{output}").into());
        }
        output.expect_text(part)?;
    }
    // A variable may be one of the job's: the node says that it is not.
    dir.write("bad.toml", "image = \"${NOT_SET}\"")?;
    let (_, output) = task(site, &dir, &[], &["--environment=./bad.toml", "true"])?;
    output.expect_code(125)?.expect_text("${NOT_SET}, which is not set")?;
    Ok(())
}
