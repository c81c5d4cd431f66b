//! What a hostile image holds: links, account files, scripts, programs and devices.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use super::{Desk, Hostile, SECRET, all_refused, without};
use crate::cases::policy::Installation;
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::tier::Check;

/// Links of the image in place of the directories and files that every container mounts something on, absolute
/// and by `..`, to the host's directory and to what `/proc` says about our own process. Those that lead to a place
/// in the image are mounted on there, the others are refused: nothing of the host is shown, and nothing is made there.
///
/// # Errors
/// A link led out of the image, or a container did not start that was to, or for another reason.
pub fn links_out_of_the_image(desk: &Desk) -> Check {
    let places = ["etc", "dev", "proc", "sys", "tmp", "etc/passwd", "etc/group", "etc/hosts", "home"];
    for place in places {
        let hostile = Hostile::new(desk, "links")?;
        let host = hostile.host().display().to_string();
        let inside = host.trim_start_matches('/');
        let is_file = place.starts_with("etc/");
        let wanted = if is_file { format!("{inside}/secret") } else { inside.to_owned() };
        let targets = [
            format!("/{wanted}"),
            format!("../../../../../../../../{wanted}"),
            format!("/proc/self/root/{wanted}"),
            format!("/proc/self/cwd/{wanted}"),
            "/proc/self/fd/0".to_owned(),
        ];
        for target in targets {
            hostile.link(&target, place)?;
            // Where /tmp leads to is where the host's own /tmp is mounted.
            let made = if place == "tmp" { "inner/made" } else { "made" };
            let script = format!(
                "echo began; cat /etc/passwd /{place} /{place}/secret /{place}/inner/x 2>&1; ls /{place}/; echo >/{place}/{made}"
            );
            hostile
                .each_kind(|image| {
                    let options = ["--bind", &format!("{host}/inner:/{place}/bound")];
                    // A /dev of its own has devices of the host's bound into it.
                    let own: &[&[&str]] = if place == "dev" { &[&["--contain"]] } else { &[] };
                    for options in [&[][..], &options[..]].iter().chain(own) {
                        let ran = without(hostile.shell(image, options, &script)?, SECRET)?;
                        let bound = options.contains(&"--bind");
                        if starts(place, target.starts_with("/proc/"), bound) {
                            began(&ran)?;
                        } else {
                            refused(&ran, &["cannot be opened inside the image", "cannot look into image"])?;
                        }
                    }
                    Ok(())
                })
                .map_err(|e| super::story(&format!("/{place} -> {target}"), &e))?;
            hostile.untouched()?;
        }
    }
    // The user's own destinations: through a link of the image, and with `..`.
    let hostile = Hostile::new(desk, "destinations")?;
    let host = hostile.host().display().to_string();
    hostile.link(&host, "link")?;
    hostile.link("../../../../../../../..", "up")?;
    hostile.each_kind(|image| {
        for destination in ["/link/x", "/up/x", "/../../../../x", "/tmp/../../x", &format!("/up{host}/x")] {
            let bind = format!("/usr:{destination}");
            let ran = hostile.shell(image, &["--bind", &bind], "echo began; ls /x /link/x")?;
            let ran = without(ran, SECRET)?;
            if destination.contains("..") {
                refused(&ran, &["must be an absolute path below / without .."])?;
            } else {
                began(&ran)?;
                // What was bound is seen, in the image.
                ran.expect_text("share")?;
            }
            hostile.untouched()?;
        }
        Ok(())
    })
}

/// Whether a container starts where the image has a link at `place`: what is mounted there, or with a bind below it,
/// needs a place inside that the link leads to. By way of `/proc` there is none, and the server makes none.
fn starts(place: &str, leads_through_proc: bool, bound: bool) -> bool {
    if bound {
        return place.starts_with("etc") && !leads_through_proc;
    }
    // What is mounted at the others, or below them, is left out where it cannot be, or not mounted by default.
    !leads_through_proc || !["etc", "proc", "sys", "tmp"].contains(&place)
}

/// Fails unless the payload has begun.
fn began(ran: &Output) -> Result<(), String> {
    if ran.timed_out || !ran.stdout.starts_with("began\n") {
        return Err(format!("it was to start\n{ran}"));
    }
    Ok(())
}

/// Fails unless the start was refused for one of these reasons.
fn refused(ran: &Output, reasons: &[&str]) -> Result<(), String> {
    let is_expected = ran.code() == 125 && reasons.iter().any(|reason| ran.stderr.contains(reason));
    if ran.timed_out || !is_expected || !ran.stdout.is_empty() {
        return Err(format!("it was to be refused: {reasons:?}\n{ran}"));
    }
    Ok(())
}

/// A directory of the image is exchanged for a link to the host, and back, while containers start that mount
/// something below it: as a bind destination, and as a mount point that the image must be shown to have. While
/// the user starts them, and while root does, who could read and write on the host what the user could not.
///
/// # Errors
/// A start was led out of the image.
pub fn swapped_directories(desk: &Desk) -> Check {
    /// As long as starts are repeated.
    const ROUNDS: u32 = 200;
    for swapped in ["mnt", "proc"] {
        let by_user = |loops: &str| desk.env.user_command(Path::new("/"), ["sh", "-c", loops]);
        swapped_while(desk, ROUNDS, swapped, by_user)
            .map_err(|e| super::story(&format!("{swapped}, by the user"), &e))?;
        swapped_while(desk, ROUNDS, swapped, |loops| {
            let mut command = command::words(["sh", "-c", loops]);
            command.current_dir("/").env_clear().env("PATH", desk.env.search_path());
            Ok(command)
        })
        .map_err(|e| super::story(&format!("{swapped}, by root"), &e))?;
    }
    Ok(())
}

/// The same with starts of somebody; `swapped` is the directory, `mnt` for binds or `proc`, over which the host's is shown.
fn swapped_while(
    desk: &Desk,
    rounds: u32,
    swapped: &str,
    starts: impl FnOnce(&str) -> Result<std::process::Command, String>,
) -> Check {
    let hostile = Hostile::new(desk, "swap")?;
    let host = hostile.host();
    fs::create_dir_all(hostile.path(swapped).join("inner"))?;
    hostile.link(&host, "evil")?;
    // The same name below both, so that every look at the path finds something.
    let image = hostile.path("").display().to_string();
    let over = AtomicBool::new(false);
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (real, evil) = (hostile.path(swapped), hostile.path("evil"));
            let mut swaps = 0u64;
            while !over.load(Ordering::Relaxed) {
                let swapped = rustix::fs::renameat_with(CWD, &real, CWD, &evil, RenameFlags::EXCHANGE);
                swaps += u64::from(swapped.is_ok());
            }
            swaps
        });
        let source = format!("{image}/bin");
        // Who may rename directories of an image can take the mounts on them along, also later: where `/proc` then is no
        // matter, but what a link in its place leads to.
        let each = match swapped {
            "proc" => format!(
                "situla exec --no-home {image} sh -c \
                 'cat /proc/secret; echo >/proc/made; true' && n=$((n+1))"
            ),
            _ => format!(
                "situla exec --no-home --bind {source}:/mnt/inner {image} sh -c 'cat /mnt/secret; echo >/mnt/inner/made; true' && n=$((n+1)); \
                 situla exec --no-home --bind {source}:/mnt/new/deep {image} sh -c 'cat /mnt/secret; echo >/mnt/made; true' && n=$((n+1))"
            ),
        };
        let loops = format!(
            "i=0; n=0; while [ $i -lt {rounds} ]; do i=$((i+1)); {each}; done; [ $n -gt 0 ] && echo rounds $i"
        );
        let ran = starts(&loops).and_then(|command| command::run(command, Duration::from_secs(60)));
        over.store(true, Ordering::Relaxed);
        let swaps = swapper.join().map_err(|_| "the swapping thread failed".to_owned())?;
        ran.and_then(|ran| {
            let ran = ran.success()?.expect_text(&format!("rounds {rounds}"))?;
            without(ran, SECRET).map(|_| swaps)
        })
    })?;
    // Otherwise nothing was tried.
    if swaps < u64::from(rounds) * 10 {
        return Err(format!("only {swaps} exchanges in {rounds} rounds").into());
    }
    hostile.untouched()
}

/// The user exchanges what he binds and lays over the image, a link to what the policy lets him show for one to what
/// it forbids, while containers start: what is judged is what is shown. The same with the image itself.
///
/// # Errors
/// The forbidden directory was shown.
pub fn exchanged_sources(desk: &Desk) -> Check {
    /// As long as starts are repeated, in each of three ways.
    const ROUNDS: u32 = 100;
    let hostile = Hostile::new(desk, "exchange")?;
    let allowed = hostile.dir.path().join("allowed");
    fs::create_dir(&allowed)?;
    let installed = hostile.dir.path().join("site");
    for part in ["bin", "etc/situla"] {
        fs::create_dir_all(installed.join(part))?;
    }
    fs::copy(desk.env.situla(), installed.join("bin/situla"))?;
    // The forbidden one is an image, a layer and a directory, as the allowed one is, with a secret in it.
    let forbidden = hostile.host();
    for place in [&allowed, &forbidden] {
        for name in ["dev", "etc", "proc", "sys", "tmp", "upper"] {
            fs::create_dir_all(place.join(name))?;
        }
        let copy = [Path::new("cp"), Path::new("-a"), &hostile.path("bin"), place];
        command::run(command::words(copy), PATIENCE)?.success()?;
    }
    fs::write(forbidden.join("upper/secret"), format!("{SECRET}\n"))?;
    let shown = forbidden.display();
    let policy = format!("[options]\nrefuse = [\"bind:{shown}\"]\n[files]\ndeny = [\"{shown}\"]\n");
    fs::write(installed.join("etc/situla/policy.toml"), policy)?;
    let (door, other) = (hostile.dir.path().join("door"), hostile.dir.path().join("other"));
    std::os::unix::fs::symlink(&allowed, &door)?;
    std::os::unix::fs::symlink(&forbidden, &other)?;
    let (program, door_shown) =
        (installed.join("bin/situla").display().to_string(), door.display().to_string());
    let image = hostile.path("").display().to_string();
    // Without a race the rules hold for all ways.
    let ways = [
        format!("--bind {}:/mnt {image}", other.display()),
        format!("--overlay {}:ro {image}", other.display()),
        other.display().to_string(),
    ];
    for way in &ways {
        let line = format!("{program} exec --no-home {way} true");
        desk.env
            .as_user(Path::new("/"), ["sh", "-c", &line])?
            .expect_code(125)?
            .expect_text(&shown.to_string())?;
    }
    let over = AtomicBool::new(false);
    let (ran, swaps) = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u64;
            while !over.load(Ordering::Relaxed) {
                let swapped = rustix::fs::renameat_with(CWD, &door, CWD, &other, RenameFlags::EXCHANGE);
                swaps += u64::from(swapped.is_ok());
            }
            swaps
        });
        let look = "sh -c 'cat /mnt/secret /mnt/upper/secret /secret /upper/secret; echo ran'";
        let loops = format!(
            "i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); \
             {program} exec --no-home --bind {door_shown}:/mnt {image} {look}; \
             {program} exec --no-home --overlay {door_shown}:ro {image} {look}; \
             {program} exec --no-home {door_shown} {look}; done; echo rounds $i"
        );
        let ran = desk.env.user_command(Path::new("/"), ["sh", "-c", &loops]);
        let ran = ran.and_then(|command| command::run(command, Duration::from_secs(90)));
        over.store(true, Ordering::Relaxed);
        (ran, swapper.join().unwrap_or_default())
    });
    let ran = without(ran?.success()?.expect_text(&format!("rounds {ROUNDS}"))?, SECRET)?;
    // Otherwise nothing was tried.
    if swaps < u64::from(ROUNDS) * 10 || !ran.stdout.contains("ran\n") {
        return Err(format!("{swaps} exchanges\n{ran}").into());
    }
    Ok(())
}

/// Account files that are no account files, full of lines for other parsers, or something that is never read to its
/// end: the container starts, at once, and the user stays who he is. One that is too long is refused.
///
/// # Errors
/// He does not, it hangs, or does not start.
pub fn account_files(desk: &Desk) -> Check {
    type Change = fn(&Hostile<'_>, &str) -> Result<(), String>;
    let uid = desk.env.uid()?;
    let changes: [(&str, Change); 7] = [
        ("empty", |image, file| image.write(file, "")),
        ("everybody is root", |image, file| {
            let user = image.desk.env.user();
            image.write(file, &format!("{user}:x:0:0::/:/bin/sh\nroot::0:0::/:/bin/sh\n+::::::\n"))
        }),
        ("no text", |image, file| image.write(file, "\0\u{1b}[2J:::::\r\n\u{202e}:x:0\n%n%s$(id)`id`\n")),
        ("too long", |image, file| image.write(file, &"a:x:1:1::/:/\n".repeat(400_000))),
        ("a directory", |image, file| {
            image.link("x", file)?;
            fs::remove_file(image.path(file))
                .and_then(|()| fs::create_dir(image.path(file)))
                .map_err(|e| e.to_string())
        }),
        ("a fifo", |image, file| node(image, file, FileType::Fifo, 0)),
        ("a device", |image, file| node(image, file, FileType::CharacterDevice, rustix::fs::makedev(1, 5))),
    ];
    let each = changes.iter().flat_map(|change| ["etc/passwd", "etc/group"].map(|file| (file, change)));
    for (file, (name, change)) in each {
        let hostile = Hostile::new(desk, "accounts")?;
        change(&hostile, file)?;
        hostile
            .each_kind(|image| {
                // A program that reads none of them: it would wait for the FIFO itself.
                let ran = hostile.run(&["exec", "--no-home", image, "stat", "-Lc", "%u", "/proc/self"])?;
                if *name == "too long" {
                    return Ok(refused(&ran, &["cannot make the container's account files"])?);
                }
                if ran.timed_out || ran.code() != 0 || ran.stdout.trim() != uid.to_string() {
                    return Err(ran.to_string().into());
                }
                Ok(())
            })
            .map_err(|e| super::story(&format!("{file}: {name}"), &e))?;
        hostile.untouched()?;
    }
    Ok(())
}

/// Scripts that the image has for its environment, and a configuration, full of commands. Scripts run inside, and
/// what a configuration says is taken by its letters; on the host, where alone the directory can be written to, nothing
/// happens.
///
/// # Errors
/// A command of the image ran on the host, or a container did not start.
pub fn environment_scripts(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "scripts")?;
    let made = hostile.host().join("made").display().to_string();
    let commands = format!(
        "touch {made}\nexport A=$(touch {made})\nexport B=`touch {made}`\nexport C=\"${{X:-$(touch {made})}}\"\n\
         export D=${{X:=$(touch {made})}}\nexport BASH_ENV={made} ENV={made} LD_PRELOAD={made} LD_AUDIT={made}\n\
         export PATH=/evil:$PATH\nexport SITULA_TASK_PROGRAM=/evil\n( : > {made} )\necho script >&2\n"
    );
    for script in ["10-docker2singularity.sh", "90-environment.sh", "91-environment.sh"] {
        hostile.write(&format!(".singularity.d/env/{script}"), &commands)?;
    }
    hostile.write(".singularity.d/runscript", &format!("#!/bin/sh\n{commands}echo ran\n"))?;
    let variable = format!("A=$(touch {made})");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Env": [variable, format!("B=`touch {made}`"), "LD_PRELOAD=/evil.so", "PATH=/bin:$(id)"],
            "Entrypoint": ["/bin/sh", "-c", format!("touch {made}; echo ran")], "WorkingDir": "$(touch x)"}
    });
    for with_config in [false, true] {
        if with_config {
            hostile.write(".situla/config.json", &config.to_string())?;
        }
        hostile.each_kind(|image| {
            // What is run; and what shows that it ran, and that the commands were there to be run.
            let scripts = if with_config { "" } else { "script\n" };
            let value = if with_config { variable.as_str() } else { "A=\n" };
            for (words, out, err) in [
                (&["exec", image, "sh", "-c", "echo ran"][..], "ran\n", scripts),
                (&["plan", image, "true"], "\"bindings\"", ""),
                (&["run", image], "ran\n", "touch: "),
                (&["exec", "--cleanenv", image, "env"], value, scripts),
            ] {
                let words = [&words[..1], &["--no-home"], &words[1..]].concat();
                let ran = hostile.run(&words)?;
                hostile.untouched().map_err(|e| super::story(&words.join(" "), &e))?;
                let ran = ran.success()?;
                if !ran.stdout.contains(out) || !ran.stderr.contains(err) {
                    return Err(format!("expected {out:?} and {err:?}\n{ran}").into());
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Set-uid and set-gid programs of root's, programs with file capabilities, and device nodes that everybody may
/// open: the first two give nothing, the last cannot be opened.
///
/// # Errors
/// One of them works.
pub fn device_nodes_and_set_uid_programs(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "suid")?;
    let program = hostile.path("suid/busybox");
    hostile.write("suid/busybox", "")?;
    fs::copy(hostile.path("bin/busybox"), &program)?;
    // cap_setuid,cap_sys_admin+ep, as `struct vfs_cap_data` of linux/capability.h, revision 2.
    let capability: [u8; 20] = [1, 0, 0, 2, 0x80, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let path = CString::new(program.as_os_str().as_bytes())?;
    rustix::fs::setxattr(&path, "security.capability", &capability, rustix::fs::XattrFlags::empty())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755))?;
    let devices = [("zero", FileType::CharacterDevice, 1, 5), ("disk", FileType::BlockDevice, 7, 0)];
    for (name, kind, major, minor) in devices {
        node(&hostile, &format!("etc/{name}"), kind, rustix::fs::makedev(major, minor))?;
    }
    let uid = desk.env.uid()?;
    hostile.each_kind(|image| {
        let script = "for d in /etc/zero /etc/disk /bound/zero /bound/disk; do \
              if head -c 1 $d >/dev/null 2>&1; then echo done: $d; else echo refused: $d; fi; done; \
              for p in /suid/busybox /programs/busybox; do \
              if [ $($p id -u) = UID ] && $p grep -q '^CapEff:.0*$' /proc/self/status; then echo refused: $p; \
              else echo done: $p; fi; done";
        let (bound, programs) =
            (format!("{}:/bound", hostile.path("etc").display()), format!("{}:/programs", hostile.path("suid").display()));
        let ran = hostile.shell(
            image,
            &["--bind", &bound, "--bind", &programs],
            &script.replace("UID", &uid.to_string()),
        )?;
        all_refused(ran, 6)
    })
}

/// Puts a node that everybody may open into the image, in place of what is there.
fn node(image: &Hostile<'_>, path: &str, kind: FileType, device: rustix::fs::Dev) -> Result<(), String> {
    let path = image.path(path);
    // What is not there need not go.
    let _ = fs::remove_file(&path);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &path, kind, mode, device)
        .and_then(|()| rustix::fs::chmod(&path, mode))
        .map_err(|e| format!("{}: {e}", path.display()))
}

/// Names of the image in `/dev` where engines mount a terminal and devices, as links to a file of the host, to a directory
/// of the host, and to a file of `/proc` that changes the machine. A payload that has a terminal gets none mounted there, and
/// devices of a `/dev` of the container's own are where they belong, or the start is refused.
///
/// # Errors
/// A link was followed, or a container did not start for another reason.
pub fn terminal_and_devices(desk: &Desk) -> Check {
    const SYSTEM: &str = "/proc/sys/kernel/core_pattern";
    let pattern = fs::read_to_string(SYSTEM)?;
    for name in ["console", "null", "tty", "ptmx", "pts", "shm", "mqueue"] {
        let hostile = Hostile::new(desk, "terminal")?;
        let host = hostile.host().display().to_string();
        let is_directory = ["pts", "shm", "mqueue"].contains(&name);
        let wanted = if is_directory { host.clone() } else { format!("{host}/secret") };
        let deep = format!("../../../../../../../..{wanted}");
        for target in [wanted.as_str(), &deep, &format!("/proc/self/root{wanted}"), SYSTEM] {
            hostile.link(target, &format!("dev/{name}"))?;
            // Never a device of the host's, which might wait for somebody.
            let script = format!(
                "echo began; for n in null zero; do [ -c /dev/$n ] || echo no device $n; done; \
                 [ -f /dev/{name} ] && cat /dev/{name} && echo changed >/dev/{name}; \
                 [ -d /dev/{name} ] && cat /dev/{name}/secret && touch /dev/{name}/inner/made; \
                 cut -d' ' -f5 /proc/self/mountinfo | grep -e '^{host}' -e '^/proc/sys' | sed 's/^/mounted at /'; true"
            );
            let look = format!("LOOK={script}");
            hostile
                .each_kind(|image| {
                    for options in ["", "--contain"] {
                        let line = format!("situla exec --no-home {options} {image} sh -c \"$LOOK\"");
                        // A terminal of its own, as srun --pty gives one.
                        let words = ["env", &look, "script", "-qec", &line, "/dev/null"];
                        let ran = desk.env.as_user(Path::new("/"), words)?;
                        let ran = without(without(ran, SECRET)?, "mounted at")?;
                        let began = ran.stdout.contains("began") && !ran.stdout.contains("no device");
                        let is_refused =
                            ran.code() == 125 && ran.stdout.contains("cannot be opened inside the image");
                        if ran.timed_out || !(began || is_refused && !options.is_empty()) {
                            return Err(format!("{options}: it was to start, with its devices\n{ran}").into());
                        }
                    }
                    Ok(())
                })
                .map_err(|e| super::story(&format!("/dev/{name} -> {target}"), &e))?;
            hostile.untouched()?;
        }
    }
    if fs::read_to_string(SYSTEM)? != pattern {
        return Err(format!("{SYSTEM} was changed").into());
    }
    Ok(())
}

/// A rule about a directory is none about another one whose name begins alike: not for images, not for what is bound, nor by
/// way of `..` or a link.
///
/// # Errors
/// What lies beside the directory is let in with it, or forbidden with it.
pub fn neighbouring_prefixes(desk: &Desk) -> Check {
    let installation = Installation::make(desk)?;
    let place = |name: &str| installation.path().join(name).display().to_string();
    for name in ["scratch/own", "scratch2", "scratch-x"] {
        fs::create_dir_all(place(name))?;
        fs::copy(desk.images.path("tiny.sqsh"), place(&format!("{name}/a.sqsh")))?;
    }
    std::os::unix::fs::symlink("../scratch2/a.sqsh", place("scratch/link.sqsh"))?;
    fs::copy(desk.images.path("tiny.sqsh"), place("scratch/a.sqsh"))?;
    let program = place("bin/situla");
    let allowed = format!("[files]\nallow = [\"{}\"]\n", place("scratch"));
    let refused = format!("[options]\nrefuse = [\"bind:{}\"]\n", place("scratch"));
    for (policy, tries) in [
        (
            &allowed,
            &[
                ("scratch/a.sqsh", "", true),
                ("scratch/own/a.sqsh", "", true),
                ("scratch/own/../a.sqsh", "", true),
                ("scratch2/a.sqsh", "", false),
                ("scratch-x/a.sqsh", "", false),
                ("scratch/../scratch2/a.sqsh", "", false),
                ("scratch/own/../../scratch2/a.sqsh", "", false),
                ("scratch/link.sqsh", "", false),
            ][..],
        ),
        (
            &refused,
            &[
                ("scratch2/a.sqsh", "scratch2", true),
                ("scratch2/a.sqsh", "scratch-x", true),
                ("scratch2/a.sqsh", "scratch", false),
                ("scratch2/a.sqsh", "scratch/own", false),
                ("scratch2/a.sqsh", "scratch2/../scratch", false),
            ],
        ),
    ] {
        installation.set(policy)?;
        for (image, bind, is_allowed) in tries {
            let (image, bound) = (place(image), format!("{}:/mnt", place(bind)));
            let options: &[&str] = if bind.is_empty() { &[] } else { &["--bind", &bound] };
            let words =
                [&[program.as_str(), "exec", "--no-home"], options, &[&image, "echo", "ran"]].concat();
            // Not from the directory above them, which is bound as well.
            let ran = desk.env.as_user(Path::new("/"), words)?;
            let is_right = match is_allowed {
                true => ran.code() == 0 && ran.stdout == "ran\n",
                false => ran.code() == 125 && ran.stdout.is_empty() && ran.stderr.contains("policy"),
            };
            if !is_right {
                return Err(format!("{image} {options:?}, allowed: {is_allowed}\n{ran}").into());
            }
        }
    }
    Ok(())
}
