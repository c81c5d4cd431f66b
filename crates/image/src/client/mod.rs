//! Pulling from OCI registries over HTTP(S), anonymously.
//!
//! One blocking client, safe to share between threads. It asks for nothing it has no limit for, follows
//! redirects without taking credentials along, retries what may pass by itself, and says in typed errors
//! what else went wrong. Plain HTTP is spoken to loopback hosts only, unless asked for.
//!
//! Not here: pushing, logging in with a password, mirrors.

mod auth;
mod blob;
mod error;
mod http;
mod url;

use std::io::{self, Read};
use std::time::Duration;

use situla_oci::{Descriptor, Digest, Hasher, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, Reference};

pub use error::ClientError;

use self::blob::ResumingBlob;
use self::http::Http;
use crate::flatten::LayerSource;
use crate::source::{FetchedManifest, ImageSource, SourceError};
use crate::verify::VerifyError;

/// Which registries are spoken to without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS, but plain HTTP for loopback hosts.
    Auto,
    /// TLS always.
    Tls,
    /// Plain HTTP always.
    Plain,
}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Which registries are spoken to without TLS.
    pub transport: Transport,
    /// Certificate authorities in DER form trusted beside the system's (a site's own).
    pub extra_roots: Vec<Vec<u8>>,
    /// HTTP proxy as a URL.
    pub proxy: Option<String>,
    /// Time to set up a connection.
    pub connect_timeout: Duration,
    /// Longest silence within a response.
    pub read_timeout: Duration,
    /// Attempts at a request before giving up; at least one is made.
    pub n_attempts: u32,
    /// Pause before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// Longest pause, also when the registry asks for a longer one.
    pub max_backoff: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            transport: Transport::Auto,
            extra_roots: Vec::new(),
            proxy: None,
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
            n_attempts: 5,
            backoff: Duration::from_millis(300),
            max_backoff: Duration::from_secs(30),
        }
    }
}

/// A registry client.
#[derive(Debug)]
pub struct Client {
    http: Http,
}

impl Client {
    /// Makes a client; nothing is opened or loaded before the first request.
    #[must_use]
    pub fn new(options: ClientOptions) -> Self {
        Self { http: Http::new(options) }
    }

    /// Fetches a manifest or index by the reference's digest or tag, verified as far as its digest is known.
    ///
    /// # Errors
    /// When it cannot be had, is too large, or does not match its digest.
    pub fn fetch_manifest(&self, reference: &Reference) -> Result<FetchedManifest, ClientError> {
        let what = format!("manifest of {reference}");
        let path = format!("/v2/{}/manifests/{}", reference.repository(), reference.selector());
        self.http.with_retries(|| {
            let mut response = self.http.get_once(reference, &path, Some(MANIFEST_ACCEPT), None, &what)?;
            let header =
                |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let content_type = header("content-type");
            let promised = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
            if content_type.as_deref().is_some_and(|t| t.starts_with("text/html")) {
                return Err(ClientError::NotARegistry { registry: reference.registry().to_string() });
            }
            let bytes = read_bounded(response.body_mut().as_reader(), &what)?;
            // A pinned digest is the user's word; the header is only the registry's, but if it contradicts
            // the body something on the way has changed one of them.
            let expected = reference.digest().cloned().or(promised);
            let digest = match expected {
                None => Digest::sha256(&bytes),
                Some(expected) => {
                    let mut hasher = Hasher::new(expected.algorithm());
                    hasher.update(&bytes);
                    let actual = hasher.finish();
                    if actual != expected {
                        let error = VerifyError::DigestMismatch { what: what.clone(), expected, actual };
                        return Err(ClientError::Verify(Box::new(error)));
                    }
                    actual
                }
            };
            Ok(FetchedManifest { bytes, digest, content_type })
        })
    }

    /// Opens a blob; the stream resumes by itself after interruptions. Nothing is verified here.
    ///
    /// # Errors
    /// When the registry does not deliver it.
    pub fn open_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        what: &str,
    ) -> Result<impl Read + Send + use<'_>, ClientError> {
        ResumingBlob::open(&self.http, reference.clone(), descriptor.clone(), what.to_owned())
    }

    /// Binds the client to one image.
    #[must_use]
    pub fn image<'a>(&'a self, reference: &'a Reference) -> RegistryImage<'a> {
        RegistryImage { client: self, reference }
    }
}

fn read_bounded(reader: impl Read, what: &str) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| ClientError::Interrupted { what: what.to_owned(), source })?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(ClientError::TooLarge { what: what.to_owned(), limit: MAX_MANIFEST_BYTES });
    }
    Ok(bytes)
}

/// An image in a registry.
#[derive(Debug, Clone, Copy)]
pub struct RegistryImage<'a> {
    client: &'a Client,
    reference: &'a Reference,
}

impl LayerSource for RegistryImage<'_> {
    fn open_layer(&self, what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let blob = self.client.open_blob(self.reference, descriptor, what).map_err(io::Error::other)?;
        Ok(Box::new(blob))
    }
}

impl ImageSource for RegistryImage<'_> {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        self.client.fetch_manifest(self.reference).map_err(SourceError::Registry)
    }

    fn fetch_child(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        let pinned = self.reference.with_digest(descriptor.digest.clone());
        self.client.fetch_manifest(&pinned).map_err(SourceError::Registry)
    }
}
