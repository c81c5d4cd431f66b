//! With whom a container is shared, by what was asked for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;
use situla_engine::{Action, Host, Isolation, OverlayRequest, Personality, RunRequest, Site};

/// The surroundings of one of two tasks of a step on a node.
fn host() -> Host {
    let variables = [
        ("HOME", "/nonexistent"),
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_ID", "3"),
        ("SLURM_NODEID", "0"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
        ("SLURMD_NODENAME", "n1"),
        ("SLURM_STEP_NODELIST", "n1"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "2"),
    ];
    Host::gather(
        variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect(),
    )
    .unwrap()
}

fn plan(image: &Path, change: &dyn Fn(&mut RunRequest)) -> Value {
    let action = Action::Exec(vec!["/bin/true".into()]);
    let mut request = RunRequest::new(Personality::Apptainer, image.display().to_string(), action);
    change(&mut request);
    let site = Site::default();
    serde_json::to_value(situla_engine::plan(&request, &host(), &site).unwrap()).unwrap()
}

#[test]
fn what_changes_the_container_changes_with_whom_it_is_shared() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    for name in ["image/bin", "image/etc", "image/dev", "image/tmp", "layer", "other"] {
        std::fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    let above = |name: &str, read_only: bool| {
        let path = directory.path().join(name);
        move |request: &mut RunRequest| {
            request.overlays = vec![OverlayRequest { path: path.clone(), read_only }];
        }
    };
    let isolated =
        |isolation: Isolation| move |request: &mut RunRequest| request.isolation = isolation.clone();
    let none = Isolation::default();
    type Change<'a> = Box<dyn Fn(&mut RunRequest) + 'a>;
    let shared: Vec<Change<'_>> = vec![
        Box::new(|_| {}),
        Box::new(above("layer", true)),
        Box::new(above("layer", false)),
        Box::new(above("other", false)),
        Box::new(isolated(Isolation { ipc: true, ..none.clone() })),
        Box::new(isolated(Isolation { uts: true, ..none.clone() })),
        Box::new(isolated(Isolation { uts: true, hostname: Some("a".to_owned()), ..none.clone() })),
        Box::new(isolated(Isolation { uts: true, hostname: Some("b".to_owned()), ..none.clone() })),
        Box::new(isolated(Isolation { network: true, ..none.clone() })),
        Box::new(|request| request.root = true),
    ];
    let mut keys = Vec::new();
    for change in &shared {
        let share = plan(&image, change.as_ref())["share"].clone();
        assert_eq!(share["with"], "step", "{share}");
        assert_eq!(share, plan(&image, change.as_ref())["share"], "the next task must find the first");
        keys.push(share["key"].to_string());
    }
    let n_keys = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), n_keys, "each of them is another container");
    let private: Vec<(&str, Change<'_>)> = vec![
        ("--contain", Box::new(|request| request.defaults.contain = true)),
        ("--writable-tmpfs", Box::new(|request| request.writable_tmpfs = true)),
        ("--pid", Box::new(isolated(Isolation { pid: true, ..none }))),
        ("switched off", Box::new(|request| request.share = false)),
    ];
    for (option, change) in private {
        let share = plan(&image, change.as_ref())["share"].clone();
        assert_eq!(share["with"], "nobody", "{share}");
        assert!(share["reason"].to_string().contains(option), "{share}");
    }
}

#[test]
fn what_belongs_to_each_rank_does_not_change_with_whom_it_shares() {
    // Below a default bind: a working directory that has to be bound makes another container.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let image = directory.path().join("image");
    for name in ["image/bin", "image/etc", "image/dev", "image/tmp", "here", "there"] {
        std::fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    let rank = |number: &str, change: &dyn Fn(&mut RunRequest)| {
        let mut host = host();
        for (name, value) in &mut host.env {
            if name == "SLURM_PROCID" || name == "SLURM_LOCALID" {
                *value = number.into();
            }
        }
        let of_rank =
            [("OMP_PLACES", number), ("CUDA_VISIBLE_DEVICES", number), ("APPTAINERENV_RANK", number)];
        host.env.extend(of_rank.map(|(name, value)| (name.into(), value.into())));
        let mut host = Host::gather(host.env).unwrap();
        host.cwd = directory.path().join(if number == "0" { "here" } else { "there" });
        let words = vec!["/bin/echo".into(), format!("rank {number}").into()];
        let mut request =
            RunRequest::new(Personality::Apptainer, image.display().to_string(), Action::Exec(words));
        request.env = vec![("RANK".to_owned(), number.to_owned())];
        change(&mut request);
        serde_json::to_value(situla_engine::plan(&request, &host, &Site::default()).unwrap()).unwrap()
    };
    let (first, second) = (rank("0", &|_| {}), rank("1", &|_| {}));
    for part in ["args", "env", "cwd"] {
        let of = |plan: &Value| plan["spec"]["process"][part].clone();
        assert_ne!(of(&first), of(&second), "the ranks shall differ in {part}");
    }
    assert_eq!(first["share"]["with"], "step", "{}", first["share"]);
    assert_eq!(first["share"], second["share"]);
    let elsewhere = rank("1", &|request| request.workdir = Some("/etc".to_owned()));
    assert_ne!(elsewhere["spec"]["process"]["cwd"], second["spec"]["process"]["cwd"]);
    assert_eq!(first["share"], elsewhere["share"]);
}

#[test]
fn a_plan_says_what_the_options_mean() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    for name in ["bin", "etc", "dev", "proc", "root", "tmp"] {
        std::fs::create_dir_all(image.join(name)).unwrap();
    }
    let plain = plan(&image, &|_| {});
    assert_eq!(plain["spec"]["root"]["readonly"], true);
    assert_eq!(plain["rootfs"].get("overlay"), None);
    assert_eq!(plain["spec"]["process"].get("capabilities"), None);
    let namespaces = |plan: &Value| -> Vec<String> {
        let list = plan["spec"]["linux"]["namespaces"].as_array().unwrap();
        list.iter().map(|namespace| namespace["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(namespaces(&plain), ["user", "mount"]);
    let writable = plan(&image, &|request| request.writable_tmpfs = true);
    assert_eq!(writable["spec"]["root"]["readonly"], false);
    assert_eq!(writable["rootfs"]["overlay"]["upper"], serde_json::json!({"kind": "tmpfs"}));
    // Half of what there is, for both tasks of this node together, and never nothing, which would be no limit.
    for (memory, size) in [(100 << 20, 25 << 20), (0, 1 << 20)] {
        let limited = plan(&image, &|request| {
            (request.writable_tmpfs, request.memory) = (true, Some(memory));
        });
        let upper = &limited["rootfs"]["overlay"]["upper"];
        assert_eq!(*upper, serde_json::json!({"kind": "tmpfs", "size": size}));
    }
    let root = plan(&image, &|request| request.root = true);
    assert_eq!(root["spec"]["process"]["user"], serde_json::json!({"uid": 0, "gid": 0}));
    assert_eq!(root["spec"]["linux"]["uidMappings"][0]["containerID"], 0);
    let pid = plan(&image, &|request| request.isolation.pid = true);
    assert_eq!(namespaces(&pid), ["user", "mount", "pid"]);
    let mounts = pid["spec"]["mounts"].as_array().unwrap();
    let proc: Vec<&Value> = mounts.iter().filter(|mount| mount["destination"] == "/proc").collect();
    assert_eq!(
        (proc.len(), &proc[0]["type"]),
        (1, &Value::from("proc")),
        "the host's would show its processes"
    );
    let contained = plan(&image, &|request| request.defaults.contain = true);
    let mounts = contained["spec"]["mounts"].as_array().unwrap();
    let bound: Vec<&Value> = mounts
        .iter()
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| &mount["destination"])
        .filter(|path| {
            !["/dev/", "/etc/", "/proc", "/sys"].iter().any(|known| path.as_str().unwrap().starts_with(known))
        })
        .collect();
    assert_eq!(bound, Vec::<&Value>::new());
}
