//! Images that the kernel mounts: for root alone, of files that only root can write, with flags that stay.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Desk, Site};
use crate::command::{self, Output, Running, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::process_ids;
use crate::tier::{self, Check, Skip};

/// Needs a program that makes EROFS images.
///
/// # Errors
/// It is not installed.
pub(super) fn erofs_maker() -> Result<(), Skip> {
    tier::succeeds("mkfs.erofs", &["--help"]).map_err(|why| Skip(format!("needs mkfs.erofs: {why}")))
}

/// A directory that only root can change, with images that only root can write.
struct Vault {
    dir: PathBuf,
}

impl Vault {
    fn new(desk: &Desk) -> Result<Self, String> {
        let dir = PathBuf::from(format!("/var/lib/situla-test-vault-{}", std::process::id()));
        let vault = Vault { dir };
        fs::create_dir(&vault.dir).map_err(|e| format!("{}: {e}", vault.dir.display()))?;
        for name in ["tiny.sqsh", "tiny.sif", "demo.sqsh"] {
            let path = vault.path(name);
            fs::copy(desk.images.path(name), &path)
                .and_then(|_| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
                .map_err(|e| format!("{path}: {e}"))?;
        }
        let tree = desk.env.image_tree("tiny").display().to_string();
        command::run(command::words(["mkfs.erofs", "-zlz4", &vault.path("tiny.erofs"), &tree]), PATIENCE)?
            .success()?;
        Ok(vault)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A command of root's.
    fn command(&self, desk: &Desk, words: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(words).current_dir(&self.dir).env_clear();
        command.env("PATH", desk.env.search_path()).env("HOME", &self.dir).env("USER", "root");
        // Home is what the password file says.
        command.env("XDG_STATE_HOME", self.dir.join("state"));
        command
    }

    fn run(&self, desk: &Desk, words: &[&str]) -> Result<Output, String> {
        command::run(self.command(desk, words), PATIENCE)
    }

    fn start(&self, desk: &Desk, words: &[&str]) -> Result<Running, String> {
        command::start(self.command(desk, words))
    }

    /// How a Plan says that its root is made, and why.
    fn rung(&self, desk: &Desk, image: &str, options: &[&str]) -> Result<(String, String), String> {
        let words: Vec<&str> =
            ["situla", "plan"].into_iter().chain(options.iter().copied()).chain([image, "true"]).collect();
        let plan = self.run(desk, &words)?.success()?;
        let plan: Value = serde_json::from_str(&plan.stdout).map_err(|e| format!("{e}\n{plan}"))?;
        let text = |key: &str| plan["rootfs"][key].as_str().unwrap_or_default().to_owned();
        Ok((text("rung"), text("reason")))
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An id that nobody on the machine has.
const SUBORDINATE: &str = "1000000";

/// The files behind the loop devices of this machine.
fn looped() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let file = |path: PathBuf| fs::read_to_string(path.join("loop/backing_file")).ok();
    devices.filter_map(|device| file(device.path())).map(|text| text.trim().to_owned()).collect()
}

/// How many loop devices may be had at once: where no devtmpfs makes further nodes, as many as there are, and free.
fn n_loop_nodes() -> usize {
    let is_devtmpfs = fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|text| text.lines().any(|line| line.contains(" /dev ") && line.contains(" - devtmpfs ")));
    if is_devtmpfs {
        return usize::MAX;
    }
    let names = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let numbers = names.filter_map(|name| name.to_str()?.strip_prefix("loop")?.parse::<usize>().ok());
    numbers.count().saturating_sub(looped().len())
}

/// No loop device is left of an image of the vault, after a moment.
fn no_device_left(vault: &Vault) -> Result<(), String> {
    let place = vault.dir.display().to_string();
    let left = || looped().into_iter().filter(|file| file.starts_with(&place)).collect::<Vec<_>>();
    if wait_until(PATIENCE, || left().is_empty()) { Ok(()) } else { Err(format!("left: {:?}", left())) }
}

/// Root's container of each kind of image is a mount by the kernel, read-only, without set-uid and devices; it shows
/// what FUSE shows; Plan and record say so; exec-only and supervised. On the host nothing is mounted.
///
/// # Errors
/// It is not.
pub fn by_root(desk: &Desk) -> Check {
    let vault = Vault::new(desk)?;
    let look = format!(
        "cat {WITNESS}; ls -lan /bin /usr | sed 's/ [0-9][0-9]*:[0-9][0-9] / /'; grep root: /etc/passwd"
    );
    let by_fuse = vault
        .run(desk, &["situla", "exec", "--rootfs", "fuse", "tiny.sqsh", "sh", "-c", &look])?
        .success()?;
    for (image, kind) in [("tiny.sqsh", "squashfs"), ("tiny.sif", "squashfs"), ("tiny.erofs", "erofs")] {
        let (rung, reason) = vault.rung(desk, image, &[])?;
        if (rung.as_str(), reason.contains("only root can write")) != ("kernel", true) {
            return Err(format!("{image}: the plan says {rung}: {reason}").into());
        }
        for options in [&[][..], &["--record"]] {
            let words = |script| -> Vec<&str> {
                let start = ["situla", "exec"].into_iter().chain(options.iter().copied());
                start.chain([image, "sh", "-c", script]).collect()
            };
            let mounts = vault.run(desk, &words("cat /proc/self/mountinfo"))?.success()?;
            let root =
                mounts.stdout.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
            let fields: Vec<&str> = root.split(' ').collect();
            let flags: Vec<&str> = fields.get(5).unwrap_or(&"").split(',').collect();
            // An EROFS is mounted from its file where the kernel can (Linux 6.12), not through a loop device.
            let from_file = kind != "erofs" || !root.contains(" - erofs /dev/loop") || !mounts_files();
            let of_kind = root.contains(&format!(" - {kind} ")) && from_file;
            if !of_kind || !["ro", "nosuid", "nodev"].iter().all(|flag| flags.contains(flag)) {
                return Err(format!("{image}: the root is {root:?}").into());
            }
            let seen = vault.run(desk, &words(&look))?.success()?.expect_text("situla tiny image")?;
            let lines = |output: &Output| -> Vec<String> {
                // Directories have sizes of their own in each file system.
                let plain = output.stdout.lines().filter(|line| !line.starts_with(['d', 't']));
                plain.map(str::to_owned).collect()
            };
            if lines(&seen) != lines(&by_fuse) {
                return Err(format!("{image}: not the same as by FUSE\n{seen}\n{by_fuse}").into());
            }
        }
        // An instance stays mounted for whoever enters it.
        vault.run(desk, &["situla", "instance", "start", image, "kept"])?.success()?;
        let entered = vault.run(desk, &["situla", "exec", "instance://kept", "cat", WITNESS]);
        vault.run(desk, &["situla", "instance", "stop", "kept"])?.success()?;
        entered?.success()?.expect_text("situla tiny image")?;
        let shown = vault.run(desk, &["situla", "runs", "--json"])?.success()?;
        if !shown.stdout.contains(image) {
            return Err(format!("{image} is not among the runs\n{shown}").into());
        }
    }
    let records = vault.dir.join("state/situla/records");
    let journals = command::run(
        command::words(["grep", "-rl", "\"rung\":\"kernel\"", &records.display().to_string()]),
        PATIENCE,
    )?;
    if journals.success()?.stdout.lines().count() < 3 {
        return Err("records do not say that the kernel has mounted their images".into());
    }
    no_device_left(&vault)?;
    Ok(())
}

/// Root inside, with all capabilities over the container, cannot make its root writable or honour devices and
/// set-uid bits: neither by remounting nor by changing attributes, nor from a namespace below.
///
/// # Errors
/// He can.
pub fn flags_are_locked(desk: &Desk) -> Check {
    let vault = Vault::new(desk)?;
    // A tree with a device that everybody may read, and a set-uid program.
    let tree = vault.dir.join("tree");
    let copy = [Path::new("cp"), Path::new("-a"), &desk.env.image_tree("tiny"), &tree];
    command::run(command::words(copy.map(|word| word.as_os_str().to_owned())), PATIENCE)?.success()?;
    let place = tree.display().to_string();
    // Not busybox, which gives such rights back by itself.
    let script = format!(
        "mknod -m 666 {place}/zero c 1 5 && \
         cp -L --parents $(ldd /usr/bin/id | grep -o '/[^ ]*') {place} && cp -L /usr/bin/id {place}/id && \
         chown {SUBORDINATE}:{SUBORDINATE} {place}/id && chmod 6755 {place}/id && chmod 755 {place} ."
    );
    command::run(vault.command(desk, &["sh", "-c", &script]), PATIENCE)?.success()?;
    // On the host it works.
    let id = format!("{place}/id");
    let output = desk.env.as_user(desk.env.home()?, [id.as_str(), "-u"])?.success()?;
    if output.stdout.trim_end() != SUBORDINATE {
        return Err(format!("the program is not set-uid\n{output}").into());
    }
    let image = vault.path("node.sqsh");
    let made = ["mksquashfs", &place, &image, "-noappend", "-quiet", "-no-progress"];
    command::run(command::words(made), PATIENCE)?.success()?;
    // Of this very program, and of no other file system; above it, of the image as well as of what is in memory.
    let script = "grep -q ' / / ro,nosuid,nodev.* - squashfs /dev/loop' /proc/self/mountinfo || exit 9
        for flags in rw suid dev; do mount -o remount,bind,$flags / 2>/dev/null && exit 10; done
        head -c 1 /zero 2>/dev/null && exit 11
        touch /x 2>/dev/null && exit 12
        unshare -m sh -c 'mount -o remount,bind,dev / || head -c 1 /zero' 2>/dev/null && exit 13
        grep -q CapEff:.*0000000000000000 /proc/self/status && exit 14
        echo kept";
    for options in [&["--root"][..], &["--root", "--writable-tmpfs", "--pid"]] {
        let script =
            if options.len() > 1 { "head -c 1 /zero 2>/dev/null && exit 11; echo kept" } else { script };
        let words: Vec<&str> = ["situla", "exec", "--rootfs", "kernel"]
            .into_iter()
            .chain(options.iter().copied())
            .chain(["node.sqsh", "sh", "-c", script])
            .collect();
        vault.run(desk, &words)?.success()?.expect_text("kept")?;
    }
    // To somebody who has the owner of the set-uid program inside as well, it does not give his ids.
    fs::write(vault.dir.join("subids"), format!("root:{SUBORDINATE}:100\n"))?;
    let given = "mount --bind subids /etc/subuid && mount --bind subids /etc/subgid && exec \"$@\"";
    let mut words = vec!["unshare", "--mount", "--propagation", "slave", "sh", "-c", given, "sh"];
    words.extend(["situla", "exec", "--rootfs", "kernel", "--fakeroot", "--subids", "node.sqsh"]);
    words.extend(["sh", "-c", "stat -c '%u %g %a' /id; /id -u; /id -g"]);
    let output = vault.run(desk, &words)?.success()?;
    if output.stdout != "1 1 6755\n0\n0\n" {
        return Err(format!("a set-uid program\n{output}").into());
    }
    // The newer call, by which attributes are cleared one by one: 442 is mount_setattr, 4 is MOUNT_ATTR_NODEV.
    let python = "import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for name, bit in ('ro', 1), ('nosuid', 2), ('nodev', 4):
    attr = (ctypes.c_uint64 * 4)(0, bit, 0, 0)
    done = libc.syscall(442, -100, b'/', 0, attr, ctypes.sizeof(attr))
    print(name, done, os.strerror(ctypes.get_errno()))";
    let output = vault
        .run(desk, &["situla", "exec", "--rootfs", "kernel", "--root", "demo.sqsh", "python3", "-c", python])?
        .success()?;
    for name in ["ro", "nosuid", "nodev"] {
        let refused = format!("{name} -1 Operation not permitted");
        output.clone().expect_text(&refused)?;
    }
    no_device_left(&vault)?;
    Ok(())
}

/// What others than root can write, or could while it is open, is served by FUSE, with the reason in the Plan; and
/// `--rootfs kernel` is refused with the reason. An ordinary user never mounts, and EROFS has no other way.
///
/// # Errors
/// It is mounted, or the reason is another.
pub fn of_others(desk: &Desk) -> Check {
    let vault = Vault::new(desk)?;
    let served = |image: &str, why: &str| -> Check {
        let (rung, reason) = vault.rung(desk, image, &[])?;
        if rung != "fuse" || !reason.contains(why) {
            return Err(format!("{image}: the plan says {rung}: {reason}").into());
        }
        vault
            .run(desk, &["situla", "exec", image, "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
        let refused =
            vault.run(desk, &["situla", "exec", "--rootfs", "kernel", image, "true"])?.expect_code(125)?;
        refused
            .expect_text("cannot be mounted by the kernel")?
            .expect_text(why)?
            .expect_text("hint: let root own")?;
        Ok(())
    };
    let image = vault.path("tiny.sqsh");
    chown(&image, Some(desk.env.uid()?), None)?;
    served("tiny.sqsh", "others than root can write it")?;
    chown(&image, Some(0), None)?;
    for mode in [0o664, 0o646] {
        fs::set_permissions(&image, fs::Permissions::from_mode(mode))?;
        served("tiny.sqsh", "others than root can write it")?;
    }
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644))?;
    {
        let _writer = fs::OpenOptions::new().append(true).open(&image)?;
        served("tiny.sqsh", "somebody has it open for writing")?;
    }
    let (rung, _) = vault.rung(desk, "tiny.sqsh", &[])?;
    if rung != "kernel" {
        return Err(format!("it is {rung} when all is well again").into());
    }
    // Asked for another way.
    for (way, want) in [("fuse", "fuse"), ("extract", "extracted"), ("auto", "kernel"), ("mount", "kernel")] {
        let (rung, _) = vault.rung(desk, "tiny.sqsh", &["--rootfs", way])?;
        if rung != want {
            return Err(format!("--rootfs {way}: {rung}").into());
        }
    }
    fs::set_permissions(&vault.dir, fs::Permissions::from_mode(0o755))?;
    let home = desk.env.home()?.to_path_buf();
    let as_user = |words: &[&str]| desk.env.as_user(&home, words);
    let erofs = vault.path("tiny.erofs");
    as_user(&["situla", "exec", "--rootfs", "kernel", &image, "true"])?
        .expect_code(125)?
        .expect_text("you are not root")?;
    as_user(&["situla", "exec", &erofs, "true"])?
        .expect_code(125)?
        .expect_text("only root can run")?
        .expect_text("situla convert")?;
    let refused =
        vault.run(desk, &["situla", "exec", "--rootfs", "fuse", "tiny.erofs", "true"])?.expect_code(125)?;
    refused.expect_text("no other way")?;
    Ok(())
}

/// A user exchanges, in a directory of his own, an image of root's for one that he has made, while root starts containers
/// from it: what the kernel mounts is root's, whatever the name stands for by then.
///
/// # Errors
/// The kernel has mounted the user's; or only one of them was ever met.
pub fn exchanged_images(desk: &Desk) -> Check {
    /// Starts, each of both kinds.
    const ROUNDS: u32 = 80;
    let vault = Vault::new(desk)?;
    let dir = desk.env.work_dir("exchange")?;
    let tree = vault.dir.join("tree");
    let copy = [Path::new("cp"), Path::new("-a"), &desk.env.image_tree("tiny"), &tree];
    command::run(command::words(copy), PATIENCE)?.success()?;
    fs::write(tree.join(&WITNESS[1..]), "the user's own\n")?;
    let (name, other) = (dir.path().join("image.sqsh"), dir.path().join("other.sqsh"));
    let made =
        ["mksquashfs", &tree.display().to_string(), &other.display().to_string(), "-noappend", "-quiet"];
    command::run(command::words(made), PATIENCE)?.success()?;
    chown(&other, Some(desk.env.uid()?), None)?;
    fs::copy(vault.path("tiny.sqsh"), &name)?;
    fs::set_permissions(&name, fs::Permissions::from_mode(0o644))?;
    let shown = name.display().to_string();
    let look = format!("LOOK=grep ' / / ' /proc/self/mountinfo | grep -o -- '- [a-z]*'; cat {WITNESS}");
    let loops = format!(
        "i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); \
         situla exec {shown} sh -c \"$LOOK\" || echo failed; \
         situla exec --rootfs kernel {shown} sh -c \"$LOOK\" 2>&1 | tr '\\n' ' '; echo; done"
    );
    let over = AtomicBool::new(false);
    let (ran, swaps) = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u64;
            while !over.load(Ordering::Relaxed) {
                swaps += u64::from(renameat_with(CWD, &name, CWD, &other, RenameFlags::EXCHANGE).is_ok());
            }
            swaps
        });
        let ran = command::run(vault.command(desk, &[look.as_str(), "sh", "-c", &loops]), PATIENCE);
        over.store(true, Ordering::Relaxed);
        (ran, swapper.join().unwrap_or_default())
    });
    let ran = ran?.success()?;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let mounted = |kind: &str, of: &str| {
        lines.windows(2).filter(|two| two[0].contains(kind) && two[1].starts_with(of)).count()
    };
    let (root, users) = ("situla tiny image", "the user's own");
    let insisted =
        |of: &str| lines.iter().filter(|line| line.starts_with("- squashfs") && line.contains(of)).count();
    let refused = lines.iter().filter(|line| line.contains("others than root can write it")).count();
    if mounted("squashfs", users) > 0 || insisted(users) > 0 {
        return Err(format!("the kernel has mounted what the user has made\n{ran}").into());
    }
    // Otherwise nothing was tried. Above the mount of our server lies an overlay.
    let met = [mounted("squashfs", root), mounted("overlay", users), insisted(root), refused];
    if met.contains(&0) || swaps < u64::from(ROUNDS) * 10 {
        return Err(format!("{swaps} exchanges, and this was met: {met:?}\n{ran}").into());
    }
    no_device_left(&vault)?;
    Ok(())
}

/// Many at once, and one that is killed with the process that waits for it: all run, and no device stays.
///
/// # Errors
/// One fails, or something stays.
pub fn many_at_once(desk: &Desk) -> Check {
    const MANY: usize = 32;
    let vault = Vault::new(desk)?;
    for image in ["tiny.sqsh", "tiny.erofs"] {
        let words = ["situla", "exec", "--rootfs", "kernel", "--record", image, "cat", WITNESS];
        let n_starts = if image == "tiny.sqsh" { MANY.min(n_loop_nodes()) } else { MANY };
        let running = (0..n_starts).map(|_| vault.start(desk, &words));
        let running: Vec<Running> = running.collect::<Result<_, _>>()?;
        for one in running {
            one.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;
        }
        no_device_left(&vault)?;
        let words = ["situla", "exec", "--rootfs", "kernel", "--record", image, "sleep", "4217"];
        let running = vault.start(desk, &words)?;
        let payload = || {
            process_ids().into_iter().find(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line == b"sleep\x004217\x00"
            })
        };
        if !wait_until(PATIENCE, || payload().is_some()) {
            return Err(format!("{image}: no payload\n{}", running.finish(PATIENCE)?).into());
        }
        let pid = i32::try_from(running.pid()).ok().and_then(Pid::from_raw).ok_or("no pid")?;
        kill_process(pid, Signal::KILL)?;
        running.finish(PATIENCE)?.expect_code(128 + 9)?;
        if !wait_until(PATIENCE, || payload().is_none()) {
            return Err(format!("{image}: the payload goes on").into());
        }
        no_device_left(&vault)?;
    }
    Ok(())
}

/// Tasks of a step of root's, each of which mounts its image before it can meet the others.
const TASKS: usize = 4;

/// Needs as many loop devices.
///
/// # Errors
/// There are fewer.
pub(super) fn loop_devices() -> Result<(), Skip> {
    if n_loop_nodes() < TASKS {
        return Err(Skip(format!("needs {TASKS} loop devices in /dev")));
    }
    Ok(())
}

/// Tasks of a step of root's are in one container, whose image the kernel has mounted over one loop device when all of them
/// have joined it: by the plugin and by the command line.
///
/// # Errors
/// They are in several, or a task keeps a device of its own, or something is left.
pub fn tasks_of_a_step(site: &Site) -> Check {
    let desk = site.desk();
    let vault = Vault::new(&desk)?;
    let image = vault.path("tiny.sqsh");
    let n_tasks = format!("-n{TASKS}");
    let name = format!("roots-{}", std::process::id());
    let start = ["srun", "--quiet", "--job-name", &name, &n_tasks, "-N1", "--overcommit"];
    let here = vault.dir.display().to_string();
    let script = format!(
        "for n in user mnt; do readlink /proc/self/ns/$n; done; grep ' / / ' /proc/self/mountinfo | grep -o -- '- .*loop'; \
         touch {here}/here.$SLURM_PROCID; until [ -e {here}/go ]; do sleep 0.05; done"
    );
    let option = format!("--container-image={image}");
    let mounts = format!("--container-mounts={here}");
    let ways: [&[&str]; 2] =
        [&["situla", "exec", "--rootfs", "kernel", "--bind", &here, &image], &[&option, &mounts]];
    for way in ways {
        let words: Vec<&str> =
            start.into_iter().chain(way.iter().copied()).chain(["sh", "-c", &script]).collect();
        let mut command = vault.command(&desk, &words);
        site.cluster.talks_to(&mut command);
        let running = command::start(command)?;
        let is_here = |rank: usize| vault.dir.join(format!("here.{rank}")).exists();
        let all_here = wait_until(PATIENCE / 2, || (0..TASKS).all(is_here));
        let n_devices = || looped().iter().filter(|file| **file == image).count();
        // Those that have joined let go at once.
        let has_one = all_here && wait_until(PATIENCE / 4, || n_devices() == 1);
        let n_left = n_devices();
        fs::write(vault.dir.join("go"), "")?;
        let output = running.finish_within(PATIENCE)?;
        if !has_one || output.timed_out {
            // It is root's, whose jobs nobody else cancels.
            site.cluster.admin(&["scancel", "--name", &name])?;
            return Err(format!("{way:?}: all are there: {all_here}, with {n_left} devices\n{output}").into());
        }
        let output = output.success()?;
        for kind in ["user:", "mnt:", "- squashfs /dev/loop"] {
            let lines: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with(kind)).collect();
            if lines.len() != TASKS || lines.iter().any(|line| *line != lines[0]) {
                return Err(format!("{way:?}: not one {kind} of all\n{output}").into());
            }
        }
        no_device_left(&vault)?;
        for name in (0..TASKS).map(|rank| format!("here.{rank}")).chain(["go".to_owned()]) {
            fs::remove_file(vault.dir.join(name))?;
        }
    }
    Ok(())
}

/// Whether this kernel mounts EROFS images from files: since Linux 6.12.
fn mounts_files() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 12)
}
