//! What can go wrong with a registry.

use std::io;
use std::time::Duration;

use rustls::AlertDescription as Alert;
use thiserror::Error;

use super::keyring::KeyringError;
use super::proxy::ProxyAddress;
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
    /// The registry, or its token service, does not accept the login.
    #[error("'{registry}' does not accept the login of {origin}{message}")]
    LoginRejected {
        /// The registry.
        registry: String,
        /// Where the login was found.
        origin: String,
        /// The registry's own words, with a leading separator; may be empty.
        message: String,
    },
    /// The registry asks for the login to be sent where it must not go.
    #[error("'{registry}' wants the login to be sent to '{realm}'")]
    Realm {
        /// The registry.
        registry: String,
        /// Scheme and host of the token service.
        realm: String,
    },
    /// The login would be told to whoever listens, or to somebody who need not be who he says he is.
    #[error("the login of {origin} is not sent to '{registry}', {why}")]
    Withheld {
        /// The registry.
        registry: String,
        /// Where the login was found.
        origin: String,
        /// Why.
        why: Withheld,
    },
    /// What is known of a host cannot be told.
    #[error("no login or certificate for '{host}'")]
    Keyring {
        /// The host.
        host: String,
        /// The cause.
        #[source]
        source: KeyringError,
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
    #[error("'{registry}' refuses more requests for now (rate limit){}", wait(*.retry_after))]
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
    /// What is sent cannot be read.
    #[error("cannot read {what}")]
    Content {
        /// What it is.
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
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
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
    /// A registry, redirect or token service would need plain HTTP to a machine for which it was not asked for.
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
        proxy: ProxyAddress,
    },
}

/// Why a login is not sent to a registry that wants one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Withheld {
    /// It would be sent without TLS, and nobody has asked for that.
    #[error("which speaks no TLS")]
    InClear,
    /// It is kept for the host, and nothing proves that this port is the host's own.
    #[error(
        "which is another port of the host that it is kept for, and has no certificate that could be checked"
    )]
    AnotherPort,
}

impl ClientError {
    /// Tells whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::TooManyRequests { .. } | Self::Interrupted { .. } => true,
            // Not implemented, and a version of HTTP that is not spoken, stay so.
            Self::Server { status, .. } => {
                matches!(status, 408 | 425) || (*status >= 500 && !matches!(status, 501 | 505))
            }
            Self::Unreachable { source, .. } => match &**source {
                // A certificate that is not trusted, or an answer that is no TLS.
                ureq::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
                ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::BodyStalled
                | ureq::Error::HostNotFound => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whose certificate it is that a connection has failed for, if it was one.
    #[must_use]
    pub fn distrusted(&self) -> Option<Distrusted> {
        let Self::Unreachable { source, .. } = self else { return None };
        let ureq::Error::Io(error) = &**source else { return None };
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(_) => Some(Distrusted::Registry),
            // What servers say of a certificate that is missing or that they do not like (RFC 8446 section 6.2).
            rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::CertificateRequired
                // Of a signature that does not fit, by which one may not be in the line of an authority.
                | Alert::DecryptError,
            ) => Some(Distrusted::Client),
            _ => None,
        }
    }

    /// What the registry has said, where it is repeated.
    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Self::Unauthorized { message, .. }
            | Self::Denied { message, .. }
            | Self::LoginRejected { message, .. }
            | Self::Server { message, .. } => Some(message),
            _ => None,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Whose certificate is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrusted {
    /// The registry's, by us.
    Registry,
    /// Ours, by the registry; or there is none.
    Client,
}

fn wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!("; it says to wait {} s", wait.as_secs()))
}
