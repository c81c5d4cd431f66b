//! The reader against images of every kind that mksquashfs can make.
//!
//! Each line is one image, read entirely and compared with the tree it was made from: kinds, modes, owners, times,
//! names, links, devices, attributes and contents. Every compressor meets every size of block, each of its own options
//! once, and each option of the layout; pairs of layout options are covered by the lines that combine them.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::compare::{Changes, image_with_tree};
use support::{have, mksquashfs, open, tree};

const COMPRESSORS: [&str; 5] = ["gzip", "lzo", "lz4", "xz", "zstd"];
const BLOCK_SIZES: [&str; 9] = ["4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K", "1M"];

/// Options of the compressors. The level is low where it does not matter: the time of this test is compression.
const CODECS: [&str; 38] = [
    "-comp gzip -Xcompression-level 1",
    "-comp gzip -Xcompression-level 9",
    "-comp gzip -Xcompression-level 1 -Xwindow-size 8",
    "-comp gzip -Xcompression-level 1 -Xwindow-size 15",
    "-comp gzip -Xstrategy default",
    "-comp gzip -Xstrategy filtered",
    "-comp gzip -Xstrategy huffman_only",
    "-comp gzip -Xstrategy run_length_encoded",
    "-comp gzip -Xstrategy fixed",
    "-comp gzip -Xcompression-level 3 -Xstrategy default,filtered,huffman_only,run_length_encoded,fixed",
    "-comp lzo -Xalgorithm lzo1x_1",
    "-comp lzo -Xalgorithm lzo1x_1_11",
    "-comp lzo -Xalgorithm lzo1x_1_12",
    "-comp lzo -Xalgorithm lzo1x_1_15",
    "-comp lzo -Xalgorithm lzo1x_999 -Xcompression-level 1",
    "-comp lzo -Xalgorithm lzo1x_999 -Xcompression-level 9",
    "-comp lz4",
    "-comp lz4 -Xhc",
    "-comp xz",
    "-comp xz -Xdict-size 8K -b 8K",
    "-comp xz -Xdict-size 25%",
    "-comp xz -Xbcj x86",
    "-comp xz -Xbcj arm",
    "-comp xz -Xbcj armthumb",
    "-comp xz -Xbcj powerpc",
    "-comp xz -Xbcj sparc",
    "-comp xz -Xbcj ia64",
    "-comp xz -Xbcj x86,arm,armthumb,powerpc,sparc,ia64",
    "-comp zstd -Xcompression-level 1",
    "-comp zstd -Xcompression-level 9",
    "-comp zstd -Xcompression-level 19",
    // What enroot makes.
    "-comp lzo -noD -all-root",
    "-comp zstd -noD -all-root",
    // What Apptainer makes.
    "-comp gzip -all-root",
    // What Charliecloud and others make.
    "-comp gzip -noD -noF -noI -noX",
    "-comp lz4 -noD -noF -noI -noX",
    "-comp lzo -noD -noF -noI -noX",
    "-comp xz -noD -noF -noI -noX",
];

/// Options of the layout; any compressor is as good as another for them.
const LAYOUTS: [&str; 24] = [
    "-noI",
    "-noId",
    "-noD",
    "-noF",
    "-noX",
    "-noId -noX",
    "-noI -noD -noF -noX -noId",
    "-no-fragments",
    "-no-fragments -noD",
    "-always-use-fragments",
    "-always-use-fragments -noF",
    "-tailends",
    "-no-tailends -no-duplicates",
    "-no-duplicates",
    "-no-sparse",
    "-no-exports",
    "-no-exports -noI -no-fragments",
    "-no-xattrs",
    "-no-xattrs -no-exports -noI",
    "-no-hardlinks",
    "-no-hardlinks -no-duplicates",
    "-nopad",
    "-all-root -force-gid 7 -no-exports",
    "-force-uid 100000 -force-gid 4294967294",
];

/// What the options change of the tree.
fn changes(options: &[&str]) -> Changes {
    let has = |name: &str| options.contains(&name);
    let value = |name: &str| {
        let at = options.iter().position(|option| *option == name)?;
        Some(options[at + 1].parse().unwrap())
    };
    let root = has("-all-root").then_some(0);
    Changes {
        owner: (value("-force-uid").or(root), value("-force-gid").or(root)),
        no_xattrs: has("-no-xattrs"),
        no_hardlinks: has("-no-hardlinks"),
    }
}

fn check(root: &Path, image: &Path, line: &str) {
    let options: Vec<&str> = line.split(' ').collect();
    mksquashfs(root, image, &options);
    let opened = open(image);
    // What differs is told there, and here of which image.
    let count = catch_unwind(AssertUnwindSafe(|| image_with_tree(&opened, root, changes(&options))));
    assert!(count.is_ok_and(|count| count > 310), "{line}");
    let exported = opened.inode_by_number(1).unwrap();
    assert_eq!(exported.is_none(), options.contains(&"-no-exports"), "{line}");
    let superblock = opened.superblock();
    let compressor = options.iter().position(|option| *option == "-comp").map(|at| options[at + 1]);
    assert_eq!(Some(superblock.compressor.name()), compressor, "{line}");
    if options.contains(&"-no-fragments") {
        assert_eq!(superblock.fragment_count, 0, "{line}");
    }
    fs::remove_file(image).unwrap();
}

/// The images to be made: no two are the same.
fn lines() -> BTreeSet<String> {
    let mut lines: BTreeSet<String> = CODECS.iter().map(|line| (*line).to_owned()).collect();
    for compressor in COMPRESSORS {
        let quick = match compressor {
            "gzip" | "zstd" => " -Xcompression-level 1",
            "lzo" => " -Xalgorithm lzo1x_1",
            _ => "",
        };
        for size in BLOCK_SIZES {
            lines.insert(format!("-comp {compressor}{quick} -b {size}"));
        }
    }
    // Layouts walk through compressors and sizes of blocks at different paces, so that the combinations vary.
    for (index, layout) in LAYOUTS.iter().enumerate() {
        let compressor = ["zstd", "lz4", "gzip"][index % 3];
        let size = BLOCK_SIZES[index * 5 % BLOCK_SIZES.len()];
        lines.insert(format!("-comp {compressor} -b {size} {layout}"));
    }
    lines
}

#[test]
fn reads_whatever_mksquashfs_writes() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<String> = lines().into_iter().collect();
    assert!(lines.len() > 100, "{} lines", lines.len());
    // Two at a time: mksquashfs is idle while we compare, and we while it compresses.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (next, lines) = (&next, &lines);
            // A tree for each: with one for both, hard links sometimes came out as files of their own. Supposedly mksquashfs
            // compares the time of access too, which the other's reading changes; that is not known for certain.
            let root = dir.path().join(format!("tree-{worker}"));
            let image = dir.path().join(format!("{worker}.sqfs"));
            scope.spawn(move || {
                tree::build_small(&root);
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(&root, &image, line);
                }
            });
        }
    });
}

#[test]
fn reads_an_image_behind_an_offset_and_with_another_root() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build_small(&root);
    let path = dir.path().join("image.sqfs");
    mksquashfs(&root, &path, &["-comp", "lz4", "-offset", "4096", "-root-mode", "0711", "-root-uid", "9"]);
    let bytes = fs::read(&path).unwrap();
    let len = bytes.len() as u64 - 4096;
    let window = situla_squashfs::Window::new(bytes, 4096, len);
    let image = situla_squashfs::Image::open(window, situla_squashfs::ReadOptions::default()).unwrap();
    let top = image.inode(image.root()).unwrap();
    assert_eq!((top.mode & 0o7777, top.uid), (0o711, 9));
    let expected = fs::read(root.join("sub/text-4097")).unwrap();
    assert_eq!(image.read_file("sub/text-4097", 1 << 20).unwrap(), Some(expected));
}
