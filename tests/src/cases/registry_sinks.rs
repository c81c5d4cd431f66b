//! `situla convert` out of a real registry, to each sink: it is what the layout gives that was pushed there.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::Desk;
use super::image_trees::{listing, root};
use super::private_images::sha512;
use super::privileged::registry;
use crate::command;
use crate::environment::PATIENCE;
use crate::tier::Check;

/// Makes a layout `gzip` of several layers, one of which hides a file.
const LAYERED: &str = r#"
set -e
cp -r "$1" gzip
umoci unpack --image gzip:1 bundle
mkdir -p bundle/rootfs/opt
printf one >bundle/rootfs/opt/one
ln bundle/rootfs/opt/one bundle/rootfs/opt/linked
head -c 500000 /dev/urandom >bundle/rootfs/opt/large
umoci repack --refresh-bundle --image gzip:1 bundle
rm bundle/rootfs/opt/one
printf two >bundle/rootfs/opt/two
umoci repack --image gzip:1 bundle
umoci gc --layout gzip
"#;

/// Makes the same image of layers that are compressed by zstd, and not compressed.
const LAYOUTS: &str = r#"
set -e
copy() { skopeo --insecure-policy copy -q "$@"; }
copy --dest-compress --dest-compress-format zstd oci:gzip:1 oci:zstd:1
copy --dest-decompress oci:gzip:1 dir:apart
copy --dest-oci-accept-uncompressed-layers dir:apart oci:plain:1
"#;

/// Images of gzip, zstd and plain layers, from a registry and from their layout, to each sink; and a layout's image by its
/// SHA-512. Files are equal byte for byte, and the trees in them by two that unpack them.
///
/// # Errors
/// They are not.
pub fn as_from_a_layout(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("registry-sinks")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    layered(desk, dir.path())?;
    let mut make = Command::new("sh");
    make.args(["-c", LAYOUTS]).current_dir(dir.path());
    command::run(make, PATIENCE)?.success()?;
    let place = dir.path().display().to_string();
    for (name, media_type) in [("gzip", ".tar+gzip"), ("zstd", ".tar+zstd"), ("plain", ".tar")] {
        let layout = format!("oci:{place}/{name}:1");
        let source = format!("docker://{address}/sinks-{}/{name}:1", std::process::id());
        let situla = desk.env.situla().display().to_string();
        root(&[&situla, "push", "--quiet", &layout, &source])?;
        let layers = layers_of(&situla, &source, &format!("oci:{place}/back-{name}:1"))?;
        if layers.len() < 3 || !layers.iter().all(|layer| layer.ends_with(media_type)) {
            return Err(format!("{name}: the registry has {layers:?}").into());
        }
        each_sink(desk, dir.path(), &source, &layout, name)?;
    }
    let situla = desk.env.situla().display().to_string();
    let (out, digest) = (format!("{place}/sha512.sqsh"), named_by_sha512(dir.path())?);
    root(&[&situla, "convert", "--quiet", &format!("oci:{place}/sha512@{digest}"), &out])?;
    root(&["cmp", &out, &format!("{place}/gzip-of-layout/a.sqsh")])?;
    Ok(())
}

/// Makes a layout `gzip` in `dir`, of a small image of several layers.
pub(super) fn layered(desk: &Desk, dir: &Path) -> Result<(), String> {
    let mut make = Command::new("sh");
    make.args(["-c", LAYERED, "sh"]).arg(desk.env.image_layout("tiny")).current_dir(dir);
    command::run(make, PATIENCE)?.success().map(drop)
}

/// Makes a layout `sha512` of `gzip`, whose manifest is called by its SHA-512; gives that.
fn named_by_sha512(dir: &Path) -> Result<String, Box<dyn std::error::Error>> {
    root(&["cp", "-r", &dir.join("gzip").display().to_string(), &dir.join("sha512").display().to_string()])?;
    let (blobs, index) = (dir.join("sha512/blobs"), dir.join("sha512/index.json"));
    let mut listed: Value = serde_json::from_str(&fs::read_to_string(&index)?)?;
    let digest = listed["manifests"][0]["digest"].as_str().ok_or("no manifest")?.replace(':', "/");
    let manifest = fs::read(blobs.join(&digest))?;
    let by_sha512 = sha512(dir, &manifest)?;
    fs::create_dir(blobs.join("sha512"))?;
    fs::write(blobs.join(by_sha512.replace(':', "/")), manifest)?;
    fs::remove_file(blobs.join(digest))?;
    listed["manifests"][0]["digest"] = by_sha512.as_str().into();
    fs::write(index, listed.to_string())?;
    Ok(by_sha512)
}

/// The media types of an image's layers, by a copy of it as it is.
fn layers_of(situla: &str, source: &str, copy: &str) -> Result<Vec<String>, libtest_mimic::Failed> {
    root(&[situla, "convert", "--quiet", source, copy])?;
    let told: Value = serde_json::from_str(&root(&[situla, "inspect", "--json", copy])?.stdout)?;
    let layers = told["layers"].as_array().cloned().unwrap_or_default();
    Ok(layers.iter().filter_map(|layer| Some(layer["media_type"].as_str()?.to_owned())).collect())
}

/// Brings an image to each sink, from a registry and from its layout, and compares.
fn each_sink(desk: &Desk, dir: &Path, source: &str, layout: &str, name: &str) -> Check {
    let situla = desk.env.situla().display().to_string();
    let [theirs, ours] = ["layout", "registry"].map(|side| dir.join(format!("{name}-of-{side}")));
    for (from, to) in [(layout, &theirs), (source, &ours)] {
        fs::create_dir(to)?;
        let at = |name: &str| to.join(name).display().to_string();
        for sink in [
            at("a.sqsh"),
            at("a.sif"),
            format!("{}/", at("tree")),
            format!("oci:{}:1", at("layout")),
            format!("docker-archive:{}:a:1", at("a.tar")),
        ] {
            root(&[&situla, "convert", "--quiet", from, &sink])?;
        }
        root(&["unsquashfs", "-quiet", "-no-progress", "-dest", &at("unsquashed"), &at("a.sqsh")])?;
    }
    // Bytes of files, and of the blobs of a layout.
    let [theirs_shown, ours_shown] = [&theirs, &ours].map(|dir| dir.display().to_string());
    for part in ["a.sqsh", "a.sif", "a.tar", "layout"] {
        root(&["diff", "-r", &format!("{theirs_shown}/{part}"), &format!("{ours_shown}/{part}")])?;
    }
    let want = listing(desk, &theirs.join("tree"))?;
    let (one, two) = (want.contains_key("b'opt/one'"), want.contains_key("b'opt/two'"));
    if one || !two {
        return Err(format!("{name}: the layers are not merged: {:?}", want.keys()).into());
    }
    for (who, tree) in [("our listing", ours.join("tree")), ("unsquashfs", ours.join("unsquashed"))] {
        let found = listing(desk, &tree)?;
        if found != want {
            let differs = want.iter().find(|(name, facts)| found.get(*name) != Some(facts));
            return Err(format!("{name}, {who}: {differs:?}, of {} and {}", want.len(), found.len()).into());
        }
    }
    let built = dir.join(format!("{name}-built.sif")).display().to_string();
    let apptainer = desk.env.situla().with_file_name("apptainer").display().to_string();
    root(&[&apptainer, "build", &built, source])?;
    root(&["cmp", &built, &format!("{theirs_shown}/a.sif")])?;
    Ok(())
}
