//! Documents and references with changed bytes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

#[path = "support/documents.rs"]
mod documents;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[path = "support/references.rs"]
mod references;

use std::path::{Path, PathBuf};

use mutate::Mutations;

/// Changes each seed of a corpus so many times; gives how many of them were accepted, and how many there were.
fn change(target: &str, rounds: u64, accept: fn(&[u8]) -> bool) -> (u64, u64) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 2, "the corpus is there");
    let (mut accepted, mut n) = (0, 0);
    for path in paths {
        let seed = std::fs::read(&path).unwrap();
        assert!(accept(&seed), "{} is accepted", path.display());
        for round in 0..rounds {
            accepted += u64::from(accept(&Mutations::new(round).of(&seed)));
            n += 1;
        }
    }
    (accepted, n)
}

#[test]
fn changed_documents_are_parsed_or_refused() {
    let (accepted, n) = change("manifest", 3000, documents::document);
    assert!(accepted > n / 20, "{accepted} of {n}: some changes must leave a document");
}

#[test]
fn changed_references_are_parsed_or_refused() {
    let (accepted, n) = change("reference", 10_000, references::reference);
    assert!(accepted > n / 20, "{accepted} of {n}: some changes must leave a reference");
}
