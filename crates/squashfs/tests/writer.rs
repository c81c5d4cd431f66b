//! The writer: what it writes is read back by our reader, by unsquashfs and by the kernel.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use situla_squashfs::{
    Image, Metadata, NodeKind, ReadOptions, StoredFile, Summary, Tree, WriteError, Writer, WriterOptions,
};
use support::compare::{Changes, image_with_tree};
use support::tree::Random;
use support::{have, is_root, pack, run, skip, tree};

type Memory = Cursor<Vec<u8>>;

fn options(block_size: u32, threads: usize) -> WriterOptions {
    WriterOptions { block_size, threads, zstd_level: 1, mtime: 1_700_000_000 }
}

fn memory(root: &Path, options: WriterOptions) -> (Summary, Vec<u8>) {
    let (summary, out) = pack::directory(root, Cursor::new(Vec::new()), options);
    (summary, out.into_inner())
}

fn read(bytes: &[u8]) -> Image {
    Image::open(bytes.to_vec(), ReadOptions::default()).unwrap()
}

fn mode(mode: u16) -> Metadata {
    Metadata { mode, ..Metadata::default() }
}

/// A writer in memory with blocks of 4 KiB.
fn small_writer(threads: usize) -> Writer<Memory> {
    Writer::create(Cursor::new(Vec::new()), options(4096, threads)).unwrap()
}

/// Ends `writer` with a flat tree of files by name.
fn finish(writer: Writer<Memory>, files: &[(&str, StoredFile)]) -> (Summary, Vec<u8>) {
    let mut tree = Tree::new(mode(0o755));
    for (name, file) in files {
        let node = tree.add(mode(0o644), NodeKind::File(*file)).unwrap();
        tree.link(tree.root(), name.as_bytes(), node).unwrap();
    }
    let (summary, out) = writer.finish(&tree).unwrap();
    (summary, out.into_inner())
}

#[test]
fn round_trips_through_our_reader() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 5000);
    for (block_size, threads) in [(4096, 1), (4096, 3), (128 << 10, 2), (1 << 20, 1)] {
        let (summary, bytes) = memory(&root, options(block_size, threads));
        assert_eq!(bytes.len() as u64, summary.padded_len);
        let image = read(&bytes);
        let count = image_with_tree(&image, &root, Changes::default());
        // Two more names of one file.
        assert_eq!(count, summary.inodes as usize + 2);
        assert!(summary.duplicates >= 1);
        for number in 1..=summary.inodes {
            assert_eq!(image.inode_by_number(number).unwrap().unwrap().number, number);
        }
    }
}

#[test]
fn unsquashfs_reads_what_we_write() {
    if !have("unsquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 3000);
    for block_size in [4096, 128 << 10, 1 << 20] {
        let (summary, bytes) = memory(&root, options(block_size, 2));
        let path = dir.path().join("image.sqfs");
        fs::write(&path, &bytes).unwrap();
        let listing = run("unsquashfs", ["-lln".as_ref(), path.as_os_str()]);
        assert!(listing.lines().count() >= summary.inodes as usize, "{listing}");
        let statistics = run("unsquashfs", ["-s".as_ref(), path.as_os_str()]);
        assert!(statistics.contains("Compression zstd"), "{statistics}");
        assert!(statistics.contains("compression-level 1"), "{statistics}");
        let extracted = dir.path().join(format!("extracted-{block_size}"));
        let arguments = [
            "-quiet".as_ref(),
            "-no-progress".as_ref(),
            "-d".as_ref(),
            extracted.as_os_str(),
            path.as_os_str(),
        ];
        let output = Command::new("unsquashfs").args(arguments).output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        if is_root() {
            assert!(output.status.success() && complaints.is_empty(), "{complaints}");
            image_with_tree(&read(&bytes), &extracted, Changes::default());
        } else {
            // Owners and trusted attributes need root; content does not.
            skip("owners of an extracted tree need root");
            assert!(extracted.join("sub/text-1500000").exists(), "{complaints}");
        }
    }
}

/// A kernel mount of an image file, undone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .arg(image)
            .arg(&at)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        // A kernel without loop devices says so before it looks at the image.
        if !output.status.success()
            && (complaint.contains("loop device") || complaint.contains("unknown filesystem"))
        {
            skip(&complaint);
            return None;
        }
        assert!(output.status.success(), "{complaint}");
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}

#[test]
fn privileged_kernel_reads_what_we_write() {
    if !is_root() {
        skip("mounting needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 20_000);
    for block_size in [4096, 128 << 10, 1 << 20] {
        let (_, bytes) = memory(&root, options(block_size, 2));
        let path = dir.path().join(format!("image-{block_size}.sqfs"));
        fs::write(&path, &bytes).unwrap();
        let Some(mounted) = Mounted::new(&path, dir.path().join(format!("mount-{block_size}"))) else {
            return;
        };
        let image = read(&bytes);
        assert!(image_with_tree(&image, &mounted.0, Changes::default()) > 20_000);
        // The kernel finds every name by its own use of the index, and no others.
        for index in (0..20_000).step_by(37) {
            let name = format!("many/entry-{index:06}-{}", index * 7919 % 1000);
            assert_eq!(fs::read(mounted.0.join(name)).unwrap(), format!("{index}\n").as_bytes());
        }
        assert!(!mounted.0.join("many/entry-000001").exists());
        assert!(!mounted.0.join("many/a").exists() && !mounted.0.join("many/z").exists());
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 1000);
    for block_size in [4096, 128 << 10] {
        let (_, single) = memory(&root, options(block_size, 1));
        for threads in [1, 2, 8] {
            let (_, bytes) = memory(&root, options(block_size, threads));
            assert!(bytes == single, "{threads} threads, blocks of {block_size}");
        }
    }
}

#[test]
fn known_input_gives_known_bytes() {
    let mut writer = small_writer(2);
    let mut random = Random(11);
    let text = writer.add_file(&mut random.words(50_000).as_slice()).unwrap();
    let noise = writer.add_file(&mut random.noise(10_000).as_slice()).unwrap();
    let empty = writer.add_file(&mut std::io::empty()).unwrap();
    let (_, bytes) = finish(writer, &[("text", text), ("noise", noise), ("empty", empty)]);
    // Changes when the layout or the zstd library does. Both change the digest of every image that is
    // converted from then on: raise the converter's version with it.
    assert_eq!(blake3::hash(&bytes).to_hex().as_str(), PINNED);
}

const PINNED: &str = "7f7ddbc5c485649e19533565740206581e88423fffac8d6dded4c9c99b2a0e73";

/// Files below the size of a block share blocks, and so do the tails of longer ones.
#[test]
fn small_files_share_fragments() {
    let mut writer = small_writer(2);
    let mut random = Random(7);
    let contents: Vec<Vec<u8>> = (0..200).map(|_| random.noise(100)).collect();
    let tail = random.noise(4096 + 100);
    let mut files = Vec::new();
    for (index, content) in contents.iter().chain([&tail]).enumerate() {
        files.push((format!("file-{index}"), writer.add_file(&mut content.as_slice()).unwrap()));
    }
    let named: Vec<_> = files.iter().map(|(name, file)| (name.as_str(), *file)).collect();
    let (_, bytes) = finish(writer, &named);
    let image = Image::open(bytes, ReadOptions::default()).unwrap();
    // 201 pieces of 100 bytes: forty go into a block of 4096 bytes.
    assert_eq!(image.superblock().fragment_count, 6);
    for (index, content) in contents.iter().chain([&tail]).enumerate() {
        let found = image.read_file(format!("file-{index}"), 5000).unwrap().unwrap();
        assert!(found == *content, "{index}");
    }
}

#[test]
fn duplicates_are_stored_once() {
    for threads in [1, 2] {
        let mut random = Random(5);
        let long = random.noise(40 * 4096 + 100);
        let mut writer = small_writer(threads);
        let first = writer.add_file(&mut long.as_slice()).unwrap();
        let tiny = writer.add_file(&mut &b"tiny"[..]).unwrap();
        assert_eq!(writer.add_file(&mut long.as_slice()).unwrap(), first);
        assert_eq!(writer.add_file(&mut &b"tiny"[..]).unwrap(), tiny);
        // Pushed in odd pieces it is still the same file.
        writer.begin_file().unwrap();
        long.chunks(777).for_each(|piece| writer.write(piece).unwrap());
        assert_eq!(writer.finish_file().unwrap(), first);
        // Files that begin alike and then part: in a later block, in the tail, by ending, by going on.
        let mut variants = Vec::new();
        for at in [20 * 4096 + 5, 40 * 4096 + 50, 9 * 4096] {
            let mut changed = long.clone();
            changed[at] ^= 1;
            variants.push(changed);
        }
        variants.push(long[..30 * 4096].to_vec());
        variants.push(long[..30 * 4096 + 1].to_vec());
        variants.push([&long[..], &random.noise(30_000)].concat());
        let mut holes = long.clone();
        holes[10 * 4096..12 * 4096].fill(0);
        variants.push(holes.clone());
        holes[35 * 4096] ^= 1;
        variants.push(holes);
        let mut leading = vec![0; 10 * 4096];
        variants.push(leading.clone());
        leading.extend_from_slice(&long);
        variants.push(leading);
        let mut files = vec![("first".to_owned(), first)];
        for (index, content) in variants.iter().enumerate() {
            let stored = writer.add_file(&mut content.as_slice()).unwrap();
            assert!(files.iter().all(|(_, file)| *file != stored));
            files.push((format!("variant-{index}"), stored));
        }
        let named: Vec<_> = files.iter().map(|(name, file)| (name.as_str(), *file)).collect();
        let (summary, bytes) = finish(writer, &named);
        assert_eq!(summary.duplicates, 3);
        let image = read(&bytes);
        assert!(image.read_file("first", 1 << 20).unwrap().unwrap() == long);
        for (index, content) in variants.iter().enumerate() {
            let found = image.read_file(format!("variant-{index}"), 1 << 20).unwrap().unwrap();
            assert!(found == *content, "variant {index}");
        }
    }
}

#[test]
fn a_writer_may_move_to_another_thread() {
    fn sendable<T: Send>() {}
    sendable::<Writer<fs::File>>();
}

#[test]
fn holes_take_no_space() {
    // Past 4 GiB, so that the size needs its wide form.
    const HOLE: u64 = (4 << 30) + (1 << 20);
    let mut writer = Writer::create(Cursor::new(Vec::new()), options(1 << 20, 2)).unwrap();
    writer.begin_file().unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..HOLE >> 20 {
        writer.write(&zeros).unwrap();
    }
    writer.write(b"end").unwrap();
    let file = writer.finish_file().unwrap();
    assert_eq!(file.size(), HOLE + 3);
    let (summary, bytes) = finish(writer, &[("file", file)]);
    assert!(summary.bytes_used < 4096, "{summary:?}");
    let image = read(&bytes);
    let inode = image.resolve("file", true).unwrap().unwrap();
    assert_eq!(inode.size, HOLE + 3);
    let mut tail = [1; 10];
    assert_eq!(image.read(&inode, HOLE - 7, &mut tail).unwrap(), 10);
    assert_eq!(&tail, b"\0\0\0\0\0\0\0end");
    assert_eq!(image.skip_hole(&inode, 1).unwrap(), HOLE);
}

#[test]
fn writes_trees_as_deep_as_they_come() {
    let mut tree = Tree::new(mode(0o755));
    let mut dir = tree.root();
    for _ in 0..50_000 {
        let inner = tree.add(mode(0o755), NodeKind::Directory(std::collections::BTreeMap::new())).unwrap();
        tree.link(dir, b"d", inner).unwrap();
        dir = inner;
    }
    let (summary, out) = small_writer(1).finish(&tree).unwrap();
    assert_eq!(summary.inodes, 50_001);
    let image = read(out.get_ref());
    let path = "d/".repeat(50_000);
    assert_eq!(image.resolve(&path, true).unwrap().unwrap().nlink, 2);
}

#[test]
fn an_image_may_start_anywhere() {
    let mut out = Cursor::new(Vec::new());
    out.write_all(&[0xa5; 777]).unwrap();
    let mut writer = Writer::create(out, options(4096, 1)).unwrap();
    let file = writer.add_file(&mut &b"content"[..]).unwrap();
    let (summary, bytes) = finish(writer, &[("file", file)]);
    assert_eq!(&bytes[..777], &[0xa5; 777]);
    assert_eq!(bytes.len() as u64, 777 + summary.padded_len);
    let image = read(&bytes[777..]);
    assert_eq!(image.read_file("file", 100).unwrap().unwrap(), b"content");
}

#[test]
fn refuses_what_the_format_cannot_hold() {
    for (block_size, zstd_level, threads) in
        [(5000, 3, 1), (2048, 3, 1), (2 << 20, 3, 1), (4096, 0, 1), (4096, 23, 1), (4096, 3, 0)]
    {
        let options = WriterOptions { block_size, zstd_level, threads, mtime: 0 };
        let result = Writer::create(Cursor::new(Vec::new()), options);
        assert!(matches!(result, Err(WriteError::Options { .. })), "{options:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let write_only = fs::File::create(dir.path().join("image")).unwrap();
    assert!(matches!(Writer::create(write_only, options(4096, 1)), Err(WriteError::Output(_))));

    let mut writer = small_writer(1);
    assert!(matches!(writer.write(b"x"), Err(WriteError::Order { .. })));
    assert!(matches!(writer.finish_file(), Err(WriteError::Order { .. })));
    writer.begin_file().unwrap();
    assert!(matches!(writer.begin_file(), Err(WriteError::Order { .. })));

    let refused = |metadata: Metadata, kind: NodeKind| {
        let mut tree = Tree::new(mode(0o755));
        let node = tree.add(metadata, kind).unwrap();
        tree.link(tree.root(), b"x", node).unwrap();
        small_writer(1).finish(&tree).unwrap_err()
    };
    let wide = Metadata { mode: 0o100_644, ..Metadata::default() };
    assert!(matches!(refused(wide, NodeKind::Fifo), WriteError::Tree { .. }));
    for target in [Vec::new(), vec![b'x'; 4096], b"a\0b".to_vec()] {
        assert!(matches!(refused(mode(0o777), NodeKind::Symlink(target)), WriteError::Tree { .. }));
    }
    let foreign = small_writer(1).add_file(&mut &b"elsewhere"[..]).unwrap();
    assert!(matches!(refused(mode(0o644), NodeKind::File(foreign)), WriteError::Tree { .. }));
    let acl = vec![(b"system.posix_acl_access".to_vec(), Vec::new())];
    let with_acl = Metadata { xattrs: acl, ..mode(0o644) };
    assert!(matches!(refused(with_acl, NodeKind::Fifo), WriteError::Xattr { .. }));
    // A name put past the checks of `link`.
    let mut tree = Tree::new(mode(0o755));
    let fifo = tree.add(mode(0o644), NodeKind::Fifo).unwrap();
    let names = [(b"../x".to_vec(), fifo)].into();
    tree.node_mut(tree.root()).kind = NodeKind::Directory(names);
    assert!(matches!(small_writer(1).finish(&tree), Err(WriteError::Name { .. })));
    // A directory in two places, and one in itself.
    for twice in [true, false] {
        let mut tree = Tree::new(mode(0o755));
        let dir = tree.add(mode(0o755), NodeKind::Directory(std::collections::BTreeMap::new())).unwrap();
        tree.link(tree.root(), b"a", dir).unwrap();
        tree.link(if twice { tree.root() } else { dir }, b"b", dir).unwrap();
        assert!(matches!(small_writer(1).finish(&tree), Err(WriteError::Tree { .. })));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_forgotten() {
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.min(buf.len());
            self.0 -= count;
            if count == 0 { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(count) }
        }
    }
    let mut writer = small_writer(2);
    for length in [0, 100, 4096 * 3, 4096 * 20 + 1] {
        assert!(matches!(writer.add_file(&mut Broken(length)), Err(WriteError::Content(_))));
    }
    let file = writer.add_file(&mut &b"whole"[..]).unwrap();
    let (_, bytes) = finish(writer, &[("file", file)]);
    assert_eq!(read(&bytes).read_file("file", 100).unwrap().unwrap(), b"whole");
}
