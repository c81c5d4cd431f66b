//! Reads everything in an image and says how long that took: `walk IMAGE [THREADS]`. For measurements.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool for measuring, not part of the product"
)]

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use situla_squashfs::{DirCookie, FileType, Image, Inode, ReadAt, ReadOptions};

/// Counts the reads of a file.
struct Counted(File, &'static AtomicU64);

impl ReadAt for Counted {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

static READS: AtomicU64 = AtomicU64::new(0);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let threads: usize = arguments.next().map_or(1, |value| value.parse().unwrap());

    let start = Instant::now();
    let image = Image::open(Counted(File::open(path).unwrap(), &READS), ReadOptions::default()).unwrap();
    let root = image.inode(image.root()).unwrap();
    let first = image.read_dir_from(&root, DirCookie::START, 1).unwrap();
    println!(
        "open and first entry {:?}: {:?}, {} reads",
        first.len(),
        start.elapsed(),
        READS.load(Ordering::Relaxed)
    );

    let start = Instant::now();
    let mut files = Vec::new();
    let mut dirs = vec![root];
    let mut n_entries = 0u64;
    while let Some(dir) = dirs.pop() {
        for entry in image.read_dir(&dir).unwrap() {
            n_entries += 1;
            let inode = image.inode(entry.inode_ref).unwrap();
            match inode.file_type() {
                FileType::Directory => dirs.push(inode),
                FileType::File => files.push(inode),
                _ => {}
            }
        }
    }
    println!("{n_entries} inodes: {:?}, {} reads", start.elapsed(), READS.load(Ordering::Relaxed));

    let start = Instant::now();
    let bytes = AtomicU64::new(0);
    let queue = Mutex::new(files.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buf = vec![0; 128 << 10];
                let next = || queue.lock().unwrap().next();
                while let Some(inode) = next() {
                    bytes.fetch_add(read_all(&image, &inode, &mut buf), Ordering::Relaxed);
                }
            });
        }
    });
    let reads = READS.load(Ordering::Relaxed);
    println!("{} bytes of files: {:?}, {reads} reads", bytes.into_inner(), start.elapsed());
}

fn read_all(image: &Image, inode: &Inode, buf: &mut [u8]) -> u64 {
    let mut offset = 0;
    loop {
        match image.read(inode, offset, buf).unwrap() {
            0 => return offset,
            count => offset += count as u64,
        }
    }
}
