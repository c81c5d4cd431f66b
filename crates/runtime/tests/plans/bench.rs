//! A root file system to run things in, and ways to run them.

use std::fs::{self, OpenOptions};
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use situla_squashfs::{Metadata, NodeKind, Tree, Writer, WriterOptions};

const DEADLINE: Duration = Duration::from_secs(20);
const APPLETS: [&str; 8] = ["sh", "cat", "ls", "readlink", "sleep", "test", "true", "touch"];

/// Which kind of root file system a test uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Directory,
    Image,
}

/// A root file system with busybox in it, as a directory and as an image.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// Prepares one, or says why the tests cannot run here.
    pub(crate) fn prepare() -> Option<Self> {
        let missing =
            [("/bin/busybox", "busybox-static is not installed"), ("/dev/fuse", "there is no /dev/fuse")]
                .into_iter()
                .find(|(path, _)| OpenOptions::new().read(true).open(path).is_err())
                .map(|(_, why)| why);
        if let Some(why) = missing {
            skip(why);
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plan that runs `script` in a shell; `change` makes it what the test needs.
    pub(crate) fn plan(&self, kind: Kind, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
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

    pub(crate) fn run(&self, kind: Kind, script: &str, change: impl FnOnce(&mut Value)) -> Output {
        finish(start(&self.plan(kind, script, change), &[]))
    }
}

/// Says why a test does not run, or fails it where all must. What needs root may be run by itself, as root.
pub(crate) fn skip(why: &str) {
    if why.starts_with("needs root") && std::env::var_os("SITULA_TEST_ROOT_APART").is_some() {
        println!("left to the tests that are run as root: {why}");
        return;
    }
    assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "{why}");
    println!("skipped: {why}");
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

pub(crate) fn runner() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/run_plan")
}

pub(crate) fn start(plan: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(runner());
    command.arg(plan).args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Takes the output of a child; one that runs too long is killed, and the test fails.
pub(crate) fn finish(mut child: Child) -> Output {
    wait_until("the payload to end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn text(output: &Output) -> (String, String) {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (shown(&output.stdout), shown(&output.stderr))
}

/// The keepers that were started from this test process or its children: by name and parent chain.
pub(crate) fn keepers_of(runner: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        stat.contains("(situla-keeper)") && parent == Some(runner)
    })
    .collect()
}
