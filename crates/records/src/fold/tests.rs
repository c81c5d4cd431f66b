use super::*;
use crate::class::EngineClass;
use crate::event::{Identity, ImageFacts, Sender, Start, UNVERIFIED};

const A: TaskRef = TaskRef { rank: 4, local: 0 };
const B: TaskRef = TaskRef { rank: 5, local: 1 };
const ROOT: Option<Sender> = Some(Sender { pid: 1, uid: 0 });
const SELF: Option<Sender> = Some(Sender { pid: 77, uid: 1001 });

fn start() -> EventKind {
    EventKind::Start(Box::new(Start {
        identity: Identity { job: Some(5), host: "n1".to_owned(), uid: 1001, ..Identity::default() },
        engine: "0.1.0".to_owned(),
        argv: vec!["true".to_owned()],
        image: ImageFacts {
            reference: "a.sif".to_owned(),
            manifest_digest: None,
            rootfs_digest: UNVERIFIED.to_owned(),
        },
        plan: serde_json::Value::Null,
        phases: vec![],
        n_local_tasks: Some(2),
        container: None,
        task: None,
    }))
}

fn enter(task: TaskRef) -> EventKind {
    EventKind::TaskStart { task, pid: 100 + task.local, phases: vec![] }
}

fn exit(task: TaskRef, exit: Exit) -> EventKind {
    EventKind::TaskExit { task, exit }
}

fn signal(task: TaskRef, signal: i32, sender: Option<Sender>) -> EventKind {
    EventKind::TaskSignal { task, signal, sender }
}

fn observed(cause: Cause) -> EventKind {
    EventKind::Observed { cause, evidence: "seen".to_owned() }
}

fn error(class: EngineClass, task: Option<TaskRef>) -> EventKind {
    EventKind::EngineError { class, message: "it broke".to_owned(), task }
}

/// Numbers the events by their position: the n-th happens at n nanoseconds.
fn record(kinds: Vec<EventKind>) -> Record {
    let events: Vec<Event> = (1..)
        .zip(kinds)
        .map(|(time_ns, kind)| Event { schema: SCHEMA, run: String::new(), time_ns, kind })
        .collect();
    fold(&events)
}

#[test]
fn outcomes() {
    use Exit::{Code, Signal};
    let table: Vec<(&str, Vec<EventKind>, &str, Option<TaskRef>)> = vec![
        ("two good tasks", vec![exit(A, Code(0)), exit(B, Code(0))], "ok", Some(A)),
        ("one bad task", vec![exit(A, Code(0)), exit(B, Code(3))], "app-error", Some(B)),
        ("the worst decides", vec![exit(A, Signal(15)), exit(B, Code(3))], "signal", Some(A)),
        ("no end", vec![enter(A), enter(B), exit(A, Code(0))], "incomplete", None),
        ("no end after a failure", vec![enter(A), enter(B), exit(A, Code(3))], "incomplete", None),
        ("nothing but a start", vec![], "incomplete", None),
        ("oom", vec![exit(A, Signal(9)), exit(B, Code(0)), observed(Cause::Oom)], "oom", Some(A)),
        ("oom of a child", vec![exit(A, Code(137)), exit(B, Code(0)), observed(Cause::Oom)], "oom", Some(A)),
        ("survived an oom", vec![exit(A, Code(0)), exit(B, Code(0)), observed(Cause::Oom)], "ok", Some(A)),
        (
            "failed beside an oom",
            vec![exit(A, Code(1)), exit(B, Code(0)), observed(Cause::Oom)],
            "app-error",
            Some(A),
        ),
        (
            "limit seen",
            vec![exit(A, Signal(15)), exit(B, Code(0)), observed(Cause::TimeLimit)],
            "time-limit",
            Some(A),
        ),
        (
            "preempted, with a warning",
            vec![signal(A, 15, ROOT), exit(A, Signal(15)), exit(B, Code(0)), observed(Cause::Preempted)],
            "preempted",
            Some(A),
        ),
        ("preempted, engine killed too", vec![enter(A), observed(Cause::Preempted)], "preempted", None),
        ("requeued", vec![enter(A), observed(Cause::Requeued)], "requeued", None),
        ("another node failed", vec![enter(A), observed(Cause::NodeFail)], "node-fail", None),
        (
            "well, though the job was requeued later",
            vec![exit(A, Code(0)), exit(B, Code(0)), observed(Cause::Requeued)],
            "ok",
            Some(A),
        ),
        (
            "asked early, when nothing but a cancellation was known",
            vec![enter(A), observed(Cause::Cancelled), observed(Cause::Preempted)],
            "preempted",
            None,
        ),
        ("limit, engine killed too", vec![enter(A), observed(Cause::TimeLimit)], "time-limit", None),
        ("scancel", vec![signal(A, 15, ROOT), exit(A, Signal(15)), exit(B, Code(0))], "cancelled", Some(A)),
        (
            "scancel and a payload that exits by itself",
            vec![signal(A, 15, ROOT), exit(A, Code(1)), exit(B, Code(0))],
            "cancelled",
            Some(A),
        ),
        (
            "a container that is lost while Slurm ends the task",
            vec![
                signal(A, 15, ROOT),
                error(EngineClass::ServerLost, Some(A)),
                exit(A, Code(125)),
                exit(B, Code(0)),
            ],
            "cancelled",
            Some(A),
        ),
        (
            "a container that is lost, and then Slurm ends the task",
            vec![
                error(EngineClass::ServerLost, Some(A)),
                signal(A, 15, ROOT),
                exit(A, Code(125)),
                exit(B, Code(0)),
            ],
            "engine-server-lost",
            Some(A),
        ),
        (
            "a term of the user himself",
            vec![signal(A, 15, SELF), exit(A, Signal(15)), exit(B, Code(0))],
            "signal",
            Some(A),
        ),
        (
            "another signal of root",
            vec![signal(A, 10, ROOT), exit(A, Signal(10)), exit(B, Code(0))],
            "signal",
            Some(A),
        ),
        ("engine", vec![error(EngineClass::PolicyDenied, None)], "engine-policy-denied", None),
        (
            "the first error is the cause",
            vec![
                error(EngineClass::ImageCorrupt, Some(B)),
                error(EngineClass::SetupFailed, None),
                exit(B, Code(255)),
            ],
            "engine-image-corrupt",
            Some(B),
        ),
    ];
    for (name, mut events, class, task) in table {
        events.insert(0, start());
        let got = record(events).outcome;
        assert_eq!((got.class.to_string().as_str(), got.task), (class, task), "{name}");
    }
}

#[test]
fn a_record_keeps_what_was_said() {
    let got = record(vec![start(), enter(B), enter(A), exit(A, Exit::Code(0)), exit(B, Exit::Code(3))]);
    assert_eq!((got.started_ns, got.last_ns, got.ended), (Some(1), Some(5), true));
    assert_eq!(got.tasks.iter().map(|task| task.task).collect::<Vec<_>>(), [A, B]);
    assert_eq!(
        (got.tasks[1].pid, got.tasks[1].started_ns, got.tasks[1].ended_ns),
        (Some(101), Some(2), Some(5))
    );
    assert_eq!(got.outcome.exit, Some(Exit::Code(3)));
    assert_eq!(got.start.map(|start| start.argv), Some(vec!["true".to_owned()]));
}

#[test]
fn runs_of_one_step_are_kept_apart() {
    let event = |run: &str, kind| Event { schema: SCHEMA, run: run.to_owned(), time_ns: 1, kind };
    let events = [
        event("b", start()),
        event("a", start()),
        event("b", exit(A, Exit::Code(1))),
        event("a", exit(A, Exit::Code(0))),
        event("b", exit(B, Exit::Code(0))),
        event("a", exit(B, Exit::Code(0))),
    ];
    let got: Vec<_> = fold_runs(&events).into_iter().map(|r| (r.run, r.outcome.class)).collect();
    assert_eq!(got, [("b".to_owned(), OutcomeClass::AppError), ("a".to_owned(), OutcomeClass::Ok)]);
}

#[test]
fn a_journal_gone_wild_stays_bounded() {
    let tasks = (0..70_000).map(|n| enter(TaskRef { rank: n, local: n }));
    let signals = (0..1000).map(|_| signal(A, 10, None));
    let errors = (0..2000).map(|_| error(EngineClass::ServerLost, None));
    let got = record(signals.chain(tasks).chain(errors).collect());
    assert_eq!(got.tasks.len(), MAX_TASKS);
    assert_eq!(got.errors.len(), MAX_ERRORS);
    let noisy = got.tasks.iter().map(|task| task.signals.len()).max();
    assert_eq!(noisy, Some(MAX_SIGNALS));
}

#[test]
fn who_is_killed_while_it_saves_does_not_take_the_exits_along() {
    use Exit::{Code, Signal};
    let saving = || EventKind::Saving { task: B, exit: Code(3), path: "/a.sqsh".to_owned() };
    let saved = || EventKind::Saved {
        task: B,
        file: SavedFile { path: "/a.sqsh".to_owned(), rootfs_digest: String::new(), bytes: 1 },
    };
    let begun = || vec![start(), enter(A), enter(B), exit(A, Code(0)), saving()];
    let with = |more: Vec<EventKind>| record([begun(), more].concat());
    let exits = |record: &Record| record.tasks.iter().map(|task| task.exit).collect::<Vec<_>>();
    let message = |record: &Record| record.outcome.message.clone().unwrap_or_default();

    let killed = with(vec![]);
    assert_eq!(exits(&killed), [Some(Code(0)), Some(Code(3))]);
    assert_eq!((killed.outcome.class.to_string().as_str(), killed.ended), ("incomplete", false));
    assert!(message(&killed).contains("/a.sqsh"), "{killed:?}");
    let cancelled = with(vec![observed(Cause::Cancelled)]);
    assert_eq!(cancelled.outcome.class.to_string(), "cancelled");
    assert!(message(&cancelled).starts_with("seen; ") && message(&cancelled).contains("/a.sqsh"));
    // What comes afterwards counts, and whichever line comes first.
    for (more, class, last) in [
        (vec![saved(), exit(B, Code(3))], "app-error", Code(3)),
        (vec![exit(B, Code(3)), saving()], "app-error", Code(3)),
        (
            vec![error(EngineClass::SetupFailed, Some(B)), exit(B, Code(125))],
            "engine-setup-failed",
            Code(125),
        ),
        (vec![signal(B, 15, ROOT), exit(B, Signal(15))], "cancelled", Signal(15)),
    ] {
        let folded = with(more);
        assert_eq!((folded.outcome.class.to_string().as_str(), folded.ended), (class, true));
        assert_eq!(exits(&folded)[1], Some(last));
        assert!(!message(&folded).contains("/a.sqsh"), "{folded:?}");
    }
}
