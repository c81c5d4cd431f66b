//! One request to a registry: scheme, proof of who we are, redirects, retries, and errors by status.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use situla_oci::{Registry, Repository};
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body, SendBody};

use super::agents::{Agents, Channel};
use super::auth::{Challenge, Token, TokenService};
use super::credentials::{Credentials, Login};
use super::error::{ClientError, Withheld};
use super::retry;
use super::secret::Secret;
use super::token::{Access, Proof, Proofs, Purpose, Slot};
use super::url::Url;
use super::{ClientOptions, Transport};

const MAX_REDIRECTS: usize = 5;
/// Bytes of an error's or token's body that are read.
const MAX_SMALL_BODY: u64 = 256 * 1024;
/// Longest message of a registry that is repeated.
const MAX_MESSAGE: usize = 300;
/// Bytes above which a server is asked whether it wants them before they are sent: one that refuses closes the
/// connection, and its answer would be lost.
const EXPECT_ABOVE: u64 = 1 << 20;

/// A registry that is spoken to, and about what.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) registry: Registry,
    /// None for what concerns the registry alone.
    pub(crate) repository: Option<Repository>,
    pub(crate) access: Access,
    pub(crate) transport: Transport,
}

impl Target {
    fn purpose(&self) -> Purpose {
        (self.registry.clone(), self.repository.clone(), self.access.clone())
    }

    fn scopes(&self) -> Vec<String> {
        self.repository.as_ref().map(|repository| self.access.scopes(repository)).unwrap_or_default()
    }
}

/// What a request does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Verb {
    #[default]
    Get,
    Head,
    Post,
    Patch,
    Put,
}

impl Verb {
    fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Post => Method::POST,
            Self::Patch => Method::PATCH,
            Self::Put => Method::PUT,
        }
    }

    fn only_asks(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

/// Bytes that may be sent several times.
pub(crate) trait Bytes: Sync {
    /// Opens them, from the first one on.
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;
}

impl Bytes for &[u8] {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(*self))
    }
}

/// What a request brings along.
#[derive(Clone, Copy)]
pub(crate) struct Content<'q> {
    pub(crate) media_type: &'q str,
    pub(crate) size: u64,
    /// First and last byte, where it is a part of something.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) bytes: &'q dyn Bytes,
}

impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.size, self.media_type)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Question<'q> {
    pub(crate) verb: Verb,
    /// Path and query at the registry.
    pub(crate) path: &'q str,
    /// Where to ask instead: what the registry has named for it before.
    pub(crate) at: Option<&'q Url>,
    pub(crate) content: Option<Content<'q>>,
    pub(crate) accept: Option<&'q str>,
    /// Where a part of a blob begins.
    pub(crate) from: Option<u64>,
    /// Whether the whole answer has to come within the client's limit for small ones.
    pub(crate) is_small: bool,
    /// Bytes that the registry has to bring in order before it answers.
    pub(crate) to_store: u64,
    /// How it is called in messages.
    pub(crate) what: &'q str,
}

/// Speaks HTTP to registries.
#[derive(Debug)]
pub(crate) struct Http {
    options: ClientOptions,
    agents: Agents,
    proofs: Proofs,
    /// What was found out of registries of [`Transport::Insecure`].
    insecure: Mutex<HashMap<Registry, Channel>>,
}

/// The connection to a registry's own host, by which others are judged.
struct Origin<'t> {
    target: &'t Target,
    url: Url,
    channel: Channel,
}

impl Origin<'_> {
    /// Tells whether nobody but the registry can have answered: certified by TLS, or on this machine.
    fn is_certain(&self) -> bool {
        self.channel == Channel::Tls || self.url.is_loopback()
    }

    /// How another URL that the registry names may be spoken to; `None` if it may not.
    fn channel_to(&self, url: &Url) -> Option<Channel> {
        let same_host = url.host() == self.url.host();
        match (url.tls, self.channel) {
            (true, Channel::Unverified) if same_host => Some(Channel::Unverified),
            (true, _) => Some(Channel::Tls),
            // What was asked for one host, or goes without saying on this machine, is no leave for others; and none
            // to a registry that is certain to make us speak plainly.
            (false, Channel::Plain) if same_host || (self.url.is_loopback() && url.is_loopback()) => {
                Some(Channel::Plain)
            }
            (false, _) => None,
        }
    }

    /// Tells whether a login at this registry may be sent to a token service that it names. A registry that is certain
    /// may name any that is certain, too. One that anybody on the way can speak for gets no more than it has: the
    /// login goes to its own host, in the way that it is spoken to itself.
    fn may_name(&self, realm: &Url) -> bool {
        let Some(channel) = self.channel_to(realm) else { return false };
        let certain = channel == Channel::Tls || realm.is_loopback();
        (self.is_certain() && certain) || realm.host() == self.url.host()
    }

    /// Tells whether a login must not be sent, and why. To plain HTTP a registry can fall without anybody's asking, and
    /// whoever is on the way can see to that. curl and enroot give the login of a host to all its ports; here the port
    /// must prove that it is that host.
    fn withholds(&self, login: &Credentials) -> Option<Withheld> {
        let asked = self.target.transport == Transport::Plain;
        match self.channel {
            _ if self.is_certain() => None,
            Channel::Plain if !asked => Some(Withheld::InClear),
            _ => login.of_any_port.then_some(Withheld::AnotherPort),
        }
    }

    /// Tells whether a login that is kept under the name of a token service may be used for this registry. What one
    /// port of a host has is not for whoever is on another one or on the way to it: the registry must be certain, and
    /// nobody may listen to what the token service is told.
    fn may_borrow(&self, realm: &Url) -> bool {
        self.is_certain() && (realm.tls || realm.is_loopback())
    }
}

impl Http {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Self { options, agents: Agents::default(), proofs: Proofs::default(), insecure: Mutex::default() }
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Runs `request` until it succeeds, fails for good, or attempts or patience are used up.
    pub(crate) fn with_retries<T>(
        &self,
        n_attempts: u32,
        mut request: impl FnMut() -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let began = Instant::now();
        let mut attempt = 1;
        loop {
            let error = match request() {
                Err(error) if error.is_transient() && attempt < n_attempts => error,
                result => return result,
            };
            match self.pause(attempt, error.retry_after(), began) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(error),
            }
            attempt += 1;
        }
    }

    /// How long to wait before attempt number `attempt + 1` of something that began at `began`; `None` if that is
    /// longer than anybody would wait.
    pub(crate) fn pause(&self, attempt: u32, asked: Option<Duration>, began: Instant) -> Option<Duration> {
        let own = retry::pause(self.options.backoff, self.options.max_backoff, attempt);
        let pause = own.max(asked.unwrap_or_default());
        let in_all = began.elapsed().checked_add(pause)?;
        (in_all <= self.options.patience).then_some(pause)
    }

    /// Sends one GET, following redirects and proving who we are if asked to. The response is a 200 or 206.
    pub(crate) fn get_once(
        &self,
        target: &Target,
        question: Question<'_>,
    ) -> Result<Response<Body>, ClientError> {
        self.ask_once(target, question, &[200, 206]).map(|(response, _)| response)
    }

    /// Sends one request, following redirects and proving who we are if asked to. The response has one of the `wanted`
    /// statuses; it comes with the URL that has given it, against which a `Location` in it is to be read.
    pub(crate) fn ask_once(
        &self,
        target: &Target,
        question: Question<'_>,
        wanted: &[u16],
    ) -> Result<(Response<Body>, Url), ClientError> {
        let channel = self.channel(target)?;
        let tls = channel != Channel::Plain;
        let own = Url { tls, authority: target.registry.to_string(), path: question.path.to_owned() };
        let origin = Origin { target, url: own.clone(), channel };
        let start = question.at.cloned().unwrap_or(own);
        let purpose = target.purpose();
        let make =
            |challenge: &Challenge, slot: &mut Slot| self.prove(&origin, challenge, slot, question.what);
        let mut proof = self.proofs.current(&purpose, make)?;
        let mut answered = false;
        let mut away = false;
        let mut url = start.clone();
        let mut n_redirects = 0;
        loop {
            // Whoever we were sent to does not send us back with our proof.
            away |= !url.same_origin(&origin.url);
            let authorization = proof.as_ref().filter(|_| !away);
            let response = self.send(&origin, &url, question, authorization.map(|proof| &proof.header))?;
            match response.status().as_u16() {
                status if wanted.contains(&status) => return Ok((response, url)),
                status @ (301 | 302 | 303 | 307 | 308) => {
                    n_redirects += 1;
                    let location = header(&response, "location").and_then(|l| url.join(l));
                    let protocol = |problem: &str| ClientError::Protocol {
                        what: question.what.to_owned(),
                        problem: problem.to_owned(),
                    };
                    // With the others a request becomes another one (RFC 9110 section 15.4).
                    if !question.verb.only_asks() && !matches!(status, 307 | 308) {
                        return Err(protocol("a redirect of what was sent"));
                    }
                    url = location.ok_or_else(|| protocol("a redirect without a usable location"))?;
                    if n_redirects > MAX_REDIRECTS {
                        return Err(protocol("too many redirects"));
                    }
                }
                401 if !away && !answered => {
                    answered = true;
                    let challenge = Challenge::choose(headers(&response, "www-authenticate"));
                    let Some(challenge) = challenge else {
                        return Err(self.refused(&origin, response, question.what, proof.as_ref()));
                    };
                    let make = |challenge: &Challenge, slot: &mut Slot| {
                        self.prove(&origin, challenge, slot, question.what)
                    };
                    proof = Some(self.proofs.answer(&purpose, challenge, proof.as_ref(), make)?);
                    // From the beginning: the redirects before belong to the answer without proof.
                    url = start.clone();
                }
                _ => return Err(self.refused(&origin, response, question.what, authorization)),
            }
        }
    }

    /// Tells whether a registry has accepted a login.
    pub(crate) fn has_proved(&self, target: &Target) -> bool {
        self.proofs.has_login(&target.purpose())
    }

    /// How a registry is spoken to.
    fn channel(&self, target: &Target) -> Result<Channel, ClientError> {
        let registry = &target.registry;
        match target.transport {
            Transport::Auto if registry.is_loopback() => Ok(Channel::Plain),
            Transport::Auto | Transport::Tls => Ok(Channel::Tls),
            Transport::Plain => Ok(Channel::Plain),
            Transport::Insecure => {
                let mut known = self.insecure.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(channel) = known.get(registry) {
                    return Ok(*channel);
                }
                let url = Url { tls: true, authority: registry.to_string(), path: "/v2/".to_owned() };
                let agent = self.agents.get(&self.options, &url, Channel::Unverified)?;
                // An answer of any kind will do; none may be due to a server that speaks no TLS.
                let answer = agent
                    .get(url.to_string())
                    .config()
                    .timeout_global(Some(self.options.connect_timeout))
                    .build()
                    .call();
                let channel = if answer.is_ok() { Channel::Unverified } else { Channel::Plain };
                known.insert(registry.clone(), channel);
                Ok(channel)
            }
        }
    }

    fn send(
        &self,
        origin: &Origin<'_>,
        url: &Url,
        question: Question<'_>,
        authorization: Option<&Secret>,
    ) -> Result<Response<Body>, ClientError> {
        let agent = self.agent(origin, url)?;
        let mut request = Request::builder()
            .method(question.verb.method())
            .uri(url.to_string())
            .header("accept", question.accept.unwrap_or("*/*"));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization.expose());
        }
        if let Some(from) = question.from {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(Content { media_type, size, range, .. }) = question.content {
            request = request.header("content-type", media_type).header("content-length", size);
            if let Some((first, last)) = range {
                // As the distribution specification writes it, without a unit.
                request = request.header("content-range", format!("{first}-{last}"));
            }
            if size > EXPECT_ABOVE {
                request = request.header("expect", "100-continue");
            }
        }
        let registry = &origin.target.registry;
        let failed = |error| unreachable(registry, question.what, error);
        let unread = |source: io::Error| ClientError::Content { what: question.what.to_owned(), source };
        let timeout = question.is_small.then_some(self.options.small_timeout);
        let Some(content) = question.content else {
            let request = request.body(()).map_err(|error| failed(error.into()))?;
            let request = agent.configure_request(request).timeout_global(timeout).build();
            return agent.run(request).map_err(failed);
        };
        let mut reader = Noted { inner: content.bytes.open().map_err(unread)?, failure: None };
        let request =
            request.body(SendBody::from_reader(&mut reader)).map_err(|error| failed(error.into()))?;
        let within = answer_within(self.options.read_timeout, question.to_store);
        let request = agent
            .configure_request(request)
            .timeout_global(timeout)
            .timeout_recv_response(Some(within))
            .build();
        let answer = agent.run(request);
        // What we could not read is no failure of the registry's.
        answer.map_err(|error| reader.failure.map_or_else(|| failed(error), unread))
    }

    fn agent(&self, origin: &Origin<'_>, url: &Url) -> Result<Agent, ClientError> {
        let channel =
            origin.channel_to(url).ok_or_else(|| ClientError::PlainHttp { host: url.authority.clone() })?;
        self.agents.get(&self.options, url, channel)
    }

    /// Makes a proof that answers a challenge of the registry.
    fn prove(
        &self,
        origin: &Origin<'_>,
        challenge: &Challenge,
        slot: &mut Slot,
        what: &str,
    ) -> Result<Proof, ClientError> {
        let registry = &origin.target.registry;
        let login = self.login_for(origin, challenge)?;
        if let Some(found) = &login
            && let Some(why) = origin.withholds(found)
        {
            let (registry, origin) = (registry.to_string(), found.origin.clone());
            return Err(ClientError::Withheld { registry, origin, why });
        }
        let service = match (challenge, &login) {
            (_, Some(Credentials { login: Login::RegistryToken(token), origin, .. })) => {
                let header = Secret::new(format!("Bearer {}", token.expose()));
                return Ok(Proof::new(header, Some(origin.clone()), None));
            }
            (Challenge::Basic, login) => {
                let basic = login.as_ref().and_then(|found| Some((found.login.to_basic()?, &found.origin)));
                let Some((basic, origin)) = basic else {
                    return Err(ClientError::Unauthorized { what: what.to_owned(), message: String::new() });
                };
                let header = Secret::new(format!("Basic {}", basic.expose()));
                return Ok(Proof::new(header, Some(origin.clone()), None));
            }
            (Challenge::Bearer(service), _) => service,
        };
        if login.is_some() && !origin.may_name(&service.realm) {
            let realm = Url { path: String::new(), ..service.realm.clone() }.to_string();
            return Err(ClientError::Realm { registry: registry.to_string(), realm });
        }
        let token = self.fetch_token(origin, service, login.as_ref(), slot, what)?;
        if let Some(refresh) = token.refresh {
            slot.refresh = Some(refresh);
        }
        let header = Secret::new(format!("Bearer {}", token.access.expose()));
        Ok(Proof::new(header, login.map(|login| login.origin), Some(token.lifetime)))
    }

    /// The login that a challenge of the registry is answered with.
    ///
    /// It may be kept under the name of the token service, as enroot does; where that is another host than the registry,
    /// it is not used: any registry can name any realm, and would be given a token of another one's. That the
    /// registry's own name has no login of the user who was named is no reason not to look there.
    fn login_for(
        &self,
        origin: &Origin<'_>,
        challenge: &Challenge,
    ) -> Result<Option<Credentials>, ClientError> {
        let Target { registry, repository, .. } = origin.target;
        let found = self.login(registry, repository.as_ref());
        let realm = match challenge {
            Challenge::Bearer(service) if origin.may_borrow(&service.realm) => challenge.realm_of(registry),
            _ => None,
        };
        match (found, realm) {
            (found @ (Ok(None) | Err(_)), Some(realm)) => match self.login(&realm, None) {
                // An access token is sent as it is, and to the registry: this one is for the other port.
                Ok(None | Some(Credentials { login: Login::RegistryToken(_), .. })) => found,
                Ok(login) => Ok(login),
                Err(error) => found.and(Err(error)),
            },
            (found, _) => found,
        }
    }

    fn login(
        &self,
        registry: &Registry,
        repository: Option<&Repository>,
    ) -> Result<Option<Credentials>, ClientError> {
        let found = self.options.keyring.login(registry, repository);
        found.map_err(|source| ClientError::Keyring { host: registry.to_string(), source })
    }

    fn fetch_token(
        &self,
        origin: &Origin<'_>,
        service: &TokenService,
        credentials: Option<&Credentials>,
        slot: &Slot,
        what: &str,
    ) -> Result<Token, ClientError> {
        let scopes = origin.target.scopes();
        let registry = &origin.target.registry;
        let login = credentials.map(|found| &found.login);
        let mut response = if let Some(Login::IdentityToken(token)) = login {
            let form = service.refresh_form(&scopes, slot.refresh.as_ref().unwrap_or(token));
            let agent = self.agent(origin, &service.realm)?;
            agent
                .post(service.realm.to_string())
                .header("content-type", "application/x-www-form-urlencoded")
                .config()
                .timeout_global(Some(self.options.small_timeout))
                .build()
                .send(form.expose())
                .map_err(|error| unreachable(registry, what, error))?
        } else {
            let basic = login.and_then(Login::to_basic);
            let header = basic.map(|basic| Secret::new(format!("Basic {}", basic.expose())));
            let question = Question { what, is_small: true, ..Question::default() };
            let url = service.token_url(&scopes, header.is_some());
            self.send(origin, &url, question, header.as_ref())?
        };
        let problem =
            |problem: &str| ClientError::Protocol { what: what.to_owned(), problem: problem.to_owned() };
        match response.status().as_u16() {
            200 => Token::parse(&small_body(&mut response))
                .ok_or_else(|| problem("the token service gave no token")),
            // To follow would be to send the login to whoever is named there.
            300..=399 => Err(problem("the token service is elsewhere")),
            status => {
                let mut secrets: Vec<Secret> = slot.refresh.iter().cloned().collect();
                secrets.extend(login.map(|login| login.secret().clone()));
                secrets.extend(login.and_then(Login::to_basic));
                let error = failure(response, registry, what, &secrets);
                match (credentials, status, error.message()) {
                    (Some(found), 400 | 401 | 403, Some(message)) => Err(ClientError::LoginRejected {
                        registry: registry.to_string(),
                        origin: found.origin.clone(),
                        message: message.to_owned(),
                    }),
                    _ => Err(error),
                }
            }
        }
    }

    /// Makes an error of a response that is none of those expected, to a request with `proof`.
    fn refused(
        &self,
        origin: &Origin<'_>,
        response: Response<Body>,
        what: &str,
        proof: Option<&Proof>,
    ) -> ClientError {
        // Of what was sent only the part after the scheme is secret.
        let sent = proof.and_then(|proof| proof.header.expose().split_once(' '));
        let secrets: Vec<Secret> = sent.iter().map(|(_, secret)| Secret::new(*secret)).collect();
        let is_basic = sent.is_some_and(|(scheme, _)| scheme == "Basic");
        let error = failure(response, &origin.target.registry, what, &secrets);
        match (error, proof.and_then(|proof| proof.origin.clone())) {
            (ClientError::Unauthorized { message, .. }, Some(found)) if is_basic => {
                ClientError::LoginRejected {
                    registry: origin.target.registry.to_string(),
                    origin: found,
                    message,
                }
            }
            (error, _) => error,
        }
    }
}

/// How long the answer may take to something that the registry stores first: some copy it once more, in a storage
/// that is elsewhere.
fn answer_within(silence: Duration, to_store: u64) -> Duration {
    /// Bytes in a second, of a slow storage.
    const PACE: u64 = 8 << 20;
    silence.saturating_add(Duration::from_secs(to_store / PACE))
}

/// Remembers why reading has failed: to the HTTP library it is a failure like that of the connection.
struct Noted<'r> {
    inner: Box<dyn Read + 'r>,
    failure: Option<io::Error>,
}

impl Read for Noted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => {
                self.failure = Some(error);
                kind.into()
            }
        })
    }
}

fn unreachable(registry: &Registry, what: &str, error: ureq::Error) -> ClientError {
    match error {
        // Its message would show the whole URL, which may be signed.
        ureq::Error::BadUri(_) => ClientError::Protocol {
            what: what.to_owned(),
            problem: "a redirect without a usable location".to_owned(),
        },
        error => ClientError::Unreachable { registry: registry.to_string(), source: Box::new(error) },
    }
}

pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn headers<'a>(response: &'a Response<Body>, name: &'a str) -> impl Iterator<Item = &'a str> {
    response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
}

fn small_body(response: &mut Response<Body>) -> Vec<u8> {
    /// A server that drips is not waited for: the body only adds words to an error.
    const PATIENCE: Duration = Duration::from_secs(20);
    let began = Instant::now();
    let (mut body, mut part) = (Vec::new(), [0; 8192]);
    let mut reader = response.body_mut().as_reader().take(MAX_SMALL_BODY);
    // A broken one adds none.
    while began.elapsed() < PATIENCE
        && let Ok(read) = reader.read(&mut part)
        && read > 0
    {
        body.extend_from_slice(part.get(..read).unwrap_or_default());
    }
    body
}

/// Makes an error of a response that is none of those expected; `secrets` are not repeated.
fn failure(mut response: Response<Body>, registry: &Registry, what: &str, secrets: &[Secret]) -> ClientError {
    let status = response.status().as_u16();
    let html = header(&response, "content-type").is_some_and(|t| t.starts_with("text/html"));
    let speaks_registry = header(&response, "docker-distribution-api-version").is_some();
    let date = header(&response, "date");
    let retry_after = header(&response, "retry-after").and_then(|value| retry::retry_after(value, date));
    let message = message_of(&small_body(&mut response), secrets);
    let what = what.to_owned();
    match status {
        404 if html && !speaks_registry => ClientError::NotARegistry { registry: registry.to_string() },
        404 => ClientError::NotFound { what },
        401 => ClientError::Unauthorized { what, message },
        403 => ClientError::Denied { what, message },
        429 => ClientError::TooManyRequests { registry: registry.to_string(), retry_after },
        _ => ClientError::Server { what, status, message, retry_after },
    }
}

/// Takes the first message out of a registry's or token service's error document, with a separator before it.
fn message_of(body: &[u8], secrets: &[Secret]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Item>,
        /// OAuth2's form (RFC 6749 section 5.2); many say the same in `details`.
        #[serde(default)]
        error_description: String,
        #[serde(default)]
        details: String,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let text = match document.errors.into_iter().next() {
        Some(item) => format!("{} {}", item.code, item.message),
        None if document.details.is_empty() => document.error_description,
        None => document.details,
    };
    // Before it is cut, which might leave the beginning of a secret.
    let text = secrets.iter().fold(text, |text, secret| secret.hide_in(&text));
    let text: String = text.trim().chars().take(MAX_MESSAGE).collect();
    if text.is_empty() { text } else { format!(": {}", text.escape_debug()) }
}

#[cfg(test)]
mod tests;
