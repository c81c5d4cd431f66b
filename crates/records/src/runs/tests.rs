use crate::class::EngineClass;
use crate::event::{Event, EventKind, Exit, Identity, ImageFacts, SCHEMA, Start, TaskRef, UNVERIFIED};
use crate::fold::fold_runs;
use crate::record::Record;

fn task(local: u32) -> TaskRef {
    TaskRef { rank: 8 + local, local }
}

/// What a run says first.
#[derive(Clone, Copy)]
struct Begin {
    step: &'static str,
    image: &'static str,
    expected: Option<u32>,
    restarts: u32,
    planned: bool,
}

const FOUR: Begin = Begin { step: "0", image: "a.sif", expected: Some(4), restarts: 0, planned: false };

fn start(begin: Begin, by: Option<u32>) -> EventKind {
    EventKind::Start(Box::new(Start {
        identity: Identity {
            job: Some(5),
            step: Some(begin.step.to_owned()),
            host: "n1".to_owned(),
            uid: 1001,
            restarts: begin.restarts,
            ..Identity::default()
        },
        engine: "0.1.0".to_owned(),
        argv: vec!["true".to_owned()],
        image: ImageFacts {
            reference: begin.image.to_owned(),
            manifest_digest: None,
            rootfs_digest: UNVERIFIED.to_owned(),
        },
        plan: if begin.planned { serde_json::json!({ "schema": 1 }) } else { serde_json::Value::Null },
        phases: vec![],
        n_local_tasks: begin.expected,
        container: None,
        task: by.map(task),
    }))
}

fn exit(local: u32, code: i32) -> EventKind {
    EventKind::TaskExit { task: task(local), exit: Exit::Code(code) }
}

fn enter(local: u32) -> EventKind {
    EventKind::TaskStart { task: task(local), pid: 100 + local, phases: vec![] }
}

fn error(local: u32) -> EventKind {
    let message = format!("task {local} has no image");
    EventKind::EngineError { class: EngineClass::ImageMissing, message, task: Some(task(local)) }
}

/// A task that fails before it meets the others, as the engine writes it.
fn early(begin: Begin, run: &'static str, local: u32) -> Vec<(&'static str, EventKind)> {
    vec![(run, start(begin, Some(local))), (run, error(local)), (run, exit(local, 125))]
}

/// A task in a container of its own.
fn alone(begin: Begin, run: &'static str, local: u32, code: i32) -> Vec<(&'static str, EventKind)> {
    vec![(run, start(begin, Some(local))), (run, enter(local)), (run, exit(local, code))]
}

fn records(kinds: impl IntoIterator<Item = (&'static str, EventKind)>) -> Vec<Record> {
    let events: Vec<Event> = (1..)
        .zip(kinds)
        .map(|(time_ns, (run, kind))| Event { schema: SCHEMA, run: run.to_owned(), time_ns, kind })
        .collect();
    fold_runs(&events)
}

/// Name of the first run, class, ended, and each task with its exit code.
type Shown<'a> = (&'a str, String, bool, Vec<(u32, Option<i32>)>);

fn shown(record: &Record) -> Shown<'_> {
    let code = |exit: Exit| if let Exit::Code(code) = exit { code } else { -1 };
    let tasks = record.tasks.iter().map(|task| (task.task.local, task.exit.map(code))).collect();
    (&record.run, record.outcome.class.to_string(), record.ended, tasks)
}

#[test]
fn tasks_that_fail_before_they_meet_are_one_record() {
    let got = records(["p", "q", "r", "s"].into_iter().zip(0..).flat_map(|(run, n)| early(FOUR, run, n)));
    let [record] = &got[..] else { panic!("one record: {got:#?}") };
    let codes = (0..4).map(|n| (n, Some(125))).collect();
    assert_eq!(shown(record), ("p", "engine-image-missing".to_owned(), true, codes));
    let errors: Vec<_> = record.errors.iter().map(|error| (error.task, error.message.as_str())).collect();
    assert_eq!(errors[3], (Some(task(3)), "task 3 has no image"));
    assert_eq!(errors.len(), 4);
    assert_eq!((record.outcome.task, record.outcome.exit), (Some(task(0)), Some(Exit::Code(125))));
}

#[test]
fn one_that_failed_early_belongs_to_those_that_met() {
    let planned = Begin { planned: true, ..FOUR };
    let mut kinds = early(FOUR, "early", 2);
    kinds.push(("met", start(planned, Some(0))));
    kinds.extend([0, 1, 3].map(|n| ("met", exit(n, 0))));
    let got = records(kinds);
    let [record] = &got[..] else { panic!("one record: {got:#?}") };
    let codes = vec![(0, Some(0)), (1, Some(0)), (2, Some(125)), (3, Some(0))];
    assert_eq!(shown(record), ("early", "engine-image-missing".to_owned(), true, codes));
    // What the others knew better is kept.
    assert!(record.start.as_ref().is_some_and(|start| start.plan.is_object()));
    assert_eq!((record.outcome.task, record.outcome.exit), (Some(task(2)), Some(Exit::Code(125))));
}

#[test]
fn containers_of_their_own_are_one_record_for_each_start() {
    // Every task starts two, and one is far ahead of the others.
    let mut kinds = Vec::new();
    for (run, local, code) in [("a", 0, 0), ("b", 0, 1), ("c", 1, 0), ("d", 2, 0), ("e", 3, 0), ("f", 1, 1)] {
        kinds.extend(alone(FOUR, run, local, code));
    }
    let got = records(kinds);
    let got: Vec<_> = got.iter().map(shown).collect();
    let first = (0..4).map(|n| (n, Some(0))).collect();
    let second = vec![(0, Some(1)), (1, Some(1))];
    assert_eq!(got, [("a", "ok".to_owned(), true, first), ("b", "incomplete".to_owned(), false, second)]);
}

#[test]
fn what_is_not_the_same_start_stays_apart() {
    let other = |run, begin, n| alone(begin, run, n, 0);
    let batch = Begin { step: "batch", ..FOUR };
    let one = Begin { expected: Some(1), ..FOUR };
    let old = |begin| vec![("y", start(begin, None))];
    let table = [
        ("another image", other("y", Begin { image: "b.sif", ..FOUR }, 1)),
        ("another number of tasks", other("y", Begin { expected: Some(3), ..FOUR }, 1)),
        ("after a requeue", other("y", Begin { restarts: 1, ..FOUR }, 1)),
        ("the same task", other("y", FOUR, 0)),
        ("nobody knows how many", other("y", Begin { expected: None, ..FOUR }, 1)),
        ("nobody knows which task", old(FOUR)),
        ("no start", vec![("y", exit(1, 0))]),
    ];
    for (name, second) in table {
        let mut kinds = alone(FOUR, "x", 0, 0);
        kinds.extend(second);
        assert_eq!(records(kinds).len(), 2, "{name}");
    }
    // A batch script starts several at the same time; a step of one task starts them one after another.
    for (name, begin, locals) in [("batch", batch, [0, 1]), ("one after another", one, [0, 0])] {
        let mut kinds = alone(begin, "x", locals[0], 0);
        kinds.extend(alone(begin, "y", locals[1], 0));
        assert_eq!(records(kinds).len(), 2, "{name}");
    }
    // A first container that was killed at once is not hidden by a second one that goes well.
    let mut kinds = vec![("x", start(one, Some(0)))];
    kinds.extend(alone(one, "y", 0, 0));
    let got = records(kinds);
    let classes: Vec<_> = got.iter().map(|record| record.outcome.class.to_string()).collect();
    assert_eq!(classes, ["incomplete", "ok"]);
}

#[test]
fn a_leader_that_dies_before_the_others_enter_is_a_task_of_their_record() {
    let mut kinds = vec![("x", start(FOUR, Some(1))), ("y", start(FOUR, Some(0)))];
    kinds.extend([0, 2, 3].map(|n| ("y", exit(n, 0))));
    let got = records(kinds);
    let [record] = &got[..] else { panic!("one record: {got:#?}") };
    let codes = vec![(0, Some(0)), (1, None), (2, Some(0)), (3, Some(0))];
    assert_eq!(shown(record), ("x", "incomplete".to_owned(), false, codes));
}

#[test]
fn a_journal_of_before_exits_were_written_for_errors() {
    let kinds =
        (0..4).zip(["p", "q", "r", "s"]).flat_map(|(n, run)| [(run, start(FOUR, None)), (run, error(n))]);
    let got = records(kinds);
    let [record] = &got[..] else { panic!("one record: {got:#?}") };
    let codes = (0..4).map(|n| (n, None)).collect();
    assert_eq!(shown(record), ("p", "engine-image-missing".to_owned(), true, codes));
}

#[test]
fn a_journal_of_nothing_but_beginnings_takes_bounded_time() {
    let events: Vec<Event> = (0..20_000)
        .map(|n| Event { schema: SCHEMA, run: n.to_string(), time_ns: n, kind: start(FOUR, Some(0)) })
        .collect();
    assert_eq!(fold_runs(&events).len(), events.len());
}
