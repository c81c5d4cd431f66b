//! Which descriptors a payload has beside standard input, output and error.
//!
//! Outside of Slurm all that the caller has open: what he passes he means, as with Apptainer. Inside a step
//! whoever started us may have got descriptors of slurmstepd's along with his own, and nobody can tell them
//! apart; there the payload has what is named alone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use situla_bindings::KeepFd;
use situla_slurm::Context;

use crate::error::EngineError;
use crate::host::Host;
use crate::request::{Personality, RunRequest};

/// Descriptors above this are not looked for: the kernel's usual hard limit of them (`fs.nr_open`, proc(5)).
const MAX_FD: i32 = 1 << 20;

/// The most descriptors that a command's words can name: more is no process substitution any more.
const MAX_NAMED: usize = 256;

/// What is in a word of a command where a shell has put a descriptor.
const NAMES: [&[u8]; 2] = [b"/dev/fd/", b"/proc/self/fd/"];

/// The descriptors that stay open.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    /// Those that are named, and why each stays.
    pub(crate) keep: Vec<KeepFd>,
    /// Whether all others that were inherited stay as well.
    pub(crate) inherit: bool,
}

/// Decides which descriptors stay open; `pmi` is what MPI needs, and `is_inherited` tells whether whoever
/// started us has passed a descriptor on.
pub(crate) fn plan_descriptors(
    request: &RunRequest,
    host: &Host,
    pmi: Vec<KeepFd>,
    is_inherited: impl Fn(i32) -> bool,
) -> Result<Descriptors, EngineError> {
    if request.instance.as_ref().is_some_and(|instance| !instance.enters) {
        // What stays when the caller has gone must not keep anything of his open.
        return match request.keep_fds.first() {
            None => Ok(Descriptors::default()),
            Some(fd) => Err(EngineError::BadOption {
                message: format!("an instance cannot keep descriptor {fd}, as it outlives who starts it"),
                remedy: "give --keep-fd where the instance is entered".to_owned(),
            }),
        };
    }
    // The variable outlives the descriptor where a launcher in between has closed it.
    let mut keep: Vec<KeepFd> = pmi.into_iter().filter(|keep| is_inherited(keep.fd)).collect();
    let mut add = |fd: i32, reason: &str| {
        if keep.iter().all(|kept| kept.fd != fd) {
            keep.push(KeepFd { fd, reason: reason.to_owned() });
        }
    };
    for fd in &request.keep_fds {
        if !(3..MAX_FD).contains(fd) || !is_inherited(*fd) {
            return Err(EngineError::BadOption {
                message: format!("descriptor {fd} cannot be kept: it is not one that was passed on"),
                remedy: "open it for the command, as in --keep-fd 3 … 3<FILE; 0 to 2 are always kept"
                    .to_owned(),
            });
        }
        add(*fd, "--keep-fd");
    }
    let in_step = host.allocation.as_ref().is_some_and(|it| it.context != Context::AllocationShell);
    // The words of a task were written where srun was, whose descriptors are not here.
    if in_step && request.personality != Personality::Task {
        let words = request.action.words().iter().flat_map(|word| named_in(word));
        for fd in words.take(MAX_NAMED).filter(|fd| is_inherited(*fd)) {
            add(fd, "named by the command, as by process substitution of a shell");
        }
    }
    Ok(Descriptors { keep, inherit: !in_step && request.personality != Personality::Task })
}

/// The descriptors that a word names by paths such as `/dev/fd/63`.
fn named_in(word: &OsStr) -> Vec<i32> {
    let bytes = word.as_bytes();
    let mut found = Vec::new();
    for name in NAMES {
        let mut rest = bytes;
        while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
            rest = rest.get(at + name.len()..).unwrap_or_default();
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let digits = rest.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok());
            found.extend(digits.and_then(|text| text.parse().ok()).filter(|fd| (3..MAX_FD).contains(fd)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::request::{Action, InstanceUse};

    fn host(variables: &[(&str, &str)]) -> Host {
        let own = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        Host::gather(variables.iter().map(own).collect()).unwrap()
    }

    fn decided(personality: Personality, words: &[&str], keep: &[i32], host: &Host) -> (Vec<i32>, bool) {
        let words = words.iter().map(OsString::from).collect();
        let mut request = RunRequest::new(personality, "image", Action::Exec(words));
        request.keep_fds = keep.to_vec();
        let pmi = [20, 21].map(|fd| KeepFd { fd, reason: "PMI_FD".to_owned() });
        let Descriptors { keep, inherit } =
            plan_descriptors(&request, host, pmi.into(), |fd| (3..=20).contains(&fd) || fd == 63).unwrap();
        (keep.iter().map(|keep| keep.fd).collect(), inherit)
    }

    #[test]
    fn in_a_step_what_is_named_stays() {
        use Personality::{Apptainer, Native, Task};
        let nowhere = host(&[]);
        let step = host(&[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "3"), ("SLURM_PROCID", "0")]);
        for (personality, words, keep, host, expected) in [
            (Native, &["cat", "/dev/fd/63"][..], &[][..], &nowhere, (&[20][..], true)),
            (Apptainer, &["cat"], &[5], &nowhere, (&[20, 5], true)),
            (Apptainer, &["cat", "/dev/fd/63"], &[], &step, (&[20, 63], false)),
            (
                Native,
                &["cat", "--in=/proc/self/fd/7,/dev/fd/8", "/dev/fd/x"],
                &[9, 9],
                &step,
                (&[20, 9, 8, 7], false),
            ),
            // Not open, and standard streams.
            (Native, &["cat", "/dev/fd/62", "/dev/fd/1"], &[], &step, (&[20], false)),
            (Task, &["cat", "/dev/fd/63"], &[], &step, (&[20], false)),
            (Task, &["cat", "/dev/fd/63"], &[], &nowhere, (&[20], false)),
        ] {
            let (kept, inherit) = decided(personality, words, keep, host);
            assert_eq!((&kept[..], inherit), expected, "{personality:?} {words:?} {keep:?}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let nowhere = host(&[]);
        let refused = |keep: i32, instance: bool| {
            let mut request = RunRequest::new(Personality::Native, "image", Action::Shell(None));
            request.keep_fds.push(keep);
            let (name, key) = ("a".to_owned(), "b".to_owned());
            request.instance = instance.then_some(InstanceUse { name, key, enters: false });
            plan_descriptors(&request, &nowhere, Vec::new(), |fd| fd == 3 || fd == 0).is_err()
        };
        assert!(!refused(3, false));
        for (keep, instance) in [(3, true), (4, false), (0, false), (-1, false), (MAX_FD, false)] {
            assert!(refused(keep, instance), "{keep}");
        }
    }
}
