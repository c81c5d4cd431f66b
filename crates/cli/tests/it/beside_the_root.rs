//! What users ask for beside the root: image files, and devices by name.

use std::fs;
use std::process::Output;

use crate::installation::{Installation, text};

const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/device", "devices": [
    {"name": "zero", "containerEdits": {
        "env": ["VENDOR=device", "MINE=device"],
        "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/zero"}],
        "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo hook >> HOOKED"]}]
    }},
    {"name": "bad", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/false"}]}}
]}"#;

fn expect(what: &str, output: &Output, code: i32, out: &str, part: &str) {
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{what}: {said}{errors}");
    assert_eq!(said, out, "{what}: {errors}");
    assert!(errors.contains(part), "{what}: {errors}");
}

#[test]
fn image_files_are_shown_beside_any_root() {
    let Some(site) = Installation::with_image_of(|root| {
        fs::create_dir(root.join("sub")).expect("writable");
        fs::write(root.join("sub/file"), "in the image\n").expect("writable");
    }) else {
        return;
    };
    let bind = "image.sqsh:/data:image-src=/sub";
    let script = "cat /data/file; echo x 2>/dev/null >/data/new || echo read-only";
    let seen = "in the image\nread-only\n";
    let ways: [&[&str]; 5] = [
        &["--rootfs", "fuse", "image.sqsh"],
        &["--rootfs", "extract", "image.sqsh"],
        &["../root"],
        &["--writable-tmpfs", "../root"],
        &["--contain", "--pid", "--writable-tmpfs", "image.sqsh"],
    ];
    for way in ways {
        let words = [&["exec", "--bind", bind], way, &["/bin/sh", "-c", script]].concat();
        expect(&format!("{way:?}"), &site.situla(&words), 0, seen, "");
    }
    // Those who enter an instance see it, and nothing is left of one that has ended.
    let start = ["instance", "start", "--mount", "type=bind,src=image.sqsh,dst=/data,image-src=/sub"];
    let words = [&start[..], &["image.sqsh", "one"]].concat();
    expect("start", &site.situla(&words), 0, "", "");
    let inside = site.situla(&["instance", "exec", "one", "/bin/cat", "/data/file"]);
    let stopped = site.situla(&["instance", "stop", "one"]);
    expect("enter", &inside, 0, "in the image\n", "");
    assert!(stopped.status.success(), "{stopped:?}");
    let planned = site.situla(&["plan", "--bind", bind, "image.sqsh", "/bin/true"]);
    let plan = text(&planned.stdout);
    assert!(plan.contains("\"squashfs\"") && plan.contains("X-mount.subdir=/sub"), "{plan}");
    for (bind, part) in [
        ("image.sqsh:/data:image-src=/none", "it has no directory /none"),
        ("none.sqsh:/data:image-src=/", "does not exist on"),
        ("../root:/data:image-src=/", "is neither a SquashFS nor a SIF image"),
    ] {
        let output = site.situla(&["exec", "--bind", bind, "image.sqsh", "/bin/true"]);
        expect(bind, &output, 125, "", part);
    }
    site.policy("[options]\nrefuse = [\"bind:/\"]\n");
    let output =
        site.situla(&["exec", "--no-home", "--no-mount", "cwd", "--bind", bind, "image.sqsh", "/bin/true"]);
    expect("refused", &output, 125, "", "bind");
}

#[test]
fn devices_come_by_their_names() {
    let Some(site) = Installation::with_image() else { return };
    let (specs, hooked) = (site.path().join("cdi"), site.path().join("hooked"));
    fs::create_dir(&specs).expect("writable");
    let spec = SPEC.replace("HOOKED", &hooked.display().to_string());
    fs::write(specs.join("vendor.json"), spec).expect("writable");
    let settings = format!("[devices]\npath = [\"{}\"]\n", specs.display());
    fs::write(site.path().join("etc/situla/site.toml"), settings).expect("writable");
    let script = "busybox head -c 2 /dev/vendor0 | busybox od -An -tx1; echo $VENDOR $MINE";
    let device = ["exec", "--contain", "--device", "vendor.com/device=zero"];
    for (root, count) in [("image.sqsh", 1), ("../root", 2)] {
        let words = [&device[..], &["--env", "MINE=mine", root, "/bin/sh", "-c", script]].concat();
        expect(root, &site.situla(&words), 0, " 00 00\ndevice mine\n", "");
        let log = fs::read_to_string(&hooked).expect("the hook has run");
        assert_eq!(log.lines().count(), count, "{root}");
    }
    for (device, part) in [
        ("vendor.com/device=one", "there are vendor.com/device=bad, vendor.com/device=zero"),
        ("vendor.com/device=bad", "/bin/false"),
        ("vendor.com", "names no device"),
    ] {
        let output = site.situla(&["exec", "--device", device, "image.sqsh", "/bin/true"]);
        expect(device, &output, 125, "", part);
    }
    site.policy("[options]\nrefuse = [\"device\"]\n");
    let words = [&device[..], &["image.sqsh", "/bin/true"]].concat();
    expect("refused", &site.situla(&words), 125, "", "device");
}
