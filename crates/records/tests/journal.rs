//! Journals on a real filesystem.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use situla_records::{
    Event, EventKind, Exit, Identity, ImageFacts, Journal, JournalError, MAX_EVENT_BYTES, OutcomeClass,
    RecordId, SCHEMA, Start, TaskRef, UNVERIFIED, list, load,
};

fn event(kind: EventKind) -> Event {
    Event { schema: SCHEMA, run: "r".to_owned(), time_ns: 1, kind }
}

fn start(n_tasks: u32) -> Event {
    event(EventKind::Start(Box::new(Start {
        identity: Identity::default(),
        engine: "0.1.0".to_owned(),
        argv: Vec::new(),
        image: ImageFacts {
            reference: "a.sif".to_owned(),
            manifest_digest: None,
            rootfs_digest: UNVERIFIED.to_owned(),
        },
        plan: serde_json::Value::Null,
        phases: Vec::new(),
        n_local_tasks: Some(n_tasks),
        container: None,
        task: None,
    })))
}

fn exit(local: u32) -> Event {
    event(EventKind::TaskExit { task: TaskRef { rank: local, local }, exit: Exit::Code(0) })
}

#[test]
fn many_writers_lose_nothing() {
    const WRITERS: u32 = 8;
    const EVENTS: u32 = 400;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let id = RecordId::step(Some("demo"), 7, "0", "n1").expect("fine");
    // Every writer opens the file for itself, as every process does.
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (dir, id) = (dir.path(), &id);
            scope.spawn(move || {
                let journal = Journal::open(dir, id).expect("openable");
                for n in 0..EVENTS {
                    journal.append(&exit(writer * EVENTS + n)).expect("writable");
                }
            });
        }
    });
    let journal = Journal::open(dir.path(), &id).expect("openable");
    journal.append(&start(WRITERS * EVENTS)).expect("writable");
    let loaded = load(dir.path(), &id).expect("readable");
    assert_eq!(loaded.unreadable, 0);
    assert_eq!(loaded.records[0].tasks.len(), (WRITERS * EVENTS) as usize);
    assert_eq!(loaded.records[0].outcome.class, OutcomeClass::Ok);
}

/// As a step does whose tasks all fail before they meet.
#[test]
fn sixty_four_tasks_that_fail_at_once_are_one_record_and_lose_nothing() {
    const TASKS: u32 = 64;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let id = RecordId::step(Some("demo"), 7, "0", "n1").expect("fine");
    let barrier = std::sync::Barrier::new(TASKS as usize);
    std::thread::scope(|scope| {
        for local in 0..TASKS {
            let (dir, id, barrier) = (dir.path(), &id, &barrier);
            scope.spawn(move || {
                let task = TaskRef { rank: local, local };
                let mut begin = start(TASKS);
                if let EventKind::Start(start) = &mut begin.kind {
                    start.identity.step = Some("0".to_owned());
                    start.task = Some(task);
                    // A line longer than a page.
                    start.argv = vec!["x".repeat(10_000)];
                }
                let message = format!("task {local}");
                let error =
                    EventKind::EngineError { class: "no-fuse".to_owned().into(), message, task: Some(task) };
                let exit = EventKind::TaskExit { task, exit: Exit::Code(125) };
                barrier.wait();
                let journal = Journal::open(dir, id).expect("openable");
                for kind in [begin.kind, error, exit] {
                    let event = Event { run: format!("run {local}"), ..event(kind) };
                    journal.append(&event).expect("writable");
                }
            });
        }
    });
    let loaded = load(dir.path(), &id).expect("readable");
    let [record] = &loaded.records[..] else { panic!("one record, not {}", loaded.records.len()) };
    assert_eq!((loaded.unreadable, record.ended), (0, true));
    assert_eq!(record.outcome.class.to_string(), "engine-no-fuse");
    let tasks: Vec<_> = record.tasks.iter().map(|task| (task.task.local, task.exit)).collect();
    assert_eq!(tasks, (0..TASKS).map(|local| (local, Some(Exit::Code(125)))).collect::<Vec<_>>());
    let mut messages: Vec<_> = record.errors.iter().map(|error| error.message.clone()).collect();
    let mut wanted: Vec<_> = (0..TASKS).map(|local| format!("task {local}")).collect();
    messages.sort();
    wanted.sort();
    assert_eq!(messages, wanted);
}

#[test]
fn a_torn_line_costs_itself_only() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let id = RecordId::local(1, 2, "host").expect("fine");
    let journal = Journal::open(dir.path(), &id).expect("openable");
    journal.append(&exit(0)).expect("writable");
    let path = dir.path().join(id.relative_path());
    let whole = fs::read(&path).expect("readable");

    // Cut the second line at every length; the third must always arrive.
    let mut line = b"\n".to_vec();
    line.extend(serde_json::to_vec(&exit(1)).expect("serialisable"));
    for cut in 0..line.len() {
        fs::write(&path, &whole).expect("writable");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("openable")
            .write_all(&line[..cut])
            .expect("writable");
        let torn_end = load(dir.path(), &id).expect("readable");
        assert_eq!(torn_end.records[0].tasks.len(), 1, "cut at {cut}");
        Journal::open(dir.path(), &id).expect("openable").append(&exit(2)).expect("writable");
        let loaded = load(dir.path(), &id).expect("readable");
        let locals: Vec<_> = loaded.records[0].tasks.iter().map(|task| task.task.local).collect();
        assert_eq!(locals, [0, 2], "cut at {cut}");
        assert_eq!(loaded.unreadable, u64::from(cut > 1), "cut at {cut}");
    }
}

#[test]
fn failures_are_told_and_harmless() {
    let full = OpenOptions::new().append(true).open("/dev/full").expect("every Linux has it");
    assert!(matches!(Journal::from_file(full).append(&exit(0)), Err(JournalError::Append { .. })));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let id = RecordId::local(1, 2, "host").expect("fine");
    let journal = Journal::open(dir.path(), &id).expect("openable");
    let message = "x".repeat(MAX_EVENT_BYTES);
    let long = event(EventKind::EngineError { class: "setup-failed".to_owned().into(), message, task: None });
    assert!(matches!(journal.append(&long), Err(JournalError::TooLong { .. })));
    journal.append(&exit(0)).expect("still usable");
    assert_eq!(load(dir.path(), &id).expect("readable").records.len(), 1);

    let missing = RecordId::local(9, 9, "host").expect("fine");
    assert!(matches!(load(dir.path(), &missing), Err(JournalError::Open { .. })));
    let blocked = dir.path().join("file");
    File::create(&blocked).expect("writable");
    assert!(matches!(Journal::open(&blocked, &id), Err(JournalError::CreateDir { .. })));
}

/// Whoever reads or writes a record of a user's must not wait for what he has put there.
#[test]
fn a_fifo_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let id: RecordId = "7.0.node".parse().unwrap();
    let path = dir.path().join(id.relative_path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(load(dir.path(), &id), Err(JournalError::Open { .. })));
    assert!(matches!(Journal::open(dir.path(), &id), Err(JournalError::Open { .. })));
    // With somebody at its other end as well.
    let _both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(matches!(load(dir.path(), &id), Err(JournalError::Open { .. })));
    assert!(matches!(Journal::open(dir.path(), &id), Err(JournalError::Open { .. })));
}

#[test]
fn journals_are_private_and_listed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("records");
    assert_eq!(list(&root).expect("a missing directory has none"), []);
    let ids: Vec<RecordId> = ["demo/5.0.n1", "demo/5.0.n2", "6.batch.n1", "local-1-2.host"]
        .iter()
        .map(|name| name.parse().expect("well formed"))
        .collect();
    for id in &ids {
        Journal::open(&root, id).expect("openable").append(&exit(0)).expect("writable");
        let mode = |path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(root.join(id.relative_path())), 0o600);
        assert_eq!(mode(root.clone()), 0o700);
    }
    fs::write(root.join("notes.txt"), "x").expect("writable");
    fs::write(root.join("bad name.jsonl"), "x").expect("writable");
    fs::create_dir_all(root.join("demo/deeper/6.0.n1.jsonl")).expect("writable");
    let mut found: Vec<_> = list(&root).expect("readable").into_iter().map(|entry| entry.id).collect();
    found.sort();
    let mut want = ids;
    want.sort();
    assert_eq!(found, want);
}
