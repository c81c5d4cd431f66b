//! What the tests of this crate share: a source tree, the external tools, and the comparison of an
//! image with a tree.

#![expect(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod compare;
pub(crate) mod exercise;
pub(crate) mod pack;
pub(crate) mod tree;

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use situla_squashfs::{Image, ReadOptions};

/// Whether `tool` can be run; says so if not, and fails if the environment demands that nothing is skipped.
pub(crate) fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("-version").output().is_ok();
    if !found {
        skip(&format!("{tool} not installed"));
    }
    found
}

/// Reports a skipped test, or fails it under `SITULA_TEST_REQUIRE=1`.
#[expect(clippy::print_stdout, reason = "a skipped test must say so")]
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none_or(|value| value != "1"), "required: {reason}");
    println!("skipped: {reason}");
}

/// Runs a command to success.
pub(crate) fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes an image of `tree` with the reference tool.
pub(crate) fn mksquashfs(tree: &Path, image: &Path, options: &[&str]) {
    let mut arguments = vec![tree.as_os_str(), image.as_os_str()];
    arguments.extend(["-noappend", "-no-progress", "-quiet"].map(OsStr::new));
    arguments.extend(options.iter().map(OsStr::new));
    run("mksquashfs", arguments);
}

/// Opens an image file.
pub(crate) fn open(path: &Path) -> Image {
    Image::open(File::open(path).unwrap(), ReadOptions::default()).unwrap()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
