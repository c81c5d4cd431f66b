//! What a program inside tries: on our binary, our processes, our descriptors, its mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Desk, Hostile, SECRET, all_refused, python, without, write_as_users};
use crate::command;
use crate::environment::PATIENCE;
use crate::tier::Check;

/// The program belongs to the user, as one that he has installed himself, and its directory is not visible
/// inside. The image makes it run inside (by its command, by a link, by an interpreter line), the payload looks
/// for it at the process that waits, or at the first one of its PID namespace: in no way does it get hold of the file,
/// as root of the container neither.
///
/// # Errors
/// It does.
pub fn own_binary(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "binary")?;
    let program = hostile.host().join("situla");
    let bytes = fs::read(desk.env.situla())?;
    write_as_users(desk, &program, &bytes)?;
    hostile.link("/proc/self/exe", "bin/own")?;
    hostile.link("/proc/thread-self/exe", "bin/other")?;
    hostile.link("own", "bin/twice")?;
    hostile.write("bin/script", "#!/proc/self/exe\n")?;
    hostile.write("bin/nested", "#!/bin/script\n")?;
    hostile.link("script", "bin/linked")?;
    let own = program.display().to_string();
    let run = |words: &[&str]| desk.env.as_user(Path::new("/"), [&[own.as_str()], words].concat());
    hostile.each_kind(|image| {
        let commands =
            ["/proc/self/exe", "/proc/thread-self/exe", "own", "/bin/own", "other", "twice", "script", "linked", "nested"];
        let ways = [&[][..], &["--root"], &["--pid"], &["--root", "--pid"]];
        for options in ways {
            for command in commands {
                let words = [&["exec", "--no-home"], options, &[image, command, "--version"]].concat();
                let ran = run(&words)?.expect_code(126).map_err(|e| format!("{options:?} {command}: {e}"))?;
                without(ran, "situla 0")?;
            }
        }
        let script = "p=/proc/$PPID; grep -q ^situla $p/comm || echo done: it is not there; \
             for f in exe cwd root; do if readlink $p/$f 2>/dev/null; then echo done: $p/$f; else echo refused: $f; fi; done; \
             if (: <$p/exe) 2>/dev/null; then echo done: $p/exe; else echo refused: read; fi; \
             if (: >>$p/exe) 2>/dev/null; then echo done: $p/exe; else echo refused: write; fi";
        for options in ways {
            let words = [&["exec", "--no-home", "--record"], options, &[image, "sh", "-c", script]].concat();
            all_refused(run(&words)?, 5).map_err(|e| super::story(&options.join(" "), &e))?;
        }
        Ok(())
    })?;
    if fs::read(&program)? != bytes {
        return Err("the program was changed".into());
    }
    Ok(())
}

/// A working directory behind a descriptor: one that the image names (as the configuration of an OCI image can),
/// and one that the user names. It is refused where it leads through `/proc` to a descriptor of the host's.
///
/// # Errors
/// The payload stands in a directory of the host.
pub fn working_directory(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "cwd")?;
    hostile.link("/proc/self/fd/9", "tmp/link")?;
    let host = hostile.host().display().to_string();
    for directory in
        ["/proc/self/fd/9", "/proc/self/fd/9/inner/..", "/tmp/link", "/proc/self/cwd/proc/self/fd/9"]
    {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"WorkingDir": directory}
        });
        hostile.write(".situla/config.json", &config.to_string())?;
        hostile.each_kind(|image| {
            // As the plugin starts it: the descriptor is one that slurmstepd might have left open.
            let task = format!(
                "exec 9<{host}; SITULA_TASK_PROGRAM=sh SITULA_TASK_IMAGE={image} exec situla -c 'cat secret ../secret; ls -l /proc/self/fd/9'"
            );
            let ran = desk.env.as_user(Path::new("/"), ["bash", "-c", &task])?;
            let ran = without(without(ran, SECRET)?, &host)?;
            if ran.timed_out {
                return Err(ran.to_string().into());
            }
            let user = format!("exec 9<{host}; exec situla exec --no-home --pwd {directory} {image} cat secret");
            without(desk.env.as_user(Path::new("/"), ["bash", "-c", &user])?.expect_code(125)?, SECRET)?;
            Ok(())
        })
        .map_err(|e| super::story(directory, &e))?;
        // Every descriptor that we could have: none of them is a directory to stand in.
        let every = format!(
            "i=3; while [ $i -lt 64 ]; do situla exec --no-home --pwd /proc/self/fd/$i {} true && echo done: $i; i=$((i+1)); done; echo tried $i",
            hostile.path("").display()
        );
        let ran = desk.env.as_user(Path::new("/"), ["sh", "-c", &every])?.expect_text("tried 64")?;
        without(ran, "done:")?;
    }
    hostile.untouched()
}

/// Lists what a shell has open beyond the three that everybody has.
const OPEN: &str = "for f in /proc/$$/fd/*; do case $f in */fd/[0-2]) ;; *) [ -e $f ] && echo fd ${f##*/} $(readlink $f);; esac; done; true";

/// What a payload has: of descriptors the three that everybody has
/// and those that are named, of variables none that the plugin and the
/// trampoline talk through; privileges none.
///
/// # Errors
/// It has more.
pub fn descriptors_and_variables(desk: &Desk) -> Check {
    let hostile = Hostile::new(desk, "have")?;
    let host = hostile.host().display().to_string();
    // What whoever started the tests has left open for everybody.
    let passed_on = desk.env.as_user(Path::new("/"), ["sh", "-c", OPEN])?.success()?.stdout;
    hostile.each_kind(|image| {
        let script = &format!("{OPEN}; env | grep -i SITULA_TASK; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status; echo end");
        let task = format!(
            "exec 9<{host} 10<>/dev/fuse 11>{host}/secret.new; rm {host}/secret.new; \
             SITULA_TASK_PROGRAM=sh SITULA_TASK_IMAGE={image} exec situla -c \"$0\""
        );
        let ran = desk.env.as_user(Path::new("/"), ["bash", "-c", &task, script])?.success()?;
        let expected = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
             CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nend\n";
        if ran.stdout != expected {
            return Err(format!("it has more, or less\n{ran}").into());
        }
        // Without Slurm the user's descriptors are passed on; ours are not.
        let ran = hostile.shell(image, &[], script)?.success()?;
        if ran.stdout != format!("{passed_on}{expected}") {
            return Err(format!("it has more, or less\n{ran}").into());
        }
        in_a_step(desk, image, &host, expected)
    })?;
    hostile.untouched()
}

/// Whoever starts a container has capabilities that he passes on by exec, inheritable and ambient ones. The payload has
/// none of them: in a container of its own, in a PID namespace, as one that enters an instance, nor as root of it on the
/// host.
///
/// # Errors
/// It has.
pub fn inherited_capabilities(desk: &Desk) -> Check {
    const GIVEN: &str = "+dac_override,+sys_admin,+setuid";
    let hostile = Hostile::new(desk, "inherited")?;
    let roots = hostile.host().join("secret");
    std::os::unix::fs::chown(&roots, Some(0), Some(0))?;
    fs::set_permissions(&roots, fs::Permissions::from_mode(0o600))?;
    let (inheritable, ambient) = (format!("--inh-caps={GIVEN}"), format!("--ambient-caps={GIVEN}"));
    let user = desk.env.user().to_owned();
    let run = |words: &[&str]| {
        // What as-user does, but for the capabilities.
        let script = "mount -t tmpfs -o mode=755,size=64k tmpfs /mnt && mknod -m 666 /mnt/fuse c 10 229 && \
                      mount --bind /mnt/fuse /dev/fuse && umount -l /mnt && exec setpriv \"$@\"";
        let outer = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"];
        let owner = [
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--init-groups",
            &inheritable,
            &ambient,
            "--",
        ];
        let mut command = command::words(outer.iter().chain(&owner).chain(words));
        command.current_dir("/").env_clear().env("PATH", desk.env.search_path());
        command.env("HOME", desk.env.home()?).env("USER", &user);
        command::run(command, PATIENCE)
    };
    let read = format!("cat {} 2>/dev/null && echo done: read || echo refused: read", roots.display());
    let given = run(&["sh", "-c", &format!("grep -c 'Cap[IPEA].*:.*200082' /proc/self/status; {read}")])?
        .success()?;
    if given.stdout != format!("4\n{SECRET}\ndone: read\n") {
        return Err(format!("nothing was passed on\n{given}").into());
    }
    let bind = hostile.host().display().to_string();
    let script = format!("grep -E '^Cap(Inh|Prm|Eff|Amb):.0*$' /proc/self/status | wc -l; {read}");
    hostile.each_kind(|image| {
        for options in [&[][..], &["--record"], &["--pid"], &["--root"]] {
            let start = ["situla", "exec", "--no-home", "--bind", &bind];
            let ran = run(&[&start, options, &[image, "sh", "-c", &script]].concat())?.success()?;
            // Root of a container has all over it, and none over what is the host's.
            let none = if options == ["--root"] { "" } else { "4\n" };
            if !ran.stdout.starts_with(none) || !ran.stdout.ends_with("refused: read\n") {
                return Err(format!("{options:?}\n{ran}").into());
            }
        }
        run(&["situla", "instance", "start", "--no-home", "--bind", &bind, image, "inherited"])?.success()?;
        let entered = run(&["situla", "instance", "exec", "inherited", "sh", "-c", &script]);
        run(&["situla", "instance", "stop", "inherited"])?.success()?;
        let entered = entered?.success()?;
        if entered.stdout != "4\nrefused: read\n" {
            return Err(format!("in an instance\n{entered}").into());
        }
        Ok(())
    })?;
    hostile.untouched()
}

/// Under either command line a payload in a step has what is named of that which whoever started it had open.
fn in_a_step(desk: &Desk, image: &str, host: &str, expected: &str) -> Check {
    let variables = super::tenants::step_variables(super::tenants::job(), 0, 1).join(" ");
    let own = format!("{OPEN}; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status; echo end");
    let wanted = desk.env.image_tree("tiny").join("bin").display().to_string();
    for (options, named, kept) in [
        ("", "nothing", &[][..]),
        ("--keep-fd 6", "nothing", &["6"][..]),
        ("", "--in=/dev/fd/6", &["6"]),
        ("--keep-fd 6", "/proc/self/fd/7", &["6", "7"]),
    ] {
        for program in ["situla", "apptainer"] {
            // The descriptors of a host's directory are what slurmstepd might have left open.
            let script = format!(
                "exec 9<{host} 8<>/dev/fuse 7<{wanted} 6<{wanted}; \
                 exec env {variables} {program} exec --no-home {options} {image} sh -c \"$0\" sh {named}"
            );
            let ran = desk.env.as_user(Path::new("/"), ["bash", "-c", &script, &own])?.success()?;
            let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix("fd "));
            let open: Vec<&str> = lines.filter_map(|line| line.split(' ').next()).collect();
            if open != kept || !ran.stdout.ends_with(expected) {
                return Err(format!("{program} {options}, {named}: it has more, or less\n{ran}").into());
            }
        }
    }
    let closed = format!("exec env {variables} situla exec --keep-fd 44 {image} true");
    desk.env
        .as_user(Path::new("/"), ["bash", "-c", &closed])?
        .expect_code(125)?
        .expect_text("descriptor 44")?;
    Ok(())
}

/// The tries of [`PROCESSES`] on a process, and on the mounts.
const TRIES_ON_A_PROCESS: usize = 19;
const TRIES_ON_MOUNTS: usize = 14;

/// Tries what `ptrace(2)`, `/proc` and `mount(2)` offer on the processes around the payload and on its mounts, as
/// it is and in a further user namespace in which it has every capability.
const PROCESSES: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def sys_(nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(nr), *args)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
def attempt(what, how):
    try:
        how()
        print("done:", what)
    except OSError as e:
        print("refused:", what, e.strerror)
    sys.stdout.flush()
def opened(path, flags=os.O_RDONLY):
    return lambda: os.close(os.open(path, flags))
def write(path, text):
    def how():
        fd = os.open(path, os.O_WRONLY)
        try: os.write(fd, text)
        finally: os.close(fd)
    return how
def read_mem(path):
    # Opening may be let pass; reading is what counts.
    def how():
        with open(path, "rb") as f:
            if not f.read(64): raise OSError(1, "empty")
    return how
def on_process(pid):
    p = "/proc/%d/" % pid
    pidfd = lambda: sys_(434, pid, 0)
    class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(8)
    local, remote = iovec(ctypes.cast(buffer, ctypes.c_void_p), 8), iovec(0x400000, 8)
    for name in ["exe", "cwd", "root"]: attempt(name, lambda: os.readlink(p + name))
    attempt("exe write", opened(p + "exe", os.O_WRONLY))
    attempt("exe read", opened(p + "exe"))
    # Their numbers may be listed by the same user; what they are may not be seen, nor opened.
    attempt("fd", lambda: [os.readlink(p + "fd/" + fd) for fd in ["0", "1", "2"]])
    attempt("fd open", opened(p + "fd/0"))
    attempt("root list", lambda: os.listdir(p + "root/"))
    attempt("environ", read_mem(p + "environ"))
    attempt("mem", opened(p + "mem", os.O_RDWR))
    attempt("maps", read_mem(p + "maps"))
    attempt("ns", lambda: os.readlink(p + "ns/mnt"))
    attempt("setns", lambda: sys_(308, os.open(p + "ns/mnt", os.O_RDONLY), 0))
    attempt("setns pidfd", lambda: sys_(308, pidfd(), 0x10020000))
    attempt("attach", lambda: sys_(101, 16, pid, 0, 0))
    attempt("seize", lambda: sys_(101, 0x4206, pid, 0, 0))
    attempt("process_vm_readv", lambda: sys_(310, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    attempt("process_vm_writev", lambda: sys_(311, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    attempt("pidfd_getfd", lambda: sys_(438, pidfd(), 3, 0))
class mount_attr(ctypes.Structure):
    _fields_ = [("set", ctypes.c_uint64), ("clr", ctypes.c_uint64), ("prop", ctypes.c_uint64), ("ns", ctypes.c_uint64)]
def cleared(path, bits):
    attr = mount_attr(0, bits, 0, 0)
    return lambda: sys_(442, -100, path, 0, ctypes.byref(attr), ctypes.sizeof(attr))
def on_mounts():
    attempt("write", opened(b"/usr/new", os.O_WRONLY | os.O_CREAT))
    attempt("chmod", lambda: os.chmod("/usr", 0o777))
    attempt("umount /", lambda: sys_(166, b"/", 0))
    attempt("umount -l /", lambda: sys_(166, b"/", 2))
    attempt("umount -l /proc", lambda: sys_(166, b"/proc", 2))
    attempt("umount -l /dev", lambda: sys_(166, b"/dev", 2))
    attempt("remount rw", lambda: sys_(165, None, b"/", None, 32, None))
    attempt("bind remount rw", lambda: sys_(165, None, b"/", None, 32 | 4096, None))
    attempt("clear ro", cleared(b"/", 1))
    attempt("clear nosuid", cleared(b"/", 2))
    attempt("clear nodev", cleared(b"/proc", 4))
    attempt("core_pattern", write("/proc/sys/kernel/core_pattern", b"|/evil"))
    attempt("sysrq", write("/proc/sysrq-trigger", b""))
    attempt("attr", write("/proc/1/attr/current", b"x"))
waits = os.getppid()
def is_keeper(pid):
    try: status = open("/proc/%s/status" % pid).read()
    except OSError: return False
    return "Name:\tsitula-keeper" in status and "\nPPid:\t%d\n" % waits in status
keepers = [int(p) for p in os.listdir("/proc") if p.isdigit() and is_keeper(p)]
print("keepers", len(keepers))
def everything():
    for pid in [waits] + keepers: on_process(pid)
    on_mounts()
everything()
uid, gid = os.getuid(), os.getgid()
sys_(272, 0x10020000)
for name, text in [("setgroups", "deny"), ("uid_map", "0 %d 1" % uid), ("gid_map", "0 %d 1" % gid)]:
    with open("/proc/self/" + name, "w") as f: f.write(text)
print("nested", "CapEff:\t000001ffffffffff" in open("/proc/self/status").read())
everything()
"#;

/// The payload against the process that waits for it, the keeper that serves it, and its own mounts.
///
/// # Errors
/// One of them is open to it.
pub fn processes_and_mounts(desk: &Desk) -> Check {
    let ran = python(desk, &[], PROCESSES)?.expect_text("keepers 1")?.expect_text("nested True")?;
    all_refused(ran, 2 * (2 * TRIES_ON_A_PROCESS + TRIES_ON_MOUNTS))?;
    // A directory has no keeper.
    let tree = desk.env.image_tree("demo").display().to_string();
    let words = ["situla", "exec", "--no-home", &tree, "python3", "-c", PROCESSES];
    // Without a record nobody waits: the payload's parent is then the test itself.
    let recorded = [&words[..2], &["--record"], &words[2..]].concat();
    let ran = desk.env.as_user(Path::new("/"), recorded)?.expect_text("keepers 0")?;
    all_refused(ran.expect_text("nested True")?, 2 * (TRIES_ON_A_PROCESS + TRIES_ON_MOUNTS))
}

/// Tries to make control groups, to move into others and to have a program run by the kernel when one is empty,
/// where they are mounted and where root of the container can mount them.
const CONTROL_GROUPS: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
tries = 0
def attempt(what, how):
    global tries
    tries += 1
    try:
        how()
        print("done:", what)
    except OSError as e:
        print("refused:", what, e.strerror)
def mount(*arguments):
    if libc.mount(*arguments) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
top = "/sys/fs/cgroup"
own = [line.rstrip("\n").split(":", 2)[1:] for line in open("/proc/self/cgroup")]
places = {top} | {d.path for d in os.scandir(top) if d.is_dir()}
places |= {os.path.join(top, controllers.replace("name=", ""), path.lstrip("/")) for controllers, path in own}
for place in sorted(place for place in places if os.path.isdir(place)):
    attempt("mkdir " + place, lambda: os.mkdir(place + "/made"))
    for name in ["cgroup.procs", "release_agent", "notify_on_release", "memory.max", "cgroup.kill"]:
        attempt(place + "/" + name, lambda: os.close(os.open(place + "/" + name, os.O_WRONLY)))
def anew():
    mount(b"none", b"/mnt", b"cgroup2", ctypes.c_ulong(0), None)
    os.mkdir("/mnt/made")
attempt("a mount of its own", anew)
print("tries", tries)
"#;

/// The payload against the control groups of the host, as it is, as root of the container, and with a view of its own.
///
/// # Errors
/// It can change one that is not the user's.
pub fn control_groups(desk: &Desk) -> Check {
    for options in
        [&[][..], &["--root"], &["--cgroupns", "private"], &["--root", "--cgroupns", "private", "--pid"]]
    {
        let ran = python(desk, options, CONTROL_GROUPS)?.success()?;
        let tries = ran.stdout.lines().find_map(|line| line.strip_prefix("tries ")?.parse().ok());
        all_refused(ran, tries.filter(|tries| *tries > 6).ok_or("nothing was tried")?)
            .map_err(|e| super::story(&options.join(" "), &e))?;
    }
    Ok(())
}
