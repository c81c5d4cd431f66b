//! Signals: masks, signalfd(2), and dying by a signal.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use crate::checked;

/// A set of signals, as the thread's mask was or shall be.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((1..=64).filter(|signal| self.contains(*signal))).finish()
    }
}

impl SignalMask {
    /// A set of the given signals; numbers that are no signals are left out.
    pub fn of(signals: impl IntoIterator<Item = i32>) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised just above.
        let mut set = unsafe { set.assume_init() };
        for signal in signals {
            // SAFETY: the set is valid; a wrong number gives EINVAL and changes nothing.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        SignalMask(set)
    }

    /// Tells whether `signal` is in the set.
    pub fn contains(&self, signal: i32) -> bool {
        // SAFETY: the set is valid; a wrong number gives -1.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }
}

/// Blocks `signals` in this thread and returns the mask as it was.
pub fn block_signals(signals: &SignalMask) -> Result<SignalMask, Errno> {
    let mut before = SignalMask::of([]);
    // SAFETY: both sets are valid for the length of the call.
    checked(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const signals.0, &raw mut before.0) })?;
    Ok(before)
}

/// Sets this thread's mask.
pub fn set_signal_mask(mask: &SignalMask) -> Result<(), Errno> {
    // SAFETY: the set is valid; the old mask is not asked for.
    checked(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) })
        .map(|_| ())
}

/// Lets a program begin with this mask, whatever this thread has blocked by then.
pub fn begin_with_mask(command: &mut std::process::Command, mask: SignalMask) {
    // SAFETY: what runs between fork and exec calls sigprocmask alone, which is async-signal-safe, on a copy of the set,
    // and allocates nothing: an error carries a number.
    unsafe { command.pre_exec(move || set_signal_mask(&mask).map_err(std::io::Error::from)) };
}

/// Gives a signal its default action again.
pub fn restore_default_action(signal: i32) -> Result<(), Errno> {
    // SAFETY: SIG_DFL runs no code of ours; a wrong number gives EINVAL.
    if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
        Err(crate::last_errno())
    } else {
        Ok(())
    }
}

/// Tells whether `signal` is ignored: sigaction(2).
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, and the old one goes to memory of the right type.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: sigaction succeeded and has filled the structure.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Lets this process die by `signal`, without leaving a core of its own beside the payload's.
/// Returns only if the signal does not kill (it is ignored for this process by a tracer, say).
pub fn die_by(signal: i32) {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: setrlimit reads a valid structure.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    if restore_default_action(signal).is_err() && signal != libc::SIGKILL && signal != libc::SIGSTOP {
        return;
    }
    let empty = SignalMask::of([]);
    // SAFETY: raise takes an integer; the target is this thread.
    unsafe { libc::raise(signal) };
    // Unblocking delivers what is pending before the call returns.
    let _ = set_signal_mask(&empty);
}

/// Sends `signal` to every other process of the PID namespace whose first process this is; 0 sends none.
/// `ESRCH` where there is nobody else, `EPERM` in any other process: there it would reach all of the
/// user's processes on the machine.
pub fn signal_everybody(signal: i32) -> Result<(), Errno> {
    // Asked of the kernel: the C library need not know of this process.
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err(Errno::PERM);
    }
    // SAFETY: kill takes two integers.
    checked(unsafe { libc::kill(-1, signal) }).map(|_| ())
}

/// Sends a signal that has no name (a real-time signal) to a child of this process.
pub fn send_raw_signal(child: rustix::process::Pid, signal: i32) {
    // SAFETY: kill takes two integers; a wrong one gives an error that concerns nobody here.
    unsafe { libc::kill(child.as_raw_pid(), signal) };
}

/// What arrived at a [`SignalFd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalInfo {
    /// The signal's number.
    pub signal: i32,
    /// Whether the kernel itself sent it, as it does for Ctrl-C: then the whole foreground group
    /// of the terminal has it already (`SI_KERNEL`).
    pub from_kernel: bool,
    /// The pid of the sender, where a process sent it.
    pub sender: i32,
    /// The real user id of the sender.
    pub sender_uid: u32,
}

/// A descriptor that reads blocked signals: signalfd(2).
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Opens a descriptor for `signals`, which must be blocked.
    pub fn new(signals: &SignalMask) -> Result<Self, Errno> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let raw = checked(unsafe { libc::signalfd(-1, &raw const signals.0, flags) })?;
        // SAFETY: signalfd has just returned this descriptor, and nobody else has it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Takes the next signal; `None` where none is waiting.
    pub fn next(&self) -> Result<Option<SignalInfo>, Errno> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as long as said; the descriptor is open.
        let length = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if length == -1 {
            return match crate::last_errno() {
                Errno::AGAIN | Errno::INTR => Ok(None),
                error => Err(error),
            };
        }
        if usize::try_from(length) != Ok(size) {
            return Err(Errno::IO);
        }
        // SAFETY: read has filled the whole structure, which is made of integers.
        let info = unsafe { info.assume_init() };
        Ok(Some(SignalInfo {
            signal: i32::try_from(info.ssi_signo).unwrap_or(0),
            from_kernel: info.ssi_code == libc::SI_KERNEL,
            sender: i32::try_from(info.ssi_pid).unwrap_or(0),
            sender_uid: info.ssi_uid,
        }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The action of SIGPIPE when the process began. Rust's runtime ignores SIGPIPE before `main`, and
/// an ignored signal stays ignored over exec: the payload must get what its caller chose.
static SIGPIPE_AT_START: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// The action of SIGCHLD when the process began.
static SIGCHLD_AT_START: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

extern "C" fn note_actions() {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, and the old one goes to memory of the right type.
    if unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), action.as_mut_ptr()) } == 0 {
        // SAFETY: sigaction succeeded and has filled the structure.
        let action = unsafe { action.assume_init() };
        SIGCHLD_AT_START.store(action.sa_sigaction, Ordering::Relaxed);
        // With SIGCHLD ignored the status of a child is lost (wait(2)), and waiting is what we do.
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
    // SAFETY: as above.
    if unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) } == 0 {
        // SAFETY: sigaction succeeded and has filled the structure.
        let action = unsafe { action.assume_init() };
        SIGPIPE_AT_START.store(action.sa_sigaction, Ordering::Relaxed);
    }
}

/// Runs before Rust's runtime does: the loader calls what this section lists.
#[used]
// SAFETY: .init_array holds pointers to functions that the C runtime calls before main; this one
// only calls sigaction(2) and signal(2) and stores integers.
#[unsafe(link_section = ".init_array")]
static NOTE_ACTIONS: extern "C" fn() = note_actions;

/// Ignores SIGCHLD again, if it was ignored when the process began.
pub fn restore_sigchld() {
    if SIGCHLD_AT_START.load(Ordering::Relaxed) == libc::SIG_IGN {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    }
}

/// Tells whether SIGPIPE was ignored when the process began.
pub fn initial_sigpipe() -> bool {
    SIGPIPE_AT_START.load(Ordering::Relaxed) == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read() {
        let mask = SignalMask::of([libc::SIGUSR1, 12345]);
        assert!(mask.contains(libc::SIGUSR1) && !mask.contains(libc::SIGUSR2));
        let before = block_signals(&mask).unwrap();
        let signals = SignalFd::new(&mask).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: the target is this thread, and the signal is blocked.
        unsafe { libc::raise(libc::SIGUSR1) };
        let info = signals.next().unwrap().unwrap();
        assert_eq!(info.signal, libc::SIGUSR1);
        assert!(!info.from_kernel);
        assert_eq!(info.sender, i32::try_from(std::process::id()).unwrap());
        set_signal_mask(&before).unwrap();
    }
}
