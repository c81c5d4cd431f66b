//! One request to a registry: scheme, token, redirects, retries, and errors by status.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use situla_oci::{DOCKER_HUB, Reference, Registry};
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::auth::{Challenge, parse_token};
use super::error::ClientError;
use super::url::Url;
use super::{ClientOptions, Transport};

const USER_AGENT: &str = concat!("situla/", env!("CARGO_PKG_VERSION"));
/// The host that serves the Hub's images; its name in references is another.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
const MAX_REDIRECTS: usize = 5;
/// Bytes of an error's or token's body that are read.
const MAX_SMALL_BODY: u64 = 256 * 1024;
/// Longest message of a registry that is repeated.
const MAX_MESSAGE: usize = 300;

pub(crate) struct Http {
    options: ClientOptions,
    plain: OnceLock<Agent>,
    tls: Mutex<Option<Agent>>,
    /// Tokens by registry and repository. They live minutes; a rejected one is replaced.
    tokens: Mutex<HashMap<(String, String), String>>,
}

impl fmt::Debug for Http {
    // Tokens stay out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Http {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Self { options, plain: OnceLock::new(), tls: Mutex::new(None), tokens: Mutex::default() }
    }

    pub(crate) fn n_attempts(&self) -> u32 {
        self.options.n_attempts.max(1)
    }

    /// Runs `request` until it succeeds, fails for good, or the attempts are used up.
    pub(crate) fn with_retries<T>(
        &self,
        mut request: impl FnMut() -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut attempt = 1;
        loop {
            match request() {
                Err(error) if error.is_transient() && attempt < self.n_attempts() => {
                    self.pause(attempt, error.retry_after());
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Waits before attempt number `attempt + 1`.
    pub(crate) fn pause(&self, attempt: u32, asked: Option<Duration>) {
        let doubled = self.options.backoff.saturating_mul(1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        std::thread::sleep(doubled.max(asked.unwrap_or_default()).min(self.options.max_backoff));
    }

    /// Sends one GET, following redirects and fetching a token if asked to. The response is a 200 or 206.
    pub(crate) fn get_once(
        &self,
        reference: &Reference,
        path: &str,
        accept: Option<&str>,
        range_from: Option<u64>,
        what: &str,
    ) -> Result<Response<Body>, ClientError> {
        let origin = self.base_url(reference.registry(), path);
        let token_key = (reference.registry().to_string(), reference.repository().to_string());
        let mut token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&token_key).cloned();
        let mut asked_for_token = false;
        let mut url = origin.clone();
        let mut n_redirects = 0;
        loop {
            let at_registry = url.same_origin(&origin);
            let authorization = token.as_deref().filter(|_| at_registry);
            let response = self.send(&url, accept, range_from, authorization, reference)?;
            match response.status().as_u16() {
                200 | 206 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    n_redirects += 1;
                    let location = header(&response, "location").and_then(|l| url.join(l));
                    let protocol = |problem: &str| ClientError::Protocol {
                        what: what.to_owned(),
                        problem: problem.to_owned(),
                    };
                    url = location.ok_or_else(|| protocol("a redirect without a usable location"))?;
                    if n_redirects > MAX_REDIRECTS {
                        return Err(protocol("too many redirects"));
                    }
                }
                401 if at_registry && !asked_for_token => {
                    asked_for_token = true;
                    let Some(challenge) = header(&response, "www-authenticate").and_then(Challenge::parse)
                    else {
                        return Err(failure(response, reference.registry(), what));
                    };
                    let fresh = self.fetch_token(&challenge, reference, what)?;
                    let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    tokens.insert(token_key.clone(), fresh.clone());
                    token = Some(fresh);
                }
                _ => return Err(failure(response, reference.registry(), what)),
            }
        }
    }

    fn base_url(&self, registry: &Registry, path: &str) -> Url {
        let authority = match registry.as_str() {
            DOCKER_HUB => DOCKER_HUB_API,
            other => other,
        };
        let tls = match self.options.transport {
            Transport::Auto => !registry.is_loopback(),
            Transport::Tls => true,
            Transport::Plain => false,
        };
        Url { tls, authority: authority.to_owned(), path: path.to_owned() }
    }

    fn fetch_token(
        &self,
        challenge: &Challenge,
        reference: &Reference,
        what: &str,
    ) -> Result<String, ClientError> {
        let url = challenge.token_url(reference);
        let mut response = self.send(&url, None, None, None, reference)?;
        if response.status().as_u16() != 200 {
            return Err(failure(response, reference.registry(), what));
        }
        let body = small_body(&mut response);
        parse_token(&body).ok_or_else(|| ClientError::Protocol {
            what: what.to_owned(),
            problem: "the token service gave no token".to_owned(),
        })
    }

    fn send(
        &self,
        url: &Url,
        accept: Option<&str>,
        range_from: Option<u64>,
        token: Option<&str>,
        reference: &Reference,
    ) -> Result<Response<Body>, ClientError> {
        let agent = self.agent_for(url)?;
        let mut request = agent.get(url.to_string()).header("accept", accept.unwrap_or("*/*"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = range_from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| ClientError::Unreachable {
            registry: reference.registry().to_string(),
            source: Box::new(e),
        })
    }

    fn agent_for(&self, url: &Url) -> Result<Agent, ClientError> {
        if !url.tls {
            let loopback = url.authority.parse::<Registry>().is_ok_and(|r| r.is_loopback());
            let allowed = match self.options.transport {
                Transport::Auto => loopback,
                Transport::Tls => false,
                Transport::Plain => true,
            };
            if !allowed {
                return Err(ClientError::PlainHttp { host: url.authority.clone() });
            }
            if let Some(agent) = self.plain.get() {
                return Ok(agent.clone());
            }
            let agent = self.new_agent(None)?;
            return Ok(self.plain.get_or_init(|| agent).clone());
        }
        let mut slot = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = &*slot {
            return Ok(agent.clone());
        }
        let agent = self.new_agent(Some(tls_config(&self.options.extra_roots)?))?;
        *slot = Some(agent.clone());
        Ok(agent)
    }

    fn new_agent(&self, tls: Option<TlsConfig>) -> Result<Agent, ClientError> {
        let options = &self.options;
        let proxy = match &options.proxy {
            None => None,
            Some(text) => {
                let parsed = ureq::Proxy::new(text);
                Some(parsed.map_err(|_| ClientError::BadProxy { proxy: text.clone() })?)
            }
        };
        // Redirects and statuses are handled above; the proxy of the environment is the edge's business.
        let mut config = Agent::config_builder()
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.read_timeout))
            .timeout_per_read(Some(options.read_timeout))
            .timeout_per_write(Some(options.read_timeout));
        if let Some(tls) = tls {
            config = config.tls_config(tls);
        }
        Ok(config.build().into())
    }
}

fn tls_config(extra_roots: &[Vec<u8>]) -> Result<TlsConfig, ClientError> {
    let loaded = rustls_native_certs::load_native_certs();
    if loaded.certs.is_empty() && extra_roots.is_empty() {
        let problem = loaded.errors.first().map_or_else(|| "none installed".to_owned(), ToString::to_string);
        return Err(ClientError::NoRoots { problem });
    }
    let system = loaded.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned());
    let extra = extra_roots.iter().map(|der| Certificate::from_der(der).to_owned());
    let roots: Vec<_> = system.chain(extra).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn small_body(response: &mut Response<Body>) -> Vec<u8> {
    let mut body = Vec::new();
    // The body only adds words to an error; a broken one adds none.
    let _ = response.body_mut().as_reader().take(MAX_SMALL_BODY).read_to_end(&mut body);
    body
}

/// Makes an error of a response that is none of those expected.
fn failure(mut response: Response<Body>, registry: &Registry, what: &str) -> ClientError {
    let status = response.status().as_u16();
    let html = header(&response, "content-type").is_some_and(|t| t.starts_with("text/html"));
    let speaks_registry = header(&response, "docker-distribution-api-version").is_some();
    // Only seconds are understood; registries do not send dates.
    let retry_after =
        header(&response, "retry-after").and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
    let message = message_of(&small_body(&mut response));
    let what = what.to_owned();
    match status {
        404 if html && !speaks_registry => ClientError::NotARegistry { registry: registry.to_string() },
        404 => ClientError::NotFound { what },
        401 => ClientError::Unauthorized { what, message },
        403 => ClientError::Denied { what, message },
        429 => ClientError::TooManyRequests { registry: registry.to_string(), retry_after },
        _ => ClientError::Server { what, status, message },
    }
}

/// Takes the first message out of a registry's error document, with a separator before it.
fn message_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let Some(item) = document.errors.into_iter().next() else { return String::new() };
    let text: String = format!("{} {}", item.code, item.message).trim().chars().take(MAX_MESSAGE).collect();
    if text.is_empty() { text } else { format!(": {}", text.escape_debug()) }
}
