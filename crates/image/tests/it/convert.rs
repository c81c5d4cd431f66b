//! Conversions, checked with tools that are not ours.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use situla_image::{
    ConvertError, ConvertOptions, FlattenError, LayoutImage, OutputFormat, Owners, VerifyError, Which,
    convert_directory, convert_file, convert_image,
};
use situla_oci::Platform;
use situla_sif::{Arch, DataType, SifFile};

use crate::tar_builder::TarBuilder;
use crate::tools::{gzip, have, layout, open, run, skip, zstd};

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

fn options(n_threads: usize) -> ConvertOptions {
    ConvertOptions { n_threads, ..ConvertOptions::default() }
}

fn sample_layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let noise: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let low = TarBuilder::new()
        .mtime(1_000_000)
        .dir("bin")
        .file("bin/big", &noise)
        .file("bin/old", b"old")
        .hardlink("bin/big2", "bin/big")
        .symlink("bin/sh", "/usr/bin/sh")
        .dir("etc")
        .file("etc/hosts", b"127.0.0.1 image\n")
        .build();
    let mid = TarBuilder::new()
        .mode(0o4750)
        .owner(10, 20)
        .pax("SCHILY.xattr.user.note", b"v\0w")
        .file("bin/suid", b"s")
        .file("bin/.wh.old", b"")
        .build();
    let top =
        TarBuilder::new().hardlink("bin/big3", "bin/big").dir("opt").file("opt/.wh..wh..opq", b"").build();
    vec![(low.clone(), gzip(&low)), (mid.clone(), zstd(&mid)), (top.clone(), top)]
}

const EXEC: &str = r#"{"Env":["A=1"],"Cmd":["/bin/true"],"Labels":{"l":"v"}}"#;

/// Lists a tree: path to type, mode, owner, size or target, link group and content hash.
fn snapshot(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, inodes: &mut BTreeMap<u64, usize>, out: &mut BTreeMap<String, String>) {
        let mut paths: Vec<_> =
            fs::read_dir(dir).expect("readable").map(|e| e.expect("entry").path()).collect();
        paths.sort();
        for path in paths {
            let meta = fs::symlink_metadata(&path).expect("stat");
            let name = path.strip_prefix(root).expect("below").display().to_string();
            let mut line = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_file() {
                let content = situla_oci::Digest::sha256(&fs::read(&path).expect("readable"));
                line += &format!(" {content} mtime={}", meta.mtime());
            } else if meta.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&path).expect("link").display());
            }
            if !meta.is_dir() && meta.nlink() > 1 {
                let next = inodes.len();
                line += &format!(" group {}", inodes.entry(meta.ino()).or_insert(next));
            }
            out.insert(name, line);
            if meta.is_dir() {
                walk(root, &path, inodes, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut BTreeMap::new(), &mut out);
    out
}

fn unsquash(image: &Path, to: &Path) {
    run(Command::new("unsquashfs").args(["-n", "-q", "-d"]).arg(to).arg(image));
}

#[test]
fn a_layout_becomes_the_same_squashfs_at_any_thread_count() {
    let dir = tempfile::tempdir().unwrap();
    let image = LayoutImage::open(&layout(dir.path(), &sample_layers(), EXEC), &Which::Only).unwrap();
    let mut digests = Vec::new();
    for (n, n_threads) in [1, 1, 4].into_iter().enumerate() {
        let out = dir.path().join(format!("{n}.sqsh"));
        let options = ConvertOptions { n_fetchers: n + 1, ..options(n_threads) };
        let made = convert_image(&image, &amd64(), &out, OutputFormat::Sqsh, &options, &()).unwrap();
        let bytes = fs::read(&out).unwrap();
        assert!(made.rootfs_digest.matches(&bytes));
        assert_eq!(made.bytes, bytes.len() as u64);
        digests.push(made.rootfs_digest);
    }
    assert!(digests.windows(2).all(|w| w[0] == w[1]), "{digests:?}");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "nothing is left over: {names:?}");
}

#[test]
fn unsquashfs_sees_what_the_layers_mean() {
    if !have("unsquashfs_sees_what_the_layers_mean", &["unsquashfs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &sample_layers(), EXEC);
    let out = dir.path().join("x.sqsh");
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let made = convert_image(&image, &amd64(), &out, OutputFormat::Sqsh, &options(2), &()).unwrap();
    let root = dir.path().join("root");
    unsquash(&out, &root);
    assert!(!root.join("bin/old").exists());
    let [big, big2, big3] = ["big", "big2", "big3"].map(|n| fs::metadata(root.join("bin").join(n)).unwrap());
    assert!(
        big.ino() == big2.ino()
            && big.ino() == big3.ino()
            && big.len() == 2_000_000
            && big.mtime() == 1_000_000
    );
    assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "127.0.0.1 image\n");
    // Listed rather than extracted: only root can give files away.
    let list = run(Command::new("unsquashfs").args(["-lln"]).arg(&out).arg("bin/suid"));
    assert!(list.lines().any(|l| l.starts_with("-rwsr-x--- 10/20 ") && l.contains("bin/suid")), "{list}");
    // Mount points that no layer had.
    for name in ["proc", "sys", "dev", "tmp", "var/tmp", ".singularity.d/libs"] {
        assert!(root.join(name).is_dir(), "{name}");
    }
    let runscript = root.join(".singularity.d/runscript");
    assert_eq!(fs::metadata(&runscript).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(fs::read_to_string(runscript).unwrap().contains("set -- '/bin/true'"));
    // The identity, offline.
    let manifest = fs::read(root.join(".situla/manifest.json")).unwrap();
    assert!(made.manifest_digest.unwrap().matches(&manifest));
    assert!(fs::read_to_string(root.join(".situla/config.json")).unwrap().contains(EXEC));
}

#[test]
fn sif_and_squashfs_turn_into_each_other_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let image = LayoutImage::open(&layout(dir.path(), &sample_layers(), EXEC), &Which::Only).unwrap();
    let sqsh =
        convert_image(&image, &amd64(), &path("a.sqsh"), OutputFormat::Sqsh, &options(1), &()).unwrap();
    let sif = convert_image(&image, &amd64(), &path("a.sif"), OutputFormat::Sif, &options(1), &()).unwrap();
    assert_eq!(sif.rootfs_digest, sqsh.rootfs_digest);
    let wrapped =
        convert_file(&open(&path("a.sqsh")), &path("b.sif"), OutputFormat::Sif, &options(1), &()).unwrap();
    assert_eq!(
        (&wrapped.rootfs_digest, &wrapped.manifest_digest),
        (&sqsh.rootfs_digest, &sqsh.manifest_digest)
    );
    assert_eq!(fs::read(path("a.sif")).unwrap(), fs::read(path("b.sif")).unwrap());
    let unwrapped =
        convert_file(&open(&path("b.sif")), &path("b.sqsh"), OutputFormat::Sqsh, &options(1), &()).unwrap();
    assert_eq!(unwrapped.rootfs_digest, sqsh.rootfs_digest);
    assert_eq!(fs::read(path("a.sqsh")).unwrap(), fs::read(path("b.sqsh")).unwrap());
    assert_eq!(fs::metadata(path("a.sif")).unwrap().permissions().mode() & 0o777, 0o755);
    let mut file = SifFile::open(fs::File::open(path("a.sif")).unwrap()).unwrap();
    let config = file.find(DataType::GenericJson, "oci-config.json").unwrap().clone();
    let config: serde_json::Value = serde_json::from_slice(&file.read_object(&config).unwrap()).unwrap();
    assert_eq!(config, serde_json::from_str::<serde_json::Value>(EXEC).unwrap());
    assert_eq!(file.root_partition(Arch::UNKNOWN).unwrap().arch.go_name(), "amd64");

    for (from, to, format) in
        [("a.sqsh", "c.sqsh", OutputFormat::Sqsh), ("a.sif", "c.sif", OutputFormat::Sif)]
    {
        let copied = convert_file(&open(&path(from)), &path(to), format, &options(1), &()).unwrap();
        assert_eq!(copied.rootfs_digest, sqsh.rootfs_digest);
        assert_eq!(fs::read(path(from)).unwrap(), fs::read(path(to)).unwrap());
    }
    let exists = convert_file(&open(&path("a.sqsh")), &path("a.sif"), OutputFormat::Sif, &options(1), &());
    assert!(matches!(exists, Err(ConvertError::Exists { .. })));
    let replaced = ConvertOptions { overwrite: true, ..options(1) };
    convert_file(&open(&path("a.sqsh")), &path("a.sif"), OutputFormat::Sif, &replaced, &()).unwrap();
    let cut = fs::read(path("a.sif")).unwrap();
    fs::write(path("cut.sif"), &cut[..cut.len() - 1]).unwrap();
    assert!(matches!(
        convert_file(&open(&path("cut.sif")), &path("c"), OutputFormat::Sqsh, &options(1), &()),
        Err(ConvertError::SifRead { .. })
    ));
    assert!(!path("c").exists());
}

#[test]
fn a_failed_conversion_leaves_nothing() {
    let low = TarBuilder::new().file("a", &[1; 300_000]).build();
    let hostile = TarBuilder::new().file("ok", b"1").file("../../etc/passwd", b"x").build();
    let good = gzip(&low);
    let mut bad_digest = good.clone();
    let middle = bad_digest.len() / 2;
    bad_digest[middle] ^= 1;
    let cut = good[..good.len() - 10].to_vec();
    // Each case: layers as stored, and what is damaged afterwards.
    type Case = (&'static str, Vec<u8>, Vec<u8>, Option<Vec<u8>>);
    let cases: Vec<Case> = vec![
        ("hostile name", hostile.clone(), gzip(&hostile), None),
        ("wrong diff-id", TarBuilder::new().build(), good.clone(), None),
        ("wrong digest", low.clone(), good.clone(), Some(bad_digest)),
        ("truncated", low.clone(), good.clone(), Some(cut)),
        ("longer", low.clone(), good.clone(), Some([good.as_slice(), b"x"].concat())),
        ("missing", low.clone(), good.clone(), Some(Vec::new())),
        ("not compressed as announced", low.clone(), good[..good.len() - 4].to_vec(), None),
    ];
    for (name, tar, blob, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let source = layout(dir.path(), &[(tar, blob.clone())], EXEC);
        if let Some(damage) = damage {
            let path = source.join("blobs/sha256").join(situla_oci::Digest::sha256(&blob).hex());
            fs::write(path, damage).unwrap();
        }
        let out_dir = dir.path().join("out");
        fs::create_dir(&out_dir).unwrap();
        let image = LayoutImage::open(&source, &Which::Only).unwrap();
        let out = out_dir.join("x.sqsh");
        let error = convert_image(&image, &amd64(), &out, OutputFormat::Sqsh, &options(2), &()).unwrap_err();
        let ConvertError::Flatten(error) = error else { panic!("{name}: {error:?}") };
        let right = match (name, &error) {
            ("hostile name", FlattenError::Merge { .. }) | ("wrong diff-id", FlattenError::DiffId { .. }) => {
                true
            }
            ("not compressed as announced", FlattenError::Decompress { .. }) => true,
            ("wrong digest", FlattenError::Verify(e)) => matches!(**e, VerifyError::DigestMismatch { .. }),
            ("truncated" | "missing", FlattenError::Verify(e)) => {
                matches!(**e, VerifyError::Truncated { .. })
            }
            ("longer", FlattenError::Verify(e)) => matches!(**e, VerifyError::TooLong { .. }),
            _ => false,
        };
        assert!(right, "{name}: {error:?}");
        assert_eq!(fs::read_dir(&out_dir).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_directory_survives_the_round_trip() {
    if !have("a_directory_survives_the_round_trip", &["unsquashfs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for sub in ["proc", "sys", "dev", "etc", "home", "root", "tmp", "var/tmp", "a/b/c", ".singularity.d/env"]
    {
        fs::create_dir_all(tree.join(sub)).unwrap();
    }
    for file in ["etc/group", "etc/hosts", "etc/passwd", "etc/resolv.conf", "environment", "singularity"] {
        fs::write(tree.join(file), file).unwrap();
    }
    fs::write(tree.join("a/file"), vec![3; 500_000]).unwrap();
    fs::write(tree.join("a/.wh.looks-like-a-whiteout"), b"kept").unwrap();
    fs::write(tree.join(".wh..wh..opq"), b"kept").unwrap();
    fs::hard_link(tree.join("a/file"), tree.join("a/b/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", tree.join("a/dangling")).unwrap();
    fs::set_permissions(tree.join("a/b/c"), PermissionsExt::from_mode(0o1751)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("a/socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("a/fifo"), rustix::fs::Mode::from_raw_mode(0o640))
        .unwrap();
    let attribute =
        rustix::fs::setxattr(tree.join("a/file"), c"user.note", b"v", rustix::fs::XattrFlags::empty());

    let skipped = std::sync::Mutex::new(Vec::new());
    struct Notes<'a>(&'a std::sync::Mutex<Vec<String>>);
    impl situla_image::Progress for Notes<'_> {
        fn event(&self, event: situla_image::Event) {
            if let situla_image::Event::Skipped { path, .. } = event {
                self.0.lock().expect("no panic").push(path);
            }
        }
    }
    let out = dir.path().join("x.sqsh");
    convert_directory(&tree, Owners::Keep, &out, OutputFormat::Sqsh, &options(2), &Notes(&skipped)).unwrap();
    assert_eq!(*skipped.lock().unwrap(), ["a/socket"]);
    let root = dir.path().join("root");
    unsquash(&out, &root);
    let mut want = snapshot(&tree);
    want.remove("a/socket");
    assert_eq!(snapshot(&root), want);
    if attribute.is_ok() {
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(root.join("a/file"), c"user.note", &mut value), Ok(1));
    }
    let again = dir.path().join("again.sqsh");
    convert_directory(&root, Owners::Keep, &again, OutputFormat::Sqsh, &options(1), &()).unwrap();
    assert!(fs::read(&out).unwrap() == fs::read(&again).unwrap(), "equal trees give equal images");

    let missing = convert_directory(
        &dir.path().join("no"),
        Owners::Keep,
        &dir.path().join("y"),
        OutputFormat::Sqsh,
        &options(1),
        &(),
    );
    assert!(matches!(missing, Err(ConvertError::Directory(_))));
    assert!(!dir.path().join("y").exists());
}

/// umoci builds a multi-layer image from real changes and unpacks it; so do we, and compare.
#[test]
fn agrees_with_umoci() {
    if !have("agrees_with_umoci", &["umoci", "unsquashfs"]) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        // Owners cannot be compared, and umoci needs other options.
        skip("agrees_with_umoci: skipped: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let umoci = |args: &[&str]| run(Command::new("umoci").args(args).current_dir(dir.path()));
    umoci(&["init", "--layout", "oci"]);
    umoci(&["new", "--image", "oci:v"]);
    umoci(&["unpack", "--image", "oci:v", "b0"]);
    let root = path("b0/rootfs");
    fs::create_dir_all(root.join("usr/lib/deep")).unwrap();
    fs::create_dir_all(root.join("gone/sub")).unwrap();
    fs::write(root.join("usr/lib/a"), b"a").unwrap();
    fs::write(root.join("usr/lib/b"), vec![9; 200_000]).unwrap();
    fs::hard_link(root.join("usr/lib/b"), root.join("usr/b-link")).unwrap();
    fs::write(root.join("usr/lib/deep/f"), b"f").unwrap();
    fs::write(root.join("gone/sub/x"), b"x").unwrap();
    fs::write(root.join("becomes-dir"), b"x").unwrap();
    fs::create_dir(root.join("becomes-file")).unwrap();
    fs::write(root.join("becomes-file/inner"), b"x").unwrap();
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    umoci(&["repack", "--image", "oci:v", "b0"]);
    umoci(&["unpack", "--image", "oci:v", "b1"]);
    let root = path("b1/rootfs");
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("usr/lib/a")).unwrap();
    fs::remove_file(root.join("becomes-dir")).unwrap();
    fs::create_dir(root.join("becomes-dir")).unwrap();
    fs::write(root.join("becomes-dir/inner"), b"y").unwrap();
    fs::remove_dir_all(root.join("becomes-file")).unwrap();
    fs::write(root.join("becomes-file"), b"y").unwrap();
    fs::hard_link(root.join("usr/lib/deep/f"), root.join("new-link")).unwrap();
    std::os::unix::fs::chown(root.join("usr/lib/b"), Some(12), Some(34)).unwrap();
    fs::set_permissions(root.join("usr/lib/deep"), PermissionsExt::from_mode(0o2711)).unwrap();
    umoci(&["repack", "--image", "oci:v", "b1"]);
    umoci(&["unpack", "--image", "oci:v", "b2"]);
    let root = path("b2/rootfs");
    fs::create_dir_all(root.join("gone")).unwrap();
    fs::write(root.join("gone/again"), b"z").unwrap();
    fs::write(root.join("usr/lib/deep/f"), b"changed").unwrap();
    umoci(&["repack", "--image", "oci:v", "b2"]);
    umoci(&["unpack", "--image", "oci:v", "final"]);

    let image = LayoutImage::open(&path("oci"), &Which::Tag("v".parse().unwrap())).unwrap();
    let out = path("x.sqsh");
    convert_image(&image, &Platform::native(), &out, OutputFormat::Sqsh, &options(2), &()).unwrap();
    unsquash(&out, &path("ours"));
    let mut ours = snapshot(&path("ours"));
    // What we add beside the image's own content.
    let added = [
        ".situla",
        ".singularity.d",
        "dev",
        "proc",
        "sys",
        "tmp",
        "root",
        "home",
        "var",
        "etc",
        "environment",
        "singularity",
    ];
    ours.retain(|name, _| !added.iter().any(|a| name == a || name.starts_with(&format!("{a}/"))));
    let theirs = snapshot(&path("final/rootfs"));
    assert!(
        theirs.contains_key("gone/again") && !theirs.contains_key("gone/sub"),
        "the test's image is as meant"
    );
    assert_eq!(ours, theirs);
}
