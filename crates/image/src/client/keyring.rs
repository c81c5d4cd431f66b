//! What is known of hosts beside their names: logins and certificates. The edge knows where they are kept.

use std::fmt;

use situla_oci::{Registry, Repository};
use thiserror::Error;

use super::credentials::Credentials;
use super::secret::Secret;

/// Knows logins and certificates. It is asked when a host wants one, so that no file is read and no program is
/// started for images that everybody may have.
pub trait Keyring: fmt::Debug + Send + Sync {
    /// The login at a registry, or at the token service of one; `repository` where it is for that alone.
    ///
    /// # Errors
    /// What has to know it cannot be asked or understood.
    fn login(
        &self,
        registry: &Registry,
        repository: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError>;

    /// The certificates for connections to `host[:port]`, where it has some of its own.
    ///
    /// # Errors
    /// Some are there, and cannot be read.
    fn certificates(&self, host: &str) -> Result<Option<Certificates>, KeyringError>;
}

/// Knows nothing.
#[derive(Debug, Clone, Copy)]
pub struct EmptyKeyring;

impl Keyring for EmptyKeyring {
    fn login(&self, _: &Registry, _: Option<&Repository>) -> Result<Option<Credentials>, KeyringError> {
        Ok(None)
    }

    fn certificates(&self, _: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok(None)
    }
}

/// Certificates for one host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Certificates {
    /// Authorities that are trusted for it beside the system's, in PEM form; a file may hold several.
    pub authorities: Vec<Vec<u8>>,
    /// The certificate by which we prove who we are.
    pub client: Option<ClientCertificate>,
}

/// A client certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those that lead to its authority, in PEM form.
    pub chain: Vec<u8>,
    /// The private key in PEM form.
    pub key: Secret,
}

/// Why a keyring cannot tell.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct KeyringError {
    /// What went wrong and where, without any secret.
    pub message: String,
    /// What the user can do about it.
    pub remedy: String,
}
