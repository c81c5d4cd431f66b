//! Runs Plans for real, through the `run_plan` example, and looks at them from inside.
//!
//! Needs user namespaces, `/dev/fuse` and Debian's busybox-static; without them the tests print why
//! they were skipped, or fail where `SITULA_TEST_REQUIRE` is set.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says why it skips"
)]

use std::fs::{self, File, OpenOptions};
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use situla_squashfs::{Metadata, NodeKind, Tree, Writer, WriterOptions};

const DEADLINE: Duration = Duration::from_secs(20);
const APPLETS: [&str; 8] = ["sh", "cat", "ls", "readlink", "sleep", "test", "true", "touch"];

/// Which kind of root file system a test uses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Directory,
    Image,
}

/// A root file system with busybox in it, as a directory and as an image.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// Prepares one, or says why the tests cannot run here.
    fn prepare() -> Option<Self> {
        let missing =
            [("/bin/busybox", "busybox-static is not installed"), ("/dev/fuse", "there is no /dev/fuse")]
                .into_iter()
                .find(|(path, _)| OpenOptions::new().read(true).open(path).is_err())
                .map(|(_, why)| why);
        if let Some(why) = missing {
            assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "{why}");
            println!("skipped: {why}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "real"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        symlink("real", root.join("link")).unwrap();
        fs::write(root.join("etc/witness"), "from the image\n").unwrap();
        write_image(&directory.path().join("root.sqsh"));
        Some(Bench { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plan that runs `script` in a shell; `change` makes it what the test needs.
    fn plan(&self, kind: Kind, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let image = self.path("root.sqsh");
        let source = match kind {
            Kind::Directory => json!({"kind": "directory", "path": self.path("root")}),
            Kind::Image => json!({
                "kind": "squashfs", "path": image, "offset": 0, "length": fs::metadata(&image).unwrap().len()
            }),
        };
        let bind = |path: &str| json!({"destination": path, "source": path, "type": "bind", "options": ["rbind", "nosuid"]});
        let map = |id: u32| json!([{"containerID": id, "hostID": id, "size": 1}]);
        let mut plan = json!({
            "schema": 1,
            "image": {"requested": "test", "rootfs": {"state": "unverified"}},
            "verdict": {"decision": "allow", "mode": "enforce", "policy": "none", "reasons": []},
            "rootfs": {"source": source, "rung": "fuse", "reason": "test", "patches": []},
            "share": {"with": "nobody", "reason": "test"},
            "bindings": [],
            "spec": {
                "ociVersion": "1.2.0",
                "process": {
                    "user": {"uid": uid, "gid": gid}, "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"],
                    "cwd": "/", "noNewPrivileges": true
                },
                "root": {"path": "test", "readonly": true},
                "mounts": [bind("/dev"), bind("/proc")],
                "linux": {
                    "namespaces": [{"type": "user"}, {"type": "mount"}],
                    "uidMappings": map(uid), "gidMappings": map(gid)
                }
            }
        });
        change(&mut plan);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.path(&format!("plan-{number}.json"));
        fs::write(&path, plan.to_string()).unwrap();
        path
    }

    fn run(&self, kind: Kind, script: &str, change: impl FnOnce(&mut Value)) -> Output {
        finish(start(&self.plan(kind, script, change), &[]))
    }
}

/// Writes the same tree as an image.
fn write_image(path: &Path) {
    let out = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    let mut writer = Writer::create(out, WriterOptions::default()).unwrap();
    let mut add = |content: &[u8]| NodeKind::File(writer.add_file(&mut Cursor::new(content)).unwrap());
    let busybox = add(&fs::read("/bin/busybox").unwrap());
    let witness = add(b"from the image\n");
    let meta = |mode: u16| Metadata { mode, uid: 0, gid: 0, mtime: 1, xattrs: Vec::new() };
    let mut tree = Tree::new(meta(0o755));
    let root = tree.root();
    for name in ["dev", "proc", "sys", "tmp", "real"] {
        let id = tree.add(meta(0o755), NodeKind::Directory(Default::default())).unwrap();
        tree.link(root, name.as_bytes(), id).unwrap();
    }
    let bin = tree.add(meta(0o755), NodeKind::Directory(Default::default())).unwrap();
    let etc = tree.add(meta(0o755), NodeKind::Directory(Default::default())).unwrap();
    tree.link(root, b"bin", bin).unwrap();
    tree.link(root, b"etc", etc).unwrap();
    let busybox = tree.add(meta(0o755), busybox).unwrap();
    tree.link(bin, b"busybox", busybox).unwrap();
    for applet in APPLETS {
        let link = tree.add(meta(0o777), NodeKind::Symlink(b"busybox".to_vec())).unwrap();
        tree.link(bin, applet.as_bytes(), link).unwrap();
    }
    let link = tree.add(meta(0o777), NodeKind::Symlink(b"real".to_vec())).unwrap();
    tree.link(root, b"link", link).unwrap();
    let witness = tree.add(meta(0o600), witness).unwrap();
    tree.link(etc, b"witness", witness).unwrap();
    writer.finish(&tree).unwrap();
}

fn runner() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/run_plan")
}

fn start(plan: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(runner());
    command.arg(plan).args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Takes the output of a child; one that runs too long is killed, and the test fails.
fn finish(mut child: Child) -> Output {
    wait_until("the payload to end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn text(output: &Output) -> (String, String) {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (shown(&output.stdout), shown(&output.stderr))
}

/// The keepers that were started from this test process or its children: by name and parent chain.
fn keepers_of(runner: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        stat.contains("(situla-keeper)") && parent == Some(runner)
    })
    .collect()
}

#[test]
fn both_kinds_of_root_are_read_only_and_show_the_image() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /etc/witness; touch /etc/new 2>/dev/null || echo refused; exit 3";
        let output = bench.run(kind, script, |_| {});
        let (out, err) = text(&output);
        assert_eq!(output.status.code(), Some(3), "{kind:?}: {err}");
        assert_eq!(out, "from the image\nrefused\n", "{kind:?}: {err}");
    }
    let plan = bench.plan(Kind::Directory, "cat /etc/witness", |_| {});
    let output = finish(start(&plan, &["exec-only"]));
    assert_eq!(text(&output).0, "from the image\n");
}

#[test]
fn the_payload_has_no_privileges_and_nothing_open() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /proc/self/status; ls /proc/self/fd | while read fd; do echo fd:$fd; done";
        let (out, err) = text(&bench.run(kind, script, |_| {}));
        for line in [
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "SigBlk:\t0000000000000000",
        ] {
            assert!(out.contains(line), "{kind:?}: no {line:?} in {out}{err}");
        }
        // SIGPIPE (13) is bit 12: Rust's runtime ignores it, the payload must not.
        let ignored = out.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & (1 << 12), 0, "{kind:?}");
        let open: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("fd:")).collect();
        // ls itself has its directory open.
        assert_eq!(open, ["0", "1", "2", "3"], "{kind:?}");
    }
}

#[test]
fn patches_make_mount_points_and_hide_files() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir(bench.path("data")).unwrap();
    fs::write(bench.path("data/file"), "bound\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /new/deep/file /etc/witness; cat /etc/added; ls /etc";
        let output = bench.run(kind, script, |plan| {
            plan["rootfs"]["patches"] = json!([
                {"path": "/new/deep", "kind": "directory", "reason": "test"},
                {"path": "/etc/witness", "kind": "file", "content": "hidden\n", "mode": 0o644, "reason": "test"},
                {"path": "/etc/added", "kind": "file", "content": "added\n", "mode": 0o644, "reason": "test"},
            ]);
            let bind = json!({
                "destination": "/new/deep", "source": bench.path("data"), "type": "bind", "options": ["rbind", "ro"]
            });
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let (out, err) = text(&output);
        let mut listed: Vec<&str> = out.lines().skip(3).collect();
        listed.sort_unstable();
        assert!(out.starts_with("bound\nhidden\nadded\n"), "{kind:?}: {out}{err}");
        assert_eq!(listed, ["added", "witness"], "{kind:?}: {err}");
        assert!(
            !bench.path("root/new").exists() && !bench.path("root/etc/added").exists(),
            "the image was changed"
        );
    }
}

#[test]
fn account_files_are_completed() {
    let Some(bench) = Bench::prepare() else { return };
    let user = json!({"name": "ann", "uid": 77, "gid": 78, "gecos": "", "home": "/h", "shell": "/bin/sh"});
    let groups = json!([{"name": "crew", "gid": 78}]);
    for kind in [Kind::Directory, Kind::Image] {
        // The image's file is no account file: its line stays, and the user's comes after it.
        let output = bench.run(kind, "cat /etc/witness; ls /etc", |plan| {
            let passwd = json!({"path": "/etc/witness", "kind": "passwd", "user": user, "reason": "test"});
            plan["rootfs"]["patches"] = json!([passwd]);
        });
        let (out, err) = text(&output);
        assert_eq!(out, "from the image\nann:x:77:78::/h:/bin/sh\nwitness\n", "{kind:?}: {err}");
        let output = bench.run(kind, "cat /etc/witness", |plan| {
            let group = json!({
                "path": "/etc/witness", "kind": "group", "user": "ann", "groups": groups, "reason": "test"
            });
            plan["rootfs"]["patches"] = json!([group]);
        });
        assert_eq!(text(&output).0, "from the image\ncrew:x:78:ann\n", "{kind:?}");
    }
}

#[test]
fn usual_patches_of_a_directory_need_no_overlay() {
    let Some(bench) = Bench::prepare() else { return };
    let script =
        "cat /etc/witness; ls /real /real/home; touch /real/x /etc/witness; cat /proc/self/mountinfo";
    let show = |patches: Value| {
        let output = bench.run(Kind::Directory, script, |plan| plan["rootfs"]["patches"] = patches);
        let (out, err) = text(&output);
        assert_eq!(err.matches("Read-only file system").count(), 2, "{err}");
        let (seen, mounts) = out.split_at(out.find(" / ").unwrap_or(0));
        (seen.to_owned(), mounts.contains("overlay"))
    };
    let usual = json!([
        {"path": "/etc/witness", "kind": "file", "content": "hidden\n", "mode": 0o644, "reason": "test"},
        {"path": "/real/home/user", "kind": "directory", "reason": "test"},
        {"path": "/real/home/file", "kind": "file", "content": "", "mode": 0o644, "reason": "test"},
        {"path": "/tmp", "kind": "directory", "reason": "there already"},
    ]);
    let (seen, overlay) = show(usual.clone());
    assert!(seen.starts_with("hidden\n/real:\nhome\n\n/real/home:\nfile\nuser\n"), "{seen}");
    assert!(!overlay, "a cover was enough");
    // A new name in a directory that has others cannot be shown without one.
    let mut more = usual;
    let new = json!({"path": "/etc/new", "kind": "file", "content": "", "mode": 0o644, "reason": "test"});
    more.as_array_mut().unwrap().push(new);
    let (seen, overlay) = show(more);
    assert!(seen.starts_with("hidden\n/real:\nhome\n\n/real/home:\nfile\nuser\n"), "{seen}");
    assert!(overlay, "{seen}");
}

#[test]
fn an_overlay_covers_no_more_than_it_must() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir(bench.path("root/etc/sub")).unwrap();
    fs::set_permissions(bench.path("root/etc/sub"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(bench.path("root/etc/sub/old"), "old\n").unwrap();
    let file = |path: &str| json!({"path": path, "kind": "file", "content": "new\n", "mode": 0o640, "reason": "test"});
    let script = "cat /etc/witness /etc/sub/new /etc/sub/old /etc/new; ls /etc /etc/sub; ls -ld /etc/sub /etc/new; \
                  touch /etc/x /etc/sub/x; cat /proc/self/mountinfo";
    // In whatever order they come; a name in the root itself takes an overlay over all.
    let deep_first = json!([file("/etc/sub/new"), file("/etc/witness"), file("/etc/new")]);
    let deep_last = json!([file("/etc/new"), file("/etc/witness"), file("/etc/sub/new")]);
    let root = json!([file("/etc/sub/new"), file("/top"), file("/etc/witness"), file("/etc/new")]);
    for (patches, place) in [(deep_first, "/etc"), (deep_last, "/etc"), (root, "/")] {
        let output = bench.run(Kind::Directory, script, |plan| plan["rootfs"]["patches"] = patches);
        let (out, err) = text(&output);
        let lists = "new\nnew\nold\nnew\n/etc:\nnew\nsub\nwitness\n\n/etc/sub:\nnew\nold\n";
        assert!(out.starts_with(lists), "{place}: {out}{err}");
        assert!(out.contains("drwxr-x--x") && out.contains("-rw-r-----"), "{place}: {out}");
        assert_eq!(err.matches("Read-only file system").count(), 2, "{place}: {err}");
        let overlays = out.lines().filter(|line| line.contains(" - overlay "));
        let places: Vec<&str> = overlays.filter_map(|line| line.split(' ').nth(4)).collect();
        assert_eq!(places, [place], "{out}");
    }
}

#[test]
fn failures_before_exec_are_named() {
    let Some(bench) = Bench::prepare() else { return };
    let bind = |source: &str, destination: &str| json!({"destination": destination, "source": source, "type": "bind", "options": ["rbind"]});
    type Change<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("BindSourceMissing", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/no/such", "/tmp")]))),
        ("MountFailed", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/dev", "/no/such")]))),
        ("MountFailed", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/dev", "/etc/witness")]))),
        ("WorkingDirectory", Box::new(|plan| plan["spec"]["process"]["cwd"] = json!("/no/such"))),
        ("CommandNotFound", Box::new(|plan| plan["spec"]["process"]["args"] = json!(["nothing"]))),
        ("CommandNotExecutable", Box::new(|plan| plan["spec"]["process"]["args"] = json!(["/etc"]))),
        ("Setup", Box::new(|plan| plan["keep_fds"] = json!([77]))),
    ];
    for kind in [Kind::Directory, Kind::Image] {
        for (class, change) in &cases {
            let output = bench.run(kind, "exit 0", change);
            let (out, err) = text(&output);
            assert_eq!(output.status.code(), Some(125), "{kind:?} {class}: {out}{err}");
            assert!(err.starts_with(&format!("error: {class}: ")), "{kind:?} {class}: {err}");
        }
    }
}

#[test]
fn signals_reach_the_payload_and_its_death_is_ours() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let output = bench.run(kind, "kill -TERM $$", |_| {});
        assert_eq!(output.status.signal(), Some(15), "{kind:?}");
        let ready = bench.path(&format!("ready-{kind:?}"));
        fs::create_dir(&ready).unwrap();
        let script = "trap 'echo caught; exit 7' USR1; touch /real/yes; while :; do sleep 1 & wait $!; done";
        let plan = bench.plan(kind, script, |plan| {
            let bind = json!({"destination": "/real", "source": ready, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let child = start(&plan, &[]);
        wait_until("the payload to be ready", || ready.join("yes").exists());
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
            rustix::process::Signal::USR1,
        )
        .unwrap();
        let output = finish(child);
        assert_eq!((output.status.code(), text(&output).0.as_str()), (Some(7), "caught\n"), "{kind:?}");
    }
}

#[test]
fn tasks_with_one_key_share_namespaces_in_any_order() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let gate = bench.path(&format!("gate-{kind:?}"));
        fs::create_dir(&gate).unwrap();
        let share = |plan: &mut Value| {
            let key = format!("test/{}/{kind:?}", std::process::id());
            plan["share"] = json!({"with": "step", "key": key, "local_tasks": 4});
            let bind = json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        };
        let show = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/user; cat /etc/witness";
        // The first task has gone before the last ones come.
        let first = bench.run(kind, show, share);
        let held = start(
            &bench.plan(
                kind,
                &format!("{show}; touch /real/here; while ! test -e /real/go; do sleep 0.01; done"),
                share,
            ),
            &[],
        );
        wait_until("the second task", || gate.join("here").exists());
        let others: Vec<Child> = (0..2).map(|_| start(&bench.plan(kind, show, share), &[])).collect();
        let expected = text(&first);
        assert!(expected.0.ends_with("from the image\n"), "{kind:?}: {}", expected.1);
        for other in others {
            assert_eq!(text(&finish(other)), expected, "{kind:?}");
        }
        File::create(gate.join("go")).unwrap();
        assert_eq!(text(&finish(held)), expected, "{kind:?}");
    }
}

#[test]
fn a_payload_does_not_survive_its_image_or_its_parent() {
    let Some(bench) = Bench::prepare() else { return };
    let run = |name: &str| {
        let ready = bench.path(name);
        fs::create_dir(&ready).unwrap();
        let plan = bench.plan(Kind::Image, "echo $$ > /real/pid; exec sleep 1000", |plan| {
            let bind = json!({"destination": "/real", "source": ready, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let child = start(&plan, &[]);
        let pid = ready.join("pid");
        wait_until("the payload", || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
        let payload: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        (child, payload)
    };
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let gone = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    };

    let (child, payload) = run("keeper");
    let keepers = keepers_of(child.id());
    assert_eq!(keepers.len(), 1);
    kill(keepers[0]);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).1.contains("ServerLost"), "{}", text(&output).1);
    wait_until("the payload to be gone", || gone(payload));

    let (child, payload) = run("parent");
    let keepers = keepers_of(child.id());
    kill(child.id());
    let output = finish(child);
    assert_eq!(output.status.signal(), Some(9));
    wait_until("payload and keeper to be gone", || gone(payload) && keepers.iter().all(|pid| gone(*pid)));
}

#[test]
fn image_files_of_any_owner_belong_to_the_user() {
    let Some(bench) = Bench::prepare() else { return };
    // Mode 0600 and owned by root in the image.
    let output = bench.run(Kind::Image, "cat /etc/witness", |_| {});
    assert_eq!(text(&output).0, "from the image\n");
}

#[test]
fn the_death_of_one_waiting_process_ends_the_tasks_of_all() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        for victim in 0..3 {
            let gate = bench.path(&format!("death-{kind:?}-{victim}"));
            fs::create_dir(&gate).unwrap();
            let script = |number: usize| format!("touch /real/{number}; exec sleep 1000");
            let share = |plan: &mut Value| {
                let key = format!("death/{}/{kind:?}/{victim}", std::process::id());
                plan["share"] = json!({"with": "step", "key": key, "local_tasks": 3});
                let bind =
                    json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
                plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
            };
            let mut tasks: Vec<Child> = Vec::new();
            for number in 0..3 {
                tasks.push(start(&bench.plan(kind, &script(number), share), &[]));
                wait_until("a task", || gate.join(number.to_string()).exists());
            }
            let pid = rustix::process::Pid::from_raw(i32::try_from(tasks[victim].id()).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            for (number, task) in tasks.into_iter().enumerate() {
                let output = finish(task);
                if number == victim {
                    assert_eq!(output.status.signal(), Some(9), "{kind:?}");
                } else {
                    assert_eq!(output.status.code(), Some(125), "{kind:?}, {number} after {victim}");
                    assert!(text(&output).1.contains("ServerLost"), "{}", text(&output).1);
                }
            }
        }
    }
}

#[test]
fn a_rank_that_comes_again_gets_a_container_of_its_own() {
    let Some(bench) = Bench::prepare() else { return };
    let share = |plan: &mut Value| {
        let key = format!("again/{}", std::process::id());
        plan["share"] = json!({"with": "step", "key": key, "local_tasks": 2});
    };
    // The other task never comes, so the keeper of the first container waits for it.
    let show = bench.plan(Kind::Directory, "readlink /proc/self/ns/mnt", share);
    let run = || {
        let mut command = Command::new(runner());
        command.arg(&show).env("RANK", "7").stdin(Stdio::null());
        text(&command.output().unwrap())
    };
    let (first, second) = (run(), run());
    // It would wait some minutes more; a keeper has the command line of the task that forked it.
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let wanted = show.to_string_lossy().into_owned();
    for pid in pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&wanted))
    }) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(first.0.starts_with("mnt:") && second.0.starts_with("mnt:"), "{first:?} {second:?}");
    assert_ne!(first.0, second.0, "the second run must not see what the first one mounted");
}

#[test]
fn what_is_written_above_a_root_goes_to_memory_or_to_a_directory() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let host = bench.path(&format!("above-{kind:?}"));
        fs::create_dir(&host).unwrap();
        let patches = json!([
            {"path": "/new/deep", "kind": "directory", "reason": "test"},
            {"path": "/etc/added", "kind": "file", "content": "added\n", "mode": 0o644, "reason": "test"},
        ]);
        let over = |overlay: Value, writable: bool| {
            let patches = patches.clone();
            move |plan: &mut Value| {
                plan["rootfs"]["overlay"] = overlay;
                plan["rootfs"]["patches"] = patches;
                plan["spec"]["root"]["readonly"] = json!(!writable);
            }
        };
        let write = "echo mine > /etc/witness; echo more > /real/more; cat /etc/witness /real/more /etc/added; ls /new";
        let seen = "mine\nmore\nadded\ndeep\n";
        let show = "cat /etc/witness /etc/added; test -e /real/more || echo no more";
        let memory = json!({"upper": {"kind": "tmpfs"}});
        let directory = json!({"upper": {"kind": "directory", "path": host}});
        // Written and gone; written and there again.
        for (overlay, after) in [(memory, "from the image\nadded\nno more\n"), (directory, "mine\nadded\n")] {
            let (out, err) = text(&bench.run(kind, write, over(overlay.clone(), true)));
            assert_eq!(out, seen, "{kind:?} {overlay}: {err}");
            let (out, err) = text(&bench.run(kind, show, over(overlay.clone(), true)));
            assert_eq!(out, after, "{kind:?} {overlay}: {err}");
        }
        assert_eq!(fs::read_to_string(host.join("upper/real/more")).unwrap(), "more\n");
        assert!(!bench.path("root/real/more").exists() && !bench.path("root/etc/added").exists());
        // Layers that are shown and not written to, the first one on top.
        let first = bench.path(&format!("first-{kind:?}"));
        fs::create_dir_all(first.join("real")).unwrap();
        fs::write(first.join("real/more"), "first\n").unwrap();
        fs::write(first.join("real/only"), "only\n").unwrap();
        let lowers = json!([first, host.join("upper")]);
        let script = "cat /real/more /real/only /etc/witness; touch /real/x 2>/dev/null || echo refused";
        let (out, err) = text(&bench.run(kind, script, over(json!({"lowers": lowers}), false)));
        assert_eq!(out, "first\nonly\nmine\nrefused\n", "{kind:?}: {err}");
        // With a place for what is written above them, they stay as they are.
        let overlay = json!({"lowers": lowers, "upper": {"kind": "tmpfs"}});
        let script = "echo new > /real/only; cat /real/only; cat /proc/self/mountinfo";
        let (out, err) = text(&bench.run(kind, script, over(overlay, true)));
        assert!(out.starts_with("new\n"), "{kind:?}: {out}{err}");
        assert_eq!(fs::read_to_string(first.join("real/only")).unwrap(), "only\n");
        let root = out.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
        assert!(root.contains("nosuid") && root.contains("nodev"), "{kind:?}: {root}");
        // A file cannot take anything.
        let overlay = json!({"upper": {"kind": "directory", "path": first.join("real/only")}});
        let (_, err) = text(&bench.run(kind, "exit 0", over(overlay, true)));
        assert!(err.starts_with("error: Overlay: "), "{kind:?}: {err}");
    }
}

#[test]
fn mount_points_are_made_in_memory_and_nowhere_else() {
    let Some(bench) = Bench::prepare() else { return };
    let host = bench.path("host-directory");
    fs::create_dir(&host).unwrap();
    fs::write(bench.path("host-file"), "host\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        let mounts = |more: Value| {
            let bind = |from: &str, to: &str| json!({"destination": to, "source": from, "type": "bind", "options": ["rbind"]});
            let mut all = vec![
                json!({"destination": "/dev", "source": "tmpfs", "type": "tmpfs", "options": ["mode=0755", "nosuid"]}),
                bind("/dev/null", "/dev/null"),
                json!({
                    "destination": "/dev/pts", "source": "devpts", "type": "devpts",
                    "options": ["mode=0620", "ptmxmode=0666"]
                }),
                bind("/proc", "/proc"),
                json!({"destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["mode=1777"]}),
                bind(&bench.path("host-file").display().to_string(), "/tmp/a/b/file"),
                bind(&host.display().to_string(), "/tmp/a/dir"),
            ];
            all.extend(more.as_array().unwrap().iter().cloned());
            move |plan: &mut Value| plan["spec"]["mounts"] = json!(all)
        };
        let script = "cat /tmp/a/b/file; ls -a /dev; echo x > /dev/null; readlink /dev/fd; readlink /dev/ptmx; touch /tmp/x /tmp/a/dir/y";
        let (out, err) = text(&bench.run(kind, script, mounts(json!([]))));
        let expected = "host\n.\n..\nfd\nnull\nptmx\npts\nstderr\nstdin\nstdout\n/proc/self/fd\npts/ptmx\n";
        assert_eq!(out, expected, "{kind:?}: {err}");
        assert!(host.join("y").exists());
        fs::remove_file(host.join("y")).unwrap();
        // Neither a directory of the host nor the image gets a mount point.
        for destination in ["/tmp/a/dir/new", "/etc/new"] {
            let file = bench.path("host-file");
            let more =
                json!([{"destination": destination, "source": file, "type": "bind", "options": ["rbind"]}]);
            let (_, err) = text(&bench.run(kind, "exit 0", mounts(more)));
            assert!(err.starts_with("error: MountFailed: "), "{kind:?} {destination}: {err}");
        }
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
    }
}

/// Refused calls as `REFUSE` has them: ENOSYS is 38, EPERM 1, EINVAL 22.
const NEW_MOUNT_CALLS: &str = "open_tree,move_mount,mount_setattr,fsopen";

/// Other tests of this file, run again with system calls refused to all that they start.
fn again_without(refused: &str, tests: &[&str]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "without_"])
        .args(tests)
        .env("REFUSE", refused)
        .output()
        .unwrap();
    let (out, err) = text(&output);
    assert!(output.status.success(), "{refused}: {out}{err}");
    assert!(out.contains("test result: ok. ") && !out.contains("ok. 0 passed"), "{refused}: {out}");
}

#[test]
fn without_the_new_mount_calls_everything_is_the_same() {
    if Bench::prepare().is_none() {
        return;
    }
    again_without(&format!("38:{NEW_MOUNT_CALLS},openat2,close_range"), &[]);
    // Linux 5.10 has all of them but one; filters refuse in their own way.
    again_without("38:mount_setattr", &["root", "patches", "mounts", "above"]);
    again_without(&format!("1:{NEW_MOUNT_CALLS}"), &["root", "patches", "mounts"]);
}

#[test]
fn without_any_mount_call_the_start_fails() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let plan = bench.plan(kind, "exit 0", |_| {});
        let mut command = Command::new(runner());
        let output =
            command.arg(&plan).env("REFUSE", format!("38:mount,{NEW_MOUNT_CALLS}")).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{kind:?}");
        assert!(text(&output).1.starts_with("error: MountFailed: "), "{kind:?}: {}", text(&output).1);
    }
}

#[test]
fn without_openat2_or_pivot_root_everything_is_the_same() {
    if Bench::prepare().is_none() {
        return;
    }
    again_without("38:openat2,close_range", &["root", "patches", "mounts", "failures", "privileges"]);
    // What a host says that runs from its initial RAM file system.
    again_without("22:pivot_root", &["root", "patches", "mounts", "share", "privileges"]);
}

#[test]
fn mounts_inside_have_their_flags_and_those_below_them() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir_all(bench.path("host/deep dir/there")).unwrap();
    fs::write(bench.path("host/deep dir/there/file"), "seen\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        // Two levels of mounts that are not the Plan's, one of them at a path with a space in it.
        let outer = bench.path("host").display().to_string();
        let script = "cat '/real/deep dir/there/file'; touch /real/x '/real/deep dir/x' 2>&1; cat /proc/self/mountinfo";
        let plan = bench.plan(kind, script, |plan| {
            // unshare(1) below makes this user root.
            plan["spec"]["linux"]["uidMappings"][0]["hostID"] = json!(0);
            plan["spec"]["linux"]["gidMappings"][0]["hostID"] = json!(0);
            let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
            let options = ["rbind", "nosuid", "nodev", "ro", "rprivate"];
            mounts.push(json!({"destination": "/real", "source": outer, "type": "bind", "options": options}));
            mounts.push(json!({
                "destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["mode=0755", "noexec"]
            }));
        });
        let inner = format!("{outer}/deep dir");
        // In a mount namespace of its own, so that nothing is left.
        let command = format!("mount --bind '{inner}' '{inner}' && exec \"$0\" \"$1\"");
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &command])
            .arg(runner())
            .arg(&plan)
            .output()
            .unwrap();
        let (out, err) = text(&output);
        assert!(out.starts_with("seen\n"), "{kind:?}: {out}{err}");
        assert_eq!(out.matches("Read-only file system").count(), 2, "{kind:?}: {out}{err}");
        let flags = |point: &str| -> String {
            let line = out.lines().find(|line| line.split(' ').nth(4) == Some(point));
            line.and_then(|line| line.split(' ').nth(5)).unwrap_or_default().to_owned()
        };
        for point in ["/real", "/real/deep\\040dir"] {
            for flag in ["ro", "nosuid", "nodev"] {
                assert!(
                    flags(point).split(',').any(|word| word == flag),
                    "{kind:?} {point}: {}",
                    flags(point)
                );
            }
        }
        assert!(flags("/tmp").contains("noexec"), "{kind:?}: {out}");
        // No trace of where mounts were made.
        let points: Vec<&str> = out.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        let below_tmp = points.iter().filter(|point| point.starts_with("/tmp/")).count();
        assert_eq!(below_tmp, 0, "{kind:?}: {out}");
    }
}
