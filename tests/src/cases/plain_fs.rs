//! What is made on a file system that can little: with neither hard links nor a rename that refuses to replace.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Desk;
use super::privileged::Mounted;
use crate::command::{self, Output, Running, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::tier::{self, Check, Skip};

/// Such a file system, mounted as long as this lives.
struct PlainFs {
    // In this order: it ends when it is unmounted, and then nobody is in the directory.
    mounted: Option<Mounted>,
    server: Option<Running>,
    dir: WorkDir,
}

impl PlainFs {
    fn mount(desk: &Desk) -> Result<Self, String> {
        let dir = desk.env.work_dir("plain-fs")?;
        let (below, point) = (dir.path().join("below"), dir.path().join("point"));
        let uid = desk.env.uid()?;
        for path in [&below, &point] {
            let made = fs::create_dir(path).and_then(|()| chown(path, Some(uid), None));
            made.map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let mut server = Command::new("python3");
        server.arg(desk.env.file("tests/programs/plain_fs.py")).arg(&below).arg(&point);
        let server = command::start(server)?;
        let is_mounted = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            table.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(point.as_path()))
        };
        if !wait_until(PATIENCE, is_mounted) {
            let output = server.finish_within(Duration::ZERO)?;
            return Err(format!("the plain file system is not mounted\n{output}"));
        }
        Ok(Self { mounted: Some(Mounted(point)), server: Some(server), dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("point")
    }

    fn run(&self, desk: &Desk, words: &[&str]) -> Result<Output, String> {
        let cache = format!("XDG_CACHE_HOME={}", self.path().join("cache").display());
        desk.env.as_user(&self.path(), ["env", &cache].iter().chain(words))
    }
}

impl Drop for PlainFs {
    fn drop(&mut self) {
        drop(self.mounted.take());
        // What does not end by itself then is killed.
        let _ = self.server.take().map(|server| server.finish_within(Duration::from_secs(5)));
    }
}

/// Needs Python, in which that file system is written.
///
/// # Errors
/// It is not there.
pub fn interpreter() -> Result<(), Skip> {
    tier::succeeds("python3", &["--version"]).map_err(|why| Skip(format!("needs python3: {why}")))
}

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A file is made there with `--force`; without, the file system and that way are named before anything is converted, and
/// nothing is left. A layout needs neither; a directory with links is refused by name.
///
/// # Errors
/// It is otherwise.
pub fn convert(desk: &Desk) -> Check {
    let place = PlainFs::mount(desk)?;
    let run = |words: &[&str]| place.run(desk, words);
    run(&["sh", "-c", "echo x >a && ! ln a b 2>/dev/null && rm a"])?.success()?;
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let tree = desk.env.image_tree("tiny").display().to_string();
    let file = desk.images.path("tiny.sqsh");
    for (source, target) in [
        (&layout, "a.sqsh"),
        (&tree, "a.sif"),
        (&file, "b.sqsh"),
        (&file, "b.sif"),
        (&layout, "docker-archive:c.tar:tiny:1"),
    ] {
        let refused = run(&["situla", "convert", source, target])?.expect_code(125)?;
        refused.expect_text("fuse.plain")?.expect_text("neither hard links nor")?.expect_text("--force")?;
        if !names(&place.path()).is_empty() {
            return Err(format!("{target}: {:?} are left", names(&place.path())).into());
        }
        run(&["situla", "convert", "--force", source, target])?.success()?;
        run(&["situla", "convert", source, target])?.expect_code(125)?;
        if let [made] = names(&place.path()).as_slice()
            && !made.starts_with('.')
        {
            if !made.ends_with(".tar") {
                let path = format!("./{made}");
                run(&["situla", "exec", &path, "cat", WITNESS])?
                    .success()?
                    .expect_text("situla tiny image")?;
            }
            run(&["rm", made])?.success()?;
        } else {
            return Err(format!("{target}: {:?}", names(&place.path())).into());
        }
    }
    run(&["situla", "convert", &layout, "oci:layout:1"])?.success()?;
    run(&["situla", "inspect", "oci:layout:1"])?.success()?;
    let refused = run(&["situla", "convert", &layout, "directory/"])?.expect_code(125)?;
    refused.expect_text("fuse.plain")?.expect_text("links")?;
    if names(&place.path()) != ["layout"] {
        return Err(format!("{:?} are left", names(&place.path())).into());
    }
    Ok(())
}

/// A user's store works there: several that want an image at once get it, and it is run, listed and removed.
///
/// # Errors
/// It does not.
pub fn stores(desk: &Desk) -> Check {
    let place = PlainFs::mount(desk)?;
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let cache = format!("XDG_CACHE_HOME={}", place.path().join("cache").display());
    let start = || -> Result<Running, String> {
        let words = ["env", &cache, "situla", "exec", &layout, "cat", WITNESS];
        command::start(desk.env.user_command(&place.path(), words)?)
    };
    let running = (0..4).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    for running in running {
        running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;
    }
    let store = place.path().join("cache/situla");
    let images = names(&store.join("images"));
    if images.len() != 2 || names(&store.join("leases")).len() + names(&store.join("tmp")).len() != 0 {
        return Err(format!("{images:?}").into());
    }
    place.run(desk, &["situla", "images", "--verify"])?.success()?.expect_text("yes")?;
    place.run(desk, &["situla", "prune", "--all"])?.success()?.expect_text("removed 1")?;
    Ok(())
}
