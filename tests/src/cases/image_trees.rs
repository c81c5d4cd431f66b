//! Whole images in independent hands: each must find the same tree in ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Desk;
use super::privileged::Mounted;
use crate::command::{self, Output};
use crate::environment::TestEnv;
use crate::tier::{self, Check, Skip};

/// Unpacking a gigabyte in Go, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(600);

/// What an image of ours has and its layers need not have: what describes it, Apptainer's files, and places to mount on.
const ADDED: [&str; 11] = [
    ".situla",
    ".singularity.d",
    "environment",
    "singularity",
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "etc",
    "home",
];

/// Needs other tools that unpack images.
///
/// # Errors
/// One is not there.
pub fn tools() -> Result<(), Skip> {
    for (program, arguments) in
        [("umoci", ["--version"]), ("mksquashfs", ["-version"]), ("python3", ["--version"])]
    {
        tier::succeeds(program, &arguments).map_err(|why| Skip(format!("needs {program}: {why}")))?;
    }
    Ok(())
}

/// Needs the large image as well.
///
/// # Errors
/// It was not made.
pub fn large_image(env: &TestEnv) -> Result<(), Skip> {
    tools()?;
    if env.image_layout("ai").join("index.json").is_file() {
        Ok(())
    } else {
        Err(Skip("no image ai: run scripts/make-image ai".to_owned()))
    }
}

/// The image of the demonstration: many layers' worth of files from Debian packages.
///
/// # Errors
/// Two of those that look differ.
pub fn of_the_demonstration(desk: &Desk) -> Check {
    alike(desk, "demo")
}

/// A large one of several layers that replace, hide and link each other's files.
///
/// # Errors
/// Two of those that look differ.
pub fn of_many_layers(desk: &Desk) -> Check {
    alike(desk, "ai")
}

/// The tree of our image under the kernel, by `unsquashfs` and by our own reader is what `umoci` makes of its layers:
/// content, owners, modes, times, attributes and links. It has the same bytes whatever the machine.
fn alike(desk: &Desk, name: &str) -> Check {
    let dir = desk.env.work_dir("trees")?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let layout = desk.env.image_layout(name).display().to_string();
    let situla = desk.env.situla().display().to_string();
    let image = path("image.sqsh");
    root(&[&situla, "convert", "--quiet", &format!("oci:{layout}:1"), &image])?;
    // By one thread, which follows from what processors it may use, as by more.
    let alone = path("alone.sqsh");
    root(&["taskset", "-c", "0", &situla, "convert", "--quiet", &format!("oci:{layout}:1"), &alone])?;
    root(&["cmp", &image, &alone])?;
    fs::remove_file(&alone)?;

    let unpacked = |layout: &str, name: &str| -> Result<BTreeMap<String, String>, libtest_mimic::Failed> {
        root(&["umoci", "unpack", "--image", layout, &path(name)])?;
        let listed = listing(desk, &dir.path().join(name).join("rootfs"))?;
        fs::remove_dir_all(dir.path().join(name))?;
        Ok(listed)
    };
    let want = unpacked(&format!("{layout}:1"), "bundle")?;
    if name == "ai" {
        has_each_kind(&want)?;
    }

    fs::create_dir(dir.path().join("mounted"))?;
    root(&["mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", &image, &path("mounted")])?;
    let mounted = Mounted(dir.path().join("mounted"));
    let by_kernel = listing(desk, &mounted.0)?;
    drop(mounted);
    compare("the kernel", &by_kernel, &want)?;

    root(&["unsquashfs", "-quiet", "-no-progress", "-dest", &path("unsquashed"), &image])?;
    let by_unsquashfs = listing(desk, &dir.path().join("unsquashed"))?;
    fs::remove_dir_all(dir.path().join("unsquashed"))?;
    // Each name and each fact about it, as both have read the same file.
    if by_unsquashfs != by_kernel {
        compare("unsquashfs, against the kernel", &by_unsquashfs, &by_kernel)?;
        compare("the kernel, against unsquashfs", &by_kernel, &by_unsquashfs)?;
    }

    // Our reader makes one layer of it.
    root(&[&situla, "convert", "--quiet", &image, &format!("oci:{}:1", path("layout"))])?;
    compare("our reader", &unpacked(&format!("{}:1", path("layout")), "again")?, &want)
}

/// What the comparison is about is there: attributes, file capabilities, links within a layer and across two, pipes, and owners
/// beyond 16 bits.
fn has_each_kind(tree: &BTreeMap<String, String>) -> Check {
    // By the listing, all names of a file lead to the first of them.
    let one_file = ["first", "second", "third"].map(|name| format!("b'opt/kinds/{name}'"));
    let linked = one_file.iter().all(|name| tree.get(name).is_some_and(|facts| facts.contains(&one_file[0])));
    for (what, is_there) in [
        ("an attribute", tree.values().any(|facts| facts.contains("'user.situla.origin', b'bench'"))),
        ("a file capability", tree.values().any(|facts| facts.contains("'security.capability', b'"))),
        ("a pipe", tree.values().any(|facts| facts.starts_with("'0o10644'"))),
        ("an owner beyond 16 bits", tree.values().any(|facts| facts.contains(", 100000, 100001, "))),
        ("links within and across layers", linked),
    ] {
        if !is_there {
            return Err(format!("the tree has not {what}: is the image of this scripts/make-image?").into());
        }
    }
    Ok(())
}

/// Runs a program as root.
pub(super) fn root(words: &[&str]) -> Result<Output, String> {
    command::run(command::words(words.iter().map(ToString::to_string)), PATIENCE)?.success()
}

/// What a tree is: a line for each name.
pub(super) fn listing(desk: &Desk, tree: &Path) -> Result<BTreeMap<String, String>, String> {
    let program = desk.env.file("tests/src/cases/listing.py").display().to_string();
    let text = root(&["python3", &program, &tree.display().to_string()])?.stdout;
    let entry = |line: &str| line.split_once(" [").map(|(name, facts)| (name.to_owned(), facts.to_owned()));
    Ok(text.lines().filter_map(entry).collect())
}

/// Every name that is wanted is found with the same facts, and no other but what we add.
fn compare(who: &str, found: &BTreeMap<String, String>, want: &BTreeMap<String, String>) -> Check {
    let is_added = |name: &str| {
        let inner = name.trim_start_matches("b'").trim_end_matches('\'');
        ADDED.contains(&inner.split('/').next().unwrap_or_default())
    };
    let missing = want.iter().filter(|(name, facts)| found.get(*name) != Some(facts));
    let mut wrong: Vec<String> = missing
        .map(|(name, facts)| {
            format!("{name}: [{facts}\n  found [{}", found.get(name).map_or("nothing", |facts| facts))
        })
        .collect();
    let more = found.keys().filter(|name| !want.contains_key(*name) && !is_added(name));
    wrong.extend(more.map(|name| format!("{name}: nobody has put it there")));
    if want.len() > 100 && wrong.is_empty() {
        return Ok(());
    }
    wrong.truncate(20);
    Err(format!("{who}: of {} names these differ:\n{}", want.len(), wrong.join("\n")).into())
}
