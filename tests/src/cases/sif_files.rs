//! What is in SIF files, with real Apptainer as the other reader and writer; and images of mksquashfs, with the kernel
//! as the other reader.

use std::fs;
use std::path::Path;

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

/// A SIF that has a root file system for another kind of machine as well, added by either program, is listed alike and starts
/// in both; the one for this machine is what runs.
///
/// # Errors
/// It does not.
pub fn several_architectures(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("architectures")?;
    let run = |words: &[&str]| desk.env.as_user(dir.path(), words);
    // Something that nobody could run instead.
    run(&["sh", "-c", "mkdir other && echo other >other/only"])?.success()?;
    run(&["situla", "convert", "other", "other.sqsh"])?.success()?;
    // A system's partition of SquashFS for arm64, in the numbers of SIF.
    let partition =
        ["--datatype", "4", "--parttype", "1", "--partfs", "1", "--partarch", "4", "--groupid", "1"];
    for ours in [true, false] {
        let name = if ours { "ours.sif" } else { "theirs.sif" };
        run(&["cp", &desk.images.path("tiny.sif"), name])?.success()?;
        let words = [&["sif", "add"], &partition[..], &[name, "other.sqsh"]].concat();
        match ours {
            true => run(&[&["situla"], &words[..]].concat())?.success()?,
            false => apptainer(desk, dir.path(), &words)?.success()?,
        };
        told_alike(desk, dir.path(), &["sif", "list", name])?;
        let listed = run(&["situla", "sif", "list", "--json", name])?.success()?;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
        let objects = listed["objects"].as_array().cloned().unwrap_or_default();
        let partitions = objects.iter().filter(|object| object["kind"] == "partition").count();
        if partitions != 2 || !listed.to_string().contains("arm64") {
            return Err(format!("{name} has {listed}").into());
        }
        let file = format!("./{name}");
        run(&["situla", "exec", &file, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
        apptainer(desk, dir.path(), &["exec", name, "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
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

/// Words that would say that somebody has vouched for an image.
const CLAIMS: [&str; 6] = ["verified", "verification", "trusted", "signed", "valid", "authentic"];

/// Images with a signature that Apptainer has made and that does not hold any more: the root file system is another, or
/// the group has an object that was never signed. Nothing that we say of them, run them or make of them claims that
/// anybody has vouched for them, and nothing pretends to look.
///
/// # Errors
/// Something does; or the signature was none to begin with.
pub fn signed_and_altered(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("seals")?;
    let user = |words: &[&str]| desk.env.as_user(dir.path(), words);
    // Of the same length, so that the altered file system has the same size.
    let tree = dir.path().join("tree");
    let copy = [Path::new("cp"), Path::new("-a"), &desk.env.image_tree("tiny"), &tree];
    command::run(command::words(copy), PATIENCE)?.success()?;
    let witness = tree.join(&WITNESS[1..]);
    let altered = fs::read_to_string(&witness)?.replace("situla tiny", "altered one");
    fs::write(&witness, &altered)?;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let convert = [&desk.env.situla().display().to_string(), "convert", &place("tree"), &place("other.sif")];
    command::run(command::words(convert), PATIENCE)?.success()?;
    user(&["cp", &desk.images.path("tiny.sif"), "whole.sif"])?.success()?;
    for words in [
        &["openssl", "genpkey", "-quiet", "-algorithm", "ed25519", "-out", "private.pem"][..],
        &["openssl", "pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"],
    ] {
        user(words)?.success()?;
    }
    let verify = |image: &str| apptainer(desk, dir.path(), &["verify", "--key", "public.pem", image]);
    apptainer(desk, dir.path(), &["sign", "--key", "private.pem", "whole.sif"])?.success()?;
    verify("whole.sif")?.success()?;
    user(&["cp", "whole.sif", "replaced.sif"])?.success()?;
    user(&["cp", "whole.sif", "added.sif"])?.success()?;
    replace_root(desk, dir.path())?;
    dir.write("object", "nobody has signed this")?;
    let add = ["situla", "sif", "add", "added.sif", "object", "--datatype", "generic", "--groupid", "1"];
    user(&add)?.success()?;
    for (image, says) in [("replaced.sif", altered.trim_end()), ("added.sif", "situla tiny image")] {
        // To whoever looks, it is broken, and there.
        if verify(image)?.status.success() {
            return Err(format!("Apptainer takes {image} for signed").into());
        }
        user(&["situla", "sif", "list", image])?.success()?.expect_text("Signature (SHA-256)")?;
        for (words, told) in [
            (&["situla", "exec", image, "cat", WITNESS][..], says),
            (&["apptainer", "exec", image, "cat", WITNESS], says),
            (&["situla", "exec", "--json", image, "true"], "\"event\""),
            (&["situla", "plan", image, "true"], "\"rootfs\""),
            (&["situla", "inspect", image], "sif"),
            (&["situla", "inspect", "--json", image], "sif"),
            (&["situla", "sif", "list", image], "Signature"),
            (&["situla", "sif", "list", "--json", image], "signature"),
            (&["apptainer", "sif", "list", image], "Signature"),
            (&["apptainer", "sif", "header", image], ""),
            (&["situla", "convert", image, "made.sqsh"], ""),
            (&["situla", "convert", image, "oci:made:1"], ""),
        ] {
            let ran = user(words)?.success()?.expect_text(told)?;
            without_claims(&ran).map_err(|why| format!("{why}\n{ran}"))?;
        }
        user(&["rm", "-r", "made.sqsh", "made"])?.success()?;
        // Asked to verify, we do not say yes.
        for (words, code) in [(["apptainer", "verify", image], 1), (["situla", "verify", image], 2)] {
            let ran = user(&words)?.expect_code(code)?;
            if !ran.stdout.is_empty() {
                return Err(format!("it says something of {image}\n{ran}").into());
            }
        }
    }
    Ok(())
}

/// Puts the root file system of `other.sif` over that of `replaced.sif`, where its signature stays.
fn replace_root(desk: &Desk, dir: &Path) -> Result<(), String> {
    let root = |image: &str| -> Result<(usize, usize), String> {
        let listed = desk.env.as_user(dir, ["situla", "sif", "list", "--json", image])?.success()?;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).map_err(|e| e.to_string())?;
        let objects = listed["objects"].as_array().cloned().unwrap_or_default();
        let number = |key: &str| {
            let object = objects.iter().find(|object| object["kind"] == "partition")?;
            usize::try_from(object[key].as_u64()?).ok()
        };
        number("offset").zip(number("bytes")).ok_or_else(|| format!("{image} has no root: {listed}"))
    };
    let ((from, length), (to, room)) = (root("other.sif")?, root("replaced.sif")?);
    let io = |e: std::io::Error| e.to_string();
    let other = fs::read(dir.join("other.sif")).map_err(io)?;
    let mut image = fs::read(dir.join("replaced.sif")).map_err(io)?;
    match (other.get(from..from + length), image.get_mut(to..to + room)) {
        (Some(source), Some(target)) if length == room && *source != *target => {
            target.copy_from_slice(source)
        }
        _ => return Err(format!("{length} bytes do not take the place of {room}")),
    }
    fs::write(dir.join("replaced.sif"), image).map_err(io)
}

/// Fails where a line claims something of a signature.
fn without_claims(ran: &Output) -> Result<(), String> {
    let text = format!("{}\n{}", ran.stdout, ran.stderr).to_lowercase();
    let is_claim = |word: &str| CLAIMS.contains(&word);
    let claims = |line: &&str| line.split(|letter: char| !letter.is_alphanumeric()).any(is_claim);
    match text.lines().find(claims) {
        Some(line) => Err(format!("it claims {line:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found() {
        let said = |stdout: &str| {
            let mut command = std::process::Command::new("printf");
            command.args(["%s", stdout]);
            without_claims(&command::run(command, PATIENCE).unwrap()).is_ok()
        };
        assert!(said("object    2 Signature (SHA-256)  (670 B at offset 1146880)\n"));
        assert!(said("\"state\": \"unverified\""));
        for claim in ["Verified signature(s) from image", "signed by A", "Signature: valid", "TRUSTED"] {
            assert!(!said(claim), "{claim}");
        }
    }
}
