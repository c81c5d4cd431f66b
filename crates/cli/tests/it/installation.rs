//! An installation in a temporary directory, with a home, a policy and records that nothing else sees.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A copy of the program, and directories around it.
pub(crate) struct Installation(tempfile::TempDir);

impl Installation {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for part in ["bin", "etc/situla", "home", "work"] {
            std::fs::create_dir_all(dir.path().join(part)).expect("writable");
        }
        // Not a link: the program finds its policy by the place that it is at. By another program: what this
        // process had open for writing, a child that another test forks would have open for a moment too,
        // and then nobody can execute it.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_situla")).arg(dir.path().join("bin/situla")).status();
        assert!(copied.expect("cp starts").success());
        Installation(dir)
    }

    /// The same, with `work/image.sqsh` that can be run; or says why there can be none here.
    pub(crate) fn with_image() -> Option<Self> {
        Self::with_image_of(|_| {})
    }

    /// The same, of a tree to which `more` has added what a test needs.
    pub(crate) fn with_image_of(more: impl FnOnce(&Path)) -> Option<Self> {
        let missing =
            [("/bin/busybox", "busybox-static is not installed"), ("/dev/fuse", "no usable /dev/fuse")]
                .into_iter()
                .find(|(path, _)| std::fs::OpenOptions::new().read(true).open(path).is_err());
        if let Some((_, why)) = missing {
            skip(why);
            return None;
        }
        let site = Installation::new();
        let root = site.path().join("root");
        for part in ["bin", "dev", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(root.join(part)).expect("writable");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("readable");
        for name in ["sh", "true", "cat"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("writable");
        }
        more(&root);
        let root = root.to_str().expect("a plain path");
        let output = site.situla(&["convert", "--quiet", root, "image.sqsh"]);
        assert!(output.status.success(), "{output:?}");
        Some(site)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn policy(&self, text: &str) {
        std::fs::write(self.path().join("etc/situla/policy.toml"), text).expect("writable");
    }

    /// The program under one of its names.
    pub(crate) fn command(&self, name: &str, words: &[&str]) -> Command {
        let link = self.path().join("bin").join(name);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink("situla", &link).expect("writable");
        }
        let mut command = Command::new(link);
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path().join("home"))
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .current_dir(self.path().join("work"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn situla(&self, words: &[&str]) -> Output {
        self.command("situla", words).output().expect("it starts")
    }
}

/// What a program wrote, as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Says why a test does not run, or fails it where all must.
pub(crate) fn skip(why: &str) {
    // What needs root may be run by itself, as root.
    if why.starts_with("needs root") && std::env::var_os("SITULA_TEST_ROOT_APART").is_some() {
        let _ = writeln!(std::io::stderr(), "left to the tests that are run as root: {why}");
        return;
    }
    assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "{why}");
    // Past the test harness, which keeps the output of tests that pass.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
