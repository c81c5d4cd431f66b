use super::*;
use crate::syntax::parse_apptainer_bind;

fn facts(cwd: &str) -> HostFacts {
    let paths = HostFacts::paths_of_interest(Some(Path::new("/home/alice")), Some(Path::new(cwd)));
    HostFacts {
        uid: 1001,
        home: Some("/home/alice".into()),
        cwd: Some(cwd.into()),
        existing: paths.into_iter().collect(),
        resolved: BTreeMap::new(),
    }
}

fn shown(binds: &DefaultBinds) -> Vec<String> {
    assert!(binds.binds.iter().all(|bind| !bind.reason.is_empty()));
    assert!(binds.skipped.iter().all(|skipped| !skipped.reason.is_empty()));
    let one = |bind: &BindRequest| match &bind.source {
        BindSource::Host(source) if *source == bind.destination => source.display().to_string(),
        BindSource::Host(source) => format!("{}:{}", source.display(), bind.destination.display()),
        BindSource::Tmpfs { .. } => format!("tmpfs:{}", bind.destination.display()),
        BindSource::MinimalDev => format!("minimal:{}", bind.destination.display()),
        BindSource::Image(image) => format!("image:{}", image.path.display()),
    };
    binds.binds.iter().map(one).collect()
}

const USUAL: [&str; 9] = [
    "/dev",
    "/proc",
    "/sys",
    "/etc/hosts",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/home/alice",
    "/tmp",
    "/var/tmp",
];

fn plan(facts: &HostFacts, options: &DefaultOptions) -> Vec<String> {
    shown(&plan_default_binds(facts, options, &[]))
}

#[test]
fn the_usual_binds() {
    let got = plan(&facts("/scratch/run"), &DefaultOptions::default());
    assert_eq!(got[..9], USUAL);
    assert_eq!(got[9..], ["/scratch/run"]);
}

#[test]
fn working_directories() {
    let table: &[(&str, Option<&str>, &str, Option<&str>)] = &[
        ("/scratch/run", None, "", Some("/scratch/run")),
        ("/home/alice/run", None, "", None),
        ("/home/alice", None, "", None),
        ("/home/alice2", None, "", Some("/home/alice2")),
        ("/tmp/x", None, "", None),
        ("/", None, "", None),
        ("/etc", None, "", None),
        ("/etc/x", None, "", Some("/etc/x")),
        ("/usr", None, "", None),
        ("/lib64", None, "", None),
        ("/var", None, "", None),
        ("/proc/1", None, "", None),
        ("/dev/shm/x", None, "", None),
        ("/sys", None, "", None),
        ("/device", None, "", Some("/device")),
        // Through symbolic links.
        ("/link", Some("/etc"), "", None),
        ("/link", Some("/scratch/run"), "", Some("/scratch/run:/link")),
        ("/home/alice/link", Some("/scratch/run"), "", Some("/scratch/run")),
        ("/home/alice/link", Some("/home/alice/real"), "", None),
        ("/link", Some("/home/alice/real"), "", Some("/home/alice/real:/link")),
        // Beside binds of the user.
        ("/scratch/run", None, "/scratch", None),
        ("/scratch/run", None, "/scratch:/data", Some("/scratch/run")),
        ("/scratch/run", None, "/elsewhere:/scratch", Some("/scratch/run")),
    ];
    for (cwd, real, binds, want) in table {
        let mut facts = facts(cwd);
        if let Some(real) = real {
            facts.resolved.insert(cwd.into(), real.into());
        }
        let binds = match *binds {
            "" => vec![],
            text => parse_apptainer_bind(text, Path::new("/"), "--bind").expect("fine"),
        };
        let got = shown(&plan_default_binds(&facts, &DefaultOptions::default(), &binds));
        assert_eq!(got[9..].first().map(String::as_str), *want, "{cwd} -> {real:?} {binds:?}");
    }
}

#[test]
fn options_switch_defaults_off() {
    let contain = DefaultOptions { contain: true, ..DefaultOptions::default() };
    let want = [
        "minimal:/dev",
        "/proc",
        "/sys",
        "/etc/hosts",
        "/etc/localtime",
        "/etc/resolv.conf",
        "tmpfs:/home/alice",
        "tmpfs:/tmp",
        "tmpfs:/var/tmp",
    ];
    assert_eq!(plan(&facts("/scratch/run"), &contain), want);

    let words = ["proc", "sys", "dev", "home", "tmp", "cwd", "bind-paths", "/etc/resolv.conf"];
    let no_mount = words.iter().map(|word| NoMount::parse(word).expect(word)).collect();
    let none = DefaultOptions { no_mount, ..DefaultOptions::default() };
    assert_eq!(plan(&facts("/scratch/run"), &none), Vec::<String>::new());
    assert_eq!(NoMount::parse("everything"), None);

    // A working directory below a home that is not bound is bound itself.
    let no_home = DefaultOptions { no_home: true, ..DefaultOptions::default() };
    let got = plan(&facts("/home/alice/run"), &no_home);
    assert!(
        !got.contains(&"/home/alice".to_owned()) && got.contains(&"/home/alice/run".to_owned()),
        "{got:?}"
    );
}

#[test]
fn homes() {
    let home = |facts: &HostFacts, options: &DefaultOptions| {
        let got = plan_default_binds(facts, options, &[]);
        let bound = got.binds.iter().find(|bind| Some(&bind.destination) == got.home.as_ref()).is_some();
        (got.home, bound)
    };
    let usual = DefaultOptions::default();
    let root = HostFacts { uid: 0, ..facts("/scratch") };
    assert_eq!(home(&root, &usual), (Some("/root".into()), true));
    assert!(plan(&root, &usual).contains(&"/home/alice:/root".to_owned()));
    let slash = HostFacts { home: Some("/".into()), ..facts("/scratch") };
    assert_eq!(home(&slash, &usual), (Some("/".into()), false));
    let missing = HostFacts { home: Some("/home/gone".into()), ..facts("/scratch") };
    assert_eq!(home(&missing, &usual), (Some("/home/gone".into()), false));
    assert_eq!(home(&HostFacts { home: None, ..facts("/scratch") }, &usual), (None, false));
    let custom = CustomHome { source: "/data/h".into(), destination: "/home/x".into() };
    let chosen = DefaultOptions { home: Some(custom), contain: true, ..DefaultOptions::default() };
    assert!(plan(&facts("/scratch"), &chosen).contains(&"/data/h:/home/x".to_owned()));
}

#[test]
fn files_follow_their_links_on_the_host() {
    let mut facts = facts("/scratch");
    facts.resolved.insert("/etc/resolv.conf".into(), "/run/systemd/resolve/stub-resolv.conf".into());
    facts.resolved.insert("/var/tmp".into(), "/tmp".into());
    let got = plan_default_binds(&facts, &DefaultOptions::default(), &[]);
    let names = shown(&got);
    assert!(
        names.contains(&"/run/systemd/resolve/stub-resolv.conf:/etc/resolv.conf".to_owned()),
        "{names:?}"
    );
    assert!(!names.iter().any(|name| name.ends_with("/var/tmp")), "{names:?}");
    let files: Vec<_> = got.binds.iter().filter(|bind| bind.destination.starts_with("/etc")).collect();
    assert!(files.len() == 3 && files.iter().all(|bind| bind.no_follow && bind.optional));
}

#[test]
fn what_is_missing_is_left_out_with_a_reason() {
    let nothing = HostFacts { existing: BTreeSet::new(), ..facts("/scratch") };
    let got = plan_default_binds(&nothing, &DefaultOptions::default(), &[]);
    assert_eq!(shown(&got), Vec::<String>::new());
    assert_eq!(got.skipped.len(), 10);
}
