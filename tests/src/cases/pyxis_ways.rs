//! pyxis's options by every program that takes them, and by variables: `srun`, `sbatch` and `salloc` make the same of them, and
//! refuse them where there is no image.

use std::fs;
use std::path::Path;

use super::faults::{PAYLOAD, never_accepted};
use super::{Site, pyxis};
use crate::command::{self, Output, Running};
use crate::environment::{PATIENCE, WorkDir};
use crate::tier::Check;

/// The programs that take the options.
const PROGRAMS: [&str; 3] = ["srun", "sbatch", "salloc"];

/// What a container is asked to be: options, variables, and what the payload then says of itself.
struct Wish<'a> {
    options: Vec<String>,
    variables: Vec<(&'a str, String)>,
    told: [(&'a str, String); 7],
}

/// Everything that can be switched is switched on, and off again where a variable has switched it on, by options and by
/// variables alone; an environment's file is told what it says.
///
/// # Errors
/// One of the programs makes something else of it.
pub fn of_every_program(site: &Site) -> Check {
    let dir = site.env().work_dir("pyxis-ways")?;
    let image = pyxis::image(&dir, site.env())?;
    let wishes = wishes(site, &dir, &image)?;
    let script = payload(dir.path());
    let path = dir.write("job.sh", &format!("#!/bin/sh\n{script}\n"))?.display().to_string();
    let mut started = Vec::new();
    for (number, wish) in wishes.iter().enumerate() {
        for program in PROGRAMS {
            let log = dir.path().join(format!("{program}-{number}.log"));
            started.push((
                wish,
                program,
                log.clone(),
                start(site, &dir, program, wish, (&script, &path, &log))?,
            ));
        }
    }
    let mut wrong = Vec::new();
    for (wish, program, log, running) in started {
        let mut output = running.finish(PATIENCE * 2)?;
        if program == "sbatch" {
            output.stdout = fs::read_to_string(&log).unwrap_or_default();
        }
        if let Err(story) = judge(site, wish, &output) {
            wrong.push(format!("{program} {:?} {:?}: {story}\n{output}", wish.options, wish.variables));
        }
    }
    site.cluster.settled()?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Every option that needs an image is an error without one; the same as a variable from a profile is not.
///
/// # Errors
/// It does not look as it must.
pub fn without_an_image(site: &Site) -> Check {
    let dir = site.env().work_dir("noimage")?;
    let mut started = Vec::new();
    for (option, names) in [
        ("--container-mounts=/tmp", "--container-mounts"),
        ("--container-workdir=/tmp", "--container-workdir"),
        ("--container-save=./saved.sqsh", "--container-save"),
        ("--container-env=HOME", "--container-env"),
        ("--container-unshare=net", "--container-unshare"),
        ("--container-mount-home", "--container-mount-home"),
        ("--no-container-mount-home", "--container-mount-home"),
        ("--container-remap-root", "--container-remap-root"),
        ("--no-container-remap-root", "--container-remap-root"),
        ("--container-entrypoint", "--container-entrypoint"),
        ("--no-container-entrypoint", "--container-entrypoint"),
        ("--container-entrypoint-log", "--container-entrypoint-log"),
        ("--container-writable", "--container-writable"),
        ("--container-readonly", "--container-writable"),
    ] {
        let line = ["-n1", option].into_iter().chain(PAYLOAD);
        started.push((site.cluster.start_srun(dir.path(), line)?, names));
    }
    for ((name, running), names) in started {
        never_accepted(site, &name, &running.finish(PATIENCE)?, &format!("{names} has no effect without"))?;
    }
    let profile = [("PYXIS_CONTAINER_MOUNTS", "/tmp")];
    let (_, running) =
        site.cluster.start_srun_with(dir.path(), &profile, ["-n1"].into_iter().chain(PAYLOAD))?;
    running.finish(PATIENCE)?.success()?.expect_text("THE-PAYLOAD-RAN")?;
    // As from an outer sbatch that had no image for it: srun hands it on, and the node is asked to run the task.
    let replayed = [("SLURM_SPANK__SLURM_SPANK_OPTION_situla_container_mounts", "/tmp")];
    let (_, running) =
        site.cluster.start_srun_with(dir.path(), &replayed, ["-n1"].into_iter().chain(PAYLOAD))?;
    let output = running.finish(PATIENCE)?.expect_code(1)?;
    let says = |line: &str| {
        let told = line.split_once("came here without its image; start it where this plugin is loaded (job ");
        told.is_some_and(|(_, rest)| rest.ends_with(", step 0)"))
    };
    if !output.stderr.lines().any(says) || output.stdout.contains("THE-PAYLOAD-RAN") {
        return Err(format!("mounts that came without an image\n{output}").into());
    }
    site.cluster.settled()?;
    Ok(())
}

/// Says of each thing that can be switched what has become of it.
fn payload(dir: &Path) -> String {
    format!(
        "yes() {{ \"$@\" 2>/dev/null && echo yes || echo no; }}; \
         echo home $(yes [ -d $HOME/{} ]); echo id $(id -u); echo colour $COLOUR; echo written $(yes touch /etc/x); \
         echo directory $(pwd); echo memory $(stat -f -c %T /memory 2>/dev/null || echo none); \
         echo spaces $(readlink /proc/self/ns/ipc) $(readlink /proc/self/ns/uts) $(readlink /proc/self/ns/mnt)",
        dir.file_name().unwrap_or_default().to_string_lossy()
    )
}

fn wishes<'a>(site: &Site, dir: &WorkDir, image: &str) -> Result<Vec<Wish<'a>>, String> {
    let uid = site.env().uid()?.to_string();
    let path = image.strip_prefix("--container-image=").unwrap_or_default().to_owned();
    let options = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let switched_on = || {
        [
            ("home", "yes".to_owned()),
            ("id", "0".to_owned()),
            ("colour", "host".to_owned()),
            ("written", "yes".to_owned()),
            ("directory", "/etc".to_owned()),
            ("memory", "tmpfs".to_owned()),
            ("spaces", "new".to_owned()),
        ]
    };
    let variables = || {
        let names =
            ["PYXIS_CONTAINER_MOUNT_HOME", "PYXIS_CONTAINER_REMAP_ROOT", "PYXIS_CONTAINER_ENTRYPOINT"];
        let names = names.into_iter().chain(["PYXIS_CONTAINER_ENTRYPOINT_LOG", "PYXIS_CONTAINER_WRITABLE"]);
        let texts = [
            ("PYXIS_CONTAINER_ENV", "COLOUR"),
            ("PYXIS_CONTAINER_UNSHARE", "ipc,uts"),
            ("PYXIS_CONTAINER_WORKDIR", "/etc"),
            ("PYXIS_CONTAINER_MOUNTS", "tmpfs:/memory"),
        ];
        names.map(|name| (name, "1")).chain(texts).map(|(name, value)| (name, value.to_owned())).collect()
    };
    let environment = format!(
        "image = \"{path}\"\nworkdir = \"/usr/bin\"\nwritable = true\nentrypoint = true\n[env]\nCOLOUR = \"file\"\n"
    );
    let environment = dir.write("file.toml", &environment)?.display().to_string();
    let mut all = Vec::new();
    let mut told = switched_on();
    all.push(Wish {
        options: options(&[
            image,
            "--container-mount-home",
            "--container-remap-root",
            "--container-entrypoint",
            "--container-entrypoint-log",
            "--container-writable",
            "--container-env=COLOUR",
            "--container-unshare=ipc,uts",
            "--container-workdir=/etc",
            "--container-mounts=tmpfs:/memory",
        ]),
        variables: Vec::new(),
        told: told.clone(),
    });
    let mut by_variables: Vec<(&str, String)> = variables();
    by_variables.push(("PYXIS_CONTAINER_IMAGE", path));
    all.push(Wish { options: Vec::new(), variables: by_variables, told: told.clone() });
    for (place, value) in [(0, "no"), (1, uid.as_str()), (3, "no")] {
        told[place].1 = value.to_owned();
    }
    all.push(Wish {
        options: options(&[
            image,
            "--no-container-mount-home",
            "--no-container-remap-root",
            "--no-container-entrypoint",
            "--container-readonly",
        ]),
        variables: variables(),
        told: told.clone(),
    });
    let by_file = ["no", &uid, "file", "yes", "/usr/bin", "none", "old"];
    for (slot, value) in told.iter_mut().zip(by_file) {
        slot.1 = value.to_owned();
    }
    // What a profile says is not meant for it, not even another image.
    let mut with_image: Vec<(&str, String)> = variables();
    with_image.push(("PYXIS_CONTAINER_IMAGE", "/of/a/profile.sqsh".to_owned()));
    all.push(Wish { options: vec![format!("--environment={environment}")], variables: with_image, told });
    Ok(all)
}

/// Starts the payload by a program.
fn start(
    site: &Site,
    dir: &WorkDir,
    program: &str,
    wish: &Wish<'_>,
    (script, path, log): (&str, &str, &Path),
) -> Result<Running, String> {
    let log = log.display().to_string();
    let before: &[&str] = match program {
        "sbatch" => &["sbatch", "--quiet", "--wait", "-n1", "-N1", "--overcommit", "--output", &log],
        _ => &[program, "--quiet", "-n1", "-N1", "--overcommit"],
    };
    let after: &[&str] = match program {
        "sbatch" => &[path],
        "salloc" => &["srun", "--quiet", "sh", "-c", script],
        _ => &["sh", "-c", script],
    };
    let options = wish.options.iter().map(String::as_str);
    let words = before.iter().copied().chain(options).chain(after.iter().copied());
    let mut command = site.cluster.user_command(dir.path(), words)?;
    command.env("COLOUR", "host").envs(wish.variables.iter().map(|(name, value)| (*name, value)));
    command::start(command)
}

/// Compares what the payload has said with what was wished.
fn judge(site: &Site, wish: &Wish<'_>, output: &Output) -> Result<(), String> {
    if !output.status.success() {
        return Err("it failed".to_owned());
    }
    super::uses::spaces_inside(site, &output.stdout, 1)?;
    let said = |what: &str| output.stdout.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    for (what, wanted) in &wish.told {
        let got = said(what).ok_or_else(|| format!("it says nothing of its {what}"))?;
        let fits = match (*what, wanted.as_str()) {
            ("spaces", wanted) => is_of_a_node(site, got)? == (wanted == "old"),
            _ => got == wanted,
        };
        if !fits {
            return Err(format!("{what}: wanted {wanted}, got {got}"));
        }
    }
    let has_entry_point = output.stdout.starts_with("entry point of ");
    let asks = |name: &str| wish.options.iter().any(|option| option.contains(name));
    let wanted = !asks("--no-container-entrypoint");
    match has_entry_point == wanted {
        true => Ok(()),
        false => Err(format!("the entry point ran: {has_entry_point}")),
    }
}

/// Whether both of the first two namespaces are a node's; that one is and the other is not makes no sense.
fn is_of_a_node(site: &Site, spaces: &str) -> Result<bool, String> {
    let own = |kind: &str| -> Result<bool, String> {
        let space = spaces.split(' ').find(|space| space.starts_with(kind));
        let space = space.ok_or_else(|| format!("no {kind} in {spaces}"))?;
        let of_node = |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        Ok(site
            .cluster
            .nodes()
            .values()
            .filter_map(|pid| of_node(pid).ok())
            .any(|one| one.as_os_str() == space))
    };
    match (own("ipc")?, own("uts")?) {
        (ipc, uts) if ipc == uts => Ok(ipc),
        _ => Err(format!("one of two namespaces is new: {spaces}")),
    }
}
