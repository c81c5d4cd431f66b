//! The exercises of the fuzz targets on seeds with changed bytes.

#[path = "../tests/support/messages.rs"]
mod messages;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[path = "../tests/support/requests.rs"]
mod requests;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use situla_squashfs::{Metadata, NodeKind, Tree, Writer, WriterOptions};

use self::mutate::Mutations;
use crate::failure::{Failure, FailureClass};

/// A small image with a file of several blocks, links, a device and a directory.
fn image() -> Vec<u8> {
    let options = WriterOptions { block_size: 4096, ..WriterOptions::default() };
    let mut writer = Writer::create(Cursor::new(Vec::new()), options).unwrap();
    let text: Vec<u8> = (0..3000u32).flat_map(|number| number.to_string().into_bytes()).collect();
    let text = NodeKind::File(writer.add_file(&mut Cursor::new(text)).unwrap());
    let passwd = NodeKind::File(writer.add_file(&mut Cursor::new(b"root:x:0:0::/:/bin/sh\n")).unwrap());
    let meta = |xattrs| Metadata { mode: 0o755, uid: 0, gid: 0, mtime: 1, xattrs };
    let mut tree = Tree::new(meta(Vec::new()));
    let root = tree.root();
    let directory = || NodeKind::Directory(Default::default());
    let etc = tree.add(meta(Vec::new()), directory()).unwrap();
    let many = tree.add(meta(Vec::new()), directory()).unwrap();
    let key = vec![(b"user.key".to_vec(), b"value".to_vec())];
    let text = tree.add(meta(key), text).unwrap();
    let passwd = tree.add(meta(Vec::new()), passwd).unwrap();
    let link = tree.add(meta(Vec::new()), NodeKind::Symlink(b"etc/passwd".to_vec())).unwrap();
    for (parent, name, child) in [
        (root, "etc", etc),
        (root, "many", many),
        (root, "bin", link),
        (etc, "passwd", passwd),
        (etc, "witness", text),
    ] {
        tree.link(parent, name.as_bytes(), child).unwrap();
    }
    for number in 0..60 {
        tree.link(many, format!("a-rather-long-name-{number}").as_bytes(), text).unwrap();
    }
    writer.finish(&tree).unwrap().1.into_inner()
}

#[test]
fn requests_to_changed_images_are_answered() {
    const ROUNDS: u64 = 500;
    let image = image();
    let mut opened = 0;
    for round in 0..ROUNDS {
        let mut random = Mutations::new(round);
        let script: Vec<u8> = (0..320).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        let length = u16::try_from(script.len()).unwrap().to_le_bytes();
        let seed = [&length[..], &script].concat();
        if round == 0 {
            let answered = requests::serve(&[&seed[..], &image].concat()).unwrap();
            assert!(answered > 15, "{answered} of 40 had an answer");
        }
        opened += u64::from(requests::serve(&[&seed[..], &random.of(&image)].concat()).is_some());
    }
    assert!(opened > ROUNDS / 10, "{opened} opened");
}

/// The seeds of the fuzz target, as they are and with changed bytes.
#[test]
fn committed_requests_are_answered() {
    const ROUNDS: u64 = 100;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/fuse_requests");
    let mut n_seeds = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let seed = fs::read(&path).unwrap();
        n_seeds += 1;
        let answered = requests::serve(&seed).unwrap();
        assert!(answered > 10, "{}: {answered} requests had an answer", path.display());
        for round in 0..ROUNDS {
            requests::serve(&Mutations::new(round).of(&seed));
        }
    }
    assert!(n_seeds > 0, "the seeds are there");
}

#[test]
fn changed_messages_are_received_or_refused() {
    let failure = Failure::of_call(FailureClass::Rootfs, "no such thing: ü", rustix::io::Errno::NOENT);
    let seeds = [failure.encode(), b"Rrun-1".to_vec(), 7u32.to_ne_bytes().to_vec(), vec![b'F'; 4097], vec![]];
    for seed in seeds {
        messages::bytes(&seed);
        for round in 0..1500 {
            messages::bytes(&Mutations::new(round).of(&seed));
        }
    }
}
