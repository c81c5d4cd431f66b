//! pyxis's options and variables beside image, mounts and working directory, judged by what the payload sees.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Site;
use crate::cluster::Job;
use crate::command::Output;
use crate::environment::{PATIENCE, TestEnv, WorkDir};
use crate::tier::Check;

/// A directory as an image, with a configuration as a registry's image has it.
pub(super) fn image(dir: &WorkDir, env: &TestEnv) -> Result<String, String> {
    let root = dir.path().join("image");
    let tree = env.image_tree("tiny");
    let copy =
        ["cp".as_ref(), "-r".as_ref(), "--preserve=links".as_ref(), tree.as_os_str(), root.as_os_str()];
    env.as_user(dir.path(), copy)?.success()?;
    let config = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {
        "Entrypoint": ["/bin/sh", "-c", "echo entry point of $#; exec \"$@\"", "sh"],
        "Env": ["COLOUR=image", "LANG=image", "PATH=/bin:/usr/bin"], "WorkingDir": "/usr"}}"#;
    env.as_user(dir.path(), ["mkdir", "-p", "image/.situla"])?.success()?;
    dir.write("image/.situla/config.json", config)?;
    Ok(format!("--container-image={}", root.display()))
}

/// Runs one task with `options` and `variables`, whatever comes of it.
fn task(site: &Site, dir: &WorkDir, variables: &[(&str, &str)], words: &[&str]) -> Result<Output, String> {
    let line = ["-n1"].into_iter().chain(words.iter().copied());
    let (_, running) = site.cluster.start_srun_with(dir.path(), variables, line)?;
    running.finish(PATIENCE)
}

/// What the task printed.
fn said(output: Output) -> Result<Vec<String>, String> {
    Ok(output.success()?.stdout.lines().map(str::to_owned).collect())
}

fn expect(what: &str, got: &[String], wanted: &[&str]) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: wanted {wanted:?}, got {got:?}")) }
}

/// `--container-mount-home`, `--container-remap-root`, `--container-entrypoint`, `--container-env` and
/// `--container-unshare`, each with its opposite.
///
/// # Errors
/// One has no effect, or another one.
pub fn switches(site: &Site) -> Check {
    let dir = site.env().work_dir("switches")?;
    let image = image(&dir, site.env())?;
    let home = site.env().home()?.display().to_string();
    let uid = site.env().uid()?.to_string();
    let run = |options: &[&str], script: &str| {
        let words = [&[image.as_str()], options, &["sh", "-c", script]].concat();
        said(task(site, &dir, &[("COLOUR", "host"), ("SHADE", "host"), ("LANG", "host")], &words)?)
    };
    let has_home = format!("[ -d {} ] && echo home", dir.path().display());
    for (options, script, wanted) in [
        (&["--container-mount-home"][..], has_home.as_str(), &["home"][..]),
        (&[], &format!("[ -d {home} ] || echo none"), &["none"]),
        (&["--no-container-mount-home"], &format!("[ -d {home} ] || echo none"), &["none"]),
        (&["--container-remap-root"], "id -u; id -g", &["0", "0"]),
        (&["--no-container-remap-root"], "id -u", &[uid.as_str()]),
        (&["--container-entrypoint"], "echo command", &["entry point of 3", "command"]),
        (&["--container-entrypoint", "--container-entrypoint-log"], "true", &["entry point of 3"]),
        (&["--no-container-entrypoint"], "echo command", &["command"]),
        (&[], "echo $COLOUR $SHADE $LANG; pwd", &["image host image", "/usr"]),
        (&["--container-env=COLOUR,LANG,ABSENT"], "echo $COLOUR $SHADE $LANG", &["host host host"]),
        (&["--container-env=ABSENT"], "echo $COLOUR $LANG", &["image image"]),
    ] {
        let got = run(options, script).map_err(|error| format!("{options:?}: {error}"))?;
        expect(&format!("{options:?} {script}"), &got, wanted)?;
    }
    namespaces(site, &dir, &image)
}

/// What `--container-unshare` makes new, and what stays the host's.
fn namespaces(site: &Site, dir: &WorkDir, image: &str) -> Check {
    let kinds = ["net", "ipc", "uts"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join("; ");
    let host = said(task(site, dir, &[], &["--nodelist", site.cluster.a_node(), "sh", "-c", &script])?)?;
    for (option, new) in [
        (None, [false; 3]),
        (Some("--container-unshare=net"), [true, false, false]),
        (Some("--container-unshare=ipc,uts"), [false, true, true]),
    ] {
        let words: Vec<&str> = [image, "--nodelist", site.cluster.a_node()]
            .into_iter()
            .chain(option)
            .chain(["sh", "-c", &script])
            .collect();
        let got = said(task(site, dir, &[], &words)?)?;
        let differ: Vec<bool> = host.iter().zip(&got).map(|(host, own)| host != own).collect();
        if differ != new {
            return Err(format!("{option:?}: the host's are {host:?}, the container's {got:?}").into());
        }
    }
    let refused = task(site, dir, &[], &[image, "--container-unshare=pid", "true"])?;
    if refused.status.success() {
        return Err(format!("an unknown namespace was taken\n{refused}").into());
    }
    refused.expect_text("choose from net, ipc and uts")?;
    Ok(())
}

/// A root that can be written to is one for all tasks of a node, and goes with the container.
///
/// # Errors
/// A task sees another root, something stays, or what is only read was written.
pub fn writable(site: &Site) -> Check {
    let dir = site.env().work_dir("writable")?;
    let sqsh = format!("--container-image={}", site.images.path("tiny.sqsh"));
    for image in [&sqsh, &image(&dir, site.env())?] {
        let script = "if [ $SLURM_LOCALID = 0 ]; then rm /etc/situla-image-witness; echo new > /etc/written; \
                      else n=0; while [ ! -s /etc/written ] && [ $n -lt 200 ]; do usleep 50000; n=$((n+1)); done; \
                      cat /etc/written; [ -e /etc/situla-image-witness ] || echo gone; fi";
        let words = ["-N1", "-n2", "--overcommit", image, "--container-writable", "sh", "-c", script];
        let job: Job = site.cluster.srun(dir.path(), words)?;
        let got: Vec<String> = job.output.clone().success()?.stdout.lines().map(str::to_owned).collect();
        expect("the other task", &got, &["new", "gone"])?;
        let after = "[ -e /etc/situla-image-witness ] && [ ! -e /etc/written ] && echo as before; \
                     touch /etc/written 2>/dev/null || echo read-only";
        for option in [None, Some("--container-readonly")] {
            let words: Vec<&str> =
                [image.as_str()].into_iter().chain(option).chain(["sh", "-c", after]).collect();
            expect("the next step", &said(task(site, &dir, &[], &words)?)?, &["as before", "read-only"])?;
        }
    }
    Ok(())
}

/// Variables stand for options, options win, and what makes no sense is refused where there is an image.
///
/// # Errors
/// One does not.
pub fn variables(site: &Site) -> Check {
    let dir = site.env().work_dir("pyxis-variables")?;
    let image = image(&dir, site.env())?;
    let image_path = image.strip_prefix("--container-image=").unwrap_or_default();
    let script = "id -u; touch /etc/x 2>/dev/null && echo written; echo $COLOUR; [ -e /extra ] && echo extra";
    let uid = site.env().uid()?.to_string();
    let mounts = format!("{}:/extra", dir.path().display());
    let all = [
        ("PYXIS_CONTAINER_IMAGE", image_path),
        ("PYXIS_CONTAINER_REMAP_ROOT", "true"),
        ("PYXIS_CONTAINER_READONLY", "0"),
        ("PYXIS_CONTAINER_ENV", "COLOUR"),
        ("PYXIS_CONTAINER_ENTRYPOINT", "yes"),
        ("PYXIS_CONTAINER_ENTRYPOINT_LOG", "1"),
        ("PYXIS_CONTAINER_MOUNTS", &mounts),
        ("COLOUR", "host"),
    ];
    let got = said(task(site, &dir, &all, &["sh", "-c", script])?)?;
    expect("by variables", &got, &["entry point of 3", "0", "written", "host", "extra"])?;
    let options = [
        "--no-container-remap-root",
        "--container-readonly",
        "--no-container-entrypoint",
        "sh",
        "-c",
        script,
    ];
    let got = said(task(site, &dir, &all, &options)?)?;
    expect("options win", &got, &[&uid, "host", "extra"])?;
    let bad = [("PYXIS_CONTAINER_WRITABLE", "maybe")];
    let refused = task(site, &dir, &bad, &[&image, "true"])?;
    if refused.status.success() {
        return Err(format!("a value that is neither true nor false was taken\n{refused}").into());
    }
    refused.expect_text("PYXIS_CONTAINER_WRITABLE=maybe")?;
    // In a profile, it does no harm to who wants no container.
    task(site, &dir, &bad, &["true"])?.success()?;
    Ok(())
}

/// Options that contradict each other are refused in srun; what salloc was told, an srun below it can change.
///
/// # Errors
/// They are not, or it cannot.
pub fn contradictions(site: &Site) -> Check {
    let dir = site.env().work_dir("contradictions")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    for (options, told) in [
        (&["--container-writable", "--container-readonly"][..], "given twice"),
        (&["--container-mount-home", "--no-container-mount-home"], "given twice"),
        (&["--container-workdir=/etc", "--container-workdir=/usr"], "--container-workdir was given twice"),
        (&["--container-image=/elsewhere.sqsh"], "--container-image was given twice"),
        // What makes no sense anywhere is refused before anybody waits for it.
        (&["--container-env=A,,B"], "names no variable"),
        (&["--container-unshare=pid"], "choose from net, ipc and uts"),
        (&["--container-mounts=data:/data"], "a path that begins with"),
        (&["--container-mounts=/a:/b:readonly"], "readonly"),
    ] {
        let line = ["-n1", &image].into_iter().chain(options.iter().copied()).chain(["true"]);
        let (name, running) = site.cluster.start_srun(dir.path(), line)?;
        let refused = running.finish(PATIENCE)?;
        if refused.status.success() || site.cluster.knows(&name)? {
            return Err(format!("{options:?} made a job\n{refused}").into());
        }
        refused.expect_text(told)?;
    }
    let twice = ["--container-workdir=/etc", "--container-workdir=/etc", "pwd"];
    let words = [&[image.as_str(), image.as_str()], &twice[..]].concat();
    expect("said twice", &said(task(site, &dir, &[], &words)?)?, &["/etc"])?;
    let script = "touch /etc/x 2>/dev/null && echo written; pwd";
    let line = [
        "salloc",
        "--quiet",
        "-n1",
        &image,
        "--container-writable",
        "--container-workdir=/etc",
        "srun",
        "--quiet",
    ];
    for (options, wanted) in [
        (&[][..], &["written", "/etc"][..]),
        (&["--container-readonly", "--container-workdir=/usr"], &["/usr"]),
    ] {
        let words = [&line[..], options, &["sh", "-c", script]].concat();
        let output = crate::command::run(site.cluster.user_command(dir.path(), words)?, PATIENCE)?;
        expect(&format!("below salloc {options:?}"), &said(output)?, wanted)?;
    }
    let here = dir.path().display();
    let lists = [format!("--container-mounts={here}:/one"), format!("--container-mounts={here}:/two")];
    let other = site.env().image_tree("demo").display().to_string();
    dir.write("other.toml", &format!("image = \"{other}\"\nwritable = false\n"))?;
    let own = format!("--container-mounts={here}:/three");
    let look = "ls -d /one /two /three 2>/dev/null; pwd; cut -d, -f1 /etc/situla-image-witness";
    for (options, wanted) in [
        (&[][..], &["/one", "/two", "/etc", "situla tiny image"][..]),
        (&[own.as_str()], &["/one", "/three", "/two", "/etc", "situla tiny image"]),
        // An environment is whole: neither salloc's image nor its directory.
        (&["--environment=./other.toml"], &["/", "situla demo image"]),
    ] {
        let line = ["salloc", "--quiet", "-n1", &image, &lists[0], &lists[1], "--container-workdir=/etc"];
        let words = [&line[..], &["srun", "--quiet"], options, &["sh", "-c", look]].concat();
        let output = crate::command::run(site.cluster.user_command(dir.path(), words)?, PATIENCE)?;
        expect(&format!("lists below salloc {options:?}"), &said(output)?, wanted)?;
    }
    site.cluster.settled()?;
    Ok(())
}

/// Mounts add up, a backslash takes a comma or a colon for part of a name, and `umount:` leaves out a mount that
/// every container has.
///
/// # Errors
/// They do not.
pub fn mounts(site: &Site) -> Check {
    let dir = site.env().work_dir("pyxis-mounts")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let odd = dir.path().join("a,b:c");
    fs::create_dir(&odd).map_err(|error| error.to_string())?;
    dir.write("a,b:c/file", "odd name\n")?;
    let odd = odd.display().to_string().replace(',', "\\,").replace(':', "\\:");
    let (first, second) = (
        format!("--container-mounts={odd}:/odd"),
        format!("--container-mounts={}:/here", dir.path().display()),
    );
    let words = [&image, &first, &second, "sh", "-c", "cat /odd/file; cat /here/a,b:c/file"];
    expect("both", &said(task(site, &dir, &[], &words)?)?, &["odd name", "odd name"])?;
    let device = "stat -c %d /tmp /";
    let own = said(task(site, &dir, &[], &[&image, "sh", "-c", device])?)?;
    let without =
        said(task(site, &dir, &[], &[&image, "--container-mounts=umount:/tmp", "sh", "-c", device])?)?;
    let host = fs::metadata("/tmp").map_err(|error| error.to_string())?.dev().to_string();
    task(site, &dir, &[], &[&image, "--container-mounts=umount:/nothing", "true"])?
        .expect_code(125)?
        .expect_text("nothing is mounted at /nothing")?;
    if own[0] == own[1] || without[0] != without[1] || without[0] == host {
        return Err(format!("/tmp and / are on {own:?}, and with umount:/tmp on {without:?}").into());
    }
    Ok(())
}
