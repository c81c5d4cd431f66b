//! Text that must not be seen: passwords and tokens.

use std::fmt;

/// A password or token. Neither `Debug` nor any other formatting shows it; `expose` gives it to whoever sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Gives the text, to be sent or stored and not to be shown.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Replaces this secret in a text that somebody else has written, such as an error of a server that repeats
    /// what it was sent.
    #[must_use]
    pub fn hide_in(&self, text: &str) -> String {
        // A shorter one would be found in every other word, and is guessed faster than it is read here.
        if self.0.len() < 4 { text.to_owned() } else { text.replace(&self.0, HIDDEN) }
    }
}

/// What stands for a secret.
const HIDDEN: &str = "***";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "*** Some(***)");
        assert_eq!(secret.hide_in("bad token hunter2, or hunter2"), "bad token ***, or ***");
        assert_eq!(Secret::new("").hide_in("abc"), "abc");
    }
}
