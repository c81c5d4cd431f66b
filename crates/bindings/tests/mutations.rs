//! Binds and specifications of devices with changed bytes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

#[path = "support/binds.rs"]
mod binds;
#[path = "support/devices.rs"]
mod devices;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use std::path::{Path, PathBuf};

use mutate::Mutations;

/// The files of a seed corpus, in the order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let entries = std::fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn changed_specifications_are_read_or_refused() {
    const ROUNDS: u64 = 3000;
    let mut read = 0;
    for seed in seeds("devices") {
        assert!(devices::devices(&seed), "a seed has devices");
        for round in 0..ROUNDS {
            read += u64::from(devices::devices(&Mutations::new(round).of(&seed)));
        }
    }
    // Some changes must hit values, or only the readers of JSON and YAML were tried.
    assert!(read > ROUNDS / 20, "{read} were read");
}

#[test]
fn changed_binds_are_read_or_refused() {
    const ROUNDS: u64 = 5000;
    let mut read = 0;
    for seed in seeds("binds") {
        assert!(binds::binds(&seed) > 0, "a seed has binds");
        for round in 0..ROUNDS {
            read += u64::from(binds::binds(&Mutations::new(round).of(&seed)) > 0);
        }
    }
    assert!(read > ROUNDS / 20, "{read} were read");
}
