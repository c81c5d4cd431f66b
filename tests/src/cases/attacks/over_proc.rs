//! What lies at `/proc` of a container and is not the kernel's: a bind of the user's, or what the image has there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Desk, Hostile, write_as_users};
use crate::command::Output;
use crate::tier::Check;

/// Files of a `/proc` that others read to find out, or write to have something done: labels, id maps, limits.
const FILES: [&str; 14] = [
    "self/attr/current",
    "self/attr/exec",
    "self/attr/apparmor/exec",
    "self/uid_map",
    "self/gid_map",
    "self/setgroups",
    "self/oom_score_adj",
    "self/cgroup",
    "self/mountinfo",
    "self/status",
    "self/task/1/attr/exec",
    "sys/kernel/hostname",
    "sys/kernel/ns_last_pid",
    "sys/net/ipv4/ping_group_range",
];

/// What stands in each of them.
const FAKE: &str = "nothing of the kernel's\n";

/// Lays out what an attacker would have at `/proc`: by it the process has no descriptors, several threads, labels that
/// it could set, and the program of another process. Everybody may write to all of it.
fn lay_out(directory: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", directory.display());
    for name in ["self/fd", "self/ns", "self/task/1/attr", "self/task/2", "self/task/3"] {
        fs::create_dir_all(directory.join(name)).map_err(io)?;
    }
    for name in FILES {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap_or(directory)).map_err(io)?;
        fs::write(&path, FAKE).map_err(io)?;
    }
    symlink("self", directory.join("thread-self")).map_err(io)?;
    // The kernel's own, which is shown at another place as well.
    symlink("/real/self/exe", directory.join("self/exe")).map_err(io)?;
    symlink("/real/self/root", directory.join("self/root")).map_err(io)?;
    open_to_all(directory).map_err(io)
}

fn open_to_all(directory: &Path) -> std::io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_to_all(&entry.path())?;
        } else if kind.is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o666))?;
        }
    }
    Ok(())
}

/// Everything below a directory, by path: the text of files, the targets of links.
fn contents(directory: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(here) = pending.pop() {
        for entry in fs::read_dir(here)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let text = if kind.is_dir() {
                pending.push(path.clone());
                String::new()
            } else if kind.is_symlink() {
                fs::read_link(&path)?.display().to_string()
            } else {
                fs::read_to_string(&path)?
            };
            found.insert(path.display().to_string(), text);
        }
    }
    Ok(found)
}

/// What a payload says of itself, by the kernel's own `/proc`, which is shown to it as `/real`.
const WITNESS: &str = "cat /proc/self/attr/exec; if (: <&9) 2>/dev/null; then echo open; fi; \
     grep NoNewPrivs /real/self/status; grep CapPrm: /real/self/status; echo end";

/// Fails unless the payload ran with the attacker's `/proc`, without privileges and without a descriptor of the host's.
fn ran_as_always(output: Output, options: &[&str]) -> Check {
    let output = output.success()?;
    // Root of a container has all capabilities in it.
    let capabilities = if options.contains(&"--root") { "000001ffffffffff" } else { "0000000000000000" };
    let expected = format!("{FAKE}NoNewPrivs:\t1\nCapPrm:\t{capabilities}\nend\n");
    if output.stdout != expected {
        return Err(format!("expected {expected}\n{output}").into());
    }
    Ok(())
}

/// The user binds a directory, which somebody else has laid out, over `/proc`: nothing of it is believed and nothing is
/// written to it, whatever the ids and namespaces; the payload has no more privileges and descriptors than always,
/// and this program is not run inside by it. The image has something odd at `/proc`: it is not written to either, and
/// the kernel's is mounted there or the start is refused.
///
/// # Errors
/// Something of ours went by what is there.
pub fn over_mounted_proc(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "over-proc")?;
    let fake = hostile.host().join("inner");
    lay_out(&fake)?;
    let before = contents(&fake)?;
    let over = format!("{}:/proc", fake.display());
    let binds = ["--bind", &over, "--bind", "/proc:/real"];
    fs::create_dir_all(hostile.path("real"))?;
    let program = hostile.host().join("situla");
    write_as_users(desk, &program, &fs::read(desk.env.situla())?)?;
    let own = program.display().to_string();
    let host = hostile.host().display().to_string();
    hostile.each_kind(|image| {
        for options in [&[][..], &["--root"], &["--pid"], &["--root", "--pid"], &["--contain"], &["--record"]] {
            let all = [options, &binds].concat();
            let ran = hostile.shell(image, &all, WITNESS)?;
            ran_as_always(ran, options).map_err(|e| super::story(&options.join(" "), &e))?;
            // The user's own program, which could be changed: it must not run inside.
            for command in ["/proc/self/exe", "/proc/thread-self/exe", "/real/self/exe"] {
                let words = [&[own.as_str(), "exec", "--no-home"], &all[..], &[image, command, "--version"]].concat();
                let ran = desk.env.as_user(Path::new("/"), words)?;
                super::without(ran.expect_code(126).map_err(|e| format!("{command}: {e}"))?, "situla 0")?;
            }
        }
        // As slurmstepd starts it, with a descriptor left open.
        let task = format!(
            "exec 9<{host}; SITULA_TASK_PROGRAM=sh SITULA_TASK_IMAGE={image} SITULA_TASK_MOUNTS={over},/proc:/real exec situla -c \"$0\""
        );
        let ran = desk.env.as_user(Path::new("/"), ["bash", "-c", &task, WITNESS])?;
        ran_as_always(ran, &[]).map_err(|e| super::story("a task", &e))?;
        // Those who enter later find the same `/proc`.
        let start = [&["instance", "start", "--no-home"], &binds[..], &[image, "over"]].concat();
        hostile.run(&start)?.success()?;
        let entered = hostile.run(&["instance", "exec", "over", "sh", "-c", WITNESS]);
        hostile.run(&["instance", "stop", "--force", "over"])?.success()?;
        ran_as_always(entered?, &[]).map_err(|e| super::story("an instance", &e))
    })?;
    if contents(&fake)? != before {
        return Err(format!("something was written below {}: {:?}", fake.display(), contents(&fake)?).into());
    }
    odd_places(desk)
}

/// The image has something at `/proc` that is no directory. Where there is nothing it starts; else it says why not.
fn odd_places(desk: &Desk) -> Check {
    type Make = fn(&Path) -> std::io::Result<()>;
    const IS_A_FILE: &str = "that is a file in the image, and this is a directory";
    const NOWHERE: &str = "/proc leads nowhere inside the image";
    let makes: [(&str, Make, Option<&str>); 6] = [
        ("nothing", |_| Ok(()), None),
        ("a file", |path| fs::write(path, FAKE), Some(IS_A_FILE)),
        ("a link to a file", |path| symlink("etc/passwd", path), Some(IS_A_FILE)),
        ("a link to itself", |path| symlink("proc", path), Some(NOWHERE)),
        ("a link into itself", |path| symlink("proc/self", path), Some(NOWHERE)),
        // The kernel's lies over what else is mounted there.
        ("a link to /etc", |path| symlink("etc", path), Some("/etc/hosts cannot be opened inside the image")),
    ];
    for (name, make, refused) in makes {
        let hostile = Hostile::new(desk, "odd-proc")?;
        let place = hostile.path("proc");
        fs::remove_dir_all(&place)?;
        make(&place)?;
        hostile
            .each_kind(|image| {
                let ran = hostile.shell(
                    image,
                    &[],
                    "readlink /proc/self/ns/mnt; cat /proc/self/exe | head -c 4",
                )?;
                match refused {
                    Some(reason) => drop(ran.expect_code(125)?.expect_text(reason)?),
                    None => drop(ran.success()?.expect_text("mnt:[")?.expect_text("\u{7f}ELF")?),
                }
                Ok(())
            })
            .map_err(|e| super::story(name, &e))?;
        hostile.untouched()?;
    }
    Ok(())
}
