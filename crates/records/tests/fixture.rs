//! A journal of schema 1, kept for ever: later versions must read it alike.

use situla_records::{Exit, OutcomeClass, TaskRef, load};

#[test]
fn schema_1_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("demo")).expect("writable");
    let journal = include_bytes!("fixtures/schema-1.jsonl");
    std::fs::write(dir.path().join("demo/42.0.n1.jsonl"), journal).expect("writable");

    let loaded = load(dir.path(), &"demo/42.0.n1".parse().expect("well formed")).expect("readable");
    // The torn line in the middle and the one at the end; the sample of a newer version.
    assert_eq!((loaded.unreadable, loaded.unknown), (2, 1));
    let [first, second] = &loaded.records[..] else { panic!("two runs: {:?}", loaded.records) };

    let start = first.start.as_ref().expect("the run told what it is");
    assert_eq!((start.identity.job, start.identity.user.as_deref()), (Some(42), Some("alice")));
    assert_eq!(start.plan["schema"], 1);
    assert_eq!(start.phases.len(), 2);
    assert_eq!(first.tasks.len(), 2);
    assert_eq!(first.tasks[1].phases.len(), 1);
    assert_eq!(first.tasks[1].signals.len(), 1);
    assert_eq!(first.outcome.class, OutcomeClass::Oom);
    assert_eq!(first.outcome.task, Some(TaskRef { rank: 1, local: 1 }));
    assert_eq!(first.outcome.exit, Some(Exit::Signal(9)));
    assert_eq!(first.outcome.message.as_deref(), Some("memory.events oom_kill 1"));

    assert_eq!(second.outcome.class.to_string(), "engine-licence-expired");
    assert!(second.start.is_none() && !second.ended);
}
