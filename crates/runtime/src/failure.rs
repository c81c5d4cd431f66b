//! Why a container could not be started or kept, in a form that crosses process borders.

use std::fmt;

use rustix::io::Errno;

/// The kind of a failure: what a record counts and what a hint depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureClass {
    /// The kernel or the site forbids unprivileged user namespaces.
    NoUserNamespaces,
    /// AppArmor lets this program use no user namespaces.
    AppArmor,
    /// Subordinate ids could not be mapped.
    SubordinateIds,
    /// `/dev/fuse` is missing or may not be opened.
    NoFuse,
    /// The source of a bind mount does not exist.
    BindSourceMissing,
    /// A mount could not be made at its destination.
    MountFailed,
    /// The root file system could not be mounted or read.
    Rootfs,
    /// What was to lie above the root file system could not be laid there.
    Overlay,
    /// The working directory does not exist inside.
    WorkingDirectory,
    /// The command does not exist inside.
    CommandNotFound,
    /// The command exists inside but cannot be executed.
    CommandNotExecutable,
    /// The process that serves the image ended under a running payload.
    ServerLost,
    /// A hook of the document failed.
    Hook,
    /// Anything else that went wrong between start and exec.
    Setup,
}

/// All classes, in the order of their wire numbers.
const CLASSES: [FailureClass; 14] = [
    FailureClass::NoUserNamespaces,
    FailureClass::NoFuse,
    FailureClass::BindSourceMissing,
    FailureClass::MountFailed,
    FailureClass::Rootfs,
    FailureClass::WorkingDirectory,
    FailureClass::CommandNotFound,
    FailureClass::CommandNotExecutable,
    FailureClass::ServerLost,
    FailureClass::Overlay,
    FailureClass::Hook,
    FailureClass::AppArmor,
    FailureClass::SubordinateIds,
    FailureClass::Setup,
];

/// The highest number that the kernel gives to an error (`MAX_ERRNO`, linux/err.h).
const MAX_ERRNO: i32 = 4095;

/// A failure with what it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    class: FailureClass,
    message: String,
    errno: Option<Errno>,
}

impl Failure {
    /// A failure without an errno.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Failure { class, message: message.into(), errno: None }
    }

    /// A failure of a system call.
    pub fn of_call(class: FailureClass, message: impl Into<String>, errno: Errno) -> Self {
        // What a FUSE mount whose server has gone answers, whatever was asked of it.
        let lost = matches!(errno, Errno::NOTCONN | Errno::CONNABORTED);
        let class = if lost { FailureClass::ServerLost } else { class };
        Failure { class, message: message.into(), errno: Some(errno) }
    }

    /// The same failure, with what it was about before its message.
    pub(crate) fn about(self, what: &str) -> Self {
        Failure { message: format!("{what}: {}", self.message), ..self }
    }

    /// The kind of the failure.
    pub fn class(&self) -> FailureClass {
        self.class
    }

    /// The errno behind it, where a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// Writes the failure for the other end of a pipe: class, errno, message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let class = CLASSES.iter().position(|known| *known == self.class).unwrap_or(CLASSES.len() - 1);
        let errno = self.errno.map_or(0, Errno::raw_os_error);
        let mut bytes = vec![u8::try_from(class).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(&errno.to_ne_bytes());
        bytes.extend_from_slice(self.message.as_bytes());
        bytes
    }

    /// Reads what [`Failure::encode`] wrote; `None` where it is cut short.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let class = CLASSES.get(usize::from(*bytes.first()?)).copied().unwrap_or(FailureClass::Setup);
        let errno = i32::from_ne_bytes(bytes.get(1..5)?.try_into().ok()?);
        let message = String::from_utf8_lossy(bytes.get(5..)?).into_owned();
        // 0 says that there was none. What is no errno at all must not become one: rustix asserts that.
        let errno = (1..=MAX_ERRNO).contains(&errno).then(|| Errno::from_raw_os_error(errno));
        Some(Failure { class, message, errno })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.errno.as_ref().map(|errno| errno as &(dyn std::error::Error + 'static))
    }
}

/// Names what a system call was about when it fails.
pub(crate) trait Context<T> {
    /// Turns an errno into a [`Failure`].
    fn or_fail(self, class: FailureClass, message: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn or_fail(self, class: FailureClass, message: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure::of_call(class, message(), errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn or_fail(self, class: FailureClass, message: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            Failure::of_call(class, message(), errno)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_the_pipe() {
        for class in CLASSES {
            for errno in [None, Some(Errno::NOENT)] {
                let failure = Failure { class, message: "no such thing: ü".to_owned(), errno };
                assert_eq!(Failure::decode(&failure.encode()), Some(failure));
            }
        }
        assert_eq!(Failure::decode(&[1, 2]), None);
        for errno in [-1, i32::MIN, 4096, i32::MAX] {
            let bytes = [&[0][..], &errno.to_ne_bytes(), b"damaged"].concat();
            let read = Failure::decode(&bytes).expect("a failure");
            assert_eq!((read.errno(), read.to_string().as_str()), (None, "damaged"));
        }
    }
}
