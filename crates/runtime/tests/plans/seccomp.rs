//! Filters of system calls, as the payload feels them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;

use serde_json::{Value, json};

use crate::bench::{Bench, Kind, skip, text};

fn filter(plan: &mut Value, default: &str, rules: &Value) {
    plan["spec"]["linux"]["seccomp"] = json!({"defaultAction": default, "syscalls": rules});
}

#[test]
fn refused_calls_fail_and_deadly_ones_kill() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        for pid in [false, true] {
            let run = |script: &str, rules: Value| {
                bench.run(kind, script, |plan| {
                    filter(plan, "SCMP_ACT_ALLOW", &rules);
                    plan["spec"]["process"]["noNewPrivileges"] = json!(false);
                    let tmp =
                        json!({"destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": []});
                    plan["spec"]["mounts"].as_array_mut().unwrap().push(tmp);
                    if pid {
                        let namespaces = plan["spec"]["linux"]["namespaces"].as_array_mut().unwrap();
                        namespaces.push(json!({"type": "pid"}));
                    }
                })
            };
            let refuse = json!([
                {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["unlink", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
            ]);
            let script =
                "busybox mkdir /tmp/x; : > /tmp/f; busybox rm /tmp/f; busybox cat /proc/self/status; exit 3";
            let output = run(script, refuse.clone());
            let (out, err) = text(&output);
            assert_eq!(output.status.code(), Some(3), "{kind:?}: {out}{err}");
            assert!(err.contains("/tmp/x': Operation not permitted"), "{kind:?}: {err}");
            assert!(err.contains("/tmp/f': No space left on device"), "{kind:?}: {err}");
            assert!(out.contains("Seccomp:\t2") && out.contains("NoNewPrivs:\t1"), "{kind:?}: {out}");
            // What a shell starts is filtered as the shell is. SIGSYS is 31.
            let (out, err) = text(&run("busybox sync; echo $?", refuse.clone()));
            assert!(out.contains("159\n"), "{kind:?}: {out}{err}");
            let output = run("exec busybox sync", refuse);
            assert_eq!(output.status.signal(), Some(31), "{kind:?} {}", text(&output).1);
            // Conditions on one argument: any of them.
            let rules = json!([{
                "names": ["kill"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]
            }]);
            let script = "for s in USR1 USR2; do busybox kill -$s $$ 2>/dev/null || echo refused; done; busybox kill -HUP $$";
            let output = run(script, rules);
            assert_eq!(
                (text(&output).0.as_str(), output.status.signal()),
                ("refused\nrefused\n", Some(1)),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn nothing_of_ours_needs_what_the_filter_forbids() {
    let Some(bench) = Bench::prepare() else { return };
    // What a static shell needs to say something. None of it opens or looks for a file.
    let allowed = json!([{
        "names": [
            "execve", "exit", "exit_group", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq",
            "mprotect", "prlimit64", "readlink", "readlinkat", "getrandom", "getuid", "getgid", "geteuid",
            "getegid", "getpid", "getppid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "ioctl", "write",
            "writev", "uname", "newfstatat", "stat", "fstat", "getcwd", "mmap", "munmap", "prctl", "fcntl",
            // BusyBox gives up what it could have been given by a set-uid bit.
            "setgid", "setuid"
        ],
        "action": "SCMP_ACT_ALLOW"
    }]);
    // Those of this name cannot be executed, for anybody.
    let file = |path: &str| json!({"path": path, "kind": "file", "content": "text", "mode": 0o644, "reason": "test"});
    let patches = json!([file("/etc/first/sh"), file("/etc/second/sh")]);
    for kind in [Kind::Directory, Kind::Image] {
        for args in [json!(["/bin/sh", "-c", "echo fine"]), json!(["sh", "-c", "echo fine"])] {
            let output = bench.run(kind, "", |plan| {
                filter(plan, "SCMP_ACT_KILL_PROCESS", &allowed);
                plan["rootfs"]["patches"] = patches.clone();
                plan["spec"]["process"]["args"] = args.clone();
                plan["spec"]["process"]["env"] =
                    json!(["PATH=/no/such:/etc/first:/etc/second:/no/such/either:/bin"]);
            });
            assert_eq!(text(&output).0, "fine\n", "{kind:?}: {} {}", output.status, text(&output).1);
        }
        // A filter that forbids exec says so as any other program that cannot be executed.
        let output = bench.run(kind, "exit 0", |plan| {
            filter(plan, "SCMP_ACT_ALLOW", &json!([{"names": ["execve"], "action": "SCMP_ACT_ERRNO"}]));
        });
        assert!(text(&output).1.starts_with("error: CommandNotExecutable: "), "{}", text(&output).1);
        // One that cannot be made is refused before anything is.
        let output = bench.run(kind, "exit 0", |plan| {
            filter(
                plan,
                "SCMP_ACT_ALLOW",
                &json!([{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 5}]),
            );
        });
        assert!(text(&output).1.contains("has no errno"), "{}", text(&output).1);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bits_are_no_way_around() {
    let Some(bench) = Bench::prepare() else { return };
    // mov eax, CALL; int 0x80; mov edi, 7; mov eax, 60 (exit); syscall
    let code = |call: u8| {
        [&[0xb8, call, 0, 0, 0, 0xcd, 0x80, 0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 5][..]].concat()
    };
    // getpid is 20 on 32 bits, exit is 1.
    for (name, call) in [("getpid32", 20), ("exit32", 1)] {
        let path = bench.path("root").join(name);
        fs::write(&path, program(&code(call))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run = |program: &str, change: &dyn Fn(&mut Value)| {
        let output = bench.run(Kind::Directory, "", |plan| {
            plan["spec"]["process"]["args"] = json!([program]);
            change(plan);
        });
        (output.status.code(), output.status.signal())
    };
    if run("/getpid32", &|_| {}) != (Some(7), None) {
        // Where calls are refused to all tests, by a filter that knows 64 bits only, there is nothing to see.
        if std::env::var_os("REFUSE").is_none() {
            skip("needs a kernel with calls of 32 bits");
        }
        return;
    }
    let refuse = json!([{"names": ["getpid"], "action": "SCMP_ACT_KILL_PROCESS"}]);
    let listed = |architectures: &'static [&'static str]| {
        let refuse = refuse.clone();
        move |plan: &mut Value| {
            filter(plan, "SCMP_ACT_ALLOW", &refuse);
            plan["spec"]["linux"]["seccomp"]["architectures"] = json!(architectures);
        }
    };
    for (program, architectures, ends) in [
        ("/getpid32", &[][..], (None, Some(31))),
        ("/exit32", &[], (None, Some(31))),
        ("/exit32", &["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], (None, Some(31))),
        ("/exit32", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], (Some(0), None)),
        ("/getpid32", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], (None, Some(31))),
    ] {
        assert_eq!(run(program, &listed(architectures)), ends, "{program} {architectures:?}");
    }
}

/// A program of 64 bits that is nothing but `code`: elf(5).
#[cfg(target_arch = "x86_64")]
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    // Entry, program headers, no sections.
    for word in [BASE + 120, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    let length = 120 + u64::try_from(code.len()).unwrap();
    for word in [0, BASE, BASE, length, length, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
