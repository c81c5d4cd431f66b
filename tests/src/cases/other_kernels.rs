//! Linux of other releases, in a virtual machine that sees this machine's files: what a kernel does to a container.

use std::process::Command;
use std::time::Duration;

use super::Desk;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, TestEnv};
use crate::images::WITNESS;
use crate::tier::{Check, Skip};

/// For booting, and for a few starts; without hardware support it is minutes.
const LONGEST: Duration = Duration::from_secs(900);

/// Needs the kernel of a release.
///
/// # Errors
/// It is not there.
pub(super) fn prepared(env: &TestEnv, suite: &str) -> Result<(), Skip> {
    let mut version = Command::new(env.script("other-kernel"));
    version.args(["version", suite]);
    command::run(version, PATIENCE)
        .and_then(Output::success)
        .map(drop)
        .map_err(|_| Skip(format!("needs the kernel of {suite}: scripts/test --full fetches it")))
}

/// What each machine does first: `start NAME WORD...` runs the program as an ordinary user, and `root NAME WORD...` as root;
/// the line that it prints has the name, the status, and what was said.
const PRELUDE: &str = r#"
program=$1 images=$2 tree=$3 shipped=$4
install -m 755 "$program" /usr/local/bin/situla
mkdir -p /tmp/home /tmp/upper && chmod 777 /tmp/home /tmp/upper
chmod 666 /dev/fuse
modprobe -a loop squashfs
say() { echo "$1: $2 $(echo "$3" | tr '\n' ' ')"; }
root() { name=$1; shift; said=$(env HOME=/tmp/home situla exec "$@" 2>&1); say "$name" $? "$said"; }
start() {
  name=$1; shift
  said=$(setpriv --reuid=65534 --regid=65534 --clear-groups env -i HOME=/tmp/home PATH="$PATH" situla exec "$@" 2>&1)
  say "$name" $? "$said"
}
"#;

/// Boots the kernel of a release, runs `script` there after [`PRELUDE`], and gives what it has printed.
fn on_kernel(desk: &Desk, suite: &str, script: &str) -> Result<Output, String> {
    let mut machine = Command::new(desk.env.script("other-kernel"));
    machine
        .args([
            "run",
            "--append",
            "security=apparmor",
            "--timeout",
            &LONGEST.as_secs().to_string(),
            suite,
            "--",
        ])
        .args(["bash", "-c", &format!("{PRELUDE}{script}"), "starts"])
        .arg(desk.env.situla())
        .arg(desk.images.path(""))
        .arg(apptainer_tree())
        .arg(desk.env.file("packaging/apparmor/situla"));
    command::run(machine, LONGEST)?.success()
}

/// The line of a start: its status and what it said.
fn line<'a>(output: &'a Output, name: &str) -> Result<&'a str, String> {
    let line = output.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.map(str::trim).ok_or_else(|| format!("no start {name}\n{output}"))
}

/// Linux 6.12, of Debian 13.
///
/// # Errors
/// A start does not work.
pub fn trixie(desk: &Desk) -> Check {
    starts(desk, "trixie")
}

/// The newest Linux in Debian.
///
/// # Errors
/// A start does not work.
pub fn sid(desk: &Desk) -> Check {
    starts(desk, "sid")
}

/// Each way to have a root, by a user and by the kernel's own mounts for root.
fn starts(desk: &Desk, suite: &str) -> Check {
    let script = r#"
start served "$images/demo.sqsh" cat WITNESS
start sif "$images/demo.sif" cat WITNESS
start extracting --rootfs extract "$images/demo.sqsh" true
start extracted --rootfs extract "$images/demo.sqsh" cat WITNESS
start memory --writable-tmpfs "$images/demo.sqsh" sh -c 'echo x >>WITNESS && tail -1 WITNESS'
start above --overlay /tmp/upper "$images/demo.sqsh" sh -c 'echo y >>WITNESS && tail -1 WITNESS'
start again --overlay /tmp/upper "$images/demo.sqsh" tail -1 WITNESS
start pids --pid "$images/demo.sqsh" sh -c 'cat /proc/1/comm'
start readonly "$images/demo.sqsh" sh -c 'echo z >WITNESS'
root kernel --rootfs kernel "$images/demo.sqsh" cat WITNESS
"#;
    let output = on_kernel(desk, suite, &script.replace("WITNESS", WITNESS))?;
    let content = line(&output, "served")?.to_owned();
    if !content.starts_with("0 ") || content.len() < 3 {
        return Err(format!("the witness is not seen: {content}\n{output}").into());
    }
    for (name, wanted) in [
        ("sif", content.as_str()),
        ("extracted", &content),
        ("kernel", &content),
        ("memory", "0 x"),
        ("above", "0 y"),
        ("again", "0 y"),
        ("pids", "0 situla-init"),
    ] {
        let said = line(&output, name)?;
        if said != wanted {
            return Err(format!("{suite}, {name}: {said}, wanted {wanted}\n{output}").into());
        }
    }
    let said = line(&output, "readonly")?;
    if said.starts_with("0 ") || !said.contains("Read-only file system") {
        return Err(format!("{suite}, readonly: {said}\n{output}").into());
    }
    Ok(())
}

/// A kernel with AppArmor: a profile without the rule for user namespaces keeps a container from starting, and the error
/// names it; under the profile that is shipped one starts.
///
/// The restriction of Ubuntu's own kernels, by which a program *without* a profile may not either, is in no kernel of Debian.
///
/// # Errors
/// It is otherwise.
pub fn apparmor(desk: &Desk) -> Check {
    let script = r#"
mount --rbind /proc "$tree/proc" && mount --rbind /sys "$tree/sys"
load() { cp "$1" "$tree/root/profile" && chroot "$tree" apparmor_parser --replace --skip-cache /root/profile; }
own() { start "$1" "$images/demo.sqsh" cat /proc/self/attr/current; }
own none
sed -e 's/flags=(unconfined) //' -e 's/^  userns,/  deny userns,\n  file,\n  capability,\n  network,\n  unix,\n  signal,\n  ptrace,/' \
  "$shipped" >/tmp/strict
load /tmp/strict; own strict
load "$shipped"; own shipped
"#;
    let output = on_kernel(desk, "sid", script)?;
    for (name, wanted) in [("none", "0 unconfined"), ("shipped", "0 situla (unconfined)")] {
        let said = line(&output, name)?;
        if said != wanted {
            return Err(format!("{name}: {said}, wanted {wanted}\n{output}").into());
        }
    }
    let said = line(&output, "strict")?;
    if !said.starts_with("125 ")
        || !said.contains("make a user namespace")
        || !said.contains("profile situla (enforce)")
    {
        return Err(format!("under a strict profile: {said}\n{output}").into());
    }
    Ok(())
}

/// Where `scripts/apptainer-tree` has its tree, in which AppArmor's parser is.
fn apptainer_tree() -> String {
    let place =
        std::env::var("SITULA_APPTAINER_TREE").unwrap_or_else(|_| "/var/lib/situla-apptainer".to_owned());
    format!("{place}/rootfs")
}
