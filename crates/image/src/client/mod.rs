//! Pulling from OCI registries over HTTP(S), and pushing to them.
//!
//! One blocking client, safe to share between threads. It asks for nothing it has no limit for, follows
//! redirects without taking credentials along, retries what may pass by itself, and says in typed errors
//! what else went wrong. Plain HTTP is spoken to loopback hosts only, unless asked for.
//!
//! Logins and certificates come from a [`Keyring`] of the caller's, when a registry wants them; mirrors are
//! [`Route`]s. Nothing here reads a file or a variable.

mod agents;
mod auth;
mod blob;
mod credentials;
mod error;
mod http;
mod keyring;
mod proxy;
mod retry;
mod secret;
mod token;
mod upload;
mod url;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use situla_oci::{
    Descriptor, Digest, Hasher, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, Reference, Registry, Repository,
};

pub use credentials::{Credentials, Login};
pub use error::{ClientError, Distrusted, Withheld};
pub use keyring::{Certificates, ClientCertificate, EmptyKeyring, Keyring, KeyringError};
pub use proxy::{Exempt, Proxies, ProxyAddress};
pub use secret::Secret;

use self::blob::ResumingBlob;
pub(crate) use self::http::Bytes;
use self::http::{Http, Question, Target};
use self::token::Access;
pub(crate) use self::upload::{Arrival, Blob, Destination};
use crate::flatten::LayerSource;
use crate::source::{FetchedManifest, ImageSource, SourceError};
use crate::verify::VerifyError;

/// How a registry is spoken to. Hosts that it redirects to are spoken to by TLS; where the registry itself is spoken
/// to plainly, other ports of its host may be as well, and loopback hosts where it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS, but plain HTTP for loopback hosts.
    Auto,
    /// TLS always.
    Tls,
    /// Plain HTTP always.
    Plain,
    /// TLS with any certificate, or plain HTTP where there is no TLS: what containers' `registries.conf` calls
    /// insecure.
    Insecure,
}

/// A place where the contents of a repository are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The registry.
    pub registry: Registry,
    /// The repository there.
    pub repository: Repository,
    /// How that registry is spoken to.
    pub transport: Transport,
}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// How registries are spoken to that have no [`Route`].
    pub transport: Transport,
    /// Where repositories are found, tried in this order, that are not (only) found under their own name.
    pub routes: BTreeMap<(Registry, Repository), Vec<Route>>,
    /// What is known of hosts.
    pub keyring: Arc<dyn Keyring>,
    /// Certificate authorities in DER form trusted beside the system's (a site's own).
    pub extra_roots: Vec<Vec<u8>>,
    /// Which hosts are reached through a proxy.
    pub proxies: Proxies,
    /// Time to set up a connection.
    pub connect_timeout: Duration,
    /// Longest silence within a response.
    pub read_timeout: Duration,
    /// Longest time that a manifest or token may take, from connection to last byte.
    pub small_timeout: Duration,
    /// Attempts at a request before giving up; at least one is made.
    pub n_attempts: u32,
    /// Pause before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// Longest pause, unless the registry asks for a longer one.
    pub max_backoff: Duration,
    /// Longest time after which another attempt is begun. A registry that asks for a longer pause is not asked again.
    pub patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            transport: Transport::Auto,
            routes: BTreeMap::new(),
            keyring: Arc::new(EmptyKeyring),
            extra_roots: Vec::new(),
            proxies: Proxies::default(),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
            small_timeout: Duration::from_secs(120),
            n_attempts: 5,
            backoff: Duration::from_millis(300),
            max_backoff: Duration::from_secs(30),
            patience: Duration::from_secs(180),
        }
    }
}

/// Attempts at a place that is not the last one.
const MIRROR_ATTEMPTS: u32 = 2;

/// A registry client.
#[derive(Debug)]
pub struct Client {
    http: Http,
    /// Which of its routes a repository's manifest has come from.
    chosen: Mutex<HashMap<(Registry, Repository), usize>>,
}

/// What a registry says to a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginCheck {
    /// It accepts it.
    Accepted,
    /// It answers without one, and has not looked at it.
    NotAsked,
}

impl Client {
    /// Makes a client; nothing is opened or loaded before the first request.
    #[must_use]
    pub fn new(options: ClientOptions) -> Self {
        Self { http: Http::new(options), chosen: Mutex::default() }
    }

    /// Finds out whether a registry accepts the login that the keyring has for it.
    ///
    /// # Errors
    /// It does not, or cannot be asked.
    pub fn check_login(&self, registry: &Registry) -> Result<LoginCheck, ClientError> {
        let target = Target {
            registry: registry.clone(),
            repository: None,
            access: Access::Pull,
            transport: self.http.options().transport,
        };
        let what = format!("the interface of {registry}");
        let question = Question { path: "/v2/", is_small: true, what: &what, ..Question::default() };
        self.http.with_retries(self.http.options().n_attempts, || {
            let response = self.http.get_once(&target, question)?;
            let html = http::header(&response, "content-type").is_some_and(|t| t.starts_with("text/html"));
            if html { Err(ClientError::NotARegistry { registry: registry.to_string() }) } else { Ok(()) }
        })?;
        Ok(if self.http.has_proved(&target) { LoginCheck::Accepted } else { LoginCheck::NotAsked })
    }

    /// Fetches a manifest or index by the reference's digest or tag, verified as far as its digest is known.
    ///
    /// # Errors
    /// When it cannot be had, is too large, or does not match its digest.
    pub fn fetch_manifest(&self, reference: &Reference) -> Result<FetchedManifest, ClientError> {
        let what = format!("manifest of {reference}");
        self.at_each_route(reference, &what, |target, what, n_attempts| {
            self.http.with_retries(n_attempts, || self.manifest_at(target, reference, what))
        })
    }

    fn manifest_at(
        &self,
        target: &Target,
        reference: &Reference,
        what: &str,
    ) -> Result<FetchedManifest, ClientError> {
        let repository = target.repository.as_ref().unwrap_or(reference.repository());
        let path = format!("/v2/{repository}/manifests/{}", reference.selector());
        let accept = Some(MANIFEST_ACCEPT);
        let question = Question { path: &path, accept, is_small: true, what, ..Question::default() };
        let mut response = self.http.get_once(target, question)?;
        let content_type = http::header(&response, "content-type").map(str::to_owned);
        let promised =
            http::header(&response, "docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        if content_type.as_deref().is_some_and(|t| t.starts_with("text/html")) {
            return Err(ClientError::NotARegistry { registry: target.registry.to_string() });
        }
        let bytes = read_bounded(response.body_mut().as_reader(), what)?;
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
                    let error = VerifyError::DigestMismatch { what: what.to_owned(), expected, actual };
                    return Err(ClientError::Verify(Box::new(error)));
                }
                actual
            }
        };
        Ok(FetchedManifest { bytes, digest, content_type })
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
        self.at_each_route(reference, what, |target, what, n_attempts| {
            let (target, descriptor) = (target.clone(), descriptor.clone());
            ResumingBlob::open(&self.http, target, descriptor, what.to_owned(), n_attempts)
        })
    }

    /// Tries all places where a reference is found, the one first that had it before.
    fn at_each_route<T>(
        &self,
        reference: &Reference,
        what: &str,
        attempt: impl Fn(&Target, &str, u32) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let name = (reference.registry().clone(), reference.repository().clone());
        let options = self.http.options();
        let n_attempts = options.n_attempts.max(1);
        let Some(routes) = options.routes.get(&name).filter(|routes| !routes.is_empty()) else {
            let (registry, repository) = name;
            let target = Target {
                registry,
                repository: Some(repository),
                access: Access::Pull,
                transport: options.transport,
            };
            return attempt(&target, what, n_attempts);
        };
        let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        let others = (0..routes.len()).filter(|index| Some(*index) != chosen);
        let mut failure = None;
        for index in chosen.into_iter().chain(others) {
            let Some(Route { registry, repository, transport }) = routes.get(index).cloned() else {
                continue;
            };
            let is_elsewhere = (&registry, &repository) != (&name.0, &name.1);
            let what =
                if is_elsewhere { format!("{what} at {registry}/{repository}") } else { what.to_owned() };
            let target = Target { registry, repository: Some(repository), access: Access::Pull, transport };
            let is_last = index + 1 == routes.len();
            let n_attempts = if is_last { n_attempts } else { n_attempts.min(MIRROR_ATTEMPTS) };
            match attempt(&target, &what, n_attempts) {
                Ok(result) => {
                    self.chosen.lock().unwrap_or_else(PoisonError::into_inner).insert(name, index);
                    return Ok(result);
                }
                // Where there is no way to the registry itself, what its mirror has said tells more.
                Err(ClientError::Unreachable { .. })
                    if failure.as_ref().is_some_and(|f| !matches!(f, ClientError::Unreachable { .. })) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| ClientError::NotFound { what: what.to_owned() }))
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
