//! The reader against images made by mksquashfs.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io};

use situla_squashfs::{Error, Image, ReadAt, ReadOptions, Window};
use support::compare::{Changes, image_with_tree};
use support::{have, mksquashfs, open, tree};

#[test]
fn reads_large_directories() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 20_000);
    let image = dir.path().join("image.sqfs");
    mksquashfs(&root, &image, &["-comp", "zstd", "-Xcompression-level", "1"]);
    // A cache too small to hold anything for long gives the same answers.
    for cache_bytes in [0, 64 << 20] {
        let image = Image::open(fs::File::open(&image).unwrap(), ReadOptions { cache_bytes }).unwrap();
        assert!(image_with_tree(&image, &root, Changes::default()) > 20_000);
    }
}

#[test]
fn reads_files_over_four_gibibytes() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    let file = fs::File::create(root.join("huge")).unwrap();
    let size = (4 << 30) + 300_000_001;
    file.set_len(size).unwrap();
    let marks = [0, 77_000_000, (4 << 30) - 9, 4 << 30, size - 6];
    for (index, mark) in marks.iter().enumerate() {
        file.write_all_at(format!("mark-{index}").as_bytes(), *mark).unwrap();
    }
    let image = dir.path().join("image.sqfs");
    // mksquashfs reads the holes, and the smaller its blocks the longer it takes for them.
    mksquashfs(&root, &image, &["-comp", "lz4", "-b", "128K"]);
    let image = open(&image);
    let inode = image.resolve("huge", true).unwrap().unwrap();
    assert_eq!(inode.size, size);
    // Backwards first, so that the block list is not simply walked.
    for (index, mark) in marks.iter().enumerate().rev().chain(marks.iter().enumerate()) {
        let mut found = [0; 6];
        assert_eq!(image.read(&inode, *mark, &mut found).unwrap(), 6);
        assert_eq!(&found, format!("mark-{index}").as_bytes());
    }
    let mut hole = vec![1; 1 << 20];
    assert_eq!(image.read(&inode, 3 << 30, &mut hole).unwrap(), hole.len());
    assert!(hole.iter().all(|byte| *byte == 0));
    // What may hold data is told without reading it, by blocks; the end of the file is in its tail.
    let after = |offset: u64| image.skip_hole(&inode, offset).unwrap();
    for (from, to) in [(0, 0), (5, 5), (128 << 10, 77_000_000), (3 << 30, (4 << 30) - 9), (5 << 30, size)] {
        assert_eq!(after(from) / (128 << 10), to / (128 << 10), "from {from}");
    }
    assert_eq!((after(size), after(size - 1)), (size, size - 1));
}

#[test]
fn resolves_paths_inside_the_image() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 10);
    let path = dir.path().join("image.sqfs");
    mksquashfs(&root, &path, &["-comp", "gzip"]);
    let image = open(&path);
    let number = |path: &str, follow| image.resolve(path, follow).unwrap().map(|inode| inode.number);
    let target = number("/sub/text-100", true);
    assert!(target.is_some());
    for same in [
        "sub/text-100",
        "//sub/./deeper/../text-100",
        "../../sub/text-100",
        "links/relative",
        "links/absolute",
        "links/escaping",
        "links/directory/text-100",
    ] {
        assert_eq!(number(same, true), target, "{same}");
    }
    assert_eq!(number("", true), number("/", true));
    assert_eq!(number("/..", true), number("/", true));
    assert_ne!(number("links/relative", false), target);
    assert_eq!(number("links/directory/", false), number("sub", false));
    let beside =
        |path: &str, name: &[u8]| image.resolve_beside(path, name).unwrap().map(|inode| inode.number);
    for path in ["sub/text-100", "links/relative", "links/escaping", "links/directory/text-100", "sub/deeper"]
    {
        assert_eq!(beside(path, b"text-100"), target, "{path}");
    }
    assert_eq!(beside("links/directory", b"links"), number("links", false));
    assert_eq!(beside("/", b"sub"), number("sub", false));
    assert_eq!(beside("absent", b"sub"), None);
    assert_eq!(beside("sub/text-100", b"absent"), None);
    for nowhere in
        ["absent", "sub/absent/x", "sub/text-100/x", "sub/text-100/", "links/broken", "zero-length/.."]
    {
        assert_eq!(number(nowhere, true), None, "{nowhere}");
    }
    assert!(matches!(image.resolve("links/loop-a", true), Err(Error::TooManyLinks)));
    assert!(image.resolve("links/loop-a", false).unwrap().is_some());

    let text = fs::read(root.join("sub/text-4097")).unwrap();
    assert_eq!(image.read_file("hard-b", 1 << 20).unwrap(), Some(text));
    assert!(matches!(image.read_file("hard-b", 4096), Err(Error::Limit { .. })));
    assert_eq!(image.read_file("sub", 4096).unwrap(), None);
    let file = image.resolve("hard-b", true).unwrap().unwrap();
    assert!(matches!(image.read_dir(&file), Err(Error::WrongKind { .. })));
    assert!(matches!(image.read_link(&file), Err(Error::WrongKind { .. })));

    // The same image inside a larger file.
    let mut shifted = vec![0xa5; 1000];
    let bytes = fs::read(&path).unwrap();
    shifted.extend_from_slice(&bytes);
    shifted.extend_from_slice(&[0x5a; 1000]);
    let window = Window::new(shifted, 1000, bytes.len() as u64);
    let inside = Image::open(window, ReadOptions::default()).unwrap();
    image_with_tree(&inside, &root, Changes::default());
}

#[test]
fn many_threads_share_an_image() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 500);
    let path = dir.path().join("image.sqfs");
    mksquashfs(&root, &path, &["-comp", "zstd", "-Xcompression-level", "1"]);
    let image = Image::open(fs::File::open(path).unwrap(), ReadOptions { cache_bytes: 1 << 20 }).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| image_with_tree(&image, &root, Changes::default()));
        }
    });
}

#[test]
fn refuses_what_it_cannot_read() {
    let open = |bytes: Vec<u8>| Image::open(bytes, ReadOptions::default());
    assert!(matches!(open(Vec::new()), Err(Error::NotSquashfs)));
    assert!(matches!(open(vec![0; 4096]), Err(Error::NotSquashfs)));
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.sqfs");
    fs::create_dir(dir.path().join("tree")).unwrap();
    mksquashfs(&dir.path().join("tree"), &path, &["-comp", "lzma"]);
    let error = open(fs::read(&path).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "squashfs compressor lzma (id 2) is not supported");
    mksquashfs(&dir.path().join("tree"), &path, &["-comp", "gzip"]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[28] = 3;
    assert!(matches!(open(bytes.clone()), Err(Error::Version { major: 3, minor: 0 })));
    bytes[28] = 4;
    bytes[12] = 1;
    assert!(matches!(open(bytes), Err(Error::Superblock { field: "block size", .. })));
}

/// A source that counts what is read of it.
struct Counting(fs::File, Arc<AtomicUsize>);

impl ReadAt for Counting {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[test]
fn what_was_preloaded_is_not_read_again() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    let content: Vec<u8> = (0u32..100_000).flat_map(|number| (number / 3).to_le_bytes()).collect();
    fs::write(root.join("file"), &content).unwrap();
    for options in
        [&["-comp", "zstd"][..], &["-comp", "gzip", "-no-fragments"], &["-comp", "lz4", "-noD", "-noF"]]
    {
        let path = dir.path().join("image.sqfs");
        let _ = fs::remove_file(&path);
        mksquashfs(&root, &path, options);
        let n_reads = Arc::new(AtomicUsize::new(0));
        let source = Counting(fs::File::open(&path).unwrap(), Arc::clone(&n_reads));
        let image = Image::open(source, ReadOptions::default()).unwrap();
        let file = image.resolve("file", true).unwrap().unwrap();
        for offset in [0, 131_072, 262_144, file.size - 1, file.size, u64::MAX] {
            image.preload(&file, offset).unwrap();
        }
        let before = n_reads.load(Ordering::Relaxed);
        let mut part = [0; 500];
        for offset in [0, 5, 200_000, content.len() - 500] {
            assert_eq!(image.read(&file, offset as u64, &mut part).unwrap(), 500);
            assert_eq!(part, content[offset..offset + 500], "{options:?}");
        }
        let stored_as_is = options.contains(&"-noD");
        assert_eq!(n_reads.load(Ordering::Relaxed) == before, !stored_as_is, "{options:?}");
        let root = image.inode(image.root()).unwrap();
        assert!(matches!(image.preload(&root, 0), Err(Error::WrongKind { .. })));
    }
}
