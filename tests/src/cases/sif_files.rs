//! What is in SIF files, with real Apptainer as the other reader and writer; and images of mksquashfs, with the kernel
//! as the other reader.

use std::fs;

use super::Desk;
use super::command_line::same_trees;
use super::privileged::{Mounted, apptainer};
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::tier::Check;

/// What Apptainer's own program and ours say of the file agrees.
fn told_alike(desk: &Desk, dir: &std::path::Path, words: &[&str]) -> Result<(), String> {
    let theirs = apptainer(desk, dir, words)?.success()?;
    let ours = desk.env.as_user(dir, ["apptainer"].iter().chain(words))?.success()?;
    if theirs.stdout == ours.stdout {
        return Ok(());
    }
    Err(format!("{words:?}\nApptainer says\n{}\nand we\n{}", theirs.stdout, ours.stdout))
}

/// Objects that we add and delete are there for Apptainer, and its for us; the image starts meanwhile and after.
///
/// # Errors
/// They are not.
pub fn sif_edits_on_both_sides(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("sif")?;
    fs::copy(desk.images.path("tiny.sif"), dir.path().join("a.sif"))?;
    dir.write("note.json", "{\"note\": 1}")?;
    dir.write("text", "some text")?;
    let situla = |words: &[&str]| -> Result<Output, String> {
        desk.env.as_user(dir.path(), ["situla", "sif"].iter().chain(words))
    };
    let own = ["chown", desk.env.user(), &dir.path().join("a.sif").display().to_string()].map(String::from);
    command::run(command::words(own), PATIENCE)?.success()?;
    let before = fs::read(dir.path().join("a.sif"))?;
    situla(&["add", "a.sif", "note.json", "--datatype", "json", "--groupid", "1"])?.success()?;
    for words in [&["sif", "list", "a.sif"][..], &["sif", "header", "a.sif"], &["sif", "dump", "1", "a.sif"]]
    {
        told_alike(desk, dir.path(), words)?;
    }
    let theirs = ["sif", "add", "--datatype", "7", "--groupid", "1", "a.sif", "text"];
    apptainer(desk, dir.path(), &theirs)?.success()?;
    told_alike(desk, dir.path(), &["sif", "list", "a.sif"])?;
    let listed = situla(&["list", "--json", "a.sif"])?.success()?;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).map_err(|e| e.to_string())?;
    let objects = listed["objects"].as_array().cloned().unwrap_or_default();
    let id = |name: &str| {
        let object =
            objects.iter().find(|object| [&object["name"], &object["kind"]].iter().any(|is| **is == name));
        object.map(|object| object["id"].to_string()).ok_or_else(|| format!("no {name} in {objects:?}"))
    };
    // Apptainer gives it no name.
    situla(&["dump", &id("generic")?, "a.sif"])?.success()?.expect_text("some text")?;
    desk.env.as_user(dir.path(), ["situla", "exec", "./a.sif", "cat", WITNESS])?.success()?;
    apptainer(desk, dir.path(), &["exec", "a.sif", "cat", WITNESS])?.success()?;
    apptainer(desk, dir.path(), &["sif", "del", &id("note.json")?, "a.sif"])?.success()?;
    situla(&["del", &id("generic")?, "a.sif"])?.success()?;
    told_alike(desk, dir.path(), &["sif", "list", "a.sif"])?;
    let after = fs::read(dir.path().join("a.sif"))?;
    if after.len() < before.len() || !after.ends_with(&before[before.len() - 4096..]) {
        return Err("the root file system is not where it was".into());
    }
    Ok(())
}

/// What is no SIF, no object and no option is refused, and changes nothing.
///
/// # Errors
/// It is not refused.
pub fn sif_edits_refuse(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("sif-refuse")?;
    // The user's, who could write it.
    desk.env.as_user(dir.path(), ["sh", "-c", "printf precious >text; cp text other"])?.success()?;
    let image = desk.images.path("tiny.sif");
    for (words, code, text) in [
        (vec!["situla", "sif", "list", "text"], 125, "not a SIF file"),
        (vec!["situla", "sif", "add", "text", "other", "--datatype", "1"], 125, "not a SIF file"),
        (vec!["situla", "sif", "dump", "99", &image], 125, "no object 99"),
        (vec!["situla", "sif", "del", "99", "none.sif"], 125, "none.sif"),
        (vec!["situla", "sif", "add", &image, "text"], 2, "--datatype"),
        (vec!["situla", "sif", "add", &image, "text", "--datatype", "4"], 2, "--partarch"),
        (vec!["apptainer", "sif", "list", "text"], 255, "not a SIF file"),
        (vec!["apptainer", "sif", "setprim", "1", &image], 1, "setprim"),
    ] {
        desk.env.as_user(dir.path(), &words)?.expect_code(code)?.expect_text(text)?;
    }
    let told = desk.env.as_user(dir.path(), ["situla", "sif", "list", "--json", "text"])?.expect_code(125)?;
    let told: serde_json::Value = serde_json::from_str(&told.stdout).map_err(|e| e.to_string())?;
    if told["class"] != "image-corrupt" || fs::read(dir.path().join("text"))? != b"precious" {
        return Err(format!("{told}").into());
    }
    Ok(())
}

/// An image that mksquashfs made has the same tree under the kernel and unpacked by us, whatever its options.
///
/// # Errors
/// It has not.
pub fn kernel_and_we_read_alike(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("alike")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    let lines = [
        "-comp gzip -b 4K",
        "-comp xz -b 1M -no-fragments",
        "-comp lzo -noD -all-root",
        "-comp zstd -noI -noX",
    ];
    for (n, line) in lines.iter().enumerate() {
        let image = dir.path().join(format!("{n}.sqsh")).display().to_string();
        let made = ["mksquashfs", &tree, &image, "-noappend", "-quiet", "-no-progress"];
        command::run(command::words(made.into_iter().chain(line.split(' '))), PATIENCE)?.success()?;
        let point = dir.path().join(format!("kernel-{n}"));
        fs::create_dir(&point)?;
        let mount =
            ["mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", &image, &point.display().to_string()]
                .map(String::from);
        command::run(command::words(mount), PATIENCE)?.success()?;
        let mounted = Mounted(point);
        let ours = dir.path().join(format!("ours-{n}"));
        let target = format!("{}/", ours.display());
        // By root, so that owners are as in the image.
        let unpack = [desk.env.situla().display().to_string(), "convert".to_owned(), image, target];
        command::run(command::words(unpack), PATIENCE)?.success()?;
        same_trees(&mounted.0, &ours)?;
    }
    Ok(())
}

/// What we write for other tools comes back the same: an image of ours as a layout and as an archive, and a layout through
/// both; skopeo understands them.
///
/// # Errors
/// It does not.
pub fn images_for_other_tools(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("others")?;
    let situla = |words: &[&str]| desk.env.as_user(dir.path(), ["situla"].iter().chain(words));
    let image = desk.images.path("tiny.sqsh");
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    for (source, name) in [(image.as_str(), "file"), (layout.as_str(), "layout")] {
        let (oci, docker) = (format!("oci:{name}:v"), format!("docker-archive:{name}.tar:test/{name}:1"));
        for target in [&oci, &docker] {
            situla(&["convert", source, target])?.success()?.expect_text("manifest sha256:")?;
            // The same tag, and the same file, are not replaced unasked.
            situla(&["convert", source, target])?.expect_code(125)?.expect_text("--force")?;
            desk.env.as_user(dir.path(), ["skopeo", "inspect", "--config", target])?.success()?;
            let back = format!("{name}-{}.sqsh", target.split(':').next().unwrap_or_default());
            situla(&["convert", target, &back])?.success()?;
            situla(&["exec", &format!("./{back}"), "cat", WITNESS])?
                .success()?
                .expect_text("situla tiny image")?;
        }
    }
    Ok(())
}
