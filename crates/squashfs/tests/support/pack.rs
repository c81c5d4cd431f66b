//! Packs a directory of the host with the writer, as a user of the crate would.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use situla_squashfs::{DeviceNumber, Metadata, NodeId, NodeKind, Summary, Tree, Writer, WriterOptions};

/// Writes the tree under `root` as an image.
pub(crate) fn directory<W: Read + Write + Seek>(root: &Path, out: W, options: WriterOptions) -> (Summary, W) {
    let mut writer = Writer::create(out, options).unwrap();
    let mut tree = Tree::new(metadata(root));
    let mut links = HashMap::new();
    let top = tree.root();
    add_names(root, top, &mut tree, &mut writer, &mut links);
    writer.finish(&tree).unwrap()
}

fn metadata(path: &Path) -> Metadata {
    let found = fs::symlink_metadata(path).unwrap();
    Metadata {
        mode: u16::try_from(found.mode() & 0o7777).unwrap(),
        uid: found.uid(),
        gid: found.gid(),
        mtime: u32::try_from(found.mtime()).unwrap(),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = [0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

fn add_names<W: Read + Write + Seek>(
    dir: &Path,
    parent: NodeId,
    tree: &mut Tree,
    writer: &mut Writer<W>,
    links: &mut HashMap<(u64, u64), NodeId>,
) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let found = fs::symlink_metadata(&path).unwrap();
        let identity = (found.dev(), found.ino());
        let known = if found.is_dir() { None } else { links.get(&identity).copied() };
        let node = known.unwrap_or_else(|| {
            let kind = kind(&path, &found, writer);
            let node = tree.add(metadata(&path), kind).unwrap();
            if found.nlink() > 1 {
                links.insert(identity, node);
            }
            node
        });
        assert_eq!(tree.link(parent, name.as_bytes(), node).unwrap(), None);
        if found.is_dir() {
            add_names(&path, node, tree, writer, links);
        }
    }
}

fn kind<W: Read + Write + Seek>(path: &Path, found: &fs::Metadata, writer: &mut Writer<W>) -> NodeKind {
    let kind = found.file_type();
    let device =
        || DeviceNumber::new(rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev())).unwrap();
    if kind.is_dir() {
        NodeKind::Directory(std::collections::BTreeMap::new())
    } else if kind.is_symlink() {
        NodeKind::Symlink(fs::read_link(path).unwrap().into_os_string().into_vec())
    } else if kind.is_block_device() {
        NodeKind::BlockDevice(device())
    } else if kind.is_char_device() {
        NodeKind::CharDevice(device())
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else if kind.is_socket() {
        NodeKind::Socket
    } else {
        NodeKind::File(writer.add_file(&mut fs::File::open(path).unwrap()).unwrap())
    }
}
