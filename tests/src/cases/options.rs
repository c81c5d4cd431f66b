//! Options of running, by what they change inside: what can be written to, what of the host is seen, and who
//! the processes are.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use super::Desk;
use crate::command::Output;
use crate::tier::Check;

/// Both command lines: what holds for one holds for the other.
const PROGRAMS: [&str; 2] = ["situla", "apptainer"];

/// Runs a script of a shell inside.
fn inside(
    desk: &Desk,
    cwd: &Path,
    program: &str,
    options: &[&str],
    image: &str,
    script: &str,
) -> Result<Output, String> {
    let words: Vec<&str> = [program, "exec"]
        .into_iter()
        .chain(options.iter().copied())
        .chain([image, "sh", "-c", script])
        .collect();
    desk.env.as_user(cwd, words)
}

/// The output must be this, and the status 0.
fn expect(output: Output, expected: &str) -> Check {
    let output = output.success()?;
    if output.stdout.trim_end() == expected {
        Ok(())
    } else {
        Err(format!("expected {expected:?}\n{output}").into())
    }
}

/// An image file and a directory that belongs to the user.
fn images(desk: &Desk, dir: &Path) -> Result<[String; 2], String> {
    let tree = dir.join("tree");
    let from = desk.env.image_tree("tiny");
    let copy = [Path::new("cp"), Path::new("-a"), &from, &tree].map(|word| word.as_os_str().to_owned());
    crate::command::run(crate::command::words(copy), crate::environment::PATIENCE)?.success()?;
    give(desk, &tree)?;
    Ok([desk.images.path("tiny.sqsh"), tree.display().to_string()])
}

/// Makes a tree the user's.
fn give(desk: &Desk, tree: &Path) -> Result<(), String> {
    let owner = format!("{}:", desk.env.user());
    let words = ["chown", "-R", &owner, &tree.display().to_string()].map(String::from);
    crate::command::run(crate::command::words(words), crate::environment::PATIENCE)?.success().map(drop)
}

/// What is written goes where the option says, and nowhere else.
///
/// # Errors
/// It goes elsewhere, or cannot be written.
pub fn overlays(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("overlays")?;
    let images = images(desk, dir.path())?;
    let uid = desk.env.uid()?;
    let user_dir = |name: &str| -> Result<String, String> {
        let path = dir.path().join(name);
        fs::create_dir(&path).and_then(|()| chown(&path, Some(uid), None)).map_err(|e| e.to_string())?;
        Ok(path.display().to_string())
    };
    for (number, image) in images.iter().enumerate() {
        for program in PROGRAMS {
            let run =
                |options: &[&str], script: &str| inside(desk, dir.path(), program, options, image, script);
            let write = "echo new > /usr/new && rm /etc/situla-image-witness && cat /usr/new";
            let look = "cat /usr/new; ls /etc/situla-image-witness";
            expect(run(&["--writable-tmpfs"], write)?, "new")?;
            run(&[], look)?.expect_text("No such file")?.expect_text("/etc/situla-image-witness")?;
            let above = user_dir(&format!("above-{program}-{number}"))?;
            expect(run(&["--overlay", &above], write)?, "new")?;
            if !Path::new(&above).join("upper/usr/new").is_file() {
                return Err(format!("{above} does not hold what was written").into());
            }
            let shown = format!("{above}:ro");
            for options in [&["--overlay", above.as_str()][..], &["-o", &shown]] {
                let script = "cat /usr/new; test -e /etc/situla-image-witness || echo gone";
                expect(run(options, script)?, "new\ngone")?;
            }
            run(&["--overlay", &shown], "touch /usr/more")?.expect_text("Read-only file system")?;
            // The last one lies on top; what is not there comes from below.
            let top = user_dir(&format!("top-{program}-{number}"))?;
            fs::create_dir(Path::new(&top).join("usr"))?;
            fs::write(Path::new(&top).join("usr/new"), "top\n")?;
            let only_there = Path::new(&top).join("bin/only-there");
            fs::create_dir(Path::new(&top).join("bin"))?;
            fs::write(&only_there, "#!/bin/sh\necho found\n")?;
            fs::set_permissions(&only_there, PermissionsExt::from_mode(0o755))?;
            give(desk, Path::new(&top))?;
            let both = format!("{shown},{top}:ro");
            expect(
                run(
                    &["--overlay", &both, "--writable-tmpfs"],
                    "cat /usr/new; echo x > /usr/new; cat /usr/new",
                )?,
                "top\nx",
            )?;
            // A command that only a layer has is found.
            let top_shown = format!("{top}:ro");
            let words = [program, "exec", "-o", &top_shown, image, "only-there"];
            expect(desk.env.as_user(dir.path(), words)?, "found")?;
            let failed = if program == "situla" { 125 } else { 255 };
            for (options, text) in [
                (vec!["--overlay", above.as_str(), "--writable-tmpfs"], "another place"),
                (vec!["--overlay", "/no/such"], "/no/such does not exist"),
                (vec!["--overlay", image.as_str()], if number == 0 { "is no directory" } else { "" }),
            ] {
                if !text.is_empty() {
                    run(&options, "exit 0")?.expect_code(failed)?.expect_text(text)?;
                }
            }
        }
    }
    Ok(())
}

/// With `--contain` the host's files are not there, and what is written is gone with the container.
///
/// # Errors
/// Something of the host's is visible, or remains.
pub fn contain(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("contain")?;
    let home = desk.env.home()?.display().to_string();
    dir.write("data", "bound\n")?;
    let here = dir.path().display().to_string();
    let mark = format!("situla-contained-{}", std::process::id());
    for image in images(desk, dir.path())? {
        for program in PROGRAMS {
            for flag in ["--contain", "-c"] {
                let run = |options: &[&str], script: &str| {
                    inside(desk, dir.path(), program, &[&[flag], options].concat(), &image, script)
                };
                expect(
                    run(&[], "ls /dev | sort | tr '\\n' ' '")?,
                    "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
                )?;
                let write = format!(
                    "for d in /tmp /var/tmp /dev/shm $HOME; do ls -A $d; touch $d/{mark} || exit 1; done; pwd; \
                     head -c 2 /dev/urandom | wc -c; echo gone > /dev/null; touch /usr/x 2> /dev/null || echo read-only"
                );
                expect(run(&[], &write)?, &format!("{home}\n2\nread-only"))?;
                for place in ["/tmp", "/var/tmp", "/dev/shm", &home] {
                    if Path::new(place).join(&mark).exists() {
                        return Err(format!("{place}/{mark} is on the host").into());
                    }
                }
                // What is asked for by name is there, also at places that are only in memory.
                let binds = format!("{here}:/tmp/a/b,{here}/data:{home}/data,/dev/fuse");
                let script = format!("cat /tmp/a/b/data {home}/data; test -c /dev/fuse && echo device");
                expect(run(&["-B", &binds], &script)?, "bound\nbound\ndevice")?;
                expect(run(&["--pwd", "/usr"], "pwd")?, "/usr")?;
            }
        }
    }
    Ok(())
}

/// Namespaces are the container's own, and work.
///
/// # Errors
/// One is the host's, or does not work.
pub fn namespaces(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("namespaces")?;
    let host =
        |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).map(|path| path.display().to_string());
    let outside = "EXAMPLE_OUTSIDE=visible";
    for image in images(desk, dir.path())? {
        for program in PROGRAMS {
            let run =
                |options: &[&str], script: &str| inside(desk, dir.path(), program, options, &image, script);
            for (options, own) in [
                (&[][..], &[][..]),
                (&["--pid"], &["pid"]),
                (&["-p", "-i"], &["pid", "ipc"]),
                (&["--ipc"], &["ipc"]),
                (&["--uts"], &["uts"]),
                (&["--hostname", "box"], &["uts"]),
                (&["--net", "--network", "none"], &["net"]),
                (&["--network", "none"], &["net"]),
                (&["--containall"], &["pid", "ipc"]),
                (&["-C", "--uts", "-n", "--network=none"], &["pid", "ipc", "uts", "net"]),
            ] {
                for name in ["pid", "ipc", "uts", "net"] {
                    let output = run(options, &format!("readlink /proc/self/ns/{name}"))?.success()?;
                    if (output.stdout.trim_end() != host(name)?) != own.contains(&name) {
                        return Err(format!("{name} is not as asked for\n{output}").into());
                    }
                }
            }
            expect(run(&["--cgroupns", "private"], "cut -d: -f3 /proc/self/cgroup | sort -u")?, "/")?;
            let own = run(&["--cgroupns", "private"], "readlink /proc/self/ns/cgroup")?.success()?;
            let shared = run(&["--cgroupns=host"], "readlink /proc/self/ns/cgroup")?.success()?;
            if own.stdout.trim_end() == host("cgroup")? || shared.stdout.trim_end() != host("cgroup")? {
                return Err(format!("the control groups are not as asked for\n{own}\n{shared}").into());
            }
            expect(run(&["--hostname", "box"], "hostname; cat /etc/hostname")?, "box\nbox")?;
            expect(
                run(&["--uts"], "hostname")?,
                fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end(),
            )?;
            run(&["--network", "none"], "cat /proc/net/dev; ip link show lo")?
                .success()?
                .expect_text("LOOPBACK,UP")?;
            expect(run(&["--pid"], "cat /proc/1/comm; echo $$")?, "situla-init\n2")?;
            // What init runs is a file of the host's.
            run(&["--pid"], "readlink /proc/1/exe")?.expect_code(1)?;
            run(&["--pid"], "exit 5")?.expect_code(5)?;
            let output = run(&["--pid"], "kill -TERM $$")?;
            if output.status.signal() != Some(15) {
                return Err(format!("the signal was not raised again\n{output}").into());
            }
            run(&["--pid", "--no-mount", "proc"], "ls /proc | wc -l; exit 6")?.expect_code(6)?;
            let words = [
                "env",
                outside,
                program,
                "exec",
                "--containall",
                &image,
                "sh",
                "-c",
                "echo \"<$EXAMPLE_OUTSIDE>\"",
            ];
            expect(desk.env.as_user(dir.path(), words)?, "<>")?;
        }
    }
    Ok(())
}

/// A profile decides which system calls are made; one that makes no sense is refused.
///
/// # Errors
/// It does not.
pub fn seccomp(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("seccomp")?;
    let good = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], "syscalls": [
        {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "includes": {"minKernel": "3.0"}},
        {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    dir.write("good.json", good)?;
    for (name, text) in [
        ("cut.json", "{\"defaultAction\": "),
        ("unknown.json", r#"{"defaultAction": "SCMP_ACT_GUESS"}"#),
        ("key.json", r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#),
    ] {
        dir.write(name, text)?;
    }
    for image in images(desk, dir.path())? {
        for program in PROGRAMS {
            let run =
                |options: &[&str], script: &str| inside(desk, dir.path(), program, options, &image, script);
            let filter = ["--security", "seccomp:good.json"];
            let script = "mkdir new 2>&1; mkdir -p /tmp && rmdir /tmp/none.$$ 2>&1; grep ^Seccomp: /proc/self/status; sync; echo $?";
            let output = run(&filter, script)?.success()?;
            for text in ["Operation not permitted", "Seccomp:\t2", "159"] {
                if !output.stdout.contains(text) {
                    return Err(format!("no {text:?} in\n{output}").into());
                }
            }
            if dir.path().join("new").exists() {
                return Err("the directory was made".into());
            }
            if run(&filter, "exec sync")?.status.signal() != Some(31) {
                return Err("the call did not kill".into());
            }
            // What is allowed to root alone is allowed to root inside.
            run(&[&filter[..], &["--fakeroot"]].concat(), "rmdir /tmp/none.$$")?
                .expect_code(1)?
                .expect_text("No such file")?;
            let failed = if program == "situla" { 125 } else { 255 };
            for (file, text) in [
                ("cut.json", "EOF"),
                ("unknown.json", "SCMP_ACT_GUESS"),
                ("key.json", "listenerPath"),
                ("none.json", "No such file"),
            ] {
                let option = format!("seccomp:{file}");
                run(&["--security", &option], "echo ran")?
                    .expect_code(failed)?
                    .expect_text(file)?
                    .expect_text(text)?;
            }
            let usage = if program == "situla" { 2 } else { 1 };
            for option in ["apparmor:profile", "uid:0", "seccomp:", "seccomp"] {
                run(&["--security", option], "echo ran")?
                    .expect_code(usage)?
                    .expect_text("is not supported")?;
            }
        }
    }
    Ok(())
}

/// Root inside has a root's rights over the container, and the user's over the host.
///
/// # Errors
/// He has others.
pub fn fakeroot(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("fakeroot")?;
    let uid = desk.env.uid()?;
    let secret = dir.write("secret", "not for users\n")?;
    chown(&secret, Some(0), Some(0))?;
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600))?;
    let secret = secret.display().to_string();
    for image in images(desk, dir.path())? {
        for (program, option) in [("situla", "--root"), ("situla", "--fakeroot"), ("apptainer", "-f")] {
            let run = |options: &[&str], script: &str| {
                inside(desk, dir.path(), program, &[&[option], options].concat(), &image, script)
            };
            expect(
                run(&[], "id -u; id -g; id -un; echo $HOME; grep ^root: /etc/passwd | cut -d: -f3,6")?,
                "0\n0\nroot\n/root\n0:/root",
            )?;
            let script = "touch made && chown 0:0 made && stat -c %u:%g made; chown 1:1 made 2> /dev/null || echo mapped";
            expect(run(&[], script)?, "0:0\nmapped")?;
            if fs::metadata(dir.path().join("made"))?.uid() != uid {
                return Err("what root made inside is not the user's outside".into());
            }
            fs::remove_file(dir.path().join("made"))?;
            // Over the container's own namespaces, and over nothing else.
            let script = "mkdir /tmp/m.$$ && mount -t tmpfs none /tmp/m.$$ && echo mounted; umount /tmp/m.$$; rmdir /tmp/m.$$";
            expect(run(&[], script)?, "mounted")?;
            run(&["-B", &format!("{secret}:/secret")], "cat /secret")?
                .expect_code(1)?
                .expect_text("Permission denied")?;
            expect(run(&["--writable-tmpfs"], "echo x > /usr/x; stat -c %u /usr/x /usr")?, "0\n0")?;
            expect(run(&["--pid", "--contain"], "id -u; ls -A /root; touch /root/x && echo $$")?, "0\n2")?;
            expect(run(&["--uts"], "hostname other && hostname")?, "other")?;
        }
        // Nobody else has any.
        let output =
            inside(desk, dir.path(), "situla", &[], &image, "grep Cap /proc/self/status")?.success()?;
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            if !output.stdout.contains(&format!("{set}:\t0000000000000000")) {
                return Err(output.to_string().into());
            }
        }
    }
    Ok(())
}
