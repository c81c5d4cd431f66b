//! Layers made by hand that lead out of the tree that they are to become.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::{Desk, Hostile, SECRET, without};
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::tier::Check;

/// Writes the OCI layout $1 of the layers that are described in $3, a JSON list of lists of entries: `[KIND, NAME, TARGET]`
/// each, taken by their letters. Its first layer is the directory $2.
const MAKE: &str = r#"
import hashlib, io, json, os, sys, tarfile
layout, base, layers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
os.makedirs(layout + "/blobs/sha256")
def blob(data):
    name = hashlib.sha256(data).hexdigest()
    with open(layout + "/blobs/sha256/" + name, "wb") as f: f.write(data)
    return {"digest": "sha256:" + name, "size": len(data)}
def tar(fill):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t: fill(t)
    return out.getvalue()
def entries(t, entries):
    kinds = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "dir": tarfile.DIRTYPE}
    for kind, name, target in entries:
        info = tarfile.TarInfo(name)
        info.type, info.mode = kinds[kind], 0o777
        text = target.encode() if kind == "file" else b""
        info.size = len(text)
        if kind in ("link", "hard"): info.linkname = target
        t.addfile(info, io.BytesIO(text))
tars = [tar(lambda t: t.add(base, "."))] + [tar(lambda t, l=l: entries(t, l)) for l in layers]
tars = [blob(t) for t in tars]
config = {"architecture": "amd64", "os": "linux", "config": {},
          "rootfs": {"type": "layers", "diff_ids": [t["digest"] for t in tars]}}
media = "application/vnd.oci.image."
config = dict(blob(json.dumps(config).encode()), mediaType=media + "config.v1+json")
manifest = {"schemaVersion": 2, "mediaType": media + "manifest.v1+json", "config": config,
            "layers": [dict(t, mediaType=media + "layer.v1.tar") for t in tars]}
top = dict(blob(json.dumps(manifest).encode()), mediaType=media + "manifest.v1+json",
           annotations={"org.opencontainers.image.ref.name": "1"})
for name, value in [("index.json", {"schemaVersion": 2, "manifests": [top]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"})]:
    with open(layout + "/" + name, "w") as f: json.dump(value, f)
"#;

/// What becomes of an image with such layers.
#[derive(Clone, Copy, PartialEq)]
enum Comes {
    /// It is refused as a whole, for this reason.
    Refused(&'static str),
    /// It is made, and what it names is inside it.
    Inside,
}

const NAME: &str = "hostile name in layer";
const MISSING: &str = "which is not in the image";
const WHITEOUT: &str = "malformed whiteout";

/// Layers whose links, hard links and names lead to a directory of the host that everybody may write to: links of the same
/// layer and of one below, absolute and by `..`, the root itself as a link, and names that leave the tree. The image is
/// converted to a file and to a directory, run, and extracted on the node, by the user and, as far as nothing is run, by root:
/// nothing is written on the host, and nothing of it is in the image.
///
/// # Errors
/// A layer led out of the image, or an image that is whole was not made.
pub fn hostile_layers(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "layers")?;
    let host = hostile.host().display().to_string();
    let (secret, deep) = (format!("{host}/secret"), format!("../../../../../../../../../..{host}"));
    let planted = |name: &str| ["file".to_owned(), name.to_owned(), "planted".to_owned()];
    let entry = |kind: &str, name: &str, target: &str| [kind.to_owned(), name.to_owned(), target.to_owned()];
    type Layer = Vec<[String; 3]>;
    let links = vec![entry("link", "abs", &host), entry("link", "up", &deep), entry("link", "to", &secret)];
    let through =
        vec![planted("abs/made"), planted("up/made"), planted("abs/inner/made"), planted("up/.wh.inner")];
    let over = vec![planted("to"), entry("dir", "abs", ""), planted("abs/secret")];
    let below = vec![planted("to/made")];
    let one = |kind: &str, name: &str, target: &str| vec![entry(kind, name, target)];
    let cases: Vec<(&str, Vec<Layer>, Comes)> = vec![
        ("through links of a layer below", vec![links.clone(), through.clone()], Comes::Inside),
        ("through links of the same layer", vec![[links.clone(), through].concat()], Comes::Inside),
        ("in place of links", vec![links.clone(), over], Comes::Inside),
        ("below a link to a file", vec![links.clone(), below], Comes::Inside),
        (
            "a hard link through a link",
            vec![links.clone(), one("hard", "stolen", "abs/secret")],
            Comes::Refused(MISSING),
        ),
        ("a hard link to the host", vec![one("hard", "stolen", &secret)], Comes::Refused(MISSING)),
        ("a hard link by dots", vec![one("hard", "stolen", &format!("{deep}/secret"))], Comes::Refused(NAME)),
        ("the root as a link", vec![one("link", ".", &host), vec![planted("made")]], Comes::Refused(NAME)),
        (
            "the root as a link, with a slash",
            vec![one("link", "./", &host), vec![planted("made")]],
            Comes::Refused(NAME),
        ),
        ("an absolute name", vec![vec![planted(&format!("{host}/made"))]], Comes::Refused(NAME)),
        ("a name by dots", vec![vec![planted(&format!("{deep}/made"))]], Comes::Refused(NAME)),
        ("a whiteout by dots", vec![vec![planted(&format!("{deep}/.wh.secret"))]], Comes::Refused(NAME)),
        ("a whiteout of what is above", vec![vec![planted(".wh..")]], Comes::Refused(WHITEOUT)),
        ("a whiteout of nothing", vec![vec![planted(".wh.")]], Comes::Refused(WHITEOUT)),
    ];
    for (number, (name, layers, comes)) in cases.iter().enumerate() {
        let layout = hostile.dir.path().join(format!("layout-{number}"));
        let (layout, base) = (layout.display().to_string(), hostile.path("").display().to_string());
        let described = serde_json::to_string(layers)?;
        command::run(command::words(["python3", "-c", MAKE, &layout, &base, &described]), PATIENCE)?
            .success()?;
        for by_root in [false, true] {
            tried(&hostile, &format!("oci:{layout}:1"), *comes, by_root)
                .map_err(|e| super::story(&format!("{name}, by root: {by_root}"), &e))?;
            hostile.untouched().map_err(|e| super::story(name, &e))?;
        }
    }
    Ok(())
}

/// Has an image made in all ways.
fn tried(hostile: &Hostile<'_>, source: &str, comes: Comes, by_root: bool) -> Check {
    let desk = hostile.desk;
    let work = desk.env.work_dir("layers-out")?;
    let out = |name: &str| work.path().join(name).display().to_string();
    let cache = format!("XDG_CACHE_HOME={}", out("cache"));
    let run = |words: &[&str]| -> Result<Output, String> {
        let words = [&["env", &cache, "situla"], words].concat();
        if !by_root {
            return desk.env.as_user(Path::new("/"), words);
        }
        let mut command = command::words(words);
        command.current_dir("/").env_clear().env("PATH", desk.env.search_path()).env("HOME", out("home"));
        command::run(command, PATIENCE)
    };
    if by_root {
        // What root makes must not be kept from him by whose the place is.
        chown(work.path(), Some(0), Some(0))?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    }
    let look = "cat /stolen /to /abs/secret /abs/made /up/made; ls /abs /up; echo ran";
    let mut ways = vec![
        run(&["convert", source, &out("image.sqsh")])?,
        run(&["convert", source, &format!("{}/", out("tree"))])?,
    ];
    if !by_root {
        for way in ["fuse", "extract"] {
            ways.push(run(&["exec", "--no-home", "--rootfs", way, source, "sh", "-c", look])?);
        }
        run(&["cache", "prune", "--all"])?.success()?;
    }
    for (number, ran) in ways.into_iter().enumerate() {
        let ran = without(ran, SECRET)?;
        let is_right = match comes {
            Comes::Refused(why) => {
                ran.code() == 125 && ran.stderr.contains(why) && !ran.stdout.contains("ran\n")
            }
            Comes::Inside => ran.code() == 0 && (number < 2 || ran.stdout.ends_with("ran\n")),
        };
        if ran.timed_out || !is_right {
            return Err(ran.to_string().into());
        }
    }
    let left = [out("image.sqsh"), out("tree")].iter().filter(|path| Path::new(path).exists()).count();
    match (comes, left) {
        (Comes::Inside, 2) | (Comes::Refused(_), 0) => Ok(()),
        _ => Err(format!("{left} of two were made").into()),
    }
}
