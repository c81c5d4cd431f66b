//! Images that lie: truncated ones and ones with changed bytes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use situla_squashfs::{Error, WriterOptions};
use support::tree::Random;
use support::{exercise, have, mksquashfs, pack, tree};

/// Longest time one small lying image may take; generous, as tests run unoptimised on busy machines.
const PATIENCE: Duration = Duration::from_secs(20);

/// Small images with everything in them: one of ours, and what mksquashfs makes if it is there.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree::build(&root, 600);
    thin_out(&root);
    let options = WriterOptions { block_size: 4096, ..WriterOptions::default() };
    let (_, own) = pack::directory(&root, Cursor::new(Vec::new()), options);
    let mut seeds = vec![("own", own.into_inner())];
    if have("mksquashfs") {
        for compressor in ["gzip", "lzo", "lz4", "xz", "zstd", "none"] {
            seeds.push((compressor, made(&root, dir.path(), compressor)));
        }
    }
    seeds
}

/// Removes large incompressible content, which would take the mutations for itself.
fn thin_out(root: &Path) {
    for entry in fs::read_dir(root.join("sub")).unwrap() {
        let path = entry.unwrap().path();
        let long = path.metadata().is_ok_and(|found| found.is_file() && found.len() > 9000);
        if long && !path.ends_with("sparse") {
            fs::remove_file(path).unwrap();
        }
    }
    fs::remove_file(root.join("sub/deeper/program")).unwrap();
    fs::write(root.join("sub/deeper/copy"), Random(3).words(40_000)).unwrap();
}

/// An image of mksquashfs.
fn made(root: &Path, dir: &Path, compressor: &str) -> Vec<u8> {
    let image = dir.join(format!("{compressor}.sqfs"));
    let options = match compressor {
        "none" => "-comp gzip -b 4096 -noI -noD -noF -noX -noId".to_owned(),
        name => format!("-comp {name} -b 4096"),
    };
    mksquashfs(root, &image, &options.split(' ').collect::<Vec<_>>());
    fs::read(image).unwrap()
}

fn bounded(what: &str, bytes: Vec<u8>) -> Result<exercise::Walk, Error> {
    let start = Instant::now();
    let result = exercise::image(bytes);
    assert!(start.elapsed() < PATIENCE, "{what} took {:?}", start.elapsed());
    result
}

#[test]
fn intact_seeds_have_no_failures() {
    for (compressor, bytes) in seeds() {
        let walk = exercise::image(bytes).unwrap();
        assert!(walk.visits > 300, "{compressor}: {walk:?}");
        // The walk asks for one looping path twice, two inode numbers that do not exist, and goes on
        // from made-up cookies.
        assert!(walk.failures >= 4, "{compressor}: {walk:?}");
    }
}

#[test]
fn truncated_images_do_not_open() {
    for (compressor, bytes) in seeds() {
        let used = usize::try_from(u64::from_le_bytes(bytes[40..48].try_into().unwrap())).unwrap();
        for length in (0..used).step_by(used / 97).chain([95, 96, 97, used - 1]) {
            let error = exercise::image(bytes[..length].to_vec()).unwrap_err();
            assert!(matches!(error, Error::NotSquashfs | Error::Truncated { .. }), "{length}: {error}");
        }
        assert!(exercise::image(bytes[..used].to_vec()).is_ok());
        // Cut short with a superblock that hides it.
        for length in (200..used).step_by(used / 41) {
            let mut bytes = bytes[..length].to_vec();
            bytes[40..48].copy_from_slice(&(length as u64).to_le_bytes());
            let what = format!("{compressor} cut at {length}");
            let complete = bounded(&what, bytes).is_ok_and(|walk| walk.failures == 0);
            assert!(!complete, "{what}");
        }
    }
}

/// Changes an image so many times; tells how often it did not even open.
fn changed(name: &str, bytes: &[u8], rounds: usize) -> usize {
    let table = usize::try_from(u64::from_le_bytes(bytes[64..72].try_into().unwrap())).unwrap();
    let mut random = Random(1 + name.len() as u64);
    let mut refused = 0;
    for round in 0..rounds {
        let mut bytes = bytes.to_vec();
        // A third of the changes each to the superblock, to metadata and anywhere.
        let (from, to) = [(0, 96), (table, bytes.len()), (96, bytes.len())][round % 3];
        for _ in 0..1 + random.below(3) {
            let at = from + random.below(to - from);
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = 0xff,
                2 => bytes[at] = 0,
                _ => bytes[at] = random.noise(1)[0],
            }
        }
        let outcome = bounded(&format!("{name} round {round}"), bytes);
        refused += usize::from(outcome.is_err());
    }
    refused
}

#[test]
fn changed_images_never_panic() {
    let refused: usize = seeds().iter().map(|(compressor, bytes)| changed(compressor, bytes, 700)).sum();
    assert!(refused > 100, "only {refused} changed images were refused at once");
}

/// What the fuzz target begins with, so that the corpus is known to be good, and a little of what it goes on to.
#[test]
fn the_corpus_of_the_fuzz_target_is_read_and_changed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/squashfs_reader");
    let (mut n_seeds, mut refused) = (0, 0);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path).unwrap();
        assert!(bounded(&name, bytes.clone()).is_ok_and(|walk| walk.visits > 10), "{name}");
        n_seeds += 1;
        refused += changed(&name, &bytes, 120);
    }
    assert!(n_seeds >= 6, "the corpus is there");
    assert!(refused > 20, "only {refused} changed images were refused at once");
}
