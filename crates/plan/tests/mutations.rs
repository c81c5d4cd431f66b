//! Plans and account files with changed bytes.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[path = "support/plans.rs"]
mod plans;

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
fn changed_plans_are_read_or_refused() {
    const ROUNDS: u64 = 3000;
    let mut read = 0;
    for seed in seeds("plan") {
        assert!(plans::plan(&seed), "a seed is a Plan");
        for round in 0..ROUNDS {
            read += u64::from(plans::plan(&Mutations::new(round).of(&seed)));
        }
    }
    // Some changes must hit values and leave a Plan, or only the JSON reader was tried.
    assert!(read > ROUNDS / 20, "{read} were read");
}

#[test]
fn changed_account_files_are_completed() {
    for seed in seeds("accounts") {
        accounts::accounts(&seed);
        for round in 0..5000 {
            accounts::accounts(&Mutations::new(round).of(&seed));
        }
    }
}
