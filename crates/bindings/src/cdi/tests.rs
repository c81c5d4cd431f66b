use std::path::PathBuf;

use super::*;
use crate::bind::{BindSource, Origin};

const JSON: &str = r#"{
    "cdiVersion": "0.6.0", "kind": "vendor.com/device", "annotations": {"a": "b"},
    "devices": [
        {"name": "0", "containerEdits": {
            "env": ["ONE=1", "PATHS=/a=b"],
            "deviceNodes": [
                {"path": "/dev/vendor0", "hostPath": "/dev/zero", "type": "c", "major": 1, "minor": 5, "permissions": "rw"},
                {"path": "/dev/null"}
            ],
            "mounts": [{"hostPath": "/lib/x.so", "containerPath": "/usr/lib/x.so", "options": ["ro", "nosuid", "nodev", "bind"]}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "--x"], "timeout": 3}]
        }},
        {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}},
        {"name": "net", "containerEdits": {"netDevices": [{"hostInterfaceName": "eth0", "name": "eth0"}]}}
    ],
    "containerEdits": {"env": ["COMMON=yes"], "mounts": null}
}"#;

/// As NVIDIA's tool writes it.
const YAML: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      fileMode: 438
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes: []
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, "--folder", '/usr/lib']
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options:
    - ro
    - nosuid
    - nodev
    - rbind
    - rprivate
"#;

fn file(path: &str, rank: usize, text: &str) -> SpecFile {
    let syntax = if path.ends_with("yaml") { Syntax::Yaml } else { Syntax::Json };
    SpecFile { path: PathBuf::from(path), rank, spec: CdiSpec::parse(text, syntax).expect(path) }
}

fn edits(names: &[&str], specs: &[SpecFile]) -> Result<DeviceEdits, String> {
    let names: Vec<DeviceName> = names.iter().map(|name| name.parse().expect("a name")).collect();
    resolve(&names, specs).map_err(|error| error.to_string())
}

fn shown(edits: &DeviceEdits) -> Vec<String> {
    let one = |bind: &crate::bind::BindRequest| {
        assert_eq!(bind.origin, Origin::Device);
        let BindSource::Host(source) = &bind.source else { panic!("{bind:?}") };
        let access = if bind.read_only { "ro" } else { "rw" };
        format!("{}:{}:{access}:{}", source.display(), bind.destination.display(), bind.recursive)
    };
    edits.binds.iter().map(one).collect()
}

#[test]
fn names_are_a_vendor_a_class_and_a_device() {
    for text in ["vendor.com/device=0", "a/b=c", "nvidia.com/gpu=0:1", "hpe.com/c_x-i=all", "v/c=GPU-1f.x"] {
        assert_eq!(text.parse::<DeviceName>().map(|name| name.to_string()).as_deref(), Ok(text));
    }
    let long = format!("a/b={}", "c".repeat(300));
    for text in [
        "",
        "a",
        "a/b",
        "a/b=",
        "/b=c",
        "a/=c",
        "a=c",
        "1a/b=c",
        "a/b/c=d",
        "a/b=c=d",
        "a/b=-c",
        "a/b=c-",
        "a./b=c",
        "a/b=c d",
        "/dev/null",
        "ä/b=c",
        &long,
    ] {
        assert!(text.parse::<DeviceName>().is_err(), "{text}");
    }
}

#[test]
fn what_a_device_asks_for_is_bound_set_and_run() {
    let specs = [file("/etc/cdi/vendor.json", 0, JSON)];
    let found =
        edits(&["vendor.com/device=0", "vendor.com/device=all", "vendor.com/device=0"], &specs).unwrap();
    let binds = [
        "/dev/zero:/dev/vendor0:rw:false",
        "/dev/null:/dev/null:rw:false",
        "/lib/x.so:/usr/lib/x.so:ro:false",
    ];
    assert_eq!(shown(&found), binds, "each once");
    let env = [("COMMON", "yes"), ("ONE", "1"), ("PATHS", "/a=b")];
    assert_eq!(found.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let hooks = &found.hooks.create_container;
    assert_eq!((hooks.len(), hooks[0].args.len(), hooks[0].timeout), (1, 2, Some(3)));
    assert_eq!(edits(&[], &specs), Ok(DeviceEdits::default()));
}

#[test]
fn yaml_is_read_as_tools_write_it() {
    let found = edits(&["nvidia.com/gpu=0"], &[file("/run/cdi/nvidia.yaml", 0, YAML)]).unwrap();
    let binds = ["/usr/bin/nvidia-smi:/usr/bin/nvidia-smi:ro:true", "/dev/nvidia0:/dev/nvidia0:rw:false"];
    assert_eq!(shown(&found), binds);
    assert_eq!(found.hooks.create_container[0].args.len(), 4);
    assert_eq!(found.env, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]);
    let same = YAML.replace("  deviceNodes: []", "  deviceNodes:");
    assert_eq!(edits(&["nvidia.com/gpu=0"], &[file("/run/cdi/x.yaml", 0, &same)]), Ok(found));
}

#[test]
fn a_later_directory_counts_more_and_two_files_of_one_are_a_contradiction() {
    let with = |path: &str, rank: usize, value: &str| file(path, rank, &JSON.replace("ONE=1", value));
    let etc = with("/etc/cdi/a.json", 0, "ONE=etc");
    let run = with("/run/cdi/a.json", 1, "ONE=run");
    for specs in [[etc.clone(), run.clone()], [run.clone(), etc]] {
        let found = edits(&["vendor.com/device=0"], &specs).unwrap();
        assert!(found.env.contains(&("ONE".to_owned(), "run".to_owned())), "{:?}", found.env);
    }
    let twice = [run.clone(), SpecFile { path: PathBuf::from("/run/cdi/b.json"), ..run }];
    let error = edits(&["vendor.com/device=0"], &twice).unwrap_err();
    assert!(error.contains("/run/cdi/a.json") && error.contains("/run/cdi/b.json"), "{error}");
}

#[test]
fn what_cannot_be_done_is_refused_for_who_needs_it() {
    let specs = [file("/etc/cdi/vendor.json", 0, JSON)];
    let error = edits(&["vendor.com/device=net"], &specs).unwrap_err();
    assert!(error.contains("netDevices") && error.contains("/etc/cdi/vendor.json"), "{error}");
    let error = edits(&["vendor.com/device=7"], &specs).unwrap_err();
    assert!(error.contains("vendor.com/device=0, vendor.com/device=all"), "{error}");
    assert!(edits(&["other.com/device=0"], &[]).unwrap_err().contains("there are none"));
    for (old, new, what) in [
        ("\"createContainer\"", "\"createUniverse\"", "the hook /bin/true at \"createUniverse\""),
        ("\"nodev\", \"bind\"", "\"shared\"", "a mount with \"shared\""),
        ("\"/usr/lib/x.so\"", "\"/usr/../x.so\"", "a place"),
        ("\"/lib/x.so\"", "\"lib/x.so\"", "the path"),
        ("\"ONE=1\"", "\"ONE\"", "the variable \"ONE\""),
    ] {
        let text = JSON.replace(old, new);
        assert_ne!(text, JSON, "{old}");
        let error = edits(&["vendor.com/device=0"], &[file("/x.json", 0, &text)]).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn what_is_no_specification_is_refused() {
    let flaw = |text: &str, syntax: Syntax| CdiSpec::parse(text, syntax).map(drop).map_err(|e| e.to_string());
    for (old, new, what) in [
        ("\"0.6.0\"", "\"2.0.0\"", "cdiVersion"),
        ("vendor.com/device\"", "vendor\"", "VENDOR/CLASS"),
        ("\"name\": \"all\"", "\"name\": \"0\"", "two devices 0"),
        ("\"name\": \"all\"", "\"name\": \"a b\"", "no name of a device"),
        ("\"kind\"", "\"kin\"", "kind"),
    ] {
        let error = flaw(&JSON.replace(old, new), Syntax::Json).unwrap_err();
        assert!(error.contains(what), "{new}: {error}");
    }
    let deep = format!("a: {}", "[".repeat(200));
    for (text, what) in [
        ("", "empty"),
        ("a: 1\n---\nb: 2\n", "second document"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!binary x\n", "tags"),
        ("a: 1\na: 2\n", "a for the second time"),
        ("[a]: 1\n", "key"),
        ("a: [1, 2\n", "line"),
        (deep.as_str(), "deep"),
    ] {
        let error = flaw(text, Syntax::Yaml).unwrap_err();
        assert!(error.contains(what), "{text:?}: {error}");
    }
    assert!(flaw(&" ".repeat(MAX_SPEC + 1), Syntax::Yaml).is_err());
}
