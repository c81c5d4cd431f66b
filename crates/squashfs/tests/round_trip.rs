//! Random trees, written and read back.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use situla_squashfs::{
    DeviceNumber, Image, Inode, InodeKind, Metadata, NodeId, NodeKind, ReadOptions, Tree, Writer,
    WriterOptions,
};
use support::tree::Random;

/// A node of the model.
#[derive(Debug, Clone)]
struct Model {
    metadata: Metadata,
    kind: ModelKind,
}

#[derive(Debug, Clone)]
enum ModelKind {
    Directory(BTreeMap<Vec<u8>, Model>),
    File(Vec<Piece>),
    Symlink(Vec<u8>),
    Char(DeviceNumber),
    Block(DeviceNumber),
    Fifo,
    Socket,
}

/// Content by description, so that a failing case can be read.
#[derive(Debug, Clone)]
enum Piece {
    Zeros(usize),
    Noise(u64, usize),
    Words(u64, usize),
}

fn bytes(pieces: &[Piece]) -> Vec<u8> {
    let mut content = Vec::new();
    for piece in pieces {
        match *piece {
            Piece::Zeros(length) => content.resize(content.len() + length, 0),
            Piece::Noise(seed, length) => content.extend(Random(seed + 1).noise(length)),
            Piece::Words(seed, length) => content.extend(Random(seed + 1).words(length)),
        }
    }
    content
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    // Few seeds and round lengths make for duplicates, common beginnings and whole blocks.
    let length = || prop_oneof![Just(4096usize), Just(8192), Just(36_864), 0usize..20_000];
    let piece = prop_oneof![
        length().prop_map(Piece::Zeros),
        (0u64..3, length()).prop_map(|(seed, length)| Piece::Noise(seed, length)),
        (0u64..3, length()).prop_map(|(seed, length)| Piece::Words(seed, length)),
    ];
    vec(piece, 0..4)
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("allowed", |byte| *byte != 0 && *byte != b'/');
    vec(byte, 1..40).prop_filter("special", |name| name != b"." && name != b"..")
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![vec(any::<u8>(), 0..30), vec(any::<u8>(), 9000..9100)];
    let key = ("(user|trusted|security)\\.[a-z]{1,4}").prop_map(String::into_bytes);
    let xattrs = prop_oneof![3 => Just(BTreeMap::new()), 1 => btree_map(key, value, 0..3)];
    (0u16..0o10_000, any::<u32>(), 0u32..3, any::<u32>(), xattrs).prop_map(
        |(mode, uid, gid, mtime, xattrs)| Metadata {
            mode,
            uid,
            gid,
            mtime,
            xattrs: xattrs.into_iter().collect(),
        },
    )
}

fn model() -> impl Strategy<Value = Model> {
    let device =
        || (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber::new(major, minor).unwrap());
    let leaf = prop_oneof![
        4 => pieces().prop_map(ModelKind::File),
        1 => vec(1u8..255, 1..300).prop_map(ModelKind::Symlink),
        1 => device().prop_map(ModelKind::Char),
        1 => device().prop_map(ModelKind::Block),
        1 => Just(ModelKind::Fifo),
        1 => Just(ModelKind::Socket),
    ];
    let leaf = (metadata(), leaf).prop_map(|(metadata, kind)| Model { metadata, kind });
    leaf.prop_recursive(4, 60, 12, |inner| {
        let names = btree_map(name(), inner, 0..12);
        (metadata(), names)
            .prop_map(|(metadata, names)| Model { metadata, kind: ModelKind::Directory(names) })
    })
}

fn add(model: &Model, tree: &mut Tree, writer: &mut Writer<Cursor<Vec<u8>>>) -> NodeId {
    let kind = match &model.kind {
        ModelKind::Directory(names) => NodeKind::Directory(
            names.iter().map(|(name, child)| (name.clone(), add(child, tree, writer))).collect(),
        ),
        ModelKind::File(pieces) => NodeKind::File(writer.add_file(&mut bytes(pieces).as_slice()).unwrap()),
        ModelKind::Symlink(target) => NodeKind::Symlink(target.clone()),
        ModelKind::Char(device) => NodeKind::CharDevice(*device),
        ModelKind::Block(device) => NodeKind::BlockDevice(*device),
        ModelKind::Fifo => NodeKind::Fifo,
        ModelKind::Socket => NodeKind::Socket,
    };
    tree.add(model.metadata.clone(), kind).unwrap()
}

fn check(model: &Model, image: &Image, inode: &Inode) {
    let expected = &model.metadata;
    assert_eq!(
        (inode.mode, inode.uid, inode.gid, inode.mtime),
        (expected.mode, expected.uid, expected.gid, expected.mtime)
    );
    assert_eq!(image.xattrs(inode).unwrap(), expected.xattrs);
    match (&model.kind, &inode.kind) {
        (ModelKind::Directory(names), InodeKind::Directory(_)) => {
            let entries = image.read_dir(inode).unwrap();
            assert!(entries.iter().map(|entry| &entry.name).eq(names.keys()));
            for (name, child) in names {
                let entry = image.lookup(inode, name).unwrap().unwrap();
                check(child, image, &image.inode(entry.inode_ref).unwrap());
            }
        }
        (ModelKind::File(pieces), InodeKind::File(_)) => {
            let content = bytes(pieces);
            let mut found = vec![0xa5; content.len() + 10];
            assert_eq!(image.read(inode, 0, &mut found).unwrap(), content.len());
            assert!(found[..content.len()] == content);
            let middle = content.len() / 3;
            let mut part = [0xa5; 3000];
            let read = image.read(inode, middle as u64, &mut part).unwrap();
            assert!(part[..read] == content[middle..middle + read]);
            assert_eq!(read, 3000.min(content.len() - middle));
        }
        (ModelKind::Symlink(target), InodeKind::Symlink(_)) => {
            assert_eq!(&image.read_link(inode).unwrap(), target);
        }
        (ModelKind::Char(device), InodeKind::CharDevice(found))
        | (ModelKind::Block(device), InodeKind::BlockDevice(found)) => assert_eq!(device, found),
        (ModelKind::Fifo, InodeKind::Fifo) | (ModelKind::Socket, InodeKind::Socket) => {}
        (expected, found) => panic!("{expected:?} became {found:?}"),
    }
}

fn write(model: &Model, block_size: u32, threads: usize) -> Vec<u8> {
    let options = WriterOptions { block_size, zstd_level: 1, threads, mtime: 0 };
    let mut writer = Writer::create(Cursor::new(Vec::new()), options).unwrap();
    let mut tree = Tree::new(model.metadata.clone());
    let names = match &model.kind {
        ModelKind::Directory(names) => names.clone(),
        _ => BTreeMap::from([(b"only".to_vec(), model.clone())]),
    };
    for (name, child) in &names {
        let child = add(child, &mut tree, &mut writer);
        tree.link(tree.root(), name.as_slice(), child).unwrap();
    }
    writer.finish(&tree).unwrap().1.into_inner()
}

#[test]
fn any_tree_round_trips() {
    let config = Config { cases: 600, failure_persistence: None, ..Config::default() };
    let cases = (model(), prop_oneof![Just(4096u32), Just(8192), Just(131_072)]);
    TestRunner::new(config)
        .run(&cases, |(model, block_size)| {
            let written = write(&model, block_size, 1);
            assert!(written == write(&model, block_size, 3), "threads change the bytes");
            let image = Image::open(written, ReadOptions::default()).unwrap();
            let root = image.inode(image.root()).unwrap();
            match model.kind {
                ModelKind::Directory(_) => check(&model, &image, &root),
                _ => check(&model, &image, &image.resolve("only", false).unwrap().unwrap()),
            }
            Ok(())
        })
        .unwrap();
}
