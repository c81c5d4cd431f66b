//! `situla plan` of what the policy denies.

use serde_json::Value;

use crate::installation::{Installation, text};

#[test]
fn the_verdict_is_printed_and_the_status_says_no() {
    let site = Installation::new();
    site.policy("[registry]\nallow = []\n[options]\nrefuse = [\"env\"]\n");
    let output = site.situla(&["plan", "--env", "A=1", "docker://127.0.0.1:9/a:1", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["schema"], 1);
    assert_eq!(printed["image"]["requested"], "docker://127.0.0.1:9/a:1");
    assert_eq!(printed["verdict"]["decision"], "deny");
    let reasons = printed["verdict"]["reasons"].as_array().expect("reasons");
    let keys: Vec<&Value> = reasons.iter().map(|reason| &reason["rule"]["key"]).collect();
    assert_eq!(keys, ["registry.allow", "options.refuse"]);
    let told = text(&output.stderr);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with("error: the site's policy refuses this: "), "{told}");
    // There is no Plan, so nothing that could be taken for one.
    assert!(printed.get("spec").is_none());
}

#[test]
fn what_is_allowed_and_fails_prints_nothing() {
    let site = Installation::new();
    let output = site.situla(&["plan", "./none.sqsh", "true"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), ""));
}
