//! Images that lie: truncated ones and ones with changed bytes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use situla_squashfs::Error;
use support::tree::Random;
use support::{exercise, have, mksquashfs, tree};

/// Longest time one small lying image may take; generous, as tests run unoptimised on busy machines.
const PATIENCE: Duration = Duration::from_secs(20);

const COMPRESSORS: [&str; 6] = ["gzip", "lzo", "lz4", "xz", "zstd", "none"];

/// A small image with everything in it.
fn seed(dir: &Path, compressor: &str) -> Vec<u8> {
    let root = dir.join("tree");
    if !root.exists() {
        tree::build(&root, 600);
        // Large incompressible content would take the mutations for itself.
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
    let image = dir.join(format!("{compressor}.sqfs"));
    let options = match compressor {
        "none" => "-comp gzip -b 4096 -noI -noD -noF -noX -noId".to_owned(),
        name => format!("-comp {name} -b 4096"),
    };
    mksquashfs(&root, &image, &options.split(' ').collect::<Vec<_>>());
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
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for compressor in COMPRESSORS {
        let walk = exercise::image(seed(dir.path(), compressor)).unwrap();
        assert!(walk.visits > 300, "{compressor}: {walk:?}");
        // The walk asks for one looping path twice, two inode numbers that do not exist, and goes on
        // from made-up cookies.
        assert!(walk.failures >= 4, "{compressor}: {walk:?}");
    }
}

#[test]
fn truncated_images_do_not_open() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for compressor in COMPRESSORS {
        let bytes = seed(dir.path(), compressor);
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

#[test]
fn changed_images_never_panic() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for compressor in COMPRESSORS {
        let bytes = seed(dir.path(), compressor);
        let table = usize::try_from(u64::from_le_bytes(bytes[64..72].try_into().unwrap())).unwrap();
        let mut random = Random(1 + compressor.len() as u64);
        for round in 0..700 {
            let mut bytes = bytes.clone();
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
            let outcome = bounded(&format!("{compressor} round {round}"), bytes);
            refused += usize::from(outcome.is_err());
        }
    }
    assert!(refused > 100, "only {refused} changed images were refused at once");
}
