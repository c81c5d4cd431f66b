//! Extracted trees and systemd-tmpfiles, which cleans `/var/tmp` by age on most machines.
//!
//! In a program of its own: a process that another test starts would have the locks for a moment.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use situla_image::{ConvertOptions, OutputFormat, Owners, TreeCache, convert_directory};

/// The rule that sites get.
const SHIPPED: &str = include_str!("../../../packaging/tmpfiles.d/situla.conf");

/// Cleans `place` of everything whose times are older than a microsecond, with another rule; false where there
/// is no such program.
fn clean(place: &Path, rule: &str) -> bool {
    let rules = place.with_extension("conf");
    fs::write(&rules, format!("d {} 0755 - - 1us\n{rule}\n", place.display())).expect("writable");
    // By the clock of the file system, all is older then.
    let modified = |path: &Path| fs::metadata(path).expect("it is there").modified().expect("a time");
    let (probe, first) = (place.with_extension("probe"), modified(&rules));
    loop {
        fs::write(&probe, "").expect("writable");
        if modified(&probe) > first {
            break;
        }
    }
    match Command::new("systemd-tmpfiles").arg("--clean").arg(&rules).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        other => {
            let output = other.expect("it starts");
            assert!(output.status.success(), "{output:?}");
            true
        }
    }
}

#[test]
fn what_is_used_is_spared_and_damage_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("tmp");
    fs::create_dir(&place).unwrap();
    // Others' directories are not cleaned into.
    fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
    let cache = TreeCache::new(place.join("situla-7"));
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/text"), "text").unwrap();
    let path = directory.path().join("image.sqsh");
    let options = ConvertOptions::default();
    convert_directory(&tree, Owners::Keep, &path, OutputFormat::Sqsh, &options, &()).unwrap();
    let image = File::open(&path).unwrap();
    let part = (0, image.metadata().unwrap().len());
    let fill = || cache.fill(&image, part, &path, None, 2, &()).unwrap();

    let digest = fill();
    let lease = cache.lease(&digest).unwrap().unwrap();
    let text = lease.path().join("etc/text");
    if !clean(&place, "") {
        let required = std::env::var_os("SITULA_TEST_REQUIRE").is_some_and(|value| value == "1");
        assert!(!required, "there is no systemd-tmpfiles, and here it must be");
        eprintln!("skipped: there is no systemd-tmpfiles here");
        return;
    }
    assert!(text.exists(), "it is used");
    drop(lease);
    let rule = SHIPPED.lines().find(|line| !line.starts_with('#') && !line.is_empty()).unwrap();
    assert!(clean(&place, &rule.replace("/var/tmp", &place.display().to_string())));
    assert!(text.exists(), "the rule that is shipped spares it");
    assert!(clean(&place, ""));
    assert!(!text.exists(), "nothing spares it");
    assert!(cache.lease(&digest).unwrap().is_none());
    assert_eq!(fill(), digest);
    assert!(cache.lease(&digest).unwrap().is_some() && text.exists());
}
