//! Content digests (`sha256:…`, `sha512:…`) and the hashers that produce and check them.
//!
//! A [`Digest`] that exists is well-formed: it can be used as a file name or a URL segment without
//! further checks, which is what keeps a hostile manifest from naming a path.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use thiserror::Error;

/// A registered digest algorithm of the OCI image specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, the algorithm every registry uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Name as written before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Number of lower-case hexadecimal characters of the encoded value.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DigestError {
    /// There is no colon between algorithm and value.
    #[error("digest has no algorithm: '{0}'")]
    NoAlgorithm(String),
    /// The algorithm is not one that this program can check.
    #[error("digest algorithm '{0}' is not supported")]
    UnknownAlgorithm(String),
    /// The value has the wrong length or characters other than `0-9a-f`.
    #[error("digest value of '{0}' is not {1} lower-case hexadecimal characters")]
    BadValue(String, usize),
}

/// A well-formed content digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Computes the SHA-256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the value as lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Returns `algorithm-hex`, a form that is safe as a file name.
    #[must_use]
    pub fn file_stem(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    /// Tells whether `bytes` have this digest.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(clip(text)))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(clip(name))),
        };
        let well_formed = hex.len() == algorithm.hex_len()
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !well_formed {
            return Err(DigestError::BadValue(clip(text), algorithm.hex_len()));
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Longest piece of foreign text repeated in a message.
const CLIP_CHARS: usize = 160;

/// Shortens foreign text for a message and makes control characters visible.
pub(crate) fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(CLIP_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(CLIP_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// An incremental hasher for one algorithm.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Sha256(_) => "Hasher(sha256)",
            State::Sha512(_) => "Hasher(sha512)",
        })
    }
}

impl Hasher {
    /// Creates a hasher that has seen no bytes.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(sha2::Sha512::new())),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    /// Returns the digest of everything added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(h) => Digest { algorithm: Algorithm::Sha256, hex: to_hex(&h.finalize()) },
            State::Sha512(h) => Digest { algorithm: Algorithm::Sha512, hex: to_hex(&h.finalize()) },
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}

/// Passes bytes on to a writer while hashing and counting them.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    hasher: Hasher,
    written: u64,
}

impl<W: io::Write> DigestWriter<W> {
    /// Wraps `inner`.
    pub fn new(algorithm: Algorithm, inner: W) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), written: 0 }
    }

    /// Returns the writer, the digest and the number of bytes that went through.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.written)
    }
}

impl<W: io::Write> io::Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    // FIPS 180-4 example values for the message "abc".
    const ABC_256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn hashes_published_vectors_in_pieces() {
        for (algorithm, want) in [(Algorithm::Sha256, ABC_256), (Algorithm::Sha512, ABC_512)] {
            let mut writer = DigestWriter::new(algorithm, Vec::new());
            writer.write_all(b"a").unwrap();
            writer.write_all(b"bc").unwrap();
            let (bytes, digest, n) = writer.finish();
            assert_eq!((bytes.as_slice(), digest.to_string().as_str(), n), (&b"abc"[..], want, 3));
            assert!(want.parse::<Digest>().unwrap().matches(b"abc"));
            assert!(!want.parse::<Digest>().unwrap().matches(b"abd"));
        }
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let long = format!("sha256:{}", "a".repeat(65));
        let upper = ABC_256.replace('b', "B");
        let path = format!("sha256:../{}", "a".repeat(61));
        let nul = format!("sha256:{}\0", "a".repeat(63));
        for text in ["", "sha256", "sha256:", "md5:00", "sha256:baddigeststring", &long, &upper, &path, &nul]
        {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn displays_what_it_parsed() {
        for text in [ABC_256, ABC_512] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest.file_stem(), text.replace(':', "-"));
        }
    }
}
