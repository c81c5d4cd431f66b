//! What `scripts/install-dist` makes of the files that were built.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

#[test]
fn an_installation_has_all_names_and_no_privileges() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (dist, prefix) = (dir.path().join("dist"), dir.path().join("prefix"));
    std::fs::create_dir(&dist).expect("writable");
    for file in ["situla", "spank_situla.so"] {
        std::fs::write(dist.join(file), "").expect("writable");
        // Whatever was built, and however it was copied.
        std::fs::set_permissions(dist.join(file), Permissions::from_mode(0o6755)).expect("ours");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/install-dist");
    let status = Command::new(script).arg(&dist).arg(&prefix).status().expect("it starts");
    assert!(status.success());
    for name in ["apptainer", "singularity", "run-singularity"] {
        let link = prefix.join("bin").join(name);
        assert_eq!(std::fs::read_link(&link).expect(name), Path::new("situla"));
    }
    let mut files = Vec::new();
    let mut waiting = vec![prefix.clone()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("readable") {
            let path = entry.expect("readable").path();
            let metadata = std::fs::symlink_metadata(&path).expect("it is there");
            assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw(), "{path:?}");
            if metadata.is_dir() {
                assert_eq!(metadata.mode() & 0o7777, 0o755, "{path:?}");
                waiting.push(path);
            } else if metadata.is_file() {
                let expected = if path.starts_with(prefix.join("share")) { 0o644 } else { 0o755 };
                assert_eq!(metadata.mode() & 0o7777, expected, "no set-id bits: {path:?}");
                let mut value = [0u8; 64];
                let capabilities = rustix::fs::lgetxattr(&path, "security.capability", &mut value);
                assert!(capabilities.is_err(), "{path:?}");
                files.push(path.strip_prefix(&prefix).expect("below it").display().to_string());
            }
        }
    }
    files.sort();
    let expected = [
        "bin/situla",
        "lib/spank_situla.so",
        "share/situla/apparmor/situla",
        "share/situla/tmpfiles.d/situla.conf",
    ];
    assert_eq!(files, expected);
}
