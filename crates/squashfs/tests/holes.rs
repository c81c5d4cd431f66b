//! Holes given as such: the same bytes as zeros that are written, and no more time or memory than their number takes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::io::Cursor;
use std::time::{Duration, Instant};

use situla_squashfs::{
    Image, InodeKind, Metadata, NodeKind, ReadOptions, StoredFile, Tree, Writer, WriterOptions,
};

const BLOCK: u64 = 4096;

type Memory = Cursor<Vec<u8>>;

fn writer(threads: usize) -> Writer<Memory> {
    let options = WriterOptions { block_size: 4096, threads, ..WriterOptions::default() };
    Writer::create(Cursor::new(Vec::new()), options).unwrap()
}

fn finish(writer: Writer<Memory>, files: &[StoredFile]) -> Vec<u8> {
    let meta = || Metadata { mode: 0o755, ..Metadata::default() };
    let mut tree = Tree::new(meta());
    for (number, file) in files.iter().enumerate() {
        let node = tree.add(meta(), NodeKind::File(*file)).unwrap();
        tree.link(tree.root(), format!("{number:04}").as_bytes(), node).unwrap();
    }
    writer.finish(&tree).unwrap().1.into_inner()
}

/// Part of a file.
#[derive(Clone, Copy, Debug)]
enum Part {
    Zeros(u64),
    /// So many bytes that depend on the number.
    Data(u64, u8),
}

fn write(writer: &mut Writer<Memory>, parts: &[Part], as_holes: bool) -> StoredFile {
    writer.begin_file().unwrap();
    for part in parts {
        match *part {
            Part::Zeros(len) if as_holes => writer.hole(len).unwrap(),
            Part::Zeros(len) => writer.write(&vec![0; usize::try_from(len).unwrap()]).unwrap(),
            Part::Data(len, number) => {
                let bytes: Vec<u8> = (0..len).map(|at| (at % 200) as u8 ^ number | 1).collect();
                writer.write(&bytes).unwrap();
            }
        }
    }
    writer.finish_file().unwrap()
}

/// Files that begin alike, part ways in holes and around them, and end in the middle of blocks.
fn files() -> Vec<Vec<Part>> {
    use Part::{Data, Zeros};
    let mut files = vec![
        vec![],
        vec![Zeros(1)],
        vec![Zeros(BLOCK)],
        vec![Zeros(7 * BLOCK)],
        vec![Zeros(8 * BLOCK)],
        vec![Zeros(9 * BLOCK + 1)],
        vec![Zeros(100 * BLOCK)],
        vec![Zeros(100 * BLOCK), Data(10, 1)],
        vec![Zeros(100 * BLOCK - 1), Data(10, 1)],
        vec![Zeros(50 * BLOCK), Data(BLOCK, 2), Zeros(50 * BLOCK)],
        vec![Zeros(50 * BLOCK), Data(BLOCK, 3), Zeros(50 * BLOCK)],
        vec![Zeros(50 * BLOCK), Data(BLOCK, 3), Zeros(49 * BLOCK), Data(5, 5)],
        vec![Data(10 * BLOCK, 4), Zeros(20 * BLOCK), Data(3 * BLOCK, 4)],
        vec![Data(10 * BLOCK, 4), Zeros(20 * BLOCK), Data(3 * BLOCK, 5)],
        vec![Data(10 * BLOCK, 4), Zeros(30 * BLOCK)],
        vec![Data(10 * BLOCK, 4), Zeros(12 * BLOCK)],
        vec![Data(10, 1), Zeros(BLOCK - 10), Zeros(BLOCK), Data(1, 1)],
        vec![Zeros(3), Zeros(BLOCK), Zeros(2 * BLOCK - 3), Zeros(0), Data(BLOCK, 6)],
    ];
    // Each twice: the second is a duplicate.
    files.extend(files.clone());
    files
}

#[test]
fn holes_give_the_same_image_as_zeros() {
    let mut images = Vec::new();
    for (threads, as_holes) in [(1, false), (1, true), (3, false), (3, true)] {
        let mut writer = writer(threads);
        let stored: Vec<StoredFile> =
            files().iter().map(|parts| write(&mut writer, parts, as_holes)).collect();
        images.push(finish(writer, &stored));
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "four ways, one image");
    let image = Image::open(images.remove(0), ReadOptions::default()).unwrap();
    for (number, parts) in files().iter().enumerate() {
        let want: Vec<u8> = parts
            .iter()
            .flat_map(|part| match *part {
                Part::Zeros(len) => vec![0; usize::try_from(len).unwrap()],
                Part::Data(len, number) => (0..len).map(|at| (at % 200) as u8 ^ number | 1).collect(),
            })
            .collect();
        let got = image.read_file(format!("{number:04}"), 1 << 20).unwrap().unwrap();
        assert!(got == want, "file {number}: {parts:?}");
    }
}

#[test]
fn many_gigabytes_of_zeros_take_no_time() {
    let began = Instant::now();
    let mut writer = writer(2);
    let len = 1u64 << 36;
    // The second is followed, the third parts ways at its end.
    let files = [
        vec![Part::Data(9 * BLOCK, 1), Part::Zeros(len)],
        vec![Part::Data(9 * BLOCK, 1), Part::Zeros(len)],
        vec![Part::Data(9 * BLOCK, 1), Part::Zeros(len), Part::Data(BLOCK, 2)],
    ];
    let stored: Vec<StoredFile> = files.iter().map(|parts| write(&mut writer, parts, true)).collect();
    assert_eq!(stored[0], stored[1]);
    let bytes = finish(writer, &stored);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let image = Image::open(bytes, ReadOptions::default()).unwrap();
    let last = image.resolve("0002", false).unwrap().unwrap();
    assert_eq!(last.size, len + 10 * BLOCK);
    let InodeKind::File(data) = &last.kind else { panic!("a file") };
    assert_eq!(data.sparse, len);
    let mut tail = [0; 4];
    assert_eq!(image.read(&last, last.size - 4, &mut tail).unwrap(), 4);
    assert_ne!(tail, [0; 4]);
}
