//! Records that a newer version has written.

use crate::installation::{Installation, text};

const NEWER: &str =
    r#"{"schema":2,"run":"a","time_ns":1,"event":"task-exit","task":{"rank":0,"local":0},"exit":{"code":0}}"#;
/// A layout that this version cannot even parse.
const STRANGE: &str = r#"{"schema":3,"what":["nobody","knows"]}"#;
const KNOWN: &str =
    r#"{"schema":1,"run":"a","time_ns":1,"event":"task-exit","task":{"rank":0,"local":0},"exit":{"code":3}}"#;

#[test]
fn they_are_named_and_the_others_shown() {
    let site = Installation::new();
    let records = site.path().join("records");
    std::fs::create_dir(&records).expect("writable");
    for (name, lines) in [
        ("7.0.n1", vec![KNOWN]),
        ("7.0.n2", vec![NEWER]),
        // One such event spoils the journal: it may mean something for the rest.
        ("8.0.n1", vec![KNOWN, STRANGE]),
    ] {
        std::fs::write(records.join(format!("{name}.jsonl")), lines.join("\n")).expect("writable");
    }
    let records = records.to_str().expect("a plain path").to_owned();
    let says = |stderr: &[u8], id: &str, schema: u32| {
        let text = text(stderr);
        let mut lines = text.lines().filter(|line| line.contains(id));
        let line = lines.next().unwrap_or_else(|| panic!("nothing of {id}: {text}"));
        assert!(line.contains(&format!("schema {schema}")) && line.contains("version"), "{line}");
        assert!(lines.next().is_none(), "{text}");
    };

    for json in [&[][..], &["--json"]] {
        let output = site.situla(&[&["runs", "--records", &records], json].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            text(&output.stdout).contains("7.0.n1") && !text(&output.stdout).contains(".n2"),
            "{output:?}"
        );
        says(&output.stderr, "7.0.n2", 2);
        says(&output.stderr, "8.0.n1", 3);

        let output = site.situla(&[&["show", "--records", &records, "7"], json].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).contains("7.0.n1"), "{output:?}");
        says(&output.stderr, "7.0.n2", 2);

        let output = site.situla(&[&["show", "--records", &records, "8"], json].concat());
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), ""), "{output:?}");
        says(&output.stderr, "8.0.n1", 3);
    }
    assert_eq!(site.situla(&["show", "--records", &records, "9"]).status.code(), Some(2));
}
