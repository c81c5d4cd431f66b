//! The process that serves an image.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::installation::{Installation, skip, text};

/// For what takes a moment, on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A run whose payload says a line when it has come somewhere, and waits for one to go on.
struct Held {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    keeper: u32,
}

impl Held {
    /// Starts `script`, which says "up" first.
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut held = Held { child, input, output, keeper: 0 };
        held.hear("up");
        let pids = fs::read_dir("/proc")
            .expect("readable")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let parent = held.child.id();
        let found: Vec<u32> = pids.filter(|pid| is_keeper_of(*pid, parent)).collect();
        let [keeper] = found[..] else { panic!("one keeper is expected, not {found:?}") };
        held.keeper = keeper;
        held
    }

    fn of(site: &Installation, script: &str) -> Self {
        Self::start(
            &mut site.command("situla", &["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script]),
        )
    }

    /// Waits for the next line, which must be this.
    fn hear(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("readable");
        if line.trim_end() != expected {
            let mut errors = String::new();
            let _ = self.child.stderr.take().expect("piped").read_to_string(&mut errors);
            panic!("{expected:?} was expected, not {line:?}: {errors}");
        }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"go\n").expect("the payload reads");
    }

    /// Lets it go on to its end; gives what it has still said, and how it ended.
    fn end(mut self) -> (String, String, ExitStatus) {
        drop(self.input);
        let (mut said, mut errors) = (String::new(), String::new());
        self.output.read_to_string(&mut said).expect("readable");
        self.child.stderr.take().expect("piped").read_to_string(&mut errors).expect("readable");
        (said, errors, self.child.wait().expect("it ends"))
    }
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn is_keeper_of(pid: u32, parent: u32) -> bool {
    let status = status(pid);
    let has = |line: &str| status.lines().any(|other| other == line);
    has("Name:\tsitula-keeper") && has(&format!("PPid:\t{parent}"))
}

/// Whether it runs no more; a dead one that nobody has waited for is gone as well.
fn is_gone(pid: u32) -> bool {
    let status = status(pid);
    !status.contains("situla-keeper") || status.lines().any(|line| line.starts_with("State:\tZ"))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that do not get smaller, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

const MIB: usize = 1024 * 1024;

/// What of a container has its descriptors, by what they refer to.
fn open_files(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of one's own");
    let entries = entries.map(|entry| entry.expect("readable"));
    let named = entries.filter_map(|entry| {
        Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?))
    });
    named.collect()
}

#[test]
fn it_may_open_more_files_than_the_payload() {
    let Some(site) = Installation::with_image() else { return };
    let script = "echo up; ulimit -Sn; ulimit -Hn; read x";
    let command =
        site.command("situla", &["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script]);
    let held = Held::start(&mut through_shell("ulimit -Sn 64", &command));
    let limits = fs::read_to_string(format!("/proc/{}/limits", held.keeper)).expect("readable");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line of its own");
    let of_keeper: Vec<String> = line.split_whitespace().skip(3).take(2).map(str::to_owned).collect();
    let (said, errors, _) = held.end();
    let [soft, hard] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said:?} {errors}") };
    assert_eq!(soft, "64");
    assert_eq!(of_keeper, [hard, hard]);
}

/// The same command, after a shell has done something.
fn through_shell(first: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.env_clear();
    shell
        .args(["-c", &format!("{first}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    shell
}

#[test]
fn no_signal_but_kill_ends_it() {
    let Some(site) = Installation::with_image_of(|root| {
        fs::write(root.join("unread"), noise(MIB)).expect("writable");
    }) else {
        return;
    };
    // What nobody has read yet must come from the keeper.
    let held = Held::of(&site, "echo up; read x; cat /unread | busybox wc -c");
    let keeper = Pid::from_raw(i32::try_from(held.keeper).expect("small")).expect("not 0");
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::PIPE,
    ] {
        kill_process(keeper, signal).expect("it is there");
    }
    let (said, errors, status) = held.end();
    assert_eq!((said.trim(), status.code()), (MIB.to_string().as_str(), Some(0)), "{errors}");
}

/// The payload ends and leaves a process behind: whoever reads the payload's output sees its end at once, and the
/// process goes on to read the image for as long as it lives. The keeper goes with it.
#[test]
fn it_holds_nothing_of_the_payload_and_is_the_last_to_go() {
    let data = noise(MIB);
    let Some(site) = Installation::with_image_of(|root| {
        fs::write(root.join("unread"), &data).expect("writable");
    }) else {
        return;
    };
    let work = site.path().join("work");
    let bind = format!("{}:/place", work.display());
    let script = "echo up; read x; \
                  (busybox touch /place/stays; while ! [ -e /place/go ]; do busybox usleep 2000; done; \
                  cat /unread >/place/copy; busybox mv /place/copy /place/copied; \
                  while ! [ -e /place/end ]; do busybox usleep 2000; done) </dev/null >/dev/null 2>&1 9>&- & \
                  exit 0";
    let words = ["exec", "--rootfs", "fuse", "--bind", &bind, "image.sqsh", "/bin/sh", "-c", script];
    // One descriptor more than a program usually has.
    let mut held = Held::start(&mut through_shell("exec 9>&1", &site.command("situla", &words)));
    let keeper = held.keeper;
    let of_caller: Vec<PathBuf> =
        open_files(held.child.id()).into_iter().map(|(_, file)| file).filter(|file| is_pipe(file)).collect();
    assert!(of_caller.len() >= 3, "{of_caller:?}");
    let of_keeper = open_files(keeper);
    for number in 0..3 {
        let null = (number, PathBuf::from("/dev/null"));
        assert!(of_keeper.contains(&null), "{of_keeper:?}");
    }
    let shared: Vec<_> = of_keeper.iter().filter(|(_, file)| of_caller.contains(file)).collect();
    assert!(shared.is_empty(), "{shared:?} are the caller's");
    held.go_on();
    // Returns when nobody has the other ends any more.
    let (said, errors, status) = held.end();
    assert_eq!((said.as_str(), status.code()), ("", Some(0)), "{errors}");
    wait_until("the process that stays", || work.join("stays").exists());
    assert!(!is_gone(keeper), "somebody is in the container still");
    fs::write(work.join("go"), "").expect("writable");
    wait_until("the copy", || work.join("copied").exists());
    assert!(fs::read(work.join("copied")).expect("readable") == data, "the image was served wrongly");
    assert!(!is_gone(keeper), "somebody is in the container still");
    fs::write(work.join("end"), "").expect("writable");
    wait_until("the keeper's end", || is_gone(keeper));
}

fn is_pipe(file: &Path) -> bool {
    file.to_string_lossy().starts_with("pipe:")
}

/// The time that each thread of a process has run, in nanoseconds.
fn running_times(pid: u32) -> Vec<(String, u64)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let threads = threads.map(|thread| thread.expect("readable").path());
    let times = threads.map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat")).expect("readable");
        let time = text.split(' ').next().and_then(|time| time.parse().ok()).expect("a number");
        (thread.display().to_string(), time)
    });
    times.collect()
}

#[test]
fn two_readers_are_served_by_two_threads() {
    /// What one reader asks for, and what each of two threads must have worked for.
    const SIZE: usize = 24 * MIB;
    const SHARE: u64 = 2_000_000;
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip("one processor");
        return;
    }
    let Some(site) = Installation::with_image_of(|root| {
        let data = noise(SIZE);
        for name in ["one", "two"] {
            // Different, or there would be but one of them in the image.
            fs::write(root.join(name), [name.as_bytes(), &data].concat()).expect("writable");
        }
    }) else {
        return;
    };
    let script = "echo up; read x; cat /one >/dev/null & cat /two >/dev/null; wait; echo read; read x; true";
    let mut held = Held::of(&site, script);
    let before = running_times(held.keeper);
    assert!(before.len() >= 2, "{before:?}");
    held.go_on();
    held.hear("read");
    let after = running_times(held.keeper);
    let used = |(thread, time): &(String, u64)| {
        time - before.iter().find(|(other, _)| other == thread).map_or(0, |(_, time)| *time)
    };
    let busy: Vec<u64> = after.iter().map(used).filter(|time| *time > SHARE).collect();
    let (_, errors, status) = held.end();
    assert!(status.success(), "{errors}");
    assert!(busy.len() >= 2, "{before:?} {after:?}");
}

/// How often a process has read something: the keeper does for each request, and some more for what it needs of the
/// image.
fn n_reads(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("a process of one's own");
    let line = text.lines().find_map(|line| line.strip_prefix("syscr: ")).expect("a line of its own");
    line.parse().expect("a number")
}

#[test]
fn a_tree_is_asked_for_once_and_not_name_by_name() {
    const N_DIRECTORIES: usize = 20;
    const N_FILES: usize = 100;
    let Some(site) = Installation::with_image_of(|root| {
        for directory in 0..N_DIRECTORIES {
            let directory = root.join(format!("files/{directory}"));
            fs::create_dir_all(&directory).expect("writable");
            for file in 0..N_FILES {
                fs::write(directory.join(file.to_string()), "").expect("writable");
            }
        }
    }) else {
        return;
    };
    // Needs the attributes of each name, not the name alone.
    let look = "busybox find /files -size -1 -type f | busybox wc -l";
    let script = format!("echo up; read x; {look}; read x; {look}; read x; true");
    let mut held = Held::of(&site, &script);
    let expected = (N_DIRECTORIES * N_FILES).to_string();
    let mut counts = Vec::new();
    for _ in 0..2 {
        let before = n_reads(held.keeper);
        held.go_on();
        held.hear(&expected);
        counts.push(n_reads(held.keeper) - before);
    }
    let (_, errors, status) = held.end();
    assert!(status.success(), "{errors}");
    let [first, second] = counts[..] else { panic!("{counts:?}") };
    // Each directory is looked up, and answers in a few parts; a name of its own would be a request more.
    let few = u64::try_from(N_DIRECTORIES * 20).expect("small");
    assert!(first > u64::try_from(N_DIRECTORIES).expect("small") && first < few, "{counts:?}");
    // The pages of busybox may be wanted anew; nothing of the tree is.
    assert!(second < 5, "{counts:?}");
}

#[test]
fn extended_attributes_of_the_image_are_seen_inside() {
    if !Path::new("/usr/bin/python3").exists() {
        skip("python3 is not installed");
        return;
    }
    let mut has_any = true;
    let Some(site) = Installation::with_image_of(|root| {
        fs::write(root.join("plain"), "").expect("writable");
        fs::write(root.join("described"), "").expect("writable");
        fs::create_dir_all(root.join("usr")).expect("writable");
        for name in ["lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("writable");
        }
        for (name, value) in
            [("user.colour", &b"blue"[..]), ("user.empty", b""), ("user.long", &[b'x'; 3000])]
        {
            let flags = rustix::fs::XattrFlags::CREATE;
            has_any &= rustix::fs::setxattr(root.join("described"), name, value, flags).is_ok();
        }
    }) else {
        return;
    };
    if !has_any {
        skip("temporary files have no extended attributes here");
        return;
    }
    let program = r#"
import os
print(sorted(os.listxattr("/described")), os.listxattr("/plain"))
print(os.getxattr("/described", "user.colour"), os.getxattr("/described", "user.empty"))
print(os.getxattr("/described", "user.long") == b"x" * 3000)
for path, name in [("/plain", "user.colour"), ("/described", "user.none")]:
    try: print(os.getxattr(path, name))
    except OSError as error: print(os.strerror(error.errno))
try: os.setxattr("/described", "user.colour", b"red")
except OSError as error: print(os.strerror(error.errno))
"#;
    let output = site.situla(&[
        "exec",
        "--rootfs",
        "fuse",
        "--bind",
        "/usr:/usr:ro",
        "image.sqsh",
        "/usr/bin/python3",
        "-c",
        program,
    ]);
    let expected = "['user.colour', 'user.empty', 'user.long'] []\nb'blue' b''\nTrue\n\
                    No data available\nNo data available\nRead-only file system\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

/// All files belong to the one id that is mapped; what the image says about their owner's rights holds, also for root,
/// who has no capabilities inside.
#[test]
fn the_bits_of_modes_are_honoured() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root: an image is made of files that their owner may not read");
        return;
    }
    let mode = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    };
    let Some(site) = Installation::with_image_of(|root| {
        for directory in ["open", "unlisted", "closed"] {
            fs::create_dir_all(root.join(directory)).expect("writable");
            fs::write(root.join(directory).join("file"), "read\n").expect("writable");
        }
        for name in ["owners", "nobodys", "others", "program"] {
            fs::write(root.join(name), "#!/bin/sh\necho read\n").expect("writable");
        }
        for (name, bits) in [
            ("owners", 0o600),
            ("nobodys", 0o000),
            // The owner's own bits count, not those of everybody.
            ("others", 0o077),
            ("program", 0o644),
            ("open", 0o700),
            ("unlisted", 0o300),
        ] {
            mode(root.join(name), bits);
        }
    }) else {
        return;
    };
    let script = "try() { \"$@\" >/dev/null 2>&1 && echo yes || echo no; }; \
                  try cat /owners; try cat /nobodys; try cat /others; try /program; \
                  try cat /open/file; try busybox ls /open; try cat /unlisted/file; try busybox ls /unlisted; \
                  try cat /closed/file; busybox stat -c '%u %g' /nobodys";
    let output = site.situla(&["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script]);
    let me = fs::metadata(site.path()).expect("ours");
    let expected = format!("yes no no no yes yes yes no yes {} {}", me.uid(), me.gid());
    let said = text(&output.stdout);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words.join(" "), expected, "{}", text(&output.stderr));
}

/// Tasks of one user whose primary groups differ: each gets at the image, in a container with its own ids.
#[test]
fn a_task_with_another_primary_group_gets_at_the_image() {
    const OTHER_GROUP: u32 = 65_533;
    if !rustix::process::geteuid().is_root() {
        skip("needs root: only root can take another primary group");
        return;
    }
    let Some(site) = Installation::with_image_of(|root| {
        fs::write(root.join("private"), "read\n").expect("writable");
        fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o600)).expect("ours");
    }) else {
        return;
    };
    let ran = |rank: &str, group: u32| {
        let script = "echo up; cat /private; busybox id -g; busybox readlink /proc/self/ns/mnt";
        let held = Held::start(task(&site, 2_000_000_000, rank, script).gid(group));
        let keeper = Pid::from_raw(i32::try_from(held.keeper).expect("small")).expect("not 0");
        let (said, errors, status) = held.end();
        // It waits for the step's other task, which asks for another container.
        let _ = kill_process(keeper, Signal::KILL);
        assert!(status.success(), "{errors}");
        said
    };
    let own = rustix::process::getgid().as_raw();
    let (first, second) = (ran("0", own), ran("1", OTHER_GROUP));
    assert!(first.starts_with(&format!("read\n{own}\nmnt:")), "{first}");
    assert!(second.starts_with(&format!("read\n{OTHER_GROUP}\nmnt:")), "{second}");
}

/// The most memory that the keeper of `site` has had when the payload has read what `command` prints, all of it.
fn peak(site: &Installation, command: &str, n_bytes: usize) -> usize {
    let mut held = Held::of(site, &format!("echo up; read x; {command} | busybox wc -c; read x; true"));
    held.go_on();
    held.hear(&n_bytes.to_string());
    let status = status(held.keeper);
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it lives");
    let kib: usize = line.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a number");
    let (_, errors, ended) = held.end();
    assert!(ended.success(), "{errors}");
    kib * 1024
}

/// A task of a step of two, which asks for this. Jobs of this process are counted from `jobs` on: each test has its own.
fn task(site: &Installation, jobs: u32, rank: &str, script: &str) -> Command {
    let words = ["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script];
    let mut command = site.command("situla", &words);
    command.envs([
        ("SLURM_JOB_ID", (jobs + std::process::id()).to_string().as_str()),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_NODEID", "0"),
        ("SLURM_PROCID", rank),
        ("SLURM_LOCALID", rank),
        ("SLURMD_NODENAME", "here"),
        ("SLURM_STEP_NODELIST", "here"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "2"),
    ]);
    command
}

/// A task that waits for a container which does not come to stand, as where another one's file system does not answer, ends
/// when it is asked to, and the task that it has waited for goes on.
#[test]
fn who_waits_for_it_may_be_asked_to_end() {
    let Some(site) = Installation::with_image() else { return };
    let held = Held::start(&mut task(&site, 1_900_000_000, "0", "echo up; read x; echo through"));
    let keeper = Pid::from_raw(i32::try_from(held.keeper).expect("small")).expect("not 0");
    kill_process(keeper, Signal::STOP).expect("it is there");
    let mut waiting = task(&site, 1_900_000_000, "1", "echo in vain").spawn().expect("it starts");
    let pid = Pid::from_child(&waiting);
    // It has a connection of its own then, and nobody answers.
    wait_until("the task to wait", || {
        let sockets = open_files(waiting.id());
        let status = status(waiting.id());
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
        let blocked = blocked.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or_default();
        // As proc_pid_status(5) counts them: TERM is 15.
        blocked & (1 << 14) != 0
            && sockets.into_iter().any(|(_, file)| file.to_string_lossy().starts_with("socket:"))
    });
    kill_process(pid, Signal::TERM).expect("it is there");
    let mut end = None;
    wait_until("the task to end", || {
        end = waiting.try_wait().expect("a child");
        end.is_some()
    });
    kill_process(keeper, Signal::CONT).expect("it is there");
    let (said, errors, status) = held.end();
    assert_eq!(end.and_then(|end| end.signal()), Some(15));
    assert_eq!((said.as_str(), status.success()), ("through\n", true), "{errors}");
}

#[test]
fn its_memory_does_not_grow_with_the_image() {
    const SIZE: usize = 160 * MIB;
    const MOST: usize = 32 * MIB;
    let Some(site) = Installation::with_image_of(|root| {
        fs::write(root.join("large"), noise(SIZE)).expect("writable");
    }) else {
        return;
    };
    assert!(fs::metadata(site.path().join("work/image.sqsh")).expect("made").len() > SIZE as u64 * 9 / 10);
    // What passes through is not kept.
    let peak = peak(&site, "cat /large", SIZE);
    assert!(peak < MOST, "{peak} bytes");
}

#[test]
fn its_caches_are_used_and_stay_within_their_bound() {
    const FILES: usize = 3200;
    const PIECE: usize = 256;
    const SIZE: usize = 200 * PIECE;
    // Of the 64 MiB that all caches may have together 36 are for such blocks; with twice as much the most would
    // be passed, and without a cache the least would not be reached.
    const LEAST: usize = 36 * MIB;
    const MOST: usize = 64 * MIB;
    let Some(site) = Installation::with_image_of(|root| {
        fs::create_dir(root.join("many")).expect("writable");
        // Files that share blocks and get smaller: the blocks are kept as they are decompressed.
        for (number, piece) in noise(FILES * PIECE).chunks(PIECE).enumerate() {
            fs::write(root.join(format!("many/{number}")), piece.repeat(SIZE / PIECE)).expect("writable");
        }
    }) else {
        return;
    };
    let peak = peak(&site, "cat /many/*", FILES * SIZE);
    assert!((LEAST..MOST).contains(&peak), "{peak} bytes");
}
