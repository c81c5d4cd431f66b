//! Source trees with everything a SquashFS image can hold.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// A small deterministic generator (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Bytes that do not compress.
    pub(crate) fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
    }

    /// Bytes that compress like text.
    pub(crate) fn words(&mut self, length: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            text.extend_from_slice(format!("word{} ", self.next() % 997).as_bytes());
        }
        text.truncate(length);
        text
    }
}

fn set_mtime(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            super::skip("the temporary directory has no extended attributes")
        }
        result => result.unwrap(),
    }
}

/// Sizes of files around those of blocks, of 4 KiB and 128 KiB.
const LENGTHS: [usize; 12] =
    [1, 100, 4095, 4096, 4097, 8192, 65_536, 131_071, 131_072, 131_073, 300_000, 1_500_000];
/// Few sizes, for trees of which many images are made: less than any block, two of the smallest ones and a bit, and
/// more than the largest.
const FEW_LENGTHS: [usize; 4] = [1, 100, 4097, (1 << 20) + 5000];

/// A tree with a bit of everything; `n_many` files in its largest directory.
pub(crate) fn build(root: &Path, n_many: usize) {
    build_with(root, n_many, &LENGTHS);
    let library = fs::read(std::env::current_exe().unwrap()).unwrap();
    fs::write(root.join("sub/deeper/program"), &library[..library.len().min(2_000_000)]).unwrap();
    fs::File::create(root.join("sub/only-hole")).unwrap().set_len(2 << 20).unwrap();
}

/// A tree with a bit of everything that is quick to make an image of: its directory listings and inodes still take
/// more than one block of metadata.
pub(crate) fn build_small(root: &Path) {
    build_with(root, 280, &FEW_LENGTHS);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn build_with(root: &Path, n_many: usize, lengths: &[usize]) {
    let mut random = Random(7);
    let root_user = super::is_root();
    for dir in ["empty", "sub/deeper/deepest", "many", "links", "special", "attributes"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }

    fs::write(root.join("zero-length"), b"").unwrap();
    for length in lengths {
        let length = *length;
        fs::write(root.join(format!("sub/text-{length}")), random.words(length)).unwrap();
        // Takes longest of all, as compressors try hard: no more of it than fills blocks of most sizes.
        let noise = if lengths.len() == FEW_LENGTHS.len() { length.min(300_000) } else { length };
        fs::write(root.join(format!("sub/noise-{length}")), random.noise(noise)).unwrap();
    }
    // Stored once: the largest, whose end lies in a fragment.
    let largest = format!("sub/text-{}", lengths.iter().max().unwrap());
    fs::copy(root.join(largest), root.join("sub/deeper/copy")).unwrap();

    // Holes at the start, in the middle and at the end.
    let sparse = fs::File::create(root.join("sub/sparse")).unwrap();
    sparse.write_all_at(&random.words(5000), 3 << 20).unwrap();
    sparse.set_len((5 << 20) + 17).unwrap();

    for index in 0..n_many {
        fs::write(root.join(format!("many/entry-{index:06}-{}", index * 7919 % 1000)), format!("{index}\n"))
            .unwrap();
    }
    fs::write(root.join("n".repeat(255)), b"long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not-\xff\xfe-utf8")), b"odd name").unwrap();
    fs::write(root.join("with space and \n newline"), b"odd name").unwrap();

    symlink("sub/text-100", root.join("links/broken")).unwrap();
    symlink("../sub/text-100", root.join("links/relative")).unwrap();
    symlink("/sub/text-100", root.join("links/absolute")).unwrap();
    symlink("../../../../sub/text-100", root.join("links/escaping")).unwrap();
    symlink("loop-b", root.join("links/loop-a")).unwrap();
    symlink("loop-a", root.join("links/loop-b")).unwrap();
    symlink("../sub", root.join("links/directory")).unwrap();
    symlink("t".repeat(4000), root.join("links/long-target")).unwrap();
    for name in ["hard-b", "links/hard-c"] {
        fs::hard_link(root.join("sub/text-4097"), root.join(name)).unwrap();
    }

    rustix::fs::mknodat(CWD, root.join("special/fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    let socket = root.join("special/socket");
    // A socket path is limited to 108 bytes; the tests' temporary directories are shorter than that.
    drop(UnixListener::bind(&socket).unwrap());

    fs::write(root.join("attributes/none"), b"x").unwrap();
    fs::write(root.join("attributes/one"), b"x").unwrap();
    set_xattr(&root.join("attributes/one"), "user.key", b"value");
    fs::write(root.join("attributes/same"), b"y").unwrap();
    set_xattr(&root.join("attributes/same"), "user.key", b"value");
    fs::write(root.join("attributes/large"), b"z").unwrap();
    // Large and repeated: stored out of line once.
    set_xattr(&root.join("attributes/large"), "user.large", &random.words(2000));
    fs::write(root.join("attributes/large-too"), b"zz").unwrap();
    let large = Random(99).words(1500);
    for name in ["large-too", "large"] {
        set_xattr(&root.join("attributes").join(name), "user.shared", &large);
    }
    set_xattr(&root.join("empty"), "user.dir", b"");
    if root_user {
        let device = rustix::fs::makedev;
        let mknod = |name: &str, kind, dev| {
            rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from(0o600), dev).unwrap();
        };
        mknod("special/null", FileType::CharacterDevice, device(1, 3));
        mknod("special/disk", FileType::BlockDevice, device(259, 70_000));
        set_xattr(&root.join("attributes/one"), "trusted.secret", b"\0\x01\x02");
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&root.join("attributes/one"), "security.capability", &capability);
        // Only these may have attributes that are not the user's own: each kind of inode has a longer form for them.
        for name in ["special/null", "special/disk", "special/fifo", "special/socket", "links/relative"] {
            set_xattr(&root.join(name), "trusted.kind", name.as_bytes());
        }
        chown(root.join("sub/text-100"), Some(1000), Some(100_000)).unwrap();
        chown(root.join("sub/text-1"), Some(65_534), Some(u32::MAX - 1)).unwrap();
    }

    // Only root can read what nobody may read.
    let unreadable = if root_user { 0o000 } else { 0o400 };
    for (name, mode) in
        [("sub/text-1", 0o4755), ("sub/text-100", unreadable), ("empty", 0o1777), ("sub", 0o2750)]
    {
        set_mode(&root.join(name), mode);
    }
    for (index, name) in
        ["links/broken", "sub/text-1", "special/fifo", "many", "empty", ""].iter().enumerate()
    {
        set_mtime(&root.join(name), 1_000_000_000 + i64::try_from(index).unwrap());
    }
    set_mtime(&root.join("zero-length"), i64::from(u32::MAX));
}
