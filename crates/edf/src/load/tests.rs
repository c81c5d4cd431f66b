//! Environments, by example.

use super::*;

/// Loads `name` where these files are, with these variables.
fn loaded(name: &str, files: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<Edf, EdfError> {
    let value = |pairs: &[(&str, &str)], name: &str| {
        pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    };
    let read = |path: &Path| Ok(value(files, &path.display().to_string()));
    let variable = |name: &str| value(variables, name);
    let site = [PathBuf::from("/etc/edf")];
    load(
        name,
        &Surroundings {
            cwd: Path::new("/here"),
            home: Some(Path::new("/home/u")),
            site: &site,
            variable: &variable,
            read: &read,
        },
    )
}

#[test]
fn a_file_says_all_that_there_is() {
    let text = r#"
        image = "${REGISTRY:-registry.example}#team/app:1"
        workdir = "/src"
        entrypoint = true
        slurm = true
        writable = false
        mounts = ["${SCRATCH}:/scratch:ro+private", "/a:/b", "/a:/b"]
        devices = ["nvidia.com/gpu=all"]
        newer = 1
        [env]
        MODE = "fast"
        GONE = ""
        [annotations]
        com.hooks.ssh.enabled = true
        "com.hooks.ssh.port" = 15263
        plain = "x"
    "#;
    let edf = loaded("./e.toml", &[("/here/e.toml", text)], &[("SCRATCH", "/lustre/u")]).unwrap();
    assert_eq!(edf.image.as_deref(), Some("registry.example#team/app:1"));
    assert_eq!((edf.workdir.as_deref(), edf.entrypoint, edf.writable), (Some("/src"), true, false));
    assert!(edf.slurm);
    assert_eq!(edf.mounts, ["/lustre/u:/scratch:ro+private", "/a:/b"]);
    assert_eq!(edf.devices, ["nvidia.com/gpu=all"]);
    assert_eq!(edf.env, BTreeMap::from([("MODE", "fast"), ("GONE", "")].map(|(k, v)| (k.into(), v.into()))));
    let annotations: Vec<_> = edf.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let wanted = [("com.hooks.ssh.enabled", "true"), ("com.hooks.ssh.port", "15263"), ("plain", "x")];
    assert_eq!(annotations, wanted);
    assert_eq!(edf.unknown, [(PathBuf::from("/here/e.toml"), "newer".to_owned())]);
    assert_eq!(edf.files, [Path::new("/here/e.toml")]);
}

#[test]
fn what_is_not_said_is_as_documented() {
    let edf = loaded("./e.toml", &[("/here/e.toml", "image = \"\"\nworkdir = \"\"")], &[]).unwrap();
    assert_eq!(edf, Edf { writable: true, files: vec!["/here/e.toml".into()], ..Edf::default() });
}

#[test]
fn names_are_looked_for_and_paths_are_not() {
    let files = [
        ("/home/u/.edf/mine.toml", "image = \"home\""),
        ("/etc/edf/mine.toml", "image = \"site\""),
        ("/etc/edf/theirs.toml", "image = \"theirs\""),
        ("/one/mine.toml", "image = \"one\""),
        ("/two/mine.toml", "image = \"two\""),
        ("/here/x.toml", "image = \"here\""),
        ("/abs/x.toml", "image = \"abs\""),
    ];
    for (name, path, image) in [
        ("mine", None, "home"),
        ("theirs", None, "theirs"),
        ("mine", Some("/none:/one:/two"), "one"),
        ("mine", Some("relative:/two"), "two"),
        ("mine", Some("/none"), "site"),
        ("x.toml", None, "here"),
        ("./x.toml", None, "here"),
        ("/abs/x.toml", None, "abs"),
    ] {
        let variables: Vec<_> = path.map(|path| ("EDF_PATH", path)).into_iter().collect();
        let edf = loaded(name, &files, &variables).unwrap();
        assert_eq!(edf.image.as_deref(), Some(image), "{name} {path:?}");
    }
    let missing = loaded("absent", &files, &[]).unwrap_err().to_string();
    assert!(missing.contains("absent.toml in /home/u/.edf, /etc/edf"), "{missing}");
    let below = [("/home/u/.edf/team/x.toml", "image = \"below\"")];
    assert_eq!(loaded("team/x", &below, &[]).unwrap().image.as_deref(), Some("below"));
    for name in ["", "a/b", "../etc/edf/mine", "a/../mine"] {
        assert!(loaded(name, &files, &[]).is_err(), "{name:?}");
    }
}

#[test]
fn files_inherit_left_to_right_and_the_own_wins() {
    let files = [
        (
            "/home/u/.edf/base.toml",
            "image = \"b\"\nmounts = [\"/b:/b\", \"/x:/x\"]\n[env]\nA = \"base\"\nB = \"base\"",
        ),
        (
            "/home/u/.edf/other.toml",
            "writable = false\nworkdir = \"/o\"\n[env]\nB = \"other\"\nC = \"other\"",
        ),
        (
            "/home/u/.edf/own.toml",
            "base_environment = [\"base\", \"other\"]\nmounts = [\"/x:/x\", \"/own:/own\"]\n[env]\nC = \"own\"",
        ),
        ("/home/u/.edf/twice.toml", "base_environment = [\"own\", \"base\"]"),
    ];
    let edf = loaded("own", &files, &[]).unwrap();
    assert_eq!((edf.image.as_deref(), edf.workdir.as_deref(), edf.writable), (Some("b"), Some("/o"), false));
    assert_eq!(edf.mounts, ["/b:/b", "/x:/x", "/own:/own"]);
    let env: Vec<_> = edf.env.values().map(String::as_str).collect();
    assert_eq!(env, ["base", "other", "own"]);
    let names: Vec<_> = edf.files.iter().filter_map(|file| file.file_stem()?.to_str()).collect();
    assert_eq!(names, ["base", "other", "own"]);
    let twice = loaded("twice", &files, &[]).unwrap();
    assert_eq!(twice.env.get("B").map(String::as_str), Some("base"), "the later one wins");
}

#[test]
fn inheritance_ends() {
    let chain = |length: usize| -> Vec<(String, String)> {
        (0..length)
            .map(|n| {
                let base =
                    if n + 1 < length { format!("base_environment = \"e{}\"", n + 1) } else { String::new() };
                (format!("/home/u/.edf/e{n}.toml"), base)
            })
            .collect()
    };
    let load = |files: &[(String, String)]| {
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        loaded("e0", &files, &[])
    };
    assert!(load(&chain(MAX_LEVELS)).is_ok());
    assert!(matches!(load(&chain(MAX_LEVELS + 1)), Err(EdfError::TooDeep { .. })));
    let mut circle = chain(3);
    circle[2].1 = "base_environment = \"e1\"".to_owned();
    assert!(matches!(load(&circle), Err(EdfError::Cycle { .. })));
    // Four levels of ten each: no circle, and not deep.
    let names: Vec<String> = (0..10).map(|n| format!("\"l{n}\"")).collect();
    let wide = format!("base_environment = [{}]", names.join(", "));
    let mut files = vec![("/home/u/.edf/e0.toml".to_owned(), wide.clone())];
    for n in 0..10 {
        files.push((format!("/home/u/.edf/l{n}.toml"), wide.replace("\"l", "\"m")));
        files.push((format!("/home/u/.edf/m{n}.toml"), String::new()));
    }
    assert!(matches!(load(&files), Err(EdfError::TooMany { .. })));
}

#[test]
fn what_is_wrong_is_named() {
    for (text, part) in [
        ("image = 1", "image must be a string"),
        ("mounts = \"/a:/b\"", "mounts must be a list of strings"),
        ("mounts = [1]", "mounts must be a list of strings"),
        ("entrypoint = \"yes\"", "entrypoint must be true or false"),
        ("slurm = 1", "slurm must be true or false"),
        ("base_environment = 3", "base_environment must be a name or a list of names"),
        ("env = 1", "env must be a table of strings"),
        ("[env]\nA = 1", "env.A must be a string"),
        ("[env]\n\"A=B\" = \"1\"", "names no variable"),
        ("annotations = []", "annotations must be a table"),
        ("image = \"a\"\nb c", "line 2"),
        ("image = \"${NONE}\"", "image mentions ${NONE}, which is not set"),
        ("[env]\nA = \"${B}\"\nB = \"1\"", "env.A mentions ${B}"),
    ] {
        let error = loaded("./e.toml", &[("/here/e.toml", text)], &[]).unwrap_err().to_string();
        assert!(error.starts_with("/here/e.toml: ") && error.contains(part), "{text}: {error}");
    }
}
