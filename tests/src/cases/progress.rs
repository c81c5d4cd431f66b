//! What is told of work that takes long, where nobody sits at a terminal: a line every few seconds.

use std::fs;
use std::path::Path;

use super::Desk;
use super::no_helpers::STRACE;
use super::privileged::registry;
use crate::command::{self, Output, Running, wait_until};
use crate::environment::PATIENCE;
use crate::slow_proxy::{SlowProxy, UNLIMITED};
use crate::tier::Check;

/// Pull, conversion, also of one image file to another, push, and both commands that hash whole files tell how far they are,
/// and again a few seconds later, in lines of a log. All at once, each held up for the time of two lines.
///
/// # Errors
/// One is silent, or tells no bytes.
pub fn lines_in_a_log(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("lines")?;
    let cache = |name: &str| format!("XDG_CACHE_HOME={}", dir.path().join(name).display());
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let script =
        "mkdir tmp tree && head -c 8M /dev/urandom >tree/large && situla convert --quiet tree large.sqsh";
    desk.env.as_user(dir.path(), ["sh", "-c", script])?.success()?;
    let tiny = format!("docker://{address}/tiny:1");
    desk.env
        .as_user(dir.path(), ["env", &cache("full"), "situla", "pull", "--store-only", &tiny])?
        .success()?;
    let images = dir.path().join("full/situla/images");
    let stored = fs::read_dir(&images)?.flatten().map(|entry| entry.path());
    let stored = stored.filter(|path| path.extension().is_some_and(|suffix| suffix == "sqsh"));
    let stored: Vec<_> = stored.map(|path| path.display().to_string()).collect();
    let [stored] = stored.as_slice() else { return Err(format!("in the store are {stored:?}").into()) };
    let [large, image] = ["tree/large", "large.sqsh"].map(|name| dir.path().join(name).display().to_string());
    let target = format!("docker://{address}/lines-{}:1", std::process::id());

    let proxy = SlowProxy::before(&address)?;
    proxy.hold_after(300_000);
    let slow = format!("docker://{}/tiny:1", proxy.address());
    let words = ["env", &cache("pulled"), "situla", "pull", "--store-only", &slow];
    let pull = command::start(desk.env.user_command(dir.path(), words)?)?;
    // Each read of the file takes so many milliseconds longer. A directory is read in pieces of 64 KiB, an image that is packed
    // in those of a block, and what is hashed in pieces of 128 KiB, of which the small image has nine, and then its end.
    let slow = [
        held_up(desk, dir.path(), (&large, "read", 90), &["convert", "tree", "again.sqsh"])?,
        held_up(desk, dir.path(), (&image, "pread64", 160), &["push", "large.sqsh", &target])?,
        held_up(desk, dir.path(), (&image, "pread64", 180), &["inspect", "--hash", "large.sqsh"])?,
        held_up(desk, dir.path(), (stored, "pread64", 1200), &["images", "--verify"])?,
        // What is there already is copied to the file.
        held_up(desk, dir.path(), (stored, "read", 3800), &["pull", "-o", "pulled.sif", &tiny])?,
        held_up(desk, dir.path(), (&image, "read", 1300), &["convert", "large.sqsh", "large.sif"])?,
    ];
    let mut told = Vec::new();
    for running in slow {
        told.push(running.finish(PATIENCE)?.success()?);
    }
    let held = wait_until(PATIENCE, || proxy.holds());
    proxy.pace(UNLIMITED);
    told.push(pull.finish(PATIENCE)?.success()?);
    if !held {
        return Err("the proxy has held nothing up".into());
    }
    let pulled = told.pop().ok_or("no pull")?;
    for output in &told {
        two_lines(output, "reading, ")?;
    }
    two_lines(&pulled, "layer 1/1, ")
}

/// Starts a command with every `call` on a file taking longer by so many milliseconds.
fn held_up(
    desk: &Desk,
    dir: &Path,
    (file, call, delay): (&str, &str, u32),
    words: &[&str],
) -> Result<Running, String> {
    let [store, scratch] = [("XDG_CACHE_HOME", "full"), ("TMPDIR", "tmp")]
        .map(|(name, below)| format!("{name}={}", dir.join(below).display()));
    let (trace, inject) =
        (format!("trace={call}"), format!("inject={call}:delay_exit={}", u64::from(delay) * 1000));
    let strace = [STRACE, "-f", "-qq", "-P", file, "-e", &trace, "-e", &inject, "-o", "/dev/null", "situla"];
    let words = ["env", &store, &scratch].into_iter().chain(strace).chain(words.iter().copied());
    command::start(desk.env.user_command(dir, words)?)
}

/// Two lines of progress, the second of which says how much was read or has come.
fn two_lines(output: &Output, word: &str) -> Check {
    let lines: Vec<&str> =
        output.stderr.lines().filter(|line| line.starts_with(word.trim_end_matches([',', ' ']))).collect();
    let says = lines.get(1).is_some_and(|line| line.starts_with(word) && line.contains("iB"));
    if says && !output.stderr.contains('\r') {
        return Ok(());
    }
    Err(format!("no two lines that begin with {word:?}\n{output}").into())
}
