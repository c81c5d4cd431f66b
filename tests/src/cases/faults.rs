//! What goes wrong, and how it must look: an error that names the thing, a failed status in `srun` and in
//! accounting, a record with the right class, no payload on the host, and no drained node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Site;
use super::bare::expect_account;
use super::privileged::with_bad_layer;
use super::uses::{expect_ok, spaces_inside};
use crate::cluster::Job;
use crate::command::{Output, Running, wait_until};
use crate::environment::PATIENCE;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit, Outcome};
use crate::tier::Check;

/// A payload that says where it ran; none of these cases may let it run at all.
pub(super) const PAYLOAD: [&str; 3] = ["sh", "-c", "echo THE-PAYLOAD-RAN $(readlink /proc/self/ns/mnt)"];

/// Exit status of our own failures: the native command line and the plugin, and the `apptainer` personality.
const NATIVE: i32 = 125;
const APPTAINER: i32 = 255;

/// What the one line about a fault must hold, and what the record must say.
#[derive(Debug, Clone, Copy)]
struct Fault<'a> {
    /// The thing that is wrong.
    names: &'a str,
    /// Words of what can be done about it, which belong to this fault alone.
    remedy: &'a str,
    /// The class of the record.
    class: &'a str,
}

/// What every remedy for an image file that cannot be read says.
const DAMAGED: &str = "copy or pull it again";
/// What every remedy for bytes that do not match their digest says.
const CHANGED: &str = "changed the bytes";

/// Starts the payload by the plugin and by `apptainer exec`, at once, and judges both.
fn both(site: &Site, image: &str, extra: (&[&str], &[&str]), on: &[&str], fault: Fault<'_>) -> Check {
    let dir = site.env().work_dir("fault")?;
    let option = format!("--container-image={image}");
    let plugin = on.iter().copied().chain([option.as_str()]).chain(extra.0.iter().copied()).chain(PAYLOAD);
    let plugin = site.cluster.start_srun(dir.path(), ["-n1"].into_iter().chain(plugin))?;
    let words =
        ["apptainer", "exec"].into_iter().chain(extra.1.iter().copied()).chain([image]).chain(PAYLOAD);
    let apptainer =
        site.cluster.start_srun(dir.path(), ["-n1"].into_iter().chain(on.iter().copied()).chain(words))?;
    for ((name, running), code) in [(plugin, NATIVE), (apptainer, APPTAINER)] {
        let job = finish(site, &name, running)?;
        failed(site, &job, code, fault)?;
    }
    Ok(())
}

fn finish(site: &Site, name: &str, running: Running) -> Result<Job, String> {
    site.cluster.job(name, running.finish(PATIENCE)?)
}

/// The one judgement for all faults: output, accounting, and the record.
fn failed(site: &Site, job: &Job, code: i32, fault: Fault<'_>) -> Check {
    refused(job, code, fault)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    // Of one task, with the status that it ended with.
    if records.len() != 1 || records[0].class != fault.class || records[0].exits != [Exit::Code(code.into())]
    {
        return Err(format!("expected one record of class {}, got {records:#?}", fault.class).into());
    }
    site.cluster.settled()?;
    Ok(())
}

/// Output and accounting alone, for what is no run of a container and so has no record.
fn refused(job: &Job, code: i32, fault: Fault<'_>) -> Check {
    if job.output.stdout.contains("THE-PAYLOAD-RAN") {
        return Err(format!("the payload ran\n{}", job.output).into());
    }
    lines_of_tasks(job, code, fault, 1)
}

/// Status and accounting of a step in which `n_tasks` tasks fail, each with one line.
fn lines_of_tasks(job: &Job, code: i32, fault: Fault<'_>, n_tasks: usize) -> Check {
    job.output.clone().expect_code(code)?;
    // sacct of 22.05 shows the low seven bits of an exit code: 255 reads 127 there, without a container too.
    let exit = format!("{}:0", code & 0x7f);
    expect_account(job, "FAILED", &exit, "FAILED", &exit)?;
    let slurms = |line: &&str| ["srun:", "slurmstepd:"].iter().any(|by| line.starts_with(by));
    let ours: Vec<&str> = job.output.stderr.lines().filter(|l| !l.trim().is_empty() && !slurms(l)).collect();
    if ours.len() != n_tasks {
        return Err(format!("expected {n_tasks} lines of ours, got {}\n{}", ours.len(), job.output).into());
    }
    for words in [fault.names, fault.remedy, &format!("(job {}, step 0, node ", job.id)] {
        if !ours.iter().all(|line| line.contains(words)) {
            return Err(format!("a line does not say {words:?}\n{}", job.output).into());
        }
    }
    Ok(())
}

/// A step of two tasks on each of two nodes, by the plugin and by `apptainer exec`; some or all of its nodes
/// have a fault. Every task of such a node fails, in time and with one line, and each node's record says why.
fn on_two_nodes(site: &Site, image: &str, sick: &[&str], fault: Fault<'_>) -> Check {
    /// Tasks whose leader fails must not wait for it.
    const AT_ONCE: Duration = Duration::from_secs(20);
    let dir = site.env().work_dir("two-nodes")?;
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let option = format!("--container-image={image}");
    let list = nodes.join(",");
    let layout = ["-N2", "--ntasks-per-node=2", "-w", &list];
    let mut started = Vec::new();
    for (enter, code) in [(&[option.as_str()][..], NATIVE), (&["apptainer", "exec", image], APPTAINER)] {
        let args = layout.into_iter().chain(enter.iter().copied()).chain(PAYLOAD);
        started.push((site.cluster.start_srun(dir.path(), args)?, code));
    }
    for ((name, running), code) in started {
        let job = finish(site, &name, running)?;
        if job.output.took > AT_ONCE {
            return Err(format!("it took {:?}\n{}", job.output.took, job.output).into());
        }
        lines_of_tasks(&job, code, fault, 2 * sick.len())?;
        for node in &nodes {
            let lines = job.output.stderr.matches(&format!("node {node})")).count();
            if lines != if sick.contains(node) { 2 } else { 0 } {
                return Err(format!("{lines} lines about node {node}\n{}", job.output).into());
            }
        }
        let ran = job.output.stdout.matches("THE-PAYLOAD-RAN").count();
        if ran != 2 * (nodes.len() - sick.len()) {
            return Err(format!("{ran} tasks ran\n{}", job.output).into());
        }
        let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
        for node in &nodes {
            let (class, exit) = if sick.contains(node) { (fault.class, code) } else { ("ok", 0) };
            let of_node = |one: &&Outcome| one.record["start"]["identity"]["node"] == **node;
            // One for both tasks, whether they met or not.
            let fits = match records.iter().filter(of_node).collect::<Vec<_>>()[..] {
                [one] => one.class == class && one.exits == [Exit::Code(exit.into()); 2],
                _ => false,
            };
            if !fits {
                return Err(format!("expected one of {class} on {node}, the records say {records:#?}").into());
            }
        }
    }
    site.cluster.settled()?;
    Ok(())
}

/// The image is not there.
///
/// # Errors
/// It does not look as it must.
pub fn missing_image(site: &Site) -> Check {
    let fault = Fault {
        names: "no-such-image.sqsh",
        remedy: "visible on the compute node",
        class: "engine-image-missing",
    };
    both(site, "./no-such-image.sqsh", (&[], &[]), &[], fault)?;
    // Each task says it for itself, as each would without a container.
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    on_two_nodes(site, "./no-such-image.sqsh", &nodes, fault)
}

/// Half of the image is missing: srun says so of a file that it sees, and of one that was cut since, the node.
///
/// # Errors
/// It does not look as it must.
pub fn truncated_image(site: &Site) -> Check {
    let dir = site.env().work_dir("truncated")?;
    for name in ["tiny.sqsh", "tiny.sif"] {
        let half = dir.path().join(format!("half-{name}"));
        let bytes = fs::read(site.images.path(name))?;
        let cut = &bytes[..bytes.len() / 2];
        let names = format!("half-{name}");
        let fault = Fault { names: &names, remedy: DAMAGED, class: "engine-image-corrupt" };
        let image = half.display().to_string();
        let option = format!("--container-image={image}");

        fs::write(&half, &bytes)?;
        let script = dir.write("script", "#!/bin/sh\necho THE-PAYLOAD-RAN\n")?;
        let held = ["--hold".to_owned(), option.clone()];
        let (job, id) = site.cluster.submit(dir.path(), &held, &script)?;
        fs::write(&half, cut)?;
        let output = site.cluster.admin(&["scontrol", "release", &id])?;
        let waits =
            || site.cluster.admin(&["squeue", "-h", "-j", &id]).is_ok_and(|o| !o.stdout.trim().is_empty());
        if !wait_until(PATIENCE, || !waits()) {
            site.cluster.admin(&["scancel", &id])?;
            return Err("the job does not end".into());
        }
        let said = fs::read_to_string(dir.path().join(format!("{job}.log")))?;
        let job = site.cluster.job(&job, output)?;
        let records = outcome::records(&site.cluster, &format!("{id}.batch"))?;
        let exit = format!("{NATIVE}:0");
        let well = [&job.account, job.step("batch")?]
            .iter()
            .all(|account| (account.state.as_str(), &account.exit) == ("FAILED", &exit));
        if !well
            || said.contains("THE-PAYLOAD-RAN")
            || ![names.as_str(), DAMAGED].iter().all(|words| said.contains(words))
            || records.len() != 1
            || (records[0].class.as_str(), &records[0].exits[..])
                != (fault.class, &[Exit::Code(NATIVE.into())])
        {
            return Err(format!("{job:?}: it said {said:?}, and the records {records:#?}").into());
        }

        let args = ["-n1", option.as_str()].into_iter().chain(PAYLOAD);
        let (job, running) = site.cluster.start_srun(dir.path(), args)?;
        let output = running.finish(PATIENCE)?;
        never_accepted(site, &job, &output, &names)?;
        output.expect_text(DAMAGED)?;
        let args = ["-n1", "apptainer", "exec", image.as_str()].into_iter().chain(PAYLOAD);
        let (job, running) = site.cluster.start_srun(dir.path(), args)?;
        failed(site, &finish(site, &job, running)?, APPTAINER, fault)?;
    }
    Ok(())
}

/// Something done to an image.
type Change<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;

/// An image that is cut short or overwritten while a step runs from it: reads fail with EIO, no process of ours is killed, a program
/// that touches a mapped page is, as mmap(2) has it for any file, and the step says that the image was changed. One that is replaced by another file of its name is no fault: the step goes on with
/// the old one. By the plugin and by `apptainer exec`.
///
/// # Errors
/// It is called something else.
pub fn image_changes_under_a_job(site: &Site) -> Check {
    let dir = site.env().work_dir("changed")?;
    let here = dir.path().display().to_string();
    let path = |name: &str| dir.path().join(name);
    // Everything that it needs afterwards it has loaded before. What it maps is the largest file that it has not read.
    let script = "import mmap, os, sys, time
tag, mapped, bad = sys.argv[1], sys.argv[2] == 'mapped', []
for line in open('/proc/self/maps'):
    name = line.split()[-1]
    if name.startswith('/'):
        with open(name, 'rb') as file:
            file.read()
if mapped:
    used = open('/proc/self/maps').read()
    found = [os.path.join(place, name) for place, _, names in os.walk('/usr/lib') for name in names]
    large = max((path for path in found if not os.path.islink(path) and path not in used), key=os.path.getsize)
    with open(large, 'rb') as file:
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
open('began-' + tag, 'w').close()
while not os.path.exists('go-' + tag):
    time.sleep(0.05)
if mapped:
    n_seen = len(pages[::4096])
    with open('said-' + tag, 'w') as file:
        file.write(f'{n_seen} pages')
    os._exit(0)
for place, _, names in os.walk('/usr/lib'):
    for name in names:
        try:
            with open(os.path.join(place, name), 'rb') as file:
                file.read()
        except FileNotFoundError:
            pass
        except OSError as error:
            bad.append(error.errno)
with open('said-' + tag, 'w') as file:
    file.write(f'{len(bad)} of {sorted(set(bad))}')
os._exit(7 if bad else 0)";
    let changes: [(&str, Change<'_>); 3] = [
        ("truncated", &|image| fs::OpenOptions::new().write(true).open(image)?.set_len(1 << 20)),
        ("overwritten", &|image| {
            let length = usize::try_from(fs::metadata(image)?.len()).unwrap_or(0);
            let mut file = fs::OpenOptions::new().write(true).open(image)?;
            std::io::Write::write_all(&mut file, &vec![0xa5; length])
        }),
        ("replaced", &|image| {
            let new = image.with_extension("new");
            fs::write(&new, b"not an image")?;
            fs::rename(new, image)
        }),
    ];
    let mounts = format!("--container-mounts={here}");
    let workdir = format!("--container-workdir={here}");
    for (name, change) in changes {
        let mut started = Vec::new();
        for (plugin, reads) in [(true, "read"), (false, "read"), (true, "mapped"), (false, "mapped")] {
            let tag = format!("{name}-{plugin}-{reads}");
            let image = path(&format!("{tag}.sqsh"));
            fs::copy(site.images.path("demo.sqsh"), &image)?;
            let (image, option) =
                (image.display().to_string(), format!("--container-image={}", image.display()));
            let line: Vec<&str> = if plugin {
                vec!["-n1", &option, &mounts, &workdir]
            } else {
                vec!["-n1", "apptainer", "exec", &image]
            };
            let line = line.into_iter().chain(["python3", "-c", script, &tag, reads]);
            started.push((plugin, reads, tag.clone(), site.cluster.start_srun(dir.path(), line)?));
        }
        let all_began = || started.iter().all(|(_, _, tag, _)| path(&format!("began-{tag}")).exists());
        let began = wait_until(PATIENCE, all_began);
        for (_, _, tag, _) in &started {
            change(&path(&format!("{tag}.sqsh")))?;
            fs::write(path(&format!("go-{tag}")), b"")?;
        }
        for (plugin, reads, tag, (job_name, running)) in started {
            let job = finish(site, &job_name, running)?;
            if !began {
                return Err(format!("not all began\n{}", job.output).into());
            }
            let said = fs::read_to_string(path(&format!("said-{tag}"))).unwrap_or_default();
            if name == "replaced" {
                job.output.clone().success().map_err(|story| format!("{story}\n{said}"))?;
                let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
                if records.len() != 1 || records[0].class != "ok" {
                    return Err(format!("{tag}: {records:#?}").into());
                }
                continue;
            }
            // EIO; and of a page SIGBUS, with which the program ends before it can say anything.
            let (told, end) = match reads {
                "mapped" => (said.is_empty(), "signal 7"),
                _ => (said.ends_with(" of [5]"), "status 7"),
            };
            if !told {
                return Err(format!("{tag}: no error was told to the payload\n{said}\n{}", job.output).into());
            }
            let names = format!("{tag}.sqsh was changed while it was used, and the program ended with {end}");
            let remedy = "leaves running jobs the old one";
            let fault = Fault { names: &names, remedy, class: "engine-image-changed" };
            failed(site, &job, if plugin { NATIVE } else { APPTAINER }, fault)?;
        }
    }
    Ok(())
}

/// A layer's bytes do not match its digest: conversion refuses, and no file appears under the target's name.
///
/// # Errors
/// It does not look as it must.
pub fn wrong_layer(site: &Site) -> Check {
    let dir = site.env().work_dir("layer")?;
    let layout = dir.path().join("layout");
    site.env()
        .as_user(
            dir.path(),
            ["cp".as_ref(), "-r".as_ref(), site.env().image_layout("tiny").as_os_str(), layout.as_os_str()],
        )?
        .success()?;
    // The biggest blob is the layer. One bit of it, in the middle, makes another valid-looking file.
    let blobs = fs::read_dir(layout.join("blobs/sha256"))?.flatten();
    let layer =
        blobs.max_by_key(|b| b.metadata().map_or(0, |m| m.len())).ok_or("the layout has no blobs")?.path();
    let mut bytes = fs::read(&layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes)?;
    let digest = layer.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let source = format!("oci:{}", layout.display());
    let job = site.cluster.srun(dir.path(), ["-n1", "situla", "convert", &source, "out.sqsh"])?;
    // A conversion runs no container, so it has no record.
    let fault = Fault { names: &digest[..12], remedy: CHANGED, class: "engine-digest-mismatch" };
    refused(&job, NATIVE, fault)?;
    let left: Vec<_> =
        fs::read_dir(dir.path())?.flatten().map(|e| e.file_name()).filter(|n| n != "layout").collect();
    if left.is_empty() { Ok(()) } else { Err(format!("conversion failed and left {left:?}").into()) }
}

/// The same from a registry, which a task asks when it starts.
///
/// # Errors
/// It does not look as it must.
pub fn wrong_layer_in_a_registry(site: &Site) -> Check {
    forget_pulled(site)?;
    let registry = site.registry()?;
    with_bad_layer(&site.desk(), |_, layer| {
        let source = format!("docker://{}/tiny:1", registry.address());
        let fault = Fault { names: layer, remedy: CHANGED, class: "engine-digest-mismatch" };
        both(site, &source, (&[], &[]), &[], fault)
    })
}

/// Empties the user's store, so that an image is fetched again.
///
/// # Errors
/// It cannot be emptied.
pub(super) fn forget_pulled(site: &Site) -> Check {
    let home = site.env().home()?.to_path_buf();
    site.env().as_user(&home, ["rm", "-rf", ".cache/situla"])?.success()?;
    Ok(())
}

/// The site's policy refuses images below a directory; others run on.
///
/// # Errors
/// It does not look as it must.
pub fn policy_denial(site: &Site) -> Check {
    let dir = site.env().work_dir("denied")?;
    let image = dir.path().join("tiny.sqsh");
    fs::copy(site.images.path("tiny.sqsh"), &image)?;
    let prefix = site.env().situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let policy = prefix.join("etc/situla/policy.toml");
    fs::create_dir_all(policy.parent().ok_or("the policy has no directory")?)?;
    fs::write(&policy, format!("mode = \"enforce\"\n[files]\ndeny = [\"{}\"]\n", dir.path().display()))?;
    let fault = Fault {
        names: "files.deny",
        remedy: "use an image from another directory",
        class: "engine-policy-denied",
    };
    let denied = both(site, &image.display().to_string(), (&[], &[]), &[], fault);
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let allowed = site.cluster.srun(dir.path(), ["-n1", &option, "true"]);
    fs::remove_file(&policy)?;
    denied?;
    allowed?.output.success()?;
    Ok(())
}

/// The site's policy refuses options of the plugin, by their names and by those that the command lines have for the same, and
/// what an environment file asks for like options.
///
/// # Errors
/// One passes.
pub fn refused_options(site: &Site) -> Check {
    let dir = site.env().work_dir("refused-options")?;
    let image = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let plain = format!("image = \"{}\"\nwritable = false\n", site.images.path("tiny.sqsh"));
    dir.write("plain.toml", &plain)?;
    dir.write("env.toml", &format!("{plain}[env]\nA = \"1\"\n"))?;
    dir.write("writable.toml", &plain.replace("false", "true"))?;
    let prefix = site.env().situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let policy = prefix.join("etc/situla/policy.toml");
    fs::create_dir_all(policy.parent().ok_or("the policy has no directory")?)?;
    let mut wrong = Vec::new();
    for (refused, options) in [
        ("remap-root", &[image.as_str(), "--container-remap-root"][..]),
        ("fakeroot", &[&image, "--container-remap-root"]),
        ("writable", &[&image, "--container-writable"]),
        ("writable-tmpfs", &[&image, "--container-writable"]),
        ("entrypoint", &[&image, "--container-entrypoint"]),
        ("mount-home", &[&image, "--container-mount-home"]),
        ("env", &[&image, "--container-env=A"]),
        ("net", &[&image, "--container-unshare=net"]),
        ("environment", &["--environment=./plain.toml"]),
        ("env", &["--environment=./env.toml"]),
        ("writable", &["--environment=./writable.toml"]),
    ] {
        fs::write(&policy, format!("mode = \"enforce\"\n[options]\nrefuse = [\"{refused}\"]\n"))?;
        let line = ["-n1"].into_iter().chain(options.iter().copied()).chain(PAYLOAD);
        let job = site.cluster.srun(dir.path(), line);
        let denied = job.and_then(|job| {
            failed(
                site,
                &job,
                NATIVE,
                Fault { names: refused, remedy: "options.refuse", class: "engine-policy-denied" },
            )
            .map_err(|error| format!("{error:?}"))
        });
        wrong.extend(denied.err().map(|why| format!("{refused} {options:?}: {why}")));
    }
    fs::write(&policy, "mode = \"enforce\"\n[options]\nrefuse = [\"writable\", \"env\"]\n")?;
    let allowed = site.cluster.srun(dir.path(), ["-n1", "--environment=./plain.toml", "true"]);
    fs::remove_file(&policy)?;
    allowed?.output.success()?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// An option nobody knows: refused by `srun`, and by both command lines inside a step.
///
/// # Errors
/// It does not look as it must.
pub fn unknown_option(site: &Site) -> Check {
    let dir = site.env().work_dir("option")?;
    let image = site.images.path("tiny.sqsh");
    let (name, running) =
        site.cluster.start_srun(dir.path(), ["-n1", "--container-colour=red"].into_iter().chain(PAYLOAD))?;
    let output = running.finish(PATIENCE)?;
    if output.status.success() || site.cluster.knows(&name)? || !output.stderr.contains("container-colour") {
        return Err(format!("srun took it\n{output}").into());
    }
    // A wrong command line is a usage error, not a failure of the engine.
    for (program, code, remedy) in
        [("situla", 2, "see situla --help"), ("apptainer", 1, "see apptainer --help")]
    {
        let args = ["-n1", program, "exec", "--colour", &image];
        let job = site.cluster.srun(dir.path(), args.into_iter().chain(PAYLOAD))?;
        let fault = Fault { names: "unknown option --colour", remedy, class: "engine-bad-option" };
        failed(site, &job, code, fault)?;
    }
    Ok(())
}

/// The source of a mount does not exist.
///
/// # Errors
/// It does not look as it must.
pub fn missing_mount_source(site: &Site) -> Check {
    let extra: (&[&str], &[&str]) =
        (&["--container-mounts=/no/such/dir:/data"], &["--bind", "/no/such/dir:/data"]);
    let fault = Fault {
        names: "/no/such/dir",
        remedy: "create it, or leave the bind out",
        class: "engine-bind-source-missing",
    };
    both(site, &site.images.path("tiny.sqsh"), extra, &[], fault)?;
    // An image that srun does not see may be on the node.
    let extra: (&[&str], &[&str]) = (
        &["--container-mounts=/no/such/dir.sqsh:/data:sqsh"],
        &["--bind", "/no/such/dir.sqsh:/data:image-src=/"],
    );
    both(site, &site.images.path("tiny.sqsh"), extra, &[], fault)
}

/// The node lets nobody open /dev/fuse, or has no driver for it; other nodes of the same step have.
///
/// # Errors
/// It does not look as it must.
pub fn no_fuse(site: &Site) -> Check {
    let class = "engine-no-fuse";
    let closed = Fault { names: "you may not open /dev/fuse", remedy: "`chmod 0666 /dev/fuse`", class };
    sick_node(site, "nofuse", |sick, node| {
        let image = site.images.path("tiny.sqsh");
        both(sick, &image, (&[], &[]), &["-w", node], closed)?;
        on_two_nodes(sick, &image, &[node], closed)
    })?;
    let absent = Fault { names: "/dev/fuse does not exist", remedy: "`modprobe fuse`", class };
    sick_node(site, "nodriver", |sick, node| {
        both(sick, &site.images.path("tiny.sqsh"), (&[], &[]), &["-w", node], absent)
    })
}

/// The node forbids user namespaces.
///
/// # Errors
/// It does not look as it must.
pub fn no_user_namespaces(site: &Site) -> Check {
    let fault = Fault {
        names: "user namespace",
        remedy: "sysctl user.max_user_namespaces=",
        class: "engine-no-userns",
    };
    sick_node(site, "nouserns", |sick, node| {
        both(sick, &site.images.path("tiny.sqsh"), (&[], &[]), &["-w", node], fault)
    })
}

/// Runs `check` while the first node has a fault.
fn sick_node(site: &Site, kind: &str, check: impl FnOnce(&Site, &str) -> Check) -> Check {
    let mut cluster = site.cluster.clone();
    let node = cluster.a_node().to_owned();
    let fault = cluster.fault(&node, kind)?;
    let sick = Site { cluster, images: site.images.clone() };
    // The fault changes mounts and may restart slurmd, so what is left is looked for while it lasts.
    let before = Snapshot::take(sick.env(), Some(&sick.cluster))?;
    check(&sick, &node)?;
    before.expect_clean()?;
    drop(fault);
    Ok(())
}

/// `--pty`: in the container, on a terminal.
///
/// # Errors
/// The task ran on the host, or has no terminal, or accounting or the record call it something else.
pub fn pty(site: &Site) -> Check {
    let dir = site.env().work_dir("pty")?;
    let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let line = format!(
        "srun --job-name={name} -n1 --pty --container-image={} \
         sh -c 'cat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt; tty; test -t 0 && test -t 1 && test -t 2 && echo three'",
        site.images.path("tiny.sqsh")
    );
    // srun --pty wants a terminal; script(1) gives it one.
    let command = site.cluster.user_command(dir.path(), ["script", "-qec", &line, "/dev/null"])?;
    let job = site.cluster.job(&name, crate::command::run(command, PATIENCE)?)?;
    let output = job.output.clone().success()?.expect_text("situla tiny image")?;
    let is_terminal = |line: &str| {
        line.trim_end().strip_prefix("/dev/pts/").is_some_and(|number| number.parse::<u32>().is_ok())
    };
    if output.stdout.contains("ON-THE-HOST")
        || !output.stdout.lines().any(is_terminal)
        || !output.stdout.lines().any(|line| line.trim_end() == "three")
    {
        return Err(format!("not in the container, or on no terminal\n{output}").into());
    }
    spaces_inside(site, &output.stdout, 1)?;
    expect_ok(site, &job, 1)
}

/// `sbatch --container-image`: the script in the container, or refused.
///
/// # Errors
/// The script ran on the host.
pub fn batch_script_with_options(site: &Site) -> Check {
    let dir = site.env().work_dir("script")?;
    let script = "#!/bin/sh\ncat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt\n";
    let script = dir.write("job.sh", script)?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let (name, mut output) = submit(site, dir.path(), &[&option, &script.display().to_string()])?;
    if output.stdout.trim().is_empty() {
        return never_accepted(site, &name, &output, "--container-image");
    }
    // What was printed inside stands in the file alone; sbatch itself printed the job's number.
    output.stdout = fs::read_to_string(dir.path().join(LOG)).unwrap_or_default();
    spaces_inside(site, &output.stdout, 1)?;
    in_or_refused(site, &name, &output)
}

/// The file to which a batch script of these cases writes.
const LOG: &str = "batch.log";

/// Calls `sbatch --wait`, and returns the job's name with what sbatch itself printed.
fn submit(site: &Site, dir: &Path, args: &[&str]) -> Result<(String, Output), String> {
    // The working directory's name is used once.
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = ["sbatch", "--parsable", "--wait", "-N1", "--output", LOG, "--job-name", &name];
    let command = site.cluster.user_command(dir, words.into_iter().chain(args.iter().copied()))?;
    Ok((name, crate::command::run(command, PATIENCE)?))
}

/// A submission that our plugin refused: a line of it names `names`, and there is no job.
pub(super) fn never_accepted(site: &Site, name: &str, output: &Output, names: &str) -> Check {
    let said = output.stderr.lines().any(|line| line.contains("situla: ") && line.contains(names));
    if output.status.success()
        || output.timed_out
        || !said
        || ["THE-PAYLOAD-RAN", "ON-THE-HOST"].iter().any(|ran| output.stdout.contains(ran))
        || site.cluster.knows(name)?
    {
        return Err(format!("it was not refused with {names:?}\n{output}").into());
    }
    Ok(())
}

/// Options that reach a step by way of an allocation or a profile count as if they were given to it.
///
/// # Errors
/// They are lost, or refused where they must be taken, or taken where they must be refused.
pub fn inherited_options(site: &Site) -> Check {
    let dir = site.env().work_dir("inherited")?;
    let tiny = site.images.path("tiny.sqsh");
    let image = format!("--container-image={tiny}");
    dir.write("fact", "a fact of the host\n")?;
    let mounts = format!("--container-mounts={}:/x", dir.path().display());

    // The image from the allocation, the mounts from the step.
    let name = format!("{}-salloc", dir.path().file_name().unwrap_or_default().to_string_lossy());
    let words = ["salloc", "--quiet", "--job-name", &name, "-N1", "-n1", &image, "srun", "-n1", &mounts];
    let script = ["cat", "/etc/situla-image-witness", "/x/fact"];
    let command = site.cluster.user_command(dir.path(), words.into_iter().chain(script))?;
    let job = site.cluster.job(&name, crate::command::run(command, PATIENCE)?)?;
    job.output.clone().success()?.expect_text("situla tiny image")?.expect_text("a fact of the host")?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if records.len() != 1 || records[0].class != "ok" {
        return Err(format!("expected one record of class ok, got {records:#?}").into());
    }

    // Mounts for an allocation, and no image by any way: there is neither a job nor a step.
    let name = format!("{}-none", dir.path().file_name().unwrap_or_default().to_string_lossy());
    let words = ["salloc", "--quiet", "--job-name", &name, "-N1", "-n1", &mounts, "srun", "-n1"];
    let command = site.cluster.user_command(dir.path(), words.into_iter().chain(PAYLOAD))?;
    never_accepted(site, &name, &crate::command::run(command, PATIENCE)?, "--container-mounts")?;

    // Mounts for a batch script that has no container.
    let (name, output) = submit(site, dir.path(), &[&mounts, "--wrap", "true"])?;
    never_accepted(site, &name, &output, "--container-mounts")?;

    // The image from a profile, in a step whose programs come from a table.
    let table = dir.write("table", "0 cat /etc/situla-image-witness\n")?.display().to_string();
    let profile = [("PYXIS_CONTAINER_IMAGE", tiny.as_str())];
    let (_, running) = site.cluster.start_srun_with(dir.path(), &profile, ["-n1", "--multi-prog", &table])?;
    running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;

    // Mounts from a profile, in a step on the host: nothing to speak of.
    let profile = [("PYXIS_CONTAINER_MOUNTS", "/tmp:/x")];
    let (_, running) =
        site.cluster.start_srun_with(dir.path(), &profile, ["-n1"].into_iter().chain(PAYLOAD))?;
    let output = running.finish(PATIENCE)?.success()?.expect_text("THE-PAYLOAD-RAN")?;
    if !output.stderr.trim().is_empty() {
        return Err(format!("a plain step shall print no error\n{output}").into());
    }
    Ok(())
}

/// Options given where the plugin is not loaded are refused at submission.
///
/// # Errors
/// The job was taken.
pub fn submission_without_plugin(site: &Site) -> Check {
    let dir = site.env().work_dir("noplugin")?;
    let conf = fs::read_to_string(site.cluster.state_dir().join("etc/slurm.conf"))?;
    let plain: String =
        conf.lines().filter(|l| !l.starts_with("PlugStackConfig=")).map(|l| format!("{l}\n")).collect();
    // A submit host whose plugin stack is empty.
    let stack = dir.write("plugstack.conf", "")?;
    let conf = dir.write("slurm.conf", &format!("{plain}PlugStackConfig={}\n", stack.display()))?;
    let option = format!("--container-image={}", site.images.path("tiny.sqsh"));
    let conf = conf.display().to_string();
    let (name, running) = site.cluster.start_srun_with(
        dir.path(),
        &[("SLURM_CONF", &conf)],
        ["-n1", &option].into_iter().chain(PAYLOAD),
    )?;
    let output = running.finish(PATIENCE)?;
    if output.status.success() || output.stdout.contains("THE-PAYLOAD-RAN") || site.cluster.knows(&name)? {
        return Err(format!("the job was taken\n{output}").into());
    }
    Ok(())
}

/// Judges outputs alone, for the command line stands in what is shown of an output, and accounting, if there is a job.
fn in_or_refused(site: &Site, name: &str, output: &Output) -> Check {
    site.cluster.settled()?;
    let text = format!("{}{}", output.stdout, output.stderr);
    let inside = text.contains("situla tiny image");
    let says = |line: &str| line.contains("situla: ") && line.contains("container");
    let refused = !output.status.success() && text.lines().any(says);
    if text.contains("ON-THE-HOST") || inside == refused {
        return Err(output.to_string().into());
    }
    if site.cluster.knows(name)? {
        let job = site.cluster.job(name, output.clone())?;
        if job.account.state != if inside { "COMPLETED" } else { "FAILED" } {
            return Err(format!("accounting says {:?}\n{output}", job.account).into());
        }
        // What the plugin refuses in a task has no record: nothing of ours ran that could write one.
        let mut records = Vec::new();
        for step in ["batch", "0"] {
            match outcome::records(&site.cluster, &format!("{}.{step}", job.id)) {
                Ok(found) => records.extend(found),
                Err(story) if story.contains("there is no record") => {}
                Err(story) => return Err(story.into()),
            }
        }
        let ran = records.iter().any(|record| record.class == "ok");
        if ran != inside {
            return Err(format!("inside: {inside}, the records say {records:#?}\n{output}").into());
        }
    } else if inside {
        return Err(format!("there is no job {name}\n{output}").into());
    }
    Ok(())
}
