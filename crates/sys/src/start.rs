//! The program's start through glibc, without asking the processor what it is.
//!
//! A static glibc executes some seventy CPUID instructions before `main`, to learn the sizes of caches and which
//! variants of `memcpy` and its like suit. On bare metal that takes microseconds. Under a hypervisor each is an exit, and
//! together they take as long as building a container. Here nothing is asked: the variants are those that every x86-64
//! processor has (SSE2), and the sizes from which they change their ways are constants. What decompresses and hashes has
//! its own variants, and asks for itself when it begins.
//!
//! [`__libc_start_main`] stands in the place of the C library's: the linker takes this one because it is found
//! first, and then nothing of `libc-start.o` is left to be wanted. It calls what that one calls, in its order
//! (`csu/libc-start.c` of glibc 2.36, the part without `SHARED`). These functions are glibc's own affair and change with
//! its releases, so `cargo xtask dist` asks for this feature only where the static library is of a release in its list.
//!
//! Until thread-local storage is there, and until the addresses of the variants are written, nothing may be called but
//! what is named here: no `memcpy`, no panic, no allocation.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr::{null_mut, read};

type Main = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Initialiser = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char);

/// Elf64_Rela of the System V ABI; here only R_X86_64_IRELATIVE occurs, whose addend is the function that chooses.
#[repr(C)]
struct Relocation {
    place: *mut usize,
    info: u64,
    chooser: unsafe extern "C" fn() -> usize,
}

unsafe extern "C" {
    static mut __environ: *mut *mut c_char;
    static mut __libc_stack_end: *mut c_void;
    static __libc_enable_secure: c_int;
    /// What a signal takes of the stack, in bytes, as the kernel tells since Linux 5.14 (AT_MINSIGSTKSZ).
    static mut _dl_minsigstacksize: usize;
    /// Sixteen random bytes from the kernel (AT_RANDOM).
    static _dl_random: *const [usize; 2];

    static __rela_iplt_start: [Relocation; 0];
    static __rela_iplt_end: [Relocation; 0];
    static __preinit_array_start: [Initialiser; 0];
    static __preinit_array_end: [Initialiser; 0];
    static __init_array_start: [Initialiser; 0];
    static __init_array_end: [Initialiser; 0];
    static __fini_array_start: [unsafe extern "C" fn(); 0];
    static __fini_array_end: [unsafe extern "C" fn(); 0];

    fn _dl_aux_init(vector: *mut c_void);
    fn __tunables_init(environment: *mut *mut c_char);
    fn _dl_relocate_static_pie();
    fn __libc_setup_tls();
    fn __libc_early_init(single_threaded: bool);
    fn __libc_init_first(argc: c_int, argv: *mut *mut c_char, environment: *mut *mut c_char);
    fn __libc_check_standard_fds();
    fn _dl_debug_initialize(base: usize, namespace: c_long) -> *mut c_void;
    fn __cxa_atexit(
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
        object: *mut c_void,
    ) -> c_int;
    fn _init();
    fn _fini();
    fn exit(status: c_int) -> !;
}

/// What `memcpy` and its like compare sizes with, in bytes: glibc's own values where a processor tells nothing, and for
/// the size from which copies go past the caches three quarters of a shared cache of one MiB.
macro_rules! sizes {
    ($($name:ident = $bytes:expr;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: c_long = $bytes;
    )*};
}

sizes! {
    __x86_data_cache_size = 32 << 10;
    __x86_data_cache_size_half = 16 << 10;
    __x86_shared_cache_size = 1 << 20;
    __x86_shared_cache_size_half = 512 << 10;
    __x86_shared_non_temporal_threshold = 768 << 10;
    __x86_rep_movsb_threshold = 2048;
    __x86_rep_movsb_stop_threshold = 768 << 10;
    __x86_rep_stosb_threshold = 2048;
}

/// More than the state of any processor that an older kernel saves: glibc would ask the processor, and ends a program that
/// asks for the size where there is none.
const MINIMAL_SIGNAL_STACK: usize = 8 << 10;

/// Bits of how string functions behave; none is set.
#[unsafe(no_mangle)]
static __x86_string_control: c_int = 0;

/// Initialises the C library, calls `main` and exits with what it returns: what `_start` of `crt1.o` calls.
/// `pthread_exit` may not be called in the main thread: the place it would return to is not set up.
///
/// # Safety
/// To be called by `_start` alone, with the stack as the kernel has laid it out: `argv` ends with a null pointer, the
/// environment follows and ends with one, and so the auxiliary vector (System V ABI, AMD64 supplement, 3.4.1).
#[unsafe(no_mangle)]
unsafe extern "C" fn __libc_start_main(
    main: Main,
    argc: c_int,
    argv: *mut *mut c_char,
    _init_of_old: *const c_void,
    _fini_of_old: *const c_void,
    of_loader: Option<unsafe extern "C" fn(*mut c_void)>,
    stack_end: *mut c_void,
) -> c_int {
    let environment = argv.wrapping_offset(argc as isize).wrapping_add(1);
    let mut vector = environment;
    // SAFETY: the environment ends with a null pointer.
    while !unsafe { read(vector) }.is_null() {
        vector = vector.wrapping_add(1);
    }
    // SAFETY: glibc's variables, of these types; nobody else runs yet.
    unsafe { __environ = environment };
    // SAFETY: the same.
    unsafe { __libc_stack_end = stack_end };
    // SAFETY: the vector follows the end of the environment.
    unsafe { _dl_aux_init(vector.wrapping_add(1).cast()) };
    // SAFETY: glibc's variable, of this type; nobody else runs yet.
    if unsafe { _dl_minsigstacksize } == 0 {
        // SAFETY: the same.
        unsafe { _dl_minsigstacksize = MINIMAL_SIGNAL_STACK };
    }
    // SAFETY: in the order of glibc's own start.
    unsafe { __tunables_init(environment) };
    // SAFETY: the same; it does nothing in a program at a fixed address.
    unsafe { _dl_relocate_static_pie() };

    let mut relocation = (&raw const __rela_iplt_start).cast::<Relocation>();
    while relocation != (&raw const __rela_iplt_end).cast() {
        // SAFETY: the linker puts whole entries between these two.
        let Relocation { place, chooser, .. } = unsafe { read(relocation) };
        // SAFETY: it reads what glibc knows of the processor, which is nothing, and gives an address.
        let chosen = unsafe { chooser() };
        // SAFETY: a slot of this program for that address, not yet made read-only.
        unsafe { place.write(chosen) };
        relocation = relocation.wrapping_add(1);
    }

    // SAFETY: in the order of glibc's own start.
    unsafe { __libc_setup_tls() };
    // SAFETY: set by `_dl_aux_init`; the kernel gives these bytes to every program.
    let [canary, guard] = unsafe { read(_dl_random) };
    // The canary's lowest byte is zero, so that no string can bring it along.
    let canary = canary & !0xff;
    // SAFETY: glibc's places for both in the thread's control block, which is there since `__libc_setup_tls`.
    unsafe { std::arch::asm!("mov fs:[0x28], {}", in(reg) canary, options(nostack, preserves_flags)) };
    // SAFETY: the same.
    unsafe { std::arch::asm!("mov fs:[0x30], {}", in(reg) guard, options(nostack, preserves_flags)) };

    if let Some(of_loader) = of_loader {
        // SAFETY: what the kernel has put into a register for that purpose, if anything.
        unsafe { __cxa_atexit(of_loader, null_mut(), null_mut()) };
    }
    // SAFETY: in the order of glibc's own start, until `main`.
    unsafe { __libc_early_init(true) };
    // SAFETY: the same.
    unsafe { __libc_init_first(argc, argv, environment) };
    // SAFETY: the same.
    unsafe { __cxa_atexit(finish, null_mut(), null_mut()) };
    // SAFETY: set by `_dl_aux_init`.
    if unsafe { __libc_enable_secure } != 0 {
        // SAFETY: in the order of glibc's own start.
        unsafe { __libc_check_standard_fds() };
    }
    let (start, end) = (&raw const __preinit_array_start, &raw const __preinit_array_end);
    // SAFETY: the linker's two ends of one table.
    unsafe { initialise(start.cast(), end.cast(), argc, argv) };
    // SAFETY: in the order of glibc's own start.
    unsafe { _init() };
    let (start, end) = (&raw const __init_array_start, &raw const __init_array_end);
    // SAFETY: the linker's two ends of one table.
    unsafe { initialise(start.cast(), end.cast(), argc, argv) };
    // SAFETY: for debuggers, of no consequence.
    unsafe { _dl_debug_initialize(0, 0) };
    // SAFETY: read again, because an initialiser may have set variables.
    let environment = unsafe { __environ };
    // SAFETY: everything that `main` may use is there.
    let status = unsafe { main(argc, argv, environment) };
    // SAFETY: no thread that is left holds anything that is needed to exit.
    unsafe { exit(status) }
}

/// # Safety
/// The two ends of one table of initialisers.
unsafe fn initialise(
    start: *const Initialiser,
    end: *const Initialiser,
    argc: c_int,
    argv: *mut *mut c_char,
) {
    let mut next = start;
    while next != end {
        // SAFETY: within the table.
        let initialiser = unsafe { read(next) };
        // SAFETY: glibc's variable; one thread runs.
        let environment = unsafe { __environ };
        // SAFETY: in the order of the table, with what each expects.
        unsafe { initialiser(argc, argv, environment) };
        next = next.wrapping_add(1);
    }
}

/// Calls the finishers from the last to the first, at exit.
unsafe extern "C" fn finish(_: *mut c_void) {
    let start = (&raw const __fini_array_start).cast::<unsafe extern "C" fn()>();
    let mut next = (&raw const __fini_array_end).cast::<unsafe extern "C" fn()>();
    while next != start {
        next = next.wrapping_sub(1);
        // SAFETY: within the linker's table.
        let finisher = unsafe { read(next) };
        // SAFETY: once each, at exit.
        unsafe { finisher() };
    }
    // SAFETY: the last of all, as glibc does it.
    unsafe { _fini() };
}
