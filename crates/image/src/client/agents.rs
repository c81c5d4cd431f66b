//! Connections: which authorities, client certificate and proxy are used for which host.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::ClientOptions;
use super::error::ClientError;
use super::keyring::{Certificates, ClientCertificate, KeyringError};
use super::proxy::ProxyAddress;
use super::url::Url;

const USER_AGENT: &str = concat!("situla/", env!("CARGO_PKG_VERSION"));

/// Hosts whose connections are remembered; a registry that redirects to ever new ones makes us begin anew.
const MAX_HOSTS: usize = 256;

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    /// Plain HTTP.
    Plain,
    /// TLS, the host being who it says.
    Tls,
    /// TLS with whoever answers.
    Unverified,
}

/// Agents: pools of connections with equal settings.
#[derive(Default)]
pub(crate) struct Agents {
    /// By host and port.
    by_host: Mutex<HashMap<(Channel, String), Agent>>,
    /// Those of hosts without certificates of their own.
    shared: Mutex<HashMap<(Channel, Option<ProxyAddress>), Agent>>,
    /// The system's authorities.
    system: OnceLock<Arc<[Certificate<'static>]>>,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

impl Agents {
    /// The agent for a URL.
    pub(crate) fn get(
        &self,
        options: &ClientOptions,
        url: &Url,
        channel: Channel,
    ) -> Result<Agent, ClientError> {
        let key = (channel, url.authority.clone());
        if let Some(agent) = self.by_host.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(agent.clone());
        }
        let proxy = options.proxies.choose(url);
        let certificates = match channel {
            Channel::Plain => None,
            Channel::Tls | Channel::Unverified => options
                .keyring
                .certificates(&url.authority)
                .map_err(|source| ClientError::Keyring { host: url.authority.clone(), source })?,
        };
        let agent = match certificates {
            Some(own) => self.make(options, url, channel, proxy, Some(&own))?,
            None => {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                let key = (channel, proxy.cloned());
                match shared.get(&key) {
                    Some(agent) => agent.clone(),
                    None => {
                        let agent = self.make(options, url, channel, proxy, None)?;
                        shared.insert(key, agent.clone());
                        agent
                    }
                }
            }
        };
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if by_host.len() >= MAX_HOSTS {
            by_host.clear();
        }
        by_host.insert(key, agent.clone());
        Ok(agent)
    }

    fn make(
        &self,
        options: &ClientOptions,
        url: &Url,
        channel: Channel,
        proxy: Option<&ProxyAddress>,
        own: Option<&Certificates>,
    ) -> Result<Agent, ClientError> {
        let tls = match channel {
            Channel::Plain => None,
            _ => Some(self.tls_config(options, &url.authority, channel, own)?),
        };
        let proxy = match proxy {
            None => None,
            Some(address) => Some(
                ureq::Proxy::new(address.expose())
                    .map_err(|_| ClientError::BadProxy { proxy: address.clone() })?,
            ),
        };
        // Redirects and statuses are handled by our caller; the proxy of the environment is the edge's business.
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

    fn tls_config(
        &self,
        options: &ClientOptions,
        host: &str,
        channel: Channel,
        own: Option<&Certificates>,
    ) -> Result<TlsConfig, ClientError> {
        let unusable = |problem: &str| ClientError::Keyring {
            host: host.to_owned(),
            source: KeyringError {
                message: format!("its {problem} cannot be used"),
                remedy: format!("check the files of {host} in certs.d"),
            },
        };
        let mut roots: Vec<Certificate<'static>> =
            options.extra_roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        for pem in own.iter().flat_map(|own| &own.authorities) {
            for item in parse_pem(pem) {
                if let PemItem::Certificate(root) = item.map_err(|_| unusable("certificate authority"))? {
                    roots.push(root);
                }
            }
        }
        if channel == Channel::Tls {
            roots.extend(self.system_roots(!roots.is_empty())?.iter().cloned());
        }
        let client = own.and_then(|own| own.client.as_ref());
        let client = client.map(|client| {
            client_cert(client).ok_or_else(|| unusable("client certificate, or the key of that,"))
        });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .client_cert(client.transpose()?)
            .disable_verification(channel == Channel::Unverified)
            .unversioned_rustls_crypto_provider(provider)
            .build())
    }

    /// The system's authorities; it may have none where there are others.
    fn system_roots(&self, others: bool) -> Result<Arc<[Certificate<'static>]>, ClientError> {
        if let Some(roots) = self.system.get() {
            return Ok(roots.clone());
        }
        let loaded = rustls_native_certs::load_native_certs();
        if loaded.certs.is_empty() && !others {
            let problem =
                loaded.errors.first().map_or_else(|| "none installed".to_owned(), ToString::to_string);
            return Err(ClientError::NoRoots { problem });
        }
        let roots: Arc<[_]> =
            loaded.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
        if roots.is_empty() {
            // The next host may have none of its own, and is told so.
            return Ok(roots);
        }
        Ok(self.system.get_or_init(|| roots).clone())
    }
}

/// Reads a client certificate; `None` if it or its key is unusable.
fn client_cert(client: &ClientCertificate) -> Option<ClientCert> {
    let mut chain = Vec::new();
    for item in parse_pem(&client.chain) {
        if let PemItem::Certificate(certificate) = item.ok()? {
            chain.push(certificate);
        }
    }
    let pem = client.key.expose().as_bytes();
    // ureq takes it for granted that certificate and key belong together, and panics otherwise.
    let key = PrivateKeyDer::from_pem_slice(pem).ok()?;
    let ders = chain.iter().map(|certificate| certificate.der().to_vec().into()).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(ders, key)
        .ok()?;
    Some(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(pem).ok()?))
}
