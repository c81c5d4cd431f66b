//! Precedence, by example.

use super::*;
use crate::request::Action;

fn os(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

/// Builds an environment for an image with `scripts`, or with the OCI variables `config`.
fn built(
    scripts: &[(&str, &str)],
    config: Option<&[&str]>,
    host: &[(&str, &str)],
    change: impl FnOnce(&mut RunRequest),
) -> (Environment, Variables) {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(".singularity.d/env");
    std::fs::create_dir_all(&directory).unwrap();
    for (name, text) in scripts {
        std::fs::write(directory.join(name), text).unwrap();
    }
    let view = ImageView::open_directory(root.path()).unwrap();
    let mut request = RunRequest::new(Personality::Apptainer, "i.sif", Action::Exec(vec!["true".into()]));
    change(&mut request);
    let config = config.map(|env| ExecConfig {
        env: env.iter().map(|entry| (*entry).to_owned()).collect(),
        ..ExecConfig::default()
    });
    let host = os(host);
    let around = Circumstances {
        request: &request,
        host: &host,
        image_path: Path::new("/data/i.sif"),
        home: Some("/home/u"),
        bind_destinations: &[],
    };
    let environment = build(&view, config.as_ref(), &around).unwrap();
    let found = environment.entries.iter().map(|entry| {
        let entry = String::from_utf8(entry.as_bytes().to_vec()).unwrap();
        let (name, value) = entry.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    let found = found.collect();
    (environment, found)
}

#[test]
fn tasks_of_slurm_take_the_image_first_but_for_what_is_named() {
    let host = [
        ("A", "host"),
        ("LANG", "de_DE"),
        ("LC_ALL", "de_DE"),
        ("PATH", "/host/bin"),
        ("ONLY", "host"),
        ("SLURM_PROCID", "5"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_STEP_NODELIST", "n[3-4]"),
        ("SLURM_JOB_ID", "4537"),
        ("MASTER_PORT", "7"),
    ];
    let config = ["A=image", "PATH=/image/bin", "PYTORCH_VERSION=2"];
    let with = |names: &[&str]| {
        let (_, found) = built(&[], Some(&config), &host, |request| {
            request.personality = Personality::Task;
            request.host_env = names.iter().map(|name| (*name).to_owned()).collect();
        });
        move |name: &str| found.get(name).cloned().unwrap_or_default()
    };
    let plain = with(&[]);
    assert_eq!([plain("A"), plain("ONLY"), plain("LANG"), plain("LC_ALL")], ["image", "host", "", ""]);
    assert!(plain("PATH").starts_with("/image/bin:"), "{}", plain("PATH"));
    assert_eq!([plain("RANK"), plain("LOCAL_RANK"), plain("WORLD_SIZE")], ["5", "1", "8"]);
    assert_eq!([plain("MASTER_ADDR"), plain("MASTER_PORT")], ["n3", "7"], "what the job sets stays");
    let named = with(&["A", "LANG", "PATH", "ABSENT"]);
    assert_eq!([named("A"), named("LANG"), named("LC_ALL")], ["host", "de_DE", ""]);
    assert_eq!([named("PATH"), named("ABSENT")], ["/host/bin", ""]);
}

#[test]
fn what_a_file_sets_for_tasks_is_taken_as_it_is() {
    let set = |scripts: &[(&str, &str)], config: Option<&[&str]>| {
        built(scripts, config, &[("GONE", "host"), ("KEPT", "host")], |request| {
            request.personality = Personality::Task;
            request.no_eval = true;
            request.host_env = vec!["KEPT".to_owned()];
            request.env = [("HOME", "/elsewhere/home"), ("PREPEND_PATH", "/x"), ("GONE", ""), ("B", "$A")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
        })
    };
    let (_, found) = set(&[], Some(&["A=1", "KEPT=image"]));
    let value = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(
        [value("HOME"), value("PREPEND_PATH"), value("B")],
        [Some("/elsewhere/home"), Some("/x"), Some("$A")]
    );
    assert_eq!([value("GONE"), value("KEPT")], [None, Some("host")]);
    let (with_shell, _) = set(&[("10-x.sh", "if true; then export A=1; fi")], None);
    let script = with_shell.shell.expect("a shell is needed");
    for part in
        ["unset GONE\n", "export PREPEND_PATH=", "export HOME=", "\nexport KEPT=\"$SITULA_HOST_KEPT\""]
    {
        assert!(script.contains(part), "{part}: {script}");
    }
}

#[test]
fn image_beats_host_and_user_beats_both() {
    let host = [
        ("A", "host"),
        ("B", "host"),
        ("C", "host"),
        ("HOME", "/elsewhere"),
        ("PATH", "/host/bin"),
        ("LD_LIBRARY_PATH", "/host/lib"),
        ("SLURM_PROCID", "3"),
        ("BASH_FUNC_f%%", "() { :; }"),
        ("APPTAINER_BIND", "/x"),
        ("APPTAINERENV_C", "from $B"),
    ];
    let config = ["B=image", "PATH=/opt/bin:/bin", "EMPTY="];
    let (_, found) = built(&[], Some(&config), &host, |request| request.env.push(("D".into(), "own".into())));
    let get = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(get("A"), Some("host"));
    assert_eq!(get("B"), Some("image"));
    assert_eq!(get("C"), Some("from image"));
    assert_eq!(get("D"), Some("own"));
    assert_eq!(get("HOME"), Some("/home/u"));
    assert_eq!(get("PATH"), Some("/opt/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin"));
    assert_eq!(get("LD_LIBRARY_PATH"), Some("/.singularity.d/libs"));
    assert_eq!(get("SLURM_PROCID"), Some("3"));
    assert_eq!(get("EMPTY"), None);
    assert_eq!(get("BASH_FUNC_f%%"), None);
    assert_eq!(get("APPTAINER_CONTAINER"), Some("/data/i.sif"));
    assert_eq!(get("SINGULARITY_NAME"), Some("i.sif"));
    assert_eq!(get("APPTAINER_BIND"), Some(""));
}

#[test]
fn a_clean_environment_passes_terminal_and_proxies_alone() {
    let host = [("A", "host"), ("TERM", "xterm"), ("HTTP_PROXY", "p"), ("no_proxy", "n")];
    let (_, found) = built(&[], Some(&[]), &host, |request| request.clean_env = true);
    assert_eq!(found.get("A"), None);
    assert_eq!(found.get("TERM").map(String::as_str), Some("xterm"));
    assert!(found.contains_key("HTTP_PROXY") && found.contains_key("no_proxy"));
    // As Apptainer does it: the language is C, unless image or user say otherwise.
    assert_eq!(found.get("LANG").map(String::as_str), Some("C"));
    let (_, found) =
        built(&[], Some(&["LANG=C.UTF-8"]), &[("LANG", "de")], |request| request.clean_env = true);
    assert_eq!(found.get("LANG").map(String::as_str), Some("C.UTF-8"));
    let (_, found) = built(&[], Some(&[]), &[("LANG", "de")], |_| {});
    assert_eq!(found.get("LANG").map(String::as_str), Some("de"));
    assert_eq!(found.get("APPTAINER_APPNAME").map(String::as_str), Some(""));
}

#[test]
fn scripts_that_only_set_variables_need_no_shell() {
    let scripts = [
        ("10-docker2singularity.sh", "#!/bin/sh\nexport PATH=\"/opt/bin\"\nexport L=\"${L:-\"C.UTF-8\"}\"\n"),
        ("90-environment.sh", "#!/bin/sh\n# Custom environment\nexport N=$L.x\n"),
        ("95-apps.sh", "case x in esac"),
    ];
    let (environment, found) = built(&scripts, None, &[("L", "host"), ("N", "host")], |_| {});
    assert_eq!(environment.shell, None);
    assert_eq!(found.get("N").map(String::as_str), Some("C.UTF-8.x"));
    assert!(found["PATH"].starts_with("/opt/bin:/usr/local/sbin"));
}

#[test]
fn other_scripts_are_run_by_the_containers_shell() {
    let scripts = [("90-environment.sh", "export N=$(uname)\n")];
    let (environment, found) = built(&scripts, None, &[("H", "it's")], |request| {
        request.env.push(("U".into(), "$N".into()));
    });
    let script = environment.shell.unwrap();
    assert!(!script.contains("it's"), "a value in an argument is seen by all: {script}");
    assert_eq!(found["SITULA_HOST_H"], "it's");
    assert_eq!(found["SITULA_USER_U"], "$N");
    assert_eq!(found.get("H"), None, "the scripts must not see the host's value");
    // What the script makes of it, in a real shell that has no scripts to source.
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &script, "sh", "/usr/bin/env"]).env_clear();
    shell.envs(found.iter().filter(|(name, _)| name.starts_with("SITULA_"))).env("N", "node");
    let shell = shell.stderr(std::process::Stdio::null()).output().unwrap();
    let out = String::from_utf8(shell.stdout).unwrap();
    for line in ["H=it's", "U=node"] {
        assert!(out.lines().any(|other| other == line), "{line} is not in {out}");
    }
    assert!(!out.contains("SITULA_"), "{out}");
}
