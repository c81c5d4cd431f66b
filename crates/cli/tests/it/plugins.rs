//! What the plugin tells the program of itself, by hand: which protocol it speaks, and where the site's settings are.

use std::path::Path;
use std::process::Output;

use crate::installation::{Installation, text};

/// A task as the plugin sends it, with more variables.
fn task(site: &Installation, words: &[&str], image: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = site.command("situla", words);
    command.env("SITULA_TASK_IMAGE", image).envs(variables.iter().copied());
    command.output().expect("it starts")
}

#[test]
fn an_unknown_protocol_is_refused_and_known_ones_are_taken() {
    let site = Installation::new();
    let program = ("SITULA_TASK_PROGRAM", "/bin/true");
    for number in ["3", "99", "4294967296", "-1", "one"] {
        let output = task(&site, &["true"], "./none.sqsh", &[program, ("SITULA_TASK_PROTOCOL", number)]);
        let told = text(&output.stderr);
        assert_eq!((output.status.code(), told.lines().count()), (Some(125), 1), "{number}: {told}");
        let own = site.path().join("bin/situla").display().to_string();
        for part in [&format!("speaks protocol {number}, "), &own, "knows 0 to 2", "situla site install"] {
            assert!(told.contains(part), "{number}: {told}");
        }
        // In srun, before there is a job.
        let output = task(&site, &["task-check"], "./none.sqsh", &[("SITULA_TASK_PROTOCOL", number)]);
        let told = text(&output.stdout);
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{number}: {told}");
        assert!(told.contains(&format!("speaks protocol {number}, ")), "{told}");
    }
    for number in [None, Some("0"), Some("1"), Some("2")] {
        let told = number.map(|number| ("SITULA_TASK_PROTOCOL", number));
        let variables = &[program].into_iter().chain(told).collect::<Vec<_>>()[..];
        let told = text(&task(&site, &["true"], "./none.sqsh", variables).stderr);
        assert!(told.contains("none.sqsh") && !told.contains("protocol"), "{variables:?}: {told}");
    }
}

#[test]
fn the_program_of_a_table_is_the_first_word() {
    let site = Installation::new();
    let variables = [("SITULA_TASK_PROGRAM", ""), ("SITULA_TASK_PROTOCOL", "2")];
    let told = text(&task(&site, &["true"], "./none.sqsh", &variables).stderr);
    assert!(told.contains("none.sqsh"), "{told}");
    let output = task(&site, &[], "./none.sqsh", &variables);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("names no program"), "{told}");
}

#[test]
fn settings_that_are_not_roots_are_refused_and_not_passed_over() {
    let site = Installation::new();
    let own = site.path().join("work/site.toml");
    std::fs::write(&own, "").expect("writable");
    std::os::unix::fs::chown(&own, Some(12345), None).ok();
    let is_roots = std::os::unix::fs::MetadataExt::uid(&own.metadata().expect("it is there")) == 0;
    assert!(!is_roots, "no file of this test belongs to root");
    for (path, why) in
        [(own.as_path(), "does not belong to root"), (Path::new("/nonexistent/site.toml"), "not there")]
    {
        let path = path.to_str().expect("a plain path");
        let variables = [("SITULA_TASK_PROGRAM", "/bin/true"), ("SITULA_TASK_CONFIG", path)];
        let output = task(&site, &["true"], "./none.sqsh", &variables);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{told}");
        assert!(told.contains(path) && told.contains(why), "{told}");
    }
    // An empty variable is as good as none.
    let variables = [("SITULA_TASK_PROGRAM", "/bin/true"), ("SITULA_TASK_CONFIG", "")];
    let told = text(&task(&site, &["true"], "./none.sqsh", &variables).stderr);
    assert!(told.contains("none.sqsh"), "{told}");
}
