//! SIF files in a registry as images: whatever is made of one, and run from one, is what the file itself gives.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Desk;
use super::privileged::registry;
use crate::command::Output;
use crate::images::WITNESS;
use crate::tier::Check;

/// A user with a store of his own, a SIF file, and the same one in a registry.
struct Scene<'a> {
    desk: &'a Desk,
    dir: &'a Path,
    file: String,
    address: String,
    source: String,
}

impl Scene<'_> {
    fn run(&self, words: &[&str]) -> Result<Output, String> {
        let variables = [("XDG_CACHE_HOME", "cache"), ("TMPDIR", "tmp")]
            .map(|(name, below)| format!("{name}={}", self.dir.join(below).display()));
        let all =
            ["env"].into_iter().chain(variables.iter().map(String::as_str)).chain(words.iter().copied());
        self.desk.env.as_user(self.dir, all)
    }

    fn json(&self, words: &[&str]) -> Result<Value, libtest_mimic::Failed> {
        let output = self.run(words)?.success()?;
        serde_json::from_str(&output.stdout).map_err(|e| format!("no JSON: {e}\n{output}").into())
    }

    /// Two files or trees have the same content.
    fn expect_same(&self, one: &str, other: &str) -> Check {
        self.run(&["diff", "-r", "--no-dereference", one, other])?.success()?;
        Ok(())
    }

    fn names(&self, below: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(below)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// A SIF file of a registry is converted to each sink, pushed, pulled, looked into and run as the file itself is, and what is
/// fetched on the way has no name and is in no store.
///
/// # Errors
/// It is not.
pub fn as_the_file(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("oras-images")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    let source = format!("oras://{address}/oras-{}/tiny:1", std::process::id());
    let file = dir.path().join("image.sif").display().to_string();
    let scene = Scene { desk, dir: dir.path(), file, address, source };
    scene.run(&["mkdir", "tmp", "theirs", "ours"])?.success()?;
    // Of a layout, so that it has descriptors that tell how it wants to be run.
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    scene.run(&["situla", "convert", "--quiet", &layout, &scene.file])?.success()?;
    let pushed = scene.json(&["situla", "push", "--json", &scene.file, &scene.source])?;
    converted(&scene, &pushed["manifest_digest"])?;
    sent_on(&scene, &pushed["manifest_digest"])?;
    if scene.dir.join("cache").exists() || !scene.names("tmp").is_empty() {
        return Err(format!("kept: {:?}, {:?}", scene.names("cache"), scene.names("tmp")).into());
    }
    kept(&scene, &pushed["manifest_digest"])
}

/// Each sink of `convert`, and what `apptainer build` makes.
fn converted(scene: &Scene<'_>, manifest: &Value) -> Check {
    for sink in ["a.sqsh", "a.sif", "tree/", "oci:NAME/layout:1", "docker-archive:NAME/a.tar:a:1"] {
        let convert = |from: &str, side: &str| {
            let target = match sink.contains("NAME") {
                true => sink.replace("NAME", side),
                false => format!("{side}/{sink}"),
            };
            scene.json(&["situla", "convert", "--json", from, &target])
        };
        let (theirs, ours) = (convert(&scene.file, "theirs")?, convert(&scene.source, "ours")?);
        // A file says which manifest it was made of; one of a registry has that of its own.
        let is_made = sink.contains("NAME");
        let expected = if is_made { &theirs["manifest_digest"] } else { manifest };
        if ours["manifest_digest"] != *expected || ours["rootfs_digest"] != theirs["rootfs_digest"] {
            return Err(format!("{sink}: {ours}, and of the file {theirs}").into());
        }
    }
    scene.expect_same("theirs", "ours")?;
    scene.expect_same("ours/a.sif", &scene.file)?;
    scene.run(&["apptainer", "build", "built.sif", &scene.source])?.success()?;
    scene.expect_same("built.sif", &scene.file)?;
    scene.run(&["apptainer", "build", "--sandbox", "sandbox", &scene.source])?.success()?;
    scene.expect_same("sandbox", "theirs/tree")
}

/// From one registry to another: as it is, and as an image of layers.
fn sent_on(scene: &Scene<'_>, manifest: &Value) -> Check {
    let place = format!("{}/oras-{}", scene.address, std::process::id());
    let push = |from: &str, to: &str| scene.json(&["situla", "push", "--json", from, to]);
    let same = push(&scene.source, &format!("oras://{place}/again:1"))?;
    if same["manifest_digest"] != *manifest {
        return Err(format!("{manifest} was sent on as {same}").into());
    }
    let theirs = push(&scene.file, &format!("docker://{place}/theirs:1"))?;
    let ours = push(&scene.source, &format!("docker://{place}/ours:1"))?;
    if ours["manifest_digest"] == theirs["manifest_digest"] {
        return Ok(());
    }
    Err(format!("of the file {theirs}, of the registry's {ours}").into())
}

/// In the store, and run from there.
fn kept(scene: &Scene<'_>, manifest: &Value) -> Check {
    let source = scene.source.as_str();
    let missing = scene.run(&["situla", "inspect", source])?.expect_code(125)?;
    missing.expect_text(&format!("situla pull {source}"))?;
    scene.run(&["situla", "plan", source, "true"])?.expect_code(125)?.expect_text(source)?;
    for words in [
        &["situla", "exec", source, "cat", WITNESS][..],
        &["situla", "run", source, "cat", WITNESS],
        &["apptainer", "exec", source, "cat", WITNESS],
        &[
            "situla",
            "exec",
            &source.replace(":1", &format!("@{}", manifest.as_str().unwrap_or_default())),
            "cat",
            WITNESS,
        ],
    ] {
        scene.run(words)?.success()?.expect_text("situla tiny image")?;
    }
    let shell = format!("echo 'cat {WITNESS}' | situla shell {source}");
    scene.run(&["sh", "-c", &shell])?.success()?.expect_text("situla tiny image")?;
    let stored: Vec<String> =
        scene.names("cache/situla/images").into_iter().filter(|name| !name.ends_with(".json")).collect();
    let [name] = stored.as_slice() else { return Err(format!("in the store are {stored:?}").into()) };
    let path = scene.dir.join("cache/situla/images").join(name).display().to_string();
    scene.expect_same(&path, &scene.file)?;
    let pulled = scene.json(&["situla", "pull", "--json", source])?;
    if pulled["was_present"] != true
        || pulled["manifest_digest"] != *manifest
        || pulled["path"] != path.as_str()
    {
        return Err(pulled.to_string().into());
    }
    // The SIF around the image, its descriptors and launch line are there, as in the file.
    let (mut of_file, mut of_registry) = (
        scene.json(&["situla", "inspect", "--hash", "--json", &scene.file])?,
        scene.json(&["situla", "inspect", "--hash", "--json", source])?,
    );
    if of_registry["manifest_digest"] != *manifest {
        return Err(format!("pulled was {manifest}, described is {of_registry}").into());
    }
    for facts in [&mut of_file, &mut of_registry] {
        facts["path"] = Value::Null;
        facts["manifest_digest"] = Value::Null;
    }
    let has_descriptors = of_file["sif"].to_string().contains("oci-config.json");
    if of_file != of_registry || of_file["sif"]["launch"].is_null() || !has_descriptors {
        return Err(format!("of the file {of_file}\nof the registry's {of_registry}").into());
    }
    let plan = scene.json(&["situla", "plan", source, "true"])?;
    let image = &plan["image"];
    if image["manifest_digest"] != *manifest
        || !image["rootfs"].to_string().contains(pulled["rootfs_digest"].as_str().unwrap_or("-"))
    {
        return Err(format!("planned is {image}, pulled {pulled}").into());
    }
    scene.run(&["situla", "pull", "--quiet", source, "-o", "pulled.sqsh"])?.success()?;
    scene.expect_same("pulled.sqsh", "theirs/a.sqsh")?;
    scene.run(&["situla", "pull", "--quiet", source, "-o", "pulled.sif"])?.success()?;
    scene.expect_same("pulled.sif", &scene.file)?;
    scene.run(&["situla", "images", "--verify"])?.success()?.expect_text("yes")?;
    scene.run(&["situla", "rm", source])?.success()?;
    for part in ["images", "refs", "leases", "tmp"] {
        let left = scene.names(&format!("cache/situla/{part}"));
        if !left.is_empty() {
            return Err(format!("{part}: {left:?}").into());
        }
    }
    Ok(())
}

/// A SIF file that needs a login gets into the site's store as little, and only by the same word.
///
/// # Errors
/// It does not.
pub(super) fn into_the_sites_store(
    desk: &Desk,
    administrator: &dyn Fn(&str) -> Result<Output, String>,
    address: &str,
    stored: &dyn Fn(&str) -> usize,
) -> Check {
    let (sif, before, file) =
        (format!("oras://{address}/sif:1"), stored("images"), desk.images.path("tiny.sif"));
    administrator(&format!("situla push --quiet {file} {sif}"))?.success()?;
    let refused = administrator(&format!("situla pull --json {sif}"))?.expect_code(125)?;
    let refused: Value = serde_json::from_str(&refused.stdout)?;
    let remedy = refused["remedy"].as_str().unwrap_or_default();
    if refused["class"] != "policy-denied"
        || !remedy.contains(&format!("--for-all {sif}"))
        || stored("images") != before
    {
        return Err(refused.to_string().into());
    }
    administrator(&format!("situla pull --for-all {sif}"))?.success()?;
    if stored("images") == before { Err("it is not there".into()) } else { Ok(()) }
}

/// What is no SIF file that can be mounted here is refused by name, with what to do, and nothing of it is kept.
///
/// # Errors
/// It is not.
pub fn refused(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("oras-refused")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let place = format!("{address}/oras-{}", std::process::id());
    let (file, source) = (desk.images.path("tiny.sif"), format!("oras://{place}/several:1"));
    let scene = Scene { desk, dir: dir.path(), file, address, source };
    let partition = "--datatype 4 --parttype 1 --partfs 1 --partarch 4 --groupid 1";
    let script = format!(
        "mkdir tmp && cp {} several.sif && situla sif add {partition} several.sif {} && \
         situla push --quiet several.sif {}",
        scene.file,
        desk.images.path("tiny.sqsh"),
        scene.source
    );
    scene.run(&["sh", "-c", &script])?.success()?;
    let (layers, sif) =
        (format!("oras://{}/tiny:1", scene.address), scene.source.replace("oras:", "docker:"));
    for (words, text) in [
        (["situla", "exec", &layers, "true"], "docker://"),
        (["situla", "convert", &layers, "a.sqsh"], "docker://"),
        (["situla", "pull", "--quiet", &layers], "docker://"),
        (["situla", "exec", &sif, "true"], "oras://REGISTRY/NAME:TAG"),
        // Which of its file systems is the root depends on the machine.
        (["situla", "exec", &scene.source, "true"], "-o FILE.sif"),
    ] {
        scene.run(&words)?.expect_code(125)?.expect_text(text)?;
    }
    for part in ["cache/situla/images", "cache/situla/tmp", "cache/situla/refs", "tmp"] {
        let left = scene.names(part);
        if !left.is_empty() {
            return Err(format!("{part}: {left:?}").into());
        }
    }
    scene.run(&["situla", "pull", "--quiet", &scene.source, "-o", "fetched.sif"])?.success()?;
    scene.expect_same("fetched.sif", "several.sif")
}
