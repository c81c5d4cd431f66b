//! What can go wrong with a registry.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::verify::VerifyError;

/// Why a registry did not give what was asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The registry has no such thing, or does not tell anonymous users.
    #[error("{what} not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The registry wants a login.
    #[error("{what}: the registry wants a login, or the repository does not exist{message}")]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// The registry's own words, with a leading separator; may be empty.
        message: String,
    },
    /// The registry forbids it.
    #[error("{what}: access denied{message}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry's own words, with a leading separator; may be empty.
        message: String,
    },
    /// Bytes are not those promised.
    #[error("{0}")]
    Verify(Box<VerifyError>),
    /// The server answers with a web page.
    #[error("'{registry}' does not answer as an image registry")]
    NotARegistry {
        /// The registry.
        registry: String,
    },
    /// The registry's rate limit was hit.
    #[error("'{registry}' refuses more requests for now (rate limit)")]
    TooManyRequests {
        /// The registry.
        registry: String,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// No connection, or no answer.
    #[error("cannot reach registry '{registry}'")]
    Unreachable {
        /// The registry.
        registry: String,
        /// The cause.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The connection broke while content arrived, and resuming did not help.
    #[error("transfer of {what} was interrupted")]
    Interrupted {
        /// What was transferred.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The registry failed.
    #[error("registry failed with status {status} on {what}{message}")]
    Server {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words, with a leading separator; may be empty.
        message: String,
    },
    /// An answer that the protocol does not have.
    #[error("unexpected answer from the registry to {what}: {problem}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// More bytes than allowed.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// A redirect or token service would need plain HTTP to another machine.
    #[error("refusing plain HTTP to '{host}'")]
    PlainHttp {
        /// The host.
        host: String,
    },
    /// The system's certificate authorities cannot be loaded.
    #[error("no certificate authorities found on this system ({problem})")]
    NoRoots {
        /// What the loader said.
        problem: String,
    },
    /// The proxy setting is malformed.
    #[error("malformed proxy '{proxy}'")]
    BadProxy {
        /// The setting.
        proxy: String,
    },
}

impl ClientError {
    /// Tells whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::TooManyRequests { .. } | Self::Interrupted { .. } => true,
            Self::Server { status, .. } => matches!(status, 500 | 502 | 503 | 504),
            Self::Unreachable { source, .. } => matches!(
                **source,
                ureq::Error::Io(_)
                    | ureq::Error::Timeout(_)
                    | ureq::Error::ConnectionFailed
                    | ureq::Error::BodyStalled
                    | ureq::Error::HostNotFound
            ),
            _ => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
