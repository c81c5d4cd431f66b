//! What archives can say that few images do, from the layer to the finished image, where our reader and `unsquashfs`
//! must find it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use situla_image::{
    ConvertOptions, Event, LayoutImage, OutputFormat, Progress, TarReader, Which, convert_image,
};
use situla_oci::Platform;
use situla_squashfs::{FileType, Image, Inode, InodeKind, ReadOptions};

use crate::tar_builder::{TarBuilder, header, seal};
use crate::tools::{gzip, have, layout, run};

fn t() -> TarBuilder {
    TarBuilder::new()
}

/// Converts layers, the lowest first; gives the file and what was left out.
fn convert(dir: &Path, layers: &[Vec<u8>]) -> (PathBuf, Vec<String>) {
    struct Notes(std::sync::Mutex<Vec<String>>);
    impl Progress for Notes {
        fn event(&self, event: Event) {
            if let Event::Skipped { path, why } = event {
                self.0.lock().expect("no panic").push(format!("{path}: {why}"));
            }
        }
    }
    let layers: Vec<_> = layers.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    let source = LayoutImage::open(&layout(dir, &layers, "{}"), &Which::Only).expect("a layout");
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    let out = dir.join("image.sqsh");
    let notes = Notes(std::sync::Mutex::new(Vec::new()));
    let options = ConvertOptions { n_threads: 2, overwrite: true, ..ConvertOptions::default() };
    convert_image(&source, &platform, &out, OutputFormat::Sqsh, &options, &notes)
        .unwrap_or_else(|error| panic!("{error:?}"));
    (out, notes.0.into_inner().expect("no panic"))
}

fn open(path: &Path) -> Image {
    Image::open(fs::File::open(path).expect("the output"), ReadOptions::default()).expect("an image")
}

fn find(image: &Image, path: impl AsRef<[u8]>) -> Inode {
    let shown = String::from_utf8_lossy(path.as_ref()).into_owned();
    image.resolve(path, false).expect("readable").unwrap_or_else(|| panic!("{shown} is in the image"))
}

/// What `unsquashfs -lln` says of a file, without its path.
fn listed(image: &Path, path: &str) -> Option<Vec<String>> {
    let text = run(Command::new("unsquashfs").args(["-n", "-lln", "-d", ""]).arg(image));
    let line = text.lines().find(|line| line.contains(&format!(" /{path}")))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

#[test]
fn attributes_and_capabilities_arrive() {
    let dir = tempfile::tempdir().unwrap();
    // VFS_CAP_REVISION_2 with cap_net_raw, as setcap(8) writes it, and revision 3 with a root id.
    let revision_2 = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut revision_3 = [&revision_2[..], &[0xa0, 0x86, 1, 0]].concat();
    revision_3[3] = 3;
    let long = vec![b'v'; 65_536];
    let low = t()
        .pax("SCHILY.xattr.security.capability", &revision_2)
        .file("ping", b"p")
        .pax("SCHILY.xattr.security.capability", &revision_3)
        .file("ping3", b"p")
        .pax("LIBARCHIVE.xattr.security.capability", b"AQAAAgAgAAAAAAAAAAAAAAAAAAA")
        .file("bsdtar", b"p")
        .pax("SCHILY.xattr.user.lower", b"1")
        .file("both", b"low")
        .build();
    let up = t()
        .pax("SCHILY.xattr.user.long", &long)
        .pax("SCHILY.xattr.trusted.t", b"\0\xff")
        .pax("SCHILY.xattr.security.selinux", b"label")
        .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .pax("SCHILY.xattr.system.posix_acl_access", b"acl")
        .dir("d")
        .pax("SCHILY.xattr.user.upper", b"2")
        .file("both", b"up")
        .hardlink("linked", "ping")
        .build();
    let (path, skipped) = convert(dir.path(), &[low, up]);
    let image = open(&path);
    let xattrs = |path: &str| image.xattrs(&find(&image, path)).unwrap();
    let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    assert_eq!(xattrs("ping"), [pair("security.capability", &revision_2)]);
    assert_eq!(xattrs("linked"), xattrs("ping"));
    assert_eq!(find(&image, "linked").number, find(&image, "ping").number);
    assert_eq!(xattrs("ping3"), [pair("security.capability", &revision_3)]);
    assert_eq!(xattrs("bsdtar"), xattrs("ping"));
    assert_eq!(xattrs("both"), [pair("user.upper", b"2")]);
    let mut of_dir = xattrs("d");
    of_dir.sort();
    assert_eq!(of_dir, [pair("trusted.t", b"\0\xff"), pair("user.long", &long)]);
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert!(skipped.iter().all(|line| line.starts_with("/d: ")), "{skipped:?}");
}

#[test]
fn devices_pipes_and_owners_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let device = |name: &str, flag: u8, major: &str, minor: &str| {
        let mut block = header(flag, name.as_bytes(), b"", 0, 0o620, (0, 5), 77);
        block[329..329 + major.len()].copy_from_slice(major.as_bytes());
        block[337..337 + minor.len()].copy_from_slice(minor.as_bytes());
        seal(&mut block);
        block.to_vec()
    };
    let low = [
        device("null", b'3', "0000001", "0000003"),
        device("large", b'4', "0007777", "3777777"),
        t().mode(0o640).entry(b'6', b"pipe", b"", b"").file("becomes-pipe", b"x").build(),
    ]
    .concat();
    // Base 256, as GNU tar writes what octal cannot hold.
    let mut gnu = header(b'0', b"gnu", b"", 0, 0o4755, (0, 0), 1);
    gnu[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0x00]);
    gnu[116..124].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    seal(&mut gnu);
    let up = [
        gnu.to_vec(),
        t().pax("uid", b"4294967294")
            .pax("gid", b"70000")
            .mode(0o2711)
            .dir("owned")
            .entry(b'6', b"becomes-pipe", b"", b"")
            .build(),
    ]
    .concat();
    let (path, _) = convert(dir.path(), &[low, up]);
    let image = open(&path);
    let numbers = |path: &str| match find(&image, path).kind {
        InodeKind::CharDevice(number) => ("char", number.major(), number.minor()),
        InodeKind::BlockDevice(number) => ("block", number.major(), number.minor()),
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(numbers("null"), ("char", 1, 3));
    assert_eq!(numbers("large"), ("block", 0o7777, 0o3777777));
    let null = find(&image, "null");
    assert_eq!((null.mode, null.uid, null.gid, null.mtime), (0o620, 0, 5, 77));
    for pipe in ["pipe", "becomes-pipe"] {
        assert_eq!(find(&image, pipe).file_type(), FileType::Fifo, "{pipe}");
    }
    let owner = |path: &str| {
        let inode = find(&image, path);
        (inode.mode, inode.uid, inode.gid)
    };
    assert_eq!(owner("gnu"), (0o4755, 4_000_000_000, 4_294_967_294));
    assert_eq!(owner("owned"), (0o2711, 4_294_967_294, 70_000));
    if have("devices_pipes_and_owners_arrive", &["unsquashfs"]) {
        let line = listed(&path, "owned").unwrap();
        assert_eq!(line[..2], ["drwx--s--x", "4294967294/70000"]);
        let line = listed(&path, "null").unwrap();
        assert!(line[0].starts_with("crw--w----") && line[1] == "0/5", "{line:?}");
    }
    // Ids beyond 32 bits are nobody's.
    let too_large = t().pax("uid", b"4294967296").file("x", b"").build();
    assert!(TarReader::new(too_large.as_slice()).next_entry().is_err());
}

#[test]
fn names_arrive_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<Vec<u8>> = vec![
        b"\xff\xfe\x80".to_vec(),
        b"caf\xe9".to_vec(),
        "caf\u{e9}".into(),
        "cafe\u{301}".into(),
        vec![b'n'; 255],
        vec![0xe9; 255],
        b"new\nline\ttab\x7f\x1b[31m".to_vec(),
        b" leading and trailing ".to_vec(),
        b"-rf".to_vec(),
        b"*?[]\"'\\$`;&|".to_vec(),
        b"...".to_vec(),
        b".wh".to_vec(),
    ];
    let mut tar = t();
    for (number, name) in names.iter().enumerate() {
        tar = tar.pax("path", name).file("x", number.to_string().as_bytes());
    }
    let deep = [vec![b'd'; 255], vec![b'e'; 255], vec![0xff; 255]].join(&b'/');
    // A prefix of ustar, and the names of GNU.
    let mut prefixed = header(b'0', b"rest", b"", 0, 0o600, (0, 0), 0);
    prefixed[345..345 + 155].fill(b'p');
    seal(&mut prefixed);
    let tar = tar
        .entry(b'L', b"././@LongLink", b"", &[&deep[..], b"\0"].concat())
        .file("cut", b"deep")
        .pax("linkpath", &[0xfe; 4095])
        .symlink("link", "x")
        .build_without_end();
    let (path, _) = convert(dir.path(), &[[tar, prefixed.to_vec()].concat()]);
    let image = open(&path);
    for (number, name) in names.iter().enumerate() {
        let content = image.read_file(name, 100).unwrap();
        assert_eq!(content.as_deref(), Some(number.to_string().as_bytes()), "{name:?}");
    }
    assert_eq!(image.read_file(&deep, 100).unwrap().as_deref(), Some(&b"deep"[..]));
    assert_eq!(image.read_link(&find(&image, "link")).unwrap(), [0xfe; 4095]);
    assert_eq!(find(&image, ["p".repeat(155), "rest".into()].join("/")).mode, 0o600);
    // A whiteout of a name of 255 bytes is longer than a name may be, and refused as such.
    let too_long = t().pax("path", &[&b".wh."[..], &[b'n'; 255]].concat()).file("x", b"").build();
    assert!(TarReader::new(too_long.as_slice()).next_entry().is_err());
}

/// Reads some bytes of a file.
fn part(image: &Image, path: &str, at: u64, len: usize) -> Vec<u8> {
    let inode = find(image, path);
    let mut bytes = vec![0xaa; len];
    let mut have = 0;
    while have < len {
        let n = image.read(&inode, at + have as u64, &mut bytes[have..]).expect("readable");
        assert!(n > 0, "{path} has {len} bytes at {at}");
        have += n;
    }
    bytes
}

#[test]
fn files_beyond_four_and_eight_gib_arrive_with_their_holes() {
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let pieces = [0, 4 * GIB - 3, 4 * GIB + 100_000, 8 * GIB + 1, 9 * GIB - 5];
    let file = fs::File::create(tree.join("large")).unwrap();
    file.set_len(9 * GIB).unwrap();
    for at in pieces {
        std::os::unix::fs::FileExt::write_all_at(&file, b"piece", at).unwrap();
    }
    let hole = fs::File::create(tree.join("only-hole")).unwrap();
    hole.set_len(5 * GIB + 1).unwrap();
    for form in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let output = Command::new("tar")
            .args(form)
            .args(["--sparse", "-cf", "-", "-C"])
            .arg(&tree)
            .args(["large", "only-hole"])
            .output()
            .expect("tar is on every machine");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < 1 << 20, "the file system has no holes, the test proves nothing");
        let (path, _) = convert(dir.path(), &[output.stdout]);
        let image = open(&path);
        assert_eq!(find(&image, "large").size, 9 * GIB, "{form:?}");
        for at in pieces {
            assert_eq!(part(&image, "large", at, 5), b"piece", "{form:?} at {at}");
        }
        assert_eq!(part(&image, "large", GIB, 5), [0; 5]);
        let only = find(&image, "only-hole");
        assert_eq!((only.size, image.skip_hole(&only, 0).unwrap()), (5 * GIB + 1, 5 * GIB));
        assert_eq!(part(&image, "only-hole", 5 * GIB, 1), [0]);
        let InodeKind::File(data) = &find(&image, "large").kind else { panic!("a file") };
        assert!(data.sparse > 8 * GIB, "holes stay holes: {}", data.sparse);
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20, "{form:?}");
    }
}

/// A hole in an archive gives the same image as the zeros themselves.
#[test]
fn holes_and_zeros_are_the_same() {
    const LEN: usize = 6 << 20;
    let dir = tempfile::tempdir().unwrap();
    // Lengths around the writer's block of 128 KiB, and files that begin alike and differ later.
    let cases: [&[(usize, usize)]; 7] = [
        &[],
        &[(0, 10)],
        &[(LEN - 1, 1)],
        &[(131_072, 131_072)],
        &[(131_071, 2), (262_144, 1), (3 << 20, 400_000)],
        &[(0, 131_072), (2_500_000, 77)],
        &[(0, 131_072), (2_500_001, 77)],
    ];
    let (mut plain, mut sparse) = (t(), t());
    for (number, pieces) in cases.iter().enumerate() {
        let mut content = vec![0; LEN];
        let mut stored = Vec::new();
        let mut map = Vec::new();
        for (at, len) in *pieces {
            let bytes: Vec<u8> = (1..=251).cycle().take(*len).collect();
            content[*at..at + len].copy_from_slice(&bytes);
            stored.extend_from_slice(&bytes);
            map.push(format!("{at},{len}"));
        }
        let name = format!("f{number}");
        plain = plain.file(&name, &content);
        if map.is_empty() {
            map.push(format!("{LEN},0"));
        }
        sparse = sparse
            .pax("GNU.sparse.size", LEN.to_string().as_bytes())
            .pax("GNU.sparse.map", map.join(",").as_bytes())
            .file(&name, &stored);
    }
    // Without what names the layer's digest: the layers differ, and the images hold their manifests.
    let content = |tar: Vec<u8>| {
        let (path, _) = convert(dir.path(), &[tar]);
        let bytes = fs::read(&path).unwrap();
        let image = open(&path);
        let files: Vec<_> = (0..cases.len())
            .map(|number| {
                let inode = find(&image, format!("f{number}"));
                let InodeKind::File(data) = &inode.kind else { panic!("a file") };
                (inode.size, data.sparse, part(&image, &format!("f{number}"), 0, LEN))
            })
            .collect();
        (bytes.len(), files)
    };
    let (plain, sparse) = (content(plain.build()), content(sparse.build()));
    assert!(plain.1 == sparse.1, "the files are the same");
    assert_eq!(plain.0, sparse.0, "and take the same room");
}

/// Bytes that nobody looks at, which take no time to make.
struct Anything;

impl Read for Anything {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
}

#[test]
fn an_entry_of_more_than_eight_gib_is_passed_over() {
    const SIZE: u64 = (8 << 30) + 513;
    // Octal ends at 8 GiB: GNU writes base 256, and PAX a record.
    let mut gnu = header(b'0', b"large", b"", 0, 0o600, (0, 0), 0);
    gnu[124..136].fill(0);
    gnu[124] = 0x80;
    gnu[128..136].copy_from_slice(&SIZE.to_be_bytes());
    seal(&mut gnu);
    let pax = t().pax("size", SIZE.to_string().as_bytes()).file("large", b"").build_without_end();
    for head in [gnu.to_vec(), pax] {
        let data = Anything.take(SIZE.next_multiple_of(512));
        let after = t().file("after", b"x").build();
        let mut tar = TarReader::new(head.as_slice().chain(data).chain(after.as_slice()));
        let large = tar.next_entry().unwrap().unwrap();
        assert_eq!(large.kind, situla_image::EntryKind::File { size: SIZE });
        assert_eq!(tar.next_entry().unwrap().unwrap().path, b"after");
    }
}
