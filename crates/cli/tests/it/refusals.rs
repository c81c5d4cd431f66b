//! What the Apptainer command line does not have: one line that names it and says what to do.

use crate::installation::{Installation, text};

#[test]
fn options_and_commands_are_refused_in_one_line() {
    const LEAVE_OUT: &str = "leave it out, or use Apptainer for this image";
    const HELP: &str = "see apptainer --help";
    let site = Installation::new();
    for (words, named, remedy) in [
        (&["exec", "-W", "/x"][..], "option -W ", LEAVE_OUT),
        (&["exec", "--compat"], "--compat ", LEAVE_OUT),
        (&["exec", "-ew"], "option -w ", LEAVE_OUT),
        (&["exec", "--netns-path", "x"], "--netns-path ", LEAVE_OUT),
        (&["exec", "--nv"], "--nv ", LEAVE_OUT),
        (&["exec", "--rocm"], "--rocm ", LEAVE_OUT),
        (&["exec", "-S", "/x"], "option -S ", LEAVE_OUT),
        (&["exec", "--scratch", "/x"], "--scratch ", LEAVE_OUT),
        (&["exec", "--scratch=/x"], "--scratch ", LEAVE_OUT),
        (&["exec", "--env-file", "x"], "--env-file ", LEAVE_OUT),
        (&["exec", "--unsquash"], "--unsquash ", LEAVE_OUT),
        (&["exec", "-w"], "option -w ", LEAVE_OUT),
        (&["exec", "--ignore-subuid"], "--ignore-subuid ", LEAVE_OUT),
        (&["exec", "--no-https"], "--no-https ", LEAVE_OUT),
        (&["run", "--no-init"], "--no-init ", LEAVE_OUT),
        (&["exec", "--net"], "--net alone ", "--network none"),
        (&["exec", "--network", "bridge"], "network bridge ", "--network none"),
        (&["exec", "--sharens", "--pid"], "--pid ", "leave one of the two out"),
        (&["exec", "--sharens", "-c"], "--contain ", "leave one of the two out"),
        (&["shell", "--workdir", "/x"], "--workdir ", LEAVE_OUT),
        (&["--config", "x", "exec"], "--config ", LEAVE_OUT),
        (&["build", "--update"], "--update ", LEAVE_OUT),
        (&["exec", "--frobnicate"], "unknown option --frobnicate", HELP),
        (&["inspect"], "no command inspect ", HELP),
        (&["instance", "boot"], "no command boot ", HELP),
    ] {
        let words = [words, &["image.sif", "true"]].concat();
        for name in ["apptainer", "singularity"] {
            let output = site.command(name, &words).output().expect("it starts");
            let told = text(&output.stderr);
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{words:?}");
            assert_eq!(told.lines().count(), 1, "{words:?}: {told}");
            assert!(told.starts_with("FATAL:   ") && told.contains(named) && told.contains(remedy), "{told}");
        }
    }
}

#[test]
fn harmless_options_are_taken() {
    let Some(site) = Installation::with_image() else { return };
    for words in [&["--cleanenv"][..], &["-e"], &["--no-home"], &["--userns"], &["--no-mount", "home,tmp"]] {
        let words = [&["exec"], words, &["image.sqsh", "/bin/true"]].concat();
        let output = site.command("apptainer", &words).output().expect("it starts");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

/// A program that reads events reads nothing else, also where a line for a task of Slurm would be written.
#[test]
fn what_cannot_be_understood_is_an_event_in_a_step_as_well() {
    let site = Installation::new();
    for words in [
        &["exec", "--json", "--frobnicate", "image.sqsh", "true"][..],
        &["exec", "--json", "--rootfs=sideways", "image.sqsh", "true"],
        &["instance", "exec", "--json", "--frobnicate", "name", "true"],
    ] {
        for in_step in [false, true] {
            let mut command = site.command("situla", words);
            if in_step {
                command.env("SLURM_JOB_ID", "7").env("SLURM_STEP_ID", "0");
            }
            let output = command.output().expect("it starts");
            let told = text(&output.stderr);
            let events: Vec<serde_json::Value> =
                told.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            assert_eq!(events.len(), 1, "{words:?}: {told}");
            assert_eq!((&events[0]["event"], &events[0]["status"]), (&"error".into(), &2.into()), "{told}");
            assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{words:?}");
        }
    }
}
