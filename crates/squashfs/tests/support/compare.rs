//! Comparison of an image with the tree it was made from, entry by entry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use situla_squashfs::{DeviceNumber, DirCookie, FileType, Image, Inode, InodeKind};

/// What an image was told to change of its tree.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changes {
    /// User and group of all that is not as in the tree.
    pub(crate) owner: (Option<u32>, Option<u32>),
    pub(crate) no_xattrs: bool,
    /// Each name has an inode of its own.
    pub(crate) no_hardlinks: bool,
}

/// Checks that `image` holds exactly the tree under `root`; returns the number of entries compared.
pub(crate) fn image_with_tree(image: &Image, root: &Path, changes: Changes) -> usize {
    let inode = image.inode(image.root()).unwrap();
    let mut numbers = BTreeMap::new();
    entry(image, &inode, root, changes, &mut numbers)
}

fn entry(
    image: &Image,
    inode: &Inode,
    path: &Path,
    changes: Changes,
    numbers: &mut BTreeMap<u32, u64>,
) -> usize {
    let expected = fs::symlink_metadata(path).unwrap();
    let at = path.display();
    assert_eq!(u32::from(inode.mode), expected.mode() & 0o7777, "mode of {at}");
    let (user, group) = changes.owner;
    let owner = (user.unwrap_or(expected.uid()), group.unwrap_or(expected.gid()));
    assert_eq!((inode.uid, inode.gid), owner, "owner of {at}");
    assert_eq!(i64::from(inode.mtime), expected.mtime(), "mtime of {at}");
    // One number for all names of one file, another for every other file.
    let previous = numbers.insert(inode.number, expected.ino());
    let may_repeat = |ino| ino == expected.ino() && !changes.no_hardlinks;
    assert!(previous.is_none_or(may_repeat), "inode number of {at}");
    if !expected.is_dir() {
        let nlink = if changes.no_hardlinks { 1 } else { expected.nlink() };
        assert_eq!(u64::from(inode.nlink), nlink, "nlink of {at}");
    }
    let found: BTreeMap<_, _> = image.xattrs(inode).unwrap().into_iter().collect();
    assert_eq!(found, if changes.no_xattrs { BTreeMap::new() } else { xattrs(path) }, "xattrs of {at}");

    let device = || u32::try_from(expected.rdev()).unwrap();
    let kind = expected.file_type();
    match inode.kind {
        InodeKind::Directory(_) => {
            assert!(kind.is_dir(), "kind of {at}");
            return 1 + directory(image, inode, path, changes, numbers);
        }
        InodeKind::File(_) => {
            assert!(kind.is_file(), "kind of {at}");
            assert_eq!(inode.size, expected.len(), "size of {at}");
            content(image, inode, path);
        }
        InodeKind::Symlink(_) => {
            assert!(kind.is_symlink(), "kind of {at}");
            let target = fs::read_link(path).unwrap();
            assert_eq!(image.read_link(inode).unwrap(), target.as_os_str().as_bytes(), "target of {at}");
        }
        InodeKind::BlockDevice(found) => {
            assert!(kind.is_block_device(), "kind of {at}");
            assert_eq!(found, linux_device(device()), "device of {at}");
        }
        InodeKind::CharDevice(found) => {
            assert!(kind.is_char_device(), "kind of {at}");
            assert_eq!(found, linux_device(device()), "device of {at}");
        }
        InodeKind::Fifo => assert!(kind.is_fifo(), "kind of {at}"),
        InodeKind::Socket => assert!(kind.is_socket(), "kind of {at}"),
    }
    1
}

fn linux_device(rdev: u32) -> DeviceNumber {
    DeviceNumber::new(rustix::fs::major(rdev.into()), rustix::fs::minor(rdev.into())).unwrap()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

fn directory(
    image: &Image,
    inode: &Inode,
    path: &Path,
    changes: Changes,
    numbers: &mut BTreeMap<u32, u64>,
) -> usize {
    let at = path.display();
    let mut expected: Vec<Vec<u8>> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
    expected.sort();
    let entries = image.read_dir(inode).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, expected, "names in {at}");

    // Going on from every place gives the same entries as reading in one go.
    let mut paged = Vec::new();
    let mut cookie = DirCookie::START;
    loop {
        let page = image.read_dir_from(inode, cookie, 7).unwrap();
        let Some(last) = page.last() else { break };
        cookie = last.next;
        paged.extend(page);
    }
    assert_eq!(paged, entries, "paged entries of {at}");

    for name in [&b""[..], b".", b"..", b"absent", b"\x01", b"zzzzzzz", &[0xff; 255], &[b'a'; 300]] {
        assert_eq!(image.lookup(inode, name).unwrap(), None, "look-up of {name:?} in {at}");
    }
    let n_subdirs = entries.iter().filter(|entry| entry.kind == FileType::Directory).count();
    assert_eq!(inode.nlink as usize, n_subdirs + 2, "nlink of {at}");

    let mut count = 0;
    for found in entries {
        assert_eq!(image.lookup(inode, &found.name).unwrap().as_ref(), Some(&found), "look-up in {at}");
        let child = image.inode(found.inode_ref).unwrap();
        assert_eq!(child.file_type(), found.kind);
        assert_eq!(child.number, found.number);
        let child_path = path.join(std::ffi::OsStr::from_bytes(&found.name));
        count += entry(image, &child, &child_path, changes, numbers);
    }
    count
}

fn content(image: &Image, inode: &Inode, path: &Path) {
    let mut file = fs::File::open(path).unwrap();
    // Three shapes of read: whole blocks, an odd length that crosses blocks, and single places.
    // One byte more than a small file has: filling megabytes for each takes longer than reading it.
    let room = file.metadata().unwrap().len().saturating_add(1).min(3 << 20) as usize;
    let (mut expected, mut found) = (vec![0; room], vec![0; room]);
    let mut offset = 0;
    loop {
        let wanted = fill(&mut file, &mut expected);
        assert_eq!(image.read(inode, offset, &mut found).unwrap(), wanted, "read of {}", path.display());
        assert!(found[..wanted] == expected[..wanted], "content of {} from {offset}", path.display());
        if offset < 16 << 20 {
            let mut at = 0;
            let mut part = [0; 10_007];
            while at < wanted {
                let read = image.read(inode, offset + at as u64, &mut part).unwrap();
                let read = read.min(wanted - at);
                assert!(read > 0);
                assert!(part[..read] == expected[at..at + read], "content of {} at {at}", path.display());
                at += read;
            }
        }
        offset += wanted as u64;
        if wanted < expected.len() {
            break;
        }
    }
    for beyond in [inode.size, inode.size + 1, u64::MAX] {
        assert_eq!(image.read(inode, beyond, &mut [0; 10]).unwrap(), 0);
    }
}

fn fill(file: &mut fs::File, buf: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read(&mut buf[filled..]).unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    filled
}
