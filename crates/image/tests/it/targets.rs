//! Images to layouts and archives, with skopeo and umoci as judges.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use situla_image::{
    ConvertOptions, DockerArchiveImage, LayerSource, LayoutImage, OutputFormat, Owners, SaveError, TarReader,
    Target, Which, convert_directory, convert_image, resolve, save_directory, save_file, save_image,
};
use situla_oci::{Digest, Platform};

use crate::tar_builder::TarBuilder;
use crate::tools::{gzip, have, layout, open, run, zstd};

const EXEC: &str = r#"{"Env":["A=1"],"Cmd":["/bin/true"]}"#;

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

fn options() -> ConvertOptions {
    ConvertOptions { n_threads: 1, overwrite: true, ..ConvertOptions::default() }
}

fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let low = TarBuilder::new().dir("etc").file("etc/a", b"low").file("etc/b", &[b'b'; 5000]).build();
    let mid = TarBuilder::new().file("etc/a", b"mid").build();
    let top = TarBuilder::new().file("etc/.wh.b", b"").symlink("link", "etc/a").build();
    vec![(low.clone(), gzip(&low)), (mid.clone(), zstd(&mid)), (top.clone(), top)]
}

fn target(text: &str) -> Target {
    Target::parse(text).expect("a name").expect("a target of this kind")
}

/// A tree with everything that a layer can hold and an ordinary user can make.
fn tree(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("tree");
    fs::create_dir_all(root.join("bin/deep")).unwrap();
    fs::write(root.join("bin/tool"), [7; 300_000]).unwrap();
    fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(root.join("bin/tool"), root.join("bin/deep/again")).unwrap();
    symlink("../bin/tool", root.join("bin/link")).unwrap();
    fs::write(root.join("n".repeat(255)), b"long name").unwrap();
    fs::write(root.join("bin/empty"), b"").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();
    fs::File::create(root.join("hole")).unwrap().set_len(1 << 20).unwrap();
    root
}

/// Mode, size, link target, number of names and content of everything below `root`.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut line =
                format!("{} {:o} {}", path.strip_prefix(root).unwrap().display(), meta.mode(), meta.mtime());
            if meta.is_dir() {
                waiting.push(path.clone());
            } else if meta.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else {
                line += &format!(
                    " {} {} {}",
                    meta.nlink(),
                    meta.len(),
                    Digest::sha256(&fs::read(&path).unwrap())
                );
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

#[test]
fn an_oci_image_keeps_its_bytes_in_a_layout() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let out = dir.path().join("out");
    let saved =
        save_image(&image, &amd64(), &target(&format!("oci:{}:v1", out.display())), false, &()).unwrap();
    let ours = LayoutImage::open(&out, &Which::Tag("v1".parse().unwrap())).unwrap();
    let parts = resolve(&ours, &amd64()).unwrap();
    assert_eq!(parts.digest, saved.manifest_digest);
    assert_eq!(parts.digest, resolve(&image, &amd64()).unwrap().digest);
    for layer in &parts.manifest.layers {
        let name = format!("blobs/sha256/{}", layer.digest.hex());
        assert!(fs::read(source.join(&name)).unwrap() == fs::read(out.join(&name)).unwrap());
    }
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(&out), names(&out.join("blobs/sha256"))), (3, 5));

    // A second tag is added, the first one kept; a tag that is there is replaced only if asked.
    let again = |tag: &str, overwrite| {
        save_image(&image, &amd64(), &target(&format!("oci:{}:{tag}", out.display())), overwrite, &())
    };
    again("v2", false).unwrap();
    assert!(matches!(again("v1", false), Err(SaveError::Exists(_))));
    again("v1", true).unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    for tag in ["v1", "v2"] {
        LayoutImage::open(&out, &Which::Tag(tag.parse().unwrap())).unwrap();
    }
    // A directory that is something else stays it.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("precious"), b"x").unwrap();
    let refused = save_image(&image, &amd64(), &target(&format!("oci:{}", other.display())), true, &());
    assert!(matches!(refused, Err(SaveError::NotALayout { .. })), "{refused:?}");
    assert_eq!(names(&other), 1);
}

#[test]
fn a_docker_archive_reads_back_and_for_skopeo() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let path = dir.path().join("a.tar");
    let to = target(&format!("docker-archive:{}:r.example/a:1", path.display()));
    let mut bytes = Vec::new();
    for _ in 0..2 {
        save_image(&image, &amd64(), &to, true, &()).unwrap();
        bytes.push(fs::read(&path).unwrap());
    }
    assert!(bytes[0] == bytes[1], "equal images give equal archives");
    assert!(matches!(save_image(&image, &amd64(), &to, false, &()), Err(SaveError::Exists(_))));
    let ours = DockerArchiveImage::open(&path, Some("r.example/a:1"), dir.path()).unwrap();
    let (found, want) = (resolve(&ours, &amd64()).unwrap(), resolve(&image, &amd64()).unwrap());
    assert_eq!(found.config_bytes, want.config_bytes);
    convert_image(&ours, &amd64(), &dir.path().join("a.sqsh"), OutputFormat::Sqsh, &options(), &()).unwrap();
    if !have("a_docker_archive_reads_back_and_for_skopeo", &["skopeo"]) {
        return;
    }
    let there = format!("oci:{}:v", dir.path().join("theirs").display());
    run(Command::new("skopeo").args(["--insecure-policy", "copy"]).arg(to.to_string()).arg(&there));
    let theirs = LayoutImage::open(&dir.path().join("theirs"), &Which::Only).unwrap();
    assert_eq!(resolve(&theirs, &amd64()).unwrap().config.rootfs, want.config.rootfs);
}

#[test]
fn a_damaged_layer_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let parts = resolve(&image, &amd64()).unwrap();
    let blob = source.join("blobs/sha256").join(parts.manifest.layers[0].digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let (out, file) = (dir.path().join("out"), dir.path().join("a.tar"));
    for to in [format!("oci:{}:v", out.display()), format!("docker-archive:{}", file.display())] {
        let error = save_image(&image, &amd64(), &target(&to), false, &()).unwrap_err();
        assert!(matches!(error, SaveError::Copy { .. } | SaveError::DiffId { .. }), "{error:?}");
    }
    assert!(!file.exists() && !out.join("index.json").exists());
}

#[test]
fn trees_and_files_become_images_of_one_layer() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let sqsh = dir.path().join("a.sqsh");
    convert_directory(&root, Owners::Keep, &sqsh, OutputFormat::Sqsh, &options(), &()).unwrap();
    let sif = dir.path().join("a.sif");
    situla_image::convert_file(&open(&sqsh), &sif, OutputFormat::Sif, &options(), &()).unwrap();
    let to = |name: &str| target(&format!("oci:{}:v", dir.path().join(name).display()));
    let of_dir = save_directory(&root, Owners::Keep, &to("d"), &ConvertOptions::default(), &()).unwrap();
    let of_sqsh = save_file(&open(&sqsh), &to("s"), &ConvertOptions::default(), &()).unwrap();
    let of_sif = save_file(&open(&sif), &to("f"), &ConvertOptions::default(), &()).unwrap();
    assert_eq!(of_dir, of_sqsh);
    assert_eq!(of_sif.manifest_digest, of_sqsh.manifest_digest);
    let archive = dir.path().join("a.tar");
    let in_archive = target(&format!("docker-archive:{}:a:1", archive.display()));
    let saved = save_file(&open(&sqsh), &in_archive, &ConvertOptions::default(), &()).unwrap();
    let read = DockerArchiveImage::open(&archive, None, dir.path()).unwrap();
    assert_eq!(resolve(&read, &Platform::native()).unwrap().digest, saved.manifest_digest);
    if !have("trees_and_files_become_images_of_one_layer", &["umoci"]) {
        return;
    }
    let bundle = dir.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--rootless", "--image"]).arg(format!("{}:v", dir.path().join("d").display()));
    run(umoci.arg(&bundle));
    assert_eq!(listing(&bundle.join("rootfs")), listing(&root));
}

#[test]
fn no_file_is_younger_than_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let sqsh = dir.path().join("a.sqsh");
    convert_directory(&root, Owners::Keep, &sqsh, OutputFormat::Sqsh, &options(), &()).unwrap();
    let dated = ConvertOptions { source_date_epoch: Some(1000), ..options() };
    let to = |name: &str| target(&format!("oci:{}:v", dir.path().join(name).display()));
    let of_file = save_file(&open(&sqsh), &to("file"), &dated, &()).unwrap();
    assert_eq!(of_file, save_directory(&root, Owners::Keep, &to("dir"), &dated, &()).unwrap());
    assert_ne!(of_file, save_file(&open(&sqsh), &to("plain"), &options(), &()).unwrap());
    let archive = dir.path().join("a.tar");
    save_file(&open(&sqsh), &target(&format!("docker-archive:{}", archive.display())), &dated, &()).unwrap();
    let read = DockerArchiveImage::open(&archive, None, dir.path()).unwrap();
    let parts = resolve(&read, &Platform::native()).unwrap();
    let layer = read.open_layer("the layer", &parts.manifest.layers[0]).unwrap();
    let mut entries = TarReader::new(layer);
    let mut n_entries = 0;
    while let Some(entry) = entries.next_entry().unwrap() {
        assert!(entry.meta.mtime <= 1000, "{entry:?}");
        n_entries += 1;
    }
    assert!(n_entries > 8);
}

#[test]
fn a_damaged_blob_of_a_layout_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let out = dir.path().join("out");
    let to = target(&format!("oci:{}:v", out.display()));
    save_image(&image, &amd64(), &to, false, &()).unwrap();
    let layer = resolve(&image, &amd64()).unwrap().manifest.layers.remove(0);
    let blob = out.join("blobs/sha256").join(layer.digest.hex());
    let whole = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, vec![0; whole.len()]).unwrap();
    save_image(&image, &amd64(), &to, true, &()).unwrap();
    assert!(fs::read(&blob).unwrap() == whole);
}

#[test]
fn what_a_layer_cannot_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    fs::write(root.join(".wh.precious"), b"x").unwrap();
    let out = dir.path().join("out");
    let error = save_directory(
        &root,
        Owners::Keep,
        &target(&format!("oci:{}", out.display())),
        &ConvertOptions::default(),
        &(),
    )
    .unwrap_err();
    assert!(matches!(error, SaveError::Layer(_)) && error.to_string().contains(".wh."), "{error:?}");
    assert!(!out.join("index.json").exists());
    let named = target(&format!("docker-archive:{}:Not A Name", dir.path().join("a.tar").display()));
    let error = save_directory(&root, Owners::Keep, &named, &ConvertOptions::default(), &()).unwrap_err();
    assert!(matches!(error, SaveError::Name(_)), "{error:?}");
    for text in ["./a.sif", "dir/", "a.tar", "oci"] {
        assert!(Target::parse(text).unwrap().is_none(), "{text}");
    }
}

#[test]
fn a_configuration_goes_the_whole_way() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &layers(), EXEC);
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let sif = dir.path().join("a.sif");
    convert_image(&image, &amd64(), &sif, OutputFormat::Sif, &options(), &()).unwrap();
    let out = dir.path().join("out");
    save_file(&open(&sif), &target(&format!("oci:{}", out.display())), &ConvertOptions::default(), &())
        .unwrap();
    let back = LayoutImage::open(&out, &Which::Only).unwrap();
    let parts = resolve(&back, &amd64()).unwrap();
    assert_eq!(parts.config.config, resolve(&image, &amd64()).unwrap().config.config);
    assert_eq!((parts.config.rootfs.diff_ids.len(), parts.manifest.layers.len()), (1, 1));
}
