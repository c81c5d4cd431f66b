//! A child of slurmstepd that runs a program as the job's owner, for a bounded time, and is waited for as long as
//! slurmstepd can be held up. Where it takes longer it goes on by itself, in the cgroup that slurmstepd is in. A process of
//! root's stays with it, which its owner cannot touch, and kills it when its time is over, however it has been stopped.
//!
//! The standard library cannot do it: its `spawn` waits until the program is executed, and that takes as
//! long as the file system of the program lets it; a child that cannot be killed would be waited for.
//! slurmstepd has threads, so between fork and exec there are async-signal-safe calls alone.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn poll(files: *mut c_void, count: c_ulong, milliseconds: c_int) -> c_int;
    fn setpgid(pid: c_int, group: c_int) -> c_int;
    fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    fn setgid(gid: c_uint) -> c_int;
    fn setuid(uid: c_uint) -> c_int;
    fn geteuid() -> c_uint;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, length: usize) -> isize;
    fn chdir(path: *const c_char) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, found: *mut c_void) -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// `sigset_t` of the C library: 1024 bits on every architecture of Linux.
type SignalSet = [c_ulong; 1024 / c_ulong::BITS as usize];

/// `SIG_SETMASK`, `SIGKILL`, `WNOHANG`, `O_RDWR` (on all architectures that Slurm is built for).
const SET_MASK: c_int = 2;
const SIGKILL: c_int = 9;
const NO_HANG: c_int = 1;
const READ_WRITE: c_int = 2;

/// What a child ends with that could not become the program, as in shells.
const CANNOT_EXECUTE: c_int = 127;

/// How often to look whether it has ended.
const MOMENT: Duration = Duration::from_millis(2);

/// The same for the process that stays with it.
const LONGER_MS: c_int = 5;

/// A program and who runs it.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The program's path, which is its first argument as well.
    pub(crate) program: &'a CStr,
    /// Its other argument.
    pub(crate) argument: &'a CStr,
    /// All of its environment, as `NAME=VALUE`.
    pub(crate) environment: &'a [CString],
    /// Whose ids it has.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its supplementary groups.
    pub(crate) groups: &'a [u32],
    /// After so many seconds it ends at the latest, whether somebody waits for it or not.
    pub(crate) limit: u32,
}

/// How a program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed,
    /// Somebody else has waited for it, so that nobody knows.
    Unknown,
    /// Not yet.
    Running,
}

/// Runs a program, without standard streams and in a process group of its own, and tells how it has ended, if it has
/// within `patience`.
///
/// # Errors
/// There can be no child.
pub(crate) fn run(job: &Job<'_>, patience: Duration) -> io::Result<End> {
    let argv = [job.program.as_ptr(), job.argument.as_ptr(), std::ptr::null()];
    let env: Vec<*const c_char> =
        job.environment.iter().map(|entry| entry.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: the child makes async-signal-safe calls alone and never returns from `stay_with`.
    let pid = unsafe { fork() };
    match pid {
        0 => stay_with(job, &argv, &env),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Ok(wait(pid, patience)),
    }
}

/// Waits for a child as long as `patience` says.
fn wait(pid: c_int, patience: Duration) -> End {
    let begun = Instant::now();
    loop {
        let mut status: c_int = 0;
        // SAFETY: takes the address of an int that lives until the call returns.
        match unsafe { waitpid(pid, &raw mut status, NO_HANG) } {
            0 => {}
            // Exited, as `WIFEXITED` and `WEXITSTATUS` say.
            ended if ended == pid && status & 0x7f == 0 => return End::Exited((status >> 8) & 0xff),
            ended if ended == pid => return End::Killed,
            _ => return End::Unknown,
        }
        if begun.elapsed() >= patience {
            return End::Running;
        }
        std::thread::sleep(MOMENT);
    }
}

/// The child's part: it starts the program as a child of its own, ends as that ends, and kills it when its time is over.
fn stay_with(job: &Job<'_>, argv: &[*const c_char], env: &[*const c_char]) -> ! {
    // SIGTERM and what else slurmd may send to its own is not for this process: no signal is.
    let all: SignalSet = [c_ulong::MAX; _];
    // SAFETY: the set lives until the call returns; the old one is not asked for.
    unsafe { sigprocmask(SET_MASK, &raw const all, std::ptr::null_mut()) };
    stand_down();
    // SAFETY: the child makes async-signal-safe calls alone and never returns from `become_program`.
    let pid = unsafe { fork() };
    if pid == 0 {
        become_program(job, argv, env);
    }
    // Whoever reads what slurmstepd or its tasks write shall not wait for this process.
    release_streams();
    release_others();
    let begun = Instant::now();
    let mut status: c_int = 0;
    let mut is_late = false;
    if pid < 0 {
        // SAFETY: ends this process, without handlers that belong to its parent.
        unsafe { _exit(CANNOT_EXECUTE) }
    }
    loop {
        // SAFETY: takes the address of an int that lives until the call returns.
        match unsafe { waitpid(pid, &raw mut status, NO_HANG) } {
            0 => {}
            // As WIFEXITED says.
            // SAFETY: ends this process, without handlers that belong to its parent.
            ended if ended == pid && status & 0x7f == 0 => unsafe { _exit((status >> 8) & 0xff) },
            _ => break,
        }
        if begun.elapsed() > Duration::from_secs(job.limit.into()) {
            if is_late {
                // One that cannot even be killed is not waited for.
                break;
            }
            is_late = true;
            for target in [-pid, pid] {
                // SAFETY: takes numbers alone. The child is not waited for, so its id is nobody else's.
                unsafe { kill(target, SIGKILL) };
            }
        }
        // SAFETY: there is no file to look at; it sleeps.
        unsafe { poll(std::ptr::null_mut(), 0, LONGER_MS) };
    }
    // SAFETY: takes numbers alone.
    unsafe { kill(std::process::id().cast_signed(), SIGKILL) };
    // SAFETY: as above; nobody comes here.
    unsafe { _exit(CANNOT_EXECUTE) }
}

/// The program's part.
fn become_program(job: &Job<'_>, argv: &[*const c_char], env: &[*const c_char]) -> ! {
    // With PR_SET_PDEATHSIG it does not outlive the process that would end it in time. Taking other ids cancels that.
    // SAFETY: takes numbers alone.
    if prepare(job).is_some() && unsafe { prctl(1, 9 as c_ulong) } == 0 && !is_anybodys(job.program) {
        // SAFETY: all strings are terminated, both arrays end with null.
        unsafe { execve(job.program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    }
    // SAFETY: ends this process, without handlers that belong to its parent.
    unsafe { _exit(CANNOT_EXECUTE) }
}

/// Whether everybody may write to a program, so that anybody's could run here. Nobody waits here for a file system that does not
/// answer but this process itself.
fn is_anybodys(program: &CStr) -> bool {
    // `struct statx` has 256 bytes on every architecture, and 28 before `stx_mode`.
    let mut found = [0u16; 128];
    // SAFETY: the path is terminated, and what is found has the size of the structure. From `AT_FDCWD`, for `STATX_MODE`.
    let result = unsafe { statx(-100, program.as_ptr(), 0, 2, found.as_mut_ptr().cast()) };
    result != 0 || found[14] & 0o002 != 0
}

/// Gives up all that is slurmstepd's, root's ids last. `None` where that fails.
fn prepare(job: &Job<'_>) -> Option<()> {
    let done = |result: c_int| (result == 0).then_some(());
    // SAFETY: takes numbers alone.
    done(unsafe { setpgid(0, 0) })?;
    release_streams()?;
    close_others_on_exec();
    // SAFETY: the path is terminated.
    done(unsafe { chdir(c"/".as_ptr()) })?;
    let none: SignalSet = [0; _];
    // SAFETY: the set lives until the call returns; the old one is not asked for.
    done(unsafe { sigprocmask(SET_MASK, &raw const none, std::ptr::null_mut()) })?;
    // SAFETY: takes nothing.
    if unsafe { geteuid() } != 0 {
        // slurmd may be an ordinary user's, whose jobs are all his own. Ids that are not his cannot be had.
        // SAFETY: takes a number.
        return done(unsafe { setuid(job.uid) });
    }
    // SAFETY: the array is as long as said.
    done(unsafe { setgroups(job.groups.len(), job.groups.as_ptr()) })?;
    // SAFETY: takes a number.
    done(unsafe { setgid(job.gid) })?;
    // SAFETY: takes a number.
    done(unsafe { setuid(job.uid) })
}

/// Has the standard streams lead nowhere. `None` where that fails.
fn release_streams() -> Option<()> {
    // SAFETY: the path is terminated.
    let null = unsafe { open(c"/dev/null".as_ptr(), READ_WRITE) };
    for stream in 0..=2 {
        // SAFETY: takes numbers alone.
        (unsafe { dup2(null, stream) } == stream).then_some(())?;
    }
    Some(())
}

/// Closes all descriptors but the standard streams. Async-signal-safe.
fn release_others() {
    // SAFETY: takes numbers alone; nothing of this process uses any of them.
    if unsafe { syscall(CLOSE_RANGE, 3 as c_uint, c_uint::MAX, 0 as c_uint) } == 0 {
        return;
    }
    for fd in 3..MOST {
        // SAFETY: as above.
        unsafe { close(fd) };
    }
}

/// `SYS_close_range`, on all architectures; not every C library has the function. It is there since Linux 5.9.
const CLOSE_RANGE: c_long = 436;
/// slurmd's own limit of open files is far above what a slurmstepd opens.
const MOST: c_int = 4096;

/// Lets the kernel kill this process and the program when memory is short: slurmstepd is exempt from that.
fn stand_down() {
    // SAFETY: the path is terminated.
    let file = unsafe { open(c"/proc/self/oom_score_adj".as_ptr(), READ_WRITE) };
    // It is closed with the others. Where there is none there is nothing to give up.
    // SAFETY: one byte of a static string.
    unsafe { write(file, c"0".as_ptr().cast(), 1) };
}

/// Has all descriptors but the standard streams closed by exec(2): slurmstepd's own are not for users.
/// Async-signal-safe.
fn close_others_on_exec() {
    /// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`.
    const CLOSE_ON_EXEC: c_uint = 4;
    /// `F_SETFD` and `FD_CLOEXEC` of `fcntl.h`.
    const SET_FLAGS: c_int = 2;
    const FLAG: c_int = 1;
    // SAFETY: takes numbers alone, and closes nothing yet.
    if unsafe { syscall(CLOSE_RANGE, 3 as c_uint, c_uint::MAX, CLOSE_ON_EXEC) } == 0 {
        return;
    }
    // Before Linux 5.11.
    for fd in 3..MOST {
        // SAFETY: sets a flag of a descriptor, or fails where there is none.
        unsafe { fcntl(fd, SET_FLAGS, FLAG) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: u32 = 4242;

    fn ran(program: &CStr, argument: &CStr, patience: Duration) -> End {
        ran_within(program, argument, patience, 600)
    }

    fn ran_within(program: &CStr, argument: &CStr, patience: Duration, limit: u32) -> End {
        // SAFETY: takes nothing.
        let uid = unsafe { geteuid() };
        let environment = [c"STATUS=7".to_owned(), c"PATH=/usr/bin:/bin".to_owned()];
        let groups = [GROUP, GROUP + 1];
        let environment = &environment;
        run(&Job { program, argument, environment, uid, gid: uid, groups: &groups, limit }, patience).unwrap()
    }

    #[test]
    fn a_program_runs_with_its_own_environment_and_without_what_is_open() {
        let dir = std::env::temp_dir().join(format!("situla-child-{}", std::process::id()));
        let script = CString::new(dir.to_str().unwrap()).unwrap();
        let open = std::fs::File::open("/dev/zero").unwrap();
        // slurmstepd has another one than a program is to have; any process may raise its own.
        std::fs::write("/proc/self/oom_score_adj", "300").unwrap();
        std::fs::write(
            &dir,
            "[ \"$(pwd)\" = / ] || exit 1\n[ \"$(ls /proc/$$/fd | wc -l)\" -le 5 ] || exit 2\n\
             [ \"$(readlink /proc/$$/fd/1)\" = /dev/null ] || exit 3\n\
             [ \"$(cat /proc/$$/oom_score_adj /proc/$PPID/oom_score_adj | tr -d '\\n')\" = 00 ] || exit 4\n\
             [ \"$(cut -d' ' -f5 /proc/$$/stat)\" = $$ ] || exit 5\n\
             [ \"$(id -u)\" != 0 ] || [ \"$(id -G)\" = '0 4242 4243' ] || exit 6\nexit $STATUS\n",
        )
        .unwrap();
        let status = ran(c"/bin/sh", &script, Duration::from_secs(60));
        std::fs::remove_file(&dir).unwrap();
        drop(open);
        assert_eq!(status, End::Exited(7));
    }

    #[test]
    fn what_cannot_be_executed_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let long = Duration::from_secs(60);
        let program = std::env::temp_dir().join(format!("situla-anybodys-{}", std::process::id()));
        let path = CString::new(program.to_str().unwrap()).unwrap();
        for (mode, end) in [(0o755, 7), (0o775, 7), (0o757, CANNOT_EXECUTE)] {
            // Copied by another process: no descriptor of a thread beside this one keeps it open for writing.
            let copied = std::process::Command::new("cp").arg("/bin/sh").arg(&program).status().unwrap();
            assert!(copied.success());
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
            let script = std::env::temp_dir().join(format!("situla-seven-{}", std::process::id()));
            std::fs::write(&script, "exit 7\n").unwrap();
            let argument = CString::new(script.to_str().unwrap()).unwrap();
            let status = ran(&path, &argument, long);
            std::fs::remove_file(&program).unwrap();
            std::fs::remove_file(&script).unwrap();
            assert_eq!(status, End::Exited(end), "{mode:o}");
        }
        assert_eq!(ran(c"/nonexistent", c"", long), End::Exited(CANNOT_EXECUTE));
        assert_eq!(ran(c"/", c"", long), End::Exited(CANNOT_EXECUTE));
    }

    #[test]
    fn one_that_somebody_kills_is_told_from_one_that_takes_too_long() {
        let script = std::env::temp_dir().join(format!("situla-killed-{}", std::process::id()));
        std::fs::write(&script, "kill -9 $$\n").unwrap();
        let path = CString::new(script.to_str().unwrap()).unwrap();
        let end = ran(c"/bin/sh", &path, Duration::from_secs(60));
        std::fs::remove_file(&script).unwrap();
        assert_eq!(end, End::Killed);
    }

    #[test]
    fn one_that_takes_too_long_is_left_and_killed_later_even_if_it_is_stopped() {
        let begun = Instant::now();
        let script = std::env::temp_dir().join(format!("situla-hang-{}", std::process::id()));
        let told = script.with_extension("pid");
        let text = format!("echo $$ >{0}.new\nmv {0}.new {0}\nkill -STOP $$\n", told.display());
        std::fs::write(&script, text).unwrap();
        let path = CString::new(script.to_str().unwrap()).unwrap();
        assert_eq!(ran_within(c"/bin/sh", &path, Duration::from_millis(500), 1), End::Running);
        let child = std::fs::read_to_string(&told).unwrap();
        std::fs::remove_file(&script).unwrap();
        std::fs::remove_file(&told).unwrap();
        // Nobody need have waited for it yet.
        let has_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default().chars().next();
            matches!(state, None | Some('Z' | 'X'))
        };
        while !has_gone() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{child} goes on");
            std::thread::sleep(MOMENT);
        }
    }
}
