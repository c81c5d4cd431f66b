//! Bringing blobs and manifests to a registry (distribution specification 1.1, "Push").
//!
//! A blob that is there is not sent; one that another repository of the registry has is taken from there where the
//! registry does so. All others go in one request, or in parts where a server in between refuses that. Each attempt
//! is a session of its own: what was sent in one that broke is the registry's to forget, and nothing names it. A manifest
//! comes last, so that a tag never leads to what is not complete.

use std::io::{self, Read};
use std::time::Instant;

use situla_oci::{Descriptor, Digest, Repository};
use ureq::Body;
use ureq::http::Response;

use super::error::ClientError;
use super::http::{Bytes, Content, Http, Question, Target, Verb, header};
use super::token::Access;
use super::url::{Url, query_escape};
use super::{Client, Route};
use crate::verify::VerifyError;

/// Bytes of a part, where a blob has to go in parts: what proxies let through by their own settings is a few megabytes
/// or more.
const PART: u64 = 8 << 20;
/// Largest part that a registry may ask for; each is held in memory.
const MAX_PART: u64 = 64 << 20;

/// A blob to be pushed.
#[derive(Clone, Copy)]
pub(crate) struct Blob<'b> {
    pub(crate) descriptor: &'b Descriptor,
    /// How it is called in messages.
    pub(crate) what: &'b str,
    pub(crate) bytes: &'b dyn Bytes,
}

/// How a blob has come to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was there.
    Present,
    /// The registry has it from another repository.
    Mounted,
    /// It was sent.
    Sent,
}

/// A repository that is pushed to.
#[derive(Debug)]
pub(crate) struct Destination<'c> {
    http: &'c Http,
    target: Target,
    repository: Repository,
    /// Another repository there, that may have the blobs.
    from: Option<Repository>,
}

/// The place of an upload that a registry has begun, and the least size of parts that it asks for.
struct Session {
    url: Url,
    least_part: u64,
}

impl Client {
    /// A repository to push to; blobs that `from` has at the same registry need not be sent.
    pub(crate) fn destination(&self, to: &Route, from: Option<&Repository>) -> Destination<'_> {
        let from = from.filter(|from| **from != to.repository).cloned();
        let target = Target {
            registry: to.registry.clone(),
            repository: Some(to.repository.clone()),
            access: Access::Push { from: from.clone() },
            transport: to.transport,
        };
        Destination { http: &self.http, target, repository: to.repository.clone(), from }
    }
}

impl Destination<'_> {
    /// Makes sure that a blob is in the repository.
    pub(crate) fn put_blob(&self, blob: Blob<'_>) -> Result<Arrival, ClientError> {
        let n_attempts = self.http.options().n_attempts.max(1);
        let mut attempt = 1;
        loop {
            let error = match self.bring(blob) {
                Err(error) if error.is_transient() && attempt < n_attempts => error,
                result => return result,
            };
            // Not from the first attempt on: one may take long before it fails.
            match self.http.pause(attempt, error.retry_after(), Instant::now()) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(error),
            }
            attempt += 1;
        }
    }

    fn bring(&self, blob: Blob<'_>) -> Result<Arrival, ClientError> {
        if self.has(blob)? {
            return Ok(Arrival::Present);
        }
        let Some(session) = self.begin(blob)? else { return Ok(Arrival::Mounted) };
        match self.send_whole(blob, &session) {
            // What a proxy before the registry may say of bodies that it finds too long.
            Err(ClientError::Server { status: 413, .. }) => {
                let session = self.session(blob, "")?.1;
                self.send_parts(blob, session)?;
            }
            other => other?,
        }
        Ok(Arrival::Sent)
    }

    /// Whether a blob is there already. What says neither is no failure: pushing it tells.
    fn has(&self, blob: Blob<'_>) -> Result<bool, ClientError> {
        let path = format!("/v2/{}/blobs/{}", self.repository, blob.descriptor.digest);
        let question = Question {
            verb: Verb::Head,
            path: &path,
            is_small: true,
            what: blob.what,
            ..Question::default()
        };
        match self.http.ask_once(&self.target, question, &[200]) {
            Ok((response, _)) => {
                let size = header(&response, "content-length").and_then(|size| size.parse::<u64>().ok());
                Ok(size.is_none_or(|size| size == blob.descriptor.size))
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Begins an upload; `None` where the registry has taken the blob from the other repository.
    fn begin(&self, blob: Blob<'_>) -> Result<Option<Session>, ClientError> {
        let digest = query_escape(&blob.descriptor.digest.to_string());
        let query = match &self.from {
            Some(from) => format!("?mount={digest}&from={}", query_escape(from.as_str())),
            None => String::new(),
        };
        let (is_there, session) = self.session(blob, &query)?;
        Ok(Some(session).filter(|_| !is_there))
    }

    /// Asks for an upload; tells whether it is done already, and its place.
    fn session(&self, blob: Blob<'_>, query: &str) -> Result<(bool, Session), ClientError> {
        let path = format!("/v2/{}/blobs/uploads/{query}", self.repository);
        let content = Content { media_type: OCTETS, size: 0, range: None, bytes: &NOTHING };
        let question = Question {
            verb: Verb::Post,
            path: &path,
            content: Some(content),
            is_small: true,
            what: blob.what,
            ..Question::default()
        };
        let (response, url) = self.http.ask_once(&self.target, question, &[201, 202])?;
        let is_there = response.status().as_u16() == 201;
        let least_part = header(&response, "oci-chunk-min-length").and_then(|size| size.parse().ok());
        Ok((
            is_there,
            Session { url: location(&response, &url, blob.what)?, least_part: least_part.unwrap_or(0) },
        ))
    }

    /// Sends a blob in one request.
    fn send_whole(&self, blob: Blob<'_>, session: &Session) -> Result<(), ClientError> {
        let content =
            Content { media_type: OCTETS, size: blob.descriptor.size, range: None, bytes: blob.bytes };
        self.close(blob, &session.url, content)
    }

    /// Sends a blob part by part.
    fn send_parts(&self, blob: Blob<'_>, session: Session) -> Result<(), ClientError> {
        let unread = |source: io::Error| ClientError::Content { what: blob.what.to_owned(), source };
        let size = PART.max(session.least_part).min(MAX_PART);
        let mut url = session.url;
        let mut reader = blob.bytes.open().map_err(unread)?;
        let mut at: u64 = 0;
        loop {
            let mut part = Vec::new();
            reader.by_ref().take(size).read_to_end(&mut part).map_err(unread)?;
            let length = part.len() as u64;
            if length == 0 {
                break;
            }
            let range = Some((at, at + length - 1));
            let part = part.as_slice();
            let content = Content { media_type: OCTETS, size: length, range, bytes: &part };
            let question = Question {
                verb: Verb::Patch,
                at: Some(&url),
                content: Some(content),
                what: blob.what,
                ..Question::default()
            };
            let (response, from) = self.http.ask_once(&self.target, question, &[202])?;
            url = location(&response, &from, blob.what)?;
            at += length;
        }
        self.close(blob, &url, Content { media_type: OCTETS, size: 0, range: None, bytes: &NOTHING })
    }

    /// Ends an upload with what is still to come.
    fn close(&self, blob: Blob<'_>, url: &Url, content: Content<'_>) -> Result<(), ClientError> {
        let mut url = url.clone();
        let separator = if url.path.contains('?') { '&' } else { '?' };
        url.path
            .push_str(&format!("{separator}digest={}", query_escape(&blob.descriptor.digest.to_string())));
        let question = Question {
            verb: Verb::Put,
            at: Some(&url),
            content: Some(content),
            to_store: blob.descriptor.size,
            what: blob.what,
            ..Question::default()
        };
        self.http.ask_once(&self.target, question, &[201, 204]).map(drop)
    }

    /// Puts a manifest, under a tag or its digest.
    pub(crate) fn put_manifest(
        &self,
        selector: &str,
        media_type: &str,
        bytes: &[u8],
        digest: &Digest,
    ) -> Result<(), ClientError> {
        let path = format!("/v2/{}/manifests/{selector}", self.repository);
        let what = format!("the manifest {}/{}:{selector}", self.target.registry, self.repository);
        let content = Content { media_type, size: bytes.len() as u64, range: None, bytes: &bytes };
        let question = Question {
            verb: Verb::Put,
            path: &path,
            content: Some(content),
            is_small: true,
            what: &what,
            ..Question::default()
        };
        self.http.with_retries(self.http.options().n_attempts.max(1), || {
            // The specification knows 201 alone; some take it over first and see to it afterwards, and say so.
            let (response, _) = self.http.ask_once(&self.target, question, &[201, 202])?;
            let found =
                header(&response, "docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
            // Of another algorithm it says nothing about these bytes.
            match found.filter(|found| found.algorithm() == digest.algorithm() && found != digest) {
                None => Ok(()),
                Some(actual) => {
                    let (what, expected) = (what.clone(), digest.clone());
                    let error = VerifyError::DigestMismatch { what, expected, actual };
                    Err(ClientError::Verify(Box::new(error)))
                }
            }
        })
    }
}

/// The type of what has none.
const OCTETS: &str = "application/octet-stream";
/// No bytes.
const NOTHING: &[u8] = &[];

/// Where an upload goes on. What the registry names is spoken to as its redirects are: elsewhere without our proof.
fn location(response: &Response<Body>, url: &Url, what: &str) -> Result<Url, ClientError> {
    // An answer that says that there is nothing to send need not name a place.
    let named = header(response, "location").map(|location| url.join(location));
    match (named, response.status().as_u16()) {
        (Some(Some(url)), _) => Ok(url),
        (None, 201) => Ok(url.clone()),
        _ => Err(ClientError::Protocol {
            what: what.to_owned(),
            problem: "an upload without a usable location".to_owned(),
        }),
    }
}
