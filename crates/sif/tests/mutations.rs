//! Files with changed bytes.

#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[path = "support/reading.rs"]
mod reading;

use std::path::Path;

use mutate::Mutations;

#[test]
fn changed_files_are_read_or_refused() {
    const ROUNDS: u64 = 5000;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/sif");
    let mut n_seeds = 0;
    let mut read = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        assert!(reading::sif(&seed), "{} is a SIF", path.display());
        n_seeds += 1;
        let mut mutations = Mutations::new(n_seeds);
        for round in 0..ROUNDS {
            read += u64::from(reading::sif(&Mutations::new(round).of(&seed)));
            // Most of a file is content; the header and the first descriptors are what is parsed.
            let mut changed = seed.clone();
            for _ in 0..=mutations.below(4) {
                let at = mutations.below(128 + 3 * 585).min(changed.len() - 1);
                changed[at] = [0, 1, 0x7f, 0x80, 0xff][mutations.below(5)];
            }
            read += u64::from(reading::sif(&changed));
        }
    }
    assert!(n_seeds > 0, "the corpus is there");
    // Some changes must leave a file that can be read, or only the magic number was tried.
    assert!(read > n_seeds * ROUNDS / 10, "{read} were read");
}
