//! Journals with changed bytes.

#[path = "support/exercise.rs"]
mod exercise;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use std::path::Path;

use mutate::Mutations;

#[test]
fn changed_journals_are_read_as_far_as_they_can_be() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-1.jsonl");
    let seed = std::fs::read(fixture).unwrap();
    let n_events = exercise::journal(&seed);
    assert!(n_events > 3);
    let mut changed = 0;
    for round in 0..3000 {
        changed += usize::from(exercise::journal(&Mutations::new(round).of(&seed)) != n_events);
    }
    assert!(changed > 100, "{changed} lost or won an event");
}
