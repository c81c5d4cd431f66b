//! The dozen declarations of `slurm/spank.h` that the plugin uses, the same from Slurm 22.05 on.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// `typedef struct spank_handle *spank_t`: opaque, valid for the length of a callback.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle(*mut c_void);

/// `ESPANK_SUCCESS`.
pub(crate) const SUCCESS: c_int = 0;
/// `ESPANK_NOSPACE` of `slurm/slurm_errno.h`.
const NO_SPACE: c_int = 3005;
/// `SLURM_ERROR`: what a callback returns to fail.
pub(crate) const FAILURE: c_int = -1;

/// `S_CTX_LOCAL`: inside srun.
const CONTEXT_LOCAL: c_int = 1;
/// `S_CTX_REMOTE`: inside slurmstepd.
const CONTEXT_REMOTE: c_int = 2;
/// `S_CTX_ALLOCATOR`: inside sbatch or salloc.
const CONTEXT_ALLOCATOR: c_int = 3;

/// `S_JOB_UID` and others of `enum spank_item`.
const ITEM_UID: c_int = 0;
const ITEM_GID: c_int = 1;
const ITEM_JOB_ID: c_int = 2;
const ITEM_STEP_ID: c_int = 3;
const ITEM_NODE_ID: c_int = 5;
const ITEM_LOCAL_TASK_COUNT: c_int = 6;
const ITEM_ARGV: c_int = 9;
const ITEM_TASK_ID: c_int = 11;
const ITEM_TASK_GLOBAL_ID: c_int = 12;
const ITEM_TASK_EXIT_STATUS: c_int = 13;
const ITEM_GROUPS: c_int = 19;

/// `spank_opt_cb_f`.
pub(crate) type OptionCallback = extern "C" fn(c_int, *const c_char, c_int) -> c_int;

/// `struct spank_option`.
#[repr(C)]
pub(crate) struct SpankOption {
    name: *mut c_char,
    arginfo: *mut c_char,
    usage: *mut c_char,
    has_arg: c_int,
    val: c_int,
    callback: OptionCallback,
}

unsafe extern "C" {
    fn spank_option_register(spank: Handle, option: *mut SpankOption) -> c_int;
    fn spank_context() -> c_int;
    fn spank_get_item(spank: Handle, item: c_int, ...) -> c_int;
    fn spank_getenv(spank: Handle, name: *const c_char, buffer: *mut c_char, length: c_int) -> c_int;
    fn spank_setenv(spank: Handle, name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    fn spank_unsetenv(spank: Handle, name: *const c_char) -> c_int;
    fn slurm_error(format: *const c_char, ...);
    fn slurm_spank_log(format: *const c_char, ...);
    fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    /// `getopt(3)`: index of the next word to be looked at.
    static optind: c_int;
}

/// Where the plugin has been loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// srun.
    Local,
    /// sbatch or salloc.
    Allocator,
    /// slurmstepd.
    Remote,
    /// slurmd or a job script: nothing to do.
    Other,
}

/// The context of this process.
pub(crate) fn context() -> Context {
    // SAFETY: takes nothing, returns an enumeration.
    match unsafe { spank_context() } {
        CONTEXT_LOCAL => Context::Local,
        CONTEXT_ALLOCATOR => Context::Allocator,
        CONTEXT_REMOTE => Context::Remote,
        _ => Context::Other,
    }
}

/// How many words of the command line getopt has taken as options, the program's name among them.
pub(crate) fn n_options() -> usize {
    // SAFETY: a plain integer of the C library. srun has one thread when it calls its plugins' option
    // callbacks, and is not inside getopt then.
    usize::try_from(unsafe { optind }).unwrap_or(0)
}

/// Tells the user of srun or sbatch, or slurmstepd's log, that something failed.
pub(crate) fn report_error(message: &str) {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the format takes one string, which is terminated and lives until the call returns.
    unsafe { slurm_error(c"%s".as_ptr(), message.as_ptr()) };
}

/// Tells the user, on the standard error of the task.
pub(crate) fn tell_user(message: &str) {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the format takes one string, which is terminated and lives until the call returns.
    unsafe { slurm_spank_log(c"%s".as_ptr(), message.as_ptr()) };
}

/// Sets a variable of this process, from which srun and sbatch make the job's environment.
pub(crate) fn set_own_variable(name: &CStr, value: &CStr) {
    // SAFETY: both strings are terminated. Slurm calls its plugins' option callbacks in srun and
    // sbatch before either starts a thread, so nobody reads the environment meanwhile.
    unsafe { setenv(name.as_ptr(), value.as_ptr(), 1) };
}

/// A task that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskEnd {
    /// As `waitpid(2)` gives it.
    pub(crate) status: c_int,
    /// Whose it was.
    pub(crate) uid: u32,
    /// The owner's primary group.
    pub(crate) gid: u32,
    /// The node's place in the step.
    pub(crate) node: u32,
    /// Rank in the step.
    pub(crate) rank: u32,
    /// Rank on this node.
    pub(crate) local_rank: u32,
}

impl TaskEnd {
    /// Whether it has died by KILL.
    pub(crate) fn was_killed(&self) -> bool {
        const SIGKILL: c_int = 9;
        self.status & 0x7f == SIGKILL
    }
}

/// The arguments of the job's program, as Slurm holds them.
pub(crate) struct Arguments {
    count: usize,
    first: *mut *mut c_char,
}

impl Arguments {
    /// The argument at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&CStr> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the index is below the count that Slurm gave for this array.
        let argument = unsafe { self.first.add(index) };
        // SAFETY: the array is Slurm's and lives as long as the job.
        let argument = unsafe { *argument };
        // SAFETY: Slurm's arguments are terminated strings; null is excluded.
        (!argument.is_null()).then(|| unsafe { CStr::from_ptr(argument) })
    }

    /// The number of arguments.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Replaces an argument, in slurmstepd's forked child or in srun before it launches tasks. The string is never freed.
    pub(crate) fn replace(&self, index: usize, argument: CString) -> bool {
        if index >= self.count {
            return false;
        }
        // SAFETY: the index is below the count that Slurm gave for this array.
        let place = unsafe { self.first.add(index) };
        // SAFETY: the array is Slurm's. slurmstepd's forked child has no other thread. In srun the thread that is here is
        // the one that launches this component next, and others wait for it, or have words of their own. The one executes
        // another program next, and the other ends: neither frees what stands here.
        unsafe { *place = argument.into_raw() };
        true
    }
}

impl Handle {
    /// Registers an option; `value` comes back in the callback.
    pub(crate) fn register(
        self,
        name: &str,
        arginfo: Option<&str>,
        usage: &str,
        value: c_int,
        callback: OptionCallback,
    ) -> bool {
        let owned = |text: &str| CString::new(text).unwrap_or_default().into_raw();
        let mut option = SpankOption {
            name: owned(name),
            arginfo: arginfo.map_or(std::ptr::null_mut(), owned),
            usage: owned(usage),
            has_arg: c_int::from(arginfo.is_some()),
            val: value,
            callback,
        };
        // SAFETY: the structure is complete; Slurm copies what it needs, and the strings are never
        // freed, so it does not matter when.
        unsafe { spank_option_register(self, &raw mut option) == SUCCESS }
    }

    /// The arguments of the job's program.
    pub(crate) fn arguments(self) -> Option<Arguments> {
        let mut count: c_int = 0;
        let mut first: *mut *mut c_char = std::ptr::null_mut();
        // SAFETY: S_JOB_ARGV takes an int and a char ***, as given; both live until the call returns.
        let result = unsafe { spank_get_item(self, ITEM_ARGV, &raw mut count, &raw mut first) };
        let count = usize::try_from(count).ok()?;
        (result == SUCCESS && !first.is_null()).then_some(Arguments { count, first })
    }

    /// Job and step, for messages.
    pub(crate) fn job_and_step(self) -> (u32, u32) {
        let (mut job, mut step) = (0u32, 0u32);
        // SAFETY: S_JOB_ID takes a uint32_t *.
        unsafe { spank_get_item(self, ITEM_JOB_ID, &raw mut job) };
        // SAFETY: S_JOB_STEPID takes a uint32_t *.
        unsafe { spank_get_item(self, ITEM_STEP_ID, &raw mut step) };
        (job, step)
    }

    /// The task that has just ended, in `slurm_spank_task_exit` alone.
    pub(crate) fn ended_task(self) -> Option<TaskEnd> {
        let mut end = TaskEnd { status: 0, uid: 0, gid: 0, node: 0, rank: 0, local_rank: 0 };
        let mut local: c_int = 0;
        // SAFETY: S_JOB_UID takes a uid_t *, 32 bits wide.
        let uid = unsafe { spank_get_item(self, ITEM_UID, &raw mut end.uid) };
        // SAFETY: S_JOB_GID takes a gid_t *, 32 bits wide.
        let gid = unsafe { spank_get_item(self, ITEM_GID, &raw mut end.gid) };
        // SAFETY: S_JOB_NODEID takes a uint32_t *.
        let node = unsafe { spank_get_item(self, ITEM_NODE_ID, &raw mut end.node) };
        // SAFETY: S_TASK_GLOBAL_ID takes a uint32_t *.
        let rank = unsafe { spank_get_item(self, ITEM_TASK_GLOBAL_ID, &raw mut end.rank) };
        // SAFETY: S_TASK_ID takes an int *.
        let local_rank = unsafe { spank_get_item(self, ITEM_TASK_ID, &raw mut local) };
        // SAFETY: S_TASK_EXIT_STATUS takes an int *.
        let status = unsafe { spank_get_item(self, ITEM_TASK_EXIT_STATUS, &raw mut end.status) };
        end.local_rank = u32::try_from(local).ok()?;
        [uid, gid, node, rank, local_rank, status].iter().all(|result| *result == SUCCESS).then_some(end)
    }

    /// How many tasks the step has on this node; 0 where Slurm does not tell.
    pub(crate) fn n_local_tasks(self) -> u32 {
        let mut count = 0u32;
        // SAFETY: S_JOB_LOCAL_TASK_COUNT takes a uint32_t *.
        unsafe { spank_get_item(self, ITEM_LOCAL_TASK_COUNT, &raw mut count) };
        count
    }

    /// The supplementary groups of the job's owner; none where Slurm does not tell.
    pub(crate) fn groups(self) -> Vec<u32> {
        let mut first: *mut u32 = std::ptr::null_mut();
        let mut count: c_int = 0;
        // SAFETY: S_JOB_SUPPLEMENTARY_GIDS takes a gid_t **, 32 bits wide, and an int *.
        let result = unsafe { spank_get_item(self, ITEM_GROUPS, &raw mut first, &raw mut count) };
        match usize::try_from(count) {
            // SAFETY: the array is Slurm's, as long as said, and lives as long as the job.
            Ok(count @ 1..) if result == SUCCESS && !first.is_null() => unsafe {
                std::slice::from_raw_parts(first, count).to_vec()
            },
            _ => Vec::new(),
        }
    }

    /// A variable of the job's environment.
    ///
    /// # Errors
    /// It is too long to be taken; as if it were not set would be wrong.
    pub(crate) fn variable(self, name: &CStr) -> Result<Option<CString>, String> {
        // Longer than any path list in use; a longer value is refused by Slurm with ESPANK_NOSPACE.
        const LENGTH: usize = 64 * 1024;
        let mut buffer = vec![0u8; LENGTH];
        let length = c_int::try_from(LENGTH).unwrap_or(c_int::MAX);
        // SAFETY: the name is terminated; the buffer is as long as said.
        let result = unsafe { spank_getenv(self, name.as_ptr(), buffer.as_mut_ptr().cast(), length) };
        match result {
            SUCCESS => Ok(CStr::from_bytes_until_nul(&buffer).ok().map(CStr::to_owned)),
            NO_SPACE => Err(format!("{} is longer than {LENGTH} bytes", name.to_string_lossy())),
            _ => Ok(None),
        }
    }

    /// Sets a variable of the task's environment.
    pub(crate) fn set_variable(self, name: &CStr, value: &CStr) -> bool {
        // SAFETY: both strings are terminated; Slurm copies them.
        unsafe { spank_setenv(self, name.as_ptr(), value.as_ptr(), 1) == SUCCESS }
    }

    /// Takes a variable out of the task's environment, if it is there.
    pub(crate) fn unset_variable(self, name: &CStr) {
        // SAFETY: the name is terminated.
        unsafe { spank_unsetenv(self, name.as_ptr()) };
    }
}

/// The strings of `plugstack.conf` that a callback gets.
///
/// # Safety
/// `first` must point to `count` terminated strings that live until this returns.
pub(crate) unsafe fn plugin_arguments(count: c_int, first: *mut *mut c_char) -> Vec<String> {
    let count = if first.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
    (0..count)
        .map(|index| {
            // SAFETY: the caller vouches for `count` elements.
            let argument = unsafe { first.add(index) };
            // SAFETY: as above.
            let argument = unsafe { *argument };
            // SAFETY: as above: terminated strings.
            unsafe { CStr::from_ptr(argument) }.to_string_lossy().into_owned()
        })
        .collect()
}

/// The string that an option's callback gets.
///
/// # Safety
/// `text` must be null or a terminated string that lives until this returns.
pub(crate) unsafe fn option_argument(text: *const c_char) -> Option<CString> {
    // SAFETY: the caller vouches for it; null is excluded.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
}
