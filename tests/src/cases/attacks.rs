//! Attacks, tried for real: by a hostile image, by a program inside, by a neighbour on the node.
//!
//! Each case is the story of advisories of other engines, told of ours; `docs/security.md` says which. An
//! attack that can be tried in several ways counts its tries, so that a script that broke off does not look
//! like a defence. What the attacker must not reach is a directory of the same user that no container shows.

mod image;
mod inside;
mod layers;
mod over_proc;
pub(super) mod tenants;
mod two_jobs;
mod umask;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::Desk;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, WorkDir};
use crate::tier::Check;

pub use image::{
    account_files, device_nodes_and_set_uid_programs, environment_scripts, exchanged_sources,
    links_out_of_the_image, neighbouring_prefixes, swapped_directories, terminal_and_devices,
};
pub use inside::{
    control_groups, descriptors_and_variables, inherited_capabilities, own_binary, processes_and_mounts,
    working_directory,
};
pub use layers::hostile_layers;
pub use over_proc::over_mounted_proc;
pub use tenants::{
    a_strangers_step, another_tenants_view, entering_an_instance, entering_tasks, noise_at_the_meeting_point,
    outside_the_step,
};
pub use two_jobs::two_users_jobs;
pub use umask::open_umask;

/// Programs of a hostile image.
const APPLETS: [&str; 12] =
    ["sh", "cat", "ls", "id", "sleep", "touch", "readlink", "grep", "true", "stat", "head", "env"];

/// What stands in the file that no attacker may read or change.
const SECRET: &str = "the host's own";

/// A root file system that an attacker has made, beside a directory of the host that he is after.
struct Hostile<'a> {
    desk: &'a Desk,
    dir: WorkDir,
}

impl<'a> Hostile<'a> {
    /// Makes one with busybox in it and nothing hostile yet. It belongs to root, as a real one would not,
    /// so that it may hold what only root can make.
    fn new(desk: &'a Desk, name: &str) -> Result<Self, String> {
        let hostile = Self { desk, dir: desk.env.work_dir(name)? };
        let io = |e: std::io::Error| format!("{name}: {e}");
        for path in ["root/bin", "root/dev", "root/etc", "root/proc", "root/sys", "root/tmp", "host/inner"] {
            fs::create_dir_all(hostile.dir.path().join(path)).map_err(io)?;
        }
        let busybox = desk.env.image_tree("tiny").join("bin/busybox");
        fs::copy(busybox, hostile.path("bin/busybox")).map_err(io)?;
        for applet in APPLETS {
            symlink("busybox", hostile.path("bin").join(applet)).map_err(io)?;
        }
        hostile.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(hostile.host().join("secret"), format!("{SECRET}\n")).map_err(io)?;
        // The attacker is the same user: rights alone must not be what stops him.
        for path in [hostile.host(), hostile.host().join("inner"), hostile.host().join("secret")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(io)?;
        }
        Ok(hostile)
    }

    /// A path of the image.
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    /// What the attacker is after.
    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// Puts a file into the image that everybody may execute.
    fn write(&self, path: &str, text: &str) -> Result<(), String> {
        let path = self.path(path);
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Puts a link into the image, in place of what is there.
    fn link(&self, target: impl AsRef<Path>, path: &str) -> Result<(), String> {
        let path = self.path(path);
        let there = path.symlink_metadata();
        let removed = match there.map(|meta| meta.is_dir()) {
            Ok(true) => fs::remove_dir_all(&path),
            Ok(false) => fs::remove_file(&path),
            Err(_) => Ok(()),
        };
        removed.and_then(|()| symlink(target, &path)).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The image as a directory and as a file: `check` is called with each.
    fn each_kind(&self, check: impl Fn(&str) -> Check) -> Check {
        let directory = self.path("").display().to_string();
        check(directory.trim_end_matches('/')).map_err(|e| story("a directory", &e))?;
        let file = self.dir.path().join("image.sqsh");
        let words = [self.desk.env.situla(), Path::new("convert"), &self.path(""), &file];
        command::run(command::words(words), PATIENCE)?.success()?;
        check(&file.display().to_string()).map_err(|e| story("an image file", &e))?;
        fs::remove_file(file)?;
        Ok(())
    }

    /// Runs the program under test from `/`, so that a container shows nothing of the test's directory.
    fn run(&self, words: &[&str]) -> Result<Output, String> {
        self.desk.env.as_user(Path::new("/"), [&["situla"], words].concat())
    }

    /// Runs `script` in a shell inside `image`.
    fn shell(&self, image: &str, options: &[&str], script: &str) -> Result<Output, String> {
        self.run(&[&["exec", "--no-home"], options, &[image, "sh", "-c", script]].concat())
    }

    /// Fails where the attacker has left something on the host, or changed something there.
    fn untouched(&self) -> Check {
        let mut names = Vec::new();
        let mut pending = vec![self.host()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                }
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        let secret = fs::read_to_string(self.host().join("secret"))?;
        if names == ["inner", "secret"] && secret.trim_end() == SECRET {
            return Ok(());
        }
        Err(format!("the host's directory was reached: it holds {names:?}, and {secret:?}").into())
    }
}

fn story(where_: &str, error: &libtest_mimic::Failed) -> libtest_mimic::Failed {
    format!("{where_}: {}", error.message().unwrap_or_default()).into()
}

/// Fails where the output holds `text`: what the attacker wanted to see.
fn without(output: Output, text: &str) -> Result<Output, String> {
    if output.stdout.contains(text) || output.stderr.contains(text) {
        return Err(format!("the attacker saw {text:?}\n{output}"));
    }
    Ok(output)
}

/// Reads the tally of an attack script: a line `refused: …` or `done: …` for each try. Fails where one was
/// done, or where there were not exactly `tries`.
fn all_refused(output: Output, tries: usize) -> Check {
    let output = output.success()?;
    let done = output.stdout.lines().any(|line| line.starts_with("done:"));
    let refused = output.stdout.lines().filter(|line| line.starts_with("refused:")).count();
    if done || refused != tries {
        return Err(format!("{refused} of {tries} attacks were refused\n{output}").into());
    }
    Ok(())
}

/// Runs a Python program in the demo image, from `/`, with its own source as the last argument of `words`.
fn python(desk: &Desk, options: &[&str], source: &str) -> Result<Output, String> {
    let image = desk.images.path("demo.sqsh");
    let words = [&["situla", "exec", "--no-home"], options, &[&image, "python3", "-c", source]].concat();
    desk.env.as_user(Path::new("/"), words)
}

/// Writes a file that the user owns and may execute.
fn write_as_users(desk: &Desk, path: &Path, bytes: &[u8]) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = fs::File::create(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io)?;
    std::os::unix::fs::chown(path, Some(desk.env.uid()?), None).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The names of all cases of all tiers.
    fn cases() -> BTreeSet<&'static str> {
        use super::super::{
            AT_LAST, BARE, COMMAND_LINE, ON_LOOPBACK, ON_SICK_NODES, ON_SITE, PRIVILEGED, PRIVILEGED_FULL,
        };
        let desk = [COMMAND_LINE, PRIVILEGED, PRIVILEGED_FULL].into_iter().flatten().map(|(name, _)| *name);
        let site =
            [ON_SITE, ON_LOOPBACK, ON_SICK_NODES, AT_LAST].into_iter().flatten().map(|(name, _)| *name);
        desk.chain(site).chain(BARE.iter().map(|(name, _)| *name)).collect()
    }

    /// Why `word`, between backquotes on the page, names no test; `None` where it does, or is nothing of the kind.
    fn missing(word: &str, cases: &BTreeSet<&str>) -> Option<String> {
        let (place, function) = word.rsplit_once("::")?;
        if function == "…" || cases.contains(word) {
            return None;
        }
        let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let Some(file) = place.strip_suffix(".rs") else {
            return Some(format!("{word} is no case of a tier"));
        };
        let Ok(source) = std::fs::read_to_string(repository.join(format!("{file}.rs"))) else {
            return Some(format!("{word}: there is no such file"));
        };
        // A test, and not another function of that name.
        let is_test = source.split("#[test]").skip(1).any(|rest| {
            let head = rest.split_once('{').map_or(rest, |(head, _)| head);
            head.contains(&format!("fn {function}()"))
        });
        (!is_test).then(|| format!("{word}: there is no such test in the file"))
    }

    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    /// What is wrong with a page: names of tests that do not exist, rows of attacks that name none.
    fn wrong(page: &str, cases: &BTreeSet<&str>) -> Vec<String> {
        let mut wrong: Vec<String> = words(page).filter_map(|word| missing(word, cases)).collect();
        for line in page.lines().filter(|line| line.starts_with("| ")) {
            let last = line.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap_or_default();
            let is_head = last == "test";
            if !is_head && (line.ends_with("| |") || !words(last).any(|word| word.contains("::"))) {
                wrong.push(format!("no test: {line}"));
            }
        }
        wrong
    }

    /// Every test that `docs/security.md` names exists, every attack is in it, and every row has a test.
    #[test]
    fn the_page_names_the_tests_that_there_are() {
        let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let page = std::fs::read_to_string(repository.join("docs/security.md")).unwrap();
        let cases = cases();
        assert_eq!(wrong(&page, &cases), Vec::<String>::new());
        let named: BTreeSet<&str> = words(&page).collect();
        let unnamed: Vec<_> =
            cases.iter().filter(|name| name.starts_with("attacks::") && !named.contains(*name)).collect();
        assert!(unnamed.is_empty(), "{unnamed:?}");
    }

    #[test]
    fn pages_with_names_of_nothing_are_found() {
        let cases = BTreeSet::from(["attacks::one", "instances::two"]);
        let own = "tests/src/cases/attacks.rs::pages_with_names_of_nothing_are_found";
        for (row, is_wrong) in [
            ("| a | b | `attacks::one` |", false),
            ("| a | `instances::two`, `attacks::one` |", false),
            (&format!("| a | `{own}` |"), false),
            ("| a | text |", true),
            ("| a | `attacks::one` | |", true),
            ("| a | `attacks::none` |", true),
            ("| a | `attacks::one`, `kernel_mounts::none` |", true),
            ("| a | `tests/src/cases/attacks.rs::none` |", true),
            ("| a | `tests/src/cases/none.rs::one` |", true),
            // A function that is no test.
            ("| a | `tests/src/cases/attacks.rs::cases` |", true),
            ("and `instances::none` in a sentence", true),
        ] {
            let page = format!("# A\n\n## B\n\n| attack | test |\n|---|---|\n{row}\n");
            assert_eq!(!wrong(&page, &cases).is_empty(), is_wrong, "{row}: {:?}", wrong(&page, &cases));
        }
    }
}
