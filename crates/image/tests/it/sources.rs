//! Layouts and archives as sources, made by hand and by other tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use situla_image::{
    ConvertError, ConvertOptions, DockerArchiveError, DockerArchiveImage, FlattenError, ImageSource,
    LayoutError, LayoutImage, OutputFormat, ResolveError, Which, convert_image,
};
use situla_oci::{Digest, MAX_INDEX_DEPTH, Platform};

use crate::tar_builder::TarBuilder;
use crate::tools::{gzip, have, layout, run, zstd};

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

/// Two layers, the second over the first.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let low = TarBuilder::new().dir("etc").file("etc/a", b"low").file("etc/b", &[b'b'; 5000]).build();
    let top = TarBuilder::new().file("etc/a", b"top").symlink("link", "etc/a").build();
    vec![(low.clone(), gzip(&low)), (top.clone(), top)]
}

const EXEC: &str = r#"{"Env":["A=1"],"Cmd":["/bin/true"]}"#;

/// The root file system that a source gives, by its digest.
fn converted(source: &dyn ImageSource, dir: &Path) -> Result<Digest, ConvertError> {
    let out = dir.join("out.sqsh");
    let options = ConvertOptions { overwrite: true, n_threads: 1, ..ConvertOptions::default() };
    let made = convert_image(source, &amd64(), &out, OutputFormat::Sqsh, &options, &())?;
    Ok(made.rootfs_digest)
}

/// Packs a directory, as `tar -C dir -cf` with everything in it.
fn pack(dir: &Path, to: &Path) -> Vec<u8> {
    run(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(to).arg("."));
    fs::read(to).expect("just written")
}

fn blob(dir: &Path, bytes: &[u8]) -> (Digest, usize) {
    let digest = Digest::sha256(bytes);
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).expect("the directory is ours");
    (digest, bytes.len())
}

#[test]
fn a_layout_in_an_archive_is_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let want = converted(&LayoutImage::open(&source, &Which::Only).unwrap(), dir.path()).unwrap();
    let tar = pack(&source, &dir.path().join("a.tar"));
    for (name, bytes) in [("a.tar", tar.clone()), ("a.tar.gz", gzip(&tar)), ("a.tar.zst", zstd(&tar))] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        for which in [Which::Only, Which::Tag("latest".parse().unwrap())] {
            let image = LayoutImage::open_archive(&path, &which, &scratch).unwrap();
            assert_eq!(converted(&image, dir.path()).unwrap(), want, "{name} {which}");
        }
        let other = LayoutImage::open_archive(&path, &Which::Tag("other".parse().unwrap()), &scratch);
        assert!(matches!(other, Err(LayoutError::NoSuchImage { .. })), "{other:?}");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left of {name}");
    }
    let cut = dir.path().join("cut.tar");
    // Inside the second header.
    fs::write(&cut, &tar[..700]).unwrap();
    let error = LayoutImage::open_archive(&cut, &Which::Only, &scratch).unwrap_err().to_string();
    assert!(error.contains("cut.tar"), "{error}");
}

#[test]
fn images_of_a_layout_are_named_by_tag_digest_and_platform() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let index_path = source.join("index.json");
    let index: serde_json::Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let first = index["manifests"][0].clone();
    let digest: Digest = serde_json::from_value(first["digest"].clone()).unwrap();
    let manifest = fs::read(source.join("blobs/sha256").join(digest.hex())).unwrap();

    // The same image for another machine: its configuration says so.
    let mut other: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let config: Digest = serde_json::from_value(other["config"]["digest"].clone()).unwrap();
    let config = fs::read_to_string(source.join("blobs/sha256").join(config.hex())).unwrap();
    let (config_digest, size) = blob(&source, config.replace("amd64", "arm64").as_bytes());
    other["config"]["digest"] = serde_json::json!(config_digest);
    other["config"]["size"] = serde_json::json!(size);
    let (other_digest, other_size) = blob(&source, other.to_string().as_bytes());

    let for_platform = |entry: &serde_json::Value, arch: &str| {
        let mut entry = entry.clone();
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": arch });
        entry
    };
    let mut arm = first.clone();
    arm["digest"] = serde_json::json!(other_digest);
    arm["size"] = serde_json::json!(other_size);
    let write = |manifests: &[serde_json::Value]| {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(&index_path, index.to_string()).unwrap();
    };
    let latest = Which::Tag("latest".parse().unwrap());
    let top = |which: &Which, platform: &str| {
        let image = LayoutImage::open(&source, which).unwrap();
        situla_image::resolve(&image, &platform.parse().unwrap()).map(|parts| parts.digest)
    };

    // Two of one tag: the platform decides, in either order; one that is not there is told by name.
    for order in [[&arm, &first], [&first, &arm]] {
        let entries = order.map(|entry| for_platform(entry, if entry == &arm { "arm64" } else { "amd64" }));
        write(&entries);
        assert_eq!(top(&latest, "linux/amd64").unwrap(), digest);
        assert_eq!(top(&latest, "linux/arm64").unwrap(), other_digest);
        assert_eq!(top(&Which::Only, "linux/arm64").unwrap(), other_digest);
        let missing = top(&latest, "linux/riscv64").unwrap_err().to_string();
        assert!(missing.contains("arm64") && missing.contains("amd64"), "{missing}");
    }
    // Without platforms nobody can tell them apart.
    write(&[first.clone(), arm.clone()]);
    let error = LayoutImage::open(&source, &latest).unwrap_err();
    assert!(matches!(error, LayoutError::Ambiguous { count: 2, .. }), "{error:?}");
    // A digest names one of them, and also what the index does not list.
    assert_eq!(top(&Which::Digest(other_digest.clone()), "linux/arm64").unwrap(), other_digest);
    write(&[first]);
    assert_eq!(
        top(&Which::Digest(other_digest), "linux/arm64").unwrap(),
        arm["digest"].as_str().unwrap().parse().unwrap()
    );
    let absent = LayoutImage::open(&source, &Which::Digest(Digest::sha256(b"absent")));
    assert!(matches!(absent, Err(LayoutError::NoSuchImage { .. })), "{absent:?}");
}

#[test]
fn images_are_found_in_nested_indexes_and_by_variant() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let index_path = source.join("index.json");
    let index: serde_json::Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let base = index["manifests"][0].clone();
    // Another image of the same layers, told from the first by a note in its manifest.
    let digest: Digest = serde_json::from_value(base["digest"].clone()).unwrap();
    let manifest = fs::read(source.join("blobs/sha256").join(digest.hex())).unwrap();
    let variant_of = |name: &str| {
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["annotations"] = serde_json::json!({ "test.variant": name });
        let (digest, size) = blob(&source, manifest.to_string().as_bytes());
        let mut entry = base.clone();
        entry["digest"] = serde_json::json!(digest);
        entry["size"] = serde_json::json!(size);
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": "amd64", "variant": name });
        (digest, entry)
    };
    let ((third, of_third), (second, of_second)) = (variant_of("v3"), variant_of("v2"));
    let mut plain = base.clone();
    plain["platform"] = serde_json::json!({ "os": "linux", "architecture": "amd64" });
    let index_of = |manifests: &[&serde_json::Value]| {
        serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        })
    };
    let nested = |mut index: serde_json::Value, depth: usize| {
        for _ in 0..depth {
            let (digest, size) = blob(&source, index.to_string().as_bytes());
            let entry = serde_json::json!({
                "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": size,
            });
            index = index_of(&[&entry]);
        }
        fs::write(&index_path, index.to_string()).unwrap();
    };
    let found = |platform: &str| {
        let image = LayoutImage::open(&source, &Which::Only).unwrap();
        situla_image::resolve(&image, &platform.parse().unwrap()).map(|parts| parts.digest)
    };
    for order in [[&of_third, &plain, &of_second], [&plain, &of_second, &of_third]] {
        for depth in 1..MAX_INDEX_DEPTH - 1 {
            nested(index_of(&order), depth);
            for (platform, want) in [
                ("linux/amd64", &digest),
                ("linux/amd64/v1", &digest),
                ("linux/amd64/v2", &second),
                ("linux/amd64/v3", &third),
                ("linux/amd64/v4", &third),
            ] {
                assert_eq!(found(platform).unwrap(), *want, "{platform}, {depth} deep");
            }
            assert!(matches!(found("linux/arm64"), Err(ResolveError::Platform(_))));
        }
    }
    // A processor that is too old for all of them.
    nested(index_of(&[&of_third]), 1);
    let error = found("linux/amd64/v2").unwrap_err().to_string();
    assert!(error.contains("linux/amd64/v3"), "{error}");
    // Without end, for all that anybody can know.
    nested(index_of(&[&plain]), 2 * MAX_INDEX_DEPTH);
    assert!(matches!(found("linux/amd64"), Err(ResolveError::TooDeep)));
}

#[test]
fn what_is_no_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let open = || LayoutImage::open(&source, &Which::Only);
    let version = |text: &str| fs::write(source.join("oci-layout"), text).unwrap();
    version(r#"{"imageLayoutVersion":"1.1.0"}"#);
    open().unwrap();
    version(r#"{"imageLayoutVersion":"2.0.0"}"#);
    assert!(matches!(open(), Err(LayoutError::Version { .. })));
    for text in ["", "{}", "[]"] {
        version(text);
        assert!(matches!(open(), Err(LayoutError::NotALayout { .. })), "{text}");
    }
    fs::remove_file(source.join("oci-layout")).unwrap();
    assert!(matches!(open(), Err(LayoutError::NotALayout { .. })));
    let missing = LayoutImage::open(&dir.path().join("none"), &Which::Only);
    assert!(matches!(missing, Err(LayoutError::File(_))), "{missing:?}");
}

/// The files of an archive of `docker save`, with the given layer blobs.
fn saved(dir: &Path, tags: &str, blobs: &[Vec<u8>], diff_ids: &[Digest]) -> PathBuf {
    let root = dir.join("saved");
    fs::create_dir_all(&root).expect("the directory is ours");
    let ids: Vec<String> = diff_ids.iter().map(|id| format!("\"{id}\"")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{EXEC},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    fs::write(root.join("config.json"), config).expect("the directory is ours");
    let mut names = Vec::new();
    for (n, blob) in blobs.iter().enumerate() {
        fs::create_dir_all(root.join(n.to_string())).expect("the directory is ours");
        fs::write(root.join(format!("{n}/layer.tar")), blob).expect("the directory is ours");
        names.push(format!("\"{n}/layer.tar\""));
    }
    let list = format!(r#"[{{"Config":"config.json","RepoTags":{tags},"Layers":[{}]}}]"#, names.join(","));
    fs::write(root.join("manifest.json"), list).expect("the directory is ours");
    root
}

#[test]
fn an_archive_of_docker_save_is_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers();
    let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| Digest::sha256(tar)).collect();
    let plain: Vec<Vec<u8>> = layers.iter().map(|(tar, _)| tar.clone()).collect();
    let compressed: Vec<Vec<u8>> = layers.iter().map(|(tar, _)| gzip(tar)).collect();
    let path = dir.path().join("a.tar");
    let open = |name: Option<&str>| DockerArchiveImage::open(&path, name, dir.path());
    let mut found = Vec::new();
    for blobs in [&plain, &compressed] {
        let tar = pack(&saved(dir.path(), r#"["r.example/a:1","b:latest"]"#, blobs, &diff_ids), &path);
        for name in [None, Some("r.example/a:1"), Some("b"), Some("docker.io/library/b:latest")] {
            found.push(converted(&open(name).unwrap(), dir.path()).unwrap());
        }
        for name in ["r.example/a", "a:1", "b:2"] {
            let error = open(Some(name)).unwrap_err();
            assert!(matches!(error, DockerArchiveError::NoSuchImage { .. }), "{error:?}");
            assert!(error.to_string().contains("b:latest"), "{error}");
        }
        fs::write(&path, gzip(&tar)).unwrap();
        found.push(converted(&open(None).unwrap(), dir.path()).unwrap());
    }
    // The manifests differ with the compression, and they are in the tree; the rest does not.
    assert!(found[..5].windows(2).all(|two| two[0] == two[1]), "{found:?}");
    assert!(found[5..].windows(2).all(|two| two[0] == two[1]), "{found:?}");
}

#[test]
fn archives_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers();
    let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| Digest::sha256(tar)).collect();
    let plain: Vec<Vec<u8>> = layers.iter().map(|(tar, _)| tar.clone()).collect();
    let path = dir.path().join("a.tar");
    let open = || DockerArchiveImage::open(&path, None, dir.path());
    let mut changed = plain.clone();
    changed[1][600] ^= 1;
    for blobs in [changed.clone(), changed.iter().map(|tar| gzip(tar)).collect()] {
        pack(&saved(dir.path(), "null", &blobs, &diff_ids), &path);
        let error = converted(&open().unwrap(), dir.path()).unwrap_err();
        assert!(
            matches!(&error, ConvertError::Flatten(FlattenError::Verify(_) | FlattenError::DiffId { .. })),
            "{error:?}"
        );
    }
    pack(&saved(dir.path(), "null", &plain, &diff_ids[..1]), &path);
    assert!(matches!(open(), Err(DockerArchiveError::NotSaved { .. })));
    let root = saved(dir.path(), "null", &plain, &diff_ids);
    for (name, content, why) in [
        ("manifest.json", "[]", "no image"),
        ("manifest.json", "{", "malformed"),
        ("manifest.json", r#"[{"Config":"../../etc/passwd","Layers":[]}]"#, "no file"),
        ("manifest.json", r#"[{"Config":"config.json","Layers":["0/layer.tar","none"]}]"#, "no file 'none'"),
        ("config.json", "<html>", "configuration"),
    ] {
        let before = fs::read(root.join(name)).unwrap();
        fs::write(root.join(name), content).unwrap();
        pack(&root, &path);
        let error = open().unwrap_err().to_string();
        assert!(error.contains(why), "{content}: {error}");
        fs::write(root.join(name), before).unwrap();
    }
    fs::remove_file(root.join("manifest.json")).unwrap();
    pack(&root, &path);
    assert!(open().unwrap_err().to_string().contains("no manifest.json"));
    let wrong = LayoutImage::open_archive(&path, &Which::Only, dir.path());
    assert!(matches!(wrong, Err(LayoutError::NotALayout { .. })), "{wrong:?}");
}

#[test]
fn archives_of_other_tools_are_read() {
    if !have("archives_of_other_tools_are_read", &["skopeo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let from = format!("oci:{}:latest", source.display());
    let want = LayoutImage::open(&source, &Which::Only).unwrap();
    let platform = amd64();
    let want = situla_image::resolve(&want, &platform).unwrap();
    let copy = |to: &str| {
        run(Command::new("skopeo").args(["--insecure-policy", "copy", &from, to]));
    };
    let path = |name: &str| dir.path().join(name);
    copy(&format!("oci-archive:{}:v1", path("o.tar").display()));
    let which = Which::Tag("v1".parse().unwrap());
    let theirs = LayoutImage::open_archive(&path("o.tar"), &which, dir.path()).unwrap();
    // It compresses plain layers, so the digests of layers and manifest are others.
    assert_eq!(situla_image::resolve(&theirs, &platform).unwrap().config.rootfs, want.config.rootfs);
    converted(&theirs, dir.path()).unwrap();
    copy(&format!("docker-archive:{}:r.example/a:1", path("d.tar").display()));
    let theirs = DockerArchiveImage::open(&path("d.tar"), Some("r.example/a:1"), dir.path()).unwrap();
    let found = situla_image::resolve(&theirs, &platform).unwrap();
    assert_eq!(found.config.rootfs, want.config.rootfs);
    converted(&theirs, dir.path()).unwrap();
    let other = situla_image::resolve(&theirs, &"linux/arm64".parse().unwrap());
    assert!(matches!(other, Err(ResolveError::Platform(_))), "{other:?}");
}
