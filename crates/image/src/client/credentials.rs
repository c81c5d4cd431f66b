//! What proves to a registry who asks.

use super::secret::Secret;

/// A way to prove who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// User name and password (RFC 7617), or a token that stands for the password.
    Password {
        /// The user; without a colon, which ends it on the wire.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of OAuth2: the token service of the registry gives access tokens for it.
    IdentityToken(Secret),
    /// An access token, sent as it is.
    RegistryToken(Secret),
}

/// A login, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The login.
    pub login: Login,
    /// The file or program that has it, for messages.
    pub origin: String,
    /// Whether it is kept for a host, whatever the port, and this is not the port that such a name means.
    pub of_any_port: bool,
}

/// Longest encoded user and password.
const MAX_ENCODED: usize = 64 * 1024;

impl Login {
    /// Reads `base64(user:password)`, as in HTTP's `Basic` and in Docker's configuration; `None` if it is none.
    #[must_use]
    pub fn from_basic(encoded: &str) -> Option<Self> {
        if encoded.len() > MAX_ENCODED {
            return None;
        }
        let text = String::from_utf8(decode(encoded.trim())?).ok()?;
        let (user, password) = text.split_once(':')?;
        // Docker's file store pads passwords with NUL.
        let password = password.trim_end_matches('\0');
        (!user.is_empty()).then(|| Self::Password { user: user.to_owned(), password: Secret::new(password) })
    }

    /// Gives `base64(user:password)`; `None` for tokens, and for a user with a colon.
    #[must_use]
    pub fn to_basic(&self) -> Option<Secret> {
        match self {
            Self::Password { user, password } if !user.contains(':') => {
                Some(Secret::new(encode(format!("{user}:{}", password.expose()).as_bytes())))
            }
            _ => None,
        }
    }

    /// The user, where one is named.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Password { user, .. } => Some(user),
            Self::IdentityToken(_) | Self::RegistryToken(_) => None,
        }
    }

    /// The secret part.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        match self {
            Self::Password { password: secret, .. }
            | Self::IdentityToken(secret)
            | Self::RegistryToken(secret) => secret,
        }
    }
}

/// Characters of RFC 4648 section 4, by value.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            // n bytes are n + 1 characters; the rest is padding.
            let value = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
            text.push(if place <= chunk.len() { char::from(ALPHABET[value]) } else { '=' });
        }
    }
    text
}

/// Decodes, with or without padding; `None` if another character is among them.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for place in 0..4 {
            let value = match chunk.get(place) {
                Some(character) => ALPHABET.iter().position(|known| known == character)?,
                None => 0,
            };
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        // One character alone holds no byte.
        let n_bytes = chunk.len().checked_sub(1).filter(|n| *n > 0)?;
        bytes.extend_from_slice(&decoded[..n_bytes]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648 section 10.
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(plain.as_bytes()), encoded);
            assert_eq!(decode(encoded).unwrap(), plain.as_bytes());
            assert_eq!(decode(encoded.trim_end_matches('=')).unwrap(), plain.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        for bad in ["Z", "Zm9vY", "Zm 9", "Zm9\n", "Zm-_", "Zg==x", "ü"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn basic_is_read_and_written() {
        let login = |user: &str, password: &str| Login::Password {
            user: user.to_owned(),
            password: Secret::new(password),
        };
        for (user, password) in [("u", "p"), ("$oauthtoken", "a:b:c"), ("ü", "pässword"), ("u", "")] {
            let basic = login(user, password).to_basic().unwrap();
            assert_eq!(Login::from_basic(basic.expose()), Some(login(user, password)));
        }
        assert_eq!(Login::from_basic(&encode(b"u:p\0\0\0")), Some(login("u", "p")));
        assert_eq!(login("u:v", "p").to_basic(), None);
        assert_eq!(Login::IdentityToken(Secret::new("t")).to_basic(), None);
        for bad in ["", "!!!!", &encode(b"nocolon"), &encode(b":p"), &encode(b"\xff:p")] {
            assert_eq!(Login::from_basic(bad), None, "{bad}");
        }
        assert_eq!(Login::from_basic(&"QQ".repeat(MAX_ENCODED)), None);
    }

    #[test]
    fn nothing_shows_a_password() {
        let credentials = Credentials {
            login: Login::Password { user: "me".to_owned(), password: Secret::new("hunter2") },
            origin: "file".to_owned(),
            of_any_port: false,
        };
        let shown = format!("{credentials:?} {:#?}", Login::IdentityToken(Secret::new("hunter2")));
        assert!(shown.contains("me") && !shown.contains("hunter2"), "{shown}");
    }
}
