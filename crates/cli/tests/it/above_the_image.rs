//! The overlay above the mount of an image: what is in the image is seen as it is, and what the kernel need not ask the
//! server it does not.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use crate::installation::{Installation, skip, text};

/// Names and attributes that overlayfs has a meaning for mean nothing in an image; device and inode numbers are as in any
/// file system.
#[test]
fn an_image_means_nothing_to_the_overlay() {
    let mut has_attributes = true;
    let mut set = |path: &Path, name: &str, value: &[u8]| {
        has_attributes &= setxattr(path, name, value, XattrFlags::empty()).is_ok();
    };
    let Some(site) = Installation::with_image_of(|root| {
        for directory in ["etc", "moved", "opaque"] {
            fs::create_dir_all(root.join(directory)).expect("writable");
            fs::write(root.join(directory).join("file"), "read\n").expect("writable");
        }
        fs::write(root.join("removed"), "").expect("writable");
        fs::hard_link(root.join("moved/file"), root.join("linked")).expect("writable");
        set(&root.join("moved"), "user.overlay.redirect", b"/etc");
        set(&root.join("opaque"), "user.overlay.opaque", b"y");
        set(&root.join("removed"), "user.overlay.whiteout", b"y");
        // Anybody may make this one (mknod(2), since Linux 5.8).
        let made = mknodat(CWD, root.join("etc/mark"), FileType::CharacterDevice, Mode::RUSR, 0);
        made.expect("the mark of something removed");
    }) else {
        return;
    };
    if !has_attributes {
        skip("the directory for temporary files takes no extended attributes");
        return;
    }
    let script = "cat /moved/file /opaque/file /linked; busybox stat -c '%n %F' /removed /etc/mark; \
                  busybox ls /etc; busybox stat -c %h /linked; \
                  busybox stat -c %d / /etc /etc/file /moved /moved/file /bin /bin/busybox /removed | busybox sort -u | busybox wc -l; \
                  busybox stat -c %i /etc /moved/file; \
                  busybox awk '$5 == \"/\" { for (i = 7; $i != \"-\"; i++); print $(i + 1), $6 }' /proc/self/mountinfo";
    let look = || {
        let output = site.situla(&["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script]);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let seen = look();
    let lines: Vec<&str> = seen.lines().collect();
    if lines.last().is_some_and(|line| line.starts_with("fuse")) {
        skip("the kernel makes no overlay for a user: Linux before 5.11");
        return;
    }
    let (told, numbers) = lines.split_at(lines.len().saturating_sub(3));
    let expected = [
        "read",
        "read",
        "read",
        "/removed regular empty file",
        "/etc/mark character special file",
        "file",
        "mark",
        "2",
        "1",
    ];
    // What the container shows in /etc beside that is the plan's.
    let told: Vec<&&str> = told
        .iter()
        .filter(|line| !matches!(**line, "group" | "hosts" | "localtime" | "passwd" | "resolv.conf"))
        .collect();
    assert_eq!(told, expected.iter().collect::<Vec<_>>(), "{seen}");
    assert_eq!(numbers.last(), Some(&"overlay ro,nosuid,nodev,relatime"), "{seen}");
    assert_eq!(look(), seen, "another start, the same numbers");
}

/// Where the image is served while the container is built is not for the payload: it may run where its caller may.
#[test]
fn a_payload_may_run_where_its_caller_may() {
    let Some(site) = Installation::with_image() else { return };
    let allowed = |words: &[&str]| {
        let mut command = site.command("situla", words);
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let own = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).expect("there").to_owned();
    let look = ["image.sqsh", "busybox", "grep", "Cpus_allowed_list", "/proc/self/status"];
    for options in [vec!["exec", "--rootfs", "fuse"], vec!["exec", "--rootfs", "fuse", "--pid"]] {
        let words: Vec<&str> = options.iter().copied().chain(look).collect();
        // Several times: who is first differs.
        for _ in 0..10 {
            assert_eq!(allowed(&words).trim(), own, "{options:?}");
        }
    }
}
