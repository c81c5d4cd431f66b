//! The published JSON Schema against the Rust types, in both directions: everything that is written
//! is described, and everything described is written by some sample.
//!
//! The checker knows the keywords that the schema uses and stops at any other.

use std::collections::BTreeSet;

use serde_json::Value;
use situla_records::{
    Cause, ContainerFacts, EngineClass, Event, EventKind, Exit, Identity, ImageFacts, OutcomeClass, Phase,
    SCHEMA, SavedFile, Sender, Start, TaskRef, UNVERIFIED, fold,
};

const SCHEMA_TEXT: &str = include_str!("../../../docs/formats/record.schema.json");

struct Checker {
    root: Value,
    /// `DEFINITION/property` pairs that a sample reached.
    reached: BTreeSet<String>,
}

impl Checker {
    /// Checks a value; gives the properties that the schema describes at this level.
    fn check(&mut self, place: &str, schema: &Value, value: &Value) -> Result<BTreeSet<String>, String> {
        let mut described = BTreeSet::new();
        let fail = |why: String| Err(format!("{place}: {why}: {value}"));
        for (keyword, rule) in schema.as_object().expect("schemas are objects") {
            match keyword.as_str() {
                "description" | "examples" => {}
                "$ref" => {
                    let name =
                        rule.as_str().and_then(|s| s.strip_prefix("#/$defs/")).expect("local reference");
                    let target = self.root["$defs"][name].clone();
                    assert!(target.is_object(), "no definition {name}");
                    described.extend(self.check(name, &target, value)?);
                }
                "type" => {
                    let types = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                    if !types.iter().any(|name| is_type(name.as_str().expect("a name"), value)) {
                        return fail(format!("not {rule}"));
                    }
                }
                "const" if rule != value => return fail(format!("not {rule}")),
                "enum" if !rule.as_array().expect("a list").contains(value) => {
                    return fail(format!("not in {rule}"));
                }
                "const" | "enum" => {}
                "minimum" => {
                    if value.as_i64().is_some_and(|n| n < rule.as_i64().expect("a number")) {
                        return fail("too small".to_owned());
                    }
                }
                "required" => {
                    for name in rule.as_array().expect("a list").iter().filter_map(Value::as_str) {
                        if value.get(name).is_none() {
                            return fail(format!("lacks {name}"));
                        }
                    }
                }
                "properties" => {
                    for (name, inner) in rule.as_object().expect("an object") {
                        if let Some(found) = value.get(name) {
                            self.check_closed(&format!("{place}/{name}"), inner, found)?;
                            self.reached.insert(format!("{place}/{name}"));
                        }
                        described.insert(name.clone());
                    }
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.check_closed(place, rule, item)?;
                    }
                }
                "allOf" => {
                    for part in rule.as_array().expect("a list") {
                        described.extend(self.check(place, part, value)?);
                    }
                }
                "oneOf" => {
                    let mut fitting = Vec::new();
                    let mut why = Vec::new();
                    for part in rule.as_array().expect("a list") {
                        match self.check(place, part, value) {
                            Ok(names) => fitting.push(names),
                            Err(error) => why.push(error),
                        }
                    }
                    match fitting.pop() {
                        Some(names) if fitting.is_empty() => described.extend(names),
                        _ => return fail(format!("fits {} alternatives: {why:?}", fitting.len())),
                    }
                }
                other => panic!("{place}: keyword {other} is not known to this checker"),
            }
        }
        Ok(described)
    }

    /// Checks a value and that it has no property which the schema does not describe.
    fn check_closed(&mut self, place: &str, schema: &Value, value: &Value) -> Result<(), String> {
        let described = self.check(place, schema, value)?;
        let free = schema.as_object().is_some_and(serde_json::Map::is_empty);
        for name in value.as_object().into_iter().flat_map(|object| object.keys()).filter(|_| !free) {
            if !described.contains(name) {
                return Err(format!("{place}: property {name} is not in the schema"));
            }
        }
        Ok(())
    }

    fn check_definition(&mut self, name: &str, value: &Value) -> Result<(), String> {
        let schema = self.root["$defs"][name].clone();
        self.check_closed(name, &schema, value)
    }
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other} is not known to this checker"),
    }
}

fn checker() -> Checker {
    Checker { root: serde_json::from_str(SCHEMA_TEXT).expect("the schema is JSON"), reached: BTreeSet::new() }
}

/// One event of every kind, with every option filled.
fn samples() -> Vec<Event> {
    let task = TaskRef { rank: 3, local: 1 };
    let phases = vec![Phase { name: "setup".to_owned(), start_ns: 1, end_ns: 2 }];
    let some = |text: &str| Some(text.to_owned());
    let kinds = vec![
        EventKind::Start(Box::new(Start {
            identity: Identity {
                cluster: some("demo"),
                job: Some(5),
                step: some("0"),
                node: some("n1"),
                host: "n1".to_owned(),
                uid: 1001,
                user: some("alice"),
                account: some("physics"),
                partition: some("main"),
                restarts: 1,
            },
            engine: "0.1.0".to_owned(),
            argv: vec!["true".to_owned()],
            image: ImageFacts {
                reference: "a.sif".to_owned(),
                manifest_digest: some("sha256:00"),
                rootfs_digest: UNVERIFIED.to_owned(),
            },
            plan: serde_json::json!({ "anything": { "at": "all" } }),
            phases: phases.clone(),
            n_local_tasks: Some(2),
            task: Some(task),
            container: Some(ContainerFacts {
                name: some("box"),
                scope: "global".to_owned(),
                made_by: "5.0".to_owned(),
                writable: true,
            }),
        })),
        EventKind::TaskStart { task, pid: 42, phases },
        EventKind::TaskSignal { task, signal: 15, sender: Some(Sender { pid: 1, uid: 0 }) },
        EventKind::TaskSignal { task, signal: 15, sender: None },
        EventKind::TaskExit { task, exit: Exit::Signal(15) },
        EventKind::TaskExit { task: TaskRef { rank: 4, local: 0 }, exit: Exit::Code(0) },
        EventKind::Saving { task, exit: Exit::Code(0), path: "/a.sqsh".to_owned() },
        EventKind::Saved {
            task,
            file: SavedFile {
                path: "/a.sqsh".to_owned(),
                rootfs_digest: "sha256:00".to_owned(),
                bytes: 4096,
            },
        },
        EventKind::Observed { cause: Cause::Cancelled, evidence: "seen".to_owned() },
        EventKind::EngineError {
            class: EngineClass::ServerLost,
            message: "gone".to_owned(),
            task: Some(task),
        },
        EventKind::EngineError { class: EngineClass::ServerLost, message: "gone".to_owned(), task: None },
    ];
    (1..)
        .zip(kinds)
        .map(|(time_ns, kind)| Event { schema: SCHEMA, run: "r".to_owned(), time_ns, kind })
        .collect()
}

#[test]
fn what_is_written_is_described_and_the_other_way_round() {
    let mut checker = checker();
    let events = samples();
    for event in &events {
        let value = serde_json::to_value(event).expect("serialisable");
        checker.check_definition("event", &value).expect("described");
        assert_eq!(&serde_json::from_value::<Event>(value).expect("readable"), event);
    }
    for record in [fold(&events), fold(&events[..1]), fold([])] {
        let value = serde_json::to_value(&record).expect("serialisable");
        checker.check_definition("record", &value).expect("described");
    }

    for (name, definition) in checker.root["$defs"].as_object().expect("an object") {
        let alternatives = definition["oneOf"].as_array().cloned().unwrap_or_default();
        for part in std::iter::once(definition).chain(&alternatives) {
            for property in part["properties"].as_object().into_iter().flat_map(|object| object.keys()) {
                assert!(
                    checker.reached.contains(&format!("{name}/{property}")),
                    "{name}/{property} is never written"
                );
            }
        }
    }
}

#[test]
fn the_checker_refuses() {
    let task = serde_json::json!({ "rank": 0, "local": 0 });
    let bad = [
        ("event", serde_json::json!({ "schema": 1, "run": "r", "time_ns": 1 })),
        ("event", serde_json::json!({ "schema": 1, "run": "r", "time_ns": 1, "event": "other" })),
        (
            "event",
            serde_json::json!({ "schema": 1, "run": "r", "time_ns": -1, "event": "observed", "cause": "oom", "evidence": "e" }),
        ),
        (
            "event",
            serde_json::json!({ "schema": 1, "run": "r", "time_ns": 1, "event": "observed", "cause": "oom", "evidence": "e", "extra": 1 }),
        ),
        (
            "event",
            serde_json::json!({ "schema": 1, "run": "r", "time_ns": 1, "event": "task-exit", "task": task }),
        ),
        ("exit", serde_json::json!({ "code": "0" })),
        ("task_ref", serde_json::json!([])),
    ];
    for (definition, value) in bad {
        assert!(checker().check_definition(definition, &value).is_err(), "{definition}: {value}");
    }
}

#[test]
fn all_classes_are_published() {
    let root: Value = serde_json::from_str(SCHEMA_TEXT).expect("the schema is JSON");
    let names = |definition: &str| -> Vec<String> {
        serde_json::from_value(root["$defs"][definition]["examples"].clone()).expect("a list of names")
    };
    let engine: Vec<String> = EngineClass::all().map(|class| class.name().to_owned()).collect();
    assert_eq!(names("engine_class"), engine);
    for name in names("outcome_class") {
        assert!(!matches!(name.parse(), Ok(OutcomeClass::Engine(_)) | Err(_)), "{name}");
    }
    let page = include_str!("../../../docs/formats/record.md");
    for name in engine.iter().map(|name| format!("`engine-{name}`")).chain(names("outcome_class")) {
        assert!(page.contains(&name), "record.md does not explain {name}");
    }
}
