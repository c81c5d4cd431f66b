//! Layers with changed bytes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::layers;
use crate::mutate::Mutations;
use crate::tar_builder::seal;

/// How long seeds are changed; the fuzz target does it for as long as one likes.
const TIME: Duration = Duration::from_secs(3);

/// The files of the seed corpus, in the order of their names.
fn seeds() -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/tar_merge");
    let entries = std::fs::read_dir(directory).expect("the corpus is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a seed"))).collect()
}

/// Makes the checksums of all headers right, where there still are headers: otherwise most changes would end there.
fn seal_all(bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<512>();
    for block in blocks.iter_mut().filter(|block| block[257..262] == *b"ustar") {
        seal(block);
    }
}

#[test]
fn changed_layers_are_merged_or_refused() {
    let seeds = seeds();
    assert!(seeds.len() >= 5, "the corpus is there");
    for (path, seed) in &seeds {
        assert!(layers::layers(seed), "{} is a tree", path.display());
    }
    let began = Instant::now();
    let (mut made, mut n) = (0u64, 0u64);
    while began.elapsed() < TIME {
        for (_, seed) in &seeds {
            let mut changed = Mutations::new(n).of(seed);
            if n % 4 != 0 {
                seal_all(&mut changed);
            }
            made += u64::from(layers::layers(&changed));
            n += 1;
        }
    }
    // Some changes must leave a tree, or only the checks of headers were tried.
    assert!(made > n / 50, "{made} of {n} made a tree");
}
